//! What is remembered of a registry's responses, within bounds.
//!
//! Publishers decide how many schemas there are, and a record may name any id. So the least recently used are
//! forgotten, and looked up again when a record names them. Whether a record can be decoded never depends on what is
//! remembered, since its reader holds the schemas of its records ([`super::LearnedSchemas`]).

use super::SchemaName;
use crate::schema::Malformed;
use crate::schema::avro::WriterSchema;
use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many ids and GUIDs are remembered, also those that do not exist.
pub const COUNT_MAX: usize = 10_000;
/// The total size of the texts of the schemas that are remembered. A schema takes at most 40 times as much memory as its text
/// (`a_schema_takes_memory_in_proportion_to_its_text` in tests/allocation.rs).
pub const TEXT_BYTES_MAX: usize = 4 << 20;

/// The result of looking up a name. Cheap to clone.
#[derive(Clone, Debug)]
pub struct SchemaLookup {
    /// The schema, or why records with it are malformed.
    pub schema: Result<WriterSchema, Malformed>,
    /// The size of its text and of those it refers to.
    pub text_bytes: usize,
}

#[derive(Debug)]
struct Remembered {
    found: SchemaLookup,
    /// Our own schemas stay.
    is_own: bool,
    /// The number of its last use.
    used: AtomicU64,
}

#[derive(Default, Debug)]
pub struct Known {
    by_name: HashMap<SchemaName, Remembered>,
    text_bytes: usize,
    uses: AtomicU64,
}

impl Known {
    pub fn get(&self, name: SchemaName) -> Option<SchemaLookup> {
        let remembered = self.by_name.get(&name)?;
        let use_number = self.uses.fetch_add(1, Ordering::Relaxed);
        remembered.used.store(use_number, Ordering::Relaxed);
        Some(remembered.found.clone())
    }

    /// Remembers the schema of a name. Returns how many others were forgotten to make room.
    pub fn insert(&mut self, name: SchemaName, found: SchemaLookup) -> usize {
        let forgotten = self.make_room(found.text_bytes);
        self.put(name, found, false);
        forgotten
    }

    /// Remembers one of our own schemas for good.
    pub fn insert_own(&mut self, name: SchemaName, schema: WriterSchema) {
        let found = SchemaLookup {
            schema: Ok(schema),
            text_bytes: 0,
        };
        self.put(name, found, true);
    }

    fn put(&mut self, name: SchemaName, found: SchemaLookup, is_own: bool) {
        self.remove(name);
        self.text_bytes += found.text_bytes;
        let used = AtomicU64::new(self.uses.fetch_add(1, Ordering::Relaxed));
        self.by_name.insert(name, Remembered { found, is_own, used });
    }

    fn remove(&mut self, name: SchemaName) {
        if let Some(removed) = self.by_name.remove(&name) {
            self.text_bytes -= removed.found.text_bytes;
        }
    }

    /// Forgets a quarter at once, since each time all are compared.
    fn make_room(&mut self, text_bytes: usize) -> usize {
        if self.by_name.len() < COUNT_MAX && self.text_bytes + text_bytes <= TEXT_BYTES_MAX {
            return 0;
        }
        let of_others = self.by_name.iter().filter(|(_, remembered)| !remembered.is_own);
        let mut by_use: Vec<(u64, SchemaName)> = of_others
            .map(|(name, remembered)| (remembered.used.load(Ordering::Relaxed), *name))
            .collect();
        by_use.sort_unstable_by_key(|(used, _)| *used);
        let before = self.by_name.len();
        for (_, name) in by_use {
            if self.by_name.len() <= COUNT_MAX / 4 * 3 && self.text_bytes <= TEXT_BYTES_MAX / 4 * 3 {
                break;
            }
            self.remove(name);
        }
        before - self.by_name.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::avro::Schema;

    fn found(text_bytes: usize) -> SchemaLookup {
        SchemaLookup {
            schema: Ok(WriterSchema::own(Schema::Event)),
            text_bytes,
        }
    }

    #[test]
    fn the_least_recently_used_are_forgotten_by_count_and_our_own_stay() {
        let mut known = Known::default();
        known.insert_own(SchemaName::Id(0), WriterSchema::own(Schema::Event));
        let mut forgotten = 0;
        for id in 1..=3 * COUNT_MAX as u32 {
            forgotten += known.insert(SchemaName::Id(id), found(0));
            assert!(known.get(SchemaName::Id(1)).is_some(), "it is in use after {id}");
            assert!(known.by_name.len() <= COUNT_MAX);
        }
        let newest = SchemaName::Id(3 * COUNT_MAX as u32);
        assert!(known.get(SchemaName::Id(0)).is_some() && known.get(newest).is_some());
        assert!(known.get(SchemaName::Id(2)).is_none());
        assert_eq!(forgotten, 3 * COUNT_MAX + 1 - known.by_name.len());
    }

    #[test]
    fn the_least_recently_used_are_forgotten_by_the_size_of_their_texts() {
        let mut known = Known::default();
        let most = |known: &Known| {
            known
                .by_name
                .values()
                .map(|known| known.found.text_bytes)
                .sum::<usize>()
        };
        for id in 0..1_000 {
            known.insert(SchemaName::Id(id), found(TEXT_BYTES_MAX / 100));
            assert_eq!(known.text_bytes, most(&known));
            assert!(known.text_bytes <= TEXT_BYTES_MAX);
        }
        assert!(known.by_name.len() >= 75);
        // One that is too large by itself is usable all the same.
        known.insert(SchemaName::Id(7), found(2 * TEXT_BYTES_MAX));
        assert!(known.get(SchemaName::Id(7)).is_some());
        known.insert(SchemaName::Id(8), found(1));
        assert!(known.get(SchemaName::Id(7)).is_none() && known.get(SchemaName::Id(8)).is_some());
        assert_eq!(known.text_bytes, most(&known));
    }
}
