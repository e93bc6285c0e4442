//! A soak from its first process to its last one.
//!
//! Two engines fold the events of two loads: `tests/kafka/load.py`, all the time, and `rollcall load`, whose people come in over a
//! gateway, in one run after the other. In every second run all is calm, and each change must be the expected one. In the runs
//! between something fails. Engine 0, the gateway, the lake and the watcher are not restarted in the last half, so that each has
//! one long life there; engine 1 has many.

use crate::child::{Child, Crowd, CrowdSettings};
use crate::engine::{Node, free_port, until};
use crate::faults::{self, Fault};
use crate::journal::{Began, CrowdFigures, Ended, Entry, Journal, must_be_free};
use crate::network::RandomFaults;
use crate::plans;
use crate::proxied::Proxied;
use crate::python::{self, Load};
use crate::readers::Readers;
use crate::report::{self, Compared, Verified};
use crate::run::{PATIENCE, Run};
use crate::sampler::{Sampler, Subject};
use crate::space::Space;
use crate::stop::Stop;
use crate::watcher::Watcher;
use rollcall::random::Random;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const PARTITIONS: usize = 4;
const BROKERS: u16 = 3;
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
/// The gateways of `load.py` are started again fewer times than this in a stretch.
const EPOCHS: usize = 100_000;

pub struct Settings {
    pub minutes: u64,
    pub seed: u64,
    pub people: usize,
    /// Whether engine 0 leaks a descriptor and some memory with each commit of a store.
    pub leak: bool,
    /// Whether the files stay, for another stretch.
    pub is_kept: bool,
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

/// Processes of a run that was killed may need a moment until their ports are free.
const RELEASED: Duration = Duration::from_secs(10);

/// Where our processes listen, the same in all stretches.
struct Ports {
    proxy: Vec<u16>,
    engines: [u16; 2],
    gateway: u16,
}

impl Ports {
    fn of(journal: &Journal, brokers: &Path) -> Result<Ports, String> {
        // A cluster begins at a multiple of ten and has three ports there, see `free_port` in scripts/kafka.
        let choose = || loop {
            let port = free_port();
            if port % 10 > 2 {
                return port;
            }
        };
        let port = |of: &str| journal.port(of, RELEASED, choose);
        let ports = Ports {
            proxy: vec![port("proxy 1")?, port("proxy 2")?, port("proxy 3")?],
            engines: [port("engine 0")?, port("engine 1")?],
            gateway: port("gateway")?,
        };
        // Written by the script, with the first port last.
        let cluster = std::fs::read_to_string(brokers.join("cluster")).unwrap_or_default();
        if let Some(first) = cluster.split_whitespace().last() {
            let first: u16 = first
                .parse()
                .map_err(|_| format!("{}/cluster has no port", brokers.display()))?;
            for step in [0, 50, 100] {
                for broker in 0..BROKERS {
                    must_be_free(&format!("broker {}", broker + 1), first + step + broker, RELEASED)?;
                }
            }
        }
        Ok(ports)
    }
}

struct Soak<'s> {
    settings: &'s Settings,
    directory: &'s Path,
    journal: &'s Journal,
    stop: &'s Stop,
    run: Run<'s>,
    proxied: &'s Proxied,
    gateway: Child,
    gateway_address: String,
    /// Whether samples can be compared.
    steady: Arc<AtomicBool>,
}

/// A stretch, in this directory: the only one, or one more of a soak that is kept there. Error: why it cannot begin.
pub fn soak(settings: &Settings, directory: &Path, journal: &Arc<Journal>, stop: &Stop) -> Result<Outcome, String> {
    let ports = Ports::of(journal, &directory.join("kafka"))?;
    let begun = Instant::now();
    let long = Duration::from_secs(60 * settings.minutes);
    let (before, first_step, prefix) = journal.read(|history| {
        let prefix = history.stretches.first().map(|first| first.began.prefix.clone());
        (history.stretches.len(), history.next_step, prefix)
    });
    let prefix = prefix.unwrap_or_else(|| format!("soak-{}", std::process::id()));
    // What is said at random goes on, and does not begin again.
    let seed = settings.seed.wrapping_add(before as u64);
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| now.as_millis());
    journal.note(Entry::Began(Began {
        at_ms: u64::try_from(now).expect("it fits for ages"),
        commit: rollcall::version::COMMIT.to_owned(),
        seed: settings.seed,
        people: settings.people,
        prefix: prefix.clone(),
    }));
    let keep = settings.is_kept.then_some("--keep");
    let proxied = Proxied::start_in(Some(directory), &ports.proxy, &plans::GROUP, keep);
    let space = Space::named(&proxied.cluster.bootstrap, &prefix, PARTITIONS);
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
    let mut nodes = [0, 1].map(|name| Node::at(ports.engines[name], directory, &way, name, &more));
    for node in &mut nodes {
        // The revision may have been raised, even if the kill came before that was noted.
        node.revision = Some(if before == 0 { 1 } else { 2 });
    }
    nodes[0].start(failpoint(settings));
    nodes[1].start(None);
    let urls = nodes.each_ref().map(Node::url);
    // The load's first record would be before the first policy.
    until(&nodes.each_ref(), PATIENCE, "all partitions are live", || {
        nodes.iter().all(|node| node.live() == PARTITIONS)
    });
    let events = ends(&space, "events");
    let lost = (0..before).filter_map(|stretch| lost(directory, stretch, &events));
    lost.for_each(|lost| journal.complain(lost));
    let gateway_address = format!("127.0.0.1:{}", ports.gateway);
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
    let noted = journal.clone();
    let sampler = Sampler::start(
        subjects(directory, &proxied.data(), &space.group, &urls),
        directory.to_owned(),
        begun,
        journal.clone(),
        move |at_s, disk_bytes| {
            let now = noted.read(|history| {
                let stretch = history.stretches.last().expect("it has begun");
                report::now(&stretch.table, at_s, disk_bytes)
            });
            println!("{:>3.0} min{now}", at_s / 60.0);
        },
    );
    let users: Vec<String> = (0..USERS).map(|number| format!("user {number}")).collect();
    let readers = Readers::start(&urls, &gateway_address, &users);
    let load = load(settings, &space, &urls, seed, before, directory);
    let run = Run {
        cluster: Some(&proxied),
        random: Random(seed),
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
        journal,
        stop,
        run,
        proxied: &proxied,
        gateway,
        gateway_address,
        steady: sampler.steady.clone(),
    };
    soak.wait_for_the_gateway();
    let mut why = "when its minutes were over";
    for number in first_step.. {
        soak.note_changes(begun);
        journal.note(Entry::Read(readers.got()));
        if sampler.disk_bytes() > DISK_BYTES_MAX {
            why = "when the disk was full";
            journal.complain(format!("more than {DISK_BYTES_MAX} bytes are on the disk"));
            break;
        }
        if begun.elapsed() >= long {
            break;
        }
        soak.run.settle();
        soak.calm(number);
        soak.struck(&Kind::of(number), number);
        if stop.is_asked() {
            why = "when it was asked to";
            break;
        }
        journal.note(Entry::Step(number));
        soak.look_at_what_must_live(&mut lake);
    }
    let took_s = begun.elapsed().as_secs_f64();
    println!("{:.0} min: the load ends, and everything is checked", took_s / 60.0);
    let disk_bytes = sampler.disk_bytes();
    drop(sampler);
    let got = readers.got();
    drop(readers);
    journal.note(Entry::Read(got));
    let load = load.end();
    soak.run.reaches(&load["ends"]);
    soak.note_changes(begun);
    let why = why.to_owned();
    journal.note(Entry::Ended(Ended { took_s, why }));
    let complain = |of: &str, wrong: Option<String>| {
        if let Some(wrong) = wrong {
            journal.complain(format!("{of}: {wrong}"));
        }
    };
    complain("the gateway", soak.gateway.stop());
    complain("the lake", lake.stop());
    soak.run.nodes.iter_mut().for_each(Node::stop);
    let space = &soak.run.space;
    let committed: Vec<u64> = python::places(space).iter().map(|(committed, _)| *committed).collect();
    let opinion = watcher.end(&committed);
    opinion.complaints.iter().for_each(|wrong| journal.complain(wrong));
    complain("audit verify", audit_verify(space));
    let verdict = python::check(space, Some(&load["ends"]));
    verdict.complaints.iter().for_each(|wrong| journal.complain(wrong));
    let verified = Verified {
        events: verdict.sum("events"),
        changes: verdict.sum("changes"),
        kicks: verdict.sum("kicks"),
        malformed: verdict.sum("malformed"),
        watched: opinion.events,
        in_the_lake: rows_of_the_lake(&lake_arguments, &directory.join("lake")),
        disk_bytes,
    };
    let (events, changes, in_the_lake) = (verified.events, verified.changes, verified.in_the_lake);
    if in_the_lake != changes {
        journal.complain(format!("the lake has {in_the_lake} changes, and the topic {changes}"));
    }
    let compared_before = journal.read(|history| history.stretches.iter().map(|stretch| stretch.events).max());
    let compared_before = compared_before.unwrap_or_default();
    if compared_before > events {
        journal.complain(format!(
            "{compared_before} events were compared before, and now {events}"
        ));
    }
    journal.note(Entry::Verified { events });
    if settings.is_kept && faults::command(&proxied, "down") != "ok" {
        journal.complain("the brokers do not end when they are asked to");
    }
    Ok(journal.read(|history| {
        let rows = report::judge(history, &compared(), settings.is_kept);
        let mut complaints = report::complaints(history, &rows, settings.is_kept);
        complaints.extend((0..=before).filter_map(|stretch| refused(directory, stretch)));
        let minutes: f64 = history.stretches.iter().map(|stretch| stretch.seconds() / 60.0).sum();
        let kept = if settings.is_kept { " DIR=…" } else { "" };
        let mut text = format!(
            "`make soak MINUTES={}{kept}`, seed {}, commit {}, {} people: {minutes:.0} minutes.\n\n",
            settings.minutes,
            settings.seed,
            rollcall::version::COMMIT,
            settings.people,
        );
        text.push_str(&report::text(history, &rows, &verified, &complaints, settings.is_kept));
        Outcome { text, complaints }
    }))
}

/// Starts `load.py`, for longer than a stretch may last. It keeps a file of what it has done.
fn load(settings: &Settings, space: &Space, urls: &[String; 2], seed: u64, stretch: usize, directory: &Path) -> Load {
    let seconds = (60 * settings.minutes + 7_200).to_string();
    let mut arguments = vec!["--seconds", &seconds, "--rate", RATE, "--writers", "2", "--users", "60"];
    arguments.extend(["--keep-policy", "--http", &urls[0], "--http", &urls[1]]);
    // Gateways that were restarted: else its connections would be older than those of the stretch before.
    let epoch = (stretch * EPOCHS).to_string();
    let totals = totals(directory, stretch);
    arguments.extend(["--epoch", &epoch, "--totals", totals.to_str().expect("UTF-8")]);
    Load::start(space, seed, &arguments)
}

fn totals(directory: &Path, stretch: usize) -> PathBuf {
    directory.join(format!("load-{}.json", stretch + 1))
}

/// What the load of a stretch had done a few seconds before its end. A run that was killed early has no file of it.
fn done(directory: &Path, stretch: usize) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(totals(directory, stretch)).ok()?).ok()
}

/// What of the load of a stretch was refused: nothing should be.
fn refused(directory: &Path, stretch: usize) -> Option<String> {
    let done = done(directory, stretch)?;
    let is_refused = done["counts"]["refused"].as_u64() > Some(0);
    is_refused.then(|| {
        format!(
            "of the load of stretch {} was refused: {}",
            stretch + 1,
            done["refusals"]
        )
    })
}

/// Whether the brokers have all that was acknowledged to the load of a stretch, however they ended.
fn lost(directory: &Path, stretch: usize, ends: &[u64]) -> Option<String> {
    let acknowledged = done(directory, stretch)?;
    let is_lost = |(partition, end): (usize, &u64)| {
        let last = acknowledged["ends"][partition.to_string()].as_u64()?;
        (last >= *end).then(|| format!("partition {partition} ends at {end}, and offset {last} was acknowledged"))
    };
    let lost: Vec<String> = ends.iter().enumerate().filter_map(is_lost).collect();
    (!lost.is_empty()).then(|| format!("events of stretch {} are lost: {}", stretch + 1, lost.join(", ")))
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

    fn note_changes(&self, begun: Instant) {
        let at_s = begun.elapsed().as_secs_f64();
        let changes = ends(&self.run.space, "changes").iter().sum();
        self.journal.note(Entry::Changes { at_s, changes });
    }

    fn note_struck(&self, kind: &str, times: u32) {
        let kind = kind.to_owned();
        self.journal.note(Entry::Struck { kind, times });
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

    /// Waits for the end of a run of `rollcall load`. Then its users are forgotten, so that there are as many as before. `None` if
    /// the stretch is to end before that: then nobody knows its users' names.
    fn end(&mut self, mut crowd: Crowd, long: Duration) -> Result<Option<Value>, String> {
        let begun = Instant::now();
        while !crowd.is_over() {
            if self.stop.is_asked() {
                return Ok(None);
            }
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
        Ok(Some(report))
    }

    /// Nothing fails, and every change must be the expected one.
    fn calm(&mut self, number: usize) {
        let crowd = self.crowd(CALM, number);
        self.stop.pause(ARRIVAL);
        self.steady.store(true, Ordering::Relaxed);
        self.stop.pause(CALM - ARRIVAL - DEPARTURE);
        self.steady.store(false, Ordering::Relaxed);
        match self.end(crowd, CALM) {
            Ok(None) => {}
            Ok(Some(report)) => {
                let figures = CrowdFigures::of(&report);
                self.journal.note(Entry::Crowd { calm: true, figures });
                if report["changes_missing"] != 0 || report["changes_unexpected"] != 0 {
                    let problems = &report["problems"];
                    self.journal
                        .complain(format!("calm run {number} of `rollcall load`: {problems}"));
                }
            }
            Err(why) => self
                .journal
                .complain(format!("calm run {number} of `rollcall load`: {why}")),
        }
    }

    /// Something fails while people are there. What they miss is counted and is not judged: the topics are, at the end.
    fn struck(&mut self, kind: &Kind, number: usize) {
        let crowd = self.crowd(STRUCK, number);
        self.stop.pause(Duration::from_secs(10));
        if self.stop.is_asked() {
            return;
        }
        println!("{}", kind.name());
        self.strike(kind);
        self.note_struck(kind.name(), 1);
        match self.end(crowd, STRUCK) {
            Ok(None) => {}
            Ok(Some(report)) => self.journal.note(Entry::Crowd {
                calm: false,
                figures: CrowdFigures::of(&report),
            }),
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
                self.stop.pause(LEASE + Duration::from_secs(2));
                self.gateway.start();
                self.wait_for_the_gateway();
            }
            Kind::Network => {
                let (seed, every) = (self.settings.seed, Duration::from_millis(700));
                let (directory, timeline) = (self.directory.to_owned(), self.run.timeline.clone());
                let faults = RandomFaults::new(seed, every, directory, timeline, &self.run.space.group);
                self.proxied.proxy.start_faults(faults);
                self.stop.pause(Duration::from_secs(30));
                for (kind, times) in self.proxied.proxy.end_faults() {
                    self.note_struck(kind, times);
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
                self.journal
                    .complain(format!("the revision is not raised: {said}{why}"));
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
                self.journal
                    .complain(format!("the {name} has ended by itself, {status}: {last}"));
                child.start();
            }
        }
    }
}

/// Where each partition of a topic ends.
fn ends(space: &Space, topic: &str) -> Vec<u64> {
    let ends = python::run("topics.py", space, &["lag", topic, &space.group]);
    let ends: Vec<(i64, u64)> = serde_json::from_str(&ends).expect("JSON");
    ends.iter().map(|(_, end)| *end).collect()
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
    (!output.status.success()).then(|| format!("{}: {said}{failed}", output.status))
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
