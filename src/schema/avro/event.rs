//! The datum of `schemas/event.avsc`, field by field in its order.

use super::datum::{
    Reader, write_count, write_nullable_array, write_nullable_bytes, write_nullable_long, write_nullable_text,
    write_text,
};
use crate::presence::event::{Beat, Event, Target, Via, Who, bounds};
use crate::schema::Malformed;
use crate::schema::flat::{Conns, Flat, HEARTBEATS, beat, number_of_beats, pack_conns};
use std::borrow::Cow;

/// Each of a beat's three strings and its number has at least one byte.
const BEAT_BYTES_MIN: usize = 4;

/// Enough for most events, so that memory is asked for once.
const ROOM_BYTES: usize = 256;

pub(super) fn read(datum: &[u8]) -> Result<Event<'_>, Malformed> {
    let mut reader = Reader::new(datum);
    let kind = reader.text("type");
    let mut flat = Flat {
        kind,
        user: reader.nullable_text("user"),
        platform: reader.nullable_text("platform"),
        device: reader.nullable_text("device"),
        gateway: reader.nullable_text("gateway"),
        epoch: reader.nullable_long("epoch"),
        conn: reader.nullable_long("conn"),
        ..Flat::default()
    };
    // Nearly every record is a heartbeat, and has no more.
    if !reader.end_after([0; 10]) {
        flat.intent = reader.nullable_text("intent");
        flat.client = reader.nullable_text("client");
        flat.beats = read_beats(&mut reader, kind == HEARTBEATS);
        flat.reason = reader.nullable_text("reason");
        flat.text = reader.nullable_text("text");
        flat.ttl_ms = reader.nullable_long("ttl_ms");
        flat.policy = reader.nullable_text("policy");
        flat.auth_at = reader.nullable_long("auth_at");
        flat.conns = reader.nullable_bytes("conns").map(Conns::Packed);
        flat.revision = reader.nullable_int("revision").map(i64::from);
    }
    reader.end()?;
    flat.event()
}

/// Beats are checked and kept only where they matter; elsewhere they are read past.
fn read_beats<'a>(reader: &mut Reader<'a>, wanted: bool) -> Option<Cow<'a, [Beat<'a>]>> {
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
            number_of_beats(index + 1)?;
        }
        let (user, platform, device, conn) = read_beat(reader);
        beat(index, user, platform, device, conn)
    });
    Some(Cow::Owned(beats))
}

fn read_beat<'a>(reader: &mut Reader<'a>) -> (&'a str, &'a str, &'a str, i64) {
    (
        reader.text("a beat's user"),
        reader.text("a beat's platform"),
        reader.text("a beat's device"),
        reader.long("a beat's conn"),
    )
}

pub(super) fn write(event: &Event<'_>, out: &mut Vec<u8>) {
    let flat = Flat::of(event);
    out.reserve(ROOM_BYTES);
    write_text(out, flat.kind);
    write_nullable_text(out, flat.user);
    write_nullable_text(out, flat.platform);
    write_nullable_text(out, flat.device);
    write_nullable_text(out, flat.gateway);
    write_nullable_long(out, flat.epoch);
    write_nullable_long(out, flat.conn);
    write_nullable_text(out, flat.intent);
    write_nullable_text(out, flat.client);
    write_nullable_array(out, flat.beats.as_deref(), |out, beat| {
        write_text(out, &beat.who.user);
        write_text(out, &beat.who.platform);
        write_text(out, &beat.who.device);
        write_count(out, beat.conn.0);
    });
    write_nullable_text(out, flat.reason);
    write_nullable_text(out, flat.text);
    write_nullable_long(out, flat.ttl_ms);
    write_nullable_text(out, flat.policy);
    write_nullable_long(out, flat.auth_at);
    match flat.conns {
        None => write_nullable_bytes(out, None),
        Some(Conns::Packed(bytes)) => write_nullable_bytes(out, Some(bytes)),
        Some(Conns::Numbers(conns)) => {
            let mut packed = Vec::with_capacity(conns.len() * 2);
            pack_conns(conns, &mut packed);
            write_nullable_bytes(out, Some(&packed));
        }
    }
    write_nullable_long(out, flat.revision);
}

/// The event with text of its own, for when the bytes that it was read from do not last.
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
                .map(|beat| Beat {
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

fn own_who(who: Who<'_>) -> Who<'static> {
    Who {
        user: own(who.user),
        platform: own(who.platform),
        device: own(who.device),
    }
}

fn own_via(via: Via<'_>) -> Via<'static> {
    Via {
        gateway: own(via.gateway),
        epoch: via.epoch,
        conn: via.conn,
    }
}

fn own(text: Cow<'_, str>) -> Cow<'static, str> {
    Cow::Owned(text.into_owned())
}
