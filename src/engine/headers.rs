//! The headers of output records: an id, the type of the content, the trace of the event, and on request the attributes of
//! CloudEvents (their binary mode for Kafka).
//!
//! Everything in them follows from the output and from the headers of the event's record, so a record that is written again
//! has the same headers. They are not part of the chain. What happens because time has passed belongs to no trace.

use crate::log::{Headers, ID_HEADER, Record, TRACE_HEADER};
use crate::presence::change::{Output, OutputId};
use crate::presence::{LogTime, Offset, Partition};
use crate::schema::avro::Schema;
use crate::schema::write_output_id;
use crate::traces::is_traceparent;
use chrono::{DateTime, SecondsFormat};
use std::io::Write as _;
use std::sync::Arc;

const CONTENT_TYPE: &[u8] = b"application/vnd.apache.avro";

/// What the headers of an output say.
pub struct OutputFacts<'o> {
    id: Vec<u8>,
    schema: Schema,
    /// When it holds from, if it has a time.
    at: Option<LogTime>,
    subject: Option<&'o str>,
    /// It is what the record's event did, not what was due by then.
    is_of_event: bool,
}

impl<'o> OutputFacts<'o> {
    /// Returns the facts of a change or a kick; `None` for what is not written.
    pub fn of(output: &'o Output) -> Option<OutputFacts<'o>> {
        match output {
            Output::Change(change) => Some(OutputFacts {
                id: text_of(change.id),
                schema: Schema::Change,
                at: Some(change.at),
                subject: Some(&change.user),
                is_of_event: change.evidence == change.id.offset,
            }),
            Output::Kick(kick) => Some(OutputFacts {
                id: text_of(kick.id),
                schema: Schema::Kick,
                at: Some(kick.at),
                subject: Some(&kick.gateway),
                is_of_event: true,
            }),
            Output::Ignored(_) => None,
        }
    }

    /// Returns the facts of the newest state of a user, which has the id of the change that led to it.
    pub fn of_user_state(user: &'o str, change: OutputId, is_of_event: bool) -> OutputFacts<'o> {
        OutputFacts {
            id: text_of(change),
            schema: Schema::UserState,
            at: None,
            subject: Some(user),
            is_of_event,
        }
    }

    /// Returns the facts of a malformed record, whose id is `{partition}-{offset}`.
    pub fn of_quarantined(partition: Partition, offset: Offset) -> OutputFacts<'static> {
        OutputFacts {
            id: format!("{partition}-{offset}").into_bytes(),
            schema: Schema::Quarantined,
            at: None,
            subject: None,
            is_of_event: true,
        }
    }
}

fn text_of(id: OutputId) -> Vec<u8> {
    let mut text = Vec::with_capacity(16);
    write_output_id(id, &mut text);
    text
}

/// Makes the headers of a partition's outputs.
#[derive(Default)]
pub struct HeaderWriter {
    /// The beginning of `ce_source`. None: no attributes of CloudEvents.
    source: Option<Arc<str>>,
    /// The trace of the record that is being folded.
    traceparent: Option<Box<[u8]>>,
}

impl HeaderWriter {
    pub fn new(source: Option<Arc<str>>) -> HeaderWriter {
        HeaderWriter {
            source,
            traceparent: None,
        }
    }

    /// Takes note of the record that is folded next.
    pub fn begin(&mut self, record: &Record) {
        let traceparent = record.traceparent().filter(|text| is_traceparent(text));
        self.traceparent = traceparent.map(Into::into);
    }

    pub fn of(&self, facts: &OutputFacts<'_>) -> Headers {
        let mut headers = vec![(ID_HEADER, facts.id.clone()), ("content-type", CONTENT_TYPE.to_vec())];
        let traceparent = self.traceparent.as_ref().filter(|_| facts.is_of_event);
        if let Some(traceparent) = traceparent {
            headers.push((TRACE_HEADER, traceparent.to_vec()));
        }
        let Some(source) = &self.source else { return headers };
        let topic = match facts.schema {
            Schema::Event => "events",
            Schema::Change => "changes",
            Schema::Kick => "kicks",
            Schema::UserState => "current",
            Schema::Quarantined => "quarantine",
            Schema::Incident => "incidents",
        };
        headers.push(("ce_specversion", b"1.0".to_vec()));
        headers.push(("ce_id", facts.id.clone()));
        headers.push(("ce_source", format!("{source}/{topic}").into_bytes()));
        let mut name = b"rollcall.".to_vec();
        // Writing to memory does not fail.
        let _ = name.write_all(facts.schema.name().as_bytes());
        headers.push(("ce_type", name));
        if let Some(subject) = facts.subject {
            headers.push(("ce_subject", subject.as_bytes().to_vec()));
        }
        // A time beyond the calendar has no text.
        let time = facts.at.and_then(|at| DateTime::from_timestamp_millis(at.0 as i64));
        if let Some(time) = time {
            let text = time.to_rfc3339_opts(SecondsFormat::Millis, true);
            headers.push(("ce_time", text.into_bytes()));
        }
        if let Some(traceparent) = traceparent {
            headers.push(("ce_traceparent", traceparent.to_vec()));
        }
        headers
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::RecordHeaders;

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn record(traceparent: &str) -> Record {
        Record {
            offset: Offset(7),
            ts: 0,
            key: None,
            value: Vec::new(),
            is_null: false,
            headers: RecordHeaders {
                traceparent: Some(traceparent.as_bytes().into()),
                ..RecordHeaders::default()
            }
            .boxed(),
        }
    }

    fn names(headers: &Headers) -> Vec<&'static str> {
        headers.iter().map(|(name, _)| *name).collect()
    }

    #[test]
    fn the_trace_of_the_event_goes_on_with_what_the_event_did_and_with_nothing_that_was_due() {
        let id = OutputId {
            partition: Partition(3),
            offset: Offset(7),
            index: 1,
        };
        let mut writer = HeaderWriter::new(Some("/rollcall".into()));
        writer.begin(&record(TRACE));
        let done = writer.of(&OutputFacts::of_user_state("alice", id, true));
        let value = |name: &str| {
            let found = done.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| String::from_utf8_lossy(value).into_owned())
        };
        assert_eq!(value("id").as_deref(), Some("3-7-1"));
        assert_eq!(value("ce_source").as_deref(), Some("/rollcall/current"));
        assert_eq!(value("ce_type").as_deref(), Some("rollcall.UserState"));
        assert_eq!(value("ce_subject").as_deref(), Some("alice"));
        assert_eq!(value("traceparent").as_deref(), Some(TRACE));
        assert_eq!(value("ce_traceparent").as_deref(), Some(TRACE));
        let due = writer.of(&OutputFacts::of_user_state("alice", id, false));
        assert!(!names(&due).contains(&"traceparent"), "{due:?}");

        let mut plain = HeaderWriter::default();
        plain.begin(&record("not a trace"));
        let quarantined = plain.of(&OutputFacts::of_quarantined(Partition(3), Offset(7)));
        assert_eq!(names(&quarantined), ["id", "content-type"]);
    }
}
