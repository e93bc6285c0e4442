//! What is published to one partition of a simulated world, and what the oracle says must come of it.
//!
//! The history's events, with poison and bursts among them, each folded by the oracle as it is published. So at any
//! moment the world can be asked what should be in the log.

use super::history::{self, Random};
use super::oracle::Oracle;
use super::oracle_input::partition_of;
use crate::log::{NewRecord, Position, Topic};
use crate::presence::change::Output;
use crate::presence::event::{Event, Intent, Via, Who};
use crate::presence::{Conn, Epoch, LogTime, Offset, Partition};
use crate::schema::avro;
use std::borrow::Cow;
use std::collections::VecDeque;

/// A record to be published.
pub struct Published {
    pub offset: Offset,
    pub ts: u64,
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
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

/// One of the malformed records: where it is and what it is made of.
pub struct Malformed {
    pub offset: Offset,
    pub ts: u64,
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
}

type Planned = (u64, u64, Option<Event<'static>>);

pub struct Input {
    partition: Partition,
    partitions: u32,
    planned: VecDeque<Planned>,
    /// Ticks push the offsets of the plan on.
    shift: u64,
    end: u64,
    last_ts: u64,
    oracle: Oracle,
    pub time: Option<u64>,
    pub expected: Vec<Expected>,
    pub malformed: Vec<Malformed>,
    seq: u64,
    chain: [u8; 32],
    out: Vec<Output>,
}

/// How a record is made unreadable, if it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Spoil {
    No,
    Poison,
    Key,
}

impl Input {
    /// So many records of a seed's history; `burst` devices of one gateway come before them.
    pub fn new(seed: u64, partition: Partition, partitions: u32, records: usize, burst: usize) -> Input {
        let mut planned = VecDeque::new();
        let mut history = history::records(seed, records).peekable();
        let start = history.peek().map_or(0, |(_, ts, _)| *ts);
        let mut shift = 0;
        if burst > 0 {
            let lease = Event::Lease {
                gateway: Cow::Borrowed("gb"),
                epoch: Epoch(1),
                ttl_ms: 30_000,
            };
            planned.push_back((shift, start, Some(lease)));
            let users = (0..).map(|number| format!("burst{number}"));
            let users = users.filter(|user| partition_of(user, partitions) == partition);
            for (number, user) in users.take(burst).enumerate() {
                shift += 1;
                let connect = Event::Connect {
                    who: Who {
                        user: Cow::Owned(user),
                        platform: Cow::Borrowed(["android", "web", "windows"][number % 3]),
                        device: Cow::Borrowed("d"),
                    },
                    via: Via {
                        gateway: Cow::Borrowed("gb"),
                        epoch: Epoch(1),
                        conn: Conn(number as u64),
                    },
                    intent: Intent::Login,
                    client: None,
                };
                planned.push_back((shift, start, Some(connect)));
            }
            shift += 1;
        }
        let policy = history::policy(seed);
        planned.extend(history.map(|(offset, ts, event)| (offset.0 + shift, ts, event)));
        Input {
            partition,
            partitions,
            planned,
            shift: 0,
            end: 0,
            last_ts: start,
            oracle: Oracle::new(partition, policy),
            time: None,
            expected: Vec::new(),
            malformed: Vec::new(),
            seq: 0,
            chain: [0; 32],
            out: Vec::new(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.planned.is_empty()
    }

    pub fn last_ts(&self) -> u64 {
        self.last_ts
    }

    /// The next record of the plan, as it is to be appended.
    pub fn next(&mut self, random: &mut Random, spoil: Spoil) -> Option<Published> {
        let (offset, ts, event) = self.planned.pop_front()?;
        let offset = offset + self.shift;
        let mut value = Vec::new();
        let mut key = None;
        if let Some(event) = &event {
            avro::encode_event(event, &mut value);
            key = event.user().map(|user| user.as_bytes().to_vec());
        }
        let mut event = event;
        match spoil {
            Spoil::No => {}
            Spoil::Key => {
                if key.is_some() {
                    key = random.percent(50).then(|| b"somebody else".to_vec());
                    event = None;
                }
            }
            Spoil::Poison => {
                match random.below(3) {
                    0 => value.clear(),
                    1 => value.truncate(value.len() / 2),
                    _ => value = b"this is no event".to_vec(),
                }
                event = None;
            }
        }
        if event.is_none() && value.is_empty() {
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
        Some(self.publish(offset, ts, key, value, event.as_ref()))
    }

    /// A tick with a time.
    pub fn tick(&mut self, ts: u64) -> Published {
        let mut value = Vec::new();
        avro::encode_event(&Event::Tick, &mut value);
        self.shift += 1;
        self.publish(self.end, ts, None, value, Some(&Event::Tick))
    }

    fn publish(
        &mut self,
        offset: u64,
        ts: u64,
        key: Option<Vec<u8>>,
        value: Vec<u8>,
        event: Option<&Event<'_>>,
    ) -> Published {
        // A tick took the place of a gap in the plan.
        let at = offset.max(self.end);
        self.end = at + 1;
        self.last_ts = ts;
        let offset = Offset(at);
        self.time = Some(self.time.map_or(ts, |time| time.max(ts)));
        self.oracle.fold(offset, ts, event, &mut self.out);
        for output in std::mem::take(&mut self.out) {
            self.expect(&output);
        }
        if event.is_none() {
            self.malformed.push(Malformed {
                offset,
                ts,
                key: key.clone(),
                value: value.clone(),
            });
        }
        Published { offset, ts, key, value }
    }

    fn expect(&mut self, output: &Output) {
        let mut datum = Vec::new();
        let mut value = Vec::new();
        let (id, topic, key) = match output {
            Output::Change(change) => {
                self.seq = change.seq;
                avro::write_change_datum(change, &mut datum);
                avro::encode_change(change, &mut value);
                (change.id, Topic::Changes, &change.user)
            }
            Output::Kick(kick) => {
                avro::write_kick_datum(kick, &mut datum);
                avro::encode_kick(kick, &mut value);
                (kick.id, Topic::Kicks, &kick.gateway)
            }
            Output::Ignored(_) => return,
        };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.chain);
        hasher.update(&datum);
        self.chain = *hasher.finalize().as_bytes();
        self.expected.push(Expected {
            offset: id.offset,
            index: id.index,
            topic,
            record: NewRecord {
                key: Some(key.as_bytes().to_vec()),
                value,
            },
            seq: self.seq,
            chain: self.chain,
        });
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
        };
        (count, malformed, position)
    }

    /// The lines of `fold --state` of all that was published.
    pub fn state_lines(&self) -> String {
        let mut lines = self.oracle.state_lines().join("\n");
        lines.push('\n');
        lines
    }
}

/// The least deadline in lines of state.
pub fn least_deadline(lines: &str) -> Option<LogTime> {
    let deadlines = lines.split(r#","deadline":"#).skip(1);
    let numbers = deadlines.filter_map(|rest| rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok());
    numbers.min().map(LogTime)
}
