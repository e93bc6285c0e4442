//! One callback, posted until it is taken or given up.

use super::Shape;
use crate::cause::reason;
use crate::clock::Clock;
use crate::presence::change::Change;
use reqwest::header::{CONTENT_TYPE, HeaderName};
use reqwest::{Client, StatusCode};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;
use url::Url;

/// Between attempts: doubled each time.
const BACK_OFF: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));
/// Of an answer so much is read, so that the connection can be used again.
const ANSWER_BYTES: usize = 64 << 10;

/// How long is waited for a receiver.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For one answer.
    pub timeout: Duration,
    /// From the first attempt on; none: for ever.
    pub give_up_after: Option<Duration>,
}

pub struct Receiver {
    client: Client,
    to: Url,
    shape: Shape,
    patience: Patience,
    clock: Arc<dyn Clock>,
    /// Whether a warning was given, and nothing has gone well since.
    is_warned: AtomicBool,
}

/// What became of a change. Told to nobody is taken.
pub enum Outcome {
    Taken,
    GivenUp { body: Vec<u8>, why: String },
}

/// Why an attempt did not succeed.
enum Failed {
    /// Worth another attempt.
    Later(String),
    /// This body will never be taken.
    Never(String),
}

impl Receiver {
    pub fn new(to: Url, shape: Shape, patience: Patience, clock: Arc<dyn Clock>) -> Result<Receiver, reqwest::Error> {
        let client = Client::builder()
            .timeout(patience.timeout)
            // A callback that was sent elsewhere was not taken.
            .redirect(reqwest::redirect::Policy::none())
            .build()?;
        Ok(Receiver {
            client,
            to,
            shape,
            patience,
            clock,
            is_warned: AtomicBool::new(false),
        })
    }

    /// Posts a change as often as it takes, each attempt with a permit, none between attempts.
    pub async fn deliver(&self, change: &Change, permits: &Semaphore) -> Outcome {
        let Some(body) = self.shape.body(change) else {
            return Outcome::Taken;
        };
        let began = self.clock.monotonic();
        let mut back_off = BACK_OFF.0;
        loop {
            let permit = permits.acquire().await.expect("it is never closed");
            let attempt = self.attempt(change, &body).await;
            drop(permit);
            let why = match attempt {
                Ok(()) => {
                    if self.is_warned.swap(false, Ordering::Relaxed) {
                        tracing::info!("callbacks are taken again");
                    }
                    return Outcome::Taken;
                }
                Err(Failed::Never(why)) => return given_up(change, body, why),
                Err(Failed::Later(why)) => why,
            };
            if !self.is_warned.swap(true, Ordering::Relaxed) {
                tracing::warn!("a callback was not taken, and is tried again: {why}");
            }
            let pause = spread(back_off);
            let waited = self.clock.monotonic().saturating_sub(began) + pause;
            if self.patience.give_up_after.is_some_and(|most| waited > most) {
                return given_up(change, body, why);
            }
            tokio::time::sleep(pause).await;
            back_off = (back_off * 2).min(BACK_OFF.1);
        }
    }

    async fn attempt(&self, change: &Change, body: &[u8]) -> Result<(), Failed> {
        let address = self.shape.address(&self.to, change, self.clock.now_ms() / 1_000);
        // Beside what Tencent has: by these a receiver can tell what it got twice, and what is older.
        let request = self
            .client
            .post(address)
            .header(CONTENT_TYPE, "application/json")
            .header(HeaderName::from_static("rollcall-change"), super::id(change))
            .header(HeaderName::from_static("rollcall-version"), change.version)
            .body(body.to_vec());
        // Without the address, which has the signature.
        let reason = |error: reqwest::Error| Failed::Later(reason(error));
        let mut answer = request.send().await.map_err(reason)?;
        let status = answer.status();
        let mut read = 0;
        while read < ANSWER_BYTES
            && let Ok(Some(chunk)) = answer.chunk().await
        {
            read += chunk.len();
        }
        let why = || format!("the receiver answered {}", status.as_u16());
        match status {
            _ if status.is_success() => Ok(()),
            StatusCode::BAD_REQUEST | StatusCode::PAYLOAD_TOO_LARGE | StatusCode::UNPROCESSABLE_ENTITY => {
                Err(Failed::Never(why()))
            }
            _ => Err(Failed::Later(why())),
        }
    }
}

fn given_up(change: &Change, body: Vec<u8>, why: String) -> Outcome {
    let id = super::id(change);
    tracing::error!(change = id, user = &*change.user, "a callback is given up: {why}");
    Outcome::GivenUp { body, why }
}

/// Three quarters to five quarters of a span, so that those who failed together do not all come back together.
pub(super) fn spread(span: Duration) -> Duration {
    let random = RandomState::new().hash_one(span) % 1_000;
    span * 3 / 4 + span * random as u32 / 2_000
}
