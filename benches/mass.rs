//! Mass events in the whole engine on the embedded log: everybody comes, a gateway dies with all of its users, they come back,
//! they all time out in the same second, and they come back again.
//!
//! A million users with one device each on one gateway, four partitions, stores on disk. Measured is the time until every
//! change is committed, the processor time of the whole process, and how long the engine left a question for its statistics
//! without an answer meanwhile. The engine has the machine's clock, which is put forward once. `ROLLCALL_BENCH_USERS` sets the
//! number of users.

mod allocator;
mod appender;
#[expect(dead_code, reason = "other benchmarks need more of it")]
mod measure;
mod memory;
#[expect(dead_code, reason = "this process is measured as it is")]
mod processor;
#[expect(dead_code, reason = "here all are on one gateway")]
mod users;

use futures_util::future::join_all;
use measure::{figure, heading, is_quick, rate};
use memory::resident_bytes;
use processor::{SELF, cpu_seconds};
use rollcall::clock::{Clock, SystemClock};
use rollcall::engine::{Engine, Tuning};
use rollcall::log::local::{LocalLog, Settings};
use rollcall::log::{Log, NewRecord};
use rollcall::presence::event::{ConnRef, Event, Intent};
use rollcall::presence::{Conn, Epoch, Partition};
use rollcall::random::Random;
use rollcall::schema::avro;
use rollcall::topics::Topic;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::{Duration, Instant};

const PARTITIONS: u32 = 4;
const GATEWAY: &str = "edge-1";
/// Longer than the time-out of the platform.
const TIMED_OUT_MS: u64 = 500_000;

/// The machine's clock, and how far it was put forward.
struct AheadClock {
    clock: SystemClock,
    ahead_ms: AtomicU64,
}

impl Clock for AheadClock {
    fn now_ms(&self) -> u64 {
        self.clock.now_ms() + self.ahead_ms.load(Ordering::SeqCst)
    }

    fn monotonic(&self) -> Duration {
        self.clock.monotonic() + Duration::from_millis(self.ahead_ms.load(Ordering::SeqCst))
    }
}

/// What a mass event took, in one round or several.
#[derive(Default)]
struct Cost {
    seconds: Vec<f64>,
    cpu_seconds: Vec<f64>,
    unanswered_ms: Vec<f64>,
}

struct World {
    users: u32,
    log: Arc<LocalLog>,
    engine: Engine,
    runtime: tokio::runtime::Runtime,
    clock: Arc<AheadClock>,
    changes: u64,
}

fn main() {
    let users = users::count();
    let rounds = if is_quick() { 1 } else { 3 };
    heading(&format!(
        "mass events, embedded log, {PARTITIONS} partitions, {users} users on one gateway"
    ));
    let directory = tempfile::tempdir().expect("a directory");
    let clock = Arc::new(AheadClock {
        clock: SystemClock::new(),
        ahead_ms: AtomicU64::new(0),
    });
    let settings = Settings {
        partitions: Some(PARTITIONS),
        ..Settings::default()
    };
    let log = LocalLog::open(&directory.path().join("log"), settings, clock.clone()).expect("opened");
    let log = Arc::new(log);
    let engine = Engine::start(log.clone(), Some(directory.path()), clock.clone(), Tuning::default()).expect("started");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build();
    let mut world = World {
        users,
        log,
        engine,
        runtime: runtime.expect("a runtime"),
        clock,
        changes: 0,
    };

    let (mut first, mut died, mut timed_out, mut back) =
        (Cost::default(), Cost::default(), Cost::default(), Cost::default());
    world.come(1, &mut first);
    let online = resident_bytes();
    for round in 0..rounds {
        let epoch = 1 + 2 * round;
        world.gateway_dies(epoch, &mut died);
        world.come(epoch + 1, &mut back);
        world.time_out(&mut timed_out);
        world.come(epoch + 2, &mut back);
    }
    let id = |what: &str| format!("mass.{users}.{what}");
    first.show(&id("come"), "everybody comes, for the first time", users);
    died.show(&id("gateway_dies"), "the gateway dies", users);
    timed_out.show(&id("time_out"), "all time out in the same second", users);
    back.show(&id("come_back"), "everybody comes back, away users on disk", users);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let what = "memory of the process, all online";
    figure(&id("mib"), what, &[mib(online)], "MiB").show();
    let what = "the same, after all of this";
    figure(&id("mib_later"), what, &[mib(resident_bytes())], "MiB").show();
    world.engine.stop().expect("stopped");
}

impl Cost {
    fn show(&self, id: &str, what: &str, users: u32) {
        figure(&format!("{id}.seconds"), what, &self.seconds, "s").show();
        let rates: Vec<f64> = self.seconds.iter().map(|seconds| f64::from(users) / seconds).collect();
        figure(&format!("{id}.rate"), "  changes", &rates, "/s").show();
        figure(&format!("{id}.cpu"), "  processor time", &self.cpu_seconds, "s").show();
        let what = "  longest time without an answer to stats";
        figure(&format!("{id}.unanswered"), what, &self.unanswered_ms, "ms").show();
    }
}

impl World {
    /// Every user connects, in random order.
    fn come(&mut self, epoch: u64, cost: &mut Cost) {
        let connect = |user: u32| Event::Connect {
            who: users::who(user),
            via: ConnRef {
                gateway: GATEWAY.into(),
                epoch: Epoch(epoch),
                conn: Conn(u64::from(user) + 1),
            },
            intent: Intent::Login,
            client: None,
            auth_at: None,
        };
        let log = self.log.clone();
        let order = Random(epoch).order(self.users);
        self.cost(cost, || appender::append(&*log, order.into_iter().map(connect)));
    }

    fn gateway_dies(&mut self, epoch: u64, cost: &mut Cost) {
        let event = Event::Lease {
            gateway: GATEWAY.into(),
            epoch: Epoch(epoch),
            ttl_ms: 0,
        };
        let log = self.log.clone();
        self.cost(cost, || append_to_all(&log, &event));
    }

    fn time_out(&mut self, cost: &mut Cost) {
        let (log, clock) = (self.log.clone(), self.clock.clone());
        self.cost(cost, || {
            clock.ahead_ms.fetch_add(TIMED_OUT_MS, Ordering::SeqCst);
            append_to_all(&log, &Event::Tick);
        });
    }

    /// Does something that gives each user one change, and waits until all of them are committed.
    fn cost(&mut self, cost: &mut Cost, what: impl FnOnce() + Send) {
        let expected = self.changes + u64::from(self.users);
        let cpu = cpu_seconds(SELF);
        let began = Instant::now();
        let unanswered = thread::scope(|scope| {
            let doing = scope.spawn(what);
            let mut longest = Duration::ZERO;
            // Since when each partition has not answered.
            let mut unanswered = [None; PARTITIONS as usize];
            loop {
                let was_done = doing.is_finished();
                let asked = Instant::now();
                let stats = (0..PARTITIONS).map(|partition| self.engine.stats(Partition(partition)));
                let stats = self.runtime.block_on(join_all(stats));
                let mut is_committed = was_done;
                let mut changes = 0;
                for (partition, stats) in (0..PARTITIONS).zip(stats) {
                    let since: &mut Option<Instant> = &mut unanswered[partition as usize];
                    let began = *since.get_or_insert(asked);
                    longest = longest.max(began.elapsed());
                    let Ok(stats) = stats else {
                        is_committed = false;
                        continue;
                    };
                    *since = None;
                    let end = self
                        .log
                        .range(Topic::Events, Partition(partition))
                        .expect("a range")
                        .end;
                    is_committed &= stats.committed >= end;
                    changes += stats.changes;
                }
                if is_committed && changes >= expected {
                    assert_eq!(changes, expected, "one change for each user");
                    return longest;
                }
                thread::sleep(Duration::from_millis(5));
            }
        });
        let took = began.elapsed();
        self.changes = expected;
        cost.seconds.push(took.as_secs_f64());
        cost.cpu_seconds.push(cpu_seconds(SELF) - cpu);
        cost.unanswered_ms.push(unanswered.as_secs_f64() * 1e3);
        println!("    {:.0} changes/s", rate(self.users as usize, took));
    }
}

/// Appends a record to every partition, and waits until it is durable.
fn append_to_all(log: &LocalLog, event: &Event<'_>) {
    let mut value = Vec::new();
    avro::encode_event(event, &mut value);
    let record = |partition| {
        let record = NewRecord {
            key: None,
            value: value.clone(),
            headers: Vec::new(),
        };
        (Partition(partition), record)
    };
    let (done, acknowledged) = mpsc::channel();
    let acknowledge = move |result: Result<Vec<_>, _>| done.send(result.map(|_| ())).expect("waited for");
    log.append((0..PARTITIONS).map(record).collect(), Box::new(acknowledge));
    acknowledged.recv().expect("acknowledged").expect("appended");
}
