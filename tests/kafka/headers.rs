//! Headers of output records, as a third-party client reads them.

use crate::engine::Node;
use crate::python;
use crate::space::Space;
use serde_json::{Value, json};

const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

pub fn every_output_has_its_id_and_the_trace_of_its_event(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "headers", 1);
    let mut node = Node::new(directory.path(), &space, 0, &["--cloudevents-source", "/chat/"]);
    node.start(None);
    // Three changes with a state each, two kicks, one malformed record.
    let printed = python::run("headers.py", &space, &["9"]);
    node.stop();
    let all: Vec<Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect();
    let of = |topic: &str| -> Vec<&Value> { all.iter().filter(|one| one["topic"] == topic).collect() };
    let [changes, kicks, current, quarantine] = ["changes", "kicks", "current", "quarantine"].map(of);
    let lengths = [&changes, &kicks, &current, &quarantine].map(Vec::len);
    assert_eq!(lengths, [3, 2, 3, 1], "{printed}");
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
        assert_eq!(state["headers"]["ce_subject"], "alice");
    }
    let traces = |records: &[&Value]| -> Vec<Value> {
        let traces = records.iter().map(|one| one["headers"]["traceparent"].clone());
        traces.collect()
    };
    // A login, a custom status without a trace, a forget. What is no trace is not carried over.
    let expected = [json!(TRACE), Value::Null, json!(TRACE)];
    assert_eq!(traces(&changes), expected);
    assert_eq!(traces(&current), expected);
    assert_eq!(traces(&kicks), [Value::Null, json!(TRACE)]);
    assert_eq!(traces(&quarantine), [json!(TRACE)]);
    assert_eq!(quarantine[0]["headers"]["ce_type"], "rollcall.Quarantined");
}
