//! An engine and its gateways in this process, on a log in memory.

use crate::client::{Client, Dial, PATIENCE};
use clap::{Args as _, Command, FromArgMatches as _};
use rollcall::clock::{Clock, SystemClock};
use rollcall::config::gateway::Flags;
use rollcall::engine::{Engine, Tuning};
use rollcall::gateway::Gateway;
use rollcall::gateway::uplink::Uplink;
use rollcall::gateway::uplink::log::LogUplink;
use rollcall::log::memory::MemoryLog;
use rollcall::log::{Limit, Log as _, NewRecord};
use rollcall::presence::Partition;
use rollcall::presence::change::Output;
use rollcall::schema::json::{event_line, output_line, read_new_events};
use rollcall::schema::{avro, partitioner::partition_of};
use rollcall::topics::Topic;
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub const PARTITIONS: u32 = 3;
/// More appends than any test makes: they fail until the log is healed.
pub const FOR_NOW: usize = 100_000;

pub struct House {
    pub log: Arc<MemoryLog>,
    pub engine: Arc<Engine>,
    pub clock: Arc<dyn Clock>,
    pub data: tempfile::TempDir,
}

/// Settings for tests: short times, and every client is accepted.
pub fn flags(more: &[&str]) -> Flags {
    let quick = ["test", "--beats-every-ms", "50", "--drain-ms", "1000"];
    let arguments: Vec<&str> = quick.iter().chain(more).copied().collect();
    let matches = Flags::augment_args(Command::new("test").args_override_self(true)).get_matches_from(arguments);
    let mut flags = Flags::from_arg_matches(&matches).expect("flags");
    flags.gateway_insecure = flags.jwt_key.is_none() && flags.jwks.is_none();
    flags
}

impl House {
    /// An engine under a policy.
    pub async fn new(policy: Value) -> House {
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let log = Arc::new(MemoryLog::new(PARTITIONS, clock.clone()));
        let engine = Engine::start(log.clone(), None, clock.clone(), Tuning::default()).expect("started");
        let house = House {
            log,
            engine: Arc::new(engine),
            clock,
            data: tempfile::tempdir().expect("a directory"),
        };
        house.publish(json!({"type": "policy", "policy": policy}));
        wait_until("the policy is in force", async || {
            let policies = (0..PARTITIONS).map(|partition| house.engine.policy(Partition(partition)));
            let policies = futures_util::future::join_all(policies).await;
            let in_force = |answer: &Result<rollcall::engine::Answer<(_, Option<_>)>, _>| {
                answer.as_ref().is_ok_and(|answer| answer.value.1.is_some())
            };
            policies.iter().all(in_force)
        })
        .await;
        house
    }

    /// A gateway of it, of the name `edge` if nothing else is said.
    pub async fn gateway(&self, more: &[&str]) -> Gateway {
        self.gateway_with(flags(more)).await
    }

    pub async fn gateway_with(&self, flags: Flags) -> Gateway {
        self.gateway_on(Arc::new(LogUplink::new(self.engine.clone())), flags)
            .await
    }

    /// A gateway on an uplink of the test's own.
    pub async fn gateway_on(&self, uplink: Arc<dyn Uplink>, flags: Flags) -> Gateway {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        let config = flags.config(listen, self.data.path().to_owned()).expect("settings");
        let starting = Gateway::start(config, uplink, self.clock.clone());
        let started = tokio::time::timeout(PATIENCE, starting).await.expect("it starts");
        started.expect("it starts well")
    }

    /// Appends an event to the partitions that it belongs to.
    pub fn publish(&self, event: Value) {
        let text = event.to_string();
        let body = format!("[{text}]");
        let events = read_new_events(&body).expect("JSON");
        for event in events {
            let event = event.expect("an event").event;
            let mut value = Vec::new();
            avro::encode_event(&event, &mut value);
            let homes = match event.user() {
                Some(user) => vec![partition_of(user, PARTITIONS)],
                None => (0..PARTITIONS).map(Partition).collect(),
            };
            for home in homes {
                let key = event.user().map(|user| user.as_bytes().to_vec());
                let record = NewRecord {
                    headers: Vec::new(),
                    key,
                    value: value.clone(),
                };
                self.log
                    .append(vec![(home, record)], Box::new(|result| assert!(result.is_ok())));
            }
        }
    }

    fn records(&self, topic: Topic) -> Vec<rollcall::log::Record> {
        let mut records = Vec::new();
        for partition in (0..PARTITIONS).map(Partition) {
            let range = self.log.range(topic, partition).expect("a range");
            let limit = Limit {
                records: usize::MAX,
                bytes: usize::MAX,
            };
            let read = self.log.read(topic, partition, range.start, limit, &mut records);
            read.expect("read");
        }
        records
    }

    /// Everything that was published, a partition after the other.
    pub fn events(&self) -> Vec<Value> {
        let line = |record: &rollcall::log::Record| {
            let event = avro::decode_event(&record.value).expect("only events");
            let mut line = Vec::new();
            event_line(&mut line, record.offset, record.ts, &event);
            serde_json::from_slice(&line).expect("JSON")
        };
        self.records(Topic::Events).iter().map(line).collect()
    }

    /// The events of a type and a user.
    pub fn events_of(&self, kind: &str, user: &str) -> Vec<Value> {
        let mut events = self.events();
        events.retain(|event| event["type"] == kind && event["user"] == user);
        events
    }

    /// How often connections of a user showed life: by name in `heartbeats`, by their number in `alive`.
    pub fn beats_of(&self, user: &str) -> usize {
        self.named_beats_of(user) + self.numbered_beats_of(user)
    }

    pub fn named_beats_of(&self, user: &str) -> usize {
        let events = self.events();
        let records = events.iter().filter(|event| event["type"] == "heartbeats");
        let beats = records.flat_map(|event| event["beats"].as_array().expect("beats"));
        beats.filter(|beat| beat["user"] == user).count()
    }

    pub fn numbered_beats_of(&self, user: &str) -> usize {
        let events = self.events();
        let connects = events
            .iter()
            .filter(|event| event["type"] == "connect" && event["user"] == user);
        let links: Vec<[&Value; 3]> = connects
            .map(|event| ["gateway", "epoch", "conn"].map(|field| &event[field]))
            .collect();
        let is_of = |event: &Value, conn: &Value| links.contains(&[&event["gateway"], &event["epoch"], conn]);
        let records = events.iter().filter(|event| event["type"] == "alive");
        records
            .map(|event| {
                let conns = event["conns"].as_array().expect("conns");
                conns.iter().filter(|conn| is_of(event, conn)).count()
            })
            .sum()
    }

    /// The changes of a user so far.
    pub fn changes_of(&self, user: &str) -> Vec<Value> {
        let line = |record: &rollcall::log::Record| -> Value {
            let change = avro::decode_change(&record.value).expect("only changes");
            let mut line = Vec::new();
            output_line(&mut line, &Output::Change(change));
            serde_json::from_slice(&line).expect("JSON")
        };
        let records = self.records(Topic::Changes);
        let of_user = records
            .iter()
            .filter(|record| record.key.as_deref() == Some(user.as_bytes()));
        of_user.map(line).collect()
    }

    /// Waits until a user's last change has this cause; all of the user's causes.
    pub async fn causes(&self, user: &str, last: &str) -> Vec<String> {
        let causes = || -> Vec<String> {
            let changes = self.changes_of(user);
            changes
                .iter()
                .map(|change| change["cause"].as_str().expect("text").to_owned())
                .collect()
        };
        let what = format!("{user}: {last}");
        wait_until(&what, async || causes().last().is_some_and(|cause| cause == last)).await;
        causes()
    }

    /// Waits until an event of this type and user was published.
    pub async fn published(&self, kind: &str, user: &str) -> Value {
        wait_until(&format!("{kind} of {user}"), async || {
            !self.events_of(kind, user).is_empty()
        })
        .await;
        self.events_of(kind, user).pop().expect("just seen")
    }
}

impl Drop for House {
    fn drop(&mut self) {
        let _ = self.engine.stop();
    }
}

/// A client of a gateway without tokens; and its hello.
pub async fn connect(gateway: &Gateway, user: &str, platform: &str, device: &str, intent: &str) -> Client {
    let (client, _) = greet(gateway, user, platform, device, intent).await;
    client
}

pub async fn greet(gateway: &Gateway, user: &str, platform: &str, device: &str, intent: &str) -> (Client, Value) {
    let dial = dial(gateway, user, platform, device, intent);
    let mut client = dial.open().await.expect("let in");
    let hello = client.frame().await;
    assert_eq!(hello["type"], "hello", "{hello}");
    (client, hello)
}

pub fn dial(gateway: &Gateway, user: &str, platform: &str, device: &str, intent: &str) -> Dial {
    let query = format!("user={user}&platform={platform}&device={device}&intent={intent}&app=tests/1");
    Dial::new(gateway.address(), query)
}

pub fn path(path: &Path) -> &str {
    path.to_str().expect("text")
}

/// Asks again until it is so, within bounds.
pub async fn wait_until(what: &str, mut so: impl AsyncFnMut() -> bool) {
    let until = std::time::Instant::now() + PATIENCE;
    while std::time::Instant::now() < until {
        if so().await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not within {PATIENCE:?}: {what}");
}
