//! Reads return what was written.

use crate::*;

#[test]
fn what_is_acknowledged_is_read_back_and_after_reopening_too() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let log = LocalLog::open(dir.path(), Settings::default(), clock.clone()).unwrap();
    assert_eq!(log.partitions(), 4);
    let bare = NewRecord {
        headers: Vec::new(),
        key: None,
        value: Vec::new(),
    };
    let went = append(&log, vec![(P, record("a")), (Partition(3), record("x")), (P, bare)]).unwrap();
    let places: Vec<_> = went.iter().map(|to| (to.partition.0, to.offset.0)).collect();
    assert_eq!(places, [(1, 0), (3, 0), (1, 1)]);
    clock.set_ms(400);
    append_values(&log, &["c"]);
    let all = read(&log, Topic::Events, P, 0, ALL).unwrap();
    let times: Vec<u64> = all.iter().map(|record| record.ts).collect();
    assert_eq!(times, [1_000, 1_000, 1_000], "time does not step back");
    assert_eq!((&all[0].key, &all[1].key), (&Some(b"k".to_vec()), &None));
    drop(log);

    let log = LocalLog::open(dir.path(), Settings::default(), clock.clone()).unwrap();
    assert_eq!(read(&log, Topic::Events, P, 0, ALL).unwrap(), all);
    append_values(&log, &["d"]);
    let last = &read(&log, Topic::Events, P, 3, ALL).unwrap()[0];
    assert_eq!((last.offset.0, last.ts), (3, 1_000), "nor does it over a restart");
    assert_eq!(range(&log, Topic::Events, P), (0, 4));
    assert_eq!(range(&log, Topic::Events, Partition(0)), (0, 0));
}

#[test]
fn a_read_stops_at_its_limit_gives_at_least_one_and_starts_anywhere_in_a_block() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for batch in 0..3 {
        append(&log, (0..5).map(|at| (P, record(&format!("{batch}{at}")))).collect()).unwrap();
    }
    let count = |from, records, bytes| {
        let limit = Limit { records, bytes };
        read(&log, Topic::Events, P, from, limit).unwrap().len()
    };
    for from in 0..15 {
        assert_eq!(count(from, usize::MAX, usize::MAX) as u64, 15 - from);
        assert_eq!(count(from, 3, usize::MAX) as u64, 3.min(15 - from));
        // A record counts for its key and value: 3 bytes.
        assert_eq!(count(from, usize::MAX, 20) as u64, 6.min(15 - from));
        assert_eq!(count(from, 0, 0), 1);
        let first = &read(&log, Topic::Events, P, from, ALL).unwrap()[0];
        assert_eq!(first.value, format!("{}{}", from / 5, from % 5).into_bytes());
    }
    assert_eq!(count(15, 10, 10), 0);
    assert_eq!(count(99, 10, 10), 0);
}

#[test]
fn large_records_and_many_records_go_through() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let big = "b".repeat(3_000_000);
    let mut all: Vec<String> = (0..20_000).map(|at| format!("value {at}")).collect();
    all.insert(7_000, big);
    append(&log, all.iter().map(|value| (P, record(value))).collect()).unwrap();
    assert!(values(&log, Topic::Events, 0) == all);
    assert!(values(&log, Topic::Events, 6_999) == all[6_999..]);
    drop(log);
    assert!(values(&open(dir.path()), Topic::Events, 7_001) == all[7_001..]);
}

#[test]
fn an_append_to_a_partition_that_is_not_there_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let failed = append(&log, vec![(P, record("a")), (Partition(4), record("b"))]).unwrap_err();
    assert!(failed.to_string().contains("there is no partition 4"), "{failed}");
    assert_eq!(range(&log, Topic::Events, P), (0, 0));
    assert_eq!(append(&log, Vec::new()).unwrap(), []);
}

#[test]
fn a_commit_writes_outputs_and_position_in_one_step() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append_values(&log, &["a", "b"]);
    assert_eq!(log.take_up(P).unwrap().position().unwrap(), Position::default());
    log.take_up(P)
        .unwrap()
        .commit(&commit_of(1, &["c0", "c1"], &["k0"]))
        .unwrap();
    log.take_up(P).unwrap().commit(&commit_of(1, &[], &[])).unwrap();
    let last = commit_of(2, &["c2"], &[]).with(OutputTopic::Quarantine, [record("q0")]);
    log.take_up(P).unwrap().commit(&last).unwrap();
    let holds = |log: &LocalLog| {
        assert_eq!(values(log, Topic::Changes, 0), ["c0", "c1", "c2"]);
        assert_eq!(values(log, Topic::Changes, 1), ["c1", "c2"]);
        assert_eq!(values(log, Topic::Kicks, 0), ["k0"]);
        assert_eq!(values(log, Topic::Quarantine, 0), ["q0"]);
        assert_eq!(log.take_up(P).unwrap().position().unwrap(), last.position);
        assert_eq!(
            log.take_up(Partition(0)).unwrap().position().unwrap(),
            Position::default()
        );
    };
    holds(&log);
    log.take_up(P).unwrap().sync().unwrap();
    drop(log);
    holds(&open(dir.path()));
}

#[test]
fn a_position_past_the_end_is_not_committed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append_values(&log, &["a"]);
    let refused = log.take_up(P).unwrap().commit(&commit_of(2, &["c"], &[])).unwrap_err();
    assert!(refused.to_string().contains("ends at 1"), "{refused}");
    assert_eq!(range(&log, Topic::Changes, P), (0, 0));
}

#[test]
fn only_the_last_one_to_take_a_partition_up_commits_to_it() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append_values(&log, &["a"]);
    let mut first = log.take_up(P).unwrap();
    let mut elsewhere = log.take_up(Partition(0)).unwrap();
    first.commit(&commit_of(1, &["c"], &[])).unwrap();
    let mut second = log.take_up(P).unwrap();
    let refused = first.commit(&commit_of(1, &["d"], &[]));
    assert!(matches!(refused, Err(Error::Fenced { partition: P })), "{refused:?}");
    second.commit(&commit_of(1, &["e"], &[])).unwrap();
    elsewhere.commit(&commit_of(0, &["f"], &[])).unwrap();
    assert_eq!(values(&log, Topic::Changes, 0), ["c", "e"]);
}
