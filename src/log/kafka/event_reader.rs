//! Events as their owner reads them: with no offset passed over that was not looked at twice.
//!
//! Offsets of events follow each other, unless a publisher uses transactions: their marks and the records of aborted ones
//! are no events. A client cannot tell such a gap from an event that it was not shown; and a replica of Apache Kafka may
//! show a record of an aborted transaction, depending on where a fetch ends (docs/publishing.md). So a batch with a gap is
//! read a second time, by a client that fetches another number of bytes at a time, from the record before it. Only if both
//! give the same records is the batch given; if not, nothing from there on is folded, until both do.
//!
//! And each start of the reader begins with the record that was folded last: if that is not there as it was, the log was
//! cut or made again, and nothing more is folded.

use super::partition_reader::{PartitionReader, Wake};
use super::source::{FETCH_BYTES, Source};
use crate::clock::Clock;
use crate::failpoint;
use crate::log::{Error, LastRecord, Limit, PartitionEvents, Range, Reading, Record, locked};
use crate::metrics;
use crate::presence::{Offset, Partition};
use crate::topics::Topic;
use rdkafka::config::ClientConfig;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// How many bytes the second client fetches at a time; a prime, so that its fetches end elsewhere.
const SECOND_FETCH_BYTES: u64 = 700_001;
/// How long the second reading may take.
const SECOND_READING_MS: u64 = 5_000;
const LOOK: Duration = Duration::from_millis(1);
/// For how long a reader of second readings is kept for the next gap. Its client goes on fetching the partition, and nobody takes what
/// it has: up to 10,000 records, each with a kibibyte of the client's own.
const SECOND_KEPT_MS: u64 = 1_000;

/// The client that reads a second time, with other fetches. Made when it is first needed.
pub struct SecondSource {
    config: ClientConfig,
    clock: Arc<dyn Clock>,
    source: Mutex<Option<Arc<Source>>>,
}

impl SecondSource {
    /// With the settings of the first client.
    pub fn new(mut config: ClientConfig, clock: Arc<dyn Clock>) -> SecondSource {
        let first: Option<u64> = FETCH_BYTES
            .iter()
            .find_map(|key| config.get(key))
            .and_then(|bytes| bytes.parse().ok());
        let second = match first {
            Some(first) if first < 2 * SECOND_FETCH_BYTES => first.saturating_mul(3) + 1,
            Some(_) | None => SECOND_FETCH_BYTES,
        };
        for key in FETCH_BYTES {
            config.remove(key);
        }
        config
            .set(FETCH_BYTES[0], second.to_string())
            .set("queued.min.messages", "10000")
            .set("queued.max.messages.kbytes", "8192");
        SecondSource {
            config,
            clock,
            source: Mutex::default(),
        }
    }

    pub fn source(&self) -> Result<Arc<Source>, Error> {
        let mut source = locked(&self.source);
        if let Some(source) = &*source {
            return Ok(source.clone());
        }
        let made = Source::new(self.config.clone(), self.clock.clone())?;
        Ok(source.insert(made).clone())
    }
}

/// Gives the client of second readings.
pub type OtherSource = Box<dyn Fn() -> Result<Arc<Source>, Error> + Send>;

/// See the module.
pub struct EventReader {
    clock: Arc<dyn Clock>,
    name: Arc<str>,
    partition: Partition,
    first: PartitionReader,
    second: Option<PartitionReader>,
    /// When it was used last, by the monotonic clock.
    second_used_ms: u64,
    seconds: OtherSource,
    /// The record that was folded last.
    last: Option<LastRecord>,
    /// It was started at that record, which has not come yet.
    expects_last: bool,
    /// It is gone, as records of its age may be, so reading starts without it here.
    unchecked: Option<Offset>,
    /// Up to here, gaps at the end of the log were looked at.
    confirmed: u64,
    has_warned: bool,
}

impl EventReader {
    pub fn new(
        source: &Arc<Source>,
        seconds: OtherSource,
        name: Arc<str>,
        partition: Partition,
        wake: Wake,
    ) -> Result<EventReader, Error> {
        let first = PartitionReader::new(source, Some(Topic::Events), name.clone(), partition, Some(wake))?;
        Ok(EventReader {
            clock: source.clock().clone(),
            name,
            partition,
            first,
            second: None,
            second_used_ms: 0,
            seconds,
            last: None,
            expects_last: false,
            unchecked: None,
            confirmed: 0,
            has_warned: false,
        })
    }

    /// See [`PartitionReader::reading_ahead`].
    pub fn reading_ahead(mut self) -> EventReader {
        self.first = self.first.reading_ahead();
        self
    }

    /// Reads with the first client. When it starts, the record before must come first, and is left out.
    fn read_first(&mut self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<(), Error> {
        let goes_on = self.first.next() == Some(from) && !self.expects_last;
        let last = self.last.filter(|last| last.offset < from);
        let (Some(last), false, false) = (last, goes_on, self.unchecked == Some(from)) else {
            self.expects_last = false;
            return self.first.read(from, limit, into);
        };
        self.expects_last = true;
        let begin = into.len();
        match self.first.read(last.offset, limit, into) {
            // Retention may have dropped it; if that also dropped what is to come, the error is about that.
            Err(Error::Gone { .. }) => {
                (self.expects_last, self.unchecked) = (false, Some(from));
                return self.first.read(from, limit, into);
            }
            read => read?,
        }
        if failpoint::alters("last-record")
            && let Some(record) = into.get_mut(begin)
        {
            record.ts += 1;
        }
        match into.get(begin) {
            Some(record) if LastRecord::of(record) == last => {
                into.remove(begin);
                self.expects_last = false;
                match into.get(begin) {
                    Some(record) if record.offset < from => Err(self.is_another_log(last, Some(record))),
                    Some(_) | None => Ok(()),
                }
            }
            None if !self.first.is_at_end() => Ok(()),
            found => Err(self.is_another_log(last, found)),
        }
    }

    fn is_another_log(&self, last: LastRecord, found: Option<&Record>) -> Error {
        let EventReader { name, partition, .. } = self;
        let found = match found.map(LastRecord::of) {
            None => "there is no record any more".to_owned(),
            Some(found) => format!(
                "the next record is that of offset {} with the time {}",
                found.offset, found.ts
            ),
        };
        Error::Read(
            format!(
                "partition {partition} of {name}: the record that was folded last, at offset {} with the time {}, is not there \
                 as it was: {found}. The log was cut, or the topic was made again, and the state is not that of this log, \
                 so nothing more is folded. Bring back a replica that has the record, or begin again with other topics \
                 (--topic-prefix)",
                last.offset, last.ts
            )
            .into(),
        )
    }

    fn note(&mut self, gaps: u64, from: Offset) {
        metrics::event_offset_gaps(gaps);
        if !std::mem::replace(&mut self.has_warned, true) {
            tracing::warn!(
                topic = %self.name, partition = %self.partition, %from,
                "publishers use transactions in the topic of events: their marks leave gaps, which are read twice"
            );
        }
    }

    /// Reads everything before `until` with the second client and compares.
    fn read_again(&mut self, from: Offset, until: u64, records: &[Record]) -> Result<(), Error> {
        let last = self.last.filter(|last| last.offset < from);
        let mut second = match self.second.take() {
            Some(second) => second,
            None => {
                let source = (self.seconds)()?;
                PartitionReader::new(&source, Some(Topic::Events), self.name.clone(), self.partition, None)?
            }
        };
        // From the record before, unless that was read a second time as well.
        let begin = match (second.next(), last) {
            (Some(next), Some(last)) if next > last.offset && next <= from => next,
            (_, Some(last)) => last.offset,
            (_, None) => from,
        };
        let clock = self.clock.clone();
        let late_ms = clock.monotonic_ms() + SECOND_READING_MS;
        let (mut again, mut next) = (Vec::new(), begin);
        while next.0 < until {
            let limit = Limit {
                records: 10_000,
                bytes: 4 << 20,
            };
            if second.read_here(next, limit, &mut again)? == 0 {
                if second.is_at_end() && second.reached().0 >= until {
                    break;
                }
                if clock.monotonic_ms() >= late_ms {
                    return Err(Error::Unanswered(
                        format!(
                            "partition {} of {} has a gap in its offsets before {until} that could not be read a second time \
                             within {} s: check whether the partition's leader answers",
                            self.partition,
                            self.name,
                            SECOND_READING_MS / 1_000
                        )
                        .into(),
                    ));
                }
                std::thread::sleep(LOOK);
            }
            next = second.next().unwrap_or(next);
        }
        if failpoint::alters("second-reading") {
            again.pop();
        }
        again.retain(|record| record.offset.0 < until);
        let first = last.into_iter().filter(|last| last.offset >= begin);
        let first = first.chain(records.iter().map(LastRecord::of));
        let unlike = first_difference(first, again.iter().map(LastRecord::of));
        if let Some(offset) = unlike {
            return Err(Error::Read(
                format!(
                    "partition {} of {}: two clients that fetch different numbers of bytes at a time were given different \
                     records at offset {offset}, so a replica shows a record of an aborted transaction or hides one that was \
                     committed. Nothing from there on is folded until both get the same: elect another replica as the \
                     partition's leader (kafka-leader-election.sh), and have publishers use no transactions",
                    self.partition, self.name
                )
                .into(),
            ));
        }
        self.second = Some(second);
        self.second_used_ms = clock.monotonic_ms();
        Ok(())
    }
}

impl PartitionEvents for EventReader {
    /// Adds what there is from an offset on; see [`PartitionReader::read`]. Waits for the second reading, if there is a gap.
    fn read(&mut self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<(), Error> {
        let begin = into.len();
        self.read_first(from, limit, into)
            .inspect_err(|_| into.truncate(begin))?;
        if self.expects_last {
            return Ok(());
        }
        let records = &into[begin..];
        let next = records.last().map_or(from.0, |last| last.offset.0 + 1);
        let reached = self.first.reached().0.max(next);
        // Of what is behind the last record it is only known at the end.
        let until = if self.first.is_at_end() { reached } else { next };
        let gaps = gaps(from, records) + u64::from(until > next && until > self.confirmed);
        if gaps > 0 {
            self.note(gaps, from);
            if let Err(error) = self.read_again(from, until, records) {
                into.truncate(begin);
                return Err(error);
            }
            self.confirmed = until;
        } else if self.clock.monotonic_ms() >= self.second_used_ms + SECOND_KEPT_MS {
            self.second = None;
        }
        Ok(())
    }

    fn follows(&mut self, last: Option<LastRecord>) {
        self.last = last;
    }

    fn range(&self) -> Result<Range, Error> {
        self.first.range()
    }

    fn is_at_end(&self) -> bool {
        self.first.is_at_end()
    }

    fn reading(&self) -> Reading {
        Reading {
            reached: self.first.reached(),
            is_at_end: self.first.is_at_end(),
            unanswered_since_ms: self.first.unanswered_since_ms(),
        }
    }
}

/// How many of the records do not follow the one before.
fn gaps(from: Offset, records: &[Record]) -> u64 {
    let before = std::iter::once(from.0).chain(records.iter().map(|record| record.offset.0 + 1));
    let pairs = before.zip(records.iter().map(|record| record.offset.0));
    pairs.filter(|(expected, offset)| expected != offset).count() as u64
}

/// The first offset at which two readings differ.
fn first_difference(
    first: impl Iterator<Item = LastRecord>,
    second: impl Iterator<Item = LastRecord>,
) -> Option<Offset> {
    let (mut first, mut second) = (first, second);
    loop {
        match (first.next(), second.next()) {
            (None, None) => return None,
            (Some(one), Some(other)) if one == other => {}
            (one, other) => return one.into_iter().chain(other).map(|record| record.offset).min(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::log::kafka::client::mock_client;
    use rdkafka::mocking::MockCluster;
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer as _};

    fn record(offset: u64, value: &str) -> Record {
        Record {
            offset: Offset(offset),
            ts: 7,
            key: None,
            value: value.as_bytes().to_vec(),
            is_null: false,
            headers: None,
        }
    }

    #[test]
    fn a_record_that_does_not_follow_the_one_before_is_a_gap() {
        let of = |from, offsets: &[u64]| {
            let records: Vec<Record> = offsets.iter().map(|offset| record(*offset, "")).collect();
            gaps(Offset(from), &records)
        };
        assert_eq!(of(5, &[]), 0);
        assert_eq!(of(5, &[5, 6, 7]), 0);
        assert_eq!(of(5, &[6, 7]), 1);
        assert_eq!(of(5, &[5, 7, 9]), 2);
    }

    #[test]
    fn two_readings_are_the_same_or_differ_at_an_offset() {
        let differ = |first: &[(u64, &str)], second: &[(u64, &str)]| {
            let of = |records: &[(u64, &str)]| -> Vec<LastRecord> {
                let records = records.iter().map(|(offset, value)| record(*offset, value));
                records.map(|record| LastRecord::of(&record)).collect()
            };
            first_difference(of(first).into_iter(), of(second).into_iter()).map(|offset| offset.0)
        };
        let log = [(5, "a"), (6, "b"), (8, "c")];
        assert_eq!(differ(&log, &log), None);
        assert_eq!(differ(&log, &[(5, "a"), (8, "c")]), Some(6), "hidden");
        assert_eq!(
            differ(&log, &[(5, "a"), (6, "b"), (7, "x"), (8, "c")]),
            Some(7),
            "shown"
        );
        assert_eq!(differ(&log, &log[..2]), Some(8));
        assert_eq!(differ(&log, &[(5, "a"), (6, "other"), (8, "c")]), Some(6));
    }

    /// Records that nobody takes would pile up in its client.
    #[test]
    fn a_reader_of_second_readings_ends_when_there_was_no_gap_for_a_second() {
        let cluster = MockCluster::new(1).expect("a broker inside of librdkafka");
        cluster.create_topic("events", 1, 1).expect("a topic");
        let config = mock_client(&cluster);
        let producer: BaseProducer = config.create().expect("a producer");
        for key in ["a", "b", "c"] {
            let record = BaseRecord::to("events").key(key).payload(key);
            producer.send(record).expect("there is room");
        }
        producer.flush(Duration::from_secs(60)).expect("it answers");
        let clock = Arc::new(ManualClock::new(1_000));
        let [first, other] = [(); 2].map(|()| Source::new(config.clone(), clock.clone()).expect("a client"));
        let seconds: OtherSource = Box::new(move || Ok(other.clone()));
        let mut reader =
            EventReader::new(&first, seconds, "events".into(), Partition(0), Box::new(|| {})).expect("a reader");
        let limit = Limit {
            records: 10,
            bytes: 1_000,
        };
        let mut records = Vec::new();
        while records.len() < 3 || !reader.is_at_end() {
            let next = Offset(records.len() as u64);
            reader.read(next, limit, &mut records).expect("read");
        }
        reader.read_again(Offset(0), 3, &records).expect("the same");
        let read_on = |reader: &mut EventReader| reader.read(Offset(3), limit, &mut Vec::new()).expect("read");
        clock.advance_ms(SECOND_KEPT_MS - 1);
        read_on(&mut reader);
        assert!(reader.second.is_some());
        clock.advance_ms(1);
        read_on(&mut reader);
        assert!(reader.second.is_none());
        reader
            .read_again(Offset(0), 3, &records)
            .expect("the same, with a new reader");
    }

    #[test]
    fn the_second_client_fetches_another_number_of_bytes() {
        let bytes = |first: Option<&str>| {
            let mut config = ClientConfig::new();
            first.map(|first| config.set("max.partition.fetch.bytes", first));
            let second = SecondSource::new(config, Arc::new(crate::clock::SystemClock::default()));
            assert_eq!(second.config.get("max.partition.fetch.bytes"), None);
            second.config.get("fetch.message.max.bytes").map(str::to_owned)
        };
        assert_eq!(bytes(None).as_deref(), Some("700001"));
        assert_eq!(bytes(Some("16000")).as_deref(), Some("48001"));
        assert_eq!(bytes(Some("4194304")).as_deref(), Some("700001"));
    }
}
