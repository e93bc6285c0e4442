//! Tables for a terminal.

use std::fmt::Write as _;

/// Returns rows as aligned columns. The first row is the header. Control characters in cells are escaped.
pub fn columns(rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| plain(cell)).collect())
        .collect();
    let count = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..count).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Returns a text in which control characters and direction marks are escaped, as `\u{202e}`.
pub fn plain(text: &str) -> String {
    let is_mark =
        |c: char| matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}');
    let mut plain = String::with_capacity(text.len());
    for c in text.chars() {
        match c.is_control() || is_mark(c) {
            true => plain.extend(c.escape_unicode()),
            false => plain.push(c),
        }
    }
    plain
}

/// Returns the distance of a time from now: `3 min ago`, `in 12 s`.
pub fn relative(at_ms: u64, now_ms: u64) -> String {
    let span = span(at_ms.abs_diff(now_ms));
    match at_ms > now_ms {
        true => format!("in {span}"),
        false => format!("{span} ago"),
    }
}

fn span(ms: u64) -> String {
    let s = ms / 1_000;
    match s {
        0..=119 => format!("{s} s"),
        120..=7_199 => format!("{} min", s / 60),
        7_200..=172_799 => format!("{} h", s / 3_600),
        _ => format!("{} days", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::{columns, plain, relative};

    #[test]
    fn columns_are_aligned_and_nothing_in_them_moves_the_cursor() {
        let row = |cells: [&str; 2]| cells.map(str::to_owned).to_vec();
        let text = columns(&[
            row(["USER", "STATUS"]),
            row(["al\u{1b}[2Jice", "online"]),
            row(["böb", ""]),
        ]);
        assert_eq!(text, "USER            STATUS\nal\\u{1b}[2Jice  online\nböb\n");
        assert_eq!(plain("a\u{202e}b\u{9b}c"), "a\\u{202e}b\\u{9b}c");
    }

    #[test]
    fn a_time_is_told_in_its_largest_unit() {
        for (ms, is) in [
            (0, "0 s ago"),
            (119_999, "119 s ago"),
            (120_000, "2 min ago"),
            (172_800_000, "2 days ago"),
        ] {
            assert_eq!(relative(1_000_000_000, 1_000_000_000 + ms), is);
        }
        assert_eq!(relative(12_000, 0), "in 12 s");
    }
}
