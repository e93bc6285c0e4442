//! The Python programs: topics, the load, the independent reader and its findings.

use crate::space::Space;
use serde_json::Value;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

/// A copy of the binary, if one was made.
pub static COPY: OnceLock<String> = OnceLock::new();

/// The binary that is tested; `ROLLCALL_TEST_PROGRAM` names another than the one that was built along.
pub fn program() -> String {
    let built = || std::env::var("ROLLCALL_TEST_PROGRAM").unwrap_or_else(|_| env!("CARGO_BIN_EXE_rollcall").to_owned());
    COPY.get().cloned().unwrap_or_else(built)
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kafka")
}

/// A process that the kernel ends when the thread that started it does, so that a killed test leaves no process behind. The
/// terminal's Ctrl-C does not reach it: the test that started it ends it.
pub fn mortal(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]).process_group(0);
    command
}

fn python(script: &str, space: &Space) -> Command {
    let interpreter = directory().join("python");
    let mut command = mortal(interpreter.to_str().expect("UTF-8"));
    command
        .arg(directory().join(script))
        // `rollcall fold` is to know what any node may have known.
        .env("ROLLCALL_REVISION", "2")
        .args(["--kafka", &space.bootstrap, "--prefix", &space.prefix])
        .stdin(Stdio::null());
    command
}

/// What a script prints; it must succeed.
#[track_caller]
pub fn run(script: &str, space: &Space, arguments: &[&str]) -> String {
    let output = python(script, space).args(arguments).stderr(Stdio::inherit()).output();
    let output = output.expect("it starts");
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    assert!(output.status.success(), "{script} {arguments:?} failed: {printed}");
    printed
}

/// Something that a publisher does; see `publisher.py`.
pub fn publisher(space: &Space, what: &[&str]) {
    run("publisher.py", space, what);
}

/// A publisher who has died with what it began left open.
pub fn dead_publisher(space: &Space, what: &[&str]) {
    let output = python("publisher.py", space)
        .args(what)
        .stderr(Stdio::inherit())
        .output();
    let output = output.expect("it starts");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "open\n", "{what:?} failed");
}

/// What the replicas would show of aborted transactions; see `aborted.py`.
pub fn aborted(brokers: &Path, space: &Space) -> String {
    let printed = run("aborted.py", space, &["--brokers", brokers.to_str().expect("UTF-8")]);
    serde_json::from_str(&printed).expect("JSON")
}

/// Leaders of partitions move as long as this is not ended; see `leaders.py`.
pub struct LeaderMoves(Load);

impl LeaderMoves {
    pub fn start(space: &Space, seed: u64) -> LeaderMoves {
        let mut command = python("leaders.py", space);
        command.args(["--seed", &seed.to_string()]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        LeaderMoves(Load(command.spawn().expect("it starts")))
    }

    /// Ends it. Returns how many leaders have moved.
    pub fn end(self) -> u32 {
        self.0
            .end()
            .as_u64()
            .and_then(|moved| moved.try_into().ok())
            .expect("a number")
    }
}

/// The load, running.
pub struct Load(Child);

impl Load {
    pub fn start(space: &Space, seed: u64, arguments: &[&str]) -> Load {
        let mut command = python("load.py", space);
        command
            .args(["--seed", &seed.to_string(), "--attached"])
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Load(command.spawn().expect("it starts"))
    }

    /// Ends it: what it counted, and the last acknowledged offset of each partition.
    pub fn end(mut self) -> Value {
        self.0.stdin = None;
        let mut printed = String::new();
        let stdout = self.0.stdout.as_mut().expect("piped");
        stdout.read_to_string(&mut printed).expect("UTF-8");
        assert!(self.0.wait().expect("ended").success(), "the load failed: {printed}");
        serde_json::from_str(&printed).expect("JSON")
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What the independent reader found.
pub struct Verdict {
    /// A sentence each; empty if all is well.
    pub complaints: Vec<String>,
    pub sums: Value,
}

impl Verdict {
    pub fn sum(&self, name: &str) -> u64 {
        self.sums[name].as_u64().unwrap_or_default()
    }
}

/// Everything in the topics against the fold of the events. `ends` is what the load gave.
#[track_caller]
pub fn check(space: &Space, ends: Option<&Value>) -> Verdict {
    let mut command = python("reader.py", space);
    command.args(["check", "--group", &space.group, "--program", &program()]);
    let file = tempfile::NamedTempFile::new().expect("a file");
    if let Some(ends) = ends {
        std::fs::write(file.path(), ends.to_string()).expect("written");
        command.arg("--ends").arg(file.path());
    }
    let output = command.stderr(Stdio::inherit()).output().expect("it starts");
    let printed = String::from_utf8(output.stdout).expect("UTF-8");
    let (complaints, sums) = match printed.trim_end().rsplit_once('\n') {
        Some((complaints, sums)) => (complaints.lines().map(str::to_owned).collect(), sums),
        None => (Vec::new(), printed.trim_end()),
    };
    let sums: Value = serde_json::from_str(sums).unwrap_or_else(|_| panic!("the check did not end: {printed}"));
    assert_eq!(output.status.success(), sums["wrong"] == 0, "{printed}");
    Verdict { complaints, sums }
}

/// How far the group has committed each partition, and the end of its events.
pub fn places(space: &Space) -> Vec<(u64, u64)> {
    let printed = run("reader.py", space, &["where", "--group", &space.group]);
    let printed: Vec<Value> = serde_json::from_str(&printed).expect("JSON");
    let number = |place: &Value, name: &str| place[name].as_u64().expect("a number");
    printed
        .iter()
        .map(|place| (number(place, "committed"), number(place, "end")))
        .collect()
}
