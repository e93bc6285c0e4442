//! The outputs in the topics or files, as they are compared with what was folded.

use super::lines::Lines;
use super::{AuditSource, LIMIT, change_of, unreadable};
use crate::audit::verify::{Compared, OutputRecord, QuarantinedEvent};
use crate::log::{Limit, Range, Reader, Record};
use crate::presence::{Offset, Partition};
use crate::registry::{LearnedSchemas, Schemas};
use crate::schema::avro;
use crate::topics::Topic;
use anyhow::{Context as _, bail};
use serde_json::value::RawValue;

/// The outputs of one partition that `verify` compares with, read beside the events.
pub struct FoundOutputs {
    partition: Partition,
    /// By [`Compared`].
    topics: [Found; Compared::ALL.len()],
}

enum Found {
    Log {
        /// What was read and not yet given.
        ready: std::vec::IntoIter<OutputRecord>,
        /// The next offset to read.
        next: Offset,
        /// Records before this offset are gone, and those that are compared may be among them. None once one was right.
        gone_before: Option<Offset>,
    },
    File(Lines),
    /// There are no such records to be read.
    Nothing,
}

/// The topic of a log in which the records are.
pub fn topic_of(compared: Compared) -> Topic {
    match compared {
        Compared::Changes => Topic::Changes,
        Compared::Kicks => Topic::Kicks,
        Compared::Quarantine => Topic::Quarantine,
    }
}

impl FoundOutputs {
    /// Begins with the first output of the event at `from` or of one after it.
    pub fn open(source: &mut AuditSource<'_>, partition: Partition, from: Offset) -> anyhow::Result<FoundOutputs> {
        let mut topics = [Found::Nothing, Found::Nothing, Found::Nothing];
        for compared in Compared::ALL {
            let topic = topic_of(compared);
            topics[compared as usize] = match source {
                AuditSource::Log { reader, schemas, .. } => {
                    let next = first_output(&mut **reader, schemas, compared, partition, from)?;
                    let start = reader.range(topic, partition)?.start;
                    Found::Log {
                        ready: Vec::new().into_iter(),
                        next,
                        gone_before: (next <= start && start > Offset(0)).then_some(start),
                    }
                }
                AuditSource::Files { flags, .. } => match flags.file_of(topic) {
                    Some(path) => Found::File(Lines::open(path)?),
                    None => Found::Nothing,
                },
            };
        }
        Ok(FoundOutputs { partition, topics })
    }

    /// Returns the next record of a topic; none at its end.
    pub fn next(&mut self, compared: Compared, source: &mut AuditSource<'_>) -> anyhow::Result<Option<OutputRecord>> {
        if let Found::File(lines) = &mut self.topics[compared as usize] {
            let line = lines.next()?.map(str::to_owned);
            return Ok(line.map(|line| match serde_json::from_str::<&RawValue>(&line) {
                Ok(_) => OutputRecord::Line(line),
                Err(error) => OutputRecord::unreadable(&format!("{}: {error}", lines.here())),
            }));
        }
        self.peek(compared, source)?;
        match &mut self.topics[compared as usize] {
            Found::Log { ready, .. } => Ok(ready.next()),
            Found::File(_) | Found::Nothing => Ok(None),
        }
    }

    /// Returns the next record of a topic of a log, and leaves it there.
    pub fn peek(&mut self, compared: Compared, source: &mut AuditSource<'_>) -> anyhow::Result<Option<&OutputRecord>> {
        let partition = self.partition;
        let (Found::Log { ready, next, .. }, AuditSource::Log { reader, schemas, .. }) =
            (&mut self.topics[compared as usize], source)
        else {
            return Ok(None);
        };
        if ready.len() == 0 {
            let mut records = Vec::new();
            reader.read(topic_of(compared), partition, *next, LIMIT, &mut records)?;
            if let Some(last) = records.last() {
                *next = Offset(last.offset.0 + 1);
            }
            let read = records.iter().map(|record| {
                let learned = schemas.learn([record.framed()])?;
                // What cannot be read was altered, and differs from whatever the events give.
                let output = output_of(compared, record, partition, &learned);
                Ok(output.unwrap_or_else(|error| OutputRecord::unreadable(&format!("{error:#}"))))
            });
            *ready = read.collect::<anyhow::Result<Vec<_>>>()?.into_iter();
        }
        Ok(ready.as_slice().first())
    }

    /// Takes note that a record of a topic was the expected one: what is gone came before it.
    pub fn was_right(&mut self, compared: Compared) {
        if let Found::Log { gone_before, .. } = &mut self.topics[compared as usize] {
            *gone_before = None;
        }
    }

    /// Fails if retention may have removed the record that was expected of a topic: then it is not a difference.
    pub fn may_differ(&self, compared: Compared) -> anyhow::Result<()> {
        if let Found::Log {
            gone_before: Some(start),
            ..
        } = &self.topics[compared as usize]
        {
            bail!(
                "the {} of partition {} before offset {start} are gone (retention), and what was expected may be among them; begin \
                 with a newer checkpoint (--from-checkpoint)",
                compared.name(),
                self.partition
            );
        }
        Ok(())
    }
}

/// Searches the first record of a topic that is an output of the event at an offset or of one after it: outputs are in the
/// order of their events.
fn first_output(
    reader: &mut dyn Reader,
    schemas: &Schemas,
    compared: Compared,
    partition: Partition,
    event: Offset,
) -> anyhow::Result<Offset> {
    let topic = topic_of(compared);
    let Range { start, end } = reader.range(topic, partition)?;
    let (mut first, mut after) = (start, end);
    if event == Offset(0) {
        return Ok(start);
    }
    let one = Limit { records: 1, bytes: 1 };
    while first < after {
        let middle = Offset(first.0 + (after.0 - first.0) / 2);
        let mut records = Vec::new();
        reader.read(topic, partition, middle, one, &mut records)?;
        let Some(record) = records.first() else {
            after = middle;
            continue;
        };
        let learned = schemas.learn([record.framed()])?;
        match output_of(compared, record, partition, &learned)?.offset() < event {
            true => first = Offset(record.offset.0 + 1),
            false => after = middle,
        }
    }
    Ok(first)
}

fn output_of(
    compared: Compared,
    record: &Record,
    partition: Partition,
    schemas: &LearnedSchemas,
) -> anyhow::Result<OutputRecord> {
    let unreadable = || unreadable(topic_of(compared), partition, record.offset);
    Ok(match compared {
        Compared::Changes => OutputRecord::Change(change_of(record, partition, schemas)?),
        Compared::Kicks => OutputRecord::Kick(avro::decode_kick_with(&record.value, schemas).with_context(unreadable)?),
        Compared::Quarantine => {
            let event = avro::decode_quarantined_with(&record.value, schemas).with_context(unreadable)?;
            OutputRecord::Quarantined(QuarantinedEvent {
                offset: event.offset,
                ts: event.ts,
                error: event.error.into_owned(),
                key: event.key.map(|key| key.into_owned()),
                value: event.value.map(|value| value.into_owned()),
            })
        }
    })
}
