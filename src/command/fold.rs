//! `rollcall fold`: applies the rules to events and prints the outputs, without a server (`docs/rules.md` section 8).

use crate::presence::Partition;
use crate::presence::policy::Policy;
use crate::presence::state::State;
use crate::schema::json;
use crate::schema::partitioner::check_partition;
use crate::version::newest_revision;
use anyhow::{Context as _, bail};
use std::io::{self, BufRead, Read as _, Write};
use std::path::PathBuf;

/// Folds events as one partition and prints the outputs
///
/// Reads events as JSON lines, each with `offset` and `ts` (ms) beside its fields, and prints every change, kick,
/// ignored event and malformed record as a JSON line, in order. Needs no data directory and no server: the same log
/// gives the same bytes everywhere.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// JSON file with the first policy [default: the default policy]
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Number of the partition, starting at 0
    #[arg(long, value_name = "N", default_value_t = 0)]
    partition: u32,
    /// Number of partitions of the log; if given, a user of another partition makes a record malformed
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    partitions: Option<u32>,
    /// Also prints the state after the last record: one line for each user, then one for the partition
    #[arg(long)]
    state: bool,
    /// File with the events [default: standard input]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,
}

/// The settings of a fold.
pub struct Setting {
    pub policy: Policy,
    pub partition: Partition,
    pub partitions: Option<u32>,
    /// Whether the state is printed at the end.
    pub state: bool,
    /// After how many lines memory is tidied: that of forgotten users is released, and users become compact.
    pub tidy_every: u64,
}

/// The longest line that is accepted, ten times the longest event. It bounds memory for a line without an end.
const LINE_BYTES_MAX: usize = 16 << 20;
/// [`Setting::tidy_every`] unless a test says otherwise.
pub const TIDY_EVERY: u64 = 10_000;

pub fn run(args: Args) -> anyhow::Result<()> {
    if let Some(partitions) = args.partitions
        && args.partition >= partitions
    {
        bail!(
            "--partition {} does not exist; the log has {partitions} partitions, 0 to {}",
            args.partition,
            partitions - 1
        );
    }
    let setting = Setting {
        policy: crate::config::read_policy(args.policy.as_deref())?.unwrap_or_default(),
        partition: Partition(args.partition),
        partitions: args.partitions,
        state: args.state,
        tidy_every: TIDY_EVERY,
    };
    let output = io::BufWriter::with_capacity(1 << 16, io::stdout().lock());
    let folded = match &args.file {
        Some(file) => {
            let input = super::open_file(file)?;
            fold(setting, io::BufReader::with_capacity(1 << 16, input), output)
        }
        None => fold(setting, io::stdin().lock(), output),
    };
    match folded {
        // The reader has closed the pipe: not an error.
        Err(error) if super::is_broken_pipe(&error) => Ok(()),
        folded => folded,
    }
}

/// Folds every line of `input`, one at a time. The outputs of the lines before a bad line are
/// written.
pub fn fold(setting: Setting, mut input: impl BufRead, mut output: impl Write) -> anyhow::Result<()> {
    let mut state = State::seeded(setting.partition, setting.policy, super::hash_seed());
    let mut line = Vec::new();
    let mut lines = Vec::new();
    let mut number = 0u64;
    loop {
        line.clear();
        let mut bounded = input.by_ref().take(LINE_BYTES_MAX as u64 + 1);
        let read = bounded.read_until(b'\n', &mut line);
        if read.context("cannot read the events")? == 0 {
            break;
        }
        number += 1;
        if line.len() > LINE_BYTES_MAX {
            output.flush()?;
            bail!(
                "line {number} is not a record: it is longer than {} MiB",
                LINE_BYTES_MAX >> 20
            );
        }
        if line.iter().all(|byte| matches!(byte, b' ' | b'\t' | b'\r' | b'\n')) {
            continue;
        }
        let folded = fold_line(&mut state, &line, setting.partitions, &mut lines);
        output.write_all(&lines)?;
        lines.clear();
        if let Err(error) = folded {
            output.flush()?;
            return Err(error.context(format!("line {number} is not a record")));
        }
        if number.is_multiple_of(setting.tidy_every) {
            state.take_dirt();
        }
    }
    if setting.state {
        write_state(&state, &mut output)?;
    }
    output.flush()?;
    Ok(())
}

fn fold_line(state: &mut State, line: &[u8], partitions: Option<u32>, lines: &mut Vec<u8>) -> anyhow::Result<()> {
    let line = json::read_line(std::str::from_utf8(line).context("it is not UTF-8")?)?;
    if let Some(before) = state.offset()
        && line.offset <= before
    {
        bail!("its offset {} does not follow {before}: offsets grow", line.offset);
    }
    let mut event = line.event.map_err(|bad| bad.message);
    if let (Ok(valid), Some(partitions)) = (&event, partitions)
        && let Err(malformed) = check_partition(valid, state.partition(), partitions)
    {
        event = Err(malformed.to_string());
    }
    if let Ok(valid) = &event
        && let Some(revision) = valid.unknown_revision(newest_revision())
    {
        bail!(
            "it raises the partition to revision {revision}, but this version knows revisions up to {}: use a \
             version that knows it",
            newest_revision()
        );
    }
    let mut print = |output| {
        json::output_line(lines, &output);
        lines.push(b'\n');
    };
    match event {
        Ok(event) => state.fold(line.offset, line.ts, Some(&event), &mut print),
        Err(error) => {
            state.fold(line.offset, line.ts, None, &mut print);
            json::malformed_line(lines, line.offset, &error);
            lines.push(b'\n');
        }
    }
    Ok(())
}

/// Writes one line for each user, in order of user id, and one for the partition.
pub fn write_state(state: &State, output: &mut impl Write) -> io::Result<()> {
    let slots: Vec<_> = state.slots().collect();
    let mut users: Vec<_> = slots
        .iter()
        .filter_map(|slot| Some((state.user_id(*slot)?, *slot)))
        .collect();
    users.sort_unstable();
    let mut line = Vec::new();
    for (_, slot) in users {
        if let Some(user) = state.image(slot) {
            line.clear();
            json::user_line(&mut line, &user, state.time());
            line.push(b'\n');
            output.write_all(&line)?;
        }
    }
    line.clear();
    json::partition_line(&mut line, &state.partition_image());
    line.push(b'\n');
    output.write_all(&line)
}
