//! The position of a partition, read by somebody who is no member of the group.

use super::client::DefaultContext;
use super::source::Source;
use super::{KafkaReader, client};
use crate::log::{Error, Position, UnreadablePosition, locked};
use crate::presence::Partition;
use crate::topics::Topic;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rdkafka::TopicPartitionList;
use rdkafka::consumer::{BaseConsumer, Consumer};
use std::sync::Arc;
use std::time::Duration;

/// How long the group's coordinator is waited for.
const ANSWER: Duration = Duration::from_secs(10);

impl KafkaReader {
    pub(super) fn committed(&self, group: &str, partition: Partition) -> Result<Position, Error> {
        let what = what(group, partition);
        let mut wanted = TopicPartitionList::new();
        wanted.add_partition(&self.connection.topic(Topic::Events), partition.0 as i32);
        let source = self.source_of(group)?;
        let ask = move |consumer: &BaseConsumer<DefaultContext>| consumer.committed_offsets(wanted, ANSWER);
        let committed = source.ask("rd_kafka_committed", ANSWER, ask)?;
        let committed = committed.map_err(|error| client::unread(&what, &error))?;
        let elements = committed.elements();
        let Some(element) = elements.first() else {
            return Ok(Position::default());
        };
        element.error().map_err(|error| client::unread(&what, &error))?;
        if !matches!(element.offset(), rdkafka::Offset::Offset(_)) {
            return Ok(Position::default());
        }
        of_metadata(&what, element.metadata())
    }

    /// Returns the client that asks for the positions of a group. It is kept: a watch asks for a position four times a second.
    fn source_of(&self, group: &str) -> Result<Arc<Source>, Error> {
        let mut positions = locked(&self.positions);
        if let Some((of, source)) = &*positions
            && **of == *group
        {
            return Ok(source.clone());
        }
        let mut config = self.connection.client("rollcall-log");
        config.set("group.id", group);
        let source = Source::of_group(config, self.source.clock().clone())?;
        *positions = Some((group.into(), source.clone()));
        Ok(source)
    }
}

/// What is asked for, in words.
fn what(group: &str, partition: Partition) -> String {
    format!("the position of partition {partition} in the group {group:?}")
}

/// Reads a position from the metadata of a group's committed offset.
fn of_metadata(what: &str, metadata: &str) -> Result<Position, Error> {
    let bytes = BASE64.decode(metadata).unwrap_or_default();
    Position::from_bytes(&bytes).map_err(|unreadable| {
        let fix = match unreadable {
            UnreadablePosition::NotOne => "; expected the --group that the engines were started with",
            UnreadablePosition::Later { .. } => "",
        };
        Error::Read(format!("{what} {unreadable}{fix}").into())
    })
}
