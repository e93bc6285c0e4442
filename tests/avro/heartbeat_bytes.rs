//! How many bytes of the log a heartbeat takes: a million connections on ten gateways, 64 partitions, a heartbeat of each
//! every 120 s. docs/gateway.md states these figures.

use rollcall::presence::event::{DeviceRef, Event, HeartbeatEntry};
use rollcall::presence::{Conn, Epoch};
use rollcall::schema::avro;
use rollcall::schema::partitioner::partition_of;

const PARTITIONS: u32 = 64;
const OF_A_GATEWAY: u64 = 100_000;
const HEARTBEAT_S: u64 = 120;

/// The bytes of one gateway's records, framing included, for each heartbeat in them. A connection shows life in the
/// window that its number says.
fn bytes_a_heartbeat(window_s: u64, by_number: bool) -> f64 {
    let windows = HEARTBEAT_S / window_s;
    let (mut bytes, mut heartbeats) = (0, 0);
    let user = |conn: u64| format!("user-{:07}", conn * 10 + 3);
    for partition in 0..PARTITIONS {
        let is_here =
            |conn: &u64| conn % windows == 7 % windows && partition_of(&user(*conn), PARTITIONS).0 == partition;
        let conns: Vec<u64> = (1..=OF_A_GATEWAY).filter(is_here).collect();
        if conns.is_empty() {
            continue;
        }
        let (gateway, epoch) = ("edge-3".into(), Epoch(12));
        let event = match by_number {
            true => Event::Alive {
                gateway,
                epoch,
                conns: conns.iter().copied().map(Conn).collect(),
            },
            false => Event::Heartbeats {
                gateway,
                epoch,
                beats: conns
                    .iter()
                    .map(|conn| HeartbeatEntry {
                        who: DeviceRef {
                            user: user(*conn).into(),
                            platform: "android".into(),
                            device: format!("{:016x}", conn * 7_919).into(),
                        },
                        conn: Conn(*conn),
                    })
                    .collect(),
            },
        };
        let mut value = Vec::new();
        avro::encode_event(&event, &mut value);
        bytes += value.len();
        heartbeats += conns.len();
    }
    bytes as f64 / heartbeats as f64
}

#[test]
fn a_heartbeat_takes_the_bytes_that_the_documents_state() {
    let text = include_str!("../../docs/gateway.md");
    for (window_s, by_number) in [(1, false), (1, true), (10, true), (60, true)] {
        let bytes = format!("{:.1}", bytes_a_heartbeat(window_s, by_number));
        let name = if by_number { "alive" } else { "heartbeats" };
        let row = format!("| `{name}`, {window_s} s | {bytes} |");
        assert!(text.contains(&row), "docs/gateway.md must have the row {row}");
    }
    assert!(bytes_a_heartbeat(10, true) <= 3.0);
}
