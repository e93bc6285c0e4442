//! Rust source as tokens and paths: just enough of the grammar that a name in a comment or a string is not found, and
//! that one behind `super::` or in a nested `use` is.

/// A name, a number, `::`, `=>`, or one character of anything else. A literal text is the token `""`, whatever it says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token<'a> {
    pub text: &'a str,
    pub line: usize,
}

/// A path as it is written, but with `crate`, `self` and `super` resolved: it begins with `crate`, or with whatever
/// else it names first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Path {
    pub segments: Vec<String>,
    pub line: usize,
}

pub fn tokens(source: &str) -> Vec<Token<'_>> {
    let bytes = source.as_bytes();
    let at = |i: usize| bytes.get(i).copied().unwrap_or(0);
    let (mut i, mut line) = (0, 1);
    let mut tokens: Vec<Token<'_>> = Vec::new();
    while i < bytes.len() {
        let start = i;
        let text = match at(i) {
            b'/' if at(i + 1) == b'/' => {
                i += source[i..].find('\n').unwrap_or(source.len() - i);
                ""
            }
            b'/' if at(i + 1) == b'*' => {
                i = end_of_comment(bytes, i);
                ""
            }
            byte if byte.is_ascii_whitespace() => {
                i += 1;
                ""
            }
            b'"' => {
                i = end_of_quoted(bytes, i);
                "\"\""
            }
            b'\'' if at(i + 1) == b'\\' || ends_as_character(source, i + 1) => {
                i = end_of_quoted(bytes, i);
                "\"\""
            }
            byte if is_name(byte) => {
                i = name_end(bytes, i);
                let after_dot = tokens.last().is_some_and(|token| token.text == ".");
                match at(i) {
                    b'"' | b'#' if source[start..i].ends_with('r') && raw_quote(bytes, i).is_some() => {
                        i = end_of_raw(source, i);
                        "\"\""
                    }
                    b'"' | b'\'' if matches!(&source[start..i], "b" | "c") => {
                        i = end_of_quoted(bytes, i);
                        "\"\""
                    }
                    b'.' if byte.is_ascii_digit() && !after_dot && at(i + 1).is_ascii_digit() => {
                        i = name_end(bytes, i + 1);
                        &source[start..i]
                    }
                    _ => &source[start..i],
                }
            }
            b':' if at(i + 1) == b':' => {
                i += 2;
                "::"
            }
            b'=' if at(i + 1) == b'>' => {
                i += 2;
                "=>"
            }
            _ => {
                i += 1;
                &source[start..i]
            }
        };
        if !text.is_empty() {
            tokens.push(Token { text, line });
        }
        line += bytes[start..i].iter().filter(|byte| **byte == b'\n').count();
    }
    tokens
}

fn is_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

fn name_end(bytes: &[u8], from: usize) -> usize {
    let length = bytes[from..].iter().position(|byte| !is_name(*byte));
    length.map_or(bytes.len(), |length| from + length)
}

/// Whether what follows an apostrophe is one character and another apostrophe, and not a lifetime.
fn ends_as_character(source: &str, from: usize) -> bool {
    let mut characters = source[from..].chars();
    characters.next().is_some() && characters.next() == Some('\'')
}

/// From a quotation mark or apostrophe, or a letter before it, to after the one that closes.
fn end_of_quoted(bytes: &[u8], from: usize) -> usize {
    let mut i = from + 1;
    while i < bytes.len() && bytes[i] != bytes[from] {
        i += if bytes[i] == b'\\' { 2 } else { 1 };
    }
    (i + 1).min(bytes.len())
}

/// How many `#` there are before a quotation mark; none if there is no such mark.
fn raw_quote(bytes: &[u8], from: usize) -> Option<usize> {
    let marks = bytes[from..].iter().take_while(|byte| **byte == b'#').count();
    (bytes.get(from + marks) == Some(&b'"')).then_some(marks)
}

fn end_of_raw(source: &str, from: usize) -> usize {
    let marks = raw_quote(source.as_bytes(), from).expect("the caller looked");
    let closing = format!("\"{}", "#".repeat(marks));
    let body = from + marks + 1;
    source[body..]
        .find(&closing)
        .map_or(source.len(), |length| body + length + closing.len())
}

/// Comments nest.
fn end_of_comment(bytes: &[u8], from: usize) -> usize {
    let (mut i, mut depth) = (from, 0);
    while i < bytes.len() {
        match &bytes[i..(i + 2).min(bytes.len())] {
            b"/*" => (i, depth) = (i + 2, depth + 1),
            b"*/" => (i, depth) = (i + 2, depth - 1),
            _ => i += 1,
        }
        if depth == 0 {
            break;
        }
    }
    i.min(bytes.len())
}

/// Without the modules that are compiled for unit tests only.
pub fn without_tests<'a>(tokens: &[Token<'a>]) -> Vec<Token<'a>> {
    const OPENING: [&str; 8] = ["#", "[", "cfg", "(", "test", ")", "]", "mod"];
    let mut kept = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        let opens =
            tokens.len() - i > OPENING.len() && OPENING.iter().enumerate().all(|(n, t)| tokens[i + n].text == *t);
        if !opens {
            kept.push(tokens[i]);
            i += 1;
            continue;
        }
        let mut depth = 0;
        for token in &tokens[i..] {
            i += 1;
            match token.text {
                "{" => depth += 1,
                "}" => depth -= 1,
                _ => {}
            }
            if depth == 0 && matches!(token.text, "}" | ";") {
                break;
            }
        }
    }
    kept
}

/// The module that a file under `src/` is, from the crate's root: `presence/rules/mod.rs` is `[presence, rules]`.
pub fn module_of(file: &str) -> Vec<String> {
    let inner = file.strip_prefix("src/").unwrap_or(file);
    let mut module: Vec<String> = inner.trim_end_matches(".rs").split('/').map(str::to_owned).collect();
    if matches!(module.last().map(String::as_str), Some("mod" | "lib" | "main")) {
        module.pop();
    }
    module
}

/// Every path of two or more names in a file, and every one in a `use`, where a group is taken apart.
pub fn paths(file: &str, tokens: &[Token<'_>]) -> Vec<Path> {
    let mut reading = Reading {
        tokens,
        i: 0,
        module: module_of(file),
        paths: Vec::new(),
    };
    // The depth of braces at which each `mod name { … }` of the file began.
    let mut inline: Vec<usize> = Vec::new();
    let mut depth = 0;
    while reading.i < tokens.len() {
        let (before, here) = (reading.i.checked_sub(1).map_or("", |i| tokens[i].text), reading.text(0));
        match here {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if inline.last() == Some(&depth) {
                    inline.pop();
                    reading.module.pop();
                }
            }
            "mod" if reading.text(2) == "{" => {
                inline.push(depth);
                reading.module.push(reading.text(1).to_owned());
            }
            // Not the `use<'a>` of a type.
            "use" if reading.text(1) != "<" => {
                reading.i += 1;
                reading.tree(&[]);
                continue;
            }
            name if name.bytes().next().is_some_and(is_name) && before != "::" && reading.text(1) == "::" => {
                reading.path();
                continue;
            }
            _ => {}
        }
        reading.i += 1;
    }
    reading.paths
}

struct Reading<'a> {
    tokens: &'a [Token<'a>],
    i: usize,
    module: Vec<String>,
    paths: Vec<Path>,
}

impl<'a> Reading<'a> {
    fn text(&self, ahead: usize) -> &'a str {
        self.tokens.get(self.i + ahead).map_or("", |token| token.text)
    }

    fn take(&mut self, segments: &mut Vec<String>) {
        segments.push(self.text(0).to_owned());
        self.i += 1;
    }

    /// `a::b::c`, up to generics or a group.
    fn path(&mut self) {
        let line = self.tokens[self.i].line;
        let mut segments = Vec::new();
        self.take(&mut segments);
        while self.text(0) == "::" && self.text(1).bytes().next().is_some_and(is_name) {
            self.i += 1;
            self.take(&mut segments);
        }
        self.add(segments, line);
    }

    /// What follows `use`, or stands in a group of it.
    fn tree(&mut self, prefix: &[String]) {
        let line = self.tokens.get(self.i).map_or(0, |token| token.line);
        let mut segments = prefix.to_vec();
        loop {
            match self.text(0) {
                "::" => self.i += 1,
                "{" => {
                    self.i += 1;
                    while !matches!(self.text(0), "}" | "") {
                        self.tree(&segments);
                        if self.text(0) == "," {
                            self.i += 1;
                        }
                    }
                    self.i += 1;
                    return;
                }
                "as" => {
                    self.i += 2;
                    break;
                }
                "," | "}" | ";" | "" => break,
                _ => self.take(&mut segments),
            }
        }
        self.add(segments, line);
    }

    fn add(&mut self, written: Vec<String>, line: usize) {
        let mut segments = Vec::new();
        for (n, segment) in written.into_iter().enumerate() {
            match (n, segment.as_str()) {
                (0, "crate" | "rollcall") => segments.push("crate".to_owned()),
                (0, "self" | "super") => {
                    segments.push("crate".to_owned());
                    segments.extend(self.module.iter().cloned());
                    if segment == "super" {
                        segments.pop();
                    }
                }
                (_, "super") => {
                    segments.pop();
                }
                (_, "self") => {}
                _ => segments.push(segment),
            }
        }
        self.paths.push(Path { segments, line });
    }
}

mod tests {
    use super::*;

    fn texts(source: &str) -> Vec<&str> {
        tokens(source).into_iter().map(|token| token.text).collect()
    }

    fn path_names(file: &str, source: &str) -> Vec<String> {
        let paths = paths(file, &tokens(source));
        paths.into_iter().map(|path| path.segments.join("::")).collect()
    }

    #[test]
    fn names_in_comments_and_strings_are_no_tokens() {
        assert_eq!(texts("a // b\n/* c /* d */ e */ f"), ["a", "f"]);
        assert_eq!(
            texts(r##"a "b\"c" b"d" r#"e"f"# g"##),
            ["a", "\"\"", "\"\"", "\"\"", "g"]
        );
        assert_eq!(
            texts(r"('a', '\'', b'c', &'static str)").join(" "),
            r#"( "" , "" , "" , & ' static str )"#
        );
    }

    #[test]
    fn numbers_with_a_fraction_are_one_token_and_ranges_and_tuples_are_not() {
        assert_eq!(
            texts("1.5 0..2 x.0.1"),
            ["1.5", "0", ".", ".", "2", "x", ".", "0", ".", "1"]
        );
    }

    #[test]
    fn lines_are_counted_through_strings_and_comments() {
        let tokens = tokens("a \"\n\n\" b /*\n*/ c\nd");
        let lines: Vec<_> = tokens.iter().map(|token| (token.text, token.line)).collect();
        assert_eq!(lines, [("a", 1), ("\"\"", 1), ("b", 3), ("c", 4), ("d", 5)]);
    }

    #[test]
    fn groups_and_relative_paths_are_resolved() {
        let file = "src/presence/rules/mod.rs";
        assert_eq!(
            path_names(
                file,
                "use crate::{log, store::{self, Key as K}}; use super::super::engine::*;"
            ),
            ["crate::log", "crate::store", "crate::store::Key", "crate::engine::*"]
        );
        assert_eq!(
            path_names(file, "fn f() { super::fold::<u8>(self::g()) }"),
            ["crate::presence::fold", "crate::presence::rules::g"]
        );
        assert_eq!(
            path_names("src/main.rs", "rollcall::command::run(Vec::<u8>::new())"),
            ["crate::command::run", "Vec"]
        );
    }

    #[test]
    fn super_in_an_inline_module_is_the_file_itself() {
        let source = "mod a { fn f() { super::x() } } fn g() { super::x() }";
        assert_eq!(
            path_names("src/log/local.rs", source),
            ["crate::log::local::x", "crate::log::x"]
        );
    }

    #[test]
    fn modules_for_tests_can_be_left_out() {
        let tokens = tokens("a; #[cfg(test)] mod tests { fn f() { b; } } c; #[cfg(test)] mod d; e;");
        let texts: Vec<_> = without_tests(&tokens).iter().map(|token| token.text).collect();
        assert_eq!(texts.join(" "), "a ; c ; e ;");
    }
}
