//! An S3-compatible server of our own for a test.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// It ends when this is dropped, and with the test's process in any case.
pub struct Server {
    endpoint: String,
    process: Child,
    lives: Option<ChildStdin>,
}

impl Server {
    pub fn start(bucket: &str) -> Server {
        let mut process = Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/s3"))
            .args(["run", bucket])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/s3 runs");
        let lives = process.stdin.take();
        let mut first = String::new();
        let mut output = BufReader::new(process.stdout.take().expect("its output"));
        output.read_line(&mut first).expect("it says where it listens");
        let endpoint = first.trim().strip_prefix("S3_ENDPOINT=");
        Server {
            endpoint: endpoint.unwrap_or_else(|| panic!("no S3: {first:?}")).to_owned(),
            process,
            lives,
        }
    }

    pub fn environment(&self) -> Vec<(String, String)> {
        environment(&self.endpoint)
    }
}

/// What AWS' variables would be for an endpoint.
pub fn environment(endpoint: &str) -> Vec<(String, String)> {
    let variables = [
        ("AWS_ENDPOINT", endpoint),
        ("AWS_ALLOW_HTTP", "true"),
        ("AWS_REGION", "us-east-1"),
        ("AWS_ACCESS_KEY_ID", "test"),
        ("AWS_SECRET_ACCESS_KEY", "test"),
        // The URL says which.
        ("AWS_BUCKET", "another"),
    ];
    variables
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .to_vec()
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.lives.take());
        // Nothing can be done about one that does not end.
        let _ = self.process.wait();
    }
}
