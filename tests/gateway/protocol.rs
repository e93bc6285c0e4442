//! The frames that a connection receives, and the events that are published for it.

use crate::client::{Client, Dial, Heard, PATIENCE};
use crate::house::{House, connect, dial, greet, wait_until};
use futures_util::StreamExt as _;
use serde_json::{Value, json};
use socket2_linger::reset;
use std::time::{Duration, Instant};
use tokio::io::AsyncReadExt as _;
use tokio_tungstenite::tungstenite::Message;

/// Closing with what is unread gives the other end an RST.
mod socket2_linger {
    use crate::client::Client;
    use std::time::Duration;

    pub fn reset(client: Client) {
        let stream = client.socket.into_inner();
        #[expect(deprecated, reason = "a linger of zero does not block")]
        stream.set_linger(Some(Duration::ZERO)).expect("set");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_is_in_the_log_before_its_client_is_greeted() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&[]).await;
    let (_client, hello) = greet(&gateway, "alice", "android", "a1", "login").await;
    assert_eq!(
        hello,
        json!({"type": "hello", "user": "alice", "gateway": "edge", "epoch": 1, "conn": 1,
               "heartbeat_ms": 120_000, "timeout_ms": 400_000, "ping_ms": 25_000})
    );
    let connect = house.events_of("connect", "alice").pop().expect("it is there already");
    let fields =
        ["platform", "device", "gateway", "epoch", "conn", "intent", "client"].map(|field| connect[field].clone());
    assert_eq!(
        json!(fields),
        json!(["android", "a1", "edge", 1, 1, "login", "127.0.0.1 tests/1"])
    );
    assert_eq!(house.causes("alice", "login").await, ["login"]);
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_client_says_is_published_and_answered() {
    let house = House::new(json!({"platforms": {"web": {"background_ms": 60_000}}})).await;
    let gateway = house.gateway(&[]).await;
    let mut client = connect(&gateway, "alice", "web", "tab", "login").await;
    assert_eq!(
        client.ask(json!({"type": "heartbeat", "id": 1})).await,
        json!({"type": "alive"})
    );
    let done = |id: u64| json!({"type": "done", "id": id});
    assert_eq!(client.ask(json!({"type": "background", "id": 2})).await, done(2));
    assert_eq!(client.ask(json!({"type": "foreground", "id": 3})).await, done(3));
    let text = json!({"type": "custom_status", "text": "in a meeting", "id": 4});
    assert_eq!(client.ask(text).await, done(4));
    for kind in ["background", "foreground", "custom_status"] {
        assert_eq!(
            house.events_of(kind, "alice").len(),
            1,
            "{kind} was answered, so it is durable"
        );
    }
    house.causes("alice", "custom_status").await;
    let answer = client
        .ask(json!({"type": "query", "users": ["alice", "bob", "alice"], "id": 5}))
        .await;
    let user = &answer["users"][0];
    assert_eq!(
        (
            &answer["type"],
            &answer["id"],
            &answer["unknown"],
            answer["users"].as_array().map(Vec::len)
        ),
        (&json!("users"), &json!(5), &json!(["bob"]), Some(1))
    );
    assert_eq!(
        (
            &user["status"],
            &user["version"],
            &user["custom_status"],
            &user["devices"]
        ),
        (
            &json!("online"),
            &json!(2),
            &json!("in a meeting"),
            &json!([{"platform": "web", "status": "online"}])
        )
    );
    // No address, device or gateway of another user.
    assert!(
        !answer.to_string().contains("127.0.0.1") && !answer.to_string().contains("tab"),
        "{answer}"
    );
    assert_eq!(client.ask(json!({"type": "logout", "id": 6})).await, done(6));
    assert_eq!(client.hear().await, Heard::Closed(1000));
    assert_eq!(
        house.causes("alice", "logout").await,
        ["login", "custom_status", "logout"]
    );
    assert!(house.events_of("disconnect", "alice").is_empty());
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn however_a_link_ends_a_disconnect_says_so() {
    let house = House::new(json!({"login": "multi", "platforms": {"mini_program": {"exit_ms": 1}}})).await;
    let gateway = house.gateway(&[]).await;
    // A close frame, an end of the stream, a reset.
    let mut polite = connect(&gateway, "polite", "web", "d", "login").await;
    polite.socket.close(None).await.expect("closed");
    drop(connect(&gateway, "killed", "web", "d", "login").await);
    reset(connect(&gateway, "reset", "web", "d", "login").await);
    for user in ["polite", "killed", "reset"] {
        assert_eq!(house.published("disconnect", user).await["reason"], "closed");
        assert_eq!(house.causes(user, "closed").await, ["login", "closed"]);
    }
    let mut exit = connect(&gateway, "exit", "mini_program", "d", "login").await;
    exit.say(json!({"type": "exit"})).await;
    assert_eq!(exit.closed().await, Heard::Closed(1000));
    assert_eq!(house.published("disconnect", "exit").await["reason"], "exit");
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pings_and_pongs_are_heartbeats_and_a_window_has_one_of_a_connection() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&["--beats-every-ms", "200"]).await;
    let mut ping = connect(&gateway, "ping", "web", "d", "login").await;
    let mut pong = connect(&gateway, "pong", "web", "d", "login").await;
    let mut busy = connect(&gateway, "busy", "web", "d", "login").await;
    ping.send(Message::Ping("".into())).await;
    pong.send(Message::Pong("".into())).await;
    let began = Instant::now();
    for _ in 0..20 {
        busy.beat().await;
    }
    let windows = began.elapsed().as_millis() as usize / 200 + 2;
    for user in ["ping", "pong", "busy"] {
        wait_until(user, async || house.beats_of(user) > 0).await;
    }
    assert!(house.beats_of("busy") <= windows, "one in each of {windows}");
    let events = house.events();
    assert!(
        events.iter().all(|event| event["type"] != "heartbeat"),
        "only gathered ones"
    );
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_engine_decides_on_silence_and_the_socket_stays_until_long_after() {
    let house = House::new(json!({"platforms": {"web": {"timeout_ms": 300, "heartbeat_ms": 100}}})).await;
    let gateway = house.gateway(&["--silence-ms", "5000"]).await;
    let mut client = connect(&gateway, "alice", "web", "tab", "login").await;
    assert_eq!(house.causes("alice", "timeout").await, ["login", "timeout"]);
    // The connection is there still, and one beat brings it back.
    client.beat().await;
    wait_until("it came back and timed out again", async || {
        house.changes_of("alice").len() == 4
    })
    .await;
    assert_eq!(
        house.causes("alice", "timeout").await,
        ["login", "timeout", "revive", "timeout"]
    );
    // A client that reads would answer the pings, and stay.
    let mut raw = Vec::new();
    let code = 4006_u16.to_be_bytes();
    while !raw.windows(2).any(|bytes| bytes == code) {
        let read = client.socket.get_mut().read_buf(&mut raw);
        let read = tokio::time::timeout(PATIENCE, read).await.expect("something comes");
        assert!(read.expect("read") > 0, "it was cut without the code");
    }
    assert!(raw.contains(&0x89), "it was pinged before");
    gateway.stop(false).await;
    assert!(house.events_of("disconnect", "alice").is_empty());
}

/// Reads until so many pings came and so much time has passed, which answers the pings, and says nothing.
async fn only_answers(client: &mut Client, pings: usize, least: Duration) {
    let (began, mut came) = (Instant::now(), 0);
    while came < pings || began.elapsed() < least {
        let next = tokio::time::timeout(PATIENCE, client.socket.next()).await;
        match next.expect("pings come") {
            Some(Ok(Message::Ping(_))) => came += 1,
            other => panic!("nothing else is said: {other:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn life_is_published_by_number_and_whose_it_is_when_the_engine_asks() {
    let house = House::new(json!({"login": "multi", "platforms": {"web": {"timeout_ms": 600_000}}})).await;
    let gateway = house.gateway(&[]).await;
    let mut clients = Vec::new();
    for number in 0..20 {
        clients.push(connect(&gateway, &format!("user-{number}"), "web", "tab", "login").await);
    }
    for client in &mut clients {
        client.beat().await;
    }
    for number in 0..20 {
        let user = format!("user-{number}");
        wait_until(&user, async || house.numbered_beats_of(&user) > 0).await;
        assert_eq!(house.named_beats_of(&user), 0);
    }
    // The engine loses one without the gateway's doing: it does not know the number any more, asks, and knows it again.
    let connect = house.events_of("connect", "user-7").pop().expect("it is there");
    house.publish(json!({"type": "policy", "policy": {"login": "multi", "platforms": {"web": {"timeout_ms": 50}}}}));
    // A policy decides what comes after it, so the short time-out begins with this sign of life.
    clients[7].beat().await;
    house.causes("user-7", "timeout").await;
    house.publish(
        json!({"type": "policy", "policy": {"login": "multi", "platforms": {"web": {"timeout_ms": 600_000}}}}),
    );
    clients[7].beat().await;
    assert_eq!(house.causes("user-7", "revive").await, ["login", "timeout", "revive"]);
    assert!(house.named_beats_of("user-7") > 0);
    assert_eq!(
        house.events_of("connect", "user-7"),
        [connect],
        "on the same connection"
    );
    // A question about a connection that is gone is no error.
    drop(clients.pop());
    house.published("disconnect", "user-19").await;
    house.publish(json!({"type": "alive", "gateway": "edge", "epoch": 1, "conns": [20, 999]}));
    clients[7].beat().await;
    gateway.stop(false).await;
}

/// A page whose tab is hidden: its scripts hardly run, but its browser answers pings.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_only_answers_pings_stays_online() {
    let house = House::new(json!({"platforms": {"web": {"timeout_ms": 4_000, "heartbeat_ms": 500}}})).await;
    let gateway = house.gateway(&["--ping-ms", "500"]).await;
    let mut client = connect(&gateway, "alice", "web", "tab", "login").await;
    only_answers(&mut client, 8, Duration::from_millis(6_000)).await;
    wait_until("its answers are published", async || house.beats_of("alice") >= 3).await;
    client.beat().await;
    assert_eq!(house.causes("alice", "login").await, ["login"]);
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_to_pings_are_published_no_more_often_than_heartbeats() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&["--ping-ms", "100"]).await;
    let (mut client, hello) = greet(&gateway, "alice", "android", "a1", "login").await;
    assert_eq!(hello["ping_ms"], 100);
    only_answers(&mut client, 8, Duration::ZERO).await;
    assert_eq!(
        client.ask(json!({"type": "ping", "id": 3})).await,
        json!({"type": "pong", "id": 3})
    );
    assert_eq!(house.beats_of("alice"), 0, "the pace of this platform is two minutes");
    client.beat().await;
    wait_until("what it says by itself is published", async || {
        house.beats_of("alice") == 1
    })
    .await;
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kicks_close_with_their_code_and_one_for_nobody_is_no_error() {
    let house = House::new(json!({"login": "multi"})).await;
    let gateway = house.gateway(&[]).await;
    let mut admin = connect(&gateway, "admin", "web", "d", "login").await;
    let mut forgotten = connect(&gateway, "forgotten", "web", "d", "login").await;
    let mut old = connect(&gateway, "replaced", "web", "d", "login").await;
    let gone = connect(&gateway, "gone", "web", "d", "login").await;
    drop(gone);
    house.causes("gone", "closed").await;
    // A heartbeat of an unknown connection causes a kick, which no client gets.
    house.publish(
        json!({"type": "heartbeat", "user": "gone", "platform": "web", "device": "x",
                         "gateway": "edge", "epoch": 1, "conn": 999}),
    );
    house.publish(json!({"type": "kick", "user": "admin"}));
    house.publish(json!({"type": "forget", "user": "forgotten"}));
    let mut new = connect(&gateway, "replaced", "web", "d", "resume").await;
    let kicked = |reason: &str, reconnect: bool| json!({"type": "kicked", "reason": reason, "reconnect": reconnect});
    assert_eq!(admin.frame().await, kicked("admin", false));
    assert_eq!(admin.hear().await, Heard::Closed(4003));
    assert_eq!(forgotten.frame().await, kicked("forgotten", false));
    assert_eq!(forgotten.hear().await, Heard::Closed(4004));
    assert_eq!(old.frame().await, kicked("replaced", false));
    assert_eq!(old.hear().await, Heard::Closed(4001));
    new.beat().await;
    for user in ["admin", "forgotten", "replaced"] {
        assert!(house.events_of("disconnect", user).is_empty(), "the engine knows");
    }
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_no_connection_any_more_is_told_at_the_next_heartbeat_and_may_come_back() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&[]).await;
    let (mut client, hello) = greet(&gateway, "alice", "web", "tab", "login").await;
    // As if the gateway had lost the connection's end on its way.
    house.publish(
        json!({"type": "logout", "user": "alice", "platform": "web", "device": "tab",
                         "gateway": "edge", "epoch": hello["epoch"], "conn": hello["conn"]}),
    );
    house.causes("alice", "logout").await;
    client.beat().await;
    assert_eq!(
        client.frame_of("kicked").await,
        json!({"type": "kicked", "reason": "stale", "reconnect": true})
    );
    assert_eq!(client.hear().await, Heard::Closed(4005));
    let mut back = connect(&gateway, "alice", "web", "tab", "resume").await;
    back.beat().await;
    // The engine knows no device to resume, so it counts as a login.
    wait_until("alice is back", async || house.changes_of("alice").len() == 3).await;
    assert_eq!(house.causes("alice", "login").await, ["login", "logout", "login"]);
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_wrong_is_refused_with_a_sentence() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&[]).await;
    let long = "x".repeat(129);
    for query in [
        "".to_owned(),
        "user=u&device=d&intent=login".to_owned(),
        "user=u&platform=web&intent=login".to_owned(),
        "user=u&platform=web&device=d".to_owned(),
        "user=u&platform=web&device=d&intent=maybe".to_owned(),
        "platform=web&device=d&intent=login".to_owned(),
        format!("user={long}&platform=web&device=d&intent=login"),
        format!("user=u&platform=web&device={long}&intent=login"),
    ] {
        let dial = Dial::new(gateway.address(), query.clone());
        let refused = dial.refused().await;
        assert_eq!((refused.status, &*refused.code), (400, "bad_parameter"), "{query}");
        // A page can see neither status nor body, so it gets a frame and a close.
        let dial = dial.header("sec-websocket-protocol", "rollcall.v1");
        let mut client = dial.open().await.expect("a WebSocket");
        let said = client.frame().await;
        let message = said["message"].as_str().expect("a sentence");
        assert_eq!(
            (&said["type"], &said["code"]),
            (&json!("error"), &json!("bad_parameter"))
        );
        assert!(message.starts_with('`'), "it names the parameter: {message}");
        assert_eq!(client.hear().await, Heard::Closed(4007), "{query}");
    }
    // Which platforms there are only the policy says.
    let mut unknown = dial(&gateway, "u", "toaster", "d", "login")
        .open()
        .await
        .expect("let in");
    assert_eq!(unknown.frame().await["code"], "unknown_platform");
    assert_eq!(unknown.hear().await, Heard::Closed(4007));
    house
        .publish(json!({"type": "policy", "policy": {"platforms": {"toaster": {"timeout_ms": 1_000, "push": false}}}}));
    wait_until("the new platform is known", async || {
        let mut client = dial(&gateway, "u", "toaster", "d", "login")
            .open()
            .await
            .expect("let in");
        client.frame().await["type"] == "hello"
    })
    .await;
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_tokens_pages_of_elsewhere_are_kept_out() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&[]).await;
    let dial = dial(&gateway, "u", "web", "d", "login");
    for origin in [
        "https://example.com",
        "http://localhost.example.com",
        "null",
        "http://192.0.2.1",
        "chrome-extension://localhost",
    ] {
        let refused = dial.clone().header("origin", origin).refused().await;
        assert_eq!((refused.status, &*refused.code), (403, "foreign_origin"), "{origin}");
        let page = dial.clone().header("origin", origin);
        let mut page = page
            .header("sec-websocket-protocol", "rollcall.v1")
            .open()
            .await
            .expect("a WebSocket");
        assert_eq!(page.frame().await["code"], "foreign_origin");
        assert_eq!(page.hear().await, Heard::Closed(4007));
    }
    for origin in ["http://localhost:8080", "http://127.0.0.1:8080", "http://[::1]:1"] {
        assert!(dial.clone().header("origin", origin).open().await.is_ok(), "{origin}");
    }
    gateway.stop(false).await;
}

/// A client may send a frame before it has received `hello`.
#[tokio::test(flavor = "multi_thread")]
async fn a_frame_before_the_greeting_is_taken_after_it() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&[]).await;
    let mut client = dial(&gateway, "alice", "web", "tab", "login")
        .open()
        .await
        .expect("let in");
    client.say(json!({"type": "heartbeat"})).await;
    let kinds: [Value; 2] = [
        client.frame().await["type"].clone(),
        client.frame().await["type"].clone(),
    ];
    assert_eq!(json!(kinds), json!(["hello", "alive"]));
    gateway.stop(false).await;
}
