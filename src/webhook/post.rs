//! One callback, posted until the receiver accepts it or it is given up.

use super::Shape;
use super::refusals::{Attempt, Refusals, Verdict};
use crate::backoff;
use crate::cause::reason;
use crate::clock::Clock;
use crate::config::masked;
use crate::log::TRACE_HEADER;
use crate::presence::change::Change;
use crate::traces::{Parent, Span, SpanKind};
use reqwest::header::{CONTENT_TYPE, HeaderMap, HeaderName, LOCATION, RETRY_AFTER};
use reqwest::{Client, StatusCode};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, UNIX_EPOCH};
use tokio::sync::{Semaphore, watch};
use url::Url;

/// How much of a response is read, so that the connection can be used again.
const ANSWER_BYTES: usize = 64 << 10;
/// The longest pause that a receiver can request (`Retry-After`).
const REST_MAX: Duration = Duration::from_secs(300);
/// The length to which an address in the log is cut.
const SHOWN_BYTES_MAX: usize = 200;

/// How long the bridge waits for a receiver.
#[derive(Clone, Copy, Debug)]
pub struct PostTimeouts {
    /// The time limit for one response.
    pub timeout: Duration,
    /// The time limit from the first attempt on; `None`: no limit.
    pub give_up_after: Option<Duration>,
}

pub struct Receiver {
    client: Client,
    to: Url,
    shape: Shape,
    patience: PostTimeouts,
    clock: Arc<dyn Clock>,
    /// Whether a warning was logged and no callback was accepted since.
    is_warned: AtomicBool,
    refusals: Mutex<Refusals>,
    /// The greatest number of an attempt that was accepted, for those who wait.
    accepted: watch::Sender<u64>,
    /// Set to true when no further attempt may begin.
    closed: watch::Sender<bool>,
    /// No callback is posted before this monotonic time: the receiver requested a pause.
    rest_until_ms: AtomicU64,
}

/// Delivery outcome. A change with no callback configured counts as accepted.
pub enum Outcome {
    Taken,
    GivenUp {
        body: Vec<u8>,
        why: String,
    },
    /// The bridge is stopping, and a later process posts the callback.
    Left,
    /// The receiver refuses nearly everything, so the callback is not the problem: the bridge must stop.
    Stop {
        why: String,
    },
}

/// What is known of the attempts to post a callback.
#[derive(Default)]
struct Attempts {
    count: u32,
    /// The status of the last response. `None` if the last attempt had no response.
    status: Option<u16>,
    /// What each of them carries, if the change has a trace.
    traceparent: Option<String>,
}

/// Why an attempt failed.
enum Failed {
    /// Retry, but not before the pause that the receiver requested, if any.
    Later(String, Option<Duration>),
    /// The receiver will never accept this body, provided that it accepts others: a proxy without a route responds the
    /// same way.
    Refused(String),
}

impl Receiver {
    pub fn new(
        to: Url,
        shape: Shape,
        patience: PostTimeouts,
        clock: Arc<dyn Clock>,
    ) -> Result<Receiver, reqwest::Error> {
        let client = Client::builder()
            .timeout(patience.timeout)
            // A callback that was redirected was not accepted.
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Receiver {
            client,
            to,
            shape,
            patience,
            clock,
            is_warned: AtomicBool::new(false),
            refusals: Mutex::default(),
            accepted: watch::Sender::default(),
            closed: watch::Sender::default(),
            rest_until_ms: AtomicU64::new(0),
        })
    }

    /// Lets no further attempt begin: what is not accepted by those in progress is left.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Records that the callbacks of this user are no longer posted by this process.
    pub fn left(&self, user: &str) {
        self.refusals().left(user);
    }

    /// Posts a change until it is accepted or given up. Holds a permit during each attempt and none between attempts. With a
    /// trace all attempts are one span, which the receiver is given as its parent.
    pub async fn deliver(&self, change: &Change, trace: Option<Parent>, permits: &Semaphore) -> Outcome {
        let Some(body) = self.shape.body(change) else {
            return Outcome::Taken;
        };
        let mut attempts = Attempts::default();
        let span = trace.and_then(|parent| Span::begin(parent, "POST", SpanKind::Client, self.clock.since_1970()));
        let Some(mut span) = span else {
            return self.post(change, body, &mut attempts, permits).await;
        };
        attempts.traceparent = Some(span.context().traceparent());
        let outcome = self.post(change, body, &mut attempts, permits).await;
        span.text("http.request.method", "POST")
            .text("server.address", self.to.host_str().unwrap_or_default().to_owned())
            .text("rollcall.delivery", "webhook")
            .text("rollcall.change.id", super::id(change));
        if attempts.count > 1 {
            span.number("http.request.resend_count", u64::from(attempts.count) - 1);
        }
        if let Some(status) = attempts.status {
            span.number("http.response.status_code", status.into());
        }
        match &outcome {
            Outcome::Taken | Outcome::Left => {}
            Outcome::GivenUp { .. } | Outcome::Stop { .. } => {
                span.failed(
                    attempts
                        .status
                        .map_or("no_response".to_owned(), |status| status.to_string()),
                );
            }
        }
        span.end(self.clock.since_1970());
        outcome
    }

    async fn post(&self, change: &Change, body: Vec<u8>, attempts: &mut Attempts, permits: &Semaphore) -> Outcome {
        let mut closed = self.closed.subscribe();
        let mut first = None;
        let mut backoff = backoff::CALLBACK.start();
        let (mut is_late, mut first_refusal) = (false, None);
        loop {
            let permit = permits.acquire().await.expect("the semaphore is never closed");
            if *closed.borrow() {
                return Outcome::Left;
            }
            if let Some(rest) = self.rest() {
                drop(permit);
                tokio::select! {
                    () = tokio::time::sleep(rest) => {}
                    _ = closed.wait_for(|closed| *closed) => {}
                }
                continue;
            }
            let began = *first.get_or_insert_with(|| self.clock.monotonic());
            let attempt = self.refusals().begin();
            let attempted = self.attempt(change, &body, attempts).await;
            drop(permit);
            let mut undecided = None;
            let why = match attempted {
                Ok(()) => {
                    self.accepted(attempt);
                    return Outcome::Taken;
                }
                Err(Failed::Refused(why)) => {
                    let verdict = self.refusals().refused(&change.user, attempt, first_refusal);
                    match verdict {
                        Verdict::Undecided(number) => undecided = Some(*first_refusal.get_or_insert(number)),
                        Verdict::ThisCallback => return Outcome::GivenUp { body, why },
                        Verdict::Everything(refusal) => {
                            let why = refusal.sentence(&why);
                            return Outcome::Stop { why };
                        }
                    }
                    why
                }
                Err(Failed::Later(why, rest)) => {
                    let until = rest.map(|rest| self.clock.monotonic_ms() + rest.as_millis() as u64 + 1);
                    self.rest_until_ms.fetch_max(until.unwrap_or(0), Ordering::Relaxed);
                    why
                }
            };
            if !self.is_warned.swap(true, Ordering::Relaxed) {
                match self.rest() {
                    None => tracing::warn!("a callback was not accepted, retrying: {why}"),
                    Some(rest) => {
                        let rest_s = rest.as_secs_f32().round();
                        tracing::warn!(
                            rest_s,
                            "a callback was not accepted, retrying after the pause that the receiver requested: {why}"
                        );
                    }
                }
            }
            let pause = backoff.pause();
            let waited = self.clock.monotonic().saturating_sub(began) + pause;
            if self.patience.give_up_after.is_some_and(|most| waited > most) {
                // After a pause that the receiver requested, it gets one more attempt.
                if is_late || self.rest().is_none() {
                    return Outcome::GivenUp { body, why };
                }
                is_late = true;
            }
            // The next attempt decides about a refusal as soon as another callback was accepted.
            let is_decided = async {
                match undecided {
                    Some(refusal) => drop(self.accepted.subscribe().wait_for(|accepted| *accepted > refusal).await),
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = is_decided => {}
                _ = closed.wait_for(|closed| *closed) => {}
            }
        }
    }

    fn accepted(&self, attempt: Attempt) {
        self.refusals().accepted(attempt);
        self.accepted.send_if_modified(|accepted| {
            let is_later = attempt.number > *accepted;
            *accepted = attempt.number.max(*accepted);
            is_later
        });
        if self.is_warned.swap(false, Ordering::Relaxed) {
            tracing::info!("the receiver accepts callbacks again");
        }
    }

    /// Returns how long nothing may be posted from now on, if the receiver requested a pause.
    fn rest(&self) -> Option<Duration> {
        let until_ms = self.rest_until_ms.load(Ordering::Relaxed);
        let left_ms = until_ms.saturating_sub(self.clock.monotonic_ms());
        (left_ms > 0).then(|| Duration::from_millis(left_ms))
    }

    fn refusals(&self) -> std::sync::MutexGuard<'_, Refusals> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn attempt(&self, change: &Change, body: &[u8], attempts: &mut Attempts) -> Result<(), Failed> {
        attempts.count += 1;
        attempts.status = None;
        let address = self.shape.address(&self.to, change, self.clock.now_ms() / 1_000);
        // Headers beyond Tencent's, by which a receiver can recognize duplicates and older changes.
        let mut request = self
            .client
            .post(address)
            .header(CONTENT_TYPE, "application/json")
            .header(HeaderName::from_static("rollcall-change"), super::id(change))
            .header(HeaderName::from_static("rollcall-version"), change.version)
            .body(body.to_vec());
        if let Some(traceparent) = &attempts.traceparent {
            request = request.header(TRACE_HEADER, traceparent);
        }
        // Without the URL, which contains the signature.
        let reason = |error: reqwest::Error| Failed::Later(reason(error), None);
        let mut answer = request.send().await.map_err(reason)?;
        let status = answer.status();
        attempts.status = Some(status.as_u16());
        let rest = retry_after(answer.headers(), self.clock.now_ms());
        let location = location(answer.headers(), &self.to);
        let mut read = 0;
        while read < ANSWER_BYTES
            && let Ok(Some(chunk)) = answer.chunk().await
        {
            read += chunk.len();
        }
        let why = format!("the receiver responded with {}", status.as_u16());
        match status {
            _ if status.is_success() => Ok(()),
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
                Err(Failed::Refused(why))
            }
            _ if status.is_redirection()
                && let Some(location) = location =>
            {
                let why = format!(
                    "{why}, a redirect to {location}, and redirects are not followed; give the final URL with --to"
                );
                Err(Failed::Later(why, rest))
            }
            _ => Err(Failed::Later(why, rest)),
        }
    }
}

/// Returns how long the receiver asks for no calls. `Retry-After` is a number of seconds or an HTTP date.
fn retry_after(headers: &HeaderMap, now_ms: u64) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let asked = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        // The number has too many digits.
        Err(_) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => REST_MAX,
        Err(_) => {
            let date = httpdate::parse_http_date(text).ok()?;
            let since_1970 = date.duration_since(UNIX_EPOCH).unwrap_or_default();
            since_1970.saturating_sub(Duration::from_millis(now_ms))
        }
    };
    Some(asked.min(REST_MAX))
}

/// Returns the target of a redirect without its possible secrets: user, password and query string.
fn location(headers: &HeaderMap, to: &Url) -> Option<String> {
    let location = to.join(headers.get(LOCATION)?.to_str().ok()?).ok()?;
    let mut shown = masked(location.as_str());
    shown.truncate(shown.floor_char_boundary(SHOWN_BYTES_MAX));
    Some(shown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use reqwest::header::HeaderValue;

    fn headers(name: HeaderName, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name, HeaderValue::from_str(value).expect("a value"))])
    }

    #[test]
    fn a_rest_is_asked_for_in_seconds_or_until_a_date_and_is_bounded() {
        let asked = |text: &str| retry_after(&headers(RETRY_AFTER, text), 784_111_777_000);
        assert_eq!(asked("20"), Some(Duration::from_secs(20)));
        assert_eq!(asked(" 0 "), Some(Duration::ZERO));
        assert_eq!(asked("Sun, 06 Nov 1994 08:49:57 GMT"), Some(Duration::from_secs(20)));
        assert_eq!(asked("Sunday, 06-Nov-94 08:49:57 GMT"), Some(Duration::from_secs(20)));
        assert_eq!(asked("Sun Nov  6 08:49:57 1994"), Some(Duration::from_secs(20)));
        assert_eq!(asked("Sun, 06 Nov 1994 08:00:00 GMT"), Some(Duration::ZERO));
        assert_eq!(asked("Sat, 06 Nov 2094 08:49:57 GMT"), Some(REST_MAX));
        for most in ["86400", "99999999999999999999999"] {
            assert_eq!(asked(most), Some(REST_MAX));
        }
        for nothing in ["", "soon", "-1", "1.5", "20 s"] {
            assert_eq!(asked(nothing), None, "{nothing:?}");
        }
        assert_eq!(retry_after(&HeaderMap::new(), 0), None);
    }

    #[test]
    fn a_redirect_is_shown_without_what_may_be_secret() {
        let to: Url = "https://u:hunter2@chat.example.com/hook?key=hunter2"
            .parse()
            .expect("a URL");
        let shown = |text: &str| location(&headers(LOCATION, text), &to);
        assert_eq!(
            shown("/login?next=hunter2#hunter2").as_deref(),
            Some("https://***@chat.example.com/login?***")
        );
        assert_eq!(
            shown("http://a:hunter2@other.example/x").as_deref(),
            Some("http://***@other.example/x")
        );
        assert_eq!(shown("http://["), None);
        assert!(shown(&format!("/{}", "x".repeat(5_000))).is_some_and(|text| text.len() <= SHOWN_BYTES_MAX));
    }
}
