//! The uplink of a gateway that runs in the process that owns the log.

use super::{AHEAD, Asked, Cursor, Kick, Pace, Unavailable, Uplink, UserSnapshot, UserUpdate};
use crate::backoff;
use crate::engine::{Engine, Placed, QueryError, TracedAppend};
use crate::log::{self, Appended, Limit, Log, Record};
use crate::metrics;
use crate::presence::event::Event;
use crate::presence::{Epoch, Offset, Partition};
use crate::schema::partitioner::partition_of;
use crate::tasks::guarded;
use crate::topics::Topic;
use crate::traces::Parent;
use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};

/// An append that is not acknowledged within this time counts as failed.
const PATIENCE: Duration = Duration::from_secs(10);
const READ: Limit = Limit {
    records: 1_000,
    bytes: 1 << 20,
};

pub struct LogUplink {
    engine: Arc<Engine>,
    /// Both counts change when there is something new to read.
    kicked: watch::Receiver<u64>,
    changed: watch::Receiver<u64>,
}

impl LogUplink {
    pub fn new(engine: Arc<Engine>) -> LogUplink {
        let (kick, kicked) = watch::channel(0);
        let (change, changed) = watch::channel(0);
        engine.log().listen(Box::new(move |topic, _| match topic {
            Topic::Kicks => kick.send_modify(|count| *count += 1),
            Topic::Changes => change.send_modify(|count| *count += 1),
            Topic::Events | Topic::Quarantine => {}
        }));
        LogUplink {
            engine,
            kicked,
            changed,
        }
    }

    /// Appends records, and ends the span of the append.
    fn append_records(&self, records: Vec<Placed>, traced: Option<TracedAppend>) -> Asked<()> {
        let clock = self.engine.clock().clone();
        let began = clock.monotonic();
        let (acknowledge, acknowledged) = oneshot::channel();
        // Appended at once and not when the result is first awaited: events are written in the order of the calls.
        self.engine.log().append(
            records,
            Box::new(move |result: Result<Vec<Appended>, log::Error>| {
                if let Some(traced) = traced {
                    let now = clock.since_1970();
                    match &result {
                        Ok(appended) => traced.end(appended.iter().copied().map(Some), now),
                        Err(_) => traced.failed(now),
                    }
                }
                if result.is_ok() {
                    metrics::append(clock.monotonic().saturating_sub(began).as_secs_f64());
                }
                // The caller may have given up.
                let _ = acknowledge.send(result);
            }),
        );
        Box::pin(async move {
            match tokio::time::timeout(PATIENCE, acknowledged).await {
                Ok(Ok(result)) => result.map(drop).map_err(Unavailable::from),
                Ok(Err(_)) => Err(log::Error::Closed.into()),
                Err(_) => Err(Unavailable(format!(
                    "the log did not acknowledge the append within {PATIENCE:?}"
                ))),
            }
        })
    }
}

impl From<QueryError> for Unavailable {
    fn from(error: QueryError) -> Unavailable {
        Unavailable(error.to_string())
    }
}

impl From<log::Error> for Unavailable {
    fn from(error: log::Error) -> Unavailable {
        Unavailable(error.to_string())
    }
}

/// Follows a topic from its current end and sends what `each` makes of a record, until the receiver is dropped.
fn follow<T: Send + 'static>(
    log: Arc<dyn Log>,
    topic: Topic,
    mut woken: watch::Receiver<u64>,
    each: impl Fn(&Record) -> Result<Option<T>, log::Error> + Send + Sync + 'static,
) -> Result<mpsc::Receiver<T>, log::Error> {
    let mut cursor: Cursor = Vec::new();
    for partition in (0..log.partitions()).map(Partition) {
        cursor.push((partition, log.range(topic, partition)?.end));
    }
    let (sender, receiver) = mpsc::channel(AHEAD);
    let each = Arc::new(each);
    tokio::spawn(guarded("uplink", async move {
        let mut backoff = backoff::UPLINK.start();
        loop {
            // Marked as seen before reading, so that what arrives meanwhile wakes the task again.
            woken.borrow_and_update();
            let (log, each, mut at) = (log.clone(), each.clone(), cursor.clone());
            let read = tokio::task::spawn_blocking(move || {
                let mut found = Vec::new();
                let more = read(&*log, topic, &mut at, |record| {
                    found.extend(each(record)?);
                    Ok(())
                });
                (at, found, more)
            });
            let (at, found, more) = match read.await {
                Ok(read) => read,
                Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
                // The runtime is being shut down.
                Err(_) => return,
            };
            cursor = at;
            for one in found {
                if sender.send(one).await.is_err() {
                    return;
                }
            }
            match more {
                Ok(true) => {}
                Ok(false) => tokio::select! {
                    moved = woken.changed() => if moved.is_err() { return },
                    () = sender.closed() => return,
                },
                Err(log::Error::Closed) => return,
                Err(error) => {
                    tracing::warn!("reading {topic} failed, retrying: {error}");
                    tokio::time::sleep(backoff.pause()).await;
                }
            }
        }
    }));
    Ok(receiver)
}

/// Reads some records of every partition. Returns whether there may be more.
fn read(
    log: &dyn Log,
    topic: Topic,
    cursor: &mut Cursor,
    mut each: impl FnMut(&Record) -> Result<(), log::Error>,
) -> Result<bool, log::Error> {
    let mut more = false;
    for (partition, next) in cursor {
        let mut records = Vec::new();
        match log.read(topic, *partition, *next, READ, &mut records) {
            Ok(()) => {}
            Err(log::Error::Gone { start, .. }) => {
                tracing::warn!("retention dropped records of {topic} of partition {partition} before they were read");
                *next = start;
                more = true;
                continue;
            }
            Err(error) => return Err(error),
        }
        more |= !records.is_empty();
        for record in &records {
            each(record)?;
            *next = Offset(record.offset.0 + 1);
        }
    }
    Ok(more)
}

/// The error for a schema registry that did not respond: the record is read again.
fn unanswered(error: impl std::fmt::Display) -> log::Error {
    log::Error::Unanswered(error.to_string().into())
}

impl Uplink for LogUplink {
    fn partitions(&self) -> u32 {
        self.engine.log().partitions()
    }

    fn append_to(&self, events: Vec<(Option<Partition>, Event<'static>)>) -> Asked<()> {
        let mut records = Vec::with_capacity(events.len());
        for (partition, event) in events {
            let partition = partition.map(|partition| u64::from(partition.0));
            if let Err(unplaced) = self.engine.place(event, partition, &mut records) {
                return Box::pin(async move { Err(Unavailable(unplaced.to_string())) });
            }
        }
        self.append_records(records, None)
    }

    fn append_traced(&self, event: Event<'static>, traceparent: &str) -> Asked<()> {
        let mut records = Vec::with_capacity(1);
        if let Err(unplaced) = self.engine.place(event, None, &mut records) {
            return Box::pin(async move { Err(Unavailable(unplaced.to_string())) });
        }
        let traceparent = traceparent.as_bytes();
        let now = self.engine.clock().since_1970();
        let traced = TracedAppend::begin(Parent::of(traceparent), traceparent, &mut records, now);
        self.append_records(records, Some(traced))
    }

    fn kicks(&self, gateway: &str) -> Asked<mpsc::Receiver<Kick>> {
        let (log, woken) = (self.engine.log().clone(), self.kicked.clone());
        let (gateway, schemas) = (gateway.as_bytes().to_vec(), self.engine.schemas().clone());
        let each = move |record: &Record| {
            if record.key.as_deref() != Some(gateway.as_slice()) {
                return Ok(None);
            }
            let kick = schemas
                .kick(&record.value)
                .map_err(unanswered)?
                .inspect_err(|malformed| tracing::error!("skipping the kick at offset {}: {malformed}", record.offset));
            Ok(kick.ok().map(|kick| Kick {
                epoch: kick.epoch,
                conn: kick.conn,
                reason: kick.reason,
            }))
        };
        Box::pin(async move { Ok(follow(log, Topic::Kicks, woken, each)?) })
    }

    fn changes(&self) -> Asked<mpsc::Receiver<UserUpdate>> {
        let (log, woken) = (self.engine.log().clone(), self.changed.clone());
        let schemas = self.engine.schemas().clone();
        let each = move |record: &Record| {
            let change = schemas
                .change(&record.value)
                .map_err(unanswered)?
                .inspect_err(|malformed| {
                    tracing::error!("skipping the change at offset {}: {malformed}", record.offset)
                });
            Ok(change.ok().map(UserUpdate::from))
        };
        Box::pin(async move { Ok(follow(log, Topic::Changes, woken, each)?) })
    }

    fn users(&self, users: Vec<String>) -> Asked<Vec<Option<UserSnapshot>>> {
        let engine = self.engine.clone();
        let partitions = self.partitions();
        Box::pin(async move {
            let mut parts = vec![Vec::new(); partitions as usize];
            for (number, user) in users.iter().enumerate() {
                parts[partition_of(user, partitions).0 as usize].push(number);
            }
            let mut found: Vec<Option<UserSnapshot>> = vec![None; users.len()];
            for (partition, numbers) in (0..).map(Partition).zip(parts) {
                if numbers.is_empty() {
                    continue;
                }
                let asked = numbers.iter().map(|number| users[*number].clone()).collect();
                let answers = engine.users(partition, asked, None, UserSnapshot::of).await?;
                for (number, answer) in numbers.into_iter().zip(answers) {
                    found[number] = answer;
                }
            }
            Ok(found)
        })
    }

    fn platforms(&self) -> Asked<BTreeMap<String, Pace>> {
        let engine = self.engine.clone();
        Box::pin(async move {
            let (policy, _) = engine.policy(Partition(0)).await?.value;
            let platforms = policy.platforms.into_iter().map(|(name, platform)| {
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
        let (engine, gateway, partitions) = (self.engine.clone(), gateway.to_owned(), self.partitions());
        Box::pin(async move {
            let mut greatest = None;
            for partition in (0..partitions).map(Partition) {
                let known = engine.gateways(partition).await?;
                let epochs = known.iter().filter(|known| known.name == gateway);
                greatest = greatest.max(epochs.map(|known| known.epoch).max());
            }
            Ok(greatest)
        })
    }
}
