//! The only file that reads the machine's clock.
//!
//! Two kinds of time, which must not be mixed up. *Wall time* is the time of day; it may step in both directions when
//! the machine's clock is corrected, and becomes the time of a record. *Monotonic time* never steps back and means
//! nothing outside this process; it measures durations: time-outs, pauses, how long something took.

#![expect(clippy::disallowed_methods, reason = "the one file that reads the clock")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A source of time. It is passed in, so that tests and simulated worlds have their own time.
pub trait Clock: Send + Sync {
    /// Returns wall time in milliseconds since 1970; 0 if the machine's clock is before 1970. May step back.
    fn now_ms(&self) -> u64;

    /// Returns wall time as the time since 1970, as fine as the machine's clock is.
    fn since_1970(&self) -> Duration {
        Duration::from_millis(self.now_ms())
    }

    /// Returns the time since a fixed moment before this clock was first read. Never steps back.
    fn monotonic(&self) -> Duration;

    /// Returns monotonic time in milliseconds.
    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.monotonic().as_millis()).unwrap_or(u64::MAX)
    }

    /// Returns monotonic time that also counts while the machine sleeps: how much time has really passed between two
    /// readings.
    fn passed(&self) -> Duration {
        self.monotonic()
    }
}

/// The machine's clock.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    pub fn new() -> SystemClock {
        SystemClock { start: Instant::now() }
    }
}

impl Default for SystemClock {
    fn default() -> SystemClock {
        SystemClock::new()
    }
}

impl Clock for SystemClock {
    fn now_ms(&self) -> u64 {
        u64::try_from(self.since_1970().as_millis()).unwrap_or(u64::MAX)
    }

    fn since_1970(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    /// On Linux monotonic time does not count while the machine is suspended; this clock does.
    #[cfg(target_os = "linux")]
    #[expect(unsafe_code, reason = "the standard library cannot read this clock")]
    fn passed(&self) -> Duration {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `now` is a valid timespec that the call may write to.
        let read = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) };
        match (read, u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec)) {
            (0, Ok(seconds), Ok(nanos)) => Duration::new(seconds, nanos),
            // Every Linux since 2.6.39 has this clock, so a process never mixes the two.
            _ => self.monotonic(),
        }
    }
}

/// A clock that moves only when its methods are called.
#[derive(Debug, Default)]
pub struct ManualClock {
    now_ms: AtomicU64,
    monotonic_ms: AtomicU64,
}

impl ManualClock {
    /// Starts at a wall time. Its monotonic time starts at 0.
    pub fn new(now_ms: u64) -> ManualClock {
        ManualClock {
            now_ms: AtomicU64::new(now_ms),
            monotonic_ms: AtomicU64::new(0),
        }
    }

    /// Advances both times.
    pub fn advance_ms(&self, ms: u64) {
        self.now_ms.fetch_add(ms, Ordering::SeqCst);
        self.monotonic_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// Sets wall time, in either direction. Monotonic time stays.
    pub fn set_ms(&self, now_ms: u64) {
        self.now_ms.store(now_ms, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.monotonic_ms.load(Ordering::SeqCst))
    }
}

/// Until when something is waited for. What waits looks again and again, and a look may itself take long, so the wait is bounded by
/// the time that has passed and not by the number of looks or of pauses.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Deadline(Duration);

impl Deadline {
    /// Begins a wait.
    pub fn after(clock: &dyn Clock, within: Duration) -> Deadline {
        Deadline(clock.monotonic().saturating_add(within))
    }

    pub fn has_passed(&self, clock: &dyn Clock) -> bool {
        clock.monotonic() >= self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manual_clock_moves_only_when_told() {
        let clock = ManualClock::new(1_000);
        assert_eq!((clock.now_ms(), clock.monotonic()), (1_000, Duration::ZERO));
        clock.advance_ms(5);
        assert_eq!((clock.now_ms(), clock.monotonic()), (1_005, Duration::from_millis(5)));
        clock.set_ms(7);
        assert_eq!((clock.now_ms(), clock.monotonic()), (7, Duration::from_millis(5)));
    }

    #[test]
    fn a_deadline_has_passed_when_so_much_time_has_passed_however_wall_time_steps() {
        let clock = ManualClock::new(1_000);
        let deadline = Deadline::after(&clock, Duration::from_millis(5));
        clock.set_ms(1_000_000);
        assert!(!deadline.has_passed(&clock));
        clock.advance_ms(4);
        assert!(!deadline.has_passed(&clock));
        clock.advance_ms(1);
        assert!(deadline.has_passed(&clock));
        assert!(Deadline::after(&clock, Duration::ZERO).has_passed(&clock));
        assert!(!Deadline::after(&clock, Duration::MAX).has_passed(&clock));
    }

    #[test]
    fn the_machines_clock_is_past_2020_and_its_monotonic_time_does_not_step_back() {
        let clock = SystemClock::new();
        assert!(clock.now_ms() > 1_577_836_800_000);
        let earlier = clock.monotonic();
        assert!(clock.monotonic() >= earlier);
    }
}
