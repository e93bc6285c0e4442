//! The events of the input log (section 3).
//!
//! An [`Event`] is always valid: lengths and ranges were checked when its bytes were decoded, so the rules need not
//! handle malformed events. Text is borrowed from those bytes where possible, so a heartbeat allocates nothing.

use super::policy::Policy;
use super::{Conn, Epoch, Revision};
use std::borrow::Cow;

/// The bounds of section 3, in bytes of UTF-8 or in milliseconds, both ends included.
pub mod bounds {
    pub const USER_BYTES: (usize, usize) = (1, 128);
    pub const DEVICE_BYTES: (usize, usize) = (1, 128);
    pub const PLATFORM_BYTES: (usize, usize) = (1, 64);
    pub const GATEWAY_BYTES: (usize, usize) = (1, 64);
    pub const CLIENT_BYTES: (usize, usize) = (1, 256);
    pub const STATUS_TEXT_BYTES: (usize, usize) = (1, 100);
    pub const BEATS: (usize, usize) = (1, 10_000);
    /// The count of the numbers in `conns`.
    pub const CONNS: (usize, usize) = (1, 100_000);
    pub const REVISION: (u64, u64) = (1, (1 << 31) - 1);
    /// The greatest `epoch` and `conn`.
    pub const NUMBER_MAX: u64 = i64::MAX as u64;
    pub const TTL_MS_MAX: u64 = 86_400_000;
    /// The greatest record timestamp and `auth_at`.
    pub const TIMESTAMP_MAX: u64 = (1 << 53) - 1;
}

/// The device that an event is about: one installation or browser tab of a user.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceRef<'a> {
    pub user: Cow<'a, str>,
    pub platform: Cow<'a, str>,
    pub device: Cow<'a, str>,
}

/// One connection, as an event names it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConnRef<'a> {
    pub gateway: Cow<'a, str>,
    pub epoch: Epoch,
    pub conn: Conn,
}

/// One entry of a `heartbeats` record. Gateway and epoch are those of the record.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HeartbeatEntry<'a> {
    pub who: DeviceRef<'a>,
    pub conn: Conn,
}

/// Why a client connects.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Intent {
    /// A person or program logged in.
    Login,
    /// The client reconnected by itself.
    Resume,
}

/// How a connection ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// FIN, RST, page closed, process killed.
    Closed,
    /// The platform's own exit button.
    Exit,
}

/// The devices of a user whose login an operator's kick ends. A device is named only together with its platform.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Target<'a> {
    All,
    Platform(Cow<'a, str>),
    Device(Cow<'a, str>, Cow<'a, str>),
}

/// A record of the input log, decoded and valid.
#[derive(Clone, PartialEq, Debug)]
pub enum Event<'a> {
    Connect {
        who: DeviceRef<'a>,
        via: ConnRef<'a>,
        intent: Intent,
        /// Free text about the link (address, app and system version).
        client: Option<Cow<'a, str>>,
        /// When the user authenticated, in ms of the issuer's clock.
        auth_at: Option<u64>,
    },
    Heartbeat {
        who: DeviceRef<'a>,
        via: ConnRef<'a>,
    },
    Heartbeats {
        gateway: Cow<'a, str>,
        epoch: Epoch,
        beats: Vec<HeartbeatEntry<'a>>,
    },
    /// Heartbeats that name only the numbers of their connections.
    Alive {
        gateway: Cow<'a, str>,
        epoch: Epoch,
        /// Strictly increasing.
        conns: Vec<Conn>,
    },
    Background {
        who: DeviceRef<'a>,
        via: ConnRef<'a>,
    },
    Foreground {
        who: DeviceRef<'a>,
        via: ConnRef<'a>,
    },
    Disconnect {
        who: DeviceRef<'a>,
        via: ConnRef<'a>,
        reason: Ending,
    },
    Logout {
        who: DeviceRef<'a>,
        via: ConnRef<'a>,
    },
    Kick {
        user: Cow<'a, str>,
        target: Target<'a>,
    },
    CustomStatus {
        user: Cow<'a, str>,
        text: Option<Cow<'a, str>>,
    },
    Forget {
        user: Cow<'a, str>,
    },
    Lease {
        gateway: Cow<'a, str>,
        epoch: Epoch,
        ttl_ms: u64,
    },
    Policy {
        /// The completed policy of `document`.
        policy: Box<Policy>,
        /// The JSON text as it was published.
        document: Cow<'a, str>,
    },
    /// From this record on, records are folded and outputs encoded according to this revision. A revision that is not
    /// greater than the one in force only moves time. A revision that this program does not know must not be folded
    /// ([`Event::unknown_revision`]).
    Revision {
        revision: u32,
    },
    Tick,
}

/// The types of section 3, without what each one says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EventType {
    Connect,
    Heartbeat,
    Heartbeats,
    Alive,
    Background,
    Foreground,
    Disconnect,
    Logout,
    Kick,
    CustomStatus,
    Forget,
    Lease,
    Policy,
    Revision,
    Tick,
}

impl EventType {
    pub const ALL: [EventType; 15] = [
        EventType::Connect,
        EventType::Heartbeat,
        EventType::Heartbeats,
        EventType::Alive,
        EventType::Background,
        EventType::Foreground,
        EventType::Disconnect,
        EventType::Logout,
        EventType::Kick,
        EventType::CustomStatus,
        EventType::Forget,
        EventType::Lease,
        EventType::Policy,
        EventType::Revision,
        EventType::Tick,
    ];

    /// The `type` of section 3.
    pub fn name(self) -> &'static str {
        match self {
            EventType::Connect => "connect",
            EventType::Heartbeat => "heartbeat",
            EventType::Heartbeats => "heartbeats",
            EventType::Alive => "alive",
            EventType::Background => "background",
            EventType::Foreground => "foreground",
            EventType::Disconnect => "disconnect",
            EventType::Logout => "logout",
            EventType::Kick => "kick",
            EventType::CustomStatus => "custom_status",
            EventType::Forget => "forget",
            EventType::Lease => "lease",
            EventType::Policy => "policy",
            EventType::Revision => "revision",
            EventType::Tick => "tick",
        }
    }

    /// The type that a record names, if there is such a type.
    pub fn named(name: &str) -> Option<EventType> {
        EventType::ALL.into_iter().find(|known| known.name() == name)
    }
}

// A type that is missing in the list would be refused by every reader.
const _: () = assert!(EventType::ALL.len() == EventType::Tick as usize + 1);

impl Event<'_> {
    /// Returns the user whom the record is about and whose partition it belongs to. `None` for events about a whole
    /// partition, for `heartbeats`, which names many users, and for `alive`, which names connections.
    pub fn user(&self) -> Option<&str> {
        match self {
            Event::Connect { who, .. }
            | Event::Heartbeat { who, .. }
            | Event::Background { who, .. }
            | Event::Foreground { who, .. }
            | Event::Disconnect { who, .. }
            | Event::Logout { who, .. } => Some(&who.user),
            Event::Kick { user, .. } | Event::CustomStatus { user, .. } | Event::Forget { user } => Some(user),
            Event::Heartbeats { .. }
            | Event::Alive { .. }
            | Event::Lease { .. }
            | Event::Policy { .. }
            | Event::Revision { .. }
            | Event::Tick => None,
        }
    }

    /// Calls `each` with every user whom the fold of this event reads or writes by name.
    pub fn for_each_user<'e>(&'e self, mut each: impl FnMut(&'e str)) {
        match self {
            Event::Heartbeats { beats, .. } => beats.iter().for_each(|beat| each(&beat.who.user)),
            Event::Connect { .. }
            | Event::Heartbeat { .. }
            | Event::Background { .. }
            | Event::Foreground { .. }
            | Event::Disconnect { .. }
            | Event::Logout { .. }
            | Event::Kick { .. }
            | Event::CustomStatus { .. }
            | Event::Forget { .. }
            | Event::Alive { .. }
            | Event::Lease { .. }
            | Event::Policy { .. }
            | Event::Revision { .. }
            | Event::Tick => self.user().into_iter().for_each(each),
        }
    }

    pub fn event_type(&self) -> EventType {
        match self {
            Event::Connect { .. } => EventType::Connect,
            Event::Heartbeat { .. } => EventType::Heartbeat,
            Event::Heartbeats { .. } => EventType::Heartbeats,
            Event::Alive { .. } => EventType::Alive,
            Event::Background { .. } => EventType::Background,
            Event::Foreground { .. } => EventType::Foreground,
            Event::Disconnect { .. } => EventType::Disconnect,
            Event::Logout { .. } => EventType::Logout,
            Event::Kick { .. } => EventType::Kick,
            Event::CustomStatus { .. } => EventType::CustomStatus,
            Event::Forget { .. } => EventType::Forget,
            Event::Lease { .. } => EventType::Lease,
            Event::Policy { .. } => EventType::Policy,
            Event::Revision { .. } => EventType::Revision,
            Event::Tick => EventType::Tick,
        }
    }

    /// Returns the `type` of section 3.
    pub fn name(&self) -> &'static str {
        self.event_type().name()
    }

    /// Returns the revision to which the event raises the partition, if it is later than the newest one known. The fold
    /// must stop before such a record.
    pub fn unknown_revision(&self, newest: Revision) -> Option<Revision> {
        match self {
            Event::Revision { revision } if *revision > newest.0 => Some(Revision(*revision)),
            Event::Revision { .. }
            | Event::Connect { .. }
            | Event::Heartbeat { .. }
            | Event::Heartbeats { .. }
            | Event::Alive { .. }
            | Event::Background { .. }
            | Event::Foreground { .. }
            | Event::Disconnect { .. }
            | Event::Logout { .. }
            | Event::Kick { .. }
            | Event::CustomStatus { .. }
            | Event::Forget { .. }
            | Event::Lease { .. }
            | Event::Policy { .. }
            | Event::Tick => None,
        }
    }
}
