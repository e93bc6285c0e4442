//! Tells a callback that a receiver will never take from a receiver that takes nothing.
//!
//! 400, 413 and 422 speak of the body, so a callback that is answered so is given up, and the user's next one goes on. But a
//! proxy without a route, or a receiver that lost its schema, says the same to everybody. Giving everything up would empty
//! the log into the dead-letter file, so the bridge stops instead.

use std::collections::{HashSet, VecDeque};

/// So many users refused, and nobody taken in between.
const USERS: usize = 10;
/// Of the last so many callbacks that were taken or given up, so many given up.
const LAST: usize = 50;
const GIVEN_UP: usize = 40;

/// What the receiver said of the last callbacks.
#[derive(Default)]
pub struct Refusals {
    /// Whose were refused since one was taken.
    users: HashSet<Box<str>>,
    /// Of the last [`LAST`]: whether each was given up.
    last: VecDeque<bool>,
}

/// Nearly everything is refused.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MassRefusal(String);

impl MassRefusal {
    /// For the end of the bridge; `why` is what the receiver said last.
    pub fn told(&self, why: &str) -> String {
        format!("{}; last {why}", self.0)
    }
}

impl Refusals {
    /// A callback was taken.
    pub fn taken(&mut self) {
        self.users.clear();
        self.note(false);
    }

    /// One of this user was refused, and is tried again.
    pub fn refused(&mut self, user: &str) -> Option<MassRefusal> {
        if self.users.len() < USERS {
            self.users.insert(user.into());
        }
        self.storm()
    }

    /// Whether nobody but this user was refused since somebody was taken.
    pub fn are_only(&self, user: &str) -> bool {
        self.users.iter().all(|refused| **refused == *user)
    }

    /// One of this user was refused, and is to be given up, unless a storm is the answer.
    pub fn given_up(&mut self, user: &str) -> Option<MassRefusal> {
        self.note(true);
        self.refused(user)
    }

    fn note(&mut self, is_given_up: bool) {
        if self.last.len() == LAST {
            self.last.pop_front();
        }
        self.last.push_back(is_given_up);
    }

    fn storm(&self) -> Option<MassRefusal> {
        if self.users.len() >= USERS {
            return Some(MassRefusal(format!(
                "it refused callbacks of {USERS} users and took none in between"
            )));
        }
        let given_up = self.last.iter().filter(|is_given_up| **is_given_up).count();
        (given_up >= GIVEN_UP).then(|| MassRefusal(format!("it refused {given_up} of the last {LAST} callbacks")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_whose_callbacks_are_refused_is_no_storm_while_others_are_taken() {
        let mut refusals = Refusals::default();
        for _ in 0..1_000 {
            assert_eq!(refusals.given_up("alice"), None);
            refusals.taken();
        }
        // Nor is it one alone, while it is not known what others would get.
        let mut refusals = Refusals::default();
        for _ in 0..1_000 {
            assert_eq!(refusals.refused("alice"), None);
        }
        assert!(refusals.are_only("alice") && !refusals.are_only("bob"));
    }

    #[test]
    fn many_users_refused_and_nobody_taken_is_a_storm() {
        let mut refusals = Refusals::default();
        for number in 1..USERS {
            assert_eq!(refusals.refused(&format!("u{number}")), None);
        }
        refusals.taken();
        for number in 1..USERS {
            assert_eq!(refusals.given_up(&format!("u{number}")), None);
        }
        let told = refusals
            .refused("one more")
            .map(|storm| storm.told("the receiver answered 400"));
        assert_eq!(
            told.as_deref(),
            Some("it refused callbacks of 10 users and took none in between; last the receiver answered 400")
        );
    }

    #[test]
    fn four_of_five_given_up_is_a_storm() {
        let mut refusals = Refusals::default();
        let storm = (0..1_000).find_map(|number| match number % 10 {
            0 => {
                refusals.taken();
                None
            }
            _ => refusals.given_up(["alice", "bob"][number % 2]),
        });
        assert!(storm.is_some());
        let mut refusals = Refusals::default();
        for number in 0..1_000 {
            match number % 3 {
                0 => refusals.taken(),
                _ => assert_eq!(refusals.given_up(&format!("u{number}")), None),
            }
        }
    }
}
