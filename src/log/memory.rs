//! A log in memory, for tests and simulations. It fails on demand. Every call takes effect before it returns; an append
//! also calls its `acknowledge` before it returns.
//!
//! Unlike the embedded log it accepts records at chosen offsets with chosen times ([`MemoryLog::append_at`]). So it can
//! imitate a log written by other programs, with gaps between offsets and with times that decrease. It drops no records
//! by itself; a test drops them with [`MemoryLog::drop_before`].

use super::{
    Acknowledge, Appended, Commit, Error, IncidentPosition, IncidentWriter, Limit, Listener, Log, NewRecord,
    OutputRecord, OwnedPartition, OwnerPosition, PartitionEvents, Position, Range, Record, RecordHeaders,
    StandbyPartition, TRACE_HEADER,
};
use crate::clock::Clock;
use crate::presence::{Offset, Partition};
use crate::topics::Topic;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

/// A log of partitions in memory; see the module documentation.
pub struct MemoryLog {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Arc<dyn Clock>,
    world: Mutex<MemoryState>,
    // Outside the mutex `world`, because a listener may call the log.
    listeners: RwLock<Vec<Arc<Listener>>>,
}

/// How a commit fails. The caller gets the same error in both cases and cannot distinguish them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CommitFault {
    /// Nothing of the commit is in the log.
    NotApplied,
    /// The whole commit is in the log, although the caller gets an error.
    Applied,
}

struct MemoryState {
    partitions: Vec<MemoryPartition>,
    failing_appends: VecDeque<Error>,
    failing_reads: VecDeque<Error>,
    failing_commits: VecDeque<(CommitFault, Error)>,
    incidents: Sequence,
    incident_position: Option<IncidentPosition>,
    /// How many times the writing of incidents was taken up. Only the last writer can commit.
    incident_writers: u64,
}

/// The writer of incidents with this number.
struct MemoryIncidents {
    shared: Arc<Shared>,
    writer: u64,
}

#[derive(Default)]
struct MemoryPartition {
    topics: [Sequence; Topic::ALL.len()],
    position: Position,
    /// How many times the partition was taken up. Only the last owner can commit.
    owners: u64,
}

/// The events of a partition.
struct MemoryEvents {
    shared: Arc<Shared>,
    partition: Partition,
}

/// An owner's handle to a partition.
struct OwnedMemoryPartition {
    events: MemoryEvents,
    /// The number of this owner.
    owner: u64,
}

/// A standby's handle to a partition.
struct MemoryStandby {
    events: MemoryEvents,
}

#[derive(Default)]
struct Sequence {
    records: VecDeque<Record>,
    start: u64,
    end: u64,
    last_ts: u64,
}

impl MemoryLog {
    /// Creates an empty log of `partitions` partitions, which takes times from `clock`.
    pub fn new(partitions: u32, clock: Arc<dyn Clock>) -> MemoryLog {
        MemoryLog {
            shared: Arc::new(Shared {
                clock,
                world: Mutex::new(MemoryState {
                    partitions: (0..partitions).map(|_| MemoryPartition::default()).collect(),
                    failing_appends: VecDeque::new(),
                    failing_reads: VecDeque::new(),
                    failing_commits: VecDeque::new(),
                    incidents: Sequence::default(),
                    incident_position: None,
                    incident_writers: 0,
                }),
                listeners: RwLock::new(Vec::new()),
            }),
        }
    }

    /// Appends one event at a chosen offset with a chosen time. Offsets must increase, and gaps are allowed; times may
    /// decrease. Returns an error if the offset is before the end or the partition does not exist.
    /// [`MemoryLog::fail_appends`] does not apply, because tests use this method to prepare the log.
    pub fn append_at(
        &self,
        partition: Partition,
        offset: Offset,
        ts: u64,
        key: Option<Vec<u8>>,
        value: Vec<u8>,
    ) -> Result<(), Error> {
        {
            let mut world = self.world();
            let events = &mut world.shelf(partition, Error::Write)?.topics[slot(Topic::Events)];
            if offset.0 < events.end {
                let end = events.end;
                return Err(Error::Write(
                    format!("offset {offset} of partition {partition} is before its end, {end}").into(),
                ));
            }
            events.push(
                offset.0,
                ts,
                NewRecord {
                    key,
                    value,
                    headers: Vec::new(),
                },
            );
        }
        self.shared.notify(Topic::Events, partition);
        Ok(())
    }

    /// Makes the next `count` appends fail with this error; none of their records is in the log.
    pub fn fail_appends(&self, count: usize, error: Error) {
        let mut world = self.world();
        world.failing_appends.extend(std::iter::repeat_n(error, count));
    }

    /// Makes the next `count` calls of [`Log::read`] fail with this error.
    pub fn fail_reads(&self, count: usize, error: Error) {
        let mut world = self.world();
        world.failing_reads.extend(std::iter::repeat_n(error, count));
    }

    /// Makes the next `count` commits fail with this error, before or after they are applied.
    pub fn fail_commits(&self, count: usize, fault: CommitFault, error: Error) {
        let mut world = self.world();
        world.failing_commits.extend(std::iter::repeat_n((fault, error), count));
    }

    /// Cancels all failures that were requested and have not happened yet.
    pub fn heal(&self) {
        let mut world = self.world();
        world.failing_appends.clear();
        world.failing_reads.clear();
        world.failing_commits.clear();
    }

    /// Drops the records before an offset, as retention would. The start moves to that offset, or to the end if the end
    /// is lower. The start never moves back.
    pub fn drop_before(&self, topic: Topic, partition: Partition, offset: Offset) -> Result<(), Error> {
        let mut world = self.world();
        let sequence = &mut world.shelf(partition, Error::Write)?.topics[slot(topic)];
        sequence.start = sequence.start.max(offset.0.min(sequence.end));
        let start = sequence.start;
        while sequence.records.front().is_some_and(|first| first.offset.0 < start) {
            sequence.records.pop_front();
        }
        Ok(())
    }

    /// Returns the position of the last commit, for tests that do not own the partition.
    pub fn committed(&self, partition: Partition) -> Result<Position, Error> {
        Ok(self.world().shelf(partition, Error::Read)?.position)
    }

    fn events(&self, partition: Partition) -> MemoryEvents {
        MemoryEvents {
            shared: self.shared.clone(),
            partition,
        }
    }

    fn world(&self) -> MutexGuard<'_, MemoryState> {
        self.shared.world()
    }
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, MemoryState> {
        // A panic of a caller leaves no partial change, so a poisoned lock is usable.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self, topic: Topic, partition: Partition) {
        let listeners = self.listeners.read().unwrap_or_else(PoisonError::into_inner).clone();
        for listener in listeners {
            listener(topic, partition);
        }
    }

    fn take_append(&self, records: Vec<(Partition, NewRecord)>) -> Result<Vec<Appended>, Error> {
        let mut world = self.world();
        if let Some(error) = world.failing_appends.pop_front() {
            return Err(error);
        }
        for (partition, _) in &records {
            world.shelf(*partition, Error::Write)?;
        }
        let now_ms = self.clock.now_ms();
        let mut appended = Vec::with_capacity(records.len());
        for (partition, record) in records {
            let events = &mut world.shelf(partition, Error::Write)?.topics[slot(Topic::Events)];
            let offset = Offset(events.end);
            let ts = events.last_ts.max(now_ms);
            events.push(offset.0, ts, record);
            appended.push(Appended { partition, offset });
        }
        Ok(appended)
    }

    fn partitions(&self) -> u32 {
        u32::try_from(self.world().partitions.len()).unwrap_or(u32::MAX)
    }

    fn read(
        &self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<(), Error> {
        let mut world = self.world();
        if let Some(error) = world.failing_reads.pop_front() {
            return Err(error);
        }
        let sequence = &world.shelf(partition, Error::Read)?.topics[slot(topic)];
        if from.0 < sequence.start {
            return Err(Error::Gone {
                topic,
                partition,
                wanted: from,
                start: Offset(sequence.start),
            });
        }
        let first = sequence.records.partition_point(|record| record.offset < from);
        let mut bytes = 0;
        for (count, record) in sequence.records.range(first..).enumerate() {
            bytes += size(record);
            if count > 0 && (count >= limit.records || bytes > limit.bytes) {
                break;
            }
            into.push(record.clone());
        }
        Ok(())
    }

    fn range(&self, topic: Topic, partition: Partition) -> Result<Range, Error> {
        let mut world = self.world();
        let sequence = &world.shelf(partition, Error::Read)?.topics[slot(topic)];
        Ok(Range {
            start: Offset(sequence.start),
            end: Offset(sequence.end),
        })
    }
}

impl Log for MemoryLog {
    fn take_up(&self, partition: Partition) -> Result<Box<dyn OwnedPartition>, Error> {
        let mut world = self.world();
        let shelf = world.shelf(partition, Error::Open)?;
        shelf.owners += 1;
        Ok(Box::new(OwnedMemoryPartition {
            events: self.events(partition),
            owner: shelf.owners,
        }))
    }

    fn stand_by(&self, partition: Partition) -> Result<Box<dyn StandbyPartition>, Error> {
        self.world().shelf(partition, Error::Open)?;
        Ok(Box::new(MemoryStandby {
            events: self.events(partition),
        }))
    }

    fn partitions(&self) -> u32 {
        self.shared.partitions()
    }

    fn append(&self, records: Vec<(Partition, NewRecord)>, acknowledge: Acknowledge) {
        let appended = self.shared.take_append(records);
        if let Ok(appended) = &appended {
            let mut touched: Vec<Partition> = appended.iter().map(|to| to.partition).collect();
            touched.sort_unstable();
            touched.dedup();
            for partition in touched {
                self.shared.notify(Topic::Events, partition);
            }
        }
        acknowledge(appended);
    }

    fn read(
        &self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<(), Error> {
        self.shared.read(topic, partition, from, limit, into)
    }

    fn range(&self, topic: Topic, partition: Partition) -> Result<Range, Error> {
        self.shared.range(topic, partition)
    }

    fn write_incidents(&self) -> Result<Box<dyn IncidentWriter>, Error> {
        let mut world = self.world();
        world.incident_writers += 1;
        Ok(Box::new(MemoryIncidents {
            shared: self.shared.clone(),
            writer: world.incident_writers,
        }))
    }

    fn read_incidents(&self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<Range, Error> {
        let world = self.world();
        let kept = world.incidents.records.iter().filter(|record| record.offset >= from);
        into.extend(kept.take(limit.records).cloned());
        Ok(Range {
            start: Offset(world.incidents.start),
            end: Offset(world.incidents.end),
        })
    }

    fn listen(&self, listener: Listener) {
        self.shared
            .listeners
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .push(Arc::new(listener));
    }
}

impl IncidentWriter for MemoryIncidents {
    fn position(&mut self) -> Result<Option<IncidentPosition>, Error> {
        Ok(self.shared.world().incident_position.clone())
    }

    fn commit(&mut self, records: &[NewRecord], position: &IncidentPosition) -> Result<(), Error> {
        let ts = self.shared.clock.now_ms();
        let mut world = self.shared.world();
        if world.incident_writers != self.writer {
            return Err(Error::Write("the writing of incidents was taken over".into()));
        }
        for record in records {
            let end = world.incidents.end;
            world.incidents.push(end, ts, record.clone());
        }
        world.incident_position = Some(position.clone());
        Ok(())
    }
}

impl PartitionEvents for MemoryEvents {
    fn read(&mut self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<(), Error> {
        self.shared.read(Topic::Events, self.partition, from, limit, into)
    }

    fn range(&self) -> Result<Range, Error> {
        self.shared.range(Topic::Events, self.partition)
    }
}

impl StandbyPartition for MemoryStandby {
    fn partition(&self) -> Partition {
        self.events.partition
    }

    fn partitions(&self) -> u32 {
        self.events.shared.partitions()
    }

    fn events(&self) -> &dyn PartitionEvents {
        &self.events
    }

    fn events_mut(&mut self) -> &mut dyn PartitionEvents {
        &mut self.events
    }

    fn owner_position(&self) -> Result<OwnerPosition, Error> {
        let MemoryEvents { shared, partition } = &self.events;
        let position = shared.world().shelf(*partition, Error::Read)?.position;
        Ok(OwnerPosition { position, age_ms: 0 })
    }
}

impl OwnedPartition for OwnedMemoryPartition {
    fn partition(&self) -> Partition {
        self.events.partition
    }

    fn partitions(&self) -> u32 {
        self.events.shared.partitions()
    }

    fn events(&self) -> &dyn PartitionEvents {
        &self.events
    }

    fn events_mut(&mut self) -> &mut dyn PartitionEvents {
        &mut self.events
    }

    fn commit(&mut self, commit: &Commit) -> Result<(), Error> {
        let MemoryEvents { shared, partition } = &self.events;
        let partition = *partition;
        let mut touched = Vec::new();
        let failed = {
            let mut world = shared.world();
            if world.shelf(partition, Error::Write)?.owners != self.owner {
                return Err(Error::Fenced { partition });
            }
            let fault = world.failing_commits.pop_front();
            if let Some((CommitFault::NotApplied, error)) = fault {
                return Err(error);
            }
            let now_ms = shared.clock.now_ms();
            let shelf = world.shelf(partition, Error::Write)?;
            for (topic, records) in commit.outputs.iter() {
                let Some(topic) = topic.topic() else { continue };
                touched.push(topic);
                let sequence = &mut shelf.topics[slot(topic)];
                for record in records {
                    sequence.push(sequence.end, sequence.last_ts.max(now_ms), record.clone());
                }
            }
            shelf.position = commit.position;
            fault
        };
        for topic in touched {
            shared.notify(topic, partition);
        }
        failed.map_or(Ok(()), |(_, error)| Err(error))
    }

    fn position(&mut self) -> Result<Position, Error> {
        let MemoryEvents { shared, partition } = &self.events;
        Ok(shared.world().shelf(*partition, Error::Read)?.position)
    }

    fn sync(&mut self) -> Result<(), Error> {
        Ok(())
    }

    fn retain(&mut self, _floor: Offset) -> Result<(), Error> {
        Ok(())
    }
}

impl MemoryState {
    fn shelf(&mut self, partition: Partition, or: fn(Arc<str>) -> Error) -> Result<&mut MemoryPartition, Error> {
        let count = self.partitions.len();
        self.partitions
            .get_mut(partition.0 as usize)
            .ok_or_else(|| or(format!("there is no partition {partition}: the log has {count}").into()))
    }
}

impl Sequence {
    /// Of headers only the trace is kept, as every log does for its owner.
    fn push(&mut self, offset: u64, ts: u64, record: impl Into<OutputRecord>) {
        let record = record.into();
        let trace = record.headers.into_iter().find(|(name, _)| *name == TRACE_HEADER);
        let headers = RecordHeaders {
            traceparent: trace.map(|(_, trace)| trace.into()),
            ..RecordHeaders::default()
        };
        self.end = offset.saturating_add(1);
        self.last_ts = ts;
        self.records.push_back(Record {
            offset: Offset(offset),
            ts,
            key: record.key,
            is_null: record.value.is_none(),
            value: record.value.unwrap_or_default(),
            headers: headers.boxed(),
        });
    }
}

/// Returns the size of a record that counts towards a byte limit.
fn size(record: &Record) -> usize {
    record.key.as_ref().map_or(0, Vec::len) + record.value.len()
}

fn slot(topic: Topic) -> usize {
    usize::from(topic.number())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::topics::OutputTopic;
    use std::sync::atomic::{AtomicUsize, Ordering};

    const P: Partition = Partition(1);
    const ALL: Limit = Limit {
        records: usize::MAX,
        bytes: usize::MAX,
    };

    fn log() -> (MemoryLog, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(1_000));
        (MemoryLog::new(2, clock.clone()), clock)
    }

    fn record(value: &str) -> NewRecord {
        NewRecord {
            headers: Vec::new(),
            key: None,
            value: value.into(),
        }
    }

    fn append(log: &MemoryLog, records: Vec<(Partition, NewRecord)>) -> Result<Vec<Appended>, Error> {
        let result = Arc::new(Mutex::new(None));
        let acknowledged = result.clone();
        log.append(
            records,
            Box::new(move |result| *acknowledged.lock().unwrap() = Some(result)),
        );
        result
            .lock()
            .unwrap()
            .take()
            .expect("the acknowledge is called before append returns")
    }

    fn read(log: &MemoryLog, topic: Topic, from: u64, limit: Limit) -> Result<Vec<(u64, u64, String)>, Error> {
        let mut into = Vec::new();
        log.read(topic, P, Offset(from), limit, &mut into)?;
        Ok(into
            .into_iter()
            .map(|record| (record.offset.0, record.ts, String::from_utf8(record.value).unwrap()))
            .collect())
    }

    fn full() -> Error {
        Error::Write("disk full".into())
    }

    #[test]
    fn appends_are_told_where_they_went_and_have_times_that_do_not_step_back() {
        let (log, clock) = log();
        let went = append(
            &log,
            vec![(P, record("a")), (Partition(0), record("x")), (P, record("b"))],
        )
        .unwrap();
        let places: Vec<_> = went.iter().map(|to| (to.partition.0, to.offset.0)).collect();
        assert_eq!(places, [(1, 0), (0, 0), (1, 1)]);
        clock.set_ms(400);
        append(&log, vec![(P, record("c"))]).unwrap();
        let all = read(&log, Topic::Events, 0, ALL).unwrap();
        assert_eq!(
            all,
            [(0, 1_000, "a".into()), (1, 1_000, "b".into()), (2, 1_000, "c".into())]
        );
    }

    #[test]
    fn a_read_stops_at_its_limit_and_gives_at_least_one() {
        let (log, _) = log();
        append(&log, (0..5).map(|_| (P, record("abc"))).collect()).unwrap();
        let count = |records, bytes| {
            let limit = Limit { records, bytes };
            read(&log, Topic::Events, 1, limit).unwrap().len()
        };
        assert_eq!(count(3, 100), 3);
        assert_eq!(count(100, 7), 2);
        assert_eq!(count(0, 0), 1);
        assert_eq!(read(&log, Topic::Events, 5, ALL).unwrap(), []);
    }

    #[test]
    fn records_can_be_placed_with_gaps_and_times_that_step_back() {
        let (log, _) = log();
        log.append_at(P, Offset(4), 900, None, b"a".to_vec()).unwrap();
        log.append_at(P, Offset(9), 300, None, b"b".to_vec()).unwrap();
        assert!(log.append_at(P, Offset(9), 300, None, b"c".to_vec()).is_err());
        assert_eq!(read(&log, Topic::Events, 5, ALL).unwrap(), [(9, 300, "b".into())]);
        let range = log.range(Topic::Events, P).unwrap();
        assert_eq!((range.start.0, range.end.0), (0, 10));
    }

    #[test]
    fn a_commit_that_fails_is_applied_or_not_as_the_test_says() {
        let (log, _) = log();
        let commit = |next| {
            let position = Position {
                next: Offset(next),
                ..Position::default()
            };
            let commit = Commit::at(position).with(OutputTopic::Changes, [record("c")]);
            commit.with(OutputTopic::Kicks, [record("k")])
        };
        let mut owned = log.take_up(P).unwrap();
        log.fail_commits(1, CommitFault::NotApplied, full());
        log.fail_commits(1, CommitFault::Applied, full());
        assert!(owned.commit(&commit(1)).is_err());
        assert_eq!(owned.position().unwrap().next, Offset(0));
        assert!(owned.commit(&commit(2)).is_err());
        assert_eq!(owned.position().unwrap().next, Offset(2));
        assert!(owned.commit(&commit(3)).is_ok());
        assert_eq!(read(&log, Topic::Changes, 0, ALL).unwrap().len(), 2);
        assert_eq!(read(&log, Topic::Kicks, 0, ALL).unwrap().len(), 2);
    }

    #[test]
    fn only_the_last_one_to_take_a_partition_up_commits_to_it() {
        let (log, _) = log();
        let mut first = log.take_up(P).unwrap();
        let mut elsewhere = log.take_up(Partition(0)).unwrap();
        assert!(first.commit(&Commit::default()).is_ok());
        let mut second = log.take_up(P).unwrap();
        let refused = first.commit(&Commit::default());
        assert!(matches!(refused, Err(Error::Fenced { partition: P })), "{refused:?}");
        assert!(second.commit(&Commit::default()).is_ok());
        assert!(elsewhere.commit(&Commit::default()).is_ok());
    }

    #[test]
    fn appends_and_reads_fail_as_often_as_the_test_says() {
        let (log, _) = log();
        log.fail_appends(1, Error::Busy);
        log.fail_reads(1, Error::Read("gone".into()));
        assert!(matches!(append(&log, vec![(P, record("a"))]), Err(Error::Busy)));
        assert!(matches!(read(&log, Topic::Events, 0, ALL), Err(Error::Read(_))));
        assert_eq!(read(&log, Topic::Events, 0, ALL).unwrap(), []);
        assert!(append(&log, vec![(P, record("a"))]).is_ok());
    }

    #[test]
    fn an_append_to_a_partition_that_is_not_there_leaves_nothing() {
        let (log, _) = log();
        assert!(append(&log, vec![(P, record("a")), (Partition(2), record("b"))]).is_err());
        assert_eq!(read(&log, Topic::Events, 0, ALL).unwrap(), []);
    }

    #[test]
    fn what_was_dropped_is_an_error_and_never_skipped() {
        let (log, _) = log();
        append(&log, (0..5).map(|_| (P, record("a"))).collect()).unwrap();
        log.drop_before(Topic::Events, P, Offset(3)).unwrap();
        let gone = read(&log, Topic::Events, 2, ALL);
        assert!(matches!(gone, Err(Error::Gone { start: Offset(3), .. })), "{gone:?}");
        assert_eq!(read(&log, Topic::Events, 3, ALL).unwrap().len(), 2);
    }

    #[test]
    fn listeners_hear_of_appends_and_commits_and_may_read() {
        let log = Arc::new(log().0);
        let heard = Arc::new(AtomicUsize::new(0));
        let (count, of) = (heard.clone(), Arc::downgrade(&log));
        log.listen(Box::new(move |topic, partition| {
            let log = of.upgrade().unwrap();
            count.fetch_add(log.range(topic, partition).unwrap().end.0 as usize, Ordering::SeqCst);
        }));
        append(&log, vec![(P, record("a"))]).unwrap();
        let commit = Commit::default().with(OutputTopic::Kicks, [record("k"), record("l")]);
        log.take_up(P).unwrap().commit(&commit).unwrap();
        assert_eq!(heard.load(Ordering::SeqCst), 3);
    }
}
