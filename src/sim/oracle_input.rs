//! JSON lines, read naively: each line becomes a `serde_json::Value`, and the rules are asked of that.
//!
//! The second reading of sections 3, 4 and 8 of `docs/rules.md`, as [`super::oracle`] is of the sections between.

use super::oracle::Oracle;
use super::oracle_lines::{output_line, text};
use crate::presence::event::{ConnRef, DeviceRef, Ending, Event, EventType, HeartbeatEntry, Intent, Target, bounds};
use crate::presence::policy::{LoginMode, PlatformDocument, Policy, PolicyDocument};
use crate::presence::{Conn, Epoch, Offset, Partition};
use serde_json::{Map, Value};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// The only revision there is (section 3).
const REVISION: u32 = 1;

type Object = Map<String, Value>;

/// What `rollcall fold` prints for an input, apart from the text of `error` in malformed lines.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Folded {
    pub lines: Vec<String>,
    /// The line, counted from 1, that ended the run, and why. Then there are no lines of `--state`.
    pub ended_by: Option<(usize, String)>,
}

/// Folds an input as `rollcall fold --state` does.
pub fn fold(input: &[u8], policy: Policy, partition: Partition, partitions: Option<u32>) -> Folded {
    let mut oracle = Oracle::new(partition, policy);
    let mut lines = Vec::new();
    let mut last = None;
    for (index, line) in input.split(|byte| *byte == b'\n').enumerate() {
        if line.iter().all(|byte| b" \t\r".contains(byte)) {
            continue;
        }
        let (offset, ts, object) = match record(line, last) {
            Ok(record) => record,
            Err(why) => {
                return Folded {
                    lines,
                    ended_by: Some((index + 1, why)),
                };
            }
        };
        last = Some(offset);
        let decoded = event(&object, partition, partitions);
        if let Ok(Event::Revision { revision }) = decoded
            && revision > REVISION
        {
            return Folded {
                lines,
                ended_by: Some((index + 1, format!("revision {revision}"))),
            };
        }
        let mut out = Vec::new();
        oracle.fold(Offset(offset), ts, decoded.as_ref().ok(), &mut out);
        lines.extend(out.iter().map(output_line));
        if let Err(why) = decoded {
            let why = text(&why);
            lines.push(format!(r#"{{"type":"malformed","offset":{offset},"error":{why}}}"#));
        }
    }
    lines.extend(oracle.state_lines());
    Folded { lines, ended_by: None }
}

/// The offset, timestamp and fields of a line that can be folded at all (section 8).
fn record(line: &[u8], last: Option<u64>) -> Result<(u64, u64, Object), String> {
    let line = std::str::from_utf8(line).map_err(|error| error.to_string())?;
    let Value::Object(object) = serde_json::from_str(line).map_err(|error| error.to_string())? else {
        return Err("not a JSON object".to_owned());
    };
    let offset = object.get("offset").and_then(Value::as_u64).ok_or("offset")?;
    let ts = object.get("ts").and_then(Value::as_u64).ok_or("ts")?;
    if last.is_some_and(|last| offset <= last) {
        return Err("offset does not grow".to_owned());
    }
    if ts > bounds::TIMESTAMP_MAX {
        return Err("ts out of range".to_owned());
    }
    Ok((offset, ts, object))
}

/// The event of a record's fields, or why the record is malformed (section 3; with a number of partitions also 2.7).
pub fn event(object: &Object, partition: Partition, partitions: Option<u32>) -> Result<Event<'static>, String> {
    let kind = object.get("type").and_then(Value::as_str).ok_or("no type")?;
    let event = match EventType::named(kind).ok_or("unknown type")? {
        EventType::Connect => Event::Connect {
            who: who(object)?,
            via: via(object)?,
            intent: match string(object, "intent", (0, usize::MAX))?.as_str() {
                "login" => Intent::Login,
                "resume" => Intent::Resume,
                _ => return Err("bad intent".to_owned()),
            },
            client: optional(object, "client", bounds::CLIENT_BYTES)?.map(Cow::Owned),
            auth_at: match object.get("auth_at") {
                None | Some(Value::Null) => None,
                Some(_) => Some(integer(object, "auth_at", bounds::TIMESTAMP_MAX)?),
            },
        },
        EventType::Heartbeat => Event::Heartbeat {
            who: who(object)?,
            via: via(object)?,
        },
        EventType::Background => Event::Background {
            who: who(object)?,
            via: via(object)?,
        },
        EventType::Foreground => Event::Foreground {
            who: who(object)?,
            via: via(object)?,
        },
        EventType::Logout => Event::Logout {
            who: who(object)?,
            via: via(object)?,
        },
        EventType::Disconnect => Event::Disconnect {
            who: who(object)?,
            via: via(object)?,
            reason: match string(object, "reason", (0, usize::MAX))?.as_str() {
                "closed" => Ending::Closed,
                "exit" => Ending::Exit,
                _ => return Err("bad reason".to_owned()),
            },
        },
        EventType::Heartbeats => {
            let list = object.get("beats").and_then(Value::as_array).ok_or("no beats")?;
            let (least, most) = bounds::BEATS;
            if list.len() < least || list.len() > most {
                return Err("bad number of beats".to_owned());
            }
            let mut beats = Vec::new();
            for beat in list {
                let beat = beat.as_object().ok_or("a beat is no object")?;
                beats.push(HeartbeatEntry {
                    who: who(beat)?,
                    conn: Conn(integer(beat, "conn", bounds::NUMBER_MAX)?),
                });
            }
            Event::Heartbeats {
                gateway: Cow::Owned(string(object, "gateway", bounds::GATEWAY_BYTES)?),
                epoch: Epoch(integer(object, "epoch", bounds::NUMBER_MAX)?),
                beats,
            }
        }
        EventType::Alive => {
            let list = object.get("conns").and_then(Value::as_array).ok_or("no conns")?;
            let (least, most) = bounds::CONNS;
            if list.len() < least || list.len() > most {
                return Err("bad number of conns".to_owned());
            }
            let mut conns: Vec<Conn> = Vec::new();
            for conn in list {
                let conn = conn.as_u64().filter(|conn| *conn <= bounds::NUMBER_MAX);
                let conn = Conn(conn.ok_or("a conn is no such integer")?);
                if conns.last().is_some_and(|last| *last >= conn) {
                    return Err("conns do not grow".to_owned());
                }
                conns.push(conn);
            }
            Event::Alive {
                gateway: Cow::Owned(string(object, "gateway", bounds::GATEWAY_BYTES)?),
                epoch: Epoch(integer(object, "epoch", bounds::NUMBER_MAX)?),
                conns,
            }
        }
        EventType::Kick => {
            let user = Cow::Owned(string(object, "user", bounds::USER_BYTES)?);
            let platform = optional(object, "platform", bounds::PLATFORM_BYTES)?;
            let device = optional(object, "device", bounds::DEVICE_BYTES)?;
            let target = match (platform, device) {
                (None, None) => Target::All,
                (Some(platform), None) => Target::Platform(Cow::Owned(platform)),
                (Some(platform), Some(device)) => Target::Device(Cow::Owned(platform), Cow::Owned(device)),
                (None, Some(_)) => return Err("device needs platform".to_owned()),
            };
            Event::Kick { user, target }
        }
        EventType::CustomStatus => Event::CustomStatus {
            user: Cow::Owned(string(object, "user", bounds::USER_BYTES)?),
            text: optional(object, "text", bounds::STATUS_TEXT_BYTES)?.map(Cow::Owned),
        },
        EventType::Forget => Event::Forget {
            user: Cow::Owned(string(object, "user", bounds::USER_BYTES)?),
        },
        EventType::Lease => Event::Lease {
            gateway: Cow::Owned(string(object, "gateway", bounds::GATEWAY_BYTES)?),
            epoch: Epoch(integer(object, "epoch", bounds::NUMBER_MAX)?),
            ttl_ms: integer(object, "ttl_ms", bounds::TTL_MS_MAX)?,
        },
        EventType::Policy => {
            let document = object.get("policy").ok_or("no policy")?;
            Event::Policy {
                policy: Box::new(policy(document)?),
                document: Cow::Owned(document.to_string()),
            }
        }
        EventType::Revision => {
            let (least, most) = bounds::REVISION;
            let revision = integer(object, "revision", most)?;
            if revision < least {
                return Err("bad field revision".to_owned());
            }
            Event::Revision {
                revision: u32::try_from(revision).map_err(|error| error.to_string())?,
            }
        }
        EventType::Tick => Event::Tick,
    };
    if let Some(partitions) = partitions {
        let mut users: Vec<&str> = event.user().into_iter().collect();
        if let Event::Heartbeats { beats, .. } = &event {
            users.extend(beats.iter().map(|beat| &*beat.who.user));
        }
        if users.iter().any(|user| partition_of(user, partitions) != partition) {
            return Err("a user of another partition".to_owned());
        }
    }
    Ok(event)
}

fn who(object: &Object) -> Result<DeviceRef<'static>, String> {
    Ok(DeviceRef {
        user: Cow::Owned(string(object, "user", bounds::USER_BYTES)?),
        platform: Cow::Owned(string(object, "platform", bounds::PLATFORM_BYTES)?),
        device: Cow::Owned(string(object, "device", bounds::DEVICE_BYTES)?),
    })
}

fn via(object: &Object) -> Result<ConnRef<'static>, String> {
    Ok(ConnRef {
        gateway: Cow::Owned(string(object, "gateway", bounds::GATEWAY_BYTES)?),
        epoch: Epoch(integer(object, "epoch", bounds::NUMBER_MAX)?),
        conn: Conn(integer(object, "conn", bounds::NUMBER_MAX)?),
    })
}

fn string(object: &Object, name: &str, bytes: (usize, usize)) -> Result<String, String> {
    optional(object, name, bytes)?.ok_or_else(|| format!("missing field {name}"))
}

/// Null or missing is the same.
fn optional(object: &Object, name: &str, (least, most): (usize, usize)) -> Result<Option<String>, String> {
    match object.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(value)) if value.len() >= least && value.len() <= most => Ok(Some(value.clone())),
        Some(_) => Err(format!("bad field {name}")),
    }
}

/// `as_u64` is `None` for 1.0, true and what is negative or beyond 64 bits.
fn integer(object: &Object, name: &str, most: u64) -> Result<u64, String> {
    match object.get(name).and_then(Value::as_u64) {
        Some(value) if value <= most => Ok(value),
        _ => Err(format!("bad field {name}")),
    }
}

/// A policy document, decoded and completed (section 4).
pub fn policy(document: &Value) -> Result<Policy, String> {
    let object = document.as_object().ok_or("policy: not an object")?;
    let mut given = PolicyDocument::default();
    for (key, value) in object {
        match key.as_str() {
            "rules" => given.rules = Some(number(key, value)?),
            "login" => {
                given.login = Some(match value.as_str() {
                    Some("single") => LoginMode::Single,
                    Some("dual") => LoginMode::Dual,
                    Some("triple") => LoginMode::Triple,
                    Some("multi") => LoginMode::Multi,
                    _ => return Err("policy: login".to_owned()),
                })
            }
            "exclusive" if value.is_null() => given.exclusive = None,
            "exclusive" => {
                let mut groups = Vec::new();
                for group in value.as_array().ok_or("policy: exclusive")? {
                    let mut kinds = Vec::new();
                    for kind in group.as_array().ok_or("policy: exclusive")? {
                        kinds.push(kind.as_str().ok_or("policy: exclusive")?.to_owned());
                    }
                    groups.push(kinds);
                }
                given.exclusive = Some(groups);
            }
            "instances" => {
                for (kind, limit) in value.as_object().ok_or("policy: instances")? {
                    given.instances.insert(kind.clone(), number(kind, limit)?);
                }
            }
            "custom_keep_ms" => given.custom_keep_ms = Some(number(key, value)?),
            "kicked_max" => given.kicked_max = Some(number(key, value)?),
            "outage" => {
                for (key, value) in value.as_object().ok_or("policy: outage")? {
                    match key.as_str() {
                        "silence_ms" => given.silence_ms = Some(number(key, value)?),
                        "grace_ms" => given.grace_ms = Some(number(key, value)?),
                        _ => return Err(format!("policy: unknown key {key}")),
                    }
                }
            }
            "platforms" => {
                let mut platforms = BTreeMap::new();
                for (name, value) in value.as_object().ok_or("policy: platforms")? {
                    platforms.insert(name.clone(), platform(value)?);
                }
                given.platforms = platforms;
            }
            _ => return Err(format!("policy: unknown key {key}")),
        }
    }
    given.complete().map_err(|error| error.to_string())
}

fn platform(value: &Value) -> Result<PlatformDocument, String> {
    let mut given = PlatformDocument::default();
    for (key, value) in value.as_object().ok_or("policy: a platform is no object")? {
        match key.as_str() {
            "kind" => given.kind = Some(value.as_str().ok_or("policy: kind")?.to_owned()),
            "heartbeat_ms" => given.heartbeat_ms = Some(number(key, value)?),
            "timeout_ms" => given.timeout_ms = Some(number(key, value)?),
            "closed_ms" => given.closed_ms = Some(number(key, value)?),
            "exit_ms" => given.exit_ms = Some(number(key, value)?),
            "background_ms" if value.is_null() => given.background_ms = Some(None),
            "background_ms" => given.background_ms = Some(Some(number(key, value)?)),
            "push" => given.push = Some(value.as_bool().ok_or("policy: push")?),
            "away_ms" => given.away_ms = Some(number(key, value)?),
            _ => return Err(format!("policy: unknown key {key}")),
        }
    }
    Ok(given)
}

fn number(key: &str, value: &Value) -> Result<u64, String> {
    value.as_u64().ok_or_else(|| format!("policy: {key}"))
}

/// The partition of a user: Kafka's default for its key (section 9).
pub fn partition_of(user: &str, partitions: u32) -> Partition {
    let positive = murmur2(user.as_bytes()) & 0x7fff_ffff;
    Partition(positive.checked_rem(partitions).unwrap_or(0))
}

/// murmur2 as Kafka's Java client computes it.
pub fn murmur2(key: &[u8]) -> u32 {
    const M: u32 = 0x5bd1_e995;
    const SEED: u32 = 0x9747_b28c;
    let mut hash = SEED ^ key.len() as u32;
    let mut words = key.chunks_exact(4);
    for word in &mut words {
        let mut k = 0u32;
        for (place, byte) in word.iter().enumerate() {
            k |= u32::from(*byte) << (8 * place);
        }
        k = k.wrapping_mul(M);
        k ^= k >> 24;
        k = k.wrapping_mul(M);
        hash = hash.wrapping_mul(M) ^ k;
    }
    let rest = words.remainder();
    if !rest.is_empty() {
        for (place, byte) in rest.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * place);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

#[cfg(test)]
mod tests {
    use super::murmur2;

    /// The values that Kafka's own tests expect (`UtilsTest.testMurmur2`).
    #[test]
    fn murmur2_is_that_of_the_java_client() {
        let expected: [(&[u8], i32); 6] = [
            (b"21", -973932308),
            (b"foobar", -790332482),
            (b"a-little-bit-long-string", -985981536),
            (b"a-little-bit-longer-string", -1486304829),
            (b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58897971),
            (b"abc", 479470107),
        ];
        for (key, hash) in expected {
            assert_eq!(murmur2(key) as i32, hash);
        }
    }
}
