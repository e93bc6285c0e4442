//! The users in memory, in numbered slots, each in the smaller of the two forms that fits.

use super::ahead::USERS_AHEAD;
use super::compact::{Compact, EpochId, Epochs, Refreshed, Shared, ShortBeat};
use super::rulebook::Rulebook;
use super::state::{Dirt, Dirty, Slot, User};
use super::table::{HashSeed, Hasher, Index};
use super::texts::{Texts, text};
use super::{Conn, LogTime};

const SLOTS_PER_CHUNK: usize = 256;

/// One line of the processor's cache.
#[repr(align(64))]
struct Line(Form);

const _: () = assert!(
    size_of::<Line>() == 64,
    "a compact user fits into one line of the cache"
);

enum Form {
    Vacant,
    Compact(Compact),
    Whole(Box<User>),
}

/// A user in either form.
#[derive(Clone, Copy)]
pub(super) enum UserRef<'u> {
    Compact(&'u Compact, &'u Shared),
    Whole(&'u User),
}

impl<'u> UserRef<'u> {
    pub fn id(self) -> &'u str {
        match self {
            UserRef::Compact(user, shared) => text(shared.texts.user(user.text)),
            UserRef::Whole(user) => &user.id,
        }
    }

    pub fn armed(self) -> LogTime {
        match self {
            UserRef::Compact(user, _) => user.armed(),
            UserRef::Whole(user) => user.armed,
        }
    }

    pub fn is_due(self) -> bool {
        match self {
            UserRef::Compact(..) => false,
            UserRef::Whole(user) => user.due,
        }
    }

    pub fn has_online_device(self) -> bool {
        match self {
            UserRef::Compact(..) => true,
            UserRef::Whole(user) => user.has_online_device(),
        }
    }

    fn dirt(self) -> Dirt {
        match self {
            UserRef::Compact(user, _) => user.dirt,
            UserRef::Whole(user) => user.dirt,
        }
    }
}

pub(super) struct Users {
    hasher: Hasher,
    index: Index<u32>,
    /// In chunks, since one vector would have to be copied when it grows.
    lines: Vec<Box<[Line]>>,
    /// Slots below this number were in use at some time.
    slots: u32,
    free: Vec<u32>,
    /// Slots that were freed and may not be reused before [`Users::take_dirt`].
    resting: Vec<u32>,
    len: usize,
    shared: Shared,
    /// Users who were compact before something looked at them closely.
    expanded: Vec<Slot>,
    dirty: Vec<Slot>,
    beats: Vec<Slot>,
    forgotten: Vec<(Slot, Box<str>)>,
}

impl Users {
    pub fn new(seed: HashSeed) -> Users {
        Users {
            hasher: Hasher::new(seed),
            index: Index::new(),
            lines: Vec::new(),
            slots: 0,
            free: Vec::new(),
            resting: Vec::new(),
            len: 0,
            shared: Shared {
                texts: Texts::new(),
                epochs: Epochs::default(),
            },
            expanded: Vec::new(),
            dirty: Vec::new(),
            beats: Vec::new(),
            forgotten: Vec::new(),
        }
    }

    pub fn len(&self) -> usize {
        self.len
    }

    /// Reserves room in the index for this many more users.
    pub fn reserve(&mut self, more: usize) {
        self.index.reserve(more);
    }

    fn form(&self, slot: Slot) -> &Form {
        let at = slot.0 as usize;
        match self.lines.get(at / SLOTS_PER_CHUNK) {
            Some(chunk) => &chunk[at % SLOTS_PER_CHUNK].0,
            None => &Form::Vacant,
        }
    }

    fn form_mut(&mut self, slot: Slot) -> Option<&mut Form> {
        let at = slot.0 as usize;
        let chunk = self.lines.get_mut(at / SLOTS_PER_CHUNK)?;
        Some(&mut chunk[at % SLOTS_PER_CHUNK].0)
    }

    /// Returns the hash of an id, for [`Users::likely`].
    pub fn hash(&self, id: &str) -> u32 {
        self.hasher.name(id)
    }

    /// Returns the slot of the user whose id has this hash, or of another user with the same hash. Does not read the
    /// user itself.
    pub fn likely(&self, hash: u32) -> Option<Slot> {
        self.index.likely(hash).map(Slot)
    }

    pub fn find(&self, id: &str) -> Option<Slot> {
        let is = |slot| match self.form(Slot(slot)) {
            Form::Vacant => false,
            Form::Compact(user) => self.shared.texts.user(user.text) == id.as_bytes(),
            Form::Whole(user) => *user.id == *id,
        };
        self.index.find(self.hash(id), is).map(Slot)
    }

    pub fn view(&self, slot: Slot) -> Option<UserRef<'_>> {
        match self.form(slot) {
            Form::Vacant => None,
            Form::Compact(user) => Some(UserRef::Compact(user, &self.shared)),
            Form::Whole(user) => Some(UserRef::Whole(user)),
        }
    }

    pub fn id(&self, slot: Slot) -> Option<&str> {
        self.view(slot).map(UserRef::id)
    }

    /// Returns the epochs that compact users refer to.
    pub fn epochs(&self) -> &Epochs {
        &self.shared.epochs
    }

    /// Returns a user for changes that need not be saved, and for looking at closely.
    pub fn keep(&mut self, slot: Slot) -> Option<&mut User> {
        let at = slot.0 as usize;
        let chunk = self.lines.get_mut(at / SLOTS_PER_CHUNK)?;
        let form = &mut chunk[at % SLOTS_PER_CHUNK].0;
        if let Form::Compact(user) = form {
            let user = user.expand(&mut self.shared);
            *form = Form::Whole(Box::new(user));
            self.expanded.push(slot);
        }
        match form {
            Form::Whole(user) => Some(user),
            Form::Vacant | Form::Compact(_) => None,
        }
    }

    /// Returns a user whom nothing changes.
    pub fn get(&mut self, slot: Slot) -> Option<&User> {
        self.keep(slot).map(|user| &*user)
    }

    /// Returns a user for changes other than those of [`Users::beat`].
    pub fn change(&mut self, slot: Slot) -> Option<&mut User> {
        let at = slot.0 as usize;
        self.keep(slot)?;
        let Form::Whole(user) = &mut self.lines[at / SLOTS_PER_CHUNK][at % SLOTS_PER_CHUNK].0 else {
            return None;
        };
        if user.dirt != Dirt::Everything {
            user.dirt = Dirt::Everything;
            self.dirty.push(slot);
        }
        Some(user)
    }

    /// Returns a user for changes of `last_seen`, `evidence` and the heartbeat deadline.
    pub fn beat(&mut self, slot: Slot) -> Option<&mut User> {
        let at = slot.0 as usize;
        self.keep(slot)?;
        let Form::Whole(user) = &mut self.lines[at / SLOTS_PER_CHUNK][at % SLOTS_PER_CHUNK].0 else {
            return None;
        };
        if user.dirt == Dirt::Clean {
            user.dirt = Dirt::Beats;
            self.beats.push(slot);
        }
        Some(user)
    }

    /// Returns a user who is compact, for changes that need not be saved.
    pub fn keep_compact(&mut self, slot: Slot) -> Option<(&mut Compact, &Epochs)> {
        let at = slot.0 as usize;
        let chunk = self.lines.get_mut(at / SLOTS_PER_CHUNK)?;
        match &mut chunk[at % SLOTS_PER_CHUNK].0 {
            Form::Compact(user) => Some((user, &self.shared.epochs)),
            Form::Vacant | Form::Whole(_) => None,
        }
    }

    /// Refreshes a user, as a heartbeat, if it is compact and on this connection.
    pub fn refresh_compact(
        &mut self,
        slot: Slot,
        epoch: EpochId,
        conn: Conn,
        beat: ShortBeat,
        rules: &Rulebook,
    ) -> Refreshed {
        let Some((user, _)) = self.keep_compact(slot) else {
            return Refreshed::No;
        };
        let refreshed = user.refresh(epoch, conn, beat, rules);
        if refreshed != Refreshed::No && user.dirt == Dirt::Clean {
            user.dirt = Dirt::Beats;
            self.beats.push(slot);
        }
        refreshed
    }

    pub fn set_armed(&mut self, slot: Slot, time: LogTime) {
        if let Some((user, _)) = self.keep_compact(slot)
            && user.set_armed(time)
        {
            return;
        }
        if let Some(user) = self.keep(slot) {
            user.armed = time;
        }
    }

    pub fn create(&mut self, id: &str) -> Slot {
        let slot = self.vacant();
        self.insert_at(slot, User::new(id));
        slot
    }

    /// Returns a slot for [`Users::insert_at`], which must follow.
    pub fn vacant(&mut self) -> Slot {
        Slot(self.free.pop().unwrap_or(self.slots))
    }

    /// Adds a user who is not in memory at a vacant slot. After slots of the caller's own choice call [`Users::seal`].
    pub fn insert_at(&mut self, slot: Slot, user: User) {
        let hash = self.hash(&user.id);
        let form = match Compact::of(&user, &mut self.shared) {
            Some(compact) => Form::Compact(compact),
            None => Form::Whole(Box::new(user)),
        };
        self.slots = self.slots.max(slot.0 + 1);
        while self.lines.len() * SLOTS_PER_CHUNK < self.slots as usize {
            let chunk = (0..SLOTS_PER_CHUNK).map(|_| Line(Form::Vacant));
            self.lines.push(chunk.collect());
        }
        if let Some(place) = self.form_mut(slot) {
            *place = form;
        }
        self.index.insert(hash, slot.0);
        self.len += 1;
    }

    /// Makes the vacant slots below the highest one available.
    pub fn seal(&mut self) {
        let vacant = (0..self.slots).rev();
        self.free = vacant.filter(|slot| self.view(Slot(*slot)).is_none()).collect();
        self.resting.clear();
    }

    /// Removes a user from memory. The slot is not reused before [`Users::take_dirt`].
    pub fn remove(&mut self, slot: Slot) -> Option<Box<User>> {
        self.keep(slot)?;
        let Form::Whole(user) = std::mem::replace(self.form_mut(slot)?, Form::Vacant) else {
            return None;
        };
        let hash = self.hash(&user.id);
        self.index.remove(hash, slot.0);
        self.resting.push(slot.0);
        self.len -= 1;
        Some(user)
    }

    pub fn forget(&mut self, slot: Slot) {
        if let Some(user) = self.remove(slot) {
            self.forgotten.push((slot, user.id));
        }
    }

    /// Returns the slots of all users in memory, in order.
    pub fn slots(&self) -> impl Iterator<Item = Slot> {
        (0..self.slots).map(Slot).filter(|slot| self.view(*slot).is_some())
    }

    /// Returns whether a user has not changed since it was last saved.
    pub fn is_clean(&self, slot: Slot) -> bool {
        self.view(slot).is_some_and(|user| user.dirt() == Dirt::Clean)
    }

    pub fn forgotten(&self) -> &[(Slot, Box<str>)] {
        &self.forgotten
    }

    /// Returns how many users are dirty or forgotten, except those of whom only heartbeat times changed.
    pub fn changed(&self) -> usize {
        self.dirty.len() + self.forgotten.len()
    }

    /// Returns what has changed since the last call, all of which counts as saved from here on, and makes users compact.
    pub fn take_dirt(&mut self) -> Dirty {
        let mut dirty = Dirty {
            users: std::mem::take(&mut self.dirty),
            beats: std::mem::take(&mut self.beats),
            forgotten: std::mem::take(&mut self.forgotten),
        };
        self.wash(&mut dirty.beats, Dirt::Beats);
        self.wash(&mut dirty.users, Dirt::Everything);
        for slots in std::mem::take(&mut self.expanded).chunks(USERS_AHEAD) {
            self.look_ahead(slots.iter().copied());
            slots.iter().for_each(|slot| self.make_compact(*slot));
        }
        // The slots of forgotten users.
        self.free.append(&mut self.resting);
        dirty
    }

    /// Leaves the slots of users with this dirt, in order and once each, and cleans them.
    fn wash(&mut self, slots: &mut Vec<Slot>, dirt: Dirt) {
        slots.sort_unstable();
        slots.dedup();
        let mut kept = 0;
        for place in 0..slots.len() {
            if place % USERS_AHEAD == 0 {
                self.look_ahead(slots[place..].iter().copied());
            }
            let slot = slots[place];
            if self.clean(slot, dirt) {
                slots[kept] = slot;
                kept += 1;
            }
        }
        slots.truncate(kept);
    }

    /// Cleans a user with this dirt. Returns false and does nothing for others: a user may have been forgotten meanwhile, and
    /// a user in `beats` may be in `dirty`, too.
    fn clean(&mut self, slot: Slot, dirt: Dirt) -> bool {
        let of_user = match self.form_mut(slot) {
            Some(Form::Compact(user)) => &mut user.dirt,
            Some(Form::Whole(user)) => &mut user.dirt,
            Some(Form::Vacant) | None => return false,
        };
        let has_it = *of_user == dirt;
        if has_it {
            *of_user = Dirt::Clean;
            self.make_compact(slot);
        }
        has_it
    }

    fn make_compact(&mut self, slot: Slot) {
        let at = slot.0 as usize;
        let Some(chunk) = self.lines.get_mut(at / SLOTS_PER_CHUNK) else {
            return;
        };
        let form = &mut chunk[at % SLOTS_PER_CHUNK].0;
        if let Form::Whole(user) = form
            && let Some(compact) = Compact::of(user, &mut self.shared)
        {
            *form = Form::Compact(compact);
        }
    }
}
