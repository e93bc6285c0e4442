//! Chances, from a seed: the same seed gives the same throws, on every machine.

/// SplitMix64, which is small and good enough for people.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// From 0 to below `sides`, which is at least 1.
    pub fn below(&mut self, sides: u64) -> u64 {
        self.next() % sides
    }

    /// One of a list's indices.
    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    /// From `least` to below `most`.
    pub fn between(&mut self, least: u64, most: u64) -> u64 {
        least + self.below(most - least)
    }

    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    /// The time until something happens that has no memory, at most ten times the mean.
    pub fn wait(&mut self, mean: u64) -> u64 {
        // From 2^-53 to 1, so that the logarithm is finite.
        let unit = ((self.next() >> 11) + 1) as f64 / (1u64 << 53) as f64;
        ((-unit.ln()).min(10.0) * mean as f64) as u64
    }

    /// One of several, by weight. The weights are not all 0.
    pub fn choose<T: Copy>(&mut self, weighted: &[(u64, T)]) -> T {
        let sum = weighted.iter().map(|(weight, _)| weight).sum();
        let mut left = self.below(sum);
        for (weight, choice) in weighted {
            if left < *weight {
                return *choice;
            }
            left -= weight;
        }
        unreachable!("what was thrown is below the sum of the weights")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn throws_are_within_their_bounds_and_waits_have_their_mean() {
        let mut dice = Dice::new(1);
        let mut sum = 0;
        for _ in 0..10_000 {
            assert!((3..7).contains(&dice.between(3, 7)));
            assert_eq!(dice.choose(&[(0, 'a'), (5, 'b'), (0, 'c')]), 'b');
            let wait = dice.wait(1_000);
            assert!(wait <= 10_000);
            sum += wait;
        }
        assert!((9_500_000..10_500_000).contains(&sum), "{sum}");
    }
}
