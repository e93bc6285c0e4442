//! The uplink of a gateway that is a process of its own: everything over the HTTP interface of `rollcall serve`.
//!
//! Events are gathered while the request before is under way, so a request carries as many as came meanwhile, and a
//! few requests may be under way at once. Within a connection order holds because the connection waits for each of
//! its events. Subscriptions are resumed from their cursor whenever they break.

use super::{AHEAD, Asked, Kick, KickLine, Pace, Unavailable, Uplink, UserSnapshot, UserUpdate};
use crate::cause::reason;
use crate::config::address::masked;
use crate::gateway::health::guarded;
use crate::metrics;
use crate::presence::event::Event;
use crate::presence::{Epoch, Offset, Partition};
use crate::schema::json::event_line;
use crate::tasks::message;
use futures_util::{FutureExt as _, StreamExt as _};
use reqwest::{Client, RequestBuilder, StatusCode, Url};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};

/// A request that is not answered by then has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Subscriptions bring a comment every ten seconds; one that is silent for so long is opened again.
const SILENCE: Duration = Duration::from_secs(35);
const RETRY: Duration = Duration::from_secs(1);
/// Of one request; the interface takes 10,000.
const EVENTS_MAX: usize = 1_000;
/// Of one request; the interface takes 8 MiB.
const BODY_MAX: usize = 4 << 20;
const REQUESTS_AT_ONCE: usize = 4;
/// Appends that wait for their request; more are refused.
const WAITING_MAX: usize = 65_536;
/// A longer line of a subscription is no line of ours.
const LINE_MAX: usize = 4 << 20;

/// Events as JSON, with who waits for them.
struct Append {
    events: Vec<u8>,
    count: usize,
    done: oneshot::Sender<Result<(), Unavailable>>,
}

pub struct HttpUplink {
    engine: EngineClient,
    partitions: u32,
    appends: mpsc::Sender<Append>,
}

/// The other end.
#[derive(Clone)]
struct EngineClient {
    client: Client,
    url: Url,
    token: Option<Arc<str>>,
}

#[derive(Deserialize)]
struct Stats {
    partitions: Vec<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Users {
    users: Vec<UserSnapshot>,
    /// Users whom nobody could look up at the moment, while a partition moves between nodes.
    #[serde(default)]
    unread: Vec<Unread>,
}

#[derive(Deserialize)]
struct Unread {
    why: String,
}

#[derive(Deserialize)]
struct PolicyAnswer {
    policy: PolicyDocument,
}

#[derive(Deserialize)]
struct PolicyDocument {
    platforms: BTreeMap<String, Pace>,
}

#[derive(Deserialize)]
struct Gateways {
    gateways: Vec<GatewayLine>,
}

#[derive(Deserialize)]
struct GatewayLine {
    gateway: String,
    epoch: u64,
}

#[derive(Deserialize)]
struct Refused {
    error: RefusedFields,
}

#[derive(Deserialize)]
struct RefusedFields {
    message: String,
    oldest: Option<String>,
}

impl From<reqwest::Error> for Unavailable {
    fn from(error: reqwest::Error) -> Unavailable {
        Unavailable(reason(error))
    }
}

/// Whether the engine did not like a request, or could not be asked.
enum Failed {
    Refused(Unavailable),
    Unavailable(Unavailable),
}

impl From<reqwest::Error> for Failed {
    fn from(error: reqwest::Error) -> Failed {
        Failed::Unavailable(error.into())
    }
}

impl From<Unavailable> for Failed {
    fn from(error: Unavailable) -> Failed {
        Failed::Unavailable(error)
    }
}

impl From<Failed> for Unavailable {
    fn from(failed: Failed) -> Unavailable {
        match failed {
            Failed::Refused(why) | Failed::Unavailable(why) => why,
        }
    }
}

impl EngineClient {
    fn at(&self, path: &str) -> Result<Url, Unavailable> {
        self.url
            .join(path)
            .map_err(|error| Unavailable(format!("{path} cannot follow the engine's URL: {error}")))
    }

    fn with_token(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    async fn answer(&self, request: RequestBuilder) -> Result<Vec<u8>, Failed> {
        let response = self.with_token(request).timeout(PATIENCE).send().await?;
        let status = response.status();
        let body = response.bytes().await?;
        if status.is_success() {
            return Ok(body.to_vec());
        }
        let said = serde_json::from_slice::<Refused>(&body).map(|refused| refused.error.message);
        let why = Unavailable(format!("the engine answered {status}: {}", said.unwrap_or_default()));
        Err(match status.is_client_error() {
            true => Failed::Refused(why),
            false => Failed::Unavailable(why),
        })
    }

    async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Unavailable> {
        let body = self.answer(self.client.get(self.at(path)?)).await?;
        serde_json::from_slice(&body).map_err(|error| unreadable(path, &error))
    }

    async fn post(&self, path: &str, body: Vec<u8>) -> Result<Vec<u8>, Failed> {
        self.answer(self.client.post(self.at(path)?).body(body)).await
    }
}

fn unreadable(what: &str, error: &serde_json::Error) -> Unavailable {
    Unavailable(format!("{what} of the engine is not what was expected: {error}"))
}

impl HttpUplink {
    /// For the engine at an address (`http://host:port`), asked with a bearer token if one is needed. Asks it at once
    /// how many partitions it has.
    pub async fn open(url: &str, token: Option<&str>) -> Result<HttpUplink, Unavailable> {
        let url = Url::parse(url)
            .map_err(|error| Unavailable(format!("{:?} is not the URL of an engine: {error}", masked(url))))?;
        // Between a gateway and its engine there is nothing, whatever the environment says of proxies.
        let client = Client::builder().no_proxy().connect_timeout(PATIENCE).build()?;
        let engine = EngineClient {
            client,
            url,
            token: token.map(Arc::from),
        };
        let stats: Stats = engine.get("v1/stats").await?;
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
}

/// Makes requests of what waits for as long as there is an uplink. A panic fails what it was about, and no more.
async fn gather_always(engine: EngineClient, mut waiting: mpsc::Receiver<Append>) {
    while let Err(panic) = AssertUnwindSafe(gather(&engine, &mut waiting)).catch_unwind().await {
        metrics::task_failed("uplink");
        tracing::error!(
            task = "uplink",
            why = message(&*panic),
            "task failed, starting it again"
        );
    }
}

async fn gather(engine: &EngineClient, waiting: &mut mpsc::Receiver<Append>) {
    let at_once = Arc::new(Semaphore::new(REQUESTS_AT_ONCE));
    while let Some(first) = waiting.recv().await {
        let Ok(permit) = at_once.clone().acquire_owned().await else {
            return;
        };
        let (mut count, mut bytes) = (first.count, first.events.len());
        let mut appends = vec![first];
        while count < EVENTS_MAX
            && bytes < BODY_MAX
            && let Ok(next) = waiting.try_recv()
        {
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

async fn request(engine: &EngineClient, appends: Vec<Append>) {
    let together = body(appends.iter().map(|append| append.events.as_slice()));
    let result = engine.post("v1/events", together).await.map(drop);
    if matches!(result, Err(Failed::Refused(_))) && appends.len() > 1 {
        // Nothing was taken; but what is wrong with one must not be everybody's.
        for append in appends {
            let alone = engine
                .post("v1/events", body([append.events.as_slice()].into_iter()))
                .await;
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

/// One subscription, opened again whenever it breaks.
struct Subscription {
    engine: EngineClient,
    path: String,
    cursor: Option<String>,
}

impl Subscription {
    /// Opens it where it was, or at the end of the topic.
    async fn open(&mut self) -> Result<Lines, Unavailable> {
        let mut request = self.engine.client.get(self.engine.at(&self.path)?);
        if let Some(cursor) = &self.cursor {
            request = request.header("Last-Event-ID", cursor);
        }
        let opening = self.engine.with_token(request).send();
        let response = tokio::time::timeout(PATIENCE, opening)
            .await
            .map_err(|_| Unavailable(format!("{} was not answered", self.path)))??;
        let status = response.status();
        if status != StatusCode::OK {
            let refused = response.json::<Refused>().await.map(|refused| refused.error);
            if let Ok(RefusedFields { message, oldest }) = refused {
                if status == StatusCode::GONE {
                    tracing::warn!("{}: {message}", self.path);
                    self.cursor = oldest;
                }
                return Err(Unavailable(format!("the engine answered {status}: {message}")));
            }
            return Err(Unavailable(format!("the engine answered {status}")));
        }
        let mut lines = Lines {
            stream: Box::pin(response.bytes_stream()),
            unread: Vec::new(),
        };
        // It begins by saying from where.
        loop {
            let line = lines.next().await?;
            if let Some(from) = line.strip_prefix(": from ") {
                self.cursor = Some(from.to_owned());
                return Ok(lines);
            }
        }
    }

    /// Gives what it brings until nobody listens.
    async fn run<T: DeserializeOwned>(mut self, mut lines: Lines, sender: mpsc::Sender<T>) {
        loop {
            let broken = tokio::select! {
                broken = self.pass_on(&mut lines, &sender) => broken,
                () = sender.closed() => return,
            };
            let Err(broken) = broken else { return };
            tracing::debug!("{} is opened again: {broken}", self.path);
            let mut tries = 0;
            lines = loop {
                tries += 1;
                tokio::time::sleep(RETRY).await;
                if sender.is_closed() {
                    return;
                }
                match self.open().await {
                    Ok(lines) => break lines,
                    // Rarer and rarer: the second after the first, the fourth, the eighth.
                    Err(error) if u32::is_power_of_two(tries) => {
                        tracing::warn!(tries, "{} cannot be followed, trying again: {error}", self.path);
                    }
                    Err(_) => {}
                }
            };
        }
    }

    /// Ends well when nobody listens.
    async fn pass_on<T: DeserializeOwned>(
        &mut self,
        lines: &mut Lines,
        sender: &mpsc::Sender<T>,
    ) -> Result<(), Unavailable> {
        let (mut id, mut data, mut failed) = (None, None, false);
        loop {
            let line = lines.next().await?;
            if let Some(text) = line.strip_prefix("id: ") {
                id = Some(text.to_owned());
            } else if let Some(text) = line.strip_prefix("data: ") {
                data = Some(text.to_owned());
            } else if line == "event: error" {
                failed = true;
            } else if line.is_empty() {
                if failed {
                    return Err(Unavailable(data.unwrap_or_default()));
                }
                if let Some(data) = data.take() {
                    let told = serde_json::from_str(&data).map_err(|error| unreadable(&self.path, &error))?;
                    if sender.send(told).await.is_err() {
                        return Ok(());
                    }
                }
                self.cursor = id.take().or(self.cursor.take());
            }
        }
    }
}

/// The lines of a subscription.
struct Lines {
    stream: std::pin::Pin<Box<dyn futures_util::Stream<Item = reqwest::Result<bytes::Bytes>> + Send>>,
    unread: Vec<u8>,
}

impl Lines {
    async fn next(&mut self) -> Result<String, Unavailable> {
        let mut seen = 0;
        loop {
            if let Some(end) = self.unread[seen..].iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=seen + end).collect();
                return Ok(String::from_utf8_lossy(&line[..line.len() - 1]).into_owned());
            }
            seen = self.unread.len();
            if seen > LINE_MAX {
                return Err(Unavailable("a line of the subscription has no end".to_owned()));
            }
            let chunk = tokio::time::timeout(SILENCE, self.stream.next())
                .await
                .map_err(|_| Unavailable(format!("nothing came for {SILENCE:?}")))?;
            let chunk = chunk.ok_or_else(|| Unavailable("the subscription ended".to_owned()))??;
            self.unread.extend_from_slice(&chunk);
        }
    }
}

fn follow<T, L>(engine: &EngineClient, path: String) -> Asked<mpsc::Receiver<T>>
where
    T: Send + From<L> + 'static,
    L: DeserializeOwned + Send + 'static,
{
    let engine = engine.clone();
    Box::pin(async move {
        let mut subscription = Subscription {
            engine,
            path,
            cursor: None,
        };
        let lines = subscription.open().await?;
        let (raw, mut read) = mpsc::channel::<L>(AHEAD);
        let (sender, receiver) = mpsc::channel(AHEAD);
        tokio::spawn(guarded("uplink", subscription.run(lines, raw)));
        tokio::spawn(async move {
            while let Some(line) = read.recv().await {
                if sender.send(T::from(line)).await.is_err() {
                    return;
                }
            }
        });
        Ok(receiver)
    })
}

impl Uplink for HttpUplink {
    fn partitions(&self) -> u32 {
        self.partitions
    }

    fn append_to(&self, events: Vec<(Option<Partition>, Event<'static>)>) -> Asked<()> {
        let mut text = Vec::with_capacity(256 * events.len());
        for (partition, event) in &events {
            if !text.is_empty() {
                text.push(b',');
            }
            // Offset and time are the log's to say; the interface ignores what is given.
            event_line(&mut text, Offset(0), 0, event);
            if let Some(partition) = partition {
                // Beside the fields of the event.
                text.pop();
                text.extend_from_slice(format!(",\"partition\":{}}}", partition.0).as_bytes());
            }
        }
        let (done, answered) = oneshot::channel();
        let append = Append {
            events: text,
            count: events.len(),
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

    fn kicks(&self, gateway: &str) -> Asked<mpsc::Receiver<Kick>> {
        let name: String = form_urlencoded::byte_serialize(gateway.as_bytes()).collect();
        follow::<Kick, KickLine>(&self.engine, format!("v1/kicks?gateway={name}"))
    }

    fn changes(&self) -> Asked<mpsc::Receiver<UserUpdate>> {
        follow::<UserUpdate, UserUpdate>(&self.engine, "v1/changes".to_owned())
    }

    fn users(&self, users: Vec<String>) -> Asked<Vec<Option<UserSnapshot>>> {
        let engine = self.engine.clone();
        Box::pin(async move {
            let body = serde_json::json!({ "users": users }).to_string().into_bytes();
            let answer = engine.post("v1/users/query", body).await?;
            let known: Users = serde_json::from_slice(&answer).map_err(|error| unreadable("v1/users/query", &error))?;
            if let Some(unread) = known.unread.into_iter().next() {
                // To leave them out would be to say that they are unknown.
                return Err(Unavailable(unread.why));
            }
            let mut known = known.users.into_iter().peekable();
            // Those who are known come in the order asked.
            let found = users
                .iter()
                .map(|user| known.next_if(|standing| *standing.user == **user));
            Ok(found.collect())
        })
    }

    fn platforms(&self) -> Asked<BTreeMap<String, Pace>> {
        let engine = self.engine.clone();
        Box::pin(async move {
            let answer: PolicyAnswer = engine.get("v1/policy").await?;
            Ok(answer.policy.platforms)
        })
    }

    fn epoch(&self, gateway: &str) -> Asked<Option<Epoch>> {
        let (engine, gateway) = (self.engine.clone(), gateway.to_owned());
        Box::pin(async move {
            let answer: Gateways = engine.get("v1/gateways").await?;
            let known = answer.gateways.into_iter().find(|known| known.gateway == gateway);
            Ok(known.map(|known| Epoch(known.epoch)))
        })
    }
}
