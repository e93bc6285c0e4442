//! A queue for each user: one change is posted at a time, and the others wait.

use super::Followed;
use crate::presence::Partition;
use std::collections::{HashMap, VecDeque};

/// The users with a change in progress, and the changes that wait behind it.
#[derive(Default)]
pub struct UserQueues(HashMap<Box<str>, UserQueue>);

struct UserQueue {
    partition: Partition,
    waiting: VecDeque<Followed>,
}

impl UserQueues {
    /// Adds a change. Returns it if no change of its user is in progress; it is in progress then.
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

    /// Ends the user's change in progress. Returns the next one, which is in progress then.
    pub fn done(&mut self, user: &str) -> Option<Followed> {
        let next = self.0.get_mut(user)?.waiting.pop_front();
        if next.is_none() {
            self.0.remove(user);
        }
        next
    }

    /// Removes the users of a partition and their waiting changes.
    pub fn clear(&mut self, partition: Partition) {
        self.0.retain(|_, line| line.partition != partition);
    }
}
