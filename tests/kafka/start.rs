//! Failing starts, and stops: the process always ends by itself, says why, and takes no partition from the nodes that work.

use crate::broker::Cluster;
use crate::engine::Node;
use crate::python::{mortal, program};
use crate::space::Space;
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Starts of each kind, three at a time, since other tests run too.
const STARTS: usize = 4;
const AT_A_TIME: usize = 3;
const PATIENCE: Duration = Duration::from_secs(180);

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !holds() {
        assert!(begun.elapsed() < PATIENCE, "not yet: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

fn signal(process: &Child, signal: &str) {
    let sent = std::process::Command::new("kill")
        .args([&format!("-{signal}"), &process.id().to_string()])
        .status();
    assert!(sent.expect("kill is there").success());
}

/// A process, and what it says on standard error.
struct Started {
    process: Child,
    diary: PathBuf,
}

impl Started {
    fn new(directory: &Path, name: &str, arguments: &[String]) -> Started {
        let diary = directory.join(format!("{name}.log"));
        let mut command = mortal(&program());
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(File::create(&diary).expect("a file"));
        Started {
            process: command.spawn().expect("it starts"),
            diary,
        }
    }

    fn diary(&self) -> String {
        std::fs::read_to_string(&self.diary).expect("text")
    }

    fn ended(&mut self) -> Option<ExitStatus> {
        self.process.try_wait().expect("ours")
    }

    /// Waits until it ends by itself, which it must. Returns its exit status.
    #[track_caller]
    fn end(&mut self, what: &str) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.ended() {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "{what}: it does not end:\n{}", self.diary());
            thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A registry that answers everything like this, for as long as the test runs.
fn registry(answer: &'static str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4_096];
            let _ = stream.read(&mut request);
            let length = answer.split_once("\r\n\r\n").map_or(0, |(_, body)| body.len());
            let _ = stream.write_all(answer.replace("LENGTH", &length.to_string()).as_bytes());
        }
    });
    url
}

const NOT_REGISTERED: &str = "HTTP/1.1 404 Not Found\r\nContent-Length: LENGTH\r\nConnection: close\r\n\r\n\
                              {\"error_code\":40401,\"message\":\"Subject not found\"}";
const BROKEN: &str = "HTTP/1.1 500 Oops\r\nContent-Length: LENGTH\r\nConnection: close\r\n\r\noops";

/// An address where no process listens.
fn nowhere() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address").to_string();
    (listener, address)
}

pub fn a_start_that_fails_ends_by_itself_and_says_why(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "start", 4);
    let other = Space::new(bootstrap, "start-other", 2);
    // It stays in the group also where the machine has so much to do that it stands still for seconds.
    let session = ["--kafka-set", "session.timeout.ms=45000"];
    let mut healthy = Node::new(directory.path(), &space, 0, &session);
    healthy.start(None);
    let is_whole = |node: &Node| {
        let Some((200, stats)) = node.get("/v1/stats") else {
            return false;
        };
        stats.matches("\"state\":\"live\"").count() == 4 && node.get("/readyz").is_some_and(|(status, _)| status == 200)
    };
    until("the healthy node has everything", || is_whole(&healthy));

    let (taken, taken_at) = nowhere();
    let file = |name: &str, content: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, content).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let policy = file("policy.json", "{\"logn\":\"exclusive\"}");
    let tokens = file("tokens", "short admin\n");
    let peer = file("peer-token", "short\n");
    let (absent, broken) = (registry(NOT_REGISTERED), registry(BROKEN));
    // Nobody answers there: what connects waits for ever.
    let (_silent, silent) = nowhere();
    let silent = format!("http://{silent}");
    let kinds: Vec<(Vec<&str>, &str)> = vec![
        (vec!["--registry", "http://127.0.0.1:1"], "the schema registry"),
        (vec!["--registry", &silent], "the schema registry"),
        (vec!["--registry", &absent], "does not have our schema"),
        (vec!["--registry", &broken], "the schema registry"),
        (vec!["--checkpoints", "/var/backup"], "/var/backup"),
        (vec!["--listen", &taken_at], "cannot listen on"),
        (vec!["--listen", "0.0.0.0:0", "--token-file", &tokens], "--advertise"),
        (vec!["--policy", &policy], "unknown key"),
        (vec!["--token-file", &tokens], "at least 16 characters"),
        (vec!["--peer-token-file", &peer], "at least 16 characters"),
        (vec!["--topic-prefix", "no-such-topics"], "no-such-topics"),
        (
            vec!["--topic-prefix", &other.prefix, "--group", "x"],
            "is processed by the group",
        ),
        (vec!["--kafka", "127.0.0.1:1"], "127.0.0.1:1"),
        (vec!["--kafka-set", "acks=0"], "acks"),
    ];
    // Somebody works on the other topics, under another group.
    let mut owner = Node::new(directory.path(), &other, 1, &[]);
    owner.start(None);
    until("the other topics have an owner", || {
        owner
            .get("/v1/stats")
            .is_some_and(|(_, stats)| stats.matches("\"state\":\"live\"").count() == 2)
    });
    owner.kill();

    let next = AtomicUsize::new(0);
    let done = AtomicBool::new(false);
    let wrongs = Mutex::new(Vec::new());
    thread::scope(|scope| {
        let watch = scope.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                assert!(
                    is_whole(&healthy),
                    "a node that works lost something:\n{}",
                    healthy.diary()
                );
                thread::sleep(Duration::from_millis(100));
            }
        });
        let workers: Vec<_> = (0..AT_A_TIME)
            .map(|_| {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::SeqCst);
                        let Some((more, said)) = kinds.get(number / STARTS) else {
                            return;
                        };
                        let data = directory.path().join(format!("failing-{number}"));
                        let mut arguments: Vec<String> =
                            ["serve", "--start-wait", "1s", "--data"].map(str::to_owned).into();
                        arguments.push(data.to_str().expect("UTF-8").to_owned());
                        for (name, value) in [
                            ("--kafka", space.bootstrap.as_str()),
                            ("--topic-prefix", &space.prefix),
                            ("--group", &space.group),
                            ("--listen", "127.0.0.1:0"),
                        ] {
                            if !more.contains(&name) {
                                arguments.extend([name, value].map(str::to_owned));
                            }
                        }
                        arguments.extend(more.iter().map(|&word| word.to_owned()));
                        let mut start = Started::new(directory.path(), &format!("failing-{number}"), &arguments);
                        let status = start.end(&format!("{more:?}"));
                        let diary = start.diary();
                        let last = diary.lines().last().unwrap_or_default();
                        if status.code() != Some(2) || !last.starts_with("error: ") || !last.contains(said) {
                            let wrong = format!("{more:?}: {status}, and not {said:?}:\n{diary}");
                            wrongs.lock().expect("nobody panics with it").push(wrong);
                        }
                    }
                })
            })
            .collect();
        let ended: Vec<_> = workers.into_iter().map(|worker| worker.join()).collect();
        done.store(true, Ordering::SeqCst);
        watch.join().expect("the healthy node keeps everything");
        ended
            .into_iter()
            .for_each(|ended| ended.expect("each start ended as it should"));
    });
    drop(taken);
    let wrongs = wrongs.into_inner().expect("nobody panicked with it");
    assert!(wrongs.is_empty(), "{}", wrongs.join("\n"));
    healthy.stop();
}

/// The arguments of `rollcall serve` with its own data directory.
fn serve(directory: &Path, name: &str, more: &[&str]) -> Vec<String> {
    let data = directory.join(name);
    let mut arguments = vec![
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--data",
        data.to_str().expect("UTF-8"),
    ];
    arguments.extend(more);
    arguments.into_iter().map(str::to_owned).collect()
}

pub fn sigterm_ends_a_start_that_waits_for_others(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "waits", 2);
    let kafka = [
        "--kafka",
        bootstrap,
        "--topic-prefix",
        &space.prefix,
        "--group",
        &space.group,
    ];
    let (_silent, silent) = nowhere();
    let silent = format!("http://{silent}");
    let refused = [&kafka[..], &["--registry", "http://127.0.0.1:1"]].concat();
    let unanswered = [&kafka[..], &["--registry", &silent]].concat();
    let brokers = ["--kafka", "127.0.0.1:1"];
    let waits: [(&str, &[&str]); 3] = [
        ("refused", &refused),
        ("unanswered", &unanswered),
        ("brokers", &brokers),
    ];
    let mut started =
        waits.map(|(name, more)| Started::new(directory.path(), name, &serve(directory.path(), name, more)));
    for start in &mut started {
        until("it waits", || start.diary().contains("retrying for 60 s"));
        assert_eq!(start.ended(), None, "{}", start.diary());
        signal(&start.process, "TERM");
        // If it did not take notice, it would give up after a minute, and fail.
        let status = start.end("SIGTERM while it waits");
        assert!(status.success(), "{status}: {}", start.diary());
    }
}

fn command(cluster: &Cluster, what: &str) {
    let mut script = cluster.script.lock().expect("nobody panicked with it");
    let commands = script.commands.as_mut().expect("open until the end");
    writeln!(commands, "{what}").expect("the script listens");
    assert_eq!(script.answer(), "ok", "{what}");
}

pub fn a_stop_is_bounded_with_the_brokers_away_and_a_second_signal_ends_it_at_once() {
    let cluster = Cluster::start(1, &[]);
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(&cluster.bootstrap, "away", 2);
    let mut nodes = [0, 1].map(|name| Node::new(directory.path(), &space, name, &[]));
    let is_ready = |node: &Node| node.get("/readyz").is_some_and(|(status, _)| status == 200);
    let changes = |node: &Node| node.get("/v1/users/alice/changes");
    nodes[0].start(None);
    until("the first is ready", || is_ready(&nodes[0]));
    let login = r#"{"type":"connect","user":"alice","platform":"linux","device":"d","gateway":"g","epoch":1,"conn":1,"intent":"login"}"#;
    let posted = ureq::post(format!("{}/v1/events", nodes[0].url())).send(login);
    posted.expect("posted");
    let has_change = |(status, body): (u16, String)| status == 200 && body.contains("\"alice\"");
    until("there is a change", || changes(&nodes[0]).is_some_and(has_change));
    nodes[1].start(None);
    until("both are ready", || nodes.iter().all(is_ready));
    command(&cluster, "kill 1");
    for node in &nodes {
        // A cluster that is gone is no ready partition, though nothing is to be done.
        let begun = Instant::now();
        loop {
            let answer = node.get("/readyz");
            if let Some((503, body)) = &answer {
                println!("{body}");
                break;
            }
            assert!(begun.elapsed() < PATIENCE, "it is ready: {answer:?}\n{}", node.diary());
            thread::sleep(Duration::from_millis(200));
        }
    }
    // It waits for a broker for longer than others wait for an answer.
    let patient = ureq::Agent::config_builder().http_status_as_error(false);
    let patient = ureq::Agent::new_with_config(patient.timeout_global(Some(PATIENCE)).build());
    let ask = |path: &str| {
        let mut answer = patient
            .get(format!("{}{path}", nodes[1].url()))
            .call()
            .expect("it answers");
        let body = answer.body_mut().read_to_string().expect("text");
        println!("{path}: {} {body}", answer.status());
        if answer.status() == 200 {
            return Some(body);
        }
        assert!(
            answer.status() == 503 && body.contains("\"log_unanswered\""),
            "{path}: {} {body}",
            answer.status()
        );
        assert!(answer.headers().contains_key("retry-after"), "{path}");
        None
    };
    // Incidents are read from their topic. Changes may come from the index of the partition's owner, who needs no broker for them.
    assert_eq!(ask("/v1/incidents"), None);
    let known = ask("/v1/users/alice/changes");
    assert!(known.is_none_or(|body| body.contains("\"alice\"")));
    // After the session of the group a partition may be another node's, for all that its owner knows.
    for node in &nodes {
        until("it answers nothing that may be old", || {
            node.get("/v1/users/alice").is_some_and(|(status, body)| {
                // Its partition was taken from it, or it is cut off in the middle of a rebalance.
                let says_why = body.contains("\"moving\"") && body.contains("no broker has answered");
                status == 503 && (says_why || body.contains("\"not_ready\""))
            })
        });
    }
    let [first, second] = &mut nodes;
    let asked_at = Instant::now();
    // What a process says that ends at the limit of a stop and not before.
    const AT_THE_LIMIT: &str = "the stop took longer than";
    first.signal("TERM");
    second.signal("TERM");
    until("it has begun to stop", || second.diary().contains("stopping"));
    if second.is_running() {
        second.signal("TERM");
        let status = second.ended();
        assert!(matches!(status.code(), Some(0 | 2)), "{status}\n{}", second.diary());
        assert!(
            !second.diary().contains(AT_THE_LIMIT),
            "the second signal was ignored:\n{}",
            second.diary()
        );
    }
    let status = first.ended();
    let took = asked_at.elapsed();
    assert!(matches!(status.code(), Some(0 | 2)), "{status}\n{}", first.diary());
    println!("stopped after {took:?}");
}
