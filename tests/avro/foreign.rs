//! Events written with other schemas, whose bytes have the same meaning under other names.

use super::{Test, heartbeat, oracle, random};
use apache_avro::Schema as AvroSchema;
use apache_avro::types::Value;
use proptest::prelude::*;
use rollcall::presence::event::{Event, Intent};
use rollcall::schema::Malformed;
use rollcall::schema::avro::*;
use serde_json::{Value as Json, json};

/// Every logical type that the specification or the library knows, and an unknown one.
const LOGICAL_TYPES: [&str; 15] = [
    "decimal",
    "big-decimal",
    "uuid",
    "date",
    "time-millis",
    "time-micros",
    "timestamp-millis",
    "timestamp-micros",
    "timestamp-nanos",
    "local-timestamp-millis",
    "local-timestamp-micros",
    "local-timestamp-nanos",
    "duration",
    "io.debezium.time.Date",
    "nothing that anybody knows",
];

/// A registry with one schema, under every name.
struct One(Result<WriterSchema, String>);

impl One {
    fn of(json: &Json) -> One {
        One(WriterSchema::parse(&json.to_string()).map_err(|error| error.to_string()))
    }

    fn schema(&self) -> Result<WriterSchema, Malformed> {
        self.0.clone().map_err(Malformed::invalid)
    }
}

impl WriterSchemas for One {
    fn by_id(&self, _: u32) -> Result<WriterSchema, Malformed> {
        self.schema()
    }

    fn by_guid(&self, _: Guid) -> Result<WriterSchema, Malformed> {
        self.schema()
    }
}

/// The event in a datum that was written with `bare`, for a reader that gets the schema `claimed`.
fn read(claimed: &Json, bare: &Json, value: Value) -> Result<Event<'static>, String> {
    let bare = AvroSchema::parse(bare).expect("the bare schema is valid");
    let mut framed = Vec::new();
    frame_with_id(1, &mut framed);
    framed.extend(oracle::write(&bare, value));
    let event = decode_event_with(&framed, &One::of(claimed)).map_err(|malformed| malformed.to_string())?;
    // The same in its other form.
    assert_eq!(
        decode_event_of(Some((SCHEMA_HEADERS[0], &[1; 17])), &framed[5..], &One::of(claimed)),
        Ok(event.clone())
    );
    let prefixed = [&[1; 17], &framed[5..]].concat();
    assert_eq!(decode_event_with(&prefixed, &One::of(claimed)), Ok(event.clone()));
    let mut ours = Vec::new();
    encode_event(&event, &mut ours);
    let owned = decode_event(Box::leak(ours.into_boxed_slice()));
    Ok(owned.expect("ours is read"))
}

fn record(fields: &[(Json, Value)]) -> (Json, Value) {
    let schema =
        json!({"type": "record", "name": "E", "fields": fields.iter().map(|field| &field.0).collect::<Vec<_>>()});
    let named =
        |(schema, value): &(Json, Value)| (schema["name"].as_str().unwrap_or_default().to_owned(), value.clone());
    (schema, Value::Record(fields.iter().map(named).collect()))
}

fn connect() -> Event<'static> {
    let Event::Heartbeat { who, via } = heartbeat() else {
        unreachable!()
    };
    Event::Connect {
        who,
        via,
        intent: Intent::Login,
        client: Some("app 1.2".into()),
        auth_at: None,
    }
}

fn fields_of(value: Value) -> Vec<(String, Value)> {
    let Value::Record(fields) = value else { unreachable!() };
    fields
}

fn bare_value(value: Value) -> Value {
    match value {
        Value::Union(_, inner) => *inner,
        other => other,
    }
}

#[test]
fn no_logical_type_on_any_field_changes_an_event() {
    for logical in LOGICAL_TYPES {
        for order in [["null", "TYPE"], ["TYPE", "null"], ["TYPE", "TYPE"]] {
            let (mut claimed, mut bare, mut values) = (Vec::new(), Vec::new(), Vec::new());
            for (name, value) in fields_of(oracle::event(&connect())) {
                let value = bare_value(value);
                let kind = match value {
                    Value::Long(_) => "long",
                    Value::String(_) => "string",
                    _ => continue,
                };
                let annotated = json!({"type": kind, "logicalType": logical, "precision": 4, "scale": 9, "x": [1]});
                let of = |kind: &Json| match order {
                    ["TYPE", "TYPE"] => kind.clone(),
                    ["null", _] => json!(["null", kind]),
                    _ => json!([kind, "null"]),
                };
                claimed.push(
                    json!({"name": name, "type": of(&annotated), "logicalType": logical, "default": {"not": "valid"}}),
                );
                bare.push(json!({"name": name, "type": of(&json!(kind))}));
                let value = match order {
                    ["TYPE", "TYPE"] => value,
                    [first, _] => Value::Union(u32::from(first == "null"), Box::new(value)),
                };
                values.push((name, value));
            }
            let claimed = json!({"type": "record", "name": "é-x.Event", "fields": claimed, "logicalType": logical});
            let bare = json!({"type": "record", "name": "E", "fields": bare});
            assert_eq!(
                read(&claimed, &bare, Value::Record(values)),
                Ok(connect()),
                "{logical} {order:?}"
            );
        }
    }
}

#[test]
fn our_own_schema_with_logical_types_is_our_own() {
    for logical in LOGICAL_TYPES {
        let mut schema: Json = serde_json::from_str(Schema::Event.json()).expect("JSON");
        for field in schema["fields"].as_array_mut().expect("fields") {
            if field["type"] == json!(["null", "long"]) {
                field["type"][1] = json!({"type": "long", "logicalType": logical});
            }
            if field["type"] == json!(["null", "string"]) {
                field["type"][1] = json!({"type": "string", "logicalType": logical});
            }
        }
        let mut value = Vec::new();
        frame_with_id(1, &mut value);
        write_event_datum(&connect(), &mut value);
        assert_eq!(decode_event_with(&value, &One::of(&schema)), Ok(connect()), "{logical}");
    }
}

/// A source of choices.
struct Choices(u64);

impl Choices {
    fn of(&mut self, most: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % most
    }

    fn one<'c, T: ?Sized>(&mut self, among: &[&'c T]) -> &'c T {
        among[self.of(among.len() as u64) as usize]
    }
}

/// A schema that a publisher may use for this value, and the part of it that determines the bytes.
fn claimed_and_bare(value: Value, names: &mut u32, choices: &mut Choices) -> (Json, Json, Value) {
    let logical = choices.one(&LOGICAL_TYPES);
    match value {
        Value::String(text) => match choices.of(4) {
            0 => (json!("string"), json!("string"), Value::String(text)),
            1 => (json!("bytes"), json!("bytes"), Value::Bytes(text.into_bytes())),
            2 => {
                *names += 1;
                let claimed = json!({"type": "enum", "name": format!("Kind{names}"), "namespace": "x.y",
                                  "symbols": ["another", text], "default": "another", "aliases": ["Z"], "doc": "d"});
                let bare = json!({"type": "enum", "name": format!("Kind{names}"), "symbols": ["another", "this"]});
                (claimed, bare, Value::Enum(1, "this".to_owned()))
            }
            _ => (
                json!({"type": "string", "logicalType": logical, "avro.java.string": "String"}),
                json!("string"),
                Value::String(text),
            ),
        },
        Value::Long(number) => match i32::try_from(number) {
            Ok(number) if choices.of(2) == 0 => (
                json!({"type": "int", "logicalType": logical}),
                json!("int"),
                Value::Int(number),
            ),
            _ => (
                json!({"type": "long", "logicalType": logical}),
                json!("long"),
                Value::Long(number),
            ),
        },
        Value::Int(number) => match choices.of(2) {
            0 => (
                json!({"type": "int", "logicalType": logical}),
                json!("int"),
                Value::Int(number),
            ),
            _ => (json!("long"), json!("long"), Value::Long(number.into())),
        },
        Value::Bytes(bytes) if choices.of(2) == 0 => (
            json!({"type": "bytes", "logicalType": logical}),
            json!("bytes"),
            Value::Bytes(bytes),
        ),
        Value::Bytes(bytes) => {
            *names += 1;
            let fixed = json!({"type": "fixed", "name": format!("Fixed{names}"), "size": bytes.len()});
            (fixed.clone(), fixed, Value::Fixed(bytes.len(), bytes))
        }
        Value::Array(items) => {
            // All items are of one type, so only the names of their fields change.
            let beat = |name: &dyn Fn(&str) -> String| {
                let fields = [
                    ("user", "string"),
                    ("platform", "string"),
                    ("device", "string"),
                    ("conn", "long"),
                ];
                let fields = fields.map(|(field, kind)| json!({"name": name(field), "type": kind}));
                json!({"type": "array", "items": {"type": "record", "name": "Beat", "fields": fields}})
            };
            (
                beat(&|name| name.to_uppercase()),
                beat(&|name| name.to_owned()),
                Value::Array(items),
            )
        }
        other => panic!("{other:?} is in no event"),
    }
}

/// `auth_at` as `authAt`.
fn camel(name: &str) -> String {
    let mut parts = name.split('_');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |all, part| all + &part[..1].to_uppercase() + &part[1..])
}

/// The value in a publisher's schema: the schema, the part of it that determines the bytes, and the value to write.
fn somebodys(event: &Event<'_>, choices: &mut Choices) -> (Json, Json, Value) {
    let (mut claimed, mut bare, mut values, mut names) = (Vec::new(), Vec::new(), Vec::new(), 0);
    let mut add = |claimed_field: Json, bare_type: Json, value: Value, at: u64| {
        let name = format!("f{}", claimed.len());
        let at = at as usize % (claimed.len() + 1);
        claimed.insert(at, claimed_field);
        bare.insert(at, json!({"name": name, "type": bare_type}));
        values.insert(at, (name, value));
    };
    for (name, value) in fields_of(oracle::event(event)) {
        let name = match choices.of(5) {
            0 => name.to_uppercase(),
            1 => name[..1].to_uppercase() + &name[1..],
            2 => camel(&name),
            3 => name.replace('_', "-"),
            _ => name,
        };
        let value = bare_value(value);
        if value == Value::Null {
            if choices.of(2) == 0 {
                let claimed = json!({"name": name, "type": ["null", {"type": "string", "logicalType": "uuid"}]});
                add(
                    claimed,
                    json!(["null", "string"]),
                    Value::Union(0, Box::new(value)),
                    choices.of(100),
                );
            }
            continue;
        }
        let (claimed_type, bare_type, value) = claimed_and_bare(value, &mut names, choices);
        let (claimed_type, bare_type, value) = match choices.of(4) {
            0 => (
                json!(["null", claimed_type]),
                json!(["null", bare_type]),
                Value::Union(1, Box::new(value)),
            ),
            1 => (
                json!([claimed_type, "null"]),
                json!([bare_type, "null"]),
                Value::Union(0, Box::new(value)),
            ),
            2 => (
                json!(["boolean", "null", claimed_type]),
                json!(["boolean", "null", bare_type]),
                Value::Union(2, Box::new(value)),
            ),
            _ => (claimed_type, bare_type, value),
        };
        let claimed = json!({"name": name, "type": claimed_type, "doc": "d", "order": "ignore", "default": choices.of(2),
                          "aliases": ["user", "type"], "connect.parameters": {"a": "b"}});
        add(claimed, bare_type, value, choices.of(100));
    }
    for number in 0..choices.of(3) {
        let extra = match choices.of(3) {
            0 => (
                json!({"type": "bytes", "logicalType": "decimal", "precision": 0, "scale": -1}),
                json!("bytes"),
                Value::Bytes(vec![0xff]),
            ),
            1 => (
                json!({"type": "fixed", "name": format!("größe.F-{number}"), "size": 16, "logicalType": "uuid"}),
                json!({"type": "fixed", "name": format!("F{number}"), "size": 16}),
                Value::Fixed(16, vec![0xff; 16]),
            ),
            _ => (
                json!({"type": "int", "logicalType": "date"}),
                json!("int"),
                Value::Int(i32::MAX),
            ),
        };
        add(
            json!({"name": format!("größe-{number}"), "type": extra.0}),
            extra.1,
            extra.2,
            choices.of(100),
        );
    }
    (
        json!({"type": "record", "name": "KsqlDataSourceSchema", "namespace": "io.confluent.ksql", "fields": claimed}),
        json!({"type": "record", "name": "E", "fields": bare}),
        Value::Record(values),
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn an_event_is_the_same_whatever_its_schema_says_beside_how_the_bytes_lie(event in random::event(), choices in any::<u64>()) {
        let (claimed, bare, value) = somebodys(&event, &mut Choices(choices));
        prop_assert_eq!(read(&claimed, &bare, value), Ok(event), "{}", claimed);
    }
}

/// A heartbeat in which one field is another.
fn heartbeat_with(name: &str, kind: Json, value: Value) -> Result<Event<'static>, String> {
    let text = |name: &str, text: &str| (json!({"name": name, "type": "string"}), Value::String(text.to_owned()));
    let long = |name: &str, number: i64| (json!({"name": name, "type": "long"}), Value::Long(number));
    let mut fields = vec![
        text("type", "heartbeat"),
        text("user", "alice"),
        text("platform", "web"),
        text("device", "tab-1"),
        text("gateway", "g1"),
        long("epoch", 3),
        long("conn", 70_000),
    ];
    let field = (json!({"name": name, "type": kind}), value);
    match fields.iter_mut().find(|(schema, _)| schema["name"] == name) {
        Some(known) => *known = field,
        None => fields.push(field),
    }
    let (schema, value) = record(&fields);
    read(&schema, &schema, value)
}

#[test]
fn what_is_something_else_is_refused_with_a_sentence_that_names_the_field() {
    let fixed = json!({"type": "fixed", "name": "F", "size": 16});
    let refused: [(&str, Json, Value, &str); 11] = [
        (
            "device",
            fixed,
            Value::Fixed(16, vec![0; 16]),
            "device is a fixed of 16 bytes, such as a binary UUID; expected text",
        ),
        (
            "device",
            json!("bytes"),
            Value::Bytes(vec![0xff]),
            "device is bytes that are not UTF-8; expected text",
        ),
        (
            "conn",
            json!("string"),
            Value::String("7".to_owned()),
            "conn is text; expected a whole number",
        ),
        (
            "epoch",
            json!("double"),
            Value::Double(3.0),
            "epoch is a floating-point number; expected a whole number",
        ),
        (
            "epoch",
            json!("bytes"),
            Value::Bytes(vec![3]),
            "epoch is bytes, such as a decimal; expected a whole number, written as int or long",
        ),
        ("conn", json!("null"), Value::Null, "conn is missing"),
        (
            "type",
            json!({"type": "enum", "name": "K", "symbols": ["heart_beat"]}),
            Value::Enum(0, "heart_beat".to_owned()),
            r#"named "heart_beat""#,
        ),
        (
            "user",
            json!({"type": "array", "items": "string"}),
            Value::Array(vec![]),
            "user is an array; expected text",
        ),
        (
            "type",
            json!(["null", "string"]),
            Value::Union(0, Box::new(Value::Null)),
            "type is null; expected text",
        ),
        (
            "beats",
            json!("string"),
            Value::String(String::new()),
            "beats is text; expected an array",
        ),
        (
            "TEXT",
            json!("boolean"),
            Value::Boolean(true),
            "text (written as TEXT) is a boolean; expected text",
        ),
    ];
    for (name, kind, value, expected) in refused {
        let error = heartbeat_with(name, kind, value).expect_err(expected);
        assert!(error.contains(expected), "{error}");
    }
    // The same text as ours is taken, in whichever type it comes.
    assert_eq!(
        heartbeat_with("device", json!("bytes"), Value::Bytes(b"tab-1".to_vec())),
        Ok(heartbeat())
    );
    assert_eq!(
        heartbeat_with("Trace", json!("boolean"), Value::Boolean(true)),
        Ok(heartbeat())
    );
}

#[test]
fn names_in_other_capitals_are_taken_where_one_alone_can_be_meant() {
    // With ours there, what differs in capitals is somebody's own.
    let more = heartbeat_with("USER", json!("string"), Value::String("bob".to_owned()));
    assert_eq!(more, Ok(heartbeat()));
    let two = [
        (
            json!({"name": "TYPE", "type": "string"}),
            Value::String("tick".to_owned()),
        ),
        (
            json!({"name": "Type", "type": "string"}),
            Value::String("tick".to_owned()),
        ),
    ];
    let (schema, value) = record(&two);
    let error = read(&schema, &schema, value).expect_err("both could be meant");
    assert!(
        error.contains(r#"no field "type", and both "TYPE" and "Type" could be meant"#),
        "{error}"
    );
    let (schema, value) = record(&two[..1]);
    assert_eq!(read(&schema, &schema, value), Ok(Event::Tick));
    let (schema, value) = record(&[]);
    let error = read(&schema, &schema, value).expect_err("nothing is there");
    assert!(error.contains(r#"its schema has no field "type""#), "{error}");
}

#[test]
fn connection_numbers_in_text_are_refused_since_any_text_would_be_numbers() {
    let alive = |kind: &str, conns: Value| {
        let text = |name: &str, text: &str| (json!({"name": name, "type": "string"}), Value::String(text.to_owned()));
        let epoch = (json!({"name": "epoch", "type": "long"}), Value::Long(1));
        let conns = (json!({"name": "conns", "type": kind}), conns);
        let (schema, value) = record(&[text("type", "alive"), text("gateway", "g1"), epoch, conns]);
        read(&schema, &schema, value)
    };
    let read = alive("bytes", Value::Bytes(vec![5, 2])).expect("two numbers");
    assert!(matches!(read, Event::Alive { .. }), "{read:?}");
    let error = alive("string", Value::String("AQID".to_owned())).expect_err("it is base64, perhaps");
    assert!(error.contains("conns is text; expected bytes"), "{error}");
}

#[test]
fn a_schema_that_is_no_record_says_so_and_a_union_of_records_is_what_is_in_it() {
    let schema = json!("string");
    let error = read(&schema, &schema, Value::String("tick".to_owned())).expect_err("it is text");
    assert!(error.contains("the value is text; expected a record"), "{error}");
    let tick = json!({"type": "record", "name": "A", "fields": [{"name": "type", "type": "string"}]});
    let schema = json!([{"type": "record", "name": "B", "fields": []}, tick]);
    let value = Value::Record(vec![("type".to_owned(), Value::String("tick".to_owned()))]);
    assert_eq!(
        read(&schema, &schema, Value::Union(1, Box::new(value))),
        Ok(Event::Tick)
    );
}

#[test]
fn what_a_header_names_is_read_and_a_header_of_another_value_changes_nothing() {
    let mut value = Vec::new();
    write_event_datum(&heartbeat(), &mut value);
    let id = [0, 0, 0, 0, 3];
    assert_eq!(
        decode_event_of(Some((SCHEMA_HEADERS[0], &id)), &value, &Test),
        Ok(heartbeat())
    );
    let guid = decode_event_of(Some((SCHEMA_HEADERS[0], &[1; 17])), &value, &Test)
        .expect_err("not known")
        .to_string();
    assert_eq!(
        guid,
        "the header __value_schema_id names the schema, but no schema with the GUID \
         01010101-0101-0101-0101-010101010101 is known"
    );
    let unknown = decode_event_of(Some((SCHEMA_HEADERS[0], &[0, 0, 0, 0, 99])), &value, &Test)
        .expect_err("not known")
        .to_string();
    assert!(
        unknown.contains("__value_schema_id") && unknown.contains("id 99"),
        "{unknown}"
    );
    let mut ours = Vec::new();
    encode_event(&heartbeat(), &mut ours);
    assert_eq!(
        decode_event_of(Some((SCHEMA_HEADERS[0], &[1; 17])), &ours, &Test),
        Ok(heartbeat())
    );
    // Bytes that are not of our schema, said to be so by a header.
    assert!(decode_event_of(Some((SCHEMA_HEADERS[0], &id)), b"{}", &Test).is_err());
}

#[test]
fn a_beat_that_is_refused_is_named_by_its_number_and_by_the_writers_name() {
    let beat = |conn: Json| {
        let fields = [
            ("USER", json!("string")),
            ("PLATFORM", json!("string")),
            ("device", json!("string")),
            ("CONN", conn),
        ];
        let fields = fields.map(|(name, kind)| json!({"name": name, "type": kind}));
        json!({"type": "array", "items": ["null", {"type": "record", "name": "B", "fields": fields}]})
    };
    let value = |conn: Value| {
        let text = |name: &str| (name.to_owned(), Value::String("x".to_owned()));
        let fields = vec![
            text("USER"),
            text("PLATFORM"),
            text("device"),
            ("CONN".to_owned(), conn),
        ];
        Value::Union(1, Box::new(Value::Record(fields)))
    };
    let heartbeats = |kind: Json, beats: Vec<Value>| {
        let (schema, value) = record(&[
            (
                json!({"name": "Type", "type": "string"}),
                Value::String("heartbeats".to_owned()),
            ),
            (
                json!({"name": "gateWay", "type": "string"}),
                Value::String("g1".to_owned()),
            ),
            (json!({"name": "EPOCH", "type": "int"}), Value::Int(3)),
            (json!({"name": "Beats", "type": kind}), Value::Array(beats)),
        ]);
        read(&schema, &schema, value)
    };
    let read = heartbeats(beat(json!("int")), vec![value(Value::Int(1)), value(Value::Int(2))]);
    assert!(matches!(read, Ok(Event::Heartbeats { beats, .. }) if beats.len() == 2));
    let beats = vec![value(Value::String("1".to_owned()))];
    let error = heartbeats(beat(json!("string")), beats).expect_err("conn is text");
    assert!(
        error.contains("beats[0].conn (written as CONN) is text; expected a whole number"),
        "{error}"
    );
    let beats = vec![value(Value::Int(1)), Value::Union(0, Box::new(Value::Null))];
    let error = heartbeats(beat(json!("int")), beats).expect_err("a beat is null");
    assert!(error.contains("beats[1] is null; expected a record"), "{error}");
}

#[test]
fn bytes_that_are_not_of_their_schema_are_refused_with_the_field_where_they_end() {
    let schema = json!({"type": "record", "name": "E", "fields": [
        {"name": "type", "type": "string"}, {"name": "flag", "type": "boolean"},
        {"name": "kind", "type": {"type": "enum", "name": "K", "symbols": ["a"]}},
        {"name": "either", "type": ["null", "int"]}, {"name": "many", "type": {"type": "map", "values": "bytes"}}]});
    let tick = b"\x08tick".to_vec();
    let error = |rest: &[u8]| {
        let value = [&[0, 0, 0, 0, 1], &tick[..], rest].concat();
        let error = decode_event_with(&value, &One::of(&schema))
            .expect_err("it is damaged")
            .to_string();
        error
            .strip_prefix("unreadable with its schema: ")
            .expect("the schema is blamed")
            .to_owned()
    };
    for (rest, expected) in [
        (&[][..], "flag: the bytes end too early"),
        (&[2], "flag: a boolean is neither 0 nor 1"),
        (&[0, 2], "kind: its enum has fewer symbols"),
        (&[0, 0, 4], "either: its union has fewer types"),
        (
            &[0, 0, 2, 0x80, 0x80, 0x80, 0x80, 0x10],
            "either: an int has more than 32 bits",
        ),
        (&[0, 0, 0, 2, 1], "many: a length is negative"),
        (&[0, 0, 0, 2, 2, 0xff, 0], "many: its text is not UTF-8"),
        (&[0, 0, 0, 0, 7], "1 bytes too many at the end"),
    ] {
        assert_eq!(error(rest), expected);
    }
    let good = [&[0, 0, 0, 0, 1], &tick[..], &[0, 0, 0, 0]].concat();
    assert_eq!(decode_event_with(&good, &One::of(&schema)), Ok(Event::Tick));
}

#[test]
fn how_other_serializers_frame_a_value_is_said() {
    let apicurio = [&[0; 8][..], &[42], b"\x08tick"].concat();
    let error = decode_event_with(&apicurio, &Test)
        .expect_err("there is no id 0")
        .to_string();
    assert!(
        error.contains("id 0 is known") && error.contains("as-confluent=true"),
        "{error}"
    );
}
