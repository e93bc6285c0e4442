//! Opening the directory of a log: checks its content before writing to it, and creates a log in an empty directory.

use super::ends::{Ends, EndsFile, first_short};
use super::shard::{self, Found, ShardWriter};
use super::tables::{Damage, Mode, Tables, not_opened};
use super::traced::TracedEvents;
use super::{DEFAULT_PARTITIONS, MAX_PARTITIONS, PartitionShards, ends_of, keys};
use crate::directory;
use crate::log::{Error, Position, UnreadablePosition};
use crate::presence::Partition;
use crate::topics::Topic;
use rocksdb::{DB, IteratorMode, Options, WriteBatch, WriteOptions};
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::sync::Mutex;

pub(super) struct OpenedTables {
    pub tables: Tables,
    pub partitions_shards: Vec<PartitionShards>,
    pub ends_file: EndsFile,
}

/// What a log is opened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// An engine's work.
    Engine,
    /// Filling it with the events of another log.
    Filling,
    /// Moving its events to another log; it takes no more.
    Moving,
    /// Reading, beside any of these.
    Reading,
}

/// The file that says that the events of this log were moved to another one, and to which.
const MOVED: &str = "MOVED";

pub(super) fn open(dir: &Path, partitions: Option<u32>, purpose: Purpose) -> Result<OpenedTables, Error> {
    directory::create(dir).map_err(|error| unusable(dir, &error))?;
    judge_files(dir)?;
    if purpose != Purpose::Moving {
        refuse_moved(dir)?;
    }
    let tables = Tables::open(dir, Mode::Make).map_err(|error| not_opened(dir, &error))?;
    let damaged = |damage: Damage| damage.opening(dir);
    if tables
        .db()
        .get_cf(tables.meta(), keys::META_LAYOUT)
        .map_err(Damage::from)
        .map_err(damaged)?
        .is_none()
    {
        if has(dir, &EndsFile::path(dir))? || !tables.is_empty().map_err(damaged)? {
            return Err(no_log(dir));
        }
        let layout = match purpose {
            Purpose::Filling => keys::LAYOUT_UNFINISHED,
            Purpose::Engine | Purpose::Moving | Purpose::Reading => keys::LAYOUT,
        };
        write_meta(dir, &tables, layout, partitions.unwrap_or(DEFAULT_PARTITIONS))?;
    }
    let made_with = partitions_of(dir, &tables, purpose)?;
    if let Some(wanted) = partitions {
        refuse_other_number(dir, made_with, wanted)?;
    }
    let partitions_shards = load(dir, &tables, made_with)?;
    let ends: Ends = partitions_shards.iter().map(ends_of).collect();
    check_claims(dir, &ends, claims(dir)?.as_ref())?;
    let ends_file = EndsFile::open(dir, ends).map_err(|error| unusable(dir, &error))?;
    Ok(OpenedTables {
        tables,
        partitions_shards,
        ends_file,
    })
}

/// Refuses a log whose events were moved to another one.
fn refuse_moved(dir: &Path) -> Result<(), Error> {
    let Some(to) = moved_to(dir)? else {
        return Ok(());
    };
    let (dir, file) = (dir.display(), dir.join(MOVED));
    let text = format!(
        "the log in {dir} takes no more events: rollcall reshard moves or has moved them to {to}. Use that log once the \
         command has finished. To use this one again, remove {}; events that the other log has received since are not \
         here",
        file.display()
    );
    Err(Error::Open(text.into()))
}

/// Refuses a log that was made with another number of partitions than is asked for.
pub(super) fn refuse_other_number(dir: &Path, made_with: u32, wanted: u32) -> Result<(), Error> {
    if wanted == made_with {
        return Ok(());
    }
    let dir = dir.display();
    let text = format!(
        "the log in {dir} was made with {made_with} partitions, but {wanted} are asked for; the number is fixed when a \
         log is made. Ask for {made_with}, or use another directory"
    );
    Err(Error::Open(text.into()))
}

/// Returns to which log the events of the log in a directory were moved, as [`note_moved`] was given it.
pub(super) fn moved_to(dir: &Path) -> Result<Option<String>, Error> {
    match std::fs::read_to_string(dir.join(MOVED)) {
        Ok(to) => Ok(Some(to.trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unusable(dir, &error)),
    }
}

/// Writes that the events of this log are moved to another one. Durable when it returns.
pub(super) fn note_moved(dir: &Path, to: &str) -> Result<(), Error> {
    let write = || {
        let mut file = File::create(dir.join(MOVED))?;
        writeln!(file, "{to}")?;
        file.sync_all()?;
        directory::sync(dir)
    };
    write().map_err(|error| unusable(dir, &error))
}

/// Returns whether a log is still being filled with the events of another one.
pub(super) fn is_unfinished(dir: &Path, tables: &Tables) -> Result<bool, Error> {
    let layout = tables.db().get_cf(tables.meta(), keys::META_LAYOUT);
    let layout = layout.map_err(|error| Damage::from(error).reading(dir))?;
    Ok(layout.as_deref() == Some(&keys::LAYOUT_UNFINISHED.to_be_bytes()[..]))
}

/// Returns the number of partitions of a log with this layout.
fn partitions_of(dir: &Path, tables: &Tables, purpose: Purpose) -> Result<u32, Error> {
    let number = |key: &[u8]| -> Result<u32, Error> {
        let bytes = tables.db().get_cf(tables.meta(), key).map_err(Damage::from);
        let bytes = bytes
            .map_err(|damage| damage.opening(dir))?
            .ok_or_else(|| no_log(dir))?;
        let bytes = bytes.try_into().map_err(|_| no_log(dir))?;
        Ok(u32::from_be_bytes(bytes))
    };
    let layout = number(keys::META_LAYOUT)?;
    let is_unfinished = layout == keys::LAYOUT_UNFINISHED;
    if is_unfinished && matches!(purpose, Purpose::Engine | Purpose::Moving) {
        let text = format!(
            "the log in {} is not complete: rollcall reshard copies the events of another log into it. Wait until rollcall \
             reshard --finish has ended, or use another directory",
            dir.display()
        );
        return Err(Error::Open(text.into()));
    }
    if layout != keys::LAYOUT && !is_unfinished {
        // This is the first layout, so any other number belongs to a later version.
        let text = format!(
            "the log in {} has layout {layout}, and this program knows layout {}: use the version that wrote it, or \
             one after it, or another directory",
            dir.display(),
            keys::LAYOUT
        );
        return Err(Error::Open(text.into()));
    }
    match number(keys::META_PARTITIONS)? {
        partitions if (1..=MAX_PARTITIONS).contains(&partitions) => Ok(partitions),
        partitions => Err(Damage::new(format!("it claims to have {partitions} partitions")).opening(dir)),
    }
}

/// Returns the error for a directory that cannot be used because of an error of the operating system.
pub(super) fn unusable(dir: &Path, error: &std::io::Error) -> Error {
    let advice = directory::advice(error);
    Error::Open(
        format!(
            "the directory {} cannot be used for the log: {error}{advice}",
            dir.display()
        )
        .into(),
    )
}

/// Returns whether there is something at a path in the directory of a log. An error, such as a missing permission, does not
/// say that there is nothing.
pub(super) fn has(dir: &Path, path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(|error| unusable(dir, &error))
}

/// Refuses a directory in which no log must be created. Either it holds another program's RocksDB, or it holds a log
/// without its CURRENT file, in whose place RocksDB would silently create a new database.
pub(super) fn judge_files(dir: &Path) -> Result<(), Error> {
    if !has(dir, &dir.join("CURRENT"))? {
        let mut tables = has(dir, &EndsFile::path(dir))?;
        for entry in std::fs::read_dir(dir).map_err(|error| unusable(dir, &error))? {
            let name = entry.map_err(|error| unusable(dir, &error))?.file_name();
            tables |= Path::new(&name).extension().is_some_and(|kind| kind == "sst");
        }
        if tables {
            let what = "its file CURRENT is missing, though others of a log are there".to_owned();
            return Err(Damage::new(what).opening(dir));
        }
        return Ok(());
    }
    let families = DB::list_cf(&Options::default(), dir).map_err(|error| not_opened(dir, &error))?;
    let ours = |name: &str| name == keys::META || Topic::ALL.iter().any(|topic| topic.name() == name);
    if !families.iter().all(|name| ours(name)) {
        return Err(foreign(dir));
    }
    if families.len() <= Topic::ALL.len() {
        // Some column families are missing. If the process died while creating a log, the database is empty. If it
        // contains data, it belongs to another program.
        let db = DB::open_cf_for_read_only(&Options::default(), dir, &families, false)
            .map_err(|error| not_opened(dir, &error))?;
        if has(dir, &EndsFile::path(dir))? || db.iterator(IteratorMode::Start).next().is_some() {
            return Err(no_log(dir));
        }
    }
    Ok(())
}

/// Returns the error for a RocksDB without what every log has: it was a log if the file that is written last is there.
fn no_log(dir: &Path) -> Error {
    let ends = EndsFile::path(dir);
    match has(dir, &ends) {
        Ok(true) => {}
        Ok(false) => return foreign(dir),
        Err(error) => return error,
    }
    let what = format!("what a log begins with is missing, though {} is there", ends.display());
    Damage::new(what).opening(dir)
}

fn foreign(dir: &Path) -> Error {
    let dir = dir.display();
    Error::Open(format!("{dir} holds a RocksDB that is not a log; give the log a directory of its own").into())
}

fn write_meta(dir: &Path, tables: &Tables, layout: u32, partitions: u32) -> Result<(), Error> {
    let mut batch = WriteBatch::default();
    batch.put_cf(tables.meta(), keys::META_LAYOUT, layout.to_be_bytes());
    batch.put_cf(tables.meta(), keys::META_PARTITIONS, partitions.to_be_bytes());
    let mut options = WriteOptions::default();
    options.set_sync(true);
    tables
        .db()
        .write_opt(batch, &options)
        .map_err(|error| not_opened(dir, &error))
}

/// What was found on disk of a partition.
struct FoundPartition {
    shards: [Found; Topic::ALL.len()],
    /// An error only if a later version wrote it.
    position: Result<Position, UnreadablePosition>,
}

impl FoundPartition {
    /// Returns the position. Refuses one that a later version wrote.
    fn position(&self, dir: &Path, partition: Partition) -> Result<Position, Error> {
        self.position.as_ref().copied().map_err(|later| {
            let what = format!("the position of partition {partition} {later}");
            Error::Open(format!("the log in {}: {what}", dir.display()).into())
        })
    }
}

/// Finds where the topics of a partition start and end. Refuses events that end before what was folded of them.
fn find(dir: &Path, tables: &Tables, partition: Partition) -> Result<FoundPartition, Error> {
    let damaged = |damage: Damage| damage.opening(dir);
    let mut shards = [Found::default(); Topic::ALL.len()];
    for (found, topic) in shards.iter_mut().zip(Topic::ALL) {
        *found = shard::find(tables, topic, partition).map_err(damaged)?;
    }
    let stored = tables.db().get_cf(tables.meta(), keys::position(partition));
    let position = match stored.map_err(Damage::from).map_err(damaged)? {
        None => Ok(Position::default()),
        Some(bytes) => Position::from_bytes(&bytes),
    };
    if let Err(unreadable @ UnreadablePosition::NotOne) = &position {
        let what = format!("the position of partition {partition} {unreadable}");
        return Err(damaged(Damage::new(what)));
    }
    let end = shards[usize::from(Topic::Events.number())].tail.end;
    if let Ok(Position { next, .. }) = position
        && next.0 > end
    {
        let what = format!("partition {partition} of events ends at {end}, but was folded up to {next} already");
        return Err(damaged(Damage::new(what)));
    }
    Ok(FoundPartition { shards, position })
}

/// Judges the log in a directory as [`open`] would for a purpose, without writing to it, and opens it for looking on. What its
/// owner does at the same time may be taken for damage, so an error counts only if it is there again and again.
pub(super) fn follow(dir: &Path, notes: &Path, purpose: Purpose) -> Result<(Tables, u32), Error> {
    if matches!(purpose, Purpose::Engine | Purpose::Filling) {
        refuse_moved(dir)?;
    }
    // Before it is looked at: its owner may write more meanwhile, and never less.
    let claimed = claims(dir)?;
    Tables::check_files(dir).map_err(|error| not_opened(dir, &error))?;
    let tables = Tables::open(dir, Mode::Follow(notes)).map_err(|error| not_opened(dir, &error))?;
    let partitions = partitions_of(dir, &tables, purpose)?;
    let ends = |number| -> Result<_, Error> {
        let found = find(dir, &tables, Partition(number))?;
        if purpose != Purpose::Reading {
            found.position(dir, Partition(number))?;
        }
        Ok(found.shards.map(|shard| shard.tail.end))
    };
    let found = (0..partitions).map(ends).collect::<Result<Ends, Error>>()?;
    check_claims(dir, &found, claimed.as_ref())?;
    Ok((tables, partitions))
}

fn load(dir: &Path, tables: &Tables, partitions: u32) -> Result<Vec<PartitionShards>, Error> {
    let load_one = |partition: Partition| -> Result<PartitionShards, Error> {
        let found = find(dir, tables, partition)?;
        let position = found.position(dir, partition)?;
        Ok(PartitionShards {
            shards: found.shards.map(ShardWriter::new),
            position: Mutex::new(position),
            owners: Mutex::new(0),
            traced: TracedEvents::default(),
        })
    };
    (0..partitions).map(|number| load_one(Partition(number))).collect()
}

/// Returns what was durable for sure when the log was last written, if that is known.
fn claims(dir: &Path) -> Result<Option<Ends>, Error> {
    EndsFile::read(dir).map_err(|error| unusable(dir, &error))
}

/// Refuses a log that ends before what was durable when it was last written.
fn check_claims(dir: &Path, found: &Ends, claimed: Option<&Ends>) -> Result<(), Error> {
    let Some(claimed) = claimed else {
        return Ok(());
    };
    match first_short(found, claimed) {
        None => Ok(()),
        Some((topic, partition, end, claim)) => Err(Damage::new(format!(
            "partition {partition} of {topic} ends at {end}, but records up to {claim} were durable; the file {} says \
             so, and removing it accepts the loss",
            EndsFile::path(dir).display()
        ))
        .opening(dir)),
    }
}
