//! Where a gateway's events go and where its kicks come from.
//!
//! [`log`] is for a gateway in the process that owns the log, [`http`] for a gateway in a process of its own. The trait
//! has only what a gateway needs: append, follow kicks and changes from now on, ask who is online. What it returns
//! about other users is what a client may see of them: no device ids, gateways or addresses.

pub mod http;
pub mod log;

use crate::api::answers::User;
use crate::engine::UserRow;
use crate::presence::change::{Change, KickReason};
use crate::presence::event::Event;
use crate::presence::state::UserImage;
use crate::presence::{Conn, Epoch, Offset, Partition};
use crate::traces::{self, Delivery};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use tokio::sync::mpsc;

/// The log or the engine is unreachable at the moment or refuses the request. After a failed append, the events may or
/// may not be in the log.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

pub type Asked<T> = BoxFuture<'static, Result<T, Unavailable>>;

/// How many kicks or changes may wait to be delivered before no more are read.
const AHEAD: usize = 1_024;

pub trait Uplink: Send + Sync {
    /// The number of partitions that users are spread over.
    fn partitions(&self) -> u32;

    /// Appends events to their partitions: an event about a user to the user's partition, `heartbeats` to the partition
    /// of its users (all of one partition), a `lease` to every partition, an `alive` to the partition given with it.
    /// Completes when all are durable.
    fn append_to(&self, events: Vec<(Option<Partition>, Event<'static>)>) -> Asked<()>;

    /// Appends events that determine their partitions themselves.
    fn append(&self, events: Vec<Event<'static>>) -> Asked<()> {
        self.append_to(events.into_iter().map(|event| (None, event)).collect())
    }

    /// Appends an event of a client that has a trace, given as a `traceparent`. An uplink that cannot carry it over appends the
    /// event without.
    fn append_traced(&self, event: Event<'static>, _: &str) -> Asked<()> {
        self.append(vec![event])
    }

    /// Follows the kicks for a gateway's connections, from a moment before this completes. Ends when the receiver is
    /// dropped.
    fn kicks(&self, gateway: &str) -> Asked<mpsc::Receiver<Kick>>;

    /// Follows the changes of all users in the same way.
    fn changes(&self) -> Asked<mpsc::Receiver<UserUpdate>>;

    /// Returns the current state of users, in the order given; `None` for an unknown user.
    fn users(&self, users: Vec<String>) -> Asked<Vec<Option<UserSnapshot>>>;

    /// Returns the platforms of the policy in force.
    fn platforms(&self) -> Asked<BTreeMap<String, Pace>>;

    /// Returns the greatest epoch of a gateway that any partition knows.
    fn epoch(&self, gateway: &str) -> Asked<Option<Epoch>>;
}

/// A command to close one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kick {
    pub epoch: Epoch,
    pub conn: Conn,
    pub reason: KickReason,
}

/// How clients of a platform have to behave, in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    pub heartbeat_ms: u64,
    pub timeout_ms: u64,
}

impl Pace {
    /// Returns how long a gateway may hold a heartbeat back: a sixth of the time-out, and at most half of what is left of it
    /// after a heartbeat's interval, so that no client is offline because its gateway waited.
    pub fn hold_ms(self) -> u64 {
        let left_ms = self.timeout_ms.saturating_sub(self.heartbeat_ms);
        (self.timeout_ms / 6).min(left_ms / 2)
    }
}

/// The part of a user's change that a client may see.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct UserUpdate {
    pub partition: u32,
    pub offset: u64,
    pub user: Box<str>,
    pub version: u64,
    pub at: u64,
    pub cause: Box<str>,
    pub after: Box<str>,
    pub devices: Vec<ChangedDevice>,
    pub custom_status: Option<Box<str>>,
    /// Set if a traced event of this process made the change.
    #[serde(skip)]
    pub delivery: Option<Delivery>,
}

/// The part of a device's changed status that a client may see.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct ChangedDevice {
    pub platform: Box<str>,
    pub before: Box<str>,
    pub after: Box<str>,
}

impl From<Change> for UserUpdate {
    fn from(change: Change) -> UserUpdate {
        let delivery = traces::expected(&change);
        // Clients must not see the fields for operators.
        let Change {
            id,
            seq: _,
            user,
            version,
            at,
            logged_at: _,
            cause,
            before: _,
            after,
            devices,
            custom_status,
            evidence: _,
            rehearsal: _,
        } = change;
        let devices = devices.into_iter().map(|device| ChangedDevice {
            platform: device.platform,
            before: device.before.name().into(),
            after: device.after.name().into(),
        });
        UserUpdate {
            partition: id.partition.0,
            offset: id.offset.0,
            user,
            version,
            at: at.0,
            cause: cause.name().into(),
            after: after.name().into(),
            devices: devices.collect(),
            custom_status,
            delivery,
        }
    }
}

/// The part of a user's state that a client may see.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct UserSnapshot {
    pub user: Box<str>,
    pub version: u64,
    pub status: Box<str>,
    pub since: u64,
    pub custom_status: Option<Box<str>>,
    pub devices: Vec<StandingDevice>,
    /// `None` if no record is folded into it.
    pub as_of: Option<AsOf>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StandingDevice {
    pub platform: Box<str>,
    pub status: Box<str>,
}

/// The last record that is folded into a response.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AsOf {
    pub partition: u32,
    pub offset: u64,
}

impl UserSnapshot {
    /// Copies what a client may see of a user of this process.
    pub fn of(row: UserRow<'_>) -> UserSnapshot {
        // Clients must not see the fields for operators.
        let UserImage {
            user,
            version,
            status,
            since,
            last_seen: _,
            custom_status,
            kept: _,
            kicked_at: _,
            barred: _,
            devices,
        } = row.image;
        let devices = devices.iter().map(|device| StandingDevice {
            platform: device.platform.into(),
            status: device.phase.status().name().into(),
        });
        UserSnapshot {
            user: (*user).into(),
            version: *version,
            status: status.name().into(),
            since: since.0,
            custom_status: custom_status.map(Box::from),
            devices: devices.collect(),
            as_of: row.as_of.offset.map(|offset| AsOf {
                partition: row.as_of.partition.0,
                offset: offset.0,
            }),
        }
    }
}

impl From<User> for UserSnapshot {
    fn from(user: User) -> UserSnapshot {
        let User {
            kind: _,
            user,
            version,
            status,
            since,
            last_seen: _,
            custom_status,
            kept: _,
            kept_until: _,
            kicked_at: _,
            barred: _,
            devices,
            as_of,
        } = user;
        let devices = devices.into_iter().map(|device| StandingDevice {
            platform: device.platform.into(),
            status: device.status.into(),
        });
        UserSnapshot {
            user: user.into(),
            version,
            status: status.into(),
            since,
            custom_status: custom_status.map(Box::from),
            devices: devices.collect(),
            as_of: as_of.offset.map(|offset| AsOf {
                partition: as_of.partition,
                offset,
            }),
        }
    }
}

/// The fields of a kick's JSON that the gateway needs.
#[derive(Deserialize)]
struct KickLine {
    epoch: u64,
    conn: u64,
    #[serde(deserialize_with = "reason")]
    reason: KickReason,
}

fn reason<'de, D: Deserializer<'de>>(deserializer: D) -> Result<KickReason, D::Error> {
    let name = String::deserialize(deserializer)?;
    let known = KickReason::ALL.into_iter().find(|reason| reason.name() == name);
    known.ok_or_else(|| serde::de::Error::custom(format!("{name:?} is not a kick reason")))
}

impl From<KickLine> for Kick {
    fn from(line: KickLine) -> Kick {
        Kick {
            epoch: Epoch(line.epoch),
            conn: Conn(line.conn),
            reason: line.reason,
        }
    }
}

/// The next offset of each partition that is followed.
type Cursor = Vec<(Partition, Offset)>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::FoldedUpTo;
    use crate::presence::state::{DeviceImage, Phase};
    use crate::presence::{KickedBy, LogTime, Status};
    use crate::schema::json;

    #[test]
    fn a_client_sees_the_same_of_a_user_with_a_gateway_in_the_engine_and_with_one_apart() {
        let image = UserImage {
            user: "alice",
            version: 7,
            status: Status::Offline,
            since: LogTime(1),
            last_seen: LogTime(2),
            custom_status: Some("busy"),
            kept: None,
            kicked_at: Some(LogTime(1)),
            barred: true,
            devices: vec![DeviceImage {
                platform: "web",
                device: "d",
                gateway: "g",
                epoch: Epoch(1),
                conn: Conn(2),
                since: LogTime(1),
                phase: Phase::Kicked {
                    by: KickedBy::Admin,
                    until: LogTime(9),
                },
                deadline: LogTime(9),
            }],
        };
        let as_of = FoldedUpTo {
            partition: Partition(4),
            offset: Some(Offset(5)),
            time: Some(LogTime(6)),
            is_standby: false,
        };
        let here = UserSnapshot::of(UserRow {
            image: &image,
            as_of: &as_of,
        });
        let mut line = Vec::new();
        json::user_fields(&mut line, &image, as_of.time);
        line.extend_from_slice(br#","as_of":{"partition":4,"offset":5,"time":6}}"#);
        let user: User = serde_json::from_slice(&line).expect("a user");
        assert_eq!(here, UserSnapshot::from(user));
        assert_eq!((&*here.user, here.version, here.since), ("alice", 7, 1));
        let device = StandingDevice {
            platform: "web".into(),
            status: "offline".into(),
        };
        assert_eq!(here.devices, [device]);
        let offset = 5;
        assert_eq!(here.as_of, Some(AsOf { partition: 4, offset }));
    }
}
