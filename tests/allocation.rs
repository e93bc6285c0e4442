//! Memory that decoding allocates: none for a heartbeat, and never more than in proportion to the real number of bytes, whatever
//! length a record claims. What an interval that holds takes.

use rollcall::audit::export::intervals::OpenIntervals;
use rollcall::presence::change::{Cause, Change, DeviceChange, OutputId};
use rollcall::presence::event::{ConnRef, DeviceRef, Event};
use rollcall::presence::{Conn, Epoch, LogTime, Offset, Partition, Status};
use rollcall::schema::Malformed;
use rollcall::schema::avro::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static REQUESTED_BYTES: Cell<usize> = const { Cell::new(0) };
    static HELD_BYTES: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    // When a thread ends its counter may be gone already.
    let _ = REQUESTED_BYTES.try_with(|requested| requested.set(requested.get().saturating_add(bytes)));
    hold(bytes.cast_signed());
}

fn hold(bytes: isize) {
    let _ = HELD_BYTES.try_with(|held| held.set(held.get().wrapping_add(bytes)));
}

// Safety: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        hold(-layout.size().cast_signed());
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        hold(-layout.size().cast_signed());
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn requested_by(decode: impl FnOnce()) -> usize {
    let before = REQUESTED_BYTES.get();
    decode();
    REQUESTED_BYTES.get() - before
}

fn heartbeat() -> Vec<u8> {
    let mut value = Vec::new();
    let event = Event::Heartbeat {
        who: DeviceRef {
            user: "user-123456".into(),
            platform: "android".into(),
            device: "device-1".into(),
        },
        via: ConnRef {
            gateway: "gateway-1".into(),
            epoch: Epoch(12),
            conn: Conn(123_456),
        },
    };
    encode_event(&event, &mut value);
    value
}

#[test]
fn a_heartbeat_is_decoded_without_allocating() {
    let value = heartbeat();
    assert_eq!(requested_by(|| assert!(decode_event(&value).is_ok())), 0);
}

/// What docs/lake.md and docs/analytics.md say about memory.
#[test]
fn an_interval_that_holds_takes_as_much_memory_as_the_documents_say() {
    // Just before and just after a table grows.
    for users in [57_000_u64, 58_000] {
        let before = HELD_BYTES.get();
        let mut open = OpenIntervals::new(Partition(0));
        for number in 0..users {
            let device = DeviceChange {
                platform: "android".into(),
                device: "device-1".into(),
                gateway: "gateway-1".into(),
                before: Status::Offline,
                after: Status::Online,
            };
            open.apply(&Change {
                id: OutputId {
                    partition: Partition(0),
                    offset: Offset(number),
                    index: 0,
                },
                seq: number + 1,
                user: format!("user-{number:06}").into(),
                version: 1,
                at: LogTime(1),
                logged_at: LogTime(1),
                cause: Cause::Login,
                before: Status::Offline,
                after: Status::Online,
                devices: vec![device],
                custom_status: None,
                evidence: Offset(number),
                rehearsal: None,
            });
        }
        let held = (HELD_BYTES.get() - before).cast_unsigned() as u64;
        let each = held / (2 * users);
        println!("{each} bytes of {users} users and as many devices");
        assert!((100..250).contains(&each), "{each} bytes");
    }
}

#[test]
fn a_claimed_length_takes_nothing_that_the_bytes_do_not_bear_out() {
    /// -1 << 40 and 1 << 40 as Avro longs, and a block's count of the same size.
    const CLAIMS: [&[u8]; 3] = [
        &[0x80; 5],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0x3f],
        &[0x80, 0x80, 0x80, 0x80, 0x80, 0x40],
    ];
    let value = heartbeat();
    for claim in CLAIMS {
        for at in 10..value.len() {
            let damaged = [&value[..at], claim, &value[at..]].concat();
            let requested = requested_by(|| drop(decode_event(&damaged)));
            assert!(requested < 16 << 10, "{requested} bytes for a claim at {at}");
        }
    }
}

struct Foreign(WriterSchema);

impl WriterSchemas for Foreign {
    fn by_id(&self, _: u32) -> Result<WriterSchema, Malformed> {
        Ok(self.0.clone())
    }
}

#[test]
fn a_claimed_length_under_a_foreign_schema_is_bounded_too() {
    let schema = r#"{"type":"record","name":"Event","fields":[
        {"name":"many","type":{"type":"array","items":["null","string"]}},{"name":"type","type":"string"}]}"#;
    let foreign = Foreign(WriterSchema::parse(schema).unwrap());
    for claim in [100_000_u32, 10_000_000, i32::MAX as u32] {
        let mut value = Vec::new();
        frame_with_id(1, &mut value);
        let mut zigzag = u64::from(claim) << 1;
        while zigzag >= 0x80 {
            value.push(zigzag as u8 | 0x80);
            zigzag >>= 7;
        }
        value.push(zigzag as u8);
        let requested = requested_by(|| assert!(decode_event_with(&value, &foreign).is_err()));
        assert!(requested < 16 << 10, "{requested} bytes for a claim of {claim}");
    }
}

fn decoded_with(schema: &str, datum: &[u8]) -> (Result<(), String>, usize) {
    let foreign = Foreign(WriterSchema::parse(schema).expect("the schema is valid"));
    let mut value = Vec::new();
    frame_with_id(1, &mut value);
    value.extend_from_slice(datum);
    let mut result = Ok(());
    let requested = requested_by(|| {
        result = decode_event_with(&value, &foreign)
            .map(drop)
            .map_err(|malformed| malformed.to_string());
    });
    (result, requested)
}

/// Every publisher may register a schema, so no schema may turn the bytes of a record into much more memory.
#[test]
fn no_foreign_schema_makes_a_record_take_much_memory() {
    let fields = |count: usize, name: &str, kind: &str| {
        let fields: Vec<String> = (0..count)
            .map(|n| format!(r#"{{"name":"{name}{n}","type":{kind}}}"#))
            .collect();
        fields.join(",")
    };
    let items = |fields: &str| {
        format!(
            r#"{{"type":"record","name":"E","fields":[{{"name":"type","type":"string"}},
            {{"name":"x","type":{{"type":"array","items":{{"type":"record","name":"I","fields":[{fields}]}}}}}}]}}"#
        )
    };
    // An array of 10,000 items of one byte each.
    let datum = [&b"\x08tick\xa0\x9c\x01"[..], &[0; 10_001]].concat();
    let nulls = format!(r#"{},{{"name":"one","type":"int"}}"#, fields(900, "null", r#""null""#));
    let unions = fields(1, "one", r#"["null","string"]"#);
    let long_name = fields(1, &"name".repeat(25_000), r#""int""#);
    for schema in [items(&nulls), items(&unions), items(&long_name)] {
        let (result, requested) = decoded_with(&schema, &datum);
        assert_eq!(result, Ok(()));
        assert!(requested < 64 << 10, "{requested} bytes");
    }
    // Symbols that are much longer than the byte that stands for them.
    let symbol = "s".repeat(100_000);
    let beats = format!(
        r#"{{"type":"record","name":"E","fields":[{{"name":"type","type":"string"}},{{"name":"beats","type":{{"type":"array",
        "items":{{"type":"record","name":"B","fields":[{{"name":"user","type":{{"type":"enum","name":"U","symbols":["{symbol}"]}}}},
        {{"name":"platform","type":"string"}},{{"name":"device","type":"string"}},{{"name":"conn","type":"int"}}]}}}}}}]}}"#
    );
    let datum = [&b"\x14heartbeats\xa0\x9c\x01"[..], &[0; 40_001]].concat();
    let (result, requested) = decoded_with(&beats, &datum);
    let error = result.expect_err("it is too long");
    assert!(error.contains("beats[7].user is a symbol of 100000 bytes"), "{error}");
    assert!(requested < 4 << 20, "{requested} bytes");
    // Items that take no bytes are never visited, however many there are.
    let empty = r#"{"type":"record","name":"E","fields":[{"name":"type","type":"string"},
        {"name":"x","type":{"type":"array","items":"null"}}]}"#;
    let datum = [
        &b"\x08tick"[..],
        &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0],
    ]
    .concat();
    let (result, requested) = decoded_with(empty, &datum);
    assert_eq!(result, Ok(()));
    assert!(requested < 1_024, "{requested} bytes");
}

#[test]
fn a_schema_takes_memory_in_proportion_to_its_text() {
    let list = |one: &dyn Fn(usize) -> String| (0..3_000).map(one).collect::<Vec<_>>().join(",");
    let record = |fields: String| format!(r#"{{"type":"record","name":"R","fields":[{fields}]}}"#);
    let field = |name: usize, of: &str| format!(r#"{{"name":"{name}","type":{of}}}"#);
    let schemas = [
        record(list(&|name| field(name, r#""int""#))),
        record(list(&|name| field(name, r#""null""#))),
        record(list(&|name| field(name, r#"["null","int"]"#))),
        record(list(&|name| field(name, r#"{"type":"array","items":"int"}"#))),
        record(list(&|name| {
            field(name, &format!(r#"{{"type":"fixed","name":"F{name}","size":1}}"#))
        })),
        record(list(&|name| {
            field(name, &record(String::new()).replace('R', &format!("S{name}")))
        })),
        record(field(0, &format!("[{}]", list(&|_| r#""int""#.to_owned())))),
        record(field(
            0,
            &format!(
                r#"{{"type":"enum","name":"E","symbols":[{}]}}"#,
                list(&|at| format!("\"{at}\""))
            ),
        )),
    ];
    for schema in schemas {
        let before = HELD_BYTES.get();
        let parsed = WriterSchema::parse(&schema).expect("it can be used");
        let kept = (HELD_BYTES.get() - before).cast_unsigned();
        drop(parsed);
        let begin = &schema[..80];
        assert!(
            kept <= 40 * schema.len(),
            "{kept} bytes for {} of {begin}",
            schema.len()
        );
    }
}
