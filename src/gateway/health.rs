//! Tasks that must run for as long as the gateway does, and what does not work at the moment.
//!
//! A task that panics or returns is logged, counted and started again after a pause. Until it has run again for a
//! while the gateway is not ready, so that a load balancer sends new clients elsewhere. There is no task of a gateway
//! that ends without anybody noticing.

use super::Edge;
use crate::clock::Clock;
use crate::metrics;
use futures_util::FutureExt as _;
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::task::JoinHandle;

/// The pause before a failed task is started again: at first, and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// A task that was started again counts as failing for this long.
const STEADY_MS: u64 = 10_000;

/// What does not work, by task.
pub struct Health {
    clock: Arc<dyn Clock>,
    troubles: Mutex<BTreeMap<&'static str, Trouble>>,
}

struct Trouble {
    why: String,
    /// Counts until then, by the monotonic clock.
    until_ms: u64,
}

impl Health {
    pub fn new(clock: Arc<dyn Clock>) -> Health {
        Health {
            clock,
            troubles: Mutex::default(),
        }
    }

    /// A task does not work until it says otherwise; counted.
    pub fn fails(&self, task: &'static str, why: impl Into<String>) {
        metrics::task_failed(task);
        let trouble = Trouble {
            why: why.into(),
            until_ms: u64::MAX,
        };
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.insert(task, trouble);
    }

    /// A task works again, beyond doubt.
    pub fn works(&self, task: &'static str) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.remove(task);
    }

    /// A task runs again; whether it works is to be seen.
    fn runs(&self, task: &'static str) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(trouble) = troubles.get_mut(task) {
            trouble.until_ms = self.clock.monotonic_ms() + STEADY_MS;
        }
    }

    /// A sentence for each task that does not work.
    pub fn troubles(&self) -> Vec<String> {
        let now_ms = self.clock.monotonic_ms();
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.retain(|_, trouble| trouble.until_ms > now_ms);
        let sentence = |(task, trouble): (&&str, &Trouble)| format!("{task}: {}", trouble.why);
        troubles.iter().map(sentence).collect()
    }
}

/// Why a task returned.
pub enum End {
    /// There is nothing more to do: the gateway is closing.
    Done,
    /// It cannot go on; it is to be started again.
    Failed(String),
}

/// Runs a task until it is done, and starts it again whenever it fails.
pub fn keep<F>(edge: &Arc<Edge>, task: &'static str, begin: impl Fn(Arc<Edge>) -> F + Send + 'static) -> JoinHandle<()>
where
    F: Future<Output = End> + Send + 'static,
{
    let edge = edge.clone();
    tokio::spawn(async move {
        let mut pause = PAUSE.0;
        loop {
            let began_ms = edge.clock.monotonic_ms();
            let why = match AssertUnwindSafe(begin(edge.clone())).catch_unwind().await {
                Ok(End::Done) => return,
                Ok(End::Failed(why)) => why,
                Err(panic) => format!("panicked: {}", said(&*panic)),
            };
            if edge.clock.monotonic_ms().saturating_sub(began_ms) > STEADY_MS {
                pause = PAUSE.0;
            }
            tracing::error!(task, %why, pause_ms = pause.as_millis() as u64, "task failed, starting it again");
            edge.health.fails(task, why);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE.1);
            edge.health.runs(task);
        }
    })
}

/// Runs something that belongs to one client only: if it panics, that is logged and counted.
pub async fn guarded(task: &'static str, work: impl Future<Output = ()>) {
    if let Err(panic) = AssertUnwindSafe(work).catch_unwind().await {
        metrics::task_failed(task);
        tracing::error!(task, why = said(&*panic), "panicked, given up");
    }
}

/// What a panic said.
pub fn said(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("without a message")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    #[test]
    fn a_task_that_runs_again_counts_as_failing_for_a_while() {
        let clock = Arc::new(ManualClock::new(0));
        let health = Health::new(clock.clone());
        assert!(health.troubles().is_empty());
        health.fails("kicks", "the subscription ended");
        clock.advance_ms(1_000_000);
        assert_eq!(health.troubles(), ["kicks: the subscription ended"]);
        health.runs("kicks");
        assert_eq!(health.troubles().len(), 1);
        clock.advance_ms(STEADY_MS);
        assert!(health.troubles().is_empty());
        health.fails("disconnects", "the queue cannot be read");
        health.works("disconnects");
        assert!(health.troubles().is_empty());
    }
}
