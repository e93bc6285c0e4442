//! The datum of `schemas/event.avsc`, field by field in the schema's order.

use super::datum::{
    Reader, write_count, write_nullable_array, write_nullable_bytes, write_nullable_long, write_nullable_text,
    write_text,
};
use crate::presence::event::{ConnRef, DeviceRef, Event, HeartbeatEntry, Target, bounds};
use crate::schema::Malformed;
use crate::schema::wire_event::{Conns, EventFields as _, HEARTBEATS, WireBeat, WireEvent, pack_conns};
use std::borrow::Cow;

/// The fewest bytes of a heartbeat entry: each of its three strings and its number takes at least one.
const BEAT_BYTES_MIN: usize = 4;

/// Room for most events, so that memory is allocated once.
const ROOM_BYTES: usize = 256;

pub(super) fn read(datum: &[u8]) -> Result<Event<'_>, Malformed> {
    let mut reader = Reader::new(datum);
    let kind = reader.text("type");
    let mut wire_event = WireEvent {
        kind,
        user: reader.nullable_text("user"),
        platform: reader.nullable_text("platform"),
        device: reader.nullable_text("device"),
        gateway: reader.nullable_text("gateway"),
        epoch: reader.nullable_long("epoch"),
        conn: reader.nullable_long("conn"),
        ..WireEvent::default()
    };
    // Nearly every record is a heartbeat, which has no more fields.
    if !reader.end_after([0; 10]) {
        wire_event.intent = reader.nullable_text("intent");
        wire_event.client = reader.nullable_text("client");
        wire_event.beats = read_beats(&mut reader, kind == HEARTBEATS);
        wire_event.reason = reader.nullable_text("reason");
        wire_event.text = reader.nullable_text("text");
        wire_event.ttl_ms = reader.nullable_long("ttl_ms");
        wire_event.policy = reader.nullable_text("policy");
        wire_event.auth_at = reader.nullable_long("auth_at");
        wire_event.conns = reader.nullable_bytes("conns").map(Conns::Packed);
        wire_event.revision = reader.nullable_int("revision").map(i64::from);
    }
    reader.end()?;
    wire_event.event()
}

/// Reads heartbeat entries. They are checked and kept only if wanted; otherwise they are skipped.
fn read_beats<'a>(reader: &mut Reader<'a>, wanted: bool) -> Option<Cow<'a, [HeartbeatEntry<'a>]>> {
    if !reader.present("beats") {
        return None;
    }
    if !wanted {
        reader.array("beats", BEAT_BYTES_MIN, |reader, _| {
            read_beat(reader);
            Ok(())
        });
        return None;
    }
    let beats = reader.array("beats", BEAT_BYTES_MIN, |reader, index| {
        if index == bounds::BEATS.1 {
            return Err(WireEvent::wrong_number_of_beats(index + 1));
        }
        read_beat(reader).judge(index)
    });
    Some(Cow::Owned(beats))
}

fn read_beat<'a>(reader: &mut Reader<'a>) -> WireBeat<'a> {
    WireBeat {
        user: reader.text("a beat's user"),
        platform: reader.text("a beat's platform"),
        device: reader.text("a beat's device"),
        conn: reader.long("a beat's conn"),
    }
}

pub(super) fn write(event: &Event<'_>, out: &mut Vec<u8>) {
    let WireEvent {
        kind,
        user,
        platform,
        device,
        gateway,
        epoch,
        conn,
        intent,
        client,
        beats,
        reason,
        text,
        ttl_ms,
        policy,
        auth_at,
        conns,
        revision,
    } = WireEvent::of(event);
    out.reserve(ROOM_BYTES);
    write_text(out, kind);
    write_nullable_text(out, user);
    write_nullable_text(out, platform);
    write_nullable_text(out, device);
    write_nullable_text(out, gateway);
    write_nullable_long(out, epoch);
    write_nullable_long(out, conn);
    write_nullable_text(out, intent);
    write_nullable_text(out, client);
    write_nullable_array(out, beats.as_deref(), |out, beat| {
        let HeartbeatEntry { who, conn } = beat;
        let DeviceRef { user, platform, device } = who;
        write_text(out, user);
        write_text(out, platform);
        write_text(out, device);
        write_count(out, conn.0);
    });
    write_nullable_text(out, reason);
    write_nullable_text(out, text);
    write_nullable_long(out, ttl_ms);
    write_nullable_text(out, policy);
    write_nullable_long(out, auth_at);
    match conns {
        None => write_nullable_bytes(out, None),
        Some(Conns::Packed(bytes)) => write_nullable_bytes(out, Some(bytes)),
        Some(Conns::Numbers(conns)) => {
            let mut packed = Vec::with_capacity(conns.len() * 2);
            pack_conns(conns, &mut packed);
            write_nullable_bytes(out, Some(&packed));
        }
    }
    write_nullable_long(out, revision);
}

/// Returns the event with owned text, for use after the bytes that it was read from are gone.
pub(super) fn into_owned(event: Event<'_>) -> Event<'static> {
    match event {
        Event::Connect {
            who,
            via,
            intent,
            client,
            auth_at,
        } => Event::Connect {
            who: own_who(who),
            via: own_via(via),
            intent,
            client: client.map(own),
            auth_at,
        },
        Event::Heartbeat { who, via } => Event::Heartbeat {
            who: own_who(who),
            via: own_via(via),
        },
        Event::Heartbeats { gateway, epoch, beats } => Event::Heartbeats {
            gateway: own(gateway),
            epoch,
            beats: beats
                .into_iter()
                .map(|beat| HeartbeatEntry {
                    who: own_who(beat.who),
                    conn: beat.conn,
                })
                .collect(),
        },
        Event::Alive { gateway, epoch, conns } => Event::Alive {
            gateway: own(gateway),
            epoch,
            conns,
        },
        Event::Background { who, via } => Event::Background {
            who: own_who(who),
            via: own_via(via),
        },
        Event::Foreground { who, via } => Event::Foreground {
            who: own_who(who),
            via: own_via(via),
        },
        Event::Disconnect { who, via, reason } => Event::Disconnect {
            who: own_who(who),
            via: own_via(via),
            reason,
        },
        Event::Logout { who, via } => Event::Logout {
            who: own_who(who),
            via: own_via(via),
        },
        Event::Kick { user, target } => Event::Kick {
            user: own(user),
            target: match target {
                Target::All => Target::All,
                Target::Platform(platform) => Target::Platform(own(platform)),
                Target::Device(platform, device) => Target::Device(own(platform), own(device)),
            },
        },
        Event::CustomStatus { user, text } => Event::CustomStatus {
            user: own(user),
            text: text.map(own),
        },
        Event::Forget { user } => Event::Forget { user: own(user) },
        Event::Lease { gateway, epoch, ttl_ms } => Event::Lease {
            gateway: own(gateway),
            epoch,
            ttl_ms,
        },
        Event::Policy { policy, document } => Event::Policy {
            policy,
            document: own(document),
        },
        Event::Revision { revision } => Event::Revision { revision },
        Event::Tick => Event::Tick,
    }
}

fn own_who(who: DeviceRef<'_>) -> DeviceRef<'static> {
    DeviceRef {
        user: own(who.user),
        platform: own(who.platform),
        device: own(who.device),
    }
}

fn own_via(via: ConnRef<'_>) -> ConnRef<'static> {
    ConnRef {
        gateway: own(via.gateway),
        epoch: via.epoch,
        conn: via.conn,
    }
}

fn own(text: Cow<'_, str>) -> Cow<'static, str> {
    Cow::Owned(text.into_owned())
}
