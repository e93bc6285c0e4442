//! `rollcall audit`: answers about the past (`docs/audit.md`).
//!
//! Exit status: 0, 1 where a difference was found, 2 where there is no answer (wrong arguments, no log, records gone).

mod at;
mod export;
mod heads;
mod history;
mod incidents;
mod interrupt;
mod proof;
pub(super) mod source;
mod verify;
mod watch;
pub(super) mod what_if;
mod why;

use crate::audit::time;
use crate::clock::{Clock as _, SystemClock};
use crate::presence::LogTime;
use chrono::DateTime;
use interrupt::{INTERRUPTED_STATUS, Interrupted};
use serde::Serialize;
use std::io::{self, Write};

/// Answers about the past: who was online at a time, when, and why
///
/// Reads a data directory (also beside a running server), Kafka, or files that `rollcall log` printed. Exit status 1: a
/// difference was found; 2: there is no answer.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    question: Question,
}

#[derive(clap::Subcommand)]
enum Question {
    At(at::Args),
    History(history::Args),
    Why(why::Args),
    Verify(verify::Args),
    Watch(watch::Args),
    Heads(heads::Args),
    Prove(proof::ProveArgs),
    CheckProof(proof::CheckArgs),
    WhatIf(what_if::Args),
    Export(export::Args),
    Incidents(incidents::Args),
}

/// Runs the question; returns the exit status.
pub fn run(args: Args) -> anyhow::Result<u8> {
    interrupt::listen()?;
    let mut output = io::BufWriter::new(io::stdout().lock());
    let answered = match args.question {
        Question::At(args) => at::run(&args, &mut output),
        Question::History(args) => history::run(&args, &mut output),
        Question::Why(args) => why::run(&args, &mut output),
        Question::Verify(args) => verify::run(&args, &mut output),
        Question::Watch(args) => watch::run(&args, &mut output),
        Question::Heads(args) => heads::run(&args, &mut output),
        Question::Prove(args) => proof::prove(&args, &mut output),
        Question::CheckProof(args) => proof::check(&args, &mut output),
        Question::WhatIf(args) => what_if::run(&args, &mut output),
        Question::Export(args) => export::run(&args, &mut output),
        Question::Incidents(args) => incidents::run(&args, &mut output),
    };
    let flushed = output.flush().map_err(anyhow::Error::from);
    match answered.and_then(|status| flushed.map(|()| status)) {
        // The reader of the output has had enough.
        Err(error) if super::is_broken_pipe(&error) => Ok(0),
        Err(error) if error.is::<Interrupted>() => Ok(INTERRUPTED_STATUS),
        answered => answered,
    }
}

fn parse_time(text: &str) -> anyhow::Result<LogTime> {
    Ok(time::parse(text, SystemClock::new().now_ms())?)
}

fn json_line(output: &mut impl Write, value: &impl Serialize) -> anyhow::Result<()> {
    serde_json::to_writer(&mut *output, value)?;
    output.write_all(b"\n")?;
    Ok(())
}

/// A time for people; the number itself where a calendar has no such day.
pub(super) fn shown(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(DateTime::from_timestamp_millis);
    time.map_or_else(
        || ms.to_string(),
        |time| time.format("%Y-%m-%d %H:%M:%S%.3fZ").to_string(),
    )
}
