//! `rollcall audit why`: the records of the log behind a user's status.

use super::source::SourceFlags;
use super::{json_line, parse_time, shown};
use crate::audit::why::{Answer, Step, Why};
use crate::command::{hash_seed, table};
use crate::log::Topic;
use crate::presence::Partition;
use std::fmt::Write as _;
use std::io::Write;
use std::ops::ControlFlow;

/// The records of the log behind a user's status
#[derive(clap::Args)]
pub struct Args {
    user: String,
    /// At this time, not at the end of the log
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    at: Option<String>,
    #[command(flatten)]
    source: SourceFlags,
}

pub fn run(args: &Args, output: &mut impl Write) -> anyhow::Result<u8> {
    let at = args.at.as_deref().map(parse_time).transpose()?;
    let policy = args.source.first_policy()?;
    let mut source = args.source.open()?;
    let partition = source.partition_of(&args.user);
    source.reaches_the_beginning(Topic::Events, partition, "`why`")?;
    let mut why = Why::new(&args.user, partition, policy, at, hash_seed());
    source.events(partition, |offset, ts, event| {
        let more = why.apply(offset, ts, event.as_ref().ok());
        Ok(if more {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        })
    })?;
    let answer = why.answer();
    if args.source.json {
        json_line(output, &answer)?;
        return Ok(0);
    }
    match answer {
        Some(answer) => output.write_all(explained(&answer, partition).as_bytes())?,
        None => writeln!(output, "nothing is known of {:?} at that time", args.user)?,
    }
    Ok(0)
}

/// The answer as a paragraph that can be read out.
fn explained(answer: &Answer, partition: Partition) -> String {
    let mut text = format!("{} is {} since {}", answer.user, answer.status, shown(answer.since));
    for step in &answer.steps {
        let _ = match step {
            Step::Change {
                id,
                offset,
                logged_at,
                cause,
                ..
            } => write!(
                text,
                ", cause {cause} (change {id}). That was found out with the record at offset {offset} of partition {partition}, at {}.",
                shown(*logged_at)
            ),
            Step::Deadline { kind, deadline } => write!(text, " The {kind} deadline was at {}.", shown(*deadline)),
            Step::Event { offset, ts, name, role } => {
                let what = match *role {
                    "evidence" => "The last sign before that, or the event itself,",
                    "login" => "The device had logged in with an event that",
                    _ => "The gateway's last lease",
                };
                write!(
                    text,
                    " {what} is the {name} at offset {offset}, written at {}.",
                    shown(*ts)
                )
            }
        };
    }
    for pending in &answer.pending {
        let _ = write!(
            text,
            " Unless something comes before, {}/{} will give the cause {} at {}.",
            pending.platform,
            pending.device,
            pending.then,
            shown(pending.deadline)
        );
    }
    text.push('\n');
    table::plain(&text).replace("\\u{a}", "\n")
}
