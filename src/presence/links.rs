//! Who is on which connection of one epoch of a gateway: slots of users by the number of the connection.
//!
//! A connection belongs to one device normally, and has one entry of the index. Nothing stops a publisher from naming
//! the same connection for thousands of devices; all but the first then stand in an ordered map beside the index, where
//! they do not slow each other down.

use super::table::{Index, NumberKey};
use std::collections::BTreeMap;

pub(super) struct Links {
    first: Index<NumberKey>,
    /// The others of the same connection, each with how often it is there: a user may have two devices on one.
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

    pub fn insert(&mut self, conn: NumberKey, slot: u32) {
        match self.first.likely(conn) {
            None => self.first.insert(conn, slot),
            Some(_) => *self.more.entry((conn, slot)).or_default() += 1,
        }
    }

    /// Takes back one [`Links::insert`] of the same arguments.
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

    /// Calls `each` with every slot on this connection, some perhaps more than once.
    pub fn each(&self, conn: NumberKey, mut each: impl FnMut(u32)) {
        if let Some(slot) = self.first.likely(conn) {
            each(slot);
            self.of(conn).for_each(each);
        }
    }

    /// Some slot on this connection.
    pub fn first(&self, conn: NumberKey) -> Option<u32> {
        self.first.likely(conn)
    }

    /// Every slot, some perhaps more than once, in no meaningful order.
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
            }
            assert_eq!(links.is_empty(), model.is_empty());
        }
    }
}
