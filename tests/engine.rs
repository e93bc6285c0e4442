//! The partition processor on a log in memory: the outputs are the same for every division into batches, every failure and every
//! crash.

mod story;

use rollcall::clock::ManualClock;
use rollcall::engine::partition::PartitionProcessor;
use rollcall::engine::{Error, RevisionAt, Tuning};
use rollcall::log::memory::{CommitFault, MemoryLog};
use rollcall::log::{self, Commit, Limit, Log as _, PartitionHandle, Position, Record};
use rollcall::presence::change::Output;
use rollcall::presence::policy::Policy;
use rollcall::presence::{Offset, Partition, Revision};
use rollcall::random::Random;
use rollcall::schema::{avro, json};
use rollcall::sim::{history, oracle_input};
use rollcall::topics::Topic;
use std::path::Path;
use std::sync::Arc;
use story::scenarios;

struct World {
    log: Arc<MemoryLog>,
    clock: Arc<ManualClock>,
    partition: Partition,
    policy: Policy,
    tuning: Tuning,
}

impl World {
    /// A log with these records (JSON lines as `fold` reads them).
    fn new(lines: &str, partition: Partition, partitions: u32, policy: Policy, tuning: Tuning) -> World {
        let clock = Arc::new(ManualClock::new(0));
        let log = Arc::new(MemoryLog::new(partitions, clock.clone()));
        for line in lines.lines().filter(|line| !line.trim().is_empty()) {
            let line = json::read_line(line).expect("a record");
            let mut value = Vec::new();
            let mut key = None;
            match &line.event {
                Ok(event) => {
                    avro::encode_event(event, &mut value);
                    key = event.user().map(|user| user.as_bytes().to_vec());
                }
                Err(_) => value.extend_from_slice(b"this is no event"),
            }
            log.append_at(partition, line.offset, line.ts, key, value)
                .expect("appended");
        }
        World {
            log,
            clock,
            partition,
            policy,
            tuning,
        }
    }

    fn open(&self, store: Option<&Path>) -> Result<PartitionProcessor, Error> {
        self.open_with(self.log.take_up(self.partition)?, store)
    }

    fn stand_by(&self, store: Option<&Path>) -> Result<PartitionProcessor, Error> {
        self.open_with(self.log.stand_by(self.partition)?, store)
    }

    fn open_with(&self, log: impl Into<PartitionHandle>, store: Option<&Path>) -> Result<PartitionProcessor, Error> {
        PartitionProcessor::open(log, store, &self.policy, self.clock.clone(), self.tuning)
    }

    fn records(&self, topic: Topic) -> Vec<Record> {
        let mut records = Vec::new();
        loop {
            let from = Offset(records.len() as u64);
            let limit = Limit {
                records: 1_000,
                bytes: 1 << 20,
            };
            let before = records.len();
            self.log
                .read(topic, self.partition, from, limit, &mut records)
                .expect("readable");
            if records.len() == before {
                return records;
            }
        }
    }

    /// What is in the topics of outputs, as lines; changes first, then kicks.
    fn outputs(&self) -> Vec<String> {
        let line = |output: Output| {
            let mut line = Vec::new();
            json::output_line(&mut line, &output);
            String::from_utf8(line).expect("UTF-8")
        };
        let changes = self.records(Topic::Changes);
        let changes = changes.iter().map(|record| {
            let change = avro::decode_change(&record.value).expect("a change");
            assert_eq!(record.key.as_deref(), Some(change.user.as_bytes()));
            line(Output::Change(change))
        });
        let kicks = self.records(Topic::Kicks);
        let kicks = kicks.iter().map(|record| {
            let kick = avro::decode_kick(&record.value).expect("a kick");
            assert_eq!(record.key.as_deref(), Some(kick.gateway.as_bytes()));
            line(Output::Kick(kick))
        });
        changes.chain(kicks).collect()
    }
}

/// The same of what `fold` prints.
struct Expected {
    outputs: Vec<String>,
    state: String,
    malformed: usize,
}

impl Expected {
    fn new<'l>(lines: impl Iterator<Item = &'l str> + Clone) -> Expected {
        let of = |kind: &str| {
            let prefix = format!(r#"{{"type":"{kind}""#);
            lines.clone().filter(move |line| line.starts_with(&prefix))
        };
        Expected {
            outputs: of("change").chain(of("kick")).map(str::to_owned).collect(),
            state: of("user")
                .chain(of("partition"))
                .map(|line| format!("{line}\n"))
                .collect(),
            malformed: of("malformed").count(),
        }
    }

    fn check(&self, world: &World, walk: &PartitionProcessor, story: &str) {
        let outputs = world.outputs();
        for (number, (got, wanted)) in outputs.iter().zip(&self.outputs).enumerate() {
            assert_eq!(got, wanted, "{story}, output {number}");
        }
        assert_eq!(outputs.len(), self.outputs.len(), "{story}");
        let state = String::from_utf8(walk.state_lines().expect("readable")).expect("UTF-8");
        assert_eq!(state, self.state, "{story}");
        assert_eq!(world.records(Topic::Quarantine).len(), self.malformed, "{story}");
        let counted = walk.census();
        assert_eq!(
            counted.known(),
            self.state.matches(r#"{"type":"user""#).count() as u64,
            "{story}"
        );
        let users = |name: &str| {
            let lines = self.state.lines().filter(|line| line.starts_with(r#"{"type":"user""#));
            let mut lines = lines.filter_map(|line| line.split(r#","status":""#).nth(1));
            lines
                .by_ref()
                .filter(|rest| rest.starts_with(&format!("{name}\"")))
                .count() as u64
        };
        for status in rollcall::presence::Status::ALL {
            assert_eq!(
                counted.users(status),
                users(status.name()),
                "{story}: {}",
                status.name()
            );
        }
    }
}

fn one_record() -> Limit {
    Limit {
        records: 1,
        bytes: 1 << 20,
    }
}

#[test]
fn every_scenario_comes_out_of_the_engine_in_one_batch() {
    for scenario in scenarios() {
        let world = World::new(
            &scenario.log,
            scenario.partition,
            scenario.partitions.unwrap_or(1),
            scenario.policy,
            Tuning::default(),
        );
        let mut walk = world.open(None).expect("opened");
        let all = Limit {
            records: usize::MAX,
            bytes: usize::MAX,
        };
        while walk.step(all).expect("folded").records > 0 {}
        Expected::new(scenario.expected.lines()).check(&world, &walk, &scenario.name);
    }
}

/// What happens between two records.
#[derive(Clone, Copy)]
enum Between {
    /// The process stops normally and starts again.
    Restart,
    /// It dies, and what the store did not commit is lost.
    Death,
}

fn through_rocksdb_with(between: Between) {
    for scenario in scenarios() {
        let tuning = Tuning {
            cached_users: 0,
            fetch_users: 2,
            // Else a record without outputs would be folded again after each death, for ever.
            log_commit_ms: 0,
            store_commit_records: match between {
                Between::Restart => u64::MAX,
                Between::Death => 2,
            },
            ..Tuning::default()
        };
        let partitions = scenario.partitions.unwrap_or(1);
        let world = World::new(&scenario.log, scenario.partition, partitions, scenario.policy, tuning);
        let directory = tempfile::tempdir().expect("a directory");
        loop {
            let mut walk = world.open(Some(directory.path())).expect("opened");
            while !walk.is_caught_up() {
                walk.step(one_record()).expect("folded again");
            }
            let records = walk.step(one_record()).expect("folded").records;
            if records == 0 {
                Expected::new(scenario.expected.lines()).check(&world, &walk, &scenario.name);
                break;
            }
            match between {
                Between::Restart => walk.close().expect("closed"),
                Between::Death => drop(walk),
            }
        }
    }
}

#[test]
fn every_scenario_survives_a_restart_between_any_two_records() {
    through_rocksdb_with(Between::Restart);
}

#[test]
fn every_scenario_survives_a_death_between_any_two_records() {
    through_rocksdb_with(Between::Death);
}

fn seeds(default: u64) -> u64 {
    match std::env::var("ROLLCALL_TEST_SEEDS") {
        Ok(count) => count.parse().expect("ROLLCALL_TEST_SEEDS is a number"),
        Err(_) => default,
    }
}

/// A standby beside the owner, both dying, failing and changing places at any moment.
#[test]
fn a_standby_gives_nothing_shows_only_what_is_committed_and_has_the_owners_state() {
    let (mut compared, mut taken_over) = (0, 0);
    for seed in 0..seeds(40) {
        let mut random = Random(seed);
        let records = history::records(seed, 200);
        let lines: String = records
            .map(|(offset, ts, event)| history::record_json(offset, ts, event.as_ref()) + "\n")
            .collect();
        let policy = history::policy(seed);
        let expected = oracle_input::fold(lines.as_bytes(), policy.clone(), Partition(0), Some(1));
        let expected = Expected::new(expected.lines.iter().map(String::as_str));
        let tuning = Tuning {
            fetch_users: 1 + random.below(3) as usize,
            cached_users: random.below(4) as usize,
            store_commit_records: 1 + random.below(40),
            log_commit_ms: random.below(3),
            commit_bytes: 1 + random.below(2_000) as usize,
            ..Tuning::default()
        };
        let world = World::new(&lines, Partition(0), 1, policy, tuning);
        let directories = [(), ()].map(|()| tempfile::tempdir().expect("a directory"));
        let store = |node: usize| (seed % 4 != 3).then(|| directories[node].path());
        let story = format!("seed {seed}");
        let mut owning = 0;
        let mut owner = world.open(store(owning)).expect("opened");
        let mut standby = world.stand_by(store(1 - owning)).expect("opened");
        let mut rounds = 0;
        loop {
            rounds += 1;
            assert!(rounds < 20_000, "{story}: no end");
            world.clock.advance_ms(random.below(3));
            let limit = |random: &mut Random| Limit {
                records: 1 + random.below(20) as usize,
                bytes: 1 << 20,
            };
            if random.below(12) == 0 {
                let fault = match random.below(2) {
                    0 => CommitFault::Applied,
                    _ => CommitFault::NotApplied,
                };
                world.log.fail_commits(1, fault, log::Error::Write("for a test".into()));
            }
            let ended = match owner.step(limit(&mut random)) {
                Ok(step) => step.records == 0 && owner.is_caught_up(),
                Err(Error::Log(log::Error::Read(_) | log::Error::Write(_))) => false,
                Err(error) => panic!("{story}: {error}"),
            };
            if ended {
                world.log.heal();
                owner.commit_store().expect("nothing fails any more");
            }
            let given = world.outputs();
            while random.below(3) > 0 || ended {
                let stepped = standby
                    .step(limit(&mut random))
                    .unwrap_or_else(|error| panic!("{story}: {error}"));
                let committed = world.log.committed(Partition(0)).expect("a position");
                let shown = standby.state().offset().filter(|_| standby.is_settled());
                assert!(
                    shown.is_none_or(|offset| offset < committed.next),
                    "{story}: {shown:?} {committed:?}"
                );
                if stepped.records == 0 && ended {
                    break;
                }
            }
            if standby.is_settled() && owner.is_settled() && standby.applied() == owner.applied() {
                let state = |walk: &PartitionProcessor| String::from_utf8(walk.state_lines().expect("readable"));
                assert_eq!(state(&standby), state(&owner), "{story}");
                assert_eq!(standby.census(), owner.census(), "{story}");
                compared += 1;
            } else {
                assert!(!ended, "{story}: the standby has not followed to the end");
            }
            if random.below(25) == 0 {
                drop(standby);
                standby = world
                    .stand_by(store(1 - owning))
                    .unwrap_or_else(|error| panic!("{story}: {error}"));
            }
            assert_eq!(world.outputs(), given, "{story}: a standby gives no outputs");
            if ended {
                break;
            }
            if random.below(25) == 0 {
                // The owner dies, and with it what was not committed.
                drop(owner);
                world.log.heal();
                let log = world.log.take_up(Partition(0)).expect("taken up");
                owner = standby
                    .take_over(log)
                    .unwrap_or_else(|failed| panic!("{story}: {}", failed.error));
                owning = 1 - owning;
                standby = world
                    .stand_by(store(1 - owning))
                    .unwrap_or_else(|error| panic!("{story}: {error}"));
                taken_over += 1;
            }
        }
        expected.check(&world, &owner, &story);
        drop(owner);
        let log = world.log.take_up(Partition(0)).expect("taken up");
        let mut owner = standby
            .take_over(log)
            .unwrap_or_else(|failed| panic!("{story}: {}", failed.error));
        while owner.step(one_record()).expect("folded").records > 0 {}
        expected.check(&world, &owner, &format!("{story}, taken over at the end"));
    }
    assert!(compared > 100 && taken_over > 20, "{compared} {taken_over}");
}

/// The owner's handle is given up, and the standby has its own again and what it has folded.
#[test]
fn a_standby_that_cannot_take_over_is_a_standby_still_and_can_later() {
    let line = r#"{"offset":0,"ts":1000,"type":"connect","user":"alice","platform":"android","device":"a","gateway":"g","epoch":1,"conn":1,"intent":"login"}"#;
    let world = World::new(line, Partition(0), 1, Policy::default(), Tuning::default());
    let mut owner = world.open(None).expect("opened");
    while owner.step(one_record()).expect("folded").records > 0 {}
    owner.commit_store().expect("committed");
    let (position, state) = (owner.committed(), owner.state_lines().expect("readable"));
    drop(owner);
    let mut standby = world.stand_by(None).expect("opened");
    while standby.step(one_record()).expect("folded").records > 0 {}
    let commit_at = |position| {
        let commit = Commit {
            position,
            ..Commit::default()
        };
        let mut owned = world.log.take_up(Partition(0)).expect("taken up");
        owned.commit(&commit).expect("committed");
    };

    // A later version has the partition.
    commit_at(Position {
        revision: Revision(7),
        ..position
    });
    let log = world.log.take_up(Partition(0)).expect("taken up");
    let failed = standby.take_over(log).err().expect("refused");
    assert!(
        matches!(failed.error, Error::UnknownRevision { .. }),
        "{}",
        failed.error
    );
    let standby = failed.standby;
    assert!(matches!(standby.log(), PartitionHandle::Standby(_)));
    assert_eq!(standby.commit_due_ms(), None);
    assert_eq!(standby.state_lines().expect("readable"), state);

    commit_at(position);
    let log = world.log.take_up(Partition(0)).expect("taken up");
    let taken_over = standby.take_over(log).map_err(|failed| failed.error);
    let owner = taken_over.unwrap_or_else(|error| panic!("{error}"));
    assert!(matches!(owner.log(), PartitionHandle::Owned(_)));
    assert_eq!(owner.state_lines().expect("readable"), state);
    owner.close().expect("it may commit");
}

/// Any cut into batches, any moment of death, any failing call, whether or not it had got through.
#[test]
fn whatever_happens_the_outputs_are_the_same_each_once_and_in_order() {
    for seed in 0..seeds(60) {
        let mut random = Random(seed);
        let records = history::records(seed, 300);
        let lines: String = records
            .map(|(offset, ts, event)| history::record_json(offset, ts, event.as_ref()) + "\n")
            .collect();
        let policy = history::policy(seed);
        let partitions = 1 + (seed % 2) as u32;
        let expected = oracle_input::fold(lines.as_bytes(), policy.clone(), Partition(0), Some(partitions));
        let expected = Expected::new(expected.lines.iter().map(String::as_str));
        let tuning = Tuning {
            fetch_users: 1 + random.below(3) as usize,
            cached_users: random.below(4) as usize,
            store_commit_records: 1 + random.below(40),
            log_commit_ms: random.below(3),
            ..Tuning::default()
        };
        let world = World::new(&lines, Partition(0), partitions, policy, tuning);
        let directory = tempfile::tempdir().expect("a directory");
        let store = (seed % 4 != 3).then(|| directory.path());
        let story = format!("seed {seed}");
        let mut walk = world.open(store).expect("opened");
        let mut rounds = 0;
        loop {
            rounds += 1;
            assert!(rounds < 20_000, "{story}: no end");
            world.clock.advance_ms(random.below(3));
            if random.below(12) == 0 {
                let fault = match random.below(2) {
                    0 => CommitFault::Applied,
                    _ => CommitFault::NotApplied,
                };
                world.log.fail_commits(1, fault, log::Error::Write("for a test".into()));
            }
            if random.below(15) == 0 {
                world.log.fail_reads(1, log::Error::Read("for a test".into()));
            }
            let limit = Limit {
                records: 1 + random.below(20) as usize,
                bytes: 1 << 20,
            };
            match walk.step(limit) {
                Ok(step) if step.records == 0 && walk.is_caught_up() => {
                    world.log.heal();
                    walk.commit_store().expect("nothing fails any more");
                    break;
                }
                Ok(_) | Err(Error::Log(log::Error::Read(_) | log::Error::Write(_))) => {}
                Err(error) => panic!("{story}: {error}"),
            }
            if random.below(25) == 0 {
                drop(walk);
                world.log.heal();
                walk = world.open(store).unwrap_or_else(|error| panic!("{story}: {error}"));
            }
        }
        expected.check(&world, &walk, &story);
        drop(walk);
        let mut walk = world.open(store).expect("opened once more");
        while walk.step(one_record()).expect("folded again").records > 0 {}
        expected.check(&world, &walk, &format!("{story}, opened once more"));
    }
}

#[test]
fn a_revision_that_is_not_known_halts_the_partition_before_its_record_and_a_restart_does_not_pass_it() {
    let connect = |offset: u64, user: &str| {
        format!(
            r#"{{"offset":{offset},"ts":{},"type":"connect","user":"{user}","platform":"android","device":"a","gateway":"g","epoch":1,"conn":{offset},"intent":"login"}}"#,
            1_000 + offset
        )
    };
    let lines = [
        connect(0, "alice"),
        r#"{"offset":1,"ts":1001,"type":"revision","revision":1}"#.to_owned(),
        connect(2, "bob"),
        r#"{"offset":3,"ts":9000000,"type":"revision","revision":2}"#.to_owned(),
        connect(4, "carol"),
    ];
    let world = World::new(&lines.join("\n"), Partition(0), 1, Policy::default(), Tuning::default());
    let directory = tempfile::tempdir().expect("a directory");
    for _ in 0..3 {
        let mut walk = world.open(Some(directory.path())).expect("opened");
        let mut halted = 0;
        while halted < 2 {
            match walk.step(Limit {
                records: 10,
                bytes: 1 << 20,
            }) {
                Ok(_) => {}
                Err(Error::UnknownRevision {
                    at: RevisionAt::Record(Offset(3)),
                    revision: Revision(2),
                    ..
                }) => halted += 1,
                Err(error) => panic!("{error}"),
            }
        }
        assert_eq!(walk.applied(), Offset(3));
        // The record has not moved time either: alice would be lost by then.
        assert_eq!(walk.state().time().map(|time| time.0), Some(1_002));
        walk.commit_store().expect("committed");
    }
    assert_eq!(world.outputs().len(), 2);
}

/// What is in a directory, without the files that RocksDB makes for who has it open.
fn files(directory: &Path) -> Vec<(std::ffi::OsString, Vec<u8>)> {
    let entries = std::fs::read_dir(directory).expect("a directory");
    let entries = entries.map(|entry| entry.expect("an entry"));
    let mut files: Vec<_> = entries
        .filter(|entry| entry.path().extension().is_some_and(|kind| kind == "sst"))
        .map(|entry| (entry.file_name(), std::fs::read(entry.path()).expect("a file")))
        .collect();
    files.sort();
    files
}

#[test]
fn what_a_later_version_wrote_halts_the_partition_and_is_left_as_it_is() {
    let lines = [
        r#"{"offset":0,"ts":1000,"type":"revision","revision":7}"#,
        r#"{"offset":1,"ts":1001,"type":"connect","user":"u","platform":"android","device":"a","gateway":"g","epoch":1,"conn":1,"intent":"login"}"#,
    ];
    let later = Tuning {
        revision: Revision(7),
        ..Tuning::default()
    };
    let mut world = World::new(&lines.join("\n"), Partition(0), 1, Policy::default(), later);
    let directory = tempfile::tempdir().expect("a directory");
    let store = directory.path().join("0");
    let mut walk = world.open(Some(&store)).expect("opened");
    while walk.step(one_record()).expect("folded").records > 0 {}
    walk.close().expect("closed");
    let position = world.log.committed(Partition(0)).expect("readable");
    assert_eq!(position.revision, Revision(7));
    let written = files(&store);

    // Not even without a store, from which nothing could be read that is not known.
    world.tuning = Tuning::default();
    for store in [Some(store.as_path()), None] {
        let error = world.open(store).err().expect("halted");
        assert!(
            matches!(
                error,
                Error::UnknownRevision {
                    at: RevisionAt::Position(Offset(2)),
                    ..
                }
            ),
            "{error}"
        );
        let text = error.to_string();
        assert!(
            text.contains("revision 7") && text.contains("revisions up to 1"),
            "{text}"
        );
    }

    let set_layout = |layout: u8| {
        let db = rocksdb::DB::open_default(&store).expect("opened");
        let mut meta = db.get([1]).expect("read").expect("it is there");
        meta[0] = layout;
        db.put([1], meta).expect("written");
        db.flush().expect("flushed");
    };
    world.tuning = later;
    set_layout(9);
    let before = files(&store);
    assert_ne!(before, written);
    for _ in 0..2 {
        let error = world.open(Some(&store)).err().expect("halted");
        assert!(
            matches!(
                error,
                Error::Store(rollcall::store::Error::LaterLayout { found: 9, .. })
            ),
            "{error}"
        );
        let text = error.to_string();
        assert!(
            text.contains("a later version wrote it") && text.contains("left as it is"),
            "{text}"
        );
        assert_eq!(files(&store), before);
        assert!(!directory.path().join("0.old").exists());
    }
    // One that was never released is made again, as long as the log reaches back.
    set_layout(1);
    let walk = world.open(Some(&store)).expect("made again");
    assert!(directory.path().join("0.old").exists());
    assert_eq!(walk.applied(), Offset(0));
}

#[test]
fn who_reads_other_events_than_before_says_so_also_where_no_output_differs() {
    let world = |conn: u64, position: Option<Position>| {
        let event = |offset: u64, rest: &str| {
            format!(
                r#"{{"offset":{offset},"ts":{},"user":"alice","platform":"android","device":"a","gateway":"g","epoch":1,{rest}}}"#,
                1_000 + offset
            )
        };
        // The second is before its connect, so it is remembered and gives no output.
        let lines = [
            event(0, r#""type":"connect","conn":1,"intent":"login""#),
            event(1, &format!(r#""type":"disconnect","conn":{conn},"reason":"closed""#)),
        ];
        let world = World::new(&lines.join("\n"), Partition(0), 1, Policy::default(), Tuning::default());
        if let Some(position) = position {
            let mut owned = world.log.take_up(Partition(0)).expect("taken up");
            owned.commit(&Commit::at(position)).expect("committed");
        }
        world
    };
    let fold = |world: &World| {
        let mut walk = world.open(None)?;
        while walk.step(one_record())?.records > 0 {}
        walk.commit_store()?;
        Ok::<Position, Error>(walk.committed())
    };
    let position = fold(&world(7, None)).expect("folded");
    let last = position.input.expect("kept").last.expect("there was one");
    assert_eq!((last.offset, last.ts), (Offset(1), 1_001));
    assert_eq!(fold(&world(7, Some(position))).expect("the same"), position);
    let error = fold(&world(8, Some(position)))
        .expect_err("it is another event")
        .to_string();
    assert!(
        error.contains("reading the log again up to offset 2 gives other events than were read"),
        "{error}"
    );
    let folded_otherwise = Position {
        chain: [1; 32],
        ..position
    };
    let error = fold(&world(7, Some(folded_otherwise)))
        .expect_err("another chain")
        .to_string();
    assert!(
        error.contains("gives other outputs than were committed, from the same events"),
        "{error}"
    );
    // A version that did not keep what was read leaves nothing to compare with.
    let unknown = Position {
        input: None,
        ..position
    };
    fold(&world(8, Some(unknown))).expect("nothing is known of what was read");
}

/// A hostile history that is raised in its middle, as lines.
fn raised_history(seed: u64, count: usize) -> (Vec<String>, Offset) {
    let records: Vec<_> = history::records(seed, count).collect();
    let middle = records.len() / 2;
    let mut lines = Vec::new();
    let mut raised = Offset(0);
    for (number, (offset, ts, event)) in records.iter().enumerate() {
        if number == middle {
            raised = *offset;
            lines.push(format!(
                r#"{{"offset":{offset},"ts":{ts},"type":"revision","revision":2}}"#
            ));
        }
        let shift = u64::from(number >= middle);
        lines.push(history::record_json(Offset(offset.0 + shift), *ts, event.as_ref()));
    }
    (lines, raised)
}

/// A user who is away: a custom status is taken only as of the rehearsal.
fn raised_story() -> (Vec<String>, Offset) {
    let who = r#""user":"u","platform":"android","device":"a","gateway":"g","epoch":1,"conn":1"#;
    let lines = [
        format!(r#"{{"offset":0,"ts":1000,"type":"connect",{who},"intent":"login"}}"#),
        format!(r#"{{"offset":1,"ts":1001,"type":"disconnect",{who},"reason":"closed"}}"#),
        r#"{"offset":2,"ts":1002,"type":"custom_status","user":"u","text":"too early"}"#.to_owned(),
        r#"{"offset":3,"ts":1003,"type":"revision","revision":2}"#.to_owned(),
        r#"{"offset":4,"ts":1004,"type":"custom_status","user":"u","text":"after"}"#.to_owned(),
        r#"{"offset":5,"ts":999999999,"type":"tick"}"#.to_owned(),
    ];
    (lines.into(), Offset(3))
}

fn fold_to_the_end(walk: &mut PartitionProcessor) -> Result<(), Error> {
    while walk.step(one_record())?.records > 0 {}
    Ok(())
}

#[test]
fn a_partition_is_raised_once_and_what_is_before_the_record_stays_as_it_was_whatever_dies() {
    let knows = |revision| Tuning {
        revision,
        cached_users: 2,
        ..Tuning::default()
    };
    let mut stories = vec![raised_story()];
    stories.extend((0..2).map(|seed| raised_history(seed, 16)));
    for (number, (lines, raised)) in stories.iter().enumerate() {
        let log = lines.join("\n");
        let world = |tuning| World::new(&log, Partition(0), 1, Policy::default(), tuning);
        let whole = world(knows(Revision::REHEARSAL));
        let mut walk = whole.open(None).expect("opened");
        fold_to_the_end(&mut walk).expect("folded");
        walk.commit_store().expect("committed");
        let (outputs, state) = (whole.outputs(), walk.state_lines().expect("readable"));
        let position = whole.log.committed(Partition(0)).expect("readable");
        assert_eq!(position.revision, Revision::REHEARSAL);
        for line in outputs.iter().filter(|line| line.contains(r#""type":"change""#)) {
            let offset = line
                .split(r#""offset":"#)
                .nth(1)
                .and_then(|rest| rest.split(',').next());
            let offset: u64 = offset.expect("an offset").parse().expect("a number");
            assert_eq!(line.contains("rehearsal"), offset > raised.0, "{line}");
        }
        if number == 0 {
            assert!(
                outputs
                    .iter()
                    .any(|line| line.contains("after") && line.contains(r#""rehearsal":1"#))
            );
            assert!(!outputs.iter().any(|line| line.contains("too early")));
            assert!(
                outputs
                    .last()
                    .is_some_and(|line| line.ends_with(r#""rehearsal":null}"#))
            );
        }
        // An older node has the partition for a while; then one dies, or its commit fails, at each record.
        for cut in 0..lines.len() {
            let faults = [None, Some(CommitFault::NotApplied), Some(CommitFault::Applied)];
            // In the histories one in turn: each run opens some stores, which takes its time.
            for fault in faults
                .into_iter()
                .cycle()
                .skip(cut % 3)
                .take(if number == 0 { 3 } else { 1 })
            {
                let directory = tempfile::tempdir().expect("a directory");
                let mut world = world(knows(Revision::FIRST));
                let mut old = world.open(Some(directory.path())).expect("opened");
                let mut folded = 0;
                let halted = loop {
                    if folded == cut {
                        break false;
                    }
                    match old.step(one_record()) {
                        Ok(step) => folded += step.records,
                        Err(Error::UnknownRevision { .. }) => break true,
                        Err(error) => panic!("{error}"),
                    }
                };
                assert_eq!(halted, cut > lines.len() / 2, "story {number}, cut {cut}");
                if cut % 2 == 0 {
                    old.commit_store().expect("committed");
                }
                drop(old);
                world.tuning = knows(Revision::REHEARSAL);
                if let Some(fault) = fault {
                    world.log.fail_commits(1, fault, log::Error::Busy);
                }
                let story = format!("story {number}, cut {cut}, {fault:?}");
                let mut walk = world.open(Some(directory.path())).expect("opened");
                while folded < cut + 2 {
                    match walk.step(one_record()) {
                        Ok(step) if step.records == 0 => break,
                        Ok(step) => folded += step.records,
                        Err(Error::Log(log::Error::Busy)) => {}
                        Err(error) => panic!("{story}: {error}"),
                    }
                }
                // It dies, with or without what it has folded in its store.
                if cut % 3 == 0 {
                    let _ = walk.commit_store();
                }
                drop(walk);
                world.log.heal();
                let mut walk = world.open(Some(directory.path())).expect("opened");
                fold_to_the_end(&mut walk).expect("folded");
                walk.commit_store().expect("committed");
                assert_eq!(world.outputs(), outputs, "{story}");
                assert_eq!(walk.state_lines().expect("readable"), state, "{story}");
                assert_eq!(
                    world.log.committed(Partition(0)).expect("readable"),
                    position,
                    "{story}"
                );
                // The older one cannot take it back, and takes nothing from it.
                drop(walk);
                world.tuning = knows(Revision::FIRST);
                let back = world.open(Some(directory.path())).err().expect("halted");
                assert!(matches!(back, Error::UnknownRevision { .. }), "{story}: {back}");
                assert_eq!(world.outputs(), outputs, "{story}");
            }
        }
    }
}

/// The deadlines of three devices pass with the very record that raises the partition.
fn raised_at_a_deadline() -> (Vec<String>, Offset) {
    let mut lines: Vec<_> = (0..3)
        .map(|n| {
            let who = format!(r#""user":"u{n}","platform":"android","device":"a","gateway":"g","epoch":1,"conn":{n}"#);
            format!(r#"{{"offset":{n},"ts":1000,"type":"connect",{who},"intent":"login"}}"#)
        })
        .collect();
    lines.push(r#"{"offset":3,"ts":99999999,"type":"revision","revision":2}"#.to_owned());
    lines.push(r#"{"offset":4,"ts":999999999,"type":"tick"}"#.to_owned());
    (lines, Offset(3))
}

#[test]
fn a_fold_from_the_beginning_agrees_with_every_position_before_inside_and_after_the_record_that_raises() {
    let tuning = || Tuning {
        revision: Revision::REHEARSAL,
        commit_bytes: 1,
        ..Tuning::default()
    };
    let mut stories = vec![raised_at_a_deadline(), raised_story()];
    stories.extend((0..4).map(|seed| raised_history(seed, 40)));
    for (number, (lines, raised)) in stories.iter().enumerate() {
        let log = lines.join("\n");
        let world = || World::new(&log, Partition(0), 1, Policy::default(), tuning());
        let whole = world();
        let mut walk = whole.open(None).expect("opened");
        fold_to_the_end(&mut walk).expect("folded");
        walk.commit_store().expect("committed");
        let outputs = whole.outputs();
        // Each commit is applied, its answer is lost, and the state with it.
        let torn = world();
        let mut inside = Vec::new();
        loop {
            torn.log.heal();
            torn.log.fail_commits(1, CommitFault::Applied, log::Error::Busy);
            torn.log.fail_commits(100, CommitFault::NotApplied, log::Error::Busy);
            let mut walk = torn.open(None).expect("opened");
            let before = torn.log.committed(Partition(0)).expect("readable");
            match fold_to_the_end(&mut walk) {
                Ok(()) => break,
                Err(Error::Log(log::Error::Busy)) => {}
                Err(error) => panic!("story {number}: {error}"),
            }
            let position = torn.log.committed(Partition(0)).expect("readable");
            assert!(
                (position.next, position.outputs) > (before.next, before.outputs),
                "story {number}: it goes on from {before:?}"
            );
            if position.next == *raised && position.outputs > 0 {
                inside.push(position.revision);
            }
        }
        assert_eq!(torn.outputs(), outputs, "story {number}");
        if number == 0 {
            assert_eq!(
                inside,
                [Revision::FIRST; 3],
                "a position after each of its outputs but the last"
            );
        }
    }
}
