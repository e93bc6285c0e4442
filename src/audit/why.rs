//! Why a user has a status: the change that gave it, and the records of the log behind that change.
//!
//! The events of the user's partition are folded from the beginning, so that deadlines, logins and leases are what they were.

use super::RECYCLE_EVERY;
use super::id_text;
use crate::api::answers::{ExpectedChange, Explanation, ExplanationStep};
use crate::presence::change::{Cause, Change, Output};
use crate::presence::deadlines::{PendingChange, Upto};
use crate::presence::event::{Event, Intent};
use crate::presence::policy::Policy;
use crate::presence::state::{HashSeed, State};
use crate::presence::{LogTime, Offset, Partition};
use std::collections::BTreeMap;

/// Follows one user through the events of its partition.
pub struct Why {
    user: Box<str>,
    /// None: as of the end of the log.
    until: Option<LogTime>,
    state: State,
    /// The records behind each of the user's devices that is logged in, by platform and device.
    devices: BTreeMap<Key, Behind>,
    /// The last lease of each gateway that was not refused.
    leases: BTreeMap<Box<str>, EventStep>,
    /// The last change that altered the user's status, with what is behind it.
    found: Option<Found>,
    /// What was pending at the time asked about, before the record after it was read: that record may begin a grace period,
    /// and nobody knew of it at that time.
    pending_then: Vec<ExpectedChange>,
    /// Everything that holds at the time asked about was seen.
    is_done: bool,
    events: u64,
}

type Key = (Box<str>, Box<str>);

#[derive(Clone, Copy)]
struct Behind {
    evidence: EventStep,
    login: EventStep,
}

/// A record that is named in a step.
#[derive(Clone, Copy)]
pub(super) struct EventStep {
    pub offset: Offset,
    pub ts: u64,
    pub name: &'static str,
}

impl EventStep {
    pub fn with_role(self, role: &'static str) -> ExplanationStep {
        ExplanationStep::Event {
            offset: self.offset.0,
            ts: self.ts,
            name: self.name.into(),
            role: role.into(),
        }
    }
}

struct Found {
    change: Change,
    steps: Vec<ExplanationStep>,
}

impl ExpectedChange {
    fn of(change: &PendingChange<'_>) -> ExpectedChange {
        ExpectedChange {
            platform: change.platform.to_owned(),
            device: change.device.to_owned(),
            deadline: change.deadline.0,
            then: change.cause.name().into(),
        }
    }
}

impl Why {
    /// Begins with an empty partition under the first policy. `until`: the time asked about; none: the end of the log.
    pub fn new(user: &str, partition: Partition, policy: Policy, until: Option<LogTime>, seed: HashSeed) -> Why {
        Why {
            user: user.into(),
            until,
            state: State::seeded(partition, policy, seed),
            devices: BTreeMap::new(),
            leases: BTreeMap::new(),
            found: None,
            pending_then: Vec::new(),
            is_done: false,
            events: 0,
        }
    }

    /// Takes the next record; `event` is `None` for a malformed one. Returns whether more records are needed.
    pub fn apply(&mut self, offset: Offset, ts: u64, event: Option<&Event<'_>>) -> bool {
        if self.is_done {
            return false;
        }
        let here = EventStep {
            offset,
            ts,
            name: event.map_or("malformed", Event::name),
        };
        // The time of the log never goes back, whatever time a record has.
        if let Some(until) = self.until
            && ts > until.0
        {
            let then = self.pending().into_iter().filter(|one| one.deadline > until.0);
            self.pending_then = then.collect();
        }
        self.state.begin(offset, ts);
        if let Some(until) = self.until
            && self.state.time().is_some_and(|time| time > until)
        {
            // What is due by then has happened by then, though it is found out only here; what is due later has not.
            let after = LogTime(until.0.saturating_add(1));
            let upto = Upto {
                deadline: after,
                user: "",
            };
            self.step(here, |state, out| state.fire(Some(upto), out));
            self.is_done = true;
            return false;
        }
        self.step(here, |state, out| state.fire(None, out));
        if matches!(event, Some(Event::Connect { who, .. }) if *who.user == *self.user) {
            self.prune();
        }
        let is_ignored = self.step(here, |state, out| state.apply(event, out));
        self.note(here, event, is_ignored);
        self.events += 1;
        if self.events.is_multiple_of(RECYCLE_EVERY) {
            self.state.take_dirt();
        }
        true
    }

    /// Forgets the records behind devices that are logged in no longer: some deadlines remove a device without a change.
    fn prune(&mut self) {
        let Why {
            user, state, devices, ..
        } = self;
        let Some(image) = state.slot_of(user).and_then(|slot| state.image(slot)) else {
            devices.clear();
            return;
        };
        devices.retain(|(platform, device), _| {
            image
                .devices
                .iter()
                .any(|one| one.platform == &**platform && one.device == &**device && one.phase.session().is_some())
        });
    }

    /// Does a part of the fold and keeps the last change that altered the user's status. Returns whether the event, or a part
    /// of it, was ignored.
    fn step(&mut self, here: EventStep, part: impl FnOnce(&mut State, &mut dyn FnMut(Output))) -> bool {
        let mut is_ignored = false;
        let Why {
            user,
            state,
            devices,
            leases,
            found,
            ..
        } = self;
        part(state, &mut |output| match output {
            Output::Change(change) if change.user == *user => {
                if change.cause == Cause::Forgotten {
                    *found = None;
                } else if change.before != change.after {
                    let steps = steps(&change, here, devices, leases);
                    *found = Some(Found { change, steps });
                }
            }
            Output::Ignored(_) => is_ignored = true,
            Output::Change(_) | Output::Kick(_) => {}
        });
        is_ignored
    }

    /// Remembers the record where it is evidence or login of one of the user's devices, or a lease in force.
    fn note(&mut self, here: EventStep, event: Option<&Event<'_>>, is_ignored: bool) {
        let Some(event) = event else { return };
        let mut login_of = None;
        let concerns = match event {
            Event::Lease { gateway, .. } => {
                if !is_ignored {
                    self.leases.insert(gateway.as_ref().into(), here);
                }
                false
            }
            Event::Connect { who, intent, .. } => {
                login_of = Some((who, *intent));
                *who.user == *self.user
            }
            Event::Heartbeat { who, .. } | Event::Background { who, .. } | Event::Foreground { who, .. } => {
                *who.user == *self.user
            }
            Event::Heartbeats { .. } | Event::Alive { .. } => true,
            Event::Disconnect { .. }
            | Event::Logout { .. }
            | Event::Kick { .. }
            | Event::CustomStatus { .. }
            | Event::Forget { .. }
            | Event::Policy { .. }
            | Event::Revision { .. }
            | Event::Tick => false,
        };
        if !concerns {
            return;
        }
        let image = self.state.slot_of(&self.user).and_then(|slot| self.state.image(slot));
        let Some(image) = image else {
            self.devices.clear();
            return;
        };
        for device in &image.devices {
            let Some(session) = device.phase.session() else {
                continue;
            };
            if session.evidence != here.offset {
                continue;
            }
            let key: Key = (device.platform.into(), device.device.into());
            let before = self.devices.get(&key);
            let is_login = login_of.is_some_and(|(who, intent)| {
                *who.platform == *device.platform
                    && *who.device == *device.device
                    && (intent == Intent::Login || before.is_none())
            });
            let login = if is_login {
                here
            } else {
                before.map_or(here, |before| before.login)
            };
            self.devices.insert(key, Behind { evidence: here, login });
        }
    }

    /// Returns the answer; none if nothing is known of the user at that time.
    pub fn answer(&self) -> Option<Explanation> {
        let Found { change, steps } = self.found.as_ref()?;
        let mut pending = self.pending();
        for one in &mut pending {
            let is_same = |then: &&ExpectedChange| (&then.platform, &then.device) == (&one.platform, &one.device);
            // A device whose deadline was after the time asked about is as it was then.
            if let Some(then) = self.pending_then.iter().find(is_same) {
                *one = then.clone();
            }
        }
        Some(Explanation {
            user: self.user.to_string(),
            status: change.after.name().into(),
            since: change.at.0,
            steps: steps.clone(),
            pending,
        })
    }

    /// Returns what is pending in the state as it is.
    fn pending(&self) -> Vec<ExpectedChange> {
        let slot = self.state.slot_of(&self.user);
        let pending = slot.map(|slot| self.state.pending_of(slot)).unwrap_or_default();
        pending.iter().map(ExpectedChange::of).collect()
    }
}

/// The steps from a change to its evidence.
fn steps(
    change: &Change,
    here: EventStep,
    devices: &BTreeMap<Key, Behind>,
    leases: &BTreeMap<Box<str>, EventStep>,
) -> Vec<ExplanationStep> {
    let mut steps = vec![change_step(change)];
    let first = change.devices.first();
    let behind = first.and_then(|device| devices.get(&(device.platform.clone(), device.device.clone())));
    // What fires has its evidence in an earlier record; what an event does has that event.
    let is_firing = change.evidence != here.offset;
    let evidence = if is_firing {
        steps.push(ExplanationStep::Deadline {
            kind: deadline_kind(change.cause).into(),
            deadline: change.at.0,
        });
        behind.map(|behind| behind.evidence)
    } else {
        Some(here)
    };
    let mut event = |step: EventStep, role| steps.push(step.with_role(role));
    if let Some(evidence) = evidence {
        event(evidence, "evidence");
    }
    if let Some(behind) = behind
        && evidence.is_none_or(|evidence| evidence.offset != behind.login.offset)
        && change.cause != Cause::Login
    {
        event(behind.login, "login");
    }
    if is_firing
        && change.cause == Cause::GatewayLost
        && let Some(lease) = first.and_then(|device| leases.get(&device.gateway))
    {
        event(*lease, "lease");
    }
    steps
}

/// The step for a change.
pub(super) fn change_step(change: &Change) -> ExplanationStep {
    ExplanationStep::Change {
        id: id_text(change.id),
        offset: change.id.offset.0,
        at: change.at.0,
        logged_at: change.logged_at.0,
        cause: change.cause.name().into(),
    }
}

/// The kind of deadline that gives a change of this cause.
pub(super) fn deadline_kind(cause: Cause) -> &'static str {
    match cause {
        Cause::Timeout => "heartbeat",
        Cause::GatewayLost => "lease",
        Cause::Background => "background",
        Cause::Closed | Cause::Exit => "linger",
        Cause::PushExpired => "away",
        // No deadline gives these.
        Cause::Login
        | Cause::Resume
        | Cause::Revive
        | Cause::Logout
        | Cause::Kicked
        | Cause::CustomStatus
        | Cause::Forgotten => cause.name(),
    }
}
