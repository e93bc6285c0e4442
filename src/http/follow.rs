//! `GET /v1/changes` and `GET /v1/kicks`: subscriptions as server-sent events, read from the log.
//!
//! A subscription is a cursor without a queue. A slow reader therefore delays no other reader, and loses nothing as
//! long as the log keeps its records. The `id` of each event is the cursor after it. The end of the log is read once
//! for all subscriptions ([`tail`](super::tail)); a subscription that has reached it sleeps until a record arrives that
//! it follows.

use super::access::{Access, Grant};
use super::following::{Following, Next, start};
use super::payload::Payload;
use super::query::{number, only, parameter, parameters};
use super::{ApiError, AppState};
use crate::api::requests::{FollowQuery, Texts};
use crate::api::routes::{FILTER_MAX, RouteId};
use crate::api::sse;
use crate::clock::Clock;
use crate::log::Log;
use crate::metrics;
use crate::presence::Partition;
use crate::presence::event::bounds;
use crate::registry::Schemas;
use crate::schema::partitioner::partition_of;
use crate::topics::Topic;
use axum::body::{Body, Bytes};
use axum::extract::{Extension, RawQuery, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use futures_util::{FutureExt as _, stream};
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Sleep;

/// A comment is sent after this much time without any other output, so that proxies keep the connection open.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// The delay after which a browser reconnects when its subscription was refused.
const REFUSED_RETRY_MS: u64 = 5_000;
/// The size in bytes at which a chunk is closed. It bounds the memory that a subscriber that does not read costs.
const CHUNK_BYTES: usize = 64 << 10;

/// `GET /v1/changes?user=…&partition=…&after=…`
pub async fn changes(
    State(app): State<AppState>,
    Extension(grant): Extension<Grant>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    let wanted = Wanted::of_query(Topic::Changes, &headers, query.as_deref());
    let opened = match wanted {
        Ok(wanted) => open(app, grant, Topic::Changes, wanted).await,
        Err(api_error) => Err(api_error),
    };
    opened.unwrap_or_else(|api_error| refused(&headers, api_error))
}

/// `GET /v1/kicks?gateway=…&partition=…&after=…`
pub async fn kicks(
    State(app): State<AppState>,
    Extension(grant): Extension<Grant>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Response {
    let wanted = Wanted::of_query(Topic::Kicks, &headers, query.as_deref());
    let opened = match wanted {
        Ok(wanted) => open(app, grant, Topic::Kicks, wanted).await,
        Err(api_error) => Err(api_error),
    };
    opened.unwrap_or_else(|api_error| refused(&headers, api_error))
}

/// `POST /v1/changes/query`: like `GET /v1/changes`, with the filter in the body, which may be longer than a URL.
pub async fn changes_of(
    State(app): State<AppState>,
    Extension(grant): Extension<Grant>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
    payload: Result<Payload, ApiError>,
) -> Response {
    let wanted = only(query.as_deref(), RouteId::ChangesQuery)
        .and(payload)
        .and_then(|payload| Wanted::of_body(Topic::Changes, &headers, &payload));
    let opened = match wanted {
        Ok(wanted) => open(app, grant, Topic::Changes, wanted).await,
        Err(api_error) => Err(api_error),
    };
    opened.unwrap_or_else(|api_error| refused(&headers, api_error))
}

/// `POST /v1/kicks/query`: like `GET /v1/kicks`, with the filter in the body.
pub async fn kicks_of(
    State(app): State<AppState>,
    Extension(grant): Extension<Grant>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
    payload: Result<Payload, ApiError>,
) -> Response {
    let wanted = only(query.as_deref(), RouteId::KicksQuery)
        .and(payload)
        .and_then(|payload| Wanted::of_body(Topic::Kicks, &headers, &payload));
    let opened = match wanted {
        Ok(wanted) => open(app, grant, Topic::Kicks, wanted).await,
        Err(api_error) => Err(api_error),
    };
    opened.unwrap_or_else(|api_error| refused(&headers, api_error))
}

/// Returns the response that refuses a subscription.
///
/// A browser's `EventSource` shows a page nothing of a response whose status is not 200, and does not retry it. So a
/// client that accepts an event stream gets one, with the refusal as an event with a name of its own.
pub fn refused(headers: &HeaderMap, api_error: ApiError) -> Response {
    let accepts = headers.get_all(header::ACCEPT).iter();
    let mut accepts = accepts
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','));
    let wants_stream = accepts.any(|kind| {
        let kind = kind.split(';').next().unwrap_or_default().trim();
        kind.eq_ignore_ascii_case(sse::CONTENT_TYPE)
    });
    if !wants_stream {
        return api_error.into_response();
    }
    let mut text = String::new();
    sse::write_refused(&mut text, REFUSED_RETRY_MS, &api_error.body());
    (STREAM, text).into_response()
}

/// What a client wants to follow, and from where.
struct Wanted {
    keys: BTreeSet<Vec<u8>>,
    partition: Option<u64>,
    after: Option<String>,
}

/// Returns the name of a topic's filter in a query string, and in a body.
fn filter_of(topic: Topic) -> (&'static str, &'static str) {
    match topic {
        Topic::Kicks => ("gateway", "gateways"),
        Topic::Changes | Topic::Events | Topic::Quarantine => ("user", "users"),
    }
}

/// Returns the cursor of a client that reconnects, which takes precedence over `after`. An empty header counts as
/// missing.
fn last_seen(headers: &HeaderMap) -> Option<String> {
    let last_seen = headers.get("last-event-id").map(HeaderValue::as_bytes)?;
    let last_seen = String::from_utf8_lossy(last_seen).trim().to_owned();
    (!last_seen.is_empty()).then_some(last_seen)
}

impl Wanted {
    fn of_query(topic: Topic, headers: &HeaderMap, query: Option<&str>) -> Result<Wanted, ApiError> {
        let (filter, _) = filter_of(topic);
        let route = match topic {
            Topic::Kicks => RouteId::Kicks,
            Topic::Changes | Topic::Events | Topic::Quarantine => RouteId::Changes,
        };
        only(query, route)?;
        let keys: BTreeSet<Vec<u8>> = parameters(query, filter).map(String::into_bytes).collect();
        let count = keys.len();
        // A polyfill that can send a token in a header sends its cursor in the query string.
        let in_query = ["lastEventId", "Last-Event-ID"].map(|name| parameter(query, name));
        let in_query = in_query.into_iter().flatten().find(|cursor| !cursor.trim().is_empty());
        Wanted {
            keys,
            partition: number(query, route, "partition")?,
            after: last_seen(headers).or(in_query).or_else(|| parameter(query, "after")),
        }
        .checked(topic, filter, count)
    }

    fn of_body(topic: Topic, headers: &HeaderMap, payload: &Payload) -> Result<Wanted, ApiError> {
        let body: FollowQuery = payload.object()?;
        let (_, filter) = filter_of(topic);
        let (named, other) = match topic {
            Topic::Kicks => (body.gateways, body.users),
            Topic::Changes | Topic::Events | Topic::Quarantine => (body.users, body.gateways),
        };
        if other.is_some() {
            let message = format!("this subscription is filtered by `{filter}`");
            return Err(ApiError::bad_request("bad_parameter", message));
        }
        if named.as_ref().is_some_and(|named| named.count == 0) {
            let message = format!("`{filter}` is empty; without the field the subscription is to all of them");
            return Err(ApiError::bad_request("bad_parameter", message));
        }
        let Texts { texts, count } = named.unwrap_or_default();
        Wanted {
            keys: texts.into_iter().map(String::into_bytes).collect(),
            partition: body.partition,
            after: last_seen(headers).or(body.after),
        }
        .checked(topic, filter, count)
    }

    fn checked(self, topic: Topic, filter: &str, count: usize) -> Result<Wanted, ApiError> {
        let (least, most) = match topic {
            Topic::Kicks => bounds::GATEWAY_BYTES,
            Topic::Changes | Topic::Events | Topic::Quarantine => bounds::USER_BYTES,
        };
        if count > FILTER_MAX {
            let message = format!("at most {FILTER_MAX} `{filter}` may be given, not {count}");
            return Err(ApiError::bad_request("bad_parameter", message));
        }
        if let Some(wrong) = self.keys.iter().find(|key| !(least..=most).contains(&key.len())) {
            // Such a subscription would never match a record, which no client intends.
            let message = format!(
                "`{filter}` must have {least} to {most} bytes of UTF-8, not {}",
                wrong.len()
            );
            return Err(ApiError::bad_request("bad_parameter", message));
        }
        Ok(self)
    }

    /// Checks the filter against the ticket. With a ticket for some users, an empty filter means all of them.
    fn limited(mut self, topic: Topic, grant: &Grant) -> Result<Wanted, ApiError> {
        let Some(limited) = grant.limited.as_ref().filter(|limited| !limited.users.is_empty()) else {
            return Ok(self);
        };
        let allowed: BTreeSet<Vec<u8>> = limited.users.iter().map(|user| user.clone().into_bytes()).collect();
        if topic != Topic::Changes || !self.keys.is_subset(&allowed) {
            let message = "this ticket is for the changes of other users";
            return Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", message));
        }
        if self.keys.is_empty() {
            self.keys = allowed;
        }
        Ok(self)
    }
}

async fn open(app: AppState, grant: Grant, topic: Topic, wanted: Wanted) -> Result<Response, ApiError> {
    let log = app.engine.log().clone();
    let count = log.partitions();
    let Wanted { keys, partition, after } = wanted.limited(topic, &grant)?;
    let mut followed: BTreeSet<Partition> = (0..count).map(Partition).collect();
    if topic == Topic::Changes && !keys.is_empty() {
        // A user's changes are all in one partition.
        let users = keys.iter().filter_map(|user| std::str::from_utf8(user).ok());
        followed = users.map(|user| partition_of(user, count)).collect();
    }
    if let Some(partition) = partition {
        if partition >= count.into() {
            let message = format!("partition {partition} does not exist: there are {count}, from 0");
            return Err(ApiError::bad_request("bad_parameter", message));
        }
        followed.retain(|other| u64::from(other.0) == partition);
    }
    let asked = log.clone();
    // The log may have to ask brokers or to read from disk.
    let started = tokio::task::spawn_blocking(move || start(&*asked, topic, &followed, after.as_deref()));
    let started = started.await??;
    let place = app.subscriptions.clone().try_acquire_owned().map_err(|_| {
        let message = "the maximum number of subscriptions is open; try again shortly";
        ApiError::unavailable("busy", message)
    })?;
    let tail = match topic {
        Topic::Kicks => app.kicks.clone(),
        Topic::Changes | Topic::Events | Topic::Quarantine => app.changes.clone(),
    };
    let following = Following::begin(Arc::clone(&tail), topic, started, Arc::new(keys));
    let until = |ms: u64| Duration::from_millis(ms.saturating_sub(app.engine.now_ms()));
    let expiry = grant.expires_ms.map(|ms| Box::pin(tokio::time::sleep(until(ms))));
    let subscription = Subscription {
        log,
        clock: app.engine.clock().clone(),
        schemas: app.engine.schemas().clone(),
        following,
        stopping: app.stopping.clone(),
        state: Progress::Opened,
        access: app.access.clone(),
        grant,
        replaced: app.access.replaced(),
        expiry,
        _place: place,
        _counted: Counted::new(),
    };
    let body = Body::from_stream(stream::unfold(subscription, Subscription::next));
    Ok((STREAM, body).into_response())
}

/// The headers of an event stream.
const STREAM: [(HeaderName, HeaderValue); 4] = [
    (header::CONTENT_TYPE, HeaderValue::from_static(sse::CONTENT_TYPE)),
    (header::CACHE_CONTROL, HeaderValue::from_static("no-cache, no-store")),
    (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
    // A proxy that buffers responses would delay changes.
    (
        HeaderName::from_static("x-accel-buffering"),
        HeaderValue::from_static("no"),
    ),
];

/// One open subscription.
struct Subscription {
    log: Arc<dyn Log>,
    clock: Arc<dyn Clock>,
    schemas: Schemas,
    following: Following,
    stopping: watch::Receiver<bool>,
    state: Progress,
    access: Arc<Access>,
    grant: Grant,
    /// Changes when the tokens were replaced.
    replaced: watch::Receiver<u64>,
    /// When the token expires.
    expiry: Option<Pin<Box<Sleep>>>,
    _place: OwnedSemaphorePermit,
    _counted: Counted,
}

#[derive(PartialEq, Eq)]
enum Progress {
    Opened,
    Running,
    Ended,
}

/// Counts one open subscription in the metrics for as long as it lives.
struct Counted;

impl Counted {
    fn new() -> Counted {
        metrics::followers(1);
        Counted
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        metrics::followers(-1);
    }
}

/// Waits until a token expires; for ever if it does not.
async fn expired(expiry: &mut Option<Pin<Box<Sleep>>>) {
    match expiry {
        Some(expiry) => expiry.as_mut().await,
        None => std::future::pending().await,
    }
}

type Chunk = Result<Bytes, std::convert::Infallible>;

impl Subscription {
    async fn next(mut self) -> Option<(Chunk, Subscription)> {
        match self.state {
            Progress::Opened => {
                // Tells the client at once that the subscription is open, and from which cursor.
                self.state = Progress::Running;
                let mut hello = String::new();
                sse::write_begin(&mut hello, self.following.cursor());
                return Some((Ok(Bytes::from(hello)), self));
            }
            Progress::Running => {}
            Progress::Ended => return None,
        }
        loop {
            if *self.stopping.borrow() {
                return None;
            }
            if self.replaced.has_changed().unwrap_or(false) {
                self.replaced.mark_unchanged();
                if !self.access.still_allows(&self.grant) {
                    tracing::info!(by = %self.grant.who, "a subscription ends, since its token was revoked");
                    return None;
                }
            }
            if expired(&mut self.expiry).now_or_never().is_some() {
                tracing::info!(by = %self.grant.who, "a subscription ends, since its token has expired");
                return None;
            }
            match self.read().await {
                Ok(Some(text)) => return Some((Ok(Bytes::from(text)), self)),
                Ok(None) => {}
                Err(api_error) => {
                    self.state = Progress::Ended;
                    let mut text = String::new();
                    sse::write_error(&mut text, &api_error.body());
                    return Some((Ok(Bytes::from(text)), self));
                }
            }
            tokio::select! {
                () = self.following.woken().notified() => {}
                stopped = self.stopping.changed() => stopped.ok()?,
                Ok(()) = self.replaced.changed() => self.replaced.mark_changed(),
                () = expired(&mut self.expiry) => {}
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    let mut text = String::new();
                    match self.following.advance() {
                        true => sse::write_cursor(&mut text, self.following.cursor()),
                        false => text.push_str(sse::STILL_HERE),
                    }
                    return Some((Ok(Bytes::from(text)), self));
                }
            }
        }
    }

    /// Returns the next events as text, or `None` if there are no more at the moment.
    async fn read(&mut self) -> Result<Option<String>, ApiError> {
        let mut text = String::new();
        let mut is_passed = false;
        while text.len() < CHUNK_BYTES {
            let batch = match self.following.next(CHUNK_BYTES - text.len()) {
                Next::Wait => break,
                Next::Show(batch) => batch,
                Next::Read(read) => {
                    let (log, schemas) = (self.log.clone(), self.schemas.clone());
                    let read = tokio::task::spawn_blocking(move || read.read(&*log, &schemas));
                    read.await??
                }
            };
            // No record concerns this subscription, but the client must get the new cursor so that they are not read
            // again.
            is_passed |= batch.is_passed;
            self.following.show(batch, |shown, cursor| {
                if let Some(delivery) = &shown.delivery {
                    sse::write_trace(&mut text, &delivery.parent().traceparent());
                    delivery.delivered("sse", self.clock.since_1970());
                }
                sse::write_event(&mut text, shown.name, cursor, &shown.line);
                match text.len() >= CHUNK_BYTES {
                    // The remaining events are sent in the next chunk.
                    true => ControlFlow::Break(()),
                    false => ControlFlow::Continue(()),
                }
            });
        }
        if text.is_empty() && is_passed {
            sse::write_cursor(&mut text, self.following.cursor());
        }
        Ok((!text.is_empty()).then_some(text))
    }
}
