//! `rollcall lake`: keeps tables of the changes up to date in a directory or a bucket (`docs/lake.md`).
//!
//! One thread reads the change topic of all partitions in turn, and commits. What is exactly once is said in
//! [`crate::lake`]: this file decides when to read, when to commit, and what to report.

mod behind;
mod location;
#[cfg(test)]
mod tests;

use super::audit::source::change_of;
use super::cluster::Cluster;
use super::remote::printed;
use super::schemas::schemas;
use super::{directories, log, logging, status};
use crate::clock::{Clock as _, SystemClock};
use crate::config::units::{Seconds, Span};
use crate::config::{LogFormat, LogLevel, SecretUrl, address};
use crate::lake::manifest::LakeManifest;
use crate::lake::storage::{LakeDirectory, LakeStorage};
use crate::lake::{self, Lake, PENDING_MAX, iceberg};
use crate::log::{Error, Limit, Range, Reader, Record};
use crate::metrics;
use crate::presence::change::Change;
use crate::presence::{Offset, Partition};
use crate::registry::{self, Schemas};
use crate::topics::Topic;
use anyhow::{Context as _, anyhow, bail};
use behind::Behind;
use clap::builder::NonEmptyStringValueParser;
use location::LakeLocation;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{ErrorKind, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;

/// The most that one read returns.
const LIMIT: Limit = Limit {
    records: 10_000,
    bytes: 4 << 20,
};
/// How often new records are looked for when there were none.
const POLL: Duration = Duration::from_millis(200);
/// Between two attempts to read a log for the first time.
const CHECK_PAUSE: Duration = Duration::from_secs(1);
/// How long the client of a log on other machines may take to return records that the log has, with --once.
const READ_PATIENCE_MS: u64 = 10_000;
/// After so long without a successful read the process is not ready.
const UNREAD_MAX_MS: u64 = 10_000;

/// Keeps the tables `changes`, `intervals` and `concurrency` up to date as Parquet files, until it is interrupted
///
/// Follows the change topic of a server's data directory or of Kafka. Each change is in the tables exactly once, also if the
/// process is killed. docs/lake.md describes the files and how DuckDB and others read them.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The lake: a directory, as a path or as file:///DIRECTORY, or s3://BUCKET/PREFIX with the variables AWS_… as for checkpoints
    #[arg(long, value_name = "URL", env = "ROLLCALL_LAKE_TO", value_parser = NonEmptyStringValueParser::new())]
    to: String,
    /// The longest time until a change that was read is visible, 1 to 30 seconds
    #[arg(long, value_name = "S", env = "ROLLCALL_LAKE_EVERY", default_value_t = Span(10_000))]
    every: Seconds,
    /// Ends when everything that the topic has now is visible
    #[arg(long)]
    once: bool,
    /// Prints the views of the tables as SQL for DuckDB, as of the last commit, and ends
    #[arg(long, conflicts_with_all = ["once", "data", "kafka", "from_oldest", "iceberg"])]
    sql: bool,
    /// Makes the tables also tables of Apache Iceberg: after each commit it writes metadata of format version 2 into `metadata` of
    /// each table. A lake that has them gets them without this flag too, until their folders are removed
    #[arg(long)]
    iceberg: bool,
    /// Begins a new lake with the oldest change that is kept, although earlier ones are gone. Without it that is an error
    #[arg(long)]
    from_oldest: bool,
    /// The data directory of a server, which may be running; the log is in its `log`
    #[arg(
        long,
        value_name = "DIR",
        default_value = "./rollcall-data",
        conflicts_with = "kafka"
    )]
    data: PathBuf,
    /// Reads from Apache Kafka instead, committed records only: its brokers, separated by commas
    #[arg(long, value_name = "HOST:PORT", env = "ROLLCALL_KAFKA")]
    kafka: Option<String>,
    #[command(flatten)]
    cluster: Cluster,
    /// The schema registry, if records were written with one
    #[arg(long, value_name = "URL", env = "ROLLCALL_REGISTRY", hide_env_values = true)]
    registry: Option<SecretUrl>,
    /// Address that serves /metrics, /healthz and /readyz, without a token
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8096", value_parser = address::listen)]
    status: SocketAddr,
    /// Format of the log on standard error
    #[arg(long, value_enum, env = "ROLLCALL_LOG_FORMAT", default_value_t = LogFormat::Human)]
    log_format: LogFormat,
    /// Lowest level that is logged
    #[arg(long, value_enum, env = "ROLLCALL_LOG_LEVEL", default_value_t = LogLevel::Info)]
    log_level: LogLevel,
}

/// Why the process is not ready; `None` if it is.
#[derive(Clone, Default)]
struct Trouble(Arc<Mutex<Option<String>>>);

impl Trouble {
    fn set(&self, trouble: Option<String>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    fn get(&self) -> Option<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    let location = LakeLocation::of(&args.to)?;
    if args.sql {
        return print_views(location);
    }
    let every_ms = Seconds::within("every", Some(args.every), 0, 1_000, 30_000)?;
    let interrupted = Rc::new(log::on_interrupt()?);
    logging::start(args.log_format, args.log_level);
    let process = LakeProcess {
        args,
        every_ms,
        shown: location.shown(),
        reader: log::open(args.kafka.as_deref(), &args.data, &args.cluster)?,
        runtime: runtime()?,
        interrupted,
        trouble: Trouble::default(),
        behind: Behind::default(),
    };
    match location {
        LakeLocation::Directory(root) => {
            directories::outside_of_servers("--to", &root)?;
            let storage = LakeDirectory::open(&root);
            let storage = storage.with_context(|| format!("cannot use {} as a lake", root.display()))?;
            process.run(storage, || location::directory_uri(&root))
        }
        LakeLocation::Bucket(bucket) => {
            let (interrupted, trouble) = (process.interrupted.clone(), process.trouble.clone());
            let listener = location::waiting(args.once, interrupted, trouble, process.behind.clone());
            let uri = bucket.uri();
            let storage = bucket.open(process.runtime.handle().clone(), listener);
            match process.run(storage, || uri) {
                // It was asked to stop. With --once that is not what it was started for.
                Err(error) if !args.once && is_interrupted(&error) => {
                    tracing::warn!("{error:#}");
                    Ok(())
                }
                ended => ended,
            }
        }
    }
}

/// Whether an interrupt ended a wait for a bucket.
fn is_interrupted(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(lake::Error::Storage { error, .. }) if error.kind() == ErrorKind::Interrupted)
}

fn runtime() -> anyhow::Result<Runtime> {
    let builder = &mut tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build();
    runtime.context("cannot start the async runtime")
}

/// What the process needs to keep a lake, wherever that is.
struct LakeProcess<'a> {
    args: &'a Args,
    every_ms: u64,
    shown: String,
    reader: Box<dyn Reader>,
    runtime: Runtime,
    interrupted: Rc<Receiver<()>>,
    trouble: Trouble,
    behind: Behind,
}

impl LakeProcess<'_> {
    /// `uri` is where the lake is for readers of Iceberg, or why they cannot find it.
    fn run<S: LakeStorage>(self, mut storage: S, uri: impl FnOnce() -> anyhow::Result<String>) -> anyhow::Result<()> {
        let LakeProcess {
            args,
            reader,
            interrupted,
            ..
        } = self;
        if !args.once {
            serve_status(&self.runtime, args.status, self.trouble.clone())?;
        }
        let (schemas, _runtime) = schemas(args.registry.as_ref())?;
        let is_begun = iceberg::is_begun(&mut storage)?;
        if is_begun && !args.iceberg {
            tracing::info!("the tables have metadata of Iceberg, which are kept up to date as with --iceberg");
        }
        let partitions = reader.partitions();
        let lake = match is_begun || args.iceberg {
            true => Lake::open_with_iceberg(storage, partitions, uri()?)?,
            false => Lake::open(storage, partitions)?,
        };
        let mut follower = LakeFollower::new(reader, schemas, lake, self.trouble, self.behind);
        let mut is_told = false;
        while let Err(error) = follower.check_log(args.from_oldest) {
            if args.once || !follower.may_recover(&error) {
                return Err(error);
            }
            if !std::mem::replace(&mut is_told, true) {
                tracing::warn!("the log cannot be read: {error:#}; trying again");
            }
            follower.trouble.set(Some(format!("the log cannot be read: {error:#}")));
            follower.report_behind();
            if interrupted.recv_timeout(CHECK_PAUSE) != Err(RecvTimeoutError::Timeout) {
                return Ok(());
            }
        }
        follower.trouble.set(None);
        // Where a later change will tell whether the log is right, it is not known yet.
        if follower.unproven.is_empty() {
            follower.start()?;
        }
        let manifest = follower.lake.committed();
        tracing::info!(
            to = self.shown,
            commit = manifest.commit,
            writer = manifest.writer,
            rows = rows(manifest, "changes").0,
            "following the changes"
        );
        follower.report();
        follower.follow(self.every_ms, args.once, &interrupted)
    }
}

fn print_views(location: LakeLocation) -> anyhow::Result<()> {
    let shown = location.shown();
    let bytes = location.manifest(runtime()?.handle().clone());
    let Some(bytes) = bytes.with_context(|| format!("cannot read the lake in {shown}"))? else {
        bail!(
            "there is no lake in {shown}: it has no manifest.json; `rollcall lake --to {shown}` makes one with its first commit, as \
             soon as the log has a change"
        );
    };
    let manifest = LakeManifest::read(&bytes).map_err(lake::Error::from)?;
    if shown.contains('\\') && shown.contains(['*', '?', '[']) {
        bail!(
            "DuckDB cannot read {shown}: its name has a backslash beside one of * ? [; move the lake, or read it otherwise"
        );
    }
    let mut output = std::io::stdout().lock();
    let written = output.write_all(lake::sql(&manifest, &shown).as_bytes());
    printed(written.map_err(anyhow::Error::from))
}

fn serve_status(runtime: &Runtime, address: SocketAddr, trouble: Trouble) -> anyhow::Result<()> {
    let listener = runtime.block_on(status::bind(address))?;
    eprintln!("status   http://{}", listener.local_addr().unwrap_or(address));
    if status::is_exposed(address) {
        tracing::warn!(%address, "--status is not a loopback address: other machines can read /metrics without a token");
    }
    runtime.spawn(status::serve(listener, move || trouble.get().into_iter().collect()));
    Ok(())
}

/// Reads all partitions into the lake.
struct LakeFollower<S: LakeStorage> {
    clock: SystemClock,
    reader: Box<dyn Reader>,
    schemas: Schemas,
    lake: Lake<S>,
    /// Where the log begins in the partitions that no longer have the lake's next offset.
    begins: BTreeMap<Partition, Offset>,
    /// Of these, the ones of which the next change will tell whether changes are missing.
    unproven: BTreeSet<Partition>,
    behind: Behind,
    /// Since when something waits for a commit, by the monotonic clock.
    pending_since_ms: Option<u64>,
    records: Vec<Record>,
    trouble: Trouble,
}

impl<S: LakeStorage> LakeFollower<S> {
    fn new(
        reader: Box<dyn Reader>,
        schemas: Schemas,
        lake: Lake<S>,
        trouble: Trouble,
        behind: Behind,
    ) -> LakeFollower<S> {
        let clock = SystemClock::new();
        for partition in (0..reader.partitions()).map(Partition) {
            let committed_ms = lake.last(partition).map_or(clock.now_ms(), |last| last.logged_at);
            behind.begin(partition, committed_ms);
        }
        LakeFollower {
            clock,
            reader,
            schemas,
            lake,
            begins: BTreeMap::new(),
            unproven: BTreeSet::new(),
            behind,
            pending_since_ms: None,
            records: Vec::new(),
            trouble,
        }
    }

    fn partitions(&self) -> impl Iterator<Item = Partition> + use<S> {
        (0..self.reader.partitions()).map(Partition)
    }

    /// Refuses a log that is not the one of the lake, or that no longer has what comes next.
    fn check_log(&mut self, from_oldest: bool) -> anyhow::Result<()> {
        self.reader.refresh()?;
        for partition in self.partitions() {
            let Range { start, end } = self.reader.range(Topic::Changes, partition)?;
            let next = self.lake.next(partition);
            if start > next {
                self.begin_late(partition, start, from_oldest)?;
            }
            let last = self.lake.last(partition).cloned();
            let other_log = || {
                anyhow!(
                    "the changes of partition {partition} are not those of the lake, which has them up to offset {next}: this is another \
                     log, or it was made again; read the log that the lake was made of, or use an empty directory"
                )
            };
            if end < next {
                return Err(other_log());
            }
            let Some(last) = last.filter(|last| Offset(last.offset) >= start) else {
                continue;
            };
            let at = Offset(last.offset);
            let one = Limit { records: 1, bytes: 1 };
            self.records.clear();
            self.reader
                .read(Topic::Changes, partition, at, one, &mut self.records)?;
            // A log on other machines may be slow: then the check is left out.
            let Some(record) = self.records.first() else { continue };
            let learned = self.schemas.learn([record.framed()])?;
            let is_same = record.offset == at && lake::is_same(&last, &change_of(record, partition, &learned)?);
            if !is_same {
                return Err(other_log());
            }
        }
        Ok(())
    }

    /// Begins with the oldest record of a partition that the log has, which is after the lake's next offset. Fails if changes are
    /// missing between. A log on Kafka has offsets without records, where transactions ended or were aborted, so that the
    /// numbers of the changes decide.
    fn begin_late(&mut self, partition: Partition, start: Offset, from_oldest: bool) -> anyhow::Result<()> {
        let next = self.lake.next(partition);
        let is_new = self.lake.last(partition).is_none();
        self.begins.insert(partition, start);
        if from_oldest && is_new {
            return Ok(());
        }
        let one = Limit { records: 1, bytes: 1 };
        self.records.clear();
        self.reader
            .read(Topic::Changes, partition, start, one, &mut self.records)?;
        match self.records.first() {
            Some(record) => {
                let learned = self.schemas.learn([record.framed()])?;
                let change = change_of(record, partition, &learned)?;
                self.is_next(partition, start, &change)
            }
            // No number says whether the first change of all is missing.
            None if is_new => Err(gone(partition, next, start)),
            None => {
                tracing::warn!(
                    %partition,
                    next = next.0,
                    start = start.0,
                    "the log no longer has the offset at which the lake goes on; the next change will tell whether changes are missing"
                );
                self.unproven.insert(partition);
                Ok(())
            }
        }
    }

    /// Fails if changes are missing between the lake's last change of a partition and this one, the first one that the log has.
    fn is_next(&self, partition: Partition, start: Offset, change: &Change) -> anyhow::Result<()> {
        let expected = match self.lake.last(partition) {
            None => Some(1),
            Some(last) => last.seq.map(|seq| seq + 1),
        };
        if expected == Some(change.seq) {
            return Ok(());
        }
        Err(gone(partition, self.lake.next(partition), start))
    }

    /// Reads and commits until it is interrupted; with `once` until everything that there is now is visible.
    fn follow(&mut self, every_ms: u64, once: bool, interrupted: &Receiver<()>) -> anyhow::Result<()> {
        // Since when something could not be read, by the monotonic clock, and why.
        let mut unread: Option<(u64, String)> = None;
        let mut progress_ms = self.clock.monotonic_ms();
        loop {
            let (mut more, mut is_at_end, mut failure) = (false, true, None);
            for partition in self.partitions() {
                let read = self.read_some(partition);
                // After a failure the other partitions are not asked for: each question to brokers that are away takes its time.
                let is_look_due = once || failure.is_none();
                let read = read.and_then(|count| {
                    let looked = if is_look_due {
                        self.look(partition, count, once)?
                    } else {
                        None
                    };
                    Ok((count, looked))
                });
                match read {
                    Ok((count, looked)) => {
                        more |= count > 0;
                        is_at_end &= looked.unwrap_or(!once);
                    }
                    Err(error) if self.may_recover(&error) => failure = Some(format!("{error:#}")),
                    Err(error) => return Err(error),
                }
                if self.lake.pending() >= PENDING_MAX {
                    self.commit()?;
                }
            }
            let now_ms = self.clock.monotonic_ms();
            if more {
                progress_ms = now_ms;
            }
            unread = failure.map(|words| {
                let since_ms = unread.as_ref().map_or(now_ms, |(since_ms, _)| *since_ms);
                if unread.as_ref().is_none_or(|(_, before)| *before != words) {
                    tracing::warn!("{words}; trying again");
                }
                (since_ms, words)
            });
            self.trouble.set(unread.as_ref().and_then(|(since_ms, words)| {
                let unread_ms = now_ms.saturating_sub(*since_ms);
                (unread_ms >= UNREAD_MAX_MS)
                    .then(|| format!("changes were not read for {} s: {words}", unread_ms / 1_000))
            }));
            if self
                .pending_since_ms
                .is_some_and(|since_ms| now_ms >= since_ms + every_ms)
            {
                self.commit()?;
                // What a slow disk or bucket took of the time is not the log's.
                progress_ms = self.clock.monotonic_ms();
            }
            self.report_behind();
            if once && is_at_end && unread.is_none() && !more {
                self.commit()?;
                if self.lake.committed().commit == 0 {
                    tracing::warn!("the log has no change yet, so there are no tables: the first change makes them");
                }
                return Ok(());
            }
            if once && now_ms >= progress_ms + READ_PATIENCE_MS {
                self.commit()?;
                let seconds = READ_PATIENCE_MS / 1_000;
                let why = unread.map_or("no records were returned".to_owned(), |(_, words)| words);
                bail!(
                    "the changes were not read to their end: nothing new came within {seconds} s ({why}); start it again to go on"
                );
            }
            let pause = if more { Duration::ZERO } else { POLL };
            if interrupted.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                return self.commit();
            }
            if !more && !once {
                self.reader.refresh()?;
            }
        }
    }

    /// Whether an error of reading may pass by itself. Nothing of what was read is in the lake then.
    fn may_recover(&self, error: &anyhow::Error) -> bool {
        error.downcast_ref().is_some_and(|error| self.reader.may_recover(error))
            || matches!(error.downcast_ref(), Some(registry::Error::Unreachable { .. }))
    }

    /// Returns where a partition is read next.
    fn next(&self, partition: Partition) -> Offset {
        let first = self.begins.get(&partition).copied().unwrap_or_default();
        self.lake.next(partition).max(first)
    }

    /// Whether everything that the topic had at the last refresh was read.
    fn is_at_end(&self, partition: Partition) -> anyhow::Result<bool> {
        let end = self.reader.range(Topic::Changes, partition)?.end;
        let next = self.next(partition);
        Ok(next >= end || self.reader.reached(Topic::Changes, partition)? >= end)
    }

    /// Looks whether everything of a partition was read, if that is due after so many records of it: on Kafka it is a question to
    /// the brokers.
    fn look(&mut self, partition: Partition, read: usize, once: bool) -> anyhow::Result<Option<bool>> {
        let now_ms = self.clock.now_ms();
        if !once && (read > 0 || !self.behind.is_look_due(partition, now_ms)) {
            return Ok(None);
        }
        let is_at_end = self.is_at_end(partition)?;
        if read == 0 {
            self.behind.looked(partition, now_ms, is_at_end);
        }
        Ok(Some(is_at_end))
    }

    /// Takes the next records of a partition. Returns how many there were.
    fn read_some(&mut self, partition: Partition) -> anyhow::Result<usize> {
        let next = self.next(partition);
        self.records.clear();
        let read = self
            .reader
            .read(Topic::Changes, partition, next, LIMIT, &mut self.records);
        match read {
            // Retention was faster, or has removed nothing but marks of transactions.
            Err(Error::Gone { start, .. }) if start > next => {
                self.begin_late(partition, start, false)?;
                return Ok(0);
            }
            read => read?,
        }
        let learned = self.schemas.learn(self.records.iter().map(Record::framed))?;
        let is_at_end = self.records.is_empty();
        // The others are read the next time.
        self.records.truncate(learned.values());
        let records = std::mem::take(&mut self.records);
        for record in &records {
            let change = change_of(record, partition, &learned)?;
            if self.unproven.remove(&partition) {
                self.is_next(partition, record.offset, &change)?;
            }
            self.lake.apply(partition, record.offset, &change)?;
        }
        if let (Some(first), Some(last)) = (records.first(), records.last()) {
            self.behind.read(partition, first.ts, last.ts);
            self.pending_since_ms.get_or_insert(self.clock.monotonic_ms());
        }
        if is_at_end {
            // There is no change before what was reached, so the lake need not come back to what follows its last change.
            let reached = self.reader.reached(Topic::Changes, partition)?;
            self.lake.reach(partition, reached);
        }
        self.records = records;
        Ok(self.records.len())
    }

    /// Removes what a killed process left, if that was not done.
    fn start(&mut self) -> anyhow::Result<()> {
        let left = self.lake.start()?;
        if let Some(first) = left.first() {
            tracing::warn!(files = left.len(), %first, "removed files of a commit that was interrupted");
        }
        Ok(())
    }

    fn commit(&mut self) -> anyhow::Result<()> {
        let began_ms = self.clock.monotonic_ms();
        let changes = self.lake.pending();
        if changes > 0 {
            self.start()?;
        }
        if !self.lake.commit(self.clock.now_ms())? {
            return Ok(());
        }
        let now_ms = self.clock.now_ms();
        let oldest = self.behind.committed().unwrap_or(now_ms);
        let mut joined = 0;
        while self.lake.join_files(self.clock.now_ms())? {
            joined += 1;
        }
        tracing::info!(
            commit = self.lake.committed().commit,
            changes,
            oldest_ms = now_ms.saturating_sub(oldest),
            took_ms = self.clock.monotonic_ms().saturating_sub(began_ms),
            joined,
            "committed"
        );
        self.pending_since_ms = None;
        self.report();
        Ok(())
    }

    fn report(&self) {
        for table in ["changes", "intervals", "concurrency"] {
            let (rows, files) = rows(self.lake.committed(), table);
            metrics::lake_table(table, rows, files);
        }
        self.report_behind();
    }

    fn report_behind(&self) {
        self.behind.report(self.clock.now_ms());
    }
}

/// Returns how many rows and files a table has.
fn rows(manifest: &LakeManifest, table: &str) -> (u64, usize) {
    let lists = manifest.lists();
    let files = lists
        .iter()
        .filter(|(list, _)| list.folder() == table)
        .flat_map(|(_, files)| *files);
    let (rows, count) = files.fold((0, 0), |(rows, count), file| (rows + file.rows, count + 1));
    if table != "intervals" {
        return (rows, count);
    }
    // Rows of open intervals may have ended since.
    let ended: u64 = manifest.intervals.ended.iter().map(|file| file.rows).sum();
    (ended + manifest.intervals.holding, count)
}

fn gone(partition: Partition, next: Offset, start: Offset) -> anyhow::Error {
    if next == Offset(0) {
        return anyhow!(
            "the changes of partition {partition} before offset {start} are gone (retention); with --from-oldest the lake begins with \
             what is kept, without the intervals that began before"
        );
    }
    anyhow!(
        "the changes of partition {partition} from offset {next} on, where the lake goes on, are gone (retention): the oldest one kept \
         is at offset {start}; make another lake in an empty directory with --from-oldest, and keep changes for longer than this \
         process may stand still"
    )
}
