//! A partition of the embedded log in the hands of its owner: outputs and position in one write.
//!
//! Nothing but this process can write to the directory, so the fence is a number in memory. A permit does not keep the
//! log open: what is committed after the log was closed is refused with [`Error::Closed`].

use super::block::{Packer, ShardEnd};
use super::{AppenderState, keys, locked, retention};
use crate::log::{Commit, Error, Limit, OwnedPartition, PartitionEvents, Position, Range, Record};
use crate::presence::{Offset, Partition};
use crate::topics::Topic;
use rocksdb::WriteBatch;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// See the module.
pub(super) struct LocalPartition {
    shared: Arc<AppenderState>,
    partition: Partition,
    /// Which of its owners this is.
    owner: u64,
}

impl LocalPartition {
    pub fn take_up(shared: Arc<AppenderState>, partition: Partition) -> Result<LocalPartition, Error> {
        let owner = {
            let mut owners = locked(&shared.partition_shards(partition, Error::Open)?.owners);
            *owners += 1;
            *owners
        };
        Ok(LocalPartition {
            shared,
            partition,
            owner,
        })
    }

    /// Writes a commit and says which topics got records.
    fn write(&self, commit: &Commit) -> Result<Vec<Topic>, Error> {
        let (shared, partition) = (&*self.shared, self.partition);
        let partition_shards = shared.partition_shards(partition, Error::Write)?;
        let owners = locked(&partition_shards.owners);
        if *owners != self.owner {
            return Err(Error::Fenced { partition });
        }
        let end = partition_shards.shard(Topic::Events).end();
        if commit.position.next.0 > end {
            let next = commit.position.next;
            let text = format!("a position at {next} was to be committed, but partition {partition} ends at {end}");
            return Err(Error::Write(text.into()));
        }
        let open = shared.writable()?;
        let tables = shared.tables(&open)?;
        // Not refused, whatever the clock says: what is given out here was let in before.
        let now_ms = shared.time.stamp_ms().unwrap_or_else(|_| shared.time.now_ms());
        let mut batch = WriteBatch::default();
        let mut tails: Vec<(Topic, ShardEnd)> = Vec::new();
        for (topic, records) in commit.outputs.iter() {
            let Some(topic) = topic.topic() else { continue };
            let mut packer = Packer::after(*locked(&partition_shards.shard(topic).tail), now_ms);
            for record in records {
                packer.push(record.key.as_deref(), record.value.as_deref().unwrap_or_default());
            }
            let (blocks, tail) = packer.finish();
            for (first, block) in blocks {
                batch.put_cf(tables.topic(topic), keys::block(partition, first), block);
            }
            tails.push((topic, tail));
        }
        batch.put_cf(tables.meta(), keys::position(partition), commit.position.to_bytes());
        shared.put(tables, batch, false)?;
        *locked(&partition_shards.position) = commit.position;
        let mut touched = Vec::with_capacity(tails.len());
        for (topic, tail) in tails {
            let shard = partition_shards.shard(topic);
            *locked(&shard.tail) = tail;
            shard.show(tail.end);
            touched.push(topic);
        }
        Ok(touched)
    }
}

impl PartitionEvents for LocalPartition {
    fn read(&mut self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<(), Error> {
        let before = into.len();
        self.shared.read(Topic::Events, self.partition, from, limit, into)?;
        let partition_shards = self.shared.partition_shards(self.partition, Error::Read)?;
        partition_shards.traced.give(&mut into[before..]);
        Ok(())
    }

    fn range(&self) -> Result<Range, Error> {
        self.shared.range(Topic::Events, self.partition)
    }
}

impl OwnedPartition for LocalPartition {
    fn partition(&self) -> Partition {
        self.partition
    }

    fn partitions(&self) -> u32 {
        self.shared.partitions()
    }

    fn events(&self) -> &dyn PartitionEvents {
        self
    }

    fn events_mut(&mut self) -> &mut dyn PartitionEvents {
        self
    }

    fn commit(&mut self, commit: &Commit) -> Result<(), Error> {
        if self.shared.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        let touched = self.write(commit)?;
        for topic in touched {
            self.shared.tell(topic, self.partition);
        }
        Ok(())
    }

    fn position(&mut self) -> Result<Position, Error> {
        let partition_shards = self.shared.partition_shards(self.partition, Error::Read)?;
        Ok(*locked(&partition_shards.position))
    }

    fn sync(&mut self) -> Result<(), Error> {
        self.shared.sync()
    }

    fn retain(&mut self, floor: Offset) -> Result<(), Error> {
        retention::retain(&self.shared, self.partition, floor)
    }
}
