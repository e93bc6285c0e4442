//! One topic of one partition: where it starts and ends, and how its blocks are found on disk.
//!
//! Blocks follow each other without a gap. A reader checks that, so a hole is an error and never skipped.
//! Iterators have a lower bound at the start kept and an upper one at the end, so none walks the tombstones that
//! retention leaves.

use super::block::{Block, ShardEnd, Taken};
use super::tables::{Damage, Tables, within};
use super::{keys, time};
use crate::log::{Limit, Record};
use crate::presence::Partition;
use crate::topics::Topic;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What is known in memory. Readers need only the two numbers; writers take the locks.
pub(super) struct ShardWriter {
    start: AtomicU64,
    end: AtomicU64,
    pub tail: Mutex<ShardEnd>,
    /// What retention knows. Held while something is dropped.
    pub retention: Mutex<Retention>,
}

#[derive(Default)]
pub(super) struct Retention {
    /// The oldest block kept, once it was looked at.
    pub oldest: Option<Oldest>,
    /// How far records may be dropped for their age at present. None: there is no need of a bound.
    pub allowance: Option<DropAllowance>,
}

/// Since a moment, by [`crate::clock::Clock::passed`], records before `until` may be dropped for their age.
#[derive(Clone, Copy)]
pub(super) struct DropAllowance {
    pub since: Duration,
    pub until: u64,
}

#[derive(Clone, Copy)]
pub(super) struct Oldest {
    pub ts: u64,
    /// Bytes of the blocks before it.
    pub before: u64,
    pub end: u64,
}

/// What was found on disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Found {
    pub start: u64,
    pub tail: ShardEnd,
}

impl ShardWriter {
    pub fn new(found: Found) -> ShardWriter {
        ShardWriter {
            start: AtomicU64::new(found.start),
            end: AtomicU64::new(found.tail.end),
            tail: Mutex::new(found.tail),
            retention: Mutex::default(),
        }
    }

    pub fn start(&self) -> u64 {
        self.start.load(Ordering::Acquire)
    }

    pub fn end(&self) -> u64 {
        self.end.load(Ordering::Acquire)
    }

    /// From now on readers see records up to here.
    pub fn show(&self, end: u64) {
        self.end.store(end, Ordering::Release);
    }

    pub fn start_at(&self, start: u64) {
        self.start.store(start, Ordering::Release);
    }
}

/// Finds where a lane starts and ends, from its first and last block.
pub(super) fn find(tables: &Tables, topic: Topic, partition: Partition) -> Result<Found, Damage> {
    let start = tables.number(&keys::start(topic, partition))?.unwrap_or(0);
    let mut blocks = tables
        .db()
        .raw_iterator_cf_opt(tables.topic(topic), within(partition, start, u64::MAX));
    blocks.seek_to_first();
    let Some((key, value)) = blocks.item() else {
        blocks.status()?;
        return match start {
            0 => Ok(Found {
                start,
                tail: ShardEnd::default(),
            }),
            // The newest block is never dropped.
            _ => Err(missing(topic, partition, start)),
        };
    };
    let first = parse(topic, partition, key, value)?.first;
    if first != start {
        return Err(missing(topic, partition, start));
    }
    blocks.seek_to_last();
    let Some((key, value)) = blocks.item() else {
        blocks.status()?;
        return Err(missing(topic, partition, start));
    };
    let last = parse(topic, partition, key, value)?;
    Ok(Found {
        start,
        tail: ShardEnd {
            end: last.end(),
            ts: last.ts,
            bytes: last.until(),
        },
    })
}

/// Adds records from an offset on. `start` and `end` are those of the lane, `start <= from < end`.
///
/// Damage behind records that could be read is not an error yet: those are given, and the next read meets it.
pub(super) fn read(
    tables: &Tables,
    (topic, partition): (Topic, Partition),
    (start, end): (u64, u64),
    from: u64,
    limit: Limit,
    into: &mut Vec<Record>,
) -> Result<(), Damage> {
    let before = into.len();
    let result = read_blocks(tables, (topic, partition), (start, end), from, limit, into);
    match result {
        Err(_) if into.len() > before => Ok(()),
        result => result,
    }
}

fn read_blocks(
    tables: &Tables,
    (topic, partition): (Topic, Partition),
    (start, end): (u64, u64),
    from: u64,
    limit: Limit,
    into: &mut Vec<Record>,
) -> Result<(), Damage> {
    let mut blocks = tables
        .db()
        .raw_iterator_cf_opt(tables.topic(topic), within(partition, start, end));
    let mut taken = Taken::nothing_of(limit);
    let mut next = from;
    blocks.seek_for_prev(keys::block(partition, from));
    while next < end && !taken.full() {
        let Some((key, value)) = blocks.item() else {
            blocks.status()?;
            return Err(missing(topic, partition, next));
        };
        let block = parse(topic, partition, key, value)?;
        if block.ts > time::TIME_MAX_MS {
            return Err(Damage::new(format!(
                "partition {partition} of {topic}: the records from offset {} on have the time {} ms, which is not a \
                 possible time",
                block.first, block.ts
            )));
        }
        // The block found first holds `from`; each further one begins where the one before ended.
        let follows = if next == from {
            block.first <= next
        } else {
            block.first == next
        };
        if !follows || block.end() <= next {
            return Err(missing(topic, partition, next));
        }
        if !block.unpack(next, &mut taken, into) {
            return Err(malformed(topic, partition, block.first));
        }
        next = block.end();
        if next < end && !taken.full() {
            blocks.next();
        }
    }
    Ok(())
}

/// The oldest block.
pub(super) fn oldest(tables: &Tables, topic: Topic, partition: Partition, start: u64) -> Result<Oldest, Damage> {
    let mut blocks = tables
        .db()
        .raw_iterator_cf_opt(tables.topic(topic), within(partition, start, u64::MAX));
    blocks.seek_to_first();
    let Some((key, value)) = blocks.item() else {
        blocks.status()?;
        return Err(missing(topic, partition, start));
    };
    let block = parse(topic, partition, key, value)?;
    Ok(Oldest {
        ts: block.ts,
        before: block.before,
        end: block.end(),
    })
}

/// Bisects for the first block that is to be kept. Of blocks in order, `keep` must be false, then true; the newest is
/// kept whatever it says. `start < end`, and both are those of the lane.
pub(super) fn first_kept(
    tables: &Tables,
    (topic, partition): (Topic, Partition),
    (start, end): (u64, u64),
    keep: impl Fn(Oldest) -> bool,
) -> Result<u64, Damage> {
    let mut options = within(partition, start, end);
    options.fill_cache(false);
    let mut blocks = tables.db().raw_iterator_cf_opt(tables.topic(topic), options);
    let mut block_of = |offset: u64| -> Result<(u64, Oldest), Damage> {
        blocks.seek_for_prev(keys::block(partition, offset));
        let Some((key, value)) = blocks.item() else {
            blocks.status()?;
            return Err(missing(topic, partition, offset));
        };
        let block = parse(topic, partition, key, value)?;
        let what = Oldest {
            ts: block.ts,
            before: block.before,
            end: block.end(),
        };
        Ok((block.first, what))
    };
    let mut low = start;
    let (mut high, _) = block_of(end - 1)?;
    while low < high {
        let (first, block) = block_of(low + (high - low) / 2)?;
        if first < low || block.end <= low {
            return Err(missing(topic, partition, low));
        }
        if keep(block) {
            high = first;
        } else {
            low = block.end;
        }
    }
    Ok(high)
}

fn parse<'a>(topic: Topic, partition: Partition, key: &[u8], value: &'a [u8]) -> Result<Block<'a>, Damage> {
    Block::parse(key, value).ok_or_else(|| malformed(topic, partition, keys::first_of(key).unwrap_or(0)))
}

fn missing(topic: Topic, partition: Partition, offset: u64) -> Damage {
    Damage::new(format!(
        "partition {partition} of {topic}: the records from offset {offset} on are missing"
    ))
}

fn malformed(topic: Topic, partition: Partition, first: u64) -> Damage {
    Damage::new(format!(
        "partition {partition} of {topic}: the value stored at offset {first} is not a block of records"
    ))
}
