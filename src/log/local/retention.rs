//! Dropping old records: whole blocks, from the oldest on, the newest never.
//!
//! A block goes when it is older than the age to keep, or when the blocks from it on are more than the bytes to keep;
//! of events, only when all of it lies below the floor. The new start is written in the same synced step as the
//! deletion, since table files that lie below it are removed at once afterwards, and a start must never point at them.

use super::lane::{self, Lane, Oldest};
use super::{Shared, keys, locked};
use crate::log::{Error, Topic};
use crate::presence::{Offset, Partition};
use rocksdb::WriteBatch;

pub(super) fn retain(shared: &Shared, partition: Partition, floor: Offset) -> Result<(), Error> {
    let settings = &shared.settings;
    if settings.retention_ms.is_none() && settings.retention_bytes.is_none() {
        return Ok(());
    }
    let shelf = shared.shelf(partition, Error::Write)?;
    for topic in Topic::ALL {
        let floor = match topic {
            Topic::Events => floor.0,
            Topic::Changes | Topic::Kicks | Topic::Quarantine => u64::MAX,
        };
        retain_lane(shared, topic, partition, shelf.lane(topic), floor)?;
    }
    Ok(())
}

fn retain_lane(shared: &Shared, topic: Topic, partition: Partition, lane: &Lane, floor: u64) -> Result<(), Error> {
    let mut oldest = locked(&lane.oldest);
    let (start, end) = (lane.start(), lane.end());
    if start == end {
        return Ok(());
    }
    let bytes = locked(&lane.tail).bytes;
    let horizon = shared
        .settings
        .retention_ms
        .map_or(0, |keep| shared.clock.now_ms().saturating_sub(keep));
    let most = shared.settings.retention_bytes.unwrap_or(u64::MAX);
    let keep = |block: Oldest| {
        let due = block.ts < horizon || bytes.saturating_sub(block.before) > most;
        block.end > floor || !due
    };

    // Mostly there is nothing to do, and that is known without touching the disk.
    let first = {
        let open = shared.opened();
        let tables = shared.tables(&open)?;
        let first = match *oldest {
            Some(first) => first,
            None => lane::oldest(tables, topic, partition, start).map_err(|damage| damage.reading(&shared.dir))?,
        };
        *oldest = Some(first);
        first
    };
    if keep(first) {
        return Ok(());
    }

    let open = shared.writable()?;
    let tables = shared.tables(&open)?;
    let new_start = lane::first_kept(tables, (topic, partition), (start, end), keep)
        .map_err(|damage| damage.reading(&shared.dir))?;
    if new_start == start {
        *oldest = None;
        return Ok(());
    }
    let (from, to) = (keys::block(partition, 0), keys::block(partition, new_start));
    let mut batch = WriteBatch::default();
    // From 0, not from the old start: a file removed below may have held the tombstone of an older round.
    batch.delete_range_cf(tables.topic(topic), from, to);
    batch.put_cf(tables.meta(), keys::start(topic, partition), new_start.to_be_bytes());
    // Readers first: one that still counts on the old start would take the deletion for damage.
    lane.start_at(new_start);
    if let Err(error) = shared.put(tables, batch, true) {
        lane.start_at(start);
        return Err(error);
    }
    *oldest = None;
    // Both ends are inclusive.
    let last = keys::block(partition, new_start - 1);
    if let Err(error) = tables.db().delete_file_in_range_cf(tables.topic(topic), from, last) {
        tracing::warn!(%error, %topic, %partition, "table files of dropped records were not removed; compaction will");
    }
    tracing::debug!(%topic, %partition, from = start, to = new_start, "dropped old records");
    Ok(())
}
