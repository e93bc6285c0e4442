//! What the fold gave and the log has not settled yet.
//!
//! Each output extends the chain and is counted; then it is written, unless the log has it already (folding silently
//! after a start). Outputs are kept until their commit is known to have got through: a failed call may have.

use super::Error;
use super::census::Census;
use super::headers::{HeaderWriter, OutputFacts};
use super::index::UserIndex;
use super::outcomes::Kept;
use super::reconcile::{Comparison, KnownOutputs, OutputTail};
use super::rejected::{self, Groups, Rejected};
use crate::log::{Commit, CurrentRecord, Headers, Input, NewRecord, OutputTopic, OwnedPartition, Position, Record};
use crate::metrics;
use crate::presence::change::{IgnoreReason, Output, OutputId};
use crate::presence::{LogTime, Offset, Partition, Revision};
use crate::registry::Schemas;
use crate::schema::avro;
use std::borrow::Cow;
use std::collections::VecDeque;

/// Returns the chain with one more output, given by its Avro datum ([`Position::chain`]).
pub fn extend_chain(chain: &[u8; 32], datum: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(chain);
    hasher.update(datum);
    *hasher.finalize().as_bytes()
}

/// Why outputs were found in the log that its position does not know of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TailCause {
    /// The position was an old one.
    PositionBehind,
    /// There was no position, or one that did not go with the outputs, and an operator has said to take them on.
    Adopted,
    /// A commit that failed had got through.
    CommitUnknown,
    /// A commit that failed had got through in part.
    CommitTorn,
}

impl TailCause {
    /// As the metric has it.
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
    /// What the log has: anything before it is folded silently.
    target: Position,
    /// The point up to which everything was compared with the log, once.
    checked: bool,
    /// What the log has of outputs behind that point; none once all of it was compared.
    tail: Option<Box<OutputTail>>,
    /// Why there may be a tail, for the metric.
    tail_cause: TailCause,
    /// What the topics were found to have at the start.
    known: KnownOutputs,
    chain: [u8; 32],
    seq: u64,
    /// In force before the record that is folded next.
    pub revision: Revision,
    /// What was read before it; none: a version that did not keep it wrote the store.
    pub input: Option<Input>,
    /// The same without the record that was read last.
    input_before_last: Option<Input>,
    /// What is gathered for the next commit.
    gathered: Commit,
    gathered_bytes: usize,
    /// When this much has gathered it is committed inside of a record.
    commit_bytes: usize,
    /// Made, but not known to have got through; the first may have.
    unsettled: VecDeque<Commit>,
    /// Whether the first of them got through is not known: it was sent, and an error came back.
    is_in_doubt: bool,
    /// The position of the last commit known to have got through.
    committed: Position,
    /// The log's own position is an older one.
    is_log_behind: bool,
    /// The log time of the oldest change that was gathered and is not known to be committed.
    oldest: Option<LogTime>,
    pub census: Census,
    /// Events and heartbeats without effect, by reason, and malformed records: since this process has the partition.
    pub ignored: [u64; IgnoreReason::ALL.len()],
    pub rejected: Groups,
    /// Malformed records of which no warning was asked for yet.
    pub unwarned: Groups,
    datum: Vec<u8>,
    /// Written with.
    pub schemas: Schemas,
    /// None where the log keeps no headers.
    pub headers: Option<HeaderWriter>,
    /// What became of records, while somebody wants to know.
    pub outcomes: Kept,
    /// Of all changes, where there is a store to keep it.
    pub index: Option<UserIndex>,
}

impl Outbox {
    /// To go on from where a state is (`chain`, `seq`), silently up to what the log has (`target`).
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
            input_before_last: None,
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

    /// What the log has behind the point up to which it is folded silently: that is compared and not sent.
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

    /// The log's own position is older than the point to which everything is out, and is to be brought there.
    pub fn with_log_behind(mut self) -> Outbox {
        self.is_log_behind = true;
        self
    }

    /// Whether the log has outputs that are not folded yet.
    pub fn is_behind_tail(&self) -> bool {
        self.tail.as_ref().is_some_and(|tail| tail.last().is_some())
    }

    pub fn chain(&self) -> [u8; 32] {
        self.chain
    }

    /// The position of the last commit known to have got through.
    pub fn committed(&self) -> Position {
        self.committed
    }

    /// Whether the log has everything that was gathered, so that the state may be shown.
    pub fn is_settled(&self) -> bool {
        self.unsettled.is_empty() && self.gathered_bytes == 0
    }

    /// The log time of the oldest change that was committed since this was last asked, once all are.
    pub fn take_oldest_committed(&mut self) -> Option<LogTime> {
        self.is_settled().then(|| self.oldest.take()).flatten()
    }

    /// Compares with the log when the point is reached up to which it has everything.
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
        // Nothing was given since the point itself, even if a record ended at it: the chain would tell.
        let is_in_record = next == self.target.next;
        let here = Position {
            input: if is_in_record {
                self.input
            } else {
                self.input_before_last
            },
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

    /// Notes that a record was read and is done.
    pub fn read(&mut self, record: &Record) {
        self.input_before_last = self.input;
        if let Some(input) = &mut self.input {
            input.take(record);
        }
    }

    /// Takes an output. `time` is the log time of its record.
    pub fn take(&mut self, output: Output, time: Option<LogTime>, log: &mut dyn OwnedPartition) -> Result<(), Error> {
        self.outcomes.see(&output);
        let (id, schema) = match &output {
            Output::Change(change) => (change.id, avro::Schema::Change),
            Output::Kick(kick) => (kick.id, avro::Schema::Kick),
            Output::Ignored(ignored) => {
                // What is folded again was counted before.
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
                let key = Some(change.user.into_string().into_bytes());
                self.gather(|gathered| &mut gathered.changes, NewRecord { key, value, headers });
            }
            Output::Kick(kick) => {
                metrics::kick(kick.reason);
                let key = Some(kick.gateway.into_string().into_bytes());
                self.gather(|gathered| &mut gathered.kicks, NewRecord { key, value, headers });
            }
            Output::Ignored(_) => {}
        }
        if self.gathered_bytes >= self.commit_bytes {
            self.cut(id, time);
            // A failure is met again, and told, when the record is done.
            let _ = self.settle(log);
        }
        Ok(())
    }

    /// A commit inside of a record, after this output.
    fn cut(&mut self, id: OutputId, time: Option<LogTime>) {
        self.close(self.position(id.offset, id.index + 1, time));
    }

    /// Takes a malformed record, whole, as the datum that is to be published.
    pub fn quarantine(
        &mut self,
        offset: Offset,
        rejected: &Rejected,
        datum: &[u8],
        log: &mut dyn OwnedPartition,
    ) -> Result<(), Error> {
        self.outcomes.malformed(offset, rejected.reason.name(), &rejected.error);
        // What is folded again is there already, and was counted before.
        if offset >= self.target.next {
            let Rejected { reason, error } = rejected;
            metrics::malformed(reason.name());
            rejected::add(&mut self.rejected, *reason, 1, offset, error);
            rejected::add(&mut self.unwarned, *reason, 1, offset, error);
            let is_there = match &mut self.tail {
                Some(tail) => tail.has(OutputTopic::Quarantine, (offset, 0), datum, log)?,
                None => false,
            };
            if !is_there {
                let mut value = Vec::with_capacity(datum.len() + 10);
                self.schemas.frame(avro::Schema::Quarantined, &mut value);
                value.extend_from_slice(datum);
                let headers = self.headers_of(|| Some(OutputFacts::of_quarantined(self.partition, offset)));
                let record = NewRecord {
                    key: None,
                    value,
                    headers,
                };
                self.gather(|gathered| &mut gathered.quarantine, record);
            }
        }
        Ok(())
    }

    /// Whether an output is of a record of which not everything was out at the start.
    pub fn is_of_the_rest(&self, id: OutputId) -> bool {
        id.offset >= self.target.next
    }

    /// Returns the headers of an output; none where the log keeps none.
    fn headers_of<'o>(&self, facts: impl FnOnce() -> Option<OutputFacts<'o>>) -> Headers {
        let headers = self.headers.as_ref();
        let headers = headers.and_then(|headers| facts().map(|facts| headers.of(&facts)));
        headers.unwrap_or_default()
    }

    /// Takes the newest state of a user, to go out with the rest: after a change, of this version; none where the user
    /// was forgotten.
    pub fn current(
        &mut self,
        user: Box<str>,
        value: Option<Vec<u8>>,
        by: OutputId,
        version: Option<u64>,
        is_of_event: bool,
    ) {
        if let Some(tail) = &mut self.tail
            && tail.has_newest(user.as_bytes(), by.offset, version)
        {
            return;
        }
        let headers = self.headers_of(|| Some(OutputFacts::of_user_state(&user, by, is_of_event)));
        let key = user.into_string().into_bytes();
        let record = CurrentRecord {
            key,
            offset: by.offset,
            value,
            headers,
        };
        self.gathered_bytes += record.key.len() + record.value.as_ref().map_or(0, Vec::len);
        self.gathered.current.push(record);
    }

    fn gather(&mut self, topic: impl FnOnce(&mut Commit) -> &mut Vec<NewRecord>, record: NewRecord) {
        self.gathered_bytes += record.value.len() + record.key.as_ref().map_or(0, Vec::len);
        topic(&mut self.gathered).push(record);
    }

    fn close(&mut self, position: Position) {
        let mut commit = std::mem::take(&mut self.gathered);
        self.gathered_bytes = 0;
        commit.position = position;
        self.unsettled.push_back(commit);
    }

    /// Whether a commit was made that is not known to have got through.
    pub fn has_failed(&self) -> bool {
        !self.unsettled.is_empty()
    }

    /// Whether the fold stands after everything that was committed.
    pub fn has_moved(&self, next: Offset) -> bool {
        next > self.committed.next || (self.is_log_behind && next == self.committed.next)
    }

    /// Whether anything is gathered, or only the position has moved.
    pub fn has_outputs(&self) -> bool {
        self.gathered_bytes > 0 || !self.unsettled.is_empty()
    }

    /// Commits all that was gathered with the position after it. Nothing while folding silently.
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
            // Newest states of a record that was half out at the start: they go with the position as it is, which must
            // not go back to where the fold is within that record.
            self.close(last);
        }
        self.settle(log)
    }

    /// Has every commit get through, once. Of one that failed it is asked first what of it did.
    fn settle(&mut self, log: &mut dyn OwnedPartition) -> Result<(), Error> {
        while let Some(commit) = self.unsettled.front() {
            let there = log.position()?;
            let reach = |position: &Position| (position.next, position.outputs);
            // A store knows less of a point than the log's position does.
            let is_same = |one: &Position, other: &Position| {
                (reach(one), one.seq, one.chain) == (reach(other), other.seq, other.chain)
            };
            let (is_before, is_after) = (is_same(&there, &self.committed), is_same(&there, &commit.position));
            let is_known = is_before && !self.is_in_doubt;
            let rest = match is_known {
                true => Some(Cow::Borrowed(commit)),
                false => self.rest(commit, log)?,
            };
            // Where outputs are compared, a position before ours may be an old one. One behind ours is somebody else's.
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
                Some(rest) if is_known || !is_after || has_any(&rest) => Some(rest),
                None if is_before => Some(Cow::Borrowed(commit)),
                Some(_) | None => None,
            };
            if let Some(rest) = to_send {
                let changes = rest.changes.len();
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

    /// What of a commit is not in the log; none where the log's position alone tells.
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
                let cause = match has_any(&rest) {
                    true => TailCause::CommitTorn,
                    false => TailCause::CommitUnknown,
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

/// Whether a commit has more than a position.
fn has_any(commit: &Commit) -> bool {
    !(commit.changes.is_empty() && commit.kicks.is_empty() && commit.quarantine.is_empty() && commit.current.is_empty())
}
