//! From where an export of a partition goes on, and which intervals held there.
//!
//! Two files in `_progress`. `.progress` is kept where a day begins, so that the next export can write this day again. `.end` is
//! kept where an export has ended: with it the next one can go on although the records of that day are gone, if none of them is
//! missing in its file. The first line of each says where it goes on, each further line is an interval that holds there.

use super::files::{NewFile, TableDirectory};
use crate::audit::export::FileFormat;
use crate::audit::export::intervals::KeptInterval;
use crate::presence::change::Change;
use crate::presence::{LogTime, Offset, Partition};
use anyhow::{Context as _, anyhow, bail};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::fs::{File, TryLockError};
use std::io::{self, BufRead as _, BufReader, BufWriter, Write as _};
use std::path::{Path, PathBuf};

/// The layout of the file.
const LAYOUT: u32 = 1;

/// A record as it is kept, so that another log is noticed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct KeptRecord {
    offset: u64,
    /// The `at` of a change, or the log time of an event.
    time: u64,
    what: String,
}

/// From where an export goes on.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Continuation {
    pub next: Offset,
    /// At the start of a day the record at `next`. At the end of an export the last record before it; none without records.
    pub record: Option<KeptRecord>,
}

/// Where an export can go on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ContinuedAt {
    DayStart,
    End,
}

/// The first line.
#[derive(Serialize, Deserialize)]
struct Head {
    layout: u32,
    table: String,
    partition: u32,
    next: u64,
    record: Option<KeptRecord>,
    intervals: u64,
}

/// Where it is kept how far an export of a partition is. While it exists no other process exports the same files.
pub struct ExportProgress {
    day_start: PathBuf,
    end: PathBuf,
    table: &'static str,
    partition: Partition,
    /// The lock ends with it. The file stays: a lock on a file that is removed excludes nobody.
    _lock: File,
}

impl KeptRecord {
    pub fn of_change(offset: Offset, change: &Change) -> KeptRecord {
        let id = change.id;
        KeptRecord {
            offset: offset.0,
            time: change.at.0,
            what: format!(
                "change {}-{}-{} of {:?} at {}",
                id.partition, id.offset, id.index, change.user, change.at
            ),
        }
    }

    pub fn of_event(offset: Offset, ts: u64, log_time: LogTime, name: &str) -> KeptRecord {
        KeptRecord {
            offset: offset.0,
            time: log_time.0,
            what: format!("{name} of {ts}"),
        }
    }

    pub fn offset(&self) -> Offset {
        Offset(self.offset)
    }

    pub fn time(&self) -> LogTime {
        LogTime(self.time)
    }
}

impl fmt::Display for KeptRecord {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{} at offset {}", self.what, self.offset)
    }
}

impl ExportProgress {
    /// Fails if another export writes the files of this table, partition and format.
    pub fn open(
        directory: &TableDirectory,
        table: &'static str,
        format: FileFormat,
        partition: Partition,
    ) -> anyhow::Result<ExportProgress> {
        // No format of the tables ends like these, so that no pattern for the tables' files matches them.
        let path = |end: &str| {
            let name = format!("partition-{:05}.{}.{end}", partition.0, format.name());
            directory.file("_progress", &name)
        };
        Ok(ExportProgress {
            _lock: locked(&path("lock")?, table, partition)?,
            day_start: path("progress")?,
            end: path("end")?,
            table,
            partition,
        })
    }

    fn path(&self, at: ContinuedAt) -> &Path {
        match at {
            ContinuedAt::DayStart => &self.day_start,
            ContinuedAt::End => &self.end,
        }
    }

    /// Returns where the export goes on, and gives each interval that held there; none if nothing is kept.
    pub fn read(
        &self,
        at: ContinuedAt,
        mut each: impl FnMut(KeptInterval) -> Result<(), String>,
    ) -> anyhow::Result<Option<Continuation>> {
        let path = self.path(at);
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
        };
        let unusable = || {
            format!(
                "{} is not what an export keeps; remove the directory and export again",
                path.display()
            )
        };
        let mut lines = BufReader::new(file).lines();
        let head = lines
            .next()
            .ok_or_else(|| anyhow!("it is empty"))
            .with_context(unusable)?;
        let head: Head = serde_json::from_str(&head.with_context(unusable)?).with_context(unusable)?;
        if head.layout != LAYOUT {
            bail!(
                "{} has layout {}, but this version knows {LAYOUT}; use the version that wrote it, or export into another directory",
                path.display(),
                head.layout
            );
        }
        if (head.table.as_str(), head.partition) != (self.table, self.partition.0) {
            let error = anyhow!("it is of {} of partition {}", head.table, head.partition);
            return Err(error).with_context(unusable);
        }
        let mut count = 0;
        for line in lines {
            let kept = serde_json::from_str(&line.with_context(unusable)?).with_context(unusable)?;
            each(kept).map_err(|error| anyhow!(error)).with_context(unusable)?;
            count += 1;
        }
        if count != head.intervals {
            let error = anyhow!("it has {count} intervals and should have {}", head.intervals);
            return Err(error).with_context(unusable);
        }
        Ok(Some(Continuation {
            next: Offset(head.next),
            record: head.record,
        }))
    }

    /// Keeps where the export goes on, with the `count` intervals that hold there.
    pub fn keep(
        &self,
        at: ContinuedAt,
        continuation: Continuation,
        count: u64,
        intervals: impl FnOnce(&mut dyn FnMut(&KeptInterval) -> anyhow::Result<()>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let path = self.path(at);
        let (new, file) = NewFile::create(path.to_owned())?;
        let failed = || format!("cannot write {}", path.display());
        let mut output = BufWriter::new(file);
        let head = Head {
            layout: LAYOUT,
            table: self.table.to_owned(),
            partition: self.partition.0,
            next: continuation.next.0,
            record: continuation.record,
            intervals: count,
        };
        let mut line = |value: &dyn Fn(&mut Vec<u8>) -> serde_json::Result<()>| -> anyhow::Result<()> {
            let mut bytes = Vec::new();
            value(&mut bytes)?;
            bytes.push(b'\n');
            output.write_all(&bytes).with_context(failed)
        };
        line(&|bytes| serde_json::to_writer(bytes, &head))?;
        intervals(&mut |kept| line(&|bytes| serde_json::to_writer(bytes, kept)))?;
        let file = output.into_inner().map_err(io::IntoInnerError::into_error);
        new.finish(&file.with_context(failed)?)
    }
}

fn locked(path: &Path, table: &str, partition: Partition) -> anyhow::Result<File> {
    let shown = path.display();
    let file = File::options().create(true).truncate(false).write(true).open(path);
    let file = file.with_context(|| format!("cannot create {shown}"))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another export is writing {table} of partition {partition} (it holds {shown}); wait until it has ended, or export into \
             another directory"
        ),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| {
            format!("cannot lock {shown}, so another export could write the same files; export into a directory that can be locked")
        }),
    }
}
