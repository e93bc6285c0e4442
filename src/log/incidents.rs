//! The topic of incidents: one sequence of records for the whole log, with one writer.
//!
//! Incidents are found in the records of a topic ([`INCIDENTS_FOUND_IN`](crate::topics::INCIDENTS_FOUND_IN)) of all
//! partitions together. So they are no output of a partition, and their topic has one partition only.

use super::{Error, NewRecord};
use crate::presence::Offset;

/// How far was read to find incidents. It is committed together with the records.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct IncidentPosition {
    /// Of each partition, the next record to read.
    pub next: Vec<Offset>,
    /// What the writer has to know besides, in bytes of its own; 1,000 at most.
    pub note: Vec<u8>,
}

/// The permit to write incidents. Of all writers only the one that was opened last can commit.
pub trait IncidentWriter: Send {
    /// Returns the position of the last commit; `None` if there was none.
    fn position(&mut self) -> Result<Option<IncidentPosition>, Error>;

    /// Writes records and the position in one atomic step. After an error nobody knows whether it was applied: open another
    /// writer, and ask for the position.
    fn commit(&mut self, records: &[NewRecord], position: &IncidentPosition) -> Result<(), Error>;
}
