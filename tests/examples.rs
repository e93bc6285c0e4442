//! Runs the examples unchanged against a real Kafka and an engine: they publish valid events, and they print the right changes.

#[path = "kafka/broker.rs"]
mod broker;
mod server;

use broker::Cluster;
use serde_json::{Value, json};
use server::{ANYWHERE, PATIENCE, Server, rollcall, wait_until};
use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// What a program prints, which must end well.
#[track_caller]
fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("it starts");
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

/// Where libraries of others are; installs them where this machine does not have them yet.
fn clients(kind: &str) -> String {
    output(Command::new(root("scripts/clients")).arg(kind))
}

fn java(libraries: &str, example: &str) -> Command {
    let mut command = Command::new("java");
    command
        .arg("-cp")
        .arg(format!("{libraries}/*"))
        .arg(root("examples/java").join(example))
        .arg(root("schemas"));
    command
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_report_of_benchmarks_has_no_figure_that_was_not_measured() {
    let [target, docs] = [(), ()].map(|()| tempfile::tempdir().expect("a directory"));
    let results = target.path().join("benchmarks");
    for bench in ["core", "kafka"] {
        fs::create_dir_all(results.join(bench)).expect("created");
    }
    let figure = |bench: &str, id: &str, rounds: Value, ratios: Value| {
        let figure = json!({
            "bench": bench, "heading": "a table", "id": id, "what": format!("what {id} is"), "unit": "/s", "rounds": rounds,
            "beside": ratios.is_array().then_some("a yardstick"), "ratios": ratios, "note": "",
        });
        format!("{figure}\n")
    };
    let core = figure(
        "core",
        "core.1000000.heartbeats",
        json!([3e6, 6e6, 4e6]),
        json!([0.5, 0.75, 0.25]),
    ) + &figure("core", "core.1000000.alive", json!([21e6]), Value::Null)
        + &figure("core", "core.10000.heartbeats", json!([8e6]), Value::Null);
    fs::write(results.join("core/core.jsonl"), core).expect("written");
    // A benchmark that failed has written a figure before.
    let kafka = figure("kafka", "kafka.1000000.alive.rate", json!([77e6]), Value::Null);
    fs::write(results.join("kafka/kafka.jsonl"), kafka).expect("written");
    let run = |state: &str| {
        json!({
            "state": state, "command": "a command", "quick": true, "commit": "0123456789", "date": "2026-01-02 03:04 UTC",
            "load_before": 0.1, "load_after": 1.9, "seconds": 61, "machine": {"processor": "a processor"},
        })
    };
    let runs = json!({"core": run("measured"), "kafka": run("failed: it ended with status 101")});
    fs::write(results.join("runs.json"), runs.to_string()).expect("written");
    let mut command = Command::new(root("scripts/benchmarks"));
    output(
        command
            .arg("report")
            .arg(docs.path())
            .env("CARGO_TARGET_DIR", target.path()),
    );

    let text = fs::read_to_string(docs.path().join("benchmarks.md")).expect("a report");
    let line = |begin: &str| {
        let found = text.lines().find(|line| line.starts_with(begin));
        found.unwrap_or_else(|| panic!("no line begins with {begin:?}:\n{text}"))
    };
    assert_eq!(
        line("| what core.1000000.heartbeats is"),
        "| what core.1000000.heartbeats is | 4.00 M | 3.00 M | 6.00 M | 3 | /s | 0.50 (0.25 to 0.75) of a yardstick |  |"
    );
    let fold = line("| fold alone, single heartbeats |");
    assert!(
        fold.contains("1 M users: 4.00 M/s (3.00 M to 6.00 M)<br>10 M users: not measured"),
        "{fold}"
    );
    assert!(fold.ends_with("| **not reached** |"), "{fold}");
    let alive = line("| `alive`, fold alone");
    assert!(alive.ends_with("| reached |"), "{alive}");
    let growth = line("| growth: the cost of an event");
    assert!(
        growth.contains("heartbeat: 2.00 [from 10,000 to 1,000,000 users"),
        "{growth}"
    );
    assert!(line("| `alive`, Kafka").ends_with("| not measured |"));
    assert!(line("| kafka | ").ends_with("| failed: it ended with status 101 |"));
    assert!(line("| walk | ").ends_with("| not run |"));
    assert!(!text.contains("77"), "a figure of a benchmark that failed:\n{text}");
    let plots: BTreeSet<_> = fs::read_dir(docs.path().join("benchmarks"))
        .expect("plots")
        .map(|plot| plot.expect("a plot").file_name())
        .collect();
    assert_eq!(plots, BTreeSet::from(["growth.svg".into()]), "of what was measured");
}

#[test]
fn what_the_examples_publish_is_valid_and_what_they_follow_is_what_happened() {
    let [python, node, libraries] = ["python", "node", "java"].map(clients);
    let directory = tempfile::tempdir().expect("a directory");
    let cluster = Cluster::start(1, &[]);
    let bootstrap = &cluster.bootstrap;
    let make = [
        "topics",
        "create",
        "--kafka",
        bootstrap,
        "--partitions",
        "4",
        "--replication",
        "1",
    ];
    output(&mut rollcall(&make));
    let server = Server::start(&directory.path().join("data"), ANYWHERE, &["--kafka", bootstrap], &[]);

    // Two users each, for them to be in several partitions.
    let mut users = Vec::new();
    for number in 0..2 {
        for (language, mut command) in [
            ("python", Command::new(&python)),
            ("node", Command::new("node")),
            ("java", java(&libraries, "Publish.java")),
        ] {
            match language {
                "python" => command.arg(root("examples/publish.py")),
                "node" => command
                    .env("NODE_PATH", format!("{node}/node_modules"))
                    .arg(root("examples/publish.js")),
                _ => &mut command,
            };
            let user = format!("{language}-{number}");
            let placed = output(command.args([bootstrap, &user, &format!("from {language}")]));
            assert!(placed.lines().count() >= 4, "{user}: {placed}");
            users.push((user, language));
        }
    }
    for (user, language) in &users {
        wait_until("who was published is online", || {
            let (status, body) = server.get(&format!("/v1/users/{user}"), "");
            let body: Value = serde_json::from_str(&body).expect("JSON");
            status == 200 && body["status"] == "online" && body["custom_status"] == format!("from {language}")
        });
    }
    let (_, metrics) = server.get("/metrics", "");
    let malformed: Vec<_> = metrics
        .lines()
        .filter(|line| line.starts_with("rollcall_malformed_total{"))
        .collect();
    assert!(
        !malformed.is_empty() && malformed.iter().all(|line| line.ends_with(" 0")),
        "{malformed:?}"
    );
    wait_until("their gateways are known", || {
        let (_, gateways) = server.get("/v1/gateways", "");
        ["python-1", "node-1", "java-1"]
            .iter()
            .all(|gateway| gateways.contains(gateway))
    });

    // Followed, in either framing.
    let follow = |more: &[&str]| -> Vec<Value> {
        let mut command = Command::new(&python);
        command
            .arg(root("examples/changes.py"))
            .args([bootstrap, "--count", "12"])
            .args(more);
        let lines = output(&mut command);
        let changes = lines.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        changes.collect()
    };
    let changes = follow(&[]);
    let shown: BTreeSet<String> = changes
        .iter()
        .map(|change| json!([change["user"], change["version"], change["cause"], change["after"]]).to_string())
        .collect();
    let expected = users.iter().flat_map(|(user, _)| {
        [
            json!([user, 1, "login", "online"]).to_string(),
            json!([user, 2, "custom_status", "online"]).to_string(),
        ]
    });
    assert_eq!(shown, expected.collect());
    let (runtime, registry) = registry(7);
    let mut reframe = Command::new(&python);
    reframe.arg(root("tests/clients/reframe.py"));
    output(reframe.args([bootstrap, "presence.changes", "presence.reframed", "7", "12"]));
    let reframed = follow(&[
        "--topic",
        "presence.reframed",
        "--group",
        "reframed",
        "--registry",
        &registry,
    ]);
    let sorted = |changes: Vec<Value>| changes.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    assert_eq!(sorted(reframed), sorted(changes));
    runtime.shutdown_background();

    // Counted by Kafka Streams.
    let mut streams = java(&libraries, "OnlineCount.java")
        .arg(bootstrap)
        .arg(directory.path().join("streams"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let lines = BufReader::new(streams.stdout.take().expect("piped")).lines();
    let _streams = Running(streams);
    let (print, printed) = mpsc::channel();
    thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            // Nobody listens once the test has ended.
            let _ = print.send(line);
        }
    });
    let wait_for = |wanted: &str| {
        // It takes its time to start.
        let next = || printed.recv_timeout(3 * PATIENCE);
        while next().unwrap_or_else(|_| panic!("{wanted:?} is not printed")) != wanted {}
    };
    wait_for("online 6");
    let logout = json!({"type": "logout", "user": "java-0", "platform": "android", "device": "phone",
        "gateway": "java-1", "epoch": 1, "conn": 1});
    server.publish("", &[logout]);
    wait_for("offline 1");
}

/// A schema registry that knows one schema, of changes.
fn registry(id: u32) -> (tokio::runtime::Runtime, String) {
    let schema = std::fs::read_to_string(root("schemas/change.avsc")).expect("the schema is there");
    let answer = json!({ "schema": schema }).to_string();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind(ANYWHERE))
        .expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let route = axum::routing::get(move || async move { answer });
    let router = axum::Router::new().route(&format!("/schemas/ids/{id}"), route);
    runtime.spawn(async move { axum::serve(listener, router).await });
    (runtime, url)
}

/// Flink's name of an Avro type; a nullable one lacks the last words.
fn flink_type(avro: &Value) -> String {
    match avro {
        Value::String(name) => {
            let name = match name.as_str() {
                "string" => "STRING",
                "int" => "INT",
                "long" => "BIGINT",
                other => panic!("{other} is not used so far"),
            };
            format!("{name} NOT NULL")
        }
        Value::Array(union) => flink_type(&union[1]).trim_end_matches(" NOT NULL").to_owned(),
        Value::Object(object) if object["type"] == "array" => {
            format!("ARRAY<{}> NOT NULL", flink_type(&object["items"]))
        }
        Value::Object(object) if object["type"].is_string() && object["type"] != "record" => {
            flink_type(&object["type"])
        }
        record => {
            let fields = record["fields"].as_array().expect("a record");
            let fields: Vec<String> = fields.iter().map(column).collect();
            format!("ROW<{}> NOT NULL", fields.join(", "))
        }
    }
}

fn column(field: &Value) -> String {
    format!(
        "`{}` {}",
        field["name"].as_str().expect("a name"),
        flink_type(&field["type"])
    )
}

#[test]
fn the_tables_for_flink_have_the_fields_of_the_schemas() {
    let sql = std::fs::read_to_string(root("examples/changes.sql")).expect("the example is there");
    let columns = |file: &str| -> Vec<String> {
        let schema = std::fs::read_to_string(root("schemas").join(file)).expect("the schema is there");
        let schema: Value = serde_json::from_str(&schema).expect("JSON");
        schema["fields"]
            .as_array()
            .expect("fields")
            .iter()
            .map(column)
            .collect()
    };
    let table = |name: &str| {
        let (_, rest) = sql
            .split_once(&format!("CREATE TABLE {name} (\n"))
            .expect("the table is there");
        rest.split_once("\n)").expect("it has an end").0.replace("  `", "`")
    };
    let changes = columns("change.avsc").join(",\n");
    assert!(
        table("changes").starts_with(&format!("{changes},\n")),
        "{}\n{changes}",
        table("changes")
    );
    // All fields but the key may be missing, for a user who was forgotten.
    let nullable = |column: &String| column.strip_suffix(" NOT NULL").unwrap_or(column).to_owned();
    let current: Vec<String> = columns("user_state.avsc").iter().map(nullable).collect();
    let current = format!("`key` STRING NOT NULL,\n{},\n", current.join(",\n"));
    assert!(
        table("current_users").starts_with(&current),
        "{}\n{current}",
        table("current_users")
    );
}
