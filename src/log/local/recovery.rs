//! Recovery from failed writes.
//!
//! After a failed write nothing is written until RocksDB has been closed and reopened. RocksDB does not recover from
//! all failures by itself, and the failed write may or may not be in its write-ahead log. After reopening, the disk is
//! made to match what was reported as written: records beyond that are deleted, and the positions are written again.

use super::shard::{self, Found};
use super::tables::{Mode, Tables};
use super::{AppenderState, keys, locked};
use crate::log::Error;
use crate::presence::Partition;
use crate::topics::Topic;
use rocksdb::{WriteBatch, WriteOptions};
use std::fs::File;
use std::io::Write;
use std::sync::{Arc, PoisonError, RwLockReadGuard};
use std::time::Duration;

/// Minimum time between a failure and the next attempt to write.
const PAUSE: Duration = Duration::from_secs(1);

/// The RocksDB database, if it is open.
pub(super) struct DatabaseHandle {
    /// `None` if it could not be reopened, not even for reading.
    pub tables: Option<Tables>,
}

/// Why nothing can be written at present.
pub(super) struct WriteFailure {
    why: Arc<str>,
    /// Monotonic time of the last attempt.
    tried: Duration,
}

impl AppenderState {
    pub(super) fn opened(&self) -> RwLockReadGuard<'_, DatabaseHandle> {
        self.handle.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn tables<'a>(&self, open: &'a DatabaseHandle) -> Result<&'a Tables, Error> {
        open.tables.as_ref().ok_or_else(|| {
            let dir = self.dir.display();
            // The next write tries again.
            Error::Unanswered(format!("{dir} could not be opened again after a write had failed").into())
        })
    }

    /// Returns the handle, writable as far as is known. If a write failed and the pause is over, reopens RocksDB first.
    pub(super) fn writable(&self) -> Result<RwLockReadGuard<'_, DatabaseHandle>, Error> {
        loop {
            let open = self.opened();
            if locked(&self.trouble).is_none() {
                return Ok(open);
            }
            drop(open);
            self.recover()?;
        }
    }

    /// Writes a batch. After a failure nothing may be written until RocksDB has been reopened.
    pub(super) fn put(&self, tables: &Tables, batch: WriteBatch, sync: bool) -> Result<(), Error> {
        let mut options = WriteOptions::default();
        options.set_sync(sync);
        tables
            .db()
            .write_opt(batch, &options)
            .map_err(|error| self.in_trouble(error.as_ref()))
    }

    /// Returns an error if the directory was removed. RocksDB would not notice: its open files still accept writes,
    /// although they no longer have names.
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
            tracing::error!(%why, "the log cannot be written; reading continues");
        }
        *trouble = Some(WriteFailure {
            why: why.clone(),
            tried: self.clock.monotonic(),
        });
        Error::Write(why)
    }

    fn recover(&self) -> Result<(), Error> {
        let now = self.clock.monotonic();
        let too_early = |trouble: &WriteFailure| now.saturating_sub(trouble.tried) < PAUSE;
        if let Some(trouble) = locked(&self.trouble).as_ref()
            && too_early(trouble)
        {
            return Err(Error::Write(trouble.why.clone()));
        }
        // Check this first: reopening makes readers wait, so do it only if a write can succeed.
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
                *trouble = Some(WriteFailure {
                    why: why.clone(),
                    tried: now,
                });
                Err(Error::Write(why))
            }
        }
    }

    /// Returns an error if a file of 1 MiB cannot be written to the directory.
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
        // Another thread may be probing too, so the file may already be gone. A file that remains is overwritten by the
        // next probe.
        let _ = std::fs::remove_file(&path);
        written.map_err(|error| error.to_string())
    }

    /// Closes RocksDB and reopens it; if it cannot be opened for writing, opens it for reading only.
    fn open_anew(&self, handle: &mut DatabaseHandle) -> Result<(), String> {
        handle.tables = None;
        match Tables::open(&self.dir, Mode::Own) {
            Ok(tables) => {
                let truth = self.restore_truth(&tables);
                handle.tables = Some(tables);
                truth
            }
            Err(error) => {
                handle.tables = Tables::open(&self.dir, Mode::ReadOnly)
                    .inspect_err(|error| tracing::error!(%error, "the log cannot be read any more either"))
                    .ok();
                Err(error.into_string())
            }
        }
    }

    /// Makes the data on disk match what was reported as written: deletes what is beyond, and returns an error if
    /// something is missing.
    fn restore_truth(&self, tables: &Tables) -> Result<(), String> {
        let mut batch = WriteBatch::default();
        for (partition, partition_shards) in (0..).map(Partition).zip(&self.partitions_shards) {
            for topic in Topic::ALL {
                let shard = partition_shards.shard(topic);
                let known = *locked(&shard.tail);
                let Found { start, tail } =
                    shard::find(tables, topic, partition).map_err(|damage| damage.reading(&self.dir).to_string())?;
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
                if start > shard.start() {
                    shard.start_at(start.min(known.end));
                }
            }
            let position = *locked(&partition_shards.position);
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

#[cfg(test)]
mod tests {
    use super::super::block::Packer;
    use super::super::{LocalLog, Settings};
    use super::*;
    use crate::clock::ManualClock;
    use crate::log::{Appended, Commit, Limit, Log, NewRecord, Position};
    use crate::presence::Offset;
    use crate::topics::OutputTopic;
    use std::path::Path;
    use std::sync::mpsc;

    const P: Partition = Partition(2);

    fn open(dir: &Path) -> (LocalLog, Arc<ManualClock>) {
        let clock = Arc::new(ManualClock::new(1_000));
        (LocalLog::open(dir, Settings::default(), clock.clone()).unwrap(), clock)
    }

    fn record(value: &str) -> NewRecord {
        NewRecord {
            headers: Vec::new(),
            key: None,
            value: value.into(),
        }
    }

    fn append(log: &LocalLog, value: &str) -> Result<Vec<Appended>, Error> {
        let (sender, receiver) = mpsc::channel();
        log.append(
            vec![(P, record(value))],
            Box::new(move |result| sender.send(result).unwrap()),
        );
        receiver.recv().unwrap()
    }

    fn values(log: &LocalLog, topic: Topic) -> Vec<String> {
        let mut into = Vec::new();
        let limit = Limit {
            records: 100,
            bytes: 100_000,
        };
        log.read(topic, P, Offset(0), limit, &mut into).unwrap();
        let values = into.into_iter().map(|record| String::from_utf8(record.value));
        values.map(Result::unwrap).collect()
    }

    /// Writes as the log does, but reports the write as failed.
    fn write_and_fail(log: &LocalLog, topics: &[Topic], position: Position) {
        let shared = &log.shared;
        let open = shared.writable().unwrap();
        let tables = shared.tables(&open).unwrap();
        let mut batch = WriteBatch::default();
        for topic in topics {
            let tail = *locked(&shared.partitions_shards[P.0 as usize].shard(*topic).tail);
            let mut packer = Packer::after(tail, 0);
            packer.push(None, b"reported as failed");
            for (first, block) in packer.finish().0 {
                batch.put_cf(tables.topic(*topic), keys::block(P, first), block);
            }
        }
        batch.put_cf(tables.meta(), keys::position(P), position.to_bytes());
        shared.put(tables, batch, true).unwrap();
        shared.in_trouble("the test says so");
    }

    #[test]
    fn what_was_written_though_it_was_reported_as_failed_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (log, clock) = open(dir.path());
        append(&log, "a").unwrap();
        let at = |next| Position {
            next: Offset(next),
            ..Position::default()
        };
        let commit = Commit::at(at(1)).with(OutputTopic::Changes, [record("c")]);
        log.take_up(P).unwrap().commit(&commit).unwrap();
        write_and_fail(&log, &[Topic::Events, Topic::Changes, Topic::Kicks], at(0));
        assert!(matches!(append(&log, "too early"), Err(Error::Write(_))));
        assert_eq!(values(&log, Topic::Events), ["a"]);
        clock.advance_ms(2_000);
        log.take_up(P).unwrap().commit(&commit).unwrap();
        append(&log, "b").unwrap();
        let holds = |log: &LocalLog| {
            assert_eq!(values(log, Topic::Events), ["a", "b"]);
            assert_eq!(values(log, Topic::Changes), ["c", "c"]);
            assert!(values(log, Topic::Kicks).is_empty());
            assert_eq!(log.take_up(P).unwrap().position().unwrap(), at(1));
        };
        holds(&log);
        drop(log);
        holds(&open(dir.path()).0);
    }

    #[test]
    fn a_disk_that_holds_less_than_was_written_is_not_written_on() {
        let dir = tempfile::tempdir().unwrap();
        let (log, clock) = open(dir.path());
        append(&log, "a").unwrap();
        append(&log, "b").unwrap();
        {
            let open = log.shared.writable().unwrap();
            let tables = log.shared.tables(&open).unwrap();
            tables
                .db()
                .delete_cf(tables.topic(Topic::Events), keys::block(P, 1))
                .unwrap();
            log.shared.in_trouble("the test says so");
        }
        for _ in 0..2 {
            clock.advance_ms(2_000);
            let error = append(&log, "c").unwrap_err().to_string();
            assert!(error.contains("ends at 1 on disk, but 2 was written"), "{error}");
        }
    }
}
