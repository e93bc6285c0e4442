//! The engine: connects log, schemas, core and store, with one worker for each partition.
//!
//! [`partition`] processes one batch and uses no threads. [`worker`] is the thread that runs it; everything that can
//! wake a worker is a variant of one enum. [`ownership`] is the table that says what to do when a partition's owner
//! changes, and [`assignments`] is the thread that does it. This file starts them and sends queries to the workers
//! ([`Engine`]).

#[macro_use]
pub mod planted;

pub(crate) mod assignments;
pub mod census;
mod checkpoints;
pub mod current;
mod error;
mod fencing;
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
mod seek;
mod standbys;
mod traced;
mod traced_append;
mod users;
pub(crate) mod worker;

pub use assignments::KnownStats;
pub use checkpoints::{Checkpointer, LogBounds, origin, other_log_warning, retention_warning};
pub use error::{Error, RevisionAt};
pub use outbox::extend_chain;
pub use outcomes::{Interest, Outcome, Outcomes};
pub use placement::{Placed, Unplaced};
pub use standbys::Standbys;
pub use traced_append::TracedAppend;
pub use users::{FoldedUpTo, UserRow, UserRows, UsersReply};
pub use worker::{Answer, PartitionStats, QueryError};

use crate::clock::Clock;
use crate::log::{self, Group, Log, NewRecord, Owners, SingleNode};
use crate::metrics;
use crate::presence::event::Event;
use crate::presence::policy::Policy;
use crate::presence::state::HashSeed;
use crate::presence::{Epoch, LogTime, Offset, Partition, Revision};
use crate::registry::Schemas;
use crate::tasks::{self, End};
use crate::topics::Topic;
use assignments::{Assignment, Assignments, Dependencies, Membership, NotedStats, WorkerReport};
use past::{Past, PastOf};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use tokio::sync::oneshot;
use worker::Command;

/// When costly work is done, and how much of it at once. Times are in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tuning {
    /// How long the position may stay uncommitted when there are no outputs.
    pub log_commit_ms: u64,
    /// The least time between the beginnings of two commits of outputs; 0: outputs are committed after every batch.
    pub output_commit_ms: u64,
    /// Outputs are committed in the middle of a record when this many bytes of them have gathered.
    pub commit_bytes: usize,
    /// The store is committed after this many records: about as many as can be folded again in two seconds.
    pub store_commit_records: u64,
    /// The store is also committed when this many users have changed, because they are written in one batch.
    /// Heartbeats do not count: their times are packed in blocks of users, and writing a block costs the same for one
    /// user as for all.
    pub store_commit_users: usize,
    /// The store is also committed after this long.
    pub store_commit_ms: u64,
    /// How many users are fetched from the store at a time.
    pub fetch_users: usize,
    /// How many users without a device online stay in memory at most.
    pub cached_users: usize,
    /// The most changes that the index of changes holds in each partition; 0: there is no index.
    pub index_changes: u64,
    /// The most records and bytes in one batch.
    pub batch_records: usize,
    pub batch_bytes: usize,
    /// Where the log's times do not come from this machine's clock: a record whose time is further ahead of the wall
    /// clock than this is not folded, because log time would stand still until the other clocks have caught up.
    /// `None`: there is no limit.
    pub ahead_ms: Option<u64>,
    /// One record that is folded even if its time is too far ahead.
    pub accepted: Option<(Partition, Offset)>,
    /// The newest known revision of rules and encodings.
    pub revision: Revision,
    /// What to do when the log has outputs but no position that goes with them. True: compare them with a fold from
    /// the beginning, and continue after them. False: refuse to start.
    pub adopt_tail: bool,
    /// The seed of the in-memory tables whose keys come from outside. A process chooses it at random; no output
    /// depends on it.
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

/// How long a query waits for its answer.
const ANSWER: Duration = Duration::from_secs(6);
/// How long a query for epochs waits. A lease is compared with them and must not wait long.
const EPOCHS_ANSWER: Duration = Duration::from_secs(1);
/// How long a query for a worker's stats waits. A worker answers at once unless it is waiting for its log.
const STATS_ANSWER: Duration = Duration::from_secs(2);

/// A gateway, as a partition knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownGateway {
    pub name: String,
    /// The greatest known epoch.
    pub epoch: Epoch,
    /// Whether that epoch has ended.
    pub ended: bool,
    /// When its active lease expires, if it has one.
    pub lease_until: Option<LogTime>,
}

/// What the engine uses besides log and disk, such as the registry's schemas and checkpoints. By default all are
/// absent.
#[derive(Clone, Default)]
pub struct Services {
    pub schemas: Schemas,
    pub checkpointer: Option<Arc<Checkpointer>>,
    /// If set, output records also get CloudEvents attributes as headers; their source begins with this.
    pub cloud_events: Option<Arc<str>>,
    /// The owners of the log's partitions, if other processes may own some.
    pub owners: Option<Arc<dyn Owners>>,
    /// If set, this process stands by for partitions of others.
    pub standbys: Option<Standbys>,
}

/// A running engine. Its methods may be called from any task or thread.
pub struct Engine {
    log: Arc<dyn Log>,
    schemas: Schemas,
    /// The newest known revision.
    revision: Revision,
    owners: Option<Arc<dyn Owners>>,
    clock: Arc<dyn Clock>,
    hash_seed: HashSeed,
    assignments: Arc<[Assignment]>,
    membership: Arc<Membership>,
    reporter: mpsc::Sender<WorkerReport>,
    /// The result of the last commits, once the thread has ended. `None` after it was taken.
    result: Mutex<Option<mpsc::Receiver<Result<(), Error>>>>,
}

impl Engine {
    /// Starts an engine that owns every partition of a log that no other process uses, with stores below a directory.
    /// Returns at once; a partition's stats say when it has caught up and is live.
    pub fn start(
        log: Arc<dyn Log>,
        data: Option<&Path>,
        clock: Arc<dyn Clock>,
        tuning: Tuning,
    ) -> Result<Engine, Error> {
        let alone = SingleNode::new(log.partitions());
        Engine::join(log, Box::new(alone), data, clock, tuning, Services::default())
    }

    /// Starts an engine that processes the partitions that a group assigns to this process.
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
        let membership = run.membership().clone();
        let (ended, result) = mpsc::sync_channel(1);
        let thread = tasks::spawn("assignments", move || {
            // If the engine was never stopped, nobody receives this.
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
            membership,
            reporter,
            result: Mutex::new(Some(result)),
        })
    }

    pub fn log(&self) -> &Arc<dyn Log> {
        &self.log
    }

    /// Returns the names of the caches that fill with time, and how many bytes each has.
    pub fn cache_bytes(&self) -> [(&'static str, usize); 2] {
        [
            ("store", crate::store::cache_bytes()),
            ("newest_outputs", self.log.kept_bytes()),
        ]
    }

    /// Returns the newest revision that every node knows: this node, and the latest owner of each partition.
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
        let (sender, result) = oneshot::channel();
        let acknowledge = Box::new(move |result: Result<_, _>| {
            // If the send fails, the caller has stopped waiting; the record is in the log anyway.
            let _ = sender.send(result);
        });
        self.log.append(vec![(partition, record)], acknowledge);
        result.await.unwrap_or(Err(log::Error::Closed)).map(|_| ())
    }

    /// The clock that the engine uses.
    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// The schemas with which events are written and outputs were written.
    pub fn schemas(&self) -> &Schemas {
        &self.schemas
    }

    /// Returns why the group cannot be heard at the moment.
    pub fn group_error(&self) -> Option<Arc<str>> {
        self.membership.error()
    }

    /// Whether the group has said which partitions this process has; it may have none.
    pub fn has_assignment(&self) -> bool {
        self.membership.is_assigned.load(Ordering::Acquire)
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
        self.ask_by(limit, partition, Assignment::ask, command).await
    }

    /// Asks the worker that `ask` asks.
    async fn ask_by<T>(
        &self,
        limit: Duration,
        partition: Partition,
        ask: impl FnOnce(&Assignment, Command) -> Result<(), QueryError>,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Result<T, QueryError> {
        let (reply, answer) = oneshot::channel();
        let assignment = self
            .assignments
            .get(partition.0 as usize)
            .ok_or(QueryError::Elsewhere)?;
        let question = command(reply);
        // Who waits for an offset has chosen to wait.
        let limit = match question.waits_for_an_offset() {
            true => limit,
            false => assignment.bounded(limit, &*self.clock).ok_or(QueryError::Unavailable)?,
        };
        ask(assignment, question)?;
        // A worker may be waiting for its log, or may end before it answers. Both mean that no answer is available.
        let answer = tokio::time::timeout(limit, answer).await;
        answer.ok().and_then(Result::ok).ok_or(QueryError::Unavailable)
    }

    /// Returns what `each` makes of users of one partition. If an offset is given, waits until it is folded.
    pub async fn users<T: Send + 'static>(
        &self,
        partition: Partition,
        users: Vec<String>,
        at_least: Option<Offset>,
        each: impl FnMut(UserRow<'_>) -> T + Send + 'static,
    ) -> UserRows<T> {
        let began = self.clock.monotonic();
        let ask = |reply| Command::Users {
            users,
            at_least,
            reply: UsersReply::new(each, reply),
        };
        let answer = self.ask(partition, ask).await?;
        // A query that waits for an offset is not measured: the caller chose to wait.
        if at_least.is_none() {
            metrics::query(self.clock.monotonic().saturating_sub(began).as_secs_f64());
        }
        answer
    }

    /// Returns users of a partition for which this process stands by, as [`Engine::users`] does. Their `as_of` says so.
    pub async fn users_of_standby<T: Send + 'static>(
        &self,
        partition: Partition,
        users: Vec<String>,
        at_least: Option<Offset>,
        each: impl FnMut(UserRow<'_>) -> T + Send + 'static,
    ) -> UserRows<T> {
        let count = users.len();
        let question = |reply| Command::Users {
            users,
            at_least,
            reply: UsersReply::new(each, reply),
        };
        let ask = |assignment: &Assignment, question| match assignment.has_standby() {
            true => assignment.ask_standby(question),
            false => Err(QueryError::Elsewhere),
        };
        let answer = self.ask_by(ANSWER, partition, ask, question).await?;
        if answer.is_ok() {
            metrics::standby_answered(count);
        }
        answer
    }

    /// Returns the policy in force, completed, and the offset of the record that put it in force.
    pub async fn policy(&self, partition: Partition) -> Result<Answer<(Policy, Option<Offset>)>, QueryError> {
        self.ask(partition, |reply| Command::Policy { reply }).await?
    }

    /// Returns the gateways that a partition knows, by name.
    pub async fn gateways(&self, partition: Partition) -> Result<Vec<KnownGateway>, QueryError> {
        self.ask(partition, |reply| Command::Partition { reply }).await?
    }

    /// Returns the greatest known epoch of each gateway, in the order of `gateways`, from the first partition that
    /// answers. Returns an empty list if this process has no partition, or if the first one it has cannot answer at
    /// the moment.
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

    /// Whether this process has a worker for a partition.
    pub fn has(&self, partition: Partition) -> bool {
        let assignment = self.assignments.get(partition.0 as usize);
        assignment.is_some_and(Assignment::is_taken)
    }

    /// Whether this process has a standby of a partition that can answer.
    pub fn has_standby(&self, partition: Partition) -> bool {
        let assignment = self.assignments.get(partition.0 as usize);
        assignment.is_some_and(Assignment::has_standby)
    }

    /// Keeps the outcomes of a partition's records from now on, until the returned value is dropped.
    pub fn interest(&self, partition: Partition) -> Interest {
        match self.assignments.get(partition.0 as usize) {
            Some(assignment) => assignment.interest(),
            None => Interest::in_what(&Arc::default()),
        }
    }

    /// Returns the outcomes of records of a partition, once the last of them is folded and committed. The value of an
    /// [`Engine::interest`] must exist since before they were appended.
    pub async fn outcomes(&self, partition: Partition, offsets: Vec<Offset>) -> Result<Outcomes, QueryError> {
        self.ask(partition, |reply| Command::Outcomes { offsets, reply })
            .await?
    }

    /// Returns a partition's past, with the newest changes of the user who is asked about.
    pub async fn past(&self, partition: Partition, of: PastOf) -> Result<Past, QueryError> {
        self.ask(partition, |reply| Command::Past { of, reply }).await?
    }

    /// The seed of the in-memory tables whose keys come from outside.
    pub fn hash_seed(&self) -> HashSeed {
        self.hash_seed
    }

    /// The wall clock's milliseconds since 1970.
    pub fn now_ms(&self) -> u64 {
        self.clock.now_ms()
    }

    /// Returns a partition's stats. Returns [`QueryError::Unavailable`] soon if its worker is waiting for the log.
    pub async fn stats(&self, partition: Partition) -> Result<PartitionStats, QueryError> {
        let noted = self.noted(partition);
        let ask = |reply| Command::Stats { reply };
        let stats = self.ask_for(STATS_ANSWER, partition, ask).await?;
        if let Some(noted) = noted {
            let known = KnownStats {
                stats: stats.clone(),
                at_ms: self.now_ms(),
            };
            *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
        }
        Ok(stats)
    }

    /// Returns since when the worker that this process has for a partition waits for its log to fence the earlier owner off, by the
    /// wall clock; `None` if it does not.
    pub fn fencing_since_ms(&self, partition: Partition) -> Option<u64> {
        self.assignments.get(partition.0 as usize)?.fencing_since_ms()
    }

    /// Returns the last answer of [`Engine::stats`] by the worker that this process has for a partition now.
    pub fn known_stats(&self, partition: Partition) -> Option<KnownStats> {
        let noted = self.noted(partition)?;
        noted.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn noted(&self, partition: Partition) -> Option<NotedStats> {
        self.assignments.get(partition.0 as usize)?.noted()
    }

    /// Finishes the current batches, commits everything, ends the workers and leaves the group. A caller that still
    /// holds the engine gets no more answers.
    pub fn stop(&self) -> Result<(), Error> {
        // The send fails only if the thread has already ended.
        let _ = self.reporter.send(WorkerReport::Stop);
        let result = self.result.lock().unwrap_or_else(PoisonError::into_inner).take();
        match result.map(|result| result.recv()) {
            None => Ok(()),
            Some(Ok(ended)) => ended,
            // The thread ended without a result, which was reported when it happened.
            Some(Err(_)) => Err(Error::Log(log::Error::Closed)),
        }
    }
}

/// The log time of a partition in milliseconds, for JSON.
pub(crate) fn millis(time: Option<LogTime>) -> Option<u64> {
    time.map(|time| time.0)
}
