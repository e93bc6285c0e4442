//! The interface of a store to a disk, and its implementation with RocksDB. The simulator has another one, which fails
//! on demand.

use crate::rocks::{self, Meaning};
use rocksdb::checkpoint::Checkpoint;
use rocksdb::{
    BlockBasedOptions, Cache, DB, DBCompressionType, DEFAULT_COLUMN_FAMILY_NAME, FlushOptions, IteratorMode, Options,
};
use rocksdb::{ReadOptions, WriteBatch, WriteOptions};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, OnceLock};

/// The size of the cache for the blocks of all stores of the process, unless [`set_cache_bytes`] says another.
const CACHE_BYTES: usize = 128 << 20;
const WRITE_BUFFER_BYTES: usize = 32 << 20;

/// The cache for the blocks of all stores of the process. One for all, so that the memory it takes does not depend on the
/// number of partitions, and a partition that reads much may have more of it.
static CACHE: OnceLock<Cache> = OnceLock::new();

/// Sets the size of the cache for the blocks of all stores of the process. Call it before the first one is opened; later
/// calls have no effect.
pub fn set_cache_bytes(bytes: usize) {
    CACHE.get_or_init(|| Cache::new_lru_cache(bytes));
}

/// Returns how much of that cache is in use.
pub fn cache_bytes() -> usize {
    CACHE.get().map_or(0, Cache::get_usage)
}

/// Visitor of a range; returns `Break` to stop.
pub type Visitor<'l> = &'l mut dyn FnMut(&[u8], &[u8]) -> ControlFlow<()>;

/// Why a disk operation failed, in a sentence.
#[derive(Debug)]
pub struct DiskError {
    pub cause: String,
    /// Whether data is altered or missing, so that a retry gives the same error. False if the disk may work again
    /// later.
    pub is_damage: bool,
}

impl From<String> for DiskError {
    fn from(cause: String) -> DiskError {
        DiskError {
            cause,
            is_damage: false,
        }
    }
}

fn failed(directory: &Path, error: rocksdb::Error) -> DiskError {
    DiskError {
        is_damage: rocks::meaning(directory, &error) == Meaning::Damage,
        cause: error.into_string(),
    }
}

/// An ordered map from keys to values, in the order of the keys' bytes.
pub trait Disk: Send {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, DiskError>;

    /// Returns the values of several keys, in the order given.
    fn get_many(&self, keys: &mut dyn Iterator<Item = Vec<u8>>) -> Result<Vec<Option<Vec<u8>>>, DiskError>;

    /// Visits the keys from `from` on and before `before`. `ahead` announces many reads.
    fn look(&self, from: &[u8], before: &[u8], ahead: bool, look: Visitor<'_>) -> Result<(), DiskError>;

    /// Writes all of the batch or nothing. The batch may be lost until [`Disk::flush`], but never before one written
    /// earlier.
    fn write(&self, batch: WriteBatch) -> Result<(), DiskError>;

    /// Makes everything written so far survive the death of the process.
    fn flush(&self) -> Result<(), DiskError>;

    /// Begins to do what [`Disk::flush`] does, and does not wait for its end if the disk can do that. If it fails, the next
    /// write or flush says so.
    fn begin_flush(&self) -> Result<(), DiskError> {
        self.flush()
    }

    /// Removes the keys from `from` on and before `before`, with the next [`Disk::flush`] at the latest.
    fn remove(&self, from: &[u8], before: &[u8]) -> Result<(), DiskError> {
        let mut batch = WriteBatch::default();
        self.look(from, before, true, &mut |key, _| {
            batch.delete(key);
            ControlFlow::Continue(())
        })?;
        self.write(batch)
    }

    /// Returns the same rows for reading from other threads; `None` if this kind of disk has one reader only.
    fn shared(&self) -> Option<Arc<dyn SharedRows>> {
        None
    }

    /// Copies everything into a directory that does not exist yet, as a store that can be opened.
    fn checkpoint(&self, _into: &Path) -> Result<(), DiskError> {
        Err("this kind of disk does not support checkpoints".to_owned().into())
    }
}

/// Rows that may be read from any thread while they are written.
pub trait SharedRows: Send + Sync {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, DiskError>;

    /// Visits the keys from `from` on and before `before`.
    fn look(&self, from: &[u8], before: &[u8], order: Order, look: Visitor<'_>) -> Result<(), DiskError>;
}

/// In which order keys are visited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    Rising,
    Falling,
}

/// Opens a directory that no process has open, for reading only.
pub(super) fn open_to_look(directory: &Path) -> Result<DB, rocksdb::Error> {
    DB::open_cf_for_read_only(&Options::default(), directory, [DEFAULT_COLUMN_FAMILY_NAME], false)
}

/// Opens a directory. Creates it if it does not exist.
pub(super) fn open(directory: &Path) -> Result<DB, rocksdb::Error> {
    let mut options = Options::default();
    options.create_if_missing(true);
    options.set_compression_type(DBCompressionType::Lz4);
    // More files that are flushed before they are merged with the level below, so that it is written again half as often. A
    // look-up in each of them costs little: nearly all are ruled out by their filters.
    options.set_level_zero_file_num_compaction_trigger(8);
    options.set_write_buffer_size(WRITE_BUFFER_BYTES);
    options.set_max_write_buffer_number(2);
    options.set_max_background_jobs(2);
    options.set_max_open_files(256);
    options.set_keep_log_file_num(2);
    options.set_max_log_file_size(1 << 20);
    // The manifest lists files, of which there are few. The default of 4 MiB is filled with zeros at every start where
    // files are in memory.
    options.set_manifest_preallocation_size(64 << 10);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(CACHE.get_or_init(|| Cache::new_lru_cache(CACHE_BYTES)));
    table.set_bloom_filter(10.0, false);
    table.set_cache_index_and_filter_blocks(true);
    options.set_block_based_table_factory(&table);
    // By its name, which reading many keys at once asks for; and with its options, which it does not take from the database.
    let family = (DEFAULT_COLUMN_FAMILY_NAME, options.clone());
    DB::open_cf_with_opts(&options, directory, [family])
}

impl SharedRows for DB {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, DiskError> {
        DB::get(self, key).map_err(|error| failed(self.path(), error))
    }

    fn look(&self, from: &[u8], before: &[u8], order: Order, look: Visitor<'_>) -> Result<(), DiskError> {
        visit(self, (from, before), order, false, look)
    }
}

fn visit(
    db: &DB,
    (from, before): (&[u8], &[u8]),
    order: Order,
    ahead: bool,
    look: Visitor<'_>,
) -> Result<(), DiskError> {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(from);
    options.set_iterate_upper_bound(before);
    if ahead {
        options.set_readahead_size(1 << 20);
    }
    let mode = match order {
        Order::Rising => IteratorMode::Start,
        Order::Falling => IteratorMode::End,
    };
    for entry in db.iterator_opt(mode, options) {
        let (key, value) = entry.map_err(|error| failed(db.path(), error))?;
        if look(&key, &value).is_break() {
            break;
        }
    }
    Ok(())
}

impl Disk for Arc<DB> {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, DiskError> {
        DB::get(self, key).map_err(|error| failed(self.path(), error))
    }

    fn get_many(&self, keys: &mut dyn Iterator<Item = Vec<u8>>) -> Result<Vec<Option<Vec<u8>>>, DiskError> {
        let Some(family) = self.cf_handle(DEFAULT_COLUMN_FAMILY_NAME) else {
            return Err("it has no default column family".to_owned().into());
        };
        let keys: Vec<Vec<u8>> = keys.collect();
        // Of keys in order, those in one block are found by reading it once.
        let is_sorted = keys.is_sorted();
        let values = self.batched_multi_get_cf(family, &keys, is_sorted).into_iter();
        values
            .map(|value| match value {
                Ok(value) => Ok(value.map(|value| value.to_vec())),
                Err(error) => Err(failed(self.path(), error)),
            })
            .collect()
    }

    fn look(&self, from: &[u8], before: &[u8], ahead: bool, look: Visitor<'_>) -> Result<(), DiskError> {
        visit(self, (from, before), Order::Rising, ahead, look)
    }

    fn write(&self, batch: WriteBatch) -> Result<(), DiskError> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        self.write_opt(batch, &options)
            .map_err(|error| failed(self.path(), error))
    }

    fn flush(&self) -> Result<(), DiskError> {
        DB::flush(self).map_err(|error| failed(self.path(), error))
    }

    fn begin_flush(&self) -> Result<(), DiskError> {
        let mut options = FlushOptions::default();
        options.set_wait(false);
        self.flush_opt(&options).map_err(|error| failed(self.path(), error))
    }

    fn remove(&self, from: &[u8], before: &[u8]) -> Result<(), DiskError> {
        // Whole files are gone at once; compaction removes what is left.
        self.delete_file_in_range(from, before)
            .map_err(|error| failed(self.path(), error))?;
        let mut batch = WriteBatch::default();
        batch.delete_range(from, before);
        Disk::write(self, batch)
    }

    fn shared(&self) -> Option<Arc<dyn SharedRows>> {
        Some(self.clone())
    }

    fn checkpoint(&self, into: &Path) -> Result<(), DiskError> {
        let checkpoint = Checkpoint::new(&**self).map_err(|error| failed(self.path(), error))?;
        checkpoint
            .create_checkpoint(into)
            .map_err(|error| failed(self.path(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rocksdb::properties;

    #[test]
    fn the_rows_of_a_store_are_kept_with_its_options() {
        let directory = tempfile::tempdir().unwrap();
        let db = open(directory.path()).unwrap();
        let capacity = db.property_int_value(properties::BLOCK_CACHE_CAPACITY).unwrap();
        assert_eq!(capacity, Some(CACHE_BYTES as u64));
    }

    #[test]
    fn what_was_read_from_a_file_is_in_the_cache_and_counted() {
        let directory = tempfile::tempdir().unwrap();
        let db = Arc::new(open(directory.path()).unwrap());
        let value = vec![7; 100_000];
        db.put(b"key", &value).unwrap();
        Disk::flush(&db).unwrap();
        assert_eq!(Disk::get(&db, b"key").unwrap(), Some(value));
        assert!((100_000..CACHE_BYTES).contains(&cache_bytes()), "{}", cache_bytes());
    }
}
