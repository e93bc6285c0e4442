//! What the engine keeps with its outputs: the position, in the log or in a group's offset, and its counts, in the store.

use super::{bless, hex, unhex, value};
use rollcall::engine::census::Census;
use rollcall::log::Position;
use rollcall::presence::change::{Cause, Change, DeviceChange, OutputId};
use rollcall::presence::{LogTime, Offset, Partition, Status};

const GOLDEN: &str = include_str!("position.txt");

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
            Some(position),
            "{what}"
        );
    }
    for (what, census) in censuses() {
        assert_eq!(Census::from_bytes(&unhex(value(GOLDEN, what))), Some(census), "{what}");
    }
}
