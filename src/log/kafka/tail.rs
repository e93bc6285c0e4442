//! The tail of the outputs that are followed: the newest of every partition in memory, shared by all who follow them.
//! Older outputs are read from the brokers ([`HistoryReaders`]).
//!
//! One thread reads, and only committed records. This thread never waits: a partition that cannot be read is retried
//! after a pause of its own, and a second thread asks the brokers for the ends of quiet partitions and ends readers of older
//! outputs that nobody uses.

use super::KafkaLog;
use super::client::spawn;
use super::history_readers::HistoryReaders;
use super::partition_reader::{PartitionReader, Wake};
use super::source::Source;
use crate::backoff::{self, Backoff};
use crate::clock::Clock;
use crate::failpoint;
use crate::log::{Error, Limit, Range, Record, locked};
use crate::presence::{Offset, Partition};
use crate::tasks::End;
use crate::topics::Topic;
use rdkafka::config::ClientConfig;
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// Maximum size of the records in one tail buffer.
const RING_BYTES: usize = 1 << 20;
const LIMIT: Limit = Limit {
    records: 2_000,
    bytes: RING_BYTES,
};
/// How often, at least, the reading thread wakes up.
const IDLE_MS: u64 = 500;
/// How often the brokers are asked about one of the quiet buffers.
const LOOK_AFTER: Duration = Duration::from_millis(500);
/// A buffer that has received nothing for this long is quiet.
const QUIET_MS: u64 = 5_000;

type Key = (Topic, Partition);

/// The newest outputs of a partition.
struct TailBuffer {
    name: Arc<str>,
    ring: VecDeque<Record>,
    bytes: usize,
    /// Every committed record from this offset on is in the ring.
    first: Offset,
    /// Everything before this offset was read.
    end: Offset,
    /// Like `end`, but also includes what follows the last record and is not a record itself, such as transaction
    /// markers.
    reached: Offset,
    /// When the buffer last received a record or was last checked, by the monotonic clock.
    heard_ms: u64,
    /// The brokers have more records than were received, so reading must restart at `end`.
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
    size_of::<Record>() + record.value.len() + record.key.as_ref().map_or(0, Vec::len)
}

/// See the module documentation.
pub struct RecentOutputs {
    clock: Arc<dyn Clock>,
    source: Arc<Source>,
    buffers: BTreeMap<Key, Mutex<TailBuffer>>,
    older: HistoryReaders,
    /// Since when no broker has answered, by the monotonic clock.
    unanswered_since_ms: Mutex<Option<u64>>,
}

/// Notifies the reading thread that a buffer can be read. Until the thread reads, further calls send nothing.
struct WakeFlag {
    key: Key,
    is_rung: AtomicBool,
    rung: Sender<Key>,
}

impl WakeFlag {
    fn ring(&self) {
        if !self.is_rung.swap(true, Ordering::AcqRel) {
            // The receiver is gone when the log is dropped.
            let _ = self.rung.send(self.key);
        }
    }
}

/// The reading thread's state for a buffer.
struct BufferReader {
    partition_reader: PartitionReader,
    wake_flag: Arc<WakeFlag>,
    /// The pauses before it is read again, while reading it fails.
    failing: Option<Backoff>,
}

impl RecentOutputs {
    /// Creates a tail that begins at the present end of what is committed.
    pub fn new(
        config: ClientConfig,
        clock: Arc<dyn Clock>,
        partitions: u32,
        name: impl Fn(Topic) -> Arc<str>,
    ) -> Result<RecentOutputs, Error> {
        let source = Source::new(config.clone(), clock.clone())?;
        let mut buffers = BTreeMap::new();
        for topic in Topic::ALL.into_iter().filter(|topic| topic.spec().is_followed) {
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
        Ok(RecentOutputs {
            older: HistoryReaders::new(config, clock.clone(), partitions),
            clock,
            source,
            buffers,
            unanswered_since_ms: Mutex::new(None),
        })
    }

    /// Returns for how long no broker has answered. The brokers are asked regularly, also by a node without partitions.
    pub fn unanswered_ms(&self) -> Option<u64> {
        let since_ms = *locked(&self.unanswered_since_ms);
        since_ms.map(|since_ms| self.clock.monotonic_ms().saturating_sub(since_ms))
    }

    /// Returns how many bytes all buffers together have.
    pub fn bytes(&self) -> usize {
        self.buffers.values().map(|buffer| locked(buffer).bytes).sum()
    }

    /// Starts the threads that follow the outputs. They run as long as the log exists.
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
            followed.insert(
                *key,
                BufferReader {
                    partition_reader,
                    wake_flag,
                    failing: None,
                },
            );
        }
        let bells: Vec<Arc<WakeFlag>> = followed.values().map(|buffer| buffer.wake_flag.clone()).collect();
        // The first read starts fetching.
        bells.iter().for_each(|wake_flag| wake_flag.ring());
        let (looks_at, clock) = (log.clone(), self.clock.clone());
        spawn("kafka-tail", move || read_new_outputs(&log, followed, &rings, &*clock))?;
        spawn("kafka-tail-look", move || look_after_buffers(&looks_at, &bells))
    }

    /// Reads everything that is available for a buffer. Returns whether there was anything.
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
                // Retention dropped records before they were read. Continue with the oldest record kept; a reader that
                // asks for dropped records gets an error.
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
            if !none {
                // Only quiet buffers are asked about, and of those perhaps just one whose partition has no leader.
                *locked(&self.unanswered_since_ms) = None;
            }
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

    /// Returns the range from the oldest record kept to the end of what was read.
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

    /// Adds records from an offset on to `into`: from the ring, if it reaches back that far, and otherwise from the
    /// brokers.
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

    /// Ends readers of older records that nobody uses.
    fn end_unused_readers(&self) {
        self.older.end_unused();
    }

    /// Asks the brokers about a buffer that is quiet. Returns whether reading must restart because the brokers have
    /// more records than were received. After a change of leaders librdkafka may stop fetching for ever.
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

/// The loop of the thread that reads.
fn read_new_outputs(
    log: &Weak<KafkaLog>,
    mut followed: BTreeMap<Key, BufferReader>,
    rings: &Receiver<Key>,
    clock: &dyn Clock,
) -> End {
    // Buffers whose read failed, and when each is read again.
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
        // Reset this before reading, so that records that arrive meanwhile notify the thread again.
        buffer.wake_flag.is_rung.store(false, Ordering::Release);
        let (topic, partition) = key;
        match log.tail().advance(key, &mut buffer.partition_reader) {
            Ok(any) => {
                if buffer.failing.take().is_some() {
                    tracing::info!(%topic, %partition, "outputs are followed again");
                }
                if any {
                    log.notify(topic, partition);
                }
            }
            Err(error) => {
                if buffer.failing.is_none() {
                    tracing::warn!(%topic, %partition, %error, "outputs cannot be followed, retrying");
                }
                // Suppress notifications during the pause; other buffers are read meanwhile.
                buffer.wake_flag.is_rung.store(true, Ordering::Release);
                let backoff = buffer.failing.get_or_insert_with(|| backoff::KAFKA_TAIL.start());
                let pause_ms = backoff.pause().as_millis() as u64;
                paused.insert(key, clock.monotonic_ms() + pause_ms);
            }
        }
    }
}

/// The loop of the thread that asks the brokers, about one buffer after another, and ends readers that nobody uses.
fn look_after_buffers(log: &Weak<KafkaLog>, bells: &[Arc<WakeFlag>]) -> End {
    for wake_flag in bells.iter().cycle() {
        std::thread::sleep(LOOK_AFTER);
        let Some(log) = log.upgrade() else { break };
        log.tail().end_unused_readers();
        if log.tail().is_stuck(wake_flag.key) {
            wake_flag.ring();
        }
    }
    End::Asked
}
