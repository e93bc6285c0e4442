//! Folds a partition's events again and compares record for record with what its topics hold.

use super::RECYCLE_EVERY;
use super::stored::StoredFold;
use crate::engine::current::user_state;
use crate::engine::extend_chain;
use crate::presence::change::{Change, Kick, Output};
use crate::presence::event::Event;
use crate::presence::policy::Policy;
use crate::presence::state::{HashSeed, State};
use crate::presence::{LogTime, Offset, Partition, Status};
use crate::schema::avro::{self, DeviceState, UserState};
use crate::schema::json;
use serde::Serialize;
use serde_json::Value;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;

/// The topics that are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compared {
    Changes,
    Kicks,
    Quarantine,
}

impl Compared {
    pub const ALL: [Compared; 3] = [Compared::Changes, Compared::Kicks, Compared::Quarantine];

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

/// A record of one of the compared topics.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum OutputRecord {
    Change(Change),
    Kick(Kick),
    Quarantined(QuarantinedEvent),
    /// A line of a file that `rollcall log` printed; only ever found.
    Line(String),
}

/// Folds one partition and holds what it gives until it is compared.
///
/// The caller feeds events ([`Verifier::fold`]) and found records ([`Verifier::compare`]), each in their order. Both sides may be
/// ahead of each other; the caller bounds by how much ([`Verifier::expected`]).
pub struct Verifier {
    state: State,
    /// By [`Compared`].
    topics: [Expected; Compared::ALL.len()],
    chain: [u8; 32],
    datum: Vec<u8>,
    events: u64,
    from: Option<LogTime>,
}

/// What a topic should have.
#[derive(Default)]
struct Expected {
    /// Folded, and not yet compared.
    records: VecDeque<OutputRecord>,
    count: u64,
}

/// The first record that is not what the events say.
#[derive(Serialize, Clone, Debug)]
pub struct Difference {
    pub partition: u32,
    pub verified: bool,
    /// The offset of the event whose output differs.
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
            topics: Default::default(),
            chain: [0; 32],
            datum: Vec::new(),
            events: 0,
            from: None,
        }
    }

    /// Begins where a stored fold has come to.
    pub fn resume(stored: StoredFold) -> Verifier {
        Verifier {
            from: stored.state.time(),
            chain: stored.applied.chain,
            state: stored.state,
            topics: Default::default(),
            datum: Vec::new(),
            events: 0,
        }
    }

    /// Compares with a stored fold that has come just as far. `place` names it in the difference.
    pub fn compare_stored(&self, stored: &StoredFold, place: &'static str) -> Result<(), Box<Difference>> {
        if stored.applied.chain != self.chain {
            return Err(self.other_head(place, Some(&stored.applied.chain)));
        }
        let Some(difference) = stored.difference_from(&self.state) else {
            return Ok(());
        };
        let raw = |line: Option<String>| line.and_then(|line| RawValue::from_string(line).ok());
        Err(Box::new(Difference {
            partition: self.state.partition().0,
            verified: false,
            offset: stored.applied.next.0,
            topic: place,
            found: raw(difference.found),
            expected: raw(difference.expected),
        }))
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
            topics,
            chain,
            datum,
            ..
        } = self;
        let event = match event {
            Ok(event) => Some(event),
            Err(malformed) => {
                topics[Compared::Quarantine as usize].push(OutputRecord::Quarantined(malformed));
                None
            }
        };
        state.fold(offset, ts, event, &mut |output| {
            datum.clear();
            match output {
                Output::Change(change) => {
                    avro::write_change_datum(&change, datum);
                    topics[Compared::Changes as usize].push(OutputRecord::Change(change));
                }
                Output::Kick(kick) => {
                    avro::write_kick_datum(&kick, datum);
                    topics[Compared::Kicks as usize].push(OutputRecord::Kick(kick));
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

    /// Compares what the log keeps as the newest state of each user (`None`: the user has none any more) with the state at the
    /// end of the fold, and `Err`: why the state cannot be read.
    ///
    /// Devices that are offline are not compared: they end silently. `is_settled`: the engine has not committed anything since
    /// the fold ended. Otherwise a state of one of the `newer` events, which were not folded, counts as right, and so does a
    /// user without a state, since a state that is gone has no offset.
    pub fn compare_current(
        &self,
        found: &BTreeMap<String, Result<Option<UserState<'_>>, String>>,
        newer: Range<Offset>,
        is_settled: bool,
    ) -> Result<(), Box<Difference>> {
        let next = newer.start;
        let known = self.state.slots().filter_map(|slot| self.state.user_id(slot));
        let users: BTreeSet<&str> = known.chain(found.keys().map(String::as_str)).collect();
        for user in users {
            let image = self.state.slot_of(user).and_then(|slot| self.state.image(slot));
            let expected = image
                .as_ref()
                .map(|image| user_state(image, self.state.partition(), next));
            let (state, unreadable) = match found.get(user) {
                Some(Ok(state)) => (state.as_ref(), None),
                Some(Err(why)) => (None, Some(OutputRecord::unreadable(why))),
                None => (None, None),
            };
            let is_newer = !is_settled && state.is_some_and(|state| newer.contains(&state.offset));
            let is_right = match (state, &expected) {
                _ if unreadable.is_some() => false,
                // No event has given such a state.
                (Some(state), _) if state.offset >= newer.end => false,
                (Some(state), Some(expected)) => is_same_state(state, expected),
                (None, None) => true,
                (Some(_), None) | (None, Some(_)) => !is_settled,
            };
            if is_newer || is_right {
                continue;
            }
            let raw =
                |state: Option<&UserState<'_>>| state.and_then(|state| RawValue::from_string(state_json(state)).ok());
            return Err(Box::new(Difference {
                partition: self.state.partition().0,
                verified: false,
                offset: state.map_or(next, |state| state.offset).0,
                topic: "current",
                found: match unreadable {
                    Some(line) => RawValue::from_string(line.json()).ok(),
                    None => raw(state),
                },
                expected: raw(expected.as_ref()),
            }));
        }
        Ok(())
    }

    /// Returns how many folded outputs of a topic wait to be compared.
    pub fn expected(&self, topic: Compared) -> usize {
        self.topics[topic as usize].records.len()
    }

    /// Returns which of the folded outputs that wait comes first: the offset of its event, and how many outputs of its topic
    /// were compared before it.
    pub fn first_expected(&self) -> Option<(Offset, u64)> {
        let first = |topic: &Expected| {
            let offset = topic.records.front()?.offset();
            Some((offset, topic.count - topic.records.len() as u64))
        };
        self.topics.iter().filter_map(first).min()
    }

    /// Takes the first folded output of a topic that waits to be compared, for a caller that has no use for a comparison.
    pub fn take_expected(&mut self, topic: Compared) -> Option<OutputRecord> {
        self.topics[topic as usize].records.pop_front()
    }

    /// Drops what was folded for a topic that is not compared.
    pub fn skip(&mut self, topic: Compared) {
        self.topics[topic as usize].records.clear();
    }

    /// Compares the next record of a topic, or none where the topic ends, with the next one that was folded.
    pub fn compare(&mut self, topic: Compared, found: Option<OutputRecord>) -> Result<(), Box<Difference>> {
        let expected = self.topics[topic as usize].records.pop_front();
        let is_same = match (&found, &expected) {
            (Some(OutputRecord::Line(line)), Some(expected)) => is_same_json(line, &expected.json()),
            // A later version may say the reason in other words.
            (Some(OutputRecord::Quarantined(found)), Some(OutputRecord::Quarantined(expected))) => {
                let record =
                    |event: &QuarantinedEvent| (event.offset, event.ts, event.key.clone(), event.value.clone());
                record(found) == record(expected)
            }
            (found, expected) => found == expected,
        };
        if is_same {
            return Ok(());
        }
        let records = [&expected, &found].into_iter().flatten();
        let offset = records.filter_map(OutputRecord::known_offset).min();
        let raw = |record: &OutputRecord| RawValue::from_string(record.json()).ok();
        Err(Box::new(Difference {
            partition: self.state.partition().0,
            verified: false,
            offset: offset.unwrap_or_default().0,
            topic: topic.name(),
            found: found.as_ref().and_then(raw),
            expected: expected.as_ref().and_then(raw),
        }))
    }

    fn count(&self, topic: Compared) -> u64 {
        self.topics[topic as usize].count
    }

    /// Returns the chain over the outputs so far, and how many changes there are.
    pub fn head(&self) -> ([u8; 32], u64) {
        (self.chain, self.state.seq())
    }

    /// Returns the difference of events that end before the committed position.
    pub fn missing_events(&self, end: Offset) -> Box<Difference> {
        Box::new(Difference {
            partition: self.state.partition().0,
            verified: false,
            offset: end.0,
            topic: "events",
            found: None,
            expected: None,
        })
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
            changes: self.count(Compared::Changes),
            kicks: self.count(Compared::Kicks),
            quarantined: self.count(Compared::Quarantine),
            from: self.from.map(|time| time.0),
            to: self.state.time().map(|time| time.0),
            head: hex(&self.chain),
        }
    }
}

impl Expected {
    fn push(&mut self, record: OutputRecord) {
        self.records.push_back(record);
        self.count += 1;
    }
}

impl OutputRecord {
    /// Returns the offset of the event that it is an output of; 0 for a line that does not say.
    pub fn offset(&self) -> Offset {
        self.known_offset().unwrap_or_default()
    }

    fn known_offset(&self) -> Option<Offset> {
        match self {
            OutputRecord::Change(change) => Some(change.id.offset),
            OutputRecord::Kick(kick) => Some(kick.id.offset),
            OutputRecord::Quarantined(event) => Some(event.offset),
            OutputRecord::Line(line) => offset_of_line(line),
        }
    }

    /// Returns the partition that its id names, if it has an id.
    pub fn partition(&self) -> Option<Partition> {
        match self {
            OutputRecord::Change(change) => Some(change.id.partition),
            OutputRecord::Kick(kick) => Some(kick.id.partition),
            OutputRecord::Quarantined(_) | OutputRecord::Line(_) => None,
        }
    }

    /// A record that cannot be read, as the line that says why: it is equal to no record that was folded.
    pub fn unreadable(why: &str) -> OutputRecord {
        OutputRecord::Line(serde_json::json!({ "unreadable": why }).to_string())
    }

    /// Returns it as `rollcall log` prints it.
    fn json(&self) -> String {
        let mut line = Vec::new();
        match self {
            OutputRecord::Change(change) => json::output_line(&mut line, &Output::Change(change.clone())),
            OutputRecord::Kick(kick) => json::output_line(&mut line, &Output::Kick(kick.clone())),
            OutputRecord::Quarantined(event) => json::malformed_line(&mut line, event.offset, &event.error),
            OutputRecord::Line(line) => return line.clone(),
        }
        String::from_utf8_lossy(&line).into_owned()
    }
}

/// Returns the offset in an output's id, `{partition}-{offset}-{index}`.
fn offset_of_line(line: &str) -> Option<Offset> {
    let value: Value = serde_json::from_str(line).ok()?;
    let offset = value["id"].as_str()?.split('-').nth(1)?.parse();
    offset.ok().map(Offset)
}

/// Whether two states say the same, whatever record they are of. Devices that are offline are left out.
fn is_same_state(a: &UserState<'_>, b: &UserState<'_>) -> bool {
    let UserState {
        user,
        version,
        status,
        since,
        custom_status,
        devices,
        partition,
        offset: _,
    } = a;
    fn not_offline<'s>(devices: &'s [DeviceState<'s>]) -> impl Iterator<Item = &'s DeviceState<'s>> {
        devices.iter().filter(|device| device.status != Status::Offline)
    }
    (user, version, status, since) == (&b.user, &b.version, &b.status, &b.since)
        && (custom_status, partition) == (&b.custom_status, &b.partition)
        && not_offline(devices).eq(not_offline(&b.devices))
}

/// Writes a state as JSON, to be shown.
fn state_json(state: &UserState<'_>) -> String {
    let mut json = Vec::new();
    json::Object::new(&mut json)
        .text("user", &state.user)
        .number("version", state.version)
        .text("status", state.status.name())
        .number("since", state.since.0)
        .optional_text("custom_status", state.custom_status.as_deref())
        .list("devices", &state.devices, |out, device| {
            json::Object::new(out)
                .text("platform", &device.platform)
                .text("device", &device.device)
                .text("status", device.status.name())
                .end();
        })
        .number("partition", state.partition.0.into())
        .number("offset", state.offset.0)
        .end();
    String::from_utf8_lossy(&json).into_owned()
}

/// Whether two texts are the same JSON value, however it is written.
fn is_same_json(a: &str, b: &str) -> bool {
    let value = |text| serde_json::from_str::<Value>(text).ok();
    value(a).is_some_and(|a| Some(a) == value(b))
}

/// Writes bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_state_of_an_event_that_was_not_folded_counts_as_newer() {
        let verifier = Verifier::new(Partition(0), Policy::default(), HashSeed::default());
        let differs = |state: Result<Option<u64>, &str>, is_settled: bool| {
            let state = state.map_err(str::to_owned).map(|offset| {
                offset.map(|offset| UserState {
                    user: "alice".into(),
                    version: 1,
                    status: Status::Online,
                    since: LogTime(1_000),
                    custom_status: None,
                    devices: Vec::new(),
                    partition: Partition(0),
                    offset: Offset(offset),
                })
            });
            let found = BTreeMap::from([("alice".to_owned(), state)]);
            let compared = verifier.compare_current(&found, Offset(5)..Offset(8), is_settled);
            compared
                .err()
                .map(|difference| difference.found.expect("something").get().to_owned())
        };
        assert_eq!(differs(Ok(Some(5)), false), None);
        assert_eq!(differs(Ok(Some(7)), false), None);
        assert!(differs(Ok(Some(5)), true).is_some(), "nothing was committed since");
        assert!(differs(Ok(Some(8)), false).is_some(), "there is no such event");
        assert!(differs(Ok(Some(u64::MAX)), false).is_some(), "there is no such event");
        assert_eq!(differs(Ok(None), true), None);
        assert_eq!(
            differs(Err("cut off"), false).as_deref(),
            Some("{\"unreadable\":\"cut off\"}")
        );
    }
}
