//! A partition in the hands of one process: its events, and what its owner and a standby may do beside reading them.
//!
//! Who may commit is a type. [`Log::take_up`](super::Log::take_up) returns an [`OwnedPartition`], which is the permit to
//! commit. [`Log::stand_by`](super::Log::stand_by) returns a [`StandbyPartition`], which says how far the owner has
//! committed and has no method that writes. A process that folds a partition has one of the two, as a
//! [`PartitionHandle`].

use super::{Commit, Error, LastRecord, Limit, Position, Range, Record};
use crate::presence::{Offset, Partition};
use crate::topics::OutputTopic;

/// Progress of reading ([`PartitionEvents::reading`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reading {
    /// Everything before this offset was read. On Kafka this includes aborted records and transaction markers.
    pub reached: Offset,
    /// [`PartitionEvents::is_at_end`]: there is nothing more to read at the moment.
    pub is_at_end: bool,
    /// Since when the log has not answered at all, by the monotonic clock.
    pub unanswered_since_ms: Option<u64>,
}

/// The events of one partition, as its owner and its standbys read them.
pub trait PartitionEvents: Send {
    /// Reads events, as [`Log::read`](super::Log::read) does.
    fn read(&mut self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<(), Error>;

    /// Sets which record was folded last. A reader that starts again also reads this record, if it supports that, and
    /// fails if the record is missing or different.
    fn follows(&mut self, _: Option<LastRecord>) {}

    /// Returns the range of the events.
    fn range(&self) -> Result<Range, Error>;

    /// Returns whether a [`PartitionEvents::read`] that returned nothing means that there is nothing to read. A log on
    /// other machines may only be slow.
    fn is_at_end(&self) -> bool {
        true
    }

    /// Returns the progress of reading, to judge whether it is stalled.
    fn reading(&self) -> Reading {
        Reading {
            reached: Offset(0),
            // This log contains no transactions of other writers.
            is_at_end: false,
            unanswered_since_ms: None,
        }
    }
}

/// The owner's handle to a partition, which is the permit to commit. Each [`Log::take_up`](super::Log::take_up) returns
/// one. It cannot be copied, and code without it can only read and append. If a partition was taken up twice, the older
/// handle is refused with [`Error::Fenced`].
pub trait OwnedPartition: Send {
    fn partition(&self) -> Partition;

    /// Returns the number of partitions of the log.
    fn partitions(&self) -> u32;

    /// The events of the partition, which the owner reads.
    fn events(&self) -> &dyn PartitionEvents;

    /// The same, to read them.
    fn events_mut(&mut self) -> &mut dyn PartitionEvents;

    /// Writes outputs and position in one atomic step. A commit survives the death of the process at once, and the
    /// death of the machine after [`OwnedPartition::sync`]. Commits that are lost are folded again and give the same
    /// bytes. A position past the end of the events is a mistake of the caller; the embedded log refuses it.
    fn commit(&mut self, commit: &Commit) -> Result<(), Error>;

    /// Returns the position of the last commit, or the default if there was none. After a failed commit it shows
    /// whether that commit was applied.
    fn position(&mut self) -> Result<Position, Error>;

    /// Returns whether the log has a position of this partition, which may be the default.
    fn has_position(&self) -> bool {
        true
    }

    /// Asks the log for the committed range of an output topic. `None`: outputs and position are written in one atomic
    /// step, so there is nothing to compare.
    fn outputs_range(&mut self, _: OutputTopic) -> Result<Option<Range>, Error> {
        Ok(None)
    }

    /// Reads committed outputs from an offset on. Waits until there is at least one, or until it is clear that there
    /// are no more.
    fn read_outputs(&mut self, _: OutputTopic, _: Offset, _: Limit, _: &mut Vec<Record>) -> Result<(), Error> {
        Ok(())
    }

    /// Asks the log whether this process still owns the partition; returns [`Error::Fenced`] if not. For a process that
    /// was suspended and cannot know.
    fn confirm(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Makes every commit so far survive the death of the machine.
    fn sync(&mut self) -> Result<(), Error>;

    /// Drops old records according to the log's retention, but no event at or after `floor`, which is still needed.
    fn retain(&mut self, floor: Offset) -> Result<(), Error>;

    /// Returns the minimum time between the starts of two commits of outputs, in milliseconds. It is above 0 where a
    /// commit is expensive and many partitions share a machine.
    fn commit_pause_ms(&self) -> u64 {
        0
    }

    /// Returns whether the log has the outputs of which only the newest record of each key is kept
    /// ([`TopicSpec::is_compacted`](crate::topics::TopicSpec::is_compacted)). Then commits must include them.
    fn keeps_newest(&self) -> bool {
        false
    }

    /// Returns whether records keep headers.
    fn keeps_headers(&self) -> bool {
        false
    }
}

/// A standby's handle to a partition that another process owns. Each [`Log::stand_by`](super::Log::stand_by) returns one.
pub trait StandbyPartition: Send {
    fn partition(&self) -> Partition;

    /// Returns the number of partitions of the log.
    fn partitions(&self) -> u32;

    /// The events of the partition, which the standby reads.
    fn events(&self) -> &dyn PartitionEvents;

    /// The same, to read them.
    fn events_mut(&mut self) -> &mut dyn PartitionEvents;

    /// Returns the newest position of the owner that is known; an error if none is. Does not ask the log.
    fn owner_position(&self) -> Result<OwnerPosition, Error>;
}

/// How far the owner of a partition has committed, as a standby knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OwnerPosition {
    pub position: Position,
    /// How long ago the log said it, in milliseconds.
    pub age_ms: u64,
}

/// A partition as the process has it that folds it. Taking over turns the second into the first.
pub enum PartitionHandle {
    Owned(Box<dyn OwnedPartition>),
    Standby(Box<dyn StandbyPartition>),
}

impl PartitionHandle {
    pub fn partition(&self) -> Partition {
        match self {
            PartitionHandle::Owned(owned) => owned.partition(),
            PartitionHandle::Standby(standby) => standby.partition(),
        }
    }

    /// Returns the number of partitions of the log.
    pub fn partitions(&self) -> u32 {
        match self {
            PartitionHandle::Owned(owned) => owned.partitions(),
            PartitionHandle::Standby(standby) => standby.partitions(),
        }
    }

    pub fn events(&self) -> &dyn PartitionEvents {
        match self {
            PartitionHandle::Owned(owned) => owned.events(),
            PartitionHandle::Standby(standby) => standby.events(),
        }
    }

    pub fn events_mut(&mut self) -> &mut dyn PartitionEvents {
        match self {
            PartitionHandle::Owned(owned) => owned.events_mut(),
            PartitionHandle::Standby(standby) => standby.events_mut(),
        }
    }

    /// Returns the position that is committed: an owner asks the log for its own, a standby has that of the owner.
    pub fn committed(&mut self) -> Result<Position, Error> {
        match self {
            PartitionHandle::Owned(owned) => owned.position(),
            PartitionHandle::Standby(standby) => Ok(standby.owner_position()?.position),
        }
    }
}

impl From<Box<dyn OwnedPartition>> for PartitionHandle {
    fn from(owned: Box<dyn OwnedPartition>) -> PartitionHandle {
        PartitionHandle::Owned(owned)
    }
}

impl From<Box<dyn StandbyPartition>> for PartitionHandle {
    fn from(standby: Box<dyn StandbyPartition>) -> PartitionHandle {
        PartitionHandle::Standby(standby)
    }
}
