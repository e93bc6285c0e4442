//! `rollcall webhook`: posts changes as callbacks of Tencent Cloud IM.

use super::cluster::Cluster;
use super::connect;
use super::directories;
use super::signals::{Signals, within_bounds};
use super::traces::Traces;
use crate::clock::{Clock, SystemClock};
use crate::config::units::{Mebibytes, Milliseconds, Seconds, Size, Span};
use crate::config::{Credential, LogFormat, LogLevel, SecretUrl};
use crate::log::Beginning;
use crate::registry::{Registry, Schemas};
use crate::webhook::{self, DeadLetterFile, EngineClient, PositionFile, PostTimeouts, Receiver, Shape, Start};
use anyhow::Context as _;
use clap::{ArgAction, ValueEnum, value_parser};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// Posts every change as a State.StateChange callback of Tencent Cloud IM
///
/// Follows the changes of an engine over HTTP and keeps its position in a file. With --kafka it follows the change topic as a
/// member of a consumer group, which keeps the position. Each change is posted at least once, and each user's changes in
/// order. Every flag that takes a value can also be set with the environment variable shown beside it.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// URL that callbacks are posted to
    #[arg(long, value_name = "URL", env = "ROLLCALL_WEBHOOK_TO", hide_env_values = true)]
    to: SecretUrl,
    /// The engine whose changes are followed
    #[arg(
        long,
        value_name = "URL",
        env = "ROLLCALL_WEBHOOK_ENGINE",
        default_value = "http://127.0.0.1:8080",
        hide_env_values = true,
        conflicts_with = "kafka"
    )]
    engine: SecretUrl,
    /// File with the engine's bearer token in its first line; the token needs the scope read
    #[arg(
        long,
        value_name = "FILE",
        env = "ROLLCALL_WEBHOOK_ENGINE_TOKEN_FILE",
        conflicts_with = "kafka"
    )]
    engine_token_file: Option<PathBuf>,
    /// CA certificates (PEM) that an https:// engine must have its certificate from, instead of those of this machine
    #[arg(
        long,
        value_name = "FILE",
        env = "ROLLCALL_WEBHOOK_ENGINE_CA_FILE",
        conflicts_with = "kafka"
    )]
    engine_ca_file: Option<PathBuf>,
    /// File that keeps the position; no other process may use it
    #[arg(
        long,
        value_name = "FILE",
        env = "ROLLCALL_WEBHOOK_POSITION",
        default_value = "rollcall-webhook.position",
        conflicts_with = "kafka"
    )]
    position: PathBuf,
    /// Follows the change topic of Apache Kafka instead: the brokers, as host:port, separated by commas
    #[arg(long, value_name = "HOST:PORT", env = "ROLLCALL_WEBHOOK_KAFKA")]
    kafka: Option<String>,
    /// The consumer group that assigns the partitions and keeps the position
    #[arg(
        long,
        value_name = "NAME",
        env = "ROLLCALL_WEBHOOK_GROUP",
        default_value = "rollcall-webhook",
        requires = "kafka"
    )]
    group: String,
    #[command(flatten)]
    cluster: Cluster,
    /// The schema registry, if records were written with one
    #[arg(long, value_name = "URL", env = "ROLLCALL_REGISTRY", hide_env_values = true)]
    registry: Option<SecretUrl>,
    /// File for callbacks that were given up, one JSON line each; no other process may use it
    #[arg(
        long,
        value_name = "FILE",
        env = "ROLLCALL_WEBHOOK_DEAD_LETTERS",
        default_value = "rollcall-webhook.dead-letters"
    )]
    dead_letters: PathBuf,
    /// Most that this file may hold, in MiB, 1 to 1048576; beyond it the bridge ends
    #[arg(long, value_name = "MIB", env = "ROLLCALL_WEBHOOK_DEAD_LETTERS_MIB", default_value_t = Size(1_024 << 20))]
    dead_letters_mib: Mebibytes,
    /// Where to start if there is no position yet
    #[arg(long, value_enum, env = "ROLLCALL_WEBHOOK_FROM", default_value_t = ChangeSource::Latest)]
    from: ChangeSource,
    /// SDKAppID in the query string of callbacks, 1 to 4294967295
    #[arg(long, value_name = "ID", env = "ROLLCALL_WEBHOOK_APP", value_parser = value_parser!(u64).range(1..=u32::MAX.into()))]
    app: Option<u64>,
    /// File with the token that signs callbacks, in its first line
    #[arg(long, value_name = "FILE", env = "ROLLCALL_WEBHOOK_TOKEN_FILE")]
    token_file: Option<PathBuf>,
    /// Also posts a callback when push_online ends; Tencent Cloud IM does not
    #[arg(long, action = ArgAction::SetTrue)]
    push_expired: bool,
    /// Platforms of kind web, separated by commas; their time-out is posted as a closed link [default: mini_program,web]
    #[arg(
        long,
        value_name = "NAMES",
        env = "ROLLCALL_WEBHOOK_WEB_PLATFORMS",
        value_delimiter = ','
    )]
    web_platforms: Option<Vec<String>>,
    /// Number of concurrent posts, 1 to 1024
    #[arg(long, value_name = "COUNT", env = "ROLLCALL_WEBHOOK_PARALLEL", default_value_t = 16, value_parser = value_parser!(u64).range(1..=1024))]
    parallel: u64,
    /// Time-out of one post, 100 to 60000 milliseconds
    #[arg(long, value_name = "MS", env = "ROLLCALL_WEBHOOK_TIMEOUT_MS", default_value_t = Span(5_000))]
    timeout_ms: Milliseconds,
    /// A callback is given up after this many seconds, 1 to 604800; 0: never
    #[arg(long, value_name = "S", env = "ROLLCALL_WEBHOOK_GIVE_UP_AFTER_S", default_value_t = Span(3_600_000))]
    give_up_after_s: Seconds,
    /// Format of the log on standard error
    #[arg(long, value_enum, env = "ROLLCALL_LOG_FORMAT", default_value_t = LogFormat::Human)]
    log_format: LogFormat,
    /// Lowest level that is logged
    #[arg(long, value_enum, env = "ROLLCALL_LOG_LEVEL", default_value_t = LogLevel::Info)]
    log_level: LogLevel,
}

/// How long leaving the group may take.
const LEAVE: Duration = Duration::from_secs(3);

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum ChangeSource {
    Earliest,
    Latest,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    directories::keep_to_ourselves();
    super::logging::start(args.log_format, args.log_level);
    for (what, path) in [
        ("the token for the engine", &args.engine_token_file),
        ("the webhook's token", &args.token_file),
    ] {
        if let Some(path) = path {
            directories::warn_if_others_read(what, path);
        }
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.context("cannot start the async runtime")?;
    let posted = runtime.block_on(post(args));
    // Threads that still wait for brokers end with the process; nothing joins them.
    runtime.shutdown_background();
    posted
}

async fn post(args: Args) -> anyhow::Result<()> {
    let mut signals = Signals::listen()?;
    let token = |file: &Option<PathBuf>, what| file.as_deref().map(|file| Credential::read(file, what)).transpose();
    let engine_token = token(&args.engine_token_file, "engine's token")?;
    let shape = Shape {
        app: args.app,
        token: token(&args.token_file, "webhook token")?,
        push_expired: args.push_expired,
        web: args.web_platforms.unwrap_or_else(Shape::default_web),
    };
    let timeout_ms = Milliseconds::within("timeout_ms", Some(args.timeout_ms), 0, 100, 60_000)?;
    let give_up_after_ms = Seconds::within("give_up_after_s", Some(args.give_up_after_s), 0, 0, 604_800_000)?;
    let timeouts = PostTimeouts {
        timeout: Duration::from_millis(timeout_ms),
        give_up_after: Some(give_up_after_ms).filter(|ms| *ms > 0).map(Duration::from_millis),
    };
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let receiver = Receiver::new(args.to.reveal().clone(), shape, timeouts, clock.clone())
        .context("cannot create an HTTP client")?;
    let letters_max = Mebibytes::within("dead_letters_mib", Some(args.dead_letters_mib), 0, 1 << 20, 1 << 40)?;
    let parallel = usize::try_from(args.parallel).context("parallel is too large")?;
    let (stop, stopping) = watch::channel(false);
    let connection = args
        .kafka
        .as_deref()
        .map(|bootstrap| connect::of_flags(bootstrap, &args.cluster));
    let connection = connection.transpose()?;
    let traces = Traces::start(
        "rollcall-webhook",
        connection.as_ref().map_or_else(connect::local_names, connect::names_of),
    );
    let Some(connection) = connection else {
        let (file, kept) = PositionFile::open(&args.position)?;
        let dead_letters = DeadLetterFile::open(&args.dead_letters, letters_max)?;
        let start = match (kept, args.from) {
            (Some(positions), _) => Start::At(positions),
            (None, ChangeSource::Earliest) => Start::Earliest,
            (None, ChangeSource::Latest) => Start::Latest,
        };
        let following = EngineClient::follow(&args.engine, engine_token, args.engine_ca_file.as_deref(), start);
        let Some(followed) = signals.unless_stopped(following).await else {
            return Ok(());
        };
        let (engine, from) = followed?;
        tracing::info!(position = %from, engine = %args.engine, "following");
        let posting = webhook::run(engine.read(from), file, receiver, dead_letters, parallel, stopping);
        let posted = until_stopped(posting, signals, &stop).await;
        traces.stop().await;
        return posted;
    };
    let dead_letters = DeadLetterFile::open(&args.dead_letters, letters_max)?;
    let beginning = match args.from {
        ChangeSource::Earliest => Beginning::Earliest,
        ChangeSource::Latest => Beginning::Latest,
    };
    let (group, runtime) = (args.group.clone(), Handle::current());
    // Both block on other servers.
    let joined = tokio::task::spawn_blocking(move || {
        let schemas = match &args.registry {
            Some(url) => Schemas::to_read(Registry::new(url.reveal().as_str(), runtime)?),
            None => Schemas::default(),
        };
        let follower = connect::follower(&connection, &args.group, beginning, clock)?;
        Ok::<_, anyhow::Error>((follower, schemas))
    });
    let Some(joined) = signals.unless_stopped(joined).await else {
        return Ok(());
    };
    let (follower, schemas) = joined??;
    let (source, keep, left) = webhook::follow_kafka(follower, schemas, &group)?;
    let posting = webhook::run(source, keep, receiver, dead_letters, parallel, stopping);
    let posted = until_stopped(posting, signals, &stop).await;
    traces.stop().await;
    posted?;
    // The other members then get the partitions at once, and not after the session time-out.
    let _ = tokio::time::timeout(LEAVE, left).await;
    Ok(())
}

/// Posts until posting ends by itself or a signal asks the process to stop.
async fn until_stopped(
    posting: impl Future<Output = Result<(), webhook::Error>>,
    mut signals: Signals,
    stop: &watch::Sender<bool>,
) -> anyhow::Result<()> {
    tokio::pin!(posting);
    tokio::select! {
        ended = &mut posting => return Ok(ended?),
        () = signals.asked_to_stop() => {}
    }
    stop.send_replace(true);
    within_bounds(async { Ok(posting.await?) }).await
}
