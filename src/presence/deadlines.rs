//! Deadlines: which devices are due by a time, in the order of section 2.3, the least (deadline, user, platform,
//! device) first.
//!
//! Each user has one timer, which is set lazily: it may expire early, never late. Heartbeats move a deadline to a later
//! time without touching the timer. When the timer expires, the state tells whether anything is really due; if not, the
//! timer is set again. Timers of users without an online device are kept separately, so that a store that keeps those
//! users on disk, ordered by their next deadline, can discard all of these timers at once
//! ([`State::release_long_timers`]).
//!
//! A lease is not a timer of each of its devices: when it expires, the devices on the gateway's connections are looked
//! up.

use super::ahead::USERS_AHEAD;
use super::change::Cause;
use super::compact::{Compact, Epochs};
use super::gateways::{Gateways, deferred};
use super::state::{Device, DeviceState, Slot, State, User};
use super::texts::text;
use super::timers::Timers;
use super::users::UserRef;
use super::{LogTime, LostBy};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Later than any deadline.
pub(super) const NEVER: LogTime = LogTime(u64::MAX);

/// What happens at a device's deadline.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Firing {
    /// An online device loses its link.
    LoseLink(LostBy),
    /// A device without a link, or a kicked one, is forgotten.
    Remove,
}

pub(super) struct Deadlines {
    /// Timers of users with an online device.
    short: Timers,
    /// Timers of users without an online device.
    long: Timers,
    /// Users due in this record, in order from `next` on, found in one pass.
    run: Vec<(LogTime, Slot)>,
    next: usize,
    /// Users due in this record, found after that pass.
    later: BinaryHeap<Reverse<(LogTime, Box<str>, Slot)>>,
    /// Whether the leases that expire with this record were handled.
    leases_seen: bool,
}

impl Deadlines {
    pub fn new() -> Deadlines {
        Deadlines {
            short: Timers::new(),
            long: Timers::new(),
            run: Vec::new(),
            next: 0,
            later: BinaryHeap::new(),
            leases_seen: false,
        }
    }

    /// Moves the timers on to the present.
    pub fn moved_to(&mut self, now: LogTime) {
        self.short.advance(now);
        self.long.advance(now);
    }

    /// Prepares for a new record.
    pub fn begin(&mut self) {
        self.leases_seen = false;
    }
}

/// Returns when an online device that is not lingering loses its link, and how.
fn online_deadline(
    heartbeat_by: LogTime,
    lease_until: Option<LogTime>,
    background_by: Option<LogTime>,
    grace_until: Option<LogTime>,
) -> (LogTime, Firing) {
    let background = background_by.map(|by| (by, LostBy::Background));
    let lease = lease_until.map(|until| (deferred(until, grace_until), LostBy::GatewayLost));
    let heartbeat = (deferred(heartbeat_by, grace_until), LostBy::Timeout);
    let mut least = heartbeat;
    for candidate in [lease, background].into_iter().flatten() {
        if candidate.0 <= least.0 {
            least = candidate;
        }
    }
    (least.0, Firing::LoseLink(least.1))
}

impl Compact {
    /// Returns what [`Device::deadline`] does, for the one device.
    pub fn deadline(&self, epochs: &Epochs, gateways: &Gateways, grace_until: Option<LogTime>) -> (LogTime, Firing) {
        let (gateway, epoch) = epochs.get(self.epoch);
        online_deadline(
            self.heartbeat_by(),
            gateways.lease_of(gateway, epoch),
            None,
            grace_until,
        )
    }
}

impl Device {
    /// Returns when something happens to the device by itself, and what (section 5). At equal times the background
    /// deadline comes before the lease, and the lease before the heartbeat.
    pub fn deadline(&self, gateways: &Gateways, grace_until: Option<LogTime>) -> (LogTime, Firing) {
        match &self.state {
            DeviceState::Online {
                linger: Some((ending, until)),
                ..
            } => (*until, Firing::LoseLink(LostBy::from(*ending))),
            DeviceState::Online {
                heartbeat_by,
                background_by,
                linger: None,
                ..
            } => {
                let lease = gateways.lease_of(self.link.gateway, self.link.epoch);
                online_deadline(*heartbeat_by, lease, *background_by, grace_until)
            }
            DeviceState::Away { until, .. } | DeviceState::Kicked { until, .. } => (*until, Firing::Remove),
        }
    }

    /// Returns a time no later than [`Device::deadline`] under any grace, without its gateway's lease.
    fn earliest(&self) -> LogTime {
        match &self.state {
            DeviceState::Online {
                linger: Some((_, until)),
                ..
            } => *until,
            DeviceState::Online {
                heartbeat_by,
                background_by,
                linger: None,
                ..
            } => background_by.map_or(*heartbeat_by, |by| by.min(*heartbeat_by)),
            DeviceState::Away { until, .. } | DeviceState::Kicked { until, .. } => *until,
        }
    }
}

impl User {
    /// Returns the device that is due first, with its deadline.
    fn first_due(&self, gateways: &Gateways, grace_until: Option<LogTime>) -> Option<(LogTime, usize, Firing)> {
        let mut first: Option<(LogTime, usize, Firing)> = None;
        for (at, device) in self.devices.iter().enumerate() {
            let (deadline, firing) = device.deadline(gateways, grace_until);
            if first.is_none_or(|(least, _, _)| deadline < least) {
                first = Some((deadline, at, firing));
            }
        }
        first
    }
}

/// A change that a device's deadline will give unless something comes before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PendingChange<'a> {
    pub platform: &'a str,
    pub device: &'a str,
    pub deadline: LogTime,
    pub cause: Cause,
}

/// A point in the order of firings. Everything up to and including it may fire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Upto<'a> {
    pub deadline: LogTime,
    pub user: &'a str,
}

impl State {
    /// Returns the changes that the deadlines of a user in memory will give, by platform and device. A deadline that only
    /// removes an offline device gives no change and is left out.
    pub fn pending_of(&self, slot: Slot) -> Vec<PendingChange<'_>> {
        let user = match self.users.view(slot) {
            None => return Vec::new(),
            Some(UserRef::Compact(user, shared)) => {
                let (deadline, firing) = user.deadline(&shared.epochs, &self.gateways, self.grace_until);
                let cause = match firing {
                    Firing::LoseLink(lost_by) => Cause::from(lost_by),
                    Firing::Remove => return Vec::new(),
                };
                return vec![PendingChange {
                    platform: self.rules.name(user.platform),
                    device: text(shared.texts.device(user.text)),
                    deadline,
                    cause,
                }];
            }
            Some(UserRef::Whole(user)) => user,
        };
        let pending = user.devices.iter().filter_map(|device| {
            let (deadline, firing) = device.deadline(&self.gateways, self.grace_until);
            let cause = match (firing, &device.state) {
                (Firing::LoseLink(lost_by), _) => Cause::from(lost_by),
                (Firing::Remove, DeviceState::Away { push: true, .. }) => Cause::PushExpired,
                (
                    Firing::Remove,
                    DeviceState::Online { .. } | DeviceState::Away { push: false, .. } | DeviceState::Kicked { .. },
                ) => return None,
            };
            Some(PendingChange {
                platform: self.rules.name(device.platform),
                device: &device.device,
                deadline,
                cause,
            })
        });
        pending.collect()
    }

    /// Sets the user's timer so that the next deadline is not missed. Leases are handled by a pass of their own.
    pub(super) fn arm(&mut self, slot: Slot) {
        let Some(user) = self.users.view(slot) else { return };
        let earliest = match user {
            UserRef::Compact(user, _) => Some(user.heartbeat_by()),
            UserRef::Whole(user) => user.devices.iter().map(Device::earliest).min(),
        };
        if let Some(earliest) = earliest {
            self.arm_at(slot, earliest);
        }
    }

    fn arm_at(&mut self, slot: Slot, time: LogTime) {
        let Some(user) = self.users.view(slot) else { return };
        if time < user.armed() {
            let timers = if user.has_online_device() {
                &mut self.deadlines.short
            } else {
                &mut self.deadlines.long
            };
            timers.push(time, slot);
            self.users.set_armed(slot, time);
        }
    }

    /// Discards the timers of users without an online device. For an owner that has saved all of them and calls
    /// [`State::wake`] when one is due.
    pub fn release_long_timers(&mut self) {
        for (time, slot) in self.deadlines.long.take_all() {
            if let Some(user) = self.users.view(slot)
                && user.armed() == time
            {
                let is_online = user.has_online_device();
                self.users.set_armed(slot, NEVER);
                // A user who has come online since then has short deadlines, which depended on this timer.
                if is_online {
                    self.arm(slot);
                }
            }
        }
    }

    /// Sets the timer of a user in memory whose next deadline was kept elsewhere.
    pub fn wake(&mut self, slot: Slot) {
        self.arm(slot);
    }

    /// Returns when the next timer of a user in memory or the next lease expires; possibly early, never late. If no
    /// user is online, a lease's expiry changes nothing and is left out: under outage grace, the very records that
    /// check for it could defer it for ever.
    pub fn next_timer(&self, anybody_online: bool) -> Option<LogTime> {
        let timers = [self.deadlines.short.least(), self.deadlines.long.least()];
        let timers = timers.into_iter().flatten();
        let leases = anybody_online.then(|| self.gateways.attention_at(self.grace_until));
        let next = timers.chain(leases).min()?;
        (next != NEVER).then_some(next)
    }

    /// Collects the users who are due by the log time and were not collected before.
    pub(super) fn collect_due(&mut self) {
        let Some(now) = self.time else { return };
        let mut found = Vec::new();
        self.expire_timers(now, &mut found);
        if !self.deadlines.leases_seen && now >= self.gateways.attention_at(self.grace_until) {
            self.deadlines.leases_seen = true;
            for (gateway, epoch) in self.gateways.expired(now, self.grace_until) {
                for slot in self.gateways.with_open_link(gateway, epoch..=epoch) {
                    self.collect(slot, now, &mut found);
                }
            }
        }
        if found.is_empty() {
            return;
        }
        if self.deadlines.next == self.deadlines.run.len() {
            let users = &self.users;
            let id = |slot: Slot| users.id(slot);
            found.sort_unstable_by(|a, b| (a.0, id(a.1)).cmp(&(b.0, id(b.1))));
            self.deadlines.run = found;
            self.deadlines.next = 0;
        } else {
            for (deadline, slot) in found {
                self.due_later(deadline, slot);
            }
        }
    }

    fn expire_timers(&mut self, now: LogTime, found: &mut Vec<(LogTime, Slot)>) {
        self.deadlines.moved_to(now);
        while self.deadlines.short.has_ready() || self.deadlines.long.has_ready() {
            let mut expired = self.deadlines.short.take_ready();
            expired.append(&mut self.deadlines.long.take_ready());
            for (number, (time, slot)) in expired.iter().copied().enumerate() {
                if number % USERS_AHEAD == 0 {
                    self.users.look_ahead(expired[number..].iter().map(|(_, slot)| *slot));
                }
                // Other timers are left over from deadlines that an earlier timer covered, or from users that are gone.
                if self.set_again(time, slot, now) {
                    continue;
                }
                if self.users.view(slot).is_some_and(|user| user.armed() == time) {
                    self.users.set_armed(slot, NEVER);
                    self.collect(slot, now, found);
                }
            }
        }
    }

    /// Sets the timer of a compact user again for whom nothing is due, as [`State::collect`] does for every user. Returns
    /// false and does nothing otherwise.
    fn set_again(&mut self, expired: LogTime, slot: Slot, now: LogTime) -> bool {
        let Some((user, epochs)) = self.users.keep_compact(slot) else {
            return false;
        };
        let deadline = user.deadline(epochs, &self.gateways, self.grace_until).0;
        let next = deferred(user.heartbeat_by(), self.grace_until);
        let is_set = user.armed() == expired && deadline > now && user.set_armed(next);
        if is_set {
            self.deadlines.short.push(next, slot);
        }
        is_set
    }

    /// Records a user as due, or sets the timer again.
    fn collect(&mut self, slot: Slot, now: LogTime, found: &mut Vec<(LogTime, Slot)>) {
        let Some(user) = self.users.view(slot) else { return };
        if user.is_due() {
            return;
        }
        let deadline = match user {
            UserRef::Compact(user, shared) => Some(user.deadline(&shared.epochs, &self.gateways, self.grace_until).0),
            UserRef::Whole(user) => user
                .first_due(&self.gateways, self.grace_until)
                .map(|(deadline, _, _)| deadline),
        };
        let Some(deadline) = deadline else { return };
        if deadline <= now {
            if let Some(user) = self.users.keep(slot) {
                user.due = true;
            }
            found.push((deadline, slot));
        } else {
            self.rearm(slot);
        }
    }

    fn due_later(&mut self, deadline: LogTime, slot: Slot) {
        if let Some(user) = self.users.id(slot) {
            self.deadlines.later.push(Reverse((deadline, user.into(), slot)));
        }
    }

    /// Sets the timer of a user for whom nothing is due at the moment.
    fn rearm(&mut self, slot: Slot) {
        let Some(user) = self.users.view(slot) else { return };
        let grace_until = self.grace_until;
        // The lease is not counted: it has its own pass. Grace only defers, so a deferred deadline is set to the end of
        // grace.
        let of_device = |device: &Device| match &device.state {
            DeviceState::Online {
                heartbeat_by,
                background_by,
                linger: None,
                ..
            } => {
                let heartbeat = deferred(*heartbeat_by, grace_until);
                background_by.map_or(heartbeat, |by| by.min(heartbeat))
            }
            DeviceState::Online { linger: Some(_), .. } | DeviceState::Away { .. } | DeviceState::Kicked { .. } => {
                device.earliest()
            }
        };
        let next = match user {
            UserRef::Compact(user, _) => Some(deferred(user.heartbeat_by(), grace_until)),
            UserRef::Whole(user) => user.devices.iter().map(of_device).min(),
        };
        if let Some(next) = next {
            self.arm_at(slot, next);
        }
    }

    /// Sets every user's timer again after the end of a grace has become earlier.
    pub(super) fn rearm_all(&mut self) {
        let slots: Vec<Slot> = self.slots().collect();
        slots.into_iter().for_each(|slot| self.arm(slot));
    }

    /// Returns the next device to fire, up to a point in the order if one is given.
    pub(super) fn next_firing(&mut self, upto: Option<Upto<'_>>) -> Option<(LogTime, Slot, usize, Firing)> {
        let in_run = self.deadlines.run.get(self.deadlines.next).copied();
        let id = |slot: Slot| self.users.id(slot);
        let (from_run, deadline, slot) = match (in_run, self.deadlines.later.peek()) {
            (None, None) => return None,
            (Some((deadline, slot)), None) => (true, deadline, slot),
            (None, Some(Reverse((deadline, _, slot)))) => (false, *deadline, *slot),
            (Some((a, slot)), Some(Reverse((b, user, other)))) => {
                if (a, id(slot)) <= (*b, Some(user)) {
                    (true, a, slot)
                } else {
                    (false, *b, *other)
                }
            }
        };
        if let Some(upto) = upto
            && (deadline, id(slot)) > (upto.deadline, Some(upto.user))
        {
            return None;
        }
        if from_run {
            self.deadlines.next += 1;
            if self.deadlines.next == self.deadlines.run.len() {
                self.deadlines.run.clear();
                self.deadlines.next = 0;
            }
        } else {
            self.deadlines.later.pop();
        }
        let user = self.users.keep(slot)?;
        user.due = false;
        let (deadline, device, firing) = user.first_due(&self.gateways, self.grace_until)?;
        Some((deadline, slot, device, firing))
    }

    /// Records the user as due again or sets the timer, after one of the user's devices has fired.
    pub(super) fn after_firing(&mut self, slot: Slot) {
        let Some(now) = self.time else { return };
        let mut found = Vec::new();
        self.collect(slot, now, &mut found);
        for (deadline, slot) in found {
            self.due_later(deadline, slot);
        }
    }
}
