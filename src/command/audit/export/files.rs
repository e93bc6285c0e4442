//! The files of an export. A file has its name only when it is whole.

use crate::audit::export::{Cell, Day, ExportColumn, FileFormat, RowFile};
use crate::directory;
use crate::presence::Partition;
use anyhow::Context as _;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// The directory of one table.
#[derive(Clone, Debug)]
pub struct TableDirectory(PathBuf);

impl TableDirectory {
    pub fn open(out: &Path, table: &str) -> anyhow::Result<TableDirectory> {
        let directory = out.join(table);
        create(&directory)?;
        Ok(TableDirectory(directory))
    }

    /// Returns the path of a file in a directory within, which is created.
    pub fn file(&self, within: &str, name: &str) -> anyhow::Result<PathBuf> {
        let directory = self.0.join(within);
        create(&directory)?;
        Ok(directory.join(name))
    }
}

fn create(directory: &Path) -> anyhow::Result<()> {
    directory::create(directory).with_context(|| format!("cannot create the directory {}", directory.display()))
}

/// A file that gets its name when it is whole, and is removed if it does not come to that.
pub struct NewFile {
    path: PathBuf,
    temporary: PathBuf,
    is_named: bool,
}

impl NewFile {
    pub fn create(path: PathBuf) -> anyhow::Result<(NewFile, File)> {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(".part");
        let temporary = path.with_file_name(name);
        let file = File::create(&temporary).with_context(|| format!("cannot create {}", temporary.display()))?;
        let new = NewFile {
            path,
            temporary,
            is_named: false,
        };
        Ok((new, file))
    }

    /// Gives the file its name. Whatever had it before is replaced.
    pub fn finish(mut self, file: &File) -> anyhow::Result<()> {
        let done = file.sync_all().and_then(|()| fs::rename(&self.temporary, &self.path));
        done.with_context(|| format!("cannot write {}", self.path.display()))?;
        self.is_named = true;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.is_named {
            // The next export replaces it, so it does no harm if it cannot be removed.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// The files of one partition, a day each.
pub struct DayFiles {
    directory: TableDirectory,
    columns: &'static [ExportColumn],
    format: FileFormat,
    partition: Partition,
    current: Option<(Day, NewFile, RowFile<File>)>,
    rows: u64,
    count: u64,
}

impl DayFiles {
    pub fn new(
        directory: TableDirectory,
        columns: &'static [ExportColumn],
        format: FileFormat,
        partition: Partition,
    ) -> DayFiles {
        DayFiles {
            directory,
            columns,
            format,
            partition,
            current: None,
            rows: 0,
            count: 0,
        }
    }

    /// Writes a row of a day, which must not be before that of the row before.
    pub fn row(&mut self, day: Day, cells: &[Cell<'_>]) -> anyhow::Result<()> {
        if self.current.as_ref().is_none_or(|(current, ..)| *current != day) {
            self.end_day()?;
            let name = format!("partition-{:05}.{}", self.partition.0, self.format.name());
            let path = self.directory.file(&format!("day={day}"), &name)?;
            let (new, file) = NewFile::create(path)?;
            let rows = RowFile::begin(file, self.format, self.columns).with_context(|| new.failed())?;
            self.current = Some((day, new, rows));
        }
        if let Some((_, new, rows)) = &mut self.current {
            rows.row(cells).with_context(|| new.failed())?;
            self.rows += 1;
        }
        Ok(())
    }

    /// Completes the file of the day, if there is one.
    pub fn end_day(&mut self) -> anyhow::Result<()> {
        if let Some((_, new, rows)) = self.current.take() {
            let file = rows.finish().with_context(|| new.failed())?;
            new.finish(&file)?;
            self.count += 1;
        }
        Ok(())
    }

    /// Returns how many rows were written.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Returns how many files were written.
    pub fn count(&self) -> u64 {
        self.count
    }
}

impl NewFile {
    fn failed(&self) -> String {
        format!("cannot write {}", self.path.display())
    }
}
