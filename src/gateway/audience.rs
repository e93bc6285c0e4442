//! Who is subscribed to whom, and the changes on their way to them.
//!
//! Changes are followed from the first subscription on, once for the whole gateway. A connection is entered before the
//! engine is asked how the user stands, so that no change falls between the answer and what follows it. If following
//! ends, changes may have been missed: connections that are subscribed are closed with `restart`, come back with
//! `resume` and subscribe again.

use super::GatewayState;
use super::frames::{self, Close};
use super::health::End;
use super::roster::{ConnectionCommand, Session, SubscribedChange};
use super::uplink::{AsOf, Unavailable, Uplink, UserUpdate};
use crate::presence::Conn;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Notify, mpsc};

/// Of one user, by their number: some have very many.
type Listeners = BTreeMap<Conn, Arc<Session>>;

#[derive(Default)]
pub struct Audience {
    /// By whom they listen to.
    listeners: Mutex<HashMap<Box<str>, Listeners>>,
    feed: tokio::sync::Mutex<ChangeFeed>,
    opened: Notify,
}

/// The changes of everybody.
#[derive(Default)]
enum ChangeFeed {
    /// Nobody needs them.
    #[default]
    Closed,
    /// They come, and the task that passes them on has not seen that yet.
    Opened(mpsc::Receiver<UserUpdate>),
    /// They are passed on.
    Followed,
}

/// Passes changes on to those who are subscribed.
pub async fn run(edge: Arc<GatewayState>) -> End {
    let audience = &edge.audience;
    audience.start_over().await;
    let mut changes = audience.changes().await;
    while let Some(told) = changes.recv().await {
        audience.pass_on(told);
    }
    End::Failed("the subscription ended".to_owned())
}

impl Audience {
    /// Follows changes from now on, if that was not begun before.
    pub async fn follow(&self, uplink: &dyn Uplink) -> Result<(), Unavailable> {
        let mut feed = self.feed.lock().await;
        if let ChangeFeed::Closed = *feed {
            *feed = ChangeFeed::Opened(uplink.changes().await?);
            self.opened.notify_one();
        }
        Ok(())
    }

    /// If changes were followed before and are not any more, nobody knows what was missed.
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

    /// Where nobody remembers whom a connection was subscribed to.
    pub fn remove_everywhere(&self, session: &Session) {
        let mut listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        listeners.retain(|_, sessions| {
            sessions.remove(&session.conn);
            !sessions.is_empty()
        });
    }

    fn pass_on(&self, told: UserUpdate) {
        let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(sessions) = listeners.get(&told.user) else {
            return;
        };
        let news = Arc::new(SubscribedChange {
            frame: frames::change(&told).into(),
            at: AsOf {
                partition: told.partition,
                offset: told.offset,
            },
            user: told.user,
        });
        sessions.values().for_each(|session| session.tell(&news));
    }
}
