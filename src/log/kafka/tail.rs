//! Outputs as they come: the newest changes and kicks of every partition in memory, for all who follow them, and older
//! ones from the brokers ([`HistoryReaders`]).
//!
//! Read by one thread, committed records alone. That thread never waits: a partition that cannot be read is tried again
//! later, after a pause of its own, and what is asked of brokers is asked by a second thread.

use super::KafkaLog;
use super::client::spawn;
use super::history_readers::HistoryReaders;
use super::partition_reader::{PartitionReader, Source, Wake};
use crate::clock::Clock;
use crate::failpoint;
use crate::log::{Error, Limit, Range, Record, Topic, locked};
use crate::presence::{Offset, Partition};
use crate::tasks::End;
use rdkafka::config::ClientConfig;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
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
/// The thread looks around at least this often.
const IDLE_MS: u64 = 500;
/// How often the brokers are asked about one of the lanes that gave nothing lately.
const LOOK_AFTER: Duration = Duration::from_millis(500);
/// A lane that gave nothing for so long is quiet.
const QUIET_MS: u64 = 5_000;
/// Before a lane that failed is read again: the first pause, doubled each time, and the longest.
const PAUSE_MS: u64 = 200;
const PAUSE_MS_MAX: u64 = 5_000;

type Key = (Topic, Partition);

/// The newest outputs of a partition.
struct TailBuffer {
    name: Arc<str>,
    ring: VecDeque<Record>,
    bytes: usize,
    /// Every committed record from here on is in the ring.
    first: Offset,
    /// Everything before was read.
    end: Offset,
    /// The same, with what is behind the last record and none itself, such as marks of transactions.
    reached: Offset,
    /// When it last gave something, by the monotonic clock.
    heard_ms: u64,
    /// The brokers have more than it gives: it is to be read from `end` again.
    is_stuck: bool,
}

impl TailBuffer {
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
    clock: Arc<dyn Clock>,
    source: Arc<Source>,
    buffers: BTreeMap<Key, Mutex<TailBuffer>>,
    older: HistoryReaders,
    /// Since when no broker has answered, by the monotonic clock.
    unanswered_since_ms: Mutex<Option<u64>>,
}

/// Tells the thread that reads which lanes to look at, each once until it has looked.
struct WakeFlag {
    key: Key,
    is_rung: AtomicBool,
    rung: Sender<Key>,
}

impl WakeFlag {
    fn ring(&self) {
        if !self.is_rung.swap(true, Ordering::AcqRel) {
            // Nobody listens any more when the log is gone.
            let _ = self.rung.send(self.key);
        }
    }
}

/// A lane as the thread that reads has it.
struct BufferReader {
    partition_reader: PartitionReader,
    wake_flag: Arc<WakeFlag>,
    /// How often in a row it could not be read.
    failures: u32,
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
        let mut buffers = BTreeMap::new();
        for topic in FOLLOWED {
            for partition in (0..partitions).map(Partition) {
                let name = name(topic);
                let (_, end) = source.ask_range(&name, partition)?;
                let buffer = TailBuffer {
                    name,
                    ring: VecDeque::new(),
                    bytes: 0,
                    first: Offset(end),
                    end: Offset(end),
                    reached: Offset(end),
                    heard_ms: clock.monotonic_ms(),
                    is_stuck: false,
                };
                buffers.insert((topic, partition), Mutex::new(buffer));
            }
        }
        Ok(Tail {
            older: HistoryReaders::new(config, clock.clone(), partitions),
            clock,
            source,
            buffers,
            unanswered_since_ms: Mutex::new(None),
        })
    }

    /// For how long no broker has answered. They are asked all the time, also by a node without partitions.
    pub fn unanswered_ms(&self) -> Option<u64> {
        let since_ms = *locked(&self.unanswered_since_ms);
        since_ms.map(|since_ms| self.clock.monotonic_ms().saturating_sub(since_ms))
    }

    /// Reads on, for as long as the log lives.
    pub fn follow(&self, log: Weak<KafkaLog>) -> Result<(), Error> {
        let (rung, rings) = channel();
        let mut followed = BTreeMap::new();
        for (key, buffer) in &self.buffers {
            let wake_flag = Arc::new(WakeFlag {
                key: *key,
                is_rung: AtomicBool::new(false),
                rung: rung.clone(),
            });
            let rings = wake_flag.clone();
            let wake: Wake = Box::new(move || rings.ring());
            let (topic, partition) = *key;
            let name = locked(buffer).name.clone();
            let partition_reader = PartitionReader::new(&self.source, Some(topic), name, partition, Some(wake))?;
            let failures = 0;
            followed.insert(
                *key,
                BufferReader {
                    partition_reader,
                    wake_flag,
                    failures,
                },
            );
        }
        let bells: Vec<Arc<WakeFlag>> = followed.values().map(|buffer| buffer.wake_flag.clone()).collect();
        // Reading starts them.
        bells.iter().for_each(|wake_flag| wake_flag.ring());
        let (looks_at, clock) = (log.clone(), self.clock.clone());
        spawn("kafka-tail", move || read_lanes(&log, followed, &rings, &*clock))?;
        spawn("kafka-tail-look", move || look_after_lanes(&looks_at, &bells))
    }

    /// Reads what there is of a lane; whether there was anything.
    fn advance(&self, key: Key, partition_reader: &mut PartitionReader) -> Result<bool, Error> {
        let Some(buffer) = self.buffers.get(&key) else {
            return Ok(false);
        };
        let mut any = false;
        loop {
            let (from, is_stuck) = {
                let mut buffer = locked(buffer);
                (buffer.end, std::mem::take(&mut buffer.is_stuck))
            };
            if is_stuck {
                partition_reader.restart()?;
            }
            let mut records = Vec::new();
            match partition_reader.read_here(from, LIMIT, &mut records) {
                Ok(_) => {}
                // Retention overtook it: what is there is shown, and who wants what is gone is told.
                Err(Error::Gone { start, .. }) => {
                    let mut buffer = locked(buffer);
                    buffer.ring.clear();
                    buffer.bytes = 0;
                    (buffer.first, buffer.end, buffer.reached) = (start, start, start);
                    any = true;
                    continue;
                }
                Err(error) => return Err(error),
            }
            let none = records.is_empty();
            let mut buffer = locked(buffer);
            buffer.push(records);
            buffer.end = partition_reader.next().unwrap_or(from);
            buffer.reached = partition_reader.reached();
            if !none {
                buffer.heard_ms = self.clock.monotonic_ms();
            }
            if none {
                return Ok(any);
            }
            any = true;
        }
    }

    /// What is kept and what was read.
    pub fn range(&self, topic: Topic, partition: Partition) -> Option<Result<Range, Error>> {
        let buffer = self.buffers.get(&(topic, partition))?;
        let (name, end) = {
            let buffer = locked(buffer);
            (buffer.name.clone(), buffer.end)
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
        if let Some(buffer) = self.buffers.get(&(topic, partition)) {
            let buffer = locked(buffer);
            if from >= buffer.first {
                let begin = buffer.ring.partition_point(|record| record.offset < from);
                let mut bytes = 0;
                for record in buffer.ring.range(begin..).take(limit.records) {
                    if bytes > 0 && bytes >= limit.bytes {
                        break;
                    }
                    bytes += size(record);
                    into.push(record.clone());
                }
                return Ok(());
            }
        }
        self.older.read((topic, name), partition, from, limit, into)
    }

    /// Asks the brokers about a lane that is quiet; whether it is to be read again from where it is, since they have more
    /// than it gives. After a change of leaders librdkafka may sit still for ever.
    fn is_stuck(&self, key: Key) -> bool {
        let Some(buffer) = self.buffers.get(&key) else {
            return false;
        };
        let now_ms = self.clock.monotonic_ms();
        let name = {
            let mut buffer = locked(buffer);
            if now_ms.saturating_sub(buffer.heard_ms) <= QUIET_MS {
                return false;
            }
            buffer.heard_ms = now_ms;
            buffer.name.clone()
        };
        let end = self.source.glance(&name, key.1);
        let mut unanswered = locked(&self.unanswered_since_ms);
        let Some(end) = end else {
            unanswered.get_or_insert(now_ms);
            return false;
        };
        *unanswered = None;
        drop(unanswered);
        let mut buffer = locked(buffer);
        buffer.is_stuck = end > buffer.reached.0;
        if buffer.is_stuck {
            let (partition, next) = (key.1, buffer.end);
            tracing::warn!(topic = %name, %partition, %next, end, "fetch is stalled: the broker has more records; restarting it");
        }
        buffer.is_stuck
    }
}

/// The thread that reads.
fn read_lanes(
    log: &Weak<KafkaLog>,
    mut followed: BTreeMap<Key, BufferReader>,
    rings: &Receiver<Key>,
    clock: &dyn Clock,
) -> End {
    // Lanes that failed, and when each is read again.
    let mut paused: BTreeMap<Key, u64> = BTreeMap::new();
    loop {
        let now_ms = clock.monotonic_ms();
        let over = paused.iter().find(|(_, at_ms)| **at_ms <= now_ms).map(|(key, _)| *key);
        let key = match over {
            Some(key) => {
                paused.remove(&key);
                key
            }
            None => {
                let pause = paused.values().map(|at_ms| at_ms.saturating_sub(now_ms)).min();
                let wait_ms = pause.map_or(IDLE_MS, |pause| pause.clamp(1, IDLE_MS));
                match rings.recv_timeout(Duration::from_millis(wait_ms)) {
                    Ok(key) => key,
                    Err(RecvTimeoutError::Timeout) if log.strong_count() == 0 => return End::Asked,
                    Err(RecvTimeoutError::Timeout) => continue,
                    Err(RecvTimeoutError::Disconnected) => return End::Asked,
                }
            }
        };
        let Some(log) = log.upgrade() else { return End::Asked };
        failpoint::reach("tail");
        let Some(buffer) = followed.get_mut(&key) else { continue };
        // Before reading, so that what comes meanwhile rings again.
        buffer.wake_flag.is_rung.store(false, Ordering::Release);
        let (topic, partition) = key;
        match log.tail().advance(key, &mut buffer.partition_reader) {
            Ok(any) => {
                if std::mem::take(&mut buffer.failures) > 0 {
                    tracing::info!(%topic, %partition, "outputs are followed again");
                }
                if any {
                    log.tell(topic, partition);
                }
            }
            Err(error) => {
                if buffer.failures == 0 {
                    tracing::warn!(%topic, %partition, %error, "outputs cannot be followed, retrying");
                }
                // It does not ring while it rests; the others are read meanwhile.
                buffer.wake_flag.is_rung.store(true, Ordering::Release);
                let pause_ms = (PAUSE_MS << buffer.failures.min(8)).min(PAUSE_MS_MAX);
                buffer.failures = buffer.failures.saturating_add(1);
                paused.insert(key, clock.monotonic_ms() + pause_ms);
            }
        }
    }
}

/// The thread that asks, lane by lane.
fn look_after_lanes(log: &Weak<KafkaLog>, bells: &[Arc<WakeFlag>]) -> End {
    for wake_flag in bells.iter().cycle() {
        std::thread::sleep(LOOK_AFTER);
        let Some(log) = log.upgrade() else { break };
        if log.tail().is_stuck(wake_flag.key) {
            wake_flag.ring();
        }
    }
    End::Asked
}
