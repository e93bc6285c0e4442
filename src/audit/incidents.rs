//! Incidents: many devices that lost their link within a short time (`docs/incidents.md`).
//!
//! Pure, and in whole numbers: the changes are counted by second of log time, and the rule is a function of these counts. So the
//! order in which partitions are read, and how the changes were cut, make no difference.

use crate::presence::change::{Cause, Change, DeviceChange};
use crate::presence::{LogTime, Status};
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// The version of the rule, and of what counts as a departure.
pub const RULE_VERSION: u32 = 1;

/// When departures are an incident.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IncidentRule {
    pub window_s: u64,
    /// So many departures within the window at least.
    pub least: u64,
    /// And so many percent of the devices that were online when the window began.
    pub share_percent: u64,
}

impl Default for IncidentRule {
    fn default() -> IncidentRule {
        IncidentRule {
            window_s: 10,
            least: 100,
            share_percent: 5,
        }
    }
}

/// Returns whether a device lost its link by this change: it was online, is not, and neither it nor its user said so.
pub fn is_departure(change: &Change, device: &DeviceChange) -> bool {
    let is_lost = match change.cause {
        Cause::Closed | Cause::Timeout | Cause::GatewayLost => true,
        Cause::Login
        | Cause::Resume
        | Cause::Revive
        | Cause::Logout
        | Cause::Exit
        | Cause::Background
        | Cause::PushExpired
        | Cause::Kicked
        | Cause::CustomStatus
        | Cause::Forgotten => false,
    };
    is_lost && device.before == Status::Online && device.after != Status::Online
}

/// The second of log time, since 1970.
pub fn second_of(time: LogTime) -> u64 {
    time.0 / 1_000
}

/// What happened to devices in a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SecondCounts {
    pub departures: u64,
    /// Devices that came online, and that were online and are not, for whatever cause.
    pub came: u64,
    pub left: u64,
}

/// The counts of every second in which something happened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Seconds(BTreeMap<u64, SecondCounts>);

impl Seconds {
    pub fn apply(&mut self, change: &Change) {
        for device in &change.devices {
            let is_online = |status| status == Status::Online;
            if is_online(device.before) == is_online(device.after) {
                continue;
            }
            let counts = self.0.entry(second_of(change.at)).or_default();
            if is_online(device.after) {
                counts.came += 1;
            } else {
                counts.left += 1;
            }
            counts.departures += u64::from(is_departure(change, device));
        }
    }

    /// Adds the counts of another partition.
    pub fn add(&mut self, other: &Seconds) {
        for (second, other) in &other.0 {
            let counts = self.0.entry(*second).or_default();
            counts.departures += other.departures;
            counts.came += other.came;
            counts.left += other.left;
        }
    }

    /// Returns the incidents, as spans of seconds that do not overlap, in order.
    pub fn spans(&self, rule: &IncidentRule) -> Vec<IncidentSpan> {
        let window_s = rule.window_s.max(1);
        let mut spans = Vec::new();
        // The seconds of the window that ends with the current one, its departures, and who was online before it.
        let mut window: VecDeque<(u64, SecondCounts)> = VecDeque::new();
        let (mut departures, mut online_before) = (0, 0u64);
        let mut run: Option<Run> = None;
        for (second, counts) in &self.0 {
            while let Some((first, gone)) = window.front().copied()
                && first + window_s <= *second
            {
                window.pop_front();
                departures -= gone.departures;
                online_before = (online_before + gone.came).saturating_sub(gone.left);
                // Between two seconds in which something happened the rule may have ceased to hold.
                if first + window_s < *second
                    && let Some(ended) = run.take_if(|run| departures < run.needed)
                {
                    ended.end(window_s, &mut spans);
                }
            }
            window.push_back((*second, *counts));
            departures += counts.departures;
            match run.take() {
                Some(mut run_on) if departures >= run_on.needed => {
                    run_on.seconds.push((*second, counts.departures));
                    run = Some(run_on);
                }
                Some(ended) => ended.end(window_s, &mut spans),
                None => {}
            }
            let needed = rule.needed(online_before);
            if run.is_none() && departures >= needed && counts.departures > 0 {
                run = Some(Run {
                    online_before,
                    needed,
                    seconds: window
                        .iter()
                        .map(|(second, counts)| (*second, counts.departures))
                        .collect(),
                });
            }
        }
        if let Some(run) = run {
            run.end(window_s, &mut spans);
        }
        spans
    }
}

impl IncidentRule {
    /// Returns how many departures are needed if so many devices were online.
    fn needed(&self, online_before: u64) -> u64 {
        let share = (u128::from(online_before) * u128::from(self.share_percent)).div_ceil(100);
        self.least.max(1).max(u64::try_from(share).unwrap_or(u64::MAX))
    }
}

/// Seconds on end at which the rule holds, with the window before.
struct Run {
    online_before: u64,
    /// How many departures the window needed at the beginning.
    needed: u64,
    seconds: Vec<(u64, u64)>,
}

impl Run {
    /// Adds its incident, without the seconds at both ends that have fewer departures than the rule needs on average. What
    /// overlaps the incident before is part of that.
    fn end(self, window_s: u64, spans: &mut Vec<IncidentSpan>) {
        let is_part = |(_, departures): &&(u64, u64)| departures.saturating_mul(window_s) >= self.needed;
        let (Some(first), Some(last)) = (self.seconds.iter().find(is_part), self.seconds.iter().rfind(is_part)) else {
            return;
        };
        match spans.last_mut() {
            Some(before) if before.last_second >= first.0 => before.last_second = before.last_second.max(last.0),
            Some(_) | None => spans.push(IncidentSpan {
                first_second: first.0,
                last_second: last.0,
                online_before: self.online_before,
            }),
        }
    }
}

/// The seconds of an incident.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IncidentSpan {
    pub first_second: u64,
    pub last_second: u64,
    pub online_before: u64,
}

/// What departed in the seconds of an incident.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct IncidentCounts {
    pub departures: u64,
    /// The times of the first and the last departure.
    pub from: Option<LogTime>,
    pub to: Option<LogTime>,
    pub causes: BTreeMap<String, u64>,
    pub gateways: BTreeMap<String, u64>,
    pub platforms: BTreeMap<String, u64>,
    /// By what clients said of themselves; empty where connects were not read.
    pub clients: BTreeMap<String, u64>,
    /// Each device once: user, platform and device.
    pub devices: BTreeSet<(Box<str>, Box<str>, Box<str>)>,
}

impl IncidentCounts {
    pub fn take(&mut self, change: &Change, device: &DeviceChange) {
        self.departures += 1;
        self.from = Some(self.from.map_or(change.at, |from| from.min(change.at)));
        self.to = self.to.max(Some(change.at));
        for (counts, name) in [
            (&mut self.causes, change.cause.name()),
            (&mut self.gateways, &*device.gateway),
            (&mut self.platforms, &*device.platform),
        ] {
            *counts.entry(name.to_owned()).or_default() += 1;
        }
        self.devices
            .insert((change.user.clone(), device.platform.clone(), device.device.clone()));
    }

    /// Adds what departed in another partition.
    pub fn add(&mut self, other: IncidentCounts) {
        self.departures += other.departures;
        self.from = [self.from, other.from].into_iter().flatten().min();
        self.to = self.to.max(other.to);
        for (counts, other) in [
            (&mut self.causes, other.causes),
            (&mut self.gateways, other.gateways),
            (&mut self.platforms, other.platforms),
            (&mut self.clients, other.clients),
        ] {
            for (name, count) in other {
                *counts.entry(name).or_default() += count;
            }
        }
        self.devices.extend(other.devices);
    }
}

/// An incident, as it is printed.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub struct IncidentLine {
    pub rule: u32,
    pub window_s: u64,
    pub least: u64,
    pub share_percent: u64,
    /// The first and the last departure.
    pub from: u64,
    pub to: u64,
    pub departures: u64,
    pub devices: u64,
    /// How many devices were online before.
    pub online_before: u64,
    pub causes: BTreeMap<String, u64>,
    pub gateways: BTreeMap<String, u64>,
    pub platforms: BTreeMap<String, u64>,
    pub clients: Option<BTreeMap<String, u64>>,
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULE: IncidentRule = IncidentRule {
        window_s: 10,
        least: 20,
        share_percent: 5,
    };

    /// Seconds with departures; 1,000 devices came in the first one.
    fn seconds(departures: &[(u64, u64)]) -> Seconds {
        let mut seconds = Seconds::default();
        seconds.0.entry(0).or_default().came = 1_000;
        for (second, count) in departures {
            let counts = seconds.0.entry(*second).or_default();
            counts.departures += count;
            counts.left += count;
        }
        seconds
    }

    fn spans(departures: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let spans = seconds(departures).spans(&RULE);
        spans.iter().map(|span| (span.first_second, span.last_second)).collect()
    }

    #[test]
    fn many_at_once_are_one_incident_and_a_trickle_is_none() {
        // 50 of 1,000 are needed within ten seconds.
        assert_eq!(spans(&[(100, 50)]), [(100, 100)]);
        assert_eq!(spans(&[(100, 49)]), []);
        assert_eq!(spans(&[(100, 25), (109, 25)]), [(100, 109)]);
        assert_eq!(spans(&[(100, 25), (110, 25)]), []);
        // 30 within ten seconds, of whom 700 stay at the end.
        let trickle: Vec<(u64, u64)> = (100..200).map(|second| (second, 3)).collect();
        assert_eq!(spans(&trickle), []);
    }

    #[test]
    fn what_trickles_before_and_after_is_not_part_of_it() {
        let mut seconds: Vec<(u64, u64)> = (80..120).map(|second| (second, 1)).collect();
        seconds.push((100, 200));
        seconds.push((103, 100));
        assert_eq!(spans(&seconds), [(100, 103)]);
    }

    #[test]
    fn two_that_are_apart_are_two_and_two_that_overlap_are_one() {
        assert_eq!(spans(&[(100, 60), (111, 60)]), [(100, 100), (111, 111)]);
        assert_eq!(spans(&[(100, 60), (110, 60)]), [(100, 110)]);
        // The rule ceases to hold at second 110 and holds again from 112 on, with departures that were part of it before.
        assert_eq!(spans(&[(100, 25), (105, 25), (112, 30)]), [(100, 112)]);
        assert_eq!(spans(&[(100, 60), (500, 60)]), [(100, 100), (500, 500)]);
        let long: Vec<(u64, u64)> = (100..160).map(|second| (second, 8)).collect();
        assert_eq!(spans(&long), [(100, 159)]);
    }

    #[test]
    fn the_share_is_of_those_who_were_online_when_the_window_began() {
        let few = seconds(&[(100, 900), (200, 20), (300, 19)]);
        let spans = few.spans(&RULE);
        let found: Vec<_> = spans
            .iter()
            .map(|span| (span.first_second, span.online_before))
            .collect();
        // Of 100 that are left 5 would be enough, but 20 are needed at least.
        assert_eq!(found, [(100, 1_000), (200, 100)]);
        // Who comes and goes within the window was not online when it began.
        let mut new = Seconds::default();
        new.0.insert(
            7,
            SecondCounts {
                departures: 20,
                came: 40,
                left: 20,
            },
        );
        assert_eq!(new.spans(&RULE).len(), 1);
    }

    #[test]
    fn partitions_add_up_in_any_order() {
        let [a, b] = [seconds(&[(100, 30)]), seconds(&[(101, 80)])];
        let sum = |parts: [&Seconds; 2]| {
            let mut sum = Seconds::default();
            parts.into_iter().for_each(|part| sum.add(part));
            sum
        };
        assert_eq!(sum([&a, &b]), sum([&b, &a]));
        assert_eq!(a.spans(&RULE), []);
        assert_eq!(sum([&a, &b]).spans(&RULE).len(), 1);
    }
}
