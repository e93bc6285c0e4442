//! Every key ever written to a store, in one table. Numbers are never reused.
//!
//! | first byte | rest of the key | value | exists while |
//! |---|---|---|---|
//! | 1 | | layout, applied position, partition, counts ([`super::image`]) | always, from the first commit on |
//! | 2 | user id | slot and user ([`super::image`]) | the user has a device online |
//! | 3 | user id | next deadline and user | the user exists without a device online |
//! | 4 | time, 8 bytes big-endian; user id | nothing | the user has a key of 3 whose next deadline is that time |
//! | 5 | number of the block, 4 bytes big-endian | heartbeat times of 256 slots ([`super::beats`]) | a user of one of the slots has a device online |
//!
//! Users with a device online (2) are all read at start. The others (3) are read when an event names them or a deadline
//! is due, so the two are kept apart. Heartbeats change only 5. A row of 4 may be early, never late: the user's
//! deadline says the exact time.

use crate::presence::LogTime;

pub const META: &[u8] = &[1];
pub const ONLINE: u8 = 2;
pub const AWAY: u8 = 3;
pub const DUE: u8 = 4;
pub const BEATS: u8 = 5;

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

fn prefixed(prefix: u8, rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + rest.len());
    key.push(prefix);
    key.extend_from_slice(rest);
    key
}
