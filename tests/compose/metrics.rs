//! Metrics: a server has exactly the metrics that docs/operating.md lists, the dashboard shows and the alerts use.

use crate::server::{ANYWHERE, Server, wait_until};
use crate::{root, texts, yaml};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::process::{Child, Command, Stdio};

fn file(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).expect("a file")
}

fn operating() -> String {
    file("docs/operating.md")
}

/// The names, with their kinds, that the table in docs/operating.md lists.
fn documented() -> BTreeMap<String, String> {
    let text = operating();
    let (_, section) = text.split_once("\n## Metrics\n").expect("a section on metrics");
    let section = section.split("\n## ").next().expect("its text");
    let row = |line: &str| {
        let mut cells = line.strip_prefix("| `")?.split('|');
        let name = cells.next()?.trim().trim_end_matches('`').to_owned();
        Some((name, cells.next()?.trim().to_owned()))
    };
    section.lines().filter_map(row).collect()
}

/// The names, with their kinds, that a server gives.
fn given(text: &str) -> BTreeMap<String, String> {
    let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
    let kinds = kinds.map(|kind| kind.split_once(' ').expect("a kind"));
    kinds.map(|(name, kind)| (name.to_owned(), kind.to_owned())).collect()
}

/// The metrics that an expression of PromQL is about, a histogram by its own name.
fn named(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let metrics = words.filter(|word| word.starts_with("rollcall_") || word.starts_with("process_"));
    let known = documented();
    let whole = |metric: &str| {
        let ends = ["_bucket", "_sum", "_count"];
        let base = ends.iter().find_map(|end| metric.strip_suffix(end));
        base.filter(|base| known.contains_key(*base))
            .unwrap_or(metric)
            .to_owned()
    };
    metrics.map(whole).collect()
}

/// Every query of the dashboard, those of its variables too.
fn queries(dashboard: &Value) -> Vec<String> {
    let mut queries = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push(target["expr"].as_str().expect("an expression").to_owned());
        }
    }
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        queries.push(variable["query"]["query"].as_str().expect("a query").to_owned());
    }
    queries
}

fn dashboard() -> Value {
    serde_json::from_str(&file("ops/grafana/dashboards/rollcall.json")).expect("JSON")
}

/// A server with everything that has metrics, and something to count.
fn loaded() -> (tempfile::TempDir, Server) {
    let directory = tempfile::tempdir().expect("a directory");
    let checkpoints = format!("file://{}", directory.path().join("checkpoints").display());
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("made");
    let file = |name: &str, text: String| {
        let path = directory.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.into_os_string().into_string().expect("UTF-8")
    };
    let (chain, key) = (
        file("cert.pem", made.cert.pem()),
        file("key.pem", made.signing_key.serialize_pem()),
    );
    let more = [
        "--gateway",
        ANYWHERE,
        "--gateway-insecure",
        "--tls-cert",
        &chain,
        "--tls-key",
        &key,
        "--partitions",
        "2",
        "--checkpoints",
        &checkpoints,
        "--checkpoint-every",
        "1s",
        "--demo",
        "40",
    ];
    let server = Server::start(&directory.path().join("data"), ANYWHERE, &more, &[]);
    (directory, server)
}

/// The value of the metric with exactly these labels, if it is there.
fn value(text: &str, metric: &str) -> Option<f64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(metric)?.strip_prefix(' '));
    line.map(|value| value.parse().expect("a number"))
}

/// Gauges of what this server does not have. Partitions for which a node stands by need Kafka (tests/kafka/standbys.rs looks at
/// them); with an issuer everybody needs a token (tests/http/oidc.rs).
const ONLY_ELSEWHERE: [&str; 3] = [
    "rollcall_standby_ready",
    "rollcall_standby_lag_records",
    "rollcall_oidc_keys_fetched_timestamp_seconds",
];

#[test]
fn a_loaded_server_gives_every_metric_that_is_documented_and_no_other() {
    let (_directory, server) = loaded();
    let mut documented = documented();
    assert!(documented.len() > 30, "{documented:?}");
    for name in ONLY_ELSEWHERE {
        documented.remove(name).expect("it is documented");
    }
    wait_until("every metric is there", || {
        let given = given(&text(&server));
        documented.keys().all(|name| given.contains_key(name))
    });
    assert_eq!(given(&text(&server)), documented);

    // The numbers equal those of /v1/stats. Users log in and out, so both are read until they agree.
    wait_until("users and devices are counted", || {
        let stats: Value = serde_json::from_str(&server.get("/v1/stats", "").1).expect("JSON");
        let text = text(&server);
        let is = |metric: String, count: &Value| value(&text, &metric) == Some(count.as_f64().unwrap_or_default());
        let users = ["online", "push_online", "offline"];
        let users = users.iter().all(|status| {
            is(
                format!("rollcall_users{{status=\"{status}\"}}"),
                &stats["users"][status],
            )
        });
        let online = stats["devices"]["online"].as_object().expect("devices");
        let devices = online.iter().all(|(platform, count)| {
            is(
                format!("rollcall_devices{{platform=\"{platform}\",status=\"online\"}}"),
                count,
            )
        });
        users && devices && stats["users"]["online"].as_u64() > Some(5)
    });
    let text = text(&server);
    assert_eq!(value(&text, "rollcall_partitions"), Some(2.0));
    for partition in [0, 1] {
        let live = format!("rollcall_partition_state{{partition=\"{partition}\",state=\"live\"}}");
        assert_eq!(value(&text, &live), Some(1.0));
    }
    // The demo's events were appended and caused changes, and no query was made yet.
    assert!(value(&text, "rollcall_append_seconds_count") > Some(0.0));
    wait_until("a change is measured", || {
        value(&self::text(&server), "rollcall_change_seconds_count") > Some(0.0)
    });
    assert_eq!(value(&text, "rollcall_query_seconds_count"), Some(0.0));
    // Counters are there before anything happened, so that the first time counts as an increase.
    for metric in [
        "rollcall_gateway_refused_total{reason=\"unauthorized\"}",
        "rollcall_gateway_kicks_total{reason=\"displaced\"}",
        "rollcall_ignored_total{reason=\"stale_epoch\"}",
    ] {
        assert_eq!(value(&text, metric), Some(0.0), "{metric}");
    }
    let odd = json!({"type": "connect", "user": "alice", "platform": "ios", "device": "a1", "gateway": "g1", "epoch": 1,
        "conn": 1, "intent": "login"});
    server.publish("", &[odd]);
    wait_until("an event without effect is counted", || {
        let ignored = "rollcall_ignored_total{reason=\"unknown_platform\"}";
        value(&self::text(&server), ignored) == Some(1.0)
    });
    server.get("/v1/users/ada-0", "");
    assert_eq!(value(&self::text(&server), "rollcall_query_seconds_count"), Some(1.0));
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn text(server: &Server) -> String {
    server.get("/metrics", "").1
}

#[test]
fn the_dashboard_shows_every_metric_and_only_what_there_is() {
    let dashboard = dashboard();
    let known: BTreeSet<String> = documented().into_keys().collect();
    let queries = queries(&dashboard);
    let shown: BTreeSet<String> = queries.iter().flat_map(|query| named(query)).collect();
    assert_eq!(shown, known);
    let source = yaml("ops/grafana/provisioning/datasources/prometheus.yml")["datasources"][0].clone();
    let mut rows = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        if panel["type"] == "row" {
            rows.push(panel["title"].as_str().expect("a title"));
            continue;
        }
        assert_eq!(panel["datasource"]["uid"], source["uid"], "{}", panel["title"]);
        for target in panel["targets"].as_array().expect("targets") {
            let expression = target["expr"].as_str().expect("an expression");
            assert!(
                expression.contains(r#"{job=~"$job",instance=~"$instance""#),
                "the variables do not choose: {expression}"
            );
        }
    }
    assert_eq!(rows, ["Users", "Gateway", "Engine", "Log", "Checkpoints"]);
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    let names: Vec<&Value> = variables.iter().map(|variable| &variable["name"]).collect();
    assert_eq!(json!(names), json!(["job", "instance"]));
}

/// The rules that have this key, of all groups of the rule file.
fn rules(key: &str) -> Vec<Value> {
    let file = yaml("ops/alerts.yml");
    let groups = file["groups"].as_array().expect("groups").iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().expect("rules").clone());
    rules.filter(|rule| rule[key].is_string()).collect()
}

#[test]
fn every_alert_is_about_metrics_that_there_are_and_says_what_to_do() {
    let prometheus = yaml("ops/prometheus.yml");
    assert_eq!(texts(&prometheus["rule_files"]), ["alerts.yml"]);
    let job = &prometheus["scrape_configs"][0]["job_name"];
    let of_prometheus = "up{job=~\"rollcall.*\"}";
    assert_eq!(job, "rollcall");
    let (mut known, text) = (documented(), file("docs/runbook.md"));
    // Of `rollcall audit watch` and of `rollcall lake`, which are no servers.
    for (metric, kind) in [
        ("rollcall_audit_differences_total", "counter"),
        ("rollcall_lake_behind_seconds", "gauge"),
    ] {
        assert!(operating().contains(metric) && file("src/metrics.rs").contains(metric));
        known.insert(metric.to_owned(), kind.to_owned());
    }
    let mut recorded = BTreeSet::new();
    let mut check = |name: &str, rule: &Value| {
        let expression = rule["expr"].as_str().expect("an expression");
        let metrics = named(expression);
        let uses_recorded = recorded
            .iter()
            .any(|record: &String| expression.contains(record.as_str()));
        assert!(
            !metrics.is_empty() || uses_recorded || expression.contains(of_prometheus),
            "{name}"
        );
        for metric in metrics {
            assert!(known.contains_key(&metric), "{name}: {metric}");
        }
        // Only the job's own name, where one is given.
        for (_, rest) in expression
            .match_indices("job=\"")
            .map(|(at, found)| expression.split_at(at + found.len()))
        {
            assert!(rest.starts_with(job.as_str().expect("a name")), "{name}");
        }
        recorded.extend(rule["record"].as_str().map(str::to_owned));
    };
    let mut alerts = BTreeSet::new();
    for record in rules("record") {
        check(record["record"].as_str().expect("a name"), &record);
    }
    for rule in rules("alert") {
        let alert = rule["alert"].as_str().expect("a name");
        check(alert, &rule);
        let severity = rule["labels"]["severity"].as_str();
        assert!(matches!(severity, Some("critical" | "warning")), "{alert}");
        assert!(rule["annotations"]["summary"].is_string(), "{alert}");
        let runbook = rule["annotations"]["runbook"].as_str();
        let section = format!("docs/runbook.md#{}", alert.to_lowercase());
        assert_eq!(runbook, Some(&*section), "{alert}");
        assert!(
            alerts.insert((alert.to_owned(), severity.map(str::to_owned))),
            "{alert} is there twice with one severity"
        );
    }
    let named: BTreeSet<&str> = alerts.iter().map(|(alert, _)| &**alert).collect();
    let described: BTreeSet<&str> = text.lines().filter_map(|line| line.strip_prefix("### ")).collect();
    assert_eq!(described, named, "a section for each alert, and no other");
    for part in text.split("\n### ").skip(1) {
        let section = part.split("\n## ").next().expect("a section");
        for word in ["**Means**", "**You see**", "**Do**"] {
            assert!(section.contains(word), "a section without {word}: {section}");
        }
    }

    // The stories provoke each alert with each severity.
    let stories = file("ops/alerts_test.yml");
    for (alert, severity) in &alerts {
        let fires = format!(
            "{{alertname=\"{alert}\", severity=\"{}\"}}",
            severity.as_deref().expect("one")
        );
        assert!(stories.contains(&fires), "no story provokes {fires}");
    }
}

/// Runs Prometheus' own tool in the directory of the rules.
#[track_caller]
fn promtool(arguments: &[&str]) {
    let output = Command::new("promtool")
        .args(arguments)
        .current_dir(root().join("ops"))
        .output()
        .expect("promtool is installed; scripts/setup installs it");
    assert!(output.status.success(), "{arguments:?}: {output:?}");
}

#[test]
fn prometheus_accepts_the_rules_and_each_alert_fires_in_its_story_and_in_no_other() {
    promtool(&["check", "rules", "alerts.yml"]);
    promtool(&["test", "rules", "alerts_test.yml"]);
}

/// Queries of the dashboard that return nothing while all is well.
const EMPTY_WHEN_WELL: &str = "rollcall_held_by_transaction_seconds";

#[test]
fn a_real_prometheus_answers_every_query_of_the_dashboard_and_evaluates_every_rule() {
    let (directory, server) = loaded();
    let reserved = std::net::TcpListener::bind(ANYWHERE).expect("a port");
    let listen = reserved.local_addr().expect("an address").to_string();
    let config = directory.path().join("prometheus.yml");
    let rules = root().join("ops/alerts.yml");
    let text = json!({
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": [rules],
        "scrape_configs": [{"job_name": "rollcall", "static_configs": [{"targets": [server.address.to_string()]}]}],
    });
    // JSON is YAML.
    std::fs::write(&config, text.to_string()).expect("written");
    drop(reserved);
    let process = Command::new("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!(
            "--storage.tsdb.path={}",
            directory.path().join("prometheus").display()
        ))
        .arg(format!("--web.listen-address={listen}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("prometheus is installed; scripts/setup installs it");
    let _process = Running(process);
    let ask = |path: &str, query: &str| -> Value {
        let output = Command::new("curl")
            .args(["-s", "-G", "--data-urlencode", &format!("query={query}")])
            .arg(format!("http://{listen}/api/v1/{path}"))
            .output()
            .expect("curl runs");
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    };
    wait_until("Prometheus has scraped the server more than once", || {
        let scraped = ask("query", "count_over_time(rollcall_build_info[1m]) > 2");
        scraped["data"]["result"]
            .as_array()
            .is_some_and(|found| !found.is_empty())
    });
    server.get("/v1/users/ada-0", "");
    for query in queries(&dashboard()) {
        let query = query.replace("$__rate_interval", "1m").replace("$job", ".*");
        let query = query.replace("$instance", ".*");
        // The queries of the variables are Grafana's own: `label_values(METRIC, LABEL)`.
        let query = match query.strip_prefix("label_values(") {
            Some(rest) => rest.rsplit_once(',').expect("a label").0.to_owned(),
            None => query,
        };
        wait_until(&format!("an answer to {query}"), || {
            let answer = ask("query", &query);
            assert_ne!(answer["status"], "error", "{query}: {answer}");
            let is_empty = answer["data"]["result"].as_array().is_none_or(Vec::is_empty);
            let may_be_empty = [EMPTY_WHEN_WELL].into_iter().chain(ONLY_ELSEWHERE);
            !is_empty || may_be_empty.into_iter().any(|metric| query.contains(metric))
        });
    }
    wait_until("the service levels are recorded", || {
        let answer = ask("query", "rollcall:reads_available:ratio");
        answer["data"]["result"][0]["value"][1] == "1"
    });
    let all = ask("rules", "");
    for group in all["data"]["groups"].as_array().expect("groups") {
        for rule in group["rules"].as_array().expect("rules") {
            assert_eq!(rule["health"], "ok", "{rule}");
        }
    }
}
