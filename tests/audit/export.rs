//! `rollcall audit export`: the rows are the histories of all users, and the files are the same however they came to be.

use super::{Files, Story, a_day, change, event, link, of, parsed, served};
use crate::server::{ANYWHERE, Server, rollcall};
use rollcall::audit::export::intervals::{EndedInterval, IntervalStart, OpenIntervals};
use rollcall::audit::history::History;
use rollcall::clock::ManualClock;
use rollcall::log::local::{LocalLog, Settings};
use rollcall::log::{Commit, Log as _, NewRecord};
use rollcall::presence::change::Change;
use rollcall::presence::{Offset, Partition};
use rollcall::topics::{OutputTopic, Topic};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

/// An interval as `history` prints it.
fn line(user: &str, device: Option<(&str, &str)>, start: &IntervalStart, ended: Option<&EndedInterval>) -> Value {
    let id = |id: rollcall::presence::change::OutputId| format!("{}-{}-{}", id.partition, id.offset, id.index);
    let end = ended.map(|ended| ended.end);
    json!({"user": user, "platform": device.map(|device| device.0), "device": device.map(|device| device.1),
        "status": start.status.name(), "from": start.by.at.0, "to": end.map(|end| end.at.0), "cause": start.by.cause.name(),
        "change": id(start.by.change), "evidence": start.by.evidence.0, "end_cause": end.map(|end| end.cause.name()),
        "end_change": end.map(|end| id(end.change)), "end_evidence": end.map(|end| end.evidence.0)})
}

#[test]
fn the_intervals_are_the_histories_of_all_users() {
    for seed in 0..super::SEEDS {
        let story = Story::new(seed);
        let mut open = OpenIntervals::new(story.partition);
        let mut found = Vec::new();
        for change in story.changes.iter().map(change) {
            for ended in open.apply(&change).ended {
                let device = ended.device.as_ref().map(|(platform, device)| (&**platform, &**device));
                found.push(line(&change.user, device, &ended.start, Some(&ended)).to_string());
            }
        }
        let holding = open.each(|user, device, start| {
            found.push(line(user, device, start, None).to_string());
            Ok::<(), ()>(())
        });
        holding.unwrap();
        let mut expected = Vec::new();
        for user in story.users() {
            let mut history = History::new(user);
            story.changes.iter().for_each(|one| history.apply(&change(one)));
            let lines = history.lines();
            expected.extend(lines.map(|line| serde_json::to_value(line).unwrap().to_string()));
        }
        found.sort_unstable();
        expected.sort_unstable();
        assert_eq!(found, expected, "seed {seed}");
    }
}

/// Every file of an export by its path, but where it would go on.
fn tree(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    fn visit(directory: &Path, root: &Path, found: &mut BTreeMap<String, Vec<u8>>) {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.file_name().unwrap() == "_progress" {
                continue;
            }
            if path.is_dir() {
                visit(&path, root, found);
            } else {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.insert(name, std::fs::read(&path).unwrap());
            }
        }
    }
    let mut found = BTreeMap::new();
    if directory.exists() {
        visit(directory, directory, &mut found);
    }
    found
}

fn export(arguments: &[&str], out: &Path) -> Command {
    let mut command = rollcall(&["audit", "export"]);
    command.args(arguments).arg("--out").arg(out);
    command
}

fn exported(arguments: &[&str], out: &Path) -> BTreeMap<String, Vec<u8>> {
    let output = export(arguments, out).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    tree(out)
}

/// The events of a random history, over some days.
fn over_days(seed: u64) -> Vec<String> {
    let story = Story::new(seed);
    let last = *story.times.last().unwrap();
    let events = story.input.iter().map(|line| {
        let mut event = parsed(line);
        let ts = event["ts"].as_u64().unwrap();
        event["ts"] = json!(1_769_871_600_000 + ts * 400_000_000 / last.max(1));
        event.to_string()
    });
    events.collect()
}

#[test]
fn the_same_log_gives_the_same_files_at_once_and_bit_by_bit() {
    let files = Files::of(&over_days(3), None);
    let [events, changes] = ["events", "changes"].map(|name| files.path(name));
    let directory = tempfile::tempdir().unwrap();
    let out = |name: &str| directory.path().join(name);
    for format in ["parquet", "csv", "jsonl"] {
        let tables: [(&str, &[&str], &str); 3] = [
            ("intervals", &["--intervals", "--changes", &changes], "changes"),
            ("changes", &["--changes", &changes], "changes"),
            ("events", &["--events", &events], "events"),
        ];
        for (table, what, name) in tables {
            let arguments = [&["--format", format][..], what].concat();
            let kind = format!("{format}-{table}");
            let whole = exported(&arguments, &out(&format!("whole-{kind}")));
            let days = whole.keys().filter(|path| path.contains("/day=2026-0")).count();
            assert!(days >= 3, "{:?}", whole.keys());
            assert!(whole.values().all(|bytes| !bytes.is_empty()));
            assert_eq!(
                whole.keys().any(|path| path.contains("day=9999-12-31")),
                table == "intervals"
            );
            assert_eq!(exported(&arguments, &out(&format!("again-{kind}"))), whole);
            // The log grows, and each export goes on where the one before had come to.
            let grown = out(&format!("grown-{kind}"));
            let lines = files.lines(name);
            let mut last = BTreeMap::new();
            for upto in [
                lines.len() / 5,
                lines.len() / 2,
                lines.len() / 2 + 1,
                lines.len(),
                lines.len(),
            ] {
                files.write(name, &(lines[..upto].join("\n") + "\n"));
                last = exported(&arguments, &grown);
            }
            assert_eq!(
                last.keys().collect::<Vec<_>>(),
                whole.keys().collect::<Vec<_>>(),
                "{kind}"
            );
            assert!(last == whole, "{kind}: not the same bytes");
        }
    }
}

#[test]
fn rows_have_these_values() {
    let files = Files::of(&a_day(), None);
    let [events, changes] = ["events", "changes"].map(|name| files.path(name));
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path();
    let text = |tree: &BTreeMap<String, Vec<u8>>, name: &str| String::from_utf8(tree[name].clone()).unwrap();
    let found = exported(&["--intervals", "--format", "jsonl", "--changes", &changes], out);
    let ended = text(&found, "intervals/day=1970-01-01/partition-00000.jsonl");
    assert_eq!(
        ended.lines().nth(2).unwrap(),
        "{\"partition\":0,\"user\":\"alice\",\"platform\":null,\"device\":null,\"status\":\"online\",\"valid_from\":\
         \"1970-01-01T00:00:01.000Z\",\"valid_to\":\"1970-01-01T00:06:46.000Z\",\"cause\":\"login\",\"change\":\"0-0-0\",\
         \"evidence\":0,\"logged_at\":\"1970-01-01T00:00:01.000Z\",\"gateway\":null,\"end_cause\":\"timeout\",\"end_change\":\
         \"0-7-0\",\"end_evidence\":4,\"end_logged_at\":\"1970-01-01T00:06:50.000Z\"}"
    );
    let open = text(&found, "intervals/day=9999-12-31/partition-00000.jsonl");
    assert_eq!(open.lines().count(), 4, "{open}");
    assert!(open.lines().all(|line| parsed(line)["valid_to"] == Value::Null));
    let found = exported(&["--format", "csv", "--changes", &changes], out);
    let rows = text(&found, "changes/day=1970-01-01/partition-00000.csv");
    assert_eq!(
        rows.lines().nth(1).unwrap(),
        "0,0,1,0-0-0,alice,1,1970-01-01T00:00:01.000Z,1970-01-01T00:00:01.000Z,login,offline,online,\"[{\"\"platform\"\":\
         \"\"android\"\",\"\"device\"\":\"\"a1\"\",\"\"gateway\"\":\"\"g1\"\",\"\"before\"\":\"\"offline\"\",\"\"after\"\":\
         \"\"online\"\"}]\",,0"
    );
    let found = exported(&["--format", "csv", "--events", &events], out);
    let rows = text(&found, "events/day=1970-01-01/partition-00000.csv");
    assert_eq!(rows.lines().count(), 12);
    let policy = rows.lines().skip(1).find(|row| row.contains(",policy,")).unwrap();
    assert_eq!(
        policy,
        "0,6,1970-01-01T00:00:08.000Z,1970-01-01T00:00:08.000Z,policy,,,,,,,,,,,,,,\"{\"\"login\"\":\"\"multi\"\"}\",,"
    );
    let malformed = rows.lines().find(|row| row.contains(",malformed,")).unwrap();
    assert!(malformed.starts_with("0,8,"), "{malformed}");
    assert!(malformed.contains("nonsense"), "{malformed}");
}

/// Only files of the table have a name that a pattern for the table matches, also where a shell or DuckDB expands it.
#[test]
fn only_rows_are_in_files_that_end_with_the_name_of_a_format() {
    let files = Files::of(&over_days(3), None);
    let changes = files.path("changes");
    let directory = tempfile::tempdir().unwrap();
    for format in ["parquet", "csv", "jsonl"] {
        exported(
            &["--intervals", "--format", format, "--changes", &changes],
            directory.path(),
        );
    }
    let mut kept = 0;
    for entry in std::fs::read_dir(directory.path().join("intervals/_progress")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let is_matched = [".parquet", ".csv", ".jsonl"].iter().any(|end| name.ends_with(end));
        assert!(!is_matched, "{name}");
        kept += 1;
    }
    assert!(kept >= 3, "progress of each format is kept");
}

#[test]
fn a_second_export_of_the_same_files_is_refused_while_one_is_writing() {
    let files = Files::of(&over_days(3), None);
    let changes = files.path("changes");
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path();
    let arguments = ["--intervals", "--changes", changes.as_str()];
    let whole = exported(&arguments, out);
    // An export that is running holds this lock.
    let path = out.join("intervals/_progress/partition-00000.parquet.lock");
    let running = std::fs::File::options().write(true).open(path).unwrap();
    running.lock().unwrap();
    let part = out.join("intervals/day=9999-12-31/.partition-00000.parquet.part");
    std::fs::write(&part, "of the other").unwrap();
    let refused = export(&arguments, out).output().unwrap();
    let error = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{error}");
    assert!(
        error.contains("another export is writing intervals of partition 0"),
        "{error}"
    );
    assert_eq!(std::fs::read(&part).unwrap(), b"of the other");
    // Other files can be written meanwhile.
    exported(&["--intervals", "--format", "csv", "--changes", &changes], out);
    exported(&["--changes", &changes], out);
    exported(
        &["--intervals", "--partition", "0", "--changes", &changes],
        &out.join("other"),
    );
    drop(running);
    // What a killed export has left is replaced.
    let after = exported(&arguments, out);
    assert!(after.keys().all(|path| !path.ends_with(".part")));
    assert!(whole.iter().all(|(path, bytes)| after[path] == *bytes));
}

/// A log of sixty days that takes a while.
fn long() -> Files {
    let mut events = Vec::new();
    for number in 0..6_000u64 {
        let ts = 1_769_871_600_000 + number * 864_000;
        let who = link(&format!("u{}", number % 97), "android", "d", number + 1);
        events.push(event(number, ts, "connect", &(who + ",\"intent\":\"login\"")));
    }
    let files = Files::of(&events, None);
    // Each of its lines as often as it takes for the export to be slow enough to be ended in its midst.
    let lines = files.lines("events");
    let file = std::fs::File::create(files.path("many")).unwrap();
    let mut file = std::io::BufWriter::new(file);
    let mut offset = 0;
    for line in lines {
        for _ in 0..20 {
            let mut event = parsed(&line);
            event["offset"] = json!(offset);
            writeln!(file, "{event}").unwrap();
            offset += 1;
        }
    }
    file.into_inner().unwrap();
    files
}

/// Waits until an export has written some days; it must not have ended by then.
fn in_its_midst(child: &mut Child, out: &Path) {
    crate::server::wait_until("some days are written", || {
        std::fs::read_dir(out.join("events")).is_ok_and(|days| days.count() > 8)
    });
    assert!(child.try_wait().unwrap().is_none(), "it has ended already");
}

#[test]
fn an_export_that_is_ended_in_its_midst_and_started_again_gives_the_same_files() {
    let files = long();
    let events = files.path("many");
    let arguments = ["--events", events.as_str()];
    let directory = tempfile::tempdir().unwrap();
    let whole = exported(&arguments, &directory.path().join("whole"));
    let out = directory.path().join("ended");
    let mut killed = export(&arguments, &out).stdout(Stdio::null()).spawn().unwrap();
    in_its_midst(&mut killed, &out);
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert!(tree(&out).len() < whole.len());
    assert_eq!(
        exported(&arguments, &out).keys().collect::<Vec<_>>(),
        whole.keys().collect::<Vec<_>>()
    );
    assert!(tree(&out) == whole, "not the same bytes");

    // Ctrl-C: nothing half-written is left, and the exit status is that of an interruption.
    let out = directory.path().join("interrupted");
    let mut interrupted = export(&arguments, &out).stdout(Stdio::null()).spawn().unwrap();
    in_its_midst(&mut interrupted, &out);
    let signalled = Command::new("kill")
        .args(["-INT", &interrupted.id().to_string()])
        .status();
    assert!(signalled.unwrap().success());
    assert_eq!(interrupted.wait().unwrap().code(), Some(130));
    let left = tree(&out);
    assert!(left.len() < whole.len());
    assert!(left.keys().all(|path| !path.ends_with(".part")), "{:?}", left.keys());
    assert!(
        left.iter().all(|(path, bytes)| whole[path] == *bytes),
        "a file is not whole"
    );
    assert!(exported(&arguments, &out) == whole, "not the same bytes");
}

#[test]
fn what_cannot_be_exported_says_why() {
    let files = Files::of(&over_days(5), None);
    let [events, changes] = ["events", "changes"].map(|name| files.path(name));
    let directory = tempfile::tempdir().unwrap();
    let out = directory.path().join("out");
    let refused = |arguments: &[&str], wants: &str| {
        let output = export(arguments, &out).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(error.contains(wants), "{arguments:?}: {error}");
    };
    refused(&["--events", &events, "--changes", &changes], "choose what to export");
    refused(&["--intervals", "--events"], "choose one of");
    refused(&["--intervals", "--events", &events], "--changes FILE is needed");
    refused(&["--changes", "--data", "/nowhere/at/all"], "there is no log in");
    refused(&["--changes", &changes, "--data", "x"], "cannot be combined");
    // Changes of another partition, for which nothing is written.
    let lines = files.lines("changes");
    files.write("elsewhere", &super::belonging::moved_to(3, &lines));
    let elsewhere = files.path("elsewhere");
    for table in [
        &["--intervals", "--changes", &elsewhere][..],
        &["--changes", &elsewhere],
    ] {
        refused(&[table, &["--partition", "2"]].concat(), "--partition 3");
    }
    assert_eq!(tree(&out), BTreeMap::new());
    exported(&["--intervals", "--changes", &elsewhere], &out);
    assert!(tree(&out).keys().any(|path| path.ends_with("partition-00003.parquet")));
    exported(&["--intervals", "--changes", &changes], &out);
    // Another log, or one that is shorter, is not mixed with the first.
    let other = lines.iter().map(|line| line.replace("\"user\":\"", "\"user\":\"x"));
    files.write("other", &(other.collect::<Vec<_>>().join("\n") + "\n"));
    refused(
        &["--intervals", "--changes", &files.path("other")],
        "this is another log",
    );
    files.write("short", &(lines[..3].join("\n") + "\n"));
    refused(
        &["--intervals", "--changes", &files.path("short")],
        "this is another log",
    );
}

#[test]
fn beside_a_running_server_it_exports_what_the_log_has() {
    let (directory, data) = served();
    let server = Server::start(&data, ANYWHERE, &["--partitions", "2"], &[]);
    let events: Vec<Value> = (0..30)
        .map(|number| {
            json!({"type": "connect", "user": format!("u{number}"), "platform": "android", "device": "d", "gateway": "g",
                "epoch": 1, "conn": number, "intent": "login"})
        })
        .collect();
    let (status, body) = server.post("/v1/events?wait=applied", "", Value::from(events).to_string());
    assert_eq!(status, 200, "{body}");
    let data = data.to_str().unwrap();
    let out = directory.path().join("out");
    let beside = exported(&["--intervals", "--format", "csv", "--data", data], &out);
    assert_eq!(beside.len(), 2, "{:?}", beside.keys());
    let rows: usize = beside
        .values()
        .map(|bytes| bytes.iter().filter(|byte| **byte == b'\n').count())
        .sum();
    assert_eq!(rows, 2 + 60);
    // As from what is printed of it.
    for partition in ["0", "1"] {
        let printed = rollcall(&["log", "changes", "--data", data, "--partition", partition])
            .output()
            .unwrap();
        let file = directory.path().join("changes");
        std::fs::write(&file, printed.stdout).unwrap();
        let arguments = [
            "--intervals",
            "--format",
            "csv",
            "--partition",
            partition,
            "--changes",
            file.to_str().unwrap(),
        ];
        for (path, bytes) in exported(&arguments, &directory.path().join(partition)) {
            assert!(beside[&path] == bytes, "{path}");
        }
    }
    let (_, count) = of(
        Path::new(data),
        &["export", "--changes", "--out", out.to_str().unwrap()],
    );
    assert_eq!(count.iter().map(|one| one["rows"].as_u64().unwrap()).sum::<u64>(), 30);
    drop(server);
}

/// A data directory with a log of changes that retention cuts.
pub struct CutLog {
    log: LocalLog,
    pub clock: Arc<ManualClock>,
}

impl CutLog {
    pub fn open(directory: &Path, partitions: u32) -> CutLog {
        let clock = Arc::new(ManualClock::new(1_000_000));
        let settings = Settings {
            partitions: Some(partitions),
            retention_ms: Some(500_000),
            ..Settings::default()
        };
        let log = LocalLog::open(&directory.join("log"), settings, clock.clone()).unwrap();
        CutLog { log, clock }
    }

    pub fn commit(&self, change: &Change) {
        let mut value = Vec::new();
        rollcall::schema::avro::encode_change(change, &mut value);
        let record = NewRecord {
            key: Some(change.user.as_bytes().to_vec()),
            value,
            headers: Vec::new(),
        };
        let commit = Commit::default().with(OutputTopic::Changes, [record]);
        let partition = change.id.partition;
        self.log.take_up(partition).unwrap().commit(&commit).unwrap();
    }

    /// Lets time pass until at least so many of partition 0 are gone, and returns how many are. The newest one always stays.
    pub fn cut(&self, gone: u64) -> u64 {
        for _ in 0..400 {
            self.log
                .take_up(Partition(0))
                .unwrap()
                .retain(Offset(u64::MAX))
                .unwrap();
            let start = self.log.range(Topic::Changes, Partition(0)).unwrap().start.0;
            if start >= gone {
                return start;
            }
            self.clock.advance_ms(25_000);
        }
        panic!("fewer than {gone} are gone");
    }
}

/// A data directory whose log had these changes and has lost the first of them to retention; and how many it has lost.
fn cut(directory: &Path, changes: &[Change]) -> usize {
    let log = CutLog::open(directory, 1);
    for change in changes {
        log.commit(change);
        log.clock.advance_ms(100_000);
    }
    log.cut(1) as usize
}

#[test]
fn an_export_goes_on_after_its_end_if_the_file_of_the_last_day_is_whole() {
    let files = Files::of(&over_days(3), None);
    let changes: Vec<Change> = files
        .lines("changes")
        .iter()
        .map(|line| change(&parsed(line)))
        .collect();
    let day = |at: usize| changes[at].at.0 / 86_400_000;
    // Where the days begin but the first, and one change in the midst of a day.
    let begins: Vec<usize> = (1..changes.len()).filter(|at| day(*at) != day(at - 1)).collect();
    assert!(begins.len() >= 3, "{begins:?}");
    let second = begins[1];
    let midst = (second + 2..changes.len())
        .find(|at| day(*at) == day(at - 2))
        .expect("a day with some changes");
    let directory = tempfile::tempdir().unwrap();
    let whole = directory.path().join("whole");
    let arguments = ["--format", "jsonl", "--data", directory.path().to_str().unwrap()];
    for table in ["--intervals", "--changes"] {
        let from_file = [table, "--format", "jsonl", "--changes", &files.path("changes")];
        let from_file = if table == "--changes" {
            &from_file[1..]
        } else {
            &from_file
        };
        exported(from_file, &whole);
    }
    let whole = tree(&whole);
    let log = CutLog::open(directory.path(), 2);
    let out = directory.path().join("out");
    let both = || {
        exported(&[&["--intervals"][..], &arguments].concat(), &out);
        exported(&[&["--changes"][..], &arguments].concat(), &out)
    };
    let export_up_to = |from: usize, upto: usize| {
        for change in &changes[from..upto] {
            log.commit(change);
        }
        both()
    };
    // Days end, the partition is quiet until all but its newest record is gone, and it goes on with a later day.
    let first = export_up_to(0, second);
    log.cut(second as u64 - 1);
    assert!(both() == first, "nothing is new");
    assert!(both() == first, "nor is it later");
    export_up_to(second, midst);

    // In the midst of a day, and with another partition, of which nothing is gone.
    log.cut(midst as u64 - 1);
    let before = both();
    let mut elsewhere = changes[0].clone();
    elsewhere.id.partition = Partition(1);
    log.commit(&elsewhere);
    log.commit(&changes[midst]);
    for table in ["--intervals", "--changes"] {
        let refused = export(&[&[table][..], &arguments].concat(), &out).output().unwrap();
        let error = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{error}");
        assert!(error.contains("in partition 0 are gone (retention)"), "{error}");
        assert!(
            error.contains("retention has to keep records for a day and the time between two exports"),
            "{error}"
        );
    }
    let mut after = tree(&out);
    let others: Vec<String> = after
        .keys()
        .filter(|path| path.contains("partition-00001"))
        .cloned()
        .collect();
    assert_eq!(others.len(), 2, "{:?}", after.keys());
    others.iter().for_each(|path| drop(after.remove(path)));
    assert!(after == before, "the files of the other partition stay as they were");

    // From the start of a day that is kept it is as if nothing had been gone.
    let other = tempfile::tempdir().unwrap();
    let log = CutLog::open(other.path(), 1);
    let arguments = ["--format", "jsonl", "--data", other.path().to_str().unwrap()];
    let mut found = BTreeMap::new();
    let mut committed = 0;
    for upto in begins.iter().copied().chain([changes.len()]) {
        for change in &changes[committed..upto] {
            log.commit(change);
        }
        committed = upto;
        let out = other.path().join("out");
        exported(&[&["--intervals"][..], &arguments].concat(), &out);
        found = exported(&[&["--changes"][..], &arguments].concat(), &out);
        log.cut(upto as u64 - 1);
    }
    assert_eq!(found.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
    assert!(found == whole, "not the same bytes");

    // Another log is noticed also where the start of its last day is gone: by its last record, or by its end.
    let (last, before) = changes.split_last().unwrap();
    assert!(
        begins.last().unwrap() + 1 < before.len(),
        "several changes on the last day"
    );
    let mut altered = last.clone();
    altered.user = "somebody else".into();
    for (last, is_refused) in [(Some(last), false), (Some(&altered), true), (None, true)] {
        let another = tempfile::tempdir().unwrap();
        let log = CutLog::open(another.path(), 1);
        before.iter().for_each(|change| log.commit(change));
        log.clock.advance_ms(400_000);
        last.into_iter().for_each(|change| log.commit(change));
        log.cut(before.len() as u64 - 1);
        let data = another.path().to_str().unwrap();
        let arguments = ["--changes", "--format", "jsonl", "--data", data];
        let output = export(&arguments, &other.path().join("out")).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.success(), !is_refused, "{error}");
        assert_eq!(error.contains("this is another log"), is_refused, "{error}");
        assert!(tree(&other.path().join("out")) == whole, "not the same bytes");
    }
}

#[test]
fn what_retention_has_cut_is_no_answer_and_the_rest_is() {
    let mut events = Vec::new();
    for number in 0..12u64 {
        let user = if number < 10 { "early" } else { "late" };
        let kind = ["connect", "disconnect"][number as usize % 2];
        let more = [",\"intent\":\"login\"", ",\"reason\":\"closed\""][number as usize % 2];
        let who = link(user, "android", "d", number / 2 + 1);
        events.push(event(number, 1_000 * (number + 1), kind, &(who + more)));
    }
    let files = Files::of(&events, None);
    let changes: Vec<_> = files
        .lines("changes")
        .iter()
        .map(|line| change(&parsed(line)))
        .collect();
    let directory = tempfile::tempdir().unwrap();
    let cut = cut(directory.path(), &changes);
    assert!((1..10).contains(&cut), "{cut}");
    let oldest = changes[cut].at.0;
    let data = directory.path().to_str().unwrap();
    let asked = |arguments: &[&str]| {
        let output = rollcall(&["audit"])
            .args(arguments)
            .args(["--data", data, "--json"])
            .output()
            .unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        let lines = String::from_utf8(output.stdout).unwrap();
        (
            output.status.code().unwrap(),
            lines.lines().map(parsed).collect::<Vec<_>>(),
            said,
        )
    };
    for arguments in [
        &["at", "11000"] as &[&str],
        &["at", "11000", "--list"],
        &["at", "11000", "--user", "early"],
        &["at", "11000", "--user", "late", "--user", "early"],
        &["history", "early"],
        &["history", "early", "--from", &(oldest - 1).to_string()],
    ] {
        let (status, lines, said) = asked(arguments);
        assert_eq!((status, lines.len()), (2, 0), "{arguments:?}: {said}");
        assert!(said.contains("are gone (retention)"), "{arguments:?}: {said}");
    }
    let (status, lines, _) = asked(&["at", "11000", "--user", "late"]);
    assert_eq!((status, &lines[0]["status"]), (0, &json!("online")));
    let (status, lines, said) = asked(&["history", "late"]);
    assert_eq!((status, lines.len(), said.as_str()), (0, 4, ""));
    let (status, lines, said) = asked(&["history", "early", "--from", &oldest.to_string()]);
    assert_eq!(status, 0, "{said}");
    assert!(!lines.is_empty() && said.contains("are left out"), "{said}");

    let out = directory.path().join("out");
    let refused = export(&["--intervals", "--data", data], &out).output().unwrap();
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--from-oldest"));
    let found = exported(
        &["--intervals", "--format", "jsonl", "--data", data, "--from-oldest"],
        &out,
    );
    let rows: Vec<Value> = found
        .values()
        .flat_map(|bytes| std::str::from_utf8(bytes).unwrap().lines().map(parsed))
        .collect();
    assert!(
        rows.iter().all(|row| row["evidence"].as_u64().unwrap() >= cut as u64),
        "{rows:?}"
    );
    // Of each change that is kept one interval of the user and one of the device.
    assert_eq!(rows.len(), 2 * (changes.len() - cut));
    // The first run is what counts; the flag changes nothing about going on.
    assert_eq!(
        exported(&["--intervals", "--format", "jsonl", "--data", data], &out),
        found
    );
}
