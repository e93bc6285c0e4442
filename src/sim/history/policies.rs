//! The policies of random histories: a random document, completed, and as JSON.

use super::{KINDS, NEW_PLATFORMS};
use crate::presence::policy::{LoginMode, PlatformDocument, Policy, PolicyDocument};
use crate::random::Random;
use serde_json::{Map, Value, json};

/// The first policy of a seed's history as a document; often the default one.
pub fn policy_document(seed: u64) -> PolicyDocument {
    let mut random = Random(seed ^ 0x706f_6c69_6379);
    if random.percent(35) {
        PolicyDocument::default()
    } else {
        random_document(&mut random)
    }
}

/// The first policy of a seed's history, completed.
pub fn policy(seed: u64) -> Policy {
    completed(policy_document(seed))
}

/// Documents made here are within every bound; the tests hold this.
pub(super) fn completed(document: PolicyDocument) -> Policy {
    document.complete().unwrap_or_default()
}

pub(super) fn random_document(random: &mut Random) -> PolicyDocument {
    let mut document = PolicyDocument::default();
    if random.percent(20) {
        document.rules = Some(1);
    }
    if random.percent(80) {
        document.login = Some(*random.pick(&LoginMode::ALL));
    }
    if random.percent(25) {
        let groups = random.below(4);
        document.exclusive = Some(
            (0..groups)
                .map(|_| random.some_of(&KINDS, 5).into_iter().map(str::to_owned).collect())
                .collect(),
        );
    }
    for kind in KINDS {
        if random.percent(50) {
            document.instances.insert(kind.to_owned(), 1 + random.below(3));
        }
    }
    if random.percent(50) {
        document.kicked_max = Some(random.below(4));
    }
    if random.percent(60) {
        document.custom_keep_ms = Some(*random.pick(&[0, 1, 1_000, 30_000, 600_000]));
    }
    if random.percent(40) {
        document.silence_ms = Some(*random.pick(&[0, 2_000, 5_000, 60_000]));
        document.grace_ms = Some(*random.pick(&[0, 1, 1_000, 30_000, 500_000]));
    }
    let defaults: Vec<String> = Policy::default().platforms.into_keys().collect();
    if random.percent(85) {
        for name in random.some_of(&defaults, 5) {
            let platform = random_platform(random);
            document.platforms.insert(name, platform);
        }
    }
    if random.percent(50) {
        for name in random.some_of(&NEW_PLATFORMS, 2) {
            let mut platform = random_platform(random);
            platform.timeout_ms = platform.timeout_ms.or(Some(10_000));
            platform.push = platform.push.or(Some(true));
            document.platforms.insert(name.to_owned(), platform);
        }
    }
    document
}

fn random_platform(random: &mut Random) -> PlatformDocument {
    let mut platform = PlatformDocument::default();
    if random.percent(30) {
        platform.kind = Some((*random.pick(&KINDS)).to_owned());
    }
    if random.percent(20) {
        platform.heartbeat_ms = Some(random.below(60_000));
    }
    if random.percent(50) {
        platform.timeout_ms = Some(*random.pick(&[1, 1_000, 30_000, 60_000, 400_000]));
    }
    if random.percent(50) {
        platform.closed_ms = Some(*random.pick(&[0, 1, 1_000, 5_000, 30_000]));
    }
    if random.percent(50) {
        platform.exit_ms = Some(*random.pick(&[0, 1, 1_000, 5_000, 30_000]));
    }
    if random.percent(60) {
        platform.background_ms = Some(*random.pick(&[None, Some(1), Some(1_000), Some(30_000), Some(30_000)]));
    }
    if random.percent(40) {
        platform.push = Some(random.percent(50));
    }
    if random.percent(50) {
        platform.away_ms = Some(*random.pick(&[0, 1, 1_000, 30_000, 600_000, 604_800_000]));
    }
    platform
}

/// A document as JSON text, with the keys that it gives.
pub fn document_json(document: &PolicyDocument) -> String {
    let mut object = Map::new();
    if let Some(rules) = document.rules {
        object.insert("rules".to_owned(), json!(rules));
    }
    if let Some(login) = document.login {
        object.insert("login".to_owned(), json!(login.name()));
    }
    if let Some(exclusive) = &document.exclusive {
        object.insert("exclusive".to_owned(), json!(exclusive));
    }
    if !document.instances.is_empty() {
        object.insert("instances".to_owned(), json!(document.instances));
    }
    if let Some(kicked_max) = document.kicked_max {
        object.insert("kicked_max".to_owned(), json!(kicked_max));
    }
    put(&mut object, "custom_keep_ms", document.custom_keep_ms);
    let mut outage = Map::new();
    put(&mut outage, "silence_ms", document.silence_ms);
    put(&mut outage, "grace_ms", document.grace_ms);
    if !outage.is_empty() {
        object.insert("outage".to_owned(), Value::Object(outage));
    }
    let mut platforms = Map::new();
    for (name, given) in &document.platforms {
        let mut platform = Map::new();
        if let Some(kind) = &given.kind {
            platform.insert("kind".to_owned(), json!(kind));
        }
        put(&mut platform, "heartbeat_ms", given.heartbeat_ms);
        put(&mut platform, "timeout_ms", given.timeout_ms);
        put(&mut platform, "closed_ms", given.closed_ms);
        put(&mut platform, "exit_ms", given.exit_ms);
        if let Some(background_ms) = given.background_ms {
            platform.insert("background_ms".to_owned(), json!(background_ms));
        }
        if let Some(push) = given.push {
            platform.insert("push".to_owned(), json!(push));
        }
        put(&mut platform, "away_ms", given.away_ms);
        platforms.insert(name.clone(), Value::Object(platform));
    }
    if !platforms.is_empty() {
        object.insert("platforms".to_owned(), Value::Object(platforms));
    }
    Value::Object(object).to_string()
}

fn put(object: &mut Map<String, Value>, key: &str, value: Option<u64>) {
    if let Some(value) = value {
        object.insert(key.to_owned(), json!(value));
    }
}
