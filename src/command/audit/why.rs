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
    let source = args.source.checked()?;
    let mut source = source.open()?;
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
    let by_deadline = answer.steps.iter().any(|step| matches!(step, Step::Deadline { .. }));
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
                    "evidence" if by_deadline => "The device's last sign of life before that",
                    "evidence" => "The event that did it",
                    "login" => "The event with which the device had logged in",
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
    // One line: what a user or a device is called begins no other one.
    table::plain(&text) + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::why::Pending;

    #[test]
    fn the_text_says_which_event_it_was_and_is_one_line_whatever_names_contain() {
        let change = |cause| Step::Change {
            id: "0-7-0".to_owned(),
            offset: 7,
            at: 406_000,
            logged_at: 410_000,
            cause,
        };
        let event = |offset, name, role| Step::Event {
            offset,
            ts: 1_000,
            name,
            role,
        };
        let deadline = Step::Deadline {
            kind: "heartbeat",
            deadline: 406_000,
        };
        let text = |steps| {
            let answer = Answer {
                user: "alice\nbob \\u{a}".to_owned(),
                status: "push_online",
                since: 406_000,
                steps,
                pending: Vec::<Pending>::new(),
            };
            explained(&answer, Partition(0))
        };
        let late = text(vec![
            change("timeout"),
            deadline,
            event(4, "heartbeat", "evidence"),
            event(0, "connect", "login"),
        ]);
        assert!(late.starts_with("alice\\u{a}bob \\u{a} is push_online since"), "{late}");
        assert_eq!((late.matches('\n').count(), late.ends_with('\n')), (1, true), "{late}");
        assert!(
            late.contains("The device's last sign of life before that is the heartbeat at offset 4"),
            "{late}"
        );
        assert!(
            late.contains("The event with which the device had logged in is the connect at offset 0"),
            "{late}"
        );
        let at_once = text(vec![change("closed"), event(7, "disconnect", "evidence")]);
        assert!(
            at_once.contains("The event that did it is the disconnect at offset 7"),
            "{at_once}"
        );
    }
}
