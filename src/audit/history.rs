//! What held of a user and when: its own stretches of a status, then those of each device.

use super::id_text;
use crate::api::answers::StatusInterval;
use crate::presence::change::{Change, OutputId};
use crate::presence::{LogTime, Offset, Status};
use std::collections::BTreeMap;

/// The intervals of one user, as the changes gave them so far.
pub struct History {
    user: String,
    own: Vec<Interval>,
    /// By platform and device.
    devices: BTreeMap<(Box<str>, Box<str>), Vec<Interval>>,
}

/// A stretch of one status.
struct Interval {
    status: Status,
    from: Bound,
    /// None while it still holds.
    to: Option<Bound>,
}

/// The change that begins or ends an interval.
#[derive(Clone, Copy)]
struct Bound {
    at: LogTime,
    cause: &'static str,
    change: OutputId,
    evidence: Offset,
}

impl History {
    pub fn new(user: &str) -> History {
        History {
            user: user.to_owned(),
            own: Vec::new(),
            devices: BTreeMap::new(),
        }
    }

    /// Takes the next change of the user's partition. Changes of other users are skipped.
    pub fn apply(&mut self, change: &Change) {
        if *change.user != *self.user {
            return;
        }
        let bound = Bound {
            at: change.at,
            cause: change.cause.name(),
            change: change.id,
            evidence: change.evidence,
        };
        // Without the changes before (retention), a change that keeps the status does not tell since when it holds.
        if !self.own.is_empty() || change.begins_status() {
            advance(&mut self.own, change.after, bound);
        }
        for device in &change.devices {
            let key = (device.platform.clone(), device.device.clone());
            advance(self.devices.entry(key).or_default(), device.after, bound);
        }
    }

    /// Returns the intervals that hold at some moment from `from` to `to`, both included: the user's own, then each device's by
    /// platform and device, each newest last.
    pub fn lines(&self, from: Option<LogTime>, to: Option<LogTime>) -> Vec<StatusInterval> {
        let holds = |interval: &&Interval| {
            let begins = interval.from.at;
            let ends_before = |from: LogTime| interval.to.is_some_and(|end| end.at <= from) && begins < from;
            !from.is_some_and(ends_before) && to.is_none_or(|to| begins <= to)
        };
        let own = self.own.iter().filter(holds).map(|one| self.line(None, one));
        let devices = self.devices.iter().flat_map(|(key, intervals)| {
            let intervals = intervals.iter().filter(holds);
            intervals.map(move |one| self.line(Some(key), one))
        });
        own.chain(devices).collect()
    }

    fn line(&self, device: Option<&(Box<str>, Box<str>)>, interval: &Interval) -> StatusInterval {
        StatusInterval {
            user: self.user.clone(),
            platform: device.map(|(platform, _)| platform.to_string()),
            device: device.map(|(_, device)| device.to_string()),
            status: interval.status.name().into(),
            from: interval.from.at.0,
            to: interval.to.map(|end| end.at.0),
            cause: interval.from.cause.into(),
            change: id_text(interval.from.change),
            evidence: interval.from.evidence.0,
            end_cause: interval.to.map(|end| end.cause.into()),
            end_change: interval.to.map(|end| id_text(end.change)),
            end_evidence: interval.to.map(|end| end.evidence.0),
        }
    }
}

/// Ends the interval that holds and begins the next one. A change that keeps the status cuts nothing.
fn advance(intervals: &mut Vec<Interval>, status: Status, bound: Bound) {
    if let Some(last) = intervals.last_mut() {
        if last.status == status {
            return;
        }
        last.to = Some(bound);
    }
    intervals.push(Interval {
        status,
        from: bound,
        to: None,
    });
}
