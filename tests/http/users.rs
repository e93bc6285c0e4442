//! Queries for users.

use crate::client::encoded;
use crate::house::{House, connect, on, says, user_of, wait_until};
use rollcall::log;
use rollcall::presence::{Offset, Partition};
use rollcall::topics::Topic;
use serde_json::{Value, json};

#[test]
fn a_user_is_the_object_of_the_rules_with_the_point_it_holds_at() {
    let house = House::new(1);
    house.publish(&[connect("alice", 7)]);
    let reply = house.user_at("alice", &json!(0));
    reply.ok();
    let expected = concat!(
        r#"{"user":"alice","version":1,"status":"online","since":1000,"last_seen":1000,"custom_status":null,"#,
        r#""devices":[{"platform":"android","device":"a1","state":"online","status":"online","gateway":"g1","#,
        r#""epoch":1,"conn":7,"since":1000,"login_at":1000,"last_seen":1000,"evidence":0,"deadline":401000}],"#,
        r#""as_of":{"partition":0,"offset":0,"time":1000}}"#
    );
    // The lines of `fold --state` begin with their type, since there are others.
    assert_eq!(reply.body.replacen(r#"{"type":"user","#, "{", 1), expected);
    house.clock.advance_ms(500);
    house.publish(&[
        on("disconnect", "alice", 7, json!({"reason": "closed"})),
        json!({"type": "tick"}),
    ]);
    let object = house.user_at("alice", &json!(2)).ok();
    assert_eq!(object["status"], "push_online");
    assert_eq!(object["devices"][0]["lost_by"], "closed");
    assert_eq!(object["as_of"], json!({"partition": 0, "offset": 2, "time": 1_500}));
}

#[test]
fn a_user_whom_nobody_knows_is_404() {
    let house = House::new(2);
    let error = house.get("/v1/users/nobody").error(404, "unknown_user");
    assert_eq!(error["message"], r#"no user "nobody" is known"#);
    let user = user_of(1, 2, 0);
    let appended = house.publish(&[connect(&user, 1), json!({"type": "forget", "user": user})]);
    house.user_at(&user, &appended[1]["offset"]).error(404, "unknown_user");
    // As long as an id can be, and longer; in the query as in the path.
    let (longest, longer) = ("x".repeat(128), "x".repeat(129));
    for path in ["", "/changes", "/history", "/why"] {
        for (user, is_refused) in [(&longest, false), (&longer, true)] {
            for path in [format!("/v1/users/{user}{path}"), format!("/v1/user{path}?id={user}")] {
                let answered = house.get(&path);
                if is_refused {
                    let error = answered.error(400, "bad_parameter");
                    let message = error["message"].as_str().expect("text");
                    assert!(message.contains("1 to 128 bytes"), "{path}: {message}");
                } else {
                    assert_ne!(answered.status, 400, "{path}: {}", answered.body);
                }
            }
        }
    }
}

#[test]
fn ids_may_have_any_characters() {
    let house = House::new(4);
    let ids = [
        "query",
        "changes",
        "a/b",
        "/",
        "a/changes",
        "%",
        "%2F",
        "%25",
        ".",
        "..",
        "../policy",
        "a b",
        "a+b",
        "?",
        "a?b=c",
        "#",
        "a&user=b",
        "\"",
        "\\",
        "'",
        "<script>",
        "\n",
        "\r\n",
        "\0",
        "\u{7f}",
        "ü",
        "用户",
        "🙂",
        "\u{202e}",
        "{user}",
        "*",
        ":",
        ";",
        "~",
    ];
    let mut ids: Vec<String> = ids.map(str::to_owned).to_vec();
    ids.extend(["x".repeat(128), "ü".repeat(64), "🙂".repeat(32), "/".repeat(128)]);
    let events: Vec<Value> = ids.iter().map(|id| connect(id, 1)).collect();
    house.publish(&events);
    house.wait_until_folded();
    for id in &ids {
        // Without a path there is no id that cannot be asked for; of a path this client takes nothing away either.
        let asked = format!("/v1/user?id={}", encoded(id));
        assert_eq!(house.get(&asked).ok()["user"], **id, "{asked}");
        let changes = house.get(&format!("/v1/user/changes?limit=3&id={}", encoded(id))).ok();
        assert_eq!(changes["changes"][0]["user"], **id, "{id:?}");
        if id == "query" {
            house.get("/v1/users/query").error(405, "method_not_allowed");
            continue;
        }
        let path = format!("/v1/users/{}", encoded(id));
        assert_eq!(house.get(&path).ok()["user"], **id, "{path}");
        let changes = house.get(&format!("{path}/changes")).ok();
        assert_eq!(changes["changes"][0]["user"], **id, "{path}/changes");
        assert_eq!(changes["changes"].as_array().map(Vec::len), Some(1));
        let mut one = house.follow(&format!("/v1/changes?after=earliest&user={}", encoded(id)));
        assert_eq!(one.next().json()["user"], **id);
    }
    let found = house.post("/v1/users/query", json!({"users": ids}).to_string()).ok();
    let names: Vec<&Value> = found["users"]
        .as_array()
        .expect("users")
        .iter()
        .map(|user| &user["user"])
        .collect();
    assert_eq!(json!(names), json!(ids));
}

#[test]
fn an_id_that_is_not_utf8_is_refused_like_anything_else() {
    let house = House::new(1);
    for path in ["/v1/users/%ff", "/v1/users/a%c3", "/v1/users/%ff/changes"] {
        let error = house.get(path).error(400, "bad_user");
        assert!(
            error["message"].as_str().is_some_and(|text| text.contains("UTF-8")),
            "{error}"
        );
    }
}

#[test]
fn a_question_waits_for_the_offset_it_names() {
    let house = House::new(1);
    std::thread::scope(|scope| {
        let asked: Vec<_> = (0..3u64)
            .map(|offset| {
                let house = &house;
                scope.spawn(move || (offset, house.user_at("alice", &json!(offset)).ok()))
            })
            .collect();
        for conn in 1..=3 {
            house.publish(&[connect("alice", conn)]);
        }
        for asked in asked {
            let (offset, object) = asked.join().expect("answered");
            let as_of = object["as_of"]["offset"].as_u64().expect("an offset");
            assert!(as_of >= offset, "{as_of}");
            assert!(object["devices"][0]["conn"].as_u64() > Some(offset), "{object}");
        }
    });
}

#[test]
fn an_offset_that_does_not_come_is_503() {
    let house = House::new(1);
    house.publish(&[connect("alice", 1)]);
    // On a stalled machine the engine's own time limit may end first, with another code.
    wait_until("it says so", || {
        let reply = house.get("/v1/users/alice?at_least=1");
        assert_eq!(reply.header("retry-after"), Some("1"));
        assert_eq!(reply.status, 503, "{}", reply.body);
        let error = &reply.json()["error"];
        error["code"] == "not_yet" && error["message"] == "offset 1 of partition 0 is not folded yet"
    });
}

#[test]
fn an_offset_must_be_a_number() {
    let house = House::new(1);
    for wrong in ["", "x", "-1", "1.5", "9223372036854775808", "0:1"] {
        let error = house
            .get(&format!("/v1/users/alice?at_least={wrong}"))
            .error(400, "bad_parameter");
        let message = format!("`at_least` must be an integer from 0 to 9223372036854775807, not {wrong:?}");
        assert_eq!(error["message"], message);
    }
}

#[test]
fn many_users_are_asked_for_at_once() {
    let house = House::new(3);
    let known: Vec<String> = (0..6).map(|number| user_of(number % 3, 3, number as usize)).collect();
    let events: Vec<Value> = known.iter().map(|user| connect(user, 1)).collect();
    house.publish(&events);
    house.wait_until_folded();
    let mut asked = known.clone();
    asked.insert(0, "nobody".to_owned());
    asked.insert(4, "x".repeat(129));
    asked.push(known[0].clone());
    let found = house.post("/v1/users/query", json!({"users": asked}).to_string()).ok();
    assert_eq!(found["unknown"], json!(["nobody", "x".repeat(129)]));
    let users = found["users"].as_array().expect("users");
    let names: Vec<&Value> = users.iter().map(|user| &user["user"]).collect();
    let expected: Vec<&String> = known.iter().chain([&known[0]]).collect();
    assert_eq!(json!(names), json!(expected));
    for user in users {
        assert_eq!(user["status"], "online");
        assert!(
            user["as_of"]["partition"].is_u64() && user["as_of"]["offset"].is_u64(),
            "{user}"
        );
        assert_eq!(user["as_of"]["time"], 1_000);
        // The same as asked for alone.
        let alone = house
            .get(&format!("/v1/users/{}", user["user"].as_str().expect("text")))
            .ok();
        assert_eq!(*user, alone);
    }
}

#[test]
fn a_question_names_1_to_1000_users() {
    let house = House::new(2);
    for count in [0, 1_001] {
        let error = house.post("/v1/users/query", json!({"users": vec!["u"; count]}).to_string());
        let error = error.error(400, "bad_users");
        let message = format!("`users` must have 1 to 1000 ids, not {count}");
        assert_eq!(error["message"], message);
    }
    let ids: Vec<String> = (0..1_000).map(|number| format!("u{number}")).collect();
    let found = house.post("/v1/users/query", json!({"users": ids}).to_string()).ok();
    assert_eq!(found, json!({"users": [], "unknown": ids}));
    for (body, place) in [
        ("", "line 1 column 0"),
        ("{\"users\":\n[1]}", "line 2 column 2"),
        ("{}", "missing field `users` at line 1 column 2"),
        ("[\"alice\"]", "the body must be a JSON object"),
        ("{\"users\":[\"a\"],\"user\":1}", "unknown field `user`"),
        ("{\"users\":[\"a\"]} x", "line 1 column 17"),
    ] {
        let error = house.post("/v1/users/query", body).error(400, "bad_json");
        let message = error["message"].as_str().expect("text");
        assert!(message.contains(place), "{body}: {message}");
    }
}

#[test]
fn a_users_changes_come_newest_first_as_far_as_the_log_reaches() {
    let house = House::new(2);
    let (user, other) = (user_of(1, 2, 0), user_of(1, 2, 1));
    let mut events = vec![connect(&user, 1), connect(&other, 1)];
    for number in 0..150 {
        events.push(says(&user, format!("mood {number}")));
        events.push(says(&other, format!("mood {number}")));
    }
    house.publish(&events);
    house.wait_until_folded();
    let changes = |query: &str| -> Vec<u64> {
        let found = house.get(&format!("/v1/users/{user}/changes{query}")).ok();
        let changes = found["changes"].as_array().expect("changes");
        assert!(changes.iter().all(|change| change["user"] == *user));
        changes
            .iter()
            .map(|change| change["version"].as_u64().expect("a version"))
            .collect()
    };
    assert_eq!(changes(""), (132..=151).rev().collect::<Vec<_>>());
    assert_eq!(changes("?limit=1"), [151]);
    assert_eq!(changes("?limit=100").len(), 100);
    for wrong in ["0", "101", "x", ""] {
        let error = house
            .get(&format!("/v1/users/{user}/changes?limit={wrong}"))
            .error(400, "bad_parameter");
        let message = format!("`limit` must be an integer from 1 to 100, not {wrong:?}");
        assert_eq!(error["message"], message);
    }
    house
        .log
        .drop_before(
            Topic::Changes,
            rollcall::presence::Partition(1),
            rollcall::presence::Offset(298),
        )
        .expect("dropped");
    assert_eq!(changes(""), [151, 150]);
    assert_eq!(house.get("/v1/users/nobody/changes").ok(), json!({"changes": []}));
}

#[test]
fn a_user_is_asked_for_by_an_id_that_somebody_can_have() {
    let house = House::new(1);
    house.get("/v1/user?id=nobody").error(404, "unknown_user");
    for query in ["", "?id=", &format!("?id={}", "x".repeat(129))] {
        for path in ["/v1/user", "/v1/user/changes"] {
            house.get(&format!("{path}{query}")).error(400, "bad_parameter");
        }
    }
    // What is added for caches means nothing.
    house.get("/v1/user?id=nobody&_=1764300000").error(404, "unknown_user");
}

#[test]
fn a_log_that_does_not_answer_at_the_moment_is_503_and_a_damaged_one_is_500() {
    let house = House::new(1);
    house.publish(&[connect("alice", 1)]);
    house.wait_until_folded();
    let route = "/v1/users/alice/changes";
    let fail = |error: log::Error| {
        house.log.fail_reads(1_000, error);
        let reply = house.get(route);
        house.log.heal();
        reply
    };
    let away = fail(log::Error::Unanswered("a leader moves".into()));
    let error = away.error(503, "log_unanswered");
    assert_eq!(error["message"], "the log cannot be read at the moment: a leader moves");
    assert_eq!(away.header("retry-after"), Some("1"));
    house.get(route).ok();
    let damaged = fail(log::Error::Read("a block is damaged".into()));
    damaged.error(500, "log_failed");
    assert_eq!(damaged.header("retry-after"), None);
}

#[test]
fn changes_that_retention_removes_while_they_are_read_are_passed_over() {
    let house = House::new(1);
    house.publish(&[connect("alice", 1), connect("bob", 2)]);
    house.wait_until_folded();
    // Between the question how far the topic reaches and the first reading.
    house.log.fail_reads(
        1,
        log::Error::Gone {
            topic: Topic::Changes,
            partition: Partition(0),
            wanted: Offset(0),
            start: Offset(1),
        },
    );
    let answer = house.get("/v1/users/bob/changes").ok();
    assert_eq!(answer["changes"].as_array().map(Vec::len), Some(1));
    house.get("/v1/users/alice/changes").ok();
}
