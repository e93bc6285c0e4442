//! The worked examples, as tests read them.

use rollcall::presence::Partition;
use rollcall::presence::policy::Policy;
use rollcall::schema::policy::parse_policy;
use std::fs;
use std::path::{Path, PathBuf};

pub struct Scenario {
    pub name: String,
    pub log: String,
    pub expected: String,
    pub policy: Policy,
    pub partition: Partition,
    pub partitions: Option<u32>,
}

pub fn scenarios() -> Vec<Scenario> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let entries = fs::read_dir(&directory).expect("the scenarios are there");
    let mut logs: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    logs.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    logs.sort();
    assert_eq!(logs.len(), 56, "a scenario is missing");
    logs.iter()
        .map(|log| {
            let read = |extension: &str| fs::read_to_string(log.with_extension(extension)).ok();
            let args = read("args").unwrap_or_default();
            let words: Vec<&str> = args.split_whitespace().collect();
            let option = |name: &str| {
                let at = words.iter().position(|word| *word == name)?;
                Some(words[at + 1].parse().expect("a number"))
            };
            let policy = read("policy.json").map(|text| parse_policy(&text).expect("a valid policy"));
            Scenario {
                name: log.file_stem().expect("a name").to_string_lossy().into_owned(),
                log: read("jsonl").expect("the log"),
                expected: read("out").unwrap_or_default(),
                policy: policy.unwrap_or_default(),
                partition: Partition(option("--partition").unwrap_or(0)),
                partitions: option("--partitions"),
            }
        })
        .collect()
}
