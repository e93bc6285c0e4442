//! Subscriptions in a simulated world: the server's own ([`Following`] and [`Tail`]), in processes that die, over a log
//! whose reads fail, for clients that lose their connection and come back with the last `id` that reached them.
//!
//! Whatever happens, a client gets each change or kick that it follows once and in order, from where it began. At the
//! end, without faults, it has all of them. The decisions have random numbers of their own, so that the worlds are the
//! same with and without followers.

use super::broker::{Broker, World};
use super::fault::Fault;
use crate::engine::Services;
use crate::http::following::{Following, Next, start};
use crate::http::tail::Tail;
use crate::log::{Acknowledge, Error, Limit, Listener, Log, NewRecord, OwnedPartition, Range, Record};
use crate::presence::change::Output;
use crate::presence::{Offset, Partition};
use crate::random::Random;
use crate::schema::{avro, json};
use crate::topics::Topic;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

/// The topics that can be followed.
const TOPICS: [Topic; 2] = [Topic::Changes, Topic::Kicks];
/// The number of steps in which a follower has to get everything, once nothing fails any more.
const LAST_STEPS_MAX: usize = 20_000;

/// The log as a process has it that serves subscriptions and owns nothing.
struct FollowedLog {
    broker: Arc<Broker>,
    random: Mutex<Random>,
}

impl FollowedLog {
    /// Returns an error if a call gets no answer. How long an outage lasts is counted in the calls of owners alone.
    fn reach(&self, world: &mut World, partition: Partition) -> Result<(), Error> {
        let World {
            weather,
            shelves,
            outage,
            ..
        } = world;
        let is_away = *outage > 0 || shelves[partition.0 as usize].leaderless > 0;
        let mut random = self.random.lock().unwrap_or_else(PoisonError::into_inner);
        let rate = weather.fails;
        match is_away || weather.strikes(Fault::CallFails, rate, &mut random) {
            true => Err(Error::Unanswered("simulated".into())),
            false => Ok(()),
        }
    }
}

impl Log for FollowedLog {
    fn take_up(&self, _: Partition) -> Result<Box<dyn OwnedPartition>, Error> {
        Err(Error::Closed)
    }

    fn partitions(&self) -> u32 {
        self.broker.partitions()
    }

    fn append(&self, _: Vec<(Partition, NewRecord)>, acknowledge: Acknowledge) {
        acknowledge(Err(Error::Closed));
    }

    fn read(
        &self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<(), Error> {
        let mut world = self.broker.world();
        self.reach(&mut world, partition)?;
        let shelf = &world.shelves[partition.0 as usize];
        let (offsets, _) = shelf.offsets(topic);
        let first = offsets.partition_point(|offset| *offset < from.0);
        let there = shelf.committed(topic).zip(offsets).skip(first);
        // A log returns what it has available.
        let most = 1 + self.random.lock().unwrap_or_else(PoisonError::into_inner).index(30);
        into.extend(there.take(most.min(limit.records)).map(|(record, offset)| Record {
            offset: Offset(*offset),
            ts: 0,
            key: record.key.clone(),
            value: record.value.clone(),
            is_null: false,
            headers: None,
        }));
        Ok(())
    }

    fn range(&self, topic: Topic, partition: Partition) -> Result<Range, Error> {
        let mut world = self.broker.world();
        self.reach(&mut world, partition)?;
        let (_, end) = world.shelves[partition.0 as usize].offsets(topic);
        Ok(Range {
            start: Offset(0),
            end: Offset(end),
        })
    }

    fn listen(&self, _: Listener) {
        // The world decides when a process learns of what was added.
    }
}

/// A process that serves subscriptions.
struct ServingProcess {
    tails: [Arc<Tail>; 2],
    /// How many outputs its tails were notified of.
    notified: BTreeMap<(Topic, Partition), usize>,
}

/// A client that follows a topic.
struct Client {
    topic: Topic,
    partitions: BTreeSet<Partition>,
    /// Whether it follows only some users or gateways.
    is_filtered: bool,
    keys: Arc<BTreeSet<Vec<u8>>>,
    /// Where it begins the next time: the `id` of the last event that reached it.
    after: String,
    /// By partition, how many of the topic's outputs are before the one that it gets next. Empty before it has begun.
    passed: BTreeMap<Partition, usize>,
    /// The process that serves it, and its subscription there.
    open: Option<(usize, Following)>,
    /// By partition, up to where that subscription has read the log.
    read_upto: BTreeMap<Partition, Offset>,
}

impl Client {
    fn follows(&self, key: Option<&[u8]>) -> bool {
        self.keys.is_empty() || key.is_some_and(|key| self.keys.contains(key))
    }
}

/// See the module.
pub struct Followers {
    broker: Arc<Broker>,
    random: Random,
    log: FollowedLog,
    services: Services,
    processes: Vec<ServingProcess>,
    clients: Vec<Client>,
    /// How many changes and kicks reached a client, and how often a subscription was opened.
    pub followed: u64,
    pub opened: u64,
}

impl Followers {
    pub fn new(seed: u64, broker: Arc<Broker>) -> Followers {
        let mut random = Random(seed ^ 0x666f_6c6c_6f77_6572);
        let log = FollowedLog {
            broker: broker.clone(),
            random: Mutex::new(Random(random.number())),
        };
        let partitions: BTreeSet<Partition> = (0..broker.partitions()).map(Partition).collect();
        let clients = (0..*random.pick(&[1, 1, 2, 3])).map(|_| Client {
            topic: *random.pick(&[Topic::Changes, Topic::Changes, Topic::Kicks]),
            partitions: match random.percent(60) {
                true => partitions.clone(),
                false => [Partition(random.below(partitions.len() as u64) as u32)].into(),
            },
            is_filtered: random.percent(40),
            keys: Arc::default(),
            after: (*random.pick(&["earliest", "earliest", "latest", "latest-3"])).to_owned(),
            passed: BTreeMap::new(),
            open: None,
            read_upto: BTreeMap::new(),
        });
        let clients = clients.collect();
        let mut followers = Followers {
            broker,
            random,
            log,
            services: Services::default(),
            processes: Vec::new(),
            clients,
            followed: 0,
            opened: 0,
        };
        for _ in 0..2 {
            let process = followers.process();
            followers.processes.push(process);
        }
        followers
    }

    /// A process with tails that keep little or much.
    fn process(&mut self) -> ServingProcess {
        let (partitions, bytes) = (self.broker.partitions(), *self.random.pick(&[1, 900, 8_000, 512 << 10]));
        ServingProcess {
            tails: TOPICS.map(|topic| Tail::new(topic, partitions, bytes)),
            notified: BTreeMap::new(),
        }
    }

    /// One round: what happens to one of the processes, and one step of a client.
    pub fn turn(&mut self) {
        let number = self.random.index(self.processes.len());
        if self.random.percent(2) {
            // Its clients lose their connections.
            self.processes[number] = self.process();
            let served = self.clients.iter_mut();
            served
                .filter(|client| client.open.as_ref().is_some_and(|(process, _)| *process == number))
                .for_each(|client| client.open = None);
        } else if self.random.percent(50) {
            self.look(number, false);
        }
        let client = self.random.index(self.clients.len());
        match self.random.percent(4) {
            true => self.clients[client].open = None,
            false => {
                let breaks = self.random.percent(8);
                self.step(client, breaks);
            }
        }
    }

    /// A process learns of what was added, and its tails read it.
    fn look(&mut self, number: usize, learns_all: bool) {
        let process = &mut self.processes[number];
        for (tail, topic) in process.tails.iter().zip(TOPICS) {
            for partition in (0..self.broker.partitions()).map(Partition) {
                let there = self.broker.world().shelves[partition.0 as usize].offsets(topic).0.len();
                let notified = process.notified.entry((topic, partition)).or_default();
                if there > *notified && (learns_all || self.random.percent(60)) {
                    *notified = there;
                    tail.added(partition);
                }
            }
            tail.look(&self.log, &self.services.schemas);
        }
    }

    /// One step of a client: it opens its subscription, or gets what is there, perhaps not all of it because its
    /// connection breaks. Returns whether it is open and there is no more.
    fn step(&mut self, number: usize, breaks: bool) -> bool {
        let Some((process, mut following)) = self.clients[number].open.take() else {
            self.open(number);
            return false;
        };
        let room = *self.random.pick(&[1, 700, 64 << 10]);
        let batch = match following.next(room) {
            Next::Wait => {
                // What a subscription says after a while, so that its client need not read again what is not for it.
                if self.random.percent(20) && following.advance() {
                    self.clients[number].after = following.cursor().to_string();
                }
                self.clients[number].open = Some((process, following));
                return true;
            }
            Next::Show(batch) => batch,
            Next::Read(read) => {
                let (partition, from) = read.begins_at();
                let read_upto = self.clients[number].read_upto.entry(partition).or_default();
                if from < *read_upto {
                    // On Kafka that would be a new fetch for each part of it.
                    let wrong = format!(
                        "partition {partition}, a follower: what is before {read_upto} is read again from {from}"
                    );
                    self.broker.world().wrong.get_or_insert(wrong);
                }
                match read.read(&self.log, &self.services.schemas) {
                    Ok(batch) => {
                        *read_upto = batch.end();
                        batch
                    }
                    // The subscription ends with the error, and its client comes back.
                    Err(_) => return false,
                }
            }
        };
        let (partition, is_passed) = (batch.partition, batch.is_passed);
        let (mut chunk, mut bytes) = (Vec::new(), 0);
        following.show(batch, |shown, cursor| {
            bytes += shown.line.len();
            chunk.push((shown.line.clone(), cursor.to_string()));
            match bytes >= room {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            }
        });
        let arrives = match breaks {
            true => self.random.index(chunk.len() + 1),
            false => chunk.len(),
        };
        for (line, id) in chunk.into_iter().take(arrives) {
            if let Err(wrong) = self.arrived(number, partition, &line) {
                let mut world = self.broker.world();
                world
                    .wrong
                    .get_or_insert(format!("partition {partition}, a follower: {wrong}"));
            }
            self.clients[number].after = id;
        }
        if !breaks {
            if is_passed {
                self.clients[number].after = following.cursor().to_string();
            }
            self.clients[number].open = Some((process, following));
        }
        false
    }

    /// A client opens its subscription, which may fail.
    fn open(&mut self, number: usize) {
        let process = self.random.index(self.processes.len());
        let begins = self.clients[number].passed.is_empty();
        if begins && self.clients[number].is_filtered {
            self.choose_keys(number);
        }
        let client = &mut self.clients[number];
        let Ok(started) = start(&self.log, client.topic, &client.partitions, Some(&client.after)) else {
            return;
        };
        let mut tails = self.processes[process].tails.iter().zip(TOPICS);
        let Some((tail, _)) = tails.find(|(_, topic)| *topic == client.topic) else {
            return;
        };
        let following = Following::begin(tail.clone(), client.topic, started, client.keys.clone());
        if begins {
            let world = self.broker.world();
            for (partition, next) in &following.cursor().0 {
                let (offsets, _) = world.shelves[partition.0 as usize].offsets(client.topic);
                let passed = offsets.partition_point(|offset| *offset < next.0);
                client.passed.insert(*partition, passed);
            }
        }
        client.after = following.cursor().to_string();
        client.open = Some((process, following));
        client.read_upto.clear();
        self.opened += 1;
    }

    /// A client follows some of those of whom there is something; everybody where there is nothing yet.
    fn choose_keys(&mut self, number: usize) {
        let client = &mut self.clients[number];
        let world = self.broker.world();
        let mut keys = BTreeSet::new();
        for partition in &client.partitions {
            let expected = world.shelves[partition.0 as usize]
                .input
                .expected_of(client.topic, 0, usize::MAX);
            keys.extend(expected.filter_map(|expected| expected.record.key.clone()));
        }
        let keys: Vec<Vec<u8>> = keys.into_iter().collect();
        if !keys.is_empty() {
            client.keys = Arc::new(self.random.some_of(&keys, 3).into_iter().collect());
        }
    }

    /// Checks that what reached a client is the next that it has to get.
    fn arrived(&mut self, number: usize, partition: Partition, line: &str) -> Result<(), String> {
        let client = &mut self.clients[number];
        let world = self.broker.world();
        let input = &world.shelves[partition.0 as usize].input;
        let topic = client.topic;
        let before = client.passed.get(&partition).copied().unwrap_or_default();
        let mut expected = input.expected_of(topic, before, usize::MAX).zip(before..);
        let next = expected.find(|(expected, _)| client.follows(expected.record.key.as_deref()));
        let Some((expected, at)) = next else {
            return Err(format!("gets {line}, and there is no more of {topic} for it"));
        };
        client.passed.insert(partition, at + 1);
        self.followed += 1;
        let should = line_of(topic, &expected.record.value)?;
        match line == should {
            true => Ok(()),
            false => Err(format!("number {at} of {topic} is\n  {line} instead of\n  {should}")),
        }
    }

    /// Nothing fails any more: each client gets all that it follows.
    pub fn finish(&mut self) -> Result<(), String> {
        for number in 0..self.clients.len() {
            for process in 0..self.processes.len() {
                self.look(process, true);
            }
            let is_at_end = (0..LAST_STEPS_MAX).any(|_| self.step(number, false));
            if !is_at_end {
                return Err("a subscription does not come to the end".to_owned());
            }
            let client = &self.clients[number];
            let world = self.broker.world();
            for (partition, passed) in &client.passed {
                let input = &world.shelves[partition.0 as usize].input;
                let mut missing = input.expected_of(client.topic, *passed, usize::MAX);
                if let Some(missing) = missing.find(|missing| client.follows(missing.record.key.as_deref())) {
                    return Err(format!(
                        "a follower of partition {partition} does not get {} of offset {} index {}",
                        client.topic, missing.offset, missing.index
                    ));
                }
            }
        }
        Ok(())
    }
}

/// The line of an output as a subscription shows it.
fn line_of(topic: Topic, value: &[u8]) -> Result<String, String> {
    let output = match topic {
        Topic::Kicks => avro::decode_kick(value).map(Output::Kick),
        Topic::Changes | Topic::Events | Topic::Quarantine => avro::decode_change(value).map(Output::Change),
    };
    let output = output.map_err(|malformed| malformed.to_string())?;
    let mut line = Vec::new();
    json::output_line(&mut line, &output);
    Ok(String::from_utf8_lossy(&line).into_owned())
}
