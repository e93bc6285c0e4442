//! Random histories, as hostile as the rules allow.
//!
//! Few names and small numbers, so that everything collides: devices with devices, connections with older ones, epochs
//! with their successors. Time mostly creeps, but likes to land on the very millisecond of a deadline or beside it. A
//! light memory of the connections made keeps most events about something that exists. The memory only guesses: it
//! does not fold, so that no reading of the rules is built into what tests them.
//!
//! The same seed gives the same history, for ever: nothing here comes from outside.

mod lines;
mod policies;

pub use lines::{event_json, record_json};
pub use policies::{document_json, policy, policy_document};

use crate::presence::event::{ConnRef, DeviceRef, Ending, Event, HeartbeatEntry, Intent, Target, bounds};
use crate::presence::policy::{LoginMode, Policy, PolicyDocument};
use crate::presence::{Conn, Epoch, Offset};
use crate::random::Random;
use policies::{completed, random_document};
use std::borrow::Cow;

const DAY_MS: u64 = 86_400_000;
/// In an order that is not that of their bytes, and not all of them plain.
const USERS: [&str; 6] = ["bob", "alice", "～", "😀", "u\"1\\", "zoë"];
const DEVICES: [&str; 4] = ["d2", "d1", "～", "😀"];
const GATEWAYS: [&str; 3] = ["g2", "g1", "gateway/3"];
const TEXTS: [&str; 4] = ["busy", "在忙 😀", "a\"b\\c\n\u{1}", "away"];
const CLIENTS: [&str; 3] = ["10.0.0.7; App 3.1", "tab \"1\"\t", "会议室 😀"];
const KINDS: [&str; 9] = [
    "android", "iphone", "ipad", "mac", "windows", "linux", "web", "kiosk", "nobody",
];
const NEW_PLATFORMS: [&str; 3] = ["tv", "kiosk", "～tv"];
const UNKNOWN_PLATFORM: &str = "toaster";
const DEFAULT_PLATFORMS: [&str; 8] = [
    "android",
    "iphone",
    "ipad",
    "mac",
    "windows",
    "linux",
    "web",
    "mini_program",
];
/// How many instants of interest are kept.
const INSTANTS_MAX: usize = 48;
/// How many connections that are no longer a device's own are kept, to speak late.
const OLD_CONNECTIONS_MAX: usize = 12;

/// How long the rules remember the end of a connection that came before its connect, and how many of them.
const EARLY_END_MS: u64 = 60_000;
const EARLY_ENDS_MAX: usize = 1_024;
/// How many connections that ended before their connect are kept, to connect late.
const ENDED_MAX: usize = 12;
/// How many devices that may have lost a custom status with their link are kept, to come back.
const AWAY_MAX: usize = 12;
/// A history at least as long as this may have a rush of early ends in it, more than the rules remember.
const RUSH_RECORDS_MIN: usize = 2_000;

/// A connection as the generator remembers it.
#[derive(Clone, Debug)]
struct Connection {
    user: &'static str,
    platform: &'static str,
    device: &'static str,
    gateway: usize,
    epoch: u64,
    conn: u64,
    /// When it will have been silent for too long.
    lives_until: u64,
}

/// A gateway as the generator believes it to be.
#[derive(Clone, Debug)]
struct Gateway {
    epoch: u64,
    ended: bool,
    /// The number of the last connection.
    conn: u64,
    /// When the last lease ends.
    until: u64,
}

/// A history being made.
#[derive(Clone, Debug)]
struct History {
    random: Random,
    left: usize,
    offset: u64,
    time: u64,
    /// How often, of a hundred records, time jumps.
    jumps: u64,
    document: PolicyDocument,
    policy: Policy,
    users: Vec<&'static str>,
    devices: Vec<&'static str>,
    platforms: Vec<&'static str>,
    gateways: Vec<Gateway>,
    /// The last connection of each device.
    connections: Vec<Connection>,
    old: Vec<Connection>,
    /// Connections whose end was published before their connect; remembered by the rules until `lives_until`.
    ended: Vec<Connection>,
    /// Devices that lost their link, and until when a custom status may be kept.
    away: Vec<(Connection, u64)>,
    /// When each user was kicked as a whole last.
    kicked: Vec<(&'static str, u64)>,
    /// How many records are left when the rush of early ends begins.
    rush_at: usize,
    /// How many early ends of the rush are still to come, and how many connects after them.
    rush: usize,
    rush_connects: usize,
    /// Points in time, still to come, at which something may be due.
    instants: Vec<u64>,
}

/// A seed's history: so many records of offset, timestamp and event, none for a malformed record. Its first policy is
/// that of [`policy`].
pub fn records(seed: u64, count: usize) -> impl Iterator<Item = (Offset, u64, Option<Event<'static>>)> {
    History::new(seed, count)
}

impl Connection {
    fn is_of(&self, who: &DeviceRef<'_>) -> bool {
        self.user == who.user && self.platform == who.platform && self.device == who.device
    }
}

impl Iterator for History {
    type Item = (Offset, u64, Option<Event<'static>>);

    fn next(&mut self) -> Option<Self::Item> {
        self.left = self.left.checked_sub(1)?;
        let offset = Offset(self.offset);
        self.offset += 1;
        if self.left == self.rush_at && self.rush_at > 0 {
            self.rush = EARLY_ENDS_MAX + 1 + self.random.index(100);
            self.rush_connects = ENDED_MAX;
        }
        if self.random.percent(10) {
            self.offset += self.random.below(5);
        }
        let ts = self.timestamp();
        self.time = self.time.max(ts);
        self.instants.retain(|instant| *instant + 1 >= ts);
        let event = self.event();
        if self.instants.len() > INSTANTS_MAX {
            // The next ones, in any order.
            self.instants.select_nth_unstable(INSTANTS_MAX);
            self.instants.truncate(INSTANTS_MAX);
        }
        Some((offset, ts, event))
    }
}

impl History {
    fn new(seed: u64, count: usize) -> History {
        let mut random = Random(seed);
        let document = policy_document(seed);
        let policy = completed(document.clone());
        let start = *random.pick(&[0, 1, 1_000, 1_700_000_000_000]);
        let gateways = 2 + random.index(2);
        let users = 1 + random.index(5);
        let devices = 1 + random.index(3);
        let mut history = History {
            left: count,
            offset: random.below(3),
            time: start,
            jumps: *random.pick(&[1, 5, 12, 30]),
            document,
            policy,
            users: USERS[..=users].to_vec(),
            devices: DEVICES[..=devices].to_vec(),
            platforms: Vec::new(),
            gateways: Vec::new(),
            connections: Vec::new(),
            old: Vec::new(),
            ended: Vec::new(),
            away: Vec::new(),
            kicked: Vec::new(),
            rush_at: 0,
            rush: 0,
            rush_connects: 0,
            instants: Vec::new(),
            random,
        };
        for _ in 0..gateways {
            let epoch = history.random.below(5);
            history.gateways.push(Gateway {
                epoch,
                ended: false,
                conn: 0,
                until: 0,
            });
        }
        history.choose_platforms();
        if count >= RUSH_RECORDS_MIN && history.random.percent(70) {
            history.rush_at = count - history.random.index(count / 4);
        }
        history
    }

    fn choose_platforms(&mut self) {
        // In the order of the policy, so by name.
        let mut names = [DEFAULT_PLATFORMS.as_slice(), NEW_PLATFORMS.as_slice()].concat();
        names.retain(|name| self.policy.platforms.contains_key(*name));
        names.sort_unstable();
        let most = 1 + self.random.index(4);
        self.platforms = self.random.some_of(&names, most);
        for name in ["mini_program", "web"] {
            if self.random.percent(40) && !self.platforms.contains(&name) {
                self.platforms.push(name);
            }
        }
        // Those that only a policy brought are the most likely to be misunderstood.
        for name in NEW_PLATFORMS {
            if self.policy.platforms.contains_key(name) && !self.platforms.contains(&name) {
                self.platforms.push(name);
            }
        }
    }

    fn timestamp(&mut self) -> u64 {
        let time = self.time;
        let is_rush = self.rush > 0 || self.rush_connects > 0;
        let ts = if is_rush {
            time + self.random.below(2)
        } else if self.random.percent(self.jumps) {
            match self.random.weighted(&[80, 14, 3, 2, 1]) {
                0 => self.beside_an_instant(),
                1 => {
                    let silence_ms = self.policy.outage.silence_ms;
                    let span = *self
                        .random
                        .pick(&[1_000, 5_000, 30_000, 60_000, 120_000, 400_000, 600_000, silence_ms]);
                    (time + span + self.random.below(3)).saturating_sub(1)
                }
                2 => (time + DAY_MS + self.random.below(3)).saturating_sub(1),
                3 => (time + 7 * DAY_MS + self.random.below(3)).saturating_sub(1),
                _ => time + self.random.below(40 * DAY_MS),
            }
        } else {
            match self.random.weighted(&[20, 70, 10]) {
                0 => time,
                1 => {
                    let most = *self.random.pick(&[2, 10, 500, 5_000]);
                    time + self.random.below(most)
                }
                _ => {
                    let most = *self.random.pick(&[2, 5_000, 100_000, DAY_MS]);
                    time.saturating_sub(self.random.below(most))
                }
            }
        };
        ts.min(bounds::TIMESTAMP_MAX)
    }

    /// Exactly one of the next points of interest, or a millisecond beside it.
    fn beside_an_instant(&mut self) -> u64 {
        self.instants.sort_unstable();
        self.instants.dedup();
        let near = self.instants.len().min(*self.random.pick(&[1, 1, 2, 2, 4, 4, 8, 48]));
        if near == 0 {
            return self.time + self.random.below(1_000);
        }
        let instant = self.instants[self.random.index(near)];
        (instant + self.random.below(3)).saturating_sub(1)
    }

    fn may_be_due_in(&mut self, span: u64) {
        if span > 0 {
            self.instants.push(self.time.saturating_add(span));
        }
    }

    fn event(&mut self) -> Option<Event<'static>> {
        if self.rush > 0 {
            self.rush -= 1;
            return Some(self.early_end());
        }
        if self.rush_connects > 0 {
            self.rush_connects -= 1;
            if !self.ended.is_empty() {
                let connection = self.ended.remove(0);
                return Some(self.connect_of(connection, true));
            }
        }
        // One whose end is forgotten about now.
        let time = self.time;
        let due = self
            .ended
            .iter()
            .position(|ended| ended.lives_until.abs_diff(time) <= 1);
        if let Some(place) = due
            && self.random.percent(70)
        {
            let connection = self.ended.remove(place);
            let has_ended = connection.lives_until > time;
            return Some(self.connect_of(connection, has_ended));
        }
        // One whose text is about to be kept no longer.
        let due = self.away.iter().position(|(_, until)| until.abs_diff(time) <= 1);
        if let Some(place) = due
            && self.random.percent(70)
        {
            let (away, _) = self.away.remove(place);
            let mut connection = self.new_connection();
            connection.user = away.user;
            connection.platform = away.platform;
            connection.device = away.device;
            return Some(self.connect_of(connection, false));
        }
        let weights = [26, 12, 7, 8, 6, 12, 4, 4, 10, 1, 9, 1, 3, 4, 8, 4, 1];
        match self.random.weighted(&weights) {
            0 => Some(self.connect()),
            1 => {
                let (who, via) = self.speaker();
                self.shows_life(&who);
                Some(Event::Heartbeat { who, via })
            }
            2 => Some(self.heartbeats()),
            3 => {
                let (who, via) = self.speaker();
                self.shows_life(&who);
                if let Some(platform) = self.policy.platforms.get(&*who.platform) {
                    self.may_be_due_in(platform.background_ms.unwrap_or(0));
                }
                Some(Event::Background { who, via })
            }
            4 => {
                let (who, via) = self.speaker();
                self.shows_life(&who);
                Some(Event::Foreground { who, via })
            }
            5 => {
                let (who, via) = self.speaker();
                let reason = *self.random.pick(&[Ending::Closed, Ending::Exit]);
                if self.random.percent(60) {
                    self.fall_silent(|connection| connection.is_of(&who));
                }
                if let Some(platform) = self.policy.platforms.get(&*who.platform) {
                    let delay = match reason {
                        Ending::Closed => platform.closed_ms,
                        Ending::Exit => platform.exit_ms,
                    };
                    let away_ms = platform.away_ms;
                    self.may_be_due_in(delay);
                    self.may_be_due_in(delay + away_ms);
                    self.may_be_away_in(delay, &who);
                }
                Some(Event::Disconnect { who, via, reason })
            }
            6 => {
                let (who, via) = self.speaker();
                self.are_gone(|connection| connection.is_of(&who));
                Some(Event::Logout { who, via })
            }
            7 => Some(self.kick()),
            8 => {
                let text = if self.random.percent(25) {
                    None
                } else {
                    Some(Cow::Borrowed(*self.random.pick(&TEXTS)))
                };
                let user = Cow::Borrowed(self.some_user());
                Some(Event::CustomStatus { user, text })
            }
            9 => {
                let user = self.some_user();
                self.are_gone(|connection| connection.user == user);
                let user = Cow::Borrowed(user);
                Some(Event::Forget { user })
            }
            10 => Some(self.lease()),
            11 => Some(self.policy_event()),
            12 => Some(Event::Tick),
            13 => None,
            14 => Some(self.alive()),
            15 => Some(self.early_end()),
            _ => Some(Event::Revision { revision: 1 }),
        }
    }

    fn some_user(&mut self) -> &'static str {
        if self.random.percent(3) {
            "nobody"
        } else {
            let user: &&'static str = self.random.pick(&self.users);
            user
        }
    }

    fn some_platform(&mut self) -> &'static str {
        if self.random.percent(3) {
            UNKNOWN_PLATFORM
        } else {
            let platform: &&'static str = self.random.pick(&self.platforms);
            platform
        }
    }

    fn shows_life(&mut self, who: &DeviceRef<'_>) {
        if let Some(platform) = self.policy.platforms.get(&*who.platform) {
            let (timeout_ms, away_ms) = (platform.timeout_ms, platform.away_ms);
            let lives_until = self.time + timeout_ms;
            for connection in &mut self.connections {
                if connection.is_of(who) {
                    connection.lives_until = lives_until;
                }
            }
            self.may_be_due_in(timeout_ms);
            self.may_be_due_in(timeout_ms + away_ms);
            self.may_be_away_in(timeout_ms, who);
        }
    }

    /// A device's link is lost after a span, perhaps; then a text may be kept from then on.
    fn may_be_away_in(&mut self, span: u64, who: &DeviceRef<'_>) {
        let custom_keep_ms = self.policy.custom_keep_ms;
        if custom_keep_ms > 0
            && self.random.percent(30)
            && let Some(connection) = self.connections.iter().find(|connection| connection.is_of(who))
        {
            let until = self.time + span + custom_keep_ms;
            self.away.push((connection.clone(), until));
            if self.away.len() > AWAY_MAX {
                self.away.remove(0);
            }
            self.may_be_due_in(span + custom_keep_ms);
        }
    }

    /// A number near another one.
    fn near(&mut self, number: u64) -> u64 {
        (number + self.random.below(5))
            .saturating_sub(2)
            .min(bounds::NUMBER_MAX)
    }

    fn named(&self, connection: &Connection) -> (DeviceRef<'static>, ConnRef<'static>) {
        let who = DeviceRef {
            user: Cow::Borrowed(connection.user),
            platform: Cow::Borrowed(connection.platform),
            device: Cow::Borrowed(connection.device),
        };
        let via = ConnRef {
            gateway: Cow::Borrowed(GATEWAYS[connection.gateway]),
            epoch: Epoch(connection.epoch),
            conn: Conn(connection.conn),
        };
        (who, via)
    }

    /// Any connection at all, most likely one that never was.
    fn any_connection(&mut self) -> Connection {
        let gateway = self.random.index(self.gateways.len());
        let epoch = if self.random.percent(50) {
            self.gateways[gateway].epoch
        } else {
            self.random.below(5)
        };
        let device: &&'static str = self.random.pick(&self.devices);
        Connection {
            device,
            user: self.some_user(),
            platform: self.some_platform(),
            lives_until: 0,
            gateway,
            epoch,
            conn: self.random.below(9),
        }
    }

    /// Who sends an event about a connection: mostly one that a device is on.
    fn speaking(&mut self) -> Connection {
        if self.connections.is_empty() || self.random.percent(4) {
            return self.any_connection();
        }
        if !self.old.is_empty() && self.random.percent(5) {
            return self.random.pick(&self.old).clone();
        }
        let alive: Vec<&Connection> = self
            .connections
            .iter()
            .filter(|connection| connection.lives_until >= self.time)
            .collect();
        let mut connection = if !alive.is_empty() && self.random.percent(85) {
            (*self.random.pick(&alive)).clone()
        } else {
            self.random.pick(&self.connections).clone()
        };
        if self.random.percent(5) {
            match self.random.below(3) {
                0 => connection.conn = self.near(connection.conn),
                1 => connection.epoch = self.near(connection.epoch),
                _ => connection.gateway = self.random.index(self.gateways.len()),
            }
        }
        connection
    }

    fn speaker(&mut self) -> (DeviceRef<'static>, ConnRef<'static>) {
        let connection = self.speaking();
        self.named(&connection)
    }

    fn connect(&mut self) -> Event<'static> {
        let mut has_ended = false;
        let random = &mut self.random;
        let connection = if !self.connections.is_empty() && random.percent(4) {
            // The same record again.
            random.pick(&self.connections).clone()
        } else if !self.old.is_empty() && random.percent(4) {
            // An older connection's record that comes late.
            random.pick(&self.old).clone()
        } else if !self.ended.is_empty() && random.percent(12) {
            // One whose end came first.
            let connection = random.pick(&self.ended).clone();
            has_ended = connection.lives_until > self.time;
            connection
        } else {
            self.new_connection()
        };
        self.connect_of(connection, has_ended)
    }

    /// A connect of a connection; where its end is remembered, its device is taken to stay where it is.
    fn connect_of(&mut self, connection: Connection, has_ended: bool) -> Event<'static> {
        let (who, via) = self.named(&connection);
        let known = self.connections.iter().position(|other| other.is_of(&who));
        match known {
            _ if has_ended => {}
            Some(place) => {
                let old = std::mem::replace(&mut self.connections[place], connection);
                self.set_aside(old);
            }
            None => self.connections.push(connection),
        }
        self.shows_life(&who);
        if let Some(platform) = self.policy.platforms.get(&*who.platform) {
            // Of those that it may displace.
            let away_ms = platform.away_ms;
            self.may_be_due_in(away_ms);
        }
        let auth_at = self.auth_at(&who.user);
        let intent = if self.random.percent(45) {
            Intent::Login
        } else {
            Intent::Resume
        };
        // It may have displaced the user's others. Half of the time they are left to speak all the same.
        if intent == Intent::Login && self.policy.login != LoginMode::Multi && self.random.percent(50) {
            self.fall_silent(|other| other.user == who.user && !other.is_of(&who));
        }
        let client = if self.random.percent(40) {
            Some(Cow::Borrowed(*self.random.pick(&CLIENTS)))
        } else {
            None
        };
        Event::Connect {
            who,
            via,
            intent,
            client,
            auth_at,
        }
    }

    /// When a user proved who it is: often just before the last kick of the whole user, at it, or just after it.
    fn auth_at(&mut self, user: &str) -> Option<u64> {
        if !self.random.percent(35) {
            return None;
        }
        let kicked = self.kicked.iter().find(|(other, _)| *other == user);
        let around = kicked.map_or(self.time, |(_, at)| *at);
        let auth_at = match self.random.weighted(&[80, 10, 5, 5]) {
            0 => (around + self.random.below(3)).saturating_sub(1),
            1 => self.time,
            2 => 0,
            _ => bounds::TIMESTAMP_MAX,
        };
        Some(auth_at.min(bounds::TIMESTAMP_MAX))
    }

    /// A disconnect or a logout of a connection whose connect comes later, if at all.
    fn early_end(&mut self) -> Event<'static> {
        let is_rush = self.rush_at > 0 && self.rush_connects == ENDED_MAX;
        let connection = if is_rush {
            // Each with a number of its own.
            let mut connection = self.any_connection();
            let gateway = &mut self.gateways[connection.gateway];
            gateway.conn += 1;
            connection.epoch = gateway.epoch;
            connection.conn = gateway.conn;
            connection
        } else {
            self.new_connection()
        };
        let (who, via) = self.named(&connection);
        if !is_rush {
            self.may_be_due_in(EARLY_END_MS);
        }
        // Of a rush, those at the edge of what is remembered, the newest and the oldest.
        let left = self.rush;
        if !is_rush || left.abs_diff(EARLY_ENDS_MAX) <= 3 || left < 2 || left + 1 > EARLY_ENDS_MAX + 100 {
            if self.ended.len() >= ENDED_MAX {
                self.ended.remove(0);
            }
            let lives_until = self.time + EARLY_END_MS;
            self.ended.push(Connection {
                lives_until,
                ..connection
            });
        }
        let reason = *self.random.pick(&[Ending::Closed, Ending::Exit]);
        if self.random.percent(70) {
            Event::Disconnect { who, via, reason }
        } else {
            Event::Logout { who, via }
        }
    }

    /// Connections of a gateway by their numbers: those that devices are on, some that they no longer are, and some that
    /// never were.
    fn alive(&mut self) -> Event<'static> {
        let first = self.speaking();
        let mut conns = vec![first.conn];
        let known = [self.connections.clone(), self.old.clone(), self.ended.clone()];
        for (connections, chance) in known.into_iter().zip([75, 25, 25]) {
            for connection in connections {
                let is_same = connection.gateway == first.gateway && connection.epoch == first.epoch;
                if is_same && self.random.percent(chance) {
                    conns.push(connection.conn);
                    let (who, _) = self.named(&connection);
                    self.shows_life(&who);
                }
            }
        }
        while self.random.percent(25) {
            conns.push(match self.random.below(3) {
                0 => self.near(first.conn),
                1 => self.random.below(9),
                _ => bounds::NUMBER_MAX,
            });
        }
        conns.sort_unstable();
        conns.dedup();
        Event::Alive {
            gateway: Cow::Borrowed(GATEWAYS[first.gateway]),
            epoch: Epoch(first.epoch),
            conns: conns.into_iter().map(Conn).collect(),
        }
    }

    /// Those of which this is true are not expected to live any more.
    fn fall_silent(&mut self, which: impl Fn(&Connection) -> bool) {
        for connection in &mut self.connections {
            if which(connection) {
                connection.lives_until = 0;
            }
        }
    }

    fn set_aside(&mut self, connection: Connection) {
        self.old.push(connection);
        if self.old.len() > OLD_CONNECTIONS_MAX {
            self.old.remove(0);
        }
    }

    /// Takes the connections of which this is true out of those that devices are on.
    fn are_gone(&mut self, which: impl Fn(&Connection) -> bool) {
        let (gone, stay) = std::mem::take(&mut self.connections).into_iter().partition(which);
        self.connections = stay;
        for connection in Vec::into_iter(gone) {
            self.set_aside(connection);
        }
    }

    fn new_connection(&mut self) -> Connection {
        let mut connection = self.any_connection();
        if !self.connections.is_empty() && self.random.percent(45) {
            let again = self.random.pick(&self.connections).clone();
            connection.user = again.user;
            connection.platform = again.platform;
            connection.device = again.device;
        }
        let gateway = &mut self.gateways[connection.gateway];
        if gateway.until > 0 && gateway.until + DAY_MS <= self.time {
            // Forgotten by now: any epoch will do.
            gateway.until = 0;
            gateway.ended = false;
            gateway.conn = 0;
            gateway.epoch = self.random.below(5);
        }
        let gateway = &mut self.gateways[connection.gateway];
        connection.epoch = match self.random.weighted(&[88, 6, 6]) {
            // Ahead of its lease, since it needs one to live again.
            0 if gateway.ended => gateway.epoch + 1,
            0 => gateway.epoch,
            1 => gateway.epoch + 1,
            _ => gateway.epoch.saturating_sub(1 + self.random.below(2)),
        };
        connection.conn = match self.random.weighted(&[880, 115, 5]) {
            0 => {
                gateway.conn += 1 + self.random.below(2);
                gateway.conn
            }
            1 => self.random.below(9),
            _ => bounds::NUMBER_MAX,
        };
        connection
    }

    fn heartbeats(&mut self) -> Event<'static> {
        let first = self.speaking();
        let mut same: Vec<Connection> = self
            .connections
            .iter()
            .filter(|other| other.gateway == first.gateway && other.epoch == first.epoch)
            .cloned()
            .collect();
        same.push(first.clone());
        let mut beats = Vec::new();
        for _ in 0..=self.random.below(6) {
            let connection = if self.random.percent(80) {
                self.random.pick(&same).clone()
            } else {
                self.speaking()
            };
            let (who, via) = self.named(&connection);
            self.shows_life(&who);
            beats.push(HeartbeatEntry { who, conn: via.conn });
        }
        Event::Heartbeats {
            gateway: Cow::Borrowed(GATEWAYS[first.gateway]),
            epoch: Epoch(first.epoch),
            beats,
        }
    }

    fn kick(&mut self) -> Event<'static> {
        let connection = self.speaking();
        self.fall_silent(|other| other.user == connection.user);
        let target = match self.random.weighted(&[50, 25, 25]) {
            0 => {
                self.kicked.retain(|(user, _)| *user != connection.user);
                self.kicked.push((connection.user, self.time));
                Target::All
            }
            1 => Target::Platform(Cow::Borrowed(connection.platform)),
            _ => Target::Device(Cow::Borrowed(connection.platform), Cow::Borrowed(connection.device)),
        };
        let user = Cow::Borrowed(connection.user);
        Event::Kick { user, target }
    }

    fn lease(&mut self) -> Event<'static> {
        let place = self.random.index(self.gateways.len());
        let now = self.time;
        let gateway = &mut self.gateways[place];
        let epoch = match self.random.weighted(&[88, 4, 8]) {
            0 if gateway.ended => gateway.epoch + self.random.below(2),
            0 => gateway.epoch,
            1 => gateway.epoch + 1,
            _ => gateway.epoch.saturating_sub(1 + self.random.below(2)),
        };
        let stops = if epoch > gateway.epoch { 25 } else { 5 };
        let ttl_ms = if self.random.percent(stops) {
            0
        } else {
            *self
                .random
                .pick(&[1, 1_000, 5_000, 30_000, 30_000, 60_000, 600_000, bounds::TTL_MS_MAX])
        };
        if epoch > gateway.epoch {
            gateway.epoch = epoch;
            gateway.ended = false;
            gateway.conn = 0;
            gateway.until = now + ttl_ms;
            if ttl_ms == 0 {
                gateway.ended = true;
            }
            self.are_gone(|connection| connection.gateway == place && connection.epoch < epoch);
        } else if epoch == gateway.epoch && !gateway.ended {
            gateway.until = now + ttl_ms;
            if ttl_ms == 0 {
                gateway.ended = true;
                self.are_gone(|connection| connection.gateway == place && connection.epoch <= epoch);
            }
        }
        self.may_be_due_in(ttl_ms);
        self.may_be_due_in(ttl_ms + DAY_MS);
        Event::Lease {
            gateway: Cow::Borrowed(GATEWAYS[place]),
            epoch: Epoch(epoch),
            ttl_ms,
        }
    }

    fn policy_event(&mut self) -> Event<'static> {
        let mut document = self.document.clone();
        match self.random.below(3) {
            // One that knows nothing of the one in force, and so may lack a platform.
            0 => document = random_document(&mut self.random),
            // A new one that keeps all platforms.
            1 => {
                document = random_document(&mut self.random);
                for (name, platform) in &self.document.platforms {
                    document
                        .platforms
                        .entry(name.clone())
                        .or_insert_with(|| platform.clone());
                }
                for name in NEW_PLATFORMS {
                    if let Some(platform) = document.platforms.get_mut(name) {
                        platform.timeout_ms = platform.timeout_ms.or(Some(10_000));
                        platform.push = platform.push.or(Some(false));
                    }
                }
            }
            // The one in force with a few spans and counts changed.
            _ => {
                if self.random.percent(60) {
                    document.kicked_max = Some(self.random.below(3));
                }
                if self.random.percent(50) {
                    document.custom_keep_ms = Some(*self.random.pick(&[0, 1, 1_000, 30_000]));
                }
                if self.random.percent(40) {
                    document.grace_ms = Some(*self.random.pick(&[0, 1_000, 30_000]));
                }
                if self.random.percent(30) {
                    document.silence_ms = Some(*self.random.pick(&[0, 2_000, 60_000]));
                }
                for name in self.random.some_of(&self.platforms, 3) {
                    if !self.policy.platforms.contains_key(name) {
                        continue;
                    }
                    let platform = document.platforms.entry(name.to_owned()).or_default();
                    platform.timeout_ms = Some(*self.random.pick(&[1_000, 20_000, 400_000]));
                    platform.background_ms = Some(*self.random.pick(&[None, Some(2_000)]));
                    platform.away_ms = Some(*self.random.pick(&[0, 2_000, 600_000]));
                }
            }
        }
        let policy = completed(document.clone());
        let event = Event::Policy {
            policy: Box::new(policy.clone()),
            document: Cow::Owned(document_json(&document)),
        };
        if self
            .policy
            .platforms
            .keys()
            .all(|name| policy.platforms.contains_key(name))
        {
            self.policy = policy;
            self.document = document;
            self.choose_platforms();
        }
        event
    }
}
