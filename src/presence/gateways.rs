//! Gateways: their epochs, their leases, and which devices are on their connections.

use super::deadlines::NEVER;
use super::links::Links;
use super::state::{Device, DeviceState, Link, Slot, State};
use super::table::{HashSeed, Hasher, Named, Table};
use super::{Conn, Epoch, LogTime};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeBounds;

impl State {
    /// Returns the greatest known epoch of a gateway.
    pub fn epoch_of(&self, gateway: &str) -> Option<Epoch> {
        let known = self.gateways.known(self.gateways.find(gateway)?)?;
        Some(known.epoch)
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct GatewayId(pub u32);

pub(super) struct GatewayEntry {
    pub name: Box<str>,
    pub known: Option<KnownGateway>,
    /// How many devices refer to it, online or not.
    devices: u32,
    /// Devices with an open link, by epoch.
    open: BTreeMap<Epoch, Links>,
    /// Lingering devices, by epoch.
    lingering: BTreeMap<Epoch, Links>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct KnownGateway {
    pub epoch: Epoch,
    pub ended: bool,
    pub lease_until: Option<LogTime>,
    pub last_until: LogTime,
}

/// A gateway without an active lease is forgotten this long after its last lease's end (section 5).
pub const GATEWAY_FORGOTTEN_MS: u64 = 86_400_000;

/// Returns a heartbeat deadline or lease expiry as deferred by outage grace (section 2.4).
pub(super) fn deferred(deadline: LogTime, grace_until: Option<LogTime>) -> LogTime {
    match grace_until {
        Some(grace_until) => deadline.max(grace_until),
        None => deadline,
    }
}

impl Named for GatewayEntry {
    fn name(&self) -> &str {
        &self.name
    }
}

/// Every gateway that has a known epoch or is referred to by a device.
///
/// Names, epochs and connections come from untrusted publishers. So the cost of a lease is proportional to the devices
/// that it concerns, however many other gateways and users there are.
pub(super) struct Gateways {
    pub table: Table<GatewayEntry>,
    /// Active leases by their `until` as set.
    leases: BTreeSet<(LogTime, u32)>,
    /// Gateways without an active lease, by the time when they are forgotten.
    idle: BTreeSet<(LogTime, u32)>,
    /// The times of the first entries of `leases` and `idle`, or [`NEVER`]: every record asks for them.
    first_lease: LogTime,
    first_idle: LogTime,
    hasher: Hasher,
}

impl Gateways {
    pub fn new(seed: HashSeed) -> Gateways {
        Gateways {
            table: Table::new(seed),
            leases: BTreeSet::new(),
            idle: BTreeSet::new(),
            first_lease: NEVER,
            first_idle: NEVER,
            hasher: Hasher::new(seed),
        }
    }

    pub fn find(&self, name: &str) -> Option<GatewayId> {
        self.table.find(name).map(GatewayId)
    }

    pub fn name(&self, id: GatewayId) -> &str {
        self.table.get(id.0).map_or("", |gateway| &gateway.name)
    }

    pub fn known(&self, id: GatewayId) -> Option<&KnownGateway> {
        self.table.get(id.0)?.known.as_ref()
    }

    /// Returns whether an epoch of a gateway is stale (section 6).
    pub fn is_stale(&self, id: Option<GatewayId>, epoch: Epoch) -> bool {
        match id.and_then(|id| self.known(id)) {
            Some(known) => known.epoch > epoch || (known.epoch == epoch && known.ended),
            None => false,
        }
    }

    /// Returns the active lease that covers connections of this epoch, as set.
    pub fn lease_of(&self, id: GatewayId, epoch: Epoch) -> Option<LogTime> {
        let known = self.known(id)?;
        if known.epoch == epoch { known.lease_until } else { None }
    }

    fn intern(&mut self, name: &str) -> GatewayId {
        self.find(name).unwrap_or_else(|| {
            GatewayId(self.table.insert(GatewayEntry {
                name: name.into(),
                known: None,
                devices: 0,
                open: BTreeMap::new(),
                lingering: BTreeMap::new(),
            }))
        })
    }

    /// Returns the number for a device that will refer to this gateway. Give it back with [`Gateways::release`].
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
            }
        }
    }

    /// Adds a device to the index if it is online. Call it after each change of the device's link or state.
    pub fn enter(&mut self, slot: Slot, device: &Device) {
        let key = self.hasher.number(device.link.conn.0);
        if let Some(links) = self.links_of(device) {
            links.entry(device.link.epoch).or_default().insert(key, slot.0);
        }
    }

    /// Removes what [`Gateways::enter`] added. Call it before each change of the device's link or state.
    pub fn leave(&mut self, slot: Slot, device: &Device) {
        let key = self.hasher.number(device.link.conn.0);
        let Some(links) = self.links_of(device) else { return };
        if let Some(of_epoch) = links.get_mut(&device.link.epoch) {
            of_epoch.remove(key, slot.0);
            if of_epoch.is_empty() {
                links.remove(&device.link.epoch);
            }
        }
    }

    fn links_of(&mut self, device: &Device) -> Option<&mut BTreeMap<Epoch, Links>> {
        let gateway = self.table.get_mut(device.link.gateway.0)?;
        match device.state {
            DeviceState::Online { linger: None, .. } => Some(&mut gateway.open),
            DeviceState::Online { linger: Some(_), .. } => Some(&mut gateway.lingering),
            DeviceState::Away { .. } | DeviceState::Kicked { .. } => None,
        }
    }

    /// Appends the users with a device online on this connection, also a lingering one, in arbitrary order and possibly
    /// twice.
    pub fn on_connection(&self, link: Link, found: &mut Vec<Slot>) {
        #[cfg(test)]
        if super::planted::is_lost(link) {
            return;
        }
        let Some(gateway) = self.table.get(link.gateway.0) else {
            return;
        };
        let key = self.hasher.number(link.conn.0);
        for by_epoch in [&gateway.open, &gateway.lingering] {
            if let Some(links) = by_epoch.get(&link.epoch) {
                links.each(key, |slot| found.push(Slot(slot)));
            }
        }
    }

    /// Writes the user of each connection that exactly one device is on, with an open link. It may leave out some.
    pub fn alone_on(&self, gateway: GatewayId, epoch: Epoch, conns: &[Conn], found: &mut [Option<Slot>]) {
        #[cfg(test)]
        if super::planted::is_planted() {
            return;
        }
        let Some(gateway) = self.table.get(gateway.0) else {
            return;
        };
        let Some(open) = gateway.open.get(&epoch) else { return };
        let lingering = gateway.lingering.get(&epoch);
        for conn in conns {
            open.touch(self.hasher.number(conn.0));
        }
        for (place, conn) in found.iter_mut().zip(conns) {
            let key = self.hasher.number(conn.0);
            if lingering.is_none_or(|links| !links.has(key)) {
                *place = open.alone(key).map(Slot);
            }
        }
    }

    /// Returns the users with an open link on this gateway in these epochs, in arbitrary order and possibly twice.
    pub fn with_open_link(&self, id: GatewayId, epochs: impl RangeBounds<Epoch>) -> Vec<Slot> {
        let Some(gateway) = self.table.get(id.0) else {
            return Vec::new();
        };
        let links = gateway.open.range(epochs).flat_map(|(_, links)| links.slots());
        links.map(Slot).collect()
    }

    /// Records what a lease says about its gateway.
    pub fn learn(&mut self, name: &str, known: KnownGateway) -> GatewayId {
        let id = self.intern(name);
        let Some(gateway) = self.table.get_mut(id.0) else {
            return id;
        };
        if let Some(was) = gateway.known.replace(known) {
            match was.lease_until {
                Some(until) => self.leases.remove(&(until, id.0)),
                None => self.idle.remove(&(was.last_until.plus(GATEWAY_FORGOTTEN_MS), id.0)),
            };
        }
        match known.lease_until {
            Some(until) => self.leases.insert((until, id.0)),
            None => self.idle.insert((known.last_until.plus(GATEWAY_FORGOTTEN_MS), id.0)),
        };
        self.note_first();
        id
    }

    fn note_first(&mut self) {
        let first = |times: &BTreeSet<(LogTime, u32)>| times.first().map_or(NEVER, |(time, _)| *time);
        self.first_lease = first(&self.leases);
        self.first_idle = first(&self.idle);
    }

    /// Returns when the next lease expires or the next gateway is forgotten.
    pub fn attention_at(&self, grace_until: Option<LogTime>) -> LogTime {
        deferred(self.first_lease, grace_until).min(self.first_idle)
    }

    /// Returns the gateways whose active lease has expired by `time`.
    pub fn expired(&self, time: LogTime, grace_until: Option<LogTime>) -> Vec<(GatewayId, Epoch)> {
        if grace_until.is_some_and(|grace_until| grace_until > time) {
            return Vec::new();
        }
        let expired = self.leases.range(..=(time, u32::MAX));
        expired
            .filter_map(|(_, id)| Some((GatewayId(*id), self.known(GatewayId(*id))?.epoch)))
            .collect()
    }

    /// Drops expired leases, then forgets gateways that had no lease for long (section 5).
    pub fn tidy(&mut self, time: LogTime, grace_until: Option<LogTime>) {
        if time < self.attention_at(grace_until) {
            return;
        }
        while let Some((until, id)) = self.leases.first().copied()
            && deferred(until, grace_until) <= time
        {
            self.leases.pop_first();
            if let Some(known) = self.table.get_mut(id).and_then(|gateway| gateway.known.as_mut()) {
                known.lease_until = None;
                self.idle.insert((known.last_until.plus(GATEWAY_FORGOTTEN_MS), id));
            }
        }
        while let Some((at, id)) = self.idle.first().copied()
            && at <= time
        {
            self.idle.pop_first();
            if let Some(gateway) = self.table.get_mut(id) {
                gateway.known = None;
                if gateway.devices == 0 {
                    self.table.remove(id);
                }
            }
        }
        self.note_first();
    }
}
