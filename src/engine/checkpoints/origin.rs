//! Says of which log a checkpoint is: the log has the same last record as was folded into the checkpoint, or it is another log.
//!
//! Offset, time and checksum of a record are functions of the log alone, so a log that was moved or restored from a backup
//! keeps its checkpoints, and a log that was begun again at the same location does not get those of the one before.

use crate::checkpoint::{LastFolded, Origin};
use crate::log::{self, Input, LastRecord, Limit, Range, Record};
use crate::presence::Offset;

/// One record, however large it is.
const ONE: Limit = Limit { records: 1, bytes: 1 };

/// Returns what a manifest says of the last record that was folded.
pub fn last_folded(input: Option<Input>) -> Option<LastFolded> {
    let LastRecord { offset, ts, checksum } = input?.last?;
    Some(LastFolded::new(offset, ts, checksum))
}

/// Returns of which log a checkpoint is that goes up to `next`. `range` is what the log at hand has of the events, and `read`
/// reads it as [`Log::read`](crate::log::Log::read) does.
pub fn origin(
    next: Offset,
    last: Option<&LastFolded>,
    range: Range,
    read: impl FnOnce(Offset, Limit, &mut Vec<Record>) -> Result<(), log::Error>,
) -> Origin {
    if next > range.end {
        return Origin::OtherLog;
    }
    let Some(last) = last else { return Origin::Unknown };
    if Offset(last.offset) < range.start {
        return Origin::Unknown;
    }
    let mut found = Vec::new();
    if let Err(error) = read(Offset(last.offset), ONE, &mut found) {
        // The caller does without: a log that cannot be read has other, louder messages.
        tracing::debug!(%error, "the record cannot be read that says of which log a checkpoint is");
        return Origin::Unknown;
    }
    // A log on other machines may only be slow.
    let Some(found) = found.first().map(LastRecord::of) else {
        return Origin::Unknown;
    };
    match LastFolded::new(found.offset, found.ts, found.checksum) == *last {
        true => Origin::ThisLog,
        false => Origin::OtherLog,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::RecordHeaders;

    fn record(offset: u64, ts: u64, value: &str) -> Record {
        Record {
            offset: Offset(offset),
            ts,
            key: None,
            value: value.as_bytes().to_vec(),
            is_null: false,
            headers: RecordHeaders::default().boxed(),
        }
    }

    #[test]
    fn the_record_that_was_folded_last_says_of_which_log_a_checkpoint_is() {
        let last = |record: &Record| {
            let last = LastRecord::of(record);
            LastFolded::new(last.offset, last.ts, last.checksum)
        };
        let folded = last(&record(69, 5, "x"));
        let log = |start: u64, there: Option<Record>| {
            let range = Range {
                start: Offset(start),
                end: Offset(70),
            };
            origin(Offset(70), Some(&folded), range, |_, _, into| {
                into.extend(there);
                Ok(())
            })
        };
        assert_eq!(log(0, Some(record(69, 5, "x"))), Origin::ThisLog);
        assert_eq!(log(69, Some(record(69, 5, "x"))), Origin::ThisLog);
        assert_eq!(log(0, Some(record(69, 6, "x"))), Origin::OtherLog, "another time");
        assert_eq!(log(0, Some(record(69, 5, "y"))), Origin::OtherLog, "another value");
        assert_eq!(log(0, None), Origin::Unknown, "nothing was read yet");
        assert_eq!(log(70, None), Origin::Unknown, "the log has dropped it");

        let range = Range {
            start: Offset(0),
            end: Offset(69),
        };
        let read_nothing = |_, _, _: &mut Vec<Record>| Ok(());
        assert_eq!(
            origin(Offset(70), None, range, read_nothing),
            Origin::OtherLog,
            "this log has not come so far"
        );
        assert_eq!(origin(Offset(69), None, range, read_nothing), Origin::Unknown);
        let unreadable = |_, _, _: &mut Vec<Record>| Err(log::Error::Busy);
        let other = last(&record(68, 5, "x"));
        assert_eq!(origin(Offset(69), Some(&other), range, unreadable), Origin::Unknown);
    }
}
