//! What the engine keeps with its outputs: the position, in the log or in a group's offset, and its counts, in the store.

use super::{bless, hex, unhex, value};
use rollcall::engine::census::Census;
use rollcall::log::{Input, LastRecord, Position, UnreadablePosition};
use rollcall::presence::change::{Cause, Change, DeviceChange, OutputId};
use rollcall::presence::{LogTime, Offset, Partition, Revision, Status};

const GOLDEN: &str = include_str!("position.txt");
/// The position inside a record, as 0.1 wrote it.
const VERSION_1: &str = "0100000000000004d20000000000000003010000018bcfe56800000000000000004d0707070707070707070707070707070707070707070707070707070707070707";

fn positions() -> Vec<(&'static str, Position)> {
    vec![
        ("position at the beginning", Position::default()),
        (
            "position inside a record",
            Position {
                next: Offset(1_234),
                outputs: 3,
                time: Some(LogTime(1_700_000_000_000)),
                seq: 77,
                chain: [7; 32],
                revision: Revision(5),
                input: Some(Input {
                    last: Some(LastRecord {
                        offset: Offset(1_233),
                        ts: 1_699_999_999_999,
                        checksum: 11,
                    }),
                    since: Offset(5),
                    digest: 12,
                }),
            },
        ),
        (
            "position of the greatest numbers",
            Position {
                next: Offset(u64::MAX),
                outputs: u64::MAX,
                time: Some(LogTime(u64::MAX)),
                seq: u64::MAX,
                chain: [255; 32],
                revision: Revision(u32::MAX),
                input: Some(Input {
                    last: Some(LastRecord {
                        offset: Offset(u64::MAX),
                        ts: u64::MAX,
                        checksum: u64::MAX,
                    }),
                    since: Offset(u64::MAX),
                    digest: u64::MAX,
                }),
            },
        ),
    ]
}

fn change(user: &str, devices: &[(&str, Status)]) -> Change {
    Change {
        id: OutputId {
            partition: Partition(0),
            offset: Offset(1),
            index: 0,
        },
        seq: 1,
        user: user.into(),
        version: 1,
        at: LogTime(1),
        logged_at: LogTime(1),
        cause: Cause::Login,
        before: Status::Offline,
        after: devices.iter().map(|(_, status)| *status).max().expect("a device"),
        devices: devices
            .iter()
            .map(|(platform, after)| DeviceChange {
                platform: (*platform).into(),
                device: "d".into(),
                gateway: "g".into(),
                before: Status::Offline,
                after: *after,
            })
            .collect(),
        custom_status: None,
        evidence: Offset(1),
        rehearsal: None,
    }
}

fn censuses() -> Vec<(&'static str, Census)> {
    let mut census = Census::default();
    for devices in [
        &[("android", Status::Online), ("web", Status::Online)][..],
        &[("android", Status::PushOnline)],
        &[("web", Status::Offline)],
    ] {
        census.count(&change("alice", devices));
    }
    vec![("census of nobody", Census::default()), ("census", census)]
}

#[test]
fn positions_and_counts_are_written_as_their_golden_file_has_them() {
    let mut lines = String::new();
    for (what, position) in positions() {
        lines += &format!("{what}: {}\n", hex(&position.to_bytes()));
    }
    for (what, census) in censuses() {
        lines += &format!("{what}: {}\n", hex(&census.to_bytes()));
    }
    bless::check([("tests/golden/position.txt", lines.as_str())]);
}

#[test]
fn golden_positions_and_counts_are_read_as_what_they_were() {
    for (what, position) in positions() {
        assert_eq!(
            Position::from_bytes(&unhex(value(GOLDEN, what))),
            Ok(position),
            "{what}"
        );
    }
    for (what, census) in censuses() {
        assert_eq!(Census::from_bytes(&unhex(value(GOLDEN, what))), Some(census), "{what}");
    }
}

#[test]
fn a_position_of_the_first_version_is_read_as_what_it_was_and_one_of_a_later_version_is_refused() {
    let bytes = unhex(VERSION_1);
    let (_, expected) = positions().remove(1);
    let first = Position {
        revision: Revision::FIRST,
        input: None,
        ..expected
    };
    assert_eq!(Position::from_bytes(&bytes), Ok(first));
    let mut later = expected.to_bytes();
    later[0] = 9;
    assert_eq!(
        Position::from_bytes(&later),
        Err(UnreadablePosition::Later { version: 9 })
    );
    for cut in 0..bytes.len() {
        assert_eq!(Position::from_bytes(&bytes[..cut]), Err(UnreadablePosition::NotOne));
    }
}
