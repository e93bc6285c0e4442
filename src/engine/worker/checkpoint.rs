//! A worker's checkpoints: one takes the place of the store where that is better, and new ones are made.

use super::Worker;
use super::control::Fact;
use crate::engine::Error;
use crate::engine::checkpoints::LogBounds;
use crate::log::{PartitionEvents, PartitionHandle, Position};
use crate::metrics;

impl Worker {
    fn reach(events: &dyn PartitionEvents, committed: Position) -> Result<LogBounds, Error> {
        let range = events.range()?;
        Ok(LogBounds {
            start: range.start,
            end: range.end,
            committed: (committed.next, committed.outputs),
        })
    }

    /// Takes a checkpoint in place of the store, where that is better.
    pub(super) fn restore(&mut self, log: &mut PartitionHandle) -> Result<(), Error> {
        let Some(checkpointer) = self.dependencies.services.checkpointer.clone() else {
            return Ok(());
        };
        self.expect_checkpoint();
        let Some(directory) = self.directory.clone() else {
            return Ok(());
        };
        let committed = log.committed()?;
        let reach = Worker::reach(log.events(), committed)?;
        match log {
            // This node was the owner, and the position that the group says is older than its last commit.
            PartitionHandle::Standby(_) if reach.is_exceeded_by(self.partition, &directory)? => return Ok(()),
            PartitionHandle::Standby(_) | PartitionHandle::Owned(_) => {}
        }
        let worth = self.tuning.store_commit_records;
        checkpointer.restore(self.partition, &directory, reach, worth, &*self.dependencies.log)?;
        Ok(())
    }

    /// Gives up the checkpoint that the store is from, if an error may be its fault: it may be of another log, although
    /// nothing in it says so. Returns whether there is another attempt to make: with the next older checkpoint, or from the
    /// beginning of the log. Each checkpoint is given up once, so the attempts end.
    pub(super) fn give_up_checkpoint(&self, error: &Error) -> bool {
        let is_the_stores = error.is_the_stores() || matches!(error, Error::Unrecoverable { .. });
        let checkpointer = self.dependencies.services.checkpointer.as_ref();
        let Some(checkpointer) = checkpointer.filter(|_| is_the_stores) else {
            return false;
        };
        let Some(next) = checkpointer.give_up(self.partition) else {
            return false;
        };
        tracing::warn!(
            partition = %self.partition, checkpoint = %next, %error,
            "the checkpoint does not fit the log and is given up, trying an older one or the beginning of the log"
        );
        true
    }

    /// Notes that the state from a checkpoint has reached what is committed.
    pub(super) fn prove_checkpoint(&self) {
        if let Some(checkpointer) = &self.dependencies.services.checkpointer {
            checkpointer.is_proved(self.partition);
        }
    }

    /// The first is due at a different moment for each partition, so that not all come at once.
    pub(super) fn expect_checkpoint(&mut self) {
        let Some(checkpointer) = &self.dependencies.services.checkpointer else {
            return;
        };
        let partitions = u64::from(self.dependencies.log.partitions());
        let share = u64::from(self.partition.0 + 1) * checkpointer.every_ms() / partitions;
        self.control.expect_checkpoint(self.clock.monotonic_ms() + share);
    }

    /// Makes a checkpoint.
    pub(super) fn checkpoint(&mut self) -> Result<Fact, Error> {
        let checkpointer = self.dependencies.services.checkpointer.as_ref();
        let (Some(checkpointer), Some(processor)) = (checkpointer, &mut self.processor) else {
            return Ok(Fact::Checkpointed(None));
        };
        let Some(place) = checkpointer.place(self.partition) else {
            return Ok(Fact::Checkpointed(None));
        };
        if let Err(error) = processor.checkpoint(&place)? {
            metrics::checkpoint_failed();
            tracing::warn!(partition = %self.partition, %error, "checkpoint failed, retrying at the next interval");
            return Ok(Fact::Checkpointed(None));
        }
        let reach = Worker::reach(processor.log().events(), processor.committed())?;
        checkpointer.take(self.partition, place, reach, &self.dependencies.log);
        Ok(Fact::Checkpointed(Some(processor.applied())))
    }
}
