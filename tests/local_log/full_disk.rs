//! A full disk.

use crate::children::spawn_child;
use crate::*;
use rollcall::clock::{Clock, SystemClock};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

/// Appends until an append fails, then checks a log that cannot be written. Returns the number of acknowledged records.
pub fn append_until_it_fails(log: &LocalLog, most: u64) -> (u64, Error) {
    let mut noise = Noise::new();
    for acknowledged in 0..most {
        if let Err(error) = append(log, vec![(P, noise.record(50_000))]) {
            return (acknowledged, error);
        }
    }
    panic!("{most} appends fit");
}

pub fn a_log_that_cannot_be_written_can_be_read(log: &LocalLog, dir: &Path, acknowledged: u64, error: &Error) {
    let text = error.to_string();
    assert!(matches!(error, Error::Write(_)), "{text}");
    assert!(text.contains(&dir.display().to_string()), "{text}");
    assert_eq!(range(log, Topic::Events, P), (0, acknowledged));
    assert_eq!(read(log, Topic::Events, P, 0, ALL).unwrap().len() as u64, acknowledged);
}

/// Tries until the log takes an append again.
pub fn append_when_it_heals(log: &LocalLog) -> u64 {
    for _ in 0..600 {
        match append(log, vec![(P, record("healed"))]) {
            Ok(went) => return went[0].offset.0,
            Err(Error::Write(_)) => std::thread::sleep(Duration::from_millis(50)),
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the log did not heal");
}

/// Runs a child that may write no file of more than 2 MiB: every write beyond fails, as on a full disk, and that needs
/// no rights. Returns what it says.
fn run_under_a_limit(test: &str, dir: &Path) -> String {
    let child = Command::new("sh")
        .args(["-c", "trap '' XFSZ; ulimit -f 4096; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &format!("children::{test}"), "--nocapture"])
        .env("ROLLCALL_TEST_DIR", dir)
        .output()
        .unwrap();
    let printed = String::from_utf8_lossy(&child.stdout);
    let complaint = String::from_utf8_lossy(&child.stderr);
    assert!(child.status.success(), "{printed}\n{complaint}");
    let said = printed.split("said: ").nth(1).and_then(|said| said.lines().next());
    said.expect("the child says something").to_owned()
}

#[test]
fn a_start_without_room_for_a_file_is_no_damage() {
    let dir = tempfile::tempdir().unwrap();
    // It dies with 3 MB in its write-ahead log, which the next start writes to a table file.
    let mut child = spawn_child("child_appends_until_it_is_killed", dir.path());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "acknowledged"));
    child.kill().unwrap();
    child.wait().unwrap();
    let said = run_under_a_limit("child_tries_to_open", dir.path());
    assert!(said.contains(&dir.path().display().to_string()), "{said}");
    assert!(said.contains("File too large"), "{said}");
    assert!(said.contains("as far as is known the log is whole"), "{said}");
    assert!(!said.contains("damaged") && !said.contains("move it away"), "{said}");
    assert_eq!(values_len(&open(dir.path())), 60);
}

#[test]
fn writes_that_fail_are_not_in_the_log_and_it_heals() {
    for test in [
        "child_writes_under_a_limit",
        "child_writes_under_a_limit_from_many_threads",
    ] {
        let dir = tempfile::tempdir().unwrap();
        let said = run_under_a_limit(test, dir.path());
        let end = said.strip_prefix("end ").unwrap().parse().unwrap();
        // What it had acknowledged is there for the next process, and no more.
        let log = open(dir.path());
        assert_eq!(range(&log, Topic::Events, P), (0, end));
        assert_eq!(values_len(&log), end);
    }
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
    log.take_up(P).unwrap().commit(&commit_of(1, &["c"], &[])).unwrap();
    let (more, error) = append_until_it_fails(&log, 1_000);
    let acknowledged = more + 1;
    a_log_that_cannot_be_written_can_be_read(&log, &dir, acknowledged, &error);
    assert!(error.to_string().contains("No space left"), "{error}");
    assert!(matches!(
        log.take_up(P).unwrap().commit(&commit_of(2, &["d"], &[])),
        Err(Error::Write(_))
    ));
    // Enough time for a retry, which fails.
    std::thread::sleep(Duration::from_millis(1_100));
    let error = append(&log, vec![(P, record("x"))]).unwrap_err();
    a_log_that_cannot_be_written_can_be_read(&log, &dir, acknowledged, &error);
    std::fs::remove_file(&ballast).unwrap();
    assert_eq!(append_when_it_heals(&log), acknowledged);
    assert_eq!(values(&log, Topic::Changes, 0), ["c"]);
    log.take_up(P).unwrap().commit(&commit_of(2, &["d"], &[])).unwrap();
    drop(log);
    let log = open(&dir);
    assert_eq!(values_len(&log), acknowledged + 1);
    assert_eq!(values(&log, Topic::Changes, 0), ["c", "d"]);
    assert_eq!(log.take_up(P).unwrap().position().unwrap().next, Offset(2));
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
