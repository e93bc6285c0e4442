//! Heartbeats of many connections, combined into few records.
//!
//! Within a window (by default ten seconds or 10,000 heartbeats) each connection counts once, however often its client
//! shows life. The heartbeats are published as `alive` records, which name connections by their numbers only. By number
//! the engine finds only devices that are online. For any other connection it sends a kick `identify`, and the gateway
//! answers with a heartbeat that names the user. It does so within a second, since the device may be offline for the
//! engine. After an outage most connections would be unknown, so all of them are then published as `heartbeats`. What
//! could not be published is kept for the next window, so at most one heartbeat per connection waits.

use super::GatewayState;
use super::health::End;
use super::roster::Session;
use crate::metrics;
use crate::presence::event::{Event, HeartbeatEntry, bounds};
use crate::presence::{Conn, Epoch, Partition};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// The greatest size of a record's text; what Avro adds for each heartbeat is counted as `BEAT_BYTES`.
const RECORD_BYTES_MAX: usize = 512 << 10;
const BEAT_BYTES: usize = 16;
/// The longest time that heartbeats which name their users wait.
const NAMED_EVERY: Duration = Duration::from_secs(1);

pub struct HeartbeatBatches {
    parts: Vec<Mutex<PartitionHeartbeats>>,
    waiting: AtomicUsize,
    most: usize,
    full: Notify,
    /// The number of waiting heartbeats that name their users.
    named: AtomicUsize,
    named_first: Notify,
    /// Whether the engine may have lost many connections. Until a publication succeeds, all heartbeats name their
    /// users.
    after_outage: AtomicBool,
}

/// The waiting heartbeats of the users of one partition.
#[derive(Default)]
struct PartitionHeartbeats {
    by_number: Vec<Arc<Session>>,
    /// Connections of which the engine asked for the user.
    by_name: Vec<Arc<Session>>,
}

impl PartitionHeartbeats {
    fn len(&self) -> usize {
        self.by_number.len() + self.by_name.len()
    }
}

impl HeartbeatBatches {
    /// Creates the batches for this many partitions. They are published as soon as `most` heartbeats wait.
    pub fn new(partitions: u32, most: usize) -> HeartbeatBatches {
        HeartbeatBatches {
            parts: (0..partitions).map(|_| Mutex::default()).collect(),
            waiting: AtomicUsize::new(0),
            most,
            full: Notify::new(),
            named: AtomicUsize::new(0),
            named_first: Notify::new(),
            after_outage: AtomicBool::new(false),
        }
    }

    /// Adds the heartbeat of a connection that showed life.
    pub fn add(&self, session: &Arc<Session>) {
        if session.begins_to_beat() {
            self.put(session, |part| part.by_number.push(session.clone()));
        }
    }

    /// Adds a heartbeat that names the user, because the engine asked for it.
    pub fn identify(&self, session: &Arc<Session>) {
        if session.is_to_be_named() {
            self.put(session, |part| part.by_name.push(session.clone()));
            if self.named.fetch_add(1, Ordering::AcqRel) == 0 {
                self.named_first.notify_one();
            }
        }
    }

    /// Returns when a heartbeat that names its user has waited for long enough.
    async fn named_due(&self) {
        self.named_first.notified().await;
        tokio::time::sleep(NAMED_EVERY).await;
    }

    fn put(&self, session: &Session, put: impl FnOnce(&mut PartitionHeartbeats)) {
        let part = &self.parts[session.partition.0 as usize];
        let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
        put(&mut part);
        // Inside the lock, so that nobody removes an entry that is not counted yet.
        let waiting = self.waiting.fetch_add(1, Ordering::AcqRel) + 1;
        drop(part);
        if waiting >= self.most {
            self.full.notify_one();
        }
    }

    /// Takes the waiting heartbeats, by partition. From now on the same connections may be added again.
    fn take(&self) -> Vec<PartitionHeartbeats> {
        let take = |part: &Mutex<PartitionHeartbeats>| {
            let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
            let taken = std::mem::take(&mut *part);
            self.waiting.fetch_sub(taken.len(), Ordering::AcqRel);
            drop(part);
            taken.by_number.iter().for_each(|session| session.has_beaten());
            taken.by_name.iter().for_each(|session| session.was_named());
            taken
        };
        self.named.store(0, Ordering::Release);
        self.parts.iter().map(take).collect()
    }
}

/// Returns the `heartbeats` records of one partition's connections, with the user of each, within the bounds of a
/// record. Leaves out connections that have ended.
fn by_name(gateway: &str, epoch: Epoch, sessions: &[Arc<Session>]) -> Vec<Event<'static>> {
    let record = |beats: Vec<HeartbeatEntry<'static>>| Event::Heartbeats {
        gateway: gateway.to_owned().into(),
        epoch,
        beats,
    };
    let mut found = Vec::new();
    let (mut beats, mut bytes) = (Vec::new(), 0);
    for session in sessions.iter().filter(|session| session.is_open()) {
        let more = session.user.len() + session.platform.len() + session.device.len() + BEAT_BYTES;
        if beats.len() == bounds::BEATS.1 || bytes + more > RECORD_BYTES_MAX {
            found.push(record(std::mem::take(&mut beats)));
            bytes = 0;
        }
        beats.push(session.heartbeat());
        bytes += more;
    }
    if !beats.is_empty() {
        found.push(record(beats));
    }
    found
}

/// Returns the `alive` records of one partition's connections, by number.
fn by_number(gateway: &str, epoch: Epoch, sessions: &[Arc<Session>]) -> Vec<Event<'static>> {
    let open = sessions.iter().filter(|session| session.is_open());
    let mut conns: Vec<Conn> = open.map(|session| session.conn).collect();
    conns.sort_unstable();
    conns.dedup();
    let record = |conns: &[Conn]| Event::Alive {
        gateway: gateway.to_owned().into(),
        epoch,
        conns: conns.to_vec(),
    };
    conns.chunks(bounds::CONNS.1).map(record).collect()
}

/// Publishes what waits.
async fn publish(edge: &GatewayState) {
    let after_outage = edge.heartbeats.after_outage.load(Ordering::Acquire) || !edge.log_is_well();
    let mut parts = edge.heartbeats.take();
    let (gateway, epoch) = (&edge.config.name, edge.epoch);
    let mut all = Vec::new();
    for (partition, part) in (0..).map(Partition).zip(&mut parts) {
        if after_outage {
            part.by_name.append(&mut part.by_number);
        }
        let alive = by_number(gateway, epoch, &part.by_number).into_iter();
        all.extend(alive.map(|event| (Some(partition), event)));
        let heartbeats = by_name(gateway, epoch, &part.by_name).into_iter();
        all.extend(heartbeats.map(|event| (None, event)));
    }
    if all.is_empty() {
        return;
    }
    let beats: usize = parts.iter().map(PartitionHeartbeats::len).sum();
    let records = all.len();
    match edge.uplink.append_to(all).await {
        Ok(()) => {
            metrics::gateway_beats(beats, records);
            if after_outage {
                edge.heartbeats.after_outage.store(false, Ordering::Release);
            }
        }
        Err(error) => {
            edge.log_failed(&error);
            edge.heartbeats.after_outage.store(true, Ordering::Release);
            for part in &parts {
                part.by_number.iter().for_each(|session| edge.heartbeats.add(session));
                part.by_name
                    .iter()
                    .for_each(|session| edge.heartbeats.identify(session));
            }
        }
    }
}

/// Publishes heartbeats as long as the gateway runs.
pub async fn run(edge: Arc<GatewayState>) -> End {
    loop {
        // What could not be published, and what names its users, waits for a second at most.
        let window = match edge.heartbeats.after_outage.load(Ordering::Acquire) {
            true => edge.beats_window().min(NAMED_EVERY),
            false => edge.beats_window(),
        };
        tokio::select! {
            () = tokio::time::sleep(window) => {}
            () = edge.heartbeats.full.notified() => {}
            () = edge.heartbeats.named_due() => {}
        }
        publish(&edge).await;
        if !edge.log_is_well() {
            // A failed publication is retried in the next window, not at once.
            tokio::time::sleep(edge.beats_window().min(NAMED_EVERY)).await;
        }
    }
}

/// Publishes a heartbeat of every connection now. The lease may have ended; heartbeats bring back the users whom that
/// took offline.
pub async fn all(edge: &GatewayState) {
    edge.heartbeats.after_outage.store(true, Ordering::Release);
    edge.roster.for_each(|session| edge.heartbeats.add(session));
    publish(edge).await;
}

/// Returns the partition of a user, under which its connection's heartbeats are collected.
pub fn home(user: &str, partitions: u32) -> Partition {
    crate::schema::partitioner::partition_of(user, partitions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::uplink::Pace;
    use crate::presence::Conn;
    use crate::schema::avro;

    fn sessions(count: u64, user_bytes: usize) -> Vec<Arc<Session>> {
        let session = |conn| {
            let user = format!("{conn:0user_bytes$}");
            Arc::new(Session::new(Conn(conn), &user, "android", &user, Partition(0)))
        };
        (0..count).map(session).collect()
    }

    #[test]
    fn records_keep_to_their_bounds_and_nobody_is_left_out() {
        for (count, user_bytes) in [(1, 1), (10_000, 9), (10_001, 9), (25_000, 128)] {
            let sessions = sessions(count, user_bytes);
            let records = by_name("edge", Epoch(1), &sessions);
            let mut beats = 0;
            for record in &records {
                let Event::Heartbeats { beats: some, .. } = record else {
                    unreachable!("only heartbeats are made")
                };
                beats += some.len();
                assert!(some.len() <= bounds::BEATS.1);
                let mut bytes = Vec::new();
                avro::encode_event(record, &mut bytes);
                assert!(bytes.len() <= RECORD_BYTES_MAX + 1_024, "{}", bytes.len());
            }
            assert_eq!(beats as u64, count);
        }
    }

    #[test]
    fn no_client_is_offline_because_its_gateway_waits() {
        for (heartbeat_ms, timeout_ms, hold_ms) in [
            (120_000, 400_000, 66_666),
            (20_000, 60_000, 10_000),
            (50_000, 60_000, 5_000),
            (3_333, 10_000, 1_666),
            (60_000, 60_000, 0),
        ] {
            let pace = Pace {
                heartbeat_ms,
                timeout_ms,
            };
            assert_eq!(pace.hold_ms(), hold_ms);
            assert!(heartbeat_ms + hold_ms < timeout_ms || hold_ms == 0);
        }
    }

    #[test]
    fn a_connection_beats_once_in_a_window_and_not_after_its_end() {
        let beats = HeartbeatBatches::new(1, 1_000);
        let sessions = sessions(2, 9);
        for _ in 0..3 {
            sessions.iter().for_each(|session| beats.add(session));
        }
        sessions[0].ended();
        let taken = beats.take();
        assert_eq!(taken[0].len(), 2);
        let [Event::Alive { conns, .. }] = &by_number("edge", Epoch(1), &taken[0].by_number)[..] else {
            unreachable!("one record is made")
        };
        assert_eq!(conns, &[Conn(1)]);
        beats.add(&sessions[1]);
        // The request for the user is a second entry.
        beats.identify(&sessions[1]);
        beats.identify(&sessions[1]);
        let taken = beats.take();
        assert_eq!((taken[0].by_number.len(), taken[0].by_name.len()), (1, 1));
        assert_eq!(by_name("edge", Epoch(1), &taken[0].by_name).len(), 1);
    }

    #[test]
    fn numbers_grow_within_a_record_and_none_has_too_many() {
        let mut sessions = sessions(100_001, 1);
        sessions.reverse();
        // A connection that could not be published before may be listed twice.
        sessions.push(sessions[0].clone());
        let mut all = Vec::new();
        for record in by_number("edge", Epoch(1), &sessions) {
            let Event::Alive { conns, .. } = record else {
                unreachable!("only `alive` is made")
            };
            assert!(conns.len() <= bounds::CONNS.1 && conns.is_sorted());
            all.extend(conns);
        }
        assert!(all.iter().copied().eq((0..100_001).map(Conn)));
    }

    #[test]
    fn a_thousand_beats_in_a_record_cost_a_fraction_of_a_thousand_records() {
        let sessions = sessions(1_000, 16);
        let bytes = |records: Vec<Event<'static>>| {
            let mut bytes = Vec::new();
            records.iter().for_each(|record| avro::encode_event(record, &mut bytes));
            bytes.len()
        };
        let together = bytes(by_name("edge", Epoch(1), &sessions));
        let numbers = bytes(by_number("edge", Epoch(1), &sessions));
        let mut alone = Vec::new();
        for session in &sessions {
            let event = Event::Heartbeat {
                who: session.who(),
                via: session.via("edge", Epoch(1)),
            };
            avro::encode_event(&event, &mut alone);
        }
        assert!(together < alone.len(), "{together} {}", alone.len());
        assert!(numbers * 10 < together, "{numbers} {together}");
    }
}
