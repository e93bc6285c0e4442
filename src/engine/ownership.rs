//! A partition's life on this node, as a pure table: what happened, and what must be done about it.
//!
//! A group distributes partitions among nodes: it assigns them and takes them back. A worker processes one partition.
//! It is started only when no other worker of this node has the partition. The group gets its answer only after the
//! worker has ended, with everything it was doing committed or dropped. This table does not decide whether outputs may
//! be sent: the log does, by fencing off the previous owner of the partition.

/// The state of a partition on this node.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum Life {
    /// Not ours, and without a worker.
    #[default]
    Absent,
    /// Ours; the worker folds what the log has.
    Restoring,
    /// Ours; the worker is at the end of the log and gives outputs.
    Live,
    /// Assigned to us, but the worker has ended: the log has let in another owner, or the worker failed. Started again
    /// after a pause, unless the group takes the partition back first.
    Paused,
    /// The worker was asked to end and has not ended yet.
    Leaving {
        /// The group waits for our acknowledgement.
        awaited: bool,
        /// The partition was assigned to us again in the meantime.
        again: bool,
    },
}

/// What happened.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Fact {
    /// The group has assigned the partition to us.
    Assigned,
    /// The group wants the partition back, and waits until we acknowledge that we have released it.
    Revoked,
    /// The group has given the partition to another node without waiting for us.
    Lost,
    /// The worker is at the end of the log.
    CaughtUp,
    /// The worker has ended, whether it was asked to or not.
    Ended,
    /// The pause is over.
    PauseOver,
}

/// What must be done.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Command {
    /// Start a worker.
    Start,
    /// Ask the worker to commit what it has, and to end.
    Release,
    /// Ask the worker to end without committing anything.
    Drop,
    /// Acknowledge to the group that we have released the partition.
    Acknowledge,
    /// Report `PauseOver` after a pause.
    Pause,
}

/// Returns the next state of a partition, and what must be done.
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
        // The worker may have been asked to commit before. The log fences it off, so that a commit it still makes
        // fails.
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

    /// Checks a list of facts, each with the commands that must result from it.
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

    /// Tries every sequence of facts up to a length, including facts that should not come.
    #[test]
    fn whatever_happens_there_is_one_worker_at_most_and_the_group_gets_its_answer() {
        fn walk(life: Life, worker: bool, ordered_to_end: bool, asked: bool, depth: u32) {
            if depth == 0 {
                return;
            }
            for fact in FACTS {
                // Only an existing worker can end or catch up.
                if !worker && matches!(fact, Fact::Ended | Fact::CaughtUp) {
                    continue;
                }
                let (then, commands) = next(life, fact);
                let mut worker = worker && fact != Fact::Ended;
                let mut ordered_to_end = ordered_to_end && worker;
                let mut asked = asked || matches!(fact, Fact::Revoked | Fact::Lost);
                for command in commands {
                    match command {
                        Command::Start => {
                            assert!(!worker, "two workers: {life:?} {fact:?}");
                            worker = true;
                        }
                        Command::Release | Command::Drop => {
                            assert!(worker, "nobody to tell: {life:?} {fact:?}");
                            ordered_to_end = true;
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
                assert_eq!(
                    ordered_to_end,
                    matches!(then, Life::Leaving { .. }),
                    "{life:?} {fact:?}"
                );
                // A group that waits for our answer waits only for a worker to end.
                assert!(!asked || ordered_to_end, "the group waits for ever: {life:?} {fact:?}");
                walk(then, worker, ordered_to_end, asked, depth - 1);
            }
        }
        walk(Life::default(), false, false, false, 7);
    }
}
