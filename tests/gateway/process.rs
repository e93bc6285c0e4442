//! The real binary: a separate gateway and its engine, killed, stopped, cut off.

use crate::client::{Client, Dial, Heard, PATIENCE};
use crate::house::wait_until;
use futures_util::{StreamExt as _, stream};
use rollcall::clock::SystemClock;
use rollcall::gateway::uplink::http::HttpUplink;
use rollcall::gateway::uplink::{Uplink as _, UserSnapshot, UserUpdate};
use rollcall::log::local::{LocalLog, Settings};
use rollcall::log::{Log as _, NewRecord};
use rollcall::presence::event::Event;
use rollcall::presence::{Epoch, Partition};
use rollcall::schema::avro::encode_event;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// A running `rollcall`; killed when dropped.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
}

impl Process {
    /// Starts it and waits until it says where it is, on a line that begins so.
    fn start(arguments: &[&str], line: &str) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
        command.args(arguments).args(["--log-level", "error"]);
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        // What is set where the tests run is not what they are about.
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ROLLCALL_") || name == "RUST_LOG") {
            command.env_remove(name);
        }
        let mut child = command.spawn().expect("started");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let address = lines
            .map(|line| line.expect("text"))
            .find_map(|text| Some(text.strip_prefix(line)?.trim_end_matches('/').to_owned()))
            .expect("it says where it is");
        Process {
            child,
            address: address.parse().expect("an address"),
        }
    }

    pub fn engine(data: &Path, listen: &str) -> Process {
        Process::engine_under(data, listen, &json!({"login": "multi"}))
    }

    pub fn engine_under(data: &Path, listen: &str, rules: &Value) -> Process {
        let policy = data.join("policy.json");
        std::fs::write(&policy, rules.to_string()).expect("written");
        let (data, policy) = (data.join("engine"), policy);
        let arguments = [
            "serve",
            "--listen",
            listen,
            "--data",
            data.to_str().expect("text"),
            "--policy",
            policy.to_str().expect("text"),
            // It is started again on what it had.
            "--policy-if-new",
        ];
        Process::start(&arguments, "console  http://")
    }

    pub fn gateway(engine: &Process, data: &Path, name: &str) -> Process {
        let url = format!("http://{}", engine.address);
        let arguments = [
            "gateway",
            "--listen",
            "127.0.0.1:0",
            "--engine",
            &url,
            "--data",
            data.to_str().expect("text"),
            "--gateway-name",
            name,
            "--gateway-insecure",
            "--lease-ms",
            &LEASE_MS.to_string(),
            "--drain-ms",
            "2000",
        ];
        Process::start(&arguments, "clients  ws://")
    }

    fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    async fn terminate(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        let signalled = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(signalled.expect("kill is installed").success());
        let mut status = None;
        wait_until("it ends", async || {
            status = self.child.try_wait().expect("waited for");
            status.is_some()
        })
        .await;
        status.and_then(|status| status.code())
    }

    fn dial(&self, user: &str, intent: &str) -> Dial {
        Dial::new(
            self.address,
            format!("user={user}&platform=web&device=tab&intent={intent}"),
        )
    }

    async fn connect(&self, user: &str, intent: &str) -> Client {
        let mut client = self.dial(user, intent).open().await.expect("let in");
        assert_eq!(client.frame_of("hello").await["user"], user);
        client
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Ended already, where all went well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

const LEASE_MS: u64 = 6_000;

/// How many changes of each cause every user has had, as they come.
#[derive(Default)]
struct Tally(BTreeMap<Box<str>, Vec<UserUpdate>>);

impl Tally {
    /// Takes in what comes until every user has had so many.
    async fn until_all_have(&mut self, changes: &mut mpsc::Receiver<UserUpdate>, users: usize, each: usize) {
        let all = |tally: &Tally| tally.0.values().filter(|received| received.len() >= each).count();
        while all(self) < users {
            let received = tokio::time::timeout(PATIENCE, changes.recv())
                .await
                .expect("all of them come");
            let received = received.expect("it goes on");
            self.0.entry(received.user.clone()).or_default().push(received);
        }
    }

    fn causes(&self) -> Vec<Vec<&str>> {
        let mut causes: Vec<Vec<&str>> = self
            .0
            .values()
            .map(|received| received.iter().map(|received| &*received.cause).collect())
            .collect();
        causes.dedup();
        causes
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn users_of_a_killed_gateway_leave_once_with_its_lease_and_return_once_elsewhere() {
    const USERS: usize = 2_000;
    let data = tempfile::tempdir().expect("a directory");
    let engine = Process::engine(data.path(), "127.0.0.1:0");
    let first = Process::gateway(&engine, data.path(), "first");
    let second = Process::gateway(&engine, data.path(), "second");
    let uplink = HttpUplink::open(&format!("http://{}", engine.address), None)
        .await
        .expect("open");
    let mut changes = uplink.changes().await.expect("followed");
    let all_connect = async |gateway: &Process, intent: &'static str| -> Vec<Client> {
        let connecting = (0..USERS).map(async |number| gateway.connect(&format!("user-{number}"), intent).await);
        stream::iter(connecting).buffer_unordered(100).collect().await
    };
    let clients = all_connect(&first, "login").await;
    let mut tally = Tally::default();
    tally.until_all_have(&mut changes, USERS, 1).await;
    assert_eq!(tally.causes(), [["login"]]);

    first.kill();
    let killed_ms = now_ms();
    drop(clients);
    tally.until_all_have(&mut changes, USERS, 2).await;
    assert_eq!(tally.causes(), [["login", "gateway_lost"]]);
    let last = tally
        .0
        .values()
        .filter_map(|received| received.last())
        .map(|received| received.at)
        .max();
    let last = last.expect("there are users");
    // A lease that was on its way may still have arrived.
    assert!(
        last <= killed_ms + 2 * LEASE_MS,
        "the lease was renewed by nobody: {last} {killed_ms}"
    );
    let seen_ms = now_ms();
    println!(
        "all {USERS} offline {} ms after the kill, with a lease of {LEASE_MS} ms",
        seen_ms - killed_ms
    );

    let clients = all_connect(&second, "resume").await;
    tally.until_all_have(&mut changes, USERS, 3).await;
    assert_eq!(tally.causes(), [["login", "gateway_lost", "resume"]]);
    let answer = uplink
        .users((0..USERS).step_by(200).map(|number| format!("user-{number}")).collect())
        .await;
    let online = answer
        .expect("answered")
        .into_iter()
        .flatten()
        .filter(|user| &*user.status == "online");
    assert_eq!(online.count(), 10);
    // Nothing else has come, once something that comes after all of it has.
    let mut last = second.connect("last", "login").await;
    tally.until_all_have(&mut changes, USERS + 1, 1).await;
    assert_eq!(tally.causes().len(), 2, "{:?}", tally.causes());
    last.beat().await;
    drop(clients);
}

fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.expect("after 1970").as_millis() as u64
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_outlives_its_engine_and_what_ended_meanwhile_arrives() {
    let data = tempfile::tempdir().expect("a directory");
    let engine = Process::engine(data.path(), "127.0.0.1:0");
    let (address, url) = (engine.address.to_string(), format!("http://{}", engine.address));
    let gateway = Process::gateway(&engine, data.path(), "edge");
    let mut stays = gateway.connect("stays", "login").await;
    let mut leaves = gateway.connect("leaves", "login").await;
    // In the log it is; folded it is a moment later.
    wait_until("it is online", async || {
        // No faster than a connection may ask.
        tokio::time::sleep(Duration::from_millis(100)).await;
        let answer = stays.ask(json!({"type": "query", "users": ["leaves"]})).await;
        answer["users"][0]["status"] == "online"
    })
    .await;
    let answer = stays.ask(json!({"type": "subscribe", "users": ["leaves"]})).await;
    assert_eq!(answer["users"][0]["status"], "online");
    engine.kill();
    assert_eq!(leaves.ask(json!({"type": "logout"})).await, json!({"type": "done"}));
    assert_eq!(leaves.hear().await, Heard::Closed(1000));
    wait_until("new ones are refused", async || {
        match gateway.dial("new", "login").open().await {
            Ok(mut client) => client.closed().await == Heard::Gone,
            Err(refused) => refused.status == 503,
        }
    })
    .await;
    stays.beat().await;
    let engine = Process::engine(data.path(), &address);
    // After the outage it gets the changes of its subscriptions from before, from the last position on.
    let change = stays.frame_of("change").await;
    assert_eq!(
        (&change["user"], &change["cause"]),
        (&json!("leaves"), &json!("logout"))
    );
    let uplink = HttpUplink::open(&url, None).await.expect("open");
    let answer = uplink
        .users(vec!["leaves".to_owned(), "stays".to_owned()])
        .await
        .expect("answered");
    assert_eq!(answer[0].as_ref().map(|user| &*user.status), Some("offline"));
    wait_until("new ones are let in", async || {
        gateway.dial("new", "login").open().await.is_ok()
    })
    .await;
    // The lease may have ended meanwhile; its heartbeats bring it back.
    wait_until("it is online", async || {
        // No faster than a connection may ask.
        tokio::time::sleep(Duration::from_millis(100)).await;
        stays.beat().await;
        let answer = uplink.users(vec!["stays".to_owned()]).await;
        let online = |user: &Option<_>| {
            user.as_ref()
                .is_some_and(|user: &UserSnapshot| &*user.status == "online")
        };
        answer.is_ok_and(|users| users.iter().all(online))
    })
    .await;
    // Kicks arrive too.
    let kick = json!([{"type": "kick", "user": "stays"}]).to_string();
    let posted = reqwest::Client::new()
        .post(format!("{url}/v1/events"))
        .body(kick)
        .send()
        .await;
    assert!(posted.expect("posted").status().is_success());
    assert_eq!(stays.closed().await, Heard::Closed(4003));
    assert_eq!(gateway.terminate().await, Some(0));
    assert_eq!(engine.terminate().await, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn one_process_serves_clients_too_and_tells_them_when_it_stops() {
    let data = tempfile::tempdir().expect("a directory");
    let path = data.path().join("data");
    let arguments = [
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--data",
        path.to_str().expect("text"),
        "--gateway",
        "127.0.0.1:0",
        "--gateway-insecure",
    ];
    let server = Process::start(&arguments, "clients  ws://");
    let mut client = server.connect("alice", "login").await;
    let answer = client.ask(json!({"type": "query", "users": ["bob"]})).await;
    assert_eq!(answer["unknown"], json!(["bob"]));
    let received = async {
        assert_eq!(client.frame().await["type"], "reconnect");
        assert_eq!(client.hear().await, Heard::Closed(1012));
    };
    let (status, ()) = tokio::join!(server.terminate(), received);
    assert_eq!(status, Some(0));
}

/// Appends an event to each partition of a log that no process has open.
fn append_everywhere(data: &Path, event: &Event<'_>) {
    let directory = rollcall::command::log_directory(data);
    let log = LocalLog::open(&directory, Settings::default(), Arc::new(SystemClock::new())).expect("opened");
    let mut value = Vec::new();
    encode_event(event, &mut value);
    let record = |partition| {
        let value = value.clone();
        (
            Partition(partition),
            NewRecord {
                key: None,
                value,
                headers: Vec::new(),
            },
        )
    };
    let (appended, answer) = std::sync::mpsc::channel();
    let records = (0..log.partitions()).map(record).collect();
    log.append(
        records,
        Box::new(move |result| appended.send(result).expect("waited for")),
    );
    answer.recv().expect("an answer").expect("appended");
    log.close().expect("closed");
}

/// A client that may publish can write a lease with the greatest epoch there is in the name of the gateway of `serve`.
#[tokio::test(flavor = "multi_thread")]
async fn no_epoch_in_the_log_ends_the_engine() {
    let data = tempfile::tempdir().expect("a directory");
    let engine = Process::engine(data.path(), "127.0.0.1:0");
    let post = async |engine: &Process, event: Value| {
        let url = format!("http://{}/v1/events", engine.address);
        let posted = reqwest::Client::new()
            .post(url)
            .body(json!([event]).to_string())
            .send()
            .await;
        posted.expect("posted").status().as_u16()
    };
    let lease = json!({"type": "lease", "gateway": "serve", "epoch": i64::MAX, "ttl_ms": 0});
    // The API refuses it, but it may have come into the log before, or straight into a topic of Kafka.
    assert_eq!(post(&engine, lease).await, 400);
    assert_eq!(engine.terminate().await, Some(0));
    let lease = Event::Lease {
        gateway: "serve".into(),
        epoch: Epoch(i64::MAX as u64),
        ttl_ms: 0,
    };
    append_everywhere(&data.path().join("engine"), &lease);
    for _ in 0..2 {
        let path = data.path().join("engine");
        let arguments = [
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--data",
            path.to_str().expect("text"),
            "--gateway",
            "127.0.0.1:0",
            "--gateway-insecure",
        ];
        let mut server = Process::start(&arguments, "console  http://");
        let ready = format!("http://{}/readyz", server.address);
        wait_until("it is ready", async || {
            reqwest::get(&ready)
                .await
                .is_ok_and(|answer| answer.status().is_success())
        })
        .await;
        // Long enough for the gateway to have asked for the epoch.
        tokio::time::sleep(Duration::from_millis(500)).await;
        assert_eq!(post(&server, json!({"type": "tick"})).await, 200);
        assert!(server.child.try_wait().expect("waited for").is_none(), "it runs on");
        assert_eq!(server.terminate().await, Some(0));
    }
}

#[test]
fn a_gateway_without_keys_says_what_it_needs() {
    let output = Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .arg("gateway")
        .output()
        .expect("run");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2));
    assert!(said.contains("--jwt-key") && said.lines().count() == 1, "{said}");
}

/// An engine that refuses does answer, so the sentence says how.
#[tokio::test(flavor = "multi_thread")]
async fn an_engine_that_refuses_is_not_called_away() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let serving = tokio::spawn(async move {
        let ours = r#"{"error":{"code":"forbidden","message":"no scope for this"}}"#;
        for (status, body) in [("401 No", ours), ("403 No", ours), ("404 No", "<html>")] {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let _ = tokio::io::AsyncReadExt::read(&mut stream, &mut [0; 4_096]).await;
            let length = body.len();
            let text = format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
            let sent = tokio::io::AsyncWriteExt::write_all(&mut stream, text.as_bytes()).await;
            sent.expect("answered");
        }
    });
    for (status, says) in [
        ("401", "no scope for this; the gateway needs a token"),
        ("403", "no scope for this; the gateway needs a token"),
        ("404", "another service"),
    ] {
        let error = HttpUplink::open(&url, None).await.map(drop).expect_err("refused");
        let said = error.to_string();
        assert!(
            said.starts_with(&format!("the engine answered {status}")) && said.contains(says),
            "{said}"
        );
    }
    serving.await.expect("it answers");
}

/// Long enough for what must not happen to have happened.
#[tokio::test(flavor = "multi_thread")]
async fn the_second_of_one_name_puts_the_first_out() {
    let data = tempfile::tempdir().expect("a directory");
    let engine = Process::engine(data.path(), "127.0.0.1:0");
    let mut first = Process::gateway(&engine, &data.path().join("a"), "edge");
    let mut client = first.connect("alice", "login").await;
    let second = Process::gateway(&engine, &data.path().join("b"), "edge");
    // Its client says nothing that would be stale.
    assert_eq!(client.closed().await, Heard::Closed(1012));
    wait_until("the first has ended", async || {
        first.child.try_wait().expect("waited for").is_some()
    })
    .await;
    assert_eq!(
        first
            .child
            .try_wait()
            .expect("waited for")
            .and_then(|status| status.code()),
        Some(2)
    );
    let mut back = second.connect("alice", "resume").await;
    back.beat().await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(second.terminate().await, Some(0));
}
