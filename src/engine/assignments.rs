//! The thread that starts and ends the processing of partitions. It gives the group's events and the ends of workers
//! to [`ownership`] as facts, and carries out the commands that result.

use super::outcomes::Interest;
use super::ownership::{self, Command as Order, Fact, Life};
use super::rejected::Warnings;
use super::worker::{self, Command, Wake, Worker};
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

/// A message to the thread of the assignments: a fact from a worker, or a request from the engine.
pub enum WorkerReport {
    Fact(Partition, Fact),
    /// End all workers, leave the group, and return the result of the last commits.
    Stop,
}

/// Sends commands to the worker of a partition, while there is one.
#[derive(Default)]
pub struct Assignment {
    asked: Mutex<Option<(Sender<Command>, Arc<Wake>)>>,
    /// How many publishers want to know the outcomes of records.
    outcomes: Arc<AtomicUsize>,
}

impl Assignment {
    fn locked(&self) -> MutexGuard<'_, Option<(Sender<Command>, Arc<Wake>)>> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn is_taken(&self) -> bool {
        self.locked().is_some()
    }

    pub fn interest(&self) -> Interest {
        Interest::in_what(&self.outcomes)
    }

    /// Sends a command to the worker. Returns whether there was one.
    pub fn send(&self, command: Command) -> bool {
        let sender = self.locked().as_ref().map(|(sender, _)| sender.clone());
        sender.is_some_and(|sender| sender.send(command).is_ok())
    }

    pub fn wake(&self) {
        if let Some((_, wake)) = &*self.locked() {
            wake.wake();
        }
    }
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

pub struct Assignments {
    dependencies: Dependencies,
    group: Box<dyn Group>,
    assignments: Arc<[Assignment]>,
    lives: Vec<Life>,
    threads: Vec<Option<JoinHandle<Result<(), Error>>>>,
    reports: Receiver<WorkerReport>,
    reporter: Sender<WorkerReport>,
    /// When pauses end, by the monotonic clock.
    pauses: Vec<(u64, Partition)>,
    let_go: Vec<Partition>,
    /// Whether the group has said which partitions are ours. False again after the group has reported partitions as
    /// lost.
    assigned: Arc<AtomicBool>,
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
            threads: assignments.iter().map(|_| None).collect(),
            assignments,
            reports,
            reporter,
            pauses: Vec::new(),
            let_go: Vec::new(),
            assigned: Arc::default(),
            stopping: false,
            next_warning_ms: 0,
            result: Ok(()),
        }
    }

    pub fn assigned(&self) -> &Arc<AtomicBool> {
        &self.assigned
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
            if self.stopping && self.lives.iter().all(|life| *life == Life::Absent) {
                self.group.leave();
                return self.result;
            }
            self.wait();
        }
    }

    fn hear_the_group(&mut self) {
        loop {
            match self.group.poll() {
                Ok(None) => return,
                Ok(Some(GroupEvent::Assigned(partitions))) => {
                    // A process that is leaving takes no more partitions.
                    let (fact, wanted) = (Fact::Assigned, !self.stopping);
                    partitions
                        .iter()
                        .filter(|_| wanted)
                        .for_each(|one| self.learn(*one, fact));
                    self.assigned.store(true, Ordering::Release);
                }
                Ok(Some(GroupEvent::Revoked(partitions))) => {
                    partitions.iter().for_each(|one| self.learn(*one, Fact::Revoked))
                }
                Ok(Some(GroupEvent::Lost(partitions))) => {
                    partitions.iter().for_each(|one| self.learn(*one, Fact::Lost));
                    // Until the group reports again, it is not known which partitions are ours.
                    self.assigned.store(false, Ordering::Release);
                }
                Err(error) => {
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
        let wait_ms = [pause, self.group.poll_every_ms()].into_iter().flatten().min();
        let first = match wait_ms {
            Some(wait_ms) => self.reports.recv_timeout(Duration::from_millis(wait_ms)),
            None => self.reports.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let reports: Vec<WorkerReport> = first.into_iter().chain(self.reports.try_iter()).collect();
        for report in reports {
            match report {
                WorkerReport::Fact(partition, fact) => self.learn(partition, fact),
                WorkerReport::Stop => {
                    self.stopping = true;
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
        if fact == Fact::Ended {
            self.join(at);
        }
        let (then, orders) = ownership::next(life, fact);
        if then != life {
            tracing::debug!(%partition, ?fact, ?life, ?then, "ownership");
        }
        self.lives[at] = then;
        for order in orders {
            match order {
                Order::Start => self.start(partition),
                Order::Release => drop(self.assignments[at].send(Command::Stop)),
                Order::Drop => drop(self.assignments[at].send(Command::Drop)),
                Order::Acknowledge => self.let_go.push(partition),
                Order::Pause => {
                    let until_ms = self.dependencies.clock.monotonic_ms() + PAUSE_MS;
                    self.pauses.push((until_ms, partition));
                }
            }
        }
    }

    fn start(&mut self, partition: Partition) {
        let (sender, commands) = channel();
        let wanted = self.assignments[partition.0 as usize].outcomes.clone();
        let wake = Arc::new(Wake::new(sender.clone()));
        let worker = Worker::new(partition, self.dependencies.clone(), wanted);
        let (woken, reporter) = (wake.clone(), self.reporter.clone());
        let thread = std::thread::Builder::new().name(format!("partition-{partition}"));
        let ending = ReportsEnd {
            partition,
            reporter: self.reporter.clone(),
        };
        let started = thread.spawn(move || {
            let _ending = ending;
            worker::run(worker, &commands, &woken, &reporter)
        });
        match started {
            Ok(thread) => {
                self.threads[partition.0 as usize] = Some(thread);
                *self.assignments[partition.0 as usize].locked() = Some((sender, wake));
            }
            // The closure was dropped and its `ReportsEnd` with it, which has reported the end.
            Err(error) => tracing::error!(%partition, %error, "a thread cannot be started"),
        }
    }

    fn join(&mut self, at: usize) {
        self.assignments[at].locked().take();
        let ended = self.threads[at].take().map(JoinHandle::join);
        match ended {
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
    reporter: Sender<WorkerReport>,
}

impl Drop for ReportsEnd {
    fn drop(&mut self) {
        // This must happen before the partition can be started again.
        metrics::partition_gone(self.partition.0);
        let _ = self.reporter.send(WorkerReport::Fact(self.partition, Fact::Ended));
    }
}
