//! A partition as its owner uses it: events come from a reader of its own, and the outputs of the fold are sent in
//! transactions by a producer of its own.
//!
//! The producer's transactional id is `{group}-{partition}`, and that is the fence: a process that takes the partition
//! makes every earlier producer with that id fail, and settles the transaction that it had begun. Then the group's
//! committed offset and its metadata say how far the outputs have been committed. Each partition has a producer, not
//! each worker: the fence then needs no generation of the group, which may change unnoticed, and a transaction that
//! fails affects only one partition. Commits are spaced out, because each takes milliseconds of a core.
//!
//! After any failure except a fence, it is not known whether a transaction has succeeded. Then the producer is dropped
//! and a new one settles the old transaction. The committed position, together with what is in the output topics,
//! shows what was committed. A reported success is not trusted either if a connection broke during the transaction:
//! librdkafka sends the end of a transaction again by itself and reports what the second answer says, while the first
//! copy may still be on its way and end the next transaction half-way (its issue 5423; the analysis of Bufstream 0.1.0
//! by Jepsen).

use super::KafkaLog;
use super::calls::{Guarded, Hung};
use super::client::{CountingContext, is_fenced, transactional, unread, unwritten};
use super::event_reader::EventReader;
use super::history_readers::wait_for;
use super::native;
use super::partition_reader::{PartitionReader, Wake};
use crate::clock::Clock;
use crate::failpoint;
use crate::log::{
    Commit, Error, Headers, Limit, OwnedPartition, PartitionEvents, Position, Range, Record, UnreadablePosition,
};
use crate::presence::{Offset, Partition};
use crate::topics::{OutputTopic, Topic};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::TopicPartitionListElem;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// The time-out of a call of a transaction.
const CALL: Duration = Duration::from_secs(10);
/// The time-out of the first call of a new producer, which may have to wait until an old producer's transaction is
/// settled.
const TAKE_UP: Duration = Duration::from_secs(30);
/// How long a new producer may take to connect to a broker before it is asked for more.
const CONNECTS: Duration = Duration::from_secs(1);
/// The least average time between two transactions of a process, over all its partitions: a transaction takes
/// milliseconds of a core, here and at the broker.
const TRANSACTION_EVERY_MS: u64 = 5;
/// A partition begins its next transaction after so many times as long as the last one took: on a machine that is busy, where
/// each takes long, there are fewer and larger ones, which cost less. At most [`PAUSE_MAX_MS`].
const PAUSE_FACTOR: u64 = 3;
const PAUSE_MAX_MS: u64 = 200;
/// If a record is on its way for longer than this, its producer is dropped, even if the client would still wait.
const DRAIN_MAX_MS: u64 = 10_000;
/// How many events of a producer are served before and after a commit.
const EVENTS_MAX: usize = 64;
/// How long a producer is flushed. After that everything has waited longer than a producer gathers.
const FLUSH: Duration = Duration::from_millis(20);
/// The time between two checks for what has arrived. A poll with a time-out of a millisecond would be a busy loop.
const DRAIN_EVERY: Duration = Duration::from_micros(200);

/// Writes the outputs of one partition.
pub(super) type OutputProducer = Guarded<BaseProducer<CountingContext>>;

/// A partition as its owner uses it; see the documentation of the module.
pub struct KafkaPartition {
    log: Arc<KafkaLog>,
    partition: Partition,
    event_reader: EventReader,
    /// The producer of the outputs. `None` after a failure: the last transaction may have succeeded or not.
    producer: Option<Arc<OutputProducer>>,
    /// How far the outputs have been committed.
    position: Position,
    /// Whether the group has a position at all.
    has_position: bool,
    /// Whether another owner was let in. If so, nothing is tried again.
    fenced: bool,
    /// Readers of the output topics, while outputs are compared.
    outputs: Vec<(OutputTopic, PartitionReader)>,
    /// The names of the output topics, each at its number.
    names: [Arc<str>; OutputTopic::ALL.len()],
    /// How long the last transaction took.
    took_ms: u64,
}

impl KafkaPartition {
    /// Takes a partition; see the documentation of the module. Waits until another owner's open transaction is
    /// settled.
    pub fn take_up(log: Arc<KafkaLog>, partition: Partition) -> Result<KafkaPartition, Error> {
        let reader = log.clone();
        let wake: Wake = Box::new(move || reader.notify(Topic::Events, partition));
        let name = log.name(Topic::Events);
        let (source, other) = log.sources(partition)?;
        let event_reader = EventReader::new(&source, other, name, partition, wake)?.reading_ahead();
        log.owned().fetch_add(1, Ordering::Relaxed);
        let names = OutputTopic::ALL.map(|topic| match topic.topic() {
            Some(topic) => log.name(topic),
            None => log.node().connection.output(topic).into(),
        });
        let mut owned = KafkaPartition {
            names,
            log,
            partition,
            event_reader,
            producer: None,
            position: Position::default(),
            has_position: false,
            fenced: false,
            outputs: Vec::new(),
            took_ms: 0,
        };
        owned.settle(true)?;
        Ok(owned)
    }

    /// Makes a new producer, which fences off every other and settles its open transaction, and reads the position.
    /// `first`: also announces to other nodes that this process has the partition.
    fn settle(&mut self, first: bool) -> Result<(), Error> {
        let partition = self.partition;
        if self.fenced {
            return Err(Error::Fenced { partition });
        }
        // The old producer's threads end before those of the new one start.
        self.producer = None;
        let what = |doing: &str| format!("partition {partition}, {doing}");
        let id = format!("{}-{partition}", self.log.group());
        let producer = output_producer(&self.log, &id, &what("taking up"));
        let producer = producer.map_err(|(error, fenced)| self.judge(fenced, error))?;
        if first {
            serve(producer.direct());
            let broken = producer.direct().context().broken();
            let announced = self.announce(&producer);
            announced.map_err(|error| {
                let fenced = is_fenced(producer.direct(), &error);
                self.judge(fenced, unwritten(&what("announcing its owner"), &error))
            })?;
            serve(producer.direct());
            // The next transaction has the same epoch, which a late copy of this one's end could commit in part.
            if producer.direct().context().broken() != broken {
                return Err(Error::Write(
                    what("a connection to a broker broke while its owner was announced").into(),
                ));
            }
        }
        failpoint::reach("take-up");
        let committed = self.committed()?;
        self.has_position = committed.is_some();
        self.position = committed.unwrap_or_default();
        self.producer = Some(producer);
        Ok(())
    }

    fn judge(&mut self, fenced: bool, error: Error) -> Error {
        if !fenced {
            return error;
        }
        self.fenced = true;
        Error::Fenced {
            partition: self.partition,
        }
    }

    /// Announces in the topic of owners that this process has the partition. This is done in a transaction, so that an
    /// owner that was fenced off cannot announce itself later.
    fn announce(&self, producer: &Arc<OutputProducer>) -> Result<(), KafkaError> {
        let (key, value) = self.log.owner_record(self.partition);
        let name = self.log.owners_topic();
        begin(producer)?;
        let record = BaseRecord::<[u8], [u8]>::to(&name).partition(0);
        send(producer.direct(), record.key(key.as_bytes()).payload(value.as_bytes()))?;
        drain(producer, self.log.clock())?;
        commit(producer)
    }

    /// Returns the position that the group has committed. No transaction may be open.
    fn committed(&self) -> Result<Option<Position>, Error> {
        let name = self.log.name(Topic::Events);
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition(&name, self.partition.0 as i32);
        let what = format!("the committed position of partition {}", self.partition);
        let ask = self.log.offsets().ask("rd_kafka_committed", TAKE_UP, move |consumer| {
            consumer.committed_offsets(wanted, TAKE_UP)
        });
        let found = ask?.map_err(|error| unread(&what, &error))?;
        let elements = found.elements();
        let Some(element) = elements.first() else {
            return Err(Error::Read(format!("{what}: the broker says nothing").into()));
        };
        position_of(element, self.partition, self.log.group())
    }

    fn output_name(&self, topic: OutputTopic) -> &Arc<str> {
        &self.names[topic.number()]
    }

    /// Sends a commit in one transaction.
    fn transact(&self, guarded: &Arc<OutputProducer>, wanted: &Commit) -> Result<(), KafkaError> {
        let Commit { outputs, position } = wanted;
        begin(guarded)?;
        failpoint::reach("begin");
        let producer = guarded.direct();
        let partition = self.partition.0 as i32;
        for (topic, records) in outputs.iter() {
            let name = self.output_name(topic);
            for record in records {
                let mut to = BaseRecord::<[u8], [u8]>::to(name).partition(partition);
                if let Some(key) = &record.key {
                    to = to.key(key);
                }
                if let Some(value) = &record.value {
                    to = to.payload(value);
                }
                send(producer, to.headers(headers(&record.headers)))?;
            }
        }
        drain(guarded, self.log.clock())?;
        failpoint::reach("send");
        let mut offsets = TopicPartitionList::new();
        let events = self.log.name(Topic::Events);
        let mut element = offsets.add_partition(&events, partition);
        element.set_offset(KafkaOffset::Offset(position.next.0 as i64))?;
        element.set_metadata(BASE64.encode(position.to_bytes()));
        send_offsets(&self.log, guarded, offsets)?;
        failpoint::reach("offsets");
        commit(guarded)?;
        failpoint::reach("commit");
        // This reports errors of connections to the context, if there were any.
        serve(producer);
        Ok(())
    }
}

/// Returns the position of a partition from the offset that the group has committed and its metadata. `None`: the group has
/// none.
pub(super) fn position_of(
    element: &TopicPartitionListElem<'_>,
    partition: Partition,
    group: &str,
) -> Result<Option<Position>, Error> {
    let what = format!("the committed position of partition {partition}");
    element.error().map_err(|error| unread(&what, &error))?;
    let KafkaOffset::Offset(offset) = element.offset() else {
        return Ok(None);
    };
    let bytes = BASE64.decode(element.metadata()).unwrap_or_default();
    let position = Position::from_bytes(&bytes);
    if let Err(later @ UnreadablePosition::Later { .. }) = position {
        return Err(Error::Read(format!("{what} {later}").into()));
    }
    let position = position.ok().filter(|position| position.next.0 as i64 == offset);
    position.map(Some).ok_or_else(|| {
        Error::Read(
            format!(
                "{what}: the group {group:?} has the offset {offset} without our position beside it, so another client has \
                 set it. Give the group its old offset and metadata back, or delete the offset (kafka-consumer-groups \
                 --delete-offsets) and start once with --adopt-tail, which compares the outputs that are there with the \
                 fold and sends only what is missing"
            )
            .into(),
        )
    })
}

impl Drop for KafkaPartition {
    fn drop(&mut self) {
        self.log.owned().fetch_sub(1, Ordering::Relaxed);
    }
}

/// Makes a producer of outputs, which fences off every other one with its transactional id and settles its open transaction.
/// An error comes with whether the new producer was itself fenced off.
pub(super) fn output_producer(log: &KafkaLog, id: &str, what: &str) -> Result<Arc<OutputProducer>, (Error, bool)> {
    let mut config = log.node().client("outputs");
    transactional(&mut config, id);
    config
        // A malformed event may have been compressed to much less than its size; its copy is compressed too.
        .set("compression.type", "lz4")
        .set("retry.backoff.max.ms", "200")
        .set("queue.buffering.max.kbytes", "262144")
        .set("batch.size", "1000000")
        // Without these, a connection that breaks is not reported at all.
        .set("log.connection.close", "true")
        .set_log_level(RDKafkaLogLevel::Info);
    let producer: BaseProducer<CountingContext> = config
        .create_with_context(CountingContext::default())
        .map_err(|error| (unwritten(what, &error), false))?;
    let producer = Guarded::new(log.node().client_id("outputs"), producer);
    // librdkafka asks for the coordinator at once and, if it is not connected to any broker yet, only half a second later. If no
    // broker answers here, the next call says so.
    let events = log.name(Topic::Events);
    let connected = producer.call("rd_kafka_metadata", CONNECTS, move |producer| {
        producer.client().fetch_metadata(Some(&events), CONNECTS).map(drop)
    });
    let _ = connected.map_err(|hung| (Hung::unwritten(hung), false))?;
    let taken = producer.call("rd_kafka_init_transactions", TAKE_UP, |producer| {
        producer.init_transactions(TAKE_UP)
    });
    let taken = taken.map_err(|hung| (Hung::unwritten(hung), false))?;
    taken.map_err(|error| (unwritten(what, &error), is_fenced(producer.direct(), &error)))?;
    Ok(producer)
}

pub(super) fn headers(of: &Headers) -> OwnedHeaders {
    let mut headers = OwnedHeaders::new_with_capacity(of.len());
    for (key, value) in of {
        headers = headers.insert(Header {
            key,
            value: Some(value),
        });
    }
    headers
}

/// Serves the events of a producer that are there, at most so many. A poll serves one.
pub(super) fn serve(producer: &BaseProducer<CountingContext>) {
    for _ in 0..EVENTS_MAX {
        if producer.in_flight_count() == 0 {
            return;
        }
        producer.poll(Duration::ZERO);
    }
}

/// Hands a record to the producer. Waits while too many records are on their way.
pub(super) fn send(
    producer: &BaseProducer<CountingContext>,
    record: BaseRecord<'_, [u8], [u8]>,
) -> Result<(), KafkaError> {
    let mut record = record;
    loop {
        match producer.send(record) {
            Ok(()) => {
                producer.context().sent();
                return Ok(());
            }
            Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                producer.poll(Duration::from_millis(5));
                record = back;
            }
            Err((error, _)) => return Err(error),
        }
    }
}

/// Waits until all records handed over have arrived or failed. `flush` alone would check only every 100 ms, and so would the
/// commit after it.
pub(super) fn drain(producer: &Arc<OutputProducer>, clock: &dyn Clock) -> Result<(), KafkaError> {
    let direct = producer.direct();
    direct.poll(Duration::ZERO);
    if direct.context().is_done() {
        return Ok(());
    }
    let flush = |producer: &BaseProducer<_>| native::flush(producer, FLUSH);
    let flushed = producer.call_ahead("rd_kafka_flush", flush).map_err(timed_out)?;
    let until_ms = clock.monotonic_ms() + DRAIN_MAX_MS;
    while !direct.context().is_done() {
        if clock.monotonic_ms() >= until_ms {
            return Err(KafkaError::MessageProduction(RDKafkaErrorCode::MessageTimedOut));
        }
        std::thread::sleep(DRAIN_EVERY);
        direct.poll(Duration::ZERO);
    }
    flushed.wait().map_err(timed_out)
}

pub(super) fn begin(producer: &OutputProducer) -> Result<(), KafkaError> {
    let begin = |producer: &BaseProducer<_>| producer.begin_transaction();
    let begun = producer.call("rd_kafka_begin_transaction", Duration::ZERO, begin);
    begun.map_err(timed_out)?
}

/// Adds offsets of the group to the transaction.
pub(super) fn send_offsets(
    log: &KafkaLog,
    producer: &OutputProducer,
    offsets: TopicPartitionList,
) -> Result<(), KafkaError> {
    let ask = |consumer: &BaseConsumer<_>| consumer.group_metadata();
    let group = log
        .offsets()
        .ask("rd_kafka_consumer_group_metadata", Duration::ZERO, ask);
    let group = group.ok().flatten().ok_or(KafkaError::Canceled)?;
    // If a coordinator is gone, librdkafka may wait until another broker comes or goes, regardless of the time-out (its issues
    // 5456 and 5511).
    let send = move |producer: &BaseProducer<_>| producer.send_offsets_to_transaction(&offsets, &group, CALL);
    let sent = producer.call("rd_kafka_send_offsets_to_transaction", CALL, send);
    sent.map_err(timed_out)?
}

pub(super) fn commit(producer: &OutputProducer) -> Result<(), KafkaError> {
    let commit = |producer: &BaseProducer<_>| producer.commit_transaction(CALL);
    let committed = producer.call("rd_kafka_commit_transaction", CALL, commit);
    committed.map_err(timed_out)?
}

fn timed_out(_: Hung) -> KafkaError {
    KafkaError::MessageProduction(RDKafkaErrorCode::OperationTimedOut)
}

impl OwnedPartition for KafkaPartition {
    fn partition(&self) -> Partition {
        self.partition
    }

    fn partitions(&self) -> u32 {
        self.log.node().partitions
    }

    fn events(&self) -> &dyn PartitionEvents {
        &self.event_reader
    }

    fn events_mut(&mut self) -> &mut dyn PartitionEvents {
        &mut self.event_reader
    }

    fn commit(&mut self, commit: &Commit) -> Result<(), Error> {
        let Some(producer) = self.producer.take() else {
            // The position was not read again after a failure, and without it nothing may be sent.
            self.settle(false)?;
            return Err(Error::Write("the last commit had to be settled first".into()));
        };
        // What happened before this commit says nothing of it.
        serve(producer.direct());
        let broken = producer.direct().context().broken();
        let began_ms = self.log.clock().monotonic_ms();
        let transacted = self.transact(&producer, commit);
        self.took_ms = self.log.clock().monotonic_ms().saturating_sub(began_ms);
        match transacted {
            Ok(()) if producer.direct().context().broken() != broken => {
                let text = format!(
                    "the commit of partition {} was reported as done, but a connection to a broker broke meanwhile: the \
                     outputs in the topics are compared before anything else is sent",
                    self.partition
                );
                Err(Error::Write(text.into()))
            }
            Ok(()) => {
                self.position = commit.position;
                self.has_position = true;
                self.producer = Some(producer);
                self.outputs.clear();
                Ok(())
            }
            Err(error) => {
                let fenced = is_fenced(producer.direct(), &error);
                let error = unwritten(&format!("the commit of partition {}", self.partition), &error);
                Err(self.judge(fenced, error))
            }
        }
    }

    fn position(&mut self) -> Result<Position, Error> {
        if self.producer.is_none() {
            self.settle(false)?;
        }
        Ok(self.position)
    }

    fn has_position(&self) -> bool {
        self.has_position
    }

    fn outputs_range(&mut self, topic: OutputTopic) -> Result<Option<Range>, Error> {
        let (start, end) = self.log.events().ask_range(self.output_name(topic), self.partition)?;
        Ok(Some(Range {
            start: Offset(start),
            end: Offset(end),
        }))
    }

    fn read_outputs(
        &mut self,
        topic: OutputTopic,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<(), Error> {
        let at = match self.outputs.iter().position(|(of, _)| *of == topic) {
            Some(at) => at,
            None => {
                let name = self.output_name(topic).clone();
                let reader = PartitionReader::new(self.log.events(), None, name, self.partition, None)?;
                self.outputs.push((topic, reader));
                self.outputs.len() - 1
            }
        };
        wait_for(&mut self.outputs[at].1, from, limit, into)
    }

    fn confirm(&mut self) -> Result<(), Error> {
        // Commits the position unchanged, in a transaction that only the owner can commit.
        let position = self.position()?;
        self.commit(&Commit::at(position))
    }

    fn sync(&mut self) -> Result<(), Error> {
        // A transaction is as durable as the topic once its commit returns.
        Ok(())
    }

    fn retain(&mut self, _: Offset) -> Result<(), Error> {
        // The topics' own retention deletes old records.
        Ok(())
    }

    fn commit_pause_ms(&self) -> u64 {
        let share_ms = self.log.owned().load(Ordering::Relaxed) * TRANSACTION_EVERY_MS;
        share_ms.max((self.took_ms * PAUSE_FACTOR).min(PAUSE_MAX_MS))
    }

    fn keeps_newest(&self) -> bool {
        true
    }

    fn keeps_headers(&self) -> bool {
        true
    }
}
