//! Numbers that follow from a seed alone.

use crate::learner::Draw;

/// A stream of numbers (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A stream of its own for each state.
    #[must_use]
    pub const fn new(state: u64) -> Self {
        Self(state)
    }

    /// What is drawn for a row in an epoch.
    #[must_use]
    pub fn of(draw: Draw) -> Self {
        let mut all = Self(draw.seed);
        for part in [draw.epoch, draw.line as u64] {
            all.0 = all.bits() ^ part.wrapping_mul(0xD1B5_4A32_D192_ED03);
        }
        all
    }

    /// 64 bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number from 0 to 1, which is not reached.
    pub fn unit(&mut self) -> f64 {
        (self.bits() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// A number between two.
    pub fn between(&mut self, low: f64, high: f64) -> f64 {
        low + self.unit() * (high - low)
    }

    /// A whole number below `limit`; 0 if that is 0.
    pub fn below(&mut self, limit: usize) -> usize {
        ((u128::from(self.bits()) * limit as u128) >> 64) as usize
    }

    /// `count` of the numbers below `limit`, ascending, all of them where there are no more.
    pub fn choose(&mut self, count: usize, limit: usize) -> Vec<usize> {
        let mut all: Vec<usize> = (0..limit).collect();
        let count = count.min(limit);
        for at in 0..count {
            all.swap(at, at + self.below(limit - at));
        }
        all.truncate(count);
        all.sort_unstable();
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_and_epochs_have_streams_of_their_own() {
        let first = |seed, epoch, line| Random::of(Draw { seed, epoch, line }).bits();
        let all: std::collections::HashSet<u64> = (0..4)
            .flat_map(|seed| (0..4).flat_map(move |epoch| (1..5).map(move |line| first(seed, epoch, line))))
            .collect();
        assert_eq!(all.len(), 64);
        assert_eq!(first(1, 2, 3), first(1, 2, 3));
    }

    #[test]
    fn numbers_are_in_their_ranges() {
        let mut random = Random::new(7);
        for _ in 0..1000 {
            assert!((0.0..1.0).contains(&random.unit()) && random.below(3) < 3);
            assert!((-2.0..3.0).contains(&random.between(-2.0, 3.0)));
        }
        assert_eq!(random.below(0), 0);
        let chosen = random.choose(3, 10);
        assert_eq!(chosen.len(), 3);
        assert!(chosen.is_sorted_by(|a, b| a < b) && chosen[2] < 10);
        assert_eq!(random.choose(9, 4), [0, 1, 2, 3]);
    }
}
