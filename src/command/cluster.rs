//! How a Kafka cluster is reached: the flags of every command that speaks to one beside its brokers.

use crate::config::Config;
use crate::log::kafka::settings::{Connection, Invalid};
use std::path::PathBuf;

/// Names and settings; the brokers are a flag of each command's own, since not every command needs them.
#[derive(clap::Args, Debug)]
pub struct Cluster {
    /// What the topics' names begin with: PREFIX.events and so on [default: presence]
    #[arg(long, value_name = "PREFIX", env = "ROLLCALL_TOPIC_PREFIX", requires = "kafka")]
    topic_prefix: Option<String>,
    /// A properties file with settings of librdkafka, for TLS and SASL say
    #[arg(long, value_name = "FILE", env = "ROLLCALL_KAFKA_PROPERTIES", requires = "kafka")]
    kafka_properties: Option<PathBuf>,
    /// A setting of librdkafka, as often as needed; wins over the file
    #[arg(long, value_name = "KEY=VALUE", requires = "kafka")]
    kafka_set: Vec<String>,
}

/// Checks the settings of a cluster that configuration knows nothing of, before anything is made or reached.
pub(super) fn check(config: &Config) -> Result<(), Invalid> {
    let Some(kafka) = &config.kafka else { return Ok(()) };
    let (prefix, properties) = (kafka.topic_prefix.as_deref(), kafka.properties.as_deref());
    Connection::new(&kafka.bootstrap, prefix, properties, &kafka.set.0).map(drop)
}

impl Cluster {
    pub fn connection(&self, bootstrap: &str) -> Result<Connection, Invalid> {
        Connection::new(
            bootstrap,
            self.topic_prefix.as_deref(),
            self.kafka_properties.as_deref(),
            &self.kafka_set,
        )
    }
}
