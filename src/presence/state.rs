//! What is remembered of a partition (section 5), and how it enters and leaves memory.
//!
//! A [`State`] need not hold every user: those without an online device may be evicted when the keeper of the rest has
//! saved them, as long as they are admitted again before a record that names them, or at which they are due, is
//! folded. What changed since it was last asked is told by [`State::take_dirt`].
//!
//! Users and gateways live in numbered slots, devices name their gateway by its number; an [`UserImage`] is a user
//! outside, with everything by name.

use super::deadlines::{Deadlines, NEVER};
use super::ends::EarlyEnds;
use super::event::Ending;
use super::gateways::{GatewayId, Gateways};
use super::policy::Policy;
use super::rulebook::{PlatformId, Rulebook};
use super::table::{Named, Table};
use super::{Conn, Epoch, KickedBy, LogTime, LostBy, Offset, Partition, Status};

pub use super::ends::{EARLY_END_MS, EARLY_ENDS_MAX, EarlyEndImage};
pub use super::gateways::GATEWAY_FORGOTTEN_MS;
pub use super::image::{
    BeatTimes, DeviceImage, GatewayImage, KeptImage, PartitionImage, Phase, SessionImage, UserImage,
};
pub use super::table::HashSeed;

/// The number of a user's place in memory. Stays while the user is there; used again later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(pub u32);

/// All that is remembered of one partition.
pub struct State {
    pub(super) partition: Partition,
    pub(super) time: Option<LogTime>,
    pub(super) offset: Option<Offset>,
    pub(super) grace_until: Option<LogTime>,
    pub(super) seq: u64,
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
    /// What few users have.
    pub marks: Option<Box<Marks>>,
    /// By (platform, device).
    pub devices: Vec<Device>,
    /// The time of the earliest timer that was set for this user and has not come up.
    pub armed: LogTime,
    pub dirt: Dirt,
    /// Already among those that fire in this record.
    pub due: bool,
}

/// What is remembered of a user beside status and devices, for those of whom there is any.
#[derive(Default)]
pub(super) struct Marks {
    /// The custom status that was lost with the link, and until when it is kept.
    pub kept: Option<(Box<str>, LogTime)>,
    /// When the whole user was kicked last.
    pub kicked_at: Option<LogTime>,
    /// Kicked as a whole, and nobody has logged in since.
    pub barred: bool,
}

pub(super) struct Device {
    pub platform: PlatformId,
    pub device: Box<str>,
    pub link: Link,
    pub since: LogTime,
    pub state: DeviceState,
}

/// A connection, with its gateway by number.
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

impl Named for User {
    fn name(&self) -> &str {
        &self.id
    }
}

impl User {
    fn new(id: &str) -> User {
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

    /// Where the device is, or else where it belongs.
    pub fn find(&self, rules: &Rulebook, platform: &str, device: &str) -> Result<usize, usize> {
        self.devices
            .binary_search_by(|entry| (rules.name(entry.platform), &*entry.device).cmp(&(platform, device)))
    }

    /// To write what few users have.
    pub fn marks(&mut self) -> &mut Marks {
        self.marks.get_or_insert_default()
    }

    pub fn kicked_at(&self) -> Option<LogTime> {
        self.marks.as_ref()?.kicked_at
    }

    pub fn is_barred(&self) -> bool {
        self.marks.as_ref().is_some_and(|marks| marks.barred)
    }

    /// Ends the keeping of a custom status, and gives it with the time until which it was to be kept.
    pub fn take_kept(&mut self) -> Option<(Box<str>, LogTime)> {
        self.marks.as_mut()?.kept.take()
    }

    fn has_online_device(&self) -> bool {
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

    /// Logged in, when `login_at` is known: online or away.
    pub fn login_at(&self) -> Option<LogTime> {
        match &self.state {
            DeviceState::Online { session, .. } | DeviceState::Away { session, .. } => Some(session.login_at),
            DeviceState::Kicked { .. } => None,
        }
    }

    /// Online with a link that has not ended: what a kick can close and a lost gateway can take.
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

/// What changed since it was last asked.
#[derive(Default, Debug)]
pub struct Dirty {
    /// To be saved whole.
    pub users: Vec<Slot>,
    /// Of these only the times of [`UserImage::last_seen`], `last_seen`, `evidence` and `heartbeat_by`.
    pub beats: Vec<Slot>,
    /// Forgotten; they may exist again and then are among `users` too.
    pub forgotten: Vec<(Slot, Box<str>)>,
}

pub(super) struct Users {
    pub table: Table<User>,
    dirty: Vec<Slot>,
    beats: Vec<Slot>,
    forgotten: Vec<(Slot, Box<str>)>,
}

impl Users {
    fn new(seed: HashSeed) -> Users {
        Users {
            table: Table::new(seed),
            dirty: Vec::new(),
            beats: Vec::new(),
            forgotten: Vec::new(),
        }
    }

    pub fn find(&self, id: &str) -> Option<Slot> {
        self.table.find(id).map(Slot)
    }

    /// As [`Users::find`] for the id of this hash, but perhaps somebody else.
    pub fn likely(&self, hash: u32) -> Option<Slot> {
        self.table.likely(hash).map(Slot)
    }

    pub fn get(&self, slot: Slot) -> Option<&User> {
        self.table.get(slot.0)
    }

    /// To change something other than what [`Users::beat`] is for.
    pub fn change(&mut self, slot: Slot) -> Option<&mut User> {
        let user = self.table.get_mut(slot.0)?;
        if user.dirt != Dirt::Everything {
            user.dirt = Dirt::Everything;
            self.dirty.push(slot);
        }
        Some(user)
    }

    /// To change `last_seen`, `evidence` and the heartbeat deadline.
    pub fn beat(&mut self, slot: Slot) -> Option<&mut User> {
        let user = self.table.get_mut(slot.0)?;
        if user.dirt == Dirt::Clean {
            user.dirt = Dirt::Beats;
            self.beats.push(slot);
        }
        Some(user)
    }

    /// To change what is not part of a user but of its keeping here.
    pub fn keep(&mut self, slot: Slot) -> Option<&mut User> {
        self.table.get_mut(slot.0)
    }

    pub fn create(&mut self, id: &str) -> Slot {
        Slot(self.table.insert(User::new(id)))
    }

    pub fn forget(&mut self, slot: Slot) -> Option<User> {
        let user = self.table.remove(slot.0)?;
        self.forgotten.push((slot, user.id.clone()));
        Some(user)
    }

    pub fn iter(&self) -> impl Iterator<Item = (Slot, &User)> {
        self.table.iter().map(|(slot, user)| (Slot(slot), user))
    }
}

impl State {
    /// An empty partition under its first policy, with a fixed hash seed: for logs that no stranger wrote.
    pub fn new(partition: Partition, policy: Policy) -> State {
        State::seeded(partition, policy, HashSeed::default())
    }

    /// An empty partition under its first policy.
    pub fn seeded(partition: Partition, policy: Policy, seed: HashSeed) -> State {
        State {
            partition,
            time: None,
            offset: None,
            grace_until: None,
            seq: 0,
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

    /// The log time, unless no record came yet.
    pub fn time(&self) -> Option<LogTime> {
        self.time
    }

    /// The last record folded.
    pub fn offset(&self) -> Option<Offset> {
        self.offset
    }

    /// How many changes there have been.
    pub fn seq(&self) -> u64 {
        self.seq
    }

    pub fn policy(&self) -> &Policy {
        self.rules.policy()
    }

    /// How many users are in memory.
    pub fn users_in_memory(&self) -> usize {
        self.users.table.len()
    }

    pub fn slot_of(&self, user: &str) -> Option<Slot> {
        self.users.find(user)
    }

    /// Every user in memory, in no meaningful order.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        self.users.iter().map(|(slot, _)| slot)
    }

    /// The id of a user in memory.
    pub fn user_id(&self, slot: Slot) -> Option<&str> {
        self.users.get(slot).map(|user| &*user.id)
    }

    /// Takes a user out of memory whose state is kept elsewhere. Refused (false) for one with an online device or with
    /// changes that [`State::take_dirt`] has not told yet.
    pub fn evict(&mut self, slot: Slot) -> bool {
        let Some(user) = self.users.get(slot) else { return false };
        if user.dirt != Dirt::Clean || user.due || user.has_online_device() {
            return false;
        }
        let Some(user) = self.users.table.remove(slot.0) else {
            return false;
        };
        for device in &user.devices {
            self.gateways.release(device.link.gateway);
        }
        true
    }

    /// Whether a user in memory has a device online, and so must stay there.
    pub fn has_online_device(&self, slot: Slot) -> bool {
        self.users.get(slot).is_some_and(User::has_online_device)
    }

    /// What changed since the last call; all of it counts as clean from here on, and the slots of those who were
    /// forgotten may be used again.
    pub fn take_dirt(&mut self) -> Dirty {
        let mut dirty = Dirty {
            users: std::mem::take(&mut self.users.dirty),
            beats: std::mem::take(&mut self.users.beats),
            forgotten: std::mem::take(&mut self.users.forgotten),
        };
        // A slot may have changed hands within the stretch, or a user have gone from beats to everything.
        let users = &mut self.users.table;
        let mut wash = |slots: &mut Vec<Slot>, dirt: Dirt| {
            slots.sort_unstable();
            slots.dedup();
            slots.retain(|slot| users.get(slot.0).is_some_and(|user| user.dirt == dirt));
            for slot in slots {
                if let Some(user) = users.get_mut(slot.0) {
                    user.dirt = Dirt::Clean;
                }
            }
        };
        wash(&mut dirty.beats, Dirt::Beats);
        wash(&mut dirty.users, Dirt::Everything);
        self.users.table.recycle();
        dirty
    }

    /// Users forgotten since [`State::take_dirt`] was last asked, with the slots they had.
    pub fn forgotten(&self) -> impl Iterator<Item = &(Slot, Box<str>)> {
        self.users.forgotten.iter()
    }

    /// How many users are to be saved whole or were forgotten, which [`State::take_dirt`] has not told yet. Those of
    /// whom only the heartbeat times changed are not counted.
    pub fn changed_users(&self) -> usize {
        self.users.dirty.len() + self.users.forgotten.len()
    }
}
