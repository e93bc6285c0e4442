//! Flags for the connection to a Kafka cluster, shared by the commands that use one.

use crate::config::Config;
use crate::log::kafka::settings::{Connection, Invalid};
use std::path::PathBuf;

/// Topic names and client settings. Each command has its own flag for the brokers, since not every command requires them.
#[derive(clap::Args, Debug)]
pub struct Cluster {
    /// Prefix of the topics' names: PREFIX.events and so on [default: presence]
    #[arg(long, value_name = "PREFIX", env = "ROLLCALL_TOPIC_PREFIX", requires = "kafka")]
    topic_prefix: Option<String>,
    /// Properties file with settings of librdkafka, for example for TLS and SASL
    #[arg(long, value_name = "FILE", env = "ROLLCALL_KAFKA_PROPERTIES", requires = "kafka")]
    kafka_properties: Option<PathBuf>,
    /// A setting of librdkafka; may be given several times, and takes precedence over the file
    #[arg(long, value_name = "KEY=VALUE", requires = "kafka")]
    kafka_set: Vec<String>,
}

/// Checks the Kafka settings that the configuration does not check, before anything is created or connected.
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
