//! What is published to one partition of a simulated world, and what the oracle says must come of it.
//!
//! The history's events, with poison and bursts among them, each folded by the oracle once it can be read. So at any
//! moment the world can be asked what should be in the log.

use super::broker::FaultRates;
use super::fault::Fault;
use super::history;
use super::oracle::Oracle;
use super::oracle_input::partition_of;
use super::oracle_lines::newest_line;
use crate::log::{NewRecord, Position};
use crate::presence::change::{IgnoreReason, Output};
use crate::presence::event::{ConnRef, DeviceRef, Ending, Event, Intent};
use crate::presence::policy::Policy;
use crate::presence::{Conn, Epoch, LogTime, Offset, Partition, Revision, Status};
use crate::random::Random;
use crate::schema::avro;
use crate::topics::Topic;
use std::borrow::Cow;
use std::collections::{BTreeMap, VecDeque};

/// How many early ends a partition remembers.
const EARLY_ENDS_MAX: usize = 1_024;
/// A little more than a week, which is the longest deadline of the ready policies.
const WEEK_MS: u64 = 8 * 86_400_000;
/// Enough for most events and outputs.
const VALUE_BYTES: usize = 256;

/// A record to be published.
pub struct Published {
    pub offset: Offset,
    pub ts: u64,
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
    pub is_null: bool,
    /// None for a malformed one.
    event: Option<Event<'static>>,
}

/// An output that the oracle expects, with where the chain stands after it.
pub struct Expected {
    pub offset: Offset,
    pub index: u64,
    pub topic: Topic,
    pub record: NewRecord,
    pub seq: u64,
    pub chain: [u8; 32],
}

impl Expected {
    /// Whether it is a record that was written. A record with headers says in them what its output is.
    pub fn is(&self, written: &NewRecord, id: Option<&[u8]>) -> bool {
        let says = |id: &[u8]| id.ends_with(format!("-{}-{}", self.offset, self.index).as_bytes());
        (&self.record.key, &self.record.value) == (&written.key, &written.value) && id.is_none_or(says)
    }
}

/// What came of a record.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct RecordOutcome {
    /// Its event gave a change.
    pub changed: bool,
    /// The first reason why something of it had no effect, and how often there was one.
    pub ignored: Option<(IgnoreReason, u64)>,
    pub is_malformed: bool,
}

impl RecordOutcome {
    fn see(&mut self, output: &Output, offset: Offset) {
        match output {
            // What fired at the record has other evidence.
            Output::Change(change) => self.changed |= change.evidence == offset,
            Output::Kick(_) => {}
            Output::Ignored(ignored) => {
                let (_, count) = self.ignored.get_or_insert((ignored.reason, 0));
                *count += 1;
            }
        }
    }
}

/// One of the malformed records: where it is and what it is made of.
pub struct Malformed {
    pub offset: Offset,
    pub ts: u64,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
}

type Planned = (u64, u64, Option<Event<'static>>);

pub struct Input {
    partition: Partition,
    partitions: u32,
    planned: VecDeque<Planned>,
    /// How many of them are of a burst of thousands, the first ones.
    thousands: usize,
    /// Ticks and markers push the offsets of the plan on, what is lost pulls them back.
    shift: i64,
    /// The next offset.
    end: u64,
    pub last_ts: u64,
    oracle: Oracle,
    pub time: Option<u64>,
    pub expected: Vec<Expected>,
    /// The numbers of the expected outputs, by topic.
    expected_by_topic: BTreeMap<Topic, Vec<usize>>,
    pub malformed: Vec<Malformed>,
    seq: u64,
    chain: [u8; 32],
    out: Vec<Output>,
    /// The lines of the state, once they were asked for.
    lines: Option<String>,
    first_policy: Policy,
    /// The first record that raised the partition to a revision which not every machine knows.
    raised_at: Option<Offset>,
    /// What the oracle has folded.
    folded: Vec<(Offset, u64, Option<Event<'static>>)>,
    /// What came of each of these.
    outcomes: Vec<RecordOutcome>,
    /// An oracle that follows the answers, and how much of that it has folded.
    follower: (Oracle, usize),
}

/// What one gateway publishes before everything else: devices that connect, or connections that end before their
/// connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Burst {
    pub devices: usize,
    pub early_ends: usize,
    /// The gateway names the connections of all its devices by number: once they are there, once it has stopped, and
    /// before anything else happens.
    pub names_all: bool,
    /// More records than the history has.
    pub is_large: bool,
    /// From one connect or end to the next.
    pub step_ms: u64,
    /// The gateway says that it stops, and loses all of them at once.
    pub ends: bool,
    /// Before anything else happens.
    pub lull_ms: u64,
}

impl Burst {
    /// Returns the burst before a partition's history, which has so many records.
    pub fn any(share: usize, weather: &mut FaultRates, random: &mut Random) -> Burst {
        if weather.strikes(Fault::EarlyEnds, 6, random) {
            let early_ends = 1_020 + random.index(12);
            return Burst {
                early_ends,
                is_large: early_ends > share,
                step_ms: *random.pick(&[0, 1, 58]),
                ..Burst::default()
            };
        }
        if weather.strikes(Fault::Burst, 40, random) {
            return Burst {
                devices: share / 2,
                names_all: weather.strikes(Fault::AllAlive, 500, random),
                ..Burst::default()
            };
        }
        let is_due = weather.strikes(Fault::WeekDue, 2, random);
        if is_due || weather.strikes(Fault::GatewayLost, 2, random) {
            let devices = 1_500 + random.index(2_500);
            return Burst {
                devices,
                is_large: devices > share,
                step_ms: *random.pick(&[0, 0, 1, 40]),
                ends: random.percent(50),
                names_all: weather.strikes(Fault::AllAlive, 500, random),
                lull_ms: if is_due { WEEK_MS } else { 0 },
                ..Burst::default()
            };
        }
        Burst::default()
    }

    const GATEWAY: Cow<'static, str> = Cow::Borrowed("gb");
    const EPOCH: Epoch = Epoch(1);

    /// About how many records it has.
    pub fn records(&self) -> usize {
        self.devices + self.early_ends + 16
    }

    fn via(conn: usize) -> ConnRef<'static> {
        ConnRef {
            gateway: Burst::GATEWAY,
            epoch: Burst::EPOCH,
            conn: Conn(conn as u64),
        }
    }

    fn connect(who: DeviceRef<'static>, conn: usize) -> Event<'static> {
        Event::Connect {
            who,
            via: Burst::via(conn),
            intent: Intent::Login,
            client: None,
            auth_at: None,
        }
    }

    fn lease(ttl_ms: u64) -> Event<'static> {
        Event::Lease {
            gateway: Burst::GATEWAY,
            epoch: Burst::EPOCH,
            ttl_ms,
        }
    }

    /// All the devices' connections, and a few that nobody has.
    fn alive(&self) -> Event<'static> {
        Event::Alive {
            gateway: Burst::GATEWAY,
            epoch: Burst::EPOCH,
            conns: (0..self.devices as u64 + 3).map(Conn).collect(),
        }
    }

    fn events(&self, start: u64, partition: Partition, partitions: u32) -> Vec<(u64, Event<'static>)> {
        let mut events = Vec::with_capacity(self.records());
        let users = (0..).map(|number| format!("burst{number}"));
        let mut users = users.filter(|user| partition_of(user, partitions) == partition);
        let mut ts = start;
        if self.devices > 0 {
            events.push((ts, Burst::lease(30_000)));
            for (number, user) in users.by_ref().take(self.devices).enumerate() {
                ts += self.step_ms;
                let who = DeviceRef {
                    user: Cow::Owned(user),
                    platform: Cow::Borrowed(["android", "web", "windows"][number % 3]),
                    device: Cow::Borrowed("d"),
                };
                events.push((ts, Burst::connect(who, number)));
            }
            if self.names_all {
                events.push((ts, self.alive()));
            }
            if self.ends {
                events.push((ts, Burst::lease(0)));
            }
            if self.names_all {
                events.push((ts, self.alive()));
                events.push((ts + self.lull_ms, self.alive()));
            }
        }
        if let Some(user) = users.next().filter(|_| self.early_ends > 0) {
            // Each of a device of its own, so that none is superseded.
            let who = |number: usize| DeviceRef {
                user: Cow::Owned(user.clone()),
                platform: Cow::Borrowed("web"),
                device: Cow::Owned(format!("d{number}")),
            };
            for number in 0..self.early_ends {
                ts += self.step_ms;
                let (who, via) = (who(number), Burst::via(number));
                let end = match number % 3 {
                    0 => Event::Logout { who, via },
                    1 => Event::Disconnect {
                        who,
                        via,
                        reason: Ending::Closed,
                    },
                    _ => Event::Disconnect {
                        who,
                        via,
                        reason: Ending::Exit,
                    },
                };
                events.push((ts, end));
            }
            // The oldest ones, of which some are not remembered any more, and the last ones, to the end of their minute.
            let last = self.early_ends - 1;
            for number in
                (0..6).chain(last.saturating_sub(EARLY_ENDS_MAX + 2)..=last.saturating_sub(EARLY_ENDS_MAX - 3))
            {
                events.push((ts, Burst::connect(who(number), number)));
            }
            let comes = |number: usize| start + (number as u64 + 1) * self.step_ms;
            for (number, span) in [
                (last - 2, 59_999),
                (last - 1, 60_000),
                (last, 59_999),
                (last - 3, 60_000),
            ] {
                events.push((comes(number) + span, Burst::connect(who(number), number)));
            }
        }
        events
    }
}

/// How a record is made unreadable, if it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformation {
    No,
    Poison,
    Key,
}

impl Input {
    /// So many records of a seed's history, after a burst.
    pub fn new(
        seed: u64,
        policy: Policy,
        partition: Partition,
        partitions: u32,
        records: usize,
        burst: Burst,
    ) -> Input {
        let mut history = history::records(seed, records).peekable();
        let start = history.peek().map_or(0, |(_, ts, _)| *ts);
        let mut planned = VecDeque::with_capacity(records + burst.records());
        for (offset, (ts, event)) in (0..).zip(burst.events(start, partition, partitions)) {
            planned.push_back((offset, ts, Some(event)));
        }
        let offset = planned.len() as u64;
        let thousands = if burst.is_large { planned.len() } else { 0 };
        planned.extend(history.map(|(at, ts, event)| (at.0 + offset, ts + burst.lull_ms, event)));
        Input {
            partition,
            partitions,
            planned,
            thousands,
            shift: 0,
            end: 0,
            last_ts: start,
            oracle: Oracle::new(partition, policy.clone()),
            follower: (Oracle::new(partition, policy.clone()), 0),
            first_policy: policy,
            raised_at: None,
            folded: Vec::with_capacity(records + 2 * burst.records()),
            outcomes: Vec::with_capacity(records + 2 * burst.records()),
            time: None,
            expected: Vec::with_capacity(records + 2 * burst.records()),
            expected_by_topic: BTreeMap::new(),
            malformed: Vec::new(),
            seq: 0,
            chain: [0; 32],
            out: Vec::new(),
            lines: None,
        }
    }

    /// Plans a record that raises the partition to the rehearsal of a revision, somewhere in the history.
    pub fn raise(&mut self, random: &mut Random) {
        let place = self.thousands + random.index(self.planned.len() + 1 - self.thousands);
        let next = self.planned.get(place).or(self.planned.back());
        let (offset, ts) = next.map_or((0, self.last_ts), |(offset, ts, _)| (*offset, *ts));
        let Revision(revision) = Revision::REHEARSAL;
        self.planned
            .insert(place, (offset, ts, Some(Event::Revision { revision })));
    }

    /// Where the partition was raised, as far as can be read.
    pub fn raised_at(&self) -> Option<Offset> {
        self.raised_at
    }

    /// When the next record of the plan comes, by the time of the log.
    pub fn next_ts(&self) -> Option<u64> {
        self.planned.front().map(|(_, ts, _)| *ts)
    }

    /// Somebody of whom something was published, mostly.
    pub fn any_user(&self, random: &mut Random) -> String {
        let event = (!self.folded.is_empty()).then(|| &self.folded[random.index(self.folded.len())].2);
        let user = event.and_then(|event| event.as_ref()?.user());
        user.unwrap_or("nobody").to_owned()
    }

    /// Offsets of records that could be read, mostly of the newest ones.
    pub fn some_offsets(&self, most: usize, random: &mut Random) -> Vec<Offset> {
        let count = self.folded.len();
        let from = match random.percent(70) {
            true => count.saturating_sub(2 * most),
            false => 0,
        };
        let any = |_| {
            self.folded
                .get(from + random.index(count - from))
                .map(|(offset, ..)| *offset)
        };
        (0..most).filter_map(any).collect()
    }

    /// What came of a record that could be read.
    pub fn outcome(&self, offset: Offset) -> Option<&RecordOutcome> {
        let place = self.folded.binary_search_by_key(&offset, |(offset, ..)| *offset).ok()?;
        self.outcomes.get(place)
    }

    /// Whether something held before the first record or after any other that could be read.
    pub fn was_ever(&self, mut holds: impl FnMut(&Oracle) -> bool) -> bool {
        let mut oracle = Oracle::new(self.partition, self.first_policy.clone());
        let mut out = Vec::new();
        holds(&oracle)
            || self.folded.iter().any(|(at, ts, event)| {
                oracle.fold(*at, *ts, event.as_ref(), &mut out);
                out.clear();
                holds(&oracle)
            })
    }

    /// What the oracle says as of an offset that could be read.
    pub fn as_of(&mut self, offset: Offset) -> &Oracle {
        let (oracle, done) = &mut self.follower;
        // Answers go back where an owner knows less than another before.
        if done.checked_sub(1).is_some_and(|last| self.folded[last].0 > offset) {
            (*oracle, *done) = (Oracle::new(self.partition, self.first_policy.clone()), 0);
        }
        let mut out = Vec::new();
        while let Some((at, ts, event)) = self.folded.get(*done).filter(|(at, ..)| *at <= offset) {
            oracle.fold(*at, *ts, event.as_ref(), &mut out);
            out.clear();
            *done += 1;
        }
        oracle
    }

    pub fn is_empty(&self) -> bool {
        self.planned.is_empty()
    }

    /// Whether the next records are of a burst of thousands.
    pub fn is_in_thousands(&self) -> bool {
        self.thousands > 0
    }

    /// How many records are still to come.
    pub fn planned(&self) -> usize {
        self.planned.len()
    }

    pub fn end(&self) -> u64 {
        self.end
    }

    /// The next record of the plan, as it is to be appended.
    pub fn next(&mut self, random: &mut Random, spoil: Malformation) -> Option<Published> {
        let (offset, ts, event) = self.planned.pop_front()?;
        self.thousands = self.thousands.saturating_sub(1);
        // Where the plan has a gap there may be something else by now.
        let offset = offset.saturating_add_signed(self.shift).max(self.end);
        self.end = offset + 1;
        let mut value = Vec::with_capacity(VALUE_BYTES);
        let mut key = None;
        if let Some(event) = &event {
            avro::encode_event(event, &mut value);
            key = event.user().map(|user| user.as_bytes().to_vec());
        }
        let mut event = event;
        let mut is_null = false;
        match spoil {
            Malformation::No => {}
            Malformation::Key => {
                if key.is_some() {
                    key = random.percent(50).then(|| b"somebody else".to_vec());
                    event = None;
                }
            }
            Malformation::Poison => {
                match random.below(3) {
                    0 => {
                        value.clear();
                        is_null = random.percent(50);
                    }
                    1 => value.truncate(value.len() / 2),
                    _ => value = b"this is no event".to_vec(),
                }
                event = None;
            }
        }
        if event.is_none() && value.is_empty() && !is_null {
            value = vec![0xff; random.index(4)];
        }
        let stray = |user: &str| partition_of(user, self.partitions) != self.partition;
        let is_stray = match &event {
            Some(Event::Heartbeats { beats, .. }) => beats.iter().any(|beat| stray(&beat.who.user)),
            Some(event) => event.user().is_some_and(stray),
            None => false,
        };
        if is_stray {
            event = None;
        }
        let offset = Offset(offset);
        Some(Published {
            offset,
            ts,
            key,
            value,
            is_null,
            event,
        })
    }

    /// A tick with a time.
    pub fn tick(&mut self, ts: u64) -> Published {
        let mut value = Vec::new();
        avro::encode_event(&Event::Tick, &mut value);
        Published {
            offset: self.place(),
            ts,
            key: None,
            value,
            is_null: false,
            event: Some(Event::Tick),
        }
    }

    /// Takes the next offset for what is not in the plan.
    pub fn place(&mut self) -> Offset {
        self.shift += 1;
        self.end += 1;
        Offset(self.end - 1)
    }

    /// What was from an offset on is lost, and the offsets come again.
    pub fn rewind(&mut self, end: u64) {
        self.shift -= (self.end - end) as i64;
        self.end = end;
    }

    /// Has the oracle fold the next record that can be read.
    pub fn fold(&mut self, record: &mut Published) {
        let Published { offset, ts, .. } = *record;
        self.time = Some(self.time.map_or(ts, |time| time.max(ts)));
        self.lines = None;
        let mut out = std::mem::take(&mut self.out);
        self.oracle.fold(offset, ts, record.event.as_ref(), &mut out);
        let mut outcome = RecordOutcome {
            is_malformed: record.event.is_none(),
            ..RecordOutcome::default()
        };
        for output in out.drain(..) {
            outcome.see(&output, offset);
            self.expect(&output);
        }
        self.outcomes.push(outcome);
        self.out = out;
        if record.event.is_none() {
            self.malformed.push(Malformed {
                offset,
                ts,
                key: record.key.clone(),
                value: (!record.is_null).then(|| record.value.clone()),
            });
        }
        if let Some(Event::Revision { revision }) = record.event
            && Revision(revision) == Revision::REHEARSAL
        {
            self.raised_at.get_or_insert(offset);
        }
        self.folded.push((offset, ts, record.event.take()));
    }

    fn expect(&mut self, output: &Output) {
        let mut value = Vec::with_capacity(VALUE_BYTES);
        let (id, topic, key) = match output {
            Output::Change(change) => {
                self.seq = change.seq;
                avro::encode_change(change, &mut value);
                (change.id, Topic::Changes, &change.user)
            }
            Output::Kick(kick) => {
                avro::encode_kick(kick, &mut value);
                (kick.id, Topic::Kicks, &kick.gateway)
            }
            Output::Ignored(_) => return,
        };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.chain);
        // Over the datum alone.
        hasher.update(&value[avro::SINGLE_OBJECT_BYTES..]);
        self.chain = *hasher.finalize().as_bytes();
        let number = self.expected.len();
        self.expected_by_topic.entry(topic).or_default().push(number);
        self.expected.push(Expected {
            offset: id.offset,
            index: id.index,
            topic,
            record: NewRecord {
                headers: Vec::new(),
                key: Some(key.as_bytes().to_vec()),
                value,
            },
            seq: self.seq,
            chain: self.chain,
        });
    }

    /// Returns the outputs of a topic among the first `of` expected ones, without the first `but` of them.
    pub fn expected_of(&self, topic: Topic, but: usize, of: usize) -> impl Iterator<Item = &Expected> + Clone {
        let numbers = self.expected_by_topic.get(&topic).map_or(&[][..], Vec::as_slice);
        let last = numbers.partition_point(|number| *number < of);
        numbers[but.min(last)..last]
            .iter()
            .map(|number| &self.expected[*number])
    }

    /// How many outputs and malformed records are before a point, and what position that is; its time is left out.
    pub fn before(&self, next: Offset, outputs: u64) -> (usize, usize, Position) {
        let count = self
            .expected
            .partition_point(|expected| (expected.offset, expected.index) < (next, outputs));
        let malformed = self.malformed.partition_point(|malformed| malformed.offset < next);
        let last = count.checked_sub(1).and_then(|last| self.expected.get(last));
        let position = Position {
            next,
            outputs,
            time: None,
            seq: last.map_or(0, |last| last.seq),
            chain: last.map_or([0; 32], |last| last.chain),
            revision: match self.raised_at.is_some_and(|raised| raised < next) {
                true => Revision::REHEARSAL,
                false => Revision::FIRST,
            },
            input: None,
        };
        (count, malformed, position)
    }

    /// When something happens by itself next, by all that was published.
    pub fn next_deadline(&mut self) -> Option<LogTime> {
        self.oracle.next_deadline().map(LogTime)
    }

    /// Whether the newest states of users are what they are.
    pub fn check_current(&self, current: &BTreeMap<Vec<u8>, Option<Vec<u8>>>) -> Result<(), String> {
        let expected = self.oracle.newest();
        for (key, value) in current {
            let user = String::from_utf8_lossy(key);
            let expected = expected.get(&*user);
            let is = match value {
                None => None,
                Some(value) => {
                    let state = avro::decode_user_state(value).map_err(|malformed| malformed.to_string())?;
                    let devices = state.devices.iter().filter(|device| device.status != Status::Offline);
                    let devices = devices.map(|device| (&*device.platform, &*device.device, device.status));
                    let text = state.custom_status.as_deref();
                    Some(newest_line(state.version, state.status, state.since.0, text, devices))
                }
            };
            if is.as_ref() != expected {
                return Err(format!("the newest state of {user} is {is:?} instead of {expected:?}"));
            }
        }
        let missing = expected.keys().find(|user| !current.contains_key(user.as_bytes()));
        missing.map_or(Ok(()), |user| Err(format!("there is no newest state of {user}")))
    }

    /// The lines of `fold --state` of all that was published.
    pub fn state_lines(&mut self) -> &str {
        let Input { lines, oracle, .. } = self;
        lines.get_or_insert_with(|| {
            let mut lines = oracle.state_lines().join("\n");
            lines.push('\n');
            lines
        })
    }
}
