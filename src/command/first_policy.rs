//! Checks whether `--policy` names the policy that a log began with. If it does, a restart with the same command line is
//! accepted. Any other file is refused when the log has records, since it would have no effect.

use super::connect;
use crate::config::Config;
use crate::engine::rejected::decode;
use crate::log::{Limit, Log, Record};
use crate::presence::Partition;
use crate::presence::event::Event;
use crate::registry::Schemas;
use crate::schema::policy::policy_json;
use crate::topics::Topic;
use anyhow::Context as _;
use std::path::PathBuf;
use std::sync::Arc;

/// A file in the data directory with the first policy, as it was written to the log or found there.
const REMEMBERED: &str = "first-policy.json";
const ONE: Limit = Limit {
    records: 1,
    bytes: 1 << 20,
};

fn path(config: &Config) -> PathBuf {
    config.data.join(REMEMBERED)
}

/// Stores the policy of `--policy` as the one that the log began with, since retention may drop the first record.
pub(super) fn remember(config: &Config) -> anyhow::Result<()> {
    let path = path(config);
    std::fs::write(&path, policy_json(&config.policy)).with_context(|| format!("cannot write {}", path.display()))
}

/// Whether the log is known to have begun with the policy of `--policy`.
pub(super) fn is_first(config: &Config, log: &Arc<dyn Log>, schemas: &Schemas) -> anyhow::Result<bool> {
    let wanted = policy_json(&config.policy);
    if std::fs::read_to_string(path(config)).is_ok_and(|remembered| remembered == wanted) {
        return Ok(true);
    }
    let Some(record) = first_record(config, log)? else {
        return Ok(false);
    };
    let learned = schemas.learn([record.1.framed()])?;
    let event = decode(&record.1, record.0, log.partitions(), &learned);
    let is_first = matches!(event, Ok(Event::Policy { policy, .. }) if policy_json(&policy) == wanted);
    if is_first {
        remember(config)?;
    }
    Ok(is_first)
}

/// Returns the record at offset 0 of the first partition that still has it.
fn first_record(config: &Config, log: &Arc<dyn Log>) -> anyhow::Result<Option<(Partition, Record)>> {
    let mut reader = config.kafka.as_ref().map(connect::reader_of_server).transpose()?;
    let mut records = Vec::new();
    for partition in (0..log.partitions()).map(Partition) {
        let range = log.range(Topic::Events, partition)?;
        if range.start.0 > 0 || range.end.0 == 0 {
            continue;
        }
        match &mut reader {
            None => log.read(Topic::Events, partition, range.start, ONE, &mut records)?,
            Some(reader) => reader.read(Topic::Events, partition, range.start, ONE, &mut records)?,
        }
        if !records.is_empty() {
            return Ok(Some((partition, records.swap_remove(0))));
        }
    }
    Ok(None)
}
