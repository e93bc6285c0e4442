//! The thread of a worker: it waits for as long as the worker says, hands on what comes meanwhile, and reports.
//!
//! Everything that can wake it is a [`Command`] in one channel.

use super::control::{Role, View};
use super::{Command, QueryError, Rest, Worker};
use crate::engine::Error;
use crate::engine::assignments::WorkerReport;
use crate::engine::ownership;
use crate::engine::partition::PartitionProcessor;
use crate::engine::progress::Cause;
use crate::log::PartitionHandle;
use crate::metrics;
use crate::presence::{Offset, Status};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::Duration;

/// Between two reports to the metrics, unless the state changes.
const REPORT_MS: u64 = 200;

/// About so many users and records may be asked for by the questions that a worker has not taken yet. A worker takes
/// none while it folds a batch or waits for its log, and those who ask may go away and ask again meanwhile.
const ASKED_MAX: usize = 250_000;

/// Wakes a worker, at most once until it has looked, and asks it questions, as many as may wait.
pub struct Wake {
    sender: Sender<Command>,
    pending: AtomicBool,
    /// The weight of the questions that the worker has not taken yet.
    asked: AtomicUsize,
}

impl Wake {
    pub fn new(sender: Sender<Command>) -> Wake {
        Wake {
            sender,
            pending: AtomicBool::new(false),
            asked: AtomicUsize::new(0),
        }
    }

    /// Asks a question, or says why it cannot be asked. Any question may be asked while no other one waits.
    pub fn ask(&self, question: Command) -> Result<(), QueryError> {
        let weight = question.weight();
        let before = self.asked.fetch_add(weight, Ordering::AcqRel);
        let refused = match before == 0 || before + weight <= ASKED_MAX {
            true => self.sender.send(question).err().map(|_| QueryError::Elsewhere),
            false => {
                metrics::question_refused();
                Some(QueryError::Busy)
            }
        };
        refused.map_or(Ok(()), |error| {
            self.asked.fetch_sub(weight, Ordering::AcqRel);
            Err(error)
        })
    }

    /// The worker takes a command: what comes after it may be asked instead.
    fn taken(&self, command: Command) -> Command {
        self.asked.fetch_sub(command.weight(), Ordering::AcqRel);
        command
    }

    pub fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            // A worker that has ended needs no waking.
            let _ = self.sender.send(Command::Wake);
        }
    }
}

/// Runs a worker until it is asked to end, or another owner was let in. `is_ready` says whether it can answer. An error only
/// if it was deposed or the last commit failed.
pub fn run(
    mut worker: Worker,
    commands: &Receiver<Command>,
    wake: &Wake,
    is_ready: &AtomicBool,
    reporter: &Sender<WorkerReport>,
) -> Result<(), Error> {
    let mut metrics = Figures::default();
    // Opening may take long, or fail again and again.
    match worker.role() {
        Role::Standby => metrics.report(&worker),
        Role::Owner | Role::Heir => {}
    }
    loop {
        // Before it looks: what comes from now on wakes it again.
        wake.pending.store(false, Ordering::Release);
        let turn = worker.turn();
        if turn.became_live {
            // A receiver that is gone is stopping.
            let live = WorkerReport::Fact(worker.partition(), ownership::Fact::CaughtUp);
            let _ = reporter.send(live);
        }
        // Only those who look for standbys ask for it.
        if worker.dependencies.services.standbys.is_some() {
            is_ready.store(worker.may_show(), Ordering::Release);
        }
        metrics.report(&worker);
        worker.warn_of_malformed();
        match turn.rest {
            Rest::Ended(result) => return result,
            Rest::Wait(wait_ms) => take_commands(&mut worker, commands, wake, wait_ms),
        }
    }
}

fn take_commands(worker: &mut Worker, commands: &Receiver<Command>, wake: &Wake, wait_ms: u64) {
    let began_ms = worker.clock.monotonic_ms();
    let first = if wait_ms == 0 {
        commands.try_recv().map_err(|error| match error {
            TryRecvError::Empty => RecvTimeoutError::Timeout,
            TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
        })
    } else {
        commands.recv_timeout(Duration::from_millis(wait_ms))
    };
    worker.woke(wait_ms, worker.clock.monotonic_ms().saturating_sub(began_ms));
    match first {
        Ok(command) => {
            worker.take(wake.taken(command));
            commands.try_iter().for_each(|command| worker.take(wake.taken(command)));
        }
        Err(RecvTimeoutError::Timeout) => {}
        Err(RecvTimeoutError::Disconnected) => worker.take(Command::Stop),
    }
}

/// Reports to the metrics how the partition is doing.
#[derive(Default)]
struct Figures {
    /// No report before, by the monotonic clock, unless the state is another than was reported.
    next_report_ms: u64,
    reported: &'static str,
    /// Figures of a standby were reported.
    stood_by: bool,
}

impl Figures {
    fn report(&mut self, worker: &Worker) {
        let now_ms = worker.clock.monotonic_ms();
        let view: Option<View> = worker.view();
        match worker.role() {
            Role::Standby => return self.report_standby(worker, now_ms),
            Role::Owner | Role::Heir => {}
        }
        if std::mem::take(&mut self.stood_by) {
            metrics::standby_gone(worker.partition().0);
        }
        let state = worker.control.state(view.as_ref());
        // The last report before a quiet spell comes when the worker next looks around.
        if now_ms < self.next_report_ms && self.reported == state {
            return;
        }
        self.next_report_ms = now_ms + REPORT_MS;
        self.reported = state;
        let processor = worker.processor();
        let applied = processor.map_or(Offset(0), PartitionProcessor::applied);
        let end = processor
            .and_then(|processor| processor.log().events().range().ok())
            .map(|range| range.end);
        let census = processor.map(PartitionProcessor::census);
        let counted = |status| {
            let devices = census.into_iter().flat_map(move |census| census.devices(status));
            devices.map(move |(platform, count)| (status, platform.into(), count))
        };
        let standstill = worker.control.standstill();
        let deadline = processor.and_then(PartitionProcessor::next_deadline);
        let deadline_ms = deadline.map_or(u64::MAX, |deadline| deadline.0);
        let held = standstill.filter(|one| one.cause == Cause::Transaction);
        let figures = metrics::Figures {
            state,
            lag: end.map(|end| worker.lag(applied, end)),
            log_time_age_ms: worker.log_time_age_ms(),
            held_s: held.map_or(0, |held| held.for_ms / 1_000),
            overdue_s: view.map(|view| view.log_now_ms.saturating_sub(deadline_ms) / 1_000),
            users_in_memory: processor.map_or(0, |processor| processor.state().users_in_memory()),
            users: Status::ALL.map(|status| (status, census.map_or(0, |census| census.users(status)))),
            devices: Status::ALL.into_iter().flat_map(counted).collect(),
        };
        metrics::partition(worker.partition().0, figures);
    }

    fn report_standby(&mut self, worker: &Worker, now_ms: u64) {
        self.stood_by = true;
        if now_ms < self.next_report_ms {
            return;
        }
        self.next_report_ms = now_ms + REPORT_MS;
        let lag = worker.processor().and_then(|processor| match processor.log() {
            PartitionHandle::Owned(_) => None,
            PartitionHandle::Standby(standby) => {
                let newest = standby.owner_position().ok()?.position.next;
                Some(newest.0.saturating_sub(processor.applied().0))
            }
        });
        metrics::standby(worker.partition().0, worker.may_show(), lag);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::UsersReply;
    use std::sync::mpsc::channel;
    use tokio::sync::oneshot;

    fn users(count: usize) -> Command {
        let (reply, _) = oneshot::channel();
        Command::Users {
            users: vec![String::new(); count],
            at_least: None,
            reply: UsersReply::new(|_| (), reply),
        }
    }

    #[test]
    fn questions_that_a_worker_does_not_take_are_refused_beyond_a_number_and_orders_never() {
        let (sender, commands) = channel();
        let wake = Wake::new(sender.clone());
        for _ in 0..ASKED_MAX / 1_000 {
            wake.ask(users(1_000)).expect("there is room");
        }
        assert!(matches!(wake.ask(users(1)), Err(QueryError::Busy)));
        let (reply, _) = oneshot::channel();
        assert!(matches!(wake.ask(Command::Stats { reply }), Err(QueryError::Busy)));
        wake.wake();
        sender.send(Command::Stop).expect("the receiver is here");

        wake.taken(commands.recv().expect("a question"));
        wake.ask(users(1_000)).expect("there is room for one more");
        assert!(matches!(wake.ask(users(1)), Err(QueryError::Busy)));

        let taken: Vec<Command> = commands.try_iter().map(|command| wake.taken(command)).collect();
        assert_eq!(taken.len(), ASKED_MAX / 1_000 + 2);
        wake.ask(users(2 * ASKED_MAX)).expect("nothing else waits");
        drop(commands);
        assert!(matches!(Wake::new(sender).ask(users(1)), Err(QueryError::Elsewhere)));
    }
}
