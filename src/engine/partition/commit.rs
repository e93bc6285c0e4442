//! Commits: of outputs and position to the log, and later of what changed to the store.

use super::{PartitionProcessor, opening};
use crate::engine::Error;
use crate::engine::index;
use crate::engine::locations::beats_of;
use crate::failpoint;
use crate::log::PartitionHandle;
use crate::metrics;
use crate::presence::LogTime;
use crate::presence::ahead::USERS_AHEAD;
use crate::schema::policy::policy_json;
use crate::store::{self, Applied, UserLocation, keys};
use std::collections::BTreeSet;
use std::path::Path;

impl PartitionProcessor {
    /// Whether the part of the index of changes that is in memory is large enough to be stored.
    pub(super) fn index_is_full(&self) -> bool {
        let index = self.outbox.index.as_ref();
        index.is_some_and(|index| index.pending_bytes() >= index::COMMIT_BYTES)
    }

    /// Returns when the next commit to the log is due, by the monotonic clock; `None` if there is nothing to commit.
    pub fn commit_due_ms(&self) -> Option<u64> {
        let PartitionHandle::Owned(log) = &self.log else {
            return None;
        };
        // Counted from the beginning of the last commit: single outputs do not wait, and a steady flow of outputs does
        // not wait longer because commits take time.
        let pause_ms = || self.tuning.output_commit_ms.max(log.commit_pause_ms());
        let outputs = self.outbox.has_outputs().then(|| self.log_began_ms + pause_ms());
        let position = self.outbox.has_moved(self.next);
        let position = position.then_some(self.log_committed_ms + self.tuning.log_commit_ms);
        outputs.into_iter().chain(position).min()
    }

    /// Commits the outputs of the fold. While folding silently it only notes the time.
    pub(super) fn commit_log(&mut self) -> Result<(), Error> {
        self.commit_log_at(self.state.time())
    }

    /// `time` is the log time of the position.
    fn commit_log_at(&mut self, time: Option<LogTime>) -> Result<(), Error> {
        self.log_began_ms = self.clock.monotonic_ms();
        match &mut self.log {
            PartitionHandle::Owned(log) => self.outbox.commit(self.next, self.resumed_outputs, time, &mut **log)?,
            // It folds only what is committed, so nothing is left to commit.
            PartitionHandle::Standby(_) => {}
        }
        if !self.traced.is_empty() {
            let next = self.outbox.committed().next;
            self.traced.committed(self.partition, next, self.clock.since_1970());
        }
        if let Some(oldest) = self.outbox.take_oldest_committed() {
            let waited_ms = self.clock.now_ms().saturating_sub(oldest.0);
            metrics::change_committed(waited_ms as f64 / 1_000.0);
        }
        self.log_committed_ms = self.clock.monotonic_ms();
        Ok(())
    }

    /// Saves what changed, after committing everything before it to the log, and waits until it survives the death of the
    /// process.
    pub fn commit_store(&mut self) -> Result<(), Error> {
        self.commit_store_at(self.state.time())?;
        self.flush_store()
    }

    /// Waits until the last commit of the store survives the death of the process, and lets the log drop what is too old and
    /// not needed for it. That happens at the next commit, and not when the flush ends, so that how fast a disk is changes
    /// nothing else.
    fn flush_store(&mut self) -> Result<(), Error> {
        let (Some(store), Some(next)) = (&self.store, self.unflushed) else {
            return Ok(());
        };
        store.flush()?;
        self.unflushed = None;
        match &mut self.log {
            PartitionHandle::Owned(log) => Ok(log.retain(next)?),
            PartitionHandle::Standby(_) => Ok(()),
        }
    }

    pub(super) fn commit_store_at(&mut self, time: Option<LogTime>) -> Result<(), Error> {
        if !planted!(StoreBeforeLog) {
            self.commit_log_at(time)?;
        }
        // One commit at most is being flushed, so that memory stays bounded.
        self.flush_store()?;
        self.note_gone();
        self.folded_since = 0;
        self.store_committed_ms = self.clock.monotonic_ms();
        let Some(store) = &self.store else {
            self.state.take_dirt();
            return Ok(());
        };
        match &mut self.log {
            PartitionHandle::Owned(log) => log.sync()?,
            // What it has folded is in the owner's hands.
            PartitionHandle::Standby(_) => {}
        }
        failpoint::reach("store");
        let began = self.clock.monotonic_ms();
        let mut commit = store.begin();
        let dirty = self.state.take_dirt();
        for (user, place) in self.gone.drain() {
            commit.delete(&user, place);
        }
        let mut blocks = BTreeSet::new();
        let forgotten = dirty.forgotten.iter().map(|(slot, _)| slot);
        for slot in dirty.users.iter().chain(&dirty.beats).chain(forgotten) {
            blocks.insert(slot.0 / keys::SLOTS_PER_BLOCK);
        }
        for (number, slot) in dirty.users.iter().enumerate() {
            if number % USERS_AHEAD == 0 {
                self.state.look_ahead_to_save(&dirty.users[number..]);
            }
            let Some(user) = self.state.image(*slot) else { continue };
            let before = self.places.of(*slot);
            let place = commit.put(*slot, &user, before);
            if let UserLocation::Away(due) = place {
                self.cached.push_back(*slot);
                if let Some(due) = due {
                    self.due_next = Some(self.due_next.map_or(due, |next| next.min(due)));
                }
            }
            self.places.set(*slot, place);
        }
        for block in blocks {
            commit.put_beats(block, &beats_of(&self.state, block));
        }
        if let Some(index) = &mut self.outbox.index {
            index.write(&mut commit);
        }
        let applied = Applied {
            next: self.next,
            outputs: self.resumed_outputs,
            chain: self.outbox.chain(),
        };
        let image = self.state.partition_image();
        let written = self.policy.take().filter(|(since, _)| *since == image.policy_since);
        let (_, policy) = self
            .policy
            .insert(written.unwrap_or_else(|| (image.policy_since, policy_json(image.policy))));
        let kept = opening::kept_bytes(&self.outbox.census, self.outbox.input);
        store.commit(commit, &applied, &image, policy, &kept)?;
        self.unflushed = Some(self.next);
        if let Some(index) = &mut self.outbox.index {
            index.tidy(store)?;
        }
        failpoint::reach("stored");
        metrics::store_commit(self.clock.monotonic_ms().saturating_sub(began) as f64 / 1_000.0);
        self.state.release_long_timers();
        // An evicted user is found in the store by name or by deadline.
        while self.cached.len() > self.tuning.cached_users {
            if let Some(slot) = self.cached.pop_front()
                && self.state.evict(slot)
            {
                self.places.set(slot, UserLocation::Nowhere);
            }
        }
        Ok(())
    }

    /// Commits everything, so that a later start has nothing to fold again.
    pub fn close(mut self) -> Result<(), Error> {
        self.commit_store()
    }

    /// Commits the store and copies it into a new directory, where others may read it at any time. The inner error
    /// means that only the copy failed, which does not affect the partition.
    pub fn checkpoint(&mut self, into: &Path) -> Result<Result<(), store::Error>, Error> {
        self.commit_store()?;
        Ok(self.store.as_ref().map_or(Ok(()), |store| store.checkpoint(into)))
    }
}
