//! Spans about events whose publishers trace them, for OpenTelemetry ([docs/tracing.md](../../docs/tracing.md)).
//!
//! An event belongs to a trace if its record has the header `traceparent` (W3C Trace Context). Spans are made of sampled traces
//! only, and only in a process that exports them: a program with the feature `otlp` that was given an endpoint. [`Parent::of`] is
//! the only way to a span, and decides both at once, so whatever is not traced is done with one comparison. Nothing here reads
//! the clock: times are passed in, since 1970. What is exported waits in a bounded queue and never holds anybody up.

mod delivery;
#[cfg_attr(feature = "otlp", path = "otlp.rs")]
#[cfg_attr(not(feature = "otlp"), path = "off.rs")]
mod exporter;
#[cfg(feature = "otlp")]
mod wire;

pub use delivery::{Delivery, expect, expected};
#[cfg(feature = "otlp")]
pub use exporter::SpanReceiver;
pub use exporter::{Exporter, SUPPORTED, is_on};

use std::borrow::Cow;
use std::fmt::Write as _;
use std::sync::OnceLock;
use std::time::Duration;

/// The names of the environment variables that give the endpoint, the first of which counts. Without one nothing is exported.
pub const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// How spans name the log.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogNames {
    /// `messaging.system`: `kafka`, or `rollcall` for the embedded log.
    pub system: &'static str,
    pub events: String,
    pub changes: String,
}

static LOG_NAMES: OnceLock<LogNames> = OnceLock::new();

/// Sets how spans name the log. Only the first call counts.
pub fn name_log(names: LogNames) {
    let _ = LOG_NAMES.set(names);
}

fn log_names() -> Option<&'static LogNames> {
    LOG_NAMES.get()
}

/// Returns whether these bytes are a `traceparent` of W3C Trace Context: version, trace, parent and flags, each in lower-case
/// hexadecimal. Later versions may have more behind these.
pub fn is_traceparent(text: &[u8]) -> bool {
    const LENGTH: usize = 55;
    const LENGTH_MAX: usize = 256;
    let Some((head, more)) = text.split_at_checked(LENGTH) else {
        return false;
    };
    let is_hex = |byte: &u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
    let mut fields = head.split(|byte| *byte == b'-');
    let lengths = [2, 32, 16, 2];
    let is_whole = lengths.iter().all(|length| {
        let field = fields.next().unwrap_or_default();
        field.len() == *length && field.iter().all(is_hex)
    });
    let is_longer = more.first() == Some(&b'-') && !head.starts_with(b"00");
    let has_end = more.is_empty() || (is_longer && more.iter().all(u8::is_ascii_graphic));
    is_whole && fields.next().is_none() && has_end && text.len() <= LENGTH_MAX && !head.starts_with(b"ff")
}

/// What a span is below: a trace that is sampled, and a span of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Parent {
    trace: u128,
    span: u64,
}

impl Parent {
    /// Returns what a `traceparent` names, if its trace is sampled and this process exports spans.
    pub fn of(traceparent: &[u8]) -> Option<Parent> {
        #[cfg(test)]
        let is_on = exporter::is_on() || tests::IS_ON.get();
        #[cfg(not(test))]
        let is_on = exporter::is_on();
        if !is_on {
            return None;
        }
        Parent::sampled(traceparent)
    }

    fn sampled(traceparent: &[u8]) -> Option<Parent> {
        if !is_traceparent(traceparent) {
            return None;
        }
        let field = |from, to| std::str::from_utf8(traceparent.get(from..to)?).ok();
        let parent = Parent {
            trace: u128::from_str_radix(field(3, 35)?, 16).ok()?,
            span: u64::from_str_radix(field(36, 52)?, 16).ok()?,
        };
        let flags = u8::from_str_radix(field(53, 55)?, 16).ok()?;
        // A trace or a span of zeros is invalid.
        (flags & 1 == 1 && parent.trace != 0 && parent.span != 0).then_some(parent)
    }

    /// Returns some parent, also in a process that exports nothing.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Parent {
        Parent { trace: 1, span: 2 }
    }

    /// Returns it as a `traceparent`.
    pub fn traceparent(&self) -> String {
        let mut text = String::with_capacity(55);
        // Writing to memory does not fail.
        let _ = write!(text, "00-{:032x}-{:016x}-01", self.trace, self.span);
        text
    }
}

/// What part in a message's way a span has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SpanKind {
    Server,
    Client,
    Producer,
    Consumer,
    Internal,
}

/// A span that has begun. One that is dropped ends at that moment.
pub struct Span(exporter::OpenSpan);

impl Span {
    /// Begins a span at a time. `None` if the operator's own sampler refuses it (`OTEL_TRACES_SAMPLER`).
    pub fn begin(parent: Parent, name: impl Into<Cow<'static, str>>, kind: SpanKind, at: Duration) -> Option<Span> {
        exporter::OpenSpan::begin(parent, name.into(), kind, at).map(Span)
    }

    /// Returns the parent of spans below this one.
    pub fn context(&self) -> Parent {
        self.0.context()
    }

    pub fn text(&mut self, name: &'static str, value: impl Into<Cow<'static, str>>) -> &mut Span {
        self.0.text(name, value.into());
        self
    }

    pub fn number(&mut self, name: &'static str, value: u64) -> &mut Span {
        self.0.number(name, value);
        self
    }

    /// Says what is done with a topic of the log: the attributes of messaging that every such span has.
    pub fn on_topic(&mut self, operation: Operation) -> &mut Span {
        if let Some(names) = log_names() {
            self.text("messaging.system", names.system);
            let name = match operation {
                Operation::SendEvents | Operation::ProcessEvents => &names.events,
                Operation::SendChanges | Operation::DeliverChanges => &names.changes,
            };
            self.text("messaging.destination.name", name.clone());
        }
        let (name, kind) = match operation {
            Operation::SendEvents | Operation::SendChanges => ("send", "send"),
            Operation::ProcessEvents => ("process", "process"),
            Operation::DeliverChanges => ("deliver", "send"),
        };
        self.text("messaging.operation.name", name)
            .text("messaging.operation.type", kind)
    }

    /// Says which event it is about.
    pub fn at_event(&mut self, partition: u32, offset: u64) -> &mut Span {
        self.text("messaging.destination.partition.id", partition.to_string())
            .text("messaging.message.id", format!("{partition}-{offset}"));
        if log_names().is_some_and(|names| names.system == "kafka") {
            self.number("messaging.kafka.offset", offset);
        }
        self
    }

    /// Says that it failed. `kind` is one of a few words, and not a sentence.
    pub fn failed(&mut self, kind: impl Into<Cow<'static, str>>) -> &mut Span {
        self.0.failed(kind.into());
        self
    }

    pub fn end(self, at: Duration) {
        self.0.end(at);
    }
}

/// What is done with a topic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operation {
    SendEvents,
    ProcessEvents,
    SendChanges,
    DeliverChanges,
}

impl Operation {
    /// Returns the name of a span about it.
    pub fn span_name(self) -> &'static str {
        match self {
            Operation::SendEvents => "send events",
            Operation::ProcessEvents => "process events",
            Operation::SendChanges => "send changes",
            Operation::DeliverChanges => "deliver changes",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::cell::Cell;

    thread_local! {
        /// Unit tests have no exporter; this has events of this thread count as traced all the same.
        pub(crate) static IS_ON: Cell<bool> = const { Cell::new(false) };
    }

    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    #[test]
    fn only_a_traceparent_as_the_standard_has_it_is_one() {
        let later = format!("01{}-more", &TRACE[2..]);
        for text in [TRACE, &later] {
            assert!(is_traceparent(text.as_bytes()), "{text}");
        }
        let upper = TRACE.to_uppercase();
        let longer = format!("{TRACE}-more");
        let last = format!("ff{}", &TRACE[2..]);
        let huge = format!("{later}{}", "x".repeat(300));
        let shifted = TRACE.replacen('-', "0", 1).replacen("3331", "3-31", 1);
        for text in ["", "00", &TRACE[1..], &upper, &longer, &last, &huge, &shifted] {
            assert!(!is_traceparent(text.as_bytes()), "{text}");
        }
    }

    #[test]
    fn a_parent_is_read_of_a_sampled_trace_only_and_written_as_it_was() {
        let parent = Parent::sampled(TRACE.as_bytes()).expect("sampled");
        assert_eq!(parent.traceparent(), TRACE);
        let flags = |flags: &str| format!("{}{flags}", &TRACE[..53]);
        for sampled in ["01", "03", "ff"] {
            assert!(Parent::sampled(flags(sampled).as_bytes()).is_some(), "{sampled}");
        }
        for unsampled in ["00", "02", "fe"] {
            assert_eq!(Parent::sampled(flags(unsampled).as_bytes()), None, "{unsampled}");
        }
        let no_trace = format!("00-{}-b7ad6b7169203331-01", "0".repeat(32));
        let no_span = format!("00-0af7651916cd43dd8448eb211c80319c-{}-01", "0".repeat(16));
        for invalid in [&no_trace, &no_span, ""] {
            assert_eq!(Parent::sampled(invalid.as_bytes()), None, "{invalid}");
        }
        // No exporter was started in this process.
        assert_eq!(Parent::of(TRACE.as_bytes()), None);
    }
}
