//! Group commit: appends wait in a bounded queue, and one thread writes all that wait in one synced step.
//!
//! While one group is synced the next one gathers, so the slower the disk, the more appends share a sync.

use super::block::{Packer, ShardEnd};
use super::{AppenderState, keys, locked};
use crate::failpoint;
use crate::log::{Acknowledge, Appended, Error, NewRecord};
use crate::metrics;
use crate::presence::{Offset, Partition};
use crate::tasks::{End, message};
use crate::topics::Topic;
use rocksdb::WriteBatch;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Condvar, Mutex, PoisonError};

/// What one synced step takes at most, an append that is larger by itself excepted: the first of many waiting appends
/// need not wait until all of them are written.
const GROUP_BYTES: usize = 8 * 1024 * 1024;

/// What a record counts for in the queue beside its bytes.
const RECORD_BYTES: usize = 64;

/// An append that waits.
pub(super) struct PendingAppend {
    records: Vec<(Partition, NewRecord)>,
    bytes: usize,
    acknowledge: Acknowledge,
}

/// The bounded queue before the appender's thread.
pub(super) struct Queue {
    line: Mutex<AppendQueue>,
    /// Something came, or the queue was closed.
    moved: Condvar,
    bound: usize,
}

#[derive(Default)]
struct AppendQueue {
    waiting: VecDeque<PendingAppend>,
    bytes: usize,
    closed: bool,
    /// Why nothing is written any more.
    failed: Option<String>,
}

impl Queue {
    pub fn new(bound: usize) -> Queue {
        Queue {
            line: Mutex::default(),
            moved: Condvar::new(),
            bound,
        }
    }

    /// Lines an append up, or gives its acknowledge back with the reason why not. One that is larger than the bound
    /// is taken when nothing else waits.
    pub fn put(
        &self,
        records: Vec<(Partition, NewRecord)>,
        acknowledge: Acknowledge,
    ) -> Result<(), (Acknowledge, Error)> {
        let bytes = records
            .iter()
            .map(|(_, record)| RECORD_BYTES + record.key.as_ref().map_or(0, Vec::len) + record.value.len())
            .sum();
        let mut line = locked(&self.line);
        if let Some(why) = &line.failed {
            return Err((acknowledge, Error::Write(why.as_str().into())));
        }
        if line.closed {
            return Err((acknowledge, Error::Closed));
        }
        if line.bytes > 0 && line.bytes.saturating_add(bytes) > self.bound {
            return Err((acknowledge, Error::Busy));
        }
        line.bytes += bytes;
        line.waiting.push_back(PendingAppend {
            records,
            bytes,
            acknowledge,
        });
        drop(line);
        self.moved.notify_one();
        Ok(())
    }

    pub fn close(&self) {
        locked(&self.line).closed = true;
        self.moved.notify_all();
    }

    /// Accepts nothing more, because the appender's thread ends, and answers what waits.
    fn fail(&self, why: &str) {
        let mut line = locked(&self.line);
        line.failed = Some(why.to_owned());
        line.bytes = 0;
        let waiting = std::mem::take(&mut line.waiting);
        drop(line);
        for PendingAppend { acknowledge, .. } in waiting {
            metrics::append_failed();
            call(|| acknowledge(Err(Error::Write(why.into()))));
        }
    }

    /// The next group, waiting for one; None when the queue is closed and empty.
    fn take(&self) -> Option<Vec<PendingAppend>> {
        let mut line = locked(&self.line);
        while line.waiting.is_empty() {
            if line.closed {
                return None;
            }
            line = self.moved.wait(line).unwrap_or_else(PoisonError::into_inner);
        }
        let mut group = Vec::new();
        let mut bytes = 0;
        while let Some(next) = line.waiting.pop_front() {
            if !group.is_empty() && bytes + next.bytes > GROUP_BYTES {
                line.waiting.push_front(next);
                break;
            }
            bytes += next.bytes;
            group.push(next);
        }
        line.bytes -= bytes;
        Some(group)
    }
}

/// The appender's thread: until the queue is closed and empty, or until a panic. What was written and what is noted in memory may
/// then differ, so nothing is appended until the process has been restarted, and every publisher is answered so.
pub(super) fn run(shared: &AppenderState) -> End {
    while let Some(group) = shared.queue.take() {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| write_group(shared, group))) {
            let why = format!("appending panicked: {}; restart the process", message(&*panic));
            shared.queue.fail(&why);
            return End::Failed(why);
        }
    }
    End::Asked
}

/// Panics as writing does, when the appends of the group have been answered.
fn write_group(shared: &AppenderState, group: Vec<PendingAppend>) {
    let (records, acknowledges): (Vec<_>, Vec<_>) = group
        .into_iter()
        .map(|waiting| (waiting.records, waiting.acknowledge))
        .unzip();
    let written = catch_unwind(AssertUnwindSafe(|| write(shared, &records)));
    let (written, panic) = match written {
        Ok(written) => (written, None),
        Err(panic) => {
            let why = "appending panicked; whether these records were written is not known";
            (Err(Error::Write(why.into())), Some(panic))
        }
    };
    match written {
        Ok((appended, touched)) => {
            for partition in touched {
                call(|| shared.tell(Topic::Events, partition));
            }
            for (acknowledge, appended) in acknowledges.into_iter().zip(appended) {
                call(|| acknowledge(Ok(appended)));
            }
        }
        Err(error) => {
            for acknowledge in acknowledges {
                let error = error.clone();
                metrics::append_failed();
                call(|| acknowledge(Err(error)));
            }
        }
    }
    if let Some(panic) = panic {
        resume_unwind(panic);
    }
}

type Written = (Vec<Vec<Appended>>, Vec<Partition>);

fn write(shared: &AppenderState, group: &[Vec<(Partition, NewRecord)>]) -> Result<Written, Error> {
    failpoint::reach("append");
    let open = shared.writable()?;
    let tables = shared.tables(&open)?;
    shared.still_there()?;
    let now_ms = shared.time.stamp_ms()?;
    // Commits that were written before this sync are durable with it.
    let mut durable = shared.ends();

    let mut packers: BTreeMap<Partition, Packer> = BTreeMap::new();
    let mut appended = Vec::with_capacity(group.len());
    for records in group {
        let mut went = Vec::with_capacity(records.len());
        for (partition, record) in records {
            let packer = match packers.entry(*partition) {
                std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
                std::collections::btree_map::Entry::Vacant(entry) => {
                    let shard = shared.partition_shards(*partition, Error::Write)?.shard(Topic::Events);
                    entry.insert(Packer::after(*locked(&shard.tail), now_ms))
                }
            };
            let offset = Offset(packer.push(record.key.as_deref(), &record.value));
            if !record.headers.is_empty() {
                let partition_shards = shared.partition_shards(*partition, Error::Write)?;
                partition_shards.traced.note(offset.0, &record.headers);
            }
            went.push(Appended {
                partition: *partition,
                offset,
            });
        }
        appended.push(went);
    }

    let mut batch = WriteBatch::default();
    let mut tails: Vec<(Partition, ShardEnd)> = Vec::with_capacity(packers.len());
    for (partition, packer) in packers {
        let (blocks, tail) = packer.finish();
        for (first, block) in blocks {
            batch.put_cf(tables.topic(Topic::Events), keys::block(partition, first), block);
        }
        tails.push((partition, tail));
    }
    shared.put(tables, batch, true)?;

    let mut touched = Vec::with_capacity(tails.len());
    for (partition, tail) in tails {
        let shard = shared.partition_shards(partition, Error::Write)?.shard(Topic::Events);
        *locked(&shard.tail) = tail;
        durable[partition.0 as usize][usize::from(Topic::Events.number())] = tail.end;
        shard.show(tail.end);
        touched.push(partition);
    }
    shared.ends_file.raise(&durable);
    Ok((appended, touched))
}

/// Calls somebody else's code. Its panic must not end the thread that every later append waits for.
pub(super) fn call(theirs: impl FnOnce()) {
    if catch_unwind(AssertUnwindSafe(theirs)).is_err() {
        tracing::error!("a listener or an acknowledge of the log panicked");
    }
}
