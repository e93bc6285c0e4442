//! Assigns partitions to this node: a member of a consumer group that fetches no records.
//!
//! The group rebalances cooperatively: partitions that stay with a node are not interrupted. The callbacks only store
//! the events of the group; the group gets its answer after the workers have released the partitions. The member's
//! partitions are paused, because partition readers read the events, at offsets that the group does not know.
//!
//! A member that hangs ends the process ([`Guarded::irreplaceable`]). Its heartbeats may continue, and then the group
//! would assume that its partitions are processed although no node processes them.

use super::calls::{Guarded, Hung};
use super::client::{quiet, unread, unwritten};
use super::native;
use crate::clock::Clock;
use crate::log::{Error, Group, GroupEvent, GroupOffsets, locked};
use crate::presence::{Offset, Partition};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::types::RDKafkaRespErr;
use rdkafka::{Offset as KafkaOffset, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const POLL_MS: u64 = 20;
/// After so long without a heartbeat the group gives the partitions of a member to others, if nothing else is set.
const SESSION_MS: u64 = 10_000;
/// Time-out for reading and committing the group's offsets.
const ASK: Duration = Duration::from_secs(10);
/// Time-out for leaving the group.
const LEAVE: Duration = Duration::from_secs(5);

/// A member that the brokers assign partitions to has joined after so long. If it has not, they do not know its protocol.
const JOIN_MS: u64 = 15_000;
/// How often a member asks whether it has joined.
const JOINED_EVERY_MS: u64 = 1_000;

/// The client of a member.
type MemberClient = Guarded<BaseConsumer<InboxContext>>;

/// Events of the group that have not been polled yet.
#[derive(Default)]
struct GroupInbox {
    rebalances: Mutex<VecDeque<(bool, Vec<i32>)>>,
    /// No answers will be given any more.
    leaving: AtomicBool,
}

struct InboxContext(Arc<GroupInbox>);

quiet!(InboxContext);

impl ConsumerContext for InboxContext {
    fn rebalance(&self, consumer: &BaseConsumer<Self>, change: RDKafkaRespErr, partitions: &mut TopicPartitionList) {
        if self.0.leaving.load(Ordering::Acquire) {
            // All partitions have already been released; the group only needs the answer.
            if consumer.incremental_unassign(partitions).is_err() {
                let _ = consumer.unassign();
            }
            return;
        }
        let assigned = change == RDKafkaRespErr::RD_KAFKA_RESP_ERR__ASSIGN_PARTITIONS;
        let partitions = partitions.elements().iter().map(|one| one.partition()).collect();
        let mut rebalances = locked(&self.0.rebalances);
        rebalances.push_back((assigned, partitions));
    }

    fn commit_callback(&self, result: KafkaResult<()>, _: &TopicPartitionList) {
        // Not an error for the caller. The next commit includes these offsets, and records after the committed offset
        // are processed again, so nothing is lost.
        if let Err(error) = result {
            tracing::warn!(%error, "the group refused the committed offsets");
        }
    }
}

/// A member of the group; see the module documentation.
pub struct Member {
    topic: Arc<str>,
    client: Arc<MemberClient>,
    inbox: Arc<GroupInbox>,
    /// Revoked partitions that have not been released yet.
    asked: BTreeSet<Partition>,
    /// Released partitions of the same revocation. The group expects a single answer for all of them.
    answered: Vec<Partition>,
    /// With the protocol `consumer`, until it has joined.
    joining: Option<Joining>,
}

/// Returns after how long without a heartbeat the group gives the partitions of a member with these settings to others.
pub(super) fn session_ms(config: &ClientConfig) -> u64 {
    let set = config.get("session.timeout.ms").and_then(|set| set.parse().ok());
    set.unwrap_or(SESSION_MS)
}

/// Whether a member has joined. A broker that does not know the protocol gives no error.
struct Joining {
    clock: Arc<dyn Clock>,
    since_ms: u64,
    asked_ms: u64,
}

impl Member {
    /// Joins the group that the settings name.
    pub fn join(topic: Arc<str>, mut config: ClientConfig, clock: Arc<dyn Clock>) -> Result<Member, Error> {
        // With the protocol `consumer` the broker sets these values, and the client refuses them.
        let is_the_brokers = config.get("group.protocol") == Some("consumer");
        for (key, value) in [
            ("partition.assignment.strategy", "cooperative-sticky"),
            ("session.timeout.ms", &*SESSION_MS.to_string()),
            // A member learns with its next heartbeat that partitions move, so this interval is most of the time that a
            // move takes.
            ("heartbeat.interval.ms", "500"),
        ] {
            if is_the_brokers {
                config.remove(key);
            } else if config.get(key).is_none() {
                config.set(key, value);
            }
        }
        config
            // A setting for producers, which an operator may have set.
            .remove("transaction.timeout.ms")
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            // The member must not fetch anything; limit what it might fetch.
            .set("auto.offset.reset", "latest")
            .set("queued.max.messages.kbytes", "1024");
        let name = config.get("client.id").unwrap_or_default().to_owned();
        let inbox = Arc::new(GroupInbox::default());
        let consumer: BaseConsumer<InboxContext> = config
            .create_with_context(InboxContext(inbox.clone()))
            .map_err(|error| Error::Open(format!("a member of the group cannot be created: {error}").into()))?;
        let client = Guarded::irreplaceable(name, consumer);
        let wanted = topic.clone();
        let subscribed = client.call("rd_kafka_subscribe", Duration::ZERO, move |consumer| {
            consumer.subscribe(&[&wanted])
        });
        subscribed
            .map_err(Hung::unread)?
            .map_err(|error| Error::Open(format!("the group cannot be joined: {error}").into()))?;
        Ok(Member {
            topic,
            client,
            inbox,
            asked: BTreeSet::new(),
            answered: Vec::new(),
            joining: is_the_brokers.then(|| Joining {
                since_ms: clock.monotonic_ms(),
                asked_ms: 0,
                clock,
            }),
        })
    }

    /// Returns an error if the member should have joined the group long ago.
    fn check_joined(&mut self) -> Result<(), Error> {
        let Some(joining) = &mut self.joining else {
            return Ok(());
        };
        let now_ms = joining.clock.monotonic_ms();
        if now_ms >= joining.asked_ms + JOINED_EVERY_MS {
            joining.asked_ms = now_ms;
            let ask = |consumer: &BaseConsumer<_>| native::generation(consumer);
            let generation = self.client.call("rd_kafka_consumer_group_metadata", ASK, ask);
            if generation.map_err(Hung::unread)?.is_some() {
                self.joining = None;
                return Ok(());
            }
        }
        let waited_ms = now_ms - joining.since_ms;
        if waited_ms < JOIN_MS {
            return Ok(());
        }
        let text = format!(
            "this node has not been let into the group for {} s. Its setting group.protocol=consumer needs Apache Kafka 4.0 or \
             later: without this setting it joins with older brokers as well; otherwise see whether the brokers can be reached",
            waited_ms / 1_000
        );
        Err(Error::Open(text.into()))
    }

    /// Returns access to the group's offsets, for a reader that stores no position of its own.
    pub fn offsets(&self) -> Offsets {
        Offsets {
            topic: self.topic.clone(),
            client: self.client.clone(),
        }
    }

    fn list(&self, partitions: impl IntoIterator<Item = Partition>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            // Start at the end. Without an offset, the client would ask for the group's offsets, which a member does
            // not use.
            let _ = list.add_partition_offset(&self.topic, partition.0 as i32, KafkaOffset::End);
        }
        list
    }
}

/// The offsets that a group stores in Kafka: for each partition the next record that is not processed yet. May be used
/// on any thread.
#[derive(Clone)]
pub struct Offsets {
    topic: Arc<str>,
    client: Arc<MemberClient>,
}

impl Offsets {
    /// Returns the committed offset of each partition that has one. Blocks until the group's coordinator answers.
    pub fn committed(&self, partitions: &[Partition]) -> Result<BTreeMap<Partition, Offset>, Error> {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(&self.topic, partition.0 as i32);
        }
        let what = "the group's offsets";
        let ask = move |consumer: &BaseConsumer<_>| consumer.committed_offsets(list, ASK);
        let committed = self.client.call("rd_kafka_committed", ASK, ask);
        let committed = committed.map_err(Hung::unread)?.map_err(|error| unread(what, &error))?;
        let mut offsets = BTreeMap::new();
        for one in committed.elements() {
            one.error().map_err(|error| unread(what, &error))?;
            if let KafkaOffset::Offset(offset) = one.offset() {
                offsets.insert(Partition(one.partition() as u32), Offset(offset.max(0) as u64));
            }
        }
        Ok(offsets)
    }
}

impl GroupOffsets for Offsets {
    fn commit(&self, next: &BTreeMap<Partition, Offset>, wait: bool) -> Result<(), Error> {
        let mut list = TopicPartitionList::new();
        for (partition, offset) in next {
            // Fails for offsets of 2^63 or more, which no topic reaches.
            let _ = list.add_partition_offset(&self.topic, partition.0 as i32, KafkaOffset::Offset(offset.0 as i64));
        }
        if list.count() == 0 {
            return Ok(());
        }
        let mode = if wait { CommitMode::Sync } else { CommitMode::Async };
        let commit = move |consumer: &BaseConsumer<_>| consumer.commit(&list, mode);
        // A commit that waits has no time-out of its own.
        let committed = self.client.call("rd_kafka_commit", ASK, commit);
        let committed = committed.map_err(Hung::unwritten)?;
        committed.map_err(|error| unwritten("the group's offsets", &error))
    }
}

/// Answers the group however the member ends. Closing the client waits for every answer, and after this nothing else
/// can give one.
impl Drop for Member {
    fn drop(&mut self) {
        self.inbox.leaving.store(true, Ordering::Release);
        // Earlier events still need an answer. From here on the callback answers the group by itself.
        let rebalances = std::mem::take(&mut *locked(&self.inbox.rebalances));
        let mut owed: BTreeSet<Partition> = std::mem::take(&mut self.asked);
        owed.extend(std::mem::take(&mut self.answered));
        let mut taken = Vec::new();
        for (assigned, partitions) in rebalances {
            let partitions = partitions.iter().map(|one| Partition((*one).max(0) as u32));
            match assigned {
                true => taken.push(self.list(partitions)),
                false => owed.extend(partitions),
            }
        }
        let owed = (!owed.is_empty()).then(|| self.list(owed));
        // An error means that there was nothing to answer.
        let _ = self
            .client
            .call("rd_kafka_incremental_unassign", LEAVE, move |consumer| {
                for list in &taken {
                    let _ = consumer.incremental_assign(list);
                }
                owed.map(|list| consumer.incremental_unassign(&list))
            });
    }
}

impl Group for Member {
    fn poll(&mut self) -> Result<Option<GroupEvent>, Error> {
        let failed = self.client.call("rd_kafka_consumer_poll", Duration::ZERO, |consumer| {
            match consumer.poll(Duration::ZERO) {
                // A record that was fetched before the partition was paused. A partition reader also reads it.
                None | Some(Ok(_)) => None,
                Some(Err(error)) => Some(error),
            }
        });
        let failed = failed.map_err(Hung::unread)?;
        let next = locked(&self.inbox.rebalances).pop_front();
        let Some((assigned, partitions)) = next else {
            return match failed {
                Some(error) if !matches!(error, KafkaError::PartitionEOF(_)) => Err(unread("the group", &error)),
                _ => self.check_joined().map(|()| None),
            };
        };
        let partitions: Vec<Partition> = partitions.iter().map(|one| Partition((*one).max(0) as u32)).collect();
        if assigned {
            let list = self.list(partitions.iter().copied());
            let take = move |consumer: &BaseConsumer<_>| {
                consumer.incremental_assign(&list)?;
                consumer.pause(&list)
            };
            let taken = self.client.call("rd_kafka_incremental_assign", Duration::ZERO, take);
            let taken = taken.map_err(Hung::unread)?;
            taken.map_err(|error| unread("the assignment of the group", &error))?;
            return Ok(Some(GroupEvent::Assigned(partitions)));
        }
        self.asked.extend(partitions.iter().copied());
        let is_lost = |consumer: &BaseConsumer<_>| consumer.assignment_lost();
        let is_lost = self.client.call("rd_kafka_assignment_lost", Duration::ZERO, is_lost);
        Ok(Some(match is_lost.map_err(Hung::unread)? {
            true => GroupEvent::Lost(partitions),
            false => GroupEvent::Revoked(partitions),
        }))
    }

    fn poll_every_ms(&self) -> Option<u64> {
        Some(POLL_MS)
    }

    fn let_go(&mut self, partitions: &[Partition]) {
        for partition in partitions {
            if self.asked.remove(partition) {
                self.answered.push(*partition);
            }
        }
        if self.asked.is_empty() && !self.answered.is_empty() {
            let answered = std::mem::take(&mut self.answered);
            let list = self.list(answered);
            let unassign = move |consumer: &BaseConsumer<_>| consumer.incremental_unassign(&list);
            let unassigned = self
                .client
                .call("rd_kafka_incremental_unassign", Duration::ZERO, unassign);
            if let Ok(Err(error)) = unassigned {
                // The group reassigns them after the session time-out.
                tracing::warn!(%error, "the group was not notified that partitions were released");
            }
        }
    }

    fn leave(&mut self) {
        self.inbox.leaving.store(true, Ordering::Release);
        // Closing the client, which follows, leaves the group.
        let _ = self.client.call("rd_kafka_unsubscribe", LEAVE, |consumer| {
            consumer.unsubscribe();
            let _ = consumer.poll(Duration::from_millis(100));
        });
    }
}
