//! What is said to servers that were written for Tencent Cloud IM (`docs/tencent.md`): three commands, in the names of its
//! public documentation.
//!
//! The server does not read requests through these types: each mistake in one has an error code of its own.

use super::answers::Name;
use super::routes::TIM_ACCOUNTS;
use schemars::JsonSchema;
use serde::Serialize;
use std::borrow::Cow;

/// `POST /v4/openim/query_online_status`, `POST /v4/openim/querystate`
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TimQuery {
    /// 1 to 500 ids of users.
    #[serde(rename = "To_Account")]
    #[schemars(length(min = *TIM_ACCOUNTS.start(), max = *TIM_ACCOUNTS.end()))]
    pub accounts: Vec<String>,
    /// 1: `Detail` is wanted.
    #[serde(rename = "IsNeedDetail", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub detail: Option<u8>,
    /// 1: `CustomStatus` is wanted.
    #[serde(rename = "IsReturnCustomStatus", skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1))]
    pub custom_status: Option<u8>,
}

/// `POST /v4/im_open_login_svc/kick`
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct TimKick {
    #[serde(rename = "UserID")]
    #[schemars(length(min = 1))]
    pub user: String,
}

/// The answer to a command that has nothing more to say, and to every one that failed. Its HTTP status is 200.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct TimAnswer<'a> {
    /// `OK` or `FAIL`.
    #[serde(rename = "ActionStatus")]
    pub status: Name,
    /// 0 with `OK`.
    #[serde(rename = "ErrorCode")]
    pub code: u32,
    /// A sentence for people, empty with `OK`.
    #[serde(rename = "ErrorInfo")]
    pub info: Cow<'a, str>,
}

impl TimAnswer<'_> {
    pub const OK: TimAnswer<'static> = TimAnswer {
        status: Cow::Borrowed("OK"),
        code: 0,
        info: Cow::Borrowed(""),
    };

    pub fn fail(code: u32, info: &str) -> TimAnswer<'_> {
        TimAnswer {
            status: Cow::Borrowed("FAIL"),
            code,
            info: Cow::Borrowed(info),
        }
    }
}

/// The answer to a query. One that failed has no lists.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct TimQueryAnswer<'a> {
    /// `OK` or `FAIL`.
    #[serde(rename = "ActionStatus")]
    pub status: Name,
    /// 0 with `OK`.
    #[serde(rename = "ErrorCode")]
    pub code: u32,
    /// A sentence for people, empty with `OK`.
    #[serde(rename = "ErrorInfo")]
    pub info: Cow<'a, str>,
    /// In the order asked.
    #[serde(rename = "QueryResult", skip_serializing_if = "Option::is_none")]
    pub users: Option<Vec<TimUser<'a>>>,
    /// The ids that had an error.
    #[serde(rename = "ErrorList", skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<TimUserError<'a>>,
}

/// A user in the answer to a query.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, JsonSchema)]
pub struct TimUser<'a> {
    #[serde(rename = "To_Account")]
    pub account: &'a str,
    /// Of `query_online_status`: `Online`, `PushOnline` or `Offline`.
    #[serde(rename = "Status", skip_serializing_if = "Option::is_none")]
    pub status: Option<&'a str>,
    /// Of `querystate`: the same.
    #[serde(rename = "State", skip_serializing_if = "Option::is_none")]
    pub state: Option<&'a str>,
    /// If it is wanted; empty if the user has set no text.
    #[serde(rename = "CustomStatus", skip_serializing_if = "Option::is_none")]
    pub custom_status: Option<&'a str>,
    /// If it is wanted: each platform on which the user is not offline.
    #[serde(rename = "Detail", skip_serializing_if = "Vec::is_empty")]
    pub detail: Vec<TimDetail<'a>>,
}

/// The status of a user on a platform.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct TimDetail<'a> {
    #[serde(rename = "Platform")]
    pub platform: &'a str,
    /// `Online` or `PushOnline`.
    #[serde(rename = "Status")]
    pub status: &'a str,
}

/// An id in a query that has no answer, and why.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
pub struct TimUserError<'a> {
    #[serde(rename = "To_Account")]
    pub account: &'a str,
    #[serde(rename = "ErrorCode")]
    pub code: u32,
}
