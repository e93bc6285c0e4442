//! `rollcall gateway`: the WebSocket gateway as a separate process, connected to an engine.

use super::descriptors;
use super::directories;
use super::signals::Signals;
use super::status;
use super::traces::Traces;
use crate::backoff;
use crate::clock::{Clock, SystemClock};
use crate::config::gateway::{Config, Flags};
use crate::config::{LogFormat, LogLevel, SecretUrl, address};
use crate::gateway::uplink::Unavailable;
use crate::gateway::uplink::http::HttpUplink;
use crate::gateway::{self, Gateway, GatewayState};
use crate::tasks::{self, End};
use crate::tls::trusting;
use anyhow::{Context as _, anyhow};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

/// While the engine cannot be used, a warning is logged after 1, 2, 4 … tries, and also after every 64 tries.
const WARN_EVERY: u32 = 64;

/// Accepts clients' WebSockets and publishes their connection events to an engine
///
/// docs/gateway.md describes the protocol and the guarantees.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Address that clients connect to
    #[arg(
        long,
        value_name = "ADDR:PORT",
        env = "ROLLCALL_GATEWAY",
        default_value = "127.0.0.1:8090",
        value_parser = address::listen
    )]
    pub listen: SocketAddr,
    /// The HTTP interface of `rollcall serve`
    #[arg(
        long,
        value_name = "URL",
        env = "ROLLCALL_ENGINE",
        default_value = "http://127.0.0.1:8080",
        hide_env_values = true
    )]
    pub engine: SecretUrl,
    /// File with the engine's bearer token, which needs the scopes read and publish
    #[arg(long, value_name = "FILE", env = "ROLLCALL_ENGINE_TOKEN_FILE")]
    pub engine_token_file: Option<PathBuf>,
    /// CA certificates (PEM) that an https:// engine must have its certificate from, instead of those of this machine
    #[arg(long, value_name = "FILE", env = "ROLLCALL_ENGINE_CA_FILE")]
    pub engine_ca_file: Option<PathBuf>,
    /// Directory for the epoch and for events that wait to be published; created if it does not exist
    #[arg(
        long,
        value_name = "DIR",
        env = "ROLLCALL_GATEWAY_DATA",
        default_value = "rollcall-gateway"
    )]
    pub data: PathBuf,
    /// Address that serves /metrics, /healthz and /readyz, without a token [default: not served]
    #[arg(long, value_name = "ADDR:PORT", env = "ROLLCALL_STATUS", value_parser = address::listen)]
    pub status: Option<SocketAddr>,
    /// Format of the log on standard error
    #[arg(long, value_enum, env = "ROLLCALL_LOG_FORMAT", default_value = "human")]
    pub log_format: LogFormat,
    /// Lowest level that is logged
    #[arg(long, value_enum, env = "ROLLCALL_LOG_LEVEL", default_value = "info")]
    pub log_level: LogLevel,
    #[command(flatten)]
    pub edge: Flags,
}

/// Returns why new clients may not be sent here.
fn troubles(edge: Option<&Arc<GatewayState>>) -> Vec<String> {
    edge.map_or_else(|| vec!["the gateway is starting".to_owned()], |edge| edge.troubles())
}

pub fn run(args: Args) -> anyhow::Result<()> {
    directories::keep_to_ourselves();
    let config = args.edge.clone().config(args.listen, args.data.clone())?;
    let token = match &args.engine_token_file {
        None => None,
        Some(file) => Some(
            std::fs::read_to_string(file)
                .with_context(|| format!("cannot read {} (--engine-token-file)", file.display()))?,
        ),
    };
    if let Some(ca) = &args.engine_ca_file {
        // A file that cannot be used ends the start, and is not retried for ever.
        drop(trusting(reqwest::Client::builder(), Some(ca)).context("--engine-ca-file cannot be used")?);
    }
    super::logging::start(args.log_format, args.log_level);
    let files = descriptors::raise();
    tracing::info!(open_files = files.limit, open_files_before = files.before, "limits");
    let token_file = args
        .engine_token_file
        .iter()
        .map(|path| ("the token for the engine", path.clone()));
    for (what, path) in token_file.chain(args.edge.secret_files()) {
        directories::warn_if_others_read(what, &path);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("cannot start the async runtime")?;
    let served = runtime.block_on(gateway(args, config, token.as_deref().map(str::trim)));
    runtime.shutdown_background();
    served
}

async fn gateway(args: Args, config: Config, token: Option<&str>) -> anyhow::Result<()> {
    let instead = "it hands the traces of its clients to the engine, which exports them; set it there";
    Traces::none_of("rollcall gateway", instead);
    let mut signals = Signals::listen()?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let listener = match args.status {
        None => None,
        Some(address) => {
            let listener = status::bind(address).await?;
            if status::is_exposed(address) {
                tracing::warn!(%address, "--status is not a loopback address: other machines can read /metrics without a token");
            }
            Some(listener)
        }
    };
    let running: Arc<OnceLock<Arc<GatewayState>>> = Arc::default();
    if let Some(listener) = listener {
        let edge = running.clone();
        let serving = async move {
            status::serve(listener, move || troubles(edge.get())).await;
            End::Failed("it returned".to_owned())
        };
        tasks::spawn_async("status", serving);
    }
    let tls = config.tls.is_some();
    let mut tries = 0u32;
    let mut backoff = backoff::UPLINK.start();
    let starting = async {
        let uplink = loop {
            tries += 1;
            let ca = args.engine_ca_file.as_deref();
            match HttpUplink::open_with(args.engine.reveal().as_str(), token, ca).await {
                Ok(uplink) => break uplink,
                Err(Unavailable(why)) if u32::is_power_of_two(tries) || tries.is_multiple_of(WARN_EVERY) => {
                    tracing::warn!(
                        tries,
                        "cannot use the engine at {} (--engine), retrying: {why}",
                        args.engine
                    );
                }
                Err(_) => {}
            }
            tokio::time::sleep(backoff.pause()).await;
        };
        let started = Gateway::start(config, Arc::new(uplink), clock).await;
        started.map_err(|error| match error {
            gateway::Error::Listen { .. } => anyhow!("{error}; another port can be chosen with --listen"),
            error => error.into(),
        })
    };
    let Some(started) = signals.unless_stopped(starting).await else {
        return Ok(());
    };
    let mut gateway = started?;
    // /readyz reports the gateway's state from now on.
    let _ = running.set(gateway.edge().clone());
    let scheme = if tls { "wss" } else { "ws" };
    // A closed standard output does not prevent serving.
    let _ = writeln!(std::io::stdout(), "clients  {scheme}://{}", gateway.address());
    let superseded = tokio::select! {
        () = signals.asked_to_stop() => None,
        error = gateway.superseded() => Some(error),
    };
    let Some(error) = superseded else {
        gateway.stop(true).await;
        return Ok(());
    };
    gateway.abandon().await;
    Err(error.into())
}
