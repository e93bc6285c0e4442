//! The calls of librdkafka that the crate rdkafka does not have, made safe: its simple consumer, which gives whole
//! batches from a queue of the partition's own. Everything that is unsafe is here, and nothing else is.

use super::calls::Guarded;
use super::client::DefaultContext;
use rdkafka::bindings as native;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::producer::{BaseProducer, Producer, ProducerContext};
use rdkafka::types::RDKafkaRespErr;
use std::ffi::{CStr, CString, c_void};
use std::io;
use std::marker::PhantomData;
use std::sync::Arc;
use std::time::Duration;

const NO_ERROR: RDKafkaRespErr = RDKafkaRespErr::RD_KAFKA_RESP_ERR_NO_ERROR;
/// Of one call.
const BATCH: usize = 2_048;

/// A consumer whose calls cannot hang their callers.
pub type GuardedConsumer = Guarded<BaseConsumer<DefaultContext>>;

/// Called when there is something to read.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// From where to where a topic's partition goes, as the client saw it last; none while it saw nothing.
pub fn seen_range(consumer: &BaseConsumer<DefaultContext>, topic: &str, partition: i32) -> Option<(u64, u64)> {
    let topic = CString::new(topic).ok()?;
    let client = consumer.client().native_ptr();
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client lives as long as `consumer`; the name ends with a zero; both numbers are ours.
    let error =
        unsafe { native::rd_kafka_get_watermark_offsets(client, topic.as_ptr(), partition, &mut low, &mut high) };
    let seen = error == NO_ERROR && low >= 0 && high >= 0;
    seen.then_some((low as u64, high as u64))
}

/// Returns the generation of its group in which a member is; `None` before it has joined.
pub fn generation<C: ConsumerContext>(member: &BaseConsumer<C>) -> Option<i32> {
    let client = member.client().native_ptr();
    // SAFETY: the client lives as long as `member`; what it returns is ours, and is freed here once.
    let generation = unsafe {
        let metadata = native::rd_kafka_consumer_group_metadata(client);
        if metadata.is_null() {
            return None;
        }
        let generation = native::rd_kafka_consumer_group_metadata_generation_id(metadata);
        native::rd_kafka_consumer_group_metadata_destroy(metadata);
        generation
    };
    (generation > 0).then_some(generation)
}

/// Has a producer send what was handed over without gathering more (`linger.ms`), for so long, or until all of it has arrived and
/// another thread has served the reports.
pub fn flush<C: ProducerContext>(producer: &BaseProducer<C>, during: Duration) {
    let during_ms = during.as_millis().try_into().unwrap_or(i32::MAX);
    // SAFETY: the client lives as long as `producer`. What has not arrived by then is no error here.
    unsafe { native::rd_kafka_flush(producer.client().native_ptr(), during_ms) };
}

/// The queue of one partition of a topic.
pub struct PartitionQueue {
    partition: i32,
    handle: *mut native::rd_kafka_topic_t,
    queue: *mut native::rd_kafka_queue_t,
    is_started: bool,
    messages: Vec<*mut native::rd_kafka_message_t>,
    /// Called by librdkafka for as long as the queue lives. Boxed within, to have a thin pointer that does not move.
    wake: Option<Arc<Wake>>,
    /// The client, which must outlive both handles.
    client: Arc<GuardedConsumer>,
}

// Its methods call librdkafka, so they may hang: they are for `Guarded::call`, and so is its end.
// SAFETY: librdkafka's handles may be used from any thread, and each queue is used by one at a time (`&mut self`).
unsafe impl Send for PartitionQueue {}

unsafe extern "C" fn woken(_: *mut native::rd_kafka_t, opaque: *mut c_void) {
    // SAFETY: the pointer is to the queue's own `wake`, which lives until the queue is gone.
    let wake = unsafe { &*opaque.cast::<Wake>() };
    wake();
}

impl PartitionQueue {
    /// None for a name with a zero byte, or if librdkafka refuses.
    pub fn open(
        client: Arc<GuardedConsumer>,
        topic: &str,
        partition: i32,
        wake: Option<Arc<Wake>>,
    ) -> Option<PartitionQueue> {
        let text = CString::new(topic).ok()?;
        let consumer = client.direct().client().native_ptr();
        // SAFETY: the consumer lives in `client`, which the queue keeps; a null configuration means the client's.
        let handle = unsafe { native::rd_kafka_topic_new(consumer, text.as_ptr(), std::ptr::null_mut()) };
        if handle.is_null() {
            return None;
        }
        // SAFETY: as above.
        let queue = unsafe { native::rd_kafka_queue_new(consumer) };
        if let Some(wake) = &wake {
            let opaque: *const Wake = Arc::as_ptr(wake);
            // SAFETY: `woken` reads the pointer only while the queue lives, and the queue is freed before it.
            unsafe { native::rd_kafka_queue_cb_event_enable(queue, Some(woken), opaque.cast_mut().cast()) };
        }
        Some(PartitionQueue {
            partition,
            handle,
            queue,
            is_started: false,
            messages: vec![std::ptr::null_mut(); BATCH],
            wake,
            client,
        })
    }

    /// The client that it belongs to.
    pub fn client(&self) -> &Arc<GuardedConsumer> {
        &self.client
    }

    /// From where to where the partition goes, as the client saw it last.
    pub fn seen_range(&self, topic: &str) -> Option<(u64, u64)> {
        seen_range(self.client.direct(), topic, self.partition)
    }

    /// Begins to fetch from an offset on; what is fetched already may still be given.
    pub fn start(&mut self, offset: i64) -> io::Result<()> {
        self.stop();
        // SAFETY: both handles are ours and live.
        let failed = unsafe { native::rd_kafka_consume_start_queue(self.handle, self.partition, offset, self.queue) };
        if failed != 0 {
            return Err(io::Error::last_os_error());
        }
        self.is_started = true;
        Ok(())
    }

    pub fn stop(&mut self) {
        if std::mem::take(&mut self.is_started) {
            // SAFETY: it was started.
            unsafe { native::rd_kafka_consume_stop(self.handle, self.partition) };
        }
    }

    /// Gives at most so many messages that are here, without waiting. Returns how many were asked for and how many came.
    pub fn take(&mut self, most: usize, mut each: impl FnMut(Message<'_>)) -> (usize, usize) {
        let wanted = BATCH.min(most);
        // SAFETY: the buffer has room for `wanted` pointers.
        let got = unsafe { native::rd_kafka_consume_batch_queue(self.queue, 0, self.messages.as_mut_ptr(), wanted) };
        let got = usize::try_from(got).unwrap_or(0);
        for message in &self.messages[..got] {
            // SAFETY: librdkafka gave `got` messages, each ours until it is destroyed below.
            each(Message(unsafe { &**message }));
            // SAFETY: as above, and the borrow has ended.
            unsafe { native::rd_kafka_message_destroy(*message) };
        }
        (wanted, got)
    }
}

impl Drop for PartitionQueue {
    fn drop(&mut self) {
        if self.client.is_given_up() {
            // Its threads may call back for as long as the process lives.
            std::mem::forget(self.wake.take());
            return;
        }
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

/// A message that librdkafka gave and that was not destroyed.
pub struct Message<'m>(&'m native::rd_kafka_message_t);

impl Message<'_> {
    /// None: it is a record.
    pub fn error(&self) -> Option<RDKafkaRespErr> {
        Some(self.0.err).filter(|error| *error != NO_ERROR)
    }

    pub fn offset(&self) -> u64 {
        self.0.offset.max(0) as u64
    }

    pub fn key(&self) -> Option<&[u8]> {
        self.bytes(self.0.key, self.0.key_len)
    }

    pub fn value(&self) -> Option<&[u8]> {
        self.bytes(self.0.payload, self.0.len)
    }

    pub fn timestamp_ms(&self) -> u64 {
        let mut kind = native::rd_kafka_timestamp_type_t::RD_KAFKA_TIMESTAMP_NOT_AVAILABLE;
        // SAFETY: the message lives.
        let ts = unsafe { native::rd_kafka_message_timestamp(self.0, &mut kind) };
        ts.max(0) as u64
    }

    /// Its headers; `None` if it has none. librdkafka parses the headers of a message that has none each time it is asked, so
    /// this is asked once.
    pub fn headers(&self) -> Option<MessageHeaders<'_>> {
        let mut headers = std::ptr::null_mut();
        // SAFETY: the message lives, and the headers belong to it.
        let error = unsafe { native::rd_kafka_message_headers(self.0, &mut headers) };
        (error == NO_ERROR).then_some(MessageHeaders {
            headers,
            _of: PhantomData,
        })
    }

    fn bytes(&self, at: *const c_void, length: usize) -> Option<&[u8]> {
        // SAFETY: librdkafka's pointers and lengths belong together, and the bytes live as long as the message.
        unsafe { bytes(at, length) }
    }
}

/// The headers of a message that was not destroyed.
pub struct MessageHeaders<'m> {
    headers: *mut native::rd_kafka_headers_t,
    _of: PhantomData<&'m native::rd_kafka_message_t>,
}

impl MessageHeaders<'_> {
    /// The last header of a name, if it has a value.
    pub fn last(&self, name: &CStr) -> Option<&[u8]> {
        let (mut value, mut length) = (std::ptr::null(), 0);
        // SAFETY: the headers live as long as the message, the name ends with a zero, both results are ours.
        let found = unsafe { native::rd_kafka_header_get_last(self.headers, name.as_ptr(), &mut value, &mut length) };
        // SAFETY: librdkafka's pointers and lengths belong together, and the bytes live as long as the headers.
        (found == NO_ERROR).then(|| unsafe { bytes(value, length) }).flatten()
    }
}

/// The bytes at a pointer; none at null.
///
/// # Safety
/// There are so many bytes at the pointer, and they live for `'b`.
unsafe fn bytes<'b>(at: *const c_void, length: usize) -> Option<&'b [u8]> {
    // SAFETY: as the caller says.
    (!at.is_null()).then(|| unsafe { std::slice::from_raw_parts(at.cast::<u8>(), length) })
}
