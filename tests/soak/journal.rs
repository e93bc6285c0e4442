//! What a soak remembers. Each figure and each count is an entry, and a stretch, from a start of all processes to their end, is what
//! its entries add up to.
//!
//! With `--keep` each entry is appended to a file as it happens, as a line of JSON, so that a run which is killed loses nothing that
//! was noted before. A run that continues reads them, and adds a stretch of its own.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// Its name in the directory that is kept.
pub const FILE: &str = "soak.jsonl";
#[derive(Serialize, Deserialize, Clone, Debug)]
#[serde(rename_all = "snake_case")]
pub enum Entry {
    /// A stretch begins; what follows is of it.
    Began(Began),
    /// Who listens at a port, in all stretches.
    Port {
        of: String,
        port: u16,
    },
    Measured {
        process: String,
        measured: Measured,
    },
    /// How many changes the topic has.
    Changes {
        at_s: f64,
        changes: u64,
    },
    /// A run of `rollcall load` has ended.
    Crowd {
        calm: bool,
        figures: CrowdFigures,
    },
    /// Something has failed, so many times.
    Struck {
        kind: String,
        times: u32,
    },
    /// This step of the plan, a calm run and something that fails, is over.
    Step(usize),
    /// What the readers have got since the stretch began.
    Read(Got),
    Complaint(String),
    /// The load of the stretch has ended.
    Ended(Ended),
    /// So many events were compared by the independent reader, from the first one on.
    Verified {
        events: u64,
    },
}

#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Began {
    pub at_ms: u64,
    pub commit: String,
    pub seed: u64,
    pub people: usize,
    /// Of the topics.
    pub prefix: String,
}

#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Ended {
    pub took_s: f64,
    pub why: String,
}

/// Of one process at one time.
#[derive(Serialize, Deserialize, Clone, Copy, Debug)]
pub struct Measured {
    /// Since the stretch began.
    pub at_s: f64,
    /// Since this life was first seen.
    pub age_s: f64,
    pub pid: u32,
    /// Whether the load is the same as at other times with `steady`.
    pub steady: bool,
    /// Resident and of nobody else: no pages of files.
    pub memory_bytes: f64,
    /// The part of it that an engine's caches have, which fill for hours and have bounds of their own.
    pub cached_bytes: f64,
    pub descriptors: f64,
    pub threads: f64,
    pub disk_bytes: f64,
    /// Of this life.
    pub cpu_s: f64,
}

/// By process.
pub type Table = BTreeMap<String, Vec<Measured>>;

/// What one run of `rollcall load` reports.
#[derive(Serialize, Deserialize, Clone, Default, Debug)]
pub struct CrowdFigures {
    pub connects: u64,
    pub heartbeats: u64,
    pub changes: u64,
    pub missing: u64,
    pub unexpected: u64,
    /// The median of the latency from an action to its change, in milliseconds.
    pub latency_ms: Option<f64>,
}

impl CrowdFigures {
    pub fn of(report: &Value) -> CrowdFigures {
        let number = |name: &str| report[name].as_u64().unwrap_or_default();
        CrowdFigures {
            connects: number("connects"),
            heartbeats: number("heartbeats"),
            changes: number("changes_as_expected"),
            missing: number("changes_missing"),
            unexpected: number("changes_unexpected"),
            latency_ms: report["change_latency"]["p50_ms"].as_f64(),
        }
    }
}

/// Of the runs of `rollcall load`: how many, and sums.
#[derive(Clone, Default, Debug)]
pub struct Crowds {
    pub runs: u32,
    pub sums: CrowdFigures,
    pub latencies_ms: Vec<f64>,
}

impl Crowds {
    fn add(&mut self, figures: &CrowdFigures) {
        self.runs += 1;
        self.add_sums(figures);
        self.latencies_ms.extend(figures.latency_ms);
    }

    fn add_sums(&mut self, figures: &CrowdFigures) {
        self.sums.connects += figures.connects;
        self.sums.heartbeats += figures.heartbeats;
        self.sums.changes += figures.changes;
        self.sums.missing += figures.missing;
        self.sums.unexpected += figures.unexpected;
    }

    pub fn add_all(&mut self, other: &Crowds) {
        self.runs += other.runs;
        self.add_sums(&other.sums);
        self.latencies_ms.extend(&other.latencies_ms);
    }
}

/// What the readers got.
#[derive(Serialize, Deserialize, Clone, Default, PartialEq, Debug)]
pub struct Got {
    /// Answers by status; 0: none.
    pub answers: BTreeMap<u16, u64>,
    /// Subscriptions, and the changes that they brought.
    pub subscriptions: u64,
    pub changes: u64,
    /// WebSocket watchers, and the changes that they were sent.
    pub watchers: u64,
    pub watched: u64,
    /// What should not have been answered.
    pub complaints: Vec<String>,
}

impl Got {
    pub fn add_all(&mut self, other: &Got) {
        for (status, count) in &other.answers {
            *self.answers.entry(*status).or_default() += count;
        }
        self.subscriptions += other.subscriptions;
        self.changes += other.changes;
        self.watchers += other.watchers;
        self.watched += other.watched;
    }
}

/// From a start of all processes to their end.
#[derive(Clone, Debug)]
pub struct Stretch {
    pub began: Began,
    pub table: Table,
    /// How many changes the topic had, at which second.
    pub changes: Vec<(f64, u64)>,
    pub calm_runs: Crowds,
    pub struck_runs: Crowds,
    pub struck: BTreeMap<String, u32>,
    pub got: Got,
    pub complaints: Vec<String>,
    /// None while it runs, and if it was killed.
    pub ended: Option<Ended>,
    pub events: u64,
}

impl Stretch {
    fn new(began: Began) -> Stretch {
        Stretch {
            began,
            table: Table::new(),
            changes: Vec::new(),
            calm_runs: Crowds::default(),
            struck_runs: Crowds::default(),
            struck: BTreeMap::new(),
            got: Got::default(),
            complaints: Vec::new(),
            ended: None,
            events: 0,
        }
    }

    /// How long the load ran. If it was killed, until the last sample.
    pub fn seconds(&self) -> f64 {
        let last = self.table.values().flatten().map(|one| one.at_s).fold(0.0, f64::max);
        self.ended.as_ref().map_or(last, |ended| ended.took_s)
    }
}

/// All that the entries add up to.
#[derive(Clone, Default, Debug)]
pub struct History {
    pub stretches: Vec<Stretch>,
    ports: BTreeMap<String, u16>,
    /// The step of the plan that comes next.
    pub next_step: usize,
}

impl History {
    pub fn apply(&mut self, entry: Entry) {
        let of_a_stretch = match entry {
            Entry::Began(began) => return self.stretches.push(Stretch::new(began)),
            Entry::Port { of, port } => {
                self.ports.insert(of, port);
                return;
            }
            Entry::Step(step) => {
                self.next_step = step + 1;
                return;
            }
            other => other,
        };
        let Some(stretch) = self.stretches.last_mut() else {
            return;
        };
        match of_a_stretch {
            Entry::Began(_) | Entry::Port { .. } | Entry::Step(_) => unreachable!("returned above"),
            Entry::Measured { process, measured } => stretch.table.entry(process).or_default().push(measured),
            Entry::Changes { at_s, changes } => stretch.changes.push((at_s, changes)),
            Entry::Crowd { calm: true, figures } => stretch.calm_runs.add(&figures),
            Entry::Crowd { calm: false, figures } => stretch.struck_runs.add(&figures),
            Entry::Struck { kind, times } => *stretch.struck.entry(kind).or_default() += times,
            Entry::Read(got) => stretch.got = got,
            Entry::Complaint(complaint) => stretch.complaints.push(complaint),
            Entry::Ended(ended) => stretch.ended = Some(ended),
            Entry::Verified { events } => stretch.events = events,
        }
    }
}

/// Shared by all who note something.
pub struct Journal(Mutex<Noted>);

#[derive(Default)]
struct Noted {
    history: History,
    /// None: nothing is kept.
    file: Option<File>,
}

impl Journal {
    /// Of a run that cannot be continued.
    pub fn in_memory() -> Journal {
        Journal(Mutex::default())
    }

    /// Of the soak in this directory, or of one that begins now. Nobody else can open it as long as this one is there.
    pub fn open(directory: &Path) -> Result<Journal, String> {
        let path = directory.join(FILE);
        let cannot = |error: std::io::Error| format!("{}: {error}", path.display());
        let is_empty = std::fs::read_dir(directory).map_err(cannot)?.next().is_none();
        if !is_empty && !path.exists() {
            let directory = directory.display();
            return Err(format!(
                "{directory} is not empty and has no {FILE}: name a new directory, or that of a soak"
            ));
        }
        let options = File::options().create(true).read(true).append(true).open(&path);
        let mut file = options.map_err(cannot)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let directory = directory.display();
                return Err(format!(
                    "a soak runs in {directory}: wait for its end, or name another directory"
                ));
            }
            Err(TryLockError::Error(error)) => return Err(cannot(error)),
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(cannot)?;
        if bytes.last().is_some_and(|last| *last != b'\n') {
            file.write_all(b"\n").map_err(cannot)?;
        }
        let mut history = History::default();
        for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
            if line.is_empty() {
                continue;
            }
            match serde_json::from_slice(line) {
                Ok(entry) => history.apply(entry),
                // The last one before a kill may have been cut off.
                Err(error) => println!(
                    "{}, line {}: skipping an unreadable entry: {error}",
                    path.display(),
                    number + 1
                ),
            }
        }
        let file = Some(file);
        Ok(Journal(Mutex::new(Noted { history, file })))
    }

    pub fn note(&self, entry: Entry) {
        self.with_noted(|noted| {
            if let Some(file) = &mut noted.file {
                let mut line = serde_json::to_vec(&entry).expect("an entry is JSON");
                line.push(b'\n');
                file.write_all(&line).expect("there is room for an entry");
            }
            noted.history.apply(entry);
        });
    }

    pub fn complain(&self, complaint: impl Into<String>) {
        self.note(Entry::Complaint(complaint.into()));
    }

    pub fn read<T>(&self, read: impl FnOnce(&History) -> T) -> T {
        self.with_noted(|noted| read(&noted.history))
    }

    fn with_noted<T>(&self, with: impl FnOnce(&mut Noted) -> T) -> T {
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The port of one who listens, which is the same in all stretches, since it is in what others keep: brokers know the proxy's.
    /// In the first stretch it is chosen. Error: somebody else has it, and keeps it for `patience`.
    pub fn port(&self, of: &str, patience: Duration, choose: impl FnOnce() -> u16) -> Result<u16, String> {
        if let Some(port) = self.read(|history| history.ports.get(of).copied()) {
            return must_be_free(of, port, patience);
        }
        let port = choose();
        let of = of.to_owned();
        self.note(Entry::Port { of, port });
        Ok(port)
    }
}

/// Returns the port. Error: somebody else has it, and keeps it for `patience`.
pub fn must_be_free(of: &str, port: u16, patience: Duration) -> Result<u16, String> {
    let begun = Instant::now();
    while let Err(error) = TcpListener::bind(("127.0.0.1", port)) {
        if begun.elapsed() > patience {
            return Err(format!(
                "port {port} is of {of} in all stretches of this soak, and cannot be used now: {error}. `ss -ltnp` says which process \
                 has it; end that process, or begin a soak in another directory"
            ));
        }
        thread::sleep(Duration::from_millis(200));
    }
    Ok(port)
}
