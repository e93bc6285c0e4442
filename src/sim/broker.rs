//! A simulated log that fails in the ways a distant log can. Calls fail, take long or never return. A failed commit may
//! have been written nevertheless, or is written later. Leaders change. An owner that was deposed is refused.
//!
//! Each owner has a [`Handle`] with a token of its own. A new owner of a partition gets the next token, and from then
//! on the owner before it is fenced. The engine may rely on this: a commit with an unknown outcome is decided, one way
//! or the other, when its owner asks for the position or when another owner takes over. The content of a partition is
//! in `shelf`.

use super::fault::{Counts, Fault};
use super::input::Input;
use super::shelf::{CommitInFlight, SimulatedLog};
use crate::clock::ManualClock;
use crate::log::{Commit, Error, Limit, OwnedPartition, PartitionEvents, Position, Range, Record};
use crate::presence::{Offset, Partition};
use crate::random::Random;
use crate::topics::{OutputTopic, Topic};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which faults may happen, and how often.
#[derive(Clone, Debug, Default)]
pub struct FaultRates {
    pub without: Vec<Fault>,
    /// The number of calls in a thousand that fail.
    pub fails: u64,
    /// Whether an owner asks for the position as a new owner would after a commit with an unknown outcome, and so
    /// fences the owner that is there by then.
    pub settles_anew: bool,
    /// Whether commits also contain the newest state of users.
    pub keeps_current: bool,
    /// Whether the faults have ended.
    pub calm: bool,
    pub counts: Counts,
}

impl FaultRates {
    pub fn may(&self, fault: Fault) -> bool {
        !self.calm && !self.without.contains(&fault)
    }

    /// Decides whether the fault happens, with this chance in a thousand.
    pub fn strikes(&mut self, fault: Fault, per_mille: u64, random: &mut Random) -> bool {
        let strikes = self.may(fault) && random.below(1_000) < per_mille;
        if strikes {
            self.counts.note(fault);
        }
        strikes
    }
}

/// Bugs on the side of the log that are planted to see whether they are found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BrokerBug {
    /// No owner is ever refused.
    FenceIgnored,
    /// An owner that is refused takes a new token and sends the same commit again.
    FreshToken,
    /// Owners get records of publishers' transactions that were aborted.
    AbortedRead,
}

impl BrokerBug {
    pub const ALL: [BrokerBug; 3] = [BrokerBug::FenceIgnored, BrokerBug::FreshToken, BrokerBug::AbortedRead];
}

pub struct Broker {
    world: Mutex<World>,
    clock: Arc<ManualClock>,
    partitions: u32,
    bug: Option<BrokerBug>,
}

pub struct World {
    pub random: Random,
    pub weather: FaultRates,
    pub shelves: Vec<SimulatedLog>,
    /// The first thing that was wrong.
    pub wrong: Option<String>,
    /// The number of records that were returned by reads.
    pub read: u64,
    /// The number of queries, and how many of them got an answer.
    pub questions: u64,
    pub answers: u64,
    /// The number of calls that fail from now on because the log is not available.
    pub outage: u64,
}

/// Whether a process is alive. Its calls to log and store count down to its death.
pub struct ProcessLife {
    dead: AtomicBool,
    calls_left: AtomicU64,
    /// Whether the last call has its effect.
    last_works: AtomicBool,
    /// The greatest number of records that a read returns.
    reads_at_most: AtomicUsize,
}

/// What happens to a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    Works,
    /// The call has its effect, but the process dies before it gets the answer.
    WorksUnseen,
    /// The last call of a process, without its effect.
    Dies,
    Dead,
}

impl ProcessLife {
    pub fn new() -> Arc<ProcessLife> {
        Arc::new(ProcessLife {
            dead: AtomicBool::new(false),
            calls_left: AtomicU64::new(u64::MAX),
            last_works: AtomicBool::new(false),
            reads_at_most: AtomicUsize::new(usize::MAX),
        })
    }

    /// Sets the greatest number of records that a read returns from now on: a log returns what it has available.
    pub fn reads_at_most(&self, records: usize) {
        self.reads_at_most.store(records, Ordering::Relaxed);
    }

    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Relaxed)
    }

    pub fn dies_after(&self, calls: u64, last_works: bool) {
        self.calls_left.store(calls, Ordering::Relaxed);
        self.last_works.store(last_works, Ordering::Relaxed);
    }

    pub fn call(&self) -> Call {
        if self.is_dead() {
            return Call::Dead;
        }
        let left = self.calls_left.load(Ordering::Relaxed);
        if left == u64::MAX {
            return Call::Works;
        }
        if left > 0 {
            self.calls_left.store(left - 1, Ordering::Relaxed);
            return Call::Works;
        }
        self.dead.store(true, Ordering::Relaxed);
        if self.last_works.load(Ordering::Relaxed) {
            Call::WorksUnseen
        } else {
            Call::Dies
        }
    }
}

impl Broker {
    pub fn new(inputs: Vec<Input>, random: Random, weather: FaultRates, clock: Arc<ManualClock>) -> Broker {
        let partitions = u32::try_from(inputs.len()).unwrap_or(u32::MAX);
        let shelves = inputs
            .into_iter()
            .map(|input| SimulatedLog::new(input, clock.clone()))
            .collect();
        Broker {
            partitions,
            world: Mutex::new(World {
                random,
                weather,
                shelves,
                wrong: None,
                read: 0,
                questions: 0,
                answers: 0,
                outage: 0,
            }),
            clock,
            bug: None,
        }
    }

    pub fn with_bug(mut self, bug: Option<BrokerBug>) -> Broker {
        self.bug = bug;
        for shelf in &mut self.world().shelves {
            shelf.reads_aborted = bug == Some(BrokerBug::AbortedRead);
        }
        self
    }

    pub fn partitions(&self) -> u32 {
        self.partitions
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the token of the next owner. Commits of the owner before it that are in flight are decided.
    pub fn take_over(&self, partition: Partition) -> u64 {
        let mut world = self.world();
        self.decide(&mut world, partition, |_| true);
        let shelf = &mut world.shelves[partition.0 as usize];
        shelf.token += 1;
        shelf.token
    }

    /// Returns whether there are outputs but no position: the position was lost, or only half of one commit was ever
    /// written.
    pub fn has_lost_position(&self, partition: Partition) -> bool {
        let world = self.world();
        let shelf = &world.shelves[partition.0 as usize];
        !shelf.has_position && OutputTopic::ALL.iter().any(|topic| shelf.count_of_outputs(*topic) > 0)
    }

    /// Decides commits in flight with these tokens: each of them is written now or never.
    fn decide(&self, world: &mut World, partition: Partition, of: impl Fn(u64) -> bool) {
        if self.bug == Some(BrokerBug::FenceIgnored) {
            return;
        }
        let World {
            random, shelves, wrong, ..
        } = world;
        let shelf = &mut shelves[partition.0 as usize];
        for flight in std::mem::take(&mut shelf.flight) {
            if !of(flight.token) {
                shelf.flight.push(flight);
            } else if flight.token == shelf.token && random.percent(50) {
                shelf.decide(flight, wrong);
            }
        }
    }

    /// Commits in flight arrive, and are refused if their owner was deposed.
    pub fn deliver(&self, partition: Partition) {
        let mut world = self.world();
        let World { shelves, wrong, .. } = &mut *world;
        let shelf = &mut shelves[partition.0 as usize];
        for flight in std::mem::take(&mut shelf.flight) {
            if flight.token == shelf.token || self.bug == Some(BrokerBug::FenceIgnored) {
                shelf.decide(flight, wrong);
            }
        }
    }
}

/// What happens elsewhere while this owner stands still.
pub type Meanwhile = Box<dyn FnOnce() + Send>;

/// The access of one owner to the log.
pub struct Handle {
    broker: Arc<Broker>,
    partition: Partition,
    token: AtomicU64,
    life: Arc<ProcessLife>,
    /// The number of calls until the pause; the greatest number means never.
    pause_in: AtomicU64,
    meanwhile: Mutex<Option<Meanwhile>>,
    /// A commit has failed, and the position has not been read since.
    unsettled: AtomicBool,
    /// The owner was deposed, perhaps without ever knowing it.
    deposed: AtomicBool,
}

impl Handle {
    pub fn new(broker: Arc<Broker>, partition: Partition, token: u64, life: Arc<ProcessLife>) -> Handle {
        Handle {
            broker,
            partition,
            token: AtomicU64::new(token),
            life,
            pause_in: AtomicU64::new(u64::MAX),
            meanwhile: Mutex::new(None),
            unsettled: AtomicBool::new(false),
            deposed: AtomicBool::new(false),
        }
    }

    /// Returns whether no other owner has taken the partition over since.
    pub fn is_present(&self) -> bool {
        let token = self.broker.world().shelves[self.partition.0 as usize].token;
        token == self.token.load(Ordering::Relaxed) && !self.deposed.load(Ordering::Relaxed)
    }

    /// Runs `meanwhile` during the call after this many calls, before that call has its effect.
    pub fn pause_after(&self, calls: u64, meanwhile: Meanwhile) {
        *self.meanwhile.lock().unwrap_or_else(PoisonError::into_inner) = Some(meanwhile);
        self.pause_in.store(calls, Ordering::Relaxed);
    }

    pub fn pauses_no_more(&self) {
        self.pause_in.store(u64::MAX, Ordering::Relaxed);
    }

    /// Counts a call and applies the faults that may happen to it.
    fn call(&self) -> Result<(Call, MutexGuard<'_, World>), Error> {
        match self.pause_in.load(Ordering::Relaxed) {
            u64::MAX => {}
            0 => {
                self.pauses_no_more();
                let meanwhile = self.meanwhile.lock().unwrap_or_else(PoisonError::into_inner).take();
                if let Some(meanwhile) = meanwhile {
                    meanwhile();
                }
            }
            left => self.pause_in.store(left - 1, Ordering::Relaxed),
        }
        let call = self.life.call();
        if call == Call::Dead {
            return Err(Error::Closed);
        }
        let mut world = self.broker.world();
        let World { random, weather, .. } = &mut *world;
        let rate = weather.fails / 4;
        if weather.strikes(Fault::Slow, rate, random) {
            self.broker.clock.advance_ms(1 + random.below(40_000));
        }
        Ok((call, world))
    }

    /// Returns whether the call gets no answer because of an outage or a missing leader.
    fn is_unanswered(&self, world: &mut World) -> bool {
        let left = match world.outage {
            0 => &mut world.shelves[self.partition.0 as usize].leaderless,
            _ => &mut world.outage,
        };
        let is_unanswered = *left > 0;
        *left = left.saturating_sub(1);
        is_unanswered
    }

    fn maybe_fails(&self) -> Result<(Call, MutexGuard<'_, World>), Error> {
        let (call, mut world) = self.call()?;
        if call == Call::Dies {
            return Err(Error::Closed);
        }
        let unanswered = self.is_unanswered(&mut world);
        let World { random, weather, .. } = &mut *world;
        let rate = weather.fails;
        if unanswered || weather.strikes(Fault::CallFails, rate, random) {
            return Err(Error::Read("simulated".into()));
        }
        Ok((call, world))
    }

    /// Returns the answer, if the process is still alive to get it.
    fn answer<T>(call: Call, answer: T) -> Result<T, Error> {
        match call {
            Call::Works => Ok(answer),
            Call::WorksUnseen | Call::Dies | Call::Dead => Err(Error::Closed),
        }
    }

    fn read(&self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<(), Error> {
        let partition = self.partition;
        let (call, mut world) = self.maybe_fails()?;
        let shelf = &world.shelves[partition.0 as usize];
        if from.0 < shelf.start() {
            return Err(Error::Gone {
                topic: Topic::Events,
                partition,
                wanted: from,
                start: Offset(shelf.start()),
            });
        }
        let before = into.len();
        let most = self.life.reads_at_most.load(Ordering::Relaxed);
        shelf.read(from, limit.records.min(most), into);
        world.read += (into.len() - before) as u64;
        Handle::answer(call, ())
    }

    fn range(&self) -> Result<Range, Error> {
        let partition = self.partition;
        let (call, world) = self.maybe_fails()?;
        let shelf = &world.shelves[partition.0 as usize];
        let range = Range {
            start: Offset(shelf.start()),
            end: Offset(shelf.end()),
        };
        Handle::answer(call, range)
    }

    fn commit(&self, commit: &Commit) -> Result<(), Error> {
        let partition = self.partition;
        let (call, mut world) = self.call()?;
        let unanswered = self.is_unanswered(&mut world);
        let World {
            random,
            weather,
            shelves,
            wrong,
            ..
        } = &mut *world;
        let shelf = &mut shelves[partition.0 as usize];
        let mut token = self.token.load(Ordering::Relaxed);
        if token != shelf.token {
            match self.broker.bug {
                Some(BrokerBug::FenceIgnored) => {}
                Some(BrokerBug::FreshToken) => {
                    shelf.token += 1;
                    token = shelf.token;
                    self.token.store(token, Ordering::Relaxed);
                }
                Some(BrokerBug::AbortedRead) | None => return Err(Error::Fenced { partition }),
            }
        }
        let records = commit.outputs.iter().filter(|(topic, _)| topic.topic().is_some());
        let records: usize = records.map(|(_, records)| records.len()).sum();
        let rate = weather.fails;
        let failed = Err(Error::Write("simulated".into()));
        self.unsettled.store(true, Ordering::Relaxed);
        // An owner that dies in the middle of a commit leaves a transaction open, which is aborted when the next owner
        // comes.
        let torn = if call == Call::Dies { 500 } else { rate };
        if !unanswered && records > 0 && weather.strikes(Fault::CommitTorn, torn, random) {
            shelf.write(token, commit, 1 + random.index(records));
            return failed;
        }
        if call == Call::Dies {
            return Err(Error::Closed);
        }
        if unanswered || weather.strikes(Fault::CommitLost, rate, random) {
            return failed;
        }
        if records > 0 && weather.strikes(Fault::CommitHalf, rate, random) {
            shelf.commit_half(token, commit, random);
            return failed;
        }
        let flight: CommitInFlight = shelf.write(token, commit, usize::MAX);
        if weather.strikes(Fault::CommitLate, rate, random) {
            shelf.flight.push(flight);
            return failed;
        }
        shelf.decide(flight, wrong);
        if weather.strikes(Fault::CommitKept, rate, random) {
            return failed;
        }
        self.unsettled.store(false, Ordering::Relaxed);
        Handle::answer(call, ())
    }

    fn position(&self) -> Result<Position, Error> {
        let partition = self.partition;
        let (call, mut world) = self.maybe_fails()?;
        let own = self.token.load(Ordering::Relaxed);
        if self.unsettled.swap(false, Ordering::Relaxed) && world.weather.settles_anew {
            self.broker.decide(&mut world, partition, |_| true);
            let shelf = &mut world.shelves[partition.0 as usize];
            if shelf.token != own {
                self.deposed.store(true, Ordering::Relaxed);
            }
            shelf.token += 1;
            self.token.store(shelf.token, Ordering::Relaxed);
        } else {
            self.broker.decide(&mut world, partition, |token| token == own);
        }
        let World {
            random,
            weather,
            shelves,
            ..
        } = &mut *world;
        let shelf = &mut shelves[partition.0 as usize];
        let rate = weather.fails / 4;
        if weather.may(Fault::PositionOld) && random.below(1_000) < rate && shelf.go_back(random) {
            weather.counts.note(Fault::PositionOld);
        }
        if weather.may(Fault::PositionGone) && random.below(1_000) < rate && shelf.lose_position() {
            weather.counts.note(Fault::PositionGone);
        }
        Handle::answer(call, shelf.position)
    }

    fn outputs_end(&self, topic: OutputTopic) -> Result<Offset, Error> {
        let (call, world) = self.maybe_fails()?;
        let count = world.shelves[self.partition.0 as usize].count_of_outputs(topic);
        Handle::answer(call, Offset(count as u64))
    }

    fn outputs(&self, topic: OutputTopic, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<(), Error> {
        let (call, world) = self.maybe_fails()?;
        let from = usize::try_from(from.0).unwrap_or(usize::MAX);
        let read = world.shelves[self.partition.0 as usize].outputs(topic, from, limit.records);
        into.extend(Handle::answer(call, read)?);
        Ok(())
    }

    fn has_position(&self) -> bool {
        self.broker.world().shelves[self.partition.0 as usize].has_position
    }

    fn retain(&self, floor: Offset) -> Result<(), Error> {
        let partition = self.partition;
        let (call, mut world) = self.maybe_fails()?;
        let shelf = &mut world.shelves[partition.0 as usize];
        if shelf.token == self.token.load(Ordering::Relaxed) {
            shelf.floor = shelf.floor.max(floor.0);
        }
        Handle::answer(call, ())
    }
}

/// The simulated partition as the engine sees it.
pub struct SimulatedPartition(pub Arc<Handle>);

impl PartitionEvents for SimulatedPartition {
    fn read(&mut self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<(), Error> {
        self.0.read(from, limit, into)
    }

    fn range(&self) -> Result<Range, Error> {
        self.0.range()
    }
}

impl OwnedPartition for SimulatedPartition {
    fn partition(&self) -> Partition {
        self.0.partition
    }

    fn partitions(&self) -> u32 {
        self.0.broker.partitions
    }

    fn events(&self) -> &dyn PartitionEvents {
        self
    }

    fn events_mut(&mut self) -> &mut dyn PartitionEvents {
        self
    }

    fn commit(&mut self, commit: &Commit) -> Result<(), Error> {
        self.0.commit(commit)
    }

    fn position(&mut self) -> Result<Position, Error> {
        self.0.position()
    }

    fn has_position(&self) -> bool {
        self.0.has_position()
    }

    fn outputs_range(&mut self, topic: OutputTopic) -> Result<Option<Range>, Error> {
        Ok(Some(Range {
            start: Offset(0),
            end: self.0.outputs_end(topic)?,
        }))
    }

    fn read_outputs(
        &mut self,
        topic: OutputTopic,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<(), Error> {
        self.0.outputs(topic, from, limit, into)
    }

    fn confirm(&mut self) -> Result<(), Error> {
        let (call, world) = self.0.maybe_fails()?;
        let partition = self.0.partition;
        let is_owner = world.shelves[partition.0 as usize].token == self.0.token.load(Ordering::Relaxed);
        if !is_owner && self.0.broker.bug.is_none() {
            return Err(Error::Fenced { partition });
        }
        Handle::answer(call, ())
    }

    fn sync(&mut self) -> Result<(), Error> {
        let (call, _world) = self.0.maybe_fails()?;
        Handle::answer(call, ())
    }

    fn retain(&mut self, floor: Offset) -> Result<(), Error> {
        self.0.retain(floor)
    }

    fn keeps_newest(&self) -> bool {
        self.0.broker.world().weather.keeps_current
    }

    fn keeps_headers(&self) -> bool {
        self.keeps_newest()
    }
}
