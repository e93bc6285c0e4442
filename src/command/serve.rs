//! `rollcall serve`: the engine on one machine.

use crate::clock::{Clock, SystemClock};
use crate::config::{Config, Flags, LogFormat, LogLevel};
use crate::engine::{Engine, Tuning};
use crate::gateway::Gateway;
use crate::gateway::uplink::log::LogUplink;
use crate::http::Face;
use crate::log::local::{LocalLog, Settings};
use crate::log::{Log, NewRecord, Topic};
use crate::presence::{Offset, Partition};
use crate::schema::{avro, json};
use anyhow::{Context as _, anyhow};
use axum::serve::ListenerExt as _;
use std::io::{IsTerminal as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};

/// How long open requests may take to end once the process is told to stop.
const GRACEFUL: Duration = Duration::from_millis(1_500);

pub fn run(flags: Flags) -> anyhow::Result<()> {
    let config = flags.config()?;
    start_logging(config.log_format, config.log_level);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    runtime
        .context("the runtime cannot be started")?
        .block_on(serve(config))
}

pub(super) fn start_logging(format: LogFormat, level: LogLevel) {
    let level = level.name();
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(level));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        LogFormat::Human => builder.with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
}

async fn serve(config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let listener = TcpListener::bind(config.listen).await.map_err(|error| {
        anyhow!(
            "cannot listen on {}: {error}; another port can be chosen with --listen",
            config.listen
        )
    })?;
    let listen = listener.local_addr().context("the listener has no address")?;
    std::fs::create_dir_all(&config.data)
        .with_context(|| format!("the data directory {} cannot be made", config.data.display()))?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let log: Arc<dyn Log> = Arc::new(open_log(&config, clock.clone())?);
    bootstrap(&config, &log).await?;
    let tuning = Tuning {
        cached_users: config.cached_users,
        ..Tuning::default()
    };
    let engine = Arc::new(Engine::start(log.clone(), Some(&config.data), clock.clone(), tuning)?);
    let (stop, stopping) = watch::channel(false);
    let face = Face::new(engine.clone(), config.tokens.as_deref(), listen, stopping.clone());
    announce(&config, listen, log.partitions());
    let mut gateway = None;

    let listener = listener.tap_io(|stream| {
        // Answers are small and wanted at once; a failure only costs time.
        let _ = stream.set_nodelay(true);
    });
    let mut until = stopping.clone();
    let served = axum::serve(listener, face.router()).with_graceful_shutdown(async move {
        let _ = until.wait_for(|stopping| *stopping).await;
    });
    let server = tokio::spawn(served.into_future());
    let demo = config.demo.map(|users| {
        let token = config.tokens.as_ref().and_then(|tokens| {
            let admin = tokens.iter().find(|(_, scopes)| scopes.publish);
            admin.map(|(token, _)| token.clone())
        });
        let url = format!("http://{listen}");
        crate::demo::start(crate::demo::Settings { url, token, users }, clock.clone())
    });

    if let Some(config) = &config.gateway {
        let uplink = Arc::new(LogUplink::new(engine.clone()));
        let starting = Gateway::start(config.clone(), uplink, clock.clone());
        gateway = tokio::select! {
            started = starting => Some(started?),
            () = signals.told() => None,
        };
        if let Some(gateway) = &gateway {
            let scheme = if config.tls.is_some() { "wss" } else { "ws" };
            let _ = writeln!(std::io::stdout(), "clients  {scheme}://{}", gateway.address());
        }
    }
    match &mut gateway {
        Some(running) => tokio::select! {
            () = signals.told() => {}
            error = running.superseded() => {
                // The engine is nobody else's, so it goes on.
                tracing::error!("{error}; no more WebSockets are served here");
                if let Some(gateway) = gateway.take() {
                    gateway.abandon().await;
                }
                signals.told().await;
            }
        },
        None if config.gateway.is_some() => {}
        None => signals.told().await,
    }
    tracing::info!("stopping");
    if let Some(gateway) = gateway {
        gateway.stop(false).await;
    }
    let began = clock.monotonic();
    if let Some(demo) = demo {
        // It may be in the middle of a request, which is answered.
        tokio::task::spawn_blocking(move || demo.stop())
            .await
            .context("the demo did not end")?;
    }
    stop.send_replace(true);
    if tokio::time::timeout(GRACEFUL, server).await.is_err() {
        // They end with the runtime; the engine does not wait for them.
        tracing::warn!("some connections were still open and are cut");
    }
    tokio::task::spawn_blocking(move || engine.stop())
        .await
        .context("the engine did not end")??;
    drop(log);
    tracing::info!(
        took_ms = clock.monotonic().saturating_sub(began).as_millis() as u64,
        "stopped"
    );
    Ok(())
}

fn open_log(config: &Config, clock: Arc<dyn Clock>) -> anyhow::Result<LocalLog> {
    let settings = Settings {
        partitions: config.partitions,
        retention_ms: Some(config.retention_ms),
        retention_bytes: Some(config.retention_bytes),
        ..Settings::default()
    };
    Ok(LocalLog::open(&super::log_directory(&config.data), settings, clock)?)
}

/// Writes the first policy to every partition of an empty log: from then on the log alone says everything.
async fn bootstrap(config: &Config, log: &Arc<dyn Log>) -> anyhow::Result<()> {
    let partitions = (0..log.partitions()).map(Partition);
    for partition in partitions.clone() {
        if log.range(Topic::Events, partition)?.end > Offset(0) {
            if config.policy_given {
                tracing::warn!("--policy is for an empty log and is left aside; publish a `policy` event instead");
            }
            return Ok(());
        }
    }
    let mut value = Vec::new();
    avro::encode_event(&json::policy_event(config.policy.clone()), &mut value);
    let record = NewRecord { key: None, value };
    let (acknowledge, acknowledged) = oneshot::channel();
    log.append(
        partitions.map(|partition| (partition, record.clone())).collect(),
        Box::new(move |result| {
            let _ = acknowledge.send(result);
        }),
    );
    acknowledged
        .await
        .context("the log closed")?
        .context("the first policy cannot be written")?;
    Ok(())
}

/// One line a thing that somebody wants to know.
fn announce(config: &Config, listen: std::net::SocketAddr, partitions: u32) {
    let shown = |path: &Path| {
        path.canonicalize()
            .unwrap_or_else(|_| path.to_owned())
            .display()
            .to_string()
    };
    let mut lines = vec![
        format!("rollcall {}", env!("CARGO_PKG_VERSION")),
        format!("data     {} ({partitions} partitions)", shown(&config.data)),
        format!("console  http://{listen}/"),
        format!("events   POST http://{listen}/v1/events"),
        format!("changes  GET http://{listen}/v1/changes"),
    ];
    match &config.tokens {
        Some(tokens) => lines.push(format!("access   {} bearer tokens", tokens.len())),
        None => lines.push("access   everybody on this machine".to_owned()),
    }
    if let Some(users) = config.demo {
        lines.push(format!("demo     {users} simulated users"));
    }
    // A closed standard output is no reason not to serve.
    let _ = writeln!(std::io::stdout(), "{}", lines.join("\n"));
}

/// What tells the process to stop. Listened for from the beginning, so that no moment is left at which it would end in
/// the middle of something.
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub(super) fn listen() -> anyhow::Result<Signals> {
        Ok(Signals {
            terminate: signal(SignalKind::terminate()).context("SIGTERM cannot be listened for")?,
            interrupt: signal(SignalKind::interrupt()).context("SIGINT cannot be listened for")?,
        })
    }

    pub(super) async fn told(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
