//! Retention drops old records, and no others.

use crate::*;
use rollcall::clock::Clock as _;
use rollcall::log::{IncidentPosition, Reader as _};

#[test]
fn old_records_are_dropped_by_age_but_no_event_from_the_floor_on() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let log = LocalLog::open(dir.path(), keeping(Some(500_000), None), clock.clone()).unwrap();
    // A block each of events and changes, from 1,000 to 901,000.
    for at in 0..10 {
        append_values(&log, &[&format!("{at}a"), &format!("{at}b")]);
        log.take_up(P).unwrap().commit(&commit_of(0, &["c"], &[])).unwrap();
        clock.advance_ms(100_000);
    }
    retain_all(&log, &clock, 5);
    let (start, _) = range(&log, Topic::Changes, P);
    assert_eq!(range(&log, Topic::Events, P), (4, 20), "the block of the floor stays");
    assert!((5..=8).contains(&start), "the floor is one of events: {start}");
    retain_all(&log, &clock, 20);
    let (start, _) = range(&log, Topic::Events, P);
    assert!((10..=18).contains(&start), "{start}");
    let gone = read(&log, Topic::Events, P, start - 1, ALL).unwrap_err();
    assert!(
        matches!(gone, Error::Gone { start: said, .. } if said.0 == start),
        "{gone:?}"
    );
    assert_eq!(values(&log, Topic::Events, start).len() as u64, 20 - start);
    clock.advance_ms(1_000_000);
    // That is longer than the clock is believed for, but here it has really passed.
    retain_all(&log, &clock, 20);
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
fn incidents_are_kept_with_their_position_as_long_as_other_records_and_written_by_the_last_writer() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let open = || LocalLog::open(dir.path(), keeping(Some(500_000), None), clock.clone()).unwrap();
    let log = open();
    let record = |value: &str| NewRecord {
        key: Some(value.as_bytes().to_vec()),
        value: value.as_bytes().to_vec(),
        headers: Vec::new(),
    };
    let position = |number: u64| IncidentPosition {
        next: vec![Offset(number); 3],
        note: number.to_be_bytes().to_vec(),
    };
    let kept = |log: &LocalLog| {
        let mut records = Vec::new();
        let range = log.read_incidents(Offset(0), ALL, &mut records).unwrap();
        assert_eq!(records.first().map_or(range.end, |first| first.offset), range.start);
        let values = records
            .iter()
            .map(|record| String::from_utf8(record.value.clone()).unwrap());
        (range.start.0, values.collect::<Vec<_>>())
    };
    assert_eq!(log.write_incidents().unwrap().position().unwrap(), None);
    assert_eq!(kept(&log), (0, vec![]));
    let mut writer = log.write_incidents().unwrap();
    for (number, value) in ["a", "b", "c", "d"].into_iter().enumerate() {
        writer.commit(&[record(value)], &position(number as u64)).unwrap();
        append_values(&log, &["v"]);
        clock.advance_ms(100_000);
    }
    let mut second = log.write_incidents().unwrap();
    assert!(writer.commit(&[record("of the first writer")], &position(9)).is_err());
    second.commit(&[], &position(4)).unwrap();
    let all = ["a", "b", "c", "d"].map(str::to_owned).to_vec();
    assert_eq!(kept(&log), (0, all.clone()));
    drop((writer, second, log));
    let log = open();
    assert_eq!(log.write_incidents().unwrap().position().unwrap(), Some(position(4)));
    // As another process sees it.
    let mut seen = Vec::new();
    let mut outside = LocalLog::follow(dir.path()).unwrap();
    outside.read_incidents(Offset(1), ALL, &mut seen).unwrap();
    assert_eq!(seen.iter().map(|record| record.offset.0).collect::<Vec<_>>(), [1, 2, 3]);
    // More are dropped only when one is added, and the newest stays.
    clock.advance_ms(250_000);
    append_values(&log, &["v"]);
    assert_eq!(kept(&log), (0, all));
    log.write_incidents()
        .unwrap()
        .commit(&[record("e")], &position(5))
        .unwrap();
    assert_eq!(kept(&log), (2, ["c", "d", "e"].map(str::to_owned).to_vec()));
    clock.advance_ms(500_000);
    append_values(&log, &["v"]);
    log.write_incidents()
        .unwrap()
        .commit(&[record("f")], &position(6))
        .unwrap();
    assert_eq!(kept(&log).1.last().map(String::as_str), Some("f"));
    let (start, values) = kept(&log);
    assert_eq!(start, 6 - values.len() as u64);
    drop(log);
    assert_eq!(kept(&open()), (start, values));
}

/// Until nothing more is dropped. For its age only a part is dropped at once, so time must pass.
fn retain_all(log: &LocalLog, clock: &ManualClock, floor: u64) {
    let mut unchanged = 0;
    let mut before = None;
    while unchanged < 3 {
        log.take_up(P).unwrap().retain(Offset(floor)).unwrap();
        let now = Some([Topic::Events, Topic::Changes].map(|topic| range(log, topic, P)));
        unchanged = if now == before { unchanged + 1 } else { 0 };
        before = now;
        clock.advance_ms(25_000);
    }
}

#[test]
fn much_that_is_old_at_once_is_dropped_in_pieces_after_a_while() {
    const HOUR: u64 = 3_600_000;
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(ManualClock::new(1_800_000_000_000));
    let log = LocalLog::open(dir.path(), keeping(Some(720 * HOUR), None), clock.clone()).unwrap();
    for _ in 0..100 {
        append_values(&log, &["v"]);
        clock.advance_ms(HOUR);
    }
    // The machine was off for a month, or so its clock says.
    drop(log);
    clock.set_ms(clock.now_ms() + 721 * HOUR);
    let log = LocalLog::open(dir.path(), keeping(Some(720 * HOUR), None), clock.clone()).unwrap();
    let mut kept = Vec::new();
    for _ in 0..60 {
        log.take_up(P).unwrap().retain(Offset(u64::MAX)).unwrap();
        let (start, end) = range(&log, Topic::Events, P);
        kept.push(end - start);
        clock.advance_ms(HOUR / 4);
    }
    assert_eq!(kept[..4], [100; 4], "nothing goes for an hour");
    for (hour, pair) in kept.windows(5).enumerate() {
        let most = (pair[0] / 10).max(1);
        assert!(pair[0] - pair[4] <= most, "from quarter {hour} on: {kept:?}");
    }
    assert!(*kept.last().unwrap() < 40, "{kept:?}");
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
        log.take_up(P).unwrap().retain(Offset(u64::MAX)).unwrap();
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
    log.take_up(Partition(0)).unwrap().retain(Offset(u64::MAX)).unwrap();
    assert!(log.take_up(Partition(9)).is_err());
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
                log.take_up(P).unwrap().retain(Offset(u64::MAX)).unwrap();
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
            log.take_up(P).unwrap().retain(Offset(u64::MAX)).unwrap();
        }
    }
    let size = || -> u64 {
        let files = std::fs::read_dir(dir.path()).unwrap();
        files.filter_map(|entry| Some(entry.ok()?.metadata().ok()?.len())).sum()
    };
    // Memtables and the write-ahead log have bounds of their own, and compaction comes when it comes.
    let begun = std::time::Instant::now();
    while size() >= total / 3 {
        assert!(begun.elapsed().as_secs() < 60, "{} bytes are still there", size());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}
