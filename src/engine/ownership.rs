//! A partition's life on this node, as a pure table: what happened, and what is to be done about it.
//!
//! Partitions are shared out among nodes by a group, which gives them and asks for them back. A worker does the work of
//! a partition; it is started only when no other of this node is at the same partition, and the group gets its answer
//! only after the worker has ended, with everything it was doing committed or dropped. Whether outputs may go out is not
//! decided here but at the log, which fences off the previous owner of the partition.

/// Where a partition is in its life on this node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Life {
    /// Not ours, and nobody works on it.
    #[default]
    Absent,
    /// Ours; the worker folds what the log has.
    Restoring,
    /// Ours; the worker is at the end of the log and gives outputs.
    Live,
    /// Ours as far as the group has said, but the worker has ended: another owner was let in at the log, or it failed.
    /// Taken up again after a pause, unless the group takes it back before.
    Paused,
    /// The worker was told to end and has not yet.
    Leaving {
        /// The group waits for our word.
        awaited: bool,
        /// Given to us again meanwhile.
        again: bool,
    },
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fact {
    /// The group gave us the partition.
    Assigned,
    /// The group wants it back, and waits until we say that we have let go.
    Revoked,
    /// The group has given it to somebody else without waiting for us.
    Lost,
    /// The worker is at the end of the log.
    CaughtUp,
    /// The worker has ended, told to or not.
    Ended,
    /// The pause is over.
    PauseOver,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Command {
    /// Start a worker.
    Start,
    /// Tell the worker to commit what it has, and to end.
    Release,
    /// Tell the worker to end without committing anything.
    Drop,
    /// Tell the group that we have let go.
    Acknowledge,
    /// Say `PauseOver` in a while.
    Pause,
}

/// The table.
pub fn next(life: Life, fact: Fact) -> (Life, Vec<Command>) {
    use Command::{Acknowledge, Drop, Pause, Release, Start};
    let leaving = Life::Leaving {
        awaited: true,
        again: false,
    };
    match (life, fact) {
        (Life::Absent, Fact::Assigned) => (Life::Restoring, vec![Start]),
        (Life::Absent, Fact::Revoked | Fact::Lost) => (Life::Absent, vec![Acknowledge]),
        (Life::Absent, Fact::CaughtUp | Fact::Ended | Fact::PauseOver) => (Life::Absent, vec![]),

        (Life::Restoring | Life::Live, Fact::Revoked) => (leaving, vec![Release]),
        (Life::Restoring | Life::Live, Fact::Lost) => (leaving, vec![Drop]),
        (Life::Restoring | Life::Live, Fact::CaughtUp) => (Life::Live, vec![]),
        (Life::Restoring | Life::Live, Fact::Ended) => (Life::Paused, vec![Pause]),
        (Life::Restoring | Life::Live, Fact::Assigned | Fact::PauseOver) => (life, vec![]),

        (Life::Paused, Fact::Assigned | Fact::PauseOver) => (Life::Restoring, vec![Start]),
        (Life::Paused, Fact::Revoked | Fact::Lost) => (Life::Absent, vec![Acknowledge]),
        (Life::Paused, Fact::CaughtUp | Fact::Ended) => (Life::Paused, vec![]),

        (Life::Leaving { awaited, .. }, Fact::Assigned) => (Life::Leaving { awaited, again: true }, vec![]),
        (Life::Leaving { .. }, Fact::Revoked) => (leaving, vec![]),
        // Told to commit before, perhaps: it is fenced off at the log, so that whatever it does then comes to nothing.
        (Life::Leaving { .. }, Fact::Lost) => (leaving, vec![Drop]),
        (Life::Leaving { awaited, again }, Fact::Ended) => {
            let mut commands = Vec::new();
            commands.extend(awaited.then_some(Acknowledge));
            commands.extend(again.then_some(Start));
            (if again { Life::Restoring } else { Life::Absent }, commands)
        }
        (Life::Leaving { .. }, Fact::CaughtUp | Fact::PauseOver) => (life, vec![]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: [Fact; 6] = [
        Fact::Assigned,
        Fact::Revoked,
        Fact::Lost,
        Fact::CaughtUp,
        Fact::Ended,
        Fact::PauseOver,
    ];

    /// A life, told as a story: each fact with what is done about it.
    #[track_caller]
    fn check(story: &[(Fact, &[Command])], end: Life) {
        let mut life = Life::default();
        for (number, (fact, expected)) in story.iter().enumerate() {
            let (then, commands) = next(life, *fact);
            assert_eq!(commands, *expected, "at {number}: {fact:?} while {life:?}");
            life = then;
        }
        assert_eq!(life, end);
    }

    #[test]
    fn a_partition_is_worked_on_until_it_is_asked_back() {
        check(
            &[
                (Fact::Assigned, &[Command::Start]),
                (Fact::CaughtUp, &[]),
                (Fact::Revoked, &[Command::Release]),
                (Fact::Ended, &[Command::Acknowledge]),
            ],
            Life::Absent,
        );
    }

    #[test]
    fn one_that_was_fenced_off_is_taken_up_again_only_if_it_stays_ours() {
        check(
            &[
                (Fact::Assigned, &[Command::Start]),
                (Fact::Ended, &[Command::Pause]),
                (Fact::Lost, &[Command::Acknowledge]),
                (Fact::PauseOver, &[]),
            ],
            Life::Absent,
        );
        check(
            &[
                (Fact::Assigned, &[Command::Start]),
                (Fact::Ended, &[Command::Pause]),
                (Fact::PauseOver, &[Command::Start]),
            ],
            Life::Restoring,
        );
    }

    #[test]
    fn given_again_while_leaving_it_is_started_after_the_worker_has_ended() {
        check(
            &[
                (Fact::Assigned, &[Command::Start]),
                (Fact::Revoked, &[Command::Release]),
                (Fact::Assigned, &[]),
                (Fact::Ended, &[Command::Acknowledge, Command::Start]),
            ],
            Life::Restoring,
        );
    }

    /// Every sequence of facts up to a length, also those that should not come.
    #[test]
    fn whatever_happens_there_is_one_worker_at_most_and_the_group_gets_its_answer() {
        fn walk(life: Life, worker: bool, told_to_end: bool, asked: bool, depth: u32) {
            if depth == 0 {
                return;
            }
            for fact in FACTS {
                // Only a worker that is there can end or catch up.
                if !worker && matches!(fact, Fact::Ended | Fact::CaughtUp) {
                    continue;
                }
                let (then, commands) = next(life, fact);
                let mut worker = worker && fact != Fact::Ended;
                let mut told_to_end = told_to_end && worker;
                let mut asked = asked || matches!(fact, Fact::Revoked | Fact::Lost);
                for command in commands {
                    match command {
                        Command::Start => {
                            assert!(!worker, "two workers: {life:?} {fact:?}");
                            worker = true;
                        }
                        Command::Release | Command::Drop => {
                            assert!(worker, "nobody to tell: {life:?} {fact:?}");
                            told_to_end = true;
                        }
                        Command::Acknowledge => {
                            assert!(asked, "nobody asked: {life:?} {fact:?}");
                            assert!(!worker, "released while a worker has it: {life:?} {fact:?}");
                            asked = false;
                        }
                        Command::Pause => assert!(!worker),
                    }
                }
                assert_eq!(
                    worker,
                    !matches!(then, Life::Absent | Life::Paused),
                    "{life:?} {fact:?}"
                );
                assert_eq!(told_to_end, matches!(then, Life::Leaving { .. }), "{life:?} {fact:?}");
                // A partition that waits for our answer waits for a worker to end, and for nothing else.
                assert!(!asked || told_to_end, "the group waits for ever: {life:?} {fact:?}");
                walk(then, worker, told_to_end, asked, depth - 1);
            }
        }
        walk(Life::default(), false, false, false, 7);
    }
}
