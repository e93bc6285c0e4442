//! How a cluster is reached: bootstrap servers, the names of our topics, and other settings of an operator.
//!
//! Settings are passed to librdkafka unchanged, except those that our guarantees depend on (acknowledgements,
//! isolation, offsets, partitions): these are refused with an explanation. Values that may be secret are never shown,
//! in no error and in no log. So nothing in this module quotes a value before its key is known.

use crate::topics::{OutputTopic, Topic};
use rdkafka::ClientConfig;
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaConfRes;
use std::fmt;
use std::path::{Path, PathBuf};

/// The default prefix of the topics' names.
pub const DEFAULT_PREFIX: &str = "presence";

const DEFAULT_PORT: &str = "9092";

/// Kafka allows 249 bytes for the name of a topic; our longest suffix has 11.
const PREFIX_BYTES_MAX: usize = 200;

/// Keys that are given only to the member of the group. Some cannot be combined with `group.protocol=consumer`, and
/// some make other clients fail.
const OF_MEMBERS: [&str; 6] = [
    "group.protocol",
    "group.remote.assignor",
    "partition.assignment.strategy",
    "session.timeout.ms",
    "heartbeat.interval.ms",
    "max.poll.interval.ms",
];

/// Keys that the engine sets itself, and why an operator must not set them.
const OWNED: [(&str, &str); 27] = [
    ("bootstrap.servers", "it is what --kafka says"),
    ("metadata.broker.list", "it is what --kafka says"),
    ("client.id", "it names this process to the other nodes"),
    ("group.id", "it is what --group says"),
    ("group.instance.id", "members of the group come and go by themselves"),
    (
        "partition.assignment.strategy",
        "partitions move in a way that the engine can answer",
    ),
    ("enable.auto.commit", POSITION),
    ("auto.commit.enable", POSITION),
    ("auto.commit.interval.ms", POSITION),
    ("enable.auto.offset.store", POSITION),
    (
        "auto.offset.reset",
        "a record that is gone must be reported, never skipped",
    ),
    ("isolation.level", "outputs of an aborted commit must not be read"),
    ("enable.partition.eof", "the engine asks for the end itself"),
    (
        "allow.auto.create.topics",
        "a topic that the broker makes by itself breaks the rules",
    ),
    ("transactional.id", "it decides who may write outputs"),
    // This setting does not prevent duplicates: they occur when leaders change (librdkafka 4953), and the rules mostly
    // ignore the second record.
    ("enable.idempotence", "what is sent again must keep its order"),
    ("enable.gapless.guarantee", "outputs come in order or not at all"),
    ("acks", ACKNOWLEDGED),
    ("request.required.acks", ACKNOWLEDGED),
    ("partitioner", PARTITION),
    ("sticky.partitioning.linger.ms", PARTITION),
    ("partitioner_cb", PARTITION),
    ("message.max.bytes", SIZES),
    ("message.copy.max.bytes", SIZES),
    ("receive.message.max.bytes", SIZES),
    ("statistics.interval.ms", "the engine has metrics of its own"),
    ("plugin.library.paths", "the engine loads no code"),
];

const POSITION: &str = "the position is committed together with the outputs";
const ACKNOWLEDGED: &str = "what is acknowledged must be on every replica in sync";
const PARTITION: &str = "where a user belongs is fixed by the rules (murmur2)";
const SIZES: &str = "sizes follow from the rules' bounds";

/// The address of a cluster and the settings of its clients.
#[derive(Clone, PartialEq, Eq)]
pub struct Connection {
    /// `host:port`, several separated by commas.
    pub bootstrap: String,
    pub prefix: String,
    /// Checked: no key is owned by the engine, and librdkafka accepts each.
    set: Vec<(String, String)>,
}

/// What is wrong with a setting. Never contains the value of a secret.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Invalid {
    #[error(
        "--kafka must name brokers as HOST:PORT, separated by commas, such as localhost:9092; {0:?} is not of that form"
    )]
    Bootstrap(String),
    #[error(
        "the topic prefix {0:?} cannot be used: 1 to {PREFIX_BYTES_MAX} of the letters a-z, A-Z, 0-9 and . _ - are allowed"
    )]
    Prefix(String),
    #[error("{place}: `{key}` must be followed by = and a value")]
    NoValue { place: SettingSource, key: String },
    #[error("{place}: there is no key before the =")]
    NoKey { place: SettingSource },
    #[error("{place}: {key} is the engine's own: {why}")]
    Owned {
        place: SettingSource,
        key: String,
        why: &'static str,
    },
    #[error("{place}: {key} is not a setting of librdkafka{}", .hint.map(|hint| format!("; {hint}")).unwrap_or_default())]
    Unknown {
        place: SettingSource,
        key: String,
        hint: Option<&'static str>,
    },
    #[error("{place}: {what}")]
    Refused { place: SettingSource, what: String },
    #[error("the properties {} cannot be read: {cause}", path.display())]
    Unreadable { path: PathBuf, cause: String },
}

/// Where a setting was given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SettingSource {
    Flag,
    Line(PathBuf, usize),
}

/// Parses the address of a broker. Without a port, adds the default port of Kafka's own tools.
fn server(text: &str) -> Result<String, Invalid> {
    let text = text.trim();
    let authority = text.rsplit("://").next().unwrap_or_default();
    let (host, port) = match authority.rsplit_once(':') {
        // In an IPv6 address without a port, all colons are inside the brackets.
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (authority, DEFAULT_PORT),
    };
    let is_ipv6_without_brackets = host.contains(':') && !host.ends_with(']');
    if is_ipv6_without_brackets
        || host.is_empty()
        || host.contains(['/', ' ', '@'])
        || port.parse::<u16>().map_or(true, |port| port == 0)
    {
        return Err(Invalid::Bootstrap(
            text.rsplit('@').next().unwrap_or_default().to_owned(),
        ));
    }
    let scheme = &text[..text.len() - authority.len()];
    Ok(format!("{scheme}{host}:{port}"))
}

impl Connection {
    /// Reads and checks all settings. An entry of `set` (`key=value`) overrides the properties file, and a later entry
    /// overrides an earlier one.
    pub fn new(
        bootstrap: &str,
        prefix: Option<&str>,
        properties: Option<&Path>,
        set: &[String],
    ) -> Result<Connection, Invalid> {
        let servers: Result<Vec<String>, Invalid> = bootstrap.split(',').map(server).collect();
        let servers = servers?;
        let prefix = prefix.unwrap_or(DEFAULT_PREFIX);
        let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_".contains(c);
        if prefix.is_empty() || prefix.len() > PREFIX_BYTES_MAX || !prefix.chars().all(allowed) {
            return Err(Invalid::Prefix(prefix.to_owned()));
        }
        let mut connection = Connection {
            bootstrap: servers.join(","),
            prefix: prefix.to_owned(),
            set: Vec::new(),
        };
        if let Some(path) = properties {
            let text = std::fs::read_to_string(path).map_err(|error| Invalid::Unreadable {
                path: path.to_owned(),
                cause: error.to_string(),
            })?;
            for (line, setting) in logical_lines(&text) {
                connection.add(&setting, &SettingSource::Line(path.to_owned(), line))?;
            }
        }
        for setting in set {
            connection.add(setting, &SettingSource::Flag)?;
        }
        Ok(connection)
    }

    fn add(&mut self, setting: &str, place: &SettingSource) -> Result<(), Invalid> {
        let Some((key, value)) = setting.split_once('=') else {
            // Only the key: what follows may be a password after another separator.
            let end = setting.find(|c: char| !c.is_ascii_alphanumeric() && !"._-".contains(c));
            return Err(Invalid::NoValue {
                place: place.clone(),
                key: setting[..end.unwrap_or(setting.len())].to_owned(),
            });
        };
        let (key, value) = (key.trim(), value.trim());
        if key.is_empty() {
            return Err(Invalid::NoKey { place: place.clone() });
        }
        if let Some((_, why)) = OWNED.iter().find(|(owned, _)| *owned == key) {
            return Err(Invalid::Owned {
                place: place.clone(),
                key: key.to_owned(),
                why,
            });
        }
        let mut alone = ClientConfig::new();
        alone.set(key, value);
        if let Err(error) = alone.create_native_config() {
            return Err(refused(key, value, error, place));
        }
        self.set.retain(|(known, _)| known != key);
        self.set.push((key.to_owned(), value.to_owned()));
        Ok(())
    }

    /// Returns the Kafka name of one of the log's topics.
    pub fn topic(&self, topic: Topic) -> String {
        self.name(topic.name())
    }

    /// Returns the Kafka name of an output topic.
    pub fn output(&self, topic: OutputTopic) -> String {
        self.name(topic.name())
    }

    /// Returns the name of the topic of incidents, which has one partition.
    pub fn incidents(&self) -> String {
        self.name("incidents")
    }

    /// Returns the name of the topic that says who owns which partition: compacted, with one partition, keyed by the
    /// partition's number.
    pub fn owners(&self) -> String {
        self.name("owners")
    }

    fn name(&self, of: &str) -> String {
        format!("{}.{of}", self.prefix)
    }

    /// Returns the settings that all clients of librdkafka have in common. The caller adds the engine's own. Brokers
    /// show `id` in their logs and list it as the member's client.id.
    pub fn client(&self, id: &str) -> ClientConfig {
        let mut config = self.member(id);
        for key in OF_MEMBERS {
            config.remove(key);
        }
        config
    }

    /// Like [`Connection::client`], for the member of the group. It also includes the keys that only members accept.
    pub fn member(&self, id: &str) -> ClientConfig {
        let mut config = ClientConfig::new();
        for (key, value) in &self.set {
            config.set(key, value);
        }
        config.set("bootstrap.servers", &self.bootstrap);
        config.set("client.id", id);
        config
    }

    /// Returns the flags that an operator would type to reach the same cluster with the same topic names.
    pub fn flags(&self) -> String {
        let mut flags = format!("--kafka {}", self.bootstrap);
        if self.prefix != DEFAULT_PREFIX {
            flags.push_str(" --topic-prefix ");
            flags.push_str(&self.prefix);
        }
        flags
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shown = self.set.iter().map(|(key, value)| {
            let value = if is_secret(key) { "(not shown)" } else { value.as_str() };
            (key, value)
        });
        f.debug_struct("Connection")
            .field("bootstrap", &self.bootstrap)
            .field("prefix", &self.prefix)
            .field("set", &shown.collect::<Vec<_>>())
            .finish()
    }
}

impl fmt::Display for SettingSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SettingSource::Flag => f.write_str("--kafka-set"),
            SettingSource::Line(path, line) => write!(f, "{}, line {line}", path.display()),
        }
    }
}

/// Returns whether a value of this key may be a secret. If in doubt, it returns true: hiding a path does no harm.
fn is_secret(key: &str) -> bool {
    let key = key.to_ascii_lowercase();
    let signs = [
        "password",
        "secret",
        "token",
        "jaas",
        "credential",
        "oauthbearer",
        "passphrase",
        "private",
        ".pem",
        "_pem",
        "ssl.key",
    ];
    signs.iter().any(|sign| key.contains(sign))
}

/// Returns an error with librdkafka's own message, unless that could reveal a secret.
fn refused(key: &str, value: &str, error: KafkaError, place: &SettingSource) -> Invalid {
    let place = place.clone();
    let KafkaError::ClientConfig(kind, what, ..) = error else {
        let what = format!("{key} has a value that is not text");
        return Invalid::Refused { place, what };
    };
    let java = key.starts_with("ssl.truststore")
        || [
            "sasl.jaas.config",
            "ssl.keystore.type",
            "key.serializer",
            "value.serializer",
        ]
        .contains(&key);
    if java || matches!(kind, RDKafkaConfRes::RD_KAFKA_CONF_UNKNOWN) {
        return Invalid::Unknown {
            place,
            key: key.to_owned(),
            hint: java.then_some("it is a setting of the Java client; docs/kafka.md names the equivalent setting"),
        };
    }
    // A password may have been given for the wrong key; a number or a boolean is not a password.
    let is_plain = value.parse::<f64>().is_ok() || matches!(value, "true" | "false");
    let what = match is_plain && !is_secret(key) {
        true => format!("librdkafka refuses {key}={value}: {what}"),
        false => format!(
            "librdkafka refuses the value of {key} (not shown here); its CONFIGURATION.md lists the accepted values"
        ),
    };
    Invalid::Refused { place, what }
}

/// Returns the lines of a properties file that have content, with their numbers from 1. Comments (`#`, `!`) are
/// omitted, and a line that ends with a backslash is joined with the next.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut logical: Vec<(usize, String)> = Vec::new();
    let mut goes_on = false;
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if !goes_on && (line.is_empty() || line.starts_with(['#', '!'])) {
            continue;
        }
        let cut = line.strip_suffix('\\');
        let piece = cut.unwrap_or(line);
        match logical.last_mut() {
            Some((_, whole)) if goes_on => whole.push_str(piece),
            _ => logical.push((n + 1, piece.to_owned())),
        }
        goes_on = cut.is_some();
    }
    logical
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(set: &[&str]) -> Result<Connection, Invalid> {
        let set: Vec<String> = set.iter().map(|&setting| setting.to_owned()).collect();
        Connection::new("a:1, b:2", None, None, &set)
    }

    fn error(set: &[&str]) -> String {
        with(set).expect_err("refused").to_string()
    }

    #[test]
    fn topics_are_named_after_the_prefix() {
        let connection = Connection::new("a:1", Some("eu.presence"), None, &[]).expect("valid");
        let names = Topic::ALL.map(|topic| connection.topic(topic));
        assert_eq!(
            names,
            [
                "eu.presence.events",
                "eu.presence.changes",
                "eu.presence.kicks",
                "eu.presence.quarantine"
            ]
        );
        assert_eq!(connection.output(OutputTopic::Current), "eu.presence.current");
        assert_eq!(connection.incidents(), "eu.presence.incidents");
        assert_eq!(connection.owners(), "eu.presence.owners");
        assert_eq!(connection.flags(), "--kafka a:1 --topic-prefix eu.presence");
        assert_eq!(with(&[]).expect("valid").topic(Topic::Events), "presence.events");
    }

    #[test]
    fn a_prefix_that_no_topic_may_have_is_refused() {
        for prefix in ["", "a b", "ü", "a/b", &"x".repeat(201)] {
            assert!(matches!(
                Connection::new("a:1", Some(prefix), None, &[]),
                Err(Invalid::Prefix(_))
            ));
        }
        for bootstrap in ["", "a:1,,b:2", " "] {
            let refused = Connection::new(bootstrap, None, None, &[]);
            assert!(matches!(refused, Err(Invalid::Bootstrap(_))), "{bootstrap}");
        }
        for (bootstrap, is) in [
            ("localhost", "localhost:9092"),
            (" a , b:1 ", "a:9092,b:1"),
            ("[::1]", "[::1]:9092"),
            ("SSL://a", "SSL://a:9092"),
        ] {
            let connection = Connection::new(bootstrap, None, None, &[]).expect("brokers");
            assert_eq!(connection.bootstrap, is);
        }
    }

    #[test]
    fn what_is_set_reaches_the_client_and_the_last_one_wins() {
        let connection = with(&["linger.ms=5", "linger.ms = 7", "sasl.username=x=y"]).expect("valid");
        let client = connection.client("node-1");
        assert_eq!(client.get("linger.ms"), Some("7"));
        assert_eq!(client.get("sasl.username"), Some("x=y"));
        assert_eq!(client.get("bootstrap.servers"), Some("a:1,b:2"));
        assert_eq!(client.get("client.id"), Some("node-1"));
    }

    #[test]
    fn what_members_of_a_group_take_reaches_the_member_alone() {
        let connection = with(&["group.protocol=consumer", "linger.ms=5"]).expect("valid");
        let (member, client) = (connection.member("x"), connection.client("x"));
        let both = |key| (member.get(key), client.get(key));
        assert_eq!(both("group.protocol"), (Some("consumer"), None));
        assert_eq!(both("linger.ms"), (Some("5"), Some("5")));
    }

    #[test]
    fn what_the_engine_owns_is_refused_with_the_reason() {
        assert_eq!(
            error(&["acks=1"]),
            "--kafka-set: acks is the engine's own: what is acknowledged must be on every replica in sync"
        );
        for (key, _) in OWNED {
            assert!(
                matches!(with(&[&format!("{key}=1")]), Err(Invalid::Owned { .. })),
                "{key}"
            );
        }
    }

    #[test]
    fn what_librdkafka_does_not_know_or_take_is_refused() {
        assert_eq!(
            error(&["linger=5"]),
            "--kafka-set: linger is not a setting of librdkafka"
        );
        assert!(error(&["sasl.jaas.config=x"]).contains("of the Java client"));
        assert!(
            error(&["linger.ms=9999999999"]).contains("linger.ms=9999999999"),
            "{}",
            error(&["linger.ms=9999999999"])
        );
        assert_eq!(
            error(&["linger.ms"]),
            "--kafka-set: `linger.ms` must be followed by = and a value"
        );
        assert_eq!(error(&["=5"]), "--kafka-set: there is no key before the =");
    }

    #[test]
    fn no_secret_is_ever_shown() {
        let secret = "hunter2";
        let settings = [
            "sasl.password",
            "ssl.key.password",
            "ssl.key.pem",
            "ssl.keystore.password",
            "sasl.oauthbearer.config",
        ];
        for key in settings {
            let connection = with(&[&format!("{key}={secret}")]).expect(key);
            assert!(!format!("{connection:?}").contains(secret), "{key}");
            assert_eq!(connection.client("x").get(key), Some(secret));
        }
        for wrong in [
            format!("sasl.password:{secret}"),
            format!("sasl.password {secret}"),
            format!("sasl.jaas.config=password {secret}"),
            format!("sasl.pasword={secret}"),
            format!("enable.sasl.oauthbearer.unsecure.jwt={secret}"),
            // This build of librdkafka cannot request tokens.
            format!("sasl.oauthbearer.client.secret={secret}"),
        ] {
            let invalid = with(&[&wrong]).expect_err("refused");
            assert!(!format!("{invalid} {invalid:?}").contains(secret), "{invalid:?}");
        }
        let shown = format!("{:?}", with(&["linger.ms=5"]).expect("valid"));
        assert!(shown.contains("linger.ms") && shown.contains('5'), "{shown}");
    }

    #[test]
    fn a_properties_file_is_read_and_its_errors_name_the_line() {
        let directory = tempfile::tempdir().expect("a directory");
        let file = directory.path().join("client.properties");
        let read = |text: &str, set: &[String]| {
            std::fs::write(&file, text).expect("written");
            Connection::new("a:1", None, Some(&file), set)
        };
        let text =
            "# TLS\n! and more\n\n security.protocol = SASL_SSL \nssl.ca.location=/etc/ssl/\\\n  ca.pem\nlinger.ms=1\n";
        let connection = read(text, &["linger.ms=2".to_owned()]).expect("valid");
        let client = connection.client("x");
        assert_eq!(client.get("security.protocol"), Some("SASL_SSL"));
        assert_eq!(client.get("ssl.ca.location"), Some("/etc/ssl/ca.pem"));
        assert_eq!(client.get("linger.ms"), Some("2"));

        let error = read("# x\n\nacks=0\n", &[]).expect_err("refused").to_string();
        assert!(
            error.contains("client.properties, line 3: acks is the engine's own"),
            "{error}"
        );
        let error = read("sasl.password hunter2\n", &[]).expect_err("refused").to_string();
        assert!(
            error.ends_with("line 1: `sasl.password` must be followed by = and a value"),
            "{error}"
        );
        let gone = Connection::new("a:1", None, Some(&directory.path().join("gone")), &[]);
        assert!(matches!(gone, Err(Invalid::Unreadable { .. })));
    }
}
