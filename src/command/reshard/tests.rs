//! A log that is split gives each user what it gave before.

use super::compare::compare;
use super::split::Splitter;
use crate::engine::rejected::decode;
use crate::log::{CopiedEvent, Record};
use crate::presence::change::{Cause, DeviceChange, KickReason, Output};
use crate::presence::event::{Event, HeartbeatEntry};
use crate::presence::policy::Policy;
use crate::presence::state::{HashSeed, State};
use crate::presence::{Conn, LogTime, Offset, Partition, Status};
use crate::registry::LearnedSchemas;
use crate::schema::avro;
use crate::schema::partitioner::partition_of;
use crate::sim::history;
use std::collections::{BTreeMap, BTreeSet};

/// What users of a change topic see of one user, without offsets and numbers of other users' changes.
#[derive(PartialEq, Eq, Debug)]
enum Seen {
    Change {
        version: u64,
        at: LogTime,
        cause: Cause,
        statuses: (Status, Status),
        devices: Vec<DeviceChange>,
        custom_status: Option<Box<str>>,
    },
    Kick(Box<str>, u64, Conn, Box<str>, Box<str>, KickReason, LogTime),
}

type SeenByUser = BTreeMap<Box<str>, Vec<Seen>>;

fn see(seen: &mut SeenByUser, output: Output) {
    let (user, what) = match output {
        Output::Change(change) => (
            change.user,
            Seen::Change {
                version: change.version,
                at: change.at,
                cause: change.cause,
                statuses: (change.before, change.after),
                devices: change.devices,
                custom_status: change.custom_status,
            },
        ),
        Output::Kick(kick) => {
            let Some(whose) = kick.whose else { return };
            let what = Seen::Kick(
                kick.gateway,
                kick.epoch.0,
                kick.conn,
                whose.platform,
                whose.device,
                kick.reason,
                kick.at,
            );
            (whose.user, what)
        }
        Output::Ignored(_) => return,
    };
    seen.entry(user).or_default().push(what);
}

fn record(offset: u64, ts: u64, event: Option<&Event<'_>>) -> Record {
    let mut value = b"no event".to_vec();
    if let Some(event) = event {
        value.clear();
        avro::encode_event(event, &mut value);
    }
    Record {
        offset: Offset(offset),
        ts,
        key: event.and_then(Event::user).map(|user| user.as_bytes().to_vec()),
        value,
        is_null: false,
        headers: None,
    }
}

/// Splits a partition, and folds both sides to the same time. Returns what was seen of users in the old one and in its parts.
fn split(
    (source, sources, targets): (u32, u32, u32),
    policy: &Policy,
    records: &[Record],
) -> (SeenByUser, SeenByUser, Vec<String>) {
    let (mut old, mut new) = (SeenByUser::new(), SeenByUser::new());
    let learned = LearnedSchemas::default();
    let mut splitter = Splitter::new(Partition(source), sources, targets, policy.clone(), HashSeed(7));
    let mut parts: BTreeMap<Partition, State> = splitter
        .parts()
        .map(|part| (part, State::new(part, policy.clone())))
        .collect();
    let mut out = Vec::new();
    for record in records {
        let event = decode(record, Partition(source), sources, &learned).ok();
        splitter.take(record, event.as_ref(), &mut out, &mut |output| see(&mut old, output));
        for (partition, copied) in out.drain(..) {
            let part = parts.get_mut(&partition).expect("a part of this partition");
            let next = part.offset().map_or(0, |offset| offset.0 + 1);
            let copied: Record = CopiedEvent::at(copied, Offset(next));
            assert!(part.time().is_none_or(|time| time.0 <= copied.ts), "time goes on");
            let event = decode(&copied, partition, targets, &learned).ok();
            part.fold(copied.offset, copied.ts, event.as_ref(), &mut |output| {
                see(&mut new, output)
            });
        }
        let time = splitter.state().time();
        let silence_ms = splitter.state().policy().outage.silence_ms;
        let silent_ms = |part: &State| Some(time?.0 - part.time()?.0);
        assert!(
            silence_ms == 0 || parts.values().filter_map(silent_ms).all(|ms| ms <= silence_ms),
            "no part is silent for longer than the old partition"
        );
    }
    let time = splitter.state().time().expect("there were records");
    for part in parts.values_mut() {
        let next = part.offset().map_or(0, |offset| offset.0 + 1);
        part.fold(Offset(next), time.0, Some(&Event::Tick), &mut |output| {
            see(&mut new, output)
        });
    }
    let mut states: Vec<&mut State> = parts.values_mut().collect();
    let differences = compare(splitter.state(), &mut states);
    assert_eq!(differences.users, splitter.state().slots().count() as u64);
    (old, new, differences.described)
}

/// Gives each user connection numbers of its own, as gateways do.
fn apart(event: Event<'static>) -> Event<'static> {
    let mut users: BTreeMap<String, u64> = BTreeMap::new();
    for (number, user) in (0..).zip(["bob", "alice", "～", "😀", "u\"1\\", "zoë"]) {
        users.insert(user.to_owned(), number);
    }
    let own = |user: &str, conn: Conn| Conn((conn.0 % (1 << 60)) * 8 + users.get(user).copied().unwrap_or(7));
    let mut event = event;
    match &mut event {
        Event::Connect { who, via, .. }
        | Event::Heartbeat { who, via }
        | Event::Background { who, via }
        | Event::Foreground { who, via }
        | Event::Disconnect { who, via, .. }
        | Event::Logout { who, via } => via.conn = own(&who.user, via.conn),
        Event::Heartbeats { beats, .. } => {
            for HeartbeatEntry { who, conn } in beats {
                *conn = own(&who.user, *conn);
            }
        }
        Event::Alive { conns, .. } => {
            let all: BTreeSet<Conn> = conns
                .iter()
                .flat_map(|conn| (0..8).map(|number| Conn((conn.0 % (1 << 60)) * 8 + number)))
                .collect();
            *conns = all.into_iter().collect();
        }
        Event::Kick { .. }
        | Event::CustomStatus { .. }
        | Event::Forget { .. }
        | Event::Lease { .. }
        | Event::Policy { .. }
        | Event::Revision { .. }
        | Event::Tick => {}
    }
    event
}

#[test]
fn whatever_the_log_every_user_has_the_same_changes_kicks_and_state_after_it() {
    const RECORDS: usize = 800;
    let (mut changes, mut users, mut unequal) = (0, 0, 0);
    for seed in 0..96 {
        let sources = 1 + (seed % 2) as u32;
        let targets = sources * [2, 3, 5, 8][seed as usize / 2 % 4];
        let policy = history::policy(seed);
        for source in 0..sources {
            let of_seed = history::records(seed * 2 + u64::from(source), RECORDS);
            let records: Vec<Record> = of_seed
                .map(|(offset, ts, event)| {
                    let event = event.map(apart);
                    // One that raises the revision is another test's.
                    let event =
                        event.filter(|event| event.unknown_revision(crate::presence::Revision::NEWEST).is_none());
                    record(offset.0, ts, event.as_ref())
                })
                .collect();
            let (old, new, differences) = split((source, sources, targets), &policy, &records);
            assert_eq!(old, new, "seed {seed}, partition {source} of {sources} to {targets}");
            assert_eq!(differences, [""; 0], "seed {seed}");
            changes += old.values().map(Vec::len).sum::<usize>();
            users += old.len();
            let homes: BTreeSet<Partition> = old.keys().map(|user| partition_of(user, targets)).collect();
            unequal += usize::from(homes.len() > 1);
        }
    }
    // The histories are worth something: they give changes, and their users are in several parts.
    assert!(
        changes > 10_000 && users > 300 && unequal > 90,
        "{changes} {users} {unequal}"
    );
}

#[test]
fn a_connection_that_two_users_share_keeps_both_online() {
    let connect = |user: &'static str, conn: u64| Event::Connect {
        who: crate::presence::event::DeviceRef {
            user: user.into(),
            platform: "web".into(),
            device: "d".into(),
        },
        via: crate::presence::event::ConnRef {
            gateway: "g".into(),
            epoch: crate::presence::Epoch(1),
            conn: Conn(conn),
        },
        intent: crate::presence::event::Intent::Login,
        client: None,
        auth_at: None,
    };
    let alive = |conns: &[u64]| Event::Alive {
        gateway: "g".into(),
        epoch: crate::presence::Epoch(1),
        conns: conns.iter().copied().map(Conn).collect(),
    };
    // "abc" and "21" belong to different partitions of 2.
    let events = [
        connect("abc", 1),
        connect("21", 1),
        connect("foobar", 2),
        alive(&[1, 2, 9]),
        Event::Tick,
    ];
    let records: Vec<Record> = events
        .iter()
        .zip([0, 0, 0, 59_000, 100_000])
        .zip(0..)
        .map(|((event, ts), offset)| record(offset, ts, Some(event)))
        .collect();
    let (old, new, differences) = split((0, 1, 2), &Policy::default(), &records);
    assert_eq!(old, new);
    assert_eq!(differences, [""; 0]);
    assert_eq!(
        old.values().map(Vec::len).sum::<usize>(),
        3,
        "all of them are still online: {old:?}"
    );
}

#[test]
fn a_difference_is_described_with_both_states() {
    let policy = Policy::default();
    let mut source = State::new(Partition(0), policy.clone());
    let login = |text: &'static str| Event::CustomStatus {
        user: "abc".into(),
        text: Some(text.into()),
    };
    let connect = Event::Connect {
        who: crate::presence::event::DeviceRef {
            user: "abc".into(),
            platform: "web".into(),
            device: "d".into(),
        },
        via: crate::presence::event::ConnRef {
            gateway: "g".into(),
            epoch: crate::presence::Epoch(1),
            conn: Conn(1),
        },
        intent: crate::presence::event::Intent::Login,
        client: None,
        auth_at: None,
    };
    let mut part = State::new(Partition(1), policy);
    for (state, text) in [(&mut source, "here"), (&mut part, "there")] {
        state.fold(Offset(0), 5, Some(&connect), &mut |_| {});
        state.fold(Offset(1), 5, Some(&login(text)), &mut |_| {});
    }
    let mut empty = State::new(Partition(0), Policy::default());
    let differences = compare(&source, &mut [&mut empty, &mut part]);
    assert_eq!((differences.users, differences.count), (1, 1));
    let described = &differences.described[0];
    assert!(described.contains(r#""custom_status":"here""#), "{described}");
    assert!(described.contains(r#""custom_status":"there""#), "{described}");

    // One that is missing on either side.
    let mut nobody = State::new(Partition(1), Policy::default());
    assert_eq!(compare(&source, &mut [&mut nobody]).count, 1);
    let nobody = State::new(Partition(0), Policy::default());
    assert_eq!(compare(&nobody, &mut [&mut part]).count, 1);
}
