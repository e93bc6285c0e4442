//! The long fault runs, one kind after the other, over and over until the time is up; `make test-faults`.
//!
//!   cargo test --release --test faults -- [--minutes 25] [--seed N] [--only NAME] [--table FILE]
//!
//! Prints the seed first and the table last, also into a file, and ends with status 1 if anything was wrong. Everything
//! is on 127.0.0.1: a Kafka of three brokers and the engines are processes of this one, and end with it.

#[path = "kafka/broker.rs"]
mod broker;
#[path = "kafka/engine.rs"]
mod engine;
#[path = "kafka/faults.rs"]
mod faults;
#[path = "kafka/plans.rs"]
mod plans;
#[path = "kafka/python.rs"]
mod python;
#[path = "kafka/run.rs"]
mod run;
#[path = "kafka/space.rs"]
mod space;
#[path = "kafka/table.rs"]
mod table;
#[path = "kafka/truncated.rs"]
mod truncated;

use broker::Cluster;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

struct Asked {
    minutes: u64,
    seed: u64,
    only: Option<String>,
    table: PathBuf,
}

fn asked() -> Result<Asked, String> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_err(|error| error.to_string())?;
    let mut asked = Asked {
        minutes: 25,
        seed: now.as_secs(),
        only: None,
        table: PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("faults.md"),
    };
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} needs a value"))?;
        let number = || value.parse().map_err(|_| format!("{name} takes a number, not {value}"));
        match &*name {
            "--minutes" => asked.minutes = number()?,
            "--seed" => asked.seed = number()?,
            "--only" => asked.only = Some(value),
            "--table" => asked.table = PathBuf::from(value),
            _ => return Err(format!("there is no option {name}")),
        }
    }
    Ok(asked)
}

fn main() -> ExitCode {
    let asked = match asked() {
        Ok(asked) => asked,
        Err(wrong) => {
            eprintln!("faults: {wrong}");
            return ExitCode::from(2);
        }
    };
    println!("seed {}", asked.seed);
    let begun = Instant::now();
    let is_asked = |name: &str| asked.only.as_deref().is_none_or(|only| only == name);
    let mut rows: Vec<table::Row> = Vec::new();
    let mut round = 0;
    while round == 0 || begun.elapsed() < Duration::from_secs(60 * asked.minutes) {
        let cluster = Cluster::start(3, &[]);
        let plans = [
            plans::kills(60),
            plans::failpoints(&[1, 3, 40]),
            plans::sleepers(8),
            plans::storms(5, 40),
            plans::stores(6),
            plans::brokers(6),
            plans::pauses(16),
            plans::blackout(Duration::from_secs(60)),
        ];
        let seed = asked.seed + round;
        for plan in plans.iter().filter(|plan| is_asked(plan.name)) {
            rows.push(run::run(plan, &cluster.bootstrap, Some(&cluster), seed));
            println!("{}", table::markdown(&rows));
        }
        if is_asked("truncated") {
            truncated::events_that_are_gone_halt_their_partition_only(&cluster.bootstrap, seed);
            println!("truncated: halted, and said so");
        }
        round += 1;
    }
    let text = format!(
        "Seed {}, {round} rounds, {:.0} minutes.\n\n{}",
        asked.seed,
        begun.elapsed().as_secs_f64() / 60.0,
        table::markdown(&rows)
    );
    println!("{text}");
    std::fs::write(&asked.table, &text).expect("the table can be written");
    println!("written to {}", asked.table.display());
    for row in &rows {
        row.must_be_right();
    }
    ExitCode::SUCCESS
}
