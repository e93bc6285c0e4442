//! Small files of their own: a gateway's epoch, a webhook's position and dead letters.

use super::bless;
use rollcall::gateway::epoch::DirectoryLock;
use rollcall::presence::change::{Cause, Change, DeviceChange, OutputId};
use rollcall::presence::{Epoch, LogTime, Offset, Partition, Status};
use rollcall::webhook::{DeadLetterFile, Keep as _, PositionFile, Positions};
use std::fs;

const EPOCH: &str = include_str!("epoch.txt");
const POSITION: &str = include_str!("webhook-position.txt");

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

    let letters = DeadLetterFile::open(&file("letters")).expect("opened");
    letters
        .write(
            &change(),
            br#"{"CallbackCommand":"State.StateChange"}"#,
            "400 Bad Request",
        )
        .expect("written");
    let letters = fs::read_to_string(file("letters")).expect("it is there");
    bless::check([
        ("tests/golden/epoch.txt", epoch.as_str()),
        ("tests/golden/webhook-position.txt", position.as_str()),
        ("tests/golden/dead-letters.txt", letters.as_str()),
    ]);
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
