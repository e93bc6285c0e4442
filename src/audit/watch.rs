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
        if let Some(why) = &self.unread
            && now_ms >= self.read_ms + UNREAD_MAX_MS
        {
            let seconds = (now_ms - self.read_ms) / 1_000;
            return Some(format!("partition {partition} was not read for {seconds} s: {why}"));
        }
        (!self.has_caught_up).then(|| {
            format!(
                "partition {partition} is verified up to offset {verified}; the engine has committed up to {committed}"
            )
        })
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
            let mut standing = Standing::new(Partition(2), 5_000);
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
        assert_eq!(of(unread), ["partition 2 was not read for 11 s: no broker answers"]);
        assert_eq!(
            of(|standing| {
                standing.unread = Some("no broker answers".to_owned());
                standing.read_ms = 7_000;
            }),
            [""; 0]
        );
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
}
