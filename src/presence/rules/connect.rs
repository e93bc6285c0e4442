//! `connect`: login, resume and take-over, and which devices a login displaces (section 6).

use super::super::change::{Cause, IgnoreReason, KickReason, Part};
use super::super::event::{ConnRef, DeviceRef, Intent};
use super::super::fold::{Out, PendingKick};
use super::super::rulebook::{PlatformId, Rulebook};
use super::super::state::{Device, DeviceState, Session, Slot, State, User};
use super::super::{KickedBy, Status};
use super::{Pending, Terms, kick_devices, order_after_first, via};

/// The rows of the connect table that do not refuse the connect.
enum Case {
    TakeOver,
    Resume,
    Login,
}

impl State {
    /// Applies a connect: the first matching row of the table in section 6, connect.
    pub(in super::super) fn connect(
        &mut self,
        who: &DeviceRef<'_>,
        via_event: &ConnRef<'_>,
        terms: &Terms<'_>,
        out: Out<'_>,
    ) {
        let (via, intent) = (via(via_event), terms.intent);
        let Some(platform) = self.rules.find(&who.platform) else {
            return self.refuse(
                who,
                &via,
                IgnoreReason::UnknownPlatform,
                KickReason::Stale,
                Part::Whole,
                out,
            );
        };
        let link = self.link(&via);
        if self.gateways.is_stale(link.map(|link| link.gateway), via.epoch) {
            return self.refuse(who, &via, IgnoreReason::StaleEpoch, KickReason::Stale, Part::Whole, out);
        }
        let slot = self.users.find(&who.user);
        let user = slot.and_then(|slot| self.users.get(slot));
        let place = user.and_then(|user| user.find(&self.rules, &who.platform, &who.device).ok());
        let device = user.zip(place).map(|(user, place)| &user.devices[place]);

        if let (Some(device), Some(link)) = (device, link) {
            if link == device.link {
                return self.ignore(IgnoreReason::Duplicate, Part::Whole, out);
            }
            if link.gateway == device.link.gateway && link.epoch == device.link.epoch && link.conn < device.link.conn {
                return self.refuse(who, &via, IgnoreReason::Superseded, KickReason::Stale, Part::Whole, out);
            }
        }
        if self.early_ends.contains(via.gateway, via.epoch, via.conn) {
            return self.ignore(IgnoreReason::Ended, Part::Whole, out);
        }
        if user.is_some_and(|user| is_kept_out(user, terms)) {
            return self.refuse(who, &via, IgnoreReason::Kicked, KickReason::Admin, Part::Whole, out);
        }

        let case = match device {
            Some(device) => match (&device.state, intent) {
                (DeviceState::Kicked { by, .. }, Intent::Resume) => {
                    let reason = KickReason::from(*by);
                    return self.refuse(who, &via, IgnoreReason::Kicked, reason, Part::Whole, out);
                }
                (DeviceState::Online { .. }, Intent::Login | Intent::Resume) => Case::TakeOver,
                (DeviceState::Away { .. }, Intent::Resume) => Case::Resume,
                (DeviceState::Away { .. } | DeviceState::Kicked { .. }, Intent::Login) => Case::Login,
            },
            None => {
                let would_displace_somebody_present = intent == Intent::Resume
                    && user.is_some_and(|user| {
                        let chosen = displaced(user, platform, None, &self.rules);
                        chosen
                            .into_iter()
                            .any(|place| user.devices[place].status() != Status::Offline)
                    });
                if would_displace_somebody_present {
                    return self.refuse(who, &via, IgnoreReason::Kicked, KickReason::Displaced, Part::Whole, out);
                }
                Case::Login
            }
        };

        let slot = slot.unwrap_or_else(|| self.users.create(&who.user));
        self.bring_online(slot, who, via_event, platform, case, terms, out);
    }

    #[allow(clippy::too_many_arguments)] // They are the parts of one event, destructured once.
    fn bring_online(
        &mut self,
        slot: Slot,
        who: &DeviceRef<'_>,
        via_event: &ConnRef<'_>,
        platform: PlatformId,
        case: Case,
        terms: &Terms<'_>,
        out: Out<'_>,
    ) {
        let (now, here, intent) = (self.now(), self.here(), terms.intent);
        let State {
            users, rules, gateways, ..
        } = self;
        let Some(user) = users.change(slot) else { return };
        let link = super::Link {
            gateway: gateways.acquire(&via_event.gateway),
            epoch: via_event.epoch,
            conn: via_event.conn,
        };
        let heartbeat_by = now.plus(rules.of(platform).rules.timeout_ms);
        let login_at = |known| match (&case, intent) {
            (Case::Resume, _) | (Case::TakeOver, Intent::Resume) => known,
            (Case::Login, _) | (Case::TakeOver, Intent::Login) => None,
        };
        let online = |known_login_at| DeviceState::Online {
            session: Session {
                login_at: login_at(known_login_at).unwrap_or(now),
                last_seen: now,
                evidence: here,
                client: terms.client.map(Into::into),
            },
            heartbeat_by,
            background_by: None,
            linger: None,
        };

        let mut pending = Pending::default();
        match user.find(rules, &who.platform, &who.device) {
            Ok(place) => {
                let device = &mut user.devices[place];
                let before = device.status();
                gateways.leave(slot, device);
                if device.has_open_link() {
                    pending
                        .kicks
                        .push(PendingKick::of(device, KickReason::Replaced, rules, gateways));
                }
                device.state = online(device.login_at());
                gateways.release(std::mem::replace(&mut device.link, link).gateway);
                match case {
                    Case::TakeOver => {
                        #[cfg(test)]
                        super::super::planted::takes_over(device.link);
                    }
                    Case::Resume | Case::Login => device.since = now,
                }
                gateways.enter(slot, device);
                pending.altered(device, before, rules, gateways);
            }
            Err(place) => {
                let device = Device {
                    platform,
                    device: who.device.as_ref().into(),
                    link,
                    since: now,
                    state: online(None),
                };
                pending.altered(&device, Status::Offline, rules, gateways);
                gateways.enter(slot, &device);
                // Most users have one device; without this, the vector would reserve room for four.
                user.devices.reserve_exact(1);
                user.devices.insert(place, device);
            }
        }
        user.last_seen = now;
        if (intent == Intent::Login || terms.auth_at.is_some())
            && let Some(marks) = &mut user.marks
        {
            marks.barred = false;
        }

        let displaces = match (&case, intent) {
            (Case::Login, _) | (Case::TakeOver, Intent::Login) => true,
            (Case::Resume, _) | (Case::TakeOver, Intent::Resume) => false,
        };
        if displaces && let Ok(own) = user.find(rules, &who.platform, &who.device) {
            let (devices, kicks) = (pending.devices.len(), pending.kicks.len());
            let places = displaced(user, platform, Some(own), rules);
            kick_devices(
                slot,
                user,
                &places,
                KickedBy::Displaced,
                now,
                rules,
                gateways,
                &mut pending,
            );
            order_after_first(&mut pending, devices, kicks);
        }
        let cause = match case {
            Case::Resume => Cause::Resume,
            Case::Login | Case::TakeOver => Cause::Login,
        };
        self.conclude(slot, now, cause, here, pending, out);
        self.arm(slot);
    }
}

/// Returns whether a kick of the whole user still applies to a connect (section 6): the connect has a proof of identity
/// that is not newer than the kick, or it has none, is a resume, and nobody has logged in since the kick.
fn is_kept_out(user: &User, terms: &Terms<'_>) -> bool {
    let Some(kicked_at) = user.kicked_at() else {
        return false;
    };
    match terms.auth_at {
        Some(auth_at) => auth_at <= kicked_at,
        None => terms.intent == Intent::Resume && user.is_barred(),
    }
}

/// Returns which of the user's other logged-in devices a login on this platform displaces, in (platform, device) order.
fn displaced(user: &User, platform: PlatformId, own: Option<usize>, rules: &Rulebook) -> Vec<usize> {
    let platform = rules.of(platform);
    let logged_in = user.devices.iter().enumerate().filter_map(|(place, device)| {
        let login_at = device.login_at()?;
        (Some(place) != own).then_some((place, device, login_at))
    });
    let mut chosen = Vec::new();
    let mut same_kind = Vec::new();
    for (place, device, login_at) in logged_in {
        if platform.excludes(device.platform) {
            chosen.push(place);
        } else if platform.is_of_same_kind(device.platform) {
            // Offline devices first, then those that logged in earliest; places are in (platform, device) order.
            same_kind.push((device.status() != Status::Offline, login_at, place));
        }
    }
    let may_stay = platform.instances.saturating_sub(1) as usize;
    let surplus = same_kind.len().saturating_sub(may_stay);
    same_kind.sort_unstable();
    chosen.extend(same_kind[..surplus].iter().map(|(_, _, place)| *place));
    chosen.sort_unstable();
    chosen
}
