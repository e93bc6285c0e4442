//! The connections that are open, by their number; and what each of them is to others.

use super::frames::Close;
use super::uplink::AsOf;
use crate::presence::change::KickReason;
use crate::presence::event::{ConnRef, DeviceRef, HeartbeatEntry};
use crate::presence::{Conn, Epoch, Partition};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::tungstenite::Utf8Bytes;

/// What a connection is told to do by somebody other than its client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectionCommand {
    /// To tell its client to come back elsewhere.
    Reconnect { after_ms: u64 },
    /// To end because the engine says so.
    Kick(KickReason),
    /// To end because the gateway says so.
    Close(Close),
}

/// A change of somebody whom a connection is subscribed to, as the frame that it becomes.
#[derive(Debug)]
pub struct SubscribedChange {
    pub user: Box<str>,
    /// The record that it came from.
    pub at: AsOf,
    pub frame: Utf8Bytes,
}

/// How many changes may wait for a connection; who takes them more slowly is closed.
pub const NEWS_WAITING: usize = 256;

/// One open connection, as the rest of the gateway sees it.
#[derive(Debug)]
pub struct Session {
    pub conn: Conn,
    pub user: Box<str>,
    pub platform: Box<str>,
    pub device: Box<str>,
    pub partition: Partition,
    /// Whether a heartbeat of it waits to be published.
    beating: AtomicBool,
    /// Whether one that says whose it is does.
    naming: AtomicBool,
    open: AtomicBool,
    /// One that ends it is the last.
    orders: Mutex<Vec<ConnectionCommand>>,
    woken: Notify,
    news: Mutex<Option<mpsc::Sender<Arc<SubscribedChange>>>>,
}

impl Session {
    pub fn new(conn: Conn, user: &str, platform: &str, device: &str, partition: Partition) -> Session {
        Session {
            conn,
            user: user.into(),
            platform: platform.into(),
            device: device.into(),
            partition,
            beating: AtomicBool::new(false),
            naming: AtomicBool::new(false),
            open: AtomicBool::new(true),
            orders: Mutex::default(),
            woken: Notify::new(),
            news: Mutex::new(None),
        }
    }

    pub fn who(&self) -> DeviceRef<'static> {
        DeviceRef {
            user: self.user.to_string().into(),
            platform: self.platform.to_string().into(),
            device: self.device.to_string().into(),
        }
    }

    pub fn via(&self, gateway: &str, epoch: Epoch) -> ConnRef<'static> {
        ConnRef {
            gateway: gateway.to_owned().into(),
            epoch,
            conn: self.conn,
        }
    }

    pub fn beat(&self) -> HeartbeatEntry<'static> {
        HeartbeatEntry {
            who: self.who(),
            conn: self.conn,
        }
    }

    /// Marks that a heartbeat waits; false if one did already.
    pub fn begins_to_beat(&self) -> bool {
        !self.beating.swap(true, Ordering::AcqRel)
    }

    pub fn has_beaten(&self) {
        self.beating.store(false, Ordering::Release);
    }

    /// Marks that a heartbeat waits that says whose it is; false if one did already.
    pub fn is_to_be_named(&self) -> bool {
        !self.naming.swap(true, Ordering::AcqRel)
    }

    pub fn was_named(&self) {
        self.naming.store(false, Ordering::Release);
    }

    pub fn is_open(&self) -> bool {
        self.open.load(Ordering::Acquire)
    }

    pub fn ended(&self) {
        self.open.store(false, Ordering::Release);
        lock(&self.news).take();
    }

    /// After what ends a connection nothing more is ordered.
    pub fn order(&self, order: ConnectionCommand) {
        let mut orders = lock(&self.orders);
        if matches!(orders.last(), None | Some(ConnectionCommand::Reconnect { .. })) {
            orders.push(order);
        }
        drop(orders);
        self.woken.notify_one();
    }

    /// Waits for the next order.
    pub async fn ordered(&self) -> ConnectionCommand {
        loop {
            {
                let mut orders = lock(&self.orders);
                if !orders.is_empty() {
                    return orders.remove(0);
                }
            }
            self.woken.notified().await;
        }
    }

    /// From now on changes may come.
    pub fn listens(&self) -> mpsc::Receiver<Arc<SubscribedChange>> {
        let (sender, receiver) = mpsc::channel(NEWS_WAITING);
        *lock(&self.news) = Some(sender);
        receiver
    }

    /// Gives it a change; one that has too many waiting is told to end.
    pub fn tell(&self, news: &Arc<SubscribedChange>) {
        let full = match &*lock(&self.news) {
            Some(sender) => matches!(sender.try_send(news.clone()), Err(mpsc::error::TrySendError::Full(_))),
            None => false,
        };
        if full {
            self.order(ConnectionCommand::Close(Close::TooSlow));
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const SHARDS: usize = 16;

/// All of them.
#[derive(Debug, Default)]
pub struct Roster {
    shards: [Mutex<HashMap<u64, Arc<Session>>>; SHARDS],
}

impl Roster {
    fn shard(&self, conn: Conn) -> MutexGuard<'_, HashMap<u64, Arc<Session>>> {
        lock(&self.shards[conn.0 as usize % SHARDS])
    }

    pub fn insert(&self, session: Arc<Session>) {
        self.shard(session.conn).insert(session.conn.0, session);
    }

    pub fn remove(&self, conn: Conn) {
        self.shard(conn).remove(&conn.0);
    }

    pub fn get(&self, conn: Conn) -> Option<Arc<Session>> {
        self.shard(conn).get(&conn.0).cloned()
    }

    pub fn count(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    pub fn for_each(&self, mut each: impl FnMut(&Arc<Session>)) {
        for shard in &self.shards {
            lock(shard).values().for_each(&mut each);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        Session::new(Conn(1), "u", "web", "d", Partition(0))
    }

    #[tokio::test]
    async fn orders_come_in_turn_and_none_after_one_that_ends() {
        let session = session();
        session.order(ConnectionCommand::Reconnect { after_ms: 5 });
        session.order(ConnectionCommand::Kick(KickReason::Displaced));
        session.order(ConnectionCommand::Reconnect { after_ms: 7 });
        session.order(ConnectionCommand::Close(Close::TooSlow));
        assert_eq!(session.ordered().await, ConnectionCommand::Reconnect { after_ms: 5 });
        assert_eq!(session.ordered().await, ConnectionCommand::Kick(KickReason::Displaced));
        assert!(lock(&session.orders).is_empty());
    }

    #[tokio::test]
    async fn who_does_not_take_its_changes_is_told_to_end() {
        let session = session();
        let mut receiver = session.listens();
        let news = Arc::new(SubscribedChange {
            user: "u".into(),
            at: AsOf {
                partition: 0,
                offset: 1,
            },
            frame: "{}".into(),
        });
        (0..NEWS_WAITING).for_each(|_| session.tell(&news));
        assert!(lock(&session.orders).is_empty());
        session.tell(&news);
        assert_eq!(session.ordered().await, ConnectionCommand::Close(Close::TooSlow));
        session.ended();
        session.tell(&news);
        assert_eq!(receiver.len(), NEWS_WAITING);
        receiver.close();
    }
}
