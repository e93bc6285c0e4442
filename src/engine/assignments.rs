//! The thread that starts and ends the processing of partitions. It gives the group's events and the ends of workers
//! to [`ownership`] as facts, and carries out the commands that result.

use super::fencing::Fencing;
use super::outcomes::Interest;
use super::ownership::{self, Command as Order, Fact, Life};
use super::rejected::Warnings;
use super::standbys;
use super::worker::{self, Command, Failure, PartitionStats, QueryError, Wake, Worker};
use super::{Error, Services, Tuning};
use crate::clock::Clock;
use crate::failpoint;
use crate::log::{Group, GroupEvent, Log};
use crate::metrics;
use crate::presence::Partition;
use crate::tasks;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a partition pauses after its worker ended by itself. By then the group knows of another owner, if there is
/// one.
const PAUSE_MS: u64 = 3_000;

/// The least time between two warnings that the group cannot be polled.
const WARNING_MS: u64 = 30_000;

/// How often it is decided which partitions this node stands by for.
const STANDBYS_MS: u64 = 500;

/// A message to the thread of the assignments: a fact from a worker, or a request from the engine.
pub enum WorkerReport {
    Fact(Partition, Fact),
    /// The worker with this number has ended, whether it was asked to or not.
    Ended(Partition, u64),
    /// End all workers, leave the group, and return the result of the last commits.
    Stop,
}

/// How a worker is reached.
#[derive(Clone)]
struct Asked {
    sender: Sender<Command>,
    wake: Arc<Wake>,
    /// Whether it can answer.
    is_ready: Arc<AtomicBool>,
    fencing: Arc<Fencing>,
    noted: NotedStats,
}

/// What a worker said last of how it is doing. It ends with the worker, so it is never of another node's time.
pub type NotedStats = Arc<Mutex<Option<KnownStats>>>;

/// How a partition was doing.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownStats {
    pub stats: PartitionStats,
    /// When, by the wall clock.
    pub at_ms: u64,
}

/// Sends commands to the worker of a partition, while there is one.
#[derive(Default)]
pub struct Assignment {
    asked: Mutex<Option<Asked>>,
    /// The worker that stands by, while another node has the partition.
    standby: Mutex<Option<Asked>>,
    /// How many publishers want to know the outcomes of records.
    outcomes: Arc<AtomicUsize>,
}

impl Assignment {
    fn locked(&self) -> MutexGuard<'_, Option<Asked>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn locked_standby(&self) -> MutexGuard<'_, Option<Asked>> {
        self.standby.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_taken(&self) -> bool {
        self.locked().is_some()
    }

    /// Where to note how the present worker is doing.
    pub fn noted(&self) -> Option<NotedStats> {
        self.locked().as_ref().map(|asked| asked.noted.clone())
    }

    fn fencing(&self) -> Option<Arc<Fencing>> {
        self.locked().as_ref().map(|asked| asked.fencing.clone())
    }

    /// Since when the worker fences the earlier owner off, by the wall clock.
    pub fn fencing_since_ms(&self) -> Option<u64> {
        Some(self.fencing()?.since()?.wall_ms)
    }

    /// For how long a question may wait; see [`Fencing::bounded`].
    pub fn bounded(&self, limit: Duration, clock: &dyn Clock) -> Option<Duration> {
        match self.fencing() {
            Some(fencing) => fencing.bounded(limit, clock),
            None => Some(limit),
        }
    }

    pub fn interest(&self) -> Interest {
        Interest::in_what(&self.outcomes)
    }

    /// Sends an order to the worker.
    fn send(&self, order: Command) {
        send(self.locked(), order);
    }

    /// Asks the worker, if there is one and not too many questions wait for it.
    pub fn ask(&self, question: Command) -> Result<(), QueryError> {
        ask(self.locked(), question)
    }

    /// Whether there is a standby that can answer.
    pub fn has_standby(&self) -> bool {
        let standby = self.locked_standby();
        standby
            .as_ref()
            .is_some_and(|asked| asked.is_ready.load(Ordering::Acquire))
    }

    /// Sends an order to the standby.
    fn send_to_standby(&self, order: Command) {
        send(self.locked_standby(), order);
    }

    /// Asks the standby, if there is one and not too many questions wait for it.
    pub fn ask_standby(&self, question: Command) -> Result<(), QueryError> {
        ask(self.locked_standby(), question)
    }

    pub fn wake(&self) {
        for asked in [self.locked(), self.locked_standby()] {
            if let Some(asked) = &*asked {
                asked.wake.wake();
            }
        }
    }
}

fn send(asked: MutexGuard<'_, Option<Asked>>, order: Command) {
    let sender = asked.as_ref().map(|asked| asked.sender.clone());
    drop(asked);
    // A worker that has ended needs no order.
    let _ = sender.map(|sender| sender.send(order));
}

fn ask(asked: MutexGuard<'_, Option<Asked>>, question: Command) -> Result<(), QueryError> {
    let wake = asked.as_ref().map(|asked| asked.wake.clone());
    drop(asked);
    wake.ok_or(QueryError::Elsewhere)?.ask(question)
}

/// What a worker needs besides its partition.
#[derive(Clone)]
pub struct Dependencies {
    pub log: Arc<dyn Log>,
    /// The data directory.
    pub data: Option<PathBuf>,
    pub clock: Arc<dyn Clock>,
    pub tuning: Tuning,
    pub services: Services,
    /// Warnings about malformed records, shared by all partitions.
    pub warnings: Arc<Warnings>,
}

/// A running worker.
struct RunningWorker {
    /// Unlike that of any other worker before.
    number: u64,
    thread: JoinHandle<Result<(), Error>>,
    /// Whether it can answer.
    is_ready: Arc<AtomicBool>,
}

/// A worker that stands by.
struct StandbyWorker {
    worker: RunningWorker,
    /// Since when another node is to stand by instead, by the monotonic clock.
    unwanted_since_ms: Option<u64>,
    /// It was asked to end.
    is_ending: bool,
    /// The partition was assigned to this node meanwhile.
    starts_again: bool,
}

/// What the group has said to this process.
#[derive(Default)]
pub struct Membership {
    /// Whether the group has said which partitions are ours. False again after the group has reported partitions as
    /// lost.
    pub is_assigned: AtomicBool,
    /// Why the group cannot be heard at the moment.
    error: Mutex<Option<Arc<str>>>,
}

impl Membership {
    pub fn error(&self) -> Option<Arc<str>> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_error(&self, error: Option<Arc<str>>) {
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }
}

pub struct Assignments {
    dependencies: Dependencies,
    group: Box<dyn Group>,
    assignments: Arc<[Assignment]>,
    lives: Vec<Life>,
    workers: Vec<Option<RunningWorker>>,
    standbys: Vec<Option<StandbyWorker>>,
    /// How many workers were started.
    started: u64,
    /// When it is next decided which partitions this node stands by for, by the monotonic clock.
    next_standbys_ms: u64,
    reports: Receiver<WorkerReport>,
    reporter: Sender<WorkerReport>,
    /// When pauses end, by the monotonic clock.
    pauses: Vec<(u64, Partition)>,
    let_go: Vec<Partition>,
    membership: Arc<Membership>,
    /// Whether the group could not be heard the last time.
    is_unheard: bool,
    stopping: bool,
    /// When the next warning that the group cannot be polled may be given, by the monotonic clock.
    next_warning_ms: u64,
    /// The first error of the workers that ended while stopping.
    result: Result<(), Error>,
}

impl Assignments {
    pub fn new(
        dependencies: Dependencies,
        group: Box<dyn Group>,
        assignments: Arc<[Assignment]>,
        reporter: Sender<WorkerReport>,
        reports: Receiver<WorkerReport>,
    ) -> Assignments {
        Assignments {
            dependencies,
            group,
            lives: vec![Life::default(); assignments.len()],
            workers: assignments.iter().map(|_| None).collect(),
            standbys: assignments.iter().map(|_| None).collect(),
            started: 0,
            next_standbys_ms: 0,
            assignments,
            reports,
            reporter,
            pauses: Vec::new(),
            let_go: Vec::new(),
            membership: Arc::default(),
            is_unheard: false,
            stopping: false,
            next_warning_ms: 0,
            result: Ok(()),
        }
    }

    pub fn membership(&self) -> &Arc<Membership> {
        &self.membership
    }

    /// Runs until it is asked to stop and every worker has ended.
    pub fn run(mut self) -> Result<(), Error> {
        loop {
            failpoint::reach("assignments");
            self.hear_the_group();
            self.end_pauses();
            if !self.let_go.is_empty() {
                self.group.let_go(&std::mem::take(&mut self.let_go));
            }
            self.look_at_standbys();
            let has_ended = self.lives.iter().all(|life| *life == Life::Absent);
            if self.stopping && has_ended && self.standbys.iter().all(Option::is_none) {
                if let Some(standbys) = &self.dependencies.services.standbys {
                    standbys.nodes.leave();
                }
                self.group.leave();
                return self.result;
            }
            self.wait();
        }
    }

    fn hear_the_group(&mut self) {
        loop {
            match self.group.poll() {
                Ok(None) => {
                    if std::mem::take(&mut self.is_unheard) {
                        self.membership.set_error(None);
                    }
                    return;
                }
                Ok(Some(GroupEvent::Assigned(partitions))) => {
                    // A process that is leaving takes no more partitions.
                    let (fact, wanted) = (Fact::Assigned, !self.stopping);
                    partitions
                        .iter()
                        .filter(|_| wanted)
                        .for_each(|one| self.learn(*one, fact));
                    self.membership.is_assigned.store(true, Ordering::Release);
                }
                Ok(Some(GroupEvent::Revoked(partitions))) => {
                    partitions.iter().for_each(|one| self.learn(*one, Fact::Revoked))
                }
                Ok(Some(GroupEvent::Lost(partitions))) => {
                    partitions.iter().for_each(|one| self.learn(*one, Fact::Lost));
                    // Until the group reports again, it is not known which partitions are ours.
                    self.membership.is_assigned.store(false, Ordering::Release);
                }
                Err(error) => {
                    self.is_unheard = true;
                    self.membership.set_error(Some(error.to_string().into()));
                    let now_ms = self.dependencies.clock.monotonic_ms();
                    if now_ms >= self.next_warning_ms {
                        self.next_warning_ms = now_ms + WARNING_MS;
                        tracing::warn!(%error, "polling the consumer group failed, retrying");
                    }
                    return;
                }
            }
        }
    }

    fn end_pauses(&mut self) {
        let now_ms = self.dependencies.clock.monotonic_ms();
        let (over, later) = std::mem::take(&mut self.pauses)
            .into_iter()
            .partition(|(until_ms, _)| *until_ms <= now_ms);
        self.pauses = later;
        let over: Vec<(u64, Partition)> = over;
        over.into_iter()
            .for_each(|(_, partition)| self.learn(partition, Fact::PauseOver));
    }

    fn wait(&mut self) {
        let now_ms = self.dependencies.clock.monotonic_ms();
        let pause = self
            .pauses
            .iter()
            .map(|(until_ms, _)| until_ms.saturating_sub(now_ms))
            .min();
        let standbys = self.dependencies.services.standbys.as_ref().map(|_| STANDBYS_MS);
        let waits_ms = [pause, standbys, self.group.poll_every_ms()];
        let wait_ms = waits_ms.into_iter().flatten().min();
        let first = match wait_ms {
            Some(wait_ms) => self.reports.recv_timeout(Duration::from_millis(wait_ms)),
            None => self.reports.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let reports: Vec<WorkerReport> = first.into_iter().chain(self.reports.try_iter()).collect();
        for report in reports {
            match report {
                WorkerReport::Fact(partition, fact) => self.learn(partition, fact),
                WorkerReport::Ended(partition, number) => self.ended(partition, number),
                WorkerReport::Stop => {
                    self.stopping = true;
                    (0..self.standbys.len()).for_each(|at| self.end_standby(at));
                    for partition in (0..self.lives.len() as u32).map(Partition) {
                        // As if the group had revoked them: all partitions that are ours are released.
                        if self.lives[partition.0 as usize] != Life::Absent {
                            self.learn(partition, Fact::Revoked);
                        }
                    }
                }
            }
        }
    }

    fn learn(&mut self, partition: Partition, fact: Fact) {
        let at = partition.0 as usize;
        let Some(life) = self.lives.get(at).copied() else {
            tracing::error!(%partition, "the group assigned a partition that the log does not have");
            return;
        };
        let (then, orders) = ownership::next(life, fact);
        if then != life {
            tracing::debug!(%partition, ?fact, ?life, ?then, "ownership");
        }
        self.lives[at] = then;
        for order in orders {
            match order {
                Order::Start => self.start(partition),
                Order::Release => self.assignments[at].send(Command::Stop),
                Order::Drop => self.assignments[at].send(Command::Drop),
                Order::Acknowledge => self.let_go.push(partition),
                Order::Pause => {
                    let until_ms = self.dependencies.clock.monotonic_ms() + PAUSE_MS;
                    self.pauses.push((until_ms, partition));
                }
            }
        }
    }

    /// Starts a worker, or promotes the one that stands by.
    fn start(&mut self, partition: Partition) {
        let at = partition.0 as usize;
        match self.standbys[at].take() {
            // It has the store open.
            Some(standby) if standby.is_ending => {
                self.standbys[at] = Some(StandbyWorker {
                    starts_again: true,
                    ..standby
                });
            }
            Some(standby) => {
                // One that has just ended has sent its report, and the partition is tried again after that.
                self.assignments[at].send_to_standby(Command::Promote);
                let asked = self.assignments[at].locked_standby().clone();
                *self.assignments[at].locked() = asked;
                self.assignments[at].locked_standby().take();
                self.workers[at] = Some(standby.worker);
            }
            None => {
                if let Some((worker, asked)) = self.spawn(partition, false) {
                    self.workers[at] = Some(worker);
                    *self.assignments[at].locked() = Some(asked);
                }
            }
        }
    }

    fn spawn(&mut self, partition: Partition, stands_by: bool) -> Option<(RunningWorker, Asked)> {
        let (sender, commands) = channel();
        let outcomes = self.assignments[partition.0 as usize].outcomes.clone();
        let wake = Arc::new(Wake::new(sender.clone()));
        let mut worker = Worker::new(partition, self.dependencies.clone(), outcomes);
        if stands_by {
            worker = worker.standing_by();
        }
        let (woken, reporter) = (wake.clone(), self.reporter.clone());
        let thread = std::thread::Builder::new().name(format!("partition-{partition}"));
        self.started += 1;
        let number = self.started;
        let ending = ReportsEnd {
            partition,
            number,
            reporter: self.reporter.clone(),
        };
        let is_ready = Arc::new(AtomicBool::new(false));
        let (ready, fencing) = (is_ready.clone(), worker.fencing());
        let started = thread.spawn(move || {
            let _ending = ending;
            worker::run(worker, &commands, &woken, &ready, &reporter)
        });
        match started {
            Ok(thread) => {
                let asked = Asked {
                    sender,
                    wake,
                    is_ready: is_ready.clone(),
                    fencing,
                    noted: NotedStats::default(),
                };
                let worker = RunningWorker {
                    number,
                    thread,
                    is_ready,
                };
                Some((worker, asked))
            }
            // The closure was dropped and its `ReportsEnd` with it, which has reported the end.
            Err(error) => {
                tracing::error!(%partition, %error, "a thread cannot be started");
                None
            }
        }
    }

    fn ended(&mut self, partition: Partition, number: u64) {
        let Some(standby) = self.standbys.get_mut(partition.0 as usize) else {
            return;
        };
        match standby.take_if(|standby| standby.worker.number == number) {
            Some(standby) => self.standby_ended(partition, standby),
            None => {
                self.join(partition.0 as usize);
                self.learn(partition, Fact::Ended);
            }
        }
    }

    fn standby_ended(&mut self, partition: Partition, standby: StandbyWorker) {
        self.assignments[partition.0 as usize].locked_standby().take();
        match standby.worker.thread.join() {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%partition, %error, "the standby has ended"),
            Err(panic) => {
                metrics::task_failed("partition");
                let reason = tasks::message(&*panic);
                tracing::error!(%partition, reason, "the standby panicked; it starts over");
            }
        }
        if standby.starts_again {
            // Its start was ordered while the standby was ending.
            match self.lives[partition.0 as usize] {
                Life::Restoring | Life::Live => self.start(partition),
                Life::Leaving { .. } => self.learn(partition, Fact::Ended),
                Life::Absent | Life::Paused => {}
            }
        }
    }

    /// Starts the standbys that this node is to have, ends those that it is not to have any more, and says which are
    /// ready.
    fn look_at_standbys(&mut self) {
        let Some(standbys) = self.dependencies.services.standbys.clone() else {
            return;
        };
        let now_ms = self.dependencies.clock.monotonic_ms();
        if self.stopping || now_ms < self.next_standbys_ms {
            return;
        }
        self.next_standbys_ms = now_ms + STANDBYS_MS;
        let owners = self.dependencies.services.owners.clone();
        let (this_node, nodes) = (standbys.nodes.this_node(), standbys.nodes.nodes());
        let mut ready = Vec::new();
        for at in 0..self.standbys.len() {
            let partition = Partition(at as u32);
            let owner = owners.as_ref().and_then(|owners| owners.url_of(partition));
            let is_chosen = self.lives[at] == Life::Absent
                && owner
                    .as_ref()
                    .is_some_and(|owner| standbys::is_chosen(partition, owner, this_node, &nodes, standbys.count));
            match &mut self.standbys[at] {
                None if is_chosen => self.start_standby(partition),
                None => {}
                Some(standby) if is_chosen => standby.unwanted_since_ms = None,
                Some(standby) => {
                    let since_ms = *standby.unwanted_since_ms.get_or_insert(now_ms);
                    let unwanted_ms = now_ms.saturating_sub(since_ms);
                    let ready = owners.as_ref().map(|owners| owners.standbys_of(partition));
                    let others = ready.into_iter().flatten();
                    let others = others.filter(|url| url != this_node && Some(url) != owner.as_ref());
                    if standbys::may_end(unwanted_ms, others.count(), standbys.count) {
                        self.end_standby(at);
                    }
                }
            }
            // One that is taking over answers too, and is not in the topic of owners yet.
            let taking_over = self.workers[at].as_ref().filter(|_| self.lives[at] == Life::Restoring);
            let standby = self.standbys[at].as_ref().filter(|standby| !standby.is_ending);
            let answers = standby.map(|standby| &standby.worker).or(taking_over);
            if answers.is_some_and(|worker| worker.is_ready.load(Ordering::Acquire)) {
                ready.push(partition);
            }
        }
        standbys.nodes.announce(ready);
    }

    fn start_standby(&mut self, partition: Partition) {
        let at = partition.0 as usize;
        if let Some((worker, asked)) = self.spawn(partition, true) {
            *self.assignments[at].locked_standby() = Some(asked);
            self.standbys[at] = Some(StandbyWorker {
                worker,
                unwanted_since_ms: None,
                is_ending: false,
                starts_again: false,
            });
        }
    }

    fn end_standby(&mut self, at: usize) {
        if let Some(standby) = &mut self.standbys[at]
            && !std::mem::replace(&mut standby.is_ending, true)
        {
            self.assignments[at].send_to_standby(Command::Stop);
        }
    }

    fn join(&mut self, at: usize) {
        self.assignments[at].locked().take();
        let ended = self.workers[at].take().map(|worker| worker.thread.join());
        match ended {
            // What another owner has is no longer ours to finish. That was logged when it happened.
            Some(Ok(Err(error))) if Failure::of(&error) == Failure::Deposed => {}
            Some(Ok(Err(error))) if self.stopping => {
                self.result = std::mem::replace(&mut self.result, Ok(())).and(Err(error));
            }
            Some(Ok(Err(error))) => tracing::warn!(partition = at, %error, "the worker has ended"),
            Some(Err(panic)) => {
                metrics::task_failed("partition");
                let reason = tasks::message(&*panic);
                tracing::error!(partition = at, reason, "the worker panicked, restarting its partition");
            }
            None | Some(Ok(Ok(()))) => {}
        }
    }
}

/// Reports that a worker has ended, even by a panic.
struct ReportsEnd {
    partition: Partition,
    number: u64,
    reporter: Sender<WorkerReport>,
}

impl Drop for ReportsEnd {
    fn drop(&mut self) {
        // This must happen before the partition can be started again.
        metrics::partition_gone(self.partition.0);
        metrics::standby_gone(self.partition.0);
        let _ = self.reporter.send(WorkerReport::Ended(self.partition, self.number));
    }
}
