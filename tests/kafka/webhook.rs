//! `rollcall webhook --kafka`: bridges that share the change topic as a consumer group, which keeps their position.

use crate::engine::Node;
use crate::python::{self, mortal, program};
use crate::receiver::{Answer, Receiver};
use crate::space::Space;
use serde_json::{Value, json};
use std::fs::File;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const PARTITIONS: usize = 4;
const USERS: usize = 40;
/// Changes of one call of [`day`].
const DAY: u64 = 7;
const PATIENCE: Duration = Duration::from_secs(180);

struct Bridge {
    child: Child,
}

fn command(directory: &Path, space: &Space, group: &str, to: &str) -> Command {
    let mut command = mortal(&program());
    command.args(["webhook", "--kafka", &space.bootstrap, "--topic-prefix", &space.prefix]);
    command.args([
        "--group",
        group,
        "--to",
        to,
        "--from",
        "earliest",
        "--timeout-ms",
        "300",
    ]);
    command.args(["--kafka-set", "session.timeout.ms=6000", "--log-level", "info"]);
    command.current_dir(directory).stdin(Stdio::null());
    command
}

impl Bridge {
    fn start(directory: &Path, space: &Space, group: &str, receiver: &Receiver) -> Bridge {
        let to = format!("http://{}/hook", receiver.address);
        let diary = File::options().create(true).append(true).open(directory.join("diary"));
        let child = command(directory, space, group, &to)
            .stderr(diary.expect("a file"))
            .spawn();
        Bridge {
            child: child.expect("it starts"),
        }
    }

    fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    /// As a service manager does.
    fn stop(mut self) {
        let signalled = Command::new("kill")
            .args(["-TERM", &self.child.id().to_string()])
            .status();
        assert!(signalled.expect("kill is there").success());
        let mut status = None;
        until("it has ended", || {
            status = self.child.try_wait().expect("waited for");
            status.is_some()
        });
        assert!(status.is_some_and(|status| status.success()), "{status:?}");
    }
}

impl Drop for Bridge {
    fn drop(&mut self) {
        // Ended already, where all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not yet: {what}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Every user comes, says a few things and goes.
fn day(node: &Node, conn: u64) {
    let mut events = Vec::new();
    let on = |kind: &str, user: usize| {
        json!({"type": kind, "user": format!("user-{user}"), "platform": "android", "device": "d", "gateway": "g",
            "epoch": 1, "conn": conn, "intent": "login"})
    };
    events.extend((0..USERS).map(|user| on("connect", user)));
    for text in 0..DAY - 2 {
        let says =
            |user| json!({"type": "custom_status", "user": format!("user-{user}"), "text": format!("{conn} {text}")});
        events.extend((0..USERS).map(says));
    }
    events.extend((0..USERS).map(|user| on("logout", user)));
    until("they are published", || {
        let posted = ureq::post(format!("{}/v1/events", node.url())).send(json!(events).to_string());
        posted.is_ok()
    });
}

fn wait_until_taken(receiver: &Receiver, days: u64) {
    until("every change is taken", || {
        let taken = receiver.taken();
        taken.len() == USERS && taken.values().all(|changes| *changes == days * DAY)
    });
}

/// What the group has committed and the end, by partition, as a client that is not ours sees it.
fn lag(space: &Space, group: &str) -> Vec<(i64, i64)> {
    let printed = python::run("topics.py", space, &["lag", "changes", group]);
    serde_json::from_str(&printed).expect("JSON")
}

/// In how many partitions the group has got further since.
fn moved(before: &[(i64, i64)], now: &[(i64, i64)]) -> usize {
    before.iter().zip(now).filter(|(before, now)| now.0 > before.0).count()
}

pub fn bridges_of_a_group_post_everything_in_order_whichever_of_them_dies(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "bridges", PARTITIONS);
    let group = format!("{}-bridges", space.prefix);
    let mut node = Node::new(directory.path(), &space, 0, &[]);
    node.start(None);
    let homes = ["one", "two"].map(|name| directory.path().join(name));
    homes.iter().for_each(|home| std::fs::create_dir(home).expect("made"));
    let receiver = Receiver::open();
    let mut attempts = 0;
    receiver.answer(move |_| {
        attempts += 1;
        match attempts {
            attempt if attempt % 53 == 0 => Answer::Silence,
            attempt if attempt % 7 == 0 => Answer::Status(503),
            _ => Answer::Status(200),
        }
    });
    let start = |home: usize| Bridge::start(&homes[home], &space, &group, &receiver);
    let gives = |home: usize, what: &str| {
        let diary = std::fs::read_to_string(homes[home].join("diary")).expect("a diary");
        diary.matches(what).count()
    };

    day(&node, 1);
    let first = start(0);
    wait_until_taken(&receiver, 1);
    until("the group's offsets are the ends", || {
        lag(&space, &group).iter().all(|(committed, end)| committed == end)
    });

    // A second one joins while callbacks are in flight, and gets some of the partitions.
    day(&node, 2);
    let second = start(1);
    until("the second has partitions", || gives(1, "following") > 0);
    until("the first has released some", || gives(0, "partitions released") > 0);
    day(&node, 3);
    wait_until_taken(&receiver, 3);

    // The first is killed in the middle, and the second continues at its position.
    let before = receiver.count();
    day(&node, 4);
    until("it goes on", || receiver.count() > before + 20);
    first.kill();
    wait_until_taken(&receiver, 4);

    // The first starts again. The second stops normally, and its callbacks are not posted again.
    let first = start(0);
    until("the first has partitions again", || gives(0, "following") > 1);
    second.stop();
    until("the group's offsets are the ends", || {
        lag(&space, &group).iter().all(|(committed, end)| committed == end)
    });
    let (before, places) = (receiver.count(), lag(&space, &group));
    day(&node, 5);
    wait_until_taken(&receiver, 5);
    let again = receiver.posted()[before..]
        .iter()
        .filter(|posted| posted.version <= 4 * DAY)
        .count();
    assert_eq!(again, 0);
    until("it got further in every partition", || {
        moved(&places, &lag(&space, &group)) == PARTITIONS
    });
    first.stop();
    for home in &homes {
        let letters = std::fs::read_to_string(home.join("rollcall-webhook.dead-letters"));
        assert_eq!(letters.expect("the file is there"), "");
    }
}

pub fn a_bridge_says_what_it_cannot_follow(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "bridge", 1);
    let group = format!("{}-bridge", space.prefix);
    let mut node = Node::new(directory.path(), &space, 0, &[]);
    node.start(None);
    day(&node, 1);
    until("it is known whose the topics are", || lag(&space, &group)[0].1 > 0);
    let receiver = Receiver::open();
    let to = format!("http://{}/hook", receiver.address);
    // The bridge must end by itself.
    let refused = |group: &str| {
        let output = command(directory.path(), &space, group, &to)
            .output()
            .expect("it starts");
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(2), "{said}");
        said
    };
    let said = refused(&space.group);
    let expected = format!(
        "the group {:?} is the engine's own: choose another with --group",
        space.group
    );
    assert!(said.contains(&expected), "{said}");

    let bridge = Bridge::start(directory.path(), &space, &group, &receiver);
    wait_until_taken(&receiver, 1);
    bridge.stop();
    let [(committed, _)] = lag(&space, &group)[..] else {
        panic!("one partition");
    };
    day(&node, 2);
    until("there is more than was taken", || {
        lag(&space, &group)[0].1 > committed + 10
    });
    let start = committed + 5;
    python::run("topics.py", &space, &["truncate", "changes", "0", &start.to_string()]);
    let said = refused(&group);
    let expected = format!(
        "changes were lost: partition 0 no longer has offset {committed}. To continue with the oldest change it has, \
         stop every bridge of the group {group} and set its offset to {start}"
    );
    assert!(said.contains(&expected), "{said}");
    let posted: Vec<Value> = receiver.posted().iter().map(|posted| json!(posted.version)).collect();
    assert!(posted.iter().all(|version| version.as_u64() <= Some(DAY)), "{posted:?}");
}
