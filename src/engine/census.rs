//! How many users and devices there are of each status: kept by counting changes, so that nobody is ever visited.

use crate::presence::Status;
use crate::presence::change::{Cause, Change};
use std::collections::BTreeMap;

/// Counts of one partition, or the sum of several.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Census {
    /// By status, in the order of [`Status::ALL`].
    users: [u64; 3],
    /// Devices by platform: push_online, online. Offline ones come and go silently and are not counted.
    devices: BTreeMap<Box<str>, [u64; 2]>,
}

fn place(status: Status) -> usize {
    match status {
        Status::Offline => 0,
        Status::PushOnline => 1,
        Status::Online => 2,
    }
}

impl Census {
    pub fn count(&mut self, change: &Change) {
        if change.version > 1 {
            self.users[place(change.before)] -= 1;
        }
        if change.cause != Cause::Forgotten {
            self.users[place(change.after)] += 1;
        }
        for device in &change.devices {
            let counts = match self.devices.get_mut(&device.platform) {
                Some(counts) => counts,
                None => self.devices.entry(device.platform.clone()).or_default(),
            };
            if let Some(before) = place(device.before).checked_sub(1) {
                counts[before] -= 1;
            }
            if let Some(after) = place(device.after).checked_sub(1) {
                counts[after] += 1;
            }
        }
    }

    /// Takes a change back: the counts become what they were before it.
    pub fn uncount(&mut self, change: &Change) {
        if change.cause != Cause::Forgotten {
            self.users[place(change.after)] -= 1;
        }
        if change.version > 1 {
            self.users[place(change.before)] += 1;
        }
        for device in &change.devices {
            let counts = self.devices.entry(device.platform.clone()).or_default();
            if let Some(after) = place(device.after).checked_sub(1) {
                counts[after] -= 1;
            }
            if let Some(before) = place(device.before).checked_sub(1) {
                counts[before] += 1;
            }
        }
    }

    pub fn add(&mut self, other: &Census) {
        for (sum, users) in self.users.iter_mut().zip(other.users) {
            *sum += users;
        }
        for (platform, counts) in &other.devices {
            let sums = self.devices.entry(platform.clone()).or_default();
            for (sum, count) in sums.iter_mut().zip(counts) {
                *sum += count;
            }
        }
    }

    /// Everybody ever seen and not forgotten.
    pub fn known(&self) -> u64 {
        self.users.iter().sum()
    }

    pub fn users(&self, status: Status) -> u64 {
        self.users[place(status)]
    }

    /// By platform name: how many are online or push_online. Nothing is counted for offline.
    pub fn devices(&self, status: Status) -> impl Iterator<Item = (&str, u64)> {
        let at = place(status).checked_sub(1);
        let counts = self.devices.iter();
        counts.filter_map(move |(platform, counts)| Some((&**platform, counts[at?])))
    }

    pub fn online_devices(&self) -> u64 {
        self.devices.values().map(|counts| counts[1]).sum()
    }

    pub fn to_bytes(&self) -> Vec<u8> {
        let Census { users, devices } = self;
        let mut bytes = Vec::with_capacity(256);
        for users in users {
            bytes.extend_from_slice(&users.to_be_bytes());
        }
        for (platform, counts) in devices {
            bytes.push(platform.len() as u8);
            bytes.extend_from_slice(platform.as_bytes());
            for count in counts {
                bytes.extend_from_slice(&count.to_be_bytes());
            }
        }
        bytes
    }

    pub fn from_bytes(bytes: &[u8]) -> Option<Census> {
        fn number(bytes: &mut &[u8]) -> Option<u64> {
            let (number, rest) = bytes.split_first_chunk()?;
            *bytes = rest;
            Some(u64::from_be_bytes(*number))
        }
        let mut census = Census::default();
        let mut rest = bytes;
        for users in &mut census.users {
            *users = number(&mut rest)?;
        }
        while let Some((length, tail)) = rest.split_first() {
            let (platform, tail) = tail.split_at_checked(usize::from(*length))?;
            rest = tail;
            let counts = [number(&mut rest)?, number(&mut rest)?];
            census
                .devices
                .insert(std::str::from_utf8(platform).ok()?.into(), counts);
        }
        Some(census)
    }
}
