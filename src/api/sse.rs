//! Server-sent events: the one writer and the one reader of them.
//!
//! The reader follows the HTML standard: lines end in LF, CR LF or CR, one space before a field's value is skipped, and
//! several `data` lines are one value. It does not skip a byte order mark, which no stream of ours has. An event without an
//! end is refused before it takes more memory than is allowed.

use super::cursor::Cursor;
use std::fmt::Write as _;

/// The media type of a stream.
pub const CONTENT_TYPE: &str = "text/event-stream";
/// A comment, for proxies to keep a quiet connection open.
pub const STILL_HERE: &str = ": still here\n\n";
/// The start of a subscription's first comment; the cursor where it begins follows.
const FROM: &str = "from ";
/// The field with the trace of an event.
const TRACE: &str = "traceparent";
/// Milliseconds after which a client opens a stream again that has ended.
const RETRY_MS: u64 = 2_000;

/// Appends the start of a subscription: when to reconnect, and the cursor where it begins.
pub fn write_begin(text: &mut String, from: &Cursor) {
    let _ = write!(text, "retry: {RETRY_MS}\n: {FROM}{from}\n\n");
}

/// Appends an event with the cursor after it. `data` is one line.
pub fn write_event(text: &mut String, name: &str, id: &Cursor, data: &str) {
    let _ = write!(text, "event: {name}\nid: {id}\ndata: {data}\n\n");
}

/// Appends the trace of the event that is written next. Browsers and other readers skip this field, as the standard says.
pub fn write_trace(text: &mut String, traceparent: &str) {
    let _ = writeln!(text, "{TRACE}: {traceparent}");
}

/// Appends a cursor without an event: no record before it matches the subscription.
pub fn write_cursor(text: &mut String, id: &Cursor) {
    let _ = write!(text, "id: {id}\n\n");
}

/// Appends the last event of a stream, which says why it ends.
pub fn write_error(text: &mut String, error: &[u8]) {
    let _ = write!(text, "event: error\ndata: {}\n\n", String::from_utf8_lossy(error));
}

/// Appends a refusal as an event, with the time after which to reconnect.
pub fn write_refused(text: &mut String, retry_ms: u64, error: &[u8]) {
    let error = String::from_utf8_lossy(error);
    let _ = write!(text, "retry: {retry_ms}\nevent: refused\ndata: {error}\n\n");
}

/// The fields between two empty lines.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct StreamEvent {
    /// None stands for `message`.
    pub name: Option<String>,
    pub id: Option<String>,
    pub data: Option<String>,
    /// The trace of the event that led to it, if the server knows one.
    pub traceparent: Option<String>,
    /// The last comment.
    pub comment: Option<String>,
}

impl StreamEvent {
    /// Returns the cursor where the subscription begins, if this is its first comment.
    pub fn begins(&self) -> Option<&str> {
        self.comment.as_deref()?.strip_prefix(FROM)
    }
}

/// An event exceeds the bound.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("an event of the stream has more than {0} bytes")]
pub struct TooLong(pub usize);

/// Reads events from a stream that arrives in pieces.
#[derive(Debug)]
pub struct EventReader {
    /// Bytes after the last complete line.
    unread: Vec<u8>,
    /// The first bytes of `unread`, as many as this, hold no line end.
    searched: usize,
    /// The previous line ended in CR: a LF that follows belongs to it.
    after_cr: bool,
    event: StreamEvent,
    /// Bytes of the event so far.
    bytes: usize,
    bytes_max: usize,
}

impl EventReader {
    /// Reads events of at most `bytes_max` bytes.
    pub fn new(bytes_max: usize) -> EventReader {
        EventReader {
            unread: Vec::new(),
            searched: 0,
            after_cr: false,
            event: StreamEvent::default(),
            bytes: 0,
            bytes_max,
        }
    }

    /// Adds bytes and returns the events that they complete.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<StreamEvent>, TooLong> {
        self.unread.extend_from_slice(bytes);
        let mut events = Vec::new();
        let mut begin = 0;
        while let Some(length) = self.unread[begin + self.searched..]
            .iter()
            .position(|byte| matches!(byte, b'\n' | b'\r'))
        {
            let end = begin + self.searched + length;
            let is_rest_of_cr = self.after_cr && self.unread[end] == b'\n' && end == begin;
            self.after_cr = self.unread[end] == b'\r';
            if !is_rest_of_cr {
                let line = String::from_utf8_lossy(&self.unread[begin..end]).into_owned();
                self.bytes += line.len();
                events.extend(self.take_line(&line));
            }
            begin = end + 1;
            self.searched = 0;
        }
        self.unread.drain(..begin);
        self.searched = self.unread.len();
        if self.bytes + self.unread.len() > self.bytes_max {
            return Err(TooLong(self.bytes_max));
        }
        Ok(events)
    }

    /// Returns the event that an empty line ends.
    fn take_line(&mut self, line: &str) -> Option<StreamEvent> {
        if line.is_empty() {
            self.bytes = 0;
            let event = std::mem::take(&mut self.event);
            return (event != StreamEvent::default()).then_some(event);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => self.event.comment = Some(value.to_owned()),
            "event" => self.event.name = Some(value.to_owned()),
            "id" => self.event.id = Some(value.to_owned()),
            TRACE => self.event.traceparent = Some(value.to_owned()),
            "data" => match &mut self.event.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(value);
                }
                None => self.event.data = Some(value.to_owned()),
            },
            // `retry`, which our clients do not use, and fields of later versions.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written() -> String {
        let cursor = |text| Cursor::parse(text).expect("a cursor");
        let mut text = String::new();
        write_begin(&mut text, &cursor("0:1,1:2"));
        write_trace(&mut text, "00-1-2-01");
        write_event(&mut text, "change", &cursor("0:2,1:2"), r#"{"user":"é: ü"}"#);
        text.push_str(STILL_HERE);
        write_cursor(&mut text, &cursor("0:3,1:2"));
        write_error(&mut text, b"{}");
        write_refused(&mut text, 5_000, b"{}");
        text
    }

    fn expected() -> Vec<StreamEvent> {
        let text = |text: &str| Some(text.to_owned());
        let none = StreamEvent::default;
        vec![
            StreamEvent {
                comment: text("from 0:1,1:2"),
                ..none()
            },
            StreamEvent {
                name: text("change"),
                id: text("0:2,1:2"),
                data: text(r#"{"user":"é: ü"}"#),
                traceparent: text("00-1-2-01"),
                ..none()
            },
            StreamEvent {
                comment: text("still here"),
                ..none()
            },
            StreamEvent {
                id: text("0:3,1:2"),
                ..none()
            },
            StreamEvent {
                name: text("error"),
                data: text("{}"),
                ..none()
            },
            StreamEvent {
                name: text("refused"),
                data: text("{}"),
                ..none()
            },
        ]
    }

    #[test]
    fn what_is_written_is_read_however_it_is_cut_and_wherever_its_lines_end() {
        for end in ["\n", "\r\n", "\r"] {
            let text = written().replace('\n', end);
            for size in [1, 2, 3, 7, text.len()] {
                let mut reader = EventReader::new(1_000);
                let parts = text.as_bytes().chunks(size);
                let read: Vec<StreamEvent> = parts.flat_map(|part| reader.push(part).expect("short")).collect();
                assert_eq!(read, expected(), "{end:?} {size}");
            }
        }
        assert_eq!(expected()[0].begins(), Some("0:1,1:2"));
        assert_eq!(expected()[2].begins(), None);
    }

    #[test]
    fn fields_are_read_as_the_standard_has_it() {
        let mut reader = EventReader::new(1_000);
        let read = reader
            .push(b"data:one\ndata:  two\ndata\nid\nevents: x\n\n\n:\n\n")
            .expect("short");
        let text = |text: &str| Some(text.to_owned());
        let first = StreamEvent {
            id: text(""),
            data: text("one\n two\n"),
            ..StreamEvent::default()
        };
        let second = StreamEvent {
            comment: text(""),
            ..StreamEvent::default()
        };
        assert_eq!(read, [first, second]);
    }

    #[test]
    fn an_event_without_an_end_is_refused() {
        let mut reader = EventReader::new(10);
        assert_eq!(reader.push(b"data: 4567").map(|events| events.len()), Ok(0));
        assert_eq!(reader.push(b"8"), Err(TooLong(10)));
        let mut reader = EventReader::new(20);
        assert!(reader.push(b"data: 1\ndata: 2\n").is_ok());
        assert_eq!(reader.push(b"data: 3\n"), Err(TooLong(20)));
    }
}
