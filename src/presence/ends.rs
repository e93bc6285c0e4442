//! Early ends: connections whose end came before their beginning (section 6).

use super::{Conn, Epoch, LogTime};
use std::collections::{BTreeSet, VecDeque};

/// A partition keeps at most so many; one more pushes out the one that came first.
pub const EARLY_ENDS_MAX: usize = 1_024;
/// How long one is kept.
pub const EARLY_END_MS: u64 = 60_000;

/// A connection by what a log calls it.
type Ended = (Conn, Epoch, Box<str>);

/// The early ends of a partition.
#[derive(Default)]
pub(super) struct EarlyEnds {
    /// In the order in which they came, so also in that of time.
    queue: VecDeque<(LogTime, Ended)>,
    known: BTreeSet<Ended>,
}

/// An early end outside of a state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EarlyEndImage<'a> {
    pub gateway: &'a str,
    pub epoch: Epoch,
    pub conn: Conn,
    /// The log time at which it came.
    pub came: LogTime,
}

impl EarlyEnds {
    pub fn contains(&self, gateway: &str, epoch: Epoch, conn: Conn) -> bool {
        let from = (conn, epoch, Box::<str>::default());
        let same = |ended: &&Ended| ended.0 == conn && ended.1 == epoch;
        let mut of_number = self.known.range(from..).take_while(same);
        of_number.any(|(_, _, name)| &**name == gateway)
    }

    /// Adds one; one that is there already stays as it is.
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

    /// Drops those that came [`EARLY_END_MS`] or more before `time`.
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

    /// In the order in which they came.
    pub fn images(&self) -> impl Iterator<Item = EarlyEndImage<'_>> {
        self.queue.iter().map(|(came, (conn, epoch, gateway))| EarlyEndImage {
            gateway,
            epoch: *epoch,
            conn: *conn,
            came: *came,
        })
    }
}
