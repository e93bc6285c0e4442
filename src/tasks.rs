//! Helper threads and tasks that run as long as the process does, and what happens when one of them ends.
//!
//! A task that ends unexpectedly, by a panic or by returning, is logged once, counted in
//! `rollcall_task_failures_total{task}`, and makes the process not ready ([`failure`] returns which task and why). It
//! is not restarted, because the rest of the process may depend on state that was lost with it. ARCHITECTURE.md lists
//! the tasks. Tasks of the gateway can be restarted and are: the process is not ready until they work again
//! ([`troubled`], [`recovered`]).

use crate::metrics;
use futures_util::FutureExt;
use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use tokio::sync::watch;

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
    let watched = move || note(name, catch_unwind(AssertUnwindSafe(run)));
    std::thread::Builder::new().name(name.to_owned()).spawn(watched)
}

/// Starts a watched task on the current runtime. `name` is the label `task` of the metric.
pub fn spawn_async(name: &'static str, run: impl Future<Output = End> + Send + 'static) -> tokio::task::JoinHandle<()> {
    tokio::spawn(async move { note(name, AssertUnwindSafe(run).catch_unwind().await) })
}

/// Runs something that returns only when the process is asked to stop. It has failed if it returns earlier.
pub async fn until_stopped(stopping: watch::Receiver<bool>, run: impl Future<Output = ()>) -> End {
    run.await;
    // Without a sender the process ends, too.
    match *stopping.borrow() || stopping.has_changed().is_err() {
        true => End::Asked,
        false => End::Failed("it returned, and nothing had asked it to stop".to_owned()),
    }
}

/// Runs something without which the process cannot work: if it panics or returns by itself, the process ends ([`end_process`]).
pub async fn or_end_process(name: &'static str, run: impl Future<Output = End>) {
    let why = match AssertUnwindSafe(run).catch_unwind().await {
        Ok(End::Asked) => return,
        Ok(End::Failed(why)) => why,
        Err(panic) => format!("it panicked: {}", message(&*panic)),
    };
    end_process(&format!("the task {name} has ended: {why}"))
}

/// Runs something that concerns one connection or can be started again. A panic is logged and counted, and concerns nothing else.
pub async fn guarded(task: &'static str, work: impl Future<Output = ()>) {
    if let Err(panic) = AssertUnwindSafe(work).catch_unwind().await {
        metrics::task_failed(task);
        tracing::error!(
            task,
            why = message(&*panic),
            "a task panicked; it served one connection, which is closed, or one subscription, which is opened again"
        );
    }
}

fn note(name: &'static str, ended: Result<End, Box<dyn Any + Send>>) {
    match ended {
        Ok(End::Asked) => {}
        Ok(End::Failed(why)) => failed(name, &why),
        Err(panic) => failed(name, &format!("panicked: {}", message(&*panic))),
    }
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
    exit(2)
}

/// Ends the process with this status at once: no exit handler runs, and no thread is joined.
#[expect(
    unsafe_code,
    reason = "the standard library only has an exit that runs the handlers of C libraries"
)]
pub fn exit(status: u8) -> ! {
    // SAFETY: ends the process; it has no requirements.
    unsafe { libc::_exit(status.into()) }
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

    #[tokio::test]
    async fn a_task_that_returns_before_it_was_asked_to_is_noted() {
        let (stop, stopping) = watch::channel(false);
        let early = until_stopped(stopping.clone(), std::future::ready(()));
        let ended = spawn_async("test-async-early", early).await;
        ended.expect("it does not unwind");
        assert_eq!(
            failures()["test-async-early"],
            "it returned, and nothing had asked it to stop"
        );
        let ended = spawn_async("test-async-panics", async { panic!("offset {}", 8) }).await;
        ended.expect("it does not unwind");
        assert_eq!(failures()["test-async-panics"], "panicked: offset 8");
        stop.send_replace(true);
        let asked = until_stopped(stopping, std::future::ready(()));
        spawn_async("test-async-asked", asked)
            .await
            .expect("it does not unwind");
        assert_eq!(failures().get("test-async-asked"), None);
    }

    #[tokio::test]
    async fn a_panic_that_concerns_one_connection_is_counted_and_leaves_the_process_ready() {
        guarded("test-guarded", async { panic!("offset 9") }).await;
        assert_eq!(failures().get("test-guarded"), None);
        let text = metrics::text();
        assert!(
            text.contains("rollcall_task_failures_total{task=\"test-guarded\"} 1"),
            "{text}"
        );
    }
}
