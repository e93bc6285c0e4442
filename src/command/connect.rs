//! What a start waits for: brokers, and a schema registry, which may be starting too.
//!
//! Each waits in a thread that nobody joins, so a signal ends the start at any moment.

use crate::clock::Clock;
use crate::config;
use crate::log;
use crate::log::kafka::settings::{Connection, DEFAULT_PREFIX};
use crate::log::kafka::{KafkaLog, Node, admin};
use crate::registry::{self, Registry, Schemas};
use crate::schema::avro::Schema;
use anyhow::Context as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// How long brokers may take to hear of topics.
const NEWS_MS: u64 = 5_000;
const BROKERS_PAUSE: Duration = Duration::from_millis(500);
const REGISTRY_PAUSE: Duration = Duration::from_secs(1);

/// Connects to Kafka, without joining the group. What may pass by itself is tried again for a while.
pub async fn kafka(
    kafka: &config::Kafka,
    listen: SocketAddr,
    wait_ms: u64,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<Arc<KafkaLog>> {
    let connection = Connection::new(
        &kafka.bootstrap,
        kafka.topic_prefix.as_deref(),
        kafka.properties.as_deref(),
        &kafka.set.0,
    )?;
    let url = kafka.advertise.clone().unwrap_or_else(|| format!("http://{listen}"));
    let group = kafka.group.clone();
    let started_ms = clock.now_ms();
    // Two processes have not both the same address and the same moment.
    let id = blake3::hash(format!("{url} {} {started_ms}", std::process::id()).as_bytes()).to_hex();
    let id = id[..8].to_owned();
    let connect = move || {
        let log = || {
            let partitions = judged(&connection)?;
            let node = Node {
                connection: connection.clone(),
                group: group.clone(),
                url: url.clone(),
                id: id.clone(),
                partitions,
            };
            Ok(KafkaLog::connect(node, clock.clone())?)
        };
        until_reached(log, wait_ms, &*clock)
    };
    tokio::task::spawn_blocking(connect)
        .await
        .context("Kafka was not reached")?
}

fn until_reached<T>(
    mut reach: impl FnMut() -> anyhow::Result<T>,
    wait_ms: u64,
    clock: &dyn Clock,
) -> anyhow::Result<T> {
    let began_ms = clock.monotonic_ms();
    let mut is_reported = false;
    loop {
        let error = match reach() {
            Ok(reached) => return Ok(reached),
            Err(error) => error,
        };
        let patience_ms = match patience(&error) {
            Patience::None => 0,
            Patience::ForNews => NEWS_MS.min(wait_ms),
            Patience::ForBrokers => wait_ms,
        };
        if clock.monotonic_ms() >= began_ms + patience_ms {
            return Err(error);
        }
        if patience(&error) == Patience::ForBrokers && !std::mem::replace(&mut is_reported, true) {
            tracing::warn!("{error}; trying again for {} s", wait_ms / 1_000);
        }
        std::thread::sleep(BROKERS_PAUSE);
    }
}

/// Whether what went wrong may pass by itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    None,
    /// Not every broker has heard of what was made a moment ago.
    ForNews,
    ForBrokers,
}

fn patience(error: &anyhow::Error) -> Patience {
    if error.is::<Refused>() {
        return Patience::ForNews;
    }
    let may_pass = error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(log::Error::Read(_) | log::Error::Write(_)))
            || matches!(
                cause.downcast_ref(),
                Some(admin::Error::Unreachable { .. } | admin::Error::Failed { .. })
            )
    });
    if may_pass { Patience::ForBrokers } else { Patience::None }
}

/// What is wrong with the topics, and how to correct it.
#[derive(Debug, thiserror::Error)]
#[error("the engine cannot start on these topics: {0}")]
struct Refused(String);

/// How many partitions the topics have; refuses topics that would break the rules.
fn judged(connection: &Connection) -> anyhow::Result<u32> {
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

/// Asks a registry for our schemas, or registers them. One that does not answer is asked again for a while.
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
    Ok(asked.context("the registry was not asked")??)
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
        };
        format!("{prefix}.{topic}-value")
    };
    let began_ms = clock.monotonic_ms();
    let mut is_reported = false;
    loop {
        let framing = match settings.register {
            true => registry.register(subject),
            false => registry.look_up(subject),
        };
        match framing {
            Ok(framing) => return Ok(Schemas::of(registry, framing)),
            Err(error @ registry::Error::Unreachable { .. }) if clock.monotonic_ms() < began_ms + wait_ms => {
                if !std::mem::replace(&mut is_reported, true) {
                    tracing::warn!("{error}; trying again for {} s", wait_ms / 1_000);
                }
                std::thread::sleep(REGISTRY_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}
