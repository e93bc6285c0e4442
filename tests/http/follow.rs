//! `GET /v1/changes` and `GET /v1/kicks`.

use crate::client::{Client, Follower, Received, Reply, encoded};
use crate::house::{House, connect, on, says, user_of};
use rollcall::config::Scopes;
use rollcall::presence::{Offset, Partition};
use rollcall::topics::Topic;
use serde_json::{Value, json};
use std::collections::BTreeSet;

fn moods(user: &str, numbers: std::ops::Range<usize>) -> Vec<Value> {
    numbers.map(|number| says(user, format!("mood {number}"))).collect()
}

/// More than fits into the buffers between two programs.
const FLOOD: usize = 40_000;

/// Publishes that many changes of one user, some 20 MB of events to follow.
fn flood(house: &House) {
    let user = "x".repeat(120);
    house.publish(&[connect(&user, 1)]);
    let padding = "y".repeat(90);
    for start in (1..FLOOD).step_by(10_000) {
        let numbers = start..FLOOD.min(start + 10_000);
        let events: Vec<Value> = numbers
            .map(|number| says(&user, format!("{padding}{number}")))
            .collect();
        house.publish(&events);
    }
    house.wait_until_folded();
    assert_eq!(house.end(Topic::Changes, 0), FLOOD as u64);
}

/// Reads the whole flood, and sees that nothing is missing, twice or out of order.
fn take_flood(follower: &mut Follower) {
    for number in 1..=FLOOD {
        let received = follower.next();
        assert_eq!(received.json()["seq"], number);
        assert_eq!(received.id, format!("0:{number}"));
    }
}

#[test]
fn a_change_comes_as_in_the_rules_with_the_cursor_after_it() {
    let house = House::new(1);
    let mut follower = house.follow("/v1/changes");
    house.publish(&[connect("alice", 7)]);
    let data = concat!(
        r#"{"type":"change","id":"0-0-0","partition":0,"offset":0,"seq":1,"user":"alice","version":1,"at":1000,"#,
        r#""logged_at":1000,"cause":"login","before":"offline","after":"online","#,
        r#""devices":[{"platform":"android","device":"a1","gateway":"g1","before":"offline","after":"online"}],"#,
        r#""custom_status":null,"evidence":0}"#
    );
    let received = follower.next();
    assert_eq!(
        (received.name.as_str(), received.id.as_str(), received.data.as_str()),
        ("change", "0:1", data)
    );
}

#[test]
fn every_partition_is_followed_and_nothing_comes_that_was_before() {
    let house = House::new(2);
    let (a, b) = (user_of(0, 2, 0), user_of(1, 2, 0));
    house.publish(&[connect(&a, 1), connect(&b, 2)]);
    house.wait_until_folded();
    let mut now = house.follow("/v1/changes");
    let mut latest = house.follow("/v1/changes?after=latest");
    let mut earliest = house.follow("/v1/changes?after=earliest");
    house.publish(&[says(&a, "one")]);
    house.wait_until_folded();
    house.publish(&[says(&b, "two")]);
    for follower in [&mut now, &mut latest] {
        let received = follower.take(2);
        assert_eq!(
            (received[0].json()["custom_status"].as_str(), received[0].id.as_str()),
            (Some("one"), "0:2,1:1")
        );
        assert_eq!(
            (received[1].json()["custom_status"].as_str(), received[1].id.as_str()),
            (Some("two"), "0:2,1:2")
        );
    }
    let mut users: Vec<String> = earliest
        .take(4)
        .iter()
        .map(|received| received.json()["user"].to_string())
        .collect();
    users.sort();
    let mut expected = [&a, &a, &b, &b].map(|user| format!("\"{user}\""));
    expected.sort();
    assert_eq!(users, expected);
}

#[test]
fn a_subscription_is_resumed_anywhere_without_a_gap_or_a_repeat() {
    let house = House::new(2);
    let users = [user_of(0, 2, 0), user_of(1, 2, 0), user_of(0, 2, 1)];
    let mut events: Vec<Value> = users.iter().map(|user| connect(user, 1)).collect();
    for number in 0..700 {
        events.extend(users.iter().map(|user| says(user, format!("mood {number}"))));
    }
    let (before, during) = events.split_at(1_200);
    house.publish(before);
    house.wait_until_folded();
    std::thread::scope(|scope| {
        let house = &house;
        scope.spawn(move || {
            for events in during.chunks(50) {
                house.publish(events);
            }
        });
        let mut cursor = "earliest".to_owned();
        let mut seen: Vec<Received> = Vec::new();
        // Cut after 1, 2, 3, … events, by turns with the one and the other way to say where one was.
        for count in 1.. {
            let count = count.min(events.len() - seen.len());
            if count == 0 {
                break;
            }
            let mut follower = match count % 2 {
                0 => house.follow(&format!("/v1/changes?after={}", encoded(&cursor))),
                _ => house.with("Last-Event-ID", &cursor).follow("/v1/changes?after=latest"),
            };
            seen.extend(follower.take(count));
            cursor = seen[seen.len() - 1].id.clone();
        }
        for partition in 0..2 {
            let changes: Vec<Value> = seen.iter().map(Received::json).collect();
            let of_partition = changes.iter().filter(|change| change["partition"] == partition);
            let seqs: Vec<u64> = of_partition.filter_map(|change| change["seq"].as_u64()).collect();
            assert_eq!(seqs, (1..=house.end(Topic::Changes, partition)).collect::<Vec<_>>());
        }
        assert_eq!(
            cursor,
            format!("0:{},1:{}", house.end(Topic::Changes, 0), house.end(Topic::Changes, 1))
        );
    });
}

#[test]
fn users_can_be_chosen() {
    let house = House::new(2);
    let (a, b, c) = (user_of(0, 2, 0), user_of(0, 2, 1), user_of(1, 2, 0));
    house.publish(&[connect(&a, 1), connect(&b, 2), connect(&c, 3)]);
    house.wait_until_folded();
    let mut one = house.follow(&format!("/v1/changes?after=earliest&user={a}"));
    let mut two = house.follow(&format!("/v1/changes?user={c}&after=earliest&user={a}"));
    // The cursor is of the partitions followed: a user is in one.
    assert_eq!(one.next().id, "0:1");
    let received = two.take(2);
    let users: Vec<Value> = received
        .iter()
        .map(|received| received.json()["user"].clone())
        .collect();
    assert_eq!(json!(users), json!([a, c]));
    assert_eq!(received[1].id, "0:2,1:1");
    // Many that do not concern it, then one that does.
    house.publish(&moods(&b, 0..2_000));
    house.wait_until_folded();
    house.publish(&[says(&a, "here")]);
    let here = one.next();
    assert_eq!(
        (here.json()["custom_status"].as_str(), here.id.as_str()),
        (Some("here"), "0:2003")
    );
    // Resumed with its own cursor, and with the cursor of a subscription to more users.
    for cursor in ["0:1", "0:1,1:1"] {
        let mut again = house
            .with("Last-Event-ID", cursor)
            .follow(&format!("/v1/changes?user={a}"));
        assert_eq!(again.next(), here);
    }
}

#[test]
fn whom_nothing_concerns_is_told_how_far_it_is_all_the_same() {
    let house = House::new(1);
    house.publish(&[connect("alice", 1)]);
    house.publish(&moods("alice", 0..100));
    house.wait_until_folded();
    let mut follower = house.follow("/v1/changes?user=bob&after=earliest");
    assert_eq!(follower.block().as_deref(), Some("id: 0:101\n"));
}

#[test]
fn a_partition_can_be_chosen() {
    let house = House::new(3);
    let users = [0, 1, 2].map(|partition| user_of(partition, 3, 0));
    house.publish(&users.clone().map(|user| connect(&user, 1)));
    house.wait_until_folded();
    let mut follower = house.follow("/v1/changes?partition=1&after=earliest");
    house.publish(&users.clone().map(|user| says(&user, "x")));
    let received = follower.take(2);
    assert!(received.iter().all(|received| received.json()["user"] == users[1]));
    assert_eq!(received[1].id, "1:2");
    let mut again = house.follow("/v1/changes?partition=1&after=1:1");
    assert_eq!(again.next(), received[1]);
    // A misspelt filter would be no filter.
    for path in [
        "/v1/changes?usr=a",
        "/v1/kicks?user=a",
        "/v1/users/a?at_last=1",
        "/v1/users/a/changes?limits=1",
    ] {
        let error = house.get(path).error(400, "bad_parameter");
        let message = error["message"].as_str().expect("a sentence");
        assert!(message.contains("is not a parameter of this path"), "{path}: {message}");
    }
    let error = house.get("/v1/changes?partition=3").error(400, "bad_parameter");
    assert_eq!(error["message"], "partition 3 does not exist: there are 3, from 0");
    let error = house.get("/v1/kicks?partition=one").error(400, "bad_parameter");
    assert_eq!(
        error["message"],
        "`partition` must be an integer from 0 to 4294967295, not \"one\""
    );
}

#[test]
fn kicks_come_to_their_gateway() {
    let house = House::new(1);
    let mut all = house.follow("/v1/kicks");
    let mut g2 = house.follow("/v1/kicks?gateway=g2&gateway=g3");
    let login = |gateway: &str, conn| on("connect", "alice", conn, json!({"intent": "login", "gateway": gateway}));
    house.publish(&[
        login("g1", 1),
        login("g2", 2),
        login("g1", 3),
        says("alice", "x"),
        login("g3", 4),
    ]);
    let kick = concat!(
        r#"{"type":"kick","id":"0-2-0","gateway":"g2","epoch":1,"conn":2,"user":"alice","platform":"android","#,
        r#""device":"a1","reason":"replaced","at":1000}"#
    );
    let received = g2.next();
    assert_eq!(
        (received.name.as_str(), received.id.as_str(), received.data.as_str()),
        ("kick", "0:2", kick)
    );
    let received = all.take(3);
    let conns: Vec<Value> = received
        .iter()
        .map(|received| received.json()["conn"].clone())
        .collect();
    assert_eq!(json!(conns), json!([1, 2, 3]));
    let mut again = house.with("Last-Event-ID", &received[0].id).follow("/v1/kicks");
    assert_eq!(again.take(2), received[1..]);
    let mut again = house.follow("/v1/kicks?gateway=g2&after=earliest");
    assert_eq!(again.next().data, kick);
    house
        .log
        .drop_before(Topic::Kicks, Partition(0), Offset(2))
        .expect("dropped");
    assert_eq!(house.get("/v1/kicks?after=0:1").error(410, "gone")["oldest"], "0:2");
}

#[test]
fn a_subscription_may_begin_so_many_records_before_the_end() {
    let house = House::new(2);
    let users: Vec<String> = (0..5).map(|number| user_of(0, 2, number)).collect();
    let events: Vec<Value> = users.iter().zip(1..).map(|(user, conn)| connect(user, conn)).collect();
    house.publish(&events);
    house.publish(&[connect(&user_of(1, 2, 0), 9)]);
    house.wait_until_folded();
    let users_of = |path: &str, count: usize| -> Vec<String> {
        let received = house.follow(path).take(count);
        let user = |received: &Received| received.json()["user"].as_str().expect("a user").to_owned();
        received.iter().map(user).collect()
    };
    // Of each partition so many, or as many as there are.
    let expected = [&users[3..], &[user_of(1, 2, 0)]].concat();
    assert_eq!(users_of("/v1/changes?after=latest-2", 3), expected);
    assert_eq!(users_of("/v1/changes?after=latest-1000&partition=0", 5), users);
    // Nothing before the end is as good as `latest`.
    let mut follower = house.follow("/v1/changes?after=latest-0");
    house.publish(&[says(&users[0], "hello")]);
    assert!(follower.next().data.contains("hello"));
    for wrong in [
        "latest-",
        "latest--1",
        "latest-1001",
        "latest-x",
        "latest-99999999999999999999",
    ] {
        let error = house
            .get(&format!("/v1/changes?after={wrong}"))
            .error(400, "bad_cursor");
        let message = error["message"].as_str().expect("text");
        assert!(
            message.contains(wrong) && message.contains("a number up to 1000"),
            "{message}"
        );
    }
}

#[test]
fn a_cursor_must_be_one_of_this_log() {
    let house = House::new(2);
    house.publish(&[connect(&user_of(0, 2, 0), 1)]);
    house.wait_until_folded();
    for wrong in [
        "x",
        "",
        "0",
        "0:",
        ":1",
        "0:-1,1:0",
        "0:1;1:0",
        "0:1,1:0,",
        "0:1,1:18446744073709551616",
    ] {
        for path in ["/v1/changes", "/v1/kicks"] {
            let expected =
                format!("{wrong:?} is not a cursor: expected text such as 0:12,1:7, or `earliest` or `latest`");
            let reply = house.get(&format!("{path}?after={}", encoded(wrong)));
            assert_eq!(reply.error(400, "bad_cursor")["message"], expected);
            if wrong.is_empty() {
                // Some send the header before they have been anywhere.
                continue;
            }
            let reply = house.with("Last-Event-ID", wrong).get(path);
            assert_eq!(reply.error(400, "bad_cursor")["message"], expected);
        }
    }
    // Not taken for none, which would skip what was missed.
    house
        .with("Last-Event-ID", "0:ü")
        .get("/v1/changes")
        .error(400, "bad_cursor");
    let error = house.get("/v1/changes?after=0:1").error(400, "bad_cursor");
    assert_eq!(error["message"], "the cursor lacks partition 1, which is followed");
    let error = house.get("/v1/changes?after=0:2,1:0").error(400, "bad_cursor");
    assert_eq!(error["message"], "the cursor is ahead of partition 0, which ends at 1");
}

#[test]
fn what_the_log_no_longer_has_is_410_with_the_oldest_cursor() {
    let house = House::new(2);
    let (a, b) = (user_of(0, 2, 0), user_of(1, 2, 0));
    house.publish(&[connect(&a, 1), connect(&b, 1)]);
    house.publish(&moods(&a, 0..10));
    house.publish(&moods(&b, 0..10));
    house.wait_until_folded();
    house
        .log
        .drop_before(Topic::Changes, Partition(0), Offset(4))
        .expect("dropped");
    house
        .log
        .drop_before(Topic::Changes, Partition(1), Offset(2))
        .expect("dropped");
    let oldest = |reply: Reply| reply.error(410, "gone")["oldest"].as_str().map(str::to_owned);
    assert_eq!(
        oldest(house.get("/v1/changes?after=0:3,1:11")).as_deref(),
        Some("0:4,1:2")
    );
    assert_eq!(
        oldest(house.with("Last-Event-ID", "0:3,1:11").get("/v1/changes")).as_deref(),
        Some("0:4,1:2")
    );
    assert_eq!(
        oldest(house.get("/v1/changes?after=1:1&partition=1")).as_deref(),
        Some("1:2")
    );
    assert_eq!(
        oldest(house.get(&format!("/v1/changes?after=0:0,1:0&user={b}"))).as_deref(),
        Some("1:2")
    );
    let error = house.get("/v1/changes?after=0:3,1:11").error(410, "gone");
    let message = "the log no longer reaches back to this cursor; the oldest one is 0:4,1:2";
    assert_eq!(error["message"], message);
    // The oldest cursor works, and so does the oldest still there of one partition with a newer one of another.
    let mut follower = house.follow("/v1/changes?after=0:4,1:2");
    let received = follower.take(16);
    assert_eq!(received[15].id, "0:11,1:11");
    assert_eq!(received[0].json()["seq"], 5);
    assert_eq!(
        house.follow("/v1/changes?after=0:4,1:11").next(),
        Received {
            id: "0:5,1:11".to_owned(),
            ..received[0].clone()
        }
    );
    assert_eq!(house.follow("/v1/changes?after=earliest").next(), received[0]);
}

#[test]
fn at_most_1000_users_are_followed() {
    let house = House::new(2);
    let query = |count: usize| -> String { (0..count).map(|number| format!("&user=u{number}")).collect() };
    let error = house
        .get(&format!("/v1/changes?{}", query(1_001)))
        .error(400, "bad_parameter");
    assert_eq!(error["message"], "at most 1000 `user` may be given, not 1001");
    house.publish(&[connect("u999", 1)]);
    let mut follower = house.follow(&format!("/v1/changes?after=earliest{}", query(1_000)));
    assert_eq!(follower.next().json()["user"], "u999");
}

#[test]
fn a_name_that_nobody_can_have_is_not_followed() {
    let house = House::new(2);
    let long = |bytes| "x".repeat(bytes);
    for (path, name, most) in [("/v1/changes", "user", 128), ("/v1/kicks", "gateway", 64)] {
        for bytes in [0, most + 1] {
            let reply = house.get(&format!("{path}?{name}=a&{name}={}", long(bytes)));
            let message = format!("`{name}` must have 1 to {most} bytes of UTF-8, not {bytes}");
            assert_eq!(reply.error(400, "bad_parameter")["message"], message);
        }
        house.follow(&format!("{path}?{name}={}", long(most)));
    }
}

#[test]
fn a_reader_that_does_not_read_slows_nobody_and_gets_everything_later() {
    let house = House::new(1);
    let mut slow = house.follow("/v1/changes");
    let mut quick = house.follow("/v1/changes");
    std::thread::scope(|scope| {
        scope.spawn(|| take_flood(&mut quick));
        flood(&house);
    });
    // The engine has processed everything and other followers have read it; now the slow one begins.
    take_flood(&mut slow);
    house.publish(&[connect("bob", 1)]);
    for follower in [&mut slow, &mut quick] {
        assert_eq!(follower.next().json()["user"], "bob");
    }
}

#[test]
fn a_reader_that_is_slower_than_the_log_keeps_is_told_so_and_from_where_it_goes_on() {
    let house = House::new(1);
    let mut slow = house.follow("/v1/changes");
    flood(&house);
    let end = house.end(Topic::Changes, 0);
    house
        .log
        .drop_before(Topic::Changes, Partition(0), Offset(end - 3))
        .expect("dropped");
    let mut number = 0;
    let last = loop {
        let received = slow.next();
        if received.name == "error" {
            break received;
        }
        number += 1;
        assert_eq!(received.json()["seq"], number);
    };
    assert!(number < end, "{number}");
    // Without an id: a client that reconnects by itself sends its last position, and gets 410.
    assert_eq!(last.id, "");
    let error = &last.json()["error"];
    assert_eq!(
        (error["code"].as_str(), error["oldest"].as_str()),
        (Some("gone"), Some("0:39997"))
    );
    assert!(slow.next_or_end().is_none());
    house.get(&format!("/v1/changes?after=0:{number}")).error(410, "gone");
    assert_eq!(house.follow("/v1/changes?after=0:39997").take(3)[2].id, "0:40000");
}

#[test]
fn a_quiet_subscription_is_kept_open_by_comments() {
    let house = House::new(1);
    let mut follower = house.follow("/v1/changes");
    assert_eq!(follower.block().as_deref(), Some(": still here\n"));
    house.publish(&[connect("alice", 1)]);
    assert_eq!(follower.next().id, "0:1");
}

#[test]
fn a_server_that_stops_ends_its_subscriptions() {
    let house = House::new(2);
    let mut changes = house.follow("/v1/changes");
    let mut kicks = house.follow("/v1/kicks?gateway=g1");
    house.stop.send_replace(true);
    assert!(changes.next_or_end().is_none());
    assert!(kicks.next_or_end().is_none());
}

#[test]
fn a_browser_that_comes_back_says_where_it_was_in_the_header_or_in_the_address() {
    let house = House::new(1);
    house.publish(&[connect("a", 1), connect("b", 1), connect("c", 1)]);
    house.wait_until_folded();
    let first = |house: &Client, path: &str| house.follow(path).next().json()["user"].clone();
    assert_eq!(first(&house, "/v1/changes?after=earliest&lastEventId=0%3A1&_=17"), "b");
    assert_eq!(first(&house, "/v1/changes?Last-Event-ID=0:2&after=earliest"), "c");
    assert_eq!(first(&house, "/v1/changes?after=earliest&lastEventId="), "a");
    assert_eq!(first(&house.with("Last-Event-ID", ""), "/v1/changes?after=0:1"), "b");
    assert_eq!(
        first(
            &house.with("Last-Event-ID", "0:2"),
            "/v1/changes?after=0:1&lastEventId=0:1"
        ),
        "c"
    );
    house.get("/v1/changes?afetr=0:1").error(400, "bad_parameter");
}

#[test]
fn a_refusal_is_an_event_for_whoever_wants_a_stream_and_an_error_for_the_others() {
    let scopes = Scopes {
        read: true,
        ..Scopes::default()
    };
    let house = House::with_tokens(1, Some(&[("reader-reader-reader".to_owned(), scopes)]));
    let reader = house.token("reader-reader-reader");
    for (client, query, code) in [
        (&reader, "?after=0:99", "bad_cursor"),
        (&reader, "?after=nonsense", "bad_cursor"),
        (&reader, "?afetr=0:1", "bad_parameter"),
        (&*house, "", "no_token"),
        (&*house, "?ticket=nonsense", "unknown_ticket"),
    ] {
        for path in ["/v1/changes", "/v1/kicks"] {
            let received = client
                .with("Accept", "text/event-stream")
                .follow_refused(&format!("{path}{query}"));
            assert_eq!(received.name, "refused");
            assert_eq!(received.json()["error"]["code"], code);
            let reply = client
                .with("Accept", "application/json, */*")
                .get(&format!("{path}{query}"));
            assert!(reply.status >= 400);
            assert_eq!(reply.json()["error"]["code"], code);
        }
    }
}

#[test]
fn a_page_follows_with_a_ticket() {
    let scopes = |read| Scopes {
        read,
        publish: true,
        ..Scopes::default()
    };
    let tokens = [
        ("reader-reader-reader".to_owned(), scopes(true)),
        ("writer-writer-writer".to_owned(), scopes(false)),
    ];
    let house = House::with_tokens(2, Some(&tokens));
    let (reader, writer) = (house.token("reader-reader-reader"), house.token("writer-writer-writer"));
    writer.post("/v1/tickets", "").error(403, "forbidden");
    let (a, b) = (user_of(0, 2, 0), user_of(1, 2, 0));
    let ticket = |body: &str| {
        let answer = reader.post("/v1/tickets", body).ok();
        assert_eq!(answer["expires_in_ms"], 60_000);
        answer["ticket"].as_str().expect("text").to_owned()
    };
    let all = ticket("");
    let of_a = ticket(&json!({"users": [a]}).to_string());
    let mut everybody = house.follow(&format!("/v1/changes?ticket={all}"));
    let mut only_a = house.follow(&format!("/v1/changes?ticket={of_a}"));
    let mut named = house.follow(&format!("/v1/changes?ticket={of_a}&user={a}"));
    house
        .get(&format!("/v1/changes?ticket={of_a}&user={b}"))
        .error(403, "forbidden");
    house.get(&format!("/v1/kicks?ticket={of_a}")).error(403, "forbidden");
    // It opens subscriptions and nothing else.
    house.get(&format!("/v1/stats?ticket={all}")).error(401, "no_token");
    house
        .post(&format!("/v1/events?ticket={all}"), "[]")
        .error(401, "no_token");
    writer
        .post("/v1/events", json!([connect(&b, 1), connect(&a, 1)]).to_string())
        .ok();
    assert_eq!(only_a.next().json()["user"], *a);
    assert_eq!(named.next().json()["user"], *a);
    let both: BTreeSet<String> = everybody
        .take(2)
        .iter()
        .map(|received| received.json()["user"].to_string())
        .collect();
    assert_eq!(both.len(), 2);
    house.clock.advance_ms(61_000);
    house
        .get(&format!("/v1/changes?ticket={all}"))
        .error(401, "ticket_expired");
    // What is open stays open, until the token is taken back.
    let scopes = scopes(false);
    house.access.replace(&[("writer-writer-writer".to_owned(), scopes)]);
    assert_eq!(only_a.next_or_end(), None);
    reader
        .post("/v1/tickets", r#"{"users":[""]}"#)
        .error(401, "unknown_token");
}

#[test]
fn a_filter_may_come_as_a_body() {
    let house = House::new(2);
    let users: Vec<String> = (0..1_000)
        .map(|number| format!("{}{number}", "u".repeat(120)))
        .collect();
    let body = json!({"users": users, "after": "earliest"}).to_string();
    let mut follower = house.follow_with("/v1/changes/query", &body);
    house.publish(&[connect("other", 1), connect(&users[999], 1)]);
    assert_eq!(follower.next().json()["user"], users[999].as_str());
    let mut kicks = house.follow_with("/v1/kicks/query", r#"{"gateways":["g1"],"partition":1}"#);
    let user = user_of(1, 2, 0);
    house.publish(&[connect(&user, 1), json!({"type": "kick", "user": user})]);
    assert_eq!(kicks.next().json()["user"], user.as_str());
    for (body, code) in [
        (r#"{"gateways":["g1"]}"#, "bad_parameter"),
        (r#"{"users":[""]}"#, "bad_parameter"),
        (r#"{"user":["a"]}"#, "bad_json"),
        (r#"{"after":"x"}"#, "bad_cursor"),
    ] {
        house.post("/v1/changes/query", body).error(400, code);
    }
    let many = json!({"users": vec!["a"; 1_001]}).to_string();
    house.post("/v1/changes/query", many).error(400, "bad_parameter");
}

#[test]
fn pages_of_named_origins_are_let_in_and_no_others() {
    let scopes = Scopes {
        read: true,
        ..Scopes::default()
    };
    let tokens = [("reader-reader-reader".to_owned(), scopes)];
    let origins = vec![
        "https://chat.example.com".to_owned(),
        "http://localhost:3000".to_owned(),
    ];
    let house = House::with_origins(1, Some(&tokens), origins.clone());
    for origin in &origins {
        // A browser asks first, without a token.
        let preflight = house
            .with("Origin", origin.as_str())
            .with("Access-Control-Request-Method", "GET")
            .with("Access-Control-Request-Headers", "authorization,last-event-id")
            .send("OPTIONS", "/v1/changes", b"");
        assert_eq!(preflight.status, 200);
        assert_eq!(preflight.header("access-control-allow-origin"), Some(origin.as_str()));
        assert_eq!(preflight.header("access-control-allow-credentials"), None);
        let page = house.token("reader-reader-reader").with("Origin", origin.as_str());
        assert_eq!(
            page.get("/v1/stats").header("access-control-allow-origin"),
            Some(origin.as_str())
        );
        let refused = house.with("Origin", origin.as_str()).get("/v1/stats");
        assert_eq!(refused.header("access-control-allow-origin"), Some(origin.as_str()));
        refused.error(401, "no_token");
    }
    for origin in [
        "https://evil.example",
        "null",
        "http://chat.example.com",
        "https://chat.example.com.evil.example",
    ] {
        let page = house.token("reader-reader-reader").with("Origin", origin);
        assert_eq!(
            page.get("/v1/stats").header("access-control-allow-origin"),
            None,
            "{origin}"
        );
    }
    // Without tokens, the named origin is accepted, and still no other.
    let open = House::with_origins(1, None, origins.clone());
    open.with("Origin", origins[0].as_str()).get("/v1/stats").ok();
    open.with("Origin", "https://evil.example")
        .get("/v1/stats")
        .error(403, "foreign_origin");
    assert_eq!(
        House::new(1)
            .with("Origin", "x")
            .get("/v1/stats")
            .header("access-control-allow-origin"),
        None
    );
}
