//! What one atomic step adds to a partition.

use super::{Headers, NewRecord, Position};
use crate::topics::OutputTopic;

/// What one atomic step adds to a partition: records of output topics, and the position after them.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Commit {
    pub outputs: Outputs,
    pub position: Position,
}

impl Commit {
    /// Returns a commit of a position, with no outputs yet.
    pub fn at(position: Position) -> Commit {
        Commit {
            outputs: Outputs::default(),
            position,
        }
    }

    /// Adds records of a topic.
    pub fn with(mut self, topic: OutputTopic, records: impl IntoIterator<Item = NewRecord>) -> Commit {
        self.outputs.extend(topic, records.into_iter().map(OutputRecord::from));
        self
    }
}

/// Records of output topics, of each topic in their order. A topic without records costs nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Outputs([Vec<OutputRecord>; OutputTopic::ALL.len()]);

/// A record of an output topic. The log sets its offset and its time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OutputRecord {
    pub key: Option<Vec<u8>>,
    /// `None` only in a topic that keeps the newest record of each key: the key has no record any more.
    pub value: Option<Vec<u8>>,
    pub headers: Headers,
}

impl Outputs {
    pub fn push(&mut self, topic: OutputTopic, record: OutputRecord) {
        self.0[topic.number()].push(record);
    }

    pub fn extend(&mut self, topic: OutputTopic, records: impl IntoIterator<Item = OutputRecord>) {
        self.0[topic.number()].extend(records);
    }

    /// Returns the records of a topic.
    pub fn of(&self, topic: OutputTopic) -> &[OutputRecord] {
        &self.0[topic.number()]
    }

    /// Returns each topic that has records, with them, in the order of [`OutputTopic::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (OutputTopic, &[OutputRecord])> {
        let all = OutputTopic::ALL.into_iter().map(|topic| (topic, self.of(topic)));
        all.filter(|(_, records)| !records.is_empty())
    }

    pub fn is_empty(&self) -> bool {
        self.0.iter().all(Vec::is_empty)
    }
}

impl From<NewRecord> for OutputRecord {
    fn from(record: NewRecord) -> OutputRecord {
        let NewRecord { key, value, headers } = record;
        OutputRecord {
            key,
            value: Some(value),
            headers,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_by_their_topic_and_topics_come_in_their_order() {
        let record = |value: &str| OutputRecord {
            key: None,
            value: Some(value.as_bytes().to_vec()),
            headers: Vec::new(),
        };
        let mut outputs = Outputs::default();
        assert!(outputs.is_empty());
        for topic in OutputTopic::ALL.into_iter().rev() {
            assert_eq!(OutputTopic::ALL[topic.number()], topic);
            outputs.push(topic, record(topic.name()));
            outputs.push(topic, record("second"));
        }
        for (topic, (named, records)) in OutputTopic::ALL.into_iter().zip(outputs.iter()) {
            assert_eq!(topic, named);
            assert_eq!(records, [record(topic.name()), record("second")]);
            assert_eq!(records, outputs.of(topic));
        }
        assert_eq!(outputs.iter().count(), OutputTopic::ALL.len());
        let mut kicks = Outputs::default();
        kicks.extend(OutputTopic::Kicks, [record("k")]);
        let topics: Vec<OutputTopic> = kicks.iter().map(|(topic, _)| topic).collect();
        assert_eq!(topics, [OutputTopic::Kicks]);
    }
}
