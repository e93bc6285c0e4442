//! What our topics must be like, as pure functions from what was seen of a cluster to what is wrong with it.
//!
//! [`plan`] says which topics are to be made, [`judge`] what of those that are there breaks the rules ([`Severity::Refused`]:
//! the engine does not start on them) or only endangers something ([`Severity::Warning`]). Each finding carries the
//! command that fixes it. Seeing and making is in [`super::admin`].

use super::settings::Connection;
use crate::presence::event::bounds;
use crate::topics::{OutputTopic, Topic};
use std::collections::BTreeMap;
use std::fmt;

/// Partitions of new topics where nobody says how many. `docs/kafka.md` says how to choose.
pub const DEFAULT_PARTITIONS: u32 = 64;
pub const PARTITIONS_MAX: u32 = 1_024;
/// How long events and outputs are kept where nobody says how long: 30 days.
pub const DEFAULT_RETENTION_HOURS: u64 = 720;

/// The most that a valid event takes: a `heartbeats` with as many beats as allowed, all text as long as allowed. A
/// length takes 2 bytes, a number 10.
const EVENT_BYTES_MAX: usize = 1_024
    + bounds::BEATS.1 * (2 + bounds::USER_BYTES.1 + 2 + bounds::PLATFORM_BYTES.1 + 2 + bounds::DEVICE_BYTES.1 + 10);

/// `max.message.bytes` of the events, and the most that a publisher of ours sends at once.
pub const EVENTS_MESSAGE_BYTES: usize = 4 << 20;
const _: () = assert!(EVENT_BYTES_MAX < EVENTS_MESSAGE_BYTES);

/// `max.message.bytes` of an output whose records have a whole event in them ([`TopicSpec::bytes_beside_event`]). Twice that of
/// the events: a publisher may have packed a record better than it is packed when it is written again.
///
/// [`TopicSpec::bytes_beside_event`]: crate::topics::TopicSpec::bytes_beside_event
pub const EVENT_COPIES_MESSAGE_BYTES: usize = 2 * EVENTS_MESSAGE_BYTES;

/// `max.message.bytes` of the other outputs. The largest record of them, a change with 32 instances on each of 32 platforms, is
/// far smaller; what counts is that librdkafka's batches, of up to a million bytes, fit.
pub const OUTPUT_MESSAGE_BYTES: usize = 2 << 20;

/// Kafka's own default, and the least with which those batches fit.
const OUTPUT_MESSAGE_BYTES_MIN: u64 = 1_048_588;

/// `max.message.bytes` of events that were moved to other topics: the batch of an event, which has at least 61 bytes beside its
/// records, is larger, and the mark that ends a transaction, which has 78 bytes, is not.
pub(super) const CLOSED_MESSAGE_BYTES: u64 = 80;

/// Who sets the time of a record.
pub(super) const TIMESTAMP_TYPE: &str = "message.timestamp.type";
/// The broker does.
pub(super) const TIMESTAMPS_OF_BROKERS: &str = "LogAppendTime";
/// The writer does: for a log that is being filled with the events of another one.
pub(super) const TIMESTAMPS_GIVEN: &str = "CreateTime";
pub(super) const MESSAGE_BYTES: &str = "max.message.bytes";
pub(super) const RETENTION_MS: &str = "retention.ms";
pub(super) const RETENTION_WITHOUT_END: &str = "-1";

const HOUR_MS: u64 = 3_600_000;
const DAY_MS: i64 = 24 * HOUR_MS as i64;
/// Kafka's default. A group that has been stopped for longer has lost its positions.
const POSITIONS_MINUTES_MIN: i64 = 7 * 24 * 60;
/// The owners' topic is read at every start, so it is compacted soon.
const OWNERS_SEGMENT_MS: &str = "600000";

/// One of our topics.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum ManagedTopic {
    Events,
    Output(OutputTopic),
    /// Mass departures, found in all partitions together.
    Incidents,
    /// Who owns which partition.
    Owners,
}

impl ManagedTopic {
    pub const ALL: [ManagedTopic; 3 + OutputTopic::ALL.len()] = {
        let mut all = [ManagedTopic::Events; 3 + OutputTopic::ALL.len()];
        let mut at = 0;
        while at < OutputTopic::ALL.len() {
            all[1 + at] = ManagedTopic::Output(OutputTopic::ALL[at]);
            at += 1;
        }
        all[1 + at] = ManagedTopic::Incidents;
        all[2 + at] = ManagedTopic::Owners;
        all
    };

    pub fn name(self, connection: &Connection) -> String {
        match self {
            ManagedTopic::Events => connection.topic(Topic::Events),
            ManagedTopic::Output(topic) => connection.output(topic),
            ManagedTopic::Incidents => connection.incidents(),
            ManagedTopic::Owners => connection.owners(),
        }
    }

    /// Whether it has one partition only, because its records are of no partition.
    fn is_of_all(self) -> bool {
        matches!(self, ManagedTopic::Incidents | ManagedTopic::Owners)
    }

    fn is_compacted(self) -> bool {
        match self {
            ManagedTopic::Output(topic) => topic.spec().is_compacted,
            ManagedTopic::Owners => true,
            ManagedTopic::Events | ManagedTopic::Incidents => false,
        }
    }

    fn message_bytes(self) -> usize {
        match self {
            ManagedTopic::Events => EVENTS_MESSAGE_BYTES,
            ManagedTopic::Output(topic) if topic.spec().bytes_beside_event.is_some() => EVENT_COPIES_MESSAGE_BYTES,
            ManagedTopic::Output(_) | ManagedTopic::Incidents | ManagedTopic::Owners => OUTPUT_MESSAGE_BYTES,
        }
    }
}

/// What was seen of a cluster.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct ClusterFacts {
    pub brokers: usize,
    /// Of our topics, those that are there.
    pub topics: BTreeMap<ManagedTopic, TopicFacts>,
    /// Settings of a broker, where we may see them.
    pub broker: BTreeMap<String, String>,
    /// With how many partitions the topics were made, as the owners' topic says.
    pub made_with: Option<u32>,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TopicFacts {
    pub partitions: u32,
    /// Of the partition that has the fewest.
    pub replication: usize,
    /// In force, wherever they come from.
    pub settings: BTreeMap<String, String>,
    /// Whether anything was set for this topic. A topic that a broker made by itself has nothing.
    pub has_own_settings: bool,
}

impl TopicFacts {
    fn text(&self, key: &str) -> &str {
        self.settings.get(key).map_or("", String::as_str)
    }

    fn number(&self, key: &str) -> Option<i64> {
        self.text(key).parse().ok()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    /// It would break the rules: the engine does not start.
    Refused,
    /// It may cost something one day.
    Warning,
}

/// Something that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub weight: Severity,
    /// Its name; several separated by commas.
    pub topic: String,
    /// What is wrong, and what follows from it.
    pub what: String,
    /// A command to type, or where to read on.
    pub fix: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}. To fix it: {}", self.topic, self.what, self.fix)
    }
}

/// A topic to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NewTopic {
    pub name: String,
    pub partitions: u32,
    pub replication: usize,
    pub settings: Vec<(&'static str, String)>,
}

impl NewTopic {
    /// Replaces the value of a setting.
    pub(super) fn set(&mut self, key: &'static str, value: &str) {
        self.settings.retain(|(known, _)| *known != key);
        self.settings.push((key, value.to_owned()));
    }
}

/// What somebody asked for; the rest is ours to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct RequestedTopics {
    pub partitions: Option<u32>,
    pub replication: Option<usize>,
    pub retention_ms: Option<u64>,
}

/// What is to be done for all topics to be there.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TopicPlan {
    pub make: Vec<NewTopic>,
    /// Topics that are there already.
    pub there: Vec<String>,
    /// What was asked for and holds of new topics only, while one that is there has something else.
    pub unchanged: Vec<Finding>,
    /// Of every topic but those of incidents and of owners, which have one.
    pub partitions: u32,
}

/// Why topics cannot be made as asked.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Impossible {
    #[error(
        "{topic} has {is} partitions, and {wanted} are asked for: a user's partition follows from their number, so it is \
         never changed. Ask for {is}, or for none; docs/kafka.md says how to move to another number"
    )]
    OtherNumber { topic: String, is: u32, wanted: u32 },
    #[error(
        "{topic} has {is} partitions, and the topics were made with {made_with}: no topic is made next to it. `rollcall topics \
         check` says what to do"
    )]
    Unequal { topic: String, is: u32, made_with: u32 },
    #[error("partitions must be 1 to {PARTITIONS_MAX}, not {0}")]
    Partitions(u32),
    #[error("a replication of {wanted} needs as many brokers, and there are {brokers}")]
    Replication { wanted: usize, brokers: usize },
}

/// Which topics are to be made. Those that are there are left as they are, whatever [`judge`] finds.
pub fn plan(connection: &Connection, facts: &ClusterFacts, wanted: RequestedTopics) -> Result<TopicPlan, Impossible> {
    let counted = || facts.topics.iter().filter(|(part, _)| !part.is_of_all());
    let first = counted().next();
    let known = facts.made_with.or(first.map(|(_, topic)| topic.partitions));
    let partitions = wanted.partitions.or(known).unwrap_or(DEFAULT_PARTITIONS);
    if !(1..=PARTITIONS_MAX).contains(&partitions) {
        return Err(Impossible::Partitions(partitions));
    }
    if let Some(made_with) = known {
        // First what no number that is asked for could make right.
        if let Some((part, topic)) = counted().find(|(_, topic)| topic.partitions != made_with) {
            return Err(Impossible::Unequal {
                topic: part.name(connection),
                is: topic.partitions,
                made_with,
            });
        }
        if made_with != partitions {
            let topic = first.map_or(ManagedTopic::Events, |(part, _)| *part);
            return Err(Impossible::OtherNumber {
                topic: topic.name(connection),
                is: made_with,
                wanted: partitions,
            });
        }
    }
    let brokers = facts.brokers.max(1);
    let replication = wanted.replication.unwrap_or(brokers.min(3));
    if !(1..=brokers).contains(&replication) {
        return Err(Impossible::Replication {
            wanted: replication,
            brokers,
        });
    }
    let retention_ms = wanted.retention_ms.unwrap_or(DEFAULT_RETENTION_HOURS * HOUR_MS);
    let mut plan = TopicPlan {
        make: Vec::new(),
        there: Vec::new(),
        unchanged: Vec::new(),
        partitions,
    };
    let mut judge = TopicChecker::new(connection);
    for part in ManagedTopic::ALL {
        let name = part.name(connection);
        if let Some(topic) = facts.topics.get(&part) {
            plan.there.push(name);
            judge.unchanged(part, topic, wanted);
        } else {
            plan.make.push(NewTopic {
                name,
                partitions: if part.is_of_all() { 1 } else { partitions },
                replication,
                settings: settings(part, replication, retention_ms),
            });
        }
    }
    plan.unchanged = merged(judge.findings);
    Ok(plan)
}

/// Written out, defaults of Kafka's too: the broker's own may be others.
fn settings(part: ManagedTopic, replication: usize, retention_ms: u64) -> Vec<(&'static str, String)> {
    let mut settings = vec![
        (TIMESTAMP_TYPE, TIMESTAMPS_OF_BROKERS.to_owned()),
        (MESSAGE_BYTES, part.message_bytes().to_string()),
        ("min.insync.replicas", in_sync(replication).to_string()),
        ("unclean.leader.election.enable", "false".to_owned()),
    ];
    if part.is_compacted() {
        settings.push(("cleanup.policy", "compact".to_owned()));
    } else {
        settings.push(("cleanup.policy", "delete".to_owned()));
        settings.push((RETENTION_MS, retention_ms.to_string()));
        settings.push(("retention.bytes", "-1".to_owned()));
    }
    if part == ManagedTopic::Owners {
        settings.push(("segment.ms", OWNERS_SEGMENT_MS.to_owned()));
    }
    settings
}

/// One broker of three may be down, and what is acknowledged is on two.
fn in_sync(replication: usize) -> usize {
    if replication >= 3 { 2 } else { 1 }
}

/// What is wrong, the worst first.
pub fn judge(connection: &Connection, facts: &ClusterFacts) -> Vec<Finding> {
    let mut judge = TopicChecker::new(connection);
    for part in ManagedTopic::ALL {
        match facts.topics.get(&part) {
            Some(topic) => judge.topic(part, topic),
            None => {
                let fix = format!("rollcall topics create {}", connection.flags());
                // Topics that an earlier version made lack that of incidents, and the engine can do without it.
                let is_dispensable = part == ManagedTopic::Incidents && !facts.topics.is_empty();
                let (weight, what) = match is_dispensable {
                    true => (Severity::Warning, "the topic is not there, so no incidents are found"),
                    false => (Severity::Refused, "the topic is not there"),
                };
                judge.found(weight, part, what, fix);
            }
        }
    }
    judge.partitions(facts);
    judge.sizes(facts);
    judge.broker(facts);
    judge.findings.sort_by_key(|finding| finding.weight);
    merged(judge.findings)
}

/// What holds of several topics is said once.
fn merged(found: Vec<Finding>) -> Vec<Finding> {
    let mut findings: Vec<Finding> = Vec::new();
    for finding in found {
        match findings
            .iter_mut()
            .find(|said| said.what == finding.what && said.fix == finding.fix)
        {
            Some(said) => said.topic = format!("{}, {}", said.topic, finding.topic),
            None => findings.push(finding),
        }
    }
    findings
}

struct TopicChecker<'c> {
    connection: &'c Connection,
    findings: Vec<Finding>,
}

impl<'c> TopicChecker<'c> {
    fn new(connection: &'c Connection) -> TopicChecker<'c> {
        TopicChecker {
            connection,
            findings: Vec::new(),
        }
    }

    fn found(&mut self, weight: Severity, part: ManagedTopic, what: impl Into<String>, fix: impl Into<String>) {
        self.findings.push(Finding {
            weight,
            topic: part.name(self.connection),
            what: what.into(),
            fix: fix.into(),
        });
    }

    fn set(&self, part: ManagedTopic, key: &str, value: impl fmt::Display) -> String {
        format!(
            "kafka-configs.sh --bootstrap-server {} --alter --entity-type topics --entity-name {} --add-config {key}={value}",
            self.connection.bootstrap,
            part.name(self.connection)
        )
    }

    fn topic(&mut self, part: ManagedTopic, topic: &TopicFacts) {
        use Severity::{Refused, Warning};
        let by_itself = match topic.has_own_settings {
            true => "",
            false => " (nothing was set for it, so a broker may have made it by itself)",
        };
        if part == ManagedTopic::Events && topic.text(TIMESTAMP_TYPE) != TIMESTAMPS_OF_BROKERS {
            let is_being_filled = topic.text(TIMESTAMP_TYPE) == TIMESTAMPS_GIVEN && topic.has_own_settings;
            let otherwise = match is_being_filled {
                true => {
                    "; or `rollcall reshard` is copying into it: then wait until `rollcall reshard --finish` has ended"
                }
                false => "",
            };
            let what = format!(
                "its records have the publisher's time ({TIMESTAMP_TYPE}={}), but the only clock of the rules is \
                 the broker's{by_itself}{otherwise}",
                topic.text(TIMESTAMP_TYPE)
            );
            self.found(
                Refused,
                part,
                what,
                self.set(part, TIMESTAMP_TYPE, TIMESTAMPS_OF_BROKERS),
            );
        }
        let is_closed = |bytes: i64| (0..=CLOSED_MESSAGE_BYTES as i64).contains(&bytes);
        if part == ManagedTopic::Events && topic.number(MESSAGE_BYTES).is_some_and(is_closed) {
            let what = format!(
                "it takes no events ({MESSAGE_BYTES}={}), since `rollcall reshard --finish` moves or has moved them to topics with \
                 another prefix; use that prefix, or have this one take events again",
                topic.text(MESSAGE_BYTES)
            );
            self.found(Refused, part, what, self.set(part, MESSAGE_BYTES, EVENTS_MESSAGE_BYTES));
        }
        let policy = topic.text("cleanup.policy");
        if part.is_compacted() && policy != "compact" {
            let what = format!("it must keep the last record of every key, and has cleanup.policy={policy}{by_itself}");
            self.found(Refused, part, what, self.set(part, "cleanup.policy", "compact"));
        }
        if !part.is_compacted() && policy != "delete" {
            let what = format!("compaction deletes records that are still needed (cleanup.policy={policy}){by_itself}");
            self.found(Refused, part, what, self.set(part, "cleanup.policy", "delete"));
        }
        if topic.text("unclean.leader.election.enable") == "true" {
            let what = "a replica that is behind may become the leader, and acknowledged records would be lost";
            self.found(
                Warning,
                part,
                what,
                self.set(part, "unclean.leader.election.enable", "false"),
            );
        }
        self.replication(part, topic);
        if !part.is_compacted() {
            self.retention(part, topic);
        }
    }

    fn replication(&mut self, part: ManagedTopic, topic: &TopicFacts) {
        let Some(in_sync) = topic
            .number("min.insync.replicas")
            .and_then(|n| usize::try_from(n).ok())
        else {
            return;
        };
        let replication = topic.replication;
        let wanted = self::in_sync(replication);
        let fix = self.set(part, "min.insync.replicas", wanted);
        if in_sync > replication {
            let what = format!(
                "it has {replication} replicas and asks for {in_sync} in sync (min.insync.replicas), so nothing can be written"
            );
            self.found(Severity::Refused, part, what, fix);
        } else if replication == 1 {
            let what = "it has one replica: if its broker fails, its records are missing until the broker is back";
            let fix = "kafka-reassign-partitions.sh, with a replication of 3 (docs/kafka.md)";
            self.found(Severity::Warning, part, what, fix);
        } else if in_sync < wanted {
            let what = format!(
                "an acknowledged record may be on one broker only (min.insync.replicas={in_sync}), and would be lost with \
                 that broker"
            );
            self.found(Severity::Warning, part, what, fix);
        } else if in_sync == replication {
            let what = format!(
                "it requires {in_sync} of {replication} replicas in sync, so one broker that is down stops all writes"
            );
            self.found(Severity::Warning, part, what, fix);
        }
    }

    /// What was asked for of a topic that is there, which stays as it is.
    fn unchanged(&mut self, part: ManagedTopic, topic: &TopicFacts, wanted: RequestedTopics) {
        if let Some(replication) = wanted.replication.filter(|&asked| asked != topic.replication) {
            let is = topic.replication;
            let what =
                format!("it exists with a replication of {is}, which --replication {replication} does not change");
            let fix = format!("kafka-reassign-partitions.sh, with a replication of {replication} (docs/kafka.md)");
            self.found(Severity::Warning, part, what, fix);
        }
        let asked_ms = wanted.retention_ms.filter(|_| !part.is_compacted());
        if let Some(asked_ms) = asked_ms.filter(|asked_ms| topic.text(RETENTION_MS) != asked_ms.to_string()) {
            let hours = asked_ms / HOUR_MS;
            let is = topic.text(RETENTION_MS);
            let what = format!("it exists with {RETENTION_MS}={is}, which --retention-hours {hours} does not change");
            self.found(Severity::Warning, part, what, self.set(part, RETENTION_MS, asked_ms));
        }
    }

    fn retention(&mut self, part: ManagedTopic, topic: &TopicFacts) {
        let default_ms = DEFAULT_RETENTION_HOURS * HOUR_MS;
        let kept = topic.number("retention.ms").filter(|&ms| ms >= 0);
        if let Some(ms) = kept.filter(|&ms| ms < DAY_MS) {
            let what = format!(
                "records are kept for {} minutes (retention.ms={ms}): a store or a follower that is older cannot catch up",
                ms / 60_000
            );
            self.found(
                Severity::Warning,
                part,
                what,
                self.set(part, "retention.ms", default_ms),
            );
        }
        if let Some(bytes) = topic.number("retention.bytes").filter(|&bytes| bytes >= 0) {
            let what =
                format!("records are dropped beyond {bytes} bytes a partition (retention.bytes), however new they are");
            self.found(Severity::Warning, part, what, self.set(part, "retention.bytes", -1));
        }
    }

    fn partitions(&mut self, facts: &ClusterFacts) {
        let events = ManagedTopic::Events;
        let Some(of_events) = facts.topics.get(&events).map(|topic| topic.partitions) else {
            return;
        };
        let read_on = "it cannot be undone in place; see \"Another number of partitions\" in docs/kafka.md";
        match facts.made_with {
            Some(made_with) if made_with != of_events => {
                let what = format!(
                    "it has {of_events} partitions and was created with {made_with}: users now belong to other partitions \
                     than those that have their state"
                );
                self.found(Severity::Refused, events, what, read_on);
            }
            Some(_) => {}
            None if facts.topics.contains_key(&ManagedTopic::Owners) => {
                let what = "it does not say with how many partitions the topics were created, so a change would not be noticed";
                let fix = format!("rollcall topics create {}", self.connection.flags());
                self.found(Severity::Warning, ManagedTopic::Owners, what, fix);
            }
            None => {}
        }
        let right = facts.made_with.unwrap_or(of_events);
        for (&part, topic) in &facts.topics {
            if part == events {
                continue;
            }
            let wanted = if part.is_of_all() { 1 } else { right };
            if topic.partitions == wanted {
                continue;
            }
            let what = match part {
                ManagedTopic::Owners | ManagedTopic::Incidents => {
                    format!("it has {} partitions, but must have one", topic.partitions)
                }
                ManagedTopic::Events | ManagedTopic::Output(_) => format!(
                    "it has {} partitions, and {} has {of_events}: the outputs of a partition are written to the \
                     partition with the same number",
                    topic.partitions,
                    events.name(self.connection)
                ),
            };
            let name = part.name(self.connection);
            let tool = format!("kafka-topics.sh --bootstrap-server {}", self.connection.bootstrap);
            let fix = if topic.partitions < wanted {
                format!("{tool} --alter --topic {name} --partitions {wanted}")
            } else if part.is_of_all() {
                format!(
                    "{tool} --delete --topic {name}, then rollcall topics create {}",
                    self.connection.flags()
                )
            } else {
                read_on.to_owned()
            };
            self.found(Severity::Refused, part, what, fix);
        }
    }

    fn sizes(&mut self, facts: &ClusterFacts) {
        let bytes = |part: ManagedTopic| {
            let topic = facts.topics.get(&part)?;
            topic.number("max.message.bytes").and_then(|n| u64::try_from(n).ok())
        };
        let events = ManagedTopic::Events;
        let of_events = bytes(events).unwrap_or(EVENTS_MESSAGE_BYTES as u64);
        if of_events < EVENT_BYTES_MAX as u64 {
            let what = format!(
                "the broker takes records of up to {of_events} bytes (max.message.bytes), and a valid event may have \
                 {EVENT_BYTES_MAX}: the largest are refused when they are published"
            );
            self.found(
                Severity::Warning,
                events,
                what,
                self.set(events, "max.message.bytes", EVENTS_MESSAGE_BYTES),
            );
        }
        let outputs = || OutputTopic::ALL.into_iter();
        let copies =
            outputs().filter_map(|topic| Some((ManagedTopic::Output(topic), topic.spec().bytes_beside_event?)));
        for (part, beside) in copies {
            let needed = of_events + beside as u64;
            if let Some(is) = bytes(part).filter(|&is| is < needed) {
                let what = format!(
                    "a malformed event of up to {of_events} bytes and its error would not fit into a record \
                     (max.message.bytes={is}), and its partition would stop"
                );
                let room = (2 * of_events).max(EVENT_COPIES_MESSAGE_BYTES as u64);
                self.found(Severity::Refused, part, what, self.set(part, "max.message.bytes", room));
            }
        }
        let others = outputs().filter(|topic| topic.spec().bytes_beside_event.is_none());
        for part in others.map(ManagedTopic::Output).chain([ManagedTopic::Incidents]) {
            if let Some(is) = bytes(part).filter(|&is| is < OUTPUT_MESSAGE_BYTES_MIN) {
                let what = format!(
                    "the broker takes at most {is} bytes at once (max.message.bytes), and outputs are sent in batches of \
                     up to {OUTPUT_MESSAGE_BYTES_MIN}: a partition would stop"
                );
                self.found(
                    Severity::Refused,
                    part,
                    what,
                    self.set(part, "max.message.bytes", OUTPUT_MESSAGE_BYTES),
                );
            }
        }
    }

    fn broker(&mut self, facts: &ClusterFacts) {
        let minutes = facts
            .broker
            .get("offsets.retention.minutes")
            .and_then(|n| n.parse::<i64>().ok());
        if let Some(minutes) = minutes.filter(|&minutes| minutes < POSITIONS_MINUTES_MIN) {
            self.findings.push(Finding {
                weight: Severity::Warning,
                topic: "the brokers".to_owned(),
                what: format!(
                    "they delete the positions of a group that has been stopped for {minutes} minutes \
                     (offsets.retention.minutes); its partitions would then halt until a start with --adopt-tail"
                ),
                fix: format!("set offsets.retention.minutes={POSITIONS_MINUTES_MIN} or more in server.properties"),
            });
        }
    }
}

#[cfg(test)]
mod tests;
