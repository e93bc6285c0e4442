//! What a broker and its client can do at most on this machine, without any code of ours: reading and counting, and a loop that
//! reads, writes one record of ten and commits exactly once every 50 ms.
//!
//! Both use librdkafka's simple consumer, which returns batches from one queue and copies nothing.

use crate::load::Load;
use crate::partitions;
use crate::processor::{SELF, cpu_seconds};
use rdkafka::bindings as native;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rdkafka::types::{RDKafkaErrorCode, RDKafkaRespErr};
use rdkafka::{Offset, TopicPartitionList};
use rollcall::log::kafka::Node;
use rollcall::log::kafka::settings::Connection;
use rollcall::topics::Topic;
use std::ffi::CString;
use std::time::{Duration, Instant};

const BATCH: usize = 2_048;
const EVERY: Duration = Duration::from_millis(50);
const ONE_IN: usize = 10;
/// How long a batch may take to fill.
const WAIT: Duration = Duration::from_millis(20);
const CALL: Duration = Duration::from_secs(10);

/// A client that reads some partitions of a topic from their beginning, through one queue.
pub struct BareReader {
    topic: *mut native::rd_kafka_topic_t,
    queue: *mut native::rd_kafka_queue_t,
    partitions: Vec<i32>,
    messages: Vec<*mut native::rd_kafka_message_t>,
    /// Must outlive both handles.
    _consumer: BaseConsumer,
}

impl BareReader {
    pub fn open(connection: &Connection, topic: Topic, partitions: Vec<i32>) -> BareReader {
        let mut config = connection.client("bench-floor");
        config.remove("group.id");
        for (key, value) in [
            ("isolation.level", "read_committed"),
            ("enable.auto.commit", "false"),
            ("fetch.queue.backoff.ms", "2"),
            ("fetch.wait.max.ms", "100"),
            ("queued.min.messages", "500000"),
            ("fetch.message.max.bytes", "4194304"),
        ] {
            config.set(key, value);
        }
        let consumer: BaseConsumer = config.create().expect("a consumer");
        let name = CString::new(connection.topic(topic)).expect("no zero byte");
        let client = consumer.client().native_ptr();
        // SAFETY: the client lives in `_consumer`, which is dropped after the handles; a null configuration is the client's.
        let (topic, queue) = unsafe {
            let topic = native::rd_kafka_topic_new(client, name.as_ptr(), std::ptr::null_mut());
            (topic, native::rd_kafka_queue_new(client))
        };
        assert!(!topic.is_null() && !queue.is_null());
        for partition in &partitions {
            // SAFETY: both handles were made above.
            let failed = unsafe { native::rd_kafka_consume_start_queue(topic, *partition, 0, queue) };
            assert_eq!(failed, 0, "partition {partition} is read");
        }
        BareReader {
            topic,
            queue,
            partitions,
            messages: vec![std::ptr::null_mut(); BATCH],
            _consumer: consumer,
        }
    }

    /// Gives partition, offset, key and value of a batch of records, or of those that came within this time. Returns how
    /// many there were.
    pub fn take(&mut self, wait: Duration, mut each: impl FnMut(i32, i64, &[u8], &[u8])) -> usize {
        let (wait_ms, into) = (wait.as_millis() as i32, self.messages.as_mut_ptr());
        // SAFETY: the buffer has room for `BATCH` pointers.
        let got = unsafe { native::rd_kafka_consume_batch_queue(self.queue, wait_ms, into, BATCH) };
        let got = usize::try_from(got).unwrap_or(0);
        for message in &self.messages[..got] {
            // SAFETY: librdkafka gave `got` messages, each ours until it is destroyed here, after the last use.
            unsafe {
                let of = &**message;
                assert_eq!(of.err, RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR, "a record");
                let bytes = |at: *mut std::ffi::c_void, length: usize| match at.is_null() {
                    true => &[][..],
                    false => std::slice::from_raw_parts(at.cast::<u8>(), length),
                };
                each(
                    of.partition,
                    of.offset,
                    bytes(of.key, of.key_len),
                    bytes(of.payload, of.len),
                );
                native::rd_kafka_message_destroy(*message);
            }
        }
        got
    }
}

impl Drop for BareReader {
    fn drop(&mut self) {
        // SAFETY: each partition was started, and nothing uses the handles afterwards.
        unsafe {
            for partition in &self.partitions {
                native::rd_kafka_consume_stop(self.topic, *partition);
            }
            native::rd_kafka_queue_destroy(self.queue);
            native::rd_kafka_topic_destroy(self.topic);
        }
    }
}

/// Reads everything, with a client and a thread for each partition.
pub fn read(connection: &Connection, load: &Load) {
    let read: usize = std::thread::scope(|scope| {
        let readers: Vec<_> = partitions(load.ends.len() as u32)
            .zip(&load.ends)
            .map(|(partition, end)| {
                scope.spawn(move || {
                    let mut reader = BareReader::open(connection, Topic::Events, vec![partition.0 as i32]);
                    let (mut next, mut count) = (0, 0);
                    while next < end.0 as i64 {
                        reader.take(WAIT, |_, offset, _, _| {
                            assert_eq!(offset, next, "without a gap");
                            next = offset + 1;
                            count += 1;
                        });
                    }
                    count
                })
            })
            .collect();
        readers.into_iter().map(|reader| reader.join().expect("read")).sum()
    });
    assert_eq!(read, load.records);
}

/// Reads everything with one thread, writes one record of ten to another topic, and commits these and the offsets in one
/// transaction every 50 ms. Returns how long that took, and its processor time; making the clients does not count.
pub fn exactly_once(into: &Node, connection: &Connection, load: &Load) -> (Duration, f64) {
    let mut config = connection.client("bench-floor");
    config.set("group.id", &into.group);
    let group: BaseConsumer = config.create().expect("a consumer");
    let mut config = connection.client("bench-floor");
    config
        .set("transactional.id", &into.group)
        .set("linger.ms", "5")
        .set("queue.buffering.max.messages", "1000000")
        .set("retry.backoff.ms", "5");
    let producer: BaseProducer = config.create().expect("a producer");
    producer.init_transactions(CALL).expect("taken up");
    let (start, cpu) = (Instant::now(), cpu_seconds(SELF));
    let (events, changes) = (connection.topic(Topic::Events), into.connection.topic(Topic::Changes));

    let all: Vec<i32> = partitions(load.ends.len() as u32)
        .map(|partition| partition.0 as i32)
        .collect();
    let mut reader = BareReader::open(connection, Topic::Events, all.clone());
    let mut next = vec![0; all.len()];
    let (mut read, mut written) = (0_usize, 0_usize);
    producer.begin_transaction().expect("begun");
    let mut begun = Instant::now();
    let is_over = |next: &[i64]| next.iter().zip(&load.ends).all(|(next, end)| *next >= end.0 as i64);
    loop {
        reader.take(WAIT, |partition, offset, key, value| {
            next[partition as usize] = offset + 1;
            read += 1;
            if read % ONE_IN == 0 {
                written += 1;
                let mut record = BaseRecord::to(&changes).partition(partition).key(key).payload(value);
                while let Err((error, back)) = producer.send(record) {
                    assert_eq!(error, KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull));
                    producer.poll(Duration::from_millis(1));
                    record = back;
                }
            }
        });
        let is_over = is_over(&next);
        if begun.elapsed() < EVERY && !is_over {
            continue;
        }
        while producer.in_flight_count() > 0 {
            producer.poll(Duration::ZERO);
            std::thread::sleep(Duration::from_micros(200));
        }
        let mut offsets = TopicPartitionList::new();
        for (partition, next) in all.iter().zip(&next) {
            let mut element = offsets.add_partition(&events, *partition);
            element.set_offset(Offset::Offset(*next)).expect("an offset");
        }
        let metadata = group.group_metadata().expect("a group");
        producer
            .send_offsets_to_transaction(&offsets, &metadata, CALL)
            .expect("with the offsets");
        producer.commit_transaction(CALL).expect("committed");
        if is_over {
            break;
        }
        producer.begin_transaction().expect("begun");
        begun = Instant::now();
    }
    let taken = (start.elapsed(), cpu_seconds(SELF) - cpu);
    assert_eq!((read, written), (load.records, load.records / ONE_IN));
    taken
}
