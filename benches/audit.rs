//! Questions about the past on a log of ten million events and a million changes: `rollcall audit` as a process of its own, with
//! its greatest memory, and a user's history over HTTP while ten thousand events flow in each second.
//!
//! 100,000 users in two partitions, each with a device that connects, sends 18 heartbeats and disconnects, five times.
//! `ROLLCALL_BENCH_USERS` sets another number of users; `ROLLCALL_BENCH_AUDIT` names a directory in which the log is kept, so that
//! the next run need not make it again.

mod allocator;
mod appender;
mod measure;
mod users;

use measure::{heading, rate, row, timed};
use rollcall::clock::{Clock as _, ManualClock, SystemClock};
use rollcall::engine::Tuning;
use rollcall::engine::partition::PartitionProcessor;
use rollcall::log::local::{LocalLog, Settings};
use rollcall::log::{Limit, Log};
use rollcall::presence::event::{Ending, Event, Intent};
use rollcall::presence::policy::Policy;
use rollcall::presence::{Conn, Partition};
use rollcall::random::Random;
use rollcall::store::directory_of;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const PARTITIONS: u32 = 2;
const ROUNDS: u64 = 5;
const HEARTBEATS: u32 = 18;
const PASS_MS: u64 = 60_000;
/// Measured runs of each question.
const RUNS: usize = 3;
const REQUESTS: usize = 2_000;
const EVENTS_PER_SECOND: usize = 10_000;
const PUBLISHED_AT_ONCE: usize = 500;

fn main() {
    let users = match std::env::var("ROLLCALL_BENCH_USERS") {
        Ok(_) => users::count(),
        Err(_) => 100_000,
    };
    let temporary = tempfile::tempdir().expect("a directory");
    let kept = std::env::var_os("ROLLCALL_BENCH_AUDIT").map(PathBuf::from);
    let data = kept.unwrap_or_else(|| temporary.path().join("data"));
    let is_made = data.join("made");
    if !is_made.exists() {
        make(&data, users);
        fs::write(is_made, "").expect("written");
    }
    let events = u64::from(users) * ROUNDS * u64::from(HEARTBEATS + 2);
    let changes = u64::from(users) * ROUNDS * 2;
    heading(&format!(
        "audit of {events} events and {changes} changes, {PARTITIONS} partitions"
    ));
    let data_flag = data.to_str().expect("UTF-8");
    let per_second = |took: &Duration| rate(events as usize, *took);

    let verify = runs(&["audit", "verify", "--data", data_flag]);
    row("verify, events", &figures(&verify, per_second), "/s", &memory(&verify));
    let seconds = |took: &Duration| took.as_secs_f64();
    let at = runs(&["audit", "at", "-0s", "--data", data_flag]);
    row("at, the whole log", &figures(&at, seconds), "s", &memory(&at));
    let history = runs(&["audit", "history", &users::id('u', 7), "--data", data_flag]);
    row(
        "history of a user, without the index",
        &figures(&history, seconds),
        "s",
        &memory(&history),
    );
    for format in ["parquet", "csv", "jsonl"] {
        for table in ["--intervals", "--changes", "--events"] {
            let mut export = Vec::new();
            for _ in 0..RUNS {
                let out = tempfile::tempdir().expect("a directory");
                let out = out.path().to_str().expect("UTF-8");
                export.push(run(&[
                    "audit", "export", table, "--format", format, "--out", out, "--data", data_flag,
                ]));
            }
            let what = format!("export {table} --format {format}, events");
            row(&what, &figures(&export, per_second), "/s", &memory(&export));
        }
    }
    over_http(&data, users);
}

/// Makes a data directory as an engine leaves it.
fn make(data: &Path, users: u32) {
    let now_ms = SystemClock::new().now_ms();
    let passes = ROUNDS * u64::from(HEARTBEATS + 2);
    let clock = Arc::new(ManualClock::new(now_ms - (passes + 10) * PASS_MS));
    let settings = Settings {
        partitions: Some(PARTITIONS),
        ..Settings::default()
    };
    let log = LocalLog::open(&data.join("log"), settings, clock.clone()).expect("opened");
    let mut partitions: Vec<_> = (0..PARTITIONS)
        .map(Partition)
        .map(|partition| {
            let store = directory_of(data, partition);
            fs::create_dir_all(&store).expect("created");
            PartitionProcessor::open(
                log.take_up(partition).expect("a partition"),
                Some(&store),
                &Policy::default(),
                clock.clone(),
                Tuning::default(),
            )
            .expect("opened")
        })
        .collect();
    let mut random = Random(1);
    let mut pass = |event: &dyn Fn(u32) -> Event<'static>| {
        clock.advance_ms(PASS_MS);
        let order = random.order(users);
        appender::append(&log, order.iter().map(|user| event(*user)));
        for partition in &mut partitions {
            let limit = Limit {
                records: Tuning::default().batch_records,
                bytes: Tuning::default().batch_bytes,
            };
            while partition.step(limit).expect("folded").records > 0 {}
        }
    };
    for round in 0..ROUNDS {
        pass(&|user| Event::Connect {
            who: users::who(user),
            via: users::via(user, Conn(round)),
            intent: Intent::Login,
            client: None,
            auth_at: None,
        });
        for _ in 0..HEARTBEATS {
            pass(&|user| Event::Heartbeat {
                who: users::who(user),
                via: users::via(user, Conn(round)),
            });
        }
        pass(&|user| Event::Disconnect {
            who: users::who(user),
            via: users::via(user, Conn(round)),
            reason: Ending::Closed,
        });
    }
}

/// How long a process took, and the most memory that it had, in bytes.
struct Run {
    took: Duration,
    memory: u64,
}

fn runs(arguments: &[&str]) -> Vec<Run> {
    (0..RUNS).map(|_| run(arguments)).collect()
}

fn run(arguments: &[&str]) -> Run {
    let start = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .args(arguments)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let mut memory = 0;
    loop {
        memory = memory.max(greatest_memory(&child));
        if let Some(status) = child.try_wait().expect("it ends") {
            assert!(status.success(), "{arguments:?}: {status}");
            let took = start.elapsed();
            return Run { took, memory };
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn greatest_memory(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

fn figures(runs: &[Run], figure: impl Fn(&Duration) -> f64) -> Vec<f64> {
    runs.iter().map(|run| figure(&run.took)).collect()
}

fn memory(runs: &[Run]) -> String {
    let most = runs.iter().map(|run| run.memory).max().unwrap_or(0);
    format!("{} MiB at most", most >> 20)
}

/// A server that ends with the benchmark.
struct Server(Child, String);

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn event(kind: &str, user: u32, more: &str) -> String {
    let (id, device) = (users::id('u', user), users::id('d', user));
    format!(
        r#"{{"type":"{kind}","user":"{id}","platform":"android","device":"{device}","gateway":"{}","epoch":1,"conn":99{more}}}"#,
        users::gateway(user)
    )
}

fn over_http(data: &Path, users: u32) {
    let mut process = Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .args(["serve", "--listen", "127.0.0.1:0", "--data"])
        .arg(data)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the server starts");
    let output = BufReader::new(process.stdout.take().expect("its output"));
    let found = output.lines().map_while(Result::ok).find_map(|line| {
        let url = line.strip_prefix("console")?;
        Some(url.trim().trim_end_matches('/').to_owned())
    });
    let server = Server(process, found.expect("it says where the console is"));
    let url = &server.1;
    while ureq::get(format!("{url}/readyz")).call().is_err() {
        thread::sleep(Duration::from_millis(50));
    }
    let flowing = users.min(10_000);
    let bodies = |kind: &str, more: &str| -> Vec<String> {
        let events: Vec<String> = (0..flowing).map(|user| event(kind, user, more)).collect();
        events
            .chunks(PUBLISHED_AT_ONCE)
            .map(|events| format!("[{}]", events.join(",")))
            .collect()
    };
    let post = |body: &String| {
        ureq::post(format!("{url}/v1/events"))
            .send(body.as_str())
            .expect("taken")
    };
    bodies("connect", r#","intent":"login""#)
        .iter()
        .for_each(|body| drop(post(body)));
    let heartbeats = bodies("heartbeat", "");
    let is_over = AtomicBool::new(false);
    let (taken, flowed) = thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let pause = Duration::from_secs(1) * PUBLISHED_AT_ONCE as u32 / EVENTS_PER_SECOND as u32;
            let (start, mut sent) = (Instant::now(), 0u32);
            while !is_over.load(Ordering::Relaxed) {
                post(&heartbeats[sent as usize % heartbeats.len()]);
                sent += 1;
                thread::sleep((pause * sent).saturating_sub(start.elapsed()));
            }
            rate(sent as usize * PUBLISHED_AT_ONCE, start.elapsed())
        });
        let mut random = Random(2);
        let mut taken = Vec::new();
        for _ in 0..REQUESTS {
            let user = users::id('u', random.below(users.into()) as u32);
            let (answer, took) = timed(|| {
                let mut answer = ureq::get(format!("{url}/v1/users/{user}/history"))
                    .call()
                    .expect("answered");
                answer.body_mut().read_to_string().expect("readable")
            });
            assert!(answer.contains("intervals"), "{answer}");
            taken.push(took.as_secs_f64() * 1e3);
            thread::sleep(Duration::from_millis(5));
        }
        is_over.store(true, Ordering::Relaxed);
        (taken, publisher.join().expect("it published"))
    });
    let mut sorted = taken;
    sorted.sort_by(f64::total_cmp);
    let nearest = |share: f64| sorted[((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len()) - 1];
    row("events flowing in meanwhile", &[flowed], "/s", "");
    row("history of a user over HTTP, p50", &[nearest(0.50)], "ms", "");
    row("history of a user over HTTP, p99", &[nearest(0.99)], "ms", "");
}
