//! An index of one epoch of a gateway: from connection numbers to the slots of their users.
//!
//! Normally a connection belongs to one device and has one entry in the hash index. A publisher may name the same
//! connection for thousands of devices; all but the first are then in an ordered map beside the index, where they do
//! not slow each other down.

use super::table::{Index, NumberKey};
use std::collections::BTreeMap;

pub(super) struct Links {
    first: Index<NumberKey>,
    /// The other users of the same connection, with a count each: a user may have two devices on one connection.
    more: BTreeMap<(NumberKey, u32), u32>,
}

impl Default for Links {
    fn default() -> Links {
        Links {
            first: Index::new(),
            more: BTreeMap::new(),
        }
    }
}

impl Links {
    pub fn is_empty(&self) -> bool {
        self.first.is_empty()
    }

    /// Reads the memory that looking a connection up reads first.
    pub fn touch(&self, conn: NumberKey) {
        self.first.touch(conn);
    }

    pub fn insert(&mut self, conn: NumberKey, slot: u32) {
        match self.first.likely(conn) {
            None => self.first.insert(conn, slot),
            Some(_) => *self.more.entry((conn, slot)).or_default() += 1,
        }
    }

    /// Reverts one [`Links::insert`] with the same arguments.
    pub fn remove(&mut self, conn: NumberKey, slot: u32) {
        if let Some(count) = self.more.get_mut(&(conn, slot)) {
            *count -= 1;
            if *count == 0 {
                self.more.remove(&(conn, slot));
            }
            return;
        }
        self.first.remove(conn, slot);
        let next = self.of(conn).next();
        if let Some(next) = next {
            self.first.insert(conn, next);
            self.remove(conn, next);
        }
    }

    /// Calls `each` with every slot on this connection, possibly more than once.
    pub fn each(&self, conn: NumberKey, mut each: impl FnMut(u32)) {
        if let Some(slot) = self.first.likely(conn) {
            each(slot);
            self.of(conn).for_each(each);
        }
    }

    /// Whether a slot is on this connection.
    pub fn has(&self, conn: NumberKey) -> bool {
        self.first.likely(conn).is_some()
    }

    /// Returns the slot on this connection if it is there alone.
    pub fn alone(&self, conn: NumberKey) -> Option<u32> {
        let slot = self.first.likely(conn)?;
        (self.more.is_empty() || self.of(conn).next().is_none()).then_some(slot)
    }

    /// Returns every slot, possibly more than once, in arbitrary order.
    pub fn slots(&self) -> impl Iterator<Item = u32> {
        self.first.slots().chain(self.more.keys().map(|(_, slot)| *slot))
    }

    fn of(&self, conn: NumberKey) -> impl Iterator<Item = u32> {
        self.more
            .range((conn, 0)..=(conn, u32::MAX))
            .map(|((_, slot), _)| *slot)
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::{HashSeed, Hasher};
    use super::*;

    #[test]
    fn whatever_is_put_in_and_taken_out_the_links_are_those_of_a_plain_list() {
        let hasher = Hasher::new(HashSeed(1));
        let mut links = Links::default();
        let mut model: Vec<(u64, u32)> = Vec::new();
        let mut x: u64 = 1;
        let mut draw = |below: u64| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 33) % below
        };
        for _ in 0..20_000 {
            if draw(2) == 0 || model.is_empty() {
                let (conn, slot) = (draw(8), draw(5) as u32);
                links.insert(hasher.number(conn), slot);
                model.push((conn, slot));
            } else {
                let (conn, slot) = model.swap_remove(draw(model.len() as u64) as usize);
                links.remove(hasher.number(conn), slot);
            }
            for conn in 0..8 {
                let mut found = Vec::new();
                links.each(hasher.number(conn), |slot| found.push(slot));
                let mut wanted: Vec<u32> = model
                    .iter()
                    .filter(|(of, _)| *of == conn)
                    .map(|(_, slot)| *slot)
                    .collect();
                for list in [&mut found, &mut wanted] {
                    list.sort_unstable();
                    list.dedup();
                }
                assert_eq!(found, wanted);
                let mut on_it = model.iter().filter(|(of, _)| *of == conn).map(|(_, slot)| *slot);
                let alone = on_it.next().filter(|_| on_it.next().is_none());
                assert_eq!(links.alone(hasher.number(conn)), alone);
                assert_eq!(links.has(hasher.number(conn)), !found.is_empty());
            }
            assert_eq!(links.is_empty(), model.is_empty());
        }
    }
}
