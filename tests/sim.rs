//! Simulated worlds: with every kind of fault, outputs and state follow the rules.

use rollcall::sim::many;
use rollcall::sim::world::{Options, run};
use std::io::{Write, stderr};
use std::process::Command;

const SEEDS: u64 = 300;
/// The number of worlds that are derived from the commit.
const SEEDS_OF_COMMIT: u64 = 30;
const SEEDS_ON_ROCKSDB: u64 = 12;

/// The command that plays it again, and what was wrong, of every seed that fails.
fn failing(first: u64, count: u64, options: &Options) -> String {
    let wrong = many::each(first..=first + count - 1, |seed| run(seed, options).err());
    let failures = wrong
        .iter()
        .map(|(seed, what)| format!("make sim SEED={seed}\n    {what}"));
    failures.collect::<Vec<_>>().join("\n")
}

#[test]
fn three_hundred_worlds_come_out_as_the_rules_say() {
    let failures = failing(1, SEEDS, &Options::default());
    assert!(failures.is_empty(), "to play it again:\n{failures}");
}

#[test]
fn worlds_on_rocksdb_come_out_as_the_rules_say() {
    let options = Options {
        on_rocksdb: true,
        ..Options::default()
    };
    let failures = failing(1, SEEDS_ON_ROCKSDB, &options);
    assert!(failures.is_empty(), "to play it again, with --rocksdb:\n{failures}");
}

/// So that every commit sees worlds that none before it has seen.
#[test]
fn the_worlds_that_the_commit_names_come_out_as_the_rules_say() {
    let output = Command::new("git")
        // Also reads a clone that another user owns.
        .args(["-c", "safe.directory=*", "rev-parse", "HEAD"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("git is installed");
    let hash = String::from_utf8_lossy(&output.stdout);
    let seed = hash.get(..8).and_then(|start| u64::from_str_radix(start, 16).ok());
    let first = seed.expect("a commit has a hash of hexadecimal digits");
    let last = first + SEEDS_OF_COMMIT - 1;
    // Not by `println`, which is not shown of a test that passes.
    writeln!(stderr(), "the commit's worlds: make sim SEED={first}-{last}").expect("standard error can be written");
    let failures = failing(first, SEEDS_OF_COMMIT, &Options::default());
    assert!(failures.is_empty(), "to play it again:\n{failures}");
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let options = Options::default();
    for seed in [1, 77, 174, 199] {
        assert!(run(seed, &options).is_ok_and(|report| !report.transcript.is_empty()));
        assert_eq!(run(seed, &options), run(seed, &options), "seed {seed}");
    }
}
