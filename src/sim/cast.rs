//! The owners of the partitions of a simulated world: machines with stores, and processes on them (`process`) that run
//! the engine's worker, stand still, die, and are deposed without knowing it. The group (`group`) decides which machine
//! gets which partition.

use super::broker::{Broker, ProcessLife, World};
use super::disk::{DiskImage, ProcessDisk, Rows};
use super::fault::Fault;
use super::group::{Group, Membership};
use super::process::{Process, ProcessLog};
use crate::clock::{Clock as _, ManualClock};
use crate::engine::assignments::Dependencies;
use crate::engine::ownership::{Command as Order, Fact};
use crate::engine::worker::{Command, Rest, Worker};
use crate::engine::{Error, Interest, RevisionAt, Services, Tuning};
use crate::log;
use crate::presence::policy::Policy;
use crate::presence::{Offset, Partition, Revision};
use crate::random::Random;
use crate::store::{StoreLocation, keys};
use crate::varint;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The number of machines that can own a partition.
pub const MACHINES: usize = 3;
/// The greatest number of copies of a store that are kept for a later restore.
const COPIES_MAX: usize = 6;

/// Where one machine keeps one partition's store.
pub enum Disk {
    Simulated(DiskImage),
    /// A directory with a RocksDB store.
    Directory(PathBuf),
}

pub struct Machine {
    disk: Disk,
    /// `None` while there is nothing to do, before the process has started, and during its turn.
    process: Option<Process>,
    /// Whether the store on this disk is that of another partition.
    foreign: bool,
    copies: Vec<Rows>,
    /// The newest revision that the program on it knows.
    knows: Revision,
}

/// The machines of a partition, and what they and the group know about each other.
pub struct PartitionNodes {
    machines: Vec<Machine>,
    parts: Vec<Membership>,
    group: Group,
    /// A store whose position the log still reaches back to.
    backup: Rows,
    needs_backup: bool,
    /// Whether an operator has accepted the outputs that exist without a position.
    adopts_tail: bool,
    /// Decides which version a process is of; none where all machines know all revisions that occur.
    versions: Option<Random>,
    /// Why a step or an opening last failed.
    pub failure: Option<String>,
    /// How often the partition has come to life since the faults ended.
    pub lives: usize,
}

impl PartitionNodes {
    pub fn group(&mut self) -> (&mut Group, &mut [Membership]) {
        (&mut self.group, &mut self.parts)
    }

    pub fn part(&mut self, machine: usize) -> &mut Membership {
        &mut self.parts[machine]
    }

    /// Returns the machines that have a worker.
    pub fn working(&self) -> Vec<usize> {
        let parts = self.parts.iter().enumerate();
        let working = parts.filter(|(_, part)| part.works);
        working.map(|(machine, _)| machine).collect()
    }

    /// Returns the live owner, if no other machine is a member any more and the owner has a process.
    pub fn live(&self) -> Option<usize> {
        let live = self.parts.iter().position(Membership::is_live)?;
        let others = self.parts.iter().enumerate().filter(|(machine, _)| *machine != live);
        let alone = others.map(|(_, part)| part).all(Membership::is_absent);
        (alone && self.machines[live].process.is_some()).then_some(live)
    }

    pub fn take_process(&mut self, machine: usize) -> Option<Process> {
        self.machines[machine].process.take()
    }

    pub fn put_process(&mut self, process: Process) {
        let machine = process.machine;
        self.machines[machine].process = Some(process);
    }

    /// Gives each machine one of two versions, of which only one knows the rehearsal of a revision.
    pub fn mix_versions(&mut self, mut random: Random) {
        for machine in &mut self.machines {
            machine.knows = *random.pick(&[Revision::FIRST, Revision::REHEARSAL]);
        }
        self.versions = Some(random);
    }

    /// Returns the machines whose program does not know the rehearsal of a revision.
    pub fn outdated(&self) -> Vec<usize> {
        let outdated = self.machines.iter().enumerate();
        let outdated = outdated.filter(|(_, machine)| machine.knows < Revision::REHEARSAL);
        outdated.map(|(machine, _)| machine).collect()
    }

    /// Installs the newest version on a machine, for its next process.
    pub fn upgrade(&mut self, machine: usize) {
        self.machines[machine].knows = Revision::REHEARSAL;
    }
}

/// All machines of the world, and what they share.
pub struct Cast {
    /// A reference to itself, for processes.
    pub this: Weak<Cast>,
    pub broker: Arc<Broker>,
    pub clock: Arc<ManualClock>,
    pub tuning: Tuning,
    policies: Vec<Policy>,
    partitions: Vec<Mutex<PartitionNodes>>,
}

impl Cast {
    /// Creates the machines, with RocksDB stores below a directory or with simulated disks.
    pub fn new(
        broker: Arc<Broker>,
        clock: Arc<ManualClock>,
        tuning: Tuning,
        policies: Vec<Policy>,
        directory: Option<&PathBuf>,
    ) -> Arc<Cast> {
        let nodes = |partition: usize| {
            let machine = |number: usize| Machine {
                disk: match directory {
                    Some(directory) => Disk::Directory(directory.join(format!("{partition}-{number}"))),
                    None => Disk::Simulated(DiskImage::default()),
                },
                process: None,
                foreign: false,
                copies: Vec::new(),
                knows: Revision::FIRST,
            };
            Mutex::new(PartitionNodes {
                machines: (0..MACHINES).map(machine).collect(),
                parts: (0..MACHINES).map(|_| Membership::default()).collect(),
                group: Group::default(),
                backup: Rows::new(),
                needs_backup: false,
                adopts_tail: false,
                versions: None,
                failure: None,
                lives: 0,
            })
        };
        Arc::new_cyclic(|this| Cast {
            this: this.clone(),
            partitions: (0..policies.len()).map(nodes).collect(),
            broker,
            clock,
            tuning,
            policies,
        })
    }

    pub fn nodes(&self, partition: Partition) -> MutexGuard<'_, PartitionNodes> {
        let nodes = &self.partitions[partition.0 as usize];
        nodes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn wrong(&self, what: String) {
        let mut world = self.broker.world();
        world.wrong.get_or_insert(what);
    }

    pub fn strikes(&self, fault: Fault, per_mille: u64) -> bool {
        let mut world = self.broker.world();
        let world = &mut *world;
        world.weather.strikes(fault, per_mille, &mut world.random)
    }

    pub fn below(&self, limit: u64) -> u64 {
        self.broker.world().random.below(limit)
    }

    /// Decides which partitions are raised to the rehearsal of a revision, and which machines know it. The decisions have
    /// random numbers of their own, so that the other worlds are as they were.
    pub fn mix_versions(&self, seed: u64) {
        let mut random = Random(seed ^ 0x7265_7669_7365_6421);
        for partition in (0..self.broker.partitions()).map(Partition) {
            {
                let mut world = self.broker.world();
                let World { weather, shelves, .. } = &mut *world;
                if !weather.strikes(Fault::Revision, 200, &mut random) {
                    continue;
                }
                for _ in 0..*random.pick(&[1, 1, 2]) {
                    shelves[partition.0 as usize].input.raise(&mut random);
                }
            }
            self.nodes(partition).mix_versions(Random(random.number()));
        }
    }

    /// Starts a process on a machine, with a worker that has nothing open yet.
    pub fn start(&self, partition: Partition, machine: usize) -> Process {
        let life = ProcessLife::new();
        let knows = self.version(partition, machine);
        let log = Arc::new(ProcessLog::new(self, partition, machine, life.clone()));
        let store: Box<dyn StoreLocation + Send> = match &self.nodes(partition).machines[machine].disk {
            Disk::Simulated(platter) => Box::new(ProcessDisk {
                platter: platter.clone(),
                life: life.clone(),
                broker: self.broker.clone(),
            }),
            Disk::Directory(directory) => Box::new(directory.clone()),
        };
        let dependencies = Dependencies {
            log: log.clone(),
            data: None,
            clock: self.clock.clone(),
            tuning: Tuning {
                adopt_tail: self.nodes(partition).adopts_tail,
                revision: knows,
                ..self.tuning
            },
            services: Services::default(),
            warnings: Arc::default(),
        };
        let policy = self.policies[partition.0 as usize].clone();
        let wanted = Arc::default();
        Process {
            _interest: (machine > 0).then(|| Interest::in_what(&wanted)),
            worker: Worker::new(partition, dependencies, wanted).with_store(store, policy),
            life,
            log,
            machine,
            waits_since_ms: self.clock.monotonic_ms(),
            wait_ms: 0,
            asked: Vec::new(),
            knows,
            has_halted: false,
        }
    }

    /// Returns the newest revision that a machine's next process knows: that of its program, which may have been replaced.
    fn version(&self, partition: Partition, machine: usize) -> Revision {
        let mut nodes = self.nodes(partition);
        let PartitionNodes { machines, versions, .. } = &mut *nodes;
        let knows = &mut machines[machine].knows;
        if let Some(random) = versions {
            let weather = &mut self.broker.world().weather;
            if weather.strikes(Fault::Version, 300, random) {
                *knows = match *knows {
                    Revision::REHEARSAL => Revision::FIRST,
                    _ => Revision::REHEARSAL,
                };
            }
        }
        *knows
    }

    /// Decides what has happened to a machine's store by the time it is opened.
    pub fn find_store(&self, partition: Partition, machine: usize) {
        let mut nodes = self.nodes(partition);
        let PartitionNodes {
            machines,
            backup,
            needs_backup,
            ..
        } = &mut *nodes;
        let found = &mut machines[machine];
        match &found.disk {
            Disk::Simulated(platter) => {
                if !found.foreign {
                    self.check_store(partition, platter.value(keys::META));
                }
                if std::mem::take(needs_backup) {
                    platter.put_back(backup.clone());
                } else if !found.copies.is_empty() && self.strikes(Fault::StoreOld, 100) {
                    let copy = self.below(found.copies.len() as u64) as usize;
                    platter.put_back(found.copies[copy].clone());
                } else if self.strikes(Fault::StoreHalf, 30) {
                    platter.lose_a_part();
                } else if self.strikes(Fault::StoreLost, 40) {
                    platter.put_back(Rows::new());
                } else if self.partitions.len() > 1 && self.strikes(Fault::StoreForeign, 40) {
                    platter.put_back(self.foreign_rows(partition).unwrap_or_default());
                    found.foreign = true;
                } else if self.strikes(Fault::StoreDamaged, 20) {
                    platter.spoil(keys::META, |meta| meta.truncate(meta.len() / 2));
                }
            }
            Disk::Directory(directory) => {
                if self.strikes(Fault::StoreLost, 100) {
                    remove(directory);
                } else if self.strikes(Fault::StoreHalf, 60) {
                    halve_files(directory);
                } else if self.strikes(Fault::StoreOld, 100) {
                    copy_files(&copy_of(directory), directory);
                }
            }
        }
    }

    /// Returns the rows of another partition's store.
    fn foreign_rows(&self, partition: Partition) -> Option<Rows> {
        let other = (partition.0 as usize + 1) % self.partitions.len();
        match &self.partitions[other].try_lock().ok()?.machines.first()?.disk {
            Disk::Simulated(platter) => Some(platter.copy()),
            Disk::Directory(_) => None,
        }
    }

    /// Checks that the store is not ahead of the log.
    fn check_store(&self, partition: Partition, meta: Option<Vec<u8>>) {
        let Some((next, outputs)) = meta.as_deref().and_then(applied) else {
            return;
        };
        let committed = self.broker.world().shelves[partition.0 as usize].furthest;
        if (Offset(next), outputs) > (committed.next, committed.outputs) {
            self.wrong(format!(
                "the store has applied up to ({next}, {outputs}), the log has committed up to ({}, {})",
                committed.next, committed.outputs
            ));
        }
    }

    /// Gives a process a turn in which a read returns at most this many records. Returns the process if it goes on. The
    /// caller is its only holder meanwhile.
    pub fn turn(&self, partition: Partition, mut process: Process, records: usize) -> Option<Process> {
        process.life.reads_at_most(records);
        let slept_ms = self.clock.monotonic_ms() - process.waits_since_ms;
        process.worker.woke(process.wait_ms, slept_ms);
        let turn = process.worker.turn();
        process.log.pauses_no_more();
        let machine = process.machine;
        if process.life.is_dead() {
            self.bury(partition, machine);
            return None;
        }
        if process.worker.processor().is_some() {
            self.nodes(partition).machines[machine].foreign = false;
        }
        if let Some(error) = &turn.error {
            self.judge(partition, &process, error);
            process.has_halted |= matches!(error, Error::UnknownRevision { .. });
        }
        self.check_answers(partition, &mut process);
        if matches!(turn.error, Some(Error::OutputsWithoutPosition { .. })) {
            // The operator reads the error and restarts the machine as the error says.
            self.nodes(partition).adopts_tail = true;
            self.bury(partition, machine);
            return None;
        }
        if turn.became_live {
            self.learn(partition, machine, Fact::CaughtUp);
        }
        match turn.rest {
            Rest::Wait(wait_ms) => {
                (process.waits_since_ms, process.wait_ms) = (self.clock.monotonic_ms(), wait_ms);
                Some(process)
            }
            Rest::Ended(result) => {
                if let Err(error) = &result {
                    self.judge(partition, &process, error);
                }
                self.learn(partition, machine, Fact::Ended);
                None
            }
        }
    }

    /// Handles the death of a process.
    fn bury(&self, partition: Partition, machine: usize) {
        let lost = self.strikes(Fault::WriteLost, 500);
        let mut nodes = self.nodes(partition);
        nodes.parts[machine].dies();
        if let Disk::Simulated(platter) = &nodes.machines[machine].disk {
            platter.crash(lost);
        }
    }

    /// Checks that an error is one that may occur in this situation.
    fn judge(&self, partition: Partition, process: &Process, error: &Error) {
        self.nodes(partition).failure = Some(error.to_string());
        match error {
            Error::Log(
                log::Error::Write(_) | log::Error::Busy | log::Error::Read(_) | log::Error::Unanswered(_),
            ) => {}
            Error::Log(log::Error::Fenced { .. }) | Error::Deposed { .. } => {
                if process.log.is_present() {
                    self.wrong(format!("the only owner of partition {partition} is deposed: {error}"));
                }
            }
            Error::Log(log::Error::Gone { .. }) | Error::Behind { .. } | Error::Unrecoverable { .. } => {
                let start = self.broker.world().shelves[partition.0 as usize].start();
                if start == 0 {
                    self.wrong(format!("nothing was cut, but: {error}"));
                }
                self.nodes(partition).needs_backup = true;
            }
            Error::Store(crate::store::Error::Failed { .. })
            | Error::TailUnreadable { .. }
            // A new leader that does not know yet how far may be read.
            | Error::EventsMissing { .. } => {}
            Error::UnknownRevision {
                at, revision, newest, ..
            } => {
                let raised_at = self.broker.world().shelves[partition.0 as usize].input.raised_at();
                let is_so = raised_at.is_some_and(|raised| match at {
                    RevisionAt::Record(offset) => *offset == raised,
                    RevisionAt::Position(next) => *next > raised,
                    RevisionAt::Store => true,
                });
                let is_known = process.knows >= *revision || *newest != process.knows;
                if !is_so || is_known {
                    self.wrong(format!("a node that knows revision {} says: {error}", process.knows));
                }
            }
            Error::OutputsWithoutPosition { .. } => {
                if !self.broker.has_lost_position(partition) {
                    self.wrong(format!("no position was lost, but: {error}"));
                }
            }
            Error::Store(_)
            | Error::Registry(_)
            | Error::Checkpoint(_)
            | Error::Log(log::Error::Open(_) | log::Error::Closed | log::Error::Partly(_))
            | Error::Diverged { .. }
            | Error::OutputsMissing { .. }
            | Error::OutputDiffers { .. }
            | Error::ForeignOutput { .. }
            | Error::ForeignStore { .. }
            | Error::EventsLost { .. }
            | Error::Ahead { .. }
            | Error::Panicked { .. }
            | Error::Unreadable => self.wrong(error.to_string()),
        }
    }

    /// Gives the process of a machine a turn. A machine without a process starts one first.
    pub fn work(&self, partition: Partition, machine: usize, records: usize) {
        let process = self.nodes(partition).take_process(machine);
        let process = process.unwrap_or_else(|| self.start(partition, machine));
        if let Some(process) = self.turn(partition, process, records) {
            self.nodes(partition).put_process(process);
        }
    }

    /// The worker executes the command whose completion the group waits for. Returns whether there was a command.
    pub fn obey(&self, partition: Partition, machine: usize) -> bool {
        let (order, process) = {
            let mut nodes = self.nodes(partition);
            let Some(order) = nodes.parts[machine].pending else {
                return false;
            };
            (order, nodes.take_process(machine))
        };
        let Some(mut process) = process else {
            self.learn(partition, machine, Fact::Ended);
            return true;
        };
        let stops = order == Order::Release;
        process.worker.take(if stops { Command::Stop } else { Command::Drop });
        if let Some(process) = self.turn(partition, process, usize::MAX) {
            self.nodes(partition).put_process(process);
        }
        true
    }

    /// Stops the worker in an orderly way.
    pub fn close(&self, partition: Partition, process: Process) {
        let mut process = process;
        process.worker.take(Command::Stop);
        while let Some(mut waits) = self.turn(partition, process, usize::MAX) {
            self.clock.advance_ms(waits.wait_ms);
            waits.wait_ms = 0;
            process = waits;
        }
    }

    /// Keeps a copy of the owner's store for a later restore.
    pub fn copy_store(&self, partition: Partition, owner: &mut Process) {
        let mut nodes = self.nodes(partition);
        let machine = &mut nodes.machines[owner.machine];
        match &machine.disk {
            Disk::Simulated(platter) => {
                machine.copies.push(platter.copy());
                if machine.copies.len() > COPIES_MAX {
                    machine.copies.remove(0);
                }
            }
            Disk::Directory(directory) => {
                let copy = copy_of(directory);
                drop(nodes);
                remove(&copy);
                // A failure here is met again by the next step.
                let _ = owner.worker.processor_mut().map(|open| open.checkpoint(&copy));
            }
        }
    }

    /// Whether the log has given an old position back since its owner last asked, as when a process that was deposed asks. The
    /// owner sees that with its next commit; with nothing left to commit, the next owner sees it.
    pub fn position_went_back(&self, partition: Partition, process: &Process) -> bool {
        let there = self.broker.world().shelves[partition.0 as usize].position;
        let reach = |position: &log::Position| (position.next, position.outputs);
        let processor = process.worker.processor();
        processor.is_some_and(|processor| reach(&there) < reach(&processor.committed()))
    }

    /// Makes a backup of the present owner's store, then cuts the part of the log that the owner does not need any
    /// more.
    pub fn retain(&self, partition: Partition, owner: &Process) {
        let mut nodes = self.nodes(partition);
        let Disk::Simulated(platter) = &nodes.machines[owner.machine].disk else {
            return;
        };
        if nodes.needs_backup || owner.life.is_dead() || !owner.log.is_present() {
            return;
        }
        let rows = platter.copy();
        let meta = rows.get(keys::META).map(|meta| &**meta);
        let Some((applied, _)) = meta.and_then(applied) else {
            return;
        };
        let (floor, start) = {
            let world = self.broker.world();
            let shelf = &world.shelves[partition.0 as usize];
            (shelf.floor, shelf.start())
        };
        // A copy whose position the log does not reach back to any more is not a usable backup.
        if applied < start {
            return;
        }
        let start = self.below(floor.min(applied) + 1);
        if self.strikes(Fault::Retention, 1_000) {
            nodes.backup = rows;
            self.broker.world().shelves[partition.0 as usize].cut(start);
        }
    }
}

/// Returns where the copy of a store in a directory is kept.
fn copy_of(directory: &Path) -> PathBuf {
    directory.with_extension("copy")
}

/// Removes a directory, which need not exist.
fn remove(directory: &Path) {
    let _ = std::fs::remove_dir_all(directory);
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// Makes a directory a copy of another one that no process has open. A file that cannot be copied counts as a missing
/// part.
fn copy_files(from: &Path, to: &Path) {
    remove(to);
    let _ = std::fs::create_dir_all(to);
    for file in files(from) {
        if let Some(name) = file.file_name() {
            let _ = std::fs::copy(&file, to.join(name));
        }
    }
}

/// Cuts each data file to its first half.
fn halve_files(directory: &Path) {
    for file in files(directory) {
        if file.extension().is_some_and(|extension| extension == "sst")
            && let Ok(mut bytes) = std::fs::read(&file)
        {
            bytes.truncate(bytes.len() / 2);
            let _ = std::fs::write(&file, bytes);
        }
    }
}

/// Returns the position of a store: the numbers after its layout.
fn applied(meta: &[u8]) -> Option<(u64, u64)> {
    let mut bytes = meta;
    let _layout = varint::take(&mut bytes)?;
    Some((varint::take(&mut bytes)?, varint::take(&mut bytes)?))
}
