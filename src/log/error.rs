//! What can go wrong with a log, by what the caller can do about it.

use super::Appended;
use crate::presence::{Offset, Partition};
use crate::topics::Topic;
use std::sync::Arc;

/// A failure outside this program. The variant says what the caller can do.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The records from offset `wanted` on were dropped; `start` is the oldest record kept.
    #[error(
        "partition {partition} of {topic} no longer has offset {wanted}: the oldest record kept is {start}",
        topic = .topic.name()
    )]
    Gone {
        topic: Topic,
        partition: Partition,
        wanted: Offset,
        start: Offset,
    },
    /// Too much is waiting to be written; try again shortly.
    #[error("the log is busy: too much is waiting to be written")]
    Busy,
    /// Nothing more can be written until an operator acts (disk full, directory gone). Acknowledged records are safe,
    /// and reading continues.
    #[error("the log cannot be written: {0}")]
    Write(Arc<str>),
    /// What is read is damaged, or is refused. The same call fails again until somebody has done something about it.
    #[error("the log cannot be read: {0}")]
    Read(Arc<str>),
    /// The log does not answer: a broker is away, a partition's leader moves, or no reader is free. The same call may
    /// succeed shortly.
    #[error("the log cannot be read at the moment: {0}")]
    Unanswered(Arc<str>),
    /// The directory cannot be used at all: it is not writable, has another layout, or is open in another process.
    #[error("{0}")]
    Open(Arc<str>),
    /// Another owner took the partition over; what this owner folded no longer counts.
    #[error("partition {partition} was taken over by another owner")]
    Fenced { partition: Partition },
    /// Of an append to several partitions some records are durable and some are not. The results are in the order of
    /// the records.
    #[error("only {} of {} records were written", .0.iter().filter(|one| one.is_ok()).count(), .0.len())]
    Partly(Arc<[Result<Appended, Arc<str>>]>),
    /// The log is being closed.
    #[error("the log is closed")]
    Closed,
}
