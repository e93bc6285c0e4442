//! Who owns the partitions of a simulated world: machines with stores, processes that open a walk, stand still, die and
//! are deposed without knowing. Who is given what is the group's to say (`group`).

use super::broker::{Broker, Handle, ProcessLife, SimulatedPartition};
use super::disk::{DiskImage, ProcessDisk, Rows};
use super::fault::Fault;
use super::group::{Group, Membership};
use crate::clock::ManualClock;
use crate::engine::ownership::{Command, Fact};
use crate::engine::partition::PartitionProcessor;
use crate::engine::{Error, Tuning};
use crate::log::{self, Limit};
use crate::presence::policy::Policy;
use crate::presence::{Offset, Partition};
use crate::store::{StoreLocation, keys};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Machines that can own a partition.
pub const MACHINES: usize = 3;
/// Copies of a store that are kept to be put back later.
const COPIES_MAX: usize = 6;

/// Where one machine keeps one partition's store.
pub enum Disk {
    Simulated(DiskImage),
    /// With RocksDB.
    Directory(PathBuf),
}

pub struct Machine {
    disk: Disk,
    /// None while its worker has nothing open, or is in the middle of a step.
    owner: Option<Owner>,
    /// What is there is not its own.
    foreign: bool,
    copies: Vec<Rows>,
}

/// One process's ownership of a partition.
pub struct Owner {
    pub processor: PartitionProcessor,
    pub life: Arc<ProcessLife>,
    pub handle: Arc<Handle>,
    pub machine: usize,
}

/// A partition's machines, and what they and the group know of one another.
pub struct PartitionNodes {
    machines: Vec<Machine>,
    parts: Vec<Membership>,
    group: Group,
    /// A store that reaches back to where the log starts.
    backup: Rows,
    needs_backup: bool,
    /// Why a step or an opening failed last.
    pub failure: Option<String>,
    /// How often it came to life since nothing goes wrong any more.
    pub lives: usize,
}

impl PartitionNodes {
    pub fn group(&mut self) -> (&mut Group, &mut [Membership]) {
        (&mut self.group, &mut self.parts)
    }

    pub fn part(&mut self, machine: usize) -> &mut Membership {
        &mut self.parts[machine]
    }

    /// Machines that have a worker.
    pub fn working(&self) -> Vec<usize> {
        let parts = self.parts.iter().enumerate();
        let working = parts.filter(|(_, part)| part.works);
        working.map(|(machine, _)| machine).collect()
    }

    /// The owner that nobody has deposed, if it is the only one left and at work.
    pub fn live(&self) -> Option<usize> {
        let live = self.parts.iter().position(Membership::is_live)?;
        let others = self.parts.iter().enumerate().filter(|(machine, _)| *machine != live);
        let alone = others.map(|(_, part)| part).all(Membership::is_absent);
        (alone && self.machines[live].owner.is_some()).then_some(live)
    }

    pub fn take_owner(&mut self, machine: usize) -> Option<Owner> {
        self.machines[machine].owner.take()
    }

    pub fn put_owner(&mut self, owner: Owner) {
        let machine = owner.machine;
        self.machines[machine].owner = Some(owner);
    }
}

/// Everything that lives, with what it lives on.
pub struct Cast {
    pub broker: Arc<Broker>,
    pub clock: Arc<ManualClock>,
    pub tuning: Tuning,
    policies: Vec<Policy>,
    partitions: Vec<Mutex<PartitionNodes>>,
}

impl Cast {
    /// With RocksDB below a directory, or with simulated disks.
    pub fn new(
        broker: Arc<Broker>,
        clock: Arc<ManualClock>,
        tuning: Tuning,
        policies: Vec<Policy>,
        directory: Option<&PathBuf>,
    ) -> Cast {
        let nodes = |partition: usize| {
            let machine = |number: usize| Machine {
                disk: match directory {
                    Some(directory) => Disk::Directory(directory.join(format!("{partition}-{number}"))),
                    None => Disk::Simulated(DiskImage::default()),
                },
                owner: None,
                foreign: false,
                copies: Vec::new(),
            };
            Mutex::new(PartitionNodes {
                machines: (0..MACHINES).map(machine).collect(),
                parts: (0..MACHINES).map(|_| Membership::default()).collect(),
                group: Group::default(),
                backup: Rows::new(),
                needs_backup: false,
                failure: None,
                lives: 0,
            })
        };
        Cast {
            partitions: (0..policies.len()).map(nodes).collect(),
            broker,
            clock,
            tuning,
            policies,
        }
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

    /// A machine's worker takes the partition up, with whatever store it finds. Most attempts give an owner; one that
    /// fails may be made again.
    pub fn open(&self, partition: Partition, machine: usize) -> Option<Owner> {
        let home = self.found(partition, machine);
        // Taken before the position is read, so that nothing comes in between.
        let token = self.broker.take_over(partition);
        let life = ProcessLife::new();
        let handle = Arc::new(Handle::new(self.broker.clone(), partition, token, life.clone()));
        if self.strikes(Fault::Crash, 30) {
            life.dies_after(self.below(8), self.below(2) == 0);
        }
        let home: Box<dyn StoreLocation> = match home {
            Disk::Simulated(platter) => Box::new(ProcessDisk {
                platter,
                life: life.clone(),
                broker: self.broker.clone(),
            }),
            Disk::Directory(directory) => Box::new(directory),
        };
        let policy = &self.policies[partition.0 as usize];
        let (clock, log) = (self.clock.clone(), Box::new(SimulatedPartition(handle.clone())));
        match PartitionProcessor::open_at(log, Some(&*home), policy, clock, self.tuning) {
            Ok(processor) => {
                self.nodes(partition).machines[machine].foreign = false;
                Some(Owner {
                    processor,
                    life,
                    handle,
                    machine,
                })
            }
            Err(error) => {
                self.fails(partition, machine, &life, handle.is_present(), &error);
                None
            }
        }
    }

    /// A machine's store as it is found.
    fn found(&self, partition: Partition, machine: usize) -> Disk {
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
                Disk::Simulated(platter.clone())
            }
            Disk::Directory(directory) => {
                if self.strikes(Fault::StoreLost, 100) {
                    remove(directory);
                } else if self.strikes(Fault::StoreHalf, 60) {
                    halve_files(directory);
                } else if self.strikes(Fault::StoreOld, 100) {
                    copy_files(&copy_of(directory), directory);
                }
                Disk::Directory(directory.clone())
            }
        }
    }

    /// The rows of another partition's store.
    fn foreign_rows(&self, partition: Partition) -> Option<Rows> {
        let other = (partition.0 as usize + 1) % self.partitions.len();
        match &self.partitions[other].try_lock().ok()?.machines.first()?.disk {
            Disk::Simulated(platter) => Some(platter.copy()),
            Disk::Directory(_) => None,
        }
    }

    /// The store must not be ahead of the log.
    fn check_store(&self, partition: Partition, meta: Option<Vec<u8>>) {
        let Some((next, outputs)) = meta.as_deref().and_then(applied) else {
            return;
        };
        let committed = self.broker.world().shelves[partition.0 as usize].position;
        if (Offset(next), outputs) > (committed.next, committed.outputs) {
            self.wrong(format!(
                "the store has applied up to ({next}, {outputs}), the log has committed up to ({}, {})",
                committed.next, committed.outputs
            ));
        }
    }

    /// What comes of an error: whether the owner goes on all the same.
    fn fails(&self, partition: Partition, machine: usize, life: &ProcessLife, is_present: bool, error: &Error) -> bool {
        self.nodes(partition).failure = Some(error.to_string());
        if life.is_dead() {
            let lost = self.strikes(Fault::WriteLost, 500);
            let mut nodes = self.nodes(partition);
            nodes.parts[machine].dies();
            if let Disk::Simulated(platter) = &nodes.machines[machine].disk {
                platter.crash(lost);
            }
            return false;
        }
        match error {
            Error::Log(log::Error::Write(_) | log::Error::Busy | log::Error::Read(_)) => true,
            Error::Log(log::Error::Fenced { .. }) | Error::Deposed { .. } => {
                if is_present {
                    self.wrong(format!("the only owner of partition {partition} is told: {error}"));
                }
                self.learn(partition, machine, Fact::Ended);
                false
            }
            Error::Log(log::Error::Gone { .. }) | Error::Behind { .. } | Error::Unrecoverable { .. } => {
                let start = self.broker.world().shelves[partition.0 as usize].start();
                if start == 0 {
                    self.wrong(format!("nothing was cut, but: {error}"));
                }
                self.nodes(partition).needs_backup = true;
                false
            }
            Error::Store(crate::store::Error::Failed { .. }) => false,
            Error::Store(_)
            | Error::Registry(_)
            | Error::Checkpoint(_)
            | Error::Log(log::Error::Open(_) | log::Error::Closed | log::Error::Partly(_))
            | Error::Diverged { .. }
            | Error::ForeignStore { .. }
            | Error::Ahead { .. }
            | Error::UnknownRevision { .. }
            | Error::Panicked { .. }
            | Error::Unreadable => {
                self.wrong(error.to_string());
                false
            }
        }
    }

    /// The owner's next batch; the owner, if it goes on. Nobody else has it meanwhile.
    pub fn step(&self, partition: Partition, mut owner: Owner, records: usize) -> Option<Owner> {
        let limit = Limit {
            records,
            bytes: usize::MAX,
        };
        let stepped = owner.processor.step(limit);
        owner.handle.pauses_no_more();
        let error = match stepped {
            Ok(_) if !owner.life.is_dead() => return Some(owner),
            Ok(_) => Error::Log(log::Error::Closed),
            Err(error) => error,
        };
        self.has_failed(partition, owner, &error)
    }

    /// An owner failed; the owner, if it goes on.
    pub fn has_failed(&self, partition: Partition, owner: Owner, error: &Error) -> Option<Owner> {
        let is_present = owner.handle.is_present();
        self.fails(partition, owner.machine, &owner.life, is_present, error)
            .then_some(owner)
    }

    /// A machine's worker opens the partition, or folds a batch.
    pub fn work(&self, partition: Partition, machine: usize, records: usize) {
        let owner = self.nodes(partition).take_owner(machine);
        let owner = match owner {
            Some(owner) => self.step(partition, owner, records),
            None => self.open(partition, machine),
        };
        if let Some(owner) = owner {
            self.settle_down(partition, owner);
        }
    }

    /// An owner goes on; it has caught up, perhaps.
    pub fn settle_down(&self, partition: Partition, owner: Owner) {
        let shown = self.broker.world().shelves[partition.0 as usize].shown();
        let caught_up = owner.processor.applied() == shown && owner.processor.is_caught_up();
        let machine = owner.machine;
        self.nodes(partition).put_owner(owner);
        if caught_up {
            self.learn(partition, machine, Fact::CaughtUp);
        }
    }

    /// The worker does what it was told; whether it was told anything.
    pub fn obey(&self, partition: Partition, machine: usize) -> bool {
        let (told, owner) = {
            let mut nodes = self.nodes(partition);
            let Some(told) = nodes.parts[machine].told else {
                return false;
            };
            (told, nodes.take_owner(machine))
        };
        match owner {
            Some(owner) if told == Command::Release => self.close(partition, owner),
            _ => self.learn(partition, machine, Fact::Ended),
        }
        true
    }

    /// The worker ends in good order.
    pub fn close(&self, partition: Partition, owner: Owner) {
        let Owner {
            processor,
            life,
            machine,
            ..
        } = owner;
        // What fails now is folded again.
        let _ = processor.close();
        if life.is_dead() {
            self.fails(partition, machine, &life, false, &Error::Unreadable);
        } else {
            self.learn(partition, machine, Fact::Ended);
        }
    }

    /// Keeps a copy of the owner's store to be put back later.
    pub fn copy_store(&self, partition: Partition, owner: &mut Owner) {
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
                // What fails in it is met again by the next step.
                let _ = owner.processor.checkpoint(&copy);
            }
        }
    }

    /// Cuts the log up to what the present owner needs no more, after making a backup of its store.
    pub fn retain(&self, partition: Partition, owner: &Owner) {
        let mut nodes = self.nodes(partition);
        let Disk::Simulated(platter) = &nodes.machines[owner.machine].disk else {
            return;
        };
        if nodes.needs_backup || owner.life.is_dead() || !owner.handle.is_present() {
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
        // An old copy that the log does not reach back to any more is no backup.
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

/// Where a copy of a store in a directory is kept.
fn copy_of(directory: &Path) -> PathBuf {
    directory.with_extension("copy")
}

/// It may never have been there.
fn remove(directory: &Path) {
    let _ = std::fs::remove_dir_all(directory);
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// A directory as another one is, which nobody has open. What cannot be copied is a missing part like others.
fn copy_files(from: &Path, to: &Path) {
    remove(to);
    let _ = std::fs::create_dir_all(to);
    for file in files(from) {
        if let Some(name) = file.file_name() {
            let _ = std::fs::copy(&file, to.join(name));
        }
    }
}

/// Of each file with data only the first half is there.
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

/// How far a store is: the numbers after its layout.
fn applied(meta: &[u8]) -> Option<(u64, u64)> {
    let mut bytes = meta.iter();
    let mut number = || {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = bytes.next()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    };
    let _layout = number()?;
    Some((number()?, number()?))
}
