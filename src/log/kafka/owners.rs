//! Which node owns which partition: a compacted topic with one record for each partition. The owner writes the record
//! when it takes the partition up, in a transaction of the producer that fences the previous owner.
//!
//! A reader of the topic knows which node to ask, also during a rebalance, and needs no other service for it. The topic
//! may be out of date, but not permanently wrong: a node that is asked for a partition it does not own says so.

use super::client::spawn;
use super::partition_reader::PartitionReader;
use super::source::Source;
use crate::clock::{Clock, Deadline};
use crate::failpoint;
use crate::log::{Error, Limit, Owners, Record, locked};
use crate::presence::{Offset, Partition, Revision};
use crate::tasks::End;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use url::Url;

const LIMIT: Limit = Limit {
    records: 1_000,
    bytes: 1 << 20,
};
const POLL: Duration = Duration::from_millis(50);

/// What an owner says about itself.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Debug)]
pub struct Owner {
    /// Where the node answers: the start of a URL, as it was configured.
    pub url: String,
    /// The consumer group of the owner. Only one group may process a topic of events.
    pub group: String,
    /// How many partitions the topics had when the record was written.
    pub partitions: u32,
    /// The newest revision that the node knows. Missing in records of version 0.1.
    #[serde(default = "first_revision")]
    pub revision: u32,
}

fn first_revision() -> u32 {
    Revision::FIRST.0
}

pub fn record(partition: Partition, owner: &Owner) -> (String, String) {
    let value = serde_json::to_string(owner).expect("strings and a number are always JSON");
    (partition.to_string(), value)
}

/// What a node says that stands by. There must be no field `partitions`: that would be taken for the number of partitions that
/// the topics were made with.
#[derive(Serialize, Deserialize)]
struct StandbyNode {
    url: String,
    group: String,
    /// The partitions for which it can answer.
    ready: Vec<u32>,
}

/// What the key of such a record begins with; the node's URL follows. Earlier versions pass over keys that are no numbers.
const NODE: &str = "node:";

/// A node that was not heard of for so long, while others were, stands by no more.
const NODE_GONE_MS: u64 = 15_000;
/// A node that was not heard of for so long is forgotten.
const NODE_FORGOTTEN_MS: u64 = 3_600_000;

/// Returns key and value of the record in which a node says for which partitions it can answer as a standby.
pub fn standby_record(url: &str, group: &str, ready: &[Partition]) -> (String, String) {
    let node = StandbyNode {
        url: url.to_owned(),
        group: group.to_owned(),
        ready: ready.iter().map(|partition| partition.0).collect(),
    };
    let value = serde_json::to_string(&node).expect("strings and numbers are always JSON");
    (format!("{NODE}{url}"), value)
}

/// The owners that are known.
#[derive(Clone, Default)]
pub struct KnownOwners(Arc<Mutex<OwnersTable>>);

#[derive(Default)]
struct OwnersTable {
    owners: BTreeMap<Partition, Owner>,
    /// The group whose nodes are learned; without it, none are.
    group: Option<String>,
    /// The nodes that stand by, by URL.
    nodes: BTreeMap<String, HeardNode>,
    /// URLs that were refused; each is logged once.
    refused: BTreeSet<String>,
}

struct HeardNode {
    /// When its record was read, by the monotonic clock.
    heard_ms: u64,
    ready: Vec<u32>,
}

impl OwnersTable {
    fn standby_nodes(&self) -> impl Iterator<Item = (&String, &HeardNode)> {
        let newest_ms = self.nodes.values().map(|node| node.heard_ms).max().unwrap_or(0);
        let nodes = self.nodes.iter();
        nodes.filter(move |(_, node)| node.heard_ms + NODE_GONE_MS > newest_ms)
    }
}

/// Maximum number of refused URLs that are remembered. After that there are no more warnings, since an operator has
/// seen enough of them.
const REFUSED_MAX: usize = 1_000;

/// Returns whether a URL is that of a node: scheme, host and port, without anything that would send a request
/// elsewhere.
fn is_of_a_node(url: &str) -> bool {
    let Ok(parsed) = Url::parse(url) else { return false };
    let is_bare = matches!(parsed.path(), "" | "/") && parsed.query().is_none() && parsed.fragment().is_none();
    let has_user = !parsed.username().is_empty() || parsed.password().is_some();
    // The path of a request is appended to this text unchanged.
    let is_written_so = !url.contains(['?', '#', '@', '\\']) && !url.ends_with('/');
    matches!(parsed.scheme(), "http" | "https") && parsed.has_host() && is_bare && !has_user && is_written_so
}

impl KnownOwners {
    pub fn all(&self) -> Vec<(Partition, Owner)> {
        locked(&self.0)
            .owners
            .iter()
            .map(|(partition, owner)| (*partition, owner.clone()))
            .collect()
    }

    /// Returns where the nodes answer that stand by.
    pub fn standby_nodes(&self) -> Vec<String> {
        locked(&self.0).standby_nodes().map(|(url, _)| url.clone()).collect()
    }

    /// Without `now_ms` the records may be old: whether the nodes that wrote them still stand by is heard within seconds.
    fn learn(&self, records: &[Record], now_ms: Option<u64>) {
        let mut known = locked(&self.0);
        let OwnersTable {
            owners,
            group,
            nodes,
            refused,
        } = &mut *known;
        for record in records {
            let key = record.key.as_deref().and_then(|key| std::str::from_utf8(key).ok());
            if let Some(url) = key.and_then(|key| key.strip_prefix(NODE)) {
                match (serde_json::from_slice::<StandbyNode>(&record.value), now_ms) {
                    (Ok(node), _) if group.as_ref() != Some(&node.group) => {}
                    (Ok(node), Some(heard_ms)) if node.url == url && is_of_a_node(url) => {
                        let ready = node.ready;
                        nodes.insert(url.to_owned(), HeardNode { heard_ms, ready });
                        nodes.retain(|_, node| node.heard_ms + NODE_FORGOTTEN_MS > heard_ms);
                    }
                    // It has left, another program wrote the record, or the record may be old.
                    (Ok(_) | Err(_), _) => drop(nodes.remove(url)),
                }
                continue;
            }
            let partition = record
                .key
                .as_deref()
                .and_then(|key| std::str::from_utf8(key).ok()?.parse().ok());
            let owner = serde_json::from_slice::<Owner>(&record.value);
            // Ignore records that other programs wrote to the topic.
            let (Some(partition), Ok(owner)) = (partition, owner) else {
                continue;
            };
            if is_of_a_node(&owner.url) {
                owners.insert(Partition(partition), owner);
            } else if refused.len() < REFUSED_MAX && refused.insert(owner.url.clone()) {
                tracing::warn!(
                    partition,
                    url = owner.url,
                    "an owner's record was refused: its URL must be http(s)://HOST:PORT without anything else; check who \
                     may write to the topic"
                );
            }
        }
    }

    fn of_group(group: Option<&str>) -> KnownOwners {
        let table = OwnersTable {
            group: group.map(str::to_owned),
            ..OwnersTable::default()
        };
        KnownOwners(Arc::new(Mutex::new(table)))
    }

    /// Reads the topic to its end, and then continues in a thread until the result and all its clones are dropped. Nodes of
    /// `group` that stand by are learned after the first reading.
    pub fn follow(
        source: &Arc<Source>,
        name: Arc<str>,
        group: Option<&str>,
        wait: Duration,
    ) -> Result<KnownOwners, Error> {
        let (start, end) = source.ask_range(&name, Partition(0))?;
        let owners = KnownOwners::of_group(group);
        let mut partition_reader = PartitionReader::new(source, None, name.clone(), Partition(0), None)?;
        let mut next = Offset(start);
        let mut records = Vec::new();
        let clock = source.clock().clone();
        let waits = clock.clone();
        let mut read = move |owners: &KnownOwners, is_first: bool| -> Result<(bool, Offset), Error> {
            records.clear();
            partition_reader.read(next, LIMIT, &mut records)?;
            next = partition_reader.next().unwrap_or(next);
            owners.learn(&records, (!is_first).then(|| clock.monotonic_ms()));
            Ok((partition_reader.is_at_end(), next))
        };
        read_to(Offset(end), &name, wait, &*waits, || read(&owners, true))?;
        let weak = Arc::downgrade(&owners.0);
        let follow = move || {
            while let Some(owners) = weak.upgrade() {
                failpoint::reach("owners");
                if let Err(error) = read(&KnownOwners(owners), false) {
                    tracing::debug!(%error, "the owners of partitions cannot be read, retrying");
                    std::thread::sleep(Duration::from_secs(1));
                }
                std::thread::sleep(POLL);
            }
            End::Asked
        };
        spawn("kafka-owners", follow)?;
        Ok(owners)
    }
}

/// Reads until an offset, or until there is no more. `read` says whether it is at the end, and the next offset.
fn read_to(
    end: Offset,
    name: &str,
    within: Duration,
    clock: &dyn Clock,
    mut read: impl FnMut() -> Result<(bool, Offset), Error>,
) -> Result<(), Error> {
    let deadline = Deadline::after(clock, within);
    loop {
        let (at_end, next) = read()?;
        if at_end || next >= end {
            return Ok(());
        }
        if deadline.has_passed(clock) {
            let text = format!(
                "the topic {name} could not be read to its end within {} s",
                within.as_secs()
            );
            return Err(Error::Unanswered(text.into()));
        }
        std::thread::sleep(POLL);
    }
}

impl Owners for KnownOwners {
    fn lowest_revision(&self) -> Option<Revision> {
        let known = locked(&self.0);
        known.owners.values().map(|owner| Revision(owner.revision)).min()
    }

    fn url_of(&self, partition: Partition) -> Option<String> {
        let known = locked(&self.0);
        known.owners.get(&partition).map(|owner| owner.url.clone())
    }

    fn standbys_of(&self, partition: Partition) -> Vec<String> {
        let known = locked(&self.0);
        let nodes = known.standby_nodes();
        let ready = nodes.filter(|(_, node)| node.ready.contains(&partition.0));
        ready.map(|(url, _)| url.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;

    fn record_of(partition: u32, url: &str) -> Record {
        let owner = Owner {
            url: url.to_owned(),
            group: "rollcall".to_owned(),
            partitions: 4,
            revision: Revision::NEWEST.0,
        };
        let (key, value) = record(Partition(partition), &owner);
        Record {
            offset: Offset(0),
            ts: 0,
            key: Some(key.into_bytes()),
            value: value.into_bytes(),
            is_null: false,
            headers: None,
        }
    }

    #[test]
    fn reading_to_the_end_is_given_up_when_its_time_is_over_however_long_each_look_takes() {
        let clock = ManualClock::new(0);
        let mut looks = 0;
        let within = Duration::from_secs(10);
        let given_up = read_to(Offset(5), "owners", within, &clock, || {
            looks += 1;
            clock.advance_ms(4_000);
            Ok((false, Offset(4)))
        });
        assert!(matches!(given_up, Err(Error::Unanswered(_))), "{given_up:?}");
        assert_eq!(looks, 3);
        let reached = read_to(Offset(5), "owners", within, &clock, || Ok((false, Offset(5))));
        assert!(reached.is_ok());
        let at_end = read_to(Offset(5), "owners", within, &clock, || Ok((true, Offset(0))));
        assert!(at_end.is_ok());
    }

    #[test]
    fn records_are_these_for_ever_and_those_of_0_1_are_read() {
        let (owners, url) = (KnownOwners::of_group(Some("rollcall")), "http://10.0.0.7:8080");
        let record = |key: &str, value: &str| Record {
            key: Some(key.as_bytes().to_vec()),
            value: value.as_bytes().to_vec(),
            ..record_of(0, url)
        };
        let read = |partition: u32| {
            let owned = owners.all();
            owned.into_iter().find(|(owned, _)| *owned == Partition(partition))
        };
        let owner = Owner {
            url: url.to_owned(),
            group: "rollcall".to_owned(),
            partitions: 64,
            revision: 7,
        };
        let (key, value) = super::record(Partition(12), &owner);
        let golden = r#"{"url":"http://10.0.0.7:8080","group":"rollcall","partitions":64,"revision":7}"#;
        assert_eq!((&*key, &*value), ("12", golden));
        owners.learn(&[record(&key, golden)], None);
        assert_eq!(read(12), Some((Partition(12), owner.clone())));

        let golden = r#"{"url":"http://10.0.0.7:8080","group":"rollcall","partitions":64}"#;
        owners.learn(&[record("13", golden)], None);
        let revision = Revision::FIRST.0;
        assert_eq!(read(13), Some((Partition(13), Owner { revision, ..owner })));

        let (key, value) = standby_record(url, "rollcall", &[Partition(3), Partition(5)]);
        let golden = r#"{"url":"http://10.0.0.7:8080","group":"rollcall","ready":[3,5]}"#;
        assert_eq!((&*key, &*value), ("node:http://10.0.0.7:8080", golden));
        owners.learn(&[record(&key, golden)], Some(0));
        assert_eq!(owners.standbys_of(Partition(5)), [url]);
    }

    #[test]
    fn a_url_is_taken_only_if_it_is_a_node_and_nothing_more_and_what_was_known_stays() {
        let owners = KnownOwners::default();
        let taken = [
            "http://10.0.0.7:8080",
            "https://node-1.example:443",
            "http://[fd00::7]:8080",
            "http://node-1",
        ];
        for url in taken {
            owners.learn(&[record_of(1, url)], Some(0));
            assert_eq!(owners.url_of(Partition(1)).as_deref(), Some(url));
        }
        let refused = [
            "http://10.0.0.7:8080/latest/meta-data?x=",
            "http://10.0.0.7:8080/",
            "http://10.0.0.7:8080?x=",
            "http://10.0.0.7:8080#",
            "http://user:password@10.0.0.7:8080",
            "http://@10.0.0.7:8080",
            "http://10.0.0.7:8080\\x",
            "file:///etc/passwd",
            "gopher://10.0.0.7:70",
            "10.0.0.7:8080",
            "http://",
            "",
        ];
        for url in refused {
            owners.learn(&[record_of(1, url)], Some(0));
            assert_eq!(owners.url_of(Partition(1)).as_deref(), Some("http://node-1"), "{url}");
        }
    }

    #[test]
    fn a_node_stands_by_until_it_says_otherwise_or_is_not_heard_of_while_others_are() {
        let owners = KnownOwners::of_group(Some("rollcall"));
        let hear_of_group = |group: &str, url: &str, ready: Option<&[u32]>, now_ms| {
            let ready_partitions: Vec<Partition> = ready.unwrap_or_default().iter().copied().map(Partition).collect();
            let (key, value) = standby_record(url, group, &ready_partitions);
            let record = Record {
                key: Some(key.into_bytes()),
                value: ready.map_or(Vec::new(), |_| value.into_bytes()),
                is_null: ready.is_none(),
                ..record_of(0, url)
            };
            owners.learn(&[record], now_ms);
        };
        let hear = |url: &str, ready: Option<&[u32]>, now_ms| hear_of_group("rollcall", url, ready, Some(now_ms));
        let (one, two, three) = ("http://one:8080", "http://two:8080", "http://three:8080");
        hear_of_group("rollcall", one, Some(&[3, 5]), None);
        assert!(owners.standby_nodes().is_empty(), "its record may be old");
        hear(one, Some(&[3, 5]), 1_000);
        hear_of_group("another", "http://four:8080", Some(&[5]), Some(1_000));
        hear_of_group("another", one, Some(&[]), Some(1_000));
        hear(two, Some(&[5]), 2_000);
        hear(three, Some(&[]), 2_000);
        hear("http://two:8080/latest?x=", Some(&[5]), 2_000);
        assert_eq!(owners.standby_nodes(), [one, three, two]);
        assert_eq!(owners.standbys_of(Partition(5)), [one, two]);
        assert_eq!(owners.standbys_of(Partition(3)), [one]);
        assert!(owners.standbys_of(Partition(1)).is_empty());
        assert_eq!(owners.url_of(Partition(5)), None, "who stands by is no owner");
        hear(two, None, 3_000);
        assert_eq!(owners.standbys_of(Partition(5)), [one]);
        hear(three, Some(&[]), 1_000 + NODE_GONE_MS);
        assert_eq!(
            owners.standby_nodes(),
            [three],
            "the first was not heard of for too long"
        );
        assert!(owners.standbys_of(Partition(5)).is_empty());
        hear(three, Some(&[]), 1_000 + NODE_FORGOTTEN_MS);
        let known: Vec<String> = locked(&owners.0).nodes.keys().cloned().collect();
        assert_eq!(known, [three], "the first is forgotten");
    }
}
