//! The whole server over HTTP: events per second, the time from an event to its change, and queries while events flow.
//!
//! The client runs on the same machine as the server and uses processor time too. Absolute figures depend on the machine; the
//! yardstick of the same run reads the same bodies as JSON on one core.

#[expect(dead_code, reason = "other benchmarks need more of it")]
mod measure;
#[path = "../tests/stream/mod.rs"]
mod stream;

use measure::{figure, heading, is_quick, rate};
use rollcall::schema::json::read_new_events;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

const USERS: usize = 100_000;
const BATCH: usize = 1_000;
const CLIENTS: usize = 4;
const HEARTBEAT_ROUNDS: usize = 10;
const ROUNDS: usize = 3;
const PROBE_SECONDS: u64 = 10;
const PROBE_BATCH: usize = 100;
const EVENTS_PER_S: u32 = 10_000;

struct Server {
    process: Child,
    url: String,
    _data: tempfile::TempDir,
}

impl Server {
    fn start() -> Server {
        let data = tempfile::tempdir().expect("a directory");
        let mut process = Command::new(env!("CARGO_BIN_EXE_rollcall"))
            .args(["serve", "--listen", "127.0.0.1:0", "--data"])
            .arg(data.path())
            .stdout(Stdio::piped())
            .spawn()
            .expect("the server starts");
        let output = BufReader::new(process.stdout.take().expect("its output"));
        let lines = output.lines().map(|line| line.expect("readable"));
        let url = lines
            .into_iter()
            .find_map(|line| Some(line.strip_prefix("console")?.trim().trim_end_matches('/').to_owned()));
        Server {
            process,
            url: url.expect("it says where the console is"),
            _data: data,
        }
    }

    fn stats(&self) -> serde_json::Value {
        let body = ureq::get(format!("{}/v1/stats", self.url))
            .call()
            .expect("stats")
            .body_mut()
            .read_to_string();
        serde_json::from_str(&body.expect("readable")).expect("JSON")
    }

    fn changes(&self) -> u64 {
        self.stats()["changes"].as_u64().expect("a number")
    }

    fn wait_until_folded(&self) {
        loop {
            let stats = self.stats();
            let partitions = stats["partitions"].as_array().expect("partitions");
            if partitions.iter().all(|partition| partition["lag"] == 0) {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An event of a user's connection in a round; a later round has greater numbers of connections.
fn event(kind: &str, user: usize, round: usize, more: &str) -> String {
    let conn = round * 10_000_000 + user;
    format!(
        r#"{{"type":"{kind}","user":"user-{user:07}","platform":"android","device":"device-{user:07}","gateway":"gateway-{}","epoch":1,"conn":{conn}{more}}}"#,
        user % 8
    )
}

fn bodies(events: impl Iterator<Item = String>, batch: usize) -> Vec<String> {
    let events: Vec<String> = events.collect();
    events
        .chunks(batch)
        .map(|events| format!("[{}]", events.join(",")))
        .collect()
}

/// Posts all bodies over several connections. Returns the time until every event was acknowledged and folded.
fn post_all(server: &Server, bodies: Vec<String>) -> Duration {
    let bodies = Arc::new(bodies);
    let next = Arc::new(AtomicUsize::new(0));
    let began = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            let (bodies, next, url) = (bodies.clone(), next.clone(), format!("{}/v1/events", server.url));
            std::thread::spawn(move || {
                let agent = ureq::agent();
                while let Some(body) = bodies.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let answer = agent.post(&url).send(body.as_str()).expect("acknowledged");
                    answer.into_body().read_to_string().expect("readable");
                }
            })
        })
        .collect();
    clients
        .into_iter()
        .for_each(|client| client.join().expect("the client ends"));
    server.wait_until_folded();
    began.elapsed()
}

/// Returns a quantile of the sorted times, in ms.
fn percentile(times: &[Duration], percent: usize) -> f64 {
    times[(times.len() - 1) * percent / 100].as_secs_f64() * 1_000.0
}

fn main() {
    let server = Server::start();
    heading(&format!(
        "over HTTP, batches of {BATCH}, {CLIENTS} clients beside the server; durable and folded"
    ));
    let (mut yardstick, mut connects, mut heartbeats, mut disconnects) = (vec![], vec![], vec![], vec![]);
    let count = USERS * HEARTBEAT_ROUNDS;
    for round in 0..ROUNDS {
        let users = (0..HEARTBEAT_ROUNDS).flat_map(|pass| (0..USERS).map(move |n| (n * 7919 + pass) % USERS));
        let beats = bodies(users.map(|user| event("heartbeat", user, round, "")), BATCH);
        let began = Instant::now();
        let mut parsed = 0;
        for body in &beats {
            parsed += read_new_events(body).expect("JSON").len();
        }
        assert_eq!(parsed, count);
        yardstick.push(rate(parsed, began.elapsed()));
        let of_all = |kind: &str, more: &str| bodies((0..USERS).map(|user| event(kind, user, round, more)), BATCH);
        let time = post_all(&server, of_all("connect", r#","intent":"login""#));
        connects.push(rate(USERS, time));
        heartbeats.push(rate(count, post_all(&server, beats)));
        let time = post_all(&server, of_all("disconnect", r#","reason":"closed""#));
        disconnects.push(rate(USERS, time));
    }
    assert_eq!(
        server.changes(),
        (2 * ROUNDS * USERS) as u64,
        "a change for each connect and disconnect"
    );
    let what = "yardstick: read the bodies as JSON, one core";
    figure("http.json", what, &yardstick, "/s").show();
    for (id, what, rates) in [
        ("http.connects", "connects, one change each", &connects),
        ("http.heartbeats", "heartbeats", &heartbeats),
        ("http.disconnects", "disconnects, one change each", &disconnects),
    ] {
        figure(id, what, rates, "/s").beside("the JSON", &yardstick).show();
    }

    // From here on everybody is online.
    let connects = (0..USERS).map(|user| event("connect", user, ROUNDS, r#","intent":"login""#));
    post_all(&server, bodies(connects, BATCH));
    latency(&server);
    queries(&server);
}

/// Asks for users, one and 500 at a time, with several clients while events flow.
fn queries(server: &Server) {
    heading(&format!(
        "queries while {EVENTS_PER_S} events/s flow, {CLIENTS} clients"
    ));
    for ids in [1, 500] {
        let is_over = AtomicBool::new(false);
        let (times, took, flowed) = std::thread::scope(|scope| {
            let publisher = scope.spawn(|| flow(server, &is_over));
            let seconds = Duration::from_secs(if is_quick() { 5 } else { 20 });
            let began = Instant::now();
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| scope.spawn(move || ask(server, client, ids, seconds)))
                .collect();
            let times = clients.into_iter().flat_map(|client| client.join().expect("answered"));
            let times: Vec<Duration> = times.collect();
            let took = began.elapsed();
            is_over.store(true, Ordering::Relaxed);
            (times, took, publisher.join().expect("published"))
        });
        let mut times = times;
        times.sort_unstable();
        let id = |what: &str| format!("http.query_{ids}.{what}");
        let what = format!("statuses, {ids} a request");
        figure(&id("rate"), &what, &[rate(times.len() * ids, took)], "/s").show();
        for percent in [50, 99] {
            let what = format!("  a request, p{percent}");
            figure(&id(&format!("p{percent}")), &what, &[percentile(&times, percent)], "ms").show();
        }
        figure(&id("flowing"), "  events meanwhile", &[flowed], "/s").show();
    }
}

/// Publishes heartbeats at a steady rate. Returns the rate.
fn flow(server: &Server, is_over: &AtomicBool) -> f64 {
    let agent = ureq::agent();
    let url = format!("{}/v1/events", server.url);
    let (pause, began) = (
        Duration::from_secs(1) * PROBE_BATCH as u32 / EVENTS_PER_S,
        Instant::now(),
    );
    let mut sent = 0;
    while !is_over.load(Ordering::Relaxed) {
        let users = (0..PROBE_BATCH).map(|n| (sent as usize * PROBE_BATCH + n) % USERS);
        let body = bodies(users.map(|user| event("heartbeat", user, ROUNDS, "")), PROBE_BATCH).remove(0);
        let answer = agent.post(&url).send(body).expect("acknowledged");
        answer.into_body().read_to_string().expect("readable");
        sent += 1;
        std::thread::sleep((began + pause * sent).saturating_duration_since(Instant::now()));
    }
    rate(sent as usize * PROBE_BATCH, began.elapsed())
}

/// Asks for so many users at a time, one request after the other. Returns how long each took.
fn ask(server: &Server, client: usize, ids: usize, during: Duration) -> Vec<Duration> {
    let agent = ureq::agent();
    let url = format!("{}/v1/users/query", server.url);
    let (mut next, mut times, began) = (client * 25_000, Vec::new(), Instant::now());
    while began.elapsed() < during {
        let users: Vec<String> = (0..ids)
            .map(|n| format!(r#""user-{:07}""#, (next + n * 7_919) % USERS))
            .collect();
        next += 1;
        let body = format!(r#"{{"users":[{}]}}"#, users.join(","));
        let start = Instant::now();
        let answer = agent.post(&url).send(body).expect("answered");
        let text = answer.into_body().read_to_string().expect("readable");
        times.push(start.elapsed());
        assert!(text.contains(r#""unknown":[]"#), "every user is known: {text}");
    }
    times
}

/// Measures the time from the POST of a connect or disconnect, at 10,000 events a second, to its line at a subscriber.
fn latency(server: &Server) {
    let sent: Arc<Mutex<std::collections::HashMap<String, Instant>>> = Arc::default();
    let (report, reports) = mpsc::channel();
    let followed = ureq::get(format!("{}/v1/changes", server.url))
        .call()
        .expect("a subscription");
    let waiting = sent.clone();
    std::thread::spawn(move || {
        let events = stream::events(followed.into_body().into_reader());
        for data in events.filter_map(|event| event.data) {
            let now = Instant::now();
            let user = data
                .split(r#""user":""#)
                .nth(1)
                .and_then(|rest| rest.split('"').next())
                .unwrap_or_default();
            if let Some(began) = waiting.lock().expect("unpoisoned").remove(user)
                && report.send(now - began).is_err()
            {
                return;
            }
        }
    });
    let agent = ureq::agent();
    let url = format!("{}/v1/events", server.url);
    let pause = Duration::from_secs(1) / (EVENTS_PER_S / PROBE_BATCH as u32);
    let began = Instant::now();
    let mut batches = 0;
    while began.elapsed() < Duration::from_secs(PROBE_SECONDS) {
        let probe = 5_000_000 + batches as usize;
        let mut events: Vec<String> = (1..PROBE_BATCH)
            .map(|n| event("heartbeat", (batches as usize * PROBE_BATCH + n) % USERS, ROUNDS, ""))
            .collect();
        events.push(event("connect", probe, 0, r#","intent":"login""#));
        let body = format!("[{}]", events.join(","));
        sent.lock()
            .expect("unpoisoned")
            .insert(format!("user-{probe:07}"), Instant::now());
        let answer = agent.post(&url).send(body.as_str()).expect("acknowledged");
        answer.into_body().read_to_string().expect("readable");
        batches += 1;
        let due = began + pause * batches;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let events = batches as usize * PROBE_BATCH;
    let took = began.elapsed();
    let mut times: Vec<Duration> = std::iter::from_fn(|| reports.recv_timeout(Duration::from_secs(2)).ok())
        .take(batches as usize)
        .collect();
    times.sort_unstable();
    assert_eq!(times.len(), batches as usize, "every change arrived");
    heading("from POST to line of the subscription");
    figure("http.latency.offered", "events offered", &[rate(events, took)], "/s").show();
    for (name, percent) in [("p50", 50), ("p99", 99), ("max", 100)] {
        let times = [percentile(&times, percent)];
        figure(&format!("http.latency.{name}"), name, &times, "ms").show();
    }
}
