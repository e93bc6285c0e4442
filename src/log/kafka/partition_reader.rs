//! Reads one partition of a topic from an offset on, as fast as librdkafka can. It uses librdkafka's simple consumer,
//! which returns whole batches from a queue that belongs to the partition.
//!
//! The crate rdkafka offers only one message at a time. It gives access to a partition's queue only after the partition
//! was assigned, when some messages may already have gone to another queue. So this module makes these few calls
//! directly (`native`). A reader returns the broker's records from the requested offset on, in order, or an error. It
//! never continues after a gap that retention made.

use super::calls::{CallAhead, Hung};
use super::client::{DefaultContext, unread_for};
pub use super::native::Wake;
use super::native::{Message, PartitionQueue};
use super::source::Source;
use crate::clock::Clock;
use crate::log::{Error, Limit, Range, Record, RecordHeaders, SCHEMA_HEADERS, SchemaHeader};
use crate::presence::{Offset, Partition};
use crate::topics::Topic;
use rdkafka::consumer::BaseConsumer;
use rdkafka::types::RDKafkaRespErr;
use std::ffi::CStr;
use std::sync::Arc;
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
/// The call that takes records.
const TAKE: &str = "rd_kafka_consume_batch";
/// How long no record may arrive before the broker is asked whether there are any.
const QUIET_MS: u64 = 5_000;
/// A client may be stuck, and is replaced, after more restarts of a partition in a row that returned nothing.
const RESTARTS_MAX: u32 = 4;

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
            heard_ms: source.clock().monotonic_ms(),
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

    pub fn clock(&self) -> &Arc<dyn Clock> {
        self.source.clock()
    }

    /// Takes one batch of records ahead of its caller, who must always read with the same limit. So copying records out of
    /// librdkafka and working on them go on side by side.
    pub fn reading_ahead(mut self) -> PartitionReader {
        self.reads_ahead = true;
        self
    }

    /// Reads the traces of outputs too.
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
        self.started_ms = self.source.clock().monotonic_ms();
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
    /// a while, asks the broker whether there are records and waits at most [`GLANCE`](super::source::GLANCE).
    pub fn read(&mut self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<(), Error> {
        if self.read_here(from, limit, into)? > 0 {
            self.heard_ms = self.source.clock().monotonic_ms();
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
            Some(_) if self.reads_traces => HeadersRead::Trace,
            Some(_) => HeadersRead::Nothing,
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
        let now_ms = self.source.clock().monotonic_ms();
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
    /// The trace of an output.
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
