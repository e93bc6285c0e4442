//! Compares the cost of one transaction and producer for each partition with one transaction for all partitions of a process,
//! at the same rate, with the same outputs and positions.

use super::{PARTITIONS, partitions};
use crate::measure::{figure, heading};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use rollcall::log::kafka::Node;
use rollcall::topics::Topic;
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_millis(20);
const ROUNDS: u32 = 400;
/// Outputs of a partition in a transaction, as at 5,000 changes a second.
const RECORDS: usize = 25;
const RECORD: [u8; 300] = [7; 300];
const CALL: Duration = Duration::from_secs(10);

pub fn run(node: &Node) {
    heading(&format!(
        "transactions every {} ms, {PARTITIONS} partitions, {RECORDS} outputs each",
        EVERY.as_millis()
    ));
    let all: Vec<i32> = partitions(PARTITIONS).map(|partition| partition.0 as i32).collect();
    let own: Vec<Vec<i32>> = all.iter().map(|partition| vec![*partition]).collect();
    let idle = busy(|| std::thread::sleep(EVERY * ROUNDS)).1;
    // Once to warm up the broker.
    measured(node, &own);
    for (id, what, shares) in [
        ("each", "one producer per partition", own.as_slice()),
        ("all", "one for all partitions", &[all]),
    ] {
        let (took, cores) = measured(node, shares);
        let id = format!("kafka.transactions.{id}");
        figure(&format!("{id}.ms"), &format!("{what}: a transaction"), &took, "ms").show();
        let what = format!("{what}: CPU of client and broker");
        figure(&format!("{id}.cores"), &what, &[cores - idle], "cores").show();
    }
}

/// Returns how long each transaction took, in milliseconds, of a producer for all partitions that commits every 20 ms at this
/// rate of outputs, without those of the first while.
pub fn steady(node: &Node, outputs_per_s: u32, during: Duration, warm: Duration) -> Vec<f64> {
    let all: Vec<i32> = partitions(node.partitions)
        .map(|partition| partition.0 as i32)
        .collect();
    let rounds = |time: Duration| (time.as_millis() / EVERY.as_millis()) as u32;
    let outputs = outputs_per_s as usize * EVERY.as_millis() as usize / 1_000 / all.len();
    commits(node, &all, rounds(warm + during), outputs).split_off(rounds(warm) as usize)
}

/// Returns how long each transaction took, in milliseconds, and how many cores were busy.
fn measured(node: &Node, shares: &[Vec<i32>]) -> (Vec<f64>, f64) {
    busy(|| {
        std::thread::scope(|scope| {
            let all: Vec<_> = shares
                .iter()
                .map(|share| scope.spawn(move || commits(node, share, ROUNDS, RECORDS)))
                .collect();
            all.into_iter().flat_map(|one| one.join().expect("committed")).collect()
        })
    })
}

fn commits(node: &Node, share: &[i32], rounds: u32, records: usize) -> Vec<f64> {
    let mut config: ClientConfig = node.connection.client("bench");
    config.set("group.id", &node.group);
    let consumer: BaseConsumer = config.create().expect("a consumer");
    let mut config = node.connection.client("bench");
    config
        .set("transactional.id", format!("{}-{share:?}", node.group))
        .set("linger.ms", "0")
        .set("retry.backoff.ms", "5");
    let producer: BaseProducer = config.create().expect("a producer");
    producer.init_transactions(CALL).expect("taken up");
    let (changes, events) = (
        node.connection.topic(Topic::Changes),
        node.connection.topic(Topic::Events),
    );
    let mut took = Vec::new();
    let begun = Instant::now();
    for round in 0..rounds {
        let due = begun + EVERY * round;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        let start = Instant::now();
        producer.begin_transaction().expect("begun");
        let mut offsets = TopicPartitionList::new();
        for partition in share {
            for _ in 0..records {
                let record = BaseRecord::<[u8], [u8]>::to(&changes)
                    .partition(*partition)
                    .payload(&RECORD);
                producer.send(record).map_err(|(error, _)| error).expect("sent");
            }
            let mut element = offsets.add_partition(&events, *partition);
            element.set_offset(Offset::Offset(i64::from(round))).expect("an offset");
        }
        while producer.in_flight_count() > 0 {
            producer.poll(Duration::ZERO);
            std::thread::sleep(Duration::from_micros(200));
        }
        let group = consumer.group_metadata().expect("a group");
        producer
            .send_offsets_to_transaction(&offsets, &group, CALL)
            .expect("with the position");
        producer.commit_transaction(CALL).expect("committed");
        took.push(start.elapsed().as_secs_f64() * 1e3);
    }
    took
}

/// Returns the result of a function, and how many of the machine's cores were busy meanwhile.
fn busy<T>(what: impl FnOnce() -> T) -> (T, f64) {
    let (before, start) = (busy_ticks(), Instant::now());
    let value = what();
    let ticks = busy_ticks() - before;
    // Linux counts in hundredths of a second, whatever the kernel's own clock.
    (value, ticks as f64 / 100.0 / start.elapsed().as_secs_f64())
}

/// Returns the busy time of all cores: user, nice, system, and both kinds of interrupts.
fn busy_ticks() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").expect("Linux");
    let first = stat.lines().next().expect("the line of all cores");
    let numbers: Vec<u64> = first
        .split_whitespace()
        .skip(1)
        .map(|number| number.parse().expect("a number"))
        .collect();
    [0, 1, 2, 5, 6].iter().map(|at| numbers[*at]).sum()
}
