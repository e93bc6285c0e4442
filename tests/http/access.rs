//! Authentication and scopes.

use crate::house::{House, connect, on, says};
use rollcall::config::Scopes;
use serde_json::{Value, json};

const READ: &str = "read-read-read-read";
const PUBLISH: &str = "publish-publish-publish";
const ADMIN: &str = "admin-admin-admin-admin";

fn guarded() -> House {
    let scopes = |read, publish, admin| Scopes {
        read,
        publish,
        admin,
        ..Scopes::default()
    };
    let tokens = [
        (READ.to_owned(), scopes(true, false, false)),
        (PUBLISH.to_owned(), scopes(false, true, false)),
        (ADMIN.to_owned(), scopes(true, true, true)),
    ];
    House::with_tokens(1, Some(&tokens))
}

const QUESTIONS: [&str; 11] = [
    "/v1/users/alice",
    "/v1/user?id=alice",
    "/v1/users/alice/changes",
    "/v1/policy",
    "/v1/gateways",
    "/v1/stats",
    "/v1/stats/history",
    "/v1/edge",
    "/metrics",
    "/v1/changes?after=x",
    "/v1/kicks?after=x",
];

fn body(event: &Value) -> String {
    json!([connect("bob", 1), event]).to_string()
}

#[test]
fn without_a_known_token_there_is_nothing_but_the_page_and_the_probes() {
    let house = guarded();
    for path in [
        "/",
        "/rollcall.js",
        "/console/style.css",
        "/console/main.js",
        "/healthz",
        "/readyz",
    ] {
        assert_eq!(house.get(path).status, 200, "{path}");
    }
    for path in QUESTIONS.into_iter().chain(["/nowhere"]) {
        let reply = house.get(path);
        let error = reply.error(401, "no_token");
        assert_eq!(
            error["message"],
            "an Authorization header with a bearer token is needed"
        );
        assert_eq!(reply.header("www-authenticate"), Some("Bearer"));
    }
    house
        .post("/v1/events", body(&connect("alice", 1)))
        .error(401, "no_token");
    house.post("/v1/users/query", "{}").error(401, "no_token");
    for wrong in ["", "x", &READ[1..], &format!("{READ}x"), &READ.to_uppercase()] {
        let reply = house.token(wrong).get("/v1/stats");
        assert_eq!(reply.status, 401, "{wrong:?}");
        reply.json();
    }
    house.token("wrong").get("/v1/stats").error(401, "unknown_token");
    house
        .with("Authorization", format!("Basic {READ}"))
        .get("/v1/stats")
        .error(401, "no_token");
    house.get(&format!("/v1/stats?token={READ}")).error(401, "no_token");
    assert_eq!(house.ends(), [0]);
    // The name of a scheme is not case-sensitive.
    house
        .with("Authorization", format!("bearer {READ}"))
        .get("/v1/stats")
        .ok();
}

#[test]
fn a_token_allows_what_its_scopes_say() {
    let house = guarded();
    let (read, publish, admin) = (house.token(READ), house.token(PUBLISH), house.token(ADMIN));
    let message = |scope: &str| format!("this bearer token does not have the scope {scope}, which this needs");
    let either = "this bearer token has neither the scope publish, which events need, nor admin, which kick, policy, forget and \
                  revision need";
    for path in QUESTIONS {
        for client in [&read, &admin] {
            let status = client.get(path).status;
            assert!(matches!(status, 200 | 400 | 404), "{path}: {status}");
        }
        let needed = if path == "/metrics" { "metrics" } else { "read" };
        assert_eq!(publish.get(path).error(403, "forbidden")["message"], message(needed));
    }
    let question = json!({"users": ["alice"]}).to_string();
    read.post("/v1/users/query", &question).ok();
    publish.post("/v1/users/query", &question).error(403, "forbidden");
    let event = body(&connect("alice", 1));
    assert_eq!(
        read.post("/v1/events", &event).error(403, "forbidden")["message"],
        either
    );
    assert_eq!(house.ends(), [0]);
    publish.post("/v1/events", &event).ok();
    admin.post("/v1/events", &event).ok();
    assert_eq!(house.ends(), [4]);
}

#[test]
fn only_an_admin_publishes_what_an_operator_does() {
    let house = guarded();
    let (publish, admin) = (house.token(PUBLISH), house.token(ADMIN));
    let events = [
        json!({"type": "kick", "user": "alice"}),
        json!({"type": "forget", "user": "alice"}),
        json!({"type": "policy", "policy": {"login": "multi"}}),
    ];
    for event in &events {
        let error = publish.post("/v1/events", body(event)).error(403, "forbidden");
        // Which of them, since the others would have been taken.
        assert_eq!((&error["event"], &error["field"]), (&json!(1), &json!("type")));
        let message = "this bearer token does not have the scope admin, which this needs";
        assert_eq!(error["message"], message);
    }
    assert_eq!(house.ends(), [0]);
    for event in &events {
        admin.post("/v1/events", body(event)).ok();
    }
    assert_eq!(house.ends(), [6]);
}

#[test]
fn without_tokens_a_page_of_somebody_else_is_refused() {
    let house = House::new(1);
    let address = house.address;
    let event = body(&connect("alice", 1));
    for (header, value) in [
        ("Origin", "http://evil.example".to_owned()),
        ("Origin", "null".to_owned()),
        ("Origin", format!("http://{address}.evil.example")),
        ("Origin", format!("http://localhost:{}", address.port())),
        ("Origin", "http://127.0.0.1:1".to_owned()),
        ("Host", "evil.example".to_owned()),
        ("Host", format!("evil.example:{}", address.port())),
        ("Host", format!("localhost.evil.example:{}", address.port())),
    ] {
        let stranger = house.with(header, &value);
        for reply in [
            stranger.get("/v1/stats"),
            stranger.get("/nowhere"),
            stranger.post("/v1/events", &event),
        ] {
            let error = reply.error(403, "foreign_origin");
            let message = error["message"].as_str().expect("text");
            assert!(
                message.contains("only this machine is served without --token-file"),
                "{message}"
            );
        }
    }
    assert_eq!(house.ends(), [0]);
    for (header, value) in [
        ("Origin", format!("http://{address}")),
        ("Host", format!("localhost:{}", address.port())),
        ("Host", "localhost".to_owned()),
        ("Host", "127.0.0.1".to_owned()),
        ("Host", format!("[::1]:{}", address.port())),
    ] {
        let friend = house.with(header, &value);
        friend.get("/v1/stats").ok();
        friend.post("/v1/events", &event).ok();
    }
    let page = house.with("Host", "localhost:1").with("Origin", "http://localhost:1");
    page.get("/v1/stats").ok();
}

#[test]
fn with_tokens_it_is_the_token_that_counts() {
    let house = guarded();
    let client = house
        .token(READ)
        .with("Host", "presence.example")
        .with("Origin", "https://elsewhere.example");
    client.get("/v1/stats").ok();
}

#[test]
fn a_token_for_metrics_reads_nothing_else() {
    let scopes = Scopes {
        metrics: true,
        ..Scopes::default()
    };
    let house = House::with_tokens(1, Some(&[("scraper-scraper-scraper".to_owned(), scopes)]));
    let scraper = house.token("scraper-scraper-scraper");
    assert_eq!(scraper.get("/metrics").status, 200);
    for path in QUESTIONS.into_iter().filter(|path| *path != "/metrics") {
        scraper.get(path).error(403, "forbidden");
    }
    scraper
        .post("/v1/events", body(&connect("a", 1)))
        .error(403, "forbidden");
}

#[test]
fn a_token_bound_to_gateways_speaks_for_no_other() {
    let scopes = Scopes {
        publish: true,
        gateways: vec!["g1".to_owned(), "g2".to_owned()],
        ..Scopes::default()
    };
    let house = House::with_tokens(1, Some(&[(PUBLISH.to_owned(), scopes)]));
    let publish = house.token(PUBLISH);
    publish.post("/v1/events", body(&json!({"type": "tick"}))).ok();
    let ends = house.ends();
    let via = |kind: &str, more: Value| {
        let mut event = on(kind, "alice", 7, more);
        event["gateway"] = json!("g3");
        event
    };
    for event in [
        via("connect", json!({"intent": "login"})),
        via("heartbeat", json!({})),
        via("background", json!({})),
        via("foreground", json!({})),
        via("disconnect", json!({"reason": "closed"})),
        via("logout", json!({})),
        json!({"type": "lease", "gateway": "g3", "epoch": 9, "ttl_ms": 0}),
        json!({"type": "heartbeats", "gateway": "g3", "epoch": 1,
            "beats": [{"user": "alice", "platform": "web", "device": "d", "conn": 1}]}),
    ] {
        let error = publish.post("/v1/events", body(&event)).error(403, "forbidden");
        assert_eq!(
            (&error["event"], &error["field"]),
            (&json!(1), &json!("gateway")),
            "{event}"
        );
        let message = "this bearer token publishes for the gateway g1, g2 only, and the event names \"g3\"";
        assert_eq!(error["message"], message);
    }
    assert_eq!(house.ends(), ends);
    publish.post("/v1/events", body(&says("alice", "busy"))).ok();
}

#[test]
fn a_token_that_is_taken_back_is_refused_and_its_subscriptions_end() {
    let house = guarded();
    let mut follower = house.token(READ).follow("/v1/changes");
    let mut other = house.token(ADMIN).follow("/v1/changes");
    let admin = Scopes {
        name: None,
        metrics: false,
        ..Scopes::everything()
    };
    house.access.replace(&[(ADMIN.to_owned(), admin)]);
    assert_eq!(follower.next_or_end(), None);
    house.token(READ).get("/v1/stats").error(401, "unknown_token");
    let admin = house.token(ADMIN);
    admin.post("/v1/events", body(&connect("alice", 1))).ok();
    assert_eq!(other.next().json()["user"], "bob");
}
