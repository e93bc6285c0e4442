//! The outputs of the fold: changes, kicks, and ignored events (section 7).

use super::event::Ending;
use super::{Conn, Epoch, KickedBy, LogTime, LostBy, Offset, Partition, Status};

/// The id of an output: the record being folded, and a count from 0 over the changes and kicks of that record. Written
/// `{partition}-{offset}-{index}`.
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

    /// Returns the cause of this name, if there is one.
    pub fn named(name: &str) -> Option<Cause> {
        Cause::ALL.into_iter().find(|cause| cause.name() == name)
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

/// What changed about a user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    pub id: OutputId,
    /// Counts the partition's changes from 1 without a gap.
    pub seq: u64,
    pub user: Box<str>,
    /// Counts the user's changes from 1 without a gap.
    pub version: u64,
    /// The time from which the change holds.
    pub at: LogTime,
    /// The log time at which the change was found out.
    pub logged_at: LogTime,
    pub cause: Cause,
    /// The user's status before the change.
    pub before: Status,
    pub after: Status,
    /// Each device whose status changed: first the one that the event or firing is about, then by (platform, device).
    pub devices: Vec<DeviceChange>,
    /// The custom status after the change.
    pub custom_status: Option<Box<str>>,
    /// For a firing: the device's evidence. For an event: the event's own offset.
    pub evidence: Offset,
    /// None before [`Revision::REHEARSAL`](super::Revision::REHEARSAL).
    pub rehearsal: Option<Rehearsal>,
}

impl Change {
    /// Whether the status after it holds since it. If not, the status holds since an earlier change of the user.
    pub fn begins_status(&self) -> bool {
        self.before != self.after || self.version == 1
    }
}

/// What only the rehearsal of a revision has: how many changes the partition has given since it was raised. Null for what
/// was due by time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Rehearsal(pub Option<u64>);

/// One device whose status changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceChange {
    pub platform: Box<str>,
    pub device: Box<str>,
    /// The gateway of the connection it is on, or was on last.
    pub gateway: Box<str>,
    pub before: Status,
    pub after: Status,
}

/// Why a gateway has to close a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KickReason {
    Replaced,
    Displaced,
    Admin,
    Stale,
    Forgotten,
    /// Not a command to close: the gateway has to report whose connection it is.
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

/// A command to a gateway to close one connection or, with the reason `identify`, to report whose it is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kick {
    pub id: OutputId,
    pub gateway: Box<str>,
    pub epoch: Epoch,
    pub conn: Conn,
    /// The device whose connection it is; `None` if an `alive` record named only the connection.
    pub whose: Option<KickedDevice>,
    pub reason: KickReason,
    pub at: LogTime,
}

/// The device whose connection a kick is about.
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
    /// A connect for a connection that has ended already.
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

/// An event, or one part of it, that had no effect. It is counted and printed by `rollcall fold`, and not written to
/// any topic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ignored {
    pub offset: Offset,
    pub reason: IgnoreReason,
    pub part: Part,
}

/// The part of a record that was ignored.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Part {
    /// The whole event.
    Whole,
    /// The heartbeat with this index in a `heartbeats` record.
    Heartbeat(usize),
    /// The connection with this number in an `alive` record.
    Conn(Conn),
}

/// An output of the fold.
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
