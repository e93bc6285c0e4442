//! What the follower makes of a log that no longer has the offset at which the lake goes on.

use super::*;
use crate::log::Position;
use crate::presence::change::{Cause, OutputId};
use crate::presence::{LogTime, Status};
use crate::schema::avro;
use std::cell::RefCell;

/// The change topic of one partition, which somebody else writes.
#[derive(Default)]
struct ChangeTopic {
    start: u64,
    end: u64,
    records: Vec<Record>,
}

type SharedTopic = Rc<RefCell<ChangeTopic>>;

struct TopicReader(SharedTopic);

impl Reader for TopicReader {
    fn partitions(&self) -> u32 {
        1
    }

    fn range(&self, _: Topic, _: Partition) -> Result<Range, Error> {
        let topic = self.0.borrow();
        Ok(Range {
            start: Offset(topic.start),
            end: Offset(topic.end),
        })
    }

    fn read(
        &mut self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<(), Error> {
        let shared = self.0.borrow();
        if from.0 < shared.start {
            return Err(Error::Gone {
                topic,
                partition,
                wanted: from,
                start: Offset(shared.start),
            });
        }
        let found = shared.records.iter().filter(|record| record.offset >= from);
        // One record at a time, so that what was read and what there is differ.
        into.extend(found.take(limit.records.min(1)).cloned());
        Ok(())
    }

    fn reached(&self, _: Topic, _: Partition) -> Result<Offset, Error> {
        Ok(Offset(self.0.borrow().end))
    }

    fn position(&self, _: &str, _: Partition) -> Result<Position, Error> {
        Ok(Position::default())
    }

    fn may_recover(&self, _: &Error) -> bool {
        false
    }
}

/// A transaction with one change, and its mark behind it.
fn commit(topic: &SharedTopic, seq: u64) {
    let mut topic = topic.borrow_mut();
    let offset = Offset(topic.end);
    let change = Change {
        id: OutputId {
            partition: Partition(0),
            offset,
            index: 0,
        },
        seq,
        user: "u".into(),
        version: seq,
        at: LogTime(seq),
        logged_at: LogTime(seq),
        cause: Cause::Login,
        before: if seq % 2 == 1 { Status::Offline } else { Status::Online },
        after: if seq % 2 == 1 { Status::Online } else { Status::Offline },
        devices: Vec::new(),
        custom_status: None,
        evidence: offset,
        rehearsal: None,
    };
    let mut value = Vec::new();
    avro::encode_change(&change, &mut value);
    topic.records.push(Record {
        offset,
        ts: seq,
        key: Some(b"u".to_vec()),
        value,
        is_null: false,
        headers: None,
    });
    topic.end += 2;
}

/// Transactions that were aborted, or that only had other partitions' outputs.
fn mark(topic: &SharedTopic) {
    topic.borrow_mut().end += 1;
}

fn drop_before(topic: &SharedTopic, start: u64) {
    let mut topic = topic.borrow_mut();
    topic.start = start;
    topic.records.retain(|record| record.offset.0 >= start);
}

fn follower(topic: &SharedTopic, directory: &std::path::Path) -> LakeFollower<LakeDirectory> {
    let reader = Box::new(TopicReader(topic.clone()));
    let lake = Lake::open(LakeDirectory::open(directory).unwrap(), 1).unwrap();
    LakeFollower::new(reader, Schemas::default(), lake, Trouble::default(), Behind::default())
}

/// Starts, reads what there is and commits it. Returns how many changes the lake has.
fn run_once(topic: &SharedTopic, directory: &std::path::Path, from_oldest: bool) -> anyhow::Result<u64> {
    let mut follower = follower(topic, directory);
    follower.check_log(from_oldest)?;
    while follower.read_some(Partition(0))? > 0 {}
    follower.commit()?;
    Ok(rows(follower.lake.committed(), "changes").0)
}

/// Returns where the lake goes on, as its manifest says.
fn next(directory: &std::path::Path) -> u64 {
    let bytes = crate::lake::storage::read_manifest(directory).unwrap().unwrap();
    LakeManifest::read(&bytes).unwrap().partitions[0].next
}

#[test]
fn marks_of_transactions_that_retention_removed_are_no_missing_changes() {
    let (topic, directory) = (SharedTopic::default(), tempfile::tempdir().unwrap());
    let lake = directory.path();
    commit(&topic, 1);
    commit(&topic, 2);
    let mut first = follower(&topic, lake);
    assert_eq!(first.read_some(Partition(0)).unwrap(), 1);
    first.commit().unwrap();
    assert_eq!(next(lake), 1, "the second change was not read yet");
    drop(first);
    assert_eq!(run_once(&topic, lake, false).unwrap(), 2);
    assert_eq!(next(lake), 4, "the mark behind the last change was read too");
    // More marks come, and everything is removed: no change is missing, and the next one proves it.
    mark(&topic);
    mark(&topic);
    drop_before(&topic, 6);
    assert_eq!(run_once(&topic, lake, false).unwrap(), 2);
    commit(&topic, 3);
    assert_eq!(run_once(&topic, lake, false).unwrap(), 3);
    // The same while the process runs: it waits at the offset after its last change.
    let mut running = follower(&topic, lake);
    running.check_log(false).unwrap();
    mark(&topic);
    drop_before(&topic, 9);
    assert_eq!(running.read_some(Partition(0)).unwrap(), 0);
    commit(&topic, 4);
    assert_eq!(running.read_some(Partition(0)).unwrap(), 1);
    assert_eq!(running.read_some(Partition(0)).unwrap(), 0);
    running.commit().unwrap();
    drop(running);
    // One that is gone before it was read is missing, whether one after it is left or comes later.
    commit(&topic, 5);
    commit(&topic, 6);
    let (fifth, end) = (topic.borrow().records[1].offset.0, topic.borrow().end);
    drop_before(&topic, fifth + 1);
    let missing = |lake: &std::path::Path| run_once(&topic, lake, false).unwrap_err().to_string();
    let wants = format!("from offset {fifth} on, where the lake goes on, are gone (retention)");
    assert!(missing(lake).contains(&wants), "{}", missing(lake));
    drop_before(&topic, end);
    assert_eq!(run_once(&topic, lake, false).unwrap(), 4, "nobody knows yet");
    let mut running = follower(&topic, lake);
    running.check_log(false).unwrap();
    commit(&topic, 7);
    let error = running.read_some(Partition(0)).unwrap_err().to_string();
    assert!(error.contains(&wants), "{error}");
    drop(running);
    assert!(missing(lake).contains(&wants), "{}", missing(lake));
}

#[test]
fn a_new_lake_begins_after_marks_but_not_after_changes_that_are_gone() {
    let topic = SharedTopic::default();
    let directory = || tempfile::tempdir().unwrap();
    mark(&topic);
    drop_before(&topic, 1);
    // It cannot be known: there may have been changes.
    let error = run_once(&topic, directory().path(), false).unwrap_err().to_string();
    assert!(error.contains("with --from-oldest the lake begins with"), "{error}");
    commit(&topic, 1);
    assert_eq!(run_once(&topic, directory().path(), false).unwrap(), 1);
    commit(&topic, 2);
    let second = topic.borrow().records[1].offset.0;
    drop_before(&topic, second);
    let error = run_once(&topic, directory().path(), false).unwrap_err().to_string();
    assert!(error.contains("with --from-oldest the lake begins with"), "{error}");
    assert_eq!(run_once(&topic, directory().path(), true).unwrap(), 1);
}
