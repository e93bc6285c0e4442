//! Where in the change topic the change of a number is.
//!
//! Numbers rise with the offsets. On Kafka they are not the offsets less one, since the marks of transactions have offsets too. Each
//! look at the topic is a fetch, so few are made: where the change would be if offsets and numbers rose evenly in between, and each third
//! time the middle, which bounds how many it can be.

use std::ops::Range;

/// What comes before a change that was looked for, at most: as many changes are read in any case to count from a mark.
pub const NEAR: u64 = 1_000;

/// A point in the topic: what is at or after this offset has this number or a greater one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Point {
    pub offset: u64,
    pub number: u64,
}

/// Returns an offset at or before the change of a number, of which it is at most [`NEAR`] changes away. `first` is where the topic begins,
/// and `end` is where it ends; the number is one of those from the first point's on and before the end's. `look` returns the first change
/// at or after an offset and before another.
pub fn offset_near<E>(
    number: u64,
    first: Point,
    end: Point,
    mut look: impl FnMut(Range<u64>) -> Result<Option<Point>, E>,
) -> Result<u64, E> {
    // The change is at or after `low` and before `high`.
    let (mut low, mut high) = (first, end);
    let mut looks = 0_u64;
    while number.saturating_sub(low.number) > NEAR && high.offset.saturating_sub(low.offset) > 1 {
        looks += 1;
        let middle = low.offset + (high.offset - low.offset) / 2;
        let probe = match looks.is_multiple_of(3) {
            true => middle,
            false => evenly_between(low, high, number - NEAR / 2).clamp(low.offset + 1, high.offset - 1),
        };
        match look(probe..high.offset)? {
            Some(found) if found.number <= number => low = found,
            Some(found) => {
                high = Point {
                    offset: probe,
                    number: found.number,
                }
            }
            None => high.offset = probe,
        }
    }
    Ok(low.offset)
}

/// Returns the offset of a number if both rise evenly between two points.
fn evenly_between(low: Point, high: Point, number: u64) -> u64 {
    let numbers = u128::from(high.number.saturating_sub(low.number).max(1));
    let offsets = u128::from(high.offset - low.offset);
    let after = u128::from(number.saturating_sub(low.number)) * offsets / numbers;
    low.offset.saturating_add(after.try_into().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look like random ones.
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) % limit
        }
    }

    /// Looks a change up in a topic that has the changes of these offsets, in order. Returns how many looks it took.
    fn looks(offsets: &[u64], (first_number, first_offset): (u64, u64), end: u64, number: u64) -> usize {
        let numbered = |at: usize| Point {
            offset: offsets[at],
            number: first_number + at as u64,
        };
        let first = Point {
            offset: first_offset,
            number: first_number,
        };
        let end = Point {
            offset: end,
            number: first_number + offsets.len() as u64,
        };
        let mut looks = 0;
        let near = offset_near(number, first, end, |range| {
            looks += 1;
            let at = offsets.partition_point(|offset| *offset < range.start);
            let found = (at < offsets.len() && offsets[at] < range.end).then(|| numbered(at));
            Ok::<_, ()>(found)
        });
        let near = near.expect("found");
        let wanted = offsets[(number - first_number) as usize];
        assert!(near <= wanted, "{near} is after {wanted}, of change {number}");
        let between = offsets.iter().filter(|offset| (near..wanted).contains(offset)).count();
        assert!(
            between as u64 <= NEAR,
            "{between} changes from {near} to {wanted}, of change {number}"
        );
        looks
    }

    /// Offsets of changes in transactions of up to so many, each with a mark after it, and the end of the topic.
    fn topic(random: &mut Random, changes: usize, most: u64, start: u64) -> (Vec<u64>, u64) {
        let (mut offsets, mut next) = (Vec::new(), start);
        while offsets.len() < changes {
            let count = (1 + random.below(most)).min((changes - offsets.len()) as u64);
            offsets.extend(next..next + count);
            next += count + 1;
        }
        (offsets, next)
    }

    #[test]
    fn a_change_is_found_in_any_topic_and_in_a_few_looks_where_gaps_are_even() {
        let mut random = Random(7);
        for most in [1, 2, 5, 100, 3_000] {
            let start = random.below(1_000_000);
            let (offsets, end) = topic(&mut random, 40_000, most, start);
            let first_number = 1 + random.below(1_000_000);
            let most_looks = (0..300).map(|nth| {
                let at = match nth {
                    0 => 0,
                    1 => offsets.len() as u64 - 1,
                    _ => random.below(offsets.len() as u64),
                };
                looks(&offsets, (first_number, start), end, first_number + at)
            });
            assert!(most_looks.max() <= Some(4), "transactions of up to {most}");
        }
    }

    #[test]
    fn uneven_gaps_cost_no_more_than_halving_three_times_over() {
        let mut random = Random(8);
        for _ in 0..30 {
            // A topic of which one half has gaps a thousand times as large as the other.
            let (mut offsets, end) = topic(&mut random, 20_000, 50, 0);
            let mut next = end;
            for _ in 0..20_000 {
                next += 1 + random.below(2_000);
                offsets.push(next);
            }
            let end = next + random.below(1_000_000_000);
            let at = random.below(offsets.len() as u64);
            let looked = looks(&offsets, (1, 0), end + 1, 1 + at);
            assert!(looked <= 90, "{looked} looks for change {at}");
        }
    }
}
