//! `rollcall serve`: the engine, as a single process or as one of several nodes on Kafka.

use super::connect::ConnectedLog;
use super::descriptors::{self, OpenFiles};
use super::signals::{Signals, within_bounds};
use super::traces::Traces;
use super::{connect, directories, first_policy, logging};
use crate::checkpoint::Checkpoints;
use crate::clock::{Clock, SystemClock};
use crate::config::gateway::Admission;
use crate::config::{
    Config, DEFAULT_GROUP, Flags, Invalid, PeerCertificates, RaiseRevision, read_tokens, warn_if_shared,
};
use crate::directory;
use crate::engine::partition::check_stores;
use crate::engine::{Checkpointer, Engine, Services, Standbys, Tuning};
use crate::gateway::uplink::log::LogUplink;
use crate::gateway::{self, Gateway};
use crate::http::{Access, AppState, GatewayAddress, Issuer, Limits, PeerKey, PeerTrust, Peers};
use crate::log::local::{LocalLog, Settings};
use crate::log::{self, Group, Log, NewRecord, SingleNode};
use crate::presence::{Offset, Partition};
use crate::registry::Schemas;
use crate::schema::json;
use crate::tasks;
use crate::tls::{Certificate, Trust, TrustedClient};
use crate::topics::Topic;
use crate::version::newest_revision;
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
use tokio::task::JoinHandle;

const POLICY_REFUSED: &str = "is for a new log, but this log has records and began with another policy; to change the \
                              rules, publish a `policy` event (rollcall policy set FILE); to ignore the file, start with \
                              --policy-if-new";
/// How often the first policy is sent to partitions that did not get it.
const POLICY_ATTEMPTS: u32 = 5;
/// How long open requests may take to end once the process is asked to stop.
const GRACEFUL: Duration = Duration::from_millis(1_500);
/// The shortest time between two transactions with outputs on Kafka. Each costs milliseconds of a core.
const OUTPUT_COMMIT_MS: u64 = 20;
/// A record whose time is further ahead of this machine's clock than this is not folded.
const AHEAD_MS: u64 = 5 * 60 * 1_000;
/// How often it is looked whether partitions can be raised to a newer revision.
const RAISE_EVERY: Duration = Duration::from_secs(5);
/// How often the token file is checked for changes.
const TOKENS_EVERY: Duration = Duration::from_secs(1);

pub fn run(flags: Flags) -> anyhow::Result<()> {
    directories::keep_to_ourselves();
    let config = flags.config()?;
    connect::check(&config)?;
    logging::start(config.log_format, config.log_level);
    let files = descriptors::raise();
    for (what, path) in &config.secret_files {
        directories::warn_if_others_read(what, path);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("cannot start the async runtime")?;
    let mut kept = LeakedOnError::default();
    let served = runtime.block_on(serve(config, files, &mut kept));
    // Threads that still wait for brokers or a registry end with the process; nothing joins them.
    std::mem::forget(kept);
    runtime.shutdown_background();
    served
}

/// Keeps a Kafka client from being dropped after a failed start: the drop may wait for brokers, and the error must not wait.
#[derive(Default)]
struct LeakedOnError(Option<ConnectedLog>);

/// Checks everything else before it joins the group: a member that is not ready to work would delay the members that are.
async fn serve(config: Config, files: OpenFiles, kept: &mut LeakedOnError) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let traces = Traces::start("rollcall", connect::log_names(&config)?);
    let (stop, stopping) = watch::channel(false);
    let Some(started) = signals.unless_stopped(start(&config, kept, &stopping)).await else {
        return Ok(());
    };
    let Started {
        engine,
        listener,
        listen,
        certificate,
        issuer,
        peers,
        clock,
        _lock,
    } = started?;
    let mut app = AppState::new(
        engine.clone(),
        config.tokens.as_deref(),
        listen,
        peers,
        stopping.clone(),
    )
    .context("cannot start a thread for subscriptions")?;
    if let Some(tim) = config.tim.clone() {
        app = app.with_tim(tim, clock.clone());
    }
    if let Some(issuer) = issuer {
        watched("oidc-keys", &stopping, issuer.clone().keep(stopping.clone()));
        app = app.with_issuer(issuer);
    }
    let (edge, edges) = watch::channel(None);
    app = app.with_edge(edges);
    announce(&config, listen, engine.log().partitions());

    app = app.with_origins(config.cors_origins.clone());
    let connections = connections(&config, files, engine.log().partitions());
    app = app.with_bounds(config.http_body_bytes, connections - connections / 4);
    app = app.with_past_records(config.audit_records);
    if let Some(file) = &config.token_file {
        warn_if_shared(file);
        let reload = reload_tokens(file.clone(), app.access(), stopping.clone());
        watched("token-file", &stopping, reload);
    }
    watched("stats-history", &stopping, app.clone().keep_history());
    let incidents = watched("incidents", &stopping, app.clone().find_incidents());
    if config.raise_revision == RaiseRevision::ByItself {
        let raise = raise_revision(engine.clone(), stopping.clone());
        watched("revision", &stopping, raise);
    }
    if let Some(certificate) = &certificate {
        watched("certificate", &stopping, certificate.clone().keep());
    }
    let serving = crate::http::serve_with(
        listener,
        certificate,
        app.router(),
        Limits::of(connections),
        stopping.clone(),
    );
    // Without it nobody could be answered, so the process ends.
    let server = tokio::spawn(tasks::or_end_process(
        "http",
        tasks::until_stopped(stopping.clone(), serving),
    ));
    let demo = config.demo.map(|users| {
        let mut tokens = config.tokens.iter().flatten();
        let publisher = tokens.find(|(_, scopes)| scopes.publish && scopes.gateways.is_empty());
        let token = publisher.map(|(token, _)| token.clone());
        let url = format!("http://{listen}");
        let url = url.parse().expect("an address is the host and port of a URL");
        crate::demo::start(crate::demo::DemoSettings { url, token, users }, clock.clone())
    });

    // The engine is stopped in order, also after an error.
    let ran = run_until_asked(&config, &engine, &mut signals, &edge, clock.clone()).await;
    let began = clock.monotonic();
    let stopped = within_bounds(async {
        if let Some(demo) = demo {
            // The demo may be in the middle of a request; the engine still answers it.
            tokio::task::spawn_blocking(move || demo.stop())
                .await
                .context("the demo did not end")?;
        }
        stop.send_replace(true);
        if tokio::time::timeout(GRACEFUL, server).await.is_err() {
            // These connections end with the runtime; the engine does not wait for them.
            tracing::warn!("closing connections that were still open");
        }
        if tokio::time::timeout(GRACEFUL, incidents).await.is_err() {
            tracing::warn!(
                "the finder of incidents did not end in time; it goes on from its position at the next start"
            );
        }
        tokio::task::spawn_blocking(move || engine.stop())
            .await
            .context("the engine did not end")??;
        Ok(())
    })
    .await;
    traces.stop().await;
    let took_ms = clock.monotonic().saturating_sub(began).as_millis() as u64;
    // The caller prints the error when it ends the process.
    tracing::info!(took_ms, in_good_order = stopped.is_ok(), "stopped");
    ran.and(stopped)
}

/// Starts a task that runs until the process stops.
fn watched(
    name: &'static str,
    stopping: &watch::Receiver<bool>,
    run: impl Future<Output = ()> + Send + 'static,
) -> JoinHandle<()> {
    tasks::spawn_async(name, tasks::until_stopped(stopping.clone(), run))
}

/// Runs the gateway, if one is configured, until the process is asked to stop, and then stops it. Without a gateway, only
/// waits.
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
        // The epoch came from the log, where any publisher may have written it: no reason to end the engine.
        Err(error @ gateway::Error::Epoch(gateway::epoch::Error::NoneLeft { .. })) => {
            tracing::error!("the gateway cannot start, so this process serves no WebSockets: {error}");
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
            // Another gateway has taken over the name, but the engine is still ours, so it continues.
            tracing::error!("the gateway stops, so this process serves no more WebSockets: {error}");
            edge.send_replace(None);
            gateway.abandon().await;
            signals.asked_to_stop().await;
        }
    }
    Ok(())
}

/// A running engine, and what is needed to serve it.
struct Started {
    engine: Arc<Engine>,
    listener: TcpListener,
    listen: SocketAddr,
    certificate: Option<Arc<Certificate>>,
    issuer: Option<Arc<Issuer>>,
    peers: Option<Peers>,
    clock: Arc<dyn Clock>,
    /// Holds the lock on the data directory.
    _lock: File,
}

async fn start(config: &Config, kept: &mut LeakedOnError, stopping: &watch::Receiver<bool>) -> anyhow::Result<Started> {
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
    if let Some(kafka) = &config.kafka {
        directories::without_embedded_log(&config.data, &kafka.bootstrap)?;
    }
    // First what needs no other process: it is quick.
    let certificate = certificate(config, clock.clone())?;
    let issuer = match &config.oidc {
        Some(oidc) => Some(Issuer::new(oidc.clone(), clock.clone()).context("--oidc-issuer cannot be used")?),
        None => None,
    };
    let issuer = issuer.map(Arc::new);
    let checkpoints = checkpoints(config)?;
    let OpenedLog { log, kafka, tuning } = open(config, listen, clock.clone()).await?;
    kept.0.clone_from(&kafka);
    let peers = match &kafka {
        Some(kafka) => Some(peers(config, kafka, clock.clone(), stopping)?),
        None => None,
    };
    let schemas = schemas(config, clock.clone()).await?;
    bootstrap(config, &log, &schemas).await?;
    let standbys = match (&kafka, config.kafka.as_ref().map_or(0, |kafka| kafka.standbys)) {
        (Some(kafka), count @ 1..) => Some(Standbys {
            count,
            nodes: kafka.stand_by()?,
        }),
        (Some(_) | None, _) => None,
    };
    let outside = Services {
        schemas,
        checkpointer: checkpoints.map(|checkpoints| checkpoints.start(config)).transpose()?,
        owners: kafka.as_ref().map(ConnectedLog::owners),
        standbys,
        cloud_events: config.cloudevents_source.as_deref().map(Arc::from),
    };
    // From here on only the engine itself can fail.
    let group: Box<dyn Group> = match &kafka {
        Some(kafka) => kafka.join()?,
        None => Box::new(SingleNode::new(log.partitions())),
    };
    let engine = Engine::join(log, group, Some(&config.data), clock.clone(), tuning, outside)?;
    Ok(Started {
        engine: Arc::new(engine),
        listener,
        listen,
        certificate,
        issuer,
        peers,
        clock,
        _lock: lock,
    })
}

/// Opens the certificate of HTTP. With it nodes may show theirs.
fn certificate(config: &Config, clock: Arc<dyn Clock>) -> anyhow::Result<Option<Arc<Certificate>>> {
    let Some(files) = &config.http_tls else {
        return Ok(None);
    };
    let peers = config.kafka.as_ref().and_then(|kafka| kafka.peer_tls.as_ref());
    let certificate = Certificate::open("http", files, peers.map(|peers| peers.ca.as_path()), clock);
    Ok(Some(Arc::new(certificate.context("cannot serve HTTP with TLS")?)))
}

/// The beginning of a URL of this process.
fn scheme(config: &Config) -> &'static str {
    match config.http_tls {
        Some(_) => "https",
        None => "http",
    }
}

/// Returns how many HTTP connections are served, and logs it.
fn connections(config: &Config, files: OpenFiles, partitions: u32) -> usize {
    // One store for each partition, and the embedded log.
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

/// Raises this node's partitions to the newest revision that every node knows.
async fn raise_revision(engine: Arc<Engine>, mut stopping: watch::Receiver<bool>) {
    let newest = newest_revision();
    let mut noted = newest;
    loop {
        tokio::select! {
            () = tokio::time::sleep(RAISE_EVERY) => {}
            _ = stopping.wait_for(|stopping| *stopping) => return,
        }
        let to = engine.common_revision();
        if to < newest && to != noted {
            tracing::info!(every_node_knows = %to, this_node_knows = %newest, "the revision is not raised: a node is older");
        }
        noted = to;
        for partition in (0..engine.log().partitions()).map(Partition) {
            // Others raise what is theirs.
            let Ok(stats) = engine.stats(partition).await else {
                continue;
            };
            let Some(revision) = stats
                .revision
                .filter(|revision| *revision < to && stats.state == "live")
            else {
                continue;
            };
            match engine.raise(partition, to).await {
                Ok(()) => tracing::info!(%partition, from = %revision, %to, "raised the revision: every node knows it"),
                Err(error) => tracing::warn!(%partition, %error, "cannot raise the revision, trying again"),
            }
        }
    }
}

/// Reads the token file again whenever it has changed. If that fails, the tokens in use stay.
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
                tracing::info!(file = %file.display(), tokens = tokens.len(), "token file reloaded");
            }
            Err(error) => {
                let error = format!("{error:#}");
                tracing::error!(file = %file.display(), error, "cannot reload the token file; the tokens read before stay in use");
            }
        }
    }
}

/// The log, and the engine's settings that depend on which log it is.
struct OpenedLog {
    log: Arc<dyn Log>,
    /// The same log, if it is on Kafka.
    kafka: Option<ConnectedLog>,
    tuning: Tuning,
}

async fn open(config: &Config, listen: SocketAddr, clock: Arc<dyn Clock>) -> anyhow::Result<OpenedLog> {
    crate::store::set_cache_bytes(config.store_cache_bytes);
    let tuning = Tuning {
        cached_users: config.cached_users,
        index_changes: config.index_changes,
        hash_seed: super::hash_seed(),
        revision: newest_revision(),
        ..Tuning::default()
    };
    let Some(kafka) = &config.kafka else {
        return Ok(OpenedLog {
            log: Arc::new(open_log(config, clock)?),
            kafka: None,
            tuning,
        });
    };
    let url = kafka.advertise.clone();
    let url = url.unwrap_or_else(|| format!("{}://{listen}", scheme(config)));
    let log = connect::kafka(kafka, url, config.start_wait_ms, clock).await?;
    Ok(OpenedLog {
        log: log.log(),
        kafka: Some(log),
        tuning: Tuning {
            output_commit_ms: OUTPUT_COMMIT_MS,
            ahead_ms: Some(AHEAD_MS),
            accepted: kafka.accepted,
            adopt_tail: kafka.adopt_tail,
            ..tuning
        },
    })
}

fn peers(
    config: &Config,
    log: &ConnectedLog,
    clock: Arc<dyn Clock>,
    stopping: &watch::Receiver<bool>,
) -> anyhow::Result<Peers> {
    let secret = config.kafka.as_ref().and_then(|kafka| kafka.peer_token.as_ref());
    let trust = match (secret, &config.tokens) {
        (Some(secret), _) => PeerTrust::Key(PeerKey::new(secret.reveal())),
        (None, None) => PeerTrust::Everybody,
        (None, Some(_)) => PeerTrust::Nobody,
    };
    let mut peers = Peers::new(log.owners(), log.url(), trust, clock)?;
    if let Some(tls) = config.kafka.as_ref().and_then(|kafka| kafka.peer_tls.as_ref()) {
        let files = Trust {
            ca: tls.ca.clone(),
            shown: config.http_tls.clone(),
        };
        let client = TrustedClient::open(files, Peers::client).context("cannot ask other nodes with TLS")?;
        let client = Arc::new(client);
        watched("peer-certificate", stopping, client.clone().keep());
        let required = tls.certificates == PeerCertificates::Required;
        if !required {
            tracing::warn!(
                "nodes may ask without a certificate (--peer-certificates optional); require it when all have one"
            );
        }
        peers = peers.with_certificates(client, required);
    } else if config.http_tls.is_some() {
        tracing::warn!(
            "there is no --peer-ca, so other nodes are asked only if their certificates are of a CA that this machine trusts; \
             give all nodes the same --peer-ca"
        );
    }
    if let Some(warning) = peers.warning() {
        tracing::warn!("{warning}");
    }
    Ok(peers)
}

/// Looks up or registers our schemas. The registry must answer before anything is written.
async fn schemas(config: &Config, clock: Arc<dyn Clock>) -> anyhow::Result<Schemas> {
    match &config.registry {
        Some(registry) => {
            let prefix = config.kafka.as_ref().and_then(|kafka| kafka.topic_prefix.as_deref());
            connect::registry(registry, prefix, config.start_wait_ms, clock).await
        }
        None => Ok(Schemas::default()),
    }
}

/// An open checkpoint store, and how often a checkpoint is made.
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
    directories::writable(&settings.url)?;
    let environment = std::env::vars();
    let checkpoints = Checkpoints::open(&settings.url, group, settings.kept, environment, Handle::current())?
        .knowing(newest_revision());
    Ok(Some(CheckpointSetup {
        checkpoints,
        every_ms: settings.every_ms,
    }))
}

impl CheckpointSetup {
    fn start(self, config: &Config) -> anyhow::Result<Arc<Checkpointer>> {
        let waiting = config.data.join("checkpoints-under-way");
        let checkpointer = Checkpointer::start(self.checkpoints, self.every_ms, waiting.clone());
        let checkpointer = checkpointer.with_context(|| format!("cannot create {}", waiting.display()))?;
        Ok(Arc::new(checkpointer))
    }
}

fn make_data(data: &Path) -> anyhow::Result<()> {
    let shown = data.display();
    directory::create(data).map_err(|error| match data.is_file() {
        true => anyhow!("the data directory {shown} is a file; name a directory with --data"),
        false => anyhow!("cannot create the data directory {shown}: {error}; another one can be chosen with --data"),
    })
}

/// Locks the data directory for this process. The lock ends with the process.
fn lock(data: &Path) -> anyhow::Result<File> {
    directories::lock_data(data)?.with_context(|| {
        let shown = data.display();
        format!("the data directory {shown} is in use by another process; another one can be chosen with --data")
    })
}

/// The earliest clock time, 2025-01-01, at which a new log may be started: the first records set the time that later ones
/// are compared with.
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
    let ends = (0..log.partitions()).map(|partition| Ok(log.range(Topic::Events, Partition(partition))?.end));
    let ends = ends.collect::<Result<Vec<Offset>, log::Error>>()?;
    check_stores(&ends, &config.data)?;
    let is_new = ends.iter().all(|end| *end == Offset(0));
    if is_new && clock.now_ms() < CLOCK_MIN_MS {
        bail!(
            "this machine's clock is before 2025, and the first records of a new log would get that time; set the clock, \
             then start again"
        );
    }
    Ok(log)
}

const NO_OUTAGE_GRACE: &str = "the log is new and there is no --policy: on Kafka the default policy holds then, without outage \
                               grace, so after an outage of the brokers everybody is lost whose time-out passed meanwhile. To have \
                               it, as on the embedded log: rollcall policy set FILE with \
                               {\"outage\":{\"silence_ms\":10000,\"grace_ms\":30000}}";

/// Writes the first policy to every partition of an empty log. From then on the log alone determines every output. A
/// partition that did not get it, because the process ended in between, gets it at the next start.
///
/// On Kafka it is written only if `--policy` is given: many processes start at once there, and the default policy applies
/// without any record.
async fn bootstrap(config: &Config, log: &Arc<dyn Log>, schemas: &Schemas) -> anyhow::Result<()> {
    let asked = log.clone();
    if config.kafka.is_some() && !config.policy_given {
        // Nothing waits for it: a partition may be without a leader.
        tokio::task::spawn_blocking(move || {
            let mut ends = (0..asked.partitions()).map(|partition| asked.range(Topic::Events, Partition(partition)));
            if ends.all(|range| range.is_ok_and(|range| range.end == Offset(0))) {
                tracing::warn!("{NO_OUTAGE_GRACE}");
            }
        });
        return Ok(());
    }
    // On Kafka this asks the brokers.
    let empty = tokio::task::spawn_blocking(move || {
        let mut empty = Vec::new();
        for partition in (0..asked.partitions()).map(Partition) {
            if asked.range(Topic::Events, partition)?.end == Offset(0) {
                empty.push(partition);
            }
        }
        Ok::<_, log::Error>(empty)
    });
    let empty = empty.await.context("cannot ask the log for its range")??;
    if empty.len() < log.partitions() as usize {
        if config.policy_given && config.policy_if_new {
            tracing::info!("--policy is ignored: the log already has records (--policy-if-new)");
        } else if config.policy_given {
            let (own, judged, learned) = (config.clone(), log.clone(), schemas.clone());
            let judge = move || first_policy::is_first(&own, &judged, &learned);
            if !tokio::task::spawn_blocking(judge)
                .await
                .context("cannot ask the log for its range")??
            {
                bail!(Invalid::new("policy", POLICY_REFUSED));
            }
            write_first_policy(config, log, schemas, empty).await?;
        }
        return Ok(());
    }
    write_first_policy(config, log, schemas, empty).await?;
    if config.policy_given {
        first_policy::remember(config)?;
    }
    Ok(())
}

/// Writes the policy of the settings to partitions, to each once if the log says what it did.
async fn write_first_policy(
    config: &Config,
    log: &Arc<dyn Log>,
    schemas: &Schemas,
    mut missing: Vec<Partition>,
) -> anyhow::Result<()> {
    let mut value = Vec::new();
    schemas.encode_event(&json::policy_event(config.policy.clone()), &mut value);
    let record = NewRecord {
        key: None,
        value,
        headers: Vec::new(),
    };
    for _ in 0..POLICY_ATTEMPTS {
        if missing.is_empty() {
            return Ok(());
        }
        let (acknowledge, acknowledged) = oneshot::channel();
        let records = missing.iter().map(|partition| (*partition, record.clone()));
        let acknowledge = Box::new(move |result| drop(acknowledge.send(result)));
        log.append(records.collect(), acknowledge);
        match acknowledged.await.context("the log closed")? {
            Ok(_) => return Ok(()),
            Err(log::Error::Partly(results)) => {
                let mut failed = results.iter().map(Result::is_err);
                missing.retain(|_| failed.next().unwrap_or(true));
            }
            Err(error) => return Err(error).context("cannot write the first policy"),
        }
    }
    bail!(
        "cannot write the first policy to {} partitions; start again",
        missing.len()
    )
}

/// Prints the addresses and settings of this process, one line each.
fn announce(config: &Config, listen: SocketAddr, partitions: u32) {
    let shown = |path: &Path| {
        path.canonicalize()
            .unwrap_or_else(|_| path.to_owned())
            .display()
            .to_string()
    };
    let base = format!("{}://{listen}", scheme(config));
    let mut lines = vec![
        format!("rollcall {}", env!("CARGO_PKG_VERSION")),
        format!("data     {} ({partitions} partitions)", shown(&config.data)),
        match &config.kafka {
            Some(kafka) => format!("kafka    {} (group {})", kafka.bootstrap, kafka.group),
            None => "log      embedded".to_owned(),
        },
        format!("console  {base}/"),
        format!("events   POST {base}/v1/events"),
        format!("changes  GET {base}/v1/changes"),
    ];
    match &config.tokens {
        Some(tokens) => match &config.oidc {
            Some(oidc) => lines.push(format!(
                "access   {} bearer tokens, and those of {}",
                tokens.len(),
                oidc.issuer
            )),
            None => lines.push(format!("access   {} bearer tokens", tokens.len())),
        },
        None => lines.push("access   everybody on this machine".to_owned()),
    }
    if let Some(tim) = &config.tim {
        lines.push(format!("tim      POST {base}/v4/… (app {})", tim.app));
    }
    if let Some(users) = config.demo {
        lines.push(format!("demo     {users} simulated users"));
    }
    // A closed standard output does not prevent serving.
    let _ = writeln!(std::io::stdout(), "{}", lines.join("\n"));
}
