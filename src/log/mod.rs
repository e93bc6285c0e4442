//! The log: partitions of records that are appended durably and read from an offset. One atomic step writes the outputs
//! of a fold together with the position that the fold reached.
//!
//! Every component can use the [`Log`]. Only the owner of a partition has its [`OwnedPartition`], and only a standby a
//! [`StandbyPartition`]. Code that only reads uses a [`Reader`] or a [`Follower`].
//!
//! The log moves bytes and does not interpret them. [`local`] keeps it on one machine, [`kafka`] on a cluster, and
//! [`memory`] in memory for tests, where it fails on demand.

mod filling;
mod incidents;
mod input;
pub mod kafka;
pub mod local;
pub mod memory;
mod partition;
mod readers;

pub use filling::{CopiedEvent, FillingLog};
pub use incidents::{IncidentPosition, IncidentWriter};
pub use input::{Input, LastRecord};
pub use partition::{OwnedPartition, OwnerPosition, PartitionEvents, PartitionHandle, Reading, StandbyPartition};
pub use readers::{Beginning, Follower, GroupOffsets, Owners, PollResult, Reader, StandbyNodes};

use crate::presence::change::OutputId;
use crate::presence::{LogTime, Offset, Partition, Revision};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The record sequences of a partition; each has its own offsets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Topic {
    Events,
    Changes,
    Kicks,
    /// Malformed records of `Events`, stored unchanged.
    Quarantine,
}

impl Topic {
    pub const ALL: [Topic; 4] = [Topic::Events, Topic::Changes, Topic::Kicks, Topic::Quarantine];

    pub fn name(self) -> &'static str {
        match self {
            Topic::Events => "events",
            Topic::Changes => "changes",
            Topic::Kicks => "kicks",
            Topic::Quarantine => "quarantine",
        }
    }
}

/// The topics that outputs are written to. Those that every log has have the same names as in [`Topic`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum OutputTopic {
    Changes,
    Kicks,
    Quarantine,
    /// The newest state of each user, in a log that keeps it ([`OwnedPartition::keeps_current`]).
    Current,
}

impl OutputTopic {
    pub fn name(self) -> &'static str {
        match self {
            OutputTopic::Changes => Topic::Changes.name(),
            OutputTopic::Kicks => Topic::Kicks.name(),
            OutputTopic::Quarantine => Topic::Quarantine.name(),
            OutputTopic::Current => "current",
        }
    }
}

/// A record to be written. The log sets its offset and its time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewRecord {
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
    pub headers: Headers,
}

/// Names and values of a record's headers. Only a log that keeps headers stores them
/// ([`OwnedPartition::keeps_headers`]); another one remembers the traces of the newest events for their owner.
pub type Headers = Vec<(&'static str, Vec<u8>)>;

/// The header with the id of an output.
pub const ID_HEADER: &str = "id";
/// The record headers in which serializers name the schema of the value: Confluent's, and two of Apicurio's. The first of these
/// that a record has counts. Of events only these and [`TRACE_HEADER`] are read.
pub const SCHEMA_HEADERS: [&str; 3] = [
    "__value_schema_id",
    "apicurio.value.contentId",
    "apicurio.value.globalId",
];
/// The record header that names the trace of a record (W3C Trace Context).
pub const TRACE_HEADER: &str = "traceparent";

/// A record that was read from the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    pub offset: Offset,
    /// Time of the append in milliseconds, set by the log. Never decreases within a partition of the embedded log.
    pub ts: u64,
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
    /// The record has no value, and `value` is empty. Possible only in a log that other programs write to.
    pub is_null: bool,
    /// `None` for most records, and for every record of a log that keeps no headers.
    pub headers: Option<Box<RecordHeaders>>,
}

/// The headers of a record that are read; apart from it, since few records have any and all of them are moved and copied.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct RecordHeaders {
    /// The first of the [`SCHEMA_HEADERS`]. Possible only in a log that other programs write to.
    pub schema: Option<SchemaHeader>,
    /// [`TRACE_HEADER`], as the writer of the record set it.
    pub traceparent: Option<Box<[u8]>>,
    /// [`ID_HEADER`] of an output.
    pub id: Option<Box<[u8]>>,
}

/// A header that names the schema of a value.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SchemaHeader {
    /// One of [`SCHEMA_HEADERS`].
    pub name: &'static str,
    pub value: Box<[u8]>,
}

impl RecordHeaders {
    /// Returns `None` if there is no header.
    pub fn boxed(self) -> Option<Box<RecordHeaders>> {
        (self != RecordHeaders::default()).then(|| Box::new(self))
    }
}

impl Record {
    pub fn schema_header(&self) -> Option<&SchemaHeader> {
        self.headers.as_ref()?.schema.as_ref()
    }

    pub fn traceparent(&self) -> Option<&[u8]> {
        self.headers.as_ref()?.traceparent.as_deref()
    }

    /// Returns the header [`ID_HEADER`] of an output.
    pub fn id(&self) -> Option<&[u8]> {
        self.headers.as_ref()?.id.as_deref()
    }

    /// Returns what identifies the schema of the value: name and value of the schema header, if there is one, and the value of
    /// the record, whose first bytes may name the schema.
    pub fn framed(&self) -> (Option<(&str, &[u8])>, &[u8]) {
        let header = self.schema_header();
        (header.map(|header| (header.name, &*header.value)), &self.value)
    }
}

/// How far the fold of a partition got, committed together with its outputs.
///
/// A commit may end inside a record: the first `outputs` changes and kicks of the record at `next` are already written,
/// and so is all output of every earlier record. `time`, `seq`, `chain` and `input` are used to check that a repeated
/// fold reached the same point.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Position {
    /// The first record whose output is not completely written; no record with this offset may exist yet.
    pub next: Offset,
    pub outputs: u64,
    /// Log time. If `outputs` is not 0, it already includes the record at `next`.
    pub time: Option<LogTime>,
    /// Number of changes written so far.
    pub seq: u64,
    /// BLAKE3 over the previous chain and the data of an output, updated for each output.
    pub chain: [u8; 32],
    /// The revision in force before the record at `next`.
    pub revision: Revision,
    /// What was read before the record at `next`. `None` if the position was written by a version that did not keep it.
    pub input: Option<Input>,
}

/// Why bytes cannot be read as a position.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnreadablePosition {
    #[error("is not a position of an engine")]
    NotOne,
    #[error(
        "has version {version}, but this program knows versions up to {}: a later version wrote it; start that version, \
         or one after it",
        Position::VERSION
    )]
    Later { version: u8 },
}

/// What one atomic step adds to a partition.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Commit {
    pub changes: Vec<NewRecord>,
    pub kicks: Vec<NewRecord>,
    pub quarantine: Vec<NewRecord>,
    /// The newest state of users, for a log that keeps it ([`OwnedPartition::keeps_current`]).
    pub current: Vec<CurrentRecord>,
    pub position: Position,
}

/// The new state of a user, for a topic that keeps the newest record of each key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CurrentRecord {
    pub key: Vec<u8>,
    /// The id of the change that gave it.
    pub id: OutputId,
    /// `None`: the user has no state any more.
    pub value: Option<Vec<u8>>,
    pub headers: Headers,
}

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

    /// Returns how many bytes of the newest records this log keeps in memory for those who follow it.
    fn kept_bytes(&self) -> usize {
        0
    }

    /// Adds a listener, which is kept as long as the log.
    fn listen(&self, listener: Listener);
}

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

impl Position {
    /// Returns whether both positions were reached after reading the same records. `None`: not known.
    pub fn was_read_alike(&self, other: &Position) -> Option<bool> {
        let (one, other) = (self.input?, other.input?);
        (one.since == other.since).then_some(one == other)
    }

    /// Version of the byte layout. Version 1 ended before `revision`: only the first revision existed then, and `input`
    /// was not kept.
    const VERSION: u8 = 2;

    /// Returns at most 4,096 bytes, Kafka's limit for the metadata of an offset; currently 112.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![Self::VERSION];
        bytes.extend_from_slice(&self.next.0.to_be_bytes());
        bytes.extend_from_slice(&self.outputs.to_be_bytes());
        bytes.push(u8::from(self.time.is_some()));
        bytes.extend_from_slice(&self.time.unwrap_or_default().0.to_be_bytes());
        bytes.extend_from_slice(&self.seq.to_be_bytes());
        bytes.extend_from_slice(&self.chain);
        bytes.extend_from_slice(&self.revision.0.to_be_bytes());
        bytes.push(u8::from(self.input.is_some()));
        bytes.extend_from_slice(&self.input.unwrap_or_default().to_bytes());
        bytes
    }

    /// Reads bytes of this version of the layout and of every earlier one.
    pub fn from_bytes(bytes: &[u8]) -> Result<Position, UnreadablePosition> {
        let version = *bytes.first().ok_or(UnreadablePosition::NotOne)?;
        if version > Self::VERSION {
            return Err(UnreadablePosition::Later { version });
        }
        Self::of_version(version, &bytes[1..]).ok_or(UnreadablePosition::NotOne)
    }

    fn of_version(version: u8, rest: &[u8]) -> Option<Position> {
        const FIRST: usize = 8 + 8 + 1 + 8 + 8 + 32;
        let number = |at: usize| Some(u64::from_be_bytes(rest.get(at..at + 8)?.try_into().ok()?));
        let (length, revision, input) = match version {
            1 => (FIRST, Revision::FIRST, None),
            2 => {
                let revision = rest.get(FIRST..FIRST + 4)?.try_into().ok()?;
                let has_input = *rest.get(FIRST + 4)? != 0;
                let input = Input::from_bytes(rest.get(FIRST + 5..)?)?;
                (
                    rest.len(),
                    Revision(u32::from_be_bytes(revision)),
                    has_input.then_some(input),
                )
            }
            _ => return None,
        };
        if rest.len() != length {
            return None;
        }
        Some(Position {
            next: Offset(number(0)?),
            outputs: number(8)?,
            time: match rest[16] {
                0 => None,
                _ => Some(LogTime(number(17)?)),
            },
            seq: number(25)?,
            chain: rest[33..FIRST].try_into().ok()?,
            revision,
            input,
        })
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for OutputTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Locks a mutex and ignores poisoning: its holders leave no partial change, so a panic of one of them does no harm.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
