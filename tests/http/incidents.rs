//! Mass departures over HTTP and in the metrics: in this process with a clock of the test's, and by the real binary, which is
//! killed meanwhile.

use crate::house::{House, wait_until};
use crate::process::Server;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// Devices of two gateways and two clients, every second on each.
const DEVICES: u64 = 300;

fn on(user: u64, more: Value) -> Value {
    let platform = ["android", "iphone"][usize::from(user.is_multiple_of(5))];
    let mut event = json!({
        "user": format!("u{user}"), "platform": platform, "device": "d",
        "gateway": format!("g{}", user % 2), "epoch": 1, "conn": user + 1,
    });
    event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    event
}

fn connects() -> Vec<Value> {
    let connect = |user: u64| {
        let client = ["app/5.1", "app/5.2"][usize::from(user.is_multiple_of(3))];
        on(user, json!({"type": "connect", "intent": "login", "client": client}))
    };
    (0..DEVICES).map(connect).collect()
}

fn lease(gateway: &str, ttl_ms: u64) -> Value {
    json!({"type": "lease", "gateway": gateway, "epoch": 1, "ttl_ms": ttl_ms})
}

/// What is exactly known of the incident in which the second gateway dies.
#[track_caller]
fn is_the_death_of_g1(incident: &Value, online_before: u64) {
    let lost = DEVICES / 2;
    let number = |field: &str| incident[field].as_u64().unwrap();
    assert_eq!((number("departures"), number("devices")), (lost, lost), "{incident}");
    assert_eq!(number("online_before"), online_before, "{incident}");
    assert_eq!(incident["causes"], json!({"gateway_lost": lost}));
    assert_eq!(incident["gateways"], json!({"g1": lost}));
    let mut platforms: BTreeMap<&str, u64> = BTreeMap::new();
    let mut clients: BTreeMap<&str, u64> = BTreeMap::new();
    for user in (0..DEVICES).filter(|user| user % 2 == 1) {
        *platforms
            .entry(["android", "iphone"][usize::from(user % 5 == 0)])
            .or_default() += 1;
        *clients
            .entry(["app/5.1", "app/5.2"][usize::from(user % 3 == 0)])
            .or_default() += 1;
    }
    assert_eq!(incident["platforms"], json!(platforms));
    assert_eq!(incident["clients"], json!(clients));
    assert_eq!(incident["id"], format!("1-{}", number("from") / 1_000));
}

/// The metrics are of the process, in which other tests run too.
fn metric(text: &str, name: &str) -> u64 {
    let value = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
    value.unwrap_or_else(|| panic!("no {name} in {text}"))
}

#[test]
fn a_gateway_that_dies_is_one_incident_with_exact_counts() {
    let house = House::new(4);
    house.find_incidents();
    let none = house.get("/v1/incidents").ok();
    assert_eq!(none["incidents"], json!([]));
    for limit in ["0", "101", "many"] {
        house
            .get(&format!("/v1/incidents?limit={limit}"))
            .error(400, "bad_parameter");
    }
    house.publish(&[lease("g0", 600_000), lease("g1", 60_000)]);
    house.publish(&connects());
    house.wait_until_folded();
    // The lease of g1 ends.
    house.clock.advance_ms(70_000);
    house.publish(&[lease("g0", 600_000)]);
    house.wait_until_folded();
    house.clock.advance_ms(16_000);
    let mut found = Value::Null;
    wait_until("the incident is found", || {
        // The answer is read again after a second.
        house.clock.advance_ms(5);
        found = house.get("/v1/incidents").ok();
        found["incidents"] != json!([])
    });
    let incidents = found["incidents"].as_array().unwrap();
    assert_eq!(incidents.len(), 1, "{found}");
    is_the_death_of_g1(&incidents[0], DEVICES);
    assert!(found["looked_up_to"].as_u64() > incidents[0]["to"].as_u64(), "{found}");
    let metrics = house.get("/metrics");
    assert_eq!(metrics.status, 200);
    assert!(metric(&metrics.body, "rollcall_incidents_total ") >= 1);
    assert!(metric(&metrics.body, "rollcall_incident_devices_total ") >= DEVICES / 2);
}

/// Lines that a command prints of a data directory.
fn printed(data: &Path, arguments: &[&str]) -> Vec<Value> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
    let output = command
        .args(arguments)
        .arg("--data")
        .arg(data)
        .output()
        .expect("it runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout).expect("text");
    text.lines()
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

#[test]
fn a_server_that_is_killed_during_an_incident_writes_it_once_and_the_audit_finds_the_same() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path();
    let server = Server::start(data, &["--partitions", "3"]);
    server.publish(&[lease("g0", 600_000), lease("g1", 2_000)]);
    server.publish(&connects());
    wait_until("the incident is under way", || {
        metric(&server.get("/metrics").body, "rollcall_incident_open ") == 1
    });
    assert_eq!(server.get("/v1/incidents").ok()["incidents"], json!([]));
    drop(server);
    let server = Server::start(data, &[]);
    let mut found = Value::Null;
    wait_until("the incident is found", || {
        found = server.get("/v1/incidents").ok()["incidents"].take();
        found != json!([])
    });
    // They came within the window.
    is_the_death_of_g1(&found[0], 0);
    assert_eq!(metric(&server.get("/metrics").body, "rollcall_incidents_total "), 1);
    drop(server);
    let written = printed(data, &["log", "incidents"]);
    assert_eq!(json!(written), found);
    let audited = printed(data, &["audit", "incidents", "--clients", "--json"]);
    assert_eq!(audited, written);
    // Once more: it reads the same changes again, and writes nothing.
    let server = Server::start(data, &[]);
    let begun = found[0]["to"].as_u64();
    wait_until("it has looked past the incident", || {
        server.get("/v1/incidents").ok()["looked_up_to"]
            .as_u64()
            .map(|ms| ms - 10_000)
            > begun
    });
    assert_eq!(server.get("/v1/incidents").ok()["incidents"], found);
    assert_eq!(metric(&server.get("/metrics").body, "rollcall_incidents_total "), 0);
}
