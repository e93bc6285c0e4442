//! Random values of each type, over the whole of their bounds.

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;
use rollcall::presence::change::{Cause, Change, DeviceChange, Kick, KickReason, KickedDevice, OutputId};
use rollcall::presence::event::{ConnRef, DeviceRef, Ending, Event, EventType, HeartbeatEntry, Intent, Target, bounds};
use rollcall::presence::{Conn, Epoch, LogTime, Offset, Partition, Status};
use rollcall::schema::avro::{DeviceState, IncidentRecord, Quarantined, UserState};
use rollcall::schema::policy::parse_policy;
use std::borrow::Cow;

/// Text of a length in bytes within the bounds, with characters of one to four bytes.
fn text((least, most): (usize, usize)) -> impl Strategy<Value = Cow<'static, str>> {
    let lengths = prop_oneof![3 => least..=most.min(12), 1 => least..=most];
    (
        lengths,
        vec(select(vec!['a', 'Z', '0', '-', '"', '\\', '\0', 'é', '時', '😀']), most),
    )
        .prop_map(|(length, chars)| {
            let mut text = String::new();
            for char in chars {
                if text.len() + char.len_utf8() <= length {
                    text.push(char);
                }
            }
            text.extend(std::iter::repeat_n('.', length - text.len()));
            Cow::Owned(text)
        })
}

fn boxed() -> impl Strategy<Value = Box<str>> {
    text((0, 130)).prop_map(|text| text.into())
}

/// 0…2^63−1, each width as likely as another.
fn number() -> impl Strategy<Value = u64> {
    (any::<u64>(), 1..64_u32).prop_map(|(bits, shift)| bits >> shift)
}

fn who() -> impl Strategy<Value = DeviceRef<'static>> {
    (
        text(bounds::USER_BYTES),
        text(bounds::PLATFORM_BYTES),
        text(bounds::DEVICE_BYTES),
    )
        .prop_map(|(user, platform, device)| DeviceRef { user, platform, device })
}

fn via() -> impl Strategy<Value = ConnRef<'static>> {
    (text(bounds::GATEWAY_BYTES), number(), number()).prop_map(|(gateway, epoch, conn)| ConnRef {
        gateway,
        epoch: Epoch(epoch),
        conn: Conn(conn),
    })
}

fn beats() -> impl Strategy<Value = Vec<HeartbeatEntry<'static>>> {
    vec(
        (who(), number()).prop_map(|(who, conn)| HeartbeatEntry { who, conn: Conn(conn) }),
        1..20,
    )
}

fn target() -> impl Strategy<Value = Target<'static>> {
    prop_oneof![
        Just(Target::All),
        text(bounds::PLATFORM_BYTES).prop_map(Target::Platform),
        (text(bounds::PLATFORM_BYTES), text(bounds::DEVICE_BYTES)).prop_map(|(p, d)| Target::Device(p, d)),
    ]
}

/// Growing numbers, the first and the differences of any size.
fn conns() -> impl Strategy<Value = Vec<Conn>> {
    proptest::collection::btree_set(prop_oneof![number(), 0..300_u64], 1..60)
        .prop_map(|numbers| numbers.into_iter().map(Conn).collect())
}

pub fn event() -> impl Strategy<Value = Event<'static>> {
    let user = || text(bounds::USER_BYTES);
    let documents = vec![
        "{}",
        r#"{"rules":1}"#,
        r#" {"login":"multi","platforms":{"tv":{"timeout_ms":9,"push":true}}}"#,
    ];
    let one = move |kind: EventType| match kind {
        EventType::Connect => (
            who(),
            via(),
            select(vec![Intent::Login, Intent::Resume]),
            option::of(text(bounds::CLIENT_BYTES)),
            option::of(0..=bounds::TIMESTAMP_MAX),
        )
            .prop_map(|(who, via, intent, client, auth_at)| Event::Connect {
                who,
                via,
                intent,
                client,
                auth_at,
            })
            .boxed(),
        EventType::Alive => (text(bounds::GATEWAY_BYTES), number(), conns())
            .prop_map(|(gateway, epoch, conns)| Event::Alive {
                gateway,
                epoch: Epoch(epoch),
                conns,
            })
            .boxed(),
        EventType::Revision => (1..=i32::MAX as u32)
            .prop_map(|revision| Event::Revision { revision })
            .boxed(),
        EventType::Heartbeat => (who(), via())
            .prop_map(|(who, via)| Event::Heartbeat { who, via })
            .boxed(),
        EventType::Heartbeats => (text(bounds::GATEWAY_BYTES), number(), beats())
            .prop_map(|(gateway, epoch, beats)| Event::Heartbeats {
                gateway,
                epoch: Epoch(epoch),
                beats,
            })
            .boxed(),
        EventType::Background => (who(), via())
            .prop_map(|(who, via)| Event::Background { who, via })
            .boxed(),
        EventType::Foreground => (who(), via())
            .prop_map(|(who, via)| Event::Foreground { who, via })
            .boxed(),
        EventType::Disconnect => (who(), via(), select(vec![Ending::Closed, Ending::Exit]))
            .prop_map(|(who, via, reason)| Event::Disconnect { who, via, reason })
            .boxed(),
        EventType::Logout => (who(), via()).prop_map(|(who, via)| Event::Logout { who, via }).boxed(),
        EventType::Kick => (user(), target())
            .prop_map(|(user, target)| Event::Kick { user, target })
            .boxed(),
        EventType::CustomStatus => (user(), option::of(text(bounds::STATUS_TEXT_BYTES)))
            .prop_map(|(user, text)| Event::CustomStatus { user, text })
            .boxed(),
        EventType::Forget => user().prop_map(|user| Event::Forget { user }).boxed(),
        EventType::Lease => (text(bounds::GATEWAY_BYTES), number(), 0..=bounds::TTL_MS_MAX)
            .prop_map(|(gateway, epoch, ttl_ms)| Event::Lease {
                gateway,
                epoch: Epoch(epoch),
                ttl_ms,
            })
            .boxed(),
        EventType::Policy => select(documents.clone())
            .prop_map(|document| Event::Policy {
                policy: Box::new(parse_policy(document).unwrap()),
                document: document.into(),
            })
            .boxed(),
        EventType::Tick => Just(Event::Tick).boxed(),
    };
    select(EventType::ALL.to_vec()).prop_flat_map(one)
}

fn status() -> impl Strategy<Value = Status> {
    select(Status::ALL.to_vec())
}

fn partition() -> impl Strategy<Value = Partition> {
    prop_oneof![0..64_u32, 0..=i32::MAX as u32].prop_map(Partition)
}

fn output_id() -> impl Strategy<Value = OutputId> {
    (partition(), number(), number()).prop_map(|(partition, offset, index)| OutputId {
        partition,
        offset: Offset(offset),
        index,
    })
}

fn device_change() -> impl Strategy<Value = DeviceChange> {
    (boxed(), boxed(), boxed(), status(), status()).prop_map(|(platform, device, gateway, before, after)| {
        DeviceChange {
            platform,
            device,
            gateway,
            before,
            after,
        }
    })
}

pub fn change() -> impl Strategy<Value = Change> {
    let numbers = [(); 5].map(|()| number());
    let statuses = (select(Cause::ALL.to_vec()), status(), status());
    (
        output_id(),
        boxed(),
        numbers,
        statuses,
        vec(device_change(), 0..4),
        option::of(boxed()),
    )
        .prop_map(
            |(id, user, [seq, version, at, logged_at, evidence], (cause, before, after), devices, custom_status)| {
                Change {
                    id,
                    seq,
                    user,
                    version,
                    at: LogTime(at),
                    logged_at: LogTime(logged_at),
                    cause,
                    before,
                    after,
                    devices,
                    custom_status,
                    evidence: Offset(evidence),
                    rehearsal: None,
                }
            },
        )
}

pub fn kick() -> impl Strategy<Value = Kick> {
    let strings = [(); 4].map(|()| boxed());
    let numbers = [(); 3].map(|()| number());
    let is_known = proptest::bool::ANY;
    (
        output_id(),
        strings,
        numbers,
        select(KickReason::ALL.to_vec()),
        is_known,
    )
        .prop_map(
            |(id, [gateway, user, platform, device], [epoch, conn, at], reason, is_known)| Kick {
                id,
                gateway,
                epoch: Epoch(epoch),
                conn: Conn(conn),
                whose: is_known.then_some(KickedDevice { user, platform, device }),
                reason,
                at: LogTime(at),
            },
        )
}

pub fn user_state() -> impl Strategy<Value = UserState<'static>> {
    let any_text = || text((0, 130));
    let device = (any_text(), any_text(), status()).prop_map(|(platform, device, status)| DeviceState {
        platform,
        device,
        status,
    });
    let numbers = [(); 3].map(|()| number());
    (
        any_text(),
        numbers,
        status(),
        option::of(any_text()),
        vec(device, 0..4),
        partition(),
    )
        .prop_map(
            |(user, [version, since, offset], status, custom_status, devices, partition)| UserState {
                user,
                version,
                status,
                since: LogTime(since),
                custom_status,
                devices,
                partition,
                offset: Offset(offset),
            },
        )
}

/// Maps have one entry at most, since their order is free.
pub fn incident() -> impl Strategy<Value = IncidentRecord> {
    let map = || {
        option::of((text((0, 60)), number())).prop_map(|entry| {
            entry
                .into_iter()
                .map(|(name, count)| (name.into_owned(), count))
                .collect()
        })
    };
    let numbers = (number(), number(), number(), number(), number());
    let maps = (map(), map(), map(), option::of(map()));
    (text((0, 30)), 0..3_600_u32, numbers, maps).prop_map(|(id, small, numbers, maps)| {
        let (from, to, departures, devices, online_before) = numbers;
        let (causes, gateways, platforms, clients) = maps;
        IncidentRecord {
            id: id.into_owned(),
            rule: small,
            window_s: small.into(),
            least: departures,
            share_percent: (small % 101).into(),
            from,
            to,
            departures,
            devices,
            online_before,
            causes,
            gateways,
            platforms,
            clients,
        }
    })
}

pub fn quarantined() -> impl Strategy<Value = Quarantined<'static>> {
    let bytes = || option::of(vec(any::<u8>(), 0..300).prop_map(Cow::Owned));
    (partition(), number(), number(), text((0, 130)), bytes(), bytes()).prop_map(
        |(partition, offset, ts, error, key, value)| Quarantined {
            partition,
            offset: Offset(offset),
            ts,
            error,
            key,
            value,
        },
    )
}
