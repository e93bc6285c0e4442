//! Outputs as they come: the newest changes and kicks of every partition in memory, for all who follow them, and older
//! ones from the brokers.
//!
//! Read by one thread, committed records alone. Where a lane's ring does not reach back, a reader gets a tap of its own
//! for as long as it goes on where it was.

use super::KafkaLog;
use super::client::spawn;
use super::tap::{Source, Tap, Wake};
use crate::clock::Clock;
use crate::log::{Error, Limit, Range, Record, Topic, locked};
use crate::presence::{Offset, Partition};
use rdkafka::config::ClientConfig;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// What every node follows.
const FOLLOWED: [Topic; 2] = [Topic::Changes, Topic::Kicks];
/// Of a lane's ring.
const RING_BYTES: usize = 1 << 20;
const LIMIT: Limit = Limit {
    records: 2_000,
    bytes: RING_BYTES,
};
/// How many readers of older records keep a connection at a time.
const READERS_MAX: usize = 16;
/// How long a reader of older records waits for the first.
const WAIT: Duration = Duration::from_secs(5);
/// How often one of the lanes is read though nothing woke it.
const LOOK_AFTER_MS: u64 = 500;
const LOOK: Duration = Duration::from_millis(2);

/// The newest outputs of a partition.
struct Lane {
    name: Arc<str>,
    ring: VecDeque<Record>,
    bytes: usize,
    /// Every committed record from here on is in the ring.
    first: Offset,
    /// Everything before was read.
    end: Offset,
}

impl Lane {
    fn push(&mut self, records: Vec<Record>) {
        for record in records {
            self.bytes += size(&record);
            self.ring.push_back(record);
        }
        while self.bytes > RING_BYTES
            && let Some(oldest) = self.ring.pop_front()
        {
            self.bytes -= size(&oldest);
            self.first = Offset(oldest.offset.0 + 1);
        }
    }
}

fn size(record: &Record) -> usize {
    64 + record.value.len() + record.key.as_ref().map_or(0, Vec::len)
}

/// See the module.
pub struct Tail {
    config: ClientConfig,
    clock: Arc<dyn Clock>,
    source: Arc<Source>,
    lanes: BTreeMap<(Topic, Partition), Mutex<Lane>>,
    /// Readers of older records, the one used last at the end.
    readers: Mutex<Vec<(Topic, Partition, Tap)>>,
}

impl Tail {
    /// Begins at the end of what is committed now.
    pub fn new(
        config: ClientConfig,
        clock: Arc<dyn Clock>,
        partitions: u32,
        name: impl Fn(Topic) -> Arc<str>,
    ) -> Result<Tail, Error> {
        let source = Source::new(config.clone(), clock.clone())?;
        let mut lanes = BTreeMap::new();
        for topic in FOLLOWED {
            for partition in (0..partitions).map(Partition) {
                let name = name(topic);
                let (_, end) = source.ask_range(&name, partition)?;
                let lane = Lane {
                    name,
                    ring: VecDeque::new(),
                    bytes: 0,
                    first: Offset(end),
                    end: Offset(end),
                };
                lanes.insert((topic, partition), Mutex::new(lane));
            }
        }
        Ok(Tail {
            config,
            clock,
            source,
            lanes,
            readers: Mutex::new(Vec::new()),
        })
    }

    /// Reads on, for as long as the log lives.
    pub fn follow(&self, log: Weak<KafkaLog>) -> Result<(), Error> {
        let (woken, wakes) = channel();
        let mut taps = BTreeMap::new();
        for (key, lane) in &self.lanes {
            let pending = Arc::new(AtomicBool::new(false));
            let (woken, waiting, at) = (woken.clone(), pending.clone(), *key);
            let wake: Wake = Box::new(move || {
                if !waiting.swap(true, Ordering::AcqRel) {
                    // Nobody listens any more when the log is gone.
                    let _ = woken.send(at);
                }
            });
            let (topic, partition) = *key;
            let name = locked(lane).name.clone();
            let tap = Tap::new(&self.source, Some(topic), name, partition, Some(wake))?;
            taps.insert(*key, (tap, pending));
        }
        // Reading starts them.
        for key in self.lanes.keys() {
            let _ = woken.send(*key);
        }
        let keys: Vec<(Topic, Partition)> = taps.keys().copied().collect();
        let (mut turn, mut next_look_ms) = (0, 0);
        let run = move || {
            loop {
                let key = match wakes.recv_timeout(Duration::from_millis(LOOK_AFTER_MS)) {
                    Ok(key) => Some(key),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                };
                let Some(log) = log.upgrade() else { return };
                // One that sits still wakes nobody: reading it now and then is what has it looked after.
                let now_ms = log.tail().clock.monotonic_ms();
                if now_ms >= next_look_ms {
                    next_look_ms = now_ms + LOOK_AFTER_MS;
                    turn = (turn + 1) % keys.len();
                    if let Some((_, pending)) = taps.get(&keys[turn])
                        && !pending.swap(true, Ordering::AcqRel)
                    {
                        let _ = woken.send(keys[turn]);
                    }
                }
                let Some(key) = key else { continue };
                let Some((tap, pending)) = taps.get_mut(&key) else {
                    continue;
                };
                // Before reading, so that what comes meanwhile wakes again.
                pending.store(false, Ordering::Release);
                match log.tail().advance(key, tap) {
                    Ok(true) => log.tell(key.0, key.1),
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(topic = %key.0, partition = %key.1, %error, "outputs cannot be followed; trying again");
                        std::thread::sleep(Duration::from_millis(200));
                        if !pending.swap(true, Ordering::AcqRel) {
                            let _ = woken.send(key);
                        }
                    }
                }
            }
        };
        spawn("kafka-tail", run)
    }

    /// Reads what there is of a lane; whether there was anything.
    fn advance(&self, key: (Topic, Partition), tap: &mut Tap) -> Result<bool, Error> {
        let Some(lane) = self.lanes.get(&key) else {
            return Ok(false);
        };
        let mut any = false;
        loop {
            let from = locked(lane).end;
            let mut records = Vec::new();
            match tap.read(from, LIMIT, &mut records) {
                Ok(()) => {}
                // Retention overtook it: what is there is shown, and who wants what is gone is told.
                Err(Error::Gone { start, .. }) => {
                    let mut lane = locked(lane);
                    lane.ring.clear();
                    lane.bytes = 0;
                    (lane.first, lane.end) = (start, start);
                    any = true;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let none = records.is_empty();
            let mut lane = locked(lane);
            lane.push(records);
            lane.end = tap.next().unwrap_or(from);
            if none {
                return Ok(any);
            }
            any = true;
        }
    }

    /// What is kept and what was read.
    pub fn range(&self, topic: Topic, partition: Partition) -> Option<Result<Range, Error>> {
        let lane = self.lanes.get(&(topic, partition))?;
        let (name, end) = {
            let lane = locked(lane);
            (lane.name.clone(), lane.end)
        };
        let start = match self.source.seen_range(&name, partition) {
            Some((start, _)) => Ok(start),
            None => self.source.ask_range(&name, partition).map(|(start, _)| start),
        };
        Some(start.map(|start| Range {
            start: Offset(start).min(end),
            end,
        }))
    }

    /// Adds what there is from an offset on; from the ring, if it reaches back so far.
    pub fn read(
        &self,
        (topic, name): (Topic, Arc<str>),
        partition: Partition,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<(), Error> {
        if let Some(lane) = self.lanes.get(&(topic, partition)) {
            let lane = locked(lane);
            if from >= lane.first {
                let begin = lane.ring.partition_point(|record| record.offset < from);
                let mut bytes = 0;
                for record in lane.ring.range(begin..).take(limit.records) {
                    if bytes > 0 && bytes >= limit.bytes {
                        break;
                    }
                    bytes += size(record);
                    into.push(record.clone());
                }
                return Ok(());
            }
        }
        let mut tap = self.reader(topic, name, partition, from)?;
        let before = into.len();
        let result = wait_for(&mut tap, from, limit, into);
        if result.is_ok() && into.len() > before {
            let mut readers = locked(&self.readers);
            readers.push((topic, partition, tap));
            if readers.len() > READERS_MAX {
                readers.remove(0);
            }
        }
        result
    }

    /// One that goes on at this very record, or a new one: of a partition a client can read one stretch at a time.
    fn reader(&self, topic: Topic, name: Arc<str>, partition: Partition, from: Offset) -> Result<Tap, Error> {
        let mut readers = locked(&self.readers);
        let here = readers
            .iter()
            .position(|(of, at, tap)| (*of, *at, tap.next()) == (topic, partition, Some(from)));
        if let Some(here) = here {
            return Ok(readers.remove(here).2);
        }
        drop(readers);
        Tap::new(
            &Source::new(self.config.clone(), self.clock.clone())?,
            Some(topic),
            name,
            partition,
            None,
        )
    }
}

/// Reads until there is something or nothing more to come.
pub fn wait_for(tap: &mut Tap, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<(), Error> {
    let before = into.len();
    for _ in 0..WAIT.as_millis() / LOOK.as_millis() {
        tap.read(from, limit, into)?;
        if into.len() > before || tap.is_at_end() {
            return Ok(());
        }
        std::thread::sleep(LOOK);
    }
    Err(Error::Read(
        format!("Kafka gave nothing from offset {from} on within {} s", WAIT.as_secs()).into(),
    ))
}
