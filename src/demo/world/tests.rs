//! Folds a simulated world and checks the outputs.

use super::*;
use crate::presence::change::{Cause, Output};
use crate::presence::policy::Outage;
use crate::presence::state::State;
use crate::presence::{Offset, Partition, Status};
use crate::schema::json::read_new_events;
use std::collections::BTreeMap;

const BEGIN: u64 = 1_800_000_000_000;
const STEP: u64 = 250;

/// The result of folding a world's events.
struct Day {
    /// Changes per second.
    changes: Vec<u64>,
    causes: BTreeMap<&'static str, u64>,
    ignored: BTreeMap<&'static str, u64>,
    events: u64,
    /// The percentage of people who are online, each minute.
    online: Vec<u64>,
}

fn fold(users: u32, seed: u64, seconds: u64) -> Day {
    let policy = Policy {
        outage: Outage {
            silence_ms: 10_000,
            grace_ms: 60_000,
        },
        ..Policy::default()
    };
    let mut state = State::new(Partition(0), policy);
    let mut world = DemoWorld::new(users, seed);
    let mut day = Day {
        changes: vec![0; seconds as usize],
        causes: BTreeMap::new(),
        ignored: BTreeMap::new(),
        events: 0,
        online: Vec::new(),
    };
    let mut online: BTreeMap<String, bool> = BTreeMap::new();
    for step in 0..seconds * SECOND / STEP {
        let now = BEGIN + step * STEP;
        for happening in world.advance(now) {
            let body = format!("[{}]", happening.json);
            let event = read_new_events(&body).unwrap().remove(0).map(|new| new.event);
            let event = event.unwrap_or_else(|bad| panic!("{bad}: {}", happening.json));
            assert_eq!(event.name() == "kick", happening.by_operator);
            state.fold(Offset(day.events), now, Some(&event), &mut |output| match output {
                Output::Change(change) => {
                    day.changes[(step * STEP / SECOND) as usize] += 1;
                    *day.causes.entry(change.cause.name()).or_default() += 1;
                    online.insert(change.user.to_string(), change.after == Status::Online);
                }
                Output::Ignored(ignored) => *day.ignored.entry(ignored.reason.name()).or_default() += 1,
                Output::Kick(_) => {}
            });
            day.events += 1;
        }
        if step % (MINUTE / STEP) == 0 {
            let count = online.values().filter(|online| **online).count() as u64;
            day.online.push(count * 100 / u64::from(users));
        }
    }
    day
}

#[test]
fn an_hour_has_everything_that_an_hour_can_have_at_a_believable_rate() {
    let day = fold(1_000, 7, 3_600);
    for cause in Cause::ALL {
        // Nobody is away for a week, and no user is forgotten.
        let possible = !matches!(cause, Cause::PushExpired | Cause::Forgotten);
        let count = day.causes.get(cause.name()).copied().unwrap_or_default();
        assert_eq!(count > 0, possible, "{}: {:?}", cause.name(), day.causes);
    }
    let early: u64 = day.changes[..6].iter().sum();
    assert!((350..450).contains(&early), "{early} in the first seconds");
    for (minute, seconds) in day.changes.chunks(60).enumerate().skip(1) {
        let changes: u64 = seconds.iter().sum();
        assert!((5 * 60..20 * 60).contains(&changes), "{changes} in minute {minute}");
    }
    let ignored: u64 = day.ignored.values().sum();
    assert!(ignored * 200 < day.events, "{:?} of {}", day.ignored, day.events);
    for (minute, percent) in day.online.iter().enumerate().skip(1) {
        assert!((30..75).contains(percent), "{percent} % online in minute {minute}");
    }
}

#[test]
fn events_are_valid_whatever_the_seed_and_the_size() {
    for (users, seed) in [(1, 1), (1, 2), (7, 3), (60, 4), (300, 5), (3_000, 6)] {
        let day = fold(users, seed, 400);
        assert!(day.events > 300, "leases at least");
        assert!(users < 7 || day.causes["login"] > 0);
    }
}

#[test]
fn the_same_seed_gives_the_same_world_and_another_one_another() {
    let world = |seed| -> Vec<DemoEvent> {
        let mut world = DemoWorld::new(50, seed);
        (0..400).flat_map(|step| world.advance(BEGIN + step * STEP)).collect()
    };
    assert_eq!(world(1), world(1));
    assert_ne!(world(1), world(2));
}

#[test]
fn within_a_minute_everybody_was_there_a_gateway_died_and_a_disconnect_came_late() {
    for (users, seed) in [(1_000, 1), (1_000, 2), (100, 3), (5_000, 4)] {
        let mut world = DemoWorld::new(users, seed);
        let mut seen = std::collections::BTreeSet::new();
        for step in 0..10 * SECOND / STEP + 2 {
            for happening in world.advance(BEGIN + step * STEP) {
                let event: Value = serde_json::from_str(&happening.json).unwrap();
                if event["type"] == "connect" {
                    seen.insert(event["user"].as_str().unwrap().to_owned());
                }
            }
        }
        assert_eq!(seen.len(), users as usize, "all of them within ten seconds");
        let day = fold(users, seed, 150);
        assert!(day.causes["gateway_lost"] > 0, "{:?}", day.causes);
        assert!(day.ignored["superseded"] > 0, "{:?}", day.ignored);
    }
}

#[test]
fn a_machine_that_slept_owes_nothing() {
    let mut world = DemoWorld::new(1_000, 1);
    for step in 0..400 {
        world.advance(BEGIN + step * STEP);
    }
    let hours_later = world.advance(BEGIN + 10 * 3_600 * SECOND);
    assert!(hours_later.len() < 300, "{}", hours_later.len());
    // The wall clock steps back: nothing happens, and then time goes on.
    assert!(world.advance(BEGIN).is_empty());
    assert!(!world.advance(BEGIN + STEP_MAX).is_empty());
}

#[test]
fn a_gateway_that_comes_back_has_a_greater_epoch_and_begins_with_its_lease() {
    let mut world = DemoWorld::new(200, 3);
    let mut epochs: BTreeMap<String, u64> = BTreeMap::new();
    let mut restarts = 0;
    for step in 0..10 * MINUTE / STEP {
        for happening in world.advance(BEGIN + step * STEP) {
            let event: Value = serde_json::from_str(&happening.json).unwrap();
            let (Some(gateway), Some(epoch)) = (event["gateway"].as_str(), event["epoch"].as_u64()) else {
                continue;
            };
            let known = epochs.entry(gateway.to_owned()).or_insert(0);
            if epoch != *known {
                assert!(epoch > *known);
                assert_eq!(event["type"], "lease");
                restarts += u64::from(*known > 0);
                *known = epoch;
            }
        }
    }
    assert_eq!(epochs.len(), GATEWAYS.len());
    assert!((1..=7).contains(&restarts), "{restarts}");
}
