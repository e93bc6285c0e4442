//! A Kafka of our own for a test, and its tools.

use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

/// It ends when this is dropped, and with the test's process in any case.
pub struct Cluster {
    pub bootstrap: String,
    process: Option<Child>,
    lives: Option<ChildStdin>,
}

fn script() -> Command {
    Command::new(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka"))
}

impl Cluster {
    pub fn start(more: &[&str]) -> Cluster {
        let mut process = script()
            .args(["run", "--port", "0"])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("scripts/kafka runs");
        let lives = process.stdin.take();
        let mut first = String::new();
        let mut output = BufReader::new(process.stdout.take().expect("its output"));
        output.read_line(&mut first).expect("it says where it listens");
        let bootstrap = first.trim().strip_prefix("KAFKA_BOOTSTRAP=");
        Cluster {
            bootstrap: bootstrap.unwrap_or_else(|| panic!("no Kafka: {first:?}")).to_owned(),
            process: Some(process),
            lives,
        }
    }

    /// Not ours, and perhaps not there.
    pub fn somewhere(bootstrap: &str) -> Cluster {
        Cluster {
            bootstrap: bootstrap.to_owned(),
            process: None,
            lives: None,
        }
    }

    /// Runs one of Kafka's tools under the name that its distribution gives it.
    #[track_caller]
    pub fn tool(&self, name: &str, arguments: &[&str]) {
        let class = match name {
            "kafka-topics.sh" => "org.apache.kafka.tools.TopicCommand",
            "kafka-configs.sh" => "kafka.admin.ConfigCommand",
            other => panic!("{other} is not known here"),
        };
        let output = script()
            .args(["java", class, "--bootstrap-server", &self.bootstrap])
            .args(arguments)
            .output()
            .expect("scripts/kafka runs");
        assert!(output.status.success(), "{name} {arguments:?}: {output:?}");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.lives.take());
        if let Some(process) = &mut self.process {
            // Nothing can be done about one that does not end.
            let _ = process.wait();
        }
    }
}
