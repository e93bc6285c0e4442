//! The real binary as a server for one test, and a client.

use serde_json::Value;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// No answer within this is a failure; far more than any test needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Without what is set where the tests run, which is not what they are about.
pub fn rollcall(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    command.args(arguments).stdin(Stdio::null());
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ROLLCALL_") || name == "RUST_LOG") {
        command.env_remove(name);
    }
    command
}

/// For the kernel to choose a port.
pub const ANYWHERE: &str = "127.0.0.1:0";

/// A running `rollcall serve`; killed when dropped.
pub struct Server {
    child: Child,
    pub address: SocketAddr,
    agent: ureq::Agent,
}

impl Server {
    /// On a data directory and an address, with more arguments and environment; ready when this returns.
    pub fn start(data: &Path, listen: &str, more: &[&str], environment: &[(&str, &str)]) -> Server {
        let data = data.to_str().expect("UTF-8");
        let mut child = rollcall(&["serve", "--listen", listen, "--log-level", "error", "--data", data])
            .args(more)
            .envs(environment.iter().copied())
            .stdout(Stdio::piped())
            .spawn()
            .expect("started");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        let console = lines
            .map(|line| line.expect("text"))
            .find_map(|line| line.strip_prefix("console  http://").map(str::to_owned))
            .expect("it says where the console is");
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .proxy(None)
            .build();
        let server = Server {
            child,
            address: console.trim_end_matches('/').parse().expect("an address"),
            agent: ureq::Agent::new_with_config(config),
        };
        wait_until("it is ready", || server.get("/readyz", "").0 == 200);
        server
    }

    /// Status and body. The token may be empty.
    pub fn get(&self, path: &str, token: &str) -> (u16, String) {
        let request = self.agent.get(format!("http://{}{path}", self.address));
        read(request.header("Authorization", format!("Bearer {token}")).call())
    }

    /// Status and body.
    pub fn post(&self, path: &str, token: &str, body: impl Into<Vec<u8>>) -> (u16, String) {
        let request = self.agent.post(format!("http://{}{path}", self.address));
        read(
            request
                .header("Authorization", format!("Bearer {token}"))
                .send(body.into()),
        )
    }

    /// Posts events that are fine.
    #[track_caller]
    pub fn publish(&self, token: &str, events: &[Value]) {
        let (status, body) = self.post("/v1/events", token, Value::from(events).to_string());
        assert_eq!(status, 200, "{body}");
    }
}

type Answer = Result<ureq::http::Response<ureq::Body>, ureq::Error>;

fn read(answer: Answer) -> (u16, String) {
    let mut answer = answer.expect("it answers");
    let body = answer.body_mut().read_to_string().expect("text");
    (answer.status().as_u16(), body)
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ended already, where a test killed it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Asks again until it is so, within bounds.
#[track_caller]
pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..6_000 {
        if so() {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("not in a minute: {what}");
}
