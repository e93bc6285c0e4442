//! Prefetching: waits for memory once for many users instead of once for each.
//!
//! With a million users, nearly every heartbeat finds its user, the device and both ids outside of the processor's
//! caches, one after the other, and the fold would mostly wait for memory. The users to be folded are known some
//! records earlier. Touching them in small groups, each step for the whole group, makes the waits overlap. This affects
//! speed only: it changes nothing, and the rules look up every user again.

use super::gateways::GatewayId;
use super::state::{DeviceState, Slot, State, User};
use super::users::UserRef;
use super::{Conn, Epoch, LogTime};
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

    /// Touches the users of the first [`USERS_AHEAD`] of these timers in the same way.
    pub(super) fn look_ahead_at(&self, timers: &[(LogTime, Slot)]) {
        if self.users_in_memory() < FEW {
            return;
        }
        let mut found = [None; USERS_AHEAD];
        for (place, (_, slot)) in found.iter_mut().zip(timers) {
            *place = Some(*slot);
        }
        self.touch_users(&found);
    }

    fn touch(&self, hashes: &[u32]) {
        let mut found = [None; USERS_AHEAD];
        for (place, hash) in found.iter_mut().zip(hashes) {
            *place = self.users.likely(*hash);
        }
        self.touch_users(&found);
    }

    fn touch_users(&self, found: &[Option<Slot>; USERS_AHEAD]) {
        let users = || found.iter().filter_map(|slot| self.users.view((*slot)?));
        for user in users() {
            match user {
                UserRef::Compact(user, _) => black_box(user.armed()),
                // Only where it is.
                UserRef::Whole(user) => black_box(LogTime(user as *const User as u64)),
            };
        }
        for user in users() {
            match user {
                UserRef::Compact(user, shared) => {
                    black_box(shared.texts.get(user.text).user.first());
                }
                UserRef::Whole(user) => {
                    black_box((user.armed, user.devices.len()));
                }
            }
        }
        for user in users() {
            match user {
                UserRef::Compact(..) => {}
                UserRef::Whole(user) => {
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
            }
        }
        for user in users() {
            match user {
                UserRef::Compact(..) => {}
                UserRef::Whole(user) => {
                    for device in &user.devices {
                        black_box(device.device.as_bytes().first());
                    }
                }
            }
        }
    }
}
