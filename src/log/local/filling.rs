//! An embedded log that is being filled with the events of another one.
//!
//! While its layout is [`keys::LAYOUT_UNFINISHED`] no version takes it for a log. Finishing is one synced write.

use super::block::{Packer, ShardEnd};
use super::follow::LocalReader;
use super::opening::{self, Purpose};
use super::{AppenderState, LocalLog, Settings, keys, locked};
use crate::clock::Clock;
use crate::log::{CopiedEvent, Error, FillingLog, Limit, Log as _, Reader as _, Record};
use crate::presence::{Offset, Partition};
use crate::topics::Topic;
use rocksdb::WriteBatch;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// See [`FillingLog`].
pub struct LocalFilling {
    log: LocalLog,
}

impl LocalFilling {
    /// Opens the log in a directory to fill it, or creates it. Returns `None` if there is a log that is finished. The errors
    /// are those of [`LocalLog::open`].
    pub fn open(dir: &Path, partitions: u32, clock: Arc<dyn Clock>) -> Result<Option<LocalFilling>, Error> {
        let settings = Settings {
            partitions: Some(partitions),
            ..Settings::default()
        };
        let log = LocalLog::open_for(Purpose::Filling, dir, settings, clock)?;
        let is_unfinished = {
            let open = log.shared.opened();
            opening::is_unfinished(dir, log.shared.tables(&open)?)?
        };
        Ok(is_unfinished.then_some(LocalFilling { log }))
    }

    /// Returns whether [`LocalFilling::open`] would open or create the log. The errors are those that it would give, but a process
    /// that fills the same log is not noticed. Writes nothing.
    pub fn judge(dir: &Path, partitions: u32) -> Result<bool, Error> {
        let Some(reader) = LocalReader::open(dir, Purpose::Filling)? else {
            return Ok(true);
        };
        opening::refuse_other_number(dir, reader.partitions(), partitions)?;
        reader.is_unfinished()
    }
}

impl FillingLog for LocalFilling {
    fn partitions(&self) -> u32 {
        self.log.partitions()
    }

    fn read(&mut self, partition: Partition, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<(), Error> {
        self.log.read(Topic::Events, partition, from, limit, into)
    }

    fn append(&mut self, events: Vec<(Partition, CopiedEvent)>) -> Result<(), Error> {
        write(&self.log.shared, events)
    }

    fn finish(&mut self) -> Result<(), Error> {
        self.log.close()?;
        let shared = &self.log.shared;
        let open = shared.writable()?;
        let tables = shared.tables(&open)?;
        let mut batch = WriteBatch::default();
        batch.put_cf(tables.meta(), keys::META_LAYOUT, keys::LAYOUT.to_be_bytes());
        shared.put(tables, batch, true)
    }
}

fn write(shared: &AppenderState, events: Vec<(Partition, CopiedEvent)>) -> Result<(), Error> {
    let mut by_partition: BTreeMap<Partition, Vec<CopiedEvent>> = BTreeMap::new();
    for (partition, event) in events {
        by_partition.entry(partition).or_default().push(event);
    }
    let open = shared.writable()?;
    let tables = shared.tables(&open)?;
    shared.still_there()?;
    let mut durable = shared.ends();
    let mut batch = WriteBatch::default();
    let mut tails: Vec<(Partition, ShardEnd)> = Vec::with_capacity(by_partition.len());
    for (partition, events) in by_partition {
        let mut tail = *locked(
            &shared
                .partition_shards(partition, Error::Write)?
                .shard(Topic::Events)
                .tail,
        );
        // The records of a block have one time.
        for of_one_time in events.chunk_by(|one, next| one.ts == next.ts) {
            let mut packer = Packer::after(tail, of_one_time[0].ts);
            for event in of_one_time {
                packer.push(event.key.as_deref(), event.value.as_deref().unwrap_or_default());
            }
            let (blocks, after) = packer.finish();
            for (first, block) in blocks {
                batch.put_cf(tables.topic(Topic::Events), keys::block(partition, first), block);
            }
            tail = after;
        }
        tails.push((partition, tail));
    }
    shared.put(tables, batch, true)?;
    for (partition, tail) in tails {
        let shard = shared.partition_shards(partition, Error::Write)?.shard(Topic::Events);
        *locked(&shard.tail) = tail;
        durable[partition.0 as usize][usize::from(Topic::Events.number())] = tail.end;
        shard.show(tail.end);
    }
    shared.ends_file.raise(&durable);
    Ok(())
}
