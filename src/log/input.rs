//! What was read of the events: the last record, and a digest of all, which go along in the position.
//!
//! Two nodes that read the same log must be given the same records, or they have different states, also where no output
//! differs. A log that was cut, or made again, goes on at the same offsets with other records. Both are found by comparing what
//! was read. The checksums are XXH3 (64 bits): they find what a broker or a disk did, and prove nothing against somebody who
//! means harm.

use super::Record;
use crate::presence::Offset;
use twox_hash::XxHash3_64;

/// In place of the checksum of a part that a record does not have.
const ABSENT: u64 = 0;

/// A record that was read, to be recognized when it is read again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastRecord {
    pub offset: Offset,
    pub ts: u64,
    /// Of key and value, and of the header that says how to read the value.
    pub checksum: u64,
}

impl LastRecord {
    pub fn of(record: &Record) -> LastRecord {
        let part = |bytes: Option<&[u8]>| bytes.map_or(ABSENT, XxHash3_64::oneshot);
        let parts = [
            part(record.key.as_deref()),
            part((!record.is_null).then_some(&record.value)),
            part(record.schema_header().map(|header| &*header.value)),
        ];
        LastRecord {
            offset: record.offset,
            ts: record.ts,
            checksum: XxHash3_64::oneshot(&bytes_of(parts)),
        }
    }
}

fn bytes_of(numbers: [u64; 3]) -> [u8; 24] {
    let mut bytes = [0; 24];
    for (part, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        part.copy_from_slice(&number.to_be_bytes());
    }
    bytes
}

/// What was read before a position.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Input {
    /// The last record.
    pub last: Option<LastRecord>,
    /// The first offset that the digest covers: what is before was read by a version that kept none.
    pub since: Offset,
    /// Over the digest before, and offset, time and checksum of a record, for each record.
    pub digest: u64,
}

impl Input {
    /// Of its bytes.
    pub const BYTES: usize = 8 + 8 + 1 + 8 + 8 + 8;

    /// Begins at an offset, with nothing known of what is before.
    pub fn since(since: Offset) -> Input {
        Input {
            since,
            ..Input::default()
        }
    }

    /// Takes the next record.
    pub fn take(&mut self, record: &Record) {
        let last = LastRecord::of(record);
        let parts = [last.offset.0, last.ts, last.checksum];
        self.digest = XxHash3_64::oneshot_with_seed(self.digest, &bytes_of(parts));
        self.last = Some(last);
    }

    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let Input { last, since, digest } = *self;
        let [offset, ts, checksum] = match last {
            Some(LastRecord { offset, ts, checksum }) => [offset.0, ts, checksum],
            None => [0; 3],
        };
        let numbers = [since.0, digest, offset, ts, checksum];
        let mut bytes = [0; Self::BYTES];
        bytes[0] = u8::from(last.is_some());
        for (part, number) in bytes[1..].chunks_exact_mut(8).zip(numbers) {
            part.copy_from_slice(&number.to_be_bytes());
        }
        bytes
    }

    /// None for bytes that [`Input::to_bytes`] does not give.
    pub fn from_bytes(bytes: &[u8]) -> Option<Input> {
        let (has_last, rest) = bytes.split_first().filter(|_| bytes.len() == Self::BYTES)?;
        let mut numbers = [0; 5];
        for (number, part) in numbers.iter_mut().zip(rest.chunks_exact(8)) {
            *number = u64::from_be_bytes(part.try_into().ok()?);
        }
        let [since, digest, offset, ts, checksum] = numbers;
        let last = LastRecord {
            offset: Offset(offset),
            ts,
            checksum,
        };
        Some(Input {
            last: (*has_last != 0).then_some(last),
            since: Offset(since),
            digest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::RecordHeaders;
    use super::*;
    use crate::log::{SCHEMA_HEADERS, SchemaHeader};

    #[test]
    fn whatever_differs_in_a_record_or_in_the_order_of_records_gives_another_digest() {
        let record = |offset: u64, ts: u64, key: Option<&str>, value: Option<&str>, header: Option<&str>| Record {
            offset: Offset(offset),
            ts,
            key: key.map(|key| key.as_bytes().to_vec()),
            value: value.unwrap_or_default().as_bytes().to_vec(),
            is_null: value.is_none(),
            headers: RecordHeaders {
                schema: header.map(|header| SchemaHeader {
                    name: SCHEMA_HEADERS[0],
                    value: header.as_bytes().into(),
                }),
                ..RecordHeaders::default()
            }
            .boxed(),
        };
        let one = || record(7, 9, Some("ab"), Some("cd"), None);
        let logs = [
            vec![],
            vec![one()],
            vec![one(), one()],
            vec![record(8, 9, Some("ab"), Some("cd"), None)],
            vec![record(7, 8, Some("ab"), Some("cd"), None)],
            vec![record(7, 9, Some("abc"), Some("d"), None)],
            vec![record(7, 9, Some(""), Some("abcd"), None)],
            vec![record(7, 9, None, Some("abcd"), None)],
            vec![record(7, 9, Some("ab"), Some("ce"), None)],
            vec![record(7, 9, Some("ab"), Some(""), None)],
            vec![record(7, 9, Some("ab"), None, None)],
            vec![record(7, 9, Some("ab"), None, Some(""))],
            vec![record(7, 9, Some("ab"), Some("cd"), Some("x"))],
            vec![one(), record(8, 9, None, Some("x"), None)],
            vec![record(8, 9, None, Some("x"), None), one()],
        ];
        let mut digests: Vec<u64> = logs.iter().map(|log| digest(log)).collect();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), logs.len());
    }

    fn digest(log: &[Record]) -> u64 {
        let mut input = Input::default();
        log.iter().for_each(|record| input.take(record));
        assert_eq!(Input::from_bytes(&input.to_bytes()), Some(input));
        input.digest
    }
}
