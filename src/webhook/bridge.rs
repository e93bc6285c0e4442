//! The bridge between a source and a receiver: decides when each change is posted, and tracks which are done.

use super::dead_letters::{DeadLetter, DeadLetterFile};
use super::position::{Frontier, Keep, Positions};
use super::post::{Outcome, Receiver};
use super::user_queues::UserQueues;
use super::{Error, Followed, RevokedPartitions, Source, SourceEvent, WINDOW};
use crate::presence::{Offset, Partition};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

/// How often, at most, the position is saved.
const KEEP_EVERY: Duration = Duration::from_millis(500);
/// How long posts in progress may take after the process was asked to stop.
const GRACEFUL: Duration = Duration::from_secs(5);

/// Posts the changes of a source, `parallel` at a time, until it is asked to stop or cannot continue.
pub async fn run(
    mut source: Source,
    keep: impl Keep,
    receiver: Receiver,
    dead_letters: DeadLetterFile,
    parallel: usize,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), Error> {
    let mut bridge = Bridge {
        keep,
        frontier: Frontier::default(),
        queues: UserQueues::default(),
        posts: JoinSet::new(),
        by_partition: BTreeMap::new(),
        leaving: Vec::new(),
        early: VecDeque::new(),
        dead_letters,
        context: Arc::new(PostContext {
            receiver,
            permits: Semaphore::new(parallel),
        }),
        counted: Counted::default(),
    };
    let mut tick = tokio::time::interval(KEEP_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let ended = loop {
        let waiting = bridge.posts.len() + bridge.queues.waiting();
        bridge.context.receiver.set_waiting(waiting);
        let has_room = bridge.frontier.under_way() < WINDOW && bridge.leaving.is_empty();
        if has_room && let Some(event) = bridge.early.pop_front() {
            if let Err(error) = bridge.take(event) {
                break Err(error);
            }
            continue;
        }
        let step = tokio::select! {
            // Finished posts make room before new changes are read.
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => break Ok(()),
            _ = tick.tick() => {
                bridge.context.receiver.report();
                bridge.keep()
            }
            done = bridge.posts.join_next(), if !bridge.posts.is_empty() => bridge.done(done),
            Some(revoked) = source.back.recv() => bridge.give_back(revoked, &mut source.events),
            event = source.events.recv(), if has_room => match event {
                None => break Err(Error::SourceEnded),
                Some(event) => event.and_then(|event| bridge.take(event)),
            },
        };
        if let Err(error) = step {
            break Err(error);
        }
    };
    let Counted { read, done } = bridge.counted;
    tracing::info!(read, done, "stopping");
    bridge.end(ended).await
}

/// What the post tasks share.
struct PostContext {
    receiver: Receiver,
    permits: Semaphore,
}

/// The posts of one partition.
#[derive(Default)]
struct PartitionPosts {
    /// Set to true when the posts have to be cancelled.
    leave: watch::Sender<bool>,
    posts: usize,
}

/// A post that has ended.
struct FinishedPost {
    followed: Followed,
    end: PostEnd,
}

enum PostEnd {
    Accepted,
    GivenUp(DeadLetter),
    /// The change is for a later process. The receiver may or may not have accepted it.
    Left,
}

struct Bridge<K> {
    keep: K,
    frontier: Frontier,
    queues: UserQueues,
    posts: JoinSet<Result<FinishedPost, Error>>,
    by_partition: BTreeMap<Partition, PartitionPosts>,
    /// Revoked partitions whose posts have not all ended yet.
    leaving: Vec<RevokedPartitions>,
    /// Events that were read while something else had to be handled first.
    early: VecDeque<SourceEvent>,
    dead_letters: DeadLetterFile,
    context: Arc<PostContext>,
    counted: Counted,
}

impl<K: Keep> Bridge<K> {
    fn take(&mut self, event: SourceEvent) -> Result<(), Error> {
        match event {
            SourceEvent::Begins(positions) => {
                self.frontier.begin(positions);
                // The starting position is saved before anything is posted.
                self.keep()?;
            }
            SourceEvent::Reached(partition, next) => {
                self.frontier.begun(partition, next);
                self.passed(partition, next, None)?;
            }
            SourceEvent::Change(followed) => {
                self.counted.read += 1;
                self.frontier.begun(followed.partition, followed.next);
                if let Some(first) = self.queues.add(followed) {
                    self.post(first);
                }
            }
        }
        Ok(())
    }

    fn post(&mut self, followed: Followed) {
        let entry = self.by_partition.entry(followed.partition).or_default();
        entry.posts += 1;
        let mut leave = entry.leave.subscribe();
        let context = self.context.clone();
        self.posts.spawn(async move {
            let PostContext { receiver, permits } = &*context;
            let outcome = tokio::select! {
                outcome = receiver.deliver(&followed.change, followed.trace, permits) => outcome,
                _ = leave.wait_for(|leave| *leave) => {
                    receiver.left(&followed.change.user);
                    Outcome::Left
                }
            };
            let end = match outcome {
                Outcome::Taken => PostEnd::Accepted,
                Outcome::GivenUp { body, why } => PostEnd::GivenUp(DeadLetter::new(&followed.change, &body, why)),
                Outcome::Left => PostEnd::Left,
                Outcome::Stop { why } => {
                    return Err(Error::RefusedByAll {
                        why,
                        letters: String::new(),
                    });
                }
            };
            Ok(FinishedPost { followed, end })
        });
    }

    fn done(&mut self, done: Option<Joined>) -> Result<(), Error> {
        let FinishedPost { followed, end } = finished(done)?;
        let partition = followed.partition;
        let entry = self.by_partition.get_mut(&partition).expect("something was posted");
        entry.posts -= 1;
        let (is_leaving, is_last) = (*entry.leave.borrow(), entry.posts == 0);
        if let Some(letter) = end.done() {
            self.counted.done += 1;
            self.passed(partition, followed.next, letter)?;
        }
        if !is_leaving {
            if let Some(next) = self.queues.done(&followed.change.user) {
                self.post(next);
            }
        } else if is_last {
            self.settle();
        }
        Ok(())
    }

    /// Moves the position over a change that has ended, if there is no gap before it. What was given up is in the
    /// dead-letter file before the position moves over it.
    fn passed(&mut self, partition: Partition, next: Offset, letter: Option<DeadLetter>) -> Result<(), Error> {
        self.frontier.done(partition, next, letter);
        let (written, all) = self.dead_letters.write(&self.frontier.letters(partition));
        self.frontier.advance(partition, written);
        all
    }

    fn give_back(
        &mut self,
        revoked: RevokedPartitions,
        events: &mut mpsc::Receiver<Result<SourceEvent, Error>>,
    ) -> Result<(), Error> {
        // Events already in the channel are from before the revocation.
        while let Ok(event) = events.try_recv() {
            self.early.push_back(event?);
        }
        let early = std::mem::take(&mut self.early).into_iter();
        self.early = early.filter_map(|event| event.without(&revoked.partitions)).collect();
        for partition in &revoked.partitions {
            self.queues.clear(*partition);
            if let Some(entry) = self.by_partition.get(partition) {
                entry.leave.send_replace(true);
            }
        }
        self.leaving.push(revoked);
        self.settle();
        Ok(())
    }

    /// Releases the revoked partitions whose posts have all ended.
    fn settle(&mut self) {
        let by_partition = &self.by_partition;
        let is_settled = |revoked: &RevokedPartitions| {
            let mut by_partition = revoked
                .partitions
                .iter()
                .filter_map(|partition| by_partition.get(partition));
            by_partition.all(|entry| entry.posts == 0)
        };
        let settled: Vec<RevokedPartitions> = self.leaving.extract_if(.., |revoked| is_settled(revoked)).collect();
        for RevokedPartitions { partitions, done } in settled {
            let mut positions = Positions::default();
            for partition in partitions {
                self.by_partition.remove(&partition);
                positions
                    .0
                    .extend(self.frontier.end(partition).map(|next| (partition, next)));
            }
            // The receiver of the positions may have gone.
            let _ = done.send(positions);
        }
    }

    fn keep(&mut self) -> Result<(), Error> {
        match self.frontier.moved() {
            Some(positions) => self.keep.keep(positions),
            None => Ok(()),
        }
    }

    /// Waits for the posts in progress, which may still succeed. Queued changes are left for the next process.
    async fn end(mut self, mut ended: Result<(), Error>) -> Result<(), Error> {
        self.context.receiver.close();
        let rest = async {
            while let Some(done) = self.posts.join_next().await {
                if let Ok(FinishedPost { followed, end }) = finished(Some(done))
                    && let Some(letter) = end.done()
                {
                    let passed = self.passed(followed.partition, followed.next, letter);
                    ended = std::mem::replace(&mut ended, Ok(())).and(passed);
                }
            }
        };
        let _ = tokio::time::timeout(GRACEFUL, rest).await;
        if let Err(Error::RefusedByAll { letters, .. }) = &mut ended {
            *letters = self.dead_letters.holds();
        }
        let kept = match self.frontier.positions() {
            // No partition was followed, so the saved position stays valid.
            positions if positions.0.is_empty() => Ok(()),
            positions => self.keep.keep_last(positions),
        };
        ended.and(kept)
    }
}

impl PostEnd {
    /// Returns the dead letter, if any, of a change that is done; `None` if it is not done.
    fn done(self) -> Option<Option<DeadLetter>> {
        match self {
            PostEnd::Accepted => Some(None),
            PostEnd::GivenUp(letter) => Some(Some(letter)),
            PostEnd::Left => None,
        }
    }
}

/// Counts for the log.
#[derive(Default)]
struct Counted {
    read: u64,
    done: u64,
}

type Joined = Result<Result<FinishedPost, Error>, tokio::task::JoinError>;

fn finished(done: Option<Joined>) -> Result<FinishedPost, Error> {
    match done.expect("there was one to wait for") {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => unreachable!("posts are not cancelled: {error}"),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::super::{PositionFile, PostTimeouts, Shape};
    use super::*;
    use crate::clock::SystemClock;
    use std::path::Path;

    /// A panic in what reads them must not look like an orderly end.
    #[tokio::test]
    async fn changes_that_end_by_themselves_are_an_error() {
        let (sender, source) = source();
        drop(sender);
        let directory = tempfile::tempdir().expect("a directory");
        let (_stop, stopping) = watch::channel(false);
        let ended = run_in(directory.path(), source, stopping).await;
        let error = ended.expect_err("it was not asked to stop").to_string();
        assert!(error.contains("Restart the bridge"), "{error}");
    }

    #[tokio::test]
    async fn who_is_stopped_before_it_has_begun_leaves_the_position_as_it_was() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("position");
        std::fs::write(&path, "0:12,1:7\n").expect("written");
        let (_sender, source) = source();
        let (_stop, stopping) = watch::channel(true);
        let ended = run_in(directory.path(), source, stopping).await;
        ended.expect("it ends well");
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "0:12,1:7\n");
    }

    fn source() -> (mpsc::Sender<Result<SourceEvent, Error>>, Source) {
        let (sender, events) = mpsc::channel(1);
        let (_, back) = mpsc::unbounded_channel();
        (sender, Source { events, back })
    }

    /// Runs a bridge whose files are in a directory, to a receiver that is not there.
    async fn run_in(directory: &Path, source: Source, stopping: watch::Receiver<bool>) -> Result<(), Error> {
        let (file, _) = PositionFile::open(&directory.join("position")).expect("opened");
        let shape = Shape {
            app: None,
            token: None,
            push_expired: false,
            web: Vec::new(),
        };
        let patience = PostTimeouts {
            timeout: GRACEFUL,
            give_up_after: None,
        };
        let to = "http://127.0.0.1:9/".parse().expect("a URL");
        let receiver = Receiver::new(to, shape, patience, Arc::new(SystemClock::new())).expect("a client");
        let dead_letters = DeadLetterFile::open(&directory.join("letters"), u64::MAX).expect("opened");
        run(source, file, receiver, dead_letters, 1, stopping).await
    }
}
