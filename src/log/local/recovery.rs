//! Getting over writes that failed.
//!
//! After one, nothing is written until RocksDB was closed and opened anew: not all its failures heal by themselves,
//! and whether the write is in its write-ahead log is open. Then the disk is made to say what was reported: what lies
//! beyond it goes, and the positions are written again.

use super::lane::{self, Found};
use super::tables::{Mode, Tables};
use super::{Shared, keys, locked};
use crate::log::{Error, Topic};
use crate::presence::Partition;
use rocksdb::{WriteBatch, WriteOptions};
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, PoisonError, RwLockReadGuard};
use std::time::Duration;

/// After a failure, writing is not tried anew before that.
const PAUSE: Duration = Duration::from_secs(1);

/// RocksDB, or what is left of it.
pub(super) struct Handle {
    /// None if it could not be opened again, not even for reading.
    pub tables: Option<Tables>,
}

/// Why nothing is written at present.
pub(super) struct Trouble {
    why: Arc<str>,
    /// Monotonic time of the last attempt.
    tried: Duration,
}

impl Shared {
    pub(super) fn opened(&self) -> RwLockReadGuard<'_, Handle> {
        self.handle.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tables<'a>(&self, open: &'a Handle) -> Result<&'a Tables, Error> {
        open.tables.as_ref().ok_or_else(|| {
            let dir = self.dir.display();
            Error::Read(format!("{dir} could not be opened again after a write had failed").into())
        })
    }

    /// The handle, fit for writing as far as is known. Opens RocksDB anew if a write failed and it is time to.
    pub(super) fn writable(&self) -> Result<RwLockReadGuard<'_, Handle>, Error> {
        loop {
            let open = self.opened();
            if locked(&self.trouble).is_none() {
                return Ok(open);
            }
            drop(open);
            self.recover()?;
        }
    }

    /// Writes a batch. On failure nothing may be written until RocksDB was opened anew.
    pub(super) fn put(&self, tables: &Tables, batch: WriteBatch, sync: bool) -> Result<(), Error> {
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        tables
            .db()
            .write_opt(batch, &options)
            .map_err(|error| self.in_trouble(error.as_ref()))
    }

    /// A directory that was removed takes writes as before, to files without a name.
    pub(super) fn still_there(&self) -> Result<(), Error> {
        match std::fs::metadata(self.dir.join("CURRENT")) {
            Ok(_) => Ok(()),
            Err(error) => Err(self.in_trouble(&format!("its files are gone: {error}"))),
        }
    }

    pub(super) fn in_trouble(&self, why: &str) -> Error {
        let why: Arc<str> = format!("{}: {why}", self.dir.display()).into();
        let mut trouble = locked(&self.trouble);
        if trouble.is_none() {
            tracing::error!(%why, "the log cannot be written; reading goes on");
        }
        *trouble = Some(Trouble {
            why: why.clone(),
            tried: self.clock.monotonic(),
        });
        Error::Write(why)
    }

    fn recover(&self) -> Result<(), Error> {
        let now = self.clock.monotonic();
        let too_early = |trouble: &Trouble| now.saturating_sub(trouble.tried) < PAUSE;
        if let Some(trouble) = locked(&self.trouble).as_ref()
            && too_early(trouble)
        {
            return Err(Error::Write(trouble.why.clone()));
        }
        // Before readers have to wait: is there anything to hope for?
        let hope = self.probe();
        let mut handle = self.handle.write().unwrap_or_else(PoisonError::into_inner);
        let mut trouble = locked(&self.trouble);
        match trouble.as_ref() {
            None => return Ok(()),
            Some(trouble) if too_early(trouble) => return Err(Error::Write(trouble.why.clone())),
            Some(_) => {}
        }
        match hope.and_then(|()| self.open_anew(&mut handle)) {
            Ok(()) => {
                *trouble = None;
                tracing::info!(dir = %self.dir.display(), "the log can be written again");
                Ok(())
            }
            Err(why) => {
                let why: Arc<str> = format!("{}: {why}", self.dir.display()).into();
                *trouble = Some(Trouble {
                    why: why.clone(),
                    tried: now,
                });
                Err(Error::Write(why))
            }
        }
    }

    /// Whether the directory takes a file of some size.
    fn probe(&self) -> Result<(), String> {
        if let Err(error) = std::fs::metadata(self.dir.join("CURRENT")) {
            return Err(format!("its files are gone: {error}"));
        }
        let path = self.dir.join("PROBE");
        let write = || {
            let mut file = File::create(&path)?;
            file.write_all(&[0x5a; 1024 * 1024])?;
            file.sync_all()
        };
        let written = write();
        let removed = std::fs::remove_file(&path);
        written.and(removed).map_err(|error| error.to_string())
    }

    /// Closes RocksDB and opens it again, for reading only if it must be so.
    fn open_anew(&self, handle: &mut Handle) -> Result<(), String> {
        handle.tables = None;
        match Tables::open(&self.dir, Mode::Own) {
            Ok(tables) => {
                let truth = self.restore_truth(&tables);
                handle.tables = Some(tables);
                truth
            }
            Err(error) => {
                handle.tables = Tables::open(&self.dir, Mode::ReadOnly)
                    .inspect_err(|error| tracing::error!(%error, "the log cannot even be read any more"))
                    .ok();
                Err(error.into_string())
            }
        }
    }

    /// Makes what is on disk what was reported as written: no more of it, and refuses if it is less.
    fn restore_truth(&self, tables: &Tables) -> Result<(), String> {
        let mut batch = WriteBatch::default();
        for (partition, shelf) in (0..).map(Partition).zip(&self.shelves) {
            for topic in Topic::ALL {
                let lane = shelf.lane(topic);
                let known = *locked(&lane.tail);
                let Found { start, tail } =
                    lane::find(tables, topic, partition).map_err(|damage| damage.reading(&self.dir).to_string())?;
                if tail.end < known.end {
                    return Err(format!(
                        "partition {partition} of {topic} now ends at {} on disk, but {} was written before the \
                         failure; restart to go on from what is on disk",
                        tail.end, known.end
                    ));
                }
                if tail.end > known.end {
                    let beyond = (keys::block(partition, known.end), keys::block(partition, u64::MAX));
                    batch.delete_range_cf(tables.topic(topic), beyond.0, beyond.1);
                }
                if start > lane.start() {
                    lane.start_at(start.min(known.end));
                }
            }
            let position = *locked(&shelf.position);
            batch.put_cf(tables.meta(), keys::position(partition), position.to_bytes());
        }
        let mut options = WriteOptions::default();
        options.set_sync(true);
        tables
            .db()
            .write_opt(batch, &options)
            .map_err(rocksdb::Error::into_string)
    }
}
