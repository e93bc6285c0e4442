//! `rollcall quarantine`: what malformed records there are, what is wrong with one, and how events that can be read now are
//! published again.

mod candidates;
mod explain;
mod list;
mod requeue;

use super::cluster::Cluster;
use super::log::open;
use super::remote::printed;
use super::schemas::{next_records, schemas_of};
use crate::config::SecretUrl;
use crate::log::{Limit, Range, Reader, Record};
use crate::presence::{Offset, Partition};
use crate::registry::Schemas;
use crate::schema::avro::{self, Quarantined};
use crate::topics::Topic;
use anyhow::{Context as _, bail};
use std::ops;
use std::path::PathBuf;
use tokio::runtime::Runtime;

/// Shows malformed events, explains one, and publishes those again that can be read now
///
/// `rollcall log quarantine` prints the complete records.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    List(Box<list::ListArgs>),
    Explain(Box<explain::ExplainArgs>),
    Requeue(Box<requeue::RequeueArgs>),
}

/// Where the quarantine is read.
#[derive(clap::Args)]
struct Source {
    /// The server's data directory; its log has the quarantine
    #[arg(
        long,
        value_name = "DIR",
        default_value = "./rollcall-data",
        conflicts_with = "kafka"
    )]
    data: PathBuf,
    /// Reads the quarantine from Apache Kafka instead: the brokers, separated by commas
    #[arg(long, value_name = "HOST:PORT", env = "ROLLCALL_KAFKA")]
    kafka: Option<String>,
    #[command(flatten)]
    cluster: Cluster,
    /// The schema registry, if records were written with one
    #[arg(long, value_name = "URL", env = "ROLLCALL_REGISTRY", hide_env_values = true)]
    registry: Option<SecretUrl>,
}

const ONE: Limit = Limit { records: 1, bytes: 1 };

/// A log that is open for reading, with the schemas of its records.
struct Quarantine {
    reader: Box<dyn Reader>,
    schemas: Schemas,
    _runtime: Option<Runtime>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    printed(match args.command {
        Command::List(args) => list::list(&args),
        Command::Explain(args) => explain::explain(&args),
        Command::Requeue(args) => requeue::requeue(&args),
    })
}

impl Source {
    fn open(&self) -> anyhow::Result<Quarantine> {
        let mut reader = open(self.kafka.as_deref(), &self.data, &self.cluster)?;
        let (schemas, runtime) = schemas_of(&mut *reader, self.registry.as_ref())?;
        Ok(Quarantine {
            reader,
            schemas,
            _runtime: runtime,
        })
    }
}

impl Quarantine {
    /// Returns the partition of this number, or all.
    fn partitions(&self, only: Option<u32>) -> anyhow::Result<ops::Range<u32>> {
        let partitions = self.reader.partitions();
        match only {
            Some(one) if one >= partitions => bail!(
                "partition {one} does not exist; the log has {partitions} partitions, 0 to {}",
                partitions.saturating_sub(1)
            ),
            Some(one) => Ok(one..one + 1),
            None => Ok(0..partitions),
        }
    }

    /// Reads the next records before `end` and moves `next` behind them. Returns nothing at the end.
    fn batch(
        &mut self,
        topic: Topic,
        partition: Partition,
        next: &mut Offset,
        end: Offset,
    ) -> anyhow::Result<Vec<Record>> {
        next_records(&mut *self.reader, (topic, partition), next, end)
    }

    fn range(&self, topic: Topic, partition: Partition) -> anyhow::Result<Range> {
        Ok(self.reader.range(topic, partition)?)
    }

    fn quarantined<'r>(&self, partition: Partition, record: &'r Record) -> anyhow::Result<Quarantined<'r>> {
        let learned = self.schemas.learn([record.framed()])?;
        avro::decode_quarantined_with(&record.value, &learned).with_context(|| {
            let offset = record.offset;
            format!("cannot read offset {offset} of the quarantine in partition {partition}")
        })
    }

    /// Returns the malformed record as it was, with the header that names its schema if the log still has that record.
    fn original(&mut self, quarantined: &Quarantined<'_>) -> anyhow::Result<Record> {
        let (partition, offset) = (quarantined.partition, quarantined.offset);
        let mut records = Vec::new();
        let range = self.range(Topic::Events, partition)?;
        if (range.start..range.end).contains(&offset) {
            self.reader.read(Topic::Events, partition, offset, ONE, &mut records)?;
        }
        let kept = records.into_iter().find(|record| record.offset == offset);
        Ok(kept.unwrap_or_else(|| Record {
            offset,
            ts: quarantined.ts,
            key: quarantined.key.as_deref().map(<[u8]>::to_vec),
            value: quarantined.value.as_deref().unwrap_or_default().to_vec(),
            is_null: quarantined.value.is_none(),
            headers: None,
        }))
    }
}

/// Returns a time as people read it, in UTC.
fn shown_time(ts: u64) -> String {
    let time = i64::try_from(ts).ok().and_then(chrono::DateTime::from_timestamp_millis);
    time.map_or_else(
        || format!("{ts} ms"),
        |time| time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true),
    )
}
