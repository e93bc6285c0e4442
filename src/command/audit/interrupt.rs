//! Ctrl-C and SIGTERM: a question ends between two reads, so that temporary files are removed.

use anyhow::Context as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

/// The exit status of a question that was interrupted, as shells have it.
pub const INTERRUPTED_STATUS: u8 = 130;

static IS_ASKED: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// Somebody asked the process to end.
#[derive(Debug, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

/// Installs the handlers. The second signal ends the process at once.
pub fn listen() -> anyhow::Result<()> {
    for number in [SIGINT, SIGTERM] {
        // Each signal runs both actions, in this order.
        flag::register_conditional_shutdown(number, INTERRUPTED_STATUS.into(), IS_ASKED.clone())
            .and_then(|_| flag::register(number, IS_ASKED.clone()))
            .context("cannot install signal handlers")?;
    }
    Ok(())
}

/// Fails once the process was asked to end.
pub fn check_interrupted() -> Result<(), Interrupted> {
    match IS_ASKED.load(Ordering::Relaxed) {
        true => Err(Interrupted),
        false => Ok(()),
    }
}
