//! The traces of events that are on their way to the engine.
//!
//! Records of this log have no headers on disk. The header [`TRACE_HEADER`] of an event is kept in memory from its append until
//! the engine has read it, of the newest events only. So an event that is folded after a restart has no trace, and every other
//! reader sees none.

use super::locked;
use crate::log::{Headers, Record, RecordHeaders, TRACE_HEADER};
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// How many are kept of a partition.
const KEPT: usize = 1_024;

/// The traces of a partition.
#[derive(Default)]
pub(super) struct TracedEvents {
    /// There is one, to be looked at without the lock.
    any: AtomicBool,
    /// By offset, in order.
    traces: Mutex<VecDeque<(u64, Box<[u8]>)>>,
}

impl TracedEvents {
    /// Keeps the trace of a record that was appended. Offsets only grow; one that comes again was not written the first time.
    pub fn note(&self, offset: u64, headers: &Headers) {
        let Some((_, trace)) = headers.iter().find(|(name, _)| *name == TRACE_HEADER) else {
            return;
        };
        let mut traces = locked(&self.traces);
        while traces.back().is_some_and(|(last, _)| *last >= offset) {
            traces.pop_back();
        }
        if traces.len() >= KEPT {
            traces.pop_front();
        }
        traces.push_back((offset, trace.as_slice().into()));
        self.any.store(true, Ordering::Release);
    }

    /// Gives records that the engine has read their traces, and forgets those of all records before.
    pub fn give(&self, records: &mut [Record]) {
        if !self.any.load(Ordering::Acquire) {
            return;
        }
        let Some(first) = records.first().map(|record| record.offset.0) else {
            return;
        };
        let mut traces = locked(&self.traces);
        while traces.front().is_some_and(|(offset, _)| *offset < first) {
            traces.pop_front();
        }
        // They stay until the next read: one that fails is repeated.
        for (offset, trace) in traces.iter() {
            let Ok(at) = records.binary_search_by_key(offset, |record| record.offset.0) else {
                break;
            };
            records[at].headers = RecordHeaders {
                traceparent: Some(trace.clone()),
                ..RecordHeaders::default()
            }
            .boxed();
        }
        self.any.store(!traces.is_empty(), Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::Offset;

    fn read(of: &TracedEvents, offsets: std::ops::Range<u64>) -> Vec<Option<String>> {
        let record = |offset| Record {
            offset: Offset(offset),
            ts: 1,
            key: None,
            value: Vec::new(),
            is_null: false,
            headers: None,
        };
        let mut records: Vec<Record> = offsets.map(record).collect();
        of.give(&mut records);
        let trace = |record: &Record| {
            record
                .traceparent()
                .map(|trace| String::from_utf8_lossy(trace).into_owned())
        };
        records.iter().map(trace).collect()
    }

    fn header(trace: &str) -> Headers {
        vec![("other", vec![1]), (TRACE_HEADER, trace.as_bytes().to_vec())]
    }

    #[test]
    fn an_event_has_its_trace_as_often_as_it_is_read_and_others_have_none() {
        let traced = TracedEvents::default();
        let text = |trace: &str| Some(trace.to_owned());
        traced.note(3, &Vec::new());
        traced.note(4, &header("a"));
        traced.note(6, &header("b"));
        assert_eq!(read(&traced, 0..0), []);
        for _ in 0..2 {
            assert_eq!(read(&traced, 3..6), [None, text("a"), None]);
        }
        // What was not written the first time is appended at the same offset.
        traced.note(5, &header("c"));
        assert_eq!(read(&traced, 5..8), [text("c"), None, None]);
        assert_eq!(read(&traced, 8..9), [None]);
        assert_eq!(read(&traced, 5..6), [None], "it was forgotten");
    }

    #[test]
    fn only_the_newest_traces_are_kept() {
        let traced = TracedEvents::default();
        for offset in 0..=KEPT as u64 {
            traced.note(offset, &header("a"));
        }
        let read = read(&traced, 0..KEPT as u64 + 1);
        assert_eq!(
            (read[0].is_some(), read[1].is_some(), read[KEPT].is_some()),
            (false, true, true)
        );
    }
}
