//! Inspects our topics in a cluster, and creates those that are missing.
//!
//! [`super::topics`] decides what is right and wrong; this module only talks to the cluster. The number of partitions
//! that the topics were created with is stored in the owners' topic under its own key ([`MADE_WITH_KEY`]), because in
//! Kafka the number can be raised later.

use super::client::DefaultContext;
use super::settings::Connection;
use super::topics::{
    ClusterFacts, Finding, Impossible, ManagedTopic, NewTopic, RETENTION_MS, RETENTION_WITHOUT_END, RequestedTopics,
    Severity, TIMESTAMP_TYPE, TIMESTAMPS_GIVEN, TopicFacts, TopicPlan, judge, plan,
};
use crate::clock::{Deadline, SystemClock};
use crate::log::locked;
use crate::topics::Topic;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, ConfigSource, OwnedResourceSpecifier, ResourceSpecifier};
use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::Message as _;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer as _, ProducerContext, ThreadedProducer};
use rdkafka::{ClientContext, Offset as KafkaOffset, TopicPartitionList};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

/// Time-out for one answer of a broker.
const PATIENCE: Duration = Duration::from_secs(10);
/// A new topic is soon known to every broker. This is for how long, and how often, the brokers are asked for it.
const SETTLES_WITHIN: Duration = Duration::from_secs(10);
const SETTLES_PAUSE: Duration = Duration::from_millis(100);
/// The key, in the owners' topic, of the record whose value is [`made_with_value`]. The keys of partitions are numbers.
pub const MADE_WITH_KEY: &[u8] = b"partitions";

/// The cluster could not be reached, or a request to it failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "no broker of {bootstrap} answers: {cause}; check that Kafka is running there, and that its advertised listeners \
         can be reached"
    )]
    Unreachable { bootstrap: String, cause: String },
    #[error("{what}: {cause}")]
    Failed { what: String, cause: String },
    #[error(transparent)]
    Impossible(#[from] Impossible),
}

/// What was found, and on how many partitions the engine may start.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Checked {
    /// Number of partitions of the events' topic; 0 if the topic does not exist.
    pub partitions: u32,
    /// How many of our topics exist.
    pub topics: usize,
    pub brokers: usize,
    /// Most severe first.
    pub findings: Vec<Finding>,
}

impl Checked {
    /// Returns the findings that prevent the engine from starting.
    pub fn refusals(&self) -> impl Iterator<Item = &Finding> {
        self.findings
            .iter()
            .filter(|finding| finding.weight == Severity::Refused)
    }
}

/// What [`create`] did.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Created {
    pub plan: TopicPlan,
    pub checked: Checked,
}

/// Inspects the topics and judges them. Blocks until the brokers answer, so it must not be called on a thread of an
/// async runtime.
pub fn check(connection: &Connection) -> Result<Checked, Error> {
    Admin::new(connection)?.check()
}

/// Creates the topics that do not exist. Existing topics are not changed; the result lists what is wrong with them.
/// Blocks like [`check`].
pub fn create(connection: &Connection, wanted: RequestedTopics) -> Result<Created, Error> {
    create_with(connection, wanted, |_| ())
}

/// Creates the topics of a log that is to be filled with the events of another one ([`super::KafkaFilling`]): as [`create`], but
/// events keep the time that they are given, and none is deleted.
pub(super) fn create_to_fill(connection: &Connection, wanted: RequestedTopics) -> Result<Created, Error> {
    create_with(connection, wanted, |plan| {
        let events = connection.topic(Topic::Events);
        for topic in plan.make.iter_mut().filter(|topic| topic.name == events) {
            topic.set(TIMESTAMP_TYPE, TIMESTAMPS_GIVEN);
            topic.set(RETENTION_MS, RETENTION_WITHOUT_END);
        }
    })
}

fn create_with(
    connection: &Connection,
    wanted: RequestedTopics,
    adjust: impl FnOnce(&mut TopicPlan),
) -> Result<Created, Error> {
    let admin = Admin::new(connection)?;
    let mut plan = plan(connection, &admin.facts()?, wanted)?;
    adjust(&mut plan);
    admin.make(&plan.make)?;
    let mut facts = admin.facts()?;
    let deadline = admin.settles();
    while !ManagedTopic::ALL.iter().all(|part| facts.topics.contains_key(part)) && !admin.has_passed(deadline) {
        std::thread::sleep(SETTLES_PAUSE);
        facts = admin.facts()?;
    }
    if facts.made_with.is_none() {
        admin.note(plan.partitions)?;
        facts.made_with = Some(plan.partitions);
    }
    let checked = admin.judged(&facts);
    Ok(Created { plan, checked })
}

/// Returns the facts of the topic of events, if there is one. Fails where [`create_to_fill`] would, of topics that are not finished.
/// Creates nothing. Blocks like [`check`].
pub(super) fn events_to_fill(connection: &Connection, wanted: RequestedTopics) -> Result<Option<TopicFacts>, Error> {
    let mut facts = Admin::new(connection)?.facts()?;
    let events = facts.topics.get(&ManagedTopic::Events);
    let is_finished = events.is_some_and(|events| {
        let by = events.settings.get(TIMESTAMP_TYPE);
        by.is_none_or(|by| by != TIMESTAMPS_GIVEN)
    });
    if !is_finished {
        plan(connection, &facts, wanted)?;
    }
    Ok(facts.topics.remove(&ManagedTopic::Events))
}

/// Returns the facts of the topic of events; `None` if there is no such topic. Blocks like [`check`].
pub(super) fn events(connection: &Connection) -> Result<Option<TopicFacts>, Error> {
    let mut facts = Admin::new(connection)?.facts()?;
    Ok(facts.topics.remove(&ManagedTopic::Events))
}

/// Changes one setting of the topic of events, and waits until the cluster says that it is in force. Blocks like [`check`].
pub(super) fn alter_events(connection: &Connection, key: &str, value: &str) -> Result<(), Error> {
    let admin = Admin::new(connection)?;
    admin.alter(&connection.topic(Topic::Events), key, value)?;
    let deadline = admin.settles();
    loop {
        let facts = admin.ask()?;
        let events = facts.topics.get(&ManagedTopic::Events);
        if events.is_some_and(|topic| topic.settings.get(key).is_some_and(|is| is == value)) {
            return Ok(());
        }
        if admin.has_passed(deadline) {
            return Err(Error::Failed {
                what: format!("{key} of {} was set", connection.topic(Topic::Events)),
                cause: "the brokers do not show the new value".to_owned(),
            });
        }
        std::thread::sleep(SETTLES_PAUSE);
    }
}

/// How far a partition of the events can be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Readable {
    pub partition: u32,
    /// Where a reader of committed records stops: before the first record of an open transaction, or at the end.
    pub last_stable: i64,
    pub end: i64,
}

/// Returns how far each partition of the events can be read. Blocks like [`check`].
pub fn readable(connection: &Connection, partitions: u32) -> Result<Vec<Readable>, Error> {
    let events = connection.topic(Topic::Events);
    let cannot = |error: KafkaError| failed(&format!("the end of {events} cannot be read"), &error);
    let ends = |isolation: &str| -> Result<Vec<i64>, KafkaError> {
        let mut config = connection.client("rollcall-topics");
        config.set("isolation.level", isolation);
        let consumer: BaseConsumer<DefaultContext> = config.create_with_context(DefaultContext)?;
        let end = |partition: u32| {
            let marks = consumer.fetch_watermarks(&events, partition as i32, PATIENCE);
            marks.map(|(_, end)| end)
        };
        (0..partitions).map(end).collect()
    };
    // In this order, so that what is written meanwhile does not look like an open transaction for ever: see the caller.
    let last_stable = ends("read_committed").map_err(cannot)?;
    let end = ends("read_uncommitted").map_err(cannot)?;
    let both = last_stable.into_iter().zip(end).zip(0..);
    Ok(both
        .map(|((last_stable, end), partition)| Readable {
            partition,
            last_stable,
            end,
        })
        .collect())
}

struct Admin<'c> {
    connection: &'c Connection,
    client: AdminClient<DefaultContext>,
    runtime: tokio::runtime::Runtime,
    clock: SystemClock,
}

impl Admin<'_> {
    fn new(connection: &Connection) -> Result<Admin<'_>, Error> {
        let client = connection.client("rollcall-topics").create_with_context(DefaultContext);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        Ok(Admin {
            connection,
            client: client.map_err(|error| failed("a client with these Kafka settings cannot be created", &error))?,
            runtime: runtime.map_err(|error| Error::Failed {
                what: "no runtime can be started".to_owned(),
                cause: error.to_string(),
            })?,
            clock: SystemClock::new(),
        })
    }

    /// Begins to wait until the brokers know what was changed.
    fn settles(&self) -> Deadline {
        Deadline::after(&self.clock, SETTLES_WITHIN)
    }

    fn has_passed(&self, deadline: Deadline) -> bool {
        deadline.has_passed(&self.clock)
    }

    fn check(&self) -> Result<Checked, Error> {
        Ok(self.judged(&self.facts()?))
    }

    fn judged(&self, facts: &ClusterFacts) -> Checked {
        let events = facts.topics.get(&ManagedTopic::Events);
        Checked {
            partitions: events.map_or(0, |topic| topic.partitions),
            topics: facts.topics.len(),
            brokers: facts.brokers,
            findings: judge(self.connection, facts),
        }
    }

    /// Asks for the facts until every topic has settings. A broker that does not know a new topic yet returns no
    /// settings of it, not even defaults.
    fn facts(&self) -> Result<ClusterFacts, Error> {
        let mut facts = self.ask()?;
        let deadline = self.settles();
        while facts.topics.values().any(|topic| topic.settings.is_empty()) && !self.has_passed(deadline) {
            std::thread::sleep(SETTLES_PAUSE);
            facts = self.ask()?;
        }
        Ok(facts)
    }

    fn ask(&self) -> Result<ClusterFacts, Error> {
        // Ask for all topics: asking for one that does not exist may make the broker create it.
        let metadata = self.client.inner().fetch_metadata(None, PATIENCE);
        let metadata = metadata.map_err(|error| Error::Unreachable {
            bootstrap: self.connection.bootstrap.clone(),
            cause: match failed_connection(self.connection) {
                Some(failure) => format!("{} ({failure})", plain(&error)),
                None => plain(&error),
            },
        })?;
        let mut facts = ClusterFacts {
            brokers: metadata.brokers().len(),
            ..ClusterFacts::default()
        };
        for part in ManagedTopic::ALL {
            let name = part.name(self.connection);
            let found = metadata.topics().iter().find(|topic| topic.name() == name);
            if let Some(topic) = found.filter(|topic| !topic.partitions().is_empty()) {
                let replicas = topic.partitions().iter().map(|partition| partition.replicas().len());
                let topic = TopicFacts {
                    partitions: topic.partitions().len() as u32,
                    replication: replicas.min().unwrap_or_default(),
                    ..TopicFacts::default()
                };
                facts.topics.insert(part, topic);
            }
        }
        if let Some(broker) = metadata.brokers().first() {
            self.settings(&mut facts, broker.id())?;
        }
        if facts.topics.contains_key(&ManagedTopic::Owners) {
            facts.made_with = self.made_with()?;
        }
        Ok(facts)
    }

    fn settings(&self, facts: &mut ClusterFacts, broker: i32) -> Result<(), Error> {
        let names: Vec<(ManagedTopic, String)> = facts
            .topics
            .keys()
            .map(|part| (*part, part.name(self.connection)))
            .collect();
        let mut asked: Vec<ResourceSpecifier<'_>> =
            names.iter().map(|(_, name)| ResourceSpecifier::Topic(name)).collect();
        asked.push(ResourceSpecifier::Broker(broker));
        let answers = self.runtime.block_on(self.client.describe_configs(&asked, &options()));
        let answers = answers.map_err(|error| failed("the settings of the topics cannot be read", &error))?;
        for answer in answers {
            let resource = match answer {
                Ok(resource) => resource,
                // Not every user may read a broker's settings; only those of our topics are required.
                Err(RDKafkaErrorCode::ClusterAuthorizationFailed) => continue,
                Err(RDKafkaErrorCode::UnknownTopicOrPartition) => continue,
                Err(code) => {
                    let error = KafkaError::AdminOp(code);
                    return Err(failed("the settings of the topics cannot be read", &error));
                }
            };
            let own = resource
                .entries
                .iter()
                .any(|entry| entry.source == ConfigSource::DynamicTopic);
            let settings: BTreeMap<String, String> = resource
                .entries
                .into_iter()
                .filter_map(|entry| Some((entry.name, entry.value?)))
                .collect();
            match resource.specifier {
                OwnedResourceSpecifier::Topic(name) => {
                    let part = names.iter().find(|(_, known)| *known == name).map(|(part, _)| part);
                    if let Some(topic) = part.and_then(|part| facts.topics.get_mut(part)) {
                        topic.settings = settings;
                        topic.has_own_settings = own;
                    }
                }
                OwnedResourceSpecifier::Broker(_) => facts.broker = settings,
                OwnedResourceSpecifier::Group(_) => {}
            }
        }
        Ok(())
    }

    /// Changes one setting of a topic. The request replaces all settings of the topic, so the others go along.
    fn alter(&self, topic: &str, key: &str, value: &str) -> Result<(), Error> {
        let cannot = |error: &KafkaError| failed(&format!("{key} of {topic} cannot be set to {value}"), error);
        let asked = [ResourceSpecifier::Topic(topic)];
        let answers = self.runtime.block_on(self.client.describe_configs(&asked, &options()));
        let answers = answers.map_err(|error| cannot(&error))?;
        let mut settings: BTreeMap<String, String> = BTreeMap::new();
        for answer in answers {
            let resource = answer.map_err(|code| cannot(&KafkaError::AdminOp(code)))?;
            let own = resource
                .entries
                .into_iter()
                .filter(|entry| entry.source == ConfigSource::DynamicTopic);
            settings.extend(own.filter_map(|entry| Some((entry.name, entry.value?))));
        }
        settings.insert(key.to_owned(), value.to_owned());
        let mut alter = AlterConfig::new(ResourceSpecifier::Topic(topic));
        for (key, value) in &settings {
            alter = alter.set(key, value);
        }
        let altered = self.runtime.block_on(self.client.alter_configs([&alter], &options()));
        for result in altered.map_err(|error| cannot(&error))? {
            result.map_err(|(_, code)| cannot(&KafkaError::AdminOp(code)))?;
        }
        Ok(())
    }

    fn make(&self, topics: &[NewTopic]) -> Result<(), Error> {
        if topics.is_empty() {
            return Ok(());
        }
        let native: Vec<rdkafka::admin::NewTopic<'_>> = topics
            .iter()
            .map(|topic| rdkafka::admin::NewTopic {
                name: &topic.name,
                num_partitions: topic.partitions as i32,
                replication: rdkafka::admin::TopicReplication::Fixed(topic.replication as i32),
                config: topic
                    .settings
                    .iter()
                    .map(|(key, value)| (*key, value.as_str()))
                    .collect(),
            })
            .collect();
        let made = self.runtime.block_on(self.client.create_topics(&native, &options()));
        for result in made.map_err(|error| failed("the topics cannot be created", &error))? {
            match result {
                // Another process created the topic first; it is judged like any other.
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => {
                    return Err(failed(
                        &format!("the topic {name} cannot be created"),
                        &KafkaError::AdminOp(code),
                    ));
                }
            }
        }
        Ok(())
    }

    /// Reads from the owners' topic the number of partitions that the topics were created with.
    fn made_with(&self) -> Result<Option<u32>, Error> {
        let owners = self.connection.owners();
        let cannot = |error: KafkaError| failed(&format!("{owners} cannot be read"), &error);
        let mut config = self.connection.client("rollcall-topics");
        // Partitions are assigned manually; the group is never joined.
        config
            .set("group.id", "rollcall-topics")
            .set("enable.auto.commit", "false");
        config
            .set("enable.partition.eof", "true")
            .set("isolation.level", "read_committed");
        config
            .set("allow.auto.create.topics", "false")
            .set("fetch.queue.backoff.ms", "2")
            // The end comes with the fetch that finds nothing more, after this long; every start waits for it.
            .set("fetch.wait.max.ms", "10");
        let consumer: BaseConsumer<DefaultContext> = config.create_with_context(DefaultContext).map_err(cannot)?;
        let mut from = TopicPartitionList::new();
        from.add_partition_offset(&owners, 0, KafkaOffset::Beginning)
            .map_err(cannot)?;
        consumer.assign(&from).map_err(cannot)?;
        let (mut noted, mut owned) = (None, None);
        loop {
            match consumer.poll(PATIENCE) {
                Some(Ok(record)) => {
                    let number = record.payload().and_then(read_made_with);
                    match record.key() {
                        Some(MADE_WITH_KEY) => noted = number,
                        // The record of an owner contains its number of partitions.
                        _ => owned = number.or(owned),
                    }
                }
                Some(Err(KafkaError::PartitionEOF(_))) => return Ok(noted.or(owned)),
                // The client asks for the coordinator of a group that it needs for nothing.
                Some(Err(error)) if error.rdkafka_error_code() == Some(RDKafkaErrorCode::GroupAuthorizationFailed) => {}
                Some(Err(error)) => return Err(cannot(error)),
                None => {
                    return Err(cannot(KafkaError::MessageConsumption(
                        RDKafkaErrorCode::OperationTimedOut,
                    )));
                }
            }
        }
    }

    /// Writes the number of partitions that the topics were created with.
    fn note(&self, partitions: u32) -> Result<(), Error> {
        let owners = self.connection.owners();
        let cannot = |error: KafkaError| failed(&format!("{owners} cannot be written"), &error);
        let mut config = self.connection.client("rollcall-topics");
        config
            .set("enable.idempotence", "true")
            .set("message.timeout.ms", PATIENCE.as_millis().to_string());
        let (delivery, delivered) = mpsc::channel();
        let producer: ThreadedProducer<Delivery> = config.create_with_context(Delivery(delivery)).map_err(cannot)?;
        let value = made_with_value(partitions);
        let record = BaseRecord::to(&owners)
            .partition(0)
            .key(MADE_WITH_KEY)
            .payload(value.as_bytes());
        producer.send(record).map_err(|(error, _)| cannot(error))?;
        producer.flush(PATIENCE).map_err(cannot)?;
        match delivered.recv_timeout(PATIENCE) {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(cannot(error)),
            Err(_) => Err(cannot(KafkaError::MessageProduction(
                RDKafkaErrorCode::OperationTimedOut,
            ))),
        }
    }
}

/// Reports the delivery result of a record.
struct Delivery(mpsc::Sender<Result<(), KafkaError>>);

impl ClientContext for Delivery {}

impl ProducerContext for Delivery {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _: ()) {
        // After a time-out nothing receives the result any more.
        let _ = self
            .0
            .send(result.as_ref().map(|_| ()).map_err(|(error, _)| error.clone()));
    }
}

/// Returns the value for [`MADE_WITH_KEY`].
fn made_with_value(partitions: u32) -> String {
    serde_json::json!({ "partitions": partitions }).to_string()
}

fn read_made_with(value: &[u8]) -> Option<u32> {
    let value: serde_json::Value = serde_json::from_slice(value).ok()?;
    value["partitions"]
        .as_u64()
        .and_then(|number| u32::try_from(number).ok())
}

/// Why no connection can be made, in the words of librdkafka. Its error is the same for a name that is unknown, a refusal, and TLS
/// or SASL that the broker does not speak; the reason comes as a notice, which a client gives to who polls it.
fn failed_connection(connection: &Connection) -> Option<String> {
    let noted = Arc::<FirstFailure>::default();
    let client: BaseProducer<Noting> = connection
        .client("rollcall-topics")
        .create_with_context(Noting(noted.clone()))
        .ok()?;
    let clock = SystemClock::new();
    let late = Deadline::after(&clock, FAILS_WITHIN);
    while locked(&noted).is_none() && !late.has_passed(&clock) {
        client.poll(Duration::from_millis(50));
    }
    locked(&noted).take()
}

/// How long it may take to learn why no connection can be made.
const FAILS_WITHIN: Duration = Duration::from_secs(2);
const REASON_CHARS: usize = 300;

type FirstFailure = Mutex<Option<String>>;

struct Noting(Arc<FirstFailure>);

impl ClientContext for Noting {
    fn error(&self, error: KafkaError, reason: &str) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::AllBrokersDown) {
            locked(&self.0).get_or_insert_with(|| reason.chars().take(REASON_CHARS).collect());
        }
    }
}

impl ProducerContext for Noting {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, _: ()) {}
}

fn options() -> AdminOptions {
    AdminOptions::new()
        .request_timeout(Some(PATIENCE))
        .operation_timeout(Some(PATIENCE))
}

fn failed(what: &str, error: &KafkaError) -> Error {
    Error::Failed {
        what: what.to_owned(),
        cause: plain(error),
    }
}

/// Describes an error in one clause, without the library's type names and without the value of any setting.
fn plain(error: &KafkaError) -> String {
    match error.rdkafka_error_code() {
        Some(RDKafkaErrorCode::BrokerTransportFailure | RDKafkaErrorCode::AllBrokersDown) => {
            return "no connection could be made".to_owned();
        }
        Some(RDKafkaErrorCode::OperationTimedOut | RDKafkaErrorCode::RequestTimedOut) => {
            return "no response in time".to_owned();
        }
        _ => {}
    }
    match error {
        KafkaError::ClientConfig(_, _, key, _) => format!("the value of {key} is not accepted"),
        other => match other.rdkafka_error_code() {
            Some(code) => code.to_string(),
            None => other.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_partitions_is_read_as_it_was_written() {
        assert_eq!(read_made_with(made_with_value(64).as_bytes()), Some(64));
        for other in ["", "{}", "[64]", r#"{"partitions":"64"}"#, r#"{"partitions":-1}"#] {
            assert_eq!(read_made_with(other.as_bytes()), None);
        }
    }
}
