//! Shared by the benchmarks: a table of figures.
//!
//! Every figure is the median of several rounds, with the minimum and the maximum, because other programs share the machine. A
//! rate that depends on the machine is compared with a yardstick of the same run.

use std::time::{Duration, Instant};

/// Runs a function. Returns its result and its duration.
pub fn timed<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = what();
    (value, start.elapsed())
}

/// Returns the median.
pub fn median(figures: &[f64]) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Returns the rate per second.
pub fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

pub fn heading(text: &str) {
    println!("\n{text}");
}

/// Prints one row: what was measured, the median of its rounds, and their range.
pub fn row(what: &str, rounds: &[f64], unit: &str, note: &str) {
    let least = rounds.iter().copied().fold(f64::INFINITY, f64::min);
    let most = rounds.iter().copied().fold(0.0, f64::max);
    let spread = if rounds.len() > 1 {
        format!("({} to {})", short(least), short(most))
    } else {
        String::new()
    };
    println!(
        "  {what:<48} {:>9} {unit:<12} {spread:<20} {note}",
        short(median(rounds))
    );
}

/// Three digits that count.
fn short(figure: f64) -> String {
    match figure {
        f if f >= 999_500.0 => format!("{:.2} M", f / 1e6),
        f if f >= 9_995.0 => format!("{:.0} k", f / 1e3),
        f if f >= 100.0 => format!("{f:.0}"),
        f if f >= 10.0 => format!("{f:.1}"),
        f => format!("{f:.2}"),
    }
}
