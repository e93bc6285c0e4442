//! Whether a partition makes progress, judged by outcome alone: what is done, and what there is to do.
//!
//! Every known trouble has an error of its own. This is for what gives none: reading that stands still while the log
//! grows, whatever the reason. A log that others write to can be held by a transaction that a publisher has opened and not
//! ended: nobody reads past its first record until it commits, aborts or is given up by the broker.

use crate::log::Reading;
use crate::presence::Offset;

/// Standing still for so long is reported.
const PATIENCE_MS: u64 = 5_000;

/// Why a partition stands still.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Cause {
    /// All that is committed was read, and the log has more: a transaction is open.
    Transaction,
    /// The log has more, and reading it gives nothing.
    Reading,
    /// The log does not answer.
    Unanswered,
}

/// A partition that stands still.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standstill {
    pub cause: Cause,
    /// Everything before this offset is done.
    pub at: Offset,
    pub end: Offset,
    pub for_ms: u64,
}

/// What was last seen of a partition.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    reached: Offset,
    /// Since when nothing has moved, by the monotonic clock.
    since_ms: u64,
}

impl Progress {
    /// Returns the progress of a partition that was opened at this time and has not stood still yet.
    pub fn since(now_ms: u64) -> Progress {
        Progress {
            reached: Offset(0),
            since_ms: now_ms,
        }
    }

    /// Takes note of where a partition is: `applied`, what its log says of reading, and the log's end.
    pub fn look(&mut self, now_ms: u64, applied: Offset, reading: Reading, end: Offset) -> Option<Standstill> {
        if let Some(since_ms) = reading.unanswered_since_ms {
            let for_ms = now_ms.saturating_sub(since_ms);
            return (for_ms >= PATIENCE_MS).then_some(Standstill {
                cause: Cause::Unanswered,
                at: applied,
                end,
                for_ms,
            });
        }
        let reached = if reading.is_at_end {
            applied.max(reading.reached)
        } else {
            applied
        };
        if reached >= end || reached != self.reached {
            self.reached = reached;
            self.since_ms = now_ms;
            return None;
        }
        let for_ms = now_ms.saturating_sub(self.since_ms);
        let cause = if reading.is_at_end {
            Cause::Transaction
        } else {
            Cause::Reading
        };
        (for_ms >= PATIENCE_MS).then_some(Standstill {
            cause,
            at: reached,
            end,
            for_ms,
        })
    }

    /// How many records are still to be folded. What was read and is no record, such as an aborted transaction's, is done.
    pub fn lag(applied: Offset, reading: Reading, end: Offset) -> u64 {
        let reached = if reading.is_at_end {
            applied.max(reading.reached)
        } else {
            applied
        };
        end.0.saturating_sub(reached.0)
    }
}

impl Standstill {
    /// As a state of the partition.
    pub fn state(&self) -> &'static str {
        match self.cause {
            Cause::Transaction => "held",
            Cause::Reading | Cause::Unanswered => "stalled",
        }
    }

    /// What happened and what to do, without how long: the same as long as it lasts.
    pub fn reason(&self) -> String {
        let Standstill { at, end, .. } = self;
        match self.cause {
            Cause::Transaction => format!(
                "a publisher's open transaction holds the partition at offset {at}: nothing is folded until it commits, \
                 aborts or times out. kafka-transactions.sh finds it (describe-producers, or find-hanging and abort); give \
                 publishers a small transaction.timeout.ms"
            ),
            Cause::Reading => format!(
                "reading makes no progress at offset {at}, although the log has records up to {end}: check whether the \
                 partition's leader answers"
            ),
            Cause::Unanswered => {
                "the brokers do not answer: check whether the partition's leader can be reached".to_owned()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(reached: u64, is_at_end: bool) -> Reading {
        Reading {
            reached: Offset(reached),
            is_at_end,
            unanswered_since_ms: None,
        }
    }

    #[test]
    fn a_partition_that_stands_still_while_its_log_grows_is_reported_after_five_seconds_and_no_longer_than_that() {
        let mut progress = Progress::default();
        let mut look = |now_ms, applied, reading, end| {
            let standstill = progress.look(now_ms, Offset(applied), reading, Offset(end));
            standstill.map(|standstill| (standstill.cause, standstill.at.0, standstill.for_ms))
        };
        assert_eq!(look(0, 10, reading(10, true), 10), None);
        assert_eq!(look(60_000, 10, reading(10, true), 10), None, "quiet is no standstill");
        assert_eq!(look(61_000, 10, reading(10, true), 25), None);
        assert_eq!(
            look(65_000, 10, reading(10, true), 30),
            Some((Cause::Transaction, 10, 5_000))
        );
        assert_eq!(
            look(66_000, 10, reading(10, false), 30),
            Some((Cause::Reading, 10, 6_000))
        );
        assert_eq!(look(67_000, 11, reading(10, false), 30), None, "it moves");
        assert_eq!(look(71_999, 11, reading(10, false), 30), None);
        // The rest was aborted.
        assert_eq!(look(90_000, 11, reading(30, true), 30), None);
        assert_eq!(look(99_000, 11, reading(30, true), 30), None);
        let unanswered = Reading {
            unanswered_since_ms: Some(100_000),
            ..reading(30, true)
        };
        assert_eq!(look(104_999, 11, unanswered, 30), None);
        assert_eq!(look(106_000, 11, unanswered, 30), Some((Cause::Unanswered, 11, 6_000)));
    }

    #[test]
    fn what_was_read_and_is_no_record_is_not_lag() {
        let lag = |reading| Progress::lag(Offset(10), reading, Offset(512));
        assert_eq!(lag(reading(512, true)), 0);
        assert_eq!(lag(reading(512, false)), 502);
        assert_eq!(lag(reading(10, true)), 502);
    }
}
