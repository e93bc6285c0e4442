//! `POST /v1/events`.

use crate::house::{House, connect, on, says, user_of, wait_until};
use rollcall::log;
use rollcall::topics::Topic;
use serde_json::{Value, json};
use std::io::Write as _;

fn at(partition: u32, offset: u64) -> Value {
    json!({"partition": partition, "offset": offset})
}

fn lease() -> Value {
    json!({"type": "lease", "gateway": "g1", "epoch": 1, "ttl_ms": 30_000})
}

#[test]
fn the_answer_says_where_each_event_went_in_the_order_given() {
    let house = House::new(2);
    let (a, b) = (user_of(0, 2, 0), user_of(1, 2, 0));
    let events = [
        connect(&b, 1),
        connect(&a, 2),
        lease(),
        connect(&b, 3),
        json!({"type": "tick"}),
    ];
    let appended = house.publish(&events);
    let expected = json!([at(1, 0), at(0, 0), [at(0, 1), at(1, 1)], at(1, 2), [at(0, 2), at(1, 3)]]);
    assert_eq!(json!(appended), expected);
    let wrapped = house.post(
        "/v1/events",
        json!({"events": [connect(&a, 4)], "note": "ignored"}).to_string(),
    );
    assert_eq!(wrapped.ok(), json!({"appended": [at(0, 3)]}));
    assert_eq!(house.ends(), [4, 4]);
    assert_eq!(house.user_at(&b, &json!(2)).ok()["devices"][0]["conn"], 3);
}

#[test]
fn lease_policy_and_tick_go_to_every_partition() {
    let house = House::new(3);
    let events = [
        lease(),
        json!({"type": "policy", "policy": {}}),
        json!({"type": "tick"}),
    ];
    let each = |offset| json!([at(0, offset), at(1, offset), at(2, offset)]);
    assert_eq!(house.publish(&events), [each(0), each(1), each(2)]);
    assert_eq!(house.ends(), [3, 3, 3]);
}

#[test]
fn heartbeats_are_split_by_the_partitions_of_their_users() {
    let house = House::new(3);
    let (a, b, c) = (user_of(0, 3, 0), user_of(2, 3, 0), user_of(2, 3, 1));
    house.publish(&[connect(&a, 1), connect(&b, 2), connect(&c, 3)]);
    house.clock.advance_ms(5_000);
    let beat = |user: &str, conn| json!({"user": user, "platform": "android", "device": "a1", "conn": conn});
    let beats = json!([beat(&c, 3), beat(&a, 1), beat(&b, 2)]);
    let appended = house.publish(&[json!({"type": "heartbeats", "gateway": "g1", "epoch": 1, "beats": beats})]);
    // No record for the partition without any of these users.
    assert_eq!(json!(appended), json!([[at(0, 1), at(2, 2)]]));
    for (user, offset) in [(&a, 1), (&b, 2), (&c, 2)] {
        assert_eq!(house.user_at(user, &json!(offset)).ok()["last_seen"], 6_000, "{user}");
    }
    // Nothing ended in quarantine, as a beat in a wrong partition would.
    assert_eq!(house.end(Topic::Quarantine, 0) + house.end(Topic::Quarantine, 2), 0);
}

#[test]
fn an_alive_goes_to_the_partition_that_it_names_and_asks_whose_an_unknown_connection_is() {
    let house = House::new(3);
    let (a, b) = (user_of(2, 3, 0), user_of(2, 3, 1));
    house.publish(&[connect(&a, 1), connect(&b, 2)]);
    house.clock.advance_ms(5_000);
    let alive = |partition: Value| {
        let mut alive = json!({"type": "alive", "gateway": "g1", "epoch": 1, "conns": [1, 2, 7]});
        if !partition.is_null() {
            alive["partition"] = partition;
        }
        alive
    };
    assert_eq!(json!(house.publish(&[alive(json!(2))])), json!([at(2, 2)]));
    for user in [&a, &b] {
        assert_eq!(house.user_at(user, &json!(2)).ok()["last_seen"], 6_000, "{user}");
    }
    wait_until("the kick is there", || house.end(Topic::Kicks, 2) == 1);
    let [kick] = &house.follow("/v1/kicks?after=earliest").take(1)[..] else {
        unreachable!("one was asked for")
    };
    let kick: Value = serde_json::from_str(&kick.data).expect("JSON");
    assert_eq!(kick["reason"], "identify");
    assert_eq!(kick["conn"], 7);
    assert_eq!(kick["user"], Value::Null);
    for partition in [Value::Null, json!(3), json!(1u64 << 40), json!("2"), json!(-1)] {
        let events = json!([alive(partition.clone())]).to_string();
        let error = house.post("/v1/events", events).error(400, "bad_event");
        assert_eq!(error["field"], "partition", "{partition}");
        let message = error["message"].as_str().expect("a sentence");
        assert!(message.contains("from 0 to 2"), "{message}");
    }
    assert_eq!(house.ends(), [0, 0, 3]);
}

#[test]
fn a_revision_that_is_not_known_is_refused_before_it_halts_every_partition() {
    let house = House::new(2);
    let revision = |number: u64| json!({"type": "revision", "revision": number});
    house.publish(&[revision(1)]);
    for (number, what) in [(2, "knows revisions up to 1, not 2"), (0, "from 1 to 2147483647")] {
        let error = house
            .post("/v1/events", json!([revision(number)]).to_string())
            .error(400, "bad_event");
        assert_eq!(error["field"], "revision");
        let message = error["message"].as_str().expect("a sentence");
        assert!(message.contains(what), "{message}");
    }
    assert_eq!(house.ends(), [1, 1]);
}

#[test]
fn one_bad_event_and_nothing_is_appended() {
    let house = House::new(2);
    let events = json!([
        connect("alice", 1),
        lease(),
        on("connect", "bob", 2, json!({"intent": "guess"}))
    ]);
    let error = house.post("/v1/events", events.to_string()).error(400, "bad_event");
    assert_eq!(error["event"], 2);
    assert_eq!(error["field"], "intent");
    assert_eq!(error["message"], r#"`intent` must be "login" or "resume""#);
    assert_eq!(house.ends(), [0, 0]);
    house.get("/v1/users/alice").error(404, "unknown_user");
}

/// An event, and what is wrong with it: the field, and what the message must say.
fn wrong() -> Vec<(Value, &'static str, &'static str)> {
    let long = |bytes| "x".repeat(bytes);
    let with = |more: Value| on("connect", "alice", 1, json!({"intent": "login"})).merged(more);
    let kick = |more: Value| json!({"type": "kick", "user": "alice"}).merged(more);
    let status = |text: Value| json!({"type": "custom_status", "user": "alice", "text": text});
    let lease = |more: Value| lease().merged(more);
    let beats = |beats: Value| json!({"type": "heartbeats", "gateway": "g1", "epoch": 1, "beats": beats});
    let beat = json!({"user": "alice", "platform": "android", "device": "a1", "conn": 1});
    let policy = |policy: Value| json!({"type": "policy", "policy": policy});
    let text_128 = "`user` must have 1 to 128 bytes of UTF-8";
    let whole = "must be an integer from 0 to 9223372036854775807";
    let ten_years = "315360000000";
    vec![
        (with(json!({"user": ""})), "user", text_128),
        (with(json!({"user": long(129)})), "user", "not 129"),
        // Bytes, not characters.
        (with(json!({"user": "ü".repeat(65)})), "user", "not 130"),
        (with(json!({"user": 7})), "user", "must be a string, not a number"),
        (with(json!({"user": null})), "user", "`user` is missing"),
        (with(json!({"device": long(129)})), "device", "1 to 128 bytes"),
        (with(json!({"device": ""})), "device", "1 to 128 bytes"),
        (with(json!({"platform": long(65)})), "platform", "1 to 64 bytes"),
        (with(json!({"platform": ""})), "platform", "1 to 64 bytes"),
        (with(json!({"gateway": long(65)})), "gateway", "1 to 64 bytes"),
        (with(json!({"gateway": ["g"]})), "gateway", "not an array"),
        (with(json!({"epoch": -1})), "epoch", whole),
        (with(json!({"epoch": 1u64 << 63})), "epoch", whole),
        (with(json!({"epoch": 1.0})), "epoch", whole),
        (with(json!({"conn": true})), "conn", whole),
        (with(json!({"conn": "1"})), "conn", "not a string"),
        (with(json!({"conn": null})), "conn", "`conn` is missing"),
        (with(json!({"intent": "Login"})), "intent", r#""login" or "resume""#),
        (with(json!({"intent": null})), "intent", "`intent` is missing"),
        (with(json!({"client": ""})), "client", "1 to 256 bytes"),
        (with(json!({"client": long(257)})), "client", "not 257"),
        (on("disconnect", "alice", 1, json!({})), "reason", "`reason` is missing"),
        (
            on("disconnect", "alice", 1, json!({"reason": "bored"})),
            "reason",
            r#""closed" or "exit""#,
        ),
        (kick(json!({"device": "a1"})), "platform", "needs its `platform`"),
        (status(json!("")), "text", "1 to 100 bytes"),
        (status(json!(long(101))), "text", "not 101"),
        (lease(json!({"ttl_ms": 86_400_001})), "ttl_ms", "0 to 86400000"),
        (lease(json!({"ttl_ms": null})), "ttl_ms", "`ttl_ms` is missing"),
        (lease(json!({"gateway": ""})), "gateway", "1 to 64 bytes"),
        (beats(json!([])), "beats", "1 to 10000 entries, not 0"),
        (beats(json!(vec![&beat; 10_001])), "beats", "not 10001"),
        (beats(json!({})), "beats", "must be an array, not an object"),
        (beats(json!(null)), "beats", "`beats` is missing"),
        (beats(json!([beat, 7])), "beats", "beat 1"),
        (
            beats(json!([beat, {"user": "bob"}])),
            "platform",
            "beat 1: `platform` is missing",
        ),
        (policy(json!(null)), "policy", "`policy` is missing"),
        (policy(json!("multi")), "policy", "must be an object"),
        (policy(json!({"login": "many"})), "policy", "login"),
        (policy(json!({"log_in": "multi"})), "policy", "log_in"),
        (policy(json!({"rules": 2})), "policy", "rules"),
        (policy(json!({"kicked_max": 65})), "policy", "64"),
        (policy(json!({"instances": {"web": 33}})), "policy", "32"),
        (policy(json!({"outage": {"silence_ms": 1_999}})), "policy", "2000"),
        (
            policy(json!({"platforms": {"web": {"timeout_ms": 0}}})),
            "policy",
            "timeout_ms",
        ),
        (
            policy(json!({"platforms": {"web": {"away_ms": 315_360_000_001u64}}})),
            "policy",
            ten_years,
        ),
        (
            policy(json!({"platforms": {"tv": {"push": true}}})),
            "policy",
            "timeout_ms",
        ),
        (
            json!({"type": "nap"}),
            "type",
            "`type` \"nap\" is unknown; it must be connect, heartbeat,",
        ),
        (json!({"type": 1}), "type", "must be a string"),
        (json!({"user": "alice"}), "type", "`type` is missing"),
        (json!("tick"), "type", "an event must be an object, not a string"),
        (json!(null), "type", "an event must be an object, not null"),
    ]
}

trait Merged {
    fn merged(self, more: Value) -> Value;
}

impl Merged for Value {
    fn merged(mut self, more: Value) -> Value {
        if let (Some(to), Some(more)) = (self.as_object_mut(), more.as_object()) {
            to.extend(more.clone());
        }
        self
    }
}

#[test]
fn every_limit_is_enforced_with_a_message_that_names_field_and_bound() {
    let house = House::new(1);
    for (event, field, says) in wrong() {
        let shown: String = event.to_string().chars().take(300).collect();
        let body = json!([{"type": "tick"}, event]).to_string();
        let error = house.post("/v1/events", body).error(400, "bad_event");
        assert_eq!(
            (&error["event"], &error["field"]),
            (&json!(1), &json!(field)),
            "{shown}: {error}"
        );
        let message = error["message"].as_str().expect("text");
        assert!(message.contains(says), "{shown}: {message}");
        assert!(message.len() < 600, "{message}");
    }
    assert_eq!(house.ends(), [0]);
}

#[test]
fn what_is_just_within_the_limits_is_taken_and_folded() {
    let house = House::new(1);
    let most = 9_223_372_036_854_775_807u64;
    let user = "ü".repeat(64);
    let long = |bytes| "x".repeat(bytes);
    let who = json!({"device": long(128), "platform": "android", "gateway": long(64), "epoch": most, "conn": most});
    let login = on("connect", &user, 1, json!({"intent": "login", "client": long(256)})).merged(who.clone());
    let short = json!({"device": "d", "gateway": "g", "epoch": 0, "conn": 0, "client": "c"});
    let beat = json!({"user": user, "platform": "android", "device": long(128), "conn": most});
    house.publish(&[
        json!({"type": "policy", "policy": {"platforms": {long(64): {"timeout_ms": 1, "push": false}}}}),
        login,
        json!({"type": "custom_status", "user": user, "text": long(100)}),
        json!({"type": "heartbeats", "gateway": long(64), "epoch": most, "beats": vec![beat; 10_000]}),
        json!({"type": "lease", "gateway": "g", "epoch": 0, "ttl_ms": 86_400_000}),
        connect("u", 0).merged(short),
        connect("v", 0).merged(json!({"platform": long(64)})),
        // Null and missing are the same.
        json!({"type": "custom_status", "user": "u", "text": null, "mood": [1, {"a": "b"}]}),
        json!({"type": "kick", "user": "u", "platform": null, "device": null}),
    ]);
    house.wait_until_folded();
    assert_eq!(house.end(Topic::Quarantine, 0), 0);
    let object = house.user_at(&user, &json!(2)).ok();
    assert_eq!(object["custom_status"], long(100));
    assert_eq!(object["devices"][0]["conn"], most);
    assert_eq!(object["devices"][0]["client"], long(256));
}

#[test]
fn a_request_has_1_to_10000_events() {
    let house = House::new(1);
    for (body, count) in [
        (json!([]), 0),
        (json!({"events": []}), 0),
        (json!(vec![connect("u", 1); 10_001]), 10_001),
    ] {
        let error = house.post("/v1/events", body.to_string()).error(400, "bad_events");
        let message = format!("a request must have 1 to 10000 events, not {count}");
        assert_eq!(error["message"], message);
    }
    assert_eq!(house.ends(), [0]);
    let appended = house.publish(&vec![connect("u", 1); 10_000]);
    assert_eq!(appended[9_999], at(0, 9_999));
}

#[test]
fn a_body_of_more_than_8_mib_is_413_and_one_of_8_mib_is_not() {
    const MOST: usize = 8 << 20;
    let house = House::new(1);
    let padded = |size: usize| {
        let event = json!([connect("alice", 1)]).to_string();
        format!("{}{event}", " ".repeat(size - event.len()))
    };
    for path in ["/v1/events", "/v1/users/query"] {
        for size in [MOST + 1, 3 * MOST] {
            let error = house.post(path, padded(size)).error(413, "body_too_large");
            assert_eq!(error["message"], "a body may have at most 8388608 bytes");
        }
    }
    assert_eq!(house.ends(), [0]);
    house.post("/v1/events", padded(MOST)).ok();
    assert_eq!(house.ends(), [1]);
}

/// Of two values one would be dropped in silence.
#[test]
fn what_is_given_twice_in_one_object_is_refused_and_named() {
    let house = House::new(1);
    let (alice, bob) = (connect("alice", 1).to_string(), connect("bob", 2).to_string());
    for (body, message) in [
        (
            format!(r#"{{"events":[{alice}],"events":[{bob}]}}"#),
            "`events` is given twice",
        ),
        (format!(r#"{{"events":[{alice}],"type":"tick"}}"#), "not both"),
        (format!(r#"{{"type":"tick","events":[{alice}]}}"#), "not both"),
        (
            r#"{"type":"policy","policy":{"login":"multi","login":"single"}}"#.to_owned(),
            r#""login" is given twice"#,
        ),
        (
            r#"{"type":"policy","policy":{"platforms":{"ios":{"push":true,"push":false}}}}"#.to_owned(),
            r#""push" is given twice"#,
        ),
    ] {
        let error = house.post("/v1/events", &body).error(400, "bad_json");
        let said = error["message"].as_str().expect("text");
        assert!(said.contains(message), "{body}: {said}");
    }

    // Every field, whatever its value, and whether its name is written with escapes or not.
    let fields = [
        "type",
        "user",
        "platform",
        "device",
        "gateway",
        "epoch",
        "conn",
        "intent",
        "client",
        "reason",
        "text",
        "ttl_ms",
        "beats",
        "auth_at",
        "conns",
        "revision",
        "partition",
        "offset",
        "ts",
    ];
    for field in fields {
        let escaped = format!("\\u{:04x}{}", field.as_bytes()[0], &field[1..]);
        for (first, second) in [(field, field), (escaped.as_str(), field), (field, escaped.as_str())] {
            let twice = format!(r#"{{"{first}":null,"{second}":null,{}"#, &alice[1..]);
            for (content, body) in [
                ("application/json", format!("[{bob},{twice}]")),
                ("application/json", twice.clone()),
                ("application/x-ndjson", twice.clone()),
            ] {
                let client = house.with("Content-Type", content);
                let error = client.post("/v1/events", &body).error(400, "bad_event");
                assert_eq!(error["field"], field, "{body}");
                let said = error["message"].as_str().expect("text");
                assert!(said.contains("is given twice"), "{body}: {said}");
            }
        }
    }
    let beats = json!({"type":"heartbeats","gateway":"g","epoch":1,"beats":[]}).to_string();
    let beats = beats.replace(
        "[]",
        r#"[{"user":"a","conn":1,"user":"b","platform":"ios","device":"d"}]"#,
    );
    let error = house.post("/v1/events", &beats).error(400, "bad_event");
    assert!(
        error["message"]
            .as_str()
            .expect("text")
            .contains("beat 0: `user` is given twice"),
        "{error}"
    );
    assert_eq!(house.ends(), [0]);
}

#[test]
fn wrong_json_is_400_with_line_and_column() {
    let house = House::new(1);
    let wrong: [(&[u8], &str); 9] = [
        (b"", "line 1 column 0"),
        (b"[{\"type\":\"tick\"},\n {\"type\":}]", "line 2 column 10"),
        (b"[{\"type\":\"tick\"}", "line 1 column 16"),
        (b"[{\"type\":\"tick\"}]\n]", "line 2 column 1"),
        (
            b"{\n\"event\":[]}",
            "send an array of events: [{\"type\":\"connect\", …}] at line 2 column 11",
        ),
        (
            b"{\"events\":{}}",
            "expected an array of events as `events` at line 1 column 12",
        ),
        (
            b"\"tick\"",
            "expected an array of events, such as [{\"type\":\"connect\", …}] at line 1 column 6",
        ),
        (b"[{\"type\":\"custom_status\",\"user\":\"\\ud800\"}]", "line 1 column"),
        (b"[\n{\"type\":\"\xff\"}]", "line 2 column 10"),
    ];
    for (body, place) in wrong {
        let shown = String::from_utf8_lossy(body).into_owned();
        let error = house.post("/v1/events", body).error(400, "bad_json");
        let message = error["message"].as_str().expect("text");
        assert!(message.contains(place), "{shown}: {message}");
    }
    assert_eq!(house.ends(), [0]);
}

#[test]
fn what_the_log_does_not_take_is_503_and_can_be_sent_again() {
    let house = House::new(1);
    let body = json!([connect("alice", 1)]).to_string();
    for (failure, code) in [
        (log::Error::Busy, "busy"),
        (log::Error::Write("disk full".into()), "log_unavailable"),
        (log::Error::Closed, "stopping"),
    ] {
        house.log.fail_appends(1, failure);
        let reply = house.post("/v1/events", &body);
        reply.error(503, code);
        assert_eq!(reply.header("retry-after"), Some("1"));
        assert_eq!(house.ends(), [0]);
    }
    house.post("/v1/events", &body).ok();
    assert_eq!(house.ends(), [1]);
}

#[test]
fn a_server_that_stops_takes_no_events() {
    let house = House::new(1);
    house.stop.send_replace(true);
    let body = json!([connect("alice", 1)]).to_string();
    let error = house.post("/v1/events", body).error(503, "stopping");
    assert_eq!(error["message"], "the server is stopping; no event was accepted");
    assert_eq!(house.ends(), [0]);
}

#[test]
fn an_epoch_that_nothing_could_follow_is_refused() {
    let house = House::new(2);
    let lease = |epoch: u64| json!([{"type": "lease", "gateway": "g1", "epoch": epoch, "ttl_ms": 60_000}]).to_string();
    let refused = |epoch: u64| {
        let error = house.post("/v1/events", lease(epoch)).error(400, "bad_event");
        assert_eq!(error["field"], "epoch");
        error["message"].as_str().expect("text").to_owned()
    };
    let most = i64::MAX as u64;
    for epoch in [most, most - 1, (1 << 62) + 1] {
        assert!(refused(epoch).contains("too large for the first epoch of the gateway"));
    }
    house.post("/v1/events", lease(5)).ok();
    house.wait_until_folded();
    for epoch in [most, 1 << 62, 6 + (1 << 32)] {
        let message = refused(epoch);
        assert!(message.contains("too far ahead of the epoch 5"), "{message}");
    }
    house.post("/v1/events", lease(5 + (1 << 32))).ok();
    house.wait_until_folded();
    house.post("/v1/events", lease(6 + (1 << 32))).ok();
}

#[test]
fn unknown_fields_are_named_and_refused_if_that_is_asked_for() {
    let house = House::new(1);
    let mut event = connect("alice", 1);
    event["clinet"] = json!("Android 14");
    let body = json!([connect("bob", 1), event, {"type": "heartbeats", "gateway": "g1", "epoch": 1,
        "beats": [{"user": "bob", "platform": "android", "device": "a1", "conn": 1, "colour": [{"a": 1}]}]}]);
    let answer = house.post("/v1/events", body.to_string()).ok();
    assert_eq!(answer["unknown_fields"], json!(["clinet", "colour"]));
    let answer = house.post("/v1/events", json!([connect("bob", 2)]).to_string()).ok();
    assert_eq!(answer.get("unknown_fields"), None);
    let ends = house.ends();
    for strict in ["strict", "strict=1", "strict=true"] {
        let error = house.post(&format!("/v1/events?{strict}"), body.to_string());
        let error = error.error(400, "bad_event");
        assert_eq!((&error["event"], &error["field"]), (&json!(1), &json!("clinet")));
    }
    house
        .post("/v1/events?strict=perhaps", body.to_string())
        .error(400, "bad_parameter");
    assert_eq!(house.ends(), ends);
    house.post("/v1/events?strict=false", body.to_string()).ok();
}

/// The fields of the rules' section 3 that events of each type have, and `partition` beside an `alive`.
const FIELDS: [(&str, &str); 15] = [
    (
        "connect",
        "user platform device gateway epoch conn intent client auth_at",
    ),
    ("heartbeat", "user platform device gateway epoch conn"),
    ("heartbeats", "gateway epoch beats"),
    ("alive", "gateway epoch conns partition"),
    ("background", "user platform device gateway epoch conn"),
    ("foreground", "user platform device gateway epoch conn"),
    ("disconnect", "user platform device gateway epoch conn reason"),
    ("logout", "user platform device gateway epoch conn"),
    ("kick", "user platform device"),
    ("custom_status", "user text"),
    ("forget", "user"),
    ("lease", "gateway epoch ttl_ms"),
    ("policy", "policy"),
    ("revision", "revision"),
    ("tick", ""),
];

/// A field is known where events of its type have it: an operator who kicks one `conn` would kick the user everywhere.
#[test]
fn a_field_that_only_other_types_have_is_an_unknown_one() {
    let house = House::new(1);
    let values = json!({"user": "alice", "platform": "android", "device": "a1", "gateway": "g1", "epoch": 1, "conn": 1,
        "intent": "login", "client": "c", "auth_at": 1, "beats": [], "conns": [1], "partition": 0, "reason": "closed",
        "text": "t", "ttl_ms": 1000, "policy": {}, "revision": 1});
    let values = values.as_object().expect("an object");
    for (kind, own) in FIELDS {
        let mut event = json!({"type": kind});
        for name in own.split_whitespace() {
            event[name] = values[name].clone();
        }
        if kind == "heartbeats" {
            event["beats"] = json!([{"user": "alice", "platform": "android", "device": "a1", "conn": 1}]);
        }
        house.post("/v1/events?strict", event.to_string()).ok();
        for (name, value) in values.iter().filter(|(name, _)| event.get(name).is_none()) {
            let mut with = event.clone();
            with[name] = value.clone();
            let error = house
                .post("/v1/events?strict", with.to_string())
                .error(400, "bad_event");
            assert_eq!(error["field"], *name, "{with}: {error}");
            let error = house.post("/v1/events?strict", json!([event, with]).to_string());
            assert_eq!(error.error(400, "bad_event")["event"], 1, "{with}");
            let answer = house.post("/v1/events", with.to_string()).ok();
            assert_eq!(answer["unknown_fields"], json!([name]), "{with}");
            // Programs that write all columns of a table write null where there is nothing.
            with[name] = json!(null);
            house.post("/v1/events?strict", with.to_string()).ok();
        }
    }
}

#[test]
fn events_come_as_an_array_an_object_lines_or_compressed() {
    let house = House::new(1);
    let event = connect("alice", 1).to_string();
    let lines = house.with("Content-Type", "application/x-ndjson; charset=utf-8");
    let gzip = house.with("Content-Encoding", "gzip");
    let packed = |text: &str| {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        packer.write_all(text.as_bytes()).expect("in memory");
        packer.finish().expect("in memory")
    };
    house.post("/v1/events", &event).ok();
    house.post("/v1/events", format!("\u{feff}[{event}]")).ok();
    let appended = lines.post("/v1/events", format!("{event}\n\n {event}\r\n")).ok();
    assert_eq!(appended["appended"].as_array().map(Vec::len), Some(2));
    gzip.post("/v1/events", packed(&event)).ok();
    assert_eq!(house.ends(), [5]);
    let error = lines.post("/v1/events", format!("{event}\n{event},\n"));
    let error = error.error(400, "bad_json");
    assert!(
        error["message"].as_str().expect("text").starts_with("line 2 is not"),
        "{error}"
    );
    let error = lines
        .post("/v1/events", format!("{event}\n{{\"type\":\"x\"}}\n"))
        .error(400, "bad_event");
    assert_eq!(error["event"], 1);
    gzip.post("/v1/events", &event).error(400, "bad_body");
    // A small body that becomes a large one.
    gzip.post("/v1/events", packed(&" ".repeat(64 << 20)))
        .error(413, "body_too_large");
    house
        .with("Content-Encoding", "br")
        .post("/v1/events", &event)
        .error(415, "bad_encoding");
    assert_eq!(house.ends(), [5]);
}

#[test]
fn what_became_of_each_event_is_said_if_it_is_asked_for() {
    let house = House::new(2);
    let (a, b) = (user_of(0, 2, 0), user_of(1, 2, 0));
    let mut ios = connect(&b, 2);
    ios["platform"] = json!("ios");
    let events = json!([
        connect(&a, 1),
        ios,
        on("heartbeat", &a, 1, json!({})),
        on("heartbeat", &a, 7, json!({})),
        connect(&a, 1),
        {"type": "kick", "user": "nobody"},
        lease(),
        {"type": "heartbeats", "gateway": "g1", "epoch": 1, "beats": [
            {"user": a, "platform": "android", "device": "a1", "conn": 1},
            {"user": a, "platform": "android", "device": "x", "conn": 1},
            {"user": a, "platform": "android", "device": "y", "conn": 1},
        ]},
        says(&a, "busy"),
    ]);
    let answer = house.post("/v1/events?wait=applied", events.to_string()).ok();
    let appended = answer["appended"].as_array().expect("an array");
    let outcome = |number: usize| {
        let one = &appended[number];
        (
            one["outcome"].as_str().expect("an outcome"),
            one["reason"].as_str(),
            one["hint"].as_str(),
        )
    };
    assert_eq!(outcome(0), ("changed", None, None));
    let (name, reason, hint) = outcome(1);
    assert_eq!((name, reason), ("ignored", Some("unknown_platform")));
    assert!(
        hint.expect("a hint").starts_with("platforms: android, ipad, iphone, "),
        "{hint:?}"
    );
    assert_eq!(outcome(2), ("accepted", None, None));
    assert_eq!((outcome(3).0, outcome(3).1), ("ignored", Some("superseded")));
    assert_eq!((outcome(4).0, outcome(4).1), ("ignored", Some("duplicate")));
    assert_eq!((outcome(5).0, outcome(5).1), ("ignored", Some("unknown_user")));
    assert_eq!(appended[6].as_array().map(Vec::len), Some(2));
    assert_eq!(appended[6][1]["outcome"], "accepted");
    let beats = &appended[7][0];
    assert_eq!((&beats["outcome"], &beats["ignored"]), (&json!("ignored"), &json!(2)));
    assert_eq!(outcome(8), ("changed", None, None));
    assert_eq!(appended[0]["partition"], 0);
    assert_eq!(appended[0]["offset"], 0);
    // What was asked for is there to be read: nothing is to be waited for.
    assert_eq!(house.get(&format!("/v1/users/{a}")).ok()["custom_status"], "busy");
    // Somebody in time's way is no outcome of this event's.
    let answer = house
        .post("/v1/events?wait=applied", json!([{"type": "tick"}]).to_string())
        .ok();
    assert_eq!(answer["appended"][0][0]["outcome"], "accepted");
    let answer = house.post("/v1/events", json!([connect(&a, 1)]).to_string()).ok();
    assert_eq!(answer["appended"][0].get("outcome"), None);
    house.post("/v1/events?wait=folded", "[]").error(400, "bad_parameter");
}
