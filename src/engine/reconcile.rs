//! Finds the tail: the outputs that the output topics have after the committed position.
//!
//! After a commit that succeeded, a broker may return an old position, lose the position, or commit the transaction
//! only in part. Every output has an id, and the fold gives the same outputs again, so that the position alone need
//! not be trusted. A process that takes a partition, or does not know whether a commit succeeded, reads the last
//! committed records of each output topic. It compares them byte for byte with what the fold gives, and sends only
//! what comes after them.
//!
//! A log that writes outputs and position to one file has no tail ([`OwnedPartition::outputs_range`] returns `None`).

use super::{Error, extend_chain};
use crate::log::{self, Commit, ID_HEADER, Limit, OutputRecord, OwnedPartition, Position, Record};
use crate::presence::change::OutputId;
use crate::presence::{Offset, Partition};
use crate::schema::avro;
use crate::schema::{Malformed, parse_output_id};
use crate::topics::OutputTopic;
use std::collections::{BTreeMap, VecDeque};

/// How many offsets the first step reads, backwards from the end. The last ones are markers of transactions.
const FIRST_SPAN: u64 = 64;
/// How much of what is compared is in memory at a time.
const PART: Limit = Limit {
    records: 2_000,
    bytes: 4 << 20,
};
/// The most newest states that are read. If there are more, all of them are sent again, which changes no state.
const NEWEST_MAX: u64 = 100_000;

/// The place of an output among those of its partition: the offset of its record, and its index.
type OutputPlace = (Offset, u64);

/// The records that a topic has after a position.
struct TopicTail {
    topic: OutputTopic,
    /// The next record of the topic to read.
    next: Offset,
    /// The offset after the last record.
    end: Offset,
    /// The place of the last record, and the number if it is a change; `None`: there is nothing after the position.
    last: Option<(OutputPlace, u64)>,
    /// Retention has not deleted any of the records after the position.
    is_whole: bool,
    /// Records that were read and not compared yet.
    read: VecDeque<(OutputPlace, Vec<u8>)>,
}

/// The outputs that the topics of a partition have after a position.
pub struct OutputTail {
    partition: Partition,
    changes: TopicTail,
    kicks: TopicTail,
    quarantine: TopicTail,
    /// The users whose newest state was written after the position, with the place of the change that gave it.
    newest: BTreeMap<Vec<u8>, OutputPlace>,
    /// How many outputs were found to be what the fold gives.
    pub found: u64,
}

/// Returns the datum of an output, without its framing.
fn datum_of(value: &[u8]) -> Result<&[u8], Malformed> {
    avro::unframe(value).map(|(_, datum)| datum)
}

/// What a record of an output topic says about its output.
struct OutputEntry {
    place: OutputPlace,
    /// The number of a change; 0 for other outputs.
    seq: u64,
}

fn entry(topic: OutputTopic, datum: &[u8]) -> Result<OutputEntry, Malformed> {
    let of = |id: OutputId, seq| OutputEntry {
        place: (id.offset, id.index),
        seq,
    };
    Ok(match topic {
        OutputTopic::Changes => {
            let change = avro::decode_change_datum(datum)?;
            of(change.id, change.seq)
        }
        OutputTopic::Kicks => of(avro::decode_kick_datum(datum)?.id, 0),
        OutputTopic::Quarantine => OutputEntry {
            place: (avro::decode_quarantined_datum(datum)?.offset, 0),
            seq: 0,
        },
        OutputTopic::Current => OutputEntry {
            place: (avro::decode_user_state_datum(datum)?.offset, 0),
            seq: 0,
        },
    })
}

/// Returns the place of the change that gave a newest state, which its header says. `None`: a program that keeps no
/// headers has copied the record, so that nothing is known of it.
fn newest_place(record: &Record) -> Option<OutputPlace> {
    place_of(record.id()?)
}

/// The same of a record that is to be written. A log that keeps newest states keeps headers, so it has the id.
fn new_place(record: &OutputRecord) -> Option<OutputPlace> {
    let id = record.headers.iter().find(|(name, _)| *name == ID_HEADER);
    place_of(&id?.1)
}

fn place_of(id: &[u8]) -> Option<OutputPlace> {
    let id = parse_output_id(std::str::from_utf8(id).ok()?)?;
    Some((id.offset, id.index))
}

/// Returns the steps in which a topic is read backwards from its end: from where and up to where, each four times as long
/// as the one before.
fn backwards(range: log::Range) -> impl Iterator<Item = (Offset, Offset)> {
    let (mut to, mut span) = (range.end, FIRST_SPAN);
    std::iter::from_fn(move || {
        let from = Offset(to.0.saturating_sub(span).max(range.start.0));
        let step = (to > range.start).then_some((from, to));
        (to, span) = (from, span.saturating_mul(4));
        step
    })
}

/// Reads all records of a topic from an offset up to another, which is not included.
fn each_between(
    log: &mut dyn OwnedPartition,
    topic: OutputTopic,
    from: Offset,
    to: Offset,
    mut look: impl FnMut(Record) -> Result<(), Error>,
) -> Result<(), Error> {
    let mut from = from;
    let mut records = Vec::new();
    while from < to {
        records.clear();
        log.read_outputs(topic, from, PART, &mut records)?;
        let Some(last) = records.last() else { return Ok(()) };
        from = Offset(last.offset.0 + 1);
        for record in records.drain(..).take_while(|record| record.offset < to) {
            look(record)?;
        }
    }
    Ok(())
}

impl TopicTail {
    /// Finds the records of a topic after a position. Also returns the last record before it, if it is kept. Returns
    /// `None` if outputs and position cannot differ in this log.
    fn find(
        log: &mut dyn OwnedPartition,
        topic: OutputTopic,
        after: OutputPlace,
    ) -> Result<Option<(TopicTail, Option<OutputEntry>, log::Range)>, Error> {
        let Some(range) = log.outputs_range(topic)? else {
            return Ok(None);
        };
        let partition = log.partition();
        let mut tail = TopicTail {
            topic,
            next: range.end,
            end: range.end,
            last: None,
            is_whole: true,
            read: VecDeque::new(),
        };
        let mut before = None;
        for (from, to) in backwards(range) {
            let mut first = None;
            let mut last = None;
            each_between(log, topic, from, to, |record| {
                let entry = read_entry(partition, topic, &record)?;
                if entry.place < after {
                    before = Some(entry);
                } else {
                    first.get_or_insert(record.offset);
                    last = Some((entry.place, entry.seq));
                }
                Ok(())
            })?;
            tail.next = first.unwrap_or(tail.next);
            tail.last = tail.last.or(last);
            if before.is_some() {
                break;
            }
        }
        tail.is_whole = before.is_some() || range.start == Offset(0);
        Ok(Some((tail, before, range)))
    }

    /// Finds the last record of a topic, whatever it is of.
    fn last_of(log: &mut dyn OwnedPartition, topic: OutputTopic) -> Result<Option<OutputPlace>, Error> {
        let found = TopicTail::find(log, topic, (Offset(u64::MAX), u64::MAX))?;
        Ok(found.and_then(|(_, before, _)| Some(before?.place)))
    }

    /// Returns the next record to compare.
    fn next(&mut self, log: &mut dyn OwnedPartition) -> Result<Option<(OutputPlace, Vec<u8>)>, Error> {
        if self.last.is_some() && self.read.is_empty() && self.next < self.end {
            let mut records = Vec::new();
            log.read_outputs(self.topic, self.next, PART, &mut records)?;
            let partition = log.partition();
            self.next = records.last().map_or(self.end, |last| Offset(last.offset.0 + 1));
            for record in records.iter().filter(|record| record.offset < self.end) {
                let entry = read_entry(partition, self.topic, record)?;
                let datum = datum_of(&record.value).map(<[u8]>::to_vec).unwrap_or_default();
                self.read.push_back((entry.place, datum));
            }
        }
        Ok(self.read.pop_front())
    }

    fn reaches(&self, place: OutputPlace) -> bool {
        self.last.is_some_and(|(last, _)| place <= last)
    }
}

/// Reads a record of an output topic. A record that no engine wrote is an error that halts the partition.
fn read_entry(partition: Partition, topic: OutputTopic, record: &Record) -> Result<OutputEntry, Error> {
    let entry = datum_of(&record.value).and_then(|datum| entry(topic, datum));
    entry.map_err(|error| Error::ForeignOutput {
        partition,
        topic,
        at: record.offset,
        why: error.to_string().into(),
    })
}

/// How a position compares with the output topics.
pub enum Comparison {
    /// Outputs and position cannot differ in this log.
    Unasked,
    /// The topics have nothing after the position.
    Equal,
    /// The topics have outputs after the position.
    Behind(Box<OutputTail>),
    /// The change that the position says was the last is not in the topic.
    Ahead {
        /// The number of the last change that the topic has before the position.
        seq: u64,
    },
}

/// The last outputs of a partition that are known to be in its topics, regardless of its position.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct KnownOutputs {
    /// The last change, with its number.
    change: Option<(OutputPlace, u64)>,
    kick: Option<OutputPlace>,
    quarantined: Option<OutputPlace>,
}

impl OutputTail {
    /// Returns the offset of the event that the last output in the topics is of, if there is any. It reads only the ends
    /// of the topics.
    pub fn last_in_topics(log: &mut dyn OwnedPartition) -> Result<Option<Offset>, Error> {
        let mut last = None;
        for topic in [OutputTopic::Changes, OutputTopic::Kicks, OutputTopic::Quarantine] {
            last = last.max(TopicTail::last_of(log, topic)?);
        }
        Ok(last.map(|(offset, _)| offset))
    }

    /// Reads the outputs that the topics have after a position.
    pub fn read(log: &mut dyn OwnedPartition, after: &Position) -> Result<Comparison, Error> {
        OutputTail::read_behind(log, after, &KnownOutputs::default())
    }

    /// Reads the outputs that the topics have after a position and after the outputs known to be in the topics.
    pub fn read_behind(
        log: &mut dyn OwnedPartition,
        after: &Position,
        known: &KnownOutputs,
    ) -> Result<Comparison, Error> {
        let behind =
            |place: OutputPlace, last: Option<OutputPlace>| last.map_or(place, |last| place.max((last.0, last.1 + 1)));
        let place = (after.next, after.outputs);
        let last_change = known.change.filter(|(last, _)| *last >= place);
        let from = behind(place, last_change.map(|(last, _)| last));
        let Some((changes, before, range)) = TopicTail::find(log, OutputTopic::Changes, from)? else {
            return Ok(Comparison::Unasked);
        };
        let expected = last_change.map_or(after.seq, |(_, seq)| seq);
        // Records that retention has deleted cannot be compared any more.
        let seq = match &before {
            Some(before) => before.seq,
            None if range.start == Offset(0) => 0,
            None => expected,
        };
        if seq != expected {
            return Ok(Comparison::Ahead { seq });
        }
        let kicks = TopicTail::find(log, OutputTopic::Kicks, behind(place, known.kick))?;
        // The record at `next` is quarantined after its outputs, so that `after.outputs` does not count here.
        let quarantine = TopicTail::find(log, OutputTopic::Quarantine, behind((after.next, 0), known.quarantined))?;
        let (Some((kicks, ..)), Some((quarantine, ..))) = (kicks, quarantine) else {
            return Ok(Comparison::Unasked);
        };
        let newest = OutputTail::newest(log, after.next)?;
        let tails = [&changes, &kicks, &quarantine];
        if tails.iter().all(|tail| tail.last.is_none()) && newest.is_empty() {
            return Ok(Comparison::Equal);
        }
        Ok(Comparison::Behind(Box::new(OutputTail {
            partition: log.partition(),
            changes,
            kicks,
            quarantine,
            newest,
            found: 0,
        })))
    }

    /// Returns the newest states that belong to a record or to a later one. What is not known of a user is sent again.
    fn newest(log: &mut dyn OwnedPartition, from: Offset) -> Result<BTreeMap<Vec<u8>, OutputPlace>, Error> {
        let mut newest = BTreeMap::new();
        let Some(range) = log.outputs_range(OutputTopic::Current)? else {
            return Ok(newest);
        };
        let partition = log.partition();
        let mut found: Vec<(Vec<u8>, Option<OutputPlace>)> = Vec::new();
        let mut is_before = false;
        for (back, to) in backwards(range) {
            if range.end.0 - back.0 > NEWEST_MAX {
                return Ok(newest);
            }
            let mut part = Vec::new();
            each_between(log, OutputTopic::Current, back, to, |record| {
                let entry = match record.is_null {
                    true => None,
                    false => Some(read_entry(partition, OutputTopic::Current, &record)?),
                };
                let place = newest_place(&record);
                if place
                    .or(entry.map(|entry| entry.place))
                    .is_some_and(|(offset, _)| offset < from)
                {
                    is_before = true;
                    part.clear();
                } else {
                    part.push((record.key.unwrap_or_default(), place));
                }
                Ok(())
            })?;
            part.append(&mut found);
            found = part;
            if is_before {
                break;
            }
        }
        for (user, place) in found {
            match place {
                Some(place) => newest.insert(user, place),
                None => newest.remove(&user),
            };
        }
        Ok(newest)
    }

    fn tail(&mut self, topic: OutputTopic) -> Option<&mut TopicTail> {
        match topic {
            OutputTopic::Changes => Some(&mut self.changes),
            OutputTopic::Kicks => Some(&mut self.kicks),
            OutputTopic::Quarantine => Some(&mut self.quarantine),
            OutputTopic::Current => None,
        }
    }

    /// Returns the place of the last output in the topics.
    pub fn last(&self) -> Option<OutputPlace> {
        let place = |tail: &TopicTail| Some(tail.last?.0);
        // A malformed record is quarantined after the outputs that its time causes.
        let quarantined = place(&self.quarantine).map(|(offset, _)| (offset, u64::MAX));
        place(&self.changes).max(place(&self.kicks)).max(quarantined)
    }

    /// Returns the outputs that are known to be in the topics from now on.
    pub fn known(&self) -> KnownOutputs {
        let place = |tail: &TopicTail| tail.last.map(|(place, _)| place);
        KnownOutputs {
            change: self.changes.last,
            kick: place(&self.kicks),
            quarantined: place(&self.quarantine),
        }
    }

    /// Whether all outputs in the topics are before a place.
    pub fn is_before(&self, place: OutputPlace) -> bool {
        self.last().is_none_or(|last| last < place)
    }

    /// Returns a position's chain extended by all outputs in the topics before a place. `None` if some between are
    /// gone.
    pub fn chain_to(
        mut self,
        from: &Position,
        to: OutputPlace,
        log: &mut dyn OwnedPartition,
    ) -> Result<Option<[u8; 32]>, Error> {
        if !(self.changes.is_whole && self.kicks.is_whole) {
            return Ok(None);
        }
        let (mut chain, mut seq) = (from.chain, from.seq);
        let mut change = self.changes.next(log)?;
        let mut kick = self.kicks.next(log)?;
        loop {
            let is_change = match (&change, &kick) {
                (Some((change, _)), Some((kick, _))) => change < kick,
                (change, _) => change.is_some(),
            };
            let next = match is_change {
                true => std::mem::replace(&mut change, self.changes.next(log)?),
                false => std::mem::replace(&mut kick, self.kicks.next(log)?),
            };
            let Some((_, datum)) = next.filter(|(place, _)| *place < to) else {
                return Ok(Some(chain));
            };
            if is_change {
                seq += 1;
                let entry = entry(OutputTopic::Changes, &datum);
                if entry.is_ok_and(|entry| entry.seq != seq) {
                    return Ok(None);
                }
            }
            chain = extend_chain(&chain, &datum);
        }
    }

    /// Whether an output is already in its topic. Returns an error that halts the partition if something else is
    /// there.
    pub fn has(
        &mut self,
        topic: OutputTopic,
        place: OutputPlace,
        datum: &[u8],
        log: &mut dyn OwnedPartition,
    ) -> Result<bool, Error> {
        let partition = self.partition;
        let Some(tail) = self.tail(topic) else {
            return Ok(false);
        };
        if !tail.reaches(place) || (planted!(KicksNotCompared) && topic != OutputTopic::Changes) {
            return Ok(false);
        }
        // A folded output is not folded again before a restart: after a failure the partition starts again from the
        // store.
        let found = tail.next(log).map_err(|error| match error {
            Error::Log(cause) => Error::TailUnreadable { partition, cause },
            error => error,
        })?;
        // It was there, and retention has deleted it since.
        if !tail.is_whole
            && let Some((at, datum)) = &found
            && *at > place
        {
            tail.read.push_front((*at, datum.clone()));
            return Ok(true);
        }
        let same = |found: &[u8]| match topic {
            OutputTopic::Quarantine => is_the_same_record(found, datum),
            _ => found == datum,
        };
        if let Some((at, found)) = &found
            && *at == place
            && same(found)
        {
            self.found += 1;
            return Ok(true);
        }
        Err(Error::OutputDiffers {
            partition,
            topic,
            offset: place.0,
            index: place.1,
            found: found.map_or("nothing".into(), |(at, datum)| {
                format!("output {}-{}-{} {}", partition, at.0, at.1, hex(&datum)).into()
            }),
            folded: hex(datum).into(),
        })
    }

    /// Whether the newest state of a user that a change gave, or a newer one, is already in the topic. None of those may
    /// be sent again: the next owner may go on from a store that is past them, and would leave the older state there.
    pub fn has_newest(&self, user: &[u8], by: OutputPlace) -> bool {
        self.newest.get(user).is_some_and(|there| by <= *there)
    }

    /// Returns the part of a commit that is not in the topics, and how many of its outputs are.
    pub fn rest_of(mut self, commit: &Commit, log: &mut dyn OwnedPartition) -> Result<(Commit, u64), Error> {
        let partition = self.partition;
        let mut there = 0;
        let mut rest = Commit::at(commit.position);
        for tail in [&mut self.changes, &mut self.kicks, &mut self.quarantine] {
            let mut records = commit.outputs.of(tail.topic).iter();
            while let Some((place, found)) = tail.next(log)? {
                let Some(record) = records.next() else {
                    // The topic has more than we have sent: another process wrote to it.
                    return Err(Error::Deposed { partition });
                };
                let value = record.value.as_deref().unwrap_or_default();
                let datum = datum_of(value).unwrap_or_default();
                if datum != found {
                    return Err(Error::OutputDiffers {
                        partition,
                        topic: tail.topic,
                        offset: place.0,
                        index: place.1,
                        found: hex(&found).into(),
                        folded: hex(datum).into(),
                    });
                }
                there += 1;
            }
            rest.outputs.extend(tail.topic, records.cloned());
        }
        for record in commit.outputs.of(OutputTopic::Current) {
            let user = record.key.as_deref().unwrap_or_default();
            let is_there = new_place(record).is_some_and(|by| self.has_newest(user, by));
            if !is_there {
                rest.outputs.push(OutputTopic::Current, record.clone());
            }
        }
        Ok((rest, there))
    }
}

/// Whether two quarantined records are copies of the same record. The error in them, a sentence for people, may differ
/// from version to version.
fn is_the_same_record(found: &[u8], folded: &[u8]) -> bool {
    match (
        avro::decode_quarantined_datum(found),
        avro::decode_quarantined_datum(folded),
    ) {
        (Ok(found), Ok(folded)) => {
            (found.offset, found.ts, found.key, found.value) == (folded.offset, folded.ts, folded.key, folded.value)
        }
        _ => false,
    }
}

/// The most bytes of a value that are shown.
const SHOWN: usize = 96;

fn hex(bytes: &[u8]) -> String {
    let shown = &bytes[..bytes.len().min(SHOWN)];
    let mut text: String = shown.iter().map(|byte| format!("{byte:02x}")).collect();
    if bytes.len() > SHOWN {
        text.push_str(&format!("… ({} bytes)", bytes.len()));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::RecordHeaders;

    fn tail<const N: usize>(newest: [(&str, OutputPlace); N]) -> OutputTail {
        let tail = |topic| TopicTail {
            topic,
            next: Offset(0),
            end: Offset(0),
            last: None,
            is_whole: true,
            read: VecDeque::new(),
        };
        OutputTail {
            partition: Partition(0),
            changes: tail(OutputTopic::Changes),
            kicks: tail(OutputTopic::Kicks),
            quarantine: tail(OutputTopic::Quarantine),
            newest: newest.map(|(user, place)| (user.as_bytes().to_vec(), place)).into(),
            found: 0,
        }
    }

    #[test]
    fn what_is_there_or_older_is_not_sent_again_and_all_that_is_newer_is() {
        let tail = tail([("alice", (Offset(7), 1))]);
        let by = |offset, index| (Offset(offset), index);
        let folded = [by(5, 0), by(7, 0), by(7, 1), by(7, 2), by(9, 0)];
        let sent = |user: &str| folded.map(|place| !tail.has_newest(user.as_bytes(), place));
        // It does not matter which of them say that the user was forgotten.
        assert_eq!(sent("alice"), [false, false, false, true, true]);
        assert_eq!(sent("bob"), [true; 5]);
    }

    #[test]
    fn a_newest_state_says_by_its_id_what_it_is_of_also_without_a_value() {
        let record = |id: Option<&str>| Record {
            offset: Offset(3),
            ts: 0,
            key: Some(b"alice".to_vec()),
            value: Vec::new(),
            is_null: true,
            headers: RecordHeaders {
                id: id.map(|id| id.as_bytes().into()),
                ..RecordHeaders::default()
            }
            .boxed(),
        };
        assert_eq!(newest_place(&record(Some("0-17-2"))), Some((Offset(17), 2)));
        for unknown in [
            None,
            Some(""),
            Some("0-17"),
            Some("0-17-2-1"),
            Some("0-017-2"),
            Some("é"),
        ] {
            assert_eq!(newest_place(&record(unknown)), None, "{unknown:?}");
        }
        let new = |headers| OutputRecord {
            key: Some(b"alice".to_vec()),
            value: None,
            headers,
        };
        let id = (ID_HEADER, b"0-17-2".to_vec());
        assert_eq!(new_place(&new(vec![id])), Some((Offset(17), 2)));
        assert_eq!(new_place(&new(Vec::new())), None);
    }
}
