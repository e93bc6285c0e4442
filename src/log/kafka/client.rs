//! What all of our clients of Kafka have in common: their words go into our log, and their failures become ours.

use crate::log::Error;
use crate::tasks::{self, End};
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::ConsumerContext;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::DeliveryResult;
use rdkafka::producer::{Producer, ProducerContext};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Larger than any record that a topic takes; what is allowed is the topics' to say.
pub const REQUEST_BYTES_MAX: &str = "67108864";
/// Where nobody has set another. The broker gives up a transaction after it.
const TRANSACTION_TIMEOUT_MS: &str = "30000";

/// Lets the words of a client with this context into the log, at a level below ours: what they mean for a partition we
/// say ourselves.
macro_rules! quiet {
    ($context:ty) => {
        impl rdkafka::ClientContext for $context {
            fn log(&self, level: rdkafka::config::RDKafkaLogLevel, facility: &str, message: &str) {
                $crate::log::kafka::client::log_line(level, facility, message);
            }

            fn error(&self, error: rdkafka::error::KafkaError, reason: &str) {
                tracing::debug!(%error, reason, "kafka");
            }
        }
    };
}
pub(super) use quiet;

/// The context of a client that needs no other.
#[derive(Clone, Debug, Default)]
pub struct DefaultContext;

quiet!(DefaultContext);

impl ConsumerContext for DefaultContext {}

/// That of a producer, which counts what is on its way. The client's own count has other events in it, and one of those
/// may stay for ever.
#[derive(Debug, Default)]
pub struct CountingContext {
    on_its_way: AtomicUsize,
    /// How often a connection to a broker broke, or a broker did not answer in time.
    broken: AtomicUsize,
}

impl CountingContext {
    pub fn sent(&self) {
        self.on_its_way.fetch_add(1, Ordering::AcqRel);
    }

    pub fn is_done(&self) -> bool {
        self.on_its_way.load(Ordering::Acquire) == 0
    }

    /// Returns how many connections broke and requests timed out, of those that were polled for.
    pub fn broken(&self) -> usize {
        self.broken.load(Ordering::Acquire)
    }
}

impl rdkafka::ClientContext for CountingContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        // A connection that a broker closed or reset is logged, at the level of information, and is no error event. One
        // that could not be made has carried no request, of which the answer could be lost.
        let was_open = message.contains("in state UP") || message.contains("in state REAUTH");
        if facility == "REQTMOUT" || (facility == "FAIL" && was_open) {
            self.broken.fetch_add(1, Ordering::AcqRel);
        }
        log_line(level, facility, message);
    }

    fn error(&self, error: KafkaError, reason: &str) {
        // What breaks a connection is in the log too.
        tracing::debug!(%error, reason, "kafka");
    }
}

impl ProducerContext for CountingContext {
    type DeliveryOpaque = ();

    fn delivery(&self, _: &DeliveryResult<'_>, (): ()) {
        // A record that fails makes its transaction fail.
        self.on_its_way.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How long a producer of transactions gathers records for a request, unless it is flushed: with none, the
/// first records of a commit travel in many small requests, and librdkafka keeps a core busy while five of them are on their way.
const GATHER_MS: &str = "5";

/// What a producer of transactions has beyond a client: its id, and little that makes it wait.
pub fn transactional(config: &mut ClientConfig, id: &str) {
    config
        .set("transactional.id", id)
        .set("linger.ms", GATHER_MS)
        .set("retry.backoff.ms", "5")
        .set("message.max.bytes", REQUEST_BYTES_MAX)
        .set("queue.buffering.max.messages", "0");
    if config.get("transaction.timeout.ms").is_none() {
        config.set("transaction.timeout.ms", TRANSACTION_TIMEOUT_MS);
    }
}

/// Starts a watched thread that nobody joins.
pub fn spawn(name: &'static str, run: impl FnOnce() -> End + Send + 'static) -> Result<(), Error> {
    tasks::spawn(name, run)
        .map(drop)
        .map_err(|error| Error::Open(format!("a thread cannot be started: {error}").into()))
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

/// What Kafka could not read, or could not read at the moment.
pub fn unread(what: &str, error: &KafkaError) -> Error {
    let text = format!("{what}: {}", words(error)).into();
    match code_of(error).is_some_and(passes) {
        true => Error::Unanswered(text),
        false => Error::Read(text),
    }
}

/// The same, for a failure that has only a code.
pub fn unread_for(what: &str, code: RDKafkaErrorCode) -> Error {
    unread(what, &KafkaError::Global(code))
}

/// Whether a failure to read passes by itself: a broker is away or starts, a leader or a coordinator moves, or an answer came
/// too late. All others, such as missing rights or a damaged record, stay until somebody has done something about them. A
/// topic that a broker does not know may be one that it has not heard of yet.
fn passes(code: RDKafkaErrorCode) -> bool {
    use RDKafkaErrorCode as Code;
    matches!(
        code,
        // Of the client.
        Code::BrokerTransportFailure
            | Code::AllBrokersDown
            | Code::Resolve
            | Code::OperationTimedOut
            | Code::TimedOutQueue
            | Code::MessageTimedOut
            | Code::WaitingForCoordinator
            | Code::WaitCache
            | Code::InProgress
            | Code::PreviousInProgress
            | Code::Retry
            | Code::Outdated
            | Code::NodeUpdate
            | Code::UnknownBroker
            | Code::UnknownTopic
            | Code::UnknownPartition
            | Code::BrokerDestroy
            | Code::DestroyBroker
            // Of a broker.
            | Code::UnknownTopicOrPartition
            | Code::UnknownTopicId
            | Code::LeaderNotAvailable
            | Code::NotLeaderForPartition
            | Code::PreferredLeaderNotAvailable
            | Code::EligibleLeadersNotAvailable
            | Code::FencedLeaderEpoch
            | Code::UnknownLeaderEpoch
            | Code::OffsetNotAvailable
            | Code::ReplicaNotAvailable
            | Code::BrokerNotAvailable
            | Code::StaleBrokerEpoch
            | Code::StaleControllerEpoch
            | Code::NotController
            | Code::RequestTimedOut
            | Code::NetworkException
            | Code::CoordinatorLoadInProgress
            | Code::CoordinatorNotAvailable
            | Code::NotCoordinator
            | Code::RebalanceInProgress
            | Code::UnstableOffsetCommit
            | Code::KafkaStorageError
            | Code::ReassignmentInProgress
            | Code::FetchSessionIdNotFound
            | Code::InvalidFetchSessionEpoch
            | Code::ThrottlingQuotaExceeded
            | Code::RebootstrapRequired
    )
}

fn code_of(error: &KafkaError) -> Option<RDKafkaErrorCode> {
    match error {
        KafkaError::Transaction(error) => Some(error.code()),
        other => other.rdkafka_error_code(),
    }
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
    let code = code_of(error);
    // Calls after it fail with other codes; the client remembers the first.
    code.is_some_and(fences) || producer.client().fatal_error().is_some_and(|(code, _)| fences(code))
}

/// The settings of a client of a broker inside of librdkafka.
#[cfg(test)]
pub fn mock_client(cluster: &rdkafka::mocking::MockCluster<'_, impl rdkafka::ClientContext>) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", cluster.bootstrap_servers())
        .set("client.id", "mock");
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::log::kafka::source::Source;
    use crate::presence::Partition;
    use rdkafka::mocking::MockCluster;
    use rdkafka::types::{RDKafkaApiKey, RDKafkaRespErr};
    use std::sync::Arc;

    #[test]
    fn what_a_broker_refuses_passes_while_a_leader_moves_and_not_without_rights() {
        let cluster = MockCluster::new(1).expect("a broker inside of librdkafka");
        cluster.create_topic("topic", 1, 1).expect("a topic");
        let mut config = mock_client(&cluster);
        // It does not wait for another leader by itself, as it does before it gives up.
        config.set("socket.timeout.ms", "1000");
        let source = Source::new(config, Arc::new(ManualClock::new(1_000))).expect("a client");
        let ask = || source.ask_range("topic", Partition(0));
        let refused_with = |code| {
            // More often than librdkafka tries again.
            cluster.request_errors(RDKafkaApiKey::ListOffsets, &[code; 1_000]);
            let refused = ask().expect_err("every question is refused");
            cluster.clear_request_errors(RDKafkaApiKey::ListOffsets);
            refused
        };
        ask().expect("the broker is there");
        let rights = refused_with(RDKafkaRespErr::RD_KAFKA_RESP_ERR_TOPIC_AUTHORIZATION_FAILED);
        assert!(matches!(rights, Error::Read(_)), "{rights}");
        let moves = refused_with(RDKafkaRespErr::RD_KAFKA_RESP_ERR_NOT_LEADER_FOR_PARTITION);
        assert!(matches!(moves, Error::Unanswered(_)), "{moves}");
        ask().expect("it has passed");
        cluster.broker_down(1).expect("the leader is killed");
        let away = ask().expect_err("nobody answers");
        assert!(matches!(away, Error::Unanswered(_)), "{away}");
        cluster.broker_up(1).expect("it is back");
        ask().expect("it has passed");
    }

    #[test]
    fn codes_of_brokers_that_are_away_pass_and_those_of_damage_and_rights_do_not() {
        use RDKafkaErrorCode as Code;
        let all = [
            (Code::BrokerTransportFailure, true),
            (Code::AllBrokersDown, true),
            (Code::OperationTimedOut, true),
            (Code::LeaderNotAvailable, true),
            (Code::NotLeaderForPartition, true),
            (Code::UnknownTopicOrPartition, true),
            (Code::UnknownPartition, true),
            (Code::CoordinatorLoadInProgress, true),
            (Code::NotCoordinator, true),
            (Code::OffsetNotAvailable, true),
            (Code::BadMessage, false),
            (Code::InvalidMessage, false),
            (Code::TopicAuthorizationFailed, false),
            (Code::GroupAuthorizationFailed, false),
            (Code::Authentication, false),
            (Code::SaslAuthenticationFailed, false),
            (Code::OffsetOutOfRange, false),
            (Code::LogTruncation, false),
            (Code::Fatal, false),
            (Code::UnsupportedVersion, false),
        ];
        for (code, passes) in all {
            let error = unread_for("the topic", code);
            assert_eq!(matches!(error, Error::Unanswered(_)), passes, "{code:?}");
            assert_eq!(matches!(error, Error::Read(_)), !passes, "{code:?}");
            let text = error.to_string();
            assert!(text.contains("the topic: "), "{text}");
        }
    }
}
