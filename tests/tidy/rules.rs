//! What is asked of one file, each as a function from its text to what is wrong with it.

use super::source::{Token, module_of, paths, tokens, without_tests};
use std::collections::BTreeMap;

/// What is wrong, at which line, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    pub line: usize,
    pub what: String,
}

fn finding(line: usize, what: impl Into<String>) -> Finding {
    Finding {
        line,
        what: what.into(),
    }
}

/// The core: values in, values out. `dependencies` are the crates that Cargo.toml names.
pub fn core_is_pure(file: &str, text: &str, dependencies: &[String]) -> Vec<Finding> {
    const OUTSIDE: [&str; 7] = ["env", "fs", "io", "net", "process", "thread", "time"];
    let tokens = tokens(text);
    let mut found = Vec::new();
    for path in paths(file, &tokens) {
        let written = path.segments.join("::");
        let mut names = path.segments.iter().map(String::as_str);
        let (first, second) = (names.next().unwrap_or_default(), names.next().unwrap_or_default());
        if dependencies.iter().any(|dependency| dependency == first) {
            found.push(finding(
                path.line,
                format!("{written}: the core uses no crate but std; do this outside of it"),
            ));
        }
        if matches!(first, "std" | "core") && OUTSIDE.contains(&second) {
            found.push(finding(
                path.line,
                format!("{written}: the core has no outside world; pass the value in"),
            ));
        }
        if first == "crate" && second != "presence" {
            found.push(finding(
                path.line,
                format!("{written}: the core imports nothing but itself"),
            ));
        }
    }
    for token in &tokens {
        let what = match token.text {
            "HashMap" | "HashSet" | "RandomState" => "its order differs from run to run; take a BTreeMap or a table",
            "SystemTime" | "Instant" => "time comes in with the record",
            "f32" | "f64" => "floats round; count in whole numbers",
            number if is_fraction(number) => "floats round; count in whole numbers",
            "unsafe" => "the core is plain code; find another way",
            "async" | "await" => "the core does not wait for anything",
            _ => continue,
        };
        found.push(finding(token.line, format!("{}: {what}", token.text)));
    }
    found.extend(catch_all_arms(&tokens));
    found
}

/// Also by its exponent (`1e9`) or type (`1f64`).
fn is_fraction(number: &str) -> bool {
    let rest = number.trim_start_matches(|c: char| c.is_ascii_digit() || c == '_');
    rest.len() < number.len() && !number.starts_with('_') && rest.starts_with(['.', 'e', 'E', 'f'])
}

/// Arms that take whatever is left: `_ =>`, `_ if …`, or a lone name.
fn catch_all_arms(tokens: &[Token<'_>]) -> Vec<Finding> {
    let arm = |window: &&[Token<'_>]| {
        let [before, pattern, after] = [window[0].text, window[1].text, window[2].text];
        let is_lone = pattern == "_" || pattern.starts_with(|first: char| first.is_ascii_lowercase());
        matches!(before, "{" | "," | "}" | "|")
            && is_lone
            && !matches!(pattern, "true" | "false")
            && (after == "=>" || after == "if" && pattern == "_")
    };
    let arms = tokens.windows(3).filter(arm);
    arms.map(|window| {
        let what = format!(
            "{} {}: write out every arm, so that a new case fails to compile where somebody must think",
            window[1].text, window[2].text
        );
        finding(window[1].line, what)
    })
    .collect()
}

/// Time is read in one file; elsewhere it is passed in. Unit tests may.
pub fn clock_is_not_read(text: &str) -> Vec<Finding> {
    let tokens = without_tests(&tokens(text));
    let reads = |(n, token): &(usize, &Token<'_>)| {
        let next = |ahead: usize| tokens.get(n + ahead).map_or("", |token| token.text);
        token.text == "SystemTime" || token.text == "Instant" && next(1) == "::" && next(2) == "now"
    };
    let readings = tokens.iter().enumerate().filter(reads);
    readings
        .map(|(_, token)| {
            finding(
                token.line,
                format!("{}: only src/clock.rs reads the clock; take a Clock", token.text),
            )
        })
        .collect()
}

/// A file that starts threads or tasks by itself, how many, and who sees their end.
pub type Starter = (&'static str, usize, &'static str);

/// Threads and tasks are started by `src/tasks.rs`, or under `guarded(`, so that a panic in one of them is seen. `starters` names the
/// places that see it in another way.
pub fn what_is_started_is_watched(file: &str, text: &str, starters: &[Starter]) -> Vec<Finding> {
    let tokens = without_tests(&tokens(text));
    let at = |n: usize| tokens.get(n).map_or("", |token| token.text);
    let follows = |n: usize, texts: &[&str]| texts.iter().enumerate().all(|(ahead, text)| at(n + ahead) == *text);
    let is_bare = |n: usize| {
        let is_task = follows(n, &["tokio", "::", "spawn", "("]) && !["guarded", "tasks"].contains(&at(n + 4));
        is_task || follows(n, &["thread", "::", "spawn"]) || follows(n, &["thread", "::", "Builder"])
    };
    let bare: Vec<usize> = (0..tokens.len())
        .filter(|n| is_bare(*n))
        .map(|n| tokens[n].line)
        .collect();
    let known = starters.iter().find(|(path, _, _)| *path == file);
    let count = known.map_or(0, |(_, count, _)| *count);
    if bare.len() == count {
        return Vec::new();
    }
    let what = format!(
        "starts {} threads or tasks of its own, and {count} are known; use src/tasks.rs, so that a panic is seen",
        bare.len()
    );
    vec![finding(bare.last().copied().unwrap_or(1), what)]
}

/// How long a wait has taken is measured and not added up from its pauses: what is done between two of them takes time too.
pub fn waits_are_measured(text: &str) -> Vec<Finding> {
    let tokens = without_tests(&tokens(text));
    let adds_a_pause = |window: &&[Token<'_>]| {
        let name = window[2].text.to_lowercase();
        let is_pause = ["pause", "poll", "look"].iter().any(|end| name.ends_with(end));
        window[0].text == "+" && window[1].text == "=" && is_pause
    };
    let what = "pauses are added up: bound the wait with a Deadline, since each look may itself take long";
    let sums = tokens.windows(3).filter(adds_a_pause);
    sums.map(|window| finding(window[0].line, what)).collect()
}

/// A module directly under the crate and those that it may import.
pub type Arrow = (&'static str, &'static [&'static str]);

/// Imports follow the arrows. What stands directly in `src/` and is no module of its own may import everything.
pub fn arrows_are_followed(file: &str, text: &str, arrows: &[Arrow]) -> Vec<Finding> {
    let module = module_of(file);
    let Some(module) = module.first() else {
        return Vec::new();
    };
    let Some((_, allowed)) = arrows.iter().find(|(name, _)| name == module) else {
        return vec![finding(
            1,
            format!("the table of arrows in tests/tidy.rs does not know {module}; add its row"),
        )];
    };
    let tokens = tokens(text);
    let mut found = Vec::new();
    for path in paths(file, &tokens) {
        let [first, target, ..] = path.segments.as_slice() else {
            continue;
        };
        let known = arrows.iter().any(|(name, _)| name == target) || target == "*";
        if first == "crate" && known && target != module && !allowed.contains(&target.as_str()) {
            let what = format!("{}: {module} may import {allowed:?} only", path.segments.join("::"));
            found.push(finding(path.line, what));
        }
    }
    found
}

/// A module below another, and the files that may name it; those in it may too.
pub type Inner = (&'static str, &'static str, &'static [&'static str]);

/// What stands behind a neutral type is named only where it is chosen.
pub fn inner_is_named_where_it_may_be(file: &str, text: &str, (module, inner, allowed): Inner) -> Vec<Finding> {
    if module_of(file).starts_with(&[module.to_owned(), inner.to_owned()]) || allowed.contains(&file) {
        return Vec::new();
    }
    let names = |path: &[String]| matches!(path, [first, a, b, ..] if first == "crate" && a == module && b == inner);
    let tokens = tokens(text);
    let named = paths(file, &tokens).into_iter().filter(|path| names(&path.segments));
    let what = format!("{module}::{inner} is for {allowed:?}; take what {module} offers beside it");
    named.map(|path| finding(path.line, what.clone())).collect()
}

/// A log has numbers of topics and facts about them. What the outputs are called is said by who gives them their meaning. Unit
/// tests may.
pub fn outputs_are_not_named(text: &str, outputs: &[String]) -> Vec<Finding> {
    let tokens = without_tests(&tokens(text));
    let named = tokens
        .iter()
        .filter(|token| outputs.iter().any(|output| output == token.text));
    let what =
        |name: &str| format!("{name}: a log names no output; ask for what it has to know of one (src/topics.rs)");
    named.map(|token| finding(token.line, what(token.text))).collect()
}

/// Returns the names of the variants of an enum that has no fields.
pub fn variants(text: &str, name: &str) -> Vec<String> {
    let tokens = tokens(text);
    let begins = |window: &[Token<'_>]| window[0].text == "enum" && window[1].text == name;
    let Some(begin) = tokens.windows(2).position(begins) else {
        return Vec::new();
    };
    let inside = tokens[begin + 3..].iter().take_while(|token| token.text != "}");
    let names = inside.filter(|token| token.text.starts_with(|first: char| first.is_ascii_uppercase()));
    names.map(|token| token.text.to_owned()).collect()
}

/// The oracle shares the vocabulary with the core and nothing else: what decides must be written twice.
pub fn oracle_stands_alone(file: &str, text: &str) -> Vec<Finding> {
    let tokens = tokens(text);
    let mut found = Vec::new();
    for path in paths(file, &tokens) {
        let names: Vec<&str> = path.segments.iter().map(String::as_str).collect();
        let fine = match names.as_slice() {
            ["crate", "presence", "event" | "policy" | "change", ..] => true,
            ["crate", "presence", name, ..] => name.starts_with(|first: char| first.is_ascii_uppercase()),
            ["crate", "sim", module, ..] => module.starts_with("oracle"),
            ["crate", ..] => false,
            _ => true,
        };
        if !fine {
            let what =
                "the oracle takes events, policies, changes and the vocabulary from the core, and decides itself";
            found.push(finding(path.line, format!("{}: {what}", names.join("::"))));
        }
    }
    found
}

/// Code that somebody meant to come back to.
pub fn nothing_is_left_over(text: &str) -> Vec<Finding> {
    const LEFT: [&[&str]; 5] = [
        &["todo", "!"],
        &["unimplemented", "!"],
        &["dbg", "!"],
        &["[", "ignore"],
        &["allow", "(", "dead_code"],
    ];
    let tokens = tokens(text);
    let mut found = Vec::new();
    for n in 0..tokens.len() {
        let is = |left: &&&[&str]| {
            left.iter()
                .enumerate()
                .all(|(k, t)| tokens.get(n + k).is_some_and(|at| at.text == *t))
        };
        if let Some(left) = LEFT.iter().find(is) {
            found.push(finding(
                tokens[n].line,
                format!("{}: finish it or take it out", left.concat()),
            ));
        }
    }
    found
}

/// Marks of unfinished work, in any file. They are put together here, for this file to be free of them.
pub fn no_marks_are_left(text: &str) -> Vec<Finding> {
    let marks = [concat!("FIX", "ME"), concat!("X", "XX"), concat!("TO", "DO")];
    let mut found = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let mut words = line.split(|c: char| !c.is_alphanumeric() && c != '_');
        if let Some(mark) = words.find(|word| marks.contains(word)) {
            found.push(finding(n + 1, format!("{mark}: do it, or file it where work is kept")));
        }
    }
    found
}

/// What holds on one machine only: absolute paths of homes and workplaces, hosts of package registries.
pub fn no_machine_is_named(text: &str) -> Vec<Finding> {
    let homes = [
        concat!("/ro", "ot"),
        concat!("/ho", "me"),
        concat!("/wo", "rk"),
        concat!("/Us", "ers"),
    ];
    let hosts = [
        concat!("index.", "crates.io"),
        concat!("static.", "crates.io"),
        concat!("pypi", ".org"),
        concat!("pythonhosted", ".org"),
        concat!("registry.", "npmjs"),
        concat!("proxy.", "golang.org"),
        concat!("deb.", "debian.org"),
        concat!("maven", ".org"),
        concat!("maven.", "apache.org"),
    ];
    // A path begins here if it is no longer path or address before it, and the name ends with the needle.
    let begins = |line: &str, home: &str| {
        line.match_indices(home).any(|(at, _)| {
            let before = line[..at].chars().next_back();
            let after = line[at + home.len()..].chars().next();
            !before.is_some_and(|c| c.is_alphanumeric() || "/._-~}*)".contains(c)) && after == Some('/')
        })
    };
    let mut found = Vec::new();
    for (n, line) in text.lines().enumerate() {
        if let Some(home) = homes.iter().find(|home| begins(line, home)) {
            found.push(finding(
                n + 1,
                format!("{home}/: a path of one machine; make it relative or a setting"),
            ));
        }
        if let Some(host) = hosts.iter().find(|host| line.contains(*host)) {
            found.push(finding(
                n + 1,
                format!("{host}: leave the choice of a registry to the machine"),
            ));
        }
    }
    found
}

pub fn file_opens_with_its_promise(text: &str) -> Vec<Finding> {
    if text.starts_with("//!") {
        return Vec::new();
    }
    vec![finding(
        1,
        "say in `//!` what the file is, what it guarantees and what it deliberately lacks",
    )]
}

/// A file that may be longer than the rest, up to which length, and why.
pub type LongFile = (&'static str, usize, &'static str);

pub fn file_is_short(file: &str, text: &str, most: usize, long_files: &[LongFile]) -> Vec<Finding> {
    let lines = text.lines().count();
    match long_files.iter().find(|(name, ..)| *name == file) {
        None if lines > most => vec![finding(
            lines,
            format!("{lines} lines are more than {most}: split it by noun, or list it in tests/tidy.rs with a reason"),
        )],
        Some((_, limit, reason)) if lines > *limit => vec![finding(
            lines,
            format!("{lines} lines are more than even the {limit} allowed for \"{reason}\": split it by noun"),
        )],
        Some(_) if lines <= most => vec![finding(lines, "short again: take it off the list in tests/tidy.rs")],
        _ => Vec::new(),
    }
}

/// The relative links of a Markdown text, with their lines and without the part after `#`.
pub fn links(text: &str) -> Vec<(usize, String)> {
    let mut links = Vec::new();
    let mut in_code = false;
    for (n, line) in text.lines().enumerate() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
        }
        if in_code {
            continue;
        }
        // What stands between backticks is code: every other piece.
        let prose: Vec<&str> = line.split('`').step_by(2).collect();
        let prose = prose.join("``");
        let inline = prose
            .split("](")
            .skip(1)
            .filter_map(|rest| rest.split([')', ' ']).next());
        let definition = prose
            .strip_prefix('[')
            .and_then(|rest| rest.split_once("]: "))
            .map(|(_, target)| target);
        for target in inline.chain(definition) {
            let target = target.trim().trim_matches(['<', '>']);
            let path = target.split('#').next().unwrap_or_default();
            if !path.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                links.push((n + 1, path.to_owned()));
            }
        }
    }
    links
}

/// Words that a reader of English as a second language has to look up, or reads twice, and what to write instead.
pub const HARD_WORDS: [(&str, &str); 24] = [
    ("anew", "again, rebuilt, restarted"),
    ("are none", "say what there is not"),
    ("as ever", "as usual, or say when"),
    ("be it", "also if"),
    ("becomes of", "happens to"),
    ("became of", "outcome, result"),
    ("but for", "except, without"),
    ("came of it", "resulted"),
    ("comes of it", "results"),
    ("heed", "take into account"),
    ("heeded", "taken into account"),
    ("heeds", "takes into account"),
    ("in a hurry", "quickly, without waiting"),
    ("is none", "say what there is not"),
    ("left aside", "skipped, ignored, not counted"),
    ("lest", "so that … not"),
    ("mend", "repair, fix"),
    ("mended", "repaired, fixed"),
    ("mends", "repairs, fixes"),
    ("of itself", "by itself, or about itself"),
    ("told", "notified, sent, reported, given"),
    ("whoever", "name the client, process or reader"),
    ("without a word", "silently, without an error"),
    ("worked on", "processed"),
];

/// The hard words of a text and their lines. A phrase is found across the end of a line too, and across the mark of a
/// comment or a list.
pub fn hard_words(text: &str) -> Vec<Finding> {
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    // The text in one line, and where each line of it begins.
    let (mut flat, mut starts) = (String::new(), Vec::new());
    for line in text.lines() {
        starts.push(flat.len());
        let words = line.trim_start().trim_start_matches(['/', '!', '#', '>']);
        flat.push_str(&words.trim_matches([' ', '\\']).to_ascii_lowercase());
        flat.push(' ');
    }
    let mut found = Vec::new();
    for (word, instead) in HARD_WORDS {
        for (at, _) in flat.match_indices(word) {
            if !flat[..at].ends_with(is_letter) && !flat[at + word.len()..].starts_with(is_letter) {
                let line = starts.partition_point(|start| *start <= at);
                found.push(finding(line, format!("{word:?}; write: {instead}")));
            }
        }
    }
    found.sort_by_key(|finding| finding.line);
    found
}

/// A writer takes what it writes apart and names each field, so that a new one fails to compile there: in functions that
/// append to an `out` or an `object`, or are `to_bytes`, no field is read with a dot, and no pattern ends with `..`. The number in a
/// newtype (`.0`) is no field of its own.
pub fn writers_name_every_field(text: &str) -> Vec<Finding> {
    let tokens = without_tests(&tokens(text));
    let at = |n: usize| tokens.get(n).map_or("", |token| token.text);
    let mut found = Vec::new();
    for begin in (0..tokens.len()).filter(|n| at(*n) == "fn") {
        let mut depth = 0;
        let opening = (begin..tokens.len()).find(|n| {
            match at(*n) {
                "(" | "[" => depth += 1,
                ")" | "]" => depth -= 1,
                _ => {}
            }
            depth == 0 && matches!(at(*n), "{" | ";")
        });
        let Some(opening) = opening.filter(|n| at(*n) == "{") else {
            continue;
        };
        let is_to_bytes = at(begin + 1) == "to_bytes";
        let takes = |name| (begin..opening).any(|n| [at(n), at(n + 1), at(n + 2)] == [name, ":", "&"]);
        if !is_to_bytes && !takes("out") && !takes("object") {
            continue;
        }
        let mut depth = 0;
        for (n, token) in tokens.iter().enumerate().skip(opening) {
            match at(n) {
                "{" => depth += 1,
                "}" => depth -= 1,
                "." if at(n + 1) == "." && at(n + 2) == "}" => found.push(finding(
                    token.line,
                    "..: name every field, and those that are not written with `_`",
                )),
                "." if at(n - 1) != "." && is_field(at(n + 1)) && !matches!(at(n + 2), "(" | "::") => {
                    let (of, field) = (at(n - 1), at(n + 1));
                    // The writer itself, as in `self.out`.
                    if of != "self" || is_to_bytes {
                        let what = format!("{of}.{field}: take the value apart with `let Type {{ … }} = …`");
                        found.push(finding(token.line, what));
                    }
                }
                _ => {}
            }
            if depth == 0 {
                break;
            }
        }
    }
    found
}

fn is_field(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_lowercase() || first == '_')
}

/// The types of a file that others can name: structures, enumerations, traits and aliases, without those for tests.
pub fn public_types(text: &str) -> Vec<(usize, String)> {
    let tokens = without_tests(&tokens(text));
    let at = |n: usize| tokens.get(n).map_or("", |token| token.text);
    let mut types = Vec::new();
    for n in 0..tokens.len() {
        if at(n) != "pub" {
            continue;
        }
        // After `pub(crate)`, `pub(in path)`.
        let mut kind = n + 1;
        if at(kind) == "(" {
            kind += tokens[kind..].iter().take_while(|token| token.text != ")").count() + 1;
        }
        if matches!(at(kind), "struct" | "enum" | "trait" | "type" | "union") {
            types.push((tokens[n].line, at(kind + 1).to_owned()));
        }
    }
    types
}

/// The names that are public types in more than `most` files, each with where it is. `types` are those of every file.
pub fn names_in_many_files(types: &[(String, usize, String)], most: usize) -> Vec<(String, Vec<String>)> {
    let mut places: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for (file, line, name) in types {
        places.entry(name).or_default().push(format!("{file}:{line}"));
    }
    places.retain(|_, places| places.len() > most);
    places
        .into_iter()
        .map(|(name, places)| (name.to_owned(), places))
        .collect()
}

/// The code map: each source file is named by the row of its folder, and each file named is there. `text` is the map as
/// Markdown, a table of two columns; a row's first column names folders, with `/` at their end, and files.
pub fn the_map_is_complete(text: &str, sources: &[&str]) -> Vec<Finding> {
    let rows: Vec<(usize, Vec<&str>, Vec<&str>)> = text
        .lines()
        .enumerate()
        .filter_map(|(number, line)| {
            let (first, second) = line.strip_prefix("| ")?.split_once(" | ")?;
            Some((number + 1, in_code(first), in_code(second)))
        })
        .collect();
    let mut found = Vec::new();
    for path in sources {
        let name = path.strip_suffix(".rs").unwrap_or(path);
        if rows.iter().any(|(_, places, _)| places.contains(path)) || name.ends_with("/tests") {
            continue;
        }
        let folders = rows
            .iter()
            .flat_map(|(_, places, named)| places.iter().map(move |place| (*place, named)));
        let nearest = folders
            .filter(|(place, _)| place.ends_with('/') && name.starts_with(place))
            .max_by_key(|(place, _)| place.len());
        let Some((folder, named)) = nearest else {
            let what = format!("{path}: no row of the code map is about its folder; add one");
            found.push(finding(1, what));
            continue;
        };
        let name = &name[folder.len()..];
        let name = name.strip_suffix("/mod").unwrap_or(name);
        if name != "mod" && !named.contains(&name) {
            let what = format!("{path}: the row of {folder} in the code map does not name `{name}`");
            found.push(finding(1, what));
        }
    }
    for (line, places, named) in &rows {
        for place in places.iter().filter(|place| place.starts_with("src/")) {
            if !sources
                .iter()
                .any(|path| path == place || place.ends_with('/') && path.starts_with(place))
            {
                found.push(finding(*line, format!("{place}: there is no such file or folder")));
            }
        }
        let is_module = |name: &&&str| name.chars().all(|c| c.is_ascii_lowercase() || matches!(c, '_' | '/'));
        for name in named.iter().filter(is_module) {
            let is_there = |place: &&str| {
                let below = format!("{place}{name}");
                sources.iter().any(|path| {
                    path.strip_prefix(&below)
                        .is_some_and(|rest| rest == ".rs" || rest.starts_with('/'))
                })
            };
            if !places.iter().any(is_there) {
                let what = format!("`{name}`: there is no such module in {}", places.join(", "));
                found.push(finding(*line, what));
            }
        }
    }
    found
}

/// What stands in backticks.
fn in_code(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

/// That a check passes says something only if it can fail.
mod tests {
    use super::*;

    fn lines(found: &[Finding]) -> Vec<usize> {
        found.iter().map(|finding| finding.line).collect()
    }

    #[track_caller]
    fn core_refuses(text: &str) {
        let dependencies = ["serde_json".to_owned(), "rollcall".to_owned()];
        let found = core_is_pure("src/presence/fold.rs", text, &dependencies);
        assert!(!found.is_empty(), "accepted: {text}");
    }

    #[test]
    fn an_impure_core_is_found() {
        core_refuses("use serde_json::Value;");
        core_refuses("use serde_json as json;");
        core_refuses("fn f() { serde_json::to_string(&1) }");
        core_refuses("#[derive(serde_json::Serialize)] struct A;");
        core_refuses("use crate::schema::Malformed;");
        core_refuses("use super::super::log;");
        core_refuses("use std::{fmt, time::Duration};");
        core_refuses("fn f() { std::thread::yield_now() }");
        core_refuses("use std::collections::{BTreeMap, HashMap};");
        core_refuses("fn f(at: Instant) {}");
        core_refuses("fn f() { let x = 0.5; }");
        core_refuses("fn f() { let x = 1e9; }");
        core_refuses("fn f() { let x = 1_000f32; }");
        core_refuses("fn f(x: f64) {}");
        core_refuses("unsafe fn f() {}");
        core_refuses("async fn f() {}");
        core_refuses("match event { A => 1, _ => 2 }");
        core_refuses("match event { A => {} _ if late => {} B => {} }");
        core_refuses("match event { A => 1, A | _ => 2 }");
        core_refuses("match event { A => 1, other => 2 }");
    }

    #[test]
    fn a_pure_core_is_accepted() {
        let text = "//! serde_json::Value\n use super::{event::Event, policy}; use std::collections::BTreeMap;\n
            fn f() { match x { Event::A { b } => \"HashMap\", (_, B) => 1, true => x.0.1, false => 0..1usize } }";
        assert_eq!(
            core_is_pure("src/presence/fold.rs", text, &["serde_json".to_owned()]),
            []
        );
    }

    #[test]
    fn a_reading_of_the_clock_is_found_but_not_in_unit_tests() {
        assert_eq!(
            lines(&clock_is_not_read(
                "a;\nstd::time::Instant::now();\nuse std::time::SystemTime;"
            )),
            [2, 3]
        );
        assert_eq!(
            clock_is_not_read("fn f(at: Instant) {} #[cfg(test)] mod tests { fn f() { Instant::now(); } }"),
            []
        );
    }

    #[test]
    fn an_output_that_a_log_names_is_found_but_not_in_unit_tests() {
        let outputs = variants(
            "enum A { B }\nenum Out {\n/// X\nKicks = 1, Other }\nenum C { D }",
            "Out",
        );
        assert_eq!(outputs, ["Kicks", "Other"]);
        let text = "/// Kicks\nuse a::Topic::{Events, Kicks};\nfn f() { g(OutputTopic::Kicks) }\n#[cfg(test)] mod tests { use Kicks; }";
        assert_eq!(lines(&outputs_are_not_named(text, &outputs)), [2, 3]);
    }

    #[test]
    fn a_task_that_nobody_watches_is_found() {
        let found = |text: &str, starters: &[Starter]| lines(&what_is_started_is_watched("src/a.rs", text, starters));
        assert_eq!(found("fn f() {\ntokio::spawn(run()); }", &[]), [2]);
        assert_eq!(found("fn f() {\nstd::thread::Builder::new(); }", &[]), [2]);
        assert_eq!(found("fn f() {\nstd::thread::spawn(run); }", &[]), [2]);
        let watched = "fn f() { tokio::spawn(guarded(TASK, run())); tasks::spawn(TASK, run); }";
        assert_eq!(found(watched, &[]), [0; 0]);
        let one = "fn f() { tokio::spawn(run()); } #[cfg(test)] mod tests { fn f() { tokio::spawn(run()); } }";
        assert_eq!(found(one, &[("src/a.rs", 1, "its caller joins it")]), [0; 0]);
        assert_eq!(found(watched, &[("src/a.rs", 1, "its caller joins it")]), [1]);
    }

    #[test]
    fn pauses_that_are_added_up_are_found() {
        let text = "sleep(READ_PAUSE);\nwaited += READ_PAUSE;\nself.waited += pause;\ncount += 1;";
        assert_eq!(lines(&waits_are_measured(text)), [2, 3]);
    }

    const ARROWS: [Arrow; 3] = [("log", &["presence"]), ("store", &["presence"]), ("presence", &[])];

    #[test]
    fn an_import_against_the_arrows_is_found() {
        let refused = |file, text| lines(&arrows_are_followed(file, text, &ARROWS));
        assert_eq!(
            refused(
                "src/log/local.rs",
                "use crate::presence::Offset;\nuse crate::store::Store;"
            ),
            [2]
        );
        assert_eq!(refused("src/log/mod.rs", "\nuse super::store;"), [2]);
        assert_eq!(refused("src/store/mod.rs", "fn f() { crate::log::read() }"), [1]);
        assert_eq!(refused("src/store/mod.rs", "use crate::{presence, log::Log};"), [1]);
        assert_eq!(refused("src/store/mod.rs", "use crate::*;"), [1]);
        assert_eq!(refused("src/presence/state.rs", "use crate::log;"), [1]);
        assert_eq!(refused("src/newcomer.rs", ""), [1]);
        assert_eq!(refused("src/lib.rs", "use crate::log;"), []);
        assert_eq!(
            refused(
                "src/log/local.rs",
                "use super::Record; use crate::log::Log; pub(crate) fn f() {}"
            ),
            []
        );
    }

    #[test]
    fn a_name_of_what_stands_behind_a_neutral_type_is_found() {
        const KAFKA: Inner = ("log", "kafka", &["src/command/connect.rs"]);
        let refused = |file, text| lines(&inner_is_named_where_it_may_be(file, text, KAFKA));
        let text = "use crate::log::Log;\nuse crate::log::{self, kafka::Owners};";
        assert_eq!(refused("src/http/peers.rs", text), [2]);
        assert_eq!(
            refused("src/http/peers.rs", "fn f() { crate::log::kafka::KafkaLog::connect() }"),
            [1]
        );
        assert_eq!(refused("src/log/mod.rs", "use super::log::kafka::Owner;"), [1]);
        assert_eq!(refused("src/command/connect.rs", text), []);
        assert_eq!(refused("src/log/kafka/tail.rs", text), []);
    }

    #[test]
    fn an_oracle_that_asks_the_core_is_found() {
        let refused = |text| lines(&oracle_stands_alone("src/sim/oracle.rs", text));
        assert_eq!(
            refused("use crate::presence::{Offset, event::Event};\nuse crate::presence::state::State;"),
            [2]
        );
        assert_eq!(refused("use crate::presence::fold;"), [1]);
        assert_eq!(refused("use crate::presence::*;"), [1]);
        assert_eq!(refused("use crate::schema::policy::parse_policy;"), [1]);
        assert_eq!(refused("use super::history::Random;"), [1]);
        assert_eq!(refused("use super::oracle::Oracle; use std::fmt;"), []);
    }

    #[test]
    fn leftovers_are_found_in_code_and_marks_everywhere() {
        let code = format!(
            "{}!();\n{}!(x);\n#[{}]\n#[allow({})]",
            "todo", "dbg", "ignore", "dead_code"
        );
        assert_eq!(lines(&nothing_is_left_over(&code)), [1, 2, 3, 4]);
        assert_eq!(
            lines(&nothing_is_left_over("#[ignore = \"slow\"]\nunimplemented!()")),
            [1, 2]
        );
        assert_eq!(nothing_is_left_over("// todo!()\nlet ignored = \"dbg!\";"), []);
        assert_eq!(
            lines(&no_marks_are_left(concat!(
                "# TO", "DO: x\nX", "XX\nXX", "XX\nFIX", "ME"
            ))),
            [1, 2, 4]
        );
    }

    #[test]
    fn a_writer_that_can_miss_a_field_is_found() {
        let refused = |text| lines(&writers_name_every_field(text));
        assert_eq!(
            refused("fn put(out: &mut Vec<u8>, user: &User) {\n put(out, user.version);\n}"),
            [2]
        );
        assert_eq!(
            refused("fn put(user: &User, out: &mut Vec<u8>) {\n let User { version, .. } = user;\n}"),
            [2]
        );
        assert_eq!(refused("fn to_bytes(&self) -> [u8; 8] {\n\n self.next\n}"), [3]);
        let fine = "fn put(out: &mut Vec<u8>, user: &User) -> [u8; 3] {
            let User { version, since: _ } = user; put(out, version.0); for n in 0..version.len() { all[..n]; }
            list.iter().collect::<Vec<_>>(); self.out }
            fn other(user: &User) { user.version; let User { version, .. } = user; } fn none(out: &mut Vec<u8>);";
        assert_eq!(refused(fine), []);
    }

    #[test]
    fn machine_paths_and_registries_are_found() {
        let bad = concat!("cd /ho", "me/a\nx=\"/wo", "rk/b\"\nhttps://pypi", ".org/x");
        assert_eq!(lines(&no_machine_is_named(bad)), [1, 2, 3]);
        let fine = concat!("example.com/ho", "me/a ./wo", "rk/b $(HOME)/ro", "ot/c /wo", "rkers/");
        assert_eq!(no_machine_is_named(fine), []);
    }

    #[test]
    fn files_without_a_promise_and_long_ones_are_found() {
        assert_eq!(lines(&file_opens_with_its_promise("use std::fmt;\n//! Late.")), [1]);
        assert_eq!(file_opens_with_its_promise("//! A promise."), []);
        let long: [LongFile; 1] = [("src/long.rs", 4, "a reason")];
        assert_eq!(lines(&file_is_short("src/a.rs", "1\n2\n3", 2, &long)), [3]);
        assert_eq!(lines(&file_is_short("src/long.rs", "1\n2\n3\n4\n5", 2, &long)), [5]);
        assert_eq!(lines(&file_is_short("src/long.rs", "1\n2", 2, &long)), [2]);
        assert_eq!(file_is_short("src/long.rs", "1\n2\n3", 2, &long), []);
        assert_eq!(file_is_short("src/a.rs", "1\n2", 2, &long), []);
    }

    #[test]
    fn a_hard_word_is_found_and_a_longer_one_is_not() {
        let found = |text: &str| lines(&hard_words(text));
        assert_eq!(found("Whoever\nwhoever, whoever\nwhoevers"), [1, 2, 2]);
        assert_eq!(found("nothing is none\nx.is_none()\nis nonetheless"), [1]);
        assert_eq!(found("amend a commend"), [0; 0]);
        assert_eq!(found("    /// what is\n    /// none"), [1]);
        assert_eq!(found("a\n\"without \\\n    a word\""), [2]);
        assert_eq!(found("* to be\n* it is"), [0; 0]);
        assert_eq!(found("fn without_a_word()"), [0; 0]);
    }

    #[test]
    fn public_types_are_found_and_those_in_many_files_are_named() {
        let text = "pub struct A;\nstruct B;\npub(crate) enum C {}\npub(in crate::x) trait D {}\n\
            // pub struct E;\npub type F<T> = T; pub fn g() {}\n#[cfg(test)] mod tests { pub struct H; }";
        let found = public_types(text);
        let found: Vec<(usize, &str)> = found.iter().map(|(line, name)| (*line, name.as_str())).collect();
        assert_eq!(found, [(1, "A"), (3, "C"), (4, "D"), (6, "F")]);

        let types = [("a.rs", "A"), ("b.rs", "A"), ("c.rs", "B"), ("d.rs", "A")];
        let types = types.map(|(file, name)| (file.to_owned(), 1, name.to_owned()));
        assert_eq!(
            names_in_many_files(&types, 2),
            [(
                "A".to_owned(),
                vec!["a.rs:1".to_owned(), "b.rs:1".to_owned(), "d.rs:1".to_owned()]
            )]
        );
        assert_eq!(names_in_many_files(&types, 3), []);
    }

    #[test]
    fn links_of_a_text_are_found_and_code_is_not() {
        let text = "See [a](b.md#c), ![d](../e.png \"f\") and [g](https://h/i).\n`[j](k)`\n```\n[l](m)\n```\n[n]: o/p.md\n[q](#r)";
        let found = links(text);
        let found: Vec<(usize, &str)> = found.iter().map(|(line, path)| (*line, path.as_str())).collect();
        assert_eq!(found, [(1, "b.md"), (1, "../e.png"), (6, "o/p.md")]);
    }

    #[test]
    fn what_the_map_leaves_out_or_makes_up_is_found() {
        let sources = [
            "src/a/mod.rs",
            "src/a/b.rs",
            "src/a/c/d.rs",
            "src/a/b/tests.rs",
            "src/e.rs",
        ];
        let found = |map: &str| -> Vec<String> {
            let found = the_map_is_complete(map, &sources);
            found.into_iter().map(|finding| finding.what).collect()
        };
        let whole = "| where | what |\n|---|---|\n| `src/a/` | `b` and `c/d`, of `State` |\n| `src/e.rs` | it |\n";
        assert_eq!(found(whole), [""; 0]);
        assert_eq!(
            found(&whole.replace("`b`", "b")),
            ["src/a/b.rs: the row of src/a/ in the code map does not name `b`"]
        );
        assert_eq!(
            found(&whole.replace("`b`", "`b`, `x`")),
            ["`x`: there is no such module in src/a/"]
        );
        assert_eq!(
            found(&whole.replace("src/e.rs", "src/f.rs")),
            [
                "src/e.rs: no row of the code map is about its folder; add one",
                "src/f.rs: there is no such file or folder"
            ]
        );
    }
}
