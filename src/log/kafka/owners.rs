//! Who has which partition: a compacted topic with a record a partition, which an owner writes when it takes it up, in a
//! transaction of the producer that fences.
//!
//! Whoever reads the topic knows whom to ask, through any rebalance, and needs no other service for it. What it says may
//! be late, never wrong for good: who is asked and does not have the partition says so.

use super::client::spawn;
use super::tap::{Source, Tap};
use crate::log::{Error, Limit, Record, locked};
use crate::presence::{Offset, Partition};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

const LIMIT: Limit = Limit {
    records: 1_000,
    bytes: 1 << 20,
};
const POLL: Duration = Duration::from_millis(50);

/// What an owner says of itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Owner {
    /// Where it answers: the start of a URL, as it was given.
    pub url: String,
    /// The group that it is a member of: only one may work on a topic of events.
    pub group: String,
    /// How many partitions the topics had then.
    pub partitions: u32,
}

pub fn record(partition: Partition, owner: &Owner) -> (String, String) {
    let value = serde_json::to_string(owner).expect("strings and a number are always JSON");
    (partition.to_string(), value)
}

/// What is known of owners, by partition.
#[derive(Clone, Default)]
pub struct Owners(Arc<Mutex<BTreeMap<Partition, Owner>>>);

impl Owners {
    pub fn of(&self, partition: Partition) -> Option<Owner> {
        locked(&self.0).get(&partition).cloned()
    }

    pub fn all(&self) -> Vec<(Partition, Owner)> {
        locked(&self.0)
            .iter()
            .map(|(partition, owner)| (*partition, owner.clone()))
            .collect()
    }

    fn learn(&self, records: &[Record]) {
        let mut owners = locked(&self.0);
        for record in records {
            let partition = record
                .key
                .as_deref()
                .and_then(|key| std::str::from_utf8(key).ok()?.parse().ok());
            let owner = serde_json::from_slice(&record.value);
            // Somebody else's record in the topic says nothing to us.
            if let (Some(partition), Ok(owner)) = (partition, owner) {
                owners.insert(Partition(partition), owner);
            }
        }
    }

    /// Reads the topic to its end, and goes on reading in a thread for as long as anybody has what it gives.
    pub fn follow(source: &Arc<Source>, name: Arc<str>, wait: Duration) -> Result<Owners, Error> {
        let (start, end) = source.ask_range(&name, Partition(0))?;
        let owners = Owners::default();
        let mut tap = Tap::new(source, None, name.clone(), Partition(0), None)?;
        let mut next = Offset(start);
        let mut records = Vec::new();
        let mut read = move |owners: &Owners| -> Result<(bool, Offset), Error> {
            records.clear();
            tap.read(next, LIMIT, &mut records)?;
            next = tap.next().unwrap_or(next);
            owners.learn(&records);
            Ok((tap.is_at_end(), next))
        };
        let mut polls = (wait.as_millis() / POLL.as_millis()).max(1);
        loop {
            let (at_end, next) = read(&owners)?;
            if at_end || next.0 >= end {
                break;
            }
            polls -= 1;
            if polls == 0 {
                let text = format!(
                    "the topic {name} could not be read to its end within {} s",
                    wait.as_secs()
                );
                return Err(Error::Read(text.into()));
            }
            std::thread::sleep(POLL);
        }
        let weak = Arc::downgrade(&owners.0);
        let follow = move || {
            while let Some(owners) = weak.upgrade() {
                if let Err(error) = read(&Owners(owners)) {
                    tracing::debug!(%error, "who owns what cannot be read; trying again");
                    std::thread::sleep(Duration::from_secs(1));
                }
                std::thread::sleep(POLL);
            }
        };
        spawn("kafka-owners", follow)?;
        Ok(owners)
    }
}
