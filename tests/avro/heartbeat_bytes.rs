//! How many bytes of the log a heartbeat takes: a million connections on ten gateways, 64 partitions, a heartbeat of each
//! every 120 s. docs/gateway.md states these figures.

use rollcall::presence::event::{DeviceRef, Event, HeartbeatEntry};
use rollcall::presence::{Conn, Epoch};
use rollcall::schema::avro;
use rollcall::schema::partitioner::partition_of;

const PARTITIONS: u32 = 64;
const OF_A_GATEWAY: u64 = 100_000;
const HEARTBEAT_S: u64 = 120;

/// What Kafka adds to a record that is alone in its batch: the header of the batch, and of the record the length, attributes,
/// differences of time and offset, the lengths of key and value, and the number of headers.
const KAFKA_BATCH: usize = 61;
const KAFKA_RECORD: usize = 9;

/// The bytes of one gateway's records for each heartbeat in them: with Avro's framing, and as Kafka keeps it when each record is
/// a batch. A connection shows life in the window that its number says.
fn bytes_a_heartbeat(window_s: u64, by_number: bool) -> (f64, f64) {
    let windows = HEARTBEAT_S / window_s;
    let (mut bytes, mut heartbeats, mut records) = (0, 0, 0);
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
        records += 1;
    }
    let each = |bytes: usize| bytes as f64 / heartbeats as f64;
    (each(bytes), each(bytes + records * (KAFKA_BATCH + KAFKA_RECORD)))
}

#[test]
fn a_heartbeat_takes_the_bytes_that_the_documents_state() {
    let text = include_str!("../../docs/gateway.md");
    let rows = [(10, false), (1, true), (5, true), (10, true), (60, true)].map(|(window_s, by_number)| {
        let (bytes, on_kafka) = bytes_a_heartbeat(window_s, by_number);
        let name = if by_number { "alive" } else { "heartbeats" };
        format!("| `{name}`, {window_s} s | {bytes:.1} | {on_kafka:.1} |")
    });
    let rows = rows.join("\n");
    assert!(text.contains(&rows), "docs/gateway.md must have the rows\n{rows}");
    // As gateways do by default.
    assert!(bytes_a_heartbeat(10, true).1 <= 3.0);
}
