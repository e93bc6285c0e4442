//! Who is subscribed to whom, and the changes on their way to them.
//!
//! Changes are followed from the first subscription on, once for the whole gateway. A connection is entered before the
//! engine is asked how the user stands, so that no change falls between the answer and what follows it.

use super::frames;
use super::roster::{News, Session};
use super::uplink::{AsOf, Told, Unavailable, Uplink};
use crate::presence::Conn;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OnceCell, mpsc};

/// Of one user, by their number: some have very many.
type Listeners = BTreeMap<Conn, Arc<Session>>;

#[derive(Default)]
pub struct Audience {
    /// By whom they listen to.
    listeners: Mutex<HashMap<Box<str>, Listeners>>,
    following: OnceCell<()>,
}

impl Audience {
    /// Follows changes from now on, if that was not begun before.
    pub async fn follow(self: &Arc<Self>, uplink: &dyn Uplink) -> Result<(), Unavailable> {
        let begin = async || {
            let changes = uplink.changes().await?;
            tokio::spawn(self.clone().pass_on(changes));
            Ok(())
        };
        self.following.get_or_try_init(begin).await.copied()
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

    async fn pass_on(self: Arc<Self>, mut changes: mpsc::Receiver<Told>) {
        while let Some(told) = changes.recv().await {
            let listeners = self.listeners.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(sessions) = listeners.get(&told.user) else {
                continue;
            };
            let news = Arc::new(News {
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
}
