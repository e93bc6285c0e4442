//! The inputs to begin with.

use std::path::Path;
use std::{fs, str};

/// Returns the lines of a corpus file. A line `hex:…` is bytes in hexadecimal, any other the text itself; `#` begins a comment.
pub fn lines(name: &str) -> Vec<Vec<u8>> {
    let text = file(&format!("tests/fuzz/corpus/{name}.txt"));
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let input = |line: &str| match line.strip_prefix("hex:") {
        Some(hex) => bytes(hex),
        None => line.as_bytes().to_vec(),
    };
    lines.map(input).collect()
}

/// Returns the bytes of all lines `prefix …: hex` of a golden file, and those of the corpus file.
pub fn golden(file_name: &str, prefix: &str, name: &str) -> Vec<Vec<u8>> {
    let text = file(&format!("tests/golden/{file_name}"));
    let golden = text.lines().filter(|line| line.starts_with(prefix));
    let golden = golden
        .filter_map(|line| line.rsplit_once(": "))
        .map(|(_, hex)| bytes(hex));
    golden.chain(lines(name)).collect()
}

pub fn file(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn bytes(hex: &str) -> Vec<u8> {
    let pairs = hex.trim().as_bytes().chunks(2);
    let byte = |pair: &[u8]| u8::from_str_radix(str::from_utf8(pair).expect("ASCII"), 16).expect("hexadecimal digits");
    pairs.map(byte).collect()
}
