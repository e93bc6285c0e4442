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
    /// When what was folded is to be committed, by the monotonic clock; none: there is nothing.
    pub commit_due_ms: Option<u64>,
    /// When the partition, quiet as it is, needs a tick, by the time of the log.
    pub tick_due_ms: Option<u64>,
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
    /// Of the log.
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

/// See the module. Times are of the monotonic clock unless they say otherwise.
#[derive(Debug)]
pub struct Control {
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
    /// there is always something.
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
                        self.stage = Stage::LookAtLog;
                        return Order::Open;
                    } else {
                        self.stage = Stage::Fold;
                        if self.overslept {
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
                    if self.at_end && self.is_tick_due(now_ms, view) {
                        self.tick_sent_ms = Some(now_ms);
                        self.next_tick_ms = now_ms + TICK_MS;
                        return Order::Tick;
                    }
                }
                Stage::Checkpoint => {
                    self.stage = Stage::LookAtLog;
                    if let Some(every_ms) = self.checkpoint_every_ms
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
                    if !(self.worked && is_recent) {
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
            Fact::Opened { end } => {
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
        self.at_end_once |= self.at_end || (records > 0 && applied >= self.end_at_opening);
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
        let unsettled = !self.has_failed && view.is_caught_up && !view.is_settled && !planted!(UncommittedShown);
        self.overslept || unsettled || at_least.is_some_and(|at_least| view.applied <= at_least)
    }

    /// Whether what the partition has may be shown.
    pub fn may_show(&self, view: Option<&View>) -> bool {
        let is_committed = |view: &View| view.is_settled || planted!(UncommittedShown);
        view.is_some_and(|view| is_committed(view) && view.is_caught_up)
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
mod tests {
    use super::*;

    /// At the end of a log of ten records, everything committed.
    const QUIET: View = View {
        applied: Offset(10),
        is_caught_up: true,
        is_settled: true,
        commit_due_ms: None,
        tick_due_ms: None,
        log_now_ms: 1_000,
    };

    fn folded(records: usize) -> Fact {
        Fact::Folded(Folded {
            records,
            saw_tick: false,
            log_is_at_end: true,
            reading: Reading {
                reached: Offset(0),
                is_at_end: false,
                unanswered_since_ms: None,
            },
            end: Offset(10),
        })
    }

    /// The orders of a round, in which each batch has so many records and everything else works.
    fn round(control: &mut Control, now_ms: u64, view: Option<View>, records: usize) -> Vec<Order> {
        let mut orders = Vec::new();
        loop {
            let order = control.next(now_ms, view.as_ref());
            orders.push(order);
            let fact = match order {
                Order::Open => Fact::Opened { end: Offset(10) },
                Order::Confirm => Fact::Confirmed,
                Order::Fold => folded(records),
                Order::Checkpoint => Fact::Checkpointed(view.map(|view| view.applied)),
                Order::Close => Fact::Closed,
                Order::Tick | Order::LookAtLog | Order::Answer => continue,
                Order::Wait(_) | Order::End => return orders,
            };
            control.learn(now_ms, fact, view.as_ref());
        }
    }

    fn live() -> Control {
        let mut control = Control::new(None);
        round(&mut control, 0, None, 0);
        round(&mut control, 0, Some(QUIET), 0);
        control
    }

    #[test]
    fn it_opens_folds_batch_after_batch_and_waits_at_the_end_of_the_log() {
        use Order::{Answer, Fold, LookAtLog, Open, Wait};
        let mut control = Control::new(None);
        assert_eq!(round(&mut control, 0, None, 0), [Open, LookAtLog, Answer, Wait(0)]);
        assert_eq!(control.state(Some(&QUIET)), "restoring");
        // While there is work the log is not asked each time.
        assert_eq!(round(&mut control, 10, Some(QUIET), 5), [Fold, Answer, Wait(0)]);
        assert_eq!(
            round(&mut control, 20, Some(QUIET), 0),
            [Fold, LookAtLog, Answer, Wait(1_000)]
        );
        assert_eq!(control.state(Some(&QUIET)), "live");
    }

    #[test]
    fn a_partition_that_was_just_opened_has_not_stood_still() {
        let mut control = Control::new(None);
        let view = View {
            applied: Offset(0),
            ..QUIET
        };
        let opened = Fact::Opened { end: Offset(10) };
        control.learn(60_000, opened, Some(&view));
        assert_eq!(control.learn(60_000, folded(0), Some(&view)).standstill, None);
        let notes = control.learn(65_000, folded(0), Some(&view));
        assert!(matches!(notes.standstill, Some(StandstillNote::Began(_))), "{notes:?}");
    }

    #[test]
    fn it_waits_no_longer_than_until_a_commit_or_a_tick_is_due() {
        let mut control = live();
        let view = View {
            commit_due_ms: Some(2_020),
            ..QUIET
        };
        assert_eq!(round(&mut control, 2_000, Some(view), 0).last(), Some(&Order::Wait(20)));
        let view = View {
            tick_due_ms: Some(1_300),
            ..QUIET
        };
        assert_eq!(
            round(&mut control, 2_000, Some(view), 0).last(),
            Some(&Order::Wait(300))
        );
    }

    #[test]
    fn ticks_come_when_due_one_in_flight_at_a_time_and_apart() {
        let mut control = live();
        let due = View {
            tick_due_ms: Some(1_000),
            ..QUIET
        };
        let ticks =
            |control: &mut Control, now_ms, records| round(control, now_ms, Some(due), records).contains(&Order::Tick);
        assert!(!ticks(&mut control, 5_000, 3), "not before the end of the log");
        assert!(ticks(&mut control, 5_000, 0));
        assert!(!ticks(&mut control, 6_000, 0), "one is on its way");
        assert!(!ticks(&mut control, 14_999, 0));
        assert!(ticks(&mut control, 15_000, 0), "it was lost");
        let came_back = Folded {
            saw_tick: true,
            ..match folded(1) {
                Fact::Folded(folded) => folded,
                fact => panic!("{fact:?}"),
            }
        };
        control.learn(15_010, Fact::Folded(came_back), Some(&due));
        assert!(!ticks(&mut control, 15_249, 0), "too soon after the last one");
        assert!(ticks(&mut control, 15_250, 0));
    }

    #[test]
    fn a_failure_is_tried_again_after_a_second_and_what_is_done_about_it_depends() {
        let mut control = live();
        let fails = |control: &mut Control, now_ms, failure| {
            assert_eq!(control.next(now_ms, Some(&QUIET)), Order::Fold);
            control.fail(now_ms, failure, true)
        };
        assert_eq!(fails(&mut control, 5_000, Failure::Passing), Recovery::Keep);
        assert_eq!(control.state(Some(&QUIET)), "failed");
        assert_eq!(
            round(&mut control, 5_000, Some(QUIET), 0),
            [Order::LookAtLog, Order::Answer, Order::Wait(1_000)]
        );
        assert_eq!(round(&mut control, 6_000, Some(QUIET), 0)[0], Order::Fold);
        assert_eq!(control.state(Some(&QUIET)), "live");
        assert_eq!(fails(&mut control, 7_000, Failure::StoreSuspect), Recovery::Rebuild);
        round(&mut control, 7_000, None, 0);
        assert_eq!(round(&mut control, 8_000, None, 0)[0], Order::Open);
        let mut read = live();
        let again = [(); 3].map(|()| read.fail(5_000, Failure::ReadSuspect, true));
        assert_eq!(again, [Recovery::Reread, Recovery::Rebuild, Recovery::Reopen]);
        assert_eq!(
            fails(&mut control, 9_000, Failure::StoreSuspect),
            Recovery::Reopen,
            "once"
        );
        round(&mut control, 9_000, None, 0);
        assert_eq!(control.next(10_000, Some(&QUIET)), Order::Fold);
        control.fail(10_000, Failure::Deposed, true);
        assert_eq!(round(&mut control, 10_000, None, 0).last(), Some(&Order::Wait(0)));
        assert_eq!(round(&mut control, 10_000, None, 0), [Order::End]);
    }

    #[test]
    fn the_second_panic_at_a_record_halts_the_partition() {
        let mut control = live();
        assert!(!control.panicked(Some(Offset(4))));
        assert!(!control.panicked(Some(Offset(5))), "another record");
        assert!(control.panicked(Some(Offset(5))));
        let orders = round(&mut control, 60_000, None, 0);
        assert_eq!(orders, [Order::LookAtLog, Order::Answer, Order::Wait(1_000)]);
    }

    #[test]
    fn after_a_sleep_it_asks_whether_the_partition_is_its_own_before_it_answers() {
        let mut control = live();
        let woke = |slept_ms| Fact::Woke {
            meant_ms: 1_000,
            slept_ms,
        };
        control.learn(5_000, woke(2_500), Some(&QUIET));
        assert!(!control.is_to_wait(Some(&QUIET), None));
        control.learn(9_000, woke(2_501), Some(&QUIET));
        assert!(control.is_to_wait(Some(&QUIET), None));
        assert_eq!(round(&mut control, 9_000, Some(QUIET), 0)[0], Order::Confirm);
        assert!(!control.is_to_wait(Some(&QUIET), None));
    }

    #[test]
    fn a_question_waits_for_its_offset_and_for_the_commit_and_what_is_not_committed_is_not_shown() {
        let control = live();
        assert!(!control.is_to_wait(Some(&QUIET), Some(Offset(9))));
        assert!(control.is_to_wait(Some(&QUIET), Some(Offset(10))));
        let unsettled = View {
            is_settled: false,
            ..QUIET
        };
        assert!(control.is_to_wait(Some(&unsettled), None));
        assert!(control.may_show(Some(&QUIET)) && !control.may_show(Some(&unsettled)));
        // Nothing is open: who asks for what is there now gets no answer, who waits for an offset waits.
        assert!(!control.is_to_wait(None, None) && control.is_to_wait(None, Some(Offset(1))));
        assert!(!control.may_show(None));
    }

    #[test]
    fn the_last_commit_is_tried_four_times_while_the_log_stumbles() {
        let mut control = live();
        control.learn(1_000, Fact::Stop, Some(&QUIET));
        for now_ms in [1_000, 1_500, 2_000] {
            assert_eq!(control.next(now_ms, Some(&QUIET)), Order::Close);
            control.close_failed(now_ms, Failure::Passing);
            assert_eq!(control.next(now_ms, Some(&QUIET)), Order::Wait(500));
        }
        assert_eq!(control.next(2_500, Some(&QUIET)), Order::Close);
        control.close_failed(2_500, Failure::Passing);
        assert_eq!(control.next(2_500, Some(&QUIET)), Order::End);

        let mut dropped = live();
        dropped.learn(1_000, Fact::Drop, None);
        assert_eq!(dropped.next(1_000, None), Order::End);
    }
}
