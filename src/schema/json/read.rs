//! JSON to events.

use super::conns::Conns;
use super::skip::Skip;
use crate::presence::event::{Event, EventType, HeartbeatEntry, bounds};
use crate::presence::{Conn, Offset};
use crate::schema::policy::policy_document;
use crate::schema::wire_event::{self, DeviceFields, EventFields, GivenBeats, NumberField, TextField, WordField};
use crate::schema::{Malformed, policy::policy_json};
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;
use serde_json::value::RawValue;
use std::borrow::Cow;
use std::fmt;

/// What is wrong with an event: the field, and a sentence that names its bound.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BadEvent {
    pub field: &'static str,
    pub message: String,
}

impl fmt::Display for BadEvent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<BadEvent> for Malformed {
    fn from(bad: BadEvent) -> Malformed {
        Malformed::invalid(bad.message)
    }
}

/// One line of the input of `rollcall fold`.
#[derive(Debug)]
pub struct InputLine<'a> {
    pub offset: Offset,
    /// Milliseconds.
    pub ts: u64,
    pub event: Result<Event<'a>, BadEvent>,
}

/// Why a line is no record at all.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error("{0}")]
    Json(String),
    #[error("`{0}` must be an integer from 0 to {1}")]
    Position(&'static str, u64),
}

impl From<serde_json::Error> for LineError {
    fn from(error: serde_json::Error) -> LineError {
        LineError::Json(match error.classify() {
            Category::Eof => format!("its JSON ends too early, in column {}", error.column()),
            _ => error.to_string(),
        })
    }
}

/// Reads one line: an event with `offset` and `ts` beside its fields.
pub fn read_line(line: &str) -> Result<InputLine<'_>, LineError> {
    let mut reader = serde_json::Deserializer::from_str(line);
    let seen = Seen {
        event: 0,
        unknown: None,
        policy_bytes: usize::MAX,
    };
    let mut fields = FieldsSeed(seen).deserialize(&mut reader)?;
    reader.end()?;
    let Raw::Number(offset) = fields.offset else {
        return Err(LineError::Position("offset", u64::MAX));
    };
    let ts = match fields.ts {
        Raw::Number(ts) if ts <= bounds::TIMESTAMP_MAX => ts,
        _ => return Err(LineError::Position("ts", bounds::TIMESTAMP_MAX)),
    };
    Ok(InputLine {
        offset: Offset(offset),
        ts,
        event: fields.event(),
    })
}

/// An event of a request.
#[derive(Debug)]
pub struct NewEvent<'a> {
    pub event: Event<'a>,
    /// The number of the partition that the publisher names beside the event: an `alive` names no user, so nothing else
    /// says where its connections belong. Not part of the record.
    pub partition: Option<u64>,
}

/// How many unknown fields are remembered, and how many characters of each.
const UNKNOWN_FIELDS: usize = 16;
const UNKNOWN_CHARS: usize = 64;

/// What reading an object needs beside it.
pub(super) struct Seen<'s> {
    /// The index of the event that it is, or is of.
    pub event: usize,
    /// Where names of unknown fields are put, if anywhere.
    pub unknown: Option<&'s mut Vec<(usize, Box<str>)>>,
    pub policy_bytes: usize,
}

impl Seen<'_> {
    /// The same for something inside.
    fn again(&mut self) -> Seen<'_> {
        Seen {
            event: self.event,
            unknown: self.unknown.as_deref_mut(),
            policy_bytes: self.policy_bytes,
        }
    }

    fn note(&mut self, name: &str) {
        let Some(unknown) = &mut self.unknown else { return };
        let name: String = name.chars().take(UNKNOWN_CHARS).collect();
        if unknown.len() < UNKNOWN_FIELDS && unknown.iter().all(|(_, known)| **known != *name) {
            unknown.push((self.event, name.into()));
        }
    }
}

/// A field's value, as far as events need it.
#[derive(Default)]
pub(super) enum Raw<'a> {
    #[default]
    Missing,
    Null,
    Text(Cow<'a, str>),
    Number(u64),
    /// Something that no field can be; a word for it.
    Other(&'static str),
}

#[derive(Default)]
enum Beats<'a> {
    #[default]
    Missing,
    Null,
    /// Those that could be read, up to the first that is wrong; how many there are; and what is wrong.
    List(Vec<HeartbeatEntry<'a>>, usize, Option<(usize, BadEvent)>),
    Other(&'static str),
}

/// A policy document.
#[derive(Default)]
enum PolicyField {
    #[default]
    Missing,
    Value(Value),
    /// Longer than is read.
    TooLong(usize, usize),
}

/// The fields of any event, before it is known which are needed.
#[derive(Default)]
pub(super) struct Fields<'a> {
    offset: Raw<'a>,
    ts: Raw<'a>,
    pub kind: Raw<'a>,
    user: Raw<'a>,
    platform: Raw<'a>,
    device: Raw<'a>,
    gateway: Raw<'a>,
    epoch: Raw<'a>,
    conn: Raw<'a>,
    intent: Raw<'a>,
    client: Raw<'a>,
    reason: Raw<'a>,
    text: Raw<'a>,
    ttl_ms: Raw<'a>,
    beats: Beats<'a>,
    auth_at: Raw<'a>,
    conns: Conns,
    revision: Raw<'a>,
    partition: Raw<'a>,
    policy: PolicyField,
}

const AN_ARRAY: &str = "an array";
pub(super) const AN_OBJECT: &str = "an object";

impl<'de> Deserialize<'de> for Raw<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw<'de>, D::Error> {
        struct RawVisitor;
        impl<'de> Visitor<'de> for RawVisitor {
            type Value = Raw<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_unit<E>(self) -> Result<Raw<'de>, E> {
                Ok(Raw::Null)
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Raw<'de>, E> {
                Ok(Raw::Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Raw<'de>, E> {
                Ok(Raw::Text(Cow::Owned(text.to_owned())))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Raw<'de>, E> {
                Ok(Raw::Number(number))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Raw<'de>, E> {
                Ok(u64::try_from(number).map_or(Raw::Other("a negative number"), Raw::Number))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Raw<'de>, E> {
                Ok(Raw::Other("a number that is no integer or too large"))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Raw<'de>, E> {
                Ok(Raw::Other("a boolean"))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw<'de>, A::Error> {
                while items.next_element::<Skip>()?.is_some() {}
                Ok(Raw::Other(AN_ARRAY))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw<'de>, A::Error> {
                while entries.next_entry::<Skip, Skip>()?.is_some() {}
                Ok(Raw::Other(AN_OBJECT))
            }
        }
        deserializer.deserialize_any(RawVisitor)
    }
}

/// Reads an element of an array of events or beats: an object, which `read` makes something of.
pub(super) struct ItemSeed<'s, R> {
    pub seen: Seen<'s>,
    pub read: R,
    pub what: &'static str,
    /// The field that is named if it is no object.
    pub field: &'static str,
}

impl<R> ItemSeed<'_, R> {
    fn no_object<T, E>(&self, found: &str) -> Result<Result<T, BadEvent>, E> {
        Ok(bad(self.field, format!("{} must be an object, not {found}", self.what)))
    }
}

impl<'de, T, R: FnOnce(&mut Fields<'de>) -> Result<T, BadEvent>> DeserializeSeed<'de> for ItemSeed<'_, R> {
    type Value = Result<T, BadEvent>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T, R: FnOnce(&mut Fields<'de>) -> Result<T, BadEvent>> Visitor<'de> for ItemSeed<'_, R> {
    type Value = Result<T, BadEvent>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Self::Value, A::Error> {
        let mut fields = FieldsSeed(self.seen).visit_map(entries)?;
        Ok((self.read)(&mut fields))
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        self.no_object("null")
    }
    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        self.no_object("a string")
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        self.no_object("a number")
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        self.no_object("a number")
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        self.no_object("a number")
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        self.no_object("a boolean")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_element::<Skip>()?.is_some() {}
        self.no_object(AN_ARRAY)
    }
}

struct BeatsSeed<'s>(Seen<'s>);

impl<'de> DeserializeSeed<'de> for BeatsSeed<'_> {
    type Value = Beats<'de>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Beats<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for BeatsSeed<'_> {
    type Value = Beats<'de>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Beats<'de>, A::Error> {
        let (_, most) = bounds::BEATS;
        let (mut beats, mut count, mut wrong) = (Vec::new(), 0, None);
        loop {
            let more = if wrong.is_some() || count >= most {
                items.next_element::<Skip>()?.is_some()
            } else {
                let beat = items.next_element_seed(ItemSeed {
                    seen: self.0.again(),
                    read: Fields::beat,
                    what: "a beat",
                    field: "beats",
                })?;
                let more = beat.is_some();
                match beat {
                    Some(Ok(beat)) => beats.push(beat),
                    Some(Err(bad)) => wrong = Some((count, bad)),
                    None => {}
                }
                more
            };
            if !more {
                return Ok(Beats::List(beats, count, wrong));
            }
            count += 1;
        }
    }
    fn visit_unit<E>(self) -> Result<Beats<'de>, E> {
        Ok(Beats::Null)
    }
    fn visit_str<E>(self, _: &str) -> Result<Beats<'de>, E> {
        Ok(Beats::Other("a string"))
    }
    fn visit_u64<E>(self, _: u64) -> Result<Beats<'de>, E> {
        Ok(Beats::Other("a number"))
    }
    fn visit_i64<E>(self, _: i64) -> Result<Beats<'de>, E> {
        Ok(Beats::Other("a number"))
    }
    fn visit_f64<E>(self, _: f64) -> Result<Beats<'de>, E> {
        Ok(Beats::Other("a number"))
    }
    fn visit_bool<E>(self, _: bool) -> Result<Beats<'de>, E> {
        Ok(Beats::Other("a boolean"))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Beats<'de>, A::Error> {
        while entries.next_entry::<Skip, Skip>()?.is_some() {}
        Ok(Beats::Other(AN_OBJECT))
    }
}

/// Reads an object's fields.
pub(super) struct FieldsSeed<'s>(pub Seen<'s>);

impl<'de> DeserializeSeed<'de> for FieldsSeed<'_> {
    type Value = Fields<'de>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Fields<'de>, D::Error> {
        deserializer.deserialize_map(self)
    }
}

/// A key; of one that no event has the name is noted.
pub(super) struct Key<'k, 's>(pub &'k mut Seen<'s>);

impl<'de> DeserializeSeed<'de> for Key<'_, '_> {
    type Value = Field;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Field, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_, '_> {
    type Value = Field;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }
    fn visit_str<E>(self, key: &str) -> Result<Field, E> {
        Ok(match key {
            "offset" => Field::Offset,
            "ts" => Field::Ts,
            "type" => Field::Type,
            "user" => Field::User,
            "platform" => Field::Platform,
            "device" => Field::Device,
            "gateway" => Field::Gateway,
            "epoch" => Field::Epoch,
            "conn" => Field::Conn,
            "intent" => Field::Intent,
            "client" => Field::Client,
            "reason" => Field::Reason,
            "text" => Field::Text,
            "ttl_ms" => Field::TtlMs,
            "beats" => Field::Beats,
            "auth_at" => Field::AuthAt,
            "conns" => Field::Conns,
            "revision" => Field::Revision,
            "partition" => Field::Partition,
            "policy" => Field::Policy,
            _ => {
                self.0.note(key);
                Field::Unknown
            }
        })
    }
}

pub(super) enum Field {
    Offset,
    Ts,
    Type,
    User,
    Platform,
    Device,
    Gateway,
    Epoch,
    Conn,
    Intent,
    Client,
    Reason,
    Text,
    TtlMs,
    Beats,
    AuthAt,
    Conns,
    Revision,
    Partition,
    Policy,
    Unknown,
}

impl<'de> Visitor<'de> for FieldsSeed<'_> {
    type Value = Fields<'de>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Fields<'de>, A::Error> {
        let mut fields = Fields::default();
        while let Some(field) = entries.next_key_seed(Key(&mut self.0))? {
            fields.read(field, &mut self.0, &mut entries)?;
        }
        Ok(fields)
    }
}

impl<'de> Fields<'de> {
    /// Reads the value of a field.
    pub fn read<A: MapAccess<'de>>(
        &mut self,
        field: Field,
        seen: &mut Seen<'_>,
        entries: &mut A,
    ) -> Result<(), A::Error> {
        let place = match field {
            Field::Offset => &mut self.offset,
            Field::Ts => &mut self.ts,
            Field::Type => &mut self.kind,
            Field::User => &mut self.user,
            Field::Platform => &mut self.platform,
            Field::Device => &mut self.device,
            Field::Gateway => &mut self.gateway,
            Field::Epoch => &mut self.epoch,
            Field::Conn => &mut self.conn,
            Field::Intent => &mut self.intent,
            Field::Client => &mut self.client,
            Field::Reason => &mut self.reason,
            Field::Text => &mut self.text,
            Field::TtlMs => &mut self.ttl_ms,
            Field::AuthAt => &mut self.auth_at,
            Field::Revision => &mut self.revision,
            Field::Partition => &mut self.partition,
            Field::Conns => {
                self.conns = entries.next_value()?;
                return Ok(());
            }
            Field::Beats => {
                self.beats = entries.next_value_seed(BeatsSeed(seen.again()))?;
                return Ok(());
            }
            Field::Policy => {
                let raw: &'de RawValue = entries.next_value()?;
                let length = raw.get().len();
                self.policy = if length > seen.policy_bytes {
                    PolicyField::TooLong(length, seen.policy_bytes)
                } else {
                    PolicyField::Value(serde_json::from_str(raw.get()).map_err(de::Error::custom)?)
                };
                return Ok(());
            }
            Field::Unknown => {
                entries.next_value::<Skip>()?;
                return Ok(());
            }
        };
        *place = entries.next_value()?;
        Ok(())
    }
}

fn bad<T>(field: &'static str, message: impl Into<String>) -> Result<T, BadEvent> {
    Err(BadEvent {
        field,
        message: message.into(),
    })
}

impl<'a> Raw<'a> {
    fn is_given(&self) -> bool {
        match self {
            Raw::Missing | Raw::Null => false,
            Raw::Text(_) | Raw::Number(_) | Raw::Other(_) => true,
        }
    }
}

impl<'a> Fields<'a> {
    fn text_field(&mut self, field: TextField) -> &mut Raw<'a> {
        match field {
            TextField::User => &mut self.user,
            TextField::Platform => &mut self.platform,
            TextField::Device => &mut self.device,
            TextField::Gateway => &mut self.gateway,
            TextField::Client => &mut self.client,
            TextField::Text => &mut self.text,
        }
    }
}

impl<'a> DeviceFields<'a> for Fields<'a> {
    type Wrong = BadEvent;

    fn text(&mut self, field: TextField) -> Result<Option<Cow<'a, str>>, BadEvent> {
        let name = field.name();
        match std::mem::take(self.text_field(field)) {
            Raw::Missing | Raw::Null => Ok(None),
            Raw::Text(text) => Ok(Some(text)),
            Raw::Number(_) => bad(name, format!("`{name}` must be a string, not a number")),
            Raw::Other(what) => bad(name, format!("`{name}` must be a string, not {what}")),
        }
    }

    fn number(&mut self, field: NumberField) -> Result<Option<u64>, BadEvent> {
        let (name, (_, most)) = (field.name(), field.bounds());
        let given = match field {
            NumberField::Epoch => &self.epoch,
            NumberField::Conn => &self.conn,
            NumberField::AuthAt => &self.auth_at,
            NumberField::TtlMs => &self.ttl_ms,
            NumberField::Revision => &self.revision,
        };
        let what = match given {
            Raw::Missing | Raw::Null => return Ok(None),
            Raw::Number(number) => return Ok(Some(*number)),
            Raw::Text(_) => "a string",
            Raw::Other(what) => what,
        };
        bad(
            name,
            format!("`{name}` must be an integer from 0 to {most}, not {what}"),
        )
    }

    fn missing(name: &'static str) -> BadEvent {
        BadEvent {
            field: name,
            message: format!("`{name}` is missing"),
        }
    }

    fn wrong_length(field: TextField, bytes: usize) -> BadEvent {
        let (name, (least, most)) = (field.name(), field.bounds());
        BadEvent {
            field: name,
            message: format!("`{name}` must have {least} to {most} bytes of UTF-8, not {bytes}"),
        }
    }

    fn out_of_range(field: NumberField, number: u64) -> BadEvent {
        let (name, (least, most)) = (field.name(), field.bounds());
        let least = if number > most { 0 } else { least };
        BadEvent {
            field: name,
            message: format!("`{name}` must be an integer from {least} to {most}"),
        }
    }
}

impl<'a> EventFields<'a> for Fields<'a> {
    fn has(&self, field: TextField) -> bool {
        let given = match field {
            TextField::User => &self.user,
            TextField::Platform => &self.platform,
            TextField::Device => &self.device,
            TextField::Gateway => &self.gateway,
            TextField::Client => &self.client,
            TextField::Text => &self.text,
        };
        given.is_given()
    }

    fn word(&self, field: WordField) -> Option<&str> {
        let given = match field {
            WordField::Intent => &self.intent,
            WordField::Reason => &self.reason,
        };
        match given {
            Raw::Missing | Raw::Null => None,
            Raw::Text(word) => Some(word),
            Raw::Number(_) | Raw::Other(_) => Some(""),
        }
    }

    fn beats(&mut self) -> Result<Option<GivenBeats<'a, BadEvent>>, BadEvent> {
        match std::mem::take(&mut self.beats) {
            Beats::Missing | Beats::Null => Ok(None),
            Beats::Other(what) => bad("beats", format!("`beats` must be an array, not {what}")),
            Beats::List(beats, count, wrong) => Ok(Some(GivenBeats {
                beats,
                count,
                wrong: wrong.map(|(number, wrong)| BadEvent {
                    field: wrong.field,
                    message: format!("beat {number}: {}", wrong.message),
                }),
            })),
        }
    }

    fn conns(&mut self) -> Result<Vec<Conn>, BadEvent> {
        match std::mem::take(&mut self.conns) {
            Conns::List(conns) => Ok(conns),
            Conns::Missing => Err(Self::missing("conns")),
            Conns::Bad(what) => bad("conns", what),
        }
    }

    fn policy(&mut self) -> Result<Event<'a>, BadEvent> {
        let value = match std::mem::take(&mut self.policy) {
            PolicyField::Value(value @ Value::Object(_)) => value,
            PolicyField::Value(Value::Null) | PolicyField::Missing => return Err(Self::missing("policy")),
            PolicyField::Value(_) => return bad("policy", "`policy` must be an object"),
            PolicyField::TooLong(length, most) => {
                return bad(
                    "policy",
                    format!("`policy` must have at most {most} bytes, not {length}"),
                );
            }
        };
        let completed = policy_document(&value).and_then(|document| document.complete());
        match completed {
            Ok(policy) => Ok(Event::Policy {
                policy: Box::new(policy),
                document: Cow::Owned(value.to_string()),
            }),
            Err(invalid) => bad("policy", invalid.0),
        }
    }

    fn no_such_word(field: WordField, words: &[&str], _: &str) -> BadEvent {
        let (name, words) = (field.name(), words.join("\" or \""));
        BadEvent {
            field: name,
            message: format!("`{name}` must be \"{words}\""),
        }
    }

    fn wrong_number_of_beats(count: usize) -> BadEvent {
        let (least, most) = bounds::BEATS;
        BadEvent {
            field: "beats",
            message: format!("`beats` must have {least} to {most} entries, not {count}"),
        }
    }

    fn platform_needed() -> BadEvent {
        BadEvent {
            field: "platform",
            message: "a kick of one `device` needs its `platform`".to_owned(),
        }
    }

    fn unknown_type(kind: &str) -> BadEvent {
        let shown: String = kind.chars().take(40).collect();
        let names = EventType::ALL.map(EventType::name);
        let (last, others) = names.split_last().expect("there are types");
        let names = others.join(", ");
        BadEvent {
            field: "type",
            message: format!("`type` {shown:?} is unknown; it must be {names} or {last}"),
        }
    }
}

impl<'a> Fields<'a> {
    fn beat(&mut self) -> Result<HeartbeatEntry<'a>, BadEvent> {
        wire_event::beat(self)
    }

    pub fn new_event(&mut self) -> Result<NewEvent<'a>, BadEvent> {
        Ok(NewEvent {
            event: self.event()?,
            partition: match self.partition {
                Raw::Number(partition) => Some(partition),
                Raw::Missing | Raw::Null | Raw::Text(_) | Raw::Other(_) => None,
            },
        })
    }

    pub fn event(&mut self) -> Result<Event<'a>, BadEvent> {
        let kind = match std::mem::take(&mut self.kind) {
            Raw::Text(kind) => kind,
            Raw::Missing | Raw::Null => return bad("type", "`type` is missing"),
            Raw::Number(_) | Raw::Other(_) => return bad("type", "`type` must be a string"),
        };
        wire_event::event(&kind, self)
    }
}

/// The event that puts a policy in force, with the completed policy as its document.
pub fn policy_event(policy: crate::presence::policy::Policy) -> Event<'static> {
    let document = policy_json(&policy);
    Event::Policy {
        policy: Box::new(policy),
        document: Cow::Owned(document),
    }
}
