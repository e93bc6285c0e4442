//! The rules' data (section 4): the policy document, and the completed policy that the fold uses.
//!
//! A document is always completed from the defaults, never from the previous policy. The defaults belong to the number
//! in `rules`. A later change of the rules or the defaults takes the next number, and old numbers keep their defaults
//! for ever.

use std::collections::BTreeMap;
use std::fmt;

/// The only version of the rules and of their defaults.
pub const RULES: u64 = 1;

/// The bounds of section 4, both ends included.
pub mod bounds {
    /// Ten years.
    pub const MS_MAX: u64 = 315_360_000_000;
    pub const TIMEOUT_MS_MIN: u64 = 1;
    pub const BACKGROUND_MS_MIN: u64 = 1;
    /// The least `outage.silence_ms` that is not 0.
    pub const SILENCE_MS_MIN: u64 = 2_000;
    pub const PLATFORMS_MAX: usize = 32;
    pub const INSTANCES: (u64, u64) = (1, 32);
    pub const KICKED_MAX: u64 = 64;
}

const SEVEN_DAYS_MS: u64 = 604_800_000;
const TEN_MINUTES_MS: u64 = 600_000;
const DEFAULT_KICKED_MAX: u64 = 16;
const DEFAULT_INSTANCES: [&str; 7] = ["android", "iphone", "ipad", "mac", "windows", "linux", "web"];

/// A predefined set of exclusive groups.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum LoginMode {
    #[default]
    Single,
    Dual,
    Triple,
    Multi,
}

impl LoginMode {
    pub const ALL: [LoginMode; 4] = [LoginMode::Single, LoginMode::Dual, LoginMode::Triple, LoginMode::Multi];

    pub fn name(self) -> &'static str {
        match self {
            LoginMode::Single => "single",
            LoginMode::Dual => "dual",
            LoginMode::Triple => "triple",
            LoginMode::Multi => "multi",
        }
    }

    pub fn groups(self) -> &'static [&'static [&'static str]] {
        match self {
            LoginMode::Single => &[&["android", "iphone", "ipad", "mac", "windows", "linux", "web"]],
            LoginMode::Dual => &[&["android", "iphone", "ipad", "mac", "windows", "linux"]],
            LoginMode::Triple => &[&["android", "iphone", "ipad"], &["mac", "windows", "linux"]],
            LoginMode::Multi => &[],
        }
    }
}

/// Outage grace (section 2.4), in milliseconds. A silence of 0 turns it off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Outage {
    pub silence_ms: u64,
    pub grace_ms: u64,
}

/// The rules of one platform. All durations are in milliseconds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Platform {
    /// Platforms of one kind share the kind's instance limit and groups.
    pub kind: String,
    /// The heartbeat interval for clients. The fold itself uses only the time-out.
    pub heartbeat_ms: u64,
    pub timeout_ms: u64,
    pub closed_ms: u64,
    pub exit_ms: u64,
    pub background_ms: Option<u64>,
    /// Whether a device that loses its link becomes push_online; else it becomes offline.
    pub push: bool,
    /// How long a device without a link is remembered.
    pub away_ms: u64,
}

/// A completed policy.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Policy {
    pub login: LoginMode,
    /// Groups of kinds; a user can be logged in on one kind of a group at a time. `None`: the groups of `login`.
    pub exclusive: Option<Vec<Vec<String>>>,
    pub instances: BTreeMap<String, u64>,
    pub kicked_max: u64,
    /// How long a custom status that was lost with the link is kept; 0 to drop it at once.
    pub custom_keep_ms: u64,
    pub outage: Outage,
    pub platforms: BTreeMap<String, Platform>,
}

/// The fields that a policy document sets, all optional.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PolicyDocument {
    pub rules: Option<u64>,
    pub login: Option<LoginMode>,
    pub exclusive: Option<Vec<Vec<String>>>,
    pub instances: BTreeMap<String, u64>,
    pub kicked_max: Option<u64>,
    pub custom_keep_ms: Option<u64>,
    pub silence_ms: Option<u64>,
    pub grace_ms: Option<u64>,
    pub platforms: BTreeMap<String, PlatformDocument>,
}

/// The fields that a policy document sets for one platform.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct PlatformDocument {
    pub kind: Option<String>,
    pub heartbeat_ms: Option<u64>,
    pub timeout_ms: Option<u64>,
    pub closed_ms: Option<u64>,
    pub exit_ms: Option<u64>,
    /// `Some(None)` is a null, which removes the default.
    pub background_ms: Option<Option<u64>>,
    pub push: Option<bool>,
    pub away_ms: Option<u64>,
}

/// What is wrong with a policy document, as a sentence that names the key and its bounds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InvalidPolicy(pub String);

impl fmt::Display for InvalidPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for InvalidPolicy {}

impl Default for Policy {
    /// Returns the defaults of rules 1.
    fn default() -> Policy {
        let phone = |kind: &str| Platform {
            kind: kind.to_owned(),
            heartbeat_ms: 120_000,
            timeout_ms: 400_000,
            closed_ms: 0,
            exit_ms: 0,
            background_ms: None,
            push: true,
            away_ms: SEVEN_DAYS_MS,
        };
        let desktop = |kind: &str| Platform {
            push: false,
            away_ms: TEN_MINUTES_MS,
            ..phone(kind)
        };
        let web = Platform {
            heartbeat_ms: 20_000,
            timeout_ms: 60_000,
            ..desktop("web")
        };
        let mini_program = Platform {
            exit_ms: 5_000,
            background_ms: Some(30_000),
            ..web.clone()
        };
        let platforms = [
            ("android", phone("android")),
            ("iphone", phone("iphone")),
            ("ipad", phone("ipad")),
            ("mac", phone("mac")),
            ("windows", desktop("windows")),
            ("linux", desktop("linux")),
            ("web", web),
            ("mini_program", mini_program),
        ];
        Policy {
            login: LoginMode::default(),
            exclusive: None,
            instances: DEFAULT_INSTANCES.iter().map(|kind| (kind.to_string(), 1)).collect(),
            kicked_max: DEFAULT_KICKED_MAX,
            custom_keep_ms: 0,
            outage: Outage::default(),
            platforms: platforms
                .into_iter()
                .map(|(name, platform)| (name.to_owned(), platform))
                .collect(),
        }
    }
}

fn invalid<T>(what: impl Into<String>) -> Result<T, InvalidPolicy> {
    Err(InvalidPolicy(what.into()))
}

/// Returns the value if it is within bounds. `key` is formatted only if it is not.
fn bounded(key: impl fmt::Display, value: u64, least: u64, most: u64) -> Result<u64, InvalidPolicy> {
    if (least..=most).contains(&value) {
        Ok(value)
    } else {
        invalid(format!("policy: {key} must be {least} to {most}, not {value}"))
    }
}

impl PolicyDocument {
    /// Checks all bounds and completes missing fields with the defaults.
    pub fn complete(self) -> Result<Policy, InvalidPolicy> {
        let mut policy = Policy::default();
        if let Some(rules) = self.rules
            && rules != RULES
        {
            return invalid(format!(
                "policy: rules must be {RULES}, the only version there is, not {rules}"
            ));
        }
        if let Some(login) = self.login {
            policy.login = login;
        }
        policy.exclusive = self.exclusive;
        for (kind, limit) in self.instances {
            let (least, most) = bounds::INSTANCES;
            bounded(format_args!("instances.{kind}"), limit, least, most)?;
            policy.instances.insert(kind, limit);
        }
        if let Some(kicked_max) = self.kicked_max {
            policy.kicked_max = bounded("kicked_max", kicked_max, 0, bounds::KICKED_MAX)?;
        }
        if let Some(custom_keep_ms) = self.custom_keep_ms {
            policy.custom_keep_ms = bounded("custom_keep_ms", custom_keep_ms, 0, bounds::MS_MAX)?;
        }
        if let Some(silence_ms) = self.silence_ms {
            if silence_ms != 0 {
                bounded(
                    "outage.silence_ms, unless it is 0,",
                    silence_ms,
                    bounds::SILENCE_MS_MIN,
                    bounds::MS_MAX,
                )?;
            }
            policy.outage.silence_ms = silence_ms;
        }
        if let Some(grace_ms) = self.grace_ms {
            policy.outage.grace_ms = bounded("outage.grace_ms", grace_ms, 0, bounds::MS_MAX)?;
        }
        for (name, document) in self.platforms {
            let base = policy.platforms.remove(&name);
            let platform = document.complete(&name, base)?;
            policy.platforms.insert(name, platform);
        }
        if policy.platforms.len() > bounds::PLATFORMS_MAX {
            return invalid(format!(
                "policy: {} platforms with the default ones, at most {} are allowed",
                policy.platforms.len(),
                bounds::PLATFORMS_MAX
            ));
        }
        Ok(policy)
    }
}

impl PlatformDocument {
    fn complete(self, name: &str, base: Option<Platform>) -> Result<Platform, InvalidPolicy> {
        let (least, most) = super::event::bounds::PLATFORM_BYTES;
        if !(least..=most).contains(&name.len()) {
            return invalid(format!(
                "policy: the name of a platform must have {least} to {most} bytes: {name:?}"
            ));
        }
        let base = match (base, self.timeout_ms, self.push) {
            (Some(base), _, _) => base,
            (None, Some(timeout_ms), Some(push)) => Platform {
                kind: name.to_owned(),
                heartbeat_ms: timeout_ms / 3,
                timeout_ms,
                closed_ms: 0,
                exit_ms: 0,
                background_ms: None,
                push,
                away_ms: if push { SEVEN_DAYS_MS } else { TEN_MINUTES_MS },
            },
            (None, _, _) => {
                return invalid(format!(
                    "policy: platforms.{name} is new, so it must give timeout_ms and push"
                ));
            }
        };
        let platform = Platform {
            kind: self.kind.unwrap_or(base.kind),
            heartbeat_ms: self.heartbeat_ms.unwrap_or(base.heartbeat_ms),
            timeout_ms: self.timeout_ms.unwrap_or(base.timeout_ms),
            closed_ms: self.closed_ms.unwrap_or(base.closed_ms),
            exit_ms: self.exit_ms.unwrap_or(base.exit_ms),
            background_ms: self.background_ms.unwrap_or(base.background_ms),
            push: self.push.unwrap_or(base.push),
            away_ms: self.away_ms.unwrap_or(base.away_ms),
        };
        let least = |key: &str, value: u64, least: u64| {
            bounded(format_args!("platforms.{name}.{key}"), value, least, bounds::MS_MAX)
        };
        least("timeout_ms", platform.timeout_ms, bounds::TIMEOUT_MS_MIN)?;
        least("heartbeat_ms", platform.heartbeat_ms, 0)?;
        least("closed_ms", platform.closed_ms, 0)?;
        least("exit_ms", platform.exit_ms, 0)?;
        least("away_ms", platform.away_ms, 0)?;
        if let Some(background_ms) = platform.background_ms {
            least("background_ms", background_ms, bounds::BACKGROUND_MS_MIN)?;
        }
        Ok(platform)
    }
}

impl Policy {
    /// Returns on how many devices of a kind a user can be logged in at most.
    pub fn instances_of(&self, kind: &str) -> u64 {
        self.instances.get(kind).copied().unwrap_or(1)
    }

    /// Returns a platform of `other` that this policy lacks, if there is one.
    pub fn lacks(&self, other: &Policy) -> Option<String> {
        other
            .platforms
            .keys()
            .find(|name| !self.platforms.contains_key(*name))
            .cloned()
    }
}
