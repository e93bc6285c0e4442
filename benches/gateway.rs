//! The gateway: memory of an idle connection, one change delivered to many connections, and what batched heartbeats save.
//!
//! The gateway is a separate process, so that its memory can be measured.

#[path = "../tests/gateway/certificate.rs"]
mod certificate;
#[expect(dead_code, reason = "other benchmarks need more of it")]
mod measure;
#[expect(dead_code, reason = "the memory of an idle connection is a difference")]
mod processor;

use certificate::{certify, trusting};
use futures_util::{SinkExt as _, StreamExt as _, stream};
use measure::{figure, heading};
use processor::cpu_seconds;
use rollcall::presence::event::{ConnRef, DeviceRef, Event, HeartbeatEntry};
use rollcall::presence::{Conn, Epoch};
use rollcall::schema::avro;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

const CONNECTIONS: usize = 8_000;
/// Connections that are subscribed to one user, and how often this user changes.
const WATCHERS: usize = 8_000;
const WATCHED_CHANGES: usize = 40;

struct Process {
    child: Child,
    address: SocketAddr,
}

impl Process {
    fn start(arguments: &[&str], line: &str) -> Process {
        let mut child = Command::new(env!("CARGO_BIN_EXE_rollcall"))
            .args(arguments)
            .args(["--log-level", "error"])
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let address = lines
            .map(|line| line.expect("text"))
            .find_map(|text| Some(text.strip_prefix(line)?.trim_end_matches('/').to_owned()));
        let address = address.expect("it says where it is").parse().expect("an address");
        Process { child, address }
    }

    fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("Linux");
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
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the bytes of one connection, with or without TLS.
trait Bytes: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Bytes for S {}

async fn connect(address: SocketAddr, tls: Option<&TlsConnector>, number: usize) -> WebSocketStream<Box<dyn Bytes>> {
    let url = format!("ws://{address}/?user=user-{number:07}&platform=android&device=device-{number:07}&intent=login");
    let stream = TcpStream::connect(address).await.expect("connected");
    let stream: Box<dyn Bytes> = match tls {
        Some(tls) => {
            let name = "localhost".try_into().expect("a name");
            Box::new(tls.connect(name, stream).await.expect("trusted"))
        }
        None => Box::new(stream),
    };
    let small = WebSocketConfig::default().read_buffer_size(1_024).write_buffer_size(0);
    let (mut socket, _) = client_async_with_config(url, stream, Some(small))
        .await
        .expect("accepted");
    socket.next().await.expect("a hello").expect("a hello");
    socket
}

fn main() {
    heartbeats();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    runtime.block_on(fan_out());
    let [plain, tls] = [false, true].map(|with_tls| runtime.block_on(idle_connection_bytes(with_tls)));
    heading(&format!("the gateway, {CONNECTIONS} idle connections"));
    let note = "of the gateway's process; the kernel's memory for the socket is not included";
    for (id, what, bytes) in [
        ("plain", "an idle connection, resident", plain),
        ("tls", "an idle connection with TLS, resident", tls),
    ] {
        figure(&format!("gateway.{id}.kib"), what, &[bytes / 1_024.0], "KiB")
            .note(note)
            .show();
    }
}

/// An engine and a gateway, with the client's side of TLS if it has TLS.
struct Edge {
    gateway: Process,
    engine: Process,
    tls: Option<TlsConnector>,
    _data: tempfile::TempDir,
}

fn start(with_tls: bool) -> Edge {
    let data = tempfile::tempdir().expect("a directory");
    let tls = with_tls.then(|| trusting(certify(data.path())));
    let path = |name: &str| data.path().join(name).to_str().expect("text").to_owned();
    let engine = Process::start(
        &["serve", "--listen", "127.0.0.1:0", "--data", &path("engine")],
        "console  http://",
    );
    let url = format!("http://{}", engine.address);
    let (own, certificate, key) = (path("gateway"), path("cert.pem"), path("key.pem"));
    let mut arguments = vec![
        "gateway",
        "--listen",
        "127.0.0.1:0",
        "--engine",
        &url,
        "--data",
        &own,
        "--gateway-insecure",
        "--address-connections-max",
        "100000",
    ];
    if with_tls {
        arguments.extend(["--tls-cert", &certificate, "--tls-key", &key]);
    }
    let line = if with_tls { "clients  wss://" } else { "clients  ws://" };
    Edge {
        gateway: Process::start(&arguments, line),
        engine,
        tls,
        _data: data,
    }
}

async fn idle_connection_bytes(with_tls: bool) -> f64 {
    let edge = start(with_tls);
    let gateway = &edge.gateway;
    // One-time allocations are done after the first thousand connections.
    let open = async |numbers: std::ops::Range<usize>| -> Vec<_> {
        let connecting = numbers.map(|number| connect(gateway.address, edge.tls.as_ref(), number));
        stream::iter(connecting).buffer_unordered(64).collect().await
    };
    let first = open(0..1_000).await;
    let before = gateway.resident_bytes();
    let rest = open(1_000..CONNECTIONS).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let after = gateway.resident_bytes();
    let bytes = after.saturating_sub(before) as f64 / rest.len() as f64;
    drop((first, rest));
    bytes
}

/// One user changes, and everybody else is subscribed to it.
async fn fan_out() {
    heading(&format!(
        "fan-out: {WATCHERS} connections of one gateway, all subscribed to one user"
    ));
    let edge = start(false);
    let address = edge.gateway.address;
    let received = Arc::new(AtomicUsize::new(0));
    #[expect(
        clippy::async_yields_async,
        reason = "it is connected now, and counts until all have come"
    )]
    let watch = async |number: usize| {
        let mut socket = connect(address, None, number).await;
        let frame = r#"{"type":"subscribe","users":["watched"]}"#;
        socket.send(frame.into()).await.expect("sent");
        let answer = socket.next().await.expect("an answer").expect("an answer");
        let answer = answer.to_text().expect("text").to_owned();
        assert!(answer.contains(r#""subscribed""#), "{answer}");
        let received = received.clone();
        tokio::spawn(async move {
            let mut at = Vec::with_capacity(WATCHED_CHANGES);
            while at.len() < WATCHED_CHANGES {
                let frame = socket.next().await.expect("a frame").expect("a frame");
                if frame.to_text().is_ok_and(|text| text.contains(r#""type":"change""#)) {
                    at.push(Instant::now());
                    received.fetch_add(1, Ordering::Relaxed);
                }
            }
            at
        })
    };
    let watchers: Vec<_> = stream::iter((0..WATCHERS).map(watch))
        .buffer_unordered(64)
        .collect()
        .await;
    let url = format!("http://{}/v1/events", edge.engine.address);
    let process = edge.gateway.child.id().to_string();
    let before = cpu_seconds(&process);
    let mut published = Vec::new();
    for number in 0..WATCHED_CHANGES {
        let (kind, more) = match number % 2 {
            0 => ("connect", r#","intent":"login""#),
            _ => ("disconnect", r#","reason":"closed""#),
        };
        let conn = number / 2 + 1;
        let body = format!(
            r#"[{{"type":"{kind}","user":"watched","platform":"android","device":"d1","gateway":"elsewhere","epoch":1,"conn":{conn}{more}}}]"#
        );
        published.push(Instant::now());
        let url = url.clone();
        let posted = tokio::task::spawn_blocking(move || ureq::post(&url).send(body));
        posted.await.expect("posted").expect("acknowledged");
        while received.load(Ordering::Relaxed) < WATCHERS * (number + 1) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    let cpu = cpu_seconds(&process) - before;
    let mut times = Vec::new();
    for watcher in watchers {
        let at = watcher.await.expect("it received all");
        times.extend(
            at.iter()
                .zip(&published)
                .map(|(at, since)| (*at - *since).as_secs_f64() * 1e3),
        );
    }
    assert_eq!(
        times.len(),
        WATCHERS * WATCHED_CHANGES,
        "every change once to each connection"
    );
    times.sort_by(f64::total_cmp);
    let rate = times.len() as f64 / cpu;
    let what = "deliveries for a second of the gateway's processor time";
    figure("gateway.fan_out.rate", what, &[rate], "/s").show();
    for (name, part) in [("p50", 0.5), ("p99", 0.99), ("max", 1.0)] {
        let at = times[((times.len() - 1) as f64 * part) as usize];
        let what = format!("from POST to a connection, {name}");
        figure(&format!("gateway.fan_out.{name}"), &what, &[at], "ms")
            .note("the clients read on the same cores")
            .show();
    }
}

/// A thousand heartbeats, as single records and batched for four partitions.
fn heartbeats() {
    const BEATS: usize = 1_000;
    const PARTITIONS: usize = 4;
    let who = |number: usize| DeviceRef {
        user: format!("user-{number:07}").into(),
        platform: "android".into(),
        device: format!("device-{number:07}").into(),
    };
    let bytes = |events: &[Event<'_>]| -> usize {
        let bytes = |event: &Event<'_>| {
            let mut bytes = Vec::new();
            avro::encode_event(event, &mut bytes);
            // A record's key is its user.
            bytes.len() + event.user().map_or(0, str::len)
        };
        events.iter().map(bytes).sum()
    };
    let alone: Vec<Event<'_>> = (0..BEATS)
        .map(|number| Event::Heartbeat {
            who: who(number),
            via: ConnRef {
                gateway: "edge-1".into(),
                epoch: Epoch(7),
                conn: Conn(number as u64),
            },
        })
        .collect();
    let gathered: Vec<Event<'_>> = (0..PARTITIONS)
        .map(|partition| Event::Heartbeats {
            gateway: "edge-1".into(),
            epoch: Epoch(7),
            beats: (partition..BEATS)
                .step_by(PARTITIONS)
                .map(|number| HeartbeatEntry {
                    who: who(number),
                    conn: Conn(number as u64),
                })
                .collect(),
        })
        .collect();
    let alive: Vec<Event<'_>> = (0..PARTITIONS)
        .map(|partition| Event::Alive {
            gateway: "edge-1".into(),
            epoch: Epoch(7),
            conns: (partition..BEATS).step_by(PARTITIONS).map(|n| Conn(n as u64)).collect(),
        })
        .collect();
    heading(&format!(
        "{BEATS} heartbeats, ids of 12 and 14 bytes, {PARTITIONS} partitions"
    ));
    for (id, what, events) in [
        ("heartbeat", "one record each", &alone),
        ("heartbeats", "batched", &gathered),
        ("alive", "by their connections", &alive),
    ] {
        let each = bytes(events) as f64 / BEATS as f64;
        let note = format!("{} records", events.len());
        figure(
            &format!("gateway.bytes.{id}"),
            &format!("{what}, with the keys, each"),
            &[each],
            "bytes",
        )
        .note(&note)
        .show();
    }
}
