//! Gateways: their epochs, their leases, and how many devices name each.

use super::deadlines::NEVER;
use super::table::{Named, Table};
use super::{Epoch, LogTime};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct GatewayId(pub u32);

pub(super) struct Gateway {
    pub name: Box<str>,
    pub known: Option<Known>,
    /// How many devices name it.
    devices: u32,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub epoch: Epoch,
    pub ended: bool,
    pub lease_until: Option<LogTime>,
    pub last_until: LogTime,
}

impl Known {
    /// When something becomes of it by itself: its lease expires, or it is forgotten.
    fn attention_at(&self, grace_until: Option<LogTime>) -> LogTime {
        match self.lease_until {
            Some(until) => deferred(until, grace_until),
            None => self.last_until.plus(GATEWAY_FORGOTTEN_MS),
        }
    }
}

/// A gateway without an active lease is forgotten this long after its last lease's end (section 5).
pub const GATEWAY_FORGOTTEN_MS: u64 = 86_400_000;

/// A heartbeat deadline or lease expiry under outage grace (section 2.4).
pub(super) fn deferred(deadline: LogTime, grace_until: Option<LogTime>) -> LogTime {
    match grace_until {
        Some(grace_until) => deadline.max(grace_until),
        None => deadline,
    }
}

impl Named for Gateway {
    fn name(&self) -> &str {
        &self.name
    }
}

/// Every gateway that has a known epoch or is named by a device.
pub(super) struct Gateways {
    pub table: Table<Gateway>,
    /// No lease expires and no gateway is forgotten before.
    pub quiet_until: LogTime,
}

impl Gateways {
    pub fn new() -> Gateways {
        Gateways {
            table: Table::new(),
            quiet_until: NEVER,
        }
    }

    pub fn find(&self, name: &str) -> Option<GatewayId> {
        self.table.find(name).map(GatewayId)
    }

    pub fn name(&self, id: GatewayId) -> &str {
        self.table.get(id.0).map_or("", |gateway| &gateway.name)
    }

    pub fn known(&self, id: GatewayId) -> Option<&Known> {
        self.table.get(id.0)?.known.as_ref()
    }

    /// Whether an epoch of a gateway is stale (section 6).
    pub fn is_stale(&self, id: Option<GatewayId>, epoch: Epoch) -> bool {
        match id.and_then(|id| self.known(id)) {
            Some(known) => known.epoch > epoch || (known.epoch == epoch && known.ended),
            None => false,
        }
    }

    /// The active lease that counts for connections of this epoch, as it was set.
    pub fn lease_of(&self, id: GatewayId, epoch: Epoch) -> Option<LogTime> {
        let known = self.known(id)?;
        if known.epoch == epoch { known.lease_until } else { None }
    }

    fn intern(&mut self, name: &str) -> GatewayId {
        self.find(name).unwrap_or_else(|| {
            GatewayId(self.table.insert(Gateway {
                name: name.into(),
                known: None,
                devices: 0,
            }))
        })
    }

    /// The number for a device that is to name this gateway; to be given back with [`Gateways::release`].
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
                self.table.recycle();
            }
        }
    }

    pub fn learn(&mut self, name: &str, known: Known, grace_until: Option<LogTime>) -> GatewayId {
        let id = self.intern(name);
        if let Some(gateway) = self.table.get_mut(id.0) {
            gateway.known = Some(known);
        }
        self.quiet_until = self.quiet_until.min(known.attention_at(grace_until));
        id
    }

    /// Those whose active lease has expired by `time`.
    pub fn expired(&self, time: LogTime, grace_until: Option<LogTime>) -> Vec<(GatewayId, Epoch)> {
        let known = self
            .table
            .iter()
            .filter_map(|(id, gateway)| Some((id, gateway.known.as_ref()?)));
        known
            .filter(|(_, known)| {
                known
                    .lease_until
                    .is_some_and(|until| deferred(until, grace_until) <= time)
            })
            .map(|(id, known)| (GatewayId(id), known.epoch))
            .collect()
    }

    /// Drops expired leases, then forgets gateways long without one (section 5).
    pub fn tidy(&mut self, time: LogTime, grace_until: Option<LogTime>) {
        if time < self.quiet_until {
            return;
        }
        let mut quiet_until = NEVER;
        let ids: Vec<u32> = self.table.iter().map(|(id, _)| id).collect();
        for id in ids {
            let Some(gateway) = self.table.get_mut(id) else {
                continue;
            };
            let Some(known) = &mut gateway.known else { continue };
            if known
                .lease_until
                .is_some_and(|until| deferred(until, grace_until) <= time)
            {
                known.lease_until = None;
            }
            if known.lease_until.is_none() && known.attention_at(grace_until) <= time {
                gateway.known = None;
                if gateway.devices == 0 {
                    self.table.remove(id);
                }
            } else {
                quiet_until = quiet_until.min(known.attention_at(grace_until));
            }
        }
        self.table.recycle();
        self.quiet_until = quiet_until;
    }
}
