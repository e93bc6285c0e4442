//! The registry's client against a real registry, and against what is none.

#[path = "registry/servers.rs"]
mod servers;

use rollcall::presence::event::Event;
use rollcall::registry::{Answer, Error, Registry};
use rollcall::schema::Malformed;
use rollcall::schema::avro::{self, Framing, Schema, WriterSchemas};
use serde_json::{Value, json};
use servers::{Canned, Real};
use tokio::runtime::Runtime;

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

    /// Registers a schema as somebody else would.
    fn foreign(&self, subject: &str, schema: &str) -> u32 {
        let path = format!("subjects/{subject}/versions");
        let answer = self.raw("POST", &path, Some(json!({ "schema": schema })));
        answer["id"].as_u64().expect("an id") as u32
    }
}

#[test]
fn a_real_registry_gives_ids_once_and_schemas_by_them() {
    let server = Real::start();
    let house = House::at(&server.url);
    what_is_not_registered_is_told(&house);
    ours_are_registered_once_and_stay_readable(&house);
    a_foreign_schema_is_asked_for_and_its_records_are_read(&house);
    what_is_not_there_or_of_no_use_is_absent(&house);
    a_schema_that_breaks_the_subject_is_refused(&house);
    drop(server);
    what_is_known_outlives_the_registry(&house);
}

fn what_is_not_registered_is_told(house: &House) {
    match house.registry().look_up(subject) {
        Err(error @ Error::NotRegistered { .. }) => {
            let told = error.to_string();
            assert!(
                told.contains("under presence.Event-value") && told.contains("schemas/event.avsc"),
                "{told}"
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
    assert_eq!(avro::decode_event_with(&value, &registry), Ok(Event::Tick));
    // Somebody who has not written it asks for it first.
    let reader = house.registry();
    let Err(Malformed::UnknownSchemaId(id)) = avro::decode_event_with(&value, &reader) else {
        panic!("known without asking");
    };
    assert_eq!(reader.ask(id), Ok(Answer::Known));
    assert_eq!(avro::decode_event_with(&value, &reader), Ok(Event::Tick));
}

fn a_foreign_schema_is_asked_for_and_its_records_are_read(house: &House) {
    let json = r#"{"type":"record","name":"rollcall.Event","fields":[{"name":"type","type":"string"}]}"#;
    let id = house.foreign("somebody-value", json);
    let mut value = Vec::new();
    avro::frame_with_id(id, &mut value);
    value.extend_from_slice(b"\x08tick");
    let registry = house.registry();
    assert_eq!(registry.ask(id), Ok(Answer::Known));
    assert_eq!(avro::decode_event_with(&value, &registry), Ok(Event::Tick));
}

fn what_is_not_there_or_of_no_use_is_absent(house: &House) {
    let registry = house.registry();
    assert_eq!(registry.ask(999_999), Ok(Answer::Absent));
    let list = r#"{"type":"record","name":"List","namespace":"n","fields":[{"name":"next","type":["null","List"]}]}"#;
    let recursive = house.foreign("recursive-value", list);
    assert_eq!(registry.ask(recursive), Ok(Answer::Absent));
    assert!(registry.by_id(recursive).is_none());
}

fn a_schema_that_breaks_the_subject_is_refused(house: &House) {
    // Somebody has taken the subject for something else, and holds it to that.
    let other = r#"{"type":"record","name":"rollcall.Other","fields":[{"name":"x","type":"string"}]}"#;
    house.foreign("taken-Event-value", other);
    let level = json!({ "compatibility": "FULL_TRANSITIVE" });
    house.raw("PUT", "config/taken-Event-value", Some(level));
    let taken = |schema: Schema| format!("taken-{}-value", schema.name());
    match house.registry().register(taken) {
        Err(error @ Error::Refused { .. }) => {
            let told = error.to_string();
            assert!(told.contains("does not take the schema of taken-Event-value"), "{told}");
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
    let registry = house.registry();
    assert!(matches!(registry.ask(1), Err(Error::Unreachable { .. })));
}

#[test]
fn what_was_asked_once_is_not_asked_again() {
    let found = json!({ "schema": Schema::Event.json() }).to_string();
    let absent = r#"{"error_code":40403,"message":"Schema 8 not found"}"#;
    let server = Canned::start(&[("200 OK", &found), ("404 Not Found", absent)]);
    let house = House::at(&server.url);
    let registry = house.registry();
    for _ in 0..3 {
        assert_eq!(registry.ask(7), Ok(Answer::Known));
        assert_eq!(registry.ask(8), Ok(Answer::Absent));
    }
    assert_eq!(server.asked(), ["GET /schemas/ids/7", "GET /schemas/ids/8"]);
    assert!(registry.by_id(7).is_some() && registry.by_id(8).is_none());
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
    let registry = house.registry();
    for answer in answers {
        let asked = registry.ask(7);
        assert!(matches!(asked, Err(Error::Unreachable { .. })), "{answer:?}: {asked:?}");
    }
    assert_eq!(server.asked().len(), answers.len());
}

#[test]
fn credentials_are_sent_and_never_shown() {
    let server = Canned::start(&[("401 Unauthorized", "{}")]);
    let url = server.url.replace("http://", "http://user:hunter2@");
    let house = House::at(&url);
    let registry = house.registry();
    let told = registry.ask(7).expect_err("refused").to_string();
    assert!(!told.contains("hunter2") && told.contains("401"), "{told}");
    // Base64 of user:hunter2.
    assert!(
        server.heads()[0].contains("Basic dXNlcjpodW50ZXIy"),
        "{:?}",
        server.heads()
    );

    drop(server);
    let told = registry.ask(7).expect_err("nobody is there").to_string();
    assert!(!told.contains("hunter2"), "{told}");
    for wrong in ["user:hunter2@host", "ftp://user:hunter2@host", "http://user:hunter2@"] {
        let refused = Registry::new(wrong, house.runtime.handle().clone());
        let told = refused.err().expect("refused").to_string();
        assert!(!told.contains("hunter2"), "{told}");
    }
}

#[test]
fn without_a_registry_values_are_written_in_single_object_encoding() {
    let mut value = Vec::new();
    Framing::default().frame(Schema::Event, &mut value);
    avro::write_event_datum(&Event::Tick, &mut value);
    assert_eq!(avro::decode_event(&value), Ok(Event::Tick));
}
