//! What held of a user and when: its own stretches of a status, then those of each device.

use super::id_text;
use crate::api::answers::StatusInterval;
use crate::presence::change::{Change, OutputId};
use crate::presence::{LogTime, Offset, Status};
use std::collections::BTreeMap;

/// The intervals of one user that hold at some moment of a time, as the changes gave them so far.
pub struct History {
    user: String,
    time: Asked,
    own: Vec<Interval>,
    /// By platform and device.
    devices: BTreeMap<(Box<str>, Box<str>), Vec<Interval>>,
}

/// From when to when, both included.
#[derive(Clone, Copy)]
struct Asked {
    from: Option<LogTime>,
    to: Option<LogTime>,
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

impl Asked {
    /// Whether an interval holds at some moment of it. Once the interval has ended, that does not change any more.
    fn has(&self, interval: &Interval) -> bool {
        let begins = interval.from.at;
        let ends_before = |from: LogTime| interval.to.is_some_and(|end| end.at <= from) && begins < from;
        !self.from.is_some_and(ends_before) && self.to.is_none_or(|to| begins <= to)
    }
}

impl History {
    /// Of all times.
    pub fn new(user: &str) -> History {
        History::within(user, None, None)
    }

    /// From `from` to `to`, both included. Intervals of other times are forgotten when they have ended.
    pub fn within(user: &str, from: Option<LogTime>, to: Option<LogTime>) -> History {
        History {
            user: user.to_owned(),
            time: Asked { from, to },
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
            advance(&mut self.own, change.after, bound, self.time);
        }
        for device in &change.devices {
            let key = (device.platform.clone(), device.device.clone());
            advance(self.devices.entry(key).or_default(), device.after, bound, self.time);
        }
    }

    /// Returns the intervals: the user's own, then each device's by platform and device, each newest last.
    pub fn lines(&self) -> impl Iterator<Item = StatusInterval> {
        let own = self.own.iter().map(|one| (None, one));
        let devices = self.devices.iter();
        let devices = devices.flat_map(|(key, intervals)| intervals.iter().map(move |one| (Some(key), one)));
        let asked = own.chain(devices).filter(|(_, one)| self.time.has(one));
        asked.map(|(key, one)| self.line(key, one))
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
fn advance(intervals: &mut Vec<Interval>, status: Status, bound: Bound, time: Asked) {
    if let Some(last) = intervals.last_mut() {
        if last.status == status {
            return;
        }
        last.to = Some(bound);
        if !time.has(last) {
            intervals.pop();
        }
    }
    intervals.push(Interval {
        status,
        from: bound,
        to: None,
    });
}
