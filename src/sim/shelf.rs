//! One partition of the simulated log: what was published, what of it can be read, and what owners have written.
//!
//! Publishers may use transactions. What stands behind an open one cannot be read, nor what is not replicated yet; what
//! was aborted never can, and leaves holes, as do the markers. The oracle folds a record at the moment at which it can
//! be read for the first time: from then on it must not be lost again.
//!
//! Owners write outputs and position in transactions too. Their records are in the topics whatever comes of them; what
//! a reader is given are those of committed ones. Every commit is held at once against what the oracle expects, so that
//! a run ends at the first wrong one, and in the end the topics are read from their beginning.

use super::history::Random;
use super::input::{Input, Published};
use crate::clock::{Clock as _, ManualClock};
use crate::log::{Commit, CurrentRecord, NewRecord, OutputTopic, Position, Record, Topic};
use crate::presence::Offset;
use crate::presence::event::bounds;
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

/// A publisher's transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transaction(u64);

/// A record that cannot be read yet, or never.
struct Hidden {
    record: Published,
    transaction: Option<Transaction>,
}

/// What owners' transactions wrote: a reader is given what was committed.
struct Written {
    topic: Topic,
    record: NewRecord,
}

/// An owner's commit on its way.
pub struct CommitInFlight {
    pub token: u64,
    /// Of what was written.
    records: Range<usize>,
    current: Vec<CurrentRecord>,
    position: Position,
}

pub struct SimulatedLog {
    pub input: Input,
    /// What can be read, in order.
    events: VecDeque<Record>,
    start: u64,
    /// The first offset that cannot be read.
    end: u64,
    /// After the last record that could be read.
    shown: u64,
    count: u64,
    hidden: VecDeque<Hidden>,
    transactions: u64,
    open: Vec<Transaction>,
    aborted: Vec<Transaction>,
    /// The replicas do not follow for a while: everything from here on cannot be read.
    replicated: Option<u64>,
    /// A new leader does not know yet that what is from here on may be read.
    unknown: Option<u64>,
    /// How far the leader's clock is off.
    skew_ms: i64,
    clock: Arc<ManualClock>,
    /// The time of the log when it was last set, and when that was, by the monotonic clock.
    time: (u64, u64),
    /// How many ticks workers have appended.
    pub ticks: u64,
    /// The first calls from now on that fail: nobody leads the partition.
    pub leaderless: u64,
    written: Vec<Written>,
    /// Of what was written what was committed, by topic, in order.
    committed: BTreeMap<Topic, Vec<usize>>,
    /// The topic of users' states.
    current: Vec<CurrentRecord>,
    pub position: Position,
    /// None was ever committed, or it was lost.
    pub has_position: bool,
    /// The positions that were committed, the last ones.
    positions: VecDeque<Position>,
    /// The furthest that was ever committed.
    pub furthest: Position,
    /// The token of the present owner.
    pub token: u64,
    /// Commits that are on their way.
    pub flight: Vec<CommitInFlight>,
    /// What the owner says it needs no more.
    pub floor: u64,
    /// Bug: what was aborted can be read.
    pub reads_aborted: bool,
}

/// Which topic of every log an output topic is. The topic of users' states belongs to some logs only.
fn of_all(topic: OutputTopic) -> Option<Topic> {
    match topic {
        OutputTopic::Changes => Some(Topic::Changes),
        OutputTopic::Kicks => Some(Topic::Kicks),
        OutputTopic::Quarantine => Some(Topic::Quarantine),
        OutputTopic::Current => None,
    }
}

impl SimulatedLog {
    pub fn new(input: Input, clock: Arc<ManualClock>) -> SimulatedLog {
        SimulatedLog {
            time: (input.last_ts, clock.monotonic_ms()),
            clock,
            ticks: 0,
            events: VecDeque::with_capacity(input.planned()),
            start: 0,
            end: 0,
            shown: 0,
            count: 0,
            hidden: VecDeque::new(),
            transactions: 0,
            open: Vec::new(),
            aborted: Vec::new(),
            replicated: None,
            unknown: None,
            skew_ms: 0,
            leaderless: 0,
            written: Vec::with_capacity(input.planned()),
            committed: BTreeMap::new(),
            current: Vec::new(),
            position: Position::default(),
            has_position: false,
            positions: VecDeque::new(),
            furthest: Position::default(),
            token: 0,
            flight: Vec::new(),
            floor: 0,
            reads_aborted: false,
            input,
        }
    }

    pub fn start(&self) -> u64 {
        self.start
    }

    /// The first offset that cannot be read, as the leader knows it.
    pub fn end(&self) -> u64 {
        self.unknown.map_or(self.end, |unknown| unknown.min(self.end))
    }

    /// How many records could be read so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// What follows the last record that could be read. Holes may be between it and the end.
    pub fn shown(&self) -> Offset {
        Offset(self.shown)
    }

    /// At most so many records from an offset on.
    pub fn read(&self, from: Offset, records: usize, into: &mut Vec<Record>) {
        let first = self.events.partition_point(|record| record.offset < from);
        let end = Offset(self.end());
        let there = self.events.range(first..).take_while(|record| record.offset < end);
        into.extend(there.take(records.max(1)).cloned());
    }

    /// Cuts the front.
    pub fn cut(&mut self, before: u64) {
        self.start = self.start.max(before.min(self.end));
        while self.events.front().is_some_and(|first| first.offset.0 < self.start) {
            self.events.pop_front();
        }
    }

    /// The time that a tick would get. It goes on with the clock, but not past the next record of the plan: what the
    /// history has beside a deadline is to come beside it.
    pub fn now_ms(&self) -> u64 {
        let (set, since_ms) = self.time;
        let now = set + (self.clock.monotonic_ms() - since_ms);
        let next = self.input.next_ts().map_or(bounds::TIMESTAMP_MAX, |next| next.max(set));
        now.min(next).min(bounds::TIMESTAMP_MAX)
    }

    /// The time of the log is not before this one any more.
    pub fn advance_to(&mut self, time: u64) {
        self.time = (self.now_ms().max(time), self.clock.monotonic_ms());
    }

    // Publishers.

    pub fn append(&mut self, mut record: Published, transaction: Option<Transaction>) {
        record.ts = record.ts.saturating_add_signed(self.skew_ms).min(bounds::TIMESTAMP_MAX);
        self.input.last_ts = record.ts;
        self.advance_to(record.ts);
        self.hidden.push_back(Hidden { record, transaction });
        self.show();
    }

    /// None while as many are open as there may be.
    pub fn begin(&mut self) -> Option<Transaction> {
        if self.open.len() >= 2 {
            return None;
        }
        self.transactions += 1;
        let transaction = Transaction(self.transactions);
        self.open.push(transaction);
        Some(transaction)
    }

    /// One that is open, the oldest.
    pub fn first_open(&self) -> Option<Transaction> {
        self.open.first().copied()
    }

    /// Ends a transaction. Not while the replicas do not follow: who coordinates it waits for them.
    pub fn finish(&mut self, transaction: Transaction, committed: bool) {
        if self.replicated.is_some() {
            return;
        }
        if committed {
            self.open.retain(|open| *open != transaction);
        } else {
            self.abort(transaction);
        }
        // Where the marker is.
        self.input.place();
        self.show();
    }

    fn abort(&mut self, transaction: Transaction) {
        if self.open.contains(&transaction) {
            self.open.retain(|open| *open != transaction);
            self.aborted.push(transaction);
        }
    }

    /// Lets be read what can be.
    fn show(&mut self) {
        while let Some(first) = self.hidden.front() {
            let replicated = self
                .replicated
                .is_none_or(|replicated| first.record.offset.0 < replicated);
            let is_in = |some: &[Transaction]| first.transaction.is_some_and(|of| some.contains(&of));
            if !replicated || is_in(&self.open) {
                break;
            }
            let is_aborted = is_in(&self.aborted);
            let Some(Hidden { mut record, .. }) = self.hidden.pop_front() else {
                break;
            };
            if !is_aborted {
                self.input.fold(&mut record);
            }
            if !is_aborted || self.reads_aborted {
                self.count += 1;
                self.shown = record.offset.0 + 1;
                self.events.push_back(Record {
                    offset: record.offset,
                    ts: record.ts,
                    key: record.key,
                    value: record.value,
                    is_null: record.is_null,
                    schema_header: None,
                    traceparent: None,
                });
            }
        }
        if self.hidden.is_empty() {
            self.aborted.clear();
        }
        let first = self.hidden.front().map(|hidden| hidden.record.offset.0);
        self.end = first.unwrap_or_else(|| self.input.end());
    }

    /// From here on the replicas do not follow.
    pub fn lag_behind(&mut self) {
        self.replicated.get_or_insert(self.input.end());
    }

    /// The replicas have everything, and everybody knows it.
    pub fn catch_up(&mut self) {
        self.replicated = None;
        self.unknown = None;
        self.show();
    }

    /// Another replica leads: what it has not is lost, calls fail for a while, it has a clock of its own, and does not
    /// know at first how far may be read.
    pub fn change_leader(&mut self, random: &mut Random) {
        self.leaderless = random.below(6);
        self.skew_ms = *random.pick(&[0, 0, 1, -1, 700, -700, 40_000, -40_000]);
        if let Some(replicated) = self.replicated.take() {
            let kept = self
                .hidden
                .partition_point(|hidden| hidden.record.offset.0 < replicated);
            let lost: Vec<Hidden> = self.hidden.drain(kept..).collect();
            self.input.rewind(replicated);
            for Hidden {
                mut record,
                transaction,
            } in lost
            {
                match transaction {
                    // What is lost in part cannot be committed any more.
                    Some(transaction) => self.abort(transaction),
                    // Its publisher does not know that it is there, and sends it again.
                    None if random.percent(50) => {
                        record.offset = self.input.place();
                        self.hidden.push_back(Hidden { record, transaction });
                    }
                    None => {}
                }
            }
        }
        self.show();
        if random.percent(50) {
            let back = random.below(12);
            self.unknown = Some(self.end.saturating_sub(back));
        }
    }

    /// Nothing goes wrong any more.
    pub fn calm(&mut self) {
        self.leaderless = 0;
        self.skew_ms = 0;
        self.catch_up();
        // As the log does itself with those that stay open for too long.
        while let Some(open) = self.first_open() {
            self.finish(open, false);
        }
    }

    // Owners.

    /// Writes what a commit consists of, or only the first records of it; it is decided later.
    pub fn write(&mut self, token: u64, commit: &Commit, records: usize) -> CommitInFlight {
        let first = self.written.len();
        let topics = [
            (Topic::Changes, &commit.changes),
            (Topic::Kicks, &commit.kicks),
            (Topic::Quarantine, &commit.quarantine),
        ];
        for (topic, records) in topics {
            let records = records.iter().cloned().map(|record| Written { topic, record });
            self.written.extend(records);
        }
        self.written
            .truncate(first.saturating_add(records).min(self.written.len()));
        CommitInFlight {
            token,
            records: first..self.written.len(),
            current: commit.current.clone(),
            position: commit.position,
        }
    }

    /// Commits what was written.
    pub fn decide(&mut self, flight: CommitInFlight, wrong: &mut Option<String>) {
        if wrong.is_none() {
            *wrong = self.check(&flight).err();
        }
        self.show_outputs(flight.records.clone());
        self.position = flight.position;
        self.has_position = true;
        if self.positions.len() >= 8 {
            self.positions.pop_front();
        }
        self.positions.push_back(flight.position);
        let reach = |position: &Position| (position.next, position.outputs);
        if reach(&flight.position) > reach(&self.furthest) {
            self.furthest = flight.position;
        }
        self.current.extend(flight.current);
    }

    /// Commits a part of a commit without its position: of each topic the first records.
    pub fn commit_half(&mut self, token: u64, commit: &Commit, random: &mut Random) {
        let mut first = |records: &[NewRecord]| records[..random.index(records.len() + 1)].to_vec();
        let part = Commit {
            changes: first(&commit.changes),
            kicks: first(&commit.kicks),
            quarantine: first(&commit.quarantine),
            ..Commit::default()
        };
        let current = commit.current[..random.index(commit.current.len() + 1)].to_vec();
        let flight = self.write(token, &part, usize::MAX);
        self.show_outputs(flight.records);
        self.current.extend(current);
    }

    fn show_outputs(&mut self, records: Range<usize>) {
        for at in records {
            self.committed.entry(self.written[at].topic).or_default().push(at);
        }
    }

    /// How many records of an output topic its owner can read.
    pub fn count_of_outputs(&self, topic: OutputTopic) -> usize {
        match of_all(topic) {
            Some(topic) => self.committed.get(&topic).map_or(0, Vec::len),
            None => self.current.len(),
        }
    }

    /// The log gives an old position back. Not one before the first change: outputs are what tells one log from another.
    pub fn go_back(&mut self, random: &mut Random) -> bool {
        let reach = |position: &Position| (position.next, position.outputs);
        let is_old = |old: &&Position| old.seq > 0 && reach(old) <= reach(&self.position);
        let old: Vec<Position> = self.positions.iter().filter(is_old).copied().collect();
        let is_possible = !old.is_empty();
        if is_possible {
            self.position = *random.pick(&old);
        }
        is_possible
    }

    /// The log has lost the position.
    pub fn lose_position(&mut self) -> bool {
        let is_possible = self.has_position && self.furthest.seq > 0;
        if is_possible {
            self.position = Position::default();
            self.has_position = false;
        }
        is_possible
    }

    /// The records of an output topic from one on, as its owner reads them.
    pub fn outputs(&self, topic: OutputTopic, from: usize, records: usize) -> Vec<Record> {
        let record = |at: usize, key: Option<&[u8]>, value: Option<&[u8]>| Record {
            offset: Offset(at as u64),
            ts: 0,
            key: key.map(<[u8]>::to_vec),
            value: value.unwrap_or_default().to_vec(),
            is_null: value.is_none(),
            schema_header: None,
            traceparent: None,
        };
        match of_all(topic) {
            Some(topic) => {
                let there = self.committed(topic).enumerate().skip(from).take(records);
                there
                    .map(|(at, new)| record(at, new.key.as_deref(), Some(&new.value)))
                    .collect()
            }
            None => {
                let there = self.current.iter().enumerate().skip(from).take(records);
                there
                    .map(|(at, state)| record(at, Some(&state.key), state.value.as_deref()))
                    .collect()
            }
        }
    }

    /// Whether a commit adds exactly what the oracle expects up to its position and is not there yet.
    fn check(&self, commit: &CommitInFlight) -> Result<(), String> {
        let (from, to) = (self.position, commit.position);
        let place = |position: Position| format!("({}, {})", position.next, position.outputs);
        if (to.next, to.outputs) < (from.next, from.outputs) {
            return Err(format!("a commit goes back from {} to {}", place(from), place(to)));
        }
        if to.next > self.shown() {
            return Err(format!("a commit is at {}, past the end {}", place(to), self.shown));
        }
        let of = || format!("the commit from {} to {}", place(from), place(to));
        let (last, last_malformed, position) = self.input.before(to.next, to.outputs);
        let written = &self.written[commit.records.clone()];
        let records = |topic: Topic| written.iter().filter(move |written| written.topic == topic);
        for topic in [Topic::Changes, Topic::Kicks] {
            let there = self.committed.get(&topic).map_or(0, Vec::len);
            let expected = self.input.expected_of(topic, there, last);
            for (number, (wanted, got)) in expected.clone().zip(records(topic)).enumerate() {
                if wanted.record != got.record {
                    return Err(format!(
                        "of {}, number {number} of {topic} is not that of offset {} index {}",
                        of(),
                        wanted.offset,
                        wanted.index
                    ));
                }
            }
            let (are, should) = (records(topic).count(), expected.count());
            if are != should {
                return Err(format!("{} has {are} {topic} instead of {should}", of()));
            }
        }
        let first_malformed = self.count_of_outputs(OutputTopic::Quarantine).min(last_malformed);
        let expected = &self.input.malformed[first_malformed..last_malformed];
        let quarantined = || records(Topic::Quarantine);
        let same = expected.iter().zip(quarantined()).all(|(expected, got)| {
            crate::schema::avro::decode_quarantined(&got.record.value).is_ok_and(|got| {
                (got.offset, got.ts, got.key.as_deref(), got.value.as_deref())
                    == (
                        expected.offset,
                        expected.ts,
                        expected.key.as_deref(),
                        expected.value.as_deref(),
                    )
            })
        });
        let (are, should) = (quarantined().count(), expected.len());
        if !same || are != should {
            return Err(format!("{} has {are} quarantined instead of {should}, or others", of()));
        }
        if (to.seq, to.chain) != (position.seq, position.chain) {
            return Err(format!("the position {} has another seq or chain", place(to)));
        }
        Ok(())
    }

    /// The records of a topic as a reader is given them.
    pub fn committed(&self, topic: Topic) -> impl Iterator<Item = &NewRecord> {
        let there = self.committed.get(&topic).into_iter().flatten();
        there.map(|at| &self.written[*at].record)
    }

    /// Reads the topics from their beginning: all that the oracle expects, each once, in order, and nothing else.
    pub fn check_topics(&self, keeps_current: bool) -> Result<(), String> {
        if keeps_current {
            let newest = self.current.iter().cloned();
            let newest: BTreeMap<_, _> = newest.map(|record| (record.key, record.value)).collect();
            self.input.check_current(&newest)?;
        }
        for topic in [Topic::Changes, Topic::Kicks] {
            let mut expected = self.input.expected.iter().filter(|expected| expected.topic == topic);
            for (number, got) in self.committed(topic).enumerate() {
                if expected.next().is_none_or(|expected| expected.record != *got) {
                    return Err(format!("number {number} of {topic} is not the one expected"));
                }
            }
            let missing = expected.count();
            if missing > 0 {
                return Err(format!("{missing} {topic} are missing"));
            }
        }
        let (are, should) = (self.committed(Topic::Quarantine).count(), self.input.malformed.len());
        if are != should {
            return Err(format!("there are {are} quarantined instead of {should}"));
        }
        Ok(())
    }
}
