//! Clients of librdkafka whose calls cannot hang their callers.
//!
//! librdkafka can stop for good: two of its threads wait for each other's lock, and a thread that calls it then waits with
//! them, whatever the call's time-out (its issues 5304 and 5476). So calls that may block are made by helper threads. A
//! caller waits for as long as the call may take by its own time-out, and [`PATIENCE`] more. Then the client is *given up*:
//! the caller gets an error, and a new client takes the place of the old one. Nothing of a client that was given up is called
//! again, because that would hang as well, and it is not freed while a call of it has not returned: its threads and its
//! memory stay behind. Some calls return after all, when a broker comes or goes; then the helper frees the client.
//! [`GIVEN_UP_MAX`] bounds how much stays behind at a time: then the process ends, and the group gives its partitions to
//! other nodes.
//!
//! Calls that only hand something over (a record, a poll without a time-out) are made directly.

use crate::failpoint;
use crate::log::{Error, locked};
use crate::metrics;
use crate::tasks::{self, End};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How much longer than its own time-out a call may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same where a test has a call hang.
const TEST_PATIENCE: Duration = Duration::from_secs(1);
/// Waiting is counted in pieces of this length, so that a process that was stopped for a while finds no call too slow.
const PIECE: Duration = Duration::from_millis(250);
/// The process ends when this many clients were given up and not freed.
const GIVEN_UP_MAX: usize = 5;

/// A piece of work of a helper. It returns how its result is delivered.
type Job = Box<dyn FnOnce() -> Box<dyn FnOnce()> + Send>;

/// Helpers that wait for work, the one that worked last at the end. There are as many as calls were made at a time lately.
static IDLE_HELPERS: Mutex<Vec<(HelperId, Sender<Job>)>> = Mutex::new(Vec::new());

/// Unlike that of any other helper of this process.
type HelperId = usize;

static HELPERS_STARTED: AtomicUsize = AtomicUsize::new(0);

/// A helper that has had no work for so long ends.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// How many clients of this process were given up and not freed.
static GIVEN_UP: Mutex<usize> = Mutex::new(0);

/// A call that has not returned.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the client {client} of Kafka hangs: {call} has not returned. A new client takes its place")]
pub struct Hung {
    client: String,
    call: &'static str,
}

impl Hung {
    /// As a failure to read, which passes: a new client takes its place.
    pub fn unread(self) -> Error {
        Error::Unanswered(self.to_string().into())
    }

    /// As a failure to write.
    pub fn unwritten(self) -> Error {
        Error::Write(self.to_string().into())
    }
}

/// A client, or what belongs to one, and whether it was given up. See the module.
pub struct Guarded<C: Send + Sync + 'static> {
    /// None only while it is dropped. Calls that have not returned have it too.
    client: Option<Arc<Counted<C>>>,
    standing: Arc<Standing>,
    /// No other client can take its place.
    is_irreplaceable: bool,
}

/// A client that is counted until it is freed, which the last one does that has it.
struct Counted<C> {
    /// None only while it is dropped.
    client: Option<C>,
    standing: Arc<Standing>,
}

/// What is known of a client also when it is gone. Both flags change while [`GIVEN_UP`] is locked, so that each client is counted once at
/// most.
struct Standing {
    name: String,
    is_given_up: AtomicBool,
    is_freed: AtomicBool,
}

impl<C> Counted<C> {
    fn client(&self) -> &C {
        self.client.as_ref().expect("it is taken only when this is dropped")
    }
}

impl<C> Drop for Counted<C> {
    fn drop(&mut self) {
        drop(self.client.take());
        metrics::kafka_client_gone();
        let mut given_up = locked(&GIVEN_UP);
        self.standing.is_freed.store(true, Ordering::Release);
        if self.standing.is_given_up.load(Ordering::Acquire) {
            *given_up -= 1;
            tracing::info!(
                client = self.standing.name,
                given_up = *given_up,
                "a client of Kafka that was given up is freed: its call has returned"
            );
        }
    }
}

impl<C: Send + Sync + 'static> Guarded<C> {
    /// `name` is the client's id, for messages.
    pub fn new(name: impl Into<String>, client: C) -> Arc<Guarded<C>> {
        Arc::new(Guarded::of(name.into(), client, false))
    }

    /// A client that no other can replace: if a call of it hangs, the process ends.
    pub fn irreplaceable(name: impl Into<String>, client: C) -> Arc<Guarded<C>> {
        Arc::new(Guarded::of(name.into(), client, true))
    }

    fn of(name: String, client: C, is_irreplaceable: bool) -> Guarded<C> {
        metrics::kafka_client_made();
        let standing = Arc::new(Standing {
            name,
            is_given_up: AtomicBool::new(false),
            is_freed: AtomicBool::new(false),
        });
        let counted = Counted {
            client: Some(client),
            standing: standing.clone(),
        };
        Guarded {
            client: Some(Arc::new(counted)),
            standing,
            is_irreplaceable,
        }
    }

    /// The client, for calls that do not block.
    pub fn direct(&self) -> &C {
        let client = self.client.as_deref().expect("it is taken only when this is dropped");
        client.client()
    }

    pub fn is_given_up(&self) -> bool {
        self.standing.is_given_up.load(Ordering::Acquire)
    }

    /// Makes a call that returns within a time by its own time-out; zero: as soon as it can. `call` is librdkafka's name of
    /// it.
    pub fn call<T: Send + 'static>(
        &self,
        call: &'static str,
        within: Duration,
        make: impl FnOnce(&C) -> T + Send + 'static,
    ) -> Result<T, Hung> {
        let result = self.begin(call, make)?;
        self.wait(call, within, &result)
    }

    /// Begins a call that the caller waits for later.
    fn begin<T: Send + 'static>(
        &self,
        call: &'static str,
        make: impl FnOnce(&C) -> T + Send + 'static,
    ) -> Result<Receiver<T>, Hung> {
        let client = self.client.clone().filter(|_| !self.is_given_up());
        let client = client.ok_or_else(|| self.hung(call))?;
        Ok(begin_on_a_helper(call, move || make(client.client())))
    }

    fn wait<T>(&self, call: &'static str, within: Duration, result: &Receiver<T>) -> Result<T, Hung> {
        wait_for(result, within + patience()).ok_or_else(|| {
            self.give_up(call);
            self.hung(call)
        })
    }

    /// Begins a call that returns as soon as it can, while the caller does something else.
    pub fn call_ahead<T: Send + 'static>(
        self: &Arc<Self>,
        call: &'static str,
        make: impl FnOnce(&C) -> T + Send + 'static,
    ) -> Result<CallAhead<C, T>, Hung> {
        Ok(CallAhead {
            result: self.begin(call, make)?,
            client: self.clone(),
            call,
        })
    }

    fn hung(&self, call: &'static str) -> Hung {
        Hung {
            client: self.standing.name.clone(),
            call,
        }
    }

    fn give_up(&self, call: &'static str) {
        let Some(given_up) = note_given_up(&self.standing, call) else {
            return;
        };
        if self.is_irreplaceable {
            tasks::end_process(&format!(
                "the client {} of Kafka hangs in {call}, and the group may count it as alive: the process ends, so that \
                 its partitions go to other nodes. Start it again",
                self.standing.name
            ));
        }
        if given_up >= GIVEN_UP_MAX {
            tasks::end_process(&format!(
                "{given_up} clients of Kafka were given up because calls into librdkafka did not return, the last one, {}, in \
                 {call}: the process ends, so that its partitions go to other nodes. Start it again",
                self.standing.name
            ));
        }
    }
}

/// A call that was begun and not waited for yet.
pub struct CallAhead<C: Send + Sync + 'static, T> {
    client: Arc<Guarded<C>>,
    call: &'static str,
    result: Receiver<T>,
}

impl<C: Send + Sync + 'static, T> CallAhead<C, T> {
    /// Its result, as that of [`Guarded::call`].
    pub fn wait(self) -> Result<T, Hung> {
        self.client.wait(self.call, Duration::ZERO, &self.result)
    }
}

impl<C: Send + Sync + 'static> Drop for Guarded<C> {
    fn drop(&mut self) {
        let Some(client) = self.client.take() else { return };
        if self.is_given_up() {
            // The call that has not returned has it too, and frees it if it returns. If it has returned meanwhile, this helper does.
            drop_later(client);
            return;
        }
        if on_a_helper("rd_kafka_destroy", patience(), move || drop(client)).is_none() {
            // It was to end anyway, so no other takes its place.
            note_given_up(&self.standing, "rd_kafka_destroy");
        }
    }
}

/// Counts and logs it. Returns how many there are now; `None` if it was given up before, or has been freed at this moment.
fn note_given_up(standing: &Standing, call: &'static str) -> Option<usize> {
    let mut given_up = locked(&GIVEN_UP);
    if standing.is_freed.load(Ordering::Acquire) || standing.is_given_up.swap(true, Ordering::AcqRel) {
        return None;
    }
    *given_up += 1;
    metrics::kafka_client_given_up("hung");
    tracing::error!(
        client = standing.name,
        call,
        given_up = *given_up,
        "a client of Kafka is given up: a call has not returned"
    );
    Some(*given_up)
}

/// Drops something of librdkafka without waiting for it.
pub fn drop_later<T: Send + 'static>(dropped: T) {
    hand_over(Box::new(move || {
        drop(dropped);
        Box::new(|| {})
    }));
}

fn patience() -> Duration {
    match failpoint::is_hanging() {
        true => TEST_PATIENCE,
        false => PATIENCE,
    }
}

/// The result of a call made by a helper; none if it has not come after a while.
fn on_a_helper<T: Send + 'static>(
    call: &'static str,
    patience: Duration,
    make: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    wait_for(&begin_on_a_helper(call, make), patience)
}

fn begin_on_a_helper<T: Send + 'static>(call: &'static str, make: impl FnOnce() -> T + Send + 'static) -> Receiver<T> {
    let (done, result) = sync_channel(1);
    hand_over(Box::new(move || {
        failpoint::reach(call);
        let made = make();
        // The caller may have given up.
        Box::new(move || drop(done.send(made)))
    }));
    result
}

fn wait_for<T>(result: &Receiver<T>, patience: Duration) -> Option<T> {
    for _ in 0..patience.as_millis().div_ceil(PIECE.as_millis()) {
        match result.recv_timeout(PIECE) {
            Ok(made) => return Some(made),
            Err(RecvTimeoutError::Timeout) => {}
            // It panicked, and that was reported.
            Err(RecvTimeoutError::Disconnected) => return None,
        }
    }
    None
}

fn hand_over(job: Job) {
    let mut job = job;
    // A helper that panicked is gone.
    while let Some((_, helper)) = locked(&IDLE_HELPERS).pop() {
        match helper.send(job) {
            Ok(()) => return,
            Err(back) => job = back.0,
        }
    }
    let (sender, jobs) = channel();
    let own = sender.clone();
    sender.send(job).expect("the receiver is in this function");
    let id = HELPERS_STARTED.fetch_add(1, Ordering::Relaxed);
    let started = tasks::spawn("kafka-call", move || {
        while let Some(job) = next_job(id, &jobs, IDLE_MAX) {
            let deliver = job();
            // Before the delivery, so that the next call finds this helper.
            locked(&IDLE_HELPERS).push((id, own.clone()));
            deliver();
        }
        End::Asked
    });
    if let Err(error) = started {
        // The job is dropped with its channel, so that its caller hears of it at once.
        tracing::error!(%error, "a thread cannot be started");
    }
}

/// Waits for a helper's next job. `None`: it had none for so long that it is no longer in the list, and ends.
fn next_job(id: HelperId, jobs: &Receiver<Job>, idle_max: Duration) -> Option<Job> {
    if let Ok(job) = jobs.recv_timeout(idle_max) {
        return Some(job);
    }
    let unneeded = {
        let mut idle = locked(&IDLE_HELPERS);
        let at = idle.iter().position(|(other, _)| *other == id);
        at.map(|at| idle.remove(at))
    };
    match unneeded {
        Some(_) => None,
        // Somebody took it out of the list at this moment, and is about to send a job.
        None => jobs.recv().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_gives_its_result_from_another_thread() {
        let client = Guarded::new("one", ());
        for number in 0..100 {
            assert_eq!(
                client.call("double", Duration::ZERO, move |_| number * 2),
                Ok(number * 2)
            );
        }
        let thread = client.call("id", Duration::ZERO, |_| std::thread::current().id());
        assert_ne!(thread, Ok(std::thread::current().id()));
    }

    #[test]
    fn a_call_that_does_not_return_is_left_behind_with_its_client_and_nothing_more_is_called() {
        assert!(on_a_helper("waits", PIECE, || std::thread::sleep(PIECE * 20)).is_none());
        let client = Guarded::new("two", ());
        client.give_up("waits");
        // Each client counts once: six would end the process.
        (0..GIVEN_UP_MAX).for_each(|_| client.give_up("waits"));
        let refused = client.call("another", Duration::ZERO, |_| panic!("it is called")).err();
        assert!(
            refused
                .expect("hung")
                .to_string()
                .contains("the client two of Kafka hangs: another")
        );
        drop(client);
    }

    #[test]
    fn a_helper_without_work_ends_unless_somebody_has_just_taken_it() {
        let (sender, jobs) = channel();
        let id = HELPERS_STARTED.fetch_add(1, Ordering::Relaxed);
        let waits = |id| locked(&IDLE_HELPERS).iter().any(|(other, _)| *other == id);
        let idle_max = Duration::from_millis(1);
        // At the front, where no other test of this process takes it: they take the last.
        locked(&IDLE_HELPERS).insert(0, (id, sender.clone()));
        match next_job(id, &jobs, idle_max) {
            None => assert!(!waits(id), "it cannot be given work that it would not do"),
            // They took all: this is the job of another test.
            Some(job) => job()(),
        }
        // Taken out of the list, and the job comes after its time.
        let later = std::thread::spawn(move || {
            std::thread::sleep(idle_max * 50);
            sender.send(Box::new(|| Box::new(|| {}))).expect("it waits");
        });
        assert!(next_job(id, &jobs, idle_max).is_some());
        later.join().expect("sent");
    }

    /// A client that says which thread frees it.
    struct Reports(Sender<std::thread::ThreadId>);

    impl Drop for Reports {
        fn drop(&mut self) {
            self.0.send(std::thread::current().id()).expect("the test listens");
        }
    }

    #[test]
    fn a_client_that_was_given_up_is_freed_when_its_call_returns_after_all_and_not_before() {
        let (reported, reports) = channel();
        let client = Guarded::new("three", Mutex::new(Reports(reported)));
        let (goes_on, waits) = channel::<()>();
        let begun = client.begin("waits", move |_| waits.recv()).expect("begun");
        client.give_up("waits");
        let standing = client.standing.clone();
        drop(client);
        // All helpers that were there had time to free it.
        std::thread::sleep(Duration::from_millis(50));
        assert!(reports.try_recv().is_err(), "its call would hang");
        assert!(!standing.is_freed.load(Ordering::Acquire));
        goes_on.send(()).expect("it waits");
        assert_ne!(reports.recv().expect("freed"), std::thread::current().id());
        assert_eq!(begun.recv(), Ok(Ok(())));
        // What is freed is not counted any more.
        assert!(standing.is_freed.load(Ordering::Acquire));
        assert_eq!(note_given_up(&standing, "another"), None);
    }

    #[test]
    fn the_last_of_a_client_is_dropped_by_a_helper_too() {
        let (reported, reports) = channel();
        drop(Guarded::new("four", Mutex::new(Reports(reported))));
        assert_ne!(reports.recv(), Ok(std::thread::current().id()));
    }
}
