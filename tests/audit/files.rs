//! Files of events, changes and kicks, and the command that reads them.

use super::{parsed, rollcall};
use serde_json::Value;

/// Files as `rollcall log` prints them.
pub struct Files {
    directory: tempfile::TempDir,
}

impl Files {
    pub fn of(events: &[String], policy: Option<&str>) -> Files {
        let directory = tempfile::tempdir().unwrap();
        let files = Files { directory };
        files.write("events", &(events.join("\n") + "\n"));
        if let Some(policy) = policy {
            files.write("policy.json", policy);
        }
        let mut fold = vec!["fold".to_owned(), files.path("events")];
        if policy.is_some() {
            fold.extend(["--policy".to_owned(), files.path("policy.json")]);
        }
        let fold: Vec<&str> = fold.iter().map(String::as_str).collect();
        let output = rollcall(&fold).output().unwrap();
        assert!(output.status.success());
        let output = String::from_utf8(output.stdout).unwrap();
        for kind in ["change", "kick"] {
            let begins = format!("{{\"type\":\"{kind}\"");
            let lines: Vec<&str> = output.lines().filter(|line| line.starts_with(&begins)).collect();
            files.write(&format!("{kind}s"), &(lines.join("\n") + "\n"));
        }
        files
    }

    pub fn path(&self, name: &str) -> String {
        self.directory.path().join(name).to_str().unwrap().to_owned()
    }

    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.directory.path().join(name), text).unwrap();
    }

    pub fn lines(&self, name: &str) -> Vec<String> {
        lines_of(&std::fs::read_to_string(self.directory.path().join(name)).unwrap())
    }

    /// The exit status, and the lines.
    pub fn audit(&self, arguments: &[&str]) -> (i32, Vec<Value>) {
        let names = ["events", "changes", "kicks"];
        let files: Vec<String> = names
            .iter()
            .flat_map(|name| [format!("--{name}"), self.path(name)])
            .collect();
        let mut all = vec!["audit", "--json"];
        all.splice(1..1, arguments.iter().copied());
        all.extend(files.iter().map(String::as_str));
        audit(&all)
    }
}

/// The lines that are not empty.
fn lines_of(text: &str) -> Vec<String> {
    text.lines()
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The exit status, and the lines; panics where there is no answer.
pub fn audit(arguments: &[&str]) -> (i32, Vec<Value>) {
    let output = rollcall(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    let status = output.status.code().unwrap();
    assert!(status < 2, "{arguments:?}: {error}");
    (status, text.lines().map(parsed).collect())
}

pub fn event(offset: u64, ts: u64, kind: &str, more: &str) -> String {
    format!("{{\"offset\":{offset},\"ts\":{ts},\"type\":\"{kind}\"{more}}}")
}

pub fn link(user: &str, platform: &str, device: &str, conn: u64) -> String {
    format!(
        ",\"user\":\"{user}\",\"platform\":\"{platform}\",\"device\":\"{device}\",\"gateway\":\"g1\",\"epoch\":1,\"conn\":{conn}"
    )
}

pub fn a_day() -> Vec<String> {
    let alice = link("alice", "android", "a1", 1);
    let bob = link("bob", "windows", "b1", 2);
    vec![
        event(0, 1_000, "connect", &(alice.clone() + ",\"intent\":\"login\"")),
        event(1, 2_000, "lease", ",\"gateway\":\"g1\",\"epoch\":1,\"ttl_ms\":600000"),
        event(2, 3_000, "connect", &(bob.clone() + ",\"intent\":\"login\"")),
        event(3, 4_000, "custom_status", ",\"user\":\"bob\",\"text\":\"busy\""),
        event(4, 6_000, "heartbeat", &alice),
        event(5, 7_000, "kick", ",\"user\":\"bob\""),
        event(6, 8_000, "policy", ",\"policy\":{\"login\":\"multi\"}"),
        event(7, 410_000, "tick", ""),
        event(8, 411_000, "nonsense", ""),
        event(
            9,
            500_000,
            "connect",
            &(bob + "3").replace("\"conn\":23", "\"conn\":3,\"intent\":\"login\""),
        ),
        event(10, 602_500, "tick", ""),
    ]
}
