//! Answers about the past, computed from what the log keeps: who was online, when and why, and whether the topics are what
//! the events say (`docs/audit.md`).
//!
//! Everything here is a function of records: [`snapshot`], [`history`], [`why_now`] and [`incidents`] read changes and fold nothing
//! again, [`why`],
//! [`verify`] and [`what_if`] fold events. Where the records come from (a data directory, Kafka, files) is the command's to know. Each type is
//! fed one partition's records in the order of their offsets; what it keeps does not grow with the number of records.

pub mod attested;
pub mod export;
pub mod history;
pub mod incidents;
pub mod merkle;
pub mod snapshot;
pub mod stored;
pub mod time;
pub mod verify;
pub mod watch;
pub mod what_if;
pub mod why;
pub mod why_now;

use crate::presence::LogTime;
use crate::presence::change::{Change, OutputId};

/// A fold lets go of forgotten users, and makes others compact again, after so many records.
const RECYCLE_EVERY: u64 = 10_000;

/// Which of a change's two times decides whether it counts at a time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Knowledge {
    /// With everything that is known by now: a change counts from its `at` on.
    True,
    /// As this engine had answered then: a change counts from its `logged_at` on.
    AsKnown,
}

impl Knowledge {
    /// The time from which a change counts. Never goes back within a partition.
    pub fn time_of(self, change: &Change) -> LogTime {
        match self {
            Knowledge::True => change.at,
            Knowledge::AsKnown => change.logged_at,
        }
    }
}

/// Writes an output's id as it stands in every answer: `{partition}-{offset}-{index}`.
pub(crate) fn id_text(id: OutputId) -> String {
    format!("{}-{}-{}", id.partition, id.offset, id.index)
}
