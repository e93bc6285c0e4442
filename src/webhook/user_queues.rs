//! A queue for each user: one change is posted at a time, and the others wait.

use super::Followed;
use crate::presence::Partition;
use std::collections::{HashMap, VecDeque};

/// The users with a change in progress, and the changes that wait behind it.
#[derive(Default)]
pub struct UserQueues {
    users: HashMap<Box<str>, UserQueue>,
    /// How many changes wait, of all users.
    waiting: usize,
}

struct UserQueue {
    partition: Partition,
    waiting: VecDeque<Followed>,
}

impl UserQueues {
    /// Adds a change. Returns it if no change of its user is in progress; it is in progress then.
    pub fn add(&mut self, followed: Followed) -> Option<Followed> {
        match self.users.get_mut(&followed.change.user) {
            Some(line) => {
                line.waiting.push_back(followed);
                self.waiting += 1;
                None
            }
            None => {
                let line = UserQueue {
                    partition: followed.partition,
                    waiting: VecDeque::new(),
                };
                self.users.insert(followed.change.user.clone(), line);
                Some(followed)
            }
        }
    }

    /// Ends the user's change in progress. Returns the next one, which is in progress then.
    pub fn done(&mut self, user: &str) -> Option<Followed> {
        let next = self.users.get_mut(user)?.waiting.pop_front();
        match next {
            Some(_) => self.waiting -= 1,
            None => drop(self.users.remove(user)),
        }
        next
    }

    /// Removes the users of a partition and their waiting changes.
    pub fn clear(&mut self, partition: Partition) {
        self.users.retain(|_, line| {
            let stays = line.partition != partition;
            if !stays {
                self.waiting -= line.waiting.len();
            }
            stays
        });
    }

    /// Returns how many changes wait behind another of their user.
    pub fn waiting(&self) -> usize {
        self.waiting
    }
}
