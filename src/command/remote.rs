//! A running server, asked over HTTP: the flags of every command that speaks to one, and the client that they share.

use crate::cause::reason;
use crate::config::{Credential, SecretUrl};
use anyhow::{Context as _, anyhow, bail};
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;
use tokio::runtime::Runtime;

/// For one answer. A server waits for an offset for half of it.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which server, and how its answers are shown.
#[derive(clap::Args, Clone, Debug)]
pub struct Server {
    /// The HTTP interface of a running server; of several on Kafka any one
    #[arg(
        long,
        value_name = "URL",
        env = "ROLLCALL_URL",
        default_value = "http://127.0.0.1:8080",
        hide_env_values = true
    )]
    url: SecretUrl,
    /// A bearer token of the server. On the command line others on this machine can see it
    #[arg(
        long,
        value_name = "TOKEN",
        env = "ROLLCALL_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    token: Option<Credential>,
    /// A file with the bearer token in its first line
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Prints the server's answer as JSON, for programs, and not as a table for people
    #[arg(long)]
    pub json: bool,
}

/// A connection to a server, for one command.
pub struct Client {
    http: reqwest::Client,
    runtime: Runtime,
    url: SecretUrl,
    token: Option<Credential>,
}

/// An answer as it came.
pub struct Response(Vec<u8>);

#[derive(Deserialize)]
struct Refused {
    error: Fault,
}

#[derive(Deserialize)]
struct Fault {
    message: String,
}

impl Server {
    /// Reads the token; asks nothing yet.
    pub fn client(&self) -> anyhow::Result<Client> {
        let token = match &self.token_file {
            Some(file) => Some(Credential::read(file, "server's token")?),
            None => self.token.clone(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        // Nothing is between an operator and the server, whatever the environment says of proxies.
        let http = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build();
        Ok(Client {
            http: http.context("no HTTP client can be made")?,
            runtime: runtime.context("the runtime cannot be started")?,
            url: self.url.clone(),
            token,
        })
    }
}

impl Client {
    pub fn get(&self, path: &str) -> anyhow::Result<Response> {
        self.ask(Method::GET, path, None)
    }

    pub fn post(&self, path: &str, body: &Value) -> anyhow::Result<Response> {
        self.ask(Method::POST, path, Some(body))
    }

    /// Where it asks, without a password.
    pub fn url(&self) -> &SecretUrl {
        &self.url
    }

    fn ask(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Response> {
        let url = format!("{}/{path}", self.url.reveal().as_str().trim_end_matches('/'));
        let mut request = self.http.request(method, url);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.reveal());
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let answered = self.runtime.block_on(async {
            let answer = request.send().await?;
            Ok((answer.status(), answer.bytes().await?))
        });
        let (status, body) = answered.map_err(|error| {
            let (url, why) = (&self.url, reason(error));
            anyhow!("no server answers at {url} (--url): {why}; start one with `rollcall serve`, or give its URL")
        })?;
        if status.is_success() {
            return Ok(Response(body.to_vec()));
        }
        let said = serde_json::from_slice::<Refused>(&body).map(|refused| refused.error.message);
        let (url, Ok(said)) = (&self.url, said) else {
            bail!(
                "{} (--url) answered {status}, which is not the answer of a Rollcall server; is the URL right?",
                self.url
            );
        };
        match status {
            StatusCode::UNAUTHORIZED => {
                bail!("{url} refuses the request: {said}; give a bearer token with --token-file, or in ROLLCALL_TOKEN")
            }
            StatusCode::FORBIDDEN => bail!("{url} refuses the request: {said}"),
            StatusCode::SERVICE_UNAVAILABLE => bail!("{url} cannot answer now, try again: {said}"),
            _ => bail!("{url} answered {}: {said}", status.as_u16()),
        }
    }
}

impl Response {
    pub fn read<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        serde_json::from_slice(&self.0).context("the server's answer is not what was expected; is it another version?")
    }

    /// Prints it as it came, in one line.
    pub fn print(&self) -> anyhow::Result<()> {
        let mut output = std::io::stdout().lock();
        output.write_all(self.0.trim_ascii_end())?;
        output.write_all(b"\n")?;
        Ok(())
    }
}

/// Runs a command that prints; a reader that has seen enough is no error.
pub fn printed(result: anyhow::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if super::is_broken_pipe(&error) => Ok(()),
        other => other,
    }
}
