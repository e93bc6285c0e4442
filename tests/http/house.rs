//! A server in this process, on a log in memory and a fixed clock: 1970, one second past midnight.

use crate::client::Client;
use rollcall::clock::ManualClock;
use rollcall::config::{Oidc, Scopes, Tim};
use rollcall::engine::{Engine, Tuning};
use rollcall::http::{Access, AppState, GatewayAddress, Issuer, Limits, serve};
use rollcall::log::Log as _;
use rollcall::log::memory::MemoryLog;
use rollcall::presence::Partition;
use rollcall::schema::partitioner::partition_of;
use rollcall::topics::Topic;
use serde_json::{Value, json};
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// What a server is like.
struct Interface<'i> {
    tokens: Option<&'i [(String, Scopes)]>,
    limits: Limits,
    origins: Vec<String>,
    records: Option<u64>,
    issuer: Option<Oidc>,
    tim: Option<Tim>,
}

impl Interface<'_> {
    fn new(limits: Limits) -> Self {
        Interface {
            tokens: None,
            limits,
            origins: Vec::new(),
            records: None,
            issuer: None,
            tim: None,
        }
    }
}

pub struct House {
    pub log: Arc<MemoryLog>,
    pub clock: Arc<ManualClock>,
    pub stop: watch::Sender<bool>,
    /// Where the gateway is, if there were one.
    pub edge: watch::Sender<Option<GatewayAddress>>,
    pub access: Arc<Access>,
    _serving: watch::Sender<bool>,
    client: Client,
    engine: Arc<Engine>,
    face: AppState,
    runtime: Option<Runtime>,
}

impl House {
    pub fn new(partitions: u32) -> House {
        House::with_tokens(partitions, None)
    }

    pub fn with_tokens(partitions: u32, tokens: Option<&[(String, Scopes)]>) -> House {
        House::with(partitions, tokens, Limits::of(1_000))
    }

    pub fn with_origins(partitions: u32, tokens: Option<&[(String, Scopes)]>, origins: Vec<String>) -> House {
        House::with_all(partitions, tokens, Limits::of(1_000), origins)
    }

    pub fn with(partitions: u32, tokens: Option<&[(String, Scopes)]>, limits: Limits) -> House {
        House::with_all(partitions, tokens, limits, Vec::new())
    }

    fn with_all(partitions: u32, tokens: Option<&[(String, Scopes)]>, limits: Limits, origins: Vec<String>) -> House {
        let clock = Arc::new(ManualClock::new(1_000));
        let log = Arc::new(MemoryLog::new(partitions, clock.clone()));
        let engine = Engine::start(log.clone(), None, clock.clone(), Tuning::default()).expect("started");
        let interface = Interface {
            tokens,
            origins,
            ..Interface::new(limits)
        };
        House::of(log, clock, engine, interface)
    }

    /// With tokens, and with the commands of Tencent Cloud IM.
    pub fn with_tim(tokens: &[(String, Scopes)], tim: Tim) -> House {
        let clock = Arc::new(ManualClock::new(1_000));
        let log = Arc::new(MemoryLog::new(1, clock.clone()));
        let engine = Engine::start(log.clone(), None, clock.clone(), Tuning::default()).expect("started");
        let interface = Interface {
            tokens: Some(tokens),
            tim: Some(tim),
            ..Interface::new(Limits::of(1_000))
        };
        House::of(log, clock, engine, interface)
    }

    /// With an issuer whose tokens are accepted too. It is a million seconds after 1970.
    pub fn with_issuer(tokens: Option<&[(String, Scopes)]>, issuer: Oidc) -> House {
        let clock = Arc::new(ManualClock::new(1_000_000_000));
        let log = Arc::new(MemoryLog::new(1, clock.clone()));
        let engine = Engine::start(log.clone(), None, clock.clone(), Tuning::default()).expect("started");
        let interface = Interface {
            tokens,
            issuer: Some(issuer),
            ..Interface::new(Limits::of(1_000))
        };
        House::of(log, clock, engine, interface)
    }

    /// With an engine that is a member of a group, and has its partitions.
    pub fn joined(log: Arc<MemoryLog>, clock: Arc<ManualClock>, engine: Engine) -> House {
        House::of(log, clock, engine, Interface::new(Limits::of(1_000)))
    }

    /// On a log that is there already, with stores in a directory. `records`: how many a question about the past may read.
    pub fn on(
        log: Arc<MemoryLog>,
        clock: Arc<ManualClock>,
        data: Option<&Path>,
        tuning: Tuning,
        records: Option<u64>,
    ) -> House {
        let engine = Engine::start(log.clone(), data, clock.clone(), tuning).expect("started");
        let interface = Interface {
            records,
            ..Interface::new(Limits::of(1_000))
        };
        House::of(log, clock, engine, interface)
    }

    fn of(log: Arc<MemoryLog>, clock: Arc<ManualClock>, engine: Engine, interface: Interface<'_>) -> House {
        let Interface {
            tokens,
            limits,
            origins,
            records,
            issuer,
            tim,
        } = interface;
        let engine = Arc::new(engine);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let listener = runtime
            .block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let (stop, stopping) = watch::channel(false);
        let (edge, edges) = watch::channel(None);
        let face = AppState::new(engine.clone(), tokens, address, None, stopping)
            .expect("threads")
            .with_edge(edges)
            .with_origins(origins);
        let face = match records {
            Some(records) => face.with_past_records(records),
            None => face,
        };
        let face = match issuer {
            Some(issuer) => {
                let issuer = Arc::new(Issuer::new(issuer, clock.clone()).expect("usable"));
                runtime.spawn(issuer.clone().keep(stop.subscribe()));
                face.with_issuer(issuer)
            }
            None => face,
        };
        let face = match tim {
            Some(tim) => face.with_tim(tim, clock.clone()),
            None => face,
        };
        let access = face.access();
        // The engine continues while the HTTP interface reports that it stops.
        let serving = watch::channel(false).0;
        runtime.spawn(serve(listener, face.clone().router(), limits, serving.subscribe()));
        let house = House {
            log,
            clock,
            stop,
            edge,
            access,
            _serving: serving,
            client: Client::new(address),
            engine,
            face,
            runtime: Some(runtime),
        };
        wait_until("it is ready", || house.get("/readyz").status == 200);
        house
    }

    /// The next offset of a topic.
    pub fn end(&self, topic: Topic, partition: u32) -> u64 {
        self.log.range(topic, Partition(partition)).expect("a range").end.0
    }

    /// The next offsets of the events in all partitions.
    pub fn ends(&self) -> Vec<u64> {
        let partitions = 0..self.log.partitions();
        partitions.map(|partition| self.end(Topic::Events, partition)).collect()
    }

    /// From now on there is a history of how many are online.
    pub fn keep_history(&self) {
        let runtime = self.runtime.as_ref().expect("it runs");
        runtime.spawn(self.face.clone().keep_history());
    }

    /// From now on incidents are found.
    pub fn find_incidents(&self) {
        let runtime = self.runtime.as_ref().expect("it runs");
        runtime.spawn(self.face.clone().find_incidents());
    }

    /// Waits until everything in the log is folded and its outputs are out.
    #[track_caller]
    pub fn wait_until_folded(&self) {
        wait_until("everything is folded", || {
            let stats = self.get("/v1/stats").ok();
            let partitions = stats["partitions"].as_array().expect("partitions");
            partitions.iter().all(|partition| partition["lag"] == 0)
        });
    }
}

/// Asks again until it is so, within bounds.
#[track_caller]
pub fn wait_until(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..6_000 {
        if so() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("not in a minute: {what}");
}

impl Deref for House {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for House {
    fn drop(&mut self) {
        end(self.runtime.take(), &self.engine);
    }
}

/// Ends a server of a test, then its engine.
pub fn end(runtime: Option<Runtime>, engine: &Engine) {
    if let Some(runtime) = runtime {
        runtime.shutdown_background();
    }
    let stopped = engine.stop();
    if !std::thread::panicking() {
        stopped.expect("the engine ends well");
    }
}

/// The number-th user of a partition.
pub fn user_of(partition: u32, partitions: u32, number: usize) -> String {
    (0..)
        .map(|number| format!("user-{number}"))
        .filter(|user| partition_of(user, partitions) == Partition(partition))
        .nth(number)
        .expect("there are more")
}

pub fn connect(user: &str, conn: u64) -> Value {
    on("connect", user, conn, json!({"intent": "login"}))
}

/// An event of a user's one device on the gateway g1.
pub fn on(kind: &str, user: &str, conn: u64, more: Value) -> Value {
    let mut event = json!({"type": kind, "user": user, "platform": "android", "device": "a1", "gateway": "g1",
        "epoch": 1, "conn": conn});
    if let (Some(event), Some(more)) = (event.as_object_mut(), more.as_object()) {
        event.extend(more.clone());
    }
    event
}

pub fn says(user: &str, text: impl Into<String>) -> Value {
    json!({"type": "custom_status", "user": user, "text": text.into()})
}
