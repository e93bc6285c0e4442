//! Where an audit reads: a data directory, Kafka, or files that `rollcall log` printed.

mod belonging;
mod found;
mod lines;

use super::interrupt::check_interrupted;
use crate::api::answers::ChangeData;
use crate::audit::verify::QuarantinedEvent;
use crate::checkpoint::{Listed, Origin};
use crate::clock::{Deadline, SystemClock};
use crate::command::cluster::Cluster;
use crate::command::directories;
use crate::command::log::open;
use crate::command::progress::ReadProgress;
use crate::command::schemas::schemas_of;
use crate::config::SecretUrl;
use crate::engine::{self, rejected::decode};
use crate::log::{self, Limit, Position, Range, Reader, Record};
use crate::presence::change::Change;
use crate::presence::event::Event;
use crate::presence::policy::Policy;
use crate::presence::{LogTime, Offset, Partition};
use crate::registry::{LearnedSchemas, Schemas};
use crate::schema::avro::UserState;
use crate::schema::partitioner::check_partition;
use crate::schema::{avro, json};
use crate::topics::{OutputTopic, Topic};
use crate::version::newest_revision;
use anyhow::{Context as _, bail};
pub use found::{FoundOutputs, topic_of};
use lines::each_line;
use std::borrow::Cow;
use std::ops::ControlFlow;
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;
use tokio::runtime::Runtime;

/// What one read returns at most.
const LIMIT: Limit = Limit {
    records: 10_000,
    bytes: 4 << 20,
};
/// How long the client of a log on other machines may take to return records that the log has, and how often it is asked.
const READ_PATIENCE: Duration = Duration::from_secs(10);
const READ_PAUSE: Duration = Duration::from_millis(20);
/// What `--changes` without a file has as its value: no argument can have a zero byte.
pub const NO_FILE: &str = "\0";
/// The data directory where none is named.
const DATA: &str = "./rollcall-data";

/// Where the records are.
#[derive(clap::Args, Clone, Debug)]
pub struct SourceFlags {
    /// The data directory of a server, which may be running; the log is in its `log` [default: ./rollcall-data]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Reads from Apache Kafka instead, committed records only: its brokers, separated by commas
    #[arg(long, value_name = "HOST:PORT", env = "ROLLCALL_KAFKA")]
    kafka: Option<String>,
    #[command(flatten)]
    cluster: Cluster,
    /// The consumer group of the engines on Kafka, whose position says how far they are
    #[arg(long, value_name = "NAME", requires = "kafka", default_value = "rollcall")]
    group: String,
    /// A schema registry, where one was used
    #[arg(long, value_name = "URL", env = "ROLLCALL_REGISTRY", hide_env_values = true)]
    registry: Option<SecretUrl>,
    /// Events of one partition in a file, as `rollcall log events` prints them
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// Changes of one partition in a file, as `rollcall log changes` prints them
    #[arg(long, value_name = "FILE")]
    changes: Option<PathBuf>,
    /// Kicks of one partition in a file, as `rollcall log kicks` prints them
    #[arg(long, value_name = "FILE")]
    kicks: Option<PathBuf>,
    /// Only this partition, from 0; with files: the partition that they are of [default with files: the one that their changes
    /// name, else 0; for `verify` 0]
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// With files: how many partitions the log has; then a user of another partition makes a record malformed
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u32).range(1..))]
    partitions: Option<u32>,
    /// The first policy, a JSON file; without it the default policy. Policy records of the log replace it. For `what-if`: the
    /// policy to try
    #[arg(long, value_name = "FILE")]
    pub policy: Option<PathBuf>,
    /// Prints JSON, an object a line, instead of text
    #[arg(long)]
    pub json: bool,
}

/// Records of one reader at a time; a thread that reads in parallel opens its own.
pub enum AuditSource<'f> {
    Log {
        flags: &'f SourceFlags,
        reader: Box<dyn Reader>,
        schemas: Box<Schemas>,
        /// What the registry is asked with.
        _runtime: Option<Box<Runtime>>,
    },
    Files {
        flags: &'f SourceFlags,
        partition: Partition,
    },
}

impl SourceFlags {
    pub fn first_policy(&self) -> anyhow::Result<Policy> {
        Ok(crate::config::read_policy(self.policy.as_deref())?.unwrap_or_default())
    }

    /// Returns the file with a topic's records, if one was given.
    fn file_of(&self, topic: Topic) -> Option<&Path> {
        let file = match topic {
            Topic::Events => &self.events,
            Topic::Changes => &self.changes,
            Topic::Kicks => &self.kicks,
            Topic::Quarantine => return None,
        };
        // `export --changes` without a file says what is exported.
        file.as_deref().filter(|file| file.as_os_str() != NO_FILE)
    }

    /// Returns whether a topic was named without a file, which `export` takes for what is exported.
    pub fn is_bare(&self, topic: Topic) -> bool {
        let file = match topic {
            Topic::Events => &self.events,
            Topic::Changes => &self.changes,
            Topic::Kicks | Topic::Quarantine => return false,
        };
        file.as_ref().is_some_and(|file| file.as_os_str() == NO_FILE)
    }

    pub fn has_file(&self, topic: Topic) -> bool {
        self.file_of(topic).is_some()
    }

    fn data(&self) -> &Path {
        self.data.as_deref().unwrap_or(Path::new(DATA))
    }

    /// Returns the name under which the engines keep checkpoints.
    pub fn group(&self) -> &str {
        &self.group
    }

    pub fn has_files(&self) -> bool {
        self.files().next().is_some()
    }

    fn files(&self) -> impl Iterator<Item = &Path> {
        let topics = [Topic::Events, Topic::Changes, Topic::Kicks];
        topics.into_iter().filter_map(|topic| self.file_of(topic))
    }

    /// Returns the flags with the partition that the files are of. Refuses files that do not belong together: then an answer
    /// would be wrong. `verify` does without: it has its own comparison.
    pub fn checked(&self) -> anyhow::Result<SourceFlags> {
        let mut checked = self.clone();
        if self.has_files() {
            for file in self.files() {
                if file.metadata().is_ok_and(|metadata| metadata.file_type().is_fifo()) {
                    let file = file.display();
                    bail!("{file} is a pipe, and files are read more than once; write it to a file first");
                }
            }
            let named = match self.partition {
                Some(partition) => Partition(partition),
                None => belonging::named_partition(self)?.unwrap_or(Partition(0)),
            };
            belonging::check(self, named)?;
            checked.partition = Some(named.0);
        }
        Ok(checked)
    }

    pub fn open(&self) -> anyhow::Result<AuditSource<'_>> {
        let given = [
            ("--data", self.data.is_some()),
            ("--kafka", self.kafka.is_some()),
            ("files (--events, --changes, --kicks)", self.has_files()),
        ];
        let given: Vec<&str> = given
            .into_iter()
            .filter_map(|(name, is_given)| is_given.then_some(name))
            .collect();
        if given.len() > 1 {
            bail!(
                "{} cannot be combined; name one place to read from",
                given.join(" and ")
            );
        }
        if !self.has_files() {
            if let Some(count) = self.partitions {
                bail!("--partitions {count} is only for files; a log knows how many partitions it has");
            }
            return self.of_log(open(self.kafka.as_deref(), self.data(), &self.cluster)?);
        }
        let partition = self.partition.unwrap_or(0);
        if let Some(count) = self.partitions
            && partition >= count
        {
            bail!(
                "--partition {partition} does not exist: of {count} partitions the last is {}",
                count - 1
            );
        }
        Ok(AuditSource::Files {
            flags: self,
            partition: Partition(partition),
        })
    }

    fn of_log(&self, mut reader: Box<dyn Reader>) -> anyhow::Result<AuditSource<'_>> {
        let (schemas, runtime) = schemas_of(&mut *reader, self.registry.as_ref())?;
        Ok(AuditSource::Log {
            flags: self,
            reader,
            schemas: Box::new(schemas),
            _runtime: runtime.map(Box::new),
        })
    }

    /// Runs `each` for every partition asked about, in parallel, and returns the results in the order of partitions. Each
    /// thread has a reader of its own.
    pub fn each_partition<T: Send>(
        &self,
        each: impl Fn(&mut AuditSource<'_>, Partition) -> anyhow::Result<T> + Sync,
    ) -> anyhow::Result<Vec<T>> {
        let mut first = self.open()?;
        let partitions = first.asked()?;
        let threads = thread::available_parallelism()
            .map_or(1, |cores| cores.get())
            .min(partitions.len());
        if threads <= 1 {
            return partitions
                .into_iter()
                .map(|partition| each(&mut first, partition))
                .collect();
        }
        let next = AtomicUsize::new(0);
        let work = |mut source: AuditSource<'_>| {
            let mut done = Vec::new();
            while let Some(partition) = partitions.get(next.fetch_add(1, Ordering::Relaxed)) {
                done.push((*partition, each(&mut source, *partition)?));
            }
            anyhow::Ok(done)
        };
        let done = thread::scope(|scope| {
            let others: Vec<_> = (1..threads).map(|_| scope.spawn(|| work(self.open()?))).collect();
            let mut done = vec![work(first)];
            for other in others {
                let panicked = || bail!("a thread that reads partitions panicked, so there is no answer");
                done.push(other.join().unwrap_or_else(|_| panicked()));
            }
            done.into_iter().collect::<anyhow::Result<Vec<_>>>()
        })?;
        let mut done: Vec<_> = done.into_iter().flatten().collect();
        done.sort_by_key(|(partition, _)| *partition);
        Ok(done.into_iter().map(|(_, one)| one).collect())
    }
}

/// Since when there are records of a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Beginning {
    At(LogTime),
    /// The first ones are no longer kept.
    Gone,
    Empty,
}

/// An event as it was read, or why the record is malformed.
pub type Read<'e> = Result<Event<'e>, QuarantinedEvent>;

impl AuditSource<'_> {
    /// Sees what was written until now.
    pub fn refresh(&mut self) -> anyhow::Result<()> {
        match self {
            AuditSource::Log { reader, .. } => Ok(reader.refresh()?),
            AuditSource::Files { .. } => Ok(()),
        }
    }

    /// Returns the partitions that are asked about.
    pub fn asked(&self) -> anyhow::Result<Vec<Partition>> {
        match self {
            AuditSource::Files { partition, .. } => Ok(vec![*partition]),
            AuditSource::Log { flags, reader, .. } => {
                let count = reader.partitions();
                match flags.partition {
                    Some(partition) if partition >= count => bail!(
                        "--partition {partition} does not exist: of {count} partitions the last is {}",
                        count.saturating_sub(1)
                    ),
                    Some(partition) => Ok(vec![Partition(partition)]),
                    None => Ok((0..count).map(Partition).collect()),
                }
            }
        }
    }

    /// Refuses a partition that does not exist or that was not asked about.
    pub fn asks_for(&self, partition: Partition) -> anyhow::Result<()> {
        if !self.asked()?.contains(&partition) {
            bail!(
                "partition {partition} is not among those that are read; with files, --partition says which one they are of"
            );
        }
        Ok(())
    }

    /// Returns the partition of a user. Fails if another one was asked for: of that one nothing is known of the user.
    pub fn asked_partition_of(&self, user: &str) -> anyhow::Result<Partition> {
        let partition = self.partition_of(user);
        if !self.asked()?.contains(&partition) {
            bail!("{user:?} is a user of partition {partition}, and not of the one that --partition names");
        }
        Ok(partition)
    }

    /// Returns the partition of a user.
    fn partition_of(&self, user: &str) -> Partition {
        match self {
            AuditSource::Files { partition, .. } => *partition,
            AuditSource::Log { reader, .. } => crate::schema::partitioner::partition_of(user, reader.partitions()),
        }
    }

    /// Returns how far the engine has committed a partition; none where the records do not say. Fails if there is no position
    /// although changes were published: then it says nothing about them.
    pub fn position(&mut self, partition: Partition) -> anyhow::Result<Option<Position>> {
        let position = self.committed(partition)?;
        if position != Some(Position::default()) || !self.has_changes(partition)? {
            return Ok(position);
        }
        // An engine may have committed for the first time in between.
        let position = self.committed(partition)?;
        if let AuditSource::Log { flags, .. } = self
            && position == Some(Position::default())
        {
            let group = &flags.group;
            match flags.kafka {
                Some(_) => bail!(
                    "the group {group:?} has no position for partition {partition}, although its topic of changes has records; \
                     expected the --group that the engines were started with. If it is this group, its offsets have expired or \
                     were deleted: start an engine with --adopt-tail, which commits a position again"
                ),
                None => bail!(
                    "the log has no position for partition {partition}, although it has changes; an engine writes both in one \
                     step, so the position was removed. Use a copy of the data directory that has it"
                ),
            }
        }
        Ok(position)
    }

    /// As [`AuditSource::position`], but returns the default where there is no position.
    pub fn committed(&self, partition: Partition) -> anyhow::Result<Option<Position>> {
        match self {
            AuditSource::Files { .. } => Ok(None),
            AuditSource::Log { flags, reader, .. } => Ok(Some(reader.position(&flags.group, partition)?)),
        }
    }

    fn has_changes(&mut self, partition: Partition) -> anyhow::Result<bool> {
        let from = self.range(Topic::Changes, partition)?.start;
        let mut has_changes = false;
        self.records_from(Topic::Changes, partition, from, |_, _, _| {
            has_changes = true;
            Ok(ControlFlow::Break(()))
        })?;
        Ok(has_changes)
    }

    /// Returns whether a record that is committed may be readable only later. On Kafka each topic learns by itself that a
    /// transaction is committed.
    pub fn may_be_late(&self) -> bool {
        match self {
            AuditSource::Log { flags, .. } => flags.kafka.is_some(),
            AuditSource::Files { .. } => false,
        }
    }

    /// Returns whether there are records of a topic to be read: files may be given for some only.
    pub fn has(&self, topic: Topic) -> bool {
        match self {
            AuditSource::Log { .. } => true,
            AuditSource::Files { flags, .. } => flags.file_of(topic).is_some(),
        }
    }

    /// Returns the oldest offset that is kept of a topic, and the end.
    pub fn range(&self, topic: Topic, partition: Partition) -> anyhow::Result<Range> {
        match self {
            AuditSource::Log { reader, .. } => Ok(reader.range(topic, partition)?),
            AuditSource::Files { .. } => Ok(Range {
                start: Offset(0),
                end: Offset(u64::MAX),
            }),
        }
    }

    /// Returns of which log a checkpoint is. Of files it is not known.
    pub fn origin(&mut self, partition: Partition, listed: &Listed) -> anyhow::Result<Origin> {
        let AuditSource::Log { reader, .. } = self else {
            return Ok(Origin::Unknown);
        };
        let range = reader.range(Topic::Events, partition)?;
        let read = |from, limit, into: &mut Vec<_>| reader.read(Topic::Events, partition, from, limit, into);
        Ok(engine::origin(listed.next, listed.last.as_ref(), range, read))
    }

    /// Refuses to go on if records from the beginning of a topic are gone.
    pub fn reaches_the_beginning(&self, topic: Topic, partition: Partition, why: &str) -> anyhow::Result<()> {
        let start = self.range(topic, partition)?.start;
        if start > Offset(0) {
            bail!(
                "the {topic} of partition {partition} before offset {start} are gone (retention), and {why} needs them from the \
                 beginning"
            );
        }
        Ok(())
    }

    /// Calls `each` with the newest state of each user of a partition that the log keeps, with `None` for one who has no
    /// state any more, and with the reason where a state cannot be read. Earlier states of a user may come before. Returns
    /// false where the log keeps none.
    pub fn current_states(
        &mut self,
        partition: Partition,
        mut each: impl FnMut(&str, Result<Option<UserState<'_>>, String>),
    ) -> anyhow::Result<bool> {
        let AuditSource::Log { reader, schemas, .. } = self else {
            return Ok(false);
        };
        let mut next = Offset(0);
        let mut records = Vec::new();
        loop {
            check_interrupted()?;
            records.clear();
            if !reader.read_newest(OutputTopic::Current, partition, next, LIMIT, &mut records)? {
                return Ok(false);
            }
            let Some(last) = records.last() else { return Ok(true) };
            next = Offset(last.offset.0 + 1);
            for record in &records {
                let unreadable = |why: String| format!("offset {} of the newest states: {why}", record.offset);
                let key = String::from_utf8_lossy(record.key.as_deref().unwrap_or_default());
                let state = match (&key, record.is_null) {
                    (Cow::Owned(_), _) => Err(unreadable("its key is not UTF-8".to_owned())),
                    (Cow::Borrowed(_), true) => Ok(None),
                    (Cow::Borrowed(_), false) => {
                        avro::decode_user_state_with(&record.value, &schemas.learn([record.framed()])?)
                            .map(Some)
                            .map_err(|error| unreadable(error.to_string()))
                    }
                };
                each(&key, state);
            }
        }
    }

    /// Returns the directory of the engine's store of a partition, if it is on this machine.
    pub fn store_directory(&self, partition: Partition) -> anyhow::Result<Option<PathBuf>> {
        match self {
            AuditSource::Log { flags, .. } if flags.kafka.is_none() => {
                let directory = crate::store::directory_of(flags.data(), partition);
                Ok(directories::exists(&directory)?.then_some(directory))
            }
            AuditSource::Log { .. } | AuditSource::Files { .. } => Ok(None),
        }
    }

    /// Calls `each` with every event of a partition in order, until it breaks.
    pub fn events(
        &mut self,
        partition: Partition,
        each: impl FnMut(Offset, u64, Read<'_>) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        self.events_from(partition, Offset(0), each)
    }

    /// Calls `each` with every event of a partition that is kept, from an offset on, in order, until it breaks.
    pub fn events_from(
        &mut self,
        partition: Partition,
        from: Offset,
        each: impl FnMut(Offset, u64, Read<'_>) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        let from = from.max(self.range(Topic::Events, partition)?.start);
        self.all_events_from(partition, from, each)
    }

    /// As [`AuditSource::events_from`], but fails with [`log::Error::Gone`] if the event at the offset is gone.
    pub fn all_events_from(
        &mut self,
        partition: Partition,
        from: Offset,
        mut each: impl FnMut(Offset, u64, Read<'_>) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        match self {
            AuditSource::Log { .. } => {
                self.records_from(Topic::Events, partition, from, |record, partitions, schemas| {
                    let malformed = |error: String| QuarantinedEvent {
                        offset: record.offset,
                        ts: record.ts,
                        error,
                        key: record.key.clone(),
                        value: (!record.is_null).then(|| record.value.clone()),
                    };
                    let event = decode(record, partition, partitions, schemas);
                    check_revision(event.as_ref().ok(), partition, record.offset)?;
                    each(
                        record.offset,
                        record.ts,
                        event.map_err(|rejected| malformed(rejected.error)),
                    )
                })
            }
            AuditSource::Files { flags, .. } => {
                let (file, partitions) = (flags.file_of(Topic::Events), flags.partitions);
                let mut before = None;
                each_line(file, "--events", |line| {
                    let line = json::read_line(line)?;
                    if before.is_some_and(|before| line.offset <= before) {
                        bail!(
                            "its offset {} does not follow the one before: offsets grow",
                            line.offset
                        );
                    }
                    before = Some(line.offset);
                    if line.offset < from {
                        return Ok(ControlFlow::Continue(()));
                    }
                    let checked = line.event.map_err(|bad| bad.message).and_then(|event| {
                        let right = partitions.map_or(Ok(()), |count| check_partition(&event, partition, count));
                        right.map(|()| event).map_err(|malformed| malformed.to_string())
                    });
                    check_revision(checked.as_ref().ok(), partition, line.offset)?;
                    let malformed = |error: String| QuarantinedEvent {
                        offset: line.offset,
                        ts: line.ts,
                        error,
                        key: None,
                        value: None,
                    };
                    each(line.offset, line.ts, checked.map_err(malformed))
                })
            }
        }
    }

    /// Calls `each` with every change of a partition in order, until it breaks.
    pub fn changes(
        &mut self,
        partition: Partition,
        mut each: impl FnMut(Change) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        self.changes_from(partition, Offset(0), |_, change| each(change))
    }

    /// Calls `each` with every change of a partition from an offset of the change topic on, in order, until it breaks. Changes
    /// of a file have the offsets from 0 on.
    pub fn changes_from(
        &mut self,
        partition: Partition,
        from: Offset,
        mut each: impl FnMut(Offset, Change) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        match self {
            AuditSource::Log { .. } => {
                let from = from.max(self.range(Topic::Changes, partition)?.start);
                self.records_from(Topic::Changes, partition, from, |record, _, schemas| {
                    each(record.offset, change_of(record, partition, schemas)?)
                })
            }
            AuditSource::Files { flags, .. } => {
                let mut next = Offset(0);
                each_line(flags.file_of(Topic::Changes), "--changes", |line| {
                    let here = next;
                    next = Offset(here.0 + 1);
                    if here < from {
                        return Ok(ControlFlow::Continue(()));
                    }
                    let data: ChangeData = serde_json::from_str(line)?;
                    each(here, Change::try_from(data)?)
                })
            }
        }
    }

    /// Calls `each` with every change of a user that a log has, in order, until it breaks. Others are not decoded: the key of a
    /// change is its user.
    pub fn changes_of(
        &mut self,
        partition: Partition,
        user: &str,
        mut each: impl FnMut(Change) -> ControlFlow<()>,
    ) -> anyhow::Result<()> {
        let from = self.range(Topic::Changes, partition)?.start;
        self.records_from(Topic::Changes, partition, from, |record, _, schemas| {
            if record.key.as_deref() != Some(user.as_bytes()) {
                return Ok(ControlFlow::Continue(()));
            }
            Ok(each(change_of(record, partition, schemas)?))
        })
    }

    /// Returns the time of the newest record of a topic: of a change its `at`, of an event its timestamp. None without
    /// records, and for files.
    pub fn newest_time(&mut self, topic: Topic, partition: Partition) -> anyhow::Result<Option<LogTime>> {
        if matches!(self, AuditSource::Files { .. }) {
            return Ok(None);
        }
        let Range { start, end } = self.range(topic, partition)?;
        // Timestamps may step back on Kafka, and marks of transactions have offsets: the last thousand say enough.
        let from = Offset(end.0.saturating_sub(1_000).max(start.0));
        let mut time = None;
        self.records_from(topic, partition, from, |record, _, schemas| {
            time = time.max(Some(match topic {
                Topic::Changes => change_of(record, partition, schemas)?.at,
                Topic::Events | Topic::Kicks | Topic::Quarantine => LogTime(record.ts),
            }));
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(time)
    }

    /// Returns a partition's log time: that of its last event. None without events, and where no events can be read that of
    /// the last change.
    pub fn log_time(&mut self, partition: Partition) -> anyhow::Result<Option<LogTime>> {
        let mut time = None;
        if matches!(self, AuditSource::Files { .. }) {
            if self.has(Topic::Events) {
                self.events(partition, |_, ts, _| {
                    time = time.max(Some(LogTime(ts)));
                    Ok(ControlFlow::Continue(()))
                })?;
            } else {
                self.changes(partition, |change| {
                    time = time.max(Some(change.logged_at));
                    Ok(ControlFlow::Continue(()))
                })?;
            }
            return Ok(time);
        }
        self.newest_time(Topic::Events, partition)
    }

    /// Returns since when there are records of a partition.
    pub fn beginning(&mut self, partition: Partition) -> anyhow::Result<Beginning> {
        let mut first = None;
        if self.has(Topic::Events) {
            if self.range(Topic::Events, partition)?.start > Offset(0) {
                return Ok(Beginning::Gone);
            }
            self.events(partition, |_, ts, _| {
                first = Some(LogTime(ts));
                Ok(ControlFlow::Break(()))
            })?;
        } else {
            self.changes(partition, |change| {
                first = Some(change.at);
                Ok(ControlFlow::Break(()))
            })?;
        }
        Ok(first.map_or(Beginning::Empty, Beginning::At))
    }

    /// Reads what there is now from an offset on, and says on standard error how far it is when that takes long.
    fn records_from(
        &mut self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        mut each: impl FnMut(&Record, u32, &LearnedSchemas) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        let AuditSource::Log { reader, schemas, .. } = self else {
            return Ok(());
        };
        let partitions = reader.partitions();
        let end = reader.range(topic, partition)?.end;
        let mut progress = ReadProgress::new(topic, partition, from, end);
        let mut next = from;
        let mut records = Vec::new();
        let clock = SystemClock::new();
        let mut waiting: Option<Deadline> = None;
        while next < end {
            check_interrupted()?;
            records.clear();
            reader.read(topic, partition, next, LIMIT, &mut records)?;
            let Some(last) = records.last() else {
                if reader.reached(topic, partition)? >= end {
                    break;
                }
                // The client knows an earlier end only. What follows it must not be taken for missing.
                let deadline = *waiting.get_or_insert_with(|| Deadline::after(&clock, READ_PATIENCE));
                if deadline.has_passed(&clock) {
                    let text = format!(
                        "partition {partition} of {topic} has records up to offset {end}, but none from {next} on was returned \
                         within {} s",
                        READ_PATIENCE.as_secs()
                    );
                    return Err(log::Error::Unanswered(text.into()).into());
                }
                thread::sleep(READ_PAUSE);
                continue;
            };
            waiting = None;
            next = Offset(last.offset.0 + 1);
            progress.tell(next, last.ts);
            for record in &records {
                let learned = schemas.learn([record.framed()])?;
                if each(record, partitions, &learned)?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// Whether an error of reading a log may pass by itself.
pub fn may_pass(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref(),
        Some(log::Error::Read(_) | log::Error::Unanswered(_))
    )
}

/// Returns what is to be said where retention has removed changes that are needed for something.
pub fn gone(source: &mut AuditSource<'_>, partition: Partition, what_for: &str) -> anyhow::Error {
    let mut since = None;
    let read = source.changes(partition, |change| {
        since = Some(change.at);
        Ok(ControlFlow::Break(()))
    });
    match read {
        Ok(()) => anyhow::anyhow!(
            "the first changes of partition {partition} are gone (retention), and all of them are needed {what_for}; the oldest one \
             kept is {}",
            since.map_or("none".to_owned(), |since| format!("of {}", super::shown(since.0)))
        ),
        Err(error) => error,
    }
}

/// Decodes a change, whose key is its user.
pub(in crate::command) fn change_of(
    record: &Record,
    partition: Partition,
    schemas: &LearnedSchemas,
) -> anyhow::Result<Change> {
    let change = avro::decode_change_with(&record.value, schemas)
        .with_context(|| unreadable(Topic::Changes, partition, record.offset))?;
    if record.key.as_deref() != Some(change.user.as_bytes()) {
        bail!(
            "offset {} of changes in partition {partition} is of user {:?}, but its key is not that user: somebody else wrote it",
            record.offset,
            change.user
        );
    }
    Ok(change)
}

fn unreadable(topic: Topic, partition: Partition, offset: Offset) -> String {
    format!("offset {offset} of {topic} in partition {partition} cannot be read")
}

/// Refuses to go on where the log goes on in a revision that is not known.
fn check_revision(event: Option<&Event<'_>>, partition: Partition, offset: Offset) -> anyhow::Result<()> {
    let newest = newest_revision();
    if let Some(revision) = event.and_then(|event| event.unknown_revision(newest)) {
        bail!(
            "partition {partition}: the record at offset {offset} raises the partition to revision {revision}, but this version \
             knows revisions up to {newest}; use a version that knows it"
        );
    }
    Ok(())
}
