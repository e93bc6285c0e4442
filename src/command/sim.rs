//! `rollcall sim`: seeded worlds that try to break the engine (`docs/simulation.md`).

use crate::clock::{Clock as _, SystemClock};
use crate::sim::fault::{Counts, Fault};
use crate::sim::shrink::shrink;
use crate::sim::world::{Options, run as play};
use anyhow::bail;
use std::io::{self, Write};

/// Runs the engine in simulated worlds full of faults, and checks its outputs against the rules
///
/// Each seed gives one world: a history of events, a simulated log and disks, and owners that die, pause and lose their
/// partition. Stops with an error at the first seed whose outputs or state differ from the rules, and prints the command
/// that repeats the smallest failing case.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// One seed, or a range A-B that includes both ends
    #[arg(long, value_name = "A-B", default_value = "1-300", value_parser = read_seeds)]
    seeds: (u64, u64),
    /// Number of records in the history of each world
    #[arg(long, value_name = "COUNT", default_value_t = Options::default().records, value_parser = read_records)]
    records: usize,
    /// Kinds of faults that do not occur, separated by commas
    #[arg(long, value_name = "FAULT", value_delimiter = ',')]
    without: Vec<Fault>,
    /// Keeps the stores of every world in RocksDB, not only of every 400th seed
    #[arg(long)]
    rocksdb: bool,
    /// Runs each seed twice and compares every byte
    #[arg(long)]
    twice: bool,
    /// Continues after a failing seed, without reducing it
    #[arg(long)]
    keep_going: bool,
}

fn read_seeds(text: &str) -> Result<(u64, u64), String> {
    let number = |text: &str| text.parse::<u64>().map_err(|error| format!("{text:?}: {error}"));
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (number(first)?, number(last)?),
        None => (number(text)?, number(text)?),
    };
    if first > last {
        return Err(format!("{first} is greater than {last}"));
    }
    Ok((first, last))
}

fn read_records(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("a world has at least one record".to_owned()),
        Ok(records) => Ok(records),
        Err(error) => Err(error.to_string()),
    }
}

/// Returns the command that repeats a seed with these options.
fn command(seed: u64, options: &Options) -> String {
    let mut command = format!("rollcall sim --seeds {seed} --records {}", options.records);
    if options.on_rocksdb {
        command.push_str(" --rocksdb");
    }
    if !options.without.is_empty() {
        let names: Vec<_> = options.without.iter().map(|fault| fault.name()).collect();
        command.push_str(&format!(" --without {}", names.join(",")));
    }
    command
}

/// How often progress is printed.
const PROGRESS_MS: u64 = 5_000;

pub fn run(args: Args) -> anyhow::Result<()> {
    let options = Options {
        records: args.records,
        without: args.without,
        on_rocksdb: args.rocksdb,
        transcribes: args.twice,
        ..Options::default()
    };
    let (first, last) = args.seeds;
    let clock = SystemClock::new();
    let mut out = io::stdout().lock();
    let mut printed_ms = 0;
    let mut failed = Vec::new();
    let (mut seeds, mut events, mut folded, mut counts) = (0u64, 0u64, 0u64, Counts::default());
    let (mut questions, mut answers) = (0u64, 0u64);
    let (mut followed, mut subscriptions) = (0u64, 0u64);
    // A panic is reported as a finding, so the default hook must not print it.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    for seed in first..=last {
        let played = play(seed, &options).and_then(|report| {
            if args.twice && play(seed, &options).as_ref() != Ok(&report) {
                return Err("two runs of this seed differ".to_owned());
            }
            Ok(report)
        });
        match played {
            Ok(report) => {
                seeds += 1;
                events += report.events;
                folded += report.folded;
                questions += report.questions;
                answers += report.answers;
                followed += report.followed;
                subscriptions += report.subscriptions;
                counts.add(&report.counts);
            }
            Err(what) => {
                writeln!(out, "seed {seed} fails: {what}")?;
                failed.push(seed);
                if !args.keep_going {
                    let (least, finding) = shrink(seed, &options);
                    writeln!(out, "smallest failing case: {}", finding.unwrap_or(what))?;
                    writeln!(out, "repeat it with: {}", command(seed, &least))?;
                    break;
                }
                writeln!(out, "repeat it with: {}", command(seed, &options))?;
            }
        }
        let now_ms = clock.monotonic_ms();
        if now_ms - printed_ms >= PROGRESS_MS {
            printed_ms = now_ms;
            writeln!(out, "{}", figures(seeds, events, folded, now_ms))?;
            out.flush()?;
        }
    }
    std::panic::set_hook(hook);
    writeln!(out, "{}", figures(seeds, events, folded, clock.monotonic_ms()))?;
    writeln!(out, "{questions} questions, {answers} of them answered with a state")?;
    writeln!(
        out,
        "{subscriptions} subscriptions, which got {followed} changes and kicks"
    )?;
    for fault in Fault::ALL {
        writeln!(out, "{:>10} {fault}", counts.of(*fault))?;
    }
    if !failed.is_empty() {
        bail!("{} seeds failed; the first was {}", failed.len(), failed[0]);
    }
    Ok(())
}

fn figures(seeds: u64, events: u64, folded: u64, ms: u64) -> String {
    let per_second = |count: u64| (count * 1_000).checked_div(ms).unwrap_or(0);
    format!(
        "{seeds} seeds, {events} events ({}/s), folded {folded} times ({}/s), {}.{} s",
        per_second(events),
        per_second(folded),
        ms / 1_000,
        ms % 1_000 / 100
    )
}
