//! Subscriptions: which connections are subscribed to which users, and the delivery of changes to them.
//!
//! The gateway follows the change topic once for all its connections, from the first subscription on. A connection is
//! registered before the engine is asked for the user's current state, so that no change falls between the answer and
//! the changes that follow it. If the subscription to the engine ends, changes may have been missed. The gateway then
//! closes all subscribed connections with `restart`; their clients come back with `resume` and subscribe again.

use super::GatewayState;
use super::frames::{self, Close};
use super::health::End;
use super::roster::{ConnectionCommand, Session, SubscribedChange};
use super::uplink::{AsOf, Unavailable, Uplink, UserUpdate};
use crate::presence::Conn;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, mpsc};

/// The subscribed connections of one user, by connection number. A map, because some users have very many.
type Listeners = BTreeMap<Conn, Arc<Session>>;

#[derive(Default)]
pub struct Audience {
    /// The subscribed connections, by the user they listen to.
    listeners: Mutex<HashMap<Box<str>, Listeners>>,
    feed: tokio::sync::Mutex<ChangeFeed>,
    opened: Notify,
}

/// The state of the subscription to all users' changes.
#[derive(Default)]
enum ChangeFeed {
    /// No connection is subscribed, so no changes are needed.
    #[default]
    Closed,
    /// Changes arrive, but the delivery task has not taken the receiver yet.
    Opened(mpsc::Receiver<UserUpdate>),
    /// The delivery task has the receiver and delivers the changes.
    Followed,
}

/// Delivers changes to the connections that are subscribed to their users.
pub async fn run(edge: Arc<GatewayState>) -> End {
    let audience = &edge.audience;
    audience.start_over().await;
    let mut changes = audience.changes().await;
    while let Some(update) = changes.recv().await {
        audience.pass_on(update);
    }
    End::Failed("the subscription ended".to_owned())
}

impl Audience {
    /// Starts following changes, unless that was done before.
    pub async fn follow(&self, uplink: &dyn Uplink) -> Result<(), Unavailable> {
        let mut feed = self.feed.lock().await;
        if let ChangeFeed::Closed = *feed {
            *feed = ChangeFeed::Opened(uplink.changes().await?);
            self.opened.notify_one();
        }
        Ok(())
    }

    /// Closes all subscribed connections if changes were followed before and no longer are: some may have been missed.
    async fn start_over(&self) {
        let mut feed = self.feed.lock().await;
        if !matches!(*feed, ChangeFeed::Followed) {
            return;
        }
        *feed = ChangeFeed::Closed;
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        for session in listeners.values().flat_map(BTreeMap::values) {
            session.order(ConnectionCommand::Close(Close::Restart));
        }
    }

    async fn changes(&self) -> mpsc::Receiver<UserUpdate> {
        loop {
            let mut feed = self.feed.lock().await;
            match std::mem::replace(&mut *feed, ChangeFeed::Followed) {
                ChangeFeed::Opened(changes) => return changes,
                before => *feed = before,
            }
            drop(feed);
            self.opened.notified().await;
        }
    }

    pub fn add(&self, user: &str, session: &Arc<Session>) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        match listeners.get_mut(user) {
            Some(sessions) => {
                sessions.insert(session.conn, session.clone());
            }
            None => {
                listeners.insert(user.into(), BTreeMap::from([(session.conn, session.clone())]));
            }
        }
    }

    pub fn remove(&self, user: &str, session: &Session) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sessions) = listeners.get_mut(user) {
            sessions.remove(&session.conn);
            if sessions.is_empty() {
                listeners.remove(user);
            }
        }
    }

    /// Removes a connection from every user. Used where it is no longer known to whom the connection was subscribed.
    pub fn remove_everywhere(&self, session: &Session) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|_, sessions| {
            sessions.remove(&session.conn);
            !sessions.is_empty()
        });
    }

    fn pass_on(&self, update: UserUpdate) {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sessions) = listeners.get(&update.user) else {
            return;
        };
        let change = Arc::new(SubscribedChange {
            frame: frames::change(&update).into(),
            at: AsOf {
                partition: update.partition,
                offset: update.offset,
            },
            user: update.user,
            delivery: update.delivery,
        });
        sessions.values().for_each(|session| session.deliver(&change));
    }
}
