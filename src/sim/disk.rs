//! A simulated disk: what was not flushed may be lost with the process, and a copy of it can be put back hours later.

use super::broker::{Broker, Call, Life};
use super::fault::Fault;
use crate::store::{Disk, Error, Home, Look, Store};
use rocksdb::{WriteBatch, WriteBatchIterator};
use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Keys and values.
pub type Rows = BTreeMap<Vec<u8>, Vec<u8>>;
type Written = Vec<(Vec<u8>, Option<Vec<u8>>)>;

/// What one store is on.
#[derive(Clone, Default)]
pub struct Platter(Arc<Mutex<Grooves>>);

#[derive(Default)]
struct Grooves {
    /// As it is read.
    rows: Rows,
    /// As it would be after a death.
    flushed: Rows,
    unflushed: Written,
}

impl Grooves {
    fn flush(&mut self) {
        for (key, value) in self.unflushed.drain(..) {
            match value {
                Some(value) => self.flushed.insert(key, value),
                None => self.flushed.remove(&key),
            };
        }
    }
}

impl Platter {
    fn grooves(&self) -> MutexGuard<'_, Grooves> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process has died.
    pub fn crash(&self, unflushed_is_lost: bool) {
        let mut grooves = self.grooves();
        if unflushed_is_lost {
            grooves.unflushed.clear();
        } else {
            grooves.flush();
        }
        grooves.rows = grooves.flushed.clone();
    }

    /// What would be there after a death.
    pub fn copy(&self) -> Rows {
        self.grooves().flushed.clone()
    }

    pub fn put_back(&self, rows: Rows) {
        let mut grooves = self.grooves();
        grooves.rows = rows.clone();
        grooves.flushed = rows;
        grooves.unflushed.clear();
    }
}

/// A platter as one process sees it while it lives.
pub struct Drive {
    pub platter: Platter,
    pub life: Arc<Life>,
    /// Whose weather it is.
    pub broker: Arc<Broker>,
}

impl Home for Drive {
    fn open(&self) -> Result<Store, Error> {
        let drive = Drive {
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

struct Batch<'b>(&'b mut Written);

impl WriteBatchIterator for Batch<'_> {
    fn put(&mut self, key: &[u8], value: &[u8]) {
        self.0.push((key.to_vec(), Some(value.to_vec())));
    }

    fn delete(&mut self, key: &[u8]) {
        self.0.push((key.to_vec(), None));
    }
}

impl Drive {
    fn call(&self) -> Result<Call, String> {
        let call = self.life.call();
        if call == Call::Dead {
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
            Call::WorksUnseen | Call::Dead => Err("the process is dead".to_owned()),
        }
    }
}

impl Disk for Drive {
    fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, String> {
        let call = self.call()?;
        Drive::answer(call, self.platter.grooves().rows.get(key).cloned())
    }

    fn get_many(&self, keys: &mut dyn Iterator<Item = Vec<u8>>) -> Result<Vec<Option<Vec<u8>>>, String> {
        let call = self.call()?;
        let grooves = self.platter.grooves();
        Drive::answer(call, keys.map(|key| grooves.rows.get(&key).cloned()).collect())
    }

    fn look(&self, from: &[u8], before: &[u8], _ahead: bool, look: Look<'_>) -> Result<(), String> {
        let call = self.call()?;
        let grooves = self.platter.grooves();
        let range = (Bound::Included(from), Bound::Excluded(before));
        for (key, value) in grooves.rows.range::<[u8], _>(range) {
            if look(key, value).is_break() {
                break;
            }
        }
        Drive::answer(call, ())
    }

    fn write(&self, batch: WriteBatch) -> Result<(), String> {
        let call = self.call()?;
        let mut written = Written::new();
        batch.iterate(&mut Batch(&mut written));
        let mut grooves = self.platter.grooves();
        for (key, value) in &written {
            match value {
                Some(value) => grooves.rows.insert(key.clone(), value.clone()),
                None => grooves.rows.remove(key),
            };
        }
        grooves.unflushed.extend(written);
        Drive::answer(call, ())
    }

    fn flush(&self) -> Result<(), String> {
        let call = self.call()?;
        self.platter.grooves().flush();
        Drive::answer(call, ())
    }
}
