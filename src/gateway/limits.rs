//! Limits: the number of connections in total, per user and per address; the rate of messages of a connection; and the
//! rate at which connections are accepted after a start or an outage.

use crate::clock::Clock;
use std::borrow::Borrow;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Counts by key, each up to a maximum. Dropping a [`Permit`] decreases its count.
#[derive(Debug)]
pub struct BoundedCounts<K: Hash + Eq> {
    most: u32,
    taken: Mutex<HashMap<K, u32>>,
}

/// One counted use of a key.
#[derive(Debug)]
pub struct Permit<K: Hash + Eq + Clone> {
    of: Arc<BoundedCounts<K>>,
    key: K,
}

impl<K: Hash + Eq + Clone> BoundedCounts<K> {
    pub fn new(most: u32) -> Arc<BoundedCounts<K>> {
        Arc::new(BoundedCounts {
            most,
            taken: Mutex::default(),
        })
    }

    /// Counts one more use; `None` if the key has reached its maximum.
    pub fn take(self: &Arc<Self>, key: K) -> Option<Permit<K>> {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let count = taken.entry(key.clone()).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        drop(taken);
        Some(Permit { of: self.clone(), key })
    }

    pub fn count<Q: Hash + Eq + ?Sized>(&self, key: &Q) -> u32
    where
        K: Borrow<Q>,
    {
        let taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        taken.get(key).copied().unwrap_or_default()
    }
}

impl<K: Hash + Eq + Clone> Drop for Permit<K> {
    fn drop(&mut self) {
        let mut taken = self.of.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.key);
            }
        }
    }
}

/// Handshakes in progress, up to a maximum. When one more begins, the oldest is cancelled: it is slow, or it is one of
/// many that were started only to keep others out. A client that completes its handshake in normal time is never the
/// oldest.
pub struct Handshakes {
    slots: Arc<Semaphore>,
    most: usize,
    /// The oldest first. Contains handshakes that are over, too.
    begun: Mutex<VecDeque<oneshot::Sender<()>>>,
}

impl Handshakes {
    pub fn new(most: usize) -> Handshakes {
        Handshakes {
            slots: Arc::new(Semaphore::new(most)),
            most,
            begun: Mutex::default(),
        }
    }

    /// Begins a handshake. The receiver is notified when the handshake is cancelled. Waits only until the oldest has
    /// gone.
    pub async fn begin(&self) -> Option<(OwnedSemaphorePermit, oneshot::Receiver<()>)> {
        let slot = match self.slots.clone().try_acquire_owned() {
            Ok(slot) => slot,
            Err(_) => {
                self.give_up_the_oldest();
                // The semaphore is never closed.
                self.slots.clone().acquire_owned().await.ok()?
            }
        };
        let (give_up, given_up) = oneshot::channel();
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        begun.push_back(give_up);
        if begun.len() > 2 * self.most {
            begun.retain(|give_up| !give_up.is_closed());
        }
        Some((slot, given_up))
    }

    fn give_up_the_oldest(&self) {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        while let Some(oldest) = begun.pop_front() {
            if oldest.send(()).is_ok() {
                return;
            }
        }
    }
}

/// Returns the address by which limits count: of IPv6 the /64 network, since one customer has all its addresses.
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let network = address.to_bits() & (u128::MAX << 64);
            IpAddr::V6(network.into())
        }
    }
}

/// A limit of messages per second on average, with bursts of four times as many.
#[derive(Clone, Copy, Debug)]
pub struct RateLimit {
    /// The remaining allowance, in thousandths of a message.
    left: u64,
    at_ms: u64,
}

impl RateLimit {
    const AT_ONCE: u64 = 4;

    pub fn new(rate: u64, now_ms: u64) -> RateLimit {
        RateLimit {
            left: rate * Self::AT_ONCE * 1_000,
            at_ms: now_ms,
        }
    }

    /// Takes one message from the allowance. Returns false if nothing is left.
    pub fn take(&mut self, rate: u64, now_ms: u64) -> bool {
        let passed = now_ms.saturating_sub(self.at_ms);
        self.at_ms = now_ms;
        // One message per second is a thousandth of a message per millisecond.
        let grown = self.left.saturating_add(passed.saturating_mul(rate));
        self.left = grown.min(rate * Self::AT_ONCE * 1_000);
        let enough = self.left >= 1_000;
        if enough {
            self.left -= 1_000;
        }
        enough
    }
}

/// Limits how fast connections are accepted. The rate starts low and doubles every second from the last reset on.
pub struct Ramp {
    clock: Arc<dyn Clock>,
    first_rate: u64,
    state: Mutex<RampState>,
}

struct RampState {
    began: Duration,
    /// When the next connection may be accepted.
    next: Duration,
}

impl Ramp {
    /// After this many doublings the rate no longer limits anything.
    const DOUBLINGS: u32 = 16;

    pub fn new(clock: Arc<dyn Clock>, first_rate: u64) -> Ramp {
        let now = clock.monotonic();
        Ramp {
            clock,
            first_rate,
            state: Mutex::new(RampState { began: now, next: now }),
        }
    }

    /// Resets the rate to the first one.
    pub fn set_back(&self) {
        let now = self.clock.monotonic();
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = RampState { began: now, next: now };
    }

    /// Counts one connection and returns how long it has to wait.
    pub fn wait(&self) -> Duration {
        let now = self.clock.monotonic();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let seconds = now.saturating_sub(state.began).as_secs();
        let doublings = u32::try_from(seconds).unwrap_or(u32::MAX);
        if doublings >= Self::DOUBLINGS {
            return Duration::ZERO;
        }
        let rate = self.first_rate.saturating_mul(1 << doublings);
        let at = state.next.max(now);
        state.next = at + Duration::from_nanos(1_000_000_000 / rate.max(1));
        at - now
    }
}

/// Limits a warning to one a minute, however often its reason occurs.
#[derive(Default)]
pub struct RareWarning(Mutex<PendingWarning>);

#[derive(Default)]
struct PendingWarning {
    /// How often the reason occurred since the last warning.
    count: u64,
    not_before_ms: u64,
}

impl RareWarning {
    const EVERY_MS: u64 = 60_000;

    /// Counts one occurrence. If a warning is due, returns how many occurrences it is for.
    pub fn due(&self, now_ms: u64) -> Option<u64> {
        let mut pending = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pending.count += 1;
        if now_ms < pending.not_before_ms {
            return None;
        }
        pending.not_before_ms = now_ms + Self::EVERY_MS;
        Some(std::mem::take(&mut pending.count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn a_warning_is_given_once_a_minute_with_its_count() {
        let warning = RareWarning::default();
        assert_eq!(warning.due(5), Some(1), "the first one at once");
        assert_eq!(warning.due(6), None);
        assert_eq!(warning.due(60_004), None);
        assert_eq!(warning.due(60_005), Some(3));
        assert_eq!(warning.due(60_006), None);
    }

    #[test]
    fn a_place_that_is_dropped_is_free_again() {
        let counts = BoundedCounts::<Box<str>>::new(2);
        let (first, second) = (counts.take("a".into()), counts.take("a".into()));
        assert!(first.is_some() && second.is_some());
        assert!(counts.take("a".into()).is_none());
        assert!(counts.take("b".into()).is_some());
        drop(first);
        assert_eq!((counts.count("a"), counts.count("b")), (1, 0));
        assert!(counts.take("a".into()).is_some());
    }

    #[tokio::test]
    async fn one_handshake_too_many_gives_up_the_oldest_that_is_not_over() {
        let handshakes = Handshakes::new(3);
        let over = handshakes.begin().await.expect("begun");
        let mut slow = handshakes.begin().await.expect("begun");
        let mut young = handshakes.begin().await.expect("begun");
        drop(over);
        let fourth = handshakes.begin().await.expect("begun");
        assert!(slow.1.try_recv().is_err(), "there was room");
        let begins = tokio::join!(handshakes.begin(), async {
            (&mut slow.1).await.expect("given up");
            drop(slow.0);
        });
        assert!(begins.0.is_some());
        assert!(young.1.try_recv().is_err());
        drop(fourth);
        for _ in 0..100 {
            drop(handshakes.begin().await.expect("begun"));
        }
        assert!(handshakes.begun.lock().expect("unpoisoned").len() <= 7);
    }

    #[test]
    fn an_allowance_lasts_at_its_rate_and_takes_a_burst() {
        let mut allowance = RateLimit::new(2, 0);
        let burst = (0..20).filter(|_| allowance.take(2, 0)).count();
        assert_eq!(burst, 8);
        let second = (0..1_000).filter(|ms| allowance.take(2, *ms)).count();
        assert_eq!(second, 1, "the second one is due after the thousandth millisecond");
        assert!(allowance.take(2, 1_000));
    }

    #[test]
    fn the_rate_of_accepting_doubles_each_second() {
        let clock = Arc::new(ManualClock::new(0));
        let ramp = Ramp::new(clock.clone(), 10);
        let in_a_second = || {
            let mut let_in = 0;
            for _ in 0..1_000 {
                clock.advance_ms(1);
                while ramp.state.lock().expect("unpoisoned").next <= clock.monotonic() {
                    ramp.wait();
                    let_in += 1;
                }
            }
            let_in
        };
        let rates = [in_a_second(), in_a_second(), in_a_second()];
        assert!((10..=12).contains(&rates[0]), "{rates:?}");
        assert!((19..=22).contains(&rates[1]), "{rates:?}");
        assert!((38..=42).contains(&rates[2]), "{rates:?}");
        clock.advance_ms(20_000);
        assert_eq!((ramp.wait(), ramp.wait()), (Duration::ZERO, Duration::ZERO));
        ramp.set_back();
        ramp.wait();
        assert_eq!(ramp.wait(), Duration::from_millis(100));
    }

    #[test]
    fn addresses_of_one_customer_are_one() {
        let of = |text: &str| network_of(text.parse().expect("an address"));
        assert_eq!(of("2001:db8:1:2:3::4"), of("2001:db8:1:2::9"));
        assert_ne!(of("2001:db8:1:2::9"), of("2001:db8:1:3::9"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }
}
