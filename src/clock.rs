//! The only file that reads the machine's clock.
//!
//! Two times that must not be mixed up. *Wall time* is the hour that people agree on; it may step in both directions
//! when the machine is corrected, and becomes the time of a record. *Monotonic time* never steps back and means
//! nothing outside this process; it measures spans: time-outs, pauses, how long something took.

#![expect(clippy::disallowed_methods, reason = "the one file that reads the clock")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Where the time comes from. Passed in, so that tests and simulated worlds have time of their own.
pub trait Clock: Send + Sync {
    /// Wall time in milliseconds since 1970; 0 if the machine thinks it is earlier than that. May step back.
    fn now_ms(&self) -> u64;

    /// Time since some moment before this clock was first asked. Never steps back.
    fn monotonic(&self) -> Duration;

    /// The same in milliseconds.
    fn monotonic_ms(&self) -> u64 {
        u64::try_from(self.monotonic().as_millis()).unwrap_or(u64::MAX)
    }

    /// Monotonic time that also counts while the machine sleeps: how much time has really passed between two readings.
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
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    /// On Linux monotonic time stands still while the machine is suspended, and this clock does not.
    #[cfg(target_os = "linux")]
    fn passed(&self) -> Duration {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `now` is a valid timespec that the call may write to.
        let read = unsafe { libc::clock_gettime(libc::CLOCK_BOOTTIME, &mut now) };
        match (read, u64::try_from(now.tv_sec), u32::try_from(now.tv_nsec)) {
            (0, Ok(seconds), Ok(nanos)) => Duration::new(seconds, nanos),
            // Every Linux since 2.6.39 has this clock, so this is never mixed with the other.
            _ => self.monotonic(),
        }
    }
}

/// A clock that moves only when it is told to.
#[derive(Debug, Default)]
pub struct ManualClock {
    now_ms: AtomicU64,
    monotonic_ms: AtomicU64,
}

impl ManualClock {
    /// Starts at a wall time; its monotonic time starts at 0.
    pub fn new(now_ms: u64) -> ManualClock {
        ManualClock {
            now_ms: AtomicU64::new(now_ms),
            monotonic_ms: AtomicU64::new(0),
        }
    }

    /// Time passes: both times move on.
    pub fn advance_ms(&self, ms: u64) {
        self.now_ms.fetch_add(ms, Ordering::SeqCst);
        self.monotonic_ms.fetch_add(ms, Ordering::SeqCst);
    }

    /// The machine's wall time is corrected, in either direction; no time passes.
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
    fn the_machines_clock_is_past_2020_and_its_monotonic_time_does_not_step_back() {
        let clock = SystemClock::new();
        assert!(clock.now_ms() > 1_577_836_800_000);
        let earlier = clock.monotonic();
        assert!(clock.monotonic() >= earlier);
    }
}
