//! Opening: locks, layouts and settings of a directory.

use crate::children::run_child;
use crate::*;

#[test]
fn a_log_that_is_in_use_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append_values(&log, &["a"]);
    let text = why_not(dir.path());
    assert!(text.contains("in use by another process"), "{text}");
    assert!(text.contains(&dir.path().display().to_string()), "{text}");
    let printed = run_child("child_tries_to_open", dir.path());
    assert!(printed.contains("in use by another process"), "{printed}");
    assert!(printed.contains(&dir.path().display().to_string()), "{printed}");
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
    assert!(text.contains("is not a log"), "{text}");
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
