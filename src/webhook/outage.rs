//! What failed attempts show of the receiver: since when it accepts nothing, how many callbacks failed, and when to say so.
//!
//! A callback that failed waits for up to half a minute. If the receiver accepted nothing meanwhile, the callback itself is
//! probably not the cause, and waiting on after the receiver is back would be of no use: then it is posted again at once.

use super::refusals::Attempt;
use std::collections::BTreeMap;
use std::time::Duration;

/// A receiver that accepted nothing for so long has an outage. Pauses are not longer than that before.
const OUTAGE: Duration = Duration::from_secs(1);
/// How often it is said that callbacks are not accepted.
const SAY_EVERY: Duration = Duration::from_secs(60);

#[derive(Default)]
pub struct Outage {
    /// The callbacks of which the last attempt failed, by the number of their first attempt.
    failing: BTreeMap<u64, FailingCallback>,
    /// There if an attempt failed and none that began later was accepted.
    silence: Option<Silence>,
    /// When the next warning is due, in monotonic time.
    next: Option<Duration>,
    /// Why the last attempt failed.
    why: String,
}

/// A callback of which an attempt failed.
#[derive(Clone, Debug)]
pub struct FailingCallback {
    /// The number of its first attempt.
    pub first: u64,
    /// When that began, in monotonic time.
    pub since: Duration,
    pub user: Box<str>,
}

struct Silence {
    since: Duration,
    /// The number of the last attempt that had begun then.
    begun: u64,
    is_said: bool,
}

/// What is said while callbacks are not accepted.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    /// How many callbacks failed and are retried.
    pub failing: usize,
    /// The age of the oldest of them, and its user.
    pub oldest: Duration,
    pub user: Box<str>,
    /// For how long nothing was accepted; `None` if something was accepted after the last failure.
    pub silence: Option<Duration>,
    pub why: String,
}

impl Outage {
    /// Records that an attempt failed. `begun` is the number of the last attempt that has begun. Returns what to say now.
    pub fn failed(&mut self, callback: FailingCallback, begun: u64, why: &str, now: Duration) -> Option<Warning> {
        why.clone_into(&mut self.why);
        self.failing.insert(callback.first, callback);
        self.silence.get_or_insert(Silence {
            since: now,
            begun,
            is_said: false,
        });
        self.due(now)
    }

    /// Records that a callback is no longer retried: it was accepted, given up or left.
    pub fn ended(&mut self, first: u64) {
        self.failing.remove(&first);
    }

    /// Records that an attempt was accepted. Returns how long the outage was that ends with it, if there was one.
    pub fn accepted(&mut self, attempt: Attempt, now: Duration) -> Option<Duration> {
        // One that had begun before the first failure does not show that the receiver is back.
        let silence = self.silence.take_if(|silence| attempt.number > silence.begun)?;
        let lasted = now.saturating_sub(silence.since);
        if lasted < OUTAGE {
            return None;
        }
        // Those that still fail are posted again at once, and need not be said. The next outage is said when it is one.
        self.next = Some(now + SAY_EVERY);
        Some(lasted)
    }

    /// Returns what to say now, if callbacks fail and it was not said for a while.
    pub fn due(&mut self, now: Duration) -> Option<Warning> {
        let (_, oldest) = self.failing.first_key_value()?;
        let is_new = |silence: &Silence| !silence.is_said && now.saturating_sub(silence.since) >= OUTAGE;
        let is_due = self.next.is_none_or(|next| now >= next) || self.silence.as_ref().is_some_and(is_new);
        if !is_due {
            return None;
        }
        self.next = Some(now + SAY_EVERY);
        if let Some(silence) = &mut self.silence {
            silence.is_said = true;
        }
        Some(Warning {
            failing: self.failing.len(),
            oldest: now.saturating_sub(oldest.since),
            user: oldest.user.clone(),
            silence: self.silence.as_ref().map(|silence| now.saturating_sub(silence.since)),
            why: self.why.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn callback(first: u64, since: Duration) -> FailingCallback {
        let user = format!("user-{first}").into();
        FailingCallback { first, since, user }
    }

    fn attempt(number: u64) -> Attempt {
        Attempt {
            number,
            accepted_before: 0,
        }
    }

    #[test]
    fn an_outage_is_said_at_once_and_every_minute_with_its_length_at_the_end() {
        let mut outage = Outage::default();
        let first = outage.failed(callback(1, s(10)), 1, "503", s(10)).expect("it is said");
        assert_eq!((first.failing, first.oldest, &*first.user), (1, s(0), "user-1"));
        assert_eq!(outage.failed(callback(2, s(11)), 2, "no response in time", s(12)), None);
        assert_eq!(outage.due(s(69)), None);
        let again = Warning {
            failing: 2,
            oldest: s(60),
            user: "user-1".into(),
            silence: Some(s(60)),
            why: "no response in time".to_owned(),
        };
        assert_eq!(outage.due(s(70)), Some(again));
        assert_eq!(outage.due(s(71)), None);
        assert!(outage.due(s(130)).is_some());
        // It had begun before the outage.
        assert_eq!(outage.accepted(attempt(1), s(131)), None);
        assert_eq!(outage.accepted(attempt(3), s(140)), Some(s(130)));
        assert_eq!(outage.accepted(attempt(4), s(140)), None);
        assert_eq!(outage.due(s(140)), None);
        outage.ended(1);
        outage.ended(2);
        assert_eq!(outage.due(s(300)), None);
        // The next one is said when it is clear that it is one, although the last one was a moment ago.
        assert_eq!(outage.failed(callback(5, s(141)), 5, "503", s(141)), None);
        assert_eq!(outage.due(s(142)).and_then(|said| said.silence), Some(s(1)));
    }

    #[test]
    fn one_callback_that_fails_while_others_are_accepted_is_no_outage_and_is_said_every_minute() {
        let mut outage = Outage::default();
        let mut said = Vec::new();
        for second in 0..180 {
            let warning = outage.failed(callback(1, s(0)), 2 * second + 1, "500", s(second));
            said.extend(warning.map(|warning| (second, warning.oldest)));
            let late = s(second) + Duration::from_millis(500);
            assert_eq!(outage.accepted(attempt(2 * second + 2), late), None);
            assert_eq!(outage.due(late), None);
        }
        assert_eq!(said, [(0, s(0)), (60, s(60)), (120, s(120))]);
        // An outage that begins then is said when it is clear that it is one.
        assert_eq!(
            outage
                .failed(callback(1, s(0)), 999, "503", s(180))
                .map(|said| said.oldest),
            Some(s(180))
        );
        assert_eq!(outage.accepted(attempt(1_000), s(180)), None);
        assert_eq!(outage.failed(callback(1, s(0)), 1_001, "503", s(181)), None);
        assert_eq!(outage.due(s(182)).and_then(|said| said.silence), Some(s(1)));
    }
}
