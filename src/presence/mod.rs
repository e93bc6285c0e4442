//! The core: presence as a pure fold over a log.
//!
//! It maps values to values, without I/O, async, clock, randomness or hash-map order: the same records give the same
//! outputs, byte for byte, on every machine and at any time. It imports only `std`. The rules are those of
//! `docs/rules.md`; section numbers in this module refer to it.
//!
//! This file has the vocabulary. [`event`] defines the events, [`policy`] the rules' data, [`state`] what is remembered
//! (with its gateways, rulebook and images), [`change`] the outputs, [`deadlines`] which devices are due, and [`fold`]
//! the rules themselves.

pub mod ahead;
pub mod change;
mod compact;
pub mod deadlines;
mod ends;
pub mod event;
pub mod fold;
mod gateways;
mod image;
mod links;
#[cfg(test)]
pub mod planted;
pub mod policy;
mod rulebook;
mod rules;
pub mod state;
mod table;
mod texts;
mod timers;
mod users;

use std::fmt;

/// A revision of rules and encodings (section 3, `revision`). A partition begins with the first and only ever goes up.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Revision(pub u32);

impl Revision {
    pub const FIRST: Revision = Revision(1);
    /// The newest that this version knows.
    pub const NEWEST: Revision = Revision(1);
    /// A revision that no version knows by itself: only tests raise a partition to it, to show that raising works. From it on
    /// a change has one more field ([`change::Rehearsal`]), a store one more number, and a custom status is taken from a
    /// user who is not online but push_online. The real revision 2 will take its place.
    pub const REHEARSAL: Revision = Revision(2);
}

impl Default for Revision {
    fn default() -> Revision {
        Revision::FIRST
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Log time in milliseconds: the greatest record timestamp of a partition so far (section 2). The only clock of the
/// core.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct LogTime(pub u64);

/// The position of a record in its partition. Offsets grow and may have gaps.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Offset(pub u64);

/// The number of a partition.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Partition(pub u32);

/// A number that grows with each start of a gateway process; 0…2^63−1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Epoch(pub u64);

/// The number of a connection within an epoch of a gateway, never reused there; 0…2^63−1.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Conn(pub u64);

/// The status of a device. A user's status is the greatest one of its devices.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Status {
    #[default]
    Offline,
    PushOnline,
    Online,
}

impl Status {
    pub const ALL: [Status; 3] = [Status::Offline, Status::PushOnline, Status::Online];

    pub fn name(self) -> &'static str {
        match self {
            Status::Offline => "offline",
            Status::PushOnline => "push_online",
            Status::Online => "online",
        }
    }

    /// Returns the status of this name, if there is one.
    pub fn named(name: &str) -> Option<Status> {
        Status::ALL.into_iter().find(|status| status.name() == name)
    }
}

/// How a device lost its link (section 5, away).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LostBy {
    Closed,
    Exit,
    Background,
    Timeout,
    GatewayLost,
}

impl LostBy {
    pub const ALL: [LostBy; 5] = [
        LostBy::Closed,
        LostBy::Exit,
        LostBy::Background,
        LostBy::Timeout,
        LostBy::GatewayLost,
    ];

    pub fn name(self) -> &'static str {
        match self {
            LostBy::Closed => "closed",
            LostBy::Exit => "exit",
            LostBy::Background => "background",
            LostBy::Timeout => "timeout",
            LostBy::GatewayLost => "gateway_lost",
        }
    }
}

/// Why a device is kicked, that is, refused until it logs in (section 5, kicked).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KickedBy {
    Displaced,
    Admin,
}

impl KickedBy {
    pub fn name(self) -> &'static str {
        match self {
            KickedBy::Displaced => "displaced",
            KickedBy::Admin => "admin",
        }
    }
}

impl LogTime {
    /// Returns the time `ms` later. Times stay far below 2^63: timestamps are below 2^53 and spans at most ten years.
    pub fn plus(self, ms: u64) -> LogTime {
        LogTime(self.0.saturating_add(ms))
    }
}

impl fmt::Display for LogTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Offset {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
