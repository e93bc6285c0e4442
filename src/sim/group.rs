//! The group that assigns the partitions of a simulated world. It revokes partitions and gives them to other machines,
//! with or without waiting for an acknowledgement. Machines learn of this late, and each of them follows the engine's
//! own table of ownership.

use super::cast::{Cast, MACHINES};
use super::fault::Fault;
use crate::engine::ownership::{self, Command, Fact, Life};
use crate::presence::Partition;
use std::collections::VecDeque;

/// What the group knows about one partition.
#[derive(Default)]
pub struct Group {
    /// The machine that got the partition last, until it has released it or was given up.
    member: Option<usize>,
    /// The machine that gets the partition next.
    wanted: Option<usize>,
    /// The number of rounds that the group still waits for the member.
    patience: u64,
    last: usize,
}

/// The membership of one machine in one partition.
#[derive(Default)]
pub struct Membership {
    life: Life,
    /// Facts that the machine has not received yet.
    facts: VecDeque<Fact>,
    /// Whether there is a worker.
    pub works: bool,
    /// The command that the worker has received and not executed yet.
    pub pending: Option<Command>,
    /// The number of rounds until a pause ends.
    pause: u64,
}

impl Group {
    fn assign(&mut self, parts: &mut [Membership], machine: usize) {
        self.member = Some(machine);
        self.wanted = None;
        self.last = machine;
        parts[machine].facts.push_back(Fact::Assigned);
    }

    /// The member has not released the partition in time: the others stop waiting for it.
    fn give_up(&mut self, parts: &mut [Membership]) {
        if let Some(member) = self.member.take() {
            parts[member].facts.push_back(Fact::Lost);
        }
    }
}

impl Membership {
    pub fn is_live(&self) -> bool {
        self.life == Life::Live && self.facts.is_empty() && self.pending.is_none()
    }

    pub fn is_absent(&self) -> bool {
        self.life == Life::Absent && self.facts.is_empty()
    }

    /// The process has died, and its state is lost.
    pub fn dies(&mut self) {
        *self = Membership::default();
    }
}

impl Cast {
    /// Performs one round of what the group does about a partition without a cause from outside.
    pub fn group_round(&self, partition: Partition) {
        let is_asked_back = self.strikes(Fault::Rebalance, 20);
        let moves = self.strikes(Fault::Move, 200);
        let [other, patience] = [self.below(MACHINES as u64 - 1), self.below(8)];
        let is_given_up = {
            let mut nodes = self.nodes(partition);
            let (group, parts) = nodes.group();
            let next = match moves {
                true => (group.last + 1 + other as usize) % MACHINES,
                false => group.last,
            };
            match (group.member, group.wanted) {
                (None, wanted) => {
                    group.assign(parts, wanted.unwrap_or(next));
                    false
                }
                (Some(_), Some(_)) if group.patience > 0 => {
                    group.patience -= 1;
                    false
                }
                (Some(_), Some(wanted)) => {
                    group.give_up(parts);
                    group.assign(parts, wanted);
                    true
                }
                (Some(member), None) => {
                    // A member that sends nothing and has nothing left to receive has died.
                    if parts[member].is_absent() {
                        group.member = None;
                    } else if is_asked_back {
                        group.wanted = Some(next);
                        group.patience = patience;
                        parts[member].facts.push_back(Fact::Revoked);
                    }
                    false
                }
            }
        };
        if is_given_up {
            self.strikes(Fault::GivenUp, 1_000);
        }
    }

    /// The group gives a partition to another machine than its present member, without waiting. Returns the new
    /// machine, which has received the fact. A machine that is in the middle of a step is not chosen.
    pub fn move_on(&self, partition: Partition, stepping: Option<usize>) -> usize {
        let others = self.below(2) as usize;
        let machine = {
            let mut nodes = self.nodes(partition);
            let (group, parts) = nodes.group();
            let fit = |machine: &usize| *machine != group.last && Some(*machine) != stepping;
            let mut fit = (0..MACHINES).filter(fit).cycle().skip(others);
            let machine = fit.next().unwrap_or(group.last);
            group.give_up(parts);
            group.assign(parts, machine);
            machine
        };
        while self.hear(partition, machine) {}
        machine
    }

    /// The group revokes a partition and assigns it to some machine, perhaps the same one, before the member has
    /// answered.
    pub fn shake(&self, partition: Partition) {
        let machine = self.below(MACHINES as u64) as usize;
        let mut nodes = self.nodes(partition);
        let (group, parts) = nodes.group();
        if let Some(member) = group.member {
            parts[member].facts.push_back(Fact::Revoked);
            if member != machine {
                group.give_up(parts);
            }
        }
        group.assign(parts, machine);
    }

    /// A machine receives the next of its facts. Returns whether there was one.
    pub fn hear(&self, partition: Partition, machine: usize) -> bool {
        let fact = self.nodes(partition).part(machine).facts.pop_front();
        if let Some(fact) = fact {
            self.learn(partition, machine, fact);
        }
        fact.is_some()
    }

    /// One round of a pause has passed.
    pub fn rest(&self, partition: Partition, machine: usize) {
        let is_over = {
            let mut nodes = self.nodes(partition);
            let part = nodes.part(machine);
            part.pause = part.pause.saturating_sub(1);
            part.life == Life::Paused && part.pause == 0
        };
        if is_over {
            self.learn(partition, machine, Fact::PauseOver);
        }
    }

    /// Executes the commands that the table of ownership gives for a fact.
    pub fn learn(&self, partition: Partition, machine: usize, fact: Fact) {
        let rounds = 1 + self.below(5);
        let wrong = {
            let mut nodes = self.nodes(partition);
            let (group, parts) = nodes.group();
            let part = &mut parts[machine];
            if fact == Fact::Ended {
                part.works = false;
                part.pending = None;
            }
            let (then, commands) = ownership::next(part.life, fact);
            let mut wrong = None;
            for command in commands {
                match command {
                    Command::Start if part.works => wrong = Some("there is a worker already"),
                    Command::Start => part.works = true,
                    Command::Release | Command::Drop => part.pending = Some(command),
                    Command::Acknowledge if part.works => wrong = Some("it was released while a worker has it"),
                    Command::Acknowledge => {
                        if group.member == Some(machine) && group.wanted.is_some() {
                            group.member = None;
                        }
                    }
                    Command::Pause => part.pause = rounds,
                }
            }
            part.life = then;
            if part.works == matches!(then, Life::Absent | Life::Paused) {
                wrong = Some("there is a worker where none is wanted, or none where one is");
            }
            wrong.map(|wrong| format!("partition {partition} on machine {machine}, {fact:?} to {then:?}: {wrong}"))
        };
        if let Some(wrong) = wrong {
            self.wrong(wrong);
        }
    }
}
