//! Reading records that are no longer in memory: a few clients, shared by everybody who catches up.
//!
//! A client can read a partition one stretch at a time, so there is one reader for each client and partition, and
//! those who want the same partition take turns. How many clients and readers there are follows from the partitions and
//! never from how many ask: a client is a handful of threads and a connection to every broker.

use super::partition_reader::PartitionReader;
use super::source::Source;
use crate::clock::{Clock, Deadline};
use crate::log::{Error, Limit, Record, locked};
use crate::presence::{Offset, Partition};
use crate::topics::Topic;
use rdkafka::config::ClientConfig;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many of those who catch up in one partition are read for at a time.
const CLIENTS_MAX: usize = 4;
/// So many clients stay although nobody reads: the next read would have to wait for their connections.
const CLIENTS_KEPT: usize = 1;
/// Readers are kept, ready to go on, for as many partitions as there are, and for this many at least.
const READERS_MIN: usize = 16;
/// A reader that was not used for so long has nobody who comes back to it.
const ABANDONED_MS: u64 = 2_000;
/// A reader that was not used for so long ends. Its client goes on fetching the partition meanwhile, and nobody takes what it has: up
/// to 500 records or 512 KiB, and what a fetch returned beyond that.
const KEPT_MS: u64 = 30_000;
/// How long a broker waits with the answer to a fetch until there are records. Nobody waits here for new ones, and a fetch of other
/// records waits for the answer.
const FETCH_WAIT_MS: &str = "20";
/// How long one waits for a turn.
const TURN: Duration = Duration::from_secs(10);
/// How long a reader waits for the first record.
const WAIT: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(2);

type Key = (Topic, Partition);

/// See the module.
pub struct HistoryReaders {
    config: ClientConfig,
    clock: Arc<dyn Clock>,
    readers_max: usize,
    shared: Mutex<PoolState>,
    returned: Condvar,
}

#[derive(Default)]
struct PoolState {
    clients: Vec<Arc<Source>>,
    /// Not in use, the one used last at the end.
    idle: Vec<PooledReader>,
    /// Which client reads which partition at the moment.
    busy: Vec<(usize, Key)>,
}

struct PooledReader {
    client: usize,
    key: Key,
    used_ms: u64,
    partition_reader: PartitionReader,
}

/// Where a read can be done at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Choice {
    /// With this idle reader.
    Idle(usize),
    /// With a new reader of this client.
    New(usize),
    /// With a new client.
    NewClient,
}

/// A reader in use. It is given back when this is dropped.
struct BorrowedReader<'a> {
    older: &'a HistoryReaders,
    reader: Option<PooledReader>,
    is_good: bool,
}

impl HistoryReaders {
    /// With a client's settings. Makes no client until somebody reads.
    pub fn new(mut config: ClientConfig, clock: Arc<dyn Clock>, partitions: u32) -> HistoryReaders {
        config
            // Many partitions may be read ahead of at a time, by readers who do not come back. What a fetch returns is compressed, and
            // takes ten times as much when it is not.
            .set("queued.min.messages", "500")
            .set("queued.max.messages.kbytes", "512")
            .set("fetch.message.max.bytes", "131072")
            .set("fetch.wait.max.ms", FETCH_WAIT_MS);
        HistoryReaders {
            config,
            clock,
            readers_max: (partitions as usize).max(READERS_MIN),
            shared: Mutex::default(),
            returned: Condvar::new(),
        }
    }

    /// Adds what there is from an offset on; nothing at the end.
    pub fn read(
        &self,
        (topic, name): (Topic, Arc<str>),
        partition: Partition,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<(), Error> {
        let mut lent = self.lend((topic, partition), name, from)?;
        let Some(reader) = &mut lent.reader else {
            return Ok(());
        };
        let result = wait_for(&mut reader.partition_reader, from, limit, into);
        lent.is_good = result.is_ok();
        result
    }

    /// Ends readers that nobody has used for a while, and clients without readers. Takes a moment for each.
    pub fn end_unused(&self) {
        let now_ms = self.clock.monotonic_ms();
        let mut shared = locked(&self.shared);
        let unused: Vec<PooledReader> = shared
            .idle
            .extract_if(.., |reader| reader.used_ms + KEPT_MS <= now_ms)
            .collect();
        let places = unused.iter().map(|reader| (reader.client, reader.key));
        shared.busy.extend(places);
        drop(shared);
        unused.into_iter().for_each(|reader| self.end(reader));
        let without_readers = locked(&self.shared).take_unused_clients();
        drop(without_readers);
    }

    fn lend(&self, key: Key, name: Arc<str>, from: Offset) -> Result<BorrowedReader<'_>, Error> {
        let now_ms = self.clock.monotonic_ms();
        let shared = locked(&self.shared);
        let waited = self
            .returned
            .wait_timeout_while(shared, TURN, |shared| shared.choose(key, from, now_ms).is_none());
        let (mut shared, _) = waited.unwrap_or_else(PoisonError::into_inner);
        let Some(choice) = shared.choose(key, from, now_ms) else {
            let (topic, partition) = key;
            let text = format!(
                "too many subscriptions catch up in partition {partition} of {topic}: none of {CLIENTS_MAX} readers was \
                 free within {} s",
                TURN.as_secs()
            );
            return Err(Error::Unanswered(text.into()));
        };
        let reader = match choice {
            Choice::Idle(at) => shared.idle.remove(at),
            Choice::New(client) => self.open(&shared, client, key, name)?,
            Choice::NewClient => {
                let client = Source::new(self.config.clone(), self.clock.clone())?;
                shared.clients.push(client);
                let client = shared.clients.len() - 1;
                self.open(&shared, client, key, name)?
            }
        };
        shared.busy.push((reader.client, key));
        Ok(BorrowedReader {
            older: self,
            reader: Some(reader),
            is_good: false,
        })
    }

    fn open(
        &self,
        shared: &MutexGuard<'_, PoolState>,
        client: usize,
        key: Key,
        name: Arc<str>,
    ) -> Result<PooledReader, Error> {
        let (topic, partition) = key;
        let partition_reader = PartitionReader::new(&shared.clients[client], Some(topic), name, partition, None)?;
        Ok(PooledReader {
            client,
            key,
            used_ms: 0,
            partition_reader,
        })
    }

    /// Ends a reader, which takes a moment, while its place still counts as in use.
    fn end(&self, reader: PooledReader) {
        let place = (reader.client, reader.key);
        drop(reader);
        locked(&self.shared).busy.retain(|busy| *busy != place);
        self.returned.notify_all();
    }
}

impl PoolState {
    /// Takes out the last clients, those after the last that has a reader. A new reader has the first client that can be had, so it
    /// is the last ones that nobody needs any more.
    fn take_unused_clients(&mut self) -> Vec<Arc<Source>> {
        let idle = self.idle.iter().map(|reader| reader.client);
        let busy = self.busy.iter().map(|(client, _)| *client);
        let used = idle.chain(busy).max().map_or(0, |last| last + 1);
        let kept = used.max(CLIENTS_KEPT).min(self.clients.len());
        self.clients.split_off(kept)
    }

    fn choose(&self, key: Key, from: Offset, now_ms: u64) -> Option<Choice> {
        let idle = || self.idle.iter().enumerate().filter(|(_, reader)| reader.key == key);
        if let Some((at, _)) = idle().find(|(_, reader)| reader.partition_reader.next() == Some(from)) {
            return Some(Choice::Idle(at));
        }
        let is_used =
            |client: usize| self.busy.contains(&(client, key)) || idle().any(|(_, reader)| reader.client == client);
        if let Some(client) = (0..self.clients.len()).find(|client| !is_used(*client)) {
            return Some(Choice::New(client));
        }
        let abandoned = idle().find(|(_, reader)| reader.used_ms + ABANDONED_MS <= now_ms);
        if let Some((at, _)) = abandoned {
            return Some(Choice::Idle(at));
        }
        if self.clients.len() < CLIENTS_MAX {
            return Some(Choice::NewClient);
        }
        idle().next().map(|(at, _)| Choice::Idle(at))
    }
}

impl Drop for BorrowedReader<'_> {
    fn drop(&mut self) {
        let Some(mut reader) = self.reader.take() else { return };
        if !self.is_good {
            return self.older.end(reader);
        }
        reader.used_ms = self.older.clock.monotonic_ms();
        let mut shared = locked(&self.older.shared);
        let place = (reader.client, reader.key);
        shared.busy.retain(|busy| *busy != place);
        shared.idle.push(reader);
        let surplus = (shared.idle.len() > self.older.readers_max).then(|| shared.idle.remove(0));
        if let Some(surplus) = &surplus {
            shared.busy.push((surplus.client, surplus.key));
        }
        drop(shared);
        self.older.returned.notify_all();
        if let Some(surplus) = surplus {
            self.older.end(surplus);
        }
    }
}

/// Reads until there is something or nothing more to come.
pub fn wait_for(
    partition_reader: &mut PartitionReader,
    from: Offset,
    limit: Limit,
    into: &mut Vec<Record>,
) -> Result<(), Error> {
    let before = into.len();
    let clock = partition_reader.clock().clone();
    let deadline = Deadline::after(&*clock, WAIT);
    loop {
        partition_reader.read(from, limit, into)?;
        if into.len() > before || partition_reader.is_at_end() {
            return Ok(());
        }
        if deadline.has_passed(&*clock) {
            return Err(Error::Unanswered(
                format!(
                    "Kafka returned nothing from offset {from} on within {} s",
                    WAIT.as_secs()
                )
                .into(),
            ));
        }
        std::thread::sleep(LOOK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::log::kafka::client::mock_client;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
    use std::sync::atomic::{AtomicU64, Ordering};

    const LIMIT: Limit = Limit {
        records: 10,
        bytes: 1_000,
    };

    /// A clock of a machine on which everything takes long: each reading of it takes 100 ms.
    #[derive(Default)]
    struct SlowClock(AtomicU64);

    impl Clock for SlowClock {
        fn now_ms(&self) -> u64 {
            self.monotonic_ms()
        }

        fn monotonic(&self) -> Duration {
            Duration::from_millis(self.0.fetch_add(100, Ordering::SeqCst))
        }
    }

    #[test]
    fn a_read_without_a_broker_ends_when_its_time_is_over_however_long_each_look_takes() {
        let clock = Arc::new(SlowClock::default());
        let mut config = ClientConfig::new();
        // Nobody is there.
        config.set("bootstrap.servers", "127.0.0.1:1").set("client.id", "alone");
        let readers = HistoryReaders::new(config, clock.clone(), 1);
        let mut records = Vec::new();
        let changes = (Topic::Changes, "changes".into());
        let read = readers.read(changes, Partition(0), Offset(0), LIMIT, &mut records);
        let error = read.expect_err("no broker answers");
        assert!(matches!(error, Error::Unanswered(_)), "{error}");
        assert!(records.is_empty());
        let took_ms = clock.0.load(Ordering::SeqCst);
        assert!(took_ms < 2 * WAIT.as_millis() as u64, "{took_ms}");
    }

    #[test]
    fn a_reader_that_nobody_uses_for_half_a_minute_ends_and_the_next_read_has_a_new_one() {
        let cluster = MockCluster::new(1).expect("a broker inside of librdkafka");
        cluster.create_topic("changes", 2, 1).expect("a topic");
        let config = mock_client(&cluster);
        let producer: BaseProducer = config.create().expect("a producer");
        for partition in [0, 1] {
            let record = BaseRecord::to("changes").partition(partition).key("a").payload("b");
            producer.send(record).expect("there is room");
        }
        producer.flush(Duration::from_secs(60)).expect("it answers");
        let clock = Arc::new(ManualClock::new(1_000));
        let readers = HistoryReaders::new(config, clock.clone(), 2);
        let read = |partition| {
            let mut records = Vec::new();
            let changes = (Topic::Changes, "changes".into());
            let read = readers.read(changes, Partition(partition), Offset(0), LIMIT, &mut records);
            read.expect("read");
            assert_eq!(records.len(), 1);
        };
        let kept = || -> Vec<u32> {
            let shared = locked(&readers.shared);
            assert!(shared.busy.is_empty());
            shared.idle.iter().map(|reader| reader.key.1.0).collect()
        };
        read(0);
        clock.advance_ms(KEPT_MS - 1);
        read(1);
        readers.end_unused();
        assert_eq!(kept(), [0, 1]);
        clock.advance_ms(1);
        readers.end_unused();
        assert_eq!(kept(), [1], "the other was used a moment ago");
        read(0);
        clock.advance_ms(KEPT_MS);
        readers.end_unused();
        assert!(kept().is_empty());
        read(1);
    }

    #[test]
    fn clients_that_many_readers_at_a_time_needed_end_when_nobody_reads_except_one() {
        let cluster = MockCluster::new(1).expect("a broker inside of librdkafka");
        cluster.create_topic("changes", 1, 1).expect("a topic");
        let config = mock_client(&cluster);
        let clock = Arc::new(ManualClock::new(1_000));
        let readers = HistoryReaders::new(config, clock.clone(), 1);
        let lend = || {
            let lent = readers.lend((Topic::Changes, Partition(0)), "changes".into(), Offset(0));
            let mut lent = lent.expect("there is a reader");
            lent.is_good = true;
            lent
        };
        let clients = || locked(&readers.shared).clients.len();
        let (first, second, third) = (lend(), lend(), lend());
        assert_eq!(clients(), 3, "one reader of a partition for each");
        drop((first, third));
        clock.advance_ms(KEPT_MS);
        readers.end_unused();
        assert_eq!(clients(), 2, "the second is in use");
        drop(second);
        readers.end_unused();
        assert_eq!(clients(), 2, "it was used a moment ago");
        clock.advance_ms(KEPT_MS);
        readers.end_unused();
        assert_eq!(clients(), CLIENTS_KEPT);
        // What is left can be read with.
        drop((lend(), lend()));
        assert_eq!(clients(), 2);
    }
}
