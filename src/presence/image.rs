//! Images: users and partitions outside of a [`State`], with names instead of numbers, for display and storage.

use super::compact::{Compact, Shared};
use super::deadlines::NEVER;
use super::ends::EarlyEndImage;
use super::event::Ending;
use super::gateways::KnownGateway;
use super::policy::Policy;
use super::state::{Device, DeviceState, Dirt, Link, Marks, Session, Slot, State, User};
use super::table::HashSeed;
use super::texts::text;
use super::users::UserRef;
use super::{Conn, Epoch, KickedBy, LogTime, LostBy, Offset, Partition, Revision, Status};

/// What is remembered of a gateway with a known epoch.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GatewayImage<'a> {
    pub name: &'a str,
    pub epoch: Epoch,
    pub ended: bool,
    /// The `until` of the active lease, as set.
    pub lease_until: Option<LogTime>,
    /// The `until` of the last lease, as set; for a lease of 0 ms, its log time.
    pub last_until: LogTime,
}

/// A user outside of a [`State`], with names instead of numbers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserImage<'a> {
    pub user: &'a str,
    pub version: u64,
    pub status: Status,
    pub since: LogTime,
    pub last_seen: LogTime,
    pub custom_status: Option<&'a str>,
    /// A custom status that was lost with the link; kept here also after its time ([`UserImage::kept_at`]).
    pub kept: Option<KeptImage<'a>>,
    /// When the whole user was last kicked.
    pub kicked_at: Option<LogTime>,
    pub barred: bool,
    /// Sorted by (platform, device).
    pub devices: Vec<DeviceImage<'a>>,
}

/// A custom status that is restored if the user returns before `until`.
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
    /// The deadline of section 5, with lease and grace taken into account.
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
    /// Returns whether any device is online. Users without one may be evicted.
    pub fn has_online_device(&self) -> bool {
        self.devices
            .iter()
            .any(|device| device.phase.status() == Status::Online)
    }

    /// Returns the kept text if its time is after the partition's log time.
    pub fn kept_at(&self, time: Option<LogTime>) -> Option<KeptImage<'_>> {
        self.kept.filter(|kept| time.is_none_or(|time| kept.until > time))
    }

    /// Returns when something next happens to the user by itself.
    pub fn next_deadline(&self) -> Option<LogTime> {
        self.devices.iter().map(|device| device.deadline).min()
    }
}

/// A partition without its users.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartitionImage<'a> {
    pub partition: Partition,
    pub offset: Option<Offset>,
    pub time: Option<LogTime>,
    pub seq: u64,
    pub revision: Revision,
    /// How many changes there were since [`Revision::REHEARSAL`].
    pub rehearsed: u64,
    pub grace_until: Option<LogTime>,
    pub policy: &'a Policy,
    /// The record that put the policy in force; `None` for the policy given at creation.
    pub policy_since: Option<Offset>,
    /// Sorted by name.
    pub gateways: Vec<GatewayImage<'a>>,
    /// In order of arrival.
    pub early_ends: Vec<EarlyEndImage<'a>>,
}

/// The times of one online device that a heartbeat changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BeatTimes {
    pub last_seen: LogTime,
    pub evidence: Offset,
    pub heartbeat_by: LogTime,
}

impl State {
    /// Restores a partition that was saved, still without its users. All users with an online device must be put back
    /// with [`State::put_back`] before anything is folded.
    pub fn restore(image: &PartitionImage<'_>, seed: HashSeed) -> State {
        let PartitionImage {
            partition,
            offset,
            time,
            seq,
            revision,
            rehearsed,
            grace_until,
            policy,
            policy_since,
            gateways,
            early_ends,
        } = image;
        let mut state = State::seeded(*partition, (*policy).clone(), seed);
        state.time = *time;
        state.offset = *offset;
        state.grace_until = *grace_until;
        state.seq = *seq;
        state.revision = *revision;
        state.rehearsed = *rehearsed;
        state.policy_since = *policy_since;
        for gateway in gateways {
            let GatewayImage {
                name,
                epoch,
                ended,
                lease_until,
                last_until,
            } = *gateway;
            let known = KnownGateway {
                epoch,
                ended,
                lease_until,
                last_until,
            };
            state.gateways.learn(name, known);
        }
        for end in early_ends {
            let EarlyEndImage {
                gateway,
                epoch,
                conn,
                came,
            } = *end;
            state.early_ends.add(gateway, epoch, conn, came);
        }
        state
    }

    /// Returns the partition without its users.
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
            revision: self.revision,
            rehearsed: self.rehearsed,
            grace_until: self.grace_until,
            policy: self.rules.policy(),
            policy_since: self.policy_since,
            gateways,
            early_ends: self.early_ends.images().collect(),
        }
    }

    /// Returns a user in memory.
    pub fn image(&self, slot: Slot) -> Option<UserImage<'_>> {
        let user = match self.users.view(slot)? {
            UserRef::Compact(user, shared) => return Some(self.compact_image(user, shared)),
            UserRef::Whole(user) => user,
        };
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

    fn compact_image<'a>(&'a self, user: &'a Compact, shared: &'a Shared) -> UserImage<'a> {
        let ids = shared.texts.get(user.text);
        let (gateway, epoch) = shared.epochs.get(user.epoch);
        UserImage {
            user: text(ids.user),
            version: user.version(),
            status: Status::Online,
            since: user.user_since(),
            last_seen: user.last_seen(),
            custom_status: None,
            kept: None,
            kicked_at: None,
            barred: false,
            devices: vec![DeviceImage {
                platform: self.rules.name(user.platform),
                device: text(ids.device),
                gateway: self.gateways.name(gateway),
                epoch,
                conn: user.conn,
                since: user.since(),
                phase: Phase::Online {
                    session: SessionImage {
                        login_at: user.login_at(),
                        last_seen: user.last_seen(),
                        evidence: user.evidence,
                        client: (!ids.client.is_empty()).then(|| text(ids.client)),
                    },
                    heartbeat_by: user.heartbeat_by(),
                    background_by: None,
                    linger: None,
                },
                deadline: user.deadline(&shared.epochs, &self.gateways, self.grace_until).0,
            }],
        }
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

    /// Loads a user who is not in memory. A device of a platform that no policy of this partition has had cannot exist;
    /// such an entry is left out.
    pub fn admit(&mut self, image: &UserImage<'_>) -> Slot {
        let user = self.user_from(image);
        let slot = self.users.vacant();
        self.enter_links(slot, &user);
        self.users.insert_at(slot, user);
        self.arm(slot);
        slot
    }

    /// Reserves memory for users to be put back. Because the number may be wrong, only a little memory is reserved at
    /// once.
    pub fn reserve(&mut self, users: u64) {
        const MOST: u64 = 1 << 20;
        self.users.reserve(users.min(MOST) as usize);
    }

    /// Puts a user back into the slot it had. Only for a [`State`] into which nothing was folded yet; call
    /// [`State::seal`] afterwards.
    pub fn put_back(&mut self, slot: Slot, image: &UserImage<'_>) {
        let user = self.user_from(image);
        self.enter_links(slot, &user);
        self.users.insert_at(slot, user);
    }

    fn enter_links(&mut self, slot: Slot, user: &User) {
        user.devices.iter().for_each(|device| self.gateways.enter(slot, device));
    }

    /// Ends a series of [`State::put_back`] and [`State::put_back_beats`] calls.
    pub fn seal(&mut self) {
        self.users.seal();
        if let Some(now) = self.time {
            self.deadlines.moved_to(now);
        }
        let slots: Vec<Slot> = self.slots().collect();
        slots.into_iter().for_each(|slot| self.arm(slot));
    }

    /// Returns the heartbeat times of a user in memory: the user's own `last_seen`, then one entry per online device.
    pub fn beat_times(&self, slot: Slot) -> Option<(LogTime, impl Iterator<Item = BeatTimes>)> {
        let (last_seen, compact, devices) = match self.users.view(slot)? {
            UserRef::Compact(user, _) => (user.last_seen(), Some(user.beat()), &[][..]),
            UserRef::Whole(user) => (user.last_seen, None, &*user.devices),
        };
        let times = devices.iter().filter_map(|device| match &device.state {
            DeviceState::Online {
                session, heartbeat_by, ..
            } => Some(BeatTimes {
                last_seen: session.last_seen,
                evidence: session.evidence,
                heartbeat_by: *heartbeat_by,
            }),
            DeviceState::Away { .. } | DeviceState::Kicked { .. } => None,
        });
        Some((last_seen, compact.into_iter().chain(times)))
    }

    /// Sets the times that [`State::beat_times`] returned. Entries beyond the number of online devices are ignored.
    pub fn put_back_beats(&mut self, slot: Slot, user_last_seen: LogTime, times: impl IntoIterator<Item = BeatTimes>) {
        let mut times = times.into_iter().peekable();
        if let Some((user, _)) = self.users.keep_compact(slot)
            && let Some(beat) = times.peek()
            && beat.last_seen == user_last_seen
            && user.set_beat(*beat)
        {
            return;
        }
        let Some(user) = self.users.keep(slot) else { return };
        user.last_seen = user_last_seen;
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
