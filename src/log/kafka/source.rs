//! A connection to the brokers that readers of topics share.
//!
//! It has one client, which is replaced if one of its calls hung, or if it returns nothing for too long although its
//! calls return.

use super::calls::{Guarded, Hung};
use super::client::{DefaultContext, spawn, unread};
use super::native::{self, GuardedConsumer};
use crate::clock::Clock;
use crate::failpoint;
use crate::log::{Error, locked};
use crate::metrics;
use crate::presence::Partition;
use crate::tasks::End;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// Both names of the setting for how many bytes of a partition are fetched at a time.
pub const FETCH_BYTES: [&str; 2] = ["fetch.message.max.bytes", "max.partition.fetch.bytes"];
/// How long a broker waits with the answer to a fetch until there are records.
const FETCH_WAIT_MS: &str = "100";
const QUERY: Duration = Duration::from_secs(10);
/// The time-out of the stall check.
pub const GLANCE: Duration = Duration::from_secs(2);
/// A client that has not returned the ends of a topic for so long may be stuck and is replaced.
const SILENT_MS: u64 = 60_000;

/// A connection to the brokers that readers share. It has one client, which is replaced if it was given up.
pub struct Source {
    config: ClientConfig,
    clock: Arc<dyn Clock>,
    client: Mutex<Arc<GuardedConsumer>>,
    /// Asked for the ends of topics before this one.
    asked: Option<Arc<Source>>,
    /// The topics whose ends could not be had since the last time they could, and since when, by the monotonic clock.
    silent_since_ms: Mutex<BTreeMap<String, u64>>,
}

impl Source {
    /// Creates a source from a client's settings. It adds the settings for reading: only committed records, and nothing
    /// is skipped.
    pub fn new(mut config: ClientConfig, clock: Arc<dyn Clock>) -> Result<Arc<Source>, Error> {
        config.remove("group.id");
        Source::of_group(config, clock)
    }

    /// Like [`Source::new`], for reading while ends are asked for: `asked` is asked for them first, which reads nothing. A broker
    /// answers a connection in order, so a question waits for the fetch before it, which waits for records, up to
    /// [`FETCH_WAIT_MS`]; a partition that is taken up asks a dozen times.
    pub fn asking(asked: Arc<Source>, mut config: ClientConfig) -> Result<Arc<Source>, Error> {
        config.remove("group.id");
        let clock = asked.clock.clone();
        Source::with_isolation(config, clock, "read_committed", Some(asked))
    }

    /// Like [`Source::asking`], with a second client from the same settings.
    pub fn asking_apart(config: ClientConfig, clock: Arc<dyn Clock>) -> Result<Arc<Source>, Error> {
        let asked = Source::new(config.clone(), clock)?;
        Source::asking(asked, config)
    }

    /// Like [`Source::new`], but keeps the group of the settings, so that the source can ask for the group's offsets.
    /// It does not become a member.
    pub fn of_group(config: ClientConfig, clock: Arc<dyn Clock>) -> Result<Arc<Source>, Error> {
        Source::with_isolation(config, clock, "read_committed", None)
    }

    /// Like [`Source::of_group`], but the group's offsets are those that are committed when it asks, even if a transaction
    /// is about to commit others. It must not be used to read records.
    pub fn of_group_as_committed(config: ClientConfig, clock: Arc<dyn Clock>) -> Result<Arc<Source>, Error> {
        // Clients that read committed records wait for the end of the transaction, and that of a dead producer may take
        // as long as its time-out.
        Source::with_isolation(config, clock, "read_uncommitted", None)
    }

    fn with_isolation(
        mut config: ClientConfig,
        clock: Arc<dyn Clock>,
        isolation: &str,
        asked: Option<Arc<Source>>,
    ) -> Result<Arc<Source>, Error> {
        config
            // A setting for producers, which an operator may have set.
            .remove("transaction.timeout.ms")
            .set("isolation.level", isolation)
            .set("auto.offset.reset", "error")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true");
        for (key, value) in [
            // How long librdkafka pauses fetching once enough is queued. With the default of a second it paused for
            // four of five seconds while catching up.
            ("fetch.queue.backoff.ms", "2"),
            ("fetch.wait.max.ms", FETCH_WAIT_MS),
            ("queued.min.messages", "200000"),
            ("queued.max.messages.kbytes", "32768"),
            ("fetch.message.max.bytes", "4194304"),
        ] {
            if config.get(key).is_none() {
                config.set(key, value);
            }
        }
        Ok(Arc::new(Source {
            client: Mutex::new(connect(&config)?),
            config,
            clock,
            asked,
            silent_since_ms: Mutex::default(),
        }))
    }

    pub fn clock(&self) -> &Arc<dyn Clock> {
        &self.clock
    }

    /// Returns the client, or a new one if it was given up.
    pub fn client(&self) -> Result<Arc<GuardedConsumer>, Error> {
        let mut client = locked(&self.client);
        if client.is_given_up() {
            *client = connect(&self.config)?;
        }
        Ok(client.clone())
    }

    /// Replaces a client that returns nothing, although its calls return.
    pub fn replace(&self, silent: &Arc<GuardedConsumer>, why: &str) -> Result<(), Error> {
        let mut client = locked(&self.client);
        if Arc::ptr_eq(&client, silent) && !client.is_given_up() {
            let new = connect(&self.config)?;
            metrics::kafka_client_given_up("silent");
            tracing::warn!(reason = why, "a client of Kafka is replaced");
            super::calls::drop_later(std::mem::replace(&mut *client, new));
        }
        Ok(())
    }

    /// Makes a call to the client that must return within the given time.
    pub fn ask<T: Send + 'static>(
        &self,
        call: &'static str,
        within: Duration,
        ask: impl FnOnce(&BaseConsumer<DefaultContext>) -> T + Send + 'static,
    ) -> Result<T, Error> {
        self.client()?.call(call, within, ask).map_err(Hung::unread)
    }

    /// Asks the broker for the present range of a partition: the oldest record kept, and the end of what is committed.
    pub fn ask_range(&self, topic: &str, partition: Partition) -> Result<(u64, u64), Error> {
        if let Some(asked) = &self.asked
            && let Ok(Ok(range)) = asked.watermarks(topic, partition, GLANCE)
        {
            return Ok(range);
        }
        // The other one reads nothing, so after a change of leaders it may believe for minutes what was so before.
        let range = self.watermarks(topic, partition, QUERY)?;
        range.map_err(|error| unread(&format!("the ends of {topic}, partition {partition}"), &error))
    }

    fn watermarks(
        &self,
        topic: &str,
        partition: Partition,
        within: Duration,
    ) -> Result<Result<(u64, u64), KafkaError>, Error> {
        let client = self.client()?;
        let name = topic.to_owned();
        let answer = self.ask("rd_kafka_query_watermark_offsets", within, move |consumer| {
            let range = consumer.fetch_watermarks(&name, partition.0 as i32, within);
            range.map(|(low, high)| (low.max(0) as u64, high.max(0) as u64))
        });
        self.note_answer(&client, topic, matches!(answer, Ok(Ok(_))));
        answer
    }

    /// Replaces a client that has not returned the ends of a topic for too long, whatever it says instead: no broker may have
    /// answered it, or it may have learned from a broker that had just started that there is no such partition, and believe
    /// that for minutes.
    fn note_answer(&self, client: &Arc<GuardedConsumer>, topic: &str, is_answered: bool) {
        let mut since_ms = locked(&self.silent_since_ms);
        if is_answered {
            since_ms.remove(topic);
            return;
        }
        let now_ms = self.clock.monotonic_ms();
        let began_ms = *since_ms.entry(topic.to_owned()).or_insert(now_ms);
        if now_ms.saturating_sub(began_ms) >= SILENT_MS {
            since_ms.remove(topic);
            let why = format!("it has not returned the ends of {topic} for {} s", SILENT_MS / 1_000);
            // The next call reports the same error.
            let _ = self.replace(client, &why);
        }
    }

    /// Returns the end of what is committed, with the short time-out of the stall check. It is asked of the client that reads,
    /// which is replaced if it gets no answer.
    pub fn glance(&self, topic: &str, partition: Partition) -> Option<u64> {
        match self.watermarks(topic, partition, GLANCE) {
            Ok(Ok((_, end))) => Some(end),
            Ok(Err(_)) | Err(_) => None,
        }
    }

    /// Returns the range that the client saw last, without asking the broker. `None` if it has seen none yet.
    pub fn seen_range(&self, topic: &str, partition: Partition) -> Option<(u64, u64)> {
        let topic = topic.to_owned();
        let see =
            move |consumer: &BaseConsumer<DefaultContext>| native::seen_range(consumer, &topic, partition.0 as i32);
        self.ask("rd_kafka_get_watermark_offsets", Duration::ZERO, see).ok()?
    }
}

/// Creates a client and a thread that polls it.
fn connect(config: &ClientConfig) -> Result<Arc<GuardedConsumer>, Error> {
    let consumer: BaseConsumer<DefaultContext> = config
        .create_with_context(DefaultContext)
        .map_err(|error| Error::Open(format!("a Kafka consumer cannot be created: {error}").into()))?;
    let name = config.get("client.id").unwrap_or_default();
    let client = Guarded::new(name, consumer);
    let weak: Weak<GuardedConsumer> = Arc::downgrade(&client);
    let serve = move || {
        while let Some(client) = weak.upgrade().filter(|client| !client.is_given_up()) {
            failpoint::reach("source");
            // Events that are not polled accumulate. This queue contains no messages, only notices of the client.
            // Nothing waits for this thread.
            let _ = client.direct().poll(Duration::from_millis(200));
        }
        End::Asked
    };
    spawn("kafka-source", serve)?;
    Ok(client)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::log::kafka::client::mock_client;
    use rdkafka::mocking::MockCluster;

    #[test]
    fn a_client_that_knows_no_ends_of_a_topic_for_a_minute_is_replaced_and_one_that_knows_them_is_not() {
        let clock = Arc::new(ManualClock::new(1_000));
        let cluster = MockCluster::new(1).expect("a broker inside of librdkafka");
        cluster.create_topic("there", 4, 1).expect("a topic");
        let config = mock_client(&cluster);
        let source = Source::new(config, clock.clone()).expect("a client");
        let first = source.client().expect("a client");
        let is_first = || Arc::ptr_eq(&first, &source.client().expect("a client"));
        let ask = |topic: &str, partition| source.ask_range(topic, Partition(partition));
        for _ in 0..3 {
            ask("there", 99).expect_err("there is no such partition");
            clock.advance_ms(SILENT_MS - 1);
            ask("there", 99).expect_err("there is no such partition");
            // Another partition of the topic is known, so the client is in order.
            ask("there", 1).expect("known");
        }
        assert!(is_first());
        ask("there", 99).expect_err("there is no such partition");
        clock.advance_ms(SILENT_MS);
        assert!(is_first(), "it is replaced when it fails again");
        ask("there", 99).expect_err("there is no such partition");
        assert!(!is_first());
    }

    #[test]
    fn ends_are_asked_of_the_client_that_does_not_read_and_where_it_knows_none_of_the_one_that_does() {
        let clock = Arc::new(ManualClock::new(1_000));
        let [asked_brokers, reading_brokers] =
            [(); 2].map(|()| MockCluster::new(1).expect("a broker inside of librdkafka"));
        asked_brokers.create_topic("asked", 1, 1).expect("a topic");
        reading_brokers.create_topic("reading", 1, 1).expect("a topic");
        let asked = Source::new(mock_client(&asked_brokers), clock.clone()).expect("a client");
        let reading = Source::asking(asked, mock_client(&reading_brokers)).expect("a client");
        for topic in ["asked", "reading"] {
            assert_eq!(reading.ask_range(topic, Partition(0)).expect(topic), (0, 0));
        }
        assert!(reading.ask_range("neither", Partition(0)).is_err());
        assert_eq!(reading.glance("reading", Partition(0)), Some(0));
        assert_eq!(
            reading.glance("asked", Partition(0)),
            None,
            "what reads is looked after itself"
        );
    }
}
