//! Compares the log with vectors, in random steps.

use crate::*;
use proptest::prelude::*;
use rollcall::clock::Clock;

/// The expected content of the log, in vectors.
#[derive(Default)]
struct Model {
    topics: [[Vec<Record>; Topic::ALL.len()]; 2],
    starts: [[u64; Topic::ALL.len()]; 2],
    /// The time of the log never steps back, and is one for all partitions.
    time: u64,
    positions: [Position; 2],
}

impl Model {
    fn reopen(&mut self) {
        let times = self.topics.iter().flatten().flatten().map(|record| record.ts);
        self.time = times.max().unwrap_or(0);
    }

    fn add(&mut self, topic: usize, partition: usize, record: &NewRecord) -> u64 {
        let records = &mut self.topics[partition][topic];
        let offset = records.len() as u64;
        records.push(Record {
            offset: Offset(offset),
            ts: self.time,
            key: record.key.clone(),
            value: record.value.clone(),
            is_null: false,
            headers: None,
        });
        offset
    }

    fn read(&self, topic: usize, partition: usize, from: u64, limit: Limit) -> Vec<Record> {
        let mut bytes = 0;
        let mut given = Vec::new();
        for record in self.topics[partition][topic].iter().skip(from as usize) {
            bytes += record.key.as_ref().map_or(0, Vec::len) + record.value.len();
            if !given.is_empty() && (given.len() >= limit.records || bytes > limit.bytes) {
                break;
            }
            given.push(record.clone());
        }
        given
    }
}

#[derive(Clone, Debug)]
enum Step {
    Append(Vec<(usize, NewRecord)>),
    Commit(usize, [Vec<NewRecord>; 3], u64),
    Read(usize, usize, u64, Limit),
    Retain(usize, u64),
    Clock(u64),
    Sync,
    Reopen,
}

fn any_record() -> impl Strategy<Value = NewRecord> {
    let size = prop_oneof![8 => 0..200_usize, 1 => 60_000..70_000_usize];
    let key = proptest::option::of(proptest::collection::vec(any::<u8>(), 0..20));
    (key, size, any::<u8>()).prop_map(|(key, size, byte)| NewRecord {
        headers: Vec::new(),
        key,
        value: vec![byte; size],
    })
}

fn any_step() -> impl Strategy<Value = Step> {
    let records = || proptest::collection::vec(any_record(), 0..8);
    let events = proptest::collection::vec((0..2_usize, any_record()), 0..12);
    let limit = (0..30_usize, 0..100_000_usize).prop_map(|(records, bytes)| Limit { records, bytes });
    let outputs =
        (records(), records(), records()).prop_map(|(changes, kicks, quarantine)| [changes, kicks, quarantine]);
    prop_oneof![
        6 => events.prop_map(Step::Append),
        4 => (0..2_usize, outputs, any::<u64>()).prop_map(|(of, outputs, next)| Step::Commit(of, outputs, next)),
        6 => (0..4_usize, 0..2_usize, 0..150_u64, limit).prop_map(|(topic, of, from, limit)| Step::Read(topic, of, from, limit)),
        2 => (0..2_usize, 0..150_u64).prop_map(|(of, floor)| Step::Retain(of, floor)),
        1 => (900..2_000_u64).prop_map(Step::Clock),
        1 => Just(Step::Sync),
        1 => Just(Step::Reopen),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_log_does_what_a_model_does_with_reopening_anywhere(steps in proptest::collection::vec(any_step(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let clock = clock();
        let settings = Settings { partitions: Some(2), ..keeping(Some(300), Some(40_000)) };
        let again = || LocalLog::open(dir.path(), settings.clone(), clock.clone()).unwrap();
        let mut log = Some(again());
        let mut model = Model::default();
        for step in steps {
            let now = log.as_ref().unwrap();
            match step {
                Step::Append(records) => {
                    model.time = model.time.max(clock.now_ms());
                    let sent = records.iter().map(|(of, record)| (Partition(*of as u32), record.clone())).collect();
                    let went = append(now, sent).unwrap();
                    prop_assert_eq!(went.len(), records.len());
                    for (to, (of, record)) in went.iter().zip(&records) {
                        prop_assert_eq!(to.partition.0 as usize, *of);
                        prop_assert_eq!(to.offset.0, model.add(0, *of, record));
                    }
                }
                Step::Commit(of, [changes, kicks, quarantine], next) => {
                    model.time = model.time.max(clock.now_ms());
                    let end = model.topics[of][0].len() as u64;
                    let position = Position { next: Offset(next % (end + 1)), seq: next, ..Position::default() };
                    for (topic, records) in [(1, &changes), (2, &kicks), (3, &quarantine)] {
                        for record in records {
                            model.add(topic, of, record);
                        }
                    }
                    model.positions[of] = position;
                    let commit = Commit::at(position).with(OutputTopic::Changes, changes).with(OutputTopic::Kicks, kicks);
                    let commit = commit.with(OutputTopic::Quarantine, quarantine);
                    now.take_up(Partition(of as u32)).unwrap().commit(&commit).unwrap();
                }
                Step::Read(topic, of, from, limit) => {
                    let start = model.starts[of][topic];
                    match read(now, Topic::ALL[topic], Partition(of as u32), from, limit) {
                        Err(Error::Gone { start: said, .. }) => prop_assert!(from < start && said.0 == start),
                        read => prop_assert_eq!(read.unwrap(), model.read(topic, of, from, limit)),
                    }
                }
                Step::Retain(of, floor) => {
                    now.take_up(Partition(of as u32)).unwrap().retain(Offset(floor)).unwrap();
                    for topic in 0..4 {
                        let (start, end) = range(now, Topic::ALL[topic], Partition(of as u32));
                        prop_assert!(start >= model.starts[of][topic]);
                        prop_assert!(start < end || (start, end) == (0, 0));
                        prop_assert!(topic != 0 || start <= floor.max(model.starts[of][topic]));
                        model.starts[of][topic] = start;
                    }
                }
                Step::Clock(ms) => clock.set_ms(ms),
                Step::Sync => now.take_up(P).unwrap().sync().unwrap(),
                Step::Reopen => {
                    // Closed first: one at a time can own it.
                    drop(log.take());
                    log = Some(again());
                    model.reopen();
                }
            }
            let now = log.as_ref().unwrap();
            for of in 0..2 {
                for topic in 0..4 {
                    let expected = (model.starts[of][topic], model.topics[of][topic].len() as u64);
                    prop_assert_eq!(range(now, Topic::ALL[topic], Partition(of as u32)), expected);
                }
                prop_assert_eq!(now.take_up(Partition(of as u32)).unwrap().position().unwrap(), model.positions[of]);
            }
        }
        let log = log.unwrap();
        for of in 0..2 {
            for topic in 0..4 {
                let start = model.starts[of][topic];
                let all = read(&log, Topic::ALL[topic], Partition(of as u32), start, ALL).unwrap();
                prop_assert_eq!(all, model.read(topic, of, start, ALL));
            }
        }
    }
}
