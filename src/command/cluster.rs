//! Flags for the connection to a Kafka cluster, shared by the commands that use one.

use std::path::PathBuf;

/// Topic names and client settings. Each command has its own flag for the brokers, since not every command requires them.
#[derive(clap::Args, Clone, Debug)]
pub struct Cluster {
    /// Prefix of the topics' names: PREFIX.events and so on [default: presence]
    #[arg(long, value_name = "PREFIX", env = "ROLLCALL_TOPIC_PREFIX", requires = "kafka")]
    pub topic_prefix: Option<String>,
    /// Properties file with settings of librdkafka, for example for TLS and SASL
    #[arg(long, value_name = "FILE", env = "ROLLCALL_KAFKA_PROPERTIES", requires = "kafka")]
    pub kafka_properties: Option<PathBuf>,
    /// A setting of librdkafka; may be given several times, and takes precedence over the file
    #[arg(long, value_name = "KEY=VALUE", requires = "kafka")]
    pub kafka_set: Vec<String>,
}
