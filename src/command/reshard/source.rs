//! The log that events are copied from: of a data directory, or on Kafka.

use super::super::connect::TopicSet;
use super::super::directories::lock_data;
use super::super::log_directory;
use crate::clock::SystemClock;
use crate::log::Reader;
use crate::log::local::{LocalLog, LocalReader};
use crate::presence::event::Event;
use crate::presence::{Offset, Partition};
use crate::schema::avro;
use crate::topics::Topic;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// See the module.
pub trait OldLog {
    fn reader(&mut self) -> &mut dyn Reader;

    /// Returns where the events end that are in the log for sure: a machine that dies may lose those that it is just writing.
    fn end(&mut self, partition: Partition) -> anyhow::Result<Offset>;

    /// Keeps everybody from writing to the log, also after this process has died. `to` describes the new log. Returns why this is
    /// not possible yet, if somebody has to act first.
    fn leave(&mut self, to: &str) -> anyhow::Result<Option<String>>;

    /// Returns whether an earlier process has left the log.
    fn is_left(&self) -> anyhow::Result<bool>;

    /// Returns why events at the end cannot be read yet, if there are any. Only for a log that was left.
    fn held(&mut self) -> anyhow::Result<Option<String>>;
}

/// The log of a data directory.
pub struct OldDirectory {
    data: PathBuf,
    directory: PathBuf,
    reader: LocalReader,
    /// Keep engines from it.
    left: Option<(File, LocalLog)>,
}

impl OldDirectory {
    /// Opens the log in a data directory to read it. A server may be using it.
    pub fn open(data: &Path) -> anyhow::Result<OldDirectory> {
        let directory = log_directory(data);
        Ok(OldDirectory {
            reader: LocalLog::follow(&directory)?,
            data: data.to_owned(),
            directory,
            left: None,
        })
    }
}

impl OldLog for OldDirectory {
    fn reader(&mut self) -> &mut dyn Reader {
        &mut self.reader
    }

    fn end(&mut self, partition: Partition) -> anyhow::Result<Offset> {
        let end = self.reader.range(Topic::Events, partition)?.end;
        if self.left.is_some() {
            return Ok(end);
        }
        let durable = LocalLog::durable_events(&self.directory)?;
        let durable = durable.and_then(|ends| ends.get(partition.0 as usize).copied());
        Ok(durable.map_or(end, |durable| durable.min(end)))
    }

    fn leave(&mut self, to: &str) -> anyhow::Result<Option<String>> {
        let Some(lock) = lock_data(&self.data)? else {
            let data = self.data.display();
            return Ok(Some(format!(
                "stop the server of {data} now; everything that it has is copied until then"
            )));
        };
        let log = LocalLog::leave(&self.directory, to, Arc::new(SystemClock::new()))?;
        self.left = Some((lock, log));
        Ok(None)
    }

    fn is_left(&self) -> anyhow::Result<bool> {
        Ok(LocalLog::moved_to(&self.directory)?.is_some())
    }

    fn held(&mut self) -> anyhow::Result<Option<String>> {
        Ok(None)
    }
}

/// The topics with one prefix.
pub struct OldTopics {
    topics: TopicSet,
    reader: Box<dyn Reader>,
}

impl OldTopics {
    /// Opens the topics to read them. Engines and publishers may be using them.
    pub fn open(topics: TopicSet) -> anyhow::Result<OldTopics> {
        Ok(OldTopics {
            reader: topics.reader()?,
            topics,
        })
    }
}

impl OldLog for OldTopics {
    fn reader(&mut self) -> &mut dyn Reader {
        &mut *self.reader
    }

    fn end(&mut self, partition: Partition) -> anyhow::Result<Offset> {
        Ok(self.reader.range(Topic::Events, partition)?.end)
    }

    fn leave(&mut self, _: &str) -> anyhow::Result<Option<String>> {
        let mut tick = Vec::new();
        avro::encode_event(&Event::Tick, &mut tick);
        self.topics.close_events(&tick)?;
        Ok(None)
    }

    fn is_left(&self) -> anyhow::Result<bool> {
        self.topics.is_closed()
    }

    fn held(&mut self) -> anyhow::Result<Option<String>> {
        let held = self.topics.held_partition(self.reader.partitions())?;
        Ok(held.map(|(partition, count)| {
            format!(
                "a publisher's open transaction holds back {count} events of partition {partition}; the brokers abort it after its \
                 transaction.timeout.ms (docs/kafka.md, open transactions)"
            )
        }))
    }
}
