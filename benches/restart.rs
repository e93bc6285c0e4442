//! A restart: from opening the log and the stores until they have caught up, after a clean stop, without and with new records.
//!
//! A million users are known, half of them online; ids of 12 and 16 bytes, default policy, one partition and four. In the long
//! form also ten million users, a tenth of them online. Each partition is opened by its own thread, as in the engine. A second
//! process opens the files of the first one, so its own caches are cold, but the files are in the operating system's cache.
//! Then 100,000 logins are appended that no store has seen, and the files are opened again.
//!
//! The benchmark starts itself to write the files and to open them. `ROLLCALL_BENCH_USERS` sets the number of users.

mod allocator;
mod appender;
#[expect(dead_code, reason = "other benchmarks need more of it")]
mod measure;
mod memory;
mod users;

use appender::append;
use measure::{figure, heading, is_quick, rate, timed};
use memory::resident_bytes;
use rollcall::clock::{Clock, SystemClock};
use rollcall::engine::Tuning;
use rollcall::engine::partition::PartitionProcessor;
use rollcall::log::local::{LocalLog, Settings};
use rollcall::log::{Limit, Log};
use rollcall::presence::event::{Ending, Event, Intent};
use rollcall::presence::policy::Policy;
use rollcall::presence::{Conn, Partition};
use rollcall::random::Random;
use rollcall::store;
use std::env;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread;

const DIRECTORY: &str = "ROLLCALL_BENCH_DIRECTORY";
const PARTITIONS: &str = "ROLLCALL_BENCH_PARTITIONS";
/// Of how many known users one is online.
const ONLINE_ONE_IN: &str = "ROLLCALL_BENCH_ONLINE_ONE_IN";
const USERS: &str = "ROLLCALL_BENCH_USERS";
/// `leave`, `append` or `open`.
const PART: &str = "ROLLCALL_BENCH_PART";
/// How many times the same directory is opened.
const ROUNDS: usize = 3;

fn main() {
    let Ok(part) = env::var(PART) else {
        return conduct();
    };
    let directory = env::var(DIRECTORY).expect("a directory");
    let partitions = env::var(PARTITIONS)
        .ok()
        .and_then(|count| count.parse().ok())
        .expect("a number");
    match &*part {
        "open" => open(Path::new(&directory), partitions),
        "append" => append_more(Path::new(&directory), partitions),
        _ => leave(Path::new(&directory), partitions),
    }
}

fn conduct() {
    let users = users::count();
    if is_quick() {
        return conduct_one(users, 2, 4);
    }
    conduct_one(users, 2, 1);
    conduct_one(users, 2, 4);
    conduct_one(users * 10, 10, 4);
}

fn conduct_one(users: u32, one_in: u32, partitions: u32) {
    let this = env::current_exe().expect("the benchmark knows its own path");
    let online = users.div_ceil(one_in);
    heading(&format!(
        "restart, {users} users known, {online} of them online, partitions: {partitions}"
    ));
    let directory = tempfile::tempdir().expect("a directory");
    let run = |part: &str| {
        let output = Command::new(&this)
            .env(PART, part)
            .env(DIRECTORY, directory.path())
            .env(PARTITIONS, partitions.to_string())
            .env(USERS, users.to_string())
            .env(ONLINE_ONE_IN, one_in.to_string())
            .output()
            .expect("started");
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{part}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        text.split_whitespace()
            .map(|figure| figure.parse().expect("a figure"))
            .collect::<Vec<f64>>()
    };
    run("leave");
    let opened: Vec<_> = (0..ROUNDS).map(|_| run("open")).collect();
    let column = |at: usize| -> Vec<f64> { opened.iter().map(|figures| figures[at]).collect() };
    let id = |what: &str| format!("restart.{users}.{online}.{partitions}.{what}");
    figure(&id("log"), "open the log", &column(0), "s").show();
    let what = "open the stores and catch up";
    figure(&id("stores"), what, &column(1), "s").show();
    figure(&id("put_back"), "online users put back", &column(3), "/s").show();
    let what = "memory per online device, resident";
    figure(&id("resident_bytes"), what, &column(2), "bytes")
        .note("of the whole process, its ids and caches included")
        .show();
    run("append");
    let what = "the same, with 100,000 more records";
    figure(&id("stores_and_more"), what, &[run("open")[1]], "s").show();
}

fn one_in() -> u32 {
    let one_in = env::var(ONLINE_ONE_IN).ok().and_then(|count| count.parse().ok());
    one_in.expect("a number")
}

fn settings(partitions: u32) -> Settings {
    Settings {
        partitions: Some(partitions),
        ..Settings::default()
    }
}

fn limit() -> Limit {
    Limit {
        records: Tuning::default().batch_records,
        bytes: Tuning::default().batch_bytes,
    }
}

/// Opens each partition and catches up, all at the same time.
fn caught_up(log: &Arc<LocalLog>, directory: &Path, clock: &Arc<dyn Clock>) -> Vec<PartitionProcessor> {
    let walk = |partition| {
        let store = store::directory_of(directory, partition);
        let (log, clock) = (log.take_up(partition).expect("a partition"), clock.clone());
        let first = Policy::default();
        let mut walk = PartitionProcessor::open(log, Some(&store), &first, clock, Tuning::default()).expect("opened");
        while walk.step(limit()).expect("folded").records > 0 {}
        assert!(walk.is_caught_up());
        walk
    };
    thread::scope(|scope| {
        let partitions = (0..log.partitions()).map(Partition);
        let threads: Vec<_> = partitions
            .map(|partition| scope.spawn(move || walk(partition)))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("opened"))
            .collect()
    })
}

fn online_devices(walks: &[PartitionProcessor]) -> u64 {
    walks.iter().map(|walk| walk.census().online_devices()).sum()
}

fn open(directory: &Path, partitions: u32) {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let (log, opening) = timed(|| LocalLog::open(&directory.join("log"), settings(partitions), clock.clone()));
    let log = Arc::new(log.expect("opened"));
    let (walks, restoring) = timed(|| caught_up(&log, directory, &clock));
    let online = online_devices(&walks);
    assert!(
        online >= u64::from(users::count().div_ceil(one_in())),
        "everybody who was online is online again"
    );
    let bytes = resident_bytes() as f64 / online as f64;
    let put_back = rate(online as usize, restoring);
    println!(
        "{} {} {bytes} {put_back}",
        opening.as_secs_f64(),
        restoring.as_secs_f64()
    );
    // Neither closed nor dropped: the next process must find the files as they are.
    std::process::exit(0);
}

fn append_more(directory: &Path, partitions: u32) {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let log = LocalLog::open(&directory.join("log"), settings(partitions), clock).expect("opened");
    let (again, one_in) = (Random(2).order(users::count()).into_iter(), one_in());
    let again = again.filter(|user| user % one_in == 0);
    append(&log, again.take(100_000).map(|user| connect(user, Conn(3))));
    log.close().expect("closed");
}

/// Logs all users in, and most or half of them out.
fn leave(directory: &Path, partitions: u32) {
    let users = users::count();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let log = LocalLog::open(&directory.join("log"), settings(partitions), clock.clone());
    let log = Arc::new(log.expect("opened"));
    append(
        &*log,
        Random(1).order(users).into_iter().map(|user| connect(user, Conn(1))),
    );
    let one_in = one_in();
    let leaving = Random(3).order(users).into_iter().filter(|user| user % one_in != 0);
    let closed = leaving.map(|user| Event::Disconnect {
        who: users::who(user),
        via: users::via(user, Conn(1)),
        reason: Ending::Closed,
    });
    append(&*log, closed);
    let walks = caught_up(&log, directory, &clock);
    assert_eq!(online_devices(&walks), u64::from(users.div_ceil(one_in)));
    walks.into_iter().for_each(|walk| walk.close().expect("closed"));
    log.close().expect("closed");
}

fn connect(user: u32, conn: Conn) -> Event<'static> {
    Event::Connect {
        who: users::who(user),
        via: users::via(user, conn),
        intent: Intent::Login,
        client: None,
        auth_at: None,
    }
}
