//! The core only, in memory, on one thread: users with one online device each, ids of 12 and 16 bytes; ten thousand of them, a
//! hundred thousand, a million, and ten million (not in the short form).
//!
//! Users come in random order. Events are decoded from Avro a batch of 10,000 ahead, as the partition processor does, and only
//! the fold is measured, unless a row says otherwise. Passes are two minutes of log time apart, so that every timer fires and is
//! set again every few passes. The yardstick, in the same run and order, overwrites the values of a `HashMap<String, u64>`.
//!
//! The benchmark starts itself once for each number of users, since memory is measured per process.
//! `ROLLCALL_BENCH_USERS` sets another number than a million.

mod measure;
mod memory;
mod users;

use measure::{figure, heading, is_quick, rate, timed};
use memory::resident_bytes;
use rollcall::allocator::Allocator;
use rollcall::presence::ahead::USERS_AHEAD;
use rollcall::presence::change::Output;
use rollcall::presence::event::{Ending, Event, HeartbeatEntry, Intent};
use rollcall::presence::policy::Policy;
use rollcall::presence::state::State;
use rollcall::presence::{Conn, Epoch, Offset, Partition};
use rollcall::random::Random;
use rollcall::schema::avro;
use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::collections::HashMap;
use std::env;
use std::hint::black_box;
use std::process::Command;
use std::time::Duration;

/// Whether the process is one of those that the benchmark starts, and which: of the main part, or of another number of users.
const RUN: &str = "ROLLCALL_BENCH_RUN";
const USERS: &str = "ROLLCALL_BENCH_GROWN";
/// Other numbers of users, with whom fewer figures are measured. The last one is left out of the short form.
const GROWTH: [u32; 3] = [10_000, 100_000, 10_000_000];
/// With fewer users there are more rounds, so that each number of users is measured for some time.
const GROWTH_ROUNDS: (u32, u32) = (3, 20);
const BATCH: usize = 10_000;
/// Of the short form, and of the long one.
const ROUNDS: [u64; 2] = [3, 7];
const START_MS: u64 = 1_700_000_000_000;
const PASS_MS: u64 = 120_000;
/// Memory of fewer users is less than what the process has anyway.
const MEASURABLE_USERS: usize = 100_000;
/// Longer than the time-out of the platform.
const TIMED_OUT_MS: u64 = 500_000;
/// Users that one commit of the store writes, the default.
const STORE_COMMIT_USERS: usize = 100_000;

/// The program's allocator. Counts the bytes that are allocated and not freed.
struct Counting;

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

// Safety: every call is passed unchanged to one and the same allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { Allocator.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        unsafe { Allocator.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size as isize - layout.size() as isize);
        unsafe { Allocator.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        unsafe { Allocator.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn main() {
    match env::var(USERS).ok().map(|users| users.parse()) {
        Some(users) => return grown(users.expect("a number of users")),
        None if env::var(RUN).is_ok() => return run(),
        None => {}
    }
    let this = env::current_exe().expect("the benchmark knows its own path");
    let status = Command::new(&this).env(RUN, "1").status();
    assert!(status.is_ok_and(|status| status.success()), "the benchmark failed");
    let growth = if is_quick() { &GROWTH[..2] } else { &GROWTH[..] };
    for users in growth {
        let status = Command::new(&this).env(USERS, users.to_string()).status();
        assert!(status.is_ok_and(|status| status.success()), "{users} users failed");
    }
}

/// Measures what must not depend on the number of users.
fn grown(users: u32) {
    heading(&format!("core, {users} users"));
    let (mut random, mut world) = (Random(1), World::new());
    world.connect_all(&format!("core.{users}"), &random.order(users));
    let (mut beats, mut alive, mut opened, mut closed) = (vec![], vec![], vec![], vec![]);
    let rounds = (10_000_000 / users).clamp(GROWTH_ROUNDS.0, GROWTH_ROUNDS.1);
    for round in 1..=u64::from(rounds) {
        let order = random.order(users);
        world.ms += PASS_MS;
        beats.push(rate(
            order.len(),
            world.pass(&order, |world, batch| world.heartbeats(batch, Conn(round)).0),
        ));
        world.ms += PASS_MS;
        alive.push(rate(order.len(), world.alive(users, Conn(round))));
        let (left, came) = world.leave_and_come(&order, Conn(round));
        closed.push(left);
        opened.push(came);
    }
    let id = |what: &str| format!("core.{users}.{what}");
    figure(&id("heartbeats"), "heartbeats", &beats, "/s").show();
    figure(&id("alive"), "alive, connections", &alive, "/s").show();
    figure(&id("connects"), "connects (login)", &opened, "/s").show();
    figure(&id("disconnects"), "disconnects (closed)", &closed, "/s").show();
    let lost = world.lose_all(users);
    figure(&id("gateways_die"), "users of gateways that die", &[lost], "/s").show();
}

fn run() {
    let users = users::count();
    heading(&format!("core, {users} users"));
    let of = format!("core.{users}");
    let rounds = ROUNDS[usize::from(!is_quick())];
    let mut random = Random(1);
    let mut world = World::new();

    world.connect_all(&of, &random.order(users));

    let (mut beats, mut with_decoding, mut packed, mut map_updates) = (vec![], vec![], vec![], vec![]);
    let mut alive = vec![];
    // The yardstick has its turn in each round, so that both see the same machine.
    let mut map: HashMap<String, u64> = (0..users).map(|user| (users::id('u', user), 0)).collect();
    for _ in 0..rounds {
        let order = random.order(users);
        world.ms += PASS_MS;
        let mut decoding = Duration::ZERO;
        let took = world.pass(&order, |world, batch| {
            let (fold, decode) = world.heartbeats(batch, Conn(1));
            decoding += decode;
            fold
        });
        beats.push(rate(order.len(), took));
        with_decoding.push(rate(order.len(), took + decoding));
        world.ms += PASS_MS;
        let took = world.pass(&order, World::packed_heartbeats);
        packed.push(rate(order.len(), took));
        world.ms += PASS_MS;
        alive.push(rate(order.len(), world.alive(users, Conn(1))));
        let took = world.pass(&order, |world, batch| world.map_updates(batch, &mut map));
        map_updates.push(rate(order.len(), took));
    }
    let updated = map.values().filter(|seen| **seen == world.ms).count();
    assert_eq!(updated, users as usize, "the yardstick did its work");
    drop(map);
    let (mut opened, mut closed) = (vec![], vec![]);
    for conn in 1..=rounds {
        let (left, came) = world.leave_and_come(&random.order(users), Conn(conn));
        closed.push(left);
        opened.push(came);
    }
    let mut timed_out = vec![];
    for round in 0..rounds {
        timed_out.push(world.time_all_out(users));
        let order = random.order(users);
        world.pass(&order, |world, batch| world.connects(batch, Conn(100 + round)));
    }
    let lost = world.lose_all(users);
    let both: Vec<f64> = opened
        .iter()
        .zip(&closed)
        .map(|(a, b)| 2.0 / (1.0 / a + 1.0 / b))
        .collect();
    let id = |what: &str| format!("{of}.{what}");
    let map = "the HashMap";
    figure(
        &id("map"),
        "yardstick: update a HashMap<String, u64>",
        &map_updates,
        "/s",
    )
    .show();
    for (name, what, rates) in [
        ("heartbeats", "heartbeats", &beats),
        ("decoded_heartbeats", "heartbeats, with their decoding", &with_decoding),
        ("packed_heartbeats", "heartbeats in records of 1,000", &packed),
        ("alive", "alive, connections in records of 10,000", &alive),
        ("connects_and_disconnects", "connects and disconnects", &both),
        ("connects", "  connects (login)", &opened),
        ("disconnects", "  disconnects (closed)", &closed),
        ("timeouts", "users who time out in the same second", &timed_out),
    ] {
        figure(&id(name), what, rates, "/s").beside(map, &map_updates).show();
    }
    figure(&id("gateways_die"), "users of gateways that die", &[lost], "/s").show();
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

    /// Connects every user for the first time, and shows what they take of memory.
    fn connect_all(&mut self, of: &str, order: &[u32]) {
        let (resident, live) = (resident_bytes() as f64, live_bytes());
        let took = self.pass(order, |world, batch| world.connects(batch, Conn(1)));
        // Changes that are not saved yet do not count as memory of users.
        self.save();
        let per_device = |bytes: f64| bytes / order.len() as f64;
        let (resident, live) = (resident_bytes() as f64 - resident, live_bytes() - live);
        assert_eq!(self.state.users_in_memory(), order.len());
        let id = |what: &str| format!("{of}.{what}");
        figure(
            &id("first_connects"),
            "first connects",
            &[rate(order.len(), took)],
            "/s",
        )
        .show();
        if order.len() < MEASURABLE_USERS {
            return;
        }
        let ids = "its ids of 12 and 16 bytes included";
        let what = "memory per online device, resident";
        figure(&id("resident_bytes"), what, &[per_device(resident)], "bytes")
            .note(ids)
            .show();
        let what = "memory per online device, requested";
        figure(&id("requested_bytes"), what, &[per_device(live)], "bytes")
            .note(ids)
            .show();
        let process = resident_bytes() as f64 / f64::from(1 << 20);
        figure(&id("process_mib"), "memory of the process, resident", &[process], "MiB").show();
    }

    /// Folds `alive` records with all connections, a gateway after the other.
    fn alive(&mut self, users: u32, conn: Conn) -> Duration {
        let mut sum = Duration::ZERO;
        for gateway in 0..users::GATEWAYS {
            let on_gateway: Vec<u32> = (gateway..users).step_by(users::GATEWAYS as usize).collect();
            for users in on_gateway.chunks(BATCH) {
                let conns = users.iter().map(|user| users::conn(*user, conn));
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

    /// Disconnects and connects every user. Returns the rates of both.
    fn leave_and_come(&mut self, order: &[u32], conn: Conn) -> (f64, f64) {
        self.ms += 1_000;
        let left = self.pass(order, |world, batch| world.disconnects(batch, conn));
        self.ms += 1_000;
        let came = self.pass(order, |world, batch| world.connects(batch, Conn(conn.0 + 1)));
        (rate(order.len(), left), rate(order.len(), came))
    }

    /// Lets every user time out at one record. Returns the rate.
    fn time_all_out(&mut self, users: u32) -> f64 {
        self.ms += TIMED_OUT_MS;
        let took = self.fold_one(&Event::Tick, users as usize);
        self.save();
        rate(users as usize, took)
    }

    /// Ends every gateway, with all of its users. Returns the rate of users.
    fn lose_all(&mut self, users: u32) -> f64 {
        self.ms += 1_000;
        let mut sum = Duration::ZERO;
        for gateway in 0..users::GATEWAYS.min(users) {
            let on_gateway = (gateway..users).step_by(users::GATEWAYS as usize).count();
            let ended = Event::Lease {
                gateway: users::gateway(gateway),
                epoch: Epoch(1),
                ttl_ms: 0,
            };
            sum += self.fold_one(&ended, on_gateway);
        }
        self.save();
        rate(users as usize, sum)
    }

    /// Folds one event that must give so many changes. Returns how long it took.
    fn fold_one(&mut self, event: &Event<'_>, expected: usize) -> Duration {
        self.offset += 1;
        let (changes, took) = timed(|| {
            let mut changes = 0;
            self.state
                .fold(Offset(self.offset), self.ms, Some(event), &mut |output| {
                    changes += usize::from(matches!(output, Output::Change(_)));
                    black_box(&output);
                });
            changes
        });
        assert_eq!(changes, expected, "changes of {event:?}");
        took
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
        let ((changes, others), folding) = timed(|| {
            let (mut changes, mut others) = (0, 0);
            for events in events.chunks(USERS_AHEAD) {
                self.state.look_ahead(events.iter().filter_map(Event::user));
                for event in events {
                    self.offset += 1;
                    self.state
                        .fold(Offset(self.offset), self.ms, Some(event), &mut |output| {
                            let is_change = matches!(output, Output::Change(_));
                            changes += usize::from(is_change);
                            others += usize::from(!is_change);
                            black_box(&output);
                        });
                }
            }
            (changes, others)
        });
        let event = &events[0];
        let expected = match event {
            Event::Heartbeat { .. } | Event::Heartbeats { .. } | Event::Alive { .. } => 0,
            _ => events.len(),
        };
        assert_eq!(changes, expected, "changes of a batch that begins with {event:?}");
        assert_eq!(
            others, 0,
            "nothing is ignored, nobody is kicked, in a batch that begins with {event:?}"
        );
        (folding, decoding)
    }

    fn heartbeats(&mut self, users: &[u32], conn: Conn) -> (Duration, Duration) {
        let values: Vec<_> = users.iter().map(|user| heartbeat(*user, conn)).collect();
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
        let values: Vec<_> = users.iter().map(|user| heartbeat(*user, Conn(1))).collect();
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

fn heartbeat(user: u32, conn: Conn) -> Vec<u8> {
    encoded(&Event::Heartbeat {
        who: users::who(user),
        via: users::via(user, conn),
    })
}

fn encoded(event: &Event<'_>) -> Vec<u8> {
    let mut value = Vec::new();
    avro::encode_event(event, &mut value);
    value
}
