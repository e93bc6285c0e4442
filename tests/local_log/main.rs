//! The embedded log through its public interface: its guarantees under crashes, damage, full disks and a second process.
//!
//! Tests that need a second process run their own binary again, with one of the tests in [`children`].

mod children;
mod damage;
mod following;
mod full_disk;
mod group_commit;
mod model;
mod opening;
mod reading;
mod retention;
mod stores;
mod time;

use rollcall::clock::ManualClock;
use rollcall::log::local::{LocalLog, Settings};
use rollcall::log::{Appended, Commit, Error, Limit, Log, NewRecord, Position, Record};
use rollcall::presence::{LogTime, Offset, Partition};
use rollcall::topics::{OutputTopic, Topic};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

const P: Partition = Partition(1);
const ALL: Limit = Limit {
    records: usize::MAX,
    bytes: usize::MAX,
};

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(1_000))
}

fn open(dir: &Path) -> LocalLog {
    LocalLog::open(dir, Settings::default(), clock()).unwrap()
}

fn keeping(retention_ms: Option<u64>, retention_bytes: Option<u64>) -> Settings {
    Settings {
        retention_ms,
        retention_bytes,
        ..Settings::default()
    }
}

fn why_not(dir: &Path) -> String {
    match LocalLog::open(dir, Settings::default(), clock()) {
        Ok(_) => panic!("the log in {} was opened", dir.display()),
        Err(Error::Open(text)) => text.to_string(),
        Err(error) => panic!("not an error of opening: {error:?}"),
    }
}

fn record(value: &str) -> NewRecord {
    NewRecord {
        headers: Vec::new(),
        key: Some(b"k".to_vec()),
        value: value.into(),
    }
}

/// An append whose acknowledge can be waited for.
fn start_append(log: &dyn Log, records: Vec<(Partition, NewRecord)>) -> mpsc::Receiver<Result<Vec<Appended>, Error>> {
    let (acknowledge, acknowledged) = mpsc::channel();
    log.append(records, Box::new(move |result| acknowledge.send(result).unwrap_or(())));
    acknowledged
}

fn append(log: &dyn Log, records: Vec<(Partition, NewRecord)>) -> Result<Vec<Appended>, Error> {
    start_append(log, records).recv().expect("every append is acknowledged")
}

fn append_values(log: &dyn Log, values: &[&str]) {
    append(log, values.iter().map(|value| (P, record(value))).collect()).unwrap();
}

fn read(log: &dyn Log, topic: Topic, partition: Partition, from: u64, limit: Limit) -> Result<Vec<Record>, Error> {
    let mut into = Vec::new();
    log.read(topic, partition, Offset(from), limit, &mut into)?;
    Ok(into)
}

fn values(log: &dyn Log, topic: Topic, from: u64) -> Vec<String> {
    let records = read(log, topic, P, from, ALL).unwrap();
    assert!(
        records
            .iter()
            .zip(from..)
            .all(|(record, offset)| record.offset.0 == offset)
    );
    records
        .into_iter()
        .map(|record| String::from_utf8(record.value).unwrap())
        .collect()
}

fn range(log: &dyn Log, topic: Topic, partition: Partition) -> (u64, u64) {
    let range = log.range(topic, partition).unwrap();
    (range.start.0, range.end.0)
}

fn commit_of(next: u64, changes: &[&str], kicks: &[&str]) -> Commit {
    let position = Position {
        next: Offset(next),
        outputs: 3,
        time: Some(LogTime(77)),
        seq: 5,
        chain: [9; 32],
        ..Position::default()
    };
    let commit = Commit::at(position).with(OutputTopic::Changes, changes.iter().map(|value| record(value)));
    commit.with(OutputTopic::Kicks, kicks.iter().map(|value| record(value)))
}

fn files(dir: &Path, kind: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == kind))
        .collect();
    files.sort();
    files
}

/// Records that no compression makes smaller, the same in every run.
struct Noise {
    state: u64,
}

impl Noise {
    fn new() -> Noise {
        Noise { state: 1 }
    }

    fn record(&mut self, size: usize) -> NewRecord {
        let mut value = Vec::with_capacity(size + 8);
        while value.len() < size {
            self.state = self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // The high bits are the ones that look random.
            value.extend_from_slice(&(self.state >> 32).to_le_bytes()[..4]);
        }
        value.truncate(size);
        NewRecord {
            key: None,
            value,
            headers: Vec::new(),
        }
    }
}
