//! Distinguishes a callback that the receiver will never accept from a receiver that accepts nothing.
//!
//! 400, 413 and 422 are about the body. But a proxy without a route, or a receiver that lost its schema, responds to every
//! callback that way, and giving all of them up would move the whole log into the dead-letter file. So a refusal decides
//! nothing by itself: the callback is held back and posted again. If it is refused again after a callback of another user
//! was accepted, then the refusal is about this callback, which is given up. If many users are refused meanwhile and nobody
//! is accepted, the bridge stops, and all that was held back stays in the log.
//!
//! Attempts are numbered, since many are in progress at the same time: an attempt that had begun before a refusal arrived and
//! is accepted after it shows nothing about what the receiver does now.

use std::collections::{HashMap, VecDeque};

/// How many users must be refused, with no callback accepted in between, to stop the bridge. Each of them has one callback
/// in progress, so fewer than this many are held back.
const USERS: usize = 10;
/// The bridge also stops if, of this many last callbacks that were accepted or given up, [`GIVEN_UP`] were given up.
const LAST: usize = 50;
const GIVEN_UP: usize = 40;

/// The receiver's responses to the last callbacks.
#[derive(Default)]
pub struct Refusals {
    /// How many attempts have begun.
    begun: u64,
    /// The greatest number of an attempt that was accepted.
    accepted: u64,
    /// The users with a callback that is held back and was refused since one was last accepted, each with the number of the
    /// last attempt that had begun when it was refused.
    held: HashMap<Box<str>, u64>,
    /// Whether each of the last [`LAST`] callbacks was given up.
    last: VecDeque<bool>,
}

/// An attempt to post a callback.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    pub number: u64,
    /// The greatest number of an attempt that was accepted before this one began.
    pub accepted_before: u64,
}

/// What a refusal means.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// Not known yet. It is known when a later attempt than this one is accepted.
    Undecided(u64),
    /// The receiver refuses this callback and accepts others.
    ThisCallback,
    /// The receiver refuses nearly everything.
    Everything(MassRefusal),
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
    /// Begins an attempt.
    pub fn begin(&mut self) -> Attempt {
        self.begun += 1;
        Attempt {
            number: self.begun,
            accepted_before: self.accepted,
        }
    }

    /// Returns the number of the last attempt that has begun.
    pub fn begun(&self) -> u64 {
        self.begun
    }

    /// Records that an attempt was accepted.
    pub fn accepted(&mut self, attempt: Attempt) {
        self.accepted = self.accepted.max(attempt.number);
        self.held.retain(|_, refused| attempt.number <= *refused);
        self.note(false);
    }

    /// Records that a callback of this user was refused. `first` is the number that came with the verdict on its first
    /// refusal, if there was one.
    pub fn refused(&mut self, user: &str, attempt: Attempt, first: Option<u64>) -> Verdict {
        if first.is_some_and(|first| attempt.accepted_before > first) {
            self.held.remove(user);
            self.note(true);
            let given_up = self.last.iter().filter(|is_given_up| **is_given_up).count();
            if given_up < GIVEN_UP {
                return Verdict::ThisCallback;
            }
            return Verdict::Everything(MassRefusal(format!(
                "it refused {given_up} of the last {LAST} callbacks"
            )));
        }
        if self.held.len() < USERS {
            self.held.entry(user.into()).or_insert(self.begun);
        }
        if self.held.len() < USERS {
            return Verdict::Undecided(self.begun);
        }
        Verdict::Everything(MassRefusal(format!(
            "it refused callbacks of {USERS} users and accepted none in between"
        )))
    }

    /// Records that the callbacks of this user are no longer posted by this process.
    pub fn left(&mut self, user: &str) {
        self.held.remove(user);
    }

    fn note(&mut self, is_given_up: bool) {
        if self.last.len() == LAST {
            self.last.pop_front();
        }
        self.last.push_back(is_given_up);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accept(refusals: &mut Refusals) {
        let attempt = refusals.begin();
        refusals.accepted(attempt);
    }

    fn refuse(refusals: &mut Refusals, user: &str, first: Option<u64>) -> Verdict {
        let attempt = refusals.begin();
        refusals.refused(user, attempt, first)
    }

    /// Refuses a callback for the first time.
    fn hold(refusals: &mut Refusals, user: &str) -> Option<u64> {
        match refuse(refusals, user, None) {
            Verdict::Undecided(first) => Some(first),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_callback_is_given_up_only_if_it_is_refused_again_after_another_was_accepted() {
        let mut refusals = Refusals::default();
        for _ in 0..100 {
            let first = hold(&mut refusals, "alice");
            // Alone, it is never known whose fault it is.
            for _ in 0..100 {
                assert!(matches!(refuse(&mut refusals, "alice", first), Verdict::Undecided(_)));
            }
            accept(&mut refusals);
            assert_eq!(refuse(&mut refusals, "alice", first), Verdict::ThisCallback);
            (0..4).for_each(|_| accept(&mut refusals));
        }
    }

    #[test]
    fn what_had_begun_before_the_refusal_decides_nothing() {
        let mut refusals = Refusals::default();
        let late = refusals.begin();
        let first = hold(&mut refusals, "alice");
        refusals.accepted(late);
        assert!(matches!(refuse(&mut refusals, "alice", first), Verdict::Undecided(_)));
        // Nor does the refusal of an attempt that had begun before another callback was accepted.
        let early = refusals.begin();
        accept(&mut refusals);
        assert!(matches!(refusals.refused("alice", early, first), Verdict::Undecided(_)));
        assert_eq!(refuse(&mut refusals, "alice", first), Verdict::ThisCallback);
    }

    #[test]
    fn many_users_refused_and_nobody_accepted_is_everything() {
        let mut refusals = Refusals::default();
        let late = refusals.begin();
        for number in 1..USERS {
            hold(&mut refusals, &format!("u{number}"));
        }
        accept(&mut refusals);
        for number in 1..USERS {
            hold(&mut refusals, &format!("u{number}"));
        }
        // One that had begun before all of them does not count.
        refusals.accepted(late);
        // Who is posted by another process does not count either.
        refusals.left("u1");
        hold(&mut refusals, "u1");
        let Verdict::Everything(refusal) = refuse(&mut refusals, "one more", None) else {
            panic!("it is everything");
        };
        assert_eq!(
            refusal.sentence("the receiver responded with 400"),
            "it refused callbacks of 10 users and accepted none in between; last response: the receiver responded with 400"
        );
    }

    #[test]
    fn four_of_five_given_up_is_everything() {
        let given_up_of_ten = |given_up: usize| {
            let mut refusals = Refusals::default();
            (0..1_000).find_map(|number| {
                if number % 10 >= given_up {
                    accept(&mut refusals);
                    return None;
                }
                let first = hold(&mut refusals, "alice");
                let other = refusals.begin();
                // Accepted, but not counted here.
                refusals.accepted = other.number;
                match refuse(&mut refusals, "alice", first) {
                    Verdict::ThisCallback => None,
                    Verdict::Everything(refusal) => Some(refusal.sentence("413")),
                    Verdict::Undecided(_) => panic!("another was accepted"),
                }
            })
        };
        let sentence = "it refused 40 of the last 50 callbacks; last response: 413";
        assert_eq!(given_up_of_ten(9).as_deref(), Some(sentence));
        assert_eq!(given_up_of_ten(7), None);
    }
}
