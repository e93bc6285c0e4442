//! `rollcall quarantine explain`: everything about one malformed record.

use super::super::table::plain;
use super::requeue::{Verdict, judge};
use super::{Source, shown_time};
use crate::engine::rejected::{Reason, Rejected, decode};
use crate::presence::{Offset, Partition};
use crate::schema::avro::{Frame, Schema, unframe_with};
use crate::schema::json;
use crate::topics::Topic;
use anyhow::bail;
use std::fmt::Write as _;
use std::io::Write as _;

/// Explains one malformed event: what it is, what is wrong with it, what to do, and whether it can be requeued
#[derive(clap::Args)]
pub struct ExplainArgs {
    /// The event's partition and offset, as in `rollcall quarantine list`: PARTITION:OFFSET
    #[arg(value_name = "PARTITION:OFFSET", value_parser = position)]
    position: (u32, u64),
    #[command(flatten)]
    source: Source,
}

/// How many bytes of a value are shown.
const SHOWN_BYTES: usize = 32;

fn position(text: &str) -> Result<(u32, u64), String> {
    let parsed = text
        .split_once(':')
        .and_then(|(partition, offset)| Some((partition.parse().ok()?, offset.parse().ok()?)));
    parsed.ok_or_else(|| "expected PARTITION:OFFSET, such as 0:12".to_owned())
}

pub fn explain(args: &ExplainArgs) -> anyhow::Result<()> {
    let mut quarantine = args.source.open()?;
    let (number, offset) = args.position;
    quarantine.partitions(Some(number))?;
    let (partition, offset) = (Partition(number), Offset(offset));
    let range = quarantine.range(Topic::Quarantine, partition)?;
    let mut next = range.start;
    loop {
        let records = quarantine.batch(Topic::Quarantine, partition, &mut next, range.end)?;
        if records.is_empty() {
            bail!(
                "no record of the quarantine is about offset {offset} of partition {partition}; `rollcall quarantine list` and \
                 `rollcall log quarantine` show which there are"
            );
        }
        for record in &records {
            let malformed = quarantine.quarantined(partition, record)?;
            if malformed.offset != offset {
                continue;
            }
            let partitions = quarantine.reader.partitions();
            let original = quarantine.original(&malformed)?;
            let key = original.key.as_deref().map_or("none".to_owned(), bytes);
            let mut rows = vec![
                ("event", format!("partition {partition}, offset {offset}")),
                ("time", shown_time(malformed.ts)),
                ("error", malformed.error.to_string()),
                ("key", key),
                ("value", bytes(&original.value)),
                ("schema", schema(original.framed())),
            ];
            let learned = quarantine.schemas.learn([original.framed()])?;
            match decode(&original, partition, partitions, &learned) {
                Ok(_) => rows.push((
                    "now",
                    "it can be read, by this version and with this registry".to_owned(),
                )),
                Err(Rejected { reason, error }) => {
                    if error != *malformed.error {
                        rows.push(("now", error));
                    }
                    rows.push(("reason", reason.name().to_owned()));
                    rows.push(("do", advice(reason).to_owned()));
                }
            }
            match judge(&mut quarantine, &malformed, 0)? {
                Verdict::Candidate(candidate) => {
                    let event = candidate.event();
                    let mut line = Vec::new();
                    json::event_line(&mut line, offset, malformed.ts, &event);
                    rows.push(("decoded", String::from_utf8_lossy(&line).into_owned()));
                    rows.push(("belongs to", format!("partition {} of {partitions}", candidate.home)));
                    rows.push((
                        "requeue",
                        "possible, unless the log has it, has a later event of its device or user, or no longer has all events since"
                            .to_owned(),
                    ));
                }
                Verdict::Stays(why) => rows.push(("requeue", format!("not possible: {why}"))),
            }
            let mut text = String::new();
            for (name, what) in rows {
                writeln!(text, "{name:<10}  {}", plain(&what))?;
            }
            std::io::stdout().lock().write_all(text.as_bytes())?;
            return Ok(());
        }
    }
}

fn advice(reason: Reason) -> &'static str {
    match reason {
        Reason::Unreadable => {
            "correct the field that the error names at the publisher; section 3 of docs/rules.md lists the fields, and \
             schemas/README.md which Avro types are read"
        }
        Reason::UnknownSchema => {
            "give the engines the registry that has the schema (--registry), and register schemas before records are published"
        }
        Reason::WrongKey => {
            "publish with the user as the key, in UTF-8 without quotes or framing (a string serializer)"
        }
        Reason::WrongPartition => {
            "set the publisher's partitioner to murmur2; docs/publishing.md names the setting of each client"
        }
    }
}

/// Returns bytes as text if they are, else their beginning in hexadecimal.
fn bytes(bytes: &[u8]) -> String {
    let text = std::str::from_utf8(bytes).ok();
    if let Some(text) = text.filter(|text| text.len() <= 4 * SHOWN_BYTES && !text.contains(char::is_control)) {
        return format!("{text:?}");
    }
    let mut shown = String::new();
    for byte in bytes.iter().take(SHOWN_BYTES) {
        let _ = write!(shown, "{byte:02x} ");
    }
    let more = if bytes.len() > SHOWN_BYTES { "… " } else { "" };
    format!("{shown}{more}({} bytes)", bytes.len())
}

fn schema((header, value): (Option<(&str, &[u8])>, &[u8])) -> String {
    let (frame, datum) = match unframe_with(header, value) {
        Ok(framed) => framed,
        Err(_) => return "none is named".to_owned(),
    };
    let place = match header.filter(|_| datum.len() == value.len()) {
        Some((name, _)) => format!("in the header {name}"),
        None => "before the datum".to_owned(),
    };
    match frame {
        Frame::Fingerprint(fingerprint) => {
            let mut own = Schema::ALL.into_iter();
            match own.find(|schema| schema.fingerprint() == fingerprint) {
                Some(schema) => format!("schemas/{}, by its fingerprint {place}", schema.file()),
                None => format!("fingerprint {fingerprint:016x} {place}"),
            }
        }
        Frame::Id(id) => format!("the registry's id {id} {place}"),
        Frame::Guid(guid) => format!("the registry's GUID {guid} {place}"),
    }
}
