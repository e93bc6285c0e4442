//! A soak from its first process to its last one.
//!
//! Two engines fold the events of two loads: `tests/kafka/load.py`, all the time, and `rollcall load`, whose people come in over a
//! gateway, in one run after the other. In every second run all is calm, and each change must be the expected one. In the runs
//! between something fails. Engine 0, the gateway, the lake and the watcher are not restarted in the last half, so that each has
//! one long life there; engine 1 has many.

use crate::child::{Child, Crowd, CrowdSettings};
use crate::engine::{Node, free_port, until};
use crate::faults::Fault;
use crate::network::RandomFaults;
use crate::plans;
use crate::proxied::Proxied;
use crate::python::{self, Load};
use crate::readers::Readers;
use crate::report::{self, Compared, Crowds};
use crate::run::{Dice, PATIENCE, Run};
use crate::sampler::{Sampler, Subject};
use crate::space::Space;
use crate::watcher::Watcher;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

const PARTITIONS: usize = 4;
/// How long `rollcall load` runs while all is calm, and while something fails.
const CALM: Duration = Duration::from_secs(75);
const STRUCK: Duration = Duration::from_secs(60);
/// The load of a run is steady after so long, and until so long before its end.
const ARRIVAL: Duration = Duration::from_secs(15);
const DEPARTURE: Duration = Duration::from_secs(5);
/// A run that lasts longer than it should by this much hangs.
const OVERDUE: Duration = Duration::from_secs(180);
/// How long a gateway's lease is.
const LEASE: Duration = Duration::from_secs(30);
/// The run ends if all files together take more than this.
const DISK_BYTES_MAX: f64 = 8.0 * (1u64 << 30) as f64;
/// Events a second of `load.py`, and its users.
const RATE: &str = "3";
const USERS: usize = 60;

pub struct Settings {
    pub minutes: u64,
    pub seed: u64,
    pub people: usize,
    /// Whether engine 0 leaks a descriptor and some memory with each commit of a store.
    pub leak: bool,
}

pub struct Outcome {
    /// The report, in Markdown.
    pub text: String,
    /// A sentence each; empty if all is well.
    pub complaints: Vec<String>,
}

/// What fails.
enum Kind {
    /// Both engines, one after the other, become ones that know the next revision, and then it is raised.
    Upgrade,
    /// Engine 1 stops normally and starts again.
    Restart,
    GatewayKilled,
    /// Requests and answers between engines and brokers are late or lost, for half a minute.
    Network,
    Fault(Fault),
}

impl Kind {
    fn name(&self) -> &'static str {
        match self {
            Kind::Upgrade => "engines upgraded, and the revision raised",
            Kind::Restart => "engine restarted",
            Kind::GatewayKilled => "gateway killed",
            Kind::Network => "network: requests and answers late or lost",
            Kind::Fault(fault) => fault.kind(),
        }
    }

    /// The n-th thing that fails. What restarts a process that is to have a long life comes first.
    fn of(number: usize) -> Kind {
        match number {
            0 => return Kind::Upgrade,
            1 => return Kind::GatewayKilled,
            _ => {}
        }
        match number % 7 {
            0 => Kind::Fault(Fault::Sleep),
            1 => Kind::Restart,
            2 => Kind::Fault(Fault::BrokerKilled),
            3 => Kind::Network,
            4 => Kind::Fault(Fault::Kills(1)),
            5 => Kind::Fault(Fault::BrokersPaused(2_000)),
            _ => Kind::Fault(Fault::CoordinatorMoved),
        }
    }
}

/// Deadlines within a minute, so that they are due during a run; `closed_ms` 0, as `rollcall load` needs it.
fn policy() -> Value {
    json!({"platforms": {
        "android": {"heartbeat_ms": 10_000, "timeout_ms": 45_000, "away_ms": 180_000},
        "iphone": {"timeout_ms": 30_000, "away_ms": 30_000},
        "web": {"heartbeat_ms": 10_000, "timeout_ms": 45_000, "away_ms": 60_000},
        "tv": {"timeout_ms": 15_000, "push": true, "away_ms": 6_000},
    }})
}

struct Soak<'s> {
    settings: &'s Settings,
    directory: &'s Path,
    run: Run<'s>,
    proxied: &'s Proxied,
    gateway: Child,
    gateway_address: String,
    sampler: Sampler,
    struck: BTreeMap<&'static str, u32>,
    calm_runs: Crowds,
    struck_runs: Crowds,
    complaints: Vec<String>,
}

pub fn soak(settings: &Settings) -> Outcome {
    let begun = Instant::now();
    let long = Duration::from_secs(60 * settings.minutes);
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let proxied = Proxied::start(3, &plans::GROUP);
    let space = Space::new(&proxied.cluster.bootstrap, "soak", PARTITIONS);
    let way = space.reached_by(&proxied.proxy.bootstrap());
    let path = |name: &str| directory.join(name).to_str().expect("UTF-8").to_owned();
    let (policy_file, checkpoints) = (path("policy.json"), format!("file://{}", path("checkpoints")));
    std::fs::write(&policy_file, policy().to_string()).expect("written");
    let more = [
        "--policy",
        &policy_file,
        "--store-cache-mib",
        "8",
        "--checkpoints",
        &checkpoints,
    ];
    let more = [&more[..], &["--checkpoint-every", "2m"]].concat();
    let mut nodes = [0, 1].map(|name| Node::new(directory, &way, name, &more));
    for node in &mut nodes {
        node.revision = Some(1);
    }
    nodes[0].start(failpoint(settings));
    nodes[1].start(None);
    let urls = nodes.each_ref().map(Node::url);
    // The load's first record would be before the first policy.
    until(&nodes.each_ref(), PATIENCE, "all partitions are live", || {
        nodes.iter().all(|node| node.live() == PARTITIONS)
    });
    let gateway_address = format!("127.0.0.1:{}", free_port());
    let mut gateway = Child::new(
        directory,
        "gateway",
        &[
            "gateway",
            "--listen",
            &gateway_address,
            "--gateway-insecure",
            "--gateway-name",
            "soak",
            "--engine",
            &urls[1],
            "--data",
            &path("gateway"),
        ],
    );
    gateway.start();
    let lake_arguments = [
        "lake",
        "--to",
        &path("lake"),
        "--kafka",
        &space.bootstrap,
        "--topic-prefix",
        &space.prefix,
    ];
    let lake_arguments = [&lake_arguments[..], &["--status", "127.0.0.1:0"]].concat();
    let mut lake = Child::new(directory, "lake", &lake_arguments);
    lake.start();
    let watcher = Watcher::start(directory, &space);
    let sampler = Sampler::start(
        subjects(directory, &proxied.data(), &space.group, &urls),
        vec![directory.to_owned(), proxied.data()],
        |table, at_s| println!("{:>3.0} min{}", at_s / 60.0, report::now(table, at_s)),
    );
    let users: Vec<String> = (0..USERS).map(|number| format!("user {number}")).collect();
    let readers = Readers::start(&urls, &gateway_address, &users);
    let seconds = (60 * settings.minutes + 7_200).to_string();
    let mut arguments = vec!["--seconds", &seconds, "--rate", RATE, "--writers", "2", "--users", "60"];
    arguments.extend(["--keep-policy", "--http", &urls[0], "--http", &urls[1]]);
    let load = Load::start(&space, settings.seed, &arguments);
    let run = Run {
        cluster: Some(&proxied),
        dice: Dice(settings.seed),
        nodes: nodes.into(),
        mortal: vec![1],
        checkpoints: directory.join("checkpoints"),
        space: space.reached_by(&space.bootstrap),
        patience: PATIENCE,
        timeline: Arc::default(),
    };
    let mut soak = Soak {
        settings,
        directory,
        run,
        proxied: &proxied,
        gateway,
        gateway_address,
        sampler,
        struck: BTreeMap::new(),
        calm_runs: Crowds::default(),
        struck_runs: Crowds::default(),
        complaints: Vec::new(),
    };
    soak.wait_for_the_gateway();
    let mut at_half = None;
    for number in 0.. {
        let is_full = soak.sampler.table().disk_bytes > DISK_BYTES_MAX;
        if begun.elapsed() >= long || is_full {
            let why = || format!("more than {DISK_BYTES_MAX} bytes are on the disk");
            soak.complaints.extend(is_full.then(why));
            break;
        }
        if begun.elapsed() >= long / 2 && at_half.is_none() {
            at_half = Some((begun.elapsed(), changes(&soak.run.space)));
        }
        soak.run.settle();
        soak.calm(number);
        soak.struck(&Kind::of(number), number);
        soak.look_at_what_must_live(&mut lake);
    }
    let took = begun.elapsed();
    println!(
        "{:.0} min: the load ends, and everything is checked",
        took.as_secs_f64() / 60.0
    );
    let got = readers.got();
    drop(readers);
    let (cores, all) = report::processor(&soak.sampler.table(), took.as_secs_f64());
    let load = load.end();
    soak.run.reaches(&load["ends"]);
    let (half_at, half_changes) = at_half.unwrap_or((long / 2, 0));
    let compared = compared();
    let rows = {
        let table = soak.sampler.table();
        let changes = changes(&soak.run.space) - half_changes;
        report::judge(&table, &compared, half_at.as_secs_f64(), changes)
    };
    let mut complaints = std::mem::take(&mut soak.complaints);
    complaints.extend(rows.iter().filter_map(report::Row::complaint));
    complaints.extend(got.complaints.iter().cloned());
    complaints.extend(soak.gateway.stop().map(|why| format!("the gateway: {why}")));
    complaints.extend(lake.stop().map(|why| format!("the lake: {why}")));
    soak.run.nodes.iter_mut().for_each(Node::stop);
    let space = &soak.run.space;
    let committed: Vec<u64> = python::places(space).iter().map(|(committed, _)| *committed).collect();
    let opinion = watcher.end(&committed);
    complaints.extend(opinion.complaints);
    complaints.extend(audit_verify(space));
    let verdict = python::check(space, Some(&load["ends"]));
    complaints.extend(verdict.complaints.iter().cloned());
    let in_the_lake = rows_of_the_lake(&lake_arguments, &directory.join("lake"));
    if in_the_lake != verdict.sum("changes") {
        let changes = verdict.sum("changes");
        complaints.push(format!("the lake has {in_the_lake} changes, and the topic {changes}"));
    }
    if load["counts"]["refused"].as_u64().unwrap_or_default() > 0 {
        complaints.push(format!("of the load was refused: {}", load["refusals"]));
    }
    for (what, count) in [
        ("changes over HTTP", got.changes),
        ("changes over WebSocket", got.watched),
    ] {
        if count == 0 {
            complaints.push(format!("no reader got any {what}"));
        }
    }

    let mut text = format!(
        "`make soak MINUTES={}`, seed {}, commit {}, {} people: {:.0} minutes.\n\n",
        settings.minutes,
        settings.seed,
        rollcall::version::COMMIT,
        settings.people,
        took.as_secs_f64() / 60.0
    );
    text.push_str(&report::trends(&rows));
    let _ = writeln!(
        text,
        "\nProcessor, over the whole run: {all:.2} cores.\n\n| process | cores | started |\n|---|---|---|"
    );
    for (process, (cores, lives)) in cores {
        let _ = writeln!(text, "| {process} | {cores:.3} | {lives} |");
    }
    text.push_str("\n| what failed | times |\n|---|---|\n");
    for (kind, times) in &soak.struck {
        let _ = writeln!(text, "| {kind} | {times} |");
    }
    text.push_str(
        "\n| `rollcall load` | runs | connects | heartbeats | changes as expected | missing | unexpected | latency |\n",
    );
    text.push_str("|---|---|---|---|---|---|---|---|\n");
    text.push_str(&soak.calm_runs.row("while all was calm"));
    text.push_str(&soak.struck_runs.row("while something failed"));
    let _ = writeln!(
        text,
        "\nThe independent reader compared {} events, {} changes, {} kicks and {} malformed records; the watcher verified {} events; \
         `audit verify` agreed. The lake has {in_the_lake} changes. Readers: answers by status {:?} (0: none), {} subscriptions with {} \
         changes, {} WebSocket watchers with {} changes. All files together took {:.0} MiB at the end.",
        verdict.sum("events"),
        verdict.sum("changes"),
        verdict.sum("kicks"),
        verdict.sum("malformed"),
        opinion.events,
        got.answers,
        got.subscriptions,
        got.changes,
        got.watchers,
        got.watched,
        soak.sampler.table().disk_bytes / 1_048_576.0,
    );
    if complaints.is_empty() {
        text.push_str("\nNothing was wrong.\n");
    } else {
        text.push_str("\nWrong:\n\n");
        for complaint in &complaints {
            let _ = writeln!(text, "* {complaint}");
        }
    }
    Outcome { text, complaints }
}

fn failpoint(settings: &Settings) -> Option<&'static str> {
    settings.leak.then_some("leak:store:1+")
}

fn subjects(directory: &Path, brokers: &Path, group: &str, engines: &[String; 2]) -> Vec<Subject> {
    let path = |name: &str| directory.join(name).to_str().expect("UTF-8").to_owned();
    let ours = |name: &'static str, directory_name: &str| Subject {
        name,
        words: vec![path(directory_name)],
        directory: Some(directory.join(directory_name)),
        engine: None,
    };
    let engine = |name: &'static str, directory_name: &str, url: &String| Subject {
        engine: Some(url.clone()),
        ..ours(name, directory_name)
    };
    let broker = |name: &'static str, number: u32| {
        let of_it = brokers.join(format!("node-{number}"));
        Subject {
            name,
            words: vec![of_it.join("server.properties").to_str().expect("UTF-8").to_owned()],
            directory: Some(of_it),
            engine: None,
        }
    };
    vec![
        engine("engine 0", "node-0", &engines[0]),
        engine("engine 1", "node-1", &engines[1]),
        ours("gateway", "gateway"),
        ours("lake", "lake"),
        Subject {
            name: "audit watch",
            words: ["watch", group].map(str::to_owned).into(),
            directory: None,
            engine: None,
        },
        broker("broker 1", 1),
        broker("broker 2", 2),
        broker("broker 3", 3),
        Subject {
            name: "load.py",
            words: vec!["--keep-policy".to_owned(), group.trim_end_matches("-group").to_owned()],
            directory: None,
            engine: None,
        },
        Subject {
            name: "rollcall load",
            words: vec!["load".to_owned(), path("load.json")],
            directory: None,
            engine: None,
        },
        Subject {
            name: "this test, with the proxy",
            words: std::env::args().collect(),
            directory: None,
            engine: None,
        },
    ]
}

fn compared() -> BTreeMap<&'static str, Compared> {
    BTreeMap::from([
        ("engine 0", Compared::Throughout),
        ("engine 1", Compared::AtOneAge),
        ("gateway", Compared::Throughout),
        ("lake", Compared::Throughout),
        ("audit watch", Compared::Throughout),
        ("broker 1", Compared::NotJudged),
        ("broker 2", Compared::NotJudged),
        ("broker 3", Compared::NotJudged),
    ])
}

impl Soak<'_> {
    fn wait_for_the_gateway(&self) {
        let begun = Instant::now();
        while TcpStream::connect(&self.gateway_address).is_err() {
            assert!(begun.elapsed() < PATIENCE, "no gateway: {}", self.gateway.last());
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn crowd(&self, seconds: Duration, number: usize) -> Crowd {
        Crowd::start(
            self.directory,
            &CrowdSettings {
                gateway: &format!("ws://{}", self.gateway_address),
                engine: &self.run.nodes[0].url(),
                people: self.settings.people,
                seconds: seconds.as_secs(),
                seed: self.settings.seed + number as u64,
            },
        )
    }

    /// Waits for the end of a run of `rollcall load`. Then its users are forgotten, so that there are as many as before.
    fn end(&mut self, mut crowd: Crowd, long: Duration) -> Result<Value, String> {
        let begun = Instant::now();
        while !crowd.is_over() {
            if begun.elapsed() > long + OVERDUE {
                return Err(format!("it has not ended {OVERDUE:?} after its time"));
            }
            thread::sleep(Duration::from_millis(200));
        }
        let report = crowd.report()?;
        let prefix = report["users"].as_str().expect("it names its users");
        let forget = |number: usize| json!({"type": "forget", "user": format!("{prefix}{number}")});
        let events: Vec<Value> = (0..self.settings.people).map(forget).collect();
        let begun = Instant::now();
        let url = format!("{}/v1/events", self.run.nodes[0].url());
        while let Err(error) = ureq::post(&url).send(json!(events).to_string()) {
            if begun.elapsed() > PATIENCE {
                return Err(format!("its users cannot be forgotten: {error}"));
            }
            thread::sleep(Duration::from_millis(500));
        }
        Ok(report)
    }

    /// Nothing fails, and every change must be the expected one.
    fn calm(&mut self, number: usize) {
        let crowd = self.crowd(CALM, number);
        thread::sleep(ARRIVAL);
        self.sampler.steady.store(true, Ordering::Relaxed);
        thread::sleep(CALM - ARRIVAL - DEPARTURE);
        self.sampler.steady.store(false, Ordering::Relaxed);
        match self.end(crowd, CALM) {
            Ok(report) => {
                self.calm_runs.add(&report);
                if report["changes_missing"] != 0 || report["changes_unexpected"] != 0 {
                    let problems = &report["problems"];
                    self.complaints
                        .push(format!("calm run {number} of `rollcall load`: {problems}"));
                }
            }
            Err(why) => self
                .complaints
                .push(format!("calm run {number} of `rollcall load`: {why}")),
        }
    }

    /// Something fails while people are there. What they miss is counted and is not judged: the topics are, at the end.
    fn struck(&mut self, kind: &Kind, number: usize) {
        let crowd = self.crowd(STRUCK, number);
        thread::sleep(Duration::from_secs(10));
        println!("{}", kind.name());
        self.strike(kind);
        *self.struck.entry(kind.name()).or_default() += 1;
        match self.end(crowd, STRUCK) {
            Ok(report) => self.struck_runs.add(&report),
            Err(why) => println!("a run of `rollcall load` gave no report: {why}"),
        }
    }

    fn strike(&mut self, kind: &Kind) {
        match kind {
            Kind::Upgrade => self.upgrade(),
            Kind::Restart => {
                self.run.nodes[1].stop();
                self.run.nodes[1].start(None);
                self.run.settle();
            }
            Kind::GatewayKilled => {
                self.gateway.kill();
                thread::sleep(LEASE + Duration::from_secs(2));
                self.gateway.start();
                self.wait_for_the_gateway();
            }
            Kind::Network => {
                let (seed, every) = (self.settings.seed, Duration::from_millis(700));
                let (directory, timeline) = (self.directory.to_owned(), self.run.timeline.clone());
                let faults = RandomFaults::new(seed, every, directory, timeline, &self.run.space.group);
                self.proxied.proxy.start_faults(faults);
                thread::sleep(Duration::from_secs(30));
                for (kind, times) in self.proxied.proxy.end_faults() {
                    *self.struck.entry(kind).or_default() += times;
                }
                self.run.settle();
            }
            Kind::Fault(fault) => {
                fault.strike(&mut self.run);
                self.run.settle();
            }
        }
    }

    fn upgrade(&mut self) {
        for place in [0, 1] {
            let failpoint = failpoint(self.settings).filter(|_| place == 0);
            let node = &mut self.run.nodes[place];
            node.stop();
            node.revision = Some(2);
            node.start(failpoint);
            self.run.settle();
        }
        let begun = Instant::now();
        let url = self.run.nodes[0].url();
        loop {
            let output = Command::new(python::program())
                .args(["upgrade", "--url", &url])
                .output();
            let output = output.expect("it starts");
            let said = String::from_utf8_lossy(&output.stdout).into_owned();
            if output.status.success() && said.contains("every partition has revision 2 already") {
                return;
            }
            if begun.elapsed() > PATIENCE {
                let why = String::from_utf8_lossy(&output.stderr).into_owned();
                self.complaints.push(format!("the revision is not raised: {said}{why}"));
                return;
            }
            thread::sleep(Duration::from_secs(1));
        }
    }

    /// Complains of a process that has ended by itself.
    fn look_at_what_must_live(&mut self, lake: &mut Child) {
        for (name, child) in [("gateway", &mut self.gateway), ("lake", lake)] {
            if let Some(status) = child.ended() {
                let last = child.last();
                self.complaints
                    .push(format!("the {name} has ended by itself, {status}: {last}"));
                child.start();
            }
        }
    }
}

/// How many changes are in the topic.
fn changes(space: &Space) -> u64 {
    let ends = python::run("topics.py", space, &["lag", "changes", &space.group]);
    let ends: Vec<(i64, u64)> = serde_json::from_str(&ends).expect("JSON");
    ends.iter().map(|(_, end)| end).sum()
}

/// What `rollcall audit verify` has to complain of.
fn audit_verify(space: &Space) -> Option<String> {
    let output = Command::new(python::program())
        .args(["audit", "verify", "--json", "--kafka", &space.bootstrap])
        .args(["--topic-prefix", &space.prefix, "--group", &space.group])
        .env("ROLLCALL_REVISION", "2")
        .output()
        .expect("it starts");
    let [said, failed] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    (!output.status.success()).then(|| format!("audit verify, {}: {said}{failed}", output.status))
}

/// Has the lake take in what is left, and counts its changes.
fn rows_of_the_lake(arguments: &[&str], lake: &Path) -> u64 {
    let output = Command::new(python::program()).args(arguments).arg("--once").output();
    let output = output.expect("it starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let manifest: PathBuf = lake.join("manifest.json");
    let manifest: Value = serde_json::from_slice(&std::fs::read(manifest).expect("there is one")).expect("JSON");
    let files = manifest["changes"].as_array().expect("files").iter();
    files.map(|file| file["rows"].as_u64().expect("a number")).sum()
}
