//! Reading one partition of a topic from an offset on, as fast as librdkafka can: its simple consumer, which gives
//! whole batches from a queue of the partition's own.
//!
//! The crate rdkafka offers one message at a time, and of a partition's queue only after it was assigned, when some of
//! it may have gone elsewhere; so these few calls are made directly (`native`). A reader gives what the broker has from
//! the offset it was asked for, in order, or an error; it never goes on behind a gap that retention made.

use super::client::{DefaultContext, spawn, unread};
pub use super::native::Wake;
use super::native::{self, Message, PartitionQueue};
use crate::clock::Clock;
use crate::failpoint;
use crate::log::{Error, Limit, Record, Topic};
use crate::presence::{Offset, Partition};
use crate::tasks::End;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::RDKafkaRespErr;
use std::ffi::CStr;
use std::sync::Arc;
use std::time::Duration;

/// [`crate::log::SCHEMA_HEADER`], with the zero that librdkafka wants.
const SCHEMA_HEADER_NAME: &CStr = c"__value_schema_id";
/// The same of [`crate::log::TRACE_HEADER`].
const TRACE_HEADER_NAME: &CStr = c"traceparent";
const QUERY: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_secs(2);
/// After so long without a record it is asked whether there are any.
const QUIET_MS: u64 = 5_000;

/// A connection to the brokers that readers share.
pub struct Source {
    consumer: Arc<BaseConsumer<DefaultContext>>,
    clock: Arc<dyn Clock>,
}

impl Source {
    /// With a client's settings, to which it adds how to read: committed records alone, and nothing skipped.
    pub fn new(mut config: ClientConfig, clock: Arc<dyn Clock>) -> Result<Arc<Source>, Error> {
        config.remove("group.id");
        Source::of_group(config, clock)
    }

    /// The same, which can ask for the offsets of the group in the settings; it is no member.
    pub fn of_group(mut config: ClientConfig, clock: Arc<dyn Clock>) -> Result<Arc<Source>, Error> {
        config
            // A producer's, if somebody has set it.
            .remove("transaction.timeout.ms")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "error")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            // The default of a second is how long it sleeps once enough is queued: four of five seconds, in catch-up.
            .set("fetch.queue.backoff.ms", "2")
            .set("fetch.wait.max.ms", "100");
        for (key, value) in [
            ("queued.min.messages", "200000"),
            ("queued.max.messages.kbytes", "32768"),
            ("fetch.message.max.bytes", "4194304"),
        ] {
            if config.get(key).is_none() {
                config.set(key, value);
            }
        }
        let consumer: BaseConsumer<DefaultContext> = config
            .create_with_context(DefaultContext)
            .map_err(|error| Error::Open(format!("a Kafka consumer cannot be made: {error}").into()))?;
        let source = Arc::new(Source {
            consumer: Arc::new(consumer),
            clock,
        });
        let weak = Arc::downgrade(&source);
        let serve = move || {
            while let Some(source) = weak.upgrade() {
                failpoint::reach("source");
                // What is not read piles up; there are no messages here, only words.
                let _ = source.consumer.poll(Duration::from_millis(200));
            }
            End::Asked
        };
        spawn("kafka-source", serve)?;
        Ok(source)
    }

    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    pub fn consumer(&self) -> &BaseConsumer<DefaultContext> {
        &self.consumer
    }

    /// From where to where a topic's partition goes now, asked of the broker: the oldest record kept, and the end of what
    /// is committed.
    pub fn ask_range(&self, topic: &str, partition: Partition) -> Result<(u64, u64), Error> {
        let (low, high) = self
            .consumer
            .fetch_watermarks(topic, partition.0 as i32, QUERY)
            .map_err(|error| unread(&format!("the ends of {topic}, partition {partition}"), &error))?;
        Ok((low.max(0) as u64, high.max(0) as u64))
    }

    /// The end of what is committed, like [`ask_range`](Source::ask_range) with the short time-out of the stall check.
    pub fn glance(&self, topic: &str, partition: Partition) -> Option<u64> {
        let range = self.consumer.fetch_watermarks(topic, partition.0 as i32, GLANCE);
        range.ok().map(|(_, high)| high.max(0) as u64)
    }

    /// The same as was seen last, without asking; none while nothing was.
    pub fn seen_range(&self, topic: &str, partition: Partition) -> Option<(u64, u64)> {
        native::seen_range(&self.consumer, topic, partition.0 as i32)
    }
}

/// How far reading got.
#[derive(Default)]
struct ReadPosition {
    /// The record to come next; none while it is not started.
    next: Option<u64>,
    at_end: bool,
    end: u64,
}

/// One partition of a topic, to be read by one reader.
pub struct PartitionReader {
    /// None for a topic that is not one of the log's.
    topic: Option<Topic>,
    name: Arc<str>,
    partition: Partition,
    queue: PartitionQueue,
    position: ReadPosition,
    /// When it last gave a record or was looked after, by the monotonic clock.
    heard_ms: u64,
    /// Since when the broker has not answered when it was asked, by the monotonic clock, and how often in a row. Once
    /// says little of a busy machine.
    unanswered_since_ms: Option<u64>,
    unanswered: u32,
    source: Arc<Source>,
}

impl PartitionReader {
    pub fn new(
        source: &Arc<Source>,
        topic: Option<Topic>,
        name: Arc<str>,
        partition: Partition,
        wake: Option<Wake>,
    ) -> Result<PartitionReader, Error> {
        let consumer = source.consumer.clone();
        let queue = PartitionQueue::open(consumer, &name, partition.0 as i32, wake)
            .ok_or_else(|| Error::Read(format!("the topic {name} cannot be opened").into()))?;
        Ok(PartitionReader {
            topic,
            name,
            partition,
            queue,
            position: ReadPosition::default(),
            heard_ms: source.clock.monotonic_ms(),
            unanswered_since_ms: None,
            unanswered: 0,
            source: source.clone(),
        })
    }

    /// Whether everything was read that there was.
    pub fn is_at_end(&self) -> bool {
        self.position.at_end
    }

    /// The next record that it would give without being told where to go on.
    pub fn next(&self) -> Option<Offset> {
        self.position.next.map(Offset)
    }

    /// The greatest end that was seen.
    pub fn end(&self) -> Offset {
        Offset(self.position.end.max(self.position.next.unwrap_or(0)))
    }

    /// Everything before was read: the last record, and what is behind it and no record itself, such as marks of
    /// transactions and records of transactions that were aborted.
    pub fn reached(&self) -> Offset {
        let next = self.position.next.unwrap_or(0);
        Offset(if self.position.at_end {
            self.position.end.max(next)
        } else {
            next
        })
    }

    /// Since when the broker has not answered, by the monotonic clock. It is asked once nothing has come for a while.
    pub fn unanswered_since_ms(&self) -> Option<u64> {
        self.unanswered_since_ms.filter(|_| self.unanswered > 1)
    }

    /// Begins to read again from the next record on.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.position.next.map_or(Ok(()), |next| self.start(next))
    }

    fn start(&mut self, from: u64) -> Result<(), Error> {
        self.stop();
        let offset = i64::try_from(from).map_err(|_| Error::Read(format!("no offset {from}").into()))?;
        self.queue.start(offset).map_err(|error| {
            Error::Read(format!("partition {} of {} cannot be read: {error}", self.partition, self.name).into())
        })?;
        self.position.next = Some(from);
        self.position.at_end = false;
        Ok(())
    }

    fn stop(&mut self) {
        self.position.next = None;
        self.queue.stop();
    }

    /// Adds the records from an offset on that are here already; those of a busy broker may not be. A record counts for
    /// the bytes of its key and value; a batch that has begun is given whole. Once nothing has come for a while the broker
    /// is asked whether there is anything, for at most [`GLANCE`].
    pub fn read(&mut self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<(), Error> {
        if self.read_here(from, limit, into)? > 0 {
            self.heard_ms = self.source.clock.monotonic_ms();
            self.unanswered_since_ms = None;
        } else {
            self.look_after();
        }
        Ok(())
    }

    /// The same without ever asking; returns how many records it added.
    pub fn read_here(&mut self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<usize, Error> {
        if self.position.next != Some(from.0) {
            self.start(from.0)?;
        }
        let (mut records, mut bytes) = (0, 0);
        while records < limit.records && bytes < limit.bytes {
            let mut failed = None;
            let PartitionReader {
                queue, position, topic, ..
            } = self;
            let reads_headers = *topic == Some(Topic::Events);
            let (wanted, got) = queue.take(limit.records - records, |message| {
                match position.take(&message, reads_headers, into) {
                    Ok(size) if failed.is_none() => {
                        records += usize::from(size > 0);
                        bytes += size;
                    }
                    Ok(_) => {}
                    Err(error) => failed = failed.or(Some((error, position.next))),
                }
            });
            if let Some((error, next)) = failed {
                let error = self.failed(error, next);
                self.stop();
                return Err(error);
            }
            if got < wanted {
                break;
            }
        }
        Ok(records)
    }

    /// Once it has given nothing for a while: if the broker has more than it gives, it is restarted. After a change of
    /// leaders librdkafka may sit still for ever.
    fn look_after(&mut self) {
        let now_ms = self.source.clock.monotonic_ms();
        if now_ms.saturating_sub(self.heard_ms) <= QUIET_MS {
            return;
        }
        self.heard_ms = now_ms;
        let Some(next) = self.position.next else { return };
        let reached = self.reached().0;
        let end = self.source.glance(&self.name, self.partition);
        (self.unanswered_since_ms, self.unanswered) = match end {
            Some(_) => (None, 0),
            None => (
                self.unanswered_since_ms.or(Some(now_ms)),
                self.unanswered.saturating_add(1),
            ),
        };
        if end.is_some_and(|end| end > reached) {
            tracing::warn!(topic = %self.name, partition = %self.partition, next, ?end, "fetch is stalled: the broker has more records; restarting it");
            // An error is met again at the next read.
            let _ = self.start(next);
        }
    }

    /// What a failure before a record means.
    fn failed(&self, error: RDKafkaRespErr, next: Option<u64>) -> Error {
        let wanted = Offset(next.unwrap_or(0));
        match error {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET
            | RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE => {
                match (self.source.ask_range(&self.name, self.partition), self.topic) {
                    (Ok((start, _)), Some(topic)) if wanted.0 < start => Error::Gone {
                        topic,
                        partition: self.partition,
                        wanted,
                        start: Offset(start),
                    },
                    (Ok((start, end)), _) => Error::Read(
                        format!(
                            "partition {} of {} has no offset {wanted}: it goes from {start} to {end}. Was the topic \
                             made again?",
                            self.partition, self.name
                        )
                        .into(),
                    ),
                    (Err(error), _) => error,
                }
            }
            other => {
                let code: rdkafka::error::RDKafkaErrorCode = other.into();
                Error::Read(format!("partition {} of {}: {code}", self.partition, self.name).into())
            }
        }
    }
}

impl ReadPosition {
    /// Takes one message over; its size, at least 1, if it is a record.
    fn take(
        &mut self,
        message: &Message<'_>,
        reads_headers: bool,
        into: &mut Vec<Record>,
    ) -> Result<usize, RDKafkaRespErr> {
        match message.error() {
            None => {}
            Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR__PARTITION_EOF) => {
                self.at_end = true;
                // It may be less than before: elections that are unclean cut.
                self.end = message.offset();
                return Ok(0);
            }
            Some(error) => return Err(error),
        }
        let (offset, next) = (message.offset(), self.next.unwrap_or(0));
        if offset < next {
            // Left over from before it was restarted.
            return Ok(0);
        }
        let (key, value) = (message.key(), message.value());
        let size = value.map_or(0, <[u8]>::len) + key.map_or(0, <[u8]>::len);
        let header = |name| reads_headers.then(|| message.header(name)).flatten().map(Box::from);
        into.push(Record {
            offset: Offset(offset),
            ts: message.timestamp_ms(),
            key: key.map(<[u8]>::to_vec),
            value: value.map(<[u8]>::to_vec).unwrap_or_default(),
            is_null: value.is_none(),
            schema_header: header(SCHEMA_HEADER_NAME),
            traceparent: header(TRACE_HEADER_NAME),
        });
        self.next = Some(offset + 1);
        self.at_end = false;
        Ok(size.max(1))
    }
}
