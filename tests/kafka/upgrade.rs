//! Two revisions in one group: nodes are upgraded one after the other under load, rolled back, upgraded again and raised; an
//! older node that comes back halts and spoils nothing. Which revision a node knows is pretended.

use crate::engine::{self, Node};
use crate::python::{self, Load};
use crate::space::Space;
use serde_json::{Value, json};
use std::process::Command;
use std::time::Duration;

const PARTITIONS: usize = 2;
const PATIENCE: Duration = Duration::from_secs(180);

#[track_caller]
fn until(node: &Node, what: &str, holds: impl FnMut() -> bool) {
    engine::until(&[node], PATIENCE, what, holds);
}

fn stats(node: &Node) -> Value {
    match node.get("/v1/stats") {
        Some((200, stats)) => serde_json::from_str(&stats).expect("JSON"),
        _ => Value::Null,
    }
}

fn all(node: &Node, holds: impl Fn(&Value) -> bool) -> bool {
    let stats = stats(node);
    let partitions = stats["partitions"].as_array();
    partitions.is_some_and(|partitions| partitions.len() == PARTITIONS && partitions.iter().all(holds))
}

/// Restarts a node as one that knows revisions up to this one.
fn become_one_that_knows(node: &mut Node, revision: u32) {
    node.stop();
    node.revision = Some(revision);
    node.start(None);
}

fn upgrade(node: &Node, more: &[&str]) -> (bool, String) {
    let output = Command::new(python::program())
        .args(["upgrade", "--url", &node.url()])
        .args(more)
        .output()
        .expect("it runs");
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (output.status.success(), said.concat())
}

pub fn a_group_raises_itself_once_every_node_can_and_not_before(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "byitself", PARTITIONS);
    let flags = ["--raise-revision", "by-itself"];
    let mut nodes = [0, 1].map(|name| Node::new(directory.path(), &space, name, &flags));
    for node in &mut nodes {
        node.revision = Some(1);
        node.start(None);
    }
    let is_live_with = |revision: u64| move |one: &Value| one["state"] == "live" && one["revision"] == revision;
    until(&nodes[0], "all are live", || all(&nodes[0], is_live_with(1)));
    become_one_that_knows(&mut nodes[0], 2);
    until(&nodes[0], "it has seen the older node", || {
        nodes[0].diary().contains("the revision is not raised: a node is older")
    });
    until(&nodes[0], "all are live as before", || all(&nodes[0], is_live_with(1)));
    become_one_that_knows(&mut nodes[1], 2);
    until(&nodes[0], "all are raised", || all(&nodes[0], is_live_with(2)));
    nodes.iter_mut().for_each(Node::stop);
}

pub fn nodes_are_upgraded_one_by_one_rolled_back_and_raised_under_load(bootstrap: &str, seed: u64) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "upgrade", PARTITIONS);
    let mut nodes = [0, 1].map(|name| Node::new(directory.path(), &space, name, &[]));
    for node in &mut nodes {
        node.revision = Some(1);
        node.start(None);
    }
    let live = |one: &Value| one["state"] == "live";
    until(&nodes[0], "all are live", || all(&nodes[0], live));
    let load = Load::start(&space, seed, &["--seconds", "120", "--rate", "400"]);

    // Rolling, and back.
    become_one_that_knows(&mut nodes[0], 2);
    until(&nodes[0], "all are live, and it knows the other node", || {
        all(&nodes[0], live) && stats(&nodes[0])["revision"] == 1
    });
    let (raised, said) = upgrade(&nodes[0], &["--to", "2"]);
    assert!(
        !raised && said.contains("a node knows revisions up to 1 only"),
        "{said}"
    );
    become_one_that_knows(&mut nodes[0], 1);
    until(&nodes[0], "all are live", || all(&nodes[0], live));
    for at in [0, 1] {
        become_one_that_knows(&mut nodes[at], 2);
        until(&nodes[at], "all are live", || all(&nodes[at], live));
    }
    until(&nodes[1], "every node knows it", || stats(&nodes[1])["revision"] == 2);
    // A partition that is just moving says no revision. Nothing is raised by itself: then this would not come.
    until(&nodes[1], "all have the revision they had", || {
        all(&nodes[1], |one| one["revision"] == 1)
    });

    // A node may be busy or moving, and is asked again then.
    until(&nodes[1], "it is published", || {
        let (raised, said) = upgrade(&nodes[1], &[]);
        assert!(!raised || said.contains("has revision 2"), "{said}");
        raised
    });
    until(&nodes[1], "all are raised", || {
        all(&nodes[1], |one| one["revision"] == 2)
    });
    until(&nodes[0], "the other node knows it", || {
        all(&nodes[0], |one| one["revision"] == 2)
    });
    until(&nodes[0], "there is nothing left to raise", || {
        let (again, said) = upgrade(&nodes[0], &[]);
        again && said.contains("every partition has revision 2 already")
    });

    // An older node takes partitions over, and halts. Nothing is answered from them.
    nodes[0].stop();
    become_one_that_knows(&mut nodes[1], 1);
    until(&nodes[1], "it halts", || {
        all(&nodes[1], |one| {
            one["state"] == "failed" && one["error"].to_string().contains("knows revisions up to 1")
        })
    });
    until(&nodes[1], "it answers nothing from them", || {
        nodes[1].get("/v1/users/u0").is_some_and(|(status, _)| status == 503)
    });

    // By the next version everything goes on.
    become_one_that_knows(&mut nodes[1], 2);
    nodes[0].start(None);
    let ends = load.end()["ends"].clone();
    until(&nodes[1], "all is folded", || {
        let places = python::places(&space);
        let is_done = |(partition, (committed, _)): (usize, &(u64, u64))| {
            ends[partition.to_string()].as_u64().is_none_or(|end| *committed > end)
        };
        places.iter().enumerate().all(is_done)
    });
    nodes.iter_mut().for_each(Node::stop);
    let verdict = python::check(&space, Some(&ends));
    assert_eq!(verdict.complaints, Vec::<String>::new());
    assert!(verdict.sum("changes") > 0, "{}", json!(verdict.sums));
}
