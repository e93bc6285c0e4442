//! The table of routes and the document that is made of it, held against the server, against its documentation, and
//! against tools of others.

use crate::client::{Client, Received, Reply};
use crate::house::{House, connect, on, says, wait_until};
use rollcall::api::openapi::document;
use rollcall::api::routes::{Need, ROUTES, Route, RouteId};
use rollcall::config::{Credential, Scopes, Tim, TimUnknown};
use rollcall::http::GatewayAddress;
use rollcall::log::{Limit, Log as _};
use rollcall::presence::{Offset, Partition};
use rollcall::topics::Topic;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// A token with every scope.
const TOKEN: &str = "everything-everything";

/// An app of Tencent Cloud IM, and its key.
const APP: u64 = 1_400_000_000;
const KEY: &str = "5bd2850fff3ecb11d7c805251c51ee463a25727bddc2385f3fa8bfee1bb93b5e";
const ADMIN: &str = "administrator";

/// A server with every route there is.
fn guarded() -> House {
    let tim = Tim {
        app: APP,
        key: Credential::new(KEY),
        admins: vec![ADMIN.to_owned()],
        unknown: TimUnknown::Error,
    };
    House::with_tim(&[(TOKEN.to_owned(), Scopes::everything())], tim)
}

/// A command of Tencent Cloud IM with its query string, signed as a library does.
fn signed(command: &str) -> String {
    static USERSIG: LazyLock<String> = LazyLock::new(|| {
        let output = Command::new(python())
            .arg(root("tests/clients/sign.py"))
            .args([APP.to_string().as_str(), KEY, ADMIN, "3600"])
            .output()
            .expect("started");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    });
    let usersig = &*USERSIG;
    format!("{command}?sdkappid={APP}&identifier={ADMIN}&usersig={usersig}&random=1&contenttype=json")
}

/// A path of this route that there is.
fn example(route: &Route) -> String {
    route.path.replace("{user}", "alice").replace("{file}", "main.js")
}

#[test]
fn every_route_is_served_and_needs_what_the_table_says() {
    let house = guarded();
    for route in &ROUTES {
        let (method, path) = (route.method.name(), example(route));
        if route.need == Need::UserSig {
            // Its status is always 200, and a token is of no use.
            let code = |method: &str, path: &str| house.token(TOKEN).send(method, path, b"").ok()["ErrorCode"].clone();
            for root in ["", "/"] {
                assert_eq!(code(method, &format!("{root}{path}")), 60_012, "{path} without an app");
            }
            assert_eq!(code("GET", &path), 60_009, "GET {path}");
            continue;
        }
        let open = house.send(method, &path, b"").status;
        match route.need {
            Need::Nothing => assert_eq!(open, 200, "{path}"),
            _ => assert_eq!(open, 401, "{path}"),
        }
        let other = if method == "GET" { "POST" } else { "GET" };
        let is_other = Route::find(other, route.path).is_some();
        // What is not in the table is not served, and not even that is said without a token.
        if !is_other {
            assert_eq!(house.send(other, &path, b"").status, 401, "{other} {path}");
            house
                .token(TOKEN)
                .send(other, &path, b"")
                .error(405, "method_not_allowed");
        }
        let served = house.token(TOKEN).send(method, &path, b"");
        assert_ne!(served.status, 405, "{method} {path}");
        assert!(
            served.status != 404 || !served.body.contains("there is nothing at this path"),
            "{method} {path}: {}",
            served.body
        );
    }
}

#[test]
fn no_parameter_is_ignored_because_it_came_twice_and_none_names_somebody_else_because_it_is_not_utf8() {
    let house = guarded();
    let client = house.token(TOKEN);
    let mut tried = 0;
    for route in ROUTES.iter().filter(|route| route.need != Need::UserSig) {
        let (method, path) = (route.method.name(), example(route));
        // A ticket takes the place of a token: what is no ticket is refused with 401.
        for name in route.query_names().filter(|name| *name != "ticket") {
            let wrong = client.send(method, &format!("{path}?{name}=%ff"), b"");
            wrong.error(400, "bad_parameter");
            if !route.may_repeat(name) {
                let twice = client.send(method, &format!("{path}?{name}=1&{name}=2"), b"");
                let error = twice.error(400, "bad_parameter");
                let message = error["message"].as_str().expect("text");
                assert!(
                    message.contains(&format!("`{name}` is given more than once")),
                    "{path}: {error}"
                );
            }
            tried += 1;
        }
    }
    assert!(tried > 20, "{tried}");
    // What caches are kept away with means nothing.
    client.get("/v1/user?id=alice&_=1&_=2").error(404, "unknown_user");
}

#[test]
fn an_empty_list_is_neither_everybody_nor_nobody_and_an_array_is_no_object() {
    let house = guarded();
    let client = house.token(TOKEN);
    for (path, body, code) in [
        ("/v1/tickets", r#"{"users":[]}"#, "bad_users"),
        ("/v1/changes/query", r#"{"users":[]}"#, "bad_parameter"),
        ("/v1/kicks/query", r#"{"gateways":[]}"#, "bad_parameter"),
        ("/v1/users/query", r#"{"users":[]}"#, "bad_users"),
    ] {
        client.post(path, body).error(400, code);
    }
    let objects = ROUTES
        .iter()
        .filter(|route| route.method.name() == "POST" && route.need != Need::UserSig);
    for route in objects.filter(|route| route.id != RouteId::Events) {
        for body in ["[]", r#"[["alice"]]"#, " \n[null]", "\"users\"", "7"] {
            let error = client.post(route.path, body).error(400, "bad_json");
            let message = error["message"].as_str().expect("text");
            assert!(
                message.contains("the body must be a JSON object"),
                "{}: {error}",
                route.path
            );
        }
    }
    // A byte order mark means nothing, as in events.
    let with_mark = "\u{feff}{\"users\":[\"alice\"]}";
    assert_eq!(
        client.post("/v1/users/query", with_mark).ok()["unknown"],
        json!(["alice"])
    );
}

/// Path and body of a request that does what the route is for.
fn example_request(route: &Route) -> (String, String) {
    let body = match route.id {
        RouteId::Events => {
            let events = [
                connect("alice", 1),
                json!({"type": "kick", "user": "alice"}),
                json!({"type": "forget", "user": "alice"}),
            ];
            json!(events).to_string()
        }
        RouteId::UsersQuery => json!({"users": ["bob"]}).to_string(),
        RouteId::ChangesQuery | RouteId::KicksQuery => json!({"after": "latest"}).to_string(),
        RouteId::Outcomes => json!({"watch": [0]}).to_string(),
        RouteId::TimKick | RouteId::TimQueryOnlineStatus | RouteId::TimQueryState => {
            let body = match route.id {
                RouteId::TimKick => json!({"UserID": "bob"}),
                _ => json!({"To_Account": ["bob"]}),
            };
            return (signed(route.path), body.to_string());
        }
        RouteId::User
        | RouteId::UserById
        | RouteId::UserChanges
        | RouteId::UserChangesById
        | RouteId::UserHistory
        | RouteId::UserHistoryById
        | RouteId::UserWhy
        | RouteId::UserWhyById
        | RouteId::At
        | RouteId::Changes
        | RouteId::Kicks
        | RouteId::Tickets
        | RouteId::Policy
        | RouteId::Gateways
        | RouteId::Stats
        | RouteId::StatsHistory
        | RouteId::Incidents
        | RouteId::Edge
        | RouteId::Metrics
        | RouteId::Healthz
        | RouteId::Readyz
        | RouteId::OpenApi
        | RouteId::Page
        | RouteId::RollcallJs
        | RouteId::ConsoleFile => String::new(),
    };
    (example(route), body)
}

/// It asks every route, so a new route cannot forget its trace.
#[test]
fn exactly_the_routes_that_the_table_says_append_and_every_record_has_the_trace_of_its_request() {
    let house = guarded();
    house.token(TOKEN).publish(&[connect("bob", 2)]);
    wait_until("bob is known", || house.token(TOKEN).get("/v1/users/bob").status == 200);
    for (number, route) in ROUTES.iter().enumerate() {
        let trace = format!("00-{:032x}-b7ad6b7169203331-00", number + 1);
        let (path, body) = example_request(route);
        let before = house.end(Topic::Events, 0);
        let asked = house.token(TOKEN).with("traceparent", &*trace);
        let reply = asked.send(route.method.name(), &path, body.as_bytes());
        let mut appended = Vec::new();
        let limit = Limit {
            records: 100,
            bytes: 1 << 20,
        };
        let read = house
            .log
            .read(Topic::Events, Partition(0), Offset(before), limit, &mut appended);
        read.expect("read");
        let what = format!("{} {path}: {} {}", route.method.name(), reply.status, reply.body);
        assert_eq!(!appended.is_empty(), route.appends, "{what}");
        for record in appended {
            let carried = record.traceparent().map(String::from_utf8_lossy);
            assert_eq!(carried.as_deref(), Some(&*trace), "{what}");
        }
    }
}

/// The rows of the table of routes in the documentation: the routes of each with its scope.
fn documented() -> Vec<(String, String)> {
    let text = include_str!("../../docs/http.md");
    let rows = text
        .lines()
        .skip_while(|line| !line.starts_with("| route |"))
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    rows.flat_map(|row| {
        let cells: Vec<&str> = row.split(" | ").collect();
        let routes: Vec<&str> = cells[0].split('`').skip(1).step_by(2).collect();
        // A form with its query is the same route.
        let bare = |route: &str| route.split('?').next().unwrap_or_default().to_owned();
        let scope = cells[1].to_owned();
        routes
            .into_iter()
            .map(move |route| (bare(route), scope.clone()))
            .collect::<Vec<_>>()
    })
    .collect()
}

#[test]
fn every_route_and_parameter_is_documented_and_nothing_else_is() {
    let expected: BTreeSet<(String, String)> = ROUTES
        .iter()
        .map(|route| {
            let scope = match route.need {
                Need::Nothing => "none",
                Need::Read => "read",
                Need::Follow => "read, or a ticket",
                Need::Publish => "publish",
                Need::Metrics => "metrics or read",
                Need::UserSig => "a signature",
            };
            (format!("{} {}", route.method.name(), route.path), scope.to_owned())
        })
        .collect();
    let documented: BTreeSet<(String, String)> = documented().into_iter().collect();
    assert_eq!(documented, expected);
    let text = include_str!("../../docs/http.md");
    for parameter in ROUTES.iter().flat_map(|route| route.parameters) {
        let name = parameter.name;
        let forms = [format!("`{name}`"), format!("?{name}"), format!("&{name}=")];
        assert!(forms.iter().any(|form| text.contains(form.as_str())), "{name}");
    }
}

/// Where the foreign libraries are; installs them where this machine does not have them yet.
fn python() -> String {
    let output = Command::new(root("scripts/clients"))
        .arg("python")
        .output()
        .expect("bash runs it");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Runs a script of tests/clients, which prints JSON; or what it says is wrong.
fn script(name: &str, arguments: &[&str]) -> Result<Value, String> {
    let output = Command::new(python())
        .arg(root("tests/clients").join(name))
        .args(arguments)
        .output()
        .expect("started");
    match output.status.success() {
        true => Ok(serde_json::from_slice(&output.stdout).expect("JSON")),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// What the server has answered.
#[derive(Default)]
struct Answers(Vec<Value>);

impl Answers {
    /// Asks, and keeps what is answered under a path of the table.
    fn ask(&mut self, client: &Client, method: &str, path: &str, asked: &str, body: &str) -> Reply {
        let reply = client.send(method, asked, body.as_bytes());
        self.0.push(json!({
            "method": method,
            "path": path,
            "status": reply.status,
            "media": reply.header("content-type"),
            "body": reply.body,
        }));
        reply
    }

    /// Keeps events of a stream.
    fn stream(&mut self, method: &str, path: &str, received: &[Received]) {
        let events: Vec<Value> = received
            .iter()
            .map(|received| json!([received.name, received.data]))
            .collect();
        assert!(!events.is_empty());
        self.0.push(json!({
            "method": method,
            "path": path,
            "status": 200,
            "media": "text/event-stream",
            "body": "",
            "events": events,
        }));
    }
}

/// Has the server give every answer that it has, with as many of the fields as there are.
fn real_answers(house: &House) -> Vec<Value> {
    let token = house.token(TOKEN);
    let node = token.with("rollcall-from-node", "http://127.0.0.1:1");
    let mut answers = Answers::default();
    let post = |answers: &mut Answers, query: &str, events: Value| {
        let reply = answers.ask(
            &token,
            "POST",
            "/v1/events",
            &format!("/v1/events{query}"),
            &events.to_string(),
        );
        assert_eq!(reply.status, 200, "{}", reply.body);
    };
    post(
        &mut answers,
        "?wait=applied",
        json!([
            {"type": "policy", "policy": {"login": "multi", "custom_keep_ms": 60_000, "platforms": {"web": {"closed_ms": 30_000}}}},
            on("connect", "alice", 1, json!({"intent": "login", "client": "app/1", "auth_at": 1})),
            {"type": "connect", "user": "alice", "platform": "web", "device": "tab", "gateway": "g1", "epoch": 1, "conn": 2,
             "intent": "login"},
            on("connect", "bob", 3, json!({"intent": "login"})),
            on("heartbeat", "nobody", 9, json!({"clinet": 1})),
            {"type": "connect", "user": "alice", "platform": "toaster", "device": "t", "gateway": "g1", "epoch": 1,
             "conn": 4, "intent": "login"},
            {"type": "lease", "gateway": "g1", "epoch": 1, "ttl_ms": 30_000},
            {"type": "lease", "gateway": "g2", "epoch": 1, "ttl_ms": 0},
            says("alice", "busy"),
            {"type": "heartbeats", "gateway": "g1", "epoch": 1, "beats": [
                {"user": "x", "platform": "web", "device": "d", "conn": 7}, {"user": "y", "platform": "web", "device": "d", "conn": 8}]},
            {"type": "alive", "gateway": "g1", "epoch": 1, "conns": [1, 99], "partition": 0},
            {"type": "disconnect", "user": "alice", "platform": "web", "device": "tab", "gateway": "g1", "epoch": 1, "conn": 2,
             "reason": "closed"},
            {"type": "kick", "user": "bob"},
        ]),
    );
    post(&mut answers, "", json!([{"type": "tick"}, connect("carol", 5)]));
    post(
        &mut answers,
        "?wait=applied",
        json!([on("disconnect", "alice", 1, json!({"reason": "exit"}))]),
    );
    answers
        .ask(&token, "POST", "/v1/events", "/v1/events", "[{}]")
        .error(400, "bad_event");
    answers
        .ask(&token, "POST", "/v1/events", "/v1/events?x", "[]")
        .error(400, "bad_parameter");
    house.token("nobody").get("/v1/stats").error(401, "unknown_token");
    for (route, path) in [
        ("/v1/users/{user}/history", "/v1/users/alice/history?from=0&to=-0s"),
        ("/v1/user/history", "/v1/user/history?id=alice"),
        ("/v1/users/{user}/why", "/v1/users/alice/why?at=2000"),
        ("/v1/user/why", "/v1/user/why?id=nobody"),
        ("/v1/at", "/v1/at?time=2000&as_known"),
    ] {
        answers.ask(&token, "GET", route, path, "").ok();
    }
    let gone = json!({"oldest": "0:2"});
    house
        .log
        .drop_before(Topic::Changes, Partition(0), Offset(2))
        .expect("dropped");
    let reply = answers.ask(&token, "GET", "/v1/changes", "/v1/changes?after=0:0", "");
    assert_eq!(reply.error(410, "gone")["oldest"], gone["oldest"]);
    for user in ["alice", "bob", "carol", "nobody"] {
        answers.ask(&token, "GET", "/v1/users/{user}", &format!("/v1/users/{user}"), "");
        answers.ask(&token, "GET", "/v1/user", &format!("/v1/user?id={user}"), "");
        answers.ask(
            &token,
            "GET",
            "/v1/users/{user}/changes",
            &format!("/v1/users/{user}/changes"),
            "",
        );
        answers.ask(
            &token,
            "GET",
            "/v1/user/changes",
            &format!("/v1/user/changes?id={user}"),
            "",
        );
    }
    let users = json!({"users": ["alice", "nobody", "bob"]}).to_string();
    answers.ask(&token, "POST", "/v1/users/query", "/v1/users/query", &users);
    answers.ask(&token, "POST", "/v1/tickets", "/v1/tickets", "");
    answers.ask(&token, "POST", "/v1/tickets", "/v1/tickets", r#"{"users":["alice"]}"#);
    let outcomes = json!({"watch": [0], "partition": 0, "offsets": [0, 1]}).to_string();
    answers.ask(&node, "POST", "/v1/outcomes", "/v1/outcomes", &outcomes);
    answers
        .ask(&token, "POST", "/v1/outcomes", "/v1/outcomes", &outcomes)
        .error(404, "not_found");
    answers.ask(&node, "GET", "/v1/gateways", "/v1/gateways", "");
    for path in ["/v1/changes", "/v1/kicks"] {
        let received = token.follow(&format!("{path}?after=earliest")).take(1);
        answers.stream("GET", path, &received);
        let body = r#"{"after":"earliest"}"#;
        let received = token.follow_with(&format!("{path}/query"), body).take(1);
        answers.stream("POST", &format!("{path}/query"), &received);
        let asks_for_events = token.with("Accept", "text/event-stream");
        answers.stream(
            "GET",
            path,
            &[asks_for_events.follow_refused(&format!("{path}?after=x"))],
        );
    }
    // The other media type of this path.
    let style = answers.ask(house, "GET", "/console/{file}", "/console/style.css", "");
    assert_eq!(style.header("content-type"), Some("text/css; charset=utf-8"));
    let query =
        json!({"To_Account": ["alice", "carol", "nobody"], "IsNeedDetail": 1, "IsReturnCustomStatus": 1}).to_string();
    for (command, body) in [
        ("/v4/openim/query_online_status", query.as_str()),
        ("/v4/openim/querystate", query.as_str()),
        ("/v4/openim/querystate", r#"{"To_Account":[]}"#),
        ("/v4/im_open_login_svc/kick", r#"{"UserID":"carol"}"#),
        ("/v4/im_open_login_svc/kick", r#"{"UserID":"nobody"}"#),
    ] {
        answers.ask(house, "POST", command, &signed(command), body).ok();
        answers.ask(house, "POST", command, command, body).ok();
    }
    for route in ROUTES.iter().filter(|route| route.method.name() == "GET") {
        answers.ask(&token, "GET", route.path, &example(route), "");
        if route.need != Need::Nothing {
            answers.ask(house, "GET", route.path, &example(route), "");
        }
    }
    answers.0
}

#[test]
fn the_document_is_valid_and_every_real_answer_is_as_it_says() {
    let house = guarded();
    house.edge.send_replace(Some(GatewayAddress {
        address: "127.0.0.1:8090".parse().expect("an address"),
        tls: false,
        token: true,
    }));
    house.keep_history();
    wait_until("there is a sample", || {
        house.token(TOKEN).get("/v1/stats/history").ok()["samples"] != json!([])
    });
    let directory = tempfile::tempdir().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("UTF-8").to_owned()
    };
    // Nobody needs a token to learn how to ask.
    let text = house.get("/openapi.json").body;
    let document = file("openapi.json", &text);
    let answers = real_answers(&house);
    let all = file("answers.json", &json!(answers).to_string());
    let checked = script("openapi.py", &[&document, &all]).unwrap_or_else(|wrong| panic!("{wrong}"));
    println!("{checked}");
    assert_eq!(checked["routes"], ROUTES.len());
    // It notices what is wrong: with the document, with an answer, with an event, and what is missing.
    let no_document = text.replacen("\"responses\"", "\"response\"", 1);
    assert!(script("openapi.py", &[&file("wrong.json", &no_document), &all]).is_err());
    let alter = |alter: &dyn Fn(&mut Vec<Value>)| {
        let mut altered = answers.clone();
        alter(&mut altered);
        file("altered.json", &json!(altered).to_string())
    };
    let is_of = |answer: &Value, path: &str| answer["path"] == path && answer["status"] == 200;
    let edit = |path: &'static str, from: &'static str, to: &'static str| {
        alter(&|answers: &mut Vec<Value>| {
            let answer = answers.iter_mut().find(|answer| is_of(answer, path)).expect("asked");
            let key = if answer["events"].is_null() { "body" } else { "events" };
            let text = answer[key].to_string();
            assert!(text.contains(from), "{text}");
            answer[key] = serde_json::from_str(&text.replacen(from, to, 1)).expect("JSON");
        })
    };
    for wrong in [
        edit("/v1/users/{user}", r#"\"version\":"#, r#"\"versions\":"#),
        edit("/v1/events", r#"\"offset\":"#, r#"\"offset\":-"#),
        edit("/v1/stats", r#"\"state\":"#, r#"\"more\":1,\"state\":"#),
        edit("/v1/kicks", r#"\"epoch\":1"#, r#"\"epoch\":\"1\""#),
        edit("/v4/openim/querystate", r#"\"Platform\":"#, r#"\"platform\":"#),
        alter(&|answers| answers.retain(|answer| !is_of(answer, "/v1/policy"))),
    ] {
        let said = script("openapi.py", &[&document, &wrong]);
        assert!(said.is_err(), "{said:?}");
    }
}

#[test]
fn every_subscription_is_described_with_the_header_of_a_client_that_reconnects() {
    let document = document();
    let subscriptions = ROUTES.iter().filter(|route| route.need == Need::Follow);
    assert_eq!(subscriptions.clone().count(), 4);
    for route in subscriptions {
        let operation = &document["paths"][route.path][route.method.name().to_lowercase()];
        let parameters = operation["parameters"].as_array().expect("a list");
        let headers = parameters.iter().filter(|parameter| parameter["in"] == "header");
        let names: Vec<&Value> = headers.map(|parameter| &parameter["name"]).collect();
        assert_eq!(names, [&json!("Last-Event-ID")], "{}", route.path);
    }
}

#[test]
fn a_client_that_is_generated_from_the_document_posts_an_event_and_reads_a_user() {
    let house = guarded();
    let directory = tempfile::tempdir().expect("a directory");
    let document = directory.path().join("openapi.json");
    std::fs::write(&document, house.get("/openapi.json").body).expect("written");
    let path = |path: &Path| path.to_str().expect("UTF-8").to_owned();
    let url = format!("http://{}", house.address);
    let said = script(
        "generated.py",
        &[&path(&document), &path(directory.path()), &url, TOKEN],
    );
    let expected = json!({"outcome": "changed", "status": "online", "device": "tab", "nobody": "unknown_user",
        "headers": ["0:7", "0:8"]});
    assert_eq!(said, Ok(expected));
}

#[test]
fn the_client_for_python_publishes_and_asks_and_follows_a_server_that_is_killed() {
    let output = Command::new("python3")
        .args(["-B", "-m", "unittest", "discover", "-s"])
        .arg(root("clients/python/tests"))
        .env("ROLLCALL_BIN", env!("CARGO_BIN_EXE_rollcall"))
        .output()
        .expect("python3 runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    // It prints how many tests there were; none at all would also be a success.
    let ran = said
        .lines()
        .find_map(|line| line.strip_prefix("Ran ")?.split(' ').next());
    let ran: u32 = ran.and_then(|count| count.parse().ok()).expect("a count");
    assert!(ran >= 7, "{said}");
}
