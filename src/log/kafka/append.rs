//! Appends events to their partitions with an idempotent producer. Each record is acknowledged by all in-sync replicas.
//!
//! Events are never appended in a transaction, not even one event for every partition: a read-committed client may be
//! shown a record of an aborted transaction (docs/publishing.md). If a part of an append failed, its result says so,
//! and the publisher repeats it.

use super::calls::drop_later;
use super::client::{REQUEST_BYTES_MAX, quiet, unwritten};
use super::owned::headers;
use crate::log::{Acknowledge, Appended, Error, NewRecord, locked};
use crate::metrics;
use crate::presence::{Offset, Partition};
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseRecord, Producer, ProducerContext, ThreadedProducer};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// How many records may be in flight; more are refused with [`Error::Busy`].
const IN_FLIGHT_MAX: usize = 400_000;

type Outgoing<'r> = BaseRecord<'r, [u8], [u8], Box<BatchSlot>>;

/// One append, until each of its records is delivered or has failed.
struct Batch {
    left: AtomicUsize,
    results: Mutex<Vec<Result<Appended, Arc<str>>>>,
    acknowledge: Mutex<Option<Acknowledge>>,
}

impl Batch {
    fn new(records: &[(Partition, NewRecord)], acknowledge: Acknowledge) -> Arc<Batch> {
        Arc::new(Batch {
            left: AtomicUsize::new(records.len()),
            results: Mutex::new(vec![Err("not sent".into()); records.len()]),
            acknowledge: Mutex::new(Some(acknowledge)),
        })
    }

    /// Builds the producer's record for record `at` of the batch.
    fn outgoing<'r>(self: &Arc<Self>, topic: &'r str, at: usize, record: &'r (Partition, NewRecord)) -> Outgoing<'r> {
        let (partition, record) = record;
        let place = Box::new(BatchSlot {
            batch: self.clone(),
            at,
        });
        let outgoing = BaseRecord::with_opaque_to(topic, place)
            .partition(partition.0 as i32)
            .payload(&*record.value);
        let outgoing = match record.headers.is_empty() {
            true => outgoing,
            false => outgoing.headers(headers(&record.headers)),
        };
        match &record.key {
            Some(key) => outgoing.key(&**key),
            None => outgoing,
        }
    }

    fn settle(&self, at: usize, result: Result<Appended, Arc<str>>) {
        let mut results = locked(&self.results);
        results[at] = result;
        if self.left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        let settled = std::mem::take(&mut *results);
        drop(results);
        let acknowledge = locked(&self.acknowledge).take();
        if let Some(acknowledge) = acknowledge {
            answer(acknowledge, verdict(settled));
        }
    }
}

/// Tells the publisher, and counts a failure.
fn answer(acknowledge: Acknowledge, result: Result<Vec<Appended>, Error>) {
    if result.is_err() {
        metrics::append_failed();
    }
    acknowledge(result);
}

/// Returns one result if all records were appended or none was, and otherwise the result of each record.
fn verdict(results: Vec<Result<Appended, Arc<str>>>) -> Result<Vec<Appended>, Error> {
    match results.iter().find_map(|result| result.as_ref().err()) {
        None => Ok(results.into_iter().flatten().collect()),
        Some(reason) if results.iter().all(Result::is_err) => Err(Error::Write(reason.clone())),
        Some(_) => Err(Error::Partly(results.into())),
    }
}

/// The index of a record in its batch.
struct BatchSlot {
    batch: Arc<Batch>,
    at: usize,
}

const CLOSED: &str = "the topic takes no events: `rollcall reshard --finish` has closed it. Publish to the new topics, and start the \
                      engines of those (--topic-prefix; docs/resharding.md)";
/// A record of no more bytes than this fits into a topic of events, unless that was closed.
const SMALL_BYTES: usize = 1 << 10;

/// Whether the topic refuses even small records, as one does that `rollcall reshard` has closed.
#[derive(Clone, Default)]
struct Deliveries {
    is_closed: Arc<AtomicBool>,
}

quiet!(Deliveries);

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<BatchSlot>;

    fn delivery(&self, result: &DeliveryResult<'_>, place: Box<BatchSlot>) {
        let result = match result {
            Ok(message) => {
                self.is_closed.store(false, Ordering::Release);
                Ok(appended(message.partition(), message.offset()))
            }
            Err((error, message)) => Err(self.refused(error, message)),
        };
        place.batch.settle(place.at, result);
    }
}

impl Deliveries {
    fn refused(&self, error: &KafkaError, message: &impl Message) -> Arc<str> {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::MessageSizeTooLarge) {
            return error.to_string().into();
        }
        let length = |part: Option<&[u8]>| part.map_or(0, <[u8]>::len);
        let bytes = length(message.payload()) + length(message.key());
        if bytes > SMALL_BYTES {
            let text = format!("{error}: {bytes} bytes; raise the topic's max.message.bytes");
            return text.into();
        }
        if !self.is_closed.swap(true, Ordering::AcqRel) {
            tracing::warn!(topic = message.topic(), "{CLOSED}");
        }
        format!("{}: {CLOSED}", message.topic()).into()
    }
}

fn appended(partition: i32, offset: i64) -> Appended {
    Appended {
        partition: Partition(partition.max(0) as u32),
        offset: Offset(offset.max(0) as u64),
    }
}

/// Appends events; see the module documentation.
pub struct Appender {
    topic: Arc<str>,
    config: ClientConfig,
    deliveries: Deliveries,
    /// Replaced after a fatal error.
    producer: RwLock<Arc<ThreadedProducer<Deliveries>>>,
}

impl Appender {
    /// Creates an appender for a topic, with a client's settings.
    pub fn new(topic: Arc<str>, mut config: ClientConfig) -> Result<Appender, Error> {
        config
            .set("acks", "all")
            .set("queue.buffering.max.kbytes", "524288")
            .remove("transaction.timeout.ms")
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", "20000")
            .set("retry.backoff.ms", "20")
            .set("message.max.bytes", REQUEST_BYTES_MAX)
            .set("queue.buffering.max.messages", "0");
        if config.get("linger.ms").is_none() {
            config.set("linger.ms", "2");
        }
        let deliveries = Deliveries::default();
        let producer = RwLock::new(threaded(&config, &deliveries)?);
        Ok(Appender {
            topic,
            config,
            deliveries,
            producer,
        })
    }

    /// Says so if the topic takes no events.
    pub fn closed(&self) -> Option<String> {
        let is_closed = self.deliveries.is_closed.load(Ordering::Acquire);
        is_closed.then(|| format!("{}: {CLOSED}", self.topic))
    }

    fn producer(&self) -> Result<Arc<ThreadedProducer<Deliveries>>, Error> {
        let producer = self.producer.read().unwrap_or_else(PoisonError::into_inner).clone();
        if producer.client().fatal_error().is_none() {
            return Ok(producer);
        }
        let mut slot = self.producer.write().unwrap_or_else(PoisonError::into_inner);
        if slot.client().fatal_error().is_some() {
            let failed = std::mem::replace(&mut *slot, threaded(&self.config, &self.deliveries)?);
            drop_later(failed);
        }
        Ok(slot.clone())
    }

    pub fn append(&self, records: Vec<(Partition, NewRecord)>, acknowledge: Acknowledge) {
        let producer = match self.producer() {
            Ok(producer) => producer,
            Err(error) => return answer(acknowledge, Err(error)),
        };
        if usize::try_from(producer.in_flight_count()).unwrap_or(0) + records.len() > IN_FLIGHT_MAX {
            return answer(acknowledge, Err(Error::Busy));
        }
        let batch = Batch::new(&records, acknowledge);
        for (at, record) in records.iter().enumerate() {
            if let Err((error, back)) = producer.send(batch.outgoing(&self.topic, at, record)) {
                back.delivery_opaque.batch.settle(at, Err(error.to_string().into()));
            }
        }
    }
}

fn threaded(config: &ClientConfig, deliveries: &Deliveries) -> Result<Arc<ThreadedProducer<Deliveries>>, Error> {
    let producer = config
        .create_with_context(deliveries.clone())
        .map_err(|error| unwritten("a producer of events", &error))?;
    Ok(Arc::new(producer))
}
