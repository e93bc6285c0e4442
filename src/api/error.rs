//! How a request is refused: the body of every answer that is not a success, and of the events `error` and `refused`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// The body of every answer that is not a success.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ErrorAnswer {
    pub error: ErrorDetail,
}

/// What is wrong, for programs and for people.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ErrorDetail {
    /// One of the codes in the documentation.
    #[serde(default)]
    pub code: Cow<'static, str>,
    /// A sentence for people.
    #[serde(default)]
    pub message: String,
    /// The index of the event in the request that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event: Option<u64>,
    /// The field of that event.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub field: Option<Cow<'static, str>>,
    /// Of `gone`: the oldest cursor that works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest: Option<String>,
}
