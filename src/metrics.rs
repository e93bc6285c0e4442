//! Every metric, each with a function of its own. No other file accesses the registry.

mod partitions;

pub use partitions::Figures;

use crate::presence::change::{Cause, IgnoreReason, KickReason};
use crate::version;
use partitions::Partitions;
use prometheus::{
    Encoder, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGaugeVec, Opts, Registry, TextEncoder,
};
use std::sync::{LazyLock, Mutex, PoisonError};

struct Metrics {
    registry: Registry,
    folded: IntCounter,
    /// These three are indexed by number: finding a counter by its label would take a considerable part of the fold's
    /// time.
    changes: Vec<IntCounter>,
    kicks: Vec<IntCounter>,
    ignored: Vec<IntCounter>,
    malformed: IntCounterVec,
    commits: IntCounter,
    committed_changes: IntCounter,
    reconciled: IntCounterVec,
    audit_verified: IntGaugeVec,
    audit_differences: IntCounterVec,
    lake_behind_seconds: prometheus::GaugeVec,
    lake_rows: IntGaugeVec,
    lake_files: IntGaugeVec,
    incidents: IntCounter,
    incident_devices: IntCounter,
    incident_late_changes: IntCounter,
    incident_open: prometheus::IntGauge,
    incidents_behind_seconds: prometheus::Gauge,
    ticks: IntCounter,
    partitions: Mutex<Partitions>,
    /// Held while metrics are gathered, so that no reader sees sums that another one is about to reset.
    gathering: Mutex<()>,
    store_commit_seconds: Histogram,
    append_seconds: Histogram,
    change_seconds: Histogram,
    query_seconds: Histogram,
    appended: IntCounter,
    partitions_of_log: prometheus::IntGauge,
    append_failures: IntCounter,
    log_writable: prometheus::IntGauge,
    followers: prometheus::IntGauge,
    cache_bytes: IntGaugeVec,
    questions_refused: IntCounter,
    spans: IntCounterVec,
    checkpoint_failures: IntCounter,
    registry_failures: IntCounter,
    schemas_forgotten: IntCounter,
    gateway_connections: prometheus::IntGauge,
    gateway_refused: IntCounterVec,
    gateway_closed: IntCounterVec,
    gateway_kicks: IntCounterVec,
    gateway_beats: IntCounter,
    gateway_beat_records: IntCounter,
    gateway_endings_refused: IntCounter,
    task_failures: IntCounterVec,
    kafka_clients: prometheus::IntGauge,
    kafka_clients_given_up: IntCounterVec,
    event_offset_gaps: IntCounter,
    standby_ready: IntGaugeVec,
    standby_lag: IntGaugeVec,
    standby_answers: IntCounter,
    certificate_expires: IntGaugeVec,
    http_handshakes_failed: IntCounterVec,
    oidc_failures: IntCounter,
    oidc_keys_fetched: IntGaugeVec,
}

/// Upper bounds of the latency histograms, in seconds.
const LATENCIES: [f64; 14] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];
/// Why records are malformed, and the usual reasons why connections are refused and end. Their counters start at 0, so
/// that the first one counts as an increase. Counters of other reasons appear when they are first used.
const MALFORMED: [&str; 4] = ["unreadable", "unknown_schema", "wrong_key", "wrong_partition"];
const REFUSED: [&str; 5] = [
    "bad_parameter",
    "unauthorized",
    "handshake_time",
    "tls",
    "too_many_handshakes",
];
/// Why a connection of HTTP got no TLS.
const HANDSHAKES_FAILED: [&str; 4] = ["evicted", "plain_http", "time", "tls"];
/// The ends that spans come to.
const SPANS: [&str; 3] = ["exported", "not_accepted", "queue_full"];
/// Why a client of Kafka was given up.
const GIVEN_UP: [&str; 2] = ["hung", "silent"];
/// The helper threads of an engine and the tasks of a gateway.
const TASKS: [&str; 12] = [
    "accept",
    "changes",
    "checkpoints",
    "connection",
    "disconnects",
    "heartbeats",
    "incidents",
    "kicks",
    "lease",
    "partition",
    "assignments",
    "uplink",
];
/// Why outputs were found behind the committed position.
const RECONCILED: [&str; 4] = ["position_behind", "adopted", "commit_unknown", "commit_torn"];
const CLOSED: [&str; 4] = ["gone", "silent", "replaced", "displaced"];

/// Panic message for an invalid name or label, which is a bug that every start would show.
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
    let gauges = |name: &str, help: &str, labels: &[&str]| {
        add(&registry, IntGaugeVec::new(Opts::new(name, help), labels).expect(VALID))
    };
    let seconds = |name: &str, help: &str| {
        let gauges = prometheus::GaugeVec::new(Opts::new(name, help), &["partition"]);
        add(&registry, gauges.expect(VALID))
    };
    let histogram = |name: &str, help: &str, buckets: &[f64]| {
        let options = HistogramOpts::new(name, help).buckets(buckets.to_vec());
        add(&registry, Histogram::with_opts(options).expect(VALID))
    };
    let counters_from = |name: &str, help: &str, label: &str, values: &[&str]| {
        let counters = counters(name, help, label);
        values
            .iter()
            .for_each(|value| drop(counters.with_label_values(&[value])));
        counters
    };
    #[cfg(target_os = "linux")]
    registry
        .register(Box::new(prometheus::process_collector::ProcessCollector::for_self()))
        .expect(VALID);
    let labels = ["version", "commit", "librdkafka", "rocksdb"];
    let build = gauges("rollcall_build_info", "1, with the versions of this build", &labels);
    let librdkafka = version::librdkafka();
    build
        .with_label_values(&[version::VERSION, version::COMMIT, &librdkafka, version::ROCKSDB])
        .set(1);
    Metrics {
        folded: counter(
            "rollcall_events_folded_total",
            "Records of the input log that were folded",
        ),
        changes: counters_of(
            "rollcall_changes_total",
            "Changes published, by cause",
            "cause",
            &Cause::ALL.map(Cause::name),
        ),
        kicks: counters_of(
            "rollcall_kicks_total",
            "Kicks published, by reason",
            "reason",
            &KickReason::ALL.map(KickReason::name),
        ),
        ignored: counters_of(
            "rollcall_ignored_total",
            "Events or heartbeats without effect, by reason",
            "reason",
            &IgnoreReason::ALL.map(IgnoreReason::name),
        ),
        malformed: counters_from(
            "rollcall_malformed_total",
            "Records written to the quarantine topic, by reason",
            "reason",
            &MALFORMED,
        ),
        commits: counter("rollcall_commits_total", "Commits of outputs and position"),
        committed_changes: counter("rollcall_committed_changes_total", "Changes in those commits"),
        reconciled: counters_from(
            "rollcall_reconciled_total",
            "Outputs found in the log behind the committed position, compared and not sent again, by cause",
            "cause",
            &RECONCILED,
        ),
        audit_verified: gauges(
            "rollcall_audit_verified_offset",
            "Offset before which a watch has verified all outputs",
            &["partition"],
        ),
        audit_differences: counters_from(
            "rollcall_audit_differences_total",
            "Differences between the log and its outputs that a watch has found",
            "partition",
            &[],
        ),
        lake_behind_seconds: seconds(
            "rollcall_lake_behind_seconds",
            "Age of the oldest change that no table of a lake shows yet, read or not; 0 without one",
        ),
        lake_rows: gauges("rollcall_lake_rows", "Rows of a table of a lake", &["table"]),
        lake_files: gauges("rollcall_lake_files", "Files of a table of a lake", &["table"]),
        incidents: counter(
            "rollcall_incidents_total",
            "Incidents that this node has found: many devices lost their link at once",
        ),
        incident_devices: counter(
            "rollcall_incident_devices_total",
            "Devices that lost their link in incidents that this node has found",
        ),
        incident_late_changes: counter(
            "rollcall_incident_late_changes_total",
            "Changes that came after their second was searched for incidents",
        ),
        incident_open: add(
            &registry,
            prometheus::IntGauge::new(
                "rollcall_incident_open",
                "1 while an incident is under way that this node will write when it is over",
            )
            .expect(VALID),
        ),
        incidents_behind_seconds: add(
            &registry,
            prometheus::Gauge::new(
                "rollcall_incidents_behind_seconds",
                "How far behind the clock the search for incidents is; 0 where another node searches",
            )
            .expect(VALID),
        ),
        ticks: counter("rollcall_ticks_total", "Ticks appended to quiet partitions"),
        partitions: Mutex::new(Partitions {
            reported: Default::default(),
            lag: gauges(
                "rollcall_lag_records",
                "Offsets between the end of the input log and what is applied",
                &["partition"],
            ),
            lag_seconds: seconds(
                "rollcall_lag_seconds",
                "Seconds from log time to this machine's clock while there are records to fold, else 0",
            ),
            log_time_age: seconds(
                "rollcall_log_time_age_seconds",
                "Seconds from log time, which the last record set, to this machine's clock; 0 if log time is ahead",
            ),
            users_in_memory: gauges("rollcall_users_in_memory", "Users held in memory", &["partition"]),
            checkpoint: gauges(
                "rollcall_checkpoint_offset",
                "Applied position (next offset to be folded) of the last published checkpoint",
                &["partition"],
            ),
            time_ahead: gauges(
                "rollcall_log_time_ahead_seconds",
                "How far log time is ahead of this machine's clock",
                &["partition"],
            ),
            state: gauges(
                "rollcall_partition_state",
                "1 for the state that each partition of this process is in",
                &["partition", "state"],
            ),
            held: gauges(
                "rollcall_held_by_transaction_seconds",
                "Seconds for which a publisher's open transaction has blocked the partition; 0 if none does",
                &["partition"],
            ),
            overdue: gauges(
                "rollcall_deadline_overdue_seconds",
                "For how long the partition's next deadline has been due; 0 if none is",
                &["partition"],
            ),
            users: gauges(
                "rollcall_users",
                "Users by status, in the partitions of this process",
                &["status"],
            ),
            devices: gauges(
                "rollcall_devices",
                "Devices by platform and status, in the partitions of this process; offline ones are not counted",
                &["platform", "status"],
            ),
        }),
        gathering: Mutex::new(()),
        store_commit_seconds: histogram(
            "rollcall_store_commit_seconds",
            "Duration of a store commit",
            &[0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0],
        ),
        append_seconds: histogram(
            "rollcall_append_seconds",
            "Time from appending events until they are durable",
            &LATENCIES,
        ),
        change_seconds: histogram(
            "rollcall_change_seconds",
            "Time from a record until the changes that it caused are committed; one value per commit, its oldest change",
            &LATENCIES,
        ),
        query_seconds: histogram(
            "rollcall_query_seconds",
            "Time until the engine answered a question about users",
            &LATENCIES,
        ),
        appended: counter(
            "rollcall_events_appended_total",
            "Events accepted over HTTP and durable",
        ),
        partitions_of_log: add(
            &registry,
            prometheus::IntGauge::new(
                "rollcall_partitions",
                "Partitions of the log on all processes together; 0 in a process without an engine",
            )
            .expect(VALID),
        ),
        append_failures: counter(
            "rollcall_append_failures_total",
            "Appends of events that the log refused or failed to make durable",
        ),
        log_writable: {
            let gauge = prometheus::IntGauge::new("rollcall_log_writable", "1 if the log accepts events, else 0");
            let gauge = add(&registry, gauge.expect(VALID));
            // The log counts as writable until an append fails.
            gauge.set(1);
            gauge
        },
        followers: add(
            &registry,
            prometheus::IntGauge::new("rollcall_followers", "Open subscriptions to changes or kicks").expect(VALID),
        ),
        cache_bytes: gauges(
            "rollcall_cache_bytes",
            "Memory of what is kept because it is new or was read lately, and has a bound, by what it is kept for",
            &["cache"],
        ),
        questions_refused: counter(
            "rollcall_questions_refused_total",
            "Questions that were refused because too many waited for the partition or for another node",
        ),
        spans: counters_from(
            "rollcall_spans_total",
            "Spans of traced events that ended, by whether they were exported",
            "result",
            &SPANS,
        ),
        checkpoint_failures: counter(
            "rollcall_checkpoint_failures_total",
            "Checkpoints whose publication failed",
        ),
        registry_failures: counter(
            "rollcall_registry_failures_total",
            "Times that a partition waited because the schema registry did not respond",
        ),
        schemas_forgotten: counter(
            "rollcall_registry_schemas_forgotten_total",
            "Schemas of the registry that were forgotten to bound memory; they are looked up again when a record names them",
        ),
        gateway_connections: add(
            &registry,
            prometheus::IntGauge::new("rollcall_gateway_connections", "Open connections of clients").expect(VALID),
        ),
        gateway_refused: counters_from(
            "rollcall_gateway_refused_total",
            "Connections that were refused, by reason",
            "reason",
            &REFUSED,
        ),
        gateway_closed: counters_from(
            "rollcall_gateway_closed_total",
            "Connections that ended, by reason",
            "reason",
            &CLOSED,
        ),
        gateway_kicks: counters_from(
            "rollcall_gateway_kicks_total",
            "Connections closed by a kick of the engine, by reason",
            "reason",
            &KickReason::ALL.map(KickReason::name),
        ),
        gateway_beats: counter(
            "rollcall_gateway_beats_total",
            "Heartbeats published, at most one per connection and window",
        ),
        gateway_beat_records: counter(
            "rollcall_gateway_beat_records_total",
            "Records in which heartbeats were published",
        ),
        gateway_endings_refused: counter(
            "rollcall_gateway_endings_refused_total",
            "Disconnects and logouts that neither the log nor the queue accepted",
        ),
        task_failures: counters_from(
            "rollcall_task_failures_total",
            "Helper threads and tasks that ended unexpectedly",
            "task",
            &TASKS,
        ),
        kafka_clients: add(
            &registry,
            prometheus::IntGauge::new("rollcall_kafka_clients", "Clients of Kafka that this process has").expect(VALID),
        ),
        kafka_clients_given_up: counters_from(
            "rollcall_kafka_clients_given_up_total",
            "Clients of Kafka that were replaced because a call did not return, or because they read nothing",
            "reason",
            &GIVEN_UP,
        ),
        event_offset_gaps: counter(
            "rollcall_event_offset_gaps_total",
            "Gaps in the offsets of events, which transactions of publishers leave; each was read twice",
        ),
        standby_ready: gauges(
            "rollcall_standby_ready",
            "1 if this process can answer as the standby of the partition, else 0",
            &["partition"],
        ),
        standby_lag: gauges(
            "rollcall_standby_lag_records",
            "Offsets that the owner has committed and the standby has not folded",
            &["partition"],
        ),
        standby_answers: counter(
            "rollcall_standby_answers_total",
            "Users answered for by a standby of this process",
        ),
        certificate_expires: gauges(
            "rollcall_certificate_expires_timestamp_seconds",
            "When the TLS certificate of a listener expires, in seconds since 1970",
            &["listener"],
        ),
        http_handshakes_failed: counters_from(
            "rollcall_http_handshakes_failed_total",
            "Connections of the HTTP interface whose TLS handshake failed, by reason",
            "reason",
            &HANDSHAKES_FAILED,
        ),
        oidc_failures: counter(
            "rollcall_oidc_failures_total",
            "How often the keys of the issuer of tokens could not be fetched",
        ),
        oidc_keys_fetched: gauges(
            "rollcall_oidc_keys_fetched_timestamp_seconds",
            "When the keys of the issuer of tokens were fetched last, in seconds since 1970; 0 before the first time",
            &["issuer"],
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

pub fn malformed(reason: &'static str) {
    METRICS.malformed.with_label_values(&[reason]).inc();
}

pub fn committed(changes: usize) {
    METRICS.commits.inc();
    METRICS.committed_changes.inc_by(changes as u64);
}

/// Outputs were in the log already, though its position did not say so.
pub fn reconciled(cause: &'static str, outputs: u64) {
    METRICS.reconciled.with_label_values(&[cause]).inc_by(outputs);
}

/// Everything before this offset is what the events say.
pub fn audit_verified(partition: u32, offset: u64) {
    let label = partition.to_string();
    let verified = METRICS.audit_verified.with_label_values(&[&label]);
    verified.set(i64::try_from(offset).unwrap_or(i64::MAX));
    // It is shown as 0 from the beginning.
    METRICS.audit_differences.with_label_values(&[&label]);
}

/// A partition is not what its events say.
pub fn audit_difference(partition: u32) {
    let differences = &METRICS.audit_differences;
    differences.with_label_values(&[&partition.to_string()]).inc();
}

/// The oldest change of a partition that no table of a lake shows yet is so old.
pub fn lake_behind(partition: u32, ms: u64) {
    let behind = &METRICS.lake_behind_seconds;
    let behind = behind.with_label_values(&[&partition.to_string()]);
    behind.set(ms as f64 / 1_000.0);
}

/// What a table of a lake has.
pub fn lake_table(table: &str, rows: u64, files: usize) {
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    METRICS.lake_rows.with_label_values(&[table]).set(number(rows));
    METRICS.lake_files.with_label_values(&[table]).set(number(files as u64));
}

/// An incident in which so many devices lost their link was found and written.
pub fn incident(devices: u64) {
    METRICS.incidents.inc();
    METRICS.incident_devices.inc_by(devices);
}

/// A change came after its second was searched for incidents.
pub fn incident_change_late() {
    METRICS.incident_late_changes.inc();
}

/// Incidents are looked for by this node: how far behind the clock, and whether one is under way.
pub fn incidents_looked_for(behind_ms: u64, is_open: bool) {
    METRICS.incidents_behind_seconds.set(behind_ms as f64 / 1_000.0);
    METRICS.incident_open.set(i64::from(is_open));
}

/// Another node looks for incidents.
pub fn incidents_not_looked_for() {
    incidents_looked_for(0, false);
}

pub fn tick() {
    METRICS.ticks.inc();
}

fn partitions() -> std::sync::MutexGuard<'static, Partitions> {
    METRICS.partitions.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reports the figures of a partition of this process.
pub fn partition(partition: u32, figures: Figures) {
    partitions().report(partition, figures);
}

/// Sets the number of partitions of the log, on all processes together.
pub fn partitions_of_log(count: u32) {
    METRICS.partitions_of_log.set(count.into());
}

/// Reports whether a standby of this process can answer, and how many offsets that the owner has committed it has not
/// folded yet. `None`: not known.
pub fn standby(partition: u32, is_ready: bool, lag: Option<u64>) {
    let label = partition.to_string();
    METRICS.standby_ready.with_label_values(&[&label]).set(is_ready.into());
    if let Some(lag) = lag {
        let lag = i64::try_from(lag).unwrap_or(i64::MAX);
        METRICS.standby_lag.with_label_values(&[&label]).set(lag);
    }
}

/// Removes the metrics of a standby that this process no longer has.
pub fn standby_gone(partition: u32) {
    let label = partition.to_string();
    for gauges in [&METRICS.standby_ready, &METRICS.standby_lag] {
        // An error means that the gauge did not exist.
        let _ = gauges.remove_label_values(&[&label]);
    }
}

/// A standby of this process has answered for users, in place of the owner.
pub fn standby_answered(users: usize) {
    METRICS.standby_answers.inc_by(users as u64);
}

/// Removes the metrics of a partition that this process no longer owns.
pub fn partition_gone(partition: u32) {
    partitions().remove(partition);
}

pub fn store_commit(seconds: f64) {
    METRICS.store_commit_seconds.observe(seconds);
}

/// Records how long an append took until its events were durable.
pub fn append(seconds: f64) {
    METRICS.append_seconds.observe(seconds);
}

/// Records the time from the oldest record that caused a change in a commit until that commit.
pub fn change_committed(seconds: f64) {
    METRICS.change_seconds.observe(seconds);
}

/// Records how long a query about users took.
pub fn query(seconds: f64) {
    METRICS.query_seconds.observe(seconds);
}

pub fn appended(events: usize) {
    METRICS.appended.inc_by(events as u64);
}

pub fn append_failed() {
    METRICS.append_failures.inc();
}

pub fn log_writable(is_writable: bool) {
    METRICS.log_writable.set(is_writable.into());
}

pub fn log_time_ahead(partition: u32, ms: u64) {
    partitions().time_ahead(partition, ms / 1_000);
}

/// A question was refused because too many waited for its partition, or for another node.
pub fn question_refused() {
    METRICS.questions_refused.inc();
}

/// Counts spans that were exported or dropped.
pub fn spans(result: &'static str, count: usize) {
    METRICS.spans.with_label_values(&[result]).inc_by(count as u64);
}

/// Changes the number of open subscriptions by 1 or -1.
pub fn followers(difference: i64) {
    METRICS.followers.add(difference);
}

/// Sets how much memory one of the caches takes.
pub fn cache_bytes(cache: &str, bytes: usize) {
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    METRICS.cache_bytes.with_label_values(&[cache]).set(bytes);
}

pub fn checkpoint(partition: u32, next: u64) {
    partitions().checkpointed(partition, next);
}

pub fn checkpoint_failed() {
    METRICS.checkpoint_failures.inc();
}

pub fn registry_failed() {
    METRICS.registry_failures.inc();
}

pub fn schemas_forgotten(schemas: u64) {
    METRICS.schemas_forgotten.inc_by(schemas);
}

/// Changes the number of open client connections by 1 or -1.
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

/// Sets when the certificate of a listener expires, in seconds since 1970.
pub fn certificate_expires(listener: &str, seconds: i64) {
    METRICS.certificate_expires.with_label_values(&[listener]).set(seconds);
}

/// Counts a connection of HTTP that got no TLS.
pub fn http_handshake_failed(reason: &str) {
    METRICS.http_handshakes_failed.with_label_values(&[reason]).inc();
}

/// Counts an attempt to fetch an issuer's keys that failed.
pub fn oidc_failed() {
    METRICS.oidc_failures.inc();
}

/// Sets when an issuer's keys were fetched last, in seconds since 1970; 0 if they never were.
pub fn oidc_keys_fetched(issuer: &str, seconds: u64) {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    METRICS.oidc_keys_fetched.with_label_values(&[issuer]).set(seconds);
}

/// Counts a task that ended unexpectedly.
pub fn task_failed(task: &str) {
    METRICS.task_failures.with_label_values(&[task]).inc();
}

/// Counts a client of Kafka that was made.
pub fn kafka_client_made() {
    METRICS.kafka_clients.inc();
}

/// Counts a client of Kafka that is no longer used.
pub fn kafka_client_gone() {
    METRICS.kafka_clients.dec();
}

/// Counts a client of Kafka that was given up.
pub fn kafka_client_given_up(reason: &str) {
    METRICS.kafka_clients_given_up.with_label_values(&[reason]).inc();
}

/// Counts gaps in the offsets of events.
pub fn event_offset_gaps(gaps: u64) {
    METRICS.event_offset_gaps.inc_by(gaps);
}

/// Returns all metrics in Prometheus' text format.
pub fn text() -> String {
    let mut text = Vec::new();
    let gathered = {
        let _alone = METRICS.gathering.lock().unwrap_or_else(PoisonError::into_inner);
        partitions().sum();
        METRICS.registry.gather()
    };
    match TextEncoder::new().encode(&gathered, &mut text) {
        Ok(()) => String::from_utf8_lossy(&text).into_owned(),
        Err(error) => format!("# {error}\n"),
    }
}
