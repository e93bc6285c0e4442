//! The protocol: the messages of client and gateway, and the codes with which a connection is closed.
//!
//! Each text frame is one JSON object; its `type` says which message it is. The reference is `docs/gateway.md`.

use super::uplink::{ChangedDevice, StandingDevice, UserSnapshot, UserUpdate};
use crate::presence::change::KickReason;
use crate::presence::event::bounds::STATUS_TEXT_BYTES;
use crate::schema::json::Object;
use serde::Deserialize;
use std::ops::RangeInclusive;

/// How many users one query or subscription may name. The maximum is also how many users a connection may be subscribed
/// to.
pub const USERS: RangeInclusive<usize> = 1..=200;
const USER_BYTES_MAX: usize = 128;

/// A message from a client.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ClientMessage {
    /// The token, if it did not come with the request. Allowed only as the first frame.
    Auth {
        token: String,
    },
    Heartbeat,
    /// The client checks whether the link works.
    Ping,
    Background,
    Foreground,
    /// The user logs out. The connection ends as soon as the logout is in the log.
    Logout,
    /// The user left with the platform's own exit button. The connection ends.
    Exit,
    CustomStatus {
        text: Option<String>,
    },
    Query {
        users: Vec<String>,
    },
    Subscribe {
        users: Vec<String>,
    },
    Unsubscribe {
        users: Vec<String>,
    },
}

#[derive(Deserialize)]
struct Frame {
    /// The client's number for this message, repeated in the response.
    id: Option<u64>,
    #[serde(flatten)]
    said: ClientMessage,
}

#[derive(Deserialize)]
struct Numbered {
    id: Option<u64>,
}

/// What is wrong with a frame, and the number of the message if it has one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadFrame {
    pub message: String,
    pub id: Option<u64>,
}

/// Parses a frame into the message and its number.
pub fn read(text: &str) -> Result<(ClientMessage, Option<u64>), BadFrame> {
    let frame: Frame = serde_json::from_str(text).map_err(|error| BadFrame {
        message: format!("this is not a valid client frame: {error}"),
        id: serde_json::from_str::<Numbered>(text)
            .ok()
            .and_then(|numbered| numbered.id),
    })?;
    match check(&frame.said) {
        Ok(()) => Ok((frame.said, frame.id)),
        Err(message) => Err(BadFrame { message, id: frame.id }),
    }
}

fn check(said: &ClientMessage) -> Result<(), String> {
    match said {
        ClientMessage::Query { users } | ClientMessage::Subscribe { users } | ClientMessage::Unsubscribe { users } => {
            if !USERS.contains(&users.len()) {
                let (least, most) = (USERS.start(), USERS.end());
                return Err(format!("`users` must have {least} to {most} ids, not {}", users.len()));
            }
            if let Some(user) = users.iter().find(|user| !(1..=USER_BYTES_MAX).contains(&user.len())) {
                return Err(format!(
                    "a user's id has 1 to {USER_BYTES_MAX} bytes, not {}",
                    user.len()
                ));
            }
        }
        ClientMessage::CustomStatus { text: Some(text) } => {
            let (least, most) = STATUS_TEXT_BYTES;
            if !(least..=most).contains(&text.len()) {
                return Err(format!("`text` must have {least} to {most} bytes, not {}", text.len()));
            }
        }
        ClientMessage::Auth { .. }
        | ClientMessage::Heartbeat
        | ClientMessage::Ping
        | ClientMessage::Background
        | ClientMessage::Foreground
        | ClientMessage::Logout
        | ClientMessage::Exit
        | ClientMessage::CustomStatus { text: None } => {}
    }
    Ok(())
}

/// Why the gateway closes a connection. The codes are documented in `docs/gateway.md`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Close {
    LoggedOut,
    NotText,
    TooBig,
    Restart,
    Later,
    Replaced,
    Displaced,
    Admin,
    Forgotten,
    Stale,
    Silent,
    BadRequest,
    TooFast,
    TooSlow,
    Unauthorized,
    TooMany,
}

impl Close {
    pub const ALL: [Close; 16] = [
        Close::LoggedOut,
        Close::NotText,
        Close::TooBig,
        Close::Restart,
        Close::Later,
        Close::Replaced,
        Close::Displaced,
        Close::Admin,
        Close::Forgotten,
        Close::Stale,
        Close::Silent,
        Close::BadRequest,
        Close::TooFast,
        Close::TooSlow,
        Close::Unauthorized,
        Close::TooMany,
    ];

    pub fn code(self) -> u16 {
        match self {
            Close::LoggedOut => 1000,
            Close::NotText => 1003,
            Close::TooBig => 1009,
            Close::Restart => 1012,
            Close::Later => 1013,
            Close::Replaced => 4001,
            Close::Displaced => 4002,
            Close::Admin => 4003,
            Close::Forgotten => 4004,
            Close::Stale => 4005,
            Close::Silent => 4006,
            Close::BadRequest => 4007,
            Close::TooFast => 4008,
            Close::TooSlow => 4009,
            Close::Unauthorized => 4010,
            Close::TooMany => 4011,
        }
    }

    /// The reason text that is sent with the code; also the label of the metric.
    pub fn name(self) -> &'static str {
        match self {
            Close::LoggedOut => "logged_out",
            Close::NotText => "not_text",
            Close::TooBig => "too_big",
            Close::Restart => "restart",
            Close::Later => "later",
            Close::Replaced => "replaced",
            Close::Displaced => "displaced",
            Close::Admin => "admin",
            Close::Forgotten => "forgotten",
            Close::Stale => "stale",
            Close::Silent => "silent",
            Close::BadRequest => "bad_request",
            Close::TooFast => "too_fast",
            Close::TooSlow => "too_slow",
            Close::Unauthorized => "unauthorized",
            Close::TooMany => "too_many",
        }
    }

    /// Whether the client may reconnect by itself. If not, the user must log in again first.
    pub fn may_come_back(self) -> bool {
        match self {
            Close::Restart | Close::Later | Close::Stale | Close::Silent | Close::TooFast | Close::TooSlow => true,
            Close::LoggedOut
            | Close::NotText
            | Close::TooBig
            | Close::Replaced
            | Close::Displaced
            | Close::Admin
            | Close::Forgotten
            | Close::BadRequest
            | Close::Unauthorized
            | Close::TooMany => false,
        }
    }
}

impl Close {
    /// The close code for a kick; `None` if this kick does not end the connection.
    pub fn of_kick(reason: KickReason) -> Option<Close> {
        match reason {
            KickReason::Replaced => Some(Close::Replaced),
            KickReason::Displaced => Some(Close::Displaced),
            KickReason::Admin => Some(Close::Admin),
            KickReason::Stale => Some(Close::Stale),
            KickReason::Forgotten => Some(Close::Forgotten),
            KickReason::Identify => None,
        }
    }
}

/// Writes a frame.
fn frame(kind: &str, id: Option<u64>, fields: impl FnOnce(&mut Object<'_>)) -> String {
    let mut out = Vec::with_capacity(96);
    let mut object = Object::new(&mut out);
    object.text("type", kind);
    if let Some(id) = id {
        object.number("id", id);
    }
    fields(&mut object);
    object.end();
    String::from_utf8(out).unwrap_or_default()
}

/// What a client needs to know about its connection.
pub struct Hello<'a> {
    pub user: &'a str,
    pub gateway: &'a str,
    pub epoch: u64,
    pub conn: u64,
    pub heartbeat_ms: u64,
    pub timeout_ms: u64,
    /// On a quiet link the gateway sends something at this interval.
    pub ping_ms: u64,
}

pub fn hello(hello: &Hello<'_>) -> String {
    frame("hello", None, |object| {
        object
            .text("user", hello.user)
            .text("gateway", hello.gateway)
            .number("epoch", hello.epoch)
            .number("conn", hello.conn)
            .number("heartbeat_ms", hello.heartbeat_ms)
            .number("timeout_ms", hello.timeout_ms)
            .number("ping_ms", hello.ping_ms);
    })
}

/// The response to a heartbeat, which shows the client that its link works in both directions.
pub fn alive() -> String {
    frame("alive", None, |_| {})
}

/// The response to a ping.
pub fn pong(id: Option<u64>) -> String {
    frame("pong", id, |_| {})
}

/// The response to a message that has no other response: the event is in the log.
pub fn done(id: Option<u64>) -> String {
    frame("done", id, |_| {})
}

fn standing(out: &mut Vec<u8>, standing: &UserSnapshot) {
    Object::new(out)
        .text("user", &standing.user)
        .text("status", &standing.status)
        .number("version", standing.version)
        .number("since", standing.since)
        .optional_text("custom_status", standing.custom_status.as_deref())
        .list("devices", &standing.devices, |out, device: &StandingDevice| {
            Object::new(out)
                .text("platform", &device.platform)
                .text("status", &device.status)
                .end();
        })
        .end();
}

fn ids<'a>(object: &mut Object<'_>, key: &str, users: impl IntoIterator<Item = &'a str>) {
    object.list(key, users, |out, user| {
        out.extend_from_slice(serde_json::Value::from(user).to_string().as_bytes());
    });
}

/// The response to a query: the known users with their state, and the unknown ids.
pub fn users<'a>(id: Option<u64>, known: impl Iterator<Item = &'a UserSnapshot>, unknown: Vec<&'a str>) -> String {
    frame("users", id, |object| {
        object.list("users", known, standing);
        ids(object, "unknown", unknown);
    })
}

/// The response to a subscription: where the changes continue, and which users were dropped from the subscription.
pub fn subscribed<'a>(
    id: Option<u64>,
    known: impl Iterator<Item = &'a UserSnapshot>,
    unknown: Vec<&'a str>,
    evicted: &'a [Box<str>],
) -> String {
    frame("subscribed", id, |object| {
        object.list("users", known, standing);
        ids(object, "unknown", unknown);
        ids(object, "evicted", evicted.iter().map(|user| &**user));
    })
}

pub fn change(update: &UserUpdate) -> String {
    frame("change", None, |object| {
        object
            .text("user", &update.user)
            .text("status", &update.after)
            .number("version", update.version)
            .number("at", update.at)
            .text("cause", &update.cause)
            .optional_text("custom_status", update.custom_status.as_deref())
            .list("devices", &update.devices, |out, device: &ChangedDevice| {
                Object::new(out)
                    .text("platform", &device.platform)
                    .text("before", &device.before)
                    .text("after", &device.after)
                    .end();
            });
    })
}

pub fn kicked(reason: KickReason) -> String {
    frame("kicked", None, |object| {
        object
            .text("reason", reason.name())
            .boolean("reconnect", Close::of_kick(reason).is_none_or(Close::may_come_back));
    })
}

/// The gateway is about to stop: the client reconnects with `resume` after this time.
pub fn reconnect(after_ms: u64) -> String {
    frame("reconnect", None, |object| {
        object.number("after_ms", after_ms);
    })
}

pub fn error(id: Option<u64>, code: &str, message: &str, retry_after_ms: Option<u64>) -> String {
    frame("error", id, |object| {
        object.text("code", code).text("message", message);
        if let Some(ms) = retry_after_ms {
            object.number("retry_after_ms", ms);
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_read_with_and_without_a_number() {
        assert_eq!(read(r#"{"type":"heartbeat"}"#), Ok((ClientMessage::Heartbeat, None)));
        let query = ClientMessage::Query {
            users: vec!["alice".to_owned()],
        };
        assert_eq!(
            read(r#"{"id":7,"users":["alice"],"type":"query","more":{}}"#),
            Ok((query, Some(7)))
        );
        let clear = ClientMessage::CustomStatus { text: None };
        assert_eq!(read(r#"{"type":"custom_status"}"#), Ok((clear.clone(), None)));
        assert_eq!(read(r#"{"type":"custom_status","text":null}"#), Ok((clear, None)));
    }

    #[test]
    fn what_is_no_frame_is_refused_with_a_sentence() {
        for text in [
            "",
            "[]",
            "{}",
            r#"{"type":"hello"}"#,
            r#"{"type":"heartbeat","id":-1}"#,
            r#"{"type":"query"}"#,
            r#"{"type":"query","users":[]}"#,
            r#"{"type":"query","users":[""]}"#,
            r#"{"type":"query","users":[7]}"#,
            r#"{"type":"custom_status","text":""}"#,
        ] {
            assert!(read(text).is_err(), "{text}");
        }
        let many = serde_json::json!({"type": "subscribe", "users": vec!["x"; 201]}).to_string();
        let said = read(&many).expect_err("too many").message;
        assert_eq!(said, "`users` must have 1 to 200 ids, not 201");
        for text in [r#"{"type":"launch","id":7}"#, r#"{"type":"query","users":[],"id":7}"#] {
            assert_eq!(read(text).expect_err("bad").id, Some(7), "{text}");
        }
    }

    #[test]
    fn every_code_is_used_once() {
        let mut codes: Vec<u16> = Close::ALL.into_iter().map(Close::code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Close::ALL.len());
    }
}
