//! The registry's client with a real registry, and with servers that are not registries.

#[path = "registry/servers.rs"]
mod servers;

use rollcall::presence::event::Event;
use rollcall::registry::{Error, Registry, Schemas};
use rollcall::schema::Malformed;
use rollcall::schema::avro::{self, Framing, Schema};
use serde_json::{Value, json};
use servers::{Canned, Real};
use tokio::runtime::Runtime;

/// The header in which Confluent's serializers name the schema.
const CONFLUENT: &str = avro::SCHEMA_HEADERS[0];

fn subject(schema: Schema) -> String {
    format!("presence.{}-value", schema.name())
}

struct House {
    runtime: Runtime,
    url: String,
}

impl House {
    fn at(url: &str) -> House {
        House {
            runtime: Runtime::new().expect("a runtime"),
            url: url.to_owned(),
        }
    }

    /// One that knows nothing yet.
    fn registry(&self) -> Registry {
        Registry::new(&self.url, self.runtime.handle().clone()).expect("a URL")
    }

    /// Schemas to read with, of a client that knows nothing yet.
    fn schemas(&self) -> Schemas {
        Schemas::to_read(self.registry())
    }

    /// What the registry says to a request of our own.
    fn raw(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let method = method.parse().expect("a method");
        self.runtime.block_on(async {
            let mut request = reqwest::Client::new().request(method, format!("{}/{path}", self.url));
            if let Some(body) = body {
                request = request.json(&body);
            }
            let answer = request.send().await.expect("it answers");
            let (status, text) = (answer.status(), answer.text().await.expect("text"));
            assert!(status.is_success(), "{path}: {status} {text}");
            serde_json::from_str(&text).expect("JSON")
        })
    }

    /// Registers a schema as another client would.
    fn foreign(&self, subject: &str, schema: &str) -> u32 {
        let path = format!("subjects/{subject}/versions");
        let answer = self.raw("POST", &path, Some(json!({ "schema": schema })));
        answer["id"].as_u64().expect("an id") as u32
    }
}

/// A tick that is framed for a registry with this id; the datum is of our own schema.
fn tick(id: u32) -> Vec<u8> {
    let mut value = Vec::new();
    avro::frame_with_id(id, &mut value);
    avro::write_event_datum(&Event::Tick, &mut value);
    value
}

/// Reads a value as an event; the registry is asked for what is not known yet.
fn read(schemas: &Schemas, value: &[u8]) -> Result<Result<Event<'static>, Malformed>, Error> {
    let learned = schemas.learn([(None, value)])?;
    // Only ticks are read here, which borrow nothing.
    Ok(avro::decode_event_with(value, &learned).map(|event| match event {
        Event::Tick => Event::Tick,
        other => panic!("{other:?}"),
    }))
}

/// Why a schema is of no use.
fn unusable(schemas: &Schemas, id: u32) -> String {
    let read = read(schemas, &tick(id)).expect("the registry answers");
    read.expect_err("it is of no use").to_string()
}

#[test]
fn a_real_registry_gives_ids_once_and_schemas_by_them() {
    let server = Real::start();
    let house = House::at(&server.url);
    what_is_not_registered_is_told(&house);
    ours_are_registered_once_and_stay_readable(&house);
    a_foreign_schema_is_asked_for_and_its_records_are_read(&house);
    what_a_schema_refers_to_is_asked_for_too(&house);
    what_is_not_there_or_of_no_use_is_absent(&house);
    a_schema_that_breaks_the_subject_is_refused(&house);
    drop(server);
    what_is_known_outlives_the_registry(&house);
}

fn what_is_not_registered_is_told(house: &House) {
    match house.registry().look_up(subject) {
        Err(error @ Error::NotRegistered { .. }) => {
            let message = error.to_string();
            assert!(
                message.contains("under presence.Event-value") && message.contains("schemas/event.avsc"),
                "{message}"
            );
        }
        other => panic!("{other:?}"),
    }
}

fn ours_are_registered_once_and_stay_readable(house: &House) {
    let registry = house.registry();
    let first = registry.register(subject).expect("registered");
    let again = house.registry().register(subject).expect("registered");
    let found = house.registry().look_up(subject).expect("there");
    assert_eq!((first, first), (again, found));
    for schema in Schema::ALL {
        let subject = subject(schema);
        let versions = house.raw("GET", &format!("subjects/{subject}/versions"), None);
        assert_eq!(versions, json!([1]), "{subject}");
        let config = house.raw("GET", &format!("config/{subject}"), None);
        assert_eq!(config["compatibilityLevel"], "BACKWARD_TRANSITIVE", "{config}");
    }

    let mut value = Vec::new();
    first.frame(Schema::Event, &mut value);
    avro::write_event_datum(&Event::Tick, &mut value);
    assert_eq!(read(&Schemas::of(registry, first), &value), Ok(Ok(Event::Tick)));
    // Also by somebody who has not written it.
    assert_eq!(read(&house.schemas(), &value), Ok(Ok(Event::Tick)));
}

fn a_foreign_schema_is_asked_for_and_its_records_are_read(house: &House) {
    let json = r#"{"type":"record","name":"rollcall.Event","fields":[{"name":"type","type":"string"}]}"#;
    let id = house.foreign("somebody-value", json);
    let mut value = Vec::new();
    avro::frame_with_id(id, &mut value);
    value.extend_from_slice(b"\x08tick");
    assert_eq!(read(&house.schemas(), &value), Ok(Ok(Event::Tick)));
}

fn what_a_schema_refers_to_is_asked_for_too(house: &House) {
    let with_reference = |subject: &str, schema: &str, name: &str| {
        let references = json!([{ "name": name, "subject": format!("{name}-type"), "version": 1 }]);
        let body = json!({ "schema": schema, "references": references });
        house.raw("POST", &format!("subjects/{subject}/versions"), Some(body))["id"].clone()
    };
    let place = r#"{"type":"record","name":"com.example.Place","fields":[{"name":"town","type":"string"}]}"#;
    house.foreign("com.example.Place-type", place);
    let link = r#"{"type":"record","name":"com.example.Link","fields":[{"name":"at","type":"com.example.Place"}]}"#;
    with_reference("com.example.Link-type", link, "com.example.Place");
    let event = r#"{"type":"record","name":"com.example.E","fields":[
        {"name":"link","type":"com.example.Link"},{"name":"type","type":"string"}]}"#;
    let id = with_reference("linked-value", event, "com.example.Link");
    let id = id.as_u64().expect("an id") as u32;
    let mut value = Vec::new();
    avro::frame_with_id(id, &mut value);
    value.extend_from_slice(b"\x08here\x08tick");
    assert_eq!(read(&house.schemas(), &value), Ok(Ok(Event::Tick)));
}

fn what_is_not_there_or_of_no_use_is_absent(house: &House) {
    let schemas = house.schemas();
    let absent = Malformed::UnknownSchemaId(999_999);
    assert_eq!(read(&schemas, &tick(999_999)), Ok(Err(absent)));
    let list = r#"{"type":"record","name":"List","namespace":"n","fields":[{"name":"next","type":["null","List"]}]}"#;
    let recursive = house.foreign("recursive-value", list);
    let message = unusable(&schemas, recursive);
    assert!(message.contains(&format!("id {recursive} cannot be used")), "{message}");
    assert!(message.contains("refers to itself at n.List"), "{message}");
}

fn a_schema_that_breaks_the_subject_is_refused(house: &House) {
    // Another client uses the subject for another schema, and its compatibility rule refuses ours.
    let other = r#"{"type":"record","name":"rollcall.Other","fields":[{"name":"x","type":"string"}]}"#;
    house.foreign("taken-Event-value", other);
    let level = json!({ "compatibility": "FULL_TRANSITIVE" });
    house.raw("PUT", "config/taken-Event-value", Some(level));
    let taken = |schema: Schema| format!("taken-{}-value", schema.name());
    match house.registry().register(taken) {
        Err(error @ Error::Refused { .. }) => {
            let message = error.to_string();
            assert!(message.contains("refuses the schema of taken-Event-value"), "{message}");
        }
        other => panic!("{other:?}"),
    }
    let config = house.raw("GET", "config/taken-Event-value", None);
    assert_eq!(
        config["compatibilityLevel"], "FULL_TRANSITIVE",
        "what is stricter stays"
    );
}

fn what_is_known_outlives_the_registry(house: &House) {
    // The one that answered before has gone, so only what was asked then could be known.
    assert!(matches!(
        read(&house.schemas(), &tick(1)),
        Err(Error::Unreachable { .. })
    ));
}

#[test]
fn what_was_asked_once_is_not_asked_again() {
    let found = json!({ "schema": Schema::Event.json() }).to_string();
    let absent = r#"{"error_code":40403,"message":"Schema 8 not found"}"#;
    let server = Canned::start(&[("200 OK", &found), ("404 Not Found", absent)]);
    let house = House::at(&server.url);
    let schemas = house.schemas();
    for _ in 0..3 {
        assert_eq!(read(&schemas, &tick(7)), Ok(Ok(Event::Tick)));
        assert_eq!(read(&schemas, &tick(8)), Ok(Err(Malformed::UnknownSchemaId(8))));
    }
    assert_eq!(server.asked(), ["GET /schemas/ids/7", "GET /schemas/ids/8"]);
}

#[test]
fn a_record_is_read_with_its_schema_however_many_others_are_looked_up_meanwhile() {
    // Each text is as large as all that are remembered together.
    let large = |at: usize| {
        let mut schema: Value = serde_json::from_str(Schema::Event.json()).expect("JSON");
        schema["doc"] = Value::from("x".repeat(4 << 20));
        schema["fields"][0]["doc"] = Value::from(at);
        json!({ "schema": schema.to_string() }).to_string()
    };
    let answers: Vec<String> = [0, 1, 2, 0].into_iter().map(large).collect();
    let answers: Vec<(&str, &str)> = answers.iter().map(|answer| ("200 OK", answer.as_str())).collect();
    let server = Canned::start(&answers);
    let house = House::at(&server.url);
    let schemas = house.schemas();
    let values = [tick(7), tick(8), tick(9)];
    // Not all of them at once.
    let learned = schemas
        .learn(values.iter().map(|value| (None, &value[..])))
        .expect("the registry answers");
    assert_eq!(learned.values(), 1);
    assert_eq!(read(&schemas, &values[1]), Ok(Ok(Event::Tick)));
    assert_eq!(read(&schemas, &values[2]), Ok(Ok(Event::Tick)));
    assert_eq!(avro::decode_event_with(&values[0], &learned), Ok(Event::Tick));
    // It was forgotten meanwhile, so it is looked up again.
    assert_eq!(read(&schemas, &values[0]), Ok(Ok(Event::Tick)));
    let asked = [
        "GET /schemas/ids/7",
        "GET /schemas/ids/8",
        "GET /schemas/ids/9",
        "GET /schemas/ids/7",
    ];
    assert_eq!(server.asked(), asked);
}

#[test]
fn a_guid_is_asked_for_by_its_name() {
    let found = json!({ "schema": Schema::Event.json(), "guid": "ignored" }).to_string();
    let absent = r#"{"error_code":40403,"message":"Schema not found"}"#;
    let server = Canned::start(&[("200 OK", &found), ("404 Not Found", absent)]);
    let house = House::at(&server.url);
    let (mut known, mut unknown) = ([7; 17], [8; 17]);
    (known[0], unknown[0]) = (1, 1);
    let mut datum = Vec::new();
    avro::write_event_datum(&Event::Tick, &mut datum);
    let schemas = Schemas::to_read(house.registry());
    let values = [
        (Some((CONFLUENT, &known[..])), &datum[..]),
        (Some((CONFLUENT, &unknown[..])), &datum[..]),
    ];
    schemas.learn(values).expect("the registry answers");
    let schemas = schemas.learn(values).expect("the registry answers");
    let asked = [
        "GET /schemas/guids/07070707-0707-0707-0707-070707070707",
        "GET /schemas/guids/08080808-0808-0808-0808-080808080808",
    ];
    assert_eq!(server.asked(), asked);
    assert_eq!(
        avro::decode_event_of(Some((CONFLUENT, &known)), &datum, &schemas),
        Ok(Event::Tick)
    );
    let message = avro::decode_event_of(Some((CONFLUENT, &unknown)), &datum, &schemas).expect_err("not there");
    assert!(
        message.to_string().contains("08080808-0808-0808-0808-080808080808"),
        "{message}"
    );
}

#[test]
fn what_no_registry_can_have_is_not_waited_for() {
    // As a registry answers that knows no GUIDs; then something that is no registry.
    let html = ("404 Not Found", "<html>no such page</html>");
    let server = Canned::start(&[html, ("200 OK", r#"["JSON","AVRO"]"#), html, html]);
    let house = House::at(&server.url);
    let schemas = house.schemas();
    let with_guid = |byte: u8| [&[1][..], &[byte; 16], &tick(0)[5..]].concat();
    for _ in 0..2 {
        let absent = Malformed::UnknownSchemaGuid(avro::Guid([8; 16]));
        assert_eq!(read(&schemas, &with_guid(8)), Ok(Err(absent)));
    }
    let asked = [
        "GET /schemas/guids/08080808-0808-0808-0808-080808080808",
        "GET /schemas/types",
    ];
    assert_eq!(server.asked(), asked);
    assert!(matches!(read(&schemas, &with_guid(9)), Err(Error::Unreachable { .. })));
    // Ids are positive 32-bit integers, so these are not asked for.
    let before = server.asked().len();
    for id in [1 << 31, u32::MAX] {
        assert_eq!(read(&schemas, &tick(id)), Ok(Err(Malformed::UnknownSchemaId(id))));
    }
    assert_eq!(server.asked().len(), before);
}

#[test]
fn without_a_registry_what_is_framed_for_one_says_what_to_give() {
    let schemas = Schemas::default().learn([]).expect("nobody is asked");
    let mut value = Vec::new();
    avro::frame_with_id(7, &mut value);
    let prefix = avro::decode_event_of(None, &value, &schemas)
        .expect_err("not known")
        .to_string();
    assert!(
        prefix.contains("registry's id 7") && prefix.contains("--registry URL"),
        "{prefix}"
    );
    let id = avro::decode_event_of(Some((CONFLUENT, &[0, 0, 0, 0, 7])), b"x", &schemas)
        .expect_err("not known")
        .to_string();
    assert!(
        id.contains("__value_schema_id") && id.contains("--registry URL"),
        "{id}"
    );
    let guid = avro::decode_event_of(Some((CONFLUENT, &[1; 17])), b"x", &schemas)
        .expect_err("not known")
        .to_string();
    assert!(
        guid.contains("__value_schema_id") && guid.contains("--registry URL"),
        "{guid}"
    );
    assert_eq!(rollcall::log::SCHEMA_HEADERS, avro::SCHEMA_HEADERS);
}

#[test]
fn references_that_lead_nowhere_or_never_end_are_told_and_those_that_are_late_are_asked_for_again() {
    let referring = |subject: &str| {
        let references = json!([{ "name": "n.Link", "subject": subject, "version": 2 }]);
        json!({ "schema": r#"{"type":"record","name":"n.Link","fields":[]}"#, "references": references }).to_string()
    };
    let absent = r#"{"error_code":40401,"message":"Subject not found"}"#;
    let first = referring("a/b c");
    let mut answers = vec![
        ("200 OK", first.as_str()),
        ("503 Service Unavailable", ""),
        ("200 OK", &first),
    ];
    answers.push(("404 Not Found", absent));
    // One that refers to another, and so on for ever.
    let chain: Vec<String> = (0..12).map(|number| referring(&format!("s{number}"))).collect();
    answers.extend(chain.iter().map(|answer| ("200 OK", answer.as_str())));
    let server = Canned::start(&answers);
    let house = House::at(&server.url);
    let schemas = house.schemas();
    // Nothing is judged while the registry does not answer.
    assert!(matches!(read(&schemas, &tick(7)), Err(Error::Unreachable { .. })));
    let message = unusable(&schemas, 7);
    assert!(
        message.contains("id 7 cannot be used: it refers to version 2 of a/b c, which the registry does not have"),
        "{message}"
    );
    assert_eq!(server.asked()[1], "GET /subjects/a%2Fb%20c/versions/2?deleted=true");
    let message = unusable(&schemas, 8);
    assert!(message.contains("more than 10 deep"), "{message}");
}

#[test]
fn whoever_is_no_registry_or_has_trouble_is_asked_again_and_no_record_is_malformed_for_it() {
    let answers = [
        ("500 Internal Server Error", r#"{"error_code":50001,"message":"store"}"#),
        ("404 Not Found", "<html>no such page</html>"),
        ("404 Not Found", r#"{"message":"no such route"}"#),
        ("200 OK", "<html>welcome</html>"),
        ("401 Unauthorized", r#"{"error_code":401,"message":"who are you"}"#),
        ("503 Service Unavailable", ""),
    ];
    let server = Canned::start(&answers);
    let house = House::at(&server.url);
    let schemas = house.schemas();
    for answer in answers {
        let asked = read(&schemas, &tick(7));
        assert!(matches!(asked, Err(Error::Unreachable { .. })), "{answer:?}: {asked:?}");
    }
    assert_eq!(server.asked().len(), answers.len());
}

#[test]
fn credentials_are_sent_and_never_shown() {
    let server = Canned::start(&[("401 Unauthorized", "{}")]);
    let url = server.url.replace("http://", "http://user:hunter2@");
    let house = House::at(&url);
    let schemas = house.schemas();
    let message = read(&schemas, &tick(7)).expect_err("refused").to_string();
    assert!(!message.contains("hunter2") && message.contains("401"), "{message}");
    // Base64 of user:hunter2.
    assert!(
        server.heads()[0].contains("Basic dXNlcjpodW50ZXIy"),
        "{:?}",
        server.heads()
    );

    drop(server);
    let message = read(&schemas, &tick(7)).expect_err("nobody is there").to_string();
    assert!(!message.contains("hunter2"), "{message}");
    for wrong in ["user:hunter2@host", "ftp://user:hunter2@host", "http://user:hunter2@"] {
        let refused = Registry::new(wrong, house.runtime.handle().clone());
        let message = refused.err().expect("refused").to_string();
        assert!(!message.contains("hunter2"), "{message}");
    }
}

#[test]
fn without_a_registry_values_are_written_in_single_object_encoding() {
    let mut value = Vec::new();
    Framing::default().frame(Schema::Event, &mut value);
    avro::write_event_datum(&Event::Tick, &mut value);
    assert_eq!(avro::decode_event(&value), Ok(Event::Tick));
}
