//! The rate of the embedded log on this machine and disk: appends, reads, commits.

mod allocator;

use rollcall::clock::SystemClock;
use rollcall::log::local::{LocalLog, Settings};
use rollcall::log::{Appended, Commit, Error, Limit, Log, NewRecord, Position, Topic};
use rollcall::presence::{Offset, Partition};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Instant;

const P: Partition = Partition(1);

type Acknowledged = mpsc::Receiver<Result<Vec<Appended>, Error>>;

fn main() {
    let dir = tempfile::tempdir().expect("there is a directory for temporary files");
    let log = open(dir.path());
    appends(&log);
    for (records, steps) in [(5_000, 100), (10, 20_000)] {
        reads(&log, records, steps);
    }
    commits(&log);
    appends_one_by_one(&log);
    let start = Instant::now();
    drop(log);
    println!("closed in {:.1?}", start.elapsed());
    let start = Instant::now();
    let _log = open(dir.path());
    println!("opened in {:.1?}", start.elapsed());
}

fn open(dir: &Path) -> LocalLog {
    LocalLog::open(dir, Settings::default(), Arc::new(SystemClock::new())).expect("the log opens")
}

fn append(log: &LocalLog, records: Vec<(Partition, NewRecord)>) -> Acknowledged {
    let (tell, acknowledged) = mpsc::channel();
    log.append(records, Box::new(move |result| tell.send(result).unwrap_or(())));
    acknowledged
}

fn done(acknowledged: &Acknowledged) {
    acknowledged
        .recv()
        .expect("an append is acknowledged")
        .expect("it succeeds");
}

/// 2 M records of some 80 bytes over four partitions, in appends of 5,000, eight of them in flight.
fn appends(log: &LocalLog) {
    let (rounds, size) = (400_u32, 5_000_u32);
    let event = |at: u32| NewRecord {
        headers: Vec::new(),
        key: Some(format!("user-{at}").into_bytes()),
        value: format!("{at:0>20}{:0>50}", u64::from(at) * 7_919 % 1_000_003).into_bytes(),
    };
    let batches: Vec<Vec<(Partition, NewRecord)>> = (0..rounds)
        .map(|round| {
            let all = round * size..(round + 1) * size;
            all.map(|at| (Partition(at % 4), event(at))).collect()
        })
        .collect();
    let start = Instant::now();
    let mut waiting = VecDeque::new();
    for batch in batches {
        waiting.push_back(append(log, batch));
        if waiting.len() > 8
            && let Some(acknowledged) = waiting.pop_front()
        {
            done(&acknowledged);
        }
    }
    waiting.iter().for_each(done);
    let took = start.elapsed();
    let rate = f64::from(rounds * size) / took.as_secs_f64();
    println!("appended {} records in {took:.1?}: {rate:.0} a second", rounds * size);
}

fn reads(log: &LocalLog, records: usize, steps: u32) {
    let limit = Limit {
        records,
        bytes: usize::MAX,
    };
    let (mut next, mut into) = (0, Vec::new());
    let start = Instant::now();
    for _ in 0..steps {
        into.clear();
        log.read(Topic::Events, P, Offset(next), limit, &mut into)
            .expect("the log can be read");
        next += into.len() as u64;
    }
    let took = start.elapsed();
    println!(
        "read {next} records by {records} in {took:.1?}: {:.1?} a step",
        took / steps
    );
}

fn commits(log: &LocalLog) {
    let rounds = 10_000;
    let change = || NewRecord {
        headers: Vec::new(),
        key: Some(b"user".to_vec()),
        value: vec![7; 60],
    };
    let mut owned = log.take_up(P).expect("a partition");
    let start = Instant::now();
    for at in 0..rounds {
        let commit = Commit {
            changes: vec![change(), change()],
            position: Position {
                next: Offset(u64::from(at)),
                ..Position::default()
            },
            ..Commit::default()
        };
        owned.commit(&commit).expect("the log can be written");
    }
    println!("{rounds} commits of two changes: {:.1?} each", start.elapsed() / rounds);
}

fn appends_one_by_one(log: &LocalLog) {
    let rounds = 500;
    let start = Instant::now();
    for _ in 0..rounds {
        let record = NewRecord {
            headers: Vec::new(),
            key: None,
            value: vec![7; 60],
        };
        done(&append(log, vec![(P, record)]));
    }
    println!("{rounds} appends one by one: {:.1?} each", start.elapsed() / rounds);
}
