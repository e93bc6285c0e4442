//! Spans of traced events, from their fold until their changes are committed.
//!
//! The fold itself knows nothing of traces: the partition notes when the fold of a traced record began and ended, and makes the
//! spans once a commit that includes the record has succeeded. So a record that is folded again gives none, whether it was
//! committed before or its commit has failed. The notes of a partition that ends are dropped.

use super::rejected::Rejected;
use crate::metrics;
use crate::presence::event::Event;
use crate::presence::{Offset, Partition};
use crate::traces::{self, Delivery, Operation, Parent, Span, SpanKind};
use std::time::Duration;

/// How many records may wait for their commit. More are not traced, and counted.
const PENDING_MAX: usize = 4_096;

/// Records that were folded and wait for their commit.
#[derive(Default)]
pub struct TracedRecords {
    /// The record that is being folded.
    open: Option<(Parent, Duration)>,
    pending: Vec<Folded>,
}

struct Folded {
    parent: Parent,
    offset: Offset,
    began: Duration,
    ended: Duration,
    /// The type of the event, or why the record is malformed.
    event: Result<&'static str, &'static str>,
    /// How many changes and kicks it gave.
    outputs: u64,
    delivery: Option<Delivery>,
}

impl TracedRecords {
    /// The fold of a traced record begins.
    pub fn begin(&mut self, parent: Parent, now: Duration) {
        if self.pending.len() < PENDING_MAX {
            self.open = Some((parent, now));
        } else {
            metrics::spans("queue_full", 1);
        }
    }

    /// Whether a traced record is being folded.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Whether no record waits for its commit.
    pub fn is_empty(&self) -> bool {
        self.pending.is_empty()
    }

    /// The fold of the record has ended.
    pub fn folded(
        &mut self,
        (partition, offset): (Partition, Offset),
        event: Result<&Event<'_>, &Rejected>,
        outputs: u64,
        now: Duration,
    ) {
        let Some((parent, began)) = self.open.take() else {
            return;
        };
        let delivery = (outputs > 0).then(|| traces::expect(parent, partition, offset, now));
        self.pending.push(Folded {
            parent,
            offset,
            began,
            ended: now,
            event: event.map(Event::name).map_err(|rejected| rejected.reason.name()),
            outputs,
            delivery,
        });
    }

    /// Everything before this offset is committed.
    pub fn committed(&mut self, partition: Partition, next: Offset, now: Duration) {
        let count = self.pending.partition_point(|folded| folded.offset < next);
        for folded in self.pending.drain(..count) {
            folded.export(partition, now);
        }
    }
}

impl Folded {
    fn export(self, partition: Partition, now: Duration) {
        if let Some(delivery) = &self.delivery {
            delivery.committed(now);
        }
        let operation = Operation::ProcessEvents;
        let Some(mut process) = Span::begin(self.parent, operation.span_name(), SpanKind::Consumer, self.began) else {
            return;
        };
        process.on_topic(operation).at_event(partition.0, self.offset.0);
        match self.event {
            Ok(event) => process.text("rollcall.event.type", event),
            Err(reason) => process.failed(reason),
        };
        process.number("rollcall.outputs", self.outputs);
        if let Some(fold) = Span::begin(process.context(), "fold", SpanKind::Internal, self.began) {
            fold.end(self.ended);
        }
        if self.outputs == 0 {
            // The position alone is committed, whenever it is due.
            return process.end(self.ended);
        }
        let operation = Operation::SendChanges;
        if let Some(mut send) = Span::begin(process.context(), operation.span_name(), SpanKind::Producer, self.ended) {
            send.on_topic(operation)
                .text("messaging.destination.partition.id", partition.to_string())
                .number("messaging.batch.message_count", self.outputs);
            send.end(now);
        }
        process.end(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, ManualClock};
    use crate::engine::Tuning;
    use crate::engine::partition::PartitionProcessor;
    use crate::log::memory::MemoryLog;
    use crate::log::{Limit, Log as _, NewRecord, TRACE_HEADER};
    use crate::presence::policy::Policy;
    use crate::schema::avro;
    use crate::traces::tests::IS_ON;
    use std::sync::Arc;

    #[test]
    fn what_was_committed_before_a_start_gives_no_spans_again() {
        let clock = Arc::new(ManualClock::new(1_000));
        let log = MemoryLog::new(1, clock.clone());
        let append = |user: &str, traceparent: &str| {
            let event = Event::CustomStatus {
                user: user.into(),
                text: None,
            };
            let mut value = Vec::new();
            avro::encode_event(&event, &mut value);
            let record = NewRecord {
                key: Some(user.as_bytes().to_vec()),
                value,
                headers: vec![(TRACE_HEADER, traceparent.as_bytes().to_vec())],
            };
            log.append(vec![(Partition(0), record)], Box::new(|_| {}));
        };
        let open = || {
            let owned = log.take_up(Partition(0)).expect("taken up");
            let clock: Arc<dyn Clock> = clock.clone();
            PartitionProcessor::open(owned, None, &Policy::default(), clock, Tuning::default()).expect("opened")
        };
        let pending = |processor: &PartitionProcessor| -> Vec<u64> {
            let pending = processor.traced().pending.iter();
            pending.map(|folded| folded.offset.0).collect()
        };
        let all = Limit {
            records: 100,
            bytes: 100_000,
        };
        IS_ON.set(true);
        const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
        append("alice", TRACE);
        append("bob", &TRACE.replace("-01", "-00"));
        append("carol", "no trace");
        let mut processor = open();
        assert_eq!(processor.step(all).expect("folded").records, 3);
        assert_eq!(pending(&processor), [0], "only a sampled trace counts");
        processor.commit_store().expect("committed");
        assert_eq!(pending(&processor), [0_u64; 0]);
        drop(processor);

        append("alice", TRACE);
        let mut processor = open();
        assert_eq!(processor.step(all).expect("folded").records, 4);
        assert_eq!(pending(&processor), [3]);
        IS_ON.set(false);
    }

    #[test]
    fn records_wait_for_a_commit_that_includes_them_and_not_without_bound() {
        let mut traced = TracedRecords::default();
        let parent = Parent::for_tests();
        let at = |offset| (Partition(0), Offset(offset));
        traced.folded(at(0), Ok(&Event::Tick), 0, Duration::ZERO);
        assert!(traced.is_empty(), "it has no trace");
        for offset in 0..PENDING_MAX as u64 + 5 {
            traced.begin(parent, Duration::ZERO);
            if traced.is_open() {
                traced.folded(at(offset), Ok(&Event::Tick), 0, Duration::ZERO);
            }
        }
        assert_eq!(traced.pending.len(), PENDING_MAX);
        traced.committed(Partition(0), Offset(10), Duration::ZERO);
        assert_eq!(traced.pending.len(), PENDING_MAX - 10);
        assert_eq!(traced.pending[0].offset, Offset(10));
        traced.committed(Partition(0), Offset(PENDING_MAX as u64), Duration::ZERO);
        assert!(traced.is_empty() && !traced.is_open());
    }
}
