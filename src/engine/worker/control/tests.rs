//! Rounds of orders, with what a worker that carries them out would report.

use super::*;

/// At the end of a log of ten records, everything committed.
const QUIET: View = View {
    applied: Offset(10),
    is_caught_up: true,
    is_settled: true,
    commit_due_ms: None,
    tick_due_ms: None,
    position_age_ms: Some(0),
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
            Order::TakeOver => Fact::TakenOver { end: Offset(10) },
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
fn a_standby_folds_and_answers_and_does_nothing_else_until_it_has_taken_over() {
    use Order::{Answer, Fold, LookAtLog, Open, TakeOver, Tick, Wait};
    let mut control = Control::new(Some(1_000)).standing_by();
    let due = View {
        tick_due_ms: Some(1_000),
        ..QUIET
    };
    let behind = View {
        is_caught_up: false,
        ..due
    };
    assert_eq!(round(&mut control, 0, None, 0), [Open, Answer, Wait(0)]);
    assert!(!control.may_show(Some(&behind)), "it has not caught up");
    assert_eq!(round(&mut control, 10_000, Some(due), 5), [Fold, Answer, Wait(0)]);
    assert_eq!(round(&mut control, 10_000, Some(due), 0), [Fold, Answer, Wait(1_000)]);
    assert!(control.may_show(Some(&behind)), "what it has was committed");
    assert!(!control.is_to_wait(Some(&behind), None) && control.is_to_wait(Some(&behind), Some(Offset(10))));
    control.learn(10_000, Fact::Promoted, Some(&due));
    assert!(control.may_show(Some(&due)), "while it takes over");
    let orders = round(&mut control, 10_000, Some(due), 0);
    assert_eq!(orders, [TakeOver, LookAtLog, Answer, Wait(0)]);
    assert!(round(&mut control, 10_000, Some(due), 0).contains(&Tick));
}

#[test]
fn a_standby_shows_nothing_before_it_is_near_the_newest_position_or_while_it_does_not_know_one() {
    let mut control = Control::new(None).standing_by();
    let with_age = |position_age_ms| View {
        position_age_ms,
        ..QUIET
    };
    let far = |end| {
        let Fact::Folded(one) = folded(0) else { unreachable!() };
        Fact::Folded(Folded {
            end: Offset(end),
            ..one
        })
    };
    round(&mut control, 0, None, 0);
    control.learn(0, far(10 + STANDBY_LAG_MAX + 1), Some(&QUIET));
    assert!(!control.may_show(Some(&QUIET)), "the owner is far ahead");
    control.learn(0, far(10 + STANDBY_LAG_MAX), Some(&QUIET));
    assert!(control.may_show(Some(&QUIET)));
    control.learn(0, far(10 + STANDBY_LAG_MAX + 1), Some(&QUIET));
    assert!(control.may_show(Some(&QUIET)), "it was near once");
    assert!(!control.may_show(Some(&with_age(None))));
    assert!(control.may_show(Some(&with_age(Some(POSITION_AGE_MAX_MS)))));
    assert!(!control.may_show(Some(&with_age(Some(POSITION_AGE_MAX_MS + 1)))));
    control.fail(0, Failure::Passing, false);
    assert!(!control.may_show(Some(&QUIET)), "it cannot go on");
    control.learn(0, Fact::Promoted, Some(&QUIET));
    assert!(control.may_show(Some(&QUIET)), "while it takes over");
    assert!(!control.may_show(Some(&with_age(None))));
}

#[test]
fn what_halted_a_standby_is_tried_again_by_the_owner() {
    let mut control = Control::new(None).standing_by();
    control.panicked(Some(Offset(3)));
    assert!(control.panicked(Some(Offset(3))), "it halts");
    control.fail(0, Failure::ReadSuspect, false);
    control.fail(0, Failure::StoreSuspect, false);
    assert_eq!(round(&mut control, 5_000, None, 0)[0], Order::Answer);
    control.learn(5_000, Fact::Promoted, None);
    assert!(!control.panicked(Some(Offset(3))), "once more");
    assert_eq!(round(&mut control, 5_000, None, 0)[0], Order::Open);
    assert_eq!(control.fail(5_000, Failure::ReadSuspect, false), Recovery::Reread);
    assert_eq!(control.fail(5_000, Failure::ReadSuspect, false), Recovery::Rebuild);
}

#[test]
fn a_standby_without_a_state_opens_the_partition_as_its_owner() {
    let mut control = Control::new(None).standing_by();
    control.fail(0, Failure::StateLost, false);
    round(&mut control, 0, None, 0);
    control.learn(100, Fact::Promoted, None);
    assert_eq!(round(&mut control, 100, None, 0)[0], Order::Open, "at once");
    assert_eq!(control.role(), Role::Owner);
    let mut failing = Control::new(None).standing_by();
    round(&mut failing, 0, None, 0);
    failing.learn(100, Fact::Promoted, Some(&QUIET));
    assert_eq!(failing.next(100, Some(&QUIET)), Order::TakeOver);
    failing.fail(100, Failure::Passing, false);
    round(&mut failing, 200, Some(QUIET), 0);
    assert_eq!(
        round(&mut failing, 1_100, Some(QUIET), 0)[0],
        Order::TakeOver,
        "it is tried again"
    );
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
