//! A simulated day: what people, their clients and the gateways do, as events.
//!
//! The simulation is pure: time goes in, events come out, and the same seed gives the same world. Its people are more
//! restless than real ones, so that there is always something to see: at 1,000 users about ten changes a second.
//!
//! Clients follow the rules. They send heartbeats as often as the policy's defaults say, reconnect with `resume` after
//! they lost their link, and log in after they were logged out. A client is not notified that another login displaced
//! it, but knows: the world assumes the login mode `single`, one device at a time. Under another policy, the clients
//! that the world considers displaced fall silent and time out.

use super::people::{self, DemoDevice, Platform};
use crate::presence::policy::Policy;
use crate::random::Random;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

/// An event to be published.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DemoEvent {
    /// The event, a JSON object.
    pub json: String,
    /// Whether an operator did it, who may do more than gateways may.
    pub by_operator: bool,
}

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;

const GATEWAYS: [&str; 5] = ["gw-ams-1", "gw-ams-2", "gw-fra-1", "gw-iad-1", "gw-sin-1"];
const LEASE_EVERY: u64 = 5 * SECOND;
const LEASE_TTL: u64 = 30 * SECOND;
/// As a gateway would limit them; a record may have ten times as many.
const BEATS_MAX: usize = 1_000;

/// The most by which the world advances at once: what a machine missed while it slept is not simulated later.
const STEP_MAX: u64 = 5 * SECOND;

/// The percentage of people who are online early, and until when; the others follow until each has been online once.
const EARLY_PERCENT: u64 = 40;
const EARLY_WITHIN: u64 = 5 * SECOND;
const ALL_BETWEEN: (u64, u64) = (6 * SECOND, 10 * SECOND);
/// The percentage of the people who follow that come only briefly, and until when they have left again.
const BRIEF_PERCENT: u64 = 65;
const BRIEF_UNTIL: u64 = 50 * SECOND;
/// How long people who logged out stay away.
const OUT_FOR: u64 = 12 * MINUTE;
/// The mean time until an online person does something.
const NEXT_ACT: u64 = 45 * SECOND;

/// The first gateway crashes so early that the person who starts the demo sees it.
const FIRST_CRASH: (u64, u64) = (20 * SECOND, 30 * SECOND);
/// The percentage of replaced connections that end with a late disconnect, and how late it is. The first few all do, so
/// that there is something to see.
const LATE_PERCENT: u64 = 4;
const LATE_FIRST: u32 = 3;
const LATE_BY: (u64, u64) = (2 * SECOND, 20 * SECOND);

const STATUS_TEXTS: [&str; 8] = [
    "at lunch",
    "on the train",
    "in a meeting",
    "back at five",
    "reading",
    "out for a run",
    "coffee?",
    "do not disturb",
];

/// Where a person is, as far as the client knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Location {
    /// Not logged in.
    Out,
    /// The app is open and connected.
    Here,
    /// Connected, but the app is in the background.
    Background,
    /// In a tunnel: the client is silent and believes that its connection still works.
    Tunnel,
    /// The app was closed; the person is still logged in.
    Closed,
    /// The gateway crashed, and the client is about to try another one.
    Cut,
}

/// A connection.
#[derive(Clone, Copy, Default)]
struct Link {
    gateway: usize,
    epoch: u64,
    conn: u64,
}

struct Person {
    name: String,
    devices: Vec<DemoDevice>,
    place: Location,
    /// The device with which the person is logged in, or was last.
    at: usize,
    link: Link,
    /// Counts the person's connections, so that the heartbeats of an earlier one stop.
    links: u32,
    /// Counts the person's actions, so that plans from before the last one are ignored.
    acts: u32,
    /// The custom status, as far as the client knows.
    text: Option<usize>,
}

struct Gateway {
    epoch: u64,
    next_conn: u64,
    is_up: bool,
    /// The heartbeats of this step: person, platform, device and connection.
    beats: Vec<Value>,
    /// Disconnects that are published late, each with its time; null if the gateway crashed before.
    late: VecDeque<(u64, Value)>,
}

/// A planned step.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Plan {
    Leases,
    Crash,
    Restart(usize),
    Operator,
    Late(usize),
    Leave { person: usize },
    Act { person: usize, acts: u32 },
    HeartbeatEntry { person: usize, links: u32 },
}

/// What an online person does next.
#[derive(Clone, Copy)]
enum Act {
    Close,
    Exit,
    Background,
    Tunnel,
    /// The network changed: the client opens a new connection at once.
    Roam,
    OtherDevice,
    StatusText,
    LogOut,
}

pub struct DemoWorld {
    people: Vec<Person>,
    gateways: Vec<Gateway>,
    heartbeat_ms: [u64; Platform::ALL.len()],
    random: Random,
    /// Time since the beginning. Plans use this time.
    time: u64,
    /// Wall time at the last advance; `None` before the first.
    hour: Option<u64>,
    plans: BinaryHeap<Reverse<(u64, u64, Plan)>>,
    /// Distinguishes plans of the same time, in the order in which they were made.
    planned: u64,
    happenings: Vec<DemoEvent>,
    /// How many disconnects were delayed so far.
    lates: u32,
}

impl DemoWorld {
    pub fn new(users: u32, seed: u64) -> DemoWorld {
        let defaults = Policy::default();
        let heartbeat_ms = |platform: Platform| {
            let rules = defaults.platforms.get(platform.name());
            rules.expect("the default policy has the platform").heartbeat_ms
        };
        let person = |number| Person {
            name: people::name(number),
            devices: people::devices(number),
            place: Location::Out,
            at: 0,
            link: Link::default(),
            links: 0,
            acts: 0,
            text: None,
        };
        let gateway = |_| Gateway {
            epoch: 0,
            next_conn: 1,
            is_up: true,
            beats: Vec::new(),
            late: VecDeque::new(),
        };
        let mut world = DemoWorld {
            people: (0..users).map(person).collect(),
            gateways: GATEWAYS.iter().map(gateway).collect(),
            heartbeat_ms: Platform::ALL.map(heartbeat_ms),
            random: Random(seed),
            time: 0,
            hour: None,
            plans: BinaryHeap::new(),
            planned: 0,
            happenings: Vec::new(),
            lates: 0,
        };
        world.plan(0, Plan::Leases);
        let crash = world.random.between(FIRST_CRASH.0, FIRST_CRASH.1);
        world.plan(crash, Plan::Crash);
        let operator = world.until_operator();
        world.plan(operator, Plan::Operator);
        for person in 0..world.people.len() {
            if world.random.percent(EARLY_PERCENT) {
                let wait = world.random.between(1, EARLY_WITHIN);
                world.plan(wait, Plan::Act { person, acts: 0 });
                continue;
            }
            let wait = world.random.between(ALL_BETWEEN.0, ALL_BETWEEN.1);
            world.plan(wait, Plan::Act { person, acts: 0 });
            if world.random.percent(BRIEF_PERCENT) {
                let leaves = world.random.between(wait + SECOND, BRIEF_UNTIL);
                world.plan(leaves, Plan::Leave { person });
            }
        }
        world
    }

    /// Returns what has happened since the last call, in order. `now_ms` is wall time, from which new gateway processes
    /// take their epoch.
    pub fn advance(&mut self, now_ms: u64) -> Vec<DemoEvent> {
        match self.hour {
            None => self.gateways.iter_mut().for_each(|gateway| gateway.epoch = now_ms),
            Some(hour) => self.time += now_ms.saturating_sub(hour).min(STEP_MAX),
        }
        self.hour = Some(now_ms);
        while let Some(Reverse((time, _, plan))) = self.plans.peek().copied()
            && time <= self.time
        {
            self.plans.pop();
            self.carry_out(time, plan);
        }
        // A heartbeat is for a connection that existed before this step and may have ended in it, so heartbeats come
        // first.
        let mut happenings = self.beats();
        happenings.append(&mut self.happenings);
        happenings
    }

    fn plan(&mut self, time: u64, plan: Plan) {
        self.plans.push(Reverse((time, self.planned, plan)));
        self.planned += 1;
    }

    fn carry_out(&mut self, time: u64, plan: Plan) {
        match plan {
            Plan::Leases => {
                for gateway in 0..self.gateways.len() {
                    self.lease(gateway);
                }
                self.plan(time + LEASE_EVERY, Plan::Leases);
            }
            Plan::Crash => {
                self.crash(time);
                let next = 90 * SECOND + self.random.wait(2 * MINUTE);
                self.plan(time + next, Plan::Crash);
            }
            Plan::Restart(gateway) => {
                let hour = self.hour.unwrap_or_default();
                let restarted = &mut self.gateways[gateway];
                restarted.is_up = true;
                restarted.epoch = hour.max(restarted.epoch + 1);
                restarted.next_conn = 1;
                self.lease(gateway);
            }
            Plan::Operator => {
                self.kick_somebody(time);
                let next = self.until_operator();
                self.plan(time + next, Plan::Operator);
            }
            Plan::Late(gateway) => {
                let late = self.gateways[gateway].late.pop_front();
                if let Some((_, event)) = late.filter(|(_, event)| !event.is_null()) {
                    self.publish(event);
                }
            }
            Plan::Leave { person } => {
                if self.people[person].place == Location::Here {
                    self.log_out(time, person);
                }
            }
            Plan::Act { person, acts } => {
                if self.people[person].acts == acts {
                    self.act(time, person);
                }
            }
            Plan::HeartbeatEntry { person, links } => self.beat(time, person, links),
        }
    }

    // Gateways.

    fn lease(&mut self, gateway: usize) {
        let Gateway { epoch, is_up, .. } = self.gateways[gateway];
        if is_up {
            self.publish(json!({
                "type": "lease", "gateway": GATEWAYS[gateway], "epoch": epoch, "ttl_ms": LEASE_TTL,
            }));
        }
    }

    /// Crashes a gateway, without an event. Its clients notice sooner or later.
    fn crash(&mut self, time: u64) {
        let gateway = self.random.index(self.gateways.len());
        if !self.gateways[gateway].is_up {
            return;
        }
        self.gateways[gateway].is_up = false;
        self.gateways[gateway].beats.clear();
        self.gateways[gateway]
            .late
            .iter_mut()
            .for_each(|(_, event)| *event = Value::Null);
        for person in 0..self.people.len() {
            let Person { place, link, .. } = self.people[person];
            if link.gateway == gateway && matches!(place, Location::Here | Location::Background) {
                let notices = match self.random.percent(80) {
                    true => SECOND + self.random.wait(6 * SECOND),
                    false => self.random.between(15 * SECOND, MINUTE),
                };
                self.goes(time, person, Location::Cut, notices);
            }
        }
        let back = self.random.between(40 * SECOND, 90 * SECOND);
        self.plan(time + back, Plan::Restart(gateway));
    }

    fn beat(&mut self, time: u64, person: usize, links: u32) {
        let somebody = &self.people[person];
        if somebody.links != links {
            return;
        }
        let device = &somebody.devices[somebody.at];
        // In the background, a mini program is suspended and an app is not.
        let beats = match somebody.place {
            Location::Here => true,
            Location::Background => device.platform != Platform::MiniProgram,
            Location::Out | Location::Tunnel | Location::Closed | Location::Cut => false,
        };
        if beats {
            let beat = json!({
                "user": somebody.name,
                "platform": device.platform.name(),
                "device": device.id(),
                "conn": somebody.link.conn,
            });
            self.gateways[somebody.link.gateway].beats.push(beat);
        }
        let every = self.heartbeat_ms[device.platform as usize];
        self.plan(time + every, Plan::HeartbeatEntry { person, links });
    }

    /// Returns the heartbeats of each gateway's clients as one event per gateway.
    fn beats(&mut self) -> Vec<DemoEvent> {
        let mut happenings = Vec::new();
        for (gateway, name) in self.gateways.iter_mut().zip(GATEWAYS) {
            let beats = std::mem::take(&mut gateway.beats);
            for beats in beats.chunks(BEATS_MAX) {
                let event = json!({
                    "type": "heartbeats", "gateway": name, "epoch": gateway.epoch, "beats": beats,
                });
                happenings.push(DemoEvent {
                    json: event.to_string(),
                    by_operator: false,
                });
            }
        }
        happenings
    }

    // People.

    /// Moves a person to a place for this long.
    fn goes(&mut self, time: u64, person: usize, place: Location, lasts: u64) {
        let somebody = &mut self.people[person];
        somebody.place = place;
        somebody.acts += 1;
        if matches!(place, Location::Out | Location::Closed | Location::Cut) {
            somebody.links += 1;
            somebody.text = None;
        }
        let acts = somebody.acts;
        self.plan(time + lasts, Plan::Act { person, acts });
    }

    fn act(&mut self, time: u64, person: usize) {
        match self.people[person].place {
            Location::Out => {
                let device = self.random.index(self.people[person].devices.len());
                self.log_in(time, person, device);
            }
            Location::Here => self.act_here(time, person),
            Location::Background => {
                if self.random.percent(80) {
                    self.publish_of(person, "foreground", json!({}));
                    let lasts = self.until_act();
                    self.goes(time, person, Location::Here, lasts);
                } else {
                    self.close(time, person, "closed");
                }
            }
            Location::Tunnel => {
                self.people[person].text = None;
                let Link { gateway, epoch, .. } = self.people[person].link;
                let stands = self.gateways[gateway].is_up && self.gateways[gateway].epoch == epoch;
                if stands && self.random.percent(50) {
                    self.publish_of(person, "heartbeat", json!({}));
                    let lasts = self.until_act();
                    self.goes(time, person, Location::Here, lasts);
                } else {
                    self.connect(time, person, "resume");
                }
            }
            Location::Closed => {
                let at = self.people[person].at;
                let is_web = self.people[person].devices[at].platform == Platform::Web;
                if self.random.percent(20) {
                    self.take_other_device(time, person);
                } else if is_web {
                    // A closed tab is gone for good, so another tab is opened.
                    self.log_in(time, person, at);
                } else {
                    self.connect(time, person, "resume");
                }
            }
            Location::Cut => self.connect(time, person, "resume"),
        }
    }

    fn act_here(&mut self, time: u64, person: usize) {
        let somebody = &self.people[person];
        let platform = somebody.devices[somebody.at].platform;
        let act = self.random.choose(match platform {
            Platform::Android | Platform::Iphone => &[
                (32, Act::Close),
                (14, Act::Background),
                (12, Act::Tunnel),
                (12, Act::Roam),
                (14, Act::OtherDevice),
                (12, Act::StatusText),
                (4, Act::LogOut),
            ],
            Platform::Mac | Platform::Windows => &[
                (32, Act::Close),
                (14, Act::Tunnel),
                (8, Act::Roam),
                (18, Act::OtherDevice),
                (20, Act::StatusText),
                (8, Act::LogOut),
            ],
            Platform::Web => &[
                (44, Act::Close),
                (16, Act::Tunnel),
                (6, Act::Roam),
                (18, Act::OtherDevice),
                (10, Act::StatusText),
                (6, Act::LogOut),
            ],
            Platform::MiniProgram => &[
                (30, Act::Exit),
                (36, Act::Background),
                (10, Act::Close),
                (6, Act::Tunnel),
                (14, Act::OtherDevice),
                (4, Act::StatusText),
            ],
        });
        match act {
            Act::Close => self.close(time, person, "closed"),
            Act::Exit => self.close(time, person, "exit"),
            Act::Background => {
                self.publish_of(person, "background", json!({}));
                let lasts = self.random.between(8 * SECOND, 80 * SECOND);
                self.goes(time, person, Location::Background, lasts);
            }
            Act::Tunnel => {
                let lasts = self.tunnel(platform);
                self.goes(time, person, Location::Tunnel, lasts);
            }
            Act::Roam => self.connect(time, person, "resume"),
            Act::OtherDevice => self.take_other_device(time, person),
            Act::StatusText => {
                self.set_text(person);
                let lasts = self.until_act();
                self.goes(time, person, Location::Here, lasts);
            }
            Act::LogOut => self.log_out(time, person),
        }
    }

    fn log_out(&mut self, time: u64, person: usize) {
        self.publish_of(person, "logout", json!({}));
        let lasts = 10 * SECOND + self.random.wait(OUT_FOR);
        self.goes(time, person, Location::Out, lasts);
    }

    fn until_act(&mut self) -> u64 {
        3 * SECOND + self.random.wait(NEXT_ACT)
    }

    /// Returns how long a person stays in a tunnel; some so long that they time out.
    fn tunnel(&mut self, platform: Platform) -> u64 {
        let (percent_long, long) = match platform {
            Platform::Android | Platform::Iphone | Platform::Mac | Platform::Windows => {
                (10, (405 * SECOND, 500 * SECOND))
            }
            Platform::Web | Platform::MiniProgram => (45, (62 * SECOND, 120 * SECOND)),
        };
        match self.random.percent(percent_long) {
            true => self.random.between(long.0, long.1),
            false => self.random.between(5 * SECOND, 50 * SECOND),
        }
    }

    fn close(&mut self, time: u64, person: usize, reason: &str) {
        self.publish_of(person, "disconnect", json!({ "reason": reason }));
        let lasts = match self.random.percent(70) {
            true => self.random.wait(40 * SECOND),
            false => self.random.wait(6 * MINUTE),
        };
        self.goes(time, person, Location::Closed, 3 * SECOND + lasts);
    }

    fn take_other_device(&mut self, time: u64, person: usize) {
        let Person { at, devices, .. } = &self.people[person];
        // A person with only one device logs in again on it.
        let device = (at + 1 + self.random.index(devices.len().max(2) - 1)) % devices.len();
        self.log_in(time, person, device);
    }

    fn log_in(&mut self, time: u64, person: usize, device: usize) {
        let somebody = &mut self.people[person];
        somebody.at = device;
        if somebody.devices[device].platform == Platform::Web {
            somebody.devices[device].open_tab();
        }
        self.connect(time, person, "login");
    }

    /// Connects the person's current device to any gateway that is up.
    fn connect(&mut self, time: u64, person: usize, intent: &str) {
        let up: Vec<usize> = (0..GATEWAYS.len()).filter(|n| self.gateways[*n].is_up).collect();
        if up.is_empty() {
            let acts = self.people[person].acts;
            return self.plan(time + 5 * SECOND, Plan::Act { person, acts });
        }
        let stands = matches!(
            self.people[person].place,
            Location::Here | Location::Background | Location::Tunnel
        );
        if stands && intent == "resume" && (self.lates < LATE_FIRST || self.random.percent(LATE_PERCENT)) {
            self.end_late(time, person);
        }
        let gateway = up[self.random.index(up.len())];
        let Gateway { epoch, next_conn, .. } = &mut self.gateways[gateway];
        let link = Link {
            gateway,
            epoch: *epoch,
            conn: *next_conn,
        };
        *next_conn += 1;
        let somebody = &mut self.people[person];
        somebody.link = link;
        somebody.links += 1;
        let links = somebody.links;
        let platform = somebody.devices[somebody.at].platform;
        // An address from the range for documentation, which nobody has.
        let client = format!("198.51.100.{} {}", 1 + person % 254, platform.client());
        self.publish_of(person, "connect", json!({ "intent": intent, "client": client }));
        let beat = self.heartbeat_ms[platform as usize];
        self.plan(time + beat, Plan::HeartbeatEntry { person, links });
        let lasts = self.until_act();
        self.goes(time, person, Location::Here, lasts);
    }

    /// Ends the current connection late: its gateway notices the end only after the next connection has begun.
    fn end_late(&mut self, time: u64, person: usize) {
        let Link { gateway, epoch, .. } = self.people[person].link;
        if !self.gateways[gateway].is_up || self.gateways[gateway].epoch != epoch {
            return;
        }
        let end = self.event_of(person, "disconnect", json!({ "reason": "closed" }));
        let due = time + self.random.between(LATE_BY.0, LATE_BY.1);
        self.lates += 1;
        // In order of time, since a gateway publishes the first one that is due.
        let late = &mut self.gateways[gateway].late;
        let at = late.partition_point(|(other, _)| *other <= due);
        late.insert(at, (due, end));
        self.plan(due, Plan::Late(gateway));
    }

    fn set_text(&mut self, person: usize) {
        let text = match self.people[person].text {
            Some(_) if self.random.percent(25) => None,
            // A different text than before.
            before => {
                let step = 1 + self.random.index(STATUS_TEXTS.len() - 1);
                Some((before.unwrap_or_default() + step) % STATUS_TEXTS.len())
            }
        };
        self.people[person].text = text;
        let user = &self.people[person].name;
        let event = json!({ "type": "custom_status", "user": user, "text": text.map(|text| STATUS_TEXTS[text]) });
        self.publish(event);
    }

    // Operators.

    /// Returns the time until an operator acts. With more people it is shorter, and it is bounded.
    fn until_operator(&mut self) -> u64 {
        let mean = 3 * MINUTE * 1_000 / (self.people.len() as u64).max(1);
        self.random.wait(mean.clamp(15 * SECOND, 30 * MINUTE)) + SECOND
    }

    /// Ends all logins of a randomly chosen online person, or of nobody.
    fn kick_somebody(&mut self, time: u64) {
        for _ in 0..20 {
            let person = self.random.index(self.people.len().max(1));
            let Some(somebody) = self.people.get(person) else {
                return;
            };
            if somebody.place == Location::Here {
                self.happenings.push(DemoEvent {
                    json: json!({ "type": "kick", "user": somebody.name }).to_string(),
                    by_operator: true,
                });
                let lasts = 5 * SECOND + self.random.wait(MINUTE);
                return self.goes(time, person, Location::Out, lasts);
            }
        }
    }

    // Events.

    fn publish(&mut self, event: Value) {
        self.happenings.push(DemoEvent {
            json: event.to_string(),
            by_operator: false,
        });
    }

    /// Publishes an event of the person's connection. `more` are the fields beyond those of every event.
    fn publish_of(&mut self, person: usize, kind: &str, more: Value) {
        let event = self.event_of(person, kind, more);
        self.publish(event);
    }

    fn event_of(&self, person: usize, kind: &str, more: Value) -> Value {
        let Person {
            name,
            devices,
            at,
            link,
            ..
        } = &self.people[person];
        let mut event = json!({
            "type": kind,
            "user": name,
            "platform": devices[*at].platform.name(),
            "device": devices[*at].id(),
            "gateway": GATEWAYS[link.gateway],
            "epoch": link.epoch,
            "conn": link.conn,
        });
        if let (Value::Object(event), Value::Object(more)) = (&mut event, more) {
            event.extend(more);
        }
        event
    }
}

#[cfg(test)]
mod tests;
