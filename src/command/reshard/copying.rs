//! Copies the events of a log into one with more partitions, and checks what was copied.
//!
//! *Exactly once without a position.* What the new log has to have follows from the old log alone. So a repeated command begins at
//! the start of the old log: what the new log has is compared with what it has to have, record by record, and copying goes on
//! behind it. A new log with anything else in it is refused at the first record that differs.
//!
//! *Everything is read back.* Each record that was appended is read from the new log, compared, and folded. So at any time both
//! logs' states are in memory, and can be compared ([`Copying::compare`]). Price: memory for everybody in both logs.

use super::compare::{Differences, compare};
use super::source::OldLog;
use super::split::Splitter;
use crate::clock::{Deadline, SystemClock};
use crate::engine::rejected::decode;
use crate::failpoint;
use crate::log::{CopiedEvent, FillingLog, Limit, Record};
use crate::presence::event::Event;
use crate::presence::policy::Policy;
use crate::presence::state::State;
use crate::presence::{LogTime, Offset, Partition};
use crate::registry::Schemas;
use crate::topics::Topic;
use crate::version::newest_revision;
use anyhow::bail;
use std::collections::VecDeque;
use std::thread;
use std::time::Duration;

/// What one read of the old log returns at most.
const LIMIT: Limit = Limit {
    records: 10_000,
    bytes: 4 << 20,
};
/// Bytes of key and value that wait until they are appended at the most, unless one record gives more.
const WAITING_BYTES_MAX: usize = 8 << 20;
/// What a waiting record counts for beside its bytes.
const RECORD_BYTES: usize = 100;
/// How long a log may take to return records that were just appended, and how often it is asked.
const SEEN_WITHIN: Duration = Duration::from_secs(20);
const SEEN_PAUSE: Duration = Duration::from_millis(10);

/// The work of one run of the command.
pub struct Copying {
    schemas: Schemas,
    /// `None`: only in memory, for a dry run.
    filling: Option<Box<dyn FillingLog>>,
    sources: Vec<SourcePartition>,
    targets: Vec<TargetPartition>,
    waiting_bytes: usize,
    counts: Counts,
}

/// How much was done.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Events read from the old log.
    pub read: u64,
    /// How many of these were malformed.
    pub malformed: u64,
    /// Records that the new log had already.
    pub there: u64,
    /// Records appended to the new log.
    pub copied: u64,
}

struct SourcePartition {
    splitter: Splitter,
    next: Offset,
    end: Offset,
}

struct TargetPartition {
    state: State,
    next: Offset,
    /// Records that it has to have from `next` on, and does not have as far as is known.
    expected: VecDeque<CopiedEvent>,
}

impl Copying {
    /// Prepares for a log with so many partitions. Fails if the log no longer has its first event.
    pub fn new(
        source: &mut dyn OldLog,
        schemas: Schemas,
        policy: &Policy,
        (targets, filling): (u32, Option<Box<dyn FillingLog>>),
    ) -> anyhow::Result<Copying> {
        let seed = crate::command::hash_seed();
        let reader = source.reader();
        let count = reader.partitions();
        let mut sources = Vec::new();
        for partition in (0..count).map(Partition) {
            let range = reader.range(Topic::Events, partition)?;
            if range.start > Offset(0) {
                bail!(
                    "partition {partition} no longer has its first events: the oldest one kept is {}. Every event from offset 0 on \
                     is needed, since no event can set a version or a status; without them use the procedure of docs/kafka.md, \
                     \"Another number of partitions\"",
                    range.start
                );
            }
            sources.push(SourcePartition {
                splitter: Splitter::new(partition, count, targets, policy.clone(), seed),
                next: Offset(0),
                end: Offset(0),
            });
        }
        let targets = (0..targets).map(|number| TargetPartition {
            state: State::seeded(Partition(number), policy.clone(), seed),
            next: Offset(0),
            expected: VecDeque::new(),
        });
        Ok(Copying {
            schemas,
            targets: targets.collect(),
            filling,
            sources,
            waiting_bytes: 0,
            counts: Counts::default(),
        })
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Returns how many records of the old log are not copied yet, as of the last step.
    pub fn behind(&self) -> u64 {
        let behind = self
            .sources
            .iter()
            .map(|source| source.end.0.saturating_sub(source.next.0));
        behind.sum()
    }

    /// Returns the log time of the partition that is furthest behind among those that have events to be copied; of all, if none has.
    pub fn time(&self) -> Option<LogTime> {
        let is_behind = |source: &&SourcePartition| source.next < source.end;
        let time = |source: &SourcePartition| source.splitter.state().time();
        let slowest = self.sources.iter().filter(is_behind).filter_map(time).min();
        slowest.or_else(|| self.sources.iter().filter_map(time).max())
    }

    /// Copies some records of each partition. Returns whether it has come to the end of what the old log had when it was called.
    pub fn step(&mut self, source: &mut dyn OldLog) -> anyhow::Result<bool> {
        source.reader().refresh()?;
        for index in 0..self.sources.len() {
            let partition = Partition(index as u32);
            self.sources[index].end = source.end(partition)?;
            if self.sources[index].next < self.sources[index].end {
                self.take(source, index)?;
            }
        }
        self.settle()?;
        Ok(self.behind() == 0)
    }

    /// Takes the next records of an old partition.
    fn take(&mut self, source: &mut dyn OldLog, index: usize) -> anyhow::Result<()> {
        let partition = Partition(index as u32);
        let (next, end) = (self.sources[index].next, self.sources[index].end);
        let mut records = Vec::new();
        let reader = source.reader();
        let partitions = reader.partitions();
        reader.read(Topic::Events, partition, next, LIMIT, &mut records)?;
        records.truncate(records.partition_point(|record| record.offset < end));
        if records.is_empty() {
            // Behind the last record there may be marks of transactions.
            self.sources[index].next = next.max(reader.reached(Topic::Events, partition)?.min(end));
            return Ok(());
        }
        let mut out = Vec::new();
        let mut rest = &records[..];
        while !rest.is_empty() {
            let learned = self.schemas.learn(rest.iter().map(Record::framed))?;
            let (now, later) = rest.split_at(learned.values());
            for record in now {
                let event = decode(record, partition, partitions, &learned).ok();
                if let Some(revision) = event
                    .as_ref()
                    .and_then(|event| event.unknown_revision(newest_revision()))
                {
                    bail!(
                        "the event at offset {} of partition {partition} raises it to revision {revision}, but this version knows \
                         revisions up to {}; use a version that knows it",
                        record.offset,
                        newest_revision()
                    );
                }
                self.counts.read += 1;
                self.counts.malformed += u64::from(event.is_none());
                self.sources[index]
                    .splitter
                    .take(record, event.as_ref(), &mut out, &mut |_| {});
                self.sources[index].next = Offset(record.offset.0 + 1);
                for (to, copied) in out.drain(..) {
                    self.waiting_bytes += copied.bytes() + RECORD_BYTES;
                    self.targets[to.0 as usize].expected.push_back(copied);
                }
                if self.waiting_bytes > WAITING_BYTES_MAX {
                    self.settle()?;
                }
            }
            rest = later;
        }
        self.sources[index].splitter.tidy();
        Ok(())
    }

    /// Compares with what the new log has, and appends what it does not have.
    fn settle(&mut self) -> anyhow::Result<()> {
        self.waiting_bytes = 0;
        let before = self.unexpected();
        // Also when everything that was there at the start has been read: then it finds another process that does the same.
        for index in 0..self.targets.len() {
            self.read_back(index)?;
        }
        self.counts.there += before - self.unexpected();
        if self.unexpected() == 0 {
            return Ok(());
        }
        let Some(filling) = &mut self.filling else {
            return self.fold_unwritten();
        };
        let mut append = Vec::new();
        for (target, partition) in self.targets.iter().zip((0..).map(Partition)) {
            append.extend(target.expected.iter().map(|event| (partition, event.clone())));
        }
        let count = append.len() as u64;
        filling.append(append)?;
        failpoint::reach("copied");
        self.counts.copied += count;
        let clock = SystemClock::new();
        let deadline = Deadline::after(&clock, SEEN_WITHIN);
        while self.unexpected() > 0 {
            for index in 0..self.targets.len() {
                self.read_back(index)?;
            }
            if self.unexpected() > 0 {
                if deadline.has_passed(&clock) {
                    bail!(
                        "{} events were appended to the new log, but could not be read from it within {} s; run the command again",
                        self.unexpected(),
                        SEEN_WITHIN.as_secs()
                    );
                }
                thread::sleep(SEEN_PAUSE);
            }
        }
        Ok(())
    }

    /// Returns how many records the new log has to have beyond those that were read from it.
    fn unexpected(&self) -> u64 {
        self.targets.iter().map(|target| target.expected.len() as u64).sum()
    }

    /// Reads what a partition of the new log has of the expected records, compares and folds it.
    fn read_back(&mut self, index: usize) -> anyhow::Result<()> {
        let partition = Partition(index as u32);
        let partitions = self.targets.len() as u32;
        let Some(filling) = &mut self.filling else {
            return Ok(());
        };
        let target = &mut self.targets[index];
        while !target.expected.is_empty() {
            let limit = Limit {
                records: target.expected.len().min(LIMIT.records),
                ..LIMIT
            };
            let mut records = Vec::new();
            filling.read(partition, target.next, limit, &mut records)?;
            if records.is_empty() {
                return Ok(());
            }
            for record in &records {
                let expected = target.expected.pop_front();
                if expected.is_none_or(|expected| !expected.is(record)) {
                    bail!(
                        "partition {partition} of the new log has another record at offset {} than the old log gives. Something else \
                         wrote to one of the logs, or --policy or the number of partitions is not that of the last run; begin with an \
                         empty log",
                        record.offset
                    );
                }
            }
            fold(&mut target.state, &records, partitions, &self.schemas)?;
            target.next = records.last().map_or(target.next, |last| Offset(last.offset.0 + 1));
        }
        Ok(())
    }

    /// Folds what would be appended.
    fn fold_unwritten(&mut self) -> anyhow::Result<()> {
        let partitions = self.targets.len() as u32;
        for target in &mut self.targets {
            let mut records = Vec::new();
            for event in target.expected.drain(..) {
                records.push(event.at(target.next));
                target.next.0 += 1;
            }
            self.counts.copied += records.len() as u64;
            fold(&mut target.state, &records, partitions, &self.schemas)?;
        }
        Ok(())
    }

    /// Fails if the new log has records that the old log does not give. Call it when everything is copied.
    pub fn check_end(&mut self) -> anyhow::Result<()> {
        let Some(filling) = &mut self.filling else {
            return Ok(());
        };
        for (target, partition) in self.targets.iter().zip((0..).map(Partition)) {
            let mut records = Vec::new();
            filling.read(partition, target.next, LIMIT, &mut records)?;
            if let Some(record) = records.first() {
                bail!(
                    "partition {partition} of the new log has a record at offset {} that the old log does not give. Something else \
                     wrote to it, or it was filled from another log; begin with an empty log",
                    record.offset
                );
            }
        }
        Ok(())
    }

    /// Compares the states of both logs. Nothing can be copied afterwards.
    pub fn compare(mut self) -> (Differences, Option<Box<dyn FillingLog>>) {
        let mut differences = Differences::default();
        for source in &self.sources {
            let parts: Vec<Partition> = source.splitter.parts().collect();
            let targets = self.targets.iter_mut().map(|target| &mut target.state);
            let mut states: Vec<&mut State> = targets.filter(|state| parts.contains(&state.partition())).collect();
            differences.extend(compare(source.splitter.state(), &mut states));
        }
        (differences, self.filling)
    }
}

/// Folds records of the new log.
fn fold(state: &mut State, records: &[Record], partitions: u32, schemas: &Schemas) -> anyhow::Result<()> {
    let mut rest = records;
    while !rest.is_empty() {
        let learned = schemas.learn(rest.iter().map(Record::framed))?;
        let (now, later) = rest.split_at(learned.values());
        for record in now {
            let event: Option<Event<'_>> = decode(record, state.partition(), partitions, &learned).ok();
            state.fold(record.offset, record.ts, event.as_ref(), &mut |_| {});
        }
        rest = later;
    }
    state.take_dirt();
    Ok(())
}
