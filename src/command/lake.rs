//! `rollcall lake`: keeps tables of the changes up to date in a directory (`docs/lake.md`).
//!
//! One thread reads the change topic of all partitions in turn, and commits. What is exactly once is said in
//! [`crate::lake`]: this file decides when to read, when to commit, and what to report.

use super::audit::source::change_of;
use super::cluster::Cluster;
use super::remote::printed;
use super::{log, logging, status};
use crate::clock::{Clock as _, SystemClock};
use crate::config::units::{Seconds, Span};
use crate::config::{LogFormat, LogLevel, SecretUrl, address};
use crate::lake::manifest::LakeManifest;
use crate::lake::storage::{LakeDirectory, read_manifest};
use crate::lake::{self, Lake, PENDING_MAX};
use crate::log::{Error, Limit, Range, Reader, Record, Topic};
use crate::metrics;
use crate::presence::{Offset, Partition};
use crate::registry::{self, Schemas};
use anyhow::{Context as _, anyhow, bail};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;
use url::Url;

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
    /// The lake: a directory, as a path or as file:///DIRECTORY
    #[arg(long, value_name = "URL", env = "ROLLCALL_LAKE_TO")]
    to: String,
    /// The longest time until a change that was read is visible, 1 to 30 seconds
    #[arg(long, value_name = "S", env = "ROLLCALL_LAKE_EVERY", default_value_t = Span(10_000))]
    every: Seconds,
    /// Ends when everything that the topic has now is visible
    #[arg(long)]
    once: bool,
    /// Prints the views of the tables as SQL for DuckDB, as of the last commit, and ends
    #[arg(long, conflicts_with_all = ["once", "data", "kafka", "from_oldest"])]
    sql: bool,
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
type Trouble = Arc<Mutex<Option<String>>>;

pub fn run(args: &Args) -> anyhow::Result<()> {
    let root = directory(&args.to)?;
    if args.sql {
        return print_views(&root);
    }
    let every_ms = Seconds::within("every", Some(args.every), 0, 1_000, 30_000)?;
    let interrupted = log::on_interrupt()?;
    logging::start(args.log_format, args.log_level);
    let reader = log::open(args.kafka.as_deref(), &args.data, &args.cluster)?;
    let (schemas, _runtime) = log::schemas(args.registry.as_ref())?;
    let storage = LakeDirectory::open(&root).with_context(|| format!("cannot use {} as a lake", root.display()))?;
    let (lake, left) = Lake::open(storage, reader.partitions())?;
    if !left.is_empty() {
        tracing::warn!(files = left.len(), first = %left[0], "removed files of a commit that was interrupted");
    }
    let trouble = Trouble::default();
    let _status = if args.once {
        None
    } else {
        Some(serve_status(args.status, trouble.clone())?)
    };
    let mut follower = LakeFollower {
        clock: SystemClock::new(),
        reader,
        schemas,
        lake,
        begins: BTreeMap::new(),
        oldest: BTreeMap::new(),
        pending_since_ms: None,
        records: Vec::new(),
        trouble,
    };
    let mut is_told = false;
    while let Err(error) = follower.check_log(args.from_oldest) {
        if args.once || !follower.may_recover(&error) {
            return Err(error);
        }
        if !std::mem::replace(&mut is_told, true) {
            tracing::warn!("the log cannot be read: {error:#}; trying again");
        }
        follower.set_trouble(Some(format!("the log cannot be read: {error:#}")));
        if interrupted.recv_timeout(CHECK_PAUSE) != Err(RecvTimeoutError::Timeout) {
            return Ok(());
        }
    }
    follower.set_trouble(None);
    let manifest = follower.lake.committed();
    tracing::info!(to = %root.display(), commit = manifest.commit, rows = rows(manifest, "changes").0, "following the changes");
    follower.report();
    follower.follow(every_ms, args.once, &interrupted)
}

/// Returns the directory that a URL or a path names.
fn directory(to: &str) -> anyhow::Result<PathBuf> {
    let Some((scheme, _)) = to.split_once("://") else {
        return Ok(PathBuf::from(to));
    };
    if scheme != "file" {
        bail!("--to {scheme}:// cannot be written yet; expected a directory, as a path or as file:///DIRECTORY");
    }
    let url = Url::parse(to).ok().and_then(|url| url.to_file_path().ok());
    url.ok_or_else(|| anyhow!("--to {to} names no directory; expected file:///DIRECTORY with three slashes"))
}

fn print_views(root: &Path) -> anyhow::Result<()> {
    let bytes = read_manifest(root).with_context(|| format!("cannot read the lake in {}", root.display()))?;
    let Some(bytes) = bytes else {
        bail!(
            "there is no lake in {}: it has no manifest.json; `rollcall lake --to DIRECTORY` makes one with its first commit",
            root.display()
        );
    };
    let manifest = LakeManifest::read(&bytes).map_err(lake::Error::from)?;
    let mut output = std::io::stdout().lock();
    let written = output.write_all(lake::sql(&manifest, &root.to_string_lossy()).as_bytes());
    printed(written.map_err(anyhow::Error::from))
}

fn serve_status(address: SocketAddr, trouble: Trouble) -> anyhow::Result<Runtime> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let listener = runtime.block_on(status::bind(address))?;
    eprintln!("status   http://{}", listener.local_addr().unwrap_or(address));
    if status::is_exposed(address) {
        tracing::warn!(%address, "--status is not a loopback address: other machines can read /metrics without a token");
    }
    runtime.spawn(status::serve(listener, move || {
        let trouble = trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.iter().cloned().collect()
    }));
    Ok(runtime)
}

/// Reads all partitions into the lake.
struct LakeFollower {
    clock: SystemClock,
    reader: Box<dyn Reader>,
    schemas: Schemas,
    lake: Lake<LakeDirectory>,
    /// Where a new lake begins in the partitions whose first changes are gone.
    begins: BTreeMap<Partition, Offset>,
    /// The time of the oldest change of each partition that is not committed.
    oldest: BTreeMap<Partition, u64>,
    /// Since when something waits for a commit, by the monotonic clock.
    pending_since_ms: Option<u64>,
    records: Vec<Record>,
    trouble: Trouble,
}

impl LakeFollower {
    fn partitions(&self) -> impl Iterator<Item = Partition> + use<> {
        (0..self.reader.partitions()).map(Partition)
    }

    /// Refuses a log that is not the one of the lake, or that no longer has what comes next.
    fn check_log(&mut self, from_oldest: bool) -> anyhow::Result<()> {
        self.reader.refresh()?;
        for partition in self.partitions() {
            let Range { start, end } = self.reader.range(Topic::Changes, partition)?;
            let next = self.lake.next(partition);
            if start > next {
                if !from_oldest || next > Offset(0) {
                    return Err(gone(partition, next, start));
                }
                self.begins.insert(partition, start);
            }
            let manifest = self.lake.committed();
            let position = manifest.partitions.get(partition.0 as usize);
            let last = position.and_then(|position| position.last.clone());
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
            self.schemas.learn([record.framed()])?;
            let is_same = record.offset == at && lake::is_same(&last, &change_of(record, partition, &self.schemas)?);
            if !is_same {
                return Err(other_log());
            }
        }
        Ok(())
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
                // On Kafka the end is a question to the brokers, and only `--once` needs it.
                let read = read.and_then(|count| Ok((count, !once || self.is_at_end(partition)?)));
                match read {
                    Ok((count, is_end)) => {
                        more |= count > 0;
                        is_at_end &= is_end;
                    }
                    Err(error) if self.may_recover(&error) => failure = Some(format!("{error:#}")),
                    Err(error) => return Err(explained(error)),
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
            self.set_trouble(unread.as_ref().and_then(|(since_ms, words)| {
                let unread_ms = now_ms.saturating_sub(*since_ms);
                (unread_ms >= UNREAD_MAX_MS)
                    .then(|| format!("changes were not read for {} s: {words}", unread_ms / 1_000))
            }));
            if self
                .pending_since_ms
                .is_some_and(|since_ms| now_ms >= since_ms + every_ms)
            {
                self.commit()?;
            }
            self.report_behind();
            if once && is_at_end && unread.is_none() && !more {
                return self.commit();
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

    fn set_trouble(&self, trouble: Option<String>) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
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

    /// Takes the next records of a partition. Returns how many there were.
    fn read_some(&mut self, partition: Partition) -> anyhow::Result<usize> {
        let next = self.next(partition);
        self.records.clear();
        self.reader
            .read(Topic::Changes, partition, next, LIMIT, &mut self.records)?;
        self.schemas.learn(self.records.iter().map(Record::framed))?;
        for record in &self.records {
            let change = change_of(record, partition, &self.schemas)?;
            self.lake.apply(partition, record.offset, &change)?;
        }
        if let Some(first) = self.records.first() {
            self.oldest.entry(partition).or_insert(first.ts);
            self.pending_since_ms.get_or_insert(self.clock.monotonic_ms());
        }
        Ok(self.records.len())
    }

    fn commit(&mut self) -> anyhow::Result<()> {
        let began_ms = self.clock.monotonic_ms();
        let changes = self.lake.pending();
        if !self.lake.commit(self.clock.now_ms())? {
            return Ok(());
        }
        let now_ms = self.clock.now_ms();
        let oldest = self.oldest.values().copied().min().unwrap_or(now_ms);
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
        self.oldest.clear();
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
        let now_ms = self.clock.now_ms();
        for partition in self.partitions() {
            let behind_ms = self
                .oldest
                .get(&partition)
                .map_or(0, |oldest| now_ms.saturating_sub(*oldest));
            metrics::lake_behind(partition.0, behind_ms);
        }
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

/// Says what can be done where retention was faster than the lake.
fn explained(error: anyhow::Error) -> anyhow::Error {
    match error.downcast_ref() {
        Some(Error::Gone {
            partition,
            wanted,
            start,
            ..
        }) => gone(*partition, *wanted, *start),
        _ => error,
    }
}
