//! The WebSocket edge: clients' connections become events, kicks close them, leases say that the gateway is alive.
//!
//! It writes to the log and follows kicks and changes through its [`uplink`]; it has no path to the state. A
//! connection comes in through the [`handshake`] and is a [`session`] from then on. What all of them share is the [`GatewayState`]:
//! who is there ([`roster`]), heartbeats on their way ([`beats`]), ends on theirs ([`endings`]), who listens to whom
//! ([`audience`]), the [`lease`], the [`kicks`] and the [`limits`]; [`health`] keeps their tasks running. The protocol is
//! in [`frames`], and for people in `docs/gateway.md`.

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
pub mod tls;
pub mod uplink;

use crate::clock::Clock;
use crate::config::gateway::{Admission, Config, Tokens};
use crate::metrics;
use crate::presence::{Conn, Epoch};
use audience::Audience;
use disconnect_queue::{Outbox, QueuedDisconnect};
use frames::Close;
use handshake::Visitor;
use health::{End, Health, guarded, keep};
use heartbeats::HeartbeatBatches;
use keys::{Bearer, Keys};
use limits::{BoundedCounts, Handshakes, Ramp, network_of};
use roster::{ConnectionCommand, Roster};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tls::Certificate;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use uplink::{Pace, Unavailable, Uplink};

/// Connections that wait to be accepted, as far as the machine lets them.
const BACKLOG: u32 = 4_096;
/// Handshakes at once. One more, and the oldest is given up.
const HANDSHAKES_MAX: usize = 2_048;
/// From one address; more are cut.
const ADDRESS_HANDSHAKES_MAX: u32 = 256;
/// How long the platforms of the policy are believed before the engine is asked again.
const PLATFORMS_MS: u64 = 5_000;
/// The engine is asked again for a platform that it did not know, or did not answer for, after this.
const ASKED_MS: u64 = 1_000;
const RETRY: Duration = Duration::from_secs(1);
/// A shorter wait of the ramp is not waited for but added up: timers are no finer than a millisecond.
const PACE: Duration = Duration::from_millis(5);
/// After the last client has gone elsewhere its new connection has this long to be in the log.
const SETTLE: Duration = Duration::from_secs(2);
/// How long the end of the process may wait for ends to be published.
const FLUSH: Duration = Duration::from_secs(5);

/// Why a gateway cannot run, or not any longer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot listen on {address} for WebSockets: {cause}")]
    Listen { address: SocketAddr, cause: io::Error },
    #[error(transparent)]
    Epoch(#[from] epoch::Error),
    #[error("the queue of disconnects and logouts cannot be opened: {0}")]
    Queue(io::Error),
    #[error(transparent)]
    Keys(#[from] keys::BadKeys),
    #[error(transparent)]
    Certificate(#[from] tls::BadCertificate),
    #[error(
        "this process is not the gateway {name:?} any more: the log has a lease of that name with epoch {known}, greater \
         than its own {own}. Either another process was started under this name (give each gateway a name of its own), \
         or somebody whose token may publish for this name wrote that lease"
    )]
    Superseded { name: String, own: u64, known: u64 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Open,
    Stopping,
}

/// What all connections share.
pub struct GatewayState {
    pub config: Config,
    pub clock: Arc<dyn Clock>,
    pub uplink: Arc<dyn Uplink>,
    pub epoch: Epoch,
    pub roster: Roster,
    pub beats: HeartbeatBatches,
    pub audience: Arc<Audience>,
    pub users: Arc<BoundedCounts<Box<str>>>,
    pub addresses: Arc<BoundedCounts<IpAddr>>,
    /// Handshakes under way, by address.
    knocking: Arc<BoundedCounts<IpAddr>>,
    pub certificate: Option<Certificate>,
    keys: Option<Keys>,
    ramp: Ramp,
    conns: AtomicU64,
    chances: AtomicU64,
    phase: watch::Sender<Phase>,
    log_is_well: AtomicBool,
    /// Told when it is not any more.
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

    /// A number that no connection of this epoch has had.
    pub fn next_conn(&self) -> Conn {
        Conn(self.conns.fetch_add(1, Ordering::Relaxed))
    }

    /// A number below `below`, for things to spread; nothing depends on it being hard to guess.
    pub fn chance(&self, below: u64) -> u64 {
        // SplitMix64 of Steele, Lea and Flood.
        let mut z = self.chances.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % below.max(1)
    }

    /// Whether the log takes what it is given. It does not from the first failure on until a lease has got through: one
    /// judge only, or under load what is late and what is not would contradict each other.
    pub fn log_is_well(&self) -> bool {
        self.log_is_well.load(Ordering::Acquire)
    }

    /// A lease got through.
    pub fn log_works(&self) {
        if !self.log_is_well.swap(true, Ordering::AcqRel) {
            tracing::info!("the log takes events again");
            // Everybody who was refused comes now.
            self.ramp.set_back();
        }
    }

    pub fn log_failed(&self, error: &Unavailable) {
        if self.log_is_well.swap(false, Ordering::AcqRel) {
            tracing::warn!("the log is unavailable, so no new connections are taken: {error}");
            self.log_is_ill.notify_one();
        }
    }

    /// A connection's end is on its way to the log when this returns. If too many are, it waits.
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

    /// The same where nothing can wait.
    pub fn ended_suddenly(&self, ending: QueuedDisconnect) {
        let endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = endings.as_ref().is_some_and(|sender| sender.try_send(ending).is_ok());
        if !sent {
            GatewayState::lost_an_end();
        }
    }

    fn lost_an_end() {
        metrics::gateway_endings_refused(1);
        tracing::warn!("disconnect lost: the gateway is stopping; the end of its lease takes the device offline");
    }

    /// A sentence for everything that keeps this gateway from serving clients as it should; empty if it is ready.
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

    /// Somebody else is this gateway now.
    pub fn superseded(&self, known: Epoch) {
        self.superseded.send_replace(Some(known.0));
    }

    /// Whose a token is, or what is wrong with it.
    pub async fn bearer(&self, token: &str, visitor: &Visitor) -> Result<Bearer, String> {
        match &self.keys {
            Some(keys) => keys.bearer(token, &visitor.platform, &visitor.device).await,
            None => Err("no tokens are accepted here".to_owned()),
        }
    }

    /// Reads the keys of tokens again; what cannot be read leaves those before in force.
    pub async fn reload_keys(&self) {
        let Some(keys) = &self.keys else { return };
        match keys.reload().await {
            Ok(true) => tracing::info!("keys of tokens read again"),
            Ok(false) => {}
            Err(error) => tracing::error!(%error, "keys of tokens stay as they are"),
        }
    }

    /// How clients of a platform are to behave; `None` if the policy has no such platform. The engine is asked at most
    /// once a second, by one handshake at a time, whatever clients say their platforms are.
    pub async fn pace(&self, platform: &str) -> Result<Option<Pace>, Unavailable> {
        if let Some(answer) = self.platforms().pace(platform, self.clock.monotonic_ms()) {
            return answer;
        }
        let _alone = self.asking_for_platforms.lock().await;
        // A caller that asked meanwhile asked for this one too.
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

    fn platforms(&self) -> MutexGuard<'_, Platforms> {
        self.platforms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The platforms of the policy, as the engine said last.
#[derive(Default)]
struct Platforms {
    known: BTreeMap<String, Pace>,
    /// When the engine last answered, and when it was last asked, by the monotonic clock.
    answered_ms: Option<u64>,
    asked_ms: u64,
    /// What went wrong when it was last asked.
    failed: Option<Unavailable>,
}

impl Platforms {
    /// The answer, if the engine need not be asked for it.
    fn pace(&self, platform: &str, now_ms: u64) -> Option<Result<Option<Pace>, Unavailable>> {
        let known = self.known.get(platform).copied();
        let is_fresh = self.answered_ms.is_some_and(|at_ms| now_ms < at_ms + PLATFORMS_MS);
        let was_asked = (self.answered_ms.is_some() || self.failed.is_some()) && now_ms < self.asked_ms + ASKED_MS;
        match (known, &self.failed) {
            (Some(pace), _) if is_fresh || was_asked => Some(Ok(Some(pace))),
            // A platform that is not known may be of a policy that is newer.
            (None, None) if was_asked => Some(Ok(None)),
            (None, Some(error)) if was_asked => Some(Err(error.clone())),
            _ => None,
        }
    }
}

/// What a client is told where its question has no answer now. Why is for the operator: it names the engine's addresses,
/// which are no client's business.
fn unanswered(error: &Unavailable) -> &'static str {
    tracing::debug!(%error, "a client's question has no answer now");
    "nobody can answer at the moment; try again"
}

/// A running gateway.
pub struct Gateway {
    edge: Arc<GatewayState>,
    address: SocketAddr,
    /// End with the gateway.
    tasks: Vec<JoinHandle<()>>,
    accepting: JoinHandle<()>,
    /// Is waited for.
    endings: JoinHandle<()>,
    ended: watch::Receiver<Option<u64>>,
    _lock: epoch::DirectoryLock,
}

impl Gateway {
    /// Listens, takes its epoch, follows its kicks and has its first lease acknowledged by every partition; then it
    /// takes connections. Waits for an engine that is not there yet.
    pub async fn start(config: Config, uplink: Arc<dyn Uplink>, clock: Arc<dyn Clock>) -> Result<Gateway, Error> {
        let keys = match &config.admission {
            Admission::Tokens(tokens) => Some(open_keys(tokens, &clock).await?),
            Admission::Insecure => None,
        };
        let certificate = match &config.tls {
            Some((chain, key)) => Some(Certificate::open(chain, key)?),
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
        // Before the lease, so that no kick for this epoch is missed.
        let kicks = until_it_works("kicks", || uplink.kicks(&config.name)).await;
        let (phase, _) = watch::channel(Phase::Open);
        let (superseded, ended) = watch::channel(None);
        let edge = Arc::new(GatewayState {
            roster: Roster::default(),
            beats: HeartbeatBatches::new(uplink.partitions(), config.beats_max),
            audience: Arc::default(),
            users: BoundedCounts::new(config.user_connections_max),
            addresses: BoundedCounts::new(config.address_connections_max),
            knocking: BoundedCounts::new(ADDRESS_HANDSHAKES_MAX),
            certificate,
            keys,
            ramp: Ramp::new(clock.clone(), config.accept_rate),
            conns: AtomicU64::new(1),
            chances: AtomicU64::new(clock.now_ms() ^ u64::from(std::process::id()) << 32),
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
                    tracing::warn!("the first lease is tried again: {error}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
        tracing::info!(name = edge.config.name, epoch = epoch.0, %address, "the gateway takes connections");
        if edge.certificate.is_none() && !address.ip().to_canonical().is_loopback() {
            tracing::warn!(
                %address,
                "other machines can connect without TLS, so tokens go over the network in clear; set --tls-cert and \
                 --tls-key, or put a proxy with TLS before this address"
            );
        }
        edge.ramp.set_back();
        let outbox = Arc::new(tokio::sync::Mutex::new(outbox));
        let endings = keep(&edge, disconnect_queue::TASK, move |edge| {
            disconnect_queue::run(edge, outbox.clone())
        });
        // The first subscription was opened before the lease; later ones are opened by the task itself.
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

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn edge(&self) -> &Arc<GatewayState> {
        &self.edge
    }

    /// Waits until somebody else is this gateway; then this one must end, without a lease of its own.
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

    /// Stops. Clients are told to come back, each after a time of its own within the time to drain. If they can go
    /// elsewhere meanwhile, they are waited for until then; the rest are closed. At last the lease ends.
    pub async fn stop(self, elsewhere: bool) {
        let edge = &self.edge;
        edge.phase.send_replace(Phase::Stopping);
        // No more are accepted: the socket closes with its task.
        self.accepting.abort();
        let drain_ms = edge.config.drain.as_millis() as u64;
        // What comes after half of it still has time to arrive elsewhere.
        let told_within_ms = if elsewhere { drain_ms / 2 } else { drain_ms };
        let told = edge.roster.count();
        edge.roster.for_each(|session| {
            let after_ms = edge.chance(told_within_ms + 1);
            session.order(ConnectionCommand::Reconnect { after_ms });
        });
        if told > 0 && elsewhere {
            let gone = async {
                while edge.roster.count() > 0 {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
                tokio::time::sleep(SETTLE).await;
            };
            let _ = tokio::time::timeout(edge.config.drain, gone).await;
        }
        tracing::info!(told, left = edge.roster.count(), "the gateway closes");
        self.close_all().await;
        let edge = self.edge;
        // Those that are on their way go into the log before the lease ends, or stay in the queue.
        drop(edge.endings.lock().unwrap_or_else(PoisonError::into_inner).take());
        if tokio::time::timeout(FLUSH, self.endings).await.is_err() {
            tracing::warn!("some disconnects were not published; the lease ends their connections");
        }
        for task in self.tasks {
            task.abort();
            let _ = task.await;
        }
        if let Err(error) = lease::renew(&edge, 0).await {
            tracing::warn!("the lease could not be ended and runs out by itself: {error}");
        }
    }

    /// Ends without a word to the log, since somebody else speaks in this name. Clients are told to come back.
    pub async fn abandon(self) {
        self.edge.phase.send_replace(Phase::Stopping);
        self.accepting.abort();
        self.tasks.iter().for_each(JoinHandle::abort);
        self.close_all().await;
        self.endings.abort();
    }

    /// Waits until the last of the clients has closed, within bounds.
    async fn close_all(&self) {
        let edge = &self.edge;
        edge.roster
            .for_each(|session| session.order(ConnectionCommand::Close(Close::Restart)));
        let closed = async {
            while edge.roster.count() > 0 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            // Their last frames leave after they are off the roster.
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
    // A gateway that is started again takes its port at once.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

async fn until_it_works<T>(what: &str, mut ask: impl FnMut() -> uplink::Asked<T>) -> T {
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(error) => tracing::info!("{what} cannot be asked yet: {error}"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Reads the keys. Those at an address are waited for: that they cannot be had now must not end an engine's start.
async fn open_keys(settings: &Tokens, clock: &Arc<dyn Clock>) -> Result<Keys, keys::BadKeys> {
    let mut tries = 0u32;
    loop {
        tries += 1;
        match Keys::open(settings.clone(), clock.clone()).await {
            Err(error @ keys::BadKeys::Unavailable(_)) if tries.is_power_of_two() => {
                tracing::warn!(
                    tries,
                    "no connections are accepted yet, trying again every second: {error}"
                );
            }
            Err(keys::BadKeys::Unavailable(_)) => {}
            opened => return opened,
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Accepts connections at the rate that is let in, for as long as the gateway runs.
async fn accept(edge: Arc<GatewayState>, listener: Arc<TcpListener>) -> End {
    let handshakes = Handshakes::new(HANDSHAKES_MAX);
    loop {
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!("no connection can be accepted at the moment: {error}");
                tokio::time::sleep(RETRY).await;
                continue;
            }
        };
        // Behind a proxy everybody comes from one address.
        let place = match edge.config.trust_forwarded {
            true => None,
            false => match edge.knocking.take(network_of(peer.ip())) {
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
        // Frames are small and wanted at once; a failure only costs time.
        let _ = stream.set_nodelay(true);
        let Some((slot, given_up)) = handshakes.begin().await else {
            return End::Failed("the handshakes are closed".to_owned());
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

/// Reads keys and certificates again.
async fn reload(edge: Arc<GatewayState>) -> End {
    loop {
        tokio::time::sleep(edge.config.reload).await;
        edge.reload_keys().await;
        if let Some(certificate) = &edge.certificate {
            match certificate.reload() {
                Ok(true) => tracing::info!("the certificate was read again"),
                Ok(false) => {}
                Err(error) => tracing::error!("the certificate stays as it is: {error}"),
            }
        }
    }
}
