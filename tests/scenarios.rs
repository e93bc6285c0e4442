//! The worked examples, through the core.

use rollcall::command::fold::{Setting, fold};
use rollcall::presence::Partition;
use rollcall::schema::policy::parse_policy;
use std::fs;
use std::path::{Path, PathBuf};

pub struct Scenario {
    pub name: String,
    pub log: String,
    pub expected: String,
    pub policy: Option<String>,
    pub partition: u32,
    pub partitions: Option<u32>,
}

pub fn scenarios() -> Vec<Scenario> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let entries = fs::read_dir(&directory).expect("the scenarios are there");
    let mut logs: Vec<PathBuf> = entries.map(|entry| entry.expect("readable").path()).collect();
    logs.retain(|path| path.extension().is_some_and(|extension| extension == "jsonl"));
    logs.sort();
    logs.iter()
        .map(|log| {
            let read = |extension: &str| fs::read_to_string(log.with_extension(extension)).ok();
            let args = read("args").unwrap_or_default();
            let words: Vec<&str> = args.split_whitespace().collect();
            let option = |name: &str| {
                let at = words.iter().position(|word| *word == name)?;
                Some(words[at + 1].parse().expect("a number"))
            };
            Scenario {
                name: log.file_stem().expect("a name").to_string_lossy().into_owned(),
                log: read("jsonl").expect("the log"),
                expected: read("out").expect("the expected output"),
                policy: read("policy.json"),
                partition: option("--partition").unwrap_or(0),
                partitions: option("--partitions"),
            }
        })
        .collect()
}

/// Only the text of `error` is free.
pub fn without_errors(output: &str) -> String {
    let free = |line: &str| match line.strip_prefix(r#"{"type":"malformed","offset":"#) {
        Some(rest) => format!("malformed {}", rest.split(',').next().unwrap_or_default()),
        None => line.to_owned(),
    };
    output.lines().map(|line| free(line) + "\n").collect()
}

#[test]
fn every_scenario_folds_to_its_expected_bytes() {
    let scenarios = scenarios();
    assert_eq!(scenarios.len(), 51, "a scenario is missing");
    let mut failed = Vec::new();
    for scenario in &scenarios {
        let policy = scenario
            .policy
            .as_deref()
            .map(|text| parse_policy(text).expect("a valid policy"));
        let setting = Setting {
            policy: policy.unwrap_or_default(),
            partition: Partition(scenario.partition),
            partitions: scenario.partitions,
            state: true,
        };
        let mut output = Vec::new();
        fold(setting, scenario.log.as_bytes(), &mut output).expect("the log is folded to its end");
        let output = String::from_utf8(output).expect("UTF-8");
        let (got, wanted) = (without_errors(&output), without_errors(&scenario.expected));
        if got != wanted {
            let differs = got.lines().zip(wanted.lines()).find(|(got, wanted)| got != wanted);
            failed.push(format!("{}: {differs:#?}", scenario.name));
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {}:\n{}",
        failed.len(),
        scenarios.len(),
        failed.join("\n")
    );
    println!("{} scenarios folded to their expected bytes", scenarios.len());
}
