//! Reading from another process.

use crate::children::spawn_child;
use crate::*;
use rollcall::log::Reader as _;
use std::io::{BufRead, BufReader};

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
    let mut reader = LocalLog::follow(dir.path()).unwrap();
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
    // The owner may restart while a reader follows, and a reader may follow without an owner.
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
fn a_log_that_is_written_and_dropped_from_is_never_taken_for_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = spawn_child("child_appends_and_drops_for_ever", dir.path());
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut followed = 0;
    for line in lines.map_while(Result::ok) {
        let Some(offset) = line.strip_prefix("acknowledged ") else {
            continue;
        };
        let sure = offset.parse().unwrap();
        let reader = LocalLog::follow(dir.path()).unwrap();
        let range = reader.range(Topic::Events, P).unwrap();
        assert!(range.end > Offset(sure), "{range:?}, {sure} is acknowledged");
        followed += 1;
        if followed == 100 {
            break;
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(followed, 100);
    LocalLog::follow(dir.path()).unwrap();
}

#[test]
fn a_follower_sees_that_records_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let log = LocalLog::open(dir.path(), keeping(None, Some(1)), clock()).unwrap();
    for value in ["a", "b", "c"] {
        append_values(&log, &[value]);
    }
    let mut reader = LocalLog::follow(dir.path()).unwrap();
    assert_eq!(reader.range(Topic::Events, P).unwrap().start, Offset(0));
    log.take_up(P).unwrap().retain(Offset(2)).unwrap();
    reader.refresh().unwrap();
    let gone = reader.read(Topic::Events, P, Offset(1), ALL, &mut Vec::new());
    assert!(matches!(gone, Err(Error::Gone { start: Offset(2), .. })), "{gone:?}");
}
