//! Opens a partition: the store and the log's position determine where to go on.

use super::PartitionProcessor;
use crate::clock::Clock;
use crate::engine::census::Census;
use crate::engine::checkpoints::standing;
use crate::engine::index::UserIndex;
use crate::engine::locations::UserLocations;
use crate::engine::outbox::{Outbox, TailCause};
use crate::engine::reconcile::{Comparison, OutputTail};
use crate::engine::traced::TracedRecords;
use crate::engine::{Error, RevisionAt, Tuning};
use crate::log::{Input, OwnedPartition, PartitionHandle, Position};
use crate::presence::policy::Policy;
use crate::presence::state::State;
use crate::presence::{LogTime, Offset, Partition, Revision, Status};
use crate::schema::policy::written_policy;
use crate::store::{self, Applied, DueKey, Store, UserLocation};
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

/// The first byte of [`kept_bytes`] that include what was read.
const WITH_INPUT: u8 = 1;

impl PartitionProcessor {
    /// Opens the store in a directory, if one is given, and prepares to continue the fold from its position. `first`
    /// is the policy of a partition without any record.
    ///
    /// A store that cannot be used (damaged, of another layout or another log, ahead of the position) is rebuilt if the log
    /// still reaches back to its beginning. Otherwise the result is an error that says so. A store with events that the
    /// embedded log does not have is kept, and the result is an error.
    pub fn open(
        log: impl Into<PartitionHandle>,
        directory: Option<&Path>,
        first: &Policy,
        clock: Arc<dyn Clock>,
        tuning: Tuning,
    ) -> Result<PartitionProcessor, Error> {
        let directory = directory.map(Path::to_owned);
        let home = directory
            .as_ref()
            .map(|directory| directory as &dyn store::StoreLocation);
        PartitionProcessor::open_at(log.into(), home, first, clock, tuning)
    }

    /// Opens a partition like [`PartitionProcessor::open`], with a store at any location.
    pub fn open_at(
        mut log: PartitionHandle,
        home: Option<&dyn store::StoreLocation>,
        first: &Policy,
        clock: Arc<dyn Clock>,
        tuning: Tuning,
    ) -> Result<PartitionProcessor, Error> {
        let Some(home) = home else {
            return Ok(Opened::read(&mut log, None, first, tuning)?.with(log, clock, tuning));
        };
        let mut open = || Opened::read(&mut log, Some(home.open()?), first, tuning);
        let opened = match open() {
            // The position may be older than what this node committed as the owner.
            Err(error @ Error::ForeignStore { .. }) if matches!(log, PartitionHandle::Standby(_)) => Err(error),
            Err(error) if error.is_the_stores() => {
                let start = log.events().range()?.start;
                if start > Offset(0) {
                    return Err(Error::Unrecoverable {
                        start,
                        cause: Box::new(error),
                    });
                }
                tracing::warn!(partition = %log.partition(), %error, "rebuilding the store from the log");
                home.destroy()?;
                Opened::read(&mut log, Some(home.open()?), first, tuning)
            }
            opened => opened,
        }?;
        Ok(opened.with(log, clock, tuning))
    }
}

impl PartitionProcessor {
    /// Turns a standby into the owner: its state goes on with the owner's handle, which takes the place of the standby's.
    /// After an error the standby comes back with its own handle. What it has folded is kept if the log may give another
    /// answer later, and counts no more otherwise.
    pub fn take_over(mut self, log: Box<dyn OwnedPartition>) -> Result<PartitionProcessor, Box<NotTakenOver>> {
        match self.continue_with(log) {
            Ok(()) => Ok(self),
            Err(error) => Err(Box::new(NotTakenOver { standby: self, error })),
        }
    }

    fn continue_with(&mut self, mut log: Box<dyn OwnedPartition>) -> Result<(), Error> {
        let committed = log.position()?;
        known(
            self.partition,
            self.tuning,
            RevisionAt::Position(committed.next),
            committed.revision,
        )?;
        let stands = Position {
            next: self.next,
            outputs: self.resumed_outputs,
            time: self.state.time(),
            seq: self.state.seq(),
            chain: self.outbox.chain(),
            revision: self.state.revision(),
            input: self.outbox.input,
        };
        let target = Opened::target(&mut *log, &committed, &stands, self.tuning)?;
        let kept = (std::mem::take(&mut self.outbox.census), self.outbox.index.take());
        self.outbox = resumed(&stands, &committed, target, &self.state, self.tuning, kept)?;
        self.log = PartitionHandle::Owned(log);
        self.log_committed_ms = self.clock.monotonic_ms();
        Ok(())
    }
}

/// A standby that could not take over, and why.
pub struct NotTakenOver {
    pub standby: PartitionProcessor,
    pub error: Error,
}

/// Returns what the engine keeps in a store besides the state: the counts, and what was read. Without the latter the
/// bytes are only those of the counts, which begin with 0 because there are fewer than 2^56 users.
pub(super) fn kept_bytes(census: &Census, input: Option<Input>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(input) = input {
        bytes.push(WITH_INPUT);
        bytes.extend_from_slice(&input.to_bytes());
    }
    bytes.extend_from_slice(&census.to_bytes());
    bytes
}

fn kept(bytes: &[u8]) -> Option<(Census, Option<Input>)> {
    match bytes.split_first() {
        Some((&WITH_INPUT, rest)) => {
            let (input, census) = rest.split_at_checked(Input::BYTES)?;
            Some((Census::from_bytes(census)?, Some(Input::from_bytes(input)?)))
        }
        Some(_) | None => Some((Census::from_bytes(bytes)?, None)),
    }
}

/// Returns what was read of the events that the store in a directory has folded; `None` if the store cannot be read, or does
/// not say it.
pub(in crate::engine) fn input_of(directory: &Path) -> Option<Input> {
    let store = Store::open_to_look(directory).ok()?;
    let meta = store.meta().ok()??;
    kept(store.read_meta(&meta).ok()?.counts)?.1
}

/// Whether a store is further than the position that is committed.
fn is_ahead(stands: &Position, committed: &Position) -> bool {
    (stands.next, stands.outputs) > (committed.next, committed.outputs)
}

/// Refuses the embedded log if it lacks events that a store in the data directory has. To be called before anything is
/// appended: the offsets of events that are missing must not be given out again. `ends` is where the events of each partition
/// end.
pub fn check_stores(ends: &[Offset], data: &Path) -> Result<(), Error> {
    for (partition, end) in (0..).map(Partition).zip(ends) {
        // What else may be wrong with a store, the one who opens it finds out.
        if let Ok(Some(folded)) = standing(&store::directory_of(data, partition), partition) {
            check_not_lost(partition, *end, folded)?;
        }
    }
    Ok(())
}

/// Refuses a log that ends before what was folded of it. Only for a log whose end is known for sure.
fn check_not_lost(partition: Partition, end: Offset, (folded, outputs): (Offset, u64)) -> Result<(), Error> {
    // In the middle of a record there are outputs of it.
    let needed = Offset(folded.0.saturating_add(u64::from(outputs > 0)));
    match end < needed {
        true => Err(Error::EventsLost {
            partition,
            end,
            folded: needed,
        }),
        false => Ok(()),
    }
}

/// Returns the error for a store that is ahead of the log, or that belongs to another partition.
fn foreign(partition: Partition, applied: Offset, committed: &Position) -> Error {
    Error::ForeignStore {
        partition,
        applied,
        committed: committed.next,
    }
}

fn known(partition: Partition, tuning: Tuning, at: RevisionAt, revision: Revision) -> Result<(), Error> {
    match revision > tuning.revision {
        true => Err(Error::UnknownRevision {
            partition,
            at,
            revision,
            newest: tuning.revision,
        }),
        false => Ok(()),
    }
}

/// The outputs that the topics have after the point up to which the log is folded silently, and why.
type FoundTail = (Box<OutputTail>, TailCause);

/// Returns the outbox of a state that stands at a position, with what it has of the changes so far: the counts and the
/// index.
fn resumed(
    stands: &Position,
    committed: &Position,
    (target, tail): (Position, Option<FoundTail>),
    state: &State,
    tuning: Tuning,
    (census, index): (Census, Option<UserIndex>),
) -> Result<Outbox, Error> {
    let mut outbox = Outbox::new(
        state.partition(),
        stands.chain,
        stands.seq,
        census,
        target,
        tuning.commit_bytes,
    );
    outbox.revision = stands.revision;
    outbox.index = index;
    outbox.input = stands.input;
    if let Some((tail, cause)) = tail {
        outbox = outbox.with_tail(tail, cause);
    }
    // In the middle of a record the state has that record's time. The position moves when the record is done.
    let is_between = state.offset().is_none_or(|offset| offset < stands.next);
    if is_between && (target.next, target.outputs) != (committed.next, committed.outputs) {
        if !outbox.is_behind_tail() {
            let (partition, cause) = (state.partition(), TailCause::PositionBehind.name());
            tracing::warn!(
                %partition, position = %committed.next, applied = %stands.next, cause,
                "the committed position is older than the store; the next commit brings it up to date"
            );
        }
        outbox = outbox.with_log_behind();
    }
    if stands.outputs == 0 {
        // A store that was committed inside of a record, before its first output, has that record's time.
        let time = state.time();
        let is_target = (stands.next, 0) == (target.next, target.outputs);
        let time = if is_target { time.min(target.time) } else { time };
        outbox.pass(stands.next, 0, time)?;
    }
    Ok(outbox)
}

/// Where to go on, according to a store and the log's position.
struct Opened {
    store: Option<Store>,
    state: State,
    outbox: Outbox,
    places: UserLocations,
    applied: Applied,
    policy: Option<(Option<Offset>, String)>,
    due_next: Option<LogTime>,
}

impl Opened {
    fn read(log: &mut PartitionHandle, store: Option<Store>, first: &Policy, tuning: Tuning) -> Result<Opened, Error> {
        let partition = log.partition();
        let committed = log.committed()?;
        known(
            partition,
            tuning,
            RevisionAt::Position(committed.next),
            committed.revision,
        )?;
        let mut applied = Applied::default();
        let mut state = None;
        let (mut census, mut input) = (Census::default(), Some(Input::default()));
        let mut places = UserLocations::default();
        let mut written = None;
        let meta = store.as_ref().map(Store::meta).transpose()?.flatten();
        if let (Some(store), Some(meta)) = (&store, &meta) {
            let opened = store.read_meta(meta)?;
            applied = opened.applied;
            // The revision of another partition's store says nothing about this one.
            if opened.partition.partition != partition {
                return Err(foreign(partition, applied.next, &committed));
            }
            known(partition, tuning, RevisionAt::Store, opened.partition.revision)?;
            let policy = written_policy(opened.partition.policy).ok_or(Error::Unreadable)?;
            written = Some((opened.partition.policy_since, opened.partition.policy.to_owned()));
            let mut saved = opened.partition;
            if planted!(LeaseKept) {
                for gateway in &mut saved.gateways {
                    gateway.lease_until.get_or_insert(gateway.last_until);
                }
            }
            if planted!(EarlyEndsLost) {
                saved.early_ends.clear();
            }
            if planted!(TimeNotRestored) {
                saved.time = None;
            }
            if planted!(ResumeOffset) {
                applied.next = Offset(applied.next.0 + 1);
            }
            (census, input) = kept(opened.counts).ok_or(Error::Unreadable)?;
            let image = saved.image(&policy);
            let state = state.insert(State::restore(&image, tuning.hash_seed));
            state.reserve(census.users(Status::Online));
            store.for_each_online(|slot, user| {
                state.put_back(slot, user);
                places.set(slot, UserLocation::Online);
            })?;
            store.for_each_beats(|slot, beats| {
                state.put_back_beats(slot, beats.user_last_seen, beats.devices);
            })?;
            state.seal();
        }
        let state = state.unwrap_or_else(|| State::seeded(partition, first.clone(), tuning.hash_seed));
        let stands = Position {
            next: applied.next,
            outputs: applied.outputs,
            time: state.time(),
            seq: state.seq(),
            chain: applied.chain,
            revision: state.revision(),
            input,
        };
        let index = UserIndex::open(store.as_ref(), stands.seq, stands.time, &census, tuning.index_changes)?;
        let target = match log {
            PartitionHandle::Owned(log) => Opened::target(&mut **log, &committed, &stands, tuning)?,
            PartitionHandle::Standby(_) if is_ahead(&stands, &committed) => {
                return Err(foreign(partition, stands.next, &committed));
            }
            // It follows the position alone.
            PartitionHandle::Standby(_) => (committed, None),
        };
        let outbox = resumed(&stands, &committed, target, &state, tuning, (census, index))?;
        let due_next = match &store {
            Some(store) => store.due(&DueKey::default(), LogTime(0), 0)?.1,
            None => None,
        };
        Ok(Opened {
            store,
            state,
            outbox,
            places,
            applied,
            policy: written,
            due_next,
        })
    }

    /// Returns the point up to which the log has everything, so that it is folded silently, and what the log has after
    /// it. The point is the committed position, or the store's position if that is further: a broker may return an old
    /// position.
    fn target(
        log: &mut dyn OwnedPartition,
        committed: &Position,
        stands: &Position,
        tuning: Tuning,
    ) -> Result<(Position, Option<FoundTail>), Error> {
        let partition = log.partition();
        let is_ahead = is_ahead(stands, committed);
        let adopts = tuning.adopt_tail;
        if planted!(TailIgnoredAtStart) {
            return Ok((*committed, None));
        }
        if !log.has_position()
            && !adopts
            && let Some(last) = OutputTail::last_in_topics(log)?
        {
            return Err(Error::OutputsWithoutPosition { partition, last });
        }
        let cause = match OutputTail::read(log, committed)? {
            Comparison::Unasked if is_ahead => {
                check_not_lost(partition, log.events().range()?.end, (stands.next, stands.outputs))?;
                return Err(foreign(partition, stands.next, committed));
            }
            Comparison::Unasked => return Ok((*committed, None)),
            // Only outputs tell one log from another.
            Comparison::Equal if is_ahead && (committed.chain != stands.chain || (committed.seq == 0 && !adopts)) => {
                return Err(foreign(partition, stands.next, committed));
            }
            Comparison::Equal if is_ahead => TailCause::PositionBehind,
            Comparison::Equal => return Ok((*committed, None)),
            Comparison::Ahead { seq } if !adopts => {
                return Err(Error::OutputsMissing {
                    partition,
                    next: committed.next,
                    committed: committed.seq,
                    seq,
                });
            }
            Comparison::Behind(tail) if !log.has_position() && !adopts => {
                let last = tail.last().map_or(Offset(0), |(offset, _)| offset);
                return Err(Error::OutputsWithoutPosition { partition, last });
            }
            Comparison::Behind(tail) if !is_ahead && log.has_position() => {
                return Ok((*committed, Some((tail, TailCause::PositionBehind))));
            }
            Comparison::Behind(tail) if is_ahead => {
                let chain = tail.chain_to(committed, (stands.next, stands.outputs), log)?;
                if chain.is_some_and(|chain| chain != stands.chain) {
                    return Err(foreign(partition, stands.next, committed));
                }
                match log.has_position() {
                    true => TailCause::PositionBehind,
                    false => TailCause::Adopted,
                }
            }
            Comparison::Ahead { .. } | Comparison::Behind(_) => TailCause::Adopted,
        };
        // The last change before the store's position must be the one that the store knows.
        match OutputTail::read(log, stands)? {
            Comparison::Behind(tail) => Ok((*stands, Some((tail, cause)))),
            Comparison::Equal | Comparison::Unasked => Ok((*stands, None)),
            Comparison::Ahead { .. } => Err(foreign(partition, stands.next, committed)),
        }
    }

    fn with(self, log: PartitionHandle, clock: Arc<dyn Clock>, tuning: Tuning) -> PartitionProcessor {
        let now = clock.monotonic_ms();
        PartitionProcessor {
            partition: log.partition(),
            log,
            clock,
            tuning,
            store: self.store,
            state: self.state,
            outbox: self.outbox,
            next: self.applied.next,
            resumed_outputs: self.applied.outputs,
            places: self.places,
            gone: HashMap::new(),
            due_seen: DueKey::default(),
            due_next: self.due_next,
            cached: VecDeque::new(),
            policy: self.policy,
            folded_since: 0,
            store_committed_ms: now,
            log_committed_ms: now,
            unflushed: None,
            log_began_ms: 0,
            batch: Vec::new(),
            folding: None,
            touched: Vec::new(),
            traced: TracedRecords::default(),
        }
    }
}
