//! The thread of a partition: everything that can wake it is a [`Command`], and one loop takes them in turn.
//!
//! Between batches it answers questions, which therefore see committed state only. When nothing comes and a deadline
//! is due by the time of the log, it appends a `tick` and reads it from the log: time never enters in any other way.

mod answers;

use super::assignments::{Dependencies, WorkerReport};
use super::checkpoints::{LogBounds, set_aside};
use super::outcomes::Outcomes;
use super::ownership::Fact;
use super::partition::PartitionProcessor;
use super::progress::{Cause, Progress, Standstill};
use super::rejected::Groups;
use super::{Error, KnownGateway, Tuning};
use crate::clock::Clock;
use crate::log::{self, Limit, NewRecord, OwnedPartition, Position, Topic};
use crate::metrics;
use crate::presence::change::IgnoreReason;
use crate::presence::event::Event;
use crate::presence::policy::Policy;
use crate::presence::{Epoch, LogTime, Offset, Partition, Status};
use crate::store::{self, Store};
use crate::tasks;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::time::Duration;
use tokio::sync::oneshot;

/// Ticks are at least this far apart.
const TICK_MS: u64 = 250;
/// After this long without anything the worker looks around all the same.
const IDLE_MS: u64 = 1_000;
/// After the log or the store failed it is tried again this much later.
const RETRY_MS: u64 = 1_000;
const PROGRESS_MS: u64 = 2_000;
const REPORT_MS: u64 = 200; // unless the state changes
/// How often the last commit is tried, and for how long at most until the last try begins.
const CLOSINGS: u32 = 4;
const CLOSING_MS: u64 = 8_000;
/// A panic at the same place so many times in a row halts the partition.
const PANICS_MAX: u32 = 2;
/// Well below the time after which a group gives a silent member's partitions to another.
const OVERSLEPT_MS: u64 = 1_500;
/// How often the log is asked whether it takes events while there is work.
const REFUSAL_MS: u64 = 500;
/// Log time may be so far ahead of the clock without a warning: clocks are corrected a little all the time.
const TIME_AHEAD_MS: u64 = 5_000;
/// A tick that has not come back after so long was lost on its way.
const TICK_LOST_MS: u64 = 10_000;

/// A question's answer, with where it was taken.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Answer<T> {
    pub value: T,
    pub as_of: Option<Offset>,
}

/// A question that cannot be answered at the moment.
#[derive(Clone, Debug, thiserror::Error)]
pub enum QueryError {
    /// Nobody is there to answer, or the state is not ready to be shown; try again.
    #[error("the partition is not ready to answer; try again shortly")]
    Unavailable,
    /// This process does not work on the partition.
    #[error("the partition is not on this node")]
    Elsewhere,
    #[error("{0}")]
    Failed(Arc<str>),
}

type Reply<T> = oneshot::Sender<Result<T, QueryError>>;

pub enum Command {
    /// Events became readable.
    Wake,
    Users {
        users: Vec<String>,
        at_least: Option<Offset>,
        reply: Reply<Vec<Option<Vec<u8>>>>,
    },
    Policy {
        reply: Reply<Answer<(Policy, Option<Offset>)>>,
    },
    Partition {
        reply: Reply<Vec<KnownGateway>>,
    },
    Outcomes {
        offsets: Vec<Offset>,
        reply: Reply<Outcomes>,
    },
    Epochs {
        gateways: Vec<String>,
        reply: Reply<Vec<Option<Epoch>>>,
    },
    Stats {
        reply: oneshot::Sender<PartitionStats>,
    },
    /// Commit everything and end.
    Stop,
    /// End and commit nothing.
    Drop,
}

/// How a partition is doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionStats {
    pub partition: Partition,
    /// `restoring` (folding what the log has, for the first time since the start), `live`, `held` (by a publisher's open
    /// transaction), `stalled` (no progress while the log grows), or `failed` with why.
    pub state: &'static str,
    pub error: Option<String>,
    /// Why no events can be published at present.
    pub refusal: Option<Arc<str>>,
    /// What holds it, or what is not wrong yet: of its checkpoints, the log's retention and its time.
    pub warning: Option<Arc<str>>,
    /// The three offsets: the next record to come, to be committed, to be folded.
    pub log_end: Offset,
    pub committed: Offset,
    pub applied: Offset,
    /// How many records are still to be folded.
    pub lag: u64,
    pub time: Option<LogTime>,
    pub census: super::census::Census,
    /// How many changes the partition has given, ever.
    pub changes: u64,
    /// Events and heartbeats without effect since this process has the partition, in the order of `IgnoreReason::ALL`.
    pub ignored: [u64; IgnoreReason::ALL.len()],
    /// Malformed records since then.
    pub rejected: Groups,
}

/// Wakes a worker, at most once until it has looked.
pub struct Wake {
    sender: Sender<Command>,
    pending: AtomicBool,
    /// How many want to know the outcomes of records.
    outcomes: Arc<AtomicUsize>,
}

impl Wake {
    pub fn new(sender: Sender<Command>, outcomes: Arc<AtomicUsize>) -> Wake {
        Wake {
            sender,
            pending: AtomicBool::new(false),
            outcomes,
        }
    }

    pub fn wake(&self) {
        if !self.pending.swap(true, Ordering::AcqRel) {
            // A worker that has ended needs no waking.
            let _ = self.sender.send(Command::Wake);
        }
    }
}

pub struct Worker {
    partition: Partition,
    dependencies: Dependencies,
    directory: Option<PathBuf>,
    clock: Arc<dyn Clock>,
    tuning: Tuning,
    commands: Receiver<Command>,
    wake: Arc<Wake>,
    reporter: Sender<WorkerReport>,
    /// None before it is opened and after it failed.
    processor: Option<PartitionProcessor>,
    failure: Option<String>,
    /// The log goes on in a revision that this program does not know, so what it has is not what holds now.
    is_outdated: bool,
    /// The store was rebuilt already after the fold had diverged from what was committed.
    rebuilt: bool,
    restoring: bool,
    /// It has once been at the log's end, or at what was the end then: a busy log always has more.
    at_end_once: bool,
    end_at_opening: Offset,
    next_progress_ms: u64,
    /// No report to the metrics before, by the monotonic clock, unless the state is another than was reported.
    next_report_ms: u64,
    reported: &'static str,
    /// Not to be tried again before, by the monotonic clock.
    retry_at_ms: u64,
    progress: Progress,
    /// It makes no progress.
    standstill: Option<Standstill>,
    /// The record at which it panicked last, and how many times in a row.
    panics: (Option<Offset>, u32),
    /// It panicked there too often, and waits for another version of the program.
    is_halted: bool,
    /// No checkpoint before, by the monotonic clock.
    next_checkpoint_ms: u64,
    /// Where the last checkpoint stood.
    checkpointed: Offset,
    /// Questions that wait for an offset, or until what was folded is committed.
    waiting: Vec<Waiting>,
    /// When a tick was appended that has not come back, by the monotonic clock.
    tick_sent_ms: Option<u64>,
    /// No tick before, by the monotonic clock.
    next_tick_ms: u64,
    /// Why the log takes no events, and when it was last asked, by the monotonic clock.
    refusal: Option<Arc<str>>,
    refusal_asked_ms: Option<u64>,
    /// It was said that log time is ahead of the clock.
    is_ahead: bool,
    stopping: bool,
    /// It slept longer than it meant to: before it answers, it asks whether the partition is still ours.
    overslept: bool,
    /// Why it ends by itself.
    deposed: Option<Error>,
}

/// A question, and the offset that must be folded before it is answered.
struct Waiting {
    at_least: Option<Offset>,
    question: Question,
}

/// What is asked about the state.
enum Question {
    Users(Vec<String>, Reply<Vec<Option<Vec<u8>>>>),
    Policy(Reply<Answer<(Policy, Option<Offset>)>>),
    Partition(Reply<Vec<KnownGateway>>),
    Outcomes(Vec<Offset>, Reply<Outcomes>),
}

impl Question {
    fn is_given_up(&self) -> bool {
        match self {
            Question::Users(_, reply) => reply.is_closed(),
            Question::Policy(reply) => reply.is_closed(),
            Question::Partition(reply) => reply.is_closed(),
            Question::Outcomes(_, reply) => reply.is_closed(),
        }
    }
}

impl Worker {
    pub fn new(
        partition: Partition,
        dependencies: Dependencies,
        commands: Receiver<Command>,
        wake: Arc<Wake>,
        reporter: Sender<WorkerReport>,
    ) -> Worker {
        Worker {
            partition,
            directory: dependencies
                .data
                .as_deref()
                .map(|data| store::directory_of(data, partition)),
            clock: dependencies.clock.clone(),
            tuning: dependencies.tuning,
            dependencies,
            commands,
            wake,
            reporter,
            processor: None,
            failure: None,
            is_outdated: false,
            rebuilt: false,
            restoring: false,
            at_end_once: false,
            end_at_opening: Offset(0),
            next_progress_ms: 0,
            next_report_ms: 0,
            reported: "",
            retry_at_ms: 0,
            progress: Progress::default(),
            standstill: None,
            panics: (None, 0),
            is_halted: false,
            next_checkpoint_ms: 0,
            checkpointed: Offset(0),
            waiting: Vec::new(),
            tick_sent_ms: None,
            next_tick_ms: 0,
            refusal: None,
            refusal_asked_ms: None,
            is_ahead: false,
            stopping: false,
            overslept: false,
            deposed: None,
        }
    }

    /// Until it is told to end, or another owner was let in. An error only if the last commit failed.
    pub fn run(mut self) -> Result<(), Error> {
        while !self.stopping {
            let worked = self.work();
            self.look_at_the_log(worked);
            self.answer_waiting();
            let wait_ms = if worked { 0 } else { self.wait_ms() };
            self.take_commands(wait_ms);
        }
        if let Some(error) = self.deposed {
            return Err(error);
        }
        let Some(mut processor) = self.processor else {
            return Ok(());
        };
        let until_ms = self.clock.monotonic_ms() + CLOSING_MS;
        for _ in 1..CLOSINGS {
            match processor.commit_store() {
                // A log that stumbles now and stands again in a moment is no reason to leave work for the next start.
                Err(Error::Log(log::Error::Write(_) | log::Error::Busy | log::Error::Read(_)))
                    if self.clock.monotonic_ms() < until_ms =>
                {
                    std::thread::sleep(Duration::from_millis(RETRY_MS / 2));
                }
                closed => return closed,
            }
        }
        processor.close()
    }

    /// Opens, or folds a batch; whether there may be more to do at once.
    fn work(&mut self) -> bool {
        if self.is_halted || self.clock.monotonic_ms() < self.retry_at_ms {
            return false;
        }
        self.wake.pending.store(false, Ordering::Release);
        // After a panic the walk is given up, whatever it had.
        let worked = catch_unwind(AssertUnwindSafe(|| self.try_work()));
        let worked = match worked.unwrap_or_else(|panic| Err(self.panicked(tasks::message(&*panic)))) {
            Ok(worked) => worked,
            Err(error) => {
                self.standstill = None;
                if self.failure.as_ref() != Some(&error.to_string()) {
                    tracing::error!(partition = %self.partition, %error, "the partition cannot go on; trying again");
                }
                self.failure = Some(error.to_string());
                // It may have come back within the step that failed.
                self.tick_sent_ms = None;
                self.retry_at_ms = self.clock.monotonic_ms() + RETRY_MS;
                self.recover(error);
                false
            }
        };
        self.report();
        self.warn_of_malformed();
        worked
    }

    /// Reports how the partition is doing, to the metrics.
    fn report(&mut self) {
        let now_ms = self.clock.monotonic_ms();
        let state = self.state();
        // The last report before a quiet spell comes when the worker next looks around.
        if now_ms < self.next_report_ms && self.reported == state {
            return;
        }
        self.next_report_ms = now_ms + REPORT_MS;
        self.reported = state;
        let processor = self.processor.as_ref();
        let applied = processor.map_or(Offset(0), PartitionProcessor::applied);
        let end = processor
            .and_then(|processor| processor.log().range().ok())
            .map(|range| range.end);
        let census = processor.map(PartitionProcessor::census);
        let counted = |status| {
            let devices = census.into_iter().flat_map(move |census| census.devices(status));
            devices.map(move |(platform, count)| (status, platform.into(), count))
        };
        let held = self.standstill.filter(|one| one.cause == Cause::Transaction);
        let figures = metrics::Figures {
            state,
            lag: end.map(|end| self.lag(applied, end)),
            held_s: held.map_or(0, |held| held.for_ms / 1_000),
            users_in_memory: processor.map_or(0, |processor| processor.state().users_in_memory()),
            users: Status::ALL.map(|status| (status, census.map_or(0, |census| census.users(status)))),
            devices: Status::ALL.into_iter().flat_map(counted).collect(),
        };
        metrics::partition(self.partition.0, figures);
    }

    fn warn_of_malformed(&mut self) {
        let groups = self
            .processor
            .as_mut()
            .map(PartitionProcessor::take_unwarned)
            .unwrap_or_default();
        let due = self
            .dependencies
            .warnings
            .due(self.partition, groups, self.clock.monotonic_ms());
        for warning in due {
            tracing::warn!(
                reason = warning.reason.name(),
                count = warning.count,
                partition = warning.partition.0,
                newest_offset = warning.newest.0,
                error = warning.error,
                "malformed records; `rollcall log quarantine` prints them"
            );
        }
    }

    /// One word for how it is doing.
    fn state(&self) -> &'static str {
        match (&self.processor, &self.failure, &self.standstill) {
            (_, Some(_), _) => "failed",
            (Some(_), None, Some(standstill)) => standstill.state(),
            (Some(processor), None, None) if self.at_end_once && processor.is_caught_up() => "live",
            (_, None, _) => "restoring",
        }
    }

    /// The same panic again and again is the same bug: once it is tried again, from the store, and then no more.
    fn panicked(&mut self, message: &str) -> Error {
        metrics::task_failed("partition");
        let processor = self.processor.as_ref();
        let at = processor.map(|processor| processor.folding().unwrap_or(processor.applied()));
        let times = if self.panics.0 == at { self.panics.1 + 1 } else { 1 };
        self.panics = (at, times);
        self.is_halted = times >= PANICS_MAX;
        Error::Panicked {
            partition: self.partition,
            offset: at,
            halted: self.is_halted,
            message: message.into(),
        }
    }

    /// Whether events can be published, and whether log time is ahead of the clock: nobody may find out by accident.
    fn look_at_the_log(&mut self, is_busy: bool) {
        let now_ms = self.clock.monotonic_ms();
        if is_busy
            && self
                .refusal_asked_ms
                .is_some_and(|asked| now_ms.saturating_sub(asked) < REFUSAL_MS)
        {
            return;
        }
        self.refusal_asked_ms = Some(now_ms);
        let refusal = self.dependencies.log.refusal();
        metrics::log_writable(refusal.is_none());
        self.refusal = refusal.map(|refusal| refusal.to_string().into());
        let ahead_ms = self.ahead_ms();
        metrics::log_time_ahead(self.partition.0, ahead_ms);
        let is_ahead = ahead_ms > TIME_AHEAD_MS;
        if is_ahead != self.is_ahead {
            self.is_ahead = is_ahead;
            if is_ahead {
                tracing::warn!(partition = %self.partition, ahead_s = ahead_ms / 1_000, "log time is ahead of this machine's clock");
            } else {
                tracing::info!(partition = %self.partition, "log time is no longer ahead of this machine's clock");
            }
        }
    }

    /// How far log time is ahead of this machine's clock.
    fn ahead_ms(&self) -> u64 {
        let time = self.processor.as_ref().and_then(|processor| processor.state().time());
        time.map_or(0, |time| time.0.saturating_sub(self.clock.now_ms()))
    }

    fn warning(&self) -> Option<Arc<str>> {
        let checkpointer = self.dependencies.services.checkpointer.as_ref();
        let checkpoints = checkpointer.and_then(|checkpointer| checkpointer.warning(self.partition));
        let ahead_ms = self.ahead_ms();
        if ahead_ms <= TIME_AHEAD_MS {
            return checkpoints;
        }
        let time = format!(
            "log time is {} s ahead of this machine's clock, which was or is wrong; times of changes are ahead as well",
            ahead_ms / 1_000
        );
        Some(match checkpoints {
            Some(checkpoints) => format!("{time}; {checkpoints}").into(),
            None => time.into(),
        })
    }

    fn recover(&mut self, error: Error) {
        match error {
            // What the fold gave is kept and committed again.
            Error::Log(log::Error::Write(_) | log::Error::Busy | log::Error::Read(_)) => {}
            // Nothing was folded of a batch with a schema that is still to be asked for.
            Error::Registry(_) => {}
            // What the log cannot rebuild a checkpoint can, once; the store is kept to be looked at.
            Error::Unrecoverable { .. } if self.dependencies.services.checkpointer.is_some() && !self.rebuilt => {
                self.processor = None;
                self.rebuilt = true;
                if let Some(directory) = &self.directory
                    && let Err(error) = set_aside(directory)
                {
                    tracing::error!(partition = %self.partition, %error, "the store cannot be set aside");
                }
            }
            // A store that was damaged unnoticed gives other outputs, or shows it only now: once, the log alone is asked, or
            // else a checkpoint.
            Error::Diverged { .. } | Error::Store(store::Error::Damaged { .. }) if !self.rebuilt => {
                self.processor = None;
                self.rebuilt = true;
                let range = self.dependencies.log.range(Topic::Events, self.partition);
                let start = range.map(|range| range.start);
                let can_be_made = matches!(start, Ok(Offset(0))) || self.dependencies.services.checkpointer.is_some();
                if let (Some(directory), true) = (&self.directory, can_be_made)
                    && let Err(error) = Store::destroy(directory)
                {
                    tracing::error!(partition = %self.partition, %error, "the store cannot be rebuilt");
                }
            }
            // Nothing was folded of it; when the clock has caught up it will be.
            Error::Ahead { .. } => {}
            // Nor of this, and what was folded before it is not the newest that is known: no answer comes from it.
            Error::UnknownRevision { .. } => self.is_outdated = true,
            // Another owner was let in. Whether the partition is still ours the group will say.
            Error::Log(log::Error::Fenced { .. }) | Error::Deposed { .. } => {
                self.processor = None;
                self.stopping = true;
                self.deposed = Some(error);
            }
            // What is in memory no longer counts: start over from the store.
            Error::Log(_)
            | Error::Store(_)
            | Error::Checkpoint(_)
            | Error::Diverged { .. }
            | Error::ForeignStore { .. }
            | Error::Unreadable
            | Error::Behind { .. }
            | Error::Panicked { .. }
            | Error::Unrecoverable { .. } => self.processor = None,
        }
    }

    /// Folding again what was committed may take a while: says how far it is.
    fn show_progress(&mut self) {
        let Some(processor) = &self.processor else { return };
        let now_ms = self.clock.monotonic_ms();
        let (applied, committed) = (processor.applied(), processor.committed().next);
        if self.at_end_once && processor.is_caught_up() {
            if self.restoring {
                self.restoring = false;
                tracing::info!(partition = %self.partition, %applied, "live");
                // A receiver that is gone is stopping.
                let _ = self.reporter.send(WorkerReport::Fact(self.partition, Fact::CaughtUp));
            }
        } else if now_ms >= self.next_progress_ms {
            self.next_progress_ms = now_ms + PROGRESS_MS;
            tracing::info!(partition = %self.partition, %applied, %committed, "folding what the log has");
        }
    }

    fn try_work(&mut self) -> Result<bool, Error> {
        let Some(processor) = &mut self.processor else {
            let mut log = self.dependencies.log.take_up(self.partition)?;
            self.restore(&mut *log)?;
            let clock = self.clock.clone();
            // Another first policy comes as a record, so that the log alone says everything.
            let first = Policy::default();
            let processor = PartitionProcessor::open(log, self.directory.as_deref(), &first, clock, self.tuning)?
                .with_schemas(self.dependencies.services.schemas.clone())
                .with_outcomes(self.wake.outcomes.clone());
            self.restoring = true;
            self.at_end_once = false;
            self.end_at_opening = processor.log().range()?.end;
            self.next_progress_ms = self.clock.monotonic_ms() + PROGRESS_MS;
            self.processor = Some(processor);
            return Ok(true);
        };
        if std::mem::take(&mut self.overslept)
            && let Err(error) = processor.confirm()
        {
            self.overslept = true;
            return Err(error);
        }
        let step = processor.step(Limit {
            records: self.tuning.batch_records,
            bytes: self.tuning.batch_bytes,
        })?;
        if step.saw_tick {
            self.tick_sent_ms = None;
        }
        let at_end = step.records == 0 && processor.log().is_at_end();
        self.at_end_once |= at_end || (step.records > 0 && processor.applied() >= self.end_at_opening);
        if step.records > 0 || at_end {
            self.failure = None;
        }
        self.show_progress();
        if at_end {
            self.tick()?;
        }
        if !self.restoring {
            self.checkpoint()?;
        }
        self.look_at_progress()?;
        Ok(step.records > 0)
    }

    fn lag(&self, applied: Offset, end: Offset) -> u64 {
        let reading = self.processor.as_ref().map(|processor| processor.log().reading());
        reading.map_or(end.0, |reading| Progress::lag(applied, reading, end))
    }

    /// Reports a standstill when it begins and when it is over.
    fn look_at_progress(&mut self) -> Result<(), Error> {
        let Some(processor) = &self.processor else {
            return Ok(());
        };
        let now_ms = self.clock.monotonic_ms();
        let (applied, log) = (processor.applied(), processor.log());
        let standstill = self.progress.look(now_ms, applied, log.reading(), log.range()?.end);
        let cause = |standstill: &Option<Standstill>| standstill.as_ref().map(|standstill| standstill.cause);
        if cause(&standstill) != cause(&self.standstill) {
            match &standstill {
                Some(now) => {
                    tracing::warn!(partition = %self.partition, for_ms = now.for_ms, reason = now.reason(), "no progress");
                }
                None => tracing::info!(partition = %self.partition, "progress again"),
            }
        }
        self.standstill = standstill;
        Ok(())
    }

    fn reach(log: &dyn OwnedPartition, committed: Position) -> Result<LogBounds, Error> {
        let range = log.range()?;
        Ok(LogBounds {
            start: range.start,
            end: range.end,
            committed: (committed.next, committed.outputs),
        })
    }

    /// Takes a checkpoint in place of the store, where that is better.
    fn restore(&mut self, log: &mut dyn OwnedPartition) -> Result<(), Error> {
        let Some(checkpointer) = self.dependencies.services.checkpointer.clone() else {
            return Ok(());
        };
        // The first is due at a different moment for each partition, so that not all come at once.
        let share = u64::from(self.partition.0 + 1) * checkpointer.every_ms() / u64::from(log.partitions());
        self.next_checkpoint_ms = self.clock.monotonic_ms() + share;
        self.checkpointed = Offset(0);
        let Some(directory) = self.directory.clone() else {
            return Ok(());
        };
        let committed = log.position()?;
        let reach = Worker::reach(log, committed)?;
        checkpointer.restore(self.partition, &directory, reach, self.tuning.store_commit_records)?;
        Ok(())
    }

    /// Makes a checkpoint, if one is due and there is anything new.
    fn checkpoint(&mut self) -> Result<(), Error> {
        let now_ms = self.clock.monotonic_ms();
        let (Some(checkpointer), Some(processor)) =
            (self.dependencies.services.checkpointer.clone(), &mut self.processor)
        else {
            return Ok(());
        };
        if now_ms < self.next_checkpoint_ms || processor.applied() == self.checkpointed {
            return Ok(());
        }
        self.next_checkpoint_ms = now_ms + checkpointer.every_ms();
        let Some(place) = checkpointer.place(self.partition) else {
            return Ok(());
        };
        if let Err(error) = processor.checkpoint(&place)? {
            metrics::checkpoint_failed();
            tracing::warn!(partition = %self.partition, %error, "checkpoint failed, retrying at the next interval");
            return Ok(());
        }
        self.checkpointed = processor.applied();
        let reach = Worker::reach(processor.log(), processor.committed())?;
        checkpointer.take(self.partition, place, reach);
        Ok(())
    }

    /// The time that a tick would get.
    fn log_now_ms(&self) -> u64 {
        self.dependencies.log.now_ms().unwrap_or_else(|| self.clock.now_ms())
    }

    /// When the partition, quiet as it is, needs a tick, by the time of the log.
    fn tick_due_ms(&self) -> Option<u64> {
        let processor = self.processor.as_ref()?;
        let time = processor.state().time()?;
        let deadline = processor.next_deadline();
        let outage = processor.state().policy().outage;
        let watch = (outage.silence_ms > 0 && processor.census().online_devices() > 0)
            .then(|| time.plus(outage.silence_ms / 2));
        [deadline, watch].into_iter().flatten().min().map(|due| due.0)
    }

    fn is_tick_in_flight(&self, now_ms: u64) -> bool {
        self.tick_sent_ms
            .is_some_and(|sent| now_ms.saturating_sub(sent) < TICK_LOST_MS)
    }

    fn tick(&mut self) -> Result<(), Error> {
        let Some(due_ms) = self.tick_due_ms() else {
            return Ok(());
        };
        let now_ms = self.clock.monotonic_ms();
        if due_ms > self.log_now_ms() || self.is_tick_in_flight(now_ms) || now_ms < self.next_tick_ms {
            return Ok(());
        }
        let mut value = Vec::new();
        self.dependencies
            .services
            .schemas
            .encode_event(&Event::Tick, &mut value);
        let record = NewRecord { key: None, value };
        self.tick_sent_ms = Some(now_ms);
        self.next_tick_ms = now_ms + TICK_MS;
        metrics::tick();
        self.dependencies
            .log
            .append(vec![(self.partition, record)], Box::new(|_| {}));
        Ok(())
    }

    /// How long nothing needs to be done.
    fn wait_ms(&self) -> u64 {
        let now_ms = self.clock.monotonic_ms();
        if self.is_halted {
            return IDLE_MS;
        }
        if now_ms < self.retry_at_ms {
            return self.retry_at_ms - now_ms;
        }
        let commit = self.processor.as_ref().and_then(PartitionProcessor::commit_due_ms);
        let idle_ms = commit.map_or(IDLE_MS, |due_ms| due_ms.saturating_sub(now_ms).clamp(1, IDLE_MS));
        if self.is_tick_in_flight(now_ms) {
            return idle_ms;
        }
        let tick = self.tick_due_ms().map(|due| due.saturating_sub(self.log_now_ms()));
        let tick = tick.map(|wait| wait.max(self.next_tick_ms.saturating_sub(now_ms)).max(1));
        tick.unwrap_or(idle_ms).min(idle_ms)
    }

    fn take_commands(&mut self, wait_ms: u64) {
        let began_ms = self.clock.monotonic_ms();
        let first = if wait_ms == 0 {
            self.commands.try_recv().map_err(|error| match error {
                TryRecvError::Empty => RecvTimeoutError::Timeout,
                TryRecvError::Disconnected => RecvTimeoutError::Disconnected,
            })
        } else {
            self.commands.recv_timeout(Duration::from_millis(wait_ms))
        };
        let slept_ms = self.clock.monotonic_ms().saturating_sub(began_ms);
        self.overslept |= slept_ms > wait_ms + OVERSLEPT_MS;
        match first {
            Ok(command) => {
                self.take(command);
                while let Ok(command) = self.commands.try_recv() {
                    self.take(command);
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.stopping = true,
        }
    }

    fn take(&mut self, command: Command) {
        match command {
            Command::Wake => {}
            Command::Users { users, at_least, reply } => self.ask(at_least, Question::Users(users, reply)),
            Command::Policy { reply } => self.ask(None, Question::Policy(reply)),
            Command::Partition { reply } => self.ask(None, Question::Partition(reply)),
            Command::Outcomes { offsets, reply } => {
                let last = offsets.iter().max().copied();
                self.ask(last, Question::Outcomes(offsets, reply));
            }
            Command::Epochs { gateways, reply } => {
                // What was folded is known, committed or not.
                let processor = self.processor.as_ref().ok_or(QueryError::Unavailable);
                let known = processor.map(|processor| {
                    let known = gateways.iter().map(|gateway| processor.state().epoch_of(gateway));
                    known.collect()
                });
                let _ = reply.send(known);
            }
            Command::Stats { reply } => {
                // As of now, not as of when it last looked.
                self.look_at_the_log(false);
                // The asker may have gone: here and below that is no error.
                let _ = reply.send(self.stats());
            }
            Command::Stop => self.stopping = true,
            Command::Drop => {
                self.processor = None;
                self.stopping = true;
            }
        }
    }
}
