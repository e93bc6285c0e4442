//! The engine on a real broker on the same machine, compared with a plain reader of the same broker in the same run.
//!
//! Catch-up: users connect and then send heartbeats, and all events are in the topics before the engine starts; the time from
//! its start until every event is folded and committed is measured. Latency: the time from just before an event is published to
//! just after its change was read, committed records only, at a steady rate. Transactions: one for each partition, compared
//! with one for all.
//!
//! The benchmark starts a broker (`scripts/kafka`), or uses `ROLLCALL_TEST_KAFKA=host:port`. `ROLLCALL_BENCH_USERS` and
//! `ROLLCALL_BENCH_BEATS` (heartbeats per user) set its size.

mod allocator;
mod appender;
mod measure;
#[path = "kafka/transactions.rs"]
mod transactions;
mod users;

use measure::{heading, rate, row, timed};
use rollcall::clock::{Clock, SystemClock};
use rollcall::engine::{Engine, Services, Tuning};
use rollcall::log::kafka::settings::Connection;
use rollcall::log::kafka::topics::RequestedTopics;
use rollcall::log::kafka::{KafkaLog, KafkaReader, Node, admin};
use rollcall::log::{Limit, Log, Reader as _, Topic};
use rollcall::presence::event::{Ending, Event, Intent};
use rollcall::presence::{Conn, Offset, Partition, Revision};
use rollcall::random::Random;
use rollcall::schema::avro;
use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const PARTITIONS: u32 = 4;
const EVENTS_PER_S: u64 = 5_000;
const LATENCY_S: u64 = 60;
/// The broker compiles its code for most of a minute; this time is not counted.
const WARM_S: u64 = 30;

fn main() {
    let broker = Broker::start();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let number = |name: &str, or| std::env::var(name).map_or(or, |text| text.parse().expect("a number"));
    let users = users::count();
    let beats = number("ROLLCALL_BENCH_BEATS", 10);
    let rounds = number("ROLLCALL_BENCH_ROUNDS", 3);

    heading(&format!(
        "catch-up on Kafka: {PARTITIONS} partitions, {users} users, {beats} heartbeats each"
    ));
    let total = users as usize * (beats as usize + 1);
    let (mut bare, mut folded) = (Vec::new(), Vec::new());
    for round in 0..rounds {
        let (node, connection) = broker.topics(&format!("bench-catch-up-{round}"));
        let ends = fill(&node, users, beats);
        let (read, took) = timed(|| read_all(&connection, &ends));
        assert_eq!(read, total);
        bare.push(rate(read, took));
        let (_, took) = timed(|| catch_up(node, clock.clone(), &ends));
        folded.push(rate(total, took));
    }
    let ratio: Vec<f64> = folded.iter().zip(&bare).map(|(folded, bare)| folded / bare).collect();
    row("plain reader, batches, a thread per partition", &bare, "/s", "");
    row(
        "folded, committed exactly once",
        &folded,
        "/s",
        "from the start of the engine",
    );
    row("ratio of the two", &ratio, "", "");

    heading(&format!(
        "from event to readable change, {EVENTS_PER_S} events/s for {LATENCY_S} s"
    ));
    let (node, _) = broker.topics("bench-latency");
    latency(node, clock);

    transactions::run(&broker.topics("bench-transactions").0);
}

fn partitions() -> impl Iterator<Item = Partition> {
    (0..PARTITIONS).map(Partition)
}

fn connect(conn: u64) -> impl Fn(u32) -> Event<'static> {
    move |user| Event::Connect {
        who: users::who(user),
        via: users::via(user, Conn(conn)),
        intent: Intent::Login,
        client: None,
        auth_at: None,
    }
}

/// One reader per partition, which ignores what it reads.
fn read_all(connection: &Connection, ends: &[Offset]) -> usize {
    std::thread::scope(|scope| {
        let readers: Vec<_> = partitions()
            .zip(ends)
            .map(|(partition, end)| {
                scope.spawn(move || {
                    let mut reader =
                        KafkaReader::connect(connection.clone(), Arc::new(SystemClock::new())).expect("connected");
                    let (mut next, mut count) = (Offset(0), 0);
                    let mut records = Vec::new();
                    let limit = Limit {
                        records: 10_000,
                        bytes: 2 << 20,
                    };
                    while next < *end {
                        records.clear();
                        reader
                            .read(Topic::Events, partition, next, limit, &mut records)
                            .expect("read");
                        count += records.len();
                        next = records.last().map_or(next, |last| Offset(last.offset.0 + 1));
                    }
                    count
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().expect("read")).sum()
    })
}

/// Publishes connects and heartbeats of all users. Returns where each partition ends.
fn fill(node: &Node, users: u32, beats: u32) -> Vec<Offset> {
    let log = KafkaLog::connect(node.clone(), Arc::new(SystemClock::new())).expect("connected");
    let mut random = Random(1);
    appender::append(&*log, random.order(users).into_iter().map(connect(0)));
    for _ in 0..beats {
        let beat = |user| Event::Heartbeat {
            who: users::who(user),
            via: users::via(user, Conn(0)),
        };
        appender::append(&*log, random.order(users).into_iter().map(beat));
    }
    let range = |partition| log.range(Topic::Events, partition).expect("a range");
    partitions().map(|partition| range(partition).end).collect()
}

/// The engine on a node's partitions, with stores in a separate directory.
fn start(node: Node, clock: Arc<dyn Clock>) -> (Arc<KafkaLog>, Engine, tempfile::TempDir) {
    let log = KafkaLog::connect(node, clock.clone()).expect("connected");
    let group = Box::new(log.join().expect("joined"));
    let tuning = Tuning {
        output_commit_ms: 20,
        ..Tuning::default()
    };
    let directory = tempfile::tempdir().expect("a directory");
    let stores = Some(directory.path());
    let engine = Engine::join(log.clone(), group, stores, clock, tuning, Services::default());
    (log, engine.expect("started"), directory)
}

fn catch_up(node: Node, clock: Arc<dyn Clock>, ends: &[Offset]) {
    let (_log, engine, _directory) = start(node, clock);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .expect("a runtime");
    for (partition, end) in partitions().zip(ends) {
        loop {
            let stats = runtime.block_on(engine.stats(partition));
            if stats.is_ok_and(|stats| stats.committed >= *end) {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    engine.stop().expect("stopped");
}

fn latency(node: Node, clock: Arc<dyn Clock>) {
    let connection = node.connection.clone();
    let (log, engine, _directory) = start(node, clock);
    let began = Instant::now();
    let stop = Arc::new(AtomicBool::new(false));
    // Each user connects and disconnects alternately, so that every event causes a change, identified by user and version.
    let readers: Vec<_> = partitions()
        .map(|partition| {
            let (connection, stop) = (connection.clone(), stop.clone());
            std::thread::spawn(move || {
                let mut reader = KafkaReader::connect(connection, Arc::new(SystemClock::new())).expect("connected");
                let mut seen = HashMap::new();
                let (mut next, mut records) = (Offset(0), Vec::new());
                let limit = Limit {
                    records: 1_000,
                    bytes: 1 << 20,
                };
                while !stop.load(Ordering::Relaxed) {
                    records.clear();
                    reader
                        .read(Topic::Changes, partition, next, limit, &mut records)
                        .expect("read");
                    let now = began.elapsed();
                    for record in &records {
                        let change = avro::decode_change(&record.value).expect("a change");
                        seen.insert((change.user.to_string(), change.version), now);
                        next = Offset(record.offset.0 + 1);
                    }
                    if records.is_empty() {
                        std::thread::sleep(Duration::from_micros(500));
                    }
                }
                seen
            })
        })
        .collect();
    let users = 1_000_u32;
    let mut sent = HashMap::new();
    let interval = Duration::from_secs(1) / EVENTS_PER_S as u32;
    let start = Instant::now();
    for number in 0..EVENTS_PER_S * LATENCY_S {
        let due = start + interval * number as u32;
        if let Some(wait) = due
            .checked_duration_since(Instant::now())
            .filter(|wait| *wait > Duration::from_micros(200))
        {
            std::thread::sleep(wait);
        }
        let user = (number % u64::from(users)) as u32;
        let round = number / u64::from(users);
        let event = if round % 2 == 0 {
            connect(round)(user)
        } else {
            Event::Disconnect {
                who: users::who(user),
                via: users::via(user, Conn(round - 1)),
                reason: Ending::Closed,
            }
        };
        sent.insert(
            (event.user().expect("of one user").to_owned(), round + 1),
            began.elapsed(),
        );
        let mut value = Vec::new();
        avro::encode_event(&event, &mut value);
        let user = event.user().expect("of one user").to_owned();
        let partition = rollcall::schema::partitioner::partition_of(&user, PARTITIONS);
        let record = rollcall::log::NewRecord {
            headers: Vec::new(),
            key: Some(user.into_bytes()),
            value,
        };
        log.append(
            vec![(partition, record)],
            Box::new(|result| drop(result.expect("appended"))),
        );
    }
    std::thread::sleep(Duration::from_secs(3));
    stop.store(true, Ordering::Relaxed);
    let seen: HashMap<_, _> = readers
        .into_iter()
        .flat_map(|reader| reader.join().expect("read"))
        .collect();
    engine.stop().expect("stopped");
    assert_eq!(seen.len(), sent.len(), "every event is one change");
    let warm = began
        .elapsed()
        .saturating_sub(Duration::from_secs(3 + LATENCY_S - WARM_S));
    let mut took: Vec<f64> = sent
        .iter()
        .filter(|(_, at)| **at > warm)
        .map(|(key, at)| seen[key].saturating_sub(*at).as_secs_f64() * 1e3)
        .collect();
    took.sort_by(f64::total_cmp);
    let at = |part: f64| took[((took.len() - 1) as f64 * part) as usize];
    for (name, part) in [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)] {
        row(name, &[at(part)], "ms", "");
    }
}

/// A broker that runs as long as this value lives.
struct Broker {
    bootstrap: String,
    child: Option<Child>,
}

impl Broker {
    fn start() -> Broker {
        if let Ok(bootstrap) = std::env::var("ROLLCALL_TEST_KAFKA") {
            return Broker { bootstrap, child: None };
        }
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/scripts/kafka");
        let mut child = Command::new(script)
            .args(["run", "--port", "0"])
            .env("KAFKA_HEAP", "1g")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/kafka starts");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut lines = stdout.lines().map(|line| line.expect("text"));
        let bootstrap = lines.find_map(|line| line.strip_prefix("KAFKA_BOOTSTRAP=").map(str::to_owned));
        std::thread::spawn(move || lines.for_each(drop));
        Broker {
            bootstrap: bootstrap.expect("a broker"),
            child: Some(child),
        }
    }

    fn topics(&self, prefix: &str) -> (Node, Connection) {
        // A broker that is used again has the topics of the previous run.
        let prefix = format!("{prefix}-{}", std::process::id());
        let connection = Connection::new(&self.bootstrap, Some(&prefix), None, &[]).expect("settings");
        let wanted = RequestedTopics {
            partitions: Some(PARTITIONS),
            ..RequestedTopics::default()
        };
        admin::create(&connection, wanted).expect("topics");
        let node = Node {
            connection: connection.clone(),
            group: prefix.clone(),
            url: "http://127.0.0.1:1".to_owned(),
            id: prefix,
            partitions: PARTITIONS,
            revision: Revision::NEWEST,
        };
        (node, connection)
    }
}

impl Drop for Broker {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.stdin.take());
            let _ = child.wait();
        }
    }
}
