//! Stretches of a status, closed by the change that ended them.
//!
//! For each user and each device it keeps the interval that holds, and nothing of those that have ended. Together they are
//! the intervals of [`History`](crate::audit::history::History) of every user.

use crate::presence::change::{Cause, Change, OutputId};
use crate::presence::{LogTime, Offset, Partition, Status};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;

/// The change that begins or ends an interval.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IntervalChange {
    pub at: LogTime,
    pub logged_at: LogTime,
    pub cause: Cause,
    pub change: OutputId,
    pub evidence: Offset,
}

/// An interval that holds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IntervalStart {
    pub status: Status,
    pub by: IntervalChange,
    /// The gateway on which a device was when the interval began; `None` for a user's own.
    pub gateway: Option<Box<str>>,
}

/// An interval that a change has ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EndedInterval {
    pub start: IntervalStart,
    /// Platform and device; `None`: the user's own.
    pub device: Option<(Box<str>, Box<str>)>,
    pub end: IntervalChange,
}

/// What holds of a user and its devices.
#[derive(Default)]
struct UserIntervals {
    own: Option<IntervalStart>,
    /// Few, so they are searched one by one.
    devices: Vec<(Box<str>, Box<str>, IntervalStart)>,
}

/// The intervals of a partition that hold after the changes so far.
pub struct OpenIntervals {
    partition: Partition,
    users: HashMap<Box<str>, UserIntervals>,
    count: usize,
}

/// An open interval, as it is kept until an export is continued.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct KeptInterval {
    user: String,
    platform: Option<String>,
    device: Option<String>,
    gateway: Option<String>,
    status: String,
    at: u64,
    logged_at: u64,
    cause: String,
    /// Offset and index of the change's id.
    change: (u64, u64),
    evidence: u64,
}

impl OpenIntervals {
    pub fn new(partition: Partition) -> OpenIntervals {
        OpenIntervals {
            partition,
            users: HashMap::new(),
            count: 0,
        }
    }

    /// Returns how many intervals hold.
    pub fn len(&self) -> usize {
        self.count
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Takes the next change of the partition. Returns what it has ended: the user's own interval, then those of its devices.
    ///
    /// A change that keeps the user's status does not cut its interval. Without the changes before (retention) such a change
    /// does not tell since when the status holds, so the user's own interval then begins with its next status.
    pub fn apply(&mut self, change: &Change) -> Vec<EndedInterval> {
        let by = IntervalChange {
            at: change.at,
            logged_at: change.logged_at,
            cause: change.cause,
            change: change.id,
            evidence: change.evidence,
        };
        if !self.users.contains_key(&change.user) {
            self.users.insert(change.user.clone(), UserIntervals::default());
        }
        let Some(user) = self.users.get_mut(&change.user) else {
            return Vec::new();
        };
        let mut ended = Vec::new();
        match &mut user.own {
            Some(own) if own.status == change.after => {}
            None if !change.begins_status() => {}
            own => {
                let start = IntervalStart {
                    status: change.after,
                    by,
                    gateway: None,
                };
                match own.replace(start) {
                    Some(start) => ended.push(EndedInterval {
                        start,
                        device: None,
                        end: by,
                    }),
                    None => self.count += 1,
                }
            }
        }
        for device in &change.devices {
            let start = IntervalStart {
                status: device.after,
                by,
                gateway: Some(device.gateway.clone()),
            };
            let mut known = user.devices.iter_mut();
            let known = known.find(|(platform, name, _)| *platform == device.platform && *name == device.device);
            let Some((platform, name, open)) = known else {
                user.devices
                    .push((device.platform.clone(), device.device.clone(), start));
                self.count += 1;
                continue;
            };
            if open.status != device.after {
                ended.push(EndedInterval {
                    start: std::mem::replace(open, start),
                    device: Some((platform.clone(), name.clone())),
                    end: by,
                });
            }
        }
        ended
    }

    /// Visits the intervals that hold and that this change, the last one that was taken, has begun: the user's own first.
    pub fn begun_by<'a>(
        &'a self,
        change: &'a Change,
    ) -> impl Iterator<Item = (Option<(&'a str, &'a str)>, &'a IntervalStart)> {
        let user = self.users.get(&change.user);
        let own = user.and_then(|user| user.own.as_ref()).map(|own| (None, own));
        let devices = user.into_iter().flat_map(|user| &user.devices);
        let devices = devices.map(|(platform, device, start)| (Some((&**platform, &**device)), start));
        own.into_iter()
            .chain(devices)
            .filter(|(_, start)| start.by.change == change.id)
    }

    /// Visits what holds, in the order of the changes that began it; of one change the user's own first, then by platform
    /// and device.
    pub fn each<E>(
        &self,
        mut each: impl FnMut(&str, Option<(&str, &str)>, &IntervalStart) -> Result<(), E>,
    ) -> Result<(), E> {
        type Device<'a> = (&'a str, &'a str);
        let mut all: Vec<(&str, Option<Device<'_>>, &IntervalStart)> = Vec::with_capacity(self.count);
        for (user, intervals) in &self.users {
            all.extend(intervals.own.iter().map(|own| (&**user, None, own)));
            let devices = intervals.devices.iter();
            all.extend(devices.map(|(platform, device, start)| (&**user, Some((&**platform, &**device)), start)));
        }
        all.sort_unstable_by_key(|(user, device, start)| {
            let id = start.by.change;
            (id.offset, id.index, *user, *device)
        });
        all.into_iter()
            .try_for_each(|(user, device, start)| each(user, device, start))
    }

    /// Takes an interval back that was kept; says what is wrong with it.
    pub fn restore(&mut self, kept: KeptInterval) -> Result<(), String> {
        let status = Status::named(&kept.status).ok_or_else(|| format!("{:?} is no status", kept.status))?;
        let cause = Cause::named(&kept.cause).ok_or_else(|| format!("{:?} is no cause", kept.cause))?;
        let (offset, index) = kept.change;
        let start = IntervalStart {
            status,
            by: IntervalChange {
                at: LogTime(kept.at),
                logged_at: LogTime(kept.logged_at),
                cause,
                change: OutputId {
                    partition: self.partition,
                    offset: Offset(offset),
                    index,
                },
                evidence: Offset(kept.evidence),
            },
            gateway: kept.gateway.map(String::into_boxed_str),
        };
        let device = match (kept.platform, kept.device) {
            (Some(platform), Some(device)) => Some((platform.into(), device.into())),
            (None, None) => None,
            (Some(_), None) | (None, Some(_)) => return Err("it has a platform or a device, but not both".to_owned()),
        };
        self.insert(kept.user.into(), device, start);
        Ok(())
    }

    /// Takes an interval that holds, of a user or a device of which none is here yet.
    pub fn insert(&mut self, user: Box<str>, device: Option<(Box<str>, Box<str>)>, start: IntervalStart) {
        let user = self.users.entry(user).or_default();
        match device {
            Some((platform, device)) => user.devices.push((platform, device, start)),
            None => user.own = Some(start),
        }
        self.count += 1;
    }
}

impl KeptInterval {
    pub fn of(user: &str, device: Option<(&str, &str)>, start: &IntervalStart) -> KeptInterval {
        let IntervalChange {
            at,
            logged_at,
            cause,
            change,
            evidence,
        } = start.by;
        KeptInterval {
            user: user.to_owned(),
            platform: device.map(|(platform, _)| platform.to_owned()),
            device: device.map(|(_, device)| device.to_owned()),
            gateway: start.gateway.as_deref().map(str::to_owned),
            status: start.status.name().to_owned(),
            at: at.0,
            logged_at: logged_at.0,
            cause: cause.name().to_owned(),
            change: (change.offset.0, change.index),
            evidence: evidence.0,
        }
    }
}
