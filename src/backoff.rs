//! Pauses between attempts.
//!
//! Each pause is twice as long as the one before, up to the longest one. Up to half of it is left off at random, so that
//! those who failed together do not try again together. The bounds of the loops that use them are in this file. A loop that asks a
//! file, a process or an issuer of its own again at a steady pace has a constant beside it: nobody else waits for the same.

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use std::time::Duration;

/// The longest first pause of a loop, and the longest of all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    first: Duration,
    longest: Duration,
}

/// A callback that the webhook's receiver has not accepted.
pub const CALLBACK: Bounds = Bounds::of_ms(250, 30_000);
/// The webhook's subscription to an engine.
pub const SUBSCRIPTION: Bounds = Bounds::of_ms(250, 5_000);
/// Events of the simulated users of `serve --demo`.
pub const DEMO: Bounds = Bounds::of_ms(250, 8_000);
/// A task of the gateway that has failed.
pub const GATEWAY_TASK: Bounds = Bounds::of_ms(500, 30_000);
/// The file of the gateway's disconnect queue.
pub const DISCONNECT_QUEUE: Bounds = Bounds::of_ms(1_000, 30_000);
/// What a gateway asks of its engine, and what it reads from it or from the log.
pub const UPLINK: Bounds = Bounds::of_ms(1_000, 1_000);
/// A topic of Kafka that is followed, of which a read failed.
pub const KAFKA_TAIL: Bounds = Bounds::of_ms(200, 5_000);
/// A receiver of spans that does not accept them.
pub const SPANS: Bounds = Bounds::of_ms(200, 2_000);
/// Brokers that do not answer while the process starts.
pub const BROKERS: Bounds = Bounds::of_ms(500, 500);
/// A schema registry that does not answer while the process starts.
pub const REGISTRY: Bounds = Bounds::of_ms(1_000, 1_000);

impl Bounds {
    const fn of_ms(first: u64, longest: u64) -> Bounds {
        Bounds {
            first: Duration::from_millis(first),
            longest: Duration::from_millis(longest),
        }
    }

    /// Begins with the first pause.
    pub fn start(self) -> Backoff {
        // The crate adds up to a whole pause at random.
        let pauses = ExponentialBuilder::new()
            .with_min_delay(self.first / 2)
            .with_max_delay(self.longest / 2)
            .without_max_times()
            .with_jitter();
        Backoff {
            bounds: self,
            pauses: pauses.build(),
        }
    }
}

/// The pauses of one loop.
#[derive(Debug)]
pub struct Backoff {
    bounds: Bounds,
    pauses: ExponentialBackoff,
}

impl Backoff {
    /// Returns the next pause.
    pub fn pause(&mut self) -> Duration {
        let pause = self.pauses.next().unwrap_or(self.bounds.longest);
        pause.min(self.bounds.longest)
    }

    /// The next pause is the first one again.
    pub fn reset(&mut self) {
        *self = self.bounds.start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_at_most_half_is_left_off() {
        let mut backoff = DEMO.start();
        for _ in 0..2 {
            for longest_ms in [250, 500, 1_000, 2_000, 4_000, 8_000, 8_000, 8_000] {
                let longest = Duration::from_millis(longest_ms);
                let pause = backoff.pause();
                assert!(longest / 2 <= pause && pause <= longest, "{pause:?} of {longest:?}");
            }
            backoff.reset();
        }
        let first = |_| DEMO.start().pause();
        let pauses: std::collections::BTreeSet<_> = (0..20).map(first).collect();
        assert!(pauses.len() > 1, "all pause for {pauses:?}");
    }
}
