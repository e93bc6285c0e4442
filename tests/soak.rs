//! The long run (`make soak`): engines, a gateway, a lake and an auditor on a real Kafka for an hour or three, with a steady load
//! and a fault every few minutes. What is judged is the trend of each process: memory, descriptors, threads, disk.
//!
//!   cargo test --release --test soak -- [--minutes 30] [--seed N] [--people N] [--leak] [--report FILE] [--keep DIR]
//!
//! It prints a line a minute and the report last, also into a file, and ends with status 1 if anything was wrong. `--leak` has
//! an engine leak, and then the soak must find that: a judgement that finds nothing proves nothing. Everything runs on 127.0.0.1,
//! in processes and directories that end with this one, also on Ctrl-C.
//!
//! With `--keep` the directory stays, and a run with the same one goes on where the last one ended, in good order or not.

#[path = "kafka/broker.rs"]
#[expect(dead_code, reason = "every cluster has a proxy here")]
mod broker;
#[path = "soak/child.rs"]
mod child;
#[path = "kafka/copied.rs"]
mod copied;
#[path = "kafka/engine.rs"]
#[expect(dead_code, reason = "no node ends by itself here")]
mod engine;
#[path = "kafka/faults.rs"]
mod faults;
#[path = "kafka/frames.rs"]
mod frames;
#[path = "soak/journal.rs"]
mod journal;
#[path = "kafka/network.rs"]
mod network;
#[path = "kafka/plans.rs"]
#[expect(dead_code, reason = "the plans are those of short runs")]
mod plans;
#[path = "kafka/proxied.rs"]
#[expect(dead_code, reason = "the brokers' files are in our directory")]
mod proxied;
#[path = "kafka/proxy.rs"]
#[expect(dead_code, reason = "only what happens at random is asked for")]
mod proxy;
#[path = "kafka/python.rs"]
#[expect(dead_code, reason = "the load has transactions of its own")]
mod python;
#[path = "soak/readers.rs"]
mod readers;
#[path = "soak/report.rs"]
mod report;
#[path = "kafka/run.rs"]
#[expect(dead_code, reason = "a soak is no plan of faults one after the other")]
mod run;
#[path = "soak/sampler.rs"]
mod sampler;
#[path = "kafka/space.rs"]
mod space;
#[path = "soak/stop.rs"]
mod stop;
#[path = "soak/story.rs"]
mod story;
#[path = "kafka/table.rs"]
#[expect(dead_code, reason = "the table is that of short runs")]
mod table;
#[path = "kafka/timeline.rs"]
mod timeline;
#[path = "soak/trend.rs"]
mod trend;
#[path = "kafka/watcher.rs"]
mod watcher;

use journal::{Began, Journal};
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};
use stop::Stop;
use story::Settings;

struct Asked {
    minutes: u64,
    seed: Option<u64>,
    people: Option<usize>,
    leak: bool,
    keep: Option<PathBuf>,
    report: Option<PathBuf>,
}

fn asked() -> Result<Asked, String> {
    let mut asked = Asked {
        minutes: 30,
        seed: None,
        people: None,
        leak: false,
        keep: None,
        report: None,
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--leak" {
            asked.leak = true;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || -> Result<u64, String> {
            let number = value.parse();
            number.map_err(|_| format!("{name} takes a number, not {value}"))
        };
        match &*name {
            "--minutes" => asked.minutes = number()?,
            "--seed" => asked.seed = Some(number()?),
            "--people" => asked.people = Some(number()? as usize),
            "--report" => asked.report = Some(PathBuf::from(value)),
            "--keep" => asked.keep = Some(PathBuf::from(value)),
            _ => return Err(format!("there is no option {name}")),
        }
    }
    if asked.leak && asked.keep.is_some() {
        return Err("--leak cannot be combined with --keep: leave --keep out".to_owned());
    }
    Ok(asked)
}

/// The directory, made if it is not there, as every process names it.
fn made(directory: &Path) -> Result<PathBuf, String> {
    let made = std::fs::create_dir_all(directory).and_then(|()| directory.canonicalize());
    made.map_err(|error| format!("{}: {error}", directory.display()))
}

/// What the soak began with goes on.
fn settings(asked: &Asked, journal: &Journal) -> Result<Settings, String> {
    let began = journal.read(|history| history.stretches.first().map(|first| first.began.clone()));
    if let Some(began) = &began {
        let differs = asked.seed.is_some_and(|seed| seed != began.seed)
            || asked.people.is_some_and(|people| people != began.people);
        if differs {
            let Began { seed, people, .. } = began;
            return Err(format!(
                "the soak in this directory began with --seed {seed} and --people {people}: leave them out, or give the same"
            ));
        }
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_err(|error| error.to_string())?.as_secs();
    Ok(Settings {
        minutes: asked.minutes,
        seed: began.as_ref().map(|began| began.seed).or(asked.seed).unwrap_or(now),
        people: began.as_ref().map(|began| began.people).or(asked.people).unwrap_or(30),
        leak: asked.leak,
        is_kept: asked.keep.is_some(),
    })
}

/// Removes our directory once this process has ended, in whatever way: the processes that write there end with it.
fn janitor(directory: &Path) -> Child {
    let mut janitor = Command::new("sh");
    janitor
        .args(["-c", "cat >/dev/null; sleep 2; rm -rf \"$0\""])
        .arg(directory);
    // The terminal's Ctrl-C does not reach it.
    janitor
        .stdin(Stdio::piped())
        .process_group(0)
        .spawn()
        .expect("sh is there")
}

fn main() -> ExitCode {
    match soak() {
        Ok(ended) => ended,
        Err(wrong) => {
            eprintln!("soak: {wrong}");
            ExitCode::from(2)
        }
    }
}

fn soak() -> Result<ExitCode, String> {
    let asked = asked()?;
    let directory = tempfile::tempdir().expect("a directory");
    tempfile::env::override_temp_dir(directory.path()).expect("it is the first");
    let _janitor = janitor(directory.path());
    let own = directory.path().join("soak");
    let home = made(asked.keep.as_deref().unwrap_or(&own))?;
    let (journal, stop) = match &asked.keep {
        Some(_) => (Journal::open(&home)?, Stop::on_signals()),
        None => (Journal::in_memory(), Stop::never()),
    };
    let settings = settings(&asked, &journal)?;
    let file = asked.report.unwrap_or_else(|| match settings.is_kept {
        true => home.join("report.md"),
        false => PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("soak.md"),
    });
    println!("seed {}", settings.seed);
    if settings.is_kept {
        let (stretches, pid) = (journal.read(|history| history.stretches.len()), std::process::id());
        println!(
            "stretch {} in {}; kill -TERM {pid} ends it with a report",
            stretches + 1,
            home.display()
        );
    }
    let copy = copied::use_a_copy();
    let journal = Arc::new(journal);
    let run = || story::soak(&settings, &home, &journal, &stop);
    let outcome = match catch_unwind(AssertUnwindSafe(run)) {
        Ok(outcome) => outcome?,
        Err(why) => {
            // It has said why; a run that goes on must not forget it.
            let why = why.downcast_ref::<String>().map_or("it says no more", |why| why);
            journal.complain(format!(
                "it ended by a panic: {}",
                why.lines().next().unwrap_or_default()
            ));
            return Ok(ExitCode::FAILURE);
        }
    };
    drop(copy);
    println!("{}", outcome.text);
    std::fs::write(&file, &outcome.text).expect("the report can be written");
    println!("written to {}", file.display());
    let leaks = outcome
        .complaints
        .iter()
        .filter(|complaint| complaint.contains("climbed by"));
    let leaks: Vec<&String> = leaks.collect();
    let finds = |what: &str| {
        let of_engine = format!("engine 0: {what}");
        leaks.iter().any(|leak| leak.starts_with(&of_engine))
    };
    let is_well = match settings.leak {
        false => outcome.complaints.is_empty(),
        true => finds("memory") && finds("descriptors") && leaks.len() == outcome.complaints.len(),
    };
    Ok(if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
