//! Policy, gateways, stats, health, metrics, the console, and unknown paths.

use crate::house::{House, connect, on, user_of, wait_until};
use rollcall::http::GatewayAddress;
use rollcall::log::{self, Log as _};
use rollcall::presence::Partition;
use rollcall::topics::Topic;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

#[test]
fn the_policy_is_completed_and_says_since_when_it_holds() {
    let house = House::new(2);
    let first = house.get("/v1/policy").ok();
    assert_eq!(first["policy"]["login"], "single");
    let never = json!([{"partition": 0, "offset": null}, {"partition": 1, "offset": null}]);
    assert_eq!(first["since"], never);
    house.publish(&[connect(&user_of(1, 2, 0), 1)]);
    let platforms = json!({"web": {"timeout_ms": 5_000}, "tv": {"timeout_ms": 9_000, "push": false}});
    let policy = json!({"login": "multi", "platforms": platforms});
    let appended = house.publish(&[json!({"type": "policy", "policy": policy}), json!({"type": "tick"})]);
    house.wait_until_folded();
    let answer = house.get("/v1/policy").ok();
    assert_eq!(answer["since"], appended[0]);
    let policy = &answer["policy"];
    assert_eq!(
        (&policy["rules"], &policy["login"], &policy["kicked_max"]),
        (&json!(1), &json!("multi"), &json!(16))
    );
    let tv = json!({"kind": "tv", "heartbeat_ms": 3_000, "timeout_ms": 9_000, "closed_ms": 0, "exit_ms": 0,
        "background_ms": null, "push": false, "away_ms": 600_000});
    assert_eq!(policy["platforms"]["tv"], tv);
    assert_eq!(policy["platforms"]["web"]["timeout_ms"], 5_000);
    assert_eq!(policy["platforms"]["web"]["heartbeat_ms"], 20_000);
    assert_eq!(
        policy["platforms"].as_object().map(|platforms| platforms.len()),
        Some(9)
    );
    // What is shown can be published again.
    house.publish(&[json!({"type": "policy", "policy": policy})]);
    house.wait_until_folded();
    assert_eq!(house.get("/v1/policy").ok()["policy"], *policy);
}

#[test]
fn gateways_are_shown_with_epoch_end_and_lease() {
    let house = House::new(2);
    assert_eq!(house.get("/v1/gateways").ok(), json!({"gateways": []}));
    let lease = |gateway: &str, epoch: u64, ttl_ms: u64| json!({"type": "lease", "gateway": gateway, "epoch": epoch, "ttl_ms": ttl_ms});
    house.publish(&[
        lease("g2", 3, 30_000),
        lease("g1", 1, 30_000),
        lease("ü \"g\"", 0, 1),
        lease("g1", 2, 10_000),
    ]);
    house.publish(&[lease("g2", 3, 0)]);
    house.wait_until_folded();
    let shown = |gateway: &str, epoch: u64, ended: bool, lease_until: Value| json!({"gateway": gateway, "epoch": epoch, "ended": ended, "lease_until": lease_until});
    let gateways = [
        shown("g1", 2, false, json!(11_000)),
        shown("g2", 3, true, json!(null)),
        shown("ü \"g\"", 0, false, json!(1_001)),
    ];
    assert_eq!(house.get("/v1/gateways").ok(), json!({"gateways": gateways}));
}

#[test]
fn stats_count_users_and_devices_and_say_where_each_partition_is() {
    let house = House::new(2);
    let (a, b, c) = (user_of(0, 2, 0), user_of(0, 2, 1), user_of(1, 2, 0));
    house.publish(&[
        connect(&a, 1),
        connect(&b, 2),
        on(
            "connect",
            &c,
            3,
            json!({"intent": "login", "platform": "web", "device": "tab"}),
        ),
        on("disconnect", &b, 2, json!({"reason": "closed"})),
    ]);
    house.wait_until_folded();
    let stats = house.get("/v1/stats").ok();
    assert_eq!(
        stats["users"],
        json!({"known": 3, "online": 2, "push_online": 1, "offline": 0})
    );
    assert_eq!(
        stats["devices"],
        json!({"online": {"android": 1, "web": 1}, "push_online": {"android": 1}})
    );
    let partition = |number: u64, end: u64| json!({"partition": number, "state": "live", "revision": 1, "log_end": end, "committed": end, "applied": end, "time": 1_000, "lag": 0, "changes": end});
    assert_eq!(stats["partitions"], json!([partition(0, 3), partition(1, 1)]));
    assert_eq!(stats["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!((&stats["changes"], &stats["now"]), (&json!(4), &json!(1_000)));
    assert_eq!((&stats["ignored"], &stats["malformed"]), (&json!({}), &json!([])));
    house.publish(&[on(
        "disconnect",
        &c,
        3,
        json!({"reason": "exit", "platform": "web", "device": "tab"}),
    )]);
    house.publish(&[json!({"type": "forget", "user": b})]);
    house.wait_until_folded();
    let stats = house.get("/v1/stats").ok();
    assert_eq!(
        stats["users"],
        json!({"known": 2, "online": 1, "push_online": 0, "offline": 1})
    );
    assert_eq!(stats["devices"], json!({"online": {"android": 1}, "push_online": {}}));
}

#[test]
fn a_partition_that_does_not_answer_stays_in_the_totals_with_what_was_known_of_it() {
    let house = House::new(2);
    let [a, b] = [0, 1].map(|partition| user_of(partition, 2, 0));
    house.publish(&[connect(&a, 1), connect(&b, 2)]);
    house.wait_until_folded();
    let before = house.get("/v1/stats").ok();
    assert_eq!(before["users"]["online"], 2);

    // The worker of partition 0 says that there is a change, and stands still there: as if it folded a huge record.
    let gate = Arc::new(Mutex::new(()));
    let closed = gate.lock().expect("nobody has panicked");
    let stands_still = Arc::new(AtomicBool::new(false));
    let (waits, arrived) = (gate.clone(), stands_still.clone());
    house.log.listen(Box::new(move |topic, partition| {
        if (topic, partition) == (Topic::Changes, Partition(0)) {
            arrived.store(true, Ordering::Release);
            drop(waits.lock());
        }
    }));
    house.clock.advance_ms(1_000);
    house.publish(&[on("disconnect", &a, 1, json!({"reason": "exit"}))]);
    wait_until("it stands still", || stands_still.load(Ordering::Acquire));
    let stats = house.get("/v1/stats").ok();
    for totals in ["users", "devices", "changes"] {
        assert_eq!(stats[totals], before[totals], "{totals}");
    }
    let mut busy = stats["partitions"][0].clone();
    let busy = busy.as_object_mut().expect("an object");
    let error = busy.remove("error").expect("it says why");
    assert!(
        error
            .as_str()
            .is_some_and(|error| error.starts_with("no answer; it folds")),
        "{error}"
    );
    assert_eq!(busy.remove("known_at"), Some(json!(1_000)));
    busy.insert("state".to_owned(), json!("live"));
    assert_eq!(Value::Object(busy.clone()), before["partitions"][0]);
    assert_eq!(stats["partitions"][1]["state"], "live");
    house.get("/readyz").error(503, "not_ready");

    drop(closed);
    wait_until("it answers again", || {
        house.get("/v1/stats").ok()["partitions"][0]["state"] == "live"
    });
    let stats = house.get("/v1/stats").ok();
    assert_eq!(
        (&stats["users"]["online"], &stats["users"]["known"]),
        (&json!(1), &json!(2))
    );
    assert!(stats["partitions"][0]["known_at"].is_null());
}

#[test]
fn health_is_of_the_process_and_readiness_of_every_partition() {
    let house = House::new(2);
    assert_eq!(house.get("/healthz").body, "ok\n");
    assert_eq!(house.get("/readyz").body, "ready\n");
    house
        .log
        .fail_reads(100_000, log::Error::Read("a disk that hums".into()));
    house.publish(&[json!({"type": "tick"})]);
    wait_until("it says that it is not ready, and why", || {
        let reply = house.get("/readyz");
        reply.status == 503
            && reply
                .body
                .contains("is failed: the log cannot be read: a disk that hums")
    });
    let reply = house.get("/readyz");
    reply.error(503, "not_ready");
    assert_eq!(reply.header("retry-after"), Some("1"));
    assert_eq!(house.get("/healthz").status, 200);
    let stats = house.get("/v1/stats").ok();
    let failed = |partition: &&Value| partition["state"] == "failed" && partition["error"].is_string();
    assert!(
        stats["partitions"]
            .as_array()
            .expect("partitions")
            .iter()
            .any(|partition| failed(&partition)),
        "{stats}"
    );
    house.log.heal();
    // It retries after a pause, by its clock. A partition may have failed only just now.
    wait_until("it is ready again", || {
        house.clock.advance_ms(1_000);
        house.get("/readyz").status == 200
    });
    house.stop.send_replace(true);
    house.get("/readyz").error(503, "stopping");
    assert_eq!(house.get("/healthz").status, 200);
}

#[test]
fn metrics_are_in_the_text_format() {
    let house = House::new(1);
    house.publish(&[connect("alice", 1)]);
    house.wait_until_folded();
    let _follower = house.follow("/v1/changes");
    let reply = house.get("/metrics");
    assert_eq!(reply.status, 200);
    assert!(
        reply
            .header("content-type")
            .is_some_and(|kind| kind.starts_with("text/plain; version=0.0.4"))
    );
    let lines: Vec<&str> = reply.body.lines().collect();
    for name in [
        "rollcall_events_appended_total",
        "rollcall_events_folded_total",
        "rollcall_followers",
    ] {
        let line = lines
            .iter()
            .find(|line| line.split_once(' ').is_some_and(|(other, _)| other == name));
        let value = line
            .and_then(|line| line.rsplit_once(' '))
            .and_then(|(_, value)| value.parse::<f64>().ok());
        assert!(value > Some(0.0), "{name}: {line:?}");
        assert!(
            lines.iter().any(|line| line.starts_with(&format!("# HELP {name} "))),
            "{name}"
        );
    }
}

#[test]
fn what_is_kept_for_subscriptions_is_in_the_metrics_until_the_last_one_ends() {
    let house = House::new(1);
    let kept = || {
        let metrics = house.get("/metrics").body;
        let line = metrics
            .lines()
            .find_map(|line| line.strip_prefix("rollcall_cache_bytes{cache=\"subscriptions\"} "));
        let bytes: u64 = line.and_then(|value| value.parse().ok()).expect("a number");
        bytes
    };
    assert_eq!(kept(), 0);
    let mut follower = house.follow("/v1/changes");
    house.publish(&[connect("alice", 1)]);
    let change = follower.next();
    wait_until("its change is counted", || kept() > 0);
    assert!(kept() < 4_096, "{change:?}");
    drop(follower);
    wait_until("it is forgotten", || kept() == 0);
}

#[test]
fn the_console_is_one_page() {
    let house = House::new(1);
    let reply = house.get("/");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
    assert_eq!(reply.header("x-frame-options"), Some("DENY"));
    assert!(!reply.body.contains("src=\"http") && !reply.body.contains("href=\"http"));
    let policy = reply.header("content-security-policy").expect("a policy");
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self'; style-src 'self'; "),
        "{policy}"
    );
    assert!(!policy.contains("unsafe"), "{policy}");
    assert!(!reply.body.contains("style=") && !reply.body.contains("<style") && !reply.body.contains("onclick"));
    assert!(policy.contains("; connect-src 'self'; "), "{policy}");
    // What it loads is here.
    let mut wanted = vec!["/console/style.css".to_owned(), "/console/main.js".to_owned()];
    let mut seen = BTreeSet::new();
    while let Some(path) = wanted.pop().filter(|_| seen.len() < 100) {
        let reply = house.get(&path);
        assert_eq!(reply.status, 200, "{path}");
        let kind = if path.ends_with(".css") {
            "text/css"
        } else {
            "text/javascript"
        };
        assert_eq!(
            reply.header("content-type"),
            Some(format!("{kind}; charset=utf-8").as_str()),
            "{path}"
        );
        assert_eq!(reply.header("x-content-type-options"), Some("nosniff"), "{path}");
        for import in reply
            .body
            .split(" from './")
            .skip(1)
            .chain(reply.body.split("\nimport './").skip(1))
        {
            wanted.push(format!("/console/{}", import.split('\'').next().expect("a name")));
        }
        wanted.retain(|path| !seen.contains(path));
        seen.insert(path);
        wanted.retain(|path| !seen.contains(path));
    }
    assert!(
        seen.contains("/console/try.js") && seen.contains("/console/chart.js"),
        "{seen:?}"
    );
}

#[test]
fn events_without_effect_are_counted_by_reason_and_malformed_records_with_an_example() {
    let house = House::new(2);
    let user = user_of(0, 2, 0);
    house.publish(&[
        connect(&user, 2),
        on("disconnect", &user, 1, json!({"reason": "closed"})),
        on("heartbeat", &user, 7, json!({})),
        on("connect", &user, 3, json!({"intent": "login", "platform": "ios"})),
    ]);
    // What no HTTP request lets in, as a publisher on Kafka would write it.
    let wrong = rollcall::log::NewRecord {
        headers: Vec::new(),
        key: Some(b"bob".to_vec()),
        value: b"no event".to_vec(),
    };
    for _ in 0..3 {
        house.log.append(vec![(Partition(1), wrong.clone())], Box::new(|_| {}));
    }
    house.wait_until_folded();
    let stats = house.get("/v1/stats").ok();
    let ignored = &stats["ignored"];
    assert_eq!(ignored["unknown_platform"], 1, "{ignored}");
    let all: u64 = ignored
        .as_object()
        .expect("counts")
        .values()
        .filter_map(Value::as_u64)
        .sum();
    assert_eq!(all, 3, "{ignored}");
    let malformed = &stats["malformed"][0];
    assert_eq!(
        (
            &malformed["reason"],
            &malformed["count"],
            &malformed["partition"],
            &malformed["offset"]
        ),
        (&json!("unreadable"), &json!(3), &json!(1), &json!(2))
    );
    assert!(malformed["error"].as_str().expect("text").len() > 5, "{stats}");
    assert_eq!(stats["malformed"].as_array().map(Vec::len), Some(1));
}

#[test]
fn the_history_begins_with_the_process_and_counts_what_the_stats_do() {
    let house = House::new(2);
    assert_eq!(
        house.get("/v1/stats/history").ok(),
        json!({"every_ms": 10_000, "partitions": 2, "samples": []})
    );
    house.publish(&[connect(&user_of(0, 2, 0), 1), connect(&user_of(1, 2, 0), 2)]);
    house.wait_until_folded();
    house.keep_history();
    let sample = json!({"at": 0, "online": 2, "push_online": 0, "offline": 0, "changes": 2, "ignored": 0,
        "malformed": 0, "partitions": 2});
    wait_until("a sample is taken", || {
        house.get("/v1/stats/history").ok()["samples"] == json!([sample])
    });
}

#[test]
fn it_says_where_the_gateway_is_and_lets_the_page_go_there() {
    let house = House::new(1);
    assert_eq!(house.get("/v1/edge").ok(), json!({"edge": null}));
    let everywhere = |port: u16| SocketAddr::from(([0, 0, 0, 0], port));
    let edge = |address, tls, token| GatewayAddress { address, tls, token };
    let loopback_v6 = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), 8090);
    let address = SocketAddr::from(([127, 0, 0, 1], 8090));
    let by_address = format!("ws://{}:90", house.address.ip());
    for (edge, called, url, allowed) in [
        (
            edge(address, false, false),
            None,
            "ws://127.0.0.1:8090",
            "ws://127.0.0.1:8090",
        ),
        // Where it listens everywhere, or has a certificate, the name that the page was called by counts.
        (
            edge(everywhere(90), false, true),
            None,
            by_address.as_str(),
            by_address.as_str(),
        ),
        (
            edge(address, true, true),
            Some("localhost:8080"),
            "wss://localhost:8090",
            "wss://localhost:8090",
        ),
        (
            edge(everywhere(90), false, true),
            Some("localhost"),
            "ws://localhost:90",
            "ws://localhost:90",
        ),
        (edge(loopback_v6, false, false), None, "ws://[::1]:8090", "ws:"),
        (
            edge(everywhere(90), true, false),
            Some("[::1]:8080"),
            "wss://[::1]:90",
            "wss:",
        ),
    ] {
        house.edge.send_replace(Some(edge));
        let client = match called {
            Some(name) => house.with("Host", name),
            None => house.with("Accept", "*/*"),
        };
        let answer = client.get("/v1/edge").ok();
        assert_eq!(answer, json!({"edge": {"url": url, "token": edge.token}}));
        let page = client.get("/");
        let policy = page.header("content-security-policy").expect("a policy");
        assert!(
            policy.contains(&format!("; connect-src 'self' {allowed}; ")),
            "{policy}"
        );
    }
    // A name that would say more than a name.
    for name in ["a;script-src", "a b", "a,b", "*"] {
        let page = house.with("Host", name).get("/");
        let policy = page
            .header("content-security-policy")
            .unwrap_or("; connect-src 'self'; ");
        assert!(policy.contains("; connect-src 'self'; "), "{name}: {policy}");
    }
    house.edge.send_replace(None);
    assert_eq!(house.get("/v1/edge").ok(), json!({"edge": null}));
}

#[test]
fn paths_and_methods_that_are_not_there_have_the_one_shape() {
    let house = House::new(1);
    for path in [
        "/v1",
        "/v1/",
        "/v2/events",
        "/v1/user/alice",
        "/v1/users",
        "/v1/users/",
        "/v1/users/a/b",
        "/v1/events/",
        "//",
        "/index.html",
        "/v1/users/a/changes/1",
    ] {
        for method in ["GET", "POST", "PUT"] {
            house.send(method, path, b"{}").error(404, "not_found");
        }
    }
    for (method, path, allowed) in [
        ("GET", "/v1/events", "POST"),
        ("PUT", "/v1/events", "POST"),
        ("DELETE", "/v1/users/alice", "GET"),
        ("POST", "/v1/users/alice", "GET"),
        ("PATCH", "/v1/users/query", "POST"),
        ("GET", "/v1/users/query", "POST"),
        ("GET", "/v1/changes/query", "POST"),
        ("POST", "/v1/changes", "GET"),
        ("POST", "/v1/kicks", "GET"),
        ("POST", "/v1/stats", "GET"),
        ("POST", "/v1/stats/history", "GET"),
        ("OPTIONS", "/v1/policy", "GET"),
        ("POST", "/v1/gateways", "GET"),
        ("POST", "/metrics", "GET"),
        ("POST", "/healthz", "GET"),
        ("POST", "/readyz", "GET"),
        ("POST", "/", "GET"),
        ("POST", "/v1/edge", "GET"),
        ("POST", "/rollcall.js", "GET"),
        ("BREW", "/v1/stats", "GET"),
    ] {
        let reply = house.send(method, path, b"{}");
        let error = reply.error(405, "method_not_allowed");
        let message = format!("this path does not take {method}; the Allow header says what it takes");
        assert_eq!(error["message"], message);
        let header = reply.header("allow").unwrap_or_default();
        assert!(
            header.split(',').any(|method| method == allowed),
            "{method} {path}: {header:?}"
        );
    }
}
