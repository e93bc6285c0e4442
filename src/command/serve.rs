//! `rollcall serve`: the engine, on one machine or as one node of many on Kafka.

use super::first_policy;
use crate::checkpoint::Checkpoints;
use crate::clock::{Clock, SystemClock};
use crate::config::gateway::Admission;
use crate::config::{Config, DEFAULT_GROUP, Flags, Invalid, LogFormat, LogLevel};
use crate::engine::{Engine, Keeper, Outside, Tuning};
use crate::gateway::uplink::log::LogUplink;
use crate::gateway::{self, Gateway};
use crate::http::{Edge, Face, Peers};
use crate::log::kafka::settings::{Connection, DEFAULT_PREFIX};
use crate::log::kafka::{KafkaLog, Member, Node, admin};
use crate::log::local::{LocalLog, Settings};
use crate::log::{self, Alone, Group, Log, NewRecord, Topic};
use crate::presence::{Offset, Partition};
use crate::registry::{self, Registry, Schemas};
use crate::schema::avro::Schema;
use crate::schema::json;
use anyhow::{Context as _, anyhow, bail};
use axum::serve::ListenerExt as _;
use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tracing::Level;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

const POLICY_REFUSED: &str = "is for a new log, and this log has records and began with another policy; to change the \
                              rules publish a `policy` event (rollcall policy set FILE), or start with --policy-if-new, \
                              which ignores the file";
/// How long open requests may take to end once the process is told to stop.
const GRACEFUL: Duration = Duration::from_millis(1_500);
/// How far apart transactions with outputs begin on Kafka at least: each takes milliseconds of a core.
const OUTPUT_COMMIT_MS: u64 = 20;
/// At start a registry that does not answer is asked again so often, so far apart.
const REGISTRY_TRIES: u32 = 60;
const REGISTRY_PAUSE: Duration = Duration::from_secs(1);
/// A record that is so far ahead of this machine's clock is not folded.
const AHEAD_MS: u64 = 5 * 60 * 1_000;
/// How long brokers may take to answer when it starts.
const REACH_MS: u64 = 30_000;
/// How long brokers may take to hear of topics.
const NEWS_MS: u64 = 5_000;

pub fn run(flags: Flags) -> anyhow::Result<()> {
    let config = flags.config()?;
    super::cluster::check(&config)?;
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
    // At `trace` this library logs whole frames, and the first may hold a token.
    let without_frames =
        filter_fn(|metadata| *metadata.level() < Level::TRACE || !metadata.target().starts_with("tungstenite"));
    match format {
        LogFormat::Human => builder.with_target(false).finish().with(without_frames).init(),
        LogFormat::Json => builder.json().finish().with(without_frames).init(),
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
    make_data(&config.data)?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let _alone = lock(&config.data)?;
    let Opened {
        log,
        group,
        peers,
        tuning,
    } = open(&config, listen, clock.clone()).await?;
    let outside = outside(&config).await?;
    bootstrap(&config, &log, &outside.schemas).await?;
    let engine = Engine::join(log.clone(), group, Some(&config.data), clock.clone(), tuning, outside)?;
    let engine = Arc::new(engine);
    let (stop, stopping) = watch::channel(false);
    let mut face = Face::new(
        engine.clone(),
        config.tokens.as_deref(),
        listen,
        peers,
        stopping.clone(),
    );
    if let Some(tim) = config.tim.clone() {
        // With it the other nodes are asked.
        let reader = config.tokens.iter().flatten().find(|(_, scopes)| scopes.read);
        let token = reader.map(|(token, _)| token.as_str());
        face = face.with_tim(tim, clock.clone(), token);
    }
    let (edge, edges) = watch::channel(None);
    face = face.with_edge(edges);
    announce(&config, listen, log.partitions());
    let mut gateway = None;
    let mut told = false;

    let listener = listener.tap_io(|stream| {
        // Answers are small and wanted at once; a failure only costs time.
        let _ = stream.set_nodelay(true);
    });
    let mut until = stopping.clone();
    tokio::spawn(face.clone().keep_history());
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
            started = starting => match started {
                Ok(gateway) => Some(gateway),
                // It came out of the log, where anybody may have put it: no reason to end the engine.
                Err(error @ gateway::Error::Epoch(gateway::epoch::Error::NoneLeft { .. })) => {
                    tracing::error!("{error}; no WebSockets are served here");
                    None
                }
                Err(error @ gateway::Error::Listen { .. }) => {
                    bail!("{error}; another port can be chosen with --gateway")
                }
                Err(error) => return Err(error.into()),
            },
            () = signals.told() => {
                told = true;
                None
            }
        };
        if let Some(gateway) = &gateway {
            edge.send_replace(Some(Edge {
                address: gateway.address(),
                tls: config.tls.is_some(),
                token: config.admission != Admission::Insecure,
            }));
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
                edge.send_replace(None);
                if let Some(gateway) = gateway.take() {
                    gateway.abandon().await;
                }
                signals.told().await;
            }
        },
        None if told => {}
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

/// The log, and what of the engine depends on where it is.
struct Opened {
    log: Arc<dyn Log>,
    group: Box<dyn Group>,
    peers: Option<Peers>,
    tuning: Tuning,
}

async fn open(config: &Config, listen: SocketAddr, clock: Arc<dyn Clock>) -> anyhow::Result<Opened> {
    let tuning = Tuning {
        cached_users: config.cached_users,
        hash_seed: super::hash_seed(),
        ..Tuning::default()
    };
    let Some(kafka) = &config.kafka else {
        let log: Arc<dyn Log> = Arc::new(open_log(config, clock)?);
        return Ok(Opened {
            group: Box::new(Alone::new(log.partitions())),
            log,
            peers: None,
            tuning,
        });
    };
    let connection = Connection::new(
        &kafka.bootstrap,
        kafka.topic_prefix.as_deref(),
        kafka.properties.as_deref(),
        &kafka.set.0,
    )?;
    let url = kafka.advertise.clone().unwrap_or_else(|| format!("http://{listen}"));
    let group = kafka.group.clone();
    let started_ms = clock.now_ms();
    // Two processes have not both the same address and the same moment.
    let id = blake3::hash(format!("{url} {} {started_ms}", std::process::id()).as_bytes()).to_hex();
    let id = id[..8].to_owned();
    let reach = move || reach(&connection, &group, &url, &id, &clock);
    let reached = tokio::task::spawn_blocking(reach).await;
    let (log, member) = reached.context("Kafka was not reached")??;
    Ok(Opened {
        peers: Some(Peers::new(log.owners().clone(), &log.node().url)?),
        log,
        group: Box::new(member),
        tuning: Tuning {
            output_commit_ms: OUTPUT_COMMIT_MS,
            ahead_ms: Some(AHEAD_MS),
            accepted: kafka.accepted,
            ..tuning
        },
    })
}

/// Connects and joins. Brokers may be starting too: what may pass by itself is tried for a while.
fn reach(
    connection: &Connection,
    group: &str,
    url: &str,
    id: &str,
    clock: &Arc<dyn Clock>,
) -> anyhow::Result<(Arc<KafkaLog>, Member)> {
    let began_ms = clock.monotonic_ms();
    let mut told = false;
    loop {
        let reached = judged(connection).and_then(|partitions| {
            let log = KafkaLog::connect(
                Node {
                    connection: connection.clone(),
                    group: group.to_owned(),
                    url: url.to_owned(),
                    id: id.to_owned(),
                    partitions,
                },
                clock.clone(),
            )?;
            let member = log.join()?;
            Ok((log, member))
        });
        let error = match reached {
            Ok(reached) => return Ok(reached),
            Err(error) => error,
        };
        let patience_ms = patience_ms(&error);
        if clock.monotonic_ms() >= began_ms + patience_ms {
            return Err(error);
        }
        if patience_ms == REACH_MS && !std::mem::replace(&mut told, true) {
            tracing::warn!("{error}; trying again for {} s", REACH_MS / 1_000);
        }
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// For how long, from the start on, what went wrong may pass by itself; 0: it will not.
fn patience_ms(error: &anyhow::Error) -> u64 {
    if error.is::<Refused>() {
        // Not every broker has heard of what was made a moment ago.
        return NEWS_MS;
    }
    let may_pass = error.chain().any(|cause| {
        matches!(cause.downcast_ref(), Some(log::Error::Read(_) | log::Error::Write(_)))
            || matches!(
                cause.downcast_ref(),
                Some(admin::Error::Unreachable { .. } | admin::Error::Failed { .. })
            )
    });
    if may_pass { REACH_MS } else { 0 }
}

/// What is wrong with the topics, and what mends it.
#[derive(Debug, thiserror::Error)]
#[error("the engine cannot start on these topics: {0}")]
struct Refused(String);

/// How many partitions the topics have; refuses topics that would break the rules.
fn judged(connection: &Connection) -> anyhow::Result<u32> {
    let checked = admin::check(connection)?;
    let refusals: Vec<String> = checked.refusals().map(ToString::to_string).collect();
    if !refusals.is_empty() {
        return Err(Refused(refusals.join("; ")).into());
    }
    for finding in &checked.findings {
        tracing::warn!("{finding}");
    }
    Ok(checked.partitions)
}

/// The registry, which must answer before anything is written, and the place of checkpoints.
async fn outside(config: &Config) -> anyhow::Result<Outside> {
    let prefix = config.kafka.as_ref().and_then(|kafka| kafka.topic_prefix.clone());
    let group = config
        .kafka
        .as_ref()
        .map_or(DEFAULT_GROUP, |kafka| kafka.group.as_str());
    let schemas = match config.registry.clone() {
        Some(registry) => {
            let runtime = Handle::current();
            let asked = move || ask_registry(&registry, prefix.as_deref().unwrap_or(DEFAULT_PREFIX), runtime);
            tokio::task::spawn_blocking(asked)
                .await
                .context("the registry was not asked")??
        }
        None => Schemas::default(),
    };
    let keeper = match &config.checkpoints {
        Some(settings) => {
            let environment = std::env::vars();
            let runtime = Handle::current();
            let checkpoints = Checkpoints::open(&settings.url, group, settings.kept, environment, runtime)?;
            let waiting = config.data.join("checkpoints");
            let keeper = Keeper::start(checkpoints, settings.every_ms, waiting.clone());
            let keeper = keeper.with_context(|| format!("{} cannot be made", waiting.display()))?;
            Some(Arc::new(keeper))
        }
        None => None,
    };
    Ok(Outside { schemas, keeper })
}

fn ask_registry(settings: &crate::config::Registry, prefix: &str, runtime: Handle) -> Result<Schemas, registry::Error> {
    let registry = Registry::new(settings.url.reveal().as_str(), runtime)?;
    let subject = |schema: Schema| {
        let topic = match schema {
            Schema::Event => "events",
            Schema::Change => "changes",
            Schema::Kick => "kicks",
            Schema::UserState => "current",
            Schema::Quarantined => "quarantine",
        };
        format!("{prefix}.{topic}-value")
    };
    let mut tries = 0;
    loop {
        let framing = match settings.register {
            true => registry.register(subject),
            false => registry.look_up(subject),
        };
        match framing {
            Ok(framing) => return Ok(Schemas::of(registry, framing)),
            Err(error @ registry::Error::Unreachable { .. }) if tries < REGISTRY_TRIES => {
                if tries == 0 {
                    tracing::warn!(%error, "trying again");
                }
                tries += 1;
                std::thread::sleep(REGISTRY_PAUSE);
            }
            Err(error) => return Err(error),
        }
    }
}

fn make_data(data: &Path) -> anyhow::Result<()> {
    let shown = data.display();
    std::fs::create_dir_all(data).map_err(|error| match data.is_file() {
        true => anyhow!("the data directory {shown} is a file; name a directory with --data"),
        false => anyhow!("the data directory {shown} cannot be made: {error}; another one can be chosen with --data"),
    })
}

/// One process has the data directory, whoever else may reach it. The lock goes with the process.
fn lock(data: &Path) -> anyhow::Result<File> {
    let path = data.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("{} cannot be made", path.display()))?;
    if file.try_lock().is_err() {
        let shown = data.display();
        bail!("the data directory {shown} is in use by another process; another one can be chosen with --data");
    }
    Ok(file)
}

/// The first records of a new log get a time that the next ones are judged by.
const CLOCK_MIN_MS: u64 = 1_735_689_600_000;

fn open_log(config: &Config, clock: Arc<dyn Clock>) -> anyhow::Result<LocalLog> {
    let settings = Settings {
        partitions: config.partitions,
        retention_ms: Some(config.retention_ms),
        retention_bytes: Some(config.retention_bytes),
        accepted_time_ms: config.accepted_time_ms,
        ..Settings::default()
    };
    let log = LocalLog::open(&super::log_directory(&config.data), settings, clock.clone())?;
    let mut ends = (0..log.partitions()).map(|partition| log.range(Topic::Events, Partition(partition)));
    let is_new = ends.all(|range| range.is_ok_and(|range| range.end == Offset(0)));
    if is_new && clock.now_ms() < CLOCK_MIN_MS {
        bail!(
            "this machine's clock is before 2025, and the first records of a new log would get its time; set the clock, \
             then start"
        );
    }
    Ok(log)
}

/// Writes the first policy to every partition of an empty log: from then on the log alone says everything.
///
/// On Kafka only if one was asked for: many processes start at once there, and without any record the default is in force.
async fn bootstrap(config: &Config, log: &Arc<dyn Log>, schemas: &Schemas) -> anyhow::Result<()> {
    if config.kafka.is_some() && !config.policy_given {
        return Ok(());
    }
    let partitions = (0..log.partitions()).map(Partition);
    for partition in partitions.clone() {
        if log.range(Topic::Events, partition)?.end > Offset(0) {
            if config.policy_given && config.policy_if_new {
                tracing::info!("the log has records, so the policy of --policy was ignored");
            } else if config.policy_given && !first_policy::is_first(config, log, schemas)? {
                bail!(Invalid::new("policy", POLICY_REFUSED));
            }
            return Ok(());
        }
    }
    let mut value = Vec::new();
    schemas.encode_event(&json::policy_event(config.policy.clone()), &mut value);
    let record = NewRecord { key: None, value };
    let (acknowledge, acknowledged) = oneshot::channel();
    log.append_together(
        partitions.map(|partition| (partition, record.clone())).collect(),
        Box::new(move |result| {
            let _ = acknowledge.send(result);
        }),
    );
    acknowledged
        .await
        .context("the log closed")?
        .context("the first policy cannot be written")?;
    if config.policy_given {
        first_policy::remember(config)?;
    }
    Ok(())
}

/// One line a thing that somebody wants to know.
fn announce(config: &Config, listen: SocketAddr, partitions: u32) {
    let shown = |path: &Path| {
        path.canonicalize()
            .unwrap_or_else(|_| path.to_owned())
            .display()
            .to_string()
    };
    let mut lines = vec![
        format!("rollcall {}", env!("CARGO_PKG_VERSION")),
        format!("data     {} ({partitions} partitions)", shown(&config.data)),
        match &config.kafka {
            Some(kafka) => format!("kafka    {} (group {})", kafka.bootstrap, kafka.group),
            None => "log      embedded".to_owned(),
        },
        format!("console  http://{listen}/"),
        format!("events   POST http://{listen}/v1/events"),
        format!("changes  GET http://{listen}/v1/changes"),
    ];
    match &config.tokens {
        Some(tokens) => lines.push(format!("access   {} bearer tokens", tokens.len())),
        None => lines.push("access   everybody on this machine".to_owned()),
    }
    if let Some(tim) = &config.tim {
        lines.push(format!("tim      POST http://{listen}/v4/… (app {})", tim.app));
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
