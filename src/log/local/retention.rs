//! Dropping old records: whole blocks, from the oldest on, the newest never.
//!
//! A block goes when it is older than the age to keep, or when the blocks from it on are more than the bytes to keep;
//! of events, only when all of it lies below the floor. The new start is written in the same synced step as the
//! deletion, since table files that lie below it are removed at once afterwards, and a start must never point at them.
//!
//! Age is measured by the time of the log ([`super::time`]), and even that is no reason to drop much at once. If more
//! than a tenth of the records of a topic and partition is too old, nothing goes for an hour, and then a tenth an hour: a
//! machine that was off for a month takes some hours longer to drop what became old meanwhile, and one whose clock is
//! wrong leaves hours to notice it.
//!
//! Dropping begins when a sixty-fourth more than what is to be kept is there, so that there is a line in the log of
//! the process for each time, and not too many of them.

use super::shard::{self, DropAllowance, Oldest, ShardWriter};
use super::{AppenderState, keys, locked, time};
use crate::log::Error;
use crate::presence::{Offset, Partition};
use crate::topics::Topic;
use rocksdb::WriteBatch;
use std::time::Duration;

/// Of the records there are, at most so large a part is dropped for its age …
const SHARE: u64 = 10;
/// … within so long, or within so large a part of the age that is kept if that is less: twice as fast as records come.
const PACE: Duration = Duration::from_secs(3_600);
const PACE_SHARE: u32 = 20;
/// What is too much is dropped when it is so large a part of what is to be kept.
const SLACK: u64 = 64;

pub(super) fn retain(shared: &AppenderState, partition: Partition, floor: Offset) -> Result<(), Error> {
    let settings = &shared.settings;
    if settings.retention_ms.is_none() && settings.retention_bytes.is_none() {
        return Ok(());
    }
    let partition_shards = shared.partition_shards(partition, Error::Write)?;
    for topic in Topic::ALL {
        // No fold needs outputs.
        let floor = if topic == Topic::Events { floor.0 } else { u64::MAX };
        retain_lane(shared, topic, partition, partition_shards.shard(topic), floor)?;
    }
    Ok(())
}

/// What is dropped of a lane.
#[derive(Clone, Copy)]
struct Rule {
    /// Blocks before this time are too old. 0 if no block is.
    horizon: u64,
    /// The bytes of the blocks from one on are at most so many.
    bytes_max: u64,
    /// Bytes of all blocks there ever were.
    bytes: u64,
    /// Blocks that end after it stay.
    floor: u64,
    /// Blocks that end after it are not dropped for their age.
    until: u64,
}

impl Rule {
    fn is_old(&self, block: Oldest) -> bool {
        block.ts < self.horizon
    }

    fn is_too_much(&self, block: Oldest) -> bool {
        self.bytes.saturating_sub(block.before) > self.bytes_max
    }

    fn keeps(&self, block: Oldest) -> bool {
        let is_due = self.is_too_much(block) || self.is_old(block) && block.end <= self.until;
        block.end > self.floor || !is_due
    }
}

fn retain_lane(
    shared: &AppenderState,
    topic: Topic,
    partition: Partition,
    shard: &ShardWriter,
    floor: u64,
) -> Result<(), Error> {
    let mut retention = locked(&shard.retention);
    let (start, end) = (shard.start(), shard.end());
    if start == end {
        return Ok(());
    }
    let now_ms = shared.time.now_ms();
    let keep_ms = shared.settings.retention_ms;
    let bytes_max = shared.settings.retention_bytes.unwrap_or(u64::MAX);
    let mut rule = Rule {
        horizon: keep_ms.map_or(0, |keep| now_ms.saturating_sub(keep.saturating_add(keep / SLACK))),
        bytes_max,
        bytes: locked(&shard.tail).bytes,
        floor,
        until: u64::MAX,
    };

    // Mostly there is nothing to do, and that is known without touching the disk.
    let first = {
        let open = shared.opened();
        let tables = shared.tables(&open)?;
        let first = match retention.oldest {
            Some(first) => first,
            None => shard::oldest(tables, topic, partition, start).map_err(|damage| damage.reading(&shared.dir))?,
        };
        retention.oldest = Some(first);
        first
    };
    if rule.keeps(first) {
        return Ok(());
    }
    rule.horizon = keep_ms.map_or(0, |keep| now_ms.saturating_sub(keep));
    rule.bytes_max = bytes_max - bytes_max / SLACK;
    if rule.is_old(first) {
        let old_to = {
            let open = shared.opened();
            let tables = shared.tables(&open)?;
            shard::first_kept(tables, (topic, partition), (start, end), |block| !rule.is_old(block))
                .map_err(|damage| damage.reading(&shared.dir))?
        };
        let pace = PACE.min(Duration::from_millis(keep_ms.unwrap_or(u64::MAX)) / PACE_SHARE);
        let now = shared.clock.passed();
        let allowance = next_allowance(retention.allowance, now, pace, (start, end), old_to, first.end);
        if retention.allowance.is_none() && allowance.is_some_and(|allowance| allowance.until == start) {
            tracing::info!(
                %topic, %partition, records = old_to - start, of = end - start,
                log_time = shown(now_ms), oldest = shown(first.ts), wait_s = pace.as_secs(),
                "more than a tenth of the records is older than what is kept; dropping them begins after a while, a tenth \
                 at a time"
            );
        }
        retention.allowance = allowance;
        rule.until = allowance.map_or(u64::MAX, |allowance| allowance.until);
    }
    if rule.keeps(first) {
        return Ok(());
    }

    let open = shared.writable()?;
    let tables = shared.tables(&open)?;
    let new_start = shard::first_kept(tables, (topic, partition), (start, end), |block| rule.keeps(block))
        .map_err(|damage| damage.reading(&shared.dir))?;
    if new_start == start {
        retention.oldest = None;
        return Ok(());
    }
    let kept = shard::oldest(tables, topic, partition, new_start).map_err(|damage| damage.reading(&shared.dir))?;
    let (from, to) = (keys::block(partition, 0), keys::block(partition, new_start));
    let mut batch = WriteBatch::default();
    // From 0, not from the old start: a file removed below may have held the tombstone of an older round.
    batch.delete_range_cf(tables.topic(topic), from, to);
    batch.put_cf(tables.meta(), keys::start(topic, partition), new_start.to_be_bytes());
    // Readers first: one that still counts on the old start would take the deletion for damage.
    shard.start_at(new_start);
    if let Err(error) = shared.put(tables, batch, true) {
        shard.start_at(start);
        return Err(error);
    }
    retention.oldest = Some(kept);
    // Both ends are inclusive.
    let last = keys::block(partition, new_start - 1);
    if let Err(error) = tables.db().delete_file_in_range_cf(tables.topic(topic), from, last) {
        tracing::warn!(%error, %topic, %partition, "table files of dropped records were not removed; compaction will");
    }
    tracing::info!(
        %topic, %partition, records = new_start - start, from = start, to = new_start,
        from_time = shown(first.ts), to_time = shown(kept.ts),
        "dropped old records"
    );
    Ok(())
}

fn shown(ms: u64) -> String {
    time::shown(Duration::from_millis(ms))
}

/// How far records may be dropped for their age from now on. None: as far as they are old, since that is little.
fn next_allowance(
    before: Option<DropAllowance>,
    now: Duration,
    pace: Duration,
    (start, end): (u64, u64),
    old_to: u64,
    first_end: u64,
) -> Option<DropAllowance> {
    let part = start + (end - start) / SHARE;
    let share = part.max(first_end);
    match before {
        None if old_to <= part => None,
        None => Some(DropAllowance {
            since: now,
            until: start,
        }),
        Some(before) if now.saturating_sub(before.since) < pace => Some(before),
        Some(_) if old_to <= part => None,
        Some(_) => Some(DropAllowance {
            since: now,
            until: share,
        }),
    }
}
