//! Reading one partition of a topic from an offset on, as fast as librdkafka can: its simple consumer, which gives
//! whole batches from a queue of the partition's own.
//!
//! The crate rdkafka offers one message at a time, and of a partition's queue only after it was assigned, when some of
//! it may have gone elsewhere; so these few calls are made directly. A tap gives what the broker has from the offset it
//! was asked for, in order, or an error; it never goes on behind a gap that retention made.

use super::client::{DefaultContext, spawn, unread};
use crate::clock::Clock;
use crate::failpoint;
use crate::log::{Error, Limit, Record, Topic};
use crate::presence::{Offset, Partition};
use crate::tasks::End;
use rdkafka::bindings as native;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::types::RDKafkaRespErr;
use std::ffi::{CStr, CString, c_void};
use std::sync::Arc;
use std::time::Duration;

/// Of one call to librdkafka.
const BATCH: usize = 2_048;
/// [`crate::log::SCHEMA_HEADER`], with the zero that librdkafka wants.
const SCHEMA_HEADER_NAME: &CStr = c"__value_schema_id";
const QUERY: Duration = Duration::from_secs(10);
const GLANCE: Duration = Duration::from_secs(2);
/// After so long without a record it is asked whether there are any.
const QUIET_MS: u64 = 5_000;

/// A connection to the brokers that taps share.
pub struct Source {
    consumer: BaseConsumer<DefaultContext>,
    clock: Arc<dyn Clock>,
}

impl Source {
    /// With a client's settings, to which it adds how to read: committed records alone, and nothing skipped.
    pub fn new(mut config: ClientConfig, clock: Arc<dyn Clock>) -> Result<Arc<Source>, Error> {
        config.remove("group.id");
        Source::of_group(config, clock)
    }

    /// The same, which can ask for the offsets of the group in the settings; it is no member.
    pub fn of_group(mut config: ClientConfig, clock: Arc<dyn Clock>) -> Result<Arc<Source>, Error> {
        config
            // A producer's, if somebody has set it.
            .remove("transaction.timeout.ms")
            .set("isolation.level", "read_committed")
            .set("auto.offset.reset", "error")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("enable.partition.eof", "true")
            // The default of a second is how long it sleeps once enough is queued: four of five seconds, in catch-up.
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
        let consumer: BaseConsumer<DefaultContext> = config
            .create_with_context(DefaultContext)
            .map_err(|error| Error::Open(format!("a Kafka consumer cannot be made: {error}").into()))?;
        let source = Arc::new(Source { consumer, clock });
        let weak = Arc::downgrade(&source);
        let serve = move || {
            while let Some(source) = weak.upgrade() {
                failpoint::reach("source");
                // What is not read piles up; there are no messages here, only words.
                let _ = source.consumer.poll(Duration::from_millis(200));
            }
            End::Asked
        };
        spawn("kafka-source", serve)?;
        Ok(source)
    }

    pub fn clock(&self) -> &dyn Clock {
        &*self.clock
    }

    pub fn consumer(&self) -> &BaseConsumer<DefaultContext> {
        &self.consumer
    }

    /// From where to where a topic's partition goes now, asked of the broker: the oldest record kept, and the end of what
    /// is committed.
    pub fn ask_range(&self, topic: &str, partition: Partition) -> Result<(u64, u64), Error> {
        let (low, high) = self
            .consumer
            .fetch_watermarks(topic, partition.0 as i32, QUERY)
            .map_err(|error| unread(&format!("the ends of {topic}, partition {partition}"), &error))?;
        Ok((low.max(0) as u64, high.max(0) as u64))
    }

    /// The end of what is committed, like [`ask_range`](Source::ask_range) with the short time-out of the stall check.
    pub fn glance(&self, topic: &str, partition: Partition) -> Option<u64> {
        let range = self.consumer.fetch_watermarks(topic, partition.0 as i32, GLANCE);
        range.ok().map(|(_, high)| high.max(0) as u64)
    }

    /// The same as was seen last, without asking; none while nothing was.
    pub fn seen_range(&self, topic: &str, partition: Partition) -> Option<(u64, u64)> {
        let topic = CString::new(topic).ok()?;
        let (mut low, mut high) = (-1, -1);
        // SAFETY: the client lives as long as `self`; the name ends with a zero; both numbers are ours.
        let error = unsafe {
            native::rd_kafka_get_watermark_offsets(
                self.consumer.client().native_ptr(),
                topic.as_ptr(),
                partition.0 as i32,
                &mut low,
                &mut high,
            )
        };
        let seen = error == RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR && low >= 0 && high >= 0;
        seen.then_some((low as u64, high as u64))
    }
}

/// Told when there is something to read.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// One partition of a topic, to be read by one reader.
pub struct PartitionReader {
    /// None for a topic that is not one of the log's.
    topic: Option<Topic>,
    name: Arc<str>,
    partition: Partition,
    handle: *mut native::rd_kafka_topic_t,
    queue: *mut native::rd_kafka_queue_t,
    /// The record to come next; none while it is not started.
    next: Option<u64>,
    at_end: bool,
    end: u64,
    /// When it last gave a record or was looked after, by the monotonic clock.
    heard_ms: u64,
    /// Since when the broker has not answered when it was asked, by the monotonic clock, and how often in a row. Once
    /// says little of a busy machine.
    unanswered_since_ms: Option<u64>,
    unanswered: u32,
    messages: Vec<*mut native::rd_kafka_message_t>,
    /// Called by librdkafka for as long as the queue lives. Boxed twice, to have a thin pointer that does not move.
    wake: Option<Box<Wake>>,
    source: Arc<Source>,
}

// SAFETY: librdkafka's handles may be used from any thread, and each tap is used by one at a time (`&mut self`).
unsafe impl Send for PartitionReader {}

/// The last header [`SCHEMA_HEADER`] of a message that has a value. A message without headers costs nothing more.
///
/// # Safety
/// The message must be one that librdkafka gave and that was not destroyed.
unsafe fn schema_header(message: *const native::rd_kafka_message_t) -> Option<Box<[u8]>> {
    let none = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;
    let mut headers = std::ptr::null_mut();
    // SAFETY: the caller's promise; the headers belong to the message.
    if unsafe { native::rd_kafka_message_headers(message, &mut headers) } != none {
        return None;
    }
    let (mut value, mut length) = (std::ptr::null(), 0);
    let name = SCHEMA_HEADER_NAME.as_ptr();
    // SAFETY: the headers live as long as the message, the name ends with a zero, both results are ours.
    let found = unsafe { native::rd_kafka_header_get_last(headers, name, &mut value, &mut length) };
    if found != none || value.is_null() {
        return None;
    }
    // SAFETY: librdkafka's pointers and lengths belong together.
    Some(unsafe { std::slice::from_raw_parts(value.cast::<u8>(), length) }.into())
}

unsafe extern "C" fn woken(_: *mut native::rd_kafka_t, opaque: *mut c_void) {
    // SAFETY: the pointer is to the tap's own `wake`, which lives until the queue is gone.
    let wake = unsafe { &*opaque.cast::<Wake>() };
    wake();
}

impl PartitionReader {
    pub fn new(
        source: &Arc<Source>,
        topic: Option<Topic>,
        name: Arc<str>,
        partition: Partition,
        wake: Option<Wake>,
    ) -> Result<PartitionReader, Error> {
        let text = CString::new(&*name).map_err(|_| Error::Read("a topic's name has a zero byte".into()))?;
        let client = source.consumer.client().native_ptr();
        // SAFETY: the client lives in `source`, which the tap keeps; a null configuration means the client's.
        let handle = unsafe { native::rd_kafka_topic_new(client, text.as_ptr(), std::ptr::null_mut()) };
        if handle.is_null() {
            return Err(Error::Read(format!("the topic {name} cannot be opened").into()));
        }
        // SAFETY: as above.
        let queue = unsafe { native::rd_kafka_queue_new(client) };
        let wake = wake.map(Box::new);
        if let Some(wake) = &wake {
            let opaque: *const Wake = &**wake;
            // SAFETY: `woken` reads the pointer only while the queue lives, and the tap frees the queue first.
            unsafe { native::rd_kafka_queue_cb_event_enable(queue, Some(woken), opaque.cast_mut().cast()) };
        }
        Ok(PartitionReader {
            topic,
            name,
            partition,
            handle,
            queue,
            next: None,
            at_end: false,
            end: 0,
            heard_ms: source.clock.monotonic_ms(),
            unanswered_since_ms: None,
            unanswered: 0,
            messages: vec![std::ptr::null_mut(); BATCH],
            wake,
            source: source.clone(),
        })
    }

    /// Whether everything was read that there was.
    pub fn is_at_end(&self) -> bool {
        self.at_end
    }

    /// The next record that it would give without being told where to go on.
    pub fn next(&self) -> Option<Offset> {
        self.next.map(Offset)
    }

    /// The greatest end that was seen.
    pub fn end(&self) -> Offset {
        Offset(self.end.max(self.next.unwrap_or(0)))
    }

    /// Everything before was read: the last record, and what is behind it and no record itself, such as marks of
    /// transactions and records of transactions that were aborted.
    pub fn reached(&self) -> Offset {
        let next = self.next.unwrap_or(0);
        Offset(if self.at_end { self.end.max(next) } else { next })
    }

    /// Since when the broker has not answered, by the monotonic clock. It is asked once nothing has come for a while.
    pub fn unanswered_since_ms(&self) -> Option<u64> {
        self.unanswered_since_ms.filter(|_| self.unanswered > 1)
    }

    /// Begins to read again from the next record on.
    pub fn restart(&mut self) -> Result<(), Error> {
        self.next.map_or(Ok(()), |next| self.start(next))
    }

    fn start(&mut self, from: u64) -> Result<(), Error> {
        self.stop();
        let offset = i64::try_from(from).map_err(|_| Error::Read(format!("no offset {from}").into()))?;
        // SAFETY: both handles are ours and live.
        let failed =
            unsafe { native::rd_kafka_consume_start_queue(self.handle, self.partition.0 as i32, offset, self.queue) };
        if failed != 0 {
            let error = std::io::Error::last_os_error();
            return Err(Error::Read(
                format!("partition {} of {} cannot be read: {error}", self.partition, self.name).into(),
            ));
        }
        self.next = Some(from);
        self.at_end = false;
        Ok(())
    }

    fn stop(&mut self) {
        if self.next.take().is_some() {
            // SAFETY: it was started.
            unsafe { native::rd_kafka_consume_stop(self.handle, self.partition.0 as i32) };
        }
    }

    /// Adds the records from an offset on that are here already; those of a busy broker may not be. A record counts for
    /// the bytes of its key and value; a batch that has begun is given whole. Once nothing has come for a while the broker
    /// is asked whether there is anything, for at most [`GLANCE`].
    pub fn read(&mut self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<(), Error> {
        if self.read_here(from, limit, into)? > 0 {
            self.heard_ms = self.source.clock.monotonic_ms();
            self.unanswered_since_ms = None;
        } else {
            self.look_after();
        }
        Ok(())
    }

    /// The same without ever asking; returns how many records it added.
    pub fn read_here(&mut self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<usize, Error> {
        if self.next != Some(from.0) {
            self.start(from.0)?;
        }
        let (mut records, mut bytes) = (0, 0);
        while records < limit.records && bytes < limit.bytes {
            let wanted = BATCH.min(limit.records - records);
            // SAFETY: the buffer has room for `wanted` pointers.
            let got =
                unsafe { native::rd_kafka_consume_batch_queue(self.queue, 0, self.messages.as_mut_ptr(), wanted) };
            let got = usize::try_from(got).unwrap_or(0);
            let mut failed = None;
            for at in 0..got {
                let message = self.messages[at];
                // SAFETY: librdkafka gave `got` messages, each ours until it is destroyed below.
                let result = unsafe { self.take(message, into) };
                // SAFETY: as above, and nothing of it is kept.
                unsafe { native::rd_kafka_message_destroy(message) };
                match result {
                    Ok(size) if failed.is_none() => {
                        records += usize::from(size > 0);
                        bytes += size;
                    }
                    Ok(_) => {}
                    Err(error) => failed = failed.or(Some(error)),
                }
            }
            if let Some(error) = failed {
                self.stop();
                return Err(error);
            }
            if got < wanted {
                break;
            }
        }
        Ok(records)
    }

    /// Once it has given nothing for a while: if the broker has more than it gives, it is restarted. After a change of
    /// leaders librdkafka may sit still for ever.
    fn look_after(&mut self) {
        let now_ms = self.source.clock.monotonic_ms();
        if now_ms.saturating_sub(self.heard_ms) <= QUIET_MS {
            return;
        }
        self.heard_ms = now_ms;
        let Some(next) = self.next else { return };
        let reached = self.reached().0;
        let end = self.source.glance(&self.name, self.partition);
        (self.unanswered_since_ms, self.unanswered) = match end {
            Some(_) => (None, 0),
            None => (
                self.unanswered_since_ms.or(Some(now_ms)),
                self.unanswered.saturating_add(1),
            ),
        };
        if end.is_some_and(|end| end > reached) {
            tracing::warn!(topic = %self.name, partition = %self.partition, next, ?end, "fetch is stalled: the broker has more records; restarting it");
            // An error is met again at the next read.
            let _ = self.start(next);
        }
    }

    /// Takes one message over; its size, at least 1, if it is a record.
    ///
    /// # Safety
    /// The message must be one that librdkafka gave and that was not destroyed.
    unsafe fn take(
        &mut self,
        message: *const native::rd_kafka_message_t,
        into: &mut Vec<Record>,
    ) -> Result<usize, Error> {
        // SAFETY: the caller's promise.
        let fields = unsafe { &*message };
        match fields.err {
            RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR => {}
            RDKafkaRespErr::RD_KAFKA_RESP_ERR__PARTITION_EOF => {
                self.at_end = true;
                // It may be less than before: elections that are unclean cut.
                self.end = fields.offset.max(0) as u64;
                return Ok(0);
            }
            error => return Err(self.failed(error)),
        }
        let (offset, next) = (fields.offset.max(0) as u64, self.next.unwrap_or(0));
        if offset < next {
            // Left over from before it was restarted.
            return Ok(0);
        }
        let bytes = |at: *const c_void, length: usize| {
            // SAFETY: librdkafka's pointers and lengths belong together; null has no bytes.
            (!at.is_null()).then(|| unsafe { std::slice::from_raw_parts(at.cast::<u8>(), length) }.to_vec())
        };
        let key = bytes(fields.key, fields.key_len);
        let value = bytes(fields.payload, fields.len);
        let is_null = value.is_none();
        let value = value.unwrap_or_default();
        let mut kind = native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: as above.
        let ts = unsafe { native::rd_kafka_message_timestamp(message, &mut kind) };
        let size = value.len() + key.as_ref().map_or(0, Vec::len);
        let schema_header = match self.topic {
            // SAFETY: the caller's promise.
            Some(Topic::Events) => unsafe { schema_header(message) },
            _ => None,
        };
        into.push(Record {
            offset: Offset(offset),
            ts: ts.max(0) as u64,
            key,
            value,
            is_null,
            schema_header,
        });
        self.next = Some(offset + 1);
        self.at_end = false;
        Ok(size.max(1))
    }

    fn failed(&self, error: RDKafkaRespErr) -> Error {
        let wanted = Offset(self.next.unwrap_or(0));
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
                            "partition {} of {} has no offset {wanted}: it goes from {start} to {end}. Was the topic \
                             made again?",
                            self.partition, self.name
                        )
                        .into(),
                    ),
                    (Err(error), _) => error,
                }
            }
            other => {
                let code: rdkafka::error::RDKafkaErrorCode = other.into();
                Error::Read(format!("partition {} of {}: {code}", self.partition, self.name).into())
            }
        }
    }
}

impl Drop for PartitionReader {
    fn drop(&mut self) {
        self.stop();
        // SAFETY: both are ours, nothing else uses them; the queue goes before what its callback points to, and before
        // the client, whose end would wait for it for ever.
        unsafe {
            native::rd_kafka_queue_cb_event_enable(self.queue, None, std::ptr::null_mut());
            native::rd_kafka_queue_destroy(self.queue);
            native::rd_kafka_topic_destroy(self.handle);
        }
        self.wake = None;
    }
}
