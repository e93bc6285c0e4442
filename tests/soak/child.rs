//! The processes of a soak that are neither engines nor brokers: the gateway, the lake, and the simulated people.

use crate::python::{mortal, program};
use serde_json::Value;
use std::fs::File;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child as Process, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

const SIGTERM: i32 = 15;
/// A process that has not ended so long after it was asked to stop never will.
const STOPPED: Duration = Duration::from_secs(60);

/// A process that can be started again with the same arguments.
pub struct Child {
    arguments: Vec<String>,
    diary: PathBuf,
    process: Option<Process>,
}

impl Child {
    pub fn new(directory: &Path, name: &str, arguments: &[&str]) -> Child {
        Child {
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            diary: directory.join(format!("{name}.log")),
            process: None,
        }
    }

    pub fn start(&mut self) {
        let diary = File::options().create(true).append(true).open(&self.diary);
        let started = mortal(&program())
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(diary.expect("a file"))
            .spawn();
        self.process = Some(started.expect("it starts"));
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            // Ended already, perhaps.
            let _ = process.kill();
            let _ = process.wait();
        }
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.process.as_mut()?.try_wait().expect("ours")
    }

    /// SIGTERM. Returns what was wrong with its end.
    pub fn stop(&mut self) -> Option<String> {
        let Some(mut process) = self.process.take() else {
            return Some("it does not run".to_owned());
        };
        let sent = std::process::Command::new("kill")
            .args(["-TERM", &process.id().to_string()])
            .status();
        assert!(sent.is_ok(), "kill is there");
        let begun = Instant::now();
        while begun.elapsed() < STOPPED {
            match process.try_wait().expect("ours") {
                Some(status) if status.success() || status.signal() == Some(SIGTERM) => return None,
                Some(status) => return Some(format!("{status}: {}", self.last())),
                None => thread::sleep(Duration::from_millis(50)),
            }
        }
        let _ = process.kill();
        let _ = process.wait();
        Some(format!("it does not end when asked to: {}", self.last()))
    }

    pub fn last(&self) -> String {
        let said = std::fs::read_to_string(&self.diary).unwrap_or_default();
        said.lines().last().unwrap_or_default().to_owned()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.kill();
    }
}

/// `rollcall load` for some time, with users of its own.
pub struct Crowd {
    child: Child,
    report: PathBuf,
}

pub struct CrowdSettings<'s> {
    pub gateway: &'s str,
    pub engine: &'s str,
    pub people: usize,
    pub seconds: u64,
    pub seed: u64,
}

impl Crowd {
    pub fn start(directory: &Path, settings: &CrowdSettings<'_>) -> Crowd {
        let report = directory.join("load.json");
        // Of the run before.
        let _ = std::fs::remove_file(&report);
        let [people, seconds, seed] =
            [settings.people as u64, settings.seconds, settings.seed].map(|number| number.to_string());
        let arguments = [
            "load",
            "--gateway",
            settings.gateway,
            "--engine",
            settings.engine,
            "--people",
            &people,
            "--seconds",
            &seconds,
            "--seed",
            &seed,
            "--action-seconds",
            "30",
            "--storm-seconds",
            "30",
            "--connect-rate",
            "20",
            "--report",
            report.to_str().expect("UTF-8"),
        ];
        let mut child = Child::new(directory, "load", &arguments);
        child.start();
        Crowd { child, report }
    }

    pub fn is_over(&mut self) -> bool {
        self.child.ended().is_some()
    }

    /// What it reports once it is over; why it has nothing to report.
    pub fn report(self) -> Result<Value, String> {
        let text = std::fs::read_to_string(&self.report).map_err(|_| self.child.last())?;
        serde_json::from_str(&text).map_err(|error| error.to_string())
    }
}
