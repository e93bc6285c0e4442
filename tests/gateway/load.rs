//! The load generator: it passes if every change is right, and reports what is wrong otherwise.

use crate::client::PATIENCE;
use crate::process::Process;
use rollcall::gateway::uplink::Uplink as _;
use rollcall::gateway::uplink::http::HttpUplink;
use serde_json::{Value, json};
use std::process::{Command, Output, Stdio};

async fn load(engine: &Process, gateway: &Process, seconds: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    command
        .arg("load")
        .args(["--engine", &format!("http://{}", engine.address)]);
    command.args(["--gateway", &format!("ws://{}", gateway.address)]);
    command.args([
        "--people",
        "60",
        "--seconds",
        seconds,
        "--action-seconds",
        "1",
        "--storm-seconds",
        "2",
    ]);
    let child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let output = tokio::task::spawn_blocking(move || child.wait_with_output());
    output.await.expect("waited for").expect("ended")
}

fn report(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {text}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_people_do_every_change_is_the_one_that_it_should_be() {
    let data = tempfile::tempdir().expect("a directory");
    for login in ["single", "multi"] {
        let data = data.path().join(login);
        std::fs::create_dir(&data).expect("made");
        let engine = Process::engine_under(&data, "127.0.0.1:0", &json!({"login": login}));
        let gateway = Process::gateway(&engine, &data, "edge");
        let output = load(&engine, &gateway, "6").await;
        let report = report(&output);
        let counts = ["changes_missing", "changes_unexpected"].map(|key| report[key].clone());
        assert_eq!(json!(counts), json!([0, 0]), "{report}");
        assert!(
            report["changes_as_expected"].as_u64().is_some_and(|count| count > 60),
            "{report}"
        );
        assert_eq!(output.status.code(), Some(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_out_of_nothing_is_found() {
    let data = tempfile::tempdir().expect("a directory");
    let engine = Process::engine(data.path(), "127.0.0.1:0");
    let gateway = Process::gateway(&engine, data.path(), "edge");
    let url = format!("http://{}", engine.address);
    let uplink = HttpUplink::open(&url, None).await.expect("open");
    let mut changes = uplink.changes().await.expect("followed");
    let meddle = async {
        let change = tokio::time::timeout(PATIENCE, changes.recv())
            .await
            .expect("one comes")
            .expect("it goes on");
        let forget = json!([{"type": "forget", "user": change.user}]).to_string();
        let posted = reqwest::Client::new()
            .post(format!("{url}/v1/events"))
            .body(forget)
            .send()
            .await;
        assert!(posted.expect("posted").status().is_success());
    };
    let (output, ()) = tokio::join!(load(&engine, &gateway, "4"), meddle);
    let report = report(&output);
    assert!(
        report["changes_unexpected"].as_u64().is_some_and(|count| count > 0),
        "{report}"
    );
    assert_eq!(output.status.code(), Some(2));
}
