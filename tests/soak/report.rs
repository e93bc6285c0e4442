//! What is judged at the end of a soak, and the report.

use crate::sampler::{Measured, Table};
use crate::trend::{Sample, Trend, median};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;

const MIB: f64 = 1_048_576.0;
/// An engine that is restarted again and again is compared with itself at this age.
const AGE_S: std::ops::Range<f64> = 30.0..240.0;

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

/// One figure of one process.
pub struct Row {
    process: &'static str,
    measure: &'static Measure,
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
        let Some(trend) = self.trend else {
            // A short run has too few lives of it.
            if self.compared == Compared::AtOneAge {
                return None;
            }
            return Some(format!("{process}: {name}: too few samples for a trend; run longer"));
        };
        (trend.climb() > self.climb_max).then(|| {
            let (climb, most) = (trend.climb() / unit, self.climb_max / unit);
            format!("{process}: {name} climbed by {climb:.1} in the last half, and may climb by {most:.1}")
        })
    }
}

/// A row for each figure of each process. `changes` were published in the last half.
pub fn judge(table: &Table, compared: &BTreeMap<&'static str, Compared>, half_s: f64, changes: u64) -> Vec<Row> {
    let mut rows = Vec::new();
    for (process, how) in compared {
        let measured = table.measured.get(process).map_or(&[][..], |measured| measured);
        let is_compared =
            |measured: &&Measured| measured.steady && (*how != Compared::AtOneAge || AGE_S.contains(&measured.age_s));
        for measure in &MEASURES {
            let has_caches = process.starts_with("engine");
            if measure.climb_max.is_infinite() && !has_caches {
                continue;
            }
            let sample = |measured: &Measured| Sample {
                at_s: measured.at_s,
                value: (measure.of)(measured),
            };
            let compared = measured.iter().filter(is_compared);
            let samples: Vec<(u32, Sample)> = compared.map(|one| (one.pid, sample(one))).collect();
            let of_one_life = || samples.iter().map(|(_, sample)| *sample).collect::<Vec<_>>();
            let trend = match how {
                Compared::AtOneAge => Trend::of_lives(&samples, half_s),
                Compared::Throughout | Compared::NotJudged => Trend::of(&of_one_life(), half_s),
            };
            rows.push(Row {
                process,
                measure,
                trend,
                climb_max: measure.climb_max + measure.climb_max_of_change * changes as f64,
                compared: *how,
            });
        }
    }
    rows
}

/// The table of the trends in Markdown.
pub fn trends(rows: &[Row]) -> String {
    let mut text =
        "| process | | at the half | at the end | climb | at most | samples |\n|---|---|---|---|---|---|---|\n"
            .to_owned();
    for row in rows {
        let Row { process, measure, .. } = row;
        let Some(trend) = row.trend else {
            let _ = writeln!(text, "| {process} | {} | too few samples | | | | |", measure.name);
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
            "| {process} | {} | {from} | {to} | {climb} | {most} | {samples} |",
            measure.name
        );
    }
    text
}

/// Processor time of each process over the whole run, in cores, and how often it was started.
pub fn processor(table: &Table, seconds: f64) -> (BTreeMap<&'static str, (f64, usize)>, f64) {
    let mut of = BTreeMap::new();
    for (process, measured) in &table.measured {
        // Each life's last figure.
        let lives: BTreeMap<u32, f64> = measured.iter().map(|one| (one.pid, one.cpu_s)).collect();
        of.insert(*process, (lives.values().sum::<f64>() / seconds, lives.len()));
    }
    let all = of.values().map(|(cores, _)| cores).sum();
    (of, all)
}

/// What each process has now, in a line.
pub fn now(table: &Table, at_s: f64) -> String {
    let mut text = String::new();
    let mut cores = 0.0;
    for (process, measured) in &table.measured {
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
    format!("{text}  disk {:.0} MiB  {cores:.2} cores", table.disk_bytes / MIB)
}

/// Of the runs of `rollcall load`: how many, and sums of what they reported.
#[derive(Default)]
pub struct Crowds {
    pub runs: u32,
    pub connects: u64,
    pub heartbeats: u64,
    pub changes: u64,
    pub missing: u64,
    pub unexpected: u64,
    /// Medians of the latency from an action to its change.
    latencies: Vec<f64>,
}

impl Crowds {
    pub fn add(&mut self, report: &Value) {
        let number = |name: &str| report[name].as_u64().unwrap_or_default();
        self.runs += 1;
        self.connects += number("connects");
        self.heartbeats += number("heartbeats");
        self.changes += number("changes_as_expected");
        self.missing += number("changes_missing");
        self.unexpected += number("changes_unexpected");
        self.latencies.extend(report["change_latency"]["p50_ms"].as_f64());
    }

    pub fn row(&self, name: &str) -> String {
        let latency = median(&mut self.latencies.clone()).unwrap_or_default();
        let Crowds {
            runs,
            connects,
            heartbeats,
            changes,
            missing,
            unexpected,
            latencies: _,
        } = self;
        format!(
            "| {name} | {runs} | {connects} | {heartbeats} | {changes} | {missing} | {unexpected} | {latency:.0} ms |\n"
        )
    }
}
