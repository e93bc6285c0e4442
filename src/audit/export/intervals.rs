//! Stretches of a status, closed by the change that ended them.
//!
//! For each user and each device it keeps the interval that holds, and nothing of those that have ended. Together they are
//! the intervals of [`History`](crate::audit::history::History) of every user.

use crate::presence::change::{Cause, Change, DeviceChange, OutputId};
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

/// What a change has ended and begun: the user's own interval first, then those of its devices.
pub struct MovedIntervals<'a> {
    pub ended: Vec<EndedInterval>,
    pub begun: Vec<BegunInterval<'a>>,
}

/// An interval that a change has begun.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct BegunInterval<'a> {
    change: &'a Change,
    /// `None`: the user's own.
    pub device: Option<&'a DeviceChange>,
}

/// What holds of a user and its devices.
#[derive(Default)]
struct UserIntervals {
    own: Option<IntervalStart>,
    devices: UserDevices,
}

/// The intervals of a user's devices. A change costs what it changes, however many there are.
enum UserDevices {
    /// At most [`FEW_MAX`]: platform, device and what holds. They are searched one by one and take the least memory.
    Few(Vec<(Box<str>, Box<str>, IntervalStart)>),
    /// By platform, then by device.
    Many(HashMap<Box<str>, HashMap<Box<str>, IntervalStart>>),
}

const FEW_MAX: usize = 16;

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

    /// Takes the next change of the partition. Returns what it has ended and begun.
    ///
    /// A change that keeps the user's status does not cut its interval. Without the changes before (retention) such a change
    /// does not tell since when the status holds, so the user's own interval then begins with its next status.
    pub fn apply<'a>(&mut self, change: &'a Change) -> MovedIntervals<'a> {
        let by = IntervalChange::of(change);
        let (mut ended, mut begun) = (Vec::new(), Vec::new());
        if !self.users.contains_key(&change.user) {
            self.users.insert(change.user.clone(), UserIntervals::default());
        }
        let Some(user) = self.users.get_mut(&change.user) else {
            return MovedIntervals { ended, begun };
        };
        match &mut user.own {
            Some(own) if own.status == change.after => {}
            None if !change.begins_status() => {}
            own => {
                let one = BegunInterval { change, device: None };
                match own.replace(one.start()) {
                    Some(start) => ended.push(EndedInterval {
                        start,
                        device: None,
                        end: by,
                    }),
                    None => self.count += 1,
                }
                begun.push(one);
            }
        }
        for device in &change.devices {
            let one = BegunInterval {
                change,
                device: Some(device),
            };
            match user.devices.find(&device.platform, &device.device) {
                Some(open) if open.status == device.after => {}
                Some(open) => {
                    ended.push(EndedInterval {
                        start: std::mem::replace(open, one.start()),
                        device: Some((device.platform.clone(), device.device.clone())),
                        end: by,
                    });
                    begun.push(one);
                }
                None => {
                    user.devices
                        .insert(device.platform.clone(), device.device.clone(), one.start());
                    self.count += 1;
                    begun.push(one);
                }
            }
        }
        MovedIntervals { ended, begun }
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
            let of_user = |(platform, device, start)| all.push((&**user, Some((platform, device)), start));
            intervals.devices.each(of_user);
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
            Some((platform, device)) => user.devices.insert(platform, device, start),
            None => user.own = Some(start),
        }
        self.count += 1;
    }
}

impl IntervalChange {
    fn of(change: &Change) -> IntervalChange {
        IntervalChange {
            at: change.at,
            logged_at: change.logged_at,
            cause: change.cause,
            change: change.id,
            evidence: change.evidence,
        }
    }
}

impl BegunInterval<'_> {
    pub fn status(&self) -> Status {
        self.device.map_or(self.change.after, |device| device.after)
    }

    pub fn start(&self) -> IntervalStart {
        IntervalStart {
            status: self.status(),
            by: IntervalChange::of(self.change),
            gateway: self.device.map(|device| device.gateway.clone()),
        }
    }
}

impl Default for UserDevices {
    fn default() -> UserDevices {
        UserDevices::Few(Vec::new())
    }
}

impl UserDevices {
    fn find(&mut self, platform: &str, device: &str) -> Option<&mut IntervalStart> {
        match self {
            UserDevices::Few(few) => {
                let mut known = few.iter_mut();
                let known = known.find(|(of_platform, name, _)| **of_platform == *platform && **name == *device);
                known.map(|(_, _, start)| start)
            }
            UserDevices::Many(many) => many.get_mut(platform)?.get_mut(device),
        }
    }

    /// Adds a device of which nothing is here yet.
    fn insert(&mut self, platform: Box<str>, device: Box<str>, start: IntervalStart) {
        match self {
            UserDevices::Few(few) if few.len() < FEW_MAX => {
                // Most users have one or two, and room for four would be most of the memory.
                few.reserve_exact(1);
                few.push((platform, device, start));
            }
            UserDevices::Few(few) => {
                let mut many: HashMap<Box<str>, HashMap<Box<str>, IntervalStart>> = HashMap::new();
                for (platform, device, start) in few.drain(..).chain([(platform, device, start)]) {
                    many.entry(platform).or_default().insert(device, start);
                }
                *self = UserDevices::Many(many);
            }
            UserDevices::Many(many) => {
                many.entry(platform).or_default().insert(device, start);
            }
        }
    }

    fn each<'a>(&'a self, mut each: impl FnMut((&'a str, &'a str, &'a IntervalStart))) {
        match self {
            UserDevices::Few(few) => few
                .iter()
                .for_each(|(platform, device, start)| each((platform, device, start))),
            UserDevices::Many(many) => {
                for (platform, devices) in many {
                    devices
                        .iter()
                        .for_each(|(device, start)| each((platform, device, start)));
                }
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A change of one device of one user.
    fn change(number: u64, device: u64, after: Status) -> Change {
        let before = match after {
            Status::Online => Status::Offline,
            Status::PushOnline | Status::Offline => Status::Online,
        };
        Change {
            id: OutputId {
                partition: Partition(0),
                offset: Offset(number),
                index: 0,
            },
            seq: number + 1,
            user: "u".into(),
            version: number + 1,
            at: LogTime(number),
            logged_at: LogTime(number),
            cause: Cause::Login,
            before: Status::Online,
            after: Status::Online,
            devices: vec![DeviceChange {
                platform: if device.is_multiple_of(2) {
                    "web".into()
                } else {
                    "ios".into()
                },
                device: format!("d{device}").into(),
                gateway: "g".into(),
                before,
                after,
            }],
            custom_status: None,
            evidence: Offset(number),
            rehearsal: None,
        }
    }

    #[test]
    fn few_and_many_devices_of_a_user_give_the_same_intervals() {
        // Around the number at which they are kept otherwise.
        for devices in [1, FEW_MAX as u64 - 1, FEW_MAX as u64, FEW_MAX as u64 + 1, 100] {
            let mut open = OpenIntervals::new(Partition(0));
            let mut number = 0;
            for after in [Status::Online, Status::Offline, Status::Online] {
                for device in 0..devices {
                    let change = change(number, device, after);
                    let moved = open.apply(&change);
                    let is_first = number < devices;
                    assert_eq!(moved.ended.len(), usize::from(!is_first), "{devices} {number}");
                    if let Some(one) = moved.ended.first() {
                        assert_eq!(
                            (one.start.by.change.offset.0, one.end.change.offset.0),
                            (number - devices, number)
                        );
                    }
                    // With the first change the user's own interval begins too.
                    assert_eq!(moved.begun.len(), 1 + usize::from(number == 0));
                    // What holds already begins nothing.
                    let again = open.apply(&change);
                    assert!(again.ended.is_empty() && again.begun.is_empty());
                    number += 1;
                }
            }
            let mut found = Vec::new();
            let visited: Result<(), ()> = open.each(|_, device, start| {
                found.push((start.by.change.offset.0, device.map(|(_, device)| device.to_owned())));
                Ok(())
            });
            visited.unwrap();
            let last = |device: u64| (2 * devices + device, Some(format!("d{device}")));
            let expected: Vec<_> = [(0, None)].into_iter().chain((0..devices).map(last)).collect();
            assert_eq!(found, expected);
            assert_eq!(open.len() as u64, devices + 1);
        }
    }

    #[test]
    fn a_change_costs_what_it_changes_however_many_devices_the_user_has() {
        // If each change cost something for each device, this would be 20,000,000,000 steps.
        let devices = 100_000;
        let mut open = OpenIntervals::new(Partition(0));
        let (mut ended, mut begun) = (0, 0);
        for number in 0..2 * devices {
            let after = if number < devices {
                Status::Online
            } else {
                Status::Offline
            };
            let change = change(number, number % devices, after);
            let moved = open.apply(&change);
            ended += moved.ended.len() as u64;
            begun += moved.begun.len() as u64;
        }
        assert_eq!((ended, begun), (devices, 2 * devices + 1));
    }
}
