//! How fast it is here and now. Proves nothing.

use crate::*;
use rollcall::clock::SystemClock;
use std::time::Instant;

#[test]
#[ignore = "prints figures, proves nothing"]
fn figures() {
    let dir = tempfile::tempdir().unwrap();
    let log = LocalLog::open(dir.path(), Settings::default(), Arc::new(SystemClock::new())).unwrap();
    let (rounds, size) = (400, 5_000);
    let value = |at: usize| format!("{at:0>20}{:0>50}", (at * 7919) % 1_000_003).into_bytes();
    let batches: Vec<Vec<(Partition, NewRecord)>> = (0..rounds)
        .map(|round| {
            (round * size..(round + 1) * size)
                .map(|at| {
                    let key = Some(format!("user-{at}").into_bytes());
                    (Partition(at as u32 % 4), NewRecord { key, value: value(at) })
                })
                .collect()
        })
        .collect();
    let total = rounds * size;
    let start = Instant::now();
    let mut waiting = std::collections::VecDeque::new();
    for batch in batches {
        waiting.push_back(start_append(&log, batch));
        if waiting.len() > 8 {
            waiting.pop_front().unwrap().recv().unwrap().unwrap();
        }
    }
    for told in waiting {
        told.recv().unwrap().unwrap();
    }
    let took = start.elapsed();
    println!(
        "appended {total} records in {took:?}: {:.0} a second",
        total as f64 / took.as_secs_f64()
    );
    for (records, rounds) in [(5_000, total / 4 / 5_000), (10, 20_000)] {
        let limit = Limit {
            records,
            bytes: usize::MAX,
        };
        let start = Instant::now();
        let (mut next, mut into) = (0, Vec::new());
        for _ in 0..rounds {
            into.clear();
            log.read(Topic::Events, P, Offset(next), limit, &mut into).unwrap();
            next += into.len() as u64;
        }
        let took = start.elapsed();
        println!(
            "read {next} records by {records} in {took:?}: {:.1} us a step",
            took.as_micros() as f64 / rounds as f64
        );
    }
    let start = Instant::now();
    let rounds = 2_000;
    for at in 0..rounds {
        log.commit(P, commit_of(at, &["c", "d"], &[])).unwrap();
    }
    println!(
        "{rounds} commits, {:.1} us each",
        start.elapsed().as_micros() as f64 / rounds as f64
    );
    let start = Instant::now();
    let rounds = 500;
    for _ in 0..rounds {
        append_values(&log, &["x"]);
    }
    println!(
        "{rounds} appends one by one, {:.1} us each",
        start.elapsed().as_micros() as f64 / rounds as f64
    );
    let start = Instant::now();
    drop(log);
    println!("closed in {:?}", start.elapsed());
    let start = Instant::now();
    let _log = open(dir.path());
    println!("opened in {:?}", start.elapsed());
}
