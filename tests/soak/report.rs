//! What is judged at the end of a soak, and the report.

use crate::journal::{Crowds, Got, History, Measured, Stretch, Table};
use crate::trend::{Sample, Trend, median};
use chrono::DateTime;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

const MIB: f64 = 1_048_576.0;
/// An engine that is restarted again and again is compared with itself at this age.
const AGE_S: std::ops::Range<f64> = 30.0..240.0;
/// Of a soak that can be continued, a shorter stretch shows no trend: in its last half processes still become warm.
const JUDGED_MIN_S: f64 = 1_800.0;

/// A figure of a process, and by how much it may climb in the last half of a run, however long that is. docs/soak.md
/// says how the bounds are chosen.
pub struct Measure {
    pub name: &'static str,
    unit: f64,
    of: fn(&Measured) -> f64,
    climb_max: f64,
    /// In addition, for each change that was published meanwhile: what an index or a table keeps of it.
    climb_max_of_change: f64,
}

pub const MEASURES: [Measure; 5] = [
    Measure {
        name: "memory, MiB",
        unit: MIB,
        of: |measured| measured.memory_bytes - measured.cached_bytes,
        climb_max: 8.0 * MIB,
        climb_max_of_change: 0.0,
    },
    // An engine keeps to their bounds by itself; they are shown because they are left out above.
    Measure {
        name: "caches, MiB",
        unit: MIB,
        of: |measured| measured.cached_bytes,
        climb_max: f64::INFINITY,
        climb_max_of_change: 0.0,
    },
    Measure {
        name: "descriptors",
        unit: 1.0,
        of: |measured| measured.descriptors,
        climb_max: 16.0,
        climb_max_of_change: 0.0,
    },
    Measure {
        name: "threads",
        unit: 1.0,
        of: |measured| measured.threads,
        climb_max: 4.0,
        climb_max_of_change: 0.0,
    },
    Measure {
        name: "disk, MiB",
        unit: MIB,
        of: |measured| measured.disk_bytes,
        climb_max: 16.0 * MIB,
        climb_max_of_change: 150.0,
    },
];

/// Which samples of a process are compared with each other, and whether it is ours to judge.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// All of them: it is not restarted in the last half.
    Throughout,
    /// Those of the same age: it is restarted again and again.
    AtOneAge,
    /// Somebody else's program, or ours for the soak only.
    NotJudged,
}

/// One figure of one process in one stretch.
pub struct Row {
    process: &'static str,
    measure: &'static Measure,
    /// Its number; none if there can be only one.
    stretch: Option<usize>,
    trend: Option<Trend>,
    climb_max: f64,
    compared: Compared,
}

impl Row {
    /// What is wrong with it.
    pub fn complaint(&self) -> Option<String> {
        if self.compared == Compared::NotJudged {
            return None;
        }
        let (process, name, unit) = (self.process, self.measure.name, self.measure.unit);
        let of_stretch = self.stretch.map(|number| format!(" of stretch {number}"));
        let of_stretch = of_stretch.unwrap_or_default();
        let Some(trend) = self.trend else {
            // A short run has too few lives of it.
            if self.compared == Compared::AtOneAge {
                return None;
            }
            return Some(format!(
                "{process}: {name}: too few samples for a trend in the last half{of_stretch}; run longer"
            ));
        };
        (trend.climb() > self.climb_max).then(|| {
            let (climb, most) = (trend.climb() / unit, self.climb_max / unit);
            format!("{process}: {name} climbed by {climb:.1} in the last half{of_stretch}, and may climb by {most:.1}")
        })
    }
}

/// A row for each figure of each process, in each stretch: a start of everything makes processes that cannot be compared with those
/// before. If the soak is kept, only in stretches that are long enough.
pub fn judge(history: &History, compared: &BTreeMap<&'static str, Compared>, is_kept: bool) -> Vec<Row> {
    let numbered = history.stretches.iter().enumerate();
    let long: Vec<(Option<usize>, &Stretch)> = numbered
        .filter(|(_, stretch)| !is_kept || stretch.seconds() >= JUDGED_MIN_S)
        .map(|(place, stretch)| (is_kept.then_some(place + 1), stretch))
        .collect();
    let mut rows = Vec::new();
    for (process, how) in compared {
        for measure in &MEASURES {
            let has_caches = process.starts_with("engine");
            if measure.climb_max.is_infinite() && !has_caches {
                continue;
            }
            for (number, stretch) in &long {
                let (half_s, changes) = last_half(stretch);
                rows.push(Row {
                    process,
                    measure,
                    stretch: *number,
                    trend: trend(stretch.table.get(*process), measure, *how, half_s),
                    climb_max: measure.climb_max + measure.climb_max_of_change * changes as f64,
                    compared: *how,
                });
            }
        }
    }
    rows
}

/// When the last half of a stretch begins, in seconds, and how many changes were published in it.
fn last_half(stretch: &Stretch) -> (f64, u64) {
    let half_s = stretch.seconds() / 2.0;
    let before = stretch.changes.iter().rfind(|(at_s, _)| *at_s <= half_s);
    let [before, after] = [before, stretch.changes.last()].map(|noted| noted.map_or(0, |(_, changes)| *changes));
    (half_s, after.saturating_sub(before))
}

fn trend(measured: Option<&Vec<Measured>>, measure: &Measure, how: Compared, half_s: f64) -> Option<Trend> {
    let is_compared =
        |measured: &&Measured| measured.steady && (how != Compared::AtOneAge || AGE_S.contains(&measured.age_s));
    let sample = |measured: &Measured| Sample {
        at_s: measured.at_s,
        value: (measure.of)(measured),
    };
    let compared = measured.into_iter().flatten().filter(is_compared);
    let samples: Vec<(u32, Sample)> = compared.map(|one| (one.pid, sample(one))).collect();
    match how {
        Compared::AtOneAge => Trend::of_lives(&samples, half_s),
        Compared::Throughout | Compared::NotJudged => {
            let of_one_life: Vec<Sample> = samples.iter().map(|(_, sample)| *sample).collect();
            Trend::of(&of_one_life, half_s)
        }
    }
}

/// What was wrong in any stretch.
pub fn complaints(history: &History, rows: &[Row], is_kept: bool) -> Vec<String> {
    let mut complaints: Vec<String> = rows.iter().filter_map(Row::complaint).collect();
    for (place, stretch) in history.stretches.iter().enumerate() {
        let of_it = stretch.complaints.iter().chain(&stretch.got.complaints);
        complaints.extend(of_it.map(|complaint| match is_kept {
            true => format!("stretch {}: {complaint}", place + 1),
            false => complaint.clone(),
        }));
    }
    let got = got(history);
    for (what, count) in [
        ("changes over HTTP", got.changes),
        ("changes over WebSocket", got.watched),
    ] {
        if count == 0 {
            complaints.push(format!("no reader got any {what}"));
        }
    }
    complaints
}

fn got(history: &History) -> Got {
    let mut sums = Got::default();
    history.stretches.iter().for_each(|stretch| sums.add_all(&stretch.got));
    sums
}

/// The table of the trends in Markdown.
fn trends(rows: &[Row]) -> String {
    let is_kept = rows.iter().any(|row| row.stretch.is_some());
    let (column, line) = if is_kept { (" stretch |", "---|") } else { ("", "") };
    let mut text = format!(
        "| process | |{column} at the half | at the end | climb | at most | samples |\n|---|---|{line}---|---|---|---|---|\n"
    );
    for row in rows {
        let Row { process, measure, .. } = row;
        let stretch = row.stretch.map_or(String::new(), |number| format!(" {number} |"));
        let Some(trend) = row.trend else {
            let _ = writeln!(
                text,
                "| {process} | {} |{stretch} too few samples | | | | |",
                measure.name
            );
            continue;
        };
        let [from, to, climb, most] =
            [trend.from, trend.to, trend.climb(), row.climb_max].map(|value| format!("{:.1}", value / measure.unit));
        let most = match row.compared {
            Compared::NotJudged => "not judged".to_owned(),
            Compared::Throughout | Compared::AtOneAge if row.climb_max.is_infinite() => "not judged".to_owned(),
            Compared::Throughout | Compared::AtOneAge => most,
        };
        let climb = match row.complaint() {
            Some(_) => format!("**{climb}**"),
            None => climb,
        };
        let samples = trend.samples;
        let _ = writeln!(
            text,
            "| {process} | {} |{stretch} {from} | {to} | {climb} | {most} | {samples} |",
            measure.name
        );
    }
    text
}

/// Processor time of each process over all stretches, in cores, and how often it was started.
fn processor(history: &History) -> (BTreeMap<&str, (f64, usize)>, f64) {
    let seconds: f64 = history.stretches.iter().map(Stretch::seconds).sum();
    let mut of: BTreeMap<&str, (f64, usize)> = BTreeMap::new();
    for stretch in &history.stretches {
        for (process, measured) in &stretch.table {
            // Each life's last figure.
            let lives: BTreeMap<u32, f64> = measured.iter().map(|one| (one.pid, one.cpu_s)).collect();
            let (cores, started) = of.entry(process).or_default();
            *cores += lives.values().sum::<f64>() / seconds;
            *started += lives.len();
        }
    }
    let all = of.values().map(|(cores, _)| cores).sum();
    (of, all)
}

/// What each process has now, in a line.
pub fn now(table: &Table, at_s: f64, disk_bytes: f64) -> String {
    let mut text = String::new();
    let mut cores = 0.0;
    for (process, measured) in table {
        let Some(last) = measured.last().filter(|last| last.at_s > at_s - 20.0) else {
            continue;
        };
        let before = measured
            .iter()
            .rev()
            .take_while(|one| one.pid == last.pid)
            .find(|one| one.at_s <= last.at_s - 55.0);
        if let Some(before) = before {
            cores += (last.cpu_s - before.cpu_s) / (last.at_s - before.at_s);
        }
        if !process.starts_with("broker") {
            let (memory, descriptors) = (last.memory_bytes / MIB, last.descriptors);
            let _ = write!(text, "  {process} {memory:.0} MiB {descriptors} fd {} th", last.threads);
        }
    }
    format!("{text}  disk {:.0} MiB  {cores:.2} cores", disk_bytes / MIB)
}

/// What was compared at the end, from the first event on.
pub struct Verified {
    pub events: u64,
    pub changes: u64,
    pub kicks: u64,
    pub malformed: u64,
    /// Events that the watcher has folded.
    pub watched: u64,
    pub in_the_lake: u64,
    pub disk_bytes: f64,
}

/// The report, in Markdown, behind its first sentence.
pub fn text(history: &History, rows: &[Row], verified: &Verified, complaints: &[String], is_kept: bool) -> String {
    let mut text = String::new();
    if is_kept {
        text.push_str(&stretches(history));
    }
    match rows {
        [] => text.push_str("No trend was judged: no stretch has 30 minutes.\n"),
        rows => text.push_str(&trends(rows)),
    }
    let (cores, all) = processor(history);
    let _ = writeln!(
        text,
        "\nProcessor, over the whole run: {all:.2} cores.\n\n| process | cores | started |\n|---|---|---|"
    );
    for (process, (cores, lives)) in cores {
        let _ = writeln!(text, "| {process} | {cores:.3} | {lives} |");
    }
    text.push_str("\n| what failed | times |\n|---|---|\n");
    let kinds: BTreeSet<&String> = history
        .stretches
        .iter()
        .flat_map(|stretch| stretch.struck.keys())
        .collect();
    for kind in kinds {
        let times = history.stretches.iter().filter_map(|stretch| stretch.struck.get(kind));
        let _ = writeln!(text, "| {kind} | {} |", times.sum::<u32>());
    }
    text.push_str(
        "\n| `rollcall load` | runs | connects | heartbeats | changes as expected | missing | unexpected | latency |\n",
    );
    text.push_str("|---|---|---|---|---|---|---|---|\n");
    let (mut calm, mut struck) = (Crowds::default(), Crowds::default());
    for stretch in &history.stretches {
        calm.add_all(&stretch.calm_runs);
        struck.add_all(&stretch.struck_runs);
    }
    text.push_str(&crowds("while all was calm", &calm));
    text.push_str(&crowds("while something failed", &struck));
    let got = got(history);
    let _ = writeln!(
        text,
        "\nThe independent reader compared {} events, {} changes, {} kicks and {} malformed records; the watcher verified {} events; \
         `audit verify` agreed. The lake has {} changes. Readers: answers by status {:?} (0: none), {} subscriptions with {} \
         changes, {} WebSocket watchers with {} changes. All files together took {:.0} MiB at the end.",
        verified.events,
        verified.changes,
        verified.kicks,
        verified.malformed,
        verified.watched,
        verified.in_the_lake,
        got.answers,
        got.subscriptions,
        got.changes,
        got.watchers,
        got.watched,
        verified.disk_bytes / MIB,
    );
    if complaints.is_empty() {
        text.push_str("\nNothing was wrong.\n");
    } else {
        text.push_str("\nWrong:\n\n");
        for complaint in complaints {
            let _ = writeln!(text, "* {complaint}");
        }
    }
    text
}

/// The table of the stretches.
fn stretches(history: &History) -> String {
    let mut text = "| stretch | began (UTC) | minutes | commit | ended |\n|---|---|---|---|---|\n".to_owned();
    for (place, stretch) in history.stretches.iter().enumerate() {
        let at = i64::try_from(stretch.began.at_ms).ok();
        let at = at.and_then(DateTime::from_timestamp_millis);
        let at = at.map_or(String::new(), |at| at.format("%Y-%m-%d %H:%M").to_string());
        let (minutes, commit) = (stretch.seconds() / 60.0, &stretch.began.commit);
        let ended = stretch
            .ended
            .as_ref()
            .map_or("killed, or by a panic", |ended| &ended.why);
        let _ = writeln!(text, "| {} | {at} | {minutes:.1} | {commit} | {ended} |", place + 1);
    }
    text.push('\n');
    text
}

fn crowds(name: &str, crowds: &Crowds) -> String {
    let latency = median(&mut crowds.latencies_ms.clone()).unwrap_or_default();
    let (runs, sums) = (crowds.runs, &crowds.sums);
    format!(
        "| {name} | {runs} | {} | {} | {} | {} | {} | {latency:.0} ms |\n",
        sums.connects, sums.heartbeats, sums.changes, sums.missing, sums.unexpected
    )
}
