//! Group commit, and the results of waiting appends.

use crate::*;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Holds the appender's thread in a listener until released, so that a test decides what waits together.
fn hold_appender(log: &LocalLog) -> (mpsc::Receiver<()>, mpsc::Sender<()>, Arc<AtomicUsize>) {
    let (here, arrived) = mpsc::channel();
    let (release, released) = mpsc::channel();
    let (here, released) = (Mutex::new(here), Mutex::new(released));
    let heard = Arc::new(AtomicUsize::new(0));
    let count = heard.clone();
    log.listen(Box::new(move |_, _| {
        if count.fetch_add(1, Ordering::SeqCst) == 0 {
            here.lock().unwrap().send(()).unwrap();
            released.lock().unwrap().recv().unwrap();
        }
    }));
    (arrived, release, heard)
}

#[test]
fn appends_that_wait_together_share_one_write() {
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(open(dir.path()));
    let (arrived, release, heard) = hold_appender(&log);
    let first = start_append(&*log, vec![(P, record("first"))]);
    arrived.recv().unwrap();
    let threads: Vec<_> = (0..50)
        .map(|at| {
            let log = log.clone();
            std::thread::spawn(move || start_append(&*log, vec![(P, record(&at.to_string()))]))
        })
        .collect();
    let waiting: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
    release.send(()).unwrap();
    first.recv().unwrap().unwrap();
    let mut offsets: Vec<u64> = waiting
        .into_iter()
        .map(|acknowledged| acknowledged.recv().unwrap().unwrap()[0].offset.0)
        .collect();
    offsets.sort_unstable();
    assert_eq!(offsets, (1..=50).collect::<Vec<_>>());
    // Listeners are notified once for each write.
    assert_eq!(heard.load(Ordering::SeqCst), 2);
}

#[test]
fn what_is_acknowledged_is_readable_by_then_and_not_before_it_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let (arrived, release, _) = hold_appender(&log);
    let first = start_append(&log, vec![(P, record("first"))]);
    arrived.recv().unwrap();
    assert_eq!(
        values(&log, Topic::Events, 0),
        ["first"],
        "a listener is notified of what can be read"
    );
    let second = start_append(&log, vec![(P, record("second"))]);
    assert_eq!(values(&log, Topic::Events, 0), ["first"]);
    release.send(()).unwrap();
    first.recv().unwrap().unwrap();
    second.recv().unwrap().unwrap();
    assert_eq!(values(&log, Topic::Events, 0), ["first", "second"]);
}

#[test]
fn when_too_much_waits_appends_are_refused_and_later_ones_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let settings = Settings {
        queue_bytes: 10_000,
        ..Settings::default()
    };
    let log = LocalLog::open(dir.path(), settings, clock()).unwrap();
    let (arrived, release, _) = hold_appender(&log);
    // One that is larger than the bound goes in alone.
    let first = start_append(&log, vec![(P, record(&"x".repeat(50_000)))]);
    arrived.recv().unwrap();
    let second = start_append(&log, vec![(P, record(&"x".repeat(6_000)))]);
    let third = start_append(&log, vec![(P, record(&"x".repeat(6_000)))]);
    assert!(matches!(third.recv().unwrap(), Err(Error::Busy)));
    release.send(()).unwrap();
    first.recv().unwrap().unwrap();
    second.recv().unwrap().unwrap();
    append_values(&log, &["y"]);
    assert_eq!(range(&log, Topic::Events, P), (0, 3));
}

#[test]
fn a_panic_in_an_acknowledge_or_a_listener_stops_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    log.listen(Box::new(|_, _| panic!("a listener of the test panics")));
    log.append(
        vec![(P, record("a"))],
        Box::new(|_| panic!("an acknowledge of the test panics")),
    );
    append_values(&log, &["b"]);
    assert_eq!(values(&log, Topic::Events, 0), ["a", "b"]);
}

#[test]
fn a_closed_log_writes_what_waits_takes_no_more_and_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let waiting: Vec<_> = (0..100).map(|_| start_append(&log, vec![(P, record("a"))])).collect();
    log.close().unwrap();
    assert!(
        waiting
            .into_iter()
            .all(|acknowledged| acknowledged.recv().unwrap().is_ok())
    );
    assert!(matches!(append(&log, vec![(P, record("b"))]), Err(Error::Closed)));
    assert!(matches!(
        log.take_up(P).unwrap().commit(&commit_of(1, &[], &[])),
        Err(Error::Closed)
    ));
    assert_eq!(values(&log, Topic::Events, 0).len(), 100);
}

#[test]
fn an_acknowledge_may_be_what_drops_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(open(dir.path()));
    let (acknowledge, acknowledged) = mpsc::channel();
    let held = log.clone();
    log.append(
        vec![(P, record("a"))],
        Box::new(move |result| {
            drop(held);
            acknowledge.send(result).unwrap();
        }),
    );
    drop(log);
    acknowledged.recv().unwrap().unwrap();
}
