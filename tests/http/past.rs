//! Questions about the past over HTTP: the same answers as `rollcall audit` gives of the same records.

use crate::client::encoded;
use crate::house::{House, connect, on, says, user_of};
use rollcall::api::answers::PastTotals;
use rollcall::audit::snapshot::Totals;
use rollcall::clock::ManualClock;
use rollcall::engine::Tuning;
use rollcall::engine::census::Census;
use rollcall::log::memory::MemoryLog;
use rollcall::log::{Limit, Log as _};
use rollcall::presence::change::{Change, Output};
use rollcall::presence::{LogTime, Offset, Partition};
use rollcall::registry::Schemas;
use rollcall::schema::{avro, json as schema_json};
use rollcall::sim::history;
use rollcall::store::{Indexed, Store, directory_of};
use rollcall::topics::Topic;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

const ONLY: Partition = Partition(0);
const RECORDS: usize = 260;

/// A log with a random history, and where a server keeps its stores.
struct World {
    log: Arc<MemoryLog>,
    clock: Arc<ManualClock>,
    directory: tempfile::TempDir,
    /// The lines of the records, as `rollcall log events` prints them.
    events: Vec<String>,
    seed: u64,
}

impl World {
    fn new(seed: u64) -> World {
        let clock = Arc::new(ManualClock::new(1_000));
        let world = World {
            log: Arc::new(MemoryLog::new(1, clock.clone())),
            clock,
            directory: tempfile::tempdir().expect("a directory"),
            events: Vec::new(),
            seed,
        };
        world.with_records(0, RECORDS / 2)
    }

    /// Appends these of the seed's records.
    fn with_records(mut self, from: usize, before: usize) -> World {
        for (offset, ts, event) in history::records(self.seed, before).skip(from) {
            let line = history::record_json(offset, ts, event.as_ref());
            let (mut key, mut value) = (None, Vec::new());
            match schema_json::read_line(&line).expect("a record").event {
                Ok(event) => {
                    avro::encode_event(&event, &mut value);
                    key = event.user().map(|user| user.as_bytes().to_vec());
                }
                Err(_) => value.extend_from_slice(b"this is no event"),
            }
            self.log.append_at(ONLY, offset, ts, key, value).expect("appended");
            self.events.push(line);
        }
        self
    }

    fn house(&self, kind: &Kind) -> House {
        let data = self.directory.path().join("data");
        let tuning = Tuning {
            index_changes: kind.index_changes,
            // Much of the index is in the store, and some is still to be written.
            store_commit_records: 40,
            batch_records: 30,
            ..Tuning::default()
        };
        let data = kind.has_store.then_some(data);
        let house = House::on(self.log.clone(), self.clock.clone(), data.as_deref(), tuning, None);
        house.wait_until_folded();
        house
    }

    fn changes(&self) -> Vec<Change> {
        changes(&self.log)
    }

    /// Prints the log into files; returns the arguments that name them.
    fn files(&self, changes: &[Change]) -> Vec<String> {
        let mut lines = Vec::new();
        for change in changes {
            schema_json::output_line(&mut lines, &Output::Change(change.clone()));
            lines.push(b'\n');
        }
        let path = |name: &str| self.directory.path().join(name);
        let text = |path: PathBuf| path.to_str().expect("UTF-8").to_owned();
        std::fs::write(path("changes"), lines).expect("written");
        std::fs::write(path("events"), self.events.join("\n") + "\n").expect("written");
        let named = ["--events", &text(path("events")), "--changes", &text(path("changes"))];
        named.map(str::to_owned).to_vec()
    }
}

fn changes(log: &MemoryLog) -> Vec<Change> {
    let mut records = Vec::new();
    let all = Limit {
        records: usize::MAX,
        bytes: usize::MAX,
    };
    let start = log.range(Topic::Changes, ONLY).expect("a range").start;
    log.read(Topic::Changes, ONLY, start, all, &mut records).expect("read");
    let schemas = Schemas::default();
    let change = |value: &[u8]| schemas.change(value).expect("known").expect("readable");
    records.iter().map(|record| change(&record.value)).collect()
}

/// What a server has of changes.
#[derive(Clone, Copy, Debug)]
struct Kind {
    has_store: bool,
    index_changes: u64,
}

const INDEXED: Kind = Kind {
    has_store: true,
    index_changes: 1_000_000,
};
const NOT_INDEXED: Kind = Kind {
    has_store: true,
    index_changes: 0,
};
const IN_MEMORY: Kind = Kind {
    has_store: false,
    index_changes: 1_000_000,
};

/// What the command prints, a line each.
fn audit(arguments: &[&str], files: &[String]) -> Vec<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .arg("audit")
        .args(arguments)
        .arg("--json")
        .args(files)
        .output()
        .expect("started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    text.lines().map(str::to_owned).collect()
}

/// Asks the server for a user's newest changes.
fn compare_newest(house: &House, changes: &[Change], user: &str, about: &str) {
    let of_user = changes.iter().filter(|change| &*change.user == user);
    let lines: Vec<String> = of_user.map(line).collect();
    for limit in [1, 2, 7, 20, 100] {
        let newest: Vec<&str> = lines.iter().rev().take(limit).map(String::as_str).collect();
        let asked = house.get(&format!("/v1/user/changes?id={}&limit={limit}", encoded(user)));
        asked.ok();
        let expected = format!("{{\"changes\":[{}]}}", newest.join(","));
        assert_eq!(asked.body, expected, "{about}: the newest {limit} of {user}");
    }
}

/// A change as subscriptions show it.
fn line(change: &Change) -> String {
    let mut line = Vec::new();
    schema_json::output_line(&mut line, &Output::Change(change.clone()));
    String::from_utf8(line).expect("UTF-8")
}

/// Asks the server and the command the same about a few users and moments.
fn compare(house: &House, world: &World, about: &str) {
    let changes = world.changes();
    let files = world.files(&changes);
    let last = changes.last().expect("there are changes");
    let users: BTreeSet<&str> = changes.iter().map(|change| &*change.user).collect();
    let mut users: Vec<&str> = users.into_iter().step_by(3).take(4).collect();
    users.push("nobody at all");
    let moments: Vec<u64> = changes
        .iter()
        .step_by(changes.len() / 3 + 1)
        .flat_map(|change| [change.at.0, change.logged_at.0 - 1])
        .chain([0, last.logged_at.0, last.logged_at.0 + 1_000_000_000])
        .collect();
    for moment in &moments {
        for as_known in [false, true] {
            let time = moment.to_string();
            let mut arguments = vec!["at", &time];
            arguments.extend(as_known.then_some("--as-known"));
            let asked = house.get(&format!("/v1/at?time={time}&as_known={as_known}"));
            asked.ok();
            assert_eq!(
                vec![asked.body],
                audit(&arguments, &files),
                "{about}: at {time}, {as_known}"
            );
        }
    }
    // Now most of them have an answer without a fold.
    let all: BTreeSet<&str> = changes.iter().map(|change| &*change.user).collect();
    for user in all {
        let asked = house.get(&format!("/v1/users/{}/why", encoded(user)));
        asked.ok();
        assert_eq!(vec![asked.body], audit(&["why", user], &files), "{about}: why {user}");
        compare_newest(house, &changes, user, about);
    }
    compare_newest(house, &changes, "nobody at all", about);
    for (number, user) in users.iter().enumerate() {
        let (from, to) = (moments[number % moments.len()], moments[(number + 1) % moments.len()]);
        let (from, to) = (from.min(to).to_string(), from.max(to).to_string());
        for (query, arguments) in [
            (String::new(), vec!["history", user]),
            (
                format!("&from={from}&to={to}"),
                vec!["history", user, "--from", &from, "--to", &to],
            ),
        ] {
            let asked = house.get(&format!("/v1/user/history?id={}{query}", encoded(user)));
            asked.ok();
            let expected = format!("{{\"intervals\":[{}]}}", audit(&arguments, &files).join(","));
            assert_eq!(asked.body, expected, "{about}: history of {user}{query}");
        }
        for at in [None, Some(&from)] {
            let (query, mut arguments) = (at.map(|at| format!("?at={at}")), vec!["why", user]);
            arguments.extend(at.into_iter().flat_map(|at| ["--at", at]));
            let path = format!("/v1/users/{}/why{}", encoded(user), query.unwrap_or_default());
            let asked = house.get(&path);
            asked.ok();
            assert_eq!(vec![asked.body], audit(&arguments, &files), "{about}: {path}");
        }
    }
}

#[test]
fn what_is_answered_of_the_past_is_what_the_command_prints() {
    // Each is started twice with half of the records: the second has what the first one left.
    let pairs = [
        (INDEXED, INDEXED),
        (IN_MEMORY, IN_MEMORY),
        (NOT_INDEXED, INDEXED),
        (INDEXED, NOT_INDEXED),
        (INDEXED, IN_MEMORY),
    ];
    for (seed, (first, second)) in (1..).zip(pairs) {
        let world = World::new(seed);
        let house = world.house(&first);
        compare(&house, &world, &format!("seed {seed}, {first:?}"));
        drop(house);
        let world = world.with_records(RECORDS / 2, RECORDS);
        let house = world.house(&second);
        compare(&house, &world, &format!("seed {seed}, {first:?}, then {second:?}"));
    }
}

/// The answers for two users and some moments, to be compared with those of another server.
fn answers(house: &House, users: &[&str], moments: &[u64]) -> Vec<String> {
    let users = users.iter().map(|user| format!("/v1/users/{user}/history"));
    let moments = moments.iter().flat_map(|moment| {
        let at = |as_known| format!("/v1/at?time={moment}&as_known={as_known}");
        [at(true), at(false)]
    });
    let asked = users.chain(moments).map(|path| {
        let asked = house.get(&path);
        asked.ok();
        asked.body
    });
    asked.collect()
}

#[test]
fn the_index_gives_the_same_counts_as_all_changes_one_by_one() {
    // More changes than there are between two marks.
    let clock = Arc::new(ManualClock::new(1_000));
    let log = Arc::new(MemoryLog::new(1, clock.clone()));
    let mut offset = 0;
    for round in 0..4_500u64 {
        for user in 0..7 {
            let name = format!("u{}", (user * 31 + round) % 50);
            let conn = round * 7 + user;
            let event = match (round + user) % 3 {
                0 => json!({"type": "custom_status", "user": name, "text": format!("{conn}")}),
                1 => on("logout", &name, conn.saturating_sub(50), json!({})),
                _ => connect(&name, conn),
            };
            let mut line = json!({"offset": offset, "ts": 5_000 + round * 977});
            let (Some(into), Some(more)) = (line.as_object_mut(), event.as_object()) else {
                continue;
            };
            into.extend(more.clone());
            let line = line.to_string();
            let event = schema_json::read_line(&line).expect("a record");
            let event = event.event.unwrap_or_else(|bad| panic!("{}", bad.message));
            let mut value = Vec::new();
            avro::encode_event(&event, &mut value);
            let key = Some(name.into_bytes());
            log.append_at(ONLY, Offset(offset), 5_000 + round * 977, key, value)
                .expect("appended");
            offset += 1;
        }
    }
    let directory = tempfile::tempdir().expect("a directory");
    let serve = |data: Option<&Path>, index_changes| {
        let tuning = Tuning {
            index_changes,
            ..Tuning::default()
        };
        let house = House::on(log.clone(), clock.clone(), data, tuning, None);
        house.wait_until_folded();
        house
    };
    let house = serve(None, 0);
    let changes = changes(&log);
    assert!(changes.len() > 9_000, "{}", changes.len());
    let moments: Vec<u64> = changes.iter().step_by(700).map(|change| change.at.0).collect();
    let users = ["u0", "u49"];
    let expected = answers(&house, &users, &moments);
    drop(house);
    // In memory still, then from the store.
    for _ in 0..2 {
        let house = serve(Some(directory.path()), 1_000_000);
        assert_eq!(answers(&house, &users, &moments), expected);
    }
    // An index that begins at the end has to read the topic for earlier changes.
    drop(serve(Some(directory.path()), 0));
    for _ in 0..2 {
        let house = serve(Some(directory.path()), 1_000_000);
        assert_eq!(answers(&house, &users, &moments), expected);
    }
    // The first changes are gone: what is later than them is counted back, from a mark behind them or from now.
    let counted = |house: &House, moments: &[u64]| answers(house, &[], moments);
    let indexed = tempfile::tempdir().expect("a directory");
    drop(serve(Some(indexed.path()), 1_000_000));
    for gone in [8_000, changes.len() - 500] {
        log.drop_before(Topic::Changes, ONLY, Offset(gone as u64))
            .expect("dropped");
        let first = changes[gone].at.0;
        let kept: Vec<u64> = moments.iter().copied().filter(|moment| *moment >= first).collect();
        let kept = [&[first, first + 1][..], &kept, &[u64::MAX >> 12]].concat();
        let whole = |moment: &u64| {
            let mut census = Census::default();
            changes
                .iter()
                .filter(|change| change.at.0 <= *moment)
                .for_each(|change| census.count(change));
            Totals::from(&census).line(LogTime(*moment), false, Vec::new())
        };
        for (data, index_changes) in [
            (Some(indexed.path()), 1_000_000),
            (Some(directory.path()), 0),
            (None, 0),
        ] {
            let house = serve(data, index_changes);
            let found = counted(&house, &kept);
            for (moment, answer) in kept.iter().zip(found.iter().skip(1).step_by(2)) {
                let answer: PastTotals = serde_json::from_str(answer).expect("totals");
                let expected = whole(moment);
                assert_eq!(
                    (answer.users, answer.devices),
                    (expected.users, expected.devices),
                    "at {moment}"
                );
            }
            for moment in [0, first - 1] {
                house.get(&format!("/v1/at?time={moment}")).error(410, "gone");
            }
        }
    }
}

#[test]
fn what_is_gone_or_too_much_to_be_read_is_said() {
    let clock = Arc::new(ManualClock::new(1_000));
    let log = Arc::new(MemoryLog::new(1, clock.clone()));
    let directory = tempfile::tempdir().expect("a directory");
    let tuning = Tuning::default();
    let house = House::on(log.clone(), clock.clone(), Some(directory.path()), tuning, Some(3));
    for step in 0..4 {
        house.publish(&[connect("alice", step), on("logout", "alice", step, json!({}))]);
        house.clock.advance_ms(1_000);
    }
    house.wait_until_folded();
    // Why a user has its status now is in the user's changes and its state; a time before needs a fold.
    let why = house.get("/v1/users/alice/why").ok();
    compare_newest(&house, &changes(&log), "alice", "all are kept");
    assert_eq!(
        (&why["status"], &why["steps"][0]["cause"]),
        (&json!("offline"), &json!("logout"))
    );
    assert_eq!(
        (&why["steps"][1]["offset"], &why["steps"][2]["offset"]),
        (&json!(7), &json!(6))
    );
    let error = house.get("/v1/users/alice/why?at=3999").error(400, "too_much_to_read");
    assert!(
        error["message"]
            .as_str()
            .expect("text")
            .contains("more than 3 records of the events of partition 0"),
        "{error}"
    );
    // Of the index nothing of the log is read, and what is early takes few records.
    assert_eq!(
        house.get("/v1/users/alice/history").ok()["intervals"]
            .as_array()
            .map(Vec::len),
        Some(16)
    );
    assert_eq!(
        house.get("/v1/at?time=1000").ok()["users"],
        json!({"online": 0, "push_online": 0, "offline": 1})
    );
    house.get("/v1/at?time=9000").error(400, "too_much_to_read");

    for topic in [Topic::Changes, Topic::Events] {
        log.drop_before(topic, ONLY, Offset(4)).expect("dropped");
    }
    compare_newest(&house, &changes(&log), "alice", "four are gone");
    // The oldest change that is left is of 3,000.
    let kept = house.get("/v1/users/alice/history").ok();
    assert_eq!(kept["intervals"][0]["from"], 3_000, "{kept}");
    house.get("/v1/users/alice/history?from=3000").ok();
    let error = house.get("/v1/users/alice/history?from=2999").error(410, "gone");
    assert!(
        error["message"]
            .as_str()
            .expect("text")
            .contains("the oldest ones kept are of 3000"),
        "{error}"
    );
    assert_eq!(house.get("/v1/users/alice/why").ok(), why);
    house.get("/v1/users/alice/why?at=3999").error(410, "gone");
    house.get("/v1/at?time=2999").error(410, "gone");
    for start in [6, 8] {
        log.drop_before(Topic::Changes, ONLY, Offset(start)).expect("dropped");
        compare_newest(&house, &changes(&log), "alice", &format!("{start} are gone"));
    }
    drop(house);
    // The next owner of the partition removes from the index what the log has dropped.
    let house = House::on(log.clone(), clock, Some(directory.path()), tuning, Some(3));
    house.publish(&[connect("alice", 9)]);
    house.wait_until_folded();
    drop(house);
    let store = directory_of(directory.path(), ONLY);
    let store = Store::open_to_look(&store).expect("a store");
    assert_eq!(store.indexed().expect("readable"), Some(Indexed { from: 8, upto: 9 }));
}

#[test]
fn the_newest_changes_of_a_user_are_found_however_many_others_came_after() {
    const OTHERS: u64 = 200_001;
    let clock = Arc::new(ManualClock::new(1_000));
    let log = Arc::new(MemoryLog::new(1, clock.clone()));
    let directory = tempfile::tempdir().expect("a directory");
    let tuning = Tuning::default();
    let house = House::on(log.clone(), clock.clone(), Some(directory.path()), tuning, None);
    house.publish(&[connect("alice", 1)]);
    let logins: Vec<Value> = (0..OTHERS).map(|number| connect(&format!("u{number}"), 1)).collect();
    for part in logins.chunks(10_000) {
        house.publish(part);
    }
    house.wait_until_folded();
    let found = house.get("/v1/users/alice/changes").ok();
    assert_eq!(found["changes"][0]["id"], "0-0-0", "{found}");
    // Without an index they are searched in the log, as far back as the documentation says.
    drop(house);
    let unindexed = Tuning {
        index_changes: 0,
        ..tuning
    };
    let house = House::on(log, clock, Some(directory.path()), unindexed, None);
    house.wait_until_folded();
    assert_eq!(house.get("/v1/users/alice/changes").ok(), json!({"changes": []}));
    let newest = house.get(&format!("/v1/users/u{}/changes", OTHERS - 1)).ok();
    assert_eq!(newest["changes"][0]["id"], format!("0-{OTHERS}-0"), "{newest}");
}

#[test]
fn a_time_is_in_one_of_the_forms_of_the_command() {
    let house = House::new(2);
    let user = user_of(1, 2, 0);
    house.publish(&[connect(&user, 1), says(&user, "hello")]);
    house.wait_until_folded();
    for time in ["1000", "1970-01-01T00:00:01Z", "-0s"] {
        let counted = house.get(&format!("/v1/at?time={time}")).ok();
        assert_eq!(counted["time"], 1_000, "{time}");
        assert_eq!(counted["users"]["online"], 1);
        // The other partition has no record, so it has no log time.
        assert_eq!(counted["behind"], json!([0]));
    }
    for (path, says) in [
        ("/v1/at?time=yesterday", "expected RFC 3339"),
        ("/v1/at", "`time` is missing"),
        ("/v1/at?time=5&as_known=perhaps", "must be true or false"),
        ("/v1/users/a/history?from=5&to=4", "is after"),
        ("/v1/users/a/history?at=5", "is not a parameter of this path"),
        ("/v1/users/a/why?at=x", "expected RFC 3339"),
        ("/v1/user/why", "is missing"),
    ] {
        let error = house.get(path).error(400, "bad_parameter");
        assert!(
            error["message"].as_str().expect("text").contains(says),
            "{path}: {error}"
        );
    }
    assert_eq!(house.get("/v1/users/nobody/why").ok(), Value::Null);
    assert_eq!(house.get("/v1/users/nobody/history").ok(), json!({"intervals": []}));
}
