//! Outcomes of records, for publishers that ask for them: kept only while a publisher asks, and for a limited number
//! of records.
//!
//! A publisher declares its interest before the records are appended ([`Interest`]), so that no record is folded
//! unseen.

use crate::presence::Offset;
use crate::presence::change::{IgnoreReason, Output};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// How many outcomes of records a partition keeps at most.
const KEPT: usize = 200_000;

/// The outcome of a record.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Outcome {
    /// Its event gave a change.
    pub changed: bool,
    /// Its event, or some of its heartbeats, had no effect: the first reason, and how many.
    pub ignored: Option<(IgnoreReason, u64)>,
    /// The record is in quarantine: the reason, and a sentence.
    pub malformed: Option<(&'static str, String)>,
}

/// The outcomes of records, in the order they were asked for; `None` where the outcome is not known any more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Outcomes {
    pub each: Vec<Option<Outcome>>,
    /// The platforms of the policy in force.
    pub platforms: Vec<String>,
}

/// A publisher's interest in outcomes: they are kept until this is dropped.
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

/// The outcomes of a partition's records.
#[derive(Default)]
pub(super) struct Kept {
    wanted: Arc<AtomicUsize>,
    /// Outcomes from this offset on are known; `None` while no publisher asks for outcomes.
    from: Option<Offset>,
    /// Outcomes except those of records that were accepted and changed nothing.
    seen: BTreeMap<Offset, Outcome>,
}

impl Kept {
    pub fn want_by(&mut self, wanted: Arc<AtomicUsize>) {
        self.wanted = wanted;
    }

    /// Must be called after records from an offset on were read, and before they are folded.
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
            // A change that a timer caused has evidence older than its record.
            Output::Change(change) if change.evidence == change.id.offset || planted!(TimerCounted) => {
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

    /// Returns the outcomes of records. Everything before `applied` has been folded.
    pub fn each(&self, offsets: &[Offset], applied: Offset) -> Vec<Option<Outcome>> {
        let known = |offset: &Offset| {
            let is_known = self.from.is_some_and(|from| (from..applied).contains(offset));
            is_known.then(|| self.seen.get(offset).cloned().unwrap_or_default())
        };
        offsets.iter().map(known).collect()
    }
}
