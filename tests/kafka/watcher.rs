//! `rollcall audit watch` beside a run: a second opinion, from another process with another client of Kafka, on what the
//! engines commit while they do.

use crate::python::{self, mortal};
use crate::space::Space;
use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How long it may be behind at the end of a run.
const PATIENCE: Duration = Duration::from_secs(150);

pub struct Watcher {
    child: Child,
    /// What it says on standard error.
    said: PathBuf,
}

/// What it has found.
pub struct Opinion {
    /// The differences that it printed, or why it has no opinion.
    pub complaints: Vec<String>,
    /// How many events it has folded.
    pub events: u64,
}

impl Watcher {
    pub fn start(directory: &Path, space: &Space) -> Watcher {
        let said = directory.join("watcher.log");
        let child = mortal(&python::program())
            .args(["audit", "watch", "--json", "--status", "127.0.0.1:0"])
            .args([
                "--kafka",
                &space.bootstrap,
                "--topic-prefix",
                &space.prefix,
                "--group",
                &space.group,
            ])
            .env("ROLLCALL_REVISION", "2")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(&said).expect("a file"))
            .spawn()
            .expect("it starts");
        Watcher { child, said }
    }

    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap_or_default()
    }

    /// An answer of its status. None while it starts, or if it has ended.
    pub fn get(&self, path: &str) -> Option<String> {
        let said = self.said();
        let url = said.lines().find_map(|line| line.strip_prefix("status   "))?;
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(5)))
            .build();
        let mut answer = ureq::Agent::new_with_config(config)
            .get(format!("{url}{path}"))
            .call()
            .ok()?;
        answer.body_mut().read_to_string().ok()
    }

    /// Whether it has verified a partition up to an offset.
    pub fn has_verified(&self, partition: usize, offset: u64) -> bool {
        let metrics = self.get("/metrics").unwrap_or_default();
        let name = format!("rollcall_audit_verified_offset{{partition=\"{partition}\"}} ");
        let figure = metrics.lines().find_map(|line| line.strip_prefix(&*name));
        figure.and_then(|figure| figure.parse().ok()) >= Some(offset)
    }

    /// Ends it, once it has verified everything up to these offsets or has found something.
    pub fn end(mut self, committed: &[u64]) -> Opinion {
        let begun = Instant::now();
        let mut complaints = Vec::new();
        while !committed
            .iter()
            .enumerate()
            .all(|(partition, offset)| self.has_verified(partition, *offset))
        {
            let ready = self.get("/readyz").unwrap_or_default();
            let has_ended = self.child.try_wait().expect("ours").is_some();
            if ready.contains("is not what its events say") || has_ended {
                break;
            }
            if begun.elapsed() > PATIENCE {
                complaints.push(format!(
                    "the watcher has not verified everything within {PATIENCE:?}: {ready}"
                ));
                break;
            }
            thread::sleep(Duration::from_millis(200));
        }
        let pid = self.child.id().to_string();
        // It may have ended by itself.
        let _ = Command::new("kill")
            .args(["-TERM", &pid])
            .stderr(Stdio::null())
            .status();
        let mut printed = String::new();
        let mut stdout = self.child.stdout.take().expect("piped");
        stdout.read_to_string(&mut printed).expect("UTF-8");
        let status = self.child.wait().expect("ended");
        let mut events = 0;
        for line in printed.lines() {
            let value: serde_json::Value = serde_json::from_str(line).expect("JSON");
            if value["verified"] == true {
                events += value["events"].as_u64().unwrap_or_default();
            } else {
                complaints.push(format!("the watcher: {line}"));
            }
        }
        if status.code() != Some(0) && complaints.is_empty() {
            complaints.push(format!("the watcher ended with {status}: {}", self.said()));
        }
        Opinion { complaints, events }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Ended already, where it was asked for its opinion.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
