//! Our values as `apache-avro` reads and writes them, built from the schemas and the rules, not from the code under test.

use apache_avro::Schema as AvroSchema;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::types::Value;
use apache_avro::writer::datum::GenericDatumWriter;
use rollcall::presence::change::{Change, Kick, OutputId};
use rollcall::presence::event::{ConnRef, DeviceRef, Ending, Event, Intent, Target};
use rollcall::schema::avro::{Frame, IncidentRecord, Quarantined, Schema, UserState, unframe};
use std::collections::BTreeMap;

pub fn write(schema: &AvroSchema, value: Value) -> Vec<u8> {
    GenericDatumWriter::builder(schema)
        .build()
        .unwrap()
        .write_value_to_vec(value)
        .unwrap()
}

/// Our bytes are those of `apache-avro` for this value, and it reads them as this value.
pub fn agrees(schema: Schema, value: &[u8], datum: &[u8], expected: Value) {
    assert_eq!(unframe(value), Ok((Frame::Fingerprint(schema.fingerprint()), datum)));
    let parsed = AvroSchema::parse_str(schema.json()).unwrap();
    let reader = GenericDatumReader::builder(&parsed).build().unwrap();
    assert_eq!(reader.read_value(&mut &datum[..]).unwrap(), expected);
    assert_eq!(write(&parsed, expected), datum);
}

fn record<const N: usize>(fields: [(&str, Value); N]) -> Value {
    Value::Record(fields.map(|(name, value)| (name.to_owned(), value)).to_vec())
}

fn text(text: impl Into<String>) -> Value {
    Value::String(text.into())
}

fn long(number: u64) -> Value {
    Value::Long(number.try_into().unwrap())
}

fn time(ms: u64) -> Value {
    Value::TimestampMillis(ms.try_into().unwrap())
}

fn nullable(value: Option<Value>) -> Value {
    match value {
        None => Value::Union(0, Box::new(Value::Null)),
        Some(value) => Value::Union(1, Box::new(value)),
    }
}

fn id(id: OutputId) -> Value {
    text(format!("{}-{}-{}", id.partition.0, id.offset.0, id.index))
}

#[derive(Default)]
struct Fields<'e> {
    who: Option<&'e DeviceRef<'e>>,
    via: Option<&'e ConnRef<'e>>,
    user: Option<&'e str>,
    platform: Option<&'e str>,
    device: Option<&'e str>,
    gateway: Option<&'e str>,
    epoch: Option<u64>,
    intent: Option<&'e str>,
    client: Option<&'e str>,
    beats: Option<Value>,
    reason: Option<&'e str>,
    text: Option<&'e str>,
    ttl_ms: Option<u64>,
    policy: Option<&'e str>,
    auth_at: Option<u64>,
    conns: Option<Vec<u8>>,
    revision: Option<u32>,
}

pub fn event(event: &Event<'_>) -> Value {
    let none = Fields::default();
    let (kind, fields) = match event {
        Event::Connect {
            who,
            via,
            intent,
            client,
            auth_at,
        } => {
            let intent = match intent {
                Intent::Login => "login",
                Intent::Resume => "resume",
            };
            let fields = Fields {
                who: Some(who),
                via: Some(via),
                intent: Some(intent),
                ..none
            };
            (
                "connect",
                Fields {
                    client: client.as_deref(),
                    auth_at: *auth_at,
                    ..fields
                },
            )
        }
        Event::Heartbeat { who, via } => (
            "heartbeat",
            Fields {
                who: Some(who),
                via: Some(via),
                ..none
            },
        ),
        Event::Heartbeats { gateway, epoch, beats } => {
            let beats = beats.iter().map(|beat| {
                record([
                    ("user", text(&*beat.who.user)),
                    ("platform", text(&*beat.who.platform)),
                    ("device", text(&*beat.who.device)),
                    ("conn", long(beat.conn.0)),
                ])
            });
            let beats = Some(Value::Array(beats.collect()));
            (
                "heartbeats",
                Fields {
                    gateway: Some(gateway),
                    epoch: Some(epoch.0),
                    beats,
                    ..none
                },
            )
        }
        Event::Background { who, via } => (
            "background",
            Fields {
                who: Some(who),
                via: Some(via),
                ..none
            },
        ),
        Event::Foreground { who, via } => (
            "foreground",
            Fields {
                who: Some(who),
                via: Some(via),
                ..none
            },
        ),
        Event::Disconnect { who, via, reason } => {
            let reason = match reason {
                Ending::Closed => "closed",
                Ending::Exit => "exit",
            };
            (
                "disconnect",
                Fields {
                    who: Some(who),
                    via: Some(via),
                    reason: Some(reason),
                    ..none
                },
            )
        }
        Event::Logout { who, via } => (
            "logout",
            Fields {
                who: Some(who),
                via: Some(via),
                ..none
            },
        ),
        Event::Kick { user, target } => {
            let fields = match target {
                Target::All => none,
                Target::Platform(platform) => Fields {
                    platform: Some(platform),
                    ..none
                },
                Target::Device(platform, device) => Fields {
                    platform: Some(platform),
                    device: Some(device),
                    ..none
                },
            };
            (
                "kick",
                Fields {
                    user: Some(user),
                    ..fields
                },
            )
        }
        Event::CustomStatus { user, text } => (
            "custom_status",
            Fields {
                user: Some(user),
                text: text.as_deref(),
                ..none
            },
        ),
        Event::Forget { user } => (
            "forget",
            Fields {
                user: Some(user),
                ..none
            },
        ),
        Event::Lease { gateway, epoch, ttl_ms } => (
            "lease",
            Fields {
                gateway: Some(gateway),
                epoch: Some(epoch.0),
                ttl_ms: Some(*ttl_ms),
                ..none
            },
        ),
        Event::Policy { document, .. } => (
            "policy",
            Fields {
                policy: Some(document),
                ..none
            },
        ),
        Event::Alive { gateway, epoch, conns } => {
            let mut packed = Vec::new();
            let mut before = 0;
            for conn in conns {
                leb128(conn.0 - before, &mut packed);
                before = conn.0;
            }
            (
                "alive",
                Fields {
                    gateway: Some(gateway),
                    epoch: Some(epoch.0),
                    conns: Some(packed),
                    ..none
                },
            )
        }
        Event::Revision { revision } => (
            "revision",
            Fields {
                revision: Some(*revision),
                ..none
            },
        ),
        Event::Tick => ("tick", none),
    };
    let Fields { who, via, .. } = fields;
    let string = |value: Option<&str>| nullable(value.map(text));
    let number = |value: Option<u64>| nullable(value.map(long));
    record([
        ("type", text(kind)),
        ("user", string(fields.user.or(who.map(|who| &*who.user)))),
        ("platform", string(fields.platform.or(who.map(|who| &*who.platform)))),
        ("device", string(fields.device.or(who.map(|who| &*who.device)))),
        ("gateway", string(fields.gateway.or(via.map(|via| &*via.gateway)))),
        ("epoch", number(fields.epoch.or(via.map(|via| via.epoch.0)))),
        ("conn", number(via.map(|via| via.conn.0))),
        ("intent", string(fields.intent)),
        ("client", string(fields.client)),
        ("beats", nullable(fields.beats)),
        ("reason", string(fields.reason)),
        ("text", string(fields.text)),
        ("ttl_ms", number(fields.ttl_ms)),
        ("policy", string(fields.policy)),
        ("auth_at", number(fields.auth_at)),
        ("conns", nullable(fields.conns.map(Value::Bytes))),
        (
            "revision",
            nullable(fields.revision.map(|revision| Value::Int(revision.try_into().unwrap()))),
        ),
    ])
}

/// Unsigned LEB128, as the text of the rules has it.
fn leb128(mut number: u64, out: &mut Vec<u8>) {
    while number > 127 {
        out.push((number % 128) as u8 + 128);
        number /= 128;
    }
    out.push(number as u8);
}

pub fn change(change: &Change) -> Value {
    let Change {
        id: of,
        seq,
        user,
        version,
        at,
        logged_at,
        cause,
        before,
        after,
        devices,
        custom_status,
        evidence,
        rehearsal: _,
    } = change;
    let devices = devices.iter().map(|device| {
        record([
            ("platform", text(&*device.platform)),
            ("device", text(&*device.device)),
            ("gateway", text(&*device.gateway)),
            ("before", text(device.before.name())),
            ("after", text(device.after.name())),
        ])
    });
    record([
        ("id", id(*of)),
        ("partition", Value::Int(of.partition.0 as i32)),
        ("offset", long(of.offset.0)),
        ("seq", long(*seq)),
        ("user", text(&**user)),
        ("version", long(*version)),
        ("at", time(at.0)),
        ("logged_at", time(logged_at.0)),
        ("cause", text(cause.name())),
        ("before", text(before.name())),
        ("after", text(after.name())),
        ("devices", Value::Array(devices.collect())),
        ("custom_status", nullable(custom_status.as_deref().map(text))),
        ("evidence", long(evidence.0)),
    ])
}

pub fn kick(kick: &Kick) -> Value {
    let whose = kick.whose.as_ref();
    record([
        ("id", id(kick.id)),
        ("gateway", text(&*kick.gateway)),
        ("epoch", long(kick.epoch.0)),
        ("conn", long(kick.conn.0)),
        ("user", nullable(whose.map(|whose| text(&*whose.user)))),
        ("platform", nullable(whose.map(|whose| text(&*whose.platform)))),
        ("device", nullable(whose.map(|whose| text(&*whose.device)))),
        ("reason", text(kick.reason.name())),
        ("at", time(kick.at.0)),
    ])
}

pub fn user_state(state: &UserState<'_>) -> Value {
    let devices = state.devices.iter().map(|device| {
        record([
            ("platform", text(&*device.platform)),
            ("device", text(&*device.device)),
            ("status", text(device.status.name())),
        ])
    });
    record([
        ("user", text(&*state.user)),
        ("version", long(state.version)),
        ("status", text(state.status.name())),
        ("since", time(state.since.0)),
        ("custom_status", nullable(state.custom_status.as_deref().map(text))),
        ("devices", Value::Array(devices.collect())),
        ("partition", Value::Int(state.partition.0 as i32)),
        ("offset", long(state.offset.0)),
    ])
}

pub fn quarantined(quarantined: &Quarantined<'_>) -> Value {
    record([
        ("partition", Value::Int(quarantined.partition.0 as i32)),
        ("offset", long(quarantined.offset.0)),
        ("ts", time(quarantined.ts)),
        ("error", text(&*quarantined.error)),
        (
            "key",
            nullable(quarantined.key.as_deref().map(|key| Value::Bytes(key.to_vec()))),
        ),
        (
            "value",
            nullable(quarantined.value.as_deref().map(|value| Value::Bytes(value.to_vec()))),
        ),
    ])
}

pub fn incident(incident: &IncidentRecord) -> Value {
    let map = |counts: &BTreeMap<String, u64>| {
        Value::Map(
            counts
                .iter()
                .map(|(name, count)| (name.clone(), long(*count)))
                .collect(),
        )
    };
    record([
        ("id", text(&*incident.id)),
        ("rule", Value::Int(incident.rule as i32)),
        ("window_s", Value::Int(incident.window_s as i32)),
        ("least", long(incident.least)),
        ("share_percent", Value::Int(incident.share_percent as i32)),
        ("from", time(incident.from)),
        ("to", time(incident.to)),
        ("departures", long(incident.departures)),
        ("devices", long(incident.devices)),
        ("online_before", long(incident.online_before)),
        ("causes", map(&incident.causes)),
        ("gateways", map(&incident.gateways)),
        ("platforms", map(&incident.platforms)),
        ("clients", nullable(incident.clients.as_ref().map(map))),
    ])
}
