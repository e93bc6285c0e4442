//! What was: a partition's changes and events, for those who ask about the past.
//!
//! A user's changes are read from the store's index where it has them, and from the change topic where it has not (a
//! store that is older than its index, or no store at all); the counts at a time from the nearest mark before it and the
//! changes from there on. What is read of the log for one question is bounded. Calls block on disk and network: call them
//! from a thread that may wait, never from one of the runtime. A worker gives the view ([`Past`]) between batches, so it
//! has committed changes only, and is not held up by what is read afterwards.

use super::QueryError;
use super::census::Census;
use super::rejected::decode;
use super::seek::{self, Point};
use crate::log::{self, Limit, Log, Range, Record};
use crate::presence::change::{Cause, Change};
use crate::presence::event::Event;
use crate::presence::state::{Phase, Slot, State, UserImage};
use crate::presence::{LogTime, Offset, Partition};
use crate::registry::{self, Schemas};
use crate::store::{self, IndexMark, IndexReader, Indexed, MARK_CHANGES, Order};
use crate::topics::Topic;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What one read returns at most.
const LIMIT: Limit = Limit {
    records: 10_000,
    bytes: 4 << 20,
};

/// Why a question about the past has no answer.
#[derive(Debug, thiserror::Error)]
pub enum PastError {
    /// Retention has removed what would have to be read. `since`: the first time that can be asked about, if there is one.
    #[error(
        "the {topic} of partition {partition} that this needs are gone (retention): {}",
        since.map_or("none are kept".to_owned(), |since| format!("the oldest ones kept are of {since}"))
    )]
    Gone {
        topic: Topic,
        partition: Partition,
        since: Option<LogTime>,
    },
    #[error(
        "this needs more than {most} records of the {topic} of partition {partition} to be read, the most for a question \
         over HTTP (--audit-records); `rollcall audit` has no such bound"
    )]
    TooMany {
        topic: Topic,
        partition: Partition,
        most: u64,
    },
    /// Rows of the index were removed while they were read.
    #[error("the index of changes of partition {partition} was cut just now; try again")]
    Cut { partition: Partition },
    /// Nobody waits for the answer any more.
    #[error("the question was aborted")]
    GivenUp,
    #[error(transparent)]
    Log(#[from] log::Error),
    #[error(transparent)]
    Store(#[from] QueryError),
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error("the change at offset {offset} of partition {partition} is unreadable: {why}")]
    Unreadable {
        partition: Partition,
        offset: Offset,
        why: String,
    },
}

impl From<store::Error> for PastError {
    fn from(error: store::Error) -> PastError {
        PastError::Store(error.into())
    }
}

/// What the index has, stored and pending.
pub(super) struct IndexView {
    pub reader: IndexReader,
    pub stored: Indexed,
    /// The pending disconnects of the user who was asked about.
    pub pending: Vec<(u64, Vec<u8>)>,
    pub marks: Vec<(u64, IndexMark)>,
}

impl IndexView {
    /// Returns the mark at the change of a number, if there is one.
    fn mark(&self, number: u64) -> Result<Option<IndexMark>, PastError> {
        match self.marks.iter().find(|(pending, _)| *pending == number) {
            Some((_, mark)) => Ok(Some(mark.clone())),
            None => Ok(self.reader.mark(number)?),
        }
    }
}

/// What is asked of a partition's past.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PastOf {
    /// The counts at a time.
    Everybody,
    /// The changes of a user.
    User(String),
    /// Those, and how the user stands now.
    UserAndStatus(String),
}

impl PastOf {
    /// Returns the user who is asked about, if it is one.
    pub fn user(&self) -> Option<&str> {
        match self {
            PastOf::Everybody => None,
            PastOf::User(user) | PastOf::UserAndStatus(user) => Some(user),
        }
    }
}

/// What the state says of a user that its changes do not: what will happen by itself, and when its devices logged in.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct UserNow {
    /// By platform and device.
    pub pending: Vec<PendingNow>,
    /// Platform, device and time of login of the devices that are logged in.
    pub logins: Vec<(Box<str>, Box<str>, LogTime)>,
}

/// A change that the deadline of a device will give unless something comes before.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PendingNow {
    pub platform: Box<str>,
    pub device: Box<str>,
    pub deadline: LogTime,
    pub cause: Cause,
}

impl UserNow {
    /// Returns the state of a user in memory.
    pub fn of_slot(state: &State, slot: Slot) -> UserNow {
        let pending = state.pending_of(slot);
        let pending = pending.iter().map(|one| PendingNow {
            platform: one.platform.into(),
            device: one.device.into(),
            deadline: one.deadline,
            cause: one.cause,
        });
        UserNow {
            pending: pending.collect(),
            logins: state.image(slot).map(|image| logins(&image)).unwrap_or_default(),
        }
    }

    /// Returns the state of a user who has no device online.
    pub fn of_away(image: &UserImage<'_>) -> UserNow {
        let pending = image.devices.iter().filter_map(|device| match device.phase {
            Phase::Away { push: true, until, .. } => Some(PendingNow {
                platform: device.platform.into(),
                device: device.device.into(),
                deadline: until,
                cause: Cause::PushExpired,
            }),
            Phase::Away { push: false, .. } | Phase::Kicked { .. } | Phase::Online { .. } => None,
        });
        UserNow {
            pending: pending.collect(),
            logins: logins(image),
        }
    }
}

fn logins(image: &UserImage<'_>) -> Vec<(Box<str>, Box<str>, LogTime)> {
    let logins = image.devices.iter().filter_map(|device| {
        let session = device.phase.session()?;
        Some((device.platform.into(), device.device.into(), session.login_at))
    });
    logins.collect()
}

/// A partition as it stood when its worker was asked, and where its past is read.
pub struct Past {
    pub(super) partition: Partition,
    pub(super) log: Arc<dyn Log>,
    pub(super) schemas: Schemas,
    pub(super) oldest: Arc<OldestChange>,
    pub(super) index: Option<IndexView>,
    pub(super) time: Option<LogTime>,
    /// How many changes there are, and the counts after them.
    pub(super) changes: u64,
    pub(super) census: Census,
    /// Every event before it is folded.
    pub(super) applied: Offset,
    /// How the user stands who was asked about, if that was asked.
    pub(super) now: Option<UserNow>,
    /// How many records of the log may be read for an answer.
    pub(super) most: u64,
    pub(super) given_up: Arc<AtomicBool>,
}

/// A point from which changes are counted on.
struct CountedUpTo {
    /// The number of the last change that is counted.
    number: u64,
    census: Census,
}

impl Past {
    /// Bounds how many records of the log are read for an answer; `given_up` becomes true when nobody waits for it any more.
    pub fn bounded(self, most: u64, given_up: Arc<AtomicBool>) -> Past {
        Past { most, given_up, ..self }
    }

    pub fn partition(&self) -> Partition {
        self.partition
    }

    /// Returns the partition's log time.
    pub fn time(&self) -> Option<LogTime> {
        self.time
    }

    /// Returns how the user stands who was asked about, if that was asked.
    pub fn user_now(&self) -> Option<&UserNow> {
        self.now.as_ref()
    }

    /// What is to be said of changes that retention has removed.
    pub fn gone(&self, since: Option<LogTime>) -> PastError {
        PastError::Gone {
            topic: Topic::Changes,
            partition: self.partition,
            since,
        }
    }

    /// Returns the oldest change that the log has, if older ones are gone; `Some(None)` if all are gone.
    pub fn first_kept(&self) -> Result<Option<Option<Change>>, PastError> {
        self.oldest.first_kept(&*self.log, &self.schemas, self.partition)
    }

    /// Returns how many of the first changes the log does not have any more.
    fn gone_changes(&self) -> Result<u64, PastError> {
        Ok(match self.first_kept()? {
            None => 0,
            Some(first) => first.map_or(self.changes, |first| first.seq - 1),
        })
    }

    /// Returns the newest changes of a user that the log still has, the newest first and at most so many. None if the index
    /// lacks some of them.
    pub fn newest_changes_of(&self, user: &str, most: usize) -> Result<Option<Vec<Change>>, PastError> {
        let Some(index) = &self.index else { return Ok(None) };
        let gone = self.gone_changes()?;
        let pending = index.pending.iter().rev().filter(|(number, _)| *number > gone);
        let pending = pending
            .take(most)
            .map(|(number, value)| self.indexed_change(*number, value));
        let mut found = pending.collect::<Result<Vec<Change>, PastError>>()?;
        if found.len() < most {
            self.visit_indexed(index, user, gone, Order::Falling, |change| {
                found.push(change);
                match found.len() < most {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            })?;
        }
        self.check_uncut(index)?;
        let lacks_some = found.len() < most && index.stored.from > gone;
        Ok((!lacks_some).then_some(found))
    }

    /// Visits the changes of a user that the index has stored and that come after those that are gone.
    fn visit_indexed(
        &self,
        index: &IndexView,
        user: &str,
        gone: u64,
        order: Order,
        mut each: impl FnMut(Change) -> ControlFlow<()>,
    ) -> Result<(), PastError> {
        let among = Indexed {
            from: index.stored.from.max(gone),
            upto: index.stored.upto,
        };
        if among.from >= among.upto {
            return Ok(());
        }
        let mut read = Ok(());
        index.reader.changes_of(user, among, order, |number, value| {
            match self.indexed_change(number, value) {
                Ok(change) => each(change),
                Err(error) => {
                    read = Err(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        read
    }

    /// Visits all changes of a user that the log still has, in order.
    pub fn changes_of(&self, user: &str, mut each: impl FnMut(&Change) -> ControlFlow<()>) -> Result<(), PastError> {
        let gone = self.gone_changes()?;
        let Some(index) = &self.index else {
            return self.scan_changes_of(user, gone, self.changes, &mut each).map(drop);
        };
        if index.stored.from > gone
            && self
                .scan_changes_of(user, gone, index.stored.from, &mut each)?
                .is_break()
        {
            return Ok(());
        }
        let mut done = ControlFlow::Continue(());
        self.visit_indexed(index, user, gone, Order::Rising, |change| {
            done = each(&change);
            done
        })?;
        self.check_uncut(index)?;
        for (number, value) in index.pending.iter().filter(|(number, _)| *number > gone) {
            if done.is_break() {
                break;
            }
            done = each(&self.indexed_change(*number, value)?);
        }
        Ok(())
    }

    /// Fails if rows were removed since the worker was asked: they would be missing in the answer.
    fn check_uncut(&self, index: &IndexView) -> Result<(), PastError> {
        // Before the first commit nothing says what the index has.
        match index.reader.indexed()? {
            Some(now) if now.from > index.stored.from => Err(PastError::Cut {
                partition: self.partition,
            }),
            Some(_) | None => Ok(()),
        }
    }

    fn indexed_change(&self, number: u64, value: &[u8]) -> Result<Change, PastError> {
        self.schemas.change(value)?.map_err(|malformed| PastError::Unreadable {
            partition: self.partition,
            offset: Offset(number),
            why: malformed.to_string(),
        })
    }

    /// Reads the changes of a user after one number and up to another from the change topic.
    fn scan_changes_of(
        &self,
        user: &str,
        after: u64,
        upto: u64,
        each: &mut impl FnMut(&Change) -> ControlFlow<()>,
    ) -> Result<ControlFlow<()>, PastError> {
        let count = upto.saturating_sub(after);
        if count > self.most {
            return Err(self.too_many(Topic::Changes));
        }
        let mut left = count;
        let mut done = ControlFlow::Continue(());
        let start = self.log.range(Topic::Changes, self.partition)?.start;
        self.read(Topic::Changes, start, |record| {
            if left == 0 {
                return Ok(ControlFlow::Break(()));
            }
            left -= 1;
            if record.key.as_deref() == Some(user.as_bytes()) {
                let change = change_of(&self.schemas, self.partition, record)?;
                if change.seq > upto {
                    return Ok(ControlFlow::Break(()));
                }
                done = each(&change);
            }
            Ok(done)
        })?;
        Ok(done)
    }

    /// Counts users and devices at a time: as the changes say that hold from then or earlier on, or with `as_known` those
    /// that were found out by then.
    pub fn census_at(&self, time: LogTime, as_known: bool) -> Result<Census, PastError> {
        let chosen = |at: LogTime, logged_at: LogTime| if as_known { logged_at } else { at };
        let kept = self.first_kept()?;
        let gone = match &kept {
            None => 0,
            Some(first) => first.as_ref().map_or(self.changes, |first| first.seq - 1),
        };
        let CountedUpTo { number, mut census } = self
            .mark_before(gone, |mark| chosen(mark.at, mark.logged_at) <= time)?
            .unwrap_or(CountedUpTo {
                number: 0,
                census: Census::default(),
            });
        if let Some(index) = &self.index {
            self.check_uncut(index)?;
        }
        if number < gone {
            let first = kept.flatten().map(|first| chosen(first.at, first.logged_at));
            // All that is gone counts only at a time that is not before the oldest change that is kept.
            return match first.filter(|first| *first <= time) {
                Some(_) => self.census_back_to(gone, |change| chosen(change.at, change.logged_at) <= time),
                None => Err(self.gone(first)),
            };
        }
        let mut left = self.most;
        let from = self.offset_near(number + 1, gone)?;
        self.read(Topic::Changes, from, |record| {
            let change = change_of(&self.schemas, self.partition, record)?;
            if change.seq <= number {
                return Ok(ControlFlow::Continue(()));
            }
            if change.seq > self.changes || chosen(change.at, change.logged_at) > time {
                return Ok(ControlFlow::Break(()));
            }
            left = left.checked_sub(1).ok_or_else(|| self.too_many(Topic::Changes))?;
            census.count(&change);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(census)
    }

    /// Counts as of the last change that counts, going back from the first mark of which the log has all later changes, or
    /// from now. `gone`: the changes up to this number are gone, and all of them count.
    fn census_back_to(&self, gone: u64, counts: impl Fn(&Change) -> bool) -> Result<Census, PastError> {
        let (upto, mut census) = match self.first_mark(gone)? {
            Some(CountedUpTo { number, census }) => (number, census),
            None => (self.changes, self.census.clone()),
        };
        let mut left = self.most;
        let mut first = gone + 1;
        let start = self.log.range(Topic::Changes, self.partition)?.start;
        self.read(Topic::Changes, start, |record| {
            let change = change_of(&self.schemas, self.partition, record)?;
            if change.seq > first {
                // Retention has removed more meanwhile, and of those nobody knows whether they count.
                return Err(self.gone(Some(change.logged_at)));
            }
            first = u64::MAX;
            if change.seq > upto {
                return Ok(ControlFlow::Break(()));
            }
            left = left.checked_sub(1).ok_or_else(|| self.too_many(Topic::Changes))?;
            if !counts(&change) {
                census.uncount(&change);
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(census)
    }

    /// Returns the last mark that counts, among those from which the log has all changes.
    fn mark_before(&self, gone: u64, counts: impl Fn(&IndexMark) -> bool) -> Result<Option<CountedUpTo>, PastError> {
        let Some(index) = &self.index else { return Ok(None) };
        let least = index.stored.from.max(gone);
        let (mut low, mut high) = (least.div_ceil(MARK_CHANGES), self.changes / MARK_CHANGES + 1);
        let mut found = None;
        // All before `low` count, none from `high` on does.
        while low < high {
            let middle = low + (high - low) / 2;
            let number = middle * MARK_CHANGES;
            match index.mark(number)?.filter(|mark| counts(mark)) {
                Some(mark) => {
                    found = Some((number, mark));
                    low = middle + 1;
                }
                None => high = middle,
            }
        }
        if found.is_none() {
            let first = index
                .mark(index.stored.from)?
                .filter(|mark| index.stored.from >= gone && counts(mark));
            found = first.map(|mark| (index.stored.from, mark));
        }
        Ok(found.and_then(|(number, mark)| {
            let census = Census::from_bytes(&mark.counts)?;
            Some(CountedUpTo { number, census })
        }))
    }

    /// Returns the first mark from which the log has all changes.
    fn first_mark(&self, gone: u64) -> Result<Option<CountedUpTo>, PastError> {
        let Some(index) = &self.index else { return Ok(None) };
        let least = index.stored.from.max(gone);
        // An index that did not begin with the first change has a mark where it begins.
        let begin = (least == index.stored.from).then_some(least);
        for number in begin.into_iter().chain([least.div_ceil(MARK_CHANGES) * MARK_CHANGES]) {
            if let Some(census) = index.mark(number)?.and_then(|mark| Census::from_bytes(&mark.counts)) {
                return Ok(Some(CountedUpTo { number, census }));
            }
        }
        Ok(None)
    }

    /// Returns where the change of a number is in the topic, or an offset a little before it. `gone`: the changes up to this number are
    /// gone.
    fn offset_near(&self, number: u64, gone: u64) -> Result<Offset, PastError> {
        let Range { start, end } = self.log.range(Topic::Changes, self.partition)?;
        if number > self.changes {
            return Ok(end);
        }
        let point = |offset: Offset, number| Point {
            offset: offset.0,
            number,
        };
        let near = seek::offset_near(number, point(start, gone + 1), point(end, self.changes + 1), |among| {
            self.first_among(among)
        });
        near.map(Offset)
    }

    /// Returns the first change at or after an offset and before another.
    fn first_among(&self, among: std::ops::Range<u64>) -> Result<Option<Point>, PastError> {
        if self.given_up.load(Ordering::Relaxed) {
            return Err(PastError::GivenUp);
        }
        let record = first_record(&*self.log, Topic::Changes, self.partition, Offset(among.start))?;
        let Some(record) = record.filter(|record| record.offset.0 < among.end) else {
            return Ok(None);
        };
        let change = change_of(&self.schemas, self.partition, &record)?;
        Ok(Some(Point {
            offset: record.offset.0,
            number: change.seq,
        }))
    }

    /// Visits all events in order, up to what the partition has folded: offset, timestamp, and the event, `None` for a
    /// malformed record.
    pub fn events(
        &self,
        mut each: impl FnMut(Offset, u64, Option<&Event<'_>>) -> ControlFlow<()>,
    ) -> Result<(), PastError> {
        let all = |_: &Record| true;
        self.events_from(Offset(0), self.applied, all, |record, event| {
            each(record.offset, record.ts, event)
        })
    }

    /// Visits the events from an offset up to another, which is not included. `each` gets no event of a record that is malformed,
    /// or that is not wanted. Fails if some of them are gone.
    fn events_from(
        &self,
        from: Offset,
        before: Offset,
        is_wanted: impl Fn(&Record) -> bool,
        mut each: impl FnMut(&Record, Option<&Event<'_>>) -> ControlFlow<()>,
    ) -> Result<(), PastError> {
        self.has_events_from(from)?;
        let partitions = self.log.partitions();
        let mut left = self.most;
        self.read(Topic::Events, from, |record| {
            if record.offset >= before {
                return Ok(ControlFlow::Break(()));
            }
            left = left.checked_sub(1).ok_or_else(|| self.too_many(Topic::Events))?;
            if !is_wanted(record) {
                return Ok(each(record, None));
            }
            let learned = self.schemas.learn([record.framed()])?;
            let event = decode(record, self.partition, partitions, &learned);
            Ok(each(record, event.as_ref().ok()))
        })
    }

    /// Returns the event at an offset, with the timestamp of its record; none if there is no such record, or it is malformed.
    pub fn event_at<T>(&self, offset: Offset, each: impl FnOnce(u64, &Event<'_>) -> T) -> Result<Option<T>, PastError> {
        let start = self.log.range(Topic::Events, self.partition)?.start;
        if offset < start || offset >= self.applied {
            return Ok(None);
        }
        let record = first_record(&*self.log, Topic::Events, self.partition, offset)?;
        let Some(record) = record.filter(|record| record.offset == offset) else {
            return Ok(None);
        };
        let learned = self.schemas.learn([record.framed()])?;
        let event = decode(&record, self.partition, self.log.partitions(), &learned);
        Ok(event.ok().map(|event| each(record.ts, &event)))
    }

    /// Visits the records between two others, neither of them included, in order: the timestamp, and the event if it is one of
    /// the user's. Fails if some of them are gone.
    pub fn events_between(
        &self,
        after: Offset,
        before: Offset,
        user: &str,
        each: &mut dyn FnMut(u64, Option<&Event<'_>>) -> ControlFlow<()>,
    ) -> Result<(), PastError> {
        // The key of an event of one user is that user, or the record is malformed.
        let of_user = |record: &Record| record.key.as_deref() == Some(user.as_bytes());
        self.events_from(Offset(after.0 + 1), before, of_user, |record, event| {
            each(record.ts, event)
        })
    }

    /// Fails if the event at an offset, or one after it, is gone.
    fn has_events_from(&self, from: Offset) -> Result<(), PastError> {
        let start = self.log.range(Topic::Events, self.partition)?.start;
        if start <= from {
            return Ok(());
        }
        let first = first_record(&*self.log, Topic::Events, self.partition, start)?;
        Err(PastError::Gone {
            topic: Topic::Events,
            partition: self.partition,
            since: first.map(|record| LogTime(record.ts)),
        })
    }

    fn too_many(&self, topic: Topic) -> PastError {
        PastError::TooMany {
            topic,
            partition: self.partition,
            most: self.most,
        }
    }

    fn read(
        &self,
        topic: Topic,
        from: Offset,
        mut each: impl FnMut(&Record) -> Result<ControlFlow<()>, PastError>,
    ) -> Result<(), PastError> {
        let end = self.log.range(topic, self.partition)?.end;
        let mut next = from;
        let mut records = Vec::new();
        while next < end {
            if self.given_up.load(Ordering::Relaxed) {
                return Err(PastError::GivenUp);
            }
            records.clear();
            self.log.read(topic, self.partition, next, LIMIT, &mut records)?;
            let Some(last) = records.last() else { break };
            next = Offset(last.offset.0 + 1);
            for record in &records {
                if each(record)?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

fn change_of(schemas: &Schemas, partition: Partition, record: &Record) -> Result<Change, PastError> {
    schemas
        .change(&record.value)?
        .map_err(|malformed| PastError::Unreadable {
            partition,
            offset: record.offset,
            why: malformed.to_string(),
        })
}

/// The oldest change of a partition that the log has, which is read again only after retention has moved the start of the topic.
#[derive(Default)]
pub(super) struct OldestChange {
    /// The start, and the change there.
    known: Mutex<Option<(Offset, Change)>>,
}

impl OldestChange {
    /// Returns the oldest change that the log has, if older ones are gone; `Some(None)` if all are gone.
    pub fn first_kept(
        &self,
        log: &dyn Log,
        schemas: &Schemas,
        partition: Partition,
    ) -> Result<Option<Option<Change>>, PastError> {
        let start = log.range(Topic::Changes, partition)?.start;
        if start == Offset(0) {
            return Ok(None);
        }
        let known = self.known().clone();
        if let Some((_, change)) = known.filter(|(at, _)| *at == start) {
            return Ok(Some(Some(change)));
        }
        let Some(record) = first_record(log, Topic::Changes, partition, start)? else {
            return Ok(Some(None));
        };
        let change = change_of(schemas, partition, &record)?;
        *self.known() = Some((start, change.clone()));
        Ok(Some(Some(change)))
    }

    fn known(&self) -> MutexGuard<'_, Option<(Offset, Change)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the first record from an offset on.
fn first_record(log: &dyn Log, topic: Topic, partition: Partition, from: Offset) -> Result<Option<Record>, PastError> {
    let one = Limit { records: 1, bytes: 1 };
    let mut records = Vec::new();
    log.read(topic, partition, from, one, &mut records)?;
    Ok(records.into_iter().next())
}
