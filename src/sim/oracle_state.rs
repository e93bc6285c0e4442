//! The state of the oracle: the state of section 5 of `docs/rules.md`, in the same simple form.

use crate::presence::event::{ConnRef, DeviceRef};
use crate::presence::{Conn, Epoch, KickedBy, LostBy, Offset, Status};
use std::sync::Arc;

/// A name. Its text is shared between copies, since a user is copied at every event.
pub(super) type Name = Arc<str>;

/// (platform, device): identifies a device within its user.
pub(super) type Key = (Name, Name);

#[derive(Clone, Debug)]
pub(super) struct Gateway {
    pub epoch: Epoch,
    pub ended: bool,
    /// The `until` of the last lease, as it was set.
    pub until: u64,
    /// Whether that lease is still active.
    pub active: bool,
}

#[derive(Clone, Debug, Default)]
pub(super) struct User {
    pub version: u64,
    pub since: u64,
    pub last_seen: u64,
    pub custom_status: Option<Name>,
    /// A custom status that was lost with the link, and the time until which a return restores it.
    pub kept: Option<(Name, u64)>,
    /// When the whole user was last kicked.
    pub kicked_at: Option<u64>,
    /// Whether nobody has logged in or shown a newer proof of the user's identity since then.
    pub barred: bool,
    pub devices: Devices,
}

/// The devices of a user, in order. A list, since a user has few devices and is copied at every event.
#[derive(Clone, Debug, Default)]
pub(super) struct Devices(pub Vec<(Key, Device)>);

#[derive(Clone, Debug)]
pub(super) struct Device {
    /// The connection that the device is on, or was on last.
    pub link: Link,
    pub since: u64,
    pub state: State,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Link {
    pub gateway: Name,
    pub epoch: Epoch,
    pub conn: Conn,
}

/// The end of a connection that came before its connect, or may have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct EarlyEnd {
    pub link: Link,
    pub came: u64,
}

/// The data of a device that is logged in, online or away.
#[derive(Clone, Debug)]
pub(super) struct Login {
    pub client: Option<Name>,
    pub login_at: u64,
    pub last_seen: u64,
    pub evidence: Offset,
}

#[derive(Clone, Debug)]
pub(super) enum State {
    Online {
        login: Login,
        heartbeat: u64,
        background: Option<u64>,
        linger: Option<(LostBy, u64)>,
    },
    Away {
        login: Login,
        status: Status,
        lost_by: LostBy,
        until: u64,
    },
    Kicked {
        reason: KickedBy,
        until: u64,
    },
}

impl Devices {
    pub fn find(&self, key: &Key) -> Result<usize, usize> {
        self.0.binary_search_by(|(other, _)| other.cmp(key))
    }

    pub fn get(&self, key: &Key) -> Option<&Device> {
        self.find(key).ok().map(|place| &self.0[place].1)
    }

    pub fn get_mut(&mut self, key: &Key) -> Option<&mut Device> {
        self.find(key).ok().map(|place| &mut self.0[place].1)
    }

    pub fn insert(&mut self, key: Key, device: Device) {
        match self.find(&key) {
            Ok(place) => self.0[place].1 = device,
            Err(place) => self.0.insert(place, (key, device)),
        }
    }

    pub fn remove(&mut self, key: &Key) -> Option<Device> {
        self.find(key).ok().map(|place| self.0.remove(place).1)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Device)> {
        self.0.iter().map(|(key, device)| (key, device))
    }

    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.iter().map(|(key, _)| key)
    }

    pub fn values(&self) -> impl Iterator<Item = &Device> {
        self.iter().map(|(_, device)| device)
    }
}

impl User {
    pub fn status(&self) -> Status {
        self.devices
            .values()
            .map(Device::status)
            .max()
            .unwrap_or(Status::Offline)
    }
}

impl Device {
    pub fn status(&self) -> Status {
        match &self.state {
            State::Online { .. } => Status::Online,
            State::Away { status, .. } => *status,
            State::Kicked { .. } => Status::Offline,
        }
    }

    /// Returns the login of a device that is logged in, which means online or away.
    pub fn login(&self) -> Option<&Login> {
        match &self.state {
            State::Online { login, .. } | State::Away { login, .. } => Some(login),
            State::Kicked { .. } => None,
        }
    }

    /// Returns whether there is a link that a gateway could be asked to close, or that could be lost.
    pub fn has_link(&self) -> bool {
        matches!(self.state, State::Online { linger: None, .. })
    }
}

impl Link {
    pub fn of(via: &ConnRef<'_>) -> Link {
        Link {
            gateway: name_of(&via.gateway),
            epoch: via.epoch,
            conn: via.conn,
        }
    }
}

pub(super) fn name_of(text: &str) -> Name {
    Arc::from(text)
}

pub(super) fn key_of(who: &DeviceRef<'_>) -> Key {
    (name_of(&who.platform), name_of(&who.device))
}
