//! `rollcall audit watch` beside a running server: what it says of one that does its work, and of one that skips an event.

use super::server::{ANYWHERE, PATIENCE, Server, rollcall, wait_until};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

const READ_TOKEN: &str = "";

/// A process with a status address.
pub struct Watch {
    child: Child,
    url: String,
    /// Kept open: it may still write there.
    stderr: BufReader<ChildStderr>,
}

impl Watch {
    pub fn start(data: &Path, more: &[&str]) -> Watch {
        let data = data.to_str().expect("UTF-8");
        let mut command = rollcall(&["audit", "watch", "--json", "--status", ANYWHERE, "--data", data]);
        command.args(more);
        Watch::of(command)
    }

    /// Starts a command that says where its status is.
    pub fn of(mut command: Command) -> Watch {
        let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("started");
        let mut stderr = BufReader::new(child.stderr.take().expect("piped"));
        let url = stderr
            .by_ref()
            .lines()
            .map(|line| line.expect("text"))
            .find_map(|line| line.strip_prefix("status   ").map(str::to_owned))
            .expect("it says where its status is");
        Watch { child, url, stderr }
    }

    pub fn get(&self, path: &str) -> (u16, String) {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .proxy(None)
            .build();
        let mut answer = ureq::Agent::new_with_config(config)
            .get(format!("{}{path}", self.url))
            .call()
            .expect("it answers");
        let body = answer.body_mut().read_to_string().expect("text");
        (answer.status().as_u16(), body)
    }

    /// A figure of its metrics.
    fn figure(&self, name: &str) -> Option<u64> {
        let (_, text) = self.get("/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)?;
        line.parse().ok()
    }

    /// Asks it to stop. Returns its exit status and the lines that it printed.
    pub fn stop(self) -> (Option<i32>, Vec<Value>) {
        let (status, printed, _) = self.ended();
        let lines = printed.lines().map(|line| serde_json::from_str(line).expect("JSON"));
        (status, lines.collect())
    }

    /// Asks it to stop. Returns its exit status, what it printed, and its log.
    pub fn ended(mut self) -> (Option<i32>, String, String) {
        let pid = self.child.id().to_string();
        let asked = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(asked.expect("kill is there").success());
        let (mut printed, mut logged) = (String::new(), String::new());
        let mut stdout = self.child.stdout.take().expect("piped");
        stdout.read_to_string(&mut printed).expect("text");
        self.stderr.read_to_string(&mut logged).expect("text");
        let status = self.child.wait().expect("ended");
        (status.code(), printed, logged)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Ended already, where a test stopped it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn login(user: &str) -> Value {
    json!({"type": "connect", "user": user, "platform": "android", "device": "a", "gateway": "g", "epoch": 1, "conn": 1, "intent": "login"})
}

/// Its log begins with the policy, at offset 0.
fn server(data: &Path, environment: &[(&str, &str)]) -> Server {
    Server::start(data, ANYWHERE, &["--partitions", "1"], environment)
}

#[test]
fn what_an_engine_commits_is_verified_while_it_runs_and_its_heads_are_signed() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let [key, heads] = ["key.pem", "heads.jsonl"].map(|name| directory.path().join(name));
    let made = Command::new("openssl")
        .args(["genpkey", "-algorithm", "ed25519", "-out"])
        .arg(&key)
        .status();
    assert!(made.expect("openssl is there").success());
    let server = server(&data, &[]);
    server.publish(READ_TOKEN, &[login("alice"), login("bob")]);
    let [key, heads_flag] = [&key, &heads].map(|path| path.to_str().expect("UTF-8"));
    let watch = Watch::start(&data, &["--sign", key, "--heads", heads_flag]);
    let verified = || watch.figure("rollcall_audit_verified_offset{partition=\"0\"}");
    wait_until("it has caught up", || verified() >= Some(3));
    assert_eq!(watch.get("/readyz"), (200, "ready\n".to_owned()));
    server.publish(READ_TOKEN, &[login("carol")]);
    wait_until("it follows", || verified() >= Some(4));
    assert_eq!(
        watch.figure("rollcall_audit_differences_total{partition=\"0\"}"),
        Some(0)
    );
    let (status, lines) = watch.stop();
    assert_eq!(
        status,
        Some(0),
        "a stop is the end of the watch, whatever it was reading"
    );
    assert_eq!((&lines[0]["verified"], &lines[0]["changes"]), (&json!(true), &json!(3)));

    let signed = std::fs::read_to_string(&heads).expect("heads");
    let first: Value = serde_json::from_str(signed.lines().next().expect("a head")).expect("JSON");
    assert!(first["changes"].as_u64() >= Some(1), "{first}");
    // The proof of a change for that head is good.
    std::fs::write(&heads, format!("{first}\n")).expect("written");
    drop(server);
    let data = data.to_str().expect("UTF-8");
    let proof = rollcall(&["audit", "prove", "0-1-0", "--signed", heads_flag, "--data", data]).output();
    let proof = proof.expect("started");
    assert!(proof.status.success(), "{}", String::from_utf8_lossy(&proof.stderr));
    let file = directory.path().join("proof.json");
    std::fs::write(&file, &proof.stdout).expect("written");
    let checked = rollcall(&[
        "audit",
        "check-proof",
        file.to_str().expect("UTF-8"),
        "--signed",
        heads_flag,
    ])
    .output();
    let checked = checked.expect("started");
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}

#[test]
fn an_engine_that_skips_an_event_is_found_at_once() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = server(directory.path(), &[("ROLLCALL_FAILPOINT", "alter:skipped-event:3")]);
    let watch = Watch::start(directory.path(), &[]);
    server.publish(READ_TOKEN, &[login("alice")]);
    wait_until("the first event is verified", || {
        watch.figure("rollcall_audit_verified_offset{partition=\"0\"}") >= Some(2)
    });
    // This one moves time, and nothing else happens.
    server.publish(READ_TOKEN, &[login("bob")]);
    wait_until("the difference is found", || watch.get("/readyz").0 == 503);
    let (_, said) = watch.get("/readyz");
    assert!(said.starts_with("partition 0 is not what its events say"), "{said}");
    assert_eq!(
        watch.figure("rollcall_audit_differences_total{partition=\"0\"}"),
        Some(1)
    );
    let (status, lines) = watch.stop();
    assert_eq!((status, lines.len()), (Some(1), 1), "{lines:?}");
    assert_eq!(
        (&lines[0]["verified"], &lines[0]["offset"]),
        (&json!(false), &json!(2)),
        "{lines:?}"
    );
}
