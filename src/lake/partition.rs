//! What the tables say of one partition after its changes so far: the intervals that hold, and how many there are.

use super::manifest::{LakePosition, LastChange, PlatformMoves, UnfinishedMinute};
use crate::audit::export::intervals::{IntervalStart, MovedIntervals, OpenIntervals};
use crate::audit::export::tables::CONCURRENCY;
use crate::audit::export::{Cell, ExportColumn};
use crate::audit::id_text;
use crate::presence::change::Change;
use crate::presence::{LogTime, Offset, Partition, Status};
use std::collections::BTreeMap;

const MINUTE_MS: u64 = 60_000;

/// The partition, folded over its changes.
pub struct LakePartition {
    pub partition: Partition,
    /// The next offset of the change topic.
    pub next: Offset,
    /// Everything before it was read: it is after `next` where no change follows the last one, but marks of transactions do.
    reached: Offset,
    pub last: Option<LastChange>,
    pub open: OpenIntervals,
    /// Users (`None`) and devices by platform.
    counts: BTreeMap<Option<Box<str>>, StatusCounts>,
    minute: Option<Minute>,
}

/// How many are online and how many push_online.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct StatusCounts {
    online: u64,
    push_online: u64,
}

/// What has happened in the minute of the last change.
struct Minute {
    from: LogTime,
    moves: BTreeMap<Option<Box<str>>, Moves>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Moves {
    began: StatusCounts,
    ended: StatusCounts,
}

/// A row of the table `concurrency`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ConcurrencyRow {
    partition: Partition,
    minute: LogTime,
    platform: Option<Box<str>>,
    counts: StatusCounts,
    moves: Moves,
}

impl StatusCounts {
    fn of(&mut self, status: Status) -> Option<&mut u64> {
        match status {
            Status::Online => Some(&mut self.online),
            Status::PushOnline => Some(&mut self.push_online),
            Status::Offline => None,
        }
    }
}

impl ConcurrencyRow {
    pub const COLUMNS: &'static [ExportColumn] = CONCURRENCY;

    pub fn cells(&self) -> [Cell<'_>; CONCURRENCY.len()] {
        [
            Cell::Number(self.partition.0.into()),
            Cell::Time(self.minute),
            Cell::optional_text(self.platform.as_deref()),
            Cell::Number(self.counts.online),
            Cell::Number(self.counts.push_online),
            Cell::Number(self.moves.began.online),
            Cell::Number(self.moves.ended.online),
            Cell::Number(self.moves.began.push_online),
            Cell::Number(self.moves.ended.push_online),
        ]
    }
}

impl LakePartition {
    pub fn new(partition: Partition) -> LakePartition {
        LakePartition {
            partition,
            next: Offset(0),
            reached: Offset(0),
            last: None,
            open: OpenIntervals::new(partition),
            counts: BTreeMap::new(),
            minute: None,
        }
    }

    /// Begins where an earlier commit ended. The intervals that held there are given by [`LakePartition::restore`].
    pub fn at(position: &LakePosition) -> LakePartition {
        let minute = position.minute.as_ref().map(|minute| Minute {
            from: LogTime(minute.from),
            moves: minute.moves.iter().map(moves_of).collect(),
        });
        LakePartition {
            next: Offset(position.next),
            last: position.last.clone(),
            minute,
            ..LakePartition::new(Partition(position.partition))
        }
    }

    pub fn restore(&mut self, user: Box<str>, device: Option<(Box<str>, Box<str>)>, start: IntervalStart) {
        let platform = device.as_ref().map(|(platform, _)| platform.clone());
        if let Some(count) = self.counts.entry(platform).or_default().of(start.status) {
            *count += 1;
        }
        self.open.insert(user, device, start);
    }

    /// Notes that every change before an offset was taken.
    pub fn reach(&mut self, offset: Offset) {
        self.reached = self.reached.max(offset);
    }

    pub fn position(&self) -> LakePosition {
        LakePosition {
            partition: self.partition.0,
            next: self.next.max(self.reached).0,
            last: self.last.clone(),
            minute: self.minute.as_ref().map(|minute| UnfinishedMinute {
                from: minute.from.0,
                moves: minute.moves.iter().map(kept_moves).collect(),
            }),
        }
    }

    /// Takes the change at an offset of the topic. Returns the intervals that it has ended and begun, and the rows of the minute
    /// before, if that is over.
    pub fn apply<'a>(&mut self, offset: Offset, change: &'a Change) -> (MovedIntervals<'a>, Vec<ConcurrencyRow>) {
        // Changes are in the order of `at`; if one ever was not, its minute would be that of the one before.
        let from = LogTime(change.at.0 / MINUTE_MS * MINUTE_MS);
        let mut finished = Vec::new();
        if self.minute.as_ref().is_none_or(|minute| minute.from < from) {
            finished = self.unfinished();
            let moves = BTreeMap::new();
            self.minute = Some(Minute { from, moves });
        }
        let moved = self.open.apply(change);
        for one in &moved.ended {
            let platform = one.device.as_ref().map(|(platform, _)| platform.clone());
            self.count(platform, one.start.status, false);
        }
        for one in &moved.begun {
            let platform = one.device.map(|device| device.platform.clone());
            self.count(platform, one.status(), true);
        }
        self.last = Some(LastChange {
            offset: offset.0,
            change: id_text(change.id),
            seq: Some(change.seq),
            at: change.at.0,
            logged_at: change.logged_at.0,
        });
        self.next = Offset(offset.0 + 1);
        (moved, finished)
    }

    fn count(&mut self, platform: Option<Box<str>>, status: Status, begins: bool) {
        let Some(minute) = &mut self.minute else { return };
        let counts = self.counts.entry(platform.clone()).or_default();
        let Some(count) = counts.of(status) else { return };
        let moves = minute.moves.entry(platform).or_default();
        let moved = if begins {
            *count += 1;
            &mut moves.began
        } else {
            *count -= 1;
            &mut moves.ended
        };
        if let Some(moved) = moved.of(status) {
            *moved += 1;
        }
    }

    /// Returns the rows of the minute of the last change, as they are so far.
    pub fn unfinished(&self) -> Vec<ConcurrencyRow> {
        let Some(minute) = &self.minute else {
            return Vec::new();
        };
        let row = |(platform, moves): (&Option<Box<str>>, &Moves)| ConcurrencyRow {
            partition: self.partition,
            minute: minute.from,
            platform: platform.clone(),
            counts: self.counts.get(platform).copied().unwrap_or_default(),
            moves: *moves,
        };
        minute.moves.iter().map(row).collect()
    }
}

fn moves_of(kept: &PlatformMoves) -> (Option<Box<str>>, Moves) {
    let moves = Moves {
        began: StatusCounts {
            online: kept.online_began,
            push_online: kept.push_online_began,
        },
        ended: StatusCounts {
            online: kept.online_ended,
            push_online: kept.push_online_ended,
        },
    };
    (kept.platform.as_deref().map(Box::from), moves)
}

fn kept_moves((platform, moves): (&Option<Box<str>>, &Moves)) -> PlatformMoves {
    PlatformMoves {
        platform: platform.as_deref().map(str::to_owned),
        online_began: moves.began.online,
        online_ended: moves.ended.online,
        push_online_began: moves.began.push_online,
        push_online_ended: moves.ended.push_online,
    }
}
