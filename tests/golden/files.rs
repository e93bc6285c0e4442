//! Small files of their own: a gateway's epoch, a webhook's position and dead letters, a lake's manifest.

use super::bless;
use rollcall::gateway::disconnect_queue::Queue;
use rollcall::gateway::epoch::DirectoryLock;
use rollcall::lake::manifest::{FORMAT, FileList, LakeManifest};
use rollcall::presence::change::{Cause, Change, DeviceChange, OutputId};
use rollcall::presence::{Epoch, LogTime, Offset, Partition, Status};
use rollcall::webhook::{DeadLetter, DeadLetterFile, Keep as _, PositionFile, Positions};
use serde_json::Value;
use std::fs;

const EPOCH: &str = include_str!("epoch.txt");
const POSITION: &str = include_str!("webhook-position.txt");
const MANIFEST: &str = include_str!("lake-manifest.json");
/// Of a version that wrote no name of its process, no number of the last change, and not which commit replaced a file.
const MANIFEST_1: &str = include_str!("lake-manifest-1.json");

fn positions() -> Positions {
    Positions([(Partition(0), Offset(12)), (Partition(1), Offset(u64::MAX))].into())
}

fn change() -> Change {
    Change {
        id: OutputId {
            partition: Partition(5),
            offset: Offset(1_234),
            index: 0,
        },
        seq: 77,
        user: "alice".into(),
        version: 9,
        at: LogTime(1_700_000_000_000),
        logged_at: LogTime(1_700_000_000_001),
        cause: Cause::Login,
        before: Status::Offline,
        after: Status::Online,
        devices: vec![DeviceChange {
            platform: "web".into(),
            device: "t".into(),
            gateway: "g1".into(),
            before: Status::Offline,
            after: Status::Online,
        }],
        custom_status: None,
        evidence: Offset(1_200),
        rehearsal: None,
    }
}

#[test]
fn small_files_are_written_as_their_golden_files_are() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str| directory.path().join(name);
    let lock = DirectoryLock::take(directory.path()).expect("free");
    lock.next(Some(Epoch(41))).expect("written");
    let epoch = fs::read_to_string(file("epoch")).expect("it is there");

    let (mut kept, _) = PositionFile::open(&file("position")).expect("opened");
    kept.keep(&positions()).expect("kept");
    let position = fs::read_to_string(file("position")).expect("it is there");

    let mut letters = DeadLetterFile::open(&file("letters"), u64::MAX).expect("opened");
    let body = br#"{"CallbackCommand":"State.StateChange"}"#;
    let letter = DeadLetter::new(&change(), body, "400 Bad Request".to_owned());
    letters.write(&[&letter]).1.expect("written");
    let letters = fs::read_to_string(file("letters")).expect("it is there");
    bless::check([
        ("tests/golden/epoch.txt", epoch.as_str()),
        ("tests/golden/webhook-position.txt", position.as_str()),
        ("tests/golden/dead-letters.txt", letters.as_str()),
    ]);
}

/// What a later version may have left in these files: its layout's number, then what this version cannot know.
const LATER: &str = "{\"layout\":2}\n{\"what\":\"it knows\"}\nhalf a li";

#[test]
fn a_file_of_a_later_layout_is_refused_with_a_sentence_and_left_as_it_is() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str| directory.path().join(name);
    let lock = DirectoryLock::take(directory.path()).expect("free");
    let open_queue = || {
        Queue::open(directory.path(), 1 << 20)
            .err()
            .expect("refused")
            .to_string()
    };
    let refusals: [(&str, &dyn Fn() -> String); 4] = [
        ("epoch", &|| lock.next(Some(Epoch(7))).expect_err("refused").to_string()),
        ("queue.jsonl", &open_queue),
        ("position", &|| {
            PositionFile::open(&file("position"))
                .err()
                .expect("refused")
                .to_string()
        }),
        ("letters", &|| {
            DeadLetterFile::open(&file("letters"), u64::MAX)
                .err()
                .expect("refused")
                .to_string()
        }),
    ];
    for (name, refusal) in refusals {
        fs::write(file(name), LATER).expect("written");
        let said = refusal();
        assert!(
            said.contains("has layout 2, but this version knows layouts up to 1"),
            "{said}"
        );
        assert!(
            said.contains(name) && said.contains("start a version that knows the layout"),
            "{said}"
        );
        assert_eq!(fs::read_to_string(file(name)).expect("it is there"), LATER, "{name}");
    }
}

/// Nothing reads dead letters but people.
#[test]
fn golden_files_are_read_as_what_they_were() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str| directory.path().join(name);
    fs::write(file("epoch"), EPOCH).expect("written");
    let lock = DirectoryLock::take(directory.path()).expect("free");
    assert_eq!(lock.next(None).expect("read"), Epoch(43));

    fs::write(file("position"), POSITION).expect("written");
    let (_, read) = PositionFile::open(&file("position")).expect("opened");
    assert_eq!(read, Some(positions()));
}

/// Whether all that one value has is in another: fields may come, and none may go.
fn is_within(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::Object(part), Value::Object(whole)) => part
            .iter()
            .all(|(key, value)| whole.get(key).is_some_and(|other| is_within(value, other))),
        (Value::Array(part), Value::Array(whole)) => {
            part.len() == whole.len() && part.iter().zip(whole).all(|(one, other)| is_within(one, other))
        }
        (one, other) => one == other,
    }
}

#[test]
fn golden_manifests_of_a_lake_are_read_and_written_again_with_all_that_they_have() {
    for golden in [MANIFEST, MANIFEST_1] {
        let manifest = LakeManifest::read(golden.as_bytes()).expect("read");
        let has: Value = serde_json::from_str(golden).expect("JSON");
        let written = serde_json::to_value(&manifest).expect("written");
        assert!(is_within(&has, &written), "{written:#}");
        assert_eq!((manifest.format, manifest.commit), (FORMAT, 41));
        for (list, files) in manifest.lists() {
            assert_eq!(files.len(), 1, "{list:?}");
            let path = format!("{}/{}", list.folder(), list.prefix());
            assert!(files[0].path.starts_with(&path), "{list:?}");
        }
        let open = manifest
            .lists()
            .into_iter()
            .find(|(list, _)| *list == FileList::OpenIntervals);
        assert_eq!(open.map(|(_, files)| files[0].rows), Some(120));
        let last = manifest.partitions[0].last.as_ref().expect("there is one");
        let is_first_form = golden == MANIFEST_1;
        assert_eq!((last.offset, last.seq.is_none()), (1_304, is_first_form));
        assert_eq!(manifest.writer.is_empty(), is_first_form);
    }
}
