//! A batch of spans as OTLP posts it: `ExportTraceServiceRequest` of opentelemetry-proto 1.x, in protobuf.
//!
//! Only what this program's spans have is written: no events, no links, and attributes that are texts and numbers.

use crate::varint;
use opentelemetry::Value;
use opentelemetry::trace::{SpanKind, Status};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SpanData;
use std::time::UNIX_EPOCH;

/// How a field's bytes are laid out.
const VARINT: u64 = 0;
const FIXED64: u64 = 1;
const LENGTH: u64 = 2;
const FIXED32: u64 = 5;

/// Whether the parent is of another process: that it is known, and that it is so.
const IS_REMOTE_KNOWN: u32 = 0x100;
const IS_REMOTE: u32 = 0x200;

#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn tag(&mut self, field: u64, layout: u64) {
        varint::put(&mut self.0, field << 3 | layout);
    }

    fn number(&mut self, field: u64, number: u64) {
        self.tag(field, VARINT);
        varint::put(&mut self.0, number);
    }

    fn fixed64(&mut self, field: u64, number: u64) {
        self.tag(field, FIXED64);
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn fixed32(&mut self, field: u64, number: u32) {
        self.tag(field, FIXED32);
        self.0.extend_from_slice(&number.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.tag(field, LENGTH);
        varint::put(&mut self.0, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
    }

    fn message(&mut self, field: u64, fill: impl FnOnce(&mut Message)) {
        let mut inner = Message::default();
        fill(&mut inner);
        self.bytes(field, &inner.0);
    }

    fn attribute(&mut self, field: u64, name: &str, value: &Value) {
        self.message(field, |pair| {
            pair.bytes(1, name.as_bytes());
            pair.message(2, |any| match value {
                Value::Bool(value) => any.number(2, u64::from(*value)),
                Value::I64(value) => any.number(3, value.cast_unsigned()),
                Value::F64(value) => any.fixed64(4, value.to_bits()),
                other => any.bytes(1, other.as_str().as_bytes()),
            });
        });
    }
}

/// Returns the body of a request.
pub fn request(resource: &Resource, spans: &[SpanData]) -> Vec<u8> {
    let mut request = Message::default();
    request.message(1, |of_resource| {
        of_resource.message(1, |message| {
            for (name, value) in resource.iter() {
                message.attribute(1, name.as_str(), value);
            }
        });
        of_resource.message(2, |of_scope| {
            if let Some(first) = spans.first() {
                of_scope.message(1, |scope| scope.bytes(1, first.instrumentation_scope.name().as_bytes()));
            }
            for span in spans {
                of_scope.message(2, |message| write(message, span));
            }
        });
    });
    request.0
}

fn write(message: &mut Message, span: &SpanData) {
    message.bytes(1, &span.span_context.trace_id().to_bytes());
    message.bytes(2, &span.span_context.span_id().to_bytes());
    message.bytes(4, &span.parent_span_id.to_bytes());
    message.bytes(5, span.name.as_bytes());
    message.number(
        6,
        match span.span_kind {
            SpanKind::Internal => 1,
            SpanKind::Server => 2,
            SpanKind::Client => 3,
            SpanKind::Producer => 4,
            SpanKind::Consumer => 5,
        },
    );
    for (field, time) in [(7, span.start_time), (8, span.end_time)] {
        let since_1970 = time.duration_since(UNIX_EPOCH).unwrap_or_default();
        message.fixed64(field, u64::try_from(since_1970.as_nanos()).unwrap_or(u64::MAX));
    }
    for attribute in &span.attributes {
        message.attribute(9, attribute.key.as_str(), &attribute.value);
    }
    match span.status {
        Status::Unset => {}
        Status::Ok => message.message(15, |status| status.number(3, 1)),
        Status::Error { .. } => message.message(15, |status| status.number(3, 2)),
    }
    let is_remote = if span.parent_span_is_remote { IS_REMOTE } else { 0 };
    let flags = u32::from(span.span_context.trace_flags().to_u8());
    message.fixed32(16, flags | IS_REMOTE_KNOWN | is_remote);
}

/// Returns how many spans of a request the receiver has rejected, according to its answer.
pub fn rejected(mut answer: &[u8]) -> u64 {
    // `partial_success` is field 1, and `rejected_spans` is field 1 of that.
    let mut partial = match take(&mut answer) {
        Some((1, Field::Bytes(partial))) => partial,
        _ => return 0,
    };
    match take(&mut partial) {
        Some((1, Field::Number(rejected))) => rejected,
        _ => 0,
    }
}

enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

fn take<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let tag = varint::take(bytes)?;
    let field = match tag & 7 {
        VARINT => Field::Number(varint::take(bytes)?),
        LENGTH => {
            let length = usize::try_from(varint::take(bytes)?).ok()?;
            let (value, rest) = bytes.split_at_checked(length)?;
            *bytes = rest;
            Field::Bytes(value)
        }
        _ => return None,
    };
    Some((tag >> 3, field))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_receiver_rejects_is_read_and_anything_else_is_nothing() {
        // As the reference encoder writes a rejection of 300 with the text "full".
        let partial = [0x0a, 0x09, 0x08, 0xac, 0x02, 0x12, 0x04, b'f', b'u', b'l', b'l'];
        assert_eq!(rejected(&partial), 300);
        for other in [&[][..], &[0x0a, 0x00], &[0x0a, 0x09, 0x08], b"{}", b"ok"] {
            assert_eq!(rejected(other), 0, "{other:?}");
        }
    }
}
