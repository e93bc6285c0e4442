//! The faults, and how each changes a run.

use crate::engine::Node;
use crate::proxied::Proxied;
use crate::python;
use crate::run::{Run, pause};
use crate::timeline::Target;
use std::fmt;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

/// Longer than the session and the transaction of an engine in tests, see `Node::new`.
const PAST_EVERY_TIMEOUT_MS: (u64, u64) = (7_500, 11_000);
/// How long a process may take to come to its failpoint.
const REACHED: Duration = Duration::from_secs(90);

#[derive(Clone, Debug)]
pub enum Fault {
    /// SIGKILL at a random moment, so many times, and started again.
    Kills(u32),
    /// Ends itself at a step of the partition processor, reached for the n-th time.
    Failpoint(&'static str, u32),
    /// SIGSTOP for longer than session and transaction last; another takes over; then it wakes up.
    Sleep,
    /// SIGSTOP for less than that.
    Nap,
    /// Nodes join and leave, this many times, some by SIGTERM and some by SIGKILL.
    Storm(u32),
    /// SIGKILL of one broker, and started again.
    BrokerKilled,
    /// The broker that coordinates the group stops normally, and starts again.
    CoordinatorMoved,
    /// SIGKILL of all brokers, for so long.
    AllDown(Duration),
    /// SIGSTOP of all brokers for so many milliseconds: commits with an unknown outcome.
    BrokersPaused(u64),
    StoreDeleted,
    /// The stores of two partitions change places.
    StoreForeign,
    /// A store as it was some time ago is put back.
    StoreOld,
    /// All engines lose their stores, and of each partition the newest checkpoint is damaged.
    CheckpointDamaged,
}

impl Fault {
    pub fn kind(&self) -> &'static str {
        match self {
            Fault::Kills(_) => "engine killed",
            Fault::Failpoint(..) => "engine died at a failpoint",
            Fault::Sleep => "engine asleep past its session and transaction",
            Fault::Nap => "engine asleep for less",
            Fault::Storm(_) => "engine joined or left",
            Fault::BrokerKilled => "broker killed",
            Fault::CoordinatorMoved => "coordinator moved",
            Fault::AllDown(_) => "all brokers killed at once",
            Fault::BrokersPaused(_) => "brokers stopped in the middle of commits",
            Fault::StoreDeleted => "store deleted",
            Fault::StoreForeign => "stores of two partitions swapped",
            Fault::StoreOld => "old store put back",
            Fault::CheckpointDamaged => "all stores lost, and the newest checkpoints damaged",
        }
    }

    pub fn times(&self) -> u32 {
        match self {
            Fault::Kills(times) | Fault::Storm(times) => *times,
            _ => 1,
        }
    }

    pub fn strike(&self, run: &mut Run<'_>) {
        match self {
            Fault::Kills(times) => (0..*times).for_each(|_| kill(run)),
            Fault::Failpoint(step, nth) => failpoint(run, step, *nth),
            Fault::Sleep => {
                sleep(run, PAST_EVERY_TIMEOUT_MS);
                run.settle();
            }
            Fault::Nap => sleep(run, (200, 2_500)),
            Fault::Storm(times) => storm(run, *times),
            Fault::BrokerKilled => {
                let broker = 1 + run.random.index(3);
                let from = SystemTime::now();
                brokers(run, "kill", &[broker]);
                pause(&mut run.random, 1_000, 8_000);
                brokers(run, "start", &[broker]);
                run.timeline.note(self.kind(), Target::Brokers, from);
                run.settle();
            }
            Fault::CoordinatorMoved => {
                let printed = python::run("topics.py", &run.space, &["coordinator", &run.space.group]);
                let broker = printed.trim().parse().expect("a number");
                let from = SystemTime::now();
                brokers(run, "stop", &[broker]);
                pause(&mut run.random, 3_000, 6_000);
                brokers(run, "start", &[broker]);
                run.timeline.note(self.kind(), Target::Brokers, from);
                run.settle();
            }
            Fault::AllDown(long) => {
                let from = SystemTime::now();
                brokers(run, "kill", &[1, 2, 3]);
                thread::sleep(*long);
                brokers(run, "start", &[1, 2, 3]);
                run.timeline.note(self.kind(), Target::Brokers, from);
                run.settle();
            }
            Fault::BrokersPaused(ms) => {
                pause(&mut run.random, 200, 700);
                let from = SystemTime::now();
                brokers(run, "pause", &[1, 2, 3]);
                thread::sleep(Duration::from_millis(*ms));
                brokers(run, "resume", &[1, 2, 3]);
                run.timeline.note(self.kind(), Target::Brokers, from);
                if *ms > 3_000 {
                    run.settle();
                }
            }
            Fault::CheckpointDamaged => checkpoints_damaged(run),
            Fault::StoreDeleted => with_stores(run, |_, node| {
                std::fs::remove_dir_all(store(node)).expect("it was there");
            }),
            Fault::StoreForeign => with_stores(run, |_, node| swap_stores(node)),
            Fault::StoreOld => with_stores(run, |run, node| {
                let old = node.data.join("old");
                copy(&store(node), &old);
                node.start(None);
                pause(&mut run.random, 4_000, 6_000);
                node.kill();
                std::fs::remove_dir_all(store(node)).expect("it was there");
                std::fs::rename(&old, store(node)).expect("put back");
            }),
        }
    }
}

fn kill(run: &mut Run<'_>) {
    pause(&mut run.random, 0, 1_800);
    let node = run.any();
    let from = SystemTime::now();
    run.nodes[node].kill();
    // At once, or so late that another has taken over.
    let most = [50, 1_000, 5_500][run.random.index(3)];
    pause(&mut run.random, 0, most);
    run.nodes[node].start(None);
    run.note("engine killed", node, from);
}

fn failpoint(run: &mut Run<'_>, step: &str, nth: u32) {
    let node = run.any();
    let from = SystemTime::now();
    run.nodes[node].stop();
    run.nodes[node].start(Some(&format!("{step}:{nth}")));
    let begun = Instant::now();
    while run.nodes[node].is_running() {
        if begun.elapsed() > REACHED {
            run.give_up(&format!("node {node} does not come to {step} for the {nth}. time"));
        }
        thread::sleep(Duration::from_millis(20));
    }
    assert!(
        run.nodes[node].was_aborted(),
        "{step}:{nth}: it ended otherwise:\n{}",
        run.nodes[node].diary()
    );
    run.nodes[node].start(None);
    run.note("engine died at a failpoint", node, from);
}

fn sleep(run: &mut Run<'_>, (least_ms, most_ms): (u64, u64)) {
    let node = run.any();
    pause(&mut run.random, 0, 300);
    let from = SystemTime::now();
    run.nodes[node].signal("STOP");
    pause(&mut run.random, least_ms, most_ms);
    run.nodes[node].signal("CONT");
    run.note("engine asleep", node, from);
}

fn storm(run: &mut Run<'_>, times: u32) {
    for _ in 0..times {
        let node = run.any();
        let running = run
            .nodes
            .iter_mut()
            .filter_map(|node| node.is_running().then_some(()))
            .count();
        let from = SystemTime::now();
        if !run.nodes[node].is_running() {
            run.nodes[node].start(None);
        } else if running > 1 {
            if run.random.index(2) == 0 {
                run.nodes[node].kill();
            } else {
                run.nodes[node].stop();
            }
        }
        run.note("engine joined or left", node, from);
        pause(&mut run.random, 0, 1_500);
    }
    run.settle();
}

/// Done when this returns.
fn brokers(run: &Run<'_>, what: &str, which: &[usize]) {
    let which: Vec<String> = which.iter().map(usize::to_string).collect();
    let cluster = run.cluster.expect("a cluster of its own");
    // On a machine that is busy with other things a broker may need more than one try to start.
    let tries = if what == "start" { 3 } else { 1 };
    for _ in 0..tries {
        if command(cluster, &format!("{what} {}", which.join(" "))) == "ok" {
            return;
        }
        println!("{what} {which:?} has failed");
    }
    panic!("{what} {which:?} has failed {tries} times");
}

/// Has the script do something, and returns what it answers.
pub fn command(cluster: &Proxied, line: &str) -> String {
    let mut script = cluster.cluster.script.lock().expect("nobody panicked with it");
    let commands = script.commands.as_mut().expect("open until the end");
    writeln!(commands, "{line}").expect("the script listens");
    script.answer()
}

fn store(node: &Node) -> PathBuf {
    node.data.join("store")
}

/// Something is done to the stores of a node that was killed; then it starts again and everything is folded. There are
/// fewer nodes than partitions, so that one has two stores at least.
fn with_stores(run: &mut Run<'_>, what: impl FnOnce(&mut Run<'_>, &mut Node)) {
    let begun = Instant::now();
    let mut place = run.any();
    while stores_of(&run.nodes[place]).len() < 2 {
        if begun.elapsed() > REACHED {
            run.give_up("no node has two stores");
        }
        thread::sleep(Duration::from_millis(100));
        place = run.any();
    }
    let mut node = run.nodes.swap_remove(place);
    let from = SystemTime::now();
    node.kill();
    what(run, &mut node);
    node.start(None);
    run.timeline
        .note("engine killed, and its stores", Target::Engine(node.name), from);
    run.nodes.push(node);
    run.settle();
}

fn stores_of(node: &Node) -> Vec<PathBuf> {
    entries(&store(node))
}

fn swap_stores(node: &Node) {
    let there = stores_of(node);
    let [first, second, ..] = &*there else {
        panic!("no two stores: {there:?}");
    };
    let aside = node.data.join("aside");
    std::fs::rename(first, &aside).expect("moved");
    std::fs::rename(second, first).expect("moved");
    std::fs::rename(&aside, second).expect("moved");
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let there = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let mut there: Vec<PathBuf> = there.map(|entry| entry.path()).collect();
    there.sort();
    there
}

fn checkpoints_damaged(run: &mut Run<'_>) {
    let of_the_group = run.checkpoints.join(&run.space.group);
    let partitions = python::places(&run.space).len();
    let complete = |partition: &PathBuf| -> Vec<PathBuf> {
        // In order of age by their names; the list of files is written last.
        let all = entries(partition).into_iter();
        all.filter(|one| one.join("MANIFEST.json").exists()).collect()
    };
    let begun = Instant::now();
    let has_two = || {
        entries(&of_the_group)
            .iter()
            .filter(|one| complete(one).len() >= 2)
            .count()
    };
    while has_two() < partitions {
        if begun.elapsed() > REACHED {
            run.give_up("there are no two checkpoints of each partition");
        }
        thread::sleep(Duration::from_millis(200));
    }
    let from = SystemTime::now();
    run.nodes.iter_mut().for_each(Node::kill);
    let said_before = SAID.map(|said| times_said(run, said));
    for partition in entries(&of_the_group) {
        let checkpoints = complete(&partition);
        let newest = checkpoints.last().expect("there are two");
        let files = entries(newest)
            .into_iter()
            .filter(|file| !file.ends_with("MANIFEST.json"));
        let largest = files.max_by_key(|file| file.metadata().map_or(0, |file| file.len()));
        let largest = largest.expect("it has files");
        let mut bytes = std::fs::read(&largest).expect("readable");
        let place = run.random.index(bytes.len());
        bytes[place] ^= 1;
        std::fs::write(&largest, bytes).expect("written");
    }
    for node in &run.nodes {
        let _ = std::fs::remove_dir_all(store(node));
    }
    for node in &run.nodes {
        run.timeline
            .note("engine killed, and its stores", Target::Engine(node.name), from);
    }
    run.settle();
    for (said, before) in SAID.into_iter().zip(said_before) {
        if times_said(run, said) < before + partitions {
            run.give_up(&format!("not said of each partition: {said:?}"));
        }
    }
}

/// Of a partition whose newest checkpoint is not whole.
const SAID: [&str; 2] = ["the checkpoint is damaged", "the store was restored from a checkpoint"];

fn times_said(run: &Run<'_>, said: &str) -> usize {
    run.nodes.iter().map(|node| node.diary().matches(said).count()).sum()
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").args([from, to]).status();
    assert!(copied.expect("cp is there").success());
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}
