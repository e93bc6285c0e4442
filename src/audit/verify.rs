//! Folds a partition's events again and compares record for record with what its topics hold.

use crate::presence::change::{Change, Kick, Output};
use crate::presence::event::Event;
use crate::presence::policy::Policy;
use crate::presence::state::{HashSeed, State};
use crate::presence::{LogTime, Offset, Partition};
use crate::schema::avro;
use crate::schema::json;
use serde::Serialize;
use serde_json::value::RawValue;
use std::collections::VecDeque;

/// The topics that are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compared {
    Changes,
    Kicks,
    Quarantine,
}

impl Compared {
    pub fn name(self) -> &'static str {
        match self {
            Compared::Changes => "changes",
            Compared::Kicks => "kicks",
            Compared::Quarantine => "quarantine",
        }
    }
}

/// A malformed event, as the quarantine keeps it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QuarantinedEvent {
    pub offset: Offset,
    pub ts: u64,
    pub error: String,
    pub key: Option<Vec<u8>>,
    pub value: Option<Vec<u8>>,
}

/// Folds one partition and holds what it gives until it is compared.
///
/// The caller feeds events and found outputs in their order: [`Verifier::fold`] adds what is expected, `found_…` take the next
/// record of a topic. Both sides may be ahead of each other; the caller bounds by how much ([`Verifier::expected`]).
pub struct Verifier {
    state: State,
    changes: Side<Change>,
    kicks: Side<Kick>,
    quarantined: Side<QuarantinedEvent>,
    chain: [u8; 32],
    datum: Vec<u8>,
    events: u64,
    from: Option<LogTime>,
}

/// Outputs of one topic that were folded and not yet found.
struct Side<T> {
    expected: VecDeque<T>,
    count: u64,
}

impl<T> Default for Side<T> {
    fn default() -> Side<T> {
        Side {
            expected: VecDeque::new(),
            count: 0,
        }
    }
}

/// The first record that is not what the events say.
#[derive(Serialize, Clone, Debug)]
pub struct Difference {
    pub partition: u32,
    pub verified: bool,
    /// Of the event whose output differs.
    pub offset: u64,
    pub topic: &'static str,
    /// What the topic has; null: nothing.
    pub found: Option<Box<RawValue>>,
    /// What the events give; null: nothing.
    pub expected: Option<Box<RawValue>>,
}

/// A partition in which everything is as the events say.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub struct Verified {
    pub partition: u32,
    pub verified: bool,
    pub events: u64,
    pub changes: u64,
    pub kicks: u64,
    pub quarantined: u64,
    /// Log time of the first and of the last event; null without events.
    pub from: Option<u64>,
    pub to: Option<u64>,
    /// The chain over all outputs, in hexadecimal.
    pub head: String,
}

impl Verifier {
    pub fn new(partition: Partition, policy: Policy, seed: HashSeed) -> Verifier {
        Verifier {
            state: State::seeded(partition, policy, seed),
            changes: Side::default(),
            kicks: Side::default(),
            quarantined: Side::default(),
            chain: [0; 32],
            datum: Vec::new(),
            events: 0,
            from: None,
        }
    }

    /// Folds the next event, or a malformed record. `heads` is called with the chain after each output.
    pub fn fold(
        &mut self,
        offset: Offset,
        ts: u64,
        event: Result<&Event<'_>, QuarantinedEvent>,
        heads: &mut dyn FnMut(&[u8; 32]),
    ) {
        let Verifier {
            state,
            changes,
            kicks,
            chain,
            datum,
            ..
        } = self;
        let event = match event {
            Ok(event) => Some(event),
            Err(malformed) => {
                self.quarantined.expect(malformed);
                None
            }
        };
        state.fold(offset, ts, event, &mut |output| {
            datum.clear();
            match output {
                Output::Change(change) => {
                    avro::write_change_datum(&change, datum);
                    changes.expect(change);
                }
                Output::Kick(kick) => {
                    avro::write_kick_datum(&kick, datum);
                    kicks.expect(kick);
                }
                Output::Ignored(_) => return,
            }
            *chain = extend_chain(chain, datum);
            heads(chain);
        });
        self.events += 1;
        self.from = self.from.or(self.state.time());
        if self.events.is_multiple_of(RECYCLE_EVERY) {
            self.state.take_dirt();
        }
    }

    /// Returns how many folded outputs of a topic wait to be found.
    pub fn expected(&self, topic: Compared) -> usize {
        match topic {
            Compared::Changes => self.changes.expected.len(),
            Compared::Kicks => self.kicks.expected.len(),
            Compared::Quarantine => self.quarantined.expected.len(),
        }
    }

    /// Compares the next record of the change topic.
    pub fn found_change(&mut self, found: &Change) -> Result<(), Box<Difference>> {
        let expected = self.changes.expected.pop_front();
        self.compare(Compared::Changes, Some(found), expected.as_ref(), |change| {
            (change.id.offset, output_json(&Output::Change(change.clone())))
        })
    }

    /// Compares the next record of the kick topic.
    pub fn found_kick(&mut self, found: &Kick) -> Result<(), Box<Difference>> {
        let expected = self.kicks.expected.pop_front();
        self.compare(Compared::Kicks, Some(found), expected.as_ref(), |kick| {
            (kick.id.offset, output_json(&Output::Kick(kick.clone())))
        })
    }

    /// Compares the next record of the quarantine.
    pub fn found_malformed(&mut self, found: &QuarantinedEvent) -> Result<(), Box<Difference>> {
        let expected = self.quarantined.expected.pop_front();
        self.compare(Compared::Quarantine, Some(found), expected.as_ref(), malformed_json)
    }

    /// Reports the first folded output of a topic that its topic does not have, to be called when the topic has no more records.
    pub fn missing(&mut self, topic: Compared) -> Result<(), Box<Difference>> {
        match topic {
            Compared::Changes => {
                let expected = self.changes.expected.pop_front();
                self.compare(topic, None, expected.as_ref(), |change| {
                    (change.id.offset, output_json(&Output::Change(change.clone())))
                })
            }
            Compared::Kicks => {
                let expected = self.kicks.expected.pop_front();
                self.compare(topic, None, expected.as_ref(), |kick| {
                    (kick.id.offset, output_json(&Output::Kick(kick.clone())))
                })
            }
            Compared::Quarantine => {
                let expected = self.quarantined.expected.pop_front();
                self.compare(topic, None, expected.as_ref(), malformed_json)
            }
        }
    }

    /// Drops what was folded for a topic that is not compared.
    pub fn skip(&mut self, topic: Compared) {
        match topic {
            Compared::Changes => self.changes.expected.clear(),
            Compared::Kicks => self.kicks.expected.clear(),
            Compared::Quarantine => self.quarantined.expected.clear(),
        }
    }

    /// Returns the chain over the outputs so far, and how many changes there are.
    pub fn head(&self) -> ([u8; 32], u64) {
        (self.chain, self.changes.count)
    }

    /// Returns the difference between the chain and another that it should be, or should have passed through.
    pub fn other_head(&self, topic: &'static str, found: Option<&[u8; 32]>) -> Box<Difference> {
        let text = |chain: &[u8; 32]| RawValue::from_string(format!("\"{}\"", hex(chain))).ok();
        Box::new(Difference {
            partition: self.state.partition().0,
            verified: false,
            offset: self.state.offset().map_or(0, |offset| offset.0),
            topic,
            found: found.and_then(text),
            expected: text(&self.chain),
        })
    }

    /// Returns the summary of a partition without a difference.
    pub fn verified(&self) -> Verified {
        Verified {
            partition: self.state.partition().0,
            verified: true,
            events: self.events,
            changes: self.changes.count,
            kicks: self.kicks.count,
            quarantined: self.quarantined.count,
            from: self.from.map(|time| time.0),
            to: self.state.time().map(|time| time.0),
            head: hex(&self.chain),
        }
    }

    fn compare<T: PartialEq>(
        &self,
        topic: Compared,
        found: Option<&T>,
        expected: Option<&T>,
        shown: impl Fn(&T) -> (Offset, Option<Box<RawValue>>),
    ) -> Result<(), Box<Difference>> {
        if found == expected {
            return Ok(());
        }
        let (found, expected) = (found.map(&shown), expected.map(&shown));
        let offset = expected
            .as_ref()
            .or(found.as_ref())
            .map_or(Offset(0), |(offset, _)| *offset);
        Err(Box::new(Difference {
            partition: self.state.partition().0,
            verified: false,
            offset: offset.0,
            topic: topic.name(),
            found: found.and_then(|(_, json)| json),
            expected: expected.and_then(|(_, json)| json),
        }))
    }
}

/// What was forgotten is let go of after so many records.
const RECYCLE_EVERY: u64 = 10_000;

impl<T> Side<T> {
    fn expect(&mut self, output: T) {
        self.expected.push_back(output);
        self.count += 1;
    }
}

/// Returns the chain with one more output, given by its Avro datum.
fn extend_chain(chain: &[u8; 32], datum: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(chain);
    hasher.update(datum);
    *hasher.finalize().as_bytes()
}

/// Writes bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn output_json(output: &Output) -> Option<Box<RawValue>> {
    let mut line = Vec::new();
    json::output_line(&mut line, output);
    String::from_utf8(line)
        .ok()
        .and_then(|line| RawValue::from_string(line).ok())
}

fn malformed_json(malformed: &QuarantinedEvent) -> (Offset, Option<Box<RawValue>>) {
    let mut line = Vec::new();
    json::malformed_line(&mut line, malformed.offset, &malformed.error);
    let json = String::from_utf8(line)
        .ok()
        .and_then(|line| RawValue::from_string(line).ok());
    (malformed.offset, json)
}
