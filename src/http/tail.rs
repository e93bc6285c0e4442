//! The end of a topic, read once for all subscriptions.
//!
//! One thread a topic reads what was added, in the partitions that somebody follows, and makes an event's data of each
//! record. What is newest is kept in memory; a subscription takes it from there, and reads the log itself only while it
//! is further behind. It is woken by a record of a key that it follows, and by no other.

use super::ApiError;
use crate::engine::planted::planted;
use crate::log::{self, Limit, Log, Record};
use crate::presence::change::Output;
use crate::presence::{Offset, Partition};
use crate::registry::Schemas;
use crate::schema::Malformed;
use crate::schema::json::output_line;
use crate::tasks::{self, End};
use crate::topics::Topic;
use crate::traces::{self, Delivery};
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// What is read of one partition at a time.
const READ: Limit = Limit {
    records: 512,
    bytes: 256 << 10,
};
/// What is kept of all partitions together, in bytes, and of one at most and at least.
const KEPT_BYTES: usize = 32 << 20;
const KEPT_PART_BYTES: (usize, usize) = (16 << 10, 512 << 10);

/// A record as subscriptions show it.
#[derive(Debug)]
pub struct ShownRecord {
    pub offset: Offset,
    pub key: Option<Vec<u8>>,
    /// The name of the event.
    pub name: &'static str,
    /// One line of JSON.
    pub line: String,
    /// If it is a change of a traced event.
    pub delivery: Option<Delivery>,
}

/// Makes what is shown of a record.
pub fn show(topic: Topic, record: &Record, schemas: &Schemas) -> Result<ShownRecord, ApiError> {
    let value = &record.value;
    let read = match topic {
        Topic::Kicks => schemas
            .kick(value)
            .map(|kick| kick.map(|kick| ("kick", Output::Kick(kick)))),
        Topic::Changes | Topic::Events | Topic::Quarantine => schemas
            .change(value)
            .map(|change| change.map(|change| ("change", Output::Change(change)))),
    };
    // Its writer may have had another schema of the registry's, which does not answer.
    let (name, output) = read?.map_err(|malformed: Malformed| {
        ApiError::from(log::Error::Read(
            format!("offset {} of {topic}: {malformed}", record.offset).into(),
        ))
    })?;
    let mut line = Vec::new();
    output_line(&mut line, &output);
    let delivery = match &output {
        Output::Change(change) => traces::expected(change),
        Output::Kick(_) | Output::Ignored(_) => None,
    };
    Ok(ShownRecord {
        offset: record.offset,
        key: record.key.clone(),
        name,
        line: String::from_utf8_lossy(&line).into_owned(),
        delivery,
    })
}

/// A subscription, as the tail knows it.
#[derive(Default)]
pub struct Subscriber {
    /// Something it follows was added.
    pub woken: Notify,
    /// Where.
    dirty: Mutex<BTreeSet<Partition>>,
}

impl Subscriber {
    fn dirty(&self) -> MutexGuard<'_, BTreeSet<Partition>> {
        self.dirty.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// That there is, or may be, something to read in a partition.
    pub fn mark(&self, partition: Partition) {
        self.dirty().insert(partition);
    }

    /// A partition that is to be read, the next after another one; it counts as read from now on.
    pub fn take_dirty(&self, after: Partition) -> Option<Partition> {
        let mut dirty = self.dirty();
        let next = dirty
            .range((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded))
            .next();
        let next = next.or_else(|| dirty.first()).copied()?;
        dirty.remove(&next);
        Some(next)
    }

    fn wake(&self, partition: Partition) {
        self.mark(partition);
        self.woken.notify_one();
    }
}

type Subscribers = HashMap<u64, Arc<Subscriber>>;

/// One partition.
#[derive(Default)]
struct TailPartition {
    /// Who follows everything, and who some keys.
    all: Subscribers,
    by_key: HashMap<Vec<u8>, Subscribers>,
    followers: usize,
    /// What is known here: the records from `from` up to before `end`. None while nobody follows, or after it could not
    /// be read: then every follower reads for himself, and meets what is wrong.
    known: Option<(Offset, Offset)>,
    kept: VecDeque<Arc<ShownRecord>>,
    bytes: usize,
}

impl TailPartition {
    fn forget(&mut self) {
        self.known = None;
        self.kept = VecDeque::new();
        self.bytes = 0;
    }

    fn wake_all(&self, partition: Partition) {
        let by_key = self.by_key.values().flat_map(HashMap::values);
        self.all.values().chain(by_key).for_each(|one| one.wake(partition));
    }
}

/// What there is for a subscription in a partition.
pub enum Taken {
    /// Those that it follows, where it stands after them, and whether there is more.
    Here(Vec<Arc<ShownRecord>>, Offset, bool),
    /// It is further behind, or nothing is known here: it reads the log.
    Behind,
}

/// See the module.
pub struct Tail {
    topic: Topic,
    parts: Vec<Mutex<TailPartition>>,
    /// How many follow each partition, to be looked at without a lock.
    followed: Vec<AtomicUsize>,
    part_bytes: usize,
    next_id: AtomicU64,
    work: Mutex<Work>,
    more: Condvar,
}

#[derive(Default)]
struct Work {
    /// Partitions to which something was added.
    added: BTreeSet<Partition>,
    ended: bool,
}

impl Tail {
    /// Returns a tail that keeps so many bytes of each partition, and that reads when [`Tail::look`] is called.
    pub fn new(topic: Topic, partitions: u32, part_bytes: usize) -> Arc<Tail> {
        Arc::new(Tail {
            topic,
            parts: (0..partitions).map(|_| Mutex::default()).collect(),
            followed: (0..partitions).map(|_| AtomicUsize::new(0)).collect(),
            part_bytes,
            next_id: AtomicU64::new(0),
            work: Mutex::default(),
            more: Condvar::new(),
        })
    }

    /// Reads a log for as long as what is returned lives.
    pub fn start(topic: Topic, log: Arc<dyn Log>, schemas: Schemas) -> std::io::Result<TailOwner> {
        let (least, most) = KEPT_PART_BYTES;
        let part_bytes = (KEPT_BYTES / (log.partitions() as usize).max(1)).clamp(least, most);
        let tail = Tail::new(topic, log.partitions(), part_bytes);
        let read = tail.clone();
        tasks::spawn("http-tail", move || {
            read.run(&*log, &schemas);
            End::Asked
        })?;
        Ok(TailOwner(tail))
    }

    fn work(&self) -> MutexGuard<'_, Work> {
        self.work.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn part(&self, partition: Partition) -> Option<MutexGuard<'_, TailPartition>> {
        let part = self.parts.get(partition.0 as usize)?;
        Some(part.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Something was added to a partition.
    pub fn added(&self, partition: Partition) {
        let followed = self.followed.get(partition.0 as usize);
        if followed.is_some_and(|followed| followed.load(Ordering::Acquire) > 0) {
            self.work().added.insert(partition);
            self.more.notify_one();
        }
    }

    fn run(&self, log: &dyn Log, schemas: &Schemas) {
        loop {
            let mut work = self.work();
            while work.added.is_empty() && !work.ended {
                work = self.more.wait(work).unwrap_or_else(PoisonError::into_inner);
            }
            if work.ended {
                return;
            }
            drop(work);
            self.look(log, schemas);
        }
    }

    /// Reads what was added.
    pub fn look(&self, log: &dyn Log, schemas: &Schemas) {
        let added = std::mem::take(&mut self.work().added);
        for partition in added {
            // A panic is a bug of ours, and no reason for subscriptions to fall silent.
            let read = catch_unwind(AssertUnwindSafe(|| self.read(partition, log, schemas)));
            if !matches!(read, Ok(Ok(())))
                && let Some(mut part) = self.part(partition)
            {
                part.forget();
                part.wake_all(partition);
            }
        }
    }

    /// Reads a partition to its end.
    fn read(&self, partition: Partition, log: &dyn Log, schemas: &Schemas) -> Result<(), ApiError> {
        loop {
            let known = self.part(partition).and_then(|part| {
                if part.known.is_none() {
                    part.wake_all(partition);
                }
                part.known
            });
            let Some((_, end)) = known else { return Ok(()) };
            let mut records = Vec::new();
            log.read(self.topic, partition, end, READ, &mut records)?;
            if records.is_empty() {
                return Ok(());
            }
            let shown = records
                .iter()
                .map(|record| show(self.topic, record, schemas).map(Arc::new));
            let shown: Vec<Arc<ShownRecord>> = shown.collect::<Result<_, _>>()?;
            let Some(mut part) = self.part(partition) else {
                return Ok(());
            };
            // Everybody may have left meanwhile, and others come.
            if part.known.map(|(_, end)| end) != Some(end) {
                continue;
            }
            for shown in shown {
                part.all.values().for_each(|one| one.wake(partition));
                if let Some(some) = shown.key.as_ref().and_then(|key| part.by_key.get(key)) {
                    some.values().for_each(|one| one.wake(partition));
                }
                let next = Offset(shown.offset.0 + 1);
                part.bytes += shown.line.len();
                part.kept.push_back(shown);
                let from = part.known.map_or(next, |(from, _)| from);
                part.known = Some((from, next));
            }
            while part.bytes > self.part_bytes
                && let Some(oldest) = part.kept.pop_front()
            {
                part.bytes -= oldest.line.len();
                let end = part.known.map_or(oldest.offset, |(_, end)| end);
                part.known = Some((Offset(oldest.offset.0 + 1), end));
            }
        }
    }

    /// What there is from an offset on, of some keys or (none) all, about so many bytes.
    pub fn take(&self, partition: Partition, next: Offset, keys: &BTreeSet<Vec<u8>>, bytes: usize) -> Taken {
        let Some(part) = self.part(partition) else {
            return Taken::Behind;
        };
        let Some((from, end)) = part.known.filter(|(from, _)| *from <= next || planted!(TailHole)) else {
            return Taken::Behind;
        };
        let first = part.kept.partition_point(|shown| shown.offset < next);
        let mut taken = Vec::new();
        let mut left = bytes;
        for shown in part.kept.iter().skip(first) {
            let wanted = keys.is_empty() || shown.key.as_ref().is_some_and(|key| keys.contains(key));
            if !wanted {
                continue;
            }
            taken.push(shown.clone());
            left = left.saturating_sub(shown.line.len());
            if left == 0 {
                return Taken::Here(taken, Offset(shown.offset.0 + 1), true);
            }
        }
        debug_assert!(from <= end, "what is known begins before it ends");
        Taken::Here(taken, next.max(end), false)
    }

    /// Returns how many bytes of events' data are kept.
    pub fn bytes(&self) -> usize {
        let part = |part: &Mutex<TailPartition>| part.lock().unwrap_or_else(PoisonError::into_inner).bytes;
        self.parts.iter().map(part).sum()
    }

    /// Where a subscriber may stand who has read everything that he was woken for: the end, unless he is woken already.
    pub fn end_for(&self, partition: Partition, subscriber: &Subscriber) -> Option<Offset> {
        let part = self.part(partition)?;
        let (_, end) = part.known?;
        (!subscriber.dirty().contains(&partition)).then_some(end)
    }
}

/// Ends the tail's thread when it is dropped.
pub struct TailOwner(Arc<Tail>);

impl std::ops::Deref for TailOwner {
    type Target = Arc<Tail>;
    fn deref(&self) -> &Arc<Tail> {
        &self.0
    }
}

impl Drop for TailOwner {
    fn drop(&mut self) {
        self.0.work().ended = true;
        self.0.more.notify_one();
    }
}

/// A subscriber's places in the tail, until it is dropped.
pub struct TailSubscription {
    tail: Arc<Tail>,
    id: u64,
    pub subscriber: Arc<Subscriber>,
    partitions: Vec<Partition>,
    keys: Arc<BTreeSet<Vec<u8>>>,
}

impl TailSubscription {
    /// Follows partitions from where they end at the moment, as far as it is not known already. It is to read each of
    /// them once: what it follows may be behind.
    pub fn begin(tail: Arc<Tail>, ends: Vec<(Partition, Offset)>, keys: Arc<BTreeSet<Vec<u8>>>) -> TailSubscription {
        let id = tail.next_id.fetch_add(1, Ordering::Relaxed);
        let subscriber = Arc::new(Subscriber::default());
        let mut partitions = Vec::with_capacity(ends.len());
        for (partition, end) in ends {
            subscriber.mark(partition);
            partitions.push(partition);
            let Some(mut part) = tail.part(partition) else { continue };
            if keys.is_empty() {
                part.all.insert(id, subscriber.clone());
            } else {
                for key in &*keys {
                    let some = part.by_key.entry(key.clone()).or_default();
                    some.insert(id, subscriber.clone());
                }
            }
            part.followers += 1;
            if part.followers == 1 {
                part.known = Some((end, end));
            }
            drop(part);
            if let Some(followed) = tail.followed.get(partition.0 as usize) {
                followed.fetch_add(1, Ordering::AcqRel);
            }
            // What came since the end was asked for.
            tail.added(partition);
        }
        TailSubscription {
            tail,
            id,
            subscriber,
            partitions,
            keys,
        }
    }

    pub fn tail(&self) -> &Tail {
        &self.tail
    }
}

impl Drop for TailSubscription {
    fn drop(&mut self) {
        for partition in &self.partitions {
            let Some(mut part) = self.tail.part(*partition) else {
                continue;
            };
            part.all.remove(&self.id);
            for key in &*self.keys {
                let is_empty = part.by_key.get_mut(key).is_some_and(|some| {
                    some.remove(&self.id);
                    some.is_empty()
                });
                if is_empty {
                    part.by_key.remove(key);
                }
            }
            part.followers -= 1;
            if part.followers == 0 {
                part.forget();
            }
            drop(part);
            if let Some(followed) = self.tail.followed.get(partition.0 as usize) {
                followed.fetch_sub(1, Ordering::AcqRel);
            }
        }
    }
}
