//! The log on Apache Kafka: partitions are shared out among nodes, and outputs go out exactly once, whatever dies.
//!
//! | file | what |
//! |---|---|
//! | `settings` | how the brokers are reached, and the names of the topics |
//! | `topics`, `admin` | making the topics and judging them |
//! | `group` | which partitions are this node's |
//! | `owned` | a partition as its owner has it: the fence, and outputs with their position in one transaction |
//! | `calls` | calls of librdkafka that do not return, and what is left behind then |
//! | `source` | the client that readers share, replaced when it is stuck |
//! | `partition_reader`, `native` | reading one partition, in batches, by calls of librdkafka that the crate does not have |
//! | `event_reader` | events as their owner reads them: a gap in the offsets is read twice |
//! | `tail`, `history_readers` | outputs for those who follow them: the newest from memory, older ones from the brokers |
//! | `append` | events on their way in |
//! | `owners` | who has which partition, and which nodes stand by |
//! | `incidents` | the topic of incidents, and its one writer |
//! | `filling` | topics that are filled with the events of other ones |
//! | `standby` | a partition as a standby has it, which can write nothing |
//!
//! Every reader reads committed records alone, and none ever skips what is gone.

pub mod admin;
mod append;
mod calls;
mod client;
mod event_reader;
mod filling;
mod follower;
mod group;
mod history_readers;
mod incidents;
#[expect(unsafe_code, reason = "librdkafka is a library of C")]
mod native;
mod owned;
mod owners;
mod partition_reader;
mod position;
pub mod settings;
mod source;
mod standby;
mod tail;
pub mod topics;

pub use filling::{KafkaFilling, close_events, is_closed};
pub use follower::KafkaFollower;
pub use group::Member;

use owners::{KnownOwners, Owner};

use crate::clock::Clock;
use crate::log::{
    Acknowledge, Error, IncidentWriter, Limit, Listener, Log, NewRecord, OwnedPartition, Owners, Position, Range,
    Reader, Record, StandbyNodes, StandbyPartition, locked,
};
use crate::presence::{Offset, Partition, Revision};
use crate::topics::{OutputTopic, Topic};
use append::Appender;
use event_reader::{OtherSource, SecondSource};
use incidents::KafkaIncidents;
use owned::KafkaPartition;
use partition_reader::PartitionReader;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::Consumer as _;
use settings::Connection;
use source::Source;
use standby::{KafkaStandby, KafkaStandbyNodes, SharedStandbys};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};
use std::time::Duration;
use tail::RecentOutputs;

const OWNERS_WAIT: Duration = Duration::from_secs(30);
const METADATA: Duration = Duration::from_secs(10);
/// Brokers that have not answered for so long are away.
const UNANSWERED_MS: u64 = 5_000;

/// Who this process is among those that work on the same topics.
#[derive(Clone, Debug)]
pub struct Node {
    pub connection: Connection,
    /// The consumer group.
    pub group: String,
    /// Where others reach its HTTP: the start of a URL.
    pub url: String,
    /// Unlike that of any other process, for its transactional id.
    pub id: String,
    pub partitions: u32,
    /// The newest revision that it knows.
    pub revision: Revision,
}

impl Node {
    /// What a client of this node begins with; `of` says what it is for.
    fn client(&self, of: &str) -> ClientConfig {
        self.connection.client(&self.client_id(of))
    }

    fn client_id(&self, of: &str) -> String {
        format!("rollcall-{}-{of}", self.id)
    }
}

/// See the module.
pub struct KafkaLog {
    /// Itself, for those who take partitions up.
    this: Weak<KafkaLog>,
    node: Node,
    /// In the order of [`Topic::ALL`].
    names: Names,
    events: Arc<Source>,
    /// Reads events a second time.
    seconds: Arc<SecondSource>,
    /// Partitions that are to be read with other fetches when they are taken up next.
    read_otherwise: Mutex<BTreeSet<Partition>>,
    /// Asks for the group's committed offsets and for the ends of topics. It is no member of the group, and reads nothing.
    offsets: Arc<Source>,
    appender: Appender,
    tail: RecentOutputs,
    owners: KnownOwners,
    standbys: SharedStandbys,
    /// Whether the topic of incidents was there when it was asked for last.
    has_incidents: AtomicBool,
    /// Reads incidents, once somebody has asked for them.
    incident_reader: Mutex<Option<PartitionReader>>,
    /// How many partitions are taken up here.
    owned: AtomicU64,
    /// After so long without a broker's answer the group gives this node's partitions to others. The member finds that out by itself,
    /// except while partitions are being shared out.
    session_ms: u64,
    listeners: RwLock<Arc<Vec<Arc<Listener>>>>,
}

impl KafkaLog {
    /// Connects, and waits until it knows who has what. Fails if another group works on these topics, or if they had
    /// another number of partitions.
    pub fn connect(node: Node, clock: Arc<dyn Clock>) -> Result<Arc<KafkaLog>, Error> {
        let names = Topic::ALL.map(|topic| Arc::from(node.connection.topic(topic)));
        let name = |topic: Topic| name_among(&names, topic);
        let mut committed = node.client("offsets");
        committed.set("group.id", &node.group);
        let offsets = Source::of_group(committed, clock.clone())?;
        let events = Source::asking(offsets.clone(), node.client("events"))?;
        let owners = KnownOwners::follow(&events, node.connection.owners().into(), Some(&node.group), OWNERS_WAIT)?;
        for (partition, owner) in owners.all() {
            if owner.partitions != node.partitions {
                let text = format!(
                    "the topics had {} partitions and now have {}: users would be routed to the wrong \
                     partition. docs/kafka.md says how to move to another number",
                    owner.partitions, node.partitions
                );
                return Err(Error::Open(text.into()));
            }
            if owner.group != node.group {
                let text = format!(
                    "partition {partition} of these topics is processed by the group {:?}: a second group would give \
                     every output again. Join it with --group {}, or use other topics (--topic-prefix)",
                    owner.group, owner.group
                );
                return Err(Error::Open(text.into()));
            }
        }
        let appender = Appender::new(name(Topic::Events), node.client("append"))?;
        let seconds = Arc::new(SecondSource::new(node.client("second"), clock.clone()));
        let tail = RecentOutputs::new(node.client("tail"), clock, node.partitions, name)?;
        let session_ms = group::session_ms(&node.connection.member(&node.client_id("member")));
        let log = Arc::new_cyclic(|this| KafkaLog {
            this: this.clone(),
            node,
            names,
            events,
            seconds,
            read_otherwise: Mutex::default(),
            offsets,
            appender,
            tail,
            owners,
            standbys: SharedStandbys::default(),
            has_incidents: AtomicBool::new(false),
            incident_reader: Mutex::default(),
            owned: AtomicU64::new(0),
            session_ms,
            listeners: RwLock::default(),
        });
        log.tail.follow(Arc::downgrade(&log))?;
        Ok(log)
    }

    /// Joins the group that shares the partitions out.
    pub fn join(&self) -> Result<Member, Error> {
        let mut config = self.node.connection.member(&self.node.client_id("member"));
        config.set("group.id", self.group());
        Member::join(self.name(Topic::Events), config, self.events.clock().clone())
    }

    fn clock(&self) -> &dyn Clock {
        &**self.events.clock()
    }

    /// Who has which partition.
    pub fn owners(&self) -> Arc<dyn Owners> {
        Arc::new(self.owners.clone())
    }

    /// Has this node stand by for partitions of others, and returns which nodes do.
    pub fn stand_by_for_others(&self) -> Result<Arc<dyn StandbyNodes>, Error> {
        let this = self.this.upgrade().ok_or(Error::Closed)?;
        Ok(KafkaStandbyNodes::join(this)?)
    }

    fn standbys(&self) -> &SharedStandbys {
        &self.standbys
    }

    pub fn node(&self) -> &Node {
        &self.node
    }

    fn group(&self) -> &str {
        &self.node.group
    }

    fn name(&self, topic: Topic) -> Arc<str> {
        name_among(&self.names, topic)
    }

    fn incidents_topic(&self) -> String {
        self.node.connection.incidents()
    }

    fn owners_topic(&self) -> String {
        self.node.connection.owners()
    }

    fn owner_record(&self, partition: Partition) -> (String, String) {
        let owner = Owner {
            url: self.node.url.clone(),
            group: self.node.group.clone(),
            partitions: self.node.partitions,
            revision: self.node.revision.0,
        };
        owners::record(partition, &owner)
    }

    fn events(&self) -> &Arc<Source> {
        &self.events
    }

    /// The client that reads a partition's events, and the one that reads them a second time.
    fn sources(&self, partition: Partition) -> Result<(Arc<Source>, OtherSource), Error> {
        let (events, seconds) = (self.events.clone(), self.seconds.clone());
        if locked(&self.read_otherwise).remove(&partition) {
            return Ok((seconds.source()?, Box::new(move || Ok(events.clone()))));
        }
        Ok((events, Box::new(move || seconds.source())))
    }

    fn offsets(&self) -> &Arc<Source> {
        &self.offsets
    }

    fn owned(&self) -> &AtomicU64 {
        &self.owned
    }

    fn tail(&self) -> &RecentOutputs {
        &self.tail
    }

    fn notify(&self, topic: Topic, partition: Partition) {
        let listeners = self.listeners.read().unwrap_or_else(PoisonError::into_inner).clone();
        for listener in listeners.iter() {
            listener(topic, partition);
        }
    }
}

impl Log for KafkaLog {
    fn take_up(&self, partition: Partition) -> Result<Box<dyn OwnedPartition>, Error> {
        let this = self.this.upgrade().ok_or(Error::Closed)?;
        Ok(Box::new(KafkaPartition::take_up(this, partition)?))
    }

    fn stand_by(&self, partition: Partition) -> Result<Box<dyn StandbyPartition>, Error> {
        let this = self.this.upgrade().ok_or(Error::Closed)?;
        Ok(Box::new(KafkaStandby::open(this, partition)?))
    }

    fn partitions(&self) -> u32 {
        self.node.partitions
    }

    fn append(&self, records: Vec<(Partition, NewRecord)>, acknowledge: Acknowledge) {
        self.appender.append(records, acknowledge);
    }

    fn read(
        &self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<(), Error> {
        self.tail.read((topic, self.name(topic)), partition, from, limit, into)
    }

    fn range(&self, topic: Topic, partition: Partition) -> Result<Range, Error> {
        self.tail.range(topic, partition).unwrap_or_else(|| {
            let (start, end) = self.events.ask_range(&self.name(topic), partition)?;
            Ok(Range {
                start: Offset(start),
                end: Offset(end),
            })
        })
    }

    fn write_incidents(&self) -> Result<Box<dyn IncidentWriter>, Error> {
        let this = self.this.upgrade().ok_or(Error::Closed)?;
        Ok(Box::new(KafkaIncidents::take_up(this)?))
    }

    fn read_incidents(&self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<Range, Error> {
        incidents::read(self, from, limit, into)
    }

    fn read_otherwise(&self, partition: Partition) {
        locked(&self.read_otherwise).insert(partition);
    }

    fn refusal(&self) -> Option<Error> {
        if let Some(closed) = self.appender.closed() {
            return Some(Error::Write(closed.into()));
        }
        let unanswered_ms = self.tail.unanswered_ms().filter(|ms| *ms >= UNANSWERED_MS)?;
        let text = format!(
            "no broker has answered for {} s: check whether {} can be reached",
            unanswered_ms / 1_000,
            self.node.connection.bootstrap
        );
        Some(Error::Write(text.into()))
    }

    fn is_cut_off(&self) -> bool {
        self.tail.unanswered_ms().is_some_and(|ms| ms >= self.session_ms)
    }

    fn kept_bytes(&self) -> usize {
        self.tail.bytes()
    }

    fn listen(&self, listener: Listener) {
        let mut listeners = self.listeners.write().unwrap_or_else(PoisonError::into_inner);
        Arc::make_mut(&mut listeners).push(Arc::new(listener));
    }
}

type Names = [Arc<str>; Topic::ALL.len()];

fn name_among(names: &Names, topic: Topic) -> Arc<str> {
    let named = Topic::ALL.iter().zip(names).find(|(one, _)| **one == topic);
    named.expect("all topics are among all topics").1.clone()
}

/// Reading the topics from outside, without being a node.
pub struct KafkaReader {
    connection: Connection,
    source: Arc<Source>,
    partitions: u32,
    readers: Vec<(Topic, Partition, PartitionReader)>,
    /// Of compacted outputs.
    newest: Vec<(OutputTopic, Partition, PartitionReader)>,
    incidents: Option<PartitionReader>,
    /// The client that asks for a group's positions, made when it is first needed, and the group.
    positions: Mutex<Option<(Box<str>, Arc<Source>)>>,
}

impl KafkaReader {
    /// The number of partitions is that of the topic of events.
    pub fn connect(connection: Connection, clock: Arc<dyn Clock>) -> Result<KafkaReader, Error> {
        let source = Source::new(connection.client("rollcall-log"), clock)?;
        let name = connection.topic(Topic::Events);
        let asked = name.clone();
        let partitions = source.ask("rd_kafka_metadata", METADATA, move |consumer| {
            let metadata = consumer.fetch_metadata(Some(&asked), METADATA)?;
            Ok(metadata.topics().first().map_or(0, |topic| topic.partitions().len()))
        })?;
        let partitions = partitions
            .map_err(|error| client::unread(&format!("no broker of {} answers", connection.bootstrap), &error))?;
        if partitions == 0 {
            return Err(Error::Open(
                format!("there is no topic {name} at {}", connection.bootstrap).into(),
            ));
        }
        Ok(KafkaReader {
            connection,
            source,
            partitions: partitions as u32,
            readers: Vec::new(),
            newest: Vec::new(),
            incidents: None,
            positions: Mutex::default(),
        })
    }
}

impl Reader for KafkaReader {
    fn partitions(&self) -> u32 {
        self.partitions
    }

    fn range(&self, topic: Topic, partition: Partition) -> Result<Range, Error> {
        let (start, end) = self.source.ask_range(&self.connection.topic(topic), partition)?;
        Ok(Range {
            start: Offset(start),
            end: Offset(end),
        })
    }

    fn read(
        &mut self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<(), Error> {
        let at = match self
            .readers
            .iter()
            .position(|(of, at, _)| (*of, *at) == (topic, partition))
        {
            Some(at) => at,
            None => {
                let name = self.connection.topic(topic).into();
                let partition_reader = PartitionReader::new(&self.source, Some(topic), name, partition, None)?;
                self.readers.push((topic, partition, partition_reader));
                self.readers.len() - 1
            }
        };
        history_readers::wait_for(&mut self.readers[at].2, from, limit, into)
    }

    fn read_newest(
        &mut self,
        topic: OutputTopic,
        partition: Partition,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<bool, Error> {
        let name = self.connection.output(topic);
        let mut known = self.newest.iter();
        let at = match known.position(|(of, at, _)| (*of, *at) == (topic, partition)) {
            Some(at) => at,
            None => {
                let partition_reader = PartitionReader::new(&self.source, None, name.as_str().into(), partition, None)?;
                self.newest.push((topic, partition, partition_reader));
                self.newest.len() - 1
            }
        };
        let (start, _) = self.source.ask_range(&name, partition)?;
        let from = from.max(Offset(start));
        history_readers::wait_for(&mut self.newest[at].2, from, limit, into)?;
        Ok(true)
    }

    fn read_incidents(&mut self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<Range, Error> {
        let name = self.connection.incidents();
        let (start, end) = self.source.ask_range(&name, Partition(0))?;
        let range = Range {
            start: Offset(start),
            end: Offset(end),
        };
        let reader = match &mut self.incidents {
            Some(reader) => reader,
            none => none.insert(PartitionReader::new(
                &self.source,
                None,
                name.into(),
                Partition(0),
                None,
            )?),
        };
        history_readers::wait_for(reader, from.max(range.start), limit, into)?;
        Ok(range)
    }

    fn reached(&self, topic: Topic, partition: Partition) -> Result<Offset, Error> {
        let mut readers = self.readers.iter();
        let reader = readers.find(|(of, at, _)| (*of, *at) == (topic, partition));
        Ok(reader.map_or(Offset(0), |(_, _, reader)| reader.reached()))
    }

    fn position(&self, group: &str, partition: Partition) -> Result<Position, Error> {
        self.committed(group, partition)
    }

    fn may_recover(&self, error: &Error) -> bool {
        matches!(error, Error::Read(_) | Error::Unanswered(_))
    }
}
