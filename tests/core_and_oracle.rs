//! The core against the independent oracle, byte for byte, on random hostile histories.

use rollcall::command::fold::{Setting, fold};
use rollcall::presence::Partition;
use rollcall::sim::{history, oracle_input};

const RECORDS: usize = 800;

/// How many histories; more of them by `ROLLCALL_TEST_SEEDS=COUNT`.
fn seeds() -> u64 {
    match std::env::var("ROLLCALL_TEST_SEEDS") {
        Ok(count) => count.parse().expect("ROLLCALL_TEST_SEEDS is a number"),
        Err(_) => 300,
    }
}

fn same_errors(lines: &str) -> impl Iterator<Item = &str> {
    lines
        .lines()
        .map(|line| match line.starts_with(r#"{"type":"malformed""#) {
            true => line.split(r#","error""#).next().unwrap_or(line),
            false => line,
        })
}

#[test]
fn the_fold_and_the_oracle_print_the_same_bytes() {
    for seed in 0..seeds() {
        let partition = Partition((seed % 3) as u32);
        let partitions = (seed % 5 == 0).then_some(3);
        let records = history::records(seed, RECORDS);
        let input: String = records
            .map(|(offset, ts, event)| history::record_json(offset, ts, event.as_ref()) + "\n")
            .collect();
        let setting = Setting {
            policy: history::policy(seed),
            partition,
            partitions,
            state: true,
        };
        let mut output = Vec::new();
        fold(setting, input.as_bytes(), &mut output).expect("the log is folded to its end");
        let output = String::from_utf8(output).expect("UTF-8");
        let expected = oracle_input::fold(input.as_bytes(), history::policy(seed), partition, partitions);
        assert_eq!(expected.ended_by, None);
        let expected = expected.lines.join("\n");
        let (got, wanted): (Vec<_>, Vec<_>) = (same_errors(&output).collect(), same_errors(&expected).collect());
        let differs = got.iter().zip(&wanted).position(|(got, wanted)| got != wanted);
        if let Some(at) = differs {
            panic!("seed {seed}, line {at}:\n got    {}\n wanted {}", got[at], wanted[at]);
        }
        assert_eq!(got.len(), wanted.len(), "seed {seed}");
    }
}
