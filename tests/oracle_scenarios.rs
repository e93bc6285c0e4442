//! The worked examples, folded by the oracle: both are readings of the same rules, so they must agree.

use rollcall::presence::Partition;
use rollcall::presence::policy::Policy;
use rollcall::sim::oracle_input;
use std::fs;
use std::path::{Path, PathBuf};

fn scenarios() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let mut logs: Vec<PathBuf> = fs::read_dir(folder)
        .expect("the folder of the scenarios")
        .map(|entry| entry.expect("an entry of the folder").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jsonl"))
        .collect();
    logs.sort();
    logs
}

/// The text of `error` in a malformed line is free.
fn without_error(line: &str) -> &str {
    if line.starts_with(r#"{"type":"malformed""#) {
        line.split_once(r#","error":"#).map_or(line, |(start, _)| start)
    } else {
        line
    }
}

fn number_after(words: &[&str], option: &str) -> Option<u32> {
    let place = words.iter().position(|word| *word == option)?;
    Some(words[place + 1].parse().expect("a number in .args"))
}

#[test]
fn the_oracle_agrees_with_every_scenario() {
    let logs = scenarios();
    assert!(logs.len() >= 56, "only {} scenarios found", logs.len());
    let mut wrong = Vec::new();
    for log in logs {
        let policy = match fs::read_to_string(log.with_extension("policy.json")) {
            Ok(document) => {
                let document = serde_json::from_str(&document).expect("a policy in JSON");
                oracle_input::policy(&document).expect("a valid policy")
            }
            Err(_) => Policy::default(),
        };
        let args = fs::read_to_string(log.with_extension("args")).unwrap_or_default();
        let words: Vec<&str> = args.split_whitespace().collect();
        let partition = Partition(number_after(&words, "--partition").unwrap_or(0));
        let partitions = number_after(&words, "--partitions");
        let input = fs::read(&log).expect("a log");
        let expected = fs::read_to_string(log.with_extension("out")).expect("an expected output");

        let folded = oracle_input::fold(&input, policy, partition, partitions);
        assert_eq!(folded.ended_by, None, "{}", log.display());
        let expected: Vec<&str> = expected.lines().map(without_error).collect();
        let actual: Vec<&str> = folded.lines.iter().map(|line| without_error(line)).collect();
        if actual != expected {
            let first = (0..).find(|line| expected.get(*line) != actual.get(*line)).unwrap_or(0);
            wrong.push(format!(
                "{}: line {}\n  expected {:?}\n  actual   {:?}",
                log.display(),
                first + 1,
                expected.get(first),
                actual.get(first)
            ));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
