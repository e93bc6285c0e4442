//! Which columns each table has, and its rows.
//!
//! `offset` and `at` are words of SQL, so the columns are called `record` and `valid_from`.

use super::intervals::{EndedInterval, IntervalStart};
use super::{Cell, ColumnKind, ExportColumn};
use crate::presence::change::Change;
use crate::presence::event::Event;
use crate::presence::{LogTime, Offset, Partition, Status};
use crate::schema::wire_event::WireEvent;

const fn text(name: &'static str) -> ExportColumn {
    column(name, ColumnKind::Text, false)
}

const fn number(name: &'static str) -> ExportColumn {
    column(name, ColumnKind::Number, false)
}

const fn time(name: &'static str) -> ExportColumn {
    column(name, ColumnKind::Time, false)
}

const fn column(name: &'static str, kind: ColumnKind, nullable: bool) -> ExportColumn {
    ExportColumn { name, kind, nullable }
}

const fn optional(column: ExportColumn) -> ExportColumn {
    ExportColumn {
        nullable: true,
        ..column
    }
}

/// One row for each stretch of a status of a user (platform and device are null) or of a device.
pub const INTERVALS: &[ExportColumn] = &[
    number("partition"),
    text("user"),
    optional(text("platform")),
    optional(text("device")),
    text("status"),
    time("valid_from"),
    optional(time("valid_to")),
    text("cause"),
    text("change"),
    number("evidence"),
    time("logged_at"),
    optional(text("gateway")),
    optional(text("end_cause")),
    optional(text("end_change")),
    optional(number("end_evidence")),
    optional(time("end_logged_at")),
];

/// One row for each record of the change topic.
pub const CHANGES: &[ExportColumn] = &[
    number("partition"),
    number("record"),
    number("seq"),
    text("change"),
    text("user"),
    number("version"),
    time("valid_from"),
    time("logged_at"),
    text("cause"),
    text("before"),
    text("after"),
    column("devices", ColumnKind::Devices, false),
    optional(text("custom_status")),
    number("evidence"),
];

/// One row for each record of the event topic.
pub const EVENTS: &[ExportColumn] = &[
    number("partition"),
    number("record"),
    time("logged_at"),
    time("written_at"),
    text("type"),
    optional(text("user")),
    optional(text("platform")),
    optional(text("device")),
    optional(text("gateway")),
    optional(number("epoch")),
    optional(number("conn")),
    optional(number("connections")),
    optional(text("intent")),
    optional(text("client")),
    optional(time("auth_at")),
    optional(text("reason")),
    optional(number("ttl_ms")),
    optional(text("custom_status")),
    optional(text("policy")),
    optional(number("revision")),
    optional(text("error")),
];

/// One row for each minute of log time, partition and platform (null: users) in which a stretch of `online` or `push_online`
/// began or ended.
pub const CONCURRENCY: &[ExportColumn] = &[
    number("partition"),
    time("minute"),
    optional(text("platform")),
    number("online"),
    number("push_online"),
    number("online_began"),
    number("online_ended"),
    number("push_online_began"),
    number("push_online_ended"),
];

/// Returns the row of an interval; `None` as its end while it still holds.
pub fn interval_row<'a>(
    partition: Partition,
    user: &'a str,
    device: Option<(&'a str, &'a str)>,
    begin: &'a IntervalStart,
    end: Option<&EndedInterval>,
) -> [Cell<'a>; INTERVALS.len()] {
    let end = end.map(|ended| ended.end);
    [
        Cell::Number(partition.0.into()),
        Cell::Text(user),
        Cell::optional_text(device.map(|(platform, _)| platform)),
        Cell::optional_text(device.map(|(_, device)| device)),
        Cell::Text(begin.status.name()),
        Cell::Time(begin.by.at),
        end.map_or(Cell::Null, |end| Cell::Time(end.at)),
        Cell::Text(begin.by.cause.name()),
        Cell::Id(begin.by.change),
        Cell::Number(begin.by.evidence.0),
        Cell::Time(begin.by.logged_at),
        Cell::optional_text(begin.gateway.as_deref()),
        end.map_or(Cell::Null, |end| Cell::Text(end.cause.name())),
        end.map_or(Cell::Null, |end| Cell::Id(end.change)),
        end.map_or(Cell::Null, |end| Cell::Number(end.evidence.0)),
        end.map_or(Cell::Null, |end| Cell::Time(end.logged_at)),
    ]
}

/// Returns the row of a change, which is the record at `offset` of the change topic.
pub fn change_row(offset: Offset, change: &Change) -> [Cell<'_>; CHANGES.len()] {
    let status = |status: Status| Cell::Text(status.name());
    [
        Cell::Number(change.id.partition.0.into()),
        Cell::Number(offset.0),
        Cell::Number(change.seq),
        Cell::Id(change.id),
        Cell::Text(&change.user),
        Cell::Number(change.version),
        Cell::Time(change.at),
        Cell::Time(change.logged_at),
        Cell::Text(change.cause.name()),
        status(change.before),
        status(change.after),
        Cell::Devices(&change.devices),
        Cell::optional_text(change.custom_status.as_deref()),
        Cell::Number(change.evidence.0),
    ]
}

/// Returns the row of an event, which is the record at `offset`, or of a malformed record with what is wrong with it.
/// `log_time` is the log time of the partition at this record.
pub fn event_row<'a>(
    partition: Partition,
    offset: Offset,
    ts: u64,
    log_time: LogTime,
    event: Result<&'a Event<'_>, &'a str>,
) -> [Cell<'a>; EVENTS.len()] {
    let fields = event.map(WireEvent::of).unwrap_or_default();
    let number = |number: Option<u64>| number.map_or(Cell::Null, Cell::Number);
    // No number of an event is below 0.
    let field = |value: Option<i64>| number(value.map(i64::cast_unsigned));
    [
        Cell::Number(partition.0.into()),
        Cell::Number(offset.0),
        Cell::Time(log_time),
        Cell::Time(LogTime(ts)),
        Cell::Text(event.map_or("malformed", Event::name)),
        Cell::optional_text(fields.user),
        Cell::optional_text(fields.platform),
        Cell::optional_text(fields.device),
        Cell::optional_text(fields.gateway),
        field(fields.epoch),
        field(fields.conn),
        number(fields.connections().map(|count| count as u64)),
        Cell::optional_text(fields.intent),
        Cell::optional_text(fields.client),
        fields
            .auth_at
            .map_or(Cell::Null, |at| Cell::Time(LogTime(at.cast_unsigned()))),
        Cell::optional_text(fields.reason),
        field(fields.ttl_ms),
        Cell::optional_text(fields.text),
        Cell::optional_text(fields.policy),
        field(fields.revision),
        Cell::optional_text(event.err()),
    ]
}
