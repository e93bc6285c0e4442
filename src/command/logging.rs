//! The log of the process on standard error: lines for people, or JSON objects for programs.

use crate::config::{LogFormat, LogLevel};
use crate::schema::json::Object;
use std::fmt;
use std::io::IsTerminal as _;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime as _;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::util::SubscriberInitExt as _;

pub fn start(format: LogFormat, level: LogLevel) {
    // The client of buckets logs each of its attempts at `info`; who waits for the bucket says so once.
    let level = match level {
        LogLevel::Info => "info,object_store=warn",
        LogLevel::Error | LogLevel::Warn | LogLevel::Debug => level.name(),
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // At `trace`, tungstenite logs whole frames, and the first frame may hold a token.
    let without_frames =
        filter_fn(|metadata| *metadata.level() < Level::TRACE || !metadata.target().starts_with("tungstenite"));
    match format {
        LogFormat::Human => builder.with_target(false).finish().with(without_frames).init(),
        LogFormat::Json => builder.event_format(JsonLines).finish().with(without_frames).init(),
    }
}

/// Fields that are written as JSON numbers, also if their type is one of ours and arrives as text.
const NUMBERS: [&str; 8] = [
    "partition",
    "offset",
    "next",
    "applied",
    "committed",
    "start",
    "end",
    "newest_offset",
];

/// A JSON object per event: `timestamp`, `level`, `fields` with the `message`, and `target`.
struct JsonLines;

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut timestamp = String::new();
        tracing_subscriber::fmt::time().format_time(&mut Writer::new(&mut timestamp))?;
        let mut fields = Vec::new();
        let mut seen = Fields {
            object: Object::new(&mut fields),
            target: None,
        };
        event.record(&mut seen);
        let Fields { mut object, target } = seen;
        object.end();
        let mut line = Vec::new();
        Object::new(&mut line)
            .text("timestamp", &timestamp)
            .text("level", event.metadata().level().as_str())
            .raw("fields", &fields)
            .text("target", target.as_deref().unwrap_or(event.metadata().target()))
            .end();
        writeln!(writer, "{}", String::from_utf8_lossy(&line))
    }
}

struct Fields<'w> {
    object: Object<'w>,
    /// The target of a library that uses the `log` crate, which arrives as a field.
    target: Option<String>,
}

impl Visit for Fields<'_> {
    fn record_u64(&mut self, field: &Field, value: u64) {
        if !field.name().starts_with("log.") {
            self.object.number(field.name(), value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.object.raw(field.name(), value.to_string().as_bytes());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.object.raw(field.name(), if value { b"true" } else { b"false" });
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no form for NaN and the infinities.
        let text = if value.is_finite() {
            value.to_string()
        } else {
            "null".to_owned()
        };
        self.object.raw(field.name(), text.as_bytes());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "log.target" => self.target = Some(value.to_owned()),
            name if name.starts_with("log.") => {}
            name => {
                self.object.text(name, value);
            }
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        match text.parse() {
            Ok(number) if NUMBERS.contains(&field.name()) => self.record_u64(field, number),
            _ => self.record_str(field, &text),
        }
    }
}
