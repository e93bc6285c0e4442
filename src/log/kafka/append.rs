//! Events on their way to their partitions: by an idempotent producer, each record acknowledged by all replicas; and in
//! one transaction where all of them are to be there or none.

use super::client::{REQUEST_BYTES_MAX, quiet, spawn, transactional, unwritten};
use crate::failpoint;
use crate::log::{Acknowledge, Appended, Error, NewRecord, locked};
use crate::presence::{Offset, Partition};
use crate::tasks::End;
use rdkafka::config::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::message::{DeliveryResult, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer, ProducerContext, ThreadedProducer};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// How many records may be on their way; more are refused as [`Error::Busy`].
const IN_FLIGHT_MAX: usize = 400_000;
/// How many appends may wait for their transaction.
const TOGETHER_MAX: usize = 256;
const CALL: Duration = Duration::from_secs(10);

type Outgoing<'r> = BaseRecord<'r, [u8], [u8], Box<BatchSlot>>;

/// One append, until every record of it has arrived or failed.
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

    /// One of its records, on its way to a partition.
    fn outgoing<'r>(self: &Arc<Self>, topic: &'r str, at: usize, record: &'r (Partition, NewRecord)) -> Outgoing<'r> {
        let (partition, record) = record;
        let place = Box::new(BatchSlot {
            batch: self.clone(),
            at,
        });
        let outgoing = BaseRecord::with_opaque_to(topic, place)
            .partition(partition.0 as i32)
            .payload(&*record.value);
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
            acknowledge(verdict(settled));
        }
    }
}

/// All or none if it is that, else what became of each.
fn verdict(results: Vec<Result<Appended, Arc<str>>>) -> Result<Vec<Appended>, Error> {
    match results.iter().find_map(|result| result.as_ref().err()) {
        None => Ok(results.into_iter().flatten().collect()),
        Some(reason) if results.iter().all(Result::is_err) => Err(Error::Write(reason.clone())),
        Some(_) => Err(Error::Partly(results.into())),
    }
}

/// A record's place in its batch.
struct BatchSlot {
    batch: Arc<Batch>,
    at: usize,
}

struct Deliveries;

quiet!(Deliveries);

impl ProducerContext for Deliveries {
    type DeliveryOpaque = Box<BatchSlot>;

    fn delivery(&self, result: &DeliveryResult<'_>, place: Box<BatchSlot>) {
        let result = match result {
            Ok(message) => Ok(appended(message.partition(), message.offset())),
            Err((error, _)) => Err(error.to_string().into()),
        };
        place.batch.settle(place.at, result);
    }
}

fn appended(partition: i32, offset: i64) -> Appended {
    Appended {
        partition: Partition(partition.max(0) as u32),
        offset: Offset(offset.max(0) as u64),
    }
}

/// Writes events. See the module.
pub struct Appender {
    topic: Arc<str>,
    config: ClientConfig,
    /// Replaced when it has failed for good.
    producer: RwLock<Arc<ThreadedProducer<Deliveries>>>,
    together: SyncSender<TransactionalAppender>,
}

struct TransactionalAppender {
    records: Vec<(Partition, NewRecord)>,
    acknowledge: Acknowledge,
}

impl Appender {
    /// To a topic, with a client's settings. `id` is a transactional id that no other process has.
    pub fn new(topic: Arc<str>, mut config: ClientConfig, id: &str) -> Result<Appender, Error> {
        config.set("acks", "all").set("queue.buffering.max.kbytes", "524288");
        let mut together_config = config.clone();
        transactional(&mut together_config, id);
        config
            .remove("transaction.timeout.ms")
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", "20000")
            .set("retry.backoff.ms", "20")
            .set("message.max.bytes", REQUEST_BYTES_MAX)
            .set("queue.buffering.max.messages", "0");
        if config.get("linger.ms").is_none() {
            config.set("linger.ms", "2");
        }
        let producer = threaded(&config)?;
        let (together, waiting) = sync_channel(TOGETHER_MAX);
        let name = topic.clone();
        spawn("kafka-together", move || {
            append_together(&name, &together_config, &waiting);
            End::Asked
        })?;
        Ok(Appender {
            topic,
            config,
            producer: RwLock::new(producer),
            together,
        })
    }

    fn producer(&self) -> Result<Arc<ThreadedProducer<Deliveries>>, Error> {
        let producer = self.producer.read().unwrap_or_else(PoisonError::into_inner).clone();
        if producer.client().fatal_error().is_none() {
            return Ok(producer);
        }
        let mut slot = self.producer.write().unwrap_or_else(PoisonError::into_inner);
        if slot.client().fatal_error().is_some() {
            *slot = threaded(&self.config)?;
        }
        Ok(slot.clone())
    }

    pub fn append(&self, records: Vec<(Partition, NewRecord)>, acknowledge: Acknowledge) {
        let producer = match self.producer() {
            Ok(producer) => producer,
            Err(error) => return acknowledge(Err(error)),
        };
        if usize::try_from(producer.in_flight_count()).unwrap_or(0) + records.len() > IN_FLIGHT_MAX {
            return acknowledge(Err(Error::Busy));
        }
        let batch = Batch::new(&records, acknowledge);
        for (at, record) in records.iter().enumerate() {
            if let Err((error, back)) = producer.send(batch.outgoing(&self.topic, at, record)) {
                back.delivery_opaque.batch.settle(at, Err(error.to_string().into()));
            }
        }
    }

    pub fn append_together(&self, records: Vec<(Partition, NewRecord)>, acknowledge: Acknowledge) {
        let together = TransactionalAppender { records, acknowledge };
        match self.together.try_send(together) {
            Ok(()) => {}
            Err(TrySendError::Full(back)) => (back.acknowledge)(Err(Error::Busy)),
            Err(TrySendError::Disconnected(back)) => (back.acknowledge)(Err(Error::Closed)),
        }
    }
}

fn threaded(config: &ClientConfig) -> Result<Arc<ThreadedProducer<Deliveries>>, Error> {
    let producer = config
        .create_with_context(Deliveries)
        .map_err(|error| unwritten("a producer of events", &error))?;
    Ok(Arc::new(producer))
}

/// The thread of those that are to be there all or none: one transaction after the other. A producer that has failed is
/// given up; the next one settles what it had begun.
fn append_together(topic: &str, config: &ClientConfig, waiting: &Receiver<TransactionalAppender>) {
    let mut producer = None;
    while let Ok(TransactionalAppender { records, acknowledge }) = waiting.recv() {
        failpoint::reach("together");
        let taken = match producer.take() {
            Some(producer) => Ok(producer),
            None => beginning(config),
        };
        let result = taken.and_then(|taken| {
            let appended = transact(&taken, topic, &records);
            match appended {
                Ok(appended) => {
                    producer = Some(taken);
                    Ok(appended)
                }
                Err(error) => {
                    // A failed abort leaves the transaction to the broker's time-out.
                    let _ = taken.abort_transaction(CALL);
                    Err(error)
                }
            }
        });
        let result = result.map_err(|error| unwritten("events that are to be written together", &error));
        acknowledge(result);
    }
}

fn beginning(config: &ClientConfig) -> Result<BaseProducer<Deliveries>, KafkaError> {
    let producer: BaseProducer<Deliveries> = config.create_with_context(Deliveries)?;
    producer.init_transactions(CALL)?;
    Ok(producer)
}

fn transact(
    producer: &BaseProducer<Deliveries>,
    topic: &str,
    records: &[(Partition, NewRecord)],
) -> Result<Vec<Appended>, KafkaError> {
    let (arrived, results) = std::sync::mpsc::channel();
    let batch = Batch::new(
        records,
        Box::new(move |result| {
            let _ = arrived.send(result);
        }),
    );
    producer.begin_transaction()?;
    for (at, record) in records.iter().enumerate() {
        let sent = producer.send(batch.outgoing(topic, at, record));
        sent.map_err(|(error, _)| error)?;
    }
    // Every record arrives or fails within the transaction's time-out.
    let appended = loop {
        producer.poll(Duration::from_millis(1));
        if let Ok(result) = results.try_recv() {
            break result.map_err(|_| KafkaError::Canceled)?;
        }
    };
    producer.commit_transaction(CALL)?;
    Ok(appended)
}
