//! `rollcall load`: simulates many people on real connections, and checks every change that they cause.

use super::logging;
use crate::clock::SystemClock;
use crate::config::units::{Seconds, Span};
use crate::config::{LogFormat, LogLevel, SecretUrl};
use crate::load::{Settings, run as run_load};
use anyhow::{Context as _, bail};
use clap::value_parser;
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;

/// Opens many real WebSocket connections that behave like people, and checks every change
///
/// Each person has a phone and a web page. One action at a time, a person logs in, loses the connection, is killed, is
/// replaced by another device and comes back, and expects the change that the action must cause. Prints a JSON report; ends
/// with status 2 if a change was missing or unexpected. The policy must have closed_ms 0. docs/gateway.md explains the report.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Address of a gateway; if given several times, each connection uses one of them
    #[arg(long = "gateway", value_name = "URL", default_value = "ws://127.0.0.1:8090", value_parser = websocket)]
    pub gateways: Vec<String>,
    /// The HTTP interface of `rollcall serve`
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:8080",
        hide_env_values = true
    )]
    pub engine: SecretUrl,
    /// File with the engine's bearer token, which needs the scope read
    #[arg(long, value_name = "FILE")]
    pub engine_token_file: Option<PathBuf>,
    /// CA certificates (PEM) that an https:// engine must have its certificate from, instead of those of this machine
    #[arg(long, value_name = "FILE")]
    pub engine_ca_file: Option<PathBuf>,
    /// File with the secret that signs people's tokens (HS256); without it the gateway must be insecure
    #[arg(long, value_name = "FILE")]
    pub jwt_secret: Option<PathBuf>,
    /// Number of people, each with one connection most of the time
    #[arg(long, value_name = "COUNT", default_value = "1000", value_parser = value_parser!(u32).range(1..=1_000_000))]
    pub people: u32,
    /// Duration of the run in seconds; then every connection is closed
    #[arg(long, value_name = "SECONDS", default_value_t = Span(60_000))]
    pub seconds: Seconds,
    /// Average time between two actions of a person, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = Span(30_000))]
    pub action_seconds: Seconds,
    /// New connections per second during ramp-up
    #[arg(long, value_name = "COUNT", default_value = "1000", value_parser = value_parser!(u64).range(1..=100_000))]
    pub connect_rate: u64,
    /// Time between two storms in seconds, 0 for none; in a storm the network of many people fails at once
    #[arg(long, value_name = "SECONDS", default_value_t = Span(60_000))]
    pub storm_seconds: Seconds,
    /// Percentage of people affected by each storm
    #[arg(long, value_name = "PERCENT", default_value = "10", value_parser = value_parser!(u64).range(0..=100))]
    pub storm_percent: u64,
    /// Number of addresses of 127.0.0.0/8 to connect from, if the gateway is on this machine
    #[arg(long, value_name = "COUNT", default_value = "20", value_parser = value_parser!(u32).range(1..=10_000))]
    pub addresses: u32,
    /// Seed of the random numbers: the same seed gives the same people
    #[arg(long, value_name = "NUMBER", default_value = "1")]
    pub seed: u64,
    /// File that the report is written to, in addition to standard output
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// Reads `ws://HOST:PORT`.
fn websocket(text: &str) -> Result<String, String> {
    const FORM: &str = "give ws://HOST:PORT, such as ws://127.0.0.1:8090";
    let Some(authority) = text.strip_prefix("ws://") else {
        return Err(match text.split_once("://") {
            Some(("wss", _)) => format!("is wss://, and the load generator speaks no TLS: {FORM}"),
            Some((scheme, _)) => format!("begins with {scheme}://: {FORM}"),
            None => format!("does not begin with ws://: {FORM}"),
        });
    };
    match authority.trim_end_matches('/').rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && !host.contains(['/', '@']) && port.parse::<u16>().is_ok() => {
            Ok(text.to_owned())
        }
        _ => Err(format!("has no host and port behind ws://: {FORM}")),
    }
}

/// A setting in whole seconds, within bounds.
fn whole_seconds(name: &'static str, value: Seconds, least: u64, most: u64) -> anyhow::Result<u64> {
    let ms = Seconds::within(name, Some(value), 0, least * 1_000, most * 1_000)?;
    if !ms.is_multiple_of(1_000) {
        bail!("--{name} must be a whole number of seconds, not {value}");
    }
    Ok(ms / 1_000)
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let read = |file: &Option<PathBuf>| match file {
        None => Ok(None),
        Some(file) => std::fs::read(file)
            .map(|bytes| Some(bytes.trim_ascii().to_vec()))
            .with_context(|| format!("cannot read {}", file.display())),
    };
    let token = read(&args.engine_token_file)?;
    let settings = Settings {
        gateways: args.gateways.clone(),
        engine: args.engine.clone(),
        engine_token: token.map(|token| String::from_utf8_lossy(&token).into_owned()),
        engine_ca: args.engine_ca_file.clone(),
        secret: read(&args.jwt_secret)?,
        people: args.people as usize,
        seconds: whole_seconds("seconds", args.seconds, 1, 86_400)?,
        action_seconds: whole_seconds("action-seconds", args.action_seconds, 1, 3_600)?,
        connect_rate: args.connect_rate,
        storm_seconds: whole_seconds("storm-seconds", args.storm_seconds, 0, 86_400)?,
        storm_percent: args.storm_percent,
        addresses: args.addresses as usize,
        seed: args.seed,
    };
    logging::start(LogFormat::Human, LogLevel::Info);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("cannot start the async runtime")?;
    let report = runtime.block_on(run_load(settings, Arc::new(SystemClock::new())))?;
    runtime.shutdown_background();
    let mut text = serde_json::to_string_pretty(&report).context("cannot write the report as JSON")?;
    text.push('\n');
    if let Some(file) = &args.report {
        std::fs::write(file, &text).with_context(|| format!("cannot write {}", file.display()))?;
    }
    std::io::stdout()
        .write_all(text.as_bytes())
        .context("cannot print the report")?;
    if !report.is_exact() {
        bail!(
            "{} changes were missing and {} unexpected",
            report.changes_missing,
            report.changes_unexpected
        );
    }
    Ok(())
}
