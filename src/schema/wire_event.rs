//! An event as the flat list of fields that it is on the wire (`docs/rules.md` section 3), and the judgement over them.
//!
//! Every wire format has the same fields with the same bounds, so they are checked here once. Fields that a type does
//! not need are ignored, whatever they hold.

use super::Malformed;
use super::policy::parse_policy;
use crate::presence::event::{ConnRef, DeviceRef, Ending, Event, EventType, HeartbeatEntry, Intent, Target, bounds};
use crate::presence::{Conn, Epoch};
use std::borrow::Cow;

/// The fields of section 3; none where a field is null or missing. Nothing is checked yet but the beats, each of which
/// was made by [`beat`].
#[derive(Clone, Debug, Default)]
pub(crate) struct WireEvent<'a> {
    pub(crate) kind: &'a str,
    pub(crate) user: Option<&'a str>,
    pub(crate) platform: Option<&'a str>,
    pub(crate) device: Option<&'a str>,
    pub(crate) gateway: Option<&'a str>,
    pub(crate) epoch: Option<i64>,
    pub(crate) conn: Option<i64>,
    pub(crate) intent: Option<&'a str>,
    pub(crate) client: Option<&'a str>,
    pub(crate) beats: Option<Cow<'a, [HeartbeatEntry<'a>]>>,
    pub(crate) reason: Option<&'a str>,
    pub(crate) text: Option<&'a str>,
    pub(crate) ttl_ms: Option<i64>,
    pub(crate) policy: Option<&'a str>,
    pub(crate) auth_at: Option<i64>,
    pub(crate) conns: Option<Conns<'a>>,
    pub(crate) revision: Option<i64>,
}

/// The connections of an `alive` event: packed, as they are in Avro, or in numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Conns<'a> {
    Packed(&'a [u8]),
    Numbers(&'a [Conn]),
}

/// The type of section 3 whose `beats` matter.
pub(crate) const HEARTBEATS: &str = "heartbeats";

impl<'a> WireEvent<'a> {
    /// The event, if every field that its type needs is there and within its bounds. Borrows all text; allocates only
    /// for a policy.
    #[inline]
    pub(crate) fn event(&mut self) -> Result<Event<'a>, Malformed> {
        match self.kind {
            // Apart and in line, because nearly every record is one.
            "heartbeat" => Ok(Event::Heartbeat {
                who: self.who()?,
                via: self.via()?,
            }),
            _ => self.event_but_heartbeat(),
        }
    }

    fn event_but_heartbeat(&mut self) -> Result<Event<'a>, Malformed> {
        let Some(kind) = EventType::named(self.kind) else {
            return Err(Malformed::invalid(format!("type: there is none named {:?}", self.kind)));
        };
        Ok(match kind {
            EventType::Connect => Event::Connect {
                who: self.who()?,
                via: self.via()?,
                intent: match self.intent {
                    Some("login") => Intent::Login,
                    Some("resume") => Intent::Resume,
                    other => return Err(no_name("intent", "login or resume", other)),
                },
                client: self
                    .client
                    .map(|client| text("client", client, bounds::CLIENT_BYTES))
                    .transpose()?,
                auth_at: self
                    .auth_at
                    .map(|auth_at| integer("auth_at", auth_at, bounds::TIMESTAMP_MAX))
                    .transpose()?,
            },
            EventType::Heartbeat => Event::Heartbeat {
                who: self.who()?,
                via: self.via()?,
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
                reason: match self.reason {
                    Some("closed") => Ending::Closed,
                    Some("exit") => Ending::Exit,
                    other => return Err(no_name("reason", "closed or exit", other)),
                },
            },
            EventType::Logout => Event::Logout {
                who: self.who()?,
                via: self.via()?,
            },
            EventType::Heartbeats => Event::Heartbeats {
                gateway: self.gateway()?,
                epoch: self.epoch()?,
                beats: {
                    let beats = required("beats", self.beats.take())?;
                    number_of_beats(beats.len())?;
                    beats.into_owned()
                },
            },
            EventType::Alive => Event::Alive {
                gateway: self.gateway()?,
                epoch: self.epoch()?,
                conns: match required("conns", self.conns)? {
                    Conns::Packed(bytes) => unpack_conns(bytes)?,
                    Conns::Numbers(conns) => conns.to_vec(),
                },
            },
            EventType::Kick => {
                let user = self.user()?;
                let target = match (self.platform, self.device) {
                    (None, None) => Target::All,
                    (Some(_), None) => Target::Platform(self.platform()?),
                    (Some(_), Some(_)) => Target::Device(self.platform()?, self.device()?),
                    (None, Some(_)) => return Err(Malformed::invalid("platform must be given where device is")),
                };
                Event::Kick { user, target }
            }
            EventType::CustomStatus => Event::CustomStatus {
                user: self.user()?,
                text: self
                    .text
                    .map(|given| text("text", given, bounds::STATUS_TEXT_BYTES))
                    .transpose()?,
            },
            EventType::Forget => Event::Forget { user: self.user()? },
            EventType::Lease => Event::Lease {
                gateway: self.gateway()?,
                epoch: self.epoch()?,
                ttl_ms: integer("ttl_ms", required("ttl_ms", self.ttl_ms)?, bounds::TTL_MS_MAX)?,
            },
            EventType::Policy => {
                let document = required("policy", self.policy)?;
                Event::Policy {
                    policy: Box::new(parse_policy(document)?),
                    document: Cow::Borrowed(document),
                }
            }
            EventType::Revision => Event::Revision {
                revision: revision(required("revision", self.revision)?)?,
            },
            EventType::Tick => Event::Tick,
        })
    }

    #[inline(always)]
    fn who(&self) -> Result<DeviceRef<'a>, Malformed> {
        Ok(DeviceRef {
            user: self.user()?,
            platform: self.platform()?,
            device: self.device()?,
        })
    }

    #[inline(always)]
    fn via(&self) -> Result<ConnRef<'a>, Malformed> {
        Ok(ConnRef {
            gateway: self.gateway()?,
            epoch: self.epoch()?,
            conn: Conn(integer("conn", required("conn", self.conn)?, bounds::NUMBER_MAX)?),
        })
    }

    #[inline]
    fn user(&self) -> Result<Cow<'a, str>, Malformed> {
        text("user", required("user", self.user)?, bounds::USER_BYTES)
    }

    #[inline]
    fn platform(&self) -> Result<Cow<'a, str>, Malformed> {
        text("platform", required("platform", self.platform)?, bounds::PLATFORM_BYTES)
    }

    #[inline]
    fn device(&self) -> Result<Cow<'a, str>, Malformed> {
        text("device", required("device", self.device)?, bounds::DEVICE_BYTES)
    }

    #[inline]
    fn gateway(&self) -> Result<Cow<'a, str>, Malformed> {
        text("gateway", required("gateway", self.gateway)?, bounds::GATEWAY_BYTES)
    }

    #[inline]
    fn epoch(&self) -> Result<Epoch, Malformed> {
        Ok(Epoch(integer(
            "epoch",
            required("epoch", self.epoch)?,
            bounds::NUMBER_MAX,
        )?))
    }

    /// The fields of an event, which is valid by its nature.
    pub(crate) fn of(event: &'a Event<'_>) -> WireEvent<'a> {
        let wire_event = WireEvent {
            kind: event.name(),
            ..WireEvent::default()
        };
        match event {
            Event::Connect {
                who,
                via,
                intent,
                client,
                auth_at,
            } => WireEvent {
                intent: Some(match intent {
                    Intent::Login => "login",
                    Intent::Resume => "resume",
                }),
                client: client.as_deref(),
                auth_at: auth_at.map(signed),
                ..wire_event.on(who, via)
            },
            Event::Heartbeat { who, via }
            | Event::Background { who, via }
            | Event::Foreground { who, via }
            | Event::Logout { who, via } => wire_event.on(who, via),
            Event::Heartbeats { gateway, epoch, beats } => WireEvent {
                gateway: Some(gateway),
                epoch: Some(signed(epoch.0)),
                beats: Some(Cow::Borrowed(beats)),
                ..wire_event
            },
            Event::Alive { gateway, epoch, conns } => WireEvent {
                gateway: Some(gateway),
                epoch: Some(signed(epoch.0)),
                conns: Some(Conns::Numbers(conns)),
                ..wire_event
            },
            Event::Disconnect { who, via, reason } => WireEvent {
                reason: Some(match reason {
                    Ending::Closed => "closed",
                    Ending::Exit => "exit",
                }),
                ..wire_event.on(who, via)
            },
            Event::Kick { user, target } => {
                let (platform, device): (Option<&str>, Option<&str>) = match target {
                    Target::All => (None, None),
                    Target::Platform(platform) => (Some(platform), None),
                    Target::Device(platform, device) => (Some(platform), Some(device)),
                };
                WireEvent {
                    user: Some(user),
                    platform,
                    device,
                    ..wire_event
                }
            }
            Event::CustomStatus { user, text } => WireEvent {
                user: Some(user),
                text: text.as_deref(),
                ..wire_event
            },
            Event::Forget { user } => WireEvent {
                user: Some(user),
                ..wire_event
            },
            Event::Lease { gateway, epoch, ttl_ms } => WireEvent {
                gateway: Some(gateway),
                epoch: Some(signed(epoch.0)),
                ttl_ms: Some(signed(*ttl_ms)),
                ..wire_event
            },
            Event::Policy { policy: _, document } => WireEvent {
                policy: Some(document),
                ..wire_event
            },
            Event::Revision { revision } => WireEvent {
                revision: Some((*revision).into()),
                ..wire_event
            },
            Event::Tick => wire_event,
        }
    }

    fn on(self, who: &'a DeviceRef<'_>, via: &'a ConnRef<'_>) -> WireEvent<'a> {
        WireEvent {
            user: Some(&who.user),
            platform: Some(&who.platform),
            device: Some(&who.device),
            gateway: Some(&via.gateway),
            epoch: Some(signed(via.epoch.0)),
            conn: Some(signed(via.conn.0)),
            ..self
        }
    }
}

/// One beat of a `heartbeats` record; `index` is for the error.
pub(crate) fn beat<'a>(
    index: usize,
    user: &'a str,
    platform: &'a str,
    device: &'a str,
    conn: i64,
) -> Result<HeartbeatEntry<'a>, Malformed> {
    let checked = || {
        Ok(HeartbeatEntry {
            who: DeviceRef {
                user: text("user", user, bounds::USER_BYTES)?,
                platform: text("platform", platform, bounds::PLATFORM_BYTES)?,
                device: text("device", device, bounds::DEVICE_BYTES)?,
            },
            conn: Conn(integer("conn", conn, bounds::NUMBER_MAX)?),
        })
    };
    checked().map_err(|error: Malformed| Malformed::invalid(format!("beats[{index}]: {error}")))
}

/// Appends connections as `conns` has them in Avro (section 9): unsigned LEB128, the first number, then each one's
/// difference to the one before.
pub(crate) fn pack_conns(conns: &[Conn], out: &mut Vec<u8>) {
    let mut before = 0;
    for conn in conns {
        let mut rest = conn.0 - before;
        before = conn.0;
        while rest >= 0x80 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    }
}

/// Reads what [`pack_conns`] wrote, and nothing else: each number in its shortest form, each greater than the one before.
fn unpack_conns(bytes: &[u8]) -> Result<Vec<Conn>, Malformed> {
    let bad = |what: &str| Malformed::invalid(format!("conns {what}"));
    // Each number ends in a byte without the upper bit, so they are counted before anything is reserved.
    let count = bytes.iter().filter(|byte| **byte < 0x80).count();
    number_of_conns(count)?;
    let mut conns = Vec::with_capacity(count);
    let mut before: Option<u64> = None;
    let mut rest = bytes;
    while !rest.is_empty() {
        let mut number = 0u64;
        let mut read = 0;
        loop {
            let byte = *rest.get(read).ok_or_else(|| bad("ends within a number"))?;
            let bits = u64::from(byte & 0x7f);
            // Nine groups of seven bits are 63.
            if read == 9 {
                return Err(bad("has a number beyond 2^63-1"));
            }
            number |= bits << (7 * read);
            read += 1;
            if byte < 0x80 {
                if byte == 0 && read > 1 {
                    return Err(bad("has a number that is not in its shortest form"));
                }
                break;
            }
        }
        rest = &rest[read..];
        let conn = match before {
            None => number,
            Some(_) if number == 0 => return Err(bad("names a connection twice")),
            Some(before) => before + number,
        };
        if conn > bounds::NUMBER_MAX {
            return Err(bad("has a number beyond 2^63-1"));
        }
        before = Some(conn);
        conns.push(Conn(conn));
    }
    Ok(conns)
}

/// How many connections an `alive` record has.
pub(crate) fn number_of_conns(count: usize) -> Result<(), Malformed> {
    let (least, most) = bounds::CONNS;
    if (least..=most).contains(&count) {
        Ok(())
    } else {
        Err(Malformed::invalid(format!(
            "conns must be {least} to {most} numbers, not {count}"
        )))
    }
}

fn revision(value: i64) -> Result<u32, Malformed> {
    let (least, most) = bounds::REVISION;
    match u32::try_from(value) {
        Ok(revision) if (least..=most).contains(&revision.into()) => Ok(revision),
        _ => Err(Malformed::invalid(format!(
            "revision must be {least} to {most}, not {value}"
        ))),
    }
}

/// How many beats a record has.
pub(crate) fn number_of_beats(count: usize) -> Result<(), Malformed> {
    let (least, most) = bounds::BEATS;
    if (least..=most).contains(&count) {
        Ok(())
    } else {
        Err(Malformed::invalid(format!(
            "beats must be {least} to {most}, not {count}"
        )))
    }
}

/// A field that its type needs.
#[inline(always)]
pub(crate) fn required<T>(field: &'static str, value: Option<T>) -> Result<T, Malformed> {
    value.ok_or_else(|| missing(field))
}

/// Text within its bounds, in bytes.
#[inline(always)]
pub(crate) fn text<'a>(
    field: &'static str,
    text: &'a str,
    (least, most): (usize, usize),
) -> Result<Cow<'a, str>, Malformed> {
    if least <= text.len() && text.len() <= most {
        Ok(Cow::Borrowed(text))
    } else {
        Err(wrong_length(field, text.len(), least, most))
    }
}

/// An integer, 0 to `most`.
#[inline(always)]
pub(crate) fn integer(field: &'static str, value: i64, most: u64) -> Result<u64, Malformed> {
    match u64::try_from(value) {
        Ok(value) if value <= most => Ok(value),
        _ => Err(out_of_range(field, value, most)),
    }
}

#[cold]
fn missing(field: &str) -> Malformed {
    Malformed::invalid(format!("{field} is missing"))
}

#[cold]
fn wrong_length(field: &str, length: usize, least: usize, most: usize) -> Malformed {
    Malformed::invalid(format!("{field} must have {least} to {most} bytes, not {length}"))
}

#[cold]
fn out_of_range(field: &str, value: i64, most: u64) -> Malformed {
    Malformed::invalid(format!("{field} must be 0 to {most}, not {value}"))
}

#[cold]
fn no_name(field: &'static str, names: &str, found: Option<&str>) -> Malformed {
    match found {
        None => missing(field),
        Some(found) => Malformed::invalid(format!("{field} must be {names}, not {found:?}")),
    }
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).expect("a number of an event is below 2^63")
}
