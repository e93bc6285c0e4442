//! Changes from the log: follows the change topic as a member of a consumer group, which also stores the position.
//!
//! The source has a thread of its own, since calls to the group block. It reads ahead only as far as the bridge accepts
//! changes, polls the group meanwhile, and releases a partition only after the bridge has ended all posts of it.

use super::position::{Keep, Positions};
use super::trouble::Trouble;
use super::{Error, Followed, RevokedPartitions, Source, SourceEvent};
use crate::clock::SystemClock;
use crate::log::{self, Follower, GroupOffsets, PollResult, Record};
use crate::presence::{Offset, Partition};
use crate::registry::Schemas;
use crate::tasks::{self, End};
use crate::traces::Parent;
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Sender, UnboundedSender, channel, unbounded_channel};
use tokio::sync::oneshot;

/// The interval at which the group is polled.
const LISTEN: Duration = Duration::from_millis(20);
/// The pause before a failed operation is retried.
const PAUSE: Duration = Duration::from_millis(500);

/// Starts following. The thread ends when the source is dropped; the last of the returned values is notified when it
/// has left the group.
pub fn follow(
    follower: Box<dyn Follower>,
    schemas: Schemas,
    group: &str,
) -> Result<(Source, impl Keep, oneshot::Receiver<()>), Error> {
    let (sender, events) = channel(super::AHEAD);
    let (back, revoked) = unbounded_channel();
    let (left, has_left) = oneshot::channel();
    let commits = Commits(follower.offsets());
    let reader = ChangeReader {
        follower,
        schemas,
        group: group.to_owned(),
        ready: VecDeque::new(),
        events: sender,
        back,
        trouble: Trouble::default(),
        clock: SystemClock::new(),
    };
    let run = move || {
        reader.run();
        // Nobody waits if the process did not stop gracefully.
        let _ = left.send(());
        End::Asked
    };
    tasks::spawn("webhook-kafka", run).map_err(|cause| Error::File {
        what: "cannot start the thread that follows Kafka".to_owned(),
        cause,
    })?;
    Ok((Source { events, back: revoked }, commits, has_left))
}

/// Saves positions as the group's offsets.
struct Commits(Box<dyn GroupOffsets>);

impl Keep for Commits {
    /// Does not wait for the commit. The next commit replaces one that fails.
    fn keep(&mut self, positions: &Positions) -> Result<(), Error> {
        if let Err(error) = self.0.commit(&positions.0, false) {
            tracing::warn!("saving the position failed, retrying with the next one: {error}");
        }
        Ok(())
    }

    fn keep_last(&mut self, positions: &Positions) -> Result<(), Error> {
        let kept = self.0.commit(&positions.0, true);
        kept.map_err(|error| {
            Error::Position(format!(
                "saving the last position failed, some changes will be posted again: {error}"
            ))
        })
    }
}

struct ChangeReader {
    follower: Box<dyn Follower>,
    schemas: Schemas,
    group: String,
    /// Poll results that the bridge has not accepted yet.
    ready: VecDeque<ReadAhead>,
    events: Sender<Result<SourceEvent, Error>>,
    back: UnboundedSender<RevokedPartitions>,
    trouble: Trouble,
    clock: SystemClock,
}

impl ChangeReader {
    fn run(mut self) {
        while !self.events.is_closed() {
            match self.step() {
                Ok(true) => {}
                Ok(false) => self.follower.wait(LISTEN),
                Err(Failed::ForNow(why)) => {
                    if let Some(lasted) = self.trouble.failed(&self.clock) {
                        let lasted_s = lasted.as_secs();
                        tracing::warn!(lasted_s, "the changes cannot be read from Kafka, trying again: {why}");
                    }
                    self.follower.wait(PAUSE);
                }
                Err(Failed::ForGood(error)) => {
                    // The bridge ends with this error, or has ended already.
                    let _ = self.events.blocking_send(Err(error));
                    break;
                }
            }
        }
        self.follower.leave();
    }

    /// Polls once. Returns whether there was anything to do.
    fn step(&mut self) -> Result<bool, Failed> {
        if let Some(result) = self.follower.hear().map_err(|error| self.failed(error))? {
            self.take(result);
        }
        if self.ready.is_empty()
            && let Some(result) = self.follower.read().map_err(|error| self.failed(error))?
        {
            if let Some(lasted) = self.trouble.over(&self.clock) {
                let lasted_s = lasted.as_secs();
                tracing::info!(lasted_s, "the changes are read from Kafka again");
            }
            self.take(result);
        }
        let mut any = false;
        while let Some(waiting) = self.ready.pop_front() {
            let event = match waiting {
                ReadAhead::SourceEvent(event) => event,
                ReadAhead::Record(partition, record) => match self.change(partition, &record) {
                    Ok(followed) => SourceEvent::Change(followed),
                    Err(failed) => {
                        self.ready.push_front(ReadAhead::Record(partition, record));
                        return Err(failed);
                    }
                },
            };
            match self.events.try_send(Ok(event)) {
                Ok(()) => any = true,
                Err(TrySendError::Full(Ok(event))) => {
                    self.ready.push_front(ReadAhead::SourceEvent(event));
                    break;
                }
                Err(_) => break,
            }
        }
        Ok(any)
    }

    fn take(&mut self, result: PollResult) {
        match result {
            PollResult::Begins(begins) => {
                let positions = Positions(begins);
                tracing::info!(position = %positions, group = self.group, "following");
                self.ready
                    .push_back(ReadAhead::SourceEvent(SourceEvent::Begins(positions)));
            }
            PollResult::Reached(partition, next) => self
                .ready
                .push_back(ReadAhead::SourceEvent(SourceEvent::Reached(partition, next))),
            PollResult::Records(partition, records) => {
                let records = records.into_iter();
                self.ready
                    .extend(records.map(|record| ReadAhead::Record(partition, record)));
            }
            PollResult::Ends { partitions, lost } => self.give_back(partitions, lost),
        }
    }

    /// Decodes a change. Blocks on the registry if the record has a schema that is not known yet.
    fn change(&self, partition: Partition, record: &Record) -> Result<Followed, Failed> {
        let read = self.schemas.change(&record.value);
        let change = read.map_err(|error| Failed::ForNow(error.to_string()))?;
        let change = change.map_err(|malformed| {
            let what = format!("partition {partition}, offset {}: {malformed}", record.offset);
            Failed::ForGood(Error::Unreadable(what))
        })?;
        Ok(Followed {
            partition,
            next: Offset(record.offset.0 + 1),
            change,
            trace: record.traceparent().and_then(Parent::of),
        })
    }

    /// Releases partitions after the bridge has ended all their posts.
    fn give_back(&mut self, partitions: Vec<Partition>, lost: bool) {
        let waiting = std::mem::take(&mut self.ready).into_iter();
        self.ready = waiting.filter_map(|waiting| waiting.without(&partitions)).collect();
        let (done, settled) = oneshot::channel();
        let revoked = RevokedPartitions {
            partitions: partitions.clone(),
            done,
        };
        // A bridge that has ended has no posts in progress and has saved its position.
        if self.back.send(revoked).is_ok()
            && let Ok(positions) = settled.blocking_recv()
            && !lost
            && let Err(error) = self.follower.offsets().commit(&positions.0, true)
        {
            tracing::warn!(
                "saving the position of released partitions failed, their next owner will post some changes again: {error}"
            );
        }
        tracing::info!(?partitions, lost, "partitions released");
        self.follower.let_go(&partitions);
    }

    fn failed(&self, error: log::Error) -> Failed {
        match error {
            log::Error::Gone {
                partition,
                wanted,
                start,
                ..
            } => Failed::ForGood(Error::LostInKafka {
                partition,
                wanted,
                start,
                group: self.group.clone(),
            }),
            error => Failed::ForNow(error.to_string()),
        }
    }
}

/// A poll result that the bridge has not accepted yet.
enum ReadAhead {
    SourceEvent(SourceEvent),
    /// Not decoded yet. Decoding may have to wait for the registry.
    Record(Partition, Record),
}

impl ReadAhead {
    fn without(self, partitions: &[Partition]) -> Option<ReadAhead> {
        match self {
            ReadAhead::SourceEvent(event) => event.without(partitions).map(ReadAhead::SourceEvent),
            ReadAhead::Record(partition, _) if partitions.contains(&partition) => None,
            record => Some(record),
        }
    }
}

enum Failed {
    ForNow(String),
    ForGood(Error),
}
