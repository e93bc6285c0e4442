//! When it is said that a source cannot be read: at once, and again at intervals while that lasts.

use crate::clock::{Clock, Deadline};
use std::time::Duration;

/// How often it is said.
const SAY_EVERY: Duration = Duration::from_secs(30);

/// Since when a source cannot be read, in monotonic time, and when to say so again; none while it can be read.
#[derive(Debug, Default)]
pub struct Trouble(Option<(Duration, Deadline)>);

impl Trouble {
    /// Records that the source could not be read. Returns for how long now, if it is to be said.
    pub fn failed(&mut self, clock: &dyn Clock) -> Option<Duration> {
        let now = clock.monotonic();
        let since = self.0.map_or(now, |(since, _)| since);
        if self.0.is_some_and(|(_, next)| !next.has_passed(clock)) {
            return None;
        }
        self.0 = Some((since, Deadline::after(clock, SAY_EVERY)));
        Some(now.saturating_sub(since))
    }

    /// Records that the source was read. Returns how long it could not be.
    pub fn over(&mut self, clock: &dyn Clock) -> Option<Duration> {
        let (since, _) = self.0.take()?;
        Some(clock.monotonic().saturating_sub(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn trouble_is_said_at_once_at_intervals_and_at_its_end() {
        let clock = ManualClock::new(0);
        let mut trouble = Trouble::default();
        assert_eq!(trouble.over(&clock), None);
        let mut said = Vec::new();
        for second in 0..=70 {
            said.extend(trouble.failed(&clock).map(|lasted| (second, lasted.as_secs())));
            clock.advance_ms(1_000);
        }
        assert_eq!(said, [(0, 0), (30, 30), (60, 60)]);
        assert_eq!(trouble.over(&clock), Some(Duration::from_secs(71)));
        assert_eq!(trouble.failed(&clock), Some(Duration::ZERO));
    }
}
