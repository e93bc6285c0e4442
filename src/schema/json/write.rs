//! Writes events, outputs and state as JSON.

use crate::presence::change::{Change, DeviceChange, Ignored, Kick, KickedDevice, Output, OutputId, Part, Rehearsal};
use crate::presence::event::{ConnRef, DeviceRef, Ending, Event, HeartbeatEntry, Intent, Target};
use crate::presence::state::{DeviceImage, GatewayImage, KeptImage, PartitionImage, Phase, SessionImage, UserImage};
use crate::presence::{LogTime, Offset};
use crate::schema::avro::Quarantined;
use crate::schema::{write_decimal, write_output_id};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// Writes an object: keys in the order of the calls, without spaces.
pub struct Object<'w> {
    out: &'w mut Vec<u8>,
    first: bool,
}

impl<'w> Object<'w> {
    pub fn new(out: &'w mut Vec<u8>) -> Object<'w> {
        out.push(b'{');
        Object { out, first: true }
    }

    /// Adds keys to an object that is not empty and was left open.
    pub fn more(out: &'w mut Vec<u8>) -> Object<'w> {
        Object { out, first: false }
    }

    fn key(&mut self, key: &str) -> &mut Vec<u8> {
        if !self.first {
            self.out.push(b',');
        }
        self.first = false;
        self.out.push(b'"');
        self.out.extend_from_slice(key.as_bytes());
        self.out.extend_from_slice(b"\":");
        self.out
    }

    pub fn text(&mut self, key: &str, value: &str) -> &mut Self {
        text(self.key(key), value);
        self
    }

    pub fn optional_text(&mut self, key: &str, value: Option<&str>) -> &mut Self {
        match value {
            Some(value) => self.text(key, value),
            None => self.raw(key, b"null"),
        }
    }

    /// Writes a list of strings.
    pub fn texts<T: AsRef<str>>(&mut self, key: &str, values: &[T]) -> &mut Self {
        self.list(key, values, |out, value| text(out, value.as_ref()))
    }

    pub fn number(&mut self, key: &str, value: u64) -> &mut Self {
        write_decimal(self.key(key), value);
        self
    }

    /// Writes a number under a key that is data, not one of our names.
    pub fn count(&mut self, key: &str, value: u64) -> &mut Self {
        if !self.first {
            self.out.push(b',');
        }
        self.first = false;
        text(self.out, key);
        self.out.push(b':');
        write_decimal(self.out, value);
        self
    }

    pub fn optional_number(&mut self, key: &str, value: Option<u64>) -> &mut Self {
        match value {
            Some(value) => self.number(key, value),
            None => self.raw(key, b"null"),
        }
    }

    pub fn boolean(&mut self, key: &str, value: bool) -> &mut Self {
        self.raw(key, if value { b"true" } else { b"false" })
    }

    /// Writes a value that is already JSON.
    pub fn raw(&mut self, key: &str, json: &[u8]) -> &mut Self {
        self.key(key).extend_from_slice(json);
        self
    }

    /// Writes an array, each element with `each`.
    pub fn list<T>(
        &mut self,
        key: &str,
        items: impl IntoIterator<Item = T>,
        each: impl FnMut(&mut Vec<u8>, T),
    ) -> &mut Self {
        list(self.key(key), items, each);
        self
    }

    pub fn id(&mut self, key: &str, id: &OutputId) -> &mut Self {
        let out = self.key(key);
        out.push(b'"');
        write_output_id(*id, out);
        out.push(b'"');
        self
    }

    pub fn end(&mut self) {
        self.out.push(b'}');
    }
}

fn text(out: &mut Vec<u8>, value: &str) {
    if serde_json::to_writer(&mut *out, value).is_err() {
        unreachable!("writing a string to memory does not fail");
    }
}

/// Writes an array, each element with `each`.
pub fn list<T>(out: &mut Vec<u8>, items: impl IntoIterator<Item = T>, mut each: impl FnMut(&mut Vec<u8>, T)) {
    out.push(b'[');
    for (number, item) in items.into_iter().enumerate() {
        if number > 0 {
            out.push(b',');
        }
        each(out, item);
    }
    out.push(b']');
}

/// Writes the line of an output (section 8), without a line end.
pub fn output_line(out: &mut Vec<u8>, output: &Output) {
    match output {
        Output::Change(change) => change_line(out, change),
        Output::Kick(kick) => kick_line(out, kick),
        Output::Ignored(ignored) => ignored_line(out, ignored),
    }
}

fn change_line(out: &mut Vec<u8>, change: &Change) {
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
        rehearsal,
    } = change;
    let OutputId {
        partition,
        offset,
        index: _,
    } = of;
    let mut object = Object::new(out);
    object
        .text("type", "change")
        .id("id", of)
        .number("partition", partition.0.into())
        .number("offset", offset.0)
        .number("seq", *seq)
        .text("user", user)
        .number("version", *version)
        .number("at", at.0)
        .number("logged_at", logged_at.0)
        .text("cause", cause.name())
        .text("before", before.name())
        .text("after", after.name())
        .list("devices", devices, device_change)
        .optional_text("custom_status", custom_status.as_deref())
        .number("evidence", evidence.0);
    if let Some(Rehearsal(count)) = rehearsal {
        object.optional_number("rehearsal", *count);
    }
    object.end();
}

pub fn device_change(out: &mut Vec<u8>, device: &DeviceChange) {
    let DeviceChange {
        platform,
        device,
        gateway,
        before,
        after,
    } = device;
    Object::new(out)
        .text("platform", platform)
        .text("device", device)
        .text("gateway", gateway)
        .text("before", before.name())
        .text("after", after.name())
        .end();
}

fn kick_line(out: &mut Vec<u8>, kick: &Kick) {
    let Kick {
        id,
        gateway,
        epoch,
        conn,
        whose,
        reason,
        at,
    } = kick;
    let [user, platform, device] = match whose {
        Some(KickedDevice { user, platform, device }) => [user, platform, device].map(|name| Some(&**name)),
        None => [None; 3],
    };
    Object::new(out)
        .text("type", "kick")
        .id("id", id)
        .text("gateway", gateway)
        .number("epoch", epoch.0)
        .number("conn", conn.0)
        .optional_text("user", user)
        .optional_text("platform", platform)
        .optional_text("device", device)
        .text("reason", reason.name())
        .number("at", at.0)
        .end();
}

fn ignored_line(out: &mut Vec<u8>, ignored: &Ignored) {
    let Ignored { offset, reason, part } = ignored;
    let mut object = Object::new(out);
    object
        .text("type", "ignored")
        .number("offset", offset.0)
        .text("reason", reason.name());
    match part {
        Part::Whole => {}
        Part::Heartbeat(beat) => {
            object.number("beat", *beat as u64);
        }
        Part::Conn(conn) => {
            object.number("conn", conn.0);
        }
    }
    object.end();
}

/// The line of a malformed record among the outputs.
pub fn malformed_line(out: &mut Vec<u8>, offset: Offset, error: &str) {
    Object::new(out)
        .text("type", "malformed")
        .number("offset", offset.0)
        .text("error", error)
        .end();
}

/// Writes the line of a user (section 8, `--state`) at a log time of the user's partition.
pub fn user_line(out: &mut Vec<u8>, user: &UserImage<'_>, time: Option<LogTime>) {
    user_fields(out, user, time);
    out.push(b'}');
}

/// Writes the line of a user and leaves it open for more keys.
pub fn user_fields(out: &mut Vec<u8>, user: &UserImage<'_>, time: Option<LogTime>) {
    let kept = user.kept_at(time);
    let UserImage {
        user,
        version,
        status,
        since,
        last_seen,
        custom_status,
        // Only until its time.
        kept: _,
        kicked_at,
        barred,
        devices,
    } = user;
    let mut object = Object::new(out);
    object
        .text("type", "user")
        .text("user", user)
        .number("version", *version)
        .text("status", status.name())
        .number("since", since.0)
        .number("last_seen", last_seen.0)
        .optional_text("custom_status", *custom_status);
    if let Some(KeptImage { text, until }) = kept {
        object.text("kept", text).number("kept_until", until.0);
    }
    if let Some(kicked_at) = kicked_at {
        object.number("kicked_at", kicked_at.0).boolean("barred", *barred);
    }
    object.list("devices", devices, device);
}

fn device(out: &mut Vec<u8>, device: &DeviceImage<'_>) {
    let DeviceImage {
        platform,
        device,
        gateway,
        epoch,
        conn,
        since,
        phase,
        deadline,
    } = device;
    // Of the times only the deadline, which takes lease and grace into account.
    let (state, session, word) = match phase {
        Phase::Online {
            session,
            heartbeat_by: _,
            background_by: _,
            linger,
        } => {
            let word = linger.map(|(ending, _)| ("lingering", ending_name(ending)));
            ("online", Some(session), word)
        }
        Phase::Away {
            session,
            push: _,
            lost_by,
            until: _,
        } => ("away", Some(session), Some(("lost_by", lost_by.name()))),
        Phase::Kicked { by, until: _ } => ("kicked", None, Some(("reason", by.name()))),
    };
    let mut object = Object::new(out);
    object
        .text("platform", platform)
        .text("device", device)
        .text("state", state)
        .text("status", phase.status().name())
        .text("gateway", gateway)
        .number("epoch", epoch.0)
        .number("conn", conn.0)
        .number("since", since.0);
    let mut client_of_session = None;
    if let Some(SessionImage {
        login_at,
        last_seen,
        evidence,
        client,
    }) = session
    {
        object
            .number("login_at", login_at.0)
            .number("last_seen", last_seen.0)
            .number("evidence", evidence.0);
        client_of_session = *client;
    }
    object.number("deadline", deadline.0);
    if let Some((key, word)) = word {
        object.text(key, word);
    }
    if let Some(client) = client_of_session {
        object.text("client", client);
    }
    object.end();
}

fn ending_name(ending: Ending) -> &'static str {
    match ending {
        Ending::Closed => "closed",
        Ending::Exit => "exit",
    }
}

/// Writes the line of a partition (section 8, `--state`).
pub fn partition_line(out: &mut Vec<u8>, partition: &PartitionImage<'_>) {
    let PartitionImage {
        partition,
        offset,
        time,
        seq,
        // Section 8 gives the line no more fields than those that are named below.
        revision: _,
        rehearsed: _,
        grace_until,
        policy: _,
        policy_since: _,
        gateways,
        early_ends: _,
    } = partition;
    let ms = |time: &Option<LogTime>| time.map(|time| time.0);
    Object::new(out)
        .text("type", "partition")
        .number("partition", partition.0.into())
        .optional_number("offset", offset.map(|offset| offset.0))
        .optional_number("time", ms(time))
        .number("seq", *seq)
        .optional_number("grace_until", ms(grace_until))
        .list("gateways", gateways, |out, gateway| {
            let GatewayImage {
                name,
                epoch,
                ended,
                lease_until,
                last_until: _,
            } = gateway;
            Object::new(out)
                .text("gateway", name)
                .number("epoch", epoch.0)
                .boolean("ended", *ended)
                .optional_number("lease_until", ms(lease_until))
                .end();
        })
        .end();
}

/// Writes a record of the input log in the form that `rollcall fold` reads.
pub fn event_line(out: &mut Vec<u8>, offset: Offset, ts: u64, event: &Event<'_>) {
    let mut object = Object::new(out);
    object
        .number("offset", offset.0)
        .number("ts", ts)
        .text("type", event.name());
    match event {
        Event::Connect {
            who,
            via,
            intent,
            client,
            auth_at,
        } => {
            link_fields(&mut object, who, via);
            object.text(
                "intent",
                match intent {
                    Intent::Login => "login",
                    Intent::Resume => "resume",
                },
            );
            if let Some(client) = client {
                object.text("client", client);
            }
            if let Some(auth_at) = auth_at {
                object.number("auth_at", *auth_at);
            }
        }
        Event::Heartbeat { who, via }
        | Event::Background { who, via }
        | Event::Foreground { who, via }
        | Event::Logout { who, via } => link_fields(&mut object, who, via),
        Event::Heartbeats { gateway, epoch, beats } => {
            object.text("gateway", gateway).number("epoch", epoch.0);
            object.list("beats", beats, |out, beat| {
                let HeartbeatEntry { who, conn } = beat;
                let mut object = Object::new(out);
                who_fields(&mut object, who);
                object.number("conn", conn.0).end();
            });
        }
        Event::Alive { gateway, epoch, conns } => {
            object.text("gateway", gateway).number("epoch", epoch.0);
            object.list("conns", conns, |out, conn| write_decimal(out, conn.0));
        }
        Event::Disconnect { who, via, reason } => {
            link_fields(&mut object, who, via);
            object.text("reason", ending_name(*reason));
        }
        Event::Kick { user, target } => {
            object.text("user", user);
            match target {
                Target::All => {}
                Target::Platform(platform) => {
                    object.text("platform", platform);
                }
                Target::Device(platform, device) => {
                    object.text("platform", platform).text("device", device);
                }
            }
        }
        Event::CustomStatus { user, text } => {
            object.text("user", user).optional_text("text", text.as_deref());
        }
        Event::Forget { user } => {
            object.text("user", user);
        }
        Event::Lease { gateway, epoch, ttl_ms } => {
            object
                .text("gateway", gateway)
                .number("epoch", epoch.0)
                .number("ttl_ms", *ttl_ms);
        }
        Event::Policy { policy: _, document } => {
            // As published, but without line breaks, since a record is one line. In valid JSON, line breaks occur only
            // between tokens, so removing them does not change the meaning.
            let out = object.key("policy");
            out.extend(document.bytes().filter(|byte| !matches!(byte, b'\n' | b'\r')));
        }
        Event::Revision { revision } => {
            object.number("revision", (*revision).into());
        }
        Event::Tick => {}
    }
    object.end();
}

/// Writes a malformed record in place of its event: what is wrong with it, and its key. `rollcall fold` reads the line
/// as malformed, too.
pub fn malformed_event_line(out: &mut Vec<u8>, offset: Offset, ts: u64, reason: &str, error: &str, key: Option<&[u8]>) {
    let mut object = Object::new(out);
    object
        .number("offset", offset.0)
        .number("ts", ts)
        .text("type", "malformed")
        .text("reason", reason);
    shown_text(object.key("error"), error);
    shown_bytes(&mut object, "key", "key_base64", key);
    object.end();
}

/// Writes a record of the quarantine: its position, what is wrong with it, its key and its value. If the value is an
/// event, as in a record with a wrong key or in a wrong partition, it is written as an event.
pub fn quarantined_line(out: &mut Vec<u8>, quarantined: &Quarantined<'_>, event: Option<&Event<'_>>) {
    let Quarantined {
        partition,
        offset,
        ts,
        error,
        key,
        value,
    } = quarantined;
    let mut object = Object::new(out);
    object
        .number("partition", partition.0.into())
        .number("offset", offset.0)
        .number("ts", *ts);
    shown_text(object.key("error"), error);
    shown_bytes(&mut object, "key", "key_base64", key.as_deref());
    match event {
        Some(event) => {
            let mut line = Vec::new();
            event_line(&mut line, *offset, *ts, event);
            object.raw("event", &line);
        }
        None => shown_bytes(&mut object, "value", "value_base64", value.as_deref()),
    }
    object.end();
}

/// Writes bytes from an untrusted source, as text if they are UTF-8.
fn shown_bytes(object: &mut Object<'_>, text_key: &str, bytes_key: &str, bytes: Option<&[u8]>) {
    let Some(bytes) = bytes else {
        object.raw(text_key, b"null");
        return;
    };
    match std::str::from_utf8(bytes) {
        Ok(text) => shown_text(object.key(text_key), text),
        Err(_) => {
            object.text(bytes_key, &STANDARD.encode(bytes));
        }
    }
}

/// Writes a string from an untrusted source. Characters that control a terminal or change the direction of text are
/// written as escapes with the same meaning.
fn shown_text(out: &mut Vec<u8>, value: &str) {
    let obeyed = |c: char| matches!(c, '\u{7f}'..='\u{9f}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let from = out.len();
    text(out, value);
    if !value.contains(obeyed) {
        return;
    }
    let written = String::from_utf8_lossy(&out[from..]).into_owned();
    out.truncate(from);
    for c in written.chars() {
        match obeyed(c) {
            true => out.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes()),
            false => out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
}

fn who_fields(object: &mut Object<'_>, who: &DeviceRef<'_>) {
    let DeviceRef { user, platform, device } = who;
    object
        .text("user", user)
        .text("platform", platform)
        .text("device", device);
}

fn link_fields(object: &mut Object<'_>, who: &DeviceRef<'_>, via: &ConnRef<'_>) {
    let ConnRef { gateway, epoch, conn } = via;
    who_fields(object, who);
    object
        .text("gateway", gateway)
        .number("epoch", epoch.0)
        .number("conn", conn.0);
}
