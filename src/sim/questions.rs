//! Questions to the workers of a simulated world, and whether their answers are what the oracle says.
//!
//! An answer about users names the offset as of which it is. It must be what the oracle says as of that offset, no earlier
//! than the offset that it was to wait for, and the log must have every output up to there: who is shown a state can
//! follow what comes after it, and nothing of what is shown can be lost. The same holds for the outcomes of records, which
//! name their offsets. An answer about gateways names none: given at once it is as of what was folded last, and given
//! later it must be what the oracle said at some moment.

use super::cast::Cast;
use super::input::RecordOutcome;
use super::process::Process;
use super::shelf::SimulatedLog;
use crate::engine::worker::Command;
use crate::engine::{FoldedUpTo, KnownGateway, Outcome, Outcomes, QueryError, UserRow, UserRows, UsersReply};
use crate::presence::{LogTime, Offset, Partition, Revision};
use crate::random::Random;
use crate::schema::json;
use crate::topics::{OutputTopic, Topic};
use tokio::sync::oneshot::{self, Receiver, error::TryRecvError};

/// The line of a user as the oracle writes it, and as of when it is.
type UserAsOf = (String, FoldedUpTo);

/// How many offsets one question about outcomes names at most.
const OFFSETS_MAX: usize = 4;

/// A question that was asked.
pub struct Asked {
    of: AskedOf,
    at_least: Option<Offset>,
}

enum AskedOf {
    Users(Vec<String>, Receiver<UserRows<UserAsOf>>),
    Gateways(Receiver<Result<Vec<KnownGateway>, QueryError>>),
    Outcomes(Vec<Offset>, Receiver<Result<Outcomes, QueryError>>),
}

/// What a question got.
enum Answer {
    Users(Vec<Option<UserAsOf>>),
    Gateways(Vec<KnownGateway>),
    Outcomes(Outcomes),
}

impl Asked {
    /// Whether a worker that has all of the log, committed, can answer it.
    fn can_be_answered(&self, applied: Offset) -> bool {
        self.at_least.is_none_or(|at_least| at_least < applied)
    }

    /// Returns the answer. An error: it did not come yet. None: it was not ready, or its store failed, and those are no
    /// answers.
    fn answer(&mut self) -> Result<Option<Answer>, TryRecvError> {
        fn received<T>(
            answer: &mut Receiver<Result<T, QueryError>>,
            of: impl FnOnce(T) -> Answer,
        ) -> Result<Option<Answer>, TryRecvError> {
            match answer.try_recv() {
                Ok(answer) => Ok(answer.ok().map(of)),
                Err(TryRecvError::Closed) => Ok(None),
                Err(TryRecvError::Empty) => Err(TryRecvError::Empty),
            }
        }
        match &mut self.of {
            AskedOf::Users(_, answer) => received(answer, Answer::Users),
            AskedOf::Gateways(answer) => received(answer, Answer::Gateways),
            AskedOf::Outcomes(_, answer) => received(answer, Answer::Outcomes),
        }
    }

    fn what(&self) -> String {
        match &self.of {
            AskedOf::Users(users, _) => format!("{users:?}"),
            AskedOf::Gateways(_) => "the gateways".to_owned(),
            AskedOf::Outcomes(offsets, _) => format!("outcomes of {offsets:?}"),
        }
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
        }
        let applied = process.worker.processor().map_or(Offset(0), |open| open.applied());
        let at_least = waits.then(|| Offset((applied.0 + self.below(8)).saturating_sub(2)));
        let (reply, answer) = oneshot::channel();
        let command = Command::Users {
            users: users.clone(),
            at_least,
            reply: UsersReply::new(line_of, reply),
        };
        let of = AskedOf::Users(users, answer);
        self.put(partition, process, command, Asked { of, at_least });
    }

    /// Asks a worker what it knows of gateways, or for the outcomes of records. The decisions have random numbers of
    /// their own, so that the worlds are the same with and without these questions.
    pub fn ask_more(&self, partition: Partition, process: &mut Process, random: &mut Random) {
        let (command, of, at_least) = match random.percent(50) {
            true => {
                let (reply, answer) = oneshot::channel();
                (Command::Partition { reply }, AskedOf::Gateways(answer), None)
            }
            false => {
                let offsets = {
                    let world = self.broker.world();
                    world.shelves[partition.0 as usize]
                        .input
                        .some_offsets(OFFSETS_MAX, random)
                };
                let (reply, answer) = oneshot::channel();
                let last = offsets.iter().max().copied();
                let command = Command::Outcomes {
                    offsets: offsets.clone(),
                    reply,
                };
                (command, AskedOf::Outcomes(offsets, answer), last)
            }
        };
        self.put(partition, process, command, Asked { of, at_least });
    }

    fn put(&self, partition: Partition, process: &mut Process, command: Command, asked: Asked) {
        self.broker.world().questions += 1;
        process.worker.take(command);
        // Only the newest can have its answer already, which is of what was folded before this.
        let last = process.worker.processor().map(|open| open.state().offset());
        let (before, newest) = (process.asked.len(), last.flatten());
        process.asked.push(asked);
        self.check(partition, process, |number| (number == before).then_some(newest));
    }

    /// Holds the answers that have come against the oracle.
    pub fn check_answers(&self, partition: Partition, process: &mut Process) {
        self.check(partition, process, |_| None);
    }

    /// `at_once` says for a question after which record it was answered, if it was not answered in a turn.
    fn check(&self, partition: Partition, process: &mut Process, at_once: impl Fn(usize) -> Option<Option<Offset>>) {
        let mut wrong = None;
        let (knows, has_halted) = (process.knows, process.has_halted);
        let mut number = 0;
        process.asked.retain_mut(|asked| {
            number += 1;
            let answer = match asked.answer() {
                Err(_) => return true,
                Ok(None) => return false,
                Ok(Some(answer)) => answer,
            };
            let mut world = self.broker.world();
            world.answers += 1;
            let shelf = &mut world.shelves[partition.0 as usize];
            let checked = match (&asked.of, answer) {
                _ if has_halted => Err(format!("{}, of a later revision than {knows}", asked.what())),
                (AskedOf::Users(users, _), Answer::Users(lines)) => {
                    check_users(partition, shelf, (users, asked.at_least), &lines, knows)
                }
                (AskedOf::Gateways(_), Answer::Gateways(known)) => check_gateways(shelf, &known, at_once(number - 1)),
                (AskedOf::Outcomes(offsets, _), Answer::Outcomes(outcomes)) => {
                    check_outcomes(shelf, offsets, &outcomes.each)
                }
                _ => Err(format!("{}, an answer to something else", asked.what())),
            };
            wrong = wrong.take().or(checked.err());
            false
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
            let (what, at_least) = (asked.what(), asked.at_least);
            let applied = open.applied();
            Err(format!(
                "{what} at {at_least:?} is not answered, though {applied} is applied"
            ))
        })
    }
}

fn line_of(row: UserRow<'_>) -> UserAsOf {
    let mut line = Vec::new();
    json::user_line(&mut line, row.image, row.as_of.time);
    (String::from_utf8_lossy(&line).into_owned(), *row.as_of)
}

/// Checks that the log has every output up to a record, whose state is shown. A commit that got through in part has no
/// position, but what it left in the topics is committed.
fn check_committed(shelf: &SimulatedLog, offset: Offset) -> Result<(), String> {
    let (count, _, _) = shelf.input.before(Offset(offset.0 + 1), 0);
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
    Ok(())
}

fn check_users(
    partition: Partition,
    shelf: &mut SimulatedLog,
    (users, at_least): (&[String], Option<Offset>),
    lines: &[Option<UserAsOf>],
    knows: Revision,
) -> Result<(), String> {
    if lines.len() != users.len() {
        return Err(format!("{} users for {}", lines.len(), users.len()));
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
    if as_of.partition != partition || at_least.is_some_and(|at_least| at_least > offset) {
        return Err(format!("{as_of:?} for at least {at_least:?}"));
    }
    let (_, _, expected) = shelf.input.before(Offset(offset.0 + 1), 0);
    if expected.revision > knows {
        return Err(format!(
            "as of {offset}, where revision {} is in force, not {knows}",
            expected.revision
        ));
    }
    check_committed(shelf, offset)?;
    for (user, line) in users.iter().zip(lines) {
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

/// `at_once`: after which record it was answered; none if it was answered in a turn.
fn check_gateways(
    shelf: &mut SimulatedLog,
    known: &[KnownGateway],
    at_once: Option<Option<Offset>>,
) -> Result<(), String> {
    let known: Vec<_> = known
        .iter()
        .map(|gateway| {
            let KnownGateway {
                name,
                epoch,
                ended,
                lease_until,
            } = gateway;
            (name.clone(), *epoch, *ended, lease_until.map(|LogTime(until)| until))
        })
        .collect();
    let Some(last) = at_once else {
        let was_so = shelf.input.was_ever(|oracle| oracle.gateways() == known);
        return match was_so {
            true => Ok(()),
            false => Err(format!("the gateways were never {known:?}")),
        };
    };
    let Some(last) = last else {
        return match known.is_empty() {
            true => Ok(()),
            false => Err(format!("the gateways {known:?} before the first record")),
        };
    };
    check_committed(shelf, last)?;
    let should = shelf.input.as_of(last).gateways();
    match known == should {
        true => Ok(()),
        false => Err(format!(
            "after {last} the gateways are\n  {known:?} instead of\n  {should:?}"
        )),
    }
}

fn check_outcomes(shelf: &SimulatedLog, offsets: &[Offset], each: &[Option<Outcome>]) -> Result<(), String> {
    if each.len() != offsets.len() {
        return Err(format!("{} outcomes for {}", each.len(), offsets.len()));
    }
    for (offset, outcome) in offsets.iter().zip(each) {
        // A worker that began after it does not know.
        let Some(outcome) = outcome else { continue };
        check_committed(shelf, *offset)?;
        let Outcome {
            changed,
            ignored,
            malformed,
        } = outcome;
        let said = RecordOutcome {
            changed: *changed,
            ignored: *ignored,
            is_malformed: malformed.is_some(),
        };
        let should = shelf.input.outcome(*offset);
        if should != Some(&said) {
            return Err(format!("of {offset} came {said:?} instead of {should:?}"));
        }
    }
    Ok(())
}
