//! Compares the core with the independent oracle, byte for byte, on random hostile histories.

use rollcall::command::fold::{Setting, TIDY_EVERY, fold};
use rollcall::presence::Partition;
use rollcall::presence::policy::Policy;
use rollcall::sim::{history, oracle_input};
use serde_json::{Value, json};

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

/// Folds lines with both, and compares their outputs. However often memory is tidied, they must be the same.
fn compare(what: &str, input: &str, policy: Policy, partition: Partition, partitions: Option<u32>) {
    let tidied = |tidy_every| {
        let setting = Setting {
            policy: policy.clone(),
            partition,
            partitions,
            state: true,
            tidy_every,
        };
        let mut output = Vec::new();
        fold(setting, input.as_bytes(), &mut output).expect("the log is folded to its end");
        String::from_utf8(output).expect("UTF-8")
    };
    let output = tidied(TIDY_EVERY);
    for tidy_every in [1, 7] {
        assert!(output == tidied(tidy_every), "{what}, tidied every {tidy_every} lines");
    }
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

/// What a field of an event may say instead of what it says.
fn odd_values() -> Vec<Value> {
    let mut values = vec![
        json!(null),
        json!(true),
        json!(false),
        json!(""),
        json!("1"),
        json!("login"),
        json!("～"),
        json!([]),
        json!([1]),
        json!([1, 2, 2]),
        json!([0, 9_223_372_036_854_775_807_u64]),
        json!([9_223_372_036_854_775_808_u64]),
        json!([{}]),
        json!({}),
        json!({"type": "tick"}),
        json!(1.0),
        json!(0.5),
        json!(1e300),
    ];
    for number in [
        -1,
        0,
        1,
        2,
        i64::from(i32::MAX),
        1 << 31,
        (1 << 53) - 1,
        1 << 53,
        i64::MAX,
    ] {
        values.push(json!(number));
    }
    values.extend([
        json!(1_u64 << 63),
        json!(u64::MAX),
        json!(86_400_000),
        json!(86_400_001),
    ]);
    values.extend([json!(315_360_000_000_u64), json!(315_360_000_001_u64)]);
    for length in [63, 64, 65, 100, 101, 127, 128, 129, 256, 257] {
        values.push(json!("x".repeat(length)));
    }
    values
}

/// Alters one field of an object, or of an object or list within it; never the offset, the time, or the type of what
/// would end the run.
fn alter(value: &mut Value, odd: &[Value], random: &mut impl FnMut(usize) -> usize) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            let names: Vec<String> = object.keys().cloned().collect();
            let name = &names[random(names.len())];
            if name == "offset" || name == "ts" {
                return;
            }
            let field = &mut object[name];
            match random(10) {
                0 => {
                    object.remove(name);
                }
                1 => {
                    object.insert("extra".to_owned(), odd[random(odd.len())].clone());
                }
                2..=4 if field.is_object() || field.is_array() => alter(field, odd, random),
                _ => *field = odd[random(odd.len())].clone(),
            }
        }
        Value::Array(list) if !list.is_empty() => {
            let place = random(list.len());
            match random(4) {
                0 => {
                    list.remove(place);
                }
                1 => list.push(odd[random(odd.len())].clone()),
                2 if list[place].is_object() => alter(&mut list[place], odd, random),
                _ => list[place] = odd[random(odd.len())].clone(),
            }
        }
        _ => *value = odd[random(odd.len())].clone(),
    }
}

#[test]
fn altered_lines_are_read_and_folded_by_both_alike() {
    let odd = odd_values();
    for seed in 0..seeds() / 2 {
        let mut state = seed;
        let mut random = |below: usize| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below
        };
        let mut input = String::new();
        for (offset, ts, event) in history::records(seed, RECORDS) {
            let mut line = history::record_json(offset, ts, event.as_ref());
            if random(4) == 0 {
                let mut value = serde_json::from_str(&line).expect("JSON");
                alter(&mut value, &odd, &mut random);
                let revision = value.get("revision").and_then(Value::as_u64);
                // A later revision ends the run, which another test looks at.
                if value["type"] != "revision" || revision.is_none_or(|revision| revision < 2) {
                    line = value.to_string();
                }
            }
            input.push_str(&line);
            input.push('\n');
        }
        let partitions = (seed % 5 == 0).then_some(3);
        let partition = Partition((seed % 3) as u32);
        compare(
            &format!("seed {seed}"),
            &input,
            history::policy(seed),
            partition,
            partitions,
        );
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
            tidy_every: TIDY_EVERY,
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
