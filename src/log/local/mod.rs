//! The embedded log: partitions on this machine's disk, in one RocksDB, owned by one process.
//!
//! *What is acknowledged stays.* An append is acknowledged after a synced write, and is readable only then. A process
//! that dies at any moment loses nothing acknowledged; a file that lost something of it is found when the log is
//! opened or when the place is read, and is an error with the directory in it, never a gap.
//!
//! *When writing fails* (disk full, mostly) the write fails, and so do later ones until the disk takes writes again;
//! reading goes on. RocksDB does not come back by itself from every such failure and leaves open whether the write is
//! in its write-ahead log, so it is closed and reopened, at most once a second, when somebody wants to write; and
//! whatever is found then beyond what was reported as written is removed before anything else is written. Only if the
//! process dies before that may records of a failed append be found in the log afterwards.
//!
//! *Where things are.* Records are packed into blocks (`block`), blocks and everything else are keyed as `keys`
//! says, `time` says when a record is appended, `tables` tunes RocksDB, `opening` judges what a directory holds, `shard` finds blocks, `append` is the
//! thread that does group commit, `owned` is a partition in the hands of its owner, `recovery` gets over failed writes, `retention` drops what is old, `ends`
//! remembers what was durable, `follow` looks on from another process, `incidents` is a topic that is no partition's, `filling`
//! copies the events of another log in.
//!
//! Deliberately absent: more than one machine, and compression or encryption of its own.

mod append;
mod block;
mod ends;
mod filling;
mod follow;
mod incidents;
mod keys;
mod opening;
mod owned;
mod recovery;
mod retention;
mod shard;
mod tables;
mod time;
mod traced;

pub use filling::LocalFilling;
pub use follow::LocalReader;

use super::{
    Acknowledge, Error, IncidentWriter, Limit, Listener, Log, NewRecord, OwnedPartition, Position, Range, Record,
    locked,
};
use crate::clock::Clock;
use crate::metrics;
use crate::presence::{Offset, Partition};
use crate::tasks;
use crate::topics::Topic;
use append::Queue;
#[cfg(test)]
pub(crate) use block::is_block;
use ends::{Ends, EndsFile};
use incidents::LocalIncidents;
use opening::Purpose;
use owned::LocalPartition;
use recovery::{DatabaseHandle, WriteFailure};
use shard::ShardWriter;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::Duration;
use time::LogClock;
use traced::TracedEvents;

/// How many partitions a new log gets if nobody says.
pub const DEFAULT_PARTITIONS: u32 = 4;

/// The most partitions a log may have.
pub const MAX_PARTITIONS: u32 = 1024;

/// What may be chosen of an embedded log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// How many partitions the log has, 1…[`MAX_PARTITIONS`]; fixed when it is made, and an error if it was made with
    /// another number. None: as many as it has, and [`DEFAULT_PARTITIONS`] for a new one.
    pub partitions: Option<u32>,
    /// Records older than this are dropped, milliseconds. None: age is no reason.
    pub retention_ms: Option<u64>,
    /// As many bytes are kept of each topic in each partition, before compression. None: size is no reason.
    pub retention_bytes: Option<u64>,
    /// As many bytes of appends may wait; more are answered with [`Error::Busy`].
    pub queue_bytes: usize,
    /// The right time when the log is opened, milliseconds, as somebody says who has looked: a machine's clock within an
    /// hour of it is believed. None: only one that is plausible is.
    pub accepted_time_ms: Option<u64>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            partitions: None,
            retention_ms: None,
            retention_bytes: None,
            queue_bytes: 32 * 1024 * 1024,
            accepted_time_ms: None,
        }
    }
}

/// The embedded log. See the module.
pub struct LocalLog {
    shared: Arc<AppenderState>,
    appender: Mutex<Option<JoinHandle<()>>>,
}

/// What the appender's thread shares with the callers.
struct AppenderState {
    dir: PathBuf,
    settings: Settings,
    clock: Arc<dyn Clock>,
    time: LogClock,
    /// A writer holds it for reading until what was written is noted in memory, so that nothing is half noted
    /// when RocksDB is reopened.
    handle: RwLock<DatabaseHandle>,
    /// Locked after the handle.
    trouble: Mutex<Option<WriteFailure>>,
    partitions_shards: Vec<PartitionShards>,
    queue: Queue,
    ends_file: EndsFile,
    /// How often the writing of incidents was taken up: the last one to do so commits. Locked before the handle.
    incident_writers: Mutex<u64>,
    listeners: RwLock<Arc<Vec<Arc<Listener>>>>,
    closed: AtomicBool,
}

/// A partition.
struct PartitionShards {
    shards: [ShardWriter; Topic::ALL.len()],
    /// Of the last commit.
    position: Mutex<Position>,
    /// How often it was taken up: the last one to do so commits. Held while a commit is written.
    owners: Mutex<u64>,
    traced: TracedEvents,
}

impl PartitionShards {
    fn shard(&self, topic: Topic) -> &ShardWriter {
        &self.shards[usize::from(topic.number())]
    }
}

impl LocalLog {
    /// Opens the log in a directory, or makes it. Every error is [`Error::Open`] and names the directory: it cannot be
    /// used, it is another process's, it holds a log of another layout or number of partitions, or it is damaged.
    pub fn open(dir: &Path, settings: Settings, clock: Arc<dyn Clock>) -> Result<LocalLog, Error> {
        LocalLog::open_for(Purpose::Engine, dir, settings, clock)
    }

    /// Keeps every other process from writing to the log in a directory, also after this one has died: its events are moved to
    /// the log that `to` describes. Fails if an engine has it open.
    pub fn leave(dir: &Path, to: &str, clock: Arc<dyn Clock>) -> Result<LocalLog, Error> {
        let log = LocalLog::open_for(Purpose::Moving, dir, Settings::default(), clock)?;
        opening::note_moved(dir, to)?;
        Ok(log)
    }

    /// Returns to which log the events of the log in a directory are or were moved.
    pub fn moved_to(dir: &Path) -> Result<Option<String>, Error> {
        opening::moved_to(dir)
    }

    /// Returns the offset before which each partition's events are durable for sure; `None` if that is not known.
    pub fn durable_events(dir: &Path) -> Result<Option<Vec<Offset>>, Error> {
        let ends = EndsFile::read(dir).map_err(|error| opening::unusable(dir, &error))?;
        let at = usize::from(Topic::Events.number());
        Ok(ends.map(|ends| ends.iter().map(|ends| Offset(ends[at])).collect()))
    }

    fn open_for(purpose: Purpose, dir: &Path, settings: Settings, clock: Arc<dyn Clock>) -> Result<LocalLog, Error> {
        if let Some(partitions) = settings.partitions
            && !(1..=MAX_PARTITIONS).contains(&partitions)
        {
            let text = format!("a log has 1 to {MAX_PARTITIONS} partitions, not {partitions}");
            return Err(Error::Open(text.into()));
        }
        let opening::OpenedTables {
            tables,
            partitions_shards,
            ends_file,
        } = opening::open(dir, settings.partitions, purpose)?;
        let last_ms = newest_ms(&partitions_shards);
        let shared = Arc::new(AppenderState {
            dir: dir.to_owned(),
            queue: Queue::new(settings.queue_bytes),
            time: LogClock::start(clock.clone(), dir, last_ms, settings.accepted_time_ms),
            settings,
            clock,
            handle: RwLock::new(DatabaseHandle { tables: Some(tables) }),
            trouble: Mutex::new(None),
            partitions_shards,
            ends_file,
            incident_writers: Mutex::new(0),
            listeners: RwLock::default(),
            closed: AtomicBool::new(false),
        });
        let for_appender = shared.clone();
        let appender = tasks::spawn("log-append", move || append::run(&for_appender))
            .map_err(|error| opening::unusable(dir, &error))?;
        Ok(LocalLog {
            shared,
            appender: Mutex::new(Some(appender)),
        })
    }

    /// Looks on at the log in a directory, which another process may own and be writing. A log that its owner would
    /// refuse as damaged is an error here too.
    pub fn follow(dir: &Path) -> Result<LocalReader, Error> {
        let no_log = || Error::Open(format!("there is no log in {}", dir.display()).into());
        LocalReader::open(dir, Purpose::Reading)?.ok_or_else(no_log)
    }

    /// Looks on like [`LocalLog::follow`] at a log that no process has open. What [`LocalLog::open`] would refuse is an error
    /// here too. Returns `None` if it would create a log. Writes nothing.
    pub fn judge(dir: &Path) -> Result<Option<LocalReader>, Error> {
        LocalReader::open(dir, Purpose::Engine)
    }

    /// Takes no more appends and commits ([`Error::Closed`]), writes the appends that wait, and syncs. Reading goes
    /// on; the directory is free when the log is dropped, which closes it too.
    pub fn close(&self) -> Result<(), Error> {
        self.shared.closed.store(true, Ordering::Release);
        self.shared.queue.close();
        if let Some(appender) = locked(&self.appender).take()
            // An acknowledge may be what drops the log.
            && appender.thread().id() != std::thread::current().id()
        {
            // A panic was noted where it was caught.
            let _ = appender.join();
        }
        self.shared.sync()
    }
}

impl Drop for LocalLog {
    fn drop(&mut self) {
        if let Err(error) = self.close() {
            tracing::warn!(%error, "the log was closed without a last sync; acknowledged records are safe");
        }
    }
}

impl Log for LocalLog {
    fn take_up(&self, partition: Partition) -> Result<Box<dyn OwnedPartition>, Error> {
        Ok(Box::new(LocalPartition::take_up(self.shared.clone(), partition)?))
    }

    fn partitions(&self) -> u32 {
        self.shared.partitions()
    }

    fn append(&self, records: Vec<(Partition, NewRecord)>, acknowledge: Acknowledge) {
        for (partition, _) in &records {
            if let Err(error) = self.shared.takes_appends(*partition) {
                metrics::append_failed();
                return acknowledge(Err(error));
            }
        }
        if let Err((acknowledge, error)) = self.shared.queue.put(records, acknowledge) {
            metrics::append_failed();
            acknowledge(Err(error));
        }
    }

    fn read(
        &self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<(), Error> {
        self.shared.read(topic, partition, from, limit, into)
    }

    fn range(&self, topic: Topic, partition: Partition) -> Result<Range, Error> {
        self.shared.range(topic, partition)
    }

    fn write_incidents(&self) -> Result<Box<dyn IncidentWriter>, Error> {
        Ok(Box::new(LocalIncidents::take_up(self.shared.clone())))
    }

    fn read_incidents(&self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<Range, Error> {
        let open = self.shared.opened();
        let tables = self.shared.tables(&open)?;
        incidents::read(tables, from, limit, into).map_err(|damage| damage.reading(&self.shared.dir))
    }

    fn now_ms(&self) -> Option<u64> {
        Some(self.shared.time.now_ms())
    }

    fn refusal(&self) -> Option<Error> {
        // The clock first: what is wrong with it needs a person.
        let refusal = self.shared.time.stamp_ms().err();
        refusal.or_else(|| self.shared.writable().err())
    }

    fn listen(&self, listener: Listener) {
        let mut listeners = self.shared.listeners.write().unwrap_or_else(PoisonError::into_inner);
        let mut more = Vec::clone(&listeners);
        more.push(Arc::new(listener));
        *listeners = Arc::new(more);
    }
}

impl AppenderState {
    fn partitions(&self) -> u32 {
        u32::try_from(self.partitions_shards.len()).unwrap_or(u32::MAX)
    }

    fn partition_shards(&self, partition: Partition, or: fn(Arc<str>) -> Error) -> Result<&PartitionShards, Error> {
        self.partitions_shards.get(partition.0 as usize).ok_or_else(|| {
            let count = self.partitions_shards.len();
            or(format!("there is no partition {partition}: the log has {count}").into())
        })
    }

    /// Whether a partition takes appends, as far as it depends on the partition.
    fn takes_appends(&self, partition: Partition) -> Result<(), Error> {
        let tail = *locked(
            &self
                .partition_shards(partition, Error::Write)?
                .shard(Topic::Events)
                .tail,
        );
        if tail.ts <= time::TIME_MAX_MS {
            return Ok(());
        }
        let (dir, last) = (self.dir.display(), time::shown(Duration::from_millis(tail.ts)));
        let text = format!(
            "partition {partition} of events in {dir} takes no more records, since its newest has the time {last}, which \
             is not a possible time. Restore the directory from a copy"
        );
        Err(Error::Write(text.into()))
    }

    fn read(
        &self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<(), Error> {
        let shard = self.partition_shards(partition, Error::Read)?.shard(topic);
        let gone = |start| Error::Gone {
            topic,
            partition,
            wanted: from,
            start: Offset(start),
        };
        let (start, end) = (shard.start(), shard.end());
        if from.0 < start {
            return Err(gone(start));
        }
        if from.0 >= end {
            return Ok(());
        }
        let open = self.opened();
        let tables = self.tables(&open)?;
        match shard::read(tables, (topic, partition), (start, end), from.0, limit, into) {
            Ok(()) => Ok(()),
            // Retention came in between.
            Err(_) if from.0 < shard.start() => Err(gone(shard.start())),
            Err(damage) => Err(damage.reading(&self.dir)),
        }
    }

    fn range(&self, topic: Topic, partition: Partition) -> Result<Range, Error> {
        let shard = self.partition_shards(partition, Error::Read)?.shard(topic);
        // In this order, so that it is never upside down: a start is never past an earlier end.
        let start = Offset(shard.start());
        let end = Offset(shard.end());
        Ok(Range { start, end })
    }

    /// Where every lane ends at present.
    fn ends(&self) -> Ends {
        self.partitions_shards.iter().map(ends_of).collect()
    }

    fn tell(&self, topic: Topic, partition: Partition) {
        let listeners = self.listeners.read().unwrap_or_else(PoisonError::into_inner).clone();
        for listener in listeners.iter() {
            append::call(|| listener(topic, partition));
        }
    }

    fn sync(&self) -> Result<(), Error> {
        let open = self.writable()?;
        let tables = self.tables(&open)?;
        let durable = self.ends();
        if let Err(error) = tables.db().flush_wal(true) {
            return Err(self.in_trouble(error.as_ref()));
        }
        self.ends_file.raise(&durable);
        Ok(())
    }
}

/// The time of the newest record; of none with a time that no clock gives.
fn newest_ms(partitions_shards: &[PartitionShards]) -> Option<u64> {
    let shards = partitions_shards
        .iter()
        .flat_map(|partition_shards| &partition_shards.shards);
    let tails = shards.map(|shard| *locked(&shard.tail)).filter(|tail| tail.end > 0);
    tails.map(|tail| tail.ts).filter(|ts| *ts <= time::TIME_MAX_MS).max()
}

fn ends_of(partition_shards: &PartitionShards) -> [u64; Topic::ALL.len()] {
    Topic::ALL.map(|topic| partition_shards.shard(topic).end())
}
