//! The gateway: memory of an idle connection, and what batched heartbeats save.
//!
//! The gateway is a separate process, so that its memory can be measured.

#[path = "../tests/gateway/certificate.rs"]
mod certificate;

use certificate::{certify, trusting};
use futures_util::{StreamExt as _, stream};
use rollcall::presence::event::{ConnRef, DeviceRef, Event, HeartbeatEntry};
use rollcall::presence::{Conn, Epoch};
use rollcall::schema::avro;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::{WebSocketStream, client_async_with_config};

const CONNECTIONS: usize = 8_000;

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
    let [plain, tls] = [false, true].map(|with_tls| runtime.block_on(idle_connection_bytes(with_tls)));
    println!(
        "an idle connection, of {CONNECTIONS}: {:.1} KiB of the gateway's resident memory; with TLS {:.1} KiB ({:.2} times as much)",
        plain / 1_024.0,
        tls / 1_024.0,
        tls / plain
    );
}

async fn idle_connection_bytes(with_tls: bool) -> f64 {
    let data = tempfile::tempdir().expect("a directory");
    let tls = with_tls.then(|| trusting(certify(data.path())));
    let path = |name: &str| data.path().join(name).to_str().expect("text").to_owned();
    let engine = Process::start(
        &["serve", "--listen", "127.0.0.1:0", "--data", &path("engine")],
        "console  http://",
    );
    let url = format!("http://{}", engine.address);
    let (data, certificate, key) = (path("gateway"), path("cert.pem"), path("key.pem"));
    let mut arguments = vec![
        "gateway",
        "--listen",
        "127.0.0.1:0",
        "--engine",
        &url,
        "--data",
        &data,
        "--gateway-insecure",
        "--address-connections-max",
        "100000",
    ];
    if with_tls {
        arguments.extend(["--tls-cert", &certificate, "--tls-key", &key]);
    }
    let line = if with_tls { "clients  wss://" } else { "clients  ws://" };
    let gateway = Process::start(&arguments, line);
    // One-time allocations are done after the first thousand connections.
    let open = async |numbers: std::ops::Range<usize>| -> Vec<_> {
        let connecting = numbers.map(|number| connect(gateway.address, tls.as_ref(), number));
        stream::iter(connecting).buffer_unordered(64).collect().await
    };
    let first = open(0..1_000).await;
    let before = gateway.resident_bytes();
    let rest = open(1_000..CONNECTIONS).await;
    tokio::time::sleep(std::time::Duration::from_secs(2)).await;
    let after = gateway.resident_bytes();
    let bytes = after.saturating_sub(before) as f64 / rest.len() as f64;
    drop((first, rest));
    bytes
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
    println!(
        "{BEATS} heartbeats: {} records, {} bytes; batched: {} records, {} bytes",
        alone.len(),
        bytes(&alone),
        gathered.len(),
        bytes(&gathered)
    );
}
