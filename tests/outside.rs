//! The services that an engine uses besides log and disk, in the real process: a schema registry and checkpoints.

#[path = "kafka/broker.rs"]
mod broker;
#[path = "outside/engine.rs"]
mod engine;
#[path = "registry/servers.rs"]
mod servers;
#[path = "outside/stacks.rs"]
mod stacks;

use broker::Cluster;
use engine::{Engine, rollcall, wait_until};
use rdkafka::ClientConfig;
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rollcall::presence::event::Event;
use rollcall::schema::avro::{self, Schema};
use serde_json::{Value, json};
use servers::{Canned, Real};
use std::path::Path;
use std::time::Duration;

fn connect(user: &str, conn: u64) -> Value {
    json!({"type": "connect", "user": user, "platform": "android", "device": "a1", "gateway": "g1", "epoch": 1,
           "conn": conn, "intent": "login"})
}

/// What `rollcall log` prints.
#[track_caller]
fn printed(topic: &str, data: &Path, more: &[&str]) -> Result<Vec<Value>, String> {
    let output = rollcall(&["log", topic, "--data"])
        .arg(data)
        .args(more)
        .output()
        .expect("it runs");
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let text = String::from_utf8(output.stdout).expect("text");
    Ok(text
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect())
}

/// Commands that read events, and would take all of them for malformed.
const WITHOUT_A_REGISTRY: [&[&str]; 10] = [
    &["audit", "verify"],
    &["audit", "why", "alice"],
    &["audit", "history", "alice"],
    &["audit", "at", "2026-01-01T00:00:00Z"],
    &["audit", "incidents"],
    &["audit", "export", "--events", "--out", "export"],
    &["audit", "what-if", "--policy", "policy.json"],
    &["policy", "history"],
    &["quarantine", "list"],
    &["reshard", "--to-data", "other", "--partitions", "2", "--dry-run"],
];

#[test]
fn with_a_registry_everything_is_framed_for_it_and_read_by_it_and_it_may_die() {
    let registry = Real::start();
    let directory = tempfile::tempdir().expect("a directory");
    let elsewhere = tempfile::tempdir().expect("a directory");
    std::fs::write(elsewhere.path().join("policy.json"), "{}").expect("written");
    let flags = ["--registry", &registry.url, "--registry-register", "--partitions", "1"];
    let engine = Engine::start(directory.path(), &flags).ready();
    let at = engine.publish(&json!([connect("alice", 1), {"type": "tick"}]));
    let offset = at["appended"][0]["offset"]
        .as_u64()
        .or(at["results"][0]["offset"].as_u64());
    engine.user_at("alice", offset.unwrap_or_else(|| panic!("{at}")));
    let (status, changes) = engine.get("/v1/users/alice/changes");
    assert_eq!(status, 200);
    assert!(changes.contains(r#""cause":"login""#), "{changes}");

    let with = ["--registry", registry.url.as_str()];
    let changes = printed("changes", directory.path(), &with).expect("printed");
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0]["user"], "alice");
    let events = printed("events", directory.path(), &with).expect("printed");
    assert!(events.iter().all(|event| event["type"] != "malformed"), "{events:?}");
    // A reader without a registry cannot read them, and says so.
    let error = printed("changes", directory.path(), &[]).expect_err("refused");
    assert!(error.contains("no registry is configured"), "{error}");
    for asked in WITHOUT_A_REGISTRY {
        let mut command = rollcall(asked);
        command
            .arg("--data")
            .arg(directory.path())
            .current_dir(elsewhere.path());
        let output = command.output().expect("it runs");
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{asked:?}: {error}");
        let says = error.contains("use a schema registry") && error.contains("--registry URL");
        assert!(says, "{asked:?}: {error}");
        command.args(with);
        let output = command.output().expect("it runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{asked:?} with a registry: {error}");
    }

    drop(registry);
    let at = engine.publish(&json!([connect("bob", 2)]));
    let offset = at["appended"][0]["offset"]
        .as_u64()
        .or(at["results"][0]["offset"].as_u64());
    engine.user_at("bob", offset.unwrap_or_else(|| panic!("{at}")));
    engine.stop();
}

/// A value framed for the registry with an id that the engine does not know yet.
fn framed(id: u32) -> Vec<u8> {
    let mut value = Vec::new();
    avro::frame_with_id(id, &mut value);
    avro::write_event_datum(&Event::Tick, &mut value);
    value
}

fn append(bootstrap: &str, topic: &str, value: &[u8]) {
    append_with(bootstrap, topic, OwnedHeaders::new(), value);
}

fn append_with(bootstrap: &str, topic: &str, headers: OwnedHeaders, value: &[u8]) {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()
        .expect("a producer");
    let record = BaseRecord::<(), [u8]>::to(topic)
        .partition(0)
        .headers(headers)
        .payload(value);
    producer.send(record).map_err(|(error, _)| error).expect("taken");
    producer.flush(Duration::from_secs(30)).expect("written");
}

/// The first partition, as `/v1/stats` has it.
fn partition(engine: &Engine) -> Value {
    engine.json("/v1/stats")["partitions"][0].clone()
}

#[test]
fn on_kafka_a_partition_waits_for_the_registry_and_is_restored_from_a_checkpoint() {
    let cluster = Cluster::start(1, &[]);
    let kafka = ["--kafka", cluster.bootstrap.as_str()];
    for prefix in ["reg", "ckpt"] {
        let mut create = vec!["topics", "create", "--partitions", "1", "--topic-prefix", prefix];
        create.extend(kafka);
        let created = rollcall(&create).output().expect("it runs");
        assert!(created.status.success(), "{created:?}");
    }
    a_partition_waits_for_a_registry_that_does_not_answer(&cluster);
    a_new_machine_starts_from_a_checkpoint_when_the_log_is_cut(&cluster);
}

#[test]
fn who_publishes_with_a_schema_of_another_stack_is_online_or_is_told_why() {
    stacks::each_is_online_or_is_told_why();
}

fn a_partition_waits_for_a_registry_that_does_not_answer(cluster: &Cluster) {
    let ids: Vec<String> = (1..=Schema::ALL.len())
        .map(|id| json!({ "id": id }).to_string())
        .collect();
    let answers: Vec<(&str, &str)> = ids.iter().map(|id| ("200 OK", id.as_str())).collect();
    let registry = Canned::start(&answers);
    let url = registry.url.clone();
    let directory = tempfile::tempdir().expect("a directory");
    let kafka = cluster.bootstrap.as_str();
    let engine = Engine::start(
        directory.path(),
        &[
            "--kafka",
            kafka,
            "--topic-prefix",
            "reg",
            "--group",
            "reg",
            "--registry",
            &url,
        ],
    )
    .ready();

    append(kafka, "reg.events", &framed(77));
    append(kafka, "reg.events", &framed(78));
    wait_until("it says that it waits", || {
        let (status, text) = engine.get("/readyz");
        status == 503 && text.contains("schema registry")
    });
    assert!(engine.metric("rollcall_registry_failures_total") >= 1.0);
    assert_eq!(partition(&engine)["applied"], 0, "nothing is skipped");

    let schema = json!({ "schema": Schema::Event.json() }).to_string();
    let absent = r#"{"error_code":40403,"message":"Schema 78 not found"}"#;
    let answers = [("200 OK", &*schema), ("404 Not Found", absent), ("200 OK", &schema)];
    let registry = Canned::start_at(&url, &answers);
    wait_until("it goes on", || engine.get("/readyz").0 == 200);
    wait_until("both are folded", || partition(&engine)["applied"] == 2);
    // The record with an unknown schema is malformed, the other is not.
    assert_eq!(engine.metric("rollcall_malformed_total"), 1.0);

    // The schema may be named in a header, among other headers; the last one with this name counts.
    let named = |value: &'static [u8]| Header {
        key: "__value_schema_id",
        value: Some(value),
    };
    let other = || Header {
        key: "traceparent",
        value: Some("00-1"),
    };
    let headers = OwnedHeaders::new()
        .insert(named(&[9]))
        .insert(other())
        .insert(named(&[1; 17]));
    append_with(kafka, "reg.events", headers, &framed(0)[5..]);
    append_with(kafka, "reg.events", OwnedHeaders::new().insert(other()), &framed(77));
    wait_until("these too", || partition(&engine)["applied"] == 4);
    assert_eq!(engine.metric("rollcall_malformed_total"), 1.0);
    let asked = [
        "GET /schemas/ids/77",
        "GET /schemas/ids/78",
        "GET /schemas/guids/01010101-0101-0101-0101-010101010101",
    ];
    assert_eq!(registry.asked(), asked);
    engine.stop();
}

fn a_new_machine_starts_from_a_checkpoint_when_the_log_is_cut(cluster: &Cluster) {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().join("checkpoints");
    let url = format!("file://{}", place.display());
    let kafka = cluster.bootstrap.as_str();
    let flags = [
        "--kafka",
        kafka,
        "--topic-prefix",
        "ckpt",
        "--group",
        "ckpt",
        "--checkpoints",
        &url,
        "--checkpoint-every",
        "1s",
    ];
    let engine = Engine::start(&directory.path().join("one"), &flags).ready();
    let users: Vec<Value> = (0..200)
        .map(|user| connect(&format!("user-{user}"), user + 1))
        .collect();
    engine.publish(&json!(users));
    wait_until("all are folded", || partition(&engine)["applied"].as_u64() >= Some(200));
    wait_until("a checkpoint has them all", || {
        engine.metric("rollcall_checkpoint_offset") >= 200.0
    });
    assert_eq!(engine.metric("rollcall_checkpoint_failures_total"), 0.0);
    let known = without_time(engine.user_at("user-7", 199));
    engine.stop();

    cut(kafka, "ckpt.events", 150);
    let engine = Engine::start(&directory.path().join("two"), &flags).ready();
    assert_eq!(without_time(engine.user_at("user-7", 199)), known);
    engine.publish(&json!([connect("user-7", 1_000)]));
    wait_until("it goes on", || partition(&engine)["applied"].as_u64() >= Some(201));
    engine.stop();

    // Without any there is nothing to start from, and it says so.
    std::fs::remove_dir_all(&place).expect("removed");
    let engine = Engine::start(&directory.path().join("three"), &flags);
    wait_until("it says what is gone", || {
        let (status, text) = engine.get("/readyz");
        status == 503 && text.contains("the oldest event kept is 150")
    });
    engine.stop();
}

/// What does not depend on how far the partition is.
fn without_time(mut user: Value) -> Value {
    if let Some(user) = user.as_object_mut() {
        user.remove("as_of");
    }
    user
}

/// Drops the records of the first partition before an offset.
fn cut(bootstrap: &str, topic: &str, before: i64) {
    use rdkafka::admin::{AdminClient, AdminOptions};
    use rdkafka::client::DefaultClientContext;
    use rdkafka::{Offset, TopicPartitionList};
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()
        .expect("a client");
    let mut offsets = TopicPartitionList::new();
    offsets
        .add_partition_offset(topic, 0, Offset::Offset(before))
        .expect("an offset");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime
        .block_on(admin.delete_records(&offsets, &AdminOptions::new()))
        .expect("cut");
}
