//! The Tencent-compatible routes of the real binary, called by third-party libraries: PyPI's timsdk and
//! tls-sig-api-v2, and npm's tls-sig-api-v2, unchanged. Only the address of their host name is ours (`tim/entrance.rs`).

#[path = "tim/entrance.rs"]
mod entrance;
mod server;

use entrance::Entrance;
use serde_json::{Value, json};
use server::{ANYWHERE, PATIENCE, Server, rollcall, wait_until};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

/// The host that timsdk always connects to.
const HOST: &str = "console.tim.qq.com";
const APP: &str = "1400000000";
const KEY: &str = "5bd2850fff3ecb11d7c805251c51ee463a25727bddc2385f3fa8bfee1bb93b5e";
const STATUS: &str = "/v4/openim/query_online_status";
const STATE: &str = "/v4/openim/querystate";
const KICK: &str = "/v4/im_open_login_svc/kick";

static PYTHON: LazyLock<String> = LazyLock::new(|| clients("python"));
static NODE: LazyLock<String> = LazyLock::new(|| clients("node"));

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Where the libraries are; installs them where this machine does not have them yet.
fn clients(kind: &str) -> String {
    let output = Command::new(root("scripts/clients"))
        .arg(kind)
        .output()
        .expect("bash runs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("started");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

fn sign_in_python(more: &[&str]) -> String {
    run(Command::new(&*PYTHON).arg(root("tests/clients/sign.py")).args(more))
}

fn sign_in_node(more: &[&str]) -> String {
    run(Command::new("node")
        .arg(root("tests/clients/sign.js"))
        .arg(&*NODE)
        .args(more))
}

/// What timsdk makes of calls, signed for an app with a key by an identifier.
fn timsdk(entrance: &Entrance, app: &str, key: &str, identifier: &str, calls: Value) -> Value {
    let output = run(Command::new(&*PYTHON)
        .arg(root("tests/clients/tim.py"))
        .args([app, key, identifier, &calls.to_string()])
        .env("HTTPS_PROXY", &entrance.proxy)
        .env("https_proxy", &entrance.proxy)
        .env("REQUESTS_CA_BUNDLE", &entrance.authority)
        .env_remove("NO_PROXY")
        .env_remove("no_proxy"));
    serde_json::from_str(&output).expect("JSON")
}

fn connect(user: &str, platform: &str, conn: u64) -> Value {
    json!({"type": "connect", "user": user, "platform": platform, "device": format!("{user}-{platform}"),
        "gateway": "g1", "epoch": 1, "conn": conn, "intent": "login"})
}

/// Alice is on her phone and in a browser, bob's phone may be pushed to, carol's computer is off, dave uses what
/// Tencent does not have.
fn people(server: &Server, token: &str) {
    let closed = |user: &str, platform: &str, conn: u64| {
        let mut event = connect(user, platform, conn);
        event["type"] = json!("disconnect");
        event["reason"] = json!("closed");
        event
    };
    let policy = json!({"type": "policy", "policy": {"login": "multi",
        "platforms": {"tv": {"timeout_ms": 400_000, "push": false}}}});
    server.publish(
        token,
        &[
            policy,
            connect("alice", "iphone", 1),
            connect("alice", "web", 2),
            connect("alice", "mini_program", 3),
            connect("alice", "windows", 4),
            connect("bob", "android", 5),
            closed("bob", "android", 5),
            connect("carol", "mac", 6),
            connect("carol", "linux", 7),
            closed("carol", "linux", 7),
            json!({"type": "kick", "user": "carol", "platform": "mac"}),
            connect("dave", "tv", 8),
        ],
    );
    wait_until("everything is folded", || {
        let (_, stats) = server.get("/v1/stats", token);
        let stats: Value = serde_json::from_str(&stats).expect("JSON");
        let partitions = stats["partitions"].as_array().expect("partitions");
        partitions.iter().all(|partition| partition["lag"] == 0)
    });
}

fn house(more: &[&str]) -> (tempfile::TempDir, Server) {
    let directory = tempfile::tempdir().expect("a directory");
    let mut arguments = vec!["--tim-app", APP];
    arguments.extend(more);
    let server = Server::start(
        &directory.path().join("data"),
        ANYWHERE,
        &arguments,
        &[("ROLLCALL_TIM_KEY", KEY)],
    );
    (directory, server)
}

/// Calls a command with a signature; the answer, which always comes with status 200.
#[track_caller]
fn call(server: &Server, command: &str, usersig: &str, body: impl Into<Vec<u8>>) -> Value {
    ask(server, &format!("{command}?{}", signed(usersig)), body)
}

fn signed(usersig: &str) -> String {
    format!("sdkappid={APP}&identifier=administrator&usersig={usersig}&random=99999999&contenttype=json")
}

#[track_caller]
fn ask(server: &Server, path: &str, body: impl Into<Vec<u8>>) -> Value {
    let (status, body) = server.post(path, "", body);
    assert_eq!(status, 200, "{body}");
    let answer: Value = serde_json::from_str(&body).expect("JSON");
    let fine = answer["ErrorCode"] == 0;
    assert_eq!(answer["ActionStatus"], if fine { "OK" } else { "FAIL" }, "{answer}");
    assert_eq!(answer["ErrorInfo"] == "", fine, "{answer}");
    answer
}

#[test]
fn timsdk_finds_who_is_online_and_kicks() {
    let (directory, server) = house(&[]);
    let entrance = Entrance::open(server.address, directory.path());
    people(&server, "");
    let detailed = json!({"To_Account": ["alice", "bob", "carol", "dave"], "IsNeedDetail": 1});
    let calls = json!([
        ["query_state", "alice", "bob", "carol", "nobody"],
        ["post", "openim/query_online_status", detailed],
        ["kick", "alice"],
        ["kick", "nobody"],
    ]);
    let answers = timsdk(&entrance, APP, KEY, "administrator", calls);
    assert_eq!(
        answers[0],
        json!({"ActionStatus": "OK", "ErrorCode": 0, "ErrorInfo": "", "QueryResult": [
            {"To_Account": "alice", "State": "Online"},
            {"To_Account": "bob", "State": "PushOnline"},
            {"To_Account": "carol", "State": "Offline"},
        ], "ErrorList": [{"To_Account": "nobody", "ErrorCode": 70107}]})
    );
    assert_eq!(
        answers[1],
        json!({"ActionStatus": "OK", "ErrorCode": 0, "ErrorInfo": "", "QueryResult": [
            {"To_Account": "alice", "Status": "Online", "Detail": [
                {"Platform": "iPhone", "Status": "Online"},
                {"Platform": "Web", "Status": "Online"},
                {"Platform": "PC", "Status": "Online"},
            ]},
            {"To_Account": "bob", "Status": "PushOnline", "Detail": [{"Platform": "Android", "Status": "PushOnline"}]},
            {"To_Account": "carol", "Status": "Offline"},
            {"To_Account": "dave", "Status": "Online", "Detail": [{"Platform": "tv", "Status": "Online"}]},
        ]})
    );
    assert_eq!(
        answers[2],
        json!({"ActionStatus": "OK", "ErrorCode": 0, "ErrorInfo": ""})
    );
    assert_eq!(answers[3]["ErrorCode"], 70107);
    // The kick was durable before its answer, and is folded soon.
    wait_until("alice is offline", || {
        let answers = timsdk(&entrance, APP, KEY, "administrator", json!([["query_state", "alice"]]));
        answers[0]["QueryResult"][0]["State"] == "Offline"
    });
}

#[test]
fn timsdk_is_refused_with_another_key_app_or_identifier() {
    let (directory, server) = house(&["--tim-admins", "administrator,root"]);
    let entrance = Entrance::open(server.address, directory.path());
    people(&server, "");
    let code = |app: &str, key: &str, identifier: &str| {
        let calls = json!([["query_state", "alice"], ["kick", "alice"]]);
        let answers = timsdk(&entrance, app, key, identifier, calls);
        let code = |answer: &Value| answer["ErrorCode"].as_u64().expect("a code");
        (code(&answers[0]), code(&answers[1]))
    };
    assert_eq!(code(APP, "another key", "administrator"), (70_003, 70_003));
    assert_eq!(code("1400000001", KEY, "administrator"), (70_014, 70_014));
    assert_eq!(code(APP, KEY, "alice"), (90_009, 70_403));
    assert_eq!(
        call(&server, STATE, &admin(), accounts(&["alice"]))["QueryResult"][0]["State"],
        "Online"
    );
    assert_eq!(code(APP, KEY, "root"), (0, 0));
}

fn admin() -> String {
    sign_in_python(&[APP, KEY, "administrator", "3600"])
}

fn accounts(users: &[&str]) -> String {
    json!({"To_Account": users}).to_string()
}

#[test]
fn what_either_library_signs_is_taken_until_it_expires() {
    let (_directory, server) = house(&["--tim-unknown", "offline"]);
    let code = |usersig: &str| call(&server, STATUS, usersig, accounts(&["alice"]))["ErrorCode"].clone();
    for expire in ["3600", "15552000"] {
        let signer = [APP, KEY, "administrator", expire];
        assert_eq!(code(&sign_in_python(&signer)), 0);
        assert_eq!(code(&sign_in_node(&signer)), 0);
    }
    // With a userbuf, which is signed too.
    assert_eq!(code(&sign_in_python(&[APP, KEY, "administrator", "60", "abc"])), 0);
    assert_eq!(code(&sign_in_node(&[APP, KEY, "administrator", "60", "4711"])), 0);
    for expired in ["0", "-60"] {
        let signer = [APP, KEY, "administrator", expired];
        assert_eq!(code(&sign_in_python(&signer)), 70_001);
        assert_eq!(code(&sign_in_node(&signer)), 70_001);
    }
    for (expected, signer) in [
        (70_003, [APP, "another key", "administrator", "60"]),
        (70_014, ["1400000001", KEY, "administrator", "60"]),
        (70_013, [APP, KEY, "alice", "60"]),
    ] {
        assert_eq!(code(&sign_in_python(&signer)), expected);
        assert_eq!(code(&sign_in_node(&signer)), expected);
    }
    let good = admin();
    assert_eq!(code(&good[..good.len() / 2]), 70_003);
    assert_eq!(code("x"), 70_003);
    assert_eq!(code(""), 70_002);
}

#[test]
fn every_other_way_to_be_wrong_has_its_code() {
    let (_directory, server) = house(&[]);
    people(&server, "");
    let usersig = admin();
    let code = |command: &str, body: &str| call(&server, command, &usersig, body)["ErrorCode"].clone();
    for command in [STATUS, STATE] {
        for (expected, body) in [
            (90_001, ""),
            (90_001, "{"),
            (90_001, "[]"),
            (90_001, "{}"),
            (90_001, r#"{"To_Account":[]}"#),
            (90_001, r#"{"To_Account":null}"#),
            (90_001, r#"{"To_Account":["alice"],"IsNeedDetail":"yes"}"#),
            (90_001, r#"{"To_Account":["alice"],"IsNeedDetail":2}"#),
            (90_001, r#"{"To_Account":["alice"],"To_Account":["bob"]}"#),
            (90_003, r#"{"To_Account":"alice"}"#),
            (90_003, r#"{"To_Account":["alice",7]}"#),
            (90_003, r#"{"To_Account":[null]}"#),
        ] {
            assert_eq!(code(command, body), expected, "{command} {body}");
        }
        let many: Vec<&str> = (0..501).map(|_| "alice").collect();
        assert_eq!(code(command, &accounts(&many)), 90_011);
        let answer = call(&server, command, &usersig, accounts(&many[..500]));
        assert_eq!(answer["QueryResult"].as_array().map(Vec::len), Some(500));
        // Whatever no user can be called.
        let (long, short) = ("x".repeat(200), "");
        let answer = call(&server, command, &usersig, accounts(&[&long, short, "alice"]));
        assert_eq!(answer["ErrorList"].as_array().map(Vec::len), Some(2));
        assert_eq!(answer["QueryResult"].as_array().map(Vec::len), Some(1));
    }
    for (expected, body) in [
        (70_402, ""),
        (70_402, "[]"),
        (70_402, "{}"),
        (70_402, r#"{"UserID":7}"#),
        (70_402, r#"{"UserID":""}"#),
        (70_107, r#"{"UserID":"nobody"}"#),
        (70_107, &json!({"UserID": "x".repeat(200)}).to_string()),
        (0, r#"{"Identifier":"bob"}"#),
        (0, r#"{"UserID":"bob"}"#),
    ] {
        assert_eq!(code(KICK, body), expected, "{body}");
    }
    assert_eq!(
        call(&server, STATE, &usersig, vec![b' '; (8 << 20) + 1])["ErrorCode"],
        93_000
    );

    let body = accounts(&["alice"]);
    for (expected, query) in [
        (60_012, String::new()),
        (60_012, format!("identifier=administrator&usersig={usersig}")),
        (60_006, format!("sdkappid=x&identifier=administrator&usersig={usersig}")),
        (70_014, format!("sdkappid=1&identifier=administrator&usersig={usersig}")),
        (70_013, format!("sdkappid={APP}&usersig={usersig}")),
        (70_002, format!("sdkappid={APP}&identifier=administrator")),
    ] {
        for command in [STATUS, STATE, KICK] {
            let answer = ask(&server, &format!("{command}?{query}"), body.clone());
            assert_eq!(answer["ErrorCode"], expected, "{command}?{query}");
        }
    }
    for path in ["/v4/openim/sendmsg", "/v4/openim", "/v4/x"] {
        assert_eq!(ask(&server, path, "{}")["ErrorCode"], 60_009, "{path}");
    }
    let (status, answer) = server.get(&format!("{STATE}?{}", signed(&usersig)), "");
    assert_eq!(status, 200);
    assert!(answer.contains(r#""ErrorCode":60009"#), "{answer}");
}

#[test]
fn who_was_never_seen_is_offline_if_that_is_wanted() {
    let (_directory, server) = house(&["--tim-unknown", "offline"]);
    let usersig = admin();
    let detailed = json!({"To_Account": ["nobody"], "IsNeedDetail": 1}).to_string();
    let answer = call(&server, STATUS, &usersig, detailed);
    assert_eq!(
        answer["QueryResult"],
        json!([{"To_Account": "nobody", "Status": "Offline"}])
    );
    assert_eq!(answer.get("ErrorList"), None);
    assert_eq!(call(&server, KICK, &usersig, r#"{"UserID":"nobody"}"#)["ErrorCode"], 0);
}

#[test]
fn it_is_the_signature_that_counts_and_neither_a_token_nor_the_host() {
    const TOKEN: &str = "operator-0123456789";
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: String| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let tokens = file("tokens", format!("{TOKEN} admin\n"));
    let key = file("key", format!("{KEY}\n"));
    let more = ["--token-file", &tokens, "--tim-app", APP, "--tim-key-file", &key];
    let server = Server::start(&directory.path().join("data"), ANYWHERE, &more, &[]);
    people(&server, TOKEN);
    let usersig = admin();
    assert_eq!(call(&server, STATE, &usersig, accounts(&["alice"]))["ErrorCode"], 0);
    let (status, _) = server.get("/v1/stats", "");
    assert_eq!(status, 401);
    drop(server);

    // Without tokens a request to another host's name, or from another's page, is refused, but not here.
    let (_directory, server) = house(&["--tim-unknown", "offline"]);
    let agent = ureq::agent();
    for (path, expected) in [
        (format!("{STATE}?{}", signed(&usersig)), 200),
        ("/v1/users/query".to_owned(), 403),
    ] {
        let request = agent.post(format!("http://{}{path}", server.address));
        let request = request
            .config()
            .http_status_as_error(false)
            .timeout_global(Some(PATIENCE))
            .build();
        let request = request
            .header("Host", HOST)
            .header("Origin", "https://elsewhere.example");
        let answer = request.send(accounts(&["alice"])).expect("it answers");
        assert_eq!(answer.status().as_u16(), expected, "{path}");
    }
}

#[test]
fn without_an_app_there_are_no_such_routes() {
    let directory = tempfile::tempdir().expect("a directory");
    let server = Server::start(directory.path(), ANYWHERE, &[], &[]);
    for command in [STATUS, STATE, KICK] {
        assert_eq!(server.post(command, "", "{}").0, 404);
    }
}

#[test]
fn settings_that_make_no_sense_are_refused_and_the_key_is_never_shown() {
    let directory = tempfile::tempdir().expect("a directory");
    let data = directory.path().join("data");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    let key = file("key", KEY);
    let empty = file("empty", "\n");
    let toml = file(
        "settings.toml",
        &format!("tim_key = \"{KEY}\"\ntim_key_file = \"{key}\"\ntim_app = 7\n"),
    );
    for (arguments, says) in [
        (vec!["--tim-app", APP], "--tim-app requires the app's secret key"),
        (vec!["--tim-key", KEY], "requires --tim-app"),
        (vec!["--tim-key-file", &key], "requires --tim-app"),
        (vec!["--tim-admins", "root"], "requires --tim-app"),
        (vec!["--tim-unknown", "error"], "requires --tim-app"),
        (
            vec!["--tim-app", "0", "--tim-key", KEY],
            "--tim-app must be 1 to 4294967295, not 0",
        ),
        (
            vec!["--tim-app", "4294967296", "--tim-key", KEY],
            "--tim-app must be 1 to 4294967295",
        ),
        (
            vec!["--tim-app", APP, "--tim-key", ""],
            "--tim-key must have at least 16 bytes, not 0",
        ),
        (
            vec!["--tim-app", APP, "--tim-key-file", &empty],
            "is empty, where the TIM key should be",
        ),
        (
            vec!["--tim-app", APP, "--tim-key-file", "no-such-file"],
            "cannot read the TIM key no-such-file",
        ),
        (
            vec!["--tim-app", APP, "--tim-key", KEY, "--tim-key-file", &key],
            "give one of the two",
        ),
        (vec!["--config", &toml], "give one of the two"),
        (
            vec!["--tim-app", APP, "--tim-key", KEY, "--tim-admins", "a,,b"],
            "no name may be empty",
        ),
    ] {
        let output = rollcall(&["serve", "--data", data.to_str().expect("UTF-8")])
            .args(&arguments)
            .output()
            .expect("started");
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
        assert!(!said.contains(KEY), "{said}");
    }
    assert!(!data.exists(), "nothing was made");
    let help = rollcall(&["serve", "--help"])
        .env("ROLLCALL_TIM_KEY", KEY)
        .output()
        .expect("started");
    let help = String::from_utf8(help.stdout).expect("UTF-8");
    assert!(help.contains("ROLLCALL_TIM_KEY") && !help.contains(KEY), "{help}");
}
