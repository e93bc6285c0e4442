//! Finds incidents while a server runs: many devices that lost their link at once (`docs/incidents.md`).
//!
//! The [`Finder`] follows the changes of all partitions, as the log has them, and applies the rule of
//! [`audit::incidents`](crate::audit::incidents) to them. So it finds what `rollcall audit incidents` finds in the same log.
//!
//! *Complete seconds.* A second is judged only when every partition is past it, so that a partition that is late changes
//! nothing. Whether it is, the caller says ([`PartitionProgress`]): a partition without changes says nothing by itself.
//!
//! *Memory.* Counts of each second that is not judged yet; the counts by name of an incident, which is read a second time when
//! it is over; of one partition at a time the departures in it.
//!
//! *Once.* An incident and the position go out in one step ([`IncidentWriter`]). The position is before the first change that
//! may still be part of an incident, and says which incidents are written already. So after a restart the changes of an
//! incident are read again, with the same result.
//!
//! *Never in the way.* It reads the log like any follower, in a thread of its own, and after a large read it rests as long as
//! the read took.

mod position;

use crate::audit::incidents::{
    DepartedClients, DeviceDigest, IncidentCounts, IncidentRule, IncidentSpan, Seconds, SpanFinder, is_departure,
    second_of,
};
use crate::clock::Clock;
use crate::engine::rejected::decode;
use crate::log::{self, IncidentPosition, IncidentWriter, Limit, Log, NewRecord, Record};
use crate::metrics;
use crate::presence::change::Change;
use crate::presence::event::Event;
use crate::presence::{LogTime, Offset, Partition};
use crate::registry::{self, Schemas};
use crate::schema::avro::{self, IncidentRecord, Schema};
use crate::topics::{INCIDENTS_FOUND_IN, Topic};
use chrono::{DateTime, SecondsFormat};
use position::FinderNote;
use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

/// The most that one read returns.
const LIMIT: Limit = Limit {
    records: 2_000,
    bytes: 1 << 20,
};
/// After a read of so many records it rests.
const LARGE_READ: usize = 500;
const REST_MAX: Duration = Duration::from_millis(100);
/// How long one step reads before it judges.
const STEP_MS: u64 = 1_000;
/// A partition is not read further ahead of the others than this. Each second that waits takes memory.
const AHEAD_S: u64 = 3_600;
/// The least seconds between two marks of a partition.
const MARK_S: u64 = 10;
/// How often the position is committed if there are no incidents.
const COMMIT_MS: u64 = 10_000;
/// How many events of a partition before an incident are searched for the connects of its devices.
const CONNECT_EVENTS: u64 = 100_000;
/// How many names of each kind a record has. The rest is counted under [`OTHERS`].
const NAMES_MAX: usize = 100;
const OTHERS: &str = "(others)";
/// An incident that was over for longer when it was found is not counted in the metrics: the finder was catching up.
const COUNTED_MS: u64 = 15 * 60 * 1_000;
/// After so many reads without a change, a partition of which no change is kept counts as read.
const EMPTY_READS: u32 = 10;

#[derive(Debug, thiserror::Error)]
pub enum FinderError {
    #[error(transparent)]
    Log(#[from] log::Error),
    #[error(transparent)]
    Registry(#[from] registry::Error),
    #[error("the change at offset {offset} of partition {partition} cannot be read: {why}")]
    Unreadable {
        partition: Partition,
        offset: Offset,
        why: String,
    },
    #[error(
        "the position up to which incidents were looked for cannot be used: it is of {found} partitions, and the log has \
         {expected}, or a later version wrote it. Start that version, or delete the group's offsets in the topic of changes \
         (kafka-consumer-groups --delete-offsets) to look through all changes that are kept"
    )]
    OtherLog { found: usize, expected: usize },
}

/// How far a partition is, as its owner says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PartitionProgress {
    /// How many changes it has given.
    pub changes: u64,
    /// Every later change is of this time or a later one.
    pub complete_to: LogTime,
}

/// A partition that is followed.
#[derive(Debug, Default)]
struct FollowedPartition {
    next: Offset,
    /// The number of the last change that was read; 0 if no change was read yet.
    seq: u64,
    /// The second of the last change that was read. None is before it.
    second: u64,
    /// Where changes of some seconds are, in order.
    marks: VecDeque<Mark>,
    is_at_end: bool,
    /// How often there was nothing to read, while no change was read.
    empty_reads: u32,
}

/// Every change before the offset is of this second or an earlier one.
#[derive(Clone, Copy, Debug)]
struct Mark {
    second: u64,
    offset: Offset,
}

impl FollowedPartition {
    /// Returns an offset before which all changes are before a second.
    fn before(&self, second: u64) -> Offset {
        let marks = || self.marks.iter();
        let mark = marks()
            .rev()
            .find(|mark| mark.second < second)
            .or_else(|| marks().next());
        mark.map_or(self.next, |mark| mark.offset)
    }

    /// Drops the marks that are not needed for changes from a second on.
    fn forget_before(&mut self, second: u64) {
        while self.marks.get(1).is_some_and(|mark| mark.second < second) {
            self.marks.pop_front();
        }
    }

    /// Returns the second before which all changes were read.
    fn known(&self, progress: Option<PartitionProgress>) -> u64 {
        let Some(progress) = progress.filter(|_| self.is_at_end) else {
            return self.second;
        };
        let is_read = self.seq >= progress.changes || self.seq == 0 && self.empty_reads >= EMPTY_READS;
        match is_read {
            true => self.second.max(second_of(progress.complete_to)),
            false => self.second,
        }
    }
}

/// See the module.
pub struct Finder {
    log: Arc<dyn Log>,
    schemas: Schemas,
    clock: Arc<dyn Clock>,
    writer: Box<dyn IncidentWriter>,
    rule: IncidentRule,
    partitions: Vec<FollowedPartition>,
    /// Counts of seconds that are not judged.
    seconds: Seconds,
    spans: SpanFinder,
    /// The last second that was judged; 0 if no second was judged yet.
    judged: u64,
    /// The last step ended before everything was read.
    has_more: bool,
    /// Changes before this second are counted already.
    counted_before: u64,
    /// What is committed, or is to be committed next: where a new finder begins.
    restart: IncidentPosition,
    note: FinderNote,
    committed_ms: u64,
}

impl Finder {
    /// Opens the topic of incidents for writing, and begins at the committed position, or with the oldest changes kept.
    pub fn open(log: Arc<dyn Log>, schemas: Schemas, clock: Arc<dyn Clock>) -> Result<Finder, FinderError> {
        let mut writer = log.write_incidents()?;
        let rule = IncidentRule::default();
        let count = log.partitions() as usize;
        let committed = writer.position()?;
        let note = match &committed {
            None => FinderNote::default(),
            Some(position) => FinderNote::from_bytes(&position.note)
                .filter(|_| position.next.len() == count)
                .ok_or(FinderError::OtherLog {
                    found: position.next.len(),
                    expected: count,
                })?,
        };
        let restart = match committed {
            Some(position) => position,
            None => IncidentPosition {
                next: vec![Offset(0); count],
                note: note.to_bytes(),
            },
        };
        let spans = match note.restart.second {
            0 => SpanFinder::new(rule, 0),
            _ => SpanFinder::from(rule, note.restart),
        };
        let partitions = restart.next.iter().map(|next| FollowedPartition {
            next: *next,
            ..FollowedPartition::default()
        });
        Ok(Finder {
            partitions: partitions.collect(),
            committed_ms: clock.monotonic_ms(),
            log,
            schemas,
            clock,
            writer,
            rule,
            seconds: Seconds::default(),
            spans,
            judged: note.restart.second.saturating_sub(1),
            has_more: false,
            counted_before: note.restart.second,
            restart,
            note,
        })
    }

    /// Reads on, judges the seconds that are complete, and writes the incidents that are over. `progress` was asked for before:
    /// `None` for a partition of which nothing is known. After an error, open another finder.
    pub fn step(&mut self, progress: &[Option<PartitionProgress>]) -> Result<(), FinderError> {
        self.read()?;
        let known =
            |(partition, progress): (&FollowedPartition, &Option<PartitionProgress>)| partition.known(*progress);
        let complete = self.partitions.iter().zip(progress).map(known).min().unwrap_or(0);
        while let Some((second, counts)) = self.seconds.pop_before(complete) {
            self.spans.push(second, counts);
            self.judged = second;
        }
        if self.judged + 1 < complete {
            self.spans.push(complete - 1, Default::default());
            self.judged = complete - 1;
        }
        let mut found = Vec::new();
        for span in self.spans.take_finished() {
            if span.first_second > self.note.written {
                found.push(self.record_of(&span)?);
                self.note.written = span.first_second;
            }
        }
        self.commit(&found)
    }

    /// Returns the time up to which incidents were looked for.
    pub fn looked_up_to(&self) -> Option<LogTime> {
        (self.judged > 0).then(|| LogTime((self.judged + 1) * 1_000))
    }

    /// Whether there was more to read than one step reads.
    pub fn has_more(&self) -> bool {
        self.has_more
    }

    /// Whether the rule holds at present: an incident is under way.
    pub fn is_incident_open(&self) -> bool {
        self.spans.holds()
    }

    /// Reads all partitions for a while, or until there is nothing more.
    fn read(&mut self) -> Result<(), FinderError> {
        let began_ms = self.clock.monotonic_ms();
        let mut records = Vec::new();
        loop {
            let open = self.partitions.iter().filter(|partition| !partition.is_at_end);
            // At the first pass nobody knows who is at the end.
            let slowest = open
                .map(|partition| partition.second)
                .min()
                .unwrap_or(u64::MAX - AHEAD_S);
            let mut any = false;
            for number in 0..self.partitions.len() {
                if self.partitions[number].second > slowest + AHEAD_S {
                    continue;
                }
                any |= self.read_partition(number, &mut records)?;
            }
            self.has_more = any;
            if !any || self.clock.monotonic_ms() >= began_ms + STEP_MS {
                return Ok(());
            }
        }
    }

    /// Reads some changes of a partition. Returns whether there were any.
    fn read_partition(&mut self, number: usize, records: &mut Vec<Record>) -> Result<bool, FinderError> {
        let began = self.clock.monotonic();
        let partition = Partition(number as u32);
        let next = self.partitions[number].next;
        records.clear();
        match self.log.read(INCIDENTS_FOUND_IN, partition, next, LIMIT, records) {
            Err(log::Error::Gone { start, .. }) => {
                tracing::warn!(
                    %partition, wanted = %next, %start,
                    "changes were dropped by retention before incidents were looked for in them: devices that were online then \
                     are not counted as online until they change"
                );
                self.partitions[number].next = start;
                return Ok(true);
            }
            read => read?,
        }
        let followed = &mut self.partitions[number];
        followed.is_at_end = records.is_empty();
        if records.is_empty() && followed.seq == 0 {
            followed.empty_reads = followed.empty_reads.saturating_add(1);
        }
        let mut is_first = true;
        for record in &*records {
            let change = change_of(&self.schemas, partition, record)?;
            let second = second_of(change.at);
            let followed = &mut self.partitions[number];
            if std::mem::take(&mut is_first) && followed.marks.back().is_none_or(|mark| mark.second + MARK_S <= second)
            {
                followed.marks.push_back(Mark {
                    second,
                    offset: record.offset,
                });
            }
            followed.next = Offset(record.offset.0 + 1);
            followed.seq = change.seq;
            followed.second = followed.second.max(second);
            if second < self.counted_before {
                continue;
            }
            if second <= self.judged {
                // The owner said that no such change would come: a clock was wrong, or the process was halted for long.
                metrics::incident_change_late();
                self.spans.miss(&change);
            } else {
                self.seconds.apply(&change);
            }
        }
        self.rest(records.len(), began);
        Ok(!records.is_empty())
    }

    /// After a large read it rests as long as the read took, so that it is never in the way of the engine.
    fn rest(&self, records: usize, began: Duration) {
        if records >= LARGE_READ {
            let took = self.clock.monotonic().saturating_sub(began);
            std::thread::sleep(took.min(REST_MAX));
        }
    }

    /// Reads the changes of an incident again, and the events before it.
    fn record_of(&self, span: &IncidentSpan) -> Result<IncidentRecord, FinderError> {
        let mut all = IncidentCounts::default();
        let mut devices = 0;
        for number in 0..self.partitions.len() {
            let mut counts = self.departed(number, span)?;
            // A device is in one partition only.
            devices += counts.devices.len() as u64;
            counts.devices.clear();
            all.add(counts);
        }
        let record = all.record(&self.rule, span, true);
        Ok(IncidentRecord {
            devices,
            causes: largest(record.causes),
            gateways: largest(record.gateways),
            platforms: largest(record.platforms),
            clients: record.clients.map(largest),
            ..record
        })
    }

    fn departed(&self, number: usize, span: &IncidentSpan) -> Result<IncidentCounts, FinderError> {
        let partition = Partition(number as u32);
        let followed = &self.partitions[number];
        let mut counts = IncidentCounts::default();
        let mut clients = DepartedClients::default();
        // The first and the last event with which a departure was found out.
        let mut events: Option<(Offset, Offset)> = None;
        let from = followed.before(span.first_second);
        self.each(INCIDENTS_FOUND_IN, partition, from, followed.next, |record| {
            let change = change_of(&self.schemas, partition, record)?;
            let second = second_of(change.at);
            if second > span.last_second {
                return Ok(ControlFlow::Break(()));
            }
            if second < span.first_second {
                return Ok(ControlFlow::Continue(()));
            }
            for device in change.devices.iter().filter(|device| is_departure(&change, device)) {
                counts.take(&change, device);
                let event = change.id.offset;
                let digest = DeviceDigest::of(&change.user, &device.platform, &device.device);
                clients.depart(digest, event, 0);
                events = Some(events.map_or((event, event), |(first, _)| (first, event)));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if let Some((first, last)) = events {
            let start = self.log.range(Topic::Events, partition)?.start;
            let from = Offset(first.0.saturating_sub(CONNECT_EVENTS)).max(start);
            let partitions = self.log.partitions();
            self.each(Topic::Events, partition, from, last, |record| {
                let learned = self.schemas.learn([record.framed()])?;
                if let Ok(Event::Connect { who, client, .. }) = decode(record, partition, partitions, &learned) {
                    let device = DeviceDigest::of(&who.user, &who.platform, &who.device);
                    clients.connect(device, record.offset, client.as_deref(), |_, client| {
                        counts.take_client(client, 1);
                    });
                }
                Ok(ControlFlow::Continue(()))
            })?;
        }
        clients.end(|_, client| counts.take_client(client, 1));
        Ok(counts)
    }

    /// Visits the records of a partition from an offset on, up to before another.
    fn each(
        &self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        end: Offset,
        mut each: impl FnMut(&Record) -> Result<ControlFlow<()>, FinderError>,
    ) -> Result<(), FinderError> {
        let mut next = from;
        let mut records = Vec::new();
        while next < end {
            let began = self.clock.monotonic();
            records.clear();
            match self.log.read(topic, partition, next, LIMIT, &mut records) {
                // Retention came in between.
                Err(log::Error::Gone { start, .. }) => {
                    next = start;
                    continue;
                }
                read => read?,
            }
            let Some(last) = records.last() else { break };
            next = Offset(last.offset.0 + 1);
            for record in records.iter().filter(|record| record.offset < end) {
                if each(record)?.is_break() {
                    return Ok(());
                }
            }
            self.rest(records.len(), began);
        }
        Ok(())
    }

    /// Writes incidents, if there are any, and from time to time the position.
    fn commit(&mut self, found: &[IncidentRecord]) -> Result<(), FinderError> {
        let now_ms = self.clock.monotonic_ms();
        if found.is_empty() && now_ms < self.committed_ms + COMMIT_MS {
            return Ok(());
        }
        let mut restart = self.restart.clone();
        if let Some(begins) = self.spans.restart() {
            self.note.restart = begins;
            restart.next = self.partitions.iter().map(|one| one.before(begins.second)).collect();
        }
        restart.note = self.note.to_bytes();
        self.committed_ms = now_ms;
        if restart == self.restart {
            return Ok(());
        }
        let records: Vec<NewRecord> = found.iter().map(|incident| self.new_record(incident)).collect();
        self.writer.commit(&records, &restart)?;
        self.restart = restart;
        let needed = self.note.restart.second.min(self.spans.first_needed());
        self.partitions.iter_mut().for_each(|one| one.forget_before(needed));
        let wall_ms = self.clock.now_ms();
        for incident in found {
            // A time beyond the calendar has no text.
            let at = DateTime::from_timestamp_millis(incident.from as i64);
            let at = at.map_or_else(String::new, |at| at.to_rfc3339_opts(SecondsFormat::Millis, true));
            tracing::warn!(
                id = incident.id,
                at,
                departures = incident.departures,
                devices = incident.devices,
                online_before = incident.online_before,
                "incident: many devices lost their link at once"
            );
            if wall_ms < incident.to + COUNTED_MS {
                metrics::incident(incident.devices);
            }
        }
        Ok(())
    }

    fn new_record(&self, incident: &IncidentRecord) -> NewRecord {
        let mut value = Vec::new();
        self.schemas.frame(Schema::Incident, &mut value);
        avro::write_incident_datum(incident, &mut value);
        let id = incident.id.clone().into_bytes();
        NewRecord {
            key: Some(id.clone()),
            value,
            headers: vec![(log::ID_HEADER, id)],
        }
    }
}

fn change_of(schemas: &Schemas, partition: Partition, record: &Record) -> Result<Change, FinderError> {
    schemas
        .change(&record.value)?
        .map_err(|malformed| FinderError::Unreadable {
            partition,
            offset: record.offset,
            why: malformed.to_string(),
        })
}

/// Keeps the names with the greatest counts, by name where they are equal, and adds up the others.
fn largest(counts: BTreeMap<String, u64>) -> BTreeMap<String, u64> {
    if counts.len() <= NAMES_MAX {
        return counts;
    }
    let mut counts: Vec<(String, u64)> = counts.into_iter().collect();
    counts.sort_by(|(one, many), (other, more)| more.cmp(many).then_with(|| one.cmp(other)));
    let others: u64 = counts.drain(NAMES_MAX..).map(|(_, count)| count).sum();
    let mut largest: BTreeMap<String, u64> = counts.into_iter().collect();
    *largest.entry(OTHERS.to_owned()).or_default() += others;
    largest
}

#[cfg(test)]
mod tests;
