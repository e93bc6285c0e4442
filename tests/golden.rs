//! Golden bytes: everything that a later version must still read from a disk or a log, beside the topics' Avro
//! (tests/avro/golden.rs).
//!
//! Each file in `tests/golden` has a line per value, in hexadecimal. Today's code must write these bytes, and read them as
//! what they were. Lines may be added; a changed line means that data on disks can no longer be read.

#[path = "bless/mod.rs"]
mod bless;
#[path = "golden/files.rs"]
mod files;
#[path = "golden/position.rs"]
mod position;
#[path = "golden/releases.rs"]
mod releases;
#[path = "golden/store.rs"]
mod store;

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(hex: &str) -> Vec<u8> {
    let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).expect("two hexadecimal digits");
    (0..hex.len()).step_by(2).map(byte).collect()
}

/// The value of a line `what: value`.
#[track_caller]
fn value<'g>(golden: &'g str, what: &str) -> &'g str {
    let mut lines = golden.lines();
    let value = lines.find_map(|line| line.strip_prefix(what)?.strip_prefix(": "));
    value.unwrap_or_else(|| panic!("the golden file has no line {what:?}"))
}
