//! `rollcall audit` on Kafka: what an engine has published is verified, afterwards or at once; what somebody adds to it, or an
//! event that the engine skips, is found.

use crate::engine::Node;
use crate::python;
use crate::space::Space;
use crate::watcher::Watcher;
use serde_json::{Value, json};
use std::process::Command;
use std::thread;
use std::time::Duration;

fn audit(space: &Space, arguments: &[&str]) -> (Option<i32>, Vec<Value>) {
    let output = Command::new(python::program())
        .arg("audit")
        .args(arguments)
        .args(["--json", "--kafka", &space.bootstrap])
        .args(["--topic-prefix", &space.prefix, "--group", &space.group])
        .output()
        .expect("it starts");
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    let lines = printed.lines().map(|line| serde_json::from_str(line).expect("JSON"));
    let lines = lines.collect();
    let failed = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() < Some(2), "{failed}");
    (output.status.code(), lines)
}

pub fn what_is_published_is_verified_and_what_is_added_is_found(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "audited", 1);
    let mut node = Node::new(directory.path(), &space, 0, &[]);
    node.start(None);
    // Three changes with a state each, two kicks, one malformed record.
    python::run("headers.py", &space, &["9"]);
    let (status, verified) = audit(&space, &["verify"]);
    assert_eq!(status, Some(0), "{verified:?}");
    let counts = ["changes", "kicks", "quarantined"].map(|key| &verified[0][key]);
    assert_eq!(counts, [&json!(3), &json!(2), &json!(1)]);
    assert_eq!(audit(&space, &["heads"]).1[0]["head"], verified[0]["head"]);

    let policy = directory.path().join("policy.json");
    std::fs::write(&policy, "{\"login\":\"multi\"}").expect("written");
    let (status, lines) = audit(&space, &["what-if", "--policy", policy.to_str().expect("UTF-8")]);
    assert_eq!(
        (status, &lines[0]["changes"]),
        (Some(0), &json!({"was": 3, "would": 3}))
    );

    for (table, rows) in [("--intervals", 4), ("--changes", 3), ("--events", 5)] {
        let out = directory.path().join("lake");
        let (status, lines) = audit(&space, &["export", table, "--out", out.to_str().expect("UTF-8")]);
        assert_eq!((status, &lines[0]["rows"]), (Some(0), &json!(rows)), "{table}");
    }

    // A lake of the same topic, twice, so that the second run goes on where the first one ended.
    let lake = directory.path().join("tables");
    let once = || {
        let output = Command::new(python::program())
            .args([
                "lake",
                "--once",
                "--kafka",
                &space.bootstrap,
                "--topic-prefix",
                &space.prefix,
                "--to",
            ])
            .arg(&lake)
            .output()
            .expect("it starts");
        let logged = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{logged}");
        logged
    };
    once();
    once();
    let ends = || -> Vec<(i64, u64)> {
        let ends = python::run("topics.py", &space, &["lag", "changes", &space.group]);
        serde_json::from_str(&ends).expect("JSON")
    };
    let manifest = std::fs::read(lake.join("manifest.json")).expect("there is one");
    let manifest: Value = serde_json::from_slice(&manifest).expect("JSON");
    let rows = |files: &Value| -> u64 {
        let files = files.as_array().expect("a list").iter();
        files.map(|file| file["rows"].as_u64().expect("a number")).sum()
    };
    let next = &manifest["partitions"][0]["next"];
    assert_eq!(*next, json!(ends()[0].1), "marks of transactions were read too");
    let intervals = &manifest["intervals"];
    assert_eq!(rows(&manifest["changes"]), 3, "{manifest}");
    assert_eq!(
        rows(&intervals["ended"]) + intervals["holding"].as_u64().expect("a number"),
        4,
        "{manifest}"
    );

    node.stop();
    // The newest state of a user is one that she had before.
    python::publisher(&space, &["again", "current", "first"]);
    let (status, lines) = audit(&space, &["verify"]);
    let found = [&lines[0]["topic"], &lines[0]["expected"], &lines[0]["found"]["user"]];
    assert_eq!(
        (status, found),
        (Some(1), [&json!("current"), &Value::Null, &json!("alice")])
    );

    python::publisher(&space, &["again", "changes"]);
    let (status, lines) = audit(&space, &["verify"]);
    let found = [&lines[0]["topic"], &lines[0]["expected"], &lines[0]["found"]["cause"]];
    assert_eq!(
        (status, found),
        (Some(1), [&json!("changes"), &Value::Null, &json!("forgotten")])
    );

    // Nothing is left of the changes, and the lake's next offset is gone too: whether changes are missing cannot be known yet.
    let end = ends()[0].1.to_string();
    python::run("topics.py", &space, &["truncate", "changes", "0", &end]);
    let logged = once();
    assert!(
        logged.contains("the next change will tell whether changes are missing"),
        "{logged}"
    );
}

/// Another process reads with another client, and notices an event that the engine does not apply.
pub fn an_engine_that_skips_an_event_is_found_by_a_watcher(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "watched", 1);
    let mut node = Node::new(directory.path(), &space, 0, &[]);
    node.start(None);
    let watcher = Watcher::start(directory.path(), &space);
    python::run("headers.py", &space, &["9"]);
    let committed = || python::places(&space)[0].0;
    let until = |what: &str, holds: &dyn Fn() -> bool| {
        for _ in 0..600 {
            if holds() {
                return;
            }
            thread::sleep(Duration::from_millis(100));
        }
        panic!("not in a minute: {what}\n{}", watcher.said());
    };
    until("what was committed is verified", &|| {
        committed() > 0 && watcher.has_verified(0, committed())
    });
    assert_eq!(watcher.get("/readyz").as_deref(), Some("ready\n"));
    node.stop();
    node.start(Some("alter:skipped-event:1+"));
    python::run("headers.py", &space, &["9"]);
    until("the difference is found", &|| {
        let ready = watcher.get("/readyz").unwrap_or_default();
        ready.contains("partition 0 is not what its events say")
    });
    let opinion = watcher.end(&[u64::MAX]);
    assert!(
        opinion.complaints[0].contains("\"verified\":false"),
        "{:?}",
        opinion.complaints
    );
    node.stop();
}
