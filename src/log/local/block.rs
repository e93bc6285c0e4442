//! Records packed into blocks, the values of the embedded log: RocksDB takes 3 µs for a put, so a record must not be
//! one.
//!
//! | bytes | what |
//! |---|---|
//! | 1 | layout of the block: 1 |
//! | 8 | log time of all its records, milliseconds |
//! | 8 | how many bytes of blocks came before it in its topic and partition since the log was made |
//! | 4 | how many records |
//! | … | for each record: length of the key + 1, or 0 for none; key; length of the value; value |
//!
//! The three numbers are big-endian, the lengths LEB128. The second makes the size of any stretch of a partition the
//! difference of two blocks: retention by size finds its cut by bisection, and opening a log reads no more than its
//! first and last blocks. RocksDB checks that the bytes are those that were written.

use super::keys;
use crate::log::{Limit, Record};
use crate::presence::Offset;
use crate::varint;

const VERSION: u8 = 1;
const HEADER: usize = 1 + 8 + 8 + 4;

/// A block is closed before a record that would make it larger than this; a larger record has one of its own. Small
/// enough that a reader in small steps, who walks through a block for each, wastes microseconds, and large enough that
/// a put is nothing.
const FULL: usize = 64 * 1024;

/// A block as it is stored.
#[derive(Clone, Copy)]
pub(super) struct Block<'a> {
    pub first: u64,
    pub ts: u64,
    /// Bytes of all blocks before this one.
    pub before: u64,
    count: u32,
    records: &'a [u8],
}

impl<'a> Block<'a> {
    /// None for bytes that are no block of this layout.
    pub fn parse(key: &[u8], value: &'a [u8]) -> Option<Block<'a>> {
        let first = keys::first_of(key)?;
        let (header, records) = value.split_at_checked(HEADER)?;
        let block = Block {
            first,
            ts: u64::from_be_bytes(header[1..9].try_into().ok()?),
            before: u64::from_be_bytes(header[9..17].try_into().ok()?),
            count: u32::from_be_bytes(header[17..21].try_into().ok()?),
            records,
        };
        // Every sum that is made of its numbers.
        let sums = first
            .checked_add(u64::from(block.count))
            .and(block.before.checked_add(weight(value.len())));
        let sound = header[0] == VERSION && block.count > 0 && sums.is_some();
        sound.then_some(block)
    }

    /// The offset after its last record.
    pub fn end(&self) -> u64 {
        self.first + u64::from(self.count)
    }

    /// Bytes of all blocks up to this one, it included.
    pub fn until(&self) -> u64 {
        self.before + weight(HEADER + self.records.len())
    }

    /// Adds its records from an offset on, while `taken` stays within the limit. False for bytes that are no records.
    pub fn unpack(&self, from: u64, taken: &mut Taken, into: &mut Vec<Record>) -> bool {
        let mut rest = self.records;
        for offset in self.first..self.end() {
            let Some((key, value)) = take_record(&mut rest) else {
                return false;
            };
            if offset < from {
                continue;
            }
            if !taken.admit(key.map_or(0, <[u8]>::len) + value.len()) {
                return true;
            }
            into.push(Record {
                offset: Offset(offset),
                ts: self.ts,
                key: key.map(<[u8]>::to_vec),
                value: value.to_vec(),
                is_null: false,
                headers: None,
            });
        }
        rest.is_empty()
    }
}

/// How much of a limit is used up.
pub(super) struct Taken {
    limit: Limit,
    records: usize,
    bytes: usize,
    full: bool,
}

impl Taken {
    pub fn nothing_of(limit: Limit) -> Taken {
        Taken {
            limit,
            records: 0,
            bytes: 0,
            full: false,
        }
    }

    /// Whether one more record of that many bytes may be given; the first always may.
    fn admit(&mut self, bytes: usize) -> bool {
        let after = self.bytes.saturating_add(bytes);
        self.full |= self.records > 0 && (self.records >= self.limit.records || after > self.limit.bytes);
        if !self.full {
            self.records += 1;
            self.bytes = after;
        }
        !self.full
    }

    /// Whether the next record would be refused for sure.
    pub fn full(&self) -> bool {
        self.full || (self.records > 0 && (self.records >= self.limit.records || self.bytes >= self.limit.bytes))
    }
}

/// Where the next block of a topic and partition goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct ShardEnd {
    pub end: u64,
    pub ts: u64,
    /// Bytes of all blocks so far.
    pub bytes: u64,
}

/// Packs new records of one topic and partition into blocks.
pub(super) struct Packer {
    tail: ShardEnd,
    ts: u64,
    open: Vec<u8>,
    first: u64,
    closed: Vec<(u64, Vec<u8>)>,
}

impl Packer {
    /// Goes on at a tail. The records get the time given, or the tail's if that is later.
    pub fn after(tail: ShardEnd, now_ms: u64) -> Packer {
        Packer {
            tail,
            ts: tail.ts.max(now_ms),
            open: Vec::new(),
            first: tail.end,
            closed: Vec::new(),
        }
    }

    /// Adds a record and says its offset.
    pub fn push(&mut self, key: Option<&[u8]>, value: &[u8]) -> u64 {
        if self.open.len() + key.map_or(0, <[u8]>::len) + value.len() > FULL {
            self.close();
        }
        if self.open.is_empty() {
            self.first = self.tail.end;
            self.open.resize(HEADER, 0);
        }
        match key {
            None => varint::put(&mut self.open, 0),
            Some(key) => {
                varint::put(&mut self.open, key.len() as u64 + 1);
                self.open.extend_from_slice(key);
            }
        }
        varint::put(&mut self.open, value.len() as u64);
        self.open.extend_from_slice(value);
        let offset = self.tail.end;
        self.tail.end += 1;
        offset
    }

    /// The blocks (first offset, value) and the tail after them.
    pub fn finish(mut self) -> (Vec<(u64, Vec<u8>)>, ShardEnd) {
        self.close();
        self.tail.ts = self.ts;
        (self.closed, self.tail)
    }

    fn close(&mut self) {
        if self.open.is_empty() {
            return;
        }
        let mut block = std::mem::take(&mut self.open);
        // A record has at least two bytes, so there are never that many in a block.
        let count = u32::try_from(self.tail.end - self.first).unwrap_or(u32::MAX);
        block[0] = VERSION;
        block[1..9].copy_from_slice(&self.ts.to_be_bytes());
        block[9..17].copy_from_slice(&self.tail.bytes.to_be_bytes());
        block[17..21].copy_from_slice(&count.to_be_bytes());
        self.tail.bytes += weight(block.len());
        self.closed.push((self.first, block));
    }
}

/// What a block counts for in retention by size: its key and its value, before compression.
fn weight(value: usize) -> u64 {
    12 + value as u64
}

fn take_bytes<'a>(rest: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (bytes, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
    *rest = after;
    Some(bytes)
}

fn take_record<'a>(rest: &mut &'a [u8]) -> Option<(Option<&'a [u8]>, &'a [u8])> {
    let key = match varint::take(rest)? {
        0 => None,
        length => Some(take_bytes(rest, length - 1)?),
    };
    let length = varint::take(rest)?;
    Some((key, take_bytes(rest, length)?))
}

/// Returns whether bytes are a block, for fuzzing. Its records are packed and read again.
#[cfg(test)]
pub(crate) fn is_block(value: &[u8]) -> bool {
    use crate::presence::Partition;
    let read = |first: u64, value: &[u8]| {
        let key = keys::block(Partition(0), first);
        let block = Block::parse(&key, value)?;
        assert!(block.end() > first && block.until() > block.before);
        let mut taken = Taken::nothing_of(Limit {
            records: usize::MAX,
            bytes: usize::MAX,
        });
        let mut records = Vec::new();
        block.unpack(0, &mut taken, &mut records).then_some(records)
    };
    const FIRST: u64 = 7;
    let Some(records) = read(FIRST, value) else {
        return false;
    };
    let tail = ShardEnd {
        end: FIRST,
        ts: records[0].ts,
        bytes: 0,
    };
    let mut packer = Packer::after(tail, 0);
    for record in &records {
        packer.push(record.key.as_deref(), &record.value);
    }
    let again = packer
        .finish()
        .0
        .into_iter()
        .filter_map(|(first, value)| read(first, &value));
    assert_eq!(again.flatten().collect::<Vec<_>>(), records);
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::Partition;

    const ALL: Limit = Limit {
        records: usize::MAX,
        bytes: usize::MAX,
    };

    fn unpacked(blocks: &[(u64, Vec<u8>)]) -> Vec<Record> {
        let mut into = Vec::new();
        for (first, value) in blocks {
            let key = keys::block(Partition(3), *first);
            let block = Block::parse(&key, value).unwrap();
            assert!(block.unpack(0, &mut Taken::nothing_of(ALL), &mut into));
        }
        into
    }

    #[test]
    fn a_block_is_these_bytes_for_ever() {
        let tail = ShardEnd {
            end: 7,
            ts: 0x0a,
            bytes: 0x0b,
        };
        let mut packer = Packer::after(tail, 3);
        assert_eq!(packer.push(None, b"v"), 7);
        assert_eq!(packer.push(Some(b""), b""), 8);
        assert_eq!(packer.push(Some(b"k"), &[b'w'; 130]), 9);
        let (blocks, after) = packer.finish();
        let mut expected = b"\x01\0\0\0\0\0\0\0\x0a\0\0\0\0\0\0\0\x0b\0\0\0\x03".to_vec();
        expected.extend_from_slice(b"\x00\x01v\x01\x00\x02k\x82\x01");
        expected.extend_from_slice(&[b'w'; 130]);
        assert_eq!(blocks, [(7, expected.clone())]);
        let bytes = 0x0b + 12 + expected.len() as u64;
        assert_eq!(
            after,
            ShardEnd {
                end: 10,
                ts: 0x0a,
                bytes
            }
        );
    }

    #[test]
    fn what_is_packed_is_unpacked_over_many_blocks() {
        let mut packer = Packer::after(ShardEnd::default(), 5);
        let sizes = [0, 1, 127, 128, 40_000, 70_000, 3, 300_000, 64 * 1024];
        for size in sizes {
            packer.push(Some(&vec![b'k'; size / 2]), &vec![b'v'; size]);
        }
        let (blocks, tail) = packer.finish();
        assert!(blocks.len() > 3);
        let records = unpacked(&blocks);
        assert_eq!(tail.end, sizes.len() as u64);
        for (at, (record, size)) in records.iter().zip(sizes).enumerate() {
            assert_eq!((record.offset.0, record.ts, record.value.len()), (at as u64, 5, size));
            assert_eq!(record.key.as_ref().map(Vec::len), Some(size / 2));
        }
        let (first, value) = blocks.last().unwrap();
        let last = Block::parse(&keys::block(Partition(3), *first), value).unwrap();
        assert_eq!((last.end(), last.until()), (tail.end, tail.bytes));
    }

    #[test]
    fn bytes_that_are_no_block_are_refused_and_never_a_panic() {
        let mut packer = Packer::after(ShardEnd::default(), 5);
        for _ in 0..3 {
            packer.push(Some(b"key"), b"value");
        }
        let (blocks, _) = packer.finish();
        let key = keys::block(Partition(0), 0);
        for length in 0..blocks[0].1.len() {
            let cut = &blocks[0].1[..length];
            let sound = Block::parse(&key, cut)
                .is_some_and(|block| block.unpack(0, &mut Taken::nothing_of(ALL), &mut Vec::new()));
            assert!(!sound, "{length}");
        }
        let mut endless = blocks[0].1.clone();
        endless.truncate(HEADER);
        endless.extend_from_slice(&[0xff; 20]);
        let block = Block::parse(&key, &endless).unwrap();
        assert!(!block.unpack(0, &mut Taken::nothing_of(ALL), &mut Vec::new()));
    }
}
