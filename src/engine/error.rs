//! Why a partition cannot go on, as a sentence for an operator, and what may repair it.

use crate::checkpoint;
use crate::log::{self, Position};
use crate::presence::{Offset, Partition, Revision};
use crate::registry;
use crate::store;
use crate::topics::OutputTopic;
use std::fmt;

/// Why a partition cannot go on.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Log(#[from] log::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A required schema is not available at the moment.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// A required checkpoint is not available at the moment.
    #[error(transparent)]
    Checkpoint(#[from] checkpoint::Error),
    /// Folding the log again did not give the same result as before.
    #[error(
        "partition {partition}: {}",
        divergence(*next, folded.was_read_alike(committed))
    )]
    Diverged {
        partition: Partition,
        next: Offset,
        folded: Box<Position>,
        committed: Box<Position>,
    },
    /// The log has outputs, but there is no position that says which events they belong to.
    #[error(
        "partition {partition}: the log has outputs up to that of the event at offset {last}, but the group has no position: \
         it was lost, or this group is another one than before. Nothing is sent, so that nothing is sent twice. Start once \
         with --adopt-tail: the events are folded again and compared with the outputs that are there, and only what is missing \
         behind them is sent. Or, to begin again on purpose, use other topics (--topic-prefix)"
    )]
    OutputsWithoutPosition { partition: Partition, last: Offset },
    /// The position counts changes that are not in the log.
    #[error(
        "partition {partition}: the committed position says that {committed} changes are in the log, but the last one there \
         before offset {next} is number {seq}: {} are missing. Nothing is sent until an operator decides. Start once with \
         --adopt-tail: the events are folded again and compared with the outputs that are there, and what is missing is sent",
        committed.abs_diff(*seq)
    )]
    OutputsMissing {
        partition: Partition,
        next: Offset,
        committed: u64,
        seq: u64,
    },
    /// An output in the log differs from what the fold gives.
    #[error(
        "partition {partition}: output {partition}-{offset}-{index} in {topic} is not what the fold gives. There: {found}. \
         Folded: {folded}. Nothing is sent: somebody else has written to the topic, or the events are not those that were \
         folded before (rollcall audit verify says where they differ)"
    )]
    OutputDiffers {
        partition: Partition,
        topic: OutputTopic,
        offset: Offset,
        index: u64,
        found: Box<str>,
        folded: Box<str>,
    },
    /// An output topic has a record that no engine wrote.
    #[error(
        "partition {partition}: the record at offset {at} of {topic} is not an output of an engine: {why}. Nothing is \
         sent: only \
         engines may write to that topic"
    )]
    ForeignOutput {
        partition: Partition,
        topic: OutputTopic,
        at: Offset,
        why: Box<str>,
    },
    /// The outputs in the log could not be read to compare them with the fold.
    #[error("partition {partition}: the outputs that are there cannot be read, to compare them with the fold: {cause}")]
    TailUnreadable { partition: Partition, cause: log::Error },
    /// The events end before the outputs do.
    #[error(
        "partition {partition}: outputs are in the log that are of events at offset {next} or later, but the events end at {end}: \
         they were cut (an unclean election, brokers that lost their disks), or the topic was made again. Bring back a replica \
         that has the events, or begin again with other topics (--topic-prefix)"
    )]
    EventsMissing {
        partition: Partition,
        next: Offset,
        end: Offset,
    },
    /// Another process commits for this partition.
    #[error("partition {partition}: another client changed its position")]
    Deposed { partition: Partition },
    #[error(
        "the store of partition {partition} is not of this log: it has applied everything before {applied}, but the \
         log has committed only up to {committed}"
    )]
    ForeignStore {
        partition: Partition,
        applied: Offset,
        committed: Offset,
    },
    /// The log is older than the store. What was acknowledged after it would be lost silently if the store were rebuilt.
    #[error(
        "partition {partition} of events ends at {end}, but was folded up to {folded} already, as its store says: the log is \
         older than the store, and Rollcall cannot continue without these events. Restore the log that belongs to the store, or \
         move the directory of the stores away, which accepts the loss of these events"
    )]
    EventsLost {
        partition: Partition,
        end: Offset,
        folded: Offset,
    },
    #[error("a value in the store cannot be read")]
    Unreadable,
    /// A bug in this program.
    #[error(
        "partition {partition}: {} panicked: {message}. {}",
        offset.map_or("opening it".to_owned(), |offset| format!("folding at offset {offset}")),
        if *halted {
            "It panicked there before, so the partition halts; other partitions go on. Report it with the record at that \
             offset (rollcall log events); a version that folds the record goes on from there"
        } else {
            "It is tried once more, from the store"
        }
    )]
    Panicked {
        partition: Partition,
        offset: Option<Offset>,
        halted: bool,
        message: Box<str>,
    },
    /// A broker's clock is wrong: if the record were folded, log time would stand still until the other clocks have
    /// caught up.
    #[error(
        "partition {partition}: the record at offset {offset} has the time {ts}, {} s ahead of this machine's clock; \
         nothing is folded until the clock is within {} s of it. If the time is right, or should be accepted although it is wrong, start with --accept-time {partition}:{offset}",
        ahead_ms / 1_000,
        bound_ms / 1_000
    )]
    Ahead {
        partition: Partition,
        offset: Offset,
        ts: u64,
        ahead_ms: u64,
        bound_ms: u64,
    },
    /// The partition was raised to a revision of a later version of this program.
    #[error(
        "partition {partition}: {at} revision {revision}, but this version knows revisions up to {newest}. Nothing from \
         there on is folded or answered: start a version that knows it"
    )]
    UnknownRevision {
        partition: Partition,
        at: RevisionAt,
        revision: Revision,
        newest: Revision,
    },
    /// Retention has deleted events that were not folded yet, so that the state cannot go on.
    #[error(
        "partition {partition}: the state ends before offset {wanted}, but the oldest event kept is {start}, so \
         {} events are gone that were never folded. Put back a copy or a checkpoint of the partition's store that \
         reaches offset {start} at least, or start again with other topics (--topic-prefix) or another data directory. \
         Other partitions go on",
        start.0 - wanted.0
    )]
    Behind {
        partition: Partition,
        wanted: Offset,
        start: Offset,
    },
    #[error(
        "the store cannot be used and the log cannot rebuild it, since the oldest event kept is {start}: {cause}. \
         Restore the store's directory from a backup, or give up this state by moving the data directory away"
    )]
    Unrecoverable { start: Offset, cause: Box<Error> },
}

/// Where a revision was found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RevisionAt {
    /// In a record of the events topic.
    Record(Offset),
    /// In the position that was committed with the outputs.
    Position(Offset),
    Store,
}

impl fmt::Display for RevisionAt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RevisionAt::Record(offset) => write!(f, "the record at offset {offset} raises the partition to"),
            RevisionAt::Position(next) => write!(f, "its outputs are committed up to offset {next} with"),
            RevisionAt::Store => f.write_str("its store has"),
        }
    }
}

/// Describes what differs from the first time: what was read, what was folded, or that this is not known.
fn divergence(next: Offset, was_read_alike: Option<bool>) -> String {
    let outputs = format!("folding the log again up to offset {next} gives other outputs than were committed");
    let parts = "time, seq, chain or revision differ";
    match was_read_alike {
        Some(false) => format!(
            "reading the log again up to offset {next} gives other events than were read when its outputs were committed: \
             the log was altered, or a broker does not return the same records to every reader"
        ),
        Some(true) => format!("{outputs}, from the same events ({parts})"),
        None => format!("{outputs} ({parts})"),
    }
}

impl Error {
    /// Whether the cause may be that other events were read than before.
    pub(super) fn may_be_of_reading(&self) -> bool {
        match self {
            Error::Diverged { folded, committed, .. } => folded.was_read_alike(committed) != Some(true),
            _ => false,
        }
    }

    /// Whether folding the log again from its start may repair the error.
    pub(super) fn is_the_stores(&self) -> bool {
        match self {
            // The store is in use by another process, or the disk failed: neither says anything about the store's
            // contents.
            Error::Store(store::Error::Open { .. } | store::Error::Failed { .. }) => false,
            // This version must not delete what a later version wrote.
            Error::Store(store::Error::LaterLayout { .. }) => false,
            Error::Store(store::Error::Damaged { .. } | store::Error::Layout { .. })
            | Error::ForeignStore { .. }
            | Error::Unreadable
            | Error::OutputDiffers { .. }
            | Error::Diverged { .. } => true,
            Error::Log(_)
            | Error::OutputsWithoutPosition { .. }
            | Error::OutputsMissing { .. }
            | Error::ForeignOutput { .. }
            | Error::TailUnreadable { .. }
            | Error::EventsMissing { .. }
            | Error::EventsLost { .. }
            | Error::Registry(_)
            | Error::Checkpoint(_)
            | Error::Deposed { .. }
            | Error::Unrecoverable { .. }
            | Error::Behind { .. }
            | Error::Ahead { .. }
            | Error::Panicked { .. }
            | Error::UnknownRevision { .. } => false,
        }
    }
}
