//! The webhook bridge: changes, posted as State.StateChange callbacks (rules, section 10) to those who still need them.
//!
//! It is a follower like any other, in a process of its own, so whatever becomes of the receiver is nothing to the
//! engine. Guarantees: every change is posted at least once, or is in the dead-letter file; a user's changes are posted
//! in their order, the next one when the one before was taken; users do not wait for each other, until [`WINDOW`]
//! changes are under way. After a death it goes on at the position kept, which is behind nothing that is not done.
//! Deliberately absent: a queue of its own. What is not posted yet is in the log, and the log alone keeps it.

mod callback;
mod engine;
mod letters;
mod lines;
mod position;
mod post;

pub use callback::Shape;
pub use engine::{Engine, Start};
pub use letters::Letters;
pub use position::{PositionFile, Positions};
pub use post::{Patience, Receiver};

use crate::presence::change::Change;
use crate::presence::{Offset, Partition};
use lines::Lines;
use position::Frontier;
use post::Outcome;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;

/// How many changes may be read and not done. A user whose changes are not taken holds the position back, so this
/// bounds what is posted again after a death, and memory.
pub const WINDOW: usize = 10_000;
/// How often the position is kept, at most.
const KEEP_EVERY: Duration = Duration::from_millis(500);
/// How long posts may take to end once the process is told to stop.
const GRACEFUL: Duration = Duration::from_secs(5);

/// Why the bridge cannot go on. Whatever passes by itself is waited for and is none of these.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the engine refuses to be followed: {0}")]
    Refused(String),
    #[error("a change cannot be read: {0}; perhaps the engine is newer than this program")]
    Unreadable(String),
    #[error(
        "changes were lost: the log no longer reaches back to the position {position}. To go on with what it still has, \
         from {oldest}, remove the position file and start with --from earliest"
    )]
    Lost { position: String, oldest: String },
    #[error("{what}: {cause}")]
    File { what: String, cause: std::io::Error },
    #[error("{0}")]
    Position(String),
}

/// A change, and where to go on once it is done.
#[derive(Clone, Debug)]
pub struct Followed {
    pub partition: Partition,
    /// The next offset of the change topic in that partition.
    pub next: Offset,
    pub change: Change,
}

/// Where changes come from, from a position on, each partition in its order. What is not there yet is waited for, and
/// so is an engine that does not answer.
pub trait Source: Send + 'static {
    fn next(&mut self) -> impl Future<Output = Result<Followed, Error>> + Send;
}

/// Where the position is kept, so that a later process goes on there.
pub trait Keep: Send {
    fn keep(&mut self, positions: &Positions) -> Result<(), Error>;
}

/// Posts what a source brings until it is told to stop or cannot go on; `parallel` posts at a time.
pub async fn run(
    source: impl Source,
    mut keep: impl Keep,
    from: Positions,
    receiver: Receiver,
    letters: Letters,
    parallel: usize,
    mut stopping: watch::Receiver<bool>,
) -> Result<(), Error> {
    let (receiver, letters) = (Arc::new(receiver), Arc::new(letters));
    let permits = Arc::new(Semaphore::new(parallel));
    let mut frontier = Frontier::new(from);
    let mut lines = Lines::default();
    let mut posts: JoinSet<Result<Followed, Error>> = JoinSet::new();
    let mut brought = read(source);
    let mut tick = tokio::time::interval(KEEP_EVERY);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut counted = Counted::default();
    let post = |posts: &mut JoinSet<_>, followed: Followed| {
        let (receiver, letters, permits) = (receiver.clone(), letters.clone(), permits.clone());
        posts.spawn(async move {
            match receiver.deliver(&followed.change, &permits).await {
                Outcome::Taken => {}
                Outcome::GivenUp { body, why } => letters.write(&followed.change, &body, &why)?,
            }
            Ok(followed)
        });
    };
    let ended = loop {
        tokio::select! {
            // Where it begins is kept before anything is posted; what is done makes room before what is new comes.
            biased;
            _ = stopping.wait_for(|stopping| *stopping) => break Ok(()),
            _ = tick.tick() => {
                if let Some(positions) = frontier.moved()
                    && let Err(error) = keep.keep(positions)
                {
                    break Err(error);
                }
            }
            done = posts.join_next(), if !posts.is_empty() => {
                let done = match finished(done) {
                    Ok(done) => done,
                    Err(error) => break Err(error),
                };
                counted.done += 1;
                frontier.done(done.partition, done.next);
                if let Some(next) = lines.done(&done.change.user) {
                    post(&mut posts, next);
                }
            }
            followed = brought.recv(), if frontier.under_way() < WINDOW => match followed {
                None => break Ok(()),
                Some(Err(error)) => break Err(error),
                Some(Ok(followed)) => {
                    counted.read += 1;
                    frontier.begun(followed.partition, followed.next);
                    if let Some(first) = lines.add(followed) {
                        post(&mut posts, first);
                    }
                }
            },
        }
    };
    tracing::info!(read = counted.read, done = counted.done, "stopping");
    // Whoever has a post under way may still take it; what waits its turn is left to the next process.
    let rest = async {
        while let Some(done) = posts.join_next().await {
            if let Ok(done) = finished(Some(done)) {
                frontier.done(done.partition, done.next);
            }
        }
    };
    let _ = tokio::time::timeout(GRACEFUL, rest).await;
    if let Some(positions) = frontier.moved() {
        keep.keep(positions)?;
    }
    ended
}

/// Unique, and the same whenever the change is posted again.
fn id(change: &Change) -> String {
    let id = &change.id;
    format!("{}-{}-{}", id.partition, id.offset, id.index)
}

/// For the log.
#[derive(Default)]
struct Counted {
    read: u64,
    done: u64,
}

fn finished(done: Option<Result<Result<Followed, Error>, tokio::task::JoinError>>) -> Result<Followed, Error> {
    match done.expect("there was one to wait for") {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => unreachable!("posts are not cancelled: {error}"),
        },
    }
}

/// Reads ahead a little, in a task of its own: reading must not begin again whenever a post is done.
fn read(mut source: impl Source) -> mpsc::Receiver<Result<Followed, Error>> {
    let (sender, brought) = mpsc::channel(256);
    tokio::spawn(async move {
        loop {
            let followed = source.next().await;
            let over = followed.is_err();
            if sender.send(followed).await.is_err() || over {
                return;
            }
        }
    });
    brought
}
