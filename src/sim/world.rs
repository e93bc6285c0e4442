//! A seeded world in one thread: the real worker with everything that it drives, over a simulated log and store. First
//! every possible fault may happen, then no fault happens any more, and the result must be what the oracle says.
//!
//! A run depends on nothing except the seed and the options: the same seed and options give the same run, byte for
//! byte.

use super::broker::{Broker, BrokerBug, FaultRates, World};
use super::cast::{Cast, MACHINES};
use super::fault::{Counts, Fault};
use super::followers::Followers;
use super::history;
use super::input::{Burst, Input, Malformation};
use super::process::Process;
use crate::clock::Clock as _;
use crate::clock::ManualClock;
use crate::engine::Tuning;
use crate::engine::partition::PartitionProcessor;
use crate::engine::worker::Command;
use crate::presence::{LogTime, Partition, Status};
use crate::random::Random;
use crate::topics::Topic;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// One seed in this many has its stores in RocksDB, from `ROCKSDB_FIRST` on. Such a run takes as long as twenty others.
const ROCKSDB_EVERY: u64 = 400;
const ROCKSDB_FIRST: u64 = 199;
/// A directory whose files are in memory, where the system has one.
const IN_MEMORY: &str = "/dev/shm";
/// The greatest number of ticks until every device is gone.
const LAST_TICKS_MAX: usize = 20_000;
/// How often a partition may have to come to life after the faults have ended.
const LIVES_MAX: usize = 5;
/// How many times as many records are published at a time while thousands of devices connect. Published one by one,
/// with an owner that dies now and then and replays all of them, they would take as long as a hundred other worlds.
const THOUSANDS_FASTER: usize = 20;

/// What to run of a seed's world.
#[derive(Clone, Debug)]
pub struct Options {
    /// The number of records in the history, over all partitions.
    pub records: usize,
    /// Faults that do not happen.
    pub without: Vec<Fault>,
    /// Whether the stores are in RocksDB for every seed.
    pub on_rocksdb: bool,
    pub bug: Option<BrokerBug>,
    /// Whether the report contains the transcript, by which two runs are compared.
    pub transcribes: bool,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            records: 300,
            without: Vec::new(),
            on_rocksdb: false,
            bug: None,
            transcribes: true,
        }
    }
}

/// The result of a run without errors.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Report {
    /// The number of records in the log.
    pub events: u64,
    /// The number of records that owners have read; most records are read more than once.
    pub folded: u64,
    /// The number of queries, and how many of them were answered with a state.
    pub questions: u64,
    pub answers: u64,
    /// How many changes and kicks reached those who follow them, and how many subscriptions were opened.
    pub followed: u64,
    pub subscriptions: u64,
    pub counts: Counts,
    /// Every output and the state of all partitions, if the options ask for the transcript.
    pub transcript: Vec<u8>,
}

/// Runs a seed's world. Returns an error that describes the first thing that was wrong.
pub fn run(seed: u64, options: &Options) -> Result<Report, String> {
    let rocksdb = options.on_rocksdb || seed % ROCKSDB_EVERY == ROCKSDB_FIRST;
    let directory = rocksdb.then(|| {
        // The same seed may run in several threads.
        static PLAYED: AtomicU64 = AtomicU64::new(0);
        let number = PLAYED.fetch_add(1, Ordering::Relaxed);
        let name = format!("rollcall-sim-{}-{number}", std::process::id());
        let in_memory = PathBuf::from(IN_MEMORY);
        let place = if in_memory.is_dir() {
            in_memory
        } else {
            std::env::temp_dir()
        };
        place.join(name)
    });
    if let Some(directory) = &directory {
        std::fs::create_dir_all(directory).map_err(|error| format!("no directory for RocksDB: {error}"))?;
    }
    let played = catch_unwind(AssertUnwindSafe(|| Run::new(seed, options, directory.as_ref()).run()));
    if let Some(directory) = &directory {
        // These are only leftovers of a store that has been checked already.
        let _ = std::fs::remove_dir_all(directory);
    }
    played.unwrap_or_else(|panic| {
        let said = panic.downcast_ref::<String>().map(String::as_str);
        let said = said.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(format!("panic: {}", said.unwrap_or("without a message")))
    })
}

struct Run {
    cast: Arc<Cast>,
    followers: Followers,
    /// For the decisions of the world; the calls of log and store have their own random numbers.
    random: Random,
    /// For questions about gateways and outcomes.
    curiosity: Random,
    partitions: u32,
    on_rocksdb: bool,
    has_thousands: bool,
    transcribes: bool,
    /// The percentage of publications that are made in a transaction.
    in_transactions: u64,
}

impl Run {
    fn new(seed: u64, options: &Options, directory: Option<&PathBuf>) -> Run {
        let mut random = Random(seed ^ 0x776f_726c_6421);
        let partitions = *random.pick(&[1, 1, 2, 3]);
        let mut weather = FaultRates {
            without: options.without.clone(),
            fails: *random.pick(&[0, 4, 15, 60]),
            settles_anew: random.percent(50),
            keeps_current: random.percent(30),
            ..FaultRates::default()
        };
        let share = options.records / partitions as usize;
        let mut inputs = Vec::new();
        let mut policies = Vec::new();
        let mut has_thousands = false;
        for partition in 0..partitions {
            let of = seed.wrapping_mul(4).wrapping_add(partition.into());
            let burst = Burst::any(share, &mut weather, &mut random);
            has_thousands |= burst.is_large;
            // The records of a small burst count as records of the history.
            let records = if burst.is_large {
                share
            } else {
                share - burst.devices - burst.early_ends
            };
            let policy = history::policy(of);
            policies.push(policy.clone());
            inputs.push(Input::new(of, policy, Partition(partition), partitions, records, burst));
        }
        let most = usize::MAX;
        let on_rocksdb = directory.is_some();
        let tuning = Tuning {
            fetch_users: if has_thousands {
                *random.pick(&[100, 999, 10_000])
            } else {
                *random.pick(&[1, 2, 3, 10_000])
            },
            cached_users: *random.pick(&[0, 1, 3, 50_000]),
            store_commit_records: if on_rocksdb {
                *random.pick(&[20, 60, u64::MAX])
            } else {
                *random.pick(&[1, 5, 20, 60, u64::MAX])
            },
            store_commit_users: *random.pick(&[2, 5, most, most]),
            log_commit_ms: *random.pick(&[0, 1, 5, 1_000]),
            output_commit_ms: *random.pick(&[0, 0, 0, 2, 1_000]),
            commit_bytes: *random.pick(&[1, 300, 2_000, 8 << 20]),
            ..Tuning::default()
        };
        let clock = Arc::new(ManualClock::new(1_700_000_000_000));
        let broker = Broker::new(inputs, Random(random.number()), weather, clock.clone()).with_bug(options.bug);
        let broker = Arc::new(broker);
        let followers = Followers::new(seed, broker.clone());
        let cast = Cast::new(broker, clock, tuning, policies, directory);
        let in_transactions = *random.pick(&[0, 0, 20, 60]);
        cast.mix_versions(seed);
        Run {
            cast,
            followers,
            curiosity: Random(seed ^ 0x6375_7269_6f75_7321),
            random,
            partitions,
            on_rocksdb,
            has_thousands,
            transcribes: options.transcribes,
            in_transactions,
        }
    }

    fn run(mut self) -> Result<Report, String> {
        let partitions: Vec<Partition> = (0..self.partitions).map(Partition).collect();
        let mut rounds_left = 40;
        // The run continues for some rounds after everything was published.
        while rounds_left > 0 {
            let partition = *self.random.pick(&partitions);
            self.round(partition);
            self.followers.turn();
            self.check_wrong()?;
            if self
                .cast
                .broker
                .world()
                .shelves
                .iter()
                .all(|shelf| shelf.input.is_empty())
            {
                rounds_left -= 1;
            }
        }
        {
            let mut world = self.cast.broker.world();
            world.weather.calm = true;
            world.outage = 0;
        }
        let mut transcript = Vec::new();
        for partition in &partitions {
            let named = |what: String| format!("partition {partition}, after the faults: {what}");
            self.calm(*partition).map_err(named)?;
            self.check_wrong()?;
            if self.transcribes {
                self.transcribe(*partition, &mut transcript);
            }
        }
        self.followers
            .finish()
            .map_err(|what| format!("after the faults: {what}"))?;
        self.check_wrong()?;
        let world = self.cast.broker.world();
        Ok(Report {
            events: world.shelves.iter().map(|shelf| shelf.count()).sum(),
            folded: world.read,
            questions: world.questions,
            answers: world.answers,
            followed: self.followers.followed,
            subscriptions: self.followers.opened,
            counts: world.weather.counts.clone(),
            transcript,
        })
    }

    fn check_wrong(&self) -> Result<(), String> {
        match self.cast.broker.world().wrong.take() {
            Some(wrong) => Err(wrong),
            None => Ok(()),
        }
    }

    fn strikes(&mut self, fault: Fault, per_mille: u64) -> bool {
        let weather = &mut self.cast.broker.world().weather;
        weather.strikes(fault, per_mille, &mut self.random)
    }

    /// Performs one round, in which anything may happen.
    fn round(&mut self, partition: Partition) {
        let ms = *self.random.pick(&[0, 1, 3, 500, 4_000]);
        self.cast.clock.advance_ms(ms);
        if self.random.percent(60) {
            self.publish(partition);
        }
        if self.strikes(Fault::Tick, 20) {
            self.tick(partition);
        }
        if self.random.percent(20) {
            self.cast.broker.deliver(partition);
        }
        self.log_round(partition);
        self.cast.group_round(partition);
        if self.strikes(Fault::TwoOwners, 8) {
            take_over(&self.cast, partition, 0, None);
        }
        if self.strikes(Fault::Storm, 3) {
            self.storm(partition);
        }
        for machine in 0..MACHINES {
            while self.random.percent(60) && self.cast.hear(partition, machine) {}
            self.cast.rest(partition, machine);
        }
        let working = self.cast.nodes(partition).working();
        if !working.is_empty() {
            let machine = *self.random.pick(&working);
            self.turn(partition, machine);
        }
    }

    /// Performs one round of what happens to a partition of the log by itself.
    fn log_round(&mut self, partition: Partition) {
        let strikes = [
            self.strikes(Fault::Outage, 3),
            self.strikes(Fault::LeaderChange, 8),
            self.strikes(Fault::Unreplicated, 8),
        ];
        let heals = self.random.percent(30);
        let [ends, aborts] = [self.random.percent(30), self.random.percent(35)];
        let mut world = self.cast.broker.world();
        let World {
            shelves,
            weather,
            outage,
            ..
        } = &mut *world;
        let shelf = &mut shelves[partition.0 as usize];
        let [is_outage, is_led_by_another, is_unreplicated] = strikes;
        if is_outage {
            *outage = self.random.below(40);
        }
        if is_led_by_another {
            shelf.change_leader(&mut self.random);
        } else if is_unreplicated {
            shelf.lag_behind();
        } else if heals {
            shelf.catch_up();
        }
        if ends && let Some(open) = shelf.first_open() {
            let aborted = aborts && weather.strikes(Fault::Abort, 1_000, &mut self.random);
            shelf.finish(open, !aborted);
        }
    }

    fn publish(&mut self, partition: Partition) {
        let transaction = if self.random.percent(self.in_transactions) {
            let begins = self.strikes(Fault::Transaction, 300);
            let shelf = &mut self.cast.broker.world().shelves[partition.0 as usize];
            if begins { shelf.begin() } else { shelf.first_open() }
        } else {
            None
        };
        let is_rush = self.cast.broker.world().shelves[partition.0 as usize]
            .input
            .is_in_thousands();
        let times = if is_rush { THOUSANDS_FASTER } else { 1 };
        for _ in 0..times * *self.random.pick(&[1, 1, 3, 10, 30]) {
            let spoil = if self.strikes(Fault::Poison, 10) {
                Malformation::Poison
            } else if self.strikes(Fault::WrongKey, 5) {
                Malformation::Key
            } else {
                Malformation::No
            };
            let shelf = &mut self.cast.broker.world().shelves[partition.0 as usize];
            let Some(record) = shelf.input.next(&mut self.random, spoil) else {
                return;
            };
            shelf.append(record, transaction);
        }
    }

    /// Owners follow each other faster than any of them can finish anything.
    fn storm(&mut self, partition: Partition) {
        for _ in 0..3 + self.random.below(6) {
            match self.random.below(3) {
                0 => self.cast.shake(partition),
                1 => take_over(&self.cast, partition, self.random.below(2), None),
                _ => self.cast.group_round(partition),
            }
            for machine in 0..MACHINES {
                if self.random.percent(60) {
                    self.cast.hear(partition, machine);
                }
                if self.random.percent(40) {
                    self.cast.obey(partition, machine);
                }
            }
        }
    }

    fn tick(&mut self, partition: Partition) {
        let last = self.cast.broker.world().shelves[partition.0 as usize].input.last_ts;
        let ts = match self.random.below(3) {
            0 => last.saturating_sub(self.random.below(60_000)),
            1 => last,
            _ => last + self.random.below(2_000),
        };
        for _ in 0..=self.random.below(2) {
            self.tick_at(partition, ts);
        }
    }

    fn tick_at(&self, partition: Partition, ts: u64) {
        let shelf = &mut self.cast.broker.world().shelves[partition.0 as usize];
        let record = shelf.input.tick(ts);
        shelf.append(record, None);
    }

    /// Gives a turn to a machine that has a worker.
    fn turn(&mut self, partition: Partition, machine: usize) {
        if self.random.percent(80) && self.cast.obey(partition, machine) {
            return;
        }
        let process = self.cast.nodes(partition).take_process(machine);
        let process = process.unwrap_or_else(|| self.cast.start(partition, machine));
        // The process either sleeps for as long as it wants to, or is woken earlier.
        let sleeps_ms = process.wakes_ms().saturating_sub(self.cast.clock.monotonic_ms());
        if sleeps_ms > 0 && self.random.percent(30) {
            self.cast.clock.advance_ms(sleeps_ms);
        }
        if let Some(process) = self.step(partition, process) {
            self.cast.nodes(partition).put_process(process);
        }
    }

    /// Gives a process a turn. Returns the process if it goes on.
    fn step(&mut self, partition: Partition, mut process: Process) -> Option<Process> {
        if self.strikes(Fault::Restart, 15) {
            process.worker.take(Command::Stop);
        }
        if self.strikes(Fault::TickDue, 20)
            && let Some(due) = process.worker.processor().and_then(PartitionProcessor::next_deadline)
        {
            let last = self.cast.broker.world().shelves[partition.0 as usize].input.last_ts;
            let ts = (due.0 + self.random.below(3)).saturating_sub(1);
            // A tick further ahead would make the following records of the history late.
            if ts < last + 700_000_000 {
                self.tick_at(partition, ts);
            }
        }
        if self.strikes(Fault::Crash, 40) {
            process.life.dies_after(self.random.below(14), self.random.percent(50));
        }
        if self.strikes(Fault::Pause, 15) {
            let cast = self.cast.clone();
            let steps = self.random.below(4);
            let machine = process.machine;
            let meanwhile = Box::new(move || take_over(&cast, partition, steps, Some(machine)));
            process.log.pause_after(self.random.below(6), meanwhile);
        }
        if self.random.percent(10) {
            let waits = self.random.percent(50);
            self.cast.ask(partition, &mut process, waits);
        }
        if self.curiosity.percent(10) {
            self.cast.ask_more(partition, &mut process, &mut self.curiosity);
        }
        let records = *self.random.pick(&[1, 1, 4, 20, 1_000]);
        let mut process = self.cast.turn(partition, process, records)?;
        if process.worker.processor().is_none() {
            // The store may be in any state.
            return Some(process);
        }
        if self.random.percent(5) {
            self.cast.copy_store(partition, &mut process);
        }
        if self.random.percent(3) && !self.on_rocksdb {
            self.cast.retain(partition, &process);
        }
        // With thousands of users one check of all of them takes as long as thousands of events.
        if self.random.percent(if self.has_thousands { 1 } else { 5 }) {
            self.check_state(partition, &process);
        }
        Some(process)
    }

    /// Compares the state of a process with that of the oracle, if the process has folded every record that owners can
    /// see and its outputs are settled.
    fn check_state(&self, partition: Partition, process: &Process) {
        let Some(processor) = process.worker.processor() else {
            return;
        };
        let shown = self.cast.broker.world().shelves[partition.0 as usize].shown();
        if processor.applied() != shown || !processor.is_settled() || !processor.is_caught_up() {
            return;
        }
        // A store that fails does not give a wrong answer.
        let Ok(lines) = processor.state_lines() else { return };
        let mut world = self.cast.broker.world();
        let expected = world.shelves[partition.0 as usize].input.state_lines();
        if expected.as_bytes() != lines {
            let what = difference(expected, &String::from_utf8_lossy(&lines));
            world.wrong.get_or_insert(format!("partition {partition}: {what}"));
        }
    }

    /// The faults have ended: the partition comes to life and catches up, and time passes until no device is left.
    fn calm(&mut self, partition: Partition) -> Result<(), String> {
        self.cast.broker.deliver(partition);
        self.cast.broker.world().shelves[partition.0 as usize].calm();
        self.upgrade(partition)?;
        let process = self.come_to_life(partition)?;
        let process = self.let_time_pass(partition, process)?;
        let mut process = self.commit_all(partition, process)?;
        if self.cast.position_went_back(partition, &process) {
            self.cast.close(partition, process);
            process = self.come_to_life(partition)?;
            process = self.commit_all(partition, process)?;
        }
        self.check_end(partition, &process)?;
        self.cast.check_none_waits(&process)?;
        self.cast.close(partition, process);
        let process = self.come_to_life(partition)?;
        self.check_end(partition, &process)
            .map_err(|what| format!("opened again: {what}"))?;
        self.cast.nodes(partition).put_process(process);
        Ok(())
    }

    /// In a partition that was raised, each process of the older version halts, with what it said of that. Then an operator
    /// stops it and installs the newer version.
    fn upgrade(&self, partition: Partition) -> Result<(), String> {
        if self.cast.broker.world().shelves[partition.0 as usize]
            .input
            .raised_at()
            .is_none()
        {
            return Ok(());
        }
        let outdated = self.cast.nodes(partition).outdated();
        for machine in outdated {
            let mut process = self.cast.nodes(partition).take_process(machine);
            for _ in 0..100 {
                let Some(turned) = process.take_if(|process| !process.has_halted) else {
                    break;
                };
                self.cast.clock.advance_ms(1_000);
                process = self.cast.turn(partition, turned, 1_000);
                self.check_wrong()?;
            }
            if let Some(process) = process {
                if !process.has_halted {
                    let failure = self.cast.nodes(partition).failure.take();
                    return Err(format!("a node of the older version does not halt: {failure:?}"));
                }
                self.cast.close(partition, process);
            }
            self.check_wrong()?;
            self.cast.nodes(partition).upgrade(machine);
        }
        Ok(())
    }

    fn transcribe(&self, partition: Partition, transcript: &mut Vec<u8>) {
        let mut world = self.cast.broker.world();
        let shelf = &mut world.shelves[partition.0 as usize];
        for record in shelf.committed(Topic::Changes).chain(shelf.committed(Topic::Kicks)) {
            transcript.extend_from_slice(&record.value);
        }
        transcript.extend_from_slice(shelf.input.state_lines().as_bytes());
    }

    /// Delivers all facts to all machines and lets them execute their commands, until one machine has the partition and
    /// is at the end of the log.
    fn come_to_life(&self, partition: Partition) -> Result<Process, String> {
        let lives = {
            let mut nodes = self.cast.nodes(partition);
            nodes.lives += 1;
            nodes.lives
        };
        if lives > LIVES_MAX {
            let failure = self.cast.nodes(partition).failure.take();
            return Err(format!("it fails again and again without any fault: {failure:?}"));
        }
        for _ in 0..100 {
            // A failed operation is retried after a while.
            self.cast.clock.advance_ms(1_000);
            self.cast.group_round(partition);
            for machine in 0..MACHINES {
                while self.cast.hear(partition, machine) {}
                self.cast.rest(partition, machine);
                let works = {
                    let mut nodes = self.cast.nodes(partition);
                    if let Some(process) = nodes.take_process(machine) {
                        process.life.dies_after(u64::MAX, false);
                        nodes.put_process(process);
                    }
                    nodes.part(machine).works
                };
                if works && !self.cast.obey(partition, machine) {
                    self.cast.work(partition, machine, 1_000);
                }
            }
            self.check_wrong()?;
            let mut nodes = self.cast.nodes(partition);
            let live = nodes.live();
            if let Some(process) = live.and_then(|machine| nodes.take_process(machine)) {
                drop(nodes);
                if let Some(process) = self.catch_up(partition, process)? {
                    return Ok(process);
                }
            }
        }
        let failure = self.cast.nodes(partition).failure.take();
        Err(format!("no owner comes to life: {failure:?}"))
    }

    /// Waits for as long as the process wants to, then gives it a turn.
    fn wait_and_turn(&self, partition: Partition, process: Process) -> Option<Process> {
        self.cast.clock.advance_ms(process.wait_ms);
        self.cast.turn(partition, process, 1_000)
    }

    fn catch_up(&self, partition: Partition, process: Process) -> Result<Option<Process>, String> {
        let mut process = process;
        for _ in 0..100 {
            let Some(went_on) = self.wait_and_turn(partition, process) else {
                return Ok(None);
            };
            process = went_on;
            if self.has_everything(partition, &process) {
                return Ok(Some(process));
            }
        }
        Err("its lag does not end".to_owned())
    }

    fn has_everything(&self, partition: Partition, process: &Process) -> bool {
        let shown = self.cast.broker.world().shelves[partition.0 as usize].shown();
        let processor = process.worker.processor();
        processor.is_some_and(|processor| processor.applied() == shown && processor.is_caught_up())
    }

    /// Gives the process turns until it has committed everything, without a request to commit.
    fn commit_all(&self, partition: Partition, process: Process) -> Result<Process, String> {
        let mut process = process;
        for _ in 0..20 {
            // A commit is also due where everything is committed but the log's position is an older one.
            let is_done = |open: &PartitionProcessor| {
                open.committed().next == open.applied() && open.is_settled() && open.commit_due_ms().is_none()
            };
            if process.worker.processor().is_some_and(is_done) {
                return Ok(process);
            }
            process = match self.wait_and_turn(partition, process) {
                Some(process) => process,
                // The process was deposed earlier. Only one owner can be left by now.
                None => self.come_to_life(partition)?,
            };
        }
        Err("it does not commit what it has".to_owned())
    }

    /// Advances the time of the log to each deadline, at which the worker has to tick, until no deadline is left. A
    /// missed deadline is an error, and so are repeated ticks that do not advance the time.
    fn let_time_pass(&self, partition: Partition, mut process: Process) -> Result<Process, String> {
        let mut in_vain = 0;
        for _ in 0..LAST_TICKS_MAX {
            let Some(processor) = process.worker.processor() else {
                return Err("it gave the partition up without any fault".to_owned());
            };
            let Some(time) = processor.state().time() else {
                return Ok(process);
            };
            let due = processor.next_deadline();
            let least = self.cast.broker.world().shelves[partition.0 as usize]
                .input
                .next_deadline();
            if least.is_some_and(|least| due.is_none_or(|due| due > least)) {
                return Err(format!("a deadline is at {least:?}, but the owner looks at {due:?}"));
            }
            let Some(next) = process.worker.tick_due_ms() else {
                return Ok(process);
            };
            in_vain = if next <= time.0 { in_vain + 1 } else { 0 };
            if in_vain > 20 {
                return Err(format!("it ticks for ever at {time}, its next deadline is {next}"));
            }
            process = match self.tick_by_worker(partition, process, next.max(time.0))? {
                Some(process) => process,
                // The process was deposed earlier. Only one owner can be left by now.
                None => self.come_to_life(partition)?,
            };
        }
        Err("it ticks without an end".to_owned())
    }

    /// Advances the log to a time and lets the worker append and fold its tick.
    fn tick_by_worker(&self, partition: Partition, process: Process, time: u64) -> Result<Option<Process>, String> {
        let ticks = || self.cast.broker.world().shelves[partition.0 as usize].ticks;
        let before = ticks();
        self.cast.broker.world().shelves[partition.0 as usize].advance_to(time);
        let mut process = process;
        // The worker notices only after ten seconds that a tick was lost during the faults. That takes many turns while
        // there is something to commit.
        for _ in 0..100 {
            let Some(went_on) = self.wait_and_turn(partition, process) else {
                return Ok(None);
            };
            process = went_on;
            self.check_wrong()?;
            // Timers may be early: this turn found that nothing is due at this time. The caller checks this.
            let is_later = process.worker.tick_due_ms().is_none_or(|due| due > time);
            if is_later && self.has_everything(partition, &process) {
                return Ok(Some(process));
            }
            if ticks() > before && self.has_everything(partition, &process) {
                return Ok(Some(process));
            }
        }
        Err(format!("it does not tick, though {time} has come"))
    }

    fn check_end(&self, partition: Partition, process: &Process) -> Result<(), String> {
        let Some(processor) = process.worker.processor() else {
            return Err("nothing is open".to_owned());
        };
        let lines = processor.state_lines().map_err(|error| error.to_string())?;
        let mut world = self.cast.broker.world();
        let keeps_current = world.weather.keeps_current;
        let shelf = &mut world.shelves[partition.0 as usize];
        let (_, _, expected) = shelf.input.before(shelf.shown(), 0);
        let mut position = shelf.position;
        if position.time != shelf.input.time.map(LogTime) && position.next.0 > 0 {
            return Err(format!("the position's time is {:?}", position.time));
        }
        position.time = None;
        let last = position.input.take().and_then(|input| input.last);
        if last.map_or(0, |last| last.offset.0 + 1) != position.next.0 {
            return Err(format!("the record read last is {last:?}"));
        }
        if position != expected {
            return Err(format!("the position is {position:?} instead of {expected:?}"));
        }
        shelf.check_topics(keeps_current)?;
        let lines = String::from_utf8_lossy(&lines);
        let expected = shelf.input.state_lines();
        if lines != expected {
            return Err(difference(expected, &lines));
        }
        let users = expected.lines().filter(|line| line.starts_with(r#"{"type":"user""#));
        let statuses = users.filter_map(|line| line.split(r#","status":""#).nth(1)?.split('"').next());
        let mut of_users = BTreeMap::new();
        for status in statuses {
            *of_users.entry(status).or_insert(0) += 1;
        }
        for status in Status::ALL {
            let should = of_users.get(status.name()).copied().unwrap_or(0);
            let counted = processor.census().users(status);
            if counted != should {
                return Err(format!(
                    "{counted} users are counted as {} instead of {should}",
                    status.name()
                ));
            }
        }
        let known = of_users.values().sum::<u64>();
        if processor.census().known() != known {
            return Err(format!(
                "{} users are counted instead of {known}",
                processor.census().known()
            ));
        }
        Ok(())
    }
}

/// The group gives the partition to another machine, which starts at once and makes some steps.
fn take_over(cast: &Cast, partition: Partition, steps: u64, stepping: Option<usize>) {
    let machine = cast.move_on(partition, stepping);
    for _ in 0..=steps {
        if cast.nodes(partition).part(machine).works && !cast.obey(partition, machine) {
            cast.work(partition, machine, 20);
        }
    }
}

/// Returns a description of the first lines that differ.
fn difference(expected: &str, got: &str) -> String {
    let mut expected_lines = expected.lines();
    let mut got_lines = got.lines();
    loop {
        match (expected_lines.next(), got_lines.next()) {
            (Some(expected), Some(got)) if expected == got => {}
            (None, None) => return "the states differ in the last line's end".to_owned(),
            (expected, got) => {
                return format!(
                    "the state differs:\n  expected {}\n  got      {}",
                    expected.unwrap_or("nothing"),
                    got.unwrap_or("nothing")
                );
            }
        }
    }
}
