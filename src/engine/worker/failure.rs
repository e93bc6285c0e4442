//! Errors of a partition by what follows from them.

use crate::engine::Error;
use crate::log;
use crate::presence::Offset;
use crate::store;

/// What kind of error it was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The log failed for a moment, a schema cannot be fetched, or a record is ahead of the clock. What was folded is kept, and the
    /// step is tried again.
    Passing,
    /// The log goes on in a revision that this program does not know.
    UnknownRevision,
    /// Another process owns the partition now.
    Deposed,
    /// The state can be restored neither from the store nor from the log.
    Unrecoverable,
    /// The store is damaged: outputs differ from those in the log, or a read has failed.
    StoreSuspect,
    /// Perhaps the log returned other events than at the first reading.
    ReadSuspect,
    /// Folding the record at this offset panicked.
    Panicked(Option<Offset>),
    /// What is in memory no longer counts.
    StateLost,
}

/// What is to be done about a failure.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Recovery {
    /// What was folded is kept.
    Keep,
    /// Start over from the store.
    Reopen,
    /// The same, and the log is read in another way, where there is one.
    Reread,
    /// The same, from the log alone or from a checkpoint: the store is removed.
    Rebuild,
    /// The same from a checkpoint: the store is kept to be looked at.
    SetStoreAside,
}

impl Failure {
    pub fn of(error: &Error) -> Failure {
        match error {
            Error::Log(log::Error::Write(_) | log::Error::Busy | log::Error::Read(_) | log::Error::Unanswered(_)) => {
                Failure::Passing
            }
            // Nothing was folded of a batch with a schema that is still to be asked for, or a time that is still to come.
            Error::Registry(_) | Error::Ahead { .. } => Failure::Passing,
            // A new leader may not know yet how far may be read.
            Error::EventsMissing { .. } => Failure::Passing,
            Error::UnknownRevision { .. } | Error::Store(store::Error::LaterLayout { .. }) => Failure::UnknownRevision,
            Error::Log(log::Error::Fenced { .. }) | Error::Deposed { .. } => Failure::Deposed,
            Error::Unrecoverable { .. } => Failure::Unrecoverable,
            Error::Diverged { .. } if error.may_be_of_reading() => Failure::ReadSuspect,
            Error::Diverged { .. } | Error::Store(store::Error::Damaged { .. }) => Failure::StoreSuspect,
            Error::Panicked { offset, .. } => Failure::Panicked(*offset),
            Error::Log(log::Error::Gone { .. } | log::Error::Open(_) | log::Error::Closed | log::Error::Partly(_))
            | Error::Store(store::Error::Open { .. } | store::Error::Failed { .. } | store::Error::Layout { .. })
            | Error::Checkpoint(_)
            | Error::ForeignStore { .. }
            | Error::EventsLost { .. }
            | Error::Unreadable
            | Error::OutputsWithoutPosition { .. }
            | Error::OutputsMissing { .. }
            | Error::ForeignOutput { .. }
            | Error::OutputDiffers { .. }
            | Error::TailUnreadable { .. }
            | Error::Behind { .. } => Failure::StateLost,
        }
    }
}
