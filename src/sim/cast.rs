//! Who owns the partitions of a simulated world: machines with stores, processes that open a walk, stand still, die and
//! are deposed without knowing.

use super::broker::{Broker, Handle, Life};
use super::disk::{Drive, Platter, Rows};
use super::fault::Fault;
use crate::clock::ManualClock;
use crate::engine::partition::Walk;
use crate::engine::{Error, Tuning};
use crate::log::{self, Limit};
use crate::presence::policy::Policy;
use crate::presence::{Offset, Partition};
use crate::store::{Home, keys};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Machines that can own a partition.
pub const MACHINES: usize = 3;
/// Copies of a store that are kept to be put back later.
const COPIES_MAX: usize = 6;

/// Where one machine keeps one partition's store.
pub enum Disk {
    Simulated(Platter),
    /// With RocksDB.
    Directory(PathBuf),
}

pub struct Machine {
    disk: Disk,
    /// A process has it open.
    busy: bool,
    /// What is there is none of its own.
    foreign: bool,
    copies: Vec<Rows>,
}

/// One process's ownership of a partition.
pub struct Owner {
    pub walk: Walk,
    pub life: Arc<Life>,
    pub handle: Arc<Handle>,
    machine: usize,
}

/// A partition's machines and owners, the present owner last.
pub struct Seat {
    machines: Vec<Machine>,
    pub owners: Vec<Owner>,
    last_machine: usize,
    /// A store that reaches back to where the log starts.
    backup: Rows,
    needs_backup: bool,
}

/// Everything that lives, with what it lives on.
pub struct Cast {
    pub broker: Arc<Broker>,
    pub clock: Arc<ManualClock>,
    pub tuning: Tuning,
    policies: Vec<Policy>,
    seats: Vec<Mutex<Seat>>,
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
        let seat = |partition: usize| {
            let machine = |number: usize| Machine {
                disk: match directory {
                    Some(directory) => Disk::Directory(directory.join(format!("{partition}-{number}"))),
                    None => Disk::Simulated(Platter::default()),
                },
                busy: false,
                foreign: false,
                copies: Vec::new(),
            };
            Mutex::new(Seat {
                machines: (0..MACHINES).map(machine).collect(),
                owners: Vec::new(),
                last_machine: 0,
                backup: Rows::new(),
                needs_backup: false,
            })
        };
        Cast {
            seats: (0..policies.len()).map(seat).collect(),
            broker,
            clock,
            tuning,
            policies,
        }
    }

    pub fn seat(&self, partition: Partition) -> MutexGuard<'_, Seat> {
        let seat = &self.seats[partition.0 as usize];
        seat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wrong(&self, what: String) {
        let mut world = self.broker.world();
        world.wrong.get_or_insert(what);
    }

    fn strikes(&self, fault: Fault, per_mille: u64) -> bool {
        let mut world = self.broker.world();
        let world = &mut *world;
        world.weather.strikes(fault, per_mille, &mut world.random)
    }

    pub fn below(&self, limit: u64) -> u64 {
        self.broker.world().random.below(limit)
    }

    /// A process on a free machine takes the partition over, with whatever store it finds there. Most attempts give an
    /// owner; one that fails may be made again.
    pub fn open(&self, partition: Partition) -> Option<Owner> {
        let (machine, home) = self.machine(partition)?;
        // Taken before the position is read, so that nothing comes in between.
        let token = self.broker.take_over(partition);
        let life = Life::new();
        let handle = Arc::new(Handle::new(self.broker.clone(), partition, token, life.clone()));
        if self.strikes(Fault::Crash, 30) {
            life.dies_after(self.below(8), self.below(2) == 0);
        }
        let home: Box<dyn Home> = match home {
            Disk::Simulated(platter) => Box::new(Drive {
                platter,
                life: life.clone(),
                broker: self.broker.clone(),
            }),
            Disk::Directory(directory) => Box::new(directory),
        };
        let policy = &self.policies[partition.0 as usize];
        let (clock, log) = (self.clock.clone(), handle.clone());
        match Walk::open_at(partition, log, Some(&*home), policy, clock, self.tuning) {
            Ok(walk) => {
                self.seat(partition).machines[machine].foreign = false;
                Some(Owner {
                    walk,
                    life,
                    handle,
                    machine,
                })
            }
            Err(error) => {
                self.fails(partition, machine, &life, true, &error);
                self.seat(partition).machines[machine].busy = false;
                None
            }
        }
    }

    /// A free machine, its store as it is found.
    fn machine(&self, partition: Partition) -> Option<(usize, Disk)> {
        let mut seat = self.seat(partition);
        let mut machine = seat.last_machine;
        if seat.machines[machine].busy || self.strikes(Fault::Move, 200) {
            let free: Vec<usize> = (0..MACHINES).filter(|machine| !seat.machines[*machine].busy).collect();
            machine = *free.get(self.below(free.len() as u64) as usize)?;
        }
        seat.last_machine = machine;
        let Seat {
            machines,
            backup,
            needs_backup,
            ..
        } = &mut *seat;
        let found = &mut machines[machine];
        found.busy = true;
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
                } else if self.seats.len() > 1 && self.strikes(Fault::StoreForeign, 40) {
                    platter.put_back(self.foreign_rows(partition).unwrap_or_default());
                    found.foreign = true;
                } else if self.strikes(Fault::StoreDamaged, 20) {
                    platter.spoil(keys::META, |meta| meta.truncate(meta.len() / 2));
                }
                Some((machine, Disk::Simulated(platter.clone())))
            }
            Disk::Directory(directory) => {
                if self.strikes(Fault::StoreLost, 100) {
                    remove(directory);
                } else if self.strikes(Fault::StoreHalf, 60) {
                    halve_files(directory);
                } else if self.strikes(Fault::StoreOld, 100) {
                    copy_files(&copy_of(directory), directory);
                } else if self.below(4) == 0 {
                    copy_files(directory, &copy_of(directory));
                }
                Some((machine, Disk::Directory(directory.clone())))
            }
        }
    }

    /// The rows of another partition's store.
    fn foreign_rows(&self, partition: Partition) -> Option<Rows> {
        let other = (partition.0 as usize + 1) % self.seats.len();
        match &self.seats[other].try_lock().ok()?.machines.first()?.disk {
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
    fn fails(&self, partition: Partition, machine: usize, life: &Life, is_present: bool, error: &Error) -> bool {
        if life.is_dead() {
            let lost = self.strikes(Fault::WriteLost, 500);
            let mut seat = self.seat(partition);
            let machine = &mut seat.machines[machine];
            machine.busy = false;
            if let Disk::Simulated(platter) = &machine.disk {
                platter.crash(lost);
            }
            return false;
        }
        let goes_on = match error {
            Error::Log(log::Error::Write(_) | log::Error::Busy | log::Error::Read(_)) => true,
            Error::Log(log::Error::Fenced { .. }) | Error::Deposed { .. } => {
                if is_present {
                    self.wrong(format!("the only owner of partition {partition} is told: {error}"));
                }
                false
            }
            Error::Log(log::Error::Gone { .. }) | Error::Unrecoverable { .. } => {
                let start = self.broker.world().shelves[partition.0 as usize].start();
                if start == 0 {
                    self.wrong(format!("nothing was cut, but: {error}"));
                }
                self.seat(partition).needs_backup = true;
                false
            }
            Error::Store(crate::store::Error::Failed { .. }) => false,
            Error::Store(_)
            | Error::Log(log::Error::Open(_) | log::Error::Closed | log::Error::Partly(_))
            | Error::Diverged { .. }
            | Error::ForeignStore { .. }
            | Error::Ahead { .. }
            | Error::Unreadable => {
                self.wrong(error.to_string());
                false
            }
        };
        if !goes_on {
            self.seat(partition).machines[machine].busy = false;
        }
        goes_on
    }

    /// The owner's next batch; the owner, if it goes on. Nobody else has it meanwhile.
    pub fn step(&self, partition: Partition, mut owner: Owner, records: usize) -> Option<Owner> {
        let limit = Limit {
            records,
            bytes: usize::MAX,
        };
        let stepped = owner.walk.step(limit);
        owner.handle.pauses_no_more();
        let error = match stepped {
            Ok(_) if !owner.life.is_dead() => return Some(owner),
            Ok(_) => Error::Log(log::Error::Closed),
            Err(error) => error,
        };
        let is_present = owner.handle.is_present();
        self.fails(partition, owner.machine, &owner.life, is_present, &error)
            .then_some(owner)
    }

    /// Ends in good order.
    pub fn close(&self, partition: Partition, owner: Owner) {
        let Owner {
            walk, life, machine, ..
        } = owner;
        // What fails now is folded again.
        let _ = walk.close();
        if life.is_dead() {
            self.fails(partition, machine, &life, false, &Error::Unreadable);
        }
        self.seat(partition).machines[machine].busy = false;
    }

    /// Ends an owner whose store stays as it is.
    pub fn dismiss(&self, partition: Partition, owner: Owner) {
        self.seat(partition).machines[owner.machine].busy = false;
    }

    /// Keeps a copy of the owner's store to be put back later.
    pub fn copy_store(&self, partition: Partition, owner: &Owner) {
        let mut seat = self.seat(partition);
        let machine = &mut seat.machines[owner.machine];
        if let Disk::Simulated(platter) = &machine.disk {
            machine.copies.push(platter.copy());
            if machine.copies.len() > COPIES_MAX {
                machine.copies.remove(0);
            }
        }
    }

    /// Cuts the log up to what the present owner needs no more, after making a backup of its store.
    pub fn retain(&self, partition: Partition, owner: &Owner) {
        let mut seat = self.seat(partition);
        let Disk::Simulated(platter) = &seat.machines[owner.machine].disk else {
            return;
        };
        if seat.needs_backup || owner.life.is_dead() || !owner.handle.is_present() {
            return;
        }
        let rows = platter.copy();
        let meta = rows.get(keys::META).map(Vec::as_slice);
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
            seat.backup = rows;
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
