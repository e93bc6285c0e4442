//! Memory that decoding allocates: none for a heartbeat, and never more than in proportion to the real number of bytes, whatever
//! length a record claims.

use rollcall::presence::event::{ConnRef, DeviceRef, Event};
use rollcall::presence::{Conn, Epoch};
use rollcall::schema::Malformed;
use rollcall::schema::avro::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

struct Counting;

thread_local! {
    static REQUESTED_BYTES: Cell<usize> = const { Cell::new(0) };
}

fn count(bytes: usize) {
    // When a thread ends its counter may be gone already.
    let _ = REQUESTED_BYTES.try_with(|requested| requested.set(requested.get().saturating_add(bytes)));
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
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
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
        assert!(requested < 17 << 20, "{requested} bytes for a claim of {claim}");
    }
}
