//! `rollcall webhook` between the real engine and a receiver that fails, stalls and dies.

#[path = "webhook/receiver.rs"]
mod receiver;
mod server;

use receiver::{Answer, Receiver};
use serde_json::{Value, json};
use server::{ANYWHERE, PATIENCE, Server, rollcall, wait_until};
use sha2::{Digest as _, Sha256};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// A running bridge; killed when dropped.
struct Bridge(Child);

impl Bridge {
    fn start(directory: &Path, engine: &str, receiver: &Receiver, more: &[&str]) -> Bridge {
        let to = format!("http://{}/hook", receiver.address);
        let child = rollcall(&["webhook", "--engine", engine, "--to", &to, "--log-level", "error"])
            .args(["--from", "earliest"])
            .args(more)
            .current_dir(directory)
            .stderr(Stdio::null())
            .spawn();
        Bridge(child.expect("started"))
    }

    /// In the middle of whatever it does.
    fn kill(mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("ended");
    }

    /// As a service manager does.
    fn stop(mut self) {
        let signalled = Command::new("kill").args(["-TERM", &self.0.id().to_string()]).status();
        assert!(signalled.expect("kill is installed").success());
        let mut status = None;
        wait_until("it has ended", || {
            status = self.0.try_wait().expect("waited for");
            status.is_some()
        });
        assert_eq!(status.and_then(|status| status.code()), Some(0));
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // Ended already, where a test ended it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn url(server: &Server) -> String {
    format!("http://{}", server.address)
}

fn on(kind: &str, user: &str, platform: &str, conn: u64) -> Value {
    json!({"type": kind, "user": user, "platform": platform, "device": "d1", "gateway": "g1", "epoch": 1, "conn": conn,
        "intent": "login", "reason": "closed"})
}

fn says(user: &str, text: &str) -> Value {
    json!({"type": "custom_status", "user": user, "text": text})
}

/// Eleven changes of a user.
fn day(user: &str, conn: u64) -> Vec<Value> {
    let mut events = vec![on("connect", user, "android", conn)];
    events.extend((0..9).map(|number| says(user, &format!("{conn} {number}"))));
    events.push(on("logout", user, "android", conn));
    events
}

const DAY: u64 = 11;

fn user(number: usize) -> String {
    format!("user-{number}")
}

#[track_caller]
fn wait_until_taken(receiver: &Receiver, users: &[String], changes: u64) {
    wait_until("every change of theirs is taken", || {
        let taken = receiver.taken();
        users.iter().all(|user| taken.get(user) == Some(&changes))
    });
}

/// How many changes are before the position that a bridge keeps, in all partitions.
fn position_of(directory: &Path) -> Option<u64> {
    let text = std::fs::read_to_string(directory.join("rollcall-webhook.position")).ok()?;
    let offset = |part: &str| part.split_once(':')?.1.parse::<u64>().ok();
    text.trim().split(',').map(offset).sum()
}

#[test]
fn nothing_is_lost_and_each_users_order_is_kept_whatever_dies() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let mut server = Server::start(&data, ANYWHERE, &[], &[]);
    let engine = url(&server);
    let mut receiver = Receiver::open();
    let mut attempts = 0;
    receiver.answer(move |_| {
        attempts += 1;
        match attempts {
            attempt if attempt % 97 == 0 => Answer::Silence,
            attempt if attempt % 5 == 0 => Answer::Status(503),
            _ => Answer::Status(200),
        }
    });
    let start = |receiver: &Receiver| Bridge::start(directory.path(), &engine, receiver, &["--timeout-ms", "200"]);
    let mut bridge = start(&receiver);
    let users: Vec<String> = (0..30).map(user).collect();
    for round in 1..=4 {
        for user in &users {
            server.publish("", &day(user, round));
        }
        let before = receiver.count();
        wait_until("it goes on", || receiver.count() > before + 100);
        bridge.kill();
        if round == 2 {
            // The engine dies as well, and comes back while the bridge asks for it.
            let address = server.address.to_string();
            drop(server);
            bridge = start(&receiver);
            server = Server::start(&data, &address, &[], &[]);
        } else {
            bridge = start(&receiver);
        }
        if round == 3 {
            receiver.kill();
            thread::sleep(std::time::Duration::from_millis(300));
            receiver.revive();
        }
    }
    wait_until_taken(&receiver, &users, 4 * DAY);
    // The receiver has taken all, but the bridge may have given up waiting for an answer.
    wait_until("the bridge knows it", || {
        position_of(directory.path()) == Some(4 * DAY * users.len() as u64)
    });
    bridge.stop();
    // What was kept at the end is the end: nothing is posted again.
    let before = receiver.count();
    let bridge = start(&receiver);
    server.publish("", &day("late", 1));
    wait_until_taken(&receiver, &["late".to_owned()], DAY);
    assert!(receiver.posted()[before..].iter().all(|posted| posted.user == "late"));
    bridge.stop();
    let letters = std::fs::read_to_string(directory.path().join("rollcall-webhook.dead-letters"));
    assert_eq!(letters.expect("the file is there"), "");
}

#[test]
fn who_does_not_answer_holds_up_neither_the_others_nor_the_engine() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(&directory.path().join("data"), ANYWHERE, &["--partitions", "1"], &[]);
    let receiver = Receiver::open();
    receiver.answer(|posted| match &*posted.user {
        "user-0" => Answer::Silence,
        "user-1" => Answer::Status(500),
        _ => Answer::Status(200),
    });
    let position = || std::fs::read_to_string(directory.path().join("rollcall-webhook.position")).unwrap_or_default();
    let patient = ["--timeout-ms", "60000"];
    let bridge = Bridge::start(directory.path(), &url(&server), &receiver, &patient);
    let users: Vec<String> = (0..20).map(user).collect();
    for user in &users {
        server.publish("", &day(user, 1));
    }
    wait_until_taken(&receiver, &users[2..], DAY);
    wait_until("a position is kept", || position() == "0:0\n");
    let (status, stats) = server.get("/v1/stats", "");
    assert_eq!(status, 200, "{stats}");
    // The position is before all of their changes, so the next process begins with them.
    bridge.kill();
    receiver.answer(|_| Answer::Status(200));
    let bridge = Bridge::start(directory.path(), &url(&server), &receiver, &patient);
    wait_until_taken(&receiver, &users, DAY);
    wait_until("the position is the end", || position() == format!("0:{}\n", 20 * DAY));
    bridge.stop();
}

#[test]
fn what_is_never_taken_is_in_the_dead_letters_and_the_rest_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(&directory.path().join("data"), ANYWHERE, &[], &[]);
    let receiver = Receiver::open();
    receiver.answer(|posted| match (&*posted.user, posted.version) {
        ("user-0", 2) => Answer::Status(422),
        ("user-1", 1) => Answer::Status(500),
        _ => Answer::Status(200),
    });
    let bridge = Bridge::start(directory.path(), &url(&server), &receiver, &["--give-up-after-s", "3"]);
    let users: Vec<String> = (0..3).map(user).collect();
    for user in &users {
        server.publish("", &day(user, 1));
    }
    let last = |user: &str| {
        let posted = receiver.posted();
        posted
            .iter()
            .any(|posted| posted.user == user && posted.version == DAY && posted.taken)
    };
    wait_until("all have been posted", || users.iter().all(|user| last(user)));
    bridge.stop();
    let letters = std::fs::read_to_string(directory.path().join("rollcall-webhook.dead-letters")).expect("a file");
    let mut letters: Vec<Value> = letters
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    letters.sort_by_key(|letter| letter["user"].to_string());
    let shown: Vec<_> = letters
        .iter()
        .map(|letter| {
            (
                &letter["user"],
                &letter["version"],
                &letter["why"],
                &letter["body"]["Info"]["Reason"],
            )
        })
        .collect();
    let text = |text: &str| json!(text);
    assert_eq!(
        shown,
        [
            (
                &text("user-0"),
                &json!(2),
                &text("the receiver responded with 422"),
                &text("SetCustomStatus")
            ),
            (
                &text("user-1"),
                &json!(1),
                &text("the receiver responded with 500"),
                &text("Register")
            ),
        ]
    );
    let attempts = |user: &str, version: u64| {
        let posted = receiver.posted();
        posted
            .iter()
            .filter(|posted| (&*posted.user, posted.version) == (user, version))
            .count()
    };
    // A refusal decides nothing before another callback is accepted.
    assert!(attempts("user-0", 2) > 1 && attempts("user-1", 1) > 1);
}

#[test]
fn a_full_dead_letter_file_stops_the_bridge_and_the_callback_is_posted_again() {
    let directory = tempfile::tempdir().expect("a directory");
    // In one partition, so that the others' callbacks come after hers.
    let server = Server::start(&directory.path().join("data"), ANYWHERE, &["--partitions", "1"], &[]);
    let receiver = Receiver::open();
    receiver.answer(|posted| match (&*posted.user, posted.version) {
        ("user-0", 2) => Answer::Status(422),
        _ => Answer::Status(200),
    });
    let path = directory.path().join("rollcall-webhook.dead-letters");
    let letters = || std::fs::read_to_string(&path).expect("a file");
    let full = "x".repeat((1 << 20) - 1) + "\n";
    std::fs::write(&path, &full).expect("written");
    // One at a time, so that the others are still accepted after her second callback was refused.
    for user in ["user-0", "user-1", "user-2"] {
        server.publish("", &day(user, 1));
    }
    let to = format!("http://{}/hook", receiver.address);
    let bound = ["--from", "earliest", "--dead-letters-mib", "1", "--parallel", "1"];
    let said = refused(directory.path(), &url(&server), &[&["--to", &to][..], &bound].concat());
    assert!(
        said.contains("rollcall-webhook.dead-letters has 1048576 bytes"),
        "{said}"
    );
    assert!(said.contains("Move the file away"), "{said}");
    assert_eq!(letters(), full);

    std::fs::rename(&path, directory.path().join("old")).expect("moved away");
    let before = receiver.count();
    let bridge = Bridge::start(directory.path(), &url(&server), &receiver, &bound[2..]);
    wait_until("she is refused again", || {
        let posted = &receiver.posted()[before..];
        posted
            .iter()
            .any(|posted| (&*posted.user, posted.version) == ("user-0", 2))
    });
    server.publish("", &day("late", 1));
    wait_until("the rest is posted", || position_of(directory.path()) == Some(4 * DAY));
    bridge.stop();
    let letter: Value = serde_json::from_str(&letters()).expect("one line of JSON");
    assert_eq!((&letter["user"], &letter["version"]), (&json!("user-0"), &json!(2)));
}

#[test]
fn a_receiver_that_asks_for_a_rest_gets_it_from_everybody() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(&directory.path().join("data"), ANYWHERE, &[], &[]);
    let receiver = Receiver::open();
    let mut attempts = 0;
    receiver.answer(move |_| {
        attempts += 1;
        match attempts {
            3 => Answer::With(429, "Retry-After", "2"),
            9 => Answer::With(503, "Retry-After", "1"),
            _ => Answer::Status(200),
        }
    });
    // One at a time, so that none is in flight when the receiver asks for the pause. The callback is given up in less time than
    // the pause, and is still tried once more after it.
    let bridge = Bridge::start(
        directory.path(),
        &url(&server),
        &receiver,
        &["--parallel", "1", "--give-up-after-s", "1"],
    );
    let users: Vec<String> = (0..4).map(user).collect();
    for user in &users {
        server.publish("", &day(user, 1));
    }
    wait_until_taken(&receiver, &users, DAY);
    bridge.stop();
    let posted = receiver.posted();
    for (refused, rest_s) in [(2, 2), (8, 1)] {
        assert!(!posted[refused].taken);
        let rested = posted[refused + 1].at.duration_since(posted[refused].at);
        assert!(rested >= std::time::Duration::from_secs(rest_s), "{rested:?}");
    }
    assert_eq!(posted.len() as u64, 4 * DAY + 2);
}

/// The users and versions in the dead-letter file.
fn letters(directory: &Path) -> Vec<(String, u64)> {
    let text = std::fs::read_to_string(directory.join("rollcall-webhook.dead-letters")).expect("a file");
    let letter = |line: &str| {
        let letter: Value = serde_json::from_str(line).expect("JSON");
        let user = letter["user"].as_str().expect("a user").to_owned();
        (user, letter["version"].as_u64().expect("a number"))
    };
    text.lines().map(letter).collect()
}

/// Publishes a day of each user, and returns what a bridge says that ends by itself because of the receiver.
#[track_caller]
fn refused_after_days(directory: &Path, server: &Server, receiver: &Receiver, users: &[String]) -> String {
    for user in users {
        server.publish("", &day(user, 1));
    }
    let to = format!("http://{}/hook", receiver.address);
    refused(directory, &url(server), &["--to", &to, "--from", "earliest"])
}

/// Every callback was accepted or is in the dead-letter file, and none is both.
#[track_caller]
fn each_is_in_one_place(directory: &Path, receiver: &Receiver, users: &[String]) {
    let posted = receiver.posted().into_iter().filter(|posted| posted.taken);
    let mut accepted: Vec<_> = posted.map(|posted| (posted.user, posted.version)).collect();
    accepted.sort_unstable();
    accepted.dedup();
    accepted.extend(letters(directory));
    accepted.sort_unstable();
    let mut all: Vec<_> = users
        .iter()
        .flat_map(|user| (1..=DAY).map(|version| (user.clone(), version)))
        .collect();
    all.sort_unstable();
    assert_eq!(accepted, all);
}

#[test]
fn what_a_receiver_refuses_that_refuses_everybody_is_posted_again_in_order_and_is_no_dead_letter() {
    for code in [400, 413, 422] {
        let directory = tempfile::tempdir().expect("a directory");
        let server = Server::start(&directory.path().join("data"), ANYWHERE, &[], &[]);
        let receiver = Receiver::open();
        // Some have begun before it refuses everybody, and are accepted after others were refused.
        let mut seen = 0;
        receiver.answer(move |_| {
            seen += 1;
            match seen <= 40 {
                true => Answer::Status(200),
                false => Answer::Status(code),
            }
        });
        let users: Vec<String> = (0..20).map(user).collect();
        let said = refused_after_days(directory.path(), &server, &receiver, &users);
        assert!(said.contains("it refused callbacks of 10 users"), "{said}");
        assert!(said.contains(&format!("the receiver responded with {code}")), "{said}");
        assert!(said.contains("none of them is in the dead-letter file"), "{said}");
        assert_eq!(letters(directory.path()), []);
        receiver.answer(|_| Answer::Status(200));
        let bridge = Bridge::start(directory.path(), &url(&server), &receiver, &[]);
        wait_until_taken(&receiver, &users, DAY);
        bridge.stop();
        each_is_in_one_place(directory.path(), &receiver, &users);
    }
}

#[test]
fn a_bridge_that_has_given_up_too_many_stops_and_says_how_many_are_dead_letters() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(&directory.path().join("data"), ANYWHERE, &[], &[]);
    let receiver = Receiver::open();
    // Each callback that is accepted decides about eight others, which are given up.
    let mut seen = 0;
    receiver.answer(move |_| {
        seen += 1;
        match seen % 20 {
            0 => Answer::Status(200),
            _ => Answer::Status(422),
        }
    });
    let users: Vec<String> = (0..9).map(user).collect();
    let said = refused_after_days(directory.path(), &server, &receiver, &users);
    assert!(said.contains("it refused 40 of the last 50 callbacks"), "{said}");
    let given_up = letters(directory.path());
    assert!(!given_up.is_empty());
    let sentence = format!("the {} callbacks that were given up earlier", given_up.len());
    assert!(said.contains(&sentence), "{said}");
    receiver.answer(|_| Answer::Status(200));
    let bridge = Bridge::start(directory.path(), &url(&server), &receiver, &[]);
    wait_until("all is done", || {
        position_of(directory.path()) == Some(DAY * users.len() as u64)
    });
    bridge.stop();
    assert_eq!(letters(directory.path()), given_up);
    each_is_in_one_place(directory.path(), &receiver, &users);
}

#[test]
fn a_receiver_that_refuses_everybody_stops_the_bridge_and_nothing_is_given_up() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(&directory.path().join("data"), ANYWHERE, &[], &[]);
    let receiver = Receiver::open();
    receiver.answer(|_| Answer::Status(400));
    let users: Vec<String> = (0..12).map(user).collect();
    let said = refused_after_days(directory.path(), &server, &receiver, &users);
    assert!(said.contains("the receiver refuses nearly every callback"), "{said}");
    assert!(said.contains("the receiver responded with 400"), "{said}");
    assert_eq!(letters(directory.path()), []);
    // Only one user is refused now, and two others for a moment, as by a proxy whose route is being changed.
    let mut seen = 0;
    receiver.answer(move |posted| {
        seen += 1;
        match (&*posted.user, posted.version) {
            ("user-3", 4) => Answer::Status(400),
            _ if seen == 5 || seen == 20 => Answer::Status(400),
            _ => Answer::Status(200),
        }
    });
    let bridge = Bridge::start(directory.path(), &url(&server), &receiver, &["--parallel", "1"]);
    let last = |user: &String| {
        let posted = receiver.posted();
        posted
            .iter()
            .any(|posted| posted.user == *user && posted.version == DAY && posted.taken)
    };
    // Her callback is what is wrong if another is taken.
    wait_until("she is refused", || {
        receiver
            .posted()
            .iter()
            .any(|posted| (&*posted.user, posted.version) == ("user-3", 4))
    });
    server.publish("", &day("late", 1));
    wait_until("all have the rest", || users.iter().all(last));
    bridge.stop();
    assert_eq!(letters(directory.path()), [("user-3".to_owned(), 4)]);
}

#[test]
fn a_redirect_is_told_with_where_it_leads_and_without_secrets() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(&directory.path().join("data"), ANYWHERE, &[], &[]);
    let receiver = Receiver::open();
    receiver.answer(|_| Answer::With(301, "Location", "https://u:hunter2@chat.example.com/hook?Sign=hunter2"));
    server.publish("", &day("alice", 1));
    let log = directory.path().join("log");
    let stderr = std::fs::File::create(&log).expect("a file");
    let to = format!("http://user:hunter2@{}/hook?key=hunter2", receiver.address);
    let engine = url(&server).replace("http://", "http://user:hunter2@");
    let child = rollcall(&["webhook", "--engine", &engine, "--to", &to, "--from", "earliest"])
        .current_dir(directory.path())
        .stderr(Stdio::from(stderr))
        .spawn();
    let bridge = Bridge(child.expect("started"));
    let said = || std::fs::read_to_string(&log).expect("a log");
    wait_until("it says so", || {
        said().contains(
            "responded with 301, a redirect to https://***@chat.example.com/hook?***, and redirects are not followed",
        )
    });
    bridge.stop();
    assert!(!said().contains("hunter2"), "{}", said());
    for (flag, value) in [
        ("--to", "ftp://u:hunter2@host/x"),
        ("--engine", "ftp://u:hunter2@host/x"),
    ] {
        let said = refused(directory.path(), &url(&server), &[flag, value]);
        assert!(
            said.contains("give http://HOST:PORT") && !said.contains("hunter2"),
            "{said}"
        );
    }
}

#[test]
fn an_outage_is_said_with_its_length_and_all_that_wait_are_posted_as_soon_as_it_ends() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(&directory.path().join("data"), ANYWHERE, &[], &[]);
    let engine = url(&server);
    let receiver = Receiver::open();
    receiver.answer(|_| Answer::Status(503));
    let users: Vec<String> = (0..40).map(user).collect();
    for user in &users {
        server.publish("", &day(user, 1));
    }
    let log = directory.path().join("log");
    let to = format!("http://user:hunter2@{}/hook?key=hunter2", receiver.address);
    let child = rollcall(&["webhook", "--engine", &engine, "--to", &to, "--from", "earliest"])
        .args(["--parallel", "4"])
        .current_dir(directory.path())
        .stderr(std::fs::File::create(&log).expect("a file"))
        .spawn();
    let bridge = Bridge(child.expect("started"));
    let said = || std::fs::read_to_string(&log).expect("a log");
    let attempts_of = |user: &str| receiver.posted().iter().filter(|posted| posted.user == user).count();
    // The sixth pause takes longer than many posts.
    wait_until("all have long pauses", || {
        users.iter().all(|user| attempts_of(user) >= 6)
    });
    receiver.answer(|_| Answer::Status(200));
    let days = 20;
    for conn in 1..=days {
        server.publish("", &day("new", conn));
    }
    wait_until_taken(&receiver, &users, DAY);
    wait_until_taken(&receiver, &["new".to_owned()], days * DAY);
    bridge.stop();
    // Nobody waits while she gets one after the other.
    let posted = receiver.posted();
    let first = |user: &str, version: u64| {
        posted
            .iter()
            .position(|posted| posted.user == user && posted.version == version && posted.taken)
    };
    for user in &users {
        assert!(first(user, 1) < first("new", days * DAY), "{user}");
    }
    let said = said();
    let warning = said
        .lines()
        .find(|line| line.contains("callbacks are not accepted, retrying"));
    let warning = warning.expect("it is said");
    assert!(warning.contains("the receiver responded with 503"), "{said}");
    for field in ["user=", "waiting=", "oldest_s=", "nothing_accepted_s=", "***@127.0.0.1"] {
        assert!(warning.contains(field), "{field}: {said}");
    }
    let back = said
        .lines()
        .find(|line| line.contains("the receiver accepts callbacks again"));
    let back = back.expect("it is said");
    assert!(back.contains("lasted_s=") && back.contains("waiting="), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn an_engine_that_goes_is_named_with_its_url_in_plain_words() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let server = Server::start(&data, ANYWHERE, &[], &[]);
    let address = server.address.to_string();
    let receiver = Receiver::open();
    let log = directory.path().join("log");
    let to = format!("http://{}/hook", receiver.address);
    let engine = url(&server);
    let child = rollcall(&["webhook", "--engine", &engine, "--to", &to, "--from", "earliest"])
        .current_dir(directory.path())
        .stderr(std::fs::File::create(&log).expect("a file"))
        .spawn();
    let bridge = Bridge(child.expect("started"));
    let said = || std::fs::read_to_string(&log).expect("a log");
    server.publish("", &day("alice", 1));
    wait_until_taken(&receiver, &["alice".to_owned()], DAY);
    drop(server);
    wait_until("it says so", || said().contains(&format!("the engine at {engine} ")));
    let server = Server::start(&data, &address, &[], &[]);
    wait_until("it says that it is back", || {
        said().contains(&format!("the changes of the engine at {engine} are followed again"))
    });
    assert!(!said().contains("EOF") && !said().contains("chunk"), "{}", said());
    bridge.stop();
    drop(server);
}

#[test]
fn callbacks_are_signed_and_say_what_tencents_say() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).expect("written");
    file("token", "xxxxyyyy\n");
    file("engine-token", "watcher-0123456789\n");
    file("tokens", "watcher-0123456789 read\noperator-0123456789 admin\n");
    let tokens = directory.path().join("tokens");
    let guarded = ["--token-file", tokens.to_str().expect("UTF-8")];
    let server = Server::start(&directory.path().join("data"), ANYWHERE, &guarded, &[]);
    let receiver = Receiver::open();
    let more = [
        "--token-file",
        "token",
        "--engine-token-file",
        "engine-token",
        "--app",
        "1400000000",
    ];
    let said = refused(directory.path(), &url(&server), &[]);
    assert!(said.contains("401") && said.contains("--engine-token-file"), "{said}");
    let bridge = Bridge::start(directory.path(), &url(&server), &receiver, &more);
    server.publish(
        "operator-0123456789",
        &[
            on("connect", "alice", "windows", 1),
            on("connect", "alice", "linux", 2),
            says("alice", "busy"),
            on("disconnect", "alice", "linux", 2),
        ],
    );
    wait_until_taken(&receiver, &["alice".to_owned()], 4);
    bridge.stop();
    let posted = receiver.posted();
    let bodies: Vec<Value> = posted
        .iter()
        .map(|posted| {
            let mut body = posted.body.clone();
            assert!(body["EventTime"].as_u64() > Some(1_577_836_800_000), "{body}");
            body["EventTime"] = json!(0);
            body
        })
        .collect();
    let expected = |info: Value| json!({"CallbackCommand": "State.StateChange", "EventTime": 0, "Info": info});
    let mut displacing = expected(json!({"Action": "Login", "To_Account": "alice", "Reason": "Register"}));
    displacing["KickedDevice"] = json!([{"Platform": "Windows"}]);
    assert_eq!(
        bodies,
        [
            expected(json!({"Action": "Login", "To_Account": "alice", "Reason": "Register"})),
            displacing,
            expected(
                json!({"Action": "CustomStatusChange", "To_Account": "alice", "Reason": "SetCustomStatus",
                "CustomStatus": "busy"})
            ),
            expected(json!({"Action": "Disconnect", "To_Account": "alice", "Reason": "LinkClose"})),
        ]
    );
    for (posted, platform) in posted.iter().zip(["Windows", "Linux", "Unknown", "Linux"]) {
        let expected = format!(
            "SdkAppid=1400000000&CallbackCommand=State.StateChange&contenttype=json&OptPlatform={platform}&Sign="
        );
        let rest = posted.query.strip_prefix(&expected).expect(&posted.query);
        let (sign, time) = rest.split_once("&RequestTime=").expect("a time");
        let hash = Sha256::digest(format!("xxxxyyyy{time}"));
        let hexadecimal: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(sign, hexadecimal);
    }
}

/// Runs a bridge that cannot continue. Returns its error.
fn refused(directory: &Path, engine: &str, more: &[&str]) -> String {
    let defaults = [("--to", "http://127.0.0.1:9/hook"), ("--engine", engine)];
    let mut bridge = rollcall(&["webhook", "--log-level", "error"])
        .args(
            defaults
                .iter()
                .filter(|(flag, _)| !more.contains(flag))
                .flat_map(|(flag, value)| [flag, value]),
        )
        .args(more)
        .current_dir(directory)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let begun = Instant::now();
    while bridge.try_wait().expect("ours").is_none() {
        if begun.elapsed() > PATIENCE {
            bridge.kill().expect("killed");
            let output = bridge.wait_with_output().expect("ended");
            panic!("it goes on: {}", String::from_utf8_lossy(&output.stderr));
        }
        thread::sleep(Duration::from_millis(20));
    }
    let output = bridge.wait_with_output().expect("ended");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{said}");
    said
}

#[test]
fn what_no_waiting_mends_ends_it_with_a_sentence() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let server = Server::start(&directory.join("data"), ANYWHERE, &["--partitions", "1"], &[]);
    let receiver = Receiver::open();
    let position = |text: &str| std::fs::write(directory.join("rollcall-webhook.position"), text).expect("written");
    position("nonsense");
    let said = refused(directory, &url(&server), &[]);
    assert!(
        said.contains("does not contain a position; expected text such as 0:12,1:7"),
        "{said}"
    );
    position("0:17\n");
    let said = refused(directory, &url(&server), &[]);
    assert!(
        said.contains("400: the cursor is ahead of partition 0, which ends at 0"),
        "{said}"
    );
    let said = refused(directory, "ftp://127.0.0.1", &[]);
    assert!(
        said.contains("--engine: the value (not shown) begins with ftp://, which is not supported: give http://"),
        "{said}"
    );
    let said = refused(directory, &url(&server), &["--token-file", "no-such-file"]);
    assert!(said.contains("cannot read the webhook token no-such-file"), "{said}");
    position("0:0\n");
    let bridge = Bridge::start(directory, &url(&server), &receiver, &[]);
    server.publish("", &day("alice", 1));
    wait_until_taken(&receiver, &["alice".to_owned()], DAY);
    let said = refused(directory, &url(&server), &[]);
    assert!(said.contains("another process uses the position file"), "{said}");
    let said = refused(directory, &url(&server), &["--position", "another"]);
    assert!(said.contains("another process uses the dead-letter file"), "{said}");
    assert!(said.contains("--dead-letters"), "{said}");
    bridge.stop();

    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let listener = runtime
        .block_on(tokio::net::TcpListener::bind(ANYWHERE))
        .expect("a port");
    let forgetful = format!("http://{}", listener.local_addr().expect("an address"));
    let fault = json!({"error": {"code": "gone", "message": "long ago", "oldest": "0:500"}}).to_string();
    let gone = move || async move { (axum::http::StatusCode::GONE, fault) };
    let router = axum::Router::new().route("/v1/changes", axum::routing::get(gone));
    runtime.spawn(async move { axum::serve(listener, router).await });
    let said = refused(directory, &forgetful, &[]);
    assert!(said.contains("no longer has the position 0:11"), "{said}");
    assert!(said.contains("at 0:500"), "{said}");
    runtime.shutdown_timeout(PATIENCE);
}
