//! What a publisher sent to the wrong partitions comes in again by `rollcall quarantine requeue`, each event once, also if the
//! command is killed; and not if retention has removed what would tell.

use crate::engine::{self, Node};
use crate::python;
use crate::space::Space;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rollcall::presence::Partition;
use rollcall::schema::avro;
use rollcall::schema::json::read_new_events;
use rollcall::schema::partitioner::partition_of;
use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

const PARTITIONS: u32 = 2;
const USERS: usize = 120;
const PATIENCE: Duration = Duration::from_secs(120);

pub fn each_event_comes_in_once(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "requeue", PARTITIONS as usize);
    let mut node = Node::new(directory.path(), &space, 0, &[]);
    node.start(None);
    let users: Vec<String> = (0..USERS).map(|number| format!("user{number}")).collect();
    let sent = publish_to_the_wrong_partitions(&space, &users);
    let until = |what: &str, holds: &dyn Fn() -> bool| engine::until(&[&node], PATIENCE, what, holds);
    until("all are in quarantine", &|| lines(&space, "quarantine").len() == sent);
    assert_eq!(online(&node), Some(0));

    // Killed after so many lines, which is in the midst of the next ones.
    let mut child = requeue(&space, &node, &["--yes"]).spawn().expect("it starts");
    let printed = BufReader::new(child.stdout.take().expect("piped")).lines();
    let printed = printed.filter(|line| line.as_ref().is_ok_and(|line| line.contains(r#""what":"requeued""#)));
    assert_eq!(printed.take(30).count(), 30);
    child.kill().expect("killed");
    child.wait().expect("ended");
    let done = said(&space, &node, &["--yes"]);
    assert!(done.iter().any(|what| what == "requeued"), "{done:?}");
    let logged_in = || {
        let events = lines(&space, "events").into_iter();
        let valid = events.filter(|event| event["type"] == "connect");
        let mut users: Vec<String> = valid
            .map(|event| event["user"].as_str().expect("a user").to_owned())
            .collect();
        users.sort_unstable();
        users
    };
    let mut each_once = users.clone();
    each_once.sort_unstable();
    assert_eq!(logged_in(), each_once);
    until("everybody is online", &|| online(&node) == Some(USERS as u64));

    // Retention removes what was requeued to one partition: nobody can tell any more whether it was.
    let removed = users
        .iter()
        .filter(|user| partition_of(user, PARTITIONS) == Partition(0));
    let removed = removed.count();
    let end = python::places(&space)[0].1;
    python::run("topics.py", &space, &["truncate", "events", "0", &end.to_string()]);
    let begins = |said: &[String], begin: &str| said.iter().filter(|what| what.starts_with(begin)).count();
    let kept = said(&space, &node, &["--yes"]);
    assert_eq!(
        begins(&kept, "the log no longer has all events since then (retention)"),
        sent / USERS * removed
    );
    assert_eq!(begins(&kept, "it is in the log already"), sent - sent / USERS * removed);
    assert_eq!(logged_in().len(), USERS - removed);
    let forced = said(&space, &node, &["--yes", "--unchecked", "--limit", "1"]);
    assert_eq!(begins(&forced, "requeued"), 1, "{forced:?}");
    assert_eq!(logged_in().len(), USERS - removed + 1);
}

/// As a publisher does whose partitioner is the wrong one, and that tries again. Returns how many records these are.
fn publish_to_the_wrong_partitions(space: &Space, users: &[String]) -> usize {
    let producer: BaseProducer = ClientConfig::new()
        .set("bootstrap.servers", &space.bootstrap)
        .set("enable.idempotence", "true")
        .create()
        .expect("a producer");
    let topic = format!("{}.events", space.prefix);
    let mut sent = 0;
    for user in users {
        let event = format!(
            r#"[{{"type":"connect","user":"{user}","platform":"web","device":"d","gateway":"g1","epoch":1,"conn":1,"intent":"login"}}]"#
        );
        let event = read_new_events(&event)
            .expect("JSON")
            .remove(0)
            .expect("an event")
            .event;
        let mut value = Vec::new();
        avro::encode_event(&event, &mut value);
        let wrong = (partition_of(user, PARTITIONS).0 + 1) % PARTITIONS;
        for _ in 0..2 {
            let record = BaseRecord::to(&topic).partition(wrong as i32).key(user).payload(&value);
            producer.send(record).map_err(|(error, _)| error).expect("taken");
            sent += 1;
        }
    }
    producer.flush(PATIENCE).expect("written");
    sent
}

/// What `rollcall log` prints of a topic.
fn lines(space: &Space, topic: &str) -> Vec<Value> {
    let log = [
        "log",
        topic,
        "--kafka",
        &space.bootstrap,
        "--topic-prefix",
        &space.prefix,
    ];
    let output = Command::new(python::program()).args(log).output().expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

fn online(node: &Node) -> Option<u64> {
    let (_, stats) = node.get("/v1/stats")?;
    let stats: Value = serde_json::from_str(&stats).ok()?;
    stats["users"]["online"].as_u64()
}

fn requeue(space: &Space, node: &Node, more: &[&str]) -> Command {
    let mut command = python::mortal(&python::program());
    command
        .args(["quarantine", "requeue", "--kafka", &space.bootstrap])
        .args(["--topic-prefix", &space.prefix, "--url", &node.url()])
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::piped());
    command
}

/// What `requeue` says of each record.
#[track_caller]
fn said(space: &Space, node: &Node, more: &[&str]) -> Vec<String> {
    let output = requeue(space, node, more)
        .stderr(Stdio::piped())
        .output()
        .expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let what = |line: &str| {
        let line: Value = serde_json::from_str(line).expect("JSON");
        line["what"].as_str().expect("text").to_owned()
    };
    text.lines().map(what).collect()
}
