//! Changes of traced events on their way to those who follow them in this process.
//!
//! The change topic of the embedded log has no headers, and readers of Kafka's in this process skip them. So the engine says
//! which traced event it is about to commit, and who reads a change asks whether its event is among them. The newest ones are
//! kept, and of one event only so many deliveries are spans: a change may have ten thousand followers.

use super::{Operation, Parent, Span, SpanKind};
use crate::presence::change::Change;
use crate::presence::{Offset, Partition};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How many traced events are kept.
const KEPT: usize = 4_096;
/// How many deliveries of one event's changes are spans.
const DELIVERIES_MAX: u32 = 16;

#[derive(Debug)]
struct State {
    parent: Parent,
    partition: Partition,
    offset: Offset,
    /// When its changes were committed, in nanoseconds since 1970; until then, when it was folded.
    since: AtomicU64,
    left: AtomicU32,
}

/// What a traced event gave, to be delivered.
#[derive(Clone, Debug)]
pub struct Delivery(Arc<State>);

impl PartialEq for Delivery {
    fn eq(&self, other: &Delivery) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Delivery {}

impl Delivery {
    /// Returns the trace that it belongs to.
    pub fn parent(&self) -> Parent {
        self.0.parent
    }

    /// Notes when the changes were committed.
    pub fn committed(&self, at: Duration) {
        self.0.since.store(nanos(at), Ordering::Release);
    }

    /// Makes a span of a delivery to one follower. `by` is how.
    pub fn delivered(&self, by: &'static str, at: Duration) {
        let left = &self.0.left;
        let one_less = |left: u32| left.checked_sub(1);
        if left
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, one_less)
            .is_err()
        {
            return;
        }
        let since = Duration::from_nanos(self.0.since.load(Ordering::Acquire));
        let operation = Operation::DeliverChanges;
        let begun = Span::begin(self.0.parent, operation.span_name(), SpanKind::Producer, since.min(at));
        let Some(mut span) = begun else { return };
        span.on_topic(operation)
            .text("rollcall.delivery", by)
            .text("rollcall.event.id", format!("{}-{}", self.0.partition, self.0.offset));
        span.end(at);
    }
}

#[derive(Default)]
struct Expected {
    by_event: BTreeMap<(Partition, Offset), Delivery>,
    order: VecDeque<(Partition, Offset)>,
}

static EXPECTED: Mutex<Expected> = Mutex::new(Expected {
    by_event: BTreeMap::new(),
    order: VecDeque::new(),
});
/// How many there are, to be looked at without the lock.
static COUNT: AtomicUsize = AtomicUsize::new(0);

fn lock() -> MutexGuard<'static, Expected> {
    EXPECTED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes that a traced event was folded, before its changes are committed.
pub fn expect(parent: Parent, partition: Partition, offset: Offset, at: Duration) -> Delivery {
    let delivery = Delivery(Arc::new(State {
        parent,
        partition,
        offset,
        since: AtomicU64::new(nanos(at)),
        left: AtomicU32::new(DELIVERIES_MAX),
    }));
    let mut expected = lock();
    let event = (partition, offset);
    if expected.by_event.insert(event, delivery.clone()).is_none() {
        expected.order.push_back(event);
    }
    while expected.order.len() > KEPT
        && let Some(oldest) = expected.order.pop_front()
    {
        expected.by_event.remove(&oldest);
    }
    COUNT.store(expected.order.len(), Ordering::Release);
    delivery
}

/// Returns the delivery of a change that a traced event made, if the event was folded in this process and is still kept.
pub fn expected(change: &Change) -> Option<Delivery> {
    if COUNT.load(Ordering::Acquire) == 0 {
        return None;
    }
    // What was due by then belongs to no trace.
    let is_of_event = change.evidence == change.id.offset;
    is_of_event
        .then(|| find(change.id.partition, change.id.offset))
        .flatten()
}

fn find(partition: Partition, offset: Offset) -> Option<Delivery> {
    lock().by_event.get(&(partition, offset)).cloned()
}

fn nanos(at: Duration) -> u64 {
    u64::try_from(at.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_events_are_kept_and_a_forgotten_one_is_not_delivered() {
        let parent = Parent::for_tests();
        let (here, there) = (Partition(9), Partition(8));
        assert_eq!(find(here, Offset(0)), None);
        let first = expect(parent, here, Offset(0), Duration::ZERO);
        assert_eq!(find(here, Offset(0)), Some(first));
        for offset in 1..=KEPT as u64 {
            expect(parent, here, Offset(offset), Duration::ZERO);
        }
        assert_eq!(find(here, Offset(0)), None);
        assert!(find(here, Offset(1)).is_some() && find(here, Offset(KEPT as u64)).is_some());
        assert_eq!(find(there, Offset(1)), None);
    }
}
