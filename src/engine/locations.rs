//! Where each user in memory stands in the store, by slot, and the heartbeat times of a block of slots.

use crate::presence::state::{Slot, State};
use crate::store::{SlotBeats, UserLocation, keys};

#[derive(Default)]
pub struct UserLocations(Vec<UserLocation>);

impl UserLocations {
    pub fn set(&mut self, slot: Slot, place: UserLocation) {
        let at = slot.0 as usize;
        if self.0.len() <= at {
            self.0.resize(at + 1, UserLocation::Nowhere);
        }
        self.0[at] = place;
    }

    pub fn of(&self, slot: Slot) -> UserLocation {
        self.0.get(slot.0 as usize).copied().unwrap_or_default()
    }
}

/// The heartbeat times of the users online in a block of slots.
pub fn beats_of(state: &State, block: u32) -> Vec<SlotBeats> {
    let first = block * keys::SLOTS_PER_BLOCK;
    let slots = (0..keys::SLOTS_PER_BLOCK).filter_map(|place| {
        let (user_last_seen, devices) = state.beat_times(Slot(first + place))?;
        let devices: Vec<_> = devices.collect();
        (!devices.is_empty()).then_some(SlotBeats {
            place,
            user_last_seen,
            devices,
        })
    });
    slots.collect()
}
