//! The load of catch-up: every user connects; then events come in passes over all users in random order. Of a hundred events 99
//! are heartbeats, and one is a disconnect of a user, or the connect by which such a user comes back.

use crate::{appender, partitions, users};
use rollcall::clock::SystemClock;
use rollcall::log::kafka::{KafkaLog, Node};
use rollcall::log::{Log, NewRecord};
use rollcall::presence::event::{Ending, Event, Intent};
use rollcall::presence::{Conn, Epoch, Offset, Partition};
use rollcall::random::Random;
use rollcall::schema::{avro, partitioner};
use rollcall::topics::Topic;
use std::sync::{Arc, mpsc};

/// Of each pass, one event in so many is a disconnect, and as many are connects.
const ONE_IN: u64 = 200;
/// Connections of one `alive` record.
const CONNECTIONS: usize = 10_000;

/// What is in the topics.
pub struct Load {
    /// Where the first connects end in each partition, and where everything ends.
    pub connected: Vec<Offset>,
    pub ends: Vec<Offset>,
    pub records: usize,
    /// How many changes the events give.
    pub changes: u64,
}

pub fn connect(user: u32, conn: u64) -> Event<'static> {
    Event::Connect {
        who: users::who(user),
        via: users::via(user, Conn(conn)),
        intent: Intent::Login,
        client: None,
        auth_at: None,
    }
}

pub fn disconnect(user: u32, conn: u64) -> Event<'static> {
    Event::Disconnect {
        who: users::who(user),
        via: users::via(user, Conn(conn)),
        reason: Ending::Closed,
    }
}

fn ends(log: &dyn Log) -> Vec<Offset> {
    let end = |partition| log.range(Topic::Events, partition).expect("a range").end;
    partitions(log.partitions()).map(end).collect()
}

pub fn fill(node: &Node, users: u32, passes: u32) -> Load {
    let log = KafkaLog::connect(node.clone(), Arc::new(SystemClock::new())).expect("connected");
    let mut random = Random(1);
    appender::append(&*log, random.order(users).into_iter().map(|user| connect(user, 0)));
    let connected = ends(&*log);
    let mut changes = u64::from(users);
    // The connection of each user, and whether it is open.
    let mut links = vec![(0_u64, true); users as usize];
    for _ in 0..passes {
        let order = random.order(users);
        let (links, random, changes) = (&mut links, &mut random, &mut changes);
        let events = order.into_iter().map(|user| {
            let (conn, is_open) = &mut links[user as usize];
            if !*is_open {
                (*conn, *is_open) = (*conn + 1, true);
                *changes += 1;
                connect(user, *conn)
            } else if random.below(ONE_IN) == 0 {
                *is_open = false;
                *changes += 1;
                disconnect(user, *conn)
            } else {
                Event::Heartbeat {
                    who: users::who(user),
                    via: users::via(user, Conn(*conn)),
                }
            }
        });
        appender::append(&*log, events);
    }
    let ends = ends(&*log);
    let records = ends.iter().map(|end| end.0 as usize).sum();
    assert_eq!(
        records,
        users as usize * (passes as usize + 1),
        "every event is a record"
    );
    Load {
        connected,
        ends,
        records,
        changes,
    }
}

/// Every user connects. Returns where the partitions end.
pub fn fill_connects(node: &Node, users: u32) -> Vec<Offset> {
    let log = KafkaLog::connect(node.clone(), Arc::new(SystemClock::new())).expect("connected");
    let mut random = Random(1);
    appender::append(&*log, random.order(users).into_iter().map(|user| connect(user, 0)));
    ends(&*log)
}

/// Passes of `alive` records of all connections, after [`fill_connects`]. Returns also how many bytes a heartbeat has.
pub fn fill_alive(node: &Node, users: u32, passes: u32) -> (Load, f64) {
    let log = KafkaLog::connect(node.clone(), Arc::new(SystemClock::new())).expect("connected");
    let connected = ends(&*log);
    let mut of_partitions = vec![Vec::new(); log.partitions() as usize];
    for user in 0..users {
        let partition = partitioner::partition_of(&users::id('u', user), log.partitions());
        of_partitions[partition.0 as usize].push(user);
    }
    let (mut bytes, mut heartbeats) = (0, 0);
    for _ in 0..passes {
        let mut records = Vec::new();
        for (partition, users) in partitions(log.partitions()).zip(&of_partitions) {
            for gateway in 0..users::GATEWAYS {
                let on_gateway = users.iter().filter(|user| *user % users::GATEWAYS == gateway);
                let conns: Vec<Conn> = on_gateway.map(|user| users::conn(*user, Conn(0))).collect();
                for conns in conns.chunks(CONNECTIONS) {
                    let event = Event::Alive {
                        gateway: users::gateway(gateway),
                        epoch: Epoch(1),
                        conns: conns.to_vec(),
                    };
                    let mut value = Vec::new();
                    avro::encode_event(&event, &mut value);
                    bytes += value.len();
                    heartbeats += conns.len();
                    records.push((partition, value));
                }
            }
        }
        append(&*log, records);
    }
    assert_eq!(heartbeats, users as usize * passes as usize);
    let ends = ends(&*log);
    let load = Load {
        connected,
        records: heartbeats,
        ends,
        changes: u64::from(users),
    };
    (load, bytes as f64 / heartbeats as f64)
}

fn append(log: &dyn Log, values: Vec<(Partition, Vec<u8>)>) {
    let record = |value| NewRecord {
        key: None,
        value,
        headers: Vec::new(),
    };
    let records = values.into_iter().map(|(partition, value)| (partition, record(value)));
    let (done, acknowledged) = mpsc::channel();
    let acknowledge = move |result: Result<Vec<_>, _>| done.send(result.map(|_| ())).expect("waited for");
    log.append(records.collect(), Box::new(acknowledge));
    acknowledged.recv().expect("acknowledged").expect("appended");
}
