//! The input of `rollcall fold` as text: blank lines, lines that are not records, bad arguments. Also the errors of every command
//! that need only the program ([`messages`]), and the commands that ask a running server ([`remote`]).

#[path = "messages/mod.rs"]
mod messages;
#[path = "messages/remote.rs"]
mod remote;
mod server;

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

fn fold(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .arg("fold")
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    // A run that is refused before anything is read closes its input.
    let _ = child.stdin.take().expect("its input").write_all(input);
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("UTF-8")
}

const LOGIN: &str = r#"{"offset":0,"ts":1,"type":"connect","user":"a","platform":"web","device":"w","gateway":"g","epoch":1,"conn":1,"intent":"login"}"#;

#[test]
fn blank_lines_are_skipped_and_the_last_line_needs_no_end() {
    let output = fold(
        &[],
        format!("\n \t\r\n{LOGIN}\r\n\n{}", r#"{"offset":1,"ts":2,"type":"tick"}"#).as_bytes(),
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_eq!(text(&output.stdout).lines().count(), 1);
}

#[test]
fn a_line_that_is_no_record_ends_the_run_after_what_came_before_and_names_the_line() {
    let lines: [&[u8]; 14] = [
        b"\x0c",
        b"7",
        b"[]",
        b"{",
        br#"{"ts":1,"type":"tick"}"#,
        br#"{"offset":1,"type":"tick"}"#,
        br#"{"offset":1.0,"ts":1,"type":"tick"}"#,
        br#"{"offset":-1,"ts":1,"type":"tick"}"#,
        br#"{"offset":true,"ts":1,"type":"tick"}"#,
        br#"{"offset":1,"ts":9007199254740992,"type":"tick"}"#,
        br#"{"offset":0,"ts":1,"type":"tick"}"#,
        br#"{"offset":1,"ts":1,"type":"tick","more":"\ud800"}"#,
        br#"{"offset":1,"ts":1,"type":"tick","\udc00":1}"#,
        b"{\"offset\":1,\"ts\":1,\"type\":\"tick\",\"more\":\"\xff\"}",
    ];
    for line in lines {
        let mut input = format!("{LOGIN}\n").into_bytes();
        input.extend_from_slice(line);
        input.push(b'\n');
        let output = fold(&["--state"], &input);
        let shown = String::from_utf8_lossy(line);
        assert_eq!(output.status.code(), Some(2), "{shown}");
        assert_eq!(text(&output.stdout).lines().count(), 1, "{shown}");
        assert!(
            text(&output.stderr).starts_with("error: line 2 "),
            "{shown}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn a_line_that_cannot_be_read_is_named_once_and_explained() {
    for (line, expected) in [
        (
            "\u{feff}{}",
            "line 2 is not a record, because: it begins with a byte order mark (U+FEFF)",
        ),
        (
            r#"{"offset":2,"ts":2,"type":"connect","user":"\ud83d"}"#,
            "line 2 is not a record, because: it has half of a pair of surrogates before column",
        ),
        (
            r#"{"offset":2,"ts":2,"type":"connect","user":"\ude00\ud83d"}"#,
            "line 2 is not a record, because: it has half of a pair of surrogates before column",
        ),
        ("offset", "line 2 is not a record, because: expected value, in column 1"),
    ] {
        let output = fold(&[], format!("{LOGIN}\n{line}\n").as_bytes());
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(expected) && !said.contains("line 1"), "{said}");
    }
}

#[test]
fn a_directory_in_the_place_of_events_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let named = directory.path().to_str().expect("UTF-8");
    let output = fold(&[named], b"");
    assert_eq!(output.status.code(), Some(2));
    let expected = format!("cannot read {named}: it is a directory; name a file");
    assert!(text(&output.stderr).contains(&expected), "{}", text(&output.stderr));
}

#[test]
fn a_line_without_an_end_is_not_gathered_in_memory() {
    let mut input = format!("{LOGIN}\n").into_bytes();
    input.resize(input.len() + (17 << 20), b' ');
    let output = fold(&[], &input);
    assert_eq!(output.status.code(), Some(2));
    let said = text(&output.stderr);
    assert!(
        said.contains("line 2 is not a record: it is longer than 16 MiB"),
        "{said}"
    );
    assert!(
        text(&output.stdout).contains("\"cause\":\"login\""),
        "what came before is folded"
    );
}

#[test]
fn a_pair_of_surrogates_in_a_skipped_field_is_fine() {
    let output = fold(
        &[],
        br#"{"offset":1,"ts":1,"type":"tick","more":["\ud83d\ude00",{"\u0041":null}]}"#,
    );
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn bad_arguments_are_refused_before_anything_is_read() {
    let directory = tempfile::tempdir().expect("a directory");
    let policy = directory.path().join("policy.json");
    std::fs::write(&policy, r#"{"kicked_max":65}"#).expect("written");
    let policy = policy.to_str().expect("UTF-8");
    for args in [
        vec!["--partition", "3", "--partitions", "3"],
        vec!["--partitions", "0"],
        vec!["--policy", policy],
        vec!["--policy", "no-such-file.json"],
        vec!["no-such-file.jsonl"],
    ] {
        let output = fold(&args, LOGIN.as_bytes());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(output.stdout.is_empty(), "{args:?}");
        assert!(
            text(&output.stderr).starts_with("error: "),
            "{args:?}: {}",
            text(&output.stderr)
        );
    }
    let output = fold(&["--policy", policy], b"");
    assert!(
        text(&output.stderr).contains("kicked_max must be 0 to 64, not 65"),
        "{}",
        text(&output.stderr)
    );
}
