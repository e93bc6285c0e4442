//! The WebSocket gateway: publishes events for clients' connections, closes them when they are kicked, and keeps a
//! lease that says that it is alive.
//!
//! It writes to the log and follows kicks and changes through its [`uplink`]; it has no access to the state. A
//! connection passes the [`handshake`] and is a [`session`] afterwards. All connections share the [`GatewayState`]: the
//! open connections ([`roster`]), the waiting [`heartbeats`], the [`disconnect_queue`], the subscriptions
//! ([`audience`]), the [`lease`], the [`kicks`] and the [`limits`]. [`health`] keeps the tasks running. The protocol is
//! in [`frames`] and documented in `docs/gateway.md`.

pub mod audience;
pub mod disconnect_queue;
pub mod epoch;
pub mod frames;
pub mod handshake;
pub mod health;
pub mod heartbeats;
pub mod keys;
pub mod kicks;
pub mod lease;
pub mod limits;
pub mod roster;
pub mod session;
pub mod uplink;

use crate::backoff;
use crate::clock::Clock;
use crate::config::gateway::{Admission, Config, Tokens};
use crate::metrics;
use crate::presence::{Conn, Epoch};
use crate::random::Random;
use crate::tasks::guarded;
use crate::tls::{BadFiles, Certificate};
use audience::Audience;
use disconnect_queue::{Outbox, QueuedDisconnect};
use frames::Close;
use handshake::Visitor;
use health::{End, Health, keep};
use heartbeats::HeartbeatBatches;
use keys::{Bearer, Keys};
use limits::{BoundedCounts, Handshakes, Ramp, RareWarning, network_of};
use roster::{ConnectionCommand, Roster};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use uplink::{Pace, Unavailable, Uplink};

/// The backlog of the listening socket, as far as the machine allows it.
const BACKLOG: u32 = 4_096;
/// The greatest number of handshakes at the same time. When one more begins, the oldest is cancelled.
const HANDSHAKES_MAX: usize = 2_048;
/// The greatest number of handshakes at the same time from one address; more are closed.
const ADDRESS_HANDSHAKES_MAX: u32 = 256;
/// Heartbeats are gathered for at least this long, whatever the policy says.
const BEATS_EVERY_LEAST: Duration = Duration::from_millis(10);
/// How long the known platforms of the policy are used before the engine is asked again.
const PLATFORMS_MS: u64 = 5_000;
/// How long to wait before the engine is asked again for a platform that it did not know or did not respond for.
const ASKED_MS: u64 = 1_000;
const RETRY: Duration = Duration::from_secs(1);
/// Waits of the ramp that are shorter than this are added up first: timers are no finer than a millisecond.
const PACE: Duration = Duration::from_millis(5);
/// How long a client that went to another gateway has until its new connection must be in the log.
const SETTLE: Duration = Duration::from_secs(2);
/// How long the end of the process waits for disconnects to be published.
const FLUSH: Duration = Duration::from_secs(5);

/// Why a gateway cannot run, or cannot continue to run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address} for WebSocket connections: {cause}")]
    Listen { address: SocketAddr, cause: io::Error },
    #[error(transparent)]
    Epoch(#[from] epoch::Error),
    #[error("cannot open the disconnect queue: {0}")]
    Queue(io::Error),
    #[error(transparent)]
    Keys(#[from] keys::BadKeys),
    #[error(transparent)]
    Certificate(#[from] BadFiles),
    #[error(
        "another process is the gateway {name:?} now: the log has a lease of that name with epoch {known}, which is \
         greater than this process's own {own}. Either a second process was started with this name (give each gateway \
         a name of its own), or somebody whose token allows publishing for this name wrote that lease"
    )]
    Superseded { name: String, own: u64, known: u64 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Open,
    Stopping,
}

/// The state that all connections share.
pub struct GatewayState {
    pub config: Config,
    pub clock: Arc<dyn Clock>,
    pub uplink: Arc<dyn Uplink>,
    pub epoch: Epoch,
    pub roster: Roster,
    pub heartbeats: HeartbeatBatches,
    pub audience: Arc<Audience>,
    pub users: Arc<BoundedCounts<Box<str>>>,
    pub addresses: Arc<BoundedCounts<IpAddr>>,
    /// Requests whose `X-Forwarded-For` does not say where they are from.
    pub unknown_addresses: RareWarning,
    /// Handshakes in progress, by address.
    handshakes_by_address: Arc<BoundedCounts<IpAddr>>,
    pub certificate: Option<Certificate>,
    keys: Option<Keys>,
    ramp: Ramp,
    conns: AtomicU64,
    chances: Mutex<Random>,
    phase: watch::Sender<Phase>,
    log_is_well: AtomicBool,
    /// Notified when the log stops accepting events.
    log_is_ill: Notify,
    endings: Mutex<Option<disconnect_queue::Sender>>,
    health: Health,
    platforms: Mutex<Platforms>,
    asking_for_platforms: tokio::sync::Mutex<()>,
    superseded: watch::Sender<Option<u64>>,
}

impl GatewayState {
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Returns a number that no connection of this epoch has had.
    pub fn next_conn(&self) -> Conn {
        Conn(self.conns.fetch_add(1, Ordering::Relaxed))
    }

    /// Returns a number below `below`, to spread things in time. It may be easy to guess.
    pub fn chance(&self, below: u64) -> u64 {
        let mut chances = self.chances.lock().unwrap_or_else(PoisonError::into_inner);
        chances.below(below)
    }

    /// Whether the log accepts events. False from the first failure until a lease has succeeded. Only a lease decides
    /// that it works again, because under load late and timely appends would contradict each other.
    pub fn log_is_well(&self) -> bool {
        self.log_is_well.load(Ordering::Acquire)
    }

    /// Records that a lease was appended.
    pub fn log_works(&self) {
        if !self.log_is_well.swap(true, Ordering::AcqRel) {
            tracing::info!("the log accepts events again");
            // All clients that were refused reconnect now.
            self.ramp.set_back();
        }
    }

    pub fn log_failed(&self, error: &Unavailable) {
        if self.log_is_well.swap(false, Ordering::AcqRel) {
            tracing::warn!("the log is unavailable, refusing new connections: {error}");
            self.log_is_ill.notify_one();
        }
    }

    /// Puts a connection's end into the queue for the log. Waits if the queue is full.
    pub async fn ended(&self, ending: QueuedDisconnect) {
        let sender = self.endings.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let sent = match sender {
            Some(sender) => sender.send(ending).await.is_ok(),
            None => false,
        };
        if !sent {
            GatewayState::lost_an_end();
        }
    }

    /// Like [`GatewayState::ended`], for callers that cannot wait.
    pub fn ended_suddenly(&self, ending: QueuedDisconnect) {
        let endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = endings.as_ref().is_some_and(|sender| sender.try_send(ending).is_ok());
        if !sent {
            GatewayState::lost_an_end();
        }
    }

    fn lost_an_end() {
        metrics::gateway_endings_refused(1);
        tracing::warn!("disconnect lost: the gateway is stopping and the end of its lease takes the device offline");
    }

    /// Returns a sentence for every problem that keeps this gateway from serving clients; empty if it is ready.
    pub fn troubles(&self) -> Vec<String> {
        let mut troubles = self.health.troubles();
        if !self.log_is_well() {
            troubles.push("the log is unavailable, so new connections are refused".to_owned());
        }
        if self.phase() == Phase::Stopping {
            troubles.push("the gateway is stopping".to_owned());
        }
        troubles
    }

    /// Records that another process is this gateway now.
    pub fn superseded(&self, known: Epoch) {
        self.superseded.send_replace(Some(known.0));
    }

    /// Returns the user whom a token authenticates, or what is wrong with it.
    pub async fn bearer(&self, token: &str, visitor: &Visitor) -> Result<Bearer, String> {
        match &self.keys {
            Some(keys) => keys.bearer(token, &visitor.platform, &visitor.device).await,
            None => Err("this gateway accepts no tokens".to_owned()),
        }
    }

    /// Reloads the token keys. If that fails, the previous ones stay in force.
    pub async fn reload_keys(&self) {
        let Some(keys) = &self.keys else { return };
        match keys.reload().await {
            Ok(true) => tracing::info!("token keys reloaded"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "reloading the token keys failed, keeping the previous ones"),
        }
    }

    /// Returns how clients of a platform have to behave; `None` if the policy has no such platform. The engine is asked
    /// at most once a second, by one handshake at a time, whatever platforms clients claim.
    pub async fn pace(&self, platform: &str) -> Result<Option<Pace>, Unavailable> {
        if let Some(answer) = self.platforms().pace(platform, self.clock.monotonic_ms()) {
            return answer;
        }
        let _alone = self.asking_for_platforms.lock().await;
        // Another handshake may have asked for this platform in the meantime.
        if let Some(answer) = self.platforms().pace(platform, self.clock.monotonic_ms()) {
            return answer;
        }
        let asked = self.uplink.platforms().await;
        let mut platforms = self.platforms();
        platforms.asked_ms = self.clock.monotonic_ms();
        match asked {
            Ok(known) => {
                platforms.answered_ms = Some(platforms.asked_ms);
                platforms.failed = None;
                platforms.known = known;
                Ok(platforms.known.get(platform).copied())
            }
            Err(error) => {
                platforms.failed = Some(error.clone());
                platforms.known.get(platform).map(|pace| Some(*pace)).ok_or(error)
            }
        }
    }

    /// Returns how long heartbeats may be gathered: as configured, and no longer than the platforms of the policy allow.
    fn beats_window(&self) -> Duration {
        let held_ms = self.platforms().known.values().map(|pace| pace.hold_ms()).min();
        let allowed = held_ms.map_or(Duration::MAX, Duration::from_millis);
        self.config.beats_every.min(allowed).max(BEATS_EVERY_LEAST)
    }

    fn platforms(&self) -> MutexGuard<'_, Platforms> {
        self.platforms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The platforms of the policy, from the engine's last response.
#[derive(Default)]
struct Platforms {
    known: BTreeMap<String, Pace>,
    /// When the engine last responded, and when it was last asked, in ms of the monotonic clock.
    answered_ms: Option<u64>,
    asked_ms: u64,
    /// The error of the last request, if it failed.
    failed: Option<Unavailable>,
}

impl Platforms {
    /// Returns the response if the engine need not be asked for it.
    fn pace(&self, platform: &str, now_ms: u64) -> Option<Result<Option<Pace>, Unavailable>> {
        let known = self.known.get(platform).copied();
        let is_fresh = self.answered_ms.is_some_and(|at_ms| now_ms < at_ms + PLATFORMS_MS);
        let was_asked = (self.answered_ms.is_some() || self.failed.is_some()) && now_ms < self.asked_ms + ASKED_MS;
        match (known, &self.failed) {
            (Some(pace), _) if is_fresh || was_asked => Some(Ok(Some(pace))),
            // An unknown platform may be in a newer policy.
            (None, None) if was_asked => Some(Ok(None)),
            (None, Some(error)) if was_asked => Some(Err(error.clone())),
            _ => None,
        }
    }
}

/// Returns the text for a client whose query cannot be answered now. The reason is logged only: it contains the
/// engine's addresses, which clients must not see.
fn unanswered(error: &Unavailable) -> &'static str {
    tracing::debug!(%error, "a client's query cannot be answered now");
    "the engine is unavailable; retry later"
}

/// A running gateway.
pub struct Gateway {
    edge: Arc<GatewayState>,
    address: SocketAddr,
    /// Aborted when the gateway ends.
    tasks: Vec<JoinHandle<()>>,
    accepting: JoinHandle<()>,
    /// Awaited when the gateway ends.
    endings: JoinHandle<()>,
    ended: watch::Receiver<Option<u64>>,
    _lock: epoch::DirectoryLock,
}

impl Gateway {
    /// Listens, takes an epoch, follows the kicks, waits until every partition has acknowledged the first lease, and
    /// then accepts connections. Waits for an engine that is not reachable yet.
    pub async fn start(config: Config, uplink: Arc<dyn Uplink>, clock: Arc<dyn Clock>) -> Result<Gateway, Error> {
        let keys = match &config.admission {
            Admission::Tokens(tokens) => Some(open_keys(tokens, &clock).await?),
            Admission::Insecure => None,
        };
        let certificate = match &config.tls {
            Some(files) => Some(Certificate::open("gateway", files, None, clock.clone())?),
            None => None,
        };
        let lock = epoch::DirectoryLock::take(&config.data.join(&config.name))?;
        let (sender, outbox) = Outbox::open(lock.directory(), config.queue_bytes).map_err(Error::Queue)?;
        let listener = listen(config.listen).map_err(|cause| Error::Listen {
            address: config.listen,
            cause,
        })?;
        let address = listener.local_addr().map_err(Error::Queue)?;
        let known = until_it_works("the engine", || uplink.epoch(&config.name)).await;
        let epoch = lock.next(known)?;
        // Done before the lease, so that no kick for this epoch is missed.
        let kicks = until_it_works("kicks", || uplink.kicks(&config.name)).await;
        let (phase, _) = watch::channel(Phase::Open);
        let (superseded, ended) = watch::channel(None);
        let edge = Arc::new(GatewayState {
            roster: Roster::default(),
            heartbeats: HeartbeatBatches::new(uplink.partitions(), config.beats_max),
            audience: Arc::default(),
            users: BoundedCounts::new(config.user_connections_max),
            addresses: BoundedCounts::new(config.address_connections_max),
            unknown_addresses: RareWarning::default(),
            handshakes_by_address: BoundedCounts::new(ADDRESS_HANDSHAKES_MAX),
            certificate,
            keys,
            ramp: Ramp::new(clock.clone(), config.accept_rate),
            conns: AtomicU64::new(1),
            chances: Mutex::new(Random(clock.now_ms() ^ u64::from(std::process::id()) << 32)),
            phase,
            log_is_well: AtomicBool::new(true),
            log_is_ill: Notify::new(),
            endings: Mutex::new(Some(sender)),
            health: Health::default(),
            platforms: Mutex::default(),
            asking_for_platforms: tokio::sync::Mutex::default(),
            superseded,
            epoch,
            config,
            clock,
            uplink,
        });
        let mut first_ms;
        loop {
            first_ms = edge.clock.monotonic_ms();
            match lease::renew(&edge, edge.config.lease_ms).await {
                Ok(()) => break,
                Err(error) => {
                    tracing::warn!("the first lease failed, retrying: {error}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        tracing::info!(name = edge.config.name, epoch = epoch.0, %address, "the gateway accepts connections");
        if edge.certificate.is_none() && !address.ip().to_canonical().is_loopback() {
            tracing::warn!(
                %address,
                "other machines can connect without TLS, so tokens cross the network unencrypted; set --tls-cert and \
                 --tls-key, or put a proxy with TLS in front of this address"
            );
        }
        edge.ramp.set_back();
        let outbox = Arc::new(tokio::sync::Mutex::new(outbox));
        let endings = keep(&edge, disconnect_queue::TASK, move |edge| {
            disconnect_queue::run(edge, outbox.clone())
        });
        // The first subscription was opened before the lease; the task opens later ones itself.
        let kicks = Arc::new(Mutex::new(Some(kicks)));
        let listener = Arc::new(listener);
        let tasks = vec![
            keep(&edge, "lease", move |edge| lease::run(edge, first_ms)),
            keep(&edge, "heartbeats", heartbeats::run),
            keep(&edge, "kicks", move |edge| kicks::run(edge, kicks.clone())),
            keep(&edge, "changes", audience::run),
            keep(&edge, "keys and certificates", reload),
        ];
        let accepting = keep(&edge, "accept", move |edge| accept(edge, listener.clone()));
        Ok(Gateway {
            edge,
            address,
            tasks,
            accepting,
            endings,
            ended,
            _lock: lock,
        })
    }

    /// The address on which it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn edge(&self) -> &Arc<GatewayState> {
        &self.edge
    }

    /// Waits until another process is this gateway. This one must then end, without ending the lease.
    pub async fn superseded(&mut self) -> Error {
        let known = match self.ended.wait_for(Option::is_some).await {
            Ok(known) => known.unwrap_or_default(),
            Err(_) => std::future::pending().await,
        };
        Error::Superseded {
            name: self.edge.config.name.clone(),
            own: self.edge.epoch.0,
            known,
        }
    }

    /// Stops. Each client is asked to reconnect, at a time of its own within the drain time. If clients can go to
    /// another gateway meanwhile (`elsewhere`), the gateway waits for them that long; then it closes the rest. Finally
    /// it ends the lease.
    pub async fn stop(self, elsewhere: bool) {
        let edge = &self.edge;
        edge.phase.send_replace(Phase::Stopping);
        // No more connections are accepted: the socket is closed with its task.
        self.accepting.abort();
        let drain_ms = edge.config.drain.as_millis() as u64;
        // The second half of the drain time is for clients that were asked last to arrive elsewhere.
        let asked_within_ms = if elsewhere { drain_ms / 2 } else { drain_ms };
        let clients = edge.roster.count();
        edge.roster.for_each(|session| {
            let after_ms = edge.chance(asked_within_ms + 1);
            session.order(ConnectionCommand::Reconnect { after_ms });
        });
        if clients > 0 && elsewhere {
            let gone = async {
                while edge.roster.count() > 0 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                tokio::time::sleep(SETTLE).await;
            };
            let _ = tokio::time::timeout(edge.config.drain, gone).await;
        }
        tracing::info!(clients, left = edge.roster.count(), "closing the gateway");
        self.close_all().await;
        let edge = self.edge;
        // Waiting disconnects are appended to the log before the lease ends, or stay in the queue's file.
        drop(edge.endings.lock().unwrap_or_else(PoisonError::into_inner).take());
        if tokio::time::timeout(FLUSH, self.endings).await.is_err() {
            tracing::warn!("some disconnects were not published, the end of the lease ends their connections");
        }
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
        if let Err(error) = lease::renew(&edge, 0).await {
            tracing::warn!("ending the lease failed, it expires by itself: {error}");
        }
    }

    /// Ends without an event to the log, since another process uses this name. Clients are asked to reconnect.
    pub async fn abandon(self) {
        self.edge.phase.send_replace(Phase::Stopping);
        self.accepting.abort();
        self.tasks.iter().for_each(JoinHandle::abort);
        self.close_all().await;
        self.endings.abort();
    }

    /// Waits until the last client has closed, within a time limit.
    async fn close_all(&self) {
        let edge = &self.edge;
        edge.roster
            .for_each(|session| session.order(ConnectionCommand::Close(Close::Restart)));
        let closed = async {
            while edge.roster.count() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            // The last frames are sent after the connections have left the roster.
            tokio::time::sleep(Duration::from_millis(100)).await;
        };
        let _ = tokio::time::timeout(FLUSH, closed).await;
    }
}

fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    // A restarted gateway can bind its port at once.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn until_it_works<T>(what: &str, mut ask: impl FnMut() -> uplink::Asked<T>) -> T {
    let mut backoff = backoff::UPLINK.start();
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => tracing::info!("waiting for {what}: {error}"),
        }
        tokio::time::sleep(backoff.pause()).await;
    }
}

/// Loads the keys. Waits for keys at a URL: if they are unavailable now, the engine must still start.
async fn open_keys(settings: &Tokens, clock: &Arc<dyn Clock>) -> Result<Keys, keys::BadKeys> {
    let mut tries = 0u32;
    loop {
        tries += 1;
        match Keys::open(settings.clone(), clock.clone()).await {
            Err(error @ keys::BadKeys::Unavailable(_)) if tries.is_power_of_two() => {
                tracing::warn!(tries, "not accepting connections yet, retrying every second: {error}");
            }
            Err(keys::BadKeys::Unavailable(_)) => {}
            opened => return opened,
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Accepts connections at the rate that [`Ramp`] allows, as long as the gateway runs.
async fn accept(edge: Arc<GatewayState>, listener: Arc<TcpListener>) -> End {
    let handshakes = Handshakes::new(HANDSHAKES_MAX);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("accepting a connection failed, retrying: {error}");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        // Behind a proxy all clients come from one address.
        let place = match edge.config.trust_forwarded {
            true => None,
            false => match edge.handshakes_by_address.take(network_of(peer.ip())) {
                Some(place) => Some(place),
                None => {
                    metrics::gateway_refused("too_many_handshakes");
                    continue;
                }
            },
        };
        let wait = edge.ramp.wait();
        if wait >= PACE {
            tokio::time::sleep(wait).await;
        }
        // Frames are small and should leave at once. If this fails, they are only later.
        let _ = stream.set_nodelay(true);
        let Some((slot, given_up)) = handshakes.begin().await else {
            return End::Failed("the limit of handshakes is closed".to_owned());
        };
        let edge = edge.clone();
        tokio::spawn(guarded("handshake", async move {
            tokio::select! {
                () = handshake::enter(edge, stream, peer) => {}
                Ok(()) = given_up => metrics::gateway_refused("handshake_given_up"),
            }
            drop((place, slot));
        }));
    }
}

/// Reloads keys and certificates.
async fn reload(edge: Arc<GatewayState>) -> End {
    loop {
        tokio::time::sleep(edge.config.reload).await;
        edge.reload_keys().await;
        if let Some(certificate) = &edge.certificate {
            certificate.reload_if_changed();
        }
    }
}
