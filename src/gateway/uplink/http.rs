//! The uplink of a gateway that runs as its own process: everything goes over the HTTP interface of `rollcall serve`.
//!
//! While a request is in flight, new events are gathered, so that the next request carries all that arrived meanwhile.
//! A few requests may be in flight at once. The order of events within a connection is kept because the connection
//! waits for each of its events. A subscription that breaks is resumed from its cursor.

use super::{AHEAD, Asked, Kick, KickLine, Pace, Unavailable, Uplink, UserSnapshot, UserUpdate};
use crate::api::answers::{Gateways, PolicyAnswer, Stats, Users};
use crate::api::client::{Client, ClientError, EventStream, StreamEnd};
use crate::api::requests::UsersQuery;
use crate::api::routes::RouteId;
use crate::api::sse::StreamEvent;
use crate::backoff;
use crate::cause::reason;
use crate::config::address::masked;
use crate::metrics;
use crate::presence::event::Event;
use crate::presence::{Epoch, Offset, Partition};
use crate::schema::json::event_line;
use crate::tasks::{guarded, message};
use crate::tls::trusting;
use futures_util::FutureExt as _;
use reqwest::{StatusCode, Url};
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};

/// A request without a response after this long has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// A subscription sends a comment every ten seconds; one that is silent for this long is reopened.
const SILENCE: Duration = Duration::from_secs(35);
/// The greatest number of events in one request; the interface accepts 10,000.
const EVENTS_MAX: usize = 1_000;
/// The largest body of one request, in bytes; the interface accepts 8 MiB.
const BODY_MAX: usize = 4 << 20;
const REQUESTS_AT_ONCE: usize = 4;
/// The greatest number of appends that wait for a request; more are refused.
const WAITING_MAX: usize = 65_536;

/// Events as JSON, and the channel on which their sender waits for the result.
struct Append {
    events: Vec<u8>,
    count: usize,
    /// One with a trace is a request of its own, since a request has one header.
    traceparent: Option<Box<str>>,
    done: oneshot::Sender<Result<(), Unavailable>>,
}

pub struct HttpUplink {
    engine: Client,
    partitions: u32,
    appends: mpsc::Sender<Append>,
}

/// Why a request failed: the engine refused it, or could not be reached.
enum Failed {
    Refused(Unavailable),
    Unavailable(Unavailable),
}

impl From<ClientError> for Failed {
    fn from(error: ClientError) -> Failed {
        match error {
            ClientError::Unreached(error) => Failed::Unavailable(Unavailable(reason(error))),
            ClientError::Refused {
                status,
                detail,
                is_ours,
            } => {
                let hint = match status {
                    _ if !is_ours => "this is not an answer of an engine, so the URL is probably of another service",
                    StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                        "the gateway needs a token with the scopes read and publish (--engine-token-file)"
                    }
                    _ => "",
                };
                let clauses = [&*detail.message, hint].into_iter().filter(|clause| !clause.is_empty());
                let why = clauses.collect::<Vec<_>>().join("; ");
                let why = Unavailable(format!("the engine answered {status}: {why}"));
                match status.is_client_error() {
                    true => Failed::Refused(why),
                    false => Failed::Unavailable(why),
                }
            }
            ClientError::Unreadable { path, why } => {
                let why = format!("{path} of the engine is not what was expected: {why}");
                Failed::Unavailable(Unavailable(why))
            }
        }
    }
}

impl From<StreamEnd> for Unavailable {
    fn from(end: StreamEnd) -> Unavailable {
        Unavailable(match end {
            StreamEnd::Broken(error) => reason(error),
            StreamEnd::Ended | StreamEnd::TooLong(_) => end.to_string(),
        })
    }
}

impl From<Failed> for Unavailable {
    fn from(failed: Failed) -> Unavailable {
        match failed {
            Failed::Refused(why) | Failed::Unavailable(why) => why,
        }
    }
}

/// Waits for a response, but not longer than `PATIENCE`.
async fn within<T>(asked: impl Future<Output = Result<T, ClientError>>) -> Result<T, Failed> {
    match tokio::time::timeout(PATIENCE, asked).await {
        Ok(answered) => answered.map_err(Failed::from),
        Err(_) => Err(Failed::Unavailable(Unavailable("no answer in time".to_owned()))),
    }
}

async fn get<T: DeserializeOwned>(engine: &Client, route: RouteId) -> Result<T, Unavailable> {
    Ok(within(engine.get(route)).await?)
}

impl HttpUplink {
    /// Returns an uplink to the engine at a URL (`http://host:port`), with a bearer token if the engine requires one.
    /// Asks the engine at once for its number of partitions.
    pub async fn open(url: &str, token: Option<&str>) -> Result<HttpUplink, Unavailable> {
        HttpUplink::open_with(url, token, None).await
    }

    /// Like [`HttpUplink::open`]. An engine at `https://` must have its certificate from a CA of this file.
    pub async fn open_with(url: &str, token: Option<&str>, ca: Option<&Path>) -> Result<HttpUplink, Unavailable> {
        let url = Url::parse(url)
            .map_err(|error| Unavailable(format!("{:?} is not the URL of an engine: {error}", masked(url))))?;
        // A gateway reaches its engine directly, whatever the environment says about proxies.
        let http = reqwest::Client::builder().no_proxy().connect_timeout(PATIENCE);
        let http = trusting(http, ca)
            .map_err(|error| Unavailable(error.to_string()))?
            .build();
        let engine = Client::new(http.map_err(|error| Unavailable(reason(error)))?, &url, token);
        let stats: Stats = get(&engine, RouteId::Stats).await?;
        let partitions = stats.partitions.len() as u32;
        if partitions == 0 {
            return Err(Unavailable("the engine says that it has no partitions".to_owned()));
        }
        let (appends, waiting) = mpsc::channel(WAITING_MAX);
        tokio::spawn(gather_always(engine.clone(), waiting));
        Ok(HttpUplink {
            engine,
            partitions,
            appends,
        })
    }

    fn append_with(&self, events: &[(Option<Partition>, Event<'static>)], traceparent: Option<Box<str>>) -> Asked<()> {
        let mut text = Vec::with_capacity(256 * events.len());
        for (partition, event) in events {
            if !text.is_empty() {
                text.push(b',');
            }
            // The log assigns offset and time; the interface ignores the values given here.
            event_line(&mut text, Offset(0), 0, event);
            if let Some(partition) = partition {
                // Adds the partition after the fields of the event.
                text.pop();
                text.extend_from_slice(format!(",\"partition\":{}}}", partition.0).as_bytes());
            }
        }
        let (done, answered) = oneshot::channel();
        let append = Append {
            events: text,
            count: events.len(),
            traceparent,
            done,
        };
        let taken = self.appends.try_send(append);
        Box::pin(async move {
            if taken.is_err() {
                return Err(Unavailable(format!("{WAITING_MAX} events wait for the engine already")));
            }
            answered
                .await
                .unwrap_or_else(|_| Err(Unavailable("the request to the engine was given up".to_owned())))
        })
    }
}

/// Gathers waiting appends into requests for as long as the uplink exists. A panic fails only the appends it concerned.
async fn gather_always(engine: Client, mut waiting: mpsc::Receiver<Append>) {
    while let Err(panic) = AssertUnwindSafe(gather(&engine, &mut waiting)).catch_unwind().await {
        metrics::task_failed("uplink");
        tracing::error!(
            task = "uplink",
            why = message(&*panic),
            "task failed, starting it again"
        );
    }
}

async fn gather(engine: &Client, waiting: &mut mpsc::Receiver<Append>) {
    let at_once = Arc::new(Semaphore::new(REQUESTS_AT_ONCE));
    let mut held: Option<Append> = None;
    loop {
        let first = match held.take() {
            Some(held) => held,
            None => match waiting.recv().await {
                Some(first) => first,
                None => return,
            },
        };
        let Ok(permit) = at_once.clone().acquire_owned().await else {
            return;
        };
        let (mut count, mut bytes) = (first.count, first.events.len());
        let is_alone = first.traceparent.is_some();
        let mut appends = vec![first];
        while !is_alone
            && count < EVENTS_MAX
            && bytes < BODY_MAX
            && let Ok(next) = waiting.try_recv()
        {
            if next.traceparent.is_some() {
                held = Some(next);
                break;
            }
            count += next.count;
            bytes += next.events.len();
            appends.push(next);
        }
        let engine = engine.clone();
        tokio::spawn(guarded("uplink", async move {
            request(&engine, appends).await;
            drop(permit);
        }));
    }
}

fn body<'a>(events: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut body = vec![b'['];
    for events in events {
        if body.len() > 1 {
            body.push(b',');
        }
        body.extend_from_slice(events);
    }
    body.push(b']');
    body
}

async fn request(engine: &Client, appends: Vec<Append>) {
    let together = body(appends.iter().map(|append| append.events.as_slice()));
    let traceparent = appends.first().and_then(|first| first.traceparent.clone());
    let result = match traceparent {
        None => within(engine.post_bytes(RouteId::Events, together)).await,
        Some(traceparent) => within(engine.post_traced(RouteId::Events, together, &traceparent)).await,
    };
    let result = result.map(drop);
    if matches!(result, Err(Failed::Refused(_))) && appends.len() > 1 {
        // Nothing was appended. Each append is now sent by itself, so that an error in one does not fail the others.
        for append in appends {
            let alone = body([append.events.as_slice()].into_iter());
            let alone = within(engine.post_bytes(RouteId::Events, alone)).await;
            let _ = append.done.send(alone.map(drop).map_err(Unavailable::from));
        }
        return;
    }
    let result = result.map_err(Unavailable::from);
    for append in appends {
        // The waiter may have given up.
        let _ = append.done.send(result.clone());
    }
}

/// One subscription, which is reopened whenever it breaks.
struct Subscription {
    engine: Client,
    route: RouteId,
    /// The name and the value of the filter, if there is one.
    filter: Option<(&'static str, String)>,
    cursor: Option<String>,
}

impl Subscription {
    fn path(&self) -> &'static str {
        self.route.route().path
    }

    /// Opens the subscription at its cursor or, without a cursor, at the end of the topic.
    async fn open(&mut self) -> Result<EventStream, Unavailable> {
        let filter: Vec<(&str, &str)> = self
            .filter
            .iter()
            .map(|(name, value)| (*name, value.as_str()))
            .collect();
        let opening = self.engine.follow(self.route, &filter, self.cursor.as_deref());
        let opened = tokio::time::timeout(PATIENCE, opening)
            .await
            .map_err(|_| Unavailable(format!("{} was not answered", self.path())))?;
        let mut stream = match opened {
            Ok(stream) => stream,
            Err(error) => {
                if let ClientError::Refused { status, detail, .. } = &error
                    && *status == StatusCode::GONE
                {
                    tracing::warn!("{}: {}", self.path(), detail.message);
                    self.cursor = detail.oldest.clone();
                }
                return Err(Failed::from(error).into());
            }
        };
        // The first event contains the cursor from which the subscription starts.
        loop {
            let event = next(&mut stream).await?;
            if let Some(from) = event.begins() {
                self.cursor = Some(from.to_owned());
                return Ok(stream);
            }
        }
    }

    /// Sends the items of the subscription to the receiver until the receiver is gone.
    async fn run<T: DeserializeOwned>(mut self, mut stream: EventStream, sender: mpsc::Sender<T>) {
        loop {
            let broken = tokio::select! {
                broken = self.pass_on(&mut stream, &sender) => broken,
                () = sender.closed() => return,
            };
            let Err(broken) = broken else { return };
            tracing::debug!("{} is opened again: {broken}", self.path());
            let mut tries = 0;
            let mut backoff = backoff::UPLINK.start();
            stream = loop {
                tries += 1;
                tokio::time::sleep(backoff.pause()).await;
                if sender.is_closed() {
                    return;
                }
                match self.open().await {
                    Ok(stream) => break stream,
                    // Logged less and less often: at the first, second, fourth, eighth attempt and so on.
                    Err(error) if u32::is_power_of_two(tries) => {
                        tracing::warn!(tries, "{} cannot be followed, trying again: {error}", self.path());
                    }
                    Err(_) => {}
                }
            };
        }
    }

    /// Returns without an error when the receiver is gone.
    async fn pass_on<T: DeserializeOwned>(
        &mut self,
        stream: &mut EventStream,
        sender: &mpsc::Sender<T>,
    ) -> Result<(), Unavailable> {
        loop {
            let event = next(stream).await?;
            if event.name.as_deref() == Some("error") {
                return Err(Unavailable(event.data.unwrap_or_default()));
            }
            if let Some(data) = event.data {
                let delivery = serde_json::from_str(&data).map_err(|error| {
                    let path = self.path();
                    Unavailable(format!("{path} of the engine is not what was expected: {error}"))
                })?;
                if sender.send(delivery).await.is_err() {
                    return Ok(());
                }
            }
            self.cursor = event.id.or(self.cursor.take());
        }
    }
}

/// Returns the next event of a subscription, or an error if it is silent for too long.
async fn next(stream: &mut EventStream) -> Result<StreamEvent, Unavailable> {
    let next = stream.next_within(SILENCE).await;
    Ok(next.ok_or_else(|| Unavailable(format!("nothing came for {SILENCE:?}")))??)
}

fn follow<T, L>(engine: &Client, route: RouteId, filter: Option<(&'static str, String)>) -> Asked<mpsc::Receiver<T>>
where
    T: Send + From<L> + 'static,
    L: DeserializeOwned + Send + 'static,
{
    let engine = engine.clone();
    Box::pin(async move {
        let mut subscription = Subscription {
            engine,
            route,
            filter,
            cursor: None,
        };
        let stream = subscription.open().await?;
        let (raw, mut read) = mpsc::channel::<L>(AHEAD);
        let (sender, receiver) = mpsc::channel(AHEAD);
        tokio::spawn(guarded("uplink", subscription.run(stream, raw)));
        tokio::spawn(guarded("uplink", async move {
            while let Some(line) = read.recv().await {
                if sender.send(T::from(line)).await.is_err() {
                    return;
                }
            }
        }));
        Ok(receiver)
    })
}

impl Uplink for HttpUplink {
    fn partitions(&self) -> u32 {
        self.partitions
    }

    fn append_to(&self, events: Vec<(Option<Partition>, Event<'static>)>) -> Asked<()> {
        self.append_with(&events, None)
    }

    fn append_traced(&self, event: Event<'static>, traceparent: &str) -> Asked<()> {
        self.append_with(&[(None, event)], Some(traceparent.into()))
    }

    fn kicks(&self, gateway: &str) -> Asked<mpsc::Receiver<Kick>> {
        let filter = Some(("gateway", gateway.to_owned()));
        follow::<Kick, KickLine>(&self.engine, RouteId::Kicks, filter)
    }

    fn changes(&self) -> Asked<mpsc::Receiver<UserUpdate>> {
        follow::<UserUpdate, UserUpdate>(&self.engine, RouteId::Changes, None)
    }

    fn users(&self, users: Vec<String>) -> Asked<Vec<Option<UserSnapshot>>> {
        let engine = self.engine.clone();
        Box::pin(async move {
            let query = UsersQuery {
                users: users.clone().into(),
            };
            let known: Users = within(engine.post(RouteId::UsersQuery, &query)).await?;
            if let Some(unread) = known.unread.into_iter().next() {
                // Leaving these users out would report them as unknown.
                return Err(Unavailable(unread.why));
            }
            let mut known = known.users.into_iter().map(UserSnapshot::from).peekable();
            // The known users come in the order in which they were asked for.
            let found = users
                .iter()
                .map(|user| known.next_if(|standing| *standing.user == **user));
            Ok(found.collect())
        })
    }

    fn platforms(&self) -> Asked<BTreeMap<String, Pace>> {
        let engine = self.engine.clone();
        Box::pin(async move {
            let answer: PolicyAnswer = get(&engine, RouteId::Policy).await?;
            let platforms = answer.policy.platforms.into_iter().map(|(name, platform)| {
                let pace = Pace {
                    heartbeat_ms: platform.heartbeat_ms,
                    timeout_ms: platform.timeout_ms,
                };
                (name, pace)
            });
            Ok(platforms.collect())
        })
    }

    fn epoch(&self, gateway: &str) -> Asked<Option<Epoch>> {
        let (engine, gateway) = (self.engine.clone(), gateway.to_owned());
        Box::pin(async move {
            let answer: Gateways = get(&engine, RouteId::Gateways).await?;
            let known = answer.gateways.into_iter().find(|known| known.gateway == gateway);
            Ok(known.map(|known| Epoch(known.epoch)))
        })
    }
}
