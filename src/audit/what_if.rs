//! What the same events would have given under other policies, compared with what they did give.
//!
//! Every policy is folded in one pass over the events of a partition. What *was* comes from the published changes, or, where
//! these cannot be read, from one fold more. `docs/audit.md` defines each figure.

use super::RECYCLE_EVERY;
use crate::presence::change::{Cause, Change, DeviceChange, Output};
use crate::presence::event::Event;
use crate::presence::policy::Policy;
use crate::presence::state::{HashSeed, Phase, State};
use crate::presence::{LogTime, Offset, Partition, Status};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};

/// Which changes are counted, and how soon a device must be back for its loss to have been a false one.
#[derive(Clone, Copy, Debug)]
pub struct Window {
    pub from: LogTime,
    /// None: to the end of the log.
    pub to: Option<LogTime>,
    pub again_ms: u64,
}

/// Folds one partition under each policy.
pub struct WhatIf {
    window: Window,
    keep_policies: bool,
    was: Was,
    points: Vec<PolicyFold>,
    times: EvidenceTimes,
    time: LogTime,
    records: u64,
}

/// Where the figures of what was come from.
enum Was {
    /// From published changes, all of them given before the first event.
    Published {
        tally: Tally,
        /// The losses whose evidence has not been passed yet, the next one last.
        losses: Vec<Loss>,
    },
    Folded(Box<PolicyFold>),
}

/// One policy: its fold, and what the changes add up to.
struct PolicyFold {
    state: State,
    tally: Tally,
    losses: Vec<Loss>,
}

/// A device that was found to be gone, while it is not known yet when its evidence came.
#[derive(Clone, Copy)]
struct Loss {
    evidence: Offset,
    logged_at: LogTime,
}

/// What changes add up to.
struct Tally {
    window: Window,
    users: HashMap<Box<str>, UserTally>,
    totals: Totals,
}

#[derive(Default)]
struct UserTally {
    /// Those that are not offline, or were lost so recently that their return would count, by platform and device.
    devices: BTreeMap<(Box<str>, Box<str>), DeviceTally>,
    custom_status: Option<Box<str>>,
    /// A digest of the state of the user when the window began and of its changes in the window.
    digest: u64,
    /// The window had begun when `digest` was last extended.
    is_entered: bool,
}

struct DeviceTally {
    status: Status,
    /// Since when a device is online.
    online_since: LogTime,
    /// When its link was found to be lost, if that is how it left online and is in the window.
    lost_at: Option<LogTime>,
}

/// The figures of one side. Those of several partitions are added up.
#[derive(Clone, Default, Debug)]
pub struct Totals {
    changes: u64,
    online_ms: BTreeMap<Box<str>, u64>,
    false_offlines: u64,
    /// How many losses were detected after so many milliseconds.
    detections: BTreeMap<u64, u64>,
}

/// The figures of one partition: what was, and for each policy what would have been.
pub struct PartitionFigures {
    pub was: Totals,
    pub points: Vec<Point>,
}

#[derive(Clone, Default, Debug)]
pub struct Point {
    pub would: Totals,
    pub users_affected: u64,
}

/// The answer for one policy, as it is printed.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub struct WhatIfLine {
    /// In a sweep: the value that is varied.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<u64>,
    pub changes: WasWould<u64>,
    pub users_affected: u64,
    /// By platform, in byte order.
    pub online_ms: BTreeMap<Box<str>, WasWould<u64>>,
    pub false_offlines: WasWould<u64>,
    pub detection_ms: WasWould<Detection>,
}

#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
pub struct WasWould<T> {
    pub was: T,
    pub would: T,
}

/// Percentiles by nearest rank; null where nothing was lost.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Detection {
    pub p50: Option<u64>,
    pub p99: Option<u64>,
}

/// Whether more records are needed.
pub type More = bool;

impl WhatIf {
    /// Begins with an empty partition under each of `policies`. `first_policy`: what was is folded as well, under this policy and
    /// those of the log; without it the published changes are given with [`WhatIf::published`].
    pub fn new(
        partition: Partition,
        window: Window,
        first_policy: Option<Policy>,
        policies: &[Policy],
        keep_policies: bool,
        seed: HashSeed,
    ) -> WhatIf {
        let policy_fold = |policy: Policy| PolicyFold {
            state: State::seeded(partition, policy, seed),
            tally: Tally::new(window),
            losses: Vec::new(),
        };
        WhatIf {
            window,
            keep_policies,
            was: match first_policy {
                Some(policy) => Was::Folded(Box::new(policy_fold(policy))),
                None => Was::Published {
                    tally: Tally::new(window),
                    losses: Vec::new(),
                },
            },
            points: policies.iter().cloned().map(policy_fold).collect(),
            times: EvidenceTimes::default(),
            time: LogTime(0),
            records: 0,
        }
    }

    /// Takes the next published change. All of them come before the first event.
    pub fn published(&mut self, change: &Change) -> More {
        if let Was::Published { tally, losses } = &mut self.was {
            losses.extend(tally.apply(change));
        }
        self.window.needs(change.at)
    }

    /// Folds the next record; `event` is `None` for a malformed one.
    pub fn fold(&mut self, offset: Offset, ts: u64, event: Option<&Event<'_>>) -> More {
        if self.records == 0
            && let Was::Published { losses, .. } = &mut self.was
        {
            losses.sort_unstable_by_key(|loss| std::cmp::Reverse(loss.evidence));
        }
        self.records += 1;
        self.time = self.time.max(LogTime(ts));
        self.times.push(offset, self.time);
        match &mut self.was {
            Was::Published { tally, losses } => {
                while let Some(loss) = losses.pop_if(|loss| loss.evidence <= offset) {
                    // Without the record itself, which only an altered topic can bring about, there is no time to compare with.
                    if loss.evidence == offset {
                        tally.totals.detected(loss.logged_at, self.time);
                    }
                }
            }
            Was::Folded(policy_fold) => policy_fold.fold(offset, ts, event, &self.times),
        }
        let as_is = event.filter(|event| self.keep_policies || !matches!(event, Event::Policy { .. }));
        for policy_fold in &mut self.points {
            policy_fold.fold(offset, ts, as_is, &self.times);
        }
        if self.records.is_multiple_of(RECYCLE_EVERY) {
            self.folds().for_each(|policy_fold| {
                policy_fold.state.take_dirt();
            });
        }
        if self.times.is_long() {
            let oldest = self
                .folds()
                .filter_map(|policy_fold| policy_fold.oldest_evidence())
                .min();
            self.times.forget_before(oldest.unwrap_or(offset));
        }
        self.window.needs(self.time)
    }

    fn folds(&mut self) -> impl Iterator<Item = &mut PolicyFold> {
        let was = match &mut self.was {
            Was::Published { .. } => None,
            Was::Folded(policy_fold) => Some(&mut **policy_fold),
        };
        was.into_iter().chain(&mut self.points)
    }

    /// Ends at the log time reached.
    pub fn finish(self) -> PartitionFigures {
        let end = self.time;
        let was = match self.was {
            Was::Published { tally, .. } => tally.finish(end),
            Was::Folded(policy_fold) => policy_fold.tally.finish(end),
        };
        let point = |policy_fold: PolicyFold| {
            let would = policy_fold.tally.finish(end);
            Point {
                users_affected: affected(&was.users, &would.users),
                would: would.totals,
            }
        };
        PartitionFigures {
            points: self.points.into_iter().map(point).collect(),
            was: was.totals,
        }
    }
}

/// Counts the users of whom two sides say something different in the window.
fn affected(was: &HashMap<Box<str>, UserTally>, would: &HashMap<Box<str>, UserTally>) -> u64 {
    let unknown = UserTally::default().entered();
    let digest = |of: &HashMap<Box<str>, UserTally>, user: &str| of.get(user).map_or(unknown, |user| user.digest);
    let only_would = would.keys().filter(|user| !was.contains_key(*user));
    let users = was.keys().chain(only_would);
    users.filter(|user| digest(was, user) != digest(would, user)).count() as u64
}

impl Window {
    fn has(&self, at: LogTime) -> bool {
        at >= self.from && self.to.is_none_or(|to| at <= to)
    }

    /// Whether something later than `time` can still count: a return from a loss in the window.
    fn needs(&self, time: LogTime) -> More {
        self.to.is_none_or(|to| time <= to.plus(self.again_ms))
    }

    /// How much of a stretch is in the window.
    fn overlap_ms(&self, begin: LogTime, end: LogTime) -> u64 {
        let end = self.to.map_or(end, |to| end.min(to));
        end.0.saturating_sub(begin.max(self.from).0)
    }
}

impl PolicyFold {
    fn fold(&mut self, offset: Offset, ts: u64, event: Option<&Event<'_>>, times: &EvidenceTimes) {
        let PolicyFold { state, tally, losses } = self;
        state.fold(offset, ts, event, &mut |output| match output {
            Output::Change(change) => losses.extend(tally.apply(&change)),
            Output::Kick(_) | Output::Ignored(_) => {}
        });
        for loss in losses.drain(..) {
            if let Some(time) = times.of(loss.evidence) {
                tally.totals.detected(loss.logged_at, time);
            }
        }
    }

    /// The oldest record that can still be the evidence of a loss.
    fn oldest_evidence(&self) -> Option<Offset> {
        let state = &self.state;
        let online = state.slots().filter(|slot| state.has_online_device(*slot));
        let images = online.filter_map(|slot| state.image(slot));
        images
            .flat_map(|user| user.devices)
            .filter_map(|device| match device.phase {
                Phase::Online { session, .. } => Some(session.evidence),
                Phase::Away { .. } | Phase::Kicked { .. } => None,
            })
            .min()
    }
}

impl Tally {
    fn new(window: Window) -> Tally {
        Tally {
            window,
            users: HashMap::new(),
            totals: Totals::default(),
        }
    }

    /// Takes the next change. Returns the loss whose detection counts, once the time of its evidence is known.
    fn apply(&mut self, change: &Change) -> Option<Loss> {
        let window = self.window;
        let is_loss = matches!(change.cause, Cause::Timeout | Cause::GatewayLost | Cause::Background);
        if !self.users.contains_key(&change.user) {
            self.users.insert(change.user.clone(), UserTally::default());
        }
        let user = self.users.get_mut(&change.user)?;
        if change.at >= window.from && !user.is_entered {
            user.digest = user.entered();
            user.is_entered = true;
        }
        if window.has(change.at) {
            self.totals.changes += 1;
            user.digest = extended(user.digest, change);
        }
        let mut loss = None;
        for one in &change.devices {
            let key = (one.platform.clone(), one.device.clone());
            let device = user.devices.entry(key).or_insert(DeviceTally {
                status: one.before,
                online_since: change.at,
                lost_at: None,
            });
            let (was_online, is_online) = (one.before == Status::Online, one.after == Status::Online);
            if was_online && !is_online {
                self.totals
                    .online(&one.platform, window.overlap_ms(device.online_since, change.at));
            }
            if !was_online && is_online {
                device.online_since = change.at;
                let is_back = matches!(change.cause, Cause::Resume | Cause::Revive)
                    && device
                        .lost_at
                        .is_some_and(|lost_at| change.at.0 - lost_at.0 <= window.again_ms);
                self.totals.false_offlines += u64::from(is_back);
            }
            let is_lost = is_loss && was_online && window.has(change.at);
            device.lost_at = is_lost.then_some(change.at);
            device.status = one.after;
            if is_lost {
                loss = Some(Loss {
                    evidence: change.evidence,
                    logged_at: change.logged_at,
                });
            }
        }
        user.custom_status.clone_from(&change.custom_status);
        user.devices.retain(|_, device| {
            let may_return = device
                .lost_at
                .is_some_and(|lost_at| change.at <= lost_at.plus(window.again_ms));
            device.status != Status::Offline || may_return
        });
        loss
    }

    /// Ends what still holds at the end of the log.
    fn finish(mut self, end: LogTime) -> Tally {
        for user in self.users.values_mut() {
            for ((platform, _), device) in &user.devices {
                if device.status == Status::Online {
                    let ms = self.window.overlap_ms(device.online_since, end);
                    self.totals.online(platform, ms);
                }
            }
            if !user.is_entered {
                user.digest = user.entered();
            }
        }
        self
    }
}

impl UserTally {
    /// The digest of how the user stands when the window begins.
    fn entered(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for ((platform, device), tally) in &self.devices {
            if tally.status != Status::Offline {
                (platform, device, tally.status as u8).hash(&mut hasher);
            }
        }
        self.custom_status.hash(&mut hasher);
        hasher.finish()
    }
}

/// Extends a digest by what a change says of its user. Not by where it stands among the changes of others.
fn extended(digest: u64, change: &Change) -> u64 {
    let mut hasher = DefaultHasher::new();
    let (before, after) = (change.before as u8, change.after as u8);
    (digest, change.at.0, change.cause as u8, before, after).hash(&mut hasher);
    for device in &change.devices {
        let DeviceChange {
            platform,
            device,
            gateway,
            before,
            after,
        } = device;
        (platform, device, gateway, *before as u8, *after as u8).hash(&mut hasher);
    }
    change.custom_status.hash(&mut hasher);
    hasher.finish()
}

impl Totals {
    fn online(&mut self, platform: &str, ms: u64) {
        if ms == 0 {
            return;
        }
        match self.online_ms.get_mut(platform) {
            Some(sum) => *sum += ms,
            None => {
                self.online_ms.insert(platform.into(), ms);
            }
        }
    }

    fn detected(&mut self, logged_at: LogTime, evidence: LogTime) {
        let after_ms = logged_at.0.saturating_sub(evidence.0);
        *self.detections.entry(after_ms).or_default() += 1;
    }

    /// Adds those of another partition.
    pub fn add(&mut self, other: &Totals) {
        self.changes += other.changes;
        self.false_offlines += other.false_offlines;
        for (platform, ms) in &other.online_ms {
            self.online(platform, *ms);
        }
        for (after_ms, count) in &other.detections {
            *self.detections.entry(*after_ms).or_default() += count;
        }
    }

    fn detection(&self) -> Detection {
        let all: u64 = self.detections.values().sum();
        let percentile = |percent: u64| {
            let rank = (all * percent).div_ceil(100);
            let mut passed = 0;
            let mut sorted = self.detections.iter();
            sorted.find_map(|(after_ms, count)| {
                passed += count;
                (passed >= rank).then_some(*after_ms)
            })
        };
        Detection {
            p50: percentile(50),
            p99: percentile(99),
        }
    }
}

impl Point {
    /// Adds that of another partition.
    pub fn add(&mut self, other: &Point) {
        self.would.add(&other.would);
        self.users_affected += other.users_affected;
    }

    /// Returns the comparison as it is printed.
    pub fn line(&self, value: Option<u64>, was: &Totals) -> WhatIfLine {
        let would = &self.would;
        let platforms = was.online_ms.keys().chain(would.online_ms.keys());
        let of = |side: &Totals, platform: &str| side.online_ms.get(platform).copied().unwrap_or(0);
        let online = platforms.map(|platform| {
            let both = WasWould {
                was: of(was, platform),
                would: of(would, platform),
            };
            (platform.clone(), both)
        });
        WhatIfLine {
            value,
            changes: WasWould {
                was: was.changes,
                would: would.changes,
            },
            users_affected: self.users_affected,
            online_ms: online.collect(),
            false_offlines: WasWould {
                was: was.false_offlines,
                would: would.false_offlines,
            },
            detection_ms: WasWould {
                was: was.detection(),
                would: would.detection(),
            },
        }
    }
}

/// What can be no device's evidence any more is let go of when there are so many times.
const TIMES_MAX: usize = 100_000;

/// The log time of each record that may still be the evidence of a loss: an entry where it differs from the one before.
#[derive(Default)]
struct EvidenceTimes {
    times: VecDeque<(Offset, LogTime)>,
    /// How many were left by the last [`EvidenceTimes::forget_before`].
    kept: usize,
}

impl EvidenceTimes {
    fn push(&mut self, offset: Offset, time: LogTime) {
        if self.times.back().is_none_or(|(_, last)| *last != time) {
            self.times.push_back((offset, time));
        }
    }

    fn of(&self, offset: Offset) -> Option<LogTime> {
        let after = self.times.partition_point(|(first, _)| *first <= offset);
        self.times.get(after.checked_sub(1)?).map(|(_, time)| *time)
    }

    fn is_long(&self) -> bool {
        self.times.len() > TIMES_MAX + 2 * self.kept
    }

    fn forget_before(&mut self, offset: Offset) {
        while self.times.get(1).is_some_and(|(first, _)| *first <= offset) {
            self.times.pop_front();
        }
        self.kept = self.times.len();
    }
}
