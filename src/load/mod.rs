//! A load test: many simulated people on real WebSocket connections, each of which knows the expected effect of every
//! action.
//!
//! [`person`] is one person. This module starts all of them, announces storms and the end of the run, passes on the
//! changes that the engine reports, and counts the results ([`tally`]). The run passes if no change is missing and none
//! is unexpected.

mod person;
pub mod tally;

use crate::api::answers::{Policy, PolicyAnswer, PolicyPlatform};
use crate::api::client::{Client, ClientError};
use crate::api::routes::RouteId;
use crate::cause::{is_answered, reason};
use crate::clock::Clock;
use crate::config::SecretUrl;
use crate::gateway::uplink::http::HttpUplink;
use crate::gateway::uplink::{Unavailable, Uplink as _, UserUpdate};
use crate::tls::trusting;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use person::{LoadConditions, Person};
use serde::Serialize;
use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tally::{Latency, Tally};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

/// The number of descriptors that are needed besides those of people's connections.
const DESCRIPTORS_BESIDE: u64 = 1_000;
/// How long the policy is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
const PROGRESS: Duration = Duration::from_secs(5);
/// How long the last changes may take after the end of the run is announced.
const LAST: Duration = Duration::from_secs(90);
const QUIET: Duration = Duration::from_secs(2);
const PHONE: &str = "android";
const PAGE: &str = "web";

pub struct Settings {
    /// The URLs of the gateways, `ws://ADDRESS:PORT`; each connection uses one of them.
    pub gateways: Vec<String>,
    /// The URL of the HTTP interface, from which changes are followed.
    pub engine: SecretUrl,
    pub engine_token: Option<String>,
    /// The CAs of an engine at `https://`.
    pub engine_ca: Option<PathBuf>,
    /// The secret that signs people's tokens; `None` for gateways that require no token.
    pub secret: Option<Vec<u8>>,
    pub people: usize,
    pub seconds: u64,
    /// The average time between two actions of a person.
    pub action_seconds: u64,
    /// The number of people per second that connect for the first time.
    pub connect_rate: u64,
    /// The time between two storms; 0 means no storms.
    pub storm_seconds: u64,
    /// The percentage of the people that a storm affects.
    pub storm_percent: u64,
    /// The number of addresses of this machine from which people connect.
    pub addresses: usize,
    pub seed: u64,
}

/// What all people share: the settings, and what the policy says.
pub struct Plan {
    clock: Arc<dyn Clock>,
    seed: u64,
    prefix: String,
    gateways: Vec<(String, SocketAddr)>,
    secret: Option<EncodingKey>,
    /// The time at which the tokens expire, in seconds since 1970.
    until_s: u64,
    action_every: Duration,
    storm_percent: u64,
    quiet: Duration,
    addresses: usize,
    /// Whether a phone and a page displace each other.
    exclusive: bool,
    phone_has_push: bool,
    phone_beats: Duration,
    page_beats: Duration,
}

impl Plan {
    fn user(&self, number: usize) -> String {
        format!("{}{number}", self.prefix)
    }

    fn token(&self, user: &str) -> Option<String> {
        let secret = self.secret.as_ref()?;
        let claims = serde_json::json!({"sub": user, "exp": self.until_s});
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, secret).ok()
    }
}

/// The results of a run.
#[derive(Serialize, Clone, Debug)]
pub struct Report {
    pub people: usize,
    /// What the names of the users begin with; a number from 0 on follows.
    pub users: String,
    pub seconds: u64,
    /// The greatest number of connections open at once, as measured every five seconds and at the end.
    pub connections_peak: i64,
    pub connects: u64,
    /// Attempts that were refused or cut off, and retried.
    pub connects_refused: u64,
    pub heartbeats: u64,
    pub actions: BTreeMap<&'static str, u64>,
    pub changes_as_expected: u64,
    pub changes_missing: u64,
    pub changes_unexpected: u64,
    /// From an action to the arrival of its change at a follower.
    pub change_latency: Latency,
    /// From dialling to the greeting.
    pub hello_latency: Latency,
    /// From the cause to the close of a connection that was replaced, displaced or logged out.
    pub close_latency: Latency,
    pub latency_by_action: BTreeMap<&'static str, Latency>,
    /// Descriptions of the first changes that were missing or unexpected.
    pub problems: Vec<String>,
}

impl Report {
    pub fn is_exact(&self) -> bool {
        self.changes_missing == 0 && self.changes_unexpected == 0
    }
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no engine answers at {url} (--engine): {why}; start one with `rollcall serve`, or give its URL")]
    Engine { url: SecretUrl, why: String },
    #[error("an engine answers at {url} (--engine), but {why}")]
    Answer { url: SecretUrl, why: String },
    #[error("{0}")]
    Setting(String),
}

fn platform<'p>(policy: &'p Policy, name: &str) -> Result<&'p PolicyPlatform, Error> {
    let platform = policy.platforms.get(name);
    let platform = platform.ok_or_else(|| Error::Setting(format!("the policy has no platform {name}")))?;
    if platform.closed_ms > 0 {
        let why = format!(
            "the policy's closed_ms of {name} is not 0, so the result of a cut would depend on when it ends; set \
                     it to 0"
        );
        return Err(Error::Setting(why));
    }
    Ok(platform)
}

/// Returns whether a phone and a page share an exclusive group.
fn puts_out(policy: &Policy) -> Result<bool, Error> {
    let (phone, page) = (platform(policy, PHONE)?, platform(policy, PAGE)?);
    Ok(match &policy.exclusive {
        Some(groups) => groups
            .iter()
            .any(|group| group.contains(&phone.kind) && group.contains(&page.kind)),
        None => policy.login == "single",
    })
}

async fn ask_policy(settings: &Settings) -> Result<Policy, Error> {
    let unreached = |error: ClientError| {
        let url = settings.engine.clone();
        match error {
            ClientError::Unreached(error) if is_answered(&error) => Error::Answer {
                url,
                why: reason(error),
            },
            ClientError::Unreached(error) => Error::Engine {
                url,
                why: reason(error),
            },
            ClientError::Refused { .. } | ClientError::Unreadable { .. } => Error::Answer {
                url,
                why: error.to_string(),
            },
        }
    };
    let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE);
    let http = trusting(http, settings.engine_ca.as_deref()).map_err(|error| Error::Setting(error.to_string()))?;
    let http = http.build().map_err(ClientError::from).map_err(unreached)?;
    let engine = Client::new(http, settings.engine.reveal(), settings.engine_token.as_deref());
    let PolicyAnswer { policy, since: _ } = engine.get(RouteId::Policy).await.map_err(unreached)?;
    Ok(policy)
}

async fn plan(settings: &Settings, clock: Arc<dyn Clock>) -> Result<Plan, Error> {
    let policy = ask_policy(settings).await?;
    let (phone, page) = (platform(&policy, PHONE)?, platform(&policy, PAGE)?);
    if page.push {
        return Err(Error::Setting(format!(
            "the policy's {PAGE} has push, which web pages do not have"
        )));
    }
    let mut gateways = Vec::new();
    for url in &settings.gateways {
        let authority = url.strip_prefix("ws://").unwrap_or(url).trim_end_matches('/');
        let mut found = tokio::net::lookup_host(authority)
            .await
            .map_err(|error| Error::Setting(format!("--gateway {url}: its host is not known here: {error}")))?;
        let address = found
            .next()
            .ok_or_else(|| Error::Setting(format!("--gateway {url}: its host has no address")))?;
        gateways.push((format!("ws://{authority}/"), address));
    }
    let now_ms = clock.now_ms();
    Ok(Plan {
        seed: settings.seed,
        // Each run has users of its own.
        prefix: format!("load-{now_ms:x}-"),
        gateways,
        secret: settings.secret.as_deref().map(EncodingKey::from_secret),
        until_s: now_ms / 1_000 + settings.seconds + 3_600,
        action_every: Duration::from_secs(settings.action_seconds),
        storm_percent: settings.storm_percent,
        quiet: QUIET,
        addresses: settings.addresses,
        exclusive: puts_out(&policy)?,
        phone_has_push: phone.push,
        phone_beats: Duration::from_millis(phone.heartbeat_ms),
        page_beats: Duration::from_millis(page.heartbeat_ms),
        clock,
    })
}

/// Raises the limit of descriptors of this process as far as possible. If the limit stays too low, connections fail.
fn raise_descriptors(people: usize) {
    let wanted = people as u64 * 2 + DESCRIPTORS_BESIDE;
    let pid = std::process::id().to_string();
    for limits in [format!("{wanted}:{wanted}"), format!("{wanted}:")] {
        let raised = Command::new("prlimit")
            .args(["--pid", &pid, &format!("--nofile={limits}")])
            .output();
        if raised.is_ok_and(|output| output.status.success()) {
            return;
        }
    }
    tracing::warn!("the limit of open files could not be raised to {wanted}; raise it with ulimit -n");
}

/// Sends each person the changes of its user, with the time of their arrival.
async fn hand_out(
    clock: Arc<dyn Clock>,
    mut changes: mpsc::Receiver<UserUpdate>,
    people: HashMap<String, mpsc::UnboundedSender<(UserUpdate, Duration)>>,
) {
    while let Some(update) = changes.recv().await {
        let at = clock.monotonic();
        if let Some(person) = people.get(&*update.user) {
            // A person that has left does not need the change.
            let _ = person.send((update, at));
        }
    }
}

/// Runs the load test and logs the progress every few seconds.
pub async fn run(settings: Settings, clock: Arc<dyn Clock>) -> Result<Report, Error> {
    raise_descriptors(settings.people);
    let plan = Arc::new(plan(&settings, clock.clone()).await?);
    let unavailable = |Unavailable(why)| Error::Engine {
        url: settings.engine.clone(),
        why,
    };
    let (url, token) = (settings.engine.reveal().as_str(), settings.engine_token.as_deref());
    let uplink = HttpUplink::open_with(url, token, settings.engine_ca.as_deref());
    let uplink = uplink.await.map_err(unavailable)?;
    let changes = uplink.changes().await.map_err(unavailable)?;
    let tally = Arc::new(Tally::default());
    let (tell, weather) = watch::channel(LoadConditions::Calm);
    let mut people = HashMap::new();
    let mut living = JoinSet::new();
    for number in 0..settings.people {
        let (sender, receiver) = mpsc::unbounded_channel();
        people.insert(plan.user(number), sender);
        let begins_after = Duration::from_millis(number as u64 * 1_000 / settings.connect_rate.max(1));
        let person = Person::new(plan.clone(), tally.clone(), number);
        living.spawn(person.live(begins_after, receiver, weather.clone()));
    }
    let handing = tokio::spawn(hand_out(clock.clone(), changes, people));
    let began = clock.monotonic();
    let mut peak = 0;
    let mut next_storm = Duration::from_secs(settings.storm_seconds);
    let mut storms = 0;
    loop {
        tokio::time::sleep(PROGRESS.min(Duration::from_secs(settings.seconds))).await;
        let passed = clock.monotonic().saturating_sub(began);
        peak = peak.max(tally.open.load(Ordering::Relaxed));
        progress(passed, &tally);
        if passed >= Duration::from_secs(settings.seconds) {
            break;
        }
        if settings.storm_seconds > 0 && passed >= next_storm {
            next_storm += Duration::from_secs(settings.storm_seconds);
            storms += 1;
            tell.send_replace(LoadConditions::Storm(storms));
        }
    }
    tell.send_replace(LoadConditions::Over);
    let ended = async { while living.join_next().await.is_some() {} };
    if tokio::time::timeout(LAST, ended).await.is_err() {
        tally.missed(|| "some people are still waiting for something".to_owned());
    }
    handing.abort();
    let of_change = |kind: &str| !matches!(kind, "hello" | "kick");
    Ok(Report {
        people: settings.people,
        users: plan.prefix.clone(),
        seconds: settings.seconds,
        connections_peak: peak,
        connects: tally.connects.load(Ordering::Relaxed),
        connects_refused: tally.refused.load(Ordering::Relaxed),
        heartbeats: tally.heartbeats.load(Ordering::Relaxed),
        actions: tally.actions(),
        changes_as_expected: tally.as_expected.load(Ordering::Relaxed),
        changes_missing: tally.missing.load(Ordering::Relaxed),
        changes_unexpected: tally.unexpected.load(Ordering::Relaxed),
        change_latency: tally.latency(of_change),
        hello_latency: tally.latency(|kind| kind == "hello"),
        close_latency: tally.latency(|kind| kind == "kick"),
        latency_by_action: tally.latencies(),
        problems: tally.problems(),
    })
}

fn progress(passed: Duration, tally: &Tally) {
    let latency = tally.latency(|kind| !matches!(kind, "hello" | "kick"));
    tracing::info!(
        "{:>4} s  {} open, {} changes as expected (p50 {:.1} ms, p99 {:.1} ms), {} missing, {} unexpected, {} refused",
        passed.as_secs(),
        tally.open.load(Ordering::Relaxed),
        latency.count,
        latency.p50_ms,
        latency.p99_ms,
        tally.missing.load(Ordering::Relaxed),
        tally.unexpected.load(Ordering::Relaxed),
        tally.refused.load(Ordering::Relaxed),
    );
}
