//! The core only, in memory, on one thread: users with one online device each, ids of 20 bytes; ten thousand of them, a
//! million, and ten million.
//!
//! Users come in random order. Events are decoded from Avro a batch of 10,000 ahead, as the partition processor does, and only
//! the fold is measured, unless a row says otherwise. Passes are two minutes of log time apart, so that every timer fires and is
//! set again every few passes. The yardstick, in the same run and order, overwrites the values of a `HashMap<String, u64>`.
//!
//! The benchmark starts itself once for each allocator and number of users, since memory is measured per process.
//! `ROLLCALL_BENCH_USERS` sets another number than a million.

mod measure;
mod memory;
mod users;

use measure::{heading, median, rate, row, timed};
use memory::resident_bytes;
use rollcall::presence::ahead::USERS_AHEAD;
use rollcall::presence::change::Output;
use rollcall::presence::event::{Ending, Event, HeartbeatEntry, Intent};
use rollcall::presence::policy::Policy;
use rollcall::presence::state::State;
use rollcall::presence::{Conn, Epoch, Offset, Partition};
use rollcall::random::Random;
use rollcall::schema::avro;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::HashMap;
use std::env;
use std::hint::black_box;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

const ALLOCATOR: &str = "ROLLCALL_BENCH_ALLOCATOR";
const GROWN: &str = "ROLLCALL_BENCH_GROWN";
const ALLOCATORS: [&str; 2] = ["mimalloc", "system"];
/// Other numbers of users, of whom fewer figures are measured.
const GROWTH: [u32; 2] = [10_000, 10_000_000];
const GROWTH_ROUNDS: u64 = 3;
const BATCH: usize = 10_000;
const ROUNDS: u64 = 7;
const START_MS: u64 = 1_700_000_000_000;
const PASS_MS: u64 = 120_000;
/// Users that one commit of the store writes, the default.
const STORE_COMMIT_USERS: usize = 100_000;

/// The allocator that the environment names. Counts the bytes that are allocated and not freed.
struct Chosen;

const UNDECIDED: u8 = 0;
const MIMALLOC: u8 = 1;
const SYSTEM: u8 = 2;
static CHOICE: AtomicU8 = AtomicU8::new(UNDECIDED);

thread_local! {
    static LIVE_BYTES: Cell<isize> = const { Cell::new(0) };
}

fn count(bytes: isize) {
    // At the end of a thread its counter may already be dropped.
    let _ = LIVE_BYTES.try_with(|live| live.set(live.get() + bytes));
}

fn live_bytes() -> f64 {
    LIVE_BYTES.get() as f64
}

fn is_mimalloc() -> bool {
    match CHOICE.load(Ordering::Relaxed) {
        UNDECIDED => decide(),
        choice => choice == MIMALLOC,
    }
}

/// Runs before `main` and does not allocate, since the first allocation must be freed by the same allocator.
#[cold]
fn decide() -> bool {
    unsafe extern "C" {
        fn getenv(name: *const std::ffi::c_char) -> *const std::ffi::c_char;
    }
    // Safety: a name that ends in 0; nothing sets the environment while it is read, before `main`.
    let system = unsafe {
        let value = getenv(c"ROLLCALL_BENCH_ALLOCATOR".as_ptr());
        !value.is_null() && std::ffi::CStr::from_ptr(value).to_bytes() == b"system"
    };
    CHOICE.store(if system { SYSTEM } else { MIMALLOC }, Ordering::Relaxed);
    !system
}

// Safety: every call is passed unchanged to one and the same allocator.
unsafe impl GlobalAlloc for Chosen {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        if is_mimalloc() {
            unsafe { mimalloc::MiMalloc.alloc(layout) }
        } else {
            unsafe { System.alloc(layout) }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        if is_mimalloc() {
            unsafe { mimalloc::MiMalloc.alloc_zeroed(layout) }
        } else {
            unsafe { System.alloc_zeroed(layout) }
        }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        if is_mimalloc() {
            unsafe { mimalloc::MiMalloc.realloc(pointer, layout, size) }
        } else {
            unsafe { System.realloc(pointer, layout, size) }
        }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        if is_mimalloc() {
            unsafe { mimalloc::MiMalloc.dealloc(pointer, layout) }
        } else {
            unsafe { System.dealloc(pointer, layout) }
        }
    }
}

#[global_allocator]
static CHOSEN: Chosen = Chosen;

fn main() {
    if env::var(ALLOCATOR).is_ok() {
        return if env::var(GROWN).is_ok() { grown() } else { run() };
    }
    let this = env::current_exe().expect("the benchmark knows its own path");
    for allocator in ALLOCATORS {
        let status = Command::new(&this).env(ALLOCATOR, allocator).status();
        assert!(status.is_ok_and(|status| status.success()), "{allocator} failed");
    }
    for users in GROWTH {
        let mut command = Command::new(&this);
        command.env(ALLOCATOR, ALLOCATORS[0]).env(GROWN, users.to_string());
        let status = command.status();
        assert!(status.is_ok_and(|status| status.success()), "{users} users failed");
    }
}

/// Measures what must not depend on the number of users.
fn grown() {
    let users: u32 = env::var(GROWN).ok().and_then(|users| users.parse().ok()).unwrap_or(1);
    heading(&format!("core, {users} users"));
    let (mut random, mut world) = (Random(1), World::new());
    world.connect_all(&random.order(users));
    let (mut beats, mut alive) = (vec![], vec![]);
    for _ in 0..GROWTH_ROUNDS {
        let order = random.order(users);
        world.ms += PASS_MS;
        beats.push(rate(
            order.len(),
            world.pass(&order, |world, batch| world.heartbeats(batch).0),
        ));
        world.ms += PASS_MS;
        alive.push(rate(order.len(), world.alive(users)));
    }
    row("heartbeats", &beats, "/s", "");
    row("alive, connections", &alive, "/s", "");
}

fn run() {
    let users = users::count();
    let allocator = env::var(ALLOCATOR).unwrap_or_default();
    heading(&format!("core, {users} users, allocator: {allocator}"));
    let mut random = Random(1);
    let mut world = World::new();

    world.connect_all(&random.order(users));

    let (mut beats, mut with_decoding, mut packed, mut map_updates) = (vec![], vec![], vec![], vec![]);
    let mut alive = vec![];
    for _ in 0..ROUNDS {
        let order = random.order(users);
        world.ms += PASS_MS;
        let mut decoding = Duration::ZERO;
        let took = world.pass(&order, |world, batch| {
            let (fold, decode) = world.heartbeats(batch);
            decoding += decode;
            fold
        });
        beats.push(rate(order.len(), took));
        with_decoding.push(rate(order.len(), took + decoding));
        world.ms += PASS_MS;
        let took = world.pass(&order, World::packed_heartbeats);
        packed.push(rate(order.len(), took));
        world.ms += PASS_MS;
        alive.push(rate(order.len(), world.alive(users)));
    }
    let (mut opened, mut closed) = (vec![], vec![]);
    for conn in 1..=ROUNDS {
        let order = random.order(users);
        world.ms += 1_000;
        let took = world.pass(&order, |world, batch| world.disconnects(batch, Conn(conn)));
        closed.push(rate(order.len(), took));
        world.ms += 1_000;
        let took = world.pass(&order, |world, batch| world.connects(batch, Conn(conn + 1)));
        opened.push(rate(order.len(), took));
    }
    let both: Vec<f64> = opened
        .iter()
        .zip(&closed)
        .map(|(a, b)| 2.0 / (1.0 / a + 1.0 / b))
        .collect();
    let mut map: HashMap<String, u64> = (0..users).map(|user| (users::id('u', user), 0)).collect();
    for _ in 0..ROUNDS {
        let order = random.order(users);
        world.ms += PASS_MS;
        let took = world.pass(&order, |world, batch| world.map_updates(batch, &mut map));
        map_updates.push(rate(order.len(), took));
    }
    let ratio = |rounds: &[f64]| format!("{:.2} of the HashMap", median(rounds) / median(&map_updates));
    row("updates of a HashMap<String, u64>", &map_updates, "/s", "the yardstick");
    row("heartbeats", &beats, "/s", &format!("{}; target 2 M", ratio(&beats)));
    row(
        "heartbeats, with their decoding",
        &with_decoding,
        "/s",
        &ratio(&with_decoding),
    );
    row("heartbeats in records of 1,000", &packed, "/s", &ratio(&packed));
    row(
        "alive, connections in records of 10,000",
        &alive,
        "/s",
        &format!("{}; target 20 M", ratio(&alive)),
    );
    row(
        "connects and disconnects",
        &both,
        "/s",
        &format!("{}; target 500 k", ratio(&both)),
    );
    row("  connects (login)", &opened, "/s", "");
    row("  disconnects (closed)", &closed, "/s", "");
}

struct World {
    state: State,
    ms: u64,
    offset: u64,
    since_save: usize,
}

impl World {
    fn new() -> World {
        World {
            state: State::new(Partition(0), Policy::default()),
            ms: START_MS,
            offset: 0,
            since_save: 0,
        }
    }

    /// Connects every user for the first time, and prints what they take of memory.
    fn connect_all(&mut self, order: &[u32]) {
        let (resident, live) = (resident_bytes() as f64, live_bytes());
        let took = self.pass(order, |world, batch| world.connects(batch, Conn(1)));
        // Changes that are not saved yet do not count as memory of users.
        self.save();
        let ids = (users::id('u', 0).len() + users::id('d', 0).len()) as f64;
        let per_device = |bytes: f64| bytes / order.len() as f64 - ids;
        let (resident, live) = (resident_bytes() as f64 - resident, live_bytes() - live);
        assert_eq!(self.state.users_in_memory(), order.len());
        row("first connects", &[rate(order.len(), took)], "/s", "");
        let target = "target 112; over the bytes of its ids";
        row(
            "memory per online device, resident",
            &[per_device(resident)],
            "bytes",
            target,
        );
        row("memory per online device, allocated", &[per_device(live)], "bytes", "");
    }

    /// Folds `alive` records with all connections, a gateway after the other.
    fn alive(&mut self, users: u32) -> Duration {
        let mut sum = Duration::ZERO;
        for gateway in 0..users::GATEWAYS {
            let on_gateway: Vec<u32> = (gateway..users).step_by(users::GATEWAYS as usize).collect();
            for users in on_gateway.chunks(BATCH) {
                let conns = users.iter().map(|user| users::conn(*user, Conn(1)));
                let value = encoded(&Event::Alive {
                    gateway: users::gateway(gateway),
                    epoch: Epoch(1),
                    conns: conns.collect(),
                });
                sum += self.fold(&[value]).0;
                self.since_save += users.len();
                if self.since_save >= STORE_COMMIT_USERS {
                    self.save();
                }
            }
        }
        sum
    }

    /// Changes the state as a commit of the store does.
    fn save(&mut self) {
        black_box(self.state.take_dirt());
        self.state.release_long_timers();
        self.since_save = 0;
    }

    /// Processes every user once, a batch at a time. Returns the sum of the batches' times.
    fn pass(&mut self, order: &[u32], mut batch: impl FnMut(&mut World, &[u32]) -> Duration) -> Duration {
        let mut sum = Duration::ZERO;
        for users in order.chunks(BATCH) {
            sum += batch(self, users);
            self.since_save += users.len();
            if self.since_save >= STORE_COMMIT_USERS {
                self.save();
            }
        }
        sum
    }

    /// Returns how long the fold of these events took, and how long their decoding took.
    fn fold(&mut self, values: &[Vec<u8>]) -> (Duration, Duration) {
        let mut events = Vec::with_capacity(values.len());
        let ((), decoding) = timed(|| {
            for value in values {
                events.push(avro::decode_event(value).expect("encoded just now"));
            }
        });
        let (changes, folding) = timed(|| {
            let mut changes = 0;
            for events in events.chunks(USERS_AHEAD) {
                self.state.look_ahead(events.iter().filter_map(Event::user));
                for event in events {
                    self.offset += 1;
                    self.state
                        .fold(Offset(self.offset), self.ms, Some(event), &mut |output| {
                            changes += usize::from(matches!(output, Output::Change(_)));
                            black_box(&output);
                        });
                }
            }
            changes
        });
        let event = &events[0];
        let expected = match event {
            Event::Heartbeat { .. } | Event::Heartbeats { .. } | Event::Alive { .. } => 0,
            _ => events.len(),
        };
        assert_eq!(changes, expected, "changes of a batch that begins with {event:?}");
        (folding, decoding)
    }

    fn heartbeats(&mut self, users: &[u32]) -> (Duration, Duration) {
        let values: Vec<_> = users.iter().map(|user| heartbeat(*user)).collect();
        self.fold(&values)
    }

    /// A record has heartbeats of one gateway.
    fn packed_heartbeats(&mut self, users: &[u32]) -> Duration {
        let mut values = Vec::new();
        for gateway in 0..users::GATEWAYS {
            let of_gateway: Vec<u32> = users
                .iter()
                .copied()
                .filter(|user| user % users::GATEWAYS == gateway)
                .collect();
            for users in of_gateway.chunks(1_000) {
                let beats = users.iter().map(|user| HeartbeatEntry {
                    who: users::who(*user),
                    conn: users::conn(*user, Conn(1)),
                });
                values.push(encoded(&Event::Heartbeats {
                    gateway: users::gateway(gateway),
                    epoch: Epoch(1),
                    beats: beats.collect(),
                }));
            }
        }
        self.fold(&values).0
    }

    fn connects(&mut self, users: &[u32], conn: Conn) -> Duration {
        let connect = |user: &u32| {
            encoded(&Event::Connect {
                who: users::who(*user),
                via: users::via(*user, conn),
                intent: Intent::Login,
                client: None,
                auth_at: None,
            })
        };
        let values: Vec<_> = users.iter().map(connect).collect();
        self.fold(&values).0
    }

    fn disconnects(&mut self, users: &[u32], conn: Conn) -> Duration {
        let disconnect = |user: &u32| {
            encoded(&Event::Disconnect {
                who: users::who(*user),
                via: users::via(*user, conn),
                reason: Ending::Closed,
            })
        };
        let values: Vec<_> = users.iter().map(disconnect).collect();
        self.fold(&values).0
    }

    fn map_updates(&mut self, users: &[u32], map: &mut HashMap<String, u64>) -> Duration {
        let values: Vec<_> = users.iter().map(|user| heartbeat(*user)).collect();
        let events: Vec<_> = values
            .iter()
            .map(|value| avro::decode_event(value).expect("encoded just now"))
            .collect();
        let ((), took) = timed(|| {
            for event in &events {
                if let Some(seen) = event.user().and_then(|user| map.get_mut(user)) {
                    *seen = self.ms;
                }
            }
        });
        took
    }
}

fn heartbeat(user: u32) -> Vec<u8> {
    encoded(&Event::Heartbeat {
        who: users::who(user),
        via: users::via(user, Conn(1)),
    })
}

fn encoded(event: &Event<'_>) -> Vec<u8> {
    let mut value = Vec::new();
    avro::encode_event(event, &mut value);
    value
}
