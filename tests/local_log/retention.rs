//! Old records go, and nothing else.

use crate::*;

#[test]
fn old_records_are_dropped_by_age_but_no_event_from_the_floor_on() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let log = LocalLog::open(dir.path(), keeping(Some(500), None), clock.clone()).unwrap();
    for at in 0..10 {
        append_values(&log, &[&format!("{at}a"), &format!("{at}b")]);
        log.commit(P, &commit_of(0, &["c"], &[])).unwrap();
        clock.advance_ms(100);
    }
    // It is 2,000; the blocks are of 1,000, 1,100, … 1,900.
    log.retain(P, Offset(5)).unwrap();
    assert_eq!(range(&log, Topic::Events, P), (4, 20), "the block of the floor stays");
    assert_eq!(range(&log, Topic::Changes, P), (5, 10), "the floor is one of events");
    log.retain(P, Offset(20)).unwrap();
    assert_eq!(range(&log, Topic::Events, P), (10, 20));
    let gone = read(&log, Topic::Events, P, 9, ALL).unwrap_err();
    assert!(
        matches!(
            gone,
            Error::Gone {
                start: Offset(10),
                wanted: Offset(9),
                ..
            }
        ),
        "{gone:?}"
    );
    assert_eq!(values(&log, Topic::Events, 10).len(), 10);
    clock.advance_ms(1_000_000);
    log.retain(P, Offset(20)).unwrap();
    assert_eq!(
        range(&log, Topic::Events, P),
        (18, 20),
        "the newest block is never dropped"
    );
    drop(log);
    let log = LocalLog::open(dir.path(), Settings::default(), clock).unwrap();
    assert_eq!(range(&log, Topic::Events, P), (18, 20));
    assert_eq!(range(&log, Topic::Changes, P), (9, 10));
    assert_eq!(values(&log, Topic::Events, 18), ["9a", "9b"]);
    append_values(&log, &["x"]);
    assert_eq!(range(&log, Topic::Events, P), (18, 21));
}

#[test]
fn records_are_dropped_by_size_and_the_size_is_known_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let settings = keeping(None, Some(100_000));
    let mut log = LocalLog::open(dir.path(), settings.clone(), clock()).unwrap();
    let mut starts = Vec::new();
    for round in 0..6 {
        for _ in 0..20 {
            append_values(&log, &[&"v".repeat(2_000)]);
        }
        log.retain(P, Offset(u64::MAX)).unwrap();
        let (start, end) = range(&log, Topic::Events, P);
        let kept = (end - start) * 2_000;
        assert!(kept <= 100_000, "{kept}");
        assert!(end < 60 || kept > 90_000, "{kept}");
        assert_eq!(values(&log, Topic::Events, start).len() as u64, end - start);
        starts.push(start);
        if round % 2 == 1 {
            drop(log);
            log = LocalLog::open(dir.path(), settings.clone(), clock()).unwrap();
            assert_eq!(range(&log, Topic::Events, P), (start, end));
        }
    }
    assert!(starts.is_sorted() && starts[5] > 60);
    log.retain(Partition(0), Offset(u64::MAX)).unwrap();
    assert!(log.retain(Partition(9), Offset(0)).is_err());
}

#[test]
fn readers_during_retention_see_records_in_order_or_that_they_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(LocalLog::open(dir.path(), keeping(None, Some(20_000)), clock()).unwrap());
    let writer = {
        let log = log.clone();
        std::thread::spawn(move || {
            for at in 0..400 {
                append_values(&*log, &[&format!("{at} {}", "v".repeat(500))]);
                log.retain(P, Offset(u64::MAX)).unwrap();
            }
        })
    };
    let mut next = 0;
    let limit = Limit {
        records: 7,
        bytes: usize::MAX,
    };
    while next < 400 {
        match read(&*log, Topic::Events, P, next, limit) {
            Ok(records) => {
                for record in records {
                    assert_eq!(record.offset.0, next);
                    assert!(record.value.starts_with(format!("{next} ").as_bytes()));
                    next += 1;
                }
            }
            Err(Error::Gone { start, .. }) => next = start.0,
            Err(error) => panic!("{error}"),
        }
    }
    writer.join().unwrap();
}

#[test]
fn what_was_dropped_takes_no_room_on_disk() {
    let dir = tempfile::tempdir().unwrap();
    let log = LocalLog::open(dir.path(), keeping(None, Some(4_000_000)), clock()).unwrap();
    let mut noise = Noise::new();
    let total = 300_000_000;
    for round in 0..total / 1_000_000 {
        let records = (0..20).map(|_| (P, noise.record(50_000))).collect();
        append(&log, records).unwrap();
        if round % 10 == 0 {
            log.retain(P, Offset(u64::MAX)).unwrap();
        }
    }
    let size: u64 = std::fs::read_dir(dir.path())
        .unwrap()
        .filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len()))
        .sum();
    // Memtables and the write-ahead log have bounds of their own, and compaction comes when it comes.
    assert!(size < total / 3, "{size}");
}
