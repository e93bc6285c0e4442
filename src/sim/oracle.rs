//! The rules, folded naively.
//!
//! Every sentence of `docs/rules.md` is followed as literally as possible: the least deadline is found by looking at
//! all of them, and the changes of a user by comparing it with a copy made before. The code is simple on purpose: it is
//! useful only because it is unlikely to be wrong in the same way as the core. Besides the state it keeps one thing:
//! the least deadline of each user, until something is done to the user or to what a deadline depends on.
//! `check_deadlines` checks these against all deadlines. Section numbers are those of the rules.

use super::oracle_state::{Device, Devices, EarlyEnd, Gateway, Key, Link, Login, Name, State, User, key_of, name_of};
use crate::presence::change::{
    Cause, Change, DeviceChange, IgnoreReason, Ignored, Kick, KickReason, KickedDevice, Output, OutputId, Part,
    Rehearsal,
};
use crate::presence::event::{ConnRef, DeviceRef, Ending, Event, Intent, Target};
use crate::presence::policy::{LoginMode, Platform, Policy};
use crate::presence::{Conn, Epoch, KickedBy, LogTime, LostBy, Offset, Partition, Status};
use std::collections::{BTreeMap, BTreeSet};

/// How long a gateway without a lease is remembered.
const DAY_MS: u64 = 86_400_000;

/// How long an early end is remembered, and how many of them.
const EARLY_END_MS: u64 = 60_000;
const EARLY_ENDS_MAX: usize = 1_024;

/// The revision that only tests raise a partition to. From it on a change has the number of changes since then, if its
/// evidence is the present record, and a custom status is also taken of a user who is push_online.
const REHEARSAL: u32 = 2;

/// One partition, folded record by record.
#[derive(Clone, Debug)]
pub struct Oracle {
    pub(super) partition: Partition,
    policy: Policy,
    /// The offset of the last record; `None` before the first one.
    pub(super) offset: Option<Offset>,
    pub(super) time: Option<u64>,
    pub(super) grace_until: Option<u64>,
    pub(super) gateways: BTreeMap<Name, Gateway>,
    pub(super) seq: u64,
    pub(super) users: BTreeMap<Name, User>,
    revision: u32,
    /// The number of changes since the partition was raised to the rehearsal of a revision.
    rehearsed: u64,
    /// In the order in which they came.
    early_ends: Vec<EarlyEnd>,
    /// The least deadline of every user that has one, and the users in the order of these deadlines.
    deadlines: BTreeMap<Name, u64>,
    due: BTreeSet<(u64, Name)>,
    /// Users whose least deadline may have changed.
    touched: Vec<Name>,
    /// The number of changes and kicks that the present record has given.
    index: u64,
    /// The outputs that the present record has given.
    given: Vec<Output>,
}

/// What happens when a deadline fires.
#[derive(Clone, Copy, Debug)]
pub(super) enum Firing {
    LoseLink(LostBy),
    Remove,
}

/// What a client reports about its connection, besides that it is alive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Life {
    Heartbeat,
    Foreground,
    Background,
}

impl Oracle {
    /// Returns an empty partition under its first policy.
    pub fn new(partition: Partition, policy: Policy) -> Oracle {
        Oracle {
            partition,
            policy,
            offset: None,
            time: None,
            grace_until: None,
            gateways: BTreeMap::new(),
            seq: 0,
            users: BTreeMap::new(),
            revision: 1,
            rehearsed: 0,
            early_ends: Vec::new(),
            deadlines: BTreeMap::new(),
            due: BTreeSet::new(),
            touched: Vec::new(),
            index: 0,
            given: Vec::new(),
        }
    }

    /// Folds one record (sections 2 and 5). `None` as the event is a malformed record, which only advances the time.
    pub fn fold(&mut self, offset: Offset, ts: u64, event: Option<&Event<'_>>, out: &mut Vec<Output>) {
        self.offset = Some(offset);
        self.index = 0;
        let earlier = self.time;
        let now = earlier.map_or(ts, |time| time.max(ts));
        self.time = Some(now);

        // Section 2.4, before anything fires.
        let outage = self.policy.outage;
        if let Some(earlier) = earlier
            && outage.silence_ms > 0
            && now - earlier > outage.silence_ms
        {
            self.grace_until = Some(now + outage.grace_ms);
            self.touched.extend(self.users.keys().cloned());
        }

        while self.next_deadline().is_some_and(|deadline| deadline <= now)
            && let Some((deadline, user, key, firing)) = self.least_deadline()
        {
            self.fire(deadline, &user, &key, firing);
        }

        let grace_until = self.grace_until;
        let mut dropped = Vec::new();
        for (name, gateway) in &mut self.gateways {
            if gateway.active && deferred(gateway.until, grace_until) <= now {
                gateway.active = false;
                dropped.push(name.clone());
            }
        }
        for gateway in dropped {
            self.touch_users_of(&gateway);
        }
        self.gateways
            .retain(|_, gateway| gateway.active || gateway.until + DAY_MS > now);
        self.early_ends.retain(|end| now - end.came < EARLY_END_MS);

        if let Some(event) = event {
            self.apply(event);
        }
        out.append(&mut self.given);
    }

    fn now(&self) -> u64 {
        self.time.unwrap_or(0)
    }

    fn this_record(&self) -> Offset {
        self.offset.unwrap_or_default()
    }

    // Deadlines (sections 2.3 and 5).

    /// Returns the time of a device's deadline, and what fires then.
    pub(super) fn deadline(&self, device: &Device) -> (u64, Firing) {
        match &device.state {
            State::Online {
                linger: Some((reason, until)),
                ..
            } => (*until, Firing::LoseLink(*reason)),
            State::Online {
                heartbeat, background, ..
            } => {
                let lease = self.gateways.get(&device.link.gateway);
                let lease = lease.filter(|gateway| gateway.active && gateway.epoch == device.link.epoch);
                let expiry = lease.map(|gateway| deferred(gateway.until, self.grace_until));
                let candidates = [
                    background.map(|background| (background, LostBy::Background)),
                    expiry.map(|expiry| (expiry, LostBy::GatewayLost)),
                ];
                let mut least = (deferred(*heartbeat, self.grace_until), LostBy::Timeout);
                // Of equal deadlines the first in the order of the rules fires, so the heartbeat's is the last.
                for candidate in candidates.into_iter().rev().flatten() {
                    if candidate.0 <= least.0 {
                        least = candidate;
                    }
                }
                (least.0, Firing::LoseLink(least.1))
            }
            State::Away { until, .. } | State::Kicked { until, .. } => (*until, Firing::Remove),
        }
    }

    pub fn time(&self) -> Option<u64> {
        self.time
    }

    /// Returns the least deadline.
    pub fn next_deadline(&mut self) -> Option<u64> {
        for name in std::mem::take(&mut self.touched) {
            self.note_deadline(name);
        }
        self.due.first().map(|(deadline, _)| *deadline)
    }

    /// Returns the least (deadline, user, platform, device), and what fires then.
    fn least_deadline(&mut self) -> Option<(u64, Name, Key, Firing)> {
        let (_, name) = self.due.first()?;
        let devices = self.users.get(name)?.devices.iter();
        devices
            .map(|(key, device)| (self.deadline(device), key))
            .min_by_key(|((deadline, _), key)| (*deadline, *key))
            .map(|((deadline, firing), key)| (deadline, name.clone(), key.clone(), firing))
    }

    /// Returns the least deadline of a user, by looking at all of the devices.
    fn deadline_of(&self, user: &User) -> Option<u64> {
        user.devices.values().map(|device| self.deadline(device).0).min()
    }

    fn note_deadline(&mut self, name: Name) {
        let deadline = self.users.get(&name).and_then(|user| self.deadline_of(user));
        let noted = match deadline {
            Some(deadline) => self.deadlines.insert(name.clone(), deadline),
            None => self.deadlines.remove(&name),
        };
        if noted == deadline {
            return;
        }
        if let Some(noted) = noted {
            self.due.remove(&(noted, name.clone()));
        }
        if let Some(deadline) = deadline {
            self.due.insert((deadline, name));
        }
    }

    /// Marks all users with a device on a gateway, since a change of the gateway may change their deadlines.
    fn touch_users_of(&mut self, gateway: &str) {
        for (name, user) in &self.users {
            if user.devices.values().any(|device| *device.link.gateway == *gateway) {
                self.touched.push(name.clone());
            }
        }
    }

    /// Checks all deadlines against the remembered ones. Returns an error that names a user whose least deadline
    /// differs.
    pub fn check_deadlines(&mut self) -> Result<(), String> {
        self.next_deadline();
        for (name, user) in &self.users {
            let (is, noted) = (self.deadline_of(user), self.deadlines.get(name).copied());
            let listed = is.is_none_or(|is| self.due.contains(&(is, name.clone())));
            if is != noted || !listed {
                return Err(format!("{name:?} is due at {is:?}, not at {noted:?}"));
            }
        }
        let (users, noted, listed) = (self.users.len(), self.deadlines.len(), self.due.len());
        if noted > users || listed != noted {
            return Err(format!(
                "{users} users have {noted} deadlines, {listed} of them in order"
            ));
        }
        Ok(())
    }

    fn fire(&mut self, deadline: u64, name: &str, key: &Key, firing: Firing) {
        let before = self.copy_of(name);
        let evidence = before
            .devices
            .get(key)
            .and_then(Device::login)
            .map_or(Offset(0), |login| login.evidence);
        let cause = match firing {
            Firing::LoseLink(why) => {
                self.lose_link(name, key, deadline, why);
                Cause::from(why)
            }
            Firing::Remove => {
                self.user(name).devices.remove(key);
                Cause::PushExpired
            }
        };
        self.tell(name, &before, Some(key), deadline, cause, evidence);
    }

    // Events (section 6).

    fn apply(&mut self, event: &Event<'_>) {
        match event {
            Event::Connect {
                who,
                via,
                intent,
                client,
                auth_at,
            } => self.connect(who, via, *intent, client.as_deref(), *auth_at),
            Event::Heartbeat { who, via } => self.life(who, &Link::of(via), Life::Heartbeat, Part::Whole),
            Event::Foreground { who, via } => self.life(who, &Link::of(via), Life::Foreground, Part::Whole),
            Event::Background { who, via } => self.life(who, &Link::of(via), Life::Background, Part::Whole),
            Event::Heartbeats { gateway, epoch, beats } => {
                for (index, beat) in beats.iter().enumerate() {
                    let link = Link {
                        gateway: name_of(gateway),
                        epoch: *epoch,
                        conn: beat.conn,
                    };
                    self.life(&beat.who, &link, Life::Heartbeat, Part::Heartbeat(index));
                }
            }
            Event::Alive { gateway, epoch, conns } => self.alive(gateway, *epoch, conns),
            Event::Disconnect { who, via, reason } => self.disconnect(who, &Link::of(via), *reason),
            Event::Logout { who, via } => self.logout(who, &Link::of(via)),
            Event::Kick { user, target } => self.operator_kick(user, target),
            Event::CustomStatus { user, text } => self.custom_status(user, text.as_deref()),
            Event::Forget { user } => self.forget(user),
            Event::Lease { gateway, epoch, ttl_ms } => self.lease(gateway, *epoch, *ttl_ms),
            Event::Policy { policy, .. } => {
                let removed = self
                    .policy
                    .platforms
                    .keys()
                    .any(|name| !policy.platforms.contains_key(name));
                if removed {
                    self.ignore(IgnoreReason::PlatformRemoved, Part::Whole);
                } else {
                    self.policy = (**policy).clone();
                }
            }
            Event::Revision { revision } => self.revision = self.revision.max(*revision),
            Event::Tick => {}
        }
    }

    fn connect(
        &mut self,
        who: &DeviceRef<'_>,
        via: &ConnRef<'_>,
        intent: Intent,
        client: Option<&str>,
        auth_at: Option<u64>,
    ) {
        let now = self.now();
        let name: &str = &who.user;
        let key = key_of(who);
        let link = Link::of(via);
        if !self.policy.platforms.contains_key(&*key.0) {
            self.refuse(IgnoreReason::UnknownPlatform, KickReason::Stale, name, &key, &link);
            return;
        }
        if self.is_stale(&link.gateway, link.epoch) {
            self.refuse(IgnoreReason::StaleEpoch, KickReason::Stale, name, &key, &link);
            return;
        }
        let before = self.copy_of(name);
        let entry = before.devices.get(&key);
        if let Some(device) = entry {
            if device.link == link {
                self.ignore(IgnoreReason::Duplicate, Part::Whole);
                return;
            }
            if device.link.gateway == link.gateway && device.link.epoch == link.epoch && link.conn < device.link.conn {
                self.refuse(IgnoreReason::Superseded, KickReason::Stale, name, &key, &link);
                return;
            }
        }
        if self.is_early_end(&link) {
            self.ignore(IgnoreReason::Ended, Part::Whole);
            return;
        }
        if let Some(kicked_at) = before.kicked_at {
            let is_refused = match auth_at {
                Some(auth_at) => auth_at <= kicked_at,
                None => intent == Intent::Resume && before.barred,
            };
            if is_refused {
                self.refuse(IgnoreReason::Kicked, KickReason::Admin, name, &key, &link);
                return;
            }
        }
        if let Some(device) = entry {
            if let State::Kicked { reason, .. } = device.state
                && intent == Intent::Resume
            {
                self.refuse(IgnoreReason::Kicked, KickReason::from(reason), name, &key, &link);
                return;
            }
        } else if intent == Intent::Resume {
            let somebody_present = self
                .to_displace(&before, &key)
                .iter()
                .filter_map(|other| before.devices.get(other))
                .any(|other| other.status() != Status::Offline);
            if somebody_present {
                self.refuse(IgnoreReason::Kicked, KickReason::Displaced, name, &key, &link);
                return;
            }
        }

        // From here on the connect is accepted.
        let heartbeat = now + self.platform(&key.0).timeout_ms;
        let evidence = self.this_record();
        let mut kicks = Vec::new();
        let (since, login_at, displaces, cause) = match entry.map(|device| (device, &device.state)) {
            Some((device, State::Online { login, linger, .. })) => {
                if linger.is_none() {
                    kicks.push((key.clone(), device.link.clone(), KickReason::Replaced));
                }
                match intent {
                    Intent::Login => (device.since, now, true, Cause::Login),
                    Intent::Resume => (device.since, login.login_at, false, Cause::Resume),
                }
            }
            Some((_, State::Away { login, .. })) if intent == Intent::Resume => {
                (now, login.login_at, false, Cause::Resume)
            }
            _ => (now, now, true, Cause::Login),
        };
        let device = Device {
            link,
            since,
            state: State::Online {
                login: Login {
                    client: client.map(name_of),
                    login_at,
                    last_seen: now,
                    evidence,
                },
                heartbeat,
                background: None,
                linger: None,
            },
        };
        let user = self.user(name);
        user.devices.insert(key.clone(), device);
        user.last_seen = now;
        if intent == Intent::Login || auth_at.is_some() {
            user.barred = false;
        }
        if displaces {
            kicks.append(&mut self.displace(name, &key));
        }
        self.tell(name, &before, Some(&key), now, cause, evidence);
        for (other, link, reason) in kicks {
            self.kick(name, &other, &link, reason);
        }
    }

    /// Returns the devices that *displace* chooses for a login on a device, which need not exist yet.
    fn to_displace(&self, user: &User, key: &Key) -> BTreeSet<Key> {
        let kind = &self.platform(&key.0).kind;
        let others: Vec<(&Key, &Device, &Login)> = user
            .devices
            .iter()
            .filter(|(other, _)| *other != key)
            .filter_map(|(other, device)| device.login().map(|login| (other, device, login)))
            .collect();
        let mut chosen = BTreeSet::new();
        for (other, _, _) in &others {
            let other_kind = &self.platform(&other.0).kind;
            if other_kind != kind && share_a_group(&self.policy, kind, other_kind) {
                chosen.insert((*other).clone());
            }
        }
        let mut same: Vec<(bool, u64, &Key)> = others
            .iter()
            .filter(|(other, _, _)| &self.platform(&other.0).kind == kind)
            .map(|(other, device, login)| (device.status() != Status::Offline, login.login_at, *other))
            .collect();
        same.sort();
        let mut left = same.len() as u64;
        let limit = self.policy.instances.get(kind).copied().unwrap_or(1) - 1;
        for (_, _, other) in same {
            if left > limit {
                chosen.insert(other.clone());
                left -= 1;
            }
        }
        chosen
    }

    /// Displaces other devices of a user. Returns the kicks, which are emitted after the change.
    fn displace(&mut self, name: &str, key: &Key) -> Vec<(Key, Link, KickReason)> {
        let chosen = self.to_displace(&self.copy_of(name), key);
        let kicks = self.make_kicked(name, &chosen, KickedBy::Displaced);
        self.trim(name);
        kicks
    }

    fn make_kicked(&mut self, name: &str, chosen: &BTreeSet<Key>, reason: KickedBy) -> Vec<(Key, Link, KickReason)> {
        let now = self.now();
        let mut kicks = Vec::new();
        for key in chosen {
            let away_ms = self.platform(&key.0).away_ms;
            let Some(device) = self.user(name).devices.remove(key) else {
                continue;
            };
            if device.has_link() {
                kicks.push((key.clone(), device.link.clone(), KickReason::from(reason)));
            }
            if away_ms > 0 {
                let kicked = Device {
                    link: device.link,
                    since: now,
                    state: State::Kicked {
                        reason,
                        until: now + away_ms,
                    },
                };
                self.user(name).devices.insert(key.clone(), kicked);
            }
        }
        kicks
    }

    fn trim(&mut self, name: &str) {
        let most = self.policy.kicked_max;
        let user = self.user(name);
        let mut kicked: Vec<(u64, Key)> = user
            .devices
            .iter()
            .filter_map(|(key, device)| match device.state {
                State::Kicked { until, .. } => Some((until, key.clone())),
                _ => None,
            })
            .collect();
        kicked.sort();
        while kicked.len() as u64 > most {
            let (_, key) = kicked.remove(0);
            user.devices.remove(&key);
        }
    }

    fn lose_link(&mut self, name: &str, key: &Key, at: u64, why: LostBy) {
        let platform = self.platform(&key.0);
        let away_ms = platform.away_ms;
        let status = if platform.push {
            Status::PushOnline
        } else {
            Status::Offline
        };
        let user = self.user(name);
        let Some(device) = user.devices.remove(key) else {
            return;
        };
        let State::Online { login, .. } = device.state else {
            return;
        };
        if away_ms > 0 {
            let away = Device {
                link: device.link,
                since: at,
                state: State::Away {
                    login,
                    status,
                    lost_by: why,
                    until: at + away_ms,
                },
            };
            user.devices.insert(key.clone(), away);
        }
    }

    /// Folds heartbeat, foreground, background, and each beat of heartbeats.
    fn life(&mut self, who: &DeviceRef<'_>, link: &Link, life: Life, part: Part) {
        let now = self.now();
        let name: &str = &who.user;
        let key = key_of(who);
        if self.is_stale(&link.gateway, link.epoch) {
            self.ignore(IgnoreReason::StaleEpoch, part);
            self.kick(name, &key, link, KickReason::Stale);
            return;
        }
        let before = self.copy_of(name);
        let Some(entry) = before.devices.get(&key) else {
            self.ignore(IgnoreReason::UnknownConnection, part);
            self.kick(name, &key, link, KickReason::Stale);
            return;
        };
        if entry.link != *link {
            self.ignore(IgnoreReason::Superseded, part);
            self.kick(name, &key, link, KickReason::Stale);
            return;
        }
        let evidence = self.this_record();
        let mut device = entry.clone();
        match &entry.state {
            State::Kicked { reason, .. } => {
                self.ignore(IgnoreReason::Kicked, part);
                self.kick(name, &key, link, KickReason::from(*reason));
                return;
            }
            State::Online { linger: Some(_), .. } => {
                self.ignore(IgnoreReason::Closed, part);
                return;
            }
            State::Online { login, background, .. } => {
                let background = match (life, background) {
                    (Life::Heartbeat, set) => *set,
                    (Life::Foreground, _) => None,
                    (Life::Background, Some(set)) => Some(*set),
                    (Life::Background, None) => self.platform(&key.0).background_ms.map(|ms| now + ms),
                };
                device.state = State::Online {
                    login: Login {
                        last_seen: now,
                        evidence,
                        ..login.clone()
                    },
                    heartbeat: now + self.platform(&key.0).timeout_ms,
                    background,
                    linger: None,
                };
            }
            State::Away { login, lost_by, .. } => {
                let revives = match lost_by {
                    LostBy::Timeout | LostBy::GatewayLost => life != Life::Background,
                    LostBy::Background => life == Life::Foreground,
                    LostBy::Closed | LostBy::Exit => false,
                };
                if !revives {
                    self.ignore(IgnoreReason::Closed, part);
                    return;
                }
                device.since = now;
                device.state = State::Online {
                    login: Login {
                        last_seen: now,
                        evidence,
                        ..login.clone()
                    },
                    heartbeat: now + self.platform(&key.0).timeout_ms,
                    background: None,
                    linger: None,
                };
            }
        }
        let user = self.user(name);
        user.devices.insert(key.clone(), device);
        user.last_seen = now;
        self.tell(name, &before, Some(&key), now, Cause::Revive, evidence);
    }

    /// Handles each connection number in turn: a device that is online on that connection shows life. If no device is
    /// online on it, a kick asks the gateway to identify the connection.
    fn alive(&mut self, gateway: &str, epoch: Epoch, conns: &[Conn]) {
        let now = self.now();
        let evidence = self.this_record();
        let is_stale = self.is_stale(gateway, epoch);
        // Which devices are online on which connection does not change within the record.
        let mut online: BTreeMap<Conn, Vec<(Name, Key)>> = BTreeMap::new();
        for (name, user) in &self.users {
            for (key, device) in user.devices.iter() {
                let link = &device.link;
                if device.status() == Status::Online && *link.gateway == *gateway && link.epoch == epoch {
                    online.entry(link.conn).or_default().push((name.clone(), key.clone()));
                }
            }
        }
        for conn in conns {
            let part = Part::Conn(*conn);
            let link = Link {
                gateway: name_of(gateway),
                epoch,
                conn: *conn,
            };
            if is_stale {
                self.ignore(IgnoreReason::StaleEpoch, part);
                self.kick_nobody(&link, KickReason::Stale);
                continue;
            }
            let Some(found) = online.get(conn) else {
                self.ignore(IgnoreReason::UnknownConnection, part);
                self.kick_nobody(&link, KickReason::Identify);
                continue;
            };
            for (name, key) in found {
                let timeout_ms = self.platform(&key.0).timeout_ms;
                let user = self.user(name);
                let Some(device) = user.devices.get_mut(key) else {
                    continue;
                };
                if !device.has_link() {
                    self.ignore(IgnoreReason::Closed, part);
                    continue;
                }
                if let State::Online { login, heartbeat, .. } = &mut device.state {
                    login.last_seen = now;
                    login.evidence = evidence;
                    *heartbeat = now + timeout_ms;
                    user.last_seen = now;
                }
            }
        }
    }

    fn disconnect(&mut self, who: &DeviceRef<'_>, link: &Link, reason: Ending) {
        let now = self.now();
        let name: &str = &who.user;
        let key = key_of(who);
        let before = self.copy_of(name);
        let entry = before.devices.get(&key);
        let Some(entry) = entry.filter(|entry| entry.link == *link) else {
            return self.ends_early(entry, link);
        };
        let mut device = entry.clone();
        match &mut device.state {
            State::Kicked { .. } => self.ignore(IgnoreReason::Kicked, Part::Whole),
            State::Online { linger: Some(_), .. } => self.ignore(IgnoreReason::Duplicate, Part::Whole),
            State::Online { linger, .. } => {
                let platform = self.platform(&key.0);
                let delay = match reason {
                    Ending::Closed => platform.closed_ms,
                    Ending::Exit => platform.exit_ms,
                };
                if delay == 0 {
                    let why = LostBy::from(reason);
                    self.lose_link(name, &key, now, why);
                    self.tell(name, &before, Some(&key), now, Cause::from(why), self.this_record());
                } else {
                    *linger = Some((LostBy::from(reason), now + delay));
                    self.user(name).devices.insert(key, device);
                }
            }
            State::Away {
                lost_by: LostBy::Closed | LostBy::Exit,
                ..
            } => self.ignore(IgnoreReason::Duplicate, Part::Whole),
            State::Away { lost_by, .. } => {
                *lost_by = LostBy::from(reason);
                self.user(name).devices.insert(key, device);
            }
        }
    }

    fn logout(&mut self, who: &DeviceRef<'_>, link: &Link) {
        let name: &str = &who.user;
        let key = key_of(who);
        let before = self.copy_of(name);
        let entry = before.devices.get(&key);
        let Some(entry) = entry.filter(|entry| entry.link == *link) else {
            return self.ends_early(entry, link);
        };
        if let State::Kicked { .. } = entry.state {
            return self.ignore(IgnoreReason::Kicked, Part::Whole);
        }
        self.user(name).devices.remove(&key);
        self.tell(name, &before, Some(&key), self.now(), Cause::Logout, self.this_record());
    }

    /// Handles a disconnect or logout of a connection that its device is not on.
    fn ends_early(&mut self, entry: Option<&Device>, link: &Link) {
        match entry {
            None => self.ignore(IgnoreReason::UnknownConnection, Part::Whole),
            Some(entry) => {
                self.ignore(IgnoreReason::Superseded, Part::Whole);
                let on = &entry.link;
                if on.gateway == link.gateway && on.epoch == link.epoch && on.conn > link.conn {
                    return;
                }
            }
        }
        if self.is_early_end(link) {
            return;
        }
        self.early_ends.push(EarlyEnd {
            link: link.clone(),
            came: self.now(),
        });
        if self.early_ends.len() > EARLY_ENDS_MAX {
            self.early_ends.remove(0);
        }
    }

    fn operator_kick(&mut self, name: &str, target: &Target<'_>) {
        if !self.users.contains_key(name) {
            return self.ignore(IgnoreReason::UnknownUser, Part::Whole);
        }
        let before = self.copy_of(name);
        let mut matching = BTreeSet::new();
        for (key, device) in before.devices.iter() {
            let named = match target {
                Target::All => true,
                Target::Platform(platform) => *key.0 == **platform,
                Target::Device(platform, device) => *key.0 == **platform && *key.1 == **device,
            };
            if named && device.login().is_some() {
                matching.insert(key.clone());
            }
        }
        if *target == Target::All {
            let now = self.now();
            let user = self.user(name);
            user.kicked_at = Some(now);
            user.barred = true;
        } else if matching.is_empty() {
            return self.ignore(IgnoreReason::NoEffect, Part::Whole);
        }
        let kicks = self.make_kicked(name, &matching, KickedBy::Admin);
        self.trim(name);
        self.tell(name, &before, None, self.now(), Cause::Kicked, self.this_record());
        for (key, link, reason) in kicks {
            self.kick(name, &key, &link, reason);
        }
    }

    fn custom_status(&mut self, name: &str, text: Option<&str>) {
        let before = self.copy_of(name);
        let is_taken = match before.status() {
            Status::Online => true,
            Status::PushOnline => self.revision >= REHEARSAL,
            Status::Offline => false,
        };
        if !is_taken {
            return self.ignore(IgnoreReason::NotOnline, Part::Whole);
        }
        if before.custom_status.as_deref() == text {
            return self.ignore(IgnoreReason::NoEffect, Part::Whole);
        }
        self.user(name).custom_status = text.map(name_of);
        self.tell(name, &before, None, self.now(), Cause::CustomStatus, self.this_record());
    }

    fn forget(&mut self, name: &str) {
        if !self.users.contains_key(name) {
            return self.ignore(IgnoreReason::UnknownUser, Part::Whole);
        }
        let before = self.copy_of(name);
        self.user(name).devices = Devices::default();
        self.tell(name, &before, None, self.now(), Cause::Forgotten, self.this_record());
        for (key, device) in before.devices.iter() {
            if device.has_link() {
                self.kick(name, key, &device.link, KickReason::Forgotten);
            }
        }
        self.users.remove(name);
        self.touched.push(name_of(name));
    }

    fn lease(&mut self, name: &str, epoch: Epoch, ttl_ms: u64) {
        if self.is_stale(name, epoch) {
            return self.ignore(IgnoreReason::StaleEpoch, Part::Whole);
        }
        let now = self.now();
        let known = self.gateways.get(name).map(|gateway| gateway.epoch);
        if known.is_none_or(|known| epoch > known) {
            self.lose_links_of(|link| *link.gateway == *name && link.epoch < epoch);
        }
        self.touch_users_of(name);
        self.gateways.insert(
            name_of(name),
            Gateway {
                epoch,
                ended: ttl_ms == 0,
                until: now + ttl_ms,
                active: ttl_ms > 0,
            },
        );
        if ttl_ms == 0 {
            self.lose_links_of(|link| *link.gateway == *name && link.epoch == epoch);
        }
    }

    /// Every online device on such a link that is not lingering loses the link now, each with a change of its own.
    fn lose_links_of(&mut self, such: impl Fn(&Link) -> bool) {
        let mut lost = Vec::new();
        for (name, user) in &self.users {
            for (key, device) in user.devices.iter() {
                if device.has_link() && such(&device.link) {
                    lost.push((name.clone(), key.clone()));
                }
            }
        }
        for (name, key) in lost {
            let before = self.copy_of(&name);
            let now = self.now();
            self.lose_link(&name, &key, now, LostBy::GatewayLost);
            self.tell(&name, &before, Some(&key), now, Cause::GatewayLost, self.this_record());
        }
    }

    // Helpers.

    fn is_stale(&self, gateway: &str, epoch: Epoch) -> bool {
        self.gateways
            .get(gateway)
            .is_some_and(|known| known.epoch > epoch || (known.epoch == epoch && known.ended))
    }

    fn is_early_end(&self, link: &Link) -> bool {
        self.early_ends.iter().any(|end| end.link == *link)
    }

    /// Returns a platform of the policy in force. A policy never loses a platform, so the platform of every device
    /// exists.
    fn platform(&self, name: &str) -> &Platform {
        &self.policy.platforms[name]
    }

    /// Returns a user to be changed, and creates it if it does not exist.
    fn user(&mut self, name: &str) -> &mut User {
        let name = name_of(name);
        if self.touched.last() != Some(&name) {
            self.touched.push(name.clone());
        }
        self.users.entry(name).or_default()
    }

    /// Returns a copy of the user as it is now, or a user without devices if it does not exist.
    fn copy_of(&self, name: &str) -> User {
        self.users.get(name).cloned().unwrap_or_default()
    }

    // Outputs (section 7).

    fn next_id(&mut self) -> OutputId {
        let id = OutputId {
            partition: self.partition,
            offset: self.this_record(),
            index: self.index,
        };
        self.index += 1;
        id
    }

    fn ignore(&mut self, reason: IgnoreReason, part: Part) {
        self.given.push(Output::Ignored(Ignored {
            offset: self.this_record(),
            reason,
            part,
        }));
    }

    fn kick(&mut self, name: &str, key: &Key, link: &Link, reason: KickReason) {
        let kick = Kick {
            id: self.next_id(),
            gateway: (*link.gateway).into(),
            epoch: link.epoch,
            conn: link.conn,
            whose: Some(KickedDevice {
                user: name.into(),
                platform: (*key.0).into(),
                device: (*key.1).into(),
            }),
            reason,
            at: LogTime(self.now()),
        };
        self.given.push(Output::Kick(kick));
    }

    /// Emits a kick of a connection of which an `alive` record gives only the number.
    fn kick_nobody(&mut self, link: &Link, reason: KickReason) {
        let kick = Kick {
            id: self.next_id(),
            gateway: (*link.gateway).into(),
            epoch: link.epoch,
            conn: link.conn,
            whose: None,
            reason,
            at: LogTime(self.now()),
        };
        self.given.push(Output::Kick(kick));
    }

    fn refuse(&mut self, ignored: IgnoreReason, kicked: KickReason, name: &str, key: &Key, link: &Link) {
        self.ignore(ignored, Part::Whole);
        self.kick(name, key, link, kicked);
    }

    /// Compares a user with its state before, and emits a change if there is a difference to report.
    fn tell(&mut self, name: &str, before: &User, about: Option<&Key>, at: u64, cause: Cause, evidence: Offset) {
        let nobody = User::default();
        let after = self.users.get(name).unwrap_or(&nobody);
        let mut keys: Vec<&Key> = before.devices.keys().chain(after.devices.keys()).collect();
        keys.sort_unstable();
        keys.dedup();
        let mut devices = Vec::new();
        for key in keys {
            let (old, new) = (before.devices.get(key), after.devices.get(key));
            let was = old.map_or(Status::Offline, Device::status);
            let is = new.map_or(Status::Offline, Device::status);
            let Some(link) = new.or(old).map(|device| &device.link) else {
                continue;
            };
            if was == is {
                continue;
            }
            let change = DeviceChange {
                platform: (*key.0).into(),
                device: (*key.1).into(),
                gateway: (*link.gateway).into(),
                before: was,
                after: is,
            };
            if about == Some(key) {
                devices.insert(0, change);
            } else {
                devices.push(change);
            }
        }
        let same_text = before.custom_status == after.custom_status;
        if devices.is_empty() && same_text && cause != Cause::Forgotten {
            return;
        }
        let (was, is) = (before.status(), after.status());
        let custom_keep_ms = self.policy.custom_keep_ms;
        let user = self.user(name);
        user.version += 1;
        if was != is {
            user.since = at;
        }
        if was == Status::Online && is != Status::Online {
            let text = user.custom_status.take();
            let is_lost = matches!(
                cause,
                Cause::Closed | Cause::Exit | Cause::Background | Cause::Timeout | Cause::GatewayLost
            );
            user.kept = text
                .filter(|_| is_lost && custom_keep_ms > 0)
                .map(|text| (text, at + custom_keep_ms));
        }
        if was != Status::Online
            && is == Status::Online
            && let Some((text, until)) = user.kept.take()
            && at < until
        {
            user.custom_status = Some(text);
        }
        let version = user.version;
        let custom_status = user.custom_status.as_deref().map(Into::into);
        self.seq += 1;
        let mut rehearsal = None;
        if self.revision >= REHEARSAL {
            self.rehearsed += 1;
            let is_of_this_record = evidence == self.this_record();
            rehearsal = Some(Rehearsal(is_of_this_record.then_some(self.rehearsed)));
        }
        let change = Change {
            id: self.next_id(),
            seq: self.seq,
            user: name.into(),
            version,
            at: LogTime(at),
            logged_at: LogTime(self.now()),
            cause,
            before: was,
            after: is,
            devices,
            custom_status,
            evidence,
            rehearsal,
        };
        self.given.push(Output::Change(change));
    }
}

/// Returns a heartbeat deadline or the expiry of a lease, as grace defers it (2.4).
fn deferred(deadline: u64, grace_until: Option<u64>) -> u64 {
    grace_until.map_or(deadline, |grace_until| deadline.max(grace_until))
}

fn share_a_group(policy: &Policy, kind: &str, other: &str) -> bool {
    if let Some(groups) = &policy.exclusive {
        let has = |group: &[String], kind: &str| group.iter().any(|of_group| of_group == kind);
        return groups.iter().any(|group| has(group, kind) && has(group, other));
    }
    let ready: &[&[&str]] = match policy.login {
        LoginMode::Single => &[&["android", "iphone", "ipad", "mac", "windows", "linux", "web"]],
        LoginMode::Dual => &[&["android", "iphone", "ipad", "mac", "windows", "linux"]],
        LoginMode::Triple => &[&["android", "iphone", "ipad"], &["mac", "windows", "linux"]],
        LoginMode::Multi => &[],
    };
    ready
        .iter()
        .any(|group| group.contains(&kind) && group.contains(&other))
}
