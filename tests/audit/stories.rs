//! Why a user has a status: short logs, and the records behind the status, as somebody finds them who reads the rules.

use super::{Files, audit, event, link};
use serde_json::Value;

/// An answer in a line: the status, the steps from the change to its evidence, and what is pending.
fn line(answer: &Value) -> String {
    let steps = answer["steps"].as_array().unwrap().iter().map(|step| {
        let field = |name: &str| match &step[name] {
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        match step["step"].as_str().unwrap() {
            "change" => format!("{} {} at {}", field("id"), field("cause"), field("at")),
            "deadline" => format!("{} deadline {}", field("kind"), field("deadline")),
            _ => format!("{} {} {}", field("role"), field("type"), field("offset")),
        }
    });
    let steps: Vec<String> = steps.collect();
    let pending = answer["pending"].as_array().unwrap().iter();
    let pending = pending.map(|one| format!("; {} at {}", one["then"].as_str().unwrap(), one["deadline"]));
    let status = answer["status"].as_str().unwrap();
    format!("{status}: {}{}", steps.join(", "), pending.collect::<String>())
}

/// The log of one story, offset by offset.
#[derive(Default)]
struct Log(Vec<String>);

impl Log {
    fn add(mut self, ts: u64, kind: &str, more: &str) -> Log {
        self.0.push(event(self.0.len() as u64, ts, kind, more));
        self
    }

    /// An event of alice's device on a platform, on a connection.
    fn of(self, ts: u64, kind: &str, platform: &str, conn: u64, more: &str) -> Log {
        let device = link("alice", platform, "d", conn);
        self.add(ts, kind, &(device + more))
    }

    fn login(self, ts: u64, platform: &str, conn: u64) -> Log {
        self.of(ts, "connect", platform, conn, ",\"intent\":\"login\"")
    }

    fn lease(self, ts: u64, epoch: u64, ttl_ms: u64) -> Log {
        let more = format!(",\"gateway\":\"g1\",\"epoch\":{epoch},\"ttl_ms\":{ttl_ms}");
        self.add(ts, "lease", &more)
    }

    fn tick(self, ts: u64) -> Log {
        self.add(ts, "tick", "")
    }

    #[track_caller]
    fn tells(&self, at: Option<u64>, expected: &str) {
        let files = Files::of(&self.0, None);
        let events = files.path("events");
        let at = at.map(|at| at.to_string());
        let mut arguments = vec!["audit", "why", "alice", "--json", "--events", &events];
        arguments.extend(at.iter().flat_map(|at| ["--at", at]));
        let (_, answer) = audit(&arguments);
        assert_eq!(line(&answer[0]), expected);
    }
}

const CLOSED: &str = ",\"reason\":\"closed\"";

#[test]
fn a_login_is_its_own_reason() {
    let log = Log::default().login(1_000, "web", 1);
    log.tells(
        None,
        "online: 0-0-0 login at 1000, evidence connect 0; timeout at 61000",
    );
}

#[test]
fn after_silence_it_is_the_last_sign_of_life() {
    let log = Log::default().login(1_000, "android", 1);
    let log = log.of(61_000, "heartbeat", "android", 1, "").tick(470_000);
    log.tells(
        None,
        "push_online: 0-2-0 timeout at 461000, heartbeat deadline 461000, evidence heartbeat 1, login connect 0; \
         push_expired at 605261000",
    );
    // It holds from the deadline on, though it was found out later.
    log.tells(
        Some(460_999),
        "online: 0-0-0 login at 1000, evidence connect 0; timeout at 461000",
    );
    log.tells(
        Some(461_000),
        "push_online: 0-2-0 timeout at 461000, heartbeat deadline 461000, evidence heartbeat 1, login connect 0; \
         push_expired at 605261000",
    );
}

#[test]
fn a_lease_that_runs_out_is_named_by_its_last_record() {
    let log = Log::default().lease(1_000, 1, 30_000).login(2_000, "web", 1);
    let log = log
        .lease(11_000, 1, 30_000)
        .of(12_000, "heartbeat", "web", 1, "")
        .tick(50_000);
    log.tells(
        None,
        "offline: 0-4-0 gateway_lost at 41000, lease deadline 41000, evidence heartbeat 3, login connect 1, lease lease 2",
    );
}

#[test]
fn a_gateway_that_starts_again_or_stops_is_the_event_itself() {
    let online = || Log::default().lease(1_000, 1, 60_000).login(2_000, "web", 1);
    let expected = "offline: 0-2-0 gateway_lost at 5000, evidence lease 2, login connect 1";
    online().lease(5_000, 2, 60_000).tells(None, expected);
    online().lease(5_000, 1, 0).tells(None, expected);
}

#[test]
fn a_link_that_lingers_ends_by_its_own_deadline() {
    let log = Log::default().login(1_000, "mini_program", 1);
    let log = log.of(2_000, "disconnect", "mini_program", 1, ",\"reason\":\"exit\"");
    log.tells(None, "online: 0-0-0 login at 1000, evidence connect 0; exit at 7000");
    log.tick(10_000).tells(
        None,
        "offline: 0-2-0 exit at 7000, linger deadline 7000, evidence connect 0",
    );
}

#[test]
fn the_background_is_the_evidence_of_its_deadline() {
    let log = Log::default().login(1_000, "mini_program", 1);
    let log = log.of(5_000, "heartbeat", "mini_program", 1, "");
    let log = log.of(6_000, "background", "mini_program", 1, "").tick(40_000);
    log.tells(
        None,
        "offline: 0-3-0 background at 36000, background deadline 36000, evidence background 2, login connect 0",
    );
}

#[test]
fn who_comes_back_has_the_first_login() {
    let gone = || {
        Log::default()
            .login(1_000, "android", 1)
            .of(2_000, "disconnect", "android", 1, CLOSED)
    };
    gone().tells(
        None,
        "push_online: 0-1-0 closed at 2000, evidence disconnect 1, login connect 0; push_expired at 604802000",
    );
    gone()
        .of(9_000, "connect", "android", 2, ",\"intent\":\"resume\"")
        .tells(
            None,
            "online: 0-2-0 resume at 9000, evidence connect 2, login connect 0; timeout at 409000",
        );
    gone().tick(604_900_000).tells(
        None,
        "offline: 0-2-0 push_expired at 604802000, away deadline 604802000, evidence connect 0",
    );
}

#[test]
fn a_sign_of_life_after_the_time_out_is_the_reason_to_be_online_again() {
    let log = Log::default().login(1_000, "web", 1).tick(70_000);
    log.of(80_000, "heartbeat", "web", 1, "").tells(
        None,
        "online: 0-2-0 revive at 80000, evidence heartbeat 2, login connect 0; timeout at 140000",
    );
}

#[test]
fn a_kick_and_a_logout_name_the_login_that_they_end() {
    let log = Log::default()
        .login(1_000, "web", 1)
        .of(3_000, "heartbeat", "web", 1, "");
    log.add(4_000, "kick", ",\"user\":\"alice\"")
        .tells(None, "offline: 0-2-0 kicked at 4000, evidence kick 2, login connect 0");
    // The second device displaces the first, and the user stays online by it.
    let log = Log::default().login(1_000, "android", 1).login(2_000, "iphone", 2);
    log.of(3_000, "logout", "iphone", 2, "").tells(
        None,
        "offline: 0-2-0 logout at 3000, evidence logout 2, login connect 1",
    );
}

#[test]
fn a_login_while_online_is_the_login_from_then_on() {
    let log = Log::default().login(1_000, "web", 1).login(5_000, "web", 2);
    log.tells(
        None,
        "online: 0-0-0 login at 1000, evidence connect 0; timeout at 65000",
    );
    log.of(7_000, "disconnect", "web", 2, CLOSED).tells(
        None,
        "offline: 0-2-0 closed at 7000, evidence disconnect 2, login connect 1",
    );
}

#[test]
fn what_was_forgotten_has_no_reason_and_a_new_login_has_its_own() {
    let log = Log::default()
        .login(1_000, "web", 1)
        .add(2_000, "forget", ",\"user\":\"alice\"");
    let files = Files::of(&log.0, None);
    let events = files.path("events");
    let (_, answer) = audit(&["audit", "why", "alice", "--json", "--events", &events]);
    assert_eq!(answer, [Value::Null]);
    log.login(3_000, "web", 2).tells(
        None,
        "online: 0-2-0 login at 3000, evidence connect 2; timeout at 63000",
    );
}

#[test]
fn the_grace_after_an_outage_postpones_the_deadline() {
    let policy = r#","policy":{"outage":{"silence_ms":100000,"grace_ms":50000}}"#;
    let log = Log::default().add(1_000, "policy", policy).login(2_000, "web", 1);
    // Due at 62000, in a silence of 198 s; grace until 250000.
    let log = log.tick(200_000);
    log.tells(
        None,
        "online: 0-1-0 login at 2000, evidence connect 1; timeout at 250000",
    );
    log.tick(260_000).tells(
        None,
        "offline: 0-3-0 timeout at 250000, heartbeat deadline 250000, evidence connect 1",
    );
}
