//! The long fault runs (`make test-faults`): one kind after the other, repeated until the time is up.
//!
//!   cargo test --release --test faults -- [--minutes 25] [--seed N] [--only NAME] [--table FILE]
//!
//! It prints the seed first and the table last, also into a file, and ends with status 1 if anything was wrong. Everything
//! runs on 127.0.0.1: a Kafka of three brokers and the engines are processes of this one, and end with it.

#[path = "kafka/broker.rs"]
#[expect(dead_code, reason = "every cluster has a proxy here")]
mod broker;
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
mod plans;
#[path = "kafka/proxied.rs"]
mod proxied;
#[path = "kafka/proxy.rs"]
#[expect(dead_code, reason = "only what happens at random is asked for")]
mod proxy;
#[path = "kafka/python.rs"]
#[expect(dead_code, reason = "the load has transactions of its own")]
mod python;
#[path = "kafka/run.rs"]
mod run;
#[path = "kafka/space.rs"]
mod space;
#[path = "kafka/table.rs"]
mod table;
#[path = "kafka/timeline.rs"]
mod timeline;
#[path = "kafka/truncated.rs"]
mod truncated;
#[path = "kafka/watcher.rs"]
mod watcher;

use proxied::Proxied;
use rollcall::failpoint::{PLACES, RECORD};
use run::Plan;
use std::panic::{AssertUnwindSafe, catch_unwind};
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

/// At every place, and at those that are reached all the time once more, later. The store is committed every half minute, a checkpoint
/// made every three seconds, and a standby announces itself every few seconds.
fn failpoints() -> Plan {
    let places: Vec<_> = PLACES.into_iter().filter(|place| *place != RECORD).collect();
    let seldom = ["store", "stored", "take-up", "standbys", "checkpoints"];
    let often: Vec<_> = places.iter().copied().filter(|place| !seldom.contains(place)).collect();
    let mut plan = plans::failpoints(&places, &[1]);
    plan.faults.extend(plans::failpoints(&often, &[30]).faults);
    Plan {
        // Else nothing comes to the places of checkpoints and standbys.
        checkpoints: true,
        arguments: &["--standbys", "1"],
        ..plan
    }
}

fn plans() -> [Plan; 13] {
    [
        plans::kills(60),
        failpoints(),
        plans::sleepers(8),
        plans::storms(5, 40),
        plans::shared_by_brokers(3, 12, true),
        plans::shared_by_brokers(4, 16, false),
        plans::stores(6),
        plans::checkpoints(3),
        plans::brokers(9),
        plans::pauses(16),
        plans::leaders(12),
        plans::network(28, Duration::from_millis(200)),
        plans::blackout(Duration::from_secs(60)),
    ]
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
    let long = Duration::from_secs(60 * asked.minutes);
    let plans = plans();
    let plans: Vec<&Plan> = plans.iter().filter(|plan| is_asked(plan.name)).collect();
    let program = copied::use_a_copy();
    let proxied = Proxied::start(3, &plans::GROUP);
    let cluster = &proxied.cluster;
    let mut rows: Vec<table::Row> = Vec::new();
    let mut failed = Vec::new();
    if is_asked("truncated") {
        let truncated = || truncated::events_that_are_gone_halt_their_partition_only(&cluster.bootstrap, asked.seed);
        failed.extend(catch_unwind(AssertUnwindSafe(truncated)).err().map(|_| "truncated"));
    }
    // Each at least once, then over and over while there is time.
    for (number, plan) in plans.iter().cycle().enumerate() {
        if plans.len() <= number && long <= begun.elapsed() {
            break;
        }
        let seed = asked.seed + (number / plans.len()) as u64;
        let run = || run::run(plan, &cluster.bootstrap, Some(&proxied), seed);
        match catch_unwind(AssertUnwindSafe(run)) {
            Ok(row) => rows.push(row),
            // It has said why.
            Err(_) => failed.push(plan.name),
        }
        println!("{}", table::markdown(&rows));
    }
    let text = format!(
        "Seed {}, {:.0} minutes{}.\n\n{}",
        asked.seed,
        begun.elapsed().as_secs_f64() / 60.0,
        match &*failed {
            [] => String::new(),
            failed => format!(", did not come to an end: {}", failed.join(", ")),
        },
        table::markdown(&rows)
    );
    println!("{text}");
    std::fs::write(&asked.table, &text).expect("the table can be written");
    println!("written to {}", asked.table.display());
    drop(program);
    for row in &rows {
        row.must_be_right(true);
    }
    assert!(failed.is_empty(), "{failed:?}");
    ExitCode::SUCCESS
}
