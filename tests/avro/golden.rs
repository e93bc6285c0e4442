//! Golden bytes: each schema, each type of event, each name of a value, as they are in the topics of running systems. Lines may
//! be added; a changed line means that old records can no longer be read.

use rollcall::presence::change::{Cause, Change, DeviceChange, Kick, KickReason, KickedDevice, OutputId};
use rollcall::presence::event::{ConnRef, DeviceRef, Ending, Event, EventType, HeartbeatEntry, Intent, Target};
use rollcall::presence::{Conn, Epoch, LogTime, Offset, Partition, Status};
use rollcall::schema::avro::*;
use rollcall::schema::policy::parse_policy;

const GOLDEN: &str = include_str!("../golden/avro.txt");
/// Written with the schemas of `schemas/older/`.
const OLDER: &str = include_str!("../golden/avro-1.txt");

fn who() -> DeviceRef<'static> {
    DeviceRef {
        user: "alice".into(),
        platform: "android".into(),
        device: "a1".into(),
    }
}

fn via() -> ConnRef<'static> {
    ConnRef {
        gateway: "g1".into(),
        epoch: Epoch(3),
        conn: Conn(1_000_000),
    }
}

fn events() -> Vec<(&'static str, Event<'static>)> {
    let connect = |intent, client: Option<&'static str>, auth_at| Event::Connect {
        who: who(),
        via: via(),
        intent,
        client: client.map(Into::into),
        auth_at,
    };
    let kick = |target| Event::Kick {
        user: "alice".into(),
        target,
    };
    let beat = |user: &'static str| HeartbeatEntry {
        who: DeviceRef {
            user: user.into(),
            platform: "web".into(),
            device: "t".into(),
        },
        conn: Conn(64),
    };
    let document = r#"{"login":"multi"}"#;
    vec![
        ("connect login", connect(Intent::Login, None, None)),
        (
            "connect resume",
            connect(Intent::Resume, Some("10.0.0.1 app 1.2"), None),
        ),
        ("connect proven", connect(Intent::Resume, None, Some(1_700_000_000_000))),
        ("heartbeat", Event::Heartbeat { who: who(), via: via() }),
        (
            "heartbeats",
            Event::Heartbeats {
                gateway: "g1".into(),
                epoch: Epoch(3),
                beats: vec![beat("alice"), beat("bob")],
            },
        ),
        ("background", Event::Background { who: who(), via: via() }),
        ("foreground", Event::Foreground { who: who(), via: via() }),
        (
            "disconnect closed",
            Event::Disconnect {
                who: who(),
                via: via(),
                reason: Ending::Closed,
            },
        ),
        (
            "disconnect exit",
            Event::Disconnect {
                who: who(),
                via: via(),
                reason: Ending::Exit,
            },
        ),
        ("logout", Event::Logout { who: who(), via: via() }),
        ("kick user", kick(Target::All)),
        ("kick platform", kick(Target::Platform("web".into()))),
        ("kick device", kick(Target::Device("web".into(), "t".into()))),
        (
            "custom_status",
            Event::CustomStatus {
                user: "alice".into(),
                text: Some("à table".into()),
            },
        ),
        (
            "custom_status cleared",
            Event::CustomStatus {
                user: "alice".into(),
                text: None,
            },
        ),
        ("forget", Event::Forget { user: "alice".into() }),
        (
            "lease",
            Event::Lease {
                gateway: "g1".into(),
                epoch: Epoch(i64::MAX as u64),
                ttl_ms: 30_000,
            },
        ),
        (
            "policy",
            Event::Policy {
                policy: Box::new(parse_policy(document).unwrap()),
                document: document.into(),
            },
        ),
        (
            "alive",
            Event::Alive {
                gateway: "g1".into(),
                epoch: Epoch(3),
                conns: [0, 1, 128, 256, 16_640, i64::MAX as u64].map(Conn).into(),
            },
        ),
        ("revision", Event::Revision { revision: 1 }),
        ("tick", Event::Tick),
    ]
}

pub fn change() -> Change {
    Change {
        id: OutputId {
            partition: Partition(5),
            offset: Offset(1_234),
            index: 0,
        },
        seq: 77,
        user: "alice".into(),
        version: 9,
        at: LogTime(1_700_000_000_000),
        logged_at: LogTime(1_700_000_000_001),
        cause: Cause::Login,
        before: Status::Offline,
        after: Status::Online,
        devices: vec![DeviceChange {
            platform: "android".into(),
            device: "a1".into(),
            gateway: "g1".into(),
            before: Status::PushOnline,
            after: Status::Online,
        }],
        custom_status: None,
        evidence: Offset(1_200),
        rehearsal: None,
    }
}

fn kick() -> Kick {
    Kick {
        id: OutputId {
            partition: Partition(5),
            offset: Offset(1_234),
            index: 1,
        },
        gateway: "g1".into(),
        epoch: Epoch(3),
        conn: Conn(1_000_000),
        whose: Some(KickedDevice {
            user: "alice".into(),
            platform: "android".into(),
            device: "a1".into(),
        }),
        reason: KickReason::Displaced,
        at: LogTime(1_700_000_000_000),
    }
}

fn user_state() -> UserState<'static> {
    UserState {
        user: "alice".into(),
        version: 9,
        status: Status::Online,
        since: LogTime(1_700_000_000_000),
        custom_status: Some("busy".into()),
        devices: vec![DeviceState {
            platform: "android".into(),
            device: "a1".into(),
            status: Status::Online,
        }],
        partition: Partition(5),
        offset: Offset(1_234),
    }
}

fn quarantined() -> Quarantined<'static> {
    Quarantined {
        partition: Partition(5),
        offset: Offset(1_234),
        ts: 1_700_000_000_000,
        error: "the value is empty".into(),
        key: None,
        value: Some(b"".into()),
    }
}

fn incident() -> IncidentRecord {
    let map = |names: &[(&str, u64)]| names.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect();
    IncidentRecord {
        id: "1-1700000000".to_owned(),
        rule: 1,
        window_s: 10,
        least: 100,
        share_percent: 5,
        from: 1_700_000_000_000,
        to: 1_700_000_003_999,
        departures: 12_431,
        devices: 12_400,
        online_before: 61_904,
        causes: map(&[("closed", 31), ("gateway_lost", 12_400)]),
        gateways: map(&[("g7", 12_431)]),
        platforms: map(&[("android", 8_020), ("iphone", 4_411)]),
        clients: Some(map(&[("(unknown)", 31), ("app/5.1", 12_400)])),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A line of the file: what it is, and its bytes.
fn line(what: &str, encode: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut bytes = Vec::new();
    encode(&mut bytes);
    format!("{what}: {}\n", hex(&bytes))
}

fn lines() -> String {
    let mut lines = String::new();
    for schema in Schema::ALL {
        lines += &format!("fingerprint {}: {:016x}\n", schema.name(), schema.fingerprint());
    }
    for (what, event) in events() {
        lines += &line(&format!("Event {what}"), |out| encode_event(&event, out));
    }
    for cause in Cause::ALL {
        lines += &line(&format!("Change {}", cause.name()), |out| {
            encode_change(&Change { cause, ..change() }, out)
        });
    }
    for status in Status::ALL {
        let custom_status = Some("busy".into());
        let change = Change {
            before: status,
            after: status,
            devices: vec![],
            custom_status,
            ..change()
        };
        lines += &line(&format!("Change {}", status.name()), |out| encode_change(&change, out));
    }
    for reason in KickReason::ALL {
        lines += &line(&format!("Kick {}", reason.name()), |out| {
            encode_kick(&Kick { reason, ..kick() }, out)
        });
    }
    let nobody = Kick { whose: None, ..kick() };
    lines += &line("Kick of nobody", |out| encode_kick(&nobody, out));
    for status in Status::ALL {
        let state = UserState { status, ..user_state() };
        lines += &line(&format!("UserState {}", status.name()), |out| {
            encode_user_state(&state, out)
        });
    }
    let key = Some(b"alice".into());
    let with_key = Quarantined {
        key,
        value: None,
        ..quarantined()
    };
    lines += &line("Quarantined value", |out| encode_quarantined(&quarantined(), out));
    lines += &line("Quarantined key", |out| encode_quarantined(&with_key, out));
    let without_clients = IncidentRecord {
        clients: None,
        ..incident()
    };
    lines += &line("Incident", |out| encode_incident(&incident(), out));
    lines += &line("Incident without clients", |out| encode_incident(&without_clients, out));
    lines
}

#[test]
fn what_is_written_is_what_was_always_written() {
    crate::bless::check([("tests/golden/avro.txt", lines().as_str())]);
}

#[test]
fn every_type_of_event_has_golden_bytes() {
    for kind in EventType::ALL {
        let is_there = events().iter().any(|(_, event)| event.event_type() == kind);
        assert!(is_there, "add a {} to events()", kind.name());
    }
}

/// The bytes that a golden file has for something, if it has it.
fn bytes(golden: &str, what: &str) -> Option<Vec<u8>> {
    let mut lines = golden.lines();
    let line = lines.find_map(|line| line.strip_prefix(what)?.strip_prefix(": "))?;
    let byte = |at: usize| u8::from_str_radix(&line[at..at + 2], 16).unwrap();
    Some((0..line.len()).step_by(2).map(byte).collect())
}

#[test]
fn what_was_always_written_is_read_as_what_it_was() {
    for golden in [GOLDEN, OLDER] {
        let mut read = 0;
        let mut known = |what: String| {
            let bytes = bytes(golden, &what);
            read += usize::from(bytes.is_some());
            assert!(bytes.is_some() || golden == OLDER, "{what} is missing");
            bytes
        };
        for (what, event) in events() {
            if let Some(bytes) = known(format!("Event {what}")) {
                assert_eq!(decode_event(&bytes), Ok(event), "{what}");
            }
        }
        for cause in Cause::ALL {
            if let Some(bytes) = known(format!("Change {}", cause.name())) {
                assert_eq!(decode_change(&bytes), Ok(Change { cause, ..change() }));
            }
        }
        for reason in KickReason::ALL {
            if let Some(bytes) = known(format!("Kick {}", reason.name())) {
                assert_eq!(decode_kick(&bytes), Ok(Kick { reason, ..kick() }));
            }
        }
        for status in Status::ALL {
            let state = UserState { status, ..user_state() };
            if let Some(bytes) = known(format!("UserState {}", status.name())) {
                assert_eq!(decode_user_state(&bytes), Ok(state));
            }
        }
        if let Some(bytes) = known("Quarantined value".to_owned()) {
            assert_eq!(decode_quarantined(&bytes), Ok(quarantined()));
        }
        if let Some(bytes) = known("Incident".to_owned()) {
            assert_eq!(decode_incident(&bytes), Ok(incident()));
        }
        assert!(read >= 40, "only {read} lines were read");
    }
}

#[test]
fn conns_have_one_form_and_any_other_is_malformed() {
    let with = |packed: &[u8]| {
        let alive = Event::Alive {
            gateway: "g".into(),
            epoch: Epoch(1),
            conns: vec![Conn(5)],
        };
        let mut value = Vec::new();
        encode_event(&alive, &mut value);
        // The field is a length and one byte, before the null of `revision`.
        let tail = value.split_off(value.len() - 3);
        assert_eq!(tail, [2, 5, 0]);
        assert!(packed.len() < 64, "its length takes one byte");
        value.push((packed.len() as u8) << 1);
        value.extend_from_slice(packed);
        value.push(0);
        let event = decode_event(&value).map_err(|error| error.to_string());
        event.map(|event| match event {
            Event::Alive { conns, .. } => conns.iter().map(|conn| conn.0).collect::<Vec<_>>(),
            _ => unreachable!("it is of that type"),
        })
    };
    const MAX: u64 = i64::MAX as u64;
    let max = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f];
    assert_eq!(with(&[0]), Ok(vec![0]));
    assert_eq!(with(&[0, 1]), Ok(vec![0, 1]));
    assert_eq!(with(&[0x80, 1, 0x7f]), Ok(vec![128, 255]));
    assert_eq!(with(&max), Ok(vec![MAX]));
    let after_one: Vec<u8> = [&[1, 0xfe][..], &max[1..]].concat();
    assert_eq!(with(&after_one), Ok(vec![1, MAX]));
    for (packed, what) in [
        (&[][..], "must be 1 to 100000 numbers, not 0"),
        (&[0x80], "must be 1 to 100000 numbers, not 0"),
        (&[5, 0x80], "ends within a number"),
        (&[5, 0], "names a connection twice"),
        (&[0x80, 0], "not in its shortest form"),
        (&[5, 0x81, 0], "not in its shortest form"),
        (
            &[0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 1],
            "beyond 2^63-1",
        ),
        (&[0xff; 11], "must be 1 to"),
        (&[&max[..], &[1]].concat(), "beyond 2^63-1"),
        (&[&[2][..], &[0xfe], &max[1..]].concat(), "beyond 2^63-1"),
    ] {
        let error = with(packed).unwrap_err();
        assert!(error.contains(what), "{packed:?}: {error}");
    }
}

#[test]
fn an_alive_of_a_hundred_thousand_connections_is_the_largest() {
    let alive = |count: u64| {
        let event = Event::Alive {
            gateway: "g".into(),
            epoch: Epoch(1),
            conns: (0..count).map(Conn).collect(),
        };
        let mut value = Vec::new();
        encode_event(&event, &mut value);
        (event, value)
    };
    let (event, value) = alive(100_000);
    assert_eq!(decode_event(&value), Ok(event));
    assert!(value.len() < 101_000, "{} bytes", value.len());
    let error = decode_event(&alive(100_001).1).unwrap_err().to_string();
    assert!(error.contains("must be 1 to 100000 numbers, not 100001"), "{error}");
}
