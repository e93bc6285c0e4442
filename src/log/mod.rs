//! The log: partitions of records that are appended durably and read from an offset. One atomic step writes the outputs
//! of a fold together with the position that the fold reached.
//!
//! Every component can use the [`Log`]. Only the owner of a partition has its [`OwnedPartition`], and only a standby a
//! [`StandbyPartition`]. Code that only reads uses a [`Reader`] or a [`Follower`].
//!
//! The log moves bytes and does not interpret them. [`local`] keeps it on one machine, [`kafka`] on a cluster, and
//! [`memory`] in memory for tests, where it fails on demand.

mod commit;
mod error;
mod filling;
mod group;
mod incidents;
mod input;
pub mod kafka;
pub mod local;
pub mod memory;
mod partition;
mod position;
mod readers;
mod record;

pub use commit::{Commit, OutputRecord, Outputs};
pub use error::Error;
pub use filling::{CopiedEvent, FillingLog};
pub use group::{Group, GroupEvent, SingleNode};
pub use incidents::{IncidentPosition, IncidentWriter};
pub use input::{Input, LastRecord};
pub use partition::{OwnedPartition, OwnerPosition, PartitionEvents, PartitionHandle, Reading, StandbyPartition};
pub use position::{Position, UnreadablePosition};
pub use readers::{Beginning, Follower, GroupOffsets, Owners, PollResult, Reader, StandbyNodes};
pub use record::{Headers, ID_HEADER, NewRecord, Record, RecordHeaders, SCHEMA_HEADERS, SchemaHeader, TRACE_HEADER};

use crate::presence::{Offset, Partition};
use crate::topics::Topic;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// How much to read at most. A read returns at least one record if there is one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    pub records: usize,
    pub bytes: usize,
}

/// The records of a topic that a partition keeps: from `start` (the oldest record kept) up to, but not including, `end`
/// (the offset of the next record).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Range {
    pub start: Offset,
    pub end: Offset,
}

/// The partition and offset at which a record was appended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    pub partition: Partition,
    pub offset: Offset,
}

/// Called once, when an append is durable (with a result for every record, in the order given) or failed.
///
/// After [`Error::Partly`] each record has its own result. After any other error, a log on one machine contains none of
/// the records. A log on other machines may contain them, since its answer may have been lost. A client that publishes
/// them again appends them a second time, which the rules allow.
///
/// Called from a thread of the log, or from the caller's thread before the append returns, so it must return at once.
pub type Acknowledge = Box<dyn FnOnce(Result<Vec<Appended>, Error>) + Send>;

/// Called after records of a topic became readable, from one of the log's threads or from the thread that commits. It
/// must return at once.
pub type Listener = Box<dyn Fn(Topic, Partition) + Send + Sync>;

/// A log of partitions, as every component may use it: append, read and listen. To commit, take ownership of a
/// partition with [`Log::take_up`]. Methods may be called from any thread.
pub trait Log: Send + Sync {
    /// Makes this process the owner of a partition. The previous owner can no longer commit ([`Error::Fenced`]). May
    /// take seconds, until an open commit of the previous owner is completed or aborted.
    fn take_up(&self, partition: Partition) -> Result<Box<dyn OwnedPartition>, Error>;

    /// Opens a partition for a standby: it reads the events, learns the owner's committed position, and cannot commit. The
    /// owner is not disturbed. While the log has no position of the owner it cannot be opened.
    fn stand_by(&self, partition: Partition) -> Result<Box<dyn StandbyPartition>, Error> {
        let text =
            format!("partition {partition} can have no standby: no other process can own a partition of this log");
        Err(Error::Open(text.into()))
    }

    /// Returns the number of partitions of every topic, which is fixed when the log is created.
    fn partitions(&self) -> u32;

    /// Appends events and calls `acknowledge` when they are durable. On one machine either all records are appended or
    /// none. A log on several machines may append only some and then reports the result of each ([`Error::Partly`]).
    /// Several appends may share one write.
    fn append(&self, records: Vec<(Partition, NewRecord)>, acknowledge: Acknowledge);

    /// Adds records from offset `from` on to `into`, in order; adds nothing if `from` is at or past the end. The size
    /// of a record is that of its key and value. Only durable events are read. Returns an error if `from` is below the
    /// oldest record kept; records are never skipped.
    fn read(
        &self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<(), Error>;

    fn range(&self, topic: Topic, partition: Partition) -> Result<Range, Error>;

    /// Opens the topic of incidents for writing. Earlier writers can no longer commit.
    fn write_incidents(&self) -> Result<Box<dyn IncidentWriter>, Error> {
        Err(Error::Open("this log keeps no incidents".into()))
    }

    /// Adds incidents from an offset on, or from the oldest one kept, and returns what is kept.
    fn read_incidents(&self, _: Offset, _: Limit, _: &mut Vec<Record>) -> Result<Range, Error> {
        Ok(Range::default())
    }

    /// Called when the events of a partition differ from those that were read before. If the log has another way to
    /// read them, it uses that way when the partition is next taken up.
    fn read_otherwise(&self, _: Partition) {}

    /// Returns the time that an event would get if it were appended now, in milliseconds. `None`: another machine's
    /// clock sets it, and that clock is close to this machine's.
    fn now_ms(&self) -> Option<u64> {
        None
    }

    /// Returns why no events can be appended at present, as far as this process knows. `None`: they can. The log itself
    /// detects when the cause is gone.
    fn refusal(&self) -> Option<Error> {
        None
    }

    /// Whether the log has not answered for so long that another process may have taken the partitions of this one.
    fn is_cut_off(&self) -> bool {
        false
    }

    /// Returns how many bytes of the newest records this log keeps in memory for those who follow it.
    fn kept_bytes(&self) -> usize {
        0
    }

    /// Adds a listener, which is kept as long as the log.
    fn listen(&self, listener: Listener);
}

/// Locks a mutex and ignores poisoning: its holders leave no partial change, so a panic of one of them does no harm.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
