//! Standing by for partitions that other nodes own.
//!
//! A standby reads the events as the owner does, and learns how far the owner has committed from the group's offset and its
//! metadata. It has no producer, so it can write nothing.
//!
//! One thread serves all standbys of a process. It asks for the positions of all their partitions in one request, and it
//! writes a record to the topic of owners that says that this node stands by, and for which partitions it can answer. The
//! record is written again every few seconds: a node whose record is old is taken for dead. Its age is measured from when
//! it was read, and against the newest record of any node, so it depends on no other machine's clock, and while nothing can
//! be read of the topic, no node grows old.

use super::KafkaLog;
use super::calls::Guarded;
use super::client::{CountingContext, spawn, unread, unwritten};
use super::event_reader::EventReader;
use super::owned::position_of;
use super::owners;
use super::source::Source;
use crate::failpoint;
use crate::log::{Error, OwnerPosition, PartitionEvents, Position, StandbyNodes, StandbyPartition, locked};
use crate::presence::Partition;
use crate::tasks::End;
use crate::topics::Topic;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::Consumer as _;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// Between two questions for the committed positions.
const POLL: Duration = Duration::from_millis(200);
/// How long the group's coordinator may take to answer one.
const ANSWER: Duration = Duration::from_secs(5);
/// Between two records that say that this node stands by.
const ANNOUNCE_MS: u64 = 3_000;
/// The least time between two warnings that positions cannot be read.
const WARNING_MS: u64 = 30_000;
/// How long the last record, that this node leaves, is waited for.
const LEAVE: Duration = Duration::from_secs(1);

/// The committed position of each partition, if its group has one.
type Committed = BTreeMap<Partition, Result<Option<Position>, Error>>;

/// How far an owner has committed, as the group said.
#[derive(Clone, Copy)]
struct HeardPosition {
    /// `None`: the group has no position.
    position: Option<Position>,
    /// When it was asked for, by the monotonic clock.
    asked_ms: u64,
}

/// What the standbys of a process share.
#[derive(Default)]
pub struct SharedStandbys {
    /// The client that asks for positions, made when it is first needed.
    source: Mutex<Option<Arc<Source>>>,
    /// How far the owners have committed, of each partition that has a standby here.
    positions: Mutex<BTreeMap<Partition, HeardPosition>>,
    /// The partitions for which this node can answer. `None`: this node does not stand by.
    ready: Mutex<Option<Vec<Partition>>>,
}

impl SharedStandbys {
    fn source(&self, log: &KafkaLog) -> Result<Arc<Source>, Error> {
        let mut source = locked(&self.source);
        if let Some(source) = &*source {
            return Ok(source.clone());
        }
        let mut config = log.node().client("standby");
        config.set("group.id", log.group());
        let made = Source::of_group_as_committed(config, log.events().clock().clone())?;
        Ok(source.insert(made).clone())
    }

    /// Asks how far the owners have committed.
    fn ask(&self, log: &KafkaLog, partitions: &[Partition]) -> Result<Committed, Error> {
        let name = log.name(Topic::Events);
        let mut wanted = TopicPartitionList::new();
        for partition in partitions {
            wanted.add_partition(&name, partition.0 as i32);
        }
        let what = "the committed positions of the partitions with a standby here";
        let ask = self.source(log)?.ask("rd_kafka_committed", ANSWER, move |consumer| {
            consumer.committed_offsets(wanted, ANSWER)
        });
        let found = ask?.map_err(|error| unread(what, &error))?;
        let each = found.elements().into_iter().map(|element| {
            let partition = Partition(element.partition().max(0) as u32);
            (partition, position_of(&element, partition, log.group()))
        });
        Ok(each.collect())
    }

    /// Learns the positions, and wakes the standbys whose owners have committed more. Returns the first error, after the
    /// positions that can be read were learned.
    fn refresh(&self, log: &KafkaLog) -> Result<(), Error> {
        let partitions: Vec<Partition> = locked(&self.positions).keys().copied().collect();
        if partitions.is_empty() {
            return Ok(());
        }
        let asked_ms = log.clock().monotonic_ms();
        let found = self.ask(log, &partitions)?;
        let (mut moved, mut result) = (Vec::new(), Ok(()));
        let mut positions = locked(&self.positions);
        for (partition, position) in found {
            match (position, positions.get_mut(&partition)) {
                (Ok(position), Some(heard)) => {
                    if heard.position != position {
                        moved.push(partition);
                    }
                    *heard = HeardPosition { position, asked_ms };
                }
                // It ended meanwhile.
                (Ok(_), None) => {}
                // It stays as it was known, and grows old.
                (Err(error), _) => result = result.and(Err(error)),
            }
        }
        drop(positions);
        moved.iter().for_each(|partition| log.notify(Topic::Events, *partition));
        result
    }
}

/// A partition as a standby uses it.
pub struct KafkaStandby {
    log: Arc<KafkaLog>,
    partition: Partition,
    event_reader: EventReader,
}

impl KafkaStandby {
    pub fn open(log: Arc<KafkaLog>, partition: Partition) -> Result<KafkaStandby, Error> {
        // Not what was known before: this node may have been the owner meanwhile.
        let asked_ms = log.clock().monotonic_ms();
        let position = log.standbys().ask(&log, &[partition])?.remove(&partition);
        let position = position.transpose()?.flatten();
        if position.is_none() {
            return Err(no_position(&log, partition));
        }
        let name = log.name(Topic::Events);
        let (source, other) = log.sources(partition)?;
        // It is woken when the owner has committed.
        let event_reader = EventReader::new(&source, other, name, partition, Box::new(|| {}))?;
        locked(&log.standbys().positions).insert(partition, HeardPosition { position, asked_ms });
        Ok(KafkaStandby {
            log,
            partition,
            event_reader,
        })
    }

    fn heard(&self) -> Option<HeardPosition> {
        locked(&self.log.standbys().positions).get(&self.partition).copied()
    }
}

/// An error that passes: the owner of a partition commits its first position when it has folded an event.
fn no_position(log: &KafkaLog, partition: Partition) -> Error {
    let group = log.group();
    let text = format!(
        "the group {group:?} has no position of partition {partition} yet; the standby begins when the owner has committed one"
    );
    Error::Unanswered(text.into())
}

impl Drop for KafkaStandby {
    fn drop(&mut self) {
        locked(&self.log.standbys().positions).remove(&self.partition);
    }
}

impl StandbyPartition for KafkaStandby {
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

    fn owner_position(&self) -> Result<OwnerPosition, Error> {
        let known = self.heard().and_then(|heard| {
            let age_ms = self.log.clock().monotonic_ms().saturating_sub(heard.asked_ms);
            let position = heard.position?;
            Some(OwnerPosition { position, age_ms })
        });
        known.ok_or_else(|| no_position(&self.log, self.partition))
    }
}

/// The nodes that stand by, as the topic of owners says.
pub struct KafkaStandbyNodes {
    log: Arc<KafkaLog>,
    announcer: Mutex<Announcer>,
}

impl KafkaStandbyNodes {
    /// Begins to stand by: says so, and learns positions.
    pub fn join(log: Arc<KafkaLog>) -> Result<Arc<KafkaStandbyNodes>, Error> {
        *locked(&log.standbys().ready) = Some(Vec::new());
        let nodes = Arc::new(KafkaStandbyNodes {
            announcer: Mutex::new(Announcer::new(&log)?),
            log,
        });
        let weak: Weak<KafkaStandbyNodes> = Arc::downgrade(&nodes);
        let mut next_warning_ms = 0;
        let serve = move || {
            while let Some(nodes) = weak.upgrade() {
                failpoint::reach("standbys");
                nodes.announce_if_due();
                let now_ms = nodes.log.clock().monotonic_ms();
                if let Err(error) = nodes.log.standbys().refresh(&nodes.log)
                    && now_ms >= next_warning_ms
                {
                    next_warning_ms = now_ms + WARNING_MS;
                    tracing::warn!(%error, "standbys cannot read how far owners have committed, retrying");
                }
                drop(nodes);
                std::thread::sleep(POLL);
            }
            End::Asked
        };
        spawn("kafka-standbys", serve)?;
        Ok(nodes)
    }

    fn announce_if_due(&self) {
        // The announcer is locked first: after `leave` nothing more is said.
        let mut announcer = locked(&self.announcer);
        let ready = locked(&self.log.standbys().ready).clone();
        if let Some(ready) = ready {
            announcer.say(&self.log, ready);
        }
    }
}

impl StandbyNodes for KafkaStandbyNodes {
    fn this_node(&self) -> &str {
        &self.log.node().url
    }

    fn nodes(&self) -> Vec<String> {
        self.log.owners.standby_nodes()
    }

    fn announce(&self, ready: Vec<Partition>) {
        *locked(&self.log.standbys().ready) = Some(ready);
    }

    fn leave(&self) {
        *locked(&self.log.standbys().ready) = None;
        locked(&self.announcer).leave(&self.log);
    }
}

/// Writes the record of this node.
struct Announcer {
    producer: Arc<Guarded<BaseProducer<CountingContext>>>,
    /// What was said last, and when, by the monotonic clock.
    said: Option<(Vec<Partition>, u64)>,
}

impl Announcer {
    fn new(log: &KafkaLog) -> Result<Announcer, Error> {
        let mut config = log.node().client("standbys");
        config
            .remove("transaction.timeout.ms")
            .set("acks", "all")
            .set("linger.ms", "0")
            .set("message.timeout.ms", "3000");
        let producer: BaseProducer<CountingContext> = config
            .create_with_context(CountingContext::default())
            .map_err(|error| unwritten("a producer that says for which partitions this node stands by", &error))?;
        Ok(Announcer {
            producer: Guarded::new(log.node().client_id("standbys"), producer),
            said: None,
        })
    }

    fn say(&mut self, log: &KafkaLog, ready: Vec<Partition>) {
        let producer = self.producer.direct();
        producer.poll(Duration::ZERO);
        let now_ms = log.clock().monotonic_ms();
        let is_due = self
            .said
            .as_ref()
            .is_none_or(|(said, at_ms)| *said != ready || now_ms >= at_ms + ANNOUNCE_MS);
        // One that was lost is said again with the next.
        if is_due && producer.context().is_done() {
            let (key, value) = owners::standby_record(&log.node().url, log.group(), &ready);
            self.send(log, &key, Some(&value));
            self.said = Some((ready, now_ms));
        }
    }

    fn leave(&self, log: &KafkaLog) {
        let (key, _) = owners::standby_record(&log.node().url, log.group(), &[]);
        self.send(log, &key, None);
        // Without it the others find out by themselves.
        let _ = self
            .producer
            .call("rd_kafka_flush", LEAVE, |producer| producer.flush(LEAVE));
    }

    fn send(&self, log: &KafkaLog, key: &str, value: Option<&str>) {
        let producer = self.producer.direct();
        let name = log.owners_topic();
        let mut record = BaseRecord::<[u8], [u8]>::to(&name).partition(0).key(key.as_bytes());
        if let Some(value) = value {
            record = record.payload(value.as_bytes());
        }
        match producer.send(record) {
            Ok(()) => producer.context().sent(),
            Err((error, _)) => tracing::debug!(%error, "for which partitions this node stands by cannot be said"),
        }
    }
}
