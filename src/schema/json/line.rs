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
    #[error("`{0}` must be an integer from 0 to {1}")]
    Position(&'static str, u64),
}

impl From<serde_json::Error> for LineError {
    fn from(error: serde_json::Error) -> LineError {
        LineError::Json(match error.classify() {
            Category::Eof => format!("its JSON ends too early, in column {}", error.column()),
            _ => error.to_string(),
        })
    }
}

/// Reads one line: an event with `offset` and `ts` beside its fields.
pub fn read_line(line: &str) -> Result<InputLine<'_>, LineError> {
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
