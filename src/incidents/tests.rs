//! Incidents of small logs in memory, with the finder ended anywhere.

use super::*;
use crate::clock::ManualClock;
use crate::log::memory::MemoryLog;
use crate::log::{Commit, Position};
use crate::presence::change::{Cause, DeviceChange, OutputId};
use crate::presence::event::{ConnRef, DeviceRef, Intent};
use crate::presence::{Conn, Epoch, Status};
use crate::schema::partitioner::partition_of;
use crate::topics::OutputTopic;

const PARTITIONS: u32 = 3;
/// The second with which every story begins.
const BEGIN: u64 = 1_800_000_000;

/// A log with changes, and what a finder finds in it.
struct Story {
    log: Arc<MemoryLog>,
    clock: Arc<ManualClock>,
    counts: Vec<u64>,
    changes: Vec<Change>,
}

/// A device goes from one status to the other.
#[derive(Clone, Copy)]
struct Step<'a> {
    second: u64,
    user: &'a str,
    gateway: &'a str,
    cause: Cause,
}

impl Story {
    fn new() -> Story {
        let clock = Arc::new(ManualClock::new(BEGIN * 1_000));
        Story {
            log: Arc::new(MemoryLog::new(PARTITIONS, clock.clone())),
            clock,
            counts: vec![0; PARTITIONS as usize],
            changes: Vec::new(),
        }
    }

    /// Writes the change that follows from the next event of the user's partition.
    fn add(&mut self, step: Step<'_>) {
        let Step {
            second,
            user,
            gateway,
            cause,
        } = step;
        let partition = partition_of(user, PARTITIONS);
        let (before, after) = match cause {
            Cause::Login => (Status::Offline, Status::Online),
            _ => (Status::Online, Status::Offline),
        };
        let seq = &mut self.counts[partition.0 as usize];
        *seq += 1;
        let at = LogTime((BEGIN + second) * 1_000 + *seq % 1_000);
        let offset = self.log.range(Topic::Events, partition).unwrap().end;
        let change = Change {
            id: OutputId {
                partition,
                offset,
                index: 0,
            },
            seq: *seq,
            user: user.into(),
            version: 1,
            at,
            logged_at: at,
            cause,
            before,
            after,
            devices: vec![DeviceChange {
                platform: "web".into(),
                device: "d".into(),
                gateway: gateway.into(),
                before,
                after,
            }],
            custom_status: None,
            evidence: offset,
            rehearsal: None,
        };
        let who = DeviceRef {
            user: user.into(),
            platform: "web".into(),
            device: "d".into(),
        };
        let via = ConnRef {
            gateway: gateway.into(),
            epoch: Epoch(1),
            conn: Conn(1),
        };
        let client = if user.len() > 2 { "app/2" } else { "app/1" };
        let event = match cause {
            Cause::Login => Event::Connect {
                who,
                via,
                intent: Intent::Login,
                client: Some(client.into()),
                auth_at: None,
            },
            _ => Event::Tick,
        };
        let mut value = Vec::new();
        avro::encode_event(&event, &mut value);
        let key = matches!(cause, Cause::Login).then(|| user.as_bytes().to_vec());
        self.log.append_at(partition, offset, at.0, key, value).unwrap();
        let mut value = Vec::new();
        avro::encode_change(&change, &mut value);
        let record = NewRecord {
            key: Some(user.as_bytes().to_vec()),
            value,
            headers: Vec::new(),
        };
        let position = Position {
            next: Offset(offset.0 + 1),
            seq: *seq,
            ..Position::default()
        };
        let commit = Commit::at(position).with(OutputTopic::Changes, [record]);
        self.log.take_up(partition).unwrap().commit(&commit).unwrap();
        self.changes.push(change);
    }

    fn finder(&self) -> Finder {
        Finder::open(self.log.clone(), Schemas::default(), self.clock.clone()).unwrap()
    }

    /// All partitions are at this second.
    fn at(&self, second: u64) -> Vec<Option<PartitionProgress>> {
        let at = |changes: &u64| {
            Some(PartitionProgress {
                changes: *changes,
                complete_to: LogTime((BEGIN + second) * 1_000),
            })
        };
        self.counts.iter().map(at).collect()
    }

    /// Everything in the topic.
    fn written(&self) -> Vec<Record> {
        let mut records = Vec::new();
        let all = Limit {
            records: 1_000,
            bytes: 1 << 20,
        };
        self.log.read_incidents(Offset(0), all, &mut records).unwrap();
        records
    }

    fn incidents(&self) -> Vec<IncidentRecord> {
        let records = self.written();
        records
            .iter()
            .map(|record| avro::decode_incident(&record.value).unwrap())
            .collect()
    }

    /// What `rollcall audit incidents` finds.
    fn audited(&self) -> Vec<IncidentSpan> {
        let mut seconds = Seconds::default();
        self.changes.iter().for_each(|change| seconds.apply(change));
        seconds.spans(&IncidentRule::default())
    }
}

/// 600 users log in on three gateways, one of which dies 100 s later; after ten minutes it does again.
fn two_deaths(mut each_second: impl FnMut(&mut Story, u64)) -> Story {
    let mut story = Story::new();
    let users: Vec<String> = (0..600).map(|user| format!("u{user}")).collect();
    for second in 0..900 {
        for (number, user) in users.iter().enumerate() {
            let gateway = ["g0", "g1", "g2"][number % 3];
            let step = |cause| Step {
                second,
                user,
                gateway,
                cause,
            };
            let number = number as u64;
            match second {
                0..60 if number / 10 == second => story.add(step(Cause::Login)),
                160 if number % 3 == 1 => story.add(step(Cause::GatewayLost)),
                // They come back.
                200 if number % 3 == 1 => story.add(step(Cause::Login)),
                760..764 if number % 3 == 1 && number % 4 == second - 760 => story.add(step(Cause::GatewayLost)),
                // Somebody always leaves.
                300..400 if number.is_multiple_of(3) && number / 3 == second - 300 => story.add(step(Cause::Closed)),
                _ => {}
            }
        }
        story.clock.advance_ms(1_000);
        each_second(&mut story, second);
    }
    story
}

#[test]
fn a_gateway_that_dies_is_one_incident_with_exact_counts() {
    let mut finder = None;
    let story = two_deaths(|story, second| {
        let finder = finder.get_or_insert_with(|| story.finder());
        finder.step(&story.at(second)).unwrap();
        let open = (160..=170).contains(&second) || (760..=773).contains(&second);
        // The last second is not judged before it is complete.
        assert!(open || !finder.is_incident_open(), "{second}");
    });
    let incidents = story.incidents();
    let ids: Vec<&str> = incidents.iter().map(|incident| &*incident.id).collect();
    assert_eq!(ids, ["1-1800000160", "1-1800000760"]);
    let counts = |names: &[(&str, u64)]| -> BTreeMap<String, u64> {
        names.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    };
    for (incident, online) in incidents.iter().zip([600, 500]) {
        assert_eq!((incident.departures, incident.devices), (200, 200));
        assert_eq!(incident.online_before, online);
        assert_eq!(incident.causes, counts(&[("gateway_lost", 200)]));
        assert_eq!(incident.gateways, counts(&[("g1", 200)]));
        assert_eq!(incident.platforms, counts(&[("web", 200)]));
        // Of the users with one digit three are on that gateway.
        assert_eq!(incident.clients, Some(counts(&[("app/1", 3), ("app/2", 197)])));
    }
    assert_eq!(incidents[1].to / 1_000, BEGIN + 763);
    let spans = story.audited();
    assert_eq!(spans.len(), 2);
    assert_eq!(spans[1].last_second, BEGIN + 763);
}

#[test]
fn a_finder_that_ends_anywhere_leaves_each_incident_once_with_the_same_bytes() {
    let undisturbed = two_deaths(|_, _| {});
    let mut finder = undisturbed.finder();
    finder.step(&undisturbed.at(1_000)).unwrap();
    finder.step(&undisturbed.at(1_000)).unwrap();
    let expected: Vec<Vec<u8>> = undisturbed.written().into_iter().map(|record| record.value).collect();
    assert_eq!(expected.len(), 2);
    for every in [1, 3, 7, 60] {
        let mut finder = None;
        let story = two_deaths(|story, second| {
            if second % every == 0 {
                finder = None;
            }
            let finder = finder.get_or_insert_with(|| story.finder());
            finder.step(&story.at(second)).unwrap();
        });
        let written: Vec<Vec<u8>> = story.written().into_iter().map(|record| record.value).collect();
        assert_eq!(written, expected, "ended every {every} s");
    }
}

#[test]
fn nothing_is_judged_while_a_partition_is_unknown_or_late() {
    let mut finder = None;
    let mut story = two_deaths(|story, second| {
        let finder = finder.get_or_insert_with(|| story.finder());
        let mut progress = story.at(second);
        progress[2] = None;
        finder.step(&progress).unwrap();
    });
    let mut finder = finder.unwrap();
    // The partition is read up to its last change, and no further.
    assert_eq!(story.incidents().len(), 1);
    let mut progress = story.at(1_000);
    let changes = story.counts[2];
    progress[2] = Some(PartitionProgress {
        changes: changes + 1,
        complete_to: LogTime((BEGIN + 1_000) * 1_000),
    });
    finder.step(&progress).unwrap();
    assert_eq!(story.incidents().len(), 1);
    let user = (0..).map(|user| format!("late{user}"));
    let user = user
        .into_iter()
        .find(|user| partition_of(user, PARTITIONS).0 == 2)
        .unwrap();
    story.add(Step {
        second: 765,
        user: &user,
        gateway: "g9",
        cause: Cause::Closed,
    });
    story.clock.advance_ms(20_000);
    finder.step(&progress).unwrap();
    assert_eq!(story.incidents().len(), 2);
    // Two seconds after the others it is no part of it.
    assert_eq!(story.incidents()[1].departures, 200);
}

#[test]
fn of_two_finders_the_one_that_began_last_writes() {
    let story = two_deaths(|_, _| {});
    let (mut first, mut second) = (story.finder(), story.finder());
    assert!(first.step(&story.at(1_000)).is_err());
    second.step(&story.at(1_000)).unwrap();
    assert_eq!(story.incidents().len(), 2);
}

#[test]
fn the_names_with_most_departures_are_kept_and_the_others_added_up() {
    let counts = (0..150)
        .map(|number| (format!("g{number:03}"), number / 2 + 1))
        .collect();
    let largest = largest(counts);
    assert_eq!(largest.len(), NAMES_MAX + 1);
    assert_eq!(largest["g149"], 75);
    assert!(!largest.contains_key("g049"));
    let all: u64 = (0..150).map(|number| number / 2 + 1).sum();
    assert_eq!(largest.values().sum::<u64>(), all);
}
