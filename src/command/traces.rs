//! Exporting spans, as OpenTelemetry's environment variables say ([docs/tracing.md](../../docs/tracing.md)).
//!
//! A setting that this program cannot follow is a warning and no error: the environment of a whole cluster may set it, and
//! presence is worth more than its traces.

use crate::config::address::masked;
use crate::traces::{ENDPOINTS, Exporter, LogNames, SUPPORTED, name_log};
use std::time::Duration;
#[cfg(feature = "otlp")]
use {
    crate::cause::reason,
    crate::tls::trusting,
    crate::traces::SpanReceiver,
    reqwest::header::{HeaderMap, HeaderName, HeaderValue},
    std::path::Path,
    url::Url,
};

/// How long the last spans may take once the process is asked to stop.
const STOP: Duration = Duration::from_secs(2);
/// The only protocol.
#[cfg(feature = "otlp")]
const PROTOCOL: &str = "http/protobuf";

/// Exports spans until it is stopped; does nothing if no endpoint is set.
pub struct Traces(Option<Exporter>);

fn set(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.trim().is_empty())
}

/// Returns the value of the variable for traces or, without one, of the variable for all signals, and its name.
#[cfg(feature = "otlp")]
fn of_traces(what: &str) -> Option<(String, String)> {
    let names = [
        format!("OTEL_EXPORTER_OTLP_TRACES_{what}"),
        format!("OTEL_EXPORTER_OTLP_{what}"),
    ];
    names.into_iter().find_map(|name| set(&name).map(|value| (name, value)))
}

/// Returns the endpoint and the variable that gives it, unless spans are switched off.
fn endpoint() -> Option<(&'static str, String)> {
    let is_off = set("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"))
        || set("OTEL_TRACES_EXPORTER").is_some_and(|value| value == "none");
    let endpoint = ENDPOINTS.into_iter().find_map(|name| Some((name, set(name)?)));
    endpoint.filter(|_| !is_off)
}

impl Traces {
    /// Starts to export if an endpoint is set. `service` is the name of the service if the environment gives no other.
    pub fn start(service: &'static str, names: LogNames) -> Traces {
        let Some((name, endpoint)) = endpoint() else {
            return Traces(None);
        };
        name_log(names);
        match begin(service, name) {
            Ok(exporter) => {
                tracing::info!(endpoint = masked(&endpoint), "spans of sampled traces are exported");
                Traces(Some(exporter))
            }
            Err(why) => {
                tracing::warn!("no spans are exported: {why}");
                Traces(None)
            }
        }
    }

    /// Says that a command exports no spans, if an endpoint is set.
    pub fn none_of(command: &str, instead: &str) {
        if let Some((name, _)) = endpoint() {
            tracing::warn!("{name} is set, but {command} exports no spans: {instead}");
        }
    }

    /// Exports the last spans, within a bound.
    pub async fn stop(self) {
        let Some(exporter) = self.0 else { return };
        // It waits for requests that tasks of this runtime make.
        let stopped = tokio::task::spawn_blocking(move || exporter.stop(STOP)).await;
        if stopped.is_err() {
            tracing::error!("stopping the exporter of spans panicked");
        }
    }
}

#[cfg(not(feature = "otlp"))]
fn begin(_: &'static str, endpoint: &str) -> Result<Exporter, String> {
    const { assert!(!SUPPORTED) };
    Err(format!(
        "{endpoint} is set, but this program was built without the feature otlp; use one of the released programs or \
         images, or build it with `cargo build --release --features otlp`"
    ))
}

#[cfg(feature = "otlp")]
fn begin(service: &'static str, endpoint: &str) -> Result<Exporter, String> {
    const { assert!(SUPPORTED) };
    if let Some((name, protocol)) = of_traces("PROTOCOL").filter(|(_, protocol)| protocol != PROTOCOL) {
        return Err(format!(
            "{name} is {protocol:?}, but only {PROTOCOL} is supported; leave it out, and set the endpoint to the HTTP port \
             of the receiver, which usually is 4318"
        ));
    }
    let compresses = match of_traces("COMPRESSION") {
        None => false,
        Some((_, compression)) if compression == "none" => false,
        Some((_, compression)) if compression == "gzip" => true,
        Some((name, compression)) => return Err(format!("{name} must be gzip or none, not {compression:?}")),
    };
    let ca = of_traces("CERTIFICATE");
    let client = trusting(reqwest::Client::builder(), ca.as_ref().map(|(_, path)| Path::new(path)));
    let client = client.map_err(|error| match &ca {
        Some((name, _)) => format!("{name} cannot be used: {error}"),
        None => error.to_string(),
    })?;
    let receiver = SpanReceiver {
        client: client.build().map_err(reason)?,
        url: url(endpoint)?,
        headers: headers()?,
        compresses,
        timeout: timeout()?,
    };
    Exporter::start(
        service,
        env!("CARGO_PKG_VERSION"),
        receiver,
        tokio::runtime::Handle::current(),
    )
}

/// Returns where spans are posted, as the variable of this name says.
#[cfg(feature = "otlp")]
fn url(variable: &str) -> Result<Url, String> {
    let text = set(variable).unwrap_or_default();
    let url = Url::parse(text.trim())
        .ok()
        .filter(|url| matches!(url.scheme(), "http" | "https"));
    let mut url = url.ok_or_else(|| {
        let shown = masked(&text);
        format!("{variable} must be a URL such as http://127.0.0.1:4318, not {shown:?}")
    })?;
    if variable == ENDPOINTS[1] {
        url.set_path(&format!("{}/v1/traces", url.path().trim_end_matches('/')));
    }
    Ok(url)
}

/// Returns the headers of requests: `name=value`, separated by commas, the value percent-encoded.
#[cfg(feature = "otlp")]
fn headers() -> Result<HeaderMap, String> {
    let mut headers = HeaderMap::new();
    let Some((variable, text)) = of_traces("HEADERS") else {
        return Ok(headers);
    };
    for (number, pair) in text
        .split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
        .enumerate()
    {
        // Without the value, which usually is a secret.
        let bad = || {
            format!(
                "{variable} must be name=value pairs, separated by commas; pair {} is not one",
                number + 1
            )
        };
        let (name, value) = pair.split_once('=').ok_or_else(bad)?;
        // In a form these two would be a space and a separator.
        let form = format!("value={}", value.trim().replace('+', "%2B").replace('&', "%26"));
        let value = form_urlencoded::parse(form.as_bytes())
            .next()
            .map(|(_, value)| value.into_owned());
        let name: HeaderName = name.trim().parse().map_err(|_| bad())?;
        let mut value: HeaderValue = value.unwrap_or_default().parse().map_err(|_| bad())?;
        value.set_sensitive(true);
        headers.insert(name, value);
    }
    Ok(headers)
}

/// Returns how long a batch may take.
#[cfg(feature = "otlp")]
fn timeout() -> Result<Duration, String> {
    const DEFAULT: Duration = Duration::from_secs(10);
    let Some((name, text)) = of_traces("TIMEOUT") else {
        return Ok(DEFAULT);
    };
    let given = text
        .trim()
        .parse::<u64>()
        .ok()
        .filter(|ms| *ms > 0)
        .map(Duration::from_millis);
    given.ok_or_else(|| format!("{name} must be a number of milliseconds above 0, not {text:?}"))
}
