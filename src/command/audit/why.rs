//! `rollcall audit why`: the records of the log behind a user's status.

use super::source::{AuditSource, SourceFlags};
use super::{json_line, parse_time, shown};
use crate::api::answers::{Explanation, ExplanationStep};
use crate::audit::stored::StoredFold;
use crate::audit::why::Why;
use crate::audit::why_now::{EventRecords, StatusChanges, WithoutFold, why_now};
use crate::command::{hash_seed, table};
use crate::engine::past::UserNow;
use crate::log::Range;
use crate::presence::change::Output;
use crate::presence::event::Event;
use crate::presence::{LogTime, Offset, Partition};
use crate::topics::Topic;
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
    let source = args.source.checked()?;
    let mut source = source.open()?;
    let partition = source.asked_partition_of(&args.user)?;
    let answer = match from_store(args, at, &mut source, partition)? {
        WithoutFold::Certain(answer) => answer,
        WithoutFold::NeedsFold => folded(args, at, &mut source, partition)?,
    };
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

/// Answers from all events of the partition.
fn folded(
    args: &Args,
    at: Option<LogTime>,
    source: &mut AuditSource<'_>,
    partition: Partition,
) -> anyhow::Result<Option<Explanation>> {
    let policy = args.source.first_policy()?;
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
    Ok(why.answer())
}

/// Answers from the engine's store, what came after it, and the user's changes, where that is certain.
fn from_store(
    args: &Args,
    at: Option<LogTime>,
    source: &mut AuditSource<'_>,
    partition: Partition,
) -> anyhow::Result<WithoutFold> {
    // Under another first policy the answer would be another one.
    let directory = match args.source.policy {
        None => source.store_directory(partition)?,
        Some(_) => None,
    };
    let Some(directory) = directory else {
        return Ok(WithoutFold::NeedsFold);
    };
    // A store that cannot be read for now is no reason not to answer.
    let stored = StoredFold::read(&directory, partition, hash_seed()).ok().flatten();
    // A server may have written meanwhile: what its store has, the log must have too.
    source.refresh()?;
    let Range { start, end } = source.range(Topic::Events, partition)?;
    let is_usable = |stored: &StoredFold| {
        let is_before = at.is_some_and(|at| stored.state.time().is_some_and(|time| at < time));
        stored.is_between_records() && (start..=end).contains(&stored.applied.next) && !is_before
    };
    let Some(StoredFold { mut state, applied }) = stored.filter(is_usable) else {
        return Ok(WithoutFold::NeedsFold);
    };
    let are_all = source.range(Topic::Changes, partition)?.start == Offset(0);
    let mut changes = StatusChanges::default();
    source.changes_of(partition, &args.user, |change| {
        if change.id.offset >= applied.next {
            return ControlFlow::Break(());
        }
        changes.apply(&change);
        ControlFlow::Continue(())
    })?;
    source.all_events_from(partition, applied.next, |offset, ts, event| {
        state.fold(offset, ts, event.as_ref().ok(), &mut |output| match output {
            Output::Change(change) if *change.user == *args.user => changes.apply(&change),
            Output::Change(_) | Output::Kick(_) | Output::Ignored(_) => {}
        });
        Ok(ControlFlow::Continue(()))
    })?;
    if at.is_some_and(|at| state.time().is_none_or(|time| at < time)) {
        return Ok(WithoutFold::NeedsFold);
    }
    let slot = state.slot_of(&args.user);
    let now = slot.map(|slot| UserNow::of_slot(&state, slot)).unwrap_or_default();
    let mut events = PartitionEvents { source, partition };
    why_now(&args.user, &changes, are_all, &now, &mut events)
}

/// The events of a partition, as they are looked up for an answer.
struct PartitionEvents<'s, 'f> {
    source: &'s mut AuditSource<'f>,
    partition: Partition,
}

impl EventRecords for PartitionEvents<'_, '_> {
    type Error = anyhow::Error;

    fn event_at(&mut self, wanted: Offset) -> anyhow::Result<Option<(u64, &'static str)>> {
        let mut found = None;
        if self.source.range(Topic::Events, self.partition)?.start > wanted {
            return Ok(None);
        }
        self.source
            .all_events_from(self.partition, wanted, |offset, ts, event| {
                found = event.ok().filter(|_| offset == wanted).map(|event| (ts, event.name()));
                Ok(ControlFlow::Break(()))
            })?;
        Ok(found)
    }

    fn events_between(
        &mut self,
        after: Offset,
        before: Offset,
        user: &str,
        each: &mut dyn FnMut(u64, Option<&Event<'_>>) -> ControlFlow<()>,
    ) -> anyhow::Result<()> {
        let from = Offset(after.0 + 1);
        if self.source.range(Topic::Events, self.partition)?.start > from {
            self.source
                .reaches_the_beginning(Topic::Events, self.partition, "`why`")?;
        }
        self.source.all_events_from(self.partition, from, |offset, ts, event| {
            if offset >= before {
                return Ok(ControlFlow::Break(()));
            }
            let event = event.as_ref().ok().filter(|event| event.user() == Some(user));
            Ok(each(ts, event))
        })
    }
}

/// The answer as a paragraph that can be read out.
fn explained(answer: &Explanation, partition: Partition) -> String {
    let mut text = format!("{} is {} since {}", answer.user, answer.status, shown(answer.since));
    let by_deadline = answer
        .steps
        .iter()
        .any(|step| matches!(step, ExplanationStep::Deadline { .. }));
    for step in &answer.steps {
        let _ = match step {
            ExplanationStep::Change {
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
            ExplanationStep::Deadline { kind, deadline } => {
                write!(text, " The {kind} deadline was at {}.", shown(*deadline))
            }
            ExplanationStep::Event { offset, ts, name, role } => {
                let what = match &**role {
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

    #[test]
    fn the_text_says_which_event_it_was_and_is_one_line_whatever_names_contain() {
        let change = |cause: &'static str| ExplanationStep::Change {
            id: "0-7-0".to_owned(),
            offset: 7,
            at: 406_000,
            logged_at: 410_000,
            cause: cause.into(),
        };
        let event = |offset, name: &'static str, role: &'static str| ExplanationStep::Event {
            offset,
            ts: 1_000,
            name: name.into(),
            role: role.into(),
        };
        let deadline = ExplanationStep::Deadline {
            kind: "heartbeat".into(),
            deadline: 406_000,
        };
        let text = |steps| {
            let answer = Explanation {
                user: "alice\nbob \\u{a}".to_owned(),
                status: "push_online".into(),
                since: 406_000,
                steps,
                pending: Vec::new(),
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
