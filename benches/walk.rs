//! The whole partition processor: it reads, decodes and folds records, and encodes, chains and commits the outputs; first on a
//! log in memory without a store, then on the embedded log with a store, including its commits, with an index of changes and
//! without.
//!
//! A million users with one online device each, in random order, one record each; appending them is not measured. The
//! difference to the core (`benches/core.rs`) is the cost of records, outputs and disks. `ROLLCALL_BENCH_USERS` sets the
//! number of users.

mod allocator;
mod appender;
#[expect(dead_code, reason = "other benchmarks need more of it")]
mod measure;
mod users;

use measure::{figure, heading, is_quick, rate, timed};
use rollcall::clock::ManualClock;
use rollcall::engine::Tuning;
use rollcall::engine::partition::PartitionProcessor;
use rollcall::log::local::{LocalLog, Settings};
use rollcall::log::memory::MemoryLog;
use rollcall::log::{Limit, Log};
use rollcall::presence::event::{Ending, Event, Intent};
use rollcall::presence::policy::Policy;
use rollcall::presence::{Conn, Partition};
use rollcall::random::Random;
use rollcall::topics::Topic;
use std::path::Path;
use std::sync::Arc;

/// Rounds in memory, and on disk, where one round takes a minute.
const ROUNDS: (u64, u64) = (3, 1);
const START_MS: u64 = 1_700_000_000_000;
const PASS_MS: u64 = 120_000;
const P: Partition = Partition(0);

fn main() {
    let clock = Arc::new(ManualClock::new(START_MS));
    let log = Arc::new(MemoryLog::new(1, clock.clone()));
    let drop_read = || {
        for topic in Topic::ALL {
            let end = log.range(topic, P).expect("a partition").end;
            log.drop_before(topic, P, end).expect("dropped");
        }
    };
    let rounds = if is_quick() { 1 } else { ROUNDS.0 };
    run(
        "walk.memory",
        "on a log in memory",
        rounds,
        log.clone(),
        clock,
        None,
        drop_read,
    );

    let on = "on the embedded log, with a store";
    on_disk("walk.disk", on, Tuning::default().index_changes);
    if !is_quick() {
        // The difference of the two is the cost of the index of changes.
        on_disk(
            "walk.disk_without_index",
            "on the embedded log, with a store without an index of changes",
            0,
        );
    }
}

fn on_disk(of: &str, on: &str, index_changes: u64) {
    let directory = tempfile::tempdir().expect("a directory");
    let clock = Arc::new(ManualClock::new(START_MS));
    let settings = Settings {
        partitions: Some(1),
        retention_bytes: Some(256 << 20),
        ..Settings::default()
    };
    let log = LocalLog::open(&directory.path().join("log"), settings, clock.clone()).expect("opened");
    let store = directory.path().join("store");
    let kept = Some((&*store, index_changes));
    run(of, on, ROUNDS.1, Arc::new(log), clock, kept, || ());
    let bytes: u64 = std::fs::read_dir(&store)
        .expect("a store")
        .map(|file| file.expect("a file").metadata().expect("its size").len())
        .sum();
    let per_user = bytes as f64 / f64::from(users::count());
    let id = format!("{of}.{}.store_bytes", users::count());
    figure(&id, "store on disk, of each user", &[per_user], "bytes")
        .note("all online; with what compaction has not removed yet")
        .show();
}

fn run(
    of: &str,
    on: &str,
    rounds: u64,
    log: Arc<dyn Log>,
    clock: Arc<ManualClock>,
    store: Option<(&Path, u64)>,
    drop_read: impl Fn(),
) {
    let count = users::count();
    heading(&format!("walk {on}, {count} users"));
    let first = Policy::default();
    let mut walk = PartitionProcessor::open(
        log.take_up(P).expect("a partition"),
        store.map(|(directory, _)| directory),
        &first,
        clock.clone(),
        Tuning {
            index_changes: store.map_or(0, |(_, index_changes)| index_changes),
            ..Tuning::default()
        },
    )
    .expect("opened");
    let mut pass = |order: &[u32], event: &dyn Fn(u32) -> Event<'static>| {
        clock.advance_ms(PASS_MS);
        appender::append(&*log, order.iter().map(|user| event(*user)));
        let (folded, took) = timed(|| fold_all(&mut walk));
        assert_eq!(folded, order.len());
        drop_read();
        rate(folded, took)
    };
    let mut random = Random(1);
    let connect = |user, conn| Event::Connect {
        who: users::who(user),
        via: users::via(user, conn),
        intent: Intent::Login,
        client: None,
        auth_at: None,
    };
    pass(&random.order(count), &|user| connect(user, Conn(0)));
    let (mut beats, mut opened, mut closed) = (vec![], vec![], vec![]);
    for conn in 0..rounds {
        let order = random.order(count);
        beats.push(pass(&order, &|user| Event::Heartbeat {
            who: users::who(user),
            via: users::via(user, Conn(conn)),
        }));
        closed.push(pass(&order, &|user| Event::Disconnect {
            who: users::who(user),
            via: users::via(user, Conn(conn)),
            reason: Ending::Closed,
        }));
        opened.push(pass(&order, &|user| connect(user, Conn(conn + 1))));
    }
    assert_eq!(walk.census().online_devices(), u64::from(count));
    let id = |what: &str| format!("{of}.{count}.{what}");
    figure(&id("heartbeats"), "heartbeats", &beats, "/s").show();
    let what = "connects of users who were away, one change each";
    figure(&id("connects"), what, &opened, "/s").show();
    let what = "disconnects (closed), one change each";
    figure(&id("disconnects"), what, &closed, "/s").show();
}

fn fold_all(walk: &mut PartitionProcessor) -> usize {
    let limit = Limit {
        records: Tuning::default().batch_records,
        bytes: Tuning::default().batch_bytes,
    };
    let mut folded = 0;
    loop {
        match walk.step(limit).expect("folded").records {
            0 => return folded,
            records => folded += records,
        }
    }
}
