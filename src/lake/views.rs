//! The tables as views of DuckDB over the files that the manifest names.

use super::manifest::{LakeFile, LakeManifest};
use crate::audit::export::tables::{CHANGES, CONCURRENCY, INTERVALS};
use crate::audit::export::{ColumnKind, ExportColumn};

/// Returns the statements that make the views `changes`, `intervals` and `concurrency` as of a manifest. `root` is where the
/// files are: a path or the start of a URL.
pub fn sql(manifest: &LakeManifest, root: &str) -> String {
    let changes = rows(root, &manifest.changes, CHANGES);
    let mut intervals = rows(root, &manifest.intervals.ended, INTERVALS);
    let open = rows(root, &manifest.intervals.open, INTERVALS);
    let ended_since: Vec<LakeFile> = manifest.ended_since().cloned().collect();
    intervals = format!("{intervals}\n    UNION ALL BY NAME\n    FROM {open} AS open");
    if !ended_since.is_empty() {
        let since = rows(root, &ended_since, INTERVALS);
        intervals += &format!(
            "\n    WHERE NOT EXISTS (FROM {since} AS ended WHERE ended.change = open.change\n        \
             AND ended.platform IS NOT DISTINCT FROM open.platform AND ended.device IS NOT DISTINCT FROM open.device)"
        );
    }
    let minutes: Vec<LakeFile> = [&manifest.concurrency.ended[..], &manifest.concurrency.unfinished].concat();
    let minutes = rows(root, &minutes, CONCURRENCY);
    let day = |time: &str| format!("(({time}) AT TIME ZONE 'UTC')::DATE");
    format!(
        "-- The lake as of commit {}. Run this again to see later ones.\n\
         CREATE OR REPLACE VIEW changes AS\n    SELECT *, {} AS day FROM {changes};\n\
         CREATE OR REPLACE VIEW intervals AS SELECT *, coalesce({}, DATE '9999-12-31') AS day FROM (\n    FROM {intervals});\n\
         CREATE OR REPLACE VIEW concurrency AS\n    FROM {minutes};\n",
        manifest.commit,
        day("valid_from"),
        day("valid_to"),
    )
}

/// Rows of files, as what follows `FROM`.
fn rows(root: &str, files: &[LakeFile], columns: &[ExportColumn]) -> String {
    if files.is_empty() {
        let columns: Vec<String> = columns
            .iter()
            .map(|column| format!("NULL::{} AS {}", sql_type(column.kind), column.name))
            .collect();
        return format!("(SELECT {} WHERE false)", columns.join(", "));
    }
    let root = literal(root.trim_end_matches('/'));
    let paths: Vec<String> = files.iter().map(|file| format!("'{root}/{}'", file.path)).collect();
    format!("read_parquet([{}])", paths.join(", "))
}

/// Returns a path as a part of a string of SQL that `read_parquet` takes for this path alone: it reads some characters as patterns.
fn literal(path: &str) -> String {
    let mut literal = String::with_capacity(path.len());
    for letter in path.chars() {
        match letter {
            '\'' => literal.push_str("''"),
            '*' | '?' | '[' => literal.extend(['[', letter, ']']),
            other => literal.push(other),
        }
    }
    literal
}

fn sql_type(kind: ColumnKind) -> &'static str {
    match kind {
        ColumnKind::Text => "VARCHAR",
        ColumnKind::Number => "BIGINT",
        ColumnKind::Time => "TIMESTAMPTZ",
        ColumnKind::Devices => {
            "STRUCT(platform VARCHAR, device VARCHAR, gateway VARCHAR, \"before\" VARCHAR, \"after\" VARCHAR)[]"
        }
    }
}
