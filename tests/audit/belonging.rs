//! Files that do not belong together are refused: each of them alone would be answered, and all of the answers would be wrong.

use super::{Files, a_day, audit, event, link, rollcall};

/// The questions, in files that were [signed](sign).
fn questions(files: &Files) -> Vec<Vec<String>> {
    let policy = files.path("tried.json");
    files.write("tried.json", "{}");
    let (key, signed, out) = (files.path("key.pem"), files.path("head.json"), files.path("out"));
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
    vec![
        words(&["at", "5000"]),
        words(&["history", "alice"]),
        words(&["why", "alice"]),
        words(&["heads"]),
        words(&["heads", "--sign", &key]),
        words(&["prove", "0-0-0", "--signed", &signed]),
        words(&["what-if", "--policy", &policy]),
        words(&["export", "--intervals", "--out", &out]),
        words(&["incidents"]),
    ]
}

/// The exit status, and what is on standard error.
fn run(question: &[String], more: &[&str]) -> (i32, String) {
    let mut all = vec!["audit"];
    all.extend(question.iter().map(String::as_str));
    all.extend(more);
    let output = rollcall(&all).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), error)
}

/// The lines as the same of another partition.
pub fn moved_to(partition: u32, lines: &[String]) -> String {
    let lines = lines.iter().map(|line| {
        line.replacen("\"id\":\"0-", &format!("\"id\":\"{partition}-"), 1)
            .replacen("\"partition\":0", &format!("\"partition\":{partition}"), 1)
    });
    lines.collect::<Vec<_>>().join("\n") + "\n"
}

/// Writes a key, and the head that it signs.
fn sign(files: &Files) {
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    files.write("key.pem", &pair.serialize_pem());
    let (key, events, changes) = (files.path("key.pem"), files.path("events"), files.path("changes"));
    let arguments = [
        "audit",
        "heads",
        "--sign",
        &key,
        "--events",
        &events,
        "--changes",
        &changes,
    ];
    let output = rollcall(&arguments).output().unwrap();
    files.write("head.json", &String::from_utf8(output.stdout).unwrap());
}

#[test]
fn files_that_do_not_belong_together_are_refused() {
    let files = Files::of(&a_day(), None);
    sign(&files);
    let (events, changes, kicks) = (files.path("events"), files.path("changes"), files.path("kicks"));
    // Another log: the same users, each a little later, and one record more at the beginning.
    let mut later = vec![event(0, 500, "tick", "")];
    later.extend(a_day().iter().enumerate().map(|(at, line)| {
        let (_, rest) = line.split_once("\"type\"").unwrap();
        let ts = serde_json::from_str::<serde_json::Value>(line).unwrap()["ts"]
            .as_u64()
            .unwrap();
        format!("{{\"offset\":{},\"ts\":{},\"type\"{rest}", at + 1, ts + 777)
    }));
    let other = Files::of(&later, None);
    for (name, topic) in [("elsewhere", "changes"), ("kicked", "kicks")] {
        files.write(name, &moved_to(3, &files.lines(topic)));
    }
    let of_both = files.lines("changes").join("\n") + "\n" + &moved_to(3, &files.lines("changes"));
    files.write("mixed", &of_both);
    let (elsewhere, kicked, mixed) = (files.path("elsewhere"), files.path("kicked"), files.path("mixed"));
    let (others, other_kicks) = (other.path("changes"), other.path("kicks"));
    let pipe = files.path("pipe");
    assert!(
        std::process::Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    for question in questions(&files) {
        let whole = run(
            &question,
            &["--events", &events, "--changes", &changes, "--kicks", &kicks],
        );
        assert_eq!(whole.0, 0, "{question:?}: {}", whole.1);
        let refused = |more: &[&str], wants: &str| {
            let (status, error) = run(&question, more);
            assert_eq!(status, 2, "{question:?} {more:?}: {error}");
            assert!(error.contains(wants), "{question:?} {more:?}: {error}");
        };
        let as_another = ["--partition", "1", "--events", &events, "--changes", &changes];
        refused(&["--events", &events, "--changes", &pipe], "is a pipe");
        refused(
            &as_another,
            "of partition 0, but its records are read as those of partition 1",
        );
        refused(
            &["--partition", "0", "--events", &events, "--changes", &elsewhere],
            "name it with --partition 3",
        );
        refused(
            &["--events", &events, "--changes", &changes, "--kicks", &kicked],
            "of partition 3",
        );
        refused(
            &["--events", &events, "--changes", &mixed],
            "print each partition into files of its own",
        );
        refused(&["--events", &events, "--changes", &others], "do not belong together");
        refused(
            &["--events", &events, "--changes", &changes, "--kicks", &other_kicks],
            "do not belong together",
        );
    }
}

#[test]
fn files_without_a_partition_are_of_the_one_that_their_changes_name() {
    let files = Files::of(&a_day(), None);
    files.write("moved", &moved_to(3, &files.lines("changes")));
    let moved = files.path("moved");
    let (_, at) = audit(&["audit", "at", "700000", "--json", "--changes", &moved]);
    assert_eq!(at[0]["behind"], serde_json::json!([3]));
    let (_, named) = audit(&[
        "audit",
        "at",
        "700000",
        "--json",
        "--partition",
        "3",
        "--changes",
        &moved,
    ]);
    assert_eq!(named, at);
}

#[test]
fn a_head_over_events_and_changes_of_two_logs_is_not_signed() {
    // As many changes, at the same offsets and times, of another user.
    let files = Files::of(&a_day(), None);
    sign(&files);
    let other: Vec<String> = a_day().iter().map(|line| line.replace("alice", "eve")).collect();
    let other = Files::of(&other, None);
    let question = ["heads", "--sign", &files.path("key.pem")].map(str::to_owned);
    let (events, changes) = (files.path("events"), other.path("changes"));
    let (status, error) = run(&question, &["--events", &events, "--changes", &changes]);
    assert_eq!(status, 2, "{error}");
    assert!(error.contains("are not those that the events give"), "{error}");
}

#[test]
fn verify_says_that_files_may_be_of_another_partition() {
    let files = Files::of(&a_day(), None);
    files.write("moved", &moved_to(3, &files.lines("changes")));
    let (events, moved) = (files.path("events"), files.path("moved"));
    let question = ["verify".to_owned()];
    let (status, error) = run(&question, &["--events", &events, "--changes", &moved]);
    assert_eq!(status, 1, "{error}");
    assert!(error.contains("name it with --partition 3"), "{error}");
    let (status, error) = run(
        &question,
        &["--partition", "3", "--events", &events, "--changes", &moved],
    );
    assert_eq!((status, error.contains("name it")), (0, false), "{error}");
}

#[test]
fn files_of_which_one_ends_or_begins_elsewhere_belong_together() {
    let files = Files::of(&a_day(), None);
    let changes = files.path("changes");
    let lines = files.lines("events");
    for (name, part) in [("first", &lines[..6]), ("last", &lines[3..])] {
        files.write(name, &(part.join("\n") + "\n"));
        let events = files.path(name);
        let question = ["history", "bob"].map(str::to_owned);
        let (status, error) = run(&question, &["--events", &events, "--changes", &changes]);
        assert_eq!(status, 0, "{name}: {error}");
    }
    // Time stepped back before the first event that is left, and the changes are of the later time.
    let mut day = a_day();
    day.push(event(
        11,
        600_000,
        "connect",
        &(link("carol", "web", "w", 7) + ",\"intent\":\"login\""),
    ));
    let files = Files::of(&day, None);
    let last = files.lines("events").split_off(11);
    files.write("last", &(last.join("\n") + "\n"));
    let (last, changes) = (files.path("last"), files.path("changes"));
    let (status, error) = run(
        &["history", "carol"].map(str::to_owned),
        &["--events", &last, "--changes", &changes],
    );
    assert_eq!(status, 0, "{error}");
}
