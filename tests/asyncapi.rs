//! Checks docs/asyncapi.yaml with AsyncAPI's official parser: it is well formed, and describes the existing topics and schemas.

use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// What the parser makes of a document.
fn parse(document: &Path) -> Value {
    let modules = Command::new(root("scripts/clients"))
        .arg("node")
        .output()
        .expect("bash runs it");
    assert!(modules.status.success(), "{}", String::from_utf8_lossy(&modules.stderr));
    let modules = String::from_utf8(modules.stdout).expect("UTF-8");
    let output = Command::new("node")
        .arg(root("tests/clients/asyncapi.js"))
        .arg(modules.trim())
        .arg(document)
        .output()
        .expect("node runs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("JSON")
}

/// Errors are 0 and warnings 1; what is beyond is advice.
fn complaints(parsed: &Value) -> Vec<&Value> {
    let all = parsed["diagnostics"].as_array().expect("a list");
    all.iter().filter(|one| one["severity"].as_u64() <= Some(1)).collect()
}

#[test]
fn the_document_passes_the_official_parser_and_its_payloads_are_our_schemas() {
    let parsed = parse(&root("docs/asyncapi.yaml"));
    assert_eq!(complaints(&parsed), Vec::<&Value>::new());
    let channels = parsed["channels"].as_object().expect("channels");
    let expected = [
        (
            "presence.events",
            "rollcall.Event",
            json!(["string", "null"]),
            "event.avsc",
        ),
        ("presence.changes", "rollcall.Change", json!("string"), "change.avsc"),
        (
            "presence.current",
            "rollcall.UserState",
            json!("string"),
            "user_state.avsc",
        ),
        ("presence.kicks", "rollcall.Kick", json!("string"), "kick.avsc"),
        (
            "presence.quarantine",
            "rollcall.Quarantined",
            Value::Null,
            "quarantined.avsc",
        ),
        (
            "presence.incidents",
            "rollcall.Incident",
            json!("string"),
            "incident.avsc",
        ),
    ];
    assert_eq!(channels.len(), expected.len());
    for (topic, name, key, file) in expected {
        let channel = &channels[topic];
        assert_eq!(
            (&channel["message"], &channel["others"]),
            (&json!(name), &json!(0)),
            "{topic}"
        );
        assert_eq!(channel.get("key").unwrap_or(&Value::Null), &key, "{topic}");
        assert_eq!(
            channel["format"], "application/vnd.apache.avro;version=1.9.0",
            "{topic}"
        );
        let schema = std::fs::read_to_string(root("schemas").join(file)).expect("the schema is there");
        let schema: Value = serde_json::from_str(&schema).expect("JSON");
        assert_eq!(channel["payload"], schema, "{topic}");
    }
    // No schema is left out.
    let files = std::fs::read_dir(root("schemas")).expect("a directory");
    let files = files.filter(|file| {
        let path = file.as_ref().expect("an entry").path();
        path.extension().is_some_and(|extension| extension == "avsc")
    });
    assert_eq!(files.count(), channels.len());
}

#[test]
fn a_document_with_a_mistake_does_not_pass() {
    let directory = tempfile::tempdir().expect("a directory");
    for folder in ["docs", "schemas"] {
        std::fs::create_dir(directory.path().join(folder)).expect("made");
    }
    for file in std::fs::read_dir(root("schemas")).expect("a directory") {
        let path = file.expect("an entry").path();
        if path.is_dir() {
            // Earlier versions, which no document names.
            continue;
        }
        let copy = directory.path().join("schemas").join(path.file_name().expect("a name"));
        std::fs::copy(&path, copy).expect("copied");
    }
    let text = std::fs::read_to_string(root("docs/asyncapi.yaml")).expect("it is there");
    let document = directory.path().join("docs/asyncapi.yaml");
    for (right, wrong) in [
        ("action: receive", "action: publish"),
        ("'#/channels/kicks'", "'#/channels/nowhere'"),
        ("../schemas/kick.avsc", "../schemas/nothing.avsc"),
        ("bindingVersion: 0.5.0", "bindingVersion: 0.5.0\n        colour: red"),
    ] {
        assert!(text.contains(right), "{right}");
        std::fs::write(&document, text.replacen(right, wrong, 1)).expect("written");
        assert_ne!(complaints(&parse(&document)), Vec::<&Value>::new(), "{wrong}");
    }
}
