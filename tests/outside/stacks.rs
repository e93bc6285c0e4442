//! Publishers that know nothing of Rollcall's schema: five stacks, each with its own serializer, its own schema and its usual
//! partitioner, on a real Kafka with a real registry.

use crate::broker::Cluster;
use crate::engine::{Engine, rollcall, wait_until};
use crate::servers::Real;
use axum::Router;
use axum::body::Bytes;
use axum::http::{Method, StatusCode, Uri};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use tokio::runtime::Runtime;

const PARTITIONS: &str = "4";
/// Enough that each stack has users in several partitions.
const USERS: &str = "8";

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// What a program prints, which must end well. So what cannot be installed or does not run fails the test.
#[track_caller]
fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("it starts");
    let failed = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{command:?}: {failed}");
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

/// Where libraries of others are; installs them where this machine does not have them yet.
fn clients(kind: &str) -> String {
    output(Command::new(root("scripts/clients")).arg(kind))
}

/// A GUID that stands for an id.
fn guid(id: u64) -> String {
    format!("{id:08x}-0000-4000-8000-000000000000")
}

/// A registry that gives schemas a GUID, as Confluent's does since version 8, in front of one that gives them ids only.
fn with_guids(runtime: &Runtime, url: &str) -> String {
    let (base, client) = (url.to_owned(), reqwest::Client::new());
    let forward = move |method: Method, uri: Uri, body: Bytes| {
        let (base, client) = (base.clone(), client.clone());
        async move {
            let path = uri.path_and_query().expect("a path").as_str();
            let by_guid = path.strip_prefix("/schemas/guids/");
            let id = by_guid.and_then(|guid| u64::from_str_radix(guid.split('-').next()?, 16).ok());
            let path = id.map_or(path.to_owned(), |id| format!("/schemas/ids/{id}"));
            let request = client.request(method, format!("{base}{path}"));
            let request = request.header("content-type", "application/json").body(body);
            let answer = request.send().await.expect("it answers");
            let status = StatusCode::from_u16(answer.status().as_u16()).expect("a status");
            let mut answer: Value = answer.json().await.expect("JSON");
            if let Some(id) = answer["id"].as_u64() {
                answer["guid"] = json!(guid(id));
            }
            (status, [("content-type", "application/json")], answer.to_string())
        }
    };
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"));
    let listener = listener.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let router = Router::new().fallback(forward);
    runtime.spawn(async move { axum::serve(listener, router).await });
    url
}

/// The errors of the quarantine, with the key of each record.
fn quarantine(bootstrap: &str, registry: &str) -> Vec<(String, String)> {
    let printed = output(rollcall(&["log", "quarantine", "--kafka", bootstrap]).args(["--registry", registry]));
    let lines = printed.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    let text = |line: &Value, name: &str| line[name].as_str().unwrap_or_default().to_owned();
    lines
        .map(|line: Value| (text(&line, "key"), text(&line, "error")))
        .collect()
}

pub fn each_is_online_or_is_told_why() {
    let [python, node, jars] = ["python", "node", "stacks"].map(clients);
    let registry = Real::start();
    let runtime = Runtime::new().expect("a runtime");
    let url = with_guids(&runtime, &registry.url);
    let apicurio = registry.url.replace("/apis/ccompat/v7", "/apis/registry/v2");
    let cluster = Cluster::start(1, &[]);
    let bootstrap = cluster.bootstrap.as_str();
    let create = ["topics", "create", "--kafka", bootstrap, "--partitions", PARTITIONS];
    output(rollcall(&create).args(["--replication", "1"]));
    let directory = tempfile::tempdir().expect("a directory");
    let flags = ["--kafka", bootstrap, "--registry", &url, "--registry-register"];
    let engine = Engine::start(directory.path(), &flags).ready();

    let stacks = ["serializer", "prefix", "connect", "header", "ksql", "node"];
    // Of two that cannot be read the quarantine says why, in one sentence each.
    let refused = [
        (
            "decimal",
            "unreadable with its schema: epoch is bytes, such as a decimal; expected a whole number, written as int or long",
        ),
        (
            "global",
            "the header apicurio.value.globalId must not name the schema, since no registry knows its global id by Confluent's \
             interface; set the serializer's apicurio.registry.use-id=contentId",
        ),
    ];
    let mut java = Command::new("java");
    java.arg("-cp").arg(format!("{jars}/*"));
    java.arg(root("tests/clients/stacks/Stacks.java"))
        .args([bootstrap, &apicurio, USERS]);
    output(java.args(["serializer", "prefix", "connect", "decimal", "global"]));
    let mut in_python = Command::new(&python);
    in_python
        .arg(root("tests/clients/stacks/stacks.py"))
        .args([bootstrap, &url, USERS]);
    output(in_python.args(["header", "ksql"]));
    let mut on_node = Command::new("node");
    on_node.env("NODE_PATH", format!("{node}/node_modules"));
    output(
        on_node
            .arg(root("tests/clients/stacks/stacks.js"))
            .args([bootstrap, &url, USERS]),
    );

    let of = |stack: &str| {
        (0..)
            .take(USERS.parse().expect("a number"))
            .map(|number| format!("{stack}-{number}"))
            .collect::<Vec<_>>()
    };
    let users: Vec<String> = stacks.iter().flat_map(|stack| of(stack)).collect();
    let mut expected: Vec<(String, String)> = Vec::new();
    for (stack, why) in refused {
        expected.extend(of(stack).into_iter().map(|user| (user, why.to_owned())));
    }
    wait_until("all of their events are folded", || {
        let stats = engine.json("/v1/stats");
        let applied = stats["partitions"].as_array().expect("partitions").iter();
        let applied: u64 = applied
            .map(|partition| partition["applied"].as_u64().unwrap_or(0))
            .sum();
        applied >= (users.len() + expected.len()) as u64
    });
    let mut errors = quarantine(bootstrap, &url);
    errors.sort_unstable();
    assert_eq!(errors, expected);
    for user in &users {
        let (status, body) = engine.get(&format!("/v1/users/{user}"));
        let shown: Value = serde_json::from_str(&body).expect("JSON");
        assert_eq!((status, &shown["status"]), (200, &json!("online")), "{user}: {body}");
    }
    engine.stop();
}
