//! Settings of the Tencent-compatible routes, and texts that are shown to nobody.

use super::{Flags, Invalid, within};
use anyhow::{Context as _, bail};
use clap::ValueEnum;
use serde::Deserialize;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

/// A key or a token. It cannot be printed: its debugging form hides it, and it has no other.
#[derive(Deserialize, Clone, PartialEq, Eq)]
pub struct Credential(String);

impl Credential {
    pub fn new(text: impl Into<String>) -> Credential {
        Credential(text.into())
    }

    /// The text itself, for whatever signs or compares with it.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// The first line of a file, without the spaces around it; an error if that is empty.
    pub fn read(path: &Path, what: &str) -> anyhow::Result<Credential> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read the {what} {}", path.display()))?;
        let line = text.lines().next().unwrap_or_default().trim();
        if line.is_empty() {
            bail!(
                "the first line of {} is empty, where the {what} should be",
                path.display()
            );
        }
        Ok(Credential::new(line))
    }
}

impl FromStr for Credential {
    type Err = std::convert::Infallible;
    fn from_str(text: &str) -> Result<Credential, Self::Err> {
        Ok(Credential::new(text))
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// What is answered about users who were never seen.
#[derive(ValueEnum, Deserialize, Clone, Copy, PartialEq, Eq, Default, Debug)]
#[serde(rename_all = "lowercase")]
pub enum TimUnknown {
    /// They are in `ErrorList` with 70107, as accounts that were never imported.
    #[default]
    Error,
    /// They are offline, as accounts that were imported and never used.
    Offline,
}

/// The Tencent-compatible routes: which app they are, and whose signatures they take.
#[derive(Clone, Debug)]
pub struct Tim {
    /// The SDKAppID.
    pub app: u64,
    pub key: Credential,
    /// Who may call; at least one.
    pub admins: Vec<String>,
    pub unknown: TimUnknown,
}

const APP_MAX: u64 = u32::MAX as u64;
/// Tencent's own have 64.
const KEY_BYTES_MIN: usize = 16;

impl Tim {
    /// What flags and file say together; none where the routes are not asked for.
    pub(super) fn of(flags: &Flags, file: &Flags) -> anyhow::Result<Option<Tim>> {
        let both = || Invalid::new("tim_key", "cannot be combined with --tim-key-file: give one of the two");
        let admins = flags.tim_admins.as_ref().or(file.tim_admins.as_ref());
        let unknown = flags.tim_unknown.or(file.tim_unknown);
        let key = match (&flags.tim_key, &flags.tim_key_file, &file.tim_key, &file.tim_key_file) {
            (Some(_), Some(_), ..) => bail!(both()),
            (Some(key), ..) | (None, None, Some(key), None) => Some(key.clone()),
            (None, Some(path), ..) | (None, None, None, Some(path)) => Some(Credential::read(path, "TIM key")?),
            (None, None, Some(_), Some(_)) => bail!(both()),
            (None, None, None, None) => None,
        };
        let Some(app) = flags.tim_app.or(file.tim_app) else {
            for (name, given) in [
                ("tim_key", key.is_some()),
                ("tim_admins", admins.is_some()),
                ("tim_unknown", unknown.is_some()),
            ] {
                if given {
                    bail!(Invalid::new(name, "requires --tim-app, the SDKAppID that clients send"));
                }
            }
            return Ok(None);
        };
        let app = within("tim_app", Some(app), 1, 1, APP_MAX)?;
        let Some(key) = key else {
            bail!(Invalid::new(
                "tim_app",
                "requires the app's secret key: give --tim-key-file, or ROLLCALL_TIM_KEY in the environment"
            ));
        };
        if key.reveal().len() < KEY_BYTES_MIN {
            bail!(Invalid::new(
                "tim_key",
                format!(
                    "must have at least {KEY_BYTES_MIN} bytes, not {}: a shorter one can be guessed, and a client that has it \
                     signs as an administrator",
                    key.reveal().len()
                )
            ));
        }
        let admins = admins.cloned().unwrap_or_else(|| vec!["administrator".to_owned()]);
        if admins.is_empty() || admins.iter().any(String::is_empty) {
            bail!(Invalid::new(
                "tim_admins",
                "must name at least one administrator, and no name may be empty"
            ));
        }
        Ok(Some(Tim {
            app,
            key,
            admins,
            unknown: unknown.unwrap_or_default(),
        }))
    }
}
