//! Questions about what is long written, to a server on Kafka and to one with the embedded log, in turn: a subscriber that begins with the
//! oldest change, a user's newest changes, why a user has its status, and how many were online at an earlier time.
//!
//! Both servers have the same events, and are new processes, so that nothing of the log is in their memory.

use crate::measure::{figure, heading, is_quick, median, rate};
use crate::{Broker, PARTITIONS};
use std::io::{BufRead, BufReader};
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const USERS: usize = 1_000;
const BATCH: usize = 1_000;
/// How often each user connects and disconnects: two changes.
const VISITS: usize = 100;
/// How often each kind of question about a user is asked in a round, and the one about an earlier time.
const ASKED: usize = 40;
const ASKED_AT: usize = 10;

/// A server and what it is started with.
struct Server {
    arguments: Vec<String>,
    running: Option<(Child, String)>,
}

impl Server {
    fn new(arguments: &[&str], data: &Path) -> Server {
        let data = data.to_str().expect("UTF-8");
        let all = ["serve", "--listen", "127.0.0.1:0", "--data", data];
        let all = all.iter().chain(arguments).map(|text| (*text).to_owned());
        let mut server = Server {
            arguments: all.collect(),
            running: None,
        };
        server.restart();
        server
    }

    /// Ends the process, and starts another that has caught up.
    fn restart(&mut self) {
        self.stop();
        let mut child = Command::new(env!("CARGO_BIN_EXE_rollcall"))
            .args(&self.arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the server starts");
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let mut lines = output.lines().map(|line| line.expect("readable"));
        let url = lines.find_map(|line| Some(line.strip_prefix("console")?.trim().trim_end_matches('/').to_owned()));
        std::thread::spawn(move || lines.for_each(drop));
        self.running = Some((child, url.expect("it says where the console is")));
        self.wait_until_folded();
    }

    fn stop(&mut self) {
        if let Some((mut child, _)) = self.running.take() {
            let stopped = Command::new("kill").arg(child.id().to_string()).status();
            assert!(stopped.expect("kill is there").success());
            child.wait().expect("it ends");
        }
    }

    fn url(&self, path: &str) -> String {
        let (_, url) = self.running.as_ref().expect("it runs");
        format!("{url}{path}")
    }

    fn get(&self, path: &str) -> Option<String> {
        let answer = ureq::get(self.url(path)).call().ok()?;
        answer.into_body().read_to_string().ok()
    }

    /// Asks so often. Returns the median in milliseconds.
    fn ask(&self, times: usize, path: impl Fn(usize) -> String) -> f64 {
        let took = (0..times).map(|number| {
            let (path, began) = (path(number), Instant::now());
            assert!(self.get(&path).is_some(), "{path} is answered");
            began.elapsed().as_secs_f64() * 1e3
        });
        median(&took.collect::<Vec<f64>>())
    }

    fn wait_until_folded(&self) {
        let began = Instant::now();
        loop {
            let stats = self.get("/v1/stats").unwrap_or_default();
            let stats: serde_json::Value = serde_json::from_str(&stats).unwrap_or_default();
            let partitions = stats["partitions"].as_array().map_or(&[][..], Vec::as_slice);
            if partitions.len() == PARTITIONS as usize && partitions.iter().all(|partition| partition["lag"] == 0) {
                return;
            }
            assert!(began.elapsed() < Duration::from_secs(120), "not ready: {stats}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn fill(&self, visits: Range<usize>) {
        let changes = USERS * visits.end * 2;
        for visit in visits {
            for (kind, more) in [
                ("connect", r#","intent":"login""#),
                ("disconnect", r#","reason":"closed""#),
            ] {
                let events: Vec<String> = (0..USERS).map(|user| event(kind, user, visit, more)).collect();
                for events in events.chunks(BATCH) {
                    let body = format!("[{}]", events.join(","));
                    let answer = ureq::post(self.url("/v1/events")).send(body).expect("acknowledged");
                    answer.into_body().read_to_string().expect("readable");
                }
            }
        }
        self.wait_until_folded();
        let stats = self.get("/v1/stats").unwrap_or_default();
        let stats: serde_json::Value = serde_json::from_str(&stats).unwrap_or_default();
        assert_eq!(stats["changes"], changes, "each event is a change");
    }

    /// Reads so many changes from the oldest on. Returns how many a second.
    fn catch_up(&self, changes: usize) -> f64 {
        let began = Instant::now();
        let followed = ureq::get(self.url("/v1/changes?after=earliest")).call();
        let body = BufReader::new(followed.expect("a subscription").into_body().into_reader());
        let lines = body.lines().map(|line| line.expect("the stream goes on"));
        let seen = lines.filter(|line| line.starts_with(r#"data: {"type":"change""#));
        assert_eq!(seen.take(changes).count(), changes);
        rate(changes, began.elapsed())
    }

    /// Anonymous memory in MiB.
    fn memory(&self) -> f64 {
        let (child, _) = self.running.as_ref().expect("it runs");
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).expect("its status");
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
        kib.expect("a number") / 1024.0
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

fn event(kind: &str, user: usize, visit: usize, more: &str) -> String {
    format!(
        r#"{{"type":"{kind}","user":"user-{user:07}","platform":"android","device":"phone","gateway":"gateway-{}","epoch":1,"conn":{}{more}}}"#,
        user % 8,
        visit * USERS + user
    )
}

/// What a server showed in each round.
#[derive(Default)]
struct Shown {
    catch_up: Vec<f64>,
    newest: Vec<f64>,
    why: Vec<f64>,
    at: Vec<f64>,
    memory: Vec<f64>,
}

type FigureOf = fn(&Shown) -> &[f64];

impl Shown {
    fn measure(&mut self, server: &mut Server, changes: usize, filled_ms: u64) {
        server.restart();
        let user = |number: usize| format!("user-{:07}", number * 23 % USERS);
        self.newest
            .push(server.ask(ASKED, |number| format!("/v1/users/{}/changes", user(number))));
        self.why
            .push(server.ask(ASKED, |number| format!("/v1/users/{}/why", user(number))));
        self.at.push(server.ask(ASKED_AT, |number| {
            format!("/v1/at?time={}&as_known=true", filled_ms + number as u64)
        }));
        self.catch_up.push(server.catch_up(changes));
        self.memory.push(server.memory());
    }
}

pub fn run(broker: &Broker) {
    let (visits, rounds) = if is_quick() { (VISITS / 4, 3) } else { (VISITS, 5) };
    let changes = USERS * visits * 2;
    heading(&format!(
        "what is long written: {changes} changes of {USERS} users, {PARTITIONS} partitions, on Kafka and with the embedded log in turn"
    ));
    let (node, connection) = broker.topics("bench-questions", PARTITIONS);
    let data = tempfile::tempdir().expect("a directory");
    let partitions = PARTITIONS.to_string();
    let on_kafka = [
        "--kafka",
        &connection.bootstrap,
        "--topic-prefix",
        &connection.prefix,
        "--group",
        &node.group,
    ];
    let mut kafka = Server::new(&on_kafka, &data.path().join("kafka"));
    let mut embedded = Server::new(&["--partitions", &partitions], &data.path().join("embedded"));
    kafka.fill(0..visits / 2);
    embedded.fill(0..visits / 2);
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let filled_ms = now_ms.expect("after 1970").as_millis() as u64;
    for server in [&kafka, &embedded] {
        server.fill(visits / 2..visits);
    }
    let (mut of_kafka, mut of_embedded) = (Shown::default(), Shown::default());
    for _ in 0..rounds {
        of_kafka.measure(&mut kafka, changes, filled_ms);
        of_embedded.measure(&mut embedded, changes, filled_ms);
    }
    let rows: [(&str, &str, &str, FigureOf); 5] = [
        ("catch_up", "a subscriber from the oldest change on", "/s", |shown| {
            &shown.catch_up
        }),
        ("newest", "a user's newest changes", "ms", |shown| &shown.newest),
        ("why", "why a user has its status", "ms", |shown| &shown.why),
        ("at", "how many were online, at half of it", "ms", |shown| &shown.at),
        ("memory", "the server's memory after that", "MiB", |shown| &shown.memory),
    ];
    for (id, what, unit, figures) in rows {
        let (kafka, embedded) = (figures(&of_kafka), figures(&of_embedded));
        let id = format!("kafka.questions.{changes}.{id}");
        figure(&format!("{id}.embedded"), &format!("{what}, embedded"), embedded, unit).show();
        figure(&format!("{id}.kafka"), &format!("{what}, Kafka"), kafka, unit)
            .beside("the embedded log", embedded)
            .show();
    }
}
