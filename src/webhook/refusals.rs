//! Distinguishes a callback that the receiver will never accept from a receiver that accepts nothing.
//!
//! 400, 413 and 422 are about the body, so a callback with such a response is given up, and the user's next one is
//! posted. But a proxy without a route, or a receiver that lost its schema, responds to every callback that way. Giving
//! all of them up would move the whole log into the dead-letter file, so the bridge stops instead.

use std::collections::{HashSet, VecDeque};

/// How many users must be refused, with no callback accepted in between, to stop the bridge.
const USERS: usize = 10;
/// The bridge also stops if, of this many last callbacks that were accepted or given up, [`GIVEN_UP`] were given up.
const LAST: usize = 50;
const GIVEN_UP: usize = 40;

/// The receiver's responses to the last callbacks.
#[derive(Default)]
pub struct Refusals {
    /// The users with a callback refused since one was last accepted.
    users: HashSet<Box<str>>,
    /// Whether each of the last [`LAST`] callbacks was given up.
    last: VecDeque<bool>,
}

/// The receiver refuses nearly everything.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MassRefusal(String);

impl MassRefusal {
    /// Returns the text for the bridge's error. `why` is the receiver's last response.
    pub fn sentence(&self, why: &str) -> String {
        format!("{}; last response: {why}", self.0)
    }
}

impl Refusals {
    /// Records that a callback was accepted.
    pub fn taken(&mut self) {
        self.users.clear();
        self.note(false);
    }

    /// Records that a callback of this user was refused and will be retried.
    pub fn refused(&mut self, user: &str) -> Option<MassRefusal> {
        if self.users.len() < USERS {
            self.users.insert(user.into());
        }
        self.storm()
    }

    /// Returns whether only this user's callbacks were refused since one was last accepted.
    pub fn are_only(&self, user: &str) -> bool {
        self.users.iter().all(|refused| **refused == *user)
    }

    /// Records that a callback of this user was refused and is about to be given up. A returned refusal stops the
    /// bridge instead.
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
                "it refused callbacks of {USERS} users and accepted none in between"
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
        // Nor is one user alone, while it is unknown how others would fare.
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
        let sentence = refusals
            .refused("one more")
            .map(|storm| storm.sentence("the receiver responded with 400"));
        assert_eq!(
            sentence.as_deref(),
            Some(
                "it refused callbacks of 10 users and accepted none in between; last response: the receiver responded with 400"
            )
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
