//! The whole server over HTTP: events per second, and the time from an event to its change.
//!
//! The client runs on the same machine as the server and uses processor time too. Absolute figures depend on the machine; the
//! yardstick of the same run reads the same bodies as JSON on one core.

use rollcall::schema::json::read_new_events;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

const USERS: usize = 100_000;
const BATCH: usize = 1_000;
const CLIENTS: usize = 4;
const HEARTBEAT_ROUNDS: usize = 10;
const PROBE_SECONDS: u64 = 10;
const PROBE_BATCH: usize = 100;

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

fn event(kind: &str, user: usize, more: &str) -> String {
    format!(
        r#"{{"type":"{kind}","user":"user-{user:07}","platform":"android","device":"device-{user:07}","gateway":"gateway-{}","epoch":1,"conn":{user}{more}}}"#,
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

fn rate(events: usize, time: Duration) -> f64 {
    events as f64 / time.as_secs_f64()
}

/// Returns a quantile of the sorted times, in ms.
fn percentile(times: &[Duration], percent: usize) -> f64 {
    times[(times.len() - 1) * percent / 100].as_secs_f64() * 1_000.0
}

fn main() {
    let server = Server::start();

    let heartbeats: Vec<usize> = (0..HEARTBEAT_ROUNDS)
        .flat_map(|round| (0..USERS).map(move |n| (n * 7919 + round) % USERS))
        .collect();
    let heartbeats = bodies(heartbeats.into_iter().map(|user| event("heartbeat", user, "")), BATCH);
    let began = Instant::now();
    let mut parsed = 0;
    for body in &heartbeats {
        parsed += read_new_events(body).expect("JSON").len();
    }
    let yardstick = rate(parsed, began.elapsed());
    println!(
        "yardstick: reading these bodies as JSON, one core    {:>9.0} events/s",
        yardstick
    );

    let connects = bodies(
        (0..USERS).map(|user| event("connect", user, r#","intent":"login""#)),
        BATCH,
    );
    let time = post_all(&server, connects);
    println!(
        "connects over HTTP, batches of {BATCH}, folded      {:>9.0} events/s  {:.2} of the yardstick",
        rate(USERS, time),
        rate(USERS, time) / yardstick
    );

    let count = USERS * HEARTBEAT_ROUNDS;
    let time = post_all(&server, heartbeats);
    println!(
        "heartbeats over HTTP, batches of {BATCH}, folded    {:>9.0} events/s  {:.2} of the yardstick",
        rate(count, time),
        rate(count, time) / yardstick
    );

    let disconnects = bodies(
        (0..USERS).map(|user| event("disconnect", user, r#","reason":"closed""#)),
        BATCH,
    );
    let time = post_all(&server, disconnects);
    println!(
        "disconnects over HTTP, batches of {BATCH}, folded   {:>9.0} events/s  {:.2} of the yardstick",
        rate(USERS, time),
        rate(USERS, time) / yardstick
    );

    latency(&server);
}

/// Measures the time from the POST of a connect or disconnect, at 10,000 events a second, to its line at a subscriber.
fn latency(server: &Server) {
    let sent: Arc<Mutex<std::collections::HashMap<String, Instant>>> = Arc::default();
    let (report, reports) = mpsc::channel();
    let stream = ureq::get(format!("{}/v1/changes", server.url))
        .call()
        .expect("a subscription");
    let waiting = sent.clone();
    std::thread::spawn(move || {
        let lines = BufReader::new(stream.into_body().into_reader()).lines();
        for line in lines.map_while(Result::ok).filter(|line| line.starts_with("data: ")) {
            let now = Instant::now();
            let user = line
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
    let pause = Duration::from_secs(1) / (10_000 / PROBE_BATCH as u32);
    let began = Instant::now();
    let mut batches = 0;
    while began.elapsed() < Duration::from_secs(PROBE_SECONDS) {
        let probe = 5_000_000 + batches as usize;
        let mut events: Vec<String> = (1..PROBE_BATCH)
            .map(|n| event("heartbeat", (batches as usize * PROBE_BATCH + n) % USERS, ""))
            .collect();
        events.push(event("connect", probe, r#","intent":"login""#));
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
    println!(
        "POST to line of the subscription at {:.0} events/s     p50 {:.1} ms  p99 {:.1} ms  max {:.1} ms  ({} of {batches} arrived)",
        rate(events, took),
        percentile(&times, 50),
        percentile(&times, 99),
        percentile(&times, 100),
        times.len()
    );
}
