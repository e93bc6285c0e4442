//! The embedded log from outside: what it promises, held against deaths, damage, full disks and a second process.
//!
//! Tests that need a second process run this file's own binary again, with one of the ignored tests at its end.

use rollcall::clock::{Clock, ManualClock, SystemClock};
use rollcall::log::local::{LocalLog, Settings};
use rollcall::log::{Appended, Commit, Error, Limit, Log, NewRecord, Position, Record, Topic};
use rollcall::presence::{LogTime, Offset, Partition};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

const P: Partition = Partition(1);
const ALL: Limit = Limit {
    records: usize::MAX,
    bytes: usize::MAX,
};

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::new(1_000))
}

fn open(dir: &Path) -> LocalLog {
    LocalLog::open(dir, Settings::default(), clock()).unwrap()
}

fn why_not(dir: &Path) -> String {
    match LocalLog::open(dir, Settings::default(), clock()) {
        Ok(_) => panic!("the log in {} was opened", dir.display()),
        Err(Error::Open(text)) => text.to_string(),
        Err(error) => panic!("not an error of opening: {error:?}"),
    }
}

fn record(value: &str) -> NewRecord {
    NewRecord {
        key: Some(b"k".to_vec()),
        value: value.into(),
    }
}

/// An append whose acknowledge can be waited for.
fn start_append(log: &dyn Log, records: Vec<(Partition, NewRecord)>) -> mpsc::Receiver<Result<Vec<Appended>, Error>> {
    let (tell, told) = mpsc::channel();
    log.append(records, Box::new(move |result| tell.send(result).unwrap_or(())));
    told
}

fn append(log: &dyn Log, records: Vec<(Partition, NewRecord)>) -> Result<Vec<Appended>, Error> {
    start_append(log, records).recv().expect("every append is acknowledged")
}

fn append_values(log: &dyn Log, values: &[&str]) {
    append(log, values.iter().map(|value| (P, record(value))).collect()).unwrap();
}

fn read(log: &dyn Log, topic: Topic, partition: Partition, from: u64, limit: Limit) -> Result<Vec<Record>, Error> {
    let mut into = Vec::new();
    log.read(topic, partition, Offset(from), limit, &mut into)?;
    Ok(into)
}

fn values(log: &dyn Log, topic: Topic, from: u64) -> Vec<String> {
    let records = read(log, topic, P, from, ALL).unwrap();
    assert!(
        records
            .iter()
            .zip(from..)
            .all(|(record, offset)| record.offset.0 == offset)
    );
    records
        .into_iter()
        .map(|record| String::from_utf8(record.value).unwrap())
        .collect()
}

fn range(log: &dyn Log, topic: Topic, partition: Partition) -> (u64, u64) {
    let range = log.range(topic, partition).unwrap();
    (range.start.0, range.end.0)
}

fn commit_of(next: u64, changes: &[&str], kicks: &[&str]) -> Commit {
    Commit {
        changes: changes.iter().map(|value| record(value)).collect(),
        kicks: kicks.iter().map(|value| record(value)).collect(),
        quarantine: Vec::new(),
        position: Position {
            next: Offset(next),
            outputs: 3,
            time: Some(LogTime(77)),
            seq: 5,
            chain: [9; 32],
        },
    }
}

fn files(dir: &Path, kind: &str) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == kind))
        .collect();
    files.sort();
    files
}

// ---- what is written is read --------------------------------------------------------------------------------------

#[test]
fn what_is_acknowledged_is_read_back_and_after_reopening_too() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let log = LocalLog::open(dir.path(), Settings::default(), clock.clone()).unwrap();
    assert_eq!(log.partitions(), 4);
    let bare = NewRecord {
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
    assert_eq!(log.position(P).unwrap(), Position::default());
    log.commit(P, commit_of(1, &["c0", "c1"], &["k0"])).unwrap();
    log.commit(P, commit_of(1, &[], &[])).unwrap();
    let mut last = commit_of(2, &["c2"], &[]);
    last.quarantine = vec![record("q0")];
    log.commit(P, last.clone()).unwrap();
    let holds = |log: &LocalLog| {
        assert_eq!(values(log, Topic::Changes, 0), ["c0", "c1", "c2"]);
        assert_eq!(values(log, Topic::Changes, 1), ["c1", "c2"]);
        assert_eq!(values(log, Topic::Kicks, 0), ["k0"]);
        assert_eq!(values(log, Topic::Quarantine, 0), ["q0"]);
        assert_eq!(log.position(P).unwrap(), last.position);
        assert_eq!(log.position(Partition(0)).unwrap(), Position::default());
    };
    holds(&log);
    log.sync().unwrap();
    drop(log);
    holds(&open(dir.path()));
}

#[test]
fn a_position_past_the_end_is_not_committed() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append_values(&log, &["a"]);
    let refused = log.commit(P, commit_of(2, &["c"], &[])).unwrap_err();
    assert!(refused.to_string().contains("ends at 1"), "{refused}");
    assert_eq!(range(&log, Topic::Changes, P), (0, 0));
}

// ---- group commit ---------------------------------------------------------------------------------------------------

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
        .map(|told| told.recv().unwrap().unwrap()[0].offset.0)
        .collect();
    offsets.sort_unstable();
    assert_eq!(offsets, (1..=50).collect::<Vec<_>>());
    // Listeners are told once for each write.
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
        "a listener is told of what can be read"
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
    assert!(waiting.into_iter().all(|told| told.recv().unwrap().is_ok()));
    assert!(matches!(append(&log, vec![(P, record("b"))]), Err(Error::Closed)));
    assert!(matches!(log.commit(P, commit_of(1, &[], &[])), Err(Error::Closed)));
    assert_eq!(values(&log, Topic::Events, 0).len(), 100);
}

#[test]
fn an_acknowledge_may_be_what_drops_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let log = Arc::new(open(dir.path()));
    let (tell, told) = mpsc::channel();
    let held = log.clone();
    log.append(
        vec![(P, record("a"))],
        Box::new(move |result| {
            drop(held);
            tell.send(result).unwrap();
        }),
    );
    drop(log);
    told.recv().unwrap().unwrap();
}

// ---- opening --------------------------------------------------------------------------------------------------------

#[test]
fn a_log_that_is_in_use_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append_values(&log, &["a"]);
    let text = why_not(dir.path());
    assert!(text.contains("in use by another process"), "{text}");
    assert!(text.contains(&dir.path().display().to_string()), "{text}");
    let told = run_child("child_tries_to_open", dir.path());
    assert!(told.contains("in use by another process"), "{told}");
    assert!(told.contains(&dir.path().display().to_string()), "{told}");
    append_values(&log, &["b"]);
    drop(log);
    assert_eq!(run_child("child_tries_to_open", dir.path()), "opened");
}

#[test]
fn the_number_of_partitions_is_fixed_when_a_log_is_made() {
    let dir = tempfile::tempdir().unwrap();
    let asking = |partitions| Settings {
        partitions,
        ..Settings::default()
    };
    let two = LocalLog::open(dir.path(), asking(Some(2)), clock()).unwrap();
    assert_eq!(two.partitions(), 2);
    drop(two);
    assert_eq!(
        LocalLog::open(dir.path(), asking(None), clock()).unwrap().partitions(),
        2
    );
    let other = LocalLog::open(dir.path(), asking(Some(3)), clock())
        .err()
        .unwrap()
        .to_string();
    assert!(other.contains("made with 2 partitions, but 3 are asked for"), "{other}");
    assert!(other.contains(&dir.path().display().to_string()), "{other}");
    let none = LocalLog::open(dir.path(), asking(Some(0)), clock())
        .err()
        .unwrap()
        .to_string();
    assert!(none.contains("1 to 1024 partitions"), "{none}");
}

#[test]
fn another_layout_is_refused_with_both_numbers() {
    let dir = tempfile::tempdir().unwrap();
    drop(open(dir.path()));
    let families = ["default", "events", "changes", "kicks", "quarantine"];
    let db = rocksdb::DB::open_cf(&rocksdb::Options::default(), dir.path(), families).unwrap();
    db.put(b"layout", 9_u32.to_be_bytes()).unwrap();
    drop(db);
    let text = why_not(dir.path());
    assert!(text.contains("has layout 9") && text.contains("layout 1"), "{text}");
}

#[test]
fn a_directory_of_something_else_is_refused_and_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let db = rocksdb::DB::open_default(dir.path()).unwrap();
    db.put(b"users", b"many").unwrap();
    drop(db);
    let text = why_not(dir.path());
    assert!(text.contains("is no log"), "{text}");
    // Still what it was, with no column families of a log.
    let db = rocksdb::DB::open_default(dir.path()).unwrap();
    assert_eq!(db.get(b"users").unwrap().unwrap(), b"many");

    let file = tempfile::NamedTempFile::new().unwrap();
    let text = why_not(file.path());
    assert!(text.contains(&file.path().display().to_string()), "{text}");
}

#[test]
fn a_log_that_was_half_made_is_made_again() {
    let dir = tempfile::tempdir().unwrap();
    let mut options = rocksdb::Options::default();
    options.create_if_missing(true);
    options.create_missing_column_families(true);
    drop(rocksdb::DB::open_cf(&options, dir.path(), ["default", "events"]).unwrap());
    let log = open(dir.path());
    append_values(&log, &["a"]);
    assert_eq!(log.partitions(), 4);
}

// ---- deaths and damage ----------------------------------------------------------------------------------------------

#[test]
fn a_process_that_is_killed_loses_nothing_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    for round in 1..=4 {
        let mut child = spawn_child("child_appends_for_ever", dir.path());
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for line in lines.by_ref() {
            if let Some(offset) = line.unwrap().strip_prefix("acknowledged ") {
                acknowledged = offset.parse::<u64>().unwrap();
                if acknowledged > round * 300 {
                    break;
                }
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said while it was being killed counts too.
        for line in lines.map_while(Result::ok) {
            if let Some(offset) = line.strip_prefix("acknowledged ") {
                acknowledged = offset.parse().unwrap_or(acknowledged);
            }
        }
        let log = open(dir.path());
        let values = values(&log, Topic::Events, 0);
        assert!(values.len() as u64 > acknowledged, "{} of {acknowledged}", values.len());
        for (offset, value) in values.iter().enumerate() {
            assert_eq!(*value, format!("event {offset}"));
        }
        let position = log.position(P).unwrap();
        assert_eq!(
            range(&log, Topic::Changes, P).1,
            position.next.0,
            "outputs and position go together"
        );
        assert!(
            position.next.0 >= acknowledged,
            "a commit survives the death of the process"
        );
    }
}

/// A closed log with events in table files and in the write-ahead log; gives how many.
fn a_log_in_files(dir: &Path) -> u64 {
    for round in 0..3 {
        let log = open(dir);
        for batch in 0..20 {
            let noise = |at: u64| format!("{round} {batch} {at} {}", (at * 7919) % 1_000_003);
            append(&log, (0..100).map(|at| (P, record(&noise(at)))).collect()).unwrap();
        }
        log.commit(P, commit_of(1, &["c"], &[])).unwrap();
    }
    6_000
}

fn flip(path: &Path, at: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[at] ^= 0x55;
    std::fs::write(path, bytes).unwrap();
}

fn cut(path: &Path, keep: impl Fn(usize) -> usize) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..keep(bytes.len())]).unwrap();
}

fn largest(files: Vec<PathBuf>) -> PathBuf {
    let size = |path: &PathBuf| path.metadata().unwrap().len();
    files.into_iter().max_by_key(size).expect("there is such a file")
}

#[track_caller]
fn refused_as_damaged(dir: &Path) -> String {
    let text = why_not(dir);
    assert!(text.contains("is damaged"), "{text}");
    assert!(text.contains(&dir.display().to_string()), "{text}");
    assert!(text.contains("Restore the directory from a copy"), "{text}");
    text
}

#[test]
fn an_altered_table_file_is_an_error_of_reading_and_what_lies_before_is_given() {
    let dir = tempfile::tempdir().unwrap();
    let end = a_log_in_files(dir.path());
    let table = largest(files(dir.path(), "sst"));
    let size = table.metadata().unwrap().len() as usize;
    flip(&table, size / 3);
    // It is noticed at the latest where the records are; never are they skipped.
    let log = match LocalLog::open(dir.path(), Settings::default(), clock()) {
        Ok(log) => log,
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.contains("is damaged") && text.contains(&dir.path().display().to_string()),
                "{text}"
            );
            return;
        }
    };
    let mut next = 0;
    let error = loop {
        match read(&log, Topic::Events, P, next, ALL) {
            Ok(records) => {
                assert!(!records.is_empty(), "all {end} were read, {next} of them well");
                for record in records {
                    assert_eq!(record.offset.0, next);
                    next += 1;
                }
            }
            Err(error) => break error,
        }
    };
    assert!(next < end);
    let text = error.to_string();
    assert!(matches!(error, Error::Read(_)), "{text}");
    assert!(text.contains(&dir.path().display().to_string()), "{text}");
    assert!(text.contains("Restore the directory"), "{text}");
}

#[test]
fn a_table_file_that_is_cut_or_gone_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    a_log_in_files(dir.path());
    let table = largest(files(dir.path(), "sst"));
    cut(&table, |size| size / 2);
    refused_as_damaged(dir.path());
    std::fs::remove_file(&table).unwrap();
    refused_as_damaged(dir.path());
}

#[test]
fn a_write_ahead_log_that_is_altered_is_refused() {
    for part in [3, 2] {
        let dir = tempfile::tempdir().unwrap();
        a_log_in_files(dir.path());
        let ahead = largest(files(dir.path(), "log"));
        let size = ahead.metadata().unwrap().len() as usize;
        flip(&ahead, size / part);
        let text = refused_as_damaged(dir.path());
        assert!(text.contains("Corruption"), "{text}");
    }
}

#[test]
fn a_write_ahead_log_that_lost_its_tail_or_everything_is_refused() {
    let keeps: [fn(usize) -> usize; 4] = [|size| size - 200, |size| size / 2, |_| 5, |_| 0];
    for keep in keeps {
        let dir = tempfile::tempdir().unwrap();
        a_log_in_files(dir.path());
        cut(&largest(files(dir.path(), "log")), keep);
        let text = refused_as_damaged(dir.path());
        assert!(text.contains("were durable"), "{text}");
    }
    let dir = tempfile::tempdir().unwrap();
    a_log_in_files(dir.path());
    std::fs::remove_file(largest(files(dir.path(), "log"))).unwrap();
    refused_as_damaged(dir.path());
}

#[test]
fn a_loss_can_be_accepted_by_removing_the_claim() {
    let dir = tempfile::tempdir().unwrap();
    let end = a_log_in_files(dir.path());
    cut(&largest(files(dir.path(), "log")), |size| size / 2);
    let claim = dir.path().join("ENDS");
    let text = refused_as_damaged(dir.path());
    assert!(text.contains(&claim.display().to_string()), "{text}");
    std::fs::remove_file(claim).unwrap();
    let log = open(dir.path());
    let left = range(&log, Topic::Events, P).1;
    assert!(left > 0 && left < end);
    assert_eq!(values(&log, Topic::Events, 0).len() as u64, left);
}

#[test]
fn events_that_were_folded_and_are_missing_are_noticed_without_any_claim() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append_values(&log, &["a", "b", "c"]);
    log.commit(P, commit_of(3, &["c"], &[])).unwrap();
    drop(log);
    let families = ["default", "events", "changes", "kicks", "quarantine"];
    let db = rocksdb::DB::open_cf(&rocksdb::Options::default(), dir.path(), families).unwrap();
    let events = db.cf_handle("events").unwrap();
    db.delete_cf(events, b"\0\0\0\x01\0\0\0\0\0\0\0\0").unwrap();
    drop(db);
    let text = refused_as_damaged(dir.path());
    assert!(text.contains("folded up to 3 already"), "{text}");
}

#[test]
fn a_hole_is_an_error_and_never_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for value in ["a", "b", "c"] {
        append_values(&log, &[value]);
    }
    drop(log);
    let families = ["default", "events", "changes", "kicks", "quarantine"];
    let db = rocksdb::DB::open_cf(&rocksdb::Options::default(), dir.path(), families).unwrap();
    let events = db.cf_handle("events").unwrap();
    db.delete_cf(events, b"\0\0\0\x01\0\0\0\0\0\0\0\x01").unwrap();
    drop(db);
    let log = open(dir.path());
    assert_eq!(values(&log, Topic::Events, 0), ["a"]);
    let hole = read(&log, Topic::Events, P, 1, ALL).unwrap_err().to_string();
    assert!(hole.contains("offset 1") && hole.contains("missing"), "{hole}");
    assert_eq!(values(&log, Topic::Events, 2), ["c"]);
}

#[test]
fn a_log_that_lost_the_file_rocksdb_begins_with_is_not_made_anew() {
    let dir = tempfile::tempdir().unwrap();
    a_log_in_files(dir.path());
    std::fs::remove_file(dir.path().join("CURRENT")).unwrap();
    refused_as_damaged(dir.path());
}

// ---- retention ------------------------------------------------------------------------------------------------------

fn keeping(retention_ms: Option<u64>, retention_bytes: Option<u64>) -> Settings {
    Settings {
        retention_ms,
        retention_bytes,
        ..Settings::default()
    }
}

#[test]
fn old_records_are_dropped_by_age_but_no_event_from_the_floor_on() {
    let dir = tempfile::tempdir().unwrap();
    let clock = clock();
    let log = LocalLog::open(dir.path(), keeping(Some(500), None), clock.clone()).unwrap();
    for at in 0..10 {
        append_values(&log, &[&format!("{at}a"), &format!("{at}b")]);
        log.commit(P, commit_of(0, &["c"], &[])).unwrap();
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

// ---- a disk that takes no more --------------------------------------------------------------------------------------

/// Appends until it fails, then checks what must hold of a log that cannot be written. Gives what was acknowledged.
fn append_until_it_fails(log: &LocalLog, most: u64) -> (u64, Error) {
    let mut noise = 1_u64;
    for acknowledged in 0..most {
        // Not to be compressed away.
        let value: Vec<u8> = std::iter::repeat_with(|| {
            noise = noise.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (noise >> 56) as u8
        })
        .take(50_000)
        .collect();
        if let Err(error) = append(log, vec![(P, NewRecord { key: None, value })]) {
            return (acknowledged, error);
        }
    }
    panic!("{most} appends fit");
}

fn a_log_that_cannot_be_written_can_be_read(log: &LocalLog, dir: &Path, acknowledged: u64, error: &Error) {
    let text = error.to_string();
    assert!(matches!(error, Error::Write(_)), "{text}");
    assert!(text.contains(&dir.display().to_string()), "{text}");
    assert_eq!(range(log, Topic::Events, P), (0, acknowledged));
    assert_eq!(read(log, Topic::Events, P, 0, ALL).unwrap().len() as u64, acknowledged);
}

/// Tries until the log takes an append again.
fn append_when_it_heals(log: &LocalLog) -> u64 {
    for _ in 0..600 {
        match append(log, vec![(P, record("healed"))]) {
            Ok(went) => return went[0].offset.0,
            Err(Error::Write(_)) => std::thread::sleep(Duration::from_millis(50)),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the log did not heal");
}

#[test]
fn writes_that_fail_are_not_in_the_log_and_it_heals() {
    // The shell limits the size of files: every write beyond fails, as on a full disk, and needs no rights.
    let dir = tempfile::tempdir().unwrap();
    let child = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 4096; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "child_writes_under_a_limit", "--ignored", "--nocapture"])
        .env("ROLLCALL_TEST_DIR", dir.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&child.stdout);
    assert!(
        child.status.success(),
        "{told}\n{}",
        String::from_utf8_lossy(&child.stderr)
    );
    assert!(told.contains("said: the limit was met and overcome"), "{told}");
    // And what it had acknowledged is there for the next process.
    let end: u64 = told
        .split("said: end ")
        .nth(1)
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .parse()
        .unwrap();
    let log = open(dir.path());
    assert_eq!(range(&log, Topic::Events, P), (0, end));
    assert_eq!(values_len(&log), end);
}

fn values_len(log: &LocalLog) -> u64 {
    read(log, Topic::Events, P, 0, ALL).unwrap().len() as u64
}

#[test]
fn a_full_disk_is_an_error_until_there_is_room_again() {
    let Some(disk) = SmallDisk::mount() else {
        eprintln!("no right to mount a small disk here; the limit on file sizes stands for it in the other test");
        return;
    };
    let dir = disk.dir.path().join("log");
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let log = LocalLog::open(&dir, Settings::default(), clock).unwrap();
    let ballast = disk.dir.path().join("ballast");
    std::fs::write(&ballast, vec![1; 8 << 20]).unwrap();
    append_values(&log, &["first"]);
    log.commit(P, commit_of(1, &["c"], &[])).unwrap();
    let (more, error) = append_until_it_fails(&log, 1_000);
    let acknowledged = more + 1;
    a_log_that_cannot_be_written_can_be_read(&log, &dir, acknowledged, &error);
    assert!(error.to_string().contains("No space left"), "{error}");
    assert!(matches!(log.commit(P, commit_of(2, &["d"], &[])), Err(Error::Write(_))));
    // Time enough to try anew, in vain.
    std::thread::sleep(Duration::from_millis(1_100));
    let error = append(&log, vec![(P, record("x"))]).unwrap_err();
    a_log_that_cannot_be_written_can_be_read(&log, &dir, acknowledged, &error);
    std::fs::remove_file(&ballast).unwrap();
    assert_eq!(append_when_it_heals(&log), acknowledged);
    assert_eq!(values(&log, Topic::Changes, 0), ["c"]);
    log.commit(P, commit_of(2, &["d"], &[])).unwrap();
    drop(log);
    let log = open(&dir);
    assert_eq!(values_len(&log), acknowledged + 1);
    assert_eq!(values(&log, Topic::Changes, 0), ["c", "d"]);
    assert_eq!(log.position(P).unwrap().next, Offset(2));
}

/// A file system of 16 MiB.
struct SmallDisk {
    dir: tempfile::TempDir,
}

impl SmallDisk {
    fn mount() -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=16m", "none"])
            .arg(dir.path())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success());
        mounted.then_some(SmallDisk { dir })
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.dir.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_directory_that_is_gone_takes_no_appends() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("log");
    let clock = clock();
    let log = LocalLog::open(&dir, Settings::default(), clock.clone()).unwrap();
    append_values(&log, &["a"]);
    let aside = parent.path().join("aside");
    std::fs::rename(&dir, &aside).unwrap();
    for _ in 0..2 {
        let error = append(&log, vec![(P, record("b"))]).unwrap_err();
        a_log_that_cannot_be_written_can_be_read(&log, &dir, 1, &error);
        assert!(error.to_string().contains("files are gone"), "{error}");
        clock.advance_ms(5_000);
    }
    std::fs::rename(&aside, &dir).unwrap();
    append_values(&log, &["c"]);
    assert_eq!(values(&log, Topic::Events, 0), ["a", "c"]);
}

// ---- looking on -----------------------------------------------------------------------------------------------------

#[test]
fn a_follower_reads_while_another_process_writes() {
    let dir = tempfile::tempdir().unwrap();
    let text = LocalLog::follow(dir.path()).err().unwrap().to_string();
    assert!(text.contains("there is no log"), "{text}");
    let mut child = spawn_child("child_appends_for_ever", dir.path());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut acknowledged = || loop {
        let line = lines.next().unwrap().unwrap();
        if let Some(offset) = line.strip_prefix("acknowledged ") {
            break offset.parse::<u64>().unwrap();
        }
    };
    acknowledged();
    let reader = LocalLog::follow(dir.path()).unwrap();
    assert_eq!(reader.partitions(), 4);
    let mut next = 0;
    while next < 1_000 {
        let sure = acknowledged();
        reader.refresh().unwrap();
        let mut records = Vec::new();
        reader.read(Topic::Events, P, Offset(next), ALL, &mut records).unwrap();
        for record in &records {
            assert_eq!(record.offset.0, next);
            assert_eq!(record.value, format!("event {next}").into_bytes());
            next += 1;
        }
        assert!(next > sure, "what is acknowledged is seen");
        assert_eq!(reader.range(Topic::Events, P).unwrap().end, Offset(next));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // The owner may come back while one looks on, and one may look on when there is none.
    let log = open(dir.path());
    append_values(&log, &["after"]);
    reader.refresh().unwrap();
    let mut records = Vec::new();
    reader.read(Topic::Events, P, Offset(next), ALL, &mut records).unwrap();
    assert_eq!(records.last().unwrap().value, b"after");
    drop(log);
    let reader = LocalLog::follow(dir.path()).unwrap();
    assert!(reader.range(Topic::Changes, P).unwrap().end.0 > 0);
    assert!(reader.range(Topic::Changes, Partition(4)).is_err());
}

#[test]
fn a_follower_sees_that_records_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let log = LocalLog::open(dir.path(), keeping(None, Some(1)), clock()).unwrap();
    for value in ["a", "b", "c"] {
        append_values(&log, &[value]);
    }
    let reader = LocalLog::follow(dir.path()).unwrap();
    assert_eq!(reader.range(Topic::Events, P).unwrap().start, Offset(0));
    log.retain(P, Offset(2)).unwrap();
    reader.refresh().unwrap();
    let gone = reader.read(Topic::Events, P, Offset(1), ALL, &mut Vec::new());
    assert!(matches!(gone, Err(Error::Gone { start: Offset(2), .. })), "{gone:?}");
}

// ---- other processes ------------------------------------------------------------------------------------------------

fn spawn_child(test: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env("ROLLCALL_TEST_DIR", dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Runs a child to its end and gives what it said.
fn run_child(test: &str, dir: &Path) -> String {
    let output = spawn_child(test, dir).wait_with_output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    let said = told.split("said: ").nth(1).expect("the child says something");
    said.lines().next().unwrap().to_owned()
}

/// None if somebody runs the ignored tests by themselves.
fn child_dir() -> Option<PathBuf> {
    std::env::var_os("ROLLCALL_TEST_DIR").map(PathBuf::from)
}

#[test]
#[ignore = "run by another test in a process of its own"]
fn child_tries_to_open() {
    let Some(dir) = child_dir() else { return };
    match LocalLog::open(&dir, Settings::default(), clock()) {
        Ok(_) => println!("\nsaid: opened"),
        Err(error) => println!("\nsaid: {error}"),
    }
}

#[test]
#[ignore = "run by another test in a process of its own"]
fn child_appends_for_ever() {
    let Some(dir) = child_dir() else { return };
    let log = open(&dir);
    let (_, mut next) = range(&log, Topic::Events, P);
    println!();
    loop {
        let records = (next..next + 5).map(|at| (P, record(&format!("event {at}")))).collect();
        let last = append(&log, records).unwrap()[4].offset.0;
        let done = log.position(P).unwrap().next.0;
        next = last + 1;
        // One change for each event folded.
        let changes = vec!["c"; (next - done) as usize];
        log.commit(P, commit_of(next, &changes, &[])).unwrap();
        println!("acknowledged {last}");
        std::io::stdout().flush().unwrap();
    }
}

#[test]
#[ignore = "run by another test in a process of its own"]
fn child_writes_under_a_limit() {
    let Some(dir) = child_dir() else { return };
    let clock = clock();
    let log = LocalLog::open(&dir, Settings::default(), clock.clone()).unwrap();
    let (acknowledged, error) = append_until_it_fails(&log, 1_000);
    a_log_that_cannot_be_written_can_be_read(&log, &dir, acknowledged, &error);
    // No time has passed, so it is not tried anew.
    let error = append(&log, vec![(P, record("x"))]).unwrap_err();
    a_log_that_cannot_be_written_can_be_read(&log, &dir, acknowledged, &error);
    assert!(matches!(log.commit(P, commit_of(1, &["c"], &[])), Err(Error::Write(_))));
    assert!(matches!(log.sync(), Err(Error::Write(_))));
    clock.advance_ms(2_000);
    assert_eq!(append_when_it_heals(&log), acknowledged);
    log.commit(P, commit_of(1, &["c"], &[])).unwrap();
    println!("\nsaid: the limit was met and overcome");
    println!("said: end {}", acknowledged + 1);
}
