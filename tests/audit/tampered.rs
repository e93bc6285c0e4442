//! Data directories that somebody has altered, checkpoints among them: `audit verify` finds each.

use super::server::wait_until;
use super::watched::Watch;
use super::{audit, event, link};
use rollcall::checkpoint::{Checkpoints, Origin};
use rollcall::clock::ManualClock;
use rollcall::engine::Tuning;
use rollcall::engine::partition::PartitionProcessor;
use rollcall::log::local::{LocalLog, Settings};
use rollcall::log::{Commit, Limit, Log, NewRecord, Position, Record};
use rollcall::presence::policy::Policy;
use rollcall::presence::{Offset, Partition};
use rollcall::schema::partitioner::partition_of;
use rollcall::schema::{avro, json as schema_json};
use rollcall::store::{Store, directory_of};
use rollcall::topics::{OutputTopic, Topic};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

const PARTITIONS: u32 = 2;
const ALL: Limit = Limit {
    records: usize::MAX,
    bytes: usize::MAX,
};

fn users(partition: Partition, count: usize) -> Vec<String> {
    let names = (0..).map(|number| format!("user{number}"));
    names
        .filter(|name| partition_of(name, PARTITIONS) == partition)
        .take(count)
        .collect()
}

/// What happens in a partition: logins, a second device, which displaces the first, a policy and what is no event.
fn happenings(partition: Partition) -> Vec<String> {
    let mut lines = Vec::new();
    let mut add = |kind: &str, more: &str| {
        let offset = lines.len() as u64;
        lines.push(event(offset, 0, kind, more));
    };
    for (conn, user) in users(partition, 4).iter().enumerate() {
        let conn = 2 * conn as u64;
        add("connect", &(link(user, "android", "a", conn) + ",\"intent\":\"login\""));
        add(
            "connect",
            &(link(user, "iphone", "i", conn + 1) + ",\"intent\":\"login\""),
        );
    }
    add("nonsense", "");
    add("policy", ",\"policy\":{\"login\":\"multi\"}");
    for (conn, user) in users(partition, 4).iter().enumerate() {
        add(
            "connect",
            &(link(user, "web", "w", 100 + conn as u64) + ",\"intent\":\"login\""),
        );
    }
    lines
}

struct House {
    directory: tempfile::TempDir,
    clock: Arc<ManualClock>,
    log: LocalLog,
}

impl House {
    /// A log with these events, a second apart, and nothing folded yet.
    fn new(happenings: impl Fn(Partition) -> Vec<String>) -> House {
        let directory = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(1_800_000_000_000));
        let settings = Settings {
            partitions: Some(PARTITIONS),
            ..Settings::default()
        };
        let log = LocalLog::open(&directory.path().join("log"), settings, clock.clone()).unwrap();
        for partition in (0..PARTITIONS).map(Partition) {
            for line in happenings(partition) {
                let (mut key, mut value) = (None, Vec::new());
                match schema_json::read_line(&line).unwrap().event {
                    Ok(event) => {
                        avro::encode_event(&event, &mut value);
                        key = event.user().map(|user| user.as_bytes().to_vec());
                    }
                    Err(_) => value.extend_from_slice(b"this is no event"),
                }
                clock.advance_ms(1_000);
                let (sender, receiver) = mpsc::channel();
                let headers = Vec::new();
                log.append(
                    vec![(partition, NewRecord { key, value, headers })],
                    Box::new(move |result| sender.send(result).unwrap()),
                );
                receiver.recv().unwrap().unwrap();
            }
        }
        House { directory, clock, log }
    }

    fn folded(self) -> House {
        for partition in (0..PARTITIONS).map(Partition) {
            self.processor(partition).close().unwrap();
        }
        self
    }

    /// The engine's own fold of a partition, to the end.
    fn processor(&self, partition: Partition) -> PartitionProcessor {
        let log = self.log.take_up(partition).unwrap();
        let store = directory_of(self.data(), partition);
        std::fs::create_dir_all(store.parent().unwrap()).unwrap();
        let tuning = Tuning::default();
        let mut processor =
            PartitionProcessor::open(log, Some(&store), &Policy::default(), self.clock.clone(), tuning).unwrap();
        while processor.step(ALL).unwrap().records > 0 {}
        processor.commit_store().unwrap();
        processor
    }

    fn data(&self) -> &Path {
        self.directory.path()
    }

    fn read(&self, topic: Topic, partition: Partition) -> Vec<Record> {
        let mut records = Vec::new();
        self.log.read(topic, partition, Offset(0), ALL, &mut records).unwrap();
        records
    }

    fn outputs(&self, partition: Partition) -> Outputs {
        let all = |topic| {
            let records = self.read(topic, partition).into_iter();
            let new = records.map(|record| NewRecord {
                key: record.key,
                value: record.value,
                headers: Vec::new(),
            });
            new.collect()
        };
        Outputs {
            changes: all(Topic::Changes),
            kicks: all(Topic::Kicks),
            quarantine: all(Topic::Quarantine),
            position: self.log.take_up(partition).unwrap().position().unwrap(),
        }
    }
}

#[derive(Clone)]
struct Outputs {
    changes: Vec<NewRecord>,
    kicks: Vec<NewRecord>,
    quarantine: Vec<NewRecord>,
    position: Position,
}

/// Commits outputs, of each partition those in its place.
fn commit(house: &House, outputs: Vec<Outputs>) {
    for (partition, outputs) in (0..).map(Partition).zip(outputs) {
        let commit = Commit::at(outputs.position)
            .with(OutputTopic::Changes, outputs.changes)
            .with(OutputTopic::Kicks, outputs.kicks)
            .with(OutputTopic::Quarantine, outputs.quarantine);
        house.log.take_up(partition).unwrap().commit(&commit).unwrap();
    }
}

/// The usual events, with these outputs.
fn written(outputs: Vec<Outputs>) -> House {
    let house = House::new(happenings);
    commit(&house, outputs);
    house
}

/// The exit status, and the lines.
fn verify(data: &Path, more: &[&str]) -> (i32, Vec<Value>) {
    let mut all = vec!["audit", "verify", "--json", "--data", data.to_str().unwrap()];
    all.extend(more);
    audit(&all)
}

fn change_of(record: &NewRecord) -> rollcall::presence::change::Change {
    avro::decode_change(&record.value).unwrap()
}

type Tamper = Box<dyn Fn(&mut [Outputs])>;

#[test]
fn whatever_is_altered_in_a_data_directory_is_found() {
    let right = House::new(happenings).folded();
    let outputs: Vec<Outputs> = (0..PARTITIONS)
        .map(|partition| right.outputs(Partition(partition)))
        .collect();
    let (status, verified) = verify(right.data(), &[]);
    assert_eq!(status, 0, "{verified:?}");
    for line in &verified {
        let counts = ["changes", "kicks", "quarantined"].map(|key| line[key].as_u64().unwrap());
        assert_eq!(counts, [12, 4, 1], "{line}");
    }
    let on_change = |at: usize, edit: fn(&mut rollcall::presence::change::Change)| -> Tamper {
        Box::new(move |outputs| {
            let mut change = change_of(&outputs[0].changes[at]);
            edit(&mut change);
            outputs[0].changes[at].value.clear();
            avro::encode_change(&change, &mut outputs[0].changes[at].value);
        })
    };
    let tampers: Vec<(&str, &str, Tamper)> = vec![
        ("altered", "changes", on_change(2, |change| change.at.0 -= 1)),
        (
            "an id altered",
            "changes",
            on_change(3, |change| change.id.partition = Partition(1)),
        ),
        (
            "removed",
            "changes",
            Box::new(|outputs| drop(outputs[0].changes.remove(2))),
        ),
        (
            "added",
            "changes",
            Box::new(|outputs| {
                let copy = outputs[0].changes[2].clone();
                outputs[0].changes.insert(2, copy);
            }),
        ),
        ("swapped", "changes", Box::new(|outputs| outputs[0].changes.swap(2, 5))),
        (
            "given to another partition",
            "changes",
            Box::new(|outputs| {
                let moved = outputs[1].changes.remove(4);
                outputs[0].changes.insert(4, moved);
            }),
        ),
        (
            "the tail cut off",
            "changes",
            Box::new(|outputs| outputs[0].changes.truncate(6)),
        ),
        (
            "a kick removed",
            "kicks",
            Box::new(|outputs| drop(outputs[0].kicks.remove(1))),
        ),
        (
            "a kick added",
            "kicks",
            Box::new(|outputs| {
                let copy = outputs[0].kicks[3].clone();
                outputs[0].kicks.push(copy);
            }),
        ),
        (
            "quarantine emptied",
            "quarantine",
            Box::new(|outputs| outputs[0].quarantine.clear()),
        ),
        (
            "the chain altered",
            "position",
            Box::new(|outputs| outputs[0].position.chain[0] ^= 1),
        ),
        (
            "the count altered",
            "position",
            Box::new(|outputs| outputs[0].position.seq += 1),
        ),
    ];
    for (what, topic, tamper) in tampers {
        let mut altered = outputs.clone();
        tamper(&mut altered);
        let house = written(altered);
        for partition in (0..PARTITIONS).map(Partition) {
            assert!(house.read(Topic::Events, partition) == right.read(Topic::Events, partition));
        }
        let (status, lines) = verify(house.data(), &[]);
        assert_eq!(
            (status, &lines[0]["verified"], &lines[0]["topic"]),
            (1, &json!(false), &json!(topic)),
            "{what}: {lines:?}"
        );
    }

    // An earlier version gave the reason for quarantine in other words: that is no difference.
    let mut reworded = outputs.clone();
    let quarantined = &mut reworded[0].quarantine[0].value;
    let mut event = avro::decode_quarantined(quarantined).unwrap().into_owned();
    event.error = "other words".into();
    quarantined.clear();
    avro::encode_quarantined(&event, quarantined);
    assert_eq!(verify(written(reworded).data(), &[]).0, 0);

    // Changes without a position are no answer, since nothing would be compared.
    let mut without = outputs.clone();
    without[0].position = Position::default();
    let without = written(without);
    for question in ["verify", "heads", "watch"] {
        let mut command = super::rollcall(&["audit", question, "--data", without.data().to_str().unwrap()]);
        if question == "watch" {
            command.args(["--status", super::ANYWHERE]);
        }
        let output = command.output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{question}: {said}");
        assert!(
            said.contains("the log has no position for partition 0"),
            "{question}: {said}"
        );
    }

    // The whole of a partition's topics is replaced by others that fit together.
    let head = verified[0]["head"].as_str().unwrap().to_owned();
    let with_head = ["--partition", "0", "--head", &head];
    let replaced = House::new(|partition| happenings(partition)[2..].to_vec()).folded();
    assert_eq!(verify(replaced.data(), &[]).0, 0);
    assert_eq!(verify(right.data(), &with_head).0, 0);
    assert_eq!(verify(replaced.data(), &with_head).1[0]["topic"], "head");
    // The policy record alone is replaced: by another that gives other changes.
    let policy = House::new(|partition| {
        let replace = |line: &String| line.replace("\"multi\"", "\"single\"");
        happenings(partition).iter().map(replace).collect()
    });
    commit(&policy, outputs);
    assert_eq!(verify(policy.data(), &[]).1[0]["topic"], "changes");
}

/// A position that goes back is said, and claims nothing.
#[test]
fn a_watch_is_not_ready_while_the_committed_position_is_before_what_it_verified() {
    let house = House::new(happenings).folded();
    let mut log = house.log.take_up(Partition(0)).unwrap();
    let position = log.position().unwrap();
    let watch = Watch::start(house.data(), &["--partition", "0"]);
    wait_until("it has caught up", || watch.get("/readyz").0 == 200);
    let mut commit_at = |position: Position| {
        log.commit(&Commit::at(position)).unwrap();
    };
    commit_at(Position::default());
    wait_until("it is reported", || {
        watch.get("/readyz").1.contains("the committed position went back to 0")
    });
    let (status, lines) = watch.stop();
    assert_eq!((status, lines), (Some(0), Vec::new()));
    commit_at(position);
    let watch = Watch::start(house.data(), &["--partition", "0"]);
    wait_until("it has caught up", || watch.get("/readyz").0 == 200);
    let (status, lines) = watch.stop();
    assert_eq!((status, &lines[0]["verified"]), (Some(0), &json!(true)));
}

/// Gives one user's value in a store to another user.
fn alter_store(directory: &Path) {
    let db = rocksdb::DB::open_default(directory).unwrap();
    let key = |user: &str| [&[2], user.as_bytes()].concat();
    let [one, other] = users(Partition(0), 2).try_into().unwrap();
    let value = db.get(key(&one)).unwrap().expect("the user is online");
    // The slot, of two users the only byte that has to differ.
    let slot = db.get(key(&other)).unwrap().unwrap()[0];
    db.put(key(&other), [&[slot], &value[1..]].concat()).unwrap();
    db.flush().unwrap();
}

#[test]
fn the_newest_states_are_compared_and_a_checkpoint_is_begun_with() {
    let house = House::new(happenings);
    let mut processor = house.processor(Partition(0));
    house.processor(Partition(1)).close().unwrap();
    let copy = house.data().join("copy");
    processor.checkpoint(&copy).unwrap().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let kept = house.data().join("kept");
    std::fs::create_dir_all(&kept).unwrap();
    let url = format!("file://{}", kept.display());
    let checkpoints = Checkpoints::open(&url, "rollcall", 3, [], runtime.handle().clone()).unwrap();
    checkpoints
        .publish(Partition(0), &copy, None, &mut |_| Origin::Unknown)
        .unwrap();
    // Beside an engine that has the store open, and goes on.
    let (status, lines) = verify(house.data(), &["--checkpoints", &url]);
    assert_eq!(status, 0, "{lines:?}");
    house.clock.advance_ms(1_000);
    let user = &users(Partition(0), 1)[0];
    let line = event(0, 0, "logout", &link(user, "web", "w", 100));
    let more = schema_json::read_line(&line).unwrap();
    let mut value = Vec::new();
    avro::encode_event(&more.event.unwrap(), &mut value);
    let (sender, receiver) = mpsc::channel();
    let record = NewRecord {
        key: Some(user.as_bytes().to_vec()),
        value,
        headers: Vec::new(),
    };
    house.log.append(
        vec![(Partition(0), record)],
        Box::new(move |result| sender.send(result).unwrap()),
    );
    receiver.recv().unwrap().unwrap();
    while processor.step(ALL).unwrap().records > 0 {}
    processor.close().unwrap();

    let whole = verify(house.data(), &["--partition", "0"]).1.remove(0);
    let from_checkpoint = ["--partition", "0", "--from-checkpoint", "--checkpoints", &url];
    let (status, lines) = verify(house.data(), &from_checkpoint);
    assert_eq!(
        (status, &lines[0]["events"], &lines[0]["changes"], &lines[0]["head"]),
        (0, &json!(1), &json!(1), &whole["head"])
    );

    // A store in which one user has another's state.
    let store = directory_of(house.data(), Partition(0));
    alter_store(&store);
    let (status, lines) = verify(house.data(), &["--partition", "0"]);
    assert_eq!((status, &lines[0]["topic"]), (1, &json!("store")), "{lines:?}");
    let named = &users(Partition(0), 2);
    assert_eq!(lines[0]["expected"]["user"], named[1].as_str());
    // The same as a checkpoint, with a manifest that fits: its publisher had it wrong.
    let wrong: PathBuf = house.data().join("wrong");
    Store::open_to_look(&store).unwrap().checkpoint(&wrong).unwrap();
    checkpoints
        .publish(Partition(0), &wrong, None, &mut |_| Origin::Unknown)
        .unwrap();
    std::fs::remove_dir_all(&store).unwrap();
    let (status, lines) = verify(house.data(), &["--partition", "0", "--checkpoints", &url]);
    assert_eq!((status, &lines[0]["topic"]), (1, &json!("checkpoint")), "{lines:?}");
    // Only what has no checkpoint cannot be begun with.
    let output = super::rollcall(&[
        "audit",
        "verify",
        "--data",
        house.data().to_str().unwrap(),
        "--partition",
        "1",
        "--from-checkpoint",
        "--checkpoints",
        &url,
    ])
    .output()
    .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .contains("there is no checkpoint of partition 1")
    );
}
