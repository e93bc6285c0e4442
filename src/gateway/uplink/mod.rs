//! Where a gateway's events go and its kicks come from.
//!
//! [`log`] is for a gateway in the process that owns the log, [`http`] for one of its own beside it. The trait is as
//! narrow as a gateway's duties: append, follow kicks and changes from now on, ask who is online. What it brings of
//! other users is what a client may see of them, and no more: no device ids, gateways or addresses.

pub mod http;
pub mod log;

use crate::presence::change::{Change, KickReason};
use crate::presence::event::Event;
use crate::presence::{Conn, Epoch, Offset, Partition};
use futures_util::future::BoxFuture;
use serde::{Deserialize, Deserializer, Serialize};
use std::collections::BTreeMap;
use tokio::sync::mpsc;

/// The log or the engine cannot be reached at the moment, or does not take what it is given. Of an append, what it
/// would have written may or may not be in the log.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct Unavailable(pub String);

pub type Asked<T> = BoxFuture<'static, Result<T, Unavailable>>;

/// How many kicks or changes may wait to be looked at before no more are read.
const AHEAD: usize = 1_024;

pub trait Uplink: Send + Sync {
    /// How many partitions users are spread over.
    fn partitions(&self) -> u32;

    /// Appends events, each where it belongs: one about a user to the user's partition, a `heartbeats` to that of its
    /// users, who are all of one partition, a `lease` to every one, an `alive` to the partition that is given with it.
    /// Done when all are durable.
    fn append_to(&self, events: Vec<(Option<Partition>, Event<'static>)>) -> Asked<()>;

    /// The same for events that say themselves where they belong.
    fn append(&self, events: Vec<Event<'static>>) -> Asked<()> {
        self.append_to(events.into_iter().map(|event| (None, event)).collect())
    }

    /// The kicks for the connections of a gateway from now on. Now is before this is answered. Ends with its receiver.
    fn kicks(&self, gateway: &str) -> Asked<mpsc::Receiver<Kick>>;

    /// Everybody's changes from now on, likewise.
    fn changes(&self) -> Asked<mpsc::Receiver<UserUpdate>>;

    /// Users as they stand, in the order asked; none for who is not known.
    fn users(&self, users: Vec<String>) -> Asked<Vec<Option<UserSnapshot>>>;

    /// The platforms of the policy in force.
    fn platforms(&self) -> Asked<BTreeMap<String, Pace>>;

    /// The greatest epoch of a gateway that any partition knows.
    fn epoch(&self, gateway: &str) -> Asked<Option<Epoch>>;
}

/// An order to close one connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Kick {
    pub epoch: Epoch,
    pub conn: Conn,
    pub reason: KickReason,
}

/// How clients of a platform are to behave, in milliseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pace {
    pub heartbeat_ms: u64,
    pub timeout_ms: u64,
}

/// What a client is told of a change of somebody.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct UserUpdate {
    pub partition: u32,
    pub offset: u64,
    pub user: Box<str>,
    pub version: u64,
    pub at: u64,
    pub cause: Box<str>,
    pub after: Box<str>,
    pub devices: Vec<ToldDevice>,
    pub custom_status: Option<Box<str>>,
}

/// A device whose status changed, as far as others are told.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct ToldDevice {
    pub platform: Box<str>,
    pub before: Box<str>,
    pub after: Box<str>,
}

impl From<Change> for UserUpdate {
    fn from(change: Change) -> UserUpdate {
        // A client is not sent what is for operators.
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
        } = change;
        let devices = devices.into_iter().map(|device| ToldDevice {
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
        }
    }
}

/// A user as it stands, as far as others are told.
#[derive(Clone, PartialEq, Eq, Debug, Deserialize)]
pub struct UserSnapshot {
    pub user: Box<str>,
    pub version: u64,
    pub status: Box<str>,
    pub since: u64,
    pub custom_status: Option<Box<str>>,
    pub devices: Vec<StandingDevice>,
    pub as_of: AsOf,
}

#[derive(Clone, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct StandingDevice {
    pub platform: Box<str>,
    pub status: Box<str>,
}

/// The last record that is folded into what was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize)]
pub struct AsOf {
    pub partition: u32,
    pub offset: u64,
}

impl UserSnapshot {
    /// Whether a change is part of what was answered already.
    pub fn covers(&self, told: &UserUpdate) -> bool {
        told.partition == self.as_of.partition && told.offset <= self.as_of.offset
    }
}

/// The gateway's own view of a kick, from its JSON.
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
    known.ok_or_else(|| serde::de::Error::custom(format!("{name:?} is no reason of a kick")))
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

/// The next offset in each partition that is followed.
type Cursor = Vec<(Partition, Offset)>;
