//! What requests say in their bodies.

use super::routes::{FILTER_MAX, USERS};
use crate::presence::event::EventType;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserializer, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use std::borrow::Cow;
use std::fmt;

/// How many users a ticket may name: it must fit into an address.
pub const TICKET_USERS_MAX: usize = 100;

/// A list of texts of which at most so many are built when it is read; the others are only counted. Routes refuse an
/// empty one: it would be taken for *all of them* by one reader and for *none of them* by another.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Texts<const MOST: usize> {
    pub texts: Vec<String>,
    pub count: usize,
}

impl<const MOST: usize> From<Vec<String>> for Texts<MOST> {
    fn from(texts: Vec<String>) -> Texts<MOST> {
        let count = texts.len();
        Texts { texts, count }
    }
}

impl<const MOST: usize> Serialize for Texts<MOST> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.texts.serialize(serializer)
    }
}

impl<'de, const MOST: usize> Deserialize<'de> for Texts<MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct List<const MOST: usize>;
        impl<'de, const MOST: usize> Visitor<'de> for List<MOST> {
            type Value = Texts<MOST>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an array of strings")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Texts<MOST>, A::Error> {
                let mut list = Texts::default();
                while list.count < MOST {
                    let Some(text) = items.next_element()? else {
                        return Ok(list);
                    };
                    list.texts.push(text);
                    list.count += 1;
                }
                while items.next_element::<IgnoredAny>()?.is_some() {
                    list.count += 1;
                }
                Ok(list)
            }
        }
        deserializer.deserialize_seq(List)
    }
}

impl<const MOST: usize> JsonSchema for Texts<MOST> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("Texts{MOST}").into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": MOST})
    }
}

/// `POST /v1/users/query`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UsersQuery {
    /// 1 to 1,000 ids.
    pub users: Texts<{ *USERS.end() }>,
}

/// `POST /v1/changes/query`, `POST /v1/kicks/query`: a subscription whose filter is a body.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FollowQuery {
    /// Of changes: only those of these users.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub users: Option<Texts<FILTER_MAX>>,
    /// Of kicks: only those for these gateways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateways: Option<Texts<FILTER_MAX>>,
    /// Only this partition.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partition: Option<u64>,
    /// Where to begin: `latest`, `latest-50`, `earliest`, or a cursor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// `POST /v1/tickets`; the body may also be empty.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct TicketRequest {
    /// Only the changes of these users; without them the ticket is for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub users: Option<Texts<TICKET_USERS_MAX>>,
}

/// `POST /v1/outcomes`: what nodes ask each other.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OutcomesQuery {
    /// Partitions of which outcomes will be wanted.
    #[serde(default)]
    pub watch: Vec<u32>,
    /// The one of which they are.
    #[serde(default)]
    pub partition: Option<u32>,
    #[serde(default)]
    pub offsets: Vec<u64>,
}

/// The type of an event, as its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TypeName(pub EventType);

impl Serialize for TypeName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.name().serialize(serializer)
    }
}

impl Default for TypeName {
    fn default() -> TypeName {
        TypeName(EventType::Tick)
    }
}

impl JsonSchema for TypeName {
    fn schema_name() -> Cow<'static, str> {
        "EventType".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "enum": EventType::ALL.map(EventType::name)})
    }
}

/// An event to be published. Which fields a type needs is in the rules, section 3; fields that it does not need are
/// skipped.
///
/// The server does not read events through this type: it judges them field by field, to say what is wrong with which.
#[derive(Clone, Debug, Default, Serialize, JsonSchema)]
pub struct NewEvent {
    #[serde(rename = "type")]
    pub kind: TypeName,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub platform: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 128))]
    pub device: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 64))]
    pub gateway: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub epoch: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conn: Option<u64>,
    /// Of `connect`: `login` or `resume`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intent: Option<EventIntent>,
    /// Of `connect`: a name and version that the client gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client: Option<String>,
    /// Of `connect`: when the user proved who it is, in milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub auth_at: Option<u64>,
    /// Of `heartbeats`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beats: Option<Vec<NewBeat>>,
    /// Of `alive`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conns: Option<Vec<u64>>,
    /// Of `alive`: the partition of the connections' users.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<u32>,
    /// Of `disconnect`: `closed` or `exit`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<EventEnding>,
    /// Of `custom_status`; without it the status is cleared.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Of `lease`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// Of `policy`: the document of section 4.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<std::collections::BTreeMap<String, Value>>")]
    pub policy: Option<Value>,
    /// Of `revision`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub revision: Option<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventIntent {
    Login,
    Resume,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventEnding {
    Closed,
    Exit,
}

/// One heartbeat of `heartbeats`.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct NewBeat {
    pub user: String,
    pub platform: String,
    pub device: String,
    pub conn: u64,
}
