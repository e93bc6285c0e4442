//! RocksDB as the embedded log uses it: how it is opened and tuned, and how its errors are reported.
//!
//! *Recovery.* RocksDB has several modes of reading a write-ahead log back. `kTolerateCorruptedTailRecords` is the one
//! that refuses a log altered in the middle. `kPointInTimeRecovery`, the default, would silently drop everything after
//! the damage, acknowledged or not. `kAbsoluteConsistency` would refuse to start after every death of the machine,
//! because commits are not synced one by one and the end of the log may be torn. A torn end is ignored; [`super::ends`]
//! checks that it held nothing acknowledged. The price: if the machine dies and its file system kept a later part of an
//! unsynced end but not an earlier one, the log is refused too, and an operator has to decide. Completed write-ahead
//! logs are listed with their sizes in the manifest, so a lost one is also found.
//!
//! *Limits.* 48 MiB of memtables for all column families, 32 MiB of cache, 256 open files, 64 MiB of write-ahead log
//! (the most that a start reads back, exceeded at most by one block of some memtables), 4 MiB of RocksDB's own log
//! files.

use super::ends::EndsFile;
use super::keys;
use crate::log::Error;
use crate::presence::Partition;
use crate::rocks::{self, Meaning};
use crate::topics::Topic;
use rocksdb::{
    BlockBasedOptions, Cache, ColumnFamily, ColumnFamilyDescriptor, DB, DBCompressionType, DBRecoveryMode,
    IteratorMode, LogLevel, Options, ReadOptions,
};
use std::path::Path;

const MIB: usize = 1024 * 1024;

/// An open RocksDB with all column families of a log.
pub(super) struct Tables {
    db: DB,
}

/// How RocksDB is opened.
#[derive(Clone, Copy)]
pub(super) enum Mode<'a> {
    /// Reads and writes; creates the database if it does not exist.
    Make,
    /// Reads and writes an existing database.
    Own,
    /// Reads an existing database and writes nothing at all; for a full disk.
    ReadOnly,
    /// Reads a database that another process may be writing; RocksDB keeps its own files for this reader in the given
    /// directory.
    Follow(&'a Path),
}

impl Tables {
    pub fn open(dir: &Path, mode: Mode) -> Result<Tables, rocksdb::Error> {
        let (options, families) = (options(mode), families());
        let db = match mode {
            Mode::Make | Mode::Own => DB::open_cf_descriptors(&options, dir, families)?,
            Mode::ReadOnly => DB::open_cf_descriptors_read_only(&options, dir, families, false)?,
            Mode::Follow(notes) => DB::open_cf_descriptors_as_secondary(&options, dir, notes, families)?,
        };
        Ok(Tables { db })
    }

    /// Returns an error unless every file that the manifest names is there in its full size. The write-ahead log is not
    /// read. [`Mode::Follow`] looks at no file in this way: it shows what there was before the first that it misses.
    pub fn check_files(dir: &Path) -> Result<(), rocksdb::Error> {
        match DB::open_cf_descriptors_read_only(&options(Mode::ReadOnly), dir, families(), true) {
            Err(error) if !rocks::is_of_the_write_ahead_log(&error) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    pub fn db(&self) -> &DB {
        &self.db
    }

    pub fn topic(&self, topic: Topic) -> &ColumnFamily {
        self.family(topic.name())
    }

    pub fn meta(&self) -> &ColumnFamily {
        self.family(keys::META)
    }

    pub fn number(&self, key: &[u8]) -> Result<Option<u64>, Damage> {
        let Some(bytes) = self.db.get_cf(self.meta(), key)? else {
            return Ok(None);
        };
        match <[u8; 8]>::try_from(&bytes[..]) {
            Ok(bytes) => Ok(Some(u64::from_be_bytes(bytes))),
            Err(_) => Err(Damage::new(format!("the key {} holds no number", key.escape_ascii()))),
        }
    }

    pub fn is_empty(&self) -> Result<bool, Damage> {
        for name in std::iter::once(keys::META).chain(Topic::ALL.map(Topic::name)) {
            let mut entries = self.db.iterator_cf(self.family(name), IteratorMode::Start);
            if entries.next().transpose()?.is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn family(&self, name: &str) -> &ColumnFamily {
        self.db
            .cf_handle(name)
            .expect("RocksDB was opened with this column family")
    }
}

fn options(mode: Mode) -> Options {
    let make = matches!(mode, Mode::Make);
    let mut options = Options::default();
    options.create_if_missing(make);
    options.create_missing_column_families(make);
    options.set_wal_recovery_mode(DBRecoveryMode::TolerateCorruptedTailRecords);
    options.set_track_and_verify_wals_in_manifest(true);
    options.set_max_total_wal_size(64 * MIB as u64);
    options.set_db_write_buffer_size(48 * MIB);
    options.set_max_background_jobs(2);
    // A follower keeps all files open, since the owner of the log may unlink them.
    options.set_max_open_files(if matches!(mode, Mode::Follow(_)) { -1 } else { 256 });
    options.set_bytes_per_sync(MIB as u64);
    options.set_wal_bytes_per_sync(MIB as u64);
    options.set_log_level(LogLevel::Warn);
    options.set_max_log_file_size(MIB);
    options.set_keep_log_file_num(4);
    options.set_max_manifest_file_size(16 * MIB);
    options.set_stats_dump_period_sec(0);
    options.set_stats_persist_period_sec(0);
    options
}

/// All column families of a log.
fn families() -> Vec<ColumnFamilyDescriptor> {
    let cache = Cache::new_lru_cache(32 * MIB);
    let mut families = vec![family(keys::META, 2 * MIB, &cache)];
    for topic in Topic::ALL {
        let memtable = if topic.spec().is_busy { 16 * MIB } else { 4 * MIB };
        families.push(family(topic.name(), memtable, &cache));
    }
    families
}

fn family(name: &str, memtable: usize, cache: &Cache) -> ColumnFamilyDescriptor {
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(cache);
    // A full block of records is larger than this and fills a RocksDB block by itself. Small blocks of records, written
    // in quiet times, share one.
    table.set_block_size(16 * 1024);
    table.set_format_version(6);
    let mut options = Options::default();
    options.set_block_based_table_factory(&table);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_write_buffer_size(memtable);
    options.set_max_write_buffer_number(3);
    options.set_target_file_size_base(16 * MIB as u64);
    options.set_max_bytes_for_level_base(64 * MIB as u64);
    ColumnFamilyDescriptor::new(name, options)
}

/// Returns bounds for iterating over the blocks of a partition from `start` up to, but not including, `end`. Both are
/// the first offsets of blocks.
pub(super) fn within(partition: Partition, start: u64, end: u64) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(keys::block(partition, start));
    options.set_iterate_upper_bound(keys::block(partition, end));
    options
}

/// The data on disk cannot be read. The text fits after "…: ".
#[derive(Debug)]
pub(super) enum Damage {
    Found(String),
    /// What this is, damage or a failure of the machine, its text says.
    Rocks(rocksdb::Error),
}

impl Damage {
    pub fn new(what: String) -> Damage {
        Damage::Found(what)
    }

    /// Converts the damage to an error of reading.
    pub fn reading(self, dir: &Path) -> Error {
        let at = dir.display();
        let text = match self {
            Damage::Rocks(error) if rocks::meaning(dir, &error) == Meaning::Failure => {
                format!("{error} (in {at}). {ADVICE_ON_FAILURE}")
            }
            Damage::Rocks(error) => format!("{error} (in {at}). {ADVICE}"),
            Damage::Found(what) => format!("{what} (in {at}). {ADVICE}"),
        };
        Error::Read(text.into())
    }

    /// Converts the damage to an error of opening.
    pub fn opening(self, dir: &Path) -> Error {
        match self {
            Damage::Rocks(error) => not_opened(dir, &error),
            Damage::Found(what) => {
                Error::Open(format!("the log in {} is damaged: {what}. {ADVICE}", dir.display()).into())
            }
        }
    }
}

const ADVICE: &str = "Restore the directory from a copy, or move it and the stores of its partitions away to begin an \
                      empty log";

const ADVICE_ON_FAILURE: &str = "This is an error of the machine: as far as is known the log is whole. Keep it, see to \
                                 the disk space, permissions, open files or device that it names, and try again";

impl From<rocksdb::Error> for Damage {
    fn from(error: rocksdb::Error) -> Damage {
        Damage::Rocks(error)
    }
}

/// Returns the error that says why RocksDB did not open and what to do about it.
pub(super) fn not_opened(at: &Path, error: &rocksdb::Error) -> Error {
    let message: &str = error.as_ref();
    let dir = at.display();
    let text = match rocks::meaning(at, error) {
        Meaning::InUse => format!(
            "the log in {dir} is in use by another process: one at a time can own it. \
             Stop the other one, or give this one a directory of its own"
        ),
        Meaning::Damage => format!("the log in {dir} is damaged: {message}. {ADVICE}"),
        Meaning::Foreign if lost_a_family(at) => format!("the log in {dir} is damaged: {message}. {ADVICE}"),
        Meaning::Foreign => format!("{dir} does not hold a log of layout {}: {message}", keys::LAYOUT),
        Meaning::Failure => format!("the log in {dir} cannot be opened: {message}. {ADVICE_ON_FAILURE}"),
    };
    Error::Open(text.into())
}

/// Returns whether the directory holds a log that was complete once and now lacks column families.
fn lost_a_family(dir: &Path) -> bool {
    let lacks = |families: Vec<String>| {
        let has = |topic: Topic| families.iter().any(|name| name == topic.name());
        !Topic::ALL.into_iter().all(has)
    };
    EndsFile::path(dir).exists() && DB::list_cf(&Options::default(), dir).is_ok_and(lacks)
}
