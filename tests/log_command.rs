//! `rollcall log`, the real binary on a real log: its output can be folded, and its failures are errors.

#[path = "log_command/reshard.rs"]
mod reshard;
mod server;

use rollcall::clock::{Clock as _, ManualClock, SystemClock};
use rollcall::engine::Tuning;
use rollcall::engine::partition::PartitionProcessor;
use rollcall::log::local::{LocalLog, Settings};
use rollcall::log::{Appended, Limit, Log as _, NewRecord};
use rollcall::presence::event::Event;
use rollcall::presence::policy::Policy;
use rollcall::presence::{Offset, Partition};
use rollcall::schema::partitioner::partition_of;
use rollcall::schema::policy::parse_policy;
use rollcall::schema::{avro, json};
use server::{ANYWHERE, Server, rollcall, wait_until};
use std::borrow::Cow;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, mpsc};
use std::time::Duration;

const PARTITIONS: u32 = 2;

/// A data directory with its log open, as `serve` has it.
struct House {
    data: tempfile::TempDir,
    log: Arc<LocalLog>,
    clock: Arc<ManualClock>,
}

impl House {
    fn new() -> House {
        House::at(1_000_000)
    }

    fn at(now_ms: u64) -> House {
        let data = tempfile::tempdir().unwrap();
        let clock = Arc::new(ManualClock::new(now_ms));
        let settings = Settings {
            partitions: Some(PARTITIONS),
            retention_bytes: Some(1),
            ..Settings::default()
        };
        let log = LocalLog::open(&data.path().join("log"), settings, clock.clone()).unwrap();
        House {
            data,
            log: Arc::new(log),
            clock,
        }
    }

    fn append(&self, partition: Partition, key: Option<&str>, value: Vec<u8>) {
        let (sender, receiver) = mpsc::channel();
        let key = key.map(|key| key.as_bytes().to_vec());
        let acknowledge = Box::new(move |result: Result<Vec<Appended>, _>| sender.send(result).unwrap());
        self.log.append(
            vec![(
                partition,
                NewRecord {
                    key,
                    value,
                    headers: Vec::new(),
                },
            )],
            acknowledge,
        );
        receiver.recv().unwrap().unwrap();
    }

    /// An event as JSON, to the partition of its user or to every one.
    fn publish(&self, event: &str) {
        let body = format!("[{event}]");
        let event = json::read_new_events(&body).unwrap().remove(0).unwrap().event;
        self.publish_event(&event);
    }

    fn publish_event(&self, event: &Event<'_>) {
        let mut value = Vec::new();
        avro::encode_event(event, &mut value);
        match event.user() {
            Some(user) => self.append(partition_of(user, PARTITIONS), Some(user), value),
            None => (0..PARTITIONS).for_each(|partition| self.append(Partition(partition), None, value.clone())),
        }
    }

    fn connect(&self, user: &str, device: &str, conn: u64) {
        self.publish(&format!(
            r#"{{"type":"connect","user":"{user}","platform":"android","device":"{device}","gateway":"g1","epoch":1,"conn":{conn},"intent":"login"}}"#
        ));
    }

    /// Some users come, are displaced and get lost; a policy of several lines and rubbish are among it.
    fn fill(&self) {
        self.publish(r#"{"type":"lease","gateway":"g1","epoch":1,"ttl_ms":30000}"#);
        let document = "{\n  \"login\": \"single\",\r\n  \"kicked_max\": 3\n}\n";
        self.publish_event(&Event::Policy {
            policy: Box::new(parse_policy(document).unwrap()),
            document: Cow::Borrowed(document),
        });
        for number in 0..20 {
            self.connect(&format!("user-{number}"), "phone", number);
        }
        self.append(Partition(0), None, b"no event".to_vec());
        self.clock.advance_ms(1_000);
        for number in 0..10 {
            self.connect(&format!("user-{number}"), "other phone", 100 + number);
        }
        self.publish(r#"{"type":"custom_status","user":"user-3","text":"in\na \"train\""}"#);
        self.clock.advance_ms(60_000);
        self.publish(r#"{"type":"tick"}"#);
    }

    /// Folds what is in the log, as the engine does.
    fn fold(&self) {
        for partition in (0..PARTITIONS).map(Partition) {
            let mut walk = PartitionProcessor::open(
                self.log.take_up(partition).unwrap(),
                None,
                &Policy::default(),
                self.clock.clone(),
                Tuning::default(),
            )
            .unwrap();
            let limit = Limit {
                records: 7,
                bytes: 1 << 20,
            };
            while walk.step(limit).unwrap().records > 0 {}
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        command(self.data.path(), arguments)
    }

    /// The lines that the command prints.
    fn lines(&self, arguments: &[&str]) -> Vec<String> {
        let output = self.command(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}: {error}");
        let text = String::from_utf8(output.stdout).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    /// What the command complains of.
    fn complaint(&self, arguments: &[&str]) -> String {
        complaint(self.command(arguments).output().unwrap())
    }
}

fn command(data: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    command.arg("log").args(arguments).arg("--data").arg(data);
    command
}

#[track_caller]
fn complaint(output: Output) -> String {
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(output.stdout, b"");
    String::from_utf8(output.stderr).unwrap()
}

/// Feeds lines to `rollcall fold`.
fn fold(lines: &[String], arguments: &[&str]) -> Vec<String> {
    let mut child = Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .arg("fold")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    for line in lines {
        writeln!(input, "{line}").unwrap();
    }
    drop(input);
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::to_owned).collect()
}

fn of_type<'l>(kind: &str, lines: &'l [String]) -> Vec<&'l String> {
    let start = format!(r#"{{"type":"{kind}""#);
    lines.iter().filter(|line| line.starts_with(&start)).collect()
}

#[test]
fn what_is_printed_of_events_folds_to_what_is_printed_of_changes_and_kicks() {
    let house = House::new();
    house.fill();
    house.fold();
    let mut all = Vec::new();
    for partition in ["0", "1"] {
        let here = ["--partition", partition];
        let events = house.lines(&[&["events"][..], &here].concat());
        let folded = fold(&events, &[&here[..], &["--partitions", "2"]].concat());
        let changes = house.lines(&[&["changes"][..], &here].concat());
        let kicks = house.lines(&[&["kicks"][..], &here].concat());
        assert_eq!(changes.iter().collect::<Vec<_>>(), of_type("change", &folded));
        assert_eq!(kicks.iter().collect::<Vec<_>>(), of_type("kick", &folded));
        assert!(changes.len() > 10 && kicks.len() > 1);
        let malformed = of_type("malformed", &folded).len();
        assert_eq!(malformed, usize::from(partition == "0"));
        all.extend(events);
    }
    assert_eq!(house.lines(&["events"]), all, "one partition after the other");
    let policies = all.iter().filter(|line| line.contains(r#""type":"policy""#)).count();
    assert_eq!(policies, 2, "each on one line");
    assert!(
        all.iter()
            .any(|line| line.contains(r#""ts":1000000,"type":"malformed","reason":"unreadable","error":""#))
    );
}

#[test]
fn a_record_with_a_wrong_key_or_in_a_wrong_partition_is_malformed() {
    let house = House::new();
    house.connect("alice", "a1", 1);
    let right = partition_of("alice", PARTITIONS);
    let wrong = Partition(1 - right.0);
    let mut value = Vec::new();
    let body = r#"[{"type":"forget","user":"alice"}]"#;
    avro::encode_event(
        &json::read_new_events(body).unwrap()[0].as_ref().unwrap().event,
        &mut value,
    );
    house.append(right, Some("bob"), value.clone());
    house.append(wrong, Some("alice"), value);
    let wrong_key = r#"the record's key must be its user \"alice\", not \"bob\""#;
    let home = format!(r#"user \"alice\" belongs to partition {right} of 2, not to {wrong}"#);
    let is_wrong_partition = format!("{home}: is the publisher's partitioner murmur2?");
    let malformed = |offset: u64, reason: &str, error: &str, key: &str| {
        let what = format!(r#""reason":"{reason}","error":"{error}","key":"{key}""#);
        format!(r#"{{"offset":{offset},"ts":1000000,"type":"malformed",{what}}}"#)
    };
    let partition = |partition: Partition| house.lines(&["events", "--partition", &partition.to_string()]);
    assert_eq!(partition(right)[1], malformed(1, "wrong_key", wrong_key, "bob"));
    assert_eq!(
        partition(wrong),
        [malformed(0, "wrong_partition", &is_wrong_partition, "alice")]
    );

    // Whole in the quarantine, once the engine has been there; what can be read is shown as the event that it is.
    assert_eq!(house.lines(&["quarantine"]), Vec::<String>::new());
    house.fold();
    let event = r#"{"offset":1,"ts":1000000,"type":"forget","user":"alice"}"#;
    let quarantined = |partition: Partition, offset: u64, error: &str, key: &str, event: &str| {
        let event = event.replace(r#""offset":1"#, &format!(r#""offset":{offset}"#));
        format!(
            r#"{{"partition":{partition},"offset":{offset},"ts":1000000,"error":"{error}","key":"{key}","event":{event}}}"#
        )
    };
    let quarantine = |partition: Partition| house.lines(&["quarantine", "--partition", &partition.to_string()]);
    assert_eq!(quarantine(right), [quarantined(right, 1, wrong_key, "bob", event)]);
    assert_eq!(
        quarantine(wrong),
        [quarantined(wrong, 0, &is_wrong_partition, "alice", event)]
    );
}

#[test]
fn whatever_a_malformed_record_is_made_of_its_lines_are_json_that_no_terminal_obeys() {
    let house = House::new();
    let right_to_left = "\u{202e}txt.exe\u{9b}31m\u{7f}";
    let records: [(Option<&str>, &[u8]); 5] = [
        (None, b"no event"),
        (Some(right_to_left), right_to_left.as_bytes()),
        (Some("\"\\\n\u{1b}[2J"), &[0xff, 0xfe, 0]),
        (Some(""), b""),
        (None, &[0xc3, 0x01, 1, 2, 3, 4, 5, 6, 7, 8, 9]),
    ];
    for (key, value) in records {
        house.append(Partition(0), key, value.to_vec());
    }
    house.fold();
    let events = house.lines(&["events", "--partition", "0"]);
    let quarantine = house.lines(&["quarantine", "--partition", "0"]);
    for (number, ((key, value), (event, quarantined))) in records.iter().zip(events.iter().zip(&quarantine)).enumerate()
    {
        for line in [event, quarantined] {
            assert!(!line.contains(|c: char| c.is_control() || c == '\u{202e}'), "{line}");
            let line: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(line["offset"], number);
            assert_eq!(line["key"].as_str(), *key);
            assert!(line["error"].as_str().unwrap().len() > 5, "{line}");
        }
        let line: serde_json::Value = serde_json::from_str(quarantined).unwrap();
        match std::str::from_utf8(value) {
            Ok(value) => assert_eq!(line["value"], value),
            Err(_) => assert!(line["value_base64"].is_string(), "{line}"),
        }
    }
    assert_eq!((events.len(), quarantine.len()), (records.len(), records.len()));
    assert!(events[4].contains(r#""reason":"unknown_schema""#), "{}", events[4]);
    // Fed to the fold, each is malformed again and nothing else.
    let folded = fold(&events, &["--partition", "0", "--partitions", "2"]);
    assert_eq!(of_type("malformed", &folded).len(), records.len());
    assert_eq!(folded.len(), records.len());
}

#[test]
fn it_begins_where_it_is_told_to() {
    let house = House::new();
    for number in 0..5 {
        house.publish(&format!(
            r#"{{"type":"lease","gateway":"g1","epoch":{number},"ttl_ms":1000}}"#
        ));
    }
    let all = house.lines(&["events", "--partition", "1"]);
    assert_eq!(all.len(), 5);
    assert_eq!(house.lines(&["events", "--partition", "1", "--from", "3"]), all[3..]);
    assert_eq!(house.lines(&["events", "--from", "4"]).len(), 2);
    assert_eq!(house.lines(&["events", "--from", "5"]), Vec::<String>::new());
    let complaint = house.complaint(&["events", "--from", "1000"]);
    assert!(
        complaint.contains("partition 1 ends at 5; give 5 or less"),
        "{complaint}"
    );
    house.log.take_up(Partition(1)).unwrap().retain(Offset(2)).unwrap();
    let complaint = house.complaint(&["events", "--from", "1"]);
    assert!(complaint.contains("the oldest record kept is 2"), "{complaint}");
    assert_eq!(house.lines(&["events", "--partition", "1"]), all[2..]);
}

#[test]
fn what_does_not_exist_is_an_error() {
    let house = House::new();
    assert_eq!(
        house.complaint(&["changes", "--partition", "2"]),
        "error: --partition 2 does not exist; the log has 2 partitions, 0 to 1\n"
    );
    let empty = tempfile::tempdir().unwrap();
    let complaint = complaint(command(empty.path(), &["events"]).output().unwrap());
    let log = empty.path().join("log");
    let expected = format!(
        "error: there is no log in {}; give the data directory",
        empty.path().display()
    );
    assert!(complaint.starts_with(&expected), "{complaint}");
    assert!(!log.exists(), "looking makes nothing");
}

#[test]
fn of_a_damaged_log_there_is_no_answer() {
    let house = House::new();
    house.fill();
    let House { data, log, .. } = house;
    drop(log);
    let files = std::fs::read_dir(data.path().join("log")).unwrap();
    let ahead = files
        .map(|file| file.unwrap().path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "log"))
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    let bytes = std::fs::read(&ahead).unwrap();
    std::fs::write(&ahead, &bytes[..bytes.len() / 2]).unwrap();
    let tables = data.path().join("tables");
    let tables = tables.to_str().unwrap();
    let questions: [&[&str]; 10] = [
        &["log", "changes"],
        &["log", "events"],
        &["log", "incidents"],
        &["audit", "at", "-1s"],
        &["audit", "history", "user-1"],
        &["audit", "why", "user-1"],
        &["audit", "heads"],
        &["audit", "verify"],
        &["audit", "incidents"],
        &["lake", "--once", "--to", tables],
    ];
    for question in questions {
        let said = complaint(rollcall(question).arg("--data").arg(data.path()).output().unwrap());
        let log = data.path().join("log");
        assert!(
            said.contains(&format!("the log in {} is damaged", log.display())),
            "{question:?}: {said}"
        );
    }
    let serve = rollcall(&["serve", "--listen", ANYWHERE])
        .arg("--data")
        .arg(data.path())
        .output();
    let said = complaint(serve.unwrap());
    assert!(said.contains("is damaged"), "{said}");
}

/// A follower whose lines come over a channel.
fn follow(house: &House, arguments: &[&str]) -> (Child, mpsc::Receiver<String>) {
    let mut child = house
        .command(arguments)
        .arg("--follow")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
    (child, receiver)
}

#[test]
fn a_follower_sees_what_is_appended_later_in_every_partition_until_it_is_interrupted() {
    let house = House::new();
    house.publish(r#"{"type":"tick"}"#);
    let (mut child, receiver) = follow(&house, &["events"]);
    let next = || receiver.recv_timeout(Duration::from_secs(60)).unwrap();
    assert!(next().starts_with(r#"{"offset":0,"#));
    assert!(next().starts_with(r#"{"offset":0,"#));
    for user in ["alice", "bob", "carol", "dave"] {
        house.connect(user, "a1", 1);
        let line = next();
        assert!(line.contains(&format!(r#""user":"{user}""#)), "{line}");
    }
    let notes = std::env::temp_dir().join(format!("rollcall-follow-{}-0", child.id()));
    assert!(!notes.exists(), "nothing is left behind, even if it is killed now");
    let interrupt = Command::new("sh")
        .args(["-c", &format!("kill -INT {}", child.id())])
        .status();
    assert!(interrupt.unwrap().success());
    assert!(child.wait().unwrap().success());
}

#[test]
fn it_ends_quietly_when_nobody_reads_its_output() {
    let house = House::new();
    let events: Vec<String> = (0..2_000)
        .map(|conn| {
            format!(
                r#"{{"type":"connect","user":"alice","platform":"web","device":"{}","gateway":"g1","epoch":1,"conn":{conn},"intent":"login"}}"#,
                "d".repeat(100)
            )
        })
        .collect();
    let body = format!("[{}]", events.join(","));
    let records = json::read_new_events(&body).unwrap().into_iter().map(|event| {
        let mut value = Vec::new();
        avro::encode_event(&event.unwrap().event, &mut value);
        let key = Some(b"alice".to_vec());
        (
            partition_of("alice", PARTITIONS),
            NewRecord {
                key,
                value,
                headers: Vec::new(),
            },
        )
    });
    let (sender, receiver) = mpsc::channel();
    house
        .log
        .append(records.collect(), Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv().unwrap().unwrap();
    let mut child = house
        .command(&["events"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success());
    assert_eq!(output.stderr, b"");
}

/// An event in Avro, given as JSON.
fn encoded(event: &str) -> Vec<u8> {
    let body = format!("[{event}]");
    let event = json::read_new_events(&body).unwrap().remove(0).unwrap().event;
    let mut value = Vec::new();
    avro::encode_event(&event, &mut value);
    value
}

/// What `rollcall quarantine requeue` says of each record, by its error.
fn requeued(data: &Path, server: &Server, more: &[&str]) -> Vec<(String, String)> {
    let url = format!("http://{}", server.address);
    let output = rollcall(&["quarantine", "requeue", "--url", &url, "--data"])
        .arg(data)
        .args(more)
        .current_dir(data)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    let text = String::from_utf8(output.stdout).unwrap();
    let of = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let text = |name: &str| line[name].as_str().unwrap().to_owned();
        (text("error"), text("what"))
    };
    text.lines().map(of).collect()
}

#[test]
fn an_event_that_was_malformed_only_by_its_place_or_key_is_requeued_once() {
    let house = House::at(SystemClock::new().now_ms());
    let event = |kind: &str, user: &str| {
        let event = format!(
            r#"{{"type":"{kind}","user":"{user}","platform":"android","device":"d","gateway":"g1","epoch":1,"conn":7,"intent":"login"}}"#
        );
        encoded(&event)
    };
    let home = |user: &str| partition_of(user, PARTITIONS);
    let elsewhere = |user: &str| Partition(1 - home(user).0);
    house.append(elsewhere("alice"), Some("alice"), event("connect", "alice"));
    house.append(home("bob"), Some("\"bob\""), event("connect", "bob"));
    house.append(elsewhere("carol"), Some("carol"), event("heartbeat", "carol"));
    house.append(home("alice"), Some("alice"), b"no event".to_vec());
    let House { data, log, .. } = house;
    drop(log);
    let data = data.path();
    let server = Server::start(data, ANYWHERE, &[], &[]);
    let printed = || command(data, &["quarantine"]).output().unwrap().stdout;
    wait_until("all are in quarantine", || {
        printed().iter().filter(|byte| **byte == b'\n').count() == 4
    });

    let said = |what: &[(String, String)], error: &str| {
        let of: Vec<_> = what.iter().filter(|(receiver, _)| receiver.contains(error)).collect();
        assert_eq!(of.len(), 1, "{error}: {what:?}");
        of[0].1.clone()
    };
    let changes = |user: &str| {
        server
            .get(&format!("/v1/users/{user}/changes"), "")
            .1
            .matches(r#""cause":"login""#)
            .count()
    };
    let shown = requeued(data, &server, &[]);
    assert_eq!(shown.len(), 4);
    assert_eq!(said(&shown, "\"alice\" belongs to partition"), "would be requeued");
    assert_eq!(said(&shown, "key must be its user \"bob\""), "would be requeued");
    assert_eq!(
        said(&shown, "\"carol\" belongs to partition"),
        "it is about a moment that has passed"
    );
    assert!(said(&shown, "the value begins neither").starts_with("it still cannot be read: "));
    assert_eq!(server.get("/v1/users/alice", "").0, 404, "nothing was published");

    let done = requeued(data, &server, &["--yes"]);
    assert_eq!(said(&done, "\"alice\" belongs to partition"), "requeued");
    assert_eq!(said(&done, "key must be its user \"bob\""), "requeued");
    wait_until("both are online", || changes("alice") == 1 && changes("bob") == 1);
    // The log knows what was requeued.
    for more in [&["--yes"][..], &[]] {
        let again = requeued(data, &server, more);
        for error in ["\"alice\" belongs to partition", "key must be its user \"bob\""] {
            let what = said(&again, error);
            assert!(what.starts_with("it is in the log already, in partition "), "{what}");
        }
    }
    // Everything before has been folded when what comes after it is.
    server.publish(
        "",
        &[serde_json::json!({"type": "custom_status", "user": "alice", "text": "here"})],
    );
    wait_until("it is folded", || server.get("/v1/users/alice", "").1.contains("here"));
    assert_eq!((changes("alice"), changes("bob")), (1, 1));

    std::thread::sleep(Duration::from_millis(1_100));
    let old = requeued(data, &server, &["--max-age-s", "1s"]);
    assert!(
        old.iter().all(|(_, what)| what == "it is older than --max-age-s"),
        "{old:?}"
    );
}

#[test]
fn what_is_in_quarantine_is_listed_by_kind_and_explained() {
    let house = House::at(SystemClock::new().now_ms());
    let value = encoded(r#"{"type":"forget","user":"bob"}"#);
    let home = partition_of("bob", PARTITIONS);
    house.append(home, Some("bo\u{9b}b"), value.clone());
    house.append(home, Some("\"bob\""), value);
    house.append(home, None, vec![7; 100]);
    let House { data, log, .. } = house;
    drop(log);
    let data = data.path();
    let ask = |arguments: &[&str]| {
        rollcall(&[&["quarantine"][..], arguments].concat())
            .arg("--data")
            .arg(data)
            .output()
            .unwrap()
    };
    let text = |output: std::process::Output| {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(text(ask(&["list"])), "nothing is in quarantine\n");
    let server = Server::start(data, ANYWHERE, &[], &[]);
    let kinds = || text(ask(&["list", "--json"]));
    wait_until("all are in quarantine", || kinds().matches("\"count\":").count() == 3);
    // The hint makes an error another kind.
    assert!(
        kinds().contains(r#"\"bob\", not \"\\\"bob\\\"\": it looks like JSON text"#),
        "{}",
        kinds()
    );
    let table = text(ask(&["list"]));
    assert!(table.starts_with("COUNT") && table.lines().count() == 5, "{table}");
    assert!(table.contains(&format!("{home}:1")), "{table}");

    let explained = text(ask(&["explain", &format!("{home}:1")]));
    for part in [
        "error       the record's key must be its user \"bob\"",
        "key         \"\\\"bob\\\"\"",
        "schema      schemas/event.avsc, by its fingerprint before the datum",
        "reason      wrong_key",
        "do          publish with the user as the key",
        r#"decoded     {"offset":1,"#,
        "requeue     possible",
    ] {
        assert!(explained.contains(part), "{part}: {explained}");
    }
    let explained = text(ask(&["explain", &format!("{home}:2")]));
    for part in [
        "07 07 … (100 bytes)",
        "schema      none is named",
        "requeue     not possible: it still cannot be read",
    ] {
        assert!(explained.contains(part), "{part}: {explained}");
    }
    let error = complaint(ask(&["explain", &format!("{home}:3")]));
    assert!(
        error.contains("no record of the quarantine is about offset 3"),
        "{error}"
    );
    let error = complaint(ask(&["explain", "3"]));
    assert!(error.contains("expected PARTITION:OFFSET, such as 0:12"), "{error}");
    drop(server);
}

#[test]
fn a_requeue_that_is_killed_anywhere_and_repeated_publishes_each_event_once() {
    const USERS: usize = 150;
    let house = House::at(SystemClock::new().now_ms());
    let mut users = Vec::new();
    let mut records = 0;
    for number in 0..USERS {
        let user = format!("user{number}");
        let value = encoded(&format!(r#"{{"type":"kick","user":"{user}"}}"#));
        let elsewhere = Partition(1 - partition_of(&user, PARTITIONS).0);
        // Some publishers try again.
        for _ in 0..1 + number % 2 {
            house.append(elsewhere, Some(&user), value.clone());
            records += 1;
        }
        users.push(user);
    }
    let House { data, log, .. } = house;
    drop(log);
    let data = data.path();
    let server = Server::start(data, ANYWHERE, &[], &[]);
    let lines = |topic: &str| String::from_utf8(command(data, &[topic]).output().unwrap().stdout).unwrap();
    wait_until("all are in quarantine", || {
        lines("quarantine").lines().count() == records
    });
    let url = format!("http://{}", server.address);
    let requeue = |limit: &str| {
        let mut command = rollcall(&[
            "quarantine",
            "requeue",
            "--yes",
            "--limit",
            limit,
            "--url",
            &url,
            "--data",
        ]);
        command.arg(data).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    // Killed when it has printed so many lines, which is in the midst of the next ones.
    for lines in [1, 20, 50] {
        let mut child = requeue("1000");
        let printed = BufReader::new(child.stdout.take().unwrap()).lines();
        let printed = printed.filter(|line| line.as_ref().is_ok_and(|line| line.contains(r#""what":"requeued""#)));
        assert_eq!(printed.take(lines).count(), lines);
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // At most 79 are left, and those that are there already do not count.
    for _ in 0..3 {
        assert!(requeue("40").wait_with_output().unwrap().status.success());
    }
    let events = lines("events");
    for user in &users {
        let kick = format!(r#""type":"kick","user":"{user}""#);
        let valid = events.lines().filter(|line| line.contains(&kick)).count();
        assert_eq!(valid, 1, "{user}");
    }
}

/// A running server on a data directory, and the lines of its log. Dropping this value kills the server.
struct Serving {
    process: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStderr>>,
}

impl Serving {
    fn start(data: &Path) -> Serving {
        let mut process = Command::new(env!("CARGO_BIN_EXE_rollcall"))
            .args(["serve", "--listen", "127.0.0.1:0", "--log-format", "json", "--data"])
            .arg(data)
            .env_remove("RUST_LOG")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(process.stderr.take().unwrap()).lines();
        Serving { process, lines }
    }

    /// The next line with this message, and whether one with the other came before it.
    fn next(&mut self, message: &str, other: &str) -> (serde_json::Value, bool) {
        let mut passed = false;
        for line in &mut self.lines {
            let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
            let said = line["fields"]["message"].as_str().unwrap_or_default();
            if said.starts_with(message) {
                return (line["fields"].clone(), passed);
            }
            passed |= said.starts_with(other);
        }
        panic!("it ended");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_server_warns_of_malformed_records_once_with_reason_count_and_the_newest() {
    const WARNING: &str = "malformed records";
    let data = tempfile::tempdir().unwrap();
    let clock = Arc::new(rollcall::clock::SystemClock::new());
    let settings = Settings {
        partitions: Some(1),
        ..Settings::default()
    };
    let log = LocalLog::open(&data.path().join("log"), settings, clock).unwrap();
    let malformed = || {
        (
            Partition(0),
            NewRecord {
                headers: Vec::new(),
                key: None,
                value: b"no event".to_vec(),
            },
        )
    };
    let (sender, receiver) = mpsc::channel();
    let acknowledge = Box::new(move |result: Result<Vec<Appended>, _>| sender.send(result).unwrap());
    log.append(vec![malformed(), malformed(), malformed()], acknowledge);
    receiver.recv().unwrap().unwrap();
    drop(log);
    let mut serving = Serving::start(data.path());
    let (warning, _) = serving.next(WARNING, "");
    assert_eq!(
        (&warning["reason"], &warning["count"]),
        (&"unreadable".into(), &3.into()),
        "{warning}"
    );
    assert_eq!(
        (&warning["partition"], &warning["newest_offset"]),
        (&0.into(), &2.into()),
        "{warning}"
    );
    assert!(warning["error"].as_str().unwrap().len() > 5, "{warning}");
    drop(serving);
    // Folded again after the next start, but not said again.
    let mut serving = Serving::start(data.path());
    let (_, while_folding) = serving.next("live", WARNING);
    let stop = format!("kill -TERM {}", serving.process.id());
    assert!(Command::new("sh").args(["-c", &stop]).status().unwrap().success());
    let (_, later) = serving.next("stopped", WARNING);
    assert!(!while_folding && !later);
}

#[test]
fn what_cannot_be_looked_at_is_not_said_to_be_missing() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let circle = directory.path().join("circle");
    std::os::unix::fs::symlink(&circle, &circle).unwrap();
    let long = directory.path().join("x".repeat(300));
    let lake = directory.path().join("lake");
    let lake = ["lake", "--once", "--to", lake.to_str().unwrap()];
    let to = directory.path().join("new");
    let reshard = ["reshard", "--partitions", "4", "--to-data", to.to_str().unwrap()];
    for (data, why) in [
        (&file, "Not a directory"),
        (&circle, "Too many levels of symbolic links"),
        (&long, "File name too long"),
    ] {
        for arguments in [
            &["log", "events"][..],
            &lake,
            &["audit", "at", "-1m"],
            &["audit", "verify"],
            &["quarantine", "list"],
            &reshard,
        ] {
            let output = rollcall(arguments).arg("--data").arg(data).output().unwrap();
            let error = complaint(output);
            assert!(error.contains(why), "{arguments:?} {data:?}: {error}");
            assert!(!error.contains("there is no"), "{arguments:?} {data:?}: {error}");
        }
        let output = rollcall(&["doctor", "--data"]).arg(data).output().unwrap();
        let found = String::from_utf8(output.stdout).unwrap();
        assert!(
            output.status.code() == Some(1) && found.contains("WRONG    disk "),
            "{found}"
        );
    }
}
