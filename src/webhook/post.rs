//! One callback, posted until the receiver accepts it or it is given up.

use super::Shape;
use super::outage::{FailingCallback, Outage, Warning};
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
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
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
    refusals: Mutex<Refusals>,
    outage: Mutex<Outage>,
    /// How many callbacks are to be posted, for the log.
    waiting: AtomicUsize,
    /// The greatest number of an attempt that was accepted, for those who wait.
    accepted: watch::Sender<u64>,
    /// The number of the attempt that was accepted at the end of the last outage.
    recovered: watch::Sender<u64>,
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
            refusals: Mutex::default(),
            outage: Mutex::default(),
            waiting: AtomicUsize::new(0),
            accepted: watch::Sender::default(),
            recovered: watch::Sender::default(),
            closed: watch::Sender::default(),
            rest_until_ms: AtomicU64::new(0),
        })
    }

    /// Lets no further attempt begin: what is not accepted by those in progress is left.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Sets how many callbacks are to be posted, for the log.
    pub fn set_waiting(&self, waiting: usize) {
        self.waiting.store(waiting, Ordering::Relaxed);
    }

    /// Logs a warning if callbacks are not accepted and it was not said for a while.
    pub fn report(&self) {
        let warning = self.outage().due(self.clock.monotonic());
        self.warn(warning);
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
        let mut failing: Option<Failing<'_>> = None;
        let (mut last_failure, mut is_restarted) = (None, false);
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
            let begun = self.refusals().begun();
            let failing = failing.get_or_insert_with(|| Failing {
                receiver: self,
                callback: FailingCallback {
                    first: attempt.number,
                    since: began,
                    user: change.user.clone(),
                },
            });
            let now = self.clock.monotonic();
            let warning = self.outage().failed(failing.callback.clone(), begun, &why, now);
            self.warn(warning);
            // If others were accepted between two attempts, the end of an outage does not help this callback.
            let was_alone = last_failure
                .replace(begun)
                .is_some_and(|last| attempt.accepted_before > last);
            let pause = backoff.pause();
            let waited = self.clock.monotonic().saturating_sub(began) + pause;
            if self.patience.give_up_after.is_some_and(|most| waited > most) {
                // After a pause that the receiver requested, it gets one more attempt.
                if is_late || self.rest().is_none() {
                    return Outcome::GivenUp { body, why };
                }
                is_late = true;
            }
            // The next attempt decides about a refusal as soon as another callback was accepted. Others wait no longer than
            // an outage.
            let may_pass = async {
                match undecided {
                    Some(refusal) => passed(&self.accepted, refusal).await,
                    None if was_alone => std::future::pending().await,
                    None => passed(&self.recovered, begun).await,
                }
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = may_pass => {
                    // Once only: a callback that fails by itself must not be retried every quarter of a second.
                    if !std::mem::replace(&mut is_restarted, true) {
                        backoff.reset();
                    }
                }
                _ = closed.wait_for(|closed| *closed) => {}
            }
        }
    }

    fn accepted(&self, attempt: Attempt) {
        self.refusals().accepted(attempt);
        raise(&self.accepted, attempt.number);
        let lasted = self.outage().accepted(attempt, self.clock.monotonic());
        if let Some(lasted) = lasted {
            raise(&self.recovered, attempt.number);
            let (lasted_s, waiting) = (lasted.as_secs(), self.waiting.load(Ordering::Relaxed));
            let to = self.shown();
            tracing::info!(to, lasted_s, waiting, "the receiver accepts callbacks again");
        }
    }

    fn warn(&self, warning: Option<Warning>) {
        let Some(warning) = warning else {
            return;
        };
        let Warning {
            failing,
            oldest,
            user,
            silence,
            why,
        } = warning;
        let (to, user, oldest_s) = (self.shown(), &*user, oldest.as_secs());
        let waiting = self.waiting.load(Ordering::Relaxed);
        let nothing_accepted_s = silence.map_or(0, |silence| silence.as_secs());
        let rest_s = self.rest().map(|rest| rest.as_secs_f32().round());
        tracing::warn!(
            to,
            user,
            oldest_s,
            failing,
            waiting,
            nothing_accepted_s,
            rest_s,
            "callbacks are not accepted, retrying: {why}"
        );
    }

    /// Returns the receiver's URL without its possible secrets.
    fn shown(&self) -> String {
        masked(self.to.as_str())
    }

    fn outage(&self) -> std::sync::MutexGuard<'_, Outage> {
        self.outage.lock().unwrap_or_else(PoisonError::into_inner)
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

/// A callback of which an attempt failed, until it is no longer retried.
struct Failing<'a> {
    receiver: &'a Receiver,
    callback: FailingCallback,
}

impl Drop for Failing<'_> {
    fn drop(&mut self) {
        self.receiver.outage().ended(self.callback.first);
    }
}

/// Waits until the number is greater than this one.
async fn passed(numbers: &watch::Sender<u64>, before: u64) {
    // The sender is borrowed, so it has not gone.
    let _ = numbers.subscribe().wait_for(|number| *number > before).await;
}

fn raise(numbers: &watch::Sender<u64>, number: u64) {
    numbers.send_if_modified(|greatest| {
        let is_greater = number > *greatest;
        *greatest = number.max(*greatest);
        is_greater
    });
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
