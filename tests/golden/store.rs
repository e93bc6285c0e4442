//! Every kind of row that a store has (src/store/keys.rs): key and value.

use super::{bless, hex, unhex};
use rocksdb::{WriteBatch, WriteBatchIterator};
use rollcall::presence::event::Ending;
use rollcall::presence::policy::Policy;
use rollcall::presence::state::{
    BeatTimes, DeviceImage, EarlyEndImage, GatewayImage, KeptImage, PartitionImage, Phase, SessionImage, Slot,
    UserImage,
};
use rollcall::presence::{Conn, Epoch, KickedBy, LogTime, LostBy, Offset, Partition, Revision, Status};
use rollcall::store::{
    Applied, Disk, DiskError, DueKey, Error, IndexMark, Indexed, Order, SharedRows, SlotBeats, Store, UserLocation,
};
use rollcall::store::{Visitor, keys, read_away};
use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::path::Path;
use std::sync::{Arc, Mutex};

const GOLDEN: &str = include_str!("store.txt");
/// The first row of a store, as it was written in layout 2.
const LAYOUT_2: &str = "02d209032007070707070707070707070707070707070707070707070707070707070707070301020305d20981d095ffbc314db1ba97ffbc31117b226c6f67696e223a226d756c7469227d03020267310300b1ba97ffbc31b0ba97ffbc31026732ffffffffffffffff7f010080d095ffbc310102673103c1843d80d095ffbc31";

/// The rows of a store, in memory: what a test sees of it.
#[derive(Clone, Default)]
struct Rows(Arc<Mutex<BTreeMap<Vec<u8>, Vec<u8>>>>);

struct Applying<'r>(&'r Rows);

impl WriteBatchIterator for Applying<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.0.0.lock().unwrap().insert(key.to_vec(), value.to_vec());
    }

    fn delete(&mut self, key: &[u8]) {
        self.0.0.lock().unwrap().remove(key);
    }
}

impl Disk for Rows {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, DiskError> {
        Ok(self.0.lock().unwrap().get(key).cloned())
    }

    fn get_many(&self, keys: &mut dyn Iterator<Item = Vec<u8>>) -> Result<Vec<Option<Vec<u8>>>, DiskError> {
        let rows = self.0.lock().unwrap();
        Ok(keys.map(|key| rows.get(&key).cloned()).collect())
    }

    fn look(&self, from: &[u8], before: &[u8], _ahead: bool, look: Visitor<'_>) -> Result<(), DiskError> {
        let rows = self.0.lock().unwrap();
        let range = (Bound::Included(from), Bound::Excluded(before));
        for (key, value) in rows.range::<[u8], _>(range) {
            if look(key, value).is_break() {
                break;
            }
        }
        Ok(())
    }

    fn write(&self, batch: WriteBatch) -> Result<(), DiskError> {
        batch.iterate(&mut Applying(self));
        Ok(())
    }

    fn flush(&self) -> Result<(), DiskError> {
        Ok(())
    }

    fn shared(&self) -> Option<Arc<dyn SharedRows>> {
        Some(Arc::new(self.clone()))
    }
}

impl SharedRows for Rows {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, DiskError> {
        Disk::get(self, key)
    }

    fn look(&self, from: &[u8], before: &[u8], order: Order, look: Visitor<'_>) -> Result<(), DiskError> {
        let rows = self.0.lock().unwrap();
        let range = rows.range::<[u8], _>((Bound::Included(from), Bound::Excluded(before)));
        let rows: Vec<_> = match order {
            Order::Rising => range.collect(),
            Order::Falling => range.rev().collect(),
        };
        let mut rows = rows.into_iter();
        let _ = rows.try_for_each(|(key, value)| look(key, value));
        Ok(())
    }
}

impl Rows {
    fn store(&self) -> Store {
        Store::on(Box::new(self.clone()), Path::new("golden"))
    }
}

const NOW: LogTime = LogTime(1_700_000_000_000);

fn session(client: Option<&'static str>) -> SessionImage<'static> {
    SessionImage {
        login_at: LogTime(NOW.0 - 5_000),
        last_seen: NOW,
        evidence: Offset(1_200),
        client,
    }
}

fn device(platform: &'static str, phase: Phase<'static>) -> DeviceImage<'static> {
    let deadline = match phase {
        Phase::Online { heartbeat_by, .. } => heartbeat_by,
        Phase::Away { until, .. } | Phase::Kicked { until, .. } => until,
    };
    DeviceImage {
        platform,
        device: "d1",
        gateway: "g1",
        epoch: Epoch(3),
        conn: Conn(1_000_000),
        since: LogTime(NOW.0 - 4_000),
        phase,
        deadline,
    }
}

fn online(background_by: Option<LogTime>, linger: Option<(Ending, LogTime)>) -> Phase<'static> {
    Phase::Online {
        session: session(linger.is_none().then_some("10.0.0.1 app 1.2")),
        heartbeat_by: LogTime(NOW.0 + 400_000),
        background_by,
        linger,
    }
}

fn away(push: bool, lost_by: LostBy) -> Phase<'static> {
    Phase::Away {
        session: session(None),
        push,
        lost_by,
        until: LogTime(NOW.0 + 604_800_000),
    }
}

fn user(user: &'static str, status: Status, devices: Vec<DeviceImage<'static>>) -> UserImage<'static> {
    UserImage {
        user,
        version: 9,
        status,
        since: LogTime(NOW.0 - 4_000),
        last_seen: NOW,
        custom_status: None,
        kept: None,
        kicked_at: None,
        barred: false,
        devices,
    }
}

/// Every phase, every way of losing a link, every mark.
fn users() -> Vec<UserImage<'static>> {
    let soon = LogTime(NOW.0 + 5_000);
    let mut users = vec![
        user(
            "online",
            Status::Online,
            vec![
                device("android", online(None, None)),
                device("ios", online(Some(soon), None)),
                device("mini", online(None, Some((Ending::Closed, soon)))),
                device("web", online(Some(soon), Some((Ending::Exit, soon)))),
                device("windows", away(false, LostBy::Timeout)),
            ],
        ),
        user("à table", Status::Online, vec![device("web", online(None, None))]),
    ];
    users[1].custom_status = Some("à table");
    for lost_by in LostBy::ALL {
        let name = match lost_by {
            LostBy::Closed => "closed",
            LostBy::Exit => "exit",
            LostBy::Background => "background",
            LostBy::Timeout => "timeout",
            LostBy::GatewayLost => "gateway_lost",
        };
        users.push(user(
            name,
            Status::PushOnline,
            vec![device("android", away(true, lost_by))],
        ));
    }
    for (name, by) in [("displaced", KickedBy::Displaced), ("admin", KickedBy::Admin)] {
        let phase = Phase::Kicked {
            by,
            until: LogTime(NOW.0 + 60_000),
        };
        users.push(user(name, Status::Offline, vec![device("web", phase)]));
    }
    users.push(user("nothing", Status::Offline, vec![]));
    users.push(UserImage {
        kept: Some(KeptImage {
            text: "busy",
            until: soon,
        }),
        ..user("kept", Status::Offline, vec![])
    });
    users.push(UserImage {
        kicked_at: Some(NOW),
        ..user("kicked", Status::Offline, vec![])
    });
    users.push(UserImage {
        kept: Some(KeptImage {
            text: "busy",
            until: soon,
        }),
        kicked_at: Some(NOW),
        barred: true,
        ..user("barred", Status::Offline, vec![])
    });
    users
}

fn beats() -> Vec<SlotBeats> {
    let times = |ahead: u64, evidence: u64| BeatTimes {
        last_seen: LogTime(NOW.0 + ahead),
        evidence: Offset(evidence),
        heartbeat_by: LogTime(NOW.0 + ahead + 400_000),
    };
    vec![
        SlotBeats {
            place: 0,
            user_last_seen: NOW,
            devices: vec![times(0, 1_200), times(7, 1_100)],
        },
        SlotBeats {
            place: 255,
            user_last_seen: LogTime(NOW.0 - 1_000),
            devices: vec![times(0, u64::MAX)],
        },
    ]
}

fn partition(policy: &Policy) -> PartitionImage<'_> {
    PartitionImage {
        partition: Partition(5),
        offset: Some(Offset(1_233)),
        time: Some(NOW),
        seq: 77,
        revision: Revision::FIRST,
        rehearsed: 0,
        grace_until: Some(LogTime(NOW.0 + 30_000)),
        policy,
        policy_since: Some(Offset(2)),
        gateways: vec![
            GatewayImage {
                name: "g1",
                epoch: Epoch(3),
                ended: false,
                lease_until: Some(LogTime(NOW.0 + 30_000)),
                last_until: LogTime(NOW.0 + 30_000),
            },
            GatewayImage {
                name: "g2",
                epoch: Epoch(i64::MAX as u64),
                ended: true,
                lease_until: None,
                last_until: NOW,
            },
        ],
        early_ends: vec![EarlyEndImage {
            gateway: "g1",
            epoch: Epoch(3),
            conn: Conn(1_000_001),
            came: NOW,
        }],
    }
}

fn applied() -> Applied {
    Applied {
        next: Offset(1_234),
        outputs: 3,
        chain: [7; 32],
    }
}

const DOCUMENT: &str = r#"{"login":"multi"}"#;
const COUNTS: &[u8] = &[1, 2, 3];
const BLOCK: u32 = 258;

const INDEXED: Indexed = Indexed {
    from: 3,
    upto: 3 * keys::CHANGES_PER_SEGMENT,
};

/// Numbers of changes at the ends of segments, with what stands for their records.
fn changes() -> [(u64, &'static str, &'static [u8]); 4] {
    let second = keys::CHANGES_PER_SEGMENT;
    [
        (4, "alice", b"first"),
        (second - 1, "alice", b"last of a segment"),
        (second, "alice", b"first of a segment"),
        (second + 1, "al", b"another's"),
    ]
}

fn index_mark() -> IndexMark {
    IndexMark {
        at: LogTime(NOW.0 - 1),
        logged_at: NOW,
        counts: COUNTS.to_vec(),
    }
}

fn lines(title: &str, rows: &Rows) -> String {
    let rows = rows.0.lock().unwrap();
    let line = |(key, value): (&Vec<u8>, &Vec<u8>)| format!("{title}: {} = {}\n", hex(key), hex(value));
    rows.iter().map(line).collect()
}

/// The rows that the golden file has under a title.
fn golden_rows(title: &str) -> Rows {
    let rows = Rows::default();
    for line in GOLDEN.lines() {
        let Some((key, value)) = line
            .strip_prefix(title)
            .and_then(|row| row.strip_prefix(": ")?.split_once(" = "))
        else {
            continue;
        };
        rows.0.lock().unwrap().insert(unhex(key), unhex(value));
    }
    rows
}

#[test]
fn a_store_is_written_as_its_golden_file_has_it() {
    let policy = Policy::default();
    let empty = Rows::default();
    let nothing = PartitionImage {
        partition: Partition(0),
        offset: None,
        time: None,
        seq: 0,
        revision: Revision::FIRST,
        rehearsed: 0,
        grace_until: None,
        policy: &policy,
        policy_since: None,
        gateways: vec![],
        early_ends: vec![],
    };
    let store = empty.store();
    store
        .commit(store.begin(), &Applied::default(), &nothing, "{}", &[])
        .expect("written");

    let full = Rows::default();
    let store = full.store();
    let mut commit = store.begin();
    for (slot, user) in (0..).zip(&users()) {
        commit.put(Slot(slot), user, UserLocation::Nowhere);
    }
    commit.put_beats(BLOCK, &beats());
    for (number, user, record) in changes() {
        commit.put_change(number, user, record);
    }
    commit.put_mark(4_096, &index_mark());
    commit.put_indexed(INDEXED);
    store
        .commit(commit, &applied(), &partition(&policy), DOCUMENT, COUNTS)
        .expect("written");
    let text = lines("empty", &empty) + &lines("full", &full);
    bless::check([("tests/golden/store.txt", text.as_str())]);
}

#[test]
fn the_golden_rows_of_a_store_are_read_as_what_they_were() {
    let rows = golden_rows("full");
    let store = rows.store();

    let meta = store.meta().expect("read").expect("there is one");
    let stored = store.read_meta(&meta).expect("known");
    assert_eq!((stored.applied, stored.counts), (applied(), COUNTS));
    let policy = Policy::default();
    let was = partition(&policy);
    let is = stored.partition;
    assert_eq!(
        (is.partition, is.offset, is.time),
        (was.partition, was.offset, was.time)
    );
    assert_eq!(
        (is.seq, is.revision, is.grace_until),
        (was.seq, was.revision, was.grace_until)
    );
    assert_eq!((is.policy, is.policy_since), (DOCUMENT, was.policy_since));
    assert_eq!((is.gateways, is.early_ends), (was.gateways, was.early_ends));

    let mut online = 0;
    let users = users();
    let mut is_read = |slot: Slot, user: &UserImage<'_>| {
        assert_eq!(user, &users[slot.0 as usize]);
        online += 1;
    };
    store.for_each_online(&mut is_read).expect("read");
    assert_eq!(online, 2);

    let mut due = Vec::new();
    for user in &users[online..] {
        let value = store
            .get_away([user.user])
            .expect("read")
            .remove(0)
            .expect("it is there");
        let (is, location) = read_away(user.user, &value).expect("known");
        assert_eq!((&is, location), (user, UserLocation::Away(user.next_deadline())));
        due.extend(user.next_deadline().map(|time| DueKey {
            time,
            user: user.user.into(),
        }));
    }
    due.sort();
    let all = store.due(&DueKey::default(), LogTime(u64::MAX), usize::MAX);
    assert_eq!(all.expect("read"), (due, None));

    let mut blocks = Vec::new();
    store
        .for_each_beats(|slot, beats| blocks.push((slot, beats)))
        .expect("read");
    let expected = beats().into_iter().map(|beats| {
        let slot = Slot(BLOCK * keys::SLOTS_PER_BLOCK + beats.place);
        (slot, beats)
    });
    assert_eq!(blocks, expected.collect::<Vec<_>>());

    let reader = store.index_reader().expect("it can be shared");
    assert_eq!(store.indexed().expect("read"), Some(INDEXED));
    assert_eq!(reader.mark(4_096).expect("read"), Some(index_mark()));
    for user in ["alice", "al", "a"] {
        for order in [Order::Rising, Order::Falling] {
            let mut found = Vec::new();
            let each = |number, record: &[u8]| {
                found.push((number, record.to_vec()));
                ControlFlow::Continue(())
            };
            reader.changes_of(user, INDEXED, order, each).expect("read");
            let of_user = changes().into_iter().filter(|(_, of, _)| *of == user);
            let mut expected: Vec<_> = of_user.map(|(number, _, record)| (number, record.to_vec())).collect();
            if order == Order::Falling {
                expected.reverse();
            }
            assert_eq!(found, expected);
        }
    }

    let rows = golden_rows("empty");
    let store = rows.store();
    let meta = store.meta().expect("read").expect("there is one");
    let stored = store.read_meta(&meta).expect("known");
    assert_eq!((stored.applied, stored.counts), (Applied::default(), &[][..]));
    let is = stored.partition;
    assert_eq!((is.offset, is.time, is.policy_since), (None, None, None));
}

/// The earlier layout ended before the revision.
#[test]
fn the_golden_rows_of_the_earlier_layout_are_read_as_what_they_were_and_those_of_a_later_one_are_refused() {
    let rows = Rows::default();
    let meta = unhex(LAYOUT_2);
    rows.0.lock().unwrap().insert(keys::META.to_vec(), meta.clone());
    let store = rows.store();
    let stored = store.read_meta(&meta).expect("known");
    let policy = Policy::default();
    let was = partition(&policy);
    assert_eq!((stored.layout, stored.applied), (2, applied()));
    assert_eq!(stored.partition.early_ends, was.early_ends);
    assert_eq!(stored.partition.revision, Revision::FIRST);
    let current = store.meta().expect("read").expect("there is one");
    for (layout, is_later) in [(1, false), (9, true)] {
        let mut other = current.clone();
        other[0] = layout;
        let refused = store.read_meta(&other).map(|stored| stored.layout);
        let as_expected = match refused {
            Err(Error::Layout { found, .. }) => !is_later && found == u64::from(layout),
            Err(Error::LaterLayout { found, .. }) => is_later && found == u64::from(layout),
            _ => false,
        };
        assert!(as_expected, "{refused:?}");
    }
}

#[test]
fn what_is_removed_from_the_index_is_gone_also_within_a_segment() {
    let rows = Rows::default();
    let store = rows.store();
    let mut commit = store.begin();
    let numbers = [1, 2, 3, keys::CHANGES_PER_SEGMENT, keys::CHANGES_PER_SEGMENT + 1];
    for number in numbers {
        commit.put_change(number, "alice", b"a change");
    }
    let policy = Policy::default();
    let nothing = PartitionImage {
        seq: numbers[4],
        ..partition(&policy)
    };
    store
        .commit(commit, &applied(), &nothing, DOCUMENT, COUNTS)
        .expect("written");
    let left = || {
        let kept = rows.0.lock().unwrap();
        let numbers = kept.keys().filter(|key| key[0] == keys::CHANGES);
        let mut numbers: Vec<u64> = numbers.filter_map(|key| keys::read_change(key)).collect();
        numbers.sort_unstable();
        numbers
    };
    store.remove_indexed(2, false).expect("removed");
    assert_eq!(left(), numbers, "only whole segments");
    store.remove_indexed(2, true).expect("removed");
    assert_eq!(left(), numbers[2..]);
    store.remove_indexed(numbers[3], false).expect("removed");
    assert_eq!(left(), numbers[3..]);
    store.remove_indexed(numbers[3], true).expect("removed");
    assert_eq!(left(), numbers[4..]);
}

/// A kind of row that the golden file lacks would change unnoticed.
#[test]
fn the_golden_file_has_every_kind_of_row() {
    let rows = golden_rows("full");
    let rows = rows.0.lock().unwrap();
    let kinds: Vec<u8> = rows.keys().map(|key| key[0]).collect();
    let state = [keys::META[0], keys::ONLINE, keys::AWAY, keys::DUE, keys::BEATS];
    for kind in state.into_iter().chain([keys::INDEX[0], keys::CHANGES, keys::MARKS]) {
        assert!(kinds.contains(&kind), "no row begins with {kind}");
    }
}
