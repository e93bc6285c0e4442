//! The exporter: OpenTelemetry's SDK, with OTLP over HTTP in protobuf. Its settings are OpenTelemetry's environment variables.
//!
//! Spans that have ended wait in a bounded queue for a thread of the SDK, which posts them in batches. What does not fit is
//! dropped, and so is what the receiver has not accepted in time; both are counted. The SDK keeps its counts to itself, so
//! [`Counted`] counts before the queue, and [`Poster`] behind it.

use super::{Parent, SpanKind, wire};
use crate::backoff;
use crate::cause::reason;
use crate::metrics;
use flate2::Compression;
use flate2::write::GzEncoder;
use opentelemetry::trace::{
    Span as _, SpanContext, SpanId, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState, Tracer as _,
    TracerProvider as _,
};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::resource::{EnvResourceDetector, TelemetryResourceDetector};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, SdkTracer, SdkTracerProvider, SpanData, SpanExporter, SpanProcessor,
};
use reqwest::StatusCode;
use reqwest::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderMap};
use std::borrow::Cow;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, UNIX_EPOCH};
use tokio::runtime::Handle;
use url::Url;

/// Whether this program can export spans.
pub const SUPPORTED: bool = true;
/// How many spans may wait, as the SDK has it, and the variable that says otherwise.
const QUEUE: usize = 2_048;
const QUEUE_VARIABLE: &str = "OTEL_BSP_MAX_QUEUE_SIZE";
/// How much of a receiver's answer is read. It says little.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// Where spans are posted, and how.
#[derive(Clone, Debug)]
pub struct SpanReceiver {
    pub client: reqwest::Client,
    pub url: Url,
    pub headers: HeaderMap,
    pub compresses: bool,
    /// How long a batch may take, with its repetitions.
    pub timeout: Duration,
}

static TRACER: OnceLock<SdkTracer> = OnceLock::new();

pub fn is_on() -> bool {
    TRACER.get().is_some()
}

/// Exports the spans of this process until it is stopped.
pub struct Exporter(SdkTracerProvider);

impl Exporter {
    /// Starts to export, as the environment says. There is one exporter in a process. `service` is the name of the service;
    /// requests are tasks of `runtime`.
    pub fn start(
        service: &'static str,
        version: &'static str,
        receiver: SpanReceiver,
        runtime: Handle,
    ) -> Result<Exporter, String> {
        let waiting = Arc::new(AtomicUsize::new(0));
        let poster = Poster {
            receiver: Arc::new(receiver),
            resource: Resource::builder_empty().build(),
            runtime,
            waiting: waiting.clone(),
            is_warned: AtomicBool::new(false),
        };
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        let most = set(QUEUE_VARIABLE)
            .and_then(|text| text.parse::<usize>().ok())
            .filter(|most| *most > 0);
        let most = most.unwrap_or(QUEUE);
        let config = BatchConfigBuilder::default().with_max_queue_size(most).build();
        let counted = Counted {
            queue: BatchSpanProcessor::new(poster, config),
            waiting,
            most,
        };
        // What comes later replaces what comes before.
        let mut resource = Resource::builder_empty()
            .with_service_name(service)
            .with_attribute(KeyValue::new("service.version", version))
            .with_detector(Box::new(TelemetryResourceDetector))
            .with_detector(Box::new(EnvResourceDetector::new()));
        if let Some(name) = set("OTEL_SERVICE_NAME") {
            resource = resource.with_service_name(name);
        }
        let provider = SdkTracerProvider::builder()
            .with_span_processor(counted)
            .with_resource(resource.build())
            .build();
        let tracer = provider.tracer("rollcall");
        match TRACER.set(tracer) {
            Ok(()) => Ok(Exporter(provider)),
            Err(_) => Err("an exporter runs in this process already".to_owned()),
        }
    }

    /// Posts what waits, for so long at most. Later spans are dropped. Blocks.
    pub fn stop(&self, within: Duration) {
        // What was not accepted is counted and logged where it is posted.
        if self.0.shutdown_with_timeout(within).is_err() {
            tracing::warn!("the last spans could not be exported in time; they are dropped");
        }
    }
}

/// A span that has begun.
pub struct OpenSpan(opentelemetry_sdk::trace::Span);

impl OpenSpan {
    pub fn begin(parent: Parent, name: Cow<'static, str>, kind: SpanKind, at: Duration) -> Option<OpenSpan> {
        let tracer = TRACER.get()?;
        let above = SpanContext::new(
            TraceId::from(parent.trace),
            SpanId::from(parent.span),
            TraceFlags::SAMPLED,
            true,
            TraceState::default(),
        );
        let kind = match kind {
            SpanKind::Server => opentelemetry::trace::SpanKind::Server,
            SpanKind::Client => opentelemetry::trace::SpanKind::Client,
            SpanKind::Producer => opentelemetry::trace::SpanKind::Producer,
            SpanKind::Consumer => opentelemetry::trace::SpanKind::Consumer,
            SpanKind::Internal => opentelemetry::trace::SpanKind::Internal,
        };
        let builder = tracer
            .span_builder(name)
            .with_kind(kind)
            .with_start_time(UNIX_EPOCH + at);
        let span = builder.start_with_context(tracer, &Context::new().with_remote_span_context(above));
        let is_sampled = span.span_context().is_sampled() && span.is_recording();
        is_sampled.then_some(OpenSpan(span))
    }

    pub fn context(&self) -> Parent {
        let context = self.0.span_context();
        Parent {
            trace: u128::from_be_bytes(context.trace_id().to_bytes()),
            span: u64::from_be_bytes(context.span_id().to_bytes()),
        }
    }

    pub fn text(&mut self, name: &'static str, value: Cow<'static, str>) {
        self.0.set_attribute(KeyValue::new(name, value.into_owned()));
    }

    pub fn number(&mut self, name: &'static str, value: u64) {
        let value = i64::try_from(value).unwrap_or(i64::MAX);
        self.0.set_attribute(KeyValue::new(name, value));
    }

    pub fn failed(&mut self, kind: Cow<'static, str>) {
        self.text("error.type", kind);
        self.0.set_status(Status::error(""));
    }

    pub fn end(mut self, at: Duration) {
        self.0.end_with_timestamp(UNIX_EPOCH + at);
    }
}

/// The queue of the SDK, with a count of what is in it and of what does not fit.
#[derive(Debug)]
struct Counted {
    queue: BatchSpanProcessor,
    waiting: Arc<AtomicUsize>,
    most: usize,
}

impl SpanProcessor for Counted {
    fn on_start(&self, span: &mut opentelemetry_sdk::trace::Span, context: &Context) {
        self.queue.on_start(span, context);
    }

    fn on_end(&self, span: SpanData) {
        let one_more = |waiting: usize| (waiting < self.most).then_some(waiting + 1);
        let taken = self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more);
        match taken {
            Ok(_) => self.queue.on_end(span),
            Err(_) => metrics::spans("queue_full", 1),
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.queue.force_flush()
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.queue.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.queue.set_resource(resource);
    }
}

/// What posts batches, with a count of what is accepted and what is not.
#[derive(Debug)]
struct Poster {
    receiver: Arc<SpanReceiver>,
    resource: Resource,
    runtime: Handle,
    waiting: Arc<AtomicUsize>,
    is_warned: AtomicBool,
}

impl SpanExporter for Poster {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let count = batch.len();
        let body = wire::request(&self.resource, &batch);
        drop(batch);
        // The thread that waits here has no runtime.
        let receiver = self.receiver.clone();
        let posted = self.runtime.spawn(async move { receiver.post(body).await }).await;
        let posted = posted.unwrap_or_else(|_| Err("the process is stopping".to_owned()));
        self.waiting.fetch_sub(count, Ordering::AcqRel);
        let rejected = posted.as_ref().map_or(count, |rejected| count.min(*rejected));
        metrics::spans("exported", count - rejected);
        metrics::spans("not_accepted", rejected);
        let why = match posted {
            Ok(0) => {
                if self.is_warned.swap(false, Ordering::AcqRel) {
                    tracing::info!("spans are exported again");
                }
                return Ok(());
            }
            Ok(_) => "the receiver rejected them".to_owned(),
            Err(why) => why,
        };
        if !self.is_warned.swap(true, Ordering::AcqRel) {
            tracing::warn!(dropped = rejected, "spans could not be exported and are dropped: {why}");
        }
        Err(OTelSdkError::InternalFailure(why))
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.resource = resource.clone();
    }
}

/// Why an attempt failed, and whether another one may succeed.
struct Failed {
    why: String,
    may_pass: bool,
}

impl SpanReceiver {
    /// Posts a batch until it is accepted, refused, or the time is over. Returns how many spans were rejected.
    async fn post(&self, body: Vec<u8>) -> Result<usize, String> {
        let body = match self.compresses {
            false => body,
            true => compressed(&body).map_err(|error| error.to_string())?,
        };
        let mut last = "no response in time".to_owned();
        let posting = async {
            let mut backoff = backoff::SPANS.start();
            loop {
                match self.attempt(&body).await {
                    Ok(rejected) => return Ok(rejected),
                    Err(Failed { why, may_pass: false }) => return Err(why),
                    Err(Failed { why, may_pass: true }) => last = why,
                }
                tokio::time::sleep(backoff.pause()).await;
            }
        };
        let posted = tokio::time::timeout(self.timeout, posting).await;
        posted.unwrap_or(Err(last))
    }

    async fn attempt(&self, body: &[u8]) -> Result<usize, Failed> {
        let mut request = self
            .client
            .post(self.url.clone())
            .headers(self.headers.clone())
            .header(CONTENT_TYPE, "application/x-protobuf");
        if self.compresses {
            request = request.header(CONTENT_ENCODING, "gzip");
        }
        let lost = |error: reqwest::Error| Failed {
            why: reason(error),
            may_pass: true,
        };
        let mut answer = request.body(body.to_vec()).send().await.map_err(lost)?;
        let status = answer.status();
        let mut read = Vec::new();
        while read.len() < ANSWER_BYTES_MAX
            && let Some(chunk) = answer.chunk().await.map_err(lost)?
        {
            read.extend_from_slice(&chunk);
        }
        if status.is_success() {
            return Ok(usize::try_from(wire::rejected(&read)).unwrap_or(usize::MAX));
        }
        // Those that the protocol lists; everything else is for good.
        let may_pass = matches!(
            status,
            StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT
        );
        let why = format!("the receiver responded with {}", status.as_u16());
        Err(Failed { why, may_pass })
    }
}

fn compressed(body: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(body)?;
    encoder.finish()
}
