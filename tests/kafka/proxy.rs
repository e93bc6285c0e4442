//! A proxy between clients and brokers of Kafka, which can do to single requests what a network does: hold, delay or lose them,
//! deliver them late over a connection that the client has given up, lose their answers, reset connections, cut off a broker.
//!
//! Brokers have a second listener that names the proxy's ports (`scripts/kafka --proxied`), so that the proxy changes nothing in
//! what it passes on. A test says what is to happen to which request ([`Proxy::next`]); the random faults of long runs are in
//! `network`. Each connection has a thread for each direction; while it waits, what follows on its connection waits as well.

use crate::frames::{Api, Frame};
use crate::network::RandomFaults;
use std::collections::BTreeMap;
use std::io::{self, BufReader, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// How long a test waits for a request to come, or to be released.
const PATIENCE: Duration = Duration::from_secs(60);

/// What happens to a request.
#[derive(Clone, Debug)]
pub enum Action {
    /// It passes; the test sees it and its answer.
    Pass,
    /// It stays in the proxy until it is released.
    Hold,
    /// It passes later.
    Delay(Duration),
    /// The client's connection is reset, and the request stays in the proxy until the test has it delivered.
    Keep,
    /// The client's connection is reset, and the request is delivered later.
    DeliverLate(Duration),
    /// The connection is reset, and the request is never delivered.
    Lose,
    /// The request is delivered, and the connection is reset in place of its answer.
    LoseAnswer,
    /// The request is delivered, and its answer passes later.
    DelayAnswer(Duration),
    /// The request is delivered, and the client gets this answer in place of the broker's.
    Answer(Frame),
    /// Every connection to the broker is reset, and new ones for so long.
    CutOff(Duration),
}

impl Action {
    /// How long it lasts; none if a test decides that, or if it is over at once.
    pub fn lasts(&self) -> Duration {
        match self {
            Action::Delay(time) | Action::DeliverLate(time) | Action::DelayAnswer(time) | Action::CutOff(time) => *time,
            Action::Pass | Action::Hold | Action::Keep | Action::Lose | Action::LoseAnswer | Action::Answer(_) => {
                Duration::ZERO
            }
        }
    }
}

/// A request to which something happens, as the test sees it.
#[derive(Default)]
pub struct Intercepted {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Default)]
struct Seen {
    /// The broker's place, and the request.
    request: Option<(usize, Frame)>,
    answer: Option<Frame>,
    is_released: bool,
}

impl Intercepted {
    fn wait<T>(&self, what: &str, mut seen: impl FnMut(&mut Seen) -> Option<T>) -> T {
        let begun = Instant::now();
        let mut now = lock(&self.seen);
        loop {
            if let Some(found) = seen(&mut now) {
                return found;
            }
            assert!(begun.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
            let wait = self.changed.wait_timeout(now, Duration::from_millis(100));
            now = wait.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn change(&self, change: impl FnOnce(&mut Seen)) {
        change(&mut lock(&self.seen));
        self.changed.notify_all();
    }

    /// Waits for the request.
    pub fn request(&self) -> (usize, Frame) {
        self.wait("the request comes", |seen| seen.request.clone())
    }

    /// Waits for the broker's answer.
    pub fn answer(&self) -> Frame {
        self.wait("the request is answered", |seen| seen.answer.clone())
    }

    /// Lets a request pass that is held.
    pub fn release(&self) {
        self.change(|seen| seen.is_released = true);
    }
}

/// To the next request of an API that has a text in it.
struct Rule {
    api: Api,
    text: String,
    action: Action,
    intercepted: Arc<Intercepted>,
}

pub struct Proxy {
    ports: Vec<u16>,
    shared: Arc<Shared>,
}

#[derive(Default)]
pub struct Shared {
    /// The brokers, in the order of our ports. None until they run.
    brokers: Mutex<Vec<SocketAddrV4>>,
    rules: Mutex<Vec<Rule>>,
    random: Mutex<Option<RandomFaults>>,
    /// Until when nobody comes to a broker, by its place.
    cut_off: Mutex<BTreeMap<usize, Instant>>,
    /// Those that are open.
    connections: Mutex<BTreeMap<u64, Arc<Connection>>>,
    count: AtomicU64,
}

/// From a client to a broker.
struct Connection {
    number: u64,
    broker: usize,
    client: TcpStream,
    upstream: TcpStream,
    /// Requests that are not answered yet, by their numbers.
    pending: Mutex<BTreeMap<i32, Pending>>,
}

/// A request that was delivered.
struct Pending {
    api: Api,
    action: Action,
    intercepted: Option<Arc<Intercepted>>,
}

pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Proxy {
    /// Listens for clients of as many brokers as there are ports, of which 0 is any. They wait until it serves.
    pub fn listen(ports: &[u16]) -> Proxy {
        let listeners: Vec<TcpListener> = ports
            .iter()
            .map(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).expect("a free port"))
            .collect();
        let port = |listener: &TcpListener| listener.local_addr().expect("bound").port();
        let ports = listeners.iter().map(port).collect();
        let shared = Arc::new(Shared::default());
        for (broker, listener) in listeners.into_iter().enumerate() {
            let shared = shared.clone();
            // Ends with the process.
            thread::spawn(move || {
                for client in listener.incoming().flatten() {
                    // A broker that is down refuses: so does the proxy.
                    let _ = shared.accept(broker, client);
                }
            });
        }
        Proxy { ports, shared }
    }

    /// Our ports, one for each broker.
    pub fn ports(&self) -> &[u16] {
        &self.ports
    }

    /// What a client is given to come through the proxy.
    pub fn bootstrap(&self) -> String {
        let servers: Vec<String> = self.ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
        servers.join(",")
    }

    /// Where the brokers' listeners for the proxy are, in the order of our ports.
    pub fn serve(&self, brokers: Vec<SocketAddrV4>) {
        *lock(&self.shared.brokers) = brokers;
    }

    /// What happens to the next request of an API that has a text in it: a topic, a group, a transactional id.
    pub fn next(&self, api: Api, text: &str, action: Action) -> Arc<Intercepted> {
        let intercepted = Arc::<Intercepted>::default();
        lock(&self.shared.rules).push(Rule {
            api,
            text: text.to_owned(),
            action,
            intercepted: intercepted.clone(),
        });
        intercepted
    }

    /// Delivers a request over a connection of its own, and returns the broker's answer.
    pub fn deliver(&self, (broker, request): &(usize, Frame)) -> Frame {
        self.shared.deliver(*broker, request).expect("the broker answers")
    }

    /// Random faults from now on.
    pub fn start_faults(&self, faults: RandomFaults) {
        *lock(&self.shared.random) = Some(faults);
    }

    /// No more of them. Returns how many there were of each kind.
    pub fn end_faults(&self) -> BTreeMap<&'static str, u32> {
        let faults = lock(&self.shared.random).take();
        lock(&self.shared.cut_off).clear();
        faults.map(|faults| faults.struck).unwrap_or_default()
    }
}

impl Shared {
    fn connect(&self, broker: usize) -> io::Result<TcpStream> {
        let address = lock(&self.brokers).get(broker).copied();
        let upstream = TcpStream::connect(address.ok_or(io::ErrorKind::ConnectionRefused)?)?;
        upstream.set_nodelay(true)?;
        Ok(upstream)
    }

    fn accept(self: &Arc<Shared>, broker: usize, client: TcpStream) -> io::Result<()> {
        let is_cut_off = |until: &Instant| Instant::now() < *until;
        if lock(&self.cut_off).get(&broker).is_some_and(is_cut_off) {
            return Ok(());
        }
        client.set_nodelay(true)?;
        let connection = Arc::new(Connection {
            number: self.count.fetch_add(1, Ordering::Relaxed),
            broker,
            client,
            upstream: self.connect(broker)?,
            pending: Mutex::default(),
        });
        lock(&self.connections).insert(connection.number, connection.clone());
        for pump in [Shared::requests, Shared::answers] {
            let (shared, connection) = (self.clone(), connection.clone());
            thread::spawn(move || {
                // However one direction ends, the other ends with it.
                let _ = pump(&shared, &connection);
                connection.reset();
                lock(&shared.connections).remove(&connection.number);
            });
        }
        Ok(())
    }

    /// Passes requests on until the connection ends.
    fn requests(self: &Arc<Shared>, connection: &Connection) -> io::Result<()> {
        let mut from = BufReader::new(&connection.client);
        while let Some(request) = Frame::read(&mut from)? {
            let (action, intercepted) = self.action(connection, &request);
            match &action {
                Action::Hold => {
                    let held = intercepted.as_ref().expect("only tests hold");
                    held.wait("a request that is held is released", |seen| {
                        seen.is_released.then_some(())
                    });
                }
                Action::Delay(time) => thread::sleep(*time),
                Action::Keep | Action::Lose => return Ok(()),
                Action::DeliverLate(time) => {
                    let (shared, broker, time) = (self.clone(), connection.broker, *time);
                    thread::spawn(move || {
                        thread::sleep(time);
                        // The broker may be down by then: then it is lost.
                        let _ = shared.deliver(broker, &request);
                    });
                    return Ok(());
                }
                Action::CutOff(time) => {
                    lock(&self.cut_off).insert(connection.broker, Instant::now() + *time);
                    let connections = lock(&self.connections);
                    let of_the_broker = |other: &&Arc<Connection>| other.broker == connection.broker;
                    connections
                        .values()
                        .filter(of_the_broker)
                        .for_each(|other| other.reset());
                    return Ok(());
                }
                Action::Pass | Action::LoseAnswer | Action::DelayAnswer(_) | Action::Answer(_) => {}
            }
            let pending = Pending {
                api: request.api(),
                action,
                intercepted,
            };
            lock(&connection.pending).insert(request.correlation(), pending);
            (&connection.upstream).write_all(&request.to_bytes())?;
        }
        Ok(())
    }

    /// Passes answers on until the connection ends.
    fn answers(self: &Arc<Shared>, connection: &Connection) -> io::Result<()> {
        let mut from = BufReader::new(&connection.upstream);
        while let Some(mut answer) = Frame::read(&mut from)? {
            let pending = lock(&connection.pending).remove(&answer.answers());
            if let Some(pending) = pending {
                if let Some(intercepted) = pending.intercepted {
                    intercepted.change(|seen| seen.answer = Some(answer.clone()));
                }
                if pending.api == Api::Fetch
                    && let Some(random) = &mut *lock(&self.random)
                {
                    random.keep_fetched(connection.number, &answer);
                }
                match pending.action {
                    Action::LoseAnswer => return Ok(()),
                    Action::DelayAnswer(time) => thread::sleep(time),
                    Action::Answer(other) => answer = other.answering(answer.answers()),
                    Action::Pass
                    | Action::Hold
                    | Action::Delay(_)
                    | Action::Keep
                    | Action::DeliverLate(_)
                    | Action::Lose
                    | Action::CutOff(_) => {}
                }
            }
            (&connection.client).write_all(&answer.to_bytes())?;
        }
        Ok(())
    }

    /// What happens to a request: what a test has asked for, or else what the dice say.
    fn action(&self, connection: &Connection, request: &Frame) -> (Action, Option<Arc<Intercepted>>) {
        let (api, broker) = (request.api(), connection.broker);
        let mut rules = lock(&self.rules);
        let asked_for = |rule: &Rule| rule.api == api && request.has(&rule.text);
        if let Some(place) = rules.iter().position(asked_for) {
            let rule = rules.remove(place);
            rule.intercepted
                .change(|seen| seen.request = Some((broker, request.clone())));
            return (rule.action, Some(rule.intercepted));
        }
        let mut random = lock(&self.random);
        let random = random
            .as_mut()
            .and_then(|faults| faults.strike(connection.number, request));
        (random.unwrap_or(Action::Pass), None)
    }

    fn deliver(&self, broker: usize, request: &Frame) -> io::Result<Frame> {
        let mut upstream = self.connect(broker)?;
        upstream.set_read_timeout(Some(PATIENCE))?;
        upstream.write_all(&request.to_bytes())?;
        Frame::read(&mut upstream)?.ok_or(io::ErrorKind::ConnectionReset.into())
    }
}

impl Connection {
    /// What was sent before is still delivered.
    fn reset(&self) {
        // Closed already, perhaps.
        let _ = self.client.shutdown(Shutdown::Both);
        let _ = self.upstream.shutdown(Shutdown::Both);
    }
}
