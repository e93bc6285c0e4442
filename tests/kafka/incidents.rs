//! A mass departure on Kafka, while the node that looks for it is killed.

use crate::engine::{self, Node};
use crate::space::Space;
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

const PARTITIONS: usize = 4;
const DEVICES: u64 = 240;
const PATIENCE: Duration = Duration::from_secs(60);

fn asked(node: &Node, path: &str) -> Option<Value> {
    let (status, body) = node.get(path)?;
    (status == 200).then(|| serde_json::from_str(&body).expect("JSON"))
}

fn incidents(node: &Node) -> Option<Value> {
    asked(node, "/v1/incidents").map(|mut answer| answer["incidents"].take())
}

/// The value of a metric without labels.
fn metric(node: &Node, name: &str) -> Option<u64> {
    let (_, text) = node.get("/metrics").filter(|(status, _)| *status == 200)?;
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
}

fn publish(node: &Node, events: &[Value]) {
    let posted = ureq::post(format!("{}/v1/events", node.url())).send(json!(events).to_string());
    assert_eq!(posted.expect("posted").status(), 200);
}

fn lease(gateway: &str, ttl_ms: u64) -> Value {
    json!({"type": "lease", "gateway": gateway, "epoch": 1, "ttl_ms": ttl_ms})
}

/// Of two nodes one looks for incidents. It is killed while one is under way: the other one writes it, once, with the exact
/// counts, and what the first one has read is read again.
pub fn the_node_that_looks_for_incidents_is_killed_during_one(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "incidents", PARTITIONS);
    let mut nodes = [0, 1].map(|name| Node::new(directory.path(), &space, name, &[]));
    nodes.iter_mut().for_each(|node| node.start(None));
    let until = |nodes: &[Node], what: &str, holds: &mut dyn FnMut() -> bool| {
        engine::until(&nodes.iter().collect::<Vec<_>>(), PATIENCE, what, holds);
    };
    let owners = |node: &Node| -> Option<Vec<String>> {
        let stats = asked(node, "/v1/stats")?;
        let live = stats["partitions"]
            .as_array()?
            .iter()
            .filter(|one| one["state"] == "live");
        Some(
            live.filter_map(|one| one["owner"].as_str().map(str::to_owned))
                .collect(),
        )
    };
    until(&nodes, "both nodes have partitions", &mut || {
        owners(&nodes[0])
            .is_some_and(|owners| owners.len() == PARTITIONS && nodes.iter().all(|node| owners.contains(&node.url())))
    });
    let connect = |user: u64| {
        json!({"type": "connect", "user": format!("u{user}"), "platform": "linux", "device": "d", "gateway": format!("g{}", user % 2),
            "epoch": 1, "conn": user + 1, "intent": "login", "client": "app"})
    };
    publish(&nodes[0], &[lease("g0", 600_000), lease("g1", 4_000)]);
    publish(&nodes[0], &(0..DEVICES).map(connect).collect::<Vec<_>>());
    // Every node follows the changes of all partitions.
    until(&nodes, "both nodes count what they keep of the changes", &mut || {
        let kept = |node| metric(node, "rollcall_cache_bytes{cache=\"newest_outputs\"}");
        nodes.iter().all(|node| kept(node) > Some(100 * DEVICES))
    });
    let mut looks = None;
    until(&nodes, "an incident is under way", &mut || {
        looks = nodes
            .iter()
            .position(|node| metric(node, "rollcall_incident_open") == Some(1));
        looks.is_some()
    });
    let looks = looks.expect("just found");
    assert_eq!(incidents(&nodes[looks]), Some(json!([])), "it is not over");
    let url = nodes[looks].url();
    assert_eq!(owners(&nodes[0]).expect("stats")[0], url, "that of partition 0 looks");
    nodes[looks].kill();
    let other = 1 - looks;
    until(&nodes, "the other one writes it", &mut || {
        incidents(&nodes[other]).is_some_and(|found| found != json!([]))
    });
    nodes[looks].start(None);
    let mut found = Value::Null;
    until(&nodes, "both nodes give the same", &mut || {
        found = incidents(&nodes[other]).unwrap_or_default();
        incidents(&nodes[looks]).is_some_and(|one| one == found)
    });
    assert_eq!(found.as_array().map(Vec::len), Some(1), "{found}");
    let (incident, lost) = (&found[0], DEVICES / 2);
    for (field, expected) in [
        ("departures", json!(lost)),
        ("devices", json!(lost)),
        // They came within the window.
        ("online_before", json!(0)),
        ("causes", json!({"gateway_lost": lost})),
        ("gateways", json!({"g1": lost})),
        ("clients", json!({"app": lost})),
    ] {
        assert_eq!(incident[field], expected, "{incident}");
    }
    assert_eq!(metric(&nodes[other], "rollcall_incidents_total"), Some(1));
    nodes.iter_mut().for_each(Node::stop);
    // The topic has it once, and the audit finds the same.
    let printed = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
        let output = command
            .args(arguments)
            .args(["--kafka", bootstrap, "--topic-prefix", &space.prefix])
            .output()
            .expect("it runs");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).expect("text");
        let lines: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect();
        json!(lines)
    };
    assert_eq!(printed(&["log", "incidents"]), found);
    assert_eq!(printed(&["audit", "incidents", "--clients", "--json"]), found);
}
