//! What a worker warns of: a log that takes no events, log time ahead of the clock, malformed records.

use super::Worker;
use crate::engine::partition::PartitionProcessor;
use crate::metrics;
use std::sync::Arc;

/// Log time may be so far ahead of the clock without a warning: clocks are corrected a little all the time.
const TIME_AHEAD_MS: u64 = 5_000;

impl Worker {
    /// Whether events can be published, and whether log time is ahead of the clock: nobody may find out by accident.
    pub(super) fn look_at_the_log(&mut self) {
        let refusal = self.dependencies.log.refusal();
        metrics::log_writable(refusal.is_none());
        self.refusal = refusal.map(|refusal| refusal.to_string().into());
        let ahead_ms = self.ahead_ms();
        metrics::log_time_ahead(self.partition.0, ahead_ms);
        let is_ahead = ahead_ms > TIME_AHEAD_MS;
        if is_ahead != self.is_ahead {
            self.is_ahead = is_ahead;
            if is_ahead {
                tracing::warn!(partition = %self.partition, ahead_s = ahead_ms / 1_000, "log time is ahead of this machine's clock");
            } else {
                tracing::info!(partition = %self.partition, "log time is no longer ahead of this machine's clock");
            }
        }
    }

    /// How long ago log time is, by this machine's clock, in milliseconds; 0 if it is ahead. `None` before the first record.
    pub(super) fn log_time_age_ms(&self) -> Option<u64> {
        let time = self.processor.as_ref().and_then(|processor| processor.state().time());
        time.map(|time| self.clock.now_ms().saturating_sub(time.0))
    }

    /// How far log time is ahead of this machine's clock.
    fn ahead_ms(&self) -> u64 {
        let time = self.processor.as_ref().and_then(|processor| processor.state().time());
        time.map_or(0, |time| time.0.saturating_sub(self.clock.now_ms()))
    }

    pub(super) fn warning(&self) -> Option<Arc<str>> {
        let checkpointer = self.dependencies.services.checkpointer.as_ref();
        let checkpoints = checkpointer.and_then(|checkpointer| checkpointer.warning(self.partition));
        let ahead_ms = self.ahead_ms();
        if ahead_ms <= TIME_AHEAD_MS {
            return checkpoints;
        }
        let time = format!(
            "log time is {} s ahead of this machine's clock, which was or is wrong; times of changes are ahead as well",
            ahead_ms / 1_000
        );
        Some(match checkpoints {
            Some(checkpoints) => format!("{time}; {checkpoints}").into(),
            None => time.into(),
        })
    }

    pub(super) fn warn_of_malformed(&mut self) {
        let groups = self
            .processor
            .as_mut()
            .map(PartitionProcessor::take_unwarned)
            .unwrap_or_default();
        let due = self
            .dependencies
            .warnings
            .due(self.partition, groups, self.clock.monotonic_ms());
        for warning in due {
            tracing::warn!(
                reason = warning.reason.name(),
                count = warning.count,
                partition = warning.partition.0,
                newest_offset = warning.newest.0,
                error = warning.error,
                "malformed records; `rollcall log quarantine` prints them"
            );
        }
    }
}
