//! Checkpoints: a restored store equals the published one, or the checkpoint is refused; in a directory and on S3.

#[path = "checkpoint/s3.rs"]
mod s3;
#[path = "checkpoint/shared.rs"]
mod shared;

use rollcall::checkpoint::{Checkpoints, Error, LastFolded, Listed, Origin, Published};
use rollcall::clock::ManualClock;
use rollcall::engine::partition::PartitionProcessor;
use rollcall::engine::{self, Checkpointer, LogBounds, Tuning};
use rollcall::log::memory::MemoryLog;
use rollcall::log::{LastRecord, Limit, Log, Position};
use rollcall::presence::policy::Policy;
use rollcall::presence::{Offset, Partition};
use rollcall::schema::{avro, json};
use rollcall::sim::history;
use rollcall::store::{Applied, Store};
use rollcall::topics::Topic;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tempfile::TempDir;
use tokio::runtime::Runtime;

const PARTITION: Partition = Partition(0);

/// A log with a random history in it.
struct World {
    log: Arc<MemoryLog>,
    clock: Arc<ManualClock>,
    policy: Policy,
}

impl World {
    fn new(seed: u64, records: usize) -> World {
        let clock = Arc::new(ManualClock::new(0));
        let log = Arc::new(MemoryLog::new(1, clock.clone()));
        for (offset, ts, event) in history::records(seed, records) {
            let line = history::record_json(offset, ts, event.as_ref());
            let (mut key, mut value) = (None, Vec::new());
            match json::read_line(&line).expect("a record").event {
                Ok(event) => {
                    avro::encode_event(&event, &mut value);
                    key = event.user().map(|user| user.as_bytes().to_vec());
                }
                Err(_) => value.extend_from_slice(b"this is no event"),
            }
            log.append_at(PARTITION, offset, ts, key, value).expect("appended");
        }
        World {
            log,
            clock,
            policy: history::policy(seed),
        }
    }

    fn open(&self, store: &Path, cached_users: usize) -> PartitionProcessor {
        let tuning = Tuning {
            cached_users,
            ..Tuning::default()
        };
        let (log, clock) = (self.log.take_up(PARTITION).expect("taken up"), self.clock.clone());
        PartitionProcessor::open(log, Some(store), &self.policy, clock, tuning).expect("opened")
    }

    fn position(&self) -> Position {
        self.log.committed(PARTITION).expect("readable")
    }

    /// The last record before what the store in a directory has applied.
    fn last_before(&self, store: &Path) -> Option<LastFolded> {
        let store = Store::open_to_look(store).ok()?;
        let meta = store.meta().ok()??;
        let next = store.read_meta(&meta).ok()?.applied.next;
        let mut records = Vec::new();
        let all = Limit {
            records: usize::MAX,
            bytes: usize::MAX,
        };
        let start = self.log.range(Topic::Events, PARTITION).ok()?.start;
        self.log.read(Topic::Events, PARTITION, start, all, &mut records).ok()?;
        let last = records.iter().rfind(|record| record.offset < next)?;
        let LastRecord { offset, ts, checksum } = LastRecord::of(last);
        Some(LastFolded::new(offset, ts, checksum))
    }

    /// Of which log a checkpoint is, as this one says.
    fn origin(&self, listed: &Listed) -> Origin {
        let range = self.log.range(Topic::Events, PARTITION).expect("known");
        engine::origin(listed.next, listed.last.as_ref(), range, |from, limit, into| {
            self.log.read(Topic::Events, PARTITION, from, limit, into)
        })
    }
}

/// Folds at most so many records, in pieces.
fn fold(walk: &mut PartitionProcessor, records: usize, piece: usize) {
    let mut left = records;
    while left > 0 {
        let limit = Limit {
            records: piece.min(left),
            bytes: 1 << 20,
        };
        match walk.step(limit).expect("folded").records {
            0 => return,
            folded => left -= folded,
        }
    }
}

fn digest(store: &Path) -> [u8; 32] {
    Store::open_to_look(store).expect("a store").digest().expect("readable")
}

/// The files of a directory and what is in them.
fn content(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let entries = fs::read_dir(directory).expect("a directory");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .map(|path| (path.clone(), fs::read(path).expect("a file")))
        .collect()
}

fn not_after(applied: &Applied) -> (Offset, u64) {
    (applied.next, applied.outputs)
}

const ANY: (Offset, u64) = (Offset(u64::MAX), u64::MAX);

/// A partition that publishes, and where it publishes to.
struct Publisher {
    world: World,
    walk: PartitionProcessor,
    directory: TempDir,
    checkpoints: Checkpoints,
    /// The published checkpoints, the newest last: the position of each, and the digest of its store.
    published: Vec<(Applied, [u8; 32])>,
    _runtime: Runtime,
}

impl Publisher {
    fn new(seed: u64, url: &dyn Fn(&Path) -> String, environment: Vec<(String, String)>) -> Publisher {
        let directory = tempfile::tempdir().expect("a directory");
        let world = World::new(seed, 300);
        let walk = world.open(&directory.path().join("store"), 2);
        let runtime = Runtime::new().expect("a runtime");
        let url = url(directory.path());
        let checkpoints = Checkpoints::open(&url, "a group", 3, environment, runtime.handle().clone());
        Publisher {
            world,
            walk,
            directory,
            checkpoints: checkpoints.expect("a place"),
            published: Vec::new(),
            _runtime: runtime,
        }
    }

    fn in_a_directory(seed: u64) -> Publisher {
        Publisher::new(
            seed,
            &|directory| format!("file://{}/there", directory.display()),
            Vec::new(),
        )
    }

    /// Folds some more and publishes.
    fn publish(&mut self) {
        fold(&mut self.walk, 40, 7);
        let copy = self.directory.path().join("copy");
        self.walk.checkpoint(&copy).expect("committed").expect("copied");
        let before = content(&copy);
        let published = self.publish_copy(PARTITION, &copy).expect("published");
        let applied = published.applied;
        assert!(content(&copy) == before, "the copy stays as it was");
        self.published.push((applied, digest(&copy)));
        fs::remove_dir_all(&copy).expect("removed");
    }

    /// Publishes a copy; the world's log says of which log the other checkpoints are.
    fn publish_copy(&self, partition: Partition, copy: &Path) -> Result<Published, Error> {
        let mut origin = |listed: &Listed| self.world.origin(listed);
        self.checkpoints
            .publish(partition, copy, self.world.last_before(copy), &mut origin)
    }

    fn restored(&self, not_after: (Offset, u64)) -> Option<(Applied, PathBuf)> {
        let into = self.directory.path().join("restored");
        let _ = fs::remove_dir_all(&into);
        let applied = self
            .checkpoints
            .restore(PARTITION, &into, not_after)
            .expect("it can be known");
        assert!(!self.directory.path().join("restored.partial").exists());
        assert_eq!(applied.is_some(), into.exists());
        applied.map(|applied| (applied, into))
    }

    /// Which of those published is restored; the newest is 0.
    fn age_restored(&self) -> Option<usize> {
        let (applied, into) = self.restored(ANY)?;
        let found = self.published.iter().rev().position(|(of, _)| *of == applied);
        let age = found.expect("one of those published");
        assert_eq!(digest(&into), self.published[self.published.len() - 1 - age].1);
        Some(age)
    }

    /// The directories of the checkpoints there are, the oldest first.
    fn places(&self) -> Vec<PathBuf> {
        let base = self.directory.path().join("there/a group/0");
        let mut places: Vec<PathBuf> = content_names(&base);
        places.sort();
        places
    }
}

fn content_names(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).expect("a directory");
    entries.map(|entry| entry.expect("an entry").path()).collect()
}

#[test]
fn a_store_has_the_digest_of_a_fresh_fold_however_it_came_to_be() {
    for seed in 0..24 {
        let directory = tempfile::tempdir().expect("a directory");
        let (fresh, worn) = (directory.path().join("fresh"), directory.path().join("worn"));
        let world = World::new(seed, 240);
        let mut walk = world.open(&fresh, 1_000);
        fold(&mut walk, usize::MAX, 1_000);
        walk.close().expect("closed");

        let other = World::new(seed, 240);
        for piece in 1.. {
            let mut walk = other.open(&worn, piece % 3);
            let before = other.position();
            fold(&mut walk, 31, 1 + piece % 9);
            walk.close().expect("closed");
            if other.position() == before {
                break;
            }
            assert!(piece < 100, "seed {seed}: no end");
        }
        assert_eq!(digest(&fresh), digest(&worn), "seed {seed}");

        let shorter = World::new(seed, 239);
        let mut walk = shorter.open(&directory.path().join("shorter"), 1_000);
        fold(&mut walk, usize::MAX, 1_000);
        walk.close().expect("closed");
        assert_ne!(digest(&fresh), digest(&directory.path().join("shorter")), "seed {seed}");
    }
}

fn what_is_published_is_restored_and_folded_on(mut publisher: Publisher) {
    assert_eq!(publisher.age_restored(), None);
    for _ in 0..3 {
        publisher.publish();
        assert_eq!(publisher.age_restored(), Some(0));
    }
    let listed = publisher.checkpoints.newest(PARTITION).expect("listed");
    let listed: Vec<_> = listed.iter().map(|listed| (listed.next, listed.outputs)).collect();
    let published: Vec<_> = publisher
        .published
        .iter()
        .rev()
        .map(|(applied, _)| not_after(applied))
        .collect();
    assert_eq!(listed, published);
    assert_eq!(publisher.checkpoints.newest(Partition(1)).expect("listed"), []);

    // Not after the committed position: a state that is ahead of its outputs is invalid.
    for (applied, _) in &publisher.published {
        let (restored, _) = publisher.restored(not_after(applied)).expect("one");
        assert_eq!(restored, *applied);
    }
    let (first, _) = publisher.published[0];
    assert!(publisher.restored((Offset(first.next.0 - 1), u64::MAX)).is_none());

    // Folded on, it comes to what the publisher itself comes to.
    let (_, restored) = publisher.restored(ANY).expect("one");
    fold(&mut publisher.walk, usize::MAX, 50);
    let mut walk = publisher.world.open(&restored, 2);
    fold(&mut walk, usize::MAX, 50);
    assert_eq!(
        walk.state_lines().expect("readable"),
        publisher.walk.state_lines().expect("readable")
    );
    walk.close().expect("closed");
    let own = publisher.directory.path().join("store");
    publisher.walk.close().expect("closed");
    assert_eq!(digest(&restored), digest(&own));
}

#[test]
fn what_is_published_in_a_directory_is_restored_and_folded_on() {
    for seed in 0..4 {
        what_is_published_is_restored_and_folded_on(Publisher::in_a_directory(seed));
    }
}

#[test]
fn what_is_published_on_s3_is_restored_and_folded_on() {
    let server = s3::Server::start("presence");
    let url = |_: &Path| "s3://presence/some/where".to_owned();
    what_is_published_is_restored_and_folded_on(Publisher::new(7, &url, server.environment()));
}

#[test]
fn the_newest_three_are_kept_and_pieces_of_older_ones_are_not() {
    let mut publisher = Publisher::in_a_directory(1);
    publisher.publish();
    // As if a publication had been cut off before its list was written.
    let cut_off = publisher.places().remove(0);
    fs::remove_file(cut_off.join("MANIFEST.json")).expect("removed");
    assert_eq!(publisher.age_restored(), None);
    for _ in 0..5 {
        publisher.publish();
    }
    let places = publisher.places();
    assert_eq!(places.len(), 3, "no empty directory stays: {places:?}");
    assert_eq!(publisher.checkpoints.newest(PARTITION).expect("listed").len(), 3);
    assert_eq!(publisher.age_restored(), Some(0));
    // A second restore gives the same result.
    let copy = publisher.directory.path().join("copy");
    publisher.walk.checkpoint(&copy).expect("committed").expect("copied");
    for _ in 0..2 {
        publisher.publish_copy(PARTITION, &copy).expect("published");
    }
    assert!(publisher.checkpoints.newest(PARTITION).expect("listed").len() <= 3);
}

#[test]
fn whatever_file_of_the_newest_is_damaged_the_next_older_one_is_taken() {
    let mut publisher = Publisher::in_a_directory(2);
    publisher.publish();
    publisher.publish();
    let newest = publisher.places().pop().expect("two");
    let files = content(&newest);
    assert!(
        files.len() >= 4,
        "a list, and a store of several files: {:?}",
        files.keys()
    );
    let age_with = |file: &Path, bytes: Option<&[u8]>| {
        match bytes {
            Some(bytes) => fs::write(file, bytes).expect("written"),
            None => fs::remove_file(file).expect("removed"),
        }
        let age = publisher.age_restored();
        fs::write(file, &files[file]).expect("written");
        age
    };
    for (file, bytes) in &files {
        assert_eq!(age_with(file, None), Some(1), "{file:?} removed");
        let longer = [bytes.as_slice(), b" "].concat();
        assert_eq!(age_with(file, Some(&longer)), Some(1), "{file:?} made longer");
        if bytes.is_empty() {
            continue;
        }
        assert_eq!(age_with(file, Some(&bytes[..bytes.len() / 2])), Some(1), "{file:?} cut");
        assert_eq!(age_with(file, Some(b"")), Some(1), "{file:?} emptied");
        for at in [0, bytes.len() / 2, bytes.len() - 1] {
            let mut altered = bytes.clone();
            altered[at] ^= 1;
            assert_eq!(age_with(file, Some(&altered)), Some(1), "{file:?} altered at {at}");
        }
    }
    assert_eq!(publisher.age_restored(), Some(0), "whole again");
    for place in publisher.places() {
        fs::write(place.join("CURRENT"), b"nothing").expect("written");
    }
    assert_eq!(publisher.age_restored(), None, "none is left");
}

#[test]
fn a_checkpoint_and_the_rest_of_the_log_are_the_fold_from_the_beginning() {
    for seed in 0..8 {
        let beginning = World::new(seed, 300);
        let store = tempfile::tempdir().expect("a directory");
        let mut walk = beginning.open(store.path(), 1_000);
        fold(&mut walk, usize::MAX, 1_000);
        walk.close().expect("closed");

        let mut publisher = Publisher::in_a_directory(seed);
        (0..3).for_each(|_| publisher.publish());
        fold(&mut publisher.walk, usize::MAX, 50);
        // The newest one on an emptied disk, and the one before where the newest is corrupted.
        for age in [0, 1] {
            if age == 1 {
                let newest = publisher.places().pop().expect("three");
                fs::write(newest.join("CURRENT"), b"nothing").expect("written");
            }
            let (applied, restored) = publisher.restored(ANY).expect("one");
            assert_eq!(applied, publisher.published[2 - age].0, "seed {seed}");
            assert!(applied.next < beginning.position().next, "seed {seed}: there is a rest");
            let mut walk = publisher.world.open(&restored, 1 + age);
            fold(&mut walk, usize::MAX, 11);
            walk.close().expect("closed");
            assert_eq!(digest(&restored), digest(store.path()), "seed {seed}, age {age}");
            assert_eq!(
                publisher.world.position().chain,
                beginning.position().chain,
                "seed {seed}, age {age}"
            );
        }
    }
}

#[test]
fn a_store_makes_way_only_for_a_checkpoint_that_is_better() {
    let mut publisher = Publisher::in_a_directory(4);
    publisher.publish();
    publisher.publish();
    let keeper = Checkpointer::start(
        publisher.checkpoints.clone(),
        1_000,
        publisher.directory.path().join("waiting"),
    );
    let keeper = keeper.expect("started");
    let [(first, _), (second, _)] = publisher.published[..] else {
        panic!("two were published");
    };
    let store = publisher.directory.path().join("taken");
    let stands = || {
        let store = Store::open_to_look(&store).expect("a store");
        let meta = store.meta().expect("readable").expect("committed");
        store.read_meta(&meta).expect("readable").applied
    };
    let reach = LogBounds {
        start: Offset(0),
        end: second.next,
        committed: not_after(&second),
    };
    let restore = |reach: LogBounds, worth: u64| {
        keeper
            .restore(PARTITION, &store, reach, worth, &*publisher.world.log)
            .expect("it can be known")
    };

    let until_the_first = LogBounds {
        committed: not_after(&first),
        ..reach
    };
    restore(until_the_first, 0);
    assert_eq!(stands(), first, "nothing was there");
    restore(reach, second.next.0);
    assert_eq!(stands(), first, "it is near enough");
    restore(reach, 0);
    assert_eq!(stands(), second);
    let is_exceeded = [until_the_first, reach].map(|reach| reach.is_exceeded_by(PARTITION, &store).expect("known"));
    assert_eq!(is_exceeded, [true, false], "a standby keeps such a store");
    restore(until_the_first, 0);
    assert_eq!(
        stands(),
        first,
        "one that is ahead of the committed position is not taken"
    );

    // The newest is damaged, and the older one is no better than what is there.
    let newest = publisher.places().pop().expect("two");
    fs::write(newest.join("CURRENT"), b"nothing").expect("written");
    let before = content(&store);
    restore(reach, 0);
    assert_eq!(stands(), first);
    assert!(content(&store) == before, "the store stays as it was");
    assert!(!publisher.directory.path().join("taken.new").exists());

    // The log no longer reaches back to it.
    let gone = LogBounds {
        start: Offset(first.next.0 + 1),
        ..reach
    };
    restore(gone, 0);
    assert_eq!(stands(), first, "kept to be looked at, though of no use");
}

#[test]
fn a_checkpoint_leaves_the_index_of_changes_out_and_is_the_same_state() {
    let mut publisher = Publisher::in_a_directory(6);
    let waiting = publisher.directory.path().join("waiting");
    let keeper = Checkpointer::start(publisher.checkpoints.clone(), 1_000, waiting).expect("started");
    fold(&mut publisher.walk, 200, 50);
    let place = keeper.place(PARTITION).expect("none is on its way");
    publisher.walk.checkpoint(&place).expect("committed").expect("copied");
    let copied = Store::open_to_look(&place).expect("a store");
    let indexed = copied.indexed().expect("readable").expect("the copy still has it");
    assert!(indexed.from == 0 && indexed.upto > 0, "{indexed:?}");
    drop(copied);
    let was = digest(&place);
    let reach = LogBounds {
        start: Offset(0),
        end: Offset(u64::MAX),
        committed: ANY,
    };
    let log: Arc<dyn Log> = publisher.world.log.clone();
    keeper.take(PARTITION, place, reach, &log);
    for _ in 0..6_000 {
        if keeper.place(PARTITION).is_some() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    let (_, restored) = publisher.restored(ANY).expect("one was published");
    assert_eq!(digest(&restored), was);
    let store = Store::open_to_look(&restored).expect("a store");
    assert_eq!(store.indexed().expect("readable"), None);
    drop(store);
    // Who goes on with it begins an index there.
    let world = &publisher.world;
    let walk = world.open(&restored, 2);
    let seq = walk.state().seq();
    walk.close().expect("closed");
    let store = Store::open_to_look(&restored).expect("a store");
    let begun = store.indexed().expect("readable").expect("there is one");
    assert_eq!((begun.from, begun.upto), (seq, seq));
}

#[test]
fn a_place_that_cannot_be_used_is_told_without_its_credentials() {
    let runtime = Runtime::new().expect("a runtime");
    let error = |url: &str| {
        let opened = Checkpoints::open(url, "g", 3, Vec::new(), runtime.handle().clone());
        opened.err().expect("refused").to_string()
    };
    assert!(
        error("ftp://there").contains("the scheme ftp is not supported"),
        "{}",
        error("ftp://there")
    );
    assert!(
        error("checkpoints").contains("give a file:///DIRECTORY"),
        "{}",
        error("checkpoints")
    );
    let message = error("s3://key:hunter2@bucket/x");
    assert!(
        message.contains("AWS_SECRET_ACCESS_KEY") && !message.contains("hunter2"),
        "{message}"
    );
}

#[test]
fn that_nobody_answers_is_an_error_and_not_that_there_are_none() {
    let runtime = Runtime::new().expect("a runtime");
    let nobody = s3::environment("http://127.0.0.1:1");
    let checkpoints = Checkpoints::open("s3://bucket/x", "g", 3, nobody, runtime.handle().clone()).expect("a place");
    let directory = tempfile::tempdir().expect("a directory");
    let restored = checkpoints.restore(PARTITION, &directory.path().join("into"), ANY);
    assert!(matches!(restored, Err(Error::Unreachable { .. })), "{restored:?}");
}

#[test]
fn a_directory_that_is_no_store_of_the_partition_is_not_published() {
    let mut publisher = Publisher::in_a_directory(3);
    fold(&mut publisher.walk, 20, 20);
    let copy = publisher.directory.path().join("copy");
    publisher.walk.checkpoint(&copy).expect("committed").expect("copied");
    let other = publisher.publish_copy(Partition(5), &copy);
    assert!(matches!(other, Err(Error::Local { .. })), "{other:?}");
    let empty = publisher.directory.path().join("empty");
    drop(Store::open(&empty).expect("made"));
    let nothing = publisher.publish_copy(PARTITION, &empty);
    assert!(matches!(nothing, Err(Error::Empty { .. })), "{nothing:?}");
    let gone = publisher.publish_copy(PARTITION, &publisher.directory.path().join("gone"));
    assert!(matches!(gone, Err(Error::Store(_))), "{gone:?}");
}

#[test]
fn a_checkpoint_of_a_later_version_is_an_error_and_neither_skipped_nor_taken() {
    let mut publisher = Publisher::in_a_directory(3);
    publisher.publish();
    publisher.publish();
    let newest = publisher.places().pop().expect("one");
    let list = newest.join("MANIFEST.json");
    let json = fs::read_to_string(&list).expect("a list");
    let later = json.replacen("\"format\": 3", "\"format\": 9", 1);
    assert_ne!(later, json);
    fs::write(&list, &later).expect("written");
    let into = publisher.directory.path().join("restored");
    let error = publisher.checkpoints.restore(PARTITION, &into, ANY);
    let text = error.expect_err("it is not known").to_string();
    assert!(text.contains("the format 9: a later version wrote it"), "{text}");
    assert!(!into.exists());
    assert_eq!(fs::read_to_string(&list).expect("a list"), later);

    // The same where the list is known, and the revision is not.
    let raised = json.replacen("\"revision\": 1", "\"revision\": 7", 1);
    assert_ne!(raised, json);
    fs::write(&list, &raised).expect("written");
    let hash = blake3::hash(raised.as_bytes()).to_hex();
    let name = newest.file_name().and_then(|name| name.to_str()).expect("UTF-8");
    let parts: Vec<&str> = name.split('-').collect();
    let [next, outputs, _, log] = parts[..] else {
        panic!("{name} is no name");
    };
    let renamed = newest.with_file_name(format!("{next}-{outputs}-{}-{log}", &hash[..16]));
    fs::rename(&newest, &renamed).expect("renamed");
    let error = publisher.checkpoints.restore(PARTITION, &into, ANY);
    let text = error.expect_err("it is not known").to_string();
    assert!(
        text.contains("the revision 7, and this version knows revisions up to 1"),
        "{text}"
    );

    // Who needs none of it goes on with an older one.
    let (first, _) = publisher.published[0];
    assert_eq!(
        publisher.restored(not_after(&first)).map(|(applied, _)| applied),
        Some(first)
    );
}
