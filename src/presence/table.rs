//! An index from keys to slot numbers, and a table of named slots.
//!
//! The standard map would store every user id twice. Names come from untrusted publishers, so the hash is keyed:
//! without the seed, nobody can choose names that collide and so make look-ups slow. Neither the seed nor the order of
//! slots, which depends on history, ever affects an output.

/// The key of the hashes of a [`State`](super::state::State). A process draws it at random; runs that must be
/// reproducible step by step fix it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HashSeed(pub u64);

/// The words into which a [`HashSeed`] is expanded.
#[derive(Clone, Copy)]
pub(super) struct Hasher {
    start: u64,
    left: u64,
    right: u64,
    end: u64,
}

/// Combines the upper and lower half of a product by XOR: each bit of the result depends on each bit of both factors.
fn fold(x: u64, y: u64) -> u64 {
    let wide = u128::from(x) * u128::from(y);
    (wide as u64) ^ ((wide >> 64) as u64)
}

/// Returns one to sixteen bytes in two words. They overlap where there are fewer than sixteen; different bytes of the same
/// length give different words.
fn words(bytes: &[u8]) -> (u64, u64) {
    if let (Some(first), Some(last)) = (bytes.first_chunk::<8>(), bytes.last_chunk::<8>()) {
        return (u64::from_le_bytes(*first), u64::from_le_bytes(*last));
    }
    if let (Some(first), Some(last)) = (bytes.first_chunk::<4>(), bytes.last_chunk::<4>()) {
        return (u32::from_le_bytes(*first).into(), u32::from_le_bytes(*last).into());
    }
    let of = |byte: Option<&u8>| u64::from(byte.copied().unwrap_or_default());
    (
        of(bytes.first()) << 8 | of(bytes.get(bytes.len() / 2)),
        of(bytes.last()),
    )
}

impl Hasher {
    pub fn new(seed: HashSeed) -> Hasher {
        // This is SplitMix64.
        let mut state = seed.0;
        let mut next = || {
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut word = state;
            word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            word ^ (word >> 31)
        };
        Hasher {
            start: next(),
            left: next(),
            right: next(),
            end: next(),
        }
    }

    /// Returns the hash of a name: one multiplication per sixteen bytes, with both factors secret.
    pub fn name(&self, name: &str) -> u32 {
        let mut state = self.start;
        let (pairs, rest) = name.as_bytes().as_chunks::<16>();
        for pair in pairs {
            let (first, second) = words(pair);
            state = fold(first ^ self.left ^ state, second ^ self.right);
        }
        if !rest.is_empty() {
            let (first, second) = words(rest);
            state = fold(first ^ self.left ^ state, second ^ self.right);
        }
        // The length comes last: beside the first bytes, it and they could be chosen to cancel out.
        fold(state ^ self.end ^ name.len() as u64, self.right) as u32
    }

    /// Returns a number as an index stores it: a bijection that spreads numbers by secret multipliers. After one of them the
    /// lower bits do not depend on the upper bits of the number, so there are two.
    pub fn number(&self, number: u64) -> NumberKey {
        let once = (number ^ self.start).wrapping_mul(self.end | 1);
        let spread = (once ^ (once >> 32)).wrapping_mul(self.right | 1);
        NumberKey([spread as u32, (spread >> 32) as u32])
    }
}

/// The key by which an [`Index`] finds slots.
pub(super) trait Key: Copy + Eq + Default {
    /// Returns the position of the key in an index of unlimited size.
    fn home(self) -> usize;
}

/// The hash of a name. Different names may have the same hash.
impl Key for u32 {
    fn home(self) -> usize {
        self as usize
    }
}

/// A spread number, stored in halves, so that an entry of an index takes 12 bytes and not 16.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct NumberKey([u32; 2]);

impl Key for NumberKey {
    fn home(self) -> usize {
        // The upper half of a product depends on all bits of its factors.
        self.0[1] as usize
    }
}

const EMPTY: u32 = u32::MAX;
/// The index grows before it is more than 7/8 full.
const LOAD: (usize, usize) = (7, 8);
const FIRST_ENTRIES: usize = 16;

/// A hash table with open addressing and linear probing. An entry is a key and a slot number.
pub(super) struct Index<K> {
    /// Empty at first, then its length is a power of two.
    entries: Vec<(K, u32)>,
    len: usize,
}

impl<K: Key> Index<K> {
    pub fn new() -> Index<K> {
        Index {
            entries: Vec::new(),
            len: 0,
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    fn mask(&self) -> usize {
        self.entries.len() - 1
    }

    /// Returns the first slot under this key for which `is` returns true.
    pub fn find(&self, key: K, mut is: impl FnMut(u32) -> bool) -> Option<u32> {
        if self.entries.is_empty() {
            return None;
        }
        let mut at = key.home() & self.mask();
        loop {
            let (stored, slot) = self.entries[at];
            if slot == EMPTY {
                return None;
            }
            if stored == key && is(slot) {
                return Some(slot);
            }
            at = (at + 1) & self.mask();
        }
    }

    /// Reads the memory that looking a key up reads first.
    pub fn touch(&self, key: K) {
        if !self.entries.is_empty() {
            std::hint::black_box(self.entries[key.home() & self.mask()].1);
        }
    }

    /// Returns the slot of some entry with this key.
    pub fn likely(&self, key: K) -> Option<u32> {
        self.find(key, |_| true)
    }

    /// Adds a slot that is not in the index.
    pub fn insert(&mut self, key: K, slot: u32) {
        if (self.len + 1) * LOAD.1 > self.entries.len() * LOAD.0 {
            self.grow((self.entries.len() * 2).max(FIRST_ENTRIES));
        }
        self.place(key, slot);
        self.len += 1;
    }

    /// Reserves room for this many more entries, so that the index does not grow step by step.
    pub fn reserve(&mut self, more: usize) {
        let wanted = (self.len + more) * LOAD.1 / LOAD.0 + 1;
        self.grow(wanted.next_power_of_two().max(FIRST_ENTRIES));
    }

    fn grow(&mut self, entries: usize) {
        if entries <= self.entries.len() {
            return;
        }
        let bigger = vec![(K::default(), EMPTY); entries];
        for (key, slot) in std::mem::replace(&mut self.entries, bigger) {
            if slot != EMPTY {
                self.place(key, slot);
            }
        }
    }

    fn place(&mut self, key: K, slot: u32) {
        let mut at = key.home() & self.mask();
        while self.entries[at].1 != EMPTY {
            at = (at + 1) & self.mask();
        }
        self.entries[at] = (key, slot);
    }

    /// Removes a slot. Entries behind it move up, so no tombstones accumulate.
    pub fn remove(&mut self, key: K, slot: u32) {
        if self.entries.is_empty() {
            return;
        }
        let mut at = key.home() & self.mask();
        while self.entries[at] != (key, slot) {
            if self.entries[at].1 == EMPTY {
                return;
            }
            at = (at + 1) & self.mask();
        }
        let mut next = (at + 1) & self.mask();
        while self.entries[next].1 != EMPTY {
            let home = self.entries[next].0.home() & self.mask();
            // The entry may move to `at` unless its home lies cyclically in (at, next].
            if next.wrapping_sub(home) & self.mask() >= next.wrapping_sub(at) & self.mask() {
                self.entries[at] = self.entries[next];
                at = next;
            }
            next = (next + 1) & self.mask();
        }
        self.entries[at] = (K::default(), EMPTY);
        self.len -= 1;
    }

    /// Returns every slot, in arbitrary order.
    pub fn slots(&self) -> impl Iterator<Item = u32> {
        self.entries.iter().map(|(_, slot)| *slot).filter(|slot| *slot != EMPTY)
    }
}

/// Named entries in numbered slots.
pub(super) struct Table<T> {
    hasher: Hasher,
    index: Index<u32>,
    slots: Vec<Option<T>>,
    free: Vec<u32>,
}

/// The name of a table's entry.
pub(super) trait Named {
    fn name(&self) -> &str;
}

impl<T: Named> Table<T> {
    pub fn new(seed: HashSeed) -> Table<T> {
        Table {
            hasher: Hasher::new(seed),
            index: Index::new(),
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    fn hash(&self, name: &str) -> u32 {
        self.hasher.name(name)
    }

    pub fn find(&self, name: &str) -> Option<u32> {
        self.index.find(self.hash(name), |slot| {
            self.slots[slot as usize]
                .as_ref()
                .is_some_and(|entry| entry.name() == name)
        })
    }

    pub fn get(&self, slot: u32) -> Option<&T> {
        self.slots.get(slot as usize)?.as_ref()
    }

    pub fn get_mut(&mut self, slot: u32) -> Option<&mut T> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    /// Adds an entry whose name is not in the table, and returns its slot.
    pub fn insert(&mut self, entry: T) -> u32 {
        let hash = self.hash(entry.name());
        let slot = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            (self.slots.len() - 1) as u32
        });
        self.slots[slot as usize] = Some(entry);
        self.index.insert(hash, slot);
        slot
    }

    /// Removes an entry. Its slot may be reused.
    pub fn remove(&mut self, slot: u32) -> Option<T> {
        let entry = self.slots.get_mut(slot as usize)?.take()?;
        let hash = self.hash(entry.name());
        self.index.remove(hash, slot);
        self.free.push(slot);
        Some(entry)
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
        let mut table = Table::new(HashSeed(7));
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
                assert_eq!(table.iter().count(), model.len());
                for (name, slot) in &model {
                    assert_eq!(table.find(name), Some(*slot));
                }
            }
        }
    }

    /// Names of sixteen bytes whose second half cancels the first half, which collided under a public multiplier.
    #[test]
    fn names_that_collide_under_one_seed_do_not_under_another() {
        let names: Vec<String> = (0..200_000).map(|number| format!("user-{number:011}")).collect();
        let under = |seed: u64| {
            let hasher = Hasher::new(HashSeed(seed));
            let mut by_hash: BTreeMap<u32, Vec<&str>> = BTreeMap::new();
            for name in &names {
                by_hash.entry(hasher.name(name)).or_default().push(name);
            }
            by_hash
                .into_values()
                .filter(|names| names.len() > 1)
                .collect::<Vec<_>>()
        };
        let colliding = under(1);
        assert!(!colliding.is_empty(), "of 200,000 names some share 32 bits");
        let other = Hasher::new(HashSeed(2));
        let still = colliding
            .iter()
            .filter(|names| other.name(names[0]) == other.name(names[1]));
        assert_eq!(still.count(), 0);
    }

    #[test]
    fn every_byte_and_the_length_of_a_name_count() {
        let hasher = Hasher::new(HashSeed(3));
        let base = "0123456789abcdef0123456789abcdef0";
        let mut hashes = vec![hasher.name(base)];
        for at in 0..base.len() {
            let mut other = base.as_bytes().to_vec();
            other[at] ^= 1;
            hashes.push(hasher.name(std::str::from_utf8(&other).unwrap()));
        }
        for length in 0..base.len() {
            hashes.push(hasher.name(&base[..length]));
        }
        hashes.extend(["\0", "\0\0", "\0\0\0\0\0\0\0\0\0"].map(|name| hasher.name(name)));
        let all = hashes.len();
        hashes.sort_unstable();
        hashes.dedup();
        assert_eq!(hashes.len(), all);
    }

    /// The first bytes of these names would cancel out the difference in length if both were in one word.
    #[test]
    fn names_of_other_lengths_collide_under_no_seed() {
        let family = |base: u8, lengths: std::ops::RangeInclusive<u8>| {
            lengths.map(move |length| {
                let first = char::from(base ^ length);
                format!("{first}{}", "c".repeat(usize::from(length) - 1))
            })
        };
        let pair = ["aaaa".to_owned(), "`aaaa".to_owned()];
        for names in [
            pair.to_vec(),
            family(0x60, 9..=16).collect(),
            family(0x40, 24..=32).collect(),
        ] {
            for seed in 0..8 {
                let hasher = Hasher::new(HashSeed(seed));
                let mut hashes: Vec<u32> = names.iter().map(|name| hasher.name(name)).collect();
                hashes.sort_unstable();
                hashes.dedup();
                assert_eq!(hashes.len(), names.len(), "seed {seed}: {names:?}");
            }
        }
    }

    /// Publishers choose the numbers of connections.
    #[test]
    fn numbers_that_differ_in_few_bits_have_homes_of_their_own() {
        const NUMBERS: u64 = 1 << 12;
        let mask = 2 * NUMBERS as usize - 1;
        for seed in 0..4 {
            let hasher = Hasher::new(HashSeed(seed));
            for shift in 0..=51 {
                let homes: std::collections::BTreeSet<usize> = (0..NUMBERS)
                    .map(|number| hasher.number(number << shift).home() & mask)
                    .collect();
                // A random function would give about 3,200 of 4,096.
                assert!(homes.len() > 2_500, "seed {seed}, shift {shift}: {} homes", homes.len());
            }
        }
    }

    #[test]
    fn an_index_of_numbers_finds_each_and_no_other() {
        let hasher = Hasher::new(HashSeed(4));
        let mut index = Index::new();
        for number in 0..10_000_u64 {
            index.insert(hasher.number(number << 20), number as u32);
        }
        for number in (0..10_000).step_by(3) {
            index.remove(hasher.number(number << 20), number as u32);
        }
        for number in 0..10_000 {
            let found = index.likely(hasher.number(number << 20));
            assert_eq!(found, (number % 3 != 0).then_some(number as u32));
            assert_eq!(index.likely(hasher.number((number << 20) + 1)), None);
        }
        assert_eq!(index.slots().count(), 6_666);
    }
}
