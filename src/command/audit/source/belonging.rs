//! Whether files belong together: all of one partition, and of one log.
//!
//! A question over files that do not belong together would have an answer, and it would be wrong without a sign of it.

use super::SourceFlags;
use super::lines::Lines;
use crate::presence::Partition;
use crate::topics::Topic;
use anyhow::bail;
use serde::Deserialize;
use std::path::Path;

/// What is read of an event. What else is wrong with its line is for the question to say.
#[derive(Deserialize)]
struct EventLine {
    offset: u64,
    ts: u64,
}

/// What is read of a change or a kick. A kick has its partition and its offset only in its id.
#[derive(Deserialize)]
struct OutputLine {
    id: String,
    partition: Option<u32>,
    offset: Option<u64>,
    logged_at: Option<u64>,
    at: u64,
}

impl OutputLine {
    fn part_of_id(&self, number: usize) -> Option<u64> {
        self.id.split('-').nth(number)?.parse().ok()
    }

    fn partition(&self) -> Option<u32> {
        self.partition
            .or_else(|| self.part_of_id(0).and_then(|number| u32::try_from(number).ok()))
    }

    fn offset(&self) -> Option<u64> {
        self.offset.or_else(|| self.part_of_id(1))
    }

    /// Log time of the record whose output it is. Kicks are given at log time.
    fn log_time(&self) -> u64 {
        self.logged_at.unwrap_or(self.at)
    }
}

/// A file of outputs that is read beside the events.
struct Outputs<'f> {
    file: &'f Path,
    lines: Lines,
    next: Option<OutputLine>,
}

impl<'f> Outputs<'f> {
    fn open(file: &'f Path) -> anyhow::Result<Outputs<'f>> {
        let mut outputs = Outputs {
            file,
            lines: Lines::open(file)?,
            next: None,
        };
        outputs.advance()?;
        Ok(outputs)
    }

    /// Reads the next line; none at the end, or where a line cannot be read.
    fn advance(&mut self) -> anyhow::Result<()> {
        let line = self.lines.next()?;
        self.next = line.and_then(|line| serde_json::from_str(line).ok());
        Ok(())
    }
}

/// Returns the partition that the first output names that is in the files.
pub fn named_partition(flags: &SourceFlags) -> anyhow::Result<Option<Partition>> {
    for topic in [Topic::Changes, Topic::Kicks] {
        if let Some(file) = flags.file_of(topic) {
            let outputs = Outputs::open(file)?;
            if let Some(partition) = outputs.next.as_ref().and_then(OutputLine::partition) {
                return Ok(Some(Partition(partition)));
            }
        }
    }
    Ok(None)
}

/// Refuses changes and kicks of another partition, and those that the events cannot have given.
pub fn check(flags: &SourceFlags, partition: Partition) -> anyhow::Result<()> {
    let mut outputs = Vec::new();
    for topic in [Topic::Changes, Topic::Kicks] {
        if let Some(file) = flags.file_of(topic) {
            is_of_partition(file, partition)?;
            outputs.push(Outputs::open(file)?);
        }
    }
    match flags.file_of(Topic::Events) {
        Some(events) if !outputs.is_empty() => are_of_events(events, outputs),
        Some(_) | None => Ok(()),
    }
}

fn is_of_partition(file: &Path, partition: Partition) -> anyhow::Result<()> {
    let mut outputs = Outputs::open(file)?;
    while let Some(output) = &outputs.next {
        if let Some(found) = output.partition().filter(|found| *found != partition.0) {
            bail!(
                "{} has the record {} of partition {found}, but its records are read as those of partition {partition}. If all of \
                 the file is of partition {found}, name it with --partition {found}; otherwise print each partition into files of \
                 its own (`rollcall log … --partition N`)",
                file.display(),
                output.id,
            );
        }
        outputs.advance()?;
    }
    Ok(())
}

/// Each output names an event by its offset, and has the log time of that event. What is before the first event or after the
/// last one is not compared: files may be printed one after the other, and retention cuts each topic elsewhere.
fn are_of_events(events: &Path, mut outputs: Vec<Outputs<'_>>) -> anyhow::Result<()> {
    let mut lines = Lines::open(events)?;
    let (mut time, mut first, mut before) = (0, None, None);
    while let Some(line) = lines.next()? {
        let Ok(EventLine { offset, ts }) = serde_json::from_str(line) else {
            return Ok(());
        };
        if before.is_some_and(|before| offset <= before) {
            return Ok(());
        }
        time = time.max(ts);
        let first = *first.get_or_insert(offset);
        for outputs in &mut outputs {
            while let Some(output) = &outputs.next {
                let Some(of) = output.offset().filter(|of| *of <= offset) else {
                    break;
                };
                let log_time = output.log_time();
                // Earlier events, which are not in the file, may have a later time.
                let is_of_time = log_time == time || (first > 0 && log_time > time);
                let is_known = of == offset && is_of_time;
                if of >= first && !is_known {
                    let why = match of == offset {
                        true => format!("but the log time of that event is {time}"),
                        false => "but there is no such event".to_owned(),
                    };
                    bail!(
                        "{} and {} do not belong together: the record {} was given by the event at offset {of}, at log time {log_time}, \
                         {why}. Give files that were printed of the same partition of the same log; `rollcall audit verify` tells \
                         whether one was altered",
                        events.display(),
                        outputs.file.display(),
                        output.id,
                    );
                }
                outputs.advance()?;
            }
        }
        before = Some(offset);
    }
    Ok(())
}
