//! The core against the independent oracle, byte for byte, on random hostile histories.

use rollcall::command::fold::{Setting, fold};
use rollcall::presence::Partition;
use rollcall::presence::policy::Policy;
use rollcall::sim::{history, oracle_input};

const RECORDS: usize = 800;
/// Every so many seeds one is long enough for more early ends than are remembered.
const LONG_EVERY: u64 = 20;
const LONG_RECORDS: usize = 2_600;

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

/// Folds lines by both, and holds what they print against one another.
fn compare(what: &str, input: &str, policy: Policy, partition: Partition, partitions: Option<u32>) {
    let setting = Setting {
        policy: policy.clone(),
        partition,
        partitions,
        state: true,
    };
    let mut output = Vec::new();
    fold(setting, input.as_bytes(), &mut output).expect("the log is folded to its end");
    let output = String::from_utf8(output).expect("UTF-8");
    let expected = oracle_input::fold(input.as_bytes(), policy, partition, partitions);
    assert_eq!(expected.ended_by, None);
    let expected = expected.lines.join("\n");
    let (got, wanted): (Vec<_>, Vec<_>) = (same_errors(&output).collect(), same_errors(&expected).collect());
    let differs = got.iter().zip(&wanted).position(|(got, wanted)| got != wanted);
    if let Some(at) = differs {
        panic!("{what}, line {at}:\n got    {}\n wanted {}", got[at], wanted[at]);
    }
    assert_eq!(got.len(), wanted.len(), "{what}");
}

#[test]
fn the_fold_and_the_oracle_print_the_same_bytes() {
    for seed in 0..seeds() {
        let partition = Partition((seed % 3) as u32);
        let partitions = (seed % 5 == 0).then_some(3);
        let count = if seed % LONG_EVERY == 7 { LONG_RECORDS } else { RECORDS };
        let input: String = history::records(seed, count)
            .map(|(offset, ts, event)| history::record_json(offset, ts, event.as_ref()) + "\n")
            .collect();
        let policy = history::policy(seed);
        compare(&format!("seed {seed}"), &input, policy, partition, partitions);
    }
}

/// An `alive` record at its bound and just beyond it, with devices that are online, linger, and are away among the
/// numbers.
#[test]
fn an_alive_record_of_a_hundred_thousand_connections_is_folded_by_both_alike() {
    let connect = |offset: u64, conn: u64| {
        format!(
            r#"{{"offset":{offset},"ts":{offset},"type":"connect","user":"u{offset}","platform":"web","device":"d","gateway":"g","epoch":1,"conn":{conn},"intent":"login"}}"#
        )
    };
    let alive = |offset: u64, count: u64| {
        let conns: Vec<String> = (0..count).map(|conn| (conn * 3).to_string()).collect();
        let conns = conns.join(",");
        format!(r#"{{"offset":{offset},"ts":{offset},"type":"alive","gateway":"g","epoch":1,"conns":[{conns}]}}"#)
    };
    let mut lines: Vec<String> = (0..500).map(|offset| connect(offset, offset * 2)).collect();
    // The last conn there is.
    lines.push(connect(500, i64::MAX as u64));
    for offset in 501..600 {
        let number = offset - 501;
        lines.push(format!(
            r#"{{"offset":{offset},"ts":{offset},"type":"disconnect","user":"u{number}","platform":"web","device":"d","gateway":"g","epoch":1,"conn":{},"reason":"{}"}}"#,
            number * 2,
            ["closed", "exit"][number as usize % 2],
        ));
    }
    lines.push(alive(600, 100_000));
    lines.push(alive(601, 100_001));
    lines.push(format!(
        r#"{{"offset":602,"ts":602,"type":"alive","gateway":"g","epoch":1,"conns":[0,{}]}}"#,
        i64::MAX
    ));
    let document = serde_json::json!({"platforms": {"web": {"exit_ms": 5000}}});
    let policy = oracle_input::policy(&document).expect("a valid policy");
    compare("alive", &(lines.join("\n") + "\n"), policy, Partition(0), None);
}

/// What the fold does not know it does not fold, and what came before it is printed.
#[test]
fn a_revision_that_is_not_known_ends_the_run_before_it() {
    let known = "{\"offset\":0,\"ts\":5,\"type\":\"revision\",\"revision\":1}\n";
    for revision in ["2", "3", "2147483647"] {
        let login = r#"{"offset":1,"ts":5,"type":"connect","user":"u","platform":"web","device":"d","gateway":"g","epoch":1,"conn":1,"intent":"login"}"#;
        let ends = format!(r#"{{"offset":2,"ts":70000,"type":"revision","revision":{revision}}}"#);
        let after = r#"{"offset":3,"ts":80000,"type":"tick"}"#;
        let input = format!("{known}{login}\n{ends}\n{after}\n");
        let setting = Setting {
            policy: Policy::default(),
            partition: Partition(0),
            partitions: None,
            state: true,
        };
        let mut output = Vec::new();
        let ended = fold(setting, input.as_bytes(), &mut output).expect_err("it ends before the end of the log");
        assert!(ended.to_string().contains("line 3"), "{ended}");
        let expected = oracle_input::fold(input.as_bytes(), Policy::default(), Partition(0), None);
        assert_eq!(expected.ended_by.map(|(line, _)| line), Some(3));
        let output = String::from_utf8(output).expect("UTF-8");
        assert_eq!(output.lines().collect::<Vec<_>>(), expected.lines);
        assert_eq!(expected.lines.len(), 1, "the login, and nothing of the time-out");
    }
}
