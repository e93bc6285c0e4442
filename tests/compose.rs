//! Compares docker-compose.yml and what it mounts with the program and the existing files, as far as possible without Docker.

#[path = "soak/journal.rs"]
#[expect(dead_code, reason = "only a running soak notes what happens")]
mod journal;
#[path = "soak/journal_tests.rs"]
mod journal_tests;
#[path = "compose/metrics.rs"]
mod metrics;
#[path = "soak/report.rs"]
#[expect(dead_code, reason = "only a running soak says how it is now")]
mod report;
mod server;
#[path = "soak/trend.rs"]
mod trend;
#[path = "soak/trend_tests.rs"]
mod trend_tests;

use rollcall::config::Flags;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A YAML file as JSON, read by a third-party parser.
#[track_caller]
fn yaml(path: &str) -> Value {
    let program = "import json, sys, yaml; json.dump(yaml.safe_load(open(sys.argv[1])), sys.stdout)";
    let output = Command::new(root().join("tests/kafka/python"))
        .args(["-c", program])
        .arg(root().join(path))
        .output()
        .expect("tests/kafka/python runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{path}: {error}");
    serde_json::from_slice(&output.stdout).expect("JSON")
}

struct Compose {
    services: BTreeMap<String, Value>,
    volumes: BTreeSet<String>,
    secrets: BTreeMap<String, Value>,
}

fn compose() -> Compose {
    let file = yaml("docker-compose.yml");
    let services = file["services"].as_object().expect("services");
    let volumes = file["volumes"].as_object().expect("volumes");
    Compose {
        services: services
            .iter()
            .map(|(name, service)| (name.clone(), service.clone()))
            .collect(),
        volumes: volumes.keys().cloned().collect(),
        secrets: file["secrets"]
            .as_object()
            .expect("secrets")
            .clone()
            .into_iter()
            .collect(),
    }
}

impl Compose {
    /// Services that run our program.
    fn ours(&self) -> impl Iterator<Item = (&String, &Value)> {
        let is_ours = |service: &Value| {
            service["image"]
                .as_str()
                .is_some_and(|image| image.starts_with("rollcall:"))
        };
        self.services.iter().filter(move |(_, service)| is_ours(service))
    }

    fn engines(&self) -> Vec<&String> {
        let engines = self.ours().filter(|(_, service)| service["command"].is_null());
        engines.map(|(name, _)| name).collect()
    }
}

fn texts(list: &Value) -> Vec<&str> {
    let list = list.as_array().map(Vec::as_slice).unwrap_or_default();
    list.iter().map(|item| item.as_str().expect("text")).collect()
}

fn variables(service: &Value) -> BTreeMap<&str, &str> {
    let Some(variables) = service["environment"].as_object() else {
        return BTreeMap::new();
    };
    variables
        .iter()
        .map(|(name, value)| {
            (
                name.as_str(),
                value.as_str().expect("text, so that YAML makes nothing else of it"),
            )
        })
        .collect()
}

fn rollcall(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_rollcall"))
        .args(arguments)
        .output()
        .expect("it runs");
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?}: {error}");
    String::from_utf8(output.stdout).expect("text")
}

/// The part of a path within the repository that a mount `./HERE:THERE` names.
fn mounted(volume: &str) -> Option<PathBuf> {
    let here = volume.split(':').next()?.strip_prefix("./")?;
    Some(root().join(here))
}

#[test]
fn every_image_is_pinned_and_every_port_is_on_this_machine_alone() {
    let compose = compose();
    let mut ports = BTreeSet::new();
    for (name, service) in &compose.services {
        let image = service["image"].as_str().expect("an image");
        let named = image.split_once("@sha256:").map_or(image, |(named, _)| named);
        // Ours is built here; the registry's comment says why it has none.
        let is_known = image.len() == named.len() + "@sha256:".len() + 64;
        assert!(
            is_known || name == "registry" || named.starts_with("rollcall:"),
            "{name}: {image} has no digest"
        );
        let (_, tag) = named.rsplit_once(':').expect("a tag");
        assert!(
            tag.contains('.') && tag.contains(|c: char| c.is_ascii_digit()),
            "{name}: {image}"
        );
        for port in texts(&service["ports"]) {
            let parts: Vec<&str> = port.split(':').collect();
            let [address, host, within] = parts.as_slice() else {
                panic!("{name}: {port} is not ADDRESS:PORT:PORT");
            };
            assert_eq!(*address, "127.0.0.1", "{name}");
            assert!(within.parse::<u16>().is_ok());
            assert!(
                ports.insert(host.parse::<u16>().expect("a port")),
                "{name}: {host} is taken twice"
            );
        }
    }
    let version = concat!("rollcall:", env!("CARGO_PKG_VERSION"));
    for (name, service) in compose.ours() {
        assert_eq!(service["image"], version, "{name}");
    }
    let dockerfile = std::fs::read_to_string(root().join("Dockerfile")).expect("a Dockerfile");
    let user = dockerfile.lines().find_map(|line| line.strip_prefix("USER "));
    assert_eq!(user, Some("10001:10001"), "a user by number, and not root");
    for line in dockerfile.lines().filter(|line| line.starts_with("FROM ")) {
        assert!(line.contains("@sha256:"), "{line}");
    }
}

#[test]
fn what_is_mounted_and_waited_for_is_there() {
    let compose = compose();
    let built: Vec<_> = compose
        .services
        .iter()
        .filter(|(_, service)| !service["build"].is_null())
        .collect();
    assert_eq!(
        built.len(),
        1,
        "one tag that is built several times at once fails on a clean machine"
    );
    let (builder, _) = built[0];
    for (name, service) in compose.ours().filter(|(name, _)| *name != builder) {
        assert_eq!(service["pull_policy"], "never", "{name}: no registry has this image");
        let waits = service["depends_on"].as_object().expect("it waits for others").keys();
        assert!(
            waits.into_iter().any(|other| other == builder || other == "engine-1"),
            "{name}"
        );
    }
    for (name, service) in &compose.services {
        for volume in texts(&service["volumes"]) {
            match mounted(volume) {
                Some(path) => assert!(path.exists(), "{name}: {}", path.display()),
                None => {
                    let volume = volume.split(':').next().expect("a name");
                    assert!(compose.volumes.contains(volume), "{name}: {volume}");
                }
            }
        }
        let awaited: Vec<&str> = match &service["depends_on"] {
            Value::Object(awaited) => awaited.keys().map(String::as_str).collect(),
            list => texts(list),
        };
        for awaited in awaited {
            assert!(compose.services.contains_key(awaited), "{name}: {awaited}");
            let healthy = service["depends_on"][awaited]["condition"] == "service_healthy";
            assert!(
                !healthy || compose.services[awaited]["healthcheck"].is_object(),
                "{name}: {awaited}"
            );
        }
        if let Some(context) = service["build"].as_str() {
            assert!(root().join(context).join("Dockerfile").exists(), "{name}");
        }
    }
}

#[test]
fn the_program_knows_every_command_and_variable() {
    let compose = compose();
    for (name, service) in compose.ours() {
        let mut command = texts(&service["command"]);
        if command.is_empty() {
            command.push("serve");
        }
        command.push("--help");
        // Wherever its lines are broken.
        let help = rollcall(&command).split_whitespace().collect::<Vec<_>>().join(" ");
        for (variable, _) in variables(service) {
            assert!(variable.starts_with("ROLLCALL_"), "{name}: {variable}");
            let is_known = ["=", "]"]
                .iter()
                .any(|end| help.contains(&format!("[env: {variable}{end}")));
            assert!(is_known, "{name}: {command:?} does not know {variable}");
        }
    }
}

#[test]
fn engines_are_where_they_say_and_prometheus_asks_them_all() {
    let compose = compose();
    let engines = compose.engines();
    assert_eq!(engines.len(), 2);
    let mut wanted = BTreeSet::new();
    for name in engines {
        let service = &compose.services[name];
        let variables = variables(service);
        let (_, port) = variables["ROLLCALL_LISTEN"].rsplit_once(':').expect("a port");
        assert_eq!(variables["ROLLCALL_ADVERTISE"], format!("http://{name}:{port}"));
        let published = texts(&service["ports"]);
        assert!(published[0].ends_with(&format!(":{port}")), "{published:?}");
        wanted.insert(format!("{name}:{port}"));
        let kafka = compose.services["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"].as_str();
        let kafka = kafka.expect("listeners");
        assert!(kafka.contains(&format!("//{}", variables["ROLLCALL_KAFKA"])), "{kafka}");
        let at = |path: &str| {
            let volumes = texts(&service["volumes"]);
            volumes.iter().any(|volume| volume.split(':').nth(1) == Some(path))
        };
        assert!(at(variables["ROLLCALL_DATA"]), "{name}");
        // Without it the engines would not ask each other.
        let peer = variables["ROLLCALL_PEER_TOKEN_FILE"].strip_prefix("/run/secrets/");
        assert!(texts(&service["secrets"]).contains(&peer.expect("a secret")), "{name}");
        let checkpoints = variables["ROLLCALL_CHECKPOINTS"].strip_prefix("file://");
        assert!(at(checkpoints.expect("a directory")), "{name}");
    }
    let prometheus = yaml("ops/prometheus.yml");
    let job = &prometheus["scrape_configs"][0];
    let targets = texts(&job["static_configs"][0]["targets"]);
    assert_eq!(targets.into_iter().map(str::to_owned).collect::<BTreeSet<_>>(), wanted);

    let job = &prometheus["scrape_configs"][1];
    let gateway = variables(&compose.services["gateway-1"])["ROLLCALL_STATUS"];
    let (_, port) = gateway.rsplit_once(':').expect("a port");
    assert_eq!(
        texts(&job["static_configs"][0]["targets"]),
        [format!("gateway-1:{port}")]
    );
}

#[test]
fn every_secret_is_made_at_random_and_none_is_in_the_repository() {
    let compose = compose();
    // A copy of the script, so that the secrets of this machine are not touched.
    let copy = tempfile::tempdir().expect("a directory");
    let script = std::fs::read(root().join("scripts/compose-secrets")).expect("a script");
    let path = copy.path().join("scripts/compose-secrets");
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
    std::fs::write(&path, script).expect("written");
    let make = |more: &[&str]| {
        let output = Command::new("bash").arg(&path).args(more).output().expect("bash runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{said}");
        String::from_utf8(output.stdout).expect("text")
    };
    let printed = make(&[]);
    let read = |file: &str| std::fs::read_to_string(copy.path().join(file)).expect(file);
    let files: Vec<String> = compose
        .secrets
        .values()
        .map(|secret| {
            secret["file"]
                .as_str()
                .expect("a file")
                .trim_start_matches("./")
                .to_owned()
        })
        .collect();
    assert!(files.len() >= 5);
    let first: Vec<String> = files.iter().map(|file| read(file)).collect();
    for (file, secret) in files.iter().zip(&first) {
        assert!(secret.len() >= 64, "{file}");
        assert!(!printed.contains(secret.trim()), "it prints {file}");
        let ignored = Command::new("git")
            .args(["-c", "safe.directory=*", "check-ignore", "--quiet", file])
            .current_dir(root())
            .status();
        assert!(ignored.expect("git runs").success(), "git does not ignore {file}");
    }
    make(&[]);
    assert!(
        files.iter().zip(&first).all(|(file, was)| read(file) == *was),
        "what is there stays"
    );
    make(&["--renew"]);
    assert!(
        files.iter().zip(&first).all(|(file, was)| read(file) != *was),
        "all of them are made again"
    );

    let flags = Flags {
        token_file: Some(copy.path().join("ops/secrets/tokens")),
        ..Flags::default()
    };
    let tokens = flags
        .config()
        .expect("tokens that the engine takes")
        .tokens
        .expect("tokens");
    assert_eq!(tokens.len(), 3);
    let scopes = |file: &str| {
        let secret = read(file);
        let found = tokens.iter().find(|(token, _)| *token == secret);
        found.expect("one of them").1.clone()
    };
    let prometheus = scopes("ops/secrets/prometheus-token");
    assert!(prometheus.metrics && !prometheus.read && !prometheus.publish && !prometheus.admin);
    let gateway = scopes("ops/secrets/gateway-token");
    assert!(gateway.read && gateway.publish && !gateway.admin);
    assert!(scopes("ops/secrets/admin-token").admin);

    for (name, service) in &compose.services {
        for secret in texts(&service["secrets"]) {
            assert!(compose.secrets.contains_key(secret), "{name}: {secret}");
        }
        for (variable, value) in variables(service) {
            let is_secret = ["PASSWORD", "TOKEN", "SECRET", "JWT_KEY"]
                .iter()
                .any(|word| variable.contains(word));
            let Some(secret) = value.strip_prefix("/run/secrets/") else {
                assert!(!is_secret, "{name}: {variable} is in the file");
                continue;
            };
            assert!(
                texts(&service["secrets"]).contains(&secret),
                "{name}: {secret} is not mounted"
            );
        }
    }
    let grafana = variables(&compose.services["grafana"]);
    assert_eq!(grafana["GF_AUTH_ANONYMOUS_ENABLED"], "false");
    let prometheus = yaml("ops/prometheus.yml");
    let file = prometheus["scrape_configs"][0]["authorization"]["credentials_file"].as_str();
    assert_eq!(file, Some("/run/secrets/prometheus-token"));
}

#[test]
fn every_service_is_confined_and_says_whether_it_is_well() {
    let compose = compose();
    for (name, service) in &compose.services {
        assert_eq!(texts(&service["cap_drop"]), ["ALL"], "{name}");
        assert_eq!(texts(&service["security_opt"]), ["no-new-privileges:true"], "{name}");
        assert!(service["mem_limit"].is_string(), "{name}");
        let may_write = ["kafka", "registry"].contains(&name.as_str());
        assert_eq!(service["read_only"] == true, !may_write, "{name}");
        let check = &service["healthcheck"];
        if service["restart"] == "no" {
            assert_eq!(check["disable"], true, "{name}");
            continue;
        }
        assert!(texts(&check["test"]).len() >= 2, "{name}");
    }
    for (name, service) in compose
        .ours()
        .filter(|(_, service)| service["healthcheck"]["test"].is_array())
    {
        let check = texts(&service["healthcheck"]["test"]);
        let [_, program, arguments @ ..] = check.as_slice() else {
            panic!("{name}: {check:?}");
        };
        assert_eq!(*program, "rollcall");
        // It knows these arguments: nothing is there, which is not a mistake of the command line.
        let asked = Command::new(env!("CARGO_BIN_EXE_rollcall"))
            .args(arguments)
            .output()
            .expect("it runs");
        assert_eq!(
            asked.status.code(),
            Some(1),
            "{name}: {}",
            String::from_utf8_lossy(&asked.stderr)
        );
    }
    let registry = compose.services["registry"]["image"].as_str().expect("an image");
    assert!(
        !registry.contains("-mem"),
        "a registry that forgets its ids makes every record unreadable"
    );
    let pom = std::fs::read_to_string(root().join("scripts/kafka.pom.xml")).expect("a file");
    let tested = pom
        .split("<kafka.version>")
        .nth(1)
        .and_then(|rest| rest.split('<').next());
    let kafka = compose.services["kafka"]["image"].as_str().expect("an image");
    assert!(
        kafka.contains(&format!(":{}@", tested.expect("a version"))),
        "{kafka} is not the one that is tested"
    );
}

#[test]
fn grafana_finds_its_dashboard_and_prometheus() {
    let source = yaml("ops/grafana/provisioning/datasources/prometheus.yml")["datasources"][0].clone();
    let (_, port) = source["url"].as_str().expect("a URL").rsplit_once(':').expect("a port");
    let compose = compose();
    let published = texts(&compose.services["prometheus"]["ports"]).join(" ");
    assert!(published.ends_with(&format!(":{port}")), "{published}");
    let grafana = texts(&compose.services["grafana"]["volumes"]).join(" ");
    let dashboards = yaml("ops/grafana/provisioning/dashboards/rollcall.yml");
    let path = dashboards["providers"][0]["options"]["path"].as_str().expect("a path");
    assert!(grafana.contains(&format!(":{path}:")), "{grafana}");
}

/// The words of a text that begin with this.
fn beginning<'t>(text: &'t str, with: &str) -> BTreeSet<&'t str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|word| word.starts_with(with)).collect()
}

/// Templates are no YAML before Helm has rendered them, so they are read as text.
#[test]
fn the_chart_uses_commands_variables_and_probes_that_the_program_has() {
    let read = |path: &str| std::fs::read_to_string(root().join("ops/helm/rollcall").join(path)).expect(path);
    for (template, command) in [
        ("templates/engine.yaml", ["serve"].as_slice()),
        ("templates/gateway.yaml", &["gateway"]),
        ("templates/topics.yaml", &["topics", "create"]),
    ] {
        let text = read(template);
        let arguments = format!("args: [{}", command.join(", "));
        assert!(text.contains(&arguments), "{template} does not run {command:?}");
        let help = rollcall(&[command, &["--help"]].concat());
        let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
        let variables = beginning(&text, "ROLLCALL_");
        assert!(variables.len() > 2, "{template}");
        for variable in variables {
            let is_known = ["=", "]"]
                .iter()
                .any(|end| help.contains(&format!("[env: {variable}{end}")));
            assert!(is_known, "{template}: {command:?} does not know {variable}");
        }
        let probes: Vec<&str> = text.lines().filter(|line| line.contains("httpGet:")).collect();
        let expected = ["/healthz", "/healthz", "/readyz"];
        let is_server = command != ["topics", "create"];
        assert_eq!(probes.len(), if is_server { expected.len() } else { 0 }, "{template}");
        for (probe, path) in probes.iter().zip(expected) {
            assert!(probe.contains(&format!("path: {path},")), "{template}: {probe}");
        }
    }
    let chart = yaml("ops/helm/rollcall/Chart.yaml");
    let version = env!("CARGO_PKG_VERSION");
    assert_eq!(
        (&chart["version"], &chart["appVersion"]),
        (&version.into(), &version.into())
    );
    let values = yaml("ops/helm/rollcall/values.yaml");
    assert_eq!(values["image"]["tag"], version);
    let schema: Value = serde_json::from_str(&read("values.schema.json")).expect("JSON");
    let keys = |value: &Value| -> BTreeSet<String> { value.as_object().expect("an object").keys().cloned().collect() };
    let mut described = keys(&schema["properties"]);
    // Helm's own.
    described.remove("global");
    assert_eq!(keys(&values), described);
    // The keys of the Secret are those of the page, which a person creates it from.
    let page = std::fs::read_to_string(root().join("docs/kubernetes.md")).expect("a page");
    let templates = [read("templates/engine.yaml"), read("templates/gateway.yaml")].concat();
    for (_, rest) in templates
        .match_indices("/run/secrets/rollcall/")
        .map(|(at, found)| templates.split_at(at + found.len()))
    {
        let key = rest.split('}').next().expect("a key");
        assert!(page.contains(&format!("--from-literal={key}=")), "{key}");
    }
}
