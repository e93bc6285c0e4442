//! The open connections by their number, and what the rest of the gateway can do with each.

use super::frames::Close;
use super::uplink::AsOf;
use crate::presence::change::KickReason;
use crate::presence::event::{ConnRef, DeviceRef, HeartbeatEntry};
use crate::presence::{Conn, Epoch, Partition};
use crate::traces::Delivery;
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::{Notify, mpsc};
use tokio_tungstenite::tungstenite::Utf8Bytes;

/// A command to a connection from somebody other than its client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConnectionCommand {
    /// Ask the client to reconnect elsewhere.
    Reconnect { after_ms: u64 },
    /// End because the engine kicks the connection.
    Kick(KickReason),
    /// End because the gateway closes the connection.
    Close(Close),
}

/// A change of a user to whom a connection is subscribed, as the frame that is sent.
#[derive(Debug)]
pub struct SubscribedChange {
    pub user: Box<str>,
    /// If it is a change of a traced event.
    pub delivery: Option<Delivery>,
    /// The record that the change came from.
    pub at: AsOf,
    pub frame: Utf8Bytes,
}

/// How many changes may wait for a connection. A connection that takes them more slowly is closed.
pub const CHANGES_WAITING_MAX: usize = 256;

/// One open connection, as the rest of the gateway sees it.
#[derive(Debug)]
pub struct Session {
    pub conn: Conn,
    pub user: Box<str>,
    pub platform: Box<str>,
    pub device: Box<str>,
    pub partition: Partition,
    /// Whether a heartbeat of this connection waits to be published.
    beating: AtomicBool,
    /// Whether a heartbeat that names the user waits to be published.
    naming: AtomicBool,
    open: AtomicBool,
    /// Commands in order. One that ends the connection is the last.
    orders: Mutex<Vec<ConnectionCommand>>,
    woken: Notify,
    changes: Mutex<Option<mpsc::Sender<Arc<SubscribedChange>>>>,
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
            changes: Mutex::new(None),
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

    pub fn heartbeat(&self) -> HeartbeatEntry<'static> {
        HeartbeatEntry {
            who: self.who(),
            conn: self.conn,
        }
    }

    /// Marks that a heartbeat waits. Returns false if one waits already.
    pub fn begins_to_beat(&self) -> bool {
        !self.beating.swap(true, Ordering::AcqRel)
    }

    pub fn has_beaten(&self) {
        self.beating.store(false, Ordering::Release);
    }

    /// Marks that a heartbeat that names the user waits. Returns false if one waits already.
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
        lock(&self.changes).take();
    }

    /// Adds a command. Ignored after one that ends the connection.
    pub fn order(&self, order: ConnectionCommand) {
        let mut orders = lock(&self.orders);
        if matches!(orders.last(), None | Some(ConnectionCommand::Reconnect { .. })) {
            orders.push(order);
        }
        drop(orders);
        self.woken.notify_one();
    }

    /// Waits for the next command.
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

    /// Opens the connection's channel for changes.
    pub fn open_changes(&self) -> mpsc::Receiver<Arc<SubscribedChange>> {
        let (sender, receiver) = mpsc::channel(CHANGES_WAITING_MAX);
        *lock(&self.changes) = Some(sender);
        receiver
    }

    /// Delivers a change to the connection. Closes the connection if too many changes wait.
    pub fn deliver(&self, change: &Arc<SubscribedChange>) {
        let full = match &*lock(&self.changes) {
            Some(sender) => matches!(sender.try_send(change.clone()), Err(mpsc::error::TrySendError::Full(_))),
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

/// All open connections.
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
    async fn a_session_that_does_not_read_its_changes_is_ended() {
        let session = session();
        let mut receiver = session.open_changes();
        let change = Arc::new(SubscribedChange {
            user: "u".into(),
            delivery: None,
            at: AsOf {
                partition: 0,
                offset: 1,
            },
            frame: "{}".into(),
        });
        (0..CHANGES_WAITING_MAX).for_each(|_| session.deliver(&change));
        assert!(lock(&session.orders).is_empty());
        session.deliver(&change);
        assert_eq!(session.ordered().await, ConnectionCommand::Close(Close::TooSlow));
        session.ended();
        session.deliver(&change);
        assert_eq!(receiver.len(), CHANGES_WAITING_MAX);
        receiver.close();
    }
}
