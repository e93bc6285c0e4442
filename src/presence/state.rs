//! The state of a partition (section 5), and how users enter and leave memory.
//!
//! A [`State`] need not hold every user. Users without an online device may be evicted after the owner of the state has
//! saved them. They must be admitted again before a record is folded that names them, or at which they are due.
//! [`State::take_dirt`] returns what has changed since its last call.
//!
//! Users and gateways are in numbered slots, and devices refer to their gateway by its number. A [`UserImage`] is a
//! user outside of the state, with names instead of numbers.

use super::deadlines::{Deadlines, NEVER};
use super::ends::EarlyEnds;
use super::event::Ending;
use super::gateways::{GatewayId, Gateways};
use super::policy::Policy;
use super::rulebook::{PlatformId, Rulebook};
use super::users::{UserRef, Users};
use super::{Conn, Epoch, KickedBy, LogTime, LostBy, Offset, Partition, Revision, Status};

pub use super::ends::{EARLY_END_MS, EARLY_ENDS_MAX, EarlyEndImage};
pub use super::gateways::GATEWAY_FORGOTTEN_MS;
pub use super::image::{
    BeatTimes, DeviceImage, GatewayImage, KeptImage, PartitionImage, Phase, SessionImage, UserImage,
};
pub use super::table::HashSeed;

/// The number of a user's place in memory. It stays while the user is there and is reused later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(pub u32);

/// Everything that is remembered of one partition.
pub struct State {
    pub(super) partition: Partition,
    pub(super) time: Option<LogTime>,
    pub(super) offset: Option<Offset>,
    pub(super) grace_until: Option<LogTime>,
    pub(super) seq: u64,
    /// In force: as which records are folded and outputs encoded.
    pub(super) revision: Revision,
    /// How many changes there were since [`Revision::REHEARSAL`].
    pub(super) rehearsed: u64,
    pub(super) rules: Rulebook,
    pub(super) policy_since: Option<Offset>,
    pub(super) gateways: Gateways,
    pub(super) early_ends: EarlyEnds,
    pub(super) users: Users,
    pub(super) deadlines: Deadlines,
    /// How many changes and kicks the record being folded has given.
    pub(super) index: u64,
}

pub(super) struct User {
    pub id: Box<str>,
    pub version: u64,
    pub status: Status,
    pub since: LogTime,
    pub last_seen: LogTime,
    pub custom_status: Option<Box<str>>,
    /// The fields that few users have.
    pub marks: Option<Box<Marks>>,
    /// Sorted by (platform, device).
    pub devices: Vec<Device>,
    /// The time of the earliest timer that was set for this user and has not expired.
    pub armed: LogTime,
    pub dirt: Dirt,
    /// Whether the user is already among those that fire in this record.
    pub due: bool,
}

/// Fields that only few users have, beside status and devices.
#[derive(Default)]
pub(super) struct Marks {
    /// The custom status that was lost with the link, and until when it is kept.
    pub kept: Option<(Box<str>, LogTime)>,
    /// When the whole user was last kicked.
    pub kicked_at: Option<LogTime>,
    /// Whether the whole user was kicked and nobody has logged in since.
    pub barred: bool,
}

pub(super) struct Device {
    pub platform: PlatformId,
    pub device: Box<str>,
    pub link: Link,
    pub since: LogTime,
    pub state: DeviceState,
}

/// A connection, with the number of its gateway.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Link {
    pub gateway: GatewayId,
    pub epoch: Epoch,
    pub conn: Conn,
}

pub(super) struct Session {
    pub login_at: LogTime,
    pub last_seen: LogTime,
    pub evidence: Offset,
    pub client: Option<Box<str>>,
}

pub(super) enum DeviceState {
    Online {
        session: Session,
        heartbeat_by: LogTime,
        background_by: Option<LogTime>,
        linger: Option<(Ending, LogTime)>,
    },
    Away {
        session: Session,
        push: bool,
        lost_by: LostBy,
        until: LogTime,
    },
    Kicked {
        by: KickedBy,
        until: LogTime,
    },
}

impl User {
    pub fn new(id: &str) -> User {
        User {
            id: id.into(),
            version: 0,
            status: Status::Offline,
            since: LogTime(0),
            last_seen: LogTime(0),
            custom_status: None,
            marks: None,
            devices: Vec::new(),
            armed: NEVER,
            dirt: Dirt::Clean,
            due: false,
        }
    }

    pub fn greatest_status(&self) -> Status {
        self.devices.iter().map(Device::status).max().unwrap_or_default()
    }

    /// Returns the place of the device, or the place where it belongs.
    pub fn find(&self, rules: &Rulebook, platform: &str, device: &str) -> Result<usize, usize> {
        self.devices
            .binary_search_by(|entry| (rules.name(entry.platform), &*entry.device).cmp(&(platform, device)))
    }

    /// Returns the rare fields for writing.
    pub fn marks(&mut self) -> &mut Marks {
        self.marks.get_or_insert_default()
    }

    pub fn kicked_at(&self) -> Option<LogTime> {
        self.marks.as_ref()?.kicked_at
    }

    pub fn is_barred(&self) -> bool {
        self.marks.as_ref().is_some_and(|marks| marks.barred)
    }

    /// Stops keeping a custom status. Returns it and the time until which it would have been kept.
    pub fn take_kept(&mut self) -> Option<(Box<str>, LogTime)> {
        let marks = self.marks.as_mut()?;
        let kept = marks.kept.take();
        // Who is barred was kicked, so nothing is left. Users without marks can be compact.
        if marks.kicked_at.is_none() {
            self.marks = None;
        }
        kept
    }

    pub fn has_online_device(&self) -> bool {
        self.devices.iter().any(|device| device.status() == Status::Online)
    }
}

impl Device {
    pub fn status(&self) -> Status {
        match self.state {
            DeviceState::Online { .. } => Status::Online,
            DeviceState::Away { push: true, .. } => Status::PushOnline,
            DeviceState::Away { push: false, .. } | DeviceState::Kicked { .. } => Status::Offline,
        }
    }

    /// Returns `login_at` if the device is logged in, that is, online or away.
    pub fn login_at(&self) -> Option<LogTime> {
        match &self.state {
            DeviceState::Online { session, .. } | DeviceState::Away { session, .. } => Some(session.login_at),
            DeviceState::Kicked { .. } => None,
        }
    }

    /// Returns whether the device is online with a link that has not ended. A kick can close such a link, and a lost
    /// gateway ends it.
    pub fn has_open_link(&self) -> bool {
        match self.state {
            DeviceState::Online { linger, .. } => linger.is_none(),
            DeviceState::Away { .. } | DeviceState::Kicked { .. } => false,
        }
    }
}

/// How much of a user has changed since it was last saved.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Dirt {
    Clean,
    /// Only `last_seen`, `evidence` and the heartbeat deadline.
    Beats,
    Everything,
}

/// What has changed since the last call of [`State::take_dirt`].
#[derive(Default, Debug)]
pub struct Dirty {
    /// Users to be saved as a whole.
    pub users: Vec<Slot>,
    /// Users of whom only heartbeat times changed: [`UserImage::last_seen`] and the devices' `last_seen`, `evidence`
    /// and `heartbeat_by`.
    pub beats: Vec<Slot>,
    /// Forgotten users. If they exist again, they are among `users` too.
    pub forgotten: Vec<(Slot, Box<str>)>,
}

impl State {
    /// Creates an empty partition under its first policy, with a fixed hash seed. Only for logs without untrusted
    /// publishers.
    pub fn new(partition: Partition, policy: Policy) -> State {
        State::seeded(partition, policy, HashSeed::default())
    }

    /// Creates an empty partition under its first policy.
    pub fn seeded(partition: Partition, policy: Policy, seed: HashSeed) -> State {
        State {
            partition,
            time: None,
            offset: None,
            grace_until: None,
            seq: 0,
            revision: Revision::FIRST,
            rehearsed: 0,
            rules: Rulebook::new(policy),
            policy_since: None,
            gateways: Gateways::new(seed),
            early_ends: EarlyEnds::default(),
            users: Users::new(seed),
            deadlines: Deadlines::new(),
            index: 0,
        }
    }

    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// Returns the log time; `None` before the first record.
    pub fn time(&self) -> Option<LogTime> {
        self.time
    }

    /// Returns the offset of the last record folded.
    pub fn offset(&self) -> Option<Offset> {
        self.offset
    }

    /// Returns the number of changes so far.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    /// Returns the revision in force.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    pub fn policy(&self) -> &Policy {
        self.rules.policy()
    }

    /// Returns how many users are in memory.
    pub fn users_in_memory(&self) -> usize {
        self.users.len()
    }

    pub fn slot_of(&self, user: &str) -> Option<Slot> {
        self.users.find(user)
    }

    /// Returns every user in memory, in arbitrary order.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        self.users.slots()
    }

    /// Returns the id of a user in memory.
    pub fn user_id(&self, slot: Slot) -> Option<&str> {
        self.users.id(slot)
    }

    /// Calls `each` with every user in memory who has a device online on this connection, also a lingering one. A user may
    /// come twice. The order is arbitrary.
    pub fn each_user_on(&self, gateway: &str, epoch: Epoch, conn: Conn, mut each: impl FnMut(&str)) {
        let Some(id) = self.gateways.find(gateway) else { return };
        let link = Link {
            gateway: id,
            epoch,
            conn,
        };
        let mut found = Vec::new();
        self.gateways.on_connection(link, &mut found);
        for user in found.into_iter().filter_map(|slot| self.image(slot)) {
            let is_on = user.devices.iter().any(|device| {
                device.phase.status() == Status::Online
                    && (device.gateway, device.epoch, device.conn) == (gateway, epoch, conn)
            });
            if is_on {
                each(user.user);
            }
        }
    }

    /// Removes from memory a user whose state is kept elsewhere. Returns false and does nothing if the user has an
    /// online device or changes that [`State::take_dirt`] has not returned yet.
    pub fn evict(&mut self, slot: Slot) -> bool {
        let Some(user) = self.users.view(slot) else {
            return false;
        };
        if !self.users.is_clean(slot) || user.is_due() || user.has_online_device() {
            return false;
        }
        let Some(user) = self.users.remove(slot) else {
            return false;
        };
        for device in &user.devices {
            self.gateways.release(device.link.gateway);
        }
        true
    }

    /// Returns whether a user in memory has a device online, and so must stay in memory.
    pub fn has_online_device(&self, slot: Slot) -> bool {
        self.users.view(slot).is_some_and(UserRef::has_online_device)
    }

    /// Returns what has changed since the last call. All of it counts as saved from here on, and the slots of forgotten
    /// users may be reused.
    pub fn take_dirt(&mut self) -> Dirty {
        self.users.take_dirt()
    }

    /// Returns the users forgotten since the last call of [`State::take_dirt`], with the slots they had.
    pub fn forgotten(&self) -> impl Iterator<Item = &(Slot, Box<str>)> {
        self.users.forgotten().iter()
    }

    /// Returns how many users have to be saved as a whole or were forgotten since the last call of
    /// [`State::take_dirt`]. Users of whom only heartbeat times changed are not counted.
    pub fn changed_users(&self) -> usize {
        self.users.changed()
    }
}
