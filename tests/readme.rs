//! The README's examples, run in its order against the real binary with the real curl: what it shows is what is printed.
//!
//! An example is a block marked `sh` with a block marked `text` right after it. Everything must be as shown, offsets and
//! ids too, except times: those that end in the same three digits in the README belong to one moment there, so that
//! they must all be shifted by the same span here.
//!
//! The server is the one of `make run`, simulated users and all. A person types slowly: after each step every device that
//! is online must have so much time left that the rest can be typed at [`STEP_MS`] each.
//!
//! Those of the section on Kafka run against two nodes and a real broker.
//!
//! And what other documents name: tests, settings, metrics.

#[path = "kafka/broker.rs"]
mod broker;

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const README: &str = include_str!("../README.md");
const ADDRESS: &str = "127.0.0.1:8080";
const NODES: [&str; 2] = ["127.0.0.1:8081", "127.0.0.1:8082"];
const BROKER: &str = "127.0.0.1:9092";
/// What a person takes for a command.
const STEP_MS: u64 = 40_000;
/// What only reads is asked again for so long: a position without outputs is committed within a second.
const PATIENCE: Duration = Duration::from_secs(120);

#[derive(PartialEq, Eq, Debug)]
struct Example {
    line: usize,
    command: String,
    output: String,
}

/// Every block of a text: its first line, how it is marked, what is in it, and the line after it.
fn blocks(text: &str) -> Vec<(usize, &str, String, usize)> {
    let mut blocks = Vec::new();
    let mut open: Option<(usize, &str, String)> = None;
    for (number, line) in (1..).zip(text.lines()) {
        match (line.strip_prefix("```"), &mut open) {
            (Some(mark), None) => open = Some((number, mark, String::new())),
            (Some(_), Some(_)) => {
                let (first, mark, content) = open.take().expect("a block is open");
                blocks.push((first, mark, content, number + 1));
            }
            (None, Some((_, _, content))) => {
                content.push_str(line);
                content.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a block has no end");
    blocks
}

fn examples(text: &str) -> Vec<Example> {
    let blocks = blocks(text);
    let mut examples = Vec::new();
    for (number, (line, mark, command, end)) in blocks.iter().enumerate() {
        let after = blocks.get(number + 1);
        match after.filter(|(first, mark, ..)| first == end && *mark == "text") {
            Some((_, _, output, _)) if *mark == "sh" => examples.push(Example {
                line: *line,
                command: command.clone(),
                output: output.clone(),
            }),
            _ => assert!(
                !command.contains("curl") || *mark != "sh",
                "line {line}: what does curl print here?"
            ),
        }
    }
    examples
}

/// From the last three digits of a moment in the README to how much later it was here.
type Shifts = BTreeMap<u64, i128>;

/// What differs first, in a sentence.
fn compare(shown: &str, printed: &str, shifts: &mut Shifts) -> Result<(), String> {
    let (shown_pieces, printed_pieces) = (pieces(shown), pieces(printed));
    for (shown, printed) in shown_pieces.iter().zip(&printed_pieces) {
        match (time(shown), time(printed)) {
            (Some(there), Some(here)) => {
                let shift = i128::from(here) - i128::from(there);
                let known = *shifts.entry(there % 1_000).or_insert(shift);
                if known != shift {
                    return Err(format!(
                        "{here} for {there} is {shift} ms later, other times {known} ms"
                    ));
                }
            }
            _ if shown == printed => {}
            _ => return Err(format!("{printed:?} for {shown:?}")),
        }
    }
    match shown_pieces.len() == printed_pieces.len() {
        true => Ok(()),
        false => Err("one of the two goes on".to_owned()),
    }
}

/// Runs of digits, and what is between them.
fn pieces(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let other = |c: char| c.is_ascii_digit() != first.is_ascii_digit();
        let (piece, tail) = rest.split_at(rest.find(other).unwrap_or(rest.len()));
        pieces.push(piece);
        rest = tail;
    }
    pieces
}

/// Milliseconds of a year between 2001 and 2286.
fn time(piece: &str) -> Option<u64> {
    piece.parse().ok().filter(|_| piece.len() == 13)
}

struct Server(Child);

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `rollcall serve` in a directory, with the address it says.
fn serve(directory: &Path, more: &[&str]) -> (Server, String) {
    let child = Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .args(["serve", "--listen", "127.0.0.1:0"])
        .args(more)
        .current_dir(directory)
        .stdout(Stdio::piped())
        .spawn();
    let mut server = Server(child.expect("the server starts"));
    let output = server.0.stdout.take().expect("it is piped");
    let mut lines = BufReader::new(output).lines().map(|line| line.expect("it is text"));
    let console = lines.find_map(|line| Some(line.strip_prefix("console")?.trim().to_owned()));
    let console = console.expect("the server says where it is");
    let address = console.trim_start_matches("http://").trim_end_matches('/').to_owned();
    (server, address)
}

/// Waits until a server is ready.
fn wait_for(address: &str, directory: &Path) {
    let ask = format!("curl -s -o /dev/null -w '%{{http_code}}' http://{address}/readyz");
    let began = Instant::now();
    while run(&ask, directory) != "200" {
        assert!(began.elapsed() < PATIENCE, "{address} does not get ready");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What a command prints, with the program first on the path.
fn run(command: &str, directory: &Path) -> String {
    let programs = Path::new(env!("CARGO_BIN_EXE_rollcall")).parent().expect("a directory");
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default());
    let output = Command::new("sh")
        .args(["-c", command])
        .current_dir(directory)
        .env("PATH", path)
        .output()
        .expect("there is a shell");
    assert!(
        output.stderr.is_empty(),
        "{command}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("it is text")
}

/// The section on Kafka, and the text before it.
fn sections() -> (&'static str, &'static str) {
    let (before, on_kafka) = README
        .split_once("\n## On Kafka\n")
        .expect("there is a section on Kafka");
    let (on_kafka, _) = on_kafka.split_once("\n## ").expect("it ends");
    (before, on_kafka)
}

/// Runs examples in their order, each until it prints what is shown; `there` says where what is named really is.
fn run_examples(examples: Vec<Example>, directory: &Path, there: &[(&str, &str)]) {
    let mut shifts = Shifts::new();
    let mut left = examples.len() as u64;
    for Example { line, command, output } in examples {
        left -= 1;
        let real = |command: String, (named, real): &(&str, &str)| command.replace(named, real);
        let command = there.iter().fold(command, real);
        let publishes = command.contains("/v1/events -d");
        let began = Instant::now();
        loop {
            let mut printed = run(&command, directory);
            if !printed.ends_with('\n') {
                printed.push('\n');
            }
            let mut shifted = shifts.clone();
            // Server-sent events end with an empty line, which Markdown need not show.
            let compared = compare(output.trim_end(), printed.trim_end(), &mut shifted);
            let Err(what) = compared else {
                shifts = shifted;
                break;
            };

            if publishes || began.elapsed() > PATIENCE {
                panic!("README.md:{line}: {what}\n{command}\nshown:\n{output}\nprinted:\n{printed}");
            }
        }
        if publishes {
            let ask = format!("curl -s http://{}/v1/users/alice", there[0].1);
            let alice = loop {
                let alice: serde_json::Value = serde_json::from_str(&run(&ask, directory)).expect("JSON");
                if alice["devices"].is_array() {
                    break alice;
                }
                assert!(began.elapsed() < PATIENCE, "{alice}");
            };
            let now_ms = alice["as_of"]["time"].as_u64().expect("a time");
            for device in alice["devices"].as_array().expect("devices") {
                let ends_ms = device["deadline"].as_u64().expect("a deadline");
                assert!(
                    device["state"] != "online" || ends_ms >= now_ms + left * STEP_MS,
                    "README.md:{line}: with {left} commands to come a slow reader is late: {alice}"
                );
            }
        }
    }
}

/// The arguments of `make run`, on free ports.
fn made() -> Vec<&'static str> {
    let makefile = include_str!("../Makefile");
    let line = makefile
        .lines()
        .find_map(|line| line.trim().strip_prefix("@$(BIN)/rollcall serve "));
    let words = line.expect("make run starts a server").split_whitespace();
    let words: Vec<_> = words
        .map(|word| if word.contains(':') { "127.0.0.1:0" } else { word })
        .collect();
    assert!(words.contains(&"--demo") && words.contains(&"--gateway"), "{words:?}");
    words
}

#[test]
fn every_example_of_the_readme_prints_what_it_shows() {
    let there = Command::new("curl").arg("--version").output();
    assert!(there.is_ok(), "there is no curl; scripts/setup installs it");
    let there = Command::new("jq").arg("--version").output();
    assert!(there.is_ok(), "there is no jq; scripts/setup installs it");
    let examples = examples(sections().0);
    let with_curl = examples.iter().filter(|example| example.command.contains("curl"));
    assert!(with_curl.count() >= 5, "the examples were not found");
    let directory = tempfile::tempdir().expect("a directory");
    let (_server, address) = serve(directory.path(), &made());
    wait_for(&address, directory.path());
    run_examples(examples, directory.path(), &[(ADDRESS, &address)]);
}

#[test]
fn two_nodes_on_kafka_print_what_the_readme_shows() {
    let section = sections().1;
    let examples = examples(section);
    assert!(examples.len() >= 3, "the examples were not found");
    let cluster = broker::Cluster::start(1, &[]);
    let directory = tempfile::tempdir().expect("a directory");
    let create = section.lines().find(|line| line.starts_with("rollcall topics create"));
    let create = create.expect("the topics are made").replace(BROKER, &cluster.bootstrap);
    run(&create, directory.path());
    let node = |data| serve(directory.path(), &["--kafka", &cluster.bootstrap, "--data", data]);
    let (_one, first) = node("node1");
    let (_other, second) = node("node2");
    [&first, &second]
        .iter()
        .for_each(|address| wait_for(address, directory.path()));
    run_examples(
        examples,
        directory.path(),
        &[(NODES[0], &first), (NODES[1], &second), (BROKER, &cluster.bootstrap)],
    );
}

#[test]
fn another_number_word_or_length_is_a_difference() {
    let shown = r#"{"offset":2,"at":1700000000123,"deadline":1700000060123}"#;
    let differs = |printed: &str| compare(shown, printed, &mut Shifts::new()).is_err();
    assert!(!differs(shown));
    assert!(!differs(r#"{"offset":2,"at":1800000000777,"deadline":1800000060777}"#));
    assert!(differs(r#"{"offset":3,"at":1800000000777,"deadline":1800000060777}"#));
    assert!(differs(r#"{"offset":2,"at":1800000000777,"deadline":1800000060778}"#));
    assert!(differs(r#"{"offset":2,"at":1800000000777,"deadline":1800000400777}"#));
    assert!(differs(r#"{"offset":2,"at":180000000077,"deadline":1800000060777}"#));
    assert!(differs(r#"{"offset":2,"by":1800000000777,"deadline":1800000060777}"#));
    assert!(differs(r#"{"offset":2,"at":1800000000777"#));
    assert!(differs(""));
    assert!(compare("", shown, &mut Shifts::new()).is_err());
}

#[test]
fn an_example_is_a_command_with_the_output_right_after_it() {
    let text = "```sh\nmake run\n```\nsome words\n```sh\necho 1\n```\n```text\n1\n```\n```text\n2\n```\n";
    let [Example { line, command, output }] = &examples(text)[..] else {
        panic!("one example: {:?}", examples(text));
    };
    assert_eq!((*line, command.as_str(), output.as_str()), (5, "echo 1\n", "1\n"));
}

/// The words of a text between backticks for which `is` holds.
fn quoted(text: &str, is: impl Fn(&str) -> bool) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).filter(|word| is(word)).collect()
}

/// Every Rust file below a directory, in one text.
fn source(directory: &Path) -> String {
    let mut text = String::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            text += &source(&path);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            text += &std::fs::read_to_string(path).expect("text");
        }
    }
    text
}

#[test]
fn every_test_that_the_architecture_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let tests = source(&root.join("tests")) + &source(&root.join("src"));
    let is_sentence =
        |word: &str| word.matches('_').count() >= 3 && !word.contains([' ', '/']) && !word.starts_with("rollcall_");
    let named = quoted(include_str!("../ARCHITECTURE.md"), is_sentence);
    assert!(named.len() >= 15, "the table of invariants was not found: {named:?}");
    for name in named {
        assert!(tests.contains(&format!("fn {name}(")), "there is no test {name}");
    }
}

/// The words of a text that begin so.
fn beginning<'t>(text: &'t str, with: &str) -> Vec<&'t str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words
        .filter(|word| word.starts_with(with) && word.len() > with.len())
        .collect()
}

#[test]
fn every_setting_and_metric_is_told_and_none_that_is_not_there() {
    let documented = include_str!("../docs/operating.md");
    for (code, with, least) in [
        (
            concat!(
                include_str!("../src/config.rs"),
                include_str!("../src/command/remote.rs")
            ),
            "ROLLCALL_",
            12,
        ),
        (include_str!("../src/metrics.rs"), "rollcall_", 13),
    ] {
        let mut there = beginning(code, with);
        let mut here = beginning(documented, with);
        for names in [&mut there, &mut here] {
            names.sort_unstable();
            names.dedup();
        }
        assert!(there.len() >= least, "they were not found: {there:?}");
        assert_eq!(there, here);
    }
}
