//! Metrics: a server has exactly the metrics that docs/operating.md lists, the dashboard shows and the alerts use.

use crate::server::{ANYWHERE, Server, wait_until};
use crate::{root, texts, yaml};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

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
    let more = [
        "--gateway",
        ANYWHERE,
        "--gateway-insecure",
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

#[test]
fn a_loaded_server_gives_every_metric_that_is_documented_and_no_other() {
    let (_directory, server) = loaded();
    let documented = documented();
    assert!(documented.len() > 30, "{documented:?}");
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
    assert!(value(&text, "rollcall_change_seconds_count") > Some(0.0));
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

/// The anchor that a heading gets on a page.
fn anchors(markdown: &str) -> BTreeSet<String> {
    let headings = markdown.lines().filter(|line| line.starts_with('#'));
    let anchor = |heading: &str| {
        let words = heading.trim_start_matches('#').trim().to_lowercase();
        let kept = words.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn every_alert_is_about_metrics_that_there_are_and_says_what_to_do() {
    let rules = yaml("ops/alerts.yml");
    let prometheus = yaml("ops/prometheus.yml");
    assert_eq!(texts(&prometheus["rule_files"]), ["alerts.yml"]);
    let job = &prometheus["scrape_configs"][0]["job_name"];
    let (known, text) = (documented(), operating());
    let anchors = anchors(&text);
    let mut alerts = BTreeSet::new();
    for rule in rules["groups"][0]["rules"].as_array().expect("rules") {
        let alert = rule["alert"].as_str().expect("a name");
        let expression = rule["expr"].as_str().expect("an expression");
        let metrics = named(expression);
        let of_prometheus = format!("up{{job={job}}}");
        assert!(!metrics.is_empty() || expression.contains(&of_prometheus), "{alert}");
        for metric in metrics {
            assert!(known.contains_key(&metric), "{alert}: {metric}");
        }
        // Only the job's own name, where one is given.
        for (_, rest) in expression
            .match_indices("job=\"")
            .map(|(at, found)| expression.split_at(at + found.len()))
        {
            assert!(rest.starts_with(job.as_str().expect("a name")), "{alert}");
        }
        let severity = rule["labels"]["severity"].as_str();
        assert!(matches!(severity, Some("critical" | "warning")), "{alert}");
        assert!(rule["annotations"]["summary"].is_string(), "{alert}");
        let runbook = rule["annotations"]["runbook"]
            .as_str()
            .expect("where it says what to do");
        let anchor = runbook
            .strip_prefix("docs/operating.md#")
            .expect("a section of operating.md");
        assert!(anchors.contains(anchor), "{alert}: no section #{anchor}");
        assert_eq!(anchor, alert.to_lowercase());
        assert!(alerts.insert(alert.to_owned()), "{alert} is there twice");
    }
    let (_, section) = text.split_once("\n## Alerts\n").expect("a section on alerts");
    let section = section.split("\n## ").next().expect("its text");
    let described = section.lines().filter_map(|line| line.strip_prefix("### "));
    assert_eq!(described.map(str::to_owned).collect::<BTreeSet<_>>(), alerts);
}
