//! Calls into librdkafka that never return: the client is given up and counted, a new one goes on, and a process in which
//! that happens again and again, or whose group member hangs, ends by itself.

use crate::engine::{self, Node};
use crate::space::Space;
use serde_json::{Value, json};
use std::time::Duration;

const PARTITIONS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(180);

#[track_caller]
fn until(nodes: &[&Node], what: &str, holds: impl FnMut() -> bool) {
    engine::until(nodes, PATIENCE, what, holds);
}

fn is_ready(node: &Node) -> bool {
    node.get("/readyz") == Some((200, "ready\n".to_owned()))
}

fn given_up(node: &Node) -> bool {
    let (_, metrics) = node.get("/metrics").expect("it answers");
    metrics.contains("rollcall_kafka_clients_given_up_total{reason=\"hung\"} 1\n")
}

/// Users log in; returns once each is known where it is asked for.
fn log_in(node: &Node, others: &[&Node], name: &str) {
    let users: Vec<String> = (0..16).map(|number| format!("{name}-{number}")).collect();
    let login = |user| {
        json!({"type": "connect", "user": user, "platform": "linux", "device": "d", "gateway": "g", "epoch": 1, "conn": 1,
            "intent": "login"})
    };
    let events: Vec<Value> = users.iter().map(login).collect();
    until(others, "the events are taken", || {
        let posted = ureq::post(format!("{}/v1/events", node.url())).send(json!(events).to_string());
        posted.is_ok_and(|posted| posted.status().is_success())
    });
    until(others, "all are known", || {
        users.iter().all(|user| {
            node.get(&format!("/v1/users/{user}"))
                .is_some_and(|(status, _)| status == 200)
        })
    });
}

pub fn a_call_that_never_returns_costs_its_client_and_not_the_partition(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "hung", PARTITIONS);
    let [mut first, mut second] = [0, 1].map(|name| Node::new(directory.path(), &space, name, &[]));
    // A reader is stopped when its partition goes to the second node.
    first.start(Some("hang:rd_kafka_consume_stop:1"));
    until(&[&first], "the first is ready", || is_ready(&first));
    log_in(&first, &[&first], "before");
    // The second node's commits need this call.
    second.start(Some("hang:rd_kafka_consumer_group_metadata:2"));
    until(&[&first, &second], "both have partitions", || {
        first.live() > 0 && second.live() > 0 && first.live() + second.live() == PARTITIONS
    });
    log_in(&first, &[&first, &second], "after");
    for node in [&first, &second] {
        until(&[&first, &second], "it was counted, and it goes on", || {
            given_up(node) && is_ready(node)
        });
        let said = || node.diary().matches("a client of Kafka is given up").count();
        until(&[&first, &second], "it is logged", || said() > 0);
        assert_eq!(said(), 1, "{}", node.diary());
    }

    // A client that hangs again and again, and a member that no other can replace.
    first.stop();
    let [mut third, mut fourth] = [2, 3].map(|name| Node::new(directory.path(), &space, name, &[]));
    third.start(Some("hang:rd_kafka_consume_batch:100+"));
    fourth.start(Some("hang:rd_kafka_consumer_poll:100"));
    for (node, said) in [
        (&mut third, "5 clients of Kafka were given up"),
        (
            &mut fourth,
            "hangs in rd_kafka_consumer_poll, and the group may count it as alive",
        ),
    ] {
        let status = node.ended();
        assert_eq!(status.code(), Some(2), "{}", node.diary());
        let last = node.diary().lines().last().unwrap_or_default().to_owned();
        assert!(
            last.contains("the process ends") && last.contains(said),
            "{}",
            node.diary()
        );
    }
    until(&[&second], "the second has everything", || second.live() == PARTITIONS);
    log_in(&second, &[&second], "end");
    second.stop();
}
