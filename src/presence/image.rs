//! Users and partitions outside of a [`State`], with everything by name: what is shown and what is saved.

use super::deadlines::NEVER;
use super::ends::EarlyEndImage;
use super::event::Ending;
use super::gateways::KnownGateway;
use super::policy::Policy;
use super::state::{Device, DeviceState, Dirt, Link, Marks, Session, Slot, State, User};
use super::table::HashSeed;
use super::{Conn, Epoch, KickedBy, LogTime, LostBy, Offset, Partition, Status};

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

/// A user outside of a [`State`], with everything by name.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserImage<'a> {
    pub user: &'a str,
    pub version: u64,
    pub status: Status,
    pub since: LogTime,
    pub last_seen: LogTime,
    pub custom_status: Option<&'a str>,
    /// A custom status that was lost with the link; kept here also after its moment ([`UserImage::kept_at`]).
    pub kept: Option<KeptImage<'a>>,
    /// When the whole user was kicked last.
    pub kicked_at: Option<LogTime>,
    pub barred: bool,
    /// By (platform, device).
    pub devices: Vec<DeviceImage<'a>>,
}

/// A custom status that comes back with its user until a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct KeptImage<'a> {
    pub text: &'a str,
    pub until: LogTime,
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

impl<'a> Phase<'a> {
    /// Returns the login that the device still has; none for a kicked device.
    pub fn session(&self) -> Option<&SessionImage<'a>> {
        match self {
            Phase::Online { session, .. } | Phase::Away { session, .. } => Some(session),
            Phase::Kicked { .. } => None,
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

    /// The kept text whose moment is after the partition's log time.
    pub fn kept_at(&self, time: Option<LogTime>) -> Option<KeptImage<'_>> {
        self.kept.filter(|kept| time.is_none_or(|time| kept.until > time))
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
    /// In the order in which they came.
    pub early_ends: Vec<EarlyEndImage<'a>>,
}

/// Times of one online device that a heartbeat changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BeatTimes {
    pub last_seen: LogTime,
    pub evidence: Offset,
    pub heartbeat_by: LogTime,
}

impl State {
    /// A partition as it was saved, still without its users: all that have an online device must be put back with
    /// [`State::put_back`] before anything is folded.
    pub fn restore(image: &PartitionImage<'_>, seed: HashSeed) -> State {
        let mut state = State::seeded(image.partition, image.policy.clone(), seed);
        state.time = image.time;
        state.offset = image.offset;
        state.grace_until = image.grace_until;
        state.seq = image.seq;
        state.policy_since = image.policy_since;
        for gateway in &image.gateways {
            let known = KnownGateway {
                epoch: gateway.epoch,
                ended: gateway.ended,
                lease_until: gateway.lease_until,
                last_until: gateway.last_until,
            };
            state.gateways.learn(gateway.name, known);
        }
        for end in &image.early_ends {
            state.early_ends.add(end.gateway, end.epoch, end.conn, end.came);
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
            early_ends: self.early_ends.images().collect(),
        }
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
            kept: user
                .marks
                .as_ref()
                .and_then(|marks| marks.kept.as_ref())
                .map(|(text, until)| KeptImage { text, until: *until }),
            kicked_at: user.kicked_at(),
            barred: user.is_barred(),
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
        self.note_links(slot);
        self.arm(slot);
        slot
    }

    /// Makes room for users to be put back. What is said of their number is not trusted with more than a little memory.
    pub fn reserve(&mut self, users: u64) {
        const MOST: u64 = 1 << 20;
        self.users.table.reserve(users.min(MOST) as usize);
    }

    /// Puts a user back into the slot it had; only into a [`State`] that nothing was folded into yet, and followed by
    /// one [`State::seal`].
    pub fn put_back(&mut self, slot: Slot, image: &UserImage<'_>) {
        let user = self.user_from(image);
        self.users.table.insert_at(slot.0, user);
        self.note_links(slot);
    }

    fn note_links(&mut self, slot: Slot) {
        let State { users, gateways, .. } = self;
        let devices = users.get(slot).into_iter().flat_map(|user| &user.devices);
        devices.for_each(|device| gateways.enter(slot, device));
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
            marks: (image.kept.is_some() || image.kicked_at.is_some()).then(|| {
                Box::new(Marks {
                    kept: image.kept.map(|kept| (kept.text.into(), kept.until)),
                    kicked_at: image.kicked_at,
                    barred: image.barred,
                })
            }),
            devices,
            armed: NEVER,
            dirt: Dirt::Clean,
            due: false,
        }
    }
}
