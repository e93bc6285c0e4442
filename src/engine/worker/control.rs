//! What a worker does next, as a pure core: what happened and what time it is go in, the next thing to do comes out.
//!
//! No thread, no clock, no channel, no log and no store: a [`View`] says how the partition is, a [`Fact`] what was done
//! and with which result, and [`Control::next`] gives one [`Order`] at a time. Who carries the orders out is the worker
//! ([`super`]), on a thread of its own or in a simulated world.
//!
//! A round of orders is: open, or confirm and fold a batch; a tick if one is due at the end of the log; a checkpoint;
//! a look at whether the log takes events; answers; and a wait. An order that failed ends the part of the round that
//! works on the partition, and what is to be done about it is in the [`Recovery`].

use super::failure::{Failure, Recovery};
use crate::engine::progress::{Progress, Standstill};
use crate::log::Reading;
use crate::presence::Offset;

/// Ticks are at least this far apart.
pub const TICK_MS: u64 = 250;
/// After this long without anything the worker looks around all the same.
const IDLE_MS: u64 = 1_000;
/// After the log or the store failed it is tried again this much later.
const RETRY_MS: u64 = 1_000;
/// A standby that waits for events which the owner has committed already looks again this much later.
const STANDBY_MS: u64 = 20;
/// A standby shows nothing while the owner's position that it knows is older.
const POSITION_AGE_MAX_MS: u64 = 10_000;
/// A standby is ready when it has once been so near to the newest position that it knows, in offsets.
const STANDBY_LAG_MAX: u64 = 10_000;
/// Between two reports on how far a restore is.
const PROGRESS_MS: u64 = 2_000;
/// How often the last commit is tried, and for how long at most until the last try begins.
const CLOSINGS: u32 = 4;
const CLOSING_MS: u64 = 8_000;
const CLOSING_PAUSE_MS: u64 = 500;
/// A panic at the same place so many times in a row halts the partition.
const PANICS_MAX: u32 = 2;
/// Well below the time after which a group gives a silent member's partitions to another.
const OVERSLEPT_MS: u64 = 1_500;
/// How often the log is asked whether it takes events while there is work.
const REFUSAL_MS: u64 = 500;
/// A tick that has not come back after so long was lost on its way.
const TICK_LOST_MS: u64 = 10_000;

/// How an open partition is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct View {
    /// The next record to fold.
    pub applied: Offset,
    /// Everything that the log had outputs of was folded again.
    pub is_caught_up: bool,
    /// The log has every output of what was folded.
    pub is_settled: bool,
    /// When what was folded is to be committed, by the monotonic clock. `None` if nothing is waiting to be committed.
    pub commit_due_ms: Option<u64>,
    /// The time of the log at which the partition needs a tick, if no record comes before.
    pub tick_due_ms: Option<u64>,
    /// On a standby, the age of the newest position of the owner that it knows. `None` if it knows no position.
    pub position_age_ms: Option<u64>,
    /// The time that a tick would get.
    pub log_now_ms: u64,
}

/// The next thing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// Take the partition up at the log and open its store.
    Open,
    /// Ask the log whether the partition is still ours.
    Confirm,
    /// Take the partition up at the log, with the state that the standby has.
    TakeOver,
    /// Fold the next batch and commit what is due.
    Fold,
    /// Append a tick.
    Tick,
    /// Make a checkpoint.
    Checkpoint,
    /// See whether the log takes events, and whether its time is ahead of the clock.
    LookAtLog,
    /// Answer the questions that can be answered.
    Answer,
    /// Nothing is to be done for so long, unless something happens; 0: there may be more to do at once.
    Wait(u64),
    /// Commit everything.
    Close,
    /// It has ended.
    End,
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fact {
    /// The partition is open; the log ended here.
    Opened {
        end: Offset,
    },
    /// The partition is still ours.
    Confirmed,
    /// The group has given this node the partition for which the worker stands by.
    Promoted,
    /// The partition was taken up with the state of the standby; the log ended here.
    TakenOver {
        end: Offset,
    },
    Folded(Folded),
    /// A checkpoint was made of what was applied up to here; none if it could not be made.
    Checkpointed(Option<Offset>),
    /// A wait is over.
    Woke {
        meant_ms: u64,
        slept_ms: u64,
    },
    /// The group wants the partition back: commit everything and end.
    Stop,
    /// The group has given the partition away: end without a commit.
    Drop,
    /// The last commit got through, or is given up.
    Closed,
}

/// What a batch gave.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Folded {
    pub records: usize,
    pub saw_tick: bool,
    /// Whether a batch of no records means that the log has no more.
    pub log_is_at_end: bool,
    pub reading: Reading,
    /// Of the log; for a standby, of what it knows to be committed.
    pub end: Offset,
}

/// What is to be reported after a batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Notes {
    pub restore: Option<RestoreNote>,
    pub standstill: Option<StandstillNote>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RestoreNote {
    /// It has caught up for the first time since it was opened.
    Live,
    /// It is still folding what the log has.
    UnderWay,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum StandstillNote {
    Began(Standstill),
    Ended,
}

/// Where in its round it is: what [`Control::next`] decides next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    Begin,
    Fold,
    Tick,
    Checkpoint,
    LookAtLog,
    Answer,
    Wait,
}

/// How it ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ending {
    /// With a last commit, which was tried so many times.
    Close {
        tries: u32,
        until_ms: u64,
        not_before_ms: u64,
    },
    /// At once.
    Now,
}

/// Whom the worker works for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// This node has the partition.
    Owner,
    /// Another node has it: the worker folds what the owner has committed, and appends and commits nothing.
    Standby,
    /// The group has given it to this node, which has not taken it up yet.
    Heir,
}

/// See the module. Times are of the monotonic clock unless they say otherwise.
#[derive(Debug)]
pub struct Control {
    role: Role,
    stage: Stage,
    ending: Option<Ending>,
    /// In this round something was folded or opened.
    worked: bool,
    /// In this round there was nothing to fold.
    at_end: bool,
    has_failed: bool,
    /// The log goes on in a revision that this program does not know, so what it has is not what holds now.
    is_outdated: bool,
    /// The store was rebuilt already after the fold had diverged from what was committed.
    rebuilt: bool,
    /// The log was read in another way already for the same reason.
    reread: bool,
    /// Since it was opened it was not live.
    restoring: bool,
    /// Since it was opened it has once been at the end of the log, or at what was its end then: behind a busy log's end
    /// there is always something. A standby has also once been near the newest position.
    at_end_once: bool,
    end_at_opening: Offset,
    next_progress_ms: u64,
    retry_at_ms: u64,
    progress: Progress,
    standstill: Option<Standstill>,
    /// The record at which it panicked last, and how many times in a row.
    panics: (Option<Offset>, u32),
    /// It panicked there too often, and waits for another version of the program.
    is_halted: bool,
    /// Between two checkpoints. Without it no checkpoints are made.
    checkpoint_every_ms: Option<u64>,
    next_checkpoint_ms: u64,
    /// Where the last checkpoint stood.
    checkpointed: Offset,
    /// When a tick was appended that has not come back.
    tick_sent_ms: Option<u64>,
    next_tick_ms: u64,
    /// When it was last asked whether the log takes events.
    refusal_asked_ms: Option<u64>,
    /// It slept longer than it meant to, stopped perhaps: whether the partition is still ours is asked before anything is
    /// answered.
    overslept: bool,
}

impl Control {
    /// Without `checkpoint_every_ms` no checkpoints are made.
    pub fn new(checkpoint_every_ms: Option<u64>) -> Control {
        Control {
            role: Role::Owner,
            stage: Stage::Begin,
            ending: None,
            worked: false,
            at_end: false,
            has_failed: false,
            is_outdated: false,
            rebuilt: false,
            reread: false,
            restoring: false,
            at_end_once: false,
            end_at_opening: Offset(0),
            next_progress_ms: 0,
            retry_at_ms: 0,
            progress: Progress::default(),
            standstill: None,
            panics: (None, 0),
            is_halted: false,
            checkpoint_every_ms,
            next_checkpoint_ms: 0,
            checkpointed: Offset(0),
            tick_sent_ms: None,
            next_tick_ms: 0,
            refusal_asked_ms: None,
            overslept: false,
        }
    }

    /// Works for another node's partition until [`Fact::Promoted`].
    pub fn standing_by(mut self) -> Control {
        self.role = Role::Standby;
        self
    }

    pub fn role(&self) -> Role {
        self.role
    }

    /// Returns the next thing to do. There is no `view` while nothing is open.
    pub fn next(&mut self, now_ms: u64, view: Option<&View>) -> Order {
        loop {
            match self.stage {
                Stage::Begin => {
                    if let Some(ending) = self.ending {
                        return self.end(now_ms, ending, view);
                    }
                    (self.worked, self.at_end) = (false, false);
                    if self.is_halted || now_ms < self.retry_at_ms {
                        self.stage = Stage::LookAtLog;
                    } else if view.is_none() {
                        // There is no state to go on with.
                        if self.role == Role::Heir {
                            self.role = Role::Owner;
                        }
                        self.stage = Stage::LookAtLog;
                        return Order::Open;
                    } else if self.role == Role::Heir {
                        self.stage = Stage::LookAtLog;
                        return Order::TakeOver;
                    } else {
                        self.stage = Stage::Fold;
                        if self.overslept && self.role == Role::Owner {
                            return Order::Confirm;
                        }
                    }
                }
                Stage::Fold => {
                    self.stage = Stage::Tick;
                    return Order::Fold;
                }
                Stage::Tick => {
                    self.stage = Stage::Checkpoint;
                    if self.at_end && self.role == Role::Owner && self.is_tick_due(now_ms, view) {
                        self.tick_sent_ms = Some(now_ms);
                        self.next_tick_ms = now_ms + TICK_MS;
                        return Order::Tick;
                    }
                }
                Stage::Checkpoint => {
                    self.stage = Stage::LookAtLog;
                    if let Some(every_ms) = self.checkpoint_every_ms
                        && self.role == Role::Owner
                        && !self.restoring
                        && now_ms >= self.next_checkpoint_ms
                        && view.is_some_and(|view| view.applied != self.checkpointed)
                    {
                        self.next_checkpoint_ms = now_ms + every_ms;
                        return Order::Checkpoint;
                    }
                }
                Stage::LookAtLog => {
                    self.stage = Stage::Answer;
                    let asked_ms = self.refusal_asked_ms;
                    let is_recent = asked_ms.is_some_and(|asked_ms| now_ms.saturating_sub(asked_ms) < REFUSAL_MS);
                    if !(self.worked && is_recent) && self.role != Role::Standby {
                        self.refusal_asked_ms = Some(now_ms);
                        return Order::LookAtLog;
                    }
                }
                Stage::Answer => {
                    self.stage = Stage::Wait;
                    return Order::Answer;
                }
                Stage::Wait => {
                    self.stage = Stage::Begin;
                    let is_over = self.worked || self.ending.is_some();
                    return Order::Wait(if is_over { 0 } else { self.wait_ms(now_ms, view) });
                }
            }
        }
    }

    fn end(&mut self, now_ms: u64, ending: Ending, view: Option<&View>) -> Order {
        match ending {
            Ending::Now => Order::End,
            Ending::Close { .. } if view.is_none() => Order::End,
            Ending::Close { not_before_ms, .. } if now_ms < not_before_ms => Order::Wait(not_before_ms - now_ms),
            Ending::Close { .. } => Order::Close,
        }
    }

    /// Takes note of what happened; says what is to be reported of it.
    pub fn learn(&mut self, now_ms: u64, fact: Fact, view: Option<&View>) -> Notes {
        match fact {
            Fact::Promoted => {
                if self.role == Role::Standby {
                    // What kept the standby waiting is no reason for the owner to wait.
                    (self.role, self.retry_at_ms) = (Role::Heir, now_ms);
                    // What failed for the standby is tried again.
                    (self.panics, self.is_halted) = ((None, 0), false);
                    (self.rebuilt, self.reread) = (false, false);
                }
            }
            Fact::Opened { end } | Fact::TakenOver { end } => {
                if matches!(fact, Fact::TakenOver { .. }) {
                    // It was just learned whose the partition is.
                    (self.role, self.overslept) = (Role::Owner, false);
                }
                self.worked = true;
                self.restoring = true;
                self.at_end_once = false;
                self.end_at_opening = end;
                self.progress = Progress::since(now_ms);
                self.next_progress_ms = now_ms + PROGRESS_MS;
            }
            Fact::Confirmed => self.overslept = false,
            Fact::Folded(folded) => return self.folded(now_ms, folded, view),
            Fact::Checkpointed(applied) => self.checkpointed = applied.unwrap_or(self.checkpointed),
            Fact::Woke { meant_ms, slept_ms } => self.overslept |= slept_ms > meant_ms + OVERSLEPT_MS,
            Fact::Stop => {
                self.ending.get_or_insert(Ending::Close {
                    tries: 0,
                    until_ms: now_ms + CLOSING_MS,
                    not_before_ms: 0,
                });
            }
            Fact::Drop | Fact::Closed => self.ending = Some(Ending::Now),
        }
        Notes::default()
    }

    fn folded(&mut self, now_ms: u64, folded: Folded, view: Option<&View>) -> Notes {
        let Folded {
            records,
            saw_tick,
            log_is_at_end,
            reading,
            end,
        } = folded;
        let applied = view.map_or(Offset(0), |view| view.applied);
        if saw_tick {
            self.tick_sent_ms = None;
        }
        self.worked = records > 0;
        self.at_end = records == 0 && log_is_at_end;
        let is_at_end = self.at_end || (records > 0 && applied >= self.end_at_opening);
        let is_near = self.role == Role::Owner || end.0.saturating_sub(applied.0) <= STANDBY_LAG_MAX;
        self.at_end_once |= is_at_end && is_near;
        if records > 0 || self.at_end {
            self.has_failed = false;
        }
        let mut notes = Notes::default();
        if self.is_live(view) {
            if std::mem::take(&mut self.restoring) {
                notes.restore = Some(RestoreNote::Live);
            }
        } else if now_ms >= self.next_progress_ms {
            self.next_progress_ms = now_ms + PROGRESS_MS;
            notes.restore = Some(RestoreNote::UnderWay);
        }
        if self.role != Role::Owner {
            return notes;
        }
        let before = self.standstill.map(|standstill| standstill.cause);
        self.standstill = self.progress.look(now_ms, applied, reading, end);
        if self.standstill.map(|standstill| standstill.cause) != before {
            let began = self.standstill.map(StandstillNote::Began);
            notes.standstill = began.or(Some(StandstillNote::Ended));
        }
        notes
    }

    /// An order failed. The panic of an order counts as its failure.
    pub fn fail(&mut self, now_ms: u64, failure: Failure, has_checkpoints: bool) -> Recovery {
        (self.stage, self.worked) = (Stage::LookAtLog, false);
        self.standstill = None;
        self.has_failed = true;
        // It may have come back within the step that failed.
        self.tick_sent_ms = None;
        self.retry_at_ms = now_ms + RETRY_MS;
        match failure {
            Failure::Passing => Recovery::Keep,
            // What was folded before it is not the newest that is known: no answer comes from it.
            Failure::UnknownRevision => {
                self.is_outdated = true;
                Recovery::Keep
            }
            // Whether the partition is still ours the group will say.
            Failure::Deposed => {
                self.ending = Some(Ending::Now);
                Recovery::Reopen
            }
            // What the log cannot rebuild a checkpoint can, once.
            Failure::Unrecoverable if has_checkpoints && !self.rebuilt => {
                self.rebuilt = true;
                Recovery::SetStoreAside
            }
            // Before the store is given up.
            Failure::ReadSuspect if !self.reread => {
                self.reread = true;
                Recovery::Reread
            }
            // Once, the log alone is asked, or else a checkpoint.
            Failure::StoreSuspect | Failure::ReadSuspect if !self.rebuilt => {
                self.rebuilt = true;
                Recovery::Rebuild
            }
            Failure::Unrecoverable
            | Failure::StoreSuspect
            | Failure::ReadSuspect
            | Failure::Panicked(_)
            | Failure::StateLost => Recovery::Reopen,
        }
    }

    /// The last commit failed. It is tried again for a while: a log that stumbles now and stands again in a moment is no
    /// reason to leave work for the next start.
    pub fn close_failed(&mut self, now_ms: u64, failure: Failure) {
        let Some(Ending::Close { tries, until_ms, .. }) = self.ending else {
            return;
        };
        let tries = tries + 1;
        self.ending = Some(
            match failure == Failure::Passing && tries < CLOSINGS && now_ms < until_ms {
                true => Ending::Close {
                    tries,
                    until_ms,
                    not_before_ms: now_ms + CLOSING_PAUSE_MS,
                },
                false => Ending::Now,
            },
        );
    }

    /// The same panic again and again is the same bug: once it is tried again, from the store, and then no more. Returns
    /// whether the partition halts.
    pub fn panicked(&mut self, at: Option<Offset>) -> bool {
        let times = if self.panics.0 == at { self.panics.1 + 1 } else { 1 };
        self.panics = (at, times);
        self.is_halted = times >= PANICS_MAX;
        self.is_halted
    }

    /// Sets when the first checkpoint since the opening is due.
    pub fn expect_checkpoint(&mut self, at_ms: u64) {
        self.next_checkpoint_ms = at_ms;
        self.checkpointed = Offset(0);
    }

    fn is_live(&self, view: Option<&View>) -> bool {
        self.at_end_once && view.is_some_and(|view| view.is_caught_up)
    }

    /// One word for how the partition is.
    pub fn state(&self, view: Option<&View>) -> &'static str {
        match (self.has_failed, self.standstill) {
            (true, _) => "failed",
            (false, Some(standstill)) if view.is_some() => standstill.state(),
            (false, _) if self.is_live(view) => "live",
            (false, _) => "restoring",
        }
    }

    pub fn has_failed(&self) -> bool {
        self.has_failed
    }

    pub fn standstill(&self) -> Option<Standstill> {
        self.standstill
    }

    /// Whether a question cannot be answered now but will be by itself: when an offset was folded, or when what was folded
    /// is committed, which is a matter of milliseconds.
    pub fn is_to_wait(&self, view: Option<&View>, at_least: Option<Offset>) -> bool {
        let Some(view) = view else {
            return at_least.is_some();
        };
        if self.role != Role::Owner {
            return at_least.is_some_and(|at_least| view.applied <= at_least);
        }
        let unsettled = !self.has_failed && view.is_caught_up && !view.is_settled && !planted!(UncommittedShown);
        self.overslept || unsettled || at_least.is_some_and(|at_least| view.applied <= at_least)
    }

    /// Whether what the partition has may be shown.
    pub fn may_show(&self, view: Option<&View>) -> bool {
        let is_committed = |view: &View| view.is_settled || planted!(UncommittedShown);
        // What a standby has was committed, however far the owner is by now.
        let is_recent = |age_ms| age_ms <= POSITION_AGE_MAX_MS;
        let is_complete = |view: &View| match self.role {
            Role::Owner => view.is_caught_up,
            Role::Standby => !self.has_failed && self.at_end_once && view.position_age_ms.is_some_and(is_recent),
            Role::Heir => self.at_end_once && view.position_age_ms.is_some_and(is_recent),
        };
        view.is_some_and(|view| is_committed(view) && is_complete(view))
            && (!self.is_outdated || planted!(OutdatedShown))
    }

    fn is_tick_in_flight(&self, now_ms: u64) -> bool {
        let is_recent = |sent_ms| now_ms.saturating_sub(sent_ms) < TICK_LOST_MS;
        self.tick_sent_ms.is_some_and(is_recent) && !planted!(TickStorm)
    }

    fn is_tick_due(&self, now_ms: u64, view: Option<&View>) -> bool {
        let is_due = view.is_some_and(|view| view.tick_due_ms.is_some_and(|due_ms| due_ms <= view.log_now_ms));
        is_due && !self.is_tick_in_flight(now_ms) && (now_ms >= self.next_tick_ms || planted!(TickStorm))
    }

    /// How long nothing needs to be done.
    fn wait_ms(&self, now_ms: u64, view: Option<&View>) -> u64 {
        if self.is_halted {
            return IDLE_MS;
        }
        if now_ms < self.retry_at_ms {
            return self.retry_at_ms - now_ms;
        }
        let Some(view) = view else { return IDLE_MS };
        if self.role == Role::Standby {
            return if view.is_caught_up { IDLE_MS } else { STANDBY_MS };
        }
        let commit_ms = view.commit_due_ms;
        let idle_ms = commit_ms.map_or(IDLE_MS, |due_ms| due_ms.saturating_sub(now_ms).clamp(1, IDLE_MS));
        if self.is_tick_in_flight(now_ms) {
            return idle_ms;
        }
        let tick_ms = view.tick_due_ms.map(|due_ms| due_ms.saturating_sub(view.log_now_ms));
        let tick_ms = tick_ms.map(|wait_ms| wait_ms.max(self.next_tick_ms.saturating_sub(now_ms)).max(1));
        tick_ms.unwrap_or(idle_ms).min(idle_ms)
    }
}

#[cfg(test)]
mod tests;
