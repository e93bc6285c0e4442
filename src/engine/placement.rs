//! Events become records: which partitions an event concerns, and in which form it goes there.

use super::Engine;
use crate::log::NewRecord;
use crate::presence::event::{Event, HeartbeatEntry};
use crate::presence::{Partition, Revision};
use crate::schema::partitioner::partition_of;
use thiserror::Error;

/// A record, and where it belongs.
pub type Placed = (Partition, NewRecord);

/// Why an event has no place.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Unplaced {
    #[error(
        "`alive` needs `partition`, the number of the partition whose users are on these connections, from 0 to {}",
        partitions - 1
    )]
    NoPartition { partitions: u32 },
    #[error("`partition` must be a number from 0 to {}, not {partition}", partitions - 1)]
    UnknownPartition { partition: u64, partitions: u32 },
    #[error(
        "this version knows revisions up to {newest}, not {revision}: every partition would halt until a version that \
         knows it runs"
    )]
    UnknownRevision { revision: Revision, newest: Revision },
    #[error(
        "a node of the group knows revisions up to {lowest}, not {revision}: its partitions would halt. Upgrade every node \
         first"
    )]
    NodesBehind { revision: Revision, lowest: Revision },
}

impl Unplaced {
    /// The field of the event that it is about.
    pub fn field(&self) -> &'static str {
        match self {
            Unplaced::NoPartition { .. } | Unplaced::UnknownPartition { .. } => "partition",
            Unplaced::UnknownRevision { .. } | Unplaced::NodesBehind { .. } => "revision",
        }
    }
}

impl Engine {
    /// Adds the records of an event: one where it is about one user (true), else one for each partition that it concerns.
    /// `partition` is where an `alive` belongs, which names no user; other events do not need it.
    pub fn place(&self, event: Event<'_>, partition: Option<u64>, records: &mut Vec<Placed>) -> Result<bool, Unplaced> {
        let partitions = self.log().partitions();
        let newest = self.revision;
        if let Some(revision) = event.unknown_revision(newest) {
            return Err(Unplaced::UnknownRevision { revision, newest });
        }
        let lowest = self.common_revision();
        if let Some(revision) = event.unknown_revision(lowest) {
            return Err(Unplaced::NodesBehind { revision, lowest });
        }
        let encode = |event: &Event<'_>| {
            let mut value = Vec::with_capacity(128);
            self.schemas.encode_event(event, &mut value);
            value
        };
        let record = |key: Option<&str>, value: Vec<u8>| NewRecord {
            key: key.map(|user| user.as_bytes().to_vec()),
            value,
            headers: Vec::new(),
        };
        let of_user = |user: &str, value: Vec<u8>| (partition_of(user, partitions), record(Some(user), value));
        match event {
            Event::Heartbeats { gateway, epoch, beats } => {
                let mut parts: Vec<Vec<HeartbeatEntry<'_>>> = vec![Vec::new(); partitions as usize];
                for beat in beats {
                    let home = partition_of(&beat.who.user, partitions);
                    parts[home.0 as usize].push(beat);
                }
                for (partition, beats) in (0..).map(Partition).zip(parts) {
                    if !beats.is_empty() {
                        let part = Event::Heartbeats {
                            gateway: gateway.clone(),
                            epoch,
                            beats,
                        };
                        records.push((partition, record(None, encode(&part))));
                    }
                }
                Ok(false)
            }
            Event::Alive { .. } => {
                let partition = partition.ok_or(Unplaced::NoPartition { partitions })?;
                let number = u32::try_from(partition).ok().filter(|number| *number < partitions);
                let number = number.ok_or(Unplaced::UnknownPartition { partition, partitions })?;
                records.push((Partition(number), record(None, encode(&event))));
                Ok(true)
            }
            Event::Lease { .. } | Event::Policy { .. } | Event::Revision { .. } | Event::Tick => {
                let value = encode(&event);
                records.extend((0..partitions).map(|partition| (Partition(partition), record(None, value.clone()))));
                Ok(false)
            }
            Event::Connect { ref who, .. }
            | Event::Heartbeat { ref who, .. }
            | Event::Background { ref who, .. }
            | Event::Foreground { ref who, .. }
            | Event::Disconnect { ref who, .. }
            | Event::Logout { ref who, .. } => {
                records.push(of_user(&who.user, encode(&event)));
                Ok(true)
            }
            Event::Kick { ref user, .. } | Event::CustomStatus { ref user, .. } | Event::Forget { ref user } => {
                records.push(of_user(user, encode(&event)));
                Ok(true)
            }
        }
    }
}
