//! Several logs whose checkpoints are at one location: each keeps its own, and is restored from no other's.

use super::*;
use rollcall::clock::SystemClock;
use rollcall::engine::{Engine, Services};
use rollcall::log::SingleNode;
use rollcall::presence::event::Event;
use std::time::{Duration, Instant};

/// A log and another one, of which the second publishes where the first does.
fn two_logs() -> (Publisher, Publisher) {
    let first = Publisher::in_a_directory(1);
    let url = format!("file://{}/there", first.directory.path().display());
    let second = Publisher::new(2, &|_| url.clone(), Vec::new());
    (first, second)
}

/// Positions of the checkpoints that a log published last, the oldest first.
fn last_three(publisher: &Publisher) -> Vec<(Offset, u64)> {
    let newest = publisher.published.iter().rev().take(3).rev();
    newest.map(|(applied, _)| not_after(applied)).collect()
}

fn is_there(publisher: &Publisher, of: &[(Offset, u64)], other: &[(Offset, u64)]) {
    let mut listed: Vec<_> = publisher.checkpoints.newest(PARTITION).expect("listed");
    listed.reverse();
    let listed: Vec<_> = listed.iter().map(|listed| (listed.next, listed.outputs)).collect();
    let mut all = [of, other].concat();
    all.sort_unstable();
    assert_eq!(listed, all);
}

#[test]
fn logs_at_one_location_keep_their_own_newest_three() {
    let (mut first, mut second) = two_logs();
    for _ in 0..5 {
        first.publish();
    }
    is_there(&first, &last_three(&first), &[]);
    // All of the second are behind those of the first, whose newest three they must not make way for.
    for published in 1..=4 {
        second.publish();
        assert_eq!(last_three(&second).len(), published.min(3));
        is_there(&first, &last_three(&first), &last_three(&second));
    }
    first.publish();
    is_there(&first, &last_three(&first), &last_three(&second));
    // So do other processes, which only have the log to go by.
    let another = |of: &Publisher| {
        let url = format!("file://{}/there", first.directory.path().display());
        Checkpoints::open(&url, "a group", 3, Vec::new(), of._runtime.handle().clone()).expect("a place")
    };
    (first.checkpoints, second.checkpoints) = (another(&first), another(&second));
    second.publish();
    first.publish();
    is_there(&first, &last_three(&first), &last_three(&second));
}

#[test]
fn what_another_log_is_publishing_is_not_taken_away() {
    let (mut first, mut second) = two_logs();
    second.publish();
    let unfinished = first.places();
    for place in &unfinished {
        fs::remove_file(place.join("MANIFEST.json")).expect("removed");
    }
    let before = content(&unfinished[0]);
    for _ in 0..4 {
        first.publish();
    }
    assert!(content(&unfinished[0]) == before);
    for _ in 0..4 {
        second.publish();
    }
    assert!(!unfinished[0].exists(), "its own log takes it away");
}

fn reach(world: &World) -> LogBounds {
    let range = world.log.range(Topic::Events, PARTITION).expect("known");
    LogBounds {
        start: range.start,
        end: range.end,
        committed: (range.end, 0),
    }
}

fn keeper(publisher: &Publisher) -> Checkpointer {
    let waiting = publisher.directory.path().join("waiting");
    Checkpointer::start(publisher.checkpoints.clone(), 1_000, waiting).expect("started")
}

/// The store that a log is restored to at a location, as the position it has applied.
fn taken(publisher: &Publisher, world: &World) -> Option<Offset> {
    let store = publisher.directory.path().join("taken");
    let _ = fs::remove_dir_all(&store);
    keeper(publisher)
        .restore(PARTITION, &store, reach(world), 0, &*world.log)
        .expect("it can be known");
    assert!(!publisher.directory.path().join("taken.new").exists());
    let opened = store.exists().then(|| Store::open_to_look(&store).expect("a store"))?;
    let meta = opened.meta().expect("readable").expect("committed");
    Some(opened.read_meta(&meta).expect("readable").applied.next)
}

/// Makes a checkpoint one of an earlier version, which does not say of which log it is.
fn of_format_2(place: &Path) {
    let list = place.join("MANIFEST.json");
    let json = fs::read_to_string(&list).expect("a list");
    let (before, after) = json.split_once("  \"last\": {").expect("it says the last record");
    let (_, after) = after.split_once("},\n").expect("it ends");
    let without_last = format!("{before}{after}");
    let lines = without_last.lines().filter(|line| !line.starts_with("  \"log\":"));
    let earlier = lines.collect::<Vec<_>>().join("\n");
    let earlier = earlier.replacen("\"format\": 3", "\"format\": 2", 1);
    fs::write(&list, &earlier).expect("written");
    let hash = blake3::hash(earlier.as_bytes()).to_hex();
    let name = place.file_name().and_then(|name| name.to_str()).expect("UTF-8");
    let position = name.split('-').take(2).collect::<Vec<_>>().join("-");
    let renamed = place.with_file_name(format!("{position}-{}", &hash[..16]));
    fs::rename(place, renamed).expect("renamed");
}

#[test]
fn a_checkpoint_of_another_log_is_not_restored_whatever_version_made_it() {
    let (mut first, mut second) = two_logs();
    (0..2).for_each(|_| first.publish());
    let newest = first.published[1].0.next;
    let is_of_the_first_alone = || {
        assert_eq!(taken(&first, &first.world), Some(newest));
        assert_eq!(taken(&first, &second.world), None);
    };
    is_of_the_first_alone();
    first.places().iter().for_each(|place| of_format_2(place));
    is_of_the_first_alone();
    // Its own one is restored, although the other log has newer ones.
    second.publish();
    assert_eq!(taken(&first, &second.world), Some(second.published[0].0.next));
    assert_eq!(taken(&first, &first.world), Some(newest));
}

#[test]
fn checkpoints_of_an_earlier_version_are_kept_until_there_are_enough_that_say_of_which_log_they_are() {
    let mut publisher = Publisher::in_a_directory(1);
    (0..3).for_each(|_| publisher.publish());
    publisher.places().iter().for_each(|place| of_format_2(place));
    for _ in 0..2 {
        publisher.publish();
        assert_eq!(publisher.places().len(), publisher.published.len());
    }
    publisher.publish();
    assert_eq!(publisher.places().len(), 3);
    assert_eq!(publisher.age_restored(), Some(0));
}

#[test]
fn a_log_that_has_dropped_the_last_record_keeps_its_newest_three() {
    let mut publisher = Publisher::in_a_directory(1);
    for _ in 0..6 {
        publisher.publish();
        let next = publisher.published.last().expect("one").0.next;
        publisher
            .world
            .log
            .drop_before(Topic::Events, PARTITION, next)
            .expect("dropped");
    }
    assert_eq!(publisher.places().len(), 3);
}

/// A checkpoint that was given up is not taken again, unless nothing else is left.
#[test]
fn a_checkpoint_that_is_given_up_makes_way_for_the_next_older_one() {
    let mut publisher = Publisher::in_a_directory(4);
    (0..2).for_each(|_| publisher.publish());
    let keeper = keeper(&publisher);
    let store = publisher.directory.path().join("taken");
    let taken = |reach: LogBounds| {
        let _ = fs::remove_dir_all(&store);
        let log = &*publisher.world.log;
        keeper
            .restore(PARTITION, &store, reach, 0, log)
            .expect("it can be known");
        let given_up = keeper.give_up(PARTITION);
        (store.exists(), given_up)
    };
    let whole = reach(&publisher.world);
    let [first, second] = [0, 1].map(|number| publisher.published[number].0.next);
    assert_eq!(taken(whole), (true, Some(second)));
    assert_eq!(taken(whole), (true, Some(first)));
    assert_eq!(taken(whole), (false, None), "the log is folded from its beginning");
    let cut = LogBounds {
        start: Offset(1),
        ..whole
    };
    assert_eq!(taken(cut), (true, None), "nothing else is left");
}

const LAST: Offset = Offset(10_000);

/// A log with a history, and a last record that others have too.
fn with_a_common_end(seed: u64) -> Arc<MemoryLog> {
    let world = World::new(seed, 100);
    let log = world.log;
    let mut tick = Vec::new();
    avro::encode_event(&Event::Tick, &mut tick);
    log.append_at(PARTITION, LAST, 1_000_000_000_000, None, tick)
        .expect("appended");
    log
}

#[test]
fn a_partition_goes_on_from_its_beginning_where_nothing_shows_that_a_checkpoint_is_of_another_log() {
    let directory = tempfile::tempdir().expect("a directory");
    let runtime = Runtime::new().expect("a runtime");
    let url = format!("file://{}/there", directory.path().display());
    let checkpoints = Checkpoints::open(&url, "g", 3, Vec::new(), runtime.handle().clone()).expect("a place");
    let clock = || Arc::new(SystemClock::new());

    let other = with_a_common_end(1).take_up(PARTITION).expect("taken up");
    let store = directory.path().join("other");
    let mut walk = PartitionProcessor::open(other, Some(&store), &Policy::default(), clock(), Tuning::default());
    let walk = walk.as_mut().expect("opened");
    fold(walk, usize::MAX, 1_000);
    let copy = directory.path().join("copy");
    walk.checkpoint(&copy).expect("committed").expect("copied");
    let published = checkpoints.publish(PARTITION, &copy, None, &mut |_| Origin::Unknown);
    assert_eq!(published.expect("published").applied.next, Offset(LAST.0 + 1));

    // It goes on after the checkpoint, so that the fold from there finds the difference, and not the opening.
    let log = with_a_common_end(2);
    let mut tick = Vec::new();
    avro::encode_event(&Event::Tick, &mut tick);
    log.append_at(PARTITION, Offset(LAST.0 + 1), 1_000_000_001_000, None, tick)
        .expect("appended");
    let data = directory.path().join("data");
    let run = |services: Services| {
        let alone = Box::new(SingleNode::new(1));
        let engine = Engine::join(log.clone(), alone, Some(&data), clock(), Tuning::default(), services);
        let engine = engine.expect("started");
        let begun = Instant::now();
        let stats = loop {
            let stats = runtime.block_on(engine.stats(PARTITION)).ok();
            match stats.filter(|stats| stats.state == "live") {
                Some(stats) => break stats,
                None => assert!(begun.elapsed() < Duration::from_secs(60), "it does not become live"),
            }
            std::thread::sleep(Duration::from_millis(20));
        };
        engine.stop().expect("committed");
        stats
    };
    let before = run(Services::default());
    assert!(before.changes > 0);
    fs::remove_dir_all(data.join("store")).expect("removed");
    let waiting = directory.path().join("waiting");
    let checkpointer = Arc::new(Checkpointer::start(checkpoints.clone(), 3_600_000, waiting).expect("started"));
    let fresh = directory.path().join("fresh");
    let restores = || {
        let range = log.range(Topic::Events, PARTITION).expect("known");
        let reach = LogBounds {
            start: range.start,
            end: range.end,
            committed: (range.end, 0),
        };
        checkpointer
            .restore(PARTITION, &fresh, reach, 0, &*log)
            .expect("it can be known");
        fresh.exists()
    };
    assert!(restores(), "nothing shows that it is of another log");
    fs::remove_dir_all(&fresh).expect("removed");
    let after = run(Services {
        checkpointer: Some(checkpointer.clone()),
        ..Services::default()
    });
    assert_eq!(after.error, None);
    assert!(after.changes >= before.changes);
    assert!(!restores(), "it was given up");
    assert_eq!(checkpoints.newest(PARTITION).expect("listed").len(), 1, "it stays");
}
