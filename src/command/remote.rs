//! Asks a running server over HTTP: the flags and the client that several commands share.

use crate::api::client::{self as api, ClientError, RouteRequest};
use crate::api::routes::RouteId;
use crate::cause::{is_answered, reason};
use crate::config::{Credential, SecretUrl};
use crate::tls::trusting;
use anyhow::{Context as _, bail};
use reqwest::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;
use tokio::runtime::Runtime;

/// The time-out of one request. A server waits half as long for an offset.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Which server is asked, and how its answers are shown.
#[derive(clap::Args, Clone, Debug)]
pub struct Server {
    /// The HTTP interface of a running server; with several nodes on Kafka, any of them [default: http://127.0.0.1:8080]
    #[arg(long, value_name = "URL", env = "ROLLCALL_URL", hide_env_values = true)]
    url: Option<SecretUrl>,
    /// A bearer token of the server. Other users of this machine can see it on the command line
    #[arg(
        long,
        value_name = "TOKEN",
        env = "ROLLCALL_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    token: Option<Credential>,
    /// File with the bearer token in its first line
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// CA certificates (PEM) that an https:// server must have its certificate from, instead of those of this machine
    #[arg(long, value_name = "FILE", env = "ROLLCALL_CA_FILE")]
    ca_file: Option<PathBuf>,
    /// Prints the server's answer as JSON instead of a table
    #[arg(long)]
    pub json: bool,
}

/// A connection to a server, for one command.
pub struct Client {
    server: api::Client,
    runtime: Runtime,
    url: SecretUrl,
}

/// No connection to a server could be made.
#[derive(Debug, thiserror::Error)]
#[error("no server answers at {url} (--url): {why}; start one with `rollcall serve`, or give the URL of one that runs")]
pub struct NoServer {
    url: SecretUrl,
    why: String,
}

/// The body of a successful answer, unchanged.
pub struct Response {
    route: RouteId,
    body: Vec<u8>,
}

/// The server that is asked without a flag and a setting.
const DEFAULT_URL: &str = "http://127.0.0.1:8080";

impl Server {
    /// Whether a flag or a setting names the server.
    pub fn is_named(&self) -> bool {
        self.url.is_some()
    }

    /// Reads the token and returns a client. Sends no request yet.
    pub fn client(&self) -> anyhow::Result<Client> {
        let token = match &self.token_file {
            Some(file) => Some(Credential::read(file, "server's token")?),
            None => self.token.clone(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        // Requests never use a proxy, also if the environment names one.
        let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT);
        let http = trusting(http, self.ca_file.as_deref()).context("--ca-file cannot be used")?;
        let http = http.build().context("cannot create an HTTP client")?;
        let token = token.as_ref().map(|token| token.reveal());
        let url = match &self.url {
            Some(url) => url.clone(),
            None => DEFAULT_URL.parse().expect("it is a URL"),
        };
        Ok(Client {
            server: api::Client::new(http, url.reveal(), token),
            runtime: runtime.context("cannot start the async runtime")?,
            url,
        })
    }
}

impl Client {
    pub fn get(&self, route: RouteId) -> anyhow::Result<Response> {
        self.send(RouteRequest::new(route, &[]))
    }

    pub fn post(&self, route: RouteId, body: &impl Serialize) -> anyhow::Result<Response> {
        let body = serde_json::to_vec(body)?;
        self.send(RouteRequest::new(route, &[]).with_body(body))
    }

    pub fn send(&self, asked: RouteRequest) -> anyhow::Result<Response> {
        let route = asked.route();
        let answered = self.runtime.block_on(self.server.send_bytes(asked));
        self.answer(route, answered)
    }

    /// The server's URL, displayed without its password.
    pub fn url(&self) -> &SecretUrl {
        &self.url
    }

    fn answer(&self, route: RouteId, answered: Result<Vec<u8>, ClientError>) -> anyhow::Result<Response> {
        let url = &self.url;
        let (status, message) = match answered {
            Ok(body) => return Ok(Response { route, body }),
            Err(ClientError::Unreached(error)) if error.is_timeout() && !error.is_connect() => bail!(
                "the server at {url} (--url) gave no answer within {} s: it hangs, its process is stopped, or another program \
                 listens there",
                TIMEOUT.as_secs()
            ),
            Err(ClientError::Unreached(error)) if is_answered(&error) => {
                bail!("a server answers at {url} (--url), but {}", reason(error))
            }
            Err(ClientError::Unreached(error)) => {
                let no_server = NoServer {
                    url: url.clone(),
                    why: reason(error),
                };
                return Err(no_server.into());
            }
            Err(ClientError::Refused {
                status, is_ours: false, ..
            }) => bail!(
                "{url} (--url) answered {status} without an error message of Rollcall; check that this is the URL of a \
                 Rollcall server"
            ),
            Err(ClientError::Refused { status, detail, .. }) => (status, detail.message),
            Err(error @ ClientError::Unreadable { .. }) => return Err(error.into()),
        };
        match status {
            StatusCode::UNAUTHORIZED => {
                bail!(
                    "{url} refuses the request: {message}; give a bearer token with --token-file, or in ROLLCALL_TOKEN"
                )
            }
            StatusCode::FORBIDDEN => bail!("{url} refuses the request: {message}"),
            StatusCode::SERVICE_UNAVAILABLE => bail!("{url} cannot answer now, try again: {message}"),
            _ => bail!("{url} answered {}: {message}", status.as_u16()),
        }
    }
}

impl Response {
    pub fn read<T: DeserializeOwned>(&self) -> anyhow::Result<T> {
        let read = api::read(self.route, &self.body);
        read.context("cannot read the server's answer; check that the server has the version of this command")
    }

    /// Prints the body unchanged, in one line.
    pub fn print(&self) -> anyhow::Result<()> {
        let mut output = std::io::stdout().lock();
        output.write_all(self.body.trim_ascii_end())?;
        output.write_all(b"\n")?;
        Ok(())
    }
}

/// Maps the result of a command that prints: a closed pipe is not an error.
pub fn printed(result: anyhow::Result<()>) -> anyhow::Result<()> {
    match result {
        Err(error) if super::is_broken_pipe(&error) => Ok(()),
        other => other,
    }
}
