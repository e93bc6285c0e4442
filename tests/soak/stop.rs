//! SIGTERM and Ctrl-C, where a soak can be continued: the first one asks it to end in good order, and the second ends it at once.

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The exit status of a soak that its second signal ended.
const STATUS: i32 = 2;

pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Each signal does what it does without us.
    pub fn never() -> Stop {
        Stop(Arc::default())
    }

    pub fn on_signals() -> Stop {
        let asked = Arc::<AtomicBool>::default();
        for number in [SIGTERM, SIGINT] {
            // Each signal runs both actions, in this order.
            let installed = flag::register_conditional_shutdown(number, STATUS, asked.clone())
                .and_then(|_| flag::register(number, asked.clone()));
            installed.expect("these signals can be handled");
        }
        Stop(asked)
    }

    pub fn is_asked(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Sleeps for so long, or until it is asked.
    pub fn pause(&self, long: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < long && !self.is_asked() {
            thread::sleep(Duration::from_millis(100));
        }
    }
}
