//! Filling a log with the events of another one: each keeps the time that it has there.
//!
//! Everywhere else the log sets the time of a record. A log that is being filled has no engine, and no publisher.

use super::{Error, Limit, Record, RecordHeaders};
use crate::presence::{Offset, Partition};

/// An event as it goes into a log that is being filled.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CopiedEvent {
    /// Milliseconds. Never decreases within a partition.
    pub ts: u64,
    pub key: Option<Vec<u8>>,
    /// `None`: the record has no value, as in [`Record::is_null`].
    pub value: Option<Vec<u8>>,
    pub headers: Option<Box<RecordHeaders>>,
}

impl CopiedEvent {
    /// A record as it is, with the given time.
    pub fn of(record: &Record, ts: u64) -> CopiedEvent {
        CopiedEvent {
            ts,
            key: record.key.clone(),
            value: (!record.is_null).then(|| record.value.clone()),
            headers: record.headers.clone(),
        }
    }

    /// A record of no user, in our own encoding.
    pub fn without_key(value: Vec<u8>, ts: u64) -> CopiedEvent {
        CopiedEvent {
            ts,
            key: None,
            value: Some(value),
            headers: None,
        }
    }

    /// Returns whether a record is this event.
    pub fn is(&self, record: &Record) -> bool {
        let value = (!record.is_null).then_some(&record.value);
        self.ts == record.ts && self.key == record.key && self.value.as_ref() == value && self.headers == record.headers
    }

    /// Returns the record that it becomes at an offset.
    pub fn at(self, offset: Offset) -> Record {
        Record {
            offset,
            ts: self.ts,
            key: self.key,
            is_null: self.value.is_none(),
            value: self.value.unwrap_or_default(),
            headers: self.headers,
        }
    }

    /// Returns how many bytes its key and value have.
    pub fn bytes(&self) -> usize {
        self.key.as_ref().map_or(0, Vec::len) + self.value.as_ref().map_or(0, Vec::len)
    }
}

/// The permit to fill a log. There is one at a time: who opens a log to fill it takes the permit from everybody before.
pub trait FillingLog: Send {
    /// Returns the number of partitions.
    fn partitions(&self) -> u32;

    /// Adds events from an offset on, in order; nothing at the end. `from` is 0 or an offset after a record that was read.
    fn read(&mut self, partition: Partition, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<(), Error>;

    /// Appends events, all or none of them. They are durable when it returns. After an error nobody knows whether they were
    /// appended.
    fn append(&mut self, events: Vec<(Partition, CopiedEvent)>) -> Result<(), Error>;

    /// Makes it a log that an engine can use. Nothing can be appended afterwards.
    fn finish(&mut self) -> Result<(), Error>;
}
