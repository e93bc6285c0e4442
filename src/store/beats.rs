//! Heartbeat times of many users, packed into one value, so that a heartbeat needs no write of its own.
//!
//! A block covers [`super::keys::SLOTS_PER_BLOCK`] slots. For each slot whose user has a device online, it holds the
//! slot's number within the block, the user's `last_seen`, and for each online device `last_seen`, `evidence` and
//! heartbeat deadline. All numbers are varints of the difference to the previous one, most of which take one to three
//! bytes.

use super::image::{Bytes, put_number};
use crate::presence::state::BeatTimes;
use crate::presence::{LogTime, Offset};

/// The heartbeat times of one slot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotBeats {
    /// The slot's number within the block.
    pub place: u32,
    pub user_last_seen: LogTime,
    pub devices: Vec<BeatTimes>,
}

/// Encodes a difference, so that small differences of either sign become small numbers.
fn zigzag(from: u64, to: u64) -> u64 {
    let difference = to.wrapping_sub(from) as i64;
    ((difference << 1) ^ (difference >> 63)) as u64
}

fn unzigzag(from: u64, coded: u64) -> u64 {
    let difference = ((coded >> 1) as i64) ^ -((coded & 1) as i64);
    from.wrapping_add(difference as u64)
}

pub(super) fn put(out: &mut Vec<u8>, slots: &[SlotBeats]) {
    put_number(out, slots.len() as u64);
    let (mut seen, mut evidence) = (0, 0);
    for slot in slots {
        let SlotBeats {
            place,
            user_last_seen,
            devices,
        } = slot;
        put_number(out, (*place).into());
        put_number(out, zigzag(seen, user_last_seen.0));
        seen = user_last_seen.0;
        put_number(out, devices.len() as u64);
        for device in devices {
            let BeatTimes {
                last_seen,
                evidence: at,
                heartbeat_by,
            } = device;
            put_number(out, zigzag(seen, last_seen.0));
            put_number(out, zigzag(evidence, at.0));
            put_number(out, zigzag(last_seen.0, heartbeat_by.0));
            evidence = at.0;
        }
    }
}

pub(super) fn read(bytes: &[u8]) -> Option<Vec<SlotBeats>> {
    let mut bytes = Bytes(bytes);
    let (mut seen, mut evidence) = (0, 0);
    let mut slots = Vec::new();
    for _ in 0..bytes.number()? {
        let place = u32::try_from(bytes.number()?).ok()?;
        seen = unzigzag(seen, bytes.number()?);
        let mut devices = Vec::new();
        for _ in 0..bytes.number()? {
            let last_seen = unzigzag(seen, bytes.number()?);
            evidence = unzigzag(evidence, bytes.number()?);
            devices.push(BeatTimes {
                last_seen: LogTime(last_seen),
                evidence: Offset(evidence),
                heartbeat_by: LogTime(unzigzag(last_seen, bytes.number()?)),
            });
        }
        slots.push(SlotBeats {
            place,
            user_last_seen: LogTime(seen),
            devices,
        });
    }
    Some(slots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_read_as_it_was_written_and_is_small() {
        let slots: Vec<SlotBeats> = (0..256u64)
            .map(|place| SlotBeats {
                place: place as u32,
                user_last_seen: LogTime(1_700_000_000_000 + place * 37 % 1000),
                devices: vec![BeatTimes {
                    last_seen: LogTime(1_700_000_000_000 + place * 37 % 1000),
                    evidence: Offset(900_000_000 + place * 7919 % 100_000),
                    heartbeat_by: LogTime(1_700_000_400_000 + place * 37 % 1000),
                }],
            })
            .collect();
        let mut bytes = Vec::new();
        put(&mut bytes, &slots);
        assert_eq!(read(&bytes), Some(slots));
        assert!(bytes.len() < 256 * 12, "{} bytes", bytes.len());
        for cut in 0..bytes.len() {
            assert_eq!(read(&bytes[..cut]), None);
        }
    }
}
