//! What the server answers, route by route.
//!
//! Three of these are written by hand on the server, since they are most of its work: the answer to published events
//! (`http/ingest`), a user (`http/found`), and the lines of changes and kicks (`schema/json/write`). Tests hold
//! what is written there against the schemas that come from these types. Readers skip fields that they do not know,
//! which a newer server may add.

use super::error::ErrorDetail;
use crate::presence::change::{Cause, Change, DeviceChange, OutputId};
use crate::presence::{LogTime, Offset, Partition, Status};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::borrow::Cow;
use std::collections::BTreeMap;

/// A name out of a list of ours. Readers take any text, since a newer server may have more names.
pub type Name = Cow<'static, str>;

fn is_none<T>(option: &Option<T>) -> bool {
    option.is_none()
}

/// Where an event went, and its outcome if that was waited for.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub struct AppendedPlace {
    #[serde(skip_serializing_if = "is_none")]
    pub partition: Option<u32>,
    #[serde(skip_serializing_if = "is_none")]
    pub offset: Option<u64>,
    /// In place of partition and offset: why the event is not in the log. Only with 503 `partly_appended`.
    #[serde(skip_serializing_if = "is_none")]
    pub error: Option<String>,
    /// With `wait=applied`: `changed`, `accepted`, `ignored`, `malformed` or `unknown`.
    #[serde(skip_serializing_if = "is_none")]
    pub outcome: Option<String>,
    #[serde(skip_serializing_if = "is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "is_none")]
    pub hint: Option<String>,
    /// Of a record of many: how many of them were ignored.
    #[serde(skip_serializing_if = "is_none")]
    pub ignored: Option<u64>,
}

/// The places of one event: one, or one for each partition that it went to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum AppendedPlaces {
    One(AppendedPlace),
    Many(Vec<AppendedPlace>),
}

/// `POST /v1/events`: the places of the events, in the order of the request.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EventsAnswer {
    /// Of 503 `partly_appended` alone.
    #[serde(default, skip_serializing_if = "is_none")]
    pub error: Option<ErrorDetail>,
    pub appended: Vec<AppendedPlaces>,
    /// Fields of the request that no event has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unknown_fields: Vec<String>,
}

/// The last record that is folded into an answer; offset and time are null where no record came.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AsOf {
    pub partition: u32,
    pub offset: Option<u64>,
    pub time: Option<u64>,
    /// A standby of the partition has answered, because its owner did not: the owner may have folded more.
    #[serde(default, skip_serializing_if = "is_none")]
    pub standby: Option<bool>,
}

/// A user as it stands (rules, sections 5 and 8). Times are milliseconds of log time.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct User {
    /// `user`
    #[serde(rename = "type")]
    pub kind: String,
    pub user: String,
    /// How often it has changed.
    pub version: u64,
    /// `online`, `push_online` or `offline`.
    pub status: String,
    pub since: u64,
    pub last_seen: u64,
    pub custom_status: Option<String>,
    /// A custom status that comes back with the link, until `kept_until`.
    #[serde(default, skip_serializing_if = "is_none")]
    pub kept: Option<String>,
    #[serde(default, skip_serializing_if = "is_none")]
    pub kept_until: Option<u64>,
    #[serde(default, skip_serializing_if = "is_none")]
    pub kicked_at: Option<u64>,
    #[serde(default, skip_serializing_if = "is_none")]
    pub barred: Option<bool>,
    pub devices: Vec<UserDevice>,
    pub as_of: AsOf,
}

/// A device of a user.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct UserDevice {
    pub platform: String,
    pub device: String,
    /// `online`, `away` or `kicked`.
    pub state: String,
    /// `online`, `push_online` or `offline`.
    pub status: String,
    pub gateway: String,
    pub epoch: u64,
    pub conn: u64,
    pub since: u64,
    #[serde(default, skip_serializing_if = "is_none")]
    pub login_at: Option<u64>,
    #[serde(default, skip_serializing_if = "is_none")]
    pub last_seen: Option<u64>,
    /// The offset of the last event accepted from it.
    #[serde(default, skip_serializing_if = "is_none")]
    pub evidence: Option<u64>,
    /// When something happens to it by itself.
    pub deadline: u64,
    #[serde(default, skip_serializing_if = "is_none")]
    pub lingering: Option<String>,
    #[serde(default, skip_serializing_if = "is_none")]
    pub lost_by: Option<String>,
    #[serde(default, skip_serializing_if = "is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "is_none")]
    pub client: Option<String>,
}

/// `POST /v1/users/query`: each list in the order asked.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Users")]
pub struct Users<U = User> {
    pub users: Vec<U>,
    #[serde(default)]
    pub unknown: Vec<String>,
    /// Whom nobody could look up at the moment, while a partition moves between nodes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unread: Vec<Unread>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Unread {
    pub user: String,
    pub why: String,
}

/// A change (rules, section 7): the data of an event of `GET /v1/changes`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Change")]
pub struct ChangeData {
    /// `change`
    #[serde(rename = "type")]
    pub kind: String,
    /// Unique, and the same whenever it is read.
    pub id: String,
    pub partition: u32,
    pub offset: u64,
    pub seq: u64,
    pub user: Box<str>,
    pub version: u64,
    pub at: u64,
    pub logged_at: u64,
    pub cause: String,
    pub before: String,
    pub after: String,
    pub devices: Vec<ChangedDevice>,
    pub custom_status: Option<Box<str>>,
    pub evidence: u64,
}

/// A name in a change that this version does not know.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("there is no {what} {name:?}")]
pub struct UnknownName {
    what: &'static str,
    name: String,
}

impl TryFrom<ChangeData> for Change {
    type Error = UnknownName;

    fn try_from(data: ChangeData) -> Result<Change, UnknownName> {
        let ChangeData {
            kind: _,
            id,
            partition,
            offset,
            seq,
            user,
            version,
            at,
            logged_at,
            cause,
            before,
            after,
            devices: changed,
            custom_status,
            evidence,
        } = data;
        let unknown = |what, name: &str| UnknownName {
            what,
            name: name.to_owned(),
        };
        let status = |name: &str| Status::named(name).ok_or_else(|| unknown("status", name));
        let index = id.rsplit('-').next().and_then(|index| index.parse().ok());
        let mut devices = Vec::with_capacity(changed.len());
        for device in changed {
            devices.push(DeviceChange {
                before: status(&device.before)?,
                after: status(&device.after)?,
                platform: device.platform,
                device: device.device,
                gateway: device.gateway,
            });
        }
        Ok(Change {
            id: OutputId {
                partition: Partition(partition),
                offset: Offset(offset),
                index: index.ok_or_else(|| unknown("id", &id))?,
            },
            seq,
            user,
            version,
            at: LogTime(at),
            logged_at: LogTime(logged_at),
            cause: Cause::named(&cause).ok_or_else(|| unknown("cause", &cause))?,
            before: status(&before)?,
            after: status(&after)?,
            devices,
            custom_status,
            evidence: Offset(evidence),
            rehearsal: None,
        })
    }
}

/// A device whose status a change alters.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ChangedDevice {
    pub platform: Box<str>,
    pub device: Box<str>,
    pub gateway: Box<str>,
    pub before: String,
    pub after: String,
}

/// An order to a gateway to close a connection (rules, section 7): the data of an event of `GET /v1/kicks`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "Kick")]
pub struct KickData {
    /// `kick`
    #[serde(rename = "type")]
    pub kind: String,
    pub id: String,
    pub gateway: String,
    pub epoch: u64,
    pub conn: u64,
    /// Null where an `alive` named the connection alone.
    pub user: Option<String>,
    pub platform: Option<String>,
    pub device: Option<String>,
    pub reason: String,
    pub at: u64,
}

/// `GET /v1/users/{user}/changes`: the newest first.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "UserChanges")]
pub struct UserChanges<C = ChangeData> {
    pub changes: Vec<C>,
    /// How many could not be read and are left out.
    #[serde(default, skip_serializing_if = "is_none")]
    pub unreadable: Option<u64>,
}

/// `POST /v1/tickets`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Ticket {
    pub ticket: String,
    pub expires_in_ms: u64,
}

/// `GET /v1/policy`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "PolicyAnswer")]
pub struct PolicyAnswer<P = Policy> {
    /// Completed from the defaults, as partition 0 has it.
    pub policy: P,
    #[serde(default)]
    pub since: Vec<PolicySince>,
}

/// The record that put the policy of a partition in force; null if none has.
#[derive(Clone, Copy, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PolicySince {
    pub partition: u32,
    pub offset: Option<u64>,
}

/// A completed policy (rules, section 4).
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Policy {
    pub rules: u64,
    /// `single`, `dual`, `triple` or `multi`.
    pub login: String,
    pub exclusive: Option<Vec<Vec<String>>>,
    pub instances: BTreeMap<String, u64>,
    pub kicked_max: u64,
    pub custom_keep_ms: u64,
    pub outage: PolicyOutage,
    pub platforms: BTreeMap<String, PolicyPlatform>,
}

#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PolicyOutage {
    pub silence_ms: u64,
    pub grace_ms: u64,
}

/// The rules of one platform; all spans in milliseconds.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PolicyPlatform {
    pub kind: String,
    pub heartbeat_ms: u64,
    pub timeout_ms: u64,
    pub closed_ms: u64,
    pub exit_ms: u64,
    pub background_ms: Option<u64>,
    pub push: bool,
    pub away_ms: u64,
}

/// `GET /v1/gateways`
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Gateways {
    pub gateways: Vec<GatewayState>,
    /// To another node: the partitions that the answer is about.
    #[serde(default, skip_serializing_if = "is_none")]
    pub heard: Option<Vec<u32>>,
}

/// A gateway: its greatest known epoch, whether that has ended, and until when its lease holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GatewayState {
    pub gateway: String,
    pub epoch: u64,
    pub ended: bool,
    pub lease_until: Option<u64>,
}

/// `GET /v1/stats`
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Stats {
    pub users: UserCounts,
    pub devices: DeviceCounts,
    pub partitions: Vec<PartitionStats>,
    /// How many changes were emitted so far.
    #[serde(default)]
    pub changes: u64,
    /// Events and heartbeats without effect, by reason.
    #[serde(default)]
    pub ignored: BTreeMap<String, u64>,
    #[serde(default)]
    pub malformed: Vec<MalformedGroup>,
    /// The clock of the node that answers.
    #[serde(default)]
    pub now: u64,
    #[serde(default)]
    pub version: String,
    #[serde(default)]
    pub commit: String,
    /// The newest revision that every node knows.
    #[serde(default)]
    pub revision: u32,
}

/// How many users there are, all and by status.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct UserCounts {
    pub known: u64,
    pub online: u64,
    pub push_online: u64,
    pub offline: u64,
}

/// How many devices there are by status and platform.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct DeviceCounts {
    pub online: BTreeMap<String, u64>,
    pub push_online: BTreeMap<String, u64>,
}

/// How a partition is doing. One that nobody answers for has no offsets.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct PartitionStats {
    pub partition: u32,
    /// `restoring`, `live`, `held`, `stalled`, `fencing`, `busy`, `waiting`, `moving` or `failed`.
    pub state: String,
    /// The revision of rules and encodings in force.
    #[serde(default, skip_serializing_if = "is_none")]
    pub revision: Option<u32>,
    /// The next offset to come.
    #[serde(default, skip_serializing_if = "is_none")]
    pub log_end: Option<u64>,
    /// The next offset to be committed.
    #[serde(default, skip_serializing_if = "is_none")]
    pub committed: Option<u64>,
    /// The next offset to be folded.
    #[serde(default, skip_serializing_if = "is_none")]
    pub applied: Option<u64>,
    /// Its log time; null where no record came.
    #[serde(default, skip_serializing_if = "is_none", deserialize_with = "given")]
    #[schemars(with = "Option<u64>")]
    pub time: Option<Option<u64>>,
    #[serde(default, skip_serializing_if = "is_none")]
    pub lag: Option<u64>,
    /// How many changes it has given, ever.
    #[serde(default, skip_serializing_if = "is_none")]
    pub changes: Option<u64>,
    /// The address of the node that has it.
    #[serde(default, skip_serializing_if = "is_none")]
    pub owner: Option<String>,
    #[serde(default, skip_serializing_if = "is_none")]
    pub error: Option<String>,
    #[serde(default, skip_serializing_if = "is_none")]
    pub warning: Option<String>,
    /// Set only with `fencing`: since when, by the clock of its node.
    #[serde(default, skip_serializing_if = "is_none")]
    pub since: Option<u64>,
    /// Set with `busy`, and with `fencing` if there are figures: when they were known, by the clock of its node.
    #[serde(default, skip_serializing_if = "is_none")]
    pub known_at: Option<u64>,
}

/// Reads a field that may be null and may be missing, which are not the same.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Malformed records of one reason: how many, and the newest of one partition.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct MalformedGroup {
    pub reason: String,
    pub count: u64,
    pub partition: u32,
    pub offset: u64,
    pub error: String,
}

/// `GET /v1/stats/history`: oldest first.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct History {
    /// Between two samples.
    #[serde(default)]
    pub every_ms: u64,
    /// How many partitions there are.
    #[serde(default)]
    pub partitions: u32,
    pub samples: Vec<Sample>,
}

/// How it was at a moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Sample {
    /// Wall time in milliseconds, a multiple of `every_ms`.
    pub at: u64,
    pub online: u64,
    pub push_online: u64,
    pub offline: u64,
    /// Changes so far, ever; events without effect and malformed records since their partition was taken up.
    pub changes: u64,
    pub ignored: u64,
    pub malformed: u64,
    /// How many partitions are counted.
    pub partitions: u64,
}

/// `GET /v1/incidents`: newest first.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Incidents {
    pub incidents: Vec<Incident>,
    /// Up to this time all that is over was found; null where another node looks, or while nothing is known.
    pub looked_up_to: Option<u64>,
}

/// Many devices that lost their link at once.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Incident {
    /// The same whenever it is found.
    pub id: String,
    /// The version of the rule, and its numbers.
    pub rule: u32,
    pub window_s: u64,
    pub least: u64,
    pub share_percent: u64,
    /// The first and the last departure.
    pub from: u64,
    pub to: u64,
    /// How many times a device lost its link.
    pub departures: u64,
    /// How many different devices those were.
    pub devices: u64,
    /// How many devices were online before.
    pub online_before: u64,
    /// Departures by name.
    pub causes: BTreeMap<String, u64>,
    pub gateways: BTreeMap<String, u64>,
    pub platforms: BTreeMap<String, u64>,
    pub clients: Option<BTreeMap<String, u64>>,
}

/// `GET /v1/edge`: the gateway of this process, if it has one.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Edge {
    pub edge: Option<EdgeAddress>,
}

/// Where clients connect.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EdgeAddress {
    pub url: String,
    /// Whether it asks for a token; else it takes `?user=`.
    pub token: bool,
}

/// `POST /v1/outcomes`: the outcomes of records, in the order asked.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Outcomes {
    pub outcomes: Vec<EventOutcome>,
}

/// The outcome of a record.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EventOutcome {
    /// `changed`, `accepted`, `ignored`, `malformed` or `unknown`.
    pub outcome: String,
    #[serde(default, skip_serializing_if = "is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "is_none")]
    pub hint: Option<String>,
    /// Of a record of many: how many of them were ignored.
    #[serde(default, skip_serializing_if = "is_none")]
    pub ignored: Option<u64>,
}

/// `GET /v1/users/{user}/history`: the user's own intervals, then those of each device, each newest last.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[schemars(rename = "UserHistory")]
pub struct UserHistory<Intervals = Vec<StatusInterval>> {
    pub intervals: Intervals,
}

/// A list whose parts are made while it is written, so that they are never all in memory.
pub struct Written<F>(pub F);

impl<F: Fn() -> I, I: Iterator<Item: Serialize>> Serialize for Written<F> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq((self.0)())
    }
}

/// A stretch of one status. What ends it is null while it still holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct StatusInterval {
    pub user: String,
    /// Null, and so is `device`, for the user's own intervals.
    pub platform: Option<String>,
    pub device: Option<String>,
    pub status: Name,
    pub from: u64,
    pub to: Option<u64>,
    pub cause: Name,
    /// The change that began it.
    pub change: String,
    pub evidence: u64,
    pub end_cause: Option<Name>,
    pub end_change: Option<String>,
    pub end_evidence: Option<u64>,
}

/// `GET /v1/users/{user}/why`: the change that gave a user its status, and the records behind it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Explanation {
    pub user: String,
    pub status: Name,
    pub since: u64,
    /// From the change to its evidence.
    pub steps: Vec<ExplanationStep>,
    /// What will happen by itself unless something comes before.
    pub pending: Vec<ExpectedChange>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum ExplanationStep {
    Change {
        id: String,
        /// Of the record with which the change was found out.
        offset: u64,
        at: u64,
        logged_at: u64,
        cause: Name,
    },
    Deadline {
        /// `heartbeat`, `lease`, `background`, `linger` or `away`.
        kind: Name,
        deadline: u64,
    },
    Event {
        offset: u64,
        ts: u64,
        #[serde(rename = "type")]
        name: Name,
        /// `evidence`, `login` or `lease`.
        role: Name,
    },
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ExpectedChange {
    pub platform: String,
    pub device: String,
    pub deadline: u64,
    /// The cause of the change that it would be.
    pub then: Name,
}

/// `GET /v1/at`: how many users and devices had which status.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PastTotals {
    pub time: u64,
    pub as_known: bool,
    pub users: PastUserCounts,
    pub devices: DeviceCounts,
    /// Partitions whose log time is before `time`: they cannot know yet what holds then.
    pub behind: Vec<u32>,
    /// Between nodes: the partitions that this is of.
    #[serde(default, skip_serializing_if = "is_none")]
    pub heard: Option<Vec<u32>>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PastUserCounts {
    pub online: u64,
    pub push_online: u64,
    pub offline: u64,
}
