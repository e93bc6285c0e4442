//! Engines: real processes, started, killed, stopped, paused, and their directories.

use crate::python::{self, mortal};
use crate::space::Space;
use std::fs::File;
use std::net::TcpListener;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const SIGABRT: i32 = 6;
const SIGTERM: i32 = 15;

/// A process that has not ended so long after it was asked to stop never will: its own limit is 20 seconds.
const STOPPED: Duration = Duration::from_secs(120);
/// What a process says that has aborted its stop at its own limit, as on a machine that has too much to do.
const ABORTED: &str = "error: the stop took longer than";

/// A node: a directory and an address that stay, and the process, if it runs.
pub struct Node {
    pub name: usize,
    pub data: PathBuf,
    port: u16,
    diary: PathBuf,
    process: Option<Child>,
    /// The newest revision that it pretends to know, if another than it does.
    pub revision: Option<u32>,
    arguments: Vec<String>,
}

impl Node {
    /// How many partitions are live, by what this node says.
    pub fn live(&self) -> usize {
        let Some((200, stats)) = self.get("/v1/stats") else {
            return 0;
        };
        let stats: serde_json::Value = serde_json::from_str(&stats).expect("JSON");
        let partitions = stats["partitions"].as_array().expect("partitions").iter();
        partitions.filter(|one| one["state"] == "live").count()
    }

    /// Does not run yet. `more` are arguments of `rollcall serve`.
    pub fn new(directory: &Path, space: &Space, name: usize, more: &[&str]) -> Node {
        Node::at(free_port(), directory, space, name, more)
    }

    pub fn at(port: u16, directory: &Path, space: &Space, name: usize, more: &[&str]) -> Node {
        let data = directory.join(format!("node-{name}"));
        let address = format!("127.0.0.1:{port}");
        let mut arguments = vec!["serve", "--kafka", &space.bootstrap, "--topic-prefix", &space.prefix];
        arguments.extend(["--group", &space.group, "--listen", &address]);
        arguments.extend(["--data", data.to_str().expect("UTF-8")]);
        // Everything that takes its time takes little of it, so that it can happen often.
        arguments.extend(["--kafka-set", "session.timeout.ms=4000"]);
        arguments.extend(["--kafka-set", "heartbeat.interval.ms=500"]);
        arguments.extend(["--kafka-set", "transaction.timeout.ms=6000"]);
        arguments.extend(more);
        Node {
            name,
            port,
            diary: directory.join(format!("node-{name}.log")),
            process: None,
            revision: None,
            arguments: arguments.into_iter().map(str::to_owned).collect(),
            data,
        }
    }

    pub fn url(&self) -> String {
        let has_tls = self.arguments.iter().any(|argument| argument == "--http-tls-cert");
        let scheme = if has_tls { "https" } else { "http" };
        format!("{scheme}://127.0.0.1:{}", self.port)
    }

    /// Gives it other settings after the first ones, for its next start.
    pub fn instead_of(&mut self, before: &[&str], now: &[&str]) {
        let kept = self.arguments.len() - before.len();
        assert_eq!(self.arguments[kept..], *before);
        self.arguments.truncate(kept);
        self.arguments.extend(now.iter().map(|argument| (*argument).to_owned()));
    }

    /// Starts it, to end by itself at a failpoint if one is named.
    pub fn start(&mut self, failpoint: Option<&str>) {
        assert!(!self.is_running(), "node {} runs already", self.name);
        let diary = File::options().create(true).append(true).open(&self.diary);
        let mut command = mortal(&python::program());
        command
            .args(&self.arguments)
            .env_remove("ROLLCALL_FAILPOINT")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(diary.expect("a file"));
        if let Some(revision) = self.revision {
            command.env("ROLLCALL_REVISION", revision.to_string());
        }
        if let Some(failpoint) = failpoint {
            command.env("ROLLCALL_FAILPOINT", failpoint);
        }
        self.process = Some(command.spawn().expect("it starts"));
    }

    pub fn is_running(&mut self) -> bool {
        match &mut self.process {
            Some(process) => process.try_wait().expect("ours").is_none(),
            None => false,
        }
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill().expect("killed");
            process.wait().expect("ended");
        }
    }

    pub fn signal(&self, signal: &str) {
        let process = self.process.as_ref().expect("it runs");
        let sent = Command::new("kill")
            .args([&format!("-{signal}"), &process.id().to_string()])
            .status();
        assert!(sent.expect("kill is there").success());
    }

    /// SIGTERM: it stops normally.
    pub fn stop(&mut self) {
        if !self.is_running() {
            self.process = None;
            return;
        }
        self.signal("TERM");
        let begun = Instant::now();
        while self.is_running() {
            assert!(
                begun.elapsed() < STOPPED,
                "it does not end when asked to:\n{}",
                self.diary()
            );
            thread::sleep(Duration::from_millis(20));
        }
        let status = self.process.take().and_then(|mut process| process.wait().ok());
        let status = status.expect("it has ended");
        // If it has hardly begun, the signal itself ends it.
        let well = status.success() || status.signal() == Some(SIGTERM);
        let diary = self.diary();
        let last = diary.lines().last().unwrap_or_default();
        assert!(
            well || last.starts_with(ABORTED),
            "it did not end well: {status}\n{diary}"
        );
    }

    /// Of its process.
    pub fn id(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// How it ends, which it must soon.
    pub fn ended(&mut self) -> ExitStatus {
        let begun = Instant::now();
        while self.is_running() {
            assert!(begun.elapsed() < STOPPED, "it does not end:\n{}", self.diary());
            thread::sleep(Duration::from_millis(20));
        }
        let mut process = self.process.take().expect("it was started");
        process.wait().expect("ended")
    }

    /// Whether it has ended by a failpoint.
    pub fn was_aborted(&mut self) -> bool {
        let status = self.process.take().and_then(|mut process| process.wait().ok());
        status.is_some_and(|status| status.signal() == Some(SIGABRT))
    }

    /// The last of what it logged.
    pub fn diary(&self) -> String {
        let log = self.log();
        let from = log.len().saturating_sub(50_000);
        let from = (from..=log.len()).find(|at| log.is_char_boundary(*at));
        log[from.unwrap_or_default()..].to_owned()
    }

    /// All that it logged, over all of its processes.
    pub fn log(&self) -> String {
        let log = std::fs::read(&self.diary).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Its answer to a GET: status and body. None if nothing answers.
    pub fn get(&self, path: &str) -> Option<(u16, String)> {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(20)))
            .build();
        let agent = ureq::Agent::new_with_config(config);
        let mut answer = agent.get(format!("{}{path}", self.url())).call().ok()?;
        let status = answer.status().as_u16();
        Some((status, answer.body_mut().read_to_string().ok()?))
    }

    /// The values of a gauge with labels. None if nothing answers.
    pub fn gauges(&self, name: &str) -> Option<Vec<f64>> {
        let (_, text) = self.get("/metrics").filter(|(status, _)| *status == 200)?;
        let of_it = text.lines().filter(|line| line.starts_with(&format!("{name}{{")));
        Some(of_it.filter_map(|line| line.rsplit(' ').next()?.parse().ok()).collect())
    }
}

/// Asks again until it is so. If it is not within `patience`, it says what the nodes say of themselves.
#[track_caller]
pub fn until(nodes: &[&Node], patience: Duration, what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        if begun.elapsed() >= patience {
            let said = |node: &&Node| {
                format!(
                    "{:?}\n{:?}\n{}",
                    node.get("/readyz"),
                    node.get("/v1/stats"),
                    node.diary()
                )
            };
            let said: Vec<String> = nodes.iter().map(said).collect();
            panic!("not yet: {what}\n{}", said.join("\n"));
        }
        thread::sleep(Duration::from_millis(100));
    }
}

/// A port for a process that is started again and again. It is not one of those that the system gives to a process that asks
/// for any port, so that no other test and no connection takes it while the process does not run.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    const PORTS: std::ops::Range<u32> = 20_000..32_000;
    let first = std::process::id().wrapping_mul(97);
    for _ in PORTS {
        let number = first.wrapping_add(NEXT.fetch_add(1, Ordering::SeqCst));
        let port = (PORTS.start + number % (PORTS.end - PORTS.start)) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
    panic!("no port of {PORTS:?} is free");
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
