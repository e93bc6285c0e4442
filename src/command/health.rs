//! `rollcall health`: asks a running process whether it is ready, for containers and scripts without curl.

use crate::cause::{is_of_tls, reason};
use crate::config::SecretUrl;
use crate::tls::trusting;
use reqwest::Url;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

/// Asks a running server whether it is ready: exit status 0 if it is, else 1
///
/// Prints one line. It is meant for health checks of containers: HEALTHCHECK CMD ["rollcall", "health"].
#[derive(clap::Args)]
pub struct Args {
    /// The server, as http://HOST:PORT or https://HOST:PORT, of which /readyz is asked; or a URL with a path, such as /healthz at a gateway's --status
    #[arg(
        long,
        value_name = "URL",
        env = "ROLLCALL_HEALTH_URL",
        default_value = "http://127.0.0.1:8080",
        hide_env_values = true
    )]
    url: String,
    /// CA certificates (PEM) that an https:// server must have its certificate from, instead of those of this machine
    #[arg(long, value_name = "FILE", env = "ROLLCALL_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// Accepts any certificate, such as one for another name than 127.0.0.1, whatever --ca-file says. Nothing secret is sent
    #[arg(long, env = "ROLLCALL_HEALTH_ANY_CERTIFICATE", value_parser = clap::builder::BoolishValueParser::new())]
    any_certificate: bool,
}

/// Shorter than the usual time-out of a container's health check.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The most that is read of an answer.
const ANSWER_BYTES_MAX: usize = 64 << 10;
/// The most that is shown of an answer.
const SHOWN_CHARS_MAX: usize = 500;

/// Asks, prints one line, and returns the exit status: 0 when the server is ready, else 1.
pub fn run(args: Args) -> u8 {
    match ask(&args) {
        // Its reader may be gone. What counts is the exit status.
        Ok(answer) => {
            let _ = writeln!(std::io::stdout(), "{answer}");
            0
        }
        Err(why) => {
            let _ = writeln!(std::io::stderr(), "{why}");
            1
        }
    }
}

fn ask(args: &Args) -> Result<String, String> {
    let wrong = |why: &str| format!("--url cannot be used: {why}; give http://HOST:PORT or https://HOST:PORT");
    let url = args
        .url
        .parse::<SecretUrl>()
        .map_err(|problem| format!("--url cannot be used: it {problem}"))?;
    let mut url = url.reveal().clone();
    if url.path() == "/" {
        url.set_path("/readyz");
    }
    let mut shown = url.clone();
    // The log of a container must not show a password.
    if shown.set_username("").and(shown.set_password(None)).is_err() {
        return Err(wrong("it has no host"));
    }
    if args.any_certificate && shown != url {
        return Err(wrong(
            "it has a user or a password, which --any-certificate would give to anybody",
        ));
    }
    // The process is on this machine or named by the operator: never behind a proxy.
    let client = reqwest::Client::builder().no_proxy().timeout(TIMEOUT);
    let client = if args.any_certificate {
        // What such an answer says about where to ask next may be anybody's.
        client
            .tls_danger_accept_invalid_certs(true)
            .redirect(reqwest::redirect::Policy::none())
    } else if url.scheme() == "http" {
        // A container without CA certificates has a health check too.
        client.tls_certs_only([])
    } else {
        trusting(client, args.ca_file.as_deref()).map_err(|error| format!("--ca-file cannot be used: {error}"))?
    };
    let client = client
        .build()
        .map_err(|error| format!("an HTTP client cannot be created: {}", reason(error)))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("the async runtime cannot be started: {error}"))?;
    runtime.block_on(answer(&client, url, &shown))
}

async fn answer(client: &reqwest::Client, url: Url, shown: &Url) -> Result<String, String> {
    let answer = client.get(url).send().await;
    let mut answer = answer.map_err(|error| match is_of_tls(&error) {
        true => format!("{shown} answers, but {}", reason(error)),
        false => format!("{shown} does not answer: {}", reason(error)),
    })?;
    let status = answer.status();
    let mut body = Vec::new();
    while body.len() < ANSWER_BYTES_MAX {
        let chunk = answer.chunk().await;
        let chunk = chunk.map_err(|error| {
            format!(
                "{shown} answered {status}, but its body cannot be read: {}",
                reason(error)
            )
        })?;
        match chunk {
            Some(chunk) => body.extend_from_slice(&chunk),
            None => break,
        }
    }
    let body = String::from_utf8_lossy(&body);
    let body = one_line(&message(&body).unwrap_or(body.into_owned()));
    match status.is_success() {
        true => Ok(body),
        false => Err(format!("{shown} answered {status}: {body}")),
    }
}

/// Returns the message of an error response, if the body is one of ours.
fn message(body: &str) -> Option<String> {
    let body: serde_json::Value = serde_json::from_str(body).ok()?;
    Some(body["error"]["message"].as_str()?.to_owned())
}

/// Joins an answer's lines: it may have warnings, one per line.
fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text.split(['\n', '\r']).filter(|line| !line.is_empty()).collect();
    let shown = |c: &char| !c.is_control();
    lines.join("; ").chars().filter(shown).take(SHOWN_CHARS_MAX).collect()
}
