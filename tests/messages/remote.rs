//! `users`, `kick`, `policy`, `stats` and `top` against a running server: tables for people, JSON for programs, and
//! errors when the server cannot be asked.

use crate::server::{ANYWHERE, Server, rollcall};
use serde_json::{Value, json};
use std::path::Path;
use std::process::Command;

const ADMIN: &str = "the-token-of-an-operator";
const READER: &str = "the-token-of-a-reader";

struct House {
    server: Server,
    directory: tempfile::TempDir,
}

impl House {
    fn open() -> House {
        let directory = tempfile::tempdir().expect("a directory");
        let tokens = directory.path().join("tokens");
        std::fs::write(&tokens, format!("{ADMIN} admin\n{READER} read\n")).expect("written");
        let tokens = tokens.to_str().expect("UTF-8");
        let data = directory.path().join("data");
        let server = Server::start(&data, ANYWHERE, &["--partitions", "1", "--token-file", tokens], &[]);
        House { server, directory }
    }

    fn command(&self, arguments: &[&str], token: &str) -> Command {
        let mut command = rollcall(arguments);
        command
            .env("ROLLCALL_URL", format!("http://{}", self.server.address))
            .env("ROLLCALL_TOKEN", token)
            .current_dir(self.directory.path());
        command
    }

    /// What it prints.
    #[track_caller]
    fn prints(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments, ADMIN).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{arguments:?}: {said}");
        String::from_utf8(output.stdout).expect("UTF-8")
    }

    #[track_caller]
    fn json(&self, arguments: &[&str]) -> Value {
        let printed = self.prints(&[arguments, &["--json"]].concat());
        assert_eq!(printed.lines().count(), 1, "{printed}");
        serde_json::from_str(&printed).expect("JSON")
    }
}

/// What it says as it fails.
#[track_caller]
fn refused(mut command: Command) -> String {
    let output = command.output().expect("it runs");
    let said = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(2), "{said}");
    assert!(said.starts_with("error: ") && said.lines().count() == 1, "{said}");
    said
}

fn connect(user: &str, platform: &str, conn: u64) -> Value {
    json!({"type": "connect", "user": user, "platform": platform, "device": "d1", "gateway": "g1", "epoch": 1,
           "conn": conn, "intent": "login"})
}

#[test]
fn users_are_shown_and_kicked_and_stats_and_policy_are_read_and_set() {
    let house = House::open();
    // Ids that no path could name, and one that would clear a terminal.
    let odd = ["..", "a/b", "\u{1b}[2J"];
    let mut events = vec![connect("alice", "android", 1)];
    events.extend(odd.map(|user| connect(user, "web", 3)));
    house.server.publish(ADMIN, &events);
    crate::server::wait_until("it is applied", || house.json(&["stats"])["users"]["known"] == 4);

    let page = house.prints(&["users", "get", "alice"]);
    for word in [
        "alice",
        "online, since",
        "android",
        "d1",
        "g1",
        "LAST SEEN",
        "lost in",
        "unless seen",
    ] {
        assert!(page.contains(word), "{page}");
    }
    assert_eq!(house.json(&["users", "get", "alice"])["user"], "alice");
    for user in odd {
        assert_eq!(house.json(&["users", "get", user])["user"], user);
    }
    let table = house.prints(&["users", "query", "alice", odd[2], "nobody"]);
    assert!(
        table.contains("android/d1 online") && table.contains("nobody") && table.contains("unknown"),
        "{table}"
    );
    assert!(!table.contains('\u{1b}'), "{table:?}");
    assert_eq!(house.json(&["users", "query", "nobody"])["unknown"][0], "nobody");

    // What ends nothing is a name that was misspelt, most likely.
    for more in [
        &["--platform", "wbe"][..],
        &["--platform", "web"],
        &["--platform", "android", "--device", "d2"],
    ] {
        let said = refused(house.command(&[&["kick", "alice"], more].concat(), ADMIN));
        assert!(said.contains("nothing was ended"), "{said}");
        assert!(said.contains(r#""alice" has android "d1""#), "{said}");
        assert!(
            more.iter()
                .all(|word| word.starts_with("--") || said.contains(&format!("{word:?}"))),
            "{said}"
        );
    }
    assert_eq!(house.json(&["users", "get", "alice"])["status"], "online");
    let page = house.prints(&["kick", "alice", "--platform", "android", "--device", "d1"]);
    assert!(page.contains("offline, since"), "{page}");
    assert!(page.contains("kick forgotten in") && !page.contains("lost"), "{page}");
    assert_eq!(house.json(&["kick", "a/b"])["status"], "offline");

    let stats = house.prints(&["stats"]);
    assert!(
        stats.contains("4 known") && stats.contains("PARTITION") && stats.contains("live"),
        "{stats}"
    );
    let top = house.prints(&["top", "--every", "1s", "--count", "2"]);
    assert_eq!(top.matches("RECORDS/S").count(), 2, "{top}");

    let policy = house.json(&["policy", "get"]);
    assert_eq!(policy["policy"]["outage"]["grace_ms"], 30_000);
    let file = house.directory.path().join("policy.json");
    std::fs::write(&file, r#"{"outage":{"silence_ms":10000,"grace_ms":5000}}"#).expect("written");
    let would = house.prints(&["policy", "set", "policy.json", "--dry-run"]);
    assert_eq!(would, "outage.grace_ms: 30000 → 5000\nnot published (--dry-run)\n");
    let did = house.prints(&["policy", "set", "policy.json"]);
    assert!(did.contains("outage.grace_ms: 30000 → 5000\npublished"), "{did}");
    crate::server::wait_until("it is in force", || {
        house.json(&["policy", "get"])["policy"]["outage"]["grace_ms"] == 5_000
    });
    let did = house.prints(&["policy", "set", "policy.json"]);
    assert_eq!(did, "published; no differences\n");

    assert_eq!(
        house.prints(&["policy", "check", "policy.json"]),
        "valid; nothing would change\n"
    );
    // Larger than an event may carry it: said by all that read the file, and not only by the one that publishes it.
    let pairs: Vec<Value> = (0..60_000).map(|number| json!(["web", format!("p{number}")])).collect();
    std::fs::write(&file, json!({"exclusive": pairs}).to_string()).expect("written");
    for command in [
        &["policy", "check", "policy.json"][..],
        &["policy", "set", "policy.json", "--dry-run"],
    ] {
        let said = refused(house.command(command, ADMIN));
        assert!(
            said.contains("policy.json is too large") || said.contains("not valid"),
            "{said}"
        );
    }
    std::fs::write(
        &file,
        r#"{"platforms":{"web":{"timeout_ms":70000}},"instances":{"web":3}}"#,
    )
    .expect("written");
    let said = house.prints(&["policy", "check", "policy.json"]);
    for word in [
        "platforms.web.timeout_ms: 60000 → 70000",
        "How long a device on web may be silent",
        "On how many devices of kind web",
    ] {
        assert!(said.contains(word), "{said}");
    }
    let data = house.directory.path().join("data").display().to_string();
    let said = house.prints(&["policy", "check", "policy.json", "--against", &data]);
    assert!(said.contains("false offlines") && said.contains("would be"), "{said}");
    for neither in [
        "no-such-directory",
        "./no-such-directory",
        "127.0.0.1",
        "127.0.0.1:1,",
        "",
    ] {
        let said = refused(house.command(&["policy", "check", "policy.json", "--against", neither], ADMIN));
        assert!(
            said.contains(&format!("--against {neither:?}")) && said.contains("HOST:PORT"),
            "{said}"
        );
    }
    let got = house.json(&["policy", "get"]).to_string();
    std::fs::write(house.directory.path().join("got.json"), got).expect("written");
    let said = refused(house.command(&["policy", "check", "got.json"], ADMIN));
    assert!(said.contains("the document is what it has as `policy`"), "{said}");
    let mut command = rollcall(&["policy", "history", "--partition", "0", "--data", &data]);
    let said = String::from_utf8(command.output().expect("run").stdout).expect("text");
    assert!(said.contains("outage.grace_ms") && said.contains("offset"), "{said}");

    assert!(house.prints(&["forget", "alice"]).contains("docs/privacy.md"));
    assert!(refused(house.command(&["forget", "alice"], ADMIN)).contains("nothing to forget"));
    assert!(refused(house.command(&["forget", "a/b"], READER)).contains("scope"));
    assert!(house.json(&["forget", "a/b"]).is_object());
}

#[test]
fn what_cannot_be_asked_says_why_and_what_to_do_and_shows_no_token() {
    let house = House::open();
    let url = format!("http://{}", house.server.address);
    house.server.publish(ADMIN, &[connect("alice", "web", 1)]);
    let every: [&[&str]; 6] = [
        &["users", "get", "alice"],
        &["users", "query", "alice"],
        &["kick", "alice"],
        &["policy", "get"],
        &["stats"],
        &["top"],
    ];
    for arguments in every {
        let said = refused(house.command(&[arguments, &["--url", "http://127.0.0.1:1"]].concat(), ADMIN));
        assert!(
            said.contains("no server answers at http://127.0.0.1:1 (--url): connection refused"),
            "{said}"
        );
        let said = refused(house.command(arguments, "not-the-token-of-anybody"));
        assert!(
            said.contains(&url) && said.contains("--token-file") && said.contains("ROLLCALL_TOKEN"),
            "{said}"
        );
        assert!(!said.contains("not-the-token"), "{said}");
        let said = refused(house.command(&[arguments, &["--url", "localhost"]].concat(), ADMIN));
        assert!(said.contains("--url") && said.contains("http://HOST:PORT"), "{said}");
        let mut command = rollcall(arguments);
        command.args(["--url", &url, "--token-file", "no-such-file"]);
        assert!(refused(command).contains("no-such-file"));
    }
    let said = refused(house.command(&["users", "get", "nobody"], READER));
    assert!(said.contains("no user \"nobody\" is known"), "{said}");
    let said = refused(house.command(&["kick", "nobody"], ADMIN));
    assert!(said.contains("no user \"nobody\" is known"), "{said}");
    let said = refused(house.command(&["kick", "alice"], READER));
    assert!(said.contains("refuses the request") && said.contains("scope"), "{said}");
    let said = refused(house.command(&["policy", "set", "no-such-file"], ADMIN));
    assert!(said.contains("no-such-file"), "{said}");
    std::fs::write(house.directory.path().join("wrong.json"), r#"{"logn": "multi"}"#).expect("written");
    let said = refused(house.command(&["policy", "set", "wrong.json"], ADMIN));
    assert!(
        said.contains("wrong.json") && said.contains("did you mean \"login\""),
        "{said}"
    );
}

#[test]
fn a_port_that_is_taken_is_told_by_the_flag_that_named_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let listener = std::net::TcpListener::bind(ANYWHERE).expect("a port");
    let taken = listener.local_addr().expect("an address").to_string();
    let server = Server::start(&directory.path().join("data"), ANYWHERE, &["--partitions", "1"], &[]);
    let engine = format!("http://{}", server.address);
    let serve = ["serve", "--data", "other", "--log-level", "error"];
    let gateway = [
        "gateway",
        "--engine",
        &engine,
        "--gateway-insecure",
        "--data",
        "edge",
        "--log-level",
        "error",
    ];
    for (base, more, flag) in [
        (&serve[..], &["--listen", taken.as_str()][..], "--listen"),
        (
            &serve[..],
            &["--listen", ANYWHERE, "--gateway-insecure", "--gateway", taken.as_str()][..],
            "--gateway",
        ),
        (&gateway[..], &["--listen", taken.as_str()][..], "--listen"),
        (
            &gateway[..],
            &["--listen", ANYWHERE, "--status", taken.as_str()][..],
            "--status",
        ),
    ] {
        let mut command = rollcall(&[base, more].concat());
        command
            .current_dir(directory.path())
            .stdout(std::process::Stdio::null());
        let said = refused(command);
        assert!(
            said.contains(&taken) && said.contains(&format!("can be chosen with {flag}")),
            "{said}"
        );
        assert!(
            said.to_lowercase().contains("address already in use") && !said.contains("os error"),
            "{said}"
        );
    }
}

#[test]
fn the_log_is_not_printed_from_beyond_its_end() {
    let house = House::open();
    house.server.publish(ADMIN, &[connect("alice", "web", 1)]);
    let said = refused(house.command(&["log", "events", "--data", "data", "--from", "100000"], ADMIN));
    assert!(
        said.contains("--from 100000") && said.contains("partition 0 ends at"),
        "{said}"
    );
    let said = refused(house.command(&["log", "changes", "--data", "data", "--from", "7", "--follow"], ADMIN));
    assert!(said.contains("--from 7 is beyond the end of"), "{said}");
    assert!(
        house
            .prints(&["log", "events", "--data", "data", "--from", "1"])
            .contains("alice")
    );
}

/// Starts a server on a directory with a policy file; what it says if it does not stay.
fn refused_start(data: &Path, more: &[&str]) -> String {
    let data = data.to_str().expect("UTF-8");
    let mut command = rollcall(&["serve", "--listen", ANYWHERE, "--data", data, "--log-level", "error"]);
    command.args(more).stdout(std::process::Stdio::null());
    refused(command)
}

#[test]
fn a_policy_file_that_is_not_the_one_the_log_began_with_is_refused_unless_only_for_a_new_log() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let (one, other) = (file("one.json", "{}"), file("other.json", r#"{"kicked_max":1}"#));
    let start = |more: &[&str]| drop(Server::start(&data, ANYWHERE, more, &[]));
    start(&["--policy", &one]);
    start(&["--policy", &one]);
    start(&[]);
    let said = refused_start(&data, &["--policy", &other]);
    for word in ["--policy is for a new log", "--policy-if-new", "rollcall policy set"] {
        assert!(said.contains(word), "{said}");
    }
    start(&["--policy", &other, "--policy-if-new"]);
    // The stored copy is not needed while the log has its beginning.
    std::fs::remove_file(data.join("first-policy.json")).expect("it is there");
    start(&["--policy", &one]);
    refused_start(&data, &["--policy", &other]);
}
