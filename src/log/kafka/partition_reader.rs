//! Reads one partition of a topic from an offset on, as fast as librdkafka can. It uses librdkafka's simple consumer,
//! which returns whole batches from a queue that belongs to the partition.
//!
//! The crate rdkafka offers only one message at a time. It gives access to a partition's queue only after the partition
//! was assigned, when some messages may already have gone to another queue. So this module makes these few calls
//! directly (`native`). A reader returns the broker's records from the requested offset on, in order, or an error. It
//! never continues after a gap that retention made.

use super::calls::{CallAhead, Guarded, Hung};
use super::client::{DefaultContext, spawn, unread, unread_for};
pub use super::native::Wake;
use super::native::{self, GuardedConsumer, Message, PartitionQueue};
use crate::clock::Clock;
use crate::failpoint;
use crate::log::{Error, Limit, Range, Record, RecordHeaders, SCHEMA_HEADERS, SchemaHeader, Topic, locked};
use crate::metrics;
use crate::presence::{Offset, Partition};
use crate::tasks::End;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaRespErr;
use std::collections::BTreeMap;
use std::ffi::CStr;
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

/// [`SCHEMA_HEADERS`], terminated by zero as librdkafka requires.
const SCHEMA_HEADER_NAMES: [&CStr; SCHEMA_HEADERS.len()] = [
    c"__value_schema_id",
    c"apicurio.value.contentId",
    c"apicurio.value.globalId",
];
/// [`crate::log::TRACE_HEADER`], terminated by zero.
const TRACE_HEADER_NAME: &CStr = c"traceparent";
/// [`crate::log::ID_HEADER`], terminated by zero.
const ID_HEADER_NAME: &CStr = c"id";
/// Both names of the setting for how many bytes of a partition are fetched at a time.
pub const FETCH_BYTES: [&str; 2] = ["fetch.message.max.bytes", "max.partition.fetch.bytes"];
/// The call that takes records.
const TAKE: &str = "rd_kafka_consume_batch";
const QUERY: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_secs(2);
/// How long no record may arrive before the broker is asked whether there are any.
const QUIET_MS: u64 = 5_000;
/// A client that exceeds one of these limits may be stuck and is replaced. One counts restarts of a partition in a row
/// that returned nothing; the other is the time without an answer from the brokers.
const RESTARTS_MAX: u32 = 4;
const SILENT_MS: u64 = 60_000;

/// A connection to the brokers that readers share. It has one client, which is replaced if it was given up.
pub struct Source {
    config: ClientConfig,
    clock: Arc<dyn Clock>,
    client: Mutex<Arc<GuardedConsumer>>,
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

    /// Like [`Source::new`], but keeps the group of the settings, so that the source can ask for the group's offsets.
    /// It does not become a member.
    pub fn of_group(config: ClientConfig, clock: Arc<dyn Clock>) -> Result<Arc<Source>, Error> {
        Source::with_isolation(config, clock, "read_committed")
    }

    /// Like [`Source::of_group`], but the group's offsets are those that are committed when it asks, even if a transaction
    /// is about to commit others. It must not be used to read records.
    pub fn of_group_as_committed(config: ClientConfig, clock: Arc<dyn Clock>) -> Result<Arc<Source>, Error> {
        // Clients that read committed records wait for the end of the transaction, and that of a dead producer may take
        // as long as its time-out.
        Source::with_isolation(config, clock, "read_uncommitted")
    }

    fn with_isolation(mut config: ClientConfig, clock: Arc<dyn Clock>, isolation: &str) -> Result<Arc<Source>, Error> {
        config
            // A setting for producers, which an operator may have set.
            .remove("transaction.timeout.ms")
            .set("isolation.level", isolation)
            .set("auto.offset.reset", "error")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            // How long librdkafka pauses fetching once enough is queued. With the default of a second it paused for
            // four of five seconds while catching up.
            .set("fetch.queue.backoff.ms", "2")
            .set("fetch.wait.max.ms", "100");
        for (key, value) in [
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
    fn replace(&self, silent: &Arc<GuardedConsumer>, why: &str) -> Result<(), Error> {
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

    /// Returns the end of what is committed, like [`ask_range`](Source::ask_range), with the short time-out of the
    /// stall check.
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

/// Progress of reading.
#[derive(Clone, Copy, Default)]
struct ReadPosition {
    /// The next record to read. `None` while reading is not started.
    next: Option<u64>,
    at_end: bool,
    end: u64,
}

/// The result of taking messages from the queue once.
#[derive(Default)]
struct Taken {
    position: ReadPosition,
    records: Vec<Record>,
    bytes: usize,
    /// An error that followed the records, and the offset at which it occurred.
    failed: Option<(RDKafkaRespErr, Option<u64>)>,
    /// The range of the partition, as the client has seen it.
    seen: Option<(u64, u64)>,
    /// It stopped at the limit: there may be more.
    is_full: bool,
}

/// A call that has the queue, and returns it with its result.
type QueueCall<T> = CallAhead<BaseConsumer<DefaultContext>, (PartitionQueue, T)>;

/// Reads one partition of a topic. Must have only one user.
pub struct PartitionReader {
    /// `None` for a topic that is not one of the log's.
    topic: Option<Topic>,
    name: Arc<str>,
    partition: Partition,
    /// `None` after its client was given up, and while it is in `ahead`.
    queue: Option<PartitionQueue>,
    /// The next batch, which is taken from the queue while the caller works on the last one.
    ahead: Option<QueueCall<Taken>>,
    reads_ahead: bool,
    reads_traces: bool,
    wake: Option<Arc<Wake>>,
    position: ReadPosition,
    seen: Option<(u64, u64)>,
    /// The end of what is committed, as the broker last reported it.
    asked_end: u64,
    /// When the partition last returned a record or was last checked, by the monotonic clock.
    heard_ms: u64,
    /// Since when the broker has not answered, by the monotonic clock, and how many questions in a row it has not
    /// answered. A single unanswered question is normal on a busy machine.
    unanswered_since_ms: Option<u64>,
    unanswered: u32,
    /// How many times in a row reading was restarted because the broker had more records than it returned.
    restarts: u32,
    /// How often in a row it was restarted because it gave nothing, without a record in between.
    stalls: u32,
    /// When reading last started, by the monotonic clock.
    started_ms: u64,
    source: Arc<Source>,
}

impl PartitionReader {
    pub fn new(
        source: &Arc<Source>,
        topic: Option<Topic>,
        name: Arc<str>,
        partition: Partition,
        wake: Option<Wake>,
    ) -> Result<PartitionReader, Error> {
        let mut reader = PartitionReader {
            topic,
            name,
            partition,
            queue: None,
            ahead: None,
            reads_ahead: false,
            reads_traces: false,
            wake: wake.map(Arc::new),
            position: ReadPosition::default(),
            seen: None,
            asked_end: 0,
            heard_ms: source.clock.monotonic_ms(),
            unanswered_since_ms: None,
            unanswered: 0,
            restarts: 0,
            stalls: 0,
            started_ms: 0,
            source: source.clone(),
        };
        reader.queue = Some(reader.open()?);
        Ok(reader)
    }

    /// Takes one batch of records ahead of its caller, who must always read with the same limit. So copying records out of
    /// librdkafka and working on them go on side by side.
    pub fn reading_ahead(mut self) -> PartitionReader {
        self.reads_ahead = true;
        self
    }

    /// Reads the traces of changes too.
    pub fn reading_traces(mut self, reads_traces: bool) -> PartitionReader {
        self.reads_traces = reads_traces;
        self
    }

    /// Returns the partition's queue of the current client.
    fn open(&mut self) -> Result<PartitionQueue, Error> {
        let client = self.source.client()?;
        if let Some(queue) = self.queue.take() {
            if Arc::ptr_eq(queue.client(), &client) {
                return Ok(queue);
            }
            end(queue);
        }
        self.position.next = None;
        let (name, wake, partition) = (self.name.clone(), self.wake.clone(), self.partition.0 as i32);
        let own = client.clone();
        let open = move |_: &BaseConsumer<DefaultContext>| PartitionQueue::open(own, &name, partition, wake);
        let opened = client
            .call("rd_kafka_topic_new", Duration::ZERO, open)
            .map_err(Hung::unread)?;
        opened.ok_or_else(|| Error::Read(format!("the topic {} cannot be opened", self.name).into()))
    }

    /// Calls a function that uses the queue and may hang.
    fn with_queue<T: Send + 'static>(
        &mut self,
        call: &'static str,
        act: impl FnOnce(&mut PartitionQueue) -> T + Send + 'static,
    ) -> Result<T, Error> {
        let queue = self.open()?;
        self.end_call(begin_call(queue, call, act))
    }

    /// Waits for such a call, and takes the queue back.
    fn end_call<T: Send + 'static>(&mut self, begun: Result<QueueCall<T>, Hung>) -> Result<T, Error> {
        match begun.and_then(CallAhead::wait) {
            Ok((queue, made)) => {
                self.queue = Some(queue);
                Ok(made)
            }
            Err(hung) => {
                self.position.next = None;
                Err(hung.unread())
            }
        }
    }

    /// Returns whether everything that exists was read.
    pub fn is_at_end(&self) -> bool {
        self.position.at_end
    }

    /// Returns the offset at which the next read continues without a restart.
    pub fn next(&self) -> Option<Offset> {
        self.position.next.map(Offset)
    }

    /// Returns the greatest end that was seen or that the broker reported.
    pub fn end(&self) -> Offset {
        Offset(
            self.position
                .end
                .max(self.position.next.unwrap_or(0))
                .max(self.asked_end),
        )
    }

    /// Returns the range of the partition: as seen by the last read, else as the broker answers.
    pub fn range(&self) -> Result<Range, Error> {
        let (start, end) = match self.seen {
            Some(seen) => seen,
            None => self.source.ask_range(&self.name, self.partition)?,
        };
        Ok(Range {
            start: Offset(start),
            end: Offset(end).max(self.end()),
        })
    }

    /// Returns the offset before which everything was read. This includes what follows the last record and is not a
    /// record itself, such as transaction markers and records of aborted transactions.
    pub fn reached(&self) -> Offset {
        let next = self.position.next.unwrap_or(0);
        Offset(if self.position.at_end {
            self.position.end.max(next)
        } else {
            next
        })
    }

    /// Returns since when the broker has not answered, by the monotonic clock. The broker is asked when no record has
    /// arrived for a while.
    pub fn unanswered_since_ms(&self) -> Option<u64> {
        self.unanswered_since_ms.filter(|_| self.unanswered > 1)
    }

    /// Starts reading again from the next record on, because the broker has more records than it returns. After a few
    /// restarts in a row it replaces the client.
    pub fn restart(&mut self) -> Result<(), Error> {
        let Some(next) = self.position.next else { return Ok(()) };
        self.restarts += 1;
        if self.restarts > RESTARTS_MAX
            && let Some(queue) = &self.queue
        {
            self.restarts = 0;
            let why = format!(
                "it returns nothing of {}, partition {}, from offset {next} on, although the broker has more",
                self.name, self.partition
            );
            self.source.replace(queue.client(), &why)?;
        }
        self.start(next)
    }

    fn start(&mut self, from: u64) -> Result<(), Error> {
        self.stop()?;
        let offset = i64::try_from(from).map_err(|_| Error::Read(format!("no offset {from}").into()))?;
        let started = self.with_queue("rd_kafka_consume_start", move |queue| queue.start(offset))?;
        started.map_err(|error| {
            Error::Read(format!("partition {} of {} cannot be read: {error}", self.partition, self.name).into())
        })?;
        self.position.next = Some(from);
        self.position.at_end = false;
        self.started_ms = self.source.clock.monotonic_ms();
        Ok(())
    }

    fn stop(&mut self) -> Result<(), Error> {
        // What was taken ahead is not what is wanted.
        self.take_ahead()?;
        match self.position.next.take() {
            Some(_) => self.with_queue("rd_kafka_consume_stop", PartitionQueue::stop),
            None => Ok(()),
        }
    }

    /// Adds records from an offset on that have already arrived at this client. A busy broker may have more. The size
    /// of a record is that of its key and value. A batch that has begun is returned whole. When nothing has arrived for
    /// a while, asks the broker whether there are records and waits at most [`GLANCE`].
    pub fn read(&mut self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<(), Error> {
        if self.read_here(from, limit, into)? > 0 {
            self.heard_ms = self.source.clock.monotonic_ms();
            self.unanswered_since_ms = None;
        } else {
            self.look_after();
        }
        Ok(())
    }

    /// Like [`PartitionReader::read`], but never asks the broker. Returns how many records it added.
    pub fn read_here(&mut self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<usize, Error> {
        let ahead = match self.position.next == Some(from.0) {
            true => self.take_ahead()?,
            false => None,
        };
        let taken = match ahead {
            Some(taken) => taken,
            None => {
                // If the client was replaced, its queue is not started yet.
                self.queue = Some(self.open()?);
                if self.position.next != Some(from.0) {
                    self.start(from.0)?;
                }
                let take = self.take(self.position, limit);
                self.with_queue(TAKE, take)?
            }
        };
        let Taken {
            position,
            mut records,
            failed,
            seen,
            is_full,
            ..
        } = taken;
        self.position = position;
        self.seen = seen.or(self.seen);
        let count = records.len();
        if count > 0 {
            self.restarts = 0;
            self.stalls = 0;
        }
        into.append(&mut records);
        if let Some((error, next)) = failed {
            let error = self.failed(error, next);
            self.stop()?;
            return Err(error);
        }
        if is_full && self.reads_ahead {
            self.begin_ahead(limit);
        }
        Ok(count)
    }

    /// What takes the next records from the queue.
    fn take(&self, position: ReadPosition, limit: Limit) -> impl FnOnce(&mut PartitionQueue) -> Taken + Send + use<> {
        let name = self.name.clone();
        let headers = match self.topic {
            Some(Topic::Events) => HeadersRead::OfEvents,
            Some(Topic::Changes) if self.reads_traces => HeadersRead::Trace,
            Some(Topic::Changes | Topic::Kicks | Topic::Quarantine) => HeadersRead::Nothing,
            None => HeadersRead::Id,
        };
        move |queue| {
            let mut taken = position.take(queue, limit, headers);
            taken.seen = queue.seen_range(&name);
            taken
        }
    }

    /// Begins to take the next batch.
    fn begin_ahead(&mut self, limit: Limit) {
        let Some(queue) = self.queue.take() else { return };
        let take = self.take(self.position, limit);
        // A client that was given up keeps its queue; the next read opens another.
        self.ahead = begin_call(queue, TAKE, take).ok();
    }

    /// Waits for the batch that was taken ahead, if there is one.
    fn take_ahead(&mut self) -> Result<Option<Taken>, Error> {
        match self.ahead.take() {
            Some(ahead) => self.end_call(Ok(ahead)).map(Some),
            None => Ok(None),
        }
    }

    /// When nothing has arrived for a while, restarts reading if the broker has more records than it returns. After a
    /// change of leaders librdkafka may stop fetching for ever.
    fn look_after(&mut self) {
        let now_ms = self.source.clock.monotonic_ms();
        if now_ms.saturating_sub(self.heard_ms) <= QUIET_MS {
            return;
        }
        self.heard_ms = now_ms;
        let Some(next) = self.position.next else { return };
        let reached = self.reached().0;
        let end = self.source.glance(&self.name, self.partition);
        (self.unanswered_since_ms, self.unanswered) = match end {
            Some(_) => (None, 0),
            None => (
                self.unanswered_since_ms.or(Some(now_ms)),
                self.unanswered.saturating_add(1),
            ),
        };
        self.asked_end = end.unwrap_or(self.asked_end);
        // Aborted records are passed over unseen. A long run of them must not be started over and over again: once the
        // client was replaced too, each restart waits twice as long as the one before.
        let patience_ms = QUIET_MS << self.stalls.saturating_sub(RESTARTS_MAX + 2).min(7);
        if end.is_some_and(|end| end > reached) && now_ms.saturating_sub(self.started_ms) >= patience_ms {
            self.stalls += 1;
            tracing::warn!(topic = %self.name, partition = %self.partition, next, ?end, "fetch is stalled: the broker has more records; restarting it");
            // The next read reports the same error.
            let _ = self.restart();
        }
    }

    /// Converts an error that occurred before record `next`.
    fn failed(&self, error: RDKafkaRespErr, next: Option<u64>) -> Error {
        let wanted = Offset(next.unwrap_or(0));
        match error {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__AUTO_OFFSET_RESET
            | RDKafkaRespErr::RD_KAFKA_RESP_ERR_OFFSET_OUT_OF_RANGE => {
                match (self.source.ask_range(&self.name, self.partition), self.topic) {
                    (Ok((start, _)), Some(topic)) if wanted.0 < start => Error::Gone {
                        topic,
                        partition: self.partition,
                        wanted,
                        start: Offset(start),
                    },
                    (Ok((start, end)), _) => Error::Read(
                        format!(
                            "partition {} of {} has no offset {wanted}: it goes from {start} to {end}. The topic may have \
                             been created again",
                            self.partition, self.name
                        )
                        .into(),
                    ),
                    (Err(error), _) => error,
                }
            }
            other => {
                let what = format!("partition {} of {}", self.partition, self.name);
                unread_for(&what, other.into())
            }
        }
    }
}

impl Drop for PartitionReader {
    fn drop(&mut self) {
        // A client that hangs was counted and logged; then there is no queue any more.
        let _ = self.take_ahead();
        if let Some(queue) = self.queue.take() {
            end(queue);
        }
    }
}

/// Begins a call of a function that uses a queue.
fn begin_call<T: Send + 'static>(
    mut queue: PartitionQueue,
    call: &'static str,
    act: impl FnOnce(&mut PartitionQueue) -> T + Send + 'static,
) -> Result<QueueCall<T>, Hung> {
    let client = queue.client().clone();
    client.call_ahead(call, move |_| {
        let made = act(&mut queue);
        (queue, made)
    })
}

/// Stops a queue and frees it, unless its client hangs.
fn end(queue: PartitionQueue) {
    let client = queue.client().clone();
    // A client that hangs was already counted and logged.
    let _ = client.call("rd_kafka_consume_stop", Duration::ZERO, move |_| drop(queue));
}

/// Which headers of a record are looked for. Each costs a search in every message.
#[derive(Clone, Copy, PartialEq, Eq)]
enum HeadersRead {
    Nothing,
    /// What writers of events set.
    OfEvents,
    /// The id of an output, as its owner reads it.
    Id,
    /// The trace of a change.
    Trace,
}

impl ReadPosition {
    /// Takes from the queue as many messages as the limit allows.
    fn take(self, queue: &mut PartitionQueue, limit: Limit, headers: HeadersRead) -> Taken {
        let mut taken = Taken {
            position: self,
            ..Taken::default()
        };
        while taken.records.len() < limit.records && taken.bytes < limit.bytes {
            let Taken {
                position,
                records,
                bytes,
                failed,
                ..
            } = &mut taken;
            let (wanted, got) = queue.take(limit.records - records.len(), |message| {
                match position.message(&message, headers, records) {
                    _ if failed.is_some() => {}
                    Ok(size) => *bytes += size,
                    Err(error) => *failed = Some((error, position.next)),
                }
            });
            if taken.failed.is_some() || got < wanted {
                return taken;
            }
        }
        taken.is_full = true;
        taken
    }

    /// Takes over one message. Returns the size of a record, at least 1, or 0 if the message is not a record.
    fn message(
        &mut self,
        message: &Message<'_>,
        headers: HeadersRead,
        into: &mut Vec<Record>,
    ) -> Result<usize, RDKafkaRespErr> {
        match message.error() {
            None => {}
            Some(RDKafkaRespErr::RD_KAFKA_RESP_ERR__PARTITION_EOF) => {
                self.at_end = true;
                // May be lower than before: an unclean leader election truncates the partition.
                self.end = message.offset();
                return Ok(0);
            }
            Some(error) => return Err(error),
        }
        let (offset, next) = (message.offset(), self.next.unwrap_or(0));
        if offset < next {
            // A message from before the restart.
            return Ok(0);
        }
        let (key, value) = (message.key(), message.value());
        let size = value.map_or(0, <[u8]>::len) + key.map_or(0, <[u8]>::len);
        let found = (headers != HeadersRead::Nothing).then(|| message.headers()).flatten();
        let header = |of, name| {
            let value = found.as_ref().filter(|_| headers == of)?.last(name)?;
            Some(Box::from(value))
        };
        let schema_header = || {
            let mut names = SCHEMA_HEADERS.iter().zip(SCHEMA_HEADER_NAMES);
            names.find_map(|(name, terminated)| {
                let value = header(HeadersRead::OfEvents, terminated)?;
                Some(SchemaHeader { name, value })
            })
        };
        into.push(Record {
            offset: Offset(offset),
            ts: message.timestamp_ms(),
            key: key.map(<[u8]>::to_vec),
            value: value.map(<[u8]>::to_vec).unwrap_or_default(),
            is_null: value.is_none(),
            headers: RecordHeaders {
                schema: schema_header(),
                traceparent: header(HeadersRead::OfEvents, TRACE_HEADER_NAME)
                    .or_else(|| header(HeadersRead::Trace, TRACE_HEADER_NAME)),
                id: header(HeadersRead::Id, ID_HEADER_NAME),
            }
            .boxed(),
        });
        self.next = Some(offset + 1);
        self.at_end = false;
        Ok(size.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use rdkafka::mocking::MockCluster;

    #[test]
    fn a_client_that_knows_no_ends_of_a_topic_for_a_minute_is_replaced_and_one_that_knows_them_is_not() {
        let clock = Arc::new(ManualClock::new(1_000));
        let cluster = MockCluster::new(1).expect("a broker inside of librdkafka");
        cluster.create_topic("there", 4, 1).expect("a topic");
        let mut config = ClientConfig::new();
        config
            .set("bootstrap.servers", cluster.bootstrap_servers())
            .set("client.id", "mock");
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
}
