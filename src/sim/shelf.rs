//! One partition of the simulated log: what was published, what of it can be read, and what owners have written.
//!
//! Publishers may use transactions. Records after an open transaction cannot be read, and neither can records that are
//! not replicated yet. Aborted records can never be read and leave holes, as markers do. The oracle folds a record
//! when it can be read for the first time: from then on the record must not be lost.
//!
//! Owners also write outputs and position in transactions. Their records are in the topics whether the transaction is
//! committed or not; a reader gets only the records of committed ones. Every commit is compared at once with what the
//! oracle expects, so that a run ends at the first wrong one. At the end the topics are read from their beginning.

use super::input::{Input, Published};
use crate::clock::{Clock as _, ManualClock};
use crate::log::{Commit, Headers, ID_HEADER, NewRecord, OutputRecord, Position, Record, RecordHeaders};
use crate::presence::Offset;
use crate::presence::event::bounds;
use crate::random::Random;
use crate::topics::{OutputTopic, Topic};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

/// A publisher's transaction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Transaction(u64);

/// A record that cannot be read yet, or can never be read.
struct Hidden {
    record: Published,
    transaction: Option<Transaction>,
}

/// A record that an owner's transaction wrote. A reader gets it if the transaction was committed.
struct Written {
    topic: Topic,
    record: NewRecord,
}

/// An owner's commit that is not decided yet.
pub struct CommitInFlight {
    pub token: u64,
    /// Which of the written records belong to it.
    records: Range<usize>,
    current: Vec<OutputRecord>,
    position: Position,
}

pub struct SimulatedLog {
    pub input: Input,
    /// The records that can be read, in order.
    events: VecDeque<Record>,
    start: u64,
    /// The first offset that cannot be read.
    end: u64,
    /// The offset after the last record that could be read.
    shown: u64,
    count: u64,
    hidden: VecDeque<Hidden>,
    transactions: u64,
    open: Vec<Transaction>,
    aborted: Vec<Transaction>,
    /// The replicas do not follow for a while: no record from this offset on can be read.
    replicated: Option<u64>,
    /// A new leader does not know yet that the records from this offset on may be read.
    unknown: Option<u64>,
    /// How far the leader's clock is wrong.
    skew_ms: i64,
    clock: Arc<ManualClock>,
    /// The log's time when it was last set, and the monotonic clock's time at that moment.
    time: (u64, u64),
    /// How many ticks workers have appended.
    pub ticks: u64,
    /// How many of the next calls fail because no broker leads the partition.
    pub leaderless: u64,
    written: Vec<Written>,
    /// Which of the written records were committed, by topic, in order.
    committed: BTreeMap<Topic, Vec<usize>>,
    /// The offsets at which those who follow a topic find them, and where the topic ends.
    offsets: BTreeMap<Topic, (Vec<u64>, u64)>,
    /// The topic of users' states.
    current: Vec<OutputRecord>,
    pub position: Position,
    /// False if no position was ever committed, or if it was lost.
    pub has_position: bool,
    /// The last positions that were committed.
    positions: VecDeque<Position>,
    /// The furthest position that was ever committed.
    pub furthest: Position,
    /// The token of the present owner.
    pub token: u64,
    /// Commits that are not decided yet.
    pub flight: Vec<CommitInFlight>,
    /// The owner does not need the events before this offset any more.
    pub floor: u64,
    /// A planted bug: aborted records can be read.
    pub reads_aborted: bool,
}

/// Returns the header with the id of an output.
fn id_of(headers: &Headers) -> Option<&[u8]> {
    let id = headers.iter().find(|(name, _)| *name == ID_HEADER);
    id.map(|(_, value)| &**value)
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
            offsets: BTreeMap::new(),
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

    /// Returns the first offset that cannot be read, as the leader knows it.
    pub fn end(&self) -> u64 {
        self.unknown.map_or(self.end, |unknown| unknown.min(self.end))
    }

    /// Returns how many records could be read so far.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Returns the offset after the last record that could be read. There may be holes between it and the end.
    pub fn shown(&self) -> Offset {
        Offset(self.shown)
    }

    /// Reads at most this many records from an offset on.
    pub fn read(&self, from: Offset, records: usize, into: &mut Vec<Record>) {
        let first = self.events.partition_point(|record| record.offset < from);
        let end = Offset(self.end());
        let there = self.events.range(first..).take_while(|record| record.offset < end);
        into.extend(there.take(records.max(1)).cloned());
    }

    /// Removes the records before an offset.
    pub fn cut(&mut self, before: u64) {
        self.start = self.start.max(before.min(self.end));
        while self.events.front().is_some_and(|first| first.offset.0 < self.start) {
            self.events.pop_front();
        }
    }

    /// Returns the time that a tick would get. It advances with the clock, but not past the next record of the plan,
    /// so that records that the history puts next to a deadline come next to it.
    pub fn now_ms(&self) -> u64 {
        let (set, since_ms) = self.time;
        let now = set + (self.clock.monotonic_ms() - since_ms);
        let next = self.input.next_ts().map_or(bounds::TIMESTAMP_MAX, |next| next.max(set));
        now.min(next).min(bounds::TIMESTAMP_MAX)
    }

    /// Advances the log's time to this one, if it is earlier.
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

    /// Begins a transaction. Returns `None` while too many are open.
    pub fn begin(&mut self) -> Option<Transaction> {
        if self.open.len() >= 2 {
            return None;
        }
        self.transactions += 1;
        let transaction = Transaction(self.transactions);
        self.open.push(transaction);
        Some(transaction)
    }

    /// Returns the oldest open transaction.
    pub fn first_open(&self) -> Option<Transaction> {
        self.open.first().copied()
    }

    /// Ends a transaction. Does nothing while the replicas do not follow, because the coordinator waits for them.
    pub fn finish(&mut self, transaction: Transaction, committed: bool) {
        if self.replicated.is_some() {
            return;
        }
        if committed {
            self.open.retain(|open| *open != transaction);
        } else {
            self.abort(transaction);
        }
        // The marker takes an offset.
        self.input.place();
        self.show();
    }

    fn abort(&mut self, transaction: Transaction) {
        if self.open.contains(&transaction) {
            self.open.retain(|open| *open != transaction);
            self.aborted.push(transaction);
        }
    }

    /// Makes all records readable that may be read now.
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
                    headers: None,
                });
            }
        }
        if self.hidden.is_empty() {
            self.aborted.clear();
        }
        let first = self.hidden.front().map(|hidden| hidden.record.offset.0);
        self.end = first.unwrap_or_else(|| self.input.end());
    }

    /// From now on the replicas do not follow.
    pub fn lag_behind(&mut self) {
        self.replicated.get_or_insert(self.input.end());
    }

    /// The replicas get everything, and the leader knows it.
    pub fn catch_up(&mut self) {
        self.replicated = None;
        self.unknown = None;
        self.show();
    }

    /// Makes another replica the leader. Records that it does not have are lost, calls fail for a while, it has its
    /// own clock, and at first it does not know how far records may be read.
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
                    // A transaction that has lost records cannot be committed any more.
                    Some(transaction) => self.abort(transaction),
                    // The publisher does not know that the record was written, and sends it again.
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

    /// Ends all faults.
    pub fn calm(&mut self) {
        self.leaderless = 0;
        self.skew_ms = 0;
        self.catch_up();
        // The log itself aborts transactions that stay open for too long.
        while let Some(open) = self.first_open() {
            self.finish(open, false);
        }
    }

    // Owners.

    /// Writes the records of a commit, or only the first of them. The commit is decided later.
    pub fn write(&mut self, token: u64, commit: &Commit, records: usize) -> CommitInFlight {
        let first = self.written.len();
        for (topic, records) in commit.outputs.iter() {
            let Some(topic) = topic.topic() else { continue };
            let records = records.iter().cloned().map(|OutputRecord { key, value, headers }| {
                let value = value.unwrap_or_default();
                let record = NewRecord { key, value, headers };
                Written { topic, record }
            });
            self.written.extend(records);
        }
        self.written
            .truncate(first.saturating_add(records).min(self.written.len()));
        CommitInFlight {
            token,
            records: first..self.written.len(),
            current: commit.outputs.of(OutputTopic::Current).to_vec(),
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

    /// Commits a part of a commit, without its position: the first records of each topic.
    pub fn commit_half(&mut self, token: u64, commit: &Commit, random: &mut Random) {
        let mut part = Commit::default();
        for topic in OutputTopic::ALL {
            let records = commit.outputs.of(topic);
            let first = &records[..random.index(records.len() + 1)];
            part.outputs.extend(topic, first.iter().cloned());
        }
        let flight = self.write(token, &part, usize::MAX);
        self.show_outputs(flight.records);
        self.current.extend(flight.current);
    }

    fn show_outputs(&mut self, records: Range<usize>) {
        for at in records {
            let topic = self.written[at].topic;
            self.committed.entry(topic).or_default().push(at);
            let (offsets, end) = self.offsets.entry(topic).or_default();
            offsets.push(*end);
            *end += 1;
        }
        // The marker of a transaction takes an offset.
        self.offsets.values_mut().for_each(|(_, end)| *end += 1);
    }

    /// Returns the offsets of a topic's committed records for those who follow it, and where the topic ends. There are
    /// holes between them.
    pub fn offsets(&self, topic: Topic) -> (&[u64], u64) {
        let offsets = self.offsets.get(&topic);
        offsets.map_or((&[], 0), |(offsets, end)| (offsets, *end))
    }

    /// Returns how many records of an output topic its owner can read.
    pub fn count_of_outputs(&self, topic: OutputTopic) -> usize {
        match topic.topic() {
            Some(topic) => self.committed.get(&topic).map_or(0, Vec::len),
            None => self.current.len(),
        }
    }

    /// Makes the log return an old position, but none before the first change, since only outputs tell one log from
    /// another. Returns whether there was such a position.
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

    /// Makes the log lose the position. Returns whether that was possible.
    pub fn lose_position(&mut self) -> bool {
        let is_possible = self.has_position && self.furthest.seq > 0;
        if is_possible {
            self.position = Position::default();
            self.has_position = false;
        }
        is_possible
    }

    /// Returns records of an output topic from a number on, as its owner reads them.
    pub fn outputs(&self, topic: OutputTopic, from: usize, records: usize) -> Vec<Record> {
        let record = |at: usize, key: Option<&[u8]>, value: Option<&[u8]>, id: Option<&[u8]>| Record {
            offset: Offset(at as u64),
            ts: 0,
            key: key.map(<[u8]>::to_vec),
            value: value.unwrap_or_default().to_vec(),
            is_null: value.is_none(),
            headers: RecordHeaders {
                id: id.map(Box::from),
                ..RecordHeaders::default()
            }
            .boxed(),
        };
        match topic.topic() {
            Some(topic) => {
                let there = self.committed(topic).enumerate().skip(from).take(records);
                there
                    .map(|(at, new)| record(at, new.key.as_deref(), Some(&new.value), id_of(&new.headers)))
                    .collect()
            }
            None => {
                let there = self.current.iter().enumerate().skip(from).take(records);
                there
                    .map(|(at, state)| record(at, state.key.as_deref(), state.value.as_deref(), id_of(&state.headers)))
                    .collect()
            }
        }
    }

    /// Checks that a commit adds exactly what the oracle expects up to its position and the topics do not have yet.
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
                if !wanted.is(&got.record, id_of(&got.record.headers)) {
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
        if (to.seq, to.chain, to.revision) != (position.seq, position.chain, position.revision) {
            return Err(format!("the position {} has another seq, chain or revision", place(to)));
        }
        Ok(())
    }

    /// Returns the records of a topic that a reader gets.
    pub fn committed(&self, topic: Topic) -> impl Iterator<Item = &NewRecord> {
        let there = self.committed.get(&topic).into_iter().flatten();
        there.map(|at| &self.written[*at].record)
    }

    /// Reads the topics from their beginning and checks that they have all that the oracle expects, each record once,
    /// in order, and nothing else.
    pub fn check_topics(&self, keeps_current: bool) -> Result<(), String> {
        if keeps_current {
            let newest = self.current.iter().cloned();
            let newest: BTreeMap<_, _> = newest
                .map(|record| (record.key.unwrap_or_default(), record.value))
                .collect();
            self.input.check_current(&newest)?;
        }
        for topic in [Topic::Changes, Topic::Kicks] {
            let mut expected = self.input.expected.iter().filter(|expected| expected.topic == topic);
            for (number, got) in self.committed(topic).enumerate() {
                if !expected
                    .next()
                    .is_some_and(|expected| expected.is(got, id_of(&got.headers)))
                {
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
