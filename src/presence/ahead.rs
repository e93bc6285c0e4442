//! Prefetching: waits for memory once for many users instead of once for each.
//!
//! With a million users, nearly every heartbeat finds its user, the device and both ids outside of the processor's
//! caches, one after the other, and the fold would mostly wait for memory. The users to be folded are known some
//! records earlier. Touching them in small groups, each step for the whole group, makes the waits overlap. This affects
//! speed only: it changes nothing, and the rules look up every user again.

use super::gateways::GatewayId;
use super::state::{DeviceState, Slot, State};
use super::users::{UserRef, Users};
use super::{Conn, Epoch};
use std::hint::black_box;

/// With fewer users than this, all memory is in the caches anyway.
const FEW: usize = 2_000;

/// Enough users for the waits to overlap, few enough that the first is still cached when the last is folded.
pub const USERS_AHEAD: usize = 64;

impl State {
    /// Touches the memory that folding an event of each of these users reads. Works best for [`USERS_AHEAD`] users at a
    /// time.
    pub fn look_ahead<'u>(&self, mut users: impl Iterator<Item = &'u str>) {
        if self.users_in_memory() < FEW {
            return;
        }
        let mut hashes = [0; USERS_AHEAD];
        loop {
            let mut count = 0;
            for (place, user) in hashes.iter_mut().zip(&mut users) {
                *place = self.users.hash(user);
                count += 1;
            }
            if count == 0 {
                return;
            }
            self.touch(&hashes[..count]);
        }
    }

    /// Writes the user of each of these connections that exactly one device is on, with an open link, and touches what
    /// refreshing them reads. It may leave out some. For [`USERS_AHEAD`] connections at most.
    pub(super) fn alone_on(&self, gateway: GatewayId, epoch: Epoch, conns: &[Conn], found: &mut [Option<Slot>]) {
        self.gateways.alone_on(gateway, epoch, conns, found);
        for user in found.iter().filter_map(|slot| self.users.view((*slot)?)) {
            black_box(user.armed());
        }
    }

    /// Touches the memory of the first [`USERS_AHEAD`] of these users, who are going to be saved.
    pub fn look_ahead_to_save(&self, slots: &[Slot]) {
        self.users.look_ahead(slots.iter().copied());
    }

    fn touch(&self, hashes: &[u32]) {
        let mut found = [None; USERS_AHEAD];
        for (place, hash) in found.iter_mut().zip(hashes) {
            *place = self.users.likely(*hash);
        }
        self.users.touch(&found[..hashes.len()]);
    }
}

impl Users {
    /// Touches the memory of the first [`USERS_AHEAD`] of these users.
    pub fn look_ahead(&self, slots: impl Iterator<Item = Slot>) {
        if self.len() < FEW {
            return;
        }
        let mut found = [None; USERS_AHEAD];
        for (place, slot) in found.iter_mut().zip(slots) {
            *place = Some(slot);
        }
        self.touch(&found);
    }

    fn touch(&self, found: &[Option<Slot>]) {
        let mut users = [None; USERS_AHEAD];
        for (place, slot) in users.iter_mut().zip(found) {
            *place = slot.and_then(|slot| self.view(slot));
        }
        let users = &users[..found.len()];
        let mut any_is_whole = false;
        for user in users.iter().flatten() {
            match user {
                UserRef::Compact(user, shared) => shared.texts.touch(user.text),
                UserRef::Whole(user) => {
                    black_box((user.armed, user.devices.len()));
                    any_is_whole = true;
                }
            }
        }
        if any_is_whole {
            touch_whole(users);
        }
    }
}

fn touch_whole(users: &[Option<UserRef<'_>>]) {
    let whole = || {
        users.iter().flatten().filter_map(|user| match user {
            UserRef::Compact(..) => None,
            UserRef::Whole(user) => Some(*user),
        })
    };
    for user in whole() {
        black_box(user.id.as_bytes().first());
        if let [device] = &*user.devices {
            black_box((device.platform, device.since, device.link.conn));
            if let DeviceState::Online {
                session, heartbeat_by, ..
            } = &device.state
            {
                black_box((session.evidence, *heartbeat_by));
            }
        }
    }
    for device in whole().flat_map(|user| &user.devices) {
        black_box(device.device.as_bytes().first());
    }
}
