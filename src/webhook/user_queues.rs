//! A line for each user: one change at a time, the others behind it.

use super::Followed;
use crate::presence::Partition;
use std::collections::{HashMap, VecDeque};

/// Users with a change under way, and what waits behind it.
#[derive(Default)]
pub struct Lines(HashMap<Box<str>, UserQueue>);

struct UserQueue {
    partition: Partition,
    waiting: VecDeque<Followed>,
}

impl Lines {
    /// Gives the change back if nothing of its user is under way; it is under way then.
    pub fn add(&mut self, followed: Followed) -> Option<Followed> {
        match self.0.get_mut(&followed.change.user) {
            Some(line) => {
                line.waiting.push_back(followed);
                None
            }
            None => {
                let line = UserQueue {
                    partition: followed.partition,
                    waiting: VecDeque::new(),
                };
                self.0.insert(followed.change.user.clone(), line);
                Some(followed)
            }
        }
    }

    /// The user's change is done; the next one is under way now.
    pub fn done(&mut self, user: &str) -> Option<Followed> {
        let next = self.0.get_mut(user)?.waiting.pop_front();
        if next.is_none() {
            self.0.remove(user);
        }
        next
    }

    /// Forgets the users of a partition, what waits with them.
    pub fn clear(&mut self, partition: Partition) {
        self.0.retain(|_, line| line.partition != partition);
    }
}
