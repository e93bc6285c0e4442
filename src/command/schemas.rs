//! With which schemas a command reads a log, and that it has the registry that the log needs.

use crate::clock::{Deadline, SystemClock};
use crate::config::SecretUrl;
use crate::log::{self, Limit, Reader, Record};
use crate::presence::{Offset, Partition};
use crate::registry::{self, Registry, Schemas};
use crate::topics::Topic;
use anyhow::{Context as _, bail};
use std::thread;
use std::time::Duration;
use tokio::runtime::Runtime;

/// The most that one read returns.
const LIMIT: Limit = Limit {
    records: 1_000,
    bytes: 4 << 20,
};
/// How long a reader may return nothing although the log has more.
const READ_PATIENCE: Duration = Duration::from_secs(10);
const READ_PAUSE: Duration = Duration::from_millis(20);
/// What engines write in every log, most frequent first.
const OUTPUTS: [Topic; 3] = [Topic::Changes, Topic::Quarantine, Topic::Kicks];

/// Returns the schemas to read with, and the runtime for requests to the registry. Keep the runtime as long as the schemas.
///
/// Without a registry a record that is framed for one counts as malformed. Conclusions from events need [`schemas_of`].
pub fn schemas(registry: Option<&SecretUrl>) -> anyhow::Result<(Schemas, Option<Runtime>)> {
    let Some(url) = registry else {
        return Ok((Schemas::default(), None));
    };
    let builder = &mut tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build();
    let runtime = runtime.context("cannot start the async runtime for the registry")?;
    let registry = Registry::new(url.reveal().as_str(), runtime.handle().clone())?;
    Ok((Schemas::to_read(registry), Some(runtime)))
}

/// As [`schemas`], for the events of a log. Fails without `registry` if its engines have one: every event would
/// be taken for malformed, and what is concluded from that would look like an answer.
///
/// Engines with a registry write all their outputs for it. One output is read, of those that were written last in the first partition
/// that has any.
pub fn schemas_of(reader: &mut dyn Reader, registry: Option<&SecretUrl>) -> anyhow::Result<(Schemas, Option<Runtime>)> {
    if registry.is_none()
        && let Some((topic, partition, record)) = newest_output(reader)?
        && let Some(named) = registry::named_by(record.framed())
    {
        bail!(
            "the engines of this log use a schema registry ({} of partition {partition} at offset {} was written for it, with the schema's {named}), \
             and without it no event can be read; give the same one with --registry URL",
            topic.name(),
            record.offset
        );
    }
    schemas(registry)
}

/// Returns one of the newest outputs, if there are any.
fn newest_output(reader: &mut dyn Reader) -> anyhow::Result<Option<(Topic, Partition, Record)>> {
    for topic in OUTPUTS {
        for partition in (0..reader.partitions()).map(Partition) {
            if let Some(record) = newest(reader, topic, partition)? {
                return Ok(Some((topic, partition, record)));
            }
        }
    }
    Ok(None)
}

fn newest(reader: &mut dyn Reader, topic: Topic, partition: Partition) -> anyhow::Result<Option<Record>> {
    let range = reader.range(topic, partition)?;
    // The last offsets may be no records: on Kafka transactions leave marks.
    let near = range.end.0.saturating_sub(LIMIT.records as u64);
    for from in [range.start.max(Offset(near)), range.start] {
        let mut next = from;
        let found = next_records(reader, (topic, partition), &mut next, range.end)?;
        if let Some(last) = found.into_iter().next_back() {
            return Ok(Some(last));
        }
    }
    Ok(None)
}

/// Reads the next records before `end` and moves `next` behind them. Returns nothing at the end.
pub fn next_records(
    reader: &mut dyn Reader,
    (topic, partition): (Topic, Partition),
    next: &mut Offset,
    end: Offset,
) -> anyhow::Result<Vec<Record>> {
    let mut records = Vec::new();
    let clock = SystemClock::new();
    let deadline = Deadline::after(&clock, READ_PATIENCE);
    while *next < end {
        reader.read(topic, partition, *next, LIMIT, &mut records)?;
        if let Some(last) = records.last() {
            *next = Offset(last.offset.0 + 1);
            break;
        }
        if reader.reached(topic, partition)? >= end {
            *next = end;
            break;
        }
        // A log on other machines may only be slow.
        if deadline.has_passed(&clock) {
            let text = format!(
                "partition {partition} of {} has records up to offset {end}, but none from {next} on was returned within \
                 {} s; try again",
                topic.name(),
                READ_PATIENCE.as_secs()
            );
            return Err(log::Error::Unanswered(text.into()).into());
        }
        thread::sleep(READ_PAUSE);
    }
    Ok(records)
}
