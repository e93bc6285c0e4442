//! Reads the topics with another client of Kafka than the engine's (krafka, which shares no code with librdkafka), so
//! that an error of one client is visible to the other. Only for those who check the engine (`rollcall audit watch`).
//!
//! Each partition of a topic has a consumer of its own, which belongs to no group and commits nothing. All of them share
//! one connection to each broker.

use super::position;
use super::settings::Connection;
use crate::log::{Error, Limit, Position, Range, Reader, Record, SCHEMA_HEADER, TRACE_HEADER, Topic};
use crate::presence::{Offset, Partition};
use krafka::admin::{AdminClient, ListConsumerGroupOffsetsOptions, ListOffsetsOptions, OffsetSpec, TopicPartition};
use krafka::auth::{AuthConfig, TlsConfig};
use krafka::consumer::{AutoOffsetReset, Consumer, IsolationLevel};
use krafka::{Kafka, KrafkaError};
use std::time::Duration;
use tokio::runtime::{Builder, Runtime};

/// The time-out of a request.
const ANSWER: Duration = Duration::from_secs(10);
/// How long a read waits for the first record, in steps.
const STEP: Duration = Duration::from_millis(250);
const STEPS: u32 = 40;
const FETCH_BYTES: i32 = 4 << 20;

/// See the module.
pub struct IndependentReader {
    runtime: Runtime,
    kafka: Kafka,
    admin: AdminClient,
    connection: Connection,
    partitions: u32,
    consumers: Vec<((Topic, Partition), Positioned)>,
}

struct Positioned {
    consumer: Consumer,
    /// The offset of the record that it returns next.
    next: Offset,
}

impl IndependentReader {
    /// Connects to the brokers. The number of partitions is that of the topic of events.
    pub fn connect(connection: Connection) -> Result<IndependentReader, Error> {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime =
            runtime.map_err(|error| Error::Open(format!("cannot start the async runtime: {error}").into()))?;
        let security = security(&connection.settings()).map_err(|what| Error::Open(what.into()))?;
        let mut builder = Kafka::builder(&*connection.bootstrap)
            .client_id("rollcall-audit")
            .request_timeout(ANSWER);
        if let Some(security) = security {
            builder = builder.security(security);
        }
        let what = || format!("no broker of {} answers", connection.bootstrap);
        let kafka = runtime
            .block_on(builder.connect())
            .map_err(|error| unread(&what(), &error))?;
        let admin = kafka.admin();
        let name = connection.topic(Topic::Events);
        let found = runtime.block_on(async {
            let consumer = kafka.consumer_without_group().build().await?;
            let metadata = consumer.fetch_metadata(Some(&name)).await?;
            consumer.close().await?;
            Ok::<_, KrafkaError>(metadata)
        });
        let found = found.map_err(|error| unread(&what(), &error))?;
        let topic = found.topics.iter().find(|topic| topic.name == name);
        let partitions = topic.map_or(0, |topic| topic.partition_count());
        if partitions == 0 {
            return Err(Error::Open(
                format!("there is no topic {name} at {}", connection.bootstrap).into(),
            ));
        }
        Ok(IndependentReader {
            runtime,
            kafka,
            admin,
            partitions: partitions as u32,
            connection,
            consumers: Vec::new(),
        })
    }

    fn consumer(&self, name: &str, partition: Partition, from: Offset) -> Result<Consumer, KrafkaError> {
        self.runtime.block_on(async {
            let consumer = self
                .kafka
                .consumer_without_group()
                .isolation_level(IsolationLevel::ReadCommitted)
                // A record that is gone is an error, and is not skipped.
                .auto_offset_reset(AutoOffsetReset::None)
                .max_partition_fetch_bytes(FETCH_BYTES)
                .build()
                .await?;
            consumer.assign(name, vec![partition.0 as i32]).await?;
            consumer.seek(name, partition.0 as i32, from.0 as i64).await?;
            Ok(consumer)
        })
    }
}

impl Positioned {
    /// Returns the next records from an offset on; none if there are none before `end`.
    async fn read(
        &mut self,
        name: &str,
        partition: Partition,
        from: Offset,
        end: Offset,
    ) -> Result<Vec<Record>, Error> {
        let what = format!("partition {partition} of {name}");
        let failed = |error: KrafkaError| unread(&what, &error);
        if self.next != from {
            let seek = self.consumer.seek(name, partition.0 as i32, from.0 as i64);
            seek.await.map_err(failed)?;
            self.next = from;
        }
        for _ in 0..STEPS {
            let polled = self.consumer.poll(STEP).await.map_err(failed)?;
            let records: Vec<Record> = polled
                .into_iter()
                .filter_map(|record| record_of(record, from))
                .collect();
            if let Some(last) = records.last() {
                self.next = Offset(last.offset.0 + 1);
                return Ok(records);
            }
            // Marks of transactions have offsets, and are not returned.
            let reached = self.consumer.fetch_position(name, partition.0 as i32).await;
            if reached.is_some_and(|reached| reached >= end.0 as i64) {
                return Ok(Vec::new());
            }
        }
        let waited = (STEP * STEPS).as_secs();
        Err(Error::Read(
            format!("Kafka gave nothing of {what} from offset {from} on within {waited} s").into(),
        ))
    }
}

fn record_of(record: krafka::ConsumerRecord, from: Offset) -> Option<Record> {
    let offset = u64::try_from(record.offset).ok().filter(|offset| *offset >= from.0)?;
    let header = |name: &str| {
        let found = record.headers.iter().find(|(key, _)| key == name);
        found.and_then(|(_, value)| value.as_deref()).map(Box::from)
    };
    Some(Record {
        offset: Offset(offset),
        ts: record.timestamp.max(0) as u64,
        schema_header: header(SCHEMA_HEADER),
        traceparent: header(TRACE_HEADER),
        key: record.key.as_deref().map(<[u8]>::to_vec),
        is_null: record.value.is_none(),
        value: record.value.as_deref().map(<[u8]>::to_vec).unwrap_or_default(),
    })
}

impl Reader for IndependentReader {
    fn partitions(&self) -> u32 {
        self.partitions
    }

    fn range(&self, topic: Topic, partition: Partition) -> Result<Range, Error> {
        let name = self.connection.topic(topic);
        let at = TopicPartition::new(name.clone(), partition.0 as i32);
        let ask = |spec| {
            let asked = self.admin.list_offsets(
                [(at.clone(), spec)],
                ListOffsetsOptions::default().read_committed(true).timeout(ANSWER),
            );
            let what = format!("the ends of partition {partition} of {name}");
            let mut answers = self.runtime.block_on(asked).map_err(|error| unread(&what, &error))?;
            match answers.remove(&at) {
                Some(Ok(found)) => Ok(Offset(found.offset.max(0) as u64)),
                Some(Err(error)) => Err(unread(&what, &error)),
                None => Err(Error::Read(format!("{what}: the broker says nothing").into())),
            }
        };
        Ok(Range {
            start: ask(OffsetSpec::Earliest)?,
            end: ask(OffsetSpec::Latest)?,
        })
    }

    fn read(
        &mut self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<(), Error> {
        let Range { start, end } = self.range(topic, partition)?;
        if from < start {
            return Err(Error::Gone {
                topic,
                partition,
                wanted: from,
                start,
            });
        }
        if from >= end {
            return Ok(());
        }
        let name = self.connection.topic(topic);
        let key = (topic, partition);
        let at = match self.consumers.iter().position(|(of, _)| *of == key) {
            Some(at) => at,
            None => {
                let consumer = self.consumer(&name, partition, from);
                let consumer = consumer.map_err(|error| unread(&format!("partition {partition} of {name}"), &error))?;
                self.consumers.push((key, Positioned { consumer, next: from }));
                self.consumers.len() - 1
            }
        };
        let read = self
            .runtime
            .block_on(self.consumers[at].1.read(&name, partition, from, end));
        let mut records = match read {
            Ok(records) => records,
            Err(error) => {
                // The next read begins with a new consumer.
                self.consumers.swap_remove(at);
                return Err(error);
            }
        };
        if records.len() > limit.records {
            records.truncate(limit.records);
        }
        into.append(&mut records);
        Ok(())
    }

    fn position(&self, group: &str, partition: Partition) -> Result<Position, Error> {
        let at = TopicPartition::new(self.connection.topic(Topic::Events), partition.0 as i32);
        let options = ListConsumerGroupOffsetsOptions::default()
            .partitions(vec![at.clone()])
            .timeout(ANSWER);
        let what = position::what(group, partition);
        let asked = self.admin.list_consumer_group_offsets(group, options);
        let mut found = self.runtime.block_on(asked).map_err(|error| unread(&what, &error))?;
        let Some(found) = found.remove(&at) else {
            return Ok(Position::default());
        };
        let found = found.map_err(|error| unread(&what, &error))?;
        match found.offset {
            Some(_) => position::of_metadata(&what, found.metadata.as_deref().unwrap_or_default()),
            None => Ok(Position::default()),
        }
    }

    fn may_recover(&self, error: &Error) -> bool {
        matches!(error, Error::Read(_))
    }
}

fn unread(what: &str, error: &KrafkaError) -> Error {
    Error::Read(format!("{what}: {error}").into())
}

/// Returns who connects and how, from the settings of librdkafka that say so. Settings that this client does not have are
/// an error; those that have nothing to do with who may connect do not concern a reader.
fn security(settings: &[(String, String)]) -> Result<Option<AuthConfig>, String> {
    let get = |name: &str| {
        let found = settings.iter().find(|(key, _)| key == name);
        found.map(|(_, value)| value.as_str())
    };
    const KNOWN: [&str; 8] = [
        "security.protocol",
        "sasl.mechanism",
        "sasl.mechanisms",
        "sasl.username",
        "sasl.password",
        "ssl.ca.location",
        "ssl.certificate.location",
        "ssl.key.location",
    ];
    let concerns = |key: &str| {
        ["ssl.", "sasl.", "security.", "enable.ssl"]
            .iter()
            .any(|of| key.starts_with(of))
    };
    if let Some((key, _)) = settings
        .iter()
        .find(|(key, _)| concerns(key) && !KNOWN.contains(&key.as_str()))
    {
        return Err(format!(
            "the client that checks the engine has no setting {key}; read with the engine's own client: --client librdkafka"
        ));
    }
    let protocol = get("security.protocol").unwrap_or("plaintext").to_ascii_lowercase();
    let tls = || -> Result<TlsConfig, String> {
        let mut tls = TlsConfig::new();
        if let Some(path) = get("ssl.ca.location") {
            tls = tls.with_ca_cert(path);
        }
        match (get("ssl.certificate.location"), get("ssl.key.location")) {
            (Some(certificate), Some(key)) => Ok(tls.with_client_cert(certificate, key)),
            (None, None) => Ok(tls),
            _ => Err("ssl.certificate.location and ssl.key.location belong together: set both".to_owned()),
        }
    };
    let mechanism = get("sasl.mechanism").or(get("sasl.mechanisms")).unwrap_or("PLAIN");
    let sasl = || -> Result<AuthConfig, String> {
        let (Some(name), Some(password)) = (get("sasl.username"), get("sasl.password")) else {
            return Err(format!("{protocol} needs sasl.username and sasl.password"));
        };
        match mechanism {
            "PLAIN" => Ok(AuthConfig::sasl_plain(name, password)),
            "SCRAM-SHA-256" => Ok(AuthConfig::sasl_scram_sha256(name, password)),
            "SCRAM-SHA-512" => Ok(AuthConfig::sasl_scram_sha512(name, password)),
            other => Err(format!(
                "the client that checks the engine is not used with {other}; read with the engine's own client: --client librdkafka"
            )),
        }
    };
    Ok(match protocol.as_str() {
        "plaintext" => None,
        "ssl" => Some(AuthConfig::ssl(tls()?)),
        "sasl_plaintext" => Some(sasl()?),
        "sasl_ssl" => Some(sasl()?.with_tls(tls()?)),
        other => {
            return Err(format!(
                "security.protocol {other} is not known: plaintext, ssl, sasl_plaintext or sasl_ssl"
            ));
        }
    })
}
