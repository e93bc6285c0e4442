//! The webhook bridge: changes, posted as State.StateChange callbacks (rules, section 10) to those who still need them.
//!
//! It is a follower like any other, in a process of its own, so whatever becomes of the receiver is nothing to the
//! engine. It follows over HTTP, one process for all partitions, or from Kafka as a member of a group. Guarantees: every
//! change is posted at least once, or is in the dead-letter file; a user's changes are posted in their order, the next
//! one when the one before was taken; users do not wait for each other, until [`WINDOW`] changes are under way. After a
//! death it goes on at the position kept, which is behind nothing that is not done. Deliberately absent: a queue of its
//! own. What is not posted yet is in the log, and the log alone keeps it.

mod bridge;
mod callback;
mod dead_letters;
mod engine_client;
mod kafka;
mod position;
mod post;
mod refusals;
mod user_queues;

pub use bridge::run;
pub use callback::Shape;
pub use dead_letters::DeadLetterFile;
pub use engine_client::{EngineClient, Start};
pub use kafka::follow as follow_kafka;
pub use position::{Keep, PositionFile, Positions};
pub use post::{PostTimeouts, Receiver};

use crate::presence::change::Change;
use crate::presence::{Offset, Partition};
use tokio::sync::{mpsc, oneshot};

/// How many changes may be read and not done. A user whose changes are not taken holds the position back, so this
/// bounds what is posted again after a death, and memory.
pub const WINDOW: usize = 10_000;
/// How many changes are read ahead of that.
const AHEAD: usize = 256;

/// Why the bridge cannot go on. What passes by itself is waited for and is not among these.
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
    #[error(
        "changes were lost: partition {partition} no longer reaches back to offset {wanted}. To go on with what it still \
         has, stop every bridge of the group {group} and set its offset to {start} (kafka-consumer-groups.sh \
         --reset-offsets)"
    )]
    LostInKafka {
        partition: Partition,
        wanted: Offset,
        start: Offset,
        group: String,
    },
    #[error(
        "the receiver refuses nearly every callback: {0}. These are kept for the next start and are not in the dead \
         dead_letters. Look at the receiver, then start again"
    )]
    RefusedByAll(String),
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

/// What a source tells of.
#[derive(Debug)]
pub enum SourceEvent {
    /// These partitions are followed from here on.
    Begins(Positions),
    /// The next change of its partition.
    Change(Followed),
    /// There is nothing to post before this offset of a partition.
    Reached(Partition, Offset),
}

impl SourceEvent {
    /// What is left of it without some partitions.
    fn without(self, partitions: &[Partition]) -> Option<SourceEvent> {
        match self {
            SourceEvent::Begins(Positions(mut begins)) => {
                begins.retain(|partition, _| !partitions.contains(partition));
                (!begins.is_empty()).then_some(SourceEvent::Begins(Positions(begins)))
            }
            SourceEvent::Change(followed) => {
                (!partitions.contains(&followed.partition)).then_some(SourceEvent::Change(followed))
            }
            SourceEvent::Reached(partition, next) => {
                (!partitions.contains(&partition)).then_some(SourceEvent::Reached(partition, next))
            }
        }
    }
}

/// Partitions that are another's from now on. Their posts are cut short, and once none is under way it is told how far
/// they are done; until then nothing comes of the source.
#[derive(Debug)]
pub struct RevokedPartitions {
    partitions: Vec<Partition>,
    done: oneshot::Sender<Positions>,
}

/// Where changes come from, each partition in its order. What is not there yet is waited for, and so is an engine or a
/// broker that does not answer.
pub struct Source {
    news: mpsc::Receiver<Result<SourceEvent, Error>>,
    back: mpsc::UnboundedReceiver<RevokedPartitions>,
}

/// Unique, and the same whenever the change is posted again.
fn id(change: &Change) -> String {
    let id = &change.id;
    format!("{}-{}-{}", id.partition, id.offset, id.index)
}
