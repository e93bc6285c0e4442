//! A real Kafka for tests, started by `scripts/kafka` on free ports. It ends with the process that started it, also if that is
//! killed, since the script runs as long as its standard input is open.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Mutex;

/// A cluster of our own.
pub struct Cluster {
    pub bootstrap: String,
    pub script: Mutex<Script>,
}

/// The conversation with `scripts/kafka run`: a line in, a line out.
pub struct Script {
    child: Child,
    /// None once it was closed.
    pub commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
    /// The brokers' files are in `kafka/node-N/data`.
    pub directory: PathBuf,
    /// Removes it, if it is ours.
    _temporary: Option<tempfile::TempDir>,
    /// Where what the brokers have and said is to be copied before it is gone: a wrong run can be explained with it.
    pub keep: Option<PathBuf>,
}

/// A broker that lives for minutes never earns what a better compiler costs.
const SHORT_LIVED: &str = "-XX:TieredStopAtLevel=1";

impl Cluster {
    /// Brokers with small heaps; `settings` are lines of their configuration.
    pub fn start(brokers: usize, settings: &[&str]) -> Cluster {
        Cluster::start_with(brokers, settings, &[])
    }

    /// The same with more `options` of `scripts/kafka run`.
    pub fn start_with(brokers: usize, settings: &[&str], options: &[&str]) -> Cluster {
        let directory = tempfile::tempdir().expect("a directory");
        let mut cluster = Cluster::start_in(directory.path(), brokers, settings, options);
        cluster.script.get_mut().expect("just made")._temporary = Some(directory);
        cluster
    }

    /// The same in this directory, which stays.
    pub fn start_in(directory: &Path, brokers: usize, settings: &[&str], options: &[&str]) -> Cluster {
        let mut command = Command::new(PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("scripts/kafka"));
        command
            .args(["run", "--port", "0", "--brokers", &brokers.to_string(), "--dir"])
            .arg(directory.join("kafka"))
            .args(options)
            .env("KAFKA_HEAP", "320m")
            .env(
                "KAFKA_JVM",
                std::env::var("KAFKA_JVM").unwrap_or_else(|_| SHORT_LIVED.to_owned()),
            )
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        for setting in settings {
            command.args(["--set", setting]);
        }
        let mut child = command.spawn().expect("scripts/kafka is there");
        let commands = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        let script = Script {
            child,
            commands,
            answers,
            directory: directory.to_owned(),
            _temporary: None,
            keep: None,
        };
        let mut cluster = Cluster {
            bootstrap: String::new(),
            script: Mutex::new(script),
        };
        let line = cluster.script.get_mut().expect("just made").answer();
        let bootstrap = line.strip_prefix("KAFKA_BOOTSTRAP=").map(str::to_owned);
        cluster.bootstrap = bootstrap.unwrap_or_else(|| panic!("Kafka did not start: {line:?}"));
        cluster
    }
}

impl Script {
    pub fn answer(&mut self) -> String {
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("UTF-8");
        line.trim_end().to_owned()
    }
}

impl Drop for Script {
    fn drop(&mut self) {
        if let Some(keep) = &self.keep {
            let copied = Command::new("cp").arg("-a").arg(&self.directory).arg(keep).status();
            println!("what the brokers have, copied to {}: {copied:?}", keep.display());
        }
        self.commands = None;
        let _ = self.child.wait();
    }
}
