//! Users with one device, which is online, and nothing else: most of those in memory.
//!
//! Such a user takes one line of the processor's cache, and its ids a cell of [`Texts`]. Any other user, and one that is
//! being changed, is a [`User`]. Both forms say the same; which one a user has affects no output.

use super::deadlines::NEVER;
use super::gateways::GatewayId;
use super::rulebook::{PlatformId, Rulebook};
use super::state::{BeatTimes, Device, DeviceState, Dirt, Link, Session, User};
use super::texts::{TextId, Texts, text};
use super::{Conn, Epoch, LogTime, Offset, Status};
use std::collections::BTreeMap;

/// A time in 48 bits, which last until the year 10889, or [`NEVER`].
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct ShortTime([u16; 3]);

const SHORT_NEVER: u64 = (1 << 48) - 1;

impl ShortTime {
    /// Returns `None` for a time that does not fit.
    pub fn new(time: LogTime) -> Option<ShortTime> {
        let short = if time == NEVER { SHORT_NEVER } else { time.0 };
        let fits = short < SHORT_NEVER || time == NEVER;
        fits.then_some(ShortTime([short as u16, (short >> 16) as u16, (short >> 32) as u16]))
    }

    pub fn get(self) -> LogTime {
        let [low, middle, high] = self.0.map(u64::from);
        let short = low | middle << 16 | high << 32;
        if short == SHORT_NEVER { NEVER } else { LogTime(short) }
    }
}

/// The number of an epoch of a gateway that has compact users.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct EpochId(u32);

/// The epochs of gateways that compact users refer to.
#[derive(Default)]
pub(super) struct Epochs {
    by_id: Vec<EpochEntry>,
    free: Vec<u32>,
    ids: BTreeMap<(GatewayId, Epoch), u32>,
}

struct EpochEntry {
    gateway: GatewayId,
    epoch: Epoch,
    users: u32,
}

impl Epochs {
    pub fn find(&self, gateway: GatewayId, epoch: Epoch) -> Option<EpochId> {
        self.ids.get(&(gateway, epoch)).copied().map(EpochId)
    }

    pub fn get(&self, id: EpochId) -> (GatewayId, Epoch) {
        let entry = &self.by_id[id.0 as usize];
        (entry.gateway, entry.epoch)
    }

    /// Returns the number for one more user. Give it back with [`Epochs::release`].
    fn acquire(&mut self, gateway: GatewayId, epoch: Epoch) -> EpochId {
        let Epochs { by_id, free, ids } = self;
        let id = *ids.entry((gateway, epoch)).or_insert_with(|| {
            let entry = EpochEntry {
                gateway,
                epoch,
                users: 0,
            };
            match free.pop() {
                Some(id) => {
                    by_id[id as usize] = entry;
                    id
                }
                None => {
                    by_id.push(entry);
                    (by_id.len() - 1) as u32
                }
            }
        });
        by_id[id as usize].users += 1;
        EpochId(id)
    }

    fn release(&mut self, id: EpochId) {
        let entry = &mut self.by_id[id.0 as usize];
        entry.users -= 1;
        if entry.users == 0 {
            self.ids.remove(&(entry.gateway, entry.epoch));
            self.free.push(id.0);
        }
    }
}

/// What compact users refer to by number.
pub(super) struct Shared {
    pub texts: Texts,
    pub epochs: Epochs,
}

/// What all heartbeats of a record set.
#[derive(Clone, Copy)]
pub(super) struct ShortBeat {
    last_seen: ShortTime,
    evidence: Offset,
}

impl ShortBeat {
    /// Returns `None` if the time does not fit.
    pub fn new(last_seen: LogTime, evidence: Offset) -> Option<ShortBeat> {
        let last_seen = ShortTime::new(last_seen)?;
        Some(ShortBeat { last_seen, evidence })
    }
}

/// The result of refreshing a user who may be compact and on another connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Refreshed {
    /// Nothing was done.
    No,
    Yes,
    /// The new deadline is earlier than the user's timer, which must be set again.
    BeforeItsTimer,
}

/// A user whose one device is online, neither lingering nor in the background, who has no custom status and was never
/// kicked as a whole, and whose times and version fit.
pub(super) struct Compact {
    pub text: TextId,
    pub epoch: EpochId,
    pub conn: Conn,
    pub evidence: Offset,
    /// The last-seen time of the user and of the device.
    last_seen: ShortTime,
    /// The times of the device.
    since: ShortTime,
    login_at: ShortTime,
    armed: ShortTime,
    /// From `last_seen` to the heartbeat deadline.
    timeout_ms: u32,
    /// From the user's `since` to the device's.
    online_before_ms: u32,
    version: u32,
    pub platform: PlatformId,
    pub dirt: Dirt,
}

impl Compact {
    /// Returns the compact form of a user who has one. The caller drops the other one.
    pub fn of(user: &User, shared: &mut Shared) -> Option<Compact> {
        let [device] = &*user.devices else { return None };
        let DeviceState::Online {
            session,
            heartbeat_by,
            background_by: None,
            linger: None,
        } = &device.state
        else {
            return None;
        };
        let is_plain = user.custom_status.is_none() && user.marks.is_none() && !user.due;
        let has_these_times = user.status == Status::Online && user.last_seen == session.last_seen;
        if !is_plain || !has_these_times || session.client.as_deref() == Some("") {
            return None;
        }
        let last_seen = ShortTime::new(session.last_seen)?;
        let since = ShortTime::new(device.since)?;
        let login_at = ShortTime::new(session.login_at)?;
        let armed = ShortTime::new(user.armed)?;
        let timeout_ms = u32::try_from(heartbeat_by.0.checked_sub(session.last_seen.0)?).ok()?;
        let online_before_ms = u32::try_from(device.since.0.checked_sub(user.since.0)?).ok()?;
        let version = u32::try_from(user.version).ok()?;
        let client = session.client.as_deref().unwrap_or_default();
        Some(Compact {
            text: shared.texts.put(&user.id, &device.device, client)?,
            epoch: shared.epochs.acquire(device.link.gateway, device.link.epoch),
            conn: device.link.conn,
            evidence: session.evidence,
            last_seen,
            since,
            login_at,
            armed,
            timeout_ms,
            online_before_ms,
            version,
            platform: device.platform,
            dirt: user.dirt,
        })
    }

    /// Returns the user's other form. What this one refers to is released, so the caller must drop this one.
    pub fn expand(&self, shared: &mut Shared) -> User {
        let ids = shared.texts.get(self.text);
        let (gateway, epoch) = shared.epochs.get(self.epoch);
        let user = User {
            id: text(ids.user).into(),
            version: self.version(),
            status: Status::Online,
            since: self.user_since(),
            last_seen: self.last_seen(),
            custom_status: None,
            marks: None,
            devices: vec![Device {
                platform: self.platform,
                device: text(ids.device).into(),
                link: Link {
                    gateway,
                    epoch,
                    conn: self.conn,
                },
                since: self.since(),
                state: DeviceState::Online {
                    session: Session {
                        login_at: self.login_at(),
                        last_seen: self.last_seen(),
                        evidence: self.evidence,
                        client: (!ids.client.is_empty()).then(|| text(ids.client).into()),
                    },
                    heartbeat_by: self.heartbeat_by(),
                    background_by: None,
                    linger: None,
                },
            }],
            armed: self.armed(),
            dirt: self.dirt,
            due: false,
        };
        shared.texts.free(self.text);
        shared.epochs.release(self.epoch);
        user
    }

    /// Sets the times that a heartbeat changes, of the device and of the user. Returns false and does nothing if they do
    /// not fit.
    pub fn set_beat(&mut self, beat: BeatTimes) -> bool {
        let timeout_ms = beat.heartbeat_by.0.checked_sub(beat.last_seen.0).map(u32::try_from);
        let (Some(last_seen), Some(Ok(timeout_ms))) = (ShortTime::new(beat.last_seen), timeout_ms) else {
            return false;
        };
        self.last_seen = last_seen;
        self.evidence = beat.evidence;
        self.timeout_ms = timeout_ms;
        true
    }

    /// Refreshes the device, as a heartbeat, if it is on this connection.
    pub fn refresh(&mut self, epoch: EpochId, conn: Conn, beat: ShortBeat, rules: &Rulebook) -> Refreshed {
        let timeout_ms = rules.of(self.platform).rules.timeout_ms;
        let (true, Ok(short_timeout_ms)) = (self.epoch == epoch && self.conn == conn, u32::try_from(timeout_ms)) else {
            return Refreshed::No;
        };
        self.last_seen = beat.last_seen;
        self.evidence = beat.evidence;
        self.timeout_ms = short_timeout_ms;
        // A heartbeat usually moves the deadline to later than the timer, which may expire early.
        if self.heartbeat_by() < self.armed() {
            Refreshed::BeforeItsTimer
        } else {
            Refreshed::Yes
        }
    }

    /// Returns the times that a heartbeat changes.
    pub fn beat(&self) -> BeatTimes {
        BeatTimes {
            last_seen: self.last_seen(),
            evidence: self.evidence,
            heartbeat_by: self.heartbeat_by(),
        }
    }

    /// Returns false and does nothing if the time does not fit.
    pub fn set_armed(&mut self, time: LogTime) -> bool {
        let armed = ShortTime::new(time);
        if let Some(armed) = armed {
            self.armed = armed;
        }
        armed.is_some()
    }

    pub fn version(&self) -> u64 {
        self.version.into()
    }

    pub fn user_since(&self) -> LogTime {
        LogTime(self.since.get().0 - u64::from(self.online_before_ms))
    }

    pub fn last_seen(&self) -> LogTime {
        self.last_seen.get()
    }

    pub fn since(&self) -> LogTime {
        self.since.get()
    }

    pub fn login_at(&self) -> LogTime {
        self.login_at.get()
    }

    pub fn armed(&self) -> LogTime {
        self.armed.get()
    }

    pub fn heartbeat_by(&self) -> LogTime {
        self.last_seen().plus(self.timeout_ms.into())
    }
}
