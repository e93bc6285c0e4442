//! The partition processor: takes one partition's records from the log through the fold into log and store, one batch
//! at a time.
//!
//! | step | what |
//! |---|---|
//! | poll | records from the log, under a count and a byte limit |
//! | decode | bytes to an event, or to a quarantine record with the reason |
//! | fetch | users that are named or due and not in memory, from the store |
//! | fold | outputs, per record |
//! | commit log | outputs and position in one atomic step |
//! | commit store | what changed and the applied position: later than the log, never earlier |
//!
//! Start, recovery and live processing share this path: what the log already has is folded silently ([`Outbox`]).

mod commit;
mod inspect;
mod opening;

pub(super) use opening::input_of;
pub use opening::{NotTakenOver, check_stores};

use super::census::Census;
use super::current;
use super::headers::HeaderWriter;
use super::locations::UserLocations;
use super::outbox::Outbox;
use super::outcomes::Kept;
use super::rejected::{Groups, Rejected, decode};
use super::traced::TracedRecords;
use super::{Error, RevisionAt, Tuning};
use crate::clock::Clock;
use crate::failpoint;
use crate::log::{self, Limit, PartitionHandle, Position, Record, StandbyPartition};
use crate::metrics;
use crate::presence::ahead::USERS_AHEAD;
use crate::presence::change::{IgnoreReason, Output, OutputId};
use crate::presence::deadlines::Upto;
use crate::presence::event::Event;
use crate::presence::state::{Slot, State};
use crate::presence::{LogTime, Offset, Partition};
use crate::registry::{LearnedSchemas, Schemas};
use crate::schema::avro::{self, Quarantined, Schema};
use crate::store::{self, DueKey, Store, UserLocation};
use crate::traces::Parent;
use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// The users of so many records are fetched before these are folded: enough that few blocks of the store are read twice, few
/// enough that what is looked up here is still in the processor's caches when the records are folded.
const RECORDS_AHEAD: usize = 2_048;

/// One partition: its log, its store, and its state in memory.
pub struct PartitionProcessor {
    partition: Partition,
    log: PartitionHandle,
    clock: Arc<dyn Clock>,
    tuning: Tuning,
    /// `None`: everything stays in memory and is folded from the log at the start.
    store: Option<Store>,
    state: State,
    outbox: Outbox,
    /// The next record to fold.
    next: Offset,
    /// How many outputs of that record the state has already given. Not 0 only after a start from a store that was
    /// committed inside of a record.
    resumed_outputs: u64,
    /// Where the store keeps each user in memory, by slot.
    places: UserLocations,
    /// Users forgotten since the last commit of the store, which may still have them.
    gone: HashMap<Box<str>, UserLocation>,
    /// Every user up to here, in the store's order of deadlines, has been in memory since becoming due.
    due_seen: DueKey,
    /// No row of the store after `due_seen` has an earlier deadline than this.
    due_next: Option<LogTime>,
    /// Users in memory without a device online, the oldest entry first.
    cached: VecDeque<Slot>,
    /// The policy in force as the store keeps it, with the record that put it in force.
    policy: Option<(Option<Offset>, String)>,
    /// How many records were folded since the last commit of the store.
    folded_since: u64,
    store_committed_ms: u64,
    /// The position of the last commit of the store, while it may not survive the death of the process yet. The log keeps
    /// what the store would need then.
    unflushed: Option<Offset>,
    /// When the last commit of the log ended, and when the last one began.
    log_committed_ms: u64,
    log_began_ms: u64,
    batch: Vec<Record>,
    /// The record that is being folded.
    folding: Option<Offset>,
    /// The users that changed in the part of a record folded last, for a log that keeps the newest state of users.
    touched: Vec<Touched>,
    traced: TracedRecords,
}

/// A user that changed.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Touched {
    user: Box<str>,
    /// The index of the change among the outputs of its record.
    index: u64,
    is_of_event: bool,
}

/// The result of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Step {
    /// How many records were folded; 0: the end of the log.
    pub records: usize,
    /// Whether a tick was among them.
    pub saw_tick: bool,
}

impl PartitionProcessor {
    /// Uses a registry's schemas too, for reading and writing.
    pub fn with_schemas(mut self, schemas: Schemas) -> PartitionProcessor {
        self.outbox.schemas = schemas;
        self
    }

    /// Writes headers with outputs if the log keeps them, and CloudEvents attributes if a source is given.
    pub fn with_headers(mut self, source: Option<Arc<str>>) -> PartitionProcessor {
        // A standby writes no outputs.
        let keeps_headers = match &self.log {
            PartitionHandle::Owned(log) => log.keeps_headers(),
            PartitionHandle::Standby(_) => false,
        };
        self.outbox.headers = keeps_headers.then(|| HeaderWriter::new(source));
        self
    }

    /// Keeps the outcomes of records while this count, of publishers that ask for them, is not 0.
    pub fn with_outcomes(mut self, wanted: Arc<AtomicUsize>) -> PartitionProcessor {
        self.outbox.outcomes.want_by(wanted);
        self
    }

    /// The log's partition, as this process has it.
    pub fn log(&self) -> &PartitionHandle {
        &self.log
    }

    /// Asks the log whether this process still owns the partition. A standby has nothing to ask.
    pub fn confirm(&mut self) -> Result<(), Error> {
        match &mut self.log {
            PartitionHandle::Owned(log) => Ok(log.confirm()?),
            PartitionHandle::Standby(_) => Ok(()),
        }
    }

    pub(super) fn outcomes(&self) -> &Kept {
        &self.outbox.outcomes
    }

    pub fn state(&self) -> &State {
        &self.state
    }

    pub fn census(&self) -> &Census {
        &self.outbox.census
    }

    /// Returns how many events and heartbeats had no effect, in the order of `IgnoreReason::ALL`, and the malformed
    /// records.
    pub fn without_effect(&self) -> (&[u64; IgnoreReason::ALL.len()], &Groups) {
        (&self.outbox.ignored, &self.outbox.rejected)
    }

    /// Returns the malformed records since the last call.
    pub fn take_unwarned(&mut self) -> Groups {
        std::mem::take(&mut self.outbox.unwarned)
    }

    /// The position of the last commit known to have succeeded.
    pub fn committed(&self) -> Position {
        self.outbox.committed()
    }

    /// The next record to fold: everything before it is applied.
    pub fn applied(&self) -> Offset {
        self.next
    }

    /// The record whose folding has begun and not ended, for a caller that has caught a panic.
    pub fn folding(&self) -> Option<Offset> {
        self.folding
    }

    /// Whether the log has committed everything that the state includes, so that the state may be shown. A state in
    /// the middle of a record is not settled, even if the record has no outputs: folding failed there, or the store
    /// was committed there.
    pub fn is_settled(&self) -> bool {
        self.outbox.is_settled() && self.state.offset().is_none_or(|offset| offset < self.next)
    }

    /// Whether everything in the log that was committed before has been folded again.
    pub fn is_caught_up(&self) -> bool {
        self.next >= self.outbox.committed().next && !self.outbox.is_behind_tail()
    }

    /// Folds the next batch.
    pub fn step(&mut self, limit: Limit) -> Result<Step, Error> {
        if self.outbox.has_failed() {
            self.commit_log()?;
        }
        let mut records = std::mem::take(&mut self.batch);
        records.clear();
        let committed_records = match &self.log {
            PartitionHandle::Owned(_) => u64::MAX,
            PartitionHandle::Standby(standby) => follow_owner(&**standby, &mut self.outbox, self.next)?,
        };
        if committed_records > 0 {
            let records_max = usize::try_from(committed_records).unwrap_or(usize::MAX);
            let limit = Limit {
                records: limit.records.min(records_max),
                ..limit
            };
            self.read(limit, &mut records)?;
        }
        match &self.log {
            PartitionHandle::Standby(_) => {
                let committed = self.outbox.committed().next;
                records.truncate(records.partition_point(|record| record.offset < committed));
            }
            PartitionHandle::Owned(log) => {
                let events = log.events();
                if records.is_empty() && events.is_at_end() && !self.is_caught_up() {
                    let (partition, next, end) = (self.partition, self.next, events.range()?.end);
                    if end <= next {
                        return Err(Error::EventsMissing { partition, next, end });
                    }
                }
            }
        }
        let mut ahead = self.cut_ahead(&mut records);
        if !records.is_empty() {
            failpoint::reach("poll");
        }
        // This is done before anything is folded, so that a retry reads the same records.
        let learned = self.outbox.schemas.learn(records.iter().map(Record::framed));
        let step = learned.inspect_err(|_| metrics::registry_failed()).map_err(Error::from);
        let step = step.and_then(|learned| {
            if learned.values() < records.len() {
                // The next batch has the others.
                records.truncate(learned.values());
                ahead = None;
            }
            let (step, halt) = self.fold_batch(&records, &learned)?;
            ahead = halt.or(ahead.take());
            Ok(step)
        });
        self.batch = records;
        let step = step?;
        let ripe = self
            .commit_due_ms()
            .is_some_and(|due_ms| due_ms <= self.clock.monotonic_ms());
        if ripe && !planted!(StoreBeforeLog) {
            self.commit_log()?;
        }
        if self.folded_since >= self.tuning.store_commit_records
            || self.state.changed_users() >= self.tuning.store_commit_users
            || self.index_is_full()
            || (self.folded_since > 0 && self.is_over(self.store_committed_ms, self.tuning.store_commit_ms))
        {
            self.commit_store_at(self.state.time())?;
        }
        match ahead {
            Some(error) if step.records == 0 => Err(error),
            _ => Ok(step),
        }
    }

    fn read(&mut self, limit: Limit, records: &mut Vec<Record>) -> Result<(), Error> {
        let events = self.log.events_mut();
        events.follows(self.outbox.input.and_then(|input| input.last));
        events.read(self.next, limit, records).map_err(|error| match error {
            log::Error::Gone { wanted, start, .. } => Error::Behind {
                partition: self.partition,
                wanted,
                start,
            },
            error => Error::Log(error),
        })
    }

    /// Removes from a batch the first record that is too far ahead of the wall clock and all records after it. Returns
    /// an error about the first. Records before the committed position were accepted earlier and stay.
    fn cut_ahead(&self, records: &mut Vec<Record>) -> Option<Error> {
        let bound_ms = self.tuning.ahead_ms?;
        let now_ms = self.clock.now_ms();
        let committed = self.outbox.committed().next;
        let first = records.iter().position(|record| {
            record.ts > now_ms.saturating_add(bound_ms)
                && record.offset >= committed
                && self.tuning.accepted != Some((self.partition, record.offset))
                // Log time has already reached the record's time.
                && self.state.time().is_none_or(|time| record.ts > time.0)
        })?;
        let record = &records[first];
        let error = Error::Ahead {
            partition: self.partition,
            offset: record.offset,
            ts: record.ts,
            ahead_ms: record.ts - now_ms,
            bound_ms,
        };
        records.truncate(first);
        Some(error)
    }

    fn is_over(&self, since_ms: u64, span_ms: u64) -> bool {
        self.clock.monotonic_ms().saturating_sub(since_ms) >= span_ms
    }

    /// Folds the records. The returned error says at which record folding stopped, if it did not reach the last one.
    fn fold_batch(&mut self, mut records: &[Record], learned: &LearnedSchemas) -> Result<(Step, Option<Error>), Error> {
        self.outbox.outcomes.begin(self.next);
        let partitions = self.log.partitions();
        let mut step = Step::default();
        let mut decoded: Vec<_> = records
            .iter()
            .map(|record| decode(record, self.partition, partitions, learned))
            .collect();
        let events = decoded.iter().enumerate();
        let newest = self.tuning.revision;
        let mut unknown = events.filter_map(|(at, event)| Some((at, event.as_ref().ok()?.unknown_revision(newest)?)));
        let unknown = unknown.next();
        if planted!(RevisionSkipped)
            && let Some((at, _)) = unknown
        {
            decoded[at] = Ok(Event::Tick);
        }
        let halt = unknown.filter(|_| !planted!(RevisionSkipped)).map(|(at, revision)| {
            let offset = records[at].offset;
            records = &records[..at];
            decoded.truncate(at);
            Error::UnknownRevision {
                partition: self.partition,
                at: RevisionAt::Record(offset),
                revision,
                newest,
            }
        });
        if self.store.is_some()
            && let Some(last) = records.iter().map(|record| record.ts).max()
        {
            let last = LogTime(last).max(self.state.time().unwrap_or_default());
            self.fetch_due(last)?;
        }
        for (records, decoded) in records.chunks(RECORDS_AHEAD).zip(decoded.chunks(RECORDS_AHEAD)) {
            if self.store.is_some() {
                // Whom the records before have forgotten is not fetched again.
                self.note_gone();
                self.fetch_named(decoded.iter().filter_map(|event| event.as_ref().ok()))?;
            }
            failpoint::reach("fetch");
            for (number, (record, event)) in records.iter().zip(decoded).enumerate() {
                if number % USERS_AHEAD == 0 {
                    let next = decoded[number..].iter().take(USERS_AHEAD).flatten();
                    self.state.look_ahead(next.filter_map(Event::user));
                }
                self.fold_record(record, event.as_ref(), &decoded[number..])?;
                step.records += 1;
                step.saw_tick |= matches!(event, Ok(Event::Tick));
            }
        }
        if !records.is_empty() {
            failpoint::reach("fold");
        }
        self.note_gone();
        match &self.log {
            PartitionHandle::Owned(_) => metrics::folded(step.records),
            PartitionHandle::Standby(_) => {}
        }
        Ok((step, halt))
    }

    /// `rest` has the events whose users were fetched, from this one on.
    fn fold_record(
        &mut self,
        record: &Record,
        event: Result<&Event<'_>, &Rejected>,
        rest: &[Result<Event<'_>, Rejected>],
    ) -> Result<(), Error> {
        self.folding = Some(record.offset);
        if let Some(headers) = &mut self.outbox.headers {
            headers.begin(record);
        }
        self.begin_span(record);
        failpoint::fold_record(record.offset.0);
        let resumed = std::mem::take(&mut self.resumed_outputs);
        let before = self.state.time();
        if resumed == 0 {
            let tick = planted!(TickMovesTime) && matches!(event, Ok(Event::Tick));
            self.state.begin(record.offset, record.ts + u64::from(tick));
        } else {
            self.state.resume(record.offset, resumed);
        }
        let time = self.state.time();
        // More users may be due than fit into memory at once. They fire in slices, and each is committed before the
        // next.
        while time.is_some_and(|time| self.may_be_due(time)) {
            let full = self.fetch_due(time.unwrap_or_default())?;
            if full {
                let upto = self.due_seen.clone();
                self.fold_part(time, |state, out| {
                    state.fire(
                        Some(Upto {
                            deadline: upto.time,
                            user: &upto.user,
                        }),
                        out,
                    );
                })?;
                let outputs = self.state.outputs_of_record();
                // Silent removals give no output. They leave the position and its time where they were: a process that
                // starts there makes the removals before this record advances log time.
                let at = if outputs > 0 { time } else { before };
                if outputs > 0 {
                    self.next = record.offset;
                    self.resumed_outputs = outputs;
                }
                self.commit_store_at(at)?;
                self.resumed_outputs = 0;
                // The commit may have evicted users that later events of this batch name.
                self.fetch_named(rest.iter().filter_map(|event| event.as_ref().ok()))?;
            }
        }
        let applied = event.ok().filter(|_| !failpoint::alters("skipped-event"));
        self.fold_part(time, |state, out| {
            state.fire(None, out);
            state.apply(applied, out);
        })?;
        if let Err(rejected) = event {
            let quarantined = Quarantined {
                partition: self.partition,
                offset: record.offset,
                ts: record.ts,
                error: Cow::Borrowed(&rejected.error),
                key: record.key.as_deref().map(Cow::Borrowed),
                value: (!record.is_null).then_some(Cow::Borrowed(&record.value)),
            };
            let mut datum = Vec::with_capacity(record.value.len() + 256);
            avro::write_quarantined_datum(&quarantined, &mut datum);
            self.outbox.quarantine(record.offset, rejected, &datum, &mut self.log)?;
        }
        self.next = Offset(record.offset.0 + 1);
        self.folding = None;
        self.folded_since += 1;
        if self.traced.is_open() {
            let (at, outputs) = ((self.partition, record.offset), self.state.outputs_of_record());
            self.traced.folded(at, event, outputs, self.clock.since_1970());
        }
        self.outbox.read(record, self.state.revision());
        self.outbox.pass(self.next, 0, self.state.time())
    }

    /// Notes that the fold of a traced record begins. Records whose outputs the log has already had their spans.
    fn begin_span(&mut self, record: &Record) {
        let parent = record.traceparent().and_then(Parent::of);
        if let Some(parent) = parent.filter(|_| self.outbox.gives_out(record.offset)) {
            self.traced.begin(parent, self.clock.since_1970());
        }
    }

    fn fold_part(
        &mut self,
        time: Option<LogTime>,
        part: impl FnOnce(&mut State, crate::presence::fold::Out<'_>),
    ) -> Result<(), Error> {
        let PartitionProcessor {
            state,
            outbox,
            log,
            touched,
            ..
        } = self;
        let keeps_newest = match log {
            PartitionHandle::Owned(log) => log.keeps_newest(),
            PartitionHandle::Standby(_) => false,
        };
        let mut failed = None;
        part(state, &mut |output| {
            if keeps_newest
                && let Output::Change(change) = &output
                && outbox.is_of_the_rest(change.id)
            {
                touched.push(Touched {
                    user: change.user.clone(),
                    index: change.id.index,
                    is_of_event: change.evidence == change.id.offset,
                });
            }
            if failed.is_none()
                && let Err(error) = outbox.take(output, time, log)
            {
                failed = Some(error);
            }
        });
        self.gather_current();
        failed.map_or(Ok(()), Err)
    }

    /// Gathers the newest state of every user that the last part changed. For a record that was half committed before,
    /// it gathers all of its users: a state that was sent before may not include this change.
    fn gather_current(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        touched.sort_unstable();
        // Keeps the last change of each user.
        touched.reverse();
        touched.dedup_by(|later, first| later.user == first.user);
        touched.reverse();
        let offset = self.state.offset().unwrap_or_default();
        for Touched {
            user,
            index,
            is_of_event,
        } in touched.drain(..)
        {
            let image = self.state.slot_of(&user).and_then(|slot| self.state.image(slot));
            let value = image.map(|image| {
                let state = current::user_state(&image, self.partition, offset);
                let mut value = Vec::new();
                self.outbox.schemas.frame(Schema::UserState, &mut value);
                avro::write_user_state_datum(&state, &mut value);
                value
            });
            let by = OutputId {
                partition: self.partition,
                offset,
                index,
            };
            self.outbox.current(user, value, by, is_of_event);
        }
        self.touched = touched;
    }

    /// Brings users named in events into memory.
    fn fetch_named<'e>(&mut self, events: impl Iterator<Item = &'e Event<'e>>) -> Result<(), Error> {
        let mut named = Vec::new();
        for event in events {
            event.for_each_user(|user| named.push(user));
        }
        let mut missing = Vec::new();
        for users in named.chunks(USERS_AHEAD) {
            self.state.look_ahead(users.iter().copied());
            let unknown = |user: &&str| self.state.slot_of(user).is_none() && !self.is_gone(user);
            missing.extend(users.iter().copied().filter(unknown));
        }
        missing.sort_unstable();
        missing.dedup();
        for part in missing.chunks(self.tuning.fetch_users) {
            self.fetch(part)?;
        }
        Ok(())
    }

    fn fetch(&mut self, users: &[&str]) -> Result<(), Error> {
        let Some(store) = &self.store else { return Ok(()) };
        let values = store.get_away(users.iter().copied())?;
        for (user, value) in users.iter().zip(&values) {
            if let Some(value) = value {
                let (image, place) = store::read_away(user, value).ok_or(Error::Unreadable)?;
                let slot = self.state.admit(&image);
                self.places.set(slot, place);
                self.cached.push_back(slot);
            }
        }
        Ok(())
    }

    /// Whether the store may have a user that is due by a time.
    fn may_be_due(&self, upto: LogTime) -> bool {
        self.due_next
            .is_some_and(|next| next < upto || (next == upto && !planted!(LateDeadline)))
    }

    /// Whether a user was forgotten, so that the store's data about the user is out of date.
    fn is_gone(&self, user: &str) -> bool {
        self.gone.contains_key(user) && !planted!(OverlayForgotten)
    }

    /// Brings users that are due by a time into memory, a limited number at once. Returns whether there may be more.
    fn fetch_due(&mut self, upto: LogTime) -> Result<bool, Error> {
        if !self.may_be_due(upto) {
            return Ok(false);
        }
        if self.store.is_none() {
            self.due_next = None;
            return Ok(false);
        }
        self.note_gone();
        let Some(store) = &self.store else { return Ok(false) };
        let limit = self.tuning.fetch_users;
        let (due, next) = store.due(&self.due_seen, upto, limit)?;
        self.due_next = next;
        let full = due.len() == limit;
        if let Some(last) = due.last() {
            self.due_seen = last.clone();
        }
        let mut missing: Vec<&str> = Vec::new();
        for row in &due {
            match self.state.slot_of(&row.user) {
                Some(slot) => self.state.wake(slot),
                None if self.is_gone(&row.user) => {}
                None => missing.push(&row.user),
            }
        }
        missing.sort_unstable();
        self.fetch(&missing)?;
        Ok(full)
    }

    /// Remembers where the store keeps the users that were forgotten since the last call.
    fn note_gone(&mut self) {
        for (slot, user) in self.state.forgotten() {
            let place = self.places.of(*slot);
            if place != UserLocation::Nowhere {
                self.gone.insert(user.clone(), place);
                self.places.set(*slot, UserLocation::Nowhere);
            }
        }
    }

    /// Returns when the next change happens that no event causes; may be too early, but never too late.
    pub fn next_deadline(&self) -> Option<LogTime> {
        let due = self.due_next.filter(|_| self.store.is_some());
        [self.state.next_timer(self.census().online_devices() > 0), due]
            .into_iter()
            .flatten()
            .min()
    }
}

/// Learns how far the owner has committed. Returns how many offsets are left to fold up to there. A standby folds no
/// further, so that it has no outputs of its own, shows nothing that is not committed, and compares itself with every
/// position that it reaches.
fn follow_owner(standby: &dyn StandbyPartition, outbox: &mut Outbox, next: Offset) -> Result<u64, Error> {
    let reach = |position: &Position| (position.next, position.outputs);
    let committed = outbox.committed();
    if next >= committed.next {
        let position = standby.owner_position()?.position;
        if reach(&position) > reach(&committed) {
            outbox.follow(position);
        }
    }
    Ok(outbox.committed().next.0.saturating_sub(next.0))
}
