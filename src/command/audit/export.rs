//! `rollcall audit export`: intervals, changes or events as files for analysts, one for each day and partition.
//!
//! Rows of a day are complete when a row of a later day was read. Then its file gets its name, and the place from which the
//! next day can be read is kept in `_progress`. An export that was interrupted, or one of a log that has grown, goes on from
//! there: it writes the last day again, to the same bytes, and then what is new. If retention has removed that place, it goes on
//! from where it had ended, which is possible only if the last day has no further records.

mod files;
mod progress;

use super::json_line;
use super::source::{AuditSource, NO_FILE, SourceFlags};
use crate::audit::export::intervals::{EndedInterval, KeptInterval, OpenIntervals};
use crate::audit::export::tables::{CHANGES, EVENTS, INTERVALS, change_row, event_row, interval_row};
use crate::audit::export::{Cell, Day, ExportColumn, FileFormat};
use crate::command::directories;
use crate::log::Range;
use crate::presence::change::{Change, OutputId};
use crate::presence::{LogTime, Offset, Partition};
use crate::topics::Topic;
use anyhow::{Context as _, bail};
use files::{DayFiles, TableDirectory};
use progress::{Continuation, ContinuedAt, ExportProgress, KeptRecord};
use serde::Serialize;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;

/// Writes intervals, changes or events as Parquet, CSV or JSON lines, in files of one day each
///
/// The files are DIR/TABLE/day=YYYY-MM-DD/partition-NNNNN.FORMAT. The same log gives the same files, byte for byte. Run
/// again, it goes on with the last day: only that and what is new is read.
#[derive(clap::Args)]
#[command(mut_args(may_have_no_file))]
pub struct Args {
    /// A row for each stretch of a status of a user or a device. Without a file, --changes and --events export the changes or
    /// the events
    #[arg(long)]
    intervals: bool,
    #[arg(long, value_enum, default_value = "parquet")]
    format: FileFormat,
    /// The directory of the files
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// If retention has removed the first records, begins with the oldest one that is kept; intervals that began before are
    /// left out. Without it that is an error
    #[arg(long)]
    from_oldest: bool,
    #[command(flatten)]
    source: SourceFlags,
}

/// `--changes` alone says what is exported; with a file it says where changes are read.
fn may_have_no_file(arg: clap::Arg) -> clap::Arg {
    match ["events", "changes"].contains(&arg.get_id().as_str()) {
        true => arg.num_args(0..=1).default_missing_value(NO_FILE),
        false => arg,
    }
}

/// What is exported.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Exported {
    Intervals,
    Changes,
    Events,
}

impl Exported {
    fn name(self) -> &'static str {
        match self {
            Exported::Intervals => "intervals",
            Exported::Changes => "changes",
            Exported::Events => "events",
        }
    }

    fn columns(self) -> &'static [ExportColumn] {
        match self {
            Exported::Intervals => INTERVALS,
            Exported::Changes => CHANGES,
            Exported::Events => EVENTS,
        }
    }

    /// The topic that it is made of.
    fn topic(self) -> Topic {
        match self {
            Exported::Intervals | Exported::Changes => Topic::Changes,
            Exported::Events => Topic::Events,
        }
    }
}

/// What was written of a partition, as it is printed.
#[derive(Serialize)]
struct PartitionSummary {
    partition: u32,
    table: &'static str,
    /// Rows that this run has written.
    rows: u64,
    files: u64,
    /// The day with which this run began, and the last one; null without rows.
    from: Option<String>,
    to: Option<String>,
}

pub fn run(args: &Args, output: &mut impl Write) -> anyhow::Result<u8> {
    let exported = exported(args)?;
    directories::outside_of_servers("--out", &args.out)?;
    let source = args.source.checked()?;
    let written = source.each_partition(|source, partition| {
        match export_partition(args, exported, source, partition) {
            // The other partitions can be exported all the same.
            Err(error) if error.is::<RecordsGone>() => Ok(Err(error)),
            exported => exported.map(Ok),
        }
    })?;
    for summary in written.iter().flatten() {
        if args.source.json {
            json_line(output, summary)?;
            continue;
        }
        let PartitionSummary {
            partition,
            table,
            rows,
            files,
            from,
            to,
        } = summary;
        match (from, to) {
            (Some(from), Some(to)) => {
                writeln!(
                    output,
                    "partition {partition}: {rows} rows of {table} in {files} files, {from} to {to}"
                )?;
            }
            _ if *rows > 0 => writeln!(output, "partition {partition}: {rows} rows of {table}, and no new day")?,
            _ => writeln!(output, "partition {partition}: no new {table}")?,
        }
    }
    let gone: Vec<String> = written
        .iter()
        .filter_map(|one| Some(one.as_ref().err()?.to_string()))
        .collect();
    if !gone.is_empty() {
        bail!("{}", gone.join("; "));
    }
    Ok(0)
}

fn exported(args: &Args) -> anyhow::Result<Exported> {
    let choices = [
        (Exported::Intervals, args.intervals),
        (Exported::Changes, args.source.is_bare(Topic::Changes)),
        (Exported::Events, args.source.is_bare(Topic::Events)),
    ];
    let mut chosen = choices
        .into_iter()
        .filter_map(|(choice, is_chosen)| is_chosen.then_some(choice));
    match (chosen.next(), chosen.next()) {
        (Some(choice), None) => return Ok(choice),
        (Some(_), Some(_)) => bail!("choose one of --intervals, --changes and --events for an export"),
        (None, _) => {}
    }
    // With one file there is no doubt.
    match (
        args.source.has_file(Topic::Changes),
        args.source.has_file(Topic::Events),
    ) {
        (true, false) => Ok(Exported::Changes),
        (false, true) => Ok(Exported::Events),
        _ => bail!("choose what to export: --intervals, --changes or --events"),
    }
}

/// An export of one partition that is under way.
struct PartitionExport {
    exported: Exported,
    partition: Partition,
    files: DayFiles,
    progress: ExportProgress,
    /// The first record that is to be read, where the export goes on with the start of a day.
    expected: Option<KeptRecord>,
    /// The last record that was exported, where the export goes on after it.
    after: Option<KeptRecord>,
    /// The last record of this run.
    last: Option<LastExported>,
    /// What is before was read when the export has ended. None for a file.
    log_end: Option<Offset>,
    open: OpenIntervals,
    /// The day that is being written.
    day: Option<Day>,
    first_day: Option<Day>,
    /// The newest day of the log when the export began, if that is known.
    newest: Option<Day>,
    /// How many rows were written since progress was kept.
    rows_unkept: u64,
}

/// The last record that was exported; how it is kept is only worked out at the end.
enum LastExported {
    Change(Offset, Change),
    Event {
        offset: Offset,
        ts: u64,
        log_time: LogTime,
        name: &'static str,
    },
}

impl LastExported {
    fn kept(&self) -> KeptRecord {
        match self {
            LastExported::Change(offset, change) => KeptRecord::of_change(*offset, change),
            LastExported::Event {
                offset,
                ts,
                log_time,
                name,
            } => KeptRecord::of_event(*offset, *ts, *log_time, name),
        }
    }
}

/// Retention has removed records of a partition that its export needs.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct RecordsGone(String);

/// What retention must keep, for errors.
const NEEDED: &str = "retention has to keep records for a day and the time between two exports";

/// How an export of a partition begins.
struct Beginning {
    from: Offset,
    open: OpenIntervals,
    expected: Option<KeptRecord>,
    after: Option<KeptRecord>,
}

/// Finds out where an export begins. `range` is what the log has of the topic.
fn beginning(
    args: &Args,
    topic: Topic,
    partition: Partition,
    progress: &ExportProgress,
    range: Range,
) -> anyhow::Result<Beginning> {
    let mut open = OpenIntervals::new(partition);
    let start = progress.read(ContinuedAt::DayStart, |kept| open.restore(kept))?;
    let next = start.as_ref().map_or(Offset(0), |start| start.next);
    if range.start <= next {
        return Ok(Beginning {
            from: next,
            open,
            expected: start.and_then(|start| start.record),
            after: None,
        });
    }
    let mut open = OpenIntervals::new(partition);
    if let Some(end) = progress.read(ContinuedAt::End, |kept| open.restore(kept))?
        && range.start <= end.next
    {
        if range.end < end.next {
            bail!(
                "the {topic} of partition {partition} end at offset {}, but were exported up to {}: this is another log than the one \
                 that was exported; export into another directory",
                range.end,
                end.next
            );
        }
        let last = end.record.as_ref().map_or(Offset(0), KeptRecord::offset);
        return Ok(Beginning {
            from: last.max(range.start),
            open,
            expected: None,
            after: end.record,
        });
    }
    match start {
        Some(_) => Err(RecordsGone(format!(
            "the {topic} of partition {partition} from offset {next} on, where the export into {} goes on, are gone (retention): the \
             oldest one kept is at offset {}; {NEEDED}; export into another directory with --from-oldest",
            args.out.display(),
            range.start
        ))
        .into()),
        None if args.from_oldest => Ok(Beginning {
            from: range.start,
            open: OpenIntervals::new(partition),
            expected: None,
            after: None,
        }),
        None => Err(RecordsGone(format!(
            "the {topic} of partition {partition} before offset {} are gone (retention); with --from-oldest the export begins with \
             what is kept",
            range.start
        ))
        .into()),
    }
}

fn export_partition(
    args: &Args,
    exported: Exported,
    source: &mut AuditSource<'_>,
    partition: Partition,
) -> anyhow::Result<PartitionSummary> {
    let topic = exported.topic();
    let directory = TableDirectory::open(&args.out, exported.name())?;
    let progress = ExportProgress::open(&directory, exported.name(), args.format, partition)?;
    let range = source.range(topic, partition)?;
    let Beginning {
        from,
        open,
        expected,
        after,
    } = beginning(args, topic, partition, &progress, range)?;
    // The first record of a day is the one with which log time enters the day, so nothing before it counts.
    let mut log_time = after.as_ref().map_or(LogTime::default(), KeptRecord::time);
    let mut export = PartitionExport {
        exported,
        partition,
        files: DayFiles::new(directory, exported.columns(), args.format, partition),
        newest: source.newest_time(topic, partition)?.map(Day::of),
        progress,
        expected,
        after,
        last: None,
        log_end: (!args.source.has_files()).then_some(range.end),
        open,
        day: None,
        first_day: None,
        rows_unkept: 0,
    };
    match exported {
        Exported::Intervals => source.changes_from(partition, from, |offset, change| {
            is_exported(partition, &change)?;
            if export.enter(Day::of(change.at), || KeptRecord::of_change(offset, &change))? {
                for ended in export.open.apply(&change).ended {
                    let EndedInterval { start, device, .. } = &ended;
                    let device = device.as_ref().map(|(platform, device)| (&**platform, &**device));
                    let cells = interval_row(partition, &change.user, device, start, Some(&ended));
                    export.row(&cells)?;
                }
                export.last = Some(LastExported::Change(offset, change));
            }
            Ok(ControlFlow::Continue(()))
        })?,
        Exported::Changes => source.changes_from(partition, from, |offset, change| {
            is_exported(partition, &change)?;
            if export.enter(Day::of(change.at), || KeptRecord::of_change(offset, &change))? {
                export.row(&change_row(offset, &change))?;
                export.last = Some(LastExported::Change(offset, change));
            }
            Ok(ControlFlow::Continue(()))
        })?,
        Exported::Events => source.events_from(partition, from, |offset, ts, event| {
            log_time = log_time.max(LogTime(ts));
            let event = event.as_ref().map_err(|malformed| malformed.error.as_str());
            let name = event.map_or("malformed", |event| event.name());
            if export.enter(Day::of(log_time), || KeptRecord::of_event(offset, ts, log_time, name))? {
                export.row(&event_row(partition, offset, ts, log_time, event))?;
                export.last = Some(LastExported::Event {
                    offset,
                    ts,
                    log_time,
                    name,
                });
            }
            Ok(ControlFlow::Continue(()))
        })?,
    }
    export.finish()
}

/// Refuses a change of another partition: its rows would say a partition that its id does not.
fn is_exported(partition: Partition, change: &Change) -> anyhow::Result<()> {
    let OutputId {
        partition: found,
        offset,
        index,
    } = change.id;
    if found != partition {
        bail!(
            "the change {found}-{offset}-{index} is of partition {found}, but partition {partition} is exported; with a file, name \
             its partition with --partition {found}"
        );
    }
    Ok(())
}

impl PartitionExport {
    /// Ends the day that is being written if the next record is of a later one. `record` describes that record. Returns false
    /// if the record was exported before.
    fn enter(&mut self, day: Day, record: impl Fn() -> KeptRecord) -> anyhow::Result<bool> {
        if self.day == Some(day) {
            return Ok(true);
        }
        if let Some(last) = &self.after {
            let found = record();
            if found.offset() <= last.offset() {
                return self.is_as_exported(&found, last).map(|()| false);
            }
            let last_day = Day::of(last.time());
            if day <= last_day {
                return Err(RecordsGone(format!(
                    "the first records of {last_day} in partition {} are gone (retention), and there are new ones of this day, so its \
                     file cannot be written again; {NEEDED}; export into another directory with --from-oldest",
                    self.partition
                ))
                .into());
            }
            self.after = None;
        }
        let begins = self.day.is_none();
        self.files.end_day()?;
        self.day = Some(day);
        if begins {
            self.first_day = Some(day);
            if let Some(expected) = self.expected.take() {
                return self.is_as_exported(&record(), &expected).map(|()| true);
            }
        }
        // Progress costs as much as there are open intervals, so it is kept where as many rows were written since, and
        // where the last day begins.
        if self.rows_unkept >= self.open.len() as u64 || self.newest.is_some_and(|newest| day >= newest) {
            let record = record();
            let continuation = Continuation {
                next: record.offset(),
                record: Some(record),
            };
            self.keep(ContinuedAt::DayStart, continuation)?;
            self.rows_unkept = 0;
        }
        Ok(true)
    }

    /// Refuses to go on if a record is not the one that was exported.
    fn is_as_exported(&self, found: &KeptRecord, expected: &KeptRecord) -> anyhow::Result<()> {
        if found != expected {
            bail!(
                "partition {} has {found} where the export had {expected}: this is another log than the one that was exported; \
                 export into another directory",
                self.partition
            );
        }
        Ok(())
    }

    fn keep(&self, at: ContinuedAt, continuation: Continuation) -> anyhow::Result<()> {
        self.progress.keep(at, continuation, self.open.len() as u64, |each| {
            self.open
                .each(|user, device, start| each(&KeptInterval::of(user, device, start)))
        })
    }

    fn row(&mut self, cells: &[Cell<'_>]) -> anyhow::Result<()> {
        if let Some(day) = self.day {
            self.files.row(day, cells)?;
            self.rows_unkept += 1;
        }
        Ok(())
    }

    /// Ends the last day and writes what still holds.
    fn finish(mut self) -> anyhow::Result<PartitionSummary> {
        if let Some(expected) = &self.expected {
            bail!(
                "partition {} ends before {expected}, with which the export goes on: this is another log than the one that was \
                 exported; export into another directory",
                self.partition
            );
        }
        self.files.end_day()?;
        let partition = self.partition;
        let files = &mut self.files;
        self.open.each(|user, device, start| {
            let cells = interval_row(partition, user, device, start, None);
            files.row(Day::OPEN, &cells)
        })?;
        files.end_day().context("cannot write what still holds")?;
        if let Some(log_end) = self.log_end {
            let record = self.last.as_ref().map(LastExported::kept).or_else(|| self.after.take());
            let read_to = record
                .as_ref()
                .map_or(Offset(0), |record| Offset(record.offset().0 + 1));
            let next = log_end.max(read_to);
            self.keep(ContinuedAt::End, Continuation { next, record })?;
        }
        Ok(PartitionSummary {
            partition: partition.0,
            table: self.exported.name(),
            rows: self.files.rows(),
            files: self.files.count(),
            from: self.first_day.map(|day| day.to_string()),
            to: self.day.map(|day| day.to_string()),
        })
    }
}
