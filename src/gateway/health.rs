//! Tasks that must run as long as the gateway does, and what does not work at the moment.
//!
//! A task that panics or returns is logged, counted and restarted after a pause. Until it has run for a while the
//! gateway is not ready, so that a load balancer sends new clients elsewhere. No task of a gateway ends unnoticed.

use super::GatewayState;
use crate::backoff;
use crate::tasks::{self, message};
use futures_util::FutureExt as _;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;

/// How long a restarted task still counts as failing.
const STEADY: Duration = Duration::from_secs(10);

/// The tasks that do not work, each with the reason.
#[derive(Default)]
pub struct Health {
    troubles: Mutex<BTreeMap<&'static str, String>>,
}

impl Health {
    fn troubled(&self) -> MutexGuard<'_, BTreeMap<&'static str, String>> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records that a task does not work, and counts that. It stays so until [`Health::works`] is called.
    pub fn fails(&self, task: &'static str, why: impl Into<String>) {
        let why = why.into();
        tasks::troubled(task, &why);
        self.troubled().insert(task, why);
    }

    /// Records that a task works again.
    pub fn works(&self, task: &'static str) {
        tasks::recovered(task);
        self.troubled().remove(task);
    }

    /// Returns a sentence for each task that does not work.
    pub fn troubles(&self) -> Vec<String> {
        let sentence = |(task, why): (&&str, &String)| format!("{task}: {why}");
        self.troubled().iter().map(sentence).collect()
    }
}

/// Why a task returned.
pub enum End {
    /// Nothing is left to do: the gateway is closing.
    Done,
    /// The task cannot continue and must be restarted.
    Failed(String),
}

/// Runs a task until it is done, and restarts it whenever it fails.
pub fn keep<F>(
    edge: &Arc<GatewayState>,
    task: &'static str,
    begin: impl Fn(Arc<GatewayState>) -> F + Send + 'static,
) -> JoinHandle<()>
where
    F: Future<Output = End> + Send + 'static,
{
    let edge = edge.clone();
    tokio::spawn(async move {
        let mut backoff = backoff::GATEWAY_TASK.start();
        let mut failed = false;
        loop {
            let mut running = pin!(AssertUnwindSafe(begin(edge.clone())).catch_unwind());
            let ended = tokio::select! {
                ended = &mut running => ended,
                () = tokio::time::sleep(STEADY) => {
                    backoff.reset();
                    if std::mem::take(&mut failed) {
                        edge.health.works(task);
                    }
                    running.await
                }
            };
            let why = match ended {
                Ok(End::Done) => return,
                Ok(End::Failed(why)) => why,
                Err(panic) => format!("panicked: {}", message(&*panic)),
            };
            failed = true;
            let pause = backoff.pause();
            tracing::error!(task, %why, pause_ms = pause.as_millis() as u64, "task failed, restarting it");
            edge.health.fails(task, why);
            tokio::time::sleep(pause).await;
        }
    })
}
