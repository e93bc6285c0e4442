//! Questions about the past on a log of ten million events and a million changes: `rollcall audit` as a process of its own, with
//! its CPU time and its greatest memory; a user's history over HTTP while ten thousand events flow in each second; and what the
//! index of changes costs.
//!
//! 100,000 users (20,000 in the short form) in two partitions, each with a device that connects, sends 18 heartbeats and
//! disconnects, five times.
//! `ROLLCALL_BENCH_USERS` sets another number of users; `ROLLCALL_BENCH_AUDIT` names a directory in which the log is kept, so that
//! the next run need not make it again. Rates are by the clock on the wall; the CPU time beside them is that of all threads of the
//! process, and does not depend on what else the machine does.

mod allocator;
mod appender;
#[expect(dead_code, reason = "other benchmarks need more of it")]
mod measure;
mod users;

use measure::{figure, heading, is_quick, median, rate, timed};
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
/// Requests for a status with its reason, and for the totals at a time.
const FEWER_REQUESTS: usize = 200;
/// Users whose changes are folded with the index and without, and how often each of them comes and goes.
const INDEX_USERS: u32 = 50_000;
const INDEX_ROUNDS: u64 = 4;
const EVENTS_PER_SECOND: usize = 10_000;
const PUBLISHED_AT_ONCE: usize = 500;

fn main() {
    let users = match std::env::var("ROLLCALL_BENCH_USERS") {
        Ok(_) => users::count(),
        Err(_) if is_quick() => 20_000,
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
    let data_flag = data.to_str().expect("UTF-8");
    let (events, changes) = counted(data_flag);
    heading(&format!(
        "audit of {events} events and {changes} changes, {PARTITIONS} partitions"
    ));
    let per_second = |took: &Duration| rate(events as usize, *took);

    let verify = runs(&["audit", "verify", "--data", data_flag]);
    row(
        users,
        "verify, events",
        &figures(&verify, per_second),
        "/s",
        &costs(&verify),
    );
    let seconds = |took: &Duration| took.as_secs_f64();
    let at = runs(&["audit", "at", "-0s", "--data", data_flag]);
    row(users, "at, the whole log", &figures(&at, seconds), "s", &costs(&at));
    let user = users::id('u', 7);
    let history = runs(&["audit", "history", &user, "--data", data_flag]);
    row(
        users,
        "history of a user, from the change topic",
        &figures(&history, seconds),
        "s",
        &costs(&history),
    );
    let why = runs(&["audit", "why", &user, "--data", data_flag]);
    row(users, "why of a user", &figures(&why, seconds), "s", &costs(&why));
    for (table, format, runs) in [
        ("--intervals", "parquet", RUNS),
        ("--intervals", "csv", RUNS),
        ("--intervals", "jsonl", RUNS),
        ("--changes", "parquet", RUNS),
        ("--events", "parquet", 1),
    ] {
        let mut export = Vec::new();
        for _ in 0..runs {
            let out = tempfile::tempdir().expect("a directory");
            let out = out.path().to_str().expect("UTF-8");
            export.push(run(&[
                "audit", "export", table, "--format", format, "--out", out, "--data", data_flag,
            ]));
        }
        let what = format!("export {table} --format {format}, events");
        row(users, &what, &figures(&export, per_second), "/s", &costs(&export));
    }
    over_http(&data, users);
    index_costs();
}

/// Returns how many events and changes a log has: one that is kept grows with each run. All of it is read once before
/// anything is measured.
fn counted(data: &str) -> (u64, u64) {
    let output = Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .args(["audit", "verify", "--json", "--data", data])
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let lines: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let sum = |key: &str| lines.iter().filter_map(|line| line[key].as_u64()).sum();
    (sum("events"), sum("changes"))
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
            fold_all(partition);
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
    for partition in partitions {
        partition.close().expect("committed");
    }
}

/// What the index of changes costs: the same events are folded with it and without, in turns.
fn index_costs() {
    let changes = u64::from(INDEX_USERS) * INDEX_ROUNDS * 2;
    heading(&format!(
        "index of changes: {changes} changes of {INDEX_USERS} users, one partition, embedded log and store"
    ));
    let mut sides = [Side::new(Tuning::default().index_changes), Side::new(0)];
    let mut random = Random(3);
    for round in 0..INDEX_ROUNDS {
        let order = random.order(INDEX_USERS);
        let connect = |user: u32| Event::Connect {
            who: users::who(user),
            via: users::via(user, Conn(round)),
            intent: Intent::Login,
            client: None,
            auth_at: None,
        };
        let disconnect = |user: u32| Event::Disconnect {
            who: users::who(user),
            via: users::via(user, Conn(round)),
            reason: Ending::Closed,
        };
        let is_even = round % 2 == 0;
        for at in if is_even { [0, 1] } else { [1, 0] } {
            sides[at].pass(order.iter().map(|user| connect(*user)));
        }
        for at in if is_even { [1, 0] } else { [0, 1] } {
            sides[at].pass(order.iter().map(|user| disconnect(*user)));
        }
    }
    let mut bytes = Vec::new();
    for (side, name) in sides.into_iter().zip(["with the index", "without it"]) {
        let (rates, cpu, stored) = side.finish();
        let cpu = 1e6 * cpu / changes as f64;
        let note = format!("CPU {cpu:.1} us a change, store {} KiB", stored >> 10);
        row(INDEX_USERS, &format!("fold {name}, changes"), &rates, "/s", &note);
        bytes.push(stored as f64);
    }
    row(
        INDEX_USERS,
        "disk for the index, a change",
        &[(bytes[0] - bytes[1]) / changes as f64],
        "bytes",
        "",
    );
}

/// A log and a store of one partition.
struct Side {
    directory: tempfile::TempDir,
    clock: Arc<ManualClock>,
    log: LocalLog,
    partition: PartitionProcessor,
    /// Changes per second, of each pass.
    rates: Vec<f64>,
    cpu_s: f64,
}

impl Side {
    fn new(index_changes: u64) -> Side {
        let directory = tempfile::tempdir().expect("a directory");
        let clock = Arc::new(ManualClock::new(SystemClock::new().now_ms() - 1_000 * PASS_MS));
        let settings = Settings {
            partitions: Some(1),
            ..Settings::default()
        };
        let log = LocalLog::open(&directory.path().join("log"), settings, clock.clone()).expect("opened");
        let partition = PartitionProcessor::open(
            log.take_up(Partition(0)).expect("a partition"),
            Some(&directory.path().join("store")),
            &Policy::default(),
            clock.clone(),
            Tuning {
                index_changes,
                ..Tuning::default()
            },
        );
        Side {
            directory,
            clock,
            log,
            partition: partition.expect("opened"),
            rates: Vec::new(),
            cpu_s: 0.0,
        }
    }

    fn pass(&mut self, events: impl Iterator<Item = Event<'static>>) {
        self.clock.advance_ms(PASS_MS);
        appender::append(&self.log, events);
        let cpu_s = cpu_seconds("self").expect("this process").own;
        let (folded, took) = timed(|| {
            let folded = fold_all(&mut self.partition);
            self.partition.commit_store().expect("committed");
            folded
        });
        self.cpu_s += cpu_seconds("self").expect("this process").own - cpu_s;
        self.rates.push(rate(folded, took));
    }

    /// Returns the rates, the CPU time in seconds and the bytes of the store.
    fn finish(self) -> (Vec<f64>, f64, u64) {
        self.partition.close().expect("committed");
        let files = fs::read_dir(self.directory.path().join("store")).expect("a store");
        let bytes = files.map(|file| file.expect("a file").metadata().expect("its size").len());
        (self.rates, self.cpu_s, bytes.sum())
    }
}

fn fold_all(partition: &mut PartitionProcessor) -> usize {
    let limit = Limit {
        records: Tuning::default().batch_records,
        bytes: Tuning::default().batch_bytes,
    };
    let mut folded = 0;
    loop {
        match partition.step(limit).expect("folded").records {
            0 => return folded,
            records => folded += records,
        }
    }
}

/// What a process cost.
struct Run {
    took: Duration,
    cpu_s: f64,
    /// The most memory that it had, in bytes.
    memory: u64,
}

/// CPU time in seconds, in steps of 10 ms.
struct CpuSeconds {
    own: f64,
    /// Of its processes that have ended.
    children: f64,
}

/// Returns the CPU time of a process, by its number or `self`.
fn cpu_seconds(process: &str) -> Option<CpuSeconds> {
    const TICKS_PER_SECOND: f64 = 100.0;
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name before it may have spaces.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let seconds = |at: usize| Some(fields.get(at)?.parse::<f64>().ok()? / TICKS_PER_SECOND);
    Some(CpuSeconds {
        own: seconds(11)? + seconds(12)?,
        children: seconds(13)? + seconds(14)?,
    })
}

fn runs(arguments: &[&str]) -> Vec<Run> {
    (0..RUNS).map(|_| run(arguments)).collect()
}

fn run(arguments: &[&str]) -> Run {
    let children = || cpu_seconds("self").expect("this process").children;
    let (start, before_s) = (Instant::now(), children());
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
            let took = start.elapsed();
            assert!(status.success(), "{arguments:?}: {status}");
            let cpu_s = children() - before_s;
            return Run { took, cpu_s, memory };
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn greatest_memory(child: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}

/// A row of the table. Its id is made of what it says and of the number of users.
fn row(users: u32, what: &str, figures: &[f64], unit: &str, note: &str) {
    let words = what
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty());
    let id = format!("audit.{users}.{}", words.collect::<Vec<_>>().join("_"));
    figure(&id, what, figures, unit).note(note).show();
}

fn figures(runs: &[Run], figure: impl Fn(&Duration) -> f64) -> Vec<f64> {
    runs.iter().map(|run| figure(&run.took)).collect()
}

fn costs(runs: &[Run]) -> String {
    let memory = runs.iter().map(|run| run.memory).max().unwrap_or(0);
    let cpu: Vec<f64> = runs.iter().map(|run| run.cpu_s).collect();
    format!("CPU {:.2} s, {} MiB at most", median(&cpu), memory >> 20)
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
    let began = Instant::now();
    let before_s = cpu_seconds(&server.0.id().to_string()).map_or(0.0, |cpu| cpu.own);
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
        let mut ask = |requests: usize, path: &dyn Fn(&str) -> String, wants: &str| {
            let mut taken = Vec::new();
            for _ in 0..requests {
                let user = users::id('u', random.below(users.into()) as u32);
                let (answer, took) = timed(|| {
                    let mut answer = ureq::get(format!("{url}{}", path(&user))).call().expect("answered");
                    answer.body_mut().read_to_string().expect("readable")
                });
                assert!(answer.contains(wants), "{answer}");
                taken.push(took.as_secs_f64() * 1e3);
                thread::sleep(Duration::from_millis(5));
            }
            taken.sort_by(f64::total_cmp);
            taken
        };
        let taken = [
            ask(REQUESTS, &|user| format!("/v1/users/{user}/history"), "intervals"),
            ask(FEWER_REQUESTS, &|user| format!("/v1/users/{user}/why"), "steps"),
            ask(FEWER_REQUESTS, &|_| "/v1/at?time=-30m".to_owned(), "devices"),
        ];
        is_over.store(true, Ordering::Relaxed);
        (taken, publisher.join().expect("it published"))
    });
    let cpu_s = cpu_seconds(&server.0.id().to_string()).map_or(0.0, |cpu| cpu.own) - before_s;
    let note = format!(
        "CPU of the server {:.2} of a core, {} MiB at most",
        cpu_s / began.elapsed().as_secs_f64(),
        greatest_memory(&server.0) >> 20
    );
    row(users, "events flowing in meanwhile", &[flowed], "/s", &note);
    for (what, sorted) in ["history of a user", "why of a user", "at, 30 minutes ago"]
        .iter()
        .zip(taken)
    {
        let nearest = |share: f64| sorted[((sorted.len() as f64 * share).ceil() as usize).clamp(1, sorted.len()) - 1];
        let note = format!(
            "p50 {:.2} ms, longest {:.1} ms of {}",
            nearest(0.50),
            nearest(1.0),
            sorted.len()
        );
        row(users, &format!("{what} over HTTP, p99"), &[nearest(0.99)], "ms", &note);
    }
}
