//! The permissions that `rollcall topics acls` prints, with a broker that asks for them.

use super::broker::Cluster;
use super::server::{ANYWHERE, Server, rollcall, wait_until};
use super::{PATIENCE, fine, topics};
use rdkafka::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rollcall::schema::avro;
use serde_json::json;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc::{Sender, channel};
use std::time::Duration;

const USERS: [(&str, &str); 3] = [
    ("engine", "e-secret"),
    ("publisher", "p-secret"),
    ("reader", "r-secret"),
];

/// Returns a port P such that P, P + 50 (the controller's) and P + 99 are free.
fn free_port() -> u16 {
    let is_free = |port: u16| TcpListener::bind(("127.0.0.1", port)).is_ok();
    let ports = (33_000..40_000).step_by(7);
    ports
        .into_iter()
        .skip(std::process::id() as usize % 500)
        .find(|port| is_free(*port) && is_free(port + 50) && is_free(port + 99))
        .expect("some port is free")
}

/// Settings of a client that comes as this user.
fn login(user: &str) -> Vec<(&'static str, String)> {
    let secret = USERS.iter().find(|(name, _)| *name == user).expect("it is a user").1;
    vec![
        ("security.protocol", "SASL_PLAINTEXT".to_owned()),
        ("sasl.mechanism", "PLAIN".to_owned()),
        ("sasl.username", user.to_owned()),
        ("sasl.password", secret.to_owned()),
    ]
}

fn client(user: &str, bootstrap: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", bootstrap);
    for (key, value) in login(user) {
        config.set(key, value);
    }
    config
}

struct Delivered(Sender<Result<(), KafkaError>>);

impl rdkafka::ClientContext for Delivered {}

impl ProducerContext for Delivered {
    type DeliveryOpaque = ();

    fn delivery(&self, delivered: &DeliveryResult<'_>, (): ()) {
        let result = delivered.as_ref().map(drop).map_err(|(error, _)| error.clone());
        let _ = self.0.send(result);
    }
}

/// Publishes a record as this user. Returns what the broker says.
fn publish(user: &str, bootstrap: &str, topic: &str, value: &[u8]) -> Result<(), RDKafkaErrorCode> {
    let (sender, delivered) = channel();
    let mut config = client(user, bootstrap);
    config
        .set("message.timeout.ms", "20000")
        // Who may write nowhere gets no id of an idempotent producer, and then hears nothing of the topic.
        .set("enable.idempotence", (user == "publisher").to_string());
    let producer: ThreadedProducer<Delivered> = config.create_with_context(Delivered(sender)).expect("a producer");
    let record = BaseRecord::<str, [u8]>::to(topic).partition(0).payload(value);
    producer.send(record).map_err(|(error, _)| error).expect("taken");
    let _ = producer.flush(PATIENCE);
    let result = delivered.recv().expect("it is delivered or not");
    result.map_err(|error| error.rdkafka_error_code().expect("the broker's word"))
}

/// Reads the first record of a topic as this user, in the group `readers`.
fn read(user: &str, bootstrap: &str, topic: &str) -> Result<Vec<u8>, RDKafkaErrorCode> {
    let mut config = client(user, bootstrap);
    config.set("group.id", "readers").set("auto.offset.reset", "earliest");
    let consumer: BaseConsumer = config.create().expect("a consumer");
    consumer.subscribe(&[topic]).expect("subscribed");
    // A poll also returns for the group's own affairs.
    for _ in 0..120 {
        match consumer.poll(Duration::from_millis(500)) {
            Some(Ok(record)) => return Ok(record.payload().unwrap_or_default().to_vec()),
            Some(Err(error)) => return Err(error.rdkafka_error_code().expect("the broker's word")),
            None => {}
        }
    }
    panic!("neither a record nor an error of {topic}");
}

/// Runs the commands that are printed for a role.
fn allow(admin: &str, role: &str) {
    let principal = format!("User:{role}");
    let more = [
        "--principal",
        &principal,
        "--role",
        role,
        "--group",
        "engines",
        "--consumer-group",
        "readers",
    ];
    let commands = fine(topics("acls", admin, "guarded", &more)).join("\n");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka");
    let function = r#"set -e; kafka-acls.sh() { "$KAFKA" java org.apache.kafka.tools.AclCommand "$@"; }"#;
    let output = Command::new("bash")
        .args(["-c", &format!("{function}\n{commands}")])
        .env("KAFKA", script)
        .output()
        .expect("bash runs");
    assert!(output.status.success(), "{commands}: {output:?}");
}

#[test]
fn the_permissions_that_are_printed_are_enough_and_nobody_else_may_write_outputs() {
    let port = free_port();
    let users: Vec<String> = USERS
        .iter()
        .map(|(name, secret)| format!("user_{name}=\"{secret}\""))
        .collect();
    let guarded = port + 99;
    let settings = [
        format!(
            "listeners=PLAINTEXT://127.0.0.1:{port},SASL://127.0.0.1:{guarded},CONTROLLER://127.0.0.1:{}",
            port + 50
        ),
        format!("advertised.listeners=PLAINTEXT://127.0.0.1:{port},SASL://127.0.0.1:{guarded}"),
        "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,SASL:SASL_PLAINTEXT".to_owned(),
        "inter.broker.listener.name=PLAINTEXT".to_owned(),
        "listener.name.sasl.sasl.enabled.mechanisms=PLAIN".to_owned(),
        format!(
            "listener.name.sasl.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required {};",
            users.join(" ")
        ),
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer".to_owned(),
        // Clients without SASL.
        "super.users=User:ANONYMOUS".to_owned(),
    ];
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    let cluster = Cluster::start_with(1, &settings, &["--port", &port.to_string()]);
    let admin = cluster.bootstrap.as_str();
    let bootstrap = format!("127.0.0.1:{guarded}");
    fine(topics(
        "create",
        admin,
        "guarded",
        &["--partitions", "1", "--replication", "1"],
    ));
    let (events, changes) = ("guarded.events", "guarded.changes");
    let refused = publish("publisher", &bootstrap, events, b"x");
    assert_eq!(refused, Err(RDKafkaErrorCode::TopicAuthorizationFailed));

    for (role, _) in USERS {
        allow(admin, role);
    }
    let data = tempfile::tempdir().expect("a directory");
    let mut arguments = vec!["--kafka".to_owned(), bootstrap.clone()];
    arguments.extend(["--topic-prefix", "guarded", "--group", "engines"].map(str::to_owned));
    for (key, value) in login("engine") {
        arguments.extend(["--kafka-set".to_owned(), format!("{key}={value}")]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let server = Server::start(data.path(), ANYWHERE, &arguments, &[]);
    // Changes, kicks and states are written, and a malformed record.
    let connect = |conn: u64| {
        json!({"type": "connect", "user": "alice", "platform": "web", "device": "tab", "gateway": "g", "epoch": 1,
               "conn": conn, "intent": "login"})
    };
    server.publish("", &[connect(1), connect(2)]);
    assert_eq!(publish("publisher", &bootstrap, events, b"malformed"), Ok(()));
    wait_until("alice is online", || {
        server.get("/v1/users/alice", "").1.contains("\"online\"")
    });
    let quarantined = || {
        let output = rollcall(&[
            "quarantine",
            "list",
            "--json",
            "--kafka",
            admin,
            "--topic-prefix",
            "guarded",
        ])
        .output();
        String::from_utf8_lossy(&output.expect("it runs").stdout).contains("begins neither")
    };
    wait_until("the malformed record is in quarantine", quarantined);

    let change = read("reader", &bootstrap, changes).expect("a reader may read changes");
    assert!(avro::decode_change(&change).is_ok_and(|change| &*change.user == "alice"));
    assert!(read("reader", &bootstrap, "guarded.kicks").is_ok());
    for (user, topic) in [("publisher", changes), ("reader", events), ("reader", changes)] {
        let written = publish(user, &bootstrap, topic, b"x");
        assert_eq!(
            written,
            Err(RDKafkaErrorCode::TopicAuthorizationFailed),
            "{user} {topic}"
        );
    }
    let read_events = read("reader", &bootstrap, events);
    assert_eq!(read_events, Err(RDKafkaErrorCode::TopicAuthorizationFailed));
}
