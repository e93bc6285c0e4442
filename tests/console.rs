//! The console in a real browser: what it shows of a real server, and the devices that it tries on its gateway.
//!
//! `tests/clients/console.js` drives the browser; its screenshots go to the directory that `CONSOLE_SCREENSHOTS` names,
//! if it names one.

mod server;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use server::{ANYWHERE, Server, wait_until};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{SystemTime, UNIX_EPOCH};

const SECRET: &str = "a secret of at least thirty-two bytes";
/// The browser is started with a profile and caches, which are not to be seen where the tests run.
const ITS_DIRECTORIES: [&str; 4] = ["HOME", "TMPDIR", "XDG_CONFIG_HOME", "XDG_CACHE_HOME"];

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Where the driver of the browser is; installs it where this machine does not have it yet.
fn modules() -> String {
    let output = Command::new(root("scripts/clients"))
        .arg("node")
        .output()
        .expect("bash runs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

/// A server, with a gateway if there are arguments for it.
fn house(more: &[&str]) -> (tempfile::TempDir, Server) {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(&directory.path().join("data"), ANYWHERE, more, &[]);
    (directory, server)
}

fn wait_for_the_gateway(server: &Server) {
    wait_until("the gateway is there", || {
        let (status, body) = server.get("/v1/edge", "");
        assert_eq!(status, 200, "{body}");
        let body: Value = serde_json::from_str(&body).expect("JSON");
        !body["edge"].is_null()
    });
}

/// Plays a scene in a browser, which leaves everything that it writes in this directory.
fn play(server: &Server, directory: &Path, scene: &str, token: &str) -> Output {
    let asked = std::env::var_os("CONSOLE_SCREENSHOTS").map(PathBuf::from);
    let screenshots = asked.unwrap_or_else(|| directory.join("screenshots"));
    std::fs::create_dir_all(&screenshots).expect("made");
    let mut node = Command::new("node");
    node.arg(root("tests/clients/console.js"))
        .arg(modules())
        .arg(format!("http://{}/", server.address))
        .arg(&screenshots)
        .args([scene, token])
        .stdin(Stdio::null());
    for name in ITS_DIRECTORIES {
        node.env(name, directory);
    }
    node.output().expect("node runs it")
}

#[track_caller]
fn went_well(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn people_watch_and_try_devices_in_it() {
    let (directory, server) = house(&["--demo", "50", "--gateway", ANYWHERE, "--gateway-insecure"]);
    wait_for_the_gateway(&server);
    went_well(&play(&server, directory.path(), "everything", ""));
}

#[test]
fn without_a_gateway_it_says_how_to_start_one() {
    let (directory, server) = house(&[]);
    // Gateways of others, one of which dies with all its devices.
    let lease = |ttl_ms: u64| json!({"type": "lease", "gateway": "edge-9", "epoch": 1, "ttl_ms": ttl_ms});
    let device = |conn: u64| {
        json!({"type": "connect", "user": format!("reader-{conn}"), "platform": "web", "device": "tab", "gateway": "edge-9",
            "epoch": 1, "conn": conn, "intent": "login", "client": "app/5.1"})
    };
    let devices: Vec<Value> = std::iter::once(lease(600_000)).chain((1..=200).map(device)).collect();
    server.publish("", &devices);
    server.publish("", &[lease(1)]);
    let connect = json!({"type": "connect", "user": "alice", "platform": "web", "device": "tab", "gateway": "g1",
        "epoch": 1, "conn": 1, "intent": "login"});
    let lease = json!({"type": "lease", "gateway": "gone", "epoch": 1, "ttl_ms": 1});
    server.publish("", &[connect, lease]);
    went_well(&play(&server, directory.path(), "no gateway", ""));
}

#[test]
fn where_the_gateway_asks_for_a_token_so_does_the_page() {
    let keys = tempfile::tempdir().expect("a directory");
    let key = keys.path().join("secret");
    std::fs::write(&key, SECRET).expect("written");
    let (directory, server) = house(&["--gateway", ANYWHERE, "--jwt-key", key.to_str().expect("UTF-8")]);
    wait_for_the_gateway(&server);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    let claims = json!({"sub": "tess", "exp": now.as_secs() + 3_600});
    let secret = EncodingKey::from_secret(SECRET.as_bytes());
    let token = encode(&Header::new(Algorithm::HS256), &claims, &secret).expect("signed");
    went_well(&play(&server, directory.path(), "token", &token));
}

#[test]
fn whatever_people_choose_as_names_can_be_asked_for_and_is_shown_as_it_is() {
    let (directory, server) = house(&[]);
    let (wide, gateway) = ("W".repeat(128), "G".repeat(64));
    let users = [
        ".",
        "..",
        "query",
        "a/b?c#d%20e&f=+",
        " lead",
        "trail ",
        "x  y",
        "x y",
        "\u{a0}",
        "\u{200b}",
        "\u{202e}evil",
        "new\nline\ttab",
        "مرحبا",
        "👩\u{200d}👩\u{200d}👧❤\u{fe0f}",
        "a\u{200d}b",
        &wide,
    ];
    let device = |(number, user): (usize, &&str)| {
        let long = user.len() == 128;
        let name = |short: &str| if long { wide.clone() } else { short.to_owned() };
        let gateway = if long { gateway.as_str() } else { "g1" };
        json!({"type": "connect", "user": user, "platform": "web", "device": name("מכשיר \u{202e}"), "gateway": gateway, "epoch": 1,
            "conn": number, "intent": "login", "client": name("app\u{202e}/1")})
    };
    let lease = |gateway: &str| json!({"type": "lease", "gateway": gateway, "epoch": 1, "ttl_ms": 600_000});
    let custom = |user: &str, text: &str| json!({"type": "custom_status", "user": user, "text": text});
    let events: Vec<Value> = [lease("g1"), lease(&gateway)]
        .into_iter()
        .chain(users.iter().enumerate().map(device))
        .chain([
            custom("\u{202e}evil", "\u{202e}backwards"),
            custom(&wide, &"M".repeat(100)),
        ])
        .collect();
    server.publish("", &events);
    // The list of kicks has long names too.
    let again = json!({"type": "connect", "user": wide, "platform": "web", "device": wide, "gateway": gateway, "epoch": 1, "conn": 900,
        "intent": "login", "client": wide});
    server.publish("", &[again]);
    went_well(&play(&server, directory.path(), "names", ""));
}

#[test]
fn a_user_with_very_many_changes_has_a_small_panel() {
    let (directory, server) = house(&[]);
    let lease = json!({"type": "lease", "gateway": "g1", "epoch": 1, "ttl_ms": 600_000});
    server.publish("", &[lease]);
    let events: Vec<Value> = (1..=500)
        .flat_map(|conn: u64| {
            let connect = json!({"type": "connect", "user": "flapper", "platform": "web", "device": "tab", "gateway": "g1", "epoch": 1,
                "conn": conn, "intent": "login"});
            let logout = json!({"type": "logout", "user": "flapper", "platform": "web", "device": "tab", "gateway": "g1", "epoch": 1,
                "conn": conn});
            [connect, logout]
        })
        .collect();
    for some in events.chunks(1_000) {
        server.publish("", some);
    }
    went_well(&play(&server, directory.path(), "long history", ""));
}

#[test]
fn a_token_that_may_not_read_is_refused_with_the_reason() {
    let tokens = tempfile::tempdir().expect("a directory");
    let file = tokens.path().join("tokens");
    let (read, publish, metrics) = (
        "read-read-read-read-1234",
        "publish-publish-publish-1",
        "metrics-metrics-metrics-1",
    );
    let lines = format!("{read} read\n{publish} publish\n{metrics} metrics\n");
    std::fs::write(&file, lines).expect("written");
    let (directory, server) = house(&["--token-file", file.to_str().expect("UTF-8")]);
    let alice = json!({"type": "connect", "user": "alice", "platform": "web", "device": "tab", "gateway": "g1", "epoch": 1, "conn": 1,
        "intent": "login"});
    server.publish(publish, &[alice]);
    let given = json!({"read": read, "publish": publish, "metrics": metrics});
    went_well(&play(&server, directory.path(), "tokens", &given.to_string()));
}

#[test]
fn without_a_browser_the_test_says_what_to_install() {
    let node = Command::new("node").args(["-p", "process.execPath"]).output();
    let node = String::from_utf8(node.expect("node is installed").stdout).expect("UTF-8");
    let nowhere = tempfile::tempdir().expect("a directory");
    let output = Command::new(node.trim())
        .arg(root("tests/clients/console.js"))
        .env("PATH", nowhere.path())
        .output()
        .expect("node runs it");
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("apt-get install chromium"), "{said}");
}
