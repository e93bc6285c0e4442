//! Changes and kicks as `rollcall log` prints them, read back.

use crate::presence::change::{Cause, Change, DeviceChange, Kick, KickReason, KickedDevice, OutputId};
use crate::presence::{Conn, Epoch, LogTime, Offset, Partition, Status};
use serde::Deserialize;

/// A line that is neither a change nor a kick.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error("{0}")]
    Json(#[from] serde_json::Error),
    #[error("`{field}` cannot be {value:?}")]
    Unknown { field: &'static str, value: String },
}

#[derive(Deserialize)]
struct ChangeLine {
    #[serde(rename = "type")]
    kind: String,
    id: String,
    seq: u64,
    user: Box<str>,
    version: u64,
    at: u64,
    logged_at: u64,
    cause: String,
    before: String,
    after: String,
    devices: Vec<DeviceLine>,
    custom_status: Option<Box<str>>,
    evidence: u64,
}

#[derive(Deserialize)]
struct DeviceLine {
    platform: Box<str>,
    device: Box<str>,
    gateway: Box<str>,
    before: String,
    after: String,
}

#[derive(Deserialize)]
struct KickLine {
    #[serde(rename = "type")]
    kind: String,
    id: String,
    gateway: Box<str>,
    epoch: u64,
    conn: u64,
    user: Option<Box<str>>,
    platform: Option<Box<str>>,
    device: Option<Box<str>>,
    reason: String,
    at: u64,
}

/// Reads a line of `rollcall log changes`.
pub fn change(line: &str) -> Result<Change, LineError> {
    let line: ChangeLine = serde_json::from_str(line)?;
    is_type("change", &line.kind)?;
    let devices = line.devices.into_iter().map(|device| {
        Ok(DeviceChange {
            platform: device.platform,
            device: device.device,
            gateway: device.gateway,
            before: status("before", &device.before)?,
            after: status("after", &device.after)?,
        })
    });
    let cause = Cause::ALL.into_iter().find(|cause| cause.name() == line.cause);
    Ok(Change {
        id: id(&line.id)?,
        seq: line.seq,
        user: line.user,
        version: line.version,
        at: LogTime(line.at),
        logged_at: LogTime(line.logged_at),
        cause: cause.ok_or_else(|| unknown("cause", &line.cause))?,
        before: status("before", &line.before)?,
        after: status("after", &line.after)?,
        devices: devices.collect::<Result<_, LineError>>()?,
        custom_status: line.custom_status,
        evidence: Offset(line.evidence),
    })
}

/// Reads a line of `rollcall log kicks`.
pub fn kick(line: &str) -> Result<Kick, LineError> {
    let line: KickLine = serde_json::from_str(line)?;
    is_type("kick", &line.kind)?;
    let reason = KickReason::ALL.into_iter().find(|reason| reason.name() == line.reason);
    let whose = match (line.user, line.platform, line.device) {
        (Some(user), Some(platform), Some(device)) => Some(KickedDevice { user, platform, device }),
        (None, None, None) => None,
        _ => return Err(unknown("user, platform and device", "partly null")),
    };
    Ok(Kick {
        id: id(&line.id)?,
        gateway: line.gateway,
        epoch: Epoch(line.epoch),
        conn: Conn(line.conn),
        whose,
        reason: reason.ok_or_else(|| unknown("reason", &line.reason))?,
        at: LogTime(line.at),
    })
}

fn unknown(field: &'static str, value: &str) -> LineError {
    LineError::Unknown {
        field,
        value: value.to_owned(),
    }
}

fn is_type(expected: &str, found: &str) -> Result<(), LineError> {
    if expected == found {
        Ok(())
    } else {
        Err(unknown("type", found))
    }
}

fn status(field: &'static str, name: &str) -> Result<Status, LineError> {
    let status = Status::ALL.into_iter().find(|status| status.name() == name);
    status.ok_or_else(|| unknown(field, name))
}

fn id(text: &str) -> Result<OutputId, LineError> {
    let mut parts = text.split('-').map(str::parse);
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(Ok(partition)), Some(Ok(offset)), Some(Ok(index)), None) => Ok(OutputId {
            partition: u32::try_from(partition)
                .map(Partition)
                .map_err(|_| unknown("id", text))?,
            offset: Offset(offset),
            index,
        }),
        _ => Err(unknown("id", text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::change::Output;
    use crate::schema::json;

    fn printed(output: Output) -> String {
        let mut line = Vec::new();
        json::output_line(&mut line, &output);
        String::from_utf8(line).expect("UTF-8")
    }

    #[test]
    fn what_is_printed_is_read_as_what_it_was() {
        let id = OutputId {
            partition: Partition(3),
            offset: Offset(17),
            index: 2,
        };
        for cause in Cause::ALL {
            let expected = Change {
                id,
                seq: 9,
                user: "a \"b\" 用".into(),
                version: 4,
                at: LogTime(5),
                logged_at: LogTime(6),
                cause,
                before: Status::Online,
                after: Status::PushOnline,
                devices: vec![DeviceChange {
                    platform: "web".into(),
                    device: "d".into(),
                    gateway: "g".into(),
                    before: Status::Online,
                    after: Status::Offline,
                }],
                custom_status: (cause == Cause::Login).then(|| "busy".into()),
                evidence: Offset(8),
            };
            assert_eq!(
                change(&printed(Output::Change(expected.clone()))).expect("read"),
                expected
            );
        }
        for reason in KickReason::ALL {
            let whose = (reason != KickReason::Identify).then(|| KickedDevice {
                user: "u".into(),
                platform: "web".into(),
                device: "d".into(),
            });
            let expected = Kick {
                id,
                gateway: "g".into(),
                epoch: Epoch(1),
                conn: Conn(2),
                whose,
                reason,
                at: LogTime(3),
            };
            assert_eq!(kick(&printed(Output::Kick(expected.clone()))).expect("read"), expected);
        }
    }

    #[test]
    fn what_is_no_change_is_refused_with_what_is_wrong() {
        for (line, wrong) in [
            ("{}", "missing field"),
            ("nothing", "expected"),
            (
                r#"{"type":"kick","id":"0-1-0","gateway":"g","epoch":1,"conn":1,"user":null,"platform":null,"device":null,"reason":"x","at":1}"#,
                "invalid type: null",
            ),
        ] {
            let error = change(line).expect_err(line).to_string();
            assert!(error.contains(wrong), "{error}");
        }
        let line = r#"{"type":"kick","id":"0-1","gateway":"g","epoch":1,"conn":1,"user":null,"platform":null,"device":null,"reason":"identify","at":1}"#;
        assert_eq!(kick(line).expect_err("no id").to_string(), "`id` cannot be \"0-1\"");
    }
}
