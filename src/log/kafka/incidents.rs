//! The topic of incidents: one partition, and one writer among all nodes.
//!
//! The writer has a transactional producer `{group}-incidents`, which fences off every earlier one. Records and the offsets
//! up to which records were read go out in one transaction: the group's offsets in the topic that incidents are found in, which
//! nobody else uses, with the finder's note as metadata. So no other permission is needed than for outputs.

use super::KafkaLog;
use super::client::{unread, unwritten};
use super::history_readers::wait_for;
use super::owned::{OutputProducer, begin, commit, drain, headers, output_producer, send, send_offsets, serve};
use super::partition_reader::PartitionReader;
use crate::log::{Error, IncidentPosition, IncidentWriter, Limit, NewRecord, Range, Record, locked};
use crate::presence::{Offset, Partition};
use crate::topics::INCIDENTS_FOUND_IN;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::producer::{BaseRecord, Producer as _};
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long the group's coordinator may take to say the offsets.
const ANSWER: Duration = Duration::from_secs(10);

/// See [`IncidentWriter`].
pub(super) struct KafkaIncidents {
    log: Arc<KafkaLog>,
    producer: Arc<OutputProducer>,
}

impl KafkaIncidents {
    pub fn take_up(log: Arc<KafkaLog>) -> Result<KafkaIncidents, Error> {
        // A topic that is not there must not be made by a broker by itself, so nothing is sent before it is known.
        range(&log)?;
        let id = format!("{}-incidents", log.group());
        let producer = output_producer(&log, &id, "incidents").map_err(|(error, _)| error)?;
        Ok(KafkaIncidents { log, producer })
    }

    fn transact(&self, records: &[NewRecord], position: &IncidentPosition) -> Result<(), KafkaError> {
        begin(&self.producer)?;
        let producer = self.producer.direct();
        let name = self.log.incidents_topic();
        for record in records {
            let mut to = BaseRecord::<[u8], [u8]>::to(&name).partition(0).payload(&record.value);
            if let Some(key) = &record.key {
                to = to.key(key);
            }
            send(producer, to.headers(headers(&record.headers)))?;
        }
        drain(&self.producer, self.log.clock())?;
        let read = self.log.name(INCIDENTS_FOUND_IN);
        let note = BASE64.encode(&position.note);
        let mut offsets = TopicPartitionList::new();
        for (next, partition) in position.next.iter().zip(0..) {
            let mut element = offsets.add_partition(&read, partition);
            element.set_offset(KafkaOffset::Offset(next.0 as i64))?;
            element.set_metadata(&note);
        }
        send_offsets(&self.log, &self.producer, offsets)?;
        commit(&self.producer)?;
        // This reports errors of connections to the context, if there were any.
        serve(producer);
        Ok(())
    }
}

impl IncidentWriter for KafkaIncidents {
    fn position(&mut self) -> Result<Option<IncidentPosition>, Error> {
        let read = self.log.name(INCIDENTS_FOUND_IN);
        let mut wanted = TopicPartitionList::new();
        for partition in 0..self.log.node().partitions {
            wanted.add_partition(&read, partition as i32);
        }
        let what = "how far was read for incidents";
        let ask = move |consumer: &BaseConsumer<_>| consumer.committed_offsets(wanted, ANSWER);
        let found = self.log.offsets().ask("rd_kafka_committed", ANSWER, ask)?;
        let found = found.map_err(|error| unread(what, &error))?;
        let mut position = IncidentPosition::default();
        for element in found.elements() {
            element.error().map_err(|error| unread(what, &error))?;
            let KafkaOffset::Offset(next) = element.offset() else {
                return Ok(None);
            };
            position.next.push(Offset(next as u64));
            position.note = BASE64.decode(element.metadata()).unwrap_or_default();
        }
        Ok(Some(position))
    }

    fn commit(&mut self, records: &[NewRecord], position: &IncidentPosition) -> Result<(), Error> {
        // What happened before this commit says nothing of it.
        serve(self.producer.direct());
        let broken = self.producer.direct().context().broken();
        let committed = self.transact(records, position);
        committed.map_err(|error| unwritten("the commit of incidents", &error))?;
        if self.producer.direct().context().broken() != broken {
            let text = "the commit of incidents was reported as done, but a connection to a broker broke meanwhile: the \
                        committed position is read again";
            return Err(Error::Write(text.into()));
        }
        Ok(())
    }
}

/// Asks for the range of the topic, after all topics if it is not known to be there: a client that asks for the range of a missing
/// topic does not see it for minutes after it was made, and is replaced.
fn range(log: &KafkaLog) -> Result<Range, Error> {
    let name = log.incidents_topic();
    if !log.has_incidents.load(Ordering::Acquire) {
        let wanted = name.clone();
        let is_there = log.events().ask("rd_kafka_metadata", ANSWER, move |consumer| {
            let metadata = consumer.fetch_metadata(None, ANSWER)?;
            let mut topics = metadata.topics().iter();
            Ok(topics.any(|topic| topic.name() == wanted && !topic.partitions().is_empty()))
        })?;
        if !is_there.map_err(|error: KafkaError| unread("the list of topics", &error))? {
            let text = format!("there is no topic {name}; create it with rollcall topics create");
            return Err(Error::Open(text.into()));
        }
    }
    let range = log.events().ask_range(&name, Partition(0));
    log.has_incidents.store(range.is_ok(), Ordering::Release);
    let (start, end) = range?;
    Ok(Range {
        start: Offset(start),
        end: Offset(end),
    })
}

/// Adds incidents from an offset on, or from the oldest one kept, and returns what is kept.
pub(super) fn read(log: &KafkaLog, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<Range, Error> {
    let name = log.incidents_topic();
    let range = range(log)?;
    let from = from.max(range.start);
    if from >= range.end {
        return Ok(range);
    }
    let mut reader = locked(&log.incident_reader);
    let mut used = match reader.take() {
        Some(used) => used,
        None => PartitionReader::new(log.events(), None, name.into(), Partition(0), None)?,
    };
    // Kept for the next reading, unless this one fails.
    wait_for(&mut used, from, limit, into)?;
    *reader = Some(used);
    Ok(range)
}
