//! Misbehaving clients: the gateway survives, its memory is bounded, and other clients are not affected.

use crate::client::{Client, Dial, Heard, PATIENCE};
use crate::house::{House, connect, dial, wait_until};
use rollcall::gateway::Gateway;
use serde_json::json;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;

/// A well-behaved client is served as usual.
async fn lives(gateway: &Gateway) {
    let mut client = connect(gateway, "somebody", "web", "else", "login").await;
    client.beat().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_frames_are_answered_and_too_many_of_them_close() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&[]).await;
    let mut client = connect(&gateway, "alice", "web", "tab", "login").await;
    for bad in [
        "",
        "{",
        "null",
        "[]",
        r#"{"type":"launch"}"#,
        r#"{"type":"query","users":"alice"}"#,
        "\u{0}",
    ] {
        client.send(Message::text(bad)).await;
        assert_eq!(client.frame().await["code"], "bad_frame", "{bad:?}");
    }
    client.beat().await;
    for _ in 0..3 {
        client.send(Message::text("{")).await;
    }
    assert_eq!(client.closed().await, Heard::Closed(4007));
    let mut client = connect(&gateway, "alice", "web", "tab", "login").await;
    client.send(Message::binary(vec![1, 2, 3])).await;
    assert_eq!(client.closed().await, Heard::Closed(1003));
    lives(&gateway).await;
    gateway.stop(false).await;
}

/// Bytes that no client may send, and the close code for each.
const NOT_FRAMES: [(&[u8], u16); 8] = [
    // Not masked; a reserved opcode, bit, control frame; a control frame in pieces; an answer of one byte.
    (b"\x81\x02{}", 1002),
    (b"\x83\x80\0\0\0\0", 1002),
    (b"\xc1\x82\0\0\0\0{}", 1002),
    (b"\x8b\x80\0\0\0\0", 1002),
    (b"\x09\x80\0\0\0\0", 1002),
    (b"\x88\x81\0\0\0\0x", 1002),
    // An endless length; not UTF-8.
    (b"\x81\xff\x7f\xff\xff\xff\xff\xff\xff\xff\0\0\0\0", 1009),
    (b"\x81\x82\0\0\0\0\xff\xfe", 1007),
];

/// A close frame of the client, and the code in it.
async fn close_is_answered(client: &mut Client, code: u16) {
    let frame = CloseFrame {
        code: code.into(),
        reason: "bye".into(),
    };
    client.send(Message::Close(Some(frame))).await;
    assert_eq!(client.closed().await, Heard::Closed(code));
    assert_eq!(client.hear().await, Heard::Gone);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_close_frame_is_answered_with_its_code() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&[]).await;
    for (number, code) in [1000, 1001, 4321].into_iter().enumerate() {
        let mut client = connect(&gateway, "alice", "web", "tab", "login").await;
        close_is_answered(&mut client, code).await;
        wait_until("its end is folded", async || {
            house.changes_of("alice").len() == 2 * (number + 1)
        })
        .await;
    }
    gateway.stop(false).await;
    // Also before the client has shown its token, and what is no frame has its code there too.
    let secret = house.data.path().join("secret");
    std::fs::write(&secret, "a secret of at least thirty-two bytes").expect("written");
    let key = secret.to_str().expect("text");
    let gateway = house.gateway(&["--jwt-key", key]).await;
    let dial = Dial::new(gateway.address(), "platform=web&device=d&intent=login");
    close_is_answered(&mut dial.open().await.expect("let in"), 1000).await;
    for (frame, code) in NOT_FRAMES {
        let mut client = dial.open().await.expect("let in");
        client.socket.get_mut().write_all(frame).await.expect("sent");
        assert_eq!(client.closed().await, Heard::Closed(code), "{frame:?}");
    }
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_websocket_frame_ends_the_connection() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&[]).await;
    for (number, (frame, code)) in NOT_FRAMES.into_iter().enumerate() {
        let mut client = connect(&gateway, "alice", "web", "tab", "login").await;
        client.socket.get_mut().write_all(frame).await.expect("sent");
        assert_eq!(client.closed().await, Heard::Closed(code), "{frame:?}");
        wait_until("its end is folded", async || {
            house.changes_of("alice").len() == 2 * (number + 1)
        })
        .await;
        assert_eq!(house.causes("alice", "closed").await.len(), 2 * (number + 1));
    }
    lives(&gateway).await;
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn too_large_a_message_closes() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&["--message-bytes-max", "1024"]).await;
    let mut client = connect(&gateway, "alice", "web", "tab", "login").await;
    client.send(Message::text("x".repeat(1_025))).await;
    assert_eq!(client.closed().await, Heard::Closed(1009));
    // In pieces too.
    let mut client = connect(&gateway, "alice", "web", "tab", "login").await;
    let stream = client.socket.get_mut();
    for number in 0..20 {
        let first: u8 = if number == 0 { 0x01 } else { 0x00 };
        let mut frame = vec![first, 0x80 | 100, 0, 0, 0, 0];
        frame.extend([b'x'; 100]);
        if stream.write_all(&frame).await.is_err() {
            break;
        }
    }
    assert!(matches!(client.closed().await, Heard::Closed(1009) | Heard::Gone));
    lives(&gateway).await;
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_sends_too_large_a_message_reads_why_it_was_closed() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&["--message-bytes-max", "1024"]).await;
    for bytes in [1_025, 100_000, 4 << 20] {
        let mut client = connect(&gateway, "alice", "web", "tab", "login").await;
        // All of it is on its way before anything is read.
        let mut frame = vec![0x81, 0xff];
        frame.extend((bytes as u64).to_be_bytes());
        frame.extend([0; 4]);
        frame.resize(frame.len() + bytes, b'x');
        let sent = client.socket.get_mut().write_all(&frame).await;
        sent.expect("it is read, though not kept");
        assert_eq!(client.closed().await, Heard::Closed(1009), "{bytes}");
    }
    lives(&gateway).await;
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn half_handshakes_keep_nobody_waiting() {
    let house = House::new(json!({})).await;
    let gateway = house
        .gateway(&["--accept-rate", "1000000", "--handshake-ms", "60000"])
        .await;
    let mut half = Vec::new();
    for address in 2..=11 {
        for _ in 0..256 {
            let socket = tokio::net::TcpSocket::new_v4().expect("a socket");
            let from = format!("127.0.0.{address}:0").parse().expect("an address");
            socket.bind(from).expect("one of this machine");
            let mut stream = socket.connect(gateway.address()).await.expect("connected");
            stream.write_all(b"GET / HTTP/1.1\r\n").await.expect("sent");
            half.push(stream);
        }
    }
    // Each of them may take a minute; other clients do not wait for it.
    tokio::time::timeout(PATIENCE / 2, lives(&gateway))
        .await
        .expect("served while the others wait");
    drop(half);
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_websocket_is_answered_with_a_sentence() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&[]).await;
    let long = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(33 << 10));
    let upgrade = "GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";
    let requests = [
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_owned(), 426, "upgrade_required"),
        (
            format!("{upgrade}Sec-WebSocket-Version: 8\r\n\r\n"),
            426,
            "upgrade_required",
        ),
        (
            format!("{upgrade}Sec-WebSocket-Version: 13\r\n\r\n"),
            400,
            "bad_request",
        ),
        (
            "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\nx".to_owned(),
            405,
            "bad_method",
        ),
        ("GET / HTTP/1.1\r\nHost: x\r\n\r\nmore".to_owned(), 400, "bad_request"),
        ("nonsense\r\n\r\n".to_owned(), 400, "bad_request"),
        (long, 431, "head_too_big"),
    ];
    for (request, status, code) in requests {
        let mut stream = TcpStream::connect(gateway.address()).await.expect("connected");
        stream.write_all(request.as_bytes()).await.expect("sent");
        let mut answer = String::new();
        let read = tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await;
        read.expect("it ends").expect("answered");
        let line = answer.lines().next().unwrap_or_default();
        assert!(line.starts_with(&format!("HTTP/1.1 {status} ")), "{line}");
        assert!(answer.contains(&format!("\"code\":\"{code}\"")), "{answer}");
    }
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flood_closes_and_others_notice_nothing() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&["--message-rate-max", "5"]).await;
    let mut client = connect(&gateway, "alice", "web", "tab", "login").await;
    for _ in 0..200 {
        let beat = Message::text(r#"{"type":"heartbeat"}"#);
        if futures_util::SinkExt::send(&mut client.socket, beat).await.is_err() {
            break;
        }
    }
    assert!(matches!(client.closed().await, Heard::Closed(4008) | Heard::Gone));
    lives(&gateway).await;
    house.causes("alice", "closed").await;
    gateway.stop(false).await;
}

/// The memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .expect("a line");
    line.trim()
        .trim_end_matches(" kB")
        .trim()
        .parse::<u64>()
        .expect("a number")
        * 1_024
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_read_is_closed_and_holds_no_memory() {
    let house = House::new(json!({"login": "multi"})).await;
    let gateway = house.gateway(&["--write-ms", "500"]).await;
    let mut slow = Vec::new();
    for number in 0..20 {
        let mut client = connect(&gateway, &format!("slow-{number}"), "web", "tab", "login").await;
        client.ask(json!({"type": "subscribe", "users": ["busy"]})).await;
        slow.push(client);
    }
    let _busy = connect(&gateway, "busy", "web", "tab", "login").await;
    let before = resident();
    let text = "y".repeat(90);
    // More than the buffers between can hold, for each of them.
    for round in 0..60 {
        for number in 0..1_000 {
            house.publish(
                json!({"type": "custom_status", "user": "busy", "text": format!("{text}{round:03}{number:04}")}),
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        if gateway.edge().roster.count() == 1 {
            break;
        }
    }
    wait_until("all of them are closed", async || gateway.edge().roster.count() == 1).await;
    let grown = resident().saturating_sub(before);
    assert!(grown < 200 << 20, "{grown} bytes more, most of them the log in memory");
    for number in 0..20 {
        let user = format!("slow-{number}");
        house.causes(&user, "closed").await;
    }
    lives(&gateway).await;
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handshake_has_its_time_and_no_more() {
    let house = House::new(json!({})).await;
    let secret = house.data.path().join("secret");
    std::fs::write(&secret, "a secret of at least thirty-two bytes").expect("written");
    let key = secret.to_str().expect("text");
    let gateway = house.gateway(&["--handshake-ms", "3000", "--jwt-key", key]).await;
    // Says nothing; says half; says all but who it is.
    let mut mute = TcpStream::connect(gateway.address()).await.expect("connected");
    let mut half = TcpStream::connect(gateway.address()).await.expect("connected");
    half.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nX: ").await.expect("sent");
    let query = "platform=web&device=d&intent=login";
    let mut nobody = Dial::new(gateway.address(), query).open().await.expect("let in");
    for stream in [&mut mute, &mut half] {
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        // An end or a reset, but an end.
        let _ = ended.expect("it ends");
        assert!(rest.is_empty());
    }
    let said = nobody.frame().await;
    assert_eq!(
        (&said["type"], &said["code"]),
        (&json!("error"), &json!("unauthorized"))
    );
    let said = said["message"].as_str().expect("a sentence");
    assert!(said.contains("3000 ms") && said.contains("bearer.TOKEN"), "{said}");
    assert_eq!(nobody.hear().await, Heard::Closed(4010));
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_behind_a_proxy_has_the_address_that_the_proxy_says() {
    let house = House::new(json!({"login": "multi"})).await;
    let gateway = house
        .gateway(&["--trust-forwarded", "--address-connections-max", "2"])
        .await;
    let mut open = Vec::new();
    for (user, forwarded, address) in [
        ("plain", "1.2.3.4, 5.6.7.8", "5.6.7.8"),
        ("port", "1.2.3.4, 5.6.7.8:443", "5.6.7.8"),
        ("six", "[2001:db8::1]:443", "2001:db8::1"),
        ("unknown", "5.6.7.8, unknown", "127.0.0.1"),
        ("empty", "5.6.7.8,", "127.0.0.1"),
    ] {
        let dial = dial(&gateway, user, "web", "tab", "login").header("x-forwarded-for", forwarded);
        let mut client = dial.open().await.expect("let in");
        assert_eq!(client.frame().await["type"], "hello");
        let connect = house.published("connect", user).await;
        assert_eq!(connect["client"], format!("{address} tests/1"), "{forwarded}");
        open.push(client);
    }
    // A client without an address shares the limit of the proxy.
    let dial = dial(&gateway, "more", "web", "tab", "login").header("x-forwarded-for", "unknown");
    assert_eq!(dial.refused().await.code, "too_many_of_address");
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_request_is_no_connection() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&[]).await;
    let endless = vec![b'x'; 1 << 20];
    let requests: [&[u8]; 4] = [
        b"\x16\x03\x01\x02\0\x01\0",
        b"GET / HTTP/1.1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: x\r\n\r\n",
        &endless,
    ];
    for request in requests {
        let mut stream = TcpStream::connect(gateway.address()).await.expect("connected");
        // It may be cut off in the middle.
        let _ = stream.write_all(request).await;
        let mut answer = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await;
        let _ = ended.expect("it ends");
    }
    lives(&gateway).await;
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_limit_is_kept_and_what_is_free_again_is_given() {
    let house = House::new(json!({"login": "multi", "instances": {"web": 32}})).await;
    let limits = [
        "--connections-max",
        "6",
        "--user-connections-max",
        "2",
        "--address-connections-max",
        "4",
    ];
    let gateway = house.gateway(&limits).await;
    let mut open: Vec<Client> = Vec::new();
    for device in ["1", "2"] {
        open.push(connect(&gateway, "alice", "web", device, "login").await);
    }
    let mut third = dial(&gateway, "alice", "web", "3", "login")
        .open()
        .await
        .expect("let in");
    assert_eq!(third.frame().await["code"], "too_many_of_user");
    assert_eq!(third.hear().await, Heard::Closed(4011));
    for user in ["bob", "carol"] {
        open.push(connect(&gateway, user, "web", "d", "login").await);
    }
    let refused = dial(&gateway, "dave", "web", "d", "login").refused().await;
    assert_eq!((refused.status, &*refused.code), (429, "too_many_of_address"));
    assert!(refused.retry_after.is_some_and(|seconds| (1..=5).contains(&seconds)));
    let mut elsewhere = dial(&gateway, "dave", "web", "d", "login");
    elsewhere.from = Some("127.0.0.2");
    for user in ["dave", "erin"] {
        elsewhere.query = format!("user={user}&platform=web&device=d&intent=login");
        let mut client = elsewhere.open().await.expect("let in");
        client.frame().await;
        open.push(client);
    }
    let refused = elsewhere.refused().await;
    assert_eq!((refused.status, &*refused.code), (503, "full"));
    open.clear();
    wait_until("they have gone", async || gateway.edge().roster.count() == 0).await;
    for device in ["1", "2"] {
        // What counts for an address is given back a moment after the connection has left the roster.
        wait_until("there is room again", async || {
            let Ok(mut client) = dial(&gateway, "alice", "web", device, "login").open().await else {
                return false;
            };
            let is_greeted = client.frame().await["type"] == "hello";
            open.push(client);
            is_greeted
        })
        .await;
    }
    gateway.stop(false).await;
}
