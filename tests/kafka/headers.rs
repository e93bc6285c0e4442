//! Headers of output records, as a third-party client reads them.

use crate::engine::{Node, until};
use crate::python;
use crate::space::Space;
use serde_json::{Value, json};
use std::time::Duration;

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

pub fn every_output_has_its_id_and_the_trace_of_its_event(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "headers", 1);
    let mut node = Node::new(directory.path(), &space, 0, &["--cloudevents-source", "/chat/"]);
    node.start(None);
    until(&[&node], Duration::from_secs(60), "it is live", || node.live() == 1);
    // One that comes in over HTTP, with the trace of its request.
    let carol = json!({"type": "connect", "user": "carol", "platform": "linux", "device": "d", "gateway": "g", "epoch": 1,
        "conn": 9, "intent": "login"});
    let posted = ureq::post(format!("{}/v1/events", node.url()))
        .header("traceparent", TRACE)
        .send(carol.to_string());
    assert_eq!(posted.expect("it is taken").status(), 200);
    // Four changes with a state each, two kicks, one malformed record.
    let printed = python::run("headers.py", &space, &["11"]);
    node.stop();
    let all: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let of = |topic: &str| -> Vec<&Value> { all.iter().filter(|one| one["topic"] == topic).collect() };
    let [changes, kicks, current, quarantine] = ["changes", "kicks", "current", "quarantine"].map(of);
    let lengths = [&changes, &kicks, &current, &quarantine].map(Vec::len);
    assert_eq!(lengths, [4, 2, 4, 1], "{printed}");
    for one in &all {
        let headers = &one["headers"];
        assert_eq!(headers["content-type"], "application/vnd.apache.avro", "{one}");
        assert_eq!(headers["ce_specversion"], "1.0", "{one}");
        assert_eq!(headers["ce_id"], headers["id"], "{one}");
        let source = format!("/chat/{}", one["topic"].as_str().expect("a topic"));
        assert_eq!(headers["ce_source"], json!(source), "{one}");
        assert_eq!(headers["ce_traceparent"], headers["traceparent"], "{one}");
    }
    for one in changes.iter().chain(&kicks) {
        assert_eq!(one["headers"]["id"], one["id"], "{one}");
        assert!(one["headers"]["ce_time"].is_string(), "{one}");
    }
    // The state has the id of the change that led to it.
    for (state, change) in current.iter().zip(&changes) {
        assert_eq!(state["headers"]["id"], change["headers"]["id"]);
        assert_eq!(state["headers"]["ce_subject"], change["headers"]["ce_subject"]);
    }
    let traces = |records: &[&Value]| -> Vec<Value> {
        let traces = records.iter().map(|one| one["headers"]["traceparent"].clone());
        traces.collect()
    };
    // Carol's login and Alice's, a custom status without a trace, a forget. What is no trace is not carried over.
    let expected = [json!(TRACE), json!(TRACE), Value::Null, json!(TRACE)];
    assert_eq!(traces(&changes), expected);
    assert_eq!(traces(&current), expected);
    assert_eq!(traces(&kicks), [Value::Null, json!(TRACE)]);
    assert_eq!(traces(&quarantine), [json!(TRACE)]);
    assert_eq!(quarantine[0]["headers"]["ce_type"], "rollcall.Quarantined");
}
