//! JSON to events.

use super::conns::Conns;
use crate::presence::event::{Beat, Ending, Event, Intent, Target, Via, Who, bounds};
use crate::presence::{Conn, Epoch, Offset};
use crate::schema::policy::policy_document;
use crate::schema::{Malformed, policy::policy_json};
use serde::Deserialize;
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;
use serde_json::error::Category;
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
pub struct Line<'a> {
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
pub fn read_line(line: &str) -> Result<Line<'_>, LineError> {
    let mut fields: Fields<'_> = serde_json::from_str(line)?;
    let Raw::Number(offset) = fields.offset else {
        return Err(LineError::Position("offset", u64::MAX));
    };
    let ts = match fields.ts {
        Raw::Number(ts) if ts <= bounds::TIMESTAMP_MAX => ts,
        _ => return Err(LineError::Position("ts", bounds::TIMESTAMP_MAX)),
    };
    Ok(Line {
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

/// The events of a request: each read, or the reason why it cannot be.
pub type NewEvents<'a> = Vec<Result<NewEvent<'a>, BadEvent>>;

/// Reads a request's events: a JSON array, or an object that has it as `events`.
pub fn read_new_events(body: &str) -> Result<NewEvents<'_>, serde_json::Error> {
    let items: Items<'_> = serde_json::from_str(body)?;
    Ok(items.0.into_iter().map(Item::new_event).collect())
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
    List(Vec<Item<'a>>),
    Other(&'static str),
}

/// The fields of any event, before it is known which are needed.
#[derive(Default)]
struct Fields<'a> {
    offset: Raw<'a>,
    ts: Raw<'a>,
    kind: Raw<'a>,
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
    policy: Option<Value>,
}

/// An element of an array of events or beats.
enum Item<'a> {
    Object(Box<Fields<'a>>),
    Other(&'static str),
}

/// The events of a request.
struct Items<'a>(Vec<Item<'a>>);

const AN_ARRAY: &str = "an array";
pub(super) const AN_OBJECT: &str = "an object";

/// Skips a value, but unlike [`IgnoredAny`] looks at its strings: a lone surrogate is no JSON.
pub(super) struct Skip;

impl<'de> Deserialize<'de> for Skip {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Skip, D::Error> {
        Value::deserialize(deserializer).map(|_| Skip)
    }
}

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
                while entries.next_entry::<Cow<'de, str>, Skip>()?.is_some() {}
                Ok(Raw::Other(AN_OBJECT))
            }
        }
        deserializer.deserialize_any(RawVisitor)
    }
}

impl<'de> Deserialize<'de> for Item<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Item<'de>, D::Error> {
        struct ItemVisitor;
        impl<'de> Visitor<'de> for ItemVisitor {
            type Value = Item<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Item<'de>, A::Error> {
                Ok(Item::Object(Box::new(FieldsVisitor.visit_map(entries)?)))
            }
            fn visit_unit<E>(self) -> Result<Item<'de>, E> {
                Ok(Item::Other("null"))
            }
            fn visit_str<E>(self, _: &str) -> Result<Item<'de>, E> {
                Ok(Item::Other("a string"))
            }
            fn visit_u64<E>(self, _: u64) -> Result<Item<'de>, E> {
                Ok(Item::Other("a number"))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Item<'de>, E> {
                Ok(Item::Other("a number"))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Item<'de>, E> {
                Ok(Item::Other("a number"))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Item<'de>, E> {
                Ok(Item::Other("a boolean"))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Item<'de>, A::Error> {
                while items.next_element::<Skip>()?.is_some() {}
                Ok(Item::Other(AN_ARRAY))
            }
        }
        deserializer.deserialize_any(ItemVisitor)
    }
}

impl<'de> Deserialize<'de> for Beats<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Beats<'de>, D::Error> {
        struct BeatsVisitor;
        impl<'de> Visitor<'de> for BeatsVisitor {
            type Value = Beats<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Beats<'de>, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Beats::List(list))
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
                while entries.next_entry::<Cow<'de, str>, Skip>()?.is_some() {}
                Ok(Beats::Other(AN_OBJECT))
            }
        }
        deserializer.deserialize_any(BeatsVisitor)
    }
}

struct FieldsVisitor;

/// A key, borrowed where it has no escapes.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Field;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Field, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key {
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
            _ => Field::Unknown,
        })
    }
}

enum Field {
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

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields<'de>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Fields<'de>, A::Error> {
        let mut fields = Fields::default();
        while let Some(field) = entries.next_key_seed(Key)? {
            let place = match field {
                Field::Offset => &mut fields.offset,
                Field::Ts => &mut fields.ts,
                Field::Type => &mut fields.kind,
                Field::User => &mut fields.user,
                Field::Platform => &mut fields.platform,
                Field::Device => &mut fields.device,
                Field::Gateway => &mut fields.gateway,
                Field::Epoch => &mut fields.epoch,
                Field::Conn => &mut fields.conn,
                Field::Intent => &mut fields.intent,
                Field::Client => &mut fields.client,
                Field::Reason => &mut fields.reason,
                Field::Text => &mut fields.text,
                Field::TtlMs => &mut fields.ttl_ms,
                Field::AuthAt => &mut fields.auth_at,
                Field::Revision => &mut fields.revision,
                Field::Partition => &mut fields.partition,
                Field::Conns => {
                    fields.conns = entries.next_value()?;
                    continue;
                }
                Field::Beats => {
                    fields.beats = entries.next_value()?;
                    continue;
                }
                Field::Policy => {
                    fields.policy = Some(entries.next_value()?);
                    continue;
                }
                Field::Unknown => {
                    entries.next_value::<Skip>()?;
                    continue;
                }
            };
            *place = entries.next_value()?;
        }
        Ok(fields)
    }
}

impl<'de> Deserialize<'de> for Fields<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Fields<'de>, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

impl<'de> Deserialize<'de> for Items<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Items<'de>, D::Error> {
        struct ItemsVisitor;
        impl<'de> Visitor<'de> for ItemsVisitor {
            type Value = Items<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of events, or an object with such an array as `events`")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Items<'de>, A::Error> {
                let mut list = Vec::new();
                while let Some(item) = items.next_element()? {
                    list.push(item);
                }
                Ok(Items(list))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Items<'de>, A::Error> {
                let mut found = None;
                while let Some(key) = entries.next_key::<Cow<'de, str>>()? {
                    if key == "events" {
                        found = Some(entries.next_value::<Vec<Item<'de>>>()?);
                    } else {
                        entries.next_value::<IgnoredAny>()?;
                    }
                }
                found.map(Items).ok_or_else(|| de::Error::missing_field("events"))
            }
        }
        deserializer.deserialize_any(ItemsVisitor)
    }
}

impl<'a> Item<'a> {
    fn new_event(self) -> Result<NewEvent<'a>, BadEvent> {
        match self {
            Item::Object(mut fields) => Ok(NewEvent {
                event: fields.event()?,
                partition: match fields.partition {
                    Raw::Number(partition) => Some(partition),
                    Raw::Missing | Raw::Null | Raw::Text(_) | Raw::Other(_) => None,
                },
            }),
            Item::Other(what) => bad("type", format!("an event must be an object, not {what}")),
        }
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

    fn who(&mut self) -> Result<Who<'a>, BadEvent> {
        Ok(Who {
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

    fn via(&mut self) -> Result<Via<'a>, BadEvent> {
        Ok(Via {
            gateway: self.gateway()?,
            epoch: self.epoch()?,
            conn: self.conn()?,
        })
    }

    fn beats(&mut self) -> Result<Vec<Beat<'a>>, BadEvent> {
        let (least, most) = bounds::BEATS;
        let items = match std::mem::take(&mut self.beats) {
            Beats::List(items) => items,
            Beats::Missing | Beats::Null => return bad("beats", "`beats` is missing"),
            Beats::Other(what) => return bad("beats", format!("`beats` must be an array, not {what}")),
        };
        if !(least..=most).contains(&items.len()) {
            return bad(
                "beats",
                format!("`beats` must have {least} to {most} entries, not {}", items.len()),
            );
        }
        let read = |item: Item<'a>| match item {
            Item::Object(mut fields) => Ok(Beat {
                who: fields.who()?,
                conn: fields.conn()?,
            }),
            Item::Other(what) => bad("beats", format!("a beat must be an object, not {what}")),
        };
        let numbered = items.into_iter().enumerate();
        let beats = numbered.map(|(number, item)| {
            read(item).map_err(|bad| BadEvent {
                message: format!("beat {number}: {}", bad.message),
                ..bad
            })
        });
        beats.collect()
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
        let value = match self.policy.take() {
            Some(value @ Value::Object(_)) => value,
            Some(Value::Null) | None => return bad("policy", "`policy` is missing"),
            Some(_) => return bad("policy", "`policy` must be an object"),
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

    fn event(&mut self) -> Result<Event<'a>, BadEvent> {
        let kind = match std::mem::take(&mut self.kind) {
            Raw::Text(kind) => kind,
            Raw::Missing | Raw::Null => return bad("type", "`type` is missing"),
            Raw::Number(_) | Raw::Other(_) => return bad("type", "`type` must be a string"),
        };
        Ok(match &*kind {
            "connect" => Event::Connect {
                who: self.who()?,
                via: self.via()?,
                intent: self
                    .intent
                    .word("intent", &[("login", Intent::Login), ("resume", Intent::Resume)])?,
                client: self.client.text("client", bounds::CLIENT_BYTES)?,
                auth_at: self.auth_at()?,
            },
            "heartbeat" => Event::Heartbeat {
                who: self.who()?,
                via: self.via()?,
            },
            "heartbeats" => Event::Heartbeats {
                gateway: self.gateway()?,
                epoch: self.epoch()?,
                beats: self.beats()?,
            },
            "alive" => Event::Alive {
                gateway: self.gateway()?,
                epoch: self.epoch()?,
                conns: self.conns()?,
            },
            "background" => Event::Background {
                who: self.who()?,
                via: self.via()?,
            },
            "foreground" => Event::Foreground {
                who: self.who()?,
                via: self.via()?,
            },
            "disconnect" => Event::Disconnect {
                who: self.who()?,
                via: self.via()?,
                reason: self
                    .reason
                    .word("reason", &[("closed", Ending::Closed), ("exit", Ending::Exit)])?,
            },
            "logout" => Event::Logout {
                who: self.who()?,
                via: self.via()?,
            },
            "kick" => Event::Kick {
                user: self.user()?,
                target: self.target()?,
            },
            "custom_status" => Event::CustomStatus {
                user: self.user()?,
                text: self.text.text("text", bounds::STATUS_TEXT_BYTES)?,
            },
            "forget" => Event::Forget { user: self.user()? },
            "lease" => Event::Lease {
                gateway: self.gateway()?,
                epoch: self.epoch()?,
                ttl_ms: self.ttl_ms.number("ttl_ms", bounds::TTL_MS_MAX)?,
            },
            "policy" => self.policy()?,
            "revision" => Event::Revision {
                revision: self.revision()?,
            },
            "tick" => Event::Tick,
            other => {
                let shown: String = other.chars().take(40).collect();
                return bad(
                    "type",
                    format!(
                        "`type` {shown:?} is unknown; it must be connect, heartbeat, heartbeats, alive, background, foreground, \
                         disconnect, logout, kick, custom_status, forget, lease, policy, revision or tick"
                    ),
                );
            }
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
