//! Events of an open connection: heartbeat, foreground and background, disconnect, logout (section 6).

use super::super::ahead::USERS_AHEAD;
use super::super::change::{Cause, IgnoreReason, KickReason, Part};
use super::super::compact::{EpochId, Refreshed, ShortBeat};
use super::super::event::{ConnRef, DeviceRef, Ending, HeartbeatEntry};
use super::super::fold::Out;
use super::super::gateways::GatewayId;
use super::super::state::{DeviceState, Slot, State};
use super::super::users::UserRef;
use super::super::{Conn, Epoch, LostBy};
use super::{Link, Pending, ViaRef, lose_link, remove, via};

/// The events by which a client shows life.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Sign {
    Heartbeat,
    Foreground,
    Background,
}

/// The result of looking such an event up in the table of section 6.
enum Verdict {
    Ignore(IgnoreReason),
    Refuse(IgnoreReason, KickReason),
    Refresh,
    Revive,
}

impl State {
    /// Applies each heartbeat of the record, in order, like a `heartbeat` event.
    pub(in super::super) fn heartbeats(
        &mut self,
        gateway: &str,
        epoch: Epoch,
        beats: &[HeartbeatEntry<'_>],
        out: Out<'_>,
    ) {
        for (number, beat) in beats.iter().enumerate() {
            if number % USERS_AHEAD == 0 {
                let next = beats[number..].iter().take(USERS_AHEAD);
                self.look_ahead(next.map(|beat| &*beat.who.user));
            }
            let via = ViaRef {
                gateway,
                epoch,
                conn: beat.conn,
            };
            self.sign(Sign::Heartbeat, &beat.who, &via, Part::Heartbeat(number), out);
        }
    }

    /// Applies an `alive` record: each connection, in order, like a heartbeat of the devices that are online on it
    /// (section 6, alive).
    pub(in super::super) fn alive(&mut self, gateway: &str, epoch: Epoch, conns: &[Conn], out: Out<'_>) {
        let id = self.gateways.find(gateway);
        let is_stale = self.gateways.is_stale(id, epoch);
        let beat = ShortBeat::new(self.now(), self.here());
        let compact = id.and_then(|id| self.users.epochs().find(id, epoch)).zip(beat);
        let mut slots = Vec::new();
        for group in conns.chunks(USERS_AHEAD) {
            let mut alone = [None; USERS_AHEAD];
            if let Some(id) = id
                && !is_stale
            {
                self.alone_on(id, epoch, group, &mut alone);
            }
            for (conn, slot) in group.iter().copied().zip(alone) {
                if let Some((epoch, beat)) = compact
                    && let Some(slot) = slot
                    && self.refresh_compact_on(slot, epoch, conn, beat)
                {
                    continue;
                }
                let via = ViaRef { gateway, epoch, conn };
                if is_stale {
                    self.refuse_connection(&via, IgnoreReason::StaleEpoch, KickReason::Stale, out);
                } else {
                    self.alive_on(id, &via, &mut slots, out);
                }
            }
        }
    }

    /// Applies one connection of an `alive` record. `slots` is a buffer.
    fn alive_on(&mut self, id: Option<GatewayId>, via: &ViaRef<'_>, slots: &mut Vec<Slot>, out: Out<'_>) {
        slots.clear();
        if let Some(gateway) = id {
            let (epoch, conn) = (via.epoch, via.conn);
            self.gateways.on_connection(Link { gateway, epoch, conn }, slots);
        }
        if slots.is_empty() {
            return self.refuse_connection(via, IgnoreReason::UnknownConnection, KickReason::Identify, out);
        }
        if slots.len() > 1 {
            let users = &self.users;
            slots.sort_unstable_by_key(|slot| users.id(*slot));
            slots.dedup();
        }
        for slot in slots {
            self.refresh_all_on(*slot, id, via, out);
        }
    }

    /// Refreshes a user's devices that are online on an `alive` connection, in (platform, device) order.
    fn refresh_all_on(&mut self, slot: Slot, gateway: Option<GatewayId>, via: &ViaRef<'_>, out: Out<'_>) {
        let devices = self.users.get(slot).map_or(0, |user| user.devices.len());
        for place in 0..devices {
            let Some(device) = self.users.get(slot).map(|user| &user.devices[place]) else {
                return;
            };
            let link = device.link;
            if Some(link.gateway) != gateway || link.epoch != via.epoch || link.conn != via.conn {
                continue;
            }
            match &device.state {
                DeviceState::Online { linger: Some(_), .. } => {
                    self.ignore(IgnoreReason::Closed, Part::Conn(via.conn), out);
                }
                DeviceState::Online { linger: None, .. } => self.refresh(slot, place, Sign::Heartbeat),
                DeviceState::Away { .. } | DeviceState::Kicked { .. } => {}
            }
        }
    }

    /// Ignores the end of a connection that is not, or not yet, its device's current one, but remembers it (section 6,
    /// early ends).
    fn ignore_end(&mut self, who: &DeviceRef<'_>, via: &ConnRef<'_>, why: IgnoreReason, out: Out<'_>) {
        let may_still_begin = match why {
            IgnoreReason::UnknownConnection => true,
            IgnoreReason::Superseded => !self.is_on_a_later_connection(who, via),
            IgnoreReason::UnknownPlatform
            | IgnoreReason::StaleEpoch
            | IgnoreReason::Duplicate
            | IgnoreReason::Kicked
            | IgnoreReason::Closed
            | IgnoreReason::UnknownUser
            | IgnoreReason::NoEffect
            | IgnoreReason::NotOnline
            | IgnoreReason::PlatformRemoved
            | IgnoreReason::Ended => false,
        };
        if may_still_begin {
            let now = self.now();
            self.early_ends.add(&via.gateway, via.epoch, via.conn, now);
        }
        self.ignore(why, Part::Whole, out);
    }

    /// Returns whether the device is on the same gateway and epoch with a greater number. A connect of this connection
    /// would then be superseded anyway.
    fn is_on_a_later_connection(&mut self, who: &DeviceRef<'_>, via: &ConnRef<'_>) -> bool {
        let mut on = || {
            let slot = self.users.find(&who.user)?;
            let user = self.users.get(slot)?;
            let place = user.find(&self.rules, &who.platform, &who.device).ok()?;
            Some(user.devices[place].link)
        };
        on().is_some_and(|link| {
            self.gateways.name(link.gateway) == via.gateway && link.epoch == via.epoch && link.conn > via.conn
        })
    }

    /// Refreshes a compact user, as a heartbeat, if this is its device and connection and the epoch is not stale. Returns
    /// false and does nothing otherwise.
    fn refresh_compact(&mut self, slot: Slot, who: &DeviceRef<'_>, via: &ViaRef<'_>) -> bool {
        let Some(UserRef::Compact(user, shared)) = self.users.view(slot) else {
            return false;
        };
        let (gateway, epoch) = shared.epochs.get(user.epoch);
        let is_the_one = epoch == via.epoch
            && self.gateways.name(gateway) == via.gateway
            && !self.gateways.is_stale(Some(gateway), epoch)
            && self.rules.name(user.platform) == who.platform
            && shared.texts.device(user.text) == who.device.as_bytes();
        let epoch = user.epoch;
        let Some(beat) = ShortBeat::new(self.now(), self.here()).filter(|_| is_the_one) else {
            return false;
        };
        self.refresh_compact_on(slot, epoch, via.conn, beat)
    }

    /// Refreshes a user, as a heartbeat, if it is compact and on this connection. Returns false and does nothing otherwise.
    fn refresh_compact_on(&mut self, slot: Slot, epoch: EpochId, conn: Conn, beat: ShortBeat) -> bool {
        match self.users.refresh_compact(slot, epoch, conn, beat, &self.rules) {
            Refreshed::Yes => true,
            Refreshed::BeforeItsTimer => {
                self.arm(slot);
                true
            }
            Refreshed::No => false,
        }
    }

    /// Applies a heartbeat, foreground or background event by the table of section 6.
    pub(in super::super) fn sign(
        &mut self,
        what: Sign,
        who: &DeviceRef<'_>,
        via: &ViaRef<'_>,
        part: Part,
        out: Out<'_>,
    ) {
        let slot = self.users.find(&who.user);
        if what == Sign::Heartbeat
            && let Some(slot) = slot
            && self.refresh_compact(slot, who, via)
        {
            return;
        }
        let link = self.link(via);
        if self.gateways.is_stale(link.map(|link| link.gateway), via.epoch) {
            return self.refuse(who, via, IgnoreReason::StaleEpoch, KickReason::Stale, part, out);
        }
        let found = slot.and_then(|slot| {
            let user = self.users.get(slot)?;
            let place = user.find(&self.rules, &who.platform, &who.device).ok()?;
            Some((slot, place, &user.devices[place]))
        });
        let Some((slot, place, device)) = found else {
            return self.refuse(who, via, IgnoreReason::UnknownConnection, KickReason::Stale, part, out);
        };
        let verdict = if link != Some(device.link) {
            Verdict::Refuse(IgnoreReason::Superseded, KickReason::Stale)
        } else {
            match (&device.state, what) {
                (DeviceState::Online { linger: Some(_), .. }, _) => Verdict::Ignore(IgnoreReason::Closed),
                (DeviceState::Online { linger: None, .. }, _) => Verdict::Refresh,
                (DeviceState::Away { lost_by, .. }, what) => match (lost_by, what) {
                    (LostBy::Timeout | LostBy::GatewayLost, Sign::Heartbeat | Sign::Foreground)
                    | (LostBy::Background, Sign::Foreground) => Verdict::Revive,
                    (LostBy::Timeout | LostBy::GatewayLost, Sign::Background)
                    | (LostBy::Background, Sign::Heartbeat | Sign::Background)
                    | (LostBy::Closed | LostBy::Exit, _) => Verdict::Ignore(IgnoreReason::Closed),
                },
                (DeviceState::Kicked { by, .. }, _) => Verdict::Refuse(IgnoreReason::Kicked, KickReason::from(*by)),
            }
        };
        match verdict {
            Verdict::Ignore(why) => self.ignore(why, part, out),
            Verdict::Refuse(why, reason) => self.refuse(who, via, why, reason, part, out),
            Verdict::Refresh => self.refresh(slot, place, what),
            Verdict::Revive => self.revive(slot, place, out),
        }
    }

    fn refresh(&mut self, slot: Slot, place: usize, what: Sign) {
        let (now, here) = (self.now(), self.here());
        let State { users, rules, .. } = self;
        let Some(device) = users.get(slot).map(|user| &user.devices[place]) else {
            return;
        };
        let platform = &rules.of(device.platform).rules;
        let background = match (&device.state, what) {
            (DeviceState::Online { background_by, .. }, Sign::Background) => {
                match (background_by, platform.background_ms) {
                    (None, Some(background_ms)) => Some(now.plus(background_ms)),
                    (by, _) => *by,
                }
            }
            (DeviceState::Online { .. }, Sign::Foreground) => None,
            (DeviceState::Online { background_by, .. }, Sign::Heartbeat) => *background_by,
            (DeviceState::Away { .. } | DeviceState::Kicked { .. }, _) => return,
        };
        let only_beats = match &device.state {
            DeviceState::Online { background_by, .. } => *background_by == background,
            DeviceState::Away { .. } | DeviceState::Kicked { .. } => return,
        };
        let user = if only_beats {
            users.beat(slot)
        } else {
            users.change(slot)
        };
        let Some(user) = user else { return };
        user.last_seen = now;
        let armed = user.armed;
        if let DeviceState::Online {
            session,
            heartbeat_by,
            background_by,
            ..
        } = &mut user.devices[place].state
        {
            session.last_seen = now;
            session.evidence = here;
            *heartbeat_by = now.plus(platform.timeout_ms);
            *background_by = background;
            // A heartbeat usually moves the deadline to later than the timer, which may expire early.
            if *heartbeat_by < armed || !only_beats {
                self.arm(slot);
            }
        }
    }

    /// Makes the device online again on the same connection; `login_at` stays.
    fn revive(&mut self, slot: Slot, place: usize, out: Out<'_>) {
        let (now, here) = (self.now(), self.here());
        let State {
            users, rules, gateways, ..
        } = self;
        let Some(user) = users.change(slot) else { return };
        user.last_seen = now;
        let device = &mut user.devices[place];
        let before = device.status();
        let DeviceState::Away { session, .. } = &mut device.state else {
            return;
        };
        device.state = DeviceState::Online {
            session: super::Session {
                login_at: session.login_at,
                last_seen: now,
                evidence: here,
                client: session.client.take(),
            },
            heartbeat_by: now.plus(rules.of(device.platform).rules.timeout_ms),
            background_by: None,
            linger: None,
        };
        device.since = now;
        gateways.enter(slot, device);
        let mut pending = Pending::default();
        pending.altered(device, before, rules, gateways);
        self.conclude(slot, now, Cause::Revive, here, pending, out);
        self.arm(slot);
    }

    /// Returns the device whose current connection is the event's, unless the device is kicked.
    fn current(&mut self, who: &DeviceRef<'_>, via: &ViaRef<'_>) -> Result<(Slot, usize), IgnoreReason> {
        let slot = self.users.find(&who.user).ok_or(IgnoreReason::UnknownConnection)?;
        let link = self.link(via);
        let user = self.users.get(slot).ok_or(IgnoreReason::UnknownConnection)?;
        let place = user
            .find(&self.rules, &who.platform, &who.device)
            .map_err(|_| IgnoreReason::UnknownConnection)?;
        let device = &user.devices[place];
        if link != Some(device.link) {
            return Err(IgnoreReason::Superseded);
        }
        match device.state {
            DeviceState::Kicked { .. } => Err(IgnoreReason::Kicked),
            DeviceState::Online { .. } | DeviceState::Away { .. } => Ok((slot, place)),
        }
    }

    /// Applies a disconnect (section 6, disconnect).
    pub(in super::super) fn disconnect(
        &mut self,
        who: &DeviceRef<'_>,
        via_event: &ConnRef<'_>,
        reason: Ending,
        out: Out<'_>,
    ) {
        let (slot, place) = match self.current(who, &via(via_event)) {
            Ok(found) => found,
            Err(why) => return self.ignore_end(who, via_event, why, out),
        };
        let (now, here) = (self.now(), self.here());
        let State {
            users, rules, gateways, ..
        } = self;
        let Some(device) = users.get(slot).map(|user| &user.devices[place]) else {
            return;
        };
        match &device.state {
            DeviceState::Online { linger: Some(_), .. }
            | DeviceState::Away {
                lost_by: LostBy::Closed | LostBy::Exit,
                ..
            } => return self.ignore(IgnoreReason::Duplicate, Part::Whole, out),
            DeviceState::Online { linger: None, .. } => {}
            DeviceState::Away {
                lost_by: LostBy::Background | LostBy::Timeout | LostBy::GatewayLost,
                ..
            } => {}
            DeviceState::Kicked { .. } => return,
        }
        let platform = &rules.of(device.platform).rules;
        let delay_ms = match reason {
            Ending::Closed => platform.closed_ms,
            Ending::Exit => platform.exit_ms,
        };
        let Some(user) = users.change(slot) else { return };
        let mut pending = Pending::default();
        let device = &mut user.devices[place];
        match &device.state {
            DeviceState::Online { .. } if delay_ms == 0 => {
                lose_link(
                    slot,
                    user,
                    place,
                    now,
                    LostBy::from(reason),
                    rules,
                    gateways,
                    &mut pending,
                );
            }
            DeviceState::Online { .. } => {
                gateways.leave(slot, device);
                if let DeviceState::Online {
                    linger, background_by, ..
                } = &mut device.state
                {
                    *linger = Some((reason, now.plus(delay_ms)));
                    *background_by = None;
                }
                gateways.enter(slot, device);
            }
            DeviceState::Away { .. } => {
                if let DeviceState::Away { lost_by, .. } = &mut device.state {
                    *lost_by = LostBy::from(reason);
                }
            }
            DeviceState::Kicked { .. } => {}
        }
        self.conclude(slot, now, Cause::from(LostBy::from(reason)), here, pending, out);
        self.arm(slot);
    }

    /// Applies a logout (section 6, logout).
    pub(in super::super) fn logout(&mut self, who: &DeviceRef<'_>, via_event: &ConnRef<'_>, out: Out<'_>) {
        let (slot, place) = match self.current(who, &via(via_event)) {
            Ok(found) => found,
            Err(why) => return self.ignore_end(who, via_event, why, out),
        };
        let (now, here) = (self.now(), self.here());
        let State {
            users, rules, gateways, ..
        } = self;
        let Some(user) = users.change(slot) else { return };
        let mut pending = Pending::default();
        remove(slot, user, place, rules, gateways, &mut pending);
        self.conclude(slot, now, Cause::Logout, here, pending, out);
    }
}
