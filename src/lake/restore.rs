//! The intervals that hold, read from the files of a lake when it is opened.

use super::iceberg::positions::{OpenRows, row_key};
use super::manifest::LakeManifest;
use super::partition::LakePartition;
use super::storage::LakeStorage;
use super::{Error, cannot, open_verified};
use crate::audit::export::Cell;
use crate::audit::export::columnar::read_rows;
use crate::audit::export::intervals::{IntervalChange, IntervalStart};
use crate::audit::export::tables::INTERVALS;
use crate::presence::change::{Cause, OutputId};
use crate::presence::{LogTime, Offset, Partition, Status};
use std::collections::HashSet;
use std::io;

/// An interval by what began it and whose it is.
type IntervalKey = (OutputKey, Option<(Box<str>, Box<str>)>);
type OutputKey = (u32, u64, u64);

/// A row of an interval.
struct IntervalRow<'a> {
    user: &'a str,
    device: Option<(&'a str, &'a str)>,
    start: IntervalStart,
}

/// Gives the partitions the intervals that hold as of the manifest, and notes in `rows` where their rows are.
pub fn open_intervals<S: LakeStorage>(
    storage: &mut S,
    manifest: &LakeManifest,
    partitions: &mut [LakePartition],
    mut rows: Option<&mut OpenRows>,
) -> Result<(), Error> {
    let mut ended: HashSet<IntervalKey> = HashSet::new();
    for file in manifest.ended_since() {
        each_row(storage, &file.path, |row| {
            ended.insert(row.key());
            Ok(())
        })?;
    }
    let mut holding = 0;
    for file in &manifest.intervals.open {
        each_row(storage, &file.path, |row| {
            let has_ended = ended.contains(&row.key());
            if let Some(rows) = &mut rows {
                match has_ended {
                    true => rows.add_ended(),
                    false => rows.add(row_key(row.start.by.change, row.device)),
                }
            }
            if has_ended {
                return Ok(());
            }
            holding += 1;
            let number = row.start.by.change.partition.0 as usize;
            let partition = partitions
                .get_mut(number)
                .ok_or_else(|| io::Error::other("it has another partition"))?;
            let device = row.device.map(|(platform, device)| (platform.into(), device.into()));
            partition.restore(row.user.into(), device, row.start);
            Ok(())
        })?;
        if let Some(rows) = &mut rows {
            rows.written(&file.path);
        }
    }
    if holding != manifest.intervals.holding {
        return Err(Error::Damaged {
            path: "intervals".to_owned(),
            problem: format!(
                "{holding} intervals hold and {} should hold",
                manifest.intervals.holding
            ),
        });
    }
    Ok(())
}

fn each_row<S: LakeStorage>(
    storage: &mut S,
    path: &str,
    mut each: impl FnMut(IntervalRow<'_>) -> io::Result<()>,
) -> Result<(), Error> {
    let file = open_verified(storage, path)?;
    let read = read_rows(file, |cells| {
        let row = interval(cells).ok_or_else(|| io::Error::other("it has a row that is not an interval"))?;
        each(row)
    });
    read.map_err(cannot(format!("read {path}")))
}

impl IntervalRow<'_> {
    fn key(&self) -> IntervalKey {
        let id = self.start.by.change;
        let device = self.device.map(|(platform, device)| (platform.into(), device.into()));
        ((id.partition.0, id.offset.0, id.index), device)
    }
}

/// Reads the row of an interval; `None` if the cells are not one.
fn interval<'a>(cells: &'a [Cell<'a>]) -> Option<IntervalRow<'a>> {
    let cell = |name: &str| {
        let at = INTERVALS.iter().position(|column| column.name == name)?;
        cells.get(at).copied()
    };
    let text = |name: &str| match cell(name)? {
        Cell::Text(text) => Some(text),
        Cell::Null | Cell::Id(_) | Cell::Number(_) | Cell::Time(_) | Cell::Devices(_) => None,
    };
    let number = |name: &str| match cell(name)? {
        Cell::Number(number) => Some(number),
        Cell::Time(time) => Some(time.0),
        Cell::Null | Cell::Text(_) | Cell::Id(_) | Cell::Devices(_) => None,
    };
    let mut id = text("change")?.split('-');
    let change = OutputId {
        partition: Partition(id.next()?.parse().ok()?),
        offset: Offset(id.next()?.parse().ok()?),
        index: id.next()?.parse().ok()?,
    };
    Some(IntervalRow {
        user: text("user")?,
        device: text("platform").zip(text("device")),
        start: IntervalStart {
            status: Status::named(text("status")?)?,
            by: IntervalChange {
                at: LogTime(number("valid_from")?),
                logged_at: LogTime(number("logged_at")?),
                cause: Cause::named(text("cause")?)?,
                change,
                evidence: Offset(number("evidence")?),
            },
            gateway: text("gateway").map(Box::from),
        },
    })
}
