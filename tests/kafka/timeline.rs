//! When which fault happened, and to what. At the end of a run each reconciliation (an engine has found outputs that the
//! committed position does not include) must be explained by a fault shortly before it.

use crate::frames::Frame;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

/// A commit that failed has waited for its brokers for at most this long: the engine's time-out of a call, and a little.
const BEFORE_A_FAILED_COMMIT: Duration = Duration::from_secs(12);
/// Who takes a partition waits for the end of the session of the one before and of its transaction, and then for as
/// long as a new producer may take.
const BEFORE_A_TAKE_UP: Duration = Duration::from_secs(45);
/// A commit that failed is looked up once a new producer is there.
const SETTLED: Duration = Duration::from_secs(60);

/// What a fault happened to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    Engine(usize),
    /// One broker or all of them: each has something of every partition.
    Brokers,
    /// A connection of clients to a broker, by the proxy's number.
    Connection(u64),
}

#[derive(Clone, Debug)]
struct Happened {
    kind: &'static str,
    target: Target,
    from: SystemTime,
    to: SystemTime,
}

/// Of one run.
#[derive(Default)]
pub struct Timeline {
    happened: Mutex<Vec<Happened>>,
    /// The partition whose outputs a connection carries.
    producers: Mutex<BTreeMap<u64, u32>>,
}

/// What an engine said of outputs that the committed position did not include.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reconciliation {
    at: SystemTime,
    node: usize,
    partition: u32,
    cause: String,
    /// When the commit failed whose outputs were found; None: they were found when the partition was taken.
    failed: Option<SystemTime>,
}

/// The fault that explains a reconciliation, and how long before it ended.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Explanation {
    pub kind: &'static str,
    pub seconds: f64,
}

pub struct Explained {
    pub reconciliation: Reconciliation,
    pub by: Option<Explanation>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Timeline {
    /// Something happened from then until now.
    pub fn note(&self, kind: &'static str, target: Target, from: SystemTime) {
        self.note_until(kind, target, from, SystemTime::now());
    }

    pub fn note_until(&self, kind: &'static str, target: Target, from: SystemTime, to: SystemTime) {
        lock(&self.happened).push(Happened { kind, target, from, to });
    }

    /// Learns from a request whose outputs its connection carries. A producer's id is the group's name and the partition.
    pub fn learn(&self, connection: u64, group: &str, request: &Frame) {
        if let Some(partition) = request.producer_of(group) {
            lock(&self.producers).insert(connection, partition);
        }
    }

    /// The fault that explains a reconciliation best: of those that can have caused it, the one that ended last.
    fn explain(&self, reconciliation: &Reconciliation) -> Option<Explanation> {
        let Reconciliation {
            at,
            node,
            partition,
            failed,
            ..
        } = reconciliation;
        let producers = lock(&self.producers);
        let (before, window) = match failed {
            Some(failed) => (*failed, BEFORE_A_FAILED_COMMIT),
            None => (*at, BEFORE_A_TAKE_UP),
        };
        let is_cause = |fault: &&Happened| {
            let concerns = match fault.target {
                // Only its own sleep makes an engine's commit fail; who takes a partition finds what the one before left.
                Target::Engine(engine) => failed.is_none() || engine == *node,
                Target::Brokers => true,
                Target::Connection(number) => producers.get(&number) == Some(partition),
            };
            concerns && fault.from <= before && fault.to + window >= before
        };
        let seconds = |fault: &Happened| before.duration_since(fault.to).map_or(0.0, |time| time.as_secs_f64());
        let happened = lock(&self.happened);
        let best = happened
            .iter()
            .filter(is_cause)
            .min_by(|one, other| seconds(one).total_cmp(&seconds(other)))?;
        Some(Explanation {
            kind: best.kind,
            seconds: seconds(best),
        })
    }

    /// Explains each of them.
    pub fn explain_all(&self, found: Vec<Reconciliation>) -> Vec<Explained> {
        found
            .into_iter()
            .map(|reconciliation| Explained {
                by: self.explain(&reconciliation),
                reconciliation,
            })
            .collect()
    }

    /// Of moments a second apart between two times, on each partition, how many have a fault so near before them that can make a
    /// commit fail: with so many faults, that some fault was near proves little by itself.
    pub fn explained_at_random(&self, from: SystemTime, to: SystemTime, partitions: u32, near: &[Explained]) -> f64 {
        let near = near.iter().filter(|one| one.reconciliation.failed.is_some());
        let near = near.filter_map(|one| one.by).map(|by| by.seconds).fold(0.0, f64::max);
        let seconds = to.duration_since(from).map_or(0, |time| time.as_secs());
        let (mut all, mut explained) = (0, 0);
        for second in 0..seconds {
            let at = from + Duration::from_secs(second);
            for partition in 0..partitions {
                let reconciliation = Reconciliation {
                    at,
                    node: usize::MAX,
                    partition,
                    cause: String::new(),
                    failed: Some(at),
                };
                all += 1;
                let by = self.explain(&reconciliation);
                explained += usize::from(by.is_some_and(|by| by.seconds <= near));
            }
        }
        explained as f64 / f64::from(all.max(1))
    }
}

/// Finds the reconciliations in an engine's log.
pub fn reconciliations(node: usize, log: &str) -> Vec<Reconciliation> {
    let mut found = Vec::new();
    let mut failed: BTreeMap<u32, SystemTime> = BTreeMap::new();
    for line in log.lines() {
        let Some(at) = line.split(' ').next().and_then(time) else {
            continue;
        };
        let Some(partition) = field(line, "partition=").and_then(|text| text.parse().ok()) else {
            continue;
        };
        if line.contains("the partition cannot go on") && line.contains("the commit of partition") {
            failed.insert(partition, at);
        }
        let is_found = line.contains("a commit that failed was found in the log");
        let is_behind = line.contains("the log has outputs behind the committed position")
            || line.contains("the committed position is older than the store");
        if is_found || is_behind {
            let before = failed.get(&partition).copied();
            let before = before.filter(|failed| is_found && *failed + SETTLED >= at);
            found.push(Reconciliation {
                at,
                node,
                partition,
                cause: field(line, "cause=").unwrap_or_default().trim_matches('"').to_owned(),
                failed: before,
            });
        }
    }
    found
}

fn field<'l>(line: &'l str, name: &str) -> Option<&'l str> {
    let value = &line[line.find(name)? + name.len()..];
    value.split(' ').next()
}

/// Reads the time of a line.
fn time(text: &str) -> Option<SystemTime> {
    let time = chrono::DateTime::parse_from_rfc3339(text).ok()?;
    Some(SystemTime::UNIX_EPOCH + Duration::from_micros(u64::try_from(time.timestamp_micros()).ok()?))
}

impl Reconciliation {
    pub fn cause(&self) -> &str {
        &self.cause
    }
}

impl std::fmt::Display for Explained {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Reconciliation {
            at,
            node,
            partition,
            cause,
            ..
        } = &self.reconciliation;
        let at = at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        write!(
            f,
            "reconciliation at {:.3}, node {node}, partition {partition}, {cause}: ",
            at.as_secs_f64()
        )?;
        match &self.by {
            Some(by) => write!(f, "{}, {:.1} s before", by.kind, by.seconds),
            None => f.write_str("NOT EXPLAINED by any fault"),
        }
    }
}
