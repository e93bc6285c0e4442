//! The judgement of a soak: a level that wavers passes, and a leak does not.

use crate::trend::{LIVES_MIN, SAMPLES_MIN, Sample, Trend};

const MIB: f64 = 1_048_576.0;

/// Half an hour, a sample every five seconds: a level that wavers, a bulge after each of the faults, and a leak by the minute.
fn half_an_hour(leak_a_minute: f64) -> Vec<Sample> {
    let sample = |number: u32| {
        let at_s = f64::from(number) * 5.0;
        let wavers = f64::from(number * 7_919 % 13) * 0.2 * MIB;
        let bulge = if number % 36 < 4 { 30.0 * MIB } else { 0.0 };
        let warm = 40.0 * MIB * (at_s / 300.0).min(1.0);
        Sample {
            at_s,
            value: 60.0 * MIB + warm + wavers + bulge + leak_a_minute * at_s / 60.0,
        }
    };
    (0..360).map(sample).collect()
}

fn climb(samples: &[Sample]) -> f64 {
    Trend::of(samples, 900.0).expect("enough").climb()
}

#[test]
fn a_level_that_wavers_does_not_climb_and_a_leak_does_by_what_is_leaked() {
    let level = climb(&half_an_hour(0.0));
    assert!(level.abs() < 0.5 * MIB, "{level}");
    let leak = climb(&half_an_hour(MIB));
    assert!((13.0 * MIB..17.0 * MIB).contains(&leak), "{leak}");
    let falls = climb(&half_an_hour(-MIB));
    assert!(falls < -13.0 * MIB, "{falls}");
}

#[test]
fn what_a_process_needs_to_become_warm_is_before_the_half() {
    let samples = half_an_hour(0.0);
    let trend = Trend::of(&samples, 0.0).expect("enough");
    assert_eq!(trend.samples, 360);
    assert!(trend.climb() > climb(&samples));
}

#[test]
fn too_few_samples_show_no_trend() {
    let samples = half_an_hour(MIB);
    assert_eq!(Trend::of(&samples[..SAMPLES_MIN - 1], 0.0), None);
    assert_eq!(Trend::of(&samples, 1_790.0), None);
    assert!(Trend::of(&samples[..SAMPLES_MIN], 0.0).is_some());
}

#[test]
fn a_process_with_too_few_lives_in_the_last_half_shows_no_trend() {
    let samples = half_an_hour(MIB);
    // From 900 s on there are 180 samples.
    let lives = |of_each: usize| -> Vec<(u32, Sample)> {
        let numbered = samples.iter().enumerate();
        numbered
            .map(|(number, sample)| ((number / of_each) as u32, *sample))
            .collect()
    };
    let of_each = 180 / LIVES_MIN;
    assert_eq!(Trend::of_lives(&lives(of_each), 900.0), Trend::of(&samples, 900.0));
    assert_eq!(Trend::of_lives(&lives(2 * of_each), 900.0), None);
}

#[test]
fn many_samples_give_the_line_of_a_part_of_them() {
    let sample = |number: u32| Sample {
        at_s: f64::from(number),
        value: f64::from(number) * 3.0 + 7.0,
    };
    let samples: Vec<Sample> = (0..5_000).map(sample).collect();
    let trend = Trend::of(&samples, 0.0).expect("enough");
    assert_eq!((trend.from, trend.to, trend.samples), (7.0, 4_999.0 * 3.0 + 7.0, 5_000));
}
