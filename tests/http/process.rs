//! The real binary: its start, its data, its end.

use crate::client::Client;
use crate::house::{connect, on, says, wait_until};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::SystemTime;

pub struct Server {
    process: Child,
    client: Client,
}

fn command(data: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    command.args(["serve", "--data"]).arg(data).stdin(Stdio::null());
    // What is set where the tests run is not what they are about.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ROLLCALL_") || name == "RUST_LOG") {
        command.env_remove(name);
    }
    command
}

impl Server {
    pub fn start(data: &Path, more: &[&str]) -> Server {
        Server::start_as(command(data), more)
    }

    fn start_as(mut command: Command, more: &[&str]) -> Server {
        let mut process = command
            .args(["--listen", "127.0.0.1:0", "--log-level", "error"])
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let lines = BufReader::new(process.stdout.take().expect("its output")).lines();
        let console = lines
            .map(|line| line.expect("text"))
            .find_map(|line| line.strip_prefix("console  http://").map(str::to_owned))
            .expect("it says where the console is");
        let address = console.trim_end_matches('/').parse().expect("an address");
        let server = Server {
            process,
            client: Client::new(address),
        };
        wait_until("it is ready", || server.get("/readyz").status == 200);
        server
    }

    /// Asks it to end, as a service manager does.
    fn terminate(&self) {
        let signalled = Command::new("kill")
            .args(["-TERM", &self.process.id().to_string()])
            .status();
        assert!(signalled.expect("kill is installed").success());
    }

    fn ended(mut self) -> ExitStatus {
        let mut status = None;
        wait_until("it has ended", || {
            status = self.process.try_wait().expect("waited for");
            status.is_some()
        });
        status.expect("it has ended")
    }
}

impl Deref for Server {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already, where all went well.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The end of each partition's log.
fn ends(stats: &Value) -> Vec<u64> {
    let partitions = stats["partitions"].as_array().expect("partitions");
    partitions
        .iter()
        .filter_map(|partition| partition["log_end"].as_u64())
        .collect()
}

/// What was written and what the process has noted may differ after it, so nothing more is appended.
#[test]
fn a_panic_while_appending_is_answered_makes_the_server_not_ready_and_loses_nothing() {
    let data = tempfile::tempdir().expect("a directory");
    let mut failing = command(data.path());
    // The first append is the policy's.
    failing.env("ROLLCALL_FAILPOINT", "panic:append:3");
    let server = Server::start_as(failing, &["--partitions", "2"]);
    server.publish(&[connect("alice", 1)]);
    for _ in 0..2 {
        let refused = server.post("/v1/events", json!([connect("bob", 2)]).to_string());
        let refused = refused.error(503, "log_unavailable").to_string();
        assert!(refused.contains("appending panicked"), "{refused}");
    }
    // The answer is sent while the task ends.
    wait_until("it is not ready", || server.get("/readyz").status == 503);
    let ready = server.get("/readyz").body;
    assert!(ready.contains("the task log-append has ended"), "{ready}");
    let metrics = server.get("/metrics").body;
    assert!(
        metrics.contains("rollcall_task_failures_total{task=\"log-append\"} 1"),
        "{metrics}"
    );
    // Reading goes on, and so does the next process.
    assert_eq!(server.get("/v1/users/alice").json()["status"], "online");
    drop(server);
    let server = Server::start(data.path(), &[]);
    server.publish(&[connect("bob", 2)]);
    wait_until("both are online", || {
        ["alice", "bob"]
            .iter()
            .all(|user| server.get(&format!("/v1/users/{user}")).json()["status"] == "online")
    });
}

#[test]
fn it_ends_well_and_goes_on_where_it_was_whoever_is_still_connected() {
    let data = tempfile::tempdir().expect("a directory");
    let server = Server::start(data.path(), &["--partitions", "2"]);
    // Changes of one user, since the order between two partitions is not guaranteed.
    let user = "x".repeat(120);
    let path = format!("/v1/changes?user={user}");
    let mut follower = server.follow(&path);
    // It never reads, and there is more for it than fits into the buffers between.
    let _silent = server.follow("/v1/changes?after=earliest");
    server.publish(&[connect(&user, 1)]);
    let padding = "y".repeat(90);
    for start in (1..30_000).step_by(10_000) {
        let events: Vec<Value> = (start..start + 10_000)
            .map(|number| says(&user, format!("{padding}{number}")))
            .collect();
        server.publish(&events);
    }
    let first: Vec<_> = follower.take(1_000);
    // One that is in the middle of its request, one that has hardly begun, one that has said nothing yet.
    let mut half = server.open("POST", "/v1/events", Some(1_000));
    half.write_all(b"[{").expect("taken");
    let mut barely = std::net::TcpStream::connect(server.address).expect("connected");
    barely.write_all(b"GET /v1/sta").expect("taken");
    let _mute = std::net::TcpStream::connect(server.address).expect("connected");
    let last = server.publish(&[connect("alice", 2)]);
    server.terminate();
    assert_eq!(server.ended().code(), Some(0));

    let server = Server::start(data.path(), &[]);
    assert_eq!(
        server.user_at("alice", &last[0]["offset"]).ok()["devices"][0]["conn"],
        2
    );
    let again: Vec<_> = server.follow(&format!("{path}&after=earliest")).take(1_000);
    assert!(again == first, "the same changes, with the same cursors");
    let mut resumed = server.with("Last-Event-ID", &first[999].id).follow(&path);
    assert_eq!(resumed.next().json()["version"], 1_001);
    server.terminate();
    drop(resumed);
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn subscriptions_end_cleanly_when_it_is_told_to_stop() {
    let data = tempfile::tempdir().expect("a directory");
    let server = Server::start(data.path(), &[]);
    let mut changes = server.follow("/v1/changes");
    let mut kicks = server.follow("/v1/kicks");
    server.terminate();
    assert!(changes.next_or_end().is_none());
    assert!(kicks.next_or_end().is_none());
    assert_eq!(server.ended().code(), Some(0));
}

#[test]
fn what_was_acknowledged_survives_a_kill_at_once() {
    let data = tempfile::tempdir().expect("a directory");
    let mut server = Server::start(data.path(), &["--partitions", "1"]);
    let appended = server.publish(&[
        connect("alice", 1),
        on("heartbeat", "alice", 1, json!({})),
        says("alice", "here"),
    ]);
    server.process.kill().expect("killed");
    server.process.wait().expect("dead");
    drop(server);
    let server = Server::start(data.path(), &[]);
    let object = server.user_at("alice", &appended[2]["offset"]).ok();
    assert_eq!(
        (&object["status"], &object["custom_status"]),
        (&json!("online"), &json!("here"))
    );
    let versions: Vec<Value> = server
        .follow("/v1/changes?after=earliest")
        .take(2)
        .iter()
        .map(|received| received.json()["version"].clone())
        .collect();
    assert_eq!(json!(versions), json!([1, 2]));
}

#[test]
fn the_first_policy_comes_from_its_file_and_the_log_keeps_it() {
    let data = tempfile::tempdir().expect("a directory");
    let policy = data.path().join("policy.json");
    std::fs::write(&policy, r#"{"login":"dual"}"#).expect("written");
    let policy = policy.to_str().expect("text");
    let server = Server::start(&data.path().join("log"), &["--policy", policy, "--partitions", "2"]);
    let folded = |server: &Server| {
        let stats = server.get("/v1/stats").ok();
        let partitions = stats["partitions"].as_array().expect("partitions");
        partitions.iter().all(|partition| partition["lag"] == 0)
    };
    // The log begins with this record, so every other record comes after it; but a query may come before.
    wait_until("it is folded", || folded(&server));
    let shown = server.get("/v1/policy").ok();
    assert_eq!(shown["policy"]["login"], "dual");
    assert_eq!(
        shown["since"],
        json!([{"partition": 0, "offset": 0}, {"partition": 1, "offset": 0}])
    );
    assert_eq!(ends(&server.get("/v1/stats").ok()), [1, 1]);
    server.terminate();
    assert_eq!(server.ended().code(), Some(0));
    let server = Server::start(&data.path().join("log"), &[]);
    wait_until("it is folded", || folded(&server));
    assert_eq!(server.get("/v1/policy").ok(), shown);
}

#[test]
fn tokens_come_from_a_file() {
    let data = tempfile::tempdir().expect("a directory");
    let file = data.path().join("tokens");
    let text =
        "# who may what\n\nwatcher-0123456789 read\nserver-0123456789  publish, read\noperator-0123456789\tadmin\n";
    std::fs::write(&file, text).expect("written");
    let server = Server::start(
        &data.path().join("log"),
        &["--token-file", file.to_str().expect("text")],
    );
    server.get("/v1/stats").error(401, "no_token");
    server.token("watcher-0123456789").get("/v1/stats").ok();
    server
        .token("watcher-0123456789")
        .post("/v1/events", "[]")
        .error(403, "forbidden");
    let publisher = server.token("server-0123456789");
    let appended = publisher.publish(&[connect("alice", 1)]);
    publisher.user_at("alice", &appended[0]["offset"]).ok();
    let kick = json!([{"type": "kick", "user": "alice"}]).to_string();
    publisher.post("/v1/events", &kick).error(403, "forbidden");
    server.token("operator-0123456789").post("/v1/events", &kick).ok();
}

/// Starts what cannot start; what it says.
fn refused(data: &Path, more: &[&str]) -> String {
    let mut process = command(data)
        .args(more)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let mut text = String::new();
    process
        .stderr
        .take()
        .expect("its errors")
        .read_to_string(&mut text)
        .expect("text");
    assert_eq!(process.wait().expect("ended").code(), Some(2), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    text
}

#[test]
fn a_log_that_is_older_than_its_store_is_refused_before_anything_is_appended() {
    let directory = tempfile::tempdir().expect("a directory");
    // The server makes it, so that nothing else is to be said of it.
    let data = directory.path().join("data");
    let (log, older) = (data.join("log"), data.join("older"));
    let publish = |conn| {
        let server = Server::start(&data, &["--partitions", "1"]);
        server.publish(&[connect("alice", conn)]);
        wait_until("it is folded", || server.get("/v1/users/alice").status == 200);
        server.terminate();
        assert!(server.ended().success());
    };
    publish(1);
    std::fs::create_dir(&older).expect("made");
    for file in std::fs::read_dir(&log).expect("files") {
        let path = file.expect("a file").path();
        std::fs::copy(&path, older.join(path.file_name().expect("a name"))).expect("copied");
    }
    publish(2);
    assert_eq!(doctor_of_log(&data).0, "well");
    std::fs::remove_dir_all(&log).expect("removed");
    std::fs::rename(&older, &log).expect("renamed");
    let (verdict, found, fix) = doctor_of_log(&data);
    assert!(
        verdict == "wrong"
            && found.contains("but was folded up to")
            && found.contains("the log is older than the store"),
        "{found}"
    );
    assert!(fix.contains("restore the log that belongs to "), "{fix}");
    // It stays so: a start that is refused appends nothing.
    for _ in 0..2 {
        let error = refused(&data, &["--listen", "127.0.0.1:0"]);
        assert!(error.contains("but was folded up to"), "{error}");
        assert!(error.contains("the log is older than the store"), "{error}");
    }
    // Nor does a log that begins at 0 again.
    std::fs::remove_dir_all(&log).expect("removed");
    let (verdict, found, _) = doctor_of_log(&data);
    assert!(
        verdict == "warning" && found.contains("a server without --kafka refuses to start"),
        "{found}"
    );
    std::fs::create_dir(&log).expect("made");
    let (verdict, found, _) = doctor_of_log(&data);
    assert!(
        verdict == "wrong" && found.contains("partition 0 of events ends at 0"),
        "{found}"
    );
    std::fs::remove_dir(&log).expect("removed");
    let error = refused(&data, &["--listen", "127.0.0.1:0", "--partitions", "1"]);
    assert!(
        error.contains("partition 0 of events ends at 0, but was folded up to"),
        "{error}"
    );
    // The start that was refused has created the log.
    let (verdict, found, _) = doctor_of_log(&data);
    assert!(
        verdict == "wrong" && found.contains("partition 0 of events ends at 0"),
        "{found}"
    );
}

/// What the doctor says of the log in a data directory, which it leaves as it is: the verdict, what it found, and what to do.
fn doctor_of_log(data: &Path) -> (String, String, String) {
    let before = files(data);
    let (printed, status) = run(&["doctor", "--json", "--data", data.to_str().expect("UTF-8")]);
    assert_eq!(files(data), before);
    let found: Vec<Value> = serde_json::from_str(&printed).expect("JSON");
    let of_log = found
        .iter()
        .find(|one| one["check"] == "log")
        .expect("it looks at the log");
    let text = |key: &str| of_log[key].as_str().unwrap_or_default().to_owned();
    assert!(text("verdict") != "wrong" || status == Some(1), "{printed}");
    (text("verdict"), text("found"), text("fix"))
}

/// Every file below a directory, with its length and when it was changed.
fn files(directory: &Path) -> BTreeMap<PathBuf, (u64, SystemTime)> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        let metadata = path.metadata().expect("of a file");
        found.insert(path.clone(), (metadata.len(), metadata.modified().expect("a time")));
        if metadata.is_dir() {
            found.extend(files(&path));
        }
    }
    found
}

#[test]
fn checkpoints_have_a_directory_of_their_own_and_nothing_of_anybody_else_is_removed() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let url = |name: &str| format!("file://{}", directory.path().join(name).display());
    for place in ["data/checkpoints", "data", "."] {
        let error = refused(&data, &["--checkpoints", &url(place)]);
        assert!(error.contains("within the data directory"), "{error}");
    }
    // Some of them were put there by people.
    let kept = [
        "checkpoints/mine",
        "checkpoints-under-way/mine",
        "checkpoints-under-way/7",
    ]
    .map(|name| data.join(name));
    for path in &kept {
        std::fs::create_dir_all(path.parent().expect("one")).expect("made");
        std::fs::write(path, "mine").expect("written");
    }
    std::fs::create_dir(data.join("checkpoints-under-way/3")).expect("made");
    let server = Server::start(&data, &["--checkpoints", &url("elsewhere")]);
    assert!(kept.iter().all(|path| path.exists()));
    assert!(
        !data.join("checkpoints-under-way/3").exists(),
        "a copy of an earlier process"
    );
    server.terminate();
    assert!(server.ended().success());
}

#[test]
fn a_directory_for_checkpoints_that_cannot_be_written_ends_the_start() {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("file"), "mine").expect("written");
    let place = format!("file://{}/file/checkpoints", directory.path().display());
    let error = refused(&directory.path().join("data"), &["--checkpoints", &place]);
    assert!(error.contains("where this user cannot write"), "{error}");
}

/// Names of the checkpoints of the only partition, in order.
fn checkpoints(place: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(place.join("rollcall/0")).into_iter().flatten();
    let entries = entries.map(|entry| entry.expect("an entry").path());
    let complete = entries.filter(|entry| entry.join("MANIFEST.json").exists());
    let mut names: Vec<String> = complete
        .map(|entry| entry.file_name().expect("a name").to_string_lossy().into_owned())
        .collect();
    names.sort();
    names
}

/// A shared setting, or a data directory that was moved away.
#[test]
fn a_log_that_was_begun_again_keeps_its_checkpoints_and_is_restored_from_no_other() {
    let directory = tempfile::tempdir().expect("a directory");
    let place = directory.path().join("checkpoints");
    let url = format!("file://{}", place.display());
    let flags = ["--partitions", "1", "--checkpoints", &url, "--checkpoint-every", "1s"];
    let run = |data: &str, users: u64, made: usize| {
        let server = Server::start(&directory.path().join(data), &flags);
        let before = checkpoints(&place);
        for user in 1..=users {
            server.publish(&[connect(&format!("user-{user}"), user)]);
        }
        wait_until("checkpoints are made", || {
            // A checkpoint is made only of what is new.
            server.publish(&[json!({"type": "tick"})]);
            checkpoints(&place).iter().filter(|name| !before.contains(name)).count() >= made
        });
        server
    };
    let first = run("first", 100, 3);
    first.terminate();
    assert!(first.ended().success());
    let of_first = checkpoints(&place);
    assert_eq!(of_first.len(), 3, "{of_first:?}");

    let second = run("second", 5, 2);
    let ready = second.get("/readyz");
    assert_eq!(ready.status, 200);
    assert!(
        ready.body.contains("has checkpoints of another log (3,"),
        "{}",
        ready.body
    );
    second.terminate();
    assert!(second.ended().success());
    let all = checkpoints(&place);
    assert!(of_first.iter().all(|name| all.contains(name)), "{all:?}");

    // Each goes on without its store, as its own log.
    for (data, users) in [("first", 100), ("second", 5)] {
        let data = directory.path().join(data);
        std::fs::remove_dir_all(data.join("store")).expect("removed");
        let server = Server::start(&data, &flags);
        for (user, status) in [(5, "online"), (users, "online"), (users + 1, "unknown")] {
            let found = server.get(&format!("/v1/users/user-{user}")).json();
            match status {
                "online" => assert_eq!(found["status"], "online", "{found}"),
                _ => assert_ne!(found["status"], "online", "{found}"),
            }
        }
        server.terminate();
        assert!(server.ended().success());
    }
    // Of directories there are those of the checkpoints.
    let directories = std::fs::read_dir(place.join("rollcall/0"))
        .expect("a directory")
        .count();
    assert_eq!(directories, checkpoints(&place).len());
}

#[test]
fn what_it_writes_is_its_users_alone() {
    use std::os::unix::fs::MetadataExt as _;
    fn modes(path: &Path, found: &mut Vec<(std::path::PathBuf, u32)>) {
        let metadata = std::fs::metadata(path).expect("there");
        found.push((path.to_owned(), metadata.mode() & 0o777));
        if metadata.is_dir() {
            let entries = std::fs::read_dir(path).expect("a directory");
            entries.for_each(|entry| modes(&entry.expect("an entry").path(), found));
        }
    }
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let more = ["--gateway", "127.0.0.1:0", "--gateway-insecure"];
    let server = Server::start(&data, &more);
    server.post("/v1/events", json!([connect("a", 1)]).to_string()).ok();
    server.terminate();
    assert!(server.ended().success());
    let mut found = Vec::new();
    modes(&data, &mut found);
    assert!(found.len() > 20);
    let open: Vec<_> = found.iter().filter(|(_, mode)| mode & 0o077 != 0).collect();
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn others_are_let_in_only_with_tokens() {
    let data = tempfile::tempdir().expect("a directory");
    let log = data.path().join("log");
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:8080"] {
        let said = refused(&log, &["--listen", address]);
        let expected = format!("error: listening on {address} lets others in, so --token-file must name a file");
        assert!(said.starts_with(&expected), "{said}");
    }
    assert!(!log.exists(), "nothing was made");
    let file = data.path().join("tokens");
    let path = file.to_str().expect("text").to_owned();
    for (text, says) in [
        ("", "has no token, so no client could use the server"),
        ("# only a remark\n", "has no token, so no client could use the server"),
        (
            "a-token-without-scopes\n",
            "line 1: a token must be followed by its scopes",
        ),
        ("# x\nshort read\n", "line 2: a token must have at least 16 characters"),
        (
            "a-token-of-somebody write\n",
            "line 1: scope 1 is unknown; there are read, publish, publish:GATEWAY, metrics, admin and name:NAME",
        ),
    ] {
        std::fs::write(&file, text).expect("written");
        let said = refused(&log, &["--listen", "0.0.0.0:0", "--token-file", &path]);
        assert!(said.contains(says), "{said}");
        // Not the token itself.
        assert!(!said.contains("a-token-"), "{said}");
    }
    let said = refused(&log, &["--token-file", "no-such-file"]);
    assert!(said.contains("cannot read the tokens no-such-file"), "{said}");
}

/// What a command prints, on either stream, and its exit status.
fn run(arguments: &[&str]) -> (String, Option<i32>) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    let output = command.args(arguments).stdin(Stdio::null()).output().expect("it runs");
    let printed = [output.stdout, output.stderr].concat();
    (String::from_utf8(printed).expect("text"), output.status.code())
}

#[test]
fn health_is_one_line_and_a_status_that_says_whether_it_is_ready() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path(), &[]);
    let url = format!("http://{}", server.client.address);
    assert_eq!(run(&["health", "--url", &url]), ("ready\n".to_owned(), Some(0)));
    // The status counts, also where nobody reads the line.
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    let closed = command
        .args(["health", "--url", &url])
        .stdout(writer)
        .stderr(Stdio::null());
    assert_eq!(closed.status().expect("it runs").code(), Some(0));
    let healthz = format!("{url}/healthz");
    assert_eq!(run(&["health", "--url", &healthz]), ("ok\n".to_owned(), Some(0)));

    // A server that is not ready says why, in the usual form of errors; another program answers something else.
    let unready = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = unready.local_addr().expect("an address");
    let answers = [
        r#"{"error":{"code":"not_ready","message":"partition 3 is failed: \u001b[2Ja disk\nthat hums"}}"#,
        "no JSON\n\nat all\n",
    ];
    let serving = std::thread::spawn(move || {
        for body in answers {
            let (mut socket, _) = unready.accept().expect("a connection");
            let _ = socket.read(&mut [0; 4_096]);
            let head = format!("HTTP/1.1 503 Unavailable\r\nContent-Length: {}\r\n\r\n", body.len());
            socket.write_all((head + body).as_bytes()).expect("written");
        }
    });
    for why in ["partition 3 is failed: [2Ja disk; that hums", "no JSON; at all"] {
        let (printed, status) = run(&["health", "--url", &format!("http://alice:secret@{address}/")]);
        assert_eq!(
            printed,
            format!("http://{address}/readyz answered 503 Service Unavailable: {why}\n")
        );
        assert_eq!(status, Some(1));
    }
    serving.join().expect("it answered twice");
    // Now no process listens.
    let (printed, status) = run(&["health", "--url", &format!("http://{address}")]);
    assert_eq!(status, Some(1));
    assert!(
        printed.starts_with(&format!("http://{address}/readyz does not answer: ")),
        "{printed}"
    );
    for wrong in ["localhost:8080", "ftp://x", "", "http://"] {
        let (printed, status) = run(&["health", "--url", wrong]);
        assert_eq!(status, Some(1), "{wrong}");
        assert!(
            printed.starts_with("--url cannot be used: ") && printed.lines().count() == 1,
            "{printed}"
        );
    }
}

#[test]
fn the_doctor_sees_a_server_and_the_machine_and_changes_nothing() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().to_str().expect("UTF-8");
    let server = Server::start(directory.path(), &[]);
    let url = format!("http://{}", server.client.address);
    let of_server = |url: &str| {
        let (printed, status) = run(&["doctor", "--json", "--data", data, "--url", url]);
        let found: Vec<Value> = serde_json::from_str(&printed).expect("JSON");
        let mut checks: Vec<&str> = found.iter().map(|one| one["check"].as_str().expect("a name")).collect();
        // Of the disk it says who can read the data, and how much is free.
        checks.dedup();
        assert_eq!(checks, ["clock", "open files", "disk", "log", "server"], "{printed}");
        // This machine may be short of files or of disk.
        let is_wrong = found.iter().any(|one| one["verdict"] == "wrong");
        assert_eq!(status, Some(is_wrong.into()));
        found.last().expect("there are some")["verdict"].clone()
    };
    assert_eq!(of_server(&url), "well");
    drop(server);
    assert_eq!(
        of_server(&url),
        "wrong",
        "nothing listens there any more, and it is the server that was asked for"
    );
    // Nobody has said that a server runs at the default URL.
    if TcpStream::connect("127.0.0.1:8080").is_err() {
        let (printed, _) = run(&["doctor", "--data", data]);
        assert!(printed.contains("skipped  server  "), "{printed}");
    }
    let (printed, _) = run(&["doctor", "--data", "no-such-directory", "--url", &url]);
    assert!(
        printed.contains("skipped  disk          there is no data directory no-such-directory\n"),
        "{printed}"
    );
}

/// If the symbol that names them had another name, or the linker left it out, jemalloc would use its defaults and nobody would
/// know.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[test]
fn jemalloc_has_the_options_of_the_program_and_the_environment_overrides_them() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    // It prints each option that is set, in their order, and ends the process if one is unknown.
    command.env("MALLOC_CONF", "confirm_conf:true,abort_conf:true,narenas:3");
    let output = command.arg("--version").output().expect("it runs");
    let printed = String::from_utf8(output.stderr).expect("text");
    let set: Vec<&str> = printed
        .lines()
        .filter_map(|line| line.split("Set conf value: ").nth(1))
        .collect();
    assert!(set.contains(&"background_thread:true"), "{printed}");
    let arenas: Vec<&str> = set
        .into_iter()
        .filter(|option| option.starts_with("narenas:"))
        .collect();
    assert_eq!(arenas, ["narenas:4", "narenas:3"], "{printed}");
    assert!(output.status.success(), "{printed}");
}

#[test]
fn the_version_says_what_was_built_and_shells_can_complete_every_command() {
    let (version, _) = run(&["--version"]);
    let words = version.strip_prefix(concat!("rollcall ", env!("CARGO_PKG_VERSION"), " (commit "));
    let words = words.and_then(|words| words.strip_suffix(")\n")).expect("of that form");
    let parts: Vec<&str> = words.split(", ").collect();
    let [commit, librdkafka, rocksdb] = parts.as_slice() else {
        panic!("{version}")
    };
    assert!(commit.len() >= 7, "{version}");
    let number = |part: &str, name: &str| {
        let number = part
            .strip_prefix(name)
            .and_then(|rest| rest.strip_prefix(' '))
            .expect("a version");
        assert!(
            number.starts_with(|c: char| c.is_ascii_digit()) && number.contains('.'),
            "{version}"
        );
    };
    number(librdkafka, "librdkafka");
    number(rocksdb, "RocksDB");

    let (help, _) = run(&["--help"]);
    let (_, commands) = help.split_once("Commands:\n").expect("commands");
    let names: Vec<&str> = commands
        .lines()
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            line.split_whitespace()
                .next()
                .filter(|_| line.starts_with("  ") && !line.starts_with("   "))
        })
        .collect();
    assert!(names.contains(&"serve") && names.contains(&"completions"), "{names:?}");
    for shell in ["bash", "zsh", "fish"] {
        let (script, status) = run(&["completions", shell]);
        assert_eq!(status, Some(0), "{shell}");
        for name in &names {
            assert!(script.contains(name), "{shell} does not know {name}");
        }
    }
    let (page, status) = run(&["man"]);
    assert_eq!(status, Some(0));
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("man1");
    let (_, status) = run(&["man", "--to", path.to_str().expect("UTF-8")]);
    assert_eq!(status, Some(0));
    for name in &names {
        assert!(page.contains(name), "the manual page does not know {name}");
        // `help` is the command line's own.
        let is_there = path.join(format!("rollcall-{name}.1")).exists();
        assert!(is_there || *name == "help", "no page rollcall-{name}.1");
    }
    let (printed, status) = run(&["man", "--to", "/dev/null/here"]);
    assert_eq!(status, Some(2));
    let expected = "error: cannot write manual pages to /dev/null/here";
    assert!(printed.starts_with(expected), "{printed}");
}

#[test]
fn in_the_json_log_numbers_are_numbers_and_every_line_is_an_object() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut process = command(directory.path())
        .args([
            "--listen",
            "127.0.0.1:0",
            "--partitions",
            "2",
            "--log-format",
            "json",
            "--log-level",
            "debug",
        ])
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started");
    let lines = BufReader::new(process.stderr.take().expect("its log")).lines();
    let lines = lines.map(|line| serde_json::from_str::<Value>(&line.expect("text")).expect("JSON"));
    let mut live = Vec::new();
    for line in lines {
        assert!(
            line["timestamp"].is_string() && line["level"].is_string() && line["target"].is_string(),
            "{line}"
        );
        assert!(line["fields"]["message"].is_string(), "{line}");
        for number in ["partition", "applied", "committed", "offset"] {
            assert!(
                line["fields"][number].is_null() || line["fields"][number].is_u64(),
                "{line}"
            );
        }
        if line["fields"]["message"] == "live" {
            live.push(line["fields"]["partition"].as_u64());
        }
        if live.len() == 2 {
            break;
        }
    }
    process.kill().expect("killed");
    process.wait().expect("ended");
    live.sort_unstable();
    assert_eq!(live, [Some(0), Some(1)]);
}
