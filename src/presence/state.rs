//! What is remembered of a partition (section 5), and how it enters and leaves memory.
//!
//! A [`State`] need not hold every user: those without an online device may be evicted when whoever keeps the rest has
//! saved them, as long as they are admitted again before a record that names them, or at which they are due, is
//! folded. What changed since it was last asked is told by [`State::take_dirt`].
//!
//! Users and gateways live in numbered slots, devices name their gateway by its number; an [`UserImage`] is a user
//! outside, with everything by name.

use super::deadlines::{Deadlines, NEVER};
use super::event::Ending;
use super::policy::{Platform, Policy};
use super::table::{Named, Table};
use super::{Conn, Epoch, KickedBy, LogTime, LostBy, Offset, Partition, Status};

/// The number of a user's place in memory. Stays while the user is there; used again later.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Slot(pub u32);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PlatformId(u8);

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GatewayId(pub u32);

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
    /// By (platform, device).
    pub devices: Vec<Device>,
    /// The time of the earliest timer that was set for this user and has not come up.
    pub armed: LogTime,
    pub dirt: Dirt,
    /// Already among those that fire in this record.
    pub due: bool,
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
    /// Forgotten; they may exist anew and then are among `users` too.
    pub forgotten: Vec<(Slot, Box<str>)>,
}

pub(super) struct Users {
    table: Table<User>,
    dirty: Vec<Slot>,
    beats: Vec<Slot>,
    forgotten: Vec<(Slot, Box<str>)>,
}

impl Users {
    fn new() -> Users {
        Users {
            table: Table::new(),
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

/// What is known of a gateway whose epoch is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatewayImage<'a> {
    pub name: &'a str,
    pub epoch: Epoch,
    pub ended: bool,
    /// Of the active lease, as it was set.
    pub lease_until: Option<LogTime>,
    /// Of the last lease, as it was set; for a lease of 0 ms its log time.
    pub last_until: LogTime,
}

pub(super) struct Gateway {
    name: Box<str>,
    pub known: Option<Known>,
    /// How many devices name it.
    devices: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub epoch: Epoch,
    pub ended: bool,
    pub lease_until: Option<LogTime>,
    pub last_until: LogTime,
}

impl Known {
    /// When something becomes of it by itself: its lease expires, or it is forgotten.
    fn attention_at(&self, grace_until: Option<LogTime>) -> LogTime {
        match self.lease_until {
            Some(until) => deferred(until, grace_until),
            None => self.last_until.plus(GATEWAY_FORGOTTEN_MS),
        }
    }
}

/// A gateway without an active lease is forgotten this long after its last lease's end (section 5).
pub const GATEWAY_FORGOTTEN_MS: u64 = 86_400_000;

/// A heartbeat deadline or lease expiry under outage grace (section 2.4).
pub(super) fn deferred(deadline: LogTime, grace_until: Option<LogTime>) -> LogTime {
    match grace_until {
        Some(grace_until) => deadline.max(grace_until),
        None => deadline,
    }
}

impl Named for Gateway {
    fn name(&self) -> &str {
        &self.name
    }
}

/// Every gateway that has a known epoch or is named by a device.
pub(super) struct Gateways {
    table: Table<Gateway>,
    /// No lease expires and no gateway is forgotten before.
    pub quiet_until: LogTime,
}

impl Gateways {
    fn new() -> Gateways {
        Gateways {
            table: Table::new(),
            quiet_until: NEVER,
        }
    }

    pub fn find(&self, name: &str) -> Option<GatewayId> {
        self.table.find(name).map(GatewayId)
    }

    pub fn name(&self, id: GatewayId) -> &str {
        self.table.get(id.0).map_or("", |gateway| &gateway.name)
    }

    pub fn known(&self, id: GatewayId) -> Option<&Known> {
        self.table.get(id.0)?.known.as_ref()
    }

    /// Whether an epoch of a gateway is stale (section 6).
    pub fn is_stale(&self, id: Option<GatewayId>, epoch: Epoch) -> bool {
        match id.and_then(|id| self.known(id)) {
            Some(known) => known.epoch > epoch || (known.epoch == epoch && known.ended),
            None => false,
        }
    }

    /// The active lease that counts for connections of this epoch, as it was set.
    pub fn lease_of(&self, id: GatewayId, epoch: Epoch) -> Option<LogTime> {
        let known = self.known(id)?;
        if known.epoch == epoch { known.lease_until } else { None }
    }

    fn intern(&mut self, name: &str) -> GatewayId {
        self.find(name).unwrap_or_else(|| {
            GatewayId(self.table.insert(Gateway {
                name: name.into(),
                known: None,
                devices: 0,
            }))
        })
    }

    /// The number for a device that is to name this gateway; to be given back with [`Gateways::release`].
    pub fn acquire(&mut self, name: &str) -> GatewayId {
        let id = self.intern(name);
        if let Some(gateway) = self.table.get_mut(id.0) {
            gateway.devices += 1;
        }
        id
    }

    pub fn release(&mut self, id: GatewayId) {
        if let Some(gateway) = self.table.get_mut(id.0) {
            gateway.devices -= 1;
            if gateway.devices == 0 && gateway.known.is_none() {
                self.table.remove(id.0);
                self.table.recycle();
            }
        }
    }

    pub fn learn(&mut self, name: &str, known: Known, grace_until: Option<LogTime>) -> GatewayId {
        let id = self.intern(name);
        if let Some(gateway) = self.table.get_mut(id.0) {
            gateway.known = Some(known);
        }
        self.quiet_until = self.quiet_until.min(known.attention_at(grace_until));
        id
    }

    /// Those whose active lease has expired by `time`.
    pub fn expired(&self, time: LogTime, grace_until: Option<LogTime>) -> Vec<(GatewayId, Epoch)> {
        let known = self
            .table
            .iter()
            .filter_map(|(id, gateway)| Some((id, gateway.known.as_ref()?)));
        known
            .filter(|(_, known)| {
                known
                    .lease_until
                    .is_some_and(|until| deferred(until, grace_until) <= time)
            })
            .map(|(id, known)| (GatewayId(id), known.epoch))
            .collect()
    }

    /// Drops expired leases, then forgets gateways long without one (section 5).
    pub fn tidy(&mut self, time: LogTime, grace_until: Option<LogTime>) {
        if time < self.quiet_until {
            return;
        }
        let mut quiet_until = NEVER;
        let ids: Vec<u32> = self.table.iter().map(|(id, _)| id).collect();
        for id in ids {
            let Some(gateway) = self.table.get_mut(id) else {
                continue;
            };
            let Some(known) = &mut gateway.known else { continue };
            if known
                .lease_until
                .is_some_and(|until| deferred(until, grace_until) <= time)
            {
                known.lease_until = None;
            }
            if known.lease_until.is_none() && known.attention_at(grace_until) <= time {
                gateway.known = None;
                if gateway.devices == 0 {
                    self.table.remove(id);
                }
            } else {
                quiet_until = quiet_until.min(known.attention_at(grace_until));
            }
        }
        self.table.recycle();
        self.quiet_until = quiet_until;
    }
}

/// A policy made ready for the fold: platforms by number, kinds compared ahead.
pub(super) struct Rulebook {
    policy: Policy,
    /// By number. Numbers stay: a platform is never taken away.
    platforms: Vec<PlatformRules>,
}

pub(super) struct PlatformRules {
    name: Box<str>,
    pub rules: Platform,
    /// At most how many devices of its kind.
    pub instances: u64,
    same_kind: u32,
    excluded: u32,
}

impl Rulebook {
    fn new(policy: Policy) -> Rulebook {
        let names = policy.platforms.keys().cloned().collect();
        Rulebook::with_names(policy, names)
    }

    fn with_names(policy: Policy, names: Vec<String>) -> Rulebook {
        let named = names
            .iter()
            .filter_map(|name| Some((name, policy.platforms.get(name)?)));
        let platforms = named
            .map(|(name, rules)| {
                let numbers_where = |wanted: &dyn Fn(&str) -> bool| {
                    let kinds = names
                        .iter()
                        .map(|name| policy.platforms.get(name).map(|other| &*other.kind));
                    let wanted = kinds.map(|kind| kind.is_some_and(wanted));
                    wanted
                        .enumerate()
                        .fold(0u32, |set, (number, is)| set | u32::from(is) << number)
                };
                PlatformRules {
                    name: name.as_str().into(),
                    rules: rules.clone(),
                    instances: policy.instances_of(&rules.kind),
                    same_kind: numbers_where(&|kind| kind == rules.kind),
                    excluded: numbers_where(&|kind| kind != rules.kind && policy.excludes(&rules.kind, kind)),
                }
            })
            .collect();
        Rulebook { policy, platforms }
    }

    /// Puts another policy in force, or says which platform it lacks.
    pub fn replace(&mut self, policy: Policy) -> Result<(), String> {
        if let Some(name) = policy.lacks(&self.policy) {
            return Err(name);
        }
        let mut names: Vec<String> = self
            .platforms
            .iter()
            .map(|platform| platform.name.to_string())
            .collect();
        let new = policy
            .platforms
            .keys()
            .filter(|name| !self.policy.platforms.contains_key(*name));
        names.extend(new.cloned());
        *self = Rulebook::with_names(policy, names);
        Ok(())
    }

    pub fn find(&self, name: &str) -> Option<PlatformId> {
        let number = self.platforms.iter().position(|platform| &*platform.name == name)?;
        Some(PlatformId(number as u8))
    }

    pub fn name(&self, id: PlatformId) -> &str {
        &self.platforms[id.0 as usize].name
    }

    pub fn of(&self, id: PlatformId) -> &PlatformRules {
        &self.platforms[id.0 as usize]
    }

    pub fn policy(&self) -> &Policy {
        &self.policy
    }
}

impl PlatformRules {
    pub fn is_of_same_kind(&self, other: PlatformId) -> bool {
        self.same_kind & (1 << other.0) != 0
    }

    pub fn excludes(&self, other: PlatformId) -> bool {
        self.excluded & (1 << other.0) != 0
    }
}

/// A user outside of a [`State`], with everything by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserImage<'a> {
    pub user: &'a str,
    pub version: u64,
    pub status: Status,
    pub since: LogTime,
    pub last_seen: LogTime,
    pub custom_status: Option<&'a str>,
    /// By (platform, device).
    pub devices: Vec<DeviceImage<'a>>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeviceImage<'a> {
    pub platform: &'a str,
    pub device: &'a str,
    pub gateway: &'a str,
    pub epoch: Epoch,
    pub conn: Conn,
    pub since: LogTime,
    pub phase: Phase<'a>,
    /// Section 5, with lease and grace counted in.
    pub deadline: LogTime,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SessionImage<'a> {
    pub login_at: LogTime,
    pub last_seen: LogTime,
    pub evidence: Offset,
    pub client: Option<&'a str>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase<'a> {
    Online {
        session: SessionImage<'a>,
        heartbeat_by: LogTime,
        background_by: Option<LogTime>,
        linger: Option<(Ending, LogTime)>,
    },
    Away {
        session: SessionImage<'a>,
        push: bool,
        lost_by: LostBy,
        until: LogTime,
    },
    Kicked {
        by: KickedBy,
        until: LogTime,
    },
}

impl Phase<'_> {
    pub fn status(&self) -> Status {
        match self {
            Phase::Online { .. } => Status::Online,
            Phase::Away { push: true, .. } => Status::PushOnline,
            Phase::Away { push: false, .. } | Phase::Kicked { .. } => Status::Offline,
        }
    }
}

impl UserImage<'_> {
    /// Users without one may be evicted.
    pub fn has_online_device(&self) -> bool {
        self.devices
            .iter()
            .any(|device| device.phase.status() == Status::Online)
    }

    /// When something next happens to the user by itself.
    pub fn next_deadline(&self) -> Option<LogTime> {
        self.devices.iter().map(|device| device.deadline).min()
    }
}

/// What a partition is, apart from its users.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionImage<'a> {
    pub partition: Partition,
    pub offset: Option<Offset>,
    pub time: Option<LogTime>,
    pub seq: u64,
    pub grace_until: Option<LogTime>,
    pub policy: &'a Policy,
    /// The record that put the policy in force; none for the one given at creation.
    pub policy_since: Option<Offset>,
    /// By name.
    pub gateways: Vec<GatewayImage<'a>>,
}

/// Times of one online device that a heartbeat changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BeatTimes {
    pub last_seen: LogTime,
    pub evidence: Offset,
    pub heartbeat_by: LogTime,
}

impl State {
    /// An empty partition under its first policy.
    pub fn new(partition: Partition, policy: Policy) -> State {
        State {
            partition,
            time: None,
            offset: None,
            grace_until: None,
            seq: 0,
            rules: Rulebook::new(policy),
            policy_since: None,
            gateways: Gateways::new(),
            users: Users::new(),
            deadlines: Deadlines::new(),
            index: 0,
        }
    }

    /// A partition as it was saved, still without its users: all that have an online device must be put back with
    /// [`State::put_back`] before anything is folded.
    pub fn restore(image: &PartitionImage<'_>) -> State {
        let mut state = State::new(image.partition, image.policy.clone());
        state.time = image.time;
        state.offset = image.offset;
        state.grace_until = image.grace_until;
        state.seq = image.seq;
        state.policy_since = image.policy_since;
        for gateway in &image.gateways {
            let known = Known {
                epoch: gateway.epoch,
                ended: gateway.ended,
                lease_until: gateway.lease_until,
                last_until: gateway.last_until,
            };
            state.gateways.learn(gateway.name, known, image.grace_until);
        }
        state
    }

    /// The partition apart from its users.
    pub fn partition_image(&self) -> PartitionImage<'_> {
        let known = self
            .gateways
            .table
            .iter()
            .filter_map(|(_, gateway)| Some((gateway, gateway.known?)));
        let mut gateways: Vec<_> = known
            .map(|(gateway, known)| GatewayImage {
                name: &gateway.name,
                epoch: known.epoch,
                ended: known.ended,
                lease_until: known.lease_until,
                last_until: known.last_until,
            })
            .collect();
        gateways.sort_unstable_by_key(|gateway| gateway.name);
        PartitionImage {
            partition: self.partition,
            offset: self.offset,
            time: self.time,
            seq: self.seq,
            grace_until: self.grace_until,
            policy: self.rules.policy(),
            policy_since: self.policy_since,
            gateways,
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

    /// A user in memory.
    pub fn image(&self, slot: Slot) -> Option<UserImage<'_>> {
        let user = self.users.get(slot)?;
        Some(UserImage {
            user: &user.id,
            version: user.version,
            status: user.status,
            since: user.since,
            last_seen: user.last_seen,
            custom_status: user.custom_status.as_deref(),
            devices: user.devices.iter().map(|device| self.device_image(device)).collect(),
        })
    }

    fn device_image<'a>(&'a self, device: &'a Device) -> DeviceImage<'a> {
        fn session_image(session: &Session) -> SessionImage<'_> {
            SessionImage {
                login_at: session.login_at,
                last_seen: session.last_seen,
                evidence: session.evidence,
                client: session.client.as_deref(),
            }
        }
        DeviceImage {
            platform: self.rules.name(device.platform),
            device: &device.device,
            gateway: self.gateways.name(device.link.gateway),
            epoch: device.link.epoch,
            conn: device.link.conn,
            since: device.since,
            phase: match &device.state {
                DeviceState::Online {
                    session,
                    heartbeat_by,
                    background_by,
                    linger,
                } => Phase::Online {
                    session: session_image(session),
                    heartbeat_by: *heartbeat_by,
                    background_by: *background_by,
                    linger: *linger,
                },
                DeviceState::Away {
                    session,
                    push,
                    lost_by,
                    until,
                } => Phase::Away {
                    session: session_image(session),
                    push: *push,
                    lost_by: *lost_by,
                    until: *until,
                },
                DeviceState::Kicked { by, until } => Phase::Kicked { by: *by, until: *until },
            },
            deadline: device.deadline(&self.gateways, self.grace_until).0,
        }
    }

    /// Brings a user who is not in memory back into it. A device of a platform that no policy of this partition had
    /// cannot be; its entry is left out.
    pub fn admit(&mut self, image: &UserImage<'_>) -> Slot {
        let user = self.user_from(image);
        let slot = Slot(self.users.table.insert(user));
        self.arm(slot);
        slot
    }

    /// Puts a user back into the slot it had; only into a [`State`] that nothing was folded into yet, and followed by
    /// one [`State::seal`].
    pub fn put_back(&mut self, slot: Slot, image: &UserImage<'_>) {
        let user = self.user_from(image);
        self.users.table.insert_at(slot.0, user);
    }

    /// Ends a series of [`State::put_back`] and [`State::put_back_beats`].
    pub fn seal(&mut self) {
        self.users.table.seal();
        let slots: Vec<Slot> = self.slots().collect();
        slots.into_iter().for_each(|slot| self.arm(slot));
    }

    /// The heartbeat times of a user in memory: its own `last_seen`, then one entry an online device.
    pub fn beat_times(&self, slot: Slot) -> Option<(LogTime, impl Iterator<Item = BeatTimes>)> {
        let user = self.users.get(slot)?;
        let times = user.devices.iter().filter_map(|device| match &device.state {
            DeviceState::Online {
                session, heartbeat_by, ..
            } => Some(BeatTimes {
                last_seen: session.last_seen,
                evidence: session.evidence,
                heartbeat_by: *heartbeat_by,
            }),
            DeviceState::Away { .. } | DeviceState::Kicked { .. } => None,
        });
        Some((user.last_seen, times))
    }

    /// Sets what [`State::beat_times`] gave. Entries beyond the online devices are left out.
    pub fn put_back_beats(&mut self, slot: Slot, user_last_seen: LogTime, times: impl IntoIterator<Item = BeatTimes>) {
        let Some(user) = self.users.keep(slot) else { return };
        user.last_seen = user_last_seen;
        let mut times = times.into_iter();
        for device in &mut user.devices {
            match &mut device.state {
                DeviceState::Online {
                    session, heartbeat_by, ..
                } => {
                    let Some(beat) = times.next() else { return };
                    session.last_seen = beat.last_seen;
                    session.evidence = beat.evidence;
                    *heartbeat_by = beat.heartbeat_by;
                }
                DeviceState::Away { .. } | DeviceState::Kicked { .. } => {}
            }
        }
    }

    fn user_from(&mut self, image: &UserImage<'_>) -> User {
        fn session(image: &SessionImage<'_>) -> Session {
            Session {
                login_at: image.login_at,
                last_seen: image.last_seen,
                evidence: image.evidence,
                client: image.client.map(Into::into),
            }
        }
        let mut devices = Vec::with_capacity(image.devices.len());
        for device in &image.devices {
            let Some(platform) = self.rules.find(device.platform) else {
                continue;
            };
            devices.push(Device {
                platform,
                device: device.device.into(),
                link: Link {
                    gateway: self.gateways.acquire(device.gateway),
                    epoch: device.epoch,
                    conn: device.conn,
                },
                since: device.since,
                state: match &device.phase {
                    Phase::Online {
                        session: image,
                        heartbeat_by,
                        background_by,
                        linger,
                    } => DeviceState::Online {
                        session: session(image),
                        heartbeat_by: *heartbeat_by,
                        background_by: *background_by,
                        linger: *linger,
                    },
                    Phase::Away {
                        session: image,
                        push,
                        lost_by,
                        until,
                    } => DeviceState::Away {
                        session: session(image),
                        push: *push,
                        lost_by: *lost_by,
                        until: *until,
                    },
                    Phase::Kicked { by, until } => DeviceState::Kicked { by: *by, until: *until },
                },
            });
        }
        User {
            id: image.user.into(),
            version: image.version,
            status: image.status,
            since: image.since,
            last_seen: image.last_seen,
            custom_status: image.custom_status.map(Into::into),
            devices,
            armed: NEVER,
            dirt: Dirt::Clean,
            due: false,
        }
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
