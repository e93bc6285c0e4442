//! One machine's process, as it is in a simulated world: a worker that the world gives its turns, what it lives on, and
//! its way to the log.

use super::broker::{Broker, Handle, Meanwhile, ProcessLife, SimulatedPartition};
use super::cast::Cast;
use super::fault::Fault;
use super::questions::Asked;
use crate::clock::{Clock as _, ManualClock};
use crate::engine::Interest;
use crate::engine::worker::{TICK_MS, Worker};
use crate::log::{Acknowledge, Appended, Error, Limit, Listener, Log, NewRecord, OwnedPartition, Range, Record};
use crate::presence::{Offset, Partition, Revision};
use crate::topics::Topic;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// See the module.
pub struct Process {
    pub worker: Worker,
    pub life: Arc<ProcessLife>,
    pub log: Arc<ProcessLog>,
    pub machine: usize,
    /// Since when it waits and for how long it wants to, by the monotonic clock.
    pub waits_since_ms: u64,
    pub wait_ms: u64,
    /// Questions that were not answered yet.
    pub asked: Vec<Asked>,
    /// A publisher asks for outcomes, so that they are kept; none on some machines.
    pub _interest: Option<Interest>,
    /// The newest revision that its program knows.
    pub knows: Revision,
    /// Whether it has said that the partition has a later revision: from then on it must answer nothing.
    pub has_halted: bool,
}

impl Process {
    /// When it wants to do something next.
    pub fn wakes_ms(&self) -> u64 {
        self.waits_since_ms + self.wait_ms
    }
}

/// The log as a process has it.
pub struct ProcessLog {
    cast: Weak<Cast>,
    broker: Arc<Broker>,
    clock: Arc<ManualClock>,
    partition: Partition,
    machine: usize,
    life: Arc<ProcessLife>,
    /// What it took up last.
    handle: Mutex<Option<Arc<Handle>>>,
    /// When its last tick was, by the monotonic clock.
    ticked_ms: Mutex<Option<u64>>,
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl ProcessLog {
    pub fn new(cast: &Cast, partition: Partition, machine: usize, life: Arc<ProcessLife>) -> ProcessLog {
        ProcessLog {
            cast: cast.this.clone(),
            broker: cast.broker.clone(),
            clock: cast.clock.clone(),
            partition,
            machine,
            life,
            handle: Mutex::default(),
            ticked_ms: Mutex::default(),
        }
    }

    /// Whether nobody else ever took the partition over since it did.
    pub fn is_present(&self) -> bool {
        locked(&self.handle).as_ref().is_some_and(|handle| handle.is_present())
    }

    /// Within the call after so many, something else happens before the call has its effect.
    pub fn pause_after(&self, calls: u64, meanwhile: Meanwhile) {
        if let Some(handle) = &*locked(&self.handle) {
            handle.pause_after(calls, meanwhile);
        }
    }

    pub fn pauses_no_more(&self) {
        if let Some(handle) = &*locked(&self.handle) {
            handle.pauses_no_more();
        }
    }

    /// A tick of its worker. Two that follow at once are a storm.
    fn tick(&self, record: &NewRecord) -> Result<Offset, Error> {
        let now_ms = self.clock.monotonic_ms();
        let before = locked(&self.ticked_ms).replace(now_ms);
        let mut world = self.broker.world();
        let world = &mut *world;
        if let Some(before) = before
            && now_ms - before < TICK_MS
        {
            let ms = now_ms - before;
            let what = format!("partition {}: ticks follow one another within {ms} ms", self.partition);
            world.wrong.get_or_insert(what);
        }
        if self.life.is_dead() {
            return Err(Error::Closed);
        }
        let rate = world.weather.fails;
        if world.weather.strikes(Fault::CallFails, rate, &mut world.random) {
            return Err(Error::Write("simulated".into()));
        }
        let shelf = &mut world.shelves[self.partition.0 as usize];
        let ts = shelf.now_ms();
        let tick = shelf.input.tick(ts);
        if tick.value != record.value || record.key.is_some() {
            let what = format!("partition {}: a worker appends what is no tick", self.partition);
            world.wrong.get_or_insert(what);
        }
        let offset = tick.offset;
        shelf.ticks += 1;
        shelf.append(tick, None);
        Ok(offset)
    }
}

impl Log for ProcessLog {
    fn take_up(&self, partition: Partition) -> Result<Box<dyn OwnedPartition>, Error> {
        let cast = self.cast.upgrade().ok_or(Error::Closed)?;
        if self.life.is_dead() {
            return Err(Error::Closed);
        }
        cast.find_store(partition, self.machine);
        // Taken before the position is read, so that nothing comes in between.
        let token = self.broker.take_over(partition);
        let handle = Arc::new(Handle::new(self.broker.clone(), partition, token, self.life.clone()));
        *locked(&self.handle) = Some(handle.clone());
        if cast.strikes(Fault::Crash, 30) {
            self.life.dies_after(cast.below(8), cast.below(2) == 0);
        }
        Ok(Box::new(SimulatedPartition(handle)))
    }

    fn partitions(&self) -> u32 {
        self.broker.partitions()
    }

    fn append(&self, records: Vec<(Partition, NewRecord)>, acknowledge: Acknowledge) {
        let appended = records.into_iter().map(|(partition, record)| {
            let offset = self.tick(&record)?;
            Ok(Appended { partition, offset })
        });
        acknowledge(appended.collect());
    }

    fn read(&self, _: Topic, _: Partition, _: Offset, _: Limit, _: &mut Vec<Record>) -> Result<(), Error> {
        // A worker reads as the owner.
        Err(Error::Closed)
    }

    fn range(&self, _: Topic, partition: Partition) -> Result<Range, Error> {
        let world = self.broker.world();
        let shelf = &world.shelves[partition.0 as usize];
        Ok(Range {
            start: Offset(shelf.start()),
            end: Offset(shelf.end()),
        })
    }

    fn now_ms(&self) -> Option<u64> {
        Some(self.broker.world().shelves[self.partition.0 as usize].now_ms())
    }

    fn listen(&self, _: Listener) {
        // The world gives turns to whom it wants to.
    }
}
