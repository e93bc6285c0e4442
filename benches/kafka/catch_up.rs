//! Catch-up, beside what reading and committing cost alone.

use crate::load::{self, Load};
use crate::measure::{figure, heading, is_quick, rate, timed};
use crate::processor::{SELF, cpu_seconds, greatest_mib};
use crate::{Broker, PARTITIONS, floors, number, partitions, settle_disk, start, users};
use rollcall::engine::Engine;
use rollcall::log::kafka::Node;
use rollcall::presence::Offset;
use std::path::Path;
use std::time::{Duration, Instant};

/// What each run of one program gave: records a second, and seconds of processor time for a million records.
#[derive(Default)]
pub struct Runs {
    pub rates: Vec<f64>,
    pub cpu: Vec<f64>,
}

impl Runs {
    pub fn add(&mut self, records: usize, took: Duration, cpu_seconds: f64) {
        self.rates.push(rate(records, took));
        self.cpu.push(cpu_seconds / records as f64 * 1e6);
    }

    fn measure(&mut self, records: usize, what: impl FnOnce()) {
        let before = cpu_seconds(SELF);
        let ((), took) = timed(what);
        self.add(records, took, cpu_seconds(SELF) - before);
    }

    pub fn show(&self, id: &str, what: &str, beside: &[(&str, &str, &Runs)]) {
        figure(&format!("{id}.rate"), what, &self.rates, "/s").show();
        let cpu = format!("{what}: CPU of its process");
        figure(&format!("{id}.cpu"), &cpu, &self.cpu, "s/M").show();
        for (short, yardstick, runs) in beside {
            let of = |own: &[f64], other: &[f64]| -> Vec<f64> {
                own.iter().zip(other).map(|(own, other)| own / other).collect()
            };
            let what = format!("  its rate, of {yardstick}");
            let ratios = of(&self.rates, &runs.rates);
            figure(&format!("{id}.rate_of_{short}"), &what, &ratios, "").show();
            let what = format!("  its CPU, of {yardstick}");
            let ratios = of(&self.cpu, &runs.cpu);
            figure(&format!("{id}.cpu_of_{short}"), &what, &ratios, "").show();
        }
    }
}

/// The number of users, of events of each after its connect, and of rounds.
pub fn sizes() -> (u32, u32, u32) {
    let users = match std::env::var("ROLLCALL_BENCH_USERS") {
        Err(_) if is_quick() => 300_000,
        _ => users::count(),
    };
    let passes = number("ROLLCALL_BENCH_BEATS", 9);
    (
        users,
        passes,
        number("ROLLCALL_BENCH_ROUNDS", if is_quick() { 2 } else { 3 }),
    )
}

pub fn run(broker: &Broker) {
    let (users, passes, rounds) = sizes();
    heading(&format!(
        "catch-up on Kafka: {PARTITIONS} partitions, {users} users connect, then {passes} events of each, 99 of 100 heartbeats"
    ));
    let (mut read, mut bare_loop, mut engine, mut heartbeats) =
        (Runs::default(), Runs::default(), Runs::default(), Runs::default());
    let (mut restored, mut share) = (Vec::new(), 0.0);
    for round in 0..rounds {
        let (node, connection) = broker.topics(&format!("bench-catch-up-{round}"), PARTITIONS);
        let load = load::fill(&node, users, passes);
        share = load.changes as f64 / load.records as f64 * 100.0;
        read.measure(load.records, || floors::read(&connection, &load));
        let (into, _) = broker.topics(&format!("bench-loop-{round}"), PARTITIONS);
        settle_disk();
        let (took, cpu) = floors::exactly_once(&into, &connection, &load);
        bare_loop.add(load.records, took, cpu);
        let stores = tempfile::tempdir().expect("a directory");
        catch_up(&node, stores.path(), &load, &mut engine, &mut heartbeats);
        // The stores are lost.
        let stores = tempfile::tempdir().expect("a directory");
        restored.push(restore(&node, stores.path(), &load).as_secs_f64());
    }
    let id = |what: &str| format!("kafka.{users}.{what}");
    figure(&id("changes"), "events that give a change", &[share], "%").show();
    read.show(&id("read"), "floor: bare reading, a client for each partition", &[]);
    let what = "floor: read, write 1 of 10, commit every 50 ms";
    bare_loop.show(&id("loop"), what, &[]);
    let beside = [("read", "bare reading", &read), ("loop", "the bare loop", &bare_loop)];
    let what = "engine, after all have connected (1 % changes)";
    heartbeats.show(&id("heartbeats"), what, &beside);
    let what = "engine, everything, once it has its partitions";
    engine.show(&id("engine"), what, &beside);
    let what = "engine: ready again after its stores are lost";
    figure(&id("restore"), what, &restored, "s").show();
    let note = "of the whole benchmark, its writer and readers included";
    figure(&id("mib"), "engine: most memory", &[greatest_mib(SELF)], "MiB")
        .note(note)
        .show();
}

/// The engine, from the moment when it knows its partitions to the last commit, and the part after everybody has connected.
pub fn catch_up(node: &Node, stores: &Path, load: &Load, all: &mut Runs, heartbeats: &mut Runs) {
    settle_disk();
    let (_log, engine) = start(node, stores);
    while !engine.has_assignment() {
        std::thread::sleep(Duration::from_millis(1));
    }
    let (began, cpu) = (Instant::now(), cpu_seconds(SELF));
    let watch = Watch::new(&engine, load.ends.len() as u32);
    let at = watch.until_committed(&load.connected);
    let middle = (Instant::now(), cpu_seconds(SELF));
    watch.until_committed(&load.ends);
    let end = (Instant::now(), cpu_seconds(SELF));
    all.add(load.records, end.0 - began, end.1 - cpu);
    heartbeats.add(load.records - at, end.0 - middle.0, end.1 - middle.1);
    assert_eq!(watch.changes(), load.changes, "each change once");
    engine.stop().expect("stopped");
}

/// Returns how long an engine takes that has lost its stores, until it answers again.
fn restore(node: &Node, stores: &Path, load: &Load) -> Duration {
    settle_disk();
    let began = Instant::now();
    let (_log, engine) = start(node, stores);
    let watch = Watch::new(&engine, load.ends.len() as u32);
    watch.until_live(&load.ends);
    let took = began.elapsed();
    assert_eq!(
        watch.changes(),
        load.changes,
        "the same state, and nothing is sent again"
    );
    engine.stop().expect("stopped");
    took
}

pub fn alive(broker: &Broker) {
    let (users, passes) = (
        sizes().0,
        number("ROLLCALL_BENCH_ALIVE", if is_quick() { 200 } else { 400 }),
    );
    heading(&format!(
        "alive on Kafka: {PARTITIONS} partitions, {users} users connect, then {passes} heartbeats of each by connection number"
    ));
    let (mut beats, mut bytes) = (Runs::default(), 0.0);
    for round in 0..2 {
        let (node, _) = broker.topics(&format!("bench-alive-{round}"), PARTITIONS);
        let connected = load::fill_connects(&node, users);
        let stores = tempfile::tempdir().expect("a directory");
        let (_log, engine) = start(&node, stores.path());
        Watch::new(&engine, PARTITIONS).until_committed(&connected);
        engine.stop().expect("stopped");
        // Published while no engine runs, so that all of it is measured.
        let (load, each) = load::fill_alive(&node, users, passes);
        bytes = each;
        settle_disk();
        let (_log, engine) = start(&node, stores.path());
        while !engine.has_assignment() {
            std::thread::sleep(Duration::from_millis(1));
        }
        let (began, cpu) = (Instant::now(), cpu_seconds(SELF));
        let watch = Watch::new(&engine, PARTITIONS);
        watch.until_committed(&load.ends);
        beats.add(load.records, began.elapsed(), cpu_seconds(SELF) - cpu);
        assert_eq!(watch.changes(), load.changes, "nobody times out");
        assert_eq!(watch.ignored(), 0, "every connection is known");
        engine.stop().expect("stopped");
    }
    beats.show(
        &format!("kafka.{users}.alive"),
        "heartbeats by `alive`, folded and committed",
        &[],
    );
    let what = "bytes of a heartbeat in the log, uncompressed";
    figure(&format!("kafka.{users}.alive.bytes"), what, &[bytes], "bytes").show();
}

/// Asks an engine how far it is.
pub struct Watch<'e> {
    engine: &'e Engine,
    partitions: u32,
    runtime: tokio::runtime::Runtime,
}

impl<'e> Watch<'e> {
    pub fn new(engine: &'e Engine, partitions: u32) -> Watch<'e> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
        Watch {
            engine,
            partitions,
            runtime: runtime.expect("a runtime"),
        }
    }

    fn stats(&self) -> Option<Vec<rollcall::engine::PartitionStats>> {
        let stats = |partition| {
            let stats = self.runtime.block_on(self.engine.stats(partition)).ok()?;
            assert_ne!(stats.state, "failed", "partition {partition}: {:?}", stats.error);
            Some(stats)
        };
        partitions(self.partitions).map(stats).collect()
    }

    /// Waits until everything before these offsets is committed. Returns how many records are committed then.
    fn until_committed(&self, ends: &[Offset]) -> usize {
        loop {
            if let Some(stats) = self.stats()
                && stats.iter().zip(ends).all(|(stats, end)| stats.committed >= *end)
            {
                return stats.iter().map(|stats| stats.committed.0 as usize).sum();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until every partition is live and has folded everything before these offsets.
    pub fn until_live(&self, ends: &[Offset]) {
        let is_live = |stats: &rollcall::engine::PartitionStats, end| stats.state == "live" && stats.applied >= end;
        while !self
            .stats()
            .is_some_and(|stats| stats.iter().zip(ends).all(|(stats, end)| is_live(stats, *end)))
        {
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn changes(&self) -> u64 {
        let stats = self.stats().expect("answered");
        stats.iter().map(|stats| stats.changes).sum()
    }

    fn ignored(&self) -> u64 {
        let stats = self.stats().expect("answered");
        stats.iter().flat_map(|stats| stats.ignored).sum()
    }
}
