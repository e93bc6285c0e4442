//! The real binary, and what it says over HTTP.

use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Generous, so that a slow machine is no failure.
const PATIENCE: Duration = Duration::from_secs(90);

#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A command of the program, without the environment's settings.
pub fn rollcall(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ROLLCALL_") || name == "RUST_LOG") {
        command.env_remove(name);
    }
    command
}

pub struct Engine {
    process: Child,
    url: String,
}

impl Engine {
    pub fn start(data: &Path, more: &[&str]) -> Engine {
        let mut process = rollcall(&["serve", "--listen", "127.0.0.1:0", "--log-level", "warn", "--data"])
            .arg(data)
            .args(more)
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let lines = BufReader::new(process.stdout.take().expect("its output")).lines();
        let console = lines
            .map_while(Result::ok)
            .find_map(|line| line.strip_prefix("console  ").map(str::to_owned));
        Engine {
            process,
            url: console
                .expect("it says where the console is")
                .trim_end_matches('/')
                .to_owned(),
        }
    }

    pub fn ready(self) -> Engine {
        wait_until("it is ready", || self.get("/readyz").0 == 200);
        self
    }

    /// Status and body.
    pub fn get(&self, path: &str) -> (u16, String) {
        answer(agent().get(format!("{}{path}", self.url)).call())
    }

    pub fn json(&self, path: &str) -> Value {
        let (status, body) = self.get(path);
        assert_eq!(status, 200, "{path}: {body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// Publishes; gives where each event went.
    pub fn publish(&self, events: &Value) -> Value {
        let request = agent().post(format!("{}/v1/events", self.url));
        let (status, body) = answer(request.send(events.to_string()));
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).expect("JSON")
    }

    /// A user as soon as an offset is folded.
    pub fn user_at(&self, user: &str, offset: u64) -> Value {
        let mut found = Value::Null;
        wait_until("the user is there", || {
            let (status, body) = self.get(&format!("/v1/users/{user}?at_least={offset}"));
            found = serde_json::from_str(&body).expect("JSON");
            status == 200
        });
        found
    }

    /// The value of a metric, over all its labels.
    pub fn metric(&self, name: &str) -> f64 {
        let (_, text) = self.get("/metrics");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let of_it = lines.filter(|line| line.split(['{', ' ']).next() == Some(name));
        of_it
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// In good order.
    pub fn stop(mut self) {
        let signalled = Command::new("kill")
            .args(["-TERM", &self.process.id().to_string()])
            .status();
        assert!(signalled.expect("kill is installed").success());
        wait_until("it has ended", || {
            self.process.try_wait().expect("waited for").is_some()
        });
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Ended already, where all went well.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(20)));
    config.build().into()
}

fn answer(result: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> (u16, String) {
    let mut response = result.expect("it answers");
    let body = response.body_mut().read_to_string().expect("text");
    (response.status().as_u16(), body)
}
