//! A soak in several stretches: nothing that was noted is lost, whatever ended a stretch, and each stretch is judged by itself.

use crate::journal::{Began, CrowdFigures, Ended, Entry, FILE, Got, History, Journal, Measured};
use crate::report::{self, Compared, Verified};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::net::TcpListener;
use std::time::Duration;

const MIB: f64 = 1_048_576.0;

fn began() -> Entry {
    Entry::Began(Began {
        at_ms: 1_790_000_000_000,
        commit: "abc".to_owned(),
        seed: 7,
        people: 30,
        prefix: "soak-1".to_owned(),
    })
}

fn ended(minutes: f64) -> Entry {
    Entry::Ended(Ended {
        took_s: 60.0 * minutes,
        why: "when its minutes were over".to_owned(),
    })
}

/// Samples of engine 0 as process `pid`, which leaks so much a minute and had `memory_mib` at first.
fn engine_0(pid: u32, minutes: u32, memory_mib: f64, leak_a_minute: f64) -> Vec<Entry> {
    let sample = |number: u32| {
        let at_s = f64::from(number) * 5.0;
        Entry::Measured {
            process: "engine 0".to_owned(),
            measured: Measured {
                at_s,
                age_s: at_s,
                pid,
                steady: true,
                memory_bytes: (memory_mib + leak_a_minute * at_s / 60.0) * MIB,
                cached_bytes: 0.0,
                descriptors: 100.0,
                threads: 20.0,
                disk_bytes: 0.0,
                cpu_s: at_s / 10.0,
            },
        }
    };
    (0..=minutes * 12).map(sample).collect()
}

fn crowd(missing: u64) -> Entry {
    Entry::Crowd {
        calm: true,
        figures: CrowdFigures {
            connects: 40,
            missing,
            latency_ms: Some(50.0),
            ..CrowdFigures::default()
        },
    }
}

fn read(changes: u64) -> Entry {
    Entry::Read(Got {
        answers: BTreeMap::from([(200, changes)]),
        changes,
        watched: 1,
        ..Got::default()
    })
}

fn struck(times: u32) -> Entry {
    let kind = "broker killed".to_owned();
    Entry::Struck { kind, times }
}

fn history(entries: Vec<Entry>) -> History {
    let mut history = History::default();
    entries.into_iter().for_each(|entry| history.apply(entry));
    history
}

/// The report of a soak that is kept, and what is wrong.
fn reported(history: &History) -> (String, Vec<String>) {
    let compared = BTreeMap::from([("engine 0", Compared::Throughout)]);
    let rows = report::judge(history, &compared, true);
    let complaints = report::complaints(history, &rows, true);
    let verified = Verified {
        events: 1,
        changes: 1,
        kicks: 1,
        malformed: 1,
        watched: 1,
        in_the_lake: 1,
        disk_bytes: MIB,
    };
    let text = report::text(history, &rows, &verified, &complaints, true);
    (text, complaints)
}

/// Two stretches of so many minutes, the first one killed.
fn two_stretches(first: Vec<Entry>, second: Vec<Entry>, minutes: f64) -> History {
    let end = [crowd(1), read(6), struck(3), ended(minutes)];
    let first = [vec![began(), crowd(0), read(5), struck(2)], first].concat();
    let second = [vec![began()], second, end.into()].concat();
    history([first, second].concat())
}

#[test]
fn a_report_over_two_stretches_has_the_sums_and_a_trend_of_each() {
    let history = two_stretches(engine_0(10, 60, 80.0, 0.0), engine_0(11, 30, 20.0, 0.0), 30.0);
    let (text, complaints) = reported(&history);
    assert_eq!(complaints, Vec::<String>::new());
    for line in [
        "| 1 | 2026-09-21 14:13 | 60.0 | abc | killed, or by a panic |",
        "| 2 | 2026-09-21 14:13 | 30.0 | abc | when its minutes were over |",
        // From stretch to stretch it fell by 60 MiB: that is a start and no trend.
        "| engine 0 | memory, MiB | 1 | 80.0 | 80.0 | 0.0 | 8.0 | 361 |",
        "| engine 0 | memory, MiB | 2 | 20.0 | 20.0 | 0.0 | 8.0 | 181 |",
        "| engine 0 | 0.100 | 2 |",
        "| broker killed | 5 |",
        "| while all was calm | 2 | 80 | 0 | 0 | 1 | 0 | 50 ms |",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    assert!(text.contains("answers by status {200: 11} (0: none)"), "{text}");
}

#[test]
fn a_leak_in_one_stretch_is_found_although_others_are_level() {
    let leak = engine_0(10, 60, 80.0, 0.5);
    let history = two_stretches(leak, engine_0(11, 30, 20.0, 0.0), 30.0);
    let (text, complaints) = reported(&history);
    assert_eq!(
        complaints,
        ["engine 0: memory, MiB climbed by 15.0 in the last half of stretch 1, and may climb by 8.0"]
    );
    assert!(text.contains("| **15.0** |"), "{text}");
}

#[test]
fn a_stretch_under_half_an_hour_shows_no_trend() {
    let leak = |pid| engine_0(pid, 29, 80.0, 5.0);
    let (text, complaints) = reported(&two_stretches(leak(10), leak(11), 29.0));
    assert_eq!(complaints, Vec::<String>::new());
    assert!(text.contains("No trend was judged"), "{text}");
}

#[test]
fn what_was_wrong_in_an_earlier_stretch_stays_wrong() {
    let first = vec![Entry::Complaint("the lake: it does not end".to_owned())];
    let (text, complaints) = reported(&two_stretches(first, engine_0(11, 30, 20.0, 0.0), 30.0));
    assert_eq!(complaints, ["stretch 1: the lake: it does not end"]);
    assert!(text.contains("Wrong:"), "{text}");
}

#[test]
fn the_disk_may_grow_by_what_changes_of_the_last_half_need() {
    let changes = [(0.0, 10), (900.0, 20), (1_000.0, 1_020), (1_800.0, 100_020)];
    let changes = changes.map(|(at_s, changes)| Entry::Changes { at_s, changes });
    let second = [engine_0(11, 30, 20.0, 0.0), changes.into()].concat();
    let (text, _) = reported(&two_stretches(Vec::new(), second, 30.0));
    // 16 MiB, and 150 bytes for each of 100,000.
    assert!(
        text.contains("| engine 0 | disk, MiB | 2 | 0.0 | 0.0 | 0.0 | 30.3 | 181 |"),
        "{text}"
    );
}

#[test]
fn a_run_that_was_killed_is_continued_with_all_that_it_had_noted() {
    let directory = tempfile::tempdir().expect("a directory");
    let journal = Journal::open(directory.path()).expect("it is empty");
    let noted = [
        engine_0(10, 2, 80.0, 0.0),
        vec![crowd(0), struck(2), Entry::Step(0), Entry::Step(1)],
    ]
    .concat();
    [vec![began()], noted]
        .concat()
        .into_iter()
        .for_each(|entry| journal.note(entry));
    drop(journal);
    // The kill came in the middle of a line.
    let file = File::options().append(true).open(directory.path().join(FILE));
    file.and_then(|mut file| file.write_all(b"{\"step\":"))
        .expect("written");

    let journal = Journal::open(directory.path()).expect("it can be continued");
    journal.note(began());
    journal.note(read(3));
    drop(journal);
    let journal = Journal::open(directory.path()).expect("it can be continued again");
    journal.read(|history| {
        assert_eq!(history.next_step, 2);
        let [first, second] = &*history.stretches else {
            panic!("two stretches: {history:?}");
        };
        assert_eq!((first.seconds(), first.table["engine 0"].len()), (120.0, 25));
        assert_eq!((first.calm_runs.runs, first.struck["broker killed"]), (1, 2));
        assert!(first.ended.is_none());
        assert_eq!((&*second.began.prefix, second.got.changes), ("soak-1", 3));
    });
}

#[test]
fn a_port_is_the_same_in_all_stretches_and_one_that_is_taken_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("bound").port();
    let journal = Journal::open(directory.path()).expect("it is empty");
    assert_eq!(journal.port("engine 0", Duration::ZERO, || port), Ok(port));
    drop(journal);

    let journal = Journal::open(directory.path()).expect("it can be continued");
    let known = || -> u16 { unreachable!("it is known") };
    let wrong = journal.port("engine 0", Duration::ZERO, known);
    let wrong = wrong.expect_err("it is taken");
    assert!(
        wrong.starts_with(&format!("port {port} is of engine 0 in all stretches")),
        "{wrong}"
    );
    drop(taken);
    assert_eq!(journal.port("engine 0", Duration::from_secs(60), known), Ok(port));
}

#[test]
fn a_directory_is_used_by_one_soak_and_by_nothing_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let _journal = Journal::open(directory.path()).expect("it is empty");
    let wrong = Journal::open(directory.path()).err().expect("it is in use");
    assert!(wrong.starts_with("a soak runs in"), "{wrong}");

    let foreign = tempfile::tempdir().expect("a directory");
    std::fs::write(foreign.path().join("thesis.txt"), "").expect("written");
    let wrong = Journal::open(foreign.path()).err().expect("it is somebody else's");
    assert!(wrong.contains("is not empty and has no soak.jsonl"), "{wrong}");
}
