//! What is under way, between a source and a receiver: which change is posted when, and what is done.

use super::dead_letters::DeadLetterFile;
use super::position::{Frontier, Keep, Positions};
use super::post::{Outcome, Receiver};
use super::user_queues::Lines;
use super::{Error, Followed, RevokedPartitions, Source, SourceEvent, WINDOW};
use crate::presence::Partition;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

/// How often the position is kept, at most.
const KEEP_EVERY: Duration = Duration::from_millis(500);
/// How long posts may take to end once the process is told to stop.
const GRACEFUL: Duration = Duration::from_secs(5);

/// Posts what a source brings until it is told to stop or cannot go on; `parallel` posts at a time.
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
        lines: Lines::default(),
        posts: JoinSet::new(),
        desks: BTreeMap::new(),
        leaving: Vec::new(),
        early: VecDeque::new(),
        context: Arc::new(PostContext {
            receiver,
            dead_letters,
            permits: Semaphore::new(parallel),
        }),
        counted: Counted::default(),
    };
    let mut tick = tokio::time::interval(KEEP_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let ended = loop {
        let has_room = bridge.frontier.under_way() < WINDOW && bridge.leaving.is_empty();
        if has_room && let Some(news) = bridge.early.pop_front() {
            if let Err(error) = bridge.take(news) {
                break Err(error);
            }
            continue;
        }
        let step = tokio::select! {
            // What is done makes room before what is new comes.
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => break Ok(()),
            _ = tick.tick() => bridge.keep(),
            done = bridge.posts.join_next(), if !bridge.posts.is_empty() => bridge.done(done),
            Some(taken_back) = source.back.recv() => bridge.give_back(taken_back, &mut source.news),
            news = source.news.recv(), if has_room => match news {
                None => break Ok(()),
                Some(news) => news.and_then(|news| bridge.take(news)),
            },
        };
        if let Err(error) = step {
            break Err(error);
        }
    };
    let Counted { read, done } = bridge.counted;
    tracing::info!(read, done, "stopping");
    ended.and(bridge.end().await)
}

/// What posts need.
struct PostContext {
    receiver: Receiver,
    dead_letters: DeadLetterFile,
    permits: Semaphore,
}

/// The posts of one partition.
#[derive(Default)]
struct PartitionPosts {
    /// Told when they are to be cut short.
    leave: watch::Sender<bool>,
    posts: usize,
}

/// A post that has ended; or was cut short, and may have been taken or not.
struct FinishedPost {
    followed: Followed,
    is_done: bool,
}

struct Bridge<K> {
    keep: K,
    frontier: Frontier,
    lines: Lines,
    posts: JoinSet<Result<FinishedPost, Error>>,
    desks: BTreeMap<Partition, PartitionPosts>,
    /// Who waits until nothing is under way any more.
    leaving: Vec<RevokedPartitions>,
    /// Read, while something else had to come first.
    early: VecDeque<SourceEvent>,
    context: Arc<PostContext>,
    counted: Counted,
}

impl<K: Keep> Bridge<K> {
    fn take(&mut self, news: SourceEvent) -> Result<(), Error> {
        match news {
            SourceEvent::Begins(positions) => {
                self.frontier.begin(positions);
                // Where it begins is kept before anything is posted.
                self.keep()?;
            }
            SourceEvent::Reached(partition, next) => {
                self.frontier.begun(partition, next);
                self.frontier.done(partition, next);
            }
            SourceEvent::Change(followed) => {
                self.counted.read += 1;
                self.frontier.begun(followed.partition, followed.next);
                if let Some(first) = self.lines.add(followed) {
                    self.post(first);
                }
            }
        }
        Ok(())
    }

    fn post(&mut self, followed: Followed) {
        let desk = self.desks.entry(followed.partition).or_default();
        desk.posts += 1;
        let mut leave = desk.leave.subscribe();
        let context = self.context.clone();
        self.posts.spawn(async move {
            let PostContext {
                receiver,
                dead_letters,
                permits,
            } = &*context;
            let outcome = tokio::select! {
                outcome = receiver.deliver(&followed.change, permits) => outcome,
                _ = leave.wait_for(|leave| *leave) => return Ok(FinishedPost { followed, is_done: false }),
            };
            match outcome {
                Outcome::Taken => {}
                Outcome::GivenUp { body, why } => dead_letters.write(&followed.change, &body, &why)?,
                Outcome::Stop { why } => return Err(Error::RefusedByAll(why)),
            }
            let is_done = true;
            Ok(FinishedPost { followed, is_done })
        });
    }

    fn done(&mut self, done: Option<Joined>) -> Result<(), Error> {
        let FinishedPost { followed, is_done } = finished(done)?;
        let partition = followed.partition;
        let desk = self.desks.get_mut(&partition).expect("something was posted");
        desk.posts -= 1;
        if is_done {
            self.counted.done += 1;
            self.frontier.done(partition, followed.next);
        }
        if !*desk.leave.borrow() {
            if let Some(next) = self.lines.done(&followed.change.user) {
                self.post(next);
            }
        } else if desk.posts == 0 {
            self.settle();
        }
        Ok(())
    }

    fn give_back(
        &mut self,
        taken_back: RevokedPartitions,
        news: &mut mpsc::Receiver<Result<SourceEvent, Error>>,
    ) -> Result<(), Error> {
        // What was read before is of before.
        while let Ok(news) = news.try_recv() {
            self.early.push_back(news?);
        }
        let early = std::mem::take(&mut self.early).into_iter();
        self.early = early.filter_map(|news| news.without(&taken_back.partitions)).collect();
        for partition in &taken_back.partitions {
            self.lines.clear(*partition);
            if let Some(desk) = self.desks.get(partition) {
                desk.leave.send_replace(true);
            }
        }
        self.leaving.push(taken_back);
        self.settle();
        Ok(())
    }

    /// Lets go of what nothing is under way of any more.
    fn settle(&mut self) {
        let desks = &self.desks;
        let is_settled = |taken_back: &RevokedPartitions| {
            let mut desks = taken_back
                .partitions
                .iter()
                .filter_map(|partition| desks.get(partition));
            desks.all(|desk| desk.posts == 0)
        };
        let settled: Vec<RevokedPartitions> = self
            .leaving
            .extract_if(.., |taken_back| is_settled(taken_back))
            .collect();
        for RevokedPartitions { partitions, done } in settled {
            let mut positions = Positions::default();
            for partition in partitions {
                self.desks.remove(&partition);
                positions
                    .0
                    .extend(self.frontier.end(partition).map(|next| (partition, next)));
            }
            // The asker may have gone.
            let _ = done.send(positions);
        }
    }

    fn keep(&mut self) -> Result<(), Error> {
        match self.frontier.moved() {
            Some(positions) => self.keep.keep(positions),
            None => Ok(()),
        }
    }

    /// A post that is under way may still succeed; what waits its turn is left to the next process.
    async fn end(mut self) -> Result<(), Error> {
        let rest = async {
            while let Some(done) = self.posts.join_next().await {
                if let Ok(FinishedPost {
                    followed,
                    is_done: true,
                }) = finished(Some(done))
                {
                    self.frontier.done(followed.partition, followed.next);
                }
            }
        };
        let _ = tokio::time::timeout(GRACEFUL, rest).await;
        match self.frontier.positions() {
            // Nothing has begun, so whatever is kept stands.
            positions if positions.0.is_empty() => Ok(()),
            positions => self.keep.keep_last(positions),
        }
    }
}

/// For the log.
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

    #[tokio::test]
    async fn who_is_stopped_before_it_has_begun_leaves_the_position_as_it_was() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("position");
        std::fs::write(&path, "0:12,1:7\n").expect("written");
        let (file, _) = PositionFile::open(&path).expect("opened");
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
        let dead_letters = DeadLetterFile::open(&directory.path().join("letters")).expect("opened");
        let (_news, news) = mpsc::channel(1);
        let (_back, back) = mpsc::unbounded_channel();
        let (_stop, stopping) = watch::channel(true);
        let ended = run(Source { news, back }, file, receiver, dead_letters, 1, stopping).await;
        ended.expect("it ends well");
        assert_eq!(std::fs::read_to_string(&path).expect("it is there"), "0:12,1:7\n");
    }
}
