//! How far a long reading is, on standard error.

use crate::clock::{Clock as _, SystemClock};
use crate::presence::{Offset, Partition};
use crate::topics::Topic;

/// Between two lines of progress.
const PROGRESS_MS: u64 = 2_000;

/// Says how far a long reading is.
pub struct ReadProgress {
    clock: SystemClock,
    topic: Topic,
    partition: Partition,
    from: Offset,
    end: Offset,
    began_ms: u64,
    next_ms: u64,
}

impl ReadProgress {
    pub fn new(topic: Topic, partition: Partition, from: Offset, end: Offset) -> ReadProgress {
        let clock = SystemClock::new();
        let began_ms = clock.monotonic_ms();
        ReadProgress {
            clock,
            topic,
            partition,
            from,
            end,
            began_ms,
            next_ms: began_ms + PROGRESS_MS,
        }
    }

    pub fn tell(&mut self, next: Offset, ts: u64) {
        let now_ms = self.clock.monotonic_ms();
        if now_ms < self.next_ms {
            return;
        }
        let done = next.0.saturating_sub(self.from.0).max(1);
        let all = self.end.0.saturating_sub(self.from.0);
        let left_s = (now_ms - self.began_ms) * all.saturating_sub(done) / done / 1_000;
        let time = chrono::DateTime::from_timestamp_millis(ts as i64).map(|time| time.to_rfc3339());
        eprintln!(
            "{} of partition {}: {done} of {all} records ({} %), log time {}, about {left_s} s left",
            self.topic,
            self.partition,
            done * 100 / all.max(1),
            time.unwrap_or_default()
        );
        self.next_ms = now_ms + PROGRESS_MS;
    }
}
