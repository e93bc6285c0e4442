//! The trace of a request that appends events: from its header `traceparent` into the records, and its spans. Every such
//! route has it (`appends` in the table of routes).
//!
//! The header goes into each record of the request, whether this process exports spans or not. If it does and the trace is
//! sampled, the request and its append are spans, and the records name the append as their parent.

use crate::clock::Clock;
use crate::engine::{Placed, TracedAppend};
use crate::log::{Appended, TRACE_HEADER};
use crate::traces::{Parent, Span, SpanKind, is_traceparent};
use axum::http::{HeaderMap, StatusCode};
use std::sync::Arc;
use std::time::Duration;

/// A request with a trace.
pub struct TracedRequest {
    traceparent: Vec<u8>,
    spans: Option<Spans>,
}

struct Spans {
    clock: Arc<dyn Clock>,
    request: Span,
    append: Option<TracedAppend>,
}

impl TracedRequest {
    /// Returns `None` for nearly every request: one without a valid `traceparent`. It was posted to `path`.
    pub fn of(path: &'static str, headers: &HeaderMap, clock: &Arc<dyn Clock>) -> Option<TracedRequest> {
        let traceparent = headers.get(TRACE_HEADER)?.as_bytes();
        if !is_traceparent(traceparent) {
            return None;
        }
        let spans = Parent::of(traceparent).and_then(|parent| {
            let request = Span::begin(parent, format!("POST {path}"), SpanKind::Server, clock.since_1970());
            request.map(|mut request| {
                request.text("http.request.method", "POST").text("http.route", path);
                Spans {
                    clock: clock.clone(),
                    request,
                    append: None,
                }
            })
        });
        Some(TracedRequest {
            traceparent: traceparent.to_vec(),
            spans,
        })
    }

    /// Gives records that are about to be appended their header.
    pub fn attach(&mut self, records: &mut [Placed]) {
        let TracedRequest { traceparent, spans } = self;
        match spans {
            Some(Spans { clock, request, append }) => {
                let begun = TracedAppend::begin(Some(request.context()), traceparent, records, clock.since_1970());
                *append = Some(begun);
            }
            None => {
                TracedAppend::begin(None, traceparent, records, Duration::ZERO);
            }
        }
    }

    /// Ends the span of the append.
    pub fn appended(&mut self, results: &[Result<Appended, Arc<str>>]) {
        let Some(Spans { clock, append, .. }) = &mut self.spans else {
            return;
        };
        if let Some(append) = append.take() {
            append.end(
                results.iter().map(|result| result.as_ref().ok().copied()),
                clock.since_1970(),
            );
        }
    }

    /// Ends the spans of the request. `failure`: what failed, in a word, if that is the server's and not the caller's.
    pub fn answered(self, status: StatusCode, failure: Option<String>) {
        let Some(Spans {
            clock,
            mut request,
            append,
        }) = self.spans
        else {
            return;
        };
        let now = clock.since_1970();
        if let Some(append) = append {
            append.failed(now);
        }
        request.number("http.response.status_code", status.as_u16().into());
        if let Some(failure) = failure {
            request.failed(failure);
        }
        request.end(now);
    }
}
