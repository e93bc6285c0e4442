//! Whether a worker waits for its log to fence the earlier owner off. It can answer nobody meanwhile, so a question is refused
//! instead of waiting as long.

use crate::clock::Clock;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// For how long a question waits for a partition whose worker fences. Mostly that takes a few hundred milliseconds, and an answer
/// after them is better than none.
pub const PATIENCE: Duration = Duration::from_secs(1);

/// Since when a worker fences, by both clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FencingSince {
    pub monotonic: Duration,
    pub wall_ms: u64,
}

/// Shared by a worker and those who ask it.
#[derive(Default)]
pub struct Fencing(Mutex<Option<FencingSince>>);

/// A fence that is under way until this is dropped.
pub struct FenceUnderWay<'f>(&'f Fencing);

impl Fencing {
    fn locked(&self) -> MutexGuard<'_, Option<FencingSince>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The worker begins to fence.
    pub fn begin(&self, clock: &dyn Clock) -> FenceUnderWay<'_> {
        *self.locked() = Some(FencingSince {
            monotonic: clock.monotonic(),
            wall_ms: clock.now_ms(),
        });
        FenceUnderWay(self)
    }

    pub fn since(&self) -> Option<FencingSince> {
        *self.locked()
    }

    /// For how long a question may wait that would otherwise wait for `limit`. `None`: it is refused at once.
    pub fn bounded(&self, limit: Duration, clock: &dyn Clock) -> Option<Duration> {
        let Some(since) = self.since() else {
            return Some(limit);
        };
        let fenced = clock.monotonic().saturating_sub(since.monotonic);
        (fenced < PATIENCE).then_some(limit.min(PATIENCE))
    }
}

impl Drop for FenceUnderWay<'_> {
    fn drop(&mut self) {
        *self.0.locked() = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn a_question_waits_a_second_for_a_fence_and_is_refused_at_once_when_that_has_taken_longer() {
        const LIMIT: Duration = Duration::from_secs(6);
        const SHORT: Duration = Duration::from_millis(10);
        let (fencing, clock) = (Fencing::default(), ManualClock::new(7_000));
        assert_eq!(fencing.bounded(LIMIT, &clock), Some(LIMIT));
        clock.advance_ms(1_000);
        let under_way = fencing.begin(&clock);
        assert_eq!(fencing.since().map(|since| since.wall_ms), Some(8_000));
        assert_eq!(fencing.bounded(LIMIT, &clock), Some(PATIENCE));
        assert_eq!(fencing.bounded(SHORT, &clock), Some(SHORT));
        clock.advance_ms(999);
        assert_eq!(fencing.bounded(LIMIT, &clock), Some(PATIENCE));
        clock.advance_ms(1);
        assert_eq!(fencing.bounded(LIMIT, &clock), None);
        drop(under_way);
        assert_eq!((fencing.since(), fencing.bounded(LIMIT, &clock)), (None, Some(LIMIT)));
    }
}
