//! An index from strings to the numbers of their slots, and the slots.
//!
//! Of its own because the standard map would keep every user id twice, and because nothing here may depend on a
//! random hash seed. The order of slots depends on history and never reaches an output.

const EMPTY: u32 = u32::MAX;
/// Grow when more than 7/8 full would follow.
const LOAD: (usize, usize) = (7, 8);

/// Open addressing with linear probing; an entry is 32 bits of the hash and the number of a slot.
pub(super) struct Index {
    entries: Vec<(u32, u32)>,
    len: usize,
}

/// A multiply-and-fold hash over eight bytes at a time; fixed, so that two runs do the same work.
pub(super) fn hash(key: &str) -> u32 {
    const A: u64 = 0x9E37_79B9_7F4A_7C15;
    const B: u64 = 0xD6E8_FEB8_6659_FD93;
    let fold = |x: u64, y: u64| {
        let wide = u128::from(x) * u128::from(y);
        (wide as u64) ^ ((wide >> 64) as u64)
    };
    let mut state = A ^ key.len() as u64;
    let mut chunks = key.as_bytes().chunks_exact(8);
    for chunk in &mut chunks {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        state = fold(state ^ u64::from_le_bytes(word), B);
    }
    let mut word = [0; 8];
    let rest = chunks.remainder();
    word[..rest.len()].copy_from_slice(rest);
    state = fold(state ^ u64::from_le_bytes(word), B);
    fold(state, A) as u32
}

impl Index {
    pub fn new() -> Index {
        Index {
            entries: vec![(0, EMPTY); 16],
            len: 0,
        }
    }

    fn mask(&self) -> usize {
        self.entries.len() - 1
    }

    pub fn find(&self, hash: u32, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        let mut at = hash as usize & self.mask();
        loop {
            let (stored, slot) = self.entries[at];
            if slot == EMPTY {
                return None;
            }
            if stored == hash && is(slot) {
                return Some(slot);
            }
            at = (at + 1) & self.mask();
        }
    }

    /// The slot of some entry with this hash, perhaps of another name.
    pub fn likely(&self, hash: u32) -> Option<u32> {
        self.find(hash, |_| true)
    }

    /// Adds a slot that is not in the index.
    pub fn insert(&mut self, hash: u32, slot: u32) {
        if (self.len + 1) * LOAD.1 > self.entries.len() * LOAD.0 {
            self.grow(self.entries.len() * 2);
        }
        self.place(hash, slot);
        self.len += 1;
    }

    /// Makes room for so many more, so that it does not grow step by step.
    pub fn reserve(&mut self, more: usize) {
        let wanted = (self.len + more) * LOAD.1 / LOAD.0 + 1;
        self.grow(wanted.next_power_of_two());
    }

    fn grow(&mut self, entries: usize) {
        if entries <= self.entries.len() {
            return;
        }
        let bigger = vec![(0, EMPTY); entries];
        for (hash, slot) in std::mem::replace(&mut self.entries, bigger) {
            if slot != EMPTY {
                self.place(hash, slot);
            }
        }
    }

    fn place(&mut self, hash: u32, slot: u32) {
        let mut at = hash as usize & self.mask();
        while self.entries[at].1 != EMPTY {
            at = (at + 1) & self.mask();
        }
        self.entries[at] = (hash, slot);
    }

    /// Removes a slot; entries behind it move up, so that no tombstones gather.
    pub fn remove(&mut self, hash: u32, slot: u32) {
        let mut at = hash as usize & self.mask();
        while self.entries[at] != (hash, slot) {
            if self.entries[at].1 == EMPTY {
                return;
            }
            at = (at + 1) & self.mask();
        }
        let mut next = (at + 1) & self.mask();
        while self.entries[next].1 != EMPTY {
            let home = self.entries[next].0 as usize & self.mask();
            // The entry may move to `at` unless its home lies cyclically in (at, next].
            if next.wrapping_sub(home) & self.mask() >= next.wrapping_sub(at) & self.mask() {
                self.entries[at] = self.entries[next];
                at = next;
            }
            next = (next + 1) & self.mask();
        }
        self.entries[at] = (0, EMPTY);
        self.len -= 1;
    }
}

/// Named things in numbered slots.
pub(super) struct Table<T> {
    index: Index,
    slots: Vec<Option<T>>,
    free: Vec<u32>,
    /// Freed, but not to be used again before [`Table::recycle`].
    resting: Vec<u32>,
    len: usize,
}

/// What a table's entries are called by.
pub(super) trait Named {
    fn name(&self) -> &str;
}

impl<T: Named> Table<T> {
    pub fn new() -> Table<T> {
        Table {
            index: Index::new(),
            slots: Vec::new(),
            free: Vec::new(),
            resting: Vec::new(),
            len: 0,
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Makes room for so many more.
    pub fn reserve(&mut self, more: usize) {
        self.index.reserve(more);
        self.slots.reserve(more);
    }

    pub fn find(&self, name: &str) -> Option<u32> {
        self.index.find(hash(name), |slot| {
            self.slots[slot as usize]
                .as_ref()
                .is_some_and(|entry| entry.name() == name)
        })
    }

    /// Where the entry of this hash's name is, or another one of the same hash. The entry itself is not looked at.
    pub fn likely(&self, hash: u32) -> Option<u32> {
        self.index.likely(hash)
    }

    pub fn get(&self, slot: u32) -> Option<&T> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    /// Adds an entry whose name is not in the table.
    pub fn insert(&mut self, entry: T) -> u32 {
        let hash = hash(entry.name());
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize] = Some(entry);
        self.index.insert(hash, slot);
        self.len += 1;
        slot
    }

    /// Adds an entry at a slot of the caller's choice, which must be vacant. Only for filling an empty table;
    /// [`Table::seal`] afterwards.
    pub fn insert_at(&mut self, slot: u32, entry: T) {
        if self.slots.len() <= slot as usize {
            self.slots.resize_with(slot as usize + 1, || None);
        }
        self.index.insert(hash(entry.name()), slot);
        self.slots[slot as usize] = Some(entry);
        self.len += 1;
    }

    /// Makes the vacant slots below the highest one available.
    pub fn seal(&mut self) {
        let vacant = (0..self.slots.len() as u32).rev();
        self.free = vacant.filter(|slot| self.slots[*slot as usize].is_none()).collect();
        self.resting.clear();
    }

    /// Takes an entry out. Its slot is not used again before [`Table::recycle`].
    pub fn remove(&mut self, slot: u32) -> Option<T> {
        let entry = self.slots.get_mut(slot as usize)?.take()?;
        self.index.remove(hash(entry.name()), slot);
        self.resting.push(slot);
        self.len -= 1;
        Some(entry)
    }

    /// Makes the slots of removed entries available.
    pub fn recycle(&mut self) {
        self.free.append(&mut self.resting);
    }

    pub fn iter(&self) -> impl Iterator<Item = (u32, &T)> {
        let numbered = self.slots.iter().enumerate();
        numbered.filter_map(|(slot, entry)| entry.as_ref().map(|entry| (slot as u32, entry)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    struct Name(String);
    impl Named for Name {
        fn name(&self) -> &str {
            &self.0
        }
    }

    #[test]
    fn it_finds_what_was_inserted_and_not_removed_through_thousands_of_steps() {
        let mut table = Table::new();
        let mut model = BTreeMap::new();
        let mut x: u64 = 1;
        for step in 0..50_000 {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let name = format!("name-{}", (x >> 33) % 700);
            match model.get(&name) {
                None => {
                    model.insert(name.clone(), table.insert(Name(name)));
                }
                Some(&slot) => {
                    assert_eq!(table.find(&name), Some(slot));
                    if x & 3 == 0 {
                        assert_eq!(table.remove(slot).map(|entry| entry.0), Some(name.clone()));
                        model.remove(&name);
                        assert_eq!(table.find(&name), None);
                    }
                }
            }
            if step % 100 == 0 {
                table.recycle();
                assert_eq!(table.len(), model.len());
                for (name, slot) in &model {
                    assert_eq!(table.find(name), Some(*slot));
                }
            }
        }
    }
}
