//! The topic of incidents in the embedded log: a few records, each under a key of its own in the column family that is always
//! there. So a version that knows no incidents opens the log too, and leaves them as they are.
//!
//! A commit is not synced. What a power cut takes of it is found again.

use super::tables::{Damage, Tables};
use super::{AppenderState, keys, locked};
use crate::log::{Error, IncidentPosition, IncidentWriter, Limit, NewRecord, Range, Record};
use crate::presence::Offset;
use rocksdb::{ReadOptions, WriteBatch};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// The bytes of a stored record before its key: the time and the length of the key.
const HEAD: usize = 8 + 4;

/// See [`IncidentWriter`].
pub(super) struct LocalIncidents {
    shared: Arc<AppenderState>,
    /// Which of the writers this is.
    writer: u64,
}

impl LocalIncidents {
    pub fn take_up(shared: Arc<AppenderState>) -> LocalIncidents {
        let writer = {
            let mut writers = locked(&shared.incident_writers);
            *writers += 1;
            *writers
        };
        LocalIncidents { shared, writer }
    }
}

impl IncidentWriter for LocalIncidents {
    fn position(&mut self) -> Result<Option<IncidentPosition>, Error> {
        let open = self.shared.opened();
        let tables = self.shared.tables(&open)?;
        let stored = tables.db().get_cf(tables.meta(), keys::INCIDENT_POSITION);
        let stored = stored.map_err(|error| Damage::from(error).reading(&self.shared.dir))?;
        let read = |bytes: Vec<u8>| {
            position_of(&bytes).ok_or_else(|| {
                Damage::new("the position of the incidents is not one of this version".to_owned())
                    .reading(&self.shared.dir)
            })
        };
        stored.map(read).transpose()
    }

    fn commit(&mut self, records: &[NewRecord], position: &IncidentPosition) -> Result<(), Error> {
        let shared = &*self.shared;
        if shared.closed.load(Ordering::Acquire) {
            return Err(Error::Closed);
        }
        // Held while it is written, so that no earlier writer comes in between.
        let writers = locked(&shared.incident_writers);
        if *writers != self.writer {
            return Err(Error::Write("the writing of incidents was taken over".into()));
        }
        let open = shared.writable()?;
        let tables = shared.tables(&open)?;
        let now_ms = shared.time.stamp_ms().unwrap_or_else(|_| shared.time.now_ms());
        let damaged = |damage: Damage| damage.reading(&shared.dir);
        let Range { start, end } = range(tables).map_err(damaged)?;
        let mut batch = WriteBatch::default();
        for (record, offset) in records.iter().zip(end.0..) {
            batch.put_cf(tables.meta(), keys::incident(offset), stored(record, now_ms));
        }
        batch.put_cf(tables.meta(), keys::INCIDENT_POSITION, position_bytes(position));
        if let (false, Some(keep_ms)) = (records.is_empty(), shared.settings.retention_ms) {
            let horizon = now_ms.saturating_sub(keep_ms);
            let first_kept = first_since(tables, start, end, horizon).map_err(damaged)?;
            batch.delete_range_cf(tables.meta(), keys::incident(0), keys::incident(first_kept.0));
        }
        shared.put(tables, batch, false)
    }
}

/// Adds records from an offset on, and returns what is kept.
pub(super) fn read(tables: &Tables, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<Range, Damage> {
    let range = range(tables)?;
    let mut entries = tables.db().raw_iterator_cf_opt(tables.meta(), from_on(from));
    entries.seek_to_first();
    let mut bytes = 0;
    for _ in 0..limit.records {
        let Some((key, value)) = entries.item() else { break };
        let record = offset_of(key).and_then(|offset| record_of(offset, value));
        let record =
            record.ok_or_else(|| Damage::new(format!("the incident {} cannot be read", key.escape_ascii())))?;
        if bytes > 0 && bytes + record.value.len() > limit.bytes {
            break;
        }
        bytes += record.value.len();
        into.push(record);
        entries.next();
    }
    entries.status()?;
    Ok(range)
}

/// Returns what is kept: the newest record always is.
fn range(tables: &Tables) -> Result<Range, Damage> {
    let mut entries = tables.db().raw_iterator_cf_opt(tables.meta(), from_on(Offset(0)));
    let mut at = |first: bool| -> Result<Option<Offset>, Damage> {
        match first {
            true => entries.seek_to_first(),
            false => entries.seek_to_last(),
        }
        let found = entries.key().and_then(offset_of);
        entries.status()?;
        Ok(found)
    };
    let start = at(true)?.unwrap_or_default();
    let end = at(false)?.map_or(start, |last| Offset(last.0 + 1));
    Ok(Range { start, end })
}

/// Returns the first record since a time, or the newest one.
fn first_since(tables: &Tables, start: Offset, end: Offset, since_ms: u64) -> Result<Offset, Damage> {
    let mut records = Vec::new();
    let mut next = start;
    while next.0 + 1 < end.0 {
        records.clear();
        read(tables, next, Limit { records: 1, bytes: 1 }, &mut records)?;
        match records.first() {
            Some(record) if record.ts < since_ms => next = Offset(record.offset.0 + 1),
            Some(_) | None => break,
        }
    }
    Ok(next)
}

fn from_on(from: Offset) -> ReadOptions {
    let mut options = ReadOptions::default();
    options.set_iterate_lower_bound(keys::incident(from.0));
    options.set_iterate_upper_bound(keys::incident(u64::MAX));
    options
}

fn offset_of(key: &[u8]) -> Option<Offset> {
    let number = key.strip_prefix(keys::INCIDENT)?;
    Some(Offset(u64::from_be_bytes(number.try_into().ok()?)))
}

fn stored(record: &NewRecord, ts: u64) -> Vec<u8> {
    let key = record.key.as_deref().unwrap_or_default();
    let mut bytes = Vec::with_capacity(HEAD + key.len() + record.value.len());
    bytes.extend_from_slice(&ts.to_be_bytes());
    bytes.extend_from_slice(&(key.len() as u32).to_be_bytes());
    bytes.extend_from_slice(key);
    bytes.extend_from_slice(&record.value);
    bytes
}

fn record_of(offset: Offset, bytes: &[u8]) -> Option<Record> {
    let (ts, rest) = bytes.split_first_chunk()?;
    let (length, rest) = rest.split_first_chunk()?;
    let (key, value) = rest.split_at_checked(u32::from_be_bytes(*length) as usize)?;
    Some(Record {
        offset,
        ts: u64::from_be_bytes(*ts),
        key: Some(key.to_owned()),
        value: value.to_owned(),
        is_null: false,
        headers: None,
    })
}

fn position_bytes(position: &IncidentPosition) -> Vec<u8> {
    let mut bytes = (position.next.len() as u32).to_be_bytes().to_vec();
    for next in &position.next {
        bytes.extend_from_slice(&next.0.to_be_bytes());
    }
    bytes.extend_from_slice(&position.note);
    bytes
}

fn position_of(bytes: &[u8]) -> Option<IncidentPosition> {
    let (count, rest) = bytes.split_first_chunk()?;
    let (next, note) = rest.split_at_checked((u32::from_be_bytes(*count) as usize).checked_mul(8)?)?;
    let (next, _) = next.as_chunks();
    Some(IncidentPosition {
        next: next.iter().map(|next| Offset(u64::from_be_bytes(*next))).collect(),
        note: note.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_and_a_position_are_read_as_they_were_written() {
        let record = NewRecord {
            key: Some(b"1-5".to_vec()),
            value: b"value".to_vec(),
            headers: Vec::new(),
        };
        let bytes = stored(&record, 7);
        assert_eq!(bytes, b"\0\0\0\0\0\0\0\x07\0\0\0\x031-5value");
        let read = record_of(Offset(3), &bytes).expect("a record");
        assert_eq!((read.offset, read.ts), (Offset(3), 7));
        assert_eq!((read.key.as_deref(), &*read.value), (Some(&b"1-5"[..]), &b"value"[..]));
        assert_eq!(record_of(Offset(3), &bytes[..14]), None);
        for next in [vec![], vec![Offset(1), Offset(u64::MAX)]] {
            let position = IncidentPosition {
                next,
                note: b"note".to_vec(),
            };
            assert_eq!(position_of(&position_bytes(&position)), Some(position));
        }
        let position = IncidentPosition {
            next: vec![Offset(5)],
            note: b"note".to_vec(),
        };
        assert_eq!(position_bytes(&position), *b"\0\0\0\x01\0\0\0\0\0\0\0\x05note");
        assert_eq!(position_of(&[0, 0, 0, 1, 0]), None);
    }
}
