//! An event as the flat list of fields that it is on the wire (`docs/rules.md` section 3), and the judgement over them.
//!
//! Every wire format has the same fields with the same bounds, so they are checked here once: [`event`] judges what a
//! format gives through [`EventFields`]. Fields that a type does not need are ignored, whatever they hold. Each format
//! judges by itself what it alone has: the packed connections of Avro, the lists and the wrong types of JSON.

use super::Malformed;
use super::policy::parse_policy;
use crate::presence::event::{ConnRef, DeviceRef, Ending, Event, EventType, HeartbeatEntry, Intent, Target, bounds};
use crate::presence::{Conn, Epoch};
use crate::varint;
use std::borrow::Cow;

/// The fields of section 3; none where a field is null or missing. Nothing is checked yet but the beats, each of which
/// was judged when it was read.
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

/// The fields that hold text.
#[derive(Clone, Copy)]
pub(crate) enum TextField {
    User,
    Platform,
    Device,
    Gateway,
    Client,
    Text,
}

impl TextField {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            TextField::User => "user",
            TextField::Platform => "platform",
            TextField::Device => "device",
            TextField::Gateway => "gateway",
            TextField::Client => "client",
            TextField::Text => "text",
        }
    }

    /// In bytes, both ends included.
    pub(crate) const fn bounds(self) -> (usize, usize) {
        match self {
            TextField::User => bounds::USER_BYTES,
            TextField::Platform => bounds::PLATFORM_BYTES,
            TextField::Device => bounds::DEVICE_BYTES,
            TextField::Gateway => bounds::GATEWAY_BYTES,
            TextField::Client => bounds::CLIENT_BYTES,
            TextField::Text => bounds::STATUS_TEXT_BYTES,
        }
    }
}

/// The fields that hold an integer.
#[derive(Clone, Copy)]
pub(crate) enum NumberField {
    Epoch,
    Conn,
    AuthAt,
    TtlMs,
    Revision,
}

impl NumberField {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            NumberField::Epoch => "epoch",
            NumberField::Conn => "conn",
            NumberField::AuthAt => "auth_at",
            NumberField::TtlMs => "ttl_ms",
            NumberField::Revision => "revision",
        }
    }

    pub(crate) const fn bounds(self) -> (u64, u64) {
        match self {
            NumberField::Epoch | NumberField::Conn => (0, bounds::NUMBER_MAX),
            NumberField::AuthAt => (0, bounds::TIMESTAMP_MAX),
            NumberField::TtlMs => (0, bounds::TTL_MS_MAX),
            NumberField::Revision => bounds::REVISION,
        }
    }
}

/// The fields that hold one of a few words.
#[derive(Clone, Copy)]
pub(crate) enum WordField {
    Intent,
    Reason,
}

impl WordField {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            WordField::Intent => "intent",
            WordField::Reason => "reason",
        }
    }
}

/// Where the fields that name a device and a connection are read from, and the sentences about what is wrong with them.
///
/// The judgement is here, and is the same for every format. A format knows how its fields are read and which values are
/// of no type that a field may have, and has sentences of its own: those about Avro are in quarantine topics, byte for
/// byte, and those about JSON name the field as it is written there.
pub(crate) trait DeviceFields<'a> {
    type Wrong;

    /// Returns a field, unless it is null or missing. An error if it is no text.
    fn text(&mut self, field: TextField) -> Result<Option<Cow<'a, str>>, Self::Wrong>;

    /// The same for a number. An error if it is no integer, or negative.
    fn number(&mut self, field: NumberField) -> Result<Option<u64>, Self::Wrong>;

    fn missing(name: &'static str) -> Self::Wrong;

    fn wrong_length(field: TextField, bytes: usize) -> Self::Wrong;

    fn out_of_range(field: NumberField, number: u64) -> Self::Wrong;
}

/// The same for all fields of an event.
pub(crate) trait EventFields<'a>: DeviceFields<'a> {
    /// Whether a field is neither null nor missing.
    fn has(&self, field: TextField) -> bool;

    /// Returns a field, unless it is null or missing. One that is no text gives an empty word.
    fn word(&self, field: WordField) -> Option<&str>;

    /// Returns the beats, unless they are null or missing. An error if they are no list.
    fn beats(&mut self) -> Result<Option<GivenBeats<'a, Self::Wrong>>, Self::Wrong>;

    /// Returns the connections, judged: each format has a form of its own for them.
    fn conns(&mut self) -> Result<Vec<Conn>, Self::Wrong>;

    /// Returns the event of a policy document, judged by [`policy`](super::policy).
    fn policy(&mut self) -> Result<Event<'a>, Self::Wrong>;

    fn no_such_word(field: WordField, words: &[&str], found: &str) -> Self::Wrong;

    fn wrong_number_of_beats(count: usize) -> Self::Wrong;

    /// The error for a kick that names a device and no platform.
    fn platform_needed() -> Self::Wrong;

    fn unknown_type(kind: &str) -> Self::Wrong;
}

/// The beats of a record, as far as they were read.
pub(crate) struct GivenBeats<'a, W> {
    /// Each judged by [`beat`], up to the first that is wrong.
    pub(crate) beats: Vec<HeartbeatEntry<'a>>,
    /// How many there are, read or not.
    pub(crate) count: usize,
    pub(crate) wrong: Option<W>,
}

/// Judges fields: the event, if every field that its type needs is there and within its bounds. Borrows what its fields
/// borrow; allocates for lists and policies alone.
#[inline]
pub(crate) fn event<'a, F: EventFields<'a>>(kind: &str, fields: &mut F) -> Result<Event<'a>, F::Wrong> {
    match kind {
        // Apart and in line, because nearly every record is one.
        "heartbeat" => Ok(Event::Heartbeat {
            who: who(fields)?,
            via: via(fields)?,
        }),
        _ => event_but_heartbeat(kind, fields),
    }
}

fn event_but_heartbeat<'a, F: EventFields<'a>>(kind: &str, fields: &mut F) -> Result<Event<'a>, F::Wrong> {
    let known = EventType::named(kind).ok_or_else(|| F::unknown_type(kind))?;
    Ok(match known {
        EventType::Heartbeat => Event::Heartbeat {
            who: who(fields)?,
            via: via(fields)?,
        },
        EventType::Connect => Event::Connect {
            who: who(fields)?,
            via: via(fields)?,
            intent: word(
                fields,
                WordField::Intent,
                &[("login", Intent::Login), ("resume", Intent::Resume)],
            )?,
            client: text(fields, TextField::Client)?,
            auth_at: number(fields, NumberField::AuthAt)?,
        },
        EventType::Background => Event::Background {
            who: who(fields)?,
            via: via(fields)?,
        },
        EventType::Foreground => Event::Foreground {
            who: who(fields)?,
            via: via(fields)?,
        },
        EventType::Disconnect => Event::Disconnect {
            who: who(fields)?,
            via: via(fields)?,
            reason: word(
                fields,
                WordField::Reason,
                &[("closed", Ending::Closed), ("exit", Ending::Exit)],
            )?,
        },
        EventType::Logout => Event::Logout {
            who: who(fields)?,
            via: via(fields)?,
        },
        EventType::Heartbeats => Event::Heartbeats {
            gateway: required_text(fields, TextField::Gateway)?,
            epoch: epoch(fields)?,
            beats: beats(fields)?,
        },
        EventType::Alive => Event::Alive {
            gateway: required_text(fields, TextField::Gateway)?,
            epoch: epoch(fields)?,
            conns: fields.conns()?,
        },
        EventType::Kick => Event::Kick {
            user: required_text(fields, TextField::User)?,
            target: match (fields.has(TextField::Platform), fields.has(TextField::Device)) {
                (false, false) => Target::All,
                (true, false) => Target::Platform(required_text(fields, TextField::Platform)?),
                (true, true) => Target::Device(
                    required_text(fields, TextField::Platform)?,
                    required_text(fields, TextField::Device)?,
                ),
                (false, true) => return Err(F::platform_needed()),
            },
        },
        EventType::CustomStatus => Event::CustomStatus {
            user: required_text(fields, TextField::User)?,
            text: text(fields, TextField::Text)?,
        },
        EventType::Forget => Event::Forget {
            user: required_text(fields, TextField::User)?,
        },
        EventType::Lease => Event::Lease {
            gateway: required_text(fields, TextField::Gateway)?,
            epoch: epoch(fields)?,
            ttl_ms: required_number(fields, NumberField::TtlMs)?,
        },
        EventType::Policy => fields.policy()?,
        EventType::Revision => Event::Revision {
            revision: required_number(fields, NumberField::Revision)? as u32,
        },
        EventType::Tick => Event::Tick,
    })
}

/// Judges one beat of a `heartbeats` record.
pub(crate) fn beat<'a, F: DeviceFields<'a>>(fields: &mut F) -> Result<HeartbeatEntry<'a>, F::Wrong> {
    Ok(HeartbeatEntry {
        who: who(fields)?,
        conn: Conn(required_number(fields, NumberField::Conn)?),
    })
}

fn beats<'a, F: EventFields<'a>>(fields: &mut F) -> Result<Vec<HeartbeatEntry<'a>>, F::Wrong> {
    let given = fields.beats()?.ok_or_else(|| F::missing("beats"))?;
    let (least, most) = bounds::BEATS;
    if !(least..=most).contains(&given.count) {
        return Err(F::wrong_number_of_beats(given.count));
    }
    given.wrong.map_or(Ok(given.beats), Err)
}

#[inline(always)]
fn who<'a, F: DeviceFields<'a>>(fields: &mut F) -> Result<DeviceRef<'a>, F::Wrong> {
    Ok(DeviceRef {
        user: required_text(fields, TextField::User)?,
        platform: required_text(fields, TextField::Platform)?,
        device: required_text(fields, TextField::Device)?,
    })
}

#[inline(always)]
fn via<'a, F: DeviceFields<'a>>(fields: &mut F) -> Result<ConnRef<'a>, F::Wrong> {
    Ok(ConnRef {
        gateway: required_text(fields, TextField::Gateway)?,
        epoch: epoch(fields)?,
        conn: Conn(required_number(fields, NumberField::Conn)?),
    })
}

#[inline(always)]
fn epoch<'a, F: DeviceFields<'a>>(fields: &mut F) -> Result<Epoch, F::Wrong> {
    required_number(fields, NumberField::Epoch).map(Epoch)
}

/// Text within its bounds.
#[inline(always)]
fn text<'a, F: DeviceFields<'a>>(fields: &mut F, field: TextField) -> Result<Option<Cow<'a, str>>, F::Wrong> {
    let (least, most) = field.bounds();
    match fields.text(field)? {
        Some(text) if text.len() < least || text.len() > most => Err(F::wrong_length(field, text.len())),
        text => Ok(text),
    }
}

#[inline(always)]
fn required_text<'a, F: DeviceFields<'a>>(fields: &mut F, field: TextField) -> Result<Cow<'a, str>, F::Wrong> {
    text(fields, field)?.ok_or_else(|| F::missing(field.name()))
}

/// An integer within its bounds.
#[inline(always)]
fn number<'a, F: DeviceFields<'a>>(fields: &mut F, field: NumberField) -> Result<Option<u64>, F::Wrong> {
    let (least, most) = field.bounds();
    match fields.number(field)? {
        Some(number) if number < least || number > most => Err(F::out_of_range(field, number)),
        number => Ok(number),
    }
}

#[inline(always)]
fn required_number<'a, F: DeviceFields<'a>>(fields: &mut F, field: NumberField) -> Result<u64, F::Wrong> {
    number(fields, field)?.ok_or_else(|| F::missing(field.name()))
}

fn word<'a, F: EventFields<'a>, T: Copy>(fields: &mut F, field: WordField, words: &[(&str, T)]) -> Result<T, F::Wrong> {
    let found = fields.word(field).ok_or_else(|| F::missing(field.name()))?;
    match words.iter().find(|(word, _)| *word == found) {
        Some((_, value)) => Ok(*value),
        None => {
            let words: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
            Err(F::no_such_word(field, &words, found))
        }
    }
}

impl<'a> DeviceFields<'a> for WireEvent<'a> {
    type Wrong = Malformed;

    #[inline(always)]
    fn text(&mut self, field: TextField) -> Result<Option<Cow<'a, str>>, Malformed> {
        let text = match field {
            TextField::User => self.user,
            TextField::Platform => self.platform,
            TextField::Device => self.device,
            TextField::Gateway => self.gateway,
            TextField::Client => self.client,
            TextField::Text => self.text,
        };
        Ok(text.map(Cow::Borrowed))
    }

    #[inline(always)]
    fn number(&mut self, field: NumberField) -> Result<Option<u64>, Malformed> {
        unsigned(
            field,
            match field {
                NumberField::Epoch => self.epoch,
                NumberField::Conn => self.conn,
                NumberField::AuthAt => self.auth_at,
                NumberField::TtlMs => self.ttl_ms,
                NumberField::Revision => self.revision,
            },
        )
    }

    #[cold]
    fn missing(name: &'static str) -> Malformed {
        Malformed::invalid(format!("{name} is missing"))
    }

    #[cold]
    fn wrong_length(field: TextField, bytes: usize) -> Malformed {
        let (name, (least, most)) = (field.name(), field.bounds());
        Malformed::invalid(format!("{name} must have {least} to {most} bytes, not {bytes}"))
    }

    #[cold]
    fn out_of_range(field: NumberField, number: u64) -> Malformed {
        out_of_range(field, number)
    }
}

impl<'a> EventFields<'a> for WireEvent<'a> {
    fn has(&self, field: TextField) -> bool {
        match field {
            TextField::User => self.user.is_some(),
            TextField::Platform => self.platform.is_some(),
            TextField::Device => self.device.is_some(),
            TextField::Gateway => self.gateway.is_some(),
            TextField::Client => self.client.is_some(),
            TextField::Text => self.text.is_some(),
        }
    }

    fn word(&self, field: WordField) -> Option<&str> {
        match field {
            WordField::Intent => self.intent,
            WordField::Reason => self.reason,
        }
    }

    fn beats(&mut self) -> Result<Option<GivenBeats<'a, Malformed>>, Malformed> {
        Ok(self.beats.take().map(|beats| GivenBeats {
            count: beats.len(),
            beats: beats.into_owned(),
            wrong: None,
        }))
    }

    fn conns(&mut self) -> Result<Vec<Conn>, Malformed> {
        match self.conns.ok_or_else(|| Self::missing("conns"))? {
            Conns::Packed(bytes) => unpack_conns(bytes),
            Conns::Numbers(conns) => Ok(conns.to_vec()),
        }
    }

    fn policy(&mut self) -> Result<Event<'a>, Malformed> {
        let document = self.policy.ok_or_else(|| Self::missing("policy"))?;
        Ok(Event::Policy {
            policy: Box::new(parse_policy(document)?),
            document: Cow::Borrowed(document),
        })
    }

    fn no_such_word(field: WordField, words: &[&str], found: &str) -> Malformed {
        let (name, words) = (field.name(), words.join(" or "));
        Malformed::invalid(format!("{name} must be {words}, not {found:?}"))
    }

    fn wrong_number_of_beats(count: usize) -> Malformed {
        let (least, most) = bounds::BEATS;
        Malformed::invalid(format!("beats must be {least} to {most}, not {count}"))
    }

    fn platform_needed() -> Malformed {
        Malformed::invalid("platform must be given where device is")
    }

    fn unknown_type(kind: &str) -> Malformed {
        Malformed::invalid(format!("type: there is none named {kind:?}"))
    }
}

/// One beat of a `heartbeats` record, as it is in Avro.
pub(crate) struct WireBeat<'a> {
    pub(crate) user: &'a str,
    pub(crate) platform: &'a str,
    pub(crate) device: &'a str,
    pub(crate) conn: i64,
}

impl<'a> WireBeat<'a> {
    /// Judges it; `index` is for the error.
    pub(crate) fn judge(mut self, index: usize) -> Result<HeartbeatEntry<'a>, Malformed> {
        beat(&mut self).map_err(|error| Malformed::invalid(format!("beats[{index}]: {error}")))
    }
}

impl<'a> DeviceFields<'a> for WireBeat<'a> {
    type Wrong = Malformed;

    #[inline(always)]
    fn text(&mut self, field: TextField) -> Result<Option<Cow<'a, str>>, Malformed> {
        Ok(match field {
            TextField::User => Some(Cow::Borrowed(self.user)),
            TextField::Platform => Some(Cow::Borrowed(self.platform)),
            TextField::Device => Some(Cow::Borrowed(self.device)),
            TextField::Gateway | TextField::Client | TextField::Text => None,
        })
    }

    #[inline(always)]
    fn number(&mut self, field: NumberField) -> Result<Option<u64>, Malformed> {
        match field {
            NumberField::Conn => unsigned(field, Some(self.conn)),
            NumberField::Epoch | NumberField::AuthAt | NumberField::TtlMs | NumberField::Revision => Ok(None),
        }
    }

    #[cold]
    fn missing(name: &'static str) -> Malformed {
        WireEvent::missing(name)
    }

    #[cold]
    fn wrong_length(field: TextField, bytes: usize) -> Malformed {
        WireEvent::wrong_length(field, bytes)
    }

    #[cold]
    fn out_of_range(field: NumberField, number: u64) -> Malformed {
        out_of_range(field, number)
    }
}

/// A number of Avro, unless it is negative.
#[inline(always)]
fn unsigned(field: NumberField, number: Option<i64>) -> Result<Option<u64>, Malformed> {
    match number {
        Some(number) if number < 0 => Err(out_of_range(field, number)),
        number => Ok(number.map(|number| number as u64)),
    }
}

#[cold]
fn out_of_range(field: NumberField, number: impl std::fmt::Display) -> Malformed {
    let (name, (least, most)) = (field.name(), field.bounds());
    Malformed::invalid(format!("{name} must be {least} to {most}, not {number}"))
}

impl<'a> WireEvent<'a> {
    /// Returns how many connections it names, if it is of a type that names many.
    pub(crate) fn connections(&self) -> Option<usize> {
        match (&self.beats, self.conns) {
            (Some(beats), _) => Some(beats.len()),
            (None, Some(Conns::Numbers(conns))) => Some(conns.len()),
            (None, Some(Conns::Packed(_)) | None) => None,
        }
    }

    /// Judges it. Borrows all text; allocates only for lists and a policy.
    #[inline]
    pub(crate) fn event(&mut self) -> Result<Event<'a>, Malformed> {
        event(self.kind, self)
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

/// Appends connections as `conns` has them in Avro (section 9): unsigned LEB128, the first number, then each one's
/// difference to the one before.
pub(crate) fn pack_conns(conns: &[Conn], out: &mut Vec<u8>) {
    let mut before = 0;
    for conn in conns {
        varint::put(out, conn.0 - before);
        before = conn.0;
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
        let whole = rest;
        let number = varint::take(&mut rest);
        let taken = &whole[..whole.len() - rest.len()];
        let number = match number {
            // Nine groups of seven bits are 63.
            Some(number) if taken.len() < varint::BYTES_MAX => number,
            None if whole.len() < varint::BYTES_MAX => return Err(bad("ends within a number")),
            Some(_) | None => return Err(bad("has a number beyond 2^63-1")),
        };
        if taken.len() > 1 && taken.ends_with(&[0]) {
            return Err(bad("has a number that is not in its shortest form"));
        }
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

fn signed(number: u64) -> i64 {
    i64::try_from(number).expect("a number of an event is below 2^63")
}
