//! The rate of the embedded log on this machine and disk: appends, reads, commits.

mod allocator;
#[expect(dead_code, reason = "other benchmarks need more of it")]
mod measure;

use measure::{figure, heading, rate, timed};
use rollcall::clock::SystemClock;
use rollcall::log::local::{LocalLog, Settings};
use rollcall::log::{Appended, Commit, Error, Limit, Log, NewRecord, Position};
use rollcall::presence::{Offset, Partition};
use rollcall::topics::{OutputTopic, Topic};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, mpsc};

const P: Partition = Partition(1);

type Acknowledged = mpsc::Receiver<Result<Vec<Appended>, Error>>;

fn main() {
    heading("embedded log, records of some 80 bytes, 4 partitions");
    let dir = tempfile::tempdir().expect("there is a directory for temporary files");
    let log = open(dir.path());
    appends(&log);
    for (records, steps) in [(5_000, 100), (10, 20_000)] {
        reads(&log, records, steps);
    }
    commits(&log);
    appends_one_by_one(&log);
    let ((), closed) = timed(|| drop(log));
    figure("local_log.close", "close it", &[closed.as_secs_f64()], "s").show();
    let (_log, opened) = timed(|| open(dir.path()));
    figure("local_log.open", "open it", &[opened.as_secs_f64()], "s").show();
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
    let ((), took) = timed(|| {
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
    });
    let what = "append, 5,000 at a time, eight in flight";
    let rates = [rate((rounds * size) as usize, took)];
    figure("local_log.append", what, &rates, "records/s").show();
}

fn reads(log: &LocalLog, records: usize, steps: u32) {
    let limit = Limit {
        records,
        bytes: usize::MAX,
    };
    let (mut next, mut into) = (0, Vec::new());
    let ((), took) = timed(|| {
        for _ in 0..steps {
            into.clear();
            log.read(Topic::Events, P, Offset(next), limit, &mut into)
                .expect("the log can be read");
            next += into.len() as u64;
        }
    });
    assert_eq!(
        next,
        records as u64 * u64::from(steps),
        "every step read as much as it asked for"
    );
    let what = format!("read, {records} at a time");
    let rates = [rate(next as usize, took)];
    figure(&format!("local_log.read_{records}"), &what, &rates, "records/s").show();
}

fn commits(log: &LocalLog) {
    let rounds = 2_000_u32;
    let change = || NewRecord {
        headers: Vec::new(),
        key: Some(b"user".to_vec()),
        value: vec![7; 60],
    };
    let mut owned = log.take_up(P).expect("a partition");
    let mut took = Vec::new();
    for at in 0..rounds {
        let position = Position {
            next: Offset(u64::from(at)),
            ..Position::default()
        };
        let commit = Commit::at(position).with(OutputTopic::Changes, [change(), change()]);
        let (committed, this) = timed(|| owned.commit(&commit));
        committed.expect("the log can be written");
        took.push(this.as_secs_f64() * 1e6);
    }
    figure("local_log.commit", "a commit of two changes", &took, "µs").show();
}

fn appends_one_by_one(log: &LocalLog) {
    let rounds = 500;
    let mut took = Vec::new();
    for _ in 0..rounds {
        let record = NewRecord {
            headers: Vec::new(),
            key: None,
            value: vec![7; 60],
        };
        let ((), this) = timed(|| done(&append(log, vec![(P, record)])));
        took.push(this.as_secs_f64() * 1e6);
    }
    figure("local_log.append_one", "a durable append of one record", &took, "µs").show();
}
