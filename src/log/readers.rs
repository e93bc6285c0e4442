//! Those who only read: from outside, as a member of a group, and to learn who has which partition. What they are given
//! is the same wherever the log is.

use super::{Error, Limit, Position, Range, Record};
use crate::presence::{Offset, Partition, Revision};
use crate::topics::{OutputTopic, Topic};
use std::collections::BTreeMap;
use std::time::Duration;

/// Looks on at a log that a server may own and be writing to, one reader at a time.
pub trait Reader {
    /// How many partitions every topic has.
    fn partitions(&self) -> u32;

    /// What is kept of a topic in a partition, as of the last refresh.
    fn range(&self, topic: Topic, partition: Partition) -> Result<Range, Error>;

    /// As [`Log::read`](super::Log::read), as of the last refresh.
    fn read(
        &mut self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<(), Error>;

    /// Returns the offset before which [`Reader::read`] has returned every record, as far as it has read that topic. A read
    /// that returns nothing while this is before the end has not reached the end: a log on other machines may only be slow.
    fn reached(&self, topic: Topic, partition: Partition) -> Result<Offset, Error>;

    /// Returns how far the engines have folded and committed a partition; the default if they have not begun. `group` is
    /// theirs, where the log is on Kafka.
    fn position(&self, group: &str, partition: Partition) -> Result<Position, Error>;

    /// Adds the records of a compacted output that are at or after an offset; nothing at its end. Returns false where the log
    /// does not have it (see [`OwnedPartition::keeps_newest`](super::OwnedPartition::keeps_newest)).
    fn read_newest(
        &mut self,
        _: OutputTopic,
        _: Partition,
        _: Offset,
        _: Limit,
        _: &mut Vec<Record>,
    ) -> Result<bool, Error> {
        Ok(false)
    }

    /// Adds incidents from an offset on, or from the oldest one kept, and returns what is kept, as of the last refresh.
    fn read_incidents(&mut self, _: Offset, _: Limit, _: &mut Vec<Record>) -> Result<Range, Error> {
        Ok(Range::default())
    }

    /// Sees what was written until now.
    fn refresh(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Whether an error may pass by itself: brokers come back, a file that cannot be read does not repair itself.
    fn may_recover(&self, error: &Error) -> bool;
}

/// Which node has which partition, as the owners say. It may be late, never wrong for good.
pub trait Owners: Send + Sync {
    /// Where the node answers that took a partition up last: the start of a URL.
    fn url_of(&self, partition: Partition) -> Option<String>;

    /// The newest revision that every node knows which has taken a partition up; none while there is no such node.
    fn lowest_revision(&self) -> Option<Revision>;

    /// Returns where the nodes answer that have a standby of a partition ready: starts of URLs.
    fn standbys_of(&self, _: Partition) -> Vec<String> {
        Vec::new()
    }
}

/// The nodes that stand by for each other's partitions. What they say of themselves may be late, never wrong for good.
pub trait StandbyNodes: Send + Sync {
    /// Returns where this node answers: the start of a URL.
    fn this_node(&self) -> &str;

    /// Returns where the nodes answer that stand by and have said so lately. This node may be missing.
    fn nodes(&self) -> Vec<String>;

    /// Says to the others for which partitions this node has a standby that can answer. Returns at once.
    fn announce(&self, ready: Vec<Partition>);

    /// Says to the others that this node no longer stands by.
    fn leave(&self);
}

/// Where a group begins in a partition of which it has no offset yet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beginning {
    /// With the oldest record that is kept.
    Earliest,
    /// With what comes.
    Latest,
}

/// What a poll has returned: a change of the partitions of this reader, or records.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PollResult {
    /// These partitions are ours from now on; each begins at its offset.
    Begins(BTreeMap<Partition, Offset>),
    /// Nothing more comes of these. Others wait until they are [let go of](Follower::let_go); with `lost` they have
    /// been given away already, and an offset committed for them would be another's.
    Ends { partitions: Vec<Partition>, lost: bool },
    /// The next records of a partition.
    Records(Partition, Vec<Record>),
    /// There are no more at the moment; behind the last one there may be marks of transactions.
    Reached(Partition, Offset),
}

/// A topic read by a group: each member has some of the partitions, and the group's offsets say where it goes on.
///
/// For readers beside the engine, which have no state but their position. Committed records alone, in the order of
/// their partition, and none is skipped.
pub trait Follower: Send {
    /// What the group has to say. To be called at least every few seconds, or the group takes this member for dead. An
    /// error other than [`Error::Gone`] passes: what it was about is tried again.
    fn hear(&mut self) -> Result<Option<PollResult>, Error>;

    /// What is there of one partition, in turn. The same holds for errors as of [`hear`](Follower::hear).
    fn read(&mut self) -> Result<Option<PollResult>, Error>;

    /// Where the group keeps how far it is.
    fn offsets(&self) -> Box<dyn GroupOffsets>;

    /// These may be others' from now on.
    fn let_go(&mut self, partitions: &[Partition]);

    /// Returns when there may be something to read, or after this long.
    fn wait(&self, most: Duration);

    /// Lets the group share out at once what this one has.
    fn leave(self: Box<Self>);
}

/// The offsets that a group keeps: of each partition the next record that is not done. For any thread.
pub trait GroupOffsets: Send + Sync {
    /// Commits the next offset of each partition; `wait`: until the group has it. What fails later is logged.
    fn commit(&self, next: &BTreeMap<Partition, Offset>, wait: bool) -> Result<(), Error>;
}
