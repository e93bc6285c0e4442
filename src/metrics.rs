//! Every metric, a named function each. Nobody else touches the registry.

use crate::presence::change::{Cause, IgnoreReason, KickReason};
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::sync::LazyLock;

struct Metrics {
    registry: Registry,
    folded: IntCounter,
    /// These three by number: to find a counter by its label takes as long as a good part of the fold.
    changes: Vec<IntCounter>,
    kicks: Vec<IntCounter>,
    ignored: Vec<IntCounter>,
    malformed: IntCounter,
    commits: IntCounter,
    committed_changes: IntCounter,
    ticks: IntCounter,
    lag: IntGaugeVec,
    users_in_memory: IntGaugeVec,
    store_commit_seconds: Histogram,
    appended: IntCounter,
    followers: prometheus::IntGauge,
    checkpoint: IntGaugeVec,
    checkpoint_failures: IntCounter,
    registry_failures: IntCounter,
    gateway_connections: prometheus::IntGauge,
    gateway_refused: IntCounterVec,
    gateway_closed: IntCounterVec,
    gateway_kicks: IntCounterVec,
    gateway_beats: IntCounter,
    gateway_beat_records: IntCounter,
    gateway_endings_refused: IntCounter,
}

/// A name or label that is not allowed is a bug that every start would show.
const VALID: &str = "the metrics are declared with valid names, each once";

static METRICS: LazyLock<Metrics> = LazyLock::new(|| {
    let registry = Registry::new();
    fn add<C: prometheus::core::Collector + Clone + 'static>(registry: &Registry, collector: C) -> C {
        registry.register(Box::new(collector.clone())).expect(VALID);
        collector
    }
    let counter = |name: &str, help: &str| add(&registry, IntCounter::new(name, help).expect(VALID));
    let counters = |name: &str, help: &str, label: &str| {
        add(
            &registry,
            IntCounterVec::new(Opts::new(name, help), &[label]).expect(VALID),
        )
    };
    let counters_of = |name: &str, help: &str, label: &str, values: &[&str]| {
        let counters = counters(name, help, label);
        let of = |value| counters.with_label_values(&[value]);
        values.iter().map(of).collect::<Vec<IntCounter>>()
    };
    let gauges = |name: &str, help: &str| {
        add(
            &registry,
            IntGaugeVec::new(Opts::new(name, help), &["partition"]).expect(VALID),
        )
    };
    Metrics {
        folded: counter(
            "rollcall_events_folded_total",
            "Records of the input log that were folded",
        ),
        changes: counters_of(
            "rollcall_changes_total",
            "Changes given, by cause",
            "cause",
            &Cause::ALL.map(Cause::name),
        ),
        kicks: counters_of(
            "rollcall_kicks_total",
            "Kicks given, by reason",
            "reason",
            &KickReason::ALL.map(KickReason::name),
        ),
        ignored: counters_of(
            "rollcall_ignored_total",
            "Events or beats without effect, by reason",
            "reason",
            &IgnoreReason::ALL.map(IgnoreReason::name),
        ),
        malformed: counter("rollcall_malformed_total", "Records put into quarantine"),
        commits: counter("rollcall_commits_total", "Commits of outputs and position"),
        committed_changes: counter("rollcall_committed_changes_total", "Changes in those commits"),
        ticks: counter("rollcall_ticks_total", "Ticks appended to quiet partitions"),
        lag: gauges(
            "rollcall_lag_records",
            "Offsets between the end of the input log and what is applied",
        ),
        users_in_memory: gauges("rollcall_users_in_memory", "Users held in memory"),
        store_commit_seconds: add(
            &registry,
            Histogram::with_opts(
                HistogramOpts::new("rollcall_store_commit_seconds", "Time that a commit of the store took")
                    .buckets(vec![0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0]),
            )
            .expect(VALID),
        ),
        appended: counter(
            "rollcall_events_appended_total",
            "Events accepted over HTTP and durable",
        ),
        followers: add(
            &registry,
            prometheus::IntGauge::new("rollcall_followers", "Open subscriptions to changes or kicks").expect(VALID),
        ),
        checkpoint: gauges(
            "rollcall_checkpoint_offset",
            "The next offset to be folded in the last checkpoint published",
        ),
        checkpoint_failures: counter(
            "rollcall_checkpoint_failures_total",
            "Checkpoints that could not be published",
        ),
        registry_failures: counter(
            "rollcall_registry_failures_total",
            "Times that the schema registry did not answer and a partition waited",
        ),
        gateway_connections: add(
            &registry,
            prometheus::IntGauge::new("rollcall_gateway_connections", "Open connections of clients").expect(VALID),
        ),
        gateway_refused: counters(
            "rollcall_gateway_refused_total",
            "Connections that were not let in, by reason",
            "reason",
        ),
        gateway_closed: counters(
            "rollcall_gateway_closed_total",
            "Connections that ended, by how",
            "reason",
        ),
        gateway_kicks: counters(
            "rollcall_gateway_kicks_total",
            "Connections closed because the engine said so, by reason",
            "reason",
        ),
        gateway_beats: counter(
            "rollcall_gateway_beats_total",
            "Heartbeats published, one a connection and window",
        ),
        gateway_beat_records: counter(
            "rollcall_gateway_beat_records_total",
            "Records that they were published in",
        ),
        gateway_endings_refused: counter(
            "rollcall_gateway_endings_refused_total",
            "Disconnects and logouts that neither the log nor the queue took",
        ),
        registry,
    }
});

pub fn folded(records: usize) {
    METRICS.folded.inc_by(records as u64);
}

fn count(counters: &[IntCounter], number: usize) {
    if let Some(counter) = counters.get(number) {
        counter.inc();
    }
}

pub fn change(cause: Cause) {
    count(&METRICS.changes, cause as usize);
}

pub fn kick(reason: KickReason) {
    count(&METRICS.kicks, reason as usize);
}

pub fn ignored(reason: IgnoreReason) {
    count(&METRICS.ignored, reason as usize);
}

pub fn malformed() {
    METRICS.malformed.inc();
}

pub fn committed(changes: usize) {
    METRICS.commits.inc();
    METRICS.committed_changes.inc_by(changes as u64);
}

pub fn tick() {
    METRICS.ticks.inc();
}

pub fn partition(partition: u32, lag: u64, users_in_memory: usize) {
    let label = partition.to_string();
    METRICS.lag.with_label_values(&[&label]).set(lag as i64);
    METRICS
        .users_in_memory
        .with_label_values(&[&label])
        .set(users_in_memory as i64);
}

pub fn store_commit(seconds: f64) {
    METRICS.store_commit_seconds.observe(seconds);
}

pub fn appended(events: usize) {
    METRICS.appended.inc_by(events as u64);
}

/// One more, or one less, open subscription.
pub fn followers(difference: i64) {
    METRICS.followers.add(difference);
}

pub fn checkpoint(partition: u32, next: u64) {
    let label = partition.to_string();
    METRICS.checkpoint.with_label_values(&[&label]).set(next as i64);
}

pub fn checkpoint_failed() {
    METRICS.checkpoint_failures.inc();
}

pub fn registry_failed() {
    METRICS.registry_failures.inc();
}

/// One more, or one less, open connection of a client.
pub fn gateway_connections(difference: i64) {
    METRICS.gateway_connections.add(difference);
}

pub fn gateway_refused(reason: &str) {
    METRICS.gateway_refused.with_label_values(&[reason]).inc();
}

pub fn gateway_closed(reason: &str) {
    METRICS.gateway_closed.with_label_values(&[reason]).inc();
}

pub fn gateway_kick(reason: KickReason) {
    METRICS.gateway_kicks.with_label_values(&[reason.name()]).inc();
}

pub fn gateway_beats(beats: usize, records: usize) {
    METRICS.gateway_beats.inc_by(beats as u64);
    METRICS.gateway_beat_records.inc_by(records as u64);
}

pub fn gateway_endings_refused(endings: usize) {
    METRICS.gateway_endings_refused.inc_by(endings as u64);
}

/// Everything in Prometheus' text format.
pub fn text() -> String {
    let mut text = Vec::new();
    match TextEncoder::new().encode(&METRICS.registry.gather(), &mut text) {
        Ok(()) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => format!("# {error}\n"),
    }
}
