//! The fold of a partition as a store has it: the engine's own, or one restored from a checkpoint.
//!
//! `verify` compares it with its own fold where that has come just as far, or goes on from it.

use crate::presence::Partition;
use crate::presence::state::{HashSeed, PartitionImage, State, UserImage};
use crate::schema::json;
use crate::schema::policy::written_policy;
use crate::store::{Applied, Error, Store};
use std::path::Path;

pub struct StoredFold {
    pub state: State,
    pub applied: Applied,
}

/// Where two folds of the same events differ, as lines of `rollcall fold --state`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StateDifference {
    pub found: Option<String>,
    pub expected: Option<String>,
}

impl StoredFold {
    /// Reads all of a store into memory; `None` if nothing was committed to it yet. Changes no file.
    pub fn read(directory: &Path, partition: Partition, seed: HashSeed) -> Result<Option<StoredFold>, Error> {
        let damaged = |what: &'static str| Error::Damaged {
            directory: directory.to_owned(),
            what: what.into(),
        };
        let store = Store::open_to_look(directory)?;
        let Some(meta) = store.meta()? else { return Ok(None) };
        let stored = store.read_meta(&meta)?;
        let saved = stored.partition;
        if saved.partition != partition {
            return Err(damaged("it belongs to another partition"));
        }
        let policy = written_policy(saved.policy).ok_or_else(|| damaged("its policy is unreadable"))?;
        let image = saved.image(&policy);
        let mut state = State::restore(&image, seed);
        store.for_each_online(|slot, user| state.put_back(slot, user))?;
        store.for_each_beats(|slot, beats| state.put_back_beats(slot, beats.user_last_seen, beats.devices))?;
        state.seal();
        store.for_each_away(|user| {
            state.admit(user);
        })?;
        Ok(Some(StoredFold {
            state,
            applied: stored.applied,
        }))
    }

    /// Whether it stands between two records. Where many users are due at once, a store is committed inside of a record.
    pub fn is_between_records(&self) -> bool {
        self.applied.outputs == 0 && self.state.offset().is_none_or(|last| last < self.applied.next)
    }

    /// Returns the first user, in byte order, or else the partition, in which it differs from another fold.
    pub fn difference_from(&self, expected: &State) -> Option<StateDifference> {
        fn image<'s>(state: &'s State, user: &str) -> Option<UserImage<'s>> {
            state.slot_of(user).and_then(|slot| state.image(slot))
        }
        let users = |state| State::slots(state).filter_map(|slot| State::user_id(state, slot));
        // Every user is compared, and only those that differ are put in order: there is one of them at most, as a rule.
        let differing = users(&self.state)
            .chain(users(expected))
            .filter(|user| image(&self.state, user) != image(expected, user));
        if let Some(user) = differing.min() {
            let line = |state: &State| {
                let mut line = Vec::new();
                json::user_line(&mut line, &image(state, user)?, state.time());
                Some(String::from_utf8_lossy(&line).into_owned())
            };
            return Some(StateDifference {
                found: line(&self.state),
                expected: line(expected),
            });
        }
        let (found, wanted) = (self.state.partition_image(), expected.partition_image());
        (found != wanted).then(|| {
            let line = |image: &PartitionImage<'_>| {
                let mut line = Vec::new();
                json::partition_line(&mut line, image);
                Some(String::from_utf8_lossy(&line).into_owned())
            };
            StateDifference {
                found: line(&found),
                expected: line(&wanted),
            }
        })
    }
}
