//! Standbys: they answer while the owner of a partition is dead, and go on from what they have.

use crate::engine::{self, Node};
use crate::python;
use crate::space::Space;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::thread;
use std::time::{Duration, Instant};

const PARTITIONS: usize = 4;
const USERS: usize = 16;
const PATIENCE: Duration = Duration::from_secs(60);

#[track_caller]
fn until(nodes: &[Node], what: &str, holds: impl FnMut() -> bool) {
    engine::until(&nodes.iter().collect::<Vec<_>>(), PATIENCE, what, holds);
}

/// The owners of the partitions that are live.
fn owners(node: &Node) -> Vec<String> {
    let Some((200, stats)) = node.get("/v1/stats") else {
        return Vec::new();
    };
    let stats: Value = serde_json::from_str(&stats).expect("JSON");
    let partitions = stats["partitions"].as_array().expect("partitions").iter();
    let live = partitions.filter(|one| one["state"] == "live");
    live.map(|one| one["owner"].as_str().unwrap_or_default().to_owned())
        .collect()
}

/// The status of a user, and whether a standby says so.
fn read(node: &Node, number: usize) -> Option<(String, bool)> {
    let (status, body) = node.get(&format!("/v1/user?id=u{number}"))?;
    let body: Value = serde_json::from_str(&body).ok()?;
    let answer = || {
        (
            body["status"].as_str().unwrap_or_default().to_owned(),
            body["as_of"]["standby"] == true,
        )
    };
    (status == 200).then(answer)
}

/// The same, as soon as there is an answer.
fn answered(node: &Node, number: usize) -> (String, bool) {
    let begun = Instant::now();
    loop {
        if let Some(found) = read(node, number) {
            return found;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "u{number} is not answered:\n{}",
            node.diary()
        );
        thread::sleep(Duration::from_millis(50));
    }
}

/// The status of a user as this node has it, as the owner or as a standby: it asks no other node for a node.
fn as_node(node: &Node, number: usize) -> Option<String> {
    let request = ureq::get(format!("{}/v1/user?id=u{number}", node.url()));
    let mut answer = request.header("rollcall-from-node", "http://127.0.0.1:1").call().ok()?;
    let body: Value = serde_json::from_str(&answer.body_mut().read_to_string().ok()?).ok()?;
    body["status"].as_str().map(str::to_owned)
}

fn post(node: &Node, path: &str, body: &Value) -> Option<Value> {
    let mut posted = ureq::post(format!("{}{path}", node.url()))
        .send(body.to_string())
        .ok()?;
    serde_json::from_str(&posted.body_mut().read_to_string().ok()?).ok()
}

fn publish(node: &Node, kind: &str, users: impl Iterator<Item = usize>) {
    let event = |number: usize| {
        let mut event = json!({"type": kind, "user": format!("u{number}"), "platform": "linux", "device": "d", "gateway": "g",
            "epoch": 1, "conn": number + 1});
        match kind {
            "connect" => event["intent"] = json!("login"),
            _ => event["reason"] = json!("closed"),
        }
        event
    };
    post(node, "/v1/events", &users.map(event).collect()).expect("posted");
}

pub fn a_standby_answers_while_its_owner_is_dead_and_takes_over(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "standbys", PARTITIONS);
    let mut nodes = [0, 1].map(|name| Node::new(directory.path(), &space, name, &["--standbys", "1"]));
    nodes.iter_mut().for_each(|node| node.start(None));
    let ready = |nodes: &[Node]| -> Vec<f64> {
        let each = nodes
            .iter()
            .filter_map(|node| node.gauges("rollcall_standby_ready"))
            .flatten();
        each.collect()
    };
    until(
        &nodes,
        "each partition has an owner and, on the other node, a standby",
        || {
            let owners = owners(&nodes[1]);
            let both = owners.iter().collect::<BTreeSet<_>>().len() == 2;
            owners.len() == PARTITIONS && both && ready(&nodes).len() == PARTITIONS
        },
    );
    assert_eq!(
        ready(&nodes),
        [0.0; PARTITIONS],
        "no owner has committed a position that a standby could show"
    );
    // Each partition has some of the users.
    publish(&nodes[1], "connect", 0..USERS);
    until(&nodes, "the standbys are ready", || {
        ready(&nodes).iter().sum::<f64>() as usize == PARTITIONS
    });
    until(&nodes, "all users are online, as the owners say", || {
        (0..USERS).all(|number| read(&nodes[1], number) == Some(("online".to_owned(), false)))
    });
    until(&nodes, "the standbys have followed", || {
        (0..USERS).all(|number| as_node(&nodes[1], number) == Some("online".to_owned()))
    });

    let [dead, left] = &mut nodes;
    dead.kill();
    let (mut by_standbys, mut by_query) = (0, 0);
    let mut is_whole = false;
    let begun = Instant::now();
    while !is_whole {
        assert!(
            begun.elapsed() < PATIENCE,
            "the partitions have not moved:\n{}",
            left.diary()
        );
        is_whole = owners(left) == vec![left.url(); PARTITIONS];
        for number in 0..USERS {
            let (status, is_standbys) = answered(left, number);
            assert_eq!(status, "online", "u{number}");
            by_standbys += usize::from(is_standbys);
        }
        let all: Vec<String> = (0..USERS).map(|number| format!("u{number}")).collect();
        if let Some(found) = post(left, "/v1/users/query", &json!({ "users": all })) {
            assert_eq!(found["unknown"], json!([]), "{found}");
            by_query += found["users"].as_array().map_or(0, Vec::len);
        }
    }
    assert!(by_standbys > 0 && by_query > 0, "{by_standbys} {by_query}");
    assert!(left.diary().contains("the standby has taken over"), "{}", left.diary());

    publish(left, "disconnect", 0..USERS / 2);
    until(&nodes, "the new owner goes on, and answers as the owner", || {
        (0..USERS).all(|number| {
            let status = if number < USERS / 2 { "offline" } else { "online" };
            read(&nodes[1], number) == Some((status.to_owned(), false))
        })
    });
    nodes[1].stop();
    let verdict = python::check(&space, None);
    assert!(verdict.complaints.is_empty(), "{:?}", verdict.complaints);
}
