//! What comes over an open connection: heartbeat, foreground and background, disconnect, logout (section 6).

use super::super::ahead::USERS_AHEAD;
use super::super::change::{Cause, IgnoreReason, KickReason};
use super::super::event::{Beat, Ending, Via, Who};
use super::super::fold::Out;
use super::super::state::{DeviceState, Slot, State};
use super::super::{Epoch, LostBy};
use super::{Pending, ViaRef, lose_link, remove, via};

/// The events by which a client shows life.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Alive {
    Heartbeat,
    Foreground,
    Background,
}

/// What the table of section 6 says of such an event.
enum Verdict {
    Ignore(IgnoreReason),
    Refuse(IgnoreReason, KickReason),
    Refresh,
    Revive,
}

impl State {
    /// Each beat like a heartbeat of its own, in order.
    pub(in super::super) fn heartbeats(&mut self, gateway: &str, epoch: Epoch, beats: &[Beat<'_>], out: Out<'_>) {
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
            self.alive(Alive::Heartbeat, &beat.who, &via, Some(number), out);
        }
    }

    /// Section 6, the table of heartbeat, foreground and background.
    pub(in super::super) fn alive(
        &mut self,
        what: Alive,
        who: &Who<'_>,
        via: &ViaRef<'_>,
        beat: Option<usize>,
        out: Out<'_>,
    ) {
        let link = self.link(via);
        if self.gateways.is_stale(link.map(|link| link.gateway), via.epoch) {
            return self.refuse(who, via, IgnoreReason::StaleEpoch, KickReason::Stale, beat, out);
        }
        let found = self.users.find(&who.user).and_then(|slot| {
            let user = self.users.get(slot)?;
            let place = user.find(&self.rules, &who.platform, &who.device).ok()?;
            Some((slot, place, &user.devices[place]))
        });
        let Some((slot, place, device)) = found else {
            return self.refuse(who, via, IgnoreReason::UnknownConnection, KickReason::Stale, beat, out);
        };
        let verdict = if link != Some(device.link) {
            Verdict::Refuse(IgnoreReason::Superseded, KickReason::Stale)
        } else {
            match (&device.state, what) {
                (DeviceState::Online { linger: Some(_), .. }, _) => Verdict::Ignore(IgnoreReason::Closed),
                (DeviceState::Online { linger: None, .. }, _) => Verdict::Refresh,
                (DeviceState::Away { lost_by, .. }, what) => match (lost_by, what) {
                    (LostBy::Timeout | LostBy::GatewayLost, Alive::Heartbeat | Alive::Foreground)
                    | (LostBy::Background, Alive::Foreground) => Verdict::Revive,
                    (LostBy::Timeout | LostBy::GatewayLost, Alive::Background)
                    | (LostBy::Background, Alive::Heartbeat | Alive::Background)
                    | (LostBy::Closed | LostBy::Exit, _) => Verdict::Ignore(IgnoreReason::Closed),
                },
                (DeviceState::Kicked { by, .. }, _) => Verdict::Refuse(IgnoreReason::Kicked, KickReason::from(*by)),
            }
        };
        match verdict {
            Verdict::Ignore(why) => self.ignore(why, beat, out),
            Verdict::Refuse(why, reason) => self.refuse(who, via, why, reason, beat, out),
            Verdict::Refresh => self.refresh(slot, place, what),
            Verdict::Revive => self.revive(slot, place, out),
        }
    }

    fn refresh(&mut self, slot: Slot, place: usize, what: Alive) {
        let (now, here) = (self.now(), self.here());
        let State { users, rules, .. } = self;
        let Some(device) = users.get(slot).map(|user| &user.devices[place]) else {
            return;
        };
        let platform = &rules.of(device.platform).rules;
        let background = match (&device.state, what) {
            (DeviceState::Online { background_by, .. }, Alive::Background) => {
                match (background_by, platform.background_ms) {
                    (None, Some(background_ms)) => Some(now.plus(background_ms)),
                    (by, _) => *by,
                }
            }
            (DeviceState::Online { .. }, Alive::Foreground) => None,
            (DeviceState::Online { background_by, .. }, Alive::Heartbeat) => *background_by,
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
            // A heartbeat mostly moves its deadline away from a timer that may come up early.
            if *heartbeat_by < armed || !only_beats {
                self.arm(slot);
            }
        }
    }

    /// Online again on the same connection; `login_at` stays.
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
        let mut pending = Pending::default();
        pending.altered(device, before, rules, gateways);
        self.conclude(slot, now, Cause::Revive, here, pending, out);
        self.arm(slot);
    }

    /// The device that an event's connection is current for, if its word counts (not kicked).
    fn current(&self, who: &Who<'_>, via: &ViaRef<'_>) -> Result<(Slot, usize), IgnoreReason> {
        let slot = self.users.find(&who.user).ok_or(IgnoreReason::UnknownConnection)?;
        let user = self.users.get(slot).ok_or(IgnoreReason::UnknownConnection)?;
        let place = user
            .find(&self.rules, &who.platform, &who.device)
            .map_err(|_| IgnoreReason::UnknownConnection)?;
        let device = &user.devices[place];
        if self.link(via) != Some(device.link) {
            return Err(IgnoreReason::Superseded);
        }
        match device.state {
            DeviceState::Kicked { .. } => Err(IgnoreReason::Kicked),
            DeviceState::Online { .. } | DeviceState::Away { .. } => Ok((slot, place)),
        }
    }

    /// Section 6, disconnect.
    pub(in super::super) fn disconnect(&mut self, who: &Who<'_>, via_event: &Via<'_>, reason: Ending, out: Out<'_>) {
        let (slot, place) = match self.current(who, &via(via_event)) {
            Ok(found) => found,
            Err(why) => return self.ignore(why, None, out),
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
            } => return self.ignore(IgnoreReason::Duplicate, None, out),
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
        match &mut user.devices[place].state {
            DeviceState::Online { .. } if delay_ms == 0 => {
                lose_link(user, place, now, LostBy::from(reason), rules, gateways, &mut pending);
            }
            DeviceState::Online {
                linger, background_by, ..
            } => {
                *linger = Some((reason, now.plus(delay_ms)));
                *background_by = None;
            }
            DeviceState::Away { lost_by, .. } => *lost_by = LostBy::from(reason),
            DeviceState::Kicked { .. } => {}
        }
        self.conclude(slot, now, Cause::from(LostBy::from(reason)), here, pending, out);
        self.arm(slot);
    }

    /// Section 6, logout.
    pub(in super::super) fn logout(&mut self, who: &Who<'_>, via_event: &Via<'_>, out: Out<'_>) {
        let (slot, place) = match self.current(who, &via(via_event)) {
            Ok(found) => found,
            Err(why) => return self.ignore(why, None, out),
        };
        let (now, here) = (self.now(), self.here());
        let State {
            users, rules, gateways, ..
        } = self;
        let Some(user) = users.change(slot) else { return };
        let mut pending = Pending::default();
        remove(user, place, rules, gateways, &mut pending);
        self.conclude(slot, now, Cause::Logout, here, pending, out);
    }
}
