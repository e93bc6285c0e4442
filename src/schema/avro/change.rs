//! The datum of `schemas/change.avsc`, field by field in the schema's order; and the id of changes and kicks.

use super::datum::{Reader, write_array, write_count, write_int, write_nullable_long, write_nullable_text, write_text};
use crate::presence::change::{Cause, Change, DeviceChange, OutputId, Rehearsal};
use crate::presence::{LogTime, Offset, Partition};
use crate::schema::{Malformed, parse_output_id, write_output_id};

/// The fewest bytes of a device: each of its five strings takes at least one.
const DEVICE_BYTES_MIN: usize = 5;

pub(super) fn read(datum: &[u8]) -> Result<Change, Malformed> {
    read_of(datum, |_| None)
}

/// Reads a change of the rehearsal of a revision, which has one more field at its end.
pub(super) fn read_rehearsed(datum: &[u8]) -> Result<Change, Malformed> {
    read_of(datum, |reader| {
        let count = reader.nullable_long("rehearsal");
        Some(Rehearsal(count.and_then(|count| u64::try_from(count).ok())))
    })
}

fn read_of(datum: &[u8], rehearsal: impl FnOnce(&mut Reader<'_>) -> Option<Rehearsal>) -> Result<Change, Malformed> {
    let mut reader = Reader::new(datum);
    let id = read_id(&mut reader);
    let partition = Partition(reader.int("partition"));
    let offset = Offset(reader.count("offset"));
    let change = Change {
        id,
        seq: reader.count("seq"),
        user: reader.text("user").into(),
        version: reader.count("version"),
        at: LogTime(reader.count("at")),
        logged_at: LogTime(reader.count("logged_at")),
        cause: reader.name("cause", &Cause::ALL, Cause::name),
        before: reader.status("before"),
        after: reader.status("after"),
        devices: reader.array("devices", DEVICE_BYTES_MIN, |reader, _| {
            Ok(DeviceChange {
                platform: reader.text("a device's platform").into(),
                device: reader.text("a device's device").into(),
                gateway: reader.text("a device's gateway").into(),
                before: reader.status("a device's before"),
                after: reader.status("a device's after"),
            })
        }),
        custom_status: reader.nullable_text("custom_status").map(Into::into),
        evidence: Offset(reader.count("evidence")),
        rehearsal: rehearsal(&mut reader),
    };
    reader.end()?;
    if (id.partition, id.offset) != (partition, offset) {
        return Err(Malformed::invalid(format!(
            "id and the fields partition and offset must agree, but it says {}-{}, and they {partition}-{offset}",
            id.partition, id.offset
        )));
    }
    Ok(change)
}

pub(super) fn write(change: &Change, out: &mut Vec<u8>) {
    let Change {
        id,
        seq,
        user,
        version,
        at,
        logged_at,
        cause,
        before,
        after,
        devices,
        custom_status,
        evidence,
        rehearsal,
    } = change;
    let OutputId {
        partition,
        offset,
        index: _,
    } = id;
    write_id(*id, out);
    write_int(out, partition.0);
    write_count(out, offset.0);
    write_count(out, *seq);
    write_text(out, user);
    write_count(out, *version);
    write_count(out, at.0);
    write_count(out, logged_at.0);
    write_text(out, cause.name());
    write_text(out, before.name());
    write_text(out, after.name());
    write_array(out, devices, |out, device| {
        let DeviceChange {
            platform,
            device,
            gateway,
            before,
            after,
        } = device;
        write_text(out, platform);
        write_text(out, device);
        write_text(out, gateway);
        write_text(out, before.name());
        write_text(out, after.name());
    });
    write_nullable_text(out, custom_status.as_deref());
    write_count(out, evidence.0);
    if let Some(Rehearsal(count)) = rehearsal {
        write_nullable_long(out, count.map(|count| count as i64));
    }
}

/// Writes `{partition}-{offset}-{index}`. The longest has 51 bytes, so the length takes one byte, which is written
/// afterwards.
pub(super) fn write_id(id: OutputId, out: &mut Vec<u8>) {
    let length_at = out.len();
    out.push(0);
    write_output_id(id, out);
    let length = out.len() - length_at - 1;
    out[length_at] = (length as u8) << 1;
}

pub(super) fn read_id(reader: &mut Reader<'_>) -> OutputId {
    let text = reader.text("id");
    parse_output_id(text).unwrap_or_else(|| {
        reader.fail_with(
            "id",
            &format!("must be a partition, an offset and an index, as in 0-15-1, not {text:?}"),
        );
        OutputId {
            partition: Partition(0),
            offset: Offset(0),
            index: 0,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_was_written_and_in_no_other_form() {
        for id in [
            OutputId {
                partition: Partition(0),
                offset: Offset(0),
                index: 0,
            },
            OutputId {
                partition: Partition(12),
                offset: Offset(345),
                index: 6,
            },
            OutputId {
                partition: Partition(u32::MAX),
                offset: Offset(u64::MAX),
                index: u64::MAX,
            },
        ] {
            let mut bytes = Vec::new();
            write_id(id, &mut bytes);
            assert_eq!(read_id(&mut Reader::new(&bytes)), id);
        }
        for text in [
            "",
            "0",
            "0-0",
            "0-0-0-0",
            "0--0",
            "+1-0-0",
            "01-0-0",
            "0-0-1 ",
            "4294967296-0-0",
            "0-0-x",
        ] {
            assert_eq!(parse_output_id(text), None, "{text}");
        }
    }
}
