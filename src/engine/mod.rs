//! The engine: log, schema, core and store composed, a worker a partition.
//!
//! [`partition`] is the walk of a batch, without threads; [`worker`] the thread that drives it, with everything that
//! can wake it in one closed enum; [`ownership`] the table that says what a change of owner asks for, [`assignments`] the thread
//! that does it; this file starts them and asks the workers ([`Engine`]).

#[macro_use]
pub mod planted;

pub(crate) mod assignments;
pub mod census;
mod checkpoints;
mod current;
mod headers;
mod index;
mod locations;
mod outbox;
mod outcomes;
pub mod ownership;
pub mod partition;
pub mod past;
mod placement;
mod progress;
mod reconcile;
pub mod rejected;
pub(crate) mod worker;

pub use checkpoints::{Checkpointer, LogBounds, retention_warning};
pub use outbox::extend_chain;
pub use outcomes::{Interest, Outcome, Outcomes};
pub use placement::{Placed, Unplaced};
pub use worker::{Answer, PartitionStats, QueryError};

use crate::checkpoint;
use crate::clock::Clock;
use crate::log::{self, Group, Log, NewRecord, OutputTopic, Owners, Position, SingleNode, Topic};
use crate::metrics;
use crate::presence::event::Event;
use crate::presence::policy::Policy;
use crate::presence::state::HashSeed;
use crate::presence::{Epoch, LogTime, Offset, Partition, Revision};
use crate::registry::{self, Schemas};
use crate::store;
use crate::tasks::{self, End};
use assignments::{Assignment, Assignments, Dependencies, WorkerReport};
use past::Past;
use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use tokio::sync::oneshot;
use worker::Command;

/// When things are done that cost something. Times are milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuning {
    /// How long the position may stay uncommitted when there are no outputs.
    pub log_commit_ms: u64,
    /// How far apart commits of outputs begin at least; 0: they are committed after every batch.
    pub output_commit_ms: u64,
    /// Outputs are committed inside of a record when so much of them has gathered.
    pub commit_bytes: usize,
    /// The store is committed after so many records: about what can be folded again in two seconds.
    pub store_commit_records: u64,
    /// Or when so many users have changed, since they are written in one batch. Heartbeats do not count: their times
    /// are packed by blocks of users, and writing a block costs the same for one of them as for all.
    pub store_commit_users: usize,
    /// Or after so long.
    pub store_commit_ms: u64,
    /// How many users are fetched from the store at a time.
    pub fetch_users: usize,
    /// How many users without a device online stay in memory.
    pub cached_users: usize,
    /// How many changes the index of changes has at most, in each partition; 0: there is no index.
    pub index_changes: u64,
    /// Of one batch.
    pub batch_records: usize,
    pub batch_bytes: usize,
    /// A record whose time is so far ahead of the wall clock is not folded, where the log's time is not this machine's:
    /// it would hold time still until then. None: any is.
    pub ahead_ms: Option<u64>,
    /// One record that is folded all the same.
    pub accepted: Option<(Partition, Offset)>,
    /// The newest revision of rules and encodings that is known.
    pub revision: Revision,
    /// Where the log has outputs and no position that goes with them, they are compared with what the fold gives from the
    /// beginning, and taken on; else that is refused.
    pub adopt_tail: bool,
    /// Of the tables in memory that are keyed by what strangers write. A process takes one at random; it reaches no output.
    pub hash_seed: HashSeed,
}

impl Default for Tuning {
    fn default() -> Tuning {
        Tuning {
            log_commit_ms: 1_000,
            output_commit_ms: 0,
            commit_bytes: 8 << 20,
            store_commit_records: 1_000_000,
            store_commit_users: 100_000,
            store_commit_ms: 30_000,
            fetch_users: 10_000,
            cached_users: 50_000,
            index_changes: 100_000_000,
            batch_records: 10_000,
            batch_bytes: 2 << 20,
            ahead_ms: None,
            accepted: None,
            revision: Revision::NEWEST,
            adopt_tail: false,
            hash_seed: HashSeed::default(),
        }
    }
}

/// How long a question waits for its answer.
const ANSWER: Duration = Duration::from_secs(6);
/// The same for what a lease is compared with, which must not wait for long.
const EPOCHS_ANSWER: Duration = Duration::from_secs(1);
/// The same for its stats, which it gives at once unless it waits for its log.
const STATS_ANSWER: Duration = Duration::from_secs(2);

/// Why a partition cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Log(#[from] log::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A schema that is needed cannot be had at the moment.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// A checkpoint that is needed cannot be had at the moment.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// Folding the log again does not give what was given before.
    #[error(
        "partition {partition}: {}",
        divergence(*next, folded.was_read_alike(committed))
    )]
    Diverged {
        partition: Partition,
        next: Offset,
        folded: Box<Position>,
        committed: Box<Position>,
    },
    /// There are outputs, and nothing says which events they are of.
    #[error(
        "partition {partition}: the log has outputs up to that of the event at offset {last}, but the group has no position: \
         it was lost, or this group is another one than before. Nothing is sent, so that nothing is sent twice. Start once \
         with --adopt-tail: the events are folded again and compared with the outputs that are there, and only what is missing \
         behind them is sent. Or, to begin again on purpose, use other topics (--topic-prefix)"
    )]
    OutputsWithoutPosition { partition: Partition, last: Offset },
    /// The position says that changes are out which are not there.
    #[error(
        "partition {partition}: the committed position says that {committed} changes are in the log, but the last one there \
         before offset {next} is number {seq}: {} are missing. Nothing is sent until somebody decides. Start once with \
         --adopt-tail: the events are folded again and compared with the outputs that are there, and what is missing is sent",
        committed.abs_diff(*seq)
    )]
    OutputsMissing {
        partition: Partition,
        next: Offset,
        committed: u64,
        seq: u64,
    },
    /// An output that is there is not what the fold gives.
    #[error(
        "partition {partition}: output {partition}-{offset}-{index} in {topic} is not what the fold gives. There: {found}. \
         Folded: {folded}. Nothing is sent: somebody else has written to the topic, or the events are not those that were \
         folded before (rollcall audit verify says where they part)"
    )]
    OutputDiffers {
        partition: Partition,
        topic: OutputTopic,
        offset: Offset,
        index: u64,
        found: Box<str>,
        folded: Box<str>,
    },
    /// A record in an output topic that no engine has written.
    #[error(
        "partition {partition}: the record at offset {at} of {topic} is no output of an engine: {why}. Nothing is sent: only \
         engines may write to that topic"
    )]
    ForeignOutput {
        partition: Partition,
        topic: OutputTopic,
        at: Offset,
        why: Box<str>,
    },
    /// What is there could not be read while it was compared.
    #[error("partition {partition}: the outputs that are there cannot be read, to compare them with the fold: {cause}")]
    TailUnreadable { partition: Partition, cause: log::Error },
    /// Somebody else commits for this partition.
    #[error("partition {partition}: its position was moved by somebody else")]
    Deposed { partition: Partition },
    #[error(
        "the store of partition {partition} is not of this log: it has applied everything before {applied}, but the \
         log has committed only up to {committed}"
    )]
    ForeignStore {
        partition: Partition,
        applied: Offset,
        committed: Offset,
    },
    #[error("a value in the store cannot be read")]
    Unreadable,
    /// A bug of ours.
    #[error(
        "partition {partition}: {} panicked: {message}. {}",
        offset.map_or("opening it".to_owned(), |offset| format!("folding at offset {offset}")),
        if *halted {
            "It panicked there before, so the partition halts; other partitions go on. Report it with the record at that \
             offset (rollcall log events); a version that folds the record goes on from there"
        } else {
            "It is tried once more, from the store"
        }
    )]
    Panicked {
        partition: Partition,
        offset: Option<Offset>,
        halted: bool,
        message: Box<str>,
    },
    /// A broker's clock is wrong: folding the record would hold time still until the others have caught up.
    #[error(
        "partition {partition}: the record at offset {offset} has the time {ts}, {} s ahead of this machine's clock; \
         nothing is folded until the clock is within {} s of it. If the time is right after all, or is to be taken as \
         it is, start with --accept-time {partition}:{offset}",
        ahead_ms / 1_000,
        bound_ms / 1_000
    )]
    Ahead {
        partition: Partition,
        offset: Offset,
        ts: u64,
        ahead_ms: u64,
        bound_ms: u64,
    },
    /// The partition was raised to a revision of a later version of this program.
    #[error(
        "partition {partition}: {at} revision {revision}, but this version knows revisions up to {newest}. Nothing from \
         there on is folded or answered: start a version that knows it"
    )]
    UnknownRevision {
        partition: Partition,
        at: RevisionAt,
        revision: Revision,
        newest: Revision,
    },
    /// Retention has overtaken the state: what would have to be folded next is gone.
    #[error(
        "partition {partition}: the state ends before offset {wanted}, but the oldest event kept is {start}, so \
         {} events are gone that were never folded. Put back a copy or a checkpoint of the partition's store that \
         reaches offset {start} at least, or start again with other topics (--topic-prefix) or another data directory. \
         Other partitions go on",
        start.0 - wanted.0
    )]
    Behind {
        partition: Partition,
        wanted: Offset,
        start: Offset,
    },
    #[error(
        "the store cannot be used and the log cannot rebuild it, since the oldest event kept is {start}: {cause}. \
         Restore the store's directory from a backup, or give up this state by moving the data directory away"
    )]
    Unrecoverable { start: Offset, cause: Box<Error> },
}

/// Where a revision was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RevisionAt {
    /// In a record of the events.
    Record(Offset),
    /// In the position that was committed with the outputs.
    Position(Offset),
    Store,
}

impl fmt::Display for RevisionAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RevisionAt::Record(offset) => write!(f, "the record at offset {offset} raises the partition to"),
            RevisionAt::Position(next) => write!(f, "its outputs are committed up to offset {next} with"),
            RevisionAt::Store => f.write_str("its store has"),
        }
    }
}

/// What went otherwise than before: reading, folding, or it is not known.
fn divergence(next: Offset, was_read_alike: Option<bool>) -> String {
    let outputs = format!("folding the log again up to offset {next} gives other outputs than were committed");
    let parts = "time, seq, chain or revision differ";
    match was_read_alike {
        Some(false) => format!(
            "reading the log again up to offset {next} gives other events than were read when its outputs were committed: \
             the log was altered, or a broker does not give the same to everybody"
        ),
        Some(true) => format!("{outputs}, from the same events ({parts})"),
        None => format!("{outputs} ({parts})"),
    }
}

impl Error {
    /// Whether other events may have been read than before.
    fn may_be_of_reading(&self) -> bool {
        match self {
            Error::Diverged { folded, committed, .. } => folded.was_read_alike(committed) != Some(true),
            _ => false,
        }
    }

    /// Whether folding the log again from its start may repair it.
    fn is_the_stores(&self) -> bool {
        match self {
            // In use by another process, or a disk that fails: that says nothing about what the store holds.
            Error::Store(store::Error::Open { .. } | store::Error::Failed { .. }) => false,
            // What a later version wrote is not for this one to throw away.
            Error::Store(store::Error::LaterLayout { .. }) => false,
            Error::Store(store::Error::Damaged { .. } | store::Error::Layout { .. })
            | Error::ForeignStore { .. }
            | Error::Unreadable
            | Error::OutputDiffers { .. }
            | Error::Diverged { .. } => true,
            Error::Log(_)
            | Error::OutputsWithoutPosition { .. }
            | Error::OutputsMissing { .. }
            | Error::ForeignOutput { .. }
            | Error::TailUnreadable { .. }
            | Error::Registry(_)
            | Error::Checkpoint(_)
            | Error::Deposed { .. }
            | Error::Unrecoverable { .. }
            | Error::Behind { .. }
            | Error::Ahead { .. }
            | Error::Panicked { .. }
            | Error::UnknownRevision { .. } => false,
        }
    }
}

/// A gateway, as a partition knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownGateway {
    pub name: String,
    /// The greatest known.
    pub epoch: Epoch,
    /// Whether that has ended.
    pub ended: bool,
    /// Until when its active lease holds, if it has one.
    pub lease_until: Option<LogTime>,
}

/// What is neither log nor disk: the registry's schemas, and checkpoints. None of either by default.
#[derive(Clone, Default)]
pub struct Services {
    pub schemas: Schemas,
    pub checkpointer: Option<Arc<Checkpointer>>,
    /// Output records get CloudEvents attributes as headers too, with a source that begins with this.
    pub cloud_events: Option<Arc<str>>,
    /// Who else works on the log, if anybody does.
    pub owners: Option<Arc<dyn Owners>>,
}

/// A running engine. Its methods may be called from any task or thread.
pub struct Engine {
    log: Arc<dyn Log>,
    schemas: Schemas,
    /// The newest that is known.
    revision: Revision,
    owners: Option<Arc<dyn Owners>>,
    clock: Arc<dyn Clock>,
    hash_seed: HashSeed,
    assignments: Arc<[Assignment]>,
    assigned: Arc<AtomicBool>,
    reporter: mpsc::Sender<WorkerReport>,
    /// What the last commits came to, once the thread has ended. None once that was asked for.
    result: Mutex<Option<mpsc::Receiver<Result<(), Error>>>>,
}

impl Engine {
    /// Works on every partition of a log that nobody else works on, with stores below a directory. Gives the engine at
    /// once; a partition says by its stats when it has caught up and is live.
    pub fn start(
        log: Arc<dyn Log>,
        data: Option<&Path>,
        clock: Arc<dyn Clock>,
        tuning: Tuning,
    ) -> Result<Engine, Error> {
        let alone = SingleNode::new(log.partitions());
        Engine::join(log, Box::new(alone), data, clock, tuning, Services::default())
    }

    /// Works on the partitions that a group gives to this process.
    pub fn join(
        log: Arc<dyn Log>,
        group: Box<dyn Group>,
        data: Option<&Path>,
        clock: Arc<dyn Clock>,
        tuning: Tuning,
        services: Services,
    ) -> Result<Engine, Error> {
        metrics::partitions_of_log(log.partitions());
        let schemas = services.schemas.clone();
        let owners = services.owners.clone();
        let assignments: Arc<[Assignment]> = (0..log.partitions()).map(|_| Assignment::default()).collect();
        let (reporter, reports) = mpsc::channel();
        let dependencies = Dependencies {
            log: log.clone(),
            data: data.map(Path::to_owned),
            clock: clock.clone(),
            tuning,
            services,
            warnings: Arc::default(),
        };
        let run = Assignments::new(dependencies, group, assignments.clone(), reporter.clone(), reports);
        let assigned = run.assigned().clone();
        let (ended, result) = mpsc::sync_channel(1);
        let thread = tasks::spawn("assignments", move || {
            // Nobody listens who does not stop it.
            let _ = ended.send(run.run());
            End::Asked
        });
        thread.map_err(|error| Error::Log(log::Error::Open(format!("a thread cannot be started: {error}").into())))?;
        let woken = assignments.clone();
        log.listen(Box::new(move |topic, partition| {
            if topic == Topic::Events
                && let Some(assignment) = woken.get(partition.0 as usize)
            {
                assignment.wake();
            }
        }));
        Ok(Engine {
            log,
            schemas,
            revision: tuning.revision,
            owners,
            clock,
            hash_seed: tuning.hash_seed,
            assignments,
            assigned,
            reporter,
            result: Mutex::new(Some(result)),
        })
    }

    pub fn log(&self) -> &Arc<dyn Log> {
        &self.log
    }

    /// Returns the newest revision that every node knows: this one, and all that have taken a partition up last.
    pub fn common_revision(&self) -> Revision {
        let others = self.owners.as_ref().and_then(|owners| owners.lowest_revision());
        others.map_or(self.revision, |lowest| lowest.min(self.revision))
    }

    /// Appends the record that raises a partition to a revision.
    pub async fn raise(&self, partition: Partition, to: Revision) -> Result<(), log::Error> {
        let mut value = Vec::new();
        self.schemas
            .encode_event(&Event::Revision { revision: to.0 }, &mut value);
        let record = NewRecord {
            key: None,
            value,
            headers: Vec::new(),
        };
        let (told, result) = oneshot::channel();
        let acknowledge = Box::new(move |result: Result<_, _>| {
            // Nobody waits any more: the record is there all the same.
            let _ = told.send(result);
        });
        self.log.append(vec![(partition, record)], acknowledge);
        result.await.unwrap_or(Err(log::Error::Closed)).map(|_| ())
    }

    /// The clock that it goes by.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// With which schemas events are written, and outputs were.
    pub fn schemas(&self) -> &Schemas {
        &self.schemas
    }

    /// Whether the group has said which partitions are this process's, also if there are no such partitions.
    pub fn has_assignment(&self) -> bool {
        self.assigned.load(Ordering::Acquire)
    }

    async fn ask<T>(
        &self,
        partition: Partition,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, QueryError> {
        self.ask_for(ANSWER, partition, command).await
    }

    async fn ask_for<T>(
        &self,
        limit: Duration,
        partition: Partition,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, QueryError> {
        let (reply, answer) = oneshot::channel();
        let assignment = self
            .assignments
            .get(partition.0 as usize)
            .ok_or(QueryError::Elsewhere)?;
        if !assignment.send(command(reply)) {
            return Err(QueryError::Elsewhere);
        }
        // A worker may be waiting for its log. A worker that ends in between has not answered wrongly.
        let answer = tokio::time::timeout(limit, answer).await;
        answer.ok().and_then(Result::ok).ok_or(QueryError::Unavailable)
    }

    /// Users of one partition, as JSON with `as_of`; waits until an offset is folded, if one is given.
    pub async fn users(
        &self,
        partition: Partition,
        users: Vec<String>,
        at_least: Option<Offset>,
    ) -> Result<Vec<Option<Vec<u8>>>, QueryError> {
        let began = self.clock.monotonic();
        let ask = |reply| Command::Users { users, at_least, reply };
        let answer = self.ask(partition, ask).await?;
        // Who waits for an offset has chosen to.
        if at_least.is_none() {
            metrics::query(self.clock.monotonic().saturating_sub(began).as_secs_f64());
        }
        answer
    }

    /// The policy in force, completed, and the record that put it in force.
    pub async fn policy(&self, partition: Partition) -> Result<Answer<(Policy, Option<Offset>)>, QueryError> {
        self.ask(partition, |reply| Command::Policy { reply }).await?
    }

    /// The gateways that a partition knows, by name.
    pub async fn gateways(&self, partition: Partition) -> Result<Vec<KnownGateway>, QueryError> {
        self.ask(partition, |reply| Command::Partition { reply }).await?
    }

    /// The greatest epoch known of each gateway, in the order asked, as the first partition knows it that answers.
    /// Nothing where none of this process's can answer at the moment.
    pub async fn epochs(&self, gateways: Vec<String>) -> Vec<Option<Epoch>> {
        for partition in (0..self.log.partitions()).map(Partition) {
            let gateways = gateways.clone();
            let ask = |reply| Command::Epochs { gateways, reply };
            match self.ask_for(EPOCHS_ANSWER, partition, ask).await {
                Ok(Ok(epochs)) => return epochs,
                Err(QueryError::Elsewhere) | Ok(Err(QueryError::Elsewhere)) => {}
                Err(_) | Ok(Err(_)) => return Vec::new(),
            }
        }
        Vec::new()
    }

    /// Whether this process works on a partition.
    pub fn has(&self, partition: Partition) -> bool {
        let assignment = self.assignments.get(partition.0 as usize);
        assignment.is_some_and(Assignment::is_taken)
    }

    /// Has the outcomes of a partition's records kept from now on, for as long as what is returned lives.
    pub fn interest(&self, partition: Partition) -> Interest {
        match self.assignments.get(partition.0 as usize) {
            Some(assignment) => assignment.interest(),
            None => Interest::in_what(&Arc::default()),
        }
    }

    /// What became of records of a partition, once the last of them is folded and committed. An [`Engine::interest`]
    /// must have been there since before they were appended.
    pub async fn outcomes(&self, partition: Partition, offsets: Vec<Offset>) -> Result<Outcomes, QueryError> {
        self.ask(partition, |reply| Command::Outcomes { offsets, reply })
            .await?
    }

    /// A partition's past; with the newest changes of this user, if one is named.
    pub async fn past(&self, partition: Partition, user: Option<String>) -> Result<Past, QueryError> {
        self.ask(partition, |reply| Command::Past { user, reply }).await?
    }

    /// The seed of the tables in memory that are keyed by what strangers write.
    pub fn hash_seed(&self) -> HashSeed {
        self.hash_seed
    }

    /// The wall clock's milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Where a partition is. [`QueryError::Unavailable`] soon, if its worker waits for the log.
    pub async fn stats(&self, partition: Partition) -> Result<PartitionStats, QueryError> {
        let ask = |reply| Command::Stats { reply };
        self.ask_for(STATS_ANSWER, partition, ask).await
    }

    /// Finishes the batches at hand, commits everything, ends the workers and leaves the group. A caller that still holds the
    /// engine gets no more answers.
    pub fn stop(&self) -> Result<(), Error> {
        // One that has ended already needs no telling.
        let _ = self.reporter.send(WorkerReport::Stop);
        let result = self.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        match result.map(|result| result.recv()) {
            None => Ok(()),
            Some(Ok(ended)) => ended,
            // It was reported when it happened.
            Some(Err(_)) => Err(Error::Log(log::Error::Closed)),
        }
    }
}

/// The log time of a partition in milliseconds, for JSON.
pub(crate) fn millis(time: Option<LogTime>) -> Option<u64> {
    time.map(|time| time.0)
}
