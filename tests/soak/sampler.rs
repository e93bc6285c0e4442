//! What each process has: memory, descriptors, threads, disk and processor time, every few seconds, from `/proc`.
//!
//! A process is found by words of its command line, so a restart need not be announced. A process that has been restarted is
//! another life of the same subject.

use crate::journal::{Entry, Journal, Measured};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(5);
const MINUTE: Duration = Duration::from_secs(60);

/// What is watched.
pub struct Subject {
    pub name: &'static str,
    /// Each is an argument of its process.
    pub words: Vec<String>,
    /// Where its files are.
    pub directory: Option<PathBuf>,
    /// The URL of an engine, which says how much its caches have.
    pub engine: Option<String>,
}

pub struct Sampler {
    pub steady: Arc<AtomicBool>,
    /// What all files below the directory take.
    disk_bytes: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sampler {
    /// Notes these subjects' figures until it is dropped, with the time since `begun`. Measures how much `directory` has, and has
    /// both said every minute.
    pub fn start(
        subjects: Vec<Subject>,
        directory: PathBuf,
        begun: Instant,
        journal: Arc<Journal>,
        say: impl Fn(f64, f64) + Send + 'static,
    ) -> Sampler {
        let (steady, ends): (Arc<AtomicBool>, Arc<AtomicBool>) = Default::default();
        let disk_bytes = Arc::<AtomicU64>::default();
        let ours = (steady.clone(), ends.clone(), disk_bytes.clone());
        let thread = thread::spawn(move || {
            let (steady, ends, disk_bytes) = ours;
            let mut born: BTreeMap<u32, f64> = BTreeMap::new();
            let mut said = Duration::ZERO;
            while !ends.load(Ordering::Relaxed) {
                let now = begun.elapsed();
                let is_steady = steady.load(Ordering::Relaxed);
                let processes = processes();
                let disk = size(&directory);
                disk_bytes.store(disk as u64, Ordering::Relaxed);
                for subject in &subjects {
                    let Some(pid) = find(&processes, &subject.words) else {
                        continue;
                    };
                    let at_s = now.as_secs_f64();
                    let age_s = at_s - *born.entry(pid).or_insert(at_s);
                    let Some(measured) = measure(subject, pid) else {
                        continue;
                    };
                    let cached = match &subject.engine {
                        Some(url) if is_steady => cached_bytes(url),
                        Some(_) => None,
                        None => Some(0.0),
                    };
                    let measured = Measured {
                        at_s,
                        age_s,
                        // Still, if it became something else meanwhile.
                        steady: is_steady && steady.load(Ordering::Relaxed) && cached.is_some(),
                        cached_bytes: cached.unwrap_or_default(),
                        ..measured
                    };
                    let process = subject.name.to_owned();
                    journal.note(Entry::Measured { process, measured });
                }
                if now >= said + MINUTE {
                    said = now;
                    say(now.as_secs_f64(), disk);
                }
                while begun.elapsed() < now + EVERY && !ends.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(100));
                }
            }
        });
        Sampler {
            steady,
            disk_bytes,
            ends,
            thread: Some(thread),
        }
    }

    pub fn disk_bytes(&self) -> f64 {
        self.disk_bytes.load(Ordering::Relaxed) as f64
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The arguments of every process that can be seen.
fn processes() -> Vec<(u32, Vec<String>)> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let of = |entry: std::fs::DirEntry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        // A process that has ended has no more.
        let text = std::fs::read(entry.path().join("cmdline")).ok()?;
        let words = text
            .split(|byte| *byte == 0)
            .map(|word| String::from_utf8_lossy(word).into_owned());
        Some((pid, words.collect()))
    };
    entries.filter_map(of).collect()
}

fn find(processes: &[(u32, Vec<String>)], words: &[String]) -> Option<u32> {
    let is_it = |(_, arguments): &&(u32, Vec<String>)| {
        // Which starts the process and then is the process.
        let is_starting = arguments.first().is_some_and(|program| program.ends_with("setpriv"));
        !is_starting && words.iter().all(|word| arguments.contains(word))
    };
    processes.iter().find(is_it).map(|(pid, _)| *pid)
}

/// None if it has ended.
fn measure(subject: &Subject, pid: u32) -> Option<Measured> {
    let of = PathBuf::from(format!("/proc/{pid}"));
    let status = std::fs::read_to_string(of.join("status")).ok()?;
    let number = |name: &str| -> Option<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    let stat = std::fs::read_to_string(of.join("stat")).ok()?;
    // The name of the program is in parentheses, and may have anything in it. Fields 14 and 15 are in hundredths of a second.
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = |place: usize| -> Option<f64> { fields.get(place)?.parse().ok() };
    Some(Measured {
        at_s: 0.0,
        age_s: 0.0,
        pid,
        steady: false,
        memory_bytes: number("RssAnon:")? * 1_024.0,
        cached_bytes: 0.0,
        descriptors: std::fs::read_dir(of.join("fd")).ok()?.count() as f64,
        threads: number("Threads:")?,
        disk_bytes: subject.directory.as_deref().map_or(0.0, size),
        cpu_s: (ticks(11)? + ticks(12)?) / 100.0,
    })
}

/// What all caches of an engine have together. None if it does not say.
fn cached_bytes(engine: &str) -> Option<f64> {
    let config = ureq::Agent::config_builder()
        .timeout_global(Some(Duration::from_secs(1)))
        .build();
    let agent = ureq::Agent::new_with_config(config);
    let mut answer = agent.get(format!("{engine}/metrics")).call().ok()?;
    let text = answer.body_mut().read_to_string().ok()?;
    let values: Vec<f64> = text
        .lines()
        .filter(|line| line.starts_with("rollcall_cache_bytes{"))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse().ok())
        .collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

/// What is allocated for the files below a directory. A file that goes away meanwhile is not counted.
fn size(directory: &Path) -> f64 {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(about) if about.is_dir() => size(&entry.path()),
        Ok(about) => about.blocks() as f64 * 512.0,
        Err(_) => 0.0,
    };
    entries.map(of).sum()
}
