//! Every key the embedded log ever writes. Numbers are big-endian, so that keys sort as numbers do.
//!
//! | column family | key | value |
//! |---|---|---|
//! | the name of a topic | partition u32, first offset u64 | a block of records ([`super::block`]) |
//! | `default` | `layout` | u32: the number of this table, or [`LAYOUT_UNFINISHED`] |
//! | `default` | `partitions` | u32: how many partitions the log has, for ever |
//! | `default` | `start`, topic u8 ([`Topic::number`]), partition u32 | u64: the oldest offset kept; absent while that is 0 |
//! | `default` | `incident`, offset u64 | a record of the topic of incidents: time u64, length of its key u32, key, value |
//! | `default` | `read-for-incidents` | how far was read to find incidents: the number of partitions u32, of each the next offset u64, the finder's note |
//! | `default` | `position`, partition u32 | [`crate::log::Position::to_bytes`] of the last commit |
//!
//! A column family for each topic, since they are written, read and dropped at rates of their own: the tombstones and
//! compactions of one are not in the way of another. None for each partition: every one has a memtable, and every
//! memtable holds on to the write-ahead log until it is flushed.

use crate::presence::Partition;
use crate::topics::Topic;

/// The number of the layout in this file. A change of any key or value here gets the next one.
pub(super) const LAYOUT: u32 = 1;

/// In place of the layout's number while the events of another log are copied into this one: no version takes it for a log.
pub(super) const LAYOUT_UNFINISHED: u32 = u32::MAX;

/// RocksDB's column family that is always there.
pub(super) const META: &str = "default";

pub(super) const META_LAYOUT: &[u8] = b"layout";
pub(super) const META_PARTITIONS: &[u8] = b"partitions";

pub(super) const INCIDENT: &[u8] = b"incident";
pub(super) const INCIDENT_POSITION: &[u8] = b"read-for-incidents";

pub(super) fn incident(offset: u64) -> Vec<u8> {
    let mut key = INCIDENT.to_vec();
    key.extend_from_slice(&offset.to_be_bytes());
    key
}

pub(super) fn start(topic: Topic, partition: Partition) -> Vec<u8> {
    let mut key = b"start".to_vec();
    key.push(topic.number());
    key.extend_from_slice(&partition.0.to_be_bytes());
    key
}

pub(super) fn position(partition: Partition) -> Vec<u8> {
    let mut key = b"position".to_vec();
    key.extend_from_slice(&partition.0.to_be_bytes());
    key
}

pub(super) fn block(partition: Partition, first: u64) -> [u8; 12] {
    let mut key = [0; 12];
    key[..4].copy_from_slice(&partition.0.to_be_bytes());
    key[4..].copy_from_slice(&first.to_be_bytes());
    key
}

/// The first offset of a block, from its key.
pub(super) fn first_of(key: &[u8]) -> Option<u64> {
    let first: [u8; 8] = key.get(4..)?.try_into().ok()?;
    Some(u64::from_be_bytes(first))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_these_bytes_for_ever() {
        let of = Partition(0x0102_0304);
        assert_eq!(start(Topic::Kicks, of), b"start\x02\x01\x02\x03\x04");
        assert_eq!(position(of), b"position\x01\x02\x03\x04");
        assert_eq!(incident(5), b"incident\0\0\0\0\0\0\0\x05");
        assert_eq!(INCIDENT_POSITION, b"read-for-incidents");
        assert_eq!(block(of, 5), *b"\x01\x02\x03\x04\0\0\0\0\0\0\0\x05");
        assert_eq!(first_of(&block(of, u64::MAX - 3)), Some(u64::MAX - 3));
    }
}
