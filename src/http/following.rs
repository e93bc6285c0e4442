//! Where a subscription is in a topic: what it is shown next, and the cursor after it.
//!
//! One that is near the end takes what it is shown from the [tail](super::tail); one that is further behind reads the
//! log. Here is no clock, no task and nothing of HTTP: [`follow`](super::follow) waits and writes the stream. The
//! simulator takes the same steps, among failing reads and processes that die (`sim/followers.rs`).

use super::ApiError;
use super::tail::{ShownRecord, Tail, TailSubscription, Taken, show};
use crate::api::cursor::Cursor;
use crate::engine::planted::planted;
use crate::log::{self, Limit, Log, Range};
use crate::presence::{Offset, Partition};
use crate::registry::Schemas;
use crate::topics::Topic;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use tokio::sync::Notify;

/// The limit of one read of one partition. A subscription keeps what it has read until it is shown: on Kafka, reading from the middle
/// of what was read is a new fetch.
const READ: Limit = Limit {
    records: 128,
    bytes: 16 << 10,
};
/// `latest-50` starts 50 records before the end of each partition, or at its oldest record.
const BEFORE_LATEST: &str = "latest-";
const BACK_MAX: u64 = 1_000;

/// Returns the cursor at which a subscription starts, and the end of each partition.
///
/// It starts at the end (`latest`, or no cursor), at the oldest record (`earliest`), some records before the end
/// (`latest-N`), or at a given cursor if the log still has its records.
pub fn start(
    log: &dyn Log,
    topic: Topic,
    followed: &BTreeSet<Partition>,
    after: Option<&str>,
) -> Result<(Cursor, Cursor), ApiError> {
    let mut ranges = Vec::new();
    for partition in followed {
        ranges.push((*partition, log.range(topic, *partition)?));
    }
    let oldest = || {
        Cursor(
            ranges
                .iter()
                .map(|(partition, range)| (*partition, range.start))
                .collect(),
        )
    };
    let ends = Cursor(
        ranges
            .iter()
            .map(|(partition, range)| (*partition, range.end))
            .collect(),
    );
    let given = match after {
        None | Some("latest") => return Ok((ends.clone(), ends)),
        Some("earliest") => return Ok((oldest(), ends)),
        Some(text) if text.starts_with(BEFORE_LATEST) => {
            let back = text[BEFORE_LATEST.len()..].parse().ok();
            let back: u64 = back.filter(|back| *back <= BACK_MAX).ok_or_else(|| {
                let message = format!(
                    "{text:?} is not a cursor: `{BEFORE_LATEST}` must be followed by a number up to \
                                       {BACK_MAX}"
                );
                ApiError::bad_request("bad_cursor", message)
            })?;
            let before = |range: &Range| Offset(range.end.0.saturating_sub(back).max(range.start.0));
            let cursor = ranges.iter().map(|(partition, range)| (*partition, before(range)));
            return Ok((Cursor(cursor.collect()), ends));
        }
        Some(text) => Cursor::parse(text).ok_or_else(|| {
            let message =
                format!("{text:?} is not a cursor: expected text such as 0:12,1:7, or `earliest` or `latest`");
            ApiError::bad_request("bad_cursor", message)
        })?,
    };
    let mut cursor = Cursor::default();
    for (partition, range) in &ranges {
        let Some(next) = given.0.get(partition) else {
            let message = format!("the cursor lacks partition {partition}, which is followed");
            return Err(ApiError::bad_request("bad_cursor", message));
        };
        if *next < range.start {
            return Err(ApiError::gone(oldest().to_string()));
        }
        if *next > range.end {
            let message = format!(
                "the cursor is ahead of partition {partition}, which ends at {}",
                range.end
            );
            return Err(ApiError::bad_request("bad_cursor", message));
        }
        let skips = planted!(CursorSkips) && *next < range.end;
        cursor.0.insert(*partition, Offset(next.0 + u64::from(skips)));
    }
    Ok((cursor, ends))
}

/// See the module.
pub struct Following {
    topic: Topic,
    /// The users or gateways that are followed; empty means all.
    keys: Arc<BTreeSet<Vec<u8>>>,
    cursor: Cursor,
    places: TailSubscription,
    /// The partition that was read last, so that no partition has to wait until the others are quiet.
    turn: Partition,
    /// What was read and is not shown yet.
    rest: Option<ShownBatch>,
}

/// What a subscription does next.
pub enum Next {
    /// It waits until it is woken: there is no more at the moment.
    Wait,
    /// It shows these, which the tail has.
    Show(ShownBatch),
    /// It reads the log.
    Read(LogRead),
}

/// Records of one partition, to be shown.
pub struct ShownBatch {
    pub partition: Partition,
    shown: Vec<Arc<ShownRecord>>,
    /// Where the subscription is after them.
    end: Offset,
    has_more: bool,
    /// None of the records that were read is for this subscription.
    pub is_passed: bool,
}

/// A read of the log for one subscription.
pub struct LogRead {
    topic: Topic,
    partition: Partition,
    next: Offset,
    keys: Arc<BTreeSet<Vec<u8>>>,
    cursor: Cursor,
}

impl Following {
    /// Begins at a cursor. `ends` are the ends of the partitions, which [`start`] returned with it.
    pub fn begin(
        tail: Arc<Tail>,
        topic: Topic,
        (cursor, ends): (Cursor, Cursor),
        keys: Arc<BTreeSet<Vec<u8>>>,
    ) -> Following {
        Following {
            topic,
            cursor,
            places: TailSubscription::begin(tail, ends.0.into_iter().collect(), keys.clone()),
            keys,
            // The next partition after the last possible one is the first.
            turn: Partition(u32::MAX),
            rest: None,
        }
    }

    /// Returns where the subscription is: everything before it was shown.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }

    /// Returns what is notified when something arrives that this subscription follows.
    pub fn woken(&self) -> &Notify {
        &self.places.subscriber.woken
    }

    /// Returns what to do next, for about so many bytes of records.
    pub fn next(&mut self, bytes: usize) -> Next {
        if let Some(rest) = self.rest.take() {
            return Next::Show(rest);
        }
        loop {
            let Some(partition) = self.places.subscriber.take_dirty(self.turn) else {
                return Next::Wait;
            };
            self.turn = partition;
            let Some(next) = self.cursor.0.get(&partition).copied() else {
                continue;
            };
            return match self.places.tail().take(partition, next, &self.keys, bytes) {
                Taken::Here(shown, end, has_more) => Next::Show(ShownBatch {
                    partition,
                    shown,
                    end,
                    has_more,
                    is_passed: false,
                }),
                Taken::Behind => Next::Read(LogRead {
                    topic: self.topic,
                    partition,
                    next,
                    keys: self.keys.clone(),
                    cursor: self.cursor.clone(),
                }),
            };
        }
    }

    /// Moves over a batch: calls `each` with every record and the cursor after it, until that breaks. The records after it come next.
    pub fn show(&mut self, batch: ShownBatch, mut each: impl FnMut(&ShownRecord, &Cursor) -> ControlFlow<()>) {
        let ShownBatch {
            partition,
            shown,
            end,
            has_more,
            is_passed: _,
        } = batch;
        let mut shown = shown.into_iter();
        for shown in shown.by_ref() {
            self.cursor.0.insert(partition, Offset(shown.offset.0 + 1));
            if each(&shown, &self.cursor).is_break() {
                break;
            }
        }
        if shown.len() > 0 {
            self.rest = Some(ShownBatch {
                partition,
                shown: shown.collect(),
                end,
                has_more,
                is_passed: false,
            });
            return;
        }
        let next = self.cursor.0.entry(partition).or_insert(end);
        *next = end.max(*next);
        if has_more {
            self.places.subscriber.mark(partition);
        }
    }

    /// Moves the cursor past records that do not concern this subscription. Returns whether it moved.
    pub fn advance(&mut self) -> bool {
        let mut moved = false;
        for (partition, next) in &mut self.cursor.0 {
            let end = self.places.tail().end_for(*partition, &self.places.subscriber);
            if let Some(end) = end.filter(|end| *end > *next) {
                *next = end;
                moved = true;
            }
        }
        moved
    }
}

impl ShownBatch {
    /// Returns where the subscription is after it.
    pub fn end(&self) -> Offset {
        self.end
    }
}

impl LogRead {
    /// Returns what it reads, and from where.
    pub fn begins_at(&self) -> (Partition, Offset) {
        (self.partition, self.next)
    }

    /// Reads what comes next of the records that the subscription follows. Waits for the log.
    pub fn read(self, log: &dyn Log, schemas: &Schemas) -> Result<ShownBatch, ApiError> {
        let LogRead {
            topic,
            partition,
            next,
            keys,
            mut cursor,
        } = self;
        let mut records = Vec::new();
        match log.read(topic, partition, next, READ, &mut records) {
            Ok(()) => {}
            Err(log::Error::Gone { start, .. }) => {
                cursor.0.insert(partition, start);
                return Err(ApiError::gone(cursor.to_string()));
            }
            Err(error) => return Err(ApiError::from(error)),
        }
        let end = records.last().map_or(next, |last| Offset(last.offset.0 + 1));
        let is_wanted = |key: &Option<Vec<u8>>| keys.is_empty() || key.as_ref().is_some_and(|key| keys.contains(key));
        let wanted = records.iter().filter(|record| is_wanted(&record.key));
        let shown = wanted.map(|record| show(topic, record, schemas).map(Arc::new));
        let shown: Vec<Arc<ShownRecord>> = shown.collect::<Result<_, _>>()?;
        Ok(ShownBatch {
            partition,
            is_passed: end != next && shown.is_empty(),
            shown,
            end,
            has_more: end != next,
        })
    }
}
