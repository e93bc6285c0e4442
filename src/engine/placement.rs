//! Events become records: which partitions an event concerns, and in which form it goes there.

use super::Engine;
use crate::log::NewRecord;
use crate::presence::Partition;
use crate::presence::event::{Beat, Event};
use crate::schema::partitioner::partition_of;

/// A record, and where it belongs.
pub type Placed = (Partition, NewRecord);

impl Engine {
    /// Adds the records of an event: one where it is about one user (true), else one a partition that it concerns.
    pub fn place(&self, event: Event<'_>, records: &mut Vec<Placed>) -> bool {
        let partitions = self.log().partitions();
        let encode = |event: &Event<'_>| {
            let mut value = Vec::with_capacity(128);
            self.schemas.encode_event(event, &mut value);
            value
        };
        if let Some(user) = event.user() {
            let record = NewRecord {
                key: Some(user.as_bytes().to_vec()),
                value: encode(&event),
            };
            records.push((partition_of(user, partitions), record));
            return true;
        }
        if let Event::Heartbeats { gateway, epoch, beats } = event {
            let mut parts: Vec<Vec<Beat<'_>>> = vec![Vec::new(); partitions as usize];
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
                    let value = encode(&part);
                    records.push((partition, NewRecord { key: None, value }));
                }
            }
            return false;
        }
        let value = encode(&event);
        for partition in (0..partitions).map(Partition) {
            let value = value.clone();
            records.push((partition, NewRecord { key: None, value }));
        }
        false
    }
}
