//! `rollcall serve`: the engine, on one machine or as one node of many on Kafka.

use super::descriptors::{self, OpenFiles};
use super::signals::{Signals, within_bounds};
use super::{connect, directories, first_policy, logging};
use crate::checkpoint::Checkpoints;
use crate::clock::{Clock, SystemClock};
use crate::config::gateway::Admission;
use crate::config::{Config, DEFAULT_GROUP, Flags, Invalid, read_tokens, warn_if_shared};
use crate::engine::{Checkpointer, Engine, Services, Tuning};
use crate::gateway::uplink::log::LogUplink;
use crate::gateway::{self, Gateway};
use crate::http::{Access, AppState, GatewayAddress, Limits, PeerKey, PeerTrust, Peers};
use crate::log::kafka::KafkaLog;
use crate::log::local::{LocalLog, Settings};
use crate::log::{self, Group, Log, NewRecord, SingleNode, Topic};
use crate::presence::{Offset, Partition};
use crate::registry::Schemas;
use crate::schema::json;
use anyhow::{Context as _, anyhow, bail};
use std::fs::File;
use std::io::Write as _;
use std::net::SocketAddr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{oneshot, watch};

const POLICY_REFUSED: &str = "is for a new log, and this log has records and began with another policy; to change the \
                              rules publish a `policy` event (rollcall policy set FILE), or start with --policy-if-new, \
                              which ignores the file";
/// How long open requests may take to end once the process is told to stop.
const GRACEFUL: Duration = Duration::from_millis(1_500);
/// How far apart transactions with outputs begin on Kafka at least: each takes milliseconds of a core.
const OUTPUT_COMMIT_MS: u64 = 20;
/// A record that is so far ahead of this machine's clock is not folded.
const AHEAD_MS: u64 = 5 * 60 * 1_000;
/// How often the file of tokens is looked at.
const TOKENS_EVERY: Duration = Duration::from_secs(1);

pub fn run(flags: Flags) -> anyhow::Result<()> {
    directories::keep_to_ourselves();
    let config = flags.config()?;
    super::cluster::check(&config)?;
    logging::start(config.log_format, config.log_level);
    let files = descriptors::raise();
    for (what, path) in &config.secret_files {
        directories::warn_if_others_read(what, path);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("the runtime cannot be started")?;
    let mut kept = LeakedOnError::default();
    let served = runtime.block_on(serve(config, files, &mut kept));
    // What still waits for brokers or a registry ends with the process, and nobody waits for it.
    std::mem::forget(kept);
    runtime.shutdown_background();
    served
}

/// What outlives an error at the start: dropping a client of Kafka may wait for brokers, and the error is not to wait.
#[derive(Default)]
struct LeakedOnError(Option<Arc<KafkaLog>>);

/// Everything but the group is checked before the group is joined: a member that is not ready to work would hold up those
/// that are.
async fn serve(config: Config, files: OpenFiles, kept: &mut LeakedOnError) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let Some(started) = signals.unless_stopped(start(&config, kept)).await else {
        return Ok(());
    };
    let Started {
        engine,
        listener,
        listen,
        peers,
        clock,
        _lock,
    } = started?;
    let (stop, stopping) = watch::channel(false);
    let mut face = AppState::new(
        engine.clone(),
        config.tokens.as_deref(),
        listen,
        peers,
        stopping.clone(),
    )
    .context("a thread for subscriptions cannot be started")?;
    if let Some(tim) = config.tim.clone() {
        face = face.with_tim(tim, clock.clone());
    }
    let (edge, edges) = watch::channel(None);
    face = face.with_edge(edges);
    announce(&config, listen, engine.log().partitions());

    face = face.with_origins(config.cors_origins.clone());
    let connections = connections(&config, files, engine.log().partitions());
    face = face.with_bounds(config.http_body_bytes, connections - connections / 4);
    if let Some(file) = &config.token_file {
        warn_if_shared(file);
        tokio::spawn(reload_tokens(file.clone(), face.access(), stopping.clone()));
    }
    tokio::spawn(face.clone().keep_history());
    let server = tokio::spawn(crate::http::serve(
        listener,
        face.router(),
        Limits::of(connections),
        stopping.clone(),
    ));
    let demo = config.demo.map(|users| {
        let mut tokens = config.tokens.iter().flatten();
        let publisher = tokens.find(|(_, scopes)| scopes.publish && scopes.gateways.is_empty());
        let token = publisher.map(|(token, _)| token.clone());
        let url = format!("http://{listen}");
        crate::demo::start(crate::demo::Settings { url, token, users }, clock.clone())
    });

    // Whatever this comes to, the engine is stopped in good order.
    let ran = run_until_asked(&config, &engine, &mut signals, &edge, clock.clone()).await;
    let began = clock.monotonic();
    let stopped = within_bounds(async {
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
        Ok(())
    })
    .await;
    let took_ms = clock.monotonic().saturating_sub(began).as_millis() as u64;
    // The caller that ends the process with the error prints it.
    tracing::info!(took_ms, in_good_order = stopped.is_ok(), "stopped");
    ran.and(stopped)
}

/// Runs the gateway, if there is to be one, until the process is asked to stop; then stops the gateway.
async fn run_until_asked(
    config: &Config,
    engine: &Arc<Engine>,
    signals: &mut Signals,
    edge: &watch::Sender<Option<GatewayAddress>>,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<()> {
    let Some(config) = &config.gateway else {
        signals.asked_to_stop().await;
        return Ok(());
    };
    let uplink = Arc::new(LogUplink::new(engine.clone()));
    let starting = Gateway::start(config.clone(), uplink, clock);
    let Some(started) = signals.unless_stopped(starting).await else {
        return Ok(());
    };
    let mut gateway = match started {
        Ok(gateway) => gateway,
        // It came out of the log, where anybody may have put it: no reason to end the engine.
        Err(error @ gateway::Error::Epoch(gateway::epoch::Error::NoneLeft { .. })) => {
            tracing::error!("{error}; no WebSockets are served here");
            signals.asked_to_stop().await;
            return Ok(());
        }
        Err(error @ gateway::Error::Listen { .. }) => bail!("{error}; another port can be chosen with --gateway"),
        Err(error) => return Err(error.into()),
    };
    edge.send_replace(Some(GatewayAddress {
        address: gateway.address(),
        tls: config.tls.is_some(),
        token: config.admission != Admission::Insecure,
    }));
    let scheme = if config.tls.is_some() { "wss" } else { "ws" };
    let _ = writeln!(std::io::stdout(), "clients  {scheme}://{}", gateway.address());
    let superseded = tokio::select! {
        () = signals.asked_to_stop() => None,
        error = gateway.superseded() => Some(error),
    };
    match superseded {
        None => gateway.stop(false).await,
        Some(error) => {
            // The engine is nobody else's, so it goes on.
            tracing::error!("{error}; no more WebSockets are served here");
            edge.send_replace(None);
            gateway.abandon().await;
            signals.asked_to_stop().await;
        }
    }
    Ok(())
}

/// A running engine, and what was made ready for serving it.
struct Started {
    engine: Arc<Engine>,
    listener: TcpListener,
    listen: SocketAddr,
    peers: Option<Peers>,
    clock: Arc<dyn Clock>,
    /// The data directory is this process's for as long as this lives.
    _lock: File,
}

async fn start(config: &Config, kept: &mut LeakedOnError) -> anyhow::Result<Started> {
    let listener = TcpListener::bind(config.listen).await.map_err(|error| {
        anyhow!(
            "cannot listen on {}: {error}; another port can be chosen with --listen",
            config.listen
        )
    })?;
    let listen = listener.local_addr().context("the listener has no address")?;
    make_data(&config.data)?;
    directories::warn_if_others_read("the events of all users in the data directory", &config.data);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let lock = lock(&config.data)?;
    // What is nobody else's business first: it takes no time.
    let checkpoints = checkpoints(config)?;
    let OpenedLog { log, kafka, tuning } = open(config, listen, clock.clone()).await?;
    kept.0.clone_from(&kafka);
    let peers = match &kafka {
        Some(kafka) => Some(peers(config, kafka, clock.clone())?),
        None => None,
    };
    let schemas = schemas(config, clock.clone()).await?;
    bootstrap(config, &log, &schemas).await?;
    let outside = Services {
        schemas,
        checkpointer: checkpoints.map(|checkpoints| checkpoints.start(config)).transpose()?,
    };
    // Nothing can fail any more that is not the engine's own.
    let group: Box<dyn Group> = match &kafka {
        Some(kafka) => Box::new(kafka.join()?),
        None => Box::new(SingleNode::new(log.partitions())),
    };
    let engine = Engine::join(log, group, Some(&config.data), clock.clone(), tuning, outside)?;
    Ok(Started {
        engine: Arc::new(engine),
        listener,
        listen,
        peers,
        clock,
        _lock: lock,
    })
}

/// How many connections of HTTP are served, said in the log.
fn connections(config: &Config, files: OpenFiles, partitions: u32) -> usize {
    // A store a partition, and the embedded log.
    let databases = partitions as usize + usize::from(config.kafka.is_none());
    let connections = files.http_connections(databases, config.gateway.is_some(), config.http_connections_max);
    tracing::info!(
        http_connections_max = connections,
        open_files = files.limit,
        open_files_before = files.before,
        "limits"
    );
    connections
}

/// Reads the tokens again whenever their file has changed; what cannot be read leaves them as they are.
async fn reload_tokens(file: PathBuf, access: Arc<Access>, mut stopping: watch::Receiver<bool>) {
    let stamp = || {
        let metadata = std::fs::metadata(&file).ok()?;
        Some((metadata.modified().ok()?, metadata.len(), metadata.ino()))
    };
    let mut seen = stamp();
    loop {
        tokio::select! {
            () = tokio::time::sleep(TOKENS_EVERY) => {}
            _ = stopping.wait_for(|stopping| *stopping) => return,
        }
        let now = stamp();
        if now == seen {
            continue;
        }
        seen = now;
        match read_tokens(&file) {
            Ok(tokens) => {
                access.replace(&tokens);
                tracing::info!(file = %file.display(), tokens = tokens.len(), "tokens were read again");
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(file = %file.display(), error, "the tokens cannot be read again; those before stay");
            }
        }
    }
}

/// The log, and what of the engine depends on where it is.
struct OpenedLog {
    log: Arc<dyn Log>,
    /// The same, if it is on Kafka.
    kafka: Option<Arc<KafkaLog>>,
    tuning: Tuning,
}

async fn open(config: &Config, listen: SocketAddr, clock: Arc<dyn Clock>) -> anyhow::Result<OpenedLog> {
    let tuning = Tuning {
        cached_users: config.cached_users,
        hash_seed: super::hash_seed(),
        ..Tuning::default()
    };
    let Some(kafka) = &config.kafka else {
        return Ok(OpenedLog {
            log: Arc::new(open_log(config, clock)?),
            kafka: None,
            tuning,
        });
    };
    let log = connect::kafka(kafka, listen, config.start_wait_ms, clock).await?;
    Ok(OpenedLog {
        log: log.clone(),
        kafka: Some(log),
        tuning: Tuning {
            output_commit_ms: OUTPUT_COMMIT_MS,
            ahead_ms: Some(AHEAD_MS),
            accepted: kafka.accepted,
            ..tuning
        },
    })
}

fn peers(config: &Config, log: &KafkaLog, clock: Arc<dyn Clock>) -> anyhow::Result<Peers> {
    let secret = config.kafka.as_ref().and_then(|kafka| kafka.peer_token.as_ref());
    let trust = match (secret, &config.tokens) {
        (Some(secret), _) => PeerTrust::Key(PeerKey::new(secret.reveal())),
        (None, None) => PeerTrust::Everybody,
        (None, Some(_)) => PeerTrust::Nobody,
    };
    let peers = Peers::new(log.owners().clone(), &log.node().url, trust, clock)?;
    if let Some(warning) = peers.warning() {
        tracing::warn!("{warning}");
    }
    Ok(peers)
}

/// The registry must answer before anything is written.
async fn schemas(config: &Config, clock: Arc<dyn Clock>) -> anyhow::Result<Schemas> {
    match &config.registry {
        Some(registry) => {
            let prefix = config.kafka.as_ref().and_then(|kafka| kafka.topic_prefix.as_deref());
            connect::registry(registry, prefix, config.start_wait_ms, clock).await
        }
        None => Ok(Schemas::default()),
    }
}

/// The place of checkpoints, opened, with what is needed to make some.
struct CheckpointSetup {
    checkpoints: Checkpoints,
    every_ms: u64,
}

fn checkpoints(config: &Config) -> anyhow::Result<Option<CheckpointSetup>> {
    let Some(settings) = &config.checkpoints else {
        return Ok(None);
    };
    let group = config
        .kafka
        .as_ref()
        .map_or(DEFAULT_GROUP, |kafka| kafka.group.as_str());
    directories::apart(&config.data, &settings.url)?;
    let environment = std::env::vars();
    let checkpoints = Checkpoints::open(&settings.url, group, settings.kept, environment, Handle::current())?;
    Ok(Some(CheckpointSetup {
        checkpoints,
        every_ms: settings.every_ms,
    }))
}

impl CheckpointSetup {
    fn start(self, config: &Config) -> anyhow::Result<Arc<Checkpointer>> {
        let waiting = config.data.join("checkpoints-under-way");
        let checkpointer = Checkpointer::start(self.checkpoints, self.every_ms, waiting.clone());
        let checkpointer = checkpointer.with_context(|| format!("{} cannot be made", waiting.display()))?;
        Ok(Arc::new(checkpointer))
    }
}

fn make_data(data: &Path) -> anyhow::Result<()> {
    let shown = data.display();
    std::fs::create_dir_all(data).map_err(|error| match data.is_file() {
        true => anyhow!("the data directory {shown} is a file; name a directory with --data"),
        false => anyhow!("the data directory {shown} cannot be made: {error}; another one can be chosen with --data"),
    })
}

/// One process at a time has the data directory. The lock goes with the process.
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
    let (asked, mut of) = (log.clone(), partitions.clone());
    // On Kafka it is the brokers that are asked.
    let has_records = tokio::task::spawn_blocking(move || {
        of.try_fold(false, |any, partition| {
            let range = asked.range(Topic::Events, partition)?;
            Ok::<bool, log::Error>(any || range.end > Offset(0))
        })
    });
    if has_records.await.context("the log was not asked")?? {
        if config.policy_given && config.policy_if_new {
            tracing::info!("the log has records, so the policy of --policy was ignored");
        } else if config.policy_given {
            let (config, log, schemas) = (config.clone(), log.clone(), schemas.clone());
            let judge = move || first_policy::is_first(&config, &log, &schemas);
            if !tokio::task::spawn_blocking(judge)
                .await
                .context("the log was not asked")??
            {
                bail!(Invalid::new("policy", POLICY_REFUSED));
            }
        }
        return Ok(());
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
