//! A day in a small world: what its people, their clients and the gateways do, as events.
//!
//! Pure: time comes in, events come out, and the same seed gives the same world. Its people are more restless than
//! real ones, so that there is always something to see: at 1,000 users some ten changes a second.
//!
//! Clients keep the rules. They beat as often as the policy's defaults say, come back with `resume` when they lost
//! their link and with a login when they are logged out. That another login displaced them they are not told but know:
//! the world assumes the login mode `single`, one device at a time. Where another policy is in force, the clients that
//! it thinks displaced fall silent and time out.

use super::dice::Dice;
use super::people::{self, Device, Platform};
use crate::presence::policy::Policy;
use serde_json::{Value, json};
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Something that happened, to be published.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Happening {
    /// The event, a JSON object.
    pub json: String,
    /// An operator did it, who may do more than gateways may.
    pub by_operator: bool,
}

const SECOND: u64 = 1_000;
const MINUTE: u64 = 60 * SECOND;

const GATEWAYS: [&str; 5] = ["gw-ams-1", "gw-ams-2", "gw-fra-1", "gw-iad-1", "gw-sin-1"];
const LEASE_EVERY: u64 = 5 * SECOND;
const LEASE_TTL: u64 = 30 * SECOND;
/// As a gateway would bound them; a record may have ten times as many.
const BEATS_MAX: usize = 1_000;

/// The world moves on by at most this at a time: what a machine that slept has missed is not made up for.
const STEP_MAX: u64 = 5 * SECOND;

/// How many per cent of the people are there at once, and how soon.
const EARLY_PERCENT: u64 = 40;
const EARLY_WITHIN: u64 = 5 * SECOND;
/// The others come by and by, and so do those who logged out.
const OUT_FOR: u64 = 12 * MINUTE;
/// How long until somebody who is there does something.
const NEXT_ACT: u64 = 45 * SECOND;

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

/// Where somebody is, as their client knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// Not logged in.
    Out,
    /// The app is open and connected.
    Here,
    /// Connected, but the app is in the background.
    Background,
    /// In a tunnel: the client is silent and thinks that its connection still stands.
    Tunnel,
    /// The app was closed; logged in still.
    Closed,
    /// The gateway died, and the client is about to try another.
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
    devices: Vec<Device>,
    place: Place,
    /// The device that the person is logged in with, or was last.
    at: usize,
    link: Link,
    /// Counts the connections, so that the heartbeat of an earlier one ends.
    links: u32,
    /// Counts what the person does, so that what was planned before counts no more.
    acts: u32,
    /// The custom status, as far as the client knows.
    text: Option<usize>,
}

struct Gateway {
    epoch: u64,
    next_conn: u64,
    is_up: bool,
    /// Of this step: person, platform, device and connection.
    beats: Vec<Value>,
}

/// What is planned.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Plan {
    Leases,
    Crash,
    Restart(usize),
    Operator,
    Act { person: usize, acts: u32 },
    Beat { person: usize, links: u32 },
}

/// What somebody who is there does next.
#[derive(Clone, Copy)]
enum Act {
    Close,
    Exit,
    Background,
    Tunnel,
    /// The network changed: a new connection at once.
    Roam,
    OtherDevice,
    StatusText,
    LogOut,
}

pub struct World {
    people: Vec<Person>,
    gateways: Vec<Gateway>,
    heartbeat_ms: [u64; Platform::ALL.len()],
    dice: Dice,
    /// Time since the beginning. Plans are in it.
    time: u64,
    /// The hour that people agree on, at the last advance; none before the first.
    hour: Option<u64>,
    plans: BinaryHeap<Reverse<(u64, u64, Plan)>>,
    /// Tells plans of the same time apart, in the order they were made.
    planned: u64,
    happenings: Vec<Happening>,
}

impl World {
    pub fn new(users: u32, seed: u64) -> World {
        let defaults = Policy::default();
        let heartbeat_ms = |platform: Platform| {
            let rules = defaults.platforms.get(platform.name());
            rules.expect("the default policy has the platform").heartbeat_ms
        };
        let person = |number| Person {
            name: people::name(number),
            devices: people::devices(number),
            place: Place::Out,
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
        };
        let mut world = World {
            people: (0..users).map(person).collect(),
            gateways: GATEWAYS.iter().map(gateway).collect(),
            heartbeat_ms: Platform::ALL.map(heartbeat_ms),
            dice: Dice::new(seed),
            time: 0,
            hour: None,
            plans: BinaryHeap::new(),
            planned: 0,
            happenings: Vec::new(),
        };
        world.plan(0, Plan::Leases);
        let crash = world.dice.between(MINUTE, 2 * MINUTE);
        world.plan(crash, Plan::Crash);
        let operator = world.until_operator();
        world.plan(operator, Plan::Operator);
        for person in 0..world.people.len() {
            let wait = match world.dice.percent(EARLY_PERCENT) {
                true => world.dice.between(1, EARLY_WITHIN),
                false => EARLY_WITHIN + world.dice.wait(OUT_FOR),
            };
            world.plan(wait, Plan::Act { person, acts: 0 });
        }
        world
    }

    /// What happened since the last time, in order. `now_ms` is wall time; it gives new gateway processes their epoch.
    pub fn advance(&mut self, now_ms: u64) -> Vec<Happening> {
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
        // A heartbeat is of a connection that stood before this step, and may have ended in it: so they come first.
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
                let next = 90 * SECOND + self.dice.wait(2 * MINUTE);
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
            Plan::Act { person, acts } => {
                if self.people[person].acts == acts {
                    self.act(time, person);
                }
            }
            Plan::Beat { person, links } => self.beat(time, person, links),
        }
    }

    // Gateways.

    fn lease(&mut self, gateway: usize) {
        let Gateway { epoch, is_up, .. } = self.gateways[gateway];
        if is_up {
            self.tell(json!({
                "type": "lease", "gateway": GATEWAYS[gateway], "epoch": epoch, "ttl_ms": LEASE_TTL,
            }));
        }
    }

    /// One dies, without a word to anybody. Its clients notice sooner or later.
    fn crash(&mut self, time: u64) {
        let gateway = self.dice.index(self.gateways.len());
        if !self.gateways[gateway].is_up {
            return;
        }
        self.gateways[gateway].is_up = false;
        self.gateways[gateway].beats.clear();
        for person in 0..self.people.len() {
            let Person { place, link, .. } = self.people[person];
            if link.gateway == gateway && matches!(place, Place::Here | Place::Background) {
                let notices = match self.dice.percent(80) {
                    true => SECOND + self.dice.wait(6 * SECOND),
                    false => self.dice.between(15 * SECOND, MINUTE),
                };
                self.goes(time, person, Place::Cut, notices);
            }
        }
        let back = self.dice.between(40 * SECOND, 90 * SECOND);
        self.plan(time + back, Plan::Restart(gateway));
    }

    fn beat(&mut self, time: u64, person: usize, links: u32) {
        let somebody = &self.people[person];
        if somebody.links != links {
            return;
        }
        let device = &somebody.devices[somebody.at];
        // In the background a mini program is suspended, and an app is not.
        let beats = match somebody.place {
            Place::Here => true,
            Place::Background => device.platform != Platform::MiniProgram,
            Place::Out | Place::Tunnel | Place::Closed | Place::Cut => false,
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
        self.plan(time + every, Plan::Beat { person, links });
    }

    /// A gateway sends the heartbeats of its clients together.
    fn beats(&mut self) -> Vec<Happening> {
        let mut happenings = Vec::new();
        for (gateway, name) in self.gateways.iter_mut().zip(GATEWAYS) {
            let beats = std::mem::take(&mut gateway.beats);
            for beats in beats.chunks(BEATS_MAX) {
                let event = json!({
                    "type": "heartbeats", "gateway": name, "epoch": gateway.epoch, "beats": beats,
                });
                happenings.push(Happening {
                    json: event.to_string(),
                    by_operator: false,
                });
            }
        }
        happenings
    }

    // People.

    /// From now on somebody is at a place, for so long.
    fn goes(&mut self, time: u64, person: usize, place: Place, lasts: u64) {
        let somebody = &mut self.people[person];
        somebody.place = place;
        somebody.acts += 1;
        if matches!(place, Place::Out | Place::Closed | Place::Cut) {
            somebody.links += 1;
            somebody.text = None;
        }
        let acts = somebody.acts;
        self.plan(time + lasts, Plan::Act { person, acts });
    }

    fn act(&mut self, time: u64, person: usize) {
        match self.people[person].place {
            Place::Out => {
                let device = self.dice.index(self.people[person].devices.len());
                self.log_in(time, person, device);
            }
            Place::Here => self.act_here(time, person),
            Place::Background => {
                if self.dice.percent(80) {
                    self.tell_of(person, "foreground", json!({}));
                    let lasts = self.until_act();
                    self.goes(time, person, Place::Here, lasts);
                } else {
                    self.close(time, person, "closed");
                }
            }
            Place::Tunnel => {
                self.people[person].text = None;
                let Link { gateway, epoch, .. } = self.people[person].link;
                let stands = self.gateways[gateway].is_up && self.gateways[gateway].epoch == epoch;
                if stands && self.dice.percent(50) {
                    self.tell_of(person, "heartbeat", json!({}));
                    let lasts = self.until_act();
                    self.goes(time, person, Place::Here, lasts);
                } else {
                    self.connect(time, person, "resume");
                }
            }
            Place::Closed => {
                let at = self.people[person].at;
                let is_web = self.people[person].devices[at].platform == Platform::Web;
                if self.dice.percent(20) {
                    self.take_other_device(time, person);
                } else if is_web {
                    // What was closed is gone for good; it is another tab that is opened.
                    self.log_in(time, person, at);
                } else {
                    self.connect(time, person, "resume");
                }
            }
            Place::Cut => self.connect(time, person, "resume"),
        }
    }

    fn act_here(&mut self, time: u64, person: usize) {
        let somebody = &self.people[person];
        let platform = somebody.devices[somebody.at].platform;
        let act = self.dice.choose(match platform {
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
                self.tell_of(person, "background", json!({}));
                let lasts = self.dice.between(8 * SECOND, 80 * SECOND);
                self.goes(time, person, Place::Background, lasts);
            }
            Act::Tunnel => {
                let lasts = self.tunnel(platform);
                self.goes(time, person, Place::Tunnel, lasts);
            }
            Act::Roam => self.connect(time, person, "resume"),
            Act::OtherDevice => self.take_other_device(time, person),
            Act::StatusText => {
                self.set_text(person);
                let lasts = self.until_act();
                self.goes(time, person, Place::Here, lasts);
            }
            Act::LogOut => {
                self.tell_of(person, "logout", json!({}));
                let lasts = 10 * SECOND + self.dice.wait(OUT_FOR);
                self.goes(time, person, Place::Out, lasts);
            }
        }
    }

    fn until_act(&mut self) -> u64 {
        3 * SECOND + self.dice.wait(NEXT_ACT)
    }

    /// How long one stays in a tunnel: some so long that they time out.
    fn tunnel(&mut self, platform: Platform) -> u64 {
        let (percent_long, long) = match platform {
            Platform::Android | Platform::Iphone | Platform::Mac | Platform::Windows => {
                (10, (405 * SECOND, 500 * SECOND))
            }
            Platform::Web | Platform::MiniProgram => (45, (62 * SECOND, 120 * SECOND)),
        };
        match self.dice.percent(percent_long) {
            true => self.dice.between(long.0, long.1),
            false => self.dice.between(5 * SECOND, 50 * SECOND),
        }
    }

    fn close(&mut self, time: u64, person: usize, reason: &str) {
        self.tell_of(person, "disconnect", json!({ "reason": reason }));
        let lasts = match self.dice.percent(70) {
            true => self.dice.wait(40 * SECOND),
            false => self.dice.wait(6 * MINUTE),
        };
        self.goes(time, person, Place::Closed, 3 * SECOND + lasts);
    }

    fn take_other_device(&mut self, time: u64, person: usize) {
        let Person { at, devices, .. } = &self.people[person];
        // Who has only one logs in again on it.
        let device = (at + 1 + self.dice.index(devices.len().max(2) - 1)) % devices.len();
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

    /// Connects the device that the person is at, to any gateway that is up.
    fn connect(&mut self, time: u64, person: usize, intent: &str) {
        let up: Vec<usize> = (0..GATEWAYS.len()).filter(|n| self.gateways[*n].is_up).collect();
        if up.is_empty() {
            let acts = self.people[person].acts;
            return self.plan(time + 5 * SECOND, Plan::Act { person, acts });
        }
        let gateway = up[self.dice.index(up.len())];
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
        // An address that documentation may use and nobody has.
        let client = format!("198.51.100.{} {}", 1 + person % 254, platform.client());
        self.tell_of(person, "connect", json!({ "intent": intent, "client": client }));
        let beat = self.heartbeat_ms[platform as usize];
        self.plan(time + beat, Plan::Beat { person, links });
        let lasts = self.until_act();
        self.goes(time, person, Place::Here, lasts);
    }

    fn set_text(&mut self, person: usize) {
        let text = match self.people[person].text {
            Some(_) if self.dice.percent(25) => None,
            // Another one than before.
            before => {
                let step = 1 + self.dice.index(STATUS_TEXTS.len() - 1);
                Some((before.unwrap_or_default() + step) % STATUS_TEXTS.len())
            }
        };
        self.people[person].text = text;
        let user = &self.people[person].name;
        let event = json!({ "type": "custom_status", "user": user, "text": text.map(|text| STATUS_TEXTS[text]) });
        self.tell(event);
    }

    // Operators.

    /// The more people, the more often; but one need not wait for it for ever.
    fn until_operator(&mut self) -> u64 {
        let mean = 3 * MINUTE * 1_000 / (self.people.len() as u64).max(1);
        self.dice.wait(mean.clamp(15 * SECOND, 30 * MINUTE)) + SECOND
    }

    /// Ends all logins of somebody who is there; another throw decides whom, and it may be nobody.
    fn kick_somebody(&mut self, time: u64) {
        for _ in 0..20 {
            let person = self.dice.index(self.people.len().max(1));
            let Some(somebody) = self.people.get(person) else {
                return;
            };
            if somebody.place == Place::Here {
                self.happenings.push(Happening {
                    json: json!({ "type": "kick", "user": somebody.name }).to_string(),
                    by_operator: true,
                });
                let lasts = 5 * SECOND + self.dice.wait(MINUTE);
                return self.goes(time, person, Place::Out, lasts);
            }
        }
    }

    // Telling.

    fn tell(&mut self, event: Value) {
        self.happenings.push(Happening {
            json: event.to_string(),
            by_operator: false,
        });
    }

    /// Tells of the connection that somebody is on; `more` are the fields beside its own.
    fn tell_of(&mut self, person: usize, kind: &str, more: Value) {
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
        self.tell(event);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::change::{Cause, Output};
    use crate::presence::policy::Outage;
    use crate::presence::state::State;
    use crate::presence::{Offset, Partition, Status};
    use crate::schema::json::read_new_events;
    use std::collections::BTreeMap;

    const BEGIN: u64 = 1_800_000_000_000;
    const STEP: u64 = 250;

    /// What came of folding a world's events.
    struct Day {
        /// Per second.
        changes: Vec<u64>,
        causes: BTreeMap<&'static str, u64>,
        ignored: BTreeMap<&'static str, u64>,
        events: u64,
        /// The share of the people who are online, in per cent, each minute.
        online: Vec<u64>,
    }

    fn fold(users: u32, seed: u64, seconds: u64) -> Day {
        let policy = Policy {
            outage: Outage {
                silence_ms: 10_000,
                grace_ms: 60_000,
            },
            ..Policy::default()
        };
        let mut state = State::new(Partition(0), policy);
        let mut world = World::new(users, seed);
        let mut day = Day {
            changes: vec![0; seconds as usize],
            causes: BTreeMap::new(),
            ignored: BTreeMap::new(),
            events: 0,
            online: Vec::new(),
        };
        let mut online: BTreeMap<String, bool> = BTreeMap::new();
        for step in 0..seconds * SECOND / STEP {
            let now = BEGIN + step * STEP;
            for happening in world.advance(now) {
                let body = format!("[{}]", happening.json);
                let event = read_new_events(&body).unwrap().remove(0).map(|new| new.event);
                let event = event.unwrap_or_else(|bad| panic!("{bad}: {}", happening.json));
                assert_eq!(event.name() == "kick", happening.by_operator);
                state.fold(Offset(day.events), now, Some(&event), &mut |output| match output {
                    Output::Change(change) => {
                        day.changes[(step * STEP / SECOND) as usize] += 1;
                        *day.causes.entry(change.cause.name()).or_default() += 1;
                        online.insert(change.user.to_string(), change.after == Status::Online);
                    }
                    Output::Ignored(ignored) => *day.ignored.entry(ignored.reason.name()).or_default() += 1,
                    Output::Kick(_) => {}
                });
                day.events += 1;
            }
            if step % (MINUTE / STEP) == 0 {
                let count = online.values().filter(|online| **online).count() as u64;
                day.online.push(count * 100 / u64::from(users));
            }
        }
        day
    }

    #[test]
    fn an_hour_has_everything_that_an_hour_can_have_at_a_believable_rate() {
        let day = fold(1_000, 7, 3_600);
        for cause in Cause::ALL {
            // Nobody is away for a week, and nobody forgets anybody.
            let possible = !matches!(cause, Cause::PushExpired | Cause::Forgotten);
            let count = day.causes.get(cause.name()).copied().unwrap_or_default();
            assert_eq!(count > 0, possible, "{}: {:?}", cause.name(), day.causes);
        }
        let early: u64 = day.changes[..6].iter().sum();
        assert!((350..450).contains(&early), "{early} in the first seconds");
        for (minute, seconds) in day.changes.chunks(60).enumerate().skip(1) {
            let changes: u64 = seconds.iter().sum();
            assert!((5 * 60..20 * 60).contains(&changes), "{changes} in minute {minute}");
        }
        let ignored: u64 = day.ignored.values().sum();
        assert!(ignored * 200 < day.events, "{:?} of {}", day.ignored, day.events);
        for (minute, percent) in day.online.iter().enumerate().skip(1) {
            assert!((30..75).contains(percent), "{percent} % online in minute {minute}");
        }
    }

    #[test]
    fn events_are_valid_whatever_the_seed_and_the_size() {
        for (users, seed) in [(1, 1), (1, 2), (7, 3), (60, 4), (300, 5), (3_000, 6)] {
            let day = fold(users, seed, 400);
            assert!(day.events > 300, "leases at least");
            assert!(users < 7 || day.causes["login"] > 0);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_world_and_another_one_another() {
        let world = |seed| -> Vec<Happening> {
            let mut world = World::new(50, seed);
            (0..400).flat_map(|step| world.advance(BEGIN + step * STEP)).collect()
        };
        assert_eq!(world(1), world(1));
        assert_ne!(world(1), world(2));
    }

    #[test]
    fn a_machine_that_slept_owes_nothing() {
        let mut world = World::new(1_000, 1);
        for step in 0..400 {
            world.advance(BEGIN + step * STEP);
        }
        let hours_later = world.advance(BEGIN + 10 * 3_600 * SECOND);
        assert!(hours_later.len() < 300, "{}", hours_later.len());
        // The wall clock steps back: nothing happens, and then it goes on.
        assert!(world.advance(BEGIN).is_empty());
        assert!(!world.advance(BEGIN + STEP_MAX).is_empty());
    }

    #[test]
    fn a_gateway_that_comes_back_has_a_greater_epoch_and_begins_with_its_lease() {
        let mut world = World::new(200, 3);
        let mut epochs: BTreeMap<String, u64> = BTreeMap::new();
        let mut restarts = 0;
        for step in 0..10 * MINUTE / STEP {
            for happening in world.advance(BEGIN + step * STEP) {
                let event: Value = serde_json::from_str(&happening.json).unwrap();
                let (Some(gateway), Some(epoch)) = (event["gateway"].as_str(), event["epoch"].as_u64()) else {
                    continue;
                };
                let known = epochs.entry(gateway.to_owned()).or_insert(0);
                if epoch != *known {
                    assert!(epoch > *known);
                    assert_eq!(event["type"], "lease");
                    restarts += u64::from(*known > 0);
                    *known = epoch;
                }
            }
        }
        assert_eq!(epochs.len(), GATEWAYS.len());
        assert!((1..=7).contains(&restarts), "{restarts}");
    }
}
