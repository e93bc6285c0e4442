//! The store: one partition's users and the position up to which they are folded, in a RocksDB of its own.
//!
//! It stores bytes and knows no rules. A commit is one write batch with users, heartbeat times and the applied
//! position, so that the store always holds a state that the fold once had. It is written without a write-ahead log and
//! flushed while folding goes on. What a crash loses is folded again from the log. So the applied position may be behind what the log has
//! committed, but never ahead of it; the caller ensures that.

mod beats;
mod digest;
mod disk;
mod image;
mod index;
pub mod keys;
mod rows;

pub use beats::SlotBeats;
pub use disk::{Disk, DiskError, Order, SharedRows, Visitor, cache_bytes, set_cache_bytes};
pub use image::SavedPartition;
pub use index::{IndexMark, IndexReader, Indexed, MARK_CHANGES};

use crate::presence::state::{PartitionImage, Slot, UserImage};
use crate::presence::{LogTime, Offset, Partition};
use crate::rocks::{self, Meaning};
use image::Bytes;
use rows::Rows;
use std::borrow::Cow;
use std::cell::Cell;
use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The layout of keys and values. A store of an earlier layout is read as what it is, and what is written to it next has
/// this layout:
///
/// | layout | what it has not | how it is read |
/// |---|---|---|
/// | 1 | much: it was never released | not at all; rebuilt from the log |
/// | 2 | the revision in force | as of the first |
/// | 3 | | as it is |
const LAYOUT: u64 = 3;
/// The earliest that is read.
const LAYOUT_READ: u64 = 2;

/// A store operation failed. A store that is damaged or of a layout that is no longer read can be given up and folded
/// again from the log. The other errors may pass or need another version, and the store is kept.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the store {} cannot be used: {cause}", directory.display())]
    Open { directory: PathBuf, cause: String },
    #[error(
        "the store {} has the layout {found}, which was never released; this version reads the layouts {LAYOUT_READ} to \
         {LAYOUT}",
        directory.display()
    )]
    Layout { directory: PathBuf, found: u64 },
    #[error(
        "the store {} has the layout {found}, but this version knows layouts up to {LAYOUT}: a later version wrote it. It \
         is left as it is; start that version, or one after it",
        directory.display()
    )]
    LaterLayout { directory: PathBuf, found: u64 },
    #[error("the store {} is damaged: {what}", directory.display())]
    Damaged {
        directory: PathBuf,
        what: Cow<'static, str>,
    },
    #[error("the store {} failed: {cause}", directory.display())]
    Failed { directory: PathBuf, cause: String },
}

/// The position of the store's state: everything before `next` is folded, and `outputs` outputs of the record at
/// `next`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    pub next: Offset,
    pub outputs: u64,
    pub chain: [u8; 32],
}

/// Where a user's value is in the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum UserLocation {
    #[default]
    Nowhere,
    Online,
    /// With the time of its row among the deadlines, if it has one.
    Away(Option<LogTime>),
}

/// The value that is read at start.
pub struct StoredState<'a> {
    /// The layout of the store as it was written.
    pub layout: u64,
    pub applied: Applied,
    pub partition: SavedPartition<'a>,
    /// The engine's counts, in the engine's own encoding.
    pub counts: &'a [u8],
}

/// A point in the order of deadlines: the deadline of a user without a device online.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct DueKey {
    pub time: LogTime,
    pub user: Box<str>,
}

/// The location of a store, which can be opened again and again.
pub trait StoreLocation {
    /// Opens the store. Creates it if it does not exist.
    fn open(&self) -> Result<Store, Error>;

    /// Removes the store, to be rebuilt.
    fn destroy(&self) -> Result<(), Error>;
}

/// A directory, used with RocksDB.
impl StoreLocation for PathBuf {
    fn open(&self) -> Result<Store, Error> {
        Store::open(self)
    }

    fn destroy(&self) -> Result<(), Error> {
        Store::destroy(self)
    }
}

pub struct Store {
    disk: Box<dyn Disk>,
    directory: PathBuf,
    /// The size of the last commit: the next one is likely as large.
    last_commit_bytes: Cell<usize>,
}

/// A commit that is being assembled.
pub struct Commit {
    rows: Rows,
    value: Vec<u8>,
}

impl Store {
    /// Opens the store in a directory. Creates it if it does not exist.
    pub fn open(directory: &Path) -> Result<Store, Error> {
        let db = disk::open(directory).map_err(|error| match rocks::meaning(directory, &error) {
            Meaning::Damage => Error::Damaged {
                directory: directory.to_owned(),
                what: error.into_string().into(),
            },
            Meaning::InUse | Meaning::Foreign | Meaning::Failure => Error::Open {
                directory: directory.to_owned(),
                cause: error.into_string(),
            },
        })?;
        Ok(Store::on(Box::new(Arc::new(db)), directory))
    }

    /// Opens a store that no process has open, for reading only. Changes no file.
    pub fn open_to_look(directory: &Path) -> Result<Store, Error> {
        let db = disk::open_to_look(directory).map_err(|error| Error::Open {
            directory: directory.to_owned(),
            cause: error.into_string(),
        })?;
        Ok(Store::on(Box::new(Arc::new(db)), directory))
    }

    /// Copies what was committed into a directory, which must not exist yet, as a separate store. Fast, since it uses
    /// hard links if both are on one file system.
    pub fn checkpoint(&self, into: &Path) -> Result<(), Error> {
        self.disk.checkpoint(into).map_err(|cause| self.failed(cause))
    }

    /// Creates a store on a disk. `name` is the directory that its errors name.
    pub fn on(disk: Box<dyn Disk>, name: &Path) -> Store {
        Store {
            disk,
            directory: name.to_owned(),
            last_commit_bytes: Cell::default(),
        }
    }

    /// Moves a store away, so that it is rebuilt. It is kept as `N.old` until the next one is moved away.
    pub fn destroy(directory: &Path) -> Result<(), Error> {
        let mut aside = directory.as_os_str().to_owned();
        aside.push(".old");
        let removed = match std::fs::remove_dir_all(&aside) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => std::fs::rename(directory, &aside),
        };
        match removed {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::Failed {
                directory: directory.to_owned(),
                cause: format!("moving it away failed: {error}"),
            }),
            _ => Ok(()),
        }
    }

    fn failed(&self, error: DiskError) -> Error {
        failed(&self.directory, error)
    }

    fn damaged(&self, what: &'static str) -> Error {
        Error::Damaged {
            directory: self.directory.clone(),
            what: what.into(),
        }
    }

    /// Returns the value that [`Store::read_meta`] decodes; `None` if nothing was committed yet.
    pub fn meta(&self) -> Result<Option<Vec<u8>>, Error> {
        self.disk.get(keys::META).map_err(|cause| self.failed(cause))
    }

    /// Decodes the position and the partition.
    pub fn read_meta<'a>(&self, meta: &'a [u8]) -> Result<StoredState<'a>, Error> {
        let mut bytes = Bytes(meta);
        let layout = bytes.number().ok_or_else(|| self.damaged("its layout is missing"))?;
        let (directory, found) = (|| self.directory.clone(), layout);
        if layout > LAYOUT {
            let directory = directory();
            return Err(Error::LaterLayout { directory, found });
        }
        if layout < LAYOUT_READ {
            let directory = directory();
            return Err(Error::Layout { directory, found });
        }
        let mut read = || {
            Some(StoredState {
                layout,
                applied: Applied {
                    next: Offset(bytes.number()?),
                    outputs: bytes.number()?,
                    chain: image::bytes(&mut bytes)?.try_into().ok()?,
                },
                counts: image::bytes(&mut bytes)?,
                partition: image::partition(&mut bytes, layout)?,
            })
        };
        read().ok_or_else(|| self.damaged("its position is unreadable"))
    }

    /// Visits every user with a device online, with the slot of each.
    pub fn for_each_online(&self, mut each: impl FnMut(Slot, &UserImage<'_>)) -> Result<(), Error> {
        self.scan(keys::ONLINE, |key, value| {
            let mut bytes = Bytes(value);
            let slot = bytes.number().and_then(|slot| u32::try_from(slot).ok());
            let id = std::str::from_utf8(key).ok();
            let user = id.and_then(|id| Some((slot?, image::user(id, &mut bytes)?)));
            let (slot, user) = user.ok_or_else(|| self.damaged("an online user is unreadable"))?;
            each(Slot(slot), &user);
            Ok(())
        })
    }

    /// Visits the heartbeat times of every slot whose user has a device online.
    pub fn for_each_beats(&self, mut each: impl FnMut(Slot, SlotBeats)) -> Result<(), Error> {
        self.scan(keys::BEATS, |key, value| {
            let block = key.try_into().ok().map(u32::from_be_bytes);
            let slots = block.zip(beats::read(value));
            let (block, slots) = slots.ok_or_else(|| self.damaged("a block of heartbeat times is unreadable"))?;
            for slot in slots {
                each(Slot(block * keys::SLOTS_PER_BLOCK + slot.place), slot);
            }
            Ok(())
        })
    }

    /// Visits every user without a device online, by id.
    pub fn for_each_away(&self, mut each: impl FnMut(&UserImage<'_>)) -> Result<(), Error> {
        self.scan(keys::AWAY, |key, value| {
            let id = std::str::from_utf8(key).ok();
            let user = id.and_then(|id| read_away(id, value));
            each(&user.ok_or_else(|| self.damaged("a user is unreadable"))?.0);
            Ok(())
        })
    }

    fn scan(&self, prefix: u8, mut each: impl FnMut(&[u8], &[u8]) -> Result<(), Error>) -> Result<(), Error> {
        let mut result = Ok(());
        let looked = self.disk.look(&[prefix], &[prefix + 1], true, &mut |key, value| {
            result = each(&key[1..], value);
            if result.is_ok() {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        });
        looked.map_err(|cause| self.failed(cause))?;
        result
    }

    /// Returns the values of users without a device online, in the order given; `None` for users who are not in the
    /// store. [`read_away`] decodes them.
    pub fn get_away<'u>(&self, users: impl IntoIterator<Item = &'u str>) -> Result<Vec<Option<Vec<u8>>>, Error> {
        let mut keys = users.into_iter().map(keys::away);
        self.disk.get_many(&mut keys).map_err(|cause| self.failed(cause))
    }

    /// Returns users without a device online whose deadline may be due: after a point in the order of deadlines and not
    /// after a time, at most `limit`, the earliest first. Also returns the time of the next deadline after them, if
    /// there is one.
    ///
    /// Without the starting point, every call would visit the tombstones of all earlier deadlines.
    pub fn due(&self, after: &DueKey, upto: LogTime, limit: usize) -> Result<(Vec<DueKey>, Option<LogTime>), Error> {
        let mut start = keys::due(after.time, &after.user);
        // The least key that is greater.
        start.push(0);
        let mut due = Vec::new();
        let mut next = Ok(None);
        let looked = self.disk.look(&start, &[keys::DUE + 1], false, &mut |key, _| {
            let Some((time, user)) = keys::read_due(key) else {
                next = Err(self.damaged("a deadline row is unreadable"));
                return ControlFlow::Break(());
            };
            if time > upto || due.len() == limit {
                next = Ok(Some(time));
                return ControlFlow::Break(());
            }
            due.push(DueKey {
                time,
                user: user.into(),
            });
            ControlFlow::Continue(())
        });
        looked.map_err(|cause| self.failed(cause))?;
        Ok((due, next?))
    }

    pub fn begin(&self) -> Commit {
        Commit {
            rows: Rows::with_capacity(self.last_commit_bytes.get()),
            // The policy in force is part of the value.
            value: Vec::with_capacity(2_048),
        }
    }

    /// Writes a commit. It survives the death of the process from some time later on, after [`Store::flush`] surely; until
    /// then the store would be found as an earlier commit left it.
    pub fn commit(
        &self,
        mut commit: Commit,
        applied: &Applied,
        partition: &PartitionImage<'_>,
        policy: &str,
        counts: &[u8],
    ) -> Result<(), Error> {
        let Applied { next, outputs, chain } = applied;
        let value = &mut commit.value;
        value.clear();
        image::put_number(value, LAYOUT);
        image::put_number(value, next.0);
        image::put_number(value, *outputs);
        image::put_bytes(value, chain);
        image::put_bytes(value, counts);
        image::put_partition(value, partition, policy);
        commit.rows.put(keys::META, &commit.value);
        self.disk
            .write(commit.rows.into_batch())
            .map_err(|cause| self.failed(cause))?;
        self.disk.begin_flush().map_err(|cause| self.failed(cause))
    }

    /// Waits until everything committed survives the death of the process.
    pub fn flush(&self) -> Result<(), Error> {
        self.disk.flush().map_err(|cause| self.failed(cause))
    }
}

fn failed(directory: &Path, error: DiskError) -> Error {
    let directory = directory.to_owned();
    match error {
        DiskError { cause, is_damage: true } => Error::Damaged {
            directory,
            what: cause.into(),
        },
        DiskError {
            cause,
            is_damage: false,
        } => Error::Failed { directory, cause },
    }
}

/// Decodes a value of [`Store::get_away`]. Returns the user and where the value is.
pub fn read_away<'a>(user: &'a str, value: &'a [u8]) -> Option<(UserImage<'a>, UserLocation)> {
    let user = image::user(user, &mut Bytes(value))?;
    let due = user.next_deadline();
    Some((user, UserLocation::Away(due)))
}

impl Commit {
    /// Writes a user whose value was at `before`. Returns where the value is now.
    pub fn put(&mut self, slot: Slot, user: &UserImage<'_>, before: UserLocation) -> UserLocation {
        self.value.clear();
        if user.has_online_device() {
            self.remove_row(user.user, before);
            if let UserLocation::Away(_) = before {
                self.rows.delete(&keys::away(user.user));
            }
            image::put_number(&mut self.value, slot.0.into());
            image::put_user(&mut self.value, user);
            self.rows.put(&keys::online(user.user), &self.value);
            UserLocation::Online
        } else {
            let due = user.next_deadline();
            if before != UserLocation::Away(due) {
                self.remove_row(user.user, before);
                if let Some(due) = due {
                    self.rows.put(&keys::due(due, user.user), &[]);
                }
            }
            if before == UserLocation::Online {
                self.rows.delete(&keys::online(user.user));
            }
            image::put_user(&mut self.value, user);
            self.rows.put(&keys::away(user.user), &self.value);
            UserLocation::Away(due)
        }
    }

    /// Deletes a user whose value was at `before`.
    pub fn delete(&mut self, user: &str, before: UserLocation) {
        self.remove_row(user, before);
        match before {
            UserLocation::Nowhere => {}
            UserLocation::Online => self.rows.delete(&keys::online(user)),
            UserLocation::Away(_) => self.rows.delete(&keys::away(user)),
        }
    }

    fn remove_row(&mut self, user: &str, before: UserLocation) {
        if let UserLocation::Away(Some(due)) = before {
            self.rows.delete(&keys::due(due, user));
        }
    }

    /// Writes the heartbeat times of a block of slots: of all its users with a device online. Deletes the block
    /// if it is empty.
    pub fn put_beats(&mut self, block: u32, slots: &[SlotBeats]) {
        if slots.is_empty() {
            self.rows.delete(&keys::beats(block));
        } else {
            self.value.clear();
            beats::put(&mut self.value, slots);
            self.rows.put(&keys::beats(block), &self.value);
        }
    }

    /// Returns the approximate size of the commit.
    pub fn bytes(&self) -> usize {
        self.rows.bytes()
    }
}

/// Returns the directory of a partition's store within a data directory.
pub fn directory_of(data: &Path, partition: Partition) -> PathBuf {
    data.join("store").join(partition.to_string())
}
