//! `audit what-if` against a naive recomputation, and its command.

use super::{Files, Story, a_day, change, event, link, parsed};
use rollcall::audit::what_if::{PartitionFigures, WhatIf, WhatIfLine, Window};
use rollcall::presence::event::Event;
use rollcall::presence::policy::Policy;
use rollcall::presence::state::HashSeed;
use rollcall::presence::{LogTime, Offset};
use rollcall::schema::json as schema_json;
use rollcall::sim::{history, oracle_input};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

const SEEDS: u64 = 200;

/// What the oracle gives for the story's records under another policy.
fn would(story: &Story, policy: &Policy, keep_policies: bool) -> Vec<Value> {
    let lines = story.input.iter().map(|line| {
        let record = parsed(line);
        if record["type"] == "policy" && !keep_policies {
            return json!({"offset": record["offset"], "ts": record["ts"], "type": "tick"}).to_string();
        }
        line.clone()
    });
    let input = lines.collect::<Vec<_>>().join("\n") + "\n";
    let folded = oracle_input::fold(input.as_bytes(), policy.clone(), story.partition, None);
    assert_eq!(folded.ended_by, None);
    let lines = folded.lines.iter().map(|line| parsed(line));
    lines.filter(|line| line["type"] == "change").collect()
}

struct Naive<'s> {
    story: &'s Story,
    changes: &'s [Value],
    window: Window,
}

type DeviceSteps<'s> = BTreeMap<(&'s str, &'s str, &'s str), Vec<(u64, &'s Value, &'s Value)>>;

fn at(change: &Value) -> u64 {
    change["at"].as_u64().unwrap()
}

impl<'s> Naive<'s> {
    fn is_in(&self, change: &Value) -> bool {
        LogTime(at(change)) >= self.window.from && self.window.to.is_none_or(|to| LogTime(at(change)) <= to)
    }

    /// What each device did: when, its status from there on, and the change.
    fn devices(&self) -> DeviceSteps<'s> {
        let mut steps: DeviceSteps = BTreeMap::new();
        for change in self.changes {
            for device in change["devices"].as_array().unwrap() {
                let text = |value: &'s Value| value.as_str().unwrap();
                let key = (
                    text(&change["user"]),
                    text(&device["platform"]),
                    text(&device["device"]),
                );
                steps
                    .entry(key)
                    .or_default()
                    .push((at(change), &device["after"], change));
            }
        }
        steps
    }

    fn online_ms(&self) -> BTreeMap<String, u64> {
        let end = *self.story.times.last().unwrap();
        let to = self.window.to.map_or(end, |to| end.min(to.0));
        let mut sums = BTreeMap::new();
        for ((_, platform, _), steps) in self.devices() {
            for (number, (begin, status, _)) in steps.iter().enumerate() {
                let until = steps.get(number + 1).map_or(end, |next| next.0);
                let ms = until.min(to).saturating_sub((*begin).max(self.window.from.0));
                if *status == "online" && ms > 0 {
                    *sums.entry(platform.to_owned()).or_default() += ms;
                }
            }
        }
        sums
    }

    fn is_loss(&self, change: &Value) -> bool {
        let cause = change["cause"].as_str().unwrap();
        ["timeout", "gateway_lost", "background"].contains(&cause) && self.is_in(change)
    }

    fn false_offlines(&self) -> u64 {
        let devices = self.devices();
        let mut count = 0;
        for steps in devices.values() {
            for (lost, _, change) in steps {
                if !self.is_loss(change) {
                    continue;
                }
                let is_later = |step: &&(u64, &Value, &Value)| step.2["seq"].as_u64() > change["seq"].as_u64();
                let back = steps.iter().filter(is_later).find(|(_, status, _)| *status == "online");
                count += u64::from(back.is_some_and(|(back, _, how)| {
                    (how["cause"] == "resume" || how["cause"] == "revive") && back - lost <= self.window.again_ms
                }));
            }
        }
        count
    }

    fn detections(&self) -> Vec<u64> {
        let offsets = self
            .story
            .input
            .iter()
            .map(|line| parsed(line)["offset"].as_u64().unwrap());
        let times: BTreeMap<u64, u64> = offsets.zip(self.story.times.iter().copied()).collect();
        let losses = self.changes.iter().filter(|change| self.is_loss(change));
        let number = |value: &Value| value.as_u64().unwrap();
        let detection = |loss: &Value| number(&loss["logged_at"]) - times[&number(&loss["evidence"])];
        let mut all: Vec<u64> = losses.map(detection).collect();
        all.sort_unstable();
        all
    }

    /// How a user stood before the window, and what it did in it.
    fn stand_of(&self, user: &str) -> (BTreeMap<String, Value>, Value, Vec<Value>) {
        let (mut before, mut text, mut changes) = (BTreeMap::new(), Value::Null, Vec::new());
        for change in self.changes.iter().filter(|change| change["user"] == user) {
            if self.is_in(change) {
                let fields = ["at", "cause", "before", "after", "devices", "custom_status"];
                changes.push(fields.iter().map(|field| change[*field].clone()).collect());
            } else if LogTime(at(change)) < self.window.from {
                text = change["custom_status"].clone();
                for device in change["devices"].as_array().unwrap() {
                    before.insert(
                        format!("{}/{}", device["platform"], device["device"]),
                        device["after"].clone(),
                    );
                }
            }
        }
        before.retain(|_, status| status != "offline");
        (before, text, changes)
    }
}

fn expected(was: &Naive, would: &Naive) -> Value {
    let both = |of: &dyn Fn(&Naive) -> Value| json!({"was": of(was), "would": of(would)});
    let users = was
        .changes
        .iter()
        .chain(would.changes)
        .map(|change| change["user"].as_str().unwrap());
    let affected = users
        .collect::<BTreeSet<_>>()
        .into_iter()
        .filter(|user| was.stand_of(user) != would.stand_of(user));
    let (was_ms, would_ms) = (was.online_ms(), would.online_ms());
    let platforms: BTreeSet<_> = was_ms.keys().chain(would_ms.keys()).collect();
    let online = platforms.into_iter().map(|platform| {
        let ms = |of: &BTreeMap<String, u64>| of.get(platform).copied().unwrap_or(0);
        (platform.clone(), json!({"was": ms(&was_ms), "would": ms(&would_ms)}))
    });
    json!({
        "changes": both(&|one| json!(one.changes.iter().filter(|change| one.is_in(change)).count())),
        "users_affected": affected.count(),
        "online_ms": online.collect::<serde_json::Map<_, _>>(),
        "false_offlines": both(&|one| json!(one.false_offlines())),
        "detection_ms": both(&|one| {
            let all = one.detections();
            // The least value that at least so many of a hundred do not exceed.
            let percentile = |percent: usize| {
                all.iter().find(|ms| all.iter().filter(|one| one <= ms).count() * 100 >= percent * all.len())
            };
            json!({"p50": percentile(50), "p99": percentile(99)})
        }),
    })
}

fn run(story: &Story, window: Window, first: Option<Policy>, policies: &[Policy], keep: bool) -> PartitionFigures {
    let is_published = first.is_none();
    let mut what_if = WhatIf::new(story.partition, window, first, policies, keep, HashSeed(7));
    if is_published {
        let mut changes = story.changes.iter();
        while changes.next().is_some_and(|line| what_if.published(&change(line))) {}
    }
    for line in &story.input {
        let line = schema_json::read_line(line).unwrap();
        if !what_if.fold(line.offset, line.ts, line.event.as_ref().ok()) {
            break;
        }
    }
    what_if.finish()
}

fn lines(outcome: &PartitionFigures) -> Vec<WhatIfLine> {
    outcome
        .points
        .iter()
        .map(|point| point.line(None, &outcome.was))
        .collect()
}

#[test]
fn what_would_have_been_is_what_the_oracle_says_figure_by_figure() {
    let (mut false_offlines, mut affected, mut lost) = (0, 0, 0);
    for seed in 0..SEEDS {
        let story = Story::new(seed);
        let other = history::policy(seed + 1_000);
        let last = story.times.len() - 1;
        let (from, to) = [(None, None), (Some(last / 3), Some(last / 2)), (Some(last / 4), None)][seed as usize % 3];
        let window = Window {
            from: from.map_or(LogTime(0), |at: usize| LogTime(story.times[at])),
            to: to.map(|at: usize| LogTime(story.times[at])),
            again_ms: [60_000, 5_000, 400_000][seed as usize / 3 % 3],
        };
        for keep in [false, true] {
            let changes = would(&story, &other, keep);
            let naive = |changes| Naive {
                story: &story,
                changes,
                window,
            };
            let expected = expected(&naive(&story.changes), &naive(&changes));
            let policies = [other.clone()];
            for first in [None, Some(story.policy.clone())] {
                let line = lines(&run(&story, window, first, &policies, keep)).remove(0);
                assert_eq!(
                    serde_json::to_value(&line).unwrap(),
                    expected,
                    "seed {seed}, {window:?}, {keep}"
                );
                false_offlines += line.false_offlines.would;
                affected += line.users_affected;
                lost += u64::from(line.detection_ms.would.p99.is_some());
            }
        }
    }
    assert!(
        false_offlines > 100 && affected > 100 && lost > 100,
        "{false_offlines} {affected} {lost}"
    );
}

#[test]
fn a_sweep_of_ten_points_equals_ten_runs() {
    let mut varied = 0;
    for seed in 0..20 {
        let story = Story::new(seed);
        let policies: Vec<Policy> = (1..=10)
            .map(|step| {
                let mut policy = story.policy.clone();
                for platform in policy.platforms.values_mut() {
                    platform.timeout_ms = step * 40_000;
                }
                policy
            })
            .collect();
        let window = Window {
            from: LogTime(0),
            to: None,
            again_ms: 60_000,
        };
        let swept = lines(&run(&story, window, None, &policies, false));
        let alone = policies
            .iter()
            .flat_map(|policy| lines(&run(&story, window, None, std::slice::from_ref(policy), false)));
        assert_eq!(swept, alone.collect::<Vec<_>>(), "seed {seed}");
        varied += usize::from(swept.iter().any(|line| *line != swept[0]));
    }
    assert!(varied > 10, "{varied}");
}

/// So long that the times of records that are nobody's evidence any more are let go of.
#[test]
fn the_detection_of_a_loss_is_right_however_long_ago_its_evidence_was() {
    let window = Window {
        from: LogTime(0),
        to: None,
        again_ms: 60_000,
    };
    let policies = [Policy::default()];
    let mut what_if = WhatIf::new(
        rollcall::presence::Partition(0),
        window,
        Some(Policy::default()),
        &policies,
        false,
        HashSeed(7),
    );
    let event = |offset: u64, ts: u64, kind: &str, user: &str, conn: u64| {
        let more = link(user, "android", "d", conn) + if kind == "connect" { ",\"intent\":\"login\"" } else { "" };
        event(offset, ts, kind, &more)
    };
    let feed = |what_if: &mut WhatIf, line: &str| {
        let line = schema_json::read_line(line).unwrap();
        what_if.fold(line.offset, line.ts, line.event.as_ref().ok());
    };
    feed(&mut what_if, &event(0, 5, "connect", "often", 1));
    for round in 0..4 {
        let begin = round * 390_000;
        feed(&mut what_if, &event(1 + begin, 10 + begin, "heartbeat", "often", 1));
        for ms in 1..390_000 {
            what_if.fold(Offset(1 + begin + ms), 10 + begin + ms, Some(&Event::Tick));
        }
    }
    let (last, end) = (4 * 390_000, 3 * 390_000 + 10 + 400_000);
    feed(&mut what_if, &event(last + 1, end + 7, "heartbeat", "often", 1));
    let line = lines(&what_if.finish()).remove(0);
    assert_eq!(line.detection_ms.would.p50, Some(400_007));
    assert_eq!(line.detection_ms.was, line.detection_ms.would);
    assert_eq!((line.false_offlines.would, line.users_affected), (1, 0));
}

#[test]
fn the_command_prints_these_bytes_and_the_gate_decides_the_exit_status() {
    // Silent for 130 seconds, twice.
    let carol = link("carol", "android", "c1", 7);
    let mut day = vec![event(0, 1_000, "connect", &(carol.clone() + ",\"intent\":\"login\""))];
    day.push(event(1, 131_000, "heartbeat", &carol));
    day.push(event(2, 261_000, "heartbeat", &carol));
    day.push(event(
        3,
        300_000,
        "policy",
        ",\"policy\":{\"platforms\":{\"android\":{\"timeout_ms\":1}}}",
    ));
    day.push(event(4, 310_000, "heartbeat", &carol));
    day.push(event(5, 320_000, "tick", ""));
    let files = Files::of(&day, None);
    files.write("policy.json", "{\"platforms\":{\"android\":{\"timeout_ms\":120000}}}");
    let (policy, events, changes) = (files.path("policy.json"), files.path("events"), files.path("changes"));
    let raw = |more: &[&str]| {
        let mut all = vec!["audit", "what-if", "--json", "--events", &events];
        all.extend(more);
        let output = super::rollcall(&all).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    let with = ["--policy", &policy, "--changes", &changes];
    let line = "{\"changes\":{\"was\":2,\"would\":5},\"users_affected\":1,\"online_ms\":{\"android\":{\"was\":309001,\"would\":299000}},\
                \"false_offlines\":{\"was\":0,\"would\":2},\"detection_ms\":{\"was\":{\"p50\":10000,\"p99\":10000},\"would\":{\"p50\":\
                130000,\"p99\":130000}}}\n";
    assert_eq!(raw(&with), (0, line.to_owned(), String::new()));
    let (status, same, _) = raw(&["--policy", &policy]);
    assert_eq!(
        (status, same.as_str()),
        (0, line),
        "without changes they are folded under the default policy"
    );
    let gate = |most: &str| raw(&[&with[..], &["--gate", most]].concat());
    assert_eq!(gate("max_false_offlines=2").0, 0);
    let (status, text, error) = gate("max_false_offlines=1");
    assert_eq!((status, text.as_str()), (1, line));
    assert!(error.contains("max_false_offlines=1, and there would be 2"), "{error}");
    let kept = parsed(&raw(&[&with[..], &["--keep-policies"]].concat()).1);
    assert_eq!(kept["changes"], json!({"was": 2, "would": 6}));
    let window = parsed(&raw(&[&with[..], &["--from", "200000", "--to", "240000"]].concat()).1);
    assert_eq!(window["changes"], json!({"was": 0, "would": 0}));
    assert_eq!(
        window["online_ms"],
        json!({"android": {"was": 40_000, "would": 40_000}})
    );
    assert_eq!(window["users_affected"], 0);

    let (status, swept, _) = raw(&[
        "--changes",
        &changes,
        "--sweep",
        "platforms.android.timeout_ms=60000..600000/10",
    ]);
    assert_eq!((status, swept.lines().count()), (0, 10));
    for (number, line) in swept.lines().enumerate() {
        let ms = (number + 1) * 60_000;
        assert!(line.starts_with(&format!("{{\"value\":{ms},\"changes\":")), "{line}");
        files.write(
            "point.json",
            &format!("{{\"platforms\":{{\"android\":{{\"timeout_ms\":{ms}}}}}}}"),
        );
        let alone = raw(&["--changes", &changes, "--policy", &files.path("point.json")]).1;
        assert_eq!(line.replace(&format!("\"value\":{ms},"), ""), alone.trim_end());
    }
    assert_eq!(parsed(swept.lines().nth(1).unwrap())["false_offlines"]["would"], 2);
}

#[test]
fn a_policy_that_the_rules_refuse_is_refused_by_the_name_of_its_field() {
    let files = Files::of(&a_day(), None);
    let (events, policy) = (files.path("events"), files.path("policy.json"));
    let refused = |more: &[&str], wants: &str| {
        let mut all = vec!["audit", "what-if", "--events", &events];
        all.extend(more);
        let output = super::rollcall(&all).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(output.stdout.is_empty() && error.contains(wants), "{error}");
    };
    for (text, wants) in [
        (
            "{\"platforms\":{\"web\":{\"timeout_ms\":0}}}",
            "platforms.web.timeout_ms must be 1 to",
        ),
        ("{\"outage\":{\"silence_ms\":5}}", "outage.silence_ms"),
        (
            "{\"platforms\":{\"web\":{\"timeout\":5}}}",
            "unknown key \"timeout\" in platforms.web",
        ),
        ("{\"instances\":{\"web\":33}}", "instances.web"),
    ] {
        files.write("policy.json", text);
        refused(&["--policy", &policy], wants);
    }
    let sweep = |text: &'static str, wants| refused(&["--sweep", text], wants);
    sweep(
        "platforms.web.timeout_ms=0..10/2",
        "platforms.web.timeout_ms must be 1 to",
    );
    sweep("platforms.web=0..10/2", "platforms.web must be an object");
    sweep("web.timeout_ms=0..10/2", "no such setting");
    refused(&[], "--policy FILE is missing");
    refused(
        &["--sweep", "kicked_max=1..2/2", "--from", "9", "--to", "8"],
        "is after",
    );
}
