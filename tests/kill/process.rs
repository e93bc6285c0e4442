//! The process: started, killed, stopped, queried.

use crate::{PATIENCE, STOPPED};
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::thread;
use std::time::{Duration, Instant};

pub fn rollcall(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped());
    command
}

/// A running `rollcall serve`; killed when dropped.
pub struct Server {
    child: Child,
    /// What it logs.
    diary: PathBuf,
}

impl Server {
    pub fn spawn(directory: &Path, more: &[&str]) -> Server {
        let diary = directory.join("diary");
        let stderr = std::fs::File::options().create(true).append(true).open(&diary);
        let data = directory.join("data");
        let mut arguments = vec!["serve", "--listen", "127.0.0.1:0", "--data"];
        arguments.push(data.to_str().expect("UTF-8"));
        arguments.extend(more);
        let child = rollcall(&arguments).stderr(stderr.expect("a file")).spawn();
        Server {
            child: child.expect("it starts"),
            diary,
        }
    }

    /// The port, once it listens.
    pub fn port(&mut self) -> u16 {
        let stdout = self.child.stdout.as_mut().expect("not asked before");
        for line in BufReader::new(stdout).lines() {
            let line = line.expect("UTF-8");
            if let Some(address) = line.strip_prefix("console  http://127.0.0.1:") {
                return address.trim_end_matches('/').parse().expect("a port");
            }
        }
        panic!("it did not start:\n{}", self.diary());
    }

    pub fn diary(&self) -> String {
        std::fs::read_to_string(&self.diary).unwrap_or_default()
    }

    pub fn kill(mut self) {
        self.child.kill().expect("killed");
        self.child.wait().expect("ended");
    }

    /// Asks it to stop; it must end soon, with status 0.
    pub fn stop(mut self) {
        let pid = self.child.id().to_string();
        let signalled = Command::new("kill").args(["-TERM", &pid]).status();
        assert!(signalled.expect("kill is installed").success());
        let status = wait(&mut self.child, STOPPED).unwrap_or_else(|| panic!("it did not stop:\n{}", self.diary()));
        assert_eq!(status, Some(0), "{}", self.diary());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for the end of a process. None if it does not end in time; Some(None) if a signal ended it.
pub fn wait(child: &mut Child, patience: Duration) -> Option<Option<i32>> {
    let began = Instant::now();
    while began.elapsed() < patience {
        if let Some(status) = child.try_wait().expect("asked") {
            return Some(status.code());
        }
        thread::sleep(Duration::from_millis(5));
    }
    None
}

/// The address where the process listens at the moment, shared by all clients.
#[derive(Default)]
pub struct Address(AtomicU16);

impl Address {
    pub fn set(&self, port: u16) {
        self.0.store(port, Ordering::SeqCst);
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://127.0.0.1:{}{path}", self.0.load(Ordering::SeqCst))
    }
}

pub fn agent(timeout: Option<Duration>) -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(timeout);
    config.build().into()
}

/// A full answer, or none if the connection ended before it.
pub fn get(agent: &ureq::Agent, url: &str) -> Option<(u16, String)> {
    let mut response = agent.get(url).call().ok()?;
    let body = response.body_mut().read_to_string().ok()?;
    Some((response.status().as_u16(), body))
}

pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
