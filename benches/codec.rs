//! Encoding and decoding: heartbeats in Avro, events posted as JSON, the embedded log's appends and reads.
//!
//! `apache-avro` and `serde_json::Value` process the same bytes, as yardsticks for our own code. An append counts when it is
//! durable: each waits for its synced write, one at a time or sixteen at a time.

mod allocator;
#[expect(dead_code, reason = "other benchmarks need more of it")]
mod measure;
mod users;

use measure::{figure, heading, is_quick, rate, timed};
use rollcall::clock::SystemClock;
use rollcall::log::local::{LocalLog, Settings};
use rollcall::log::{Limit, Log, NewRecord};
use rollcall::presence::event::Event;
use rollcall::presence::{Conn, Offset, Partition};
use rollcall::random::Random;
use rollcall::schema::{avro, json};
use rollcall::topics::Topic;
use std::fmt::Write as _;
use std::hint::black_box;
use std::sync::Arc;
use std::sync::mpsc;

/// Of the short form, and of the long one.
const ROUNDS: [usize; 2] = [5, 9];
/// Few enough to stay in the cache, so that the code is measured and not the memory.
const EVENTS: u32 = 1_000;
const REPEATED: usize = 200;
const P: Partition = Partition(0);

fn main() {
    avro_rows();
    json_rows();
    log_rows();
}

fn heartbeats() -> Vec<Event<'static>> {
    let order = Random(1).order(EVENTS);
    let heartbeat = |user: u32| Event::Heartbeat {
        who: users::who(user),
        via: users::via(user, Conn(user.into())),
    };
    order.into_iter().map(heartbeat).collect()
}

/// Returns the rate per second of several rounds, each with `count` items.
fn rounds(count: usize, mut what: impl FnMut()) -> Vec<f64> {
    let rounds = ROUNDS[usize::from(!is_quick())];
    (0..rounds).map(|_| rate(count, timed(&mut what).1)).collect()
}

fn avro_rows() {
    let events = heartbeats();
    let values: Vec<Vec<u8>> = events.iter().map(encoded).collect();
    heading(&format!("Avro, a heartbeat of {} bytes", values[0].len()));
    let count = REPEATED * events.len();
    let decoded = rounds(count, || {
        for _ in 0..REPEATED {
            for value in &values {
                black_box(avro::decode_event(black_box(value)).expect("encoded just now"));
            }
        }
    });
    let mut out = Vec::new();
    let encoded = rounds(count, || {
        for _ in 0..REPEATED {
            for event in &events {
                out.clear();
                avro::encode_event(black_box(event), &mut out);
                black_box(&out);
            }
        }
    });
    let schema = apache_avro::Schema::parse_str(include_str!("../schemas/event.avsc")).expect("our schema");
    let datums: Vec<Vec<u8>> = events
        .iter()
        .map(|event| {
            let mut datum = Vec::new();
            avro::write_event_datum(event, &mut datum);
            datum
        })
        .collect();
    let reader = apache_avro::reader::datum::GenericDatumReader::builder(&schema)
        .build()
        .expect("a reader");
    let generic = rounds(events.len(), || {
        for datum in &datums {
            black_box(reader.read_value(&mut &datum[..]).expect("a datum"));
        }
    });
    let what = "yardstick: apache-avro, to a generic value";
    figure("codec.avro.apache_avro", what, &generic, "/s").show();
    figure("codec.avro.decode", "decode and check", &decoded, "/s")
        .beside("apache-avro", &generic)
        .show();
    figure("codec.avro.encode", "encode", &encoded, "/s").show();
}

fn json_rows() {
    let mut body = String::from("[");
    for (number, event) in heartbeats().iter().enumerate() {
        let Event::Heartbeat { who, via } = event else { continue };
        let comma = if number == 0 { "" } else { "," };
        write!(
            body,
            r#"{comma}{{"type":"heartbeat","user":"{}","platform":"{}","device":"{}","gateway":"{}","epoch":{},"conn":{}}}"#,
            who.user, who.platform, who.device, via.gateway, via.epoch.0, via.conn.0
        )
        .expect("a String takes everything");
    }
    body.push(']');
    heading(&format!("JSON, a body of {EVENTS} heartbeats, {} bytes", body.len()));
    let count = 20 * EVENTS as usize;
    let events = rounds(count, || {
        for _ in 0..20 {
            let events = json::read_new_events(black_box(&body)).expect("a body");
            assert!(events.iter().all(Result::is_ok));
            black_box(events);
        }
    });
    let values = rounds(count, || {
        for _ in 0..20 {
            black_box(serde_json::from_str::<serde_json::Value>(black_box(&body)).expect("a body"));
        }
    });
    let what = "yardstick: serde_json, to values";
    figure("codec.json.serde_json", what, &values, "events/s").show();
    figure("codec.json.read", "read and check", &events, "events/s")
        .beside("serde_json", &values)
        .show();
    let megabytes: Vec<f64> = events
        .iter()
        .map(|rate| rate * body.len() as f64 / f64::from(EVENTS) / 1e6)
        .collect();
    figure("codec.json.read_bytes", "  of its bytes", &megabytes, "MB/s").show();
}

fn log_rows() {
    let directory = tempfile::tempdir().expect("a directory");
    let settings = Settings {
        partitions: Some(1),
        ..Settings::default()
    };
    let log = LocalLog::open(directory.path(), settings, Arc::new(SystemClock::new())).expect("opened");
    let records: Vec<_> = heartbeats()
        .iter()
        .map(|event| {
            let record = NewRecord {
                headers: Vec::new(),
                key: event.user().map(|user| user.as_bytes().to_vec()),
                value: encoded(event),
            };
            (P, record)
        })
        .collect();
    heading("embedded log, heartbeats in appends of 1,000, durable");
    let (done, acknowledged) = mpsc::channel();
    let append = || {
        let done = done.clone();
        let acknowledge = move |result: Result<_, _>| done.send(result.map(|_: Vec<_>| ())).expect("waited for");
        log.append(records.clone(), Box::new(acknowledge));
    };
    let wait = || acknowledged.recv().expect("acknowledged").expect("appended");
    let one_at_a_time = rounds(50 * records.len(), || {
        for _ in 0..50 {
            append();
            wait();
        }
    });
    // A fifth of all users.
    let appends = (users::count() as usize / 5 / records.len()).max(16);
    let many_at_a_time = rounds(appends * records.len(), || {
        (0..16).for_each(|_| append());
        for _ in 16..appends {
            wait();
            append();
        }
        (0..16).for_each(|_| wait());
    });
    let what = "append, one at a time";
    figure("codec.log.append_1", what, &one_at_a_time, "records/s").show();
    let what = "append, sixteen at a time";
    figure("codec.log.append_16", what, &many_at_a_time, "records/s").show();
    let end = log.range(Topic::Events, P).expect("a partition").end;
    let limit = Limit {
        records: 10_000,
        bytes: 2 << 20,
    };
    let read = rounds(end.0 as usize, || {
        let mut batch = Vec::new();
        let mut next = Offset(0);
        while next < end {
            batch.clear();
            log.read(Topic::Events, P, next, limit, &mut batch).expect("read");
            next = Offset(batch.last().expect("a record").offset.0 + 1);
        }
    });
    figure("codec.log.read", "read", &read, "records/s").show();
}

fn encoded(event: &Event<'_>) -> Vec<u8> {
    let mut value = Vec::new();
    avro::encode_event(event, &mut value);
    value
}
