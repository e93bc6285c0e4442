//! Nodes among themselves: a caller's token never leaves the node that got it, no matter who claims to be an owner, and answers
//! from a process that is not a node are refused.

use crate::authority::{Authority, BOTH};
use crate::engine::{self, Node};
use crate::python::publisher;
use crate::space::Space;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const PARTITIONS: usize = 2;
const TOKEN: &str = "the-admin-token-of-everybody";
const PATIENCE: Duration = Duration::from_secs(180);

#[track_caller]
fn until(nodes: &[Node], what: &str, holds: impl FnMut() -> bool) {
    engine::until(&nodes.iter().collect::<Vec<_>>(), PATIENCE, what, holds);
}

/// A GET with the token: status and body.
fn get(node: &Node, path: &str) -> (u16, String) {
    let config = ureq::Agent::config_builder().http_status_as_error(false).build();
    let agent = ureq::Agent::new_with_config(config);
    let request = agent.get(format!("{}{path}", node.url()));
    let answer = request.header("Authorization", format!("Bearer {TOKEN}")).call();
    let Ok(mut answer) = answer else {
        return (0, String::new());
    };
    (
        answer.status().as_u16(),
        answer.body_mut().read_to_string().unwrap_or_default(),
    )
}

fn owners(node: &Node) -> Vec<String> {
    let (_, stats) = get(node, "/v1/stats");
    let stats: Value = serde_json::from_str(&stats).unwrap_or_default();
    let partitions = stats["partitions"].as_array().cloned().unwrap_or_default();
    let mut owners: Vec<String> = partitions
        .iter()
        .filter(|one| one["state"] == "live")
        .map(|one| one["owner"].as_str().unwrap_or_default().to_owned())
        .collect();
    owners.dedup();
    owners
}

/// Answers everything as if it knew, and keeps what it was asked.
fn evil() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("an address"));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let keeps = asked.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = vec![0; 16_384];
            let read = stream.read(&mut request).unwrap_or(0);
            let head = String::from_utf8_lossy(&request[..read]).into_owned();
            keeps.lock().expect("nobody panics with it").push(head);
            let body = "{\"type\":\"user\",\"user\":\"u1\",\"status\":\"offline\",\"forged\":true}";
            let length = body.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    (url, asked)
}

fn nodes(directory: &Path, space: &Space, more: &[&str]) -> [Node; 2] {
    let tokens = directory.join("tokens");
    std::fs::write(&tokens, format!("{TOKEN} admin\n")).expect("written");
    let tokens = tokens.to_str().expect("UTF-8");
    let mut nodes = [0, 1].map(|name| Node::new(directory, space, name, &[&["--token-file", tokens], more].concat()));
    nodes.iter_mut().for_each(|node| node.start(None));
    nodes
}

/// Users, and where each is known by the node itself.
fn publish(node: &Node) {
    let events: Vec<Value> = (0..16)
        .map(|number| {
            json!({"type": "connect", "user": format!("u{number}"), "platform": "linux", "device": "d", "gateway": "g",
                "epoch": 1, "conn": 1, "intent": "login"})
        })
        .collect();
    let request = ureq::post(format!("{}/v1/events", node.url())).header("Authorization", format!("Bearer {TOKEN}"));
    assert!(
        request
            .send(json!(events).to_string())
            .expect("posted")
            .status()
            .is_success()
    );
}

/// The results of events of users of both partitions, published through one node: outcome and reason of each event.
fn outcomes(node: &Node, events: &[Value]) -> Vec<(String, String)> {
    let request = ureq::post(format!("{}/v1/events?wait=applied", node.url()));
    let answer = request
        .header("Authorization", format!("Bearer {TOKEN}"))
        .send(json!(events).to_string());
    let body = answer.expect("posted").body_mut().read_to_string().expect("an answer");
    let body: Value = serde_json::from_str(&body).expect("JSON");
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let appended = body["appended"].as_array().expect("an array");
    assert_eq!(appended.len(), events.len());
    appended
        .iter()
        .map(|one| (text(&one["outcome"]), text(&one["reason"])))
        .collect()
}

/// Every node returns the outcomes of events, no matter which node folded them.
fn outcomes_are_said_across_nodes(nodes: &[Node]) {
    for (at, node) in nodes.iter().enumerate() {
        let connect = |number: usize, platform: &str, version: u64| {
            json!({"type": "connect", "user": format!("u{number}"), "platform": platform, "device": "d", "gateway": "g",
                "epoch": 1, "conn": version, "intent": "login"})
        };
        let mut events: Vec<Value> = (0..16).map(|number| connect(number, "linux", 1)).collect();
        events.extend((0..16).map(|number| connect(number, "toaster", 1)));
        events.extend((100..116).map(|number| connect(number + 100 * at, "linux", 1)));
        let mut expected = vec![("ignored".to_owned(), "duplicate".to_owned()); 16];
        expected.extend(vec![("ignored".to_owned(), "unknown_platform".to_owned()); 16]);
        expected.extend(vec![("changed".to_owned(), String::new()); 16]);
        assert_eq!(outcomes(node, &events), expected, "{}", node.diary());
    }
}

/// Every node answers questions about the past, whichever of the nodes has the partition.
fn the_past_is_answered_across_nodes(nodes: &[Node]) {
    let same = |path: &str| {
        let ask = || -> Vec<(u16, String)> { nodes.iter().map(|node| get(node, path)).collect() };
        let mut answers = Vec::new();
        until(nodes, &format!("all answer {path}"), || {
            answers = ask();
            answers.iter().all(|(status, _)| *status == 200)
        });
        assert!(
            answers.iter().all(|answer| *answer == answers[0]),
            "{path}: {answers:?}"
        );
        let body: Value = serde_json::from_str(&answers[0].1).expect("JSON");
        body
    };
    for number in 0..16 {
        let history = same(&format!("/v1/users/u{number}/history?from=0"));
        assert_eq!(history["intervals"][0]["cause"], "login", "{history}");
        let newest = same(&format!("/v1/users/u{number}/changes?limit=1"));
        assert_eq!(
            (
                &newest["changes"][0]["user"],
                newest["changes"].as_array().map(Vec::len)
            ),
            (&json!(format!("u{number}")), Some(1)),
            "{newest}"
        );
        let since = &history["intervals"][0]["from"];
        let why = same(&format!("/v1/users/u{number}/why?at={since}"));
        assert_eq!(
            (&why["steps"][0]["id"], &why["since"]),
            (&history["intervals"][0]["change"], since)
        );
    }
    // No partition's log time is there yet, and each is named once.
    for as_known in [false, true] {
        let counted = same(&format!("/v1/at?time=2100-01-01T00:00:00Z&as_known={as_known}"));
        assert_eq!(
            counted["users"],
            json!({"online": 48, "push_online": 0, "offline": 0}),
            "{counted}"
        );
        assert_eq!(counted["behind"], json!([0, 1]));
    }
    assert_eq!(
        same("/v1/at?time=0")["users"],
        json!({"online": 0, "push_online": 0, "offline": 0})
    );
}

fn known(node: &Node) -> usize {
    let asked = (0..16).map(|number| get(node, &format!("/v1/users/u{number}")));
    asked
        .filter(|(status, body)| *status == 200 && !body.contains("forged"))
        .count()
}

pub fn no_callers_token_leaves_the_node_and_who_has_no_secret_is_not_believed(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "peers", PARTITIONS);
    let secret = directory.path().join("peer-token");
    std::fs::write(&secret, "a secret of the nodes alone\n").expect("written");
    let secret = secret.to_str().expect("UTF-8");
    let nodes = nodes(directory.path(), &space, &["--peer-token-file", secret]);
    until(&nodes, "each has a partition, and they ask each other", || {
        nodes.iter().all(|node| owners(node).len() == 2)
    });
    publish(&nodes[0]);
    until(&nodes, "both know everybody", || {
        nodes.iter().all(|node| known(node) == 16)
    });
    outcomes_are_said_across_nodes(&nodes);
    the_past_is_answered_across_nodes(&nodes);

    let (url, asked) = evil();
    let claim = |url: &str| {
        for partition in ["0", "1"] {
            let record = json!({"url": url, "group": space.group, "partitions": PARTITIONS});
            publisher(&space, &["owner", partition, &record.to_string()]);
        }
    };
    // What is more than an address is not asked, and what was known before stays.
    for more in ["/latest/meta-data?x=", "?x=", "#", "/"] {
        claim(&format!("{url}{more}"));
    }
    until(&nodes, "they say so", || {
        nodes
            .iter()
            .all(|node| node.diary().matches("an owner's record was refused").count() == 4)
    });
    until(&nodes, "both still know everybody", || {
        nodes.iter().all(|node| known(node) == 16)
    });
    assert_eq!(*asked.lock().expect("nobody panicked with it"), Vec::<String>::new());

    claim(&url);
    until(&nodes, "it is asked, and not believed", || {
        nodes.iter().all(|node| {
            (0..16).any(|number| {
                let (status, body) = get(node, &format!("/v1/users/u{number}"));
                status == 503 && body.contains("did not prove that it is a node")
            })
        })
    });
    for node in &nodes {
        for number in 0..16 {
            let (_, body) = get(node, &format!("/v1/users/u{number}"));
            assert!(!body.contains("forged"), "{body}");
        }
        assert_eq!(get(node, "/v1/stats").0, 200, "the rest is shown");
    }
    let asked = asked.lock().expect("nobody panicked with it").clone();
    assert!(!asked.is_empty());
    for head in &asked {
        assert!(
            !head.contains(TOKEN) && !head.to_lowercase().contains("authorization"),
            "{head}"
        );
        assert!(!head.contains("a secret of the nodes"), "{head}");
    }
    // What it was sent opens no door elsewhere.
    let proof = asked[0]
        .lines()
        .find_map(|line| line.split_once("rollcall-peer: "))
        .expect("a proof")
        .1
        .to_owned();
    let path = asked[0].split(' ').nth(1).expect("a path").to_owned();
    for node in &nodes {
        let config = ureq::Agent::config_builder().http_status_as_error(false).build();
        let request = ureq::Agent::new_with_config(config).get(format!("{}{path}", node.url()));
        let answer = request
            .header("rollcall-peer", &proof)
            .header("rollcall-from-node", "http://x")
            .call();
        assert_eq!(answer.expect("it answers").status().as_u16(), 401);
    }
}

pub fn without_a_peer_token_nodes_do_not_ask_each_other_and_say_so(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "strangers", PARTITIONS);
    let nodes = nodes(directory.path(), &space, &[]);
    until(&nodes, "each has a partition", || {
        nodes.iter().all(|node| owners(node).len() == 1)
    });
    until(&nodes, "they have different ones", || {
        owners(&nodes[0]) != owners(&nodes[1])
    });
    publish(&nodes[0]);
    let refused = |node: &Node| {
        (0..16).any(|number| {
            let (status, body) = get(node, &format!("/v1/users/u{number}"));
            status == 503 && body.contains("--peer-token-file")
        })
    };
    until(&nodes, "what is elsewhere is refused with the setting's name", || {
        nodes.iter().all(refused)
    });
    for node in &nodes {
        let (status, ready) = node.get("/readyz").expect("it answers");
        assert!(
            status == 200 && ready.contains("warning: this node asks no other node"),
            "{status} {ready}"
        );
        assert!(node.diary().contains("--peer-token-file"), "{}", node.diary());
    }
}

/// Two nodes change over to TLS, each on its own, and any node answers for every user while they differ: one of them has TLS and
/// asks the other without, and the other asks it with TLS and no certificate of its own. In the end both require certificates.
pub fn nodes_change_over_to_tls_one_after_the_other(bootstrap: &str) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "over", PARTITIONS);
    let write = |name: &str, text: &str| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.into_os_string().into_string().expect("UTF-8")
    };
    let authority = Authority::new("nodes");
    let certified = authority.certify(directory.path(), "node", &BOTH);
    let (chain, key) = (
        certified.chain.to_str().expect("UTF-8"),
        certified.key.to_str().expect("UTF-8"),
    );
    let (tokens, secret) = (
        write("tokens", &format!("{TOKEN} admin\n")),
        write("secret", "a secret of the nodes alone\n"),
    );
    let ca = authority.write(&directory.path().join("ca.pem"));
    let ca = ca.to_str().expect("UTF-8");
    let both = ["--token-file", &tokens, "--peer-token-file", &secret, "--peer-ca", ca];
    let trusts = ["--peer-certificates", "optional"];
    let serves = ["--http-tls-cert", chain, "--http-tls-key", key];
    let optional = [&serves[..], &trusts].concat();
    let mut nodes = [(0, &optional[..]), (1, &trusts[..])]
        .map(|(name, more)| Node::new(directory.path(), &space, name, &[&both[..], more].concat()));
    nodes.iter_mut().for_each(|node| node.start(None));
    let ca = reqwest::Certificate::from_pem(authority.pem.as_bytes()).expect("a certificate");
    let client = reqwest::Client::builder()
        .tls_certs_only([ca])
        .no_proxy()
        .timeout(Duration::from_secs(20));
    let client = client.build().expect("a client");
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let ask = |node: &Node, path: &str, body: Option<String>| {
        let url = format!("{}{path}", node.url());
        let request = match body {
            Some(body) => client.post(url).body(body),
            None => client.get(url),
        };
        runtime.block_on(async {
            let answer = request.bearer_auth(TOKEN).send().await?;
            Ok::<_, reqwest::Error>((answer.status().as_u16(), answer.text().await?))
        })
    };
    let owners = |node: &Node| {
        let (_, stats) = ask(node, "/v1/stats", None).unwrap_or_default();
        let stats: Value = serde_json::from_str(&stats).unwrap_or_default();
        let partitions = stats["partitions"].as_array().cloned().unwrap_or_default();
        let live = partitions.iter().filter(|one| one["state"] == "live");
        let owners: std::collections::BTreeSet<String> = live
            .map(|one| one["owner"].as_str().unwrap_or_default().to_owned())
            .collect();
        owners
    };
    let events: Vec<Value> = (0..16)
        .map(|number| {
            json!({"type": "connect", "user": format!("u{number}"), "platform": "linux", "device": "d", "gateway": "g",
                "epoch": 1, "conn": 1, "intent": "login"})
        })
        .collect();
    let knows_everybody = |node: &Node| {
        (0..16).all(|number| {
            let answer = ask(node, &format!("/v1/users/u{number}"), None);
            answer.is_ok_and(|(status, _)| status == 200)
        })
    };
    let all_know = |nodes: &[Node; 2], what: &str| {
        let urls = nodes.iter().map(Node::url).collect();
        until(nodes, what, || nodes.iter().all(|node| owners(node) == urls));
        until(nodes, what, || nodes.iter().all(knows_everybody));
    };
    until(&nodes, "the first is ready", || owners(&nodes[0]).len() == 2);
    let published = ask(&nodes[0], "/v1/events", Some(json!(events).to_string())).expect("an answer");
    assert_eq!(published.0, 200, "{}", published.1);
    all_know(&nodes, "one has TLS");
    nodes[1].stop();
    nodes[1].instead_of(&trusts, &serves);
    nodes[1].start(None);
    all_know(&nodes, "both have TLS, and one requires certificates");
    nodes[0].stop();
    nodes[0].instead_of(&optional, &serves);
    nodes[0].start(None);
    all_know(&nodes, "both require certificates");
}
