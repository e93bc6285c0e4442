//! What is printed of the oracle and its outputs: the lines of section 8 of `docs/rules.md`.

use super::oracle::Oracle;
use super::oracle_state::{Device, Key, State, User};
use crate::presence::change::{Change, Output, OutputId, Part};
use crate::presence::{Epoch, Status};
use std::collections::BTreeMap;
use std::fmt::Write as _;

impl Oracle {
    /// What the topic of newest states (section 9) must say of everybody. Devices that are offline are left out: they
    /// may go without a change, and so stay in what was written with the last one.
    pub fn newest(&self) -> BTreeMap<&str, String> {
        let newest = |user: &User| {
            let devices = user
                .devices
                .iter()
                .filter(|(_, device)| device.status() != Status::Offline);
            let devices = devices.map(|(key, device)| (&*key.0, &*key.1, device.status()));
            let (status, text) = (user.status(), user.custom_status.as_deref());
            newest_line(user.version, status, user.since, text, devices)
        };
        self.users.iter().map(|(name, user)| (&**name, newest(user))).collect()
    }

    /// The lines of `--state` (section 8): one per user, and one for the partition.
    pub fn state_lines(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.users.iter().map(|(name, user)| self.line(name, user)).collect();
        let gateways: Vec<String> = self
            .gateways
            .iter()
            .map(|(name, gateway)| {
                format!(
                    r#"{{"gateway":{},"epoch":{},"ended":{},"lease_until":{}}}"#,
                    text(name),
                    gateway.epoch.0,
                    gateway.ended,
                    or_null(gateway.active.then_some(gateway.until)),
                )
            })
            .collect();
        lines.push(format!(
            r#"{{"type":"partition","partition":{},"offset":{},"time":{},"seq":{},"grace_until":{},"gateways":[{}]}}"#,
            self.partition,
            or_null(self.offset),
            or_null(self.time),
            self.seq,
            or_null(self.grace_until),
            gateways.join(","),
        ));
        lines
    }

    /// The known gateways by name: epoch, whether it has ended, and when the active lease expires.
    pub fn gateways(&self) -> Vec<(String, Epoch, bool, Option<u64>)> {
        let gateways = self.gateways.iter().map(|(name, gateway)| {
            let lease_until = gateway.active.then_some(gateway.until);
            ((**name).to_owned(), gateway.epoch, gateway.ended, lease_until)
        });
        gateways.collect()
    }

    /// The line of a user, who may not be known.
    pub fn user_line(&self, name: &str) -> Option<String> {
        let (name, user) = self.users.get_key_value(name)?;
        Some(self.line(name, user))
    }

    fn line(&self, name: &str, user: &User) -> String {
        let mut devices = String::with_capacity(512);
        for (key, device) in user.devices.iter() {
            if !devices.is_empty() {
                devices.push(',');
            }
            self.write_device(key, device, &mut devices)
                .expect("writing to a string does not fail");
        }
        format!(
            r#"{{"type":"user","user":{},"version":{},"status":"{}","since":{},"last_seen":{},"custom_status":{}{}{},"devices":[{}]}}"#,
            text(name),
            user.version,
            user.status().name(),
            user.since,
            user.last_seen,
            or_null(user.custom_status.as_deref().map(text)),
            self.kept(user),
            kicked(user),
            devices,
        )
    }

    /// The text that a return would bring back, while it would.
    fn kept(&self, user: &User) -> String {
        let kept = user.kept.as_ref();
        let kept = kept.filter(|(_, until)| self.time.is_some_and(|time| time < *until));
        kept.map_or(String::new(), |(kept, until)| {
            format!(r#","kept":{},"kept_until":{until}"#, text(kept))
        })
    }

    fn write_device(&self, key: &Key, device: &Device, out: &mut String) -> std::fmt::Result {
        let state = match device.state {
            State::Online { .. } => "online",
            State::Away { .. } => "away",
            State::Kicked { .. } => "kicked",
        };
        write!(
            out,
            r#"{{"platform":{},"device":{},"state":"{state}","status":"{}","gateway":{},"epoch":{},"conn":{},"since":{}"#,
            text(&key.0),
            text(&key.1),
            device.status().name(),
            text(&device.link.gateway),
            device.link.epoch.0,
            device.link.conn.0,
            device.since,
        )?;
        if let Some(login) = device.login() {
            write!(
                out,
                r#","login_at":{},"last_seen":{},"evidence":{}"#,
                login.login_at, login.last_seen, login.evidence
            )?;
        }
        write!(out, r#","deadline":{}"#, self.deadline(device).0)?;
        match &device.state {
            State::Online {
                linger: Some((reason, _)),
                ..
            } => write!(out, r#","lingering":"{}""#, reason.name())?,
            State::Online { .. } => {}
            State::Away { lost_by, .. } => write!(out, r#","lost_by":"{}""#, lost_by.name())?,
            State::Kicked { reason, .. } => write!(out, r#","reason":"{}""#, reason.name())?,
        }
        if let Some(client) = device.login().and_then(|login| login.client.as_deref()) {
            write!(out, r#","client":{}"#, text(client))?;
        }
        out.push('}');
        Ok(())
    }
}

fn kicked(user: &User) -> String {
    let barred = user.barred;
    user.kicked_at.map_or(String::new(), |kicked_at| {
        format!(r#","kicked_at":{kicked_at},"barred":{barred}"#)
    })
}

/// A user's newest state as text, to be compared.
pub fn newest_line<'a>(
    version: u64,
    status: Status,
    since: u64,
    custom_status: Option<&str>,
    devices: impl Iterator<Item = (&'a str, &'a str, Status)>,
) -> String {
    let devices: Vec<_> = devices.collect();
    format!("version {version} {status:?} since {since} {custom_status:?} {devices:?}")
}

/// A string as JSON.
pub fn text(value: &str) -> String {
    // A string always has a form in JSON.
    serde_json::to_string(value).unwrap_or_default()
}

fn or_null(value: Option<impl ToString>) -> String {
    value.map_or_else(|| "null".to_owned(), |value| value.to_string())
}

/// An output as the line that `fold` prints (section 8).
pub fn output_line(output: &Output) -> String {
    match output {
        Output::Change(change) => {
            let Change {
                id: of,
                seq,
                user,
                version,
                at,
                logged_at,
                cause,
                before,
                after,
                devices,
                custom_status,
                evidence,
                // These lines are compared as of the first revision only.
                rehearsal: _,
            } = change;
            let devices: Vec<String> = devices
                .iter()
                .map(|device| {
                    format!(
                        r#"{{"platform":{},"device":{},"gateway":{},"before":"{}","after":"{}"}}"#,
                        text(&device.platform),
                        text(&device.device),
                        text(&device.gateway),
                        device.before.name(),
                        device.after.name(),
                    )
                })
                .collect();
            format!(
                r#"{{"type":"change","id":"{}","partition":{},"offset":{},"seq":{},"user":{},"version":{},"at":{},"logged_at":{},"cause":"{}","before":"{}","after":"{}","devices":[{}],"custom_status":{},"evidence":{}}}"#,
                id(of),
                of.partition,
                of.offset,
                seq,
                text(user),
                version,
                at,
                logged_at,
                cause.name(),
                before.name(),
                after.name(),
                devices.join(","),
                or_null(custom_status.as_deref().map(text)),
                evidence,
            )
        }
        Output::Kick(kick) => format!(
            r#"{{"type":"kick","id":"{}","gateway":{},"epoch":{},"conn":{},"user":{},"platform":{},"device":{},"reason":"{}","at":{}}}"#,
            id(&kick.id),
            text(&kick.gateway),
            kick.epoch.0,
            kick.conn.0,
            or_null(kick.whose.as_ref().map(|whose| text(&whose.user))),
            or_null(kick.whose.as_ref().map(|whose| text(&whose.platform))),
            or_null(kick.whose.as_ref().map(|whose| text(&whose.device))),
            kick.reason.name(),
            kick.at,
        ),
        Output::Ignored(ignored) => {
            let part = match ignored.part {
                Part::Whole => String::new(),
                Part::Heartbeat(index) => format!(r#","beat":{index}"#),
                Part::Conn(conn) => format!(r#","conn":{}"#, conn.0),
            };
            format!(
                r#"{{"type":"ignored","offset":{},"reason":"{}"{part}}}"#,
                ignored.offset,
                ignored.reason.name(),
            )
        }
    }
}

fn id(id: &OutputId) -> String {
    format!("{}-{}-{}", id.partition, id.offset, id.index)
}
