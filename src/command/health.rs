//! `rollcall health`: asks a running process whether it is ready, for containers and scripts without curl.

use crate::config::SecretUrl;
use std::time::Duration;

/// Asks a running server whether it is ready: exit status 0 if it is, else 1
///
/// Prints one line. It is meant for health checks of containers: HEALTHCHECK CMD ["rollcall", "health"].
#[derive(clap::Args)]
pub struct Args {
    /// The server, as http://HOST:PORT, of which /readyz is asked; or a URL with a path, such as /healthz at a gateway's --status
    #[arg(
        long,
        value_name = "URL",
        env = "ROLLCALL_HEALTH_URL",
        default_value = "http://127.0.0.1:8080",
        hide_env_values = true
    )]
    url: String,
}

/// Shorter than the usual time-out of a container's health check.
const TIMEOUT: Duration = Duration::from_secs(5);
/// The most that is read of an answer.
const ANSWER_BYTES_MAX: u64 = 64 << 10;
/// The most that is shown of an answer.
const SHOWN_CHARS_MAX: usize = 500;

/// Asks, prints one line, and returns the exit status: 0 when the server is ready, else 1.
pub fn run(args: Args) -> u8 {
    match ask(&args.url) {
        Ok(answer) => {
            println!("{answer}");
            0
        }
        Err(why) => {
            eprintln!("{why}");
            1
        }
    }
}

fn ask(url: &str) -> Result<String, String> {
    let wrong = |why: &str| format!("--url cannot be used: {why}; give http://HOST:PORT");
    let url = url
        .parse::<SecretUrl>()
        .map_err(|problem| format!("--url cannot be used: it {problem}"))?;
    let mut url = url.reveal().clone();
    if url.scheme() != "http" {
        return Err(wrong("it does not begin with http://"));
    }
    if url.path() == "/" {
        url.set_path("/readyz");
    }
    let mut shown = url.clone();
    // The log of a container must not show a password.
    if shown.set_username("").and(shown.set_password(None)).is_err() {
        return Err(wrong("it has no host"));
    }
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(TIMEOUT))
        // The process is on this machine or named by the operator: never behind a proxy.
        .proxy(None)
        .build();
    let answer = ureq::Agent::new_with_config(config).get(url.as_str()).call();
    let mut answer = answer.map_err(|error| format!("{shown} does not answer: {error}"))?;
    let status = answer.status();
    let body = answer.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
    let body = body.map_err(|error| format!("{shown} answered {status}, but its body cannot be read: {error}"))?;
    let body = one_line(&message(&body).unwrap_or(body));
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
