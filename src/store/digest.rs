//! A hash of a store's content that does not depend on how the content came about.
//!
//! The digest covers, in this order: the position (next offset, outputs of it, chain); the partition without its users,
//! as written; every user with a device online, by id; every other user, by id. Of each user it covers the id and the
//! user as written, with the newest heartbeat times from their blocks. It leaves out what can differ between stores of
//! the same content: slots, rows of deadlines (which follow from the users), and the engine's counts.

use super::beats::SlotBeats;
use super::{Error, LAYOUT, Store, StoredState, image, keys};
use crate::presence::state::{Phase, Slot, UserImage};
use image::{Bytes, put_bytes, put_number};
use std::collections::HashMap;

impl Store {
    /// Returns the digest; the digest of no bytes if nothing was committed. Reads the whole store, and holds the
    /// heartbeat times of all online users in memory meanwhile.
    pub fn digest(&self) -> Result<[u8; 32], Error> {
        let mut hash = blake3::Hasher::new();
        let mut value = Vec::new();
        match self.meta()? {
            Some(meta) => self.position_of(&meta, &mut value)?,
            None => put_number(&mut value, LAYOUT),
        }
        hash.update(&value);
        let mut beats: HashMap<Slot, SlotBeats> = HashMap::new();
        self.for_each_beats(|slot, of| {
            beats.insert(slot, of);
        })?;
        let mut add = |group: u8, user: &UserImage<'_>| {
            value.clear();
            value.push(group);
            put_bytes(&mut value, user.user.as_bytes());
            image::put_user(&mut value, user);
            hash.update(&value);
        };
        self.for_each_online(|slot, user| {
            let mut user = user.clone();
            if let Some(beats) = beats.get(&slot) {
                lay_over(&mut user, beats);
            }
            add(keys::ONLINE, &user);
        })?;
        self.for_each_away(|user| add(keys::AWAY, user))?;
        Ok(*hash.finalize().as_bytes())
    }

    /// Appends layout, position and partition as they were written, without the engine's counts between them. So a
    /// checkpoint of an earlier layout has the digest that its writer gave it.
    fn position_of(&self, meta: &[u8], into: &mut Vec<u8>) -> Result<(), Error> {
        let StoredState { layout, applied, .. } = self.read_meta(meta)?;
        put_number(into, layout);
        put_number(into, applied.next.0);
        put_number(into, applied.outputs);
        put_bytes(into, &applied.chain);
        let mut rest = Bytes(meta);
        let mut skip = || {
            for _ in ["layout", "next", "outputs"] {
                rest.number()?;
            }
            for _ in ["chain", "counts"] {
                image::bytes(&mut rest)?;
            }
            Some(())
        };
        skip().ok_or_else(|| self.damaged("its position is unreadable"))?;
        into.extend_from_slice(rest.0);
        Ok(())
    }
}

/// Applies heartbeat times to a user, as the engine does when it opens a store.
fn lay_over(user: &mut UserImage<'_>, beats: &SlotBeats) {
    user.last_seen = beats.user_last_seen;
    let mut times = beats.devices.iter();
    for device in &mut user.devices {
        if let Phase::Online {
            session, heartbeat_by, ..
        } = &mut device.phase
        {
            let Some(beat) = times.next() else { return };
            session.last_seen = beat.last_seen;
            session.evidence = beat.evidence;
            *heartbeat_by = beat.heartbeat_by;
        }
    }
}
