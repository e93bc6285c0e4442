//! Shared by the benchmarks: figures, as a table for people and as JSON lines for `scripts/benchmarks`.
//!
//! Every figure is the median of several rounds, with the minimum and the maximum, because other programs share the machine. A
//! figure that depends on the machine is compared with a yardstick of the same run, round by round.
//!
//! If `ROLLCALL_BENCH_RESULTS` names a directory, each figure is also appended there, to a file that has the benchmark's name.
//! `ROLLCALL_BENCH_QUICK` asks for the short form of a benchmark.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, Instant};

static HEADING: Mutex<String> = Mutex::new(String::new());

/// Whether the short form is asked for: fewer rounds and users, the same work.
pub fn is_quick() -> bool {
    std::env::var_os("ROLLCALL_BENCH_QUICK").is_some_and(|value| !value.is_empty() && value != "0")
}

/// Runs a function. Returns its result and its duration.
pub fn timed<T>(what: impl FnOnce() -> T) -> (T, Duration) {
    let start = Instant::now();
    let value = what();
    (value, start.elapsed())
}

/// Returns the median; of an even number of figures, what is half way between the two in the middle.
pub fn median(figures: &[f64]) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    let middle = figures.len() / 2;
    match figures.len() % 2 {
        0 => (figures[middle - 1] + figures[middle]) / 2.0,
        _ => figures[middle],
    }
}

/// Returns the rate per second.
pub fn rate(count: usize, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

/// Begins a table.
pub fn heading(text: &str) {
    println!("\n{text}");
    text.clone_into(&mut HEADING.lock().expect("not poisoned"));
}

/// A row of the table. Nothing is printed before [`show`](Figure::show).
#[must_use = "show() prints it"]
pub struct Figure<'a> {
    id: &'a str,
    what: &'a str,
    rounds: &'a [f64],
    unit: &'a str,
    beside: Option<(&'a str, Vec<f64>)>,
    note: String,
}

/// A figure with one value for each round. The id is what reports know it by: it stays the same, and contains every number that
/// the figure depends on, such as the number of users.
pub fn figure<'a>(id: &'a str, what: &'a str, rounds: &'a [f64], unit: &'a str) -> Figure<'a> {
    assert!(!rounds.is_empty(), "{id} was not measured");
    assert!(rounds.iter().all(|figure| figure.is_finite()), "{id}: {rounds:?}");
    Figure {
        id,
        what,
        rounds,
        unit,
        beside: None,
        note: String::new(),
    }
}

impl<'a> Figure<'a> {
    /// Compares each round with the same round of a yardstick.
    pub fn beside(mut self, yardstick: &'a str, rounds: &[f64]) -> Self {
        assert_eq!(
            self.rounds.len(),
            rounds.len(),
            "{} and its yardstick, round by round",
            self.id
        );
        let ratios = self
            .rounds
            .iter()
            .zip(rounds)
            .map(|(figure, yardstick)| figure / yardstick);
        self.beside = Some((yardstick, ratios.collect()));
        self
    }

    /// What a reader must know to understand the figure.
    pub fn note(mut self, note: &str) -> Self {
        note.clone_into(&mut self.note);
        self
    }

    /// Prints the row: what was measured, the median of its rounds, and their range. Also writes it for reports.
    pub fn show(self) {
        let beside = match &self.beside {
            Some((yardstick, ratios)) => format!("{} of {yardstick} ", short(median(ratios))),
            None => String::new(),
        };
        println!(
            "  {:<48} {:>9} {:<12} {:<20} {beside}{}",
            self.what,
            short(median(self.rounds)),
            self.unit,
            range(self.rounds),
            self.note
        );
        if let Some(directory) = std::env::var_os("ROLLCALL_BENCH_RESULTS") {
            self.write(PathBuf::from(directory).join(concat!(env!("CARGO_CRATE_NAME"), ".jsonl")));
        }
    }

    fn write(&self, path: PathBuf) {
        let line = serde_json::json!({
            "bench": env!("CARGO_CRATE_NAME"),
            "heading": *HEADING.lock().expect("not poisoned"),
            "id": self.id,
            "what": self.what,
            "unit": self.unit,
            "rounds": self.rounds,
            "beside": self.beside.as_ref().map(|(yardstick, _)| yardstick),
            "ratios": self.beside.as_ref().map(|(_, ratios)| ratios),
            "note": self.note,
        });
        let file = OpenOptions::new().create(true).append(true).open(&path);
        let written = file.and_then(|mut file| writeln!(file, "{line}"));
        written.unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    }
}

fn range(rounds: &[f64]) -> String {
    if rounds.len() < 2 {
        return String::new();
    }
    let least = rounds.iter().copied().fold(f64::INFINITY, f64::min);
    let most = rounds.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    format!("({} to {})", short(least), short(most))
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
