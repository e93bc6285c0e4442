//! Every setting of `rollcall serve`: unit, default and bounds. Flags win over the environment, both over the file.

mod access;
pub mod address;
mod file;
pub mod gateway;
mod invalid;
mod kafka;
mod tim;
mod tokens;
pub mod units;

pub use access::{CertificateFiles, Oidc, PeerCertificates, PeerTls, is_loopback};
pub use address::{SecretUrl, masked};
pub use invalid::Invalid;
pub use tim::{Credential, Tim, TimUnknown};
pub use tokens::{read_tokens, warn_if_shared};

use crate::presence::policy::Policy;
use crate::presence::{Offset, Partition};
use crate::schema::policy::{POLICY_BYTES_MAX, parse_written_policy, policy_json};
use anyhow::{Context as _, anyhow, bail};
use chrono::DateTime;
use clap::ValueEnum;
use file::SettingsFile;
use serde::Deserialize;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use units::{Hours, Mebibytes, Span};

/// Runs the engine: on one machine with an embedded log, or with --kafka as one of many
///
/// Without arguments: data in ./rollcall-data, HTTP and the console on http://127.0.0.1:8080. Every flag may also be
/// given as the environment variable named beside it, or in a TOML file (`--config`) under its name with underscores.
/// A time or a size may have a unit, such as 30s, 10m or 64MiB.
#[derive(clap::Args, Deserialize, Clone, Default, Debug)]
#[serde(deny_unknown_fields)]
pub struct Flags {
    /// A TOML file with any of these settings
    #[arg(long, value_name = "FILE", env = "ROLLCALL_CONFIG")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Directory of log and store, made if it is not there [default: rollcall-data]
    #[arg(long, value_name = "DIR", env = "ROLLCALL_DATA")]
    pub data: Option<PathBuf>,
    /// Where HTTP is served; any other than a loopback address needs --token-file [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR:PORT", env = "ROLLCALL_LISTEN", value_parser = address::listen)]
    #[serde(default, deserialize_with = "address::listen_in_file")]
    pub listen: Option<SocketAddr>,
    /// The first policy, a JSON file, for a new log. To change the rules later: `rollcall policy set FILE`
    #[arg(long, value_name = "FILE", env = "ROLLCALL_POLICY")]
    pub policy: Option<PathBuf>,
    /// Ignores --policy when the log has records and began with another policy, instead of refusing to start
    #[arg(long, env = "ROLLCALL_POLICY_IF_NEW", value_parser = clap::builder::BoolishValueParser::new())]
    #[serde(default)]
    pub policy_if_new: bool,
    /// Partitions of a new log, 1 to 1024, fixed when it is made [default: 4]
    #[arg(long, value_name = "COUNT", env = "ROLLCALL_PARTITIONS")]
    pub partitions: Option<u32>,
    /// Bearer tokens, one per line: the token, a space, and its scopes separated by commas (read, publish,
    /// publish:GATEWAY, metrics, admin). Read again when it changes
    #[arg(long, value_name = "FILE", env = "ROLLCALL_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// Accepts tokens of an OpenID Connect issuer too: its URL, exactly as in the tokens. Needs --oidc-audience
    #[arg(long, value_name = "URL", env = "ROLLCALL_OIDC_ISSUER")]
    pub oidc_issuer: Option<String>,
    /// The audience (`aud`) that these tokens must name
    #[arg(long, value_name = "TEXT", env = "ROLLCALL_OIDC_AUDIENCE")]
    pub oidc_audience: Option<String>,
    /// The claim of these tokens with their scopes, also a path such as realm_access.roles [default: scope]
    #[arg(long, value_name = "CLAIM", env = "ROLLCALL_OIDC_SCOPE_CLAIM")]
    pub oidc_scope_claim: Option<String>,
    /// What is before the name of each scope in that claim, as in rollcall:read; others are passed over [default: rollcall:]
    #[arg(long, value_name = "TEXT", env = "ROLLCALL_OIDC_SCOPE_PREFIX")]
    pub oidc_scope_prefix: Option<String>,
    /// The claim that names who acts, in the log [default: sub]
    #[arg(long, value_name = "CLAIM", env = "ROLLCALL_OIDC_NAME_CLAIM")]
    pub oidc_name_claim: Option<String>,
    /// CA certificates (PEM) that the issuer's server must have its certificate from, instead of those of this machine
    #[arg(long, value_name = "FILE", env = "ROLLCALL_OIDC_CA_FILE")]
    pub oidc_ca_file: Option<PathBuf>,
    /// Serves HTTP with TLS: the certificate chain (PEM); needs --http-tls-key. Read again when it changes
    #[arg(long, value_name = "FILE", env = "ROLLCALL_HTTP_TLS_CERT")]
    pub http_tls_cert: Option<PathBuf>,
    /// The private key (PEM) of --http-tls-cert. Read again when it changes
    #[arg(long, value_name = "FILE", env = "ROLLCALL_HTTP_TLS_KEY")]
    pub http_tls_key: Option<PathBuf>,
    /// Maximum number of concurrent HTTP connections, 1 to 1000000 [default: 4096, or fewer if the limit of open files is low]
    #[arg(long, value_name = "COUNT", env = "ROLLCALL_HTTP_CONNECTIONS_MAX")]
    pub http_connections_max: Option<u64>,
    /// Memory for the bodies of all HTTP requests together, in MiB, 16 to 65536 [default: 256]
    #[arg(long, value_name = "MIB", env = "ROLLCALL_HTTP_BODY_MIB")]
    pub http_body_mib: Option<Mebibytes>,
    /// An origin whose pages may use HTTP, such as https://chat.example.com; may be given several times
    #[arg(long, value_name = "ORIGIN", env = "ROLLCALL_CORS_ORIGIN", value_delimiter = ',')]
    #[serde(default)]
    pub cors_origin: Vec<String>,
    /// Records older than this many hours are deleted, 1 to 876000 [default: 720, that is 30 days]
    #[arg(long, value_name = "HOURS", env = "ROLLCALL_RETENTION_HOURS")]
    pub retention_hours: Option<Hours>,
    /// Maximum size of each topic partition in MiB, 1 to 1048576; older records are deleted [default: 4096]
    #[arg(long, value_name = "MIB", env = "ROLLCALL_RETENTION_MIB")]
    pub retention_mib: Option<Mebibytes>,
    /// Maximum number of users with no online device to keep in memory, per partition, 0 to 10000000 [default: 50000]
    #[arg(long, value_name = "COUNT", env = "ROLLCALL_CACHED_USERS")]
    pub cached_users: Option<usize>,
    /// Memory for blocks of the stores of all partitions, in MiB, 8 to 1048576 [default: 128]
    #[arg(long, value_name = "MIB", env = "ROLLCALL_STORE_CACHE_MIB")]
    pub store_cache_mib: Option<Mebibytes>,
    /// Maximum number of changes in the index of changes, per partition, 0 (no index) to 10^12 [default: 100000000]
    #[arg(long, value_name = "COUNT", env = "ROLLCALL_INDEX_CHANGES")]
    pub index_changes: Option<u64>,
    /// Maximum number of records of a partition read to answer a question about the past over HTTP, 0 to 10^12
    /// [default: 2000000]
    #[arg(long, value_name = "COUNT", env = "ROLLCALL_AUDIT_RECORDS")]
    pub audit_records: Option<u64>,
    /// Format of the log on standard error [default: human]
    #[arg(long, value_enum, env = "ROLLCALL_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,
    /// Lowest level that is logged [default: info]
    #[arg(long, value_enum, env = "ROLLCALL_LOG_LEVEL")]
    pub log_level: Option<LogLevel>,
    /// Uses Apache Kafka instead of the embedded log: the brokers, separated by commas. `rollcall topics create` creates the
    /// topics
    #[arg(long, value_name = "HOST:PORT", env = "ROLLCALL_KAFKA", help_heading = "Kafka")]
    pub kafka: Option<String>,
    /// Prefix of the topics' names [default: presence]
    #[arg(long, value_name = "PREFIX", env = "ROLLCALL_TOPIC_PREFIX", help_heading = "Kafka")]
    pub topic_prefix: Option<String>,
    /// The consumer group: its processes share the partitions, 1 to 200 bytes [default: rollcall]
    #[arg(long, value_name = "NAME", env = "ROLLCALL_GROUP", help_heading = "Kafka")]
    pub group: Option<String>,
    /// URL at which other nodes reach this node [default: http:// or https://, and --listen]
    #[arg(
        long,
        value_name = "URL",
        env = "ROLLCALL_ADVERTISE",
        hide_env_values = true,
        help_heading = "Kafka"
    )]
    pub advertise: Option<SecretUrl>,
    /// File with the secret by which nodes authenticate each other, in its first line, the same for all nodes; with a
    /// --token-file, nodes query each other only if they have it
    #[arg(long, value_name = "FILE", env = "ROLLCALL_PEER_TOKEN_FILE", help_heading = "Kafka")]
    pub peer_token_file: Option<PathBuf>,
    /// CA certificates (PEM) of the nodes: nodes ask each other only over TLS, show the certificate of --http-tls-cert, and
    /// require one of this CA. Read again when it changes
    #[arg(long, value_name = "FILE", env = "ROLLCALL_PEER_CA", help_heading = "Kafka")]
    pub peer_ca: Option<PathBuf>,
    /// Whether nodes must show a certificate of --peer-ca [default: required]
    #[arg(long, value_enum, env = "ROLLCALL_PEER_CERTIFICATES", help_heading = "Kafka")]
    pub peer_certificates: Option<PeerCertificates>,
    /// How long a start waits for brokers and a schema registry that do not answer: 0s to 10m [default: 60s]
    #[arg(long, value_name = "TIME", env = "ROLLCALL_START_WAIT", help_heading = "Kafka")]
    pub start_wait: Option<Span<0>>,
    /// A setting of librdkafka (SASL, TLS, tuning); may be given several times
    #[arg(long, value_name = "KEY=VALUE", help_heading = "Kafka")]
    #[serde(default)]
    pub kafka_set: Vec<String>,
    /// Properties file with settings of librdkafka, one per line; use it for secret settings
    #[arg(long, value_name = "FILE", env = "ROLLCALL_KAFKA_PROPERTIES", help_heading = "Kafka")]
    pub kafka_properties: Option<PathBuf>,
    /// A URI: output records get the attributes of CloudEvents as headers too, with a source that begins with it
    #[arg(
        long,
        value_name = "URI",
        env = "ROLLCALL_CLOUDEVENTS_SOURCE",
        help_heading = "Kafka"
    )]
    pub cloudevents_source: Option<String>,
    /// When partitions are raised to a newer revision [default: by-command]
    #[arg(long, value_enum, env = "ROLLCALL_RAISE_REVISION")]
    pub raise_revision: Option<RaiseRevision>,
    /// Accepts a time that was refused: this machine's clock if it is within an hour of TIME (2026-01-31T12:00:00Z), or
    /// on Kafka the timestamp of one record, PARTITION:OFFSET
    #[arg(long, value_name = "TIME")]
    pub accept_time: Option<String>,
    /// For one start, if the group has lost its position or has one that does not match the output topics: folds again,
    /// compares with the outputs that are there, and sends only what is missing. Without it such a partition halts
    #[arg(long, help_heading = "Kafka")]
    #[serde(default)]
    pub adopt_tail: bool,
    /// How many other nodes stand by for each partition of a node, 0 to 3: they fold along and answer while the partition
    /// moves. Each needs as much memory as the owner [default: 0]
    #[arg(long, value_name = "COUNT", env = "ROLLCALL_STANDBYS", help_heading = "Kafka")]
    pub standbys: Option<u64>,
    /// URL of a schema registry (Confluent's REST interface): values are framed for it, and schemas are read from it
    #[arg(
        long,
        value_name = "URL",
        env = "ROLLCALL_REGISTRY",
        hide_env_values = true,
        help_heading = "Kafka"
    )]
    pub registry: Option<SecretUrl>,
    /// Registers our schemas at start if they are missing
    #[arg(
        long,
        env = "ROLLCALL_REGISTRY_REGISTER",
        value_parser = clap::builder::BoolishValueParser::new(),
        help_heading = "Kafka"
    )]
    #[serde(default)]
    pub registry_register: bool,
    /// Where checkpoints (copies of the partitions' stores, for other machines) are kept: file:///DIRECTORY or s3://BUCKET/PREFIX
    #[arg(
        long,
        value_name = "URL",
        env = "ROLLCALL_CHECKPOINTS",
        hide_env_values = true,
        help_heading = "Kafka"
    )]
    pub checkpoints: Option<String>,
    /// Time between two checkpoints of a partition: 1s to 24h [default: 10m]
    #[arg(long, value_name = "TIME", env = "ROLLCALL_CHECKPOINT_EVERY", help_heading = "Kafka")]
    pub checkpoint_every: Option<Span<0>>,
    /// Number of checkpoints kept per partition, 1 to 1000 [default: 3]
    #[arg(
        long,
        value_name = "COUNT",
        env = "ROLLCALL_CHECKPOINTS_KEPT",
        help_heading = "Kafka"
    )]
    pub checkpoints_kept: Option<u64>,
    /// Simulated users who come and go through the same HTTP interface as real ones, 1 to 100000
    #[arg(long, value_name = "USERS", env = "ROLLCALL_DEMO")]
    pub demo: Option<u32>,
    /// SDKAppID, 1 to 4294967295: adds the Tencent-compatible routes below /v4
    #[arg(long, value_name = "ID", env = "ROLLCALL_TIM_APP")]
    pub tim_app: Option<u64>,
    /// Secret key of that app. Other users of this machine can see it on the command line
    #[arg(long, value_name = "KEY", env = "ROLLCALL_TIM_KEY", hide_env_values = true)]
    pub tim_key: Option<Credential>,
    /// File with that secret key in its first line
    #[arg(long, value_name = "FILE", env = "ROLLCALL_TIM_KEY_FILE")]
    pub tim_key_file: Option<PathBuf>,
    /// Names of the administrators whose signatures are accepted, separated by commas [default: administrator]
    #[arg(long, value_name = "NAMES", env = "ROLLCALL_TIM_ADMINS", value_delimiter = ',')]
    pub tim_admins: Option<Vec<String>>,
    /// Answer about users who were never seen [default: error]
    #[arg(long, value_enum, env = "ROLLCALL_TIM_UNKNOWN")]
    pub tim_unknown: Option<TimUnknown>,
    /// Runs a gateway in this process, at this address for WebSocket clients; see docs/gateway.md
    #[arg(long, value_name = "ADDR:PORT", env = "ROLLCALL_GATEWAY", value_parser = address::listen)]
    #[serde(default, deserialize_with = "address::listen_in_file")]
    pub gateway: Option<SocketAddr>,
    #[command(flatten)]
    #[serde(default)]
    pub edge: gateway::Flags,
}

#[derive(ValueEnum, Deserialize, Clone, Copy, PartialEq, Eq, Default, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum RaiseRevision {
    /// When `rollcall upgrade` is run
    #[default]
    ByCommand,
    /// As soon as every node that has partitions knows it
    ByItself,
}

#[derive(ValueEnum, Deserialize, Clone, Copy, PartialEq, Eq, Default, Debug)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    #[default]
    Human,
    Json,
}

#[derive(ValueEnum, Deserialize, Clone, Copy, PartialEq, Eq, Default, Debug)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
}

impl LogLevel {
    pub fn name(self) -> &'static str {
        match self {
            LogLevel::Error => "error",
            LogLevel::Warn => "warn",
            LogLevel::Info => "info",
            LogLevel::Debug => "debug",
        }
    }
}

/// The settings, complete and within their bounds.
#[derive(Clone, Debug)]
pub struct Config {
    pub data: PathBuf,
    pub listen: SocketAddr,
    /// The first policy of an empty log.
    pub policy: Policy,
    /// Whether somebody asked for that policy.
    pub policy_given: bool,
    /// Whether it is ignored where the log has records.
    pub policy_if_new: bool,
    pub partitions: Option<u32>,
    pub tokens: Option<Vec<(String, Scopes)>>,
    /// Where they are from; read again when it changes.
    pub token_file: Option<PathBuf>,
    /// An issuer whose tokens are accepted too.
    pub oidc: Option<Oidc>,
    /// The certificate of HTTP. None: without TLS.
    pub http_tls: Option<CertificateFiles>,
    /// Maximum number of HTTP connections. `None`: as many as the limit of open files allows.
    pub http_connections_max: Option<usize>,
    /// Maximum memory of HTTP bodies and of what is made of them, at once.
    pub http_body_bytes: usize,
    /// Origins whose pages may use HTTP.
    pub cors_origins: Vec<String>,
    pub retention_ms: u64,
    pub retention_bytes: u64,
    /// For the embedded log: the clock of the machine is believed if it is within an hour of this time.
    pub accepted_time_ms: Option<u64>,
    /// Files that hold secrets, each with what they hold.
    pub secret_files: Vec<(&'static str, PathBuf)>,
    pub cached_users: usize,
    /// The memory of the block cache that all stores share.
    pub store_cache_bytes: usize,
    /// Maximum number of changes in the index of each partition; 0: no index.
    pub index_changes: u64,
    /// Read of a partition for one question about the past.
    pub audit_records: u64,
    pub log_format: LogFormat,
    pub log_level: LogLevel,
    pub demo: Option<u32>,
    /// The Tencent-compatible routes, if they are asked for.
    pub tim: Option<Tim>,
    /// None: the log is embedded.
    pub kafka: Option<Kafka>,
    pub registry: Option<Registry>,
    /// What `ce_source` begins with, without a slash at its end. None: no attributes of CloudEvents.
    pub cloudevents_source: Option<String>,
    pub raise_revision: RaiseRevision,
    pub checkpoints: Option<Checkpoints>,
    /// How long a start waits for brokers and a registry that do not answer.
    pub start_wait_ms: u64,
    /// The WebSocket edge, if it runs in this process.
    pub gateway: Option<gateway::Config>,
}

/// A schema registry is used.
#[derive(Clone, Debug)]
pub struct Registry {
    pub url: SecretUrl,
    /// Whether our schemas may be registered.
    pub register: bool,
}

/// Checkpoints are made, and taken.
#[derive(Clone, Debug)]
pub struct Checkpoints {
    pub url: String,
    pub every_ms: u64,
    pub kept: usize,
}

/// The log is on Kafka.
#[derive(Clone, Debug)]
pub struct Kafka {
    pub bootstrap: String,
    pub topic_prefix: Option<String>,
    pub group: String,
    /// Without a slash at its end.
    pub advertise: Option<String>,
    /// The secret by which nodes know each other.
    pub peer_token: Option<Credential>,
    /// The certificates by which they do so too.
    pub peer_tls: Option<PeerTls>,
    /// As given, `key=value`: not checked here, and never shown.
    pub set: Secret<Vec<String>>,
    pub properties: Option<PathBuf>,
    /// A record that is folded though its time is far ahead.
    pub accepted: Option<(Partition, Offset)>,
    /// Outputs without a position that goes with them are compared and taken on.
    pub adopt_tail: bool,
    /// How many other nodes stand by for each partition.
    pub standbys: usize,
}

/// What may hold passwords and is not shown by accident.
#[derive(Clone, Default)]
pub struct Secret<T>(pub T);

impl<T> std::fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(not shown)")
    }
}

/// What a bearer token allows.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Scopes {
    /// To look: users, changes, kicks, stats, metrics.
    pub read: bool,
    /// To publish events of clients and gateways.
    pub publish: bool,
    /// If there is any, to publish only events that name one of these gateways, or none.
    pub gateways: Vec<String>,
    /// To do everything; alone to publish `policy`, `kick` and `forget`.
    pub admin: bool,
    /// To read metrics and nothing else.
    pub metrics: bool,
    /// Whose token it is, for the log.
    pub name: Option<String>,
}

impl Scopes {
    pub fn everything() -> Scopes {
        Scopes {
            read: true,
            publish: true,
            admin: true,
            metrics: true,
            ..Scopes::default()
        }
    }
}

/// Outage grace is on where nothing else is said: one machine restarts sometimes, and silence is then no evidence.
const FIRST_SILENCE_MS: u64 = 10_000;
const FIRST_GRACE_MS: u64 = 30_000;
const GROUP_BYTES_MAX: usize = 200;
const SOURCE_BYTES_MAX: usize = 256;
pub const DEFAULT_DATA: &str = "rollcall-data";
/// The consumer group of the processes that share the partitions of a Kafka cluster.
pub const DEFAULT_GROUP: &str = "rollcall";

impl Flags {
    /// Reads the file and checks everything, once. An [`Invalid`] says which line of the file its setting is in.
    pub fn config(self) -> anyhow::Result<Config> {
        let file = self.config.as_deref().map(SettingsFile::read).transpose()?;
        let in_file = file.as_ref().map(|file| file.flags.clone()).unwrap_or_default();
        self.checked(in_file)
            .map_err(|error| match error.downcast::<Invalid>() {
                Ok(mut invalid) => {
                    invalid.line = file.as_ref().and_then(|file| file.place(invalid.setting));
                    invalid.into()
                }
                Err(error) => error,
            })
    }

    fn checked(self, file: Flags) -> anyhow::Result<Config> {
        let secret_files = secret_files(&self, &file);
        let tim = Tim::of(&self, &file)?;
        let kafka = kafka::kafka(&self, &file)?;
        let oidc = access::oidc(&self, &file)?;
        let http_tls = access::http_tls(&self, &file, kafka.as_ref())?;
        let accepted_time_ms = match kafka {
            Some(_) => None,
            None => accepted_time_ms(&self, &file)?,
        };
        let registry = registry(&self, &file)?;
        let cloudevents_source = cloudevents_source(&self, &file)?;
        let checkpoints = checkpoints(&self, &file)?;
        let start_wait = self.start_wait.or(file.start_wait);
        let start_wait_ms = Span::within("start_wait", start_wait, 60_000, 0, 600_000)?;
        let policy_file = self.policy.or(file.policy);
        let given = read_policy(policy_file.as_deref())?;
        let policy_given = given.is_some();
        let policy = given.unwrap_or_else(|| {
            let mut policy = Policy::default();
            policy.outage.silence_ms = FIRST_SILENCE_MS;
            policy.outage.grace_ms = FIRST_GRACE_MS;
            policy
        });
        let listen = self
            .listen
            .or(file.listen)
            .unwrap_or(SocketAddr::from(([127, 0, 0, 1], 8080)));
        let token_file = self.token_file.or(file.token_file);
        if !listen.ip().is_loopback() && token_file.is_none() && oidc.is_none() {
            bail!(
                "listening on {listen} lets others in, so --token-file must name a file with bearer tokens; \
                 without one, and without --oidc-issuer, only a loopback address such as 127.0.0.1:8080 is served"
            );
        }
        let advertised = kafka.as_ref().map(|kafka| kafka.advertise.is_some());
        if advertised == Some(false) && listen.ip().is_unspecified() {
            let example = if listen.is_ipv6() { "[fd00::7]" } else { "10.0.0.7" };
            let scheme = if http_tls.is_some() { "https" } else { "http" };
            let problem = format!(
                "must say where other nodes reach this one, such as {scheme}://{example}:{}, since they cannot connect to \
                 --listen {listen}",
                listen.port()
            );
            bail!(Invalid::new("advertise", problem));
        }
        let tokens = match token_file.as_deref().map(read_tokens).transpose()? {
            // Nobody is let in without a token of the issuer.
            None if oidc.is_some() => Some(Vec::new()),
            tokens => tokens,
        };
        const HOUR_MS: u64 = 3_600_000;
        const MIB: u64 = 1 << 20;
        let retention = self.retention_hours.or(file.retention_hours);
        let retention_ms = Hours::within("retention_hours", retention, 720 * HOUR_MS, HOUR_MS, 876_000 * HOUR_MS)?;
        let retention = self.retention_mib.or(file.retention_mib);
        let retention_bytes = Mebibytes::within("retention_mib", retention, 4_096 * MIB, MIB, MIB * MIB)?;
        let http_connections_max = match self.http_connections_max.or(file.http_connections_max) {
            Some(count) => Some(within("http_connections_max", Some(count), 1, 1, 1_000_000)? as usize),
            None => None,
        };
        let bodies = self.http_body_mib.or(file.http_body_mib);
        let http_body_bytes = Mebibytes::within("http_body_mib", bodies, 256 * MIB, 16 * MIB, 65_536 * MIB)? as usize;
        let cors_origins = match self.cors_origin.is_empty() {
            true => file.cors_origin,
            false => self.cors_origin,
        };
        for origin in &cors_origins {
            check_origin(origin)?;
        }
        // The log itself says how many there may be, and how many it was made with.
        let partitions = self.partitions.or(file.partitions);
        let demo = self.demo.or(file.demo);
        if let Some(users) = demo {
            within("demo", Some(users.into()), 1, 1, 100_000)?;
        }
        let data = self.data.or(file.data).unwrap_or_else(|| PathBuf::from(DEFAULT_DATA));
        let gateway = match self.gateway.or(file.gateway) {
            Some(_) if kafka.is_some() => bail!(Invalid::new(
                "gateway",
                "cannot be combined with --kafka: it is for one machine, where the engine is in the same process; on \
                 Kafka start a gateway of its own, with `rollcall gateway --engine URL` of any node"
            )),
            Some(listen) => {
                let mut edge = self.edge.or(file.edge);
                // Another than the default of a gateway of its own, which may be started beside it.
                edge.gateway_name.get_or_insert_with(|| "serve".to_owned());
                Some(edge.config(listen, data.join("gateway"))?)
            }
            None => None,
        };
        let cached_users = self.cached_users.or(file.cached_users).map(|users| users as u64);
        let store_cache = self.store_cache_mib.or(file.store_cache_mib);
        let store_cache = Mebibytes::within("store_cache_mib", store_cache, 128 * MIB, 8 * MIB, 1_048_576 * MIB)?;
        let index_changes = self.index_changes.or(file.index_changes);
        let audit_records = self.audit_records.or(file.audit_records);
        const COUNT_MAX: u64 = 1_000_000_000_000;
        Ok(Config {
            data,
            listen,
            policy,
            policy_given,
            policy_if_new: self.policy_if_new || file.policy_if_new,
            partitions,
            tokens,
            token_file,
            oidc,
            http_tls,
            http_connections_max,
            http_body_bytes,
            cors_origins,
            retention_ms,
            retention_bytes,
            accepted_time_ms,
            secret_files,
            cached_users: within("cached_users", cached_users, 50_000, 0, 10_000_000)? as usize,
            store_cache_bytes: store_cache as usize,
            index_changes: within("index_changes", index_changes, 100_000_000, 0, COUNT_MAX)?,
            audit_records: within("audit_records", audit_records, 2_000_000, 0, COUNT_MAX)?,
            log_format: self.log_format.or(file.log_format).unwrap_or_default(),
            log_level: self.log_level.or(file.log_level).unwrap_or_default(),
            demo,
            tim,
            kafka,
            registry,
            cloudevents_source,
            raise_revision: self.raise_revision.or(file.raise_revision).unwrap_or_default(),
            checkpoints,
            start_wait_ms,
            gateway,
        })
    }
}

fn secret_files(flags: &Flags, file: &Flags) -> Vec<(&'static str, PathBuf)> {
    let files = [
        (
            "the bearer tokens",
            flags.token_file.as_ref().or(file.token_file.as_ref()),
        ),
        (
            "the private key of HTTP",
            flags.http_tls_key.as_ref().or(file.http_tls_key.as_ref()),
        ),
        (
            "the key of --tim-app",
            flags.tim_key_file.as_ref().or(file.tim_key_file.as_ref()),
        ),
        (
            "the settings of Kafka",
            flags.kafka_properties.as_ref().or(file.kafka_properties.as_ref()),
        ),
    ];
    let given = files.into_iter().filter_map(|(what, path)| Some((what, path?.clone())));
    given
        .chain(flags.edge.secret_files())
        .chain(file.edge.secret_files())
        .collect()
}

/// The time that is taken as right, of the embedded log.
fn accepted_time_ms(flags: &Flags, file: &Flags) -> anyhow::Result<Option<u64>> {
    let Some(text) = flags.accept_time.as_ref().or(file.accept_time.as_ref()) else {
        return Ok(None);
    };
    let time = DateTime::parse_from_rfc3339(text).ok();
    let ms = time.and_then(|time| u64::try_from(time.timestamp_millis()).ok());
    let wrong = || {
        let problem = format!("must be a time with its zone, such as 2026-01-31T12:00:00Z, not {text:?}");
        Invalid::new("accept_time", problem)
    };
    Ok(Some(ms.ok_or_else(wrong)?))
}

fn registry(flags: &Flags, file: &Flags) -> anyhow::Result<Option<Registry>> {
    let register = flags.registry_register || file.registry_register;
    match flags.registry.clone().or_else(|| file.registry.clone()) {
        Some(url) => Ok(Some(Registry { url, register })),
        None if register => bail!(Invalid::new(
            "registry_register",
            "requires --registry, the URL of a schema registry"
        )),
        None => Ok(None),
    }
}

fn cloudevents_source(flags: &Flags, file: &Flags) -> anyhow::Result<Option<String>> {
    let given = flags.cloudevents_source.as_ref().or(file.cloudevents_source.as_ref());
    let Some(source) = given else { return Ok(None) };
    let is_uri = source.starts_with('/') || url::Url::parse(source).is_ok();
    if !is_uri || source.len() > SOURCE_BYTES_MAX || !source.bytes().all(|byte| byte.is_ascii_graphic()) {
        let problem = format!(
            "must be a URI of at most {SOURCE_BYTES_MAX} bytes, such as https://chat.example.com/presence or /presence, \
             not {source:?}"
        );
        bail!(Invalid::new("cloudevents_source", problem));
    }
    Ok(Some(source.trim_end_matches('/').to_owned()))
}

fn checkpoints(flags: &Flags, file: &Flags) -> anyhow::Result<Option<Checkpoints>> {
    let every = flags.checkpoint_every.or(file.checkpoint_every);
    let kept = flags.checkpoints_kept.or(file.checkpoints_kept);
    let Some(url) = flags.checkpoints.clone().or_else(|| file.checkpoints.clone()) else {
        for (name, given) in [
            ("checkpoint_every", every.is_some()),
            ("checkpoints_kept", kept.is_some()),
        ] {
            if given {
                bail!(Invalid::new(
                    name,
                    "requires --checkpoints, the location of checkpoints"
                ));
            }
        }
        return Ok(None);
    };
    if !url.starts_with("file:///") && !url.starts_with("s3://") {
        let shown = address::masked(&url);
        let problem = match url.starts_with('/') {
            true => format!("must be a URL: file://{shown} for the directory {shown}"),
            false => format!("must be file:///DIRECTORY or s3://BUCKET/PREFIX, not {shown:?}"),
        };
        bail!(Invalid::new("checkpoints", problem));
    }
    Ok(Some(Checkpoints {
        url,
        every_ms: Span::within("checkpoint_every", every, 600_000, 1_000, 86_400_000)?,
        kept: within("checkpoints_kept", kept, 3, 1, 1_000)? as usize,
    }))
}

/// An origin as browsers send it: scheme, host, and the port if it is not the scheme's own.
fn check_origin(origin: &str) -> anyhow::Result<()> {
    let parsed = url::Url::parse(origin).ok();
    let parsed = parsed.filter(|url| matches!(url.scheme(), "http" | "https"));
    if parsed.is_none_or(|url| url.origin().ascii_serialization() != origin) {
        bail!(Invalid::new(
            "cors_origin",
            format!(
                "must be an origin as browsers send it, such as https://chat.example.com, without a path and without *, \
                 not {origin:?}"
            )
        ));
    }
    Ok(())
}

fn within(name: &'static str, value: Option<u64>, default: u64, least: u64, most: u64) -> anyhow::Result<u64> {
    let value = value.unwrap_or(default);
    if !(least..=most).contains(&value) {
        bail!(Invalid::new(name, format!("must be {least} to {most}, not {value}")));
    }
    Ok(value)
}

/// Reads a policy file; `None` if no file is given.
pub fn read_policy(file: Option<&Path>) -> anyhow::Result<Option<Policy>> {
    let Some(file) = file else { return Ok(None) };
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read the policy {}", file.display()))?;
    let policy = parse_written_policy(&text).map_err(|invalid| anyhow!("{invalid}"));
    let policy = policy.with_context(|| format!("the policy {} is not valid", file.display()))?;
    let stored = policy_json(&policy).len();
    if stored > POLICY_BYTES_MAX {
        bail!(
            "the policy {} is too large: {stored} bytes as it is stored, and {POLICY_BYTES_MAX} are allowed, since each partition \
             has it as one record",
            file.display()
        );
    }
    Ok(Some(policy))
}
