//! What was read of the events: a checksum of each record.
//!
//! The checksum is XXH3 (64 bits): it finds what a broker or a disk did, and is no proof against somebody who means harm.

use super::Record;
use crate::presence::Offset;
use twox_hash::XxHash3_64;

/// A record that was read, to be recognized when it is read again.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LastRecord {
    pub offset: Offset,
    pub ts: u64,
    /// Of key and value, and of the header that says how to read the value.
    pub checksum: u64,
}

impl LastRecord {
    pub fn of(record: &Record) -> LastRecord {
        // Each part begins with what the parts before came to, so that no byte can go from one to another unseen.
        let part = |seed: u64, bytes: Option<&[u8]>| match bytes {
            None => XxHash3_64::oneshot_with_seed(seed, &[]),
            Some(bytes) => XxHash3_64::oneshot_with_seed(seed ^ (bytes.len() as u64 + 1), bytes),
        };
        let key = part(0, record.key.as_deref());
        let value = part(key, (!record.is_null).then_some(&record.value));
        LastRecord {
            offset: record.offset,
            ts: record.ts,
            checksum: match &record.schema_header {
                None => value,
                header => part(value, header.as_deref()),
            },
        }
    }
}
