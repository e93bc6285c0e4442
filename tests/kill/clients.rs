//! Clients that send events and queries, and record the answers.

use crate::process::{Address, agent, get};
use crate::{PARTITIONS, PATIENCE, pause};
use rollcall::presence::{Offset, Partition};
use rollcall::random::Random;
use rollcall::schema::partitioner::partition_of;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The events of one request, and their outcome.
pub struct Request {
    pub events: Vec<Value>,
    /// The partition of each record, and its expected content.
    pub records: Vec<(Partition, Value)>,
    /// It begins with an event in each partition by which it is found in the log.
    pub marked: bool,
    /// How often it was sent; each time but the last without an answer.
    pub attempts: u64,
    /// The offset of each record, if it was acknowledged.
    pub acknowledged: Option<Vec<Offset>>,
}

impl Request {
    pub fn new(events: Vec<Value>, marked: bool) -> Request {
        let mut records = Vec::new();
        for event in &events {
            let all = (0..PARTITIONS).map(Partition);
            if let Some(user) = event["user"].as_str() {
                records.push((partition_of(user, PARTITIONS), event.clone()));
            } else if let Some(beats) = event["beats"].as_array() {
                for partition in all {
                    let user = |beat: &Value| beat["user"].as_str().expect("a user").to_owned();
                    let here = |beat: &&Value| partition_of(&user(beat), PARTITIONS) == partition;
                    let beats: Vec<&Value> = beats.iter().filter(here).collect();
                    if !beats.is_empty() {
                        let mut part = event.clone();
                        part["beats"] = json!(beats);
                        records.push((partition, part));
                    }
                }
            } else {
                records.extend(all.map(|partition| (partition, event.clone())));
            }
        }
        Request {
            events,
            records,
            marked,
            attempts: 0,
            acknowledged: None,
        }
    }

    /// What it writes to a partition, in order.
    pub fn part(&self, partition: Partition) -> Vec<&Value> {
        let here = self.records.iter().filter(|record| record.0 == partition);
        here.map(|record| &record.1).collect()
    }
}

/// The offsets in an answer, each where it must be.
pub fn offsets(answer: &str, records: &[(Partition, Value)]) -> Vec<Offset> {
    let answer: Value = serde_json::from_str(answer).expect("JSON");
    let each = answer["appended"].as_array().expect("a list").iter();
    let flat = each.flat_map(|one| one.as_array().cloned().unwrap_or_else(|| vec![one.clone()]));
    let flat: Vec<Value> = flat.collect();
    assert_eq!(flat.len(), records.len(), "{answer}");
    let offset = |(place, record): (&Value, &(Partition, Value))| {
        assert_eq!(place["partition"], record.0.0, "{answer}");
        Offset(place["offset"].as_u64().expect("an offset"))
    };
    flat.iter().zip(records).map(offset).collect()
}

/// A user of each partition whose events mark requests.
pub fn markers() -> Vec<String> {
    let marker = |partition| {
        let mut names = (0..).map(|number| format!("mark {number}"));
        let found = names.find(|name| partition_of(name, PARTITIONS) == Partition(partition));
        found.expect("every partition has users")
    };
    (0..PARTITIONS).map(marker).collect()
}

pub const USERS: u64 = 40;
pub const GATEWAYS: [&str; 3] = ["g1", "g2", "gateway/3"];
pub const PLATFORMS: [&str; 5] = ["android", "iphone", "windows", "web", "mini_program"];

pub fn user(number: u64) -> String {
    format!("user é {number}")
}

/// Everything is due within seconds, so that much is, before and after and because of each death.
pub fn policy(login: &str, timeout_ms: u64) -> Value {
    let mut platforms = serde_json::Map::new();
    for (number, platform) in (0u64..).zip(PLATFORMS) {
        let rules = json!({
            "timeout_ms": timeout_ms + 100 * number, "closed_ms": 150 * number, "exit_ms": 50 * number,
            "background_ms": 300 + 50 * number, "away_ms": 900 + 300 * number,
        });
        platforms.insert(platform.to_owned(), rules);
    }
    json!({
        "login": login,
        "instances": {"android": 2, "web": 3},
        "kicked_max": 3,
        "outage": {"silence_ms": 2_000, "grace_ms": 700},
        "platforms": platforms,
    })
}

pub fn first_policy() -> Value {
    policy("dual", 1_500)
}

/// What all clients share: numbers that grow.
#[derive(Default)]
pub struct World {
    pub address: Address,
    /// No more is sent.
    pub sent: AtomicBool,
    /// And no more is followed.
    pub over: AtomicBool,
    pub conns: AtomicU64,
    pub epochs: [AtomicU64; GATEWAYS.len()],
}

/// Notifies all threads, however the test ends.
pub struct Over<'w>(pub &'w World);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.sent.store(true, Ordering::SeqCst);
        self.0.over.store(true, Ordering::SeqCst);
    }
}

pub struct Client<'w> {
    pub number: u64,
    pub world: &'w World,
    pub random: Random,
    pub markers: Vec<String>,
    /// Connections that were made, as fields of events.
    links: Vec<Value>,
}

impl Client<'_> {
    pub fn new(number: u64, world: &World, random: Random) -> Client<'_> {
        Client {
            number,
            world,
            random,
            markers: markers(),
            links: Vec::new(),
        }
    }

    fn goes_on(&self) -> bool {
        !self.world.sent.load(Ordering::SeqCst)
    }

    fn event(&mut self) -> Value {
        let user = user(self.random.below(USERS));
        let gateway = self.random.below(GATEWAYS.len() as u64) as usize;
        let epoch = &self.world.epochs[gateway];
        let device = |kind: &str, link: &Value| {
            let mut event = link.clone();
            event["type"] = json!(kind);
            event
        };
        let roll = self.random.below(100);
        match roll {
            25..85 if !self.links.is_empty() => {
                // Mostly a late one.
                let late = self.links.len().saturating_sub(12) as u64;
                let at = match self.random.below(4) {
                    0 => self.random.below(self.links.len() as u64),
                    _ => late + self.random.below(self.links.len() as u64 - late),
                };
                let link = self.links[at as usize].clone();
                match roll {
                    25..60 => device("heartbeat", &link),
                    60..64 => device("background", &link),
                    64..67 => device("foreground", &link),
                    67..75 => {
                        let mut event = device("disconnect", &link);
                        event["reason"] = json!(self.random.pick(&["closed", "exit"]));
                        event
                    }
                    75..78 => device("logout", &link),
                    _ => {
                        let (gateway, epoch) = (link["gateway"].clone(), link["epoch"].clone());
                        let beats = self
                            .links
                            .iter()
                            .rev()
                            .filter(|link| link["gateway"] == gateway)
                            .take(30);
                        let beat = |link: &Value| {
                            json!({
                                "user": link["user"], "platform": link["platform"], "device": link["device"],
                                "conn": link["conn"],
                            })
                        };
                        let beats: Vec<Value> = beats.map(beat).collect();
                        json!({"type": "heartbeats", "gateway": gateway, "epoch": epoch, "beats": beats})
                    }
                }
            }
            85..89 => {
                let text = *self.random.pick(&[Some("busy"), Some("在忙 😀"), None]);
                json!({"type": "custom_status", "user": user, "text": text})
            }
            89..91 => match self.random.below(3) {
                0 => json!({"type": "kick", "user": user}),
                1 => json!({"type": "kick", "user": user, "platform": self.random.pick(&PLATFORMS)}),
                _ => json!({"type": "kick", "user": user, "platform": self.random.pick(&PLATFORMS), "device": "d1"}),
            },
            91 => json!({"type": "forget", "user": user}),
            92..97 => {
                let ttl_ms = *self.random.pick(&[0, 50, 300, 1_000, 3_000, 3_000]);
                // The one after an ended epoch is a new process of the gateway; sometimes it did not say goodbye.
                let epoch = match ttl_ms == 0 || self.random.below(12) == 0 {
                    true => epoch.fetch_add(1, Ordering::SeqCst) + u64::from(ttl_ms != 0),
                    false => epoch.load(Ordering::SeqCst),
                };
                json!({"type": "lease", "gateway": GATEWAYS[gateway], "epoch": epoch, "ttl_ms": ttl_ms})
            }
            97 if self.random.below(6) == 0 => {
                let login = *self.random.pick(&["single", "dual", "triple", "multi"]);
                json!({"type": "policy", "policy": policy(login, 800 + self.random.below(1_500))})
            }
            98 if self.random.below(6) == 0 => json!({"type": "tick"}),
            _ => {
                let link = json!({
                    "user": user,
                    "platform": self.random.pick(&PLATFORMS),
                    "device": self.random.pick(&["d1", "d2"]),
                    "gateway": GATEWAYS[gateway],
                    "epoch": epoch.load(Ordering::SeqCst),
                    "conn": self.world.conns.fetch_add(1, Ordering::SeqCst),
                });
                self.links.push(link.clone());
                let mut event = device("connect", &link);
                event["intent"] = json!(self.random.pick(&["login", "login", "resume"]));
                if self.random.below(2) == 0 {
                    event["client"] = json!(format!("client {}", self.number));
                }
                event
            }
        }
    }

    fn request(&mut self, number: usize) -> Request {
        let marked = self.random.below(4) > 0;
        let mut events = Vec::new();
        if marked {
            let text = format!("{} {number}", self.number);
            let mark = |user: &String| json!({"type": "custom_status", "user": user, "text": text});
            events.extend(self.markers.iter().map(mark));
        }
        let most = match (marked, self.random.below(12)) {
            (false, _) => 1,
            (true, 0) => 196,
            (true, _) => 12,
        };
        for _ in 0..=self.random.below(most) {
            events.push(self.event());
        }
        events.truncate(200);
        Request::new(events, marked)
    }

    /// Sends until it is over; what was not acknowledged is sent again.
    pub fn run(mut self) -> (Vec<Request>, Vec<Shown>) {
        let agent = agent(Some(PATIENCE));
        let mut requests = Vec::new();
        let mut shown = Vec::new();
        while self.goes_on() {
            let mut request = self.request(requests.len());
            let body = Value::from(request.events.clone()).to_string();
            while self.goes_on() && request.acknowledged.is_none() {
                request.attempts += 1;
                let sent = agent.post(self.world.address.url("/v1/events")).send(&body);
                let answered = sent.and_then(|mut response| {
                    let body = response.body_mut().read_to_string()?;
                    Ok((response.status().as_u16(), body))
                });
                match answered {
                    Ok((200, answer)) => request.acknowledged = Some(offsets(&answer, &request.records)),
                    Ok((503, _)) | Err(_) => pause(&mut self.random, 1, 20),
                    Ok((status, answer)) => panic!("{status} {answer} for {body}"),
                }
            }
            if let Some(offsets) = &request.acknowledged
                && self.random.below(4) == 0
            {
                shown.extend(self.look(&agent, &request, offsets));
            }
            requests.push(request);
            pause(&mut self.random, 0, 12);
        }
        (requests, shown)
    }

    /// Asks for a user of a request, as it is after the request.
    fn look(&mut self, agent: &ureq::Agent, request: &Request, offsets: &[Offset]) -> Option<Shown> {
        let at = self.random.below(offsets.len() as u64) as usize;
        let (record, offset) = (&request.records[at].1, offsets[at]);
        let user = record["user"].as_str()?;
        let path = format!("/v1/users/{}?at_least={offset}", escaped(user));
        let (status, body) = get(agent, &self.world.address.url(&path))?;
        match status {
            200 => {
                let shown = Shown::new(user, body);
                assert!(shown.offset >= offset, "asked for {offset}: {}", shown.body);
                Some(shown)
            }
            404 | 503 => None,
            _ => panic!("{status} {body}"),
        }
    }
}

pub fn escaped(user: &str) -> String {
    form_urlencoded::byte_serialize(user.as_bytes())
        .collect::<String>()
        .replace('+', "%20")
}

/// A user as the process showed it.
pub struct Shown {
    pub user: String,
    pub partition: Partition,
    pub offset: Offset,
    pub body: String,
}

impl Shown {
    pub fn new(user: &str, body: String) -> Shown {
        let answer: Value = serde_json::from_str(&body).expect("JSON");
        let as_of = &answer["as_of"];
        Shown {
            user: user.to_owned(),
            partition: Partition(as_of["partition"].as_u64().expect("a number") as u32),
            offset: Offset(as_of["offset"].as_u64().expect("a number")),
            body,
        }
    }

    /// The line of `fold --state` that it claims to be.
    pub fn line(&self) -> String {
        let cut = self.body.rfind(r#","as_of":{"#).expect("as_of comes last");
        format!("{}}}", &self.body[..cut])
    }
}
