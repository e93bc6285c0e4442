//! What the fold adds to the index of changes until the next commit of the store.
//!
//! Each change goes in once, with its record's value and, at every 4,096th, the counts after it. What is pending is
//! written with the state, in one batch; so the index is never ahead of the state and never behind it.

use super::census::Census;
use crate::presence::LogTime;
use crate::presence::change::Change;
use crate::registry::Schemas;
use crate::schema::avro::{self, Schema};
use crate::store::keys::CHANGES_PER_SEGMENT;
use crate::store::{Commit, Error, IndexMark, Indexed, MARK_CHANGES, Store};

/// The store is committed when so much of the index is pending.
pub const COMMIT_BYTES: usize = 32 << 20;

/// See the module.
pub struct UserIndex {
    /// How many changes it has at most.
    most: u64,
    from: u64,
    /// The last change that is in the store.
    stored: u64,
    /// The changes after the mark, one after the other: the user and the value of the record.
    bytes: Vec<u8>,
    entries: Vec<Entry>,
    marks: Vec<(u64, IndexMark)>,
    /// Rows up to this change are to be removed from the store; true: every one of them, since the log has dropped them.
    removed: Option<(u64, bool)>,
}

struct Entry {
    hash: u32,
    user: u8,
    start: usize,
}

/// A hash of the user's id. Entries with another hash are skipped without comparing ids.
fn hash(user: &str) -> u32 {
    let step = |hash: u32, byte: u8| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    user.bytes().fold(0x811c_9dc5, step)
}

impl UserIndex {
    /// Goes on with the index of a store whose state has given `seq` changes, or begins one there. `most`: how many
    /// changes it is to have at most; 0: there is to be no index.
    pub fn open(
        store: Option<&Store>,
        seq: u64,
        time: Option<LogTime>,
        census: &Census,
        most: u64,
    ) -> Result<Option<UserIndex>, Error> {
        let Some(store) = store else { return Ok(None) };
        let found = store.indexed()?;
        let known = found.filter(|indexed| indexed.upto == seq && most > 0);
        if found.is_some() && known.is_none() {
            store.remove_index()?;
        }
        if most == 0 {
            return Ok(None);
        }
        let mut index = UserIndex {
            most,
            from: known.map_or(seq, |indexed| indexed.from),
            stored: seq,
            bytes: Vec::new(),
            entries: Vec::new(),
            marks: Vec::new(),
            removed: None,
        };
        if known.is_none() {
            // All changes before were found out by then.
            let time = time.unwrap_or_default();
            index.mark(seq, time, time, census);
        }
        Ok(Some(index))
    }

    fn mark(&mut self, seq: u64, at: LogTime, logged_at: LogTime, census: &Census) {
        let counts = census.to_bytes();
        self.marks.push((seq, IndexMark { at, logged_at, counts }));
    }

    /// Takes the next change, with its datum; `census` counts it already.
    pub fn add(&mut self, change: &Change, schemas: &Schemas, datum: &[u8], census: &Census) {
        self.entries.push(Entry {
            hash: hash(&change.user),
            user: change.user.len() as u8,
            start: self.bytes.len(),
        });
        self.bytes.extend_from_slice(change.user.as_bytes());
        avro::frame_change(change, &mut self.bytes, |value| schemas.frame(Schema::Change, value));
        self.bytes.extend_from_slice(datum);
        if change.seq.is_multiple_of(MARK_CHANGES) {
            self.mark(change.seq, change.at, change.logged_at, census);
        }
    }

    /// Leaves out the changes up to this one: the log no longer has them.
    pub fn cut(&mut self, upto: u64) {
        if upto > self.from {
            self.from = upto;
            self.removed = Some((upto, true));
        }
    }

    fn upto(&self) -> u64 {
        self.stored + self.entries.len() as u64
    }

    /// Returns how many bytes are pending.
    pub fn pending_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Writes what is pending.
    pub fn write(&mut self, commit: &mut Commit) {
        // Not change by change: each time a range of keys is removed.
        if self.upto() - self.from > self.most.saturating_add(CHANGES_PER_SEGMENT / 8) {
            self.from = self.upto() - self.most;
            let is_whole = self.removed.is_some_and(|(_, is_whole)| is_whole);
            self.removed = Some((self.from, is_whole));
        }
        let ends = self.entries.iter().skip(1).map(|next| next.start);
        let ends = ends.chain([self.bytes.len()]);
        for ((entry, end), number) in self.entries.iter().zip(ends).zip(self.stored + 1..) {
            let (user, record) = self.bytes[entry.start..end].split_at(entry.user.into());
            if let Ok(user) = std::str::from_utf8(user) {
                commit.put_change(number, user, record);
            }
        }
        for (number, mark) in self.marks.drain(..) {
            commit.put_mark(number, &mark);
        }
        self.stored = self.upto();
        self.entries.clear();
        self.bytes.clear();
        commit.put_indexed(Indexed {
            from: self.from,
            upto: self.stored,
        });
    }

    /// Removes the rows that the commit before no longer counts.
    pub fn tidy(&mut self, store: &Store) -> Result<(), Error> {
        match self.removed.take() {
            Some((upto, is_whole)) => store.remove_indexed(upto, is_whole),
            None => Ok(()),
        }
    }

    /// Returns which changes are in the store.
    pub fn stored(&self) -> Indexed {
        Indexed {
            from: self.from.min(self.stored),
            upto: self.stored,
        }
    }

    /// Returns the marks that are not in the store yet, with the numbers of their changes.
    pub fn pending_marks(&self) -> Vec<(u64, IndexMark)> {
        self.marks.clone()
    }

    /// Returns the changes of a user that are not in the store yet, with their numbers.
    pub fn pending_of(&self, user: &str) -> Vec<(u64, Vec<u8>)> {
        let wanted = hash(user);
        let mut found = Vec::new();
        for (at, entry) in self
            .entries
            .iter()
            .enumerate()
            .filter(|(_, entry)| entry.hash == wanted)
        {
            let end = self.entries.get(at + 1).map_or(self.bytes.len(), |next| next.start);
            let (name, record) = self.bytes[entry.start..end].split_at(entry.user.into());
            if name == user.as_bytes() {
                found.push((self.stored + 1 + at as u64, record.to_vec()));
            }
        }
        found
    }
}
