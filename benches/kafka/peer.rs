//! The Kafka Streams job of `benches/peer-kstreams` and the engine in turn, on the same events on the same broker.

use crate::catch_up::{Runs, catch_up, sizes};
use crate::load::{self, Load};
use crate::measure::{figure, heading};
use crate::processor::{cpu_seconds, greatest_mib};
use crate::{Broker, PARTITIONS, number, partitions, settle_disk};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::{Offset, TopicPartitionList};
use rollcall::clock::SystemClock;
use rollcall::log::kafka::KafkaReader;
use rollcall::log::kafka::settings::Connection;
use rollcall::log::{Limit, Reader as _};
use rollcall::topics::Topic;
use std::fs;
use std::io::{BufRead as _, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

const CALL: Duration = Duration::from_secs(10);
/// As many as the machine has cores; the best setting where it was tried.
const THREADS: u32 = 2;

/// What the job takes.
struct Size {
    mib: f64,
    disk_mib: f64,
    /// From its start without its state until it runs.
    restored: Duration,
}

struct Job {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Job {
    fn start(events: &str, changes: &str, broker: &Broker, id: &str, state: &Path) -> Job {
        let threads = number("ROLLCALL_BENCH_PEER_THREADS", THREADS);
        let mut child = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/peer-kstreams/run"))
            .args([&broker.bootstrap, events, changes, id])
            .arg(state)
            .arg(threads.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("benches/peer-kstreams/run starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        Job { child, lines }
    }

    fn wait_until_it_runs(&mut self) {
        let said = self.lines.next().expect("it says that it runs").expect("text");
        assert_eq!(said, "running", "the job's first line");
    }

    /// Waits until the group has committed everything.
    fn wait_until_committed(&mut self, connection: &Connection, group: &str, topic: &str, load: &Load) {
        let mut config = connection.client("bench-peer");
        config.set("group.id", group);
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let mut wanted = TopicPartitionList::new();
        for partition in partitions(load.ends.len() as u32) {
            wanted.add_partition(topic, partition.0 as i32);
        }
        loop {
            if let Ok(committed) = consumer.committed_offsets(wanted.clone(), CALL) {
                let is_there = |partition: i32, end: u64| {
                    let found = committed
                        .find_partition(topic, partition)
                        .map(|element| element.offset());
                    matches!(found, Some(Offset::Offset(next)) if next >= end as i64)
                };
                if (0..).zip(&load.ends).all(|(partition, end)| is_there(partition, end.0)) {
                    return;
                }
            }
            let ended = self.child.try_wait().expect("a process");
            assert!(ended.is_none(), "the job has ended: {ended:?}");
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn process(&self) -> String {
        self.child.id().to_string()
    }

    fn stop(mut self) {
        drop(self.child.stdin.take());
        self.lines.for_each(drop);
        assert!(self.child.wait().expect("it ends").success());
    }
}

pub fn run(broker: &Broker) {
    let (users, passes, rounds) = sizes();
    // The job takes minutes.
    let rounds = rounds.div_ceil(2);
    heading(&format!(
        "beside Kafka Streams: {PARTITIONS} partitions, {users} users connect, then {passes} events of each, 99 of 100 heartbeats"
    ));
    let (mut engine, mut streams, mut sizes) = (Runs::default(), Runs::default(), Vec::new());
    for round in 0..rounds {
        let (node, connection) = broker.topics(&format!("bench-peer-{round}"), PARTITIONS);
        let load = load::fill(&node, users, passes);
        let stores = tempfile::tempdir().expect("a directory");
        catch_up(&node, stores.path(), &load, &mut engine, &mut Runs::default());
        sizes.push(job(broker, &connection, &load, round, &mut streams));
    }
    let id = |what: &str| format!("peer.{users}.{what}");
    let what = "Kafka Streams job, once it has its partitions";
    streams.show(&id("streams"), what, &[]);
    let beside = [("streams", "the Kafka Streams job", &streams)];
    let what = "engine, once it has its partitions";
    engine.show(&id("engine"), what, &beside);
    let of = |figure: fn(&Size) -> f64| -> Vec<f64> { sizes.iter().map(figure).collect() };
    let what = "Kafka Streams job: ready again after its state is lost";
    figure(
        &id("streams.restore"),
        what,
        &of(|size| size.restored.as_secs_f64()),
        "s",
    )
    .show();
    figure(
        &id("streams.mib"),
        "Kafka Streams job: most memory",
        &of(|size| size.mib),
        "MiB",
    )
    .note("2 GiB of heap are reserved at its start")
    .show();
    let what = "Kafka Streams job: state on disk";
    figure(&id("streams.disk_mib"), what, &of(|size| size.disk_mib), "MiB").show();
}

fn job(broker: &Broker, connection: &Connection, load: &Load, round: u32, runs: &mut Runs) -> Size {
    let (into, to) = broker.topics(&format!("bench-peer-out-{round}"), load.ends.len() as u32);
    let (events, changes) = (connection.topic(Topic::Events), to.topic(Topic::Changes));
    let id = format!("{}-job", into.group);
    let state = tempfile::tempdir().expect("a directory");
    settle_disk();
    let mut job = Job::start(&events, &changes, broker, &id, state.path());
    job.wait_until_it_runs();
    let (began, cpu) = (Instant::now(), cpu_seconds(&job.process()));
    job.wait_until_committed(connection, &id, &events, load);
    runs.add(load.records, began.elapsed(), cpu_seconds(&job.process()) - cpu);
    let mib = greatest_mib(&job.process());
    job.stop();
    assert_eq!(count(&to), load.changes, "a change for each change of the engine");
    let disk_mib = bytes_below(state.path()) as f64 / f64::from(1 << 20);

    let state = tempfile::tempdir().expect("a directory");
    let began = Instant::now();
    settle_disk();
    let mut job = Job::start(&events, &changes, broker, &id, state.path());
    job.wait_until_it_runs();
    let restored = began.elapsed();
    job.stop();
    Size {
        mib,
        disk_mib,
        restored,
    }
}

/// Returns how many committed changes there are.
fn count(connection: &Connection) -> u64 {
    let mut reader = KafkaReader::connect(connection.clone(), Arc::new(SystemClock::new())).expect("connected");
    let limit = Limit {
        records: 10_000,
        bytes: 2 << 20,
    };
    let mut count = 0;
    for partition in partitions(reader.partitions()) {
        let mut next = reader.range(Topic::Changes, partition).expect("a range").start;
        let mut records = Vec::new();
        loop {
            records.clear();
            reader
                .read(Topic::Changes, partition, next, limit, &mut records)
                .expect("read");
            let Some(last) = records.last() else { break };
            next = rollcall::presence::Offset(last.offset.0 + 1);
            count += records.len() as u64;
        }
    }
    count
}

fn bytes_below(directory: &Path) -> u64 {
    let entries = fs::read_dir(directory).expect("a directory");
    let bytes = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
        _ => entry.metadata().map_or(0, |metadata| metadata.len()),
    };
    entries.map(|entry| bytes(entry.expect("an entry"))).sum()
}
