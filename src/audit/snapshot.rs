//! Who was online at a time: the changes up to it, user by user.

use super::id_text;
use crate::api::answers::{DeviceCounts, PastTotals, PastUserCounts};
use crate::engine::census::Census;
use crate::presence::change::{Cause, Change, OutputId};
use crate::presence::{LogTime, Status};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};

/// The users of a partition as the changes left them so far. Keeps one entry a user that has a change and is not forgotten.
#[derive(Default)]
pub struct Snapshot {
    users: HashMap<Box<str>, UserAt>,
}

struct UserAt {
    status: Status,
    since: LogTime,
    /// The change that gave the status.
    change: OutputId,
    version: u64,
    custom_status: Option<Box<str>>,
    /// Those that are not offline, by platform and device.
    devices: BTreeMap<(Box<str>, Box<str>), DeviceAt>,
}

struct DeviceAt {
    status: Status,
    since: LogTime,
    gateway: Box<str>,
    change: OutputId,
}

/// Which users an answer is about.
#[derive(Clone, Default, Debug)]
pub struct Filter {
    /// Users who have a device on this platform that is not offline; only these devices are counted.
    pub platform: Option<String>,
    /// Users of this status.
    pub status: Option<Status>,
}

/// How many users and devices had which status. Sums of several partitions are made with [`Totals::add`].
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Totals {
    users: [u64; Status::ALL.len()],
    /// By status and platform, without zeros.
    devices: [BTreeMap<String, u64>; Status::ALL.len()],
}

/// The answer for one user, as it is printed.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub struct UserLine {
    pub user: String,
    pub status: &'static str,
    pub since: u64,
    pub version: u64,
    pub change: String,
    pub custom_status: Option<String>,
    pub devices: Vec<DeviceLine>,
}

#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub struct DeviceLine {
    pub platform: String,
    pub device: String,
    pub status: &'static str,
    pub since: u64,
    pub gateway: String,
    pub change: String,
}

impl Snapshot {
    /// Takes the next change of the partition.
    pub fn apply(&mut self, change: &Change) {
        if change.cause == Cause::Forgotten {
            self.users.remove(&change.user);
            return;
        }
        if !self.users.contains_key(&change.user) {
            let user = UserAt {
                status: change.after,
                since: change.at,
                change: change.id,
                version: 0,
                custom_status: None,
                devices: BTreeMap::new(),
            };
            self.users.insert(change.user.clone(), user);
        }
        let Some(user) = self.users.get_mut(&change.user) else {
            return;
        };
        if user.status != change.after {
            user.status = change.after;
            user.since = change.at;
            user.change = change.id;
        }
        user.version = change.version;
        user.custom_status.clone_from(&change.custom_status);
        for device in &change.devices {
            let key = (device.platform.clone(), device.device.clone());
            if device.after == Status::Offline {
                user.devices.remove(&key);
                continue;
            }
            let now = DeviceAt {
                status: device.after,
                since: change.at,
                gateway: device.gateway.clone(),
                change: change.id,
            };
            user.devices.insert(key, now);
        }
    }

    /// Counts the users that match, and their devices.
    pub fn totals(&self, filter: &Filter) -> Totals {
        let mut totals = Totals::default();
        for user in self.users.values().filter(|user| filter.accepts(user)) {
            totals.users[user.status as usize] += 1;
            for ((platform, _), device) in &user.devices {
                if filter.platform.as_deref().is_none_or(|wanted| wanted == &**platform) {
                    let counts = &mut totals.devices[device.status as usize];
                    *counts.entry((**platform).to_owned()).or_default() += 1;
                }
            }
        }
        totals
    }

    /// Returns the line of a user; nothing if nothing was known of the user, or the filter excludes it.
    pub fn user(&self, user: &str, filter: &Filter) -> Option<UserLine> {
        let at = self.users.get(user).filter(|at| filter.accepts(at))?;
        Some(line(user, at))
    }

    /// Returns the lines of everybody who matches, in byte order of user.
    pub fn all(&self, filter: &Filter) -> Vec<UserLine> {
        let mut lines: Vec<_> = self.users.iter().filter(|(_, at)| filter.accepts(at)).collect();
        lines.sort_unstable_by_key(|(user, _)| *user);
        lines.into_iter().map(|(user, at)| line(user, at)).collect()
    }
}

fn line(user: &str, at: &UserAt) -> UserLine {
    let devices = at.devices.iter().map(|((platform, device), at)| DeviceLine {
        platform: platform.to_string(),
        device: device.to_string(),
        status: at.status.name(),
        since: at.since.0,
        gateway: at.gateway.to_string(),
        change: id_text(at.change),
    });
    UserLine {
        user: user.to_owned(),
        status: at.status.name(),
        since: at.since.0,
        version: at.version,
        change: id_text(at.change),
        custom_status: at.custom_status.as_deref().map(str::to_owned),
        devices: devices.collect(),
    }
}

impl Filter {
    fn accepts(&self, user: &UserAt) -> bool {
        let has_platform = |wanted: &String| user.devices.keys().any(|(platform, _)| **platform == **wanted);
        self.status.is_none_or(|status| user.status == status) && self.platform.as_ref().is_none_or(has_platform)
    }
}

impl From<&Census> for Totals {
    fn from(census: &Census) -> Totals {
        let devices = |status| {
            let counts = census.devices(status).filter(|(_, count)| *count > 0);
            counts.map(|(platform, count)| (platform.to_owned(), count)).collect()
        };
        let mut totals = Totals::default();
        for status in Status::ALL {
            totals.users[status as usize] = census.users(status);
            totals.devices[status as usize] = devices(status);
        }
        totals
    }
}

impl From<PastTotals> for Totals {
    fn from(answer: PastTotals) -> Totals {
        let mut totals = Totals::default();
        let PastUserCounts {
            online,
            push_online,
            offline,
        } = answer.users;
        let counts = [
            (Status::Online, online, answer.devices.online),
            (Status::PushOnline, push_online, answer.devices.push_online),
            (Status::Offline, offline, BTreeMap::new()),
        ];
        for (status, users, devices) in counts {
            totals.users[status as usize] = users;
            totals.devices[status as usize] = devices;
        }
        totals
    }
}

impl Totals {
    /// Adds those of another partition.
    pub fn add(&mut self, other: &Totals) {
        for status in Status::ALL {
            self.users[status as usize] += other.users[status as usize];
            for (platform, count) in &other.devices[status as usize] {
                *self.devices[status as usize].entry(platform.clone()).or_default() += count;
            }
        }
    }

    /// Returns the totals as an answer. `behind` are the partitions whose log time is before `time`.
    pub fn line(&self, time: LogTime, as_known: bool, behind: Vec<u32>) -> PastTotals {
        let users = |status: Status| self.users[status as usize];
        let devices = |status: Status| self.devices[status as usize].clone();
        PastTotals {
            time: time.0,
            as_known,
            users: PastUserCounts {
                online: users(Status::Online),
                push_online: users(Status::PushOnline),
                offline: users(Status::Offline),
            },
            devices: DeviceCounts {
                online: devices(Status::Online),
                push_online: devices(Status::PushOnline),
            },
            behind,
            heard: None,
        }
    }
}
