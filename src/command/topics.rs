//! `rollcall topics`: creates the topics of a Kafka cluster, checks those that exist, or prints who needs which permissions.
//!
//! `create` may be run repeatedly: it creates what is missing, leaves the rest as it is, and ends with the report of `check`.
//! Both end with exit status 2 if a setting would break the rules.

mod acls;

use super::cluster::Cluster;
use super::connect;
use crate::checkpoint::{Checkpoints, Origin};
use crate::clock::SystemClock;
use crate::config::DEFAULT_GROUP;
use crate::config::units::Hours;
use crate::engine::{origin, other_log_warning, retention_warning};
use crate::log::Reader as _;
use crate::log::kafka::KafkaReader;
use crate::log::kafka::admin::{self, Checked};
use crate::log::kafka::settings::Connection;
use crate::log::kafka::topics::{RequestedTopics, Severity};
use crate::presence::Partition;
use crate::topics::Topic;
use anyhow::{Context as _, bail};
use std::io::{self, Write};
use std::sync::Arc;

/// Creates the topics of a Kafka cluster, checks them, or prints the permissions that they need
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand)]
enum What {
    /// Creates the missing topics, with the settings that Rollcall needs
    Create {
        #[command(flatten)]
        brokers: Brokers,
        /// Partitions of each topic, 1 to 1024; cannot be changed later [default: that of existing topics, else 64]
        #[arg(long, value_name = "N")]
        partitions: Option<u32>,
        /// Number of brokers that keep a copy of each partition [default: 3, or the number of brokers if fewer]
        #[arg(long, value_name = "N")]
        replication: Option<usize>,
        /// How long events and outputs are kept, 1 to 876000 hours [default: 720, which is 30 days]
        #[arg(long, value_name = "HOURS")]
        retention_hours: Option<Hours>,
    },
    /// Reports what is wrong with the topics, and the command that fixes each problem
    Check {
        #[command(flatten)]
        brokers: Brokers,
        #[command(flatten)]
        kept: Kept,
    },
    /// Prints the commands that give a principal the least permissions; asks no broker
    ///
    /// The commands are for Kafka's own kafka-acls.sh. Brokers before Kafka 3.0 also need IdempotentWrite on the cluster for
    /// engines and for publishers that use an idempotent producer.
    Acls {
        #[command(flatten)]
        brokers: Brokers,
        /// Who gets the permissions, as the brokers name it
        #[arg(long, value_name = "TYPE:NAME")]
        principal: String,
        /// What the principal does; may be given several times [default: all, one after the other]
        #[arg(long, value_enum)]
        role: Vec<acls::Role>,
        /// The group of the engines
        #[arg(long, value_name = "NAME", env = "ROLLCALL_GROUP", default_value = DEFAULT_GROUP)]
        group: String,
        /// The group of the consumer: of the gateway, the reader or the webhook
        #[arg(long, value_name = "NAME", default_value = "rollcall-webhook")]
        consumer_group: String,
    },
}

/// The checkpoints that the log is compared with.
#[derive(clap::Args)]
struct Kept {
    /// Where `rollcall serve` keeps checkpoints; warns of each partition whose oldest checkpoint the log will soon not reach
    #[arg(long, value_name = "URL", env = "ROLLCALL_CHECKPOINTS", hide_env_values = true)]
    checkpoints: Option<String>,
    /// The group that made the checkpoints
    #[arg(long, value_name = "NAME", env = "ROLLCALL_GROUP", default_value = DEFAULT_GROUP)]
    group: String,
}

/// Which cluster.
#[derive(clap::Args)]
struct Brokers {
    /// The brokers, as host:port, separated by commas
    #[arg(long, value_name = "BOOTSTRAP", env = "ROLLCALL_KAFKA")]
    kafka: String,
    #[command(flatten)]
    cluster: Cluster,
}

impl Brokers {
    fn connection(&self) -> anyhow::Result<Connection> {
        Ok(connect::of_flags(&self.kafka, &self.cluster)?)
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
            const HOUR_MS: u64 = 3_600_000;
            let checked = |hours| Hours::within("retention_hours", Some(hours), 0, HOUR_MS, 876_000 * HOUR_MS);
            let wanted = RequestedTopics {
                partitions: *partitions,
                replication: *replication,
                retention_ms: retention_hours.map(checked).transpose()?,
            };
            create(&brokers.connection()?, wanted, &mut output)
        }
        What::Check { brokers, kept } => {
            let connection = brokers.connection()?;
            check(&connection, &mut output).and_then(|()| check_checkpoints(connection, kept, &mut output))
        }
        What::Acls {
            brokers,
            principal,
            role,
            group,
            consumer_group,
        } => {
            if !principal
                .split_once(':')
                .is_some_and(|(kind, name)| !kind.is_empty() && !name.is_empty())
            {
                bail!("--principal {principal:?} must have the form TYPE:NAME, such as User:engine");
            }
            let roles = match role.is_empty() {
                true => &acls::Role::ALL[..],
                false => role,
            };
            let connection = brokers.connection()?;
            let text = acls::commands(roles, principal, &connection, &brokers.kafka, group, consumer_group);
            output.write_all(text.as_bytes()).map_err(Into::into)
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
            "created {}: {}, replication {}, {}",
            topic.name,
            counted(topic.partitions as usize, "partition"),
            topic.replication,
            settings.join(" ")
        )?;
    }
    for topic in &created.plan.there {
        writeln!(output, "{topic} exists already")?;
    }
    for finding in &created.plan.unchanged {
        writeln!(output, "warning {finding}")?;
    }
    report(connection, &created.checked, output)
}

fn check(connection: &Connection, output: &mut impl Write) -> anyhow::Result<()> {
    report(connection, &admin::check(connection)?, output)
}

/// Prints a warning for each partition whose checkpoints the log will soon no longer reach, or with checkpoints of another
/// log. Warnings do not change the exit status.
fn check_checkpoints(connection: Connection, kept: &Kept, output: &mut impl Write) -> anyhow::Result<()> {
    let Some(url) = &kept.checkpoints else {
        return Ok(());
    };
    let warnings = checkpoint_warnings(connection, url, &kept.group)?;
    for warning in &warnings {
        writeln!(output, "warning {warning}")?;
    }
    if warnings.is_empty() {
        writeln!(
            output,
            "the log reaches back to every checkpoint of group {:?}",
            kept.group
        )?;
    }
    Ok(())
}

/// Returns a warning for each partition whose checkpoints the log will soon no longer reach, and for each that has checkpoints
/// of another log.
pub fn checkpoint_warnings(connection: Connection, url: &str, group: &str) -> anyhow::Result<Vec<String>> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let handle = runtime.handle().clone();
    // Nothing is deleted here, so no limit applies.
    let checkpoints = Checkpoints::open(url, group, usize::MAX, std::env::vars(), handle)?;
    let events = connection.topic(Topic::Events);
    let mut reader = KafkaReader::connect(connection, Arc::new(SystemClock::new()))?;
    let mut warnings = Vec::new();
    for partition in (0..reader.partitions()).map(Partition) {
        let range = reader.range(Topic::Events, partition)?;
        let listed = checkpoints.newest(partition)?;
        let (mut own, mut others) = (Vec::new(), Vec::new());
        for one in listed {
            let origin = origin(one.next, one.last.as_ref(), range, |from, limit, into| {
                reader.read(Topic::Events, partition, from, limit, into)
            });
            match origin {
                Origin::OtherLog => others.push(one.name),
                Origin::ThisLog | Origin::Unknown => own.push(one.name),
            }
        }
        let found = [
            other_log_warning(&others, &checkpoints.shown(partition)),
            retention_warning(&own, range.start, range.end),
        ];
        for warning in found.into_iter().flatten() {
            warnings.push(format!("{events}, partition {partition}: {warning}"));
        }
    }
    Ok(warnings)
}

/// Prints the findings. Fails if one of them would break the rules.
fn report(connection: &Connection, checked: &Checked, output: &mut impl Write) -> anyhow::Result<()> {
    for finding in &checked.findings {
        let weight = match finding.weight {
            Severity::Refused => "refused",
            Severity::Warning => "warning",
        };
        writeln!(output, "{weight} {finding}")?;
    }
    let refused = checked.refusals().count();
    if refused > 0 {
        let problems = counted(refused, "problem");
        bail!(
            "{problems} would break the rules, so the engine does not start on these topics; correct what is refused above"
        );
    }
    writeln!(
        output,
        "{} topics with {} on {}: the engine can start",
        checked.topics,
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
