//! How a connection ends, and what of users and changes goes into a frame. The frames themselves are in
//! [`api::frames`](crate::api::frames).

use super::uplink::{UserSnapshot, UserUpdate};
use crate::api::frames::{ServerMessage, ShownDevice, ShownDeviceChange, ShownUser};
use crate::presence::change::KickReason;
use tokio_tungstenite::tungstenite::error::{Error as WsError, ProtocolError};

/// Why the gateway closes a connection. The codes are documented in `docs/gateway.md`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Close {
    LoggedOut,
    Protocol,
    NotText,
    NotUtf8,
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
    pub const ALL: [Close; 18] = [
        Close::LoggedOut,
        Close::Protocol,
        Close::NotText,
        Close::NotUtf8,
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
            Close::Protocol => 1002,
            Close::NotText => 1003,
            Close::NotUtf8 => 1007,
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
            Close::Protocol => "protocol_error",
            Close::NotText => "not_text",
            Close::NotUtf8 => "not_utf8",
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
            // What arrived was not what a client sends; a proxy may have damaged it.
            Close::Protocol | Close::NotUtf8 => true,
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
    /// The close code for bytes that are no valid WebSocket messages; `None` if the connection itself failed or ended.
    pub fn of_error(error: &WsError) -> Option<Close> {
        match error {
            WsError::Capacity(_) => Some(Close::TooBig),
            WsError::Utf8(_) => Some(Close::NotUtf8),
            WsError::Protocol(ProtocolError::ResetWithoutClosingHandshake | ProtocolError::SendAfterClosing) => None,
            WsError::Protocol(_) => Some(Close::Protocol),
            _ => None,
        }
    }

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

/// What clients see of users.
pub fn states<'a>(users: impl IntoIterator<Item = &'a UserSnapshot>) -> Vec<ShownUser<'a>> {
    users.into_iter().map(state).collect()
}

fn state(snapshot: &UserSnapshot) -> ShownUser<'_> {
    let UserSnapshot {
        user,
        version,
        status,
        since,
        custom_status,
        devices,
        // The connection keeps it, to know which changes are in the state.
        as_of: _,
    } = snapshot;
    let devices = devices.iter().map(|device| ShownDevice {
        platform: &device.platform,
        status: &device.status,
    });
    ShownUser {
        user,
        status,
        version: *version,
        since: *since,
        custom_status: custom_status.as_deref(),
        devices: devices.collect(),
    }
}

pub fn change(update: &UserUpdate) -> String {
    let devices = update.devices.iter().map(|device| ShownDeviceChange {
        platform: &device.platform,
        before: &device.before,
        after: &device.after,
    });
    let change = ServerMessage::Change {
        user: &update.user,
        status: &update.after,
        version: update.version,
        at: update.at,
        cause: &update.cause,
        custom_status: update.custom_status.as_deref(),
        devices: devices.collect(),
    };
    change.json()
}

pub fn kicked(reason: KickReason) -> String {
    let kicked = ServerMessage::Kicked {
        reason: reason.name(),
        reconnect: Close::of_kick(reason).is_none_or(Close::may_come_back),
    };
    kicked.json()
}

pub fn error(id: Option<u64>, code: &str, message: &str, retry_after_ms: Option<u64>) -> String {
    let error = ServerMessage::Error {
        id,
        code,
        message,
        retry_after_ms,
    };
    error.json()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_used_once() {
        let mut codes: Vec<u16> = Close::ALL.into_iter().map(Close::code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), Close::ALL.len());
    }
}
