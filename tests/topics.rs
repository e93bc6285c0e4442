//! `rollcall topics` with a real Kafka: what it creates, what it reports, and that it may be run again.

#[path = "topics/acls.rs"]
mod acls;
#[path = "kafka/broker.rs"]
mod broker;
#[path = "topics/moved.rs"]
mod moved;
mod server;

use broker::Cluster;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rollcall::log::kafka::admin;
use rollcall::log::kafka::settings::Connection;
use rollcall::presence::{Offset, Partition};
use rollcall::schema::Malformed;
use rollcall::schema::avro::{self, Quarantined};
use rollcall::topics::{QUARANTINE_FRAMING_BYTES, Topic};
use serde_json::Value;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(60);

fn topics(what: &str, bootstrap: &str, prefix: &str, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    command.args(["topics", what, "--kafka", bootstrap, "--topic-prefix", prefix]);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ROLLCALL_")) {
        command.env_remove(name);
    }
    command.args(more).output().expect("it runs")
}

#[track_caller]
fn fine(output: Output) -> Vec<String> {
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(0), "{error}");
    lines(&output.stdout)
}

/// What was printed, and the error after it.
#[track_caller]
fn refused(output: Output) -> (Vec<String>, String) {
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    (
        lines(&output.stdout),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

fn lines(bytes: &[u8]) -> Vec<String> {
    String::from_utf8_lossy(bytes).lines().map(str::to_owned).collect()
}

/// Runs one of Kafka's tools under the name that its distribution gives it.
#[track_caller]
fn tool(bootstrap: &str, name: &str, arguments: &[&str]) {
    let class = match name {
        "kafka-topics.sh" => "org.apache.kafka.tools.TopicCommand",
        "kafka-configs.sh" => "kafka.admin.ConfigCommand",
        other => panic!("{other} is not known here"),
    };
    let output = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka"))
        .args(["java", class, "--bootstrap-server", bootstrap])
        .args(arguments)
        .output()
        .expect("scripts/kafka runs");
    assert!(output.status.success(), "{name} {arguments:?}: {output:?}");
}

#[test]
fn topics_are_made_once_and_a_change_to_them_is_found_with_the_command_that_fixes_it() {
    let cluster = Cluster::start(1, &[]);
    let bootstrap = cluster.bootstrap.as_str();
    nothing_is_there_and_check_makes_nothing(bootstrap);
    made_twice_is_made_once(bootstrap);
    a_raised_number_of_partitions_is_found(bootstrap);
    what_a_broker_made_by_itself_is_found_and_fixed_as_the_sentences_say(bootstrap);
    asked_from_a_program(bootstrap);
    the_doctor_names_what_is_wrong_and_what_to_do(bootstrap);
    moved::the_log_of_one_machine_goes_on_as_topics(bootstrap);
}

/// What the doctor says is wrong: each check with what to do. Its exit status must agree.
#[track_caller]
fn wrong(bootstrap: &str, prefix: &str) -> Vec<(String, String)> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    command.args(["doctor", "--json", "--kafka", bootstrap, "--topic-prefix", prefix]);
    // Nothing listens there, which is wrong too, and not what these tests are about.
    command.args(["--data", "no-such-directory", "--url", "http://127.0.0.1:1"]);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ROLLCALL_")) {
        command.env_remove(name);
    }
    let output = command.output().expect("it runs");
    let found: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let text = |one: &Value, key: &str| one[key].as_str().unwrap_or_default().to_owned();
    assert_eq!(output.status.code(), Some(1), "{found:?}");
    let wrong = found
        .iter()
        .filter(|one| one["verdict"] == "wrong" && one["check"] != "server");
    wrong.map(|one| (text(one, "check"), text(one, "fix"))).collect()
}

/// Publishes a record and waits until the broker has it.
fn publish(producer: &BaseProducer, topic: &str, partition: i32, payload: &str) {
    let record = BaseRecord::<str, str>::to(topic).partition(partition).payload(payload);
    producer.send(record).map_err(|(error, _)| error).expect("taken");
    producer.flush(PATIENCE).expect("written");
}

fn the_doctor_names_what_is_wrong_and_what_to_do(bootstrap: &str) {
    let found = wrong(bootstrap, "sick");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, "topics");
    assert!(found[0].1.contains("rollcall topics create"), "{found:?}");
    fine(topics(
        "create",
        bootstrap,
        "sick",
        &["--partitions", "2", "--replication", "1"],
    ));
    assert_eq!(wrong(bootstrap, "sick"), []);

    // A publisher leaves a transaction open.
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .set("transactional.id", "left-open")
        .create()
        .expect("a producer");
    producer.init_transactions(PATIENCE).expect("an epoch");
    producer.begin_transaction().expect("begun");
    publish(&producer, "sick.events", 1, "of nobody");
    let found = wrong(bootstrap, "sick");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, "transactions");
    assert!(
        found[0]
            .1
            .contains("describe-producers --topic sick.events --partition 1"),
        "{found:?}"
    );
    producer.abort_transaction(PATIENCE).expect("aborted");
    assert_eq!(wrong(bootstrap, "sick"), []);

    // There are outputs, but the group has no position. Not in a transaction, whose end is visible only a moment later.
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", bootstrap)
        .create()
        .expect("a producer");
    publish(&producer, "sick.changes", 0, "a change");
    let found = wrong(bootstrap, "sick");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, "positions");
    assert!(found[0].1.contains("--adopt-tail"), "{found:?}");

    let found = wrong("127.0.0.1:1", "sick");
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0].0, "brokers");
}

fn nothing_is_there_and_check_makes_nothing(bootstrap: &str) {
    for _ in 0..2 {
        let (found, error) = refused(topics("check", bootstrap, "none", &[]));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(
            found[0].starts_with(
                "refused none.events, none.changes, none.kicks, none.quarantine, none.current, none.incidents, none.owners: "
            ),
            "{found:?}"
        );
        let fix = format!("rollcall topics create --kafka {bootstrap} --topic-prefix none");
        assert!(found[0].ends_with(&fix), "{found:?}");
        assert!(error.contains("1 problem would break the rules"), "{error}");
    }
}

fn made_twice_is_made_once(bootstrap: &str) {
    let made = fine(topics(
        "create",
        bootstrap,
        "twice",
        &["--partitions", "6", "--retention-hours", "48"],
    ));
    assert_eq!(
        made.iter().filter(|line| line.starts_with("created ")).count(),
        7,
        "{made:?}"
    );
    assert!(
        made[0].starts_with("created twice.events: 6 partitions, replication 1, message.timestamp.type=LogAppendTime"),
        "{made:?}"
    );
    assert!(made[0].contains("retention.ms=172800000"), "{made:?}");
    assert!(
        made.contains(&"7 topics with 6 partitions on 1 broker: the engine can start".to_owned()),
        "{made:?}"
    );

    let again = fine(topics("create", bootstrap, "twice", &[]));
    assert_eq!(again.iter().filter(|line| line.ends_with(" exists already")).count(), 7);
    let other = fine(topics("create", bootstrap, "twice", &["--retention-hours", "24"]));
    let unchanged = "it exists with retention.ms=172800000, which --retention-hours 24 does not change. To fix it: kafka-configs.sh";
    assert_eq!(
        other.iter().filter(|line| line.contains(unchanged)).count(),
        5,
        "{other:?}"
    );
    let checked = fine(topics("check", bootstrap, "twice", &[]));
    let warnings: Vec<&String> = checked.iter().filter(|line| line.starts_with("warning ")).collect();
    assert_eq!(warnings.len(), 1, "one replica each, and nothing else: {checked:?}");
    assert!(warnings[0].contains("one replica"), "{checked:?}");

    let (_, error) = refused(topics("create", bootstrap, "twice", &["--partitions", "8"]));
    assert!(
        error.contains("twice.events has 6 partitions, and 8 are asked for"),
        "{error}"
    );
    assert!(error.contains("docs/kafka.md"), "{error}");
    let (_, error) = refused(topics("create", bootstrap, "large", &["--replication", "3"]));
    assert!(
        error.contains("a replication of 3 needs as many brokers, and there are 1"),
        "{error}"
    );
}

fn a_raised_number_of_partitions_is_found(bootstrap: &str) {
    fine(topics("create", bootstrap, "raised", &["--partitions", "2"]));
    for topic in ["events", "changes", "kicks", "quarantine", "current"] {
        let name = format!("raised.{topic}");
        tool(
            bootstrap,
            "kafka-topics.sh",
            &["--alter", "--topic", &name, "--partitions", "4"],
        );
    }
    let (found, _) = refused(topics("check", bootstrap, "raised", &[]));
    assert!(
        found[0].starts_with("refused raised.events: it has 4 partitions and was created with 2"),
        "{found:?}"
    );
    let (_, error) = refused(topics("create", bootstrap, "raised", &[]));
    assert!(
        error.contains("raised.events has 4 partitions, and the topics were made with 2"),
        "{error}"
    );
}

/// Follows the sentences to the letter, until nothing is refused any more.
fn what_a_broker_made_by_itself_is_found_and_fixed_as_the_sentences_say(bootstrap: &str) {
    tool(
        bootstrap,
        "kafka-topics.sh",
        &["--create", "--topic", "auto.events", "--partitions", "2"],
    );
    tool(
        bootstrap,
        "kafka-topics.sh",
        &["--create", "--topic", "auto.kicks", "--partitions", "1"],
    );
    tool(
        bootstrap,
        "kafka-topics.sh",
        &["--create", "--topic", "auto.current", "--partitions", "2"],
    );
    let (found, _) = refused(topics("check", bootstrap, "auto", &[]));
    assert!(
        found
            .iter()
            .any(|line| line.contains("a broker may have made it by itself")),
        "{found:?}"
    );
    for _ in 0..3 {
        let output = topics("check", bootstrap, "auto", &[]);
        if output.status.success() {
            return;
        }
        for line in lines(&output.stdout).iter().filter(|line| line.starts_with("refused ")) {
            let (_, fix) = line.split_once("To fix it: ").expect("a command");
            let words: Vec<&str> = fix.split(' ').collect();
            match words.as_slice() {
                ["rollcall", "topics", "create", ..] => {
                    // It ends with what is still wrong.
                    topics("create", bootstrap, "auto", &[]);
                }
                [name, "--bootstrap-server", at, rest @ ..] => {
                    assert_eq!(*at, bootstrap);
                    tool(bootstrap, name, rest);
                }
                other => panic!("not a command: {other:?}"),
            }
        }
    }
    let checked = fine(topics("check", bootstrap, "auto", &[]));
    assert!(
        checked.iter().any(|line| line.ends_with("the engine can start")),
        "{checked:?}"
    );
}

fn asked_from_a_program(bootstrap: &str) {
    let connection = Connection::new(bootstrap, Some("twice"), None, &[]).expect("valid");
    let checked = admin::check(&connection).expect("it answers");
    assert_eq!((checked.partitions, checked.brokers), (6, 1));
    assert_eq!(checked.refusals().count(), 0);
}

#[test]
fn a_cluster_that_is_not_there_is_told_and_no_secret_is() {
    let nowhere = "127.0.0.1:1";
    let secret = "sasl.password=hunter2";
    let plain = [
        "--kafka-set",
        "security.protocol=SASL_PLAINTEXT",
        "--kafka-set",
        "sasl.mechanism=PLAIN",
    ];
    let mut more = plain.to_vec();
    more.extend(["--kafka-set", "sasl.username=u", "--kafka-set", secret]);
    let (_, error) = refused(topics("check", nowhere, "p", &more));
    assert!(error.contains("no broker of 127.0.0.1:1 answers"), "{error}");
    assert!(error.contains("Connection refused"), "{error}");
    assert!(!error.contains("hunter2"), "{error}");
    // The same code of librdkafka, and other causes: the sentence has them.
    let (_, error) = refused(topics("check", "no.such.host.invalid:9092", "p", &[]));
    assert!(
        error.contains("no.such.host.invalid") && error.contains("resolve"),
        "{error}"
    );
    let plaintext = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = plaintext.local_addr().expect("an address").to_string();
    std::thread::spawn(move || plaintext.incoming().for_each(drop));
    let (_, error) = refused(topics(
        "check",
        &address,
        "p",
        &["--kafka-set", "security.protocol=SSL"],
    ));
    assert!(error.contains("SSL"), "{error}");
    for wrong in ["sasl.password hunter2", "acks=all", "no.such=hunter2"] {
        let (_, error) = refused(topics("check", nowhere, "p", &["--kafka-set", wrong]));
        assert!(error.starts_with("error: --kafka-set: "), "{error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

/// The bound that `topics check` asks of the quarantine's size.
#[test]
fn a_quarantined_record_is_larger_than_its_event_by_less_than_the_framing_allowed() {
    let (key, value) = (vec![7; 1_000], vec![9; 100_000]);
    let quarantined = Quarantined {
        partition: Partition(1_023),
        offset: Offset(i64::MAX as u64),
        ts: (1 << 53) - 1,
        error: Malformed::invalid("x".repeat(10_000)).to_string().into(),
        key: Some(key.as_slice().into()),
        value: Some(value.as_slice().into()),
    };
    let mut bytes = Vec::new();
    avro::encode_quarantined(&quarantined, &mut bytes);
    let more = bytes.len() - key.len() - value.len();
    assert!(more < QUARANTINE_FRAMING_BYTES, "{more}");
    assert_eq!(Topic::Quarantine.name(), "quarantine");
}
