//! The WebSocket edge: clients' connections become events, kicks close them, leases say that the gateway is alive.
//!
//! It writes to the log and follows kicks and changes through its [`uplink`]; it has no path to the state. A
//! connection comes in through the [`door`] and is a [`session`] from then on. What all of them share is the [`Edge`]:
//! who is there ([`roster`]), heartbeats on their way ([`beats`]), ends on theirs ([`endings`]), who listens to whom
//! ([`audience`]), the [`lease`], the [`kicks`] and the [`limits`]. The protocol is in [`frames`], and for people in
//! `docs/gateway.md`.

pub mod audience;
pub mod beats;
pub mod door;
pub mod endings;
pub mod epoch;
pub mod frames;
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
use beats::Beats;
use door::Visitor;
use endings::{Ending, Queue};
use frames::Close;
use keys::Keys;
use limits::{Counts, Ramp, network_of};
use roster::{Order, Roster};
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tls::Certificate;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use uplink::{Pace, Unavailable, Uplink};

/// Connections that wait to be accepted, as far as the machine lets them.
const BACKLOG: u32 = 4_096;
/// Handshakes at once; who comes then waits to be accepted.
const HANDSHAKES_MAX: usize = 2_048;
/// From one address, so that one alone cannot keep everybody waiting; more are cut.
const ADDRESS_HANDSHAKES_MAX: u32 = 256;
/// How long the platforms of the policy are believed before the engine is asked again.
const PLATFORMS_MS: u64 = 5_000;
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
        "another process is the gateway {name:?} now, with epoch {known}, greater than this one's {own}; give each \
         gateway a name of its own"
    )]
    Superseded { name: String, own: u64, known: u64 },
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    Open,
    Stopping,
}

/// What all connections share.
pub struct Edge {
    pub config: Config,
    pub clock: Arc<dyn Clock>,
    pub uplink: Arc<dyn Uplink>,
    pub epoch: Epoch,
    pub roster: Roster,
    pub beats: Beats,
    pub audience: Arc<Audience>,
    pub users: Arc<Counts<Box<str>>>,
    pub addresses: Arc<Counts<IpAddr>>,
    /// Handshakes under way, by address.
    knocking: Arc<Counts<IpAddr>>,
    pub certificate: Option<Certificate>,
    keys: Option<Keys>,
    ramp: Ramp,
    conns: AtomicU64,
    chances: AtomicU64,
    phase: watch::Sender<Phase>,
    log_is_well: AtomicBool,
    /// Told when it is not any more.
    log_is_ill: Notify,
    endings: Mutex<Option<endings::Sender>>,
    platforms: RwLock<(u64, Arc<BTreeMap<String, Pace>>)>,
    superseded: watch::Sender<Option<u64>>,
}

impl Edge {
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

    /// A connection's end is on its way to the log.
    pub fn ended(&self, ending: Ending) {
        let endings = self.endings.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = &*endings {
            // Nobody takes it if the gateway has stopped; then its lease has ended.
            let _ = sender.send(ending);
        }
    }

    /// Somebody else is this gateway now.
    pub fn superseded(&self, known: Epoch) {
        self.superseded.send_replace(Some(known.0));
    }

    /// The user whose token this is, or what is wrong with it.
    pub fn bearer(&self, token: &str, visitor: &Visitor) -> Result<String, String> {
        match &self.keys {
            Some(keys) => {
                let bearer = keys.bearer(token, &visitor.platform, &visitor.device);
                bearer.map(|bearer| bearer.user)
            }
            None => Err("no tokens are taken here".to_owned()),
        }
    }

    /// How clients of a platform are to behave; none if the policy has no such platform.
    pub async fn pace(&self, platform: &str) -> Result<Option<Pace>, Unavailable> {
        let now_ms = self.clock.monotonic_ms();
        let (until_ms, known) = self.platforms.read().unwrap_or_else(PoisonError::into_inner).clone();
        if now_ms < until_ms
            && let Some(pace) = known.get(platform)
        {
            return Ok(Some(*pace));
        }
        // One who is not known may be of a policy that is newer.
        let platforms = match self.uplink.platforms().await {
            Ok(platforms) => Arc::new(platforms),
            Err(error) => return known.get(platform).map(|pace| Some(*pace)).ok_or(error),
        };
        let pace = platforms.get(platform).copied();
        let mut newest = self.platforms.write().unwrap_or_else(PoisonError::into_inner);
        *newest = (now_ms + PLATFORMS_MS, platforms);
        Ok(pace)
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
    edge: Arc<Edge>,
    address: SocketAddr,
    /// Ends with the gateway, except for that of the endings, which is waited for.
    tasks: Vec<JoinHandle<()>>,
    endings: JoinHandle<()>,
    ended: watch::Receiver<Option<u64>>,
    _seat: epoch::Seat,
}

impl Gateway {
    /// Listens, takes its epoch, follows its kicks and has its first lease acknowledged by every partition; then it
    /// takes connections. Waits for an engine that is not there yet.
    pub async fn start(config: Config, uplink: Arc<dyn Uplink>, clock: Arc<dyn Clock>) -> Result<Gateway, Error> {
        let keys = match &config.admission {
            Admission::Tokens(tokens) => Some(open_keys(tokens).await?),
            Admission::Insecure => None,
        };
        let certificate = match &config.tls {
            Some((chain, key)) => Some(Certificate::open(chain, key)?),
            None => None,
        };
        let seat = epoch::Seat::take(&config.data.join(&config.name))?;
        let queue = Queue::open(seat.directory(), config.queue_bytes).map_err(Error::Queue)?;
        let listener = listen(config.listen).map_err(|cause| Error::Listen {
            address: config.listen,
            cause,
        })?;
        let address = listener.local_addr().map_err(Error::Queue)?;
        let known = until_it_works("the engine", || uplink.epoch(&config.name)).await;
        let epoch = seat.next(known)?;
        // Before the lease, so that no kick for this epoch is missed.
        let kicks = until_it_works("kicks", || uplink.kicks(&config.name)).await;
        let (phase, _) = watch::channel(Phase::Open);
        let (superseded, ended) = watch::channel(None);
        let (sender, endings) = mpsc::unbounded_channel();
        let edge = Arc::new(Edge {
            roster: Roster::default(),
            beats: Beats::new(uplink.partitions(), config.beats_max),
            audience: Arc::default(),
            users: Counts::new(config.user_connections_max),
            addresses: Counts::new(config.address_connections_max),
            knocking: Counts::new(ADDRESS_HANDSHAKES_MAX),
            certificate,
            keys,
            ramp: Ramp::new(clock.clone(), config.accept_rate),
            conns: AtomicU64::new(1),
            chances: AtomicU64::new(clock.now_ms() ^ u64::from(std::process::id()) << 32),
            phase,
            log_is_well: AtomicBool::new(true),
            log_is_ill: Notify::new(),
            endings: Mutex::new(Some(sender)),
            platforms: RwLock::default(),
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
        edge.ramp.set_back();
        let endings = tokio::spawn(endings::run(edge.clone(), queue, endings));
        let tasks = vec![
            tokio::spawn(lease::run(edge.clone(), first_ms)),
            tokio::spawn(beats::run(edge.clone())),
            tokio::spawn(kicks::run(edge.clone(), kicks)),
            tokio::spawn(reload(edge.clone())),
            tokio::spawn(accept(edge.clone(), listener)),
        ];
        Ok(Gateway {
            edge,
            address,
            tasks,
            endings,
            ended,
            _seat: seat,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn edge(&self) -> &Arc<Edge> {
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
        if let Some(accepting) = self.tasks.last() {
            accepting.abort();
        }
        let drain_ms = edge.config.drain.as_millis() as u64;
        // What comes after half of it still has time to arrive elsewhere.
        let told_within_ms = if elsewhere { drain_ms / 2 } else { drain_ms };
        let told = edge.roster.count();
        edge.roster.for_each(|session| {
            let after_ms = edge.chance(told_within_ms + 1);
            session.order(Order::Reconnect { after_ms });
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
        self.tasks.iter().for_each(JoinHandle::abort);
        self.close_all().await;
        self.endings.abort();
    }

    /// Waits until the last of the clients has closed, within bounds.
    async fn close_all(&self) {
        let edge = &self.edge;
        edge.roster
            .for_each(|session| session.order(Order::Close(Close::Restart)));
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
async fn open_keys(settings: &Tokens) -> Result<Keys, keys::BadKeys> {
    loop {
        match Keys::open(settings.clone()).await {
            Err(error @ keys::BadKeys::Unavailable(_)) => tracing::warn!("no connections are taken yet: {error}"),
            opened => return opened,
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Accepts connections at the rate that is let in, for as long as the gateway runs.
async fn accept(edge: Arc<Edge>, listener: TcpListener) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(permit) = handshakes.clone().acquire_owned().await else {
            return;
        };
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
        let edge = edge.clone();
        tokio::spawn(async move {
            door::enter(edge, stream, peer).await;
            drop((place, permit));
        });
    }
}

/// Reads keys and certificates again.
async fn reload(edge: Arc<Edge>) {
    loop {
        tokio::time::sleep(edge.config.reload).await;
        if let Some(keys) = &edge.keys {
            match keys.reload().await {
                Ok(true) => tracing::info!("the keys of tokens were read again"),
                Ok(false) => {}
                Err(error) => tracing::error!("the keys of tokens stay as they are: {error}"),
            }
        }
        if let Some(certificate) = &edge.certificate {
            match certificate.reload() {
                Ok(true) => tracing::info!("the certificate was read again"),
                Ok(false) => {}
                Err(error) => tracing::error!("the certificate stays as it is: {error}"),
            }
        }
    }
}
