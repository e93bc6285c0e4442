//! Looking on at a log that another process may own and be writing: a secondary instance of RocksDB, which reads the
//! owner's files and never writes to them.
//!
//! It sees what was written up to its last [`Reader::refresh`]. An event may be seen some milliseconds before it
//! is durable, since the owner's sync is not visible from outside: good for people and tools that look on, not for a
//! fold.

use super::opening::Purpose;
use super::tables::{Damage, Tables};
use super::{incidents, keys, opening, shard};
use crate::log::{Error, Limit, Position, Range, Reader, Record, UnreadablePosition};
use crate::presence::{Offset, Partition};
use crate::topics::Topic;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// The owner may remove a file that is just being opened; then it is tried again.
const ATTEMPTS: usize = 10;
const PAUSE: Duration = Duration::from_millis(20);

/// A view of a log in a directory, as of the last refresh.
pub struct LocalReader {
    tables: Tables,
    partitions: u32,
    dir: PathBuf,
}

/// The directory in which RocksDB begins its diary of looking on. It is removed as soon as that is open, which needs only
/// the open file from then on: so nothing is left behind by a process that is killed.
struct Notes {
    dir: PathBuf,
}

impl LocalReader {
    /// Returns `None` if there is no log, and nothing that keeps one from being created. An error is one that opening the log
    /// for this purpose would give.
    pub(super) fn open(dir: &Path, purpose: Purpose) -> Result<Option<LocalReader>, Error> {
        if !opening::has(dir, &dir.join("CURRENT"))? {
            if opening::has(dir, dir)? {
                opening::judge_files(dir)?;
            }
            return Ok(None);
        }
        let notes = Notes::make()?;
        let mut attempt = 1;
        let (tables, partitions) = loop {
            match opening::follow(dir, &notes.dir, purpose) {
                Ok(opened) => break opened,
                Err(error) if attempt == ATTEMPTS => return Err(error),
                Err(_) => {
                    attempt += 1;
                    std::thread::sleep(PAUSE);
                }
            }
        };
        drop(notes);
        Ok(Some(LocalReader {
            partitions,
            tables,
            dir: dir.to_owned(),
        }))
    }

    /// Returns whether the log is still being filled with the events of another one.
    pub(super) fn is_unfinished(&self) -> Result<bool, Error> {
        opening::is_unfinished(&self.dir, &self.tables)
    }
}

impl Reader for LocalReader {
    fn refresh(&mut self) -> Result<(), Error> {
        let mut attempt = 1;
        loop {
            match self.tables.db().try_catch_up_with_primary() {
                Ok(()) => return Ok(()),
                Err(error) if attempt == ATTEMPTS => return Err(Damage::from(error).reading(&self.dir)),
                Err(_) => attempt += 1,
            }
        }
    }

    fn partitions(&self) -> u32 {
        self.partitions
    }

    fn read(
        &mut self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<(), Error> {
        let Range { start, end } = self.range(topic, partition)?;
        if from < start {
            return Err(Error::Gone {
                topic,
                partition,
                wanted: from,
                start,
            });
        }
        if from >= end {
            return Ok(());
        }
        shard::read(&self.tables, (topic, partition), (start.0, end.0), from.0, limit, into)
            .map_err(|damage| damage.reading(&self.dir))
    }

    fn read_incidents(&mut self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<Range, Error> {
        incidents::read(&self.tables, from, limit, into).map_err(|damage| damage.reading(&self.dir))
    }

    fn reached(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        // A read that returns nothing has come to the end of the last refresh.
        self.range(topic, partition).map(|range| range.end)
    }

    fn position(&self, _: &str, partition: Partition) -> Result<Position, Error> {
        let stored = self.tables.db().get_cf(self.tables.meta(), keys::position(partition));
        let stored = stored.map_err(|error| Damage::from(error).reading(&self.dir))?;
        let Some(bytes) = stored else {
            return Ok(Position::default());
        };
        Position::from_bytes(&bytes).map_err(|unreadable| {
            let what = format!("the position of partition {partition} {unreadable}");
            match unreadable {
                UnreadablePosition::NotOne => Damage::new(what).reading(&self.dir),
                UnreadablePosition::Later { .. } => Error::Read(format!("{what} (in {})", self.dir.display()).into()),
            }
        })
    }

    fn range(&self, topic: Topic, partition: Partition) -> Result<Range, Error> {
        if partition.0 >= self.partitions {
            let count = self.partitions;
            return Err(Error::Read(
                format!("there is no partition {partition}: the log has {count}").into(),
            ));
        }
        let found = shard::find(&self.tables, topic, partition).map_err(|damage| damage.reading(&self.dir))?;
        Ok(Range {
            start: Offset(found.start),
            end: Offset(found.tail.end),
        })
    }

    fn may_recover(&self, _: &Error) -> bool {
        false
    }
}

impl Notes {
    fn make() -> Result<Notes, Error> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        loop {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("rollcall-follow-{}-{count}", std::process::id());
            let dir = std::env::temp_dir().join(name);
            match std::fs::create_dir(&dir) {
                Ok(()) => return Ok(Notes { dir }),
                // Left by a process of the same number that was killed.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(super::opening::unusable(&dir, &error)),
            }
        }
    }
}

impl Drop for Notes {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.dir) {
            tracing::warn!(%error, dir = %self.dir.display(), "the notes of a log's follower were not removed");
        }
    }
}
