//! Decides when a partition's store is copied for others, and when such a copy replaces the store on disk.
//!
//! A worker makes a copy with hard links, which takes a moment. One thread for all partitions then hashes and sends
//! the copies, one after the other. A partition whose last copy is not sent yet makes no new one.

mod origin;

pub use origin::{last_folded, origin};

use super::partition::input_of;
use crate::checkpoint::{Checkpoints, Error, LastFolded, Listed, Name, Origin};
use crate::failpoint;
use crate::log::{Log, Range};
use crate::metrics;
use crate::presence::{Offset, Partition};
use crate::store::{self, Applied, Store};
use crate::tasks::{self, End};
use crate::topics::Topic;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// A point in a partition: the next offset to be folded, and how many of its outputs are committed.
type Point = (Offset, u64);

/// What the log holds of a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogBounds {
    /// The oldest event kept.
    pub start: Offset,
    pub end: Offset,
    pub committed: Point,
}

/// Makes checkpoints and restores them.
pub struct Checkpointer {
    checkpoints: Checkpoints,
    every_ms: u64,
    /// Where copies wait to be sent, on the same file system as the stores.
    waiting: PathBuf,
    sender: Sender<Copy>,
    shared: Arc<Mutex<CheckpointerState>>,
}

#[derive(Default)]
struct CheckpointerState {
    /// Partitions with a copy that is not sent yet.
    under_way: BTreeSet<Partition>,
    /// The warnings found after the last checkpoint was published.
    warnings: BTreeMap<Partition, Arc<str>>,
    /// The checkpoints that were restored and not folded on to the committed position yet.
    restored: BTreeMap<Partition, Listed>,
    /// Those from which the fold gave something else than is committed. They are not restored again.
    given_up: BTreeSet<(Partition, Name)>,
}

struct Copy {
    partition: Partition,
    directory: PathBuf,
    reach: LogBounds,
    /// Not kept open by a copy that waits.
    log: Weak<dyn Log>,
}

impl Checkpointer {
    /// Starts the thread that sends copies. They wait in a directory; copies of an earlier process are removed from
    /// it.
    pub fn start(checkpoints: Checkpoints, every_ms: u64, waiting: PathBuf) -> std::io::Result<Checkpointer> {
        std::fs::create_dir_all(&waiting)?;
        for entry in std::fs::read_dir(&waiting)? {
            let entry = entry?;
            // A copy's directory has the partition's number as its name.
            let is_copy = entry
                .file_name()
                .to_str()
                .is_some_and(|name| name.parse::<u32>().is_ok());
            if is_copy && entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            }
        }
        let (sender, copies) = channel();
        let shared = Arc::new(Mutex::new(CheckpointerState::default()));
        let (place, done) = (checkpoints.clone(), shared.clone());
        // The thread ends with the process. A copy that is only half sent then is not a checkpoint yet and does no
        // harm.
        tasks::spawn("checkpoints", move || {
            publish(&place, &copies, &done);
            End::Asked
        })?;
        Ok(Checkpointer {
            checkpoints,
            every_ms,
            waiting,
            sender,
            shared,
        })
    }

    /// The time between two checkpoints of a partition.
    pub fn every_ms(&self) -> u64 {
        self.every_ms
    }

    /// Returns the directory for a copy of a partition; `None` while the last copy is not sent yet.
    pub fn place(&self, partition: Partition) -> Option<PathBuf> {
        (!locked(&self.shared).under_way.contains(&partition)).then(|| self.waiting.join(partition.to_string()))
    }

    /// Takes a copy that was made in that directory, to send it. The log says which checkpoints are of another one.
    pub fn take(&self, partition: Partition, directory: PathBuf, reach: LogBounds, log: &Arc<dyn Log>) {
        locked(&self.shared).under_way.insert(partition);
        // The thread ends only when this sender is dropped.
        let _ = self.sender.send(Copy {
            partition,
            directory,
            reach,
            log: Arc::downgrade(log),
        });
    }

    /// Returns the warning about a partition's checkpoints, as of the last one that was made here.
    pub fn warning(&self, partition: Partition) -> Option<Arc<str>> {
        locked(&self.shared).warnings.get(&partition).cloned()
    }

    /// Replaces the store by a checkpoint of this log if the store cannot be used, or if it is so far behind that fetching is
    /// quicker than folding `worth` records. Returns an error only if the partition cannot go on without a checkpoint.
    pub fn restore(
        &self,
        partition: Partition,
        store: &Path,
        reach: LogBounds,
        worth: u64,
        log: &dyn Log,
    ) -> Result<(), Error> {
        locked(&self.shared).restored.remove(&partition);
        let own = standing(store, partition)?.filter(|own| reach.allows(*own));
        if reach.committed.0 == Offset(0) || own.is_some_and(|own| reach.committed.0.0 - own.0.0 <= worth) {
            return Ok(());
        }
        let found = self.checkpoints.newest(partition).and_then(|listed| {
            let mut listed = self.of_this_log(partition, listed, reach, log);
            let fresh = self.not_given_up(partition, &listed);
            // Without the beginning of the log there is nothing better than one that was given up, and its error stays.
            if reach.start == Offset(0) || choose(own, reach, &fresh, worth).is_some() {
                listed = fresh;
            }
            let Some(newest) = choose(own, reach, &listed, worth) else {
                return Ok(None);
            };
            tracing::info!(%partition, next = %newest.next, "fetching a store from a checkpoint");
            self.fetch(partition, store, (own, reach), &listed, log)
        });
        match found {
            Ok(Some(applied)) => {
                tracing::info!(%partition, next = %applied.next, "the store was restored from a checkpoint");
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(error) if own.is_some() || reach.start == Offset(0) => {
                tracing::warn!(%partition, %error, "no checkpoint can be restored, folding the log instead");
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Returns the checkpoints that are not of another log.
    fn of_this_log(&self, partition: Partition, listed: Vec<Listed>, reach: LogBounds, log: &dyn Log) -> Vec<Listed> {
        let is_other = |one: &Listed| origin_in(log, partition, reach, one) == Origin::OtherLog;
        let (others, own): (Vec<Listed>, Vec<Listed>) = listed.into_iter().partition(is_other);
        let others: Vec<Name> = others.into_iter().map(|one| one.name).collect();
        if let Some(warning) = other_log_warning(&others, &self.checkpoints.shown(partition)) {
            tracing::warn!(%partition, "{warning}");
        }
        own
    }

    fn not_given_up(&self, partition: Partition, listed: &[Listed]) -> Vec<Listed> {
        let shared = locked(&self.shared);
        let is_given_up = |one: &Listed| shared.given_up.contains(&(partition, one.name.clone()));
        listed.iter().filter(|one| !is_given_up(one)).cloned().collect()
    }

    /// Fetches a checkpoint beside the store, which stays in place until there is something better.
    fn fetch(
        &self,
        partition: Partition,
        store: &Path,
        (own, reach): (Option<Point>, LogBounds),
        listed: &[Listed],
        log: &dyn Log,
    ) -> Result<Option<Applied>, Error> {
        let fetched = beside(store, ".new");
        remove(&fetched)?;
        for one in listed {
            let point = (one.next, one.outputs);
            // The newest checkpoint may have been damaged, so that it is an older one's turn.
            if !reach.allows(point) || own.is_some_and(|own| own >= point) {
                continue;
            }
            let Some(applied) = self.checkpoints.restore_one(partition, one, &fetched)? else {
                continue;
            };
            // The manifest of an earlier version does not say of which log it is, but the store may.
            let last = last_folded(input_of(&fetched));
            if judged(log, partition, reach, one.next, last.as_ref()) == Origin::OtherLog {
                let checkpoint = &one.name;
                tracing::warn!(%partition, %checkpoint, "the checkpoint is of another log, trying the next older one");
                remove(&fetched)?;
                continue;
            }
            set_aside(store)?;
            std::fs::rename(&fetched, store).map_err(|error| local(store, &error))?;
            let mut shared = locked(&self.shared);
            if !shared.given_up.contains(&(partition, one.name.clone())) {
                shared.restored.insert(partition, one.clone());
            }
            return Ok(Some(applied));
        }
        Ok(None)
    }

    /// Notes that the fold from the restored checkpoint gave what is committed.
    pub fn is_proved(&self, partition: Partition) {
        locked(&self.shared).restored.remove(&partition);
    }

    /// Gives up the checkpoint that a partition was restored from, because the fold from there failed. Returns its offset;
    /// `None` if the store is not from a checkpoint.
    pub fn give_up(&self, partition: Partition) -> Option<Offset> {
        let mut shared = locked(&self.shared);
        let listed = shared.restored.remove(&partition)?;
        shared.given_up.insert((partition, listed.name));
        Some(listed.next)
    }
}

/// Returns of which log a checkpoint is, as its manifest says.
fn origin_in(log: &dyn Log, partition: Partition, reach: LogBounds, listed: &Listed) -> Origin {
    judged(log, partition, reach, listed.next, listed.last.as_ref())
}

fn judged(log: &dyn Log, partition: Partition, reach: LogBounds, next: Offset, last: Option<&LastFolded>) -> Origin {
    let range = Range {
        start: reach.start,
        end: reach.end,
    };
    origin(next, last, range, |from, limit, into| {
        log.read(Topic::Events, partition, from, limit, into)
    })
}

fn local(path: &Path, error: &std::io::Error) -> Error {
    Error::Local {
        path: path.to_owned(),
        cause: error.to_string(),
    }
}

fn beside(store: &Path, ending: &str) -> PathBuf {
    let mut path = store.as_os_str().to_owned();
    path.push(ending);
    PathBuf::from(path)
}

fn remove(directory: &Path) -> Result<(), Error> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(local(directory, &error)),
        _ => Ok(()),
    }
}

impl LogBounds {
    /// Whether a state at this point can be brought up to date.
    fn allows(&self, point: Point) -> bool {
        point.0 >= self.start && point <= self.committed
    }

    /// Whether the store in a directory has folded more than is committed.
    pub fn is_exceeded_by(&self, partition: Partition, store: &Path) -> Result<bool, Error> {
        let own = standing(store, partition)?;
        Ok(own.is_some_and(|own| own > self.committed))
    }
}

/// Returns the checkpoint to take, if one is better than the store on disk.
fn choose(own: Option<Point>, reach: LogBounds, listed: &[Listed], worth: u64) -> Option<&Listed> {
    let usable = listed
        .iter()
        .filter(|listed| reach.allows((listed.next, listed.outputs)));
    let best = usable.max_by_key(|listed| (listed.next, listed.outputs))?;
    own.is_none_or(|own| best.next.0 > own.0.0.saturating_add(worth))
        .then_some(best)
}

/// Returns the point that the store in a directory has reached, if there is a readable one. Returns an error for a
/// store that a later version wrote, because it must not be replaced.
pub(super) fn standing(directory: &Path, partition: Partition) -> Result<Option<Point>, Error> {
    if !directory.join("CURRENT").exists() {
        return Ok(None);
    }
    let Ok(store) = Store::open_to_look(directory) else {
        return Ok(None);
    };
    let Ok(Some(meta)) = store.meta() else { return Ok(None) };
    let opened = match store.read_meta(&meta) {
        Ok(opened) => opened,
        Err(later @ store::Error::LaterLayout { .. }) => return Err(later.into()),
        Err(_) => return Ok(None),
    };
    let is_own = opened.partition.partition == partition;
    Ok(is_own.then_some((opened.applied.next, opened.applied.outputs)))
}

/// Moves a store out of the way. The last store that was moved is kept beside it, to be examined.
pub fn set_aside(store: &Path) -> Result<(), Error> {
    if !store.exists() {
        return Ok(());
    }
    let aside = beside(store, ".old");
    remove(&aside)?;
    std::fs::rename(store, &aside).map_err(|error| local(store, &error))
}

fn publish(checkpoints: &Checkpoints, copies: &Receiver<Copy>, shared: &Mutex<CheckpointerState>) {
    while let Ok(copy) = copies.recv() {
        failpoint::reach("checkpoints");
        let partition = copy.partition;
        // The index of changes may be larger than the state and is not part of it: a restored store begins a new
        // index.
        let left_out = Store::open(&copy.directory).and_then(|store| store.remove_index());
        if let Err(error) = left_out {
            tracing::warn!(%partition, %error, "the index of changes stays in a checkpoint");
        }
        let last = last_folded(input_of(&copy.directory));
        // The log went on since the copy was made, and another node may have published what is after it.
        let range = copy.log.upgrade().map(|log| log.range(Topic::Events, partition));
        let reach = match range {
            Some(Ok(Range { start, end })) => LogBounds {
                start,
                end,
                ..copy.reach
            },
            Some(Err(_)) | None => copy.reach,
        };
        let mut origin = |listed: &Listed| match copy.log.upgrade() {
            Some(log) => origin_in(&*log, partition, reach, listed),
            None => Origin::Unknown,
        };
        match checkpoints.publish(partition, &copy.directory, last, &mut origin) {
            Ok(published) => {
                let next = published.applied.next;
                metrics::checkpoint(partition.0, next.0);
                tracing::debug!(%partition, %next, "checkpoint published");
                let others = other_log_warning(&published.others, &checkpoints.shown(partition));
                let retention = retention_warning(&published.own, reach.start, reach.end);
                let warnings: Vec<String> = [others, retention].into_iter().flatten().collect();
                note_warnings(partition, &warnings, shared);
            }
            Err(error) => {
                metrics::checkpoint_failed();
                tracing::warn!(%partition, %error, "publishing a checkpoint failed, retrying at the next interval");
            }
        }
        // A copy that stays here is not overwritten: it is removed before the next one is made.
        if let Err(error) = std::fs::remove_dir_all(&copy.directory) {
            tracing::warn!(%partition, %error, "removing a copy of the store failed");
        }
        locked(shared).under_way.remove(&partition);
    }
}

fn note_warnings(partition: Partition, warnings: &[String], shared: &Mutex<CheckpointerState>) {
    for warning in warnings {
        tracing::warn!(%partition, "{warning}");
    }
    let mut shared = locked(shared);
    match warnings.is_empty() {
        true => drop(shared.warnings.remove(&partition)),
        false => drop(shared.warnings.insert(partition, warnings.join("; ").into())),
    }
}

/// Returns a warning about checkpoints of another log at the location of this log's.
pub fn other_log_warning(others: &[Name], location: &str) -> Option<String> {
    let newest = others.iter().map(|one| one.next).max()?;
    let count = others.len();
    Some(format!(
        "{location} has checkpoints of another log ({count}, the newest at offset {newest}): they are neither restored nor deleted \
         here. Give each log a location of its own (--checkpoints), or delete them if that log is gone"
    ))
}

/// Returns a warning about a partition's checkpoints and a log that reaches from `start` to `end`: if the log reaches
/// back to no checkpoint, or if it has fewer events before the oldest usable checkpoint than after it.
pub fn retention_warning(listed: &[Name], start: Offset, end: Offset) -> Option<String> {
    if start == Offset(0) {
        return None;
    }
    let Some(newest) = listed.iter().map(|one| one.next).max() else {
        return Some(format!(
            "there is no checkpoint, and the log begins at offset {start}: a store that is lost cannot be rebuilt"
        ));
    };
    let usable = listed.iter().map(|one| one.next).filter(|next| *next >= start);
    let Some(oldest) = usable.min() else {
        return Some(format!(
            "the log begins at offset {start}, after the newest checkpoint, which is at {newest}: a store that is lost \
             cannot be rebuilt"
        ));
    };
    (oldest.0 - start.0 < end.0.saturating_sub(oldest.0)).then(|| {
        format!(
            "the log's retention is close to the oldest checkpoint, which is at offset {oldest}: the log goes from \
             {start} to {end}. Keep events for longer, or make checkpoints more often"
        )
    })
}

fn locked(shared: &Mutex<CheckpointerState>) -> MutexGuard<'_, CheckpointerState> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const REACH: LogBounds = LogBounds {
        start: Offset(100),
        end: Offset(1_000),
        committed: (Offset(900), 2),
    };

    #[test]
    fn a_state_is_of_use_between_the_start_of_the_log_and_what_is_committed() {
        let allowed = [(99, 0), (100, 0), (900, 2), (900, 3), (901, 0)];
        let allowed = allowed.map(|(next, outputs)| REACH.allows((Offset(next), outputs)));
        assert_eq!(allowed, [false, true, true, false, false]);
    }

    #[test]
    fn a_store_that_is_nearly_as_new_is_kept() {
        let listed: Vec<Listed> = [950, 800, 700, 50].map(Listed::at).into();
        let chosen = |own: Option<u64>, worth: u64| {
            let own = own.map(|next| (Offset(next), 0));
            choose(own, REACH, &listed, worth).map(|listed| listed.next.0)
        };
        assert_eq!(chosen(None, 100), Some(800), "950 is after what is committed");
        assert_eq!(chosen(Some(750), 100), None);
        assert_eq!(chosen(Some(750), 10), Some(800));
        assert_eq!(chosen(Some(850), 0), None);
        assert_eq!(
            choose(None, REACH, &listed[3..], 0),
            None,
            "the log no longer reaches back to it"
        );
    }

    #[test]
    fn what_is_said_of_checkpoints_follows_from_what_the_log_still_has() {
        let said = |standing: &[u64], start: u64| {
            let listed: Vec<Name> = standing.iter().map(|next| Listed::at(*next).name).collect();
            retention_warning(&listed, Offset(start), Offset(1_000)).unwrap_or_default()
        };
        assert_eq!(said(&[950, 10], 0), "", "nothing was dropped yet");
        assert_eq!(said(&[950, 600], 100), "");
        assert!(said(&[950, 500], 100).contains("is close to the oldest checkpoint, which is at offset 500"));
        assert_eq!(
            said(&[950, 600, 99], 100),
            "",
            "one that the log does not reach is of no use"
        );
        assert!(said(&[90, 80], 100).contains("after the newest checkpoint, which is at 90"));
        assert!(said(&[], 100).contains("there is no checkpoint, and the log begins at offset 100"));
    }

    #[test]
    fn a_store_set_aside_is_kept_until_the_next() {
        let directory = tempfile::tempdir().expect("a directory");
        let store = directory.path().join("3");
        set_aside(&store).expect("nothing to do");
        for content in ["first", "second"] {
            std::fs::create_dir(&store).expect("made");
            std::fs::write(store.join("x"), content).expect("written");
            set_aside(&store).expect("set aside");
            assert!(!store.exists());
        }
        let aside = directory.path().join("3.old").join("x");
        assert_eq!(std::fs::read_to_string(aside).expect("there"), "second");
    }
}
