//! The decoders. Each returns whether it accepts its input, and panics if what it read is not read again from what is written
//! of it.

use super::corpus::{bytes, file, golden, lines};
use crate::api::frames as messages;
use crate::checkpoint::manifest::{Manifest, Name};
use crate::config::Credential;
use crate::gateway::frames;
use crate::http::usersig;
use crate::log::Position;
use crate::presence::event::Event;
use crate::schema::avro::{self, Schema, WriterSchema, WriterSchemas};
use crate::schema::json;
use crate::schema::policy::{parse_policy, policy_json, written_policy};
use crate::schema::{Malformed, avro::encode_event};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use std::io::Write as _;
use std::sync::LazyLock;

pub struct Target {
    pub name: &'static str,
    pub decode: fn(&[u8]) -> bool,
    pub corpus: fn() -> Vec<Vec<u8>>,
    /// What its inputs consist of.
    pub words: &'static [&'static str],
    pub memory: Memory,
}

/// How much memory an input may take.
#[derive(Clone, Copy)]
pub enum Memory {
    /// In proportion to its bytes: a heartbeat of four bytes is 100 bytes in memory, and JSON likewise.
    Times64,
    /// As the next one, and the target itself packs its input first, for which zlib reserves 300 KiB.
    Zlib,
    /// A generic JSON value takes 600 bytes for an object of eight.
    Times512,
}

impl Memory {
    pub fn of(self, bytes: usize) -> usize {
        let (base, times) = match self {
            Memory::Times64 => (256 << 10, 64),
            Memory::Zlib => (1 << 20, 512),
            Memory::Times512 => (256 << 10, 512),
        };
        base + times * bytes
    }
}

const EVENT_WORDS: &[&str] = &[
    "type",
    "user",
    "platform",
    "device",
    "gateway",
    "epoch",
    "conn",
    "intent",
    "login",
    "resume",
    "client",
    "beats",
    "reason",
    "closed",
    "exit",
    "text",
    "ttl_ms",
    "policy",
    "auth_at",
    "conns",
    "revision",
    "connect",
    "heartbeat",
    "heartbeats",
    "alive",
    "disconnect",
    "logout",
    "kick",
    "custom_status",
    "forget",
    "lease",
    "tick",
    "offset",
    "ts",
    "\"",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "null",
    "true",
    "\\u0000",
    "\\ud800",
    "[1,2,3]",
    "é",
];
const POLICY_WORDS: &[&str] = &[
    "rules",
    "login",
    "exclusive",
    "instances",
    "kicked_max",
    "custom_keep_ms",
    "outage",
    "silence_ms",
    "grace_ms",
    "platforms",
    "kind",
    "heartbeat_ms",
    "timeout_ms",
    "closed_ms",
    "exit_ms",
    "background_ms",
    "away_ms",
    "push",
    "custom",
    "multi_platform",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "null",
    "true",
    "1",
    "\"",
];
const SCHEMA_WORDS: &[&str] = &[
    "{\"type\":\"record\",\"name\":\"R\",\"fields\":[",
    "\"null\"",
    "\"boolean\"",
    "\"int\"",
    "\"long\"",
    "\"float\"",
    "\"double\"",
    "\"bytes\"",
    "\"string\"",
    "\"array\"",
    "\"map\"",
    "\"enum\"",
    "\"fixed\"",
    "\"record\"",
    "\"items\":",
    "\"values\":",
    "\"symbols\":[",
    "\"size\":",
    "\"name\":",
    "\"namespace\":",
    "\"fields\":[",
    "\"type\":",
    "[",
    "]",
    "{",
    "}",
    ",",
    "USER",
    "beats",
    "conns",
];

macro_rules! target {
    ($name:literal, $decode:expr, $corpus:expr, $words:expr, $memory:ident) => {
        Target {
            name: $name,
            decode: $decode,
            corpus: $corpus,
            words: $words,
            memory: Memory::$memory,
        }
    };
}

pub static ALL: &[&Target] = &[
    &target!(
        "event",
        event,
        || golden("avro.txt", "Event", "event"),
        EVENT_WORDS,
        Times64
    ),
    &target!(
        "change",
        change,
        || golden("avro.txt", "Change", "change"),
        EVENT_WORDS,
        Times64
    ),
    &target!(
        "kick",
        kick,
        || golden("avro.txt", "Kick", "kick"),
        EVENT_WORDS,
        Times64
    ),
    &target!(
        "user-state",
        user_state,
        || golden("avro.txt", "UserState", "user-state"),
        EVENT_WORDS,
        Times64
    ),
    &target!(
        "quarantined",
        quarantined,
        || golden("avro.txt", "Quarantined", "quarantined"),
        EVENT_WORDS,
        Times64
    ),
    &target!(
        "incident",
        incident,
        || golden("avro.txt", "Incident", "incident"),
        EVENT_WORDS,
        Times64
    ),
    &target!(
        "older",
        event_or_kick,
        || golden("avro-1.txt", "", "older"),
        EVENT_WORDS,
        Times64
    ),
    &target!("foreign", foreign, foreign_corpus, SCHEMA_WORDS, Times512),
    &target!("alive", alive, || lines("alive"), &[], Times64),
    &target!("line", line, || lines("line"), EVENT_WORDS, Times512),
    &target!("request", request, || lines("request"), EVENT_WORDS, Times512),
    &target!(
        "frame",
        frame,
        || lines("frame"),
        &["\"users\":", "\"id\":", "{", "}", "[", "]", ","],
        Times64
    ),
    &target!("policy", policy, || lines("policy"), POLICY_WORDS, Times512),
    &target!(
        "usersig",
        signature,
        || lines("usersig"),
        &["TLS.", "2.0", "\"", ",", "{", "}"],
        Zlib
    ),
    &target!(
        "checkpoint-list",
        checkpoint_list,
        checkpoint_corpus,
        &["\"format\": ", "\"files\": ["],
        Times64
    ),
    &target!("block", crate::log::local::is_block, || lines("block"), &[], Times512),
    &target!(
        "position",
        position,
        || golden("position.txt", "position", "position"),
        &[],
        Times64
    ),
];

/// Whether a schema's bytes frame the input already; if not, they are put in front of it.
fn framed(schema: Schema, input: &[u8]) -> Vec<u8> {
    if input.starts_with(&[0xc3, 0x01]) {
        return input.to_vec();
    }
    let mut value = Vec::new();
    avro::frame(schema, &mut value);
    value.extend_from_slice(input);
    value
}

fn event_again(event: &Event<'_>) {
    let mut value = Vec::new();
    encode_event(event, &mut value);
    assert_eq!(
        avro::decode_event(&value).as_ref(),
        Ok(event),
        "an event is read as it was written"
    );
    let mut line = Vec::new();
    json::event_line(&mut line, crate::presence::Offset(1), 2, event);
    let line = String::from_utf8(line).expect("JSON is UTF-8");
    let read = json::read_line(&line).expect("a line is read as it was written");
    match (&read.event, event) {
        // The text of a policy document is another one: JSON in a line is written without spaces.
        (Ok(Event::Policy { policy: read, .. }), Event::Policy { policy, .. }) => assert_eq!(read, policy, "{line}"),
        (read, event) => assert_eq!(read.as_ref().ok(), Some(event), "{line}"),
    }
}

fn event(input: &[u8]) -> bool {
    let value = framed(Schema::Event, input);
    let Ok(event) = avro::decode_event(&value) else {
        return false;
    };
    event_again(&event);
    true
}

/// What is read from a datum of one of our schemas is read again from what is written of it.
macro_rules! read_again {
    ($target:ident, $schema:ident, $decode:ident, $encode:ident) => {
        fn $target(input: &[u8]) -> bool {
            let value = framed(Schema::$schema, input);
            let Ok(read) = avro::$decode(&value) else {
                return false;
            };
            let mut again = Vec::new();
            avro::$encode(&read, &mut again);
            assert_eq!(avro::$decode(&again), Ok(read));
            true
        }
    };
}

read_again!(change, Change, decode_change, encode_change);
read_again!(kick, Kick, decode_kick, encode_kick);
read_again!(user_state, UserState, decode_user_state, encode_user_state);
read_again!(quarantined, Quarantined, decode_quarantined, encode_quarantined);

read_again!(incident, Incident, decode_incident, encode_incident);

/// Records of earlier schemas.
fn event_or_kick(input: &[u8]) -> bool {
    event(input) | kick(input)
}

struct One(WriterSchema);

impl WriterSchemas for One {
    fn by_id(&self, _: u32) -> Result<WriterSchema, Malformed> {
        Ok(self.0.clone())
    }
}

/// The schema, a line feed, and the datum.
fn foreign(input: &[u8]) -> bool {
    let Some(at) = input.iter().position(|byte| *byte == b'\n') else {
        return false;
    };
    let (schema, datum) = (String::from_utf8_lossy(&input[..at]), &input[at + 1..]);
    let Ok(schema) = WriterSchema::parse(&schema) else {
        return false;
    };
    let schemas = One(schema);
    let mut value = Vec::new();
    avro::frame_with_id(1, &mut value);
    value.extend_from_slice(datum);
    let read = avro::decode_event_with(&value, &schemas);
    for (name, header) in avro::SCHEMA_HEADERS
        .iter()
        .zip([&value[..5], &1_u64.to_be_bytes(), datum])
    {
        let by_header = avro::decode_event_of(Some((name, header)), datum, &schemas);
        // A value that is framed as our own is read so, whatever its headers say; a global id is never read.
        if !datum.starts_with(&[0xc3, 0x01]) && *name != avro::SCHEMA_HEADERS[2] {
            assert_eq!(by_header, read, "{name}");
        }
    }
    match read {
        Ok(event) => {
            event_again(&event);
            true
        }
        Err(malformed) => {
            assert!(malformed.to_string().len() <= 512);
            false
        }
    }
}

fn foreign_corpus() -> Vec<Vec<u8>> {
    let input = |line: Vec<u8>| {
        let at = line.iter().position(|byte| *byte == b'\t');
        let Some(at) = at else { return line };
        let datum = bytes(std::str::from_utf8(&line[at + 1..]).expect("ASCII"));
        line[..at].iter().copied().chain([b'\n']).chain(datum).collect()
    };
    let own = golden("avro.txt", "Event", "event").into_iter().filter_map(|value| {
        let datum = value.get(10..)?;
        let schema = file("schemas/event.avsc")
            .replace('\n', " ")
            .replace("\"Event\"", "\"E\"");
        // An enum that is never used keeps it from being ours.
        let schema = schema.replacen("\"fields\": [", "\"fields\": [{\"name\":\"x\",\"type\":\"null\"},", 1);
        Some([schema.as_bytes(), b"\n", datum].concat())
    });
    lines("foreign").into_iter().map(input).chain(own.step_by(5)).collect()
}

/// The packed numbers of an `alive`.
fn alive(input: &[u8]) -> bool {
    static SCHEMA: LazyLock<WriterSchema> = LazyLock::new(|| {
        let schema = r#"{"type":"record","name":"A","fields":[{"name":"type","type":{"type":"enum","name":"K","symbols":["alive"]}},
            {"name":"gateway","type":"string"},{"name":"epoch","type":"int"},{"name":"conns","type":"bytes"}]}"#;
        WriterSchema::parse(schema).expect("it is valid")
    });
    let mut value = vec![0, 0, 0, 0, 1, 0, 2, b'g', 2];
    crate::varint::put(&mut value, 2 * input.len() as u64);
    value.extend_from_slice(input);
    let Ok(event) = avro::decode_event_with(&value, &One(SCHEMA.clone())) else {
        return false;
    };
    event_again(&event);
    let mut datum = Vec::new();
    avro::write_event_datum(&event, &mut datum);
    // Numbers have one form only: the bytes are there as they came, before the last field.
    let end = datum.len() - 1;
    assert_eq!(
        &datum[end - input.len()..end],
        input,
        "no two forms are read as the same numbers"
    );
    true
}

fn line(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let Ok(line) = json::read_line(&text) else { return false };
    let Ok(event) = line.event else { return false };
    event_again(&event);
    true
}

fn request(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let most = 100;
    let _ = json::read_request_lines(&text, most, 10_000);
    let Ok(new) = json::read_request(&text, most, 10_000) else {
        return false;
    };
    assert!(new.events.len() <= most && new.events.len() <= new.count);
    for new in &new.events {
        event_again(&new.event);
    }
    !new.events.is_empty()
}

fn frame(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    match messages::read(&text) {
        Ok(_) => true,
        Err(bad) => {
            // The answer to the client is built from it.
            let answer = frames::error(bad.id, "bad_request", &bad.message, None);
            assert!(serde_json::from_str::<serde_json::Value>(&answer).is_ok(), "{answer}");
            false
        }
    }
}

fn policy(input: &[u8]) -> bool {
    let text = String::from_utf8_lossy(input);
    let Ok(policy) = parse_policy(&text) else { return false };
    let written = policy_json(&policy);
    assert_eq!(parse_policy(&written).as_ref(), Ok(&policy), "{written}");
    assert_eq!(written_policy(&written).as_ref(), Some(&policy), "{written}");
    true
}

/// A signature, or the JSON that is in one.
fn signature(input: &[u8]) -> bool {
    let mut text = String::from_utf8_lossy(input).into_owned();
    if text.starts_with('{') {
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::fast());
        zlib.write_all(input).expect("memory has room");
        let base64 = STANDARD.encode(zlib.finish().expect("memory has room"));
        text = base64.replace('+', "*").replace('/', "-").replace('=', "_");
    }
    let key = Credential::new("a key");
    let verified = usersig::verify(&text, 1_400_000_000, &key, "administrator", 1_700_000_000);
    !matches!(
        verified,
        Err(usersig::SignatureRefusal::Unreadable | usersig::SignatureRefusal::Empty)
    )
}

fn checkpoint_list(input: &[u8]) -> bool {
    let name = String::from_utf8_lossy(input);
    if let Some(name) = Name::read(&name) {
        assert_eq!(Name::read(&name.to_string()), Some(name));
    }
    let Ok(manifest) = Manifest::read(input) else {
        return false;
    };
    assert_eq!(manifest.to_json(), input);
    assert_eq!(Name::read(&manifest.name().to_string()), Some(manifest.name()));
    true
}

fn checkpoint_corpus() -> Vec<Vec<u8>> {
    let golden = file("tests/golden/checkpoint-list.txt");
    let parts = golden.splitn(2, '\n');
    let mut inputs: Vec<Vec<u8>> = parts.map(|part| part.trim_end().as_bytes().to_vec()).collect();
    inputs.extend(lines("checkpoint-list"));
    inputs
}

/// The metadata of a group's offset: bytes, which are Base64 there.
fn position(input: &[u8]) -> bool {
    let Ok(position) = Position::from_bytes(input) else {
        return false;
    };
    assert_eq!(Position::from_bytes(&position.to_bytes()), Ok(position));
    true
}
