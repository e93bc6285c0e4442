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
        decode_event_of(Some(&[1; 17]), &framed[5..], &One::of(claimed)),
        Ok(event.clone())
    );
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
        let name = match choices.of(3) {
            0 => name.to_uppercase(),
            1 => name[..1].to_uppercase() + &name[1..],
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
    let refused: [(&str, Json, Value, &str); 8] = [
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
    assert_eq!(decode_event_of(Some(&id), &value, &Test), Ok(heartbeat()));
    let guid = decode_event_of(Some(&[1; 17]), &value, &Test)
        .expect_err("not known")
        .to_string();
    assert_eq!(
        guid,
        "no schema with the GUID 01010101-0101-0101-0101-010101010101 is known, which the header __value_schema_id names"
    );
    let unknown = decode_event_of(Some(&[0, 0, 0, 0, 99]), &value, &Test)
        .expect_err("not known")
        .to_string();
    assert!(
        unknown.contains("__value_schema_id") && unknown.contains("id 99"),
        "{unknown}"
    );
    let mut ours = Vec::new();
    encode_event(&heartbeat(), &mut ours);
    assert_eq!(decode_event_of(Some(&[1; 17]), &ours, &Test), Ok(heartbeat()));
    // Bytes that are not of our schema, said to be so by a header.
    assert!(decode_event_of(Some(&id), b"{}", &Test).is_err());
}
