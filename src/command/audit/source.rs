//! Where an audit reads: a data directory, Kafka, or files that `rollcall log` printed.

mod lines;
mod progress;

use super::interrupt::check_interrupted;
use crate::api::answers::ChangeData;
use crate::audit::verify::{Compared, OutputRecord, QuarantinedEvent};
use crate::command::cluster::Cluster;
use crate::command::log::{open, schemas};
use crate::config::SecretUrl;
use crate::engine::rejected::decode;
use crate::log::{self, Limit, Position, Range, Reader, Record, Topic};
use crate::presence::change::Change;
use crate::presence::event::Event;
use crate::presence::policy::Policy;
use crate::presence::{LogTime, Offset, Partition};
use crate::registry::Schemas;
use crate::schema::avro::UserState;
use crate::schema::partitioner::check_partition;
use crate::schema::{avro, json};
use crate::version::newest_revision;
use anyhow::{Context as _, bail};
use lines::{Lines, each_line};
use progress::ReadProgress;
use serde_json::value::RawValue;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use tokio::runtime::Runtime;

/// Of one read.
const LIMIT: Limit = Limit {
    records: 10_000,
    bytes: 4 << 20,
};
/// What `--changes` without a file has as its value: no argument can have a zero byte.
pub const NO_FILE: &str = "\0";
/// The data directory where none is named.
const DATA: &str = "./rollcall-data";

/// Where the records are.
#[derive(clap::Args, Debug)]
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
    /// Only this partition, from 0; with files: the partition that they are of [default with files: 0]
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
        [Topic::Events, Topic::Changes, Topic::Kicks]
            .into_iter()
            .any(|topic| self.file_of(topic).is_some())
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

    fn of_log(&self, reader: Box<dyn Reader>) -> anyhow::Result<AuditSource<'_>> {
        let (schemas, runtime) = schemas(self.registry.as_ref())?;
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

    /// Returns the partition of a user.
    pub fn partition_of(&self, user: &str) -> Partition {
        match self {
            AuditSource::Files { partition, .. } => *partition,
            AuditSource::Log { reader, .. } => crate::schema::partitioner::partition_of(user, reader.partitions()),
        }
    }

    /// Returns how far the engine has committed a partition; none where the records do not say.
    pub fn position(&self, partition: Partition) -> anyhow::Result<Option<Position>> {
        match self {
            AuditSource::Files { .. } => Ok(None),
            AuditSource::Log { flags, reader, .. } => Ok(Some(reader.position(&flags.group, partition)?)),
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

    /// Calls `each` with the newest state of each user of a partition that the log keeps, and with `None` for one who has no
    /// state any more. Earlier states of a user may come before. Returns false where the log keeps none.
    pub fn current_states(
        &mut self,
        partition: Partition,
        mut each: impl FnMut(&str, Option<UserState<'_>>),
    ) -> anyhow::Result<bool> {
        let AuditSource::Log { reader, schemas, .. } = self else {
            return Ok(false);
        };
        let mut next = Offset(0);
        let mut records = Vec::new();
        loop {
            check_interrupted()?;
            records.clear();
            if !reader.read_current(partition, next, LIMIT, &mut records)? {
                return Ok(false);
            }
            let Some(last) = records.last() else { return Ok(true) };
            next = Offset(last.offset.0 + 1);
            schemas.learn(records.iter().filter(|record| !record.is_null).map(Record::framed))?;
            for record in &records {
                let unreadable = || {
                    format!(
                        "offset {} of the newest states of partition {partition} cannot be read",
                        record.offset
                    )
                };
                let key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
                let user = key.with_context(unreadable)?;
                if record.is_null {
                    each(user, None);
                } else {
                    let state = avro::decode_user_state_with(&record.value, &**schemas).with_context(unreadable)?;
                    each(user, Some(state));
                }
            }
        }
    }

    /// Returns the directory of the engine's store of a partition, where it is on this machine.
    pub fn store_directory(&self, partition: Partition) -> Option<PathBuf> {
        match self {
            AuditSource::Log { flags, .. } if flags.kafka.is_none() => {
                Some(crate::store::directory_of(flags.data(), partition)).filter(|directory| directory.exists())
            }
            AuditSource::Log { .. } | AuditSource::Files { .. } => None,
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

    /// Calls `each` with every event of a partition from an offset on, in order, until it breaks.
    pub fn events_from(
        &mut self,
        partition: Partition,
        from: Offset,
        mut each: impl FnMut(Offset, u64, Read<'_>) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        match self {
            AuditSource::Log { .. } => {
                let from = from.max(self.range(Topic::Events, partition)?.start);
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

    /// Reads what there is now from an offset on, and says on standard error how far it is when that takes long.
    fn records_from(
        &mut self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        mut each: impl FnMut(&Record, u32, &Schemas) -> anyhow::Result<ControlFlow<()>>,
    ) -> anyhow::Result<()> {
        let AuditSource::Log { reader, schemas, .. } = self else {
            return Ok(());
        };
        let partitions = reader.partitions();
        let end = reader.range(topic, partition)?.end;
        let mut progress = ReadProgress::new(topic, partition, from, end);
        let mut next = from;
        let mut records = Vec::new();
        while next < end {
            check_interrupted()?;
            records.clear();
            reader.read(topic, partition, next, LIMIT, &mut records)?;
            let Some(last) = records.last() else { break };
            next = Offset(last.offset.0 + 1);
            progress.tell(next, last.ts);
            for record in &records {
                schemas.learn([record.framed()])?;
                if each(record, partitions, schemas)?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// The outputs of one partition that `verify` compares with, read beside the events.
pub struct FoundOutputs {
    partition: Partition,
    /// By [`Compared`].
    topics: [Found; Compared::ALL.len()],
}

enum Found {
    /// What was read of a log and not yet given, and the next offset to read.
    Log(std::vec::IntoIter<OutputRecord>, Offset),
    File(Lines),
    /// There are no such records to be read.
    Nothing,
}

/// The topic of a log in which the records are.
pub fn topic_of(compared: Compared) -> Topic {
    match compared {
        Compared::Changes => Topic::Changes,
        Compared::Kicks => Topic::Kicks,
        Compared::Quarantine => Topic::Quarantine,
    }
}

impl FoundOutputs {
    /// Begins with the first output of the event at `from` or of one after it.
    pub fn open(source: &mut AuditSource<'_>, partition: Partition, from: Offset) -> anyhow::Result<FoundOutputs> {
        let mut topics = [Found::Nothing, Found::Nothing, Found::Nothing];
        for compared in Compared::ALL {
            let topic = topic_of(compared);
            topics[compared as usize] = match source {
                AuditSource::Log { reader, schemas, .. } => {
                    let first = first_output(&mut **reader, schemas, compared, partition, from)?;
                    Found::Log(Vec::new().into_iter(), first)
                }
                AuditSource::Files { flags, .. } => match flags.file_of(topic) {
                    Some(path) => Found::File(Lines::open(path)?),
                    None => Found::Nothing,
                },
            };
        }
        Ok(FoundOutputs { partition, topics })
    }

    /// Returns the next record of a topic; none at its end.
    pub fn next(&mut self, compared: Compared, source: &mut AuditSource<'_>) -> anyhow::Result<Option<OutputRecord>> {
        if let Found::File(lines) = &mut self.topics[compared as usize] {
            let line = lines.next()?.map(str::to_owned);
            return Ok(line.map(|line| match serde_json::from_str::<&RawValue>(&line) {
                Ok(_) => OutputRecord::Line(line),
                Err(error) => OutputRecord::unreadable(&format!("{}: {error}", lines.here())),
            }));
        }
        self.peek(compared, source)?;
        match &mut self.topics[compared as usize] {
            Found::Log(ready, _) => Ok(ready.next()),
            Found::File(_) | Found::Nothing => Ok(None),
        }
    }

    /// Returns the next record of a topic of a log, and leaves it there.
    pub fn peek(&mut self, compared: Compared, source: &mut AuditSource<'_>) -> anyhow::Result<Option<&OutputRecord>> {
        let partition = self.partition;
        let (Found::Log(ready, next), AuditSource::Log { reader, schemas, .. }) =
            (&mut self.topics[compared as usize], source)
        else {
            return Ok(None);
        };
        if ready.len() == 0 {
            let mut records = Vec::new();
            reader.read(topic_of(compared), partition, *next, LIMIT, &mut records)?;
            if let Some(last) = records.last() {
                *next = Offset(last.offset.0 + 1);
            }
            schemas.learn(records.iter().map(Record::framed))?;
            // What cannot be read was altered, and differs from whatever the events give.
            let read = records.iter().map(|record| {
                output_of(compared, record, partition, schemas)
                    .unwrap_or_else(|error| OutputRecord::unreadable(&format!("{error:#}")))
            });
            *ready = read.collect::<Vec<_>>().into_iter();
        }
        Ok(ready.as_slice().first())
    }
}

/// Whether an error of reading a log may pass by itself.
pub fn may_pass(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(log::Error::Read(_)))
}

/// Searches the first record of a topic that is an output of the event at an offset or of one after it: outputs are in the
/// order of their events.
fn first_output(
    reader: &mut dyn Reader,
    schemas: &Schemas,
    compared: Compared,
    partition: Partition,
    event: Offset,
) -> anyhow::Result<Offset> {
    let topic = topic_of(compared);
    let Range { start, end } = reader.range(topic, partition)?;
    let (mut first, mut after) = (start, end);
    if event == Offset(0) {
        return Ok(start);
    }
    let one = Limit { records: 1, bytes: 1 };
    while first < after {
        let middle = Offset(first.0 + (after.0 - first.0) / 2);
        let mut records = Vec::new();
        reader.read(topic, partition, middle, one, &mut records)?;
        schemas.learn(records.iter().map(Record::framed))?;
        match records.first() {
            Some(record) if output_of(compared, record, partition, schemas)?.offset() < event => {
                first = Offset(record.offset.0 + 1);
            }
            Some(_) | None => after = middle,
        }
    }
    Ok(first)
}

fn output_of(
    compared: Compared,
    record: &Record,
    partition: Partition,
    schemas: &Schemas,
) -> anyhow::Result<OutputRecord> {
    let unreadable = || unreadable(topic_of(compared), partition, record.offset);
    Ok(match compared {
        Compared::Changes => OutputRecord::Change(change_of(record, partition, schemas)?),
        Compared::Kicks => OutputRecord::Kick(avro::decode_kick_with(&record.value, schemas).with_context(unreadable)?),
        Compared::Quarantine => {
            let event = avro::decode_quarantined_with(&record.value, schemas).with_context(unreadable)?;
            OutputRecord::Quarantined(QuarantinedEvent {
                offset: event.offset,
                ts: event.ts,
                error: event.error.into_owned(),
                key: event.key.map(|key| key.into_owned()),
                value: event.value.map(|value| value.into_owned()),
            })
        }
    })
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
fn change_of(record: &Record, partition: Partition, schemas: &Schemas) -> anyhow::Result<Change> {
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
