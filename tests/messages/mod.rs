//! Wrong command lines, and what their errors must name: the input (flag, variable or line), what was expected, and what to do.
//! None of them connects to a server, so each ends at once.

use std::path::Path;
use std::process::{Command, Output, Stdio};

const SECRET: &str = "hunter2secret";

struct Run<'a> {
    directory: &'a Path,
    environment: &'a [(&'a str, &'a str)],
}

impl Run<'_> {
    fn output(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_rollcall"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ROLLCALL_")) {
            command.env_remove(name);
        }
        command
            .args(arguments)
            .envs(self.environment.iter().copied())
            .current_dir(self.directory)
            .stdin(Stdio::null())
            .output()
            .expect("it runs")
    }

    /// What it says as it refuses.
    #[track_caller]
    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        let said = String::from_utf8(output.stderr).expect("UTF-8");
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
        assert!(output.stdout.is_empty(), "{arguments:?}");
        assert!(said.starts_with("error: "), "{arguments:?}: {said}");
        for foreign in [
            "(os error",
            "invalid digit",
            "relative URL",
            "address syntax",
            "Local:",
            "expected u32",
        ] {
            assert!(!said.contains(foreign), "{arguments:?}: {said}");
        }
        said
    }
}

fn here(directory: &Path) -> Run<'_> {
    Run {
        directory,
        environment: &[],
    }
}

/// Each must be refused with all of these words.
#[track_caller]
fn all_refused(directory: &Path, mistakes: &[(&[&str], &[&str])]) {
    for (arguments, words) in mistakes {
        let said = here(directory).refused(arguments);
        for word in *words {
            assert!(said.contains(word), "{arguments:?} says nothing of {word:?}: {said}");
        }
    }
}

#[test]
fn an_address_to_listen_on_is_told_in_its_own_words_whichever_flag_takes_it() {
    let directory = tempfile::tempdir().expect("a directory");
    let flags = [
        ("serve", "--listen"),
        ("serve", "--gateway"),
        ("gateway", "--listen"),
        ("gateway", "--status"),
    ];
    for (command, flag) in flags {
        for (value, says) in [
            ("8080", "127.0.0.1:8080"),
            ("127.0.0.1", "has no port"),
            ("127.0.0.1:x", "0 to 65535"),
            ("127.0.0.1:70000", "0 to 65535"),
            (":8080", "0.0.0.0:8080"),
            ("::1:8080", "[::1]:8080"),
            ("http://127.0.0.1:8080", "is a URL"),
            ("", "ADDR:PORT"),
        ] {
            let said = here(directory.path()).refused(&[command, flag, value]);
            assert!(said.starts_with(&format!("error: {flag}: {value:?} ")), "{said}");
            assert!(said.contains(says), "{said}");
            assert_eq!(said.lines().count(), 1, "{said}");
        }
    }
    let file = directory.path().join("settings.toml");
    for (text, words) in [
        ("listen = \"8080\"\n", ["line 1, `listen`", "127.0.0.1:8080"]),
        ("# remark\ngateway = \":1\"\n", ["line 2, `gateway`", "0.0.0.0:1"]),
    ] {
        std::fs::write(&file, text).expect("written");
        all_refused(directory.path(), &[(&["serve", "--config", "settings.toml"], &words)]);
    }
}

#[test]
fn a_value_from_the_environment_is_told_by_the_name_of_its_variable() {
    let directory = tempfile::tempdir().expect("a directory");
    for (command, variable, value, words) in [
        (
            "serve",
            "ROLLCALL_PARTITIONS",
            "abc",
            ["\"abc\" is not a whole number", "1 to 1024"],
        ),
        (
            "serve",
            "ROLLCALL_LISTEN",
            "8080",
            ["\"8080\" is a port alone", "127.0.0.1:8080"],
        ),
        (
            "serve",
            "ROLLCALL_LOG_LEVEL",
            "inf",
            ["error, warn, info, debug", "did you mean \"info\""],
        ),
        (
            "serve",
            "ROLLCALL_RETENTION_HOURS",
            "0",
            ["must be 1 to 876000, not 0", "--retention-hours"],
        ),
        (
            "serve",
            "ROLLCALL_DEMO",
            "-1",
            ["\"-1\" is out of bounds", "1 to 100000"],
        ),
        (
            "serve",
            "ROLLCALL_CHECKPOINT_EVERY",
            "10m",
            ["--checkpoint-every", "requires --checkpoints"],
        ),
        ("serve", "ROLLCALL_GROUP", "g", ["--group", "requires --kafka"]),
        (
            "serve",
            "ROLLCALL_REGISTRY",
            "registry:8081",
            ["(not shown)", "http://HOST:PORT"],
        ),
        (
            "serve",
            "ROLLCALL_GATEWAY_INSECURE",
            "perhaps",
            ["\"perhaps\"", "--gateway-insecure"],
        ),
        (
            "gateway",
            "ROLLCALL_ENGINE",
            "localhost",
            ["(not shown)", "http://HOST:PORT"],
        ),
        (
            "gateway",
            "ROLLCALL_LEASE_MS",
            "1x",
            ["\"1x\" is not a whole number, nor", "ms, s, m, h or d"],
        ),
        (
            "gateway",
            "ROLLCALL_STATUS",
            "9090",
            ["127.0.0.1:9090", "is a port alone"],
        ),
        ("webhook", "ROLLCALL_WEBHOOK_PARALLEL", "0", ["1 to 1024", "--parallel"]),
        (
            "webhook",
            "ROLLCALL_WEBHOOK_TO",
            "chat.example.com/hook",
            ["(not shown)", "https://HOST"],
        ),
        (
            "topics check",
            "ROLLCALL_TOPIC_PREFIX",
            "x",
            ["--kafka", "ROLLCALL_KAFKA"],
        ),
    ] {
        let run = Run {
            directory: directory.path(),
            environment: &[(variable, value)],
        };
        let said = run.refused(&command.split(' ').collect::<Vec<_>>());
        assert!(said.contains(variable) || variable == "ROLLCALL_TOPIC_PREFIX", "{said}");
        for word in words {
            assert!(said.contains(word), "{variable}={value}: {said}");
        }
    }
    // What is typed wins, and is what is named.
    let run = Run {
        directory: directory.path(),
        environment: &[("ROLLCALL_PARTITIONS", "abc")],
    };
    let said = run.refused(&["serve", "--partitions", "xyz"]);
    assert!(said.contains("xyz") && !said.contains("ROLLCALL_"), "{said}");
    // Both sides of a conflict.
    let run = Run {
        directory: directory.path(),
        environment: &[("ROLLCALL_WEBHOOK_KAFKA", "127.0.0.1:1")],
    };
    let said = run.refused(&["webhook", "--to", "http://h/", "--engine", "http://127.0.0.1:1"]);
    assert!(
        said.contains("--engine") && said.contains("ROLLCALL_WEBHOOK_KAFKA"),
        "{said}"
    );
}

#[test]
fn a_settings_file_is_told_by_line_and_key_and_what_the_key_takes() {
    let directory = tempfile::tempdir().expect("a directory");
    for (text, words) in [
        (
            "listn = \"127.0.0.1:1\"\n",
            &["line 1, `listn`", "did you mean \"listen\""][..],
        ),
        (
            "colour = 1\n",
            &["line 1, `colour`", "there is no such setting", "--help"],
        ),
        ("\nlisten = 127.0.0.1:1\n", &["line 2, `listen`", "quotes"]),
        ("data = /var/lib/rollcall\n", &["line 1, `data`", "quotes"]),
        (
            "partitions = \"four\"\n",
            &["line 1, `partitions`", "a whole number without quotes", "1 to 1024"],
        ),
        ("partitions = -1\n", &["line 1, `partitions`", "negative", "1 to 1024"]),
        (
            "partitions = 2\nretention_hours = 0\n",
            &["line 2: retention_hours", "must be 1 to 876000, not 0"],
        ),
        (
            "retention_hours = \"30m\"\n",
            &["line 1: retention_hours", "must be 1h to 36500d, not 30m"],
        ),
        (
            "retention_mib = \"64MB\"\n",
            &["line 1, `retention_mib`", "one of the units B, KiB, MiB or GiB"],
        ),
        ("start_wait = 60\n", &["line 1, `start_wait`", "one of the units ms, s"]),
        (
            "registry_register = \"yes\"\n",
            &["`registry_register`", "true or false"],
        ),
        ("kafka_set = \"a=b\"\n", &["`kafka_set`", "a list such as"]),
        ("tim_key = 5\n", &["`tim_key`", "a text in quotes"]),
        ("log_format = \"yaml\"\n", &["`log_format`", "human", "json"]),
        ("lease_ms = 5000\n", &["`lease_ms`", "belongs under [edge]"]),
        (
            "[edge]\nlisten = \"127.0.0.1:1\"\n",
            &["line 2, `listen`", "beginning of the file"],
        ),
        (
            "[edge]\nlease_msx = 1\n",
            &["line 2, `lease_msx`", "did you mean \"lease_ms\""],
        ),
        (
            "gateway = \"127.0.0.1:0\"\n[edge]\ngateway_insecure = true\nlease_ms = 5\n",
            &["line 4: lease_ms", "1000 to"],
        ),
        ("partitions =\n", &["line 1", "partitions"]),
        ("group = \"g\"\n", &["line 1: group", "requires --kafka"]),
        ("partitions 4\n", &["line 1"]),
    ] {
        std::fs::write(directory.path().join("settings.toml"), text).expect("written");
        let said = here(directory.path()).refused(&["serve", "--config", "settings.toml"]);
        for word in words.iter().chain(&["settings.toml"]) {
            assert!(said.contains(word), "{text:?} says nothing of {word:?}: {said}");
        }
        assert_eq!(said.lines().count(), 1, "{said}");
    }
    assert!(!directory.path().join("rollcall-data").exists(), "nothing was made");
}

#[test]
fn every_other_mistake_names_its_input_and_the_way_out() {
    let directory = tempfile::tempdir().expect("a directory");
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).expect("written");
    write("file", "x");
    write("half.json", "{\n");
    write("key.json", "{\"logn\": \"multi\"}");
    write("nested.json", "{\"platforms\": {\"web\": {\"timout_ms\": 1}}}");
    write("half", "{\"offset\":1,");
    write("word", "{\"offset\":1,\"ts\":2,\"type\":tick}");
    let serve = ["serve", "--listen", "127.0.0.1:0"];
    let serve = |more: &[&'static str]| [&serve[..], more].concat();
    all_refused(
        directory.path(),
        &[
            (&["serve", "--prot", "8081"], &["--prot", "--listen"]),
            (&["serve", "--bind", "x"], &["did you mean --listen"]),
            (&["serve", "--data-dir", "x"], &["'--data'"]),
            (&["gateway", "--url", "x"], &["did you mean --engine"]),
            (&serve(&["--data", "file"]), &["file is a file", "--data"]),
            (
                &serve(&["--policy", "half.json"]),
                &["half.json", "ends too early", "line 2"],
            ),
            (&serve(&["--policy", "key.json"]), &["logn", "did you mean \"login\""]),
            (
                &serve(&["--policy", "nested.json"]),
                &["timout_ms", "platforms.web", "timeout_ms"],
            ),
            (
                &serve(&["--checkpoints", "/var/backup"]),
                &["--checkpoints", "file:///var/backup"],
            ),
            (
                &serve(&["--kafka", "127.0.0.1:1", "--checkpoints", "ftp://x/y"]),
                &["--checkpoints", "file:///DIRECTORY", "s3://"],
            ),
            (
                &serve(&["--kafka", "127.0.0.1:1", "--registry", "h:1"]),
                &["--registry", "http://"],
            ),
            (
                &serve(&["--kafka", "127.0.0.1:http"]),
                &["--kafka", "HOST:PORT", "http"],
            ),
            (&serve(&["--kafka", "127.0.0.1:1,"]), &["--kafka", "HOST:PORT"]),
            (&serve(&["--kafka", "127.0.0.1:1", "--kafka-set", "acks=1"]), &["acks"]),
            (
                &serve(&["--kafka", "127.0.0.1:1", "--advertise", "10.0.0.1:80"]),
                &["--advertise", "http://"],
            ),
            (
                &serve(&["--kafka", "127.0.0.1:1", "--advertise", "http://u:p@10.0.0.1"]),
                &["--advertise", "nothing more", "***@"],
            ),
            (
                &serve(&["--kafka", "127.0.0.1:1", "--partitions", "4"]),
                &["--partitions", "rollcall topics create"],
            ),
            (
                &serve(&["--checkpoint-every", "10s"]),
                &["--checkpoint-every", "--checkpoints"],
            ),
            (
                &serve(&["--checkpoints", "file:///x", "--checkpoint-every", "25h"]),
                &["--checkpoint-every", "1s to 1d"],
            ),
            (
                &serve(&["--gateway", "127.0.0.1:0", "--tls-key", "k", "--jwt-key", "k"]),
                &["--tls-key", "--tls-cert"],
            ),
            (
                &serve(&["--gateway", "127.0.0.1:0", "--jwks", "ftp://h/k"]),
                &["--jwks", "http://"],
            ),
            (
                &["log", "events", "--data", "nowhere"],
                &["nowhere", "--data", "rollcall-data"],
            ),
            (&["log", "events", "--kafka", "localhost:x"], &["--kafka", "HOST:PORT"]),
            (&["fold", "half"], &["line 1", "ends too early"]),
            (&["fold", "no-such-file"], &["no-such-file"]),
            (&["load", "--gateway", "127.0.0.1:8090"], &["--gateway", "ws://"]),
            (&["load", "--gateway", "wss://h:1"], &["--gateway", "no TLS", "ws://"]),
            (
                &["load", "--gateway", "ws://127.0.0.1"],
                &["--gateway", "ws://127.0.0.1:8090"],
            ),
            (&["load", "--people", "0"], &["--people", "1 to 1000000"]),
            (
                &["load", "--engine", "http://127.0.0.1:1"],
                &["http://127.0.0.1:1", "--engine", "connection refused"],
            ),
            (
                &["webhook", "--to", "chat.example.com/hook"],
                &["--to", "http:// or https://"],
            ),
            (
                &["webhook", "--to", "http://h/", "--timeout-ms", "1"],
                &["--timeout-ms", "100 to 60000"],
            ),
            (&["webhook"], &["--to", "ROLLCALL_WEBHOOK_TO"]),
            (&["gateway", "--engine", "127.0.0.1:8080"], &["--engine", "http://"]),
            (&["gateway"], &["--jwt-key", "--gateway-insecure"]),
            (&["topics", "check", "--kafka", ""], &["--kafka", "HOST:PORT"]),
        ],
    );
    let said = here(directory.path()).refused(&["fold", "word"]);
    for clause in said.trim_end().split("because: ") {
        assert_eq!(said.matches(clause).count(), 1, "said twice: {said}");
    }
    let said = here(directory.path()).refused(&["load", "--engine", "http://127.0.0.1:1"]);
    assert_eq!(said.matches("http://127.0.0.1:1").count(), 1, "{said}");
    assert!(!said.contains("because"), "{said}");
    assert!(!directory.path().join("rollcall-data").exists(), "nothing was made");
}

/// Every flag and variable that may hold a password, with what makes it fail.
#[test]
fn no_password_is_in_an_error_or_in_the_help() {
    let directory = tempfile::tempdir().expect("a directory");
    let wrong = [
        format!("user:{SECRET}@nowhere"),
        format!("ftp://user:{SECRET}@h/x?token={SECRET}"),
        format!("{SECRET}@host"),
        format!("http://u:{SECRET}@[::1"),
    ];
    let base: [&[&str]; 7] = [
        &["serve", "--kafka", "127.0.0.1:1", "--registry"],
        &["serve", "--kafka", "127.0.0.1:1", "--advertise"],
        &["serve", "--checkpoints"],
        &["webhook", "--to"],
        &["webhook", "--to", "http://h/", "--engine"],
        &["gateway", "--gateway-insecure", "--engine"],
        &["load", "--engine"],
    ];
    for base in base {
        for url in &wrong {
            let said = here(directory.path()).refused(&[base, &[url.as_str()]].concat());
            assert!(!said.contains(SECRET), "{base:?} {url}: {said}");
        }
    }
    let url = format!("http://u:{SECRET}@127.0.0.1:1/x?k={SECRET}");
    let said = here(directory.path()).refused(&["load", "--engine", &url]);
    assert!(
        said.contains("http://***@127.0.0.1:1") && !said.contains(SECRET),
        "{said}"
    );
    let config = directory.path().join("settings.toml");
    for text in [
        format!("tim_app = 1\ntim_key = \"{SECRET}\" oops\n"),
        format!("tim_app = 1\ntim_key = [\"{SECRET}\"]\n"),
        format!("kafka_set = \"sasl.password={SECRET}\"\n"),
        format!("registry = \"user:{SECRET}@h\"\n"),
        format!("advertise = \"ftp://user:{SECRET}@h\"\n"),
        format!("partitions = \"{SECRET}\"\n"),
        format!("tim_key = {SECRET}\n"),
    ] {
        std::fs::write(&config, &text).expect("written");
        let said = here(directory.path()).refused(&["serve", "--config", "settings.toml"]);
        assert!(!said.contains(SECRET), "{text}: {said}");
    }
    let tokens = directory.path().join("tokens");
    for text in [
        format!("my {SECRET} read\n"),
        format!("0123456789abcdef{SECRET}\n"),
        format!("0123456789abcdef read,{SECRET}\n"),
    ] {
        std::fs::write(&tokens, &text).expect("written");
        let said = here(directory.path()).refused(&["serve", "--token-file", "tokens"]);
        assert!(!said.contains(SECRET), "{text}: {said}");
    }
    let url = format!("http://u:{SECRET}@h");
    let environment: Vec<(&str, &str)> = [
        "ROLLCALL_REGISTRY",
        "ROLLCALL_ADVERTISE",
        "ROLLCALL_CHECKPOINTS",
        "ROLLCALL_JWKS",
        "ROLLCALL_ENGINE",
        "ROLLCALL_WEBHOOK_TO",
        "ROLLCALL_WEBHOOK_ENGINE",
        "ROLLCALL_TIM_KEY",
        "ROLLCALL_TOKEN",
        "ROLLCALL_URL",
    ]
    .map(|name| (name, url.as_str()))
    .into();
    for command in [
        "serve",
        "gateway",
        "webhook",
        "load",
        "log",
        "fold",
        "topics create",
        "topics check",
    ] {
        let run = Run {
            directory: directory.path(),
            environment: &environment,
        };
        let output = run.output(&[&command.split(' ').collect::<Vec<_>>()[..], &["--help"]].concat());
        let help = String::from_utf8(output.stdout).expect("UTF-8");
        assert!(output.status.success() && !help.contains(SECRET), "{command}: {help}");
    }
}

#[test]
fn an_example_without_arguments_says_how_it_is_used() {
    let examples = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    for (program, file) in [("python3", "publish.py"), ("node", "publish.js")] {
        let output = Command::new(program).arg(examples.join(file)).output().expect(program);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(
            said.starts_with("usage: ") && said.contains("BOOTSTRAP USER TEXT"),
            "{said}"
        );
    }
}
