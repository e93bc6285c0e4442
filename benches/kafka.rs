//! The engine on a real broker on the same machine, compared with what the broker and its client can do at most, and with a
//! Kafka Streams job, on the same topics in the same run.
//!
//! * `catch_up`: the events are in the topics before the engine starts; the time until all are folded and committed exactly
//!   once, beside three floors: bare reading, a bare loop that reads, writes one record of ten and commits every 50 ms, and
//!   (in `latency`) a bare transaction.
//! * `alive`: the same, of heartbeats that name only the numbers of their connections.
//! * `peer`: catch-up of the engine and of the Kafka Streams job in turn.
//! * `latency`: the time from just before an event is published to just after its change was read, committed records only, at
//!   a steady rate, with 4 partitions and with 64, beside bare transactions at the same rate.
//! * `transactions`: one for each partition, compared with one for all.
//! * `questions`: what is asked of the log over HTTP, on Kafka and of the embedded log in turn.
//!
//! `ROLLCALL_BENCH_ONLY` names the parts to run, separated by commas; by default all but `peer` and
//! `questions`. The benchmark starts a broker (`scripts/kafka`), or uses `ROLLCALL_TEST_KAFKA=host:port`.
//! `ROLLCALL_BENCH_USERS`, `ROLLCALL_BENCH_BEATS` (events of each user after its connect) and `ROLLCALL_BENCH_ROUNDS` set the
//! sizes.

mod allocator;
mod appender;
#[path = "kafka/catch_up.rs"]
mod catch_up;
#[path = "kafka/floors.rs"]
mod floors;
#[path = "kafka/latency.rs"]
mod latency;
#[path = "kafka/load.rs"]
mod load;
mod measure;
#[path = "kafka/peer.rs"]
mod peer;
mod processor;
#[path = "kafka/questions.rs"]
mod questions;
#[path = "kafka/transactions.rs"]
mod transactions;
mod users;

use rollcall::clock::{Clock, SystemClock};
use rollcall::engine::{Engine, Services, Tuning};
use rollcall::log::kafka::settings::Connection;
use rollcall::log::kafka::topics::RequestedTopics;
use rollcall::log::kafka::{KafkaLog, Node, admin};
use rollcall::presence::{Partition, Revision};
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

const PARTITIONS: u32 = 4;
const PARTS: [&str; 6] = ["catch_up", "alive", "latency", "transactions", "peer", "questions"];

fn main() {
    let only = std::env::var("ROLLCALL_BENCH_ONLY").unwrap_or_else(|_| PARTS[..4].join(","));
    let only: Vec<&str> = only.split(',').collect();
    for part in &only {
        assert!(
            PARTS.contains(part),
            "ROLLCALL_BENCH_ONLY names {part:?}; the parts are {PARTS:?}"
        );
    }
    let is_asked = |part| only.contains(&part);
    let broker = Broker::start();
    if is_asked("catch_up") {
        catch_up::run(&broker);
    }
    if is_asked("alive") {
        catch_up::alive(&broker);
    }
    if is_asked("latency") {
        latency::run(&broker);
    }
    if is_asked("peer") {
        peer::run(&broker);
    }
    if is_asked("questions") {
        questions::run(&broker);
    }
    if is_asked("transactions") {
        transactions::run(&broker.topics("bench-transactions", PARTITIONS).0);
    }
}

/// A number from the environment.
fn number(name: &str, or: u32) -> u32 {
    std::env::var(name).map_or(or, |text| text.parse().expect("a number"))
}

fn partitions(count: u32) -> impl Iterator<Item = Partition> {
    (0..count).map(Partition)
}

/// Waits until the disk has what was written so far. A broker flushes the first file of a partition, and would wait for all of it in
/// the middle of what is measured.
fn settle_disk() {
    let synced = Command::new("sync").status().expect("sync is there");
    assert!(synced.success(), "sync: {synced}");
}

/// An engine on a node's partitions, with its stores in a directory.
fn start(node: &Node, stores: &Path) -> (Arc<KafkaLog>, Engine) {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let log = KafkaLog::connect(node.clone(), clock.clone()).expect("connected");
    let group = Box::new(log.join().expect("joined"));
    let tuning = Tuning {
        output_commit_ms: 20,
        ..Tuning::default()
    };
    let engine = Engine::join(log.clone(), group, Some(stores), clock, tuning, Services::default());
    (log, engine.expect("started"))
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
        // With a directory of its own, so that no other broker of this machine is in the way.
        let directory = std::env::temp_dir().join(format!("rollcall-bench-kafka-{}", std::process::id()));
        let mut child = Command::new(script)
            .args(["run", "--port", "0", "--dir"])
            .arg(directory)
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

    fn topics(&self, prefix: &str, partitions: u32) -> (Node, Connection) {
        // A broker that is used again has the topics of the previous run.
        let prefix = format!("{prefix}-{}", std::process::id());
        let connection = Connection::new(&self.bootstrap, Some(&prefix), None, &[]).expect("settings");
        let wanted = RequestedTopics {
            partitions: Some(partitions),
            ..RequestedTopics::default()
        };
        admin::create(&connection, wanted).expect("topics");
        let node = Node {
            connection: connection.clone(),
            group: prefix.clone(),
            url: "http://127.0.0.1:1".to_owned(),
            id: prefix,
            partitions,
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
