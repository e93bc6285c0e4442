//! What became of records, for publishers that ask: kept only while somebody does, and for a bounded number
//! of records.
//!
//! A publisher that wants to know says so before the records are appended ([`Interest`]), so that none is folded unseen.

use crate::presence::Offset;
use crate::presence::change::{IgnoreReason, Output};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Outcomes of so many records of a partition are kept while they are wanted.
const KEPT: usize = 200_000;

/// What became of a record.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Outcome {
    /// Its event gave a change.
    pub changed: bool,
    /// Its event, or some of its beats, had no effect: the first reason, and how many.
    pub ignored: Option<(IgnoreReason, u64)>,
    /// It is in quarantine: the reason, and a sentence.
    pub malformed: Option<(&'static str, String)>,
}

/// What became of records, in the order they were asked for; none of those that nobody knows any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcomes {
    pub each: Vec<Option<Outcome>>,
    /// The platforms that the policy in force has.
    pub platforms: Vec<String>,
}

/// Somebody wants to know outcomes, until this is dropped.
#[derive(Debug)]
pub struct Interest(Arc<AtomicUsize>);

impl Interest {
    pub fn in_what(wanted: &Arc<AtomicUsize>) -> Interest {
        wanted.fetch_add(1, Ordering::AcqRel);
        Interest(wanted.clone())
    }
}

impl Drop for Interest {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// The outcomes of a partition.
#[derive(Default)]
pub(super) struct Kept {
    wanted: Arc<AtomicUsize>,
    /// Those from here on are known; none while nobody wants to know.
    from: Option<Offset>,
    /// Without those that were accepted and changed nothing.
    seen: BTreeMap<Offset, Outcome>,
}

impl Kept {
    pub fn want_by(&mut self, wanted: Arc<AtomicUsize>) {
        self.wanted = wanted;
    }

    /// Before records from an offset on are folded, and after they were read.
    pub fn begin(&mut self, next: Offset) {
        if self.wanted.load(Ordering::Acquire) > 0 {
            self.from.get_or_insert(next);
        } else if self.from.take().is_some() {
            self.seen = BTreeMap::new();
        }
    }

    pub fn see(&mut self, output: &Output) {
        if self.from.is_none() {
            return;
        }
        match output {
            // The evidence of a firing is older than its record.
            Output::Change(change) if change.evidence == change.id.offset => {
                self.of(change.id.offset).changed = true;
            }
            Output::Change(_) | Output::Kick(_) => {}
            Output::Ignored(ignored) => {
                let (_, count) = self.of(ignored.offset).ignored.get_or_insert((ignored.reason, 0));
                *count += 1;
            }
        }
    }

    pub fn malformed(&mut self, offset: Offset, reason: &'static str, error: &str) {
        if self.from.is_some() {
            self.of(offset).malformed = Some((reason, error.to_owned()));
        }
    }

    fn of(&mut self, offset: Offset) -> &mut Outcome {
        if self.seen.len() >= KEPT
            && let Some((first, _)) = self.seen.pop_first()
        {
            self.from = Some(Offset(first.0 + 1));
        }
        self.seen.entry(offset).or_default()
    }

    /// Of records of which all before `applied` are folded.
    pub fn each(&self, offsets: &[Offset], applied: Offset) -> Vec<Option<Outcome>> {
        let known = |offset: &Offset| {
            let is_known = self.from.is_some_and(|from| (from..applied).contains(offset));
            is_known.then(|| self.seen.get(offset).cloned().unwrap_or_default())
        };
        offsets.iter().map(known).collect()
    }
}
