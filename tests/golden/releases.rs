//! What each release left on disks: a data directory, a checkpoint, a committed position and the topics' records. Every later
//! version opens them, folds on from them, dies on the way, and comes to what a fold from the beginning comes to.
//!
//! `make golden-release` writes the directory of the version in Cargo.toml. A release that was made stays as it is.

use super::{hex, unhex};
use rollcall::checkpoint::{Checkpoints, Origin};
use rollcall::clock::ManualClock;
use rollcall::engine::Tuning;
use rollcall::engine::partition::PartitionProcessor;
use rollcall::log::local::{LocalLog, Settings};
use rollcall::log::{Limit, Log as _, NewRecord, Position};
use rollcall::presence::event::Event;
use rollcall::presence::policy::Policy;
use rollcall::presence::{Offset, Partition, Revision};
use rollcall::schema::{avro, json};
use rollcall::topics::Topic;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, mpsc};

const ONLY: Partition = Partition(0);
const NOW: u64 = 1_790_000_000_000;
const ALL: Limit = Limit {
    records: usize::MAX,
    bytes: usize::MAX,
};

fn releases() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/releases")
}

/// A log and its partition, as a process has them.
struct Process {
    log: Arc<LocalLog>,
    clock: Arc<ManualClock>,
    walk: PartitionProcessor,
}

impl Process {
    fn start(directory: &Path, store: Option<&Path>, now: u64, tuning: Tuning) -> Process {
        let clock = Arc::new(ManualClock::new(now));
        let settings = Settings {
            partitions: Some(1),
            ..Settings::default()
        };
        let log = LocalLog::open(&directory.join("log"), settings, clock.clone()).expect("opened");
        let log = Arc::new(log);
        let owned = log.take_up(ONLY).expect("taken up");
        let walk = PartitionProcessor::open(owned, store, &Policy::default(), clock.clone(), tuning);
        Process {
            log,
            clock,
            walk: walk.expect("opened"),
        }
    }

    /// Appends an event in its JSON form, or bytes that are not an event, and folds it.
    fn publish(&mut self, event: &str) {
        let line = format!(r#"{{"offset":0,"ts":0,{event}}}"#);
        let event = json::read_line(&line).expect("a line").event;
        let (mut key, mut value) = (None, Vec::new());
        match &event {
            Ok(event) => {
                avro::encode_event(event, &mut value);
                key = event.user().map(|user| user.as_bytes().to_vec());
            }
            Err(_) => value.extend_from_slice(b"no event"),
        }
        let record = NewRecord {
            key,
            value,
            headers: Vec::new(),
        };
        let (sender, result) = mpsc::channel();
        let acknowledge = Box::new(move |result| sender.send(result).expect("it is waited for"));
        self.log.append(vec![(ONLY, record)], acknowledge);
        result.recv().expect("acknowledged").expect("appended");
        self.clock.advance_ms(1_000);
        self.fold();
    }

    fn fold(&mut self) {
        while self.walk.step(ALL).expect("folded").records > 0 {}
    }

    fn state(&self) -> String {
        String::from_utf8(self.walk.state_lines().expect("readable")).expect("UTF-8")
    }

    /// Every record of the topics, a line each.
    fn records(&self) -> String {
        let mut lines = String::new();
        for topic in Topic::ALL {
            let mut records = Vec::new();
            self.log.read(topic, ONLY, Offset(0), ALL, &mut records).expect("read");
            for record in records {
                lines += &format!("{topic} {} {} {}\n", record.offset, record.ts, hex(&record.value));
            }
        }
        lines
    }
}

fn of(user: &str, kind: &str, conn: u64, more: &str) -> String {
    format!(
        r#""type":"{kind}","user":"{user}","platform":"android","device":"d","gateway":"g","epoch":1,"conn":{conn}{more}"#
    )
}

/// Some of everything that a partition remembers, in three parts.
fn story() -> [Vec<String>; 3] {
    let lease = r#""type":"lease","gateway":"g","epoch":1,"ttl_ms":600000"#.to_owned();
    let policy = r#""type":"policy","policy":{"login":"multi","custom_keep_ms":60000}"#.to_owned();
    let login = r#","intent":"login""#;
    [
        vec![
            policy,
            lease,
            of(
                "alice",
                "connect",
                1,
                r#","intent":"login","client":"10.0.0.1 app 1.2""#,
            ),
            of("bob", "connect", 2, login),
            of("carol", "connect", 3, login),
            r#""type":"custom_status","user":"alice","text":"à table""#.to_owned(),
        ],
        vec![
            of("bob", "disconnect", 2, r#","reason":"closed""#),
            r#""type":"kick","user":"carol""#.to_owned(),
            of("dave", "disconnect", 9, r#","reason":"closed""#),
            r#""type":"no such type""#.to_owned(),
            of("alice", "connect", 4, login),
        ],
        vec![
            r#""type":"alive","gateway":"g","epoch":1,"conns":[4,77]"#.to_owned(),
            of("erin", "connect", 5, login),
            r#""type":"forget","user":"erin""#.to_owned(),
            of("alice", "disconnect", 4, r#","reason":"closed""#),
        ],
    ]
}

fn checkpoints(directory: &Path, runtime: &tokio::runtime::Runtime) -> Checkpoints {
    let url = format!("file://{}", directory.join("checkpoints").display());
    Checkpoints::open(&url, "rollcall", 3, Vec::new(), runtime.handle().clone()).expect("a place")
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("made");
    for entry in fs::read_dir(from).expect("a directory") {
        let entry = entry.expect("an entry");
        let into = to.join(entry.file_name());
        match entry.file_type().expect("known").is_dir() {
            true => copy(&entry.path(), &into),
            false => drop(fs::copy(entry.path(), into).expect("copied")),
        }
    }
}

/// Removes what RocksDB makes for who has a directory open, with names of this machine in it.
fn tidy(directory: &Path) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            tidy(&path);
        } else if name == "LOCK" || name.starts_with("LOG") {
            fs::remove_file(path).expect("removed");
        }
    }
}

/// Writes the directory of this version if `make golden-release` asks for it.
#[test]
fn this_version_has_its_golden_release() {
    let version = env!("CARGO_PKG_VERSION");
    let (release, _) = version.rsplit_once('.').expect("three numbers");
    let release = releases().join(release);
    if std::env::var_os("ROLLCALL_GOLDEN_RELEASE").is_none() {
        assert!(
            release.exists(),
            "run `make golden-release`: {} is not there",
            release.display()
        );
        return;
    }
    assert!(
        !release.exists(),
        "{} is there: a release stays as it is",
        release.display()
    );
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let work = tempfile::tempdir().expect("a directory");
    let data = work.path().join("data");
    let store = data.join("store/0");
    let mut process = Process::start(&data, Some(&store), NOW, Tuning::default());
    let [first, second, third] = story();
    first.iter().for_each(|event| process.publish(event));
    let waiting = work.path().join("copy");
    process.walk.checkpoint(&waiting).expect("committed").expect("copied");
    checkpoints(work.path(), &runtime)
        .publish(ONLY, &waiting, None, &mut |_| Origin::Unknown)
        .expect("published");
    second.iter().for_each(|event| process.publish(event));
    process.walk.commit_store().expect("committed");
    // The store stays behind the log: the process dies here.
    third.iter().for_each(|event| process.publish(event));
    let position = process.walk.committed();
    let (state, records) = (process.state(), process.records());
    drop(process);
    for part in ["data", "checkpoints"] {
        copy(&work.path().join(part), &release.join(part));
        tidy(&release.join(part));
    }
    fs::write(release.join("position.txt"), format!("{}\n", hex(&position.to_bytes()))).expect("written");
    fs::write(release.join("state.jsonl"), state).expect("written");
    fs::write(release.join("records.txt"), records).expect("written");
}

/// Of `rollcall audit verify`, which shares nothing with the engine's recovery.
fn is_verified(data: &Path) {
    let output = Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .args(["audit", "verify", "--data"])
        .arg(data)
        .env("ROLLCALL_REVISION", "2")
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{output:?}");
}

fn check(release: &Path) {
    let text = |name: &str| fs::read_to_string(release.join(name)).expect("it is there");
    let (state, records) = (text("state.jsonl"), text("records.txt"));
    let position = Position::from_bytes(&unhex(text("position.txt").trim())).expect("a position");

    // The records are read as what they were.
    let mut decoded = 0;
    for line in records.lines() {
        let mut words = line.split(' ');
        let (topic, value) = (words.next().expect("a topic"), unhex(words.nth(2).expect("a value")));
        match topic {
            "events" if value == b"no event" => {}
            "events" => assert!(!matches!(avro::decode_event(&value).expect("an event"), Event::Tick)),
            "changes" => drop(avro::decode_change(&value).expect("a change")),
            "kicks" => drop(avro::decode_kick(&value).expect("a kick")),
            _ => assert_eq!(avro::decode_quarantined(&value).expect("one").partition, ONLY),
        }
        decoded += 1;
    }
    assert!(decoded > 20, "{decoded}");

    let work = tempfile::tempdir().expect("a directory");
    copy(release, work.path());
    let data = work.path().join("data");
    let store = data.join("store/0");
    is_verified(&data);
    let now = NOW + 3_600_000;
    let start = |store: Option<&Path>, tuning: Tuning| {
        let mut process = Process::start(&data, store, now, tuning);
        process.fold();
        process
    };

    // Opened: as it was, from the store, from the checkpoint, and from the beginning.
    let restored = work.path().join("restored");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let applied = checkpoints(work.path(), &runtime).restore(ONLY, &restored, (position.next, position.outputs));
    assert!(applied.expect("it can be known").is_some());
    for store in [Some(store.as_path()), Some(&restored), None] {
        let process = start(store, Tuning::default());
        assert_eq!(process.walk.committed(), position);
        assert_eq!((process.state(), process.records()), (state.clone(), records.clone()));
    }
    assert!(!data.join("store/0.old").exists(), "the store was made again");

    // Folded on, and killed after each record; then the same as of the rehearsal of a revision, which it is raised to.
    let knows = Tuning {
        revision: Revision::REHEARSAL,
        ..Tuning::default()
    };
    let raise = r#""type":"revision","revision":2"#.to_owned();
    let more = [
        of("bob", "connect", 11, r#","intent":"resume""#),
        of("carol", "connect", 12, r#","intent":"login""#),
        raise,
        of("carol", "disconnect", 12, r#","reason":"closed""#),
        r#""type":"custom_status","user":"carol","text":"away""#.to_owned(),
        r#""type":"forget","user":"bob""#.to_owned(),
    ];
    for (number, event) in more.iter().enumerate() {
        let mut process = start(Some(&store), knows);
        process.publish(event);
        if number % 2 == 0 {
            process.walk.commit_store().expect("committed");
        }
    }
    let process = start(Some(&store), knows);
    let (position, state) = (process.walk.committed(), process.state());
    assert_eq!(position.revision, Revision::REHEARSAL);
    assert!(process.records().starts_with(records.lines().next().expect("a line")));
    drop(process);
    let fresh = start(None, knows);
    assert_eq!((fresh.walk.committed(), fresh.state()), (position, state));
    drop(fresh);
    assert!(!data.join("store/0.old").exists(), "the store was made again");
    is_verified(&data);
}

#[test]
fn every_golden_release_is_opened_folded_on_killed_and_verified() {
    let releases = fs::read_dir(releases()).expect("a directory");
    let releases: Vec<_> = releases.map(|release| release.expect("an entry").path()).collect();
    assert!(!releases.is_empty());
    releases.iter().for_each(|release| check(release));
}
