//! Child processes: other tests run the tests of this file in a second process, with [`spawn_child`]. Run directly, they do
//! nothing.

use crate::full_disk::{a_log_that_cannot_be_written_can_be_read, append_until_it_fails, append_when_it_heals};
use crate::*;
use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

pub fn spawn_child(test: &str, dir: &Path) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("children::{test}"), "--nocapture"])
        .env("ROLLCALL_TEST_DIR", dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Runs a child to its end and gives what it said.
pub fn run_child(test: &str, dir: &Path) -> String {
    let output = spawn_child(test, dir).wait_with_output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    let said = printed.split("said: ").nth(1).expect("the child says something");
    said.lines().next().unwrap().to_owned()
}

/// None if this is no child.
fn child_dir() -> Option<PathBuf> {
    std::env::var_os("ROLLCALL_TEST_DIR").map(PathBuf::from)
}

#[test]
fn child_tries_to_open() {
    let Some(dir) = child_dir() else { return };
    match LocalLog::open(&dir, Settings::default(), clock()) {
        Ok(_) => println!("\nsaid: opened"),
        Err(error) => println!("\nsaid: {error}"),
    }
}

#[test]
fn child_appends_until_it_is_killed() {
    let Some(dir) = child_dir() else { return };
    let log = open(&dir);
    let mut noise = Noise::new();
    for _ in 0..60 {
        append(&log, vec![(P, noise.record(50_000))]).unwrap();
    }
    println!("\nacknowledged");
    std::io::stdout().flush().unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn child_appends_for_ever() {
    let Some(dir) = child_dir() else { return };
    let log = open(&dir);
    let (_, mut next) = range(&log, Topic::Events, P);
    println!();
    loop {
        let records = (next..next + 5).map(|at| (P, record(&format!("event {at}")))).collect();
        let last = append(&log, records).unwrap()[4].offset.0;
        let done = log.take_up(P).unwrap().position().unwrap().next.0;
        next = last + 1;
        // One change for each event folded.
        let changes = vec!["c"; (next - done) as usize];
        log.take_up(P).unwrap().commit(&commit_of(next, &changes, &[])).unwrap();
        println!("acknowledged {last}");
        std::io::stdout().flush().unwrap();
    }
}

#[test]
fn child_appends_and_drops_for_ever() {
    let Some(dir) = child_dir() else { return };
    let log = LocalLog::open(&dir, keeping(None, Some(30_000)), clock()).unwrap();
    let (_, mut next) = range(&log, Topic::Events, P);
    println!();
    loop {
        let value = format!("event {next} {}", "v".repeat(600));
        append(&log, vec![(P, record(&value))]).unwrap();
        log.take_up(P).unwrap().retain(Offset(next)).unwrap();
        println!("acknowledged {next}");
        std::io::stdout().flush().unwrap();
        next += 1;
    }
}

#[test]
fn child_writes_under_a_limit() {
    let Some(dir) = child_dir() else { return };
    let clock = clock();
    let log = LocalLog::open(&dir, Settings::default(), clock.clone()).unwrap();
    let (acknowledged, error) = append_until_it_fails(&log, 1_000);
    a_log_that_cannot_be_written_can_be_read(&log, &dir, acknowledged, &error);
    // No time has passed, so it is not retried.
    let error = append(&log, vec![(P, record("x"))]).unwrap_err();
    a_log_that_cannot_be_written_can_be_read(&log, &dir, acknowledged, &error);
    assert!(matches!(
        log.take_up(P).unwrap().commit(&commit_of(1, &["c"], &[])),
        Err(Error::Write(_))
    ));
    assert!(matches!(log.take_up(P).unwrap().sync(), Err(Error::Write(_))));
    clock.advance_ms(2_000);
    assert_eq!(append_when_it_heals(&log), acknowledged);
    log.take_up(P).unwrap().commit(&commit_of(1, &["c"], &[])).unwrap();
    println!("\nsaid: end {}", acknowledged + 1);
}

#[test]
fn child_writes_under_a_limit_from_many_threads() {
    let Some(dir) = child_dir() else { return };
    let clock = clock();
    let log = LocalLog::open(&dir, Settings::default(), clock.clone()).unwrap();
    let failures = AtomicUsize::new(0);
    let (log, clock, failures) = (&log, &clock, &failures);
    let fail = |error: &Error| {
        assert!(matches!(error, Error::Write(_)), "{error}");
        failures.fetch_add(1, Ordering::SeqCst);
        clock.advance_ms(300);
        std::thread::yield_now();
    };
    let (mut acknowledged, committed) = std::thread::scope(|scope| {
        let appenders: Vec<_> = (0..3)
            .map(|thread| {
                scope.spawn(move || {
                    let mut acknowledged = Vec::new();
                    for attempt in 0.. {
                        // Compressed to little in table files, but not in the write-ahead log, which meets the limit.
                        let value = format!("{thread} {attempt} {}", "x".repeat(20_000));
                        match append(log, vec![(P, record(&value))]) {
                            Ok(_) => acknowledged.push(value),
                            Err(error) => fail(&error),
                        }
                        if acknowledged.len() == 150 {
                            break;
                        }
                    }
                    acknowledged
                })
            })
            .collect();
        let committer = scope.spawn(move || {
            let mut committed = Vec::new();
            for attempt in 0.. {
                let change = format!("change {attempt}");
                match log.take_up(P).unwrap().commit(&commit_of(0, &[&change], &[])) {
                    Ok(()) => committed.push(change),
                    Err(error) => fail(&error),
                }
                if committed.len() == 2_000 {
                    break;
                }
            }
            committed
        });
        let acknowledged: Vec<String> = appenders
            .into_iter()
            .flat_map(|thread| thread.join().unwrap())
            .collect();
        (acknowledged, committer.join().unwrap())
    });
    assert!(failures.load(Ordering::SeqCst) > 0, "the limit was never met");
    acknowledged.sort_unstable();
    let mut found = values(log, Topic::Events, 0);
    found.sort_unstable();
    assert!(
        found == acknowledged,
        "{} in the log, {} acknowledged",
        found.len(),
        acknowledged.len()
    );
    assert!(values(log, Topic::Changes, 0) == committed);
    println!("\nsaid: end {}", acknowledged.len());
}
