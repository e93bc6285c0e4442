//! The topics of a log by their names.

use std::fmt;

/// The record sequences of a partition; each has its own offsets.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Topic {
    Events,
    Changes,
    Kicks,
    /// Malformed records of `Events`, stored unchanged.
    Quarantine,
}

impl Topic {
    pub const ALL: [Topic; 4] = [Topic::Events, Topic::Changes, Topic::Kicks, Topic::Quarantine];

    pub fn name(self) -> &'static str {
        match self {
            Topic::Events => "events",
            Topic::Changes => "changes",
            Topic::Kicks => "kicks",
            Topic::Quarantine => "quarantine",
        }
    }
}

/// The topics that outputs are written to. Those that every log has have the same names as in [`Topic`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum OutputTopic {
    Changes,
    Kicks,
    Quarantine,
    /// The newest state of each user, in a log that keeps it ([`OwnedPartition::keeps_current`](crate::log::OwnedPartition::keeps_current)).
    Current,
}

impl OutputTopic {
    /// All of them, each at its own number.
    pub const ALL: [OutputTopic; 4] = [
        OutputTopic::Changes,
        OutputTopic::Kicks,
        OutputTopic::Quarantine,
        OutputTopic::Current,
    ];

    /// Returns the topic that every log has and reads. `None`: only some logs have it, for their owners.
    pub fn topic(self) -> Option<Topic> {
        match self {
            OutputTopic::Changes => Some(Topic::Changes),
            OutputTopic::Kicks => Some(Topic::Kicks),
            OutputTopic::Quarantine => Some(Topic::Quarantine),
            OutputTopic::Current => None,
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            OutputTopic::Changes => Topic::Changes.name(),
            OutputTopic::Kicks => Topic::Kicks.name(),
            OutputTopic::Quarantine => Topic::Quarantine.name(),
            OutputTopic::Current => "current",
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl fmt::Display for OutputTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
