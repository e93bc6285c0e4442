//! Spans of traced events: what a receiver of OTLP gets from the real program.

#[path = "otlp/receiver.rs"]
mod receiver;
mod server;
mod usersig;

use futures_util::{SinkExt as _, StreamExt as _};
use receiver::{Received, Receiver};
use serde_json::{Value, json};
use server::{ANYWHERE, PATIENCE, Server, rollcall, wait_until};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use usersig::signed_query;

/// The span of the publisher.
const PUBLISHER: &str = "b7ad6b7169203331";
// `SpanKind` in OTLP.
const INTERNAL: i32 = 1;
const SERVER: i32 = 2;
const CLIENT: i32 = 3;
const PRODUCER: i32 = 4;
const CONSUMER: i32 = 5;

fn traceparent(trace: &str, flags: &str) -> String {
    format!("00-{trace}-{PUBLISHER}-{flags}")
}

fn connect(user: &str) -> Value {
    json!({"type": "connect", "user": user, "platform": "android", "device": "d1", "gateway": "g1", "epoch": 1, "conn": 1,
        "intent": "login"})
}

/// Posts events and waits until they are folded and their changes committed.
#[track_caller]
fn post(server: &Server, traceparent: &str, events: &Value) {
    let answer = ureq::post(format!("http://{}/v1/events?wait=applied", server.address))
        .config()
        .timeout_global(Some(PATIENCE))
        .proxy(None)
        .build()
        .header("traceparent", traceparent)
        .send(events.to_string());
    assert_eq!(answer.expect("it is taken").status(), 200);
}

fn of(spans: &[Received], name: &str) -> Vec<Received> {
    spans.iter().filter(|span| span.name == name).cloned().collect()
}

#[track_caller]
fn only(spans: &[Received], name: &str) -> Received {
    match of(spans, name).as_slice() {
        [one] => one.clone(),
        some => panic!("{} spans {name}: {spans:#?}", some.len()),
    }
}

/// Reads a subscription until a user is in it.
fn follow_until(address: SocketAddr, user: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("connected");
    stream.set_read_timeout(Some(PATIENCE)).expect("set");
    write!(
        stream,
        "GET /v1/changes?after=earliest HTTP/1.1\r\nHost: {address}\r\n\r\n"
    )
    .expect("asked");
    let mut text = String::new();
    let mut lines = BufReader::new(stream);
    while !text.contains(&format!("\"user\":\"{user}\"")) {
        assert!(lines.read_line(&mut text).expect("a line") > 0, "{text}");
    }
    text
}

#[test]
fn a_traced_event_is_followed_from_its_request_to_its_deliveries_and_an_unsampled_one_is_not() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const OF_CLIENT: &str = "1bf7651916cd43dd8448eb211c80319c";
    const UNSAMPLED: &str = "2cf7651916cd43dd8448eb211c80319c";
    let directory = tempfile::tempdir().expect("a directory");
    let receiver = Receiver::open();
    let url = receiver.url();
    let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", url.as_str());
    let gateway = ["--gateway", ANYWHERE, "--gateway-insecure"];
    let environment = [endpoint, ("OTEL_BSP_SCHEDULE_DELAY", "20")];
    let server = Server::start(&directory.path().join("data"), ANYWHERE, &gateway, &environment);
    let mut edge = Value::Null;
    wait_until("its gateway is open", || {
        let (_, body) = server.get("/v1/edge", "");
        edge = serde_json::from_str(&body).expect("JSON");
        edge["edge"]["url"].is_string()
    });
    let hook = format!("{}/hook", receiver.url());
    let engine = format!("http://{}", server.address);
    // Its spans are exported when it stops.
    let mut bridge = rollcall(&["webhook", "--engine", &engine, "--to", &hook, "--log-level", "error"])
        .args(["--from", "earliest"])
        .envs([endpoint, ("OTEL_BSP_SCHEDULE_DELAY", "3600000")])
        .current_dir(directory.path())
        .stderr(Stdio::null())
        .spawn()
        .expect("started");

    // Bob's client has a trace of its own, and is subscribed to Alice.
    let url = format!(
        "{}/?platform=web&device=d&intent=login&user=bob",
        edge["edge"]["url"].as_str().expect("a URL")
    );
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let mut request = url.into_client_request().expect("a request");
    let header = traceparent(OF_CLIENT, "01").parse().expect("a header");
    request.headers_mut().insert("traceparent", header);
    let mut bob = runtime.block_on(async {
        let (mut bob, _) = connect_async(request).await.expect("it is let in");
        let subscribe = json!({"type": "subscribe", "users": ["alice"]}).to_string();
        bob.send(Message::Text(subscribe.into())).await.expect("sent");
        bob
    });
    let mut frame_of = |kind: &str| {
        runtime.block_on(async {
            loop {
                let heard = tokio::time::timeout(PATIENCE, bob.next()).await.expect("in time");
                if let Message::Text(text) = heard.expect("it is open").expect("a message")
                    && serde_json::from_str::<Value>(&text).expect("JSON")["type"] == kind
                {
                    return;
                }
            }
        });
    };
    frame_of("subscribed");

    post(&server, &traceparent(UNSAMPLED, "00"), &json!([connect("carol")]));
    server.publish("", &[connect("dave")]);
    post(&server, "00-no-trace-01", &json!([connect("erin")]));
    post(&server, &traceparent(TRACE, "01"), &json!([connect("alice")]));
    frame_of("change");
    let followed = follow_until(server.address, "alice");
    wait_until("Alice's and Bob's callbacks were posted", || {
        receiver.callbacks().iter().flatten().count() == 2 && receiver.callbacks().len() == 5
    });
    let stopped = Command::new("kill").args(["-TERM", &bridge.id().to_string()]).status();
    assert!(stopped.expect("kill is installed").success());
    assert!(bridge.wait().expect("it ends").success());
    wait_until("every delivery is there", || {
        let spans = receiver.spans();
        let by = |by: &str| {
            let delivered = |span: &&Received| {
                span.attributes
                    .get("rollcall.delivery")
                    .is_some_and(|other| other == by)
            };
            spans
                .iter()
                .filter(delivered)
                .filter(|span| span.trace == TRACE)
                .count()
        };
        // The bridge follows by server-sent events too.
        by("sse") == 2 && by("websocket") == 1 && by("webhook") == 1
    });

    let all = receiver.spans();
    let known = [TRACE, OF_CLIENT];
    assert!(all.iter().all(|span| known.contains(&&*span.trace)), "{all:#?}");
    let spans: Vec<Received> = all.iter().filter(|span| span.trace == TRACE).cloned().collect();
    let request = only(&spans, "POST /v1/events");
    assert_eq!((request.kind, &*request.parent), (SERVER, PUBLISHER));
    assert_eq!(request.attribute("http.route"), "/v1/events");
    assert_eq!(request.attribute("http.response.status_code"), "200");
    assert_eq!(request.resource["service.name"], "rollcall");
    assert_eq!(request.resource["service.version"], env!("CARGO_PKG_VERSION"));
    let send = only(&spans, "send events");
    assert_eq!((send.kind, &send.parent), (PRODUCER, &request.id));
    let process = only(&spans, "process events");
    // The record names the append.
    assert_eq!((process.kind, &process.parent), (CONSUMER, &send.id));
    for span in [&send, &process] {
        assert_eq!(span.attribute("messaging.system"), "rollcall");
        assert_eq!(span.attribute("messaging.destination.name"), "events");
    }
    assert_eq!(
        send.attribute("messaging.message.id"),
        process.attribute("messaging.message.id")
    );
    assert_eq!(send.attribute("messaging.operation.type"), "send");
    assert_eq!(process.attribute("messaging.operation.type"), "process");
    assert_eq!(process.attribute("rollcall.event.type"), "connect");
    assert_eq!(process.attribute("rollcall.outputs"), "1");
    let fold = only(&spans, "fold");
    assert_eq!((fold.kind, &fold.parent), (INTERNAL, &process.id));
    let commit = only(&spans, "send changes");
    assert_eq!((commit.kind, &commit.parent), (PRODUCER, &process.id));
    assert_eq!(commit.attribute("messaging.destination.name"), "changes");
    let delivered = of(&spans, "deliver changes");
    assert_eq!(delivered.len(), 3);
    for span in &delivered {
        assert_eq!((span.kind, &span.parent), (PRODUCER, &send.id));
        assert_eq!(
            span.attribute("rollcall.event.id"),
            process.attribute("messaging.message.id")
        );
    }
    let callback = only(&spans, "POST");
    assert_eq!((callback.kind, &callback.parent), (CLIENT, &send.id));
    assert_eq!(callback.resource["service.name"], "rollcall-webhook");
    assert_eq!(callback.attribute("http.response.status_code"), "200");
    assert_eq!(spans.len(), 9, "{spans:#?}");
    // The receiver of a callback, and a follower, can go on with the trace.
    let above = |id: &str| format!("00-{TRACE}-{id}-01");
    assert!(receiver.callbacks().contains(&Some(above(&callback.id))));
    assert!(
        followed.contains(&format!("traceparent: {}\n", above(&send.id))),
        "{followed}"
    );

    // What Bob's client began.
    let spans: Vec<Received> = all.iter().filter(|span| span.trace == OF_CLIENT).cloned().collect();
    let send = only(&spans, "send events");
    assert_eq!((send.kind, &*send.parent), (PRODUCER, PUBLISHER));
    assert_eq!(only(&spans, "process events").parent, send.id);

    // Who it was about is in the log, and not in a trace.
    for value in all.iter().flat_map(|span| span.attributes.values()) {
        assert!(!value.contains("alice") && !value.contains("bob"), "{value}");
    }
}

#[test]
fn a_kick_by_tencents_command_is_followed_from_its_request_like_any_other_event() {
    const TRACE: &str = "3df7651916cd43dd8448eb211c80319c";
    const APP: u64 = 1_400_000_000;
    const KEY: &str = "5bd2850fff3ecb11d7c805251c51ee46";
    const KICK: &str = "/v4/im_open_login_svc/kick";
    let directory = tempfile::tempdir().expect("a directory");
    let receiver = Receiver::open();
    let url = receiver.url();
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*url),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ("ROLLCALL_TIM_KEY", KEY),
    ];
    let app = APP.to_string();
    let more = ["--tim-app", app.as_str()];
    let server = Server::start(&directory.path().join("data"), ANYWHERE, &more, &environment);
    server.publish("", &[connect("alice")]);
    wait_until("Alice is online", || server.get("/v1/users/alice", "").0 == 200);
    let now_s = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("past 1970")
        .as_secs();
    let signed = signed_query(APP, KEY, "administrator", now_s);
    let answer = ureq::post(format!("http://{}{KICK}?{signed}", server.address))
        .config()
        .timeout_global(Some(PATIENCE))
        .proxy(None)
        .build()
        .header("traceparent", traceparent(TRACE, "01"))
        .send(json!({"UserID": "alice"}).to_string());
    let answer = answer.expect("it is taken").body_mut().read_to_string().expect("text");
    assert!(answer.contains("\"ErrorCode\":0"), "{answer}");
    let of_request = format!("POST {KICK}");
    let mut spans = Vec::new();
    wait_until("the spans of request and event are there", || {
        spans = receiver.spans();
        [&*of_request, "send events", "process events"]
            .iter()
            .all(|name| !of(&spans, name).is_empty())
    });
    let request = only(&spans, &of_request);
    assert_eq!(
        (&*request.trace, request.kind, &*request.parent),
        (TRACE, SERVER, PUBLISHER)
    );
    assert_eq!(request.attribute("http.route"), KICK);
    let send = only(&spans, "send events");
    assert_eq!((send.kind, &send.parent), (PRODUCER, &request.id));
    let process = only(&spans, "process events");
    assert_eq!((process.kind, &process.parent), (CONSUMER, &send.id));
    assert_eq!(process.attribute("rollcall.event.type"), "kick");
}

#[test]
fn a_receiver_that_is_away_holds_nobody_up_and_what_it_misses_is_counted() {
    let directory = tempfile::tempdir().expect("a directory");
    // It takes connections, as the kernel does, and answers nothing.
    let away = TcpListener::bind(ANYWHERE).expect("a port");
    let endpoint = format!("http://{}", away.local_addr().expect("an address"));
    let environment = [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", &*endpoint),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "500"),
        ("OTEL_BSP_SCHEDULE_DELAY", "20"),
        ("OTEL_BSP_MAX_QUEUE_SIZE", "4"),
    ];
    let server = Server::start(&directory.path().join("data"), ANYWHERE, &[], &environment);
    let figure = |result: &str| -> f64 {
        let (_, text) = server.get("/metrics", "");
        let name = format!("rollcall_spans_total{{result=\"{result}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.expect("it is shown from the start").parse().expect("a number")
    };
    assert_eq!(figure("queue_full") + figure("not_accepted"), 0.0);
    for user in 0..10 {
        let trace = traceparent(&format!("{:032x}", user + 1), "01");
        post(&server, &trace, &json!([connect(&format!("user-{user}"))]));
    }
    wait_until("some did not fit", || figure("queue_full") > 0.0);
    wait_until("some were given up", || figure("not_accepted") > 0.0);
    assert_eq!(figure("exported"), 0.0);
}

#[test]
fn a_setting_that_cannot_be_followed_is_a_warning_and_presence_goes_on() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    for (name, value, words) in [
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "only http/protobuf is supported"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "a=b,secret", "pair 2 is not one"),
        (
            "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE",
            "no-such-file",
            "OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE cannot be used",
        ),
    ] {
        let mut child = rollcall(&["serve", "--listen", ANYWHERE, "--log-level", "warn", "--data"])
            .arg(&data)
            .envs([("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9"), (name, value)])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("started");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let serves = lines.map_while(Result::ok).any(|line| line.starts_with("console "));
        child.kill().expect("killed");
        let said = child.wait_with_output().expect("it has ended").stderr;
        let said = String::from_utf8_lossy(&said);
        assert!(
            serves && said.contains("no spans are exported") && said.contains(words),
            "{said}"
        );
    }
}
