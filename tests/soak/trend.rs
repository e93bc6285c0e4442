//! Whether a figure climbs: a line through the last half of a run, and how far it rises there.
//!
//! The line is the median of the slopes between all pairs of samples (Theil and Sen). A process that has more to do for a moment, as
//! after a fault, moves it little, unlike a line of least squares. What rises more than its bound is a leak. A bound says how
//! much a healthy process wavers and does not depend on the length of the run, so a longer run finds smaller leaks.

use std::collections::BTreeSet;

/// A figure at a time, in seconds since the run began.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub at_s: f64,
    pub value: f64,
}

/// The line through the samples of the last half.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Trend {
    /// Its value at the first and at the last of these samples.
    pub from: f64,
    pub to: f64,
    pub samples: usize,
}

/// Fewer samples show no trend.
pub const SAMPLES_MIN: usize = 20;
/// A process that is restarted again and again must have so many lives in the last half: those of one or two show how it becomes warm.
pub const LIVES_MIN: usize = 3;
/// Of more samples every second one is used, or every third one, and so on: the number of pairs is bounded.
const SAMPLES_MAX: usize = 1_000;

impl Trend {
    /// Of the samples from `from_s` on. None if there are too few.
    pub fn of(samples: &[Sample], from_s: f64) -> Option<Trend> {
        let all: Vec<Sample> = samples.iter().copied().filter(|sample| sample.at_s >= from_s).collect();
        if all.len() < SAMPLES_MIN {
            return None;
        }
        let chosen: Vec<Sample> = all.iter().copied().step_by(all.len().div_ceil(SAMPLES_MAX)).collect();
        let mut slopes = Vec::new();
        for (place, one) in chosen.iter().enumerate() {
            for other in &chosen[place + 1..] {
                if other.at_s > one.at_s {
                    slopes.push((other.value - one.value) / (other.at_s - one.at_s));
                }
            }
        }
        let slope = median(&mut slopes)?;
        let mut heights: Vec<f64> = chosen.iter().map(|sample| sample.value - slope * sample.at_s).collect();
        let height = median(&mut heights)?;
        let (first, last) = (all.first()?.at_s, all.last()?.at_s);
        Some(Trend {
            from: height + slope * first,
            to: height + slope * last,
            samples: all.len(),
        })
    }

    /// The same of a process that is restarted again and again: each sample has the number of its life. None also if there are
    /// too few lives.
    pub fn of_lives(samples: &[(u32, Sample)], from_s: f64) -> Option<Trend> {
        let in_last_half = samples.iter().filter(|(_, sample)| sample.at_s >= from_s);
        let lives: BTreeSet<u32> = in_last_half.map(|(life, _)| *life).collect();
        let samples: Vec<Sample> = samples.iter().map(|(_, sample)| *sample).collect();
        (lives.len() >= LIVES_MIN).then(|| Trend::of(&samples, from_s))?
    }

    pub fn climb(&self) -> f64 {
        self.to - self.from
    }
}

/// `None` without values.
pub fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
