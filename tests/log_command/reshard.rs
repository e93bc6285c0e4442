//! `rollcall reshard` on real data directories: killed at every step, beside a server that is written to, and what it refuses.

use crate::server::{ANYWHERE, Server, rollcall, wait_until};
use crate::{House, PARTITIONS, complaint, fold, of_type};
use rollcall::clock::{Clock as _, SystemClock};
use rollcall::log::local::{LocalLog, Settings};
use rollcall::presence::Partition;
use rollcall::schema::partitioner::partition_of;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const TARGETS: u32 = 3 * PARTITIONS;

fn reshard(from: &Path, to: &Path, more: &[&str]) -> Command {
    let mut command = rollcall(&["reshard", "--partitions", "6"]);
    command.arg("--data").arg(from).arg("--to-data").arg(to).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

#[track_caller]
fn text(output: Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Of each user, the changes that the fold of a log gives, without ids, offsets and the partitions' own counts.
fn changes(data: &Path, partitions: u32) -> BTreeMap<String, Vec<Value>> {
    let mut by_user: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for partition in (0..partitions).map(|number| number.to_string()) {
        let events = crate::command(data, &["events", "--partition", &partition])
            .output()
            .unwrap();
        let events: Vec<String> = text(events).lines().map(str::to_owned).collect();
        let folded = fold(
            &events,
            &["--partition", &partition, "--partitions", &partitions.to_string()],
        );
        for line in of_type("change", &folded) {
            let mut change: Value = serde_json::from_str(line).unwrap();
            let fields = change.as_object_mut().unwrap();
            for own in ["id", "partition", "offset", "seq", "logged_at", "evidence"] {
                fields.remove(own);
            }
            let user = change["user"].as_str().unwrap().to_owned();
            by_user.entry(user).or_default().push(change);
        }
    }
    by_user
}

/// More of every kind that is split: records of many users, and a silence that begins an outage grace.
fn fill(house: &House) {
    house.fill();
    house.publish(r#"{"type":"policy","policy":{"outage":{"silence_ms":5000,"grace_ms":60000}}}"#);
    house.publish(r#"{"type":"lease","gateway":"g1","epoch":1,"ttl_ms":3600000}"#);
    for second in 0..20 {
        house.clock.advance_ms(1_000);
        house.connect(&format!("user-{}", 20 + second), "phone", 200 + second);
    }
    for partition in (0..PARTITIONS).map(Partition) {
        let users = (0..40).map(|number| (number, format!("user-{number}")));
        let here: Vec<_> = users
            .filter(|(_, user)| partition_of(user, PARTITIONS) == partition)
            .collect();
        let beats: Vec<Value> = here
            .iter()
            .map(|(number, user)| json!({"user": user, "platform": "android", "device": "phone", "conn": 180 + number}))
            .collect();
        let conns: Vec<u64> = (100..240).collect();
        for event in [
            json!({"type": "heartbeats", "gateway": "g1", "epoch": 1, "beats": beats}),
            json!({"type": "alive", "gateway": "g1", "epoch": 1, "conns": conns, "partition": partition.0}),
        ] {
            let body = format!("[{event}]");
            let events = rollcall::schema::json::read_new_events(&body).unwrap();
            let event = events.into_iter().next().unwrap().unwrap().event;
            let mut value = Vec::new();
            rollcall::schema::avro::encode_event(&event, &mut value);
            house.append(partition, None, value);
        }
    }
    house.clock.advance_ms(120_000);
    house.publish(r#"{"type":"tick"}"#);
    house.clock.advance_ms(3_000);
    house.publish(r#"{"type":"kick","user":"user-5"}"#);
    house.publish(r#"{"type":"forget","user":"user-6"}"#);
}

/// What the doctor says of a data directory in which something is wrong.
#[track_caller]
fn doctor(data: &Path) -> String {
    let output = rollcall(&["doctor", "--data"]).arg(data).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn a_move_that_is_killed_at_any_step_and_repeated_is_complete_once() {
    let house = House::new();
    fill(&house);
    let to = tempfile::tempdir().unwrap();
    let (from, to) = (house.data.path().to_owned(), to.path());
    let output = text(reshard(&from, to, &["--dry-run"]).output().unwrap());
    assert!(output.contains("compared    39 users, 0 differences"), "{output}");
    assert!(!to.join("log").exists(), "a dry run writes nothing");

    // While an engine has the old log, which it goes on writing to.
    let killed = |more: &[&str], place: &str| {
        let status = reshard(&from, to, more)
            .env("ROLLCALL_FAILPOINT", place)
            .status()
            .unwrap();
        assert_eq!(status.code(), None, "{place}: {status}");
    };
    killed(&[], "copied:1");
    let output = text(reshard(&from, to, &[]).output().unwrap());
    assert!(output.contains("copied      0 records to 6 partitions"), "{output}");
    assert!(output.contains("not finished"), "{output}");
    house.publish(r#"{"type":"custom_status","user":"user-25","text":"late"}"#);
    let error = complaint(reshard(&from, to, &["--finish"]).output().unwrap());
    assert!(error.contains("is in use by another process"), "{error}");
    let error = complaint(serve(to));
    assert!(error.contains("is not complete: rollcall reshard copies"), "{error}");
    let found = doctor(to);
    assert!(
        found.contains("WRONG    log           the log in ") && found.contains("is not complete"),
        "{found}"
    );
    house.publish(r#"{"type":"custom_status","user":"user-26","text":"later"}"#);
    let before = changes(&from, PARTITIONS);
    let House { data, log, .. } = house;
    drop(log);

    killed(&["--finish"], "copied:1");
    killed(&["--finish"], "left");
    let error = complaint(serve(&from));
    assert!(
        error.contains("takes no more events") && error.contains("with 6 partitions"),
        "{error}"
    );
    let found = doctor(&from);
    assert!(found.contains("WRONG    log           the log in "), "{found}");
    assert!(
        found.contains("takes no more events") && found.contains("with 6 partitions"),
        "{found}"
    );
    killed(&["--finish"], "compared");
    let error = complaint(serve(to));
    assert!(error.contains("is not complete"), "{error}");
    killed(&["--finish"], "finished");
    let output = text(reshard(&from, to, &["--finish"]).output().unwrap());
    assert!(output.contains("finished already"), "{output}");

    let after = changes(to, TARGETS);
    assert!(
        before.len() > 30 && before.values().map(Vec::len).sum::<usize>() > 60,
        "{before:?}"
    );
    assert_eq!(before, after);
    let log = LocalLog::open(&to.join("log"), Settings::default(), Arc::new(SystemClock::new())).unwrap();
    assert_eq!(rollcall::log::Log::partitions(&log), TARGETS);
    drop((data, log));
}

/// Reads what a process reports until such a line. Without the rest of the lines the process could not report more.
#[track_caller]
fn wait_for_line(
    child: &mut Child,
    such: impl Fn(&str) -> bool,
) -> std::io::Lines<BufReader<std::process::ChildStderr>> {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    assert!(lines.any(|line| such(&line.unwrap())), "it has ended");
    lines
}

/// What a server says that does not start.
fn serve(data: &Path) -> Output {
    let mut command = rollcall(&["serve", "--listen", ANYWHERE, "--log-level", "error", "--data"]);
    command.arg(data).output().unwrap()
}

#[test]
fn a_log_that_is_written_to_is_followed_and_every_version_goes_on() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (from, to) = (from.path(), to.path());
    let server = Server::start(from, ANYWHERE, &["--partitions", "2"], &[]);
    let mut follow = reshard(from, to, &["--follow"]).spawn().unwrap();
    let is_over = AtomicBool::new(false);
    let published = thread::scope(|scope| {
        let publisher = scope.spawn(|| {
            let users: Vec<String> = (0..50).map(|number| format!("user-{number}")).collect();
            let connect = |(conn, user): (usize, &String)| {
                json!({"type": "connect", "user": user, "platform": "web", "device": "d", "gateway": "g", "epoch": 1,
                    "conn": conn, "intent": "login"})
            };
            let connects: Vec<Value> = users.iter().enumerate().map(connect).collect();
            server.publish("", &connects);
            let mut rounds = 1;
            while !is_over.load(Ordering::Relaxed) {
                let text = format!("round {rounds}");
                let set = |user| json!({"type": "custom_status", "user": user, "text": text});
                server.publish("", &users.iter().map(set).collect::<Vec<_>>());
                rounds += 1;
            }
            rounds
        });
        // Killed while it follows, and again.
        for _ in 0..2 {
            wait_for_line(&mut follow, |line| {
                line.contains(" copied; ") && !line.contains(" 0 copied; ")
            });
            follow.kill().unwrap();
            follow.wait().unwrap();
            follow = reshard(from, to, &["--follow"]).spawn().unwrap();
        }
        is_over.store(true, Ordering::Relaxed);
        publisher.join().unwrap()
    });
    // Asked to end, it says whether the logs are the same.
    let lines = wait_for_line(&mut follow, |line| line.contains("; 0 events or 0 s behind"));
    let stop = format!("kill -TERM {}", follow.id());
    assert!(Command::new("sh").args(["-c", &stop]).status().unwrap().success());
    let output = text(follow.wait_with_output().unwrap());
    drop(lines);
    assert!(output.contains("compared    50 users, 0 differences"), "{output}");
    server.publish("", &[json!({"type": "kick", "user": "user-7"})]);
    // It copies everything before it asks for the server to be stopped.
    let mut finish = reshard(from, to, &["--finish"]).spawn().unwrap();
    let lines = wait_for_line(&mut finish, |line| line.starts_with("stop the server of "));
    drop(server);
    let output = text(finish.wait_with_output().unwrap());
    drop(lines);
    assert!(output.contains("compared    50 users, 0 differences"), "{output}");
    assert!(output.contains("finished"), "{output}");

    let server = Server::start(to, ANYWHERE, &[], &[]);
    let version = |user: &str| {
        let (status, body) = server.get(&format!("/v1/users/{user}"), "");
        assert_eq!(status, 200, "{body}");
        serde_json::from_str::<Value>(&body).unwrap()["version"]
            .as_u64()
            .unwrap()
    };
    wait_until("it has folded the new log", || version("user-7") == published + 1);
    for number in (0..50).filter(|number| *number != 7) {
        assert_eq!(version(&format!("user-{number}")), published, "user-{number}");
    }
    server.publish(
        "",
        &[json!({"type": "custom_status", "user": "user-3", "text": "after"})],
    );
    wait_until("versions go on", || version("user-3") == published + 1);
}

#[test]
fn what_cannot_be_moved_is_refused_with_a_sentence() {
    let house = House::at(SystemClock::new().now_ms());
    house.fill();
    let to = tempfile::tempdir().unwrap();
    let (from, to) = (house.data.path(), to.path());
    let error = complaint(
        rollcall(&["reshard", "--partitions", "3", "--data"])
            .arg(from)
            .arg("--to-data")
            .arg(to)
            .output()
            .unwrap(),
    );
    assert!(error.contains("is not a multiple of 2"), "{error}");
    let error = complaint(reshard(to, from, &[]).output().unwrap());
    assert!(error.contains("there is no log in"), "{error}");
    let error = complaint(reshard(from, from, &[]).output().unwrap());
    assert!(error.contains("name the same directory"), "{error}");

    // Places that are for something else, also where nothing would be written.
    let within = from.join("new");
    let stores = tempfile::tempdir().unwrap();
    std::fs::create_dir(stores.path().join("store")).unwrap();
    let of_server = tempfile::tempdir().unwrap();
    std::fs::create_dir(of_server.path().join("store")).unwrap();
    std::fs::write(of_server.path().join("lock"), "").unwrap();
    let within_server = of_server.path().join("new");
    let lake = tempfile::tempdir().unwrap();
    let made = rollcall(&["lake", "--once", "--to"])
        .arg(lake.path())
        .arg("--data")
        .arg(from)
        .output()
        .unwrap();
    text(made);
    let within_lake = lake.path().join("new");
    let a_file = stores.path().join("file");
    std::fs::write(&a_file, "").unwrap();
    let below_a_file = a_file.join("new");
    for (place, says) in [
        (from, "name the same directory"),
        (&*within, "the directory of the old log"),
        (stores.path(), "has the stores of another log"),
        (&*within_server, "is the data directory of a server"),
        (lake.path(), "is a lake"),
        (&*within_lake, "is a lake"),
        (&*a_file, "ot a directory"),
        (&*below_a_file, "ot a directory"),
    ] {
        for more in [&["--dry-run"][..], &[]] {
            let error = complaint(reshard(from, place, more).output().unwrap());
            assert!(error.contains(says), "{place:?} {more:?}: {error}");
            assert!(!place.join("log").exists() || place == from);
        }
    }

    // Another log is in the way: of an engine, or filled from elsewhere.
    let other = House::new();
    let error = complaint(reshard(from, other.data.path(), &[]).output().unwrap());
    assert!(error.contains("in use by another process"), "{error}");
    let House { data, log, .. } = other;
    drop(log);
    for more in [&["--dry-run"][..], &[]] {
        let error = complaint(reshard(from, data.path(), more).output().unwrap());
        assert!(
            error.contains("was made with 2 partitions, but 6 are asked for"),
            "{error}"
        );
    }
    let used = tempfile::tempdir().unwrap();
    let six = Settings {
        partitions: Some(TARGETS),
        ..Settings::default()
    };
    drop(LocalLog::open(&used.path().join("log"), six, house.clock.clone()).unwrap());
    for more in [&["--dry-run"][..], &[]] {
        let error = complaint(reshard(from, used.path(), more).output().unwrap());
        assert!(error.contains("is not a log that this command was filling"), "{error}");
    }
    let to_nowhere = [
        "reshard",
        "--partitions",
        "6",
        "--kafka",
        "127.0.0.1:1",
        "--to-prefix",
        "new",
        "--dry-run",
    ];
    let error = complaint(rollcall(&to_nowhere).arg("--data").arg(from).output().unwrap());
    assert!(error.contains("127.0.0.1:1"), "no broker is there: {error}");
    let elsewhere = House::new();
    elsewhere.connect("somebody", "phone", 1);
    text(reshard(elsewhere.data.path(), to, &[]).output().unwrap());
    text(reshard(elsewhere.data.path(), to, &["--dry-run"]).output().unwrap());
    let error = complaint(reshard(from, to, &[]).output().unwrap());
    assert!(
        error.contains("of the new log has another record at offset 0"),
        "{error}"
    );
}
