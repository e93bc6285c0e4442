//! `lease`: what a gateway process reports about itself (section 6).

use super::super::change::{Cause, IgnoreReason, Part};
use super::super::fold::Out;
use super::super::gateways::{GatewayId, KnownGateway};
use super::super::state::{Device, Slot, State};
use super::super::{Epoch, LostBy};
use super::{Pending, lose_link};
use std::ops::RangeBounds;

impl State {
    /// Applies a lease (section 6, lease).
    pub(in super::super) fn lease(&mut self, gateway: &str, epoch: Epoch, ttl_ms: u64, out: Out<'_>) {
        let id = self.gateways.find(gateway);
        if self.gateways.is_stale(id, epoch) {
            return self.ignore(IgnoreReason::StaleEpoch, Part::Whole, out);
        }
        let known = id.and_then(|id| self.gateways.known(id));
        let is_new = known.is_none_or(|known| epoch > known.epoch);
        if is_new && let Some(id) = id {
            self.lose_links(id, ..epoch, out);
        }
        let now = self.now();
        let until = now.plus(ttl_ms);
        let known = KnownGateway {
            epoch,
            ended: ttl_ms == 0,
            lease_until: (ttl_ms > 0).then_some(until),
            last_until: until,
        };
        if ttl_ms == 0
            && let Some(id) = id
        {
            self.lose_links(id, epoch..=epoch, out);
        }
        self.gateways.learn(gateway, known);
    }

    /// Ends every open link of this gateway and these epochs now, in (user, platform, device) order.
    fn lose_links(&mut self, gateway: GatewayId, epochs: impl RangeBounds<Epoch> + Clone, out: Out<'_>) {
        let (now, here) = (self.now(), self.here());
        let hits = self.gateways.with_open_link(gateway, epochs.clone());
        let hit = |device: &Device| {
            device.has_open_link() && device.link.gateway == gateway && epochs.contains(&device.link.epoch)
        };
        let named = hits.into_iter().filter_map(|slot| Some((self.users.id(slot)?, slot)));
        let mut hits: Vec<(&str, Slot)> = named.collect();
        hits.sort_unstable();
        hits.dedup();
        let slots: Vec<Slot> = hits.into_iter().map(|(_, slot)| slot).collect();
        for slot in slots {
            // One change per device. A device may leave the list, so its place is looked up each time.
            while let Some(place) = self.users.get(slot).and_then(|user| user.devices.iter().position(hit)) {
                let State {
                    users, rules, gateways, ..
                } = self;
                let Some(user) = users.change(slot) else { return };
                let mut pending = Pending::default();
                lose_link(
                    slot,
                    user,
                    place,
                    now,
                    LostBy::GatewayLost,
                    rules,
                    gateways,
                    &mut pending,
                );
                self.conclude(slot, now, Cause::GatewayLost, here, pending, out);
            }
            self.arm(slot);
        }
    }
}
