//! Helper threads and tasks that run as long as the process does, and what happens when one of them ends.
//!
//! A task that ends unexpectedly, by a panic or by returning, is logged once, counted in
//! `rollcall_task_failures_total{task}`, and makes the process not ready ([`failure`] returns which task and why). It
//! is not restarted, because the rest of the process may depend on state that was lost with it. ARCHITECTURE.md lists
//! the tasks. Tasks of the gateway can be restarted and are: the process is not ready until they work again
//! ([`troubled`], [`recovered`]).

use crate::metrics;
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Why a task ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum End {
    /// The task was asked to end, or what it served is gone.
    Asked,
    /// The task cannot continue.
    Failed(String),
}

/// The first failure of each task that ended unexpectedly.
static FAILURES: Mutex<BTreeMap<&'static str, String>> = Mutex::new(BTreeMap::new());

/// The problem of each task that is being restarted.
static TROUBLES: Mutex<BTreeMap<&'static str, String>> = Mutex::new(BTreeMap::new());

fn troubles() -> MutexGuard<'static, BTreeMap<&'static str, String>> {
    TROUBLES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn failures() -> MutexGuard<'static, BTreeMap<&'static str, String>> {
    FAILURES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts a watched thread. `name` is the label `task` of the metric and the thread's name.
pub fn spawn(name: &'static str, run: impl FnOnce() -> End + Send + 'static) -> std::io::Result<JoinHandle<()>> {
    let watched = move || match catch_unwind(AssertUnwindSafe(run)) {
        Ok(End::Asked) => {}
        Ok(End::Failed(why)) => failed(name, &why),
        Err(panic) => failed(name, &format!("panicked: {}", message(&*panic))),
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(watched)
}

/// Records that a task ended unexpectedly.
pub fn failed(name: &'static str, why: &str) {
    metrics::task_failed(name);
    let first = failures().insert(name, why.to_owned()).is_none();
    if first {
        tracing::error!(
            task = name,
            reason = why,
            "a task ended unexpectedly, restart the process"
        );
    }
}

/// Records and counts that a task failed and is restarted by its owner. The process is not ready until [`recovered`] is
/// called.
pub fn troubled(name: &'static str, why: &str) {
    metrics::task_failed(name);
    troubles().insert(name, why.to_owned());
}

/// Records that a restarted task works again.
pub fn recovered(name: &'static str) {
    troubles().remove(name);
}

/// Returns which task of this process has failed, and why.
pub fn failure() -> Option<String> {
    if let Some((name, why)) = failures().first_key_value() {
        return Some(format!("the task {name} has ended: {why}; restart the process"));
    }
    let troubles = troubles();
    let (name, why) = troubles.first_key_value()?;
    Some(format!("the task {name} failed and is being restarted: {why}"))
}

/// Ends the process at once, with status 2 and one log line, because it cannot do its work any more. No thread is joined and
/// no exit handler runs: what hangs would hang them too. Everything acknowledged is in the log, as after a crash.
pub fn end_process(reason: &str) -> ! {
    tracing::error!(reason, "the process ends");
    // Safety: ends the process; it has no requirements.
    unsafe { libc::_exit(2) }
}

/// Returns the message of a panic.
pub fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_that_panics_or_returns_by_itself_is_noted_and_one_that_was_asked_to_end_is_not() {
        let join =
            |thread: std::io::Result<JoinHandle<()>>| thread.expect("started").join().expect("it does not unwind");
        join(spawn("test-asked", || End::Asked));
        assert_eq!(failures().get("test-asked"), None);
        join(spawn("test-returns", || End::Failed("the disk is gone".to_owned())));
        assert_eq!(failures()["test-returns"], "the disk is gone");
        join(spawn("test-panics", || panic!("offset {}", 7)));
        assert_eq!(failures()["test-panics"], "panicked: offset 7");
        let said = failure().expect("some have failed");
        assert!(said.starts_with("the task test-"), "{said}");
        let text = metrics::text();
        assert!(
            text.contains("rollcall_task_failures_total{task=\"test-panics\"} 1"),
            "{text}"
        );
        assert!(!text.contains("test-asked"), "{text}");
    }
}
