//! SIGTERM and SIGINT: the first signal asks the process to stop, the second ends it at once.

use anyhow::{Context as _, bail};
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// How long a stop may take: less than the 30 seconds that supervisors wait before they kill.
pub const STOP: Duration = Duration::from_secs(20);
/// The exit status of a process that its second signal ended.
const STATUS: i32 = 2;

/// The signals that ask the process to stop. Handlers are installed at the beginning of a command, so that a signal never
/// ends the process in the middle of a step.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Installs the handlers. The second signal ends the process at once, whatever it waits for.
    pub fn listen() -> anyhow::Result<Signals> {
        let came_before = Arc::new(AtomicBool::new(false));
        for number in [SIGTERM, SIGINT] {
            // Each signal runs both actions, in this order.
            flag::register_conditional_shutdown(number, STATUS, came_before.clone())
                .and_then(|_| flag::register(number, came_before.clone()))
                .context("cannot install signal handlers")?;
        }
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).context("cannot install a handler for SIGTERM")?,
            interrupt: signal(SignalKind::interrupt()).context("cannot install a handler for SIGINT")?,
        })
    }

    /// Returns when the process is asked to stop.
    pub async fn asked_to_stop(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
        tracing::info!("stopping; a second signal ends the process at once");
    }

    /// Waits for a future. Returns `None` if the process is asked to stop first.
    pub async fn unless_stopped<T>(&mut self, something: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            done = something => Some(done),
            () = self.asked_to_stop() => None,
        }
    }
}

/// Runs the steps of a stop, for [`STOP`] at most.
pub async fn within_bounds(stopping: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    match tokio::time::timeout(STOP, stopping).await {
        Ok(stopped) => stopped,
        Err(_) => bail!(
            "the stop took longer than {} s and was aborted; no acknowledged event is lost, and what was not committed is \
             processed again at the next start",
            STOP.as_secs()
        ),
    }
}
