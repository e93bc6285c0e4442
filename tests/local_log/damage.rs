//! Crashes of the process, and files that were altered, truncated or lost.

use crate::children::spawn_child;
use crate::*;
use std::io::{BufRead, BufReader};

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
        let position = log.take_up(P).unwrap().position().unwrap();
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

#[test]
fn a_process_that_is_killed_while_it_drops_old_records_leaves_a_sound_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut start = 0;
    for round in 1..=5 {
        let mut child = spawn_child("child_appends_and_drops_for_ever", dir.path());
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = 0;
        for line in lines.map_while(Result::ok) {
            if let Some(offset) = line.strip_prefix("acknowledged ") {
                acknowledged = offset.parse::<u64>().unwrap();
                if acknowledged > round * 400 {
                    break;
                }
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
        let log = open(dir.path());
        let (from, end) = range(&log, Topic::Events, P);
        assert!(from > start && end > acknowledged, "{from} {end} {acknowledged}");
        start = from;
        for (value, offset) in values(&log, Topic::Events, from).iter().zip(from..) {
            assert!(value.starts_with(&format!("event {offset} ")), "{value}");
        }
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
        log.take_up(P).unwrap().commit(&commit_of(1, &["c"], &[])).unwrap();
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

fn copy_of(dir: &Path) -> tempfile::TempDir {
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
    }
    copy
}

fn largest(files: Vec<PathBuf>) -> PathBuf {
    let size = |path: &PathBuf| path.metadata().unwrap().len();
    files.into_iter().max_by_key(size).expect("there is such a file")
}

#[track_caller]
fn refused_as_damaged(dir: &Path) -> String {
    let text = why_not(dir);
    says_damaged(dir, &text);
    text
}

#[track_caller]
fn says_damaged(dir: &Path, text: &str) {
    assert!(text.contains("is damaged"), "{text}");
    assert!(text.contains(&dir.display().to_string()), "{text}");
    assert!(text.contains("Restore the directory from a copy"), "{text}");
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

/// The owner is asked last, since it writes.
#[track_caller]
fn refused_to_all(dir: &Path) {
    let text = LocalLog::follow(dir).err().expect("it is not followed").to_string();
    says_damaged(dir, &text);
    refused_as_damaged(dir);
}

/// Makes a log in which events were folded, and removes them behind its back.
fn a_log_that_lost_folded_events(dir: &Path) {
    let log = open(dir);
    append_values(&log, &["a", "b", "c"]);
    log.take_up(P).unwrap().commit(&commit_of(3, &["c"], &[])).unwrap();
    drop(log);
    let families = ["default", "events", "changes", "kicks", "quarantine"];
    let db = rocksdb::DB::open_cf(&rocksdb::Options::default(), dir, families).unwrap();
    let events = db.cf_handle("events").unwrap();
    db.delete_cf(events, b"\0\0\0\x01\0\0\0\0\0\0\0\0").unwrap();
}

#[test]
fn who_looks_on_at_a_log_with_a_file_that_is_cut_or_gone_is_refused_like_its_owner() {
    let dir = tempfile::tempdir().unwrap();
    a_log_in_files(dir.path());
    LocalLog::follow(dir.path()).unwrap();
    let tables = files(dir.path(), "sst");
    assert!(tables.len() > 2, "{tables:?}");
    // With and without the claim of how far the log reached.
    for has_claim in [true, false] {
        for table in &tables {
            for is_cut in [true, false] {
                let harmed = copy_of(dir.path());
                let table = harmed.path().join(table.file_name().unwrap());
                match is_cut {
                    true => cut(&table, |size| size - 500),
                    false => std::fs::remove_file(&table).unwrap(),
                }
                if !has_claim {
                    std::fs::remove_file(harmed.path().join("ENDS")).unwrap();
                }
                refused_to_all(harmed.path());
            }
        }
    }
}

#[test]
fn who_looks_on_at_a_log_that_lost_its_end_is_refused_like_its_owner() {
    let keeps: [fn(usize) -> usize; 3] = [|size| size - 200, |size| size / 2, |_| 0];
    for keep in keeps {
        let dir = tempfile::tempdir().unwrap();
        a_log_in_files(dir.path());
        cut(&largest(files(dir.path(), "log")), keep);
        refused_to_all(dir.path());
    }
    // Events that were folded are missed without any claim too.
    let dir = tempfile::tempdir().unwrap();
    a_log_that_lost_folded_events(dir.path());
    std::fs::remove_file(dir.path().join("ENDS")).unwrap();
    refused_to_all(dir.path());
}

#[test]
fn a_log_that_lost_what_a_log_begins_with_is_damaged_and_not_something_else() {
    // Everything is in the write-ahead log.
    let dir = tempfile::tempdir().unwrap();
    append_values(&open(dir.path()), &["a"]);
    let harmed = copy_of(dir.path());
    std::fs::remove_file(largest(files(harmed.path(), "log"))).unwrap();
    refused_to_all(harmed.path());
    // The manifest ends with the column families.
    let is_manifest = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().starts_with("MANIFEST-");
    for lost in [40, 80, 120, 160] {
        let harmed = copy_of(dir.path());
        let all = std::fs::read_dir(harmed.path()).unwrap();
        let manifest = all.map(|entry| entry.unwrap().path()).find(is_manifest);
        cut(&manifest.unwrap(), |size| size - lost);
        refused_to_all(harmed.path());
    }
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
    a_log_that_lost_folded_events(dir.path());
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
    refused_to_all(dir.path());
}

#[test]
fn a_torn_end_that_was_never_durable_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append_values(&log, &["a", "b", "c"]);
    log.take_up(P).unwrap().commit(&commit_of(1, &["first"], &[])).unwrap();
    log.take_up(P).unwrap().commit(&commit_of(2, &["second"], &[])).unwrap();
    // The machine dies: files are left as they are, and less of what was not synced.
    let mut changes = Vec::new();
    for lost in [0, 1, 60, 150] {
        let left = copy_of(dir.path());
        cut(&largest(files(left.path(), "log")), |size| size - lost);
        let log = open(left.path());
        assert_eq!(values(&log, Topic::Events, 0), ["a", "b", "c"]);
        let (_, end) = range(&log, Topic::Changes, P);
        assert_eq!(
            log.take_up(P).unwrap().position().unwrap().next.0,
            end,
            "outputs and position go together"
        );
        changes.push(end);
        // And it continues from there.
        log.take_up(P).unwrap().commit(&commit_of(3, &["third"], &[])).unwrap();
        assert_eq!(values(&log, Topic::Changes, end), ["third"]);
    }
    assert_eq!(changes[..2], [2, 1]);
    assert!(changes.is_sorted_by(|more, less| more >= less), "{changes:?}");
}

#[test]
fn whatever_byte_is_altered_nothing_acknowledged_is_lost_silently() {
    let dir = tempfile::tempdir().unwrap();
    let end = a_log_in_files(dir.path());
    let expected = values(&open(dir.path()), Topic::Events, 0);
    let log = open(dir.path());
    append_values(&log, &["last but one"]);
    append_values(&log, &["last"]);
    drop(log);
    let paths: Vec<PathBuf> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    let (mut refused, mut unharmed) = (0, 0);
    for path in &paths {
        let name = path.file_name().unwrap();
        let size = path.metadata().unwrap().len() as usize;
        if name.to_string_lossy().starts_with("LOG") || size == 0 {
            continue;
        }
        // Anywhere, and densely at the end, where a damaged tail may look like a torn one.
        let places = (0..12)
            .map(|at| at * size / 12)
            .chain((1..=8).filter_map(|back| size.checked_sub(back * 7)));
        for at in places {
            let damaged = tempfile::tempdir().unwrap();
            for path in &paths {
                std::fs::copy(path, damaged.path().join(path.file_name().unwrap())).unwrap();
            }
            flip(&damaged.path().join(name), at);
            let opened = LocalLog::open(damaged.path(), Settings::default(), clock());
            let read = opened.and_then(|log| {
                let range = log.range(Topic::Events, P)?;
                let mut into = Vec::new();
                while (into.len() as u64) < range.end.0 {
                    log.read(Topic::Events, P, Offset(into.len() as u64), ALL, &mut into)?;
                }
                Ok((log.take_up(P).unwrap().position()?, into))
            });
            match read {
                Ok((position, records)) => {
                    unharmed += 1;
                    assert_eq!(records.len() as u64, end + 2, "{name:?} at {at} of {size}");
                    let same = records
                        .iter()
                        .zip(&expected)
                        .all(|(record, value)| record.value == value.as_bytes());
                    assert!(same, "{name:?} at {at} of {size}");
                    assert_eq!(position.next, Offset(1), "{name:?} at {at} of {size}");
                }
                Err(error) => {
                    refused += 1;
                    let text = error.to_string();
                    assert!(text.contains(&damaged.path().display().to_string()), "{text}");
                }
            }
        }
    }
    assert!(refused > 20 && unharmed > 0, "{refused} refused, {unharmed} unharmed");
}
