//! Tables for analysts: intervals, changes and events as rows of typed columns, in files of one day each.
//!
//! [`intervals`] turns changes into stretches of a status, [`tables`] says which columns there are, [`columnar`] writes
//! Parquet and [`text`] CSV and JSON lines. Where the files are and how an export is continued is the command's to know. What
//! a file has depends on its rows alone: the same rows give the same bytes.

pub mod columnar;
pub mod intervals;
pub mod tables;
pub mod text;

use crate::presence::LogTime;
use crate::presence::change::{DeviceChange, OutputId};
use columnar::ParquetFile;
use std::fmt;
use std::io::{self, Write};
use text::TextFile;

/// How rows are written.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileFormat {
    Parquet,
    Csv,
    Jsonl,
}

impl FileFormat {
    /// The name, which is also what names of files end with.
    pub fn name(self) -> &'static str {
        match self {
            FileFormat::Parquet => "parquet",
            FileFormat::Csv => "csv",
            FileFormat::Jsonl => "jsonl",
        }
    }
}

/// What a column has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ColumnKind {
    Text,
    Number,
    /// A time in UTC, to the millisecond.
    Time,
    /// The devices of a change.
    Devices,
}

/// A column of a table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ExportColumn {
    pub name: &'static str,
    pub kind: ColumnKind,
    pub nullable: bool,
}

/// One value of a row, in the order of the table's columns.
#[derive(Clone, Copy, Debug)]
pub enum Cell<'a> {
    Null,
    Text(&'a str),
    /// An id of an output, which is written as text.
    Id(OutputId),
    Number(u64),
    Time(LogTime),
    Devices(&'a [DeviceChange]),
}

impl<'a> Cell<'a> {
    pub fn optional_text(text: Option<&'a str>) -> Cell<'a> {
        text.map_or(Cell::Null, Cell::Text)
    }
}

/// A day of the calendar in UTC: the days since 1970-01-01.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Day(pub u64);

const DAY_MS: u64 = 86_400_000;

impl Day {
    /// The day of intervals that still hold: 9999-12-31, as is usual for a row that is valid without an end.
    pub const OPEN: Day = Day(2_932_896);

    /// Returns the day of a time. Times that no calendar has are on the day before [`Day::OPEN`].
    pub fn of(time: LogTime) -> Day {
        Day((time.0 / DAY_MS).min(Day::OPEN.0 - 1))
    }
}

impl fmt::Display for Day {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let date = i64::try_from(self.0 * DAY_MS).ok();
        match date.and_then(chrono::DateTime::from_timestamp_millis) {
            Some(date) => write!(out, "{}", date.format("%Y-%m-%d")),
            None => write!(out, "{}", self.0),
        }
    }
}

/// A file that takes rows.
pub enum RowFile<W: Write + Send> {
    Parquet(Box<ParquetFile<W>>),
    Text(TextFile<W>),
}

impl<W: Write + Send> RowFile<W> {
    /// Begins a file of rows with these columns.
    pub fn begin(output: W, format: FileFormat, columns: &'static [ExportColumn]) -> io::Result<RowFile<W>> {
        Ok(match format {
            FileFormat::Parquet => RowFile::Parquet(Box::new(ParquetFile::begin(output, columns)?)),
            FileFormat::Csv => RowFile::Text(TextFile::csv(output, columns)?),
            FileFormat::Jsonl => RowFile::Text(TextFile::jsonl(output, columns)),
        })
    }

    /// Writes the next row.
    pub fn row(&mut self, cells: &[Cell<'_>]) -> io::Result<()> {
        match self {
            RowFile::Parquet(file) => file.row(cells),
            RowFile::Text(file) => file.row(cells),
        }
    }

    /// Writes what is left and returns the output.
    pub fn finish(self) -> io::Result<W> {
        match self {
            RowFile::Parquet(file) => file.finish(),
            RowFile::Text(file) => file.finish(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Day;
    use crate::presence::LogTime;

    #[test]
    fn a_day_begins_at_midnight_in_utc_and_no_time_is_on_the_open_day() {
        let day = |ms| Day::of(LogTime(ms)).to_string();
        assert_eq!(day(0), "1970-01-01");
        assert_eq!(day(1_769_903_999_999), "2026-01-31");
        assert_eq!(day(1_769_904_000_000), "2026-02-01");
        assert_eq!(Day::OPEN.to_string(), "9999-12-31");
        assert_eq!(day(u64::MAX), "9999-12-30");
    }
}
