//! Compares the Avro layer with `apache-avro`, in place of other programs that read the topics, and with golden bytes, in place
//! of the records that are already in them.

#[path = "bless/mod.rs"]
mod bless;
#[path = "avro/bounds.rs"]
mod bounds;
#[path = "avro/foreign.rs"]
mod foreign;
#[path = "avro/golden.rs"]
mod golden;
#[path = "avro/heartbeat_bytes.rs"]
mod heartbeat_bytes;
#[path = "avro/oracle.rs"]
mod oracle;
#[path = "avro/random.rs"]
mod random;

use apache_avro::Schema as AvroSchema;
use apache_avro::types::Value;
use proptest::prelude::*;
use rollcall::presence::event::{ConnRef, DeviceRef, Event};
use rollcall::presence::{Conn, Epoch};
use rollcall::schema::Malformed;
use rollcall::schema::avro::*;
use rollcall::schema::policy::parse_policy;
use std::borrow::Cow;
use std::sync::LazyLock;

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn events_are_written_and_read_as_by_apache_avro(event in random::event()) {
        let (mut value, mut datum) = (Vec::new(), Vec::new());
        encode_event(&event, &mut value);
        write_event_datum(&event, &mut datum);
        oracle::agrees(Schema::Event, &value, &datum, oracle::event(&event));
        prop_assert_eq!(decode_event(&value), Ok(event));
    }

    #[test]
    fn changes_are_written_and_read_as_by_apache_avro(change in random::change()) {
        let (mut value, mut datum) = (Vec::new(), Vec::new());
        encode_change(&change, &mut value);
        write_change_datum(&change, &mut datum);
        oracle::agrees(Schema::Change, &value, &datum, oracle::change(&change));
        prop_assert_eq!(decode_change(&value), Ok(change));
    }

    #[test]
    fn kicks_are_written_and_read_as_by_apache_avro(kick in random::kick()) {
        let (mut value, mut datum) = (Vec::new(), Vec::new());
        encode_kick(&kick, &mut value);
        write_kick_datum(&kick, &mut datum);
        oracle::agrees(Schema::Kick, &value, &datum, oracle::kick(&kick));
        prop_assert_eq!(decode_kick(&value), Ok(kick));
    }

    #[test]
    fn user_states_are_written_and_read_as_by_apache_avro(state in random::user_state()) {
        let (mut value, mut datum) = (Vec::new(), Vec::new());
        encode_user_state(&state, &mut value);
        write_user_state_datum(&state, &mut datum);
        oracle::agrees(Schema::UserState, &value, &datum, oracle::user_state(&state));
        prop_assert_eq!(decode_user_state(&value), Ok(state));
    }

    #[test]
    fn quarantined_records_are_written_and_read_as_by_apache_avro(quarantined in random::quarantined()) {
        let (mut value, mut datum) = (Vec::new(), Vec::new());
        encode_quarantined(&quarantined, &mut value);
        write_quarantined_datum(&quarantined, &mut datum);
        oracle::agrees(Schema::Quarantined, &value, &datum, oracle::quarantined(&quarantined));
        prop_assert_eq!(decode_quarantined(&value), Ok(quarantined));
    }

    #[test]
    fn incidents_are_written_and_read_as_by_apache_avro(incident in random::incident()) {
        let (mut value, mut datum) = (Vec::new(), Vec::new());
        encode_incident(&incident, &mut value);
        write_incident_datum(&incident, &mut datum);
        oracle::agrees(Schema::Incident, &value, &datum, oracle::incident(&incident));
        prop_assert_eq!(decode_incident(&value), Ok(incident));
    }

    #[test]
    fn any_event_is_read_with_an_earlier_schema_and_with_one_of_a_registry(event in random::event()) {
        let schema = AvroSchema::parse_str(REORDERED).unwrap();
        let datum = oracle::write(&schema, reordered(oracle::event(&event)));
        for frame in [fingerprint_frame(&schema), vec![0, 0, 0, 0, REORDERED_ID as u8]] {
            let value = [frame, datum.clone()].concat();
            prop_assert_eq!(decode_event_with(&value, &Test), Ok(event.clone()));
        }
    }

    #[test]
    fn a_value_that_is_cut_short_or_goes_on_is_malformed_and_none_reads_it_otherwise(event in random::event(), cut in 1..1_000_usize) {
        let mut value = Vec::new();
        encode_event(&event, &mut value);
        let short = &value[..value.len() - cut % value.len()];
        prop_assert!(short.len() == value.len() || decode_event(short).is_err());
        value.push(0);
        prop_assert!(decode_event(&value).is_err());

        let schema = AvroSchema::parse_str(REORDERED).unwrap();
        let datum = oracle::write(&schema, reordered(oracle::event(&event)));
        let mut value = [fingerprint_frame(&schema), datum].concat();
        let short = &value[..value.len() - cut % value.len()];
        prop_assert!(short.len() == value.len() || decode_event_with(short, &Test).is_err());
        value.push(0);
        prop_assert!(decode_event_with(&value, &Test).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_096, ..ProptestConfig::default() })]

    #[test]
    fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        decode_everything(&bytes);
        for schema in Schema::ALL {
            let mut value = Vec::new();
            frame(schema, &mut value);
            value.extend_from_slice(&bytes);
            decode_everything(&value);
        }
        for id in 0..4 {
            let mut value = Vec::new();
            frame_with_id(id, &mut value);
            value.extend_from_slice(&bytes);
            decode_everything(&value);
        }
    }

    #[test]
    fn no_damaged_value_makes_a_decoder_panic(
        event in random::event(),
        change in random::change(),
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
    ) {
        let mut values = [Vec::new(), Vec::new(), Vec::new()];
        encode_event(&event, &mut values[0]);
        encode_change(&change, &mut values[1]);
        let schema = AvroSchema::parse_str(REORDERED).unwrap();
        values[2] = [fingerprint_frame(&schema), oracle::write(&schema, reordered(oracle::event(&event)))].concat();
        for value in &mut values {
            for (index, byte) in &damage {
                // The framing is left alone, or hardly anything would get past it.
                let at = 10 + index.index(value.len() - 10);
                value[at] = *byte;
            }
            decode_everything(value);
        }
    }
}

fn decode_everything(value: &[u8]) {
    let _ = decode_event_with(value, &Test);
    let _ = decode_change_with(value, &Test);
    let _ = decode_kick_with(value, &Test);
    let _ = decode_user_state_with(value, &Test);
    let _ = decode_quarantined_with(value, &Test);
    let _ = decode_incident_with(value, &Test);
}

/// An earlier event schema that never was: other order, a field that is gone, what is now nullable not so,
/// and an `int` where there is a `long` now. Every event can be written with it.
const REORDERED: &str = r#"{"type":"record","name":"Event","namespace":"rollcall","fields":[
    {"name":"gone","type":{"type":"map","values":["double","boolean"]}},
    {"name":"beats","type":["null",{"type":"array","items":{"type":"record","name":"Beat","fields":[
        {"name":"conn","type":"long"},{"name":"user","type":"string"},
        {"name":"device","type":"string"},{"name":"platform","type":"string"}]}}]},
    {"name":"ttl_ms","type":"int"},
    {"name":"policy","type":["string","null"]},{"name":"revision","type":["null","int"]},
    {"name":"conns","type":["bytes","null"]},{"name":"auth_at","type":["null","long"]},
    {"name":"conn","type":["long","null"]},{"name":"epoch","type":["null","long"]},
    {"name":"user","type":["null","string"]},{"name":"platform","type":["null","string"]},
    {"name":"device","type":["null","string"]},{"name":"gateway","type":["null","string"]},
    {"name":"intent","type":["null","string"]},{"name":"client","type":["null","string"]},
    {"name":"reason","type":["null","string"]},{"name":"text","type":["null","string"]},
    {"name":"type","type":"string"}]}"#;
const REORDERED_ID: u32 = 1;
/// A publisher's own schema, with only what it needs.
const HEARTBEAT_ONLY: &str = r#"{"type":"record","name":"Alive","namespace":"com.example","fields":[
    {"name":"type","type":"string"},{"name":"user","type":"string"},{"name":"platform","type":"string"},
    {"name":"device","type":"string"},{"name":"gateway","type":"string"},{"name":"epoch","type":"int"},
    {"name":"conn","type":"long"},{"name":"trace","type":["null","bytes"]}]}"#;
const HEARTBEAT_ONLY_ID: u32 = 2;
/// Our own event schema, as a registry knows it.
const OWN_ID: u32 = 3;

fn reordered(value: Value) -> Value {
    let Value::Record(fields) = value else { unreachable!() };
    let take = |name: &str| fields.iter().find(|(field, _)| field == name).unwrap().1.clone();
    let flip = |value: Value| match value {
        Value::Union(branch, inner) => Value::Union(1 - branch, inner),
        other => other,
    };
    let AvroSchema::Record(schema) = AvroSchema::parse_str(REORDERED).unwrap() else {
        unreachable!()
    };
    let field = |name: &str| match name {
        "gone" => Value::Map([("x".to_owned(), Value::Union(0, Box::new(Value::Double(0.5))))].into()),
        "ttl_ms" => match take(name) {
            Value::Union(1, inner) => match *inner {
                Value::Long(ttl_ms) => Value::Int(ttl_ms as i32),
                _ => unreachable!(),
            },
            _ => Value::Int(7),
        },
        "policy" | "conn" | "conns" => flip(take(name)),
        "beats" => match take(name) {
            Value::Union(1, beats) => {
                let Value::Array(beats) = *beats else { unreachable!() };
                let order = |beat| {
                    let Value::Record(mut fields) = beat else {
                        unreachable!()
                    };
                    fields
                        .sort_by_key(|(name, _)| ["conn", "user", "device", "platform"].iter().position(|n| n == name));
                    Value::Record(fields)
                };
                Value::Union(1, Box::new(Value::Array(beats.into_iter().map(order).collect())))
            }
            null => null,
        },
        _ => take(name),
    };
    Value::Record(
        schema
            .fields
            .iter()
            .map(|each| (each.name.clone(), field(&each.name)))
            .collect(),
    )
}

fn fingerprint_frame(schema: &AvroSchema) -> Vec<u8> {
    [vec![0xc3, 1], schema.fingerprint::<apache_avro::rabin::Rabin>().bytes].concat()
}

/// A registry that knows the schemas above, and REORDERED by its fingerprint too.
struct Test;

impl Test {
    fn schemas() -> &'static [WriterSchema; 3] {
        static SCHEMAS: LazyLock<[WriterSchema; 3]> = LazyLock::new(|| {
            [REORDERED, HEARTBEAT_ONLY, Schema::Event.json()].map(|json| WriterSchema::parse(json).unwrap())
        });
        &SCHEMAS
    }
}

impl WriterSchemas for Test {
    fn by_id(&self, id: u32) -> Result<WriterSchema, Malformed> {
        let [reordered, heartbeat_only, own] = Test::schemas();
        match id {
            REORDERED_ID => Ok(reordered.clone()),
            HEARTBEAT_ONLY_ID => Ok(heartbeat_only.clone()),
            OWN_ID => Ok(own.clone()),
            _ => Err(Malformed::UnknownSchemaId(id)),
        }
    }

    fn by_fingerprint(&self, fingerprint: u64) -> Option<WriterSchema> {
        static REORDERED_FRAME: LazyLock<Vec<u8>> =
            LazyLock::new(|| fingerprint_frame(&AvroSchema::parse_str(REORDERED).unwrap()));
        if REORDERED_FRAME.ends_with(&fingerprint.to_le_bytes()) {
            return Some(Test::schemas()[0].clone());
        }
        NoRegistry.by_fingerprint(fingerprint)
    }
}

fn heartbeat() -> Event<'static> {
    Event::Heartbeat {
        who: DeviceRef {
            user: "alice".into(),
            platform: "web".into(),
            device: "tab-1".into(),
        },
        via: ConnRef {
            gateway: "g1".into(),
            epoch: Epoch(3),
            conn: Conn(70_000),
        },
    }
}

#[test]
fn a_publisher_s_own_schema_needs_only_what_its_events_need() {
    let schema = AvroSchema::parse_str(HEARTBEAT_ONLY).unwrap();
    let text = |text: &str| Value::String(text.to_owned());
    let fields = [
        ("type", text("heartbeat")),
        ("user", text("alice")),
        ("platform", text("web")),
        ("device", text("tab-1")),
        ("gateway", text("g1")),
        ("epoch", Value::Int(3)),
        ("conn", Value::Long(70_000)),
        ("trace", Value::Union(1, Box::new(Value::Bytes(vec![1, 2])))),
    ];
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    let mut value = Vec::new();
    frame_with_id(HEARTBEAT_ONLY_ID, &mut value);
    value.extend(oracle::write(&schema, Value::Record(fields.to_vec())));
    assert_eq!(decode_event_with(&value, &Test), Ok(heartbeat()));
}

#[test]
fn our_own_schema_under_a_registry_s_id_takes_the_fast_way() {
    let mut value = Vec::new();
    frame_with_id(OWN_ID, &mut value);
    write_event_datum(&heartbeat(), &mut value);
    let event = decode_event_with(&value, &Test).unwrap();
    assert_eq!(event, heartbeat());
    let Event::Heartbeat { who, .. } = event else {
        unreachable!()
    };
    assert!(matches!(who.user, Cow::Borrowed(_)), "text is borrowed from the value");
}

#[test]
fn unknown_schemas_are_errors_of_their_own_kind() {
    let mut value = Vec::new();
    frame_with_id(77, &mut value);
    write_event_datum(&heartbeat(), &mut value);
    assert_eq!(decode_event(&value), Err(Malformed::UnknownSchemaId(77)));
    assert_eq!(decode_event_with(&value, &Test), Err(Malformed::UnknownSchemaId(77)));
    let value = [0xc3, 1, 8, 7, 6, 5, 4, 3, 2, 1, 0];
    assert_eq!(
        decode_event(&value),
        Err(Malformed::UnknownFingerprint(0x0102_0304_0506_0708))
    );
    let mut value = Vec::new();
    encode_event(&heartbeat(), &mut value);
    let error = decode_change(&value).unwrap_err().to_string();
    assert_eq!(error, "the value is of type Event; expected Change");
}

#[test]
fn a_policy_keeps_its_text_and_is_completed() {
    let document = r#" {"kicked_max": 3} "#;
    let policy = Box::new(parse_policy(document).unwrap());
    let event = Event::Policy {
        policy,
        document: document.into(),
    };
    let mut value = Vec::new();
    encode_event(&event, &mut value);
    assert_eq!(decode_event(&value), Ok(event));
}

#[test]
fn a_change_whose_id_says_another_place_is_malformed() {
    let mut change = golden::change();
    let mut value = Vec::new();
    encode_change(&change, &mut value);
    let id = format!("{}-{}-{}", change.id.partition, change.id.offset, change.id.index);
    change.id.index += 1;
    let at = value
        .windows(id.len())
        .position(|window| window == id.as_bytes())
        .unwrap();
    let other = id.replacen(|c: char| c.is_ascii_digit(), "9", 1);
    value[at..at + id.len()].copy_from_slice(other.as_bytes());
    let error = decode_change(&value).unwrap_err().to_string();
    assert!(
        error.starts_with("id and the fields partition and offset must agree"),
        "{error}"
    );
}
