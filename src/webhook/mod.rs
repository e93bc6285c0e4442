//! The webhook bridge: posts changes as State.StateChange callbacks (rules, section 10) to servers that still need
//! them.
//!
//! It is a follower like any other, in a process of its own, so a failing receiver does not affect the engine. It
//! follows over HTTP, with one process for all partitions, or from Kafka as a member of a group. Guarantees: every
//! change is posted at least once or is in the dead-letter file. A user's changes are posted in order, each one after
//! the receiver has accepted the one before. Users do not wait for each other until [`WINDOW`] changes are in progress.
//! After a crash it continues at the saved position, and everything before that position is done. It deliberately has
//! no queue of its own: changes that are not posted yet stay in the log.

mod bridge;
mod callback;
mod dead_letters;
mod engine_client;
mod kafka;
mod outage;
mod position;
mod post;
mod refusals;
mod trouble;
mod user_queues;

pub use bridge::run;
pub use callback::Shape;
pub use dead_letters::{DeadLetter, DeadLetterFile};
pub use engine_client::{EngineClient, Start};
pub use kafka::follow as follow_kafka;
pub use position::{Keep, PositionFile, Positions};
pub use post::{PostTimeouts, Receiver};

use crate::presence::change::Change;
use crate::presence::{Offset, Partition};
use crate::traces::Parent;
use std::fs::{File, TryLockError};
use std::path::PathBuf;
use tokio::sync::{mpsc, oneshot};

/// How many changes may be read and not done. A user whose changes are not accepted keeps the position from moving, so
/// this limits how many are posted again after a crash, and how much memory they take.
pub const WINDOW: usize = 10_000;
/// How many more changes are read ahead.
const AHEAD: usize = 256;

/// Why the bridge cannot continue. Errors that may pass are retried and are not listed here.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the engine refuses the subscription to changes: {0}")]
    Refused(String),
    #[error("a change is unreadable: {0}. If the engine is newer than this program, update this program")]
    Unreadable(String),
    #[error(
        "changes were lost: the log no longer has the position {position}. To continue with the oldest change it has, \
         at {oldest}, remove the position file and start with --from earliest"
    )]
    Lost { position: String, oldest: String },
    #[error(
        "changes were lost: partition {partition} no longer has offset {wanted}. To continue with the oldest change it \
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
        "the receiver refuses nearly every callback: {why}. At the next start the callbacks that were not accepted are \
         posted again, each user's in order; {letters}. Check the receiver, then restart the bridge"
    )]
    RefusedByAll {
        why: String,
        /// Which callbacks are in the dead-letter file.
        letters: String,
    },
    #[error(
        "the dead-letter file {} has {bytes} bytes, and the next callback would take it beyond the {bytes_max} of \
         --dead-letters-mib. Move the file away, then restart the bridge: it posts the callback again",
        path.display()
    )]
    DeadLettersFull { path: PathBuf, bytes: u64, bytes_max: u64 },
    #[error("{what}: {cause}")]
    File { what: String, cause: std::io::Error },
    #[error("{0}")]
    Position(String),
    /// Another process has a file of this one.
    #[error("{0}")]
    InUse(String),
    /// By a panic; it was logged where it was caught.
    #[error(
        "what reads the changes has ended; no change was skipped. Restart the bridge: it goes on from its position. The log \
         says why"
    )]
    SourceEnded,
}

/// Locks a file that one process may use at a time, for as long as the file is open.
fn lock_alone(file: &File, what: &str, flag: &str) -> Result<(), Error> {
    file.try_lock().map_err(|error| match error {
        TryLockError::WouldBlock => Error::InUse(format!(
            "another process uses the {what}; give each process a file of its own with {flag}"
        )),
        TryLockError::Error(cause) => Error::File {
            what: format!("cannot lock the {what}"),
            cause,
        },
    })
}

/// A change, and the position after it.
#[derive(Clone, Debug)]
pub struct Followed {
    pub partition: Partition,
    /// The next offset of the change topic in this partition.
    pub next: Offset,
    pub change: Change,
    /// The trace that it belongs to, if it is sampled and this process exports spans.
    pub trace: Option<Parent>,
}

/// An event of a source.
#[derive(Debug)]
pub enum SourceEvent {
    /// These partitions are followed from these offsets on.
    Begins(Positions),
    /// The next change of its partition.
    Change(Followed),
    /// There is nothing to post before this offset of a partition.
    Reached(Partition, Offset),
}

impl SourceEvent {
    /// Returns the event without these partitions; `None` if nothing is left.
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

/// Partitions that this process has lost. Their posts are cancelled. When all have ended, `done` receives how far each
/// partition is done; until then no more events are taken from the source.
#[derive(Debug)]
pub struct RevokedPartitions {
    partitions: Vec<Partition>,
    done: oneshot::Sender<Positions>,
}

/// A source of changes, in order within each partition. It waits for changes that are not there yet, and for an engine
/// or a broker that does not respond.
pub struct Source {
    events: mpsc::Receiver<Result<SourceEvent, Error>>,
    back: mpsc::UnboundedReceiver<RevokedPartitions>,
}

/// Returns an id that is unique to the change and the same whenever it is posted again.
fn id(change: &Change) -> String {
    let id = &change.id;
    format!("{}-{}-{}", id.partition, id.offset, id.index)
}
