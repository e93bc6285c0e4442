//! The topics of a log: which there are, and what a log has to know of each.
//!
//! The log has events, which it appends, and outputs, which are the engine's: what they mean is said there, and a log names none of
//! them (`a_log_names_no_output`, tests/tidy.rs). It has their numbers and the facts of [`TopicSpec`]. A new output is a row here, and what
//! has to think of it fails to compile. The embedded log counts its topics when it reads its files (`judge_files` in
//! `log/local/opening.rs`, and `log/local/ends.rs`): those of earlier versions would have one less, which both would have to know.
//!
//! A topic is an enum and not a number out of a list that a log would be given: how many there are is then known when arrays
//! are laid out, and a `match` over them is complete.

use std::fmt;

/// The record sequences of a partition; each has its own offsets. The number of each is in keys of the embedded log and in its file
/// of ends, and is never used for another one.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(u8)]
pub enum Topic {
    Events = 0,
    Changes = 1,
    Kicks = 2,
    /// Malformed records of `Events`, stored unchanged.
    Quarantine = 3,
}

/// The topics that outputs are written to, by the owner of a partition alone. Those that every log has have the same names as in
/// [`Topic`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum OutputTopic {
    Changes,
    Kicks,
    Quarantine,
    /// The newest state of each user, in a log that keeps it ([`OwnedPartition::keeps_newest`](crate::log::OwnedPartition::keeps_newest)).
    Current,
}

/// The topic in whose records incidents are found: the position of their finder is an offset in each of its partitions.
pub const INCIDENTS_FOUND_IN: Topic = Topic::Changes;

/// A quarantined record is a whole event's key and value, and at most so much more: framing, where and when it stood,
/// and the sentence that says what is wrong with it.
pub const QUARANTINE_FRAMING_BYTES: usize = 1_024;

/// What a log has to know of a topic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TopicSpec {
    pub name: &'static str,
    /// It has about as many records as there are events. The others have few.
    pub is_busy: bool,
    /// Every node reads the newest records of each partition, for its subscribers.
    pub is_followed: bool,
    /// Only the newest record of each key is kept, in a log that can do so. Another log does not have this topic.
    pub is_compacted: bool,
    /// A record has a whole event in it, as large as events may be, and at most so many bytes more. `None`: records have bounds of
    /// their own, which are far lower.
    pub bytes_beside_event: Option<usize>,
}

impl Topic {
    /// All of them, each at its number.
    pub const ALL: [Topic; 4] = [Topic::Events, Topic::Changes, Topic::Kicks, Topic::Quarantine];

    /// Returns the number of the topic.
    pub const fn number(self) -> u8 {
        self as u8
    }

    pub const fn spec(self) -> &'static TopicSpec {
        match self {
            Topic::Events => &TopicSpec {
                name: "events",
                is_busy: true,
                is_followed: false,
                is_compacted: false,
                bytes_beside_event: None,
            },
            Topic::Changes => OutputTopic::Changes.spec(),
            Topic::Kicks => OutputTopic::Kicks.spec(),
            Topic::Quarantine => OutputTopic::Quarantine.spec(),
        }
    }

    pub const fn name(self) -> &'static str {
        self.spec().name
    }
}

impl OutputTopic {
    /// All of them, each at its number.
    pub const ALL: [OutputTopic; 4] = [
        OutputTopic::Changes,
        OutputTopic::Kicks,
        OutputTopic::Quarantine,
        OutputTopic::Current,
    ];

    /// Returns the topic that every log has and reads. `None`: only some logs have it, for their owners.
    pub const fn topic(self) -> Option<Topic> {
        match self {
            OutputTopic::Changes => Some(Topic::Changes),
            OutputTopic::Kicks => Some(Topic::Kicks),
            OutputTopic::Quarantine => Some(Topic::Quarantine),
            OutputTopic::Current => None,
        }
    }

    /// Returns the number of the topic among the outputs of a commit.
    pub const fn number(self) -> usize {
        self as usize
    }

    pub const fn spec(self) -> &'static TopicSpec {
        match self {
            OutputTopic::Changes => &TopicSpec {
                name: "changes",
                is_busy: true,
                is_followed: true,
                is_compacted: false,
                bytes_beside_event: None,
            },
            OutputTopic::Kicks => &TopicSpec {
                name: "kicks",
                is_busy: false,
                is_followed: true,
                is_compacted: false,
                bytes_beside_event: None,
            },
            OutputTopic::Quarantine => &TopicSpec {
                name: "quarantine",
                is_busy: false,
                is_followed: false,
                is_compacted: false,
                bytes_beside_event: Some(QUARANTINE_FRAMING_BYTES),
            },
            OutputTopic::Current => &TopicSpec {
                name: "current",
                is_busy: true,
                is_followed: false,
                is_compacted: true,
                bytes_beside_event: None,
            },
        }
    }

    pub const fn name(self) -> &'static str {
        self.spec().name
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Column families, the names on Kafka, and keys of the embedded log begin with these.
    #[test]
    fn names_and_numbers_are_these_for_ever() {
        let topics = Topic::ALL.map(|topic| (topic.number(), topic.name()));
        assert_eq!(topics, [(0, "events"), (1, "changes"), (2, "kicks"), (3, "quarantine")]);
        let outputs = OutputTopic::ALL.map(|topic| (topic.number(), topic.name()));
        assert_eq!(
            outputs,
            [(0, "changes"), (1, "kicks"), (2, "quarantine"), (3, "current")]
        );
    }

    #[test]
    fn exactly_the_topics_that_every_log_has_are_not_compacted() {
        for output in OutputTopic::ALL {
            assert_eq!(output.topic().is_none(), output.spec().is_compacted, "{output}");
            assert_eq!(output.topic().map_or(output.name(), Topic::name), output.name());
        }
    }
}
