//! A group of nodes that share the partitions of a log, and one of a single node.

use super::Error;
use crate::presence::Partition;

/// Distributes the partitions of a log among its nodes.
pub trait Group: Send {
    /// Returns the next event without waiting. An error concerns the whole group; the poll is retried.
    fn poll(&mut self) -> Result<Option<GroupEvent>, Error>;

    /// Returns how often the group must be polled, in milliseconds. `None`: once is enough.
    fn poll_every_ms(&self) -> Option<u64>;

    /// Reports that we released partitions that were revoked.
    fn let_go(&mut self, partitions: &[Partition]);

    /// Leaves the group, after all partitions were released. The group gives them to other nodes at once.
    fn leave(&mut self);
}

/// An event of the group.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GroupEvent {
    /// These partitions are ours now.
    Assigned(Vec<Partition>),
    /// These partitions must be released; other nodes wait for that.
    Revoked(Vec<Partition>),
    /// These partitions have already been given to other nodes.
    Lost(Vec<Partition>),
}

/// A group with a single member, which has all partitions.
#[derive(Debug)]
pub struct SingleNode {
    partitions: u32,
    reported: bool,
}

impl SingleNode {
    pub fn new(partitions: u32) -> SingleNode {
        SingleNode {
            partitions,
            reported: false,
        }
    }
}

impl Group for SingleNode {
    fn poll(&mut self) -> Result<Option<GroupEvent>, Error> {
        let first = !std::mem::replace(&mut self.reported, true);
        Ok(first.then(|| GroupEvent::Assigned((0..self.partitions).map(Partition).collect())))
    }

    fn poll_every_ms(&self) -> Option<u64> {
        None
    }

    fn let_go(&mut self, _: &[Partition]) {}

    fn leave(&mut self) {}
}
