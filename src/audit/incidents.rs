//! Incidents: many devices that lost their link within a short time (`docs/incidents.md`).
//!
//! Pure, and in whole numbers: the changes are counted by second of log time, and the rule is a function of these counts. So the
//! order in which partitions are read, and how the changes were cut, make no difference.

mod clients;

pub use clients::DepartedClients;

use crate::presence::change::{Cause, Change, DeviceChange};
use crate::presence::{LogTime, Status};
use crate::schema::avro::IncidentRecord;
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

    /// Removes and returns the first second, if it is before another one.
    pub fn pop_before(&mut self, second: u64) -> Option<(u64, SecondCounts)> {
        let first = self.0.first_entry().filter(|first| *first.key() < second)?;
        Some(first.remove_entry())
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
        let mut finder = SpanFinder::new(*rule, 0);
        for (second, counts) in &self.0 {
            finder.push(*second, *counts);
        }
        finder.end()
    }
}

/// Applies the rule to seconds one by one, in order. What comes out does not depend on when seconds without departures are
/// left out, so the whole past and a running server give the same incidents.
#[derive(Clone, Debug)]
pub struct SpanFinder {
    rule: IncidentRule,
    window_s: u64,
    /// The seconds of the window that ends with the current one.
    window: VecDeque<(u64, SecondCounts)>,
    /// The departures of the window.
    departures: u64,
    /// How many devices were online before the window.
    online_before: u64,
    run: Option<Run>,
    /// The last incident that is over, to which what overlaps it is still added.
    last: Option<IncidentSpan>,
    finished: Vec<IncidentSpan>,
    /// No incident begins before this second: the window is not complete.
    blind_before: u64,
}

impl SpanFinder {
    /// Begins where so many devices were online.
    pub fn new(rule: IncidentRule, online_before: u64) -> SpanFinder {
        SpanFinder {
            rule,
            window_s: rule.window_s.max(1),
            window: VecDeque::new(),
            departures: 0,
            online_before,
            run: None,
            last: None,
            finished: Vec::new(),
            blind_before: 0,
        }
    }

    /// Begins again at a second that [`SpanFinder::restart`] gave.
    pub fn from(rule: IncidentRule, restart: Restart) -> SpanFinder {
        let mut finder = SpanFinder::new(rule, restart.online);
        finder.blind_before = restart.second + finder.window_s - 1;
        finder
    }

    /// Takes the next second. Seconds in which nothing happened may be left out, or given with counts of 0.
    pub fn push(&mut self, second: u64, counts: SecondCounts) {
        while let Some((first, gone)) = self.window.front().copied()
            && first + self.window_s <= second
        {
            self.window.pop_front();
            self.departures -= gone.departures;
            self.online_before = (self.online_before + gone.came).saturating_sub(gone.left);
            let departures = self.departures;
            // Between two seconds in which something happened the rule may have ceased to hold.
            if first + self.window_s < second
                && let Some(ended) = self.run.take_if(|run| departures < run.needed)
            {
                self.end_run(&ended);
            }
        }
        self.window.push_back((second, counts));
        self.departures += counts.departures;
        match self.run.take() {
            Some(mut run_on) if self.departures >= run_on.needed => {
                run_on.seconds.push((second, counts.departures));
                self.run = Some(run_on);
            }
            Some(ended) => self.end_run(&ended),
            None => {}
        }
        let needed = self.rule.needed(self.online_before);
        if self.run.is_none() && self.departures >= needed && counts.departures > 0 && second >= self.blind_before {
            let seconds = self.window.iter().map(|(second, counts)| (*second, counts.departures));
            self.run = Some(Run {
                online_before: self.online_before,
                needed,
                seconds: seconds.collect(),
            });
        }
        self.finish(second);
    }

    /// Adds the incident of a run that is over. What overlaps the incident before is part of that.
    fn end_run(&mut self, run: &Run) {
        let Some((first_second, last_second)) = run.span(self.window_s) else {
            return;
        };
        match &mut self.last {
            Some(before) if before.last_second >= first_second => {
                before.last_second = before.last_second.max(last_second);
            }
            Some(_) | None => {
                self.finished.extend(self.last.replace(IncidentSpan {
                    first_second,
                    last_second,
                    online_before: run.online_before,
                }));
            }
        }
    }

    /// The last incident is finished once nothing that begins after `second` can overlap it.
    fn finish(&mut self, second: u64) {
        let Some(last) = &self.last else { return };
        let may_overlap = match &self.run {
            Some(run) => run
                .span(self.window_s)
                .is_none_or(|(first, _)| first <= last.last_second),
            None => second + 1 < last.last_second + self.window_s,
        };
        if !may_overlap {
            self.finished.extend(self.last.take());
        }
    }

    /// Counts who came and left by a change of a second that was judged without it. It is part of no incident.
    pub fn miss(&mut self, change: &Change) {
        let mut late = Seconds::default();
        late.apply(change);
        for counts in late.0.into_values() {
            self.online_before = (self.online_before + counts.came).saturating_sub(counts.left);
        }
    }

    /// Returns the incidents to which nothing is added any more, each once.
    pub fn take_finished(&mut self) -> Vec<IncidentSpan> {
        std::mem::take(&mut self.finished)
    }

    /// Returns all incidents, when no second comes any more.
    pub fn end(mut self) -> Vec<IncidentSpan> {
        if let Some(run) = self.run.take() {
            self.end_run(&run);
        }
        self.finished.extend(self.last.take());
        self.finished
    }

    /// Whether the rule holds at the last second.
    pub fn holds(&self) -> bool {
        self.run.is_some()
    }

    /// Returns the first second whose changes may still be part of an incident, as of the last second that was given.
    pub fn first_needed(&self) -> u64 {
        let of_window = self
            .window
            .back()
            .map_or(0, |(second, _)| (second + 2).saturating_sub(self.window_s));
        let of_run = self
            .run
            .as_ref()
            .and_then(|run| run.seconds.first())
            .map(|(second, _)| *second);
        let of_last = self.last.map(|last| last.first_second);
        [Some(of_window), of_run, of_last]
            .into_iter()
            .flatten()
            .min()
            .unwrap_or(0)
    }

    /// Returns a second at which a new finder can begin and find the same incidents from now on. `None` while an incident is
    /// not finished.
    pub fn restart(&self) -> Option<Restart> {
        if self.run.is_some() || self.last.is_some() {
            return None;
        }
        let (first, _) = self.window.front()?;
        let (last, _) = self.window.back()?;
        // Where the window is shorter than it may be, nothing happened in the seconds before.
        let second = (last + 1).saturating_sub(self.window_s).min(*first);
        (second + self.window_s > self.blind_before).then_some(Restart {
            second,
            online: self.online_before,
        })
    }
}

/// Where a [`SpanFinder`] can begin again: before a second in which so many devices were online. No incident begins in the
/// window that begins with it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Restart {
    pub second: u64,
    pub online: u64,
}

impl IncidentRule {
    /// Returns how many departures are needed if so many devices were online.
    fn needed(&self, online_before: u64) -> u64 {
        let share = (u128::from(online_before) * u128::from(self.share_percent)).div_ceil(100);
        self.least.max(1).max(u64::try_from(share).unwrap_or(u64::MAX))
    }
}

/// Seconds on end at which the rule holds, with the window before.
#[derive(Clone, Debug)]
struct Run {
    online_before: u64,
    /// How many departures the window needed at the beginning.
    needed: u64,
    seconds: Vec<(u64, u64)>,
}

impl Run {
    /// Returns the first and the last second, without those at both ends that have fewer departures than the rule needs on
    /// average.
    fn span(&self, window_s: u64) -> Option<(u64, u64)> {
        let is_part = |(_, departures): &&(u64, u64)| departures.saturating_mul(window_s) >= self.needed;
        let (first, last) = (self.seconds.iter().find(is_part)?, self.seconds.iter().rfind(is_part)?);
        Some((first.0, last.0))
    }
}

/// The seconds of an incident.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct IncidentSpan {
    pub first_second: u64,
    pub last_second: u64,
    pub online_before: u64,
}

/// A device, as a digest of user, platform and device: a million of them take 16 MB.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DeviceDigest([u8; 16]);

impl DeviceDigest {
    pub fn of(user: &str, platform: &str, device: &str) -> DeviceDigest {
        let mut hasher = blake3::Hasher::new();
        for part in [user, platform, device] {
            hasher.update(&(part.len() as u64).to_be_bytes());
            hasher.update(part.as_bytes());
        }
        let mut digest = [0; 16];
        digest.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        DeviceDigest(digest)
    }
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
    /// Each device once.
    pub devices: BTreeSet<DeviceDigest>,
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
            add_name(counts, name, 1);
        }
        self.devices
            .insert(DeviceDigest::of(&change.user, &device.platform, &device.device));
    }

    /// Counts departures of devices with this client; without one, of those whose client is not known.
    pub fn take_client(&mut self, client: Option<&str>, count: u64) {
        add_name(&mut self.clients, client.unwrap_or(UNKNOWN_CLIENT), count);
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

    /// Returns the incident as it is written and printed. `with_clients`: connects were read.
    pub fn record(self, rule: &IncidentRule, span: &IncidentSpan, with_clients: bool) -> IncidentRecord {
        let time = |time: Option<LogTime>| time.map_or(0, |time| time.0);
        IncidentRecord {
            id: incident_id(rule, span),
            rule: RULE_VERSION,
            window_s: rule.window_s,
            least: rule.least,
            share_percent: rule.share_percent,
            from: time(self.from),
            to: time(self.to),
            departures: self.departures,
            devices: self.devices.len() as u64,
            online_before: span.online_before,
            causes: self.causes,
            gateways: self.gateways,
            platforms: self.platforms,
            clients: with_clients.then_some(self.clients),
        }
    }
}

/// The name under which departures are counted whose client is not known.
pub const UNKNOWN_CLIENT: &str = "(unknown)";

fn add_name(counts: &mut BTreeMap<String, u64>, name: &str, count: u64) {
    match counts.get_mut(name) {
        Some(sum) => *sum += count,
        None => drop(counts.insert(name.to_owned(), count)),
    }
}

/// Returns what names an incident: the version of the rule and the first second, and the rule's numbers if they are not the
/// usual ones. It is the same whenever, and by whomever, the incident is found.
fn incident_id(rule: &IncidentRule, span: &IncidentSpan) -> String {
    let first = span.first_second;
    if *rule == IncidentRule::default() {
        return format!("{RULE_VERSION}-{first}");
    }
    let IncidentRule {
        window_s,
        least,
        share_percent,
    } = rule;
    format!("{RULE_VERSION}-{first}-{window_s}-{least}-{share_percent}")
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
    fn one_by_one_with_empty_seconds_between_and_begun_again_anywhere_it_finds_the_same() {
        let mut state = 11u64;
        let mut below = |limit: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) % limit
        };
        let mut found = 0;
        for _ in 0..300 {
            let mut departures = BTreeMap::new();
            for _ in 0..below(40) {
                let many = below(4) == 0;
                *departures.entry(100 + below(120)).or_default() += below(if many { 70 } else { 8 });
            }
            let departures: Vec<(u64, u64)> = departures.into_iter().collect();
            let all = seconds(&departures);
            let expected = all.spans(&RULE);
            found += expected.len();
            let mut finder = SpanFinder::new(RULE, 0);
            let mut one_by_one = Vec::new();
            for second in 0..300 {
                finder.push(second, all.0.get(&second).copied().unwrap_or_default());
                one_by_one.extend(finder.take_finished());
                if below(3) == 0
                    && let Some(restart) = finder.restart()
                {
                    assert!(restart.second <= finder.first_needed());
                    finder = SpanFinder::from(RULE, restart);
                    for again in restart.second..=second {
                        finder.push(again, all.0.get(&again).copied().unwrap_or_default());
                    }
                    assert_eq!(finder.take_finished(), []);
                }
            }
            assert_eq!(one_by_one, expected, "{departures:?}");
            assert_eq!(finder.end(), []);
        }
        assert!(found > 100, "{found}");
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
