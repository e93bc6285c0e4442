//! Heartbeats of many connections, gathered into few records.
//!
//! Within a window a connection beats once, however often its client shows life. A window is a second or 1,000 beats
//! by default. What could not be published is kept for the next one, so never more than one beat a connection waits.

use super::Edge;
use super::health::End;
use super::roster::Session;
use crate::metrics;
use crate::presence::event::{Beat, Event, bounds};
use crate::presence::{Epoch, Partition};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::Notify;

/// Of one record, by its text; what Avro adds to a beat is counted as `BEAT_BYTES`.
const RECORD_BYTES_MAX: usize = 512 << 10;
const BEAT_BYTES: usize = 16;

pub struct Beats {
    parts: Vec<Mutex<Vec<Arc<Session>>>>,
    waiting: AtomicUsize,
    most: usize,
    full: Notify,
}

impl Beats {
    /// For so many partitions; as soon as `most` wait they are published.
    pub fn new(partitions: u32, most: usize) -> Beats {
        Beats {
            parts: (0..partitions).map(|_| Mutex::default()).collect(),
            waiting: AtomicUsize::new(0),
            most,
            full: Notify::new(),
        }
    }

    /// A connection showed life.
    pub fn add(&self, session: &Arc<Session>) {
        if !session.begins_to_beat() {
            return;
        }
        let part = &self.parts[session.partition.0 as usize];
        let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
        part.push(session.clone());
        // Under the lock, so that nobody takes away what is not counted yet.
        let waiting = self.waiting.fetch_add(1, Ordering::AcqRel) + 1;
        drop(part);
        if waiting >= self.most {
            self.full.notify_one();
        }
    }

    /// Those that wait, by partition. From now on they may beat again.
    fn take(&self) -> Vec<Vec<Arc<Session>>> {
        let take = |part: &Mutex<Vec<Arc<Session>>>| {
            let mut part = part.lock().unwrap_or_else(PoisonError::into_inner);
            let sessions = std::mem::take(&mut *part);
            self.waiting.fetch_sub(sessions.len(), Ordering::AcqRel);
            drop(part);
            sessions.iter().for_each(|session| session.has_beaten());
            sessions
        };
        self.parts.iter().map(take).collect()
    }
}

/// The records of a partition's beats: each within the bounds of a record. Connections that have ended are left out.
fn records(gateway: &str, epoch: Epoch, sessions: &[Arc<Session>]) -> Vec<Event<'static>> {
    let record = |beats: Vec<Beat<'static>>| Event::Heartbeats {
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
        beats.push(session.beat());
        bytes += more;
    }
    if !beats.is_empty() {
        found.push(record(beats));
    }
    found
}

/// Publishes what waits.
async fn publish(edge: &Edge) {
    let parts = edge.beats.take();
    let mut all = Vec::new();
    for sessions in &parts {
        all.extend(records(&edge.config.name, edge.epoch, sessions));
    }
    if all.is_empty() {
        return;
    }
    let beats: usize = parts.iter().map(Vec::len).sum();
    let records = all.len();
    match edge.uplink.append(all).await {
        Ok(()) => metrics::gateway_beats(beats, records),
        Err(error) => {
            edge.log_failed(&error);
            parts.iter().flatten().for_each(|session| edge.beats.add(session));
        }
    }
}

/// Publishes for as long as the gateway runs.
pub async fn run(edge: Arc<Edge>) -> End {
    loop {
        tokio::select! {
            () = tokio::time::sleep(edge.config.beats_every) => {}
            () = edge.beats.full.notified() => {}
        }
        publish(&edge).await;
        if !edge.log_is_well() {
            // What failed waits for its second and is not asked for again at once.
            tokio::time::sleep(edge.config.beats_every).await;
        }
    }
}

/// Every connection shows life, now: the lease may have ended, and a heartbeat brings back whom that took offline.
pub async fn all(edge: &Edge) {
    edge.roster.for_each(|session| edge.beats.add(session));
    publish(edge).await;
}

/// The partition of a user, for a connection to be gathered under.
pub fn home(user: &str, partitions: u32) -> Partition {
    crate::schema::partitioner::partition_of(user, partitions)
}

#[cfg(test)]
mod tests {
    use super::*;
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
            let records = records("edge", Epoch(1), &sessions);
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
    fn a_connection_beats_once_in_a_window_and_not_after_its_end() {
        let beats = Beats::new(1, 1_000);
        let sessions = sessions(2, 9);
        for _ in 0..3 {
            sessions.iter().for_each(|session| beats.add(session));
        }
        sessions[0].ended();
        let taken = beats.take();
        assert_eq!(taken[0].len(), 2);
        let [Event::Heartbeats { beats: some, .. }] = &records("edge", Epoch(1), &taken[0])[..] else {
            unreachable!("one record is made")
        };
        assert_eq!(some.len(), 1);
        beats.add(&sessions[1]);
        assert_eq!(beats.take()[0].len(), 1);
    }

    #[test]
    fn a_thousand_beats_in_a_record_cost_a_fraction_of_a_thousand_records() {
        let sessions = sessions(1_000, 16);
        let mut together = Vec::new();
        records("edge", Epoch(1), &sessions)
            .iter()
            .for_each(|record| avro::encode_event(record, &mut together));
        let mut alone = Vec::new();
        for session in &sessions {
            let event = Event::Heartbeat {
                who: session.who(),
                via: session.via("edge", Epoch(1)),
            };
            avro::encode_event(&event, &mut alone);
        }
        assert!(together.len() < alone.len(), "{} {}", together.len(), alone.len());
    }
}
