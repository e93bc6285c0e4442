//! The fields of an object, in any order, before it is known which of them the event needs.

use super::bad_event::{BadEvent, bad};
use super::conns::Conns;
use super::items::{Beats, BeatsSeed};
use super::raw::Raw;
use super::skip::Skip;
use crate::presence::event::{Event, EventType, HeartbeatEntry};
use crate::schema::unique_keys::UniqueKeys;
use crate::schema::wire_event;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use serde_json::value::RawValue;
use std::fmt;

/// An event of a request.
#[derive(Debug)]
pub struct NewEvent<'a> {
    pub event: Event<'a>,
    /// The number of the partition that the publisher names beside the event: an `alive` names no user, so nothing else
    /// says where its connections belong. Not part of the record.
    pub partition: Option<u64>,
    /// Fields that it has and events of its type have not, other than null.
    pub unused: Vec<&'static str>,
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
    pub fn again(&mut self) -> Seen<'_> {
        Seen {
            event: self.event,
            unknown: self.unknown.as_deref_mut(),
            policy_bytes: self.policy_bytes,
        }
    }

    /// Remembers the name of a field that the event does not have.
    pub fn note(&mut self, name: &str) {
        let Some(unknown) = &mut self.unknown else { return };
        let name: String = name.chars().take(UNKNOWN_CHARS).collect();
        if unknown.len() < UNKNOWN_FIELDS && unknown.iter().all(|(_, known)| **known != *name) {
            unknown.push((self.event, name.into()));
        }
    }
}

/// A policy document.
#[derive(Default)]
pub(super) enum PolicyField {
    #[default]
    Missing,
    Value(Value),
    /// Longer than is read.
    TooLong(usize, usize),
}

/// The fields of any event, before it is known which are needed.
#[derive(Default)]
pub(super) struct Fields<'a> {
    pub offset: Raw<'a>,
    pub ts: Raw<'a>,
    pub kind: Raw<'a>,
    pub user: Raw<'a>,
    pub platform: Raw<'a>,
    pub device: Raw<'a>,
    pub gateway: Raw<'a>,
    pub epoch: Raw<'a>,
    pub conn: Raw<'a>,
    pub intent: Raw<'a>,
    pub client: Raw<'a>,
    pub reason: Raw<'a>,
    pub text: Raw<'a>,
    pub ttl_ms: Raw<'a>,
    pub beats: Beats<'a>,
    pub auth_at: Raw<'a>,
    pub conns: Conns,
    pub revision: Raw<'a>,
    pub partition: Raw<'a>,
    pub policy: PolicyField,
    given: GivenFields,
}

/// Which fields an object has, and the first that it has twice: of two values one would be dropped.
#[derive(Default)]
struct GivenFields {
    bits: u32,
    nulls: u32,
    repeated: Option<Field>,
}

impl GivenFields {
    fn note(&mut self, field: Field) {
        if field == Field::Unknown {
            return;
        }
        let bit = field.bit();
        if self.bits & bit != 0 {
            self.repeated.get_or_insert(field);
        }
        self.bits |= bit;
    }

    /// Those that say something, and that events of a type do not have.
    fn beyond(&self, kind: EventType) -> Vec<&'static str> {
        let beyond = self.bits & !self.nulls & !fields_of(kind);
        // Nearly every event has its own fields only, and nothing is allocated for it.
        let named = Field::ALL.iter().copied().filter(|field| beyond & field.bit() != 0);
        if beyond == 0 {
            Vec::new()
        } else {
            named.map(Field::name).collect()
        }
    }
}

/// The fields of events of a type (rules, section 3), as a set. Offset and time are the log's; printed events have them.
fn fields_of(kind: EventType) -> u32 {
    use Field::{
        AuthAt, Beats, Client, Conn, Conns, Device, Epoch, Gateway, Intent, Offset, Partition, Platform, Policy,
        Reason, Revision, Text, Ts, TtlMs, Type, User,
    };
    let of_device = set(&[User, Platform, Device, Gateway, Epoch, Conn]);
    let own = match kind {
        EventType::Connect => of_device | set(&[Intent, Client, AuthAt]),
        EventType::Heartbeat | EventType::Background | EventType::Foreground | EventType::Logout => of_device,
        EventType::Disconnect => of_device | set(&[Reason]),
        EventType::Heartbeats => set(&[Gateway, Epoch, Beats]),
        EventType::Alive => set(&[Gateway, Epoch, Conns, Partition]),
        EventType::Kick => set(&[User, Platform, Device]),
        EventType::CustomStatus => set(&[User, Text]),
        EventType::Forget => set(&[User]),
        EventType::Lease => set(&[Gateway, Epoch, TtlMs]),
        EventType::Policy => set(&[Policy]),
        EventType::Revision => set(&[Revision]),
        EventType::Tick => 0,
    };
    own | set(&[Offset, Ts, Type])
}

fn set(fields: &[Field]) -> u32 {
    fields.iter().fold(0, |set, field| set | field.bit())
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
        let field = Field::named(key);
        if field == Field::Unknown {
            self.0.note(key);
        }
        Ok(field)
    }
}

/// The fields that any event or beat has, each with its name.
macro_rules! fields {
    ($($field:ident: $name:literal,)*) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Field {
            $($field,)*
            Unknown,
        }

        impl Field {
            const ALL: &[Field] = &[$(Field::$field,)*];

            const fn bit(self) -> u32 {
                1 << self as u32
            }

            fn named(key: &str) -> Field {
                match key {
                    $($name => Field::$field,)*
                    _ => Field::Unknown,
                }
            }

            const fn name(self) -> &'static str {
                match self {
                    $(Field::$field => $name,)*
                    Field::Unknown => "",
                }
            }
        }
    };
}

fields! {
    Offset: "offset",
    Ts: "ts",
    Type: "type",
    User: "user",
    Platform: "platform",
    Device: "device",
    Gateway: "gateway",
    Epoch: "epoch",
    Conn: "conn",
    Intent: "intent",
    Client: "client",
    Reason: "reason",
    Text: "text",
    TtlMs: "ttl_ms",
    Beats: "beats",
    AuthAt: "auth_at",
    Conns: "conns",
    Revision: "revision",
    Partition: "partition",
    Policy: "policy",
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
        self.given.note(field);
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
                // It is given, so it was null.
                if matches!(self.conns, Conns::Missing) {
                    self.given.nulls |= field.bit();
                }
                return Ok(());
            }
            Field::Beats => {
                self.beats = entries.next_value_seed(BeatsSeed(seen.again()))?;
                if matches!(self.beats, Beats::Null) {
                    self.given.nulls |= field.bit();
                }
                return Ok(());
            }
            Field::Policy => {
                let raw: &'de RawValue = entries.next_value()?;
                let length = raw.get().len();
                self.policy = if length > seen.policy_bytes {
                    PolicyField::TooLong(length, seen.policy_bytes)
                } else {
                    let UniqueKeys(document) = serde_json::from_str(raw.get()).map_err(de::Error::custom)?;
                    if document.is_null() {
                        self.given.nulls |= field.bit();
                    }
                    PolicyField::Value(document)
                };
                return Ok(());
            }
            Field::Unknown => {
                entries.next_value::<Skip>()?;
                return Ok(());
            }
        };
        *place = entries.next_value()?;
        if matches!(place, Raw::Null) {
            self.given.nulls |= field.bit();
        }
        Ok(())
    }
}

impl<'a> Fields<'a> {
    fn refuse_repeated(&self) -> Result<(), BadEvent> {
        match self.given.repeated {
            None => Ok(()),
            Some(field) => bad(
                field.name(),
                format!("`{}` is given twice in one object; give it once", field.name()),
            ),
        }
    }

    /// Whether any field of an event was read.
    pub fn any_given(&self) -> bool {
        self.given.bits != 0
    }

    pub fn beat(&mut self) -> Result<HeartbeatEntry<'a>, BadEvent> {
        self.refuse_repeated()?;
        wire_event::beat(self)
    }

    pub fn new_event(&mut self) -> Result<NewEvent<'a>, BadEvent> {
        let event = self.event()?;
        Ok(NewEvent {
            unused: self.given.beyond(event.event_type()),
            event,
            partition: match self.partition {
                Raw::Number(partition) => Some(partition),
                Raw::Missing | Raw::Null | Raw::Text(_) | Raw::Other(_) => None,
            },
        })
    }

    pub fn event(&mut self) -> Result<Event<'a>, BadEvent> {
        self.refuse_repeated()?;
        let kind = match std::mem::take(&mut self.kind) {
            Raw::Text(kind) => kind,
            Raw::Missing | Raw::Null => return bad("type", "`type` is missing"),
            Raw::Number(_) | Raw::Other(_) => return bad("type", "`type` must be a string"),
        };
        wire_event::event(&kind, self)
    }
}
