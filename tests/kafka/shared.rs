//! One broker for all tests of a binary. `ROLLCALL_TEST_KAFKA=host:port` uses another broker.

use crate::plans::GROUP;
use crate::proxied::Proxied;
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

/// The broker's address. The first call starts it.
pub fn bootstrap() -> &'static str {
    static SHARED: OnceLock<String> = OnceLock::new();
    SHARED.get_or_init(|| std::env::var("ROLLCALL_TEST_KAFKA").unwrap_or_else(|_| proxied().cluster.bootstrap.clone()))
}

/// The same broker with the proxy before it. Always one of our own: it needs a listener for the proxy.
pub fn proxied() -> &'static Proxied {
    // Never dropped: it ends with the process, or the other tests would lose it.
    static PROXIED: OnceLock<Proxied> = OnceLock::new();
    PROXIED.get_or_init(|| Proxied::start(1, &GROUP))
}

/// How many of the tests that keep processors and brokers busy run at once. Beside more of them a broker answers after
/// seconds, and what fails then says nothing about the engine.
const BUSY_MAX: usize = 2;
static BUSY: (Mutex<usize>, Condvar) = (Mutex::new(0), Condvar::new());

/// A share of [`BUSY_MAX`], until it is dropped.
pub struct Busy(usize);

/// Waits until there is room for a share.
pub fn busy(share: usize) -> Busy {
    let (taken, changed) = &BUSY;
    let taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
    let room = |taken: &mut usize| *taken + share > BUSY_MAX;
    let mut taken = changed.wait_while(taken, room).unwrap_or_else(PoisonError::into_inner);
    *taken += share;
    Busy(share)
}

/// Waits until no other busy test runs.
pub fn busy_alone() -> Busy {
    busy(BUSY_MAX)
}

impl Drop for Busy {
    fn drop(&mut self) {
        let (taken, changed) = &BUSY;
        *taken.lock().unwrap_or_else(PoisonError::into_inner) -= self.0;
        changed.notify_all();
    }
}
