//! What a watch knows of the partitions it follows, and whether anything is wrong.

use super::verify::Difference;
use crate::presence::{Offset, Partition};

/// Reading may fail for so long before it counts.
const UNREAD_MAX_MS: u64 = 10_000;

/// What is known of one partition.
#[derive(Clone, Debug)]
pub struct Standing {
    pub partition: Partition,
    /// The outputs of all events before this offset are what the events say.
    pub verified: Offset,
    /// What the engine has committed.
    pub committed: Offset,
    /// Whether everything that was committed at some time has been verified.
    pub has_caught_up: bool,
    /// When the partition was read last, in milliseconds of a monotonic clock.
    pub read_ms: u64,
    /// Why it could not be read the last time.
    pub unread: Option<String>,
    /// Whether the committed position is before what was verified.
    pub has_gone_back: bool,
    pub difference: Option<Difference>,
}

impl Standing {
    pub fn new(partition: Partition, now_ms: u64) -> Standing {
        Standing {
            partition,
            verified: Offset(0),
            committed: Offset(0),
            has_caught_up: false,
            read_ms: now_ms,
            unread: None,
            has_gone_back: false,
            difference: None,
        }
    }

    /// Returns what is wrong with the partition, if anything is.
    fn trouble(&self, now_ms: u64) -> Option<String> {
        let Standing {
            partition,
            verified,
            committed,
            ..
        } = self;
        if let Some(difference) = &self.difference {
            return Some(format!(
                "partition {partition} is not what its events say: the first difference is in {} for the event at offset {}; \
                 `rollcall audit verify --partition {partition}` prints both sides",
                difference.topic, difference.offset
            ));
        }
        if now_ms >= self.read_ms + UNREAD_MAX_MS {
            let seconds = (now_ms - self.read_ms) / 1_000;
            let why = self.unread.as_deref().unwrap_or("the last read has not ended yet");
            return Some(format!("partition {partition} was not read for {seconds} s: {why}"));
        }
        if self.has_gone_back {
            return Some(format!(
                "partition {partition} is verified up to offset {verified}, but the committed position went back to {committed}: check \
                 whether the group's offsets have expired or were reset"
            ));
        }
        (!self.has_caught_up).then(|| {
            format!(
                "partition {partition} is verified up to offset {verified}; the engine has committed up to {committed}"
            )
        })
    }
}

/// How long something that was committed has not been in its topic.
#[derive(Default)]
pub struct MissingTimer {
    /// What is missing first, and since when.
    first: Option<((Offset, u64), u64)>,
}

impl MissingTimer {
    /// Returns for how long the same record has been the first one that is missing, in milliseconds of a monotonic clock. A
    /// record is named by the offset of its event and the number of records before it in its topic.
    pub fn missing_ms(&mut self, first: (Offset, u64), now_ms: u64) -> u64 {
        match self.first {
            Some((same, since_ms)) if same == first => now_ms.saturating_sub(since_ms),
            Some(_) | None => {
                self.first = Some((first, now_ms));
                0
            }
        }
    }

    /// Forgets since when: nothing is missing, or nothing could be read.
    pub fn restart(&mut self) {
        self.first = None;
    }
}

/// Returns what is wrong, a sentence for each partition with trouble.
pub fn troubles(standings: &[Standing], now_ms: u64) -> Vec<String> {
    standings
        .iter()
        .filter_map(|standing| standing.trouble(now_ms))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_in_trouble_until_it_has_caught_up_if_it_differs_and_if_it_cannot_be_read() {
        let of = |change: fn(&mut Standing)| {
            let mut standing = Standing::new(Partition(2), 7_000);
            standing.has_caught_up = true;
            change(&mut standing);
            troubles(&[standing], 16_000)
        };
        let unread = |standing: &mut Standing| standing.unread = Some("no broker answers".to_owned());
        assert_eq!(of(|_| {}), [""; 0]);
        assert_eq!(
            of(|standing| {
                standing.has_caught_up = false;
                standing.committed = Offset(7);
            }),
            ["partition 2 is verified up to offset 0; the engine has committed up to 7"]
        );
        assert_eq!(of(unread), [""; 0], "for 9 s");
        assert_eq!(
            of(|standing| {
                standing.unread = Some("no broker answers".to_owned());
                standing.read_ms = 5_000;
            }),
            ["partition 2 was not read for 11 s: no broker answers"]
        );
        assert_eq!(
            of(|standing| standing.read_ms = 5_000),
            ["partition 2 was not read for 11 s: the last read has not ended yet"]
        );
        let went_back = of(|standing| {
            (standing.has_gone_back, standing.verified, standing.committed) = (true, Offset(9), Offset(0));
        });
        assert!(went_back[0].contains("went back to 0"), "{went_back:?}");
        let differs = of(|standing| {
            standing.difference = Some(Difference {
                partition: 2,
                verified: false,
                offset: 17,
                topic: "changes",
                found: None,
                expected: None,
            });
        });
        assert!(differs[0].contains("changes for the event at offset 17"), "{differs:?}");
    }

    #[test]
    fn a_record_is_missing_for_as_long_as_it_is_the_first_one() {
        let mut timer = MissingTimer::default();
        assert_eq!(timer.missing_ms((Offset(3), 1), 1_000), 0);
        assert_eq!(timer.missing_ms((Offset(3), 1), 61_000), 60_000);
        // The record is there now, and another output of the same event is the first one.
        assert_eq!(timer.missing_ms((Offset(3), 2), 120_000), 0);
        assert_eq!(timer.missing_ms((Offset(3), 2), 130_000), 10_000);
        timer.restart();
        assert_eq!(timer.missing_ms((Offset(3), 2), 260_000), 0);
    }
}
