//! Lines of `rollcall fold`: an event with `offset` and `ts` beside its fields.

use super::bad_event::BadEvent;
use super::fields::{FieldsSeed, Seen};
use super::raw::Raw;
use crate::presence::Offset;
use crate::presence::event::{Event, bounds};
use serde::de::DeserializeSeed as _;
use serde_json::error::Category;

/// One line of the input of `rollcall fold`.
#[derive(Debug)]
pub struct InputLine<'a> {
    pub offset: Offset,
    /// Milliseconds.
    pub ts: u64,
    pub event: Result<Event<'a>, BadEvent>,
}

/// Why a line is no record at all.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error("{0}")]
    Json(String),
    #[error("it begins with a byte order mark (U+FEFF), which is not part of JSON; write the file as UTF-8 without it")]
    ByteOrderMark,
    #[error("`{0}` must be an integer from 0 to {1}")]
    Position(&'static str, u64),
}

impl From<serde_json::Error> for LineError {
    fn from(error: serde_json::Error) -> LineError {
        LineError::Json(match error.classify() {
            Category::Eof => format!("its JSON ends too early, in column {}", error.column()),
            _ => words(&error),
        })
    }
}

/// Returns what is wrong, and in which column: the number of the line is known to the caller alone.
fn words(error: &serde_json::Error) -> String {
    let column = error.column();
    let text = error.to_string();
    let text = text.split(" at line 1 column ").next().unwrap_or_default();
    match text {
        "lone leading surrogate in hex escape" | "unexpected end of hex escape" => {
            format!(
                "it has half of a pair of surrogates before column {column}; \\ud800 to \\udfff only stand for letters in pairs"
            )
        }
        text => format!("{text}, in column {column}"),
    }
}

/// Reads one line: an event with `offset` and `ts` beside its fields.
pub fn read_line(line: &str) -> Result<InputLine<'_>, LineError> {
    if line.starts_with('\u{feff}') {
        return Err(LineError::ByteOrderMark);
    }
    let mut reader = serde_json::Deserializer::from_str(line);
    let seen = Seen {
        event: 0,
        unknown: None,
        policy_bytes: usize::MAX,
    };
    let mut fields = FieldsSeed(seen).deserialize(&mut reader)?;
    reader.end()?;
    let Raw::Number(offset) = fields.offset else {
        return Err(LineError::Position("offset", u64::MAX));
    };
    let ts = match fields.ts {
        Raw::Number(ts) if ts <= bounds::TIMESTAMP_MAX => ts,
        _ => return Err(LineError::Position("ts", bounds::TIMESTAMP_MAX)),
    };
    Ok(InputLine {
        offset: Offset(offset),
        ts,
        event: fields.event(),
    })
}
