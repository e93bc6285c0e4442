//! The long run (`make soak`): engines, a gateway, a lake and an auditor on a real Kafka for an hour or three, with a steady load
//! and a fault every few minutes. What is judged is the trend of each process: memory, descriptors, threads, disk.
//!
//!   cargo test --release --test soak -- [--minutes 30] [--seed N] [--people N] [--leak] [--report FILE]
//!
//! It prints a line a minute and the report last, also into a file, and ends with status 1 if anything was wrong. `--leak` has
//! an engine leak, and then the soak must find that: a judgement that finds nothing proves nothing. Everything runs on 127.0.0.1,
//! in processes and directories that end with this one, also on Ctrl-C.

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
#[path = "kafka/network.rs"]
mod network;
#[path = "kafka/plans.rs"]
#[expect(dead_code, reason = "the plans are those of short runs")]
mod plans;
#[path = "kafka/proxied.rs"]
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

use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};
use story::Settings;

fn asked() -> Result<(Settings, PathBuf), String> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(|error| error.to_string())?;
    let mut settings = Settings {
        minutes: 30,
        seed: now.as_secs(),
        people: 30,
        leak: false,
    };
    let mut report = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("soak.md");
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        if name == "--leak" {
            settings.leak = true;
            continue;
        }
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || -> Result<u64, String> {
            let number = value.parse();
            number.map_err(|_| format!("{name} takes a number, not {value}"))
        };
        match &*name {
            "--minutes" => settings.minutes = number()?,
            "--seed" => settings.seed = number()?,
            "--people" => settings.people = number()? as usize,
            "--report" => report = PathBuf::from(value),
            _ => return Err(format!("there is no option {name}")),
        }
    }
    Ok((settings, report))
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
    let (settings, file) = match asked() {
        Ok(asked) => asked,
        Err(wrong) => {
            eprintln!("soak: {wrong}");
            return ExitCode::from(2);
        }
    };
    let directory = tempfile::tempdir().expect("a directory");
    tempfile::env::override_temp_dir(directory.path()).expect("it is the first");
    let _janitor = janitor(directory.path());
    println!("seed {}", settings.seed);
    let copy = copied::use_a_copy();
    let run = || story::soak(&settings);
    let Ok(outcome) = catch_unwind(AssertUnwindSafe(run)) else {
        // It has said why.
        return ExitCode::FAILURE;
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
    if is_well { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
