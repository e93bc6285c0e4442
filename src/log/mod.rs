//! What a log is: partitions of records, appended durably, read from an offset, and one atomic step that writes what
//! a fold gave together with how far it got.
//!
//! Everybody has the [`Log`]; the owner of a partition, and nobody else, has its [`OwnedPartition`]. Who only reads has
//! a [`Reader`] or a [`Follower`].
//!
//! The log moves bytes and knows nothing of what they mean. [`local`] keeps it on one machine, [`kafka`] on a cluster,
//! [`memory`] in memory for tests, failing on demand.

mod input;
pub mod kafka;
pub mod local;
pub mod memory;
mod readers;

pub use input::{Input, LastRecord};
pub use readers::{Beginning, Follower, GroupOffsets, Owners, PollResult, Reader};

use crate::presence::{LogTime, Offset, Partition, Revision};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The sequences that a partition consists of; each has offsets of its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Topic {
    Events,
    Changes,
    Kicks,
    /// Malformed records of `Events`, kept whole.
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

/// The topics that outputs go to; with [`Topic`] it has the names of those that every log has.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum OutputTopic {
    Changes,
    Kicks,
    Quarantine,
    /// The newest state of users, in a log that keeps it ([`OwnedPartition::keeps_current`]).
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

/// A record to be written. Where it stands and its time are the log's to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewRecord {
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
    pub headers: Headers,
}

/// Names and values beside a record. Only a log that keeps headers gets any ([`OwnedPartition::keeps_headers`]).
pub type Headers = Vec<(&'static str, Vec<u8>)>;

/// The header of a record in which serializers name the schema of its value. It and [`TRACE_HEADER`] are read, no others.
pub const SCHEMA_HEADER: &str = "__value_schema_id";
/// The header that says which trace a record belongs to (W3C Trace Context).
pub const TRACE_HEADER: &str = "traceparent";

/// A record as it was read.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    pub offset: Offset,
    /// Milliseconds, set by the log when it appended. Never steps back within a partition of the embedded log.
    pub ts: u64,
    pub key: Option<Vec<u8>>,
    pub value: Vec<u8>,
    /// It has no value at all, which only a log that others write to may have; `value` is empty then.
    pub is_null: bool,
    /// The header [`SCHEMA_HEADER`], which only a log that others write to may have.
    pub schema_header: Option<Box<[u8]>>,
    /// The header [`TRACE_HEADER`], as its writer set it.
    pub traceparent: Option<Box<[u8]>>,
}

impl Record {
    /// What says with which schema its value was written: the header, if there is one, and the value's first bytes.
    pub fn framed(&self) -> (Option<&[u8]>, &[u8]) {
        (self.schema_header.as_deref(), &self.value)
    }
}

/// How far the fold of a partition got, committed together with its outputs.
///
/// A commit may fall inside a record: `outputs` changes and kicks of the record at `next` are out already, and all of
/// every record before it. `time`, `seq`, `chain` and `input` are the check that folding again came to the same point.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Position {
    /// The first record of which not everything is out; its offset may not exist yet.
    pub next: Offset,
    pub outputs: u64,
    /// Log time; of the record at `next` already, if `outputs` is not 0.
    pub time: Option<LogTime>,
    /// How many changes are out.
    pub seq: u64,
    /// BLAKE3 over the chain before and the datum of an output, for each output so far.
    pub chain: [u8; 32],
    /// The revision in force before the record at `next`.
    pub revision: Revision,
    /// What was read before the record at `next`; none if a version wrote the position that did not keep it.
    pub input: Option<Input>,
}

/// Why bytes are no position.
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

/// What is known of a user from here on, for a topic that keeps the newest of each key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CurrentRecord {
    pub key: Vec<u8>,
    /// The event that it is of.
    pub offset: Offset,
    /// None: there is nothing any more.
    pub value: Option<Vec<u8>>,
    pub headers: Headers,
}

/// How much to read at most; at least one record is given if there is one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limit {
    pub records: usize,
    pub bytes: usize,
}

/// What is kept of a topic in a partition: from `start` (the oldest record kept) to before `end` (the next to come).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Range {
    pub start: Offset,
    pub end: Offset,
}

/// How reading goes ([`OwnedPartition::reading`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reading {
    /// Everything before this offset was read, also what is no record: on Kafka aborted records, and marks of transactions.
    pub reached: Offset,
    /// [`OwnedPartition::is_at_end`]: there is no more to read at the moment.
    pub is_at_end: bool,
    /// Since when the log gives no answer at all, by the monotonic clock.
    pub unanswered_since_ms: Option<u64>,
}

/// The world failed. What the caller can do is in the variant.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The records from this offset on are not there any more; `start` is the oldest one kept.
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
    /// Nothing more can be written until somebody acts (disk full, directory gone). What was acknowledged is safe, and
    /// reading goes on.
    #[error("the log cannot be written: {0}")]
    Write(Arc<str>),
    /// What is on disk cannot be read.
    #[error("the log cannot be read: {0}")]
    Read(Arc<str>),
    /// The directory cannot be used at all: not writable, of another layout, open in another process.
    #[error("{0}")]
    Open(Arc<str>),
    /// Another owner has taken the partition over: what this one folded no longer counts.
    #[error("partition {partition} was taken over by another owner")]
    Fenced { partition: Partition },
    /// Of an append to several partitions some records are durable and some are not, in the order they were given.
    #[error("only {} of {} records were written", .0.iter().filter(|one| one.is_ok()).count(), .0.len())]
    Partly(Arc<[Result<Appended, Arc<str>>]>),
    /// The log is being closed.
    #[error("the log is closed")]
    Closed,
}

/// Where an append went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    pub partition: Partition,
    pub offset: Offset,
}

/// Called once, when an append is durable (every record, in the order given) or failed. After [`Error::Partly`] each
/// record's own result says what became of it. After any other error nothing is promised about the log itself: where it is
/// on other machines, an answer may have been lost on its way, and the records are there all the same. Who publishes them
/// again appends them a second time, which the rules allow for. On one machine none of them is in the log. Called from a thread of the log, or from the caller's before the append returns, so it must return
/// at once.
pub type Acknowledge = Box<dyn FnOnce(Result<Vec<Appended>, Error>) + Send>;

/// Told after records of a topic became readable. Called from the log's threads or from the one that commits, so it must
/// return at once.
pub type Listener = Box<dyn Fn(Topic, Partition) + Send + Sync>;

/// A log of partitions, as everybody may use it: append, read and listen. Who wants to commit takes a partition up.
/// Calls may come from any thread.
pub trait Log: Send + Sync {
    /// Makes this process the owner of a partition: its previous owner can commit nothing more ([`Error::Fenced`]). May
    /// take seconds, until an open commit of the owner before is settled.
    fn take_up(&self, partition: Partition) -> Result<Box<dyn OwnedPartition>, Error>;

    /// How many partitions every topic has; fixed when the log was made.
    fn partitions(&self) -> u32;

    /// Appends events and acknowledges when they are durable: all or none, unless the log is on several machines, which
    /// then says what became of each ([`Error::Partly`]). Several appends may share one write.
    fn append(&self, records: Vec<(Partition, NewRecord)>, acknowledge: Acknowledge);

    /// Adds to `into` what there is from an offset on, in order; nothing if that is the end or past it. A record counts
    /// for the bytes of its key and value. Only durable events are read. An offset below the oldest record kept is an
    /// error, never skipped.
    fn read(
        &self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<(), Error>;

    fn range(&self, topic: Topic, partition: Partition) -> Result<Range, Error>;

    /// Has the events of a partition read in another way when it is taken up next, where there is one: they were not the
    /// ones that were read before.
    fn read_otherwise(&self, _: Partition) {}

    /// The time that an event would get if it were appended now, in milliseconds. None: another machine's clock says it,
    /// which is about this one's.
    fn now_ms(&self) -> Option<u64> {
        None
    }

    /// Why no events can be appended at present, as far as this process knows; none: they can. Finds out by itself when
    /// that is over.
    fn refusal(&self) -> Option<Error> {
        None
    }

    /// Adds a listener for as long as the log lives.
    fn listen(&self, listener: Listener);
}

/// A partition of a log in the hands of its owner: the permit to commit. There is one of it for each [`Log::take_up`], it
/// cannot be copied, and what is not in it can only read and append. Of two that were given for the same partition the
/// older one is refused with [`Error::Fenced`].
pub trait OwnedPartition: Send {
    fn partition(&self) -> Partition;

    /// How many partitions the log has.
    fn partitions(&self) -> u32;

    /// Reads events, as [`Log::read`] does.
    fn read(&mut self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<(), Error>;

    /// Says which record was folded last. A reader that starts again reads it as well, where that makes sense, and fails if
    /// it is not there as it was.
    fn follows(&mut self, _: Option<LastRecord>) {}

    /// What there is of the events.
    fn range(&self) -> Result<Range, Error>;

    /// Whether an [`OwnedPartition::read`] that gave nothing means that there is nothing: a log on other machines may
    /// only be slow.
    fn is_at_end(&self) -> bool {
        true
    }

    /// How reading goes, to judge whether it makes progress.
    fn reading(&self) -> Reading {
        Reading {
            reached: Offset(0),
            // Nobody else's transactions are in it.
            is_at_end: false,
            unanswered_since_ms: None,
        }
    }

    /// Writes outputs and position in one atomic step. It survives the death of the process at once, that of the
    /// machine after [`OwnedPartition::sync`]: what is lost then is folded again, to the same bytes. A position past the
    /// end of the events can only be a mistake of the caller; the embedded log refuses it.
    fn commit(&mut self, commit: &Commit) -> Result<(), Error>;

    /// The position of the last commit; the default if there was none. After a commit that failed this settles whether
    /// it got through.
    fn position(&mut self) -> Result<Position, Error>;

    /// Whether the log has a position of this partition, which may be the default.
    fn has_position(&self) -> bool {
        true
    }

    /// What of an output topic is committed, asked now. None: outputs and position are written in one step that nothing
    /// can tear, so that there is nothing to compare.
    fn outputs_range(&mut self, _: OutputTopic) -> Result<Option<Range>, Error> {
        Ok(None)
    }

    /// Reads committed outputs from an offset on. Waits until there is at least one, or none to come.
    fn read_outputs(&mut self, _: OutputTopic, _: Offset, _: Limit, _: &mut Vec<Record>) -> Result<(), Error> {
        Ok(())
    }

    /// Asks the log whether this process still owns the partition: [`Error::Fenced`] if not. For a process that was
    /// asleep and cannot know.
    fn confirm(&mut self) -> Result<(), Error> {
        Ok(())
    }

    /// Makes every commit so far survive the death of the machine.
    fn sync(&mut self) -> Result<(), Error>;

    /// Drops old records as the log's retention says, but no event at or after `floor`, which is still needed.
    fn retain(&mut self, floor: Offset) -> Result<(), Error>;

    /// How far apart commits of outputs are to begin at least, in milliseconds: where a commit costs much and many
    /// partitions share a machine.
    fn commit_pause_ms(&self) -> u64 {
        0
    }

    /// Whether commits are to bring the newest state of users along.
    fn keeps_current(&self) -> bool {
        false
    }

    /// Whether records keep headers.
    fn keeps_headers(&self) -> bool {
        false
    }
}

/// How partitions are shared out among the nodes that work on one log.
pub trait Group: Send {
    /// What is new, without waiting. An error concerns the group as a whole and is tried again.
    fn poll(&mut self) -> Result<Option<GroupEvent>, Error>;

    /// How often it wants to be polled, in milliseconds; none: once is enough.
    fn poll_every_ms(&self) -> Option<u64>;

    /// We have let go of partitions that we were asked for.
    fn let_go(&mut self, partitions: &[Partition]);

    /// Leaves, after everything was let go of: what we had is given to others at once.
    fn leave(&mut self);
}

/// What a group has to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum GroupEvent {
    /// These are ours.
    Assigned(Vec<Partition>),
    /// These are wanted back; others wait until they were let go of.
    Revoked(Vec<Partition>),
    /// These have been given to others already.
    Lost(Vec<Partition>),
}

/// A group of one, which has everything.
#[derive(Debug)]
pub struct SingleNode {
    partitions: u32,
    told: bool,
}

impl SingleNode {
    pub fn new(partitions: u32) -> SingleNode {
        SingleNode {
            partitions,
            told: false,
        }
    }
}

impl Group for SingleNode {
    fn poll(&mut self) -> Result<Option<GroupEvent>, Error> {
        let first = !std::mem::replace(&mut self.told, true);
        Ok(first.then(|| GroupEvent::Assigned((0..self.partitions).map(Partition).collect())))
    }

    fn poll_every_ms(&self) -> Option<u64> {
        None
    }

    fn let_go(&mut self, _: &[Partition]) {}

    fn leave(&mut self) {}
}

impl Position {
    /// Whether the same was read before this point as before another; none: it is not known.
    pub fn was_read_alike(&self, other: &Position) -> Option<bool> {
        let (one, other) = (self.input?, other.input?);
        (one.since == other.since).then_some(one == other)
    }

    /// Of the layout of its bytes. Version 1 ended before `revision`; there was only the first then, and `input` was not
    /// kept.
    const VERSION: u8 = 2;

    /// At most 4,096 bytes, the bound of an offset's metadata in Kafka; in fact 112.
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

/// A lock whose holders leave nothing half done, so that a panic of one is no reason to give up.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
