//! `rollcall audit`: its answers against a naive recomputation, stories, and logs that somebody has altered.

#[path = "audit/analytics.rs"]
mod analytics;
#[path = "audit/belonging.rs"]
mod belonging;
#[path = "audit/bucket.rs"]
mod bucket;
#[path = "audit/export.rs"]
mod export;
#[path = "audit/files.rs"]
mod files;
#[path = "audit/iceberg.rs"]
mod iceberg;
#[path = "audit/incidents.rs"]
mod incidents;
#[path = "audit/lake.rs"]
mod lake;
#[path = "audit/lake_damage.rs"]
mod lake_damage;
#[path = "audit/proofs.rs"]
mod proofs;
#[path = "audit/proxy.rs"]
mod proxy;
#[path = "checkpoint/s3.rs"]
mod s3;
mod server;
#[path = "audit/stories.rs"]
mod stories;
#[path = "audit/tampered.rs"]
mod tampered;
#[path = "audit/watched.rs"]
mod watched;
#[path = "audit/what_if.rs"]
mod what_if;
#[path = "audit/why_now.rs"]
mod why_now;

use files::{Files, a_day, audit, event, link};
use rollcall::api::answers::ChangeData;
use rollcall::audit::Knowledge;
use rollcall::audit::history::History;
use rollcall::audit::snapshot::{Filter, Snapshot};
use rollcall::audit::why::Why;
use rollcall::presence::change::Change;
use rollcall::presence::policy::Policy;
use rollcall::presence::state::HashSeed;
use rollcall::presence::{LogTime, Partition};
use rollcall::schema::json as schema_json;
use rollcall::sim::{history, oracle_input};
use serde_json::{Value, json};
use server::{ANYWHERE, Server, rollcall};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

const SEEDS: u64 = 200;
const RECORDS: usize = 300;

/// A random log, and what the oracle makes of it.
struct Story {
    input: Vec<String>,
    policy: Policy,
    partition: Partition,
    changes: Vec<Value>,
    /// Log time of each record.
    times: Vec<u64>,
}

impl Story {
    fn new(seed: u64) -> Story {
        let partition = Partition((seed % 3) as u32);
        let input: Vec<String> = history::records(seed, RECORDS)
            .map(|(offset, ts, event)| history::record_json(offset, ts, event.as_ref()))
            .collect();
        let policy = history::policy(seed);
        let mut time = 0;
        let times = input.iter().map(|line| {
            time = time.max(parsed(line)["ts"].as_u64().unwrap());
            time
        });
        let times = times.collect();
        let mut story = Story {
            input,
            policy,
            partition,
            changes: Vec::new(),
            times,
        };
        story.changes = story
            .oracle(RECORDS)
            .into_iter()
            .filter(|line| line["type"] == "change")
            .collect();
        story
    }

    /// What the oracle prints of the first records, with the state behind them.
    fn oracle(&self, records: usize) -> Vec<Value> {
        let input = self.input[..records].join("\n") + "\n";
        let folded = oracle_input::fold(input.as_bytes(), self.policy.clone(), self.partition, None);
        assert_eq!(folded.ended_by, None);
        folded.lines.iter().map(|line| parsed(line)).collect()
    }

    /// Moments around every tenth change, and before and after everything.
    fn moments(&self) -> Vec<u64> {
        let mut moments = BTreeSet::from([0, self.times[self.times.len() - 1], u64::MAX >> 12]);
        for change in self.changes.iter().step_by(10) {
            for key in ["at", "logged_at"] {
                let time = change[key].as_u64().unwrap();
                moments.extend([time.saturating_sub(1), time, time + 1]);
            }
        }
        moments.into_iter().collect()
    }

    fn users(&self) -> BTreeSet<&str> {
        self.changes
            .iter()
            .map(|change| change["user"].as_str().unwrap())
            .collect()
    }

    fn index(&self, offset: &Value) -> usize {
        self.input
            .iter()
            .position(|line| &parsed(line)["offset"] == offset)
            .unwrap()
    }
}

/// A change from its line.
fn change(line: &Value) -> Change {
    let data: ChangeData = serde_json::from_value(line.clone()).unwrap();
    Change::try_from(data).unwrap()
}

fn parsed(line: &str) -> Value {
    serde_json::from_str(line).unwrap()
}

/// The changes that count at a time, all of them looked at.
fn counting<'s>(story: &'s Story, time: u64, key: &str) -> Vec<&'s Value> {
    story
        .changes
        .iter()
        .filter(|change| change[key].as_u64().unwrap() <= time)
        .collect()
}

/// A user at a time, from all changes that count and nothing else.
fn naive_user(changes: &[&Value], user: &str) -> Value {
    let own: Vec<&&Value> = changes.iter().filter(|change| change["user"] == user).collect();
    let begin = own
        .iter()
        .rposition(|change| change["cause"] == "forgotten")
        .map_or(0, |at| at + 1);
    let own = &own[begin..];
    let Some(last) = own.last() else { return Value::Null };
    let same = own
        .iter()
        .rev()
        .take_while(|change| change["after"] == last["after"])
        .last()
        .unwrap();
    let mut devices: BTreeMap<(String, String), Value> = BTreeMap::new();
    for change in own {
        for device in change["devices"].as_array().unwrap() {
            let (platform, name) = (device["platform"].as_str().unwrap(), device["device"].as_str().unwrap());
            let line = json!({"platform": platform, "device": name, "status": device["after"], "since": change["at"],
                "gateway": device["gateway"], "change": change["id"]});
            devices.insert((platform.into(), name.into()), line);
        }
    }
    let shown: Vec<Value> = devices
        .into_values()
        .filter(|device| device["status"] != "offline")
        .collect();
    json!({"user": user, "status": last["after"], "since": same["at"], "version": last["version"], "change": same["id"],
        "custom_status": last["custom_status"], "devices": shown})
}

#[test]
fn who_was_online_at_any_time_is_what_the_changes_say_one_by_one() {
    for seed in 0..SEEDS {
        let story = Story::new(seed);
        let changes: Vec<_> = story.changes.iter().map(change).collect();
        for time in story.moments() {
            for (knowledge, key) in [(Knowledge::True, "at"), (Knowledge::AsKnown, "logged_at")] {
                let counted = counting(&story, time, key);
                let mut snapshot = Snapshot::default();
                for change in changes.iter().take_while(|change| knowledge.time_of(change).0 <= time) {
                    snapshot.apply(change);
                }
                let mut users = BTreeMap::new();
                let mut devices: BTreeMap<&str, BTreeMap<String, u64>> = BTreeMap::new();
                for user in story.users() {
                    let expected = naive_user(&counted, user);
                    let line = serde_json::to_value(snapshot.user(user, &Filter::default())).unwrap();
                    assert_eq!(line, expected, "seed {seed}, {user} at {time}");
                    let Some(status) = expected["status"].as_str() else {
                        continue;
                    };
                    *users.entry(status.to_owned()).or_insert(0u64) += 1;
                    for device in expected["devices"].as_array().unwrap() {
                        let key = if device["status"] == "online" {
                            "online"
                        } else {
                            "push_online"
                        };
                        let platform = device["platform"].as_str().unwrap().to_owned();
                        *devices.entry(key).or_default().entry(platform).or_default() += 1;
                    }
                }
                let count = |status: &str| users.get(status).copied().unwrap_or(0);
                let of = |status: &str| devices.get(status).cloned().unwrap_or_default();
                let expected = json!({"time": time, "as_known": false,
                    "users": {"online": count("online"), "push_online": count("push_online"), "offline": count("offline")},
                    "devices": {"online": of("online"), "push_online": of("push_online")}, "behind": []});
                let line = snapshot
                    .totals(&Filter::default())
                    .line(LogTime(time), false, Vec::new());
                assert_eq!(serde_json::to_value(line).unwrap(), expected, "seed {seed} at {time}");
            }
        }
    }
}

/// The intervals of one subject: (at, status, change) of each of its changes in order.
fn naive_intervals(head: Value, steps: &[(&Value, &Value)]) -> Vec<Value> {
    let mut cut: Vec<(&Value, &Value)> = Vec::new();
    for (status, change) in steps {
        if cut.last().is_none_or(|(last, _)| last != status) {
            cut.push((status, change));
        }
    }
    let mut intervals = Vec::new();
    for (at, (status, change)) in cut.iter().enumerate() {
        let end = cut.get(at + 1).map(|(_, end)| *end);
        let of = |key: &str| end.map_or(Value::Null, |end| end[key].clone());
        let mut line = json!({"status": status, "from": change["at"], "to": of("at"), "cause": change["cause"],
            "change": change["id"], "evidence": change["evidence"], "end_cause": of("cause"), "end_change": of("id"),
            "end_evidence": of("evidence")});
        line.as_object_mut().unwrap().extend(head.as_object().unwrap().clone());
        intervals.push(line);
    }
    intervals
}

#[test]
fn a_history_is_what_the_changes_say_one_by_one() {
    for seed in 0..SEEDS {
        let story = Story::new(seed);
        for user in story.users() {
            let own: Vec<&Value> = story.changes.iter().filter(|change| change["user"] == user).collect();
            let lines = |mut history: History| {
                story.changes.iter().for_each(|one| history.apply(&change(one)));
                serde_json::to_value(history.lines().collect::<Vec<_>>()).unwrap()
            };
            let steps: Vec<_> = own.iter().map(|change| (&change["after"], *change)).collect();
            let mut expected = naive_intervals(json!({"user": user, "platform": null, "device": null}), &steps);
            let mut devices: BTreeMap<(&str, &str), Vec<(&Value, &Value)>> = BTreeMap::new();
            for change in &own {
                for device in change["devices"].as_array().unwrap() {
                    let key = (device["platform"].as_str().unwrap(), device["device"].as_str().unwrap());
                    devices.entry(key).or_default().push((&device["after"], change));
                }
            }
            for ((platform, device), steps) in devices {
                let head = json!({"user": user, "platform": platform, "device": device});
                expected.extend(naive_intervals(head, &steps));
            }
            let all = lines(History::new(user));
            assert_eq!(all, Value::from(expected.clone()), "seed {seed}, {user}");
            let (from, to) = (story.times[RECORDS / 3], story.times[RECORDS / 2]);
            expected.retain(|line| {
                let (begins, ends) = (line["from"].as_u64().unwrap(), line["to"].as_u64());
                begins <= to && ends.is_none_or(|ends| ends > from || begins >= from)
            });
            let some = lines(History::within(user, Some(LogTime(from)), Some(LogTime(to))));
            assert_eq!(some, Value::from(expected), "seed {seed}, {user}");
        }
    }
}

fn why(story: &Story, user: &str, until: Option<u64>) -> Value {
    let until = until.map(LogTime);
    let mut why = Why::new(user, story.partition, story.policy.clone(), until, HashSeed(7));
    for line in &story.input {
        let line = schema_json::read_line(line).unwrap();
        if !why.apply(line.offset, line.ts, line.event.as_ref().ok()) {
            break;
        }
    }
    serde_json::to_value(why.answer()).unwrap()
}

/// Compares an answer with what the oracle's changes, and its state just before the change, say.
fn check_why(story: &Story, user: &str, time: u64, answer: &Value) {
    let counted = counting(story, time, "at");
    let naive = naive_user(&counted, user);
    if naive.is_null() {
        assert!(answer.is_null(), "{answer}");
        return;
    }
    assert_eq!((&answer["user"], &answer["status"]), (&naive["user"], &naive["status"]));
    assert_eq!(answer["since"], naive["since"]);
    let change = counted.iter().find(|change| change["id"] == naive["change"]).unwrap();
    let mut steps = answer["steps"].as_array().unwrap().iter();
    assert_eq!(
        steps.next(),
        Some(
            &json!({"step": "change", "id": change["id"], "offset": change["offset"], "at": change["at"],
            "logged_at": change["logged_at"], "cause": change["cause"]})
        )
    );
    let is_firing = change["evidence"] != change["offset"];
    if is_firing {
        let kind = match change["cause"].as_str().unwrap() {
            "timeout" => "heartbeat",
            "gateway_lost" => "lease",
            "background" => "background",
            "closed" | "exit" => "linger",
            "push_expired" => "away",
            other => panic!("nothing fires {other}"),
        };
        let expected = json!({"step": "deadline", "kind": kind, "deadline": change["at"]});
        assert_eq!(steps.next(), Some(&expected));
    }
    let event = |offset: &Value, role: &str| {
        let record = parsed(&story.input[story.index(offset)]);
        json!({"step": "event", "offset": offset, "ts": record["ts"], "type": record["type"], "role": role})
    };
    assert_eq!(steps.next(), Some(&event(&change["evidence"], "evidence")), "{answer}");
    let device = &change["devices"][0];
    let at = story.index(&change["offset"]);
    let before = story.oracle(at);
    let before = before
        .iter()
        .rev()
        .find(|line| line["type"] == "user" && line["user"] == user);
    let before = before.and_then(|line| {
        let devices = line["devices"].as_array().unwrap().iter();
        let mut same = devices.filter(|one| one["platform"] == device["platform"] && one["device"] == device["device"]);
        same.next().cloned()
    });
    let mut next = steps.next();
    if let Some(login_at) = before.as_ref().and_then(|device| device["login_at"].as_u64())
        && change["cause"] != "login"
    {
        let is_login = |offset: &Value| {
            let index = story.index(offset);
            let record = parsed(&story.input[index]);
            record["type"] == "connect"
                && record["user"] == user
                && record["device"] == device["device"]
                && story.times[index] == login_at
        };
        match next.filter(|step| step["role"] == "login") {
            Some(step) => {
                assert!(is_login(&step["offset"]), "{step}: {login_at}");
                assert_eq!(step, &event(&step["offset"], "login"));
                next = steps.next();
            }
            None => assert!(is_login(&change["evidence"]), "{answer}"),
        }
    }
    if is_firing && change["cause"] == "gateway_lost" {
        let before = before.expect("it was online");
        let lease = story.input[..at].iter().rev().map(|line| parsed(line)).find(|record| {
            record["type"] == "lease" && record["gateway"] == before["gateway"] && record["epoch"] == before["epoch"]
        });
        let lease = lease.expect("there was one");
        assert_eq!(next, Some(&event(&lease["offset"], "lease")));
        next = steps.next();
    }
    assert_eq!(next, None, "{answer}");
}

/// What the oracle's state after so many records says will happen by itself.
fn naive_pending(story: &Story, user: &str, records: usize) -> Vec<Value> {
    let lines = story.oracle(records);
    let user = lines.iter().find(|line| line["type"] == "user" && line["user"] == user);
    let mut pending = Vec::new();
    for device in user.into_iter().flat_map(|user| user["devices"].as_array().unwrap()) {
        let then = match (device["state"].as_str().unwrap(), device["status"].as_str().unwrap()) {
            ("away", "push_online") => json!("push_expired"),
            ("online", _) => device.get("lingering").cloned().unwrap_or(json!("of the link")),
            _ => continue,
        };
        pending.push(json!({"platform": device["platform"], "device": device["device"], "deadline": device["deadline"], "then": then}));
    }
    pending
}

#[test]
fn why_names_the_records_that_the_oracle_has() {
    let mut met: BTreeSet<String> = BTreeSet::new();
    for seed in 0..SEEDS {
        let story = Story::new(seed);
        let moments = story.moments();
        for (number, user) in story.users().into_iter().take(4).enumerate() {
            for time in moments.iter().skip(number).step_by(9) {
                let answer = why(&story, user, Some(*time));
                check_why(&story, user, *time, &answer);
                for step in answer["steps"].as_array().into_iter().flatten() {
                    met.extend(
                        ["kind", "role", "cause"]
                            .iter()
                            .filter_map(|key| Some(step[key].as_str()?.to_owned())),
                    );
                }
            }
            let mut answer = why(&story, user, None);
            check_why(&story, user, u64::MAX >> 12, &answer);
            if answer.is_null() {
                continue;
            }
            for pending in answer["pending"].as_array_mut().unwrap() {
                if ["timeout", "gateway_lost", "background"].contains(&pending["then"].as_str().unwrap()) {
                    pending["then"] = json!("of the link");
                }
            }
            assert_eq!(
                answer["pending"],
                Value::from(naive_pending(&story, user, RECORDS)),
                "seed {seed}, {user}"
            );
        }
    }
}

/// A record after the time asked about may begin a grace period, of which nobody knew at that time.
#[test]
fn what_is_pending_at_a_time_is_so_by_the_records_until_then() {
    let mut compared = 0;
    for seed in 0..SEEDS {
        let story = Story::new(seed);
        for time in story.moments().into_iter().step_by(7) {
            let records = story.times.partition_point(|other| *other <= time);
            for user in story.users().into_iter().take(2) {
                let answer = why(&story, user, Some(time));
                let pending = answer["pending"].as_array().into_iter().flatten();
                let pending: BTreeSet<String> = pending
                    .map(|one| json!([one["platform"], one["device"], one["deadline"]]).to_string())
                    .collect();
                for one in naive_pending(&story, user, records) {
                    if !answer.is_null() && one["deadline"].as_u64().unwrap() > time {
                        let wanted = json!([one["platform"], one["device"], one["deadline"]]).to_string();
                        assert!(
                            pending.contains(&wanted),
                            "seed {seed}, {user} at {time}: {wanted} in {pending:?}"
                        );
                        compared += 1;
                    }
                }
            }
        }
    }
    assert!(compared > 500, "{compared}");
}

#[test]
fn questions_are_answered_with_these_bytes() {
    let files = Files::of(&a_day(), None);
    let text = |arguments: &[&str]| {
        let (status, lines) = files.audit(arguments);
        assert_eq!(status, 0);
        lines
    };
    let raw = |arguments: &[&str]| {
        let mut all = vec!["audit"];
        all.extend(arguments);
        let (changes, events) = (files.path("changes"), files.path("events"));
        all.extend(["--json", "--changes", &changes, "--events", &events]);
        String::from_utf8(rollcall(&all).output().unwrap().stdout).unwrap()
    };
    assert_eq!(
        raw(&["at", "5000"]),
        "{\"time\":5000,\"as_known\":false,\"users\":{\"online\":2,\"push_online\":0,\"offline\":0},\"devices\":{\"online\":\
         {\"android\":1,\"windows\":1},\"push_online\":{}},\"behind\":[]}\n"
    );
    // Found out at 410000, true since 406000.
    assert_eq!(
        raw(&["at", "407000", "--user", "alice", "--user", "nobody", "--user", "bob"]),
        "{\"user\":\"alice\",\"status\":\"push_online\",\"since\":406000,\"version\":2,\"change\":\"0-7-0\",\"custom_status\":\
         null,\"devices\":[{\"platform\":\"android\",\"device\":\"a1\",\"status\":\"push_online\",\"since\":406000,\"gateway\":\
         \"g1\",\"change\":\"0-7-0\"}]}\nnull\n{\"user\":\"bob\",\"status\":\"offline\",\"since\":7000,\"version\":3,\"change\":\
         \"0-5-0\",\"custom_status\":null,\"devices\":[]}\n"
    );
    let known = text(&["at", "407000", "--user", "alice", "--as-known"]);
    assert_eq!(
        (&known[0]["status"], &known[0]["since"]),
        (&json!("online"), &json!(1_000))
    );
    assert_eq!(text(&["at", "602501"])[0]["behind"], json!([0]));
    assert_eq!(text(&["at", "602500"])[0]["behind"], json!([]));
    assert_eq!(
        text(&["at", "5000", "--list", "--platform", "android"])[0]["user"],
        "alice"
    );
    assert_eq!(text(&["at", "5000", "--list", "--status", "offline"]).len(), 0);
    assert_eq!(
        raw(&["history", "alice"]).lines().next().unwrap(),
        "{\"user\":\"alice\",\"platform\":null,\"device\":null,\"status\":\"online\",\"from\":1000,\"to\":406000,\"cause\":\
         \"login\",\"change\":\"0-0-0\",\"evidence\":0,\"end_cause\":\"timeout\",\"end_change\":\"0-7-0\",\"end_evidence\":4}"
    );
    assert_eq!(
        raw(&["why", "alice"]),
        "{\"user\":\"alice\",\"status\":\"push_online\",\"since\":406000,\"steps\":[{\"step\":\"change\",\"id\":\"0-7-0\",\
         \"offset\":7,\"at\":406000,\"logged_at\":410000,\"cause\":\"timeout\"},{\"step\":\"deadline\",\"kind\":\"heartbeat\",\
         \"deadline\":406000},{\"step\":\"event\",\"offset\":4,\"ts\":6000,\"type\":\"heartbeat\",\"role\":\"evidence\"},\
         {\"step\":\"event\",\"offset\":0,\"ts\":1000,\"type\":\"connect\",\"role\":\"login\"}],\"pending\":[{\"platform\":\
         \"android\",\"device\":\"a1\",\"deadline\":605206000,\"then\":\"push_expired\"}]}\n"
    );
    // The lease ended at 602000; bob had logged in at 500000.
    let lost = &text(&["why", "bob"])[0];
    let roles: Vec<_> = lost["steps"]
        .as_array()
        .unwrap()
        .iter()
        .map(|step| (&step["offset"], &step["role"]))
        .collect();
    assert_eq!(
        lost["steps"][1],
        json!({"step": "deadline", "kind": "lease", "deadline": 602_000})
    );
    assert_eq!(
        roles[2..],
        [(&json!(9), &json!("evidence")), (&json!(1), &json!("lease"))]
    );
    assert_eq!(text(&["why", "bob", "--at", "8000"])[0]["steps"][1]["type"], "kick");
    assert_eq!(text(&["why", "nobody"]), [Value::Null]);
    let verified = &text(&["verify"])[0];
    assert_eq!(
        (
            &verified["verified"],
            &verified["events"],
            &verified["from"],
            &verified["to"]
        ),
        (&json!(true), &json!(11), &json!(1_000), &json!(602_500))
    );
}

#[test]
fn whatever_is_altered_is_found_and_named() {
    let events = a_day();
    let untouched = Files::of(&events, None);
    let head = untouched.audit(&["heads"]).1[0]["head"].as_str().unwrap().to_owned();
    let changes = untouched.lines("changes");
    let kicks = untouched.lines("kicks");
    let wrong = |what: &str, file: &str, lines: &[String]| {
        let files = Files::of(&events, None);
        files.write(file, &(lines.join("\n") + "\n"));
        let (status, found) = files.audit(&["verify"]);
        assert_eq!((status, &found[0]["verified"]), (1, &json!(false)), "{what}");
        assert_eq!(found.len(), 1, "{what}");
        found[0].clone()
    };
    for at in 0..changes.len() {
        let mut altered = changes.clone();
        altered[at] = altered[at].replace("\"at\":", "\"at\":1");
        let found = wrong("altered", "changes", &altered);
        assert_eq!(
            (&found["topic"], &found["offset"]),
            (&json!("changes"), &parsed(&changes[at])["offset"])
        );
        assert_eq!(found["expected"], parsed(&changes[at]));
        assert_eq!(found["found"], parsed(&altered[at]));
        let fields = parsed(&changes[at]);
        for (name, value) in fields.as_object().unwrap() {
            let mut one = fields.clone();
            one[name] = match value {
                Value::Number(number) => json!(number.as_u64().unwrap() + 1),
                Value::String(text) => json!(format!("{text}x")),
                Value::Null => json!("x"),
                _ => json!(["x"]),
            };
            let mut altered = changes.clone();
            altered[at] = one.to_string();
            let found = wrong(name, "changes", &altered);
            assert_eq!((&found["found"], &found["expected"]), (&one, &fields), "{name}");
        }
        let mut removed = changes.clone();
        removed.remove(at);
        wrong("removed", "changes", &removed);
        let mut added = changes.clone();
        added.insert(at, changes[at].clone());
        wrong("added", "changes", &added);
        if at > 0 {
            let mut swapped = changes.clone();
            swapped.swap(at - 1, at);
            wrong("swapped", "changes", &swapped);
        }
        let mut elsewhere = changes.clone();
        elsewhere[at] = elsewhere[at].replace("\"id\":\"0-", "\"id\":\"1-");
        wrong("of another partition", "changes", &elsewhere);
    }
    let cut = wrong("the tail cut off", "changes", &changes[..changes.len() - 1]);
    assert_eq!(
        (&cut["found"], &cut["expected"]),
        (&Value::Null, &parsed(&changes[changes.len() - 1]))
    );
    wrong("no kicks", "kicks", &[]);
    let more = wrong("a change more", "changes", &[&changes[..], &changes[..1]].concat());
    assert_eq!(
        (&more["found"], &more["expected"]),
        (&parsed(&changes[0]), &Value::Null)
    );
    wrong("a kick more", "kicks", &[&kicks[..], &kicks[..1]].concat());

    // A policy record is altered, and with it what came of the events behind it.
    let mut policy = events.clone();
    policy[6] = policy[6].replace("{\"login\":\"multi\"}", "{\"platforms\":{\"windows\":{\"away_ms\":1}}}");
    policy.push(event(
        11,
        603_000,
        "connect",
        &(link("bob", "windows", "b1", 4) + ",\"intent\":\"resume\""),
    ));
    let mut as_it_was = events.clone();
    as_it_was.push(policy[11].clone());
    let files = Files::of(&as_it_was, None);
    assert_eq!(files.audit(&["verify"]).0, 0);
    files.write("events", &(policy.join("\n") + "\n"));
    assert_eq!(files.audit(&["verify"]).0, 1);

    // A whole history is replaced by another that is right in itself.
    let mut other = events.clone();
    other[2] = other[2].replace("bob", "bop");
    let replaced = Files::of(&other, None);
    assert_eq!(replaced.audit(&["verify"]).0, 0);
    assert_eq!(replaced.audit(&["verify", "--head", &head]).0, 1);
    assert_eq!(untouched.audit(&["verify", "--head", &head]).0, 0);
    // The history has gone on since.
    let longer = Files::of(&as_it_was, None);
    assert_eq!(longer.audit(&["verify", "--head", &head]).0, 0);
}

#[test]
fn what_cannot_be_answered_says_why() {
    let files = Files::of(&a_day(), None);
    let (changes, events) = (files.path("changes"), files.path("events"));
    let refused = |arguments: &[&str], wants: &str| {
        let mut all = vec!["audit"];
        all.extend(arguments);
        let output = rollcall(&all).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(wants), "{arguments:?}: {error}");
    };
    refused(&["at", "yesterday", "--changes", &changes], "expected RFC 3339");
    refused(&["at", "5000", "--events", &events], "--changes FILE is needed");
    refused(&["why", "alice", "--changes", &changes], "--events FILE is needed");
    refused(
        &["at", "5000", "--changes", "/nowhere/at/all"],
        "cannot read /nowhere/at/all",
    );
    refused(&["at", "5000", "--changes", &events], "line 1 of");
    refused(&["at", "5000", "--data", "/nowhere/at/all"], "there is no log in");
    refused(
        &["history", "alice", "--changes", &changes, "--from", "9", "--to", "8"],
        "is after",
    );
    refused(
        &["verify", "--head", "12", "--events", &events],
        "64 hexadecimal digits",
    );
    refused(
        &["verify", "--events", &events, "--partition", "3", "--partitions", "2"],
        "does not exist",
    );
}

/// A data directory with a server on it.
fn served() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let data = directory.path().join("data");
    (directory, data)
}

fn of(data: &Path, arguments: &[&str]) -> (i32, Vec<Value>) {
    let mut all = vec!["audit"];
    all.extend(arguments);
    all.extend(["--json", "--data", data.to_str().unwrap()]);
    audit(&all)
}

#[test]
fn beside_a_running_server_the_log_is_asked_and_verified() {
    let (_directory, data) = served();
    let server = Server::start(&data, ANYWHERE, &["--partitions", "3"], &[]);
    let events: Vec<Value> = (0..60)
        .map(|number| {
            json!({"type": "connect", "user": format!("u{number}"), "platform": "android", "device": "d", "gateway": "g",
                "epoch": 1, "conn": number, "intent": "login"})
        })
        .collect();
    server.publish("", &events[..30]);
    let (status, body) = server.post("/v1/events?wait=applied", "", Value::from(&events[30..]).to_string());
    assert_eq!(status, 200, "{body}");
    let (status, totals) = of(&data, &["at", "-0s"]);
    assert_eq!((status, &totals[0]["users"]["online"]), (0, &json!(60)));
    assert_eq!(totals[0]["devices"]["online"]["android"], 60);
    let (_, line) = of(&data, &["at", "-0s", "--user", "u7"]);
    assert_eq!((&line[0]["user"], &line[0]["status"]), (&json!("u7"), &json!("online")));
    let (_, why) = of(&data, &["why", "u7"]);
    assert_eq!(why[0]["steps"][0]["cause"], "login");
    assert_eq!(why[0]["pending"][0]["then"], "timeout");
    let (_, history) = of(&data, &["history", "u7"]);
    assert_eq!(history.len(), 2);
    // Nobody was online before the log began, and neither does an answer of zeros say so, nor one without a user.
    let text = |arguments: &[&str]| {
        let mut all = vec!["audit"];
        all.extend(arguments);
        all.extend(["--data", data.to_str().unwrap()]);
        let output = rollcall(&all).output().unwrap();
        let [out, error] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code().unwrap(), out, error)
    };
    for time in ["1700000000", "0", "-2d"] {
        for more in [&[][..], &["--json"], &["--list"], &["--user", "u7"], &["--as-known"]] {
            let (status, out, error) = text(&[&["at", time], more].concat());
            let said = out + &error;
            assert!(
                status == 0 && said.contains("the log begins at 2"),
                "{time} {more:?}: {said}"
            );
        }
    }
    let (_, out, error) = text(&["at", "-0s"]);
    assert!(!(out + &error).contains("begins"));
    // A user of another partition than is asked about.
    let partition = rollcall::schema::partitioner::partition_of("u7", 3).0;
    let [here, other] = [partition, (partition + 1) % 3].map(|partition| partition.to_string());
    for question in [&["why", "u7"][..], &["history", "u7"], &["at", "-0s", "--user", "u7"]] {
        let (status, _, error) = text(&[question, &["--partition", &other]].concat());
        let named = format!("\"u7\" is a user of partition {here}");
        assert!(status == 2 && error.contains(&named), "{question:?}: {error}");
        assert_eq!(text(&[question, &["--partition", &here]].concat()).0, 0);
    }
    let (status, out, _) = text(&["verify", "--partition", "0", "--head", &"f".repeat(64)]);
    assert!(status == 1 && out.contains("it never had the head of --head"), "{out}");
    let (_, heads) = of(&data, &["heads"]);
    let (status, verified) = of(&data, &["verify"]);
    assert_eq!((status, verified.len(), heads.len()), (0, 3, 3));
    let count: u64 = verified.iter().map(|one| one["changes"].as_u64().unwrap()).sum();
    assert_eq!(count, 60);
    for (head, verified) in heads.iter().zip(&verified) {
        assert_eq!(verified["verified"], true);
        assert_eq!(head["head"], verified["head"]);
    }
}
