//! A wrong clock causes nothing irreversible: neither the times of records nor deletions.

use crate::*;
use rollcall::clock::Clock as _;
use rollcall::engine::{Engine, PartitionStats, Tuning};
use rollcall::presence::Status;
use rollcall::presence::event::Event;
use rollcall::schema::{avro, json};
use std::time::{Duration, Instant};

const NOW: u64 = 1_800_000_000_000;
const MINUTE: u64 = 60_000;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
pub const ONLY: Partition = Partition(0);

pub struct House {
    pub dir: tempfile::TempDir,
    pub clock: Arc<ManualClock>,
    log: Option<Arc<LocalLog>>,
    engine: Option<Engine>,
}

impl House {
    pub fn new() -> House {
        let mut house = House {
            dir: tempfile::tempdir().unwrap(),
            clock: Arc::new(ManualClock::new(NOW)),
            log: None,
            engine: None,
        };
        house.start(None);
        house
    }

    pub fn start(&mut self, accepted_time_ms: Option<u64>) {
        self.start_without_waiting(accepted_time_ms);
        self.until("it is live", |stats| stats.state == "live");
    }

    pub fn start_without_waiting(&mut self, accepted_time_ms: Option<u64>) {
        let settings = Settings {
            partitions: Some(1),
            accepted_time_ms,
            ..keeping(Some(30 * DAY), None)
        };
        let log = Arc::new(LocalLog::open(&self.dir.path().join("log"), settings, self.clock.clone()).unwrap());
        // Its store is committed, and retention looked at, with every step.
        let tuning = Tuning {
            store_commit_ms: 0,
            cached_users: 0,
            ..Tuning::default()
        };
        let engine = Engine::start(log.clone(), Some(self.dir.path()), self.clock.clone(), tuning).unwrap();
        (self.log, self.engine) = (Some(log), Some(engine));
    }

    pub fn stop(&mut self) {
        self.engine.take().unwrap().stop().unwrap();
        self.log = None;
    }

    pub fn log(&self) -> &LocalLog {
        self.log.as_ref().unwrap()
    }

    fn publish(&self, line: &str) -> Result<Vec<Appended>, Error> {
        let line = format!("{{\"offset\":0,\"ts\":0,{line}}}");
        let event: Event<'_> = json::read_line(&line)
            .unwrap()
            .event
            .unwrap_or_else(|bad| panic!("{}", bad.message));
        let mut value = Vec::new();
        avro::encode_event(&event, &mut value);
        let key = event.user().map(|user| user.as_bytes().to_vec());
        append(
            self.log(),
            vec![(
                ONLY,
                NewRecord {
                    key,
                    value,
                    headers: Vec::new(),
                },
            )],
        )
    }

    pub fn connect(&self, user: &str, conn: u64) -> Result<Vec<Appended>, Error> {
        self.publish(&format!(
            "\"type\":\"connect\",\"user\":\"{user}\",\"platform\":\"web\",\"device\":\"d\",\"gateway\":\"g\",\
             \"epoch\":1,\"conn\":{conn},\"intent\":\"login\""
        ))
    }

    fn stats(&self) -> Option<PartitionStats> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        runtime.block_on(self.engine.as_ref().unwrap().stats(ONLY)).ok()
    }

    #[track_caller]
    pub fn until(&self, what: &str, mut so: impl FnMut(&PartitionStats) -> bool) -> PartitionStats {
        let began = Instant::now();
        loop {
            match self.stats() {
                Some(stats) if so(&stats) => return stats,
                stats if began.elapsed() > Duration::from_secs(60) => panic!("not in a minute: {what}: {stats:?}"),
                _ => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    pub fn online(&self, count: u64) -> PartitionStats {
        self.until(&format!("{count} are online"), |stats| {
            stats.census.users(Status::Online) == count && stats.applied == stats.log_end
        })
    }
}

#[test]
fn a_clock_that_jumps_ahead_expires_nobody_and_deletes_nothing() {
    let mut house = House::new();
    for user in 0..50 {
        house.connect(&format!("u{user}"), user).unwrap();
    }
    house.online(50);
    let kept = |house: &House| {
        let all = [Topic::Events, Topic::Changes].map(|topic| range(house.log(), topic, ONLY));
        assert_eq!(all.map(|(start, _)| start), [0, 0], "nothing is deleted");
        all.map(|(_, end)| end)
    };
    let before = kept(&house);

    house.clock.set_ms(NOW + 40 * DAY);
    let error = house.connect("late", 99).unwrap_err().to_string();
    assert!(
        error.contains("jumped ahead") && error.contains("--accept-time 2027-02-24T"),
        "{error}"
    );
    let refused = house.until("it says so", |stats| stats.refusal.is_some());
    assert!(refused.refusal.unwrap().contains("jumped ahead"));
    house.online(50);
    assert_eq!(kept(&house), before);

    // A restart is no reason to believe it.
    house.stop();
    house.start(None);
    assert!(
        house
            .connect("late", 99)
            .unwrap_err()
            .to_string()
            .contains("was not set back")
    );
    house.online(50);

    // The clock is right again: the log continues, and silent devices time out.
    house.clock.set_ms(NOW);
    house.connect("late", 99).unwrap();
    house.until("it takes events", |stats| stats.refusal.is_none());
    house.online(51);
    house.clock.advance_ms(2 * MINUTE);
    house.online(0);
    assert_eq!(kept(&house)[1], before[1] + 1 + 51);
    house.stop();
}

#[test]
fn a_clock_that_jumped_and_is_right_is_taken_when_somebody_says_so() {
    let mut house = House::new();
    house.connect("a", 1).unwrap();
    house.clock.set_ms(NOW + 40 * DAY);
    assert!(house.connect("b", 1).is_err());
    house.stop();
    house.start(Some(NOW + 40 * DAY + MINUTE));
    house.connect("b", 1).unwrap();
    house.online(1);
    let records = read(house.log(), Topic::Events, ONLY, 0, ALL).unwrap();
    assert_eq!(records.last().unwrap().ts, house.clock.now_ms());
    house.stop();
}

#[test]
fn behind_a_clock_that_was_set_back_deadlines_come_and_it_is_said() {
    let mut house = House::new();
    house.connect("a", 1).unwrap();
    house.online(1);
    house.clock.set_ms(NOW - HOUR);
    let stats = house.until("it is said", |stats| stats.warning.is_some());
    assert!(stats.warning.unwrap().contains("3600 s ahead of this machine's clock"));
    assert!(stats.refusal.is_none());
    house.connect("b", 1).unwrap();
    house.online(2);
    // A web page times out after a minute; behind, time goes a tenth slower.
    house.clock.advance_ms(70_000);
    house.online(0);
    // The same after a restart, regardless of the clock.
    house.stop();
    house.clock.set_ms(5_000);
    house.start(None);
    house.connect("c", 1).unwrap();
    house.online(1);
    house.clock.advance_ms(70_000);
    house.online(0);
    house.stop();
}

#[test]
fn a_record_with_a_time_that_no_clock_gives_stops_its_partition_alone() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, vec![(P, record("a")), (Partition(2), record("b"))]).unwrap();
    drop(log);
    // As a block with a valid checksum, written by another program.
    let mut options = rocksdb::Options::default();
    options.set_wal_recovery_mode(rocksdb::DBRecoveryMode::TolerateCorruptedTailRecords);
    let families = rocksdb::DB::list_cf(&options, dir.path()).unwrap();
    let db = rocksdb::DB::open_cf(&options, dir.path(), &families).unwrap();
    let events = db.cf_handle("events").unwrap();
    let key = [&1_u32.to_be_bytes()[..], &0_u64.to_be_bytes()[..]].concat();
    let mut block = db.get_cf(events, &key).unwrap().unwrap();
    block[1..9].copy_from_slice(&(1_u64 << 63).to_be_bytes());
    db.put_cf(events, &key, &block).unwrap();
    drop(db);

    let log = open(dir.path());
    let why = read(&log, Topic::Events, P, 0, ALL).unwrap_err().to_string();
    assert!(
        why.contains("9223372036854775808 ms, which is not a possible time"),
        "{why}"
    );
    let why = append(&log, vec![(P, record("c"))]).unwrap_err().to_string();
    assert!(why.contains("takes no more records"), "{why}");
    append(&log, vec![(Partition(2), record("d"))]).unwrap();
    let times: Vec<u64> = read(&log, Topic::Events, Partition(2), 0, ALL)
        .unwrap()
        .iter()
        .map(|one| one.ts)
        .collect();
    assert_eq!(times, [1_000, 1_000], "nor is it the time of the others");
}
