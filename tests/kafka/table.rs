//! The result of a run, as a row of a table in Markdown.

use crate::python::Verdict;
use crate::timeline::Explained;
use crate::watcher::Opinion;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

/// What else is known of a run: what engines found in the topics that their positions did not include, and what others found.
pub struct Reconciled {
    pub explained: Vec<Explained>,
    /// How many of a hundred random moments would be explained as well.
    pub random: f64,
    /// What the replicas would show of aborted transactions; None where the brokers are not ours.
    pub shown: Option<String>,
    /// What the watcher has found.
    pub opinion: Option<Opinion>,
}

pub struct Row {
    name: &'static str,
    seed: u64,
    took: Duration,
    struck: BTreeMap<&'static str, u32>,
    written: u64,
    over_http: u64,
    /// What of the load an engine or a broker refused; a few of the sentences.
    refused: (u64, Value),
    pub verdict: Verdict,
    reconciled: Reconciled,
}

impl Row {
    /// `load` is what the load counted.
    pub fn new(
        (name, seed): (&'static str, u64),
        took: Duration,
        struck: BTreeMap<&'static str, u32>,
        verdict: Verdict,
        load: &Value,
        reconciled: Reconciled,
    ) -> Row {
        let count = |name: &str| load["counts"][name].as_u64().unwrap_or_default();
        let over_http = count("http_acknowledged");
        Row {
            name,
            seed,
            took,
            struck,
            written: count("acknowledged") + over_http,
            over_http,
            refused: (count("refused"), load["refusals"].clone()),
            verdict,
            reconciled,
        }
    }

    fn unexplained(&self) -> usize {
        let explained = self.reconciled.explained.iter();
        explained.filter(|one| one.by.is_none()).count()
    }

    /// Panics if anything was wrong with it. `explained`: also if an engine found outputs that its position did not include,
    /// and no fault can be the cause. On a busy machine brokers are late without a fault.
    #[track_caller]
    pub fn must_be_right(&self, explained: bool) {
        let unexplained = self.unexplained();
        assert!(
            !explained || unexplained == 0,
            "{}, seed {}: reconciliations without a fault",
            self.name,
            self.seed
        );
        let complaints = self.verdict.complaints.join("\n");
        assert_eq!(self.verdict.sum("wrong"), 0, "{}:\n{complaints}", self.name);
        if let Some(Opinion { complaints, events }) = &self.reconciled.opinion {
            assert!(complaints.is_empty(), "{}:\n{}", self.name, complaints.join("\n"));
            assert_eq!(
                *events,
                self.verdict.sum("events"),
                "{}: events that the watcher has folded",
                self.name
            );
        }
        let (refused, sentences) = &self.refused;
        assert_eq!(*refused, 0, "{}: writers were refused: {sentences}", self.name);
        assert!(self.over_http > 0, "{}: nothing was published over HTTP", self.name);
        // A load that gave nothing would prove nothing.
        for name in ["events", "malformed", "changes", "kicks"] {
            assert!(self.verdict.sum(name) > 0, "{}: no {name}", self.name);
        }
    }
}

/// The faults by their kind, and the runs with what the reader found.
pub fn markdown(rows: &[Row]) -> String {
    let mut struck: BTreeMap<&str, u32> = BTreeMap::new();
    for row in rows {
        for (kind, times) in &row.struck {
            *struck.entry(kind).or_default() += times;
        }
    }
    let mut text = String::from("| fault | times |\n|---|---:|\n");
    for (kind, times) in struck {
        let _ = writeln!(text, "| {kind} | {times} |");
    }
    text.push_str(
        "\n| run | minutes | events | acknowledged to the load | of these over HTTP | malformed | changes | kicks | lost | doubled | out of \
         order | altered | anything else wrong | verified beside it | reconciliations | not explained | longest stall, s |\n|---|",
    );
    text.push_str(&"---:|".repeat(16));
    text.push('\n');
    let counted = ["lost", "doubled", "out_of_order", "altered"];
    for row in rows {
        let sum = |name| row.verdict.sum(name);
        let other = sum("wrong").saturating_sub(counted.iter().map(|name| sum(name)).sum());
        let _ = writeln!(
            text,
            "| {}, seed {} | {:.1} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {other} | {} | {} | {} | {:.1} |",
            row.name,
            row.seed,
            row.took.as_secs_f64() / 60.0,
            sum("events"),
            row.written,
            row.over_http,
            sum("malformed"),
            sum("changes"),
            sum("kicks"),
            sum("lost"),
            sum("doubled"),
            sum("out_of_order"),
            sum("altered"),
            row.reconciled
                .opinion
                .as_ref()
                .map_or("not watched".to_owned(), |opinion| opinion.events.to_string()),
            row.reconciled.explained.len(),
            row.unexplained(),
            sum("longest_stall_ms") as f64 / 1000.0,
        );
    }
    text + &explanations(rows) + &shown(rows)
}

/// The reconciliations by their cause and what explains them.
fn explanations(rows: &[Row]) -> String {
    let mut sums: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for one in rows.iter().flat_map(|row| &row.reconciled.explained) {
        let (kind, seconds) = match &one.by {
            Some(by) => (by.kind, by.seconds),
            None => ("nothing", 0.0),
        };
        sums.entry((one.reconciliation.cause(), kind))
            .or_default()
            .push(seconds);
    }
    if sums.is_empty() {
        return String::new();
    }
    let mut text = String::from(
        "\n| reconciliation | explained by | times | seconds from the fault's end, median | at most |\n|---|---|---:|---:|---:|\n",
    );
    for ((cause, kind), mut seconds) in sums {
        seconds.sort_by(f64::total_cmp);
        let (median, most) = (seconds[seconds.len() / 2], seconds[seconds.len() - 1]);
        let _ = writeln!(
            text,
            "| `{cause}` | {kind} | {} | {median:.1} | {most:.1} |",
            seconds.len()
        );
    }
    for row in rows {
        let Row {
            name, seed, reconciled, ..
        } = row;
        let percent = reconciled.random * 100.0;
        let _ = writeln!(
            text,
            "\n{name}, seed {seed}: {percent:.0} % of random moments have a fault as near before them as commits that failed."
        );
    }
    text
}

/// What the replicas would show of aborted transactions, a line for each run.
fn shown(rows: &[Row]) -> String {
    let mut text = String::new();
    for row in rows {
        if let Some(shown) = &row.reconciled.shown {
            let Row { name, seed, .. } = row;
            let _ = writeln!(text, "\n{name}, seed {seed}, the brokers' files: {shown}");
        }
    }
    text
}
