//! Failures that must be reported: a thread that ends, a record that cannot be folded, too many clients.

use crate::engine::{self, Node};
use crate::space::Space;
use crate::stream::events;
use serde_json::{Value, json};
use std::thread;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(180);

#[track_caller]
fn until(node: &Node, what: &str, holds: impl FnMut() -> bool) {
    engine::until(&[node], PATIENCE, what, holds);
}

fn states(node: &Node) -> Vec<Value> {
    let Some((200, stats)) = node.get("/v1/stats") else {
        return Vec::new();
    };
    let stats: Value = serde_json::from_str(&stats).expect("JSON");
    stats["partitions"].as_array().expect("partitions").clone()
}

fn login(user: &str) -> Value {
    json!({"type": "connect", "user": user, "platform": "linux", "device": "d", "gateway": "g", "epoch": 1, "conn": 1,
        "intent": "login"})
}

/// Gives where each event went.
fn publish(node: &Node, events: &[Value]) -> Vec<(u64, u64)> {
    let posted = ureq::post(format!("{}/v1/events", node.url())).send(json!(events).to_string());
    let text = posted.expect("posted").body_mut().read_to_string().expect("text");
    let answer: Value = serde_json::from_str(&text).expect("JSON");
    let appended = answer["appended"].as_array().expect("where they went").iter();
    let place = |one: &Value| {
        (
            one["partition"].as_u64().expect("a number"),
            one["offset"].as_u64().expect("a number"),
        )
    };
    appended.map(place).collect()
}

pub fn a_thread_that_panics_makes_the_node_not_ready_and_says_which_it_was(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "threads", 2);
    let places = [
        ("panic:tail:3", "kafka-tail"),
        ("panic:owners:20", "kafka-owners"),
        ("panic:source:20", "kafka-source"),
        ("panic:assignments:50", "assignments"),
    ];
    for (number, (failpoint, task)) in places.into_iter().enumerate() {
        let mut node = Node::new(directory.path(), &space, number, &[]);
        node.start(Some(failpoint));
        until(&node, "it is not ready and says why", || {
            let said = format!("the task {task} has ended: panicked: the failpoint");
            node.get("/readyz")
                .is_some_and(|(status, body)| status == 503 && body.contains(&said))
        });
        let counted = format!("rollcall_task_failures_total{{task=\"{task}\"}} 1");
        let (_, metrics) = node.get("/metrics").expect("it answers");
        assert!(metrics.contains(&counted), "{metrics}");
        let logged = || node.diary().matches("a task ended unexpectedly").count();
        until(&node, "it is logged", || logged() > 0);
        assert_eq!(logged(), 1, "{}", node.diary());
        node.kill();
    }
}

pub fn a_record_whose_folding_panics_halts_its_partition_with_the_offset(bootstrap: &str) {
    const OFFSET: u64 = 40;
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "poisoned", 4);
    let mut node = Node::new(directory.path(), &space, 0, &[]);
    node.start(Some(&format!("record:{OFFSET}")));
    until(&node, "all are live", || {
        states(&node).iter().filter(|one| one["state"] == "live").count() == 4
    });
    let places = publish(&node, &(0..60).map(|_| login("alice")).collect::<Vec<_>>());
    let (partition, _) = places[0];
    assert!(places.iter().any(|(_, offset)| *offset == OFFSET));
    let mut reported = Vec::new();
    until(&node, "it halts", || {
        reported = states(&node);
        reported.iter().any(|one| one["error"].to_string().contains("halts"))
    });
    let at = &reported[partition as usize];
    assert_eq!(at["state"], "failed", "{at}");
    let error = at["error"].as_str().expect("text");
    let said = format!("partition {partition}: folding at offset {OFFSET} panicked: the failpoint record:{OFFSET}");
    assert!(error.starts_with(&said), "{error}");
    let panics = || {
        let (_, metrics) = node.get("/metrics").expect("it answers");
        metrics.contains("rollcall_task_failures_total{task=\"partition\"} 2")
    };
    until(&node, "it was tried once more", panics);
    until(&node, "it is not ready and says why", || {
        node.get("/readyz")
            .is_some_and(|(status, ready)| status == 503 && ready.contains(&format!("offset {OFFSET}")))
    });
    // The others continue, and the record is not retried.
    let others: Vec<Value> = (0..40).map(|number| login(&format!("user-{number}"))).collect();
    publish(&node, &others);
    until(&node, "the others have folded them", || {
        states(&node)
            .iter()
            .filter(|one| one["state"] == "live" && one["lag"] == 0)
            .count()
            == 3
    });
    assert!(panics(), "{}", node.get("/metrics").expect("it answers").1);
    // A program that can fold the record continues from there.
    node.stop();
    node.start(None);
    until(&node, "all are folded", || {
        states(&node)
            .iter()
            .filter(|one| one["state"] == "live" && one["lag"] == 0)
            .count()
            == 4
    });
}

/// How many clients of Kafka a process has: each has one thread of this name.
fn clients(node: &Node) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", node.id())).expect("Linux");
    let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
    tasks
        .flatten()
        .map(name)
        .filter(|name| name.trim() == "rdk:main")
        .count()
}

/// Reads a subscription from the beginning until so many changes have come.
fn catch_up(url: &str, query: &str, changes: usize) {
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .proxy(None)
        .timeout_global(Some(PATIENCE))
        .build()
        .into();
    let response = agent.get(format!("{url}/v1/changes?after=earliest{query}")).call();
    let body = response.expect("a subscription").into_body();
    let found = events(body.into_reader()).filter(|event| event.name.as_deref() == Some("change"));
    let seen = found.take(changes).count();
    assert_eq!(seen, changes, "{query}: it ended, or there was no more");
}

pub fn however_many_catch_up_the_clients_of_kafka_stay_few(bootstrap: &str) {
    const PARTITIONS: usize = 24;
    const USERS: usize = 600;
    // Four that read, and the one that writes incidents, which may begin after all partitions are live.
    const MORE: usize = 4 + 1;
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "catch-up", PARTITIONS);
    let mut node = Node::new(directory.path(), &space, 0, &[]);
    node.start(None);
    let all_live = |node: &Node| {
        states(node)
            .iter()
            .filter(|one| one["state"] == "live" && one["lag"] == 0)
            .count()
            == PARTITIONS
    };
    until(&node, "all are live", || all_live(&node));
    let users: Vec<Value> = (0..USERS).map(|number| login(&format!("user-{number}"))).collect();
    publish(&node, &users);
    until(&node, "all are folded", || all_live(&node));
    // What comes before a start is not in memory.
    node.stop();
    node.start(None);
    until(&node, "all are live", || all_live(&node));
    let before = clients(&node);
    let url = node.url();
    thread::scope(|scope| {
        for number in 0..20 {
            let url = &url;
            scope.spawn(move || catch_up(url, "", USERS));
            scope.spawn(move || {
                let user = format!("&user=user-{number}");
                catch_up(url, &user, 1);
            });
        }
    });
    let after = clients(&node);
    assert!(after <= before + MORE, "{before} clients before, {after} after");
    let (status, changes) = node.get("/v1/users/user-7/changes").expect("it answers");
    assert!(status == 200 && changes.contains("user-7"), "{status} {changes}");
    assert!(clients(&node) <= before + MORE);
    node.stop();
}
