//! How old the oldest change is that no table shows yet (`rollcall_lake_behind_seconds`), unread ones included.
//!
//! A change that was read has a time. Of unread ones only this is known: when everything was last seen to be read, there were none,
//! and they are newer than the last change that was read. So until that is seen again, the oldest may be as old as that time.

use crate::metrics;
use crate::presence::Partition;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How often it is looked whether everything of a quiet partition was read: on Kafka that is a question to the brokers.
pub const LOOK_MS: u64 = 5_000;
/// For so long after such a look nothing counts as unread.
const SEEN_MS: u64 = 3 * LOOK_MS;

/// The partitions of a lake, for the thread that reads them and for what it waits for.
#[derive(Clone, Default)]
pub struct Behind(Arc<Mutex<BTreeMap<Partition, PartitionBehind>>>);

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct PartitionBehind {
    /// The time of the oldest change that was read and is not committed.
    pending_ms: Option<u64>,
    /// No unread change is older.
    read_ms: u64,
    /// Everything was read at that time; otherwise it is the time of a change.
    is_at_end: bool,
    looked_ms: u64,
}

impl PartitionBehind {
    fn age_ms(&self, now_ms: u64) -> u64 {
        match self.pending_ms {
            Some(pending_ms) => now_ms.saturating_sub(pending_ms),
            None if self.is_at_end && now_ms < self.read_ms + SEEN_MS => 0,
            None => now_ms.saturating_sub(self.read_ms),
        }
    }
}

impl Behind {
    fn all(&self) -> MutexGuard<'_, BTreeMap<Partition, PartitionBehind>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins with a partition of which the changes up to a time are committed.
    pub fn begin(&self, partition: Partition, committed_ms: u64) {
        let one = PartitionBehind {
            read_ms: committed_ms,
            ..PartitionBehind::default()
        };
        self.all().insert(partition, one);
    }

    /// Changes of a partition were read; these are the times of the first and the last.
    pub fn read(&self, partition: Partition, first_ms: u64, last_ms: u64) {
        let mut all = self.all();
        let one = all.entry(partition).or_default();
        one.pending_ms.get_or_insert(first_ms);
        one.read_ms = one.read_ms.max(last_ms);
        one.is_at_end = false;
    }

    /// Whether it is time to look if everything of a partition was read.
    pub fn is_look_due(&self, partition: Partition, now_ms: u64) -> bool {
        let one = self.all().get(&partition).copied().unwrap_or_default();
        now_ms >= one.looked_ms + LOOK_MS || now_ms < one.looked_ms
    }

    /// It was learned at a time whether everything of a partition was read.
    pub fn looked(&self, partition: Partition, at_ms: u64, is_at_end: bool) {
        let mut all = self.all();
        let one = all.entry(partition).or_default();
        one.looked_ms = at_ms;
        if is_at_end {
            one.read_ms = one.read_ms.max(at_ms);
        }
        one.is_at_end = is_at_end;
    }

    /// Everything that was read is committed. Returns the time of the oldest of it.
    pub fn committed(&self) -> Option<u64> {
        let mut all = self.all();
        all.values_mut().filter_map(|one| one.pending_ms.take()).min()
    }

    pub fn report(&self, now_ms: u64) {
        for (partition, one) in &*self.all() {
            metrics::lake_behind(partition.0, one.age_ms(now_ms));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unread_counts_from_when_everything_was_last_seen_to_be_read() {
        let behind = Behind::default();
        let p = Partition(0);
        let age = |now_ms| behind.all()[&p].age_ms(now_ms);
        behind.begin(p, 1_000);
        // The process was away: what came meanwhile may be as old as the last change that is committed.
        assert_eq!(age(61_000), 60_000);
        behind.looked(p, 61_000, true);
        assert_eq!((age(61_000), age(61_000 + SEEN_MS - 1)), (0, 0));
        // The log cannot be read any more.
        assert_eq!(age(61_000 + SEEN_MS), SEEN_MS);
        behind.looked(p, 70_000, false);
        assert_eq!((age(70_000), age(161_000)), (9_000, 100_000));
        // What is read has a time, and the oldest counts until it is committed.
        behind.read(p, 80_000, 90_000);
        behind.read(p, 91_000, 95_000);
        assert_eq!(age(100_000), 20_000);
        behind.looked(p, 100_000, true);
        assert_eq!(age(101_000), 21_000, "what is read is not committed yet");
        assert_eq!(behind.committed(), Some(80_000));
        assert_eq!((behind.committed(), age(101_000)), (None, 0));
        // Committed, and there is more to read.
        behind.read(p, 102_000, 103_000);
        behind.committed();
        assert_eq!(age(104_000), 1_000);
    }

    #[test]
    fn a_look_is_due_at_first_and_after_a_while() {
        let behind = Behind::default();
        let p = Partition(3);
        behind.begin(p, 0);
        assert!(behind.is_look_due(p, LOOK_MS));
        behind.looked(p, 50_000, true);
        assert!(!behind.is_look_due(p, 50_000 + LOOK_MS - 1) && behind.is_look_due(p, 50_000 + LOOK_MS));
        // A clock that was set back.
        assert!(behind.is_look_due(p, 40_000));
    }
}
