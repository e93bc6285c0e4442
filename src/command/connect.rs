//! Connects to Kafka and to the schema registry at start, and waits while they are starting too.
//!
//! Each wait is in a thread that is never joined, so a signal ends the start at any time.

use super::cluster::Cluster;
use crate::backoff;
use crate::clock::{Clock, SystemClock};
use crate::config;
use crate::log::kafka::settings::{Connection, DEFAULT_PREFIX, Invalid};
use crate::log::kafka::{self, KafkaFilling, KafkaFollower, KafkaLog, KafkaReader, Node, admin};
use crate::log::{self, Beginning, FillingLog, Follower, Group, Log, Owners, Reader, StandbyNodes};
use crate::registry::{self, Registry, Schemas};
use crate::schema::avro::Schema;
use crate::topics::Topic;
use crate::traces::LogNames;
use crate::version::newest_revision;
use anyhow::Context as _;
use std::sync::Arc;
use tokio::runtime::Handle;

/// How long brokers may take to learn of new topics.
const METADATA_MS: u64 = 5_000;

/// The log on Kafka, connected, and not yet a member of the group.
#[derive(Clone)]
pub struct ConnectedLog(Arc<KafkaLog>);

impl ConnectedLog {
    pub fn log(&self) -> Arc<dyn Log> {
        self.0.clone()
    }

    /// Who has which partition.
    pub fn owners(&self) -> Arc<dyn Owners> {
        self.0.owners()
    }

    /// Has this node stand by for partitions of others.
    pub fn stand_by(&self) -> Result<Arc<dyn StandbyNodes>, log::Error> {
        self.0.stand_by_for_others()
    }

    /// Where the others reach this node.
    pub fn url(&self) -> &str {
        &self.0.node().url
    }

    /// Joins the group that shares the partitions out.
    pub fn join(&self) -> Result<Box<dyn Group>, log::Error> {
        Ok(Box::new(self.0.join()?))
    }
}

/// Checks the Kafka settings that the configuration does not check, before anything is created or connected.
pub fn check(config: &config::Config) -> Result<(), Invalid> {
    config.kafka.as_ref().map_or(Ok(()), |kafka| of_config(kafka).map(drop))
}

fn of_config(kafka: &config::Kafka) -> Result<Connection, Invalid> {
    let (prefix, properties) = (kafka.topic_prefix.as_deref(), kafka.properties.as_deref());
    Connection::new(&kafka.bootstrap, prefix, properties, &kafka.set.0)
}

/// How spans name the log of a server.
pub fn log_names(config: &config::Config) -> Result<LogNames, Invalid> {
    Ok(match &config.kafka {
        Some(kafka) => names_of(&of_config(kafka)?),
        None => local_names(),
    })
}

/// How spans name the embedded log.
pub fn local_names() -> LogNames {
    LogNames {
        system: "rollcall",
        events: Topic::Events.name().to_owned(),
        changes: Topic::Changes.name().to_owned(),
    }
}

/// How spans name the topics of a cluster.
pub fn names_of(connection: &Connection) -> LogNames {
    LogNames {
        system: "kafka",
        events: connection.topic(Topic::Events),
        changes: connection.topic(Topic::Changes),
    }
}

/// How a cluster is reached, by a command's flags.
pub fn of_flags(bootstrap: &str, cluster: &Cluster) -> Result<Connection, Invalid> {
    let (prefix, properties) = (cluster.topic_prefix.as_deref(), cluster.kafka_properties.as_deref());
    Connection::new(bootstrap, prefix, properties, &cluster.kafka_set)
}

/// Looks on at the topics of a cluster, by a command's flags.
pub fn reader(bootstrap: &str, cluster: &Cluster) -> anyhow::Result<Box<dyn Reader>> {
    let connection = of_flags(bootstrap, cluster)?;
    Ok(Box::new(KafkaReader::connect(
        connection,
        Arc::new(SystemClock::new()),
    )?))
}

/// The topics with one prefix, to be moved or to be moved to.
#[derive(Clone)]
pub struct TopicSet(Connection);

impl TopicSet {
    pub fn of_flags(bootstrap: &str, cluster: &Cluster) -> Result<TopicSet, Invalid> {
        Ok(TopicSet(of_flags(bootstrap, cluster)?))
    }

    /// Returns the topics with this prefix, whichever the flags name.
    pub fn with_prefix(bootstrap: &str, cluster: &Cluster, prefix: &str) -> Result<TopicSet, Invalid> {
        let cluster = Cluster {
            topic_prefix: Some(prefix.to_owned()),
            ..cluster.clone()
        };
        TopicSet::of_flags(bootstrap, &cluster)
    }

    /// Whether both are the same topics, if they are in one cluster.
    pub fn has_prefix_of(&self, other: &TopicSet) -> bool {
        self.0.prefix == other.0.prefix
    }

    /// Returns the flags that name these topics.
    pub fn flags(&self) -> String {
        self.0.flags()
    }

    pub fn reader(&self) -> anyhow::Result<Box<dyn Reader>> {
        let reader = KafkaReader::connect(self.0.clone(), Arc::new(SystemClock::new()))?;
        Ok(Box::new(reader))
    }

    /// Opens the topics to fill them, or creates them; `None` if they are finished, or if an engine uses them.
    pub fn fill(&self, partitions: u32, replication: Option<usize>) -> anyhow::Result<Option<Box<dyn FillingLog>>> {
        let clock = Arc::new(SystemClock::new());
        let filling = KafkaFilling::open(self.0.clone(), (partitions, replication), clock)?;
        Ok(filling.map(|filling| Box::new(filling) as Box<dyn FillingLog>))
    }

    /// Returns whether [`TopicSet::fill`] would open the topics. The errors are those that it would give. Creates nothing.
    pub fn can_be_filled(&self, partitions: u32, replication: Option<usize>) -> anyhow::Result<bool> {
        Ok(KafkaFilling::judge(&self.0, (partitions, replication))?.is_some())
    }

    /// Has the brokers refuse events from now on. `probe` is an event without effect.
    pub fn close_events(&self, probe: &[u8]) -> anyhow::Result<()> {
        Ok(kafka::close_events(&self.0, probe, &SystemClock::new())?)
    }

    /// Returns whether the brokers refuse events.
    pub fn is_closed(&self) -> anyhow::Result<bool> {
        Ok(kafka::is_closed(&self.0)?)
    }

    /// Returns a partition that an open transaction holds back, and how many of its records.
    pub fn held_partition(&self, partitions: u32) -> anyhow::Result<Option<(u32, i64)>> {
        let readable = admin::readable(&self.0, partitions)?;
        let held = readable.iter().find(|readable| readable.last_stable < readable.end);
        Ok(held.map(|held| (held.partition, held.end - held.last_stable)))
    }
}

/// Looks on at the topics of the server's own cluster.
pub fn reader_of_server(kafka: &config::Kafka) -> anyhow::Result<Box<dyn Reader>> {
    Ok(Box::new(KafkaReader::connect(
        of_config(kafka)?,
        Arc::new(SystemClock::new()),
    )?))
}

/// Follows the change topic as a member of a group. Waits for brokers.
pub fn follower(
    connection: &Connection,
    group: &str,
    beginning: Beginning,
    clock: Arc<dyn Clock>,
) -> Result<Box<dyn Follower>, log::Error> {
    let joined = KafkaFollower::join(connection, Topic::Changes, group, beginning, clock)?;
    Ok(Box::new(joined))
}

/// Connects to Kafka, without joining the group. `url` is where other nodes reach this one. Errors that may be temporary are retried for `wait_ms`.
pub async fn kafka(
    kafka: &config::Kafka,
    url: String,
    wait_ms: u64,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<ConnectedLog> {
    let connection = of_config(kafka)?;
    let group = kafka.group.clone();
    let started_ms = clock.now_ms();
    // Two processes never share the address, the process id and the start time.
    let id = blake3::hash(format!("{url} {} {started_ms}", std::process::id()).as_bytes()).to_hex();
    let id = id[..8].to_owned();
    let connect = move || {
        let log = || {
            let partitions = checked_partitions(&connection)?;
            let node = Node {
                connection: connection.clone(),
                group: group.clone(),
                url: url.clone(),
                id: id.clone(),
                partitions,
                revision: newest_revision(),
            };
            Ok(ConnectedLog(KafkaLog::connect(node, clock.clone())?))
        };
        until_reached(log, wait_ms, &*clock)
    };
    tokio::task::spawn_blocking(connect)
        .await
        .context("the connection to Kafka was not finished")?
}

fn until_reached<T>(
    mut reach: impl FnMut() -> anyhow::Result<T>,
    wait_ms: u64,
    clock: &dyn Clock,
) -> anyhow::Result<T> {
    let began_ms = clock.monotonic_ms();
    let mut is_reported = false;
    let mut backoff = backoff::BROKERS.start();
    loop {
        let error = match reach() {
            Ok(reached) => return Ok(reached),
            Err(error) => error,
        };
        let retry_ms = match retry(&error) {
            Retry::No => 0,
            Retry::ForMetadata => METADATA_MS.min(wait_ms),
            Retry::ForBrokers => wait_ms,
        };
        if clock.monotonic_ms() >= began_ms + retry_ms {
            return Err(error);
        }
        if retry(&error) == Retry::ForBrokers && !std::mem::replace(&mut is_reported, true) {
            tracing::warn!("{error}; retrying for {} s", wait_ms / 1_000);
        }
        std::thread::sleep(backoff.pause());
    }
}

/// Whether, and for how long, an error is retried.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Retry {
    No,
    /// Some broker may not have learned yet of topics that were just created.
    ForMetadata,
    ForBrokers,
}

fn retry(error: &anyhow::Error) -> Retry {
    if error.is::<Refused>() {
        return Retry::ForMetadata;
    }
    let may_pass = error.chain().any(|cause| {
        matches!(
            cause.downcast_ref(),
            Some(log::Error::Read(_) | log::Error::Unanswered(_) | log::Error::Write(_))
        ) || matches!(
            cause.downcast_ref(),
            Some(admin::Error::Unreachable { .. } | admin::Error::Failed { .. })
        )
    });
    if may_pass { Retry::ForBrokers } else { Retry::No }
}

/// The topics would break the rules. The text says what is wrong and how to correct it.
#[derive(Debug, thiserror::Error)]
#[error("the engine cannot start on these topics: {0}")]
struct Refused(String);

/// Returns how many partitions the topics have. Fails if they would break the rules.
fn checked_partitions(connection: &Connection) -> anyhow::Result<u32> {
    let checked = admin::check(connection)?;
    let refusals: Vec<String> = checked.refusals().map(ToString::to_string).collect();
    if !refusals.is_empty() {
        return Err(Refused(refusals.join("; ")).into());
    }
    for finding in &checked.findings {
        tracing::warn!("{finding}");
    }
    Ok(checked.partitions)
}

/// Looks up our schemas in a registry, or registers them. A registry that does not answer is retried for `wait_ms`.
pub async fn registry(
    settings: &config::Registry,
    prefix: Option<&str>,
    wait_ms: u64,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<Schemas> {
    let (settings, runtime) = (settings.clone(), Handle::current());
    let prefix = prefix.unwrap_or(DEFAULT_PREFIX).to_owned();
    let ask = move || ask_registry(&settings, &prefix, runtime, wait_ms, &*clock);
    let asked = tokio::task::spawn_blocking(ask).await;
    Ok(asked.context("the request to the registry was not finished")??)
}

fn ask_registry(
    settings: &config::Registry,
    prefix: &str,
    runtime: Handle,
    wait_ms: u64,
    clock: &dyn Clock,
) -> Result<Schemas, registry::Error> {
    let registry = Registry::new(settings.url.reveal().as_str(), runtime)?;
    let subject = |schema: Schema| {
        let topic = match schema {
            Schema::Event => "events",
            Schema::Change => "changes",
            Schema::Kick => "kicks",
            Schema::UserState => "current",
            Schema::Quarantined => "quarantine",
            Schema::Incident => "incidents",
        };
        format!("{prefix}.{topic}-value")
    };
    let began_ms = clock.monotonic_ms();
    let mut is_reported = false;
    let mut backoff = backoff::REGISTRY.start();
    loop {
        let framing = match settings.register {
            true => registry.register(subject),
            false => registry.look_up(subject),
        };
        match framing {
            Ok(framing) => return Ok(Schemas::of(registry, framing)),
            Err(error @ registry::Error::Unreachable { .. }) if clock.monotonic_ms() < began_ms + wait_ms => {
                if !std::mem::replace(&mut is_reported, true) {
                    tracing::warn!("{error}; retrying for {} s", wait_ms / 1_000);
                }
                std::thread::sleep(backoff.pause());
            }
            Err(error) => return Err(error),
        }
    }
}
