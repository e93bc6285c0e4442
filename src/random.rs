//! Random numbers from a seed: the same seed gives the same numbers on every machine and in every version.
//!
//! SplitMix64 by Steele, Lea and Flood (2014), which is small, and good enough to choose with. It is written here because
//! simulated worlds, the simulated users of the demo and of the load test are named by their seeds, and a library may change
//! its generators. It is easy to guess, so no secret is made with it.

/// What the state grows by with each number.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A generator, with its state.
#[derive(Clone, Debug)]
pub struct Random(pub u64);

/// Returns the number that belongs to a state.
fn scrambled(state: u64) -> u64 {
    let mut z = state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

impl Random {
    /// Returns one of several generators that do not follow each other.
    pub fn of(seed: u64, which: u64) -> Random {
        Random(seed ^ scrambled(which.wrapping_add(1)))
    }

    /// Returns the next number, of 64 bits.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(STEP);
        scrambled(self.0)
    }

    /// Returns a number from 0 to `limit` − 1; 0 for a limit of 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.number().checked_rem(limit).unwrap_or(0)
    }

    /// Returns a number from `least` to `most` − 1.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least)
    }

    pub fn percent(&mut self, chance: u64) -> bool {
        self.below(100) < chance
    }

    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// Returns one of a list that is not empty.
    pub fn pick<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.index(list.len())]
    }

    /// Returns the place of one of the weights, as often as it weighs.
    pub fn weighted(&mut self, weights: &[u64]) -> usize {
        let mut left = self.below(weights.iter().sum());
        for (place, weight) in weights.iter().enumerate() {
            if left < *weight {
                return place;
            }
            left -= weight;
        }
        0
    }

    /// Returns one of several by weight. The weights are not all 0.
    pub fn choose<T: Copy>(&mut self, weighted: &[(u64, T)]) -> T {
        let weights: Vec<u64> = weighted.iter().map(|(weight, _)| *weight).collect();
        weighted[self.weighted(&weights)].1
    }

    /// Returns some of a list, at least one, in a random order.
    pub fn some_of<T: Clone>(&mut self, list: &[T], most: usize) -> Vec<T> {
        let mut rest = list.to_vec();
        let count = (1 + self.index(most)).min(rest.len());
        (0..count).map(|_| rest.swap_remove(self.index(rest.len()))).collect()
    }

    /// Returns the numbers below `count` in a random order.
    pub fn order(&mut self, count: u32) -> Vec<u32> {
        let mut order: Vec<u32> = (0..count).collect();
        for at in (1..order.len()).rev() {
            order.swap(at, self.index(at + 1));
        }
        order
    }

    /// Returns the time until something happens that has no memory, at most ten times the mean.
    pub fn wait(&mut self, mean: u64) -> u64 {
        // From 2^-53 to 1, so that the logarithm is finite.
        let unit = ((self.number() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        ((-unit.ln()).min(10.0) * mean as f64) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_numbers_that_it_always_gave() {
        // The first numbers of the authors' own program for the seed 1234567.
        let mut random = Random(1_234_567);
        let numbers = [(); 3].map(|()| random.number());
        assert_eq!(
            numbers,
            [
                6_457_827_717_110_365_317,
                3_203_168_211_198_807_973,
                9_817_491_932_198_370_423
            ]
        );
    }

    #[test]
    fn choices_are_within_their_bounds_and_waits_have_their_mean() {
        let mut random = Random(1);
        let mut sum = 0;
        for _ in 0..10_000 {
            assert!((3..7).contains(&random.between(3, 7)));
            assert_eq!(random.choose(&[(0, 'a'), (5, 'b'), (0, 'c')]), 'b');
            let wait = random.wait(1_000);
            assert!(wait <= 10_000);
            sum += wait;
        }
        assert!((9_500_000..10_500_000).contains(&sum), "{sum}");
        let mut order = random.order(100);
        order.sort_unstable();
        assert!(order.into_iter().eq(0..100));
    }
}
