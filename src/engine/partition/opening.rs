//! Opening a partition: the store and the log's position say where to go on.

use super::PartitionProcessor;
use crate::clock::Clock;
use crate::engine::census::Census;
use crate::engine::index::UserIndex;
use crate::engine::locations::UserLocations;
use crate::engine::outbox::Outbox;
use crate::engine::{Error, RevisionAt, Tuning};
use crate::log::{Input, OwnedPartition};
use crate::presence::policy::Policy;
use crate::presence::state::{PartitionImage, State};
use crate::presence::{LogTime, Offset, Revision, Status};
use crate::schema::policy::written_policy;
use crate::store::{self, Applied, DueKey, Store, UserLocation};
use std::collections::{HashMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

/// The first byte of [`kept_bytes`].
const WITH_INPUT: u8 = 1;

impl PartitionProcessor {
    /// Opens the store in a directory (or none) and gets ready to fold on from where it stands. `first` is the policy
    /// of a partition without any record.
    ///
    /// A store that cannot be used (damaged, of another layout or another log, ahead of the log) is rebuilt if the
    /// log still reaches back to its beginning, and else is an error that says so.
    pub fn open(
        log: Box<dyn OwnedPartition>,
        directory: Option<&Path>,
        first: &Policy,
        clock: Arc<dyn Clock>,
        tuning: Tuning,
    ) -> Result<PartitionProcessor, Error> {
        let directory = directory.map(Path::to_owned);
        let home = directory
            .as_ref()
            .map(|directory| directory as &dyn store::StoreLocation);
        PartitionProcessor::open_at(log, home, first, clock, tuning)
    }

    /// The same with a store wherever it is kept.
    pub fn open_at(
        mut log: Box<dyn OwnedPartition>,
        home: Option<&dyn store::StoreLocation>,
        first: &Policy,
        clock: Arc<dyn Clock>,
        tuning: Tuning,
    ) -> Result<PartitionProcessor, Error> {
        let Some(home) = home else {
            return Ok(Opened::read(&mut *log, None, first, tuning)?.with(log, clock, tuning));
        };
        let mut open = || Opened::read(&mut *log, Some(home.open()?), first, tuning);
        let opened = match open() {
            Err(error) if error.is_the_stores() => {
                let start = log.range()?.start;
                if start > Offset(0) {
                    return Err(Error::Unrecoverable {
                        start,
                        cause: Box::new(error),
                    });
                }
                tracing::warn!(partition = %log.partition(), %error, "rebuilding the store from the log");
                home.destroy()?;
                Opened::read(&mut *log, Some(home.open()?), first, tuning)
            }
            opened => opened,
        }?;
        Ok(opened.with(log, clock, tuning))
    }
}

/// What the engine keeps in a store beside the state: the counts, and what was read. Without the latter the bytes are those
/// of the counts, which begin with 0, since there are fewer than 2^56 users.
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

/// What a store and the log's position say of where to go on.
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
    fn read(
        log: &mut dyn OwnedPartition,
        store: Option<Store>,
        first: &Policy,
        tuning: Tuning,
    ) -> Result<Opened, Error> {
        let partition = log.partition();
        let target = log.position()?;
        let known = |at: RevisionAt, revision: Revision| match revision > tuning.revision {
            true => Err(Error::UnknownRevision {
                partition,
                at,
                revision,
                newest: tuning.revision,
            }),
            false => Ok(()),
        };
        known(RevisionAt::Position(target.next), target.revision)?;
        let mut applied = Applied::default();
        let mut state = None;
        let (mut census, mut input) = (Census::default(), Some(Input::default()));
        let mut places = UserLocations::default();
        let mut written = None;
        let meta = store.as_ref().map(Store::meta).transpose()?.flatten();
        if let (Some(store), Some(meta)) = (&store, &meta) {
            let opened = store.read_meta(meta)?;
            applied = opened.applied;
            known(RevisionAt::Store, opened.partition.revision)?;
            if opened.partition.partition != partition
                || (applied.next, applied.outputs) > (target.next, target.outputs)
            {
                return Err(Error::ForeignStore {
                    partition,
                    applied: applied.next,
                    committed: target.next,
                });
            }
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
            let image = PartitionImage {
                partition,
                offset: saved.offset,
                time: saved.time,
                seq: saved.seq,
                revision: saved.revision,
                grace_until: saved.grace_until,
                policy: &policy,
                policy_since: saved.policy_since,
                gateways: saved.gateways,
                early_ends: saved.early_ends,
            };
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
        let seq = state.seq();
        let index = UserIndex::open(store.as_ref(), seq, state.time(), &census, tuning.index_changes)?;
        let mut outbox = Outbox::new(partition, applied.chain, seq, census, target, tuning.commit_bytes);
        outbox.revision = state.revision();
        outbox.index = index;
        outbox.input = input;
        if applied.outputs == 0 {
            // A store that was committed inside of a record which had given nothing yet has that record's time.
            let time = state.time();
            let is_target = (applied.next, 0) == (target.next, target.outputs);
            let time = if is_target { time.min(target.time) } else { time };
            outbox.pass(applied.next, 0, time)?;
        }
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

    fn with(self, log: Box<dyn OwnedPartition>, clock: Arc<dyn Clock>, tuning: Tuning) -> PartitionProcessor {
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
            log_began_ms: 0,
            batch: Vec::new(),
            folding: None,
            touched: Vec::new(),
        }
    }
}
