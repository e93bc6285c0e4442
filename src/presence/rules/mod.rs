//! The effects of each event (section 6), split by subject. The one `match` that calls them is in [`super::fold`]; this
//! file has what the rules share.

mod connect;
mod gateway;
mod link;
mod user;

use super::change::{Cause, DeviceChange, IgnoreReason, KickReason, Part};
use super::event::{ConnRef, DeviceRef, Intent};
use super::fold::{Out, PendingKick};
use super::gateways::Gateways;
use super::rulebook::Rulebook;
use super::state::{Device, DeviceState, Link, Session, Slot, State, User};
use super::{Conn, Epoch, KickedBy, LogTime, LostBy, Offset, Status};
pub(super) use link::Sign;

/// What an event has done to devices so far and has not been output yet.
#[derive(Default)]
pub(super) struct Pending {
    pub devices: Vec<DeviceChange>,
    pub kicks: Vec<PendingKick>,
}

/// The parts of a connect beside device and connection.
pub(super) struct Terms<'a> {
    pub intent: Intent,
    pub client: Option<&'a str>,
    pub auth_at: Option<LogTime>,
}

/// A connection as an event names it, borrowed.
#[derive(Clone, Copy)]
pub(super) struct ViaRef<'a> {
    pub gateway: &'a str,
    pub epoch: Epoch,
    pub conn: Conn,
}

pub(super) fn via<'a>(via: &'a ConnRef<'_>) -> ViaRef<'a> {
    ViaRef {
        gateway: &via.gateway,
        epoch: via.epoch,
        conn: via.conn,
    }
}

impl Pending {
    /// Records a device whose status was `before`, if its status has changed.
    pub fn altered(&mut self, device: &Device, before: Status, rules: &Rulebook, gateways: &Gateways) {
        self.altered_to(device, before, device.status(), rules, gateways);
    }

    pub fn altered_to(
        &mut self,
        device: &Device,
        before: Status,
        after: Status,
        rules: &Rulebook,
        gateways: &Gateways,
    ) {
        if before != after {
            self.devices.push(DeviceChange {
                platform: rules.name(device.platform).into(),
                device: device.device.clone(),
                gateway: gateways.name(device.link.gateway).into(),
                before,
                after,
            });
        }
    }
}

/// Updates the custom status (section 6, custom status): clears it when the user's status leaves online, keeps it for a
/// while if the link was lost, and restores it when the status is online again in time.
pub(super) fn carry_custom_status(
    user: &mut User,
    before: Status,
    after: Status,
    at: LogTime,
    cause: Cause,
    keep_ms: u64,
) {
    match (before == Status::Online, after == Status::Online) {
        (true, false) => {
            let text = user.custom_status.take();
            let lost_with_the_link = match cause {
                Cause::Closed | Cause::Exit | Cause::Background | Cause::Timeout | Cause::GatewayLost => true,
                Cause::Login
                | Cause::Resume
                | Cause::Revive
                | Cause::Logout
                | Cause::PushExpired
                | Cause::Kicked
                | Cause::CustomStatus
                | Cause::Forgotten => false,
            };
            if let Some(text) = text
                && lost_with_the_link
                && keep_ms > 0
            {
                user.marks().kept = Some((text, at.plus(keep_ms)));
            }
        }
        (false, true) => {
            if let Some((text, until)) = user.take_kept()
                && at < until
            {
                user.custom_status = Some(text);
            }
        }
        (true, true) | (false, false) => {}
    }
}

/// Returns the offset of the last event accepted from the device. A kicked device has none and never needs one.
pub(super) fn evidence_of(device: &Device) -> Offset {
    match &device.state {
        DeviceState::Online { session, .. } | DeviceState::Away { session, .. } => session.evidence,
        DeviceState::Kicked { .. } => Offset(0),
    }
}

/// *Lose link*: the device becomes away, or is removed if its platform does not remember devices.
#[allow(clippy::too_many_arguments)] // They are parts of one state, borrowed separately.
pub(super) fn lose_link(
    slot: Slot,
    user: &mut User,
    at_index: usize,
    at: LogTime,
    lost_by: LostBy,
    rules: &Rulebook,
    gateways: &mut Gateways,
    pending: &mut Pending,
) {
    let device = &mut user.devices[at_index];
    let platform = &rules.of(device.platform).rules;
    if platform.away_ms == 0 {
        remove(slot, user, at_index, rules, gateways, pending);
        return;
    }
    let before = device.status();
    gateways.leave(slot, device);
    if let DeviceState::Online { session, .. } = &mut device.state {
        let session = Session {
            login_at: session.login_at,
            last_seen: session.last_seen,
            evidence: session.evidence,
            client: session.client.take(),
        };
        device.state = DeviceState::Away {
            session,
            push: platform.push,
            lost_by,
            until: at.plus(platform.away_ms),
        };
        device.since = at;
    }
    pending.altered(device, before, rules, gateways);
}

/// Removes the device's entry: the device is offline, as if it had never been seen.
pub(super) fn remove(
    slot: Slot,
    user: &mut User,
    at_index: usize,
    rules: &Rulebook,
    gateways: &mut Gateways,
    pending: &mut Pending,
) {
    let device = user.devices.remove(at_index);
    gateways.leave(slot, &device);
    pending.altered_to(&device, device.status(), Status::Offline, rules, gateways);
    gateways.release(device.link.gateway);
}

/// Makes the devices at these places kicked; they are logged in and in order. Adds a kick for each open link. Then
/// *trim*.
#[allow(clippy::too_many_arguments)] // They are parts of one state, borrowed separately.
pub(super) fn kick_devices(
    slot: Slot,
    user: &mut User,
    places: &[usize],
    by: KickedBy,
    now: LogTime,
    rules: &Rulebook,
    gateways: &mut Gateways,
    pending: &mut Pending,
) {
    let mut gone = Vec::new();
    for &place in places {
        let device = &mut user.devices[place];
        if device.has_open_link() {
            pending
                .kicks
                .push(PendingKick::of(device, KickReason::from(by), rules, gateways));
        }
        let before = device.status();
        gateways.leave(slot, device);
        let away_ms = rules.of(device.platform).rules.away_ms;
        device.state = DeviceState::Kicked {
            by,
            until: now.plus(away_ms),
        };
        device.since = now;
        pending.altered(device, before, rules, gateways);
        if away_ms == 0 {
            gone.push(place);
        }
    }
    for place in gone.into_iter().rev() {
        let device = user.devices.remove(place);
        gateways.release(device.link.gateway);
    }
    trim(user, rules, gateways);
}

/// *Trim*: of the kicked devices only the `kicked_max` with the greatest (until, platform, device) stay.
fn trim(user: &mut User, rules: &Rulebook, gateways: &mut Gateways) {
    let mut kicked: Vec<(LogTime, usize)> = Vec::new();
    for (place, device) in user.devices.iter().enumerate() {
        match device.state {
            DeviceState::Kicked { until, .. } => kicked.push((until, place)),
            DeviceState::Online { .. } | DeviceState::Away { .. } => {}
        }
    }
    let most = rules.policy().kicked_max as usize;
    if kicked.len() <= most {
        return;
    }
    // Places are in (platform, device) order.
    kicked.sort_unstable();
    let surplus = kicked.len() - most;
    let mut places: Vec<usize> = kicked[..surplus].iter().map(|(_, place)| *place).collect();
    places.sort_unstable();
    for place in places.into_iter().rev() {
        let device = user.devices.remove(place);
        gateways.release(device.link.gateway);
    }
}

/// Sorts devices by (platform, device), except those before `first_device`, which stay in front. Sorts kicks likewise.
pub(super) fn order_after_first(pending: &mut Pending, first_device: usize, first_kicks: usize) {
    pending.devices[first_device..].sort_by(|a, b| (&a.platform, &a.device).cmp(&(&b.platform, &b.device)));
    pending.kicks[first_kicks..].sort_by(|a, b| (&a.platform, &a.device).cmp(&(&b.platform, &b.device)));
}

impl State {
    /// Ignores an event or a heartbeat, and kicks its connection.
    pub(super) fn refuse(
        &mut self,
        who: &DeviceRef<'_>,
        via: &ViaRef<'_>,
        why: IgnoreReason,
        reason: KickReason,
        part: Part,
        out: Out<'_>,
    ) {
        self.ignore(why, part, out);
        let kick = PendingKick {
            gateway: via.gateway.into(),
            epoch: via.epoch,
            conn: via.conn,
            platform: who.platform.as_ref().into(),
            device: who.device.as_ref().into(),
            reason,
        };
        self.emit_kick(kick, Some(who.user.as_ref().into()), out);
    }

    /// Ignores a connection of an `alive` record, and has its gateway close it or report whose it is.
    pub(super) fn refuse_connection(&mut self, via: &ViaRef<'_>, why: IgnoreReason, reason: KickReason, out: Out<'_>) {
        self.ignore(why, Part::Conn(via.conn), out);
        let kick = PendingKick {
            gateway: via.gateway.into(),
            epoch: via.epoch,
            conn: via.conn,
            platform: Box::default(),
            device: Box::default(),
            reason,
        };
        self.emit_kick(kick, None, out);
    }

    /// Returns the connection of an event with its gateway's number; `None` if no device and no lease refers to that
    /// gateway.
    pub(super) fn link(&self, via: &ViaRef<'_>) -> Option<Link> {
        Some(Link {
            gateway: self.gateways.find(via.gateway)?,
            epoch: via.epoch,
            conn: via.conn,
        })
    }
}
