//! Golden bytes: each schema, each type of event, each name that stands for a value. They are what is in the topics of
//! running systems. A line may be added; one that changes says that old records can no longer be read.

use rollcall::presence::change::{Cause, Change, DeviceChange, Kick, KickReason, OutputId};
use rollcall::presence::event::{Beat, Ending, Event, Intent, Target, Via, Who};
use rollcall::presence::{Conn, Epoch, LogTime, Offset, Partition, Status};
use rollcall::schema::avro::*;
use rollcall::schema::policy::parse_policy;

const GOLDEN: &str = include_str!("../golden/avro.txt");

fn who() -> Who<'static> {
    Who {
        user: "alice".into(),
        platform: "android".into(),
        device: "a1".into(),
    }
}

fn via() -> Via<'static> {
    Via {
        gateway: "g1".into(),
        epoch: Epoch(3),
        conn: Conn(1_000_000),
    }
}

fn events() -> Vec<(&'static str, Event<'static>)> {
    let connect = |intent, client: Option<&'static str>| Event::Connect {
        who: who(),
        via: via(),
        intent,
        client: client.map(Into::into),
    };
    let kick = |target| Event::Kick {
        user: "alice".into(),
        target,
    };
    let beat = |user: &'static str| Beat {
        who: Who {
            user: user.into(),
            platform: "web".into(),
            device: "t".into(),
        },
        conn: Conn(64),
    };
    let document = r#"{"login":"multi"}"#;
    vec![
        ("connect login", connect(Intent::Login, None)),
        ("connect resume", connect(Intent::Resume, Some("10.0.0.1 app 1.2"))),
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
        user: "alice".into(),
        platform: "android".into(),
        device: "a1".into(),
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
    lines
}

#[test]
fn what_is_written_is_what_was_always_written() {
    let lines = lines();
    assert!(lines == GOLDEN, "tests/golden/avro.txt would now be:\n{lines}");
}

#[test]
fn what_was_always_written_is_read_as_what_it_was() {
    let bytes = |what: &str| -> Vec<u8> {
        let line = GOLDEN
            .lines()
            .find_map(|line| line.strip_prefix(what)?.strip_prefix(": "))
            .expect(what);
        (0..line.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&line[at..at + 2], 16).unwrap())
            .collect()
    };
    for (what, event) in events() {
        assert_eq!(decode_event(&bytes(&format!("Event {what}"))), Ok(event), "{what}");
    }
    for cause in Cause::ALL {
        assert_eq!(
            decode_change(&bytes(&format!("Change {}", cause.name()))),
            Ok(Change { cause, ..change() })
        );
    }
    for reason in KickReason::ALL {
        assert_eq!(
            decode_kick(&bytes(&format!("Kick {}", reason.name()))),
            Ok(Kick { reason, ..kick() })
        );
    }
    for status in Status::ALL {
        let state = UserState { status, ..user_state() };
        assert_eq!(
            decode_user_state(&bytes(&format!("UserState {}", status.name()))),
            Ok(state)
        );
    }
    assert_eq!(decode_quarantined(&bytes("Quarantined value")), Ok(quarantined()));
}
