//! Fuzzing: every decoder gets inputs that are made from valid ones by mutation.
//!
//! A decoder fails on a panic, on more memory or processor time than its input accounts for, and if what it read is not read
//! again from what is written of it. Inputs come from a seed, so a failure can be repeated. There is no coverage to guide the
//! mutation, since that needs another toolchain and another build of RocksDB; instead, inputs that a decoder accepts are mutated
//! further. The corpus is the golden files and `tests/fuzz/corpus`, where every finding is added.
//!
//! `cargo test` runs a number of cases of each target; `make fuzz MINUTES=10 TARGET=event` runs for a time.

mod corpus;
mod memory;
mod mutation;
mod targets;

use crate::random::Random;
use mutation::Mutation;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use std::{env, thread};
use targets::Target;

/// How many cases of each target `cargo test` runs.
const CASES: u64 = 2_000;
/// The most processor time that one input may take. It is a thousand times what the slowest takes, and all inputs are small.
const CPU_MS_MAX: u64 = 2_000;
/// After this the input is reported as one that does not end.
const HANGS_AFTER: Duration = Duration::from_secs(60);
/// How many accepted inputs are mutated further.
const ACCEPTED_MAX: usize = 500;

/// One run of a target.
struct Run {
    target: &'static Target,
    random: Random,
    corpus: Vec<Vec<u8>>,
    /// The inputs of the corpus file stay; those after them are replaced by newer ones.
    given: usize,
    cases: u64,
    accepted: u64,
    /// The input at hand, for the thread that looks for inputs that do not end.
    current: Arc<Mutex<Vec<u8>>>,
}

impl Run {
    fn of(target: &'static Target, seed: u64) -> Run {
        let corpus = (target.corpus)();
        assert!(!corpus.is_empty(), "{} has a corpus", target.name);
        Run {
            target,
            random: Random::of(seed, target.name.bytes().map(u64::from).sum()),
            given: corpus.len(),
            corpus,
            cases: 0,
            accepted: 0,
            current: Arc::default(),
        }
    }

    /// Runs the corpus as it is. Returns how many of it are accepted.
    fn given(&mut self) -> u64 {
        for index in 0..self.given {
            let input = self.corpus[index].clone();
            self.case(&input);
        }
        self.accepted
    }

    fn mutated(&mut self) {
        let mut mutation = Mutation::of(&mut self.random, &self.corpus);
        let input = mutation.input(self.target.words);
        if self.case(&input) && input.len() <= mutation::BYTES_MAX {
            match self.corpus.len() < self.given + ACCEPTED_MAX {
                true => self.corpus.push(input),
                false => {
                    let at = self.given + self.random.index(ACCEPTED_MAX);
                    self.corpus[at] = input;
                }
            }
        }
    }

    fn case(&mut self, input: &[u8]) -> bool {
        self.cases += 1;
        input.clone_into(&mut self.current.lock().expect("nobody panics with it"));
        let decode = self.target.decode;
        let cpu_before = memory::cpu_ms();
        let (result, peak) = memory::peak_of(|| panic::catch_unwind(AssertUnwindSafe(|| decode(input))));
        let cpu_ms = memory::cpu_ms() - cpu_before;
        let most = self.target.memory.of(input.len());
        let trouble = match result {
            Err(_) => Some("a panic".to_owned()),
            Ok(_) if peak > most => Some(format!("{peak} bytes of memory, at most {most} expected")),
            Ok(_) if cpu_ms > CPU_MS_MAX => Some(format!("{cpu_ms} ms of processor time")),
            Ok(accepted) => {
                self.accepted += u64::from(accepted);
                return accepted;
            }
        };
        panic!(
            "fuzzing {}: {} for the input\nhex:{}\nAdd that line to tests/fuzz/corpus/{}.txt",
            self.target.name,
            trouble.unwrap_or_default(),
            corpus::hex(input),
            self.target.name
        );
    }
}

#[test]
fn every_decoder_withstands_mutated_inputs() {
    if let Some(minutes) = setting("FUZZ_MINUTES") {
        return for_minutes(minutes.parse().expect("FUZZ_MINUTES is a number"));
    }
    for target in targets::ALL {
        let mut run = Run::of(target, 1);
        let given = run.given();
        assert!(given > 0, "{}: nothing of its corpus is accepted", target.name);
        (0..CASES).for_each(|_| run.mutated());
        assert!(run.accepted > given, "{}: no mutated input is accepted", target.name);
    }
}

fn setting(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// `make fuzz`.
fn for_minutes(minutes: f64) {
    let seed: u64 = setting("FUZZ_SEED").map_or_else(
        || Instant::now().elapsed().as_nanos() as u64 ^ u64::from(std::process::id()),
        |value| value.parse().expect("FUZZ_SEED is a number"),
    );
    let wanted = setting("FUZZ_TARGET");
    let named = |target: &&'static Target| wanted.as_ref().is_none_or(|wanted| *wanted == target.name);
    let chosen: Vec<&'static Target> = targets::ALL.iter().copied().filter(named).collect();
    let names: Vec<&str> = targets::ALL.iter().map(|target| target.name).collect();
    assert!(!chosen.is_empty(), "TARGET is one of {}", names.join(", "));
    for target in chosen {
        let mut run = Run::of(target, seed);
        let (ended, watch) = mpsc::channel::<()>();
        let current = run.current.clone();
        let watching = thread::spawn(move || {
            let mut before = Vec::new();
            while watch.recv_timeout(HANGS_AFTER) == Err(mpsc::RecvTimeoutError::Timeout) {
                let now = current.lock().expect("nobody panics with it").clone();
                if now == before {
                    eprintln!(
                        "fuzzing {}: does not end for the input\nhex:{}",
                        target.name,
                        corpus::hex(&now)
                    );
                    std::process::abort();
                }
                before = now;
            }
        });
        run.given();
        let begin = Instant::now();
        while begin.elapsed().as_secs_f64() < minutes * 60.0 {
            (0..200).for_each(|_| run.mutated());
        }
        drop(ended);
        watching.join().expect("it only looks on");
        eprintln!(
            "{}: {} cases, {} accepted, seed {seed}",
            target.name, run.cases, run.accepted
        );
    }
}
