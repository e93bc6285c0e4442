//! `rollcall reshard` moves the log of a data directory to topics of Kafka, from where an engine goes on.

use super::fine;
use crate::server::{ANYWHERE, Server, rollcall, wait_until};
use serde_json::{Value, json};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const PREFIX: &str = "moved";

fn reshard(data: &Path, bootstrap: &str, more: &[&str]) -> Command {
    let mut command = rollcall(&[
        "reshard",
        "--kafka",
        bootstrap,
        "--to-prefix",
        PREFIX,
        "--partitions",
        "4",
    ]);
    command.arg("--data").arg(data).args(more);
    command
}

fn user(server: &Server, user: &str) -> Option<Value> {
    let (status, body) = server.get(&format!("/v1/users/{user}"), "");
    (status == 200).then(|| serde_json::from_str(&body).expect("JSON"))
}

pub fn the_log_of_one_machine_goes_on_as_topics(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let (old, new) = (directory.path().join("old"), directory.path().join("new"));
    let users: Vec<String> = (0..20).map(|number| format!("user-{number}")).collect();
    let server = Server::start(&old, ANYWHERE, &["--partitions", "2"], &[]);
    let login = |user: &String| {
        json!({"type": "connect", "user": user, "platform": "linux", "device": "d", "gateway": "g", "epoch": 1, "conn": 1,
            "intent": "login"})
    };
    server.publish("", &users.iter().map(login).collect::<Vec<_>>());

    // Beside the server, which goes on; the new topics can be used by nobody.
    let output = fine(reshard(&old, bootstrap, &[]).output().expect("it runs"));
    assert!(
        output.iter().any(|line| line.starts_with("not finished: ")),
        "{output:?}"
    );
    let kafka = ["--kafka", bootstrap, "--topic-prefix", PREFIX];
    let early = rollcall(&["serve", "--listen", ANYWHERE, "--start-wait", "1s", "--data"])
        .arg(&new)
        .args(kafka)
        .output()
        .expect("it runs");
    let error = String::from_utf8_lossy(&early.stderr).into_owned();
    assert!(!early.status.success() && error.contains("rollcall reshard"), "{error}");

    // To finish, it waits for the end of the server, and takes everything up to that.
    let mut finish = reshard(&old, bootstrap, &["--finish"]);
    let finish = finish
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let mut round = 0;
            while !is_over.load(Ordering::Relaxed) {
                round += 1;
                let set =
                    |user: &String| json!({"type": "custom_status", "user": user, "text": format!("round {round}")});
                server.publish("", &users.iter().map(set).collect::<Vec<_>>());
            }
            round
        });
        wait_until("rounds were written meanwhile", || {
            user(&server, "user-0").is_some_and(|user| user["version"].as_u64() > Some(5))
        });
        is_over.store(true, Ordering::Relaxed);
        let last = format!("round {}", writer.join().expect("it ends"));
        wait_until("all of them show the last round", || {
            users
                .iter()
                .all(|one| user(&server, one).is_some_and(|user| user["custom_status"] == *last))
        });
    });
    let before: Vec<Value> = users
        .iter()
        .map(|one| user(&server, one).expect("a user who was online"))
        .collect();
    drop(server);
    let output = fine(finish.wait_with_output().expect("it ends"));
    assert!(
        output.iter().any(|line| line == "compared    20 users, 0 differences"),
        "{output:?}"
    );
    let next = format!(
        "finished    start engines with --kafka {bootstrap} --topic-prefix {PREFIX}, each with a --data of its own"
    );
    assert!(output.contains(&next), "{output:?}");
    let again = fine(reshard(&old, bootstrap, &["--finish"]).output().expect("it runs"));
    assert!(again[0].starts_with("finished already; start engines"), "{again:?}");

    // The old directory is no longer used, by either kind of server.
    let with_kafka = rollcall(&["serve", "--listen", ANYWHERE, "--data"])
        .arg(&old)
        .args(kafka)
        .output();
    let error = String::from_utf8_lossy(&with_kafka.expect("it runs").stderr).into_owned();
    assert!(
        error.contains("has an embedded log") && error.contains("give it another --data"),
        "{error}"
    );
    let without = rollcall(&["serve", "--listen", ANYWHERE, "--data"]).arg(&old).output();
    let error = String::from_utf8_lossy(&without.expect("it runs").stderr).into_owned();
    assert!(error.contains(PREFIX), "{error}");

    let engine = Server::start(&new, ANYWHERE, &kafka, &[]);
    // Offsets are those of the new log.
    let said = |user: &Value| {
        let mut user = user.clone();
        for device in user["devices"].as_array_mut().expect("devices") {
            device.as_object_mut().expect("a device").remove("evidence");
        }
        let of = |key: &str| user[key].clone();
        [
            of("version"),
            of("status"),
            of("since"),
            of("custom_status"),
            of("devices"),
        ]
    };
    for (one, before) in users.iter().zip(&before) {
        assert_eq!(said(&user(&engine, one).expect("moved")), said(before), "{one}");
    }
    let version = before[3]["version"].as_u64();
    engine.publish("", &[json!({"type": "kick", "user": "user-3"})]);
    wait_until("versions go on", || {
        user(&engine, "user-3").is_some_and(|user| user["version"].as_u64() == version.map(|version| version + 1))
    });
}
