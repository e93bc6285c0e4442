//! Why a user has its status now, from the user's changes and its state, without a fold.
//!
//! The answer is the one of [`super::why`], which folds every event of the partition. Nearly all of it stands elsewhere too:
//! the change in the topic, its evidence at the offset that the change names, what is pending in the state. Only the login
//! of the device and the lease of a gateway have no offset anywhere. The login is that of the last change with cause `login`
//! that brought the device online, unless the device logged in again while it was online: that gives no change, so the records
//! between are searched for it. What is not certain then (and every lost lease) needs the fold.

use super::why::{EventStep, change_step, deadline_kind};
use crate::api::answers::{ExpectedChange, Explanation, ExplanationStep};
use crate::engine::past::{Past, PastError, UserNow};
use crate::presence::change::{Cause, Change, DeviceChange};
use crate::presence::event::{Event, Intent};
use crate::presence::{LogTime, Offset, Status};
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Where the partition's events are read.
pub trait EventRecords {
    type Error;

    /// Returns timestamp and name of the event at an offset; none if there is no such record, or it is malformed.
    fn event_at(&mut self, offset: Offset) -> Result<Option<(u64, &'static str)>, Self::Error>;

    /// Visits the events of the user between two records, neither of them included, in order, with their timestamps. Of
    /// another user's record `each` is called without the event. Fails if records are gone.
    fn events_between(
        &mut self,
        after: Offset,
        before: Offset,
        user: &str,
        each: &mut dyn FnMut(u64, Option<&Event<'_>>) -> ControlFlow<()>,
    ) -> Result<(), Self::Error>;
}

impl EventRecords for &Past {
    type Error = PastError;

    fn event_at(&mut self, offset: Offset) -> Result<Option<(u64, &'static str)>, PastError> {
        Past::event_at(self, offset, |ts, event| (ts, event.name()))
    }

    fn events_between(
        &mut self,
        after: Offset,
        before: Offset,
        user: &str,
        each: &mut dyn FnMut(u64, Option<&Event<'_>>) -> ControlFlow<()>,
    ) -> Result<(), PastError> {
        Past::events_between(self, after, before, user, each)
    }
}

/// An answer that is certain, or that one is not to be had this way.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum WithoutFold {
    Certain(Option<Explanation>),
    NeedsFold,
}

/// What matters of a user's changes: the last one of its status, and each device's last login. Its size follows from the devices that
/// the user has had, and not from how many changes there were.
#[derive(Default)]
pub struct StatusChanges {
    /// With the login of the change's device before it.
    last: Option<(Change, Option<LoginChange>)>,
    /// By platform and device.
    logins: BTreeMap<(Box<str>, Box<str>), LoginChange>,
    was_forgotten: bool,
}

/// A change with cause `login` that brought a device online.
#[derive(Clone, Copy)]
struct LoginChange {
    offset: Offset,
    at: LogTime,
}

impl StatusChanges {
    /// Takes the user's next change.
    pub fn apply(&mut self, change: &Change) {
        if change.cause == Cause::Forgotten {
            *self = StatusChanges {
                was_forgotten: true,
                ..StatusChanges::default()
            };
            return;
        }
        let key = |device: &DeviceChange| (device.platform.clone(), device.device.clone());
        let device = change.devices.first();
        if change.before != change.after {
            let login = device.and_then(|device| self.logins.get(&key(device)).copied());
            self.last = Some((change.clone(), login));
        }
        if change.cause == Cause::Login
            && let Some(device) = device
            && device.after == Status::Online
        {
            let (offset, at) = (change.id.offset, change.at);
            self.logins.insert(key(device), LoginChange { offset, at });
        }
    }
}

/// Answers for a user as of the end of the partition. `changes` are made of those of the user that are kept, in order; `are_all`: none
/// of the partition's changes are gone.
pub fn why_now<R: EventRecords>(
    user: &str,
    changes: &StatusChanges,
    are_all: bool,
    now: &UserNow,
    records: &mut R,
) -> Result<WithoutFold, R::Error> {
    let Some((change, login)) = &changes.last else {
        let is_unknown = are_all || changes.was_forgotten;
        return Ok(match is_unknown {
            true => WithoutFold::Certain(None),
            false => WithoutFold::NeedsFold,
        });
    };
    let mut steps = vec![change_step(change)];
    // What fires has its evidence in an earlier record; what an event does has that event.
    let is_firing = change.evidence != change.id.offset;
    if is_firing {
        if change.cause == Cause::GatewayLost {
            return Ok(WithoutFold::NeedsFold);
        }
        steps.push(ExplanationStep::Deadline {
            kind: deadline_kind(change.cause).into(),
            deadline: change.at.0,
        });
    }
    let Some(evidence) = event_step(records, change.evidence, "evidence")? else {
        return Ok(WithoutFold::NeedsFold);
    };
    steps.push(evidence);
    if change.cause != Cause::Login
        && let Some(device) = change.devices.first()
    {
        let Some(login) = certain_login(user, device, change, *login, now, records)? else {
            return Ok(WithoutFold::NeedsFold);
        };
        if login != change.evidence {
            let Some(step) = event_step(records, login, "login")? else {
                return Ok(WithoutFold::NeedsFold);
            };
            steps.push(step);
        }
    }
    let pending = now.pending.iter().map(|one| ExpectedChange {
        platform: one.platform.to_string(),
        device: one.device.to_string(),
        deadline: one.deadline.0,
        then: one.cause.name().into(),
    });
    Ok(WithoutFold::Certain(Some(Explanation {
        user: user.to_owned(),
        status: change.after.name().into(),
        since: change.at.0,
        steps,
        pending: pending.collect(),
    })))
}

/// Returns the step that names the event at an offset; none if there is no such event any more.
fn event_step<R: EventRecords>(
    records: &mut R,
    offset: Offset,
    role: &'static str,
) -> Result<Option<ExplanationStep>, R::Error> {
    let found = records.event_at(offset)?;
    Ok(found.map(|(ts, name)| EventStep { offset, ts, name }.with_role(role)))
}

/// Returns the record with which a device logged in that a change is about; none if that is not certain. `login` is its last login
/// that gave a change.
fn certain_login<R: EventRecords>(
    user: &str,
    device: &DeviceChange,
    change: &Change,
    login: Option<LoginChange>,
    now: &UserNow,
    records: &mut R,
) -> Result<Option<Offset>, R::Error> {
    let Some(login) = login else { return Ok(None) };
    // A device that still has the login of that time has had no later one, except at the same time.
    let kept = now
        .logins
        .iter()
        .find(|(platform, name, _)| (platform, name) == (&device.platform, &device.device));
    let is_kept = kept.is_some_and(|(_, _, login_at)| *login_at == login.at);
    let mut is_certain = true;
    records.events_between(login.offset, change.id.offset, user, &mut |ts, event| {
        if is_kept && ts > login.at.0 {
            return ControlFlow::Break(());
        }
        is_certain = !event.is_some_and(|event| logs_in(event, device));
        match is_certain {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        }
    })?;
    Ok(is_certain.then_some(login.offset))
}

/// Whether an event may be a login of a device, though it may have been refused.
fn logs_in(event: &Event<'_>, device: &DeviceChange) -> bool {
    match event {
        Event::Connect { who, intent, .. } => {
            *intent == Intent::Login && (&*who.platform, &*who.device) == (&*device.platform, &*device.device)
        }
        Event::Heartbeat { .. }
        | Event::Heartbeats { .. }
        | Event::Alive { .. }
        | Event::Background { .. }
        | Event::Foreground { .. }
        | Event::Disconnect { .. }
        | Event::Logout { .. }
        | Event::Kick { .. }
        | Event::CustomStatus { .. }
        | Event::Forget { .. }
        | Event::Lease { .. }
        | Event::Policy { .. }
        | Event::Revision { .. }
        | Event::Tick => false,
    }
}
