//! `rollcall topics`: makes the topics of a Kafka cluster, or says what is wrong with those that are there.
//!
//! `create` may be run again and again: it makes what is missing, leaves the rest as it is, and ends with what `check`
//! would say. Whatever would break the rules ends either with exit status 2.

use super::cluster::Cluster;
use crate::checkpoint::Checkpoints;
use crate::clock::SystemClock;
use crate::config::DEFAULT_GROUP;
use crate::engine::retention_warning;
use crate::log::Topic;
use crate::log::kafka::KafkaReader;
use crate::log::kafka::admin::{self, Checked};
use crate::log::kafka::settings::Connection;
use crate::log::kafka::topics::{self, RequestedTopics, Severity};
use crate::presence::Partition;
use anyhow::{Context as _, bail};
use std::io::{self, Write};
use std::sync::Arc;

/// Makes the topics of a Kafka cluster, or checks them
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Makes the topics that are not there, with the settings that the rules need
    Create {
        #[command(flatten)]
        brokers: Brokers,
        /// Partitions of each topic, 1 to 1024, for ever [default: what is there; 64 if nothing is]
        #[arg(long, value_name = "N")]
        partitions: Option<u32>,
        /// On how many brokers each partition is kept [default: 3, or as many as there are brokers]
        #[arg(long, value_name = "N")]
        replication: Option<usize>,
        /// How long events and outputs are kept, 1 to 876000 hours [default: 720, that is 30 days]
        #[arg(long, value_name = "HOURS", value_parser = clap::value_parser!(u64).range(1..=876_000))]
        retention_hours: Option<u64>,
    },
    /// Says what is wrong with the topics, each with the command that fixes it
    Check {
        #[command(flatten)]
        brokers: Brokers,
        #[command(flatten)]
        kept: Kept,
    },
}

/// The checkpoints that the log is held against.
#[derive(clap::Args)]
struct Kept {
    /// Where `rollcall serve` keeps checkpoints: says of which partitions the log's retention gets near the oldest
    #[arg(long, value_name = "URL", env = "ROLLCALL_CHECKPOINTS", hide_env_values = true)]
    checkpoints: Option<String>,
    /// The group whose checkpoints they are
    #[arg(long, value_name = "NAME", env = "ROLLCALL_GROUP", default_value = DEFAULT_GROUP)]
    group: String,
}

/// Which cluster.
#[derive(clap::Args)]
struct Brokers {
    /// Brokers, host:port, several separated by commas
    #[arg(long, value_name = "BOOTSTRAP", env = "ROLLCALL_KAFKA")]
    kafka: String,
    #[command(flatten)]
    cluster: Cluster,
}

impl Brokers {
    fn connection(&self) -> anyhow::Result<Connection> {
        Ok(self.cluster.connection(&self.kafka)?)
    }
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    let written = match &args.what {
        What::Create {
            brokers,
            partitions,
            replication,
            retention_hours,
        } => {
            let wanted = RequestedTopics {
                partitions: *partitions,
                replication: *replication,
                retention_ms: retention_hours.map(|hours| hours * 3_600_000),
            };
            create(&brokers.connection()?, wanted, &mut output)
        }
        What::Check { brokers, kept } => {
            let connection = brokers.connection()?;
            check(&connection, &mut output).and_then(|()| check_checkpoints(connection, kept, &mut output))
        }
    };
    match written {
        Err(error) if super::is_broken_pipe(&error) => Ok(()),
        other => other,
    }
}

fn create(connection: &Connection, wanted: RequestedTopics, output: &mut impl Write) -> anyhow::Result<()> {
    let created = admin::create(connection, wanted)?;
    for topic in &created.plan.make {
        let settings: Vec<String> = topic
            .settings
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        writeln!(
            output,
            "made {}: {}, replication {}, {}",
            topic.name,
            counted(topic.partitions as usize, "partition"),
            topic.replication,
            settings.join(" ")
        )?;
    }
    for topic in &created.plan.there {
        writeln!(output, "{topic} is there already")?;
    }
    tell(connection, &created.checked, output)
}

fn check(connection: &Connection, output: &mut impl Write) -> anyhow::Result<()> {
    tell(connection, &admin::check(connection)?, output)
}

/// Warns of each partition whose checkpoints the log will soon no longer reach. That stops nobody.
fn check_checkpoints(connection: Connection, kept: &Kept, output: &mut impl Write) -> anyhow::Result<()> {
    let Some(url) = &kept.checkpoints else {
        return Ok(());
    };
    let runtime = tokio::runtime::Runtime::new().context("the runtime cannot be started")?;
    let handle = runtime.handle().clone();
    // Any number may be kept: nothing is taken away here.
    let checkpoints = Checkpoints::open(url, &kept.group, usize::MAX, std::env::vars(), handle)?;
    let events = connection.topic(Topic::Events);
    let reader = KafkaReader::connect(connection, Arc::new(SystemClock::new()))?;
    let mut warned = 0;
    for partition in (0..reader.partitions()).map(Partition) {
        let range = reader.range(Topic::Events, partition)?;
        let listed = checkpoints.newest(partition)?;
        if let Some(warning) = retention_warning(&listed, range.start, range.end) {
            writeln!(output, "warning {events}, partition {partition}: {warning}")?;
            warned += 1;
        }
    }
    if warned == 0 {
        writeln!(output, "the log reaches the checkpoints of group {:?}", kept.group)?;
    }
    Ok(())
}

/// What was found, and how it ends.
fn tell(connection: &Connection, checked: &Checked, output: &mut impl Write) -> anyhow::Result<()> {
    for finding in &checked.findings {
        let weight = match finding.weight {
            Severity::Refused => "refused",
            Severity::Warning => "warning",
        };
        writeln!(output, "{weight} {finding}")?;
    }
    let refused = checked.refusals().count();
    if refused > 0 {
        let things = counted(refused, "thing");
        bail!("{things} would break the rules, so the engine does not start on these topics");
    }
    writeln!(
        output,
        "{} topics with {} on {}: the engine can start",
        topics::ManagedTopic::ALL.len(),
        counted(checked.partitions as usize, "partition"),
        counted(checked.brokers, "broker")
    )?;
    writeln!(output, "rollcall serve {}", connection.flags())?;
    Ok(())
}

fn counted(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {noun}{plural}")
}
