//! Timers in the order in which they expire, for a time that never goes back.
//!
//! Times are read as digits of four bits. A timer lies in the bucket of the highest digit in which its time differs from
//! the present one. When the present reaches that digit, the bucket is dealt out to those of lower digits, so a timer moves
//! a few times and no comparison tree is kept. A heap of a million timers costs some twenty cache misses at each removal;
//! here, every pass over a bucket is sequential.

use super::LogTime;
use super::state::Slot;

/// A bucket holds only the lower half of the times.
const NEAR_BITS: usize = 32;
const DIGIT_BITS: usize = 4;
const DIGITS: usize = 1 << DIGIT_BITS;
const BUCKETS: usize = NEAR_BITS / DIGIT_BITS * DIGITS;
const CHUNK: usize = 128;
/// Empty chunks that are kept for the next timers.
const SPARE_CHUNKS: usize = 64;

type Chunk = Vec<u64>;

pub(super) struct Timers {
    /// The time of the last call of [`Timers::advance`].
    now: u64,
    /// Timers of `now` or earlier.
    ready: Vec<(LogTime, Slot)>,
    /// Later timers whose upper half is that of `now`: by the highest digit in which they differ from it, then by the value of
    /// that digit, so in order of time.
    near: Box<[Bucket; BUCKETS]>,
    /// All others.
    far: Vec<(LogTime, Slot)>,
    /// The earliest of them.
    far_least: Option<LogTime>,
    spare: Vec<Chunk>,
}

/// Timers in chunks, since a vector of all of them would have to double.
struct Bucket {
    /// All but the last are full. An entry is the lower half of the time, then the slot.
    chunks: Vec<Chunk>,
    least: u32,
}

impl Bucket {
    const EMPTY: Bucket = Bucket {
        chunks: Vec::new(),
        least: u32::MAX,
    };
}

/// Returns the bucket of a time that differs from the present in its lower half.
fn bucket_of(low: u32, differing: u32) -> usize {
    let digit = differing.ilog2() as usize / DIGIT_BITS;
    digit * DIGITS + (low >> (digit * DIGIT_BITS)) as usize % DIGITS
}

impl Timers {
    pub fn new() -> Timers {
        Timers {
            now: 0,
            ready: Vec::new(),
            near: Box::new([Bucket::EMPTY; BUCKETS]),
            far: Vec::new(),
            far_least: None,
            spare: Vec::new(),
        }
    }

    pub fn push(&mut self, time: LogTime, slot: Slot) {
        if time.0 <= self.now {
            self.ready.push((time, slot));
            return;
        }
        let differing = time.0 ^ self.now;
        if differing >> NEAR_BITS != 0 {
            self.far.push((time, slot));
            self.far_least = Some(self.far_least.map_or(time, |least| least.min(time)));
            return;
        }
        let low = time.0 as u32;
        let bucket = &mut self.near[bucket_of(low, differing as u32)];
        bucket.least = bucket.least.min(low);
        let entry = u64::from(low) << 32 | u64::from(slot.0);
        match bucket.chunks.last_mut() {
            Some(last) if last.len() < CHUNK => last.push(entry),
            Some(_) | None => {
                let mut chunk = self.spare.pop().unwrap_or_else(|| Vec::with_capacity(CHUNK));
                chunk.push(entry);
                bucket.chunks.push(chunk);
            }
        }
    }

    /// Moves the present on. A time before the last one changes nothing.
    pub fn advance(&mut self, now: LogTime) {
        if now.0 <= self.now {
            return;
        }
        let differing = now.0 ^ self.now;
        let upper = self.now & !u64::from(u32::MAX);
        self.now = now.0;
        // All timers of the lower buckets have expired, those of the last one in part.
        let last = if differing >> NEAR_BITS == 0 {
            bucket_of(now.0 as u32, differing as u32)
        } else {
            BUCKETS - 1
        };
        for number in 0..=last {
            if self.near[number].chunks.is_empty() {
                continue;
            }
            let bucket = std::mem::replace(&mut self.near[number], Bucket::EMPTY);
            for mut chunk in bucket.chunks {
                for entry in chunk.drain(..) {
                    self.push(LogTime(upper | entry >> 32), Slot(entry as u32));
                }
                if self.spare.len() < SPARE_CHUNKS {
                    self.spare.push(chunk);
                }
            }
        }
        if differing >> NEAR_BITS != 0 {
            self.far_least = None;
            for (time, slot) in std::mem::take(&mut self.far) {
                self.push(time, slot);
            }
        }
    }

    /// Returns whether a timer has expired.
    pub fn has_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// Removes the timers that have expired, in arbitrary order.
    pub fn take_ready(&mut self) -> Vec<(LogTime, Slot)> {
        std::mem::take(&mut self.ready)
    }

    /// Removes all timers, in arbitrary order.
    pub fn take_all(&mut self) -> Vec<(LogTime, Slot)> {
        let upper = self.now & !u64::from(u32::MAX);
        let mut all = std::mem::take(&mut self.ready);
        all.append(&mut self.far);
        self.far_least = None;
        for bucket in self.near.iter_mut() {
            for chunk in std::mem::replace(bucket, Bucket::EMPTY).chunks {
                all.extend(
                    chunk
                        .iter()
                        .map(|entry| (LogTime(upper | entry >> 32), Slot(*entry as u32))),
                );
            }
        }
        all
    }

    /// Returns the time of the earliest timer.
    pub fn least(&self) -> Option<LogTime> {
        let ready = || self.ready.iter().map(|(time, _)| *time).min();
        let near = || {
            let bucket = self.near.iter().find(|bucket| !bucket.chunks.is_empty())?;
            Some(LogTime(self.now & !u64::from(u32::MAX) | u64::from(bucket.least)))
        };
        ready().or_else(near).or(self.far_least)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn whatever_is_set_the_timers_that_expire_are_those_of_a_sorted_set() {
        let mut x: u64 = 1;
        let mut draw = |below: u64| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 11) % below
        };
        let mut timers = Timers::new();
        let mut model = BTreeSet::new();
        let mut now = 0;
        for slot in 0..200_000 {
            let span = 1 << draw(44);
            let time = LogTime((now + draw(span)).saturating_sub(draw(3)));
            timers.push(time, Slot(slot));
            model.insert((time, slot));
            if draw(4) == 0 {
                let most = if draw(500) == 0 { 44 } else { 16 };
                let span = 1 << draw(most);
                now += draw(span);
                timers.advance(LogTime(now));
                let mut expired: Vec<_> = timers.take_ready().iter().map(|(time, slot)| (*time, slot.0)).collect();
                expired.sort_unstable();
                let later = model.split_off(&(LogTime(now + 1), 0));
                assert!(expired.iter().eq(&std::mem::replace(&mut model, later)));
            }
            assert_eq!(timers.least(), model.first().map(|(time, _)| *time));
        }
        let mut rest: Vec<_> = timers.take_all().iter().map(|(time, slot)| (*time, slot.0)).collect();
        rest.sort_unstable();
        assert!(!rest.is_empty() && rest.iter().eq(&model));
        assert_eq!(timers.least(), None);
    }
}
