//! Decodes events from records, counts malformed records and warns about them.

use crate::log::Record;
use crate::presence::event::Event;
use crate::presence::{Offset, Partition};
use crate::registry::LearnedSchemas;
use crate::schema::{Malformed, avro, partitioner};
use std::sync::{Mutex, PoisonError};

/// The least time between two warnings about the same reason.
const WARN_EVERY_MS: u64 = 60_000;

/// The category of what is wrong with a record. [`Rejected::error`] says more.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// The bytes are not an event, or a value of the event is out of bounds.
    Unreadable,
    /// It was written with a schema that neither this version nor the registry knows, or that cannot be used.
    UnknownSchema,
    /// The record's key is not its user.
    WrongKey,
    /// The user belongs to another partition.
    WrongPartition,
}

impl Reason {
    pub const ALL: [Reason; 4] = [
        Reason::Unreadable,
        Reason::UnknownSchema,
        Reason::WrongKey,
        Reason::WrongPartition,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Reason::Unreadable => "unreadable",
            Reason::UnknownSchema => "unknown_schema",
            Reason::WrongKey => "wrong_key",
            Reason::WrongPartition => "wrong_partition",
        }
    }

    fn of(malformed: &Malformed) -> Reason {
        match malformed {
            Malformed::Invalid(_) => Reason::Unreadable,
            Malformed::UnknownFingerprint(_)
            | Malformed::UnknownSchemaId(_)
            | Malformed::UnknownSchemaGuid(_)
            | Malformed::UnusableSchema(_) => Reason::UnknownSchema,
        }
    }
}

/// Why a record is malformed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Rejected {
    pub reason: Reason,
    /// A sentence for a person, at most [`crate::schema::Explanation::BYTES_MAX`] bytes.
    pub error: String,
}

impl Rejected {
    pub fn unreadable(malformed: &Malformed) -> Rejected {
        Rejected::new(Reason::of(malformed), malformed)
    }

    pub fn new(reason: Reason, malformed: &Malformed) -> Rejected {
        Rejected {
            reason,
            error: malformed.to_string(),
        }
    }
}

/// Malformed records of one reason: how many, and the newest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RejectedGroup {
    pub count: u64,
    pub newest: Offset,
    pub error: String,
}

/// Malformed records by reason, in the order of [`Reason::ALL`].
pub type Groups = [Option<RejectedGroup>; Reason::ALL.len()];

pub fn add(groups: &mut Groups, reason: Reason, count: u64, newest: Offset, error: &str) {
    let group = groups[reason as usize].get_or_insert_with(|| RejectedGroup {
        count: 0,
        newest,
        error: String::new(),
    });
    group.count += count;
    group.newest = newest;
    error.clone_into(&mut group.error);
}

/// Warns of malformed records, once per minute and reason, whichever partitions they are in.
#[derive(Debug, Default)]
pub struct Warnings(Mutex<[Pending; Reason::ALL.len()]>);

#[derive(Debug, Default)]
struct Pending {
    /// How many records no warning has reported yet.
    count: u64,
    newest: Option<(Partition, Offset, String)>,
    /// When the next warning may be given, by the monotonic clock.
    not_before_ms: u64,
}

/// What a warning says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    pub reason: Reason,
    pub count: u64,
    pub partition: Partition,
    pub newest: Offset,
    pub error: String,
}

impl Warnings {
    /// Adds what a partition has rejected (perhaps nothing) and returns the warnings that are due.
    pub fn due(&self, partition: Partition, groups: Groups, now_ms: u64) -> Vec<Warning> {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut due = Vec::new();
        for ((reason, group), pending) in Reason::ALL.into_iter().zip(groups).zip(pending.iter_mut()) {
            if let Some(group) = group {
                pending.count += group.count;
                pending.newest = Some((partition, group.newest, group.error));
            }
            if now_ms < pending.not_before_ms {
                continue;
            }
            if let Some((partition, newest, error)) = pending.newest.take() {
                pending.not_before_ms = now_ms + WARN_EVERY_MS;
                due.push(Warning {
                    reason,
                    count: std::mem::take(&mut pending.count),
                    partition,
                    newest,
                    error,
                });
            }
        }
        due
    }
}

/// Decodes a record and checks its key and its partition.
pub fn decode<'r>(
    record: &'r Record,
    partition: Partition,
    partitions: u32,
    schemas: &LearnedSchemas,
) -> Result<Event<'r>, Rejected> {
    let (header, value) = record.framed();
    let event = avro::decode_event_of(header, value, schemas);
    let event = event.map_err(|malformed| Rejected::unreadable(&malformed))?;
    let key = partitioner::check_key(&event, record.key.as_deref());
    key.map_err(|malformed| Rejected::new(Reason::WrongKey, &malformed))?;
    let home = partitioner::check_partition(&event, partition, partitions);
    home.map_err(|malformed| Rejected::new(Reason::WrongPartition, &malformed))?;
    Ok(event)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(reason: Reason, offset: u64) -> Groups {
        let mut groups = Groups::default();
        add(&mut groups, reason, 1, Offset(offset), &format!("wrong at {offset}"));
        groups
    }

    #[test]
    fn there_is_one_warning_per_minute_and_reason_with_how_many_and_the_newest() {
        let warnings = Warnings::default();
        let (here, there) = (Partition(0), Partition(1));
        let first = warnings.due(here, one(Reason::WrongKey, 3), 5);
        let warning = |count, partition, newest: u64| Warning {
            reason: Reason::WrongKey,
            count,
            partition,
            newest: Offset(newest),
            error: format!("wrong at {newest}"),
        };
        assert_eq!(first, [warning(1, here, 3)], "the first at once");
        for offset in 4..10 {
            assert_eq!(warnings.due(here, one(Reason::WrongKey, offset), 1_000), []);
        }
        assert_eq!(warnings.due(there, one(Reason::WrongKey, 2), 2_000), []);
        // Another reason does not wait for this one.
        assert_eq!(warnings.due(there, one(Reason::WrongPartition, 3), 3_000).len(), 1);
        assert_eq!(warnings.due(here, Groups::default(), 60_004), []);
        assert_eq!(warnings.due(here, Groups::default(), 60_005), [warning(7, there, 2)]);
        assert_eq!(warnings.due(here, Groups::default(), 1_000_000), [], "nothing new");
    }

    #[test]
    fn every_reason_has_a_counter_from_the_start() {
        let text = crate::metrics::text();
        for reason in Reason::ALL {
            let counter = format!("rollcall_malformed_total{{reason=\"{}\"}}", reason.name());
            assert!(text.contains(&counter), "{counter}");
        }
    }
}
