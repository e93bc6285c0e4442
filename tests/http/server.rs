//! Slow and incomplete clients, and the resources that they may use.

use crate::client::PATIENCE;
use crate::house::{House, connect, wait_until};
use rollcall::clock::ManualClock;
use rollcall::config::Scopes;
use rollcall::engine::Tuning;
use rollcall::http::{ConnectionTimeouts, Limits};
use rollcall::log::Log as _;
use rollcall::log::memory::MemoryLog;
use rollcall::presence::{Offset, Partition};
use rollcall::topics::Topic;
use serde_json::json;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

const TOKEN: &str = "publish-publish-publish";

/// Bounds that are reached soon.
fn short(connections: usize, head_ms: u64, idle_ms: u64) -> Limits {
    Limits {
        connections,
        patience: ConnectionTimeouts {
            head: Duration::from_millis(head_ms),
            idle: Duration::from_millis(idle_ms),
            ..ConnectionTimeouts::default()
        },
    }
}

fn opened(house: &House, bytes: &str) -> TcpStream {
    let mut stream = TcpStream::connect(house.address).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    stream.write_all(bytes.as_bytes()).expect("taken");
    stream
}

/// Everything up to the end of the connection, which an error is too.
fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    if let Err(error) = stream.read_to_end(&mut bytes) {
        assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "it is still open");
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[test]
fn who_sends_half_a_head_or_nothing_is_closed() {
    let house = House::with(1, None, short(1_000, 300, 60_000));
    let half = opened(&house, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-a: ");
    let silent = opened(&house, "");
    assert_eq!(rest(half), "");
    assert_eq!(rest(silent), "");
}

#[test]
fn a_connection_without_requests_is_closed_and_one_with_them_is_not() {
    let house = House::with(1, None, short(1_000, 60_000, 2_000));
    let request = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut kept = opened(&house, request);
    for _ in 0..3 {
        let mut answer = [0; 512];
        let count = kept.read(&mut answer).expect("an answer");
        assert!(answer[..count].starts_with(b"HTTP/1.1 200"));
        kept.write_all(request.as_bytes()).expect("taken");
    }
    let answer = rest(kept);
    assert!(answer.ends_with("ok\n"), "{answer}");
    // A subscription is an active request, also without traffic.
    let mut follower = house.follow("/v1/changes");
    let idle = opened(&house, request);
    assert!(rest(idle).ends_with("ok\n"));
    house.publish(&[connect("alice", 1)]);
    assert_eq!(follower.next().json()["user"], "alice");
}

#[test]
fn idle_connections_keep_nobody_out() {
    let house = House::with(1, None, short(4, 60_000, 60_000));
    let held: Vec<TcpStream> = (0..40).map(|_| opened(&house, "GET / HTTP/1.1\r\nX: ")).collect();
    assert_eq!(house.get("/healthz").status, 200);
    // The oldest ones were closed, without an answer.
    assert_eq!(rest(held.into_iter().next().expect("the first")), "");
    // With all places in use by requests there is a sentence, and afterwards room again.
    let followers: Vec<_> = (0..4).map(|_| house.follow("/v1/changes")).collect();
    let refused = rest(opened(&house, ""));
    assert!(refused.starts_with("HTTP/1.1 503 "), "{refused}");
    assert!(
        refused.contains("\"code\":\"busy\"") && refused.contains("retry-after: 1"),
        "{refused}"
    );
    drop(followers);
    house.publish_until_taken();
}

#[test]
fn nothing_of_a_body_is_read_before_its_sender_is_let_in() {
    let publish = Scopes {
        publish: true,
        ..Scopes::default()
    };
    let house = House::with_tokens(1, Some(&[(TOKEN.to_owned(), publish)]));
    // Nor is what is sent all the same a reason for the answer to be lost.
    let error = house.post("/v1/events", vec![b'x'; 8 << 20]).error(401, "no_token");
    assert!(error["message"].as_str().is_some());
    // The answer says that the connection ends; a client whose body was read may use it again.
    for (client, closes) in [((*house).clone(), true), (house.token(TOKEN), false)] {
        for body in ["5\r\n[0,0]\r\n0\r\n\r\n", "3\r\nabc\r\n0\r\n\r\n"] {
            let mut stream = client
                .with("Transfer-Encoding", "chunked")
                .open("POST", "/v1/events", None);
            std::thread::sleep(Duration::from_millis(20));
            stream.write_all(body.as_bytes()).expect("taken");
            let mut answer = [0; 1_024];
            let count = stream.read(&mut answer).expect("an answer");
            let answer = String::from_utf8_lossy(&answer[..count]).to_lowercase();
            assert_eq!(answer.contains("connection: close"), closes, "{answer}");
        }
    }
    for (client, path, status) in [
        ((*house).clone(), "/v1/events", "401"),
        (house.token("wrong-wrong-wrong"), "/v1/users/query", "401"),
        (house.token(TOKEN), "/v1/users/query", "403"),
    ] {
        // Not one byte of the body is sent.
        let mut stream = client.open("POST", path, Some(8 << 20));
        let mut answer = [0; 12];
        stream.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer[9..], status.as_bytes(), "{path}");
    }
}

#[test]
fn a_head_that_is_too_long_is_refused_in_our_form() {
    let house = House::new(1);
    for length in [61_000, 66_000, 200_000] {
        let reply = rest(opened(
            &house,
            &format!(
                "GET /v1/changes?user={} HTTP/1.1\r\nConnection: close\r\nHost: {}\r\n\r\n",
                "a".repeat(length),
                house.address
            ),
        ));
        // Its reset may overtake the answer where more was sent than was read.
        if length < 66_000 {
            assert!(reply.starts_with("HTTP/1.1 400 "), "{reply}");
        } else if !reply.is_empty() {
            assert!(reply.starts_with("HTTP/1.1 414 "), "{reply}");
            assert!(reply.contains("{\"error\":{\"code\":\"uri_too_long\""), "{reply}");
        }
    }
    let reply = rest(opened(
        &house,
        &format!("GET /healthz HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "a".repeat(300_000)),
    ));
    // As above: its reset may overtake the answer.
    assert!(
        reply.is_empty() || (reply.starts_with("HTTP/1.1 431 ") && reply.contains("head_too_large")),
        "{reply}"
    );
    let reply = rest(opened(&house, "what is this?\r\n\r\n"));
    assert!(
        reply.starts_with("HTTP/1.1 400 ") && reply.contains("bad_request"),
        "{reply}"
    );
}

#[test]
fn what_is_beyond_a_limit_is_counted_and_not_built() {
    let house = House::new(16);
    let many = |item: &str| format!("[{}]", vec![item; (8 << 20) / (item.len() + 1) - 1].join(","));
    for item in ["{}", "0", "null", "[]"] {
        let body = many(item);
        let count = (body.len() - 1) / (item.len() + 1);
        let error = house.post("/v1/events", &body).error(400, "bad_events");
        assert_eq!(
            error["message"],
            format!("a request must have 1 to 10000 events, not {count}")
        );
    }
    let short = |item: &str| format!("[{}]", vec![item; (8 << 20) / (item.len() + 1) - 100].join(","));
    let beats = short("{}");
    let body = format!("[{{\"type\":\"heartbeats\",\"gateway\":\"g\",\"epoch\":1,\"beats\":{beats}}}]");
    let error = house.post("/v1/events", body).error(400, "bad_event");
    let message = format!("`beats` must have 1 to 10000 entries, not {}", (beats.len() - 1) / 3);
    assert_eq!(error["message"], message);
    for policy in [short("0"), format!("{{\"x\":{}}}", short("0"))] {
        let body = format!("[{{\"type\":\"policy\",\"policy\":{policy}}}]");
        let error = house.post("/v1/events", &body).error(400, "bad_event");
        let message = format!("`policy` must have at most 524288 bytes, not {}", policy.len());
        assert_eq!(
            (&error["field"], &error["message"]),
            (&json!("policy"), &json!(message))
        );
    }
    let users = short("\"\"");
    let error = house
        .post("/v1/users/query", format!("{{\"users\":{users}}}"))
        .error(400, "bad_users");
    assert_eq!(
        error["message"],
        format!("`users` must have 1 to 1000 ids, not {}", (users.len() - 1) / 3)
    );
    // A small event may become a record in every partition.
    let ticks = vec![json!({"type": "tick"}); 10_000];
    let error = house
        .post("/v1/events", json!(ticks).to_string())
        .error(413, "too_many_records");
    assert_eq!(error["event"], 6_250);
    assert_eq!(house.ends().iter().sum::<u64>(), 0);
}

impl House {
    /// Publishes, as soon as there is a connection to be had.
    fn publish_until_taken(&self) {
        wait_until("there is room again", || {
            let mut stream = opened(
                self,
                &format!(
                    "GET /healthz HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
                    self.address
                ),
            );
            let mut answer = [0; 12];
            stream.read_exact(&mut answer).is_ok() && &answer[9..] == b"200"
        });
    }
}

#[test]
fn an_engine_whose_partition_another_took_over_ends_well() {
    let clock = Arc::new(ManualClock::new(1_000));
    let log = Arc::new(MemoryLog::new(1, clock.clone()));
    let tuning = Tuning {
        output_commit_ms: 3_600_000,
        ..Tuning::default()
    };
    let house = House::on(log.clone(), clock, None, tuning, None);
    // The outputs of the second wait for their commit until the engine stops.
    for (user, conn) in [("alice", 1), ("bob", 2)] {
        house.post("/v1/events", json!([connect(user, conn)]).to_string()).ok();
        house.wait_until_folded();
    }
    let committed = house.end(Topic::Changes, 0);
    assert!(committed < 2, "one waits for its commit");
    let _another = log.take_up(Partition(0)).expect("taken");
    // It says whether it ended well.
    drop(house);
    assert_eq!(
        log.range(Topic::Changes, Partition(0)).expect("readable").end,
        Offset(committed)
    );
}
