//! SIGTERM and SIGINT: the first asks the process to stop, the second ends it.

use anyhow::{Context as _, bail};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long a stop may take. Below the half minute that supervisors give before they kill.
pub const STOP: Duration = Duration::from_secs(20);
/// Of a process that was ended by its second signal.
const STATUS: i32 = 2;

/// What asks the process to stop. Listened for from the beginning, so that no moment is left at which it would end in
/// the middle of something.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Listens. From the second signal on the process ends at once, whatever it waits for.
    pub fn listen() -> anyhow::Result<Signals> {
        let came_before = Arc::new(AtomicBool::new(false));
        for number in [SIGTERM, SIGINT] {
            // Both are done by the handler of each signal, in this order.
            flag::register_conditional_shutdown(number, STATUS, came_before.clone())
                .and_then(|_| flag::register(number, came_before.clone()))
                .context("signals cannot be listened for")?;
        }
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).context("SIGTERM cannot be listened for")?,
            interrupt: signal(SignalKind::interrupt()).context("SIGINT cannot be listened for")?,
        })
    }

    /// Returns when the process is asked to stop.
    pub async fn asked_to_stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        tracing::info!("stopping; another signal ends the process at once");
    }

    /// Waits for something unless the process is asked to stop before: then none.
    pub async fn unless_stopped<T>(&mut self, something: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = something => Some(done),
            () = self.asked_to_stop() => None,
        }
    }
}

/// Bounds what is done to stop.
pub async fn within_bounds(stopping: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    match tokio::time::timeout(STOP, stopping).await {
        Ok(stopped) => stopped,
        Err(_) => bail!(
            "the stop took more than {} s and was cut short; nothing acknowledged is lost, and what was not committed is done \
             again at the next start",
            STOP.as_secs()
        ),
    }
}
