//! A lake: the change topic as tables of Parquet files that are kept up to date ([`docs/lake.md`]).
//!
//! [`Lake`] takes the changes of every partition in order and makes them visible in commits. A commit writes new data files, then
//! replaces the manifest, which names all files and has the next offset of every partition. So a change is in the tables exactly
//! once, wherever a process dies: files that no manifest names are removed at the next start, and the changes in them are read
//! again. A file that a manifest has named is never written again. There is a manifest, of commit 0, before there is a data file: data
//! files without one are those of a lake whose manifest was lost, and stay.
//!
//! Where nothing else keeps other processes from writing, the manifest does: it can only be replaced by a process that knows the
//! newest one. Of two that write, the second one to commit ends, and nothing of what it has written is visible.
//!
//! Where it is asked for, [`iceberg`] makes metadata of Apache Iceberg from each manifest that was committed.
//!
//! Memory: about 200 bytes for each user and each device that ever had a change, for the intervals that hold; rows of one group
//! for each table; at most [`PENDING_MAX`] intervals that began since the last commit. The clock is not read here.
//!
//! [`docs/lake.md`]: ../../docs/lake.md

pub mod bucket;
pub mod iceberg;
pub mod manifest;
mod partition;
mod restore;
pub mod storage;
mod views;

pub use views::sql;

use crate::audit::export::Cell;
use crate::audit::export::columnar::ParquetFile;
use crate::audit::export::intervals::{EndedInterval, IntervalStart};
use crate::audit::export::tables::{change_row, interval_row};
use crate::audit::id_text;
use crate::presence::change::Change;
use crate::presence::{Offset, Partition};
use crate::version;
use iceberg::IcebergTables;
use iceberg::positions::row_key;
use manifest::{FileList, LakeFile, LakeManifest, LastChange, ReplacedFile, UnusableManifest, WHOLE};
use partition::LakePartition;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Seek as _, Write};
use storage::{LakeStorage, ManifestWrite, PART, commit_of, hash_of, name_hash};

/// After so many changes a commit is due, whatever the time.
pub const PENDING_MAX: usize = 200_000;
/// So many files of one size are joined.
const JOINED: usize = 8;
/// Files are joined up to this size.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// The intervals that hold are all written again once more than so many began or ended since the last time, and more than a
/// quarter of them.
const OPEN_CHANGED_MAX: u64 = 100_000;
/// For so long files stay that a newer manifest no longer names.
pub const REPLACED_KEPT_MS: u64 = 600_000;

/// Why a lake cannot go on. What was committed stays as it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "cannot {what}: {error}; the lake is as of its last commit and goes on from there when it is started again"
    )]
    Storage { what: String, error: io::Error },
    #[error(transparent)]
    Manifest(#[from] UnusableManifest),
    #[error(
        "there is no manifest.json that could name {path}. Only the manifest says which files are those of the tables, so nothing was \
         changed; put manifest.json back, from a backup for example, or name an empty directory or prefix with --to"
    )]
    NoManifest { path: String },
    #[error(
        "{path} is not what manifest.json says: {problem}; restore the lake from a backup, or make another one in an empty directory"
    )]
    Damaged { path: String, problem: String },
    #[error(
        "{path} is damaged: its bytes are not those that were written (their hash is {found}, and its name has {named}). Restore this \
         file from a backup, or make another lake in an empty directory"
    )]
    Altered { path: String, named: String, found: String },
    #[error(
        "the lake is of a log with {lake} partitions, but this log has {log}; read the log that the lake was made of, or make \
         another lake in an empty directory"
    )]
    Partitions { lake: usize, log: u32 },
    #[error(
        "another process has written to this lake (commit {commit} of writer {writer}), so this one ends; nothing that it had not \
         committed is visible. Run one process for a lake; started again, this one goes on from the newest commit"
    )]
    OtherWriter { commit: u64, writer: String },
    #[error(
        "offset {offset} of the changes of partition {partition} is of partition {found}; a lake is made of one whole log, so \
         check --kafka and --topic-prefix"
    )]
    OtherPartition {
        partition: Partition,
        offset: Offset,
        found: Partition,
    },
}

/// Adds to an error of the disk what could not be done.
fn cannot(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
    let what = what.into();
    move |error| Error::Storage { what, error }
}

/// The key of an interval: the change that began it, its user, its platform and device.
type OpenKey = (u32, u64, u64, Box<str>, Option<(Box<str>, Box<str>)>);

/// What is not committed yet.
struct Pending<S: LakeStorage> {
    changes: Option<TableFile<S>>,
    ended: Option<TableFile<S>>,
    minutes: Option<TableFile<S>>,
    /// Intervals that began since the last commit and still hold.
    begun: BTreeMap<OpenKey, IntervalStart>,
    count: usize,
}

impl<S: LakeStorage> Default for Pending<S> {
    fn default() -> Pending<S> {
        Pending {
            changes: None,
            ended: None,
            minutes: None,
            begun: BTreeMap::new(),
            count: 0,
        }
    }
}

/// The tables, and the one process that writes them.
pub struct Lake<S: LakeStorage> {
    storage: S,
    manifest: LakeManifest,
    partitions: Vec<LakePartition>,
    pending: Pending<S>,
    /// `None`: there are no tables of Iceberg.
    iceberg: Option<IcebergTables>,
    /// A manifest is there, if only that of commit 0.
    has_manifest: bool,
    /// The files that a process left which was killed; `None` once they were removed.
    left: Option<Vec<String>>,
    /// After a failure what is in memory is not what is committed.
    has_failed: bool,
    /// See [`OPEN_CHANGED_MAX`].
    open_changed_max: u64,
}

impl<S: LakeStorage> Lake<S> {
    /// Opens a lake of a log with so many partitions, or begins one. Writes and removes nothing: whether the log is that of the lake
    /// is not known yet.
    pub fn open(storage: S, partitions: u32) -> Result<Lake<S>, Error> {
        Lake::begin(storage, partitions, None)
    }

    /// Opens a lake whose tables are also those of Iceberg. `root` is the URI of the lake, without a slash at its end.
    pub fn open_with_iceberg(storage: S, partitions: u32, root: String) -> Result<Lake<S>, Error> {
        Lake::begin(storage, partitions, Some(root))
    }

    fn begin(mut storage: S, partitions: u32, root: Option<String>) -> Result<Lake<S>, Error> {
        let iceberg = root.map(|root| IcebergTables::begin(&mut storage, root));
        let iceberg = iceberg.transpose()?;
        let found = newest(&mut storage)?;
        let has_manifest = found.is_some();
        // What no commit has filled yet has no rows of another log.
        let begun = found.filter(|manifest| manifest.commit > 0);
        let manifest = begun.unwrap_or_else(|| LakeManifest::new(partitions));
        if manifest.partitions.len() != partitions as usize {
            return Err(Error::Partitions {
                lake: manifest.partitions.len(),
                log: partitions,
            });
        }
        let left = left(&mut storage, &manifest)?;
        let mut lake = Lake {
            partitions: manifest.partitions.iter().map(LakePartition::at).collect(),
            manifest,
            storage,
            pending: Pending::default(),
            iceberg,
            has_manifest,
            left: Some(left),
            has_failed: false,
            open_changed_max: OPEN_CHANGED_MAX,
        };
        let rows = lake.iceberg.as_mut().map(|tables| &mut tables.rows);
        restore::open_intervals(&mut lake.storage, &lake.manifest, &mut lake.partitions, rows)?;
        Ok(lake)
    }

    /// Removes the files that a killed process left, and returns them; makes up for the metadata of Iceberg that it did not write. Done
    /// once, when it is known that the log has what follows the manifest; at the latest it is the beginning of the first commit.
    pub fn start(&mut self) -> Result<Vec<String>, Error> {
        self.guarded(Lake::start_once)
    }

    fn start_once(&mut self) -> Result<Vec<String>, Error> {
        let Some(left) = self.left.take() else {
            return Ok(Vec::new());
        };
        for path in &left {
            let removed = self.storage.remove(path);
            removed.map_err(cannot(format!("remove {path}")))?;
        }
        if let Some(tables) = &mut self.iceberg {
            tables.remove_after(&mut self.storage, self.manifest.commit)?;
            tables.publish(&mut self.storage, &self.manifest)?;
        }
        Ok(left)
    }

    /// Sets how many intervals begin or end until all that hold are written again, for tests.
    pub fn rewrite_open_after(&mut self, changed: u64) {
        self.open_changed_max = changed;
    }

    /// What is committed.
    pub fn committed(&self) -> &LakeManifest {
        &self.manifest
    }

    /// Returns where the next change of a partition is read.
    pub fn next(&self, partition: Partition) -> Offset {
        self.partition(partition).map_or(Offset(0), |one| one.next)
    }

    /// Returns the last change of a partition that was taken.
    pub fn last(&self, partition: Partition) -> Option<&LastChange> {
        self.partition(partition)?.last.as_ref()
    }

    /// Notes that every change before an offset of a partition's topic was taken. The next commit says so.
    pub fn reach(&mut self, partition: Partition, offset: Offset) {
        if let Some(one) = self.partitions.get_mut(partition.0 as usize) {
            one.reach(offset);
        }
    }

    /// Returns how many changes wait for a commit.
    pub fn pending(&self) -> usize {
        self.pending.count
    }

    fn partition(&self, partition: Partition) -> Option<&LakePartition> {
        self.partitions.get(partition.0 as usize)
    }

    /// Takes the change at an offset of a partition's topic, which is not before [`Lake::next`].
    pub fn apply(&mut self, partition: Partition, offset: Offset, change: &Change) -> Result<(), Error> {
        self.guarded(|lake| lake.take(partition, offset, change))
    }

    /// Makes everything so far visible. Returns false if there was nothing new.
    pub fn commit(&mut self, now_ms: u64) -> Result<bool, Error> {
        self.guarded(|lake| lake.commit_pending(now_ms))
    }

    /// Joins files that have become many. Returns false if there was nothing to join.
    pub fn join_files(&mut self, now_ms: u64) -> Result<bool, Error> {
        self.guarded(|lake| lake.join_some(now_ms))
    }

    fn guarded<T>(&mut self, step: impl FnOnce(&mut Lake<S>) -> Result<T, Error>) -> Result<T, Error> {
        assert!(
            !self.has_failed,
            "after an error a lake is opened again, because what is in memory is not what is committed"
        );
        let done = step(self);
        self.has_failed = done.is_err();
        done
    }

    fn take(&mut self, partition: Partition, offset: Offset, change: &Change) -> Result<(), Error> {
        if change.id.partition != partition {
            return Err(Error::OtherPartition {
                partition,
                offset,
                found: change.id.partition,
            });
        }
        let Some(folded) = self.partitions.get_mut(partition.0 as usize) else {
            return Ok(());
        };
        let (storage, pending) = (&mut self.storage, &mut self.pending);
        let row = change_row(offset, change);
        write_row(storage, &mut pending.changes, FileList::Changes, &row)?;
        let (moved, minutes) = folded.apply(offset, change);
        for one in &moved.ended {
            let is_new = pending
                .begun
                .remove(&key(&change.user, one.device.as_ref(), &one.start))
                .is_some();
            let EndedInterval { start, device, .. } = one;
            let device = device.as_ref().map(|(platform, device)| (&**platform, &**device));
            if let Some(tables) = &mut self.iceberg
                && !is_new
            {
                tables.rows.end(&row_key(start.by.change, device));
            }
            let row = interval_row(partition, &change.user, device, start, Some(one));
            write_row(storage, &mut pending.ended, FileList::EndedIntervals, &row)?;
        }
        for row in &minutes {
            write_row(storage, &mut pending.minutes, FileList::EndedMinutes, &row.cells())?;
        }
        for one in &moved.begun {
            let start = one.start();
            let device = one.device.map(|one| (one.platform.clone(), one.device.clone()));
            pending.begun.insert(key(&change.user, device.as_ref(), &start), start);
        }
        pending.count += 1;
        Ok(())
    }

    fn commit_pending(&mut self, now_ms: u64) -> Result<bool, Error> {
        if self.pending.count == 0 {
            return Ok(false);
        }
        self.start_once()?;
        self.write_first_manifest()?;
        let pending = std::mem::take(&mut self.pending);
        if let Some(tables) = &mut self.iceberg {
            tables.rows.commit();
        }
        let mut next = LakeManifest {
            partitions: self.partitions.iter().map(LakePartition::position).collect(),
            ..self.manifest.clone()
        };
        next.intervals.holding = self.partitions.iter().map(|one| one.open.len() as u64).sum();
        for file in [pending.changes, pending.ended, pending.minutes] {
            self.publish(&mut next, file, 0)?;
        }
        self.write_open(&mut next, pending.begun, now_ms)?;
        self.write_unfinished(&mut next, now_ms)?;
        self.replace_manifest(next, now_ms)?;
        Ok(true)
    }

    /// Publishes a file with rows of the commit after `next`'s, and adds it to its list.
    fn publish(&mut self, next: &mut LakeManifest, file: Option<TableFile<S>>, level: u32) -> Result<(), Error> {
        let Some(file) = file else { return Ok(()) };
        let (list, commit) = (file.list, next.commit + 1);
        let file = file.publish(&mut self.storage, (commit, commit), commit, level)?;
        next.list_mut(list).push(file);
        Ok(())
    }

    /// Writes the intervals that have begun, or all that hold.
    fn write_open(
        &mut self,
        next: &mut LakeManifest,
        begun: BTreeMap<OpenKey, IntervalStart>,
        now_ms: u64,
    ) -> Result<(), Error> {
        let since = next.intervals.open_since;
        let begun_since = next.intervals.open.iter().filter(|file| file.last > since);
        let rows_since: u64 = begun_since.chain(next.ended_since()).map(|file| file.rows).sum();
        let changed = rows_since + begun.len() as u64;
        let mut file = None;
        let list = FileList::OpenIntervals;
        let mut rows = self.iceberg.as_mut().map(|tables| &mut tables.rows);
        if next.intervals.open.is_empty() || changed > self.open_changed_max.max(next.intervals.holding / 4) {
            if let Some(rows) = &mut rows {
                rows.clear();
            }
            for one in &self.partitions {
                one.open.each(|user, device, start| {
                    if let Some(rows) = &mut rows {
                        rows.add(row_key(start.by.change, device));
                    }
                    let row = interval_row(one.partition, user, device, start, None);
                    write_row(&mut self.storage, &mut file, list, &row)
                })?;
            }
            let before = std::mem::take(&mut next.intervals.open);
            replace(next, before, now_ms);
            next.intervals.open_since = next.commit + 1;
            return self.publish_open(next, file, WHOLE);
        }
        for ((partition, _, _, user, device), start) in &begun {
            let device = device.as_ref().map(|(platform, device)| (&**platform, &**device));
            if let Some(rows) = &mut rows {
                rows.add(row_key(start.by.change, device));
            }
            let row = interval_row(Partition(*partition), user, device, start, None);
            write_row(&mut self.storage, &mut file, list, &row)?;
        }
        self.publish_open(next, file, 0)
    }

    /// Publishes a file of open intervals.
    fn publish_open(&mut self, next: &mut LakeManifest, file: Option<TableFile<S>>, level: u32) -> Result<(), Error> {
        self.publish(next, file, level)?;
        if let Some(tables) = &mut self.iceberg
            && let Some(file) = next.intervals.open.last()
        {
            tables.rows.written(&file.path);
        }
        Ok(())
    }

    /// Writes the last minute of each partition, as it is so far.
    fn write_unfinished(&mut self, next: &mut LakeManifest, now_ms: u64) -> Result<(), Error> {
        let list = FileList::UnfinishedMinutes;
        let before = std::mem::take(next.list_mut(list));
        replace(next, before, now_ms);
        let mut file = None;
        for row in self.partitions.iter().flat_map(LakePartition::unfinished) {
            write_row(&mut self.storage, &mut file, list, &row.cells())?;
        }
        self.publish(next, file, WHOLE)
    }

    /// Writes the manifest of commit 0, which names no file, if there is no manifest. So data files without one are never those of a
    /// first commit that was interrupted.
    fn write_first_manifest(&mut self) -> Result<(), Error> {
        if std::mem::replace(&mut self.has_manifest, true) {
            return Ok(());
        }
        if write_manifest(&mut self.storage, &mut self.manifest)? == ManifestWrite::Done {
            return Ok(());
        }
        match read_manifest(&mut self.storage)? {
            // Another process is where this one is. The first to commit goes on.
            Some(LakeManifest { commit: 0, .. }) => Ok(()),
            _ => Err(overtaken(&mut self.storage)?),
        }
    }

    /// Joins the files of one list that are the first of their size.
    fn join_some(&mut self, now_ms: u64) -> Result<bool, Error> {
        let found = self
            .manifest
            .lists()
            .into_iter()
            .find_map(|(list, files)| Some((list, to_join(files)?)));
        let Some((list, range)) = found else {
            return Ok(false);
        };
        self.start_once()?;
        let mut next = self.manifest.clone();
        let joined: Vec<LakeFile> = next.list_mut(list).drain(range.clone()).collect();
        let mut whole = TableFile::begin(&mut self.storage, list)?;
        for file in &joined {
            let input = open_verified(&mut self.storage, &file.path)?;
            whole.append(input, file)?;
        }
        let commits = (
            joined.first().map_or(0, |file| file.first),
            joined.last().map_or(0, |file| file.last),
        );
        let level = joined.first().map_or(0, |file| file.level + 1);
        let whole = whole.publish(&mut self.storage, commits, next.commit + 1, level)?;
        if let Some(tables) = &mut self.iceberg
            && list == FileList::OpenIntervals
        {
            tables.rows.joined(&joined, &whole.path);
        }
        next.list_mut(list).insert(range.start, whole);
        replace(&mut next, joined, now_ms);
        self.replace_manifest(next, now_ms)?;
        Ok(true)
    }

    /// Makes a manifest the one that counts, and removes files that nobody reads any more.
    fn replace_manifest(&mut self, mut next: LakeManifest, now_ms: u64) -> Result<(), Error> {
        next.committed_ms = now_ms;
        // The metadata of Iceberg that name a file may have been the newest ones until this commit began.
        for file in next.replaced.iter_mut().filter(|file| file.commit == next.commit) {
            file.at_ms = now_ms;
        }
        let (gone, kept) = std::mem::take(&mut next.replaced)
            .into_iter()
            .partition::<Vec<_>, _>(|file| file.at_ms + REPLACED_KEPT_MS <= now_ms);
        next.replaced = kept;
        next.commit += 1;
        if write_manifest(&mut self.storage, &mut next)? == ManifestWrite::Outdated {
            return Err(overtaken(&mut self.storage)?);
        }
        self.manifest = next;
        if let Some(tables) = &mut self.iceberg {
            tables.publish(&mut self.storage, &self.manifest)?;
        }
        for file in gone {
            let removed = self.storage.remove(&file.path);
            removed.map_err(cannot(format!("remove {}", file.path)))?;
        }
        Ok(())
    }
}

/// Returns the newest manifest, or `None` where nothing is yet.
fn newest<S: LakeStorage>(storage: &mut S) -> Result<Option<LakeManifest>, Error> {
    let found = read_manifest(storage)?;
    if found.as_ref().is_some_and(|manifest| manifest.commit > 0) {
        return Ok(found);
    }
    let Some(path) = not_of_first(storage, found.is_some())? else {
        return Ok(found);
    };
    // Another process may have made it meanwhile.
    match read_manifest(storage)? {
        Some(manifest) if found.is_none() || manifest.commit > 0 => Ok(Some(manifest)),
        _ => Err(Error::NoManifest { path }),
    }
}

fn read_manifest<S: LakeStorage>(storage: &mut S) -> Result<Option<LakeManifest>, Error> {
    let bytes = storage.manifest().map_err(cannot("read manifest.json"))?;
    Ok(bytes.map(|bytes| LakeManifest::read(&bytes)).transpose()?)
}

/// Replaces the manifest, and notes in it who has written it.
fn write_manifest<S: LakeStorage>(storage: &mut S, manifest: &mut LakeManifest) -> Result<ManifestWrite, Error> {
    version::VERSION.clone_into(&mut manifest.version);
    storage.writer().unwrap_or_default().clone_into(&mut manifest.writer);
    let bytes = serde_json::to_vec_pretty(manifest).map_err(io::Error::other);
    let written = bytes.and_then(|bytes| storage.set_manifest(&bytes));
    written.map_err(cannot("write manifest.json"))
}

/// Returns the error of a process whose manifest is no longer the newest one.
fn overtaken<S: LakeStorage>(storage: &mut S) -> Result<Error, Error> {
    Ok(match read_manifest(storage)? {
        Some(LakeManifest { commit, writer, .. }) => Error::OtherWriter { commit, writer },
        None => Error::Damaged {
            path: "manifest.json".to_owned(),
            problem: "it was removed while this process was writing".to_owned(),
        },
    })
}

fn key(user: &str, device: Option<&(Box<str>, Box<str>)>, start: &IntervalStart) -> OpenKey {
    let id = start.by.change;
    (id.partition.0, id.offset.0, id.index, user.into(), device.cloned())
}

fn replace(manifest: &mut LakeManifest, files: Vec<LakeFile>, now_ms: u64) {
    let commit = manifest.commit + 1;
    manifest.replaced.extend(files.into_iter().map(|file| ReplacedFile {
        path: file.path,
        at_ms: now_ms,
        commit,
    }));
}

/// Returns a file that a first commit cannot have left which was interrupted: the manifest was lost, perhaps by a copy that was cut,
/// and the files may be all that there is of changes that the log no longer has.
fn not_of_first<S: LakeStorage>(storage: &mut S, has_manifest: bool) -> Result<Option<String>, Error> {
    let is_of_first = |path: &str| path.ends_with(PART) || (has_manifest && commit_of(path) == Some(1));
    let found = storage.list().map_err(cannot("list the files"))?;
    if let Some((path, _)) = found.into_iter().find(|(path, _)| !is_of_first(path)) {
        return Ok(Some(path));
    }
    iceberg::first_file(storage)
}

/// Returns which files of a list are joined next: the oldest [`JOINED`] neighbours of one level that are not too large together,
/// the smallest level first. What a large catch-up wrote may never fit; it does not keep what comes after it from being joined.
fn to_join(files: &[LakeFile]) -> Option<std::ops::Range<usize>> {
    let levels: BTreeSet<u32> = files
        .iter()
        .map(|file| file.level)
        .filter(|level| *level < WHOLE)
        .collect();
    levels.into_iter().find_map(|level| {
        let fits = |run: &[LakeFile]| {
            let bytes: u64 = run.iter().map(|file| file.bytes).sum();
            run.iter().all(|file| file.level == level) && bytes <= FILE_BYTES_MAX
        };
        let start = files.windows(JOINED).position(fits)?;
        Some(start..start + JOINED)
    })
}

/// Returns the files that no manifest names and that can be removed. Fails if one that is named is not there.
///
/// The manifest of the commit in a file's name names it, or none does. So a file of the newest commit or an earlier one is named by no
/// later manifest. One of a later commit may be of a process that is writing, unless there is no other.
fn left<S: LakeStorage>(storage: &mut S, manifest: &LakeManifest) -> Result<Vec<String>, Error> {
    let found: BTreeMap<String, u64> = storage.list().map_err(cannot("list the files"))?.into_iter().collect();
    let mut named: BTreeSet<&str> = manifest.replaced.iter().map(|file| &*file.path).collect();
    for file in manifest.lists().into_iter().flat_map(|(_, files)| files) {
        named.insert(&file.path);
        let problem = match found.get(&file.path) {
            Some(bytes) if *bytes == file.bytes => continue,
            Some(bytes) => format!("it has {bytes} bytes and should have {}", file.bytes),
            None => "it is not there".to_owned(),
        };
        return Err(Error::Damaged {
            path: file.path.clone(),
            problem,
        });
    }
    let is_alone = storage.writer().is_none();
    let may_be_named = |path: &str| !is_alone && commit_of(path).is_none_or(|commit| commit > manifest.commit);
    Ok(found
        .into_keys()
        .filter(|path| !named.contains(&**path) && !may_be_named(path))
        .collect())
}

/// Opens a data file. Fails if its bytes are not those that were written: what Parquet reads of others may be rows that look right.
fn open_verified<S: LakeStorage>(storage: &mut S, path: &str) -> Result<File, Error> {
    let read = || cannot(format!("read {path}"));
    let mut file = storage.open(path).map_err(read())?;
    let mut hasher = blake3::Hasher::new();
    io::copy(&mut file, &mut hasher).map_err(read())?;
    file.rewind().map_err(read())?;
    let found = name_hash(&hasher.finalize());
    match hash_of(path) {
        Some(named) if named == found => Ok(file),
        named => Err(Error::Altered {
            path: path.to_owned(),
            named: named.unwrap_or("none").to_owned(),
            found,
        }),
    }
}

/// Counts and hashes what is written.
struct Measured<W> {
    inner: W,
    bytes: u64,
    hasher: blake3::Hasher,
}

impl<W: Write> Write for Measured<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.bytes += count as u64;
        self.hasher.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A data file that takes rows.
struct TableFile<S: LakeStorage> {
    list: FileList,
    rows: u64,
    file: ParquetFile<Measured<S::NewFile>>,
}

fn write_row<S: LakeStorage>(
    storage: &mut S,
    file: &mut Option<TableFile<S>>,
    list: FileList,
    cells: &[Cell<'_>],
) -> Result<(), Error> {
    let file = match file {
        Some(file) => file,
        None => file.insert(TableFile::begin(storage, list)?),
    };
    file.rows += 1;
    // The words are only made for an error: this is done for each change.
    file.file.row(cells).map_err(|error| cannot(file.failed())(error))
}

impl<S: LakeStorage> TableFile<S> {
    fn begin(storage: &mut S, list: FileList) -> Result<TableFile<S>, Error> {
        let what = || format!("write a file in {}", list.folder());
        let inner = storage.create(list.folder()).map_err(cannot(what()))?;
        let measured = Measured {
            inner,
            bytes: 0,
            hasher: blake3::Hasher::new(),
        };
        Ok(TableFile {
            list,
            rows: 0,
            file: ParquetFile::begin(measured, list.columns()).map_err(cannot(what()))?,
        })
    }

    fn failed(&self) -> String {
        format!("write a file in {}", self.list.folder())
    }

    fn append(&mut self, input: File, from: &LakeFile) -> Result<(), Error> {
        self.rows += from.rows;
        let appended = self.file.append(input);
        appended.map_err(cannot(format!("join {} with other files", from.path)))
    }

    /// Completes the file. Its name says its content, which are the commits whose rows it has and a hash, and the commit whose
    /// manifest is the first to name it.
    fn publish(self, storage: &mut S, (first, last): (u64, u64), commit: u64, level: u32) -> Result<LakeFile, Error> {
        let failed = self.failed();
        let Measured { inner, bytes, hasher } = self.file.finish().map_err(cannot(failed.clone()))?;
        let path = format!(
            "{}/{}{first:010}-{last:010}-{commit:010}-{}.parquet",
            self.list.folder(),
            self.list.prefix(),
            name_hash(&hasher.finalize())
        );
        storage.publish(inner, &path).map_err(cannot(failed))?;
        Ok(LakeFile {
            path,
            rows: self.rows,
            bytes,
            first,
            last,
            level,
        })
    }
}

/// Returns whether a change at the offset of the last committed one is that one.
pub fn is_same(last: &LastChange, change: &Change) -> bool {
    last.change == id_text(change.id) && last.at == change.at.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(sizes: &[(u32, u64)]) -> Vec<LakeFile> {
        let file = |(number, (level, mebibytes)): (usize, &(u32, u64))| LakeFile {
            path: format!("changes/{number}"),
            rows: 1,
            bytes: mebibytes << 20,
            first: number as u64,
            last: number as u64,
            level: *level,
        };
        sizes.iter().enumerate().map(file).collect()
    }

    #[test]
    fn small_files_are_joined_also_behind_large_ones_of_their_level() {
        assert_eq!(to_join(&files(&[(0, 1); JOINED - 1])), None);
        assert_eq!(to_join(&files(&[(0, 1); JOINED])), Some(0..JOINED));
        // As a first start on a long log writes them.
        let mut catch_up = vec![(0, 16); 5];
        catch_up.extend([(0, 1); JOINED - 1]);
        assert_eq!(
            to_join(&files(&catch_up)),
            Some(2..2 + JOINED),
            "three of 16 MiB and five of one fit"
        );
        let whole = vec![(0, 60); 5];
        let mut catch_up = whole.clone();
        catch_up.extend([(0, 1); JOINED - 1]);
        assert_eq!(to_join(&files(&catch_up)), None);
        catch_up.push((0, 1));
        assert_eq!(to_join(&files(&catch_up)), Some(5..5 + JOINED));
        // A level is joined before those above it, wherever it stands.
        let mut mixed = vec![(1, 2); JOINED];
        mixed.extend([(0, 1); JOINED]);
        assert_eq!(to_join(&files(&mixed)), Some(JOINED..2 * JOINED));
    }
}
