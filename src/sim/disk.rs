//! A simulated disk: what was not flushed may be lost with the process, and a copy of it can be put back hours later.

use super::broker::{Broker, Call, ProcessLife};
use super::fault::Fault;
use crate::store::{Disk, DiskError, Error, Store, StoreLocation, Visitor};
use rocksdb::{WriteBatch, WriteBatchIterator};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A key or a value. Shared, since rows are copied whole and what is replaced is remembered.
type Bytes = Arc<[u8]>;
pub type Rows = BTreeMap<Bytes, Bytes>;

/// What one store is on.
#[derive(Clone, Default)]
pub struct DiskImage(Arc<Mutex<DiskRows>>);

#[derive(Default)]
struct DiskRows {
    /// As it is read.
    rows: Rows,
    /// What each write since the last flush has replaced, the last one last.
    unflushed: Vec<(Bytes, Option<Bytes>)>,
    /// A part is missing: it cannot be opened, as a database of which files are missing.
    is_half: bool,
}

fn set(rows: &mut Rows, key: Bytes, value: Option<Bytes>) -> Option<Bytes> {
    match value {
        Some(value) => rows.insert(key, value),
        None => rows.remove(&key),
    }
}

impl DiskRows {
    fn write(&mut self, key: &[u8], value: Option<&[u8]>) {
        let key = Bytes::from(key);
        let before = set(&mut self.rows, key.clone(), value.map(Bytes::from));
        self.unflushed.push((key, before));
    }

    fn undo(&self, rows: &mut Rows) {
        for (key, before) in self.unflushed.iter().rev() {
            set(rows, key.clone(), before.clone());
        }
    }
}

impl DiskImage {
    fn grooves(&self) -> MutexGuard<'_, DiskRows> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process has died.
    pub fn crash(&self, unflushed_is_lost: bool) {
        let mut grooves = self.grooves();
        if unflushed_is_lost {
            let mut rows = std::mem::take(&mut grooves.rows);
            grooves.undo(&mut rows);
            grooves.rows = rows;
        }
        grooves.unflushed.clear();
    }

    /// What would be there after a death.
    pub fn copy(&self) -> Rows {
        let grooves = self.grooves();
        let mut rows = grooves.rows.clone();
        grooves.undo(&mut rows);
        rows
    }

    /// A value after a death that nobody saw coming.
    pub fn value(&self, key: &[u8]) -> Option<Vec<u8>> {
        let grooves = self.grooves();
        let replaced = grooves.unflushed.iter().find(|(replaced, _)| **replaced == *key);
        let value = match replaced {
            Some((_, before)) => before.as_ref(),
            None => grooves.rows.get(key),
        };
        value.map(|value| value.to_vec())
    }

    /// From now on it is a copy of which a part is missing.
    pub fn lose_a_part(&self) {
        self.grooves().is_half = true;
    }

    pub fn put_back(&self, rows: Rows) {
        let mut grooves = self.grooves();
        grooves.is_half = false;
        grooves.rows = rows;
        grooves.unflushed.clear();
    }

    /// Changes a value as it lies there.
    pub fn spoil(&self, key: &[u8], change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(value) = self.grooves().rows.get_mut(key) {
            let mut changed = value.to_vec();
            change(&mut changed);
            *value = changed.into();
        }
    }
}

/// A platter as one process sees it while it lives.
pub struct ProcessDisk {
    pub platter: DiskImage,
    pub life: Arc<ProcessLife>,
    /// Whose weather it is.
    pub broker: Arc<Broker>,
}

impl StoreLocation for ProcessDisk {
    fn open(&self) -> Result<Store, Error> {
        if self.platter.grooves().is_half {
            return Err(Error::Damaged {
                directory: Path::new("simulated").to_owned(),
                what: "a part of it is missing".into(),
            });
        }
        let drive = ProcessDisk {
            platter: self.platter.clone(),
            life: self.life.clone(),
            broker: self.broker.clone(),
        };
        Ok(Store::on(Box::new(drive), Path::new("simulated")))
    }

    fn destroy(&self) -> Result<(), Error> {
        self.call().map_err(|cause| Error::Failed {
            directory: Path::new("simulated").to_owned(),
            cause,
        })?;
        self.platter.put_back(Rows::new());
        Ok(())
    }
}

impl WriteBatchIterator for DiskRows {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.write(key, Some(value));
    }

    fn delete(&mut self, key: &[u8]) {
        self.write(key, None);
    }
}

impl ProcessDisk {
    fn call(&self) -> Result<Call, String> {
        let call = self.life.call();
        if matches!(call, Call::Dies | Call::Dead) {
            return Err("the process is dead".to_owned());
        }
        let mut world = self.broker.world();
        let world = &mut *world;
        let rate = world.weather.fails / 8;
        if world.weather.strikes(Fault::StoreFails, rate, &mut world.random) {
            return Err("simulated".to_owned());
        }
        Ok(call)
    }

    fn answer<T>(call: Call, answer: T) -> Result<T, String> {
        match call {
            Call::Works => Ok(answer),
            Call::WorksUnseen | Call::Dies | Call::Dead => Err("the process is dead".to_owned()),
        }
    }
}

impl Disk for ProcessDisk {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, DiskError> {
        let call = self.call()?;
        let grooves = self.platter.grooves();
        Ok(ProcessDisk::answer(
            call,
            grooves.rows.get(key).map(|value| value.to_vec()),
        )?)
    }

    fn get_many(&self, keys: &mut dyn Iterator<Item = Vec<u8>>) -> Result<Vec<Option<Vec<u8>>>, DiskError> {
        let call = self.call()?;
        let grooves = self.platter.grooves();
        let value = |key: Vec<u8>| grooves.rows.get(&*key).map(|value| value.to_vec());
        Ok(ProcessDisk::answer(call, keys.map(value).collect())?)
    }

    fn look(&self, from: &[u8], before: &[u8], _ahead: bool, look: Visitor<'_>) -> Result<(), DiskError> {
        let call = self.call()?;
        let grooves = self.platter.grooves();
        let range = (Bound::Included(from), Bound::Excluded(before));
        for (key, value) in grooves.rows.range::<[u8], _>(range) {
            if look(key, value).is_break() {
                break;
            }
        }
        Ok(ProcessDisk::answer(call, ())?)
    }

    fn write(&self, batch: WriteBatch) -> Result<(), DiskError> {
        let call = self.call()?;
        batch.iterate(&mut *self.platter.grooves());
        Ok(ProcessDisk::answer(call, ())?)
    }

    fn flush(&self) -> Result<(), DiskError> {
        let call = self.call()?;
        self.platter.grooves().unflushed.clear();
        Ok(ProcessDisk::answer(call, ())?)
    }

    /// Nothing is flushed before [`Disk::flush`], which is the worst that can be.
    fn begin_flush(&self) -> Result<(), DiskError> {
        let call = self.call()?;
        Ok(ProcessDisk::answer(call, ())?)
    }
}
