//! The index of changes: which changes are a user's, and at every 4,096th change its times and the counts after it.
//!
//! A row has the change itself, as its record in the change topic has it, so that reading a user's changes costs one
//! look at each segment and no read of the log. A segment is a stretch of 1,048,576 changes: new rows lie together, and
//! what is too old is removed segment by segment. Changes are numbered from 1, as [`Change::seq`] does.
//!
//! The index is no state. Its rows are written in the commits of the state, under keys that follow from the change
//! alone, so that folding again writes the same rows. [`Indexed::upto`] is the number of the last change of the commit: a
//! version that knows no index leaves it behind the state, and then the index begins again.
//!
//! [`Change::seq`]: crate::presence::change::Change::seq

use super::disk::{Order, SharedRows};
use super::image::{Bytes, put_number};
use super::{Commit, Error, Store, failed, keys};
use crate::presence::LogTime;
use rocksdb::WriteBatch;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

/// There is a mark at each change whose number is a multiple of this.
pub const MARK_CHANGES: u64 = 4_096;

/// Which changes the index has: those after `from`, up to and including `upto`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Indexed {
    pub from: u64,
    pub upto: u64,
}

/// What is known at a change: its times, and the counts after it in the engine's encoding.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct IndexMark {
    pub at: LogTime,
    pub logged_at: LogTime,
    pub counts: Vec<u8>,
}

/// Reads the index from any thread, while the store is written.
#[derive(Clone)]
pub struct IndexReader {
    rows: Arc<dyn SharedRows>,
    directory: PathBuf,
}

const UNREADABLE: &str = "its index is unreadable";

fn read_indexed(value: &[u8]) -> Option<Indexed> {
    let mut bytes = Bytes(value);
    Some(Indexed {
        from: bytes.number()?,
        upto: bytes.number()?,
    })
}

impl Store {
    /// Returns which changes the index has; `None` if there is no index.
    pub fn indexed(&self) -> Result<Option<Indexed>, Error> {
        let value = self.disk.get(keys::INDEX).map_err(|cause| self.failed(cause))?;
        let indexed = value.map(|value| read_indexed(&value).ok_or_else(|| self.damaged(UNREADABLE)));
        indexed.transpose()
    }

    /// Removes the rows of the index up to a change; `within`: also those of the segment that has younger changes too,
    /// which are found by reading all of the segment. Who reads leaves rows out that are left.
    pub fn remove_indexed(&self, upto: u64, within: bool) -> Result<(), Error> {
        let kept = keys::segment_of(upto.saturating_add(1));
        let ranges = [
            (keys::segment_start(0), keys::segment_start(kept)),
            (keys::mark(0), keys::mark(upto)),
        ];
        for (from, before) in ranges {
            if from < before {
                self.disk.remove(&from, &before).map_err(|cause| self.failed(cause))?;
            }
        }
        if !within {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        let (from, before) = (keys::segment_start(kept), keys::segment_start(kept + 1));
        let looked = self.disk.look(&from, &before, true, &mut |key, _| {
            if keys::read_change(key).is_some_and(|number| number <= upto) {
                batch.delete(key);
            }
            ControlFlow::Continue(())
        });
        looked.map_err(|cause| self.failed(cause))?;
        self.disk.write(batch).map_err(|cause| self.failed(cause))
    }

    /// Removes the index.
    pub fn remove_index(&self) -> Result<(), Error> {
        let (from, before) = (keys::INDEX, [keys::MARKS + 1]);
        self.disk.remove(from, &before).map_err(|cause| self.failed(cause))?;
        self.disk.flush().map_err(|cause| self.failed(cause))
    }

    /// Returns a reader of the index; `None` if the store can be read by its owner only.
    pub fn index_reader(&self) -> Option<IndexReader> {
        let rows = self.disk.shared()?;
        let directory = self.directory.clone();
        Some(IndexReader { rows, directory })
    }
}

impl Commit {
    /// Writes a change of a user, as its record in the change topic has it.
    pub fn put_change(&mut self, number: u64, user: &str, record: &[u8]) {
        self.rows.put(&keys::change(number, user), record);
    }

    pub fn put_mark(&mut self, number: u64, mark: &IndexMark) {
        let IndexMark { at, logged_at, counts } = mark;
        self.value.clear();
        put_number(&mut self.value, at.0);
        put_number(&mut self.value, logged_at.0);
        self.value.extend_from_slice(counts);
        self.rows.put(&keys::mark(number), &self.value);
    }

    pub fn put_indexed(&mut self, indexed: Indexed) {
        let Indexed { from, upto } = indexed;
        self.value.clear();
        put_number(&mut self.value, from);
        put_number(&mut self.value, upto);
        self.rows.put(keys::INDEX, &self.value);
    }
}

impl IndexReader {
    /// Returns which changes the index has at this moment; `None` if there is no index.
    pub fn indexed(&self) -> Result<Option<Indexed>, Error> {
        let value = self.rows.get(keys::INDEX);
        let value = value.map_err(|cause| failed(&self.directory, cause))?;
        let indexed = value.map(|value| read_indexed(&value).ok_or_else(|| self.damaged(UNREADABLE)));
        indexed.transpose()
    }

    /// Visits the changes of a user with their numbers.
    pub fn changes_of(
        &self,
        user: &str,
        among: Indexed,
        order: Order,
        mut each: impl FnMut(u64, &[u8]) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut done = ControlFlow::Continue(());
        let mut unreadable = false;
        let (first, last) = (keys::segment_of(among.from + 1), keys::segment_of(among.upto));
        for nth in 0..=last.saturating_sub(first) {
            let segment = match order {
                Order::Rising => first + nth,
                Order::Falling => last - nth,
            };
            let from = keys::changes_of(segment, user);
            let mut before = from.clone();
            before.extend_from_slice(&[u8::MAX; 4]);
            let looked = self.rows.look(&from, &before, order, &mut |key, value| {
                let Some(number) = keys::read_change(key) else {
                    unreadable = true;
                    return ControlFlow::Break(());
                };
                if number > among.from && number <= among.upto {
                    done = each(number, value);
                }
                done
            });
            looked.map_err(|cause| failed(&self.directory, cause))?;
            if unreadable {
                return Err(self.damaged("a row of the index is unreadable"));
            }
            if done.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Returns the mark at a change, if there is one.
    pub fn mark(&self, number: u64) -> Result<Option<IndexMark>, Error> {
        let value = self.rows.get(&keys::mark(number));
        let Some(value) = value.map_err(|cause| failed(&self.directory, cause))? else {
            return Ok(None);
        };
        let mut bytes = Bytes(&value);
        let mut read = || {
            Some(IndexMark {
                at: LogTime(bytes.number()?),
                logged_at: LogTime(bytes.number()?),
                counts: bytes.0.to_vec(),
            })
        };
        read()
            .map(Some)
            .ok_or_else(|| self.damaged("a mark of the index is unreadable"))
    }

    fn damaged(&self, what: &'static str) -> Error {
        Error::Damaged {
            directory: self.directory.clone(),
            what: what.into(),
        }
    }
}
