//! `rollcall reshard` moves topics under load: killed, held back by a publisher's transaction, and closed to who still publishes.

use crate::engine::{self, Node};
use crate::python;
use crate::space::Space;
use rdkafka::ClientConfig;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};
use rollcall::schema::avro;
use rollcall::schema::json::read_new_events;
use rollcall::schema::partitioner::partition_of;
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

const PARTITIONS: u32 = 2;
const USERS: usize = 20;
const PATIENCE: Duration = Duration::from_secs(120);

fn encoded(event: &Value) -> Vec<u8> {
    let body = json!([event]).to_string();
    let event = read_new_events(&body).expect("JSON").remove(0).expect("an event").event;
    let mut value = Vec::new();
    avro::encode_event(&event, &mut value);
    value
}

fn login(user: &str) -> Value {
    json!({"type": "connect", "user": user, "platform": "linux", "device": "d", "gateway": "g", "epoch": 1, "conn": 1,
        "intent": "login"})
}

#[track_caller]
fn text(output: Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

pub fn topics_are_moved_under_load_and_every_version_goes_on(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let old = Space::new(bootstrap, "reshard", PARTITIONS as usize);
    let new = Space {
        bootstrap: bootstrap.to_owned(),
        prefix: format!("{}-more", old.prefix),
        group: format!("{}-more", old.group),
    };
    let mut node = Node::new(directory.path(), &old, 0, &[]);
    node.start(None);
    let is_ready = |node: &Node| node.get("/readyz").is_some_and(|(status, _)| status == 200);
    engine::until(&[&node], PATIENCE, "the old engine is ready", || is_ready(&node));

    let reshard = |more: &[&str]| {
        let mut command: Command = python::mortal(&python::program());
        command
            .args(["reshard", "--kafka", bootstrap, "--topic-prefix", &old.prefix])
            .args(["--to-prefix", &new.prefix, "--partitions", "6"])
            .args(more)
            .env_remove("ROLLCALL_FAILPOINT")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    };
    let users: Vec<String> = (0..USERS).map(|number| format!("user-{number}")).collect();
    let post = |events: &[Value]| {
        let posted = ureq::post(format!("{}/v1/events", node.url())).send(json!(events).to_string());
        posted.is_ok_and(|answer| answer.status().is_success())
    };
    assert!(post(&users.iter().map(|user| login(user)).collect::<Vec<_>>()));
    let (is_refused, rounds) = (AtomicBool::new(false), AtomicUsize::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let set = |user: &String| {
                let text = format!("round {}", rounds.load(Ordering::Relaxed));
                json!({"type": "custom_status", "user": user, "text": text})
            };
            while post(&users.iter().map(set).collect::<Vec<_>>()) {
                rounds.fetch_add(1, Ordering::Relaxed);
            }
            is_refused.store(true, Ordering::Relaxed);
        });
        let killed = reshard(&[]).env("ROLLCALL_FAILPOINT", "copied:1").status();
        assert!(!killed.expect("it starts").success());
        let output = text(reshard(&[]).output().expect("it starts"));
        assert!(output.contains("not finished"), "{output}");

        // A publisher's transaction is open while the topics are closed.
        let publisher: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", bootstrap)
            .set("transactional.id", &old.prefix)
            .create()
            .expect("a producer");
        publisher.init_transactions(PATIENCE).expect("a transaction can begin");
        publisher.begin_transaction().expect("begun");
        let topic = format!("{}.events", old.prefix);
        let value = encoded(&login("held"));
        let home = partition_of("held", PARTITIONS).0 as i32;
        let record = BaseRecord::to(&topic).partition(home).key("held").payload(&value);
        publisher.send(record).map_err(|(error, _)| error).expect("taken");
        publisher.flush(PATIENCE).expect("written");
        let mut finish = reshard(&["--finish"]).spawn().expect("it starts");
        let mut lines = BufReader::new(finish.stderr.take().expect("piped")).lines();
        let is_held = |line: &str| line.contains("open transaction holds back");
        assert!(
            lines.any(|line| is_held(&line.expect("UTF-8"))),
            "it says what it waits for"
        );
        publisher.commit_transaction(PATIENCE).expect("also of a closed topic");
        let output = text(finish.wait_with_output().expect("it ends"));
        drop(lines);
        assert!(output.contains("compared    21 users, 0 differences"), "{output}");
        assert!(output.contains("finished"), "{output}");
    });
    assert!(is_refused.load(Ordering::Relaxed), "who still publishes gets an error");
    // An engine that nobody stopped says why it takes nothing, to who publishes and to who operates it.
    let names_the_cause = |body: &str| body.contains("reshard --finish") && body.contains("--topic-prefix");
    engine::until(&[&node], PATIENCE, "the old engine is not ready, and says why", || {
        node.get("/readyz")
            .is_some_and(|(status, body)| status == 503 && names_the_cause(&body))
    });
    let agent = ureq::Agent::new_with_config(ureq::Agent::config_builder().http_status_as_error(false).build());
    let posted = agent.post(format!("{}/v1/events", node.url()));
    let mut refused = posted.send(json!([login("late")]).to_string()).expect("an answer");
    assert_eq!(refused.status(), 503);
    let body = refused.body_mut().read_to_string().expect("text");
    assert!(names_the_cause(&body), "{body}");
    assert!(rounds.load(Ordering::Relaxed) > 5, "{rounds:?}");
    let again = text(reshard(&["--finish"]).output().expect("it starts"));
    assert!(again.contains("finished already"), "{again}");
    let refused = reshard(&[]).output().expect("it starts");
    let refused = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        refused.contains("is not a log that this command was filling"),
        "{refused}"
    );

    let mut more = Node::new(directory.path(), &new, 1, &[]);
    more.start(None);
    engine::until(&[&more], PATIENCE, "the new engine is ready", || is_ready(&more));
    let user = |node: &Node, user: &str| -> Option<(u64, Value, Value)> {
        let (status, body) = node.get(&format!("/v1/users/{user}"))?;
        let user: Value = serde_json::from_str(&body).ok()?;
        (status == 200).then(|| {
            (
                user["version"].as_u64().unwrap_or_default(),
                user["since"].clone(),
                user["custom_status"].clone(),
            )
        })
    };
    for one in users.iter().map(String::as_str).chain(["held"]) {
        engine::until(&[&node, &more], PATIENCE, "both say the same", || {
            user(&node, one).is_some() && user(&node, one) == user(&more, one)
        });
    }
    let acknowledged = rounds.load(Ordering::Relaxed) as u64;
    assert!(user(&more, "user-0").is_some_and(|(version, ..)| version > acknowledged));
    let posted =
        ureq::post(format!("{}/v1/events", more.url())).send(json!([{"type": "kick", "user": "held"}]).to_string());
    assert!(posted.is_ok_and(|answer| answer.status().is_success()));
    engine::until(&[&more], PATIENCE, "versions go on", || {
        user(&more, "held").is_some_and(|(version, ..)| version == 2)
    });

    // An engine does not start on the old topics again.
    node.stop();
    let mut late = Node::new(directory.path(), &old, 2, &["--start-wait", "1s"]);
    late.start(None);
    assert!(!late.ended().success());
    assert!(late.diary().contains("it takes no events"), "{}", late.diary());
}
