//! The JavaScript client (clients/js) with real servers, in Node and in a real Chromium.

use crate::house::path;
use crate::process::Process;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

#[track_caller]
fn went_well(output: &Output) {
    let said = [&output.stdout[..], &output.stderr[..]].concat();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&said));
}

fn node(arguments: &[&str]) -> Command {
    let mut node = Command::new("node");
    node.args(arguments).stdin(Stdio::null());
    node
}

/// What gives Node a WebSocket: nothing from version 22 on.
fn with_websocket() -> Vec<&'static str> {
    let output = node(&["--version"])
        .output()
        .expect("node is installed; run scripts/setup");
    let version = String::from_utf8_lossy(&output.stdout).into_owned();
    let major = version.trim().trim_start_matches('v').split('.').next();
    match major.and_then(|major| major.parse::<u32>().ok()) {
        Some(..22) => vec!["--experimental-websocket"],
        _ => Vec::new(),
    }
}

#[test]
fn the_javascript_client_keeps_its_promises() {
    let tests = root("clients/js/test.mjs");
    let mut node = node(&with_websocket());
    // Node 20 may keep a socket whose other end is closed, and would wait for it for ever after the last test.
    node.args(["--test", "--test-force-exit", path(&tests)]);
    node.env("ROLLCALL", env!("CARGO_BIN_EXE_rollcall"));
    went_well(&node.output().expect("node runs it"));
}

#[test]
fn what_is_made_of_the_javascript_client_follows_from_it() {
    let build = root("clients/js/build.mjs");
    went_well(&node(&[path(&build), "--check"]).output().expect("node runs it"));
}

#[test]
fn tabs_that_were_duplicated_are_two_devices() {
    let output = Command::new(root("scripts/clients"))
        .arg("node")
        .output()
        .expect("bash runs it");
    went_well(&output);
    let modules = String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned();
    let data = tempfile::tempdir().expect("a directory");
    let rules = json!({"login": "multi", "instances": {"web": 3}});
    let engine = Process::engine_under(data.path(), "127.0.0.1:0", &rules);
    let gateway = Process::gateway(&engine, data.path(), "edge");
    let (engine, gateway) = (
        format!("http://{}/", engine.address),
        format!("ws://{}/", gateway.address),
    );
    let driver = root("tests/clients/tabs.js");
    let mut node = node(&[
        path(&driver),
        &modules,
        &engine,
        &gateway,
        path(&root("clients/js/rollcall.js")),
    ]);
    // The browser has a profile and caches, which are not to be seen where the tests run.
    for name in ["HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"] {
        node.env(name, data.path());
    }
    went_well(&node.output().expect("node runs it"));
}
