//! A separate gateway for a cluster: it connects to one node, and the users of its clients are on all nodes.

use crate::client::{Client, Dial, Heard};
use crate::engine::Node;
use crate::python::{mortal, program};
use crate::space::Space;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

const PARTITIONS: usize = 4;
/// Enough that every partition has some.
const USERS: usize = 24;
const PATIENCE: Duration = Duration::from_secs(180);
const AGAIN: Duration = Duration::from_millis(200);

struct Gateway {
    child: Child,
    address: std::net::SocketAddr,
}

impl Gateway {
    fn start(engine: &Node, data: &Path) -> Gateway {
        let mut command = mortal(&program());
        command.args([
            "gateway",
            "--listen",
            "127.0.0.1:0",
            "--gateway-insecure",
            "--lease-ms",
            "4000",
        ]);
        command
            .args(["--engine", &engine.url(), "--log-level", "error", "--data"])
            .arg(data);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("it starts");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let address = lines
            .map(|line| line.expect("text"))
            .find_map(|line| line.strip_prefix("clients  ws://")?.parse().ok());
        Gateway {
            child,
            address: address.expect("it says where it is"),
        }
    }

    async fn connect(&self, user: &str) -> Client {
        let query = format!("user={user}&platform=web&device=tab&intent=login");
        let mut client = Dial::new(self.address, query).open().await.expect("let in");
        assert_eq!(client.frame_of("hello").await["user"], user);
        client
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        // Ended already, where all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn users() -> Vec<String> {
    (0..USERS).map(|number| format!("user-{number}")).collect()
}

async fn until(node: &Node, what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !holds().await {
        assert!(begun.elapsed() < PATIENCE, "not yet: {what}\n{}", node.diary());
        tokio::time::sleep(AGAIN).await;
    }
}

/// Of whom a node says that they are online; none while it cannot say it of all.
fn online(node: &Node) -> Option<usize> {
    let body = json!({"users": users()}).to_string();
    let url = format!("{}/v1/users/query", node.url());
    let answer = ureq::post(url).send(body).ok()?.body_mut().read_to_string().ok()?;
    let answer: Value = serde_json::from_str(&answer).expect("JSON");
    let known = answer["users"].as_array().expect("users");
    let is_whole = answer["unread"].as_array().is_none_or(Vec::is_empty);
    is_whole.then(|| known.iter().filter(|user| user["status"] == "online").count())
}

pub async fn a_gateway_serves_a_cluster_through_any_node(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "edge", PARTITIONS);
    let mut nodes = [0, 1].map(|name| Node::new(directory.path(), &space, name, &[]));
    nodes.iter_mut().for_each(|node| node.start(None));
    let [first, second] = &mut nodes;
    // How many nodes have partitions, once all of them are live.
    let owners = |node: &Node| -> usize {
        let Some((200, stats)) = node.get("/v1/stats") else {
            return 0;
        };
        let stats: Value = serde_json::from_str(&stats).expect("JSON");
        let partitions = stats["partitions"].as_array().expect("partitions");
        if partitions.iter().filter(|one| one["state"] == "live").count() < PARTITIONS {
            return 0;
        }
        let owners: BTreeSet<_> = partitions.iter().map(|one| one["owner"].to_string()).collect();
        owners.len()
    };
    until(first, "both have partitions", async || owners(first) == 2).await;

    let mut gateway = Gateway::start(first, &directory.path().join("gateway"));
    let mut clients = Vec::new();
    for user in users() {
        clients.push(gateway.connect(&user).await);
    }
    until(second, "all are online", async || online(second) == Some(USERS)).await;

    // Kicks of either node's partitions, asked of the other node, close the right connections.
    let kicks: Vec<Value> = users()[..8]
        .iter()
        .map(|user| json!({"type": "kick", "user": user}))
        .collect();
    let posted = ureq::post(format!("{}/v1/events", second.url())).send(json!(kicks).to_string());
    assert!(posted.expect("posted").status().is_success());
    for mut client in clients.drain(..8) {
        assert_eq!(client.closed().await, Heard::Closed(4003));
    }
    until(first, "they are offline", async || online(first) == Some(USERS - 8)).await;

    // A node dies. Meanwhile no answer is wrong: it has all requested users, or says that it cannot answer now.
    second.kill();
    let asker = &mut clients[0];
    let mut refusals = 0;
    until(first, "the others are known again", async || {
        let answer = asker.ask(json!({"type": "query", "users": users()})).await;
        if answer["type"] == "error" {
            assert_eq!(answer["code"], "not_ready", "{answer}");
            // Where nodes are is no client's business.
            assert!(!answer["message"].to_string().contains("http"), "{answer}");
            refusals += 1;
            return false;
        }
        assert_eq!(answer["unknown"], json!([]), "{answer}");
        let known = answer["users"].as_array().expect("users");
        assert_eq!(known.len(), USERS, "{answer}");
        owners(first) == 1
    })
    .await;
    assert!(refusals > 0, "there was a time in which nobody knew");
    let mut back = gateway.connect("user-0").await;
    back.beat().await;

    gateway.child.kill().expect("killed");
    until(first, "its users are gone with it", async || online(first) == Some(0)).await;
}
