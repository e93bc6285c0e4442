//! Topics that are being filled with the events of other ones, and how other topics stop taking events.
//!
//! *Time.* While it is filled, the topic of events has `message.timestamp.type=CreateTime`, so records keep the time that they are
//! given, and no engine starts on it. Finishing sets `LogAppendTime`; records that are there keep their time.
//!
//! *No transactions* (`docs/publishing.md`). The producer is idempotent and ends at the first record that it cannot deliver, so
//! after a failure or a death each partition has the first of its records, without a gap.
//!
//! *Closing.* A topic takes no more events when `max.message.bytes` is smaller than an event. Brokers learn that one after the
//! other, so a record is sent to each partition until its leader refuses it.

use super::KafkaReader;
use super::admin;
use super::client::{REQUEST_BYTES_MAX, log_line, unwritten};
use super::settings::Connection;
use super::topics::{
    CLOSED_MESSAGE_BYTES, MESSAGE_BYTES, RequestedTopics, TIMESTAMP_TYPE, TIMESTAMPS_GIVEN, TIMESTAMPS_OF_BROKERS,
};
use crate::clock::Clock;
use crate::log::{CopiedEvent, Error, FillingLog, ID_HEADER, Limit, Reader as _, Record, TRACE_HEADER, locked};
use crate::presence::{Offset, Partition};
use crate::topics::Topic;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// How long records may be on their way.
const DELIVERED_WITHIN_MS: u64 = 60_000;
/// How long requests of an earlier process that was killed may take to arrive.
const SETTLE: Duration = Duration::from_secs(1);
/// How long the brokers may take to learn that a topic is closed, and how often that is tried.
const CLOSED_WITHIN_MS: u64 = 60_000;
const CLOSED_PAUSE: Duration = Duration::from_millis(200);
const POLL: Duration = Duration::from_millis(10);

/// See [`FillingLog`].
pub struct KafkaFilling {
    connection: Connection,
    topic: String,
    reader: KafkaReader,
    producer: BaseProducer<Deliveries>,
    clock: Arc<dyn Clock>,
}

/// What is on its way, and the first failure.
#[derive(Default)]
struct Deliveries {
    left: AtomicUsize,
    failure: Mutex<Option<KafkaError>>,
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka");
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        if let Err((error, _)) = result {
            locked(&self.failure).get_or_insert(error.clone());
        }
        self.left.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Whether an earlier process has begun to fill the topics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Begun {
    Before,
    NotYet,
}

fn wanted((partitions, replication): (u32, Option<usize>)) -> RequestedTopics {
    RequestedTopics {
        partitions: Some(partitions),
        replication,
        ..RequestedTopics::default()
    }
}

impl KafkaFilling {
    /// Returns whether the topics can be filled: `None` if they are finished, or if an engine uses them. The errors are those of
    /// [`KafkaFilling::open`]. Creates nothing. Blocks.
    pub fn judge(connection: &Connection, number: (u32, Option<usize>)) -> Result<Option<Begun>, admin::Error> {
        let Some(events) = admin::events_to_fill(connection, wanted(number))? else {
            return Ok(Some(Begun::NotYet));
        };
        let by = events.settings.get(TIMESTAMP_TYPE);
        let is_unfinished = by.is_some_and(|by| by == TIMESTAMPS_GIVEN);
        Ok(is_unfinished.then_some(Begun::Before))
    }

    /// Opens topics to fill them, or creates them. Returns `None` if they are finished, or if an engine uses them. Blocks.
    pub fn open(
        connection: Connection,
        (partitions, replication): (u32, Option<usize>),
        clock: Arc<dyn Clock>,
    ) -> Result<Option<KafkaFilling>, admin::Error> {
        let number = (partitions, replication);
        match KafkaFilling::judge(&connection, number)? {
            None => return Ok(None),
            Some(Begun::Before) => thread::sleep(SETTLE),
            Some(Begun::NotYet) => {}
        }
        admin::create_to_fill(&connection, wanted(number))?;
        let failed = |error: Error| admin::Error::Failed {
            what: "the new topics cannot be used".to_owned(),
            cause: error.to_string(),
        };
        let reader = KafkaReader::connect(connection.clone(), clock.clone()).map_err(failed)?;
        let mut config = connection.client("rollcall-reshard");
        config
            .set("enable.idempotence", "true")
            .set("enable.gapless.guarantee", "true")
            .set("message.timeout.ms", "0")
            .set("compression.type", "lz4")
            .set("linger.ms", "5")
            .set("message.max.bytes", REQUEST_BYTES_MAX)
            .set("queue.buffering.max.messages", "0")
            .set("queue.buffering.max.kbytes", "262144");
        let producer = config.create_with_context(Deliveries::default());
        Ok(Some(KafkaFilling {
            topic: connection.topic(Topic::Events),
            connection,
            reader,
            producer: producer.map_err(|error| failed(unwritten("a producer", &error)))?,
            clock,
        }))
    }
}

impl FillingLog for KafkaFilling {
    fn partitions(&self) -> u32 {
        self.reader.partitions()
    }

    fn read(&mut self, partition: Partition, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<(), Error> {
        self.reader.read(Topic::Events, partition, from, limit, into)
    }

    fn append(&mut self, events: Vec<(Partition, CopiedEvent)>) -> Result<(), Error> {
        for (partition, event) in &events {
            let mut record = BaseRecord::<[u8], [u8]>::to(&self.topic)
                .partition(partition.0 as i32)
                .timestamp(event.ts as i64);
            if let Some(key) = &event.key {
                record = record.key(key);
            }
            if let Some(value) = &event.value {
                record = record.payload(value);
            }
            if event.headers.is_some() {
                record = record.headers(headers(event));
            }
            send(&self.producer, record).map_err(|error| unwritten("copied events", &error))?;
        }
        delivered(&self.producer, &*self.clock, DELIVERED_WITHIN_MS).map_err(|error| unwritten("copied events", &error))
    }

    fn finish(&mut self) -> Result<(), Error> {
        admin::alter_events(&self.connection, TIMESTAMP_TYPE, TIMESTAMPS_OF_BROKERS)
            .map_err(|error| Error::Write(error.to_string().into()))
    }
}

fn headers(event: &CopiedEvent) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new();
    let Some(of) = &event.headers else { return headers };
    let schema = of.schema.as_ref().map(|schema| (schema.name, &*schema.value));
    let trace = of.traceparent.as_deref().map(|trace| (TRACE_HEADER, trace));
    let id = of.id.as_deref().map(|id| (ID_HEADER, id));
    for (key, value) in schema.into_iter().chain(trace).chain(id) {
        headers = headers.insert(Header {
            key,
            value: Some(value),
        });
    }
    headers
}

fn send(producer: &BaseProducer<Deliveries>, record: BaseRecord<'_, [u8], [u8]>) -> Result<(), KafkaError> {
    let mut record = record;
    loop {
        match producer.send(record) {
            Ok(()) => {
                producer.context().left.fetch_add(1, Ordering::AcqRel);
                return Ok(());
            }
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                producer.poll(POLL);
                record = back;
            }
            Err((error, _)) => return Err(error),
        }
    }
}

/// Waits until everything has arrived.
fn delivered(producer: &BaseProducer<Deliveries>, clock: &dyn Clock, within_ms: u64) -> Result<(), KafkaError> {
    let until_ms = clock.monotonic_ms() + within_ms;
    loop {
        producer.poll(POLL);
        let context = producer.context();
        if let Some(failure) = locked(&context.failure).take() {
            return Err(failure);
        }
        if context.left.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        if clock.monotonic_ms() >= until_ms {
            return Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut));
        }
    }
}

/// Has the brokers refuse events from now on, and returns when the leader of each partition does. `probe` is an event without
/// effect: a leader that does not know yet appends it. Blocks.
pub fn close_events(connection: &Connection, probe: &[u8], clock: &dyn Clock) -> Result<(), admin::Error> {
    let topic = connection.topic(Topic::Events);
    let failed = |cause: String| admin::Error::Failed {
        what: format!("{topic} cannot be closed"),
        cause,
    };
    let Some(events) = admin::events(connection)? else {
        return Err(failed("there is no such topic".to_owned()));
    };
    admin::alter_events(connection, MESSAGE_BYTES, &CLOSED_MESSAGE_BYTES.to_string())?;
    let mut config = connection.client("rollcall-reshard");
    config.set("acks", "all").set("linger.ms", "0");
    let producer: BaseProducer<Deliveries> = config
        .create_with_context(Deliveries::default())
        .map_err(|error| failed(unwritten("a producer", &error).to_string()))?;
    let until_ms = clock.monotonic_ms() + CLOSED_WITHIN_MS;
    for partition in 0..events.partitions as i32 {
        loop {
            let record = BaseRecord::<[u8], [u8]>::to(&topic).partition(partition).payload(probe);
            let sent = send(&producer, record).and_then(|()| delivered(&producer, clock, DELIVERED_WITHIN_MS));
            match sent {
                Err(error) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::MessageSizeTooLarge) => break,
                Err(error) => return Err(failed(unwritten("a probe", &error).to_string())),
                Ok(()) if clock.monotonic_ms() >= until_ms => {
                    return Err(failed(format!(
                        "the leader of partition {partition} still takes events"
                    )));
                }
                Ok(()) => thread::sleep(CLOSED_PAUSE),
            }
        }
    }
    Ok(())
}

/// Returns whether a topic of events was closed by [`close_events`]. Blocks.
pub fn is_closed(connection: &Connection) -> Result<bool, admin::Error> {
    let events = admin::events(connection)?;
    let bytes = events.and_then(|events| events.settings.get(MESSAGE_BYTES)?.parse::<u64>().ok());
    Ok(bytes.is_some_and(|bytes| bytes <= CLOSED_MESSAGE_BYTES))
}
