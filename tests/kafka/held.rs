//! Publishers' transactions: an open one blocks the partition and is reported; an aborted one does not count as lag.

use crate::engine::{self, Node};
use crate::python::{dead_publisher, places, publisher, run};
use crate::space::Space;
use serde_json::{Value, json};
use std::time::Duration;

const PARTITIONS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(180);

#[track_caller]
fn until(node: &Node, what: &str, holds: impl FnMut() -> bool) {
    engine::until(&[node], PATIENCE, what, holds);
}

fn partitions(node: &Node) -> Vec<Value> {
    let Some((200, stats)) = node.get("/v1/stats") else {
        return Vec::new();
    };
    let stats: Value = serde_json::from_str(&stats).expect("JSON");
    stats["partitions"].as_array().expect("partitions").clone()
}

fn all(node: &Node, holds: impl Fn(&Value) -> bool) -> bool {
    let partitions = partitions(node);
    partitions.len() == PARTITIONS && partitions.iter().all(holds)
}

fn is_ready(node: &Node) -> bool {
    node.get("/readyz") == Some((200, "ready\n".to_owned()))
}

pub fn a_publishers_open_transaction_is_reported_and_an_aborted_one_is_no_lag(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "held", PARTITIONS);
    let mut node = Node::new(directory.path(), &space, 0, &[]);
    node.start(None);
    until(&node, "it is ready", || is_ready(&node));
    until(&node, "all are live", || all(&node, |one| one["state"] == "live"));

    // Nothing is folded of what was given up, and nothing is left to do.
    publisher(&space, &["abort", "3", "500"]);
    until(&node, "what was aborted is no lag", || {
        all(&node, |one| one["lag"] == 0) && partitions(&node)[3]["log_end"].as_u64() > Some(500)
    });

    dead_publisher(&space, &["hold", "20000"]);
    let gaps = |node: &Node| {
        let (_, metrics) = node.get("/metrics").expect("it answers");
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("rollcall_event_offset_gaps_total "));
        line.expect("the metric").parse::<u64>().expect("a number")
    };
    until(&node, "what was aborted leaves a gap", || gaps(&node) > 0);
    let event = |user: String| {
        json!({"type": "connect", "user": user, "platform": "linux", "device": "d", "gateway": "g", "epoch": 1, "conn": 1,
            "intent": "login"})
    };
    let events: Vec<Value> = (0..16).map(|number| event(format!("after-{number}"))).collect();
    let posted = ureq::post(format!("{}/v1/events", node.url())).send(json!(events).to_string());
    assert!(posted.expect("posted").status().is_success());
    until(&node, "it says that all are held", || {
        let held = |one: &Value| one["state"] == "held" && one["warning"].to_string().contains("open transaction");
        all(&node, held)
    });
    until(&node, "it is ready, with a warning for each", || {
        let names = |ready: &str, partition: usize| {
            ready.contains(&format!(
                "warning: partition {partition}: a publisher's open transaction"
            ))
        };
        node.get("/readyz").is_some_and(|(status, ready)| {
            status == 200
                && ready.starts_with("ready, but 4 partitions are held")
                && (0..PARTITIONS).all(|partition| names(&ready, partition))
        })
    });
    until(&node, "the metrics say it too", || {
        let held = node.gauges("rollcall_held_by_transaction_seconds").expect("it answers");
        held.len() == PARTITIONS && held.iter().all(|seconds| *seconds >= 5.0)
    });
    let warnings = || node.diary().matches("no progress").count();
    until(&node, "each is logged", || warnings() >= PARTITIONS);
    let warnings = warnings();
    assert_eq!(warnings, PARTITIONS, "one for each, once:\n{}", node.diary());

    // The broker gives it up.
    until(&node, "all go on by themselves", || {
        is_ready(&node) && all(&node, |one| one["state"] == "live")
    });
    until(&node, "nothing is left to do", || all(&node, |one| one["lag"] == 0));
    // Each partition has a mark of the transaction that was given up.
    let warnings = || {
        node.diary()
            .matches("publishers use transactions in the topic of events")
            .count()
    };
    until(&node, "each mark is logged", || warnings() >= PARTITIONS);
    let warnings = warnings();
    assert_eq!(warnings, PARTITIONS, "one for each, once:\n{}", node.diary());
    let known = node.get("/v1/users/after-7").expect("it answers");
    assert_eq!(known.0, 200, "{known:?}");
    until(&node, "the metrics are back", || {
        node.gauges("rollcall_held_by_transaction_seconds")
            .expect("it answers")
            .iter()
            .all(|seconds| *seconds == 0.0)
    });
    node.stop();
}

/// Sixteen users and more, so that each partition has some.
fn log_in(node: &Node, name: &str) {
    let event = |number| {
        json!({"type": "connect", "user": format!("{name}-{number}"), "platform": "linux", "device": "d", "gateway": "g",
            "epoch": 1, "conn": 1, "intent": "login"})
    };
    let events: Vec<Value> = (0..32).map(event).collect();
    let posted = ureq::post(format!("{}/v1/events", node.url())).send(json!(events).to_string());
    assert!(posted.expect("posted").status().is_success());
}

pub fn each_start_reads_the_last_record_again(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "last", PARTITIONS);
    let mut node = Node::new(directory.path(), &space, 0, &[]);
    let is_done = |node: &Node| is_ready(node) && all(node, |one| one["lag"] == 0 && one["log_end"] != 0);
    node.start(None);
    until(&node, "it is ready", || is_ready(&node));
    log_in(&node, "before");
    until(&node, "all are folded", || is_done(&node));
    node.stop();

    node.start(Some("alter:last-record:1+"));
    until(&node, "all say that the log is another", || {
        all(&node, |one| {
            let error = one["error"].to_string();
            error.contains("is not there as it was") && error.contains("begin again with other topics")
        })
    });
    node.stop();

    // Retention may drop the last record that was folded.
    for (partition, (committed, end)) in places(&space).into_iter().enumerate() {
        assert_eq!(committed, end, "partition {partition}");
        run(
            "topics.py",
            &space,
            &["truncate", "events", &partition.to_string(), &end.to_string()],
        );
    }
    node.start(None);
    until(&node, "all are live", || all(&node, |one| one["state"] == "live"));
    log_in(&node, "after");
    until(&node, "what came then is folded too", || is_done(&node));
    node.stop();
}

pub fn a_second_reading_that_differs_halts_the_partition_and_says_what_to_do(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "unlike", PARTITIONS);
    let mut node = Node::new(directory.path(), &space, 0, &[]);
    node.start(Some("alter:second-reading:1+"));
    until(&node, "it is ready", || is_ready(&node));
    publisher(&space, &["abort", "2", "5"]);
    log_in(&node, "user");
    until(&node, "the partition with the gap says so, and no other", || {
        let says = |one: &Value| {
            let error = one["error"].to_string();
            error.contains("two clients that fetch different numbers of bytes")
                && error.contains("kafka-leader-election.sh")
        };
        let partitions = partitions(&node);
        partitions.len() == PARTITIONS
            && (0..PARTITIONS).all(|one| says(&partitions[one]) == (one == 2))
            && node.get("/readyz").is_some_and(|(status, _)| status == 503)
    });
    assert_eq!(partitions(&node)[2]["committed"], 0, "{:?}", partitions(&node)[2]);
    node.stop();
    node.start(None);
    until(&node, "both readings are the same", || {
        is_ready(&node) && all(&node, |one| one["lag"] == 0)
    });
    node.stop();
}
