//! The result of a run, as a row of a table in Markdown.

use crate::python::Verdict;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

pub struct Row {
    name: &'static str,
    took: Duration,
    struck: BTreeMap<&'static str, u32>,
    written: u64,
    over_http: u64,
    /// What of the load an engine or a broker refused; a few of the sentences.
    refused: (u64, Value),
    pub verdict: Verdict,
}

impl Row {
    /// `load` is what the load counted.
    pub fn new(
        name: &'static str,
        took: Duration,
        struck: BTreeMap<&'static str, u32>,
        verdict: Verdict,
        load: &Value,
    ) -> Row {
        let count = |name: &str| load["counts"][name].as_u64().unwrap_or_default();
        let over_http = count("http_acknowledged");
        Row {
            name,
            took,
            struck,
            written: count("acknowledged") + over_http,
            over_http,
            refused: (count("refused"), load["refusals"].clone()),
            verdict,
        }
    }

    /// Panics if anything was wrong with it.
    #[track_caller]
    pub fn must_be_right(&self) {
        let complaints = self.verdict.complaints.join("\n");
        assert_eq!(self.verdict.sum("wrong"), 0, "{}:\n{complaints}", self.name);
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
         order | altered | anything else wrong | longest stall, s |\n|---|",
    );
    text.push_str(&"---:|".repeat(13));
    text.push('\n');
    let counted = ["lost", "doubled", "out_of_order", "altered"];
    for row in rows {
        let sum = |name| row.verdict.sum(name);
        let other = sum("wrong").saturating_sub(counted.iter().map(|name| sum(name)).sum());
        let _ = writeln!(
            text,
            "| {} | {:.1} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {other} | {:.1} |",
            row.name,
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
            sum("longest_stall_ms") as f64 / 1000.0,
        );
    }
    text
}
