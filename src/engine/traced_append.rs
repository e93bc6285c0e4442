//! An append of events with a trace: what their records carry, and its span if this process exports it.

use super::Placed;
use crate::log::{Appended, TRACE_HEADER};
use crate::traces::{Operation, Parent, Span, SpanKind};
use std::time::Duration;

/// An append that has begun.
pub struct TracedAppend(Option<Span>);

impl TracedAppend {
    /// Gives records that are about to be appended their header: of the span of the append, or `traceparent` if it has no span.
    pub fn begin(parent: Option<Parent>, traceparent: &[u8], records: &mut [Placed], now: Duration) -> TracedAppend {
        let operation = Operation::SendEvents;
        let mut span = parent.and_then(|parent| Span::begin(parent, operation.span_name(), SpanKind::Producer, now));
        let own = span
            .as_mut()
            .map(|span| span.on_topic(operation).context().traceparent());
        let header = own.as_ref().map_or(traceparent, String::as_bytes);
        for (_, record) in records {
            record.headers.push((TRACE_HEADER, header.to_vec()));
        }
        TracedAppend(span)
    }

    /// Ends the span. `None` of a record: it was not appended.
    pub fn end(self, records: impl ExactSizeIterator<Item = Option<Appended>>, now: Duration) {
        let Some(mut span) = self.0 else { return };
        let count = records.len();
        let appended: Vec<Appended> = records.flatten().collect();
        match *appended {
            [one] if count == 1 => {
                span.at_event(one.partition.0, one.offset.0);
            }
            _ => {
                span.number("messaging.batch.message_count", count as u64);
            }
        }
        if appended.len() < count {
            span.failed("not_appended");
        }
        span.end(now);
    }

    /// Ends the span of an append that failed as a whole.
    pub fn failed(self, now: Duration) {
        let Some(mut span) = self.0 else { return };
        span.failed("not_appended");
        span.end(now);
    }
}
