//! What all of our clients of Kafka have in common: their words go into our log, and their failures become ours.

use crate::log::Error;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{Producer, ProducerContext};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Lets librdkafka's words into the log, at a level below ours: what they mean for a partition we say ourselves.
#[derive(Clone, Debug, Default)]
pub struct Quiet;

impl ClientContext for Quiet {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka");
    }
}

impl ConsumerContext for Quiet {}

/// That of a producer, which counts what is on its way. The client's own count has other events in it, and one of those
/// may stay for ever.
#[derive(Debug, Default)]
pub struct Sending(AtomicUsize);

impl Sending {
    pub fn sent(&self) {
        self.0.fetch_add(1, Ordering::AcqRel);
    }

    pub fn is_done(&self) -> bool {
        self.0.load(Ordering::Acquire) == 0
    }
}

impl ClientContext for Sending {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::debug!(%error, reason, "kafka");
    }
}

impl ProducerContext for Sending {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {
        // A record that fails makes its transaction fail.
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

pub fn log_line(level: RDKafkaLogLevel, facility: &str, message: &str) {
    match level {
        RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
            tracing::warn!(facility, "kafka: {message}");
        }
        RDKafkaLogLevel::Error | RDKafkaLogLevel::Warning | RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => {
            tracing::debug!(facility, "kafka: {message}");
        }
        RDKafkaLogLevel::Debug => tracing::trace!(facility, "kafka: {message}"),
    }
}

/// What Kafka could not read.
pub fn unread(what: &str, error: &KafkaError) -> Error {
    Error::Read(format!("{what}: {}", words(error)).into())
}

/// What Kafka could not write.
pub fn unwritten(what: &str, error: &KafkaError) -> Error {
    Error::Write(format!("{what}: {}", words(error)).into())
}

/// The reason alone, where there is a reason.
fn words(error: &KafkaError) -> String {
    match error {
        KafkaError::Transaction(error) => error.string(),
        other => other
            .rdkafka_error_code()
            .map_or_else(|| other.to_string(), |code| code.to_string()),
    }
}

/// Whether a producer failed because another one with its transactional id was let in.
pub fn is_fenced<P: Producer<C, Part>, C, Part>(producer: &P, error: &KafkaError) -> bool
where
    C: rdkafka::producer::ProducerContext<Part>,
    Part: rdkafka::producer::Partitioner,
{
    let fences = |code: RDKafkaErrorCode| {
        matches!(
            code,
            RDKafkaErrorCode::Fenced | RDKafkaErrorCode::ProducerFenced | RDKafkaErrorCode::InvalidProducerEpoch
        )
    };
    let code = match error {
        KafkaError::Transaction(error) => Some(error.code()),
        other => other.rdkafka_error_code(),
    };
    // Calls after it fail with other codes; the client remembers the first.
    code.is_some_and(fences) || producer.client().fatal_error().is_some_and(|(code, _)| fences(code))
}
