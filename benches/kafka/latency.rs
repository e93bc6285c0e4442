//! From event to readable change, at a steady rate, beside bare transactions while the same events come.

use crate::floors::BareReader;
use crate::load::{connect, disconnect};
use crate::measure::{figure, heading, is_quick};
use crate::{Broker, PARTITIONS, partitions, start, transactions};
use rollcall::clock::SystemClock;
use rollcall::log::kafka::settings::Connection;
use rollcall::log::kafka::{KafkaLog, Node};
use rollcall::log::{Log, NewRecord};
use rollcall::presence::Offset;
use rollcall::presence::event::Event;
use rollcall::schema::{avro, partitioner};
use rollcall::topics::Topic;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const QUANTILES: [(&str, f64); 4] = [("p50", 0.5), ("p99", 0.99), ("p99.9", 0.999), ("max", 1.0)];
/// Users of a run; each connects and disconnects alternately, so that every event causes a change.
const USERS: u32 = 1_000;
/// How long the last changes are waited for at most.
const PATIENCE: Duration = Duration::from_secs(60);

/// How long a run is, and how much of it at its beginning is not counted: the broker compiles its code for most of a minute.
struct Times {
    all: Duration,
    warm: Duration,
}

pub fn run(broker: &Broker) {
    let seconds = |all, warm| Times {
        all: Duration::from_secs(all),
        warm: Duration::from_secs(warm),
    };
    let rates: &[u32] = if is_quick() {
        &[10_000]
    } else {
        &[1_000, 5_000, 10_000, 20_000]
    };
    let (first, later) = if is_quick() {
        (seconds(35, 20), seconds(20, 5))
    } else {
        (seconds(60, 30), seconds(40, 10))
    };
    heading("from event to readable change on Kafka");
    let mut times = &first;
    for events_per_s in rates {
        measure(broker, PARTITIONS, *events_per_s, times);
        times = &later;
    }
    measure(broker, 64, 10_000, times);
    bare(broker, 10_000, times);
}

fn show(of: &str, what: &str, mut took: Vec<f64>) {
    took.sort_by(f64::total_cmp);
    for (name, part) in QUANTILES {
        let at = took[((took.len() - 1) as f64 * part) as usize];
        figure(&format!("{of}.{name}"), &format!("{what}, {name}"), &[at], "ms").show();
    }
}

/// Bare transactions of all partitions every 20 ms, with an output for each event, while the same events are published and nobody
/// folds them.
fn bare(broker: &Broker, events_per_s: u32, times: &Times) {
    let (node, _) = broker.topics("bench-latency-bare", PARTITIONS);
    let log = KafkaLog::connect(node.clone(), Arc::new(SystemClock::new())).expect("connected");
    let took = std::thread::scope(|scope| {
        let publisher = scope.spawn(|| publish(&*log, events_per_s, times.all, Instant::now()));
        let (into, _) = broker.topics("bench-latency-bare-out", PARTITIONS);
        let took = transactions::steady(&into, events_per_s, times.all - times.warm, times.warm);
        publisher.join().expect("published");
        took
    });
    let what = format!("floor: a bare transaction, {events_per_s} outputs/s");
    show(&format!("kafka.latency.bare.{events_per_s}"), &what, took);
}

fn measure(broker: &Broker, count: u32, events_per_s: u32, times: &Times) {
    let (node, connection) = broker.topics(&format!("bench-latency-{count}-{events_per_s}"), count);
    let took = latencies(&node, &connection, events_per_s, times);
    let what = format!("{events_per_s} events/s, {count} partitions");
    show(&format!("kafka.latency.{count}.{events_per_s}"), &what, took);
}

/// When each change was published or seen, by user and version.
type Moments = HashMap<(String, u64), Duration>;

fn latencies(node: &Node, connection: &Connection, events_per_s: u32, times: &Times) -> Vec<f64> {
    let stores = tempfile::tempdir().expect("a directory");
    let (log, engine) = start(node, stores.path());
    let nothing = vec![Offset(0); node.partitions as usize];
    crate::catch_up::Watch::new(&engine, node.partitions).until_live(&nothing);
    let began = Instant::now();
    let (is_over, seen_so_far) = (&AtomicBool::new(false), &AtomicUsize::new(0));
    let (sent, seen) = std::thread::scope(|scope| {
        let reader = scope.spawn(|| follow(connection, node.partitions, began, is_over, seen_so_far));
        let sent = publish(&*log, events_per_s, times.all, began);
        let end = Instant::now() + PATIENCE;
        while seen_so_far.load(Ordering::Relaxed) < sent.len() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(20));
        }
        is_over.store(true, Ordering::Relaxed);
        (sent, reader.join().expect("read"))
    });
    engine.stop().expect("stopped");
    assert_eq!(seen.len(), sent.len(), "every event is one change");
    let first = sent.values().min().copied().unwrap_or_default() + times.warm;
    let counted = sent.iter().filter(|(_, at)| **at > first);
    counted
        .map(|(key, at)| seen[key].saturating_sub(*at).as_secs_f64() * 1e3)
        .collect()
}

/// Reads the changes of all partitions as they come, with one client.
fn follow(
    connection: &Connection,
    count: u32,
    began: Instant,
    is_over: &AtomicBool,
    seen_so_far: &AtomicUsize,
) -> Moments {
    let all = partitions(count).map(|partition| partition.0 as i32).collect();
    let mut reader = BareReader::open(connection, Topic::Changes, all);
    let (mut seen, mut read) = (HashMap::new(), Vec::new());
    while !is_over.load(Ordering::Relaxed) {
        let got = reader.take(Duration::ZERO, |_, _, _, value| {
            let change = avro::decode_change(value).expect("a change");
            read.push((change.user.to_string(), change.version));
        });
        let now = began.elapsed();
        seen.extend(read.drain(..).map(|key| (key, now)));
        seen_so_far.fetch_add(got, Ordering::Relaxed);
        if got == 0 {
            std::thread::sleep(Duration::from_micros(500));
        }
    }
    seen
}

/// Publishes events at a steady rate. Returns just before which moment each was published.
fn publish(log: &dyn Log, events_per_s: u32, during: Duration, began: Instant) -> Moments {
    let mut sent = HashMap::new();
    let interval = Duration::from_secs(1) / events_per_s;
    let start = Instant::now();
    for number in 0..(during.as_secs() as u32) * events_per_s {
        let due = start + interval * number;
        if let Some(wait) = due
            .checked_duration_since(Instant::now())
            .filter(|wait| *wait > Duration::from_micros(200))
        {
            std::thread::sleep(wait);
        }
        let (user, round) = (number % USERS, u64::from(number / USERS));
        let event = if round % 2 == 0 {
            connect(user, round)
        } else {
            disconnect(user, round - 1)
        };
        append(log, &event, round, &mut sent, began);
    }
    sent
}

fn append(log: &dyn Log, event: &Event<'_>, round: u64, sent: &mut Moments, began: Instant) {
    let user = event.user().expect("of one user").to_owned();
    sent.insert((user.clone(), round + 1), began.elapsed());
    let mut value = Vec::new();
    avro::encode_event(event, &mut value);
    let partition = partitioner::partition_of(&user, log.partitions());
    let record = NewRecord {
        headers: Vec::new(),
        key: Some(user.into_bytes()),
        value,
    };
    log.append(
        vec![(partition, record)],
        Box::new(|result| drop(result.expect("appended"))),
    );
}
