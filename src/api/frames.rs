//! The frames of the gateway's WebSockets: what a client says, and what it gets. Each text frame is one JSON object; its
//! `type` says which message it is. The reference is `docs/gateway.md`.

use crate::presence::event::bounds::STATUS_TEXT_BYTES;
use serde::{Deserialize, Serialize};
use std::ops::RangeInclusive;

/// How many users one query or subscription may name. The maximum is also how many users a connection may be subscribed
/// to.
pub const USERS: RangeInclusive<usize> = 1..=200;
const USER_BYTES_MAX: usize = 128;

/// A message from a client.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
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

impl ClientMessage {
    /// Writes the frame, without a number.
    pub fn json(&self) -> String {
        // It cannot fail: there is no map, and no value that refuses.
        serde_json::to_string(self).unwrap_or_default()
    }
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

/// A message to a client. `id` is the number of the client's message that it is the response to, if that had one.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ServerMessage<'a> {
    /// The first frame: what a client needs to know about its connection.
    Hello {
        user: &'a str,
        gateway: &'a str,
        epoch: u64,
        conn: u64,
        heartbeat_ms: u64,
        timeout_ms: u64,
        /// On a quiet link the gateway sends something at this interval.
        ping_ms: u64,
    },
    /// The response to a heartbeat, which shows the client that its link works in both directions.
    Alive,
    /// The response to a ping.
    Pong {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
    },
    /// The response to a message that has no other response: the event is in the log.
    Done {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
    },
    /// The response to a query.
    Users {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        /// The users that are known.
        users: Vec<ShownUser<'a>>,
        unknown: Vec<&'a str>,
    },
    /// The response to a subscription: the state after which the changes continue.
    Subscribed {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        users: Vec<ShownUser<'a>>,
        unknown: Vec<&'a str>,
        /// Whom the connection is no longer subscribed to, because it has too many.
        evicted: Vec<&'a str>,
    },
    /// A change of a user to whom the connection is subscribed.
    Change {
        user: &'a str,
        status: &'a str,
        version: u64,
        /// In ms of log time.
        at: u64,
        cause: &'a str,
        custom_status: Option<&'a str>,
        devices: Vec<ShownDeviceChange<'a>>,
    },
    /// The connection ends, and why.
    Kicked {
        reason: &'a str,
        /// Whether the client may reconnect by itself.
        reconnect: bool,
    },
    /// The gateway is about to stop: the client reconnects with `resume` after this time.
    Reconnect { after_ms: u64 },
    Error {
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<u64>,
        code: &'a str,
        message: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        retry_after_ms: Option<u64>,
    },
}

/// A user, as clients of a gateway see them.
#[derive(Debug, Serialize)]
pub struct ShownUser<'a> {
    pub user: &'a str,
    pub status: &'a str,
    pub version: u64,
    /// In ms of log time.
    pub since: u64,
    pub custom_status: Option<&'a str>,
    pub devices: Vec<ShownDevice<'a>>,
}

#[derive(Debug, Serialize)]
pub struct ShownDevice<'a> {
    pub platform: &'a str,
    pub status: &'a str,
}

#[derive(Debug, Serialize)]
pub struct ShownDeviceChange<'a> {
    pub platform: &'a str,
    pub before: &'a str,
    pub after: &'a str,
}

impl ServerMessage<'_> {
    /// Writes the frame.
    pub fn json(&self) -> String {
        // It cannot fail: there is no map, and no value that refuses.
        serde_json::to_string(self).unwrap_or_default()
    }
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
    fn the_number_comes_after_the_type_and_only_if_there_is_one() {
        assert_eq!(ServerMessage::Alive.json(), r#"{"type":"alive"}"#);
        assert_eq!(ServerMessage::Done { id: None }.json(), r#"{"type":"done"}"#);
        let error = ServerMessage::Error {
            id: Some(7),
            code: "bad_frame",
            message: "\"x\"",
            retry_after_ms: None,
        };
        let written = r#"{"type":"error","id":7,"code":"bad_frame","message":"\"x\""}"#;
        assert_eq!(error.json(), written);
        let users = ServerMessage::Users {
            id: None,
            users: vec![ShownUser {
                user: "alice",
                status: "online",
                version: 1,
                since: 2,
                custom_status: None,
                devices: vec![ShownDevice {
                    platform: "web",
                    status: "online",
                }],
            }],
            unknown: vec!["bob"],
        };
        let written = concat!(
            r#"{"type":"users","users":[{"user":"alice","status":"online","version":1,"since":2,"custom_status":null,"#,
            r#""devices":[{"platform":"web","status":"online"}]}],"unknown":["bob"]}"#
        );
        assert_eq!(users.json(), written);
    }
}
