//! Looking at what a partition has: single users, many at once, and all of them as lines.

use super::PartitionProcessor;
use crate::engine::Error;
use crate::engine::index::UserIndex;
use crate::engine::past::UserNow;
#[cfg(test)]
use crate::engine::traced::TracedRecords;
use crate::presence::change::Change;
use crate::presence::state::UserImage;
use crate::schema::json;
use crate::store::{self, IndexReader};
use std::collections::BTreeSet;
use std::ops::Range;

/// Enough for the line of most users, with one or two devices.
const USER_LINE_BYTES: usize = 512;

impl PartitionProcessor {
    #[cfg(test)]
    pub(crate) fn traced(&self) -> &TracedRecords {
        &self.traced
    }

    /// The index of changes, with its reader where the store can be shared.
    pub fn index(&self) -> Option<(&UserIndex, Option<IndexReader>)> {
        let reader = self.store.as_ref()?.index_reader();
        Some((self.outbox.index.as_ref()?, reader))
    }

    /// Leaves out of the index what the log no longer has. `first`: the oldest change kept, if older ones are gone.
    pub fn cut_index(&mut self, first: Option<Option<Change>>) {
        let committed = self.outbox.committed().seq;
        let gone = first.map(|first| first.map_or(committed, |first| first.seq - 1));
        if let (Some(index), Some(gone)) = (&mut self.outbox.index, gone) {
            index.cut(gone);
        }
    }

    /// Calls `each` with a user, if there is such a one; shows what is settled only between steps.
    pub fn look_up<T>(&self, user: &str, each: impl FnMut(&UserImage<'_>) -> T) -> Result<Option<T>, Error> {
        Ok(self.look_up_all(&[user], each)?.pop().flatten())
    }

    /// The same for many users, in the order given. Those who are not in memory are read from the store in one call.
    pub fn look_up_all<T>(
        &self,
        users: &[&str],
        mut each: impl FnMut(&UserImage<'_>) -> T,
    ) -> Result<Vec<Option<T>>, Error> {
        let mut found: Vec<Option<T>> = Vec::with_capacity(users.len());
        let mut away = Vec::new();
        for (at, user) in users.iter().enumerate() {
            let slot = self.state.slot_of(user);
            if slot.is_none() && !self.gone.contains_key(*user) {
                away.push(at);
            }
            let image = slot.and_then(|slot| self.state.image(slot));
            found.push(image.map(|image| each(&image)));
        }
        let Some(store) = self.store.as_ref().filter(|_| !away.is_empty()) else {
            return Ok(found);
        };
        let values = store.get_away(away.iter().map(|at| users[*at]))?;
        for (at, value) in away.into_iter().zip(values) {
            if let Some(value) = value {
                let (image, _) = store::read_away(users[at], &value).ok_or(Error::Unreadable)?;
                found[at] = Some(each(&image));
            }
        }
        Ok(found)
    }

    /// Returns what the state says of a user that its changes do not.
    pub fn user_now(&self, user: &str) -> Result<UserNow, Error> {
        match self.state.slot_of(user) {
            Some(slot) => Ok(UserNow::of_slot(&self.state, slot)),
            None => Ok(self.look_up(user, UserNow::of_away)?.unwrap_or_default()),
        }
    }

    /// The lines of `rollcall fold --state`: every user, in memory or not, then the partition.
    pub fn state_lines(&self) -> Result<Vec<u8>, Error> {
        // Gathered in any order, and then put in that of the ids.
        let mut gathered = Vec::with_capacity(self.state.users_in_memory() * USER_LINE_BYTES);
        let mut users: Vec<(Box<str>, Range<usize>)> = Vec::with_capacity(self.state.users_in_memory());
        let mut line = |image: &UserImage<'_>| {
            let start = gathered.len();
            json::user_line(&mut gathered, image, self.state.time());
            gathered.push(b'\n');
            users.push((image.user.into(), start..gathered.len()));
        };
        let images = self.state.slots().filter_map(|slot| self.state.image(slot));
        images.for_each(|image| line(&image));
        if let Some(store) = &self.store {
            let forgotten: BTreeSet<&str> = self.state.forgotten().map(|(_, user)| &**user).collect();
            store.for_each_away(|image| {
                if self.state.slot_of(image.user).is_none()
                    && !self.gone.contains_key(image.user)
                    && !forgotten.contains(image.user)
                {
                    line(image);
                }
            })?;
        }
        users.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
        let mut lines = Vec::with_capacity(gathered.len() + USER_LINE_BYTES);
        for (_, place) in users {
            lines.extend_from_slice(&gathered[place]);
        }
        json::partition_line(&mut lines, &self.state.partition_image());
        lines.push(b'\n');
        Ok(lines)
    }
}
