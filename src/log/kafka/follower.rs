//! A topic read by a consumer group. Each member has some of the partitions, and the group's offsets in Kafka say where
//! reading continues.
//!
//! For readers outside the engine that have no state except their position. They read only committed records, in the
//! order of their partition, and none is skipped. If the topic no longer has the records from a position on, reading
//! fails, wherever the group began.

use super::group::{Member, Offsets};
use super::owners::KnownOwners;
use super::partition_reader::{PartitionReader, Wake};
use super::settings::Connection;
use super::source::Source;
use crate::clock::Clock;
use crate::log::{Beginning, Error, Follower, Group as _, GroupEvent, GroupOffsets, Limit, PollResult};
use crate::presence::{Offset, Partition};
use crate::topics::Topic;
use crate::traces;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::Duration;

/// Limit of one read.
const LIMIT: Limit = Limit {
    records: 500,
    bytes: 1 << 20,
};
/// Time-out for reading the owners of the partitions.
const OWNERS_WAIT: Duration = Duration::from_secs(10);

/// See the module documentation.
pub struct KafkaFollower {
    topic: Topic,
    name: Arc<str>,
    beginning: Beginning,
    source: Arc<Source>,
    member: Member,
    offsets: Offsets,
    /// Partitions that are assigned and whose first offset is not known yet.
    coming: BTreeSet<Partition>,
    places: BTreeMap<Partition, AssignedPartition>,
    /// The partition to read next.
    turn: Partition,
    wake: SyncSender<()>,
    woken: Receiver<()>,
}

/// An assigned partition.
struct AssignedPartition {
    partition_reader: PartitionReader,
    next: Offset,
    /// The end that was last reported as reached.
    reported: Offset,
}

impl KafkaFollower {
    /// Joins a group, which must not be the engine's own.
    pub fn join(
        connection: &Connection,
        topic: Topic,
        group: &str,
        beginning: Beginning,
        clock: Arc<dyn Clock>,
    ) -> Result<KafkaFollower, Error> {
        let source = Source::asking_apart(connection.client("rollcall-follower"), clock)?;
        let owners = KnownOwners::follow(&source, connection.owners().into(), None, OWNERS_WAIT)?;
        if owners.all().iter().any(|(_, owner)| owner.group == group) {
            let text = format!("the group {group:?} is the engine's own: choose another with --group");
            return Err(Error::Open(text.into()));
        }
        let name: Arc<str> = connection.topic(topic).into();
        let mut config = connection.member("rollcall-follower");
        config.set("group.id", group);
        let member = Member::join(name.clone(), config, source.clock().clone())?;
        let (wake, woken) = sync_channel(1);
        Ok(KafkaFollower {
            topic,
            name,
            beginning,
            source,
            offsets: member.offsets(),
            member,
            coming: BTreeSet::new(),
            places: BTreeMap::new(),
            turn: Partition(0),
            wake,
            woken,
        })
    }

    fn where_they_begin(&self) -> Result<BTreeMap<Partition, Offset>, Error> {
        let coming: Vec<Partition> = self.coming.iter().copied().collect();
        let mut begins = self.offsets.committed(&coming)?;
        for partition in coming {
            if let Entry::Vacant(unknown) = begins.entry(partition) {
                let (first, end) = self.source.ask_range(&self.name, partition)?;
                let begin = match self.beginning {
                    Beginning::Earliest => first,
                    Beginning::Latest => end,
                };
                unknown.insert(Offset(begin));
            }
        }
        Ok(begins)
    }

    fn end(&mut self, partitions: Vec<Partition>, lost: bool) -> PollResult {
        for partition in &partitions {
            self.coming.remove(partition);
            self.places.remove(partition);
        }
        PollResult::Ends { partitions, lost }
    }
}

impl Follower for KafkaFollower {
    fn hear(&mut self) -> Result<Option<PollResult>, Error> {
        match self.member.poll()? {
            Some(GroupEvent::Assigned(partitions)) => self.coming.extend(partitions),
            Some(GroupEvent::Revoked(partitions)) => return Ok(Some(self.end(partitions, false))),
            Some(GroupEvent::Lost(partitions)) => return Ok(Some(self.end(partitions, true))),
            None => {}
        }
        if self.coming.is_empty() {
            return Ok(None);
        }
        let begins = self.where_they_begin()?;
        for (partition, next) in &begins {
            let wake = self.wake.clone();
            let wake: Wake = Box::new(move || {
                // The channel is full, so the reader will check anyway.
                let _ = wake.try_send(());
            });
            let partition_reader = PartitionReader::new(
                &self.source,
                Some(self.topic),
                self.name.clone(),
                *partition,
                Some(wake),
            )?
            .reading_traces(traces::is_on());
            let (next, reported) = (*next, *next);
            self.places.insert(
                *partition,
                AssignedPartition {
                    partition_reader,
                    next,
                    reported,
                },
            );
        }
        self.coming.clear();
        Ok(Some(PollResult::Begins(begins)))
    }

    fn offsets(&self) -> Box<dyn GroupOffsets> {
        Box::new(self.offsets.clone())
    }

    fn let_go(&mut self, partitions: &[Partition]) {
        self.member.let_go(partitions);
    }

    fn read(&mut self) -> Result<Option<PollResult>, Error> {
        let after = self.places.range(self.turn..).map(|(partition, _)| *partition);
        let before = self.places.range(..self.turn).map(|(partition, _)| *partition);
        let turns: Vec<Partition> = after.chain(before).collect();
        for partition in turns {
            let place = self.places.get_mut(&partition).expect("just listed");
            self.turn = Partition(partition.0 + 1);
            let mut records = Vec::new();
            place.partition_reader.read(place.next, LIMIT, &mut records)?;
            if let Some(last) = records.last() {
                place.next = Offset(last.offset.0 + 1);
                return Ok(Some(PollResult::Records(partition, records)));
            }
            if place.partition_reader.is_at_end() && place.partition_reader.end() > place.reported.max(place.next) {
                place.reported = place.partition_reader.end();
                return Ok(Some(PollResult::Reached(partition, place.reported)));
            }
        }
        Ok(None)
    }

    fn wait(&self, most: Duration) {
        // An early or late return does no harm: the caller checks for records itself.
        let _ = self.woken.recv_timeout(most);
    }

    fn leave(mut self: Box<Self>) {
        self.places.clear();
        self.member.leave();
    }
}
