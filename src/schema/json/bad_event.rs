//! What is wrong with an event.

use crate::schema::Malformed;
use std::fmt;

/// What is wrong with an event: the field, and a sentence that names its bound.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadEvent {
    pub field: &'static str,
    pub message: String,
}

impl fmt::Display for BadEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<BadEvent> for Malformed {
    fn from(bad: BadEvent) -> Malformed {
        Malformed::invalid(bad.message)
    }
}

pub(super) fn bad<T>(field: &'static str, message: impl Into<String>) -> Result<T, BadEvent> {
    Err(BadEvent {
        field,
        message: message.into(),
    })
}
