//! A partition's worker: it carries out what its core orders ([`control`]), and answers questions between batches, which
//! therefore see committed state only.
//!
//! It has no thread and never waits: [`Worker::turn`] does what there is to do and says how long nothing is. The thread
//! around it ([`thread`]) waits; a simulated world takes the turns itself. When nothing comes and a deadline is due by the
//! time of the log, it appends a `tick` and reads it from the log: time never enters in any other way.

mod answers;
mod checkpoint;
mod control;
mod failure;
mod thread;
mod warnings;

pub use control::TICK_MS;
pub use failure::Failure;
pub use thread::{Wake, run};

use super::assignments::Dependencies;
use super::checkpoints::set_aside;
use super::fencing::Fencing;
use super::outcomes::Outcomes;
use super::partition::{NotTakenOver, PartitionProcessor};
use super::past::{OldestChange, Past, PastOf};
use super::progress::Progress;
use super::rejected::Groups;
use super::users::UsersReply;
use super::{Error, KnownGateway, Tuning};
use crate::clock::Clock;
use crate::log::{Limit, NewRecord, PartitionHandle};
use crate::metrics;
use crate::presence::change::IgnoreReason;
use crate::presence::event::Event;
use crate::presence::policy::Policy;
use crate::presence::{Epoch, LogTime, Offset, Partition, Revision};
use crate::store::{self, StoreLocation};
use crate::tasks;
use crate::topics::Topic;
use answers::{Question, Waiting};
use control::{Control, Fact, Folded, Notes, Order, RestoreNote, Role, StandstillNote, View};
use failure::Recovery;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use tokio::sync::oneshot;

/// Between two looks at which changes the log still has.
const INDEX_CUT_MS: u64 = 600_000;

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
    /// The queue of questions is full.
    #[error("too many questions are waiting for this partition; try again shortly")]
    Busy,
    /// This process does not work on the partition.
    #[error("the partition is not on this node")]
    Elsewhere,
    /// The store cannot be read at the moment.
    #[error("{0}")]
    StoreUnavailable(Arc<str>),
    /// What was read is damaged.
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
        reply: UsersReply,
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
    Past {
        of: PastOf,
        reply: Reply<Past>,
    },
    Epochs {
        gateways: Vec<String>,
        reply: Reply<Vec<Option<Epoch>>>,
    },
    Stats {
        reply: oneshot::Sender<PartitionStats>,
    },
    /// The partition of this standby is this node's from now on.
    Promote,
    /// Commit everything and end.
    Stop,
    /// End and commit nothing.
    Drop,
}

impl Command {
    /// For how many users or records it asks; 0: it is an order.
    fn weight(&self) -> usize {
        match self {
            Command::Users { users, .. } => users.len().max(1),
            Command::Outcomes { offsets, .. } => offsets.len().max(1),
            Command::Epochs { gateways, .. } => gateways.len().max(1),
            Command::Policy { .. } | Command::Partition { .. } | Command::Past { .. } | Command::Stats { .. } => 1,
            Command::Wake | Command::Promote | Command::Stop | Command::Drop => 0,
        }
    }

    /// Whether it is a question that waits until an offset is folded.
    pub fn waits_for_an_offset(&self) -> bool {
        match self {
            Command::Users { at_least, .. } => at_least.is_some(),
            Command::Outcomes { .. } => true,
            Command::Epochs { .. }
            | Command::Policy { .. }
            | Command::Partition { .. }
            | Command::Past { .. }
            | Command::Stats { .. }
            | Command::Wake
            | Command::Promote
            | Command::Stop
            | Command::Drop => false,
        }
    }
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
    /// In force; none while the partition is not open.
    pub revision: Option<Revision>,
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

/// See the module.
pub struct Worker {
    partition: Partition,
    dependencies: Dependencies,
    /// Where the store is, if there is to be one, and its directory, if it has one.
    store: Option<Box<dyn StoreLocation + Send>>,
    directory: Option<PathBuf>,
    /// The policy of a partition without any record.
    first_policy: Policy,
    clock: Arc<dyn Clock>,
    tuning: Tuning,
    /// How many want to know the outcomes of records.
    outcomes: Arc<AtomicUsize>,
    control: Control,
    /// None before it is opened and after it failed.
    processor: Option<PartitionProcessor>,
    /// The last one.
    failure: Option<String>,
    /// Questions that wait for an offset, or until what was folded is committed.
    waiting: Vec<Waiting>,
    fencing: Arc<Fencing>,
    /// Why the log takes no events.
    refusal: Option<Arc<str>>,
    /// It was reported that log time is ahead of the clock.
    is_ahead: bool,
    /// When the index of changes is cut next to what the log still has, by the monotonic clock.
    index_cut_at_ms: u64,
    oldest_change: Arc<OldestChange>,
    /// What the end came to.
    result: Result<(), Error>,
}

/// What a turn came to.
pub struct Turn {
    pub rest: Rest,
    /// It has caught up for the first time since it was opened.
    pub became_live: bool,
    /// Why the partition could not go on. It is tried again by itself.
    pub error: Option<Error>,
}

/// What is left to do after a turn.
pub enum Rest {
    /// Nothing for so many milliseconds, unless something happens; 0: there may be more at once.
    Wait(u64),
    /// The worker has ended. An error only if it was deposed or the last commit failed.
    Ended(Result<(), Error>),
}

impl Worker {
    /// With the store in a directory of the partition below the data directory, if there is one.
    pub fn new(partition: Partition, dependencies: Dependencies, outcomes: Arc<AtomicUsize>) -> Worker {
        let data = dependencies.data.as_deref();
        let directory = data.map(|data| store::directory_of(data, partition));
        let checkpointer = dependencies.services.checkpointer.as_ref();
        Worker {
            partition,
            store: directory.clone().map(|directory| Box::new(directory) as _),
            directory,
            // Another first policy comes as a record, so that the log alone says everything.
            first_policy: Policy::default(),
            clock: dependencies.clock.clone(),
            tuning: dependencies.tuning,
            outcomes,
            control: Control::new(checkpointer.map(|checkpointer| checkpointer.every_ms())),
            dependencies,
            processor: None,
            failure: None,
            waiting: Vec::new(),
            fencing: Arc::default(),
            refusal: None,
            is_ahead: false,
            index_cut_at_ms: 0,
            oldest_change: Arc::default(),
            result: Ok(()),
        }
    }

    /// For a partition that another node has, until it is promoted.
    pub fn standing_by(mut self) -> Worker {
        self.control = self.control.standing_by();
        self
    }

    fn role(&self) -> Role {
        self.control.role()
    }

    /// Whether questions about users are answered.
    pub fn may_show(&self) -> bool {
        self.control.may_show(self.view().as_ref())
    }

    /// With the store elsewhere, and a partition that begins with another policy.
    pub fn with_store(mut self, store: Box<dyn StoreLocation + Send>, first_policy: Policy) -> Worker {
        (self.store, self.first_policy) = (Some(store), first_policy);
        self
    }

    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// Whether it fences the earlier owner off at the moment.
    pub fn fencing(&self) -> Arc<Fencing> {
        self.fencing.clone()
    }

    /// The open partition.
    pub fn processor(&self) -> Option<&PartitionProcessor> {
        self.processor.as_ref()
    }

    /// The same, for who copies its store.
    pub fn processor_mut(&mut self) -> Option<&mut PartitionProcessor> {
        self.processor.as_mut()
    }

    /// When the open partition, quiet as it is, needs a tick, by the time of the log.
    pub fn tick_due_ms(&self) -> Option<u64> {
        tick_due_ms(self.processor.as_ref()?)
    }

    /// Does what there is to do, up to one batch.
    pub fn turn(&mut self) -> Turn {
        let mut turn = Turn {
            rest: Rest::Wait(0),
            became_live: false,
            error: None,
        };
        let mut view = self.view();
        loop {
            let order = self.control.next(self.clock.monotonic_ms(), view.as_ref());
            match order {
                Order::Wait(wait_ms) => {
                    turn.rest = Rest::Wait(wait_ms);
                    return turn;
                }
                Order::End => {
                    self.processor = None;
                    turn.rest = Rest::Ended(std::mem::replace(&mut self.result, Ok(())));
                    return turn;
                }
                Order::LookAtLog => self.look_at_the_log(),
                Order::Answer => self.answer_waiting(),
                Order::Tick => self.tick(),
                Order::Close => self.close(),
                Order::Open | Order::Confirm | Order::TakeOver | Order::Fold | Order::Checkpoint => {
                    // After a panic what is in memory is given up.
                    let done = catch_unwind(AssertUnwindSafe(|| self.carry_out(order)));
                    let done = done.unwrap_or_else(|panic| Err(self.panicked(tasks::message(&*panic))));
                    match done {
                        Ok(fact) => {
                            view = self.view();
                            let notes = self.learn(fact);
                            self.note(notes, &mut turn);
                        }
                        Err(error) => {
                            self.fail(error, &mut turn);
                            view = self.view();
                        }
                    }
                }
            }
        }
    }

    /// A wait is over.
    pub fn woke(&mut self, meant_ms: u64, slept_ms: u64) {
        self.learn(Fact::Woke { meant_ms, slept_ms });
    }

    fn learn(&mut self, fact: Fact) -> Notes {
        let view = self.view();
        self.control.learn(self.clock.monotonic_ms(), fact, view.as_ref())
    }

    fn view(&self) -> Option<View> {
        let processor = self.processor.as_ref()?;
        Some(View {
            applied: processor.applied(),
            is_caught_up: processor.is_caught_up(),
            is_settled: processor.is_settled(),
            commit_due_ms: processor.commit_due_ms(),
            tick_due_ms: tick_due_ms(processor),
            position_age_ms: match processor.log() {
                PartitionHandle::Owned(_) => None,
                PartitionHandle::Standby(standby) => standby.owner_position().ok().map(|known| known.age_ms),
            },
            log_now_ms: self.dependencies.log.now_ms().unwrap_or_else(|| self.clock.now_ms()),
        })
    }

    /// Does one thing that works on the partition.
    fn carry_out(&mut self, order: Order) -> Result<Fact, Error> {
        let Some(processor) = &mut self.processor else {
            return self.open();
        };
        match order {
            Order::Confirm => {
                processor.confirm()?;
                Ok(Fact::Confirmed)
            }
            Order::TakeOver => self.take_over(),
            Order::Fold => {
                let now_ms = self.clock.monotonic_ms();
                if processor.index().is_some() && now_ms >= self.index_cut_at_ms {
                    self.index_cut_at_ms = now_ms + INDEX_CUT_MS;
                    let (log, schemas) = (&*self.dependencies.log, &self.dependencies.services.schemas);
                    match self.oldest_change.first_kept(log, schemas, self.partition) {
                        Ok(first) => processor.cut_index(first),
                        Err(error) => {
                            tracing::debug!(partition = %self.partition, %error, "the index of changes is cut later");
                        }
                    }
                }
                let step = processor.step(Limit {
                    records: self.tuning.batch_records,
                    bytes: self.tuning.batch_bytes,
                })?;
                let events = processor.log().events();
                let (log_is_at_end, end) = match processor.log() {
                    PartitionHandle::Owned(_) => (events.is_at_end(), events.range()?.end),
                    PartitionHandle::Standby(standby) => {
                        let newest = standby.owner_position().map(|known| known.position);
                        let newest = newest.unwrap_or_else(|_| processor.committed());
                        (processor.is_caught_up(), newest.next)
                    }
                };
                Ok(Fact::Folded(Folded {
                    records: step.records,
                    saw_tick: step.saw_tick,
                    log_is_at_end,
                    reading: events.reading(),
                    end,
                }))
            }
            Order::Checkpoint => self.checkpoint(),
            order => unreachable!("{order:?} does not work on the partition"),
        }
    }

    fn open(&mut self) -> Result<Fact, Error> {
        let mut log: PartitionHandle = match self.role() {
            Role::Standby => self.dependencies.log.stand_by(self.partition)?.into(),
            Role::Owner | Role::Heir => {
                let _under_way = self.fencing.begin(&*self.clock);
                self.dependencies.log.take_up(self.partition)?.into()
            }
        };
        self.restore(&mut log)?;
        let store = self.store.as_deref().map(|store| store as &dyn StoreLocation);
        let clock = self.clock.clone();
        let processor = PartitionProcessor::open_at(log, store, &self.first_policy, clock, self.tuning)?;
        let processor = self.equipped(processor);
        let end = match processor.log() {
            PartitionHandle::Owned(log) => log.events().range()?.end,
            PartitionHandle::Standby(_) => processor.committed().next,
        };
        self.processor = Some(processor);
        Ok(Fact::Opened { end })
    }

    /// With what it has to write outputs with.
    fn equipped(&self, processor: PartitionProcessor) -> PartitionProcessor {
        let services = &self.dependencies.services;
        processor
            .with_schemas(services.schemas.clone())
            .with_headers(services.cloud_events.clone())
            .with_outcomes(self.outcomes.clone())
    }

    /// Becomes the owner with the state that the standby has.
    fn take_over(&mut self) -> Result<Fact, Error> {
        let fencing = self.fencing();
        // Also while it reads what the earlier owner has written.
        let _under_way = fencing.begin(&*self.clock);
        let log = self.dependencies.log.take_up(self.partition)?;
        // Nothing may fail between the processor's change and the core's.
        let end = log.events().range()?.end;
        let Some(standby) = self.processor.take() else {
            return self.open();
        };
        let processor = match standby.take_over(log) {
            Ok(processor) => processor,
            Err(failed) => {
                let NotTakenOver { standby, error } = *failed;
                self.processor = Some(standby);
                return Err(error);
            }
        };
        let (applied, committed) = (processor.applied(), processor.committed().next);
        self.processor = Some(self.equipped(processor));
        self.expect_checkpoint();
        tracing::info!(partition = %self.partition, %applied, %committed, "the standby has taken over");
        Ok(Fact::TakenOver { end })
    }

    fn panicked(&mut self, message: &str) -> Error {
        metrics::task_failed("partition");
        let processor = self.processor.as_ref();
        let offset = processor.map(|processor| processor.folding().unwrap_or(processor.applied()));
        Error::Panicked {
            partition: self.partition,
            offset,
            halted: self.control.panicked(offset),
            message: message.into(),
        }
    }

    fn fail(&mut self, error: Error, turn: &mut Turn) {
        let text = error.to_string();
        let failure = Failure::of(&error);
        if failure == Failure::Deposed {
            // As it should be where this process slept, or was thought to be gone.
            tracing::info!(partition = %self.partition, %error, "another node goes on with the partition");
        } else if self.failure.as_ref() != Some(&text) || !self.control.has_failed() {
            match self.role() {
                Role::Standby => {
                    tracing::warn!(partition = %self.partition, %error, "the standby cannot go on; trying again");
                }
                Role::Owner | Role::Heir => {
                    tracing::error!(partition = %self.partition, %error, "the partition cannot go on; trying again");
                }
            }
        }
        self.failure = Some(text);
        let has_checkpoints = self.dependencies.services.checkpointer.is_some();
        let recovery = self.control.fail(self.clock.monotonic_ms(), failure, has_checkpoints);
        let recovery = match recovery {
            Recovery::Reopen | Recovery::Rebuild | Recovery::SetStoreAside if self.give_up_checkpoint(&error) => {
                Recovery::Rebuild
            }
            other => other,
        };
        match recovery {
            Recovery::Keep => {}
            Recovery::Reopen => self.processor = None,
            Recovery::Reread => {
                self.processor = None;
                self.dependencies.log.read_otherwise(self.partition);
            }
            Recovery::Rebuild => {
                self.processor = None;
                self.remove_store(has_checkpoints);
            }
            Recovery::SetStoreAside => {
                self.processor = None;
                if let Some(directory) = &self.directory
                    && let Err(error) = set_aside(directory)
                {
                    tracing::error!(partition = %self.partition, %error, "the store cannot be set aside");
                }
            }
        }
        if failure == Failure::Deposed {
            self.result = Err(error);
        } else {
            turn.error = Some(error);
        }
    }

    /// Removes the store, if the state can be made again without it.
    fn remove_store(&self, has_checkpoints: bool) {
        let range = self.dependencies.log.range(Topic::Events, self.partition);
        let log_is_whole = range.is_ok_and(|range| range.start == Offset(0));
        if let Some(store) = &self.store
            && (log_is_whole || has_checkpoints)
            && let Err(error) = store.destroy()
        {
            tracing::error!(partition = %self.partition, %error, "the store cannot be rebuilt");
        }
    }

    fn note(&mut self, notes: Notes, turn: &mut Turn) {
        let Some(processor) = &self.processor else { return };
        let (partition, applied) = (self.partition, processor.applied());
        match notes.restore {
            Some(RestoreNote::Live) => {
                self.prove_checkpoint();
                match processor.log() {
                    PartitionHandle::Owned(_) => {
                        turn.became_live = true;
                        tracing::info!(%partition, %applied, "live");
                    }
                    PartitionHandle::Standby(_) => tracing::info!(%partition, %applied, "standing by"),
                }
            }
            Some(RestoreNote::UnderWay) => {
                let committed = processor.committed().next;
                tracing::info!(%partition, %applied, %committed, "folding what the log has");
            }
            None => {}
        }
        match notes.standstill {
            Some(StandstillNote::Began(now)) => {
                tracing::warn!(%partition, for_ms = now.for_ms, reason = now.reason(), "no progress");
            }
            Some(StandstillNote::Ended) => tracing::info!(%partition, "progress again"),
            None => {}
        }
    }

    fn close(&mut self) {
        let Some(processor) = &mut self.processor else { return };
        self.result = processor.commit_store();
        match &self.result {
            Ok(()) => drop(self.learn(Fact::Closed)),
            Err(error) => {
                let failure = Failure::of(error);
                self.control.close_failed(self.clock.monotonic_ms(), failure);
            }
        }
    }

    fn tick(&mut self) {
        let mut value = Vec::new();
        let schemas = &self.dependencies.services.schemas;
        schemas.encode_event(&Event::Tick, &mut value);
        metrics::tick();
        let record = NewRecord {
            key: None,
            value,
            headers: Vec::new(),
        };
        let log = &self.dependencies.log;
        log.append(vec![(self.partition, record)], Box::new(|_| {}));
    }

    fn lag(&self, applied: Offset, end: Offset) -> u64 {
        let reading = self
            .processor
            .as_ref()
            .map(|processor| processor.log().events().reading());
        reading.map_or(end.0, |reading| Progress::lag(applied, reading, end))
    }

    /// Takes a question or an order.
    pub fn take(&mut self, command: Command) {
        match command {
            Command::Wake => {}
            Command::Users { users, at_least, reply } => self.ask(at_least, Question::Users(users, reply)),
            Command::Policy { reply } => self.ask(None, Question::Policy(reply)),
            Command::Partition { reply } => self.ask(None, Question::Partition(reply)),
            Command::Past { of, reply } => self.ask(None, Question::Past(of, reply)),
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
                self.look_at_the_log();
                // The asker may have gone: here and below that is no error.
                let _ = reply.send(self.stats());
            }
            Command::Promote => drop(self.learn(Fact::Promoted)),
            Command::Stop => drop(self.learn(Fact::Stop)),
            Command::Drop => {
                self.processor = None;
                self.learn(Fact::Drop);
            }
        }
    }
}

/// When the partition, quiet as it is, needs a tick, by the time of the log.
fn tick_due_ms(processor: &PartitionProcessor) -> Option<u64> {
    let time = processor.state().time()?;
    let outage = processor.state().policy().outage;
    let is_watched = outage.silence_ms > 0 && processor.census().online_devices() > 0;
    let watch = is_watched.then(|| time.plus(outage.silence_ms / 2));
    let due = [processor.next_deadline(), watch].into_iter().flatten().min();
    due.map(|due| due.0)
}
