//! Which partitions of the new log get a record of the old one.
//!
//! The number of partitions is multiplied. So all users of a new partition come from one old partition, of which it is a *part*:
//! the users' own events, and what the old partition has for all of its users, in the same order and each at the log time at which
//! it took effect. So the fold of a part gives each of its users the changes that the old partition gave: the same versions,
//! statuses, causes and times. Offsets, ids and the numbers of changes are others.
//!
//! | record | goes |
//! |---|---|
//! | of one user | as it is, to the user's part |
//! | `heartbeats` | each beat to the part of its user |
//! | `alive` | each connection to the part of the user who is on it, as the fold says. A connection that nobody is on has no effect, and is left out |
//! | `lease`, `policy`, `revision`, `tick` | as it is, to every part |
//! | malformed | as it is, to the part with the number of the old partition, where it is malformed again: also a user of another partition |
//!
//! **Outage grace** (`docs/rules.md` section 2.4) is about the time between two records of a partition. A part has fewer records,
//! so it gets ticks where its own silence would be longer than the old partition's; where the old partition's time jumps, every
//! part has a record before and after the jump.
//!
//! What may differ, and is found by comparing: one connection number used for users in two parts, of which one ends before it
//! begins; and more early ends within a minute than a partition remembers.

use crate::log::{CopiedEvent, Record};
use crate::presence::change::Output;
use crate::presence::event::{Event, HeartbeatEntry};
use crate::presence::policy::Policy;
use crate::presence::state::{HashSeed, State};
use crate::presence::{Conn, LogTime, Partition};
use crate::schema::avro;
use crate::schema::partitioner::partition_of;
use std::collections::BTreeMap;

/// Folds an old partition and splits it.
pub struct Splitter {
    state: State,
    /// How many partitions the new log has.
    targets: u32,
    parts: Vec<Part>,
}

/// A partition of the new log.
struct Part {
    partition: Partition,
    /// Its log time.
    time: Option<LogTime>,
}

impl Splitter {
    /// Begins with an empty partition of a log that has `sources` partitions. `targets` must be a multiple of it.
    pub fn new(source: Partition, sources: u32, targets: u32, policy: Policy, seed: HashSeed) -> Splitter {
        assert!(
            targets.is_multiple_of(sources),
            "a new partition is a part of one old partition"
        );
        let parts = (source.0..targets).step_by(sources as usize).map(|number| Part {
            partition: Partition(number),
            time: None,
        });
        Splitter {
            state: State::seeded(source, policy, seed),
            targets,
            parts: parts.collect(),
        }
    }

    /// Returns the old partition as it is after the last record.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Forgets what has changed, so that memory is released.
    pub fn tidy(&mut self) {
        self.state.take_dirt();
    }

    /// Returns the partitions of the new log that the old one is split into.
    pub fn parts(&self) -> impl Iterator<Item = Partition> {
        self.parts.iter().map(|part| part.partition)
    }

    /// Takes the next record; `event` is `None` if it is malformed. Appends what the parts get, and gives `folded` what the old
    /// partition's fold gives.
    pub fn take(
        &mut self,
        record: &Record,
        event: Option<&Event<'_>>,
        out: &mut Vec<(Partition, CopiedEvent)>,
        folded: &mut dyn FnMut(Output),
    ) {
        let before = self.state.time();
        let silence_ms = self.state.policy().outage.silence_ms;
        self.state.begin(record.offset, record.ts);
        self.state.fire(None, folded);
        let now = self.state.time().unwrap_or_default();
        let mut is_jump = false;
        if let Some(before) = before.filter(|_| silence_ms > 0) {
            is_jump = now.0 - before.0 > silence_ms;
            for part in &mut self.parts {
                let is_silent = match part.time {
                    None => is_jump,
                    Some(time) => time < before && now.0 - time.0 > silence_ms,
                };
                if is_silent {
                    part.time = Some(before);
                    out.push((part.partition, tick(before)));
                }
            }
        }
        let placed = out.len();
        self.place(record, event, now, out);
        for part in &mut self.parts {
            let has_record = out[placed..].iter().any(|(partition, _)| *partition == part.partition);
            if is_jump && !has_record {
                out.push((part.partition, tick(now)));
            }
            if is_jump || has_record {
                part.time = Some(now);
            }
        }
        self.state.apply(event, folded);
    }

    fn place(&self, record: &Record, event: Option<&Event<'_>>, now: LogTime, out: &mut Vec<(Partition, CopiedEvent)>) {
        let as_it_is = || CopiedEvent::of(record, now.0);
        let Some(event) = event else {
            return out.push((self.state.partition(), as_it_is()));
        };
        if let Some(user) = event.user() {
            return out.push((partition_of(user, self.targets), as_it_is()));
        }
        match event {
            Event::Heartbeats { gateway, epoch, beats } => {
                let mut parts: BTreeMap<Partition, Vec<HeartbeatEntry<'_>>> = BTreeMap::new();
                for beat in beats {
                    let home = partition_of(&beat.who.user, self.targets);
                    parts.entry(home).or_default().push(beat.clone());
                }
                if let Some((only, _)) = parts.first_key_value().filter(|_| parts.len() == 1) {
                    return out.push((*only, as_it_is()));
                }
                for (partition, beats) in parts {
                    let part = Event::Heartbeats {
                        gateway: gateway.clone(),
                        epoch: *epoch,
                        beats,
                    };
                    out.push((partition, encoded(&part, now)));
                }
            }
            Event::Alive { gateway, epoch, conns } => {
                let mut parts: BTreeMap<Partition, Vec<Conn>> = BTreeMap::new();
                for conn in conns {
                    self.state.each_user_on(gateway, *epoch, *conn, |user| {
                        let part = parts.entry(partition_of(user, self.targets)).or_default();
                        if part.last() != Some(conn) {
                            part.push(*conn);
                        }
                    });
                }
                for (partition, part) in parts {
                    let copied = match part == *conns {
                        true => as_it_is(),
                        false => {
                            let part = Event::Alive {
                                gateway: gateway.clone(),
                                epoch: *epoch,
                                conns: part,
                            };
                            encoded(&part, now)
                        }
                    };
                    out.push((partition, copied));
                }
            }
            Event::Lease { .. } | Event::Policy { .. } | Event::Revision { .. } | Event::Tick => {
                out.extend(self.parts().map(|partition| (partition, as_it_is())));
            }
            // These have a user.
            Event::Connect { .. }
            | Event::Heartbeat { .. }
            | Event::Background { .. }
            | Event::Foreground { .. }
            | Event::Disconnect { .. }
            | Event::Logout { .. }
            | Event::Kick { .. }
            | Event::CustomStatus { .. }
            | Event::Forget { .. } => {}
        }
    }
}

fn encoded(event: &Event<'_>, time: LogTime) -> CopiedEvent {
    let mut value = Vec::new();
    avro::encode_event(event, &mut value);
    CopiedEvent::without_key(value, time.0)
}

fn tick(time: LogTime) -> CopiedEvent {
    encoded(&Event::Tick, time)
}
