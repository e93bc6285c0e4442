//! JSON to events.

use super::conns::Conns;
use super::skip::Skip;
use crate::presence::event::{ConnRef, DeviceRef, Ending, Event, EventType, HeartbeatEntry, Intent, Target, bounds};
use crate::presence::{Conn, Epoch, Offset};
use crate::schema::policy::policy_document;
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

fn required<T>(field: &'static str, value: Option<T>) -> Result<T, BadEvent> {
    value.map_or_else(|| bad(field, format!("`{field}` is missing")), Ok)
}

impl<'a> Raw<'a> {
    fn text(&mut self, field: &'static str, (least, most): (usize, usize)) -> Result<Option<Cow<'a, str>>, BadEvent> {
        match std::mem::take(self) {
            Raw::Missing | Raw::Null => Ok(None),
            Raw::Text(text) if (least..=most).contains(&text.len()) => Ok(Some(text)),
            Raw::Text(text) => bad(
                field,
                format!(
                    "`{field}` must have {least} to {most} bytes of UTF-8, not {}",
                    text.len()
                ),
            ),
            Raw::Number(_) => bad(field, format!("`{field}` must be a string, not a number")),
            Raw::Other(what) => bad(field, format!("`{field}` must be a string, not {what}")),
        }
    }

    fn number(&self, field: &'static str, most: u64) -> Result<u64, BadEvent> {
        match self {
            Raw::Number(number) if *number <= most => Ok(*number),
            Raw::Missing | Raw::Null => bad(field, format!("`{field}` is missing")),
            Raw::Number(_) => bad(field, format!("`{field}` must be an integer from 0 to {most}")),
            Raw::Text(_) => bad(
                field,
                format!("`{field}` must be an integer from 0 to {most}, not a string"),
            ),
            Raw::Other(what) => bad(
                field,
                format!("`{field}` must be an integer from 0 to {most}, not {what}"),
            ),
        }
    }

    fn word<T: Copy>(&self, field: &'static str, words: &[(&str, T)]) -> Result<T, BadEvent> {
        let found = match self {
            Raw::Text(text) => words.iter().find(|(word, _)| word == text).map(|(_, value)| *value),
            Raw::Missing | Raw::Null => return bad(field, format!("`{field}` is missing")),
            Raw::Number(_) | Raw::Other(_) => None,
        };
        found.map_or_else(
            || {
                let names: Vec<String> = words.iter().map(|(word, _)| format!("\"{word}\"")).collect();
                bad(field, format!("`{field}` must be {}", names.join(" or ")))
            },
            Ok,
        )
    }
}

impl<'a> Fields<'a> {
    fn user(&mut self) -> Result<Cow<'a, str>, BadEvent> {
        required("user", self.user.text("user", bounds::USER_BYTES)?)
    }

    fn optional_platform(&mut self) -> Result<Option<Cow<'a, str>>, BadEvent> {
        self.platform.text("platform", bounds::PLATFORM_BYTES)
    }

    fn optional_device(&mut self) -> Result<Option<Cow<'a, str>>, BadEvent> {
        self.device.text("device", bounds::DEVICE_BYTES)
    }

    fn who(&mut self) -> Result<DeviceRef<'a>, BadEvent> {
        Ok(DeviceRef {
            user: self.user()?,
            platform: required("platform", self.optional_platform()?)?,
            device: required("device", self.optional_device()?)?,
        })
    }

    fn gateway(&mut self) -> Result<Cow<'a, str>, BadEvent> {
        required("gateway", self.gateway.text("gateway", bounds::GATEWAY_BYTES)?)
    }

    fn epoch(&self) -> Result<Epoch, BadEvent> {
        self.epoch.number("epoch", bounds::NUMBER_MAX).map(Epoch)
    }

    fn conn(&self) -> Result<Conn, BadEvent> {
        self.conn.number("conn", bounds::NUMBER_MAX).map(Conn)
    }

    fn via(&mut self) -> Result<ConnRef<'a>, BadEvent> {
        Ok(ConnRef {
            gateway: self.gateway()?,
            epoch: self.epoch()?,
            conn: self.conn()?,
        })
    }

    fn beats(&mut self) -> Result<Vec<HeartbeatEntry<'a>>, BadEvent> {
        let (least, most) = bounds::BEATS;
        let (beats, count, wrong) = match std::mem::take(&mut self.beats) {
            Beats::List(beats, count, wrong) => (beats, count, wrong),
            Beats::Missing | Beats::Null => return bad("beats", "`beats` is missing"),
            Beats::Other(what) => return bad("beats", format!("`beats` must be an array, not {what}")),
        };
        if !(least..=most).contains(&count) {
            return bad(
                "beats",
                format!("`beats` must have {least} to {most} entries, not {count}"),
            );
        }
        match wrong {
            None => Ok(beats),
            Some((number, wrong)) => bad(wrong.field, format!("beat {number}: {}", wrong.message)),
        }
    }

    fn beat(&mut self) -> Result<HeartbeatEntry<'a>, BadEvent> {
        Ok(HeartbeatEntry {
            who: self.who()?,
            conn: self.conn()?,
        })
    }

    fn conns(&mut self) -> Result<Vec<Conn>, BadEvent> {
        match std::mem::take(&mut self.conns) {
            Conns::List(conns) => Ok(conns),
            Conns::Missing => bad("conns", "`conns` is missing"),
            Conns::Bad(what) => bad("conns", what),
        }
    }

    fn auth_at(&self) -> Result<Option<u64>, BadEvent> {
        match self.auth_at {
            Raw::Missing | Raw::Null => Ok(None),
            Raw::Number(_) | Raw::Text(_) | Raw::Other(_) => {
                self.auth_at.number("auth_at", bounds::TIMESTAMP_MAX).map(Some)
            }
        }
    }

    fn revision(&self) -> Result<u32, BadEvent> {
        let (least, most) = bounds::REVISION;
        let revision = self.revision.number("revision", most)?;
        match u32::try_from(revision) {
            Ok(number) if revision >= least => Ok(number),
            _ => bad(
                "revision",
                format!("`revision` must be an integer from {least} to {most}"),
            ),
        }
    }

    fn target(&mut self) -> Result<Target<'a>, BadEvent> {
        match (self.optional_platform()?, self.optional_device()?) {
            (None, None) => Ok(Target::All),
            (Some(platform), None) => Ok(Target::Platform(platform)),
            (Some(platform), Some(device)) => Ok(Target::Device(platform, device)),
            (None, Some(_)) => bad("platform", "a kick of one `device` needs its `platform`"),
        }
    }

    fn policy(&mut self) -> Result<Event<'a>, BadEvent> {
        let value = match std::mem::take(&mut self.policy) {
            PolicyField::Value(value @ Value::Object(_)) => value,
            PolicyField::Value(Value::Null) | PolicyField::Missing => return bad("policy", "`policy` is missing"),
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
        let Some(known) = EventType::named(&kind) else {
            let shown: String = kind.chars().take(40).collect();
            let names = EventType::ALL.map(EventType::name);
            let (last, others) = names.split_last().expect("there are types");
            let names = others.join(", ");
            return bad(
                "type",
                format!("`type` {shown:?} is unknown; it must be {names} or {last}"),
            );
        };
        Ok(match known {
            EventType::Connect => Event::Connect {
                who: self.who()?,
                via: self.via()?,
                intent: self
                    .intent
                    .word("intent", &[("login", Intent::Login), ("resume", Intent::Resume)])?,
                client: self.client.text("client", bounds::CLIENT_BYTES)?,
                auth_at: self.auth_at()?,
            },
            EventType::Heartbeat => Event::Heartbeat {
                who: self.who()?,
                via: self.via()?,
            },
            EventType::Heartbeats => Event::Heartbeats {
                gateway: self.gateway()?,
                epoch: self.epoch()?,
                beats: self.beats()?,
            },
            EventType::Alive => Event::Alive {
                gateway: self.gateway()?,
                epoch: self.epoch()?,
                conns: self.conns()?,
            },
            EventType::Background => Event::Background {
                who: self.who()?,
                via: self.via()?,
            },
            EventType::Foreground => Event::Foreground {
                who: self.who()?,
                via: self.via()?,
            },
            EventType::Disconnect => Event::Disconnect {
                who: self.who()?,
                via: self.via()?,
                reason: self
                    .reason
                    .word("reason", &[("closed", Ending::Closed), ("exit", Ending::Exit)])?,
            },
            EventType::Logout => Event::Logout {
                who: self.who()?,
                via: self.via()?,
            },
            EventType::Kick => Event::Kick {
                user: self.user()?,
                target: self.target()?,
            },
            EventType::CustomStatus => Event::CustomStatus {
                user: self.user()?,
                text: self.text.text("text", bounds::STATUS_TEXT_BYTES)?,
            },
            EventType::Forget => Event::Forget { user: self.user()? },
            EventType::Lease => Event::Lease {
                gateway: self.gateway()?,
                epoch: self.epoch()?,
                ttl_ms: self.ttl_ms.number("ttl_ms", bounds::TTL_MS_MAX)?,
            },
            EventType::Policy => self.policy()?,
            EventType::Revision => Event::Revision {
                revision: self.revision()?,
            },
            EventType::Tick => Event::Tick,
        })
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
