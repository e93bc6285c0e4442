//! The worked examples, through the core.

mod story;

use rollcall::command::fold::{Setting, fold};
use story::scenarios;

/// Only the text of `error` is free.
fn without_errors(output: &str) -> String {
    let free = |line: &str| match line.strip_prefix(r#"{"type":"malformed","offset":"#) {
        Some(rest) => format!("malformed {}", rest.split(',').next().unwrap_or_default()),
        None => line.to_owned(),
    };
    output.lines().map(|line| free(line) + "\n").collect()
}

#[test]
fn every_scenario_folds_to_its_expected_bytes() {
    let scenarios = scenarios();
    let mut failed = Vec::new();
    for scenario in &scenarios {
        let setting = Setting {
            policy: scenario.policy.clone(),
            partition: scenario.partition,
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
