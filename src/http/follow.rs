//! `GET /v1/changes` and `GET /v1/kicks`: subscriptions as server-sent events, read from the log.
//!
//! A subscription is a cursor and nothing else: it holds no queue, so that a slow reader slows nobody and loses
//! nothing for as long as the log keeps its records. Each event's `id` is the cursor after it.

use super::users::{number, only, parameter, parameters};
use super::{Face, Fault};
use crate::log::{self, Limit, Log, Range, Record, Topic};
use crate::metrics;
use crate::presence::change::Output;
use crate::presence::event::bounds;
use crate::presence::{Offset, Partition};
use crate::registry::Schemas;
use crate::schema::json::output_line;
use crate::schema::{Malformed, partitioner::partition_of};
use axum::body::{Body, Bytes};
use axum::extract::{RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// A comment is sent when nothing else was for so long, so that whoever stands between keeps the connection open.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
/// Of one partition at a time.
const READ: Limit = Limit {
    records: 512,
    bytes: 256 << 10,
};
/// `latest-50` begins so many records before the end of each partition, or at the oldest kept.
const BEFORE_LATEST: &str = "latest-";
const BACK_MAX: u64 = 1_000;
/// How many users or gateways one subscription may name.
const FILTER_MAX: usize = 1_000;

/// The next position in each partition followed, by partition.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Cursor(Vec<(Partition, Offset)>);

impl Cursor {
    fn text(&self) -> String {
        let mut text = String::new();
        for (partition, next) in &self.0 {
            let comma = if text.is_empty() { "" } else { "," };
            let _ = write!(text, "{comma}{partition}:{next}");
        }
        text
    }

    fn parse(text: &str) -> Option<Vec<(Partition, Offset)>> {
        let one = |part: &str| {
            let (partition, next) = part.trim().split_once(':')?;
            Some((Partition(partition.parse().ok()?), Offset(next.parse().ok()?)))
        };
        text.split(',').map(one).collect()
    }
}

/// `GET /v1/changes?user=…&partition=…&after=…`
pub async fn changes(
    State(face): State<Face>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, Fault> {
    let woken = face.changes.clone();
    follow(face, Topic::Changes, "user", woken, &headers, query.as_deref()).await
}

/// `GET /v1/kicks?gateway=…&partition=…&after=…`
pub async fn kicks(State(face): State<Face>, headers: HeaderMap, RawQuery(query): RawQuery) -> Result<Response, Fault> {
    let woken = face.kicks.clone();
    follow(face, Topic::Kicks, "gateway", woken, &headers, query.as_deref()).await
}

async fn follow(
    face: Face,
    topic: Topic,
    filter: &'static str,
    woken: watch::Receiver<u64>,
    headers: &HeaderMap,
    query: Option<&str>,
) -> Result<Response, Fault> {
    let log = face.engine.log().clone();
    let count = log.partitions();
    let (least, most) = match topic {
        Topic::Kicks => bounds::GATEWAY_BYTES,
        Topic::Changes | Topic::Events | Topic::Quarantine => bounds::USER_BYTES,
    };
    only(query, &[filter, "partition", "after"])?;
    let keys: BTreeSet<Vec<u8>> = parameters(query, filter).map(String::into_bytes).collect();
    if keys.len() > FILTER_MAX {
        let message = format!("at most {FILTER_MAX} `{filter}` may be given, not {}", keys.len());
        return Err(Fault::bad_request("bad_parameter", message));
    }
    if let Some(wrong) = keys.iter().find(|key| !(least..=most).contains(&key.len())) {
        // It would be a subscription to nothing, which nobody means.
        let message = format!(
            "`{filter}` must have {least} to {most} bytes of UTF-8, not {}",
            wrong.len()
        );
        return Err(Fault::bad_request("bad_parameter", message));
    }
    let mut followed: BTreeSet<Partition> = (0..count).map(Partition).collect();
    if topic == Topic::Changes && !keys.is_empty() {
        // A user's changes are all in one partition.
        let users = parameters(query, filter);
        followed = users.map(|user| partition_of(&user, count)).collect();
    }
    if let Some(partition) = number(query, "partition", 0..=u32::MAX.into())? {
        if partition >= count.into() {
            let message = format!("partition {partition} does not exist: there are {count}, from 0");
            return Err(Fault::bad_request("bad_parameter", message));
        }
        followed.retain(|other| u64::from(other.0) == partition);
    }
    // A browser that comes back sends where it was; what the address says is where it began.
    let last_seen = headers.get("last-event-id").map(HeaderValue::as_bytes);
    let last_seen = last_seen.map(|cursor| String::from_utf8_lossy(cursor).into_owned());
    let after = last_seen.or_else(|| parameter(query, "after"));
    // On Kafka the brokers may be asked, and take seconds to answer.
    let asked = log.clone();
    let cursor = tokio::task::spawn_blocking(move || start(&*asked, topic, &followed, after.as_deref()))
        .await
        .map_err(|_| Fault::unavailable("stopping", "the server is stopping"))??;
    let subscription = Subscription {
        log,
        schemas: face.engine.schemas().clone(),
        topic,
        keys: Arc::new(keys),
        cursor,
        woken,
        stopping: face.stopping.clone(),
        state: Progress::Opened,
        _counted: Counted::new(),
    };
    let body = Body::from_stream(stream::unfold(subscription, Subscription::next));
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        // A proxy that gathers would hold changes back.
        (
            header::HeaderName::from_static("x-accel-buffering"),
            HeaderValue::from_static("no"),
        ),
    ];
    Ok((headers, body).into_response())
}

/// Where to begin: now, at the oldest record (`earliest`), or at a cursor, if the log still has it.
fn start(log: &dyn Log, topic: Topic, followed: &BTreeSet<Partition>, after: Option<&str>) -> Result<Cursor, Fault> {
    let mut ranges = Vec::new();
    for partition in followed {
        ranges.push((*partition, log.range(topic, *partition)?));
    }
    let oldest = || {
        Cursor(
            ranges
                .iter()
                .map(|(partition, range)| (*partition, range.start))
                .collect(),
        )
    };
    let given = match after {
        None | Some("latest") => {
            return Ok(Cursor(
                ranges
                    .iter()
                    .map(|(partition, range)| (*partition, range.end))
                    .collect(),
            ));
        }
        Some("earliest") => return Ok(oldest()),
        Some(text) if text.starts_with(BEFORE_LATEST) => {
            let back = text[BEFORE_LATEST.len()..].parse().ok();
            let back: u64 = back.filter(|back| *back <= BACK_MAX).ok_or_else(|| {
                let message = format!("{text:?} is no cursor: after `{BEFORE_LATEST}` comes a number up to {BACK_MAX}");
                Fault::bad_request("bad_cursor", message)
            })?;
            let before = |range: &Range| Offset(range.end.0.saturating_sub(back).max(range.start.0));
            let cursor = ranges.iter().map(|(partition, range)| (*partition, before(range)));
            return Ok(Cursor(cursor.collect()));
        }
        Some(text) => Cursor::parse(text).ok_or_else(|| {
            let message = format!("{text:?} is no cursor: it looks like 0:12,1:7, or is `earliest` or `latest`");
            Fault::bad_request("bad_cursor", message)
        })?,
    };
    let mut cursor = Vec::new();
    for (partition, range) in &ranges {
        let Some((_, next)) = given.iter().find(|(given, _)| given == partition) else {
            let message = format!("the cursor says nothing of partition {partition}, which is followed");
            return Err(Fault::bad_request("bad_cursor", message));
        };
        if *next < range.start {
            return Err(Fault::gone(oldest().text()));
        }
        if *next > range.end {
            let message = format!(
                "the cursor is ahead of partition {partition}, which ends at {}",
                range.end
            );
            return Err(Fault::bad_request("bad_cursor", message));
        }
        cursor.push((*partition, *next));
    }
    Ok(Cursor(cursor))
}

/// One open subscription.
struct Subscription {
    log: Arc<dyn Log>,
    schemas: Schemas,
    topic: Topic,
    /// Users or gateways; empty: all.
    keys: Arc<BTreeSet<Vec<u8>>>,
    cursor: Cursor,
    woken: watch::Receiver<u64>,
    stopping: watch::Receiver<bool>,
    state: Progress,
    _counted: Counted,
}

#[derive(PartialEq, Eq)]
enum Progress {
    Opened,
    Running,
    Ended,
}

/// Counts itself among the open subscriptions while it lives.
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

type Chunk = Result<Bytes, std::convert::Infallible>;

impl Subscription {
    async fn next(mut self) -> Option<(Chunk, Subscription)> {
        match self.state {
            Progress::Opened => {
                // Tells the client at once that it is heard, and from where.
                self.state = Progress::Running;
                let hello = format!("retry: 2000\n: from {}\n\n", self.cursor.text());
                return Some((Ok(Bytes::from(hello)), self));
            }
            Progress::Running => {}
            Progress::Ended => return None,
        }
        loop {
            if *self.stopping.borrow() {
                return None;
            }
            // Marked as seen before reading, so that what comes meanwhile wakes again.
            self.woken.borrow_and_update();
            match self.read().await {
                Ok(Some(text)) => return Some((Ok(Bytes::from(text)), self)),
                Ok(None) => {}
                Err(fault) => {
                    self.state = Progress::Ended;
                    let text = format!("event: error\ndata: {}\n\n", String::from_utf8_lossy(&fault.body()));
                    return Some((Ok(Bytes::from(text)), self));
                }
            }
            tokio::select! {
                woken = self.woken.changed() => woken.ok()?,
                stopped = self.stopping.changed() => stopped.ok()?,
                () = tokio::time::sleep(KEEP_ALIVE) => {
                    return Some((Ok(Bytes::from_static(b": still here\n\n")), self));
                }
            }
        }
    }

    /// The next events, as text; none at the end of the log.
    async fn read(&mut self) -> Result<Option<String>, Fault> {
        let (log, topic, keys) = (self.log.clone(), self.topic, self.keys.clone());
        let schemas = self.schemas.clone();
        let mut cursor = self.cursor.clone();
        let read = tokio::task::spawn_blocking(move || -> Result<(Cursor, bool, String), Fault> {
            let mut text = String::new();
            let mut any = false;
            for at in 0..cursor.0.len() {
                let (partition, next) = cursor.0[at];
                let mut records = Vec::new();
                match log.read(topic, partition, next, READ, &mut records) {
                    Ok(()) => {}
                    Err(log::Error::Gone { start, .. }) => {
                        cursor.0[at].1 = start;
                        return Err(Fault::gone(cursor.text()));
                    }
                    Err(error) => return Err(Fault::from(error)),
                }
                any |= !records.is_empty();
                for record in &records {
                    cursor.0[at].1 = Offset(record.offset.0 + 1);
                    let wanted = keys.is_empty() || record.key.as_ref().is_some_and(|key| keys.contains(key));
                    if wanted {
                        event(&mut text, topic, record, &schemas, &cursor)?;
                    }
                }
            }
            if any && text.is_empty() {
                // Nothing of interest to this subscription; but where it is now spares it reading that again.
                let _ = write!(text, "id: {}\n\n", cursor.text());
            }
            Ok((cursor, any, text))
        });
        let (cursor, any, text) = read
            .await
            .map_err(|_| Fault::unavailable("stopping", "the server is stopping"))??;
        self.cursor = cursor;
        Ok(any.then_some(text))
    }
}

fn event(text: &mut String, topic: Topic, record: &Record, schemas: &Schemas, cursor: &Cursor) -> Result<(), Fault> {
    let value = &record.value;
    let read = match topic {
        Topic::Kicks => schemas
            .kick(value)
            .map(|kick| kick.map(|kick| ("kick", Output::Kick(kick)))),
        Topic::Changes | Topic::Events | Topic::Quarantine => schemas
            .change(value)
            .map(|change| change.map(|change| ("change", Output::Change(change)))),
    };
    // Whoever wrote it may have had another schema of the registry's, which does not answer.
    let decoded = read.map_err(|error| log::Error::Read(error.to_string().into()))?;
    let (name, output) = decoded.map_err(|malformed: Malformed| {
        log::Error::Read(format!("offset {} of {topic}: {malformed}", record.offset).into())
    })?;
    let mut line = Vec::new();
    output_line(&mut line, &output);
    let _ = write!(
        text,
        "event: {name}\nid: {}\ndata: {}\n\n",
        cursor.text(),
        String::from_utf8_lossy(&line)
    );
    Ok(())
}
