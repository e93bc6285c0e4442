//! Changes from the log: the change topic, followed as a member of a consumer group, which also keeps the position.
//!
//! A thread of its own, since whatever it asks of the group waits. It reads ahead no further than the bridge takes, goes on
//! speaking with the group meanwhile, and lets go of a partition only when nothing of it is under way.

use super::position::{Keep, Positions};
use super::{Error, Followed, RevokedPartitions, Source, SourceEvent};
use crate::log::{self, Follower, GroupOffsets, PollResult, Record};
use crate::presence::{Offset, Partition};
use crate::registry::Schemas;
use crate::tasks::{self, End};
use std::collections::VecDeque;
use std::time::Duration;
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::mpsc::{Sender, UnboundedSender, channel, unbounded_channel};
use tokio::sync::oneshot;

/// How often the group is listened to.
const LISTEN: Duration = Duration::from_millis(20);
/// After a failure, before it is tried again.
const PAUSE: Duration = Duration::from_millis(500);

/// Starts to follow; the thread ends when the source is dropped, and tells by the last of these that it has left.
pub fn follow(
    follower: Box<dyn Follower>,
    schemas: Schemas,
    group: &str,
) -> Result<(Source, impl Keep, oneshot::Receiver<()>), Error> {
    let (news, coming) = channel(super::AHEAD);
    let (back, taken_back) = unbounded_channel();
    let (left, has_left) = oneshot::channel();
    let commits = Commits(follower.offsets());
    let reader = ChangeReader {
        follower,
        schemas,
        group: group.to_owned(),
        ready: VecDeque::new(),
        news,
        back,
        is_warned: false,
    };
    let run = move || {
        reader.run();
        // Nobody waits any more where it was stopped in a hurry.
        let _ = left.send(());
        End::Asked
    };
    tasks::spawn("webhook-kafka", run).map_err(|cause| Error::File {
        what: "a thread cannot be started".to_owned(),
        cause,
    })?;
    Ok((
        Source {
            news: coming,
            back: taken_back,
        },
        commits,
        has_left,
    ))
}

/// The group's offsets.
struct Commits(Box<dyn GroupOffsets>);

impl Keep for Commits {
    /// Does not wait; one that fails is made good by the next.
    fn keep(&mut self, positions: &Positions) -> Result<(), Error> {
        if let Err(error) = self.0.commit(&positions.0, false) {
            tracing::warn!("the position is not kept for now: {error}");
        }
        Ok(())
    }

    fn keep_last(&mut self, positions: &Positions) -> Result<(), Error> {
        let kept = self.0.commit(&positions.0, true);
        kept.map_err(|error| {
            Error::Position(format!(
                "the last position is not kept, so some is posted again: {error}"
            ))
        })
    }
}

struct ChangeReader {
    follower: Box<dyn Follower>,
    schemas: Schemas,
    group: String,
    /// Read, and not taken by the bridge yet.
    ready: VecDeque<ReadAhead>,
    news: Sender<Result<SourceEvent, Error>>,
    back: UnboundedSender<RevokedPartitions>,
    is_warned: bool,
}

impl ChangeReader {
    fn run(mut self) {
        while !self.news.is_closed() {
            match self.step() {
                Ok(true) => {}
                Ok(false) => self.follower.wait(LISTEN),
                Err(Failed::ForNow(why)) => {
                    if !self.is_warned {
                        self.is_warned = true;
                        tracing::warn!("the changes cannot be followed for now: {why}");
                    }
                    self.follower.wait(PAUSE);
                }
                Err(Failed::ForGood(error)) => {
                    // The bridge ends with it, or has ended.
                    let _ = self.news.blocking_send(Err(error));
                    break;
                }
            }
        }
        self.follower.leave();
    }

    /// Whether there was anything to do.
    fn step(&mut self) -> Result<bool, Failed> {
        if let Some(heard) = self.follower.hear().map_err(|error| self.failed(error))? {
            self.take(heard);
        }
        if self.ready.is_empty()
            && let Some(heard) = self.follower.read().map_err(|error| self.failed(error))?
        {
            self.is_warned = false;
            self.take(heard);
        }
        let mut any = false;
        while let Some(waiting) = self.ready.pop_front() {
            let news = match waiting {
                ReadAhead::SourceEvent(news) => news,
                ReadAhead::Record(partition, record) => match self.change(partition, &record) {
                    Ok(followed) => SourceEvent::Change(followed),
                    Err(failed) => {
                        self.ready.push_front(ReadAhead::Record(partition, record));
                        return Err(failed);
                    }
                },
            };
            match self.news.try_send(Ok(news)) {
                Ok(()) => any = true,
                Err(TrySendError::Full(Ok(news))) => {
                    self.ready.push_front(ReadAhead::SourceEvent(news));
                    break;
                }
                Err(_) => break,
            }
        }
        Ok(any)
    }

    fn take(&mut self, heard: PollResult) {
        match heard {
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

    /// Waits for the registry, where the record has a schema that is not known yet.
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
        })
    }

    /// Ends with nothing of these under way.
    fn give_back(&mut self, partitions: Vec<Partition>, lost: bool) {
        let waiting = std::mem::take(&mut self.ready).into_iter();
        self.ready = waiting.filter_map(|waiting| waiting.without(&partitions)).collect();
        let (done, settled) = oneshot::channel();
        let taken_back = RevokedPartitions {
            partitions: partitions.clone(),
            done,
        };
        // A bridge that has ended has nothing under way, and has kept its position.
        if self.back.send(taken_back).is_ok()
            && let Ok(positions) = settled.blocking_recv()
            && !lost
            && let Err(error) = self.follower.offsets().commit(&positions.0, true)
        {
            tracing::warn!("the next owner will post some again: {error}");
        }
        tracing::info!(?partitions, lost, "given back");
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

/// What the bridge has not taken yet.
enum ReadAhead {
    SourceEvent(SourceEvent),
    /// Not decoded yet, which may have to wait for the registry.
    Record(Partition, Record),
}

impl ReadAhead {
    fn without(self, partitions: &[Partition]) -> Option<ReadAhead> {
        match self {
            ReadAhead::SourceEvent(news) => news.without(partitions).map(ReadAhead::SourceEvent),
            ReadAhead::Record(partition, _) if partitions.contains(&partition) => None,
            record => Some(record),
        }
    }
}

enum Failed {
    ForNow(String),
    ForGood(Error),
}
