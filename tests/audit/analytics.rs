//! What is exported is read by DuckDB and pyarrow, and docs/analytics.md shows what its queries give.

use super::{Files, a_day};
use crate::server::rollcall;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

pub fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// What a program prints, which must end well.
#[track_caller]
pub fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{command:?}: {printed}{error}");
    printed
}

/// Python with DuckDB, pyarrow and pyiceberg.
pub fn python() -> String {
    interpreter("analytics")
}

/// Python with the packages of a file of tests/clients.
pub fn interpreter(kind: &str) -> String {
    output(Command::new(root("scripts/clients")).arg(kind))
        .trim()
        .to_owned()
}

fn export(table: &[&str], format: &str, out: &Path) {
    let mut command = rollcall(&["audit", "export", "--format", format]);
    output(command.args(table).arg("--out").arg(out));
}

#[test]
fn duckdb_and_pyarrow_read_the_values_that_json_has() {
    let python = python();
    let files = Files::of(&a_day(), None);
    let directory = tempfile::tempdir().unwrap();
    let (changes, events) = (files.path("changes"), files.path("events"));
    let tables: [(&[&str], &str); 3] = [
        (&["--intervals", "--changes", &changes], "intervals"),
        (&["--changes", &changes], "changes"),
        (&["--events", &events], "events"),
    ];
    for (arguments, table) in tables {
        for format in ["parquet", "jsonl", "csv"] {
            export(arguments, format, directory.path());
        }
        let rows = |reader: &str, format: &str| -> Vec<Value> {
            let mut command = Command::new(&python);
            command.arg(root("tests/clients/tables.py")).arg(reader).arg(format);
            let printed = output(command.arg(directory.path().join(table)));
            printed
                .lines()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect()
        };
        let mut expected = Vec::new();
        for day in ["1970-01-01", "9999-12-31"] {
            let file = directory
                .path()
                .join(format!("{table}/day={day}/partition-00000.jsonl"));
            let text = std::fs::read_to_string(file).unwrap_or_default();
            expected.extend(text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
        }
        assert!(!expected.is_empty());
        assert_eq!(rows("pyarrow", "parquet"), expected, "{table}");
        assert_eq!(rows("duckdb", "parquet"), expected, "{table}");
        assert_eq!(rows("duckdb", "csv"), expected, "{table}");
    }
}

#[test]
fn the_document_shows_what_its_queries_give_and_the_curve_of_its_days() {
    let python = python();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let (events, changes, sweep) = (path("events.jsonl"), path("changes.jsonl"), path("sweep.jsonl"));
    let day = output(Command::new(&python).arg(root("examples/analytics/day.py")));
    std::fs::write(&events, day).unwrap();
    let folded = output(&mut rollcall(&["fold", &events]));
    let lines = folded.lines().filter(|line| line.starts_with("{\"type\":\"change\""));
    std::fs::write(&changes, lines.map(|line| format!("{line}\n")).collect::<String>()).unwrap();
    let tables = directory.path().join("tables");
    export(&["--intervals", "--changes", &changes], "parquet", &tables);
    export(&["--changes", &changes], "parquet", &tables);
    export(&["--events", &events], "parquet", &tables);
    let mut command = Command::new(&python);
    command.arg(root("examples/analytics/queries.py"));
    command.arg(root("docs/analytics.md")).arg(&tables);
    assert_eq!(output(&mut command).trim(), "10 queries");

    let swept = output(&mut rollcall(&[
        "audit",
        "what-if",
        "--json",
        "--events",
        &events,
        "--changes",
        &changes,
        "--sweep",
        "platforms.android.timeout_ms=120000..660000/10",
    ]));
    std::fs::write(&sweep, swept).unwrap();
    let mut command = Command::new(&python);
    command.arg(root("examples/analytics/curve.py"));
    let drawn = command.stdin(std::fs::File::open(&sweep).unwrap()).output().unwrap();
    assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
    let plot = root("docs/detection.svg");
    assert!(
        drawn.stdout == std::fs::read(plot).unwrap(),
        "docs/detection.svg is not the plot of these days; write it again as docs/analytics.md says, and look at it"
    );
}
