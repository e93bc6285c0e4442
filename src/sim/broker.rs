//! A simulated log, as hard as a distant one: calls fail, take long or never come back; commits fail and are there all
//! the same, or arrive later; an owner that was deposed is refused.
//!
//! Each owner has a [`Handle`] with a token of its own. Whoever takes a partition over gets the next token, and from
//! then on the one before is fenced. What the engine may rely on: a commit whose outcome is unknown is decided, one
//! way or the other, when its owner asks for the position or when another owner takes over.
//!
//! Every commit is held at once against what the oracle expects, so that a run ends at the first wrong one.

use super::fault::{Counts, Fault};
use super::history::Random;
use super::input::{Input, Published};
use crate::clock::ManualClock;
use crate::log::{Acknowledge, Commit, Error, Limit, Listener, Log, NewRecord, Position, Range, Record, Topic};
use crate::presence::{Offset, Partition};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Which faults may happen, and how often things go wrong.
#[derive(Clone, Debug, Default)]
pub struct Weather {
    pub without: Vec<Fault>,
    /// Of a thousand calls.
    pub fails: u64,
    /// Nothing goes wrong any more.
    pub calm: bool,
    pub counts: Counts,
}

impl Weather {
    pub fn may(&self, fault: Fault) -> bool {
        !self.calm && !self.without.contains(&fault)
    }

    /// Whether the fault happens, by a chance of so many in a thousand.
    pub fn strikes(&mut self, fault: Fault, per_mille: u64, random: &mut Random) -> bool {
        let strikes = self.may(fault) && random.below(1_000) < per_mille;
        if strikes {
            self.counts.note(fault);
        }
        strikes
    }
}

/// Bugs of the log's side that are planted to see whether they are found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BrokerBug {
    /// Nobody is ever refused.
    FenceIgnored,
    /// Who is refused takes a new token and sends the same again.
    FreshToken,
}

pub struct Broker {
    world: Mutex<World>,
    clock: Arc<ManualClock>,
    partitions: u32,
    bug: Option<BrokerBug>,
}

pub struct World {
    pub random: Random,
    pub weather: Weather,
    pub shelves: Vec<Shelf>,
    /// The first thing that was wrong.
    pub wrong: Option<String>,
    /// How many records were handed out.
    pub read: u64,
}

/// One partition.
pub struct Shelf {
    pub input: Input,
    events: VecDeque<Record>,
    start: u64,
    end: u64,
    count: u64,
    pub outputs: Vec<NewRecord>,
    pub quarantined: usize,
    pub position: Position,
    /// The token of the present owner.
    token: u64,
    /// Commits that are on their way.
    flight: Vec<(u64, Commit)>,
    /// What the owner says it needs no more.
    pub floor: u64,
}

/// Whether a process lives. Its calls of log and store count down to its death.
pub struct Life {
    dead: AtomicBool,
    calls_left: AtomicU64,
    /// What is called last has its effect.
    last_works: AtomicBool,
}

/// What becomes of a call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Call {
    Works,
    /// It has its effect, but nobody lives to see it.
    WorksUnseen,
    Dead,
}

impl Life {
    pub fn new() -> Arc<Life> {
        Arc::new(Life {
            dead: AtomicBool::new(false),
            calls_left: AtomicU64::new(u64::MAX),
            last_works: AtomicBool::new(false),
        })
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
            Call::Dead
        }
    }
}

impl Broker {
    pub fn new(inputs: Vec<Input>, random: Random, weather: Weather, clock: Arc<ManualClock>) -> Broker {
        let shelf = |input| Shelf {
            input,
            events: VecDeque::new(),
            start: 0,
            end: 0,
            count: 0,
            outputs: Vec::new(),
            quarantined: 0,
            position: Position::default(),
            token: 0,
            flight: Vec::new(),
            floor: 0,
        };
        Broker {
            partitions: u32::try_from(inputs.len()).unwrap_or(u32::MAX),
            world: Mutex::new(World {
                random,
                weather,
                shelves: inputs.into_iter().map(shelf).collect(),
                wrong: None,
                read: 0,
            }),
            clock,
            bug: None,
        }
    }

    pub fn with_bug(mut self, bug: Option<BrokerBug>) -> Broker {
        self.bug = bug;
        self
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn append(&self, partition: Partition, record: Published) {
        let mut world = self.world();
        let shelf = &mut world.shelves[partition.0 as usize];
        shelf.end = record.offset.0 + 1;
        shelf.count += 1;
        shelf.events.push_back(Record {
            offset: record.offset,
            ts: record.ts,
            key: record.key,
            value: record.value,
            is_null: false,
        });
    }

    /// The next owner's token. What is on its way from the one before is decided.
    pub fn take_over(&self, partition: Partition) -> u64 {
        self.decide(partition, |_| true);
        let mut world = self.world();
        let shelf = &mut world.shelves[partition.0 as usize];
        shelf.token += 1;
        shelf.token
    }

    /// Decides what is on its way and of these tokens: it arrives or never does.
    fn decide(&self, partition: Partition, of: impl Fn(u64) -> bool) {
        if self.bug == Some(BrokerBug::FenceIgnored) {
            return;
        }
        let mut world = self.world();
        let World {
            random, shelves, wrong, ..
        } = &mut *world;
        let shelf = &mut shelves[partition.0 as usize];
        for (token, commit) in std::mem::take(&mut shelf.flight) {
            if !of(token) {
                shelf.flight.push((token, commit));
            } else if token == shelf.token && random.percent(50) {
                shelf.apply(commit, wrong);
            }
        }
    }

    /// What is on its way arrives, and is refused if its owner was deposed.
    pub fn deliver(&self, partition: Partition) {
        let mut world = self.world();
        let World { shelves, wrong, .. } = &mut *world;
        let shelf = &mut shelves[partition.0 as usize];
        for (token, commit) in std::mem::take(&mut shelf.flight) {
            if token == shelf.token || self.bug == Some(BrokerBug::FenceIgnored) {
                shelf.apply(commit, wrong);
            }
        }
    }

    /// Cuts the front.
    pub fn cut(&self, partition: Partition, before: u64) {
        let mut world = self.world();
        let shelf = &mut world.shelves[partition.0 as usize];
        shelf.start = shelf.start.max(before.min(shelf.end));
        while shelf.events.front().is_some_and(|first| first.offset.0 < shelf.start) {
            shelf.events.pop_front();
        }
    }
}

impl Shelf {
    pub fn start(&self) -> u64 {
        self.start
    }

    pub fn end(&self) -> u64 {
        self.end
    }

    /// How many records were published.
    pub fn count(&self) -> u64 {
        self.count
    }

    fn apply(&mut self, commit: Commit, wrong: &mut Option<String>) {
        let found = self.check(&commit).err();
        if wrong.is_none() {
            *wrong = found;
        }
        self.quarantined += commit.quarantine.len();
        self.outputs.extend(commit.changes);
        self.outputs.extend(commit.kicks);
        self.position = commit.position;
    }

    /// Whether a commit adds exactly what the oracle expects between the position before and its own.
    fn check(&self, commit: &Commit) -> Result<(), String> {
        let to = commit.position;
        let place = |position: Position| format!("({}, {})", position.next, position.outputs);
        let from = self.position;
        if (to.next, to.outputs) < (from.next, from.outputs) {
            return Err(format!("a commit goes back from {} to {}", place(from), place(to)));
        }
        if to.next.0 > self.end {
            return Err(format!("a commit is at {}, past the end {}", place(to), self.end));
        }
        let (first, first_malformed, _) = self.input.before(from.next, from.outputs);
        let (last, last_malformed, position) = self.input.before(to.next, to.outputs);
        let expected = &self.input.expected[first..last];
        for (topic, records) in [(Topic::Changes, &commit.changes), (Topic::Kicks, &commit.kicks)] {
            let expected: Vec<_> = expected.iter().filter(|expected| expected.topic == topic).collect();
            for (number, (wanted, got)) in expected.iter().zip(records).enumerate() {
                if wanted.record != *got {
                    return Err(format!(
                        "of the commit from {} to {}, number {number} of {topic} is not that of offset {} index {}",
                        place(from),
                        place(to),
                        wanted.offset,
                        wanted.index
                    ));
                }
            }
            if expected.len() != records.len() {
                return Err(format!(
                    "the commit from {} to {} has {} {topic} instead of {}",
                    place(from),
                    place(to),
                    records.len(),
                    expected.len()
                ));
            }
        }
        let expected = &self.input.malformed[first_malformed..last_malformed];
        let same = expected.len() == commit.quarantine.len()
            && expected.iter().zip(&commit.quarantine).all(|(expected, got)| {
                crate::schema::avro::decode_quarantined(&got.value).is_ok_and(|got| {
                    (got.offset, got.ts, got.key.as_deref(), got.value.as_deref())
                        == (
                            expected.offset,
                            expected.ts,
                            expected.key.as_deref(),
                            Some(&*expected.value),
                        )
                })
            });
        if !same {
            return Err(format!(
                "the commit from {} to {} has {} quarantined instead of {}, or others",
                place(from),
                place(to),
                commit.quarantine.len(),
                expected.len()
            ));
        }
        if (to.seq, to.chain) != (position.seq, position.chain) {
            return Err(format!("the position {} has another seq or chain", place(to)));
        }
        Ok(())
    }
}

/// What happens to others while this owner stands still.
pub type Meanwhile = Box<dyn FnOnce() + Send>;

/// One owner's way to the log.
pub struct Handle {
    broker: Arc<Broker>,
    partition: Partition,
    token: AtomicU64,
    life: Arc<Life>,
    /// After so many calls.
    pause: Mutex<Option<(u64, Meanwhile)>>,
}

impl Handle {
    pub fn new(broker: Arc<Broker>, partition: Partition, token: u64, life: Arc<Life>) -> Handle {
        Handle {
            broker,
            partition,
            token: AtomicU64::new(token),
            life,
            pause: Mutex::new(None),
        }
    }

    pub fn is_present(&self) -> bool {
        self.broker.world().shelves[self.partition.0 as usize].token == self.token.load(Ordering::Relaxed)
    }

    /// Within the call after so many, something else happens before the call has its effect.
    pub fn pause_after(&self, calls: u64, meanwhile: Meanwhile) {
        *self.pause.lock().unwrap_or_else(PoisonError::into_inner) = Some((calls, meanwhile));
    }

    pub fn pauses_no_more(&self) {
        self.pause.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Counts a call and lets what may befall it befall it.
    fn call(&self) -> Result<Call, Error> {
        let meanwhile = {
            let mut pause = self.pause.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *pause {
                Some((0, _)) => pause.take(),
                Some((left, _)) => {
                    *left -= 1;
                    None
                }
                None => None,
            }
        };
        if let Some((_, meanwhile)) = meanwhile {
            meanwhile();
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
        Ok(call)
    }

    fn maybe_fails(&self) -> Result<Call, Error> {
        let call = self.call()?;
        let mut world = self.broker.world();
        let World { random, weather, .. } = &mut *world;
        let rate = weather.fails;
        if weather.strikes(Fault::CallFails, rate, random) {
            return Err(Error::Read("simulated".into()));
        }
        Ok(call)
    }

    /// The answer, if anybody lives to hear it.
    fn answer<T>(call: Call, answer: T) -> Result<T, Error> {
        match call {
            Call::Works => Ok(answer),
            Call::WorksUnseen | Call::Dead => Err(Error::Closed),
        }
    }
}

impl Log for Handle {
    fn take_up(self: Arc<Self>, _: Partition) -> Result<Arc<dyn Log>, Error> {
        Ok(self)
    }

    fn partitions(&self) -> u32 {
        self.broker.partitions
    }

    fn append(&self, _records: Vec<(Partition, NewRecord)>, acknowledge: Acknowledge) {
        // Only the world publishes.
        acknowledge(Err(Error::Closed));
    }

    fn read(
        &self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<(), Error> {
        let call = self.maybe_fails()?;
        let mut world = self.broker.world();
        let shelf = &world.shelves[partition.0 as usize];
        if from.0 < shelf.start {
            return Err(Error::Gone {
                topic,
                partition,
                wanted: from,
                start: Offset(shelf.start),
            });
        }
        let first = shelf.events.partition_point(|record| record.offset < from);
        let before = into.len();
        into.extend(shelf.events.range(first..).take(limit.records.max(1)).cloned());
        world.read += (into.len() - before) as u64;
        Handle::answer(call, ())
    }

    fn range(&self, _topic: Topic, partition: Partition) -> Result<Range, Error> {
        let call = self.maybe_fails()?;
        let world = self.broker.world();
        let shelf = &world.shelves[partition.0 as usize];
        let range = Range {
            start: Offset(shelf.start),
            end: Offset(shelf.end),
        };
        Handle::answer(call, range)
    }

    fn commit(&self, partition: Partition, commit: Commit) -> Result<(), Error> {
        let call = self.call()?;
        let mut world = self.broker.world();
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
                None => return Err(Error::Fenced { partition }),
            }
        }
        let rate = weather.fails;
        let failed = Err(Error::Write("simulated".into()));
        if weather.strikes(Fault::CommitLost, rate, random) {
            return failed;
        }
        if weather.strikes(Fault::CommitLate, rate, random) {
            shelf.flight.push((token, commit));
            return failed;
        }
        shelf.apply(commit, wrong);
        if weather.strikes(Fault::CommitKept, rate, random) {
            return failed;
        }
        Handle::answer(call, ())
    }

    fn position(&self, partition: Partition) -> Result<Position, Error> {
        let call = self.maybe_fails()?;
        let own = self.token.load(Ordering::Relaxed);
        self.broker.decide(partition, |token| token == own);
        let position = self.broker.world().shelves[partition.0 as usize].position;
        Handle::answer(call, position)
    }

    fn sync(&self) -> Result<(), Error> {
        let call = self.maybe_fails()?;
        Handle::answer(call, ())
    }

    fn retain(&self, partition: Partition, floor: Offset) -> Result<(), Error> {
        let call = self.maybe_fails()?;
        if self.is_present() {
            let mut world = self.broker.world();
            let shelf = &mut world.shelves[partition.0 as usize];
            shelf.floor = shelf.floor.max(floor.0);
        }
        Handle::answer(call, ())
    }

    fn listen(&self, _listener: Listener) {
        // The world calls whom it wants to.
    }
}
