//! The worked examples, through the core.

mod bless;
mod story;

use rollcall::command::fold::{Setting, TIDY_EVERY, fold};
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
    let mut outputs = Vec::new();
    for scenario in &scenarios {
        let tidied = |tidy_every| {
            let setting = Setting {
                policy: scenario.policy.clone(),
                partition: scenario.partition,
                partitions: scenario.partitions,
                state: true,
                tidy_every,
            };
            let mut output = Vec::new();
            fold(setting, scenario.log.as_bytes(), &mut output).expect("the log is folded to its end");
            String::from_utf8(output).expect("UTF-8")
        };
        let output = tidied(TIDY_EVERY);
        assert!(output == tidied(1), "{}, tidied after every line", scenario.name);
        // One that differs in free text only stays as it is.
        let is_same = without_errors(&output) == without_errors(&scenario.expected);
        let output = if is_same { scenario.expected.clone() } else { output };
        outputs.push((format!("tests/scenarios/{}.out", scenario.name), output));
    }
    bless::check(outputs.iter().map(|(file, output)| (file.as_str(), output.as_str())));
    println!("{} scenarios folded to their expected bytes", scenarios.len());
}
