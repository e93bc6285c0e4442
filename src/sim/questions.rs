//! Questions to the workers of a simulated world, and whether their answers are what the oracle says.
//!
//! An answer names the offset as of which it is. It must be what the oracle says as of that offset, no earlier than the
//! offset that it was to wait for, and the log must have every output up to there: who is shown a state can follow what
//! comes after it, and nothing of what is shown can be lost.

use super::cast::Cast;
use super::process::Process;
use super::shelf::SimulatedLog;
use crate::engine::worker::Command;
use crate::engine::{FoldedUpTo, UserRow, UserRows, UsersReply};
use crate::log::{OutputTopic, Topic};
use crate::presence::{Offset, Partition, Revision};
use crate::schema::json;
use tokio::sync::oneshot::{self, Receiver, error::TryRecvError};

/// The line of a user as the oracle writes it, and as of when it is.
type UserAsOf = (String, FoldedUpTo);

/// A question that was asked.
pub struct Asked {
    users: Vec<String>,
    at_least: Option<Offset>,
    answer: Receiver<UserRows<UserAsOf>>,
}

impl Asked {
    /// Whether a worker that has all of the log, committed, can answer it.
    fn can_be_answered(&self, applied: Offset) -> bool {
        self.at_least.is_none_or(|at_least| at_least < applied)
    }
}

impl Cast {
    /// Asks a worker for some users, as they are or once an offset was folded.
    pub fn ask(&self, partition: Partition, process: &mut Process, waits: bool) {
        let mut users = Vec::new();
        {
            let mut world = self.broker.world();
            let world = &mut *world;
            let shelf = &world.shelves[partition.0 as usize];
            for _ in 0..=world.random.below(3) {
                users.push(shelf.input.any_user(&mut world.random));
            }
            world.questions += 1;
        }
        let applied = process.worker.processor().map_or(Offset(0), |open| open.applied());
        let at_least = waits.then(|| Offset((applied.0 + self.below(8)).saturating_sub(2)));
        let (reply, answer) = oneshot::channel();
        process.worker.take(Command::Users {
            users: users.clone(),
            at_least,
            reply: UsersReply::new(line_of, reply),
        });
        let asked = Asked {
            users,
            at_least,
            answer,
        };
        process.asked.push(asked);
        // An answer that comes at once is of what was folded before this.
        self.check_answers(partition, process);
    }

    /// Holds the answers that have come against the oracle.
    pub fn check_answers(&self, partition: Partition, process: &mut Process) {
        let mut wrong = None;
        let (knows, has_halted) = (process.knows, process.has_halted);
        process.asked.retain_mut(|asked| match asked.answer.try_recv() {
            Err(TryRecvError::Empty) => true,
            // It was not ready, or its store failed: those are no answers.
            Err(TryRecvError::Closed) | Ok(Err(_)) => false,
            Ok(Ok(lines)) => {
                let mut world = self.broker.world();
                world.answers += 1;
                let shelf = &mut world.shelves[partition.0 as usize];
                let checked = match has_halted {
                    true => Err(format!("{} users, of a later revision than {knows}", lines.len())),
                    false => check(partition, shelf, asked, &lines, knows),
                };
                wrong = wrong.take().or(checked.err());
                false
            }
        });
        if let Some(wrong) = wrong {
            self.wrong(format!("partition {partition}, an answer: {wrong}"));
        }
    }

    /// A worker that has everything and is not in trouble leaves no question without an answer that it could give.
    pub fn check_none_waits(&self, process: &Process) -> Result<(), String> {
        let Some(open) = process.worker.processor() else {
            return Ok(());
        };
        let waits = process.asked.iter().find(|asked| asked.can_be_answered(open.applied()));
        waits.map_or(Ok(()), |asked| {
            let (users, at_least) = (&asked.users, asked.at_least);
            let applied = open.applied();
            Err(format!(
                "{users:?} at {at_least:?} is not answered, though {applied} is applied"
            ))
        })
    }
}

fn line_of(row: UserRow<'_>) -> UserAsOf {
    let mut line = Vec::new();
    json::user_line(&mut line, row.image, row.as_of.time);
    (String::from_utf8_lossy(&line).into_owned(), *row.as_of)
}

fn check(
    partition: Partition,
    shelf: &mut SimulatedLog,
    asked: &Asked,
    lines: &[Option<UserAsOf>],
    knows: Revision,
) -> Result<(), String> {
    if lines.len() != asked.users.len() {
        return Err(format!("{} users for {}", lines.len(), asked.users.len()));
    }
    let mut as_of = None;
    for (_, at) in lines.iter().flatten() {
        if *as_of.get_or_insert(at) != at {
            return Err(format!("of two moments, {as_of:?} and {at:?}"));
        }
    }
    // Where nobody is known nothing says as of when.
    let Some(as_of) = as_of else { return Ok(()) };
    let offset = as_of.offset.ok_or("users who are known before any record")?;
    if as_of.partition != partition || asked.at_least.is_some_and(|at_least| at_least > offset) {
        return Err(format!("{as_of:?} for at least {:?}", asked.at_least));
    }
    let next = Offset(offset.0 + 1);
    let (count, _, expected) = shelf.input.before(next, 0);
    if expected.revision > knows {
        return Err(format!(
            "as of {offset}, where revision {} is in force, not {knows}",
            expected.revision
        ));
    }
    // A commit that got through in part has no position, but what it left in the topics is committed.
    for (topic, outputs) in [
        (Topic::Changes, OutputTopic::Changes),
        (Topic::Kicks, OutputTopic::Kicks),
    ] {
        let there = shelf.count_of_outputs(outputs);
        let wanted = shelf.input.expected_of(topic, 0, count).count();
        if there < wanted {
            return Err(format!(
                "as of {offset}, with {wanted} records of {topic:?}, of which {there} are committed"
            ));
        }
    }
    for (user, line) in asked.users.iter().zip(lines) {
        let said = line.as_ref().map(|(line, _)| line);
        let oracle = shelf.input.as_of(offset);
        let (should, time) = (oracle.user_line(user), oracle.time());
        if said != should.as_ref() || as_of.time.map(|time| time.0) != time {
            return Err(format!(
                "as of {as_of:?} {user} is\n  {said:?} instead of\n  {should:?} at {time:?}"
            ));
        }
    }
    Ok(())
}
