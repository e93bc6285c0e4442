//! Every key ever written to a store, in one table. Numbers are never reused.
//!
//! | first byte | rest of the key | value | exists while |
//! |---|---|---|---|
//! | 1 | | layout, applied position, partition, counts ([`super::image`]) | always, from the first commit on |
//! | 2 | user id | slot and user ([`super::image`]) | the user has a device online |
//! | 3 | user id | next deadline and user | the user exists without a device online |
//! | 4 | time, 8 bytes big-endian; user id | nothing | the user has a key of 3 whose next deadline is that time |
//! | 5 | number of the block, 4 bytes big-endian | heartbeat times of 256 slots ([`super::beats`]) | a user of one of the slots has a device online |
//! | 6 | | which changes the index has ([`super::index`]) | there is an index |
//! | 7 | segment of the change, 4 bytes big-endian; length of the user id, 1 byte; user id; number of the change within the segment, 3 bytes big-endian | the change, as in the change topic | the index has the change |
//! | 8 | number of a change, 8 bytes big-endian | its times, and the counts after it ([`super::index`]) | the index has the change; of every 4,096th one |
//!
//! Users with a device online (2) are all read at start. The others (3) are read when an event names them or a deadline
//! is due, so the two are kept apart. Heartbeats change only 5. A row of 4 may be early, never late: the user's
//! deadline says the exact time. 6 to 8 are no state: they follow from the change topic, and a store is whole without them.

use crate::presence::LogTime;

pub const META: &[u8] = &[1];
pub const ONLINE: u8 = 2;
pub const AWAY: u8 = 3;
pub const DUE: u8 = 4;
pub const BEATS: u8 = 5;
pub const INDEX: &[u8] = &[6];
pub const CHANGES: u8 = 7;
pub const MARKS: u8 = 8;

/// How many changes share a segment of the index.
pub const CHANGES_PER_SEGMENT: u64 = 1 << 20;

/// How many slots share one block of heartbeat times.
pub const SLOTS_PER_BLOCK: u32 = 256;

pub fn online(user: &str) -> Vec<u8> {
    prefixed(ONLINE, user.as_bytes())
}

pub fn away(user: &str) -> Vec<u8> {
    prefixed(AWAY, user.as_bytes())
}

pub fn due(time: LogTime, user: &str) -> Vec<u8> {
    let mut key = prefixed(DUE, &time.0.to_be_bytes());
    key.extend_from_slice(user.as_bytes());
    key
}

/// Returns the time and the user of a key that [`due`] made.
pub fn read_due(key: &[u8]) -> Option<(LogTime, &str)> {
    let (time, user) = key.strip_prefix(&[DUE])?.split_first_chunk::<8>()?;
    Some((LogTime(u64::from_be_bytes(*time)), std::str::from_utf8(user).ok()?))
}

pub fn beats(block: u32) -> Vec<u8> {
    prefixed(BEATS, &block.to_be_bytes())
}

/// Returns the beginning of the keys of a user's changes in a segment.
pub fn changes_of(segment: u32, user: &str) -> Vec<u8> {
    let mut key = segment_start(segment);
    // An id has at most 128 bytes.
    key.push(user.len() as u8);
    key.extend_from_slice(user.as_bytes());
    key
}

pub fn change(number: u64, user: &str) -> Vec<u8> {
    let mut key = changes_of(segment_of(number), user);
    let within = (number % CHANGES_PER_SEGMENT) as u32;
    key.extend_from_slice(&within.to_be_bytes()[1..]);
    key
}

/// Returns the number of the change that a key of [`change`] ends with.
pub fn read_change(key: &[u8]) -> Option<u64> {
    let (segment, rest) = key.strip_prefix(&[CHANGES])?.split_first_chunk::<4>()?;
    let [high, middle, low] = *rest.last_chunk::<3>()?;
    let within = u32::from_be_bytes([0, high, middle, low]);
    Some(u64::from(u32::from_be_bytes(*segment)) * CHANGES_PER_SEGMENT + u64::from(within))
}

pub fn segment_of(number: u64) -> u32 {
    (number / CHANGES_PER_SEGMENT) as u32
}

/// Returns the key before all changes of a segment.
pub fn segment_start(segment: u32) -> Vec<u8> {
    prefixed(CHANGES, &segment.to_be_bytes())
}

pub fn mark(number: u64) -> Vec<u8> {
    prefixed(MARKS, &number.to_be_bytes())
}

fn prefixed(prefix: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + rest.len());
    key.push(prefix);
    key.extend_from_slice(rest);
    key
}
