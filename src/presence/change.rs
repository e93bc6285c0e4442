//! What is told: changes, kicks, and events that were ignored (section 7).

use super::event::Ending;
use super::{Conn, Epoch, KickedBy, LogTime, LostBy, Offset, Partition, Status};

/// Where an output stands: the record being folded, and a count from 0 over the changes and kicks that it gives.
/// Written `{partition}-{offset}-{index}`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OutputId {
    pub partition: Partition,
    pub offset: Offset,
    pub index: u64,
}

/// Why a user's presence changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    Login,
    Resume,
    Revive,
    Logout,
    Closed,
    Exit,
    Background,
    Timeout,
    GatewayLost,
    PushExpired,
    Kicked,
    CustomStatus,
    Forgotten,
}

impl Cause {
    /// In the order of section 7.
    pub const ALL: [Cause; 13] = [
        Cause::Login,
        Cause::Resume,
        Cause::Revive,
        Cause::Logout,
        Cause::Closed,
        Cause::Exit,
        Cause::Background,
        Cause::Timeout,
        Cause::GatewayLost,
        Cause::PushExpired,
        Cause::Kicked,
        Cause::CustomStatus,
        Cause::Forgotten,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Cause::Login => "login",
            Cause::Resume => "resume",
            Cause::Revive => "revive",
            Cause::Logout => "logout",
            Cause::Closed => "closed",
            Cause::Exit => "exit",
            Cause::Background => "background",
            Cause::Timeout => "timeout",
            Cause::GatewayLost => "gateway_lost",
            Cause::PushExpired => "push_expired",
            Cause::Kicked => "kicked",
            Cause::CustomStatus => "custom_status",
            Cause::Forgotten => "forgotten",
        }
    }
}

impl From<LostBy> for Cause {
    fn from(lost_by: LostBy) -> Cause {
        match lost_by {
            LostBy::Closed => Cause::Closed,
            LostBy::Exit => Cause::Exit,
            LostBy::Background => Cause::Background,
            LostBy::Timeout => Cause::Timeout,
            LostBy::GatewayLost => Cause::GatewayLost,
        }
    }
}

impl From<Ending> for LostBy {
    fn from(ending: Ending) -> LostBy {
        match ending {
            Ending::Closed => LostBy::Closed,
            Ending::Exit => LostBy::Exit,
        }
    }
}

/// What became different about a user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    pub id: OutputId,
    /// Counts the partition's changes from 1 without a gap.
    pub seq: u64,
    pub user: Box<str>,
    /// Counts the user's changes from 1 without a gap.
    pub version: u64,
    /// When it holds from.
    pub at: LogTime,
    /// The log time at which it was found out.
    pub logged_at: LogTime,
    pub cause: Cause,
    /// The user's status.
    pub before: Status,
    pub after: Status,
    /// Each device whose status changed: first the one that the event or firing is about, then by (platform, device).
    pub devices: Vec<DeviceChange>,
    /// The text after.
    pub custom_status: Option<Box<str>>,
    /// For a firing: the device's evidence; for what an event does: the event's own offset.
    pub evidence: Offset,
}

/// One device whose status changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceChange {
    pub platform: Box<str>,
    pub device: Box<str>,
    /// Of the connection it is on, or was on last.
    pub gateway: Box<str>,
    pub before: Status,
    pub after: Status,
}

/// Why a gateway is to close a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KickReason {
    Replaced,
    Displaced,
    Admin,
    Stale,
    Forgotten,
    /// Not an order to close: the gateway is to say whose connection it is.
    Identify,
}

impl KickReason {
    /// In the order of section 7.
    pub const ALL: [KickReason; 6] = [
        KickReason::Replaced,
        KickReason::Displaced,
        KickReason::Admin,
        KickReason::Stale,
        KickReason::Forgotten,
        KickReason::Identify,
    ];

    pub fn name(self) -> &'static str {
        match self {
            KickReason::Replaced => "replaced",
            KickReason::Displaced => "displaced",
            KickReason::Admin => "admin",
            KickReason::Stale => "stale",
            KickReason::Forgotten => "forgotten",
            KickReason::Identify => "identify",
        }
    }
}

impl From<KickedBy> for KickReason {
    fn from(kicked_by: KickedBy) -> KickReason {
        match kicked_by {
            KickedBy::Displaced => KickReason::Displaced,
            KickedBy::Admin => KickReason::Admin,
        }
    }
}

/// An order to a gateway to close one connection, or, for the reason `identify`, to say whose it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kick {
    pub id: OutputId,
    pub gateway: Box<str>,
    pub epoch: Epoch,
    pub conn: Conn,
    /// Whose connection it is; none where an `alive` record named only the connection.
    pub whose: Option<KickedDevice>,
    pub reason: KickReason,
    pub at: LogTime,
}

/// Whose connection a kick is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KickedDevice {
    pub user: Box<str>,
    pub platform: Box<str>,
    pub device: Box<str>,
}

/// Why an event, or one part of it, had no effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum IgnoreReason {
    UnknownPlatform,
    StaleEpoch,
    Duplicate,
    Superseded,
    Kicked,
    UnknownConnection,
    Closed,
    UnknownUser,
    NoEffect,
    NotOnline,
    PlatformRemoved,
    /// A connect of a connection that has ended already.
    Ended,
}

impl IgnoreReason {
    /// In the order of section 7.
    pub const ALL: [IgnoreReason; 12] = [
        IgnoreReason::UnknownPlatform,
        IgnoreReason::StaleEpoch,
        IgnoreReason::Duplicate,
        IgnoreReason::Superseded,
        IgnoreReason::Kicked,
        IgnoreReason::UnknownConnection,
        IgnoreReason::Closed,
        IgnoreReason::UnknownUser,
        IgnoreReason::NoEffect,
        IgnoreReason::NotOnline,
        IgnoreReason::PlatformRemoved,
        IgnoreReason::Ended,
    ];

    pub fn name(self) -> &'static str {
        match self {
            IgnoreReason::UnknownPlatform => "unknown_platform",
            IgnoreReason::StaleEpoch => "stale_epoch",
            IgnoreReason::Duplicate => "duplicate",
            IgnoreReason::Superseded => "superseded",
            IgnoreReason::Kicked => "kicked",
            IgnoreReason::UnknownConnection => "unknown_connection",
            IgnoreReason::Closed => "closed",
            IgnoreReason::UnknownUser => "unknown_user",
            IgnoreReason::NoEffect => "no_effect",
            IgnoreReason::NotOnline => "not_online",
            IgnoreReason::PlatformRemoved => "platform_removed",
            IgnoreReason::Ended => "ended",
        }
    }
}

/// An event, or one part of it, that had no effect. Not written to any topic; counted, and printed by `rollcall fold`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ignored {
    pub offset: Offset,
    pub reason: IgnoreReason,
    pub part: Part,
}

/// What of a record was ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The whole event.
    Whole,
    /// The beat with this index in a `heartbeats` record.
    Heartbeat(usize),
    /// The connection with this number in an `alive` record.
    Conn(Conn),
}

/// What a fold gives, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    Change(Change),
    Kick(Kick),
    Ignored(Ignored),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_and_reasons_are_listed_in_the_order_of_their_numbers() {
        let causes = Cause::ALL.map(|cause| cause as usize);
        let kicks = KickReason::ALL.map(|reason| reason as usize);
        let ignored = IgnoreReason::ALL.map(|reason| reason as usize);
        assert!(causes.into_iter().eq(0..causes.len()));
        assert!(kicks.into_iter().eq(0..kicks.len()));
        assert!(ignored.into_iter().eq(0..ignored.len()));
    }
}
