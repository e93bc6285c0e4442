//! The records of histories as JSON lines (sections 3 and 8 of `docs/rules.md`).

use crate::presence::Offset;
use crate::presence::event::{ConnRef, DeviceRef, Ending, Event, Intent, Target};
use crate::sim::oracle_lines::text;

/// What malformed records say, each in place of what follows `"type":`.
const MALFORMED: [&str; 48] = [
    r#""heartbeat","user":7"#,
    r#""hearbeat","user":"bob","platform":"web","device":"d1","gateway":"g1","epoch":1,"conn":1"#,
    r#""disconnect","user":"bob","platform":"web","device":"d1","gateway":"g1","epoch":1,"conn":1"#,
    r#""disconnect","user":"bob","platform":"web","device":"d1","gateway":"g1","epoch":1,"conn":1,"reason":"lost""#,
    r#""logout","user":"bob","platform":"web","device":"d1","gateway":"g1","epoch":1,"conn":9223372036854775808"#,
    r#""kick","user":"bob","device":"d1""#,
    r#""kick","user":"bob","platform":"""#,
    r#""kick","platform":"web""#,
    r#""alive""#,
    r#""alive","gateway":"g1","epoch":1"#,
    r#""alive","gateway":"g1","epoch":1,"conns":null"#,
    r#""alive","gateway":"g1","epoch":1,"conns":[]"#,
    r#""alive","gateway":"g1","epoch":1,"conns":7"#,
    r#""alive","gateway":"g1","epoch":1,"conns":"7""#,
    r#""alive","gateway":"g1","epoch":1,"conns":{"0":1}"#,
    r#""alive","gateway":"g1","epoch":1,"conns":[1,1]"#,
    r#""alive","gateway":"g1","epoch":1,"conns":[2,1]"#,
    r#""alive","gateway":"g1","epoch":1,"conns":[1,3,2]"#,
    r#""alive","gateway":"g1","epoch":1,"conns":[-1,1]"#,
    r#""alive","gateway":"g1","epoch":1,"conns":[1,2.0]"#,
    r#""alive","gateway":"g1","epoch":1,"conns":[1,"2"]"#,
    r#""alive","gateway":"g1","epoch":1,"conns":[true]"#,
    r#""alive","gateway":"g1","epoch":1,"conns":[null]"#,
    r#""alive","gateway":"g1","epoch":1,"conns":[1,[2]]"#,
    r#""alive","gateway":"g1","epoch":1,"conns":[1,9223372036854775808]"#,
    r#""alive","gateway":"g1","epoch":9223372036854775808,"conns":[1]"#,
    r#""alive","gateway":"g1","conns":[1]"#,
    r#""alive","gateway":"","epoch":1,"conns":[1]"#,
    r#""alive","epoch":1,"conns":[1]"#,
    r#""connect","user":"bob","platform":"web","device":"d1","gateway":"g1","epoch":1,"conn":1,"intent":"login","auth_at":-1"#,
    r#""connect","user":"bob","platform":"web","device":"d1","gateway":"g1","epoch":1,"conn":1,"intent":"login","auth_at":1.0"#,
    r#""connect","user":"bob","platform":"web","device":"d1","gateway":"g1","epoch":1,"conn":1,"intent":"login","auth_at":"1""#,
    r#""connect","user":"bob","platform":"web","device":"d1","gateway":"g1","epoch":1,"conn":1,"intent":"login","auth_at":true"#,
    r#""connect","user":"bob","platform":"web","device":"d1","gateway":"g1","epoch":1,"conn":1,"intent":"login","auth_at":9007199254740992"#,
    r#""connect","user":"bob","platform":"web","device":"d1","gateway":"g1","epoch":1,"conn":1,"intent":"resume","auth_at":[]"#,
    r#""revision""#,
    r#""revision","revision":null"#,
    r#""revision","revision":0"#,
    r#""revision","revision":-1"#,
    r#""revision","revision":1.0"#,
    r#""revision","revision":"1""#,
    r#""revision","revision":2147483648"#,
    r#""policy","policy":{"custom_keep_ms":-1}"#,
    r#""policy","policy":{"custom_keep_ms":1.5}"#,
    r#""policy","policy":{"custom_keep_ms":null}"#,
    r#""policy","policy":{"custom_keep_ms":"0"}"#,
    r#""policy","policy":{"custom_keep_ms":315360000001}"#,
    r#""policy","policy":{"outage":{"custom_keep_ms":0}}"#,
];

/// A record as `fold` reads it; one without an event as a line that is malformed.
pub fn record_json(offset: Offset, ts: u64, event: Option<&Event<'_>>) -> String {
    match event {
        Some(event) => event_json(offset, ts, event),
        None => {
            // Another one for each time and offset.
            let kind = offset.0.wrapping_mul(31).wrapping_add(ts) % MALFORMED.len() as u64;
            let malformed = MALFORMED[kind as usize];
            format!(r#"{{"offset":{offset},"ts":{ts},"type":{malformed}}}"#)
        }
    }
}

/// An event as a JSON line (sections 3 and 8).
pub fn event_json(offset: Offset, ts: u64, event: &Event<'_>) -> String {
    let mut line = format!(r#"{{"offset":{offset},"ts":{ts},"type":"{}""#, event.name());
    match event {
        Event::Connect {
            who,
            via,
            intent,
            client,
            auth_at,
        } => {
            add_who(&mut line, who);
            add_via(&mut line, via);
            let intent = match intent {
                Intent::Login => "login",
                Intent::Resume => "resume",
            };
            add_text(&mut line, "intent", intent);
            if let Some(client) = client {
                add_text(&mut line, "client", client);
            }
            match auth_at {
                Some(auth_at) => add_number(&mut line, "auth_at", *auth_at),
                // Null or missing is the same.
                None if offset.0.is_multiple_of(7) => line.push_str(r#","auth_at":null"#),
                None => {}
            }
        }
        Event::Heartbeat { who, via }
        | Event::Background { who, via }
        | Event::Foreground { who, via }
        | Event::Logout { who, via } => {
            add_who(&mut line, who);
            add_via(&mut line, via);
        }
        Event::Heartbeats { gateway, epoch, beats } => {
            add_text(&mut line, "gateway", gateway);
            add_number(&mut line, "epoch", epoch.0);
            let beats: Vec<String> = beats
                .iter()
                .map(|beat| {
                    format!(
                        r#"{{"user":{},"platform":{},"device":{},"conn":{}}}"#,
                        text(&beat.who.user),
                        text(&beat.who.platform),
                        text(&beat.who.device),
                        beat.conn.0
                    )
                })
                .collect();
            line.push_str(&format!(r#","beats":[{}]"#, beats.join(",")));
        }
        Event::Alive { gateway, epoch, conns } => {
            add_text(&mut line, "gateway", gateway);
            add_number(&mut line, "epoch", epoch.0);
            let conns: Vec<String> = conns.iter().map(|conn| conn.0.to_string()).collect();
            line.push_str(&format!(r#","conns":[{}]"#, conns.join(",")));
        }
        Event::Disconnect { who, via, reason } => {
            add_who(&mut line, who);
            add_via(&mut line, via);
            let reason = match reason {
                Ending::Closed => "closed",
                Ending::Exit => "exit",
            };
            add_text(&mut line, "reason", reason);
        }
        Event::Kick { user, target } => {
            add_text(&mut line, "user", user);
            match target {
                Target::All => {}
                Target::Platform(platform) => add_text(&mut line, "platform", platform),
                Target::Device(platform, device) => {
                    add_text(&mut line, "platform", platform);
                    add_text(&mut line, "device", device);
                }
            }
        }
        Event::CustomStatus { user, text } => {
            add_text(&mut line, "user", user);
            match text {
                Some(text) => add_text(&mut line, "text", text),
                None => line.push_str(r#","text":null"#),
            }
        }
        Event::Forget { user } => add_text(&mut line, "user", user),
        Event::Lease { gateway, epoch, ttl_ms } => {
            add_text(&mut line, "gateway", gateway);
            add_number(&mut line, "epoch", epoch.0);
            add_number(&mut line, "ttl_ms", *ttl_ms);
        }
        Event::Policy { document, .. } => line.push_str(&format!(r#","policy":{document}"#)),
        Event::Revision { revision } => add_number(&mut line, "revision", u64::from(*revision)),
        Event::Tick => {}
    }
    line.push('}');
    line
}

fn add_who(line: &mut String, who: &DeviceRef<'_>) {
    add_text(line, "user", &who.user);
    add_text(line, "platform", &who.platform);
    add_text(line, "device", &who.device);
}

fn add_via(line: &mut String, via: &ConnRef<'_>) {
    add_text(line, "gateway", &via.gateway);
    add_number(line, "epoch", via.epoch.0);
    add_number(line, "conn", via.conn.0);
}

fn add_text(line: &mut String, name: &str, value: &str) {
    line.push_str(&format!(r#","{name}":{}"#, text(value)));
}

fn add_number(line: &mut String, name: &str, value: u64) {
    line.push_str(&format!(r#","{name}":{value}"#));
}
