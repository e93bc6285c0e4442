//! Outputs of the fold that are not yet known to be committed to the log.
//!
//! Each output extends the chain and is counted; then it is written, unless the log already has it (silent folding
//! after a start). Outputs are kept until their commit is known to have succeeded, because a commit that returned an
//! error may have succeeded.

use super::Error;
use super::census::Census;
use super::headers::{HeaderWriter, OutputFacts};
use super::index::UserIndex;
use super::outcomes::Kept;
use super::reconcile::{Comparison, KnownOutputs, OutputTail};
use super::rejected::{self, Groups, Rejected};
use crate::log::{Commit, Headers, Input, OutputRecord, OwnedPartition, PartitionHandle, Position, Record};
use crate::metrics;
use crate::presence::change::{IgnoreReason, Output, OutputId};
use crate::presence::{LogTime, Offset, Partition, Revision};
use crate::registry::Schemas;
use crate::schema::avro;
use crate::topics::OutputTopic;
use std::borrow::Cow;
use std::collections::VecDeque;

/// Returns the chain extended by one output, given as its Avro datum ([`Position::chain`]).
pub fn extend_chain(chain: &[u8; 32], datum: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(chain);
    hasher.update(datum);
    *hasher.finalize().as_bytes()
}

/// Why the log has outputs that its position does not include.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TailCause {
    /// The position was an old one.
    PositionBehind,
    /// There was no position, or it did not match the outputs, and an operator asked to adopt them.
    Adopted,
    /// A commit that returned an error had succeeded.
    CommitUnknown,
    /// A commit that returned an error had succeeded in part.
    CommitTorn,
}

impl TailCause {
    /// Returns the value of the metric's label.
    pub fn name(self) -> &'static str {
        match self {
            TailCause::PositionBehind => "position_behind",
            TailCause::Adopted => "adopted",
            TailCause::CommitUnknown => "commit_unknown",
            TailCause::CommitTorn => "commit_torn",
        }
    }
}

pub struct Outbox {
    partition: Partition,
    /// The log's position: everything before it is folded silently.
    target: Position,
    /// Whether the fold was compared with the log at that position, which is done once.
    checked: bool,
    /// The outputs that the log has after that position; `None` once all of them were compared.
    tail: Option<Box<OutputTail>>,
    /// Why there may be a tail, for the metric.
    tail_cause: TailCause,
    /// What the topics contained at the start.
    known: KnownOutputs,
    chain: [u8; 32],
    seq: u64,
    /// The revision in force before the next record to fold.
    pub revision: Revision,
    /// What was read before that record; `None`: the store was written by a version that did not keep it.
    pub input: Option<Input>,
    /// The revision and the input before the last record that was read.
    before_last: (Revision, Option<Input>),
    /// Outputs gathered for the next commit.
    gathered: Commit,
    gathered_bytes: usize,
    /// When this many bytes have gathered, they are committed in the middle of a record.
    commit_bytes: usize,
    /// Commits that are not known to have succeeded; the first one may have.
    unsettled: VecDeque<Commit>,
    /// Whether the first of them was sent and returned an error, so that its result is not known.
    is_in_doubt: bool,
    /// The position of the last commit known to have succeeded.
    committed: Position,
    /// Whether the position in the log is older than that.
    is_log_behind: bool,
    /// The log time of the oldest gathered change that is not known to be committed.
    oldest: Option<LogTime>,
    pub census: Census,
    /// Counts since this process took the partition: events and heartbeats without effect, by reason, and malformed
    /// records.
    pub ignored: [u64; IgnoreReason::ALL.len()],
    pub rejected: Groups,
    /// Malformed records that no warning has reported yet.
    pub unwarned: Groups,
    datum: Vec<u8>,
    /// The schemas that outputs are written with.
    pub schemas: Schemas,
    /// `None` if the log keeps no headers.
    pub headers: Option<HeaderWriter>,
    /// The outcomes of records, kept while a publisher asks for them.
    pub outcomes: Kept,
    /// The index of all changes, if there is a store to keep it.
    pub index: Option<UserIndex>,
}

impl Outbox {
    /// Returns an outbox that continues a state (`chain`, `seq`) and writes nothing before the log's position
    /// (`target`).
    pub fn new(
        partition: Partition,
        chain: [u8; 32],
        seq: u64,
        census: Census,
        target: Position,
        commit_bytes: usize,
    ) -> Outbox {
        Outbox {
            partition,
            target,
            checked: false,
            tail: None,
            tail_cause: TailCause::PositionBehind,
            known: KnownOutputs::default(),
            chain,
            seq,
            revision: Revision::FIRST,
            input: Some(Input::default()),
            before_last: (Revision::FIRST, None),
            gathered: Commit::default(),
            gathered_bytes: 0,
            commit_bytes,
            unsettled: VecDeque::new(),
            is_in_doubt: false,
            committed: target,
            is_log_behind: false,
            oldest: None,
            census,
            ignored: Default::default(),
            rejected: Groups::default(),
            unwarned: Groups::default(),
            datum: Vec::new(),
            schemas: Schemas::default(),
            headers: None,
            outcomes: Kept::default(),
            index: None,
        }
    }

    /// Adds the outputs that the log has after `target`: they are compared and not sent again.
    pub fn with_tail(mut self, tail: Box<OutputTail>, cause: TailCause) -> Outbox {
        let (tail, partition) = (self.tail.insert(tail), self.partition);
        if let Some((last, index)) = tail.last() {
            tracing::warn!(
                %partition, position = %self.target.next, %last, index, cause = cause.name(),
                "the log has outputs behind the committed position: they are compared with the fold and not sent again"
            );
        }
        self.known = tail.known();
        self.tail_cause = cause;
        self
    }

    /// Notes that the position in the log is older than `target`, so that the next commit brings it there.
    pub fn with_log_behind(mut self) -> Outbox {
        self.is_log_behind = true;
        self
    }

    /// Folds silently up to a later position of the log, and compares the fold with it there. For a standby, which follows
    /// the positions that the owner commits. The fold must be at the position before, at most.
    pub fn follow(&mut self, target: Position) {
        (self.target, self.committed) = (target, target);
        self.checked = false;
    }

    /// Whether the log has outputs that are not folded yet.
    pub fn is_behind_tail(&self) -> bool {
        self.tail.as_ref().is_some_and(|tail| tail.last().is_some())
    }

    pub fn chain(&self) -> [u8; 32] {
        self.chain
    }

    /// The position of the last commit known to have succeeded.
    pub fn committed(&self) -> Position {
        self.committed
    }

    /// Whether the log has everything that was gathered, so that the state may be shown.
    pub fn is_settled(&self) -> bool {
        self.unsettled.is_empty() && self.gathered_bytes == 0
    }

    /// Returns the log time of the oldest change committed since the last call, once all gathered changes are
    /// committed.
    pub fn take_oldest_committed(&mut self) -> Option<LogTime> {
        self.is_settled().then(|| self.oldest.take()).flatten()
    }

    /// Compares the fold with the log's position when the fold reaches it.
    pub fn pass(&mut self, next: Offset, outputs: u64, time: Option<LogTime>) -> Result<(), Error> {
        if let Some(tail) = &self.tail
            && tail.is_before((next, outputs))
        {
            let (partition, found) = (self.partition, tail.found);
            tracing::info!(%partition, found, cause = self.tail_cause.name(), "all outputs of the log were compared");
            metrics::reconciled(self.tail_cause.name(), found);
            self.tail = None;
        }
        if self.checked || (next, outputs) < (self.target.next, self.target.outputs) {
            return Ok(());
        }
        self.checked = true;
        // No output was given after that position, even if its record has ended meanwhile: the chain would show it.
        let is_in_record = next == self.target.next;
        let (revision, input) = match is_in_record {
            true => (self.revision, self.input),
            false => self.before_last,
        };
        let here = Position {
            revision,
            input,
            ..self.position(next, outputs, time)
        };
        let check = |position: &Position| (position.time, position.seq, position.chain, position.revision);
        let was_read_alike = here.was_read_alike(&self.target);
        if check(&here) == check(&self.target) && was_read_alike != Some(false) {
            if was_read_alike.is_none() {
                let known = self.target.input.filter(|_| is_in_record);
                self.input = known.or(self.input).or(Some(Input::since(next)));
            }
            return Ok(());
        }
        Err(Error::Diverged {
            partition: self.partition,
            next: self.target.next,
            folded: Box::new(here),
            committed: Box::new(self.target),
        })
    }

    fn position(&self, next: Offset, outputs: u64, time: Option<LogTime>) -> Position {
        Position {
            next,
            outputs,
            time,
            seq: self.seq,
            chain: self.chain,
            revision: self.revision,
            input: self.input,
        }
    }

    /// Notes that a record was read and folded, and the revision that is in force after it.
    pub fn read(&mut self, record: &Record, revision: Revision) {
        self.before_last = (self.revision, self.input);
        self.revision = revision;
        if let Some(input) = &mut self.input {
            input.take(record);
        }
    }

    /// Takes an output. `time` is the log time of its record.
    pub fn take(&mut self, output: Output, time: Option<LogTime>, log: &mut PartitionHandle) -> Result<(), Error> {
        self.outcomes.see(&output);
        let (id, schema) = match &output {
            Output::Change(change) => (change.id, avro::Schema::Change),
            Output::Kick(kick) => (kick.id, avro::Schema::Kick),
            Output::Ignored(ignored) => {
                // A record that is folded again was counted before.
                if ignored.offset >= self.target.next {
                    metrics::ignored(ignored.reason);
                    self.ignored[ignored.reason as usize] += 1;
                }
                return Ok(());
            }
        };
        self.pass(id.offset, id.index, time)?;
        self.datum.clear();
        match &output {
            Output::Change(change) => {
                self.seq = change.seq;
                self.census.count(change);
                avro::write_change_datum(change, &mut self.datum);
                if let Some(index) = &mut self.index {
                    index.add(change, &self.schemas, &self.datum, &self.census);
                }
            }
            Output::Kick(kick) => avro::write_kick_datum(kick, &mut self.datum),
            Output::Ignored(_) => {}
        }
        self.chain = extend_chain(&self.chain, &self.datum);
        let outputs = if planted!(HalfRepeated) { 0 } else { self.target.outputs };
        if (id.offset, id.index) < (self.target.next, outputs) {
            return Ok(());
        }
        let log = permit(log);
        let topic = match &output {
            Output::Change(_) | Output::Ignored(_) => OutputTopic::Changes,
            Output::Kick(_) => OutputTopic::Kicks,
        };
        if let Some(tail) = &mut self.tail
            && tail.has(topic, (id.offset, id.index), &self.datum, log)?
        {
            return Ok(());
        }
        let mut value = Vec::with_capacity(self.datum.len() + 10);
        match &output {
            Output::Change(change) => {
                avro::frame_change(change, &mut value, |value| self.schemas.frame(schema, value));
            }
            Output::Kick(_) | Output::Ignored(_) => self.schemas.frame(schema, &mut value),
        }
        value.extend_from_slice(&self.datum);
        let headers = self.headers_of(|| OutputFacts::of(&output));
        match output {
            Output::Change(change) => {
                metrics::change(change.cause);
                self.oldest.get_or_insert(change.logged_at);
                let key = change.user.into_string().into_bytes();
                self.gather(topic, Some(key), Some(value), headers);
            }
            Output::Kick(kick) => {
                metrics::kick(kick.reason);
                let key = kick.gateway.into_string().into_bytes();
                self.gather(topic, Some(key), Some(value), headers);
            }
            Output::Ignored(_) => {}
        }
        if self.gathered_bytes >= self.commit_bytes {
            self.cut(id, time);
            // A failure shows again, and is returned, when the record is done.
            let _ = self.settle(log);
        }
        Ok(())
    }

    /// Ends the gathered commit inside of a record, after this output.
    fn cut(&mut self, id: OutputId, time: Option<LogTime>) {
        self.close(self.position(id.offset, id.index + 1, time));
    }

    /// Takes a malformed record. `datum` is the whole record in the form in which it is published.
    pub fn quarantine(
        &mut self,
        offset: Offset,
        rejected: &Rejected,
        datum: &[u8],
        log: &mut PartitionHandle,
    ) -> Result<(), Error> {
        self.outcomes.malformed(offset, rejected.reason.name(), &rejected.error);
        // A record that is folded again was published and counted before.
        if offset >= self.target.next {
            let Rejected { reason, error } = rejected;
            metrics::malformed(reason.name());
            rejected::add(&mut self.rejected, *reason, 1, offset, error);
            rejected::add(&mut self.unwarned, *reason, 1, offset, error);
            let is_there = match &mut self.tail {
                Some(tail) => tail.has(OutputTopic::Quarantine, (offset, 0), datum, permit(log))?,
                None => false,
            };
            if !is_there {
                let mut value = Vec::with_capacity(datum.len() + 10);
                self.schemas.frame(avro::Schema::Quarantined, &mut value);
                value.extend_from_slice(datum);
                let headers = self.headers_of(|| Some(OutputFacts::of_quarantined(self.partition, offset)));
                self.gather(OutputTopic::Quarantine, None, Some(value), headers);
            }
        }
        Ok(())
    }

    /// Whether an output belongs to a record whose outputs were not all in the log at the start.
    pub fn is_of_the_rest(&self, id: OutputId) -> bool {
        id.offset >= self.target.next
    }

    /// Whether the outputs of a record are committed by this process, and are not in the log already.
    pub fn gives_out(&self, offset: Offset) -> bool {
        offset >= self.target.next && self.tail.is_none()
    }

    /// Returns the headers of an output; empty if the log keeps no headers.
    fn headers_of<'o>(&self, facts: impl FnOnce() -> Option<OutputFacts<'o>>) -> Headers {
        let headers = self.headers.as_ref();
        let headers = headers.and_then(|headers| facts().map(|facts| headers.of(&facts)));
        headers.unwrap_or_default()
    }

    /// Takes the newest state of a user for the next commit. `by` is the change that gave it; `value` is `None` if the
    /// user was forgotten.
    pub fn current(&mut self, user: Box<str>, value: Option<Vec<u8>>, by: OutputId, is_of_event: bool) {
        if let Some(tail) = &mut self.tail
            && tail.has_newest(user.as_bytes(), (by.offset, by.index))
        {
            return;
        }
        let headers = self.headers_of(|| Some(OutputFacts::of_user_state(&user, by, is_of_event)));
        let key = user.into_string().into_bytes();
        self.gather(OutputTopic::Current, Some(key), value, headers);
    }

    fn gather(&mut self, topic: OutputTopic, key: Option<Vec<u8>>, value: Option<Vec<u8>>, headers: Headers) {
        let bytes = |part: &Option<Vec<u8>>| part.as_ref().map_or(0, Vec::len);
        self.gathered_bytes += bytes(&key) + bytes(&value);
        self.gathered.outputs.push(topic, OutputRecord { key, value, headers });
    }

    fn close(&mut self, position: Position) {
        let mut commit = std::mem::take(&mut self.gathered);
        self.gathered_bytes = 0;
        commit.position = position;
        self.unsettled.push_back(commit);
    }

    /// Whether there is a commit that is not known to have succeeded.
    pub fn has_failed(&self) -> bool {
        !self.unsettled.is_empty()
    }

    /// Whether the log's position must move: the fold is past it, or the position in the log is an older one.
    pub fn has_moved(&self, next: Offset) -> bool {
        next > self.committed.next || (self.is_log_behind && next == self.committed.next)
    }

    /// Whether there are outputs to commit, and not only a new position.
    pub fn has_outputs(&self) -> bool {
        self.gathered_bytes > 0 || !self.unsettled.is_empty()
    }

    /// Commits everything gathered, with the position after it. Does nothing while folding silently.
    pub fn commit(
        &mut self,
        next: Offset,
        outputs: u64,
        time: Option<LogTime>,
        log: &mut dyn OwnedPartition,
    ) -> Result<(), Error> {
        let position = self.position(next, outputs, time);
        let last = self.unsettled.back().map_or(self.committed, |commit| commit.position);
        let reach = |position: &Position| (position.next, position.outputs);
        let brings_log_on = self.is_log_behind && self.unsettled.is_empty() && reach(&position) == reach(&last);
        if reach(&position) > reach(&last) || brings_log_on {
            self.close(position);
        } else if self.gathered_bytes > 0 {
            // These are newest states of a record that was half committed at the start. They are committed with the
            // last position, which must not go back to where the fold is within that record.
            self.close(last);
        }
        self.settle(log)
    }

    /// Makes every commit succeed exactly once. If a commit failed, first finds out which part of it is in the log.
    fn settle(&mut self, log: &mut dyn OwnedPartition) -> Result<(), Error> {
        while let Some(commit) = self.unsettled.front() {
            let there = log.position()?;
            let reach = |position: &Position| (position.next, position.outputs);
            // A position that comes from a store has fewer fields than the log's position.
            let is_same = |one: &Position, other: &Position| {
                (reach(one), one.seq, one.chain) == (reach(other), other.seq, other.chain)
            };
            let (is_before, is_after) = (is_same(&there, &self.committed), is_same(&there, &commit.position));
            let is_known = is_before && !self.is_in_doubt;
            let rest = match is_known {
                true => Some(Cow::Borrowed(commit)),
                false => self.rest(commit, log)?,
            };
            // Where outputs are compared, a position before ours may be an old one. One after ours was committed by
            // another process.
            let is_others = match &rest {
                Some(_) => reach(&there) > reach(&commit.position),
                None => !is_before && !is_after,
            };
            if is_others {
                return Err(Error::Deposed {
                    partition: self.partition,
                });
            }
            let to_send = match rest {
                Some(rest) if is_known || !is_after || !rest.outputs.is_empty() => Some(rest),
                None if is_before => Some(Cow::Borrowed(commit)),
                Some(_) | None => None,
            };
            if let Some(rest) = to_send {
                let changes = rest.outputs.of(OutputTopic::Changes).len();
                self.is_in_doubt = true;
                log.commit(&rest)?;
                self.is_log_behind = false;
                metrics::committed(changes);
            }
            self.is_in_doubt = false;
            self.committed = commit.position;
            self.unsettled.pop_front();
        }
        Ok(())
    }

    /// Returns the part of a commit that is not in the log; `None` if only the log's position can tell.
    fn rest<'c>(&self, commit: &'c Commit, log: &mut dyn OwnedPartition) -> Result<Option<Cow<'c, Commit>>, Error> {
        let partition = self.partition;
        if planted!(TailIgnoredInDoubt) {
            return Ok(None);
        }
        Ok(match OutputTail::read_behind(log, &self.committed, &self.known)? {
            Comparison::Unasked => None,
            Comparison::Equal => Some(Cow::Borrowed(commit)),
            Comparison::Behind(tail) => {
                let (rest, there) = tail.rest_of(commit, log)?;
                let cause = match rest.outputs.is_empty() {
                    true => TailCause::CommitUnknown,
                    false => TailCause::CommitTorn,
                };
                tracing::warn!(%partition, there, cause = cause.name(), "a commit that failed was found in the log");
                metrics::reconciled(cause.name(), there);
                Some(Cow::Owned(rest))
            }
            Comparison::Ahead { seq } => {
                return Err(Error::OutputsMissing {
                    partition,
                    next: self.committed.next,
                    committed: self.committed.seq,
                    seq,
                });
            }
        })
    }
}

/// Returns the permit to write outputs.
fn permit(log: &mut PartitionHandle) -> &mut dyn OwnedPartition {
    match log {
        PartitionHandle::Owned(log) => &mut **log,
        PartitionHandle::Standby(_) => {
            unreachable!("a standby folds only records whose outputs its owner has committed, so it has none to write")
        }
    }
}
