//! Everything that a simulated world does to the engine, by name, so that it can be counted and left out.

use std::fmt;
use std::str::FromStr;

macro_rules! faults {
    ($($fault:ident $name:literal $what:literal)*) => {
        /// What can go wrong.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Fault {
            $(#[doc = $what] $fault,)*
        }

        impl Fault {
            pub const ALL: &[Fault] = &[$(Fault::$fault,)*];

            pub fn name(self) -> &'static str {
                match self {
                    $(Fault::$fault => $name,)*
                }
            }
        }
    };
}

faults! {
    CommitLost "commit-lost" "A commit fails, and nothing of it is in the log."
    CommitKept "commit-kept" "A commit fails, though all of it is in the log."
    CommitLate "commit-late" "A commit fails, and arrives later or never."
    CommitTorn "commit-torn" "A commit is aborted, or its owner dies, when some of its records are written."
    CommitHalf "commit-half" "A commit fails, and the end of an earlier one, which comes once more, has committed a part of it."
    PositionOld "position-old" "The log gives an old position back, and keeps it."
    PositionGone "position-gone" "The log has lost the position; an operator starts again with --adopt-tail."
    CallFails "call-fails" "A read, a position, a range, a sync or a retention fails."
    Outage "outage" "The log is not there for a while."
    LeaderChange "leader-change" "A partition is led by nobody for a while, then by another."
    Unreplicated "unreplicated" "The replicas do not follow: what is published cannot be read, and may be lost."
    Transaction "transaction" "Records are published in a transaction, which stays open for a while."
    Abort "abort" "A publisher's transaction is aborted: its records are never read."
    Slow "slow" "A call takes seconds."
    Crash "crash" "The process dies at a call of log or store, before or after its effect."
    Restart "restart" "The worker ends in good order, though nobody asked for the partition."
    Pause "pause" "The process stands still within a call, while another takes the partition over; then it wakes."
    Rebalance "rebalance" "The group asks for a partition back, and gives it to the same machine or to another."
    GivenUp "given-up" "The group waits no longer for a machine's answer."
    TwoOwners "two-owners" "Another takes the partition over, while this one believes to own it."
    Storm "storm" "Owners follow one another at once, on the same machine and on others, in good order and not."
    Move "move" "The group gives the partition to another machine, which has another store."
    StoreOld "store-old" "The store is a copy made some time before."
    StoreLost "store-lost" "The store is gone."
    StoreHalf "store-half" "The store is a copy, old or new, of which a part is missing."
    StoreForeign "store-foreign" "The store is that of another partition."
    StoreDamaged "store-damaged" "The store's position cannot be read."
    WriteLost "write-lost" "What was not flushed is lost with the process."
    StoreFails "store-fails" "A call of the store fails."
    Retention "retention" "The front of the log is cut."
    Tick "tick" "A tick by nobody's deadline: early, late, twice."
    TickDue "tick-due" "A tick at the owner's next deadline or a millisecond beside it."
    Poison "poison" "A record that is no event."
    WrongKey "wrong-key" "A record whose key is not its user."
    Burst "burst" "A hundred devices of one gateway, lost at once."
    GatewayLost "gateway-lost" "Thousands of devices of one gateway, lost at once."
    WeekDue "week-due" "A week's deadlines of thousands of devices, due at one record."
    EarlyEnds "early-ends" "About as many connections end before their connect as are remembered."
    Revision "revision" "A record raises the partition to a revision that some of its machines do not know."
    Version "version" "A machine's next process is of the other version, which knows one revision more or less."
    AllAlive "all-alive" "A gateway names the connections of all its devices in one record."
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(name: &str) -> Result<Fault, String> {
        let found = Fault::ALL.iter().find(|fault| fault.name() == name);
        found.copied().ok_or_else(|| {
            let names: Vec<_> = Fault::ALL.iter().map(|fault| fault.name()).collect();
            format!("there is no fault {name:?}; there are {}", names.join(", "))
        })
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How often each fault was met.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Counts([u64; Fault::ALL.len()]);

impl Default for Counts {
    fn default() -> Counts {
        Counts([0; Fault::ALL.len()])
    }
}

impl Counts {
    pub fn note(&mut self, fault: Fault) {
        self.0[fault as usize] += 1;
    }

    pub fn of(&self, fault: Fault) -> u64 {
        self.0[fault as usize]
    }

    pub fn add(&mut self, other: &Counts) {
        for (sum, count) in self.0.iter_mut().zip(other.0) {
            *sum += count;
        }
    }
}
