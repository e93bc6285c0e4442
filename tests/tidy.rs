//! The repository checks itself: what may import what, what must not be left behind, what a link points to.
//!
//! The source is read as text (`tidy/source.rs`) and held against small rules (`tidy/rules.rs`), each of which is
//! shown to fail on a bad example. What the rules need to know about this repository is here.

#[path = "tidy/rules.rs"]
mod rules;
#[path = "tidy/source.rs"]
mod source;

use rules::{Arrow, Finding, Inner, LongFile, Starter};
use std::fs;
use std::path::Path;
use std::process::Command;

/// What each module may import. Log moves bytes, store keeps bytes, schema gives bytes meaning, the core gives meaning
/// rules, the engine composes the four; what faces the world stands on the engine.
const ARROWS: &[Arrow] = &[
    ("presence", &[]),
    ("allocator", &[]),
    ("backoff", &[]),
    ("clock", &[]),
    ("cause", &[]),
    ("directory", &[]),
    ("failpoint", &[]),
    ("layout", &[]),
    ("objects", &["cause"]),
    ("random", &[]),
    ("varint", &[]),
    ("rocks", &[]),
    // The outputs are the engine's; it is above the log, which needs to know what there is.
    ("topics", &[]),
    // A policy file is one of its settings.
    ("config", &["presence", "schema"]),
    ("version", &["presence"]),
    ("metrics", &["presence", "version"]),
    ("traces", &["presence", "backoff", "cause", "metrics", "varint"]),
    ("tasks", &["metrics"]),
    // Of every server of ours, and of every client.
    ("tls", &["clock", "config", "metrics"]),
    ("jwks", &["cause", "config"]),
    ("schema", &["presence", "varint"]),
    // What is said over HTTP, for who serves and who asks.
    ("api", &["presence", "schema"]),
    ("registry", &["presence", "schema", "cause", "metrics"]),
    (
        "log",
        &[
            "presence",
            "topics",
            "backoff",
            "clock",
            "directory",
            "failpoint",
            "metrics",
            "tasks",
            "rocks",
            "varint",
            "traces",
        ],
    ),
    ("store", &["presence", "metrics", "rocks", "varint"]),
    ("checkpoint", &["presence", "store", "metrics", "objects"]),
    (
        "engine",
        &[
            "presence",
            "schema",
            "registry",
            "log",
            "topics",
            "store",
            "checkpoint",
            "clock",
            "config",
            "failpoint",
            "metrics",
            "tasks",
            "traces",
        ],
    ),
    // No path to the store: what they know of a user comes from the engine.
    (
        "gateway",
        &[
            "api",
            "presence",
            "schema",
            "log",
            "topics",
            "engine",
            "backoff",
            "cause",
            "clock",
            "config",
            "directory",
            "jwks",
            "layout",
            "metrics",
            "random",
            "tasks",
            "tls",
            "traces",
        ],
    ),
    (
        "http",
        &[
            "api",
            "presence",
            "schema",
            "registry",
            "log",
            "topics",
            "engine",
            "audit",
            "incidents",
            "cause",
            "clock",
            "config",
            "jwks",
            "metrics",
            "tasks",
            "tls",
            "version",
            "traces",
        ],
    ),
    (
        "audit",
        &[
            "api", "presence", "schema", "log", "store", "engine", "clock", "config", "metrics",
        ],
    ),
    // It follows the changes of a server, in its process.
    (
        "incidents",
        &[
            "presence", "schema", "registry", "log", "topics", "engine", "audit", "clock", "metrics",
        ],
    ),
    // It follows the change topic; the command reads it.
    (
        "lake",
        &["presence", "audit", "directory", "objects", "varint", "version"],
    ),
    (
        "sim",
        &[
            "presence", "schema", "log", "topics", "store", "engine", "clock", "config", "metrics", "random", "varint",
            // Its followers are the server's subscriptions.
            "http",
        ],
    ),
    // A follower in a process of its own; it meets the engine over HTTP, or in the change topic.
    (
        "webhook",
        &[
            "api", "presence", "schema", "backoff", "cause", "clock", "config", "layout", "log", "registry", "tasks",
            "tls", "traces",
        ],
    ),
    // Its people come in by WebSocket like everybody else, and follow changes over HTTP like a gateway.
    ("load", &["api", "gateway", "cause", "clock", "config", "random", "tls"]),
    // It comes in over HTTP like everybody else.
    (
        "demo",
        &[
            "api", "presence", "schema", "backoff", "cause", "clock", "random", "tasks",
        ],
    ),
    (
        "command",
        &[
            "api",
            "presence",
            "schema",
            "registry",
            "log",
            "topics",
            "store",
            "checkpoint",
            "engine",
            "backoff",
            "cause",
            "clock",
            "config",
            "directory",
            "failpoint",
            "metrics",
            "objects",
            "gateway",
            "http",
            "audit",
            "lake",
            "sim",
            "demo",
            "webhook",
            "load",
            "tasks",
            "tls",
            "version",
            "traces",
        ],
    ),
];

/// More than one reads in a sitting.
const LINES_MAX: usize = 800;

const LONG_FILES: [LongFile; 2] = [
    ("src/sim/history.rs", 950, "one random author of histories"),
    (
        "src/sim/oracle.rs",
        1_070,
        "the rules are read a second time in one go, top to bottom",
    ),
];

struct File {
    /// From the root of the repository, with `/`.
    path: String,
    text: String,
}

/// Every text file that is in the repository, or would be with `git add`.
fn files() -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new("git")
        // A clone that somebody else owns is read all the same.
        .args([
            "-c",
            "safe.directory=*",
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(root)
        .output()
        .expect("git is installed");
    assert!(
        output.status.success(),
        "git: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let listed = String::from_utf8(output.stdout).expect("paths are UTF-8");
    let mut paths: Vec<&str> = listed.split_terminator('\0').collect();
    paths.sort_unstable();
    paths.dedup();
    let read = |path: &str| {
        // One that was deleted and not yet committed is listed, and is no text.
        let text = fs::read_to_string(root.join(path)).ok()?;
        (!text.contains('\0')).then(|| File {
            path: path.to_owned(),
            text,
        })
    };
    let files: Vec<File> = paths.into_iter().filter_map(read).collect();
    assert!(
        files.iter().any(|file| file.path == "src/lib.rs"),
        "no source was found, so nothing would be checked"
    );
    files
}

fn is_rust(file: &File) -> bool {
    file.path.ends_with(".rs")
}

fn is_source(file: &File) -> bool {
    file.path.starts_with("src/") && is_rust(file)
}

/// Holds every file that is concerned against a rule and tells all that is wrong at once.
#[track_caller]
fn check(concerned: impl Fn(&File) -> bool, rule: impl Fn(&File) -> Vec<Finding>) {
    let mut wrong = Vec::new();
    for file in files().iter().filter(|file| concerned(file)) {
        for Finding { line, what } in rule(file) {
            wrong.push(format!("{}:{line}: {what}", file.path));
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

/// The names under which Cargo.toml makes other crates, and this one, known to the source.
fn crates() -> Vec<String> {
    let manifest: toml::Table = include_str!("../Cargo.toml").parse().expect("cargo has read it too");
    let mut tables: Vec<&toml::Table> = vec![&manifest];
    let targets = manifest.get("target").and_then(toml::Value::as_table);
    tables.extend(
        targets
            .into_iter()
            .flat_map(toml::Table::values)
            .filter_map(toml::Value::as_table),
    );
    let mut crates = Vec::new();
    for table in tables {
        for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let named = table.get(kind).and_then(toml::Value::as_table);
            crates.extend(
                named
                    .into_iter()
                    .flat_map(toml::Table::keys)
                    .map(|name| name.replace('-', "_")),
            );
        }
    }
    assert!(
        crates.contains(&"serde_json".to_owned()),
        "the dependencies were not found"
    );
    crates
}

#[test]
fn the_core_is_pure_imports_only_std_and_writes_every_arm() {
    let crates = crates();
    check(
        |file| file.path.starts_with("src/presence/") && is_rust(file),
        |file| rules::core_is_pure(&file.path, &file.text, &crates),
    );
}

#[test]
fn only_the_clock_reads_the_clock() {
    check(
        |file| is_source(file) && file.path != "src/clock.rs",
        |file| rules::clock_is_not_read(&file.text),
    );
}

#[test]
fn no_wait_is_the_sum_of_its_pauses() {
    check(is_source, |file| rules::waits_are_measured(&file.text));
}

#[test]
fn imports_follow_the_arrows() {
    check(is_source, |file| {
        rules::arrows_are_followed(&file.path, &file.text, ARROWS)
    });
}

/// Who starts threads or tasks beside `src/tasks.rs`.
const STARTERS: &[Starter] = &[
    ("src/command/log.rs", 1, "waits for signals and ends the process"),
    (
        "src/engine/assignments.rs",
        1,
        "what partitions do is caught in them, and the threads are joined",
    ),
    (
        "src/gateway/health.rs",
        1,
        "starts again what fails, and is not ready meanwhile",
    ),
    ("src/gateway/uplink/http.rs", 1, "starts itself again"),
    ("src/http/oidc.rs", 1, "the caller waits for it"),
    ("src/load/mod.rs", 1, "the caller waits for it"),
    ("src/sim/many.rs", 1, "the caller joins it"),
    ("src/tasks.rs", 2, "watches them"),
];

#[test]
fn every_thread_and_task_is_watched() {
    check(is_source, |file| {
        rules::what_is_started_is_watched(&file.path, &file.text, STARTERS)
    });
}

/// A place without a name in the lists cannot be chosen, and one without a place is never reached.
#[test]
fn the_failpoints_in_the_lists_are_those_in_the_source() {
    let source = include_str!("../src/failpoint.rs");
    let mut listed: Vec<&str> = Vec::new();
    for list in ["PLACES", "RESHARD_PLACES", "LOCAL_PLACES"] {
        let begin = source.split_once(&format!("pub const {list}: ")).expect("the list").1;
        let names = begin.split_once("= [").and_then(|(_, rest)| rest.split_once(']'));
        listed.extend(names.expect("an array").0.split('"').skip(1).step_by(2));
    }
    listed.sort_unstable();
    let mut reached: Vec<String> = Vec::new();
    for file in files().into_iter().filter(is_source) {
        let calls = file.text.split("failpoint::reach(\"").skip(1);
        reached.extend(calls.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
    }
    reached.sort();
    reached.dedup();
    assert_eq!(reached, listed);
}

/// Kafka is named where a process connects to it. Everybody else has a log, a reader, a follower or owners.
const KAFKA: Inner = (
    "log",
    "kafka",
    &[
        "src/command/connect.rs",
        "src/command/topics.rs",
        "src/command/topics/acls.rs",
        "src/command/doctor.rs",
    ],
);

#[test]
fn kafka_is_named_only_where_a_process_connects_to_it() {
    check(is_source, |file| {
        rules::inner_is_named_where_it_may_be(&file.path, &file.text, KAFKA)
    });
}

#[test]
fn a_log_names_no_output() {
    let outputs = rules::variants(include_str!("../src/topics.rs"), "OutputTopic");
    assert!(outputs.contains(&"Changes".to_owned()), "the outputs were not found");
    check(
        |file| file.path.starts_with("src/log/") && is_rust(file) && !file.path.ends_with("/tests.rs"),
        |file| rules::outputs_are_not_named(&file.text, &outputs),
    );
}

#[test]
fn the_oracle_shares_nothing_with_the_core_but_its_vocabulary() {
    check(
        |file| file.path.starts_with("src/sim/oracle") && is_rust(file),
        |file| rules::oracle_stands_alone(&file.path, &file.text),
    );
}

#[test]
fn who_writes_what_is_kept_or_published_names_every_field() {
    let folders = ["src/schema/", "src/store/", "src/log/", "src/engine/", "src/incidents/"];
    check(
        |file| {
            // This file frames what its modules write.
            let frames = file.path == "src/schema/avro/mod.rs";
            is_source(file) && !frames && folders.iter().any(|folder| file.path.starts_with(folder))
        },
        |file| rules::writers_name_every_field(&file.text),
    );
}

#[test]
fn nothing_is_left_over() {
    check(is_rust, |file| rules::nothing_is_left_over(&file.text));
    check(
        |file| file.path != "Cargo.lock",
        |file| rules::no_marks_are_left(&file.text),
    );
}

#[test]
fn no_file_names_a_machine_or_a_package_registry() {
    check(
        |file| file.path != "Cargo.lock",
        |file| rules::no_machine_is_named(&file.text),
    );
}

#[test]
fn every_source_file_opens_with_its_promise() {
    check(is_source, |file| rules::file_opens_with_its_promise(&file.text));
}

#[test]
fn no_source_file_is_longer_than_a_sitting() {
    check(is_source, |file| {
        rules::file_is_short(&file.path, &file.text, LINES_MAX, &LONG_FILES)
    });
}

/// Words that stay, and why.
const HARD_WORDS_THAT_STAY: [(&str, &str, &str); 6] = [
    (
        "src/schema/wire_event.rs",
        "is none",
        "the text of a malformed record: every log keeps its bytes",
    ),
    ("schemas/README.md", "is none", "the same text, quoted"),
    ("tests/avro/bounds.rs", "is none", "the same text, quoted"),
    ("tests/scenarios/README.md", "told", "the name of a scenario"),
    ("docs/rules.md", "but for", "the rules are a copy, word for word"),
    ("docs/rules.md", "told", "the rules are a copy, word for word"),
];

#[test]
fn no_hard_word_stands_in_source_or_documentation() {
    // In Python and in these lists the words stand for something else.
    let is_prose = |file: &File| {
        let in_folder = ["src/", "docs/", "ops/", "scripts/", "benches/", "tests/"];
        let has_lists = file.path == "tests/tidy.rs" || file.path == "tests/tidy/rules.rs";
        let is_written = file.path.ends_with(".md") || file.path.ends_with(".rs") || !file.path.starts_with("tests/");
        in_folder.iter().any(|folder| file.path.starts_with(folder)) && is_written && !has_lists
            || file.path.ends_with(".md")
    };
    check(is_prose, |file| {
        let mut found = rules::hard_words(&file.text);
        found.retain(|finding| {
            let stays = |(path, word, _): &(&str, &str, &str)| *path == file.path && finding.what.contains(word);
            !HARD_WORDS_THAT_STAY.iter().any(stays)
        });
        found
    });
}

/// A name that means something else in every third module costs a reader a look-up each time.
const FILES_OF_A_NAME_MAX: usize = 2;

/// Each subcommand has its `Args`, each module its `Error`: they are always written with the module's name.
const NAMES_OF_EVERY_MODULE: [&str; 2] = ["Args", "Error"];

/// Names that still stand in too many files, and in how many. The list only ever gets shorter.
const NAMES_NOT_YET_DISTINCT: [(&str, usize); 0] = [];

#[test]
fn no_type_name_means_different_things_in_many_files() {
    let mut types = Vec::new();
    // The oracle is the rules written a second time: its words are theirs.
    for file in files()
        .iter()
        .filter(|file| is_source(file) && !file.path.starts_with("src/sim/oracle"))
    {
        let named = rules::public_types(&file.text).into_iter();
        types.extend(named.map(|(line, name)| (file.path.clone(), line, name)));
    }
    let many = rules::names_in_many_files(&types, FILES_OF_A_NAME_MAX);
    let many: Vec<_> = many
        .into_iter()
        .filter(|(name, _)| !NAMES_OF_EVERY_MODULE.contains(&name.as_str()))
        .collect();
    let mut wrong = Vec::new();
    for (name, places) in &many {
        let left = NAMES_NOT_YET_DISTINCT.iter().find(|(known, _)| known == name);
        if places.len() > left.map_or(0, |(_, left)| *left) {
            wrong.push(format!("{name}: give each a name of its own: {}", places.join(", ")));
        }
    }
    for (name, left) in NAMES_NOT_YET_DISTINCT {
        let now = many
            .iter()
            .find(|(known, _)| known == name)
            .map_or(0, |(_, places)| places.len());
        if now < left {
            wrong.push(format!(
                "{name}: stands in {now} files now: correct NAMES_NOT_YET_DISTINCT in tests/tidy.rs"
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}\n", wrong.join("\n"));
}

#[test]
fn the_code_map_names_every_source_file_and_no_other() {
    let files = files();
    let sources: Vec<&str> = files
        .iter()
        .filter(|file| is_source(file))
        .map(|file| &*file.path)
        .collect();
    let architecture = |file: &File| file.path == "ARCHITECTURE.md";
    check(architecture, |file| {
        let map = file.text.split("## ").find(|part| part.starts_with("Code map"));
        rules::the_map_is_complete(map.expect("there is a code map"), &sources)
    });
}

#[test]
fn every_relative_link_in_markdown_points_to_a_file() {
    check(
        |file| file.path.ends_with(".md"),
        |file| {
            let at = Path::new(env!("CARGO_MANIFEST_DIR")).join(&file.path);
            let mut links = rules::links(&file.text);
            links.retain(|(_, target)| !at.with_file_name(target).exists());
            let broken = |(line, target)| Finding {
                line,
                what: format!("{target}: no such file; correct the link"),
            };
            links.into_iter().map(broken).collect()
        },
    );
}
