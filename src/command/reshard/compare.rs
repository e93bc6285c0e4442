//! Compares an old partition with its parts in the new log: they must say the same about everybody.

use crate::presence::Offset;
use crate::presence::event::Event;
use crate::presence::state::{Phase, Slot, State, UserImage};
use crate::schema::json;

/// Differences, of which the first ones are described.
#[derive(Default, Debug)]
pub struct Differences {
    /// How many users were compared.
    pub users: u64,
    pub count: u64,
    pub described: Vec<String>,
}

/// How many differences are described.
const DESCRIBED_MAX: usize = 10;

impl Differences {
    fn add(&mut self, describe: impl FnOnce() -> String) {
        self.count += 1;
        if self.described.len() < DESCRIBED_MAX {
            self.described.push(describe());
        }
    }

    pub fn extend(&mut self, others: Differences) {
        self.users += others.users;
        self.count += others.count;
        self.described.extend(others.described);
        self.described.truncate(DESCRIBED_MAX);
    }
}

/// Compares an old partition with its parts. First moves the time of the parts to that of the old partition, as a tick would: so
/// nothing can be folded into the parts afterwards.
pub fn compare(source: &State, parts: &mut [&mut State]) -> Differences {
    for part in parts.iter_mut() {
        if let Some(time) = source.time().filter(|time| part.time().is_none_or(|part| part < *time)) {
            let next = part.offset().map_or(0, |offset| offset.0 + 1);
            part.fold(Offset(next), time.0, Some(&Event::Tick), &mut |_| {});
        }
    }
    let mut differences = Differences::default();
    for part in parts.iter() {
        compare_partition(source, part, &mut differences);
    }
    for user in source.slots().filter_map(|slot| source.user_id(slot)) {
        differences.users += 1;
        let was = source.slot_of(user);
        let is = parts.iter().find_map(|part| Some((&**part, part.slot_of(user)?)));
        let Some((part, is)) = is else {
            differences.add(|| {
                format!(
                    "user {user:?} is missing in the new log; in the old one: {}",
                    line(source, was)
                )
            });
            continue;
        };
        if without_offsets(source, was) != without_offsets(part, Some(is)) {
            let (old, new) = (line(source, was), line(part, Some(is)));
            differences.add(|| format!("user {user:?}\n  old {old}\n  new {new}"));
        }
    }
    for part in parts.iter() {
        for user in part.slots().filter_map(|slot| part.user_id(slot)) {
            if source.slot_of(user).is_none() {
                differences.add(|| {
                    let new = line(part, part.slot_of(user));
                    format!("user {user:?} is missing in the old log; in the new one: {new}")
                });
            }
        }
    }
    differences
}

/// Compares what a partition has beside its users. A part to which nothing was copied has nothing to compare.
fn compare_partition(source: &State, part: &State, differences: &mut Differences) {
    if part.offset().is_none() {
        return;
    }
    let (old, new) = (source.partition_image(), part.partition_image());
    let at = |what: &str| {
        format!(
            "partition {} has another {what} than partition {}",
            part.partition(),
            source.partition()
        )
    };
    if old.policy != new.policy {
        differences.add(|| at("policy"));
    }
    if old.revision != new.revision {
        differences.add(|| at("revision"));
    }
    if old.grace_until != new.grace_until {
        differences.add(|| at("end of its outage grace"));
    }
    if old.gateways != new.gateways {
        differences.add(|| at("list of gateways, epochs or leases"));
    }
}

/// Returns a user, without the offsets of the log.
fn without_offsets(state: &State, slot: Option<Slot>) -> Option<UserImage<'_>> {
    let mut image = state.image(slot?)?;
    for device in &mut image.devices {
        match &mut device.phase {
            Phase::Online { session, .. } | Phase::Away { session, .. } => session.evidence = Offset(0),
            Phase::Kicked { .. } => {}
        }
    }
    Some(image)
}

/// Returns a user as `rollcall fold --state` prints it.
fn line(state: &State, slot: Option<Slot>) -> String {
    let mut line = Vec::new();
    if let Some(image) = slot.and_then(|slot| state.image(slot)) {
        json::user_line(&mut line, &image, state.time());
    }
    String::from_utf8_lossy(&line).into_owned()
}
