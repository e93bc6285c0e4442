//! Why a user has its status now, without a fold: byte for byte the answer of a fold of all events, or none.

use super::{RECORDS, SEEDS, Story};
use rollcall::audit::why::Why;
use rollcall::audit::why_now::{EventRecords, StatusChanges, WithoutFold, why_now};
use rollcall::engine::past::UserNow;
use rollcall::presence::Offset;
use rollcall::presence::change::{Change, Output};
use rollcall::presence::event::Event;
use rollcall::presence::state::{HashSeed, State};
use rollcall::schema::json as schema_json;
use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::ops::ControlFlow;

struct Lines<'s>(&'s [String]);

impl EventRecords for Lines<'_> {
    type Error = Infallible;

    fn event_at(&mut self, offset: Offset) -> Result<Option<(u64, &'static str)>, Infallible> {
        let mut lines = self.0.iter().map(|line| schema_json::read_line(line).unwrap());
        let found = lines.find(|line| line.offset == offset);
        Ok(found.and_then(|line| Some((line.ts, line.event.ok()?.name()))))
    }

    fn events_between(
        &mut self,
        after: Offset,
        before: Offset,
        user: &str,
        each: &mut dyn FnMut(u64, Option<&Event<'_>>) -> ControlFlow<()>,
    ) -> Result<(), Infallible> {
        let lines = self.0.iter().map(|line| schema_json::read_line(line).unwrap());
        for line in lines.filter(|line| after < line.offset && line.offset < before) {
            let event = line.event.as_ref().ok().filter(|event| event.user() == Some(user));
            if each(line.ts, event).is_break() {
                break;
            }
        }
        Ok(())
    }
}

fn status_changes(changes: &[Change]) -> StatusChanges {
    let mut matter = StatusChanges::default();
    changes.iter().for_each(|change| matter.apply(change));
    matter
}

#[test]
fn without_a_fold_the_answer_is_that_of_a_fold_or_none() {
    let (mut certain, mut asked) = (0, 0);
    let mut causes = BTreeSet::new();
    for seed in (0..SEEDS).step_by(4) {
        let story = Story::new(seed);
        for records in [RECORDS / 5, RECORDS / 2, RECORDS] {
            let input = &story.input[..records];
            let mut state = State::seeded(story.partition, story.policy.clone(), HashSeed(7));
            let mut changes: BTreeMap<Box<str>, Vec<Change>> = BTreeMap::new();
            for line in input {
                let line = schema_json::read_line(line).unwrap();
                state.fold(line.offset, line.ts, line.event.as_ref().ok(), &mut |output| {
                    if let Output::Change(change) = output {
                        changes.entry(change.user.clone()).or_default().push(change);
                    }
                });
            }
            for user in story.users().into_iter().chain(["nobody at all"]) {
                let mut why = Why::new(user, story.partition, story.policy.clone(), None, HashSeed(7));
                for line in input {
                    let line = schema_json::read_line(line).unwrap();
                    why.apply(line.offset, line.ts, line.event.as_ref().ok());
                }
                let slot = state.slot_of(user);
                let now = slot.map(|slot| UserNow::of_slot(&state, slot)).unwrap_or_default();
                let image = slot.and_then(|slot| state.image(slot));
                if let Some(image) = image.filter(|image| !image.has_online_device()) {
                    assert_eq!(
                        UserNow::of_away(&image),
                        now,
                        "seed {seed}, {user}: as the store has it"
                    );
                }
                let changes = changes.get(user).map(Vec::as_slice).unwrap_or_default();
                let Ok(found) = why_now(user, &status_changes(changes), true, &now, &mut Lines(input));
                asked += 1;
                let WithoutFold::Certain(answer) = found else { continue };
                assert_eq!(answer, why.answer(), "seed {seed}, {user}, {records} records");
                certain += 1;
                let status = changes.iter().rev().find(|change| change.before != change.after);
                causes.extend(status.map(|change| change.cause.name()));
                // What came before the last of the changes that matter may be gone.
                let kept = &changes[changes.len().saturating_sub(3)..];
                let Ok(found) = why_now(user, &status_changes(kept), false, &now, &mut Lines(input));
                if let WithoutFold::Certain(answer) = found {
                    assert_eq!(
                        answer,
                        why.answer(),
                        "seed {seed}, {user}, {records} records, changes cut"
                    );
                }
            }
        }
    }
    assert!(certain * 2 > asked, "{certain} of {asked} needed no fold");
    let causes = causes.into_iter().collect::<Vec<_>>().join(" ");
    for cause in [
        "login",
        "resume",
        "logout",
        "closed",
        "timeout",
        "background",
        "kicked",
        "push_expired",
    ] {
        assert!(causes.contains(cause), "{cause} is not among {causes}");
    }
}
