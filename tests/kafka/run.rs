//! A run: engines fold while a load is written and faults happen; at the end the independent reader checks the topics. The seed
//! determines every choice.

use crate::engine::Node;
use crate::faults::Fault;
use crate::network::{self, RandomFaults};
use crate::proxied::Proxied;
use crate::python::{self, LeaderMoves, Load, Verdict};
use crate::space::Space;
use crate::table::{Reconciled, Row};
use crate::timeline::{self, Explained, Target, Timeline};
use crate::watcher::Watcher;
use rollcall::random::Random;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// How long a partition may make no progress when no fault is active.
pub const PATIENCE: Duration = Duration::from_secs(150);

/// Waits for some time, from the least to the most.
pub fn pause(random: &mut Random, least_ms: u64, most_ms: u64) {
    thread::sleep(Duration::from_millis(random.between(least_ms, most_ms + 1)));
}

/// What a run is made of.
pub struct Plan {
    pub name: &'static str,
    pub nodes: usize,
    pub partitions: usize,
    /// Events a second.
    pub rate: u32,
    /// Whether checkpoints are made, every few seconds.
    pub checkpoints: bool,
    /// More arguments of `rollcall serve`.
    pub arguments: &'static [&'static str],
    /// Still more, of every second node.
    pub of_every_second: &'static [&'static str],
    /// How often, on average, something happens to a request between the engines and the brokers, if anything does.
    pub network: Option<Duration>,
    /// Whether leaders of partitions move all the time.
    pub leaders_move: bool,
    /// How long a partition may make no progress when no fault is active.
    pub patience: Duration,
    pub faults: Vec<Fault>,
}

pub struct Run<'c> {
    /// Whose brokers may be struck; None where only engines are.
    pub cluster: Option<&'c Proxied>,
    pub space: Space,
    pub random: Random,
    pub nodes: Vec<Node>,
    /// Which of them faults of engines may strike.
    pub mortal: Vec<usize>,
    /// Where checkpoints are, if any are made.
    pub checkpoints: PathBuf,
    pub patience: Duration,
    /// When which fault happened.
    pub timeline: Arc<Timeline>,
}

/// Runs a plan to its end and returns the result. Panics if a partition stops making progress.
pub fn run(plan: &Plan, bootstrap: &str, cluster: Option<&Proxied>, seed: u64) -> Row {
    let (begun, from) = (Instant::now(), SystemTime::now());
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, plan.name, plan.partitions);
    let checkpoints = directory.path().join("checkpoints");
    let url = format!("file://{}", checkpoints.display());
    let mut more = plan.arguments.to_vec();
    if plan.checkpoints {
        more.extend([
            "--checkpoints",
            &url,
            "--checkpoint-every",
            "3s",
            "--checkpoints-kept",
            "5",
        ]);
    }
    let network = plan
        .network
        .map(|every| (&cluster.expect("a cluster of its own").proxy, every));
    let way = match network {
        Some((proxy, _)) => space.reached_by(&proxy.bootstrap()),
        None => space.reached_by(bootstrap),
    };
    let nodes = (0..plan.nodes).map(|name| {
        let its = if name % 2 == 1 { plan.of_every_second } else { &[] };
        Node::new(directory.path(), &way, name, &[&*more, its].concat())
    });
    let nodes: Vec<Node> = nodes.collect();
    let mut run = Run {
        cluster,
        random: Random(seed),
        mortal: (0..nodes.len()).collect(),
        nodes,
        checkpoints,
        space,
        patience: plan.patience,
        timeline: Arc::default(),
    };
    for node in &mut run.nodes {
        node.start(None);
    }
    // Short runs share a broker with each other, which would be busy with their watchers.
    let watcher = cluster.map(|_| Watcher::start(directory.path(), &run.space));
    let rate = plan.rate.to_string();
    let mut arguments = vec!["--seconds", "3600", "--rate", &rate];
    let urls: Vec<String> = run.nodes.iter().map(Node::url).collect();
    for url in &urls {
        arguments.extend(["--http", url]);
    }
    let load = Load::start(&run.space, seed, &arguments);
    run.settle();
    if let Some((proxy, every)) = network {
        let timeline = run.timeline.clone();
        let faults = RandomFaults::new(seed, every, directory.path().to_owned(), timeline, &run.space.group);
        proxy.start_faults(faults);
    }
    let moving = SystemTime::now();
    let moves = plan.leaders_move.then(|| LeaderMoves::start(&run.space, seed));
    let mut struck = BTreeMap::new();
    for fault in &plan.faults {
        println!("{}: {fault}", plan.name);
        fault.strike(&mut run);
        *struck.entry(fault.kind()).or_insert(0) += fault.times();
    }
    if let Some((proxy, _)) = network {
        struck.extend(proxy.end_faults());
    }
    if let Some(moves) = moves {
        struck.insert("leader moved", moves.end());
        run.timeline.note("leader moved", Target::Brokers, moving);
    }
    run.settle();
    let load = load.end();
    run.reaches(&load["ends"]);
    for node in &mut run.nodes {
        node.stop();
    }
    let committed: Vec<u64> = python::places(&run.space)
        .iter()
        .map(|(committed, _)| *committed)
        .collect();
    let opinion = watcher.map(|watcher| watcher.end(&committed));
    let doubts = opinion.as_ref().map_or(&[][..], |opinion| &opinion.complaints);
    let verdict = python::check(&run.space, Some(&load["ends"]));
    run.report(&verdict);
    doubts.iter().for_each(|complaint| println!("{complaint}"));
    let explained = run.explain();
    let random = run
        .timeline
        .explained_at_random(from, SystemTime::now(), plan.partitions as u32, &explained);
    let shown = cluster.map(|cluster| python::aborted(&cluster.data(), &run.space));
    let is_unexplained = explained.iter().any(|one| one.by.is_none());
    if (!verdict.complaints.is_empty() || !doubts.is_empty() || is_unexplained)
        && let Some(cluster) = cluster
    {
        let name = format!("rollcall-{}-{}", plan.name, std::process::id());
        let keep = std::env::temp_dir().join(name);
        network::copy_fetched(directory.path(), &keep);
        for node in &run.nodes {
            let to = keep.with_extension(format!("node-{}.log", node.name));
            println!(
                "what the engine logged, copied to {}: {:?}",
                to.display(),
                std::fs::write(&to, node.log())
            );
        }
        cluster.cluster.script.lock().expect("nobody panicked with it").keep = Some(keep);
    }
    let reconciled = Reconciled {
        explained,
        random,
        shown,
        opinion,
    };
    Row::new((plan.name, seed), begun.elapsed(), struck, verdict, &load, reconciled)
}

impl Run<'_> {
    /// Starts every engine, and waits until the current log is folded and committed.
    pub fn settle(&mut self) {
        for node in &mut self.nodes {
            if !node.is_running() {
                node.start(None);
            }
        }
        let ends: Vec<u64> = python::places(&self.space).iter().map(|(_, end)| *end).collect();
        // The load continues, so that there is always a record after the current end.
        self.until("what is in the log is folded", |places| {
            places.iter().zip(&ends).all(|((committed, _), end)| committed >= end)
        });
    }

    /// Whatever was acknowledged is folded and committed.
    pub fn reaches(&mut self, ends: &Value) {
        self.until("what was acknowledged is folded", |places| {
            places.iter().enumerate().all(|(partition, (committed, _))| {
                let last = ends[partition.to_string()].as_u64();
                last.is_none_or(|last| *committed > last)
            })
        });
    }

    pub fn until(&mut self, what: &str, mut holds: impl FnMut(&[(u64, u64)]) -> bool) {
        let begun = Instant::now();
        loop {
            let places = python::places(&self.space);
            if holds(&places) {
                return;
            }
            if begun.elapsed() > self.patience {
                self.give_up(&format!("not within {:?}: {what}: {places:?}", self.patience));
            }
            thread::sleep(Duration::from_millis(300));
        }
    }

    /// Ends the test and says what the engines said.
    pub fn give_up(&mut self, why: &str) -> ! {
        for node in &mut self.nodes {
            let runs = node.is_running();
            println!("== node {}, running: {runs}\n{}", node.name, node.diary());
        }
        panic!("{}: {why}", self.space.prefix);
    }

    /// Something has happened to an engine from then until now.
    pub fn note(&self, kind: &'static str, node: usize, from: SystemTime) {
        self.timeline.note(kind, Target::Engine(self.nodes[node].name), from);
    }

    /// What the engines said of outputs that their positions did not include, each with the fault that explains it.
    fn explain(&self) -> Vec<Explained> {
        let found = self
            .nodes
            .iter()
            .flat_map(|node| timeline::reconciliations(node.name, &node.log()));
        let explained = self.timeline.explain_all(found.collect());
        for one in &explained {
            println!("{one}");
        }
        explained
    }

    /// One of the nodes that run; all of them do between faults.
    pub fn any(&mut self) -> usize {
        self.mortal[self.random.index(self.mortal.len())]
    }

    /// What the engines said, if anything is wrong; else only what troubled them.
    fn report(&self, verdict: &Verdict) {
        let is_well = verdict.complaints.is_empty();
        for node in &self.nodes {
            println!("== {}, node {}", self.space.prefix, node.name);
            let diary = node.diary();
            let lines = diary
                .lines()
                .filter(|line| !is_well || line.contains(" ERROR ") || line.contains(" WARN "));
            lines.for_each(|line| println!("{line}"));
        }
        for complaint in &verdict.complaints {
            println!("{complaint}");
        }
    }
}
