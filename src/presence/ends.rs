//! Early ends: connections whose end arrived before their beginning (section 6).

use super::{Conn, Epoch, LogTime};
use std::collections::{BTreeSet, VecDeque};

/// The most early ends of a partition. One more removes the oldest.
pub const EARLY_ENDS_MAX: usize = 1_024;
/// How long an early end is kept.
pub const EARLY_END_MS: u64 = 60_000;

/// A connection as the log names it.
type Ended = (Conn, Epoch, Box<str>);

/// The early ends of a partition.
#[derive(Default)]
pub(super) struct EarlyEnds {
    /// In order of arrival, and so also in order of time.
    queue: VecDeque<(LogTime, Ended)>,
    known: BTreeSet<Ended>,
}

/// An early end outside of a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EarlyEndImage<'a> {
    pub gateway: &'a str,
    pub epoch: Epoch,
    pub conn: Conn,
    /// The log time at which it arrived.
    pub came: LogTime,
}

impl EarlyEnds {
    pub fn contains(&self, gateway: &str, epoch: Epoch, conn: Conn) -> bool {
        let from = (conn, epoch, Box::<str>::default());
        let same = |ended: &&Ended| ended.0 == conn && ended.1 == epoch;
        let mut of_number = self.known.range(from..).take_while(same);
        of_number.any(|(_, _, name)| &**name == gateway)
    }

    /// Adds an early end. One that is present already stays unchanged.
    pub fn add(&mut self, gateway: &str, epoch: Epoch, conn: Conn, came: LogTime) {
        let ended: Ended = (conn, epoch, gateway.into());
        if !self.known.insert(ended.clone()) {
            return;
        }
        self.queue.push_back((came, ended));
        if self.queue.len() > EARLY_ENDS_MAX {
            self.drop_first();
        }
    }

    /// Drops early ends that arrived [`EARLY_END_MS`] or more before `time`.
    pub fn expire(&mut self, time: LogTime) {
        while self
            .queue
            .front()
            .is_some_and(|(came, _)| came.plus(EARLY_END_MS) <= time)
        {
            self.drop_first();
        }
    }

    fn drop_first(&mut self) {
        if let Some((_, ended)) = self.queue.pop_front() {
            self.known.remove(&ended);
        }
    }

    /// Returns the early ends in order of arrival.
    pub fn images(&self) -> impl Iterator<Item = EarlyEndImage<'_>> {
        self.queue.iter().map(|(came, (conn, epoch, gateway))| EarlyEndImage {
            gateway,
            epoch: *epoch,
            conn: *conn,
            came: *came,
        })
    }
}
