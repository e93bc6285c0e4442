//! Which events of the quarantine may come in again, by what the log has had since.
//!
//! The log is the only record of what was requeued. An event that the log has after the malformed record is there already,
//! whether an earlier run published it, a run that was killed, or the corrected publisher. An event that a later one of the same
//! device or user has overtaken would state as current what no longer holds. So it does not matter how often and from where
//! `requeue` runs.

use crate::presence::event::{DeviceRef, Event, Intent, Target};
use crate::presence::{Offset, Partition};
use crate::schema::avro;
use std::collections::HashMap;

/// Timestamps of Kafka may step back; by how much at most.
pub const STEP_BACK_MS: u64 = 60_000;

/// An event of the quarantine that can be read now.
pub struct Candidate {
    /// The malformed record.
    pub partition: Partition,
    pub offset: Offset,
    pub ts: u64,
    pub error: String,
    pub user: Box<str>,
    /// The partition of the user.
    pub home: Partition,
    /// In single-object encoding, with our schema.
    pub encoded: Vec<u8>,
    pub since: Since,
    /// Whether retention may have removed events since the malformed record: then what the log has does not tell.
    pub is_unchecked: bool,
}

/// What the log has had since the malformed record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Since {
    Nothing,
    /// The same event, at this offset of the user's partition.
    Itself(Offset),
    /// A later event because of which it no longer holds.
    Overtaken(Offset),
    /// Not in the log yet, but published by this run as the malformed record at this place: its publisher had sent it again.
    Repeats(Partition, Offset),
}

/// When a malformed record was appended, and which it is: the order in which events are published.
pub type Appended = (u64, Partition, Offset);

impl Candidate {
    pub fn appended(&self) -> Appended {
        (self.ts, self.partition, self.offset)
    }

    pub fn event(&self) -> Event<'_> {
        avro::decode_event(&self.encoded).expect("it was encoded from an event")
    }

    /// Whether a record was appended after this one. Partitions have only their times in common.
    fn is_before(&self, partition: Partition, offset: Offset, ts: u64) -> bool {
        match self.partition == partition {
            true => self.offset < offset,
            false => self.ts <= ts,
        }
    }
}

/// The candidates in the order in which they were appended.
pub struct Candidates {
    pub all: Vec<Candidate>,
    by_user: HashMap<Box<str>, Vec<usize>>,
}

impl Candidates {
    pub fn new(mut all: Vec<Candidate>) -> Candidates {
        sort(&mut all);
        let mut by_user: HashMap<_, Vec<usize>> = HashMap::new();
        for (index, candidate) in all.iter().enumerate() {
            by_user.entry(candidate.user.clone()).or_default().push(index);
        }
        Candidates { all, by_user }
    }

    /// Returns whether a record with this key may say something about a candidate.
    pub fn concerns(&self, key: Option<&[u8]>) -> bool {
        let user = key.and_then(|key| std::str::from_utf8(key).ok());
        user.is_some_and(|user| self.by_user.contains_key(user))
    }

    /// Notes from where on the log has the events of a partition, and when the first of these was appended.
    pub fn has_only_from(&mut self, partition: Partition, start: Offset, oldest_ts: Option<u64>) {
        for candidate in self.all.iter_mut().filter(|candidate| candidate.home == partition) {
            let has_all_since = match candidate.partition == partition {
                true => start.0 <= candidate.offset.0 + 1,
                // What was removed may be younger than what follows it.
                false => oldest_ts.is_some_and(|oldest_ts| oldest_ts.saturating_add(STEP_BACK_MS) < candidate.ts),
            };
            candidate.is_unchecked |= !has_all_since;
        }
    }

    /// Notes an event that the log has. Events must be noted in the order of the log.
    pub fn see(&mut self, partition: Partition, offset: Offset, ts: u64, event: &Event<'_>) {
        let Some(of_user) = event.user().and_then(|user| self.by_user.get(user)) else {
            return;
        };
        let mut encoded = Vec::new();
        avro::encode_event(event, &mut encoded);
        let is_there = |candidate: &Candidate| {
            let is_counted = matches!(candidate.since, Since::Itself(_));
            candidate.encoded == encoded && !is_counted && candidate.is_before(partition, offset, ts)
        };
        let itself = of_user.iter().position(|index| is_there(&self.all[*index]));
        // What the event overtakes: every candidate, or those that were appended before the one that it is.
        let before = itself.unwrap_or(of_user.len());
        for index in &of_user[..before] {
            let candidate = &self.all[*index];
            if candidate.since == Since::Nothing
                && candidate.encoded != encoded
                && candidate.is_before(partition, offset, ts)
                && overtakes(event, &candidate.event())
            {
                self.all[*index].since = Since::Overtaken(offset);
            }
        }
        let Some(itself) = itself else { return };
        for index in repeats(&self.all, &of_user[itself..], event, &encoded) {
            self.all[index].since = Since::Itself(offset);
        }
    }

    /// Notes that a candidate was published, before the log is read again: those that repeat it must not be.
    pub fn published(&mut self, index: usize) {
        let published = &self.all[index];
        let (partition, offset) = (published.partition, published.offset);
        let of_user = &self.by_user[&published.user];
        let behind = of_user.iter().position(|other| *other > index).unwrap_or(of_user.len());
        for repeat in repeats(&self.all, &of_user[behind..], &published.event(), &published.encoded) {
            self.all[repeat].since = Since::Repeats(partition, offset);
        }
    }
}

/// Returns which of these candidates are the same event: a publisher that tries again may have written it several times in a row.
fn repeats(all: &[Candidate], indexes: &[usize], event: &Event<'_>, encoded: &[u8]) -> Vec<usize> {
    let candidates = indexes.iter().map(|index| (*index, &all[*index]));
    let until_overtaken =
        candidates.take_while(|(_, candidate)| candidate.encoded == encoded || !overtakes(&candidate.event(), event));
    let same = until_overtaken.filter(|(_, candidate)| candidate.encoded == encoded);
    same.map(|(index, _)| index).collect()
}

/// Sorts by the time of the malformed record.
pub fn sort(candidates: &mut [Candidate]) {
    candidates.sort_by_key(Candidate::appended);
}

/// Returns whether an event no longer holds once a later one of the same user is in the log.
fn overtakes(later: &Event<'_>, earlier: &Event<'_>) -> bool {
    let later = lasting(later);
    match lasting(earlier) {
        Lasting::Connect(device, intent) => match later {
            // An old login that comes in now could end one that came after it.
            Lasting::Connect(other, again) => (intent, again) == (Intent::Login, Intent::Login) || other == device,
            Lasting::Link(other) => other == device,
            Lasting::Kick(target) => is_target(target, device),
            Lasting::Forget => true,
            Lasting::CustomStatus | Lasting::Nothing => false,
        },
        Lasting::Link(device) => match later {
            Lasting::Connect(other, _) | Lasting::Link(other) => other == device,
            Lasting::Kick(target) => is_target(target, device),
            Lasting::Forget => true,
            Lasting::CustomStatus | Lasting::Nothing => false,
        },
        Lasting::CustomStatus => match later {
            Lasting::CustomStatus | Lasting::Forget => true,
            Lasting::Kick(target) => *target == Target::All,
            Lasting::Connect(..) | Lasting::Link(_) | Lasting::Nothing => false,
        },
        // It would end a login that came after it.
        Lasting::Kick(target) => match later {
            Lasting::Connect(other, _) => is_target(target, other),
            Lasting::Forget => true,
            Lasting::Link(_) | Lasting::Kick(_) | Lasting::CustomStatus | Lasting::Nothing => false,
        },
        Lasting::Forget => match later {
            Lasting::Connect(..) => true,
            Lasting::Link(_) | Lasting::Kick(_) | Lasting::CustomStatus | Lasting::Forget | Lasting::Nothing => false,
        },
        Lasting::Nothing => false,
    }
}

/// What an event says that still holds when later events come.
#[derive(Clone, Copy)]
enum Lasting<'e> {
    Connect(&'e DeviceRef<'e>, Intent),
    /// That the device is in the background or in the foreground, or that its link or its login has ended.
    Link(&'e DeviceRef<'e>),
    Kick(&'e Target<'e>),
    CustomStatus,
    Forget,
    Nothing,
}

fn lasting<'e>(event: &'e Event<'_>) -> Lasting<'e> {
    match event {
        Event::Connect { who, intent, .. } => Lasting::Connect(who, *intent),
        Event::Background { who, .. }
        | Event::Foreground { who, .. }
        | Event::Disconnect { who, .. }
        | Event::Logout { who, .. } => Lasting::Link(who),
        Event::Kick { target, .. } => Lasting::Kick(target),
        Event::CustomStatus { .. } => Lasting::CustomStatus,
        Event::Forget { .. } => Lasting::Forget,
        Event::Heartbeat { .. }
        | Event::Heartbeats { .. }
        | Event::Alive { .. }
        | Event::Lease { .. }
        | Event::Policy { .. }
        | Event::Revision { .. }
        | Event::Tick => Lasting::Nothing,
    }
}

fn is_target(target: &Target<'_>, device: &DeviceRef<'_>) -> bool {
    match target {
        Target::All => true,
        Target::Platform(platform) => *platform == device.platform,
        Target::Device(platform, id) => *platform == device.platform && *id == device.device,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::event::{ConnRef, Ending};
    use crate::presence::{Conn, Epoch};

    fn who(device: &'static str) -> DeviceRef<'static> {
        DeviceRef {
            user: "alice".into(),
            platform: "web".into(),
            device: device.into(),
        }
    }

    fn via(conn: u64) -> ConnRef<'static> {
        ConnRef {
            gateway: "g1".into(),
            epoch: Epoch(1),
            conn: Conn(conn),
        }
    }

    fn connect(device: &'static str, conn: u64) -> Event<'static> {
        Event::Connect {
            who: who(device),
            via: via(conn),
            intent: Intent::Login,
            client: None,
            auth_at: None,
        }
    }

    fn disconnect(device: &'static str, conn: u64) -> Event<'static> {
        Event::Disconnect {
            who: who(device),
            via: via(conn),
            reason: Ending::Closed,
        }
    }

    fn status(text: &'static str) -> Event<'static> {
        Event::CustomStatus {
            user: "alice".into(),
            text: Some(text.into()),
        }
    }

    const HOME: Partition = Partition(1);

    /// What is known of each candidate after the log had these events. The candidates were malformed in another partition, at
    /// the times 10, 11 and so on; the log's events are of the times 20, 21 and so on.
    fn after(malformed: &[Event<'static>], log: &[Event<'static>]) -> Vec<Since> {
        let mut candidates = candidates(malformed);
        for (at, event) in (0..).zip(log) {
            candidates.see(HOME, Offset(at), 20 + at, event);
        }
        candidates.all.iter().map(|candidate| candidate.since).collect()
    }

    fn candidates(malformed: &[Event<'static>]) -> Candidates {
        let candidate = |(at, event): (u64, &Event<'static>)| {
            let mut encoded = Vec::new();
            avro::encode_event(event, &mut encoded);
            Candidate {
                partition: Partition(0),
                offset: Offset(at),
                ts: 10 + at,
                error: String::new(),
                user: "alice".into(),
                home: HOME,
                encoded,
                since: Since::Nothing,
                is_unchecked: false,
            }
        };
        Candidates::new((0..).zip(malformed).map(candidate).collect())
    }

    #[test]
    fn what_the_log_has_already_is_there_whoever_published_it() {
        let both = [connect("d", 1), disconnect("d", 1)];
        assert_eq!(after(&both, &[]), [Since::Nothing; 2]);
        // A run that was killed between the two.
        assert_eq!(after(&both, &both[..1]), [Since::Itself(Offset(0)), Since::Nothing]);
        assert_eq!(
            after(&both, &both),
            [Since::Itself(Offset(0)), Since::Itself(Offset(1))]
        );
        // The publisher sent only the second again: the first would come after it.
        assert_eq!(
            after(&both, &both[1..]),
            [Since::Overtaken(Offset(0)), Since::Itself(Offset(0))]
        );
    }

    #[test]
    fn each_of_several_equal_events_is_counted_once_and_repeats_are_one() {
        let statuses = [status("busy"), status("away"), status("busy")];
        let there = after(&statuses, &statuses[..2]);
        assert_eq!(
            there,
            [Since::Itself(Offset(0)), Since::Itself(Offset(1)), Since::Nothing]
        );
        let repeated = [status("in"), status("in"), connect("e", 2), status("in")];
        let there = after(&repeated, &repeated[..1]);
        let itself = Since::Itself(Offset(0));
        assert_eq!(there, [itself, itself, Since::Nothing, itself]);
    }

    #[test]
    fn what_repeats_an_event_that_was_published_is_not_published_before_the_log_is_read_again() {
        let malformed = [
            status("in"),
            status("in"),
            connect("e", 2),
            status("in"),
            status("out"),
            status("in"),
        ];
        let mut candidates = candidates(&malformed);
        candidates.published(0);
        let repeats = Since::Repeats(Partition(0), Offset(0));
        let since = |candidates: &Candidates| candidates.all.iter().map(|one| one.since).collect::<Vec<_>>();
        let nothing = Since::Nothing;
        assert_eq!(
            since(&candidates),
            [nothing, repeats, nothing, repeats, nothing, nothing]
        );
        // What the log has then counts.
        candidates.see(HOME, Offset(7), 20, &malformed[0]);
        let itself = Since::Itself(Offset(7));
        assert_eq!(since(&candidates), [itself, itself, nothing, itself, nothing, nothing]);
        candidates.published(5);
        assert_eq!(candidates.all[5].since, nothing);
    }

    #[test]
    fn an_event_that_no_longer_holds_is_overtaken() {
        let forget = || Event::Forget { user: "alice".into() };
        let kick = |target| Event::Kick {
            user: "alice".into(),
            target,
        };
        let heartbeat = || Event::Heartbeat {
            who: who("d"),
            via: via(2),
        };
        let on_web = || kick(Target::Platform("web".into()));
        let overtaken = [
            (connect("d", 1), connect("d", 2)),
            (connect("d", 1), connect("e", 2)),
            (disconnect("d", 1), connect("d", 2)),
            (connect("d", 1), kick(Target::All)),
            (connect("d", 1), on_web()),
            (connect("d", 1), forget()),
            (status("busy"), status("away")),
            (status("busy"), kick(Target::All)),
            (on_web(), connect("d", 1)),
            (forget(), connect("d", 1)),
        ];
        for (malformed, later) in overtaken {
            let is = after(std::slice::from_ref(&malformed), std::slice::from_ref(&later));
            assert_eq!(is, [Since::Overtaken(Offset(0))], "{malformed:?}, {later:?}");
        }
        let holds = [
            (disconnect("d", 1), connect("e", 2)),
            (connect("d", 1), heartbeat()),
            (connect("d", 1), status("away")),
            (connect("d", 1), kick(Target::Platform("ipad".into()))),
            (status("busy"), connect("d", 1)),
            (kick(Target::Platform("ipad".into())), connect("d", 1)),
            (forget(), heartbeat()),
        ];
        for (malformed, later) in holds {
            let is = after(std::slice::from_ref(&malformed), std::slice::from_ref(&later));
            assert_eq!(is, [Since::Nothing], "{malformed:?}, {later:?}");
        }
    }

    #[test]
    fn what_retention_may_have_removed_is_not_known() {
        let is_unchecked = |malformed_in: Partition, start: u64, oldest_ts: Option<u64>| {
            let mut candidates = candidates(&[status("busy"), status("away")]);
            for candidate in &mut candidates.all {
                candidate.partition = malformed_in;
                candidate.ts += STEP_BACK_MS;
            }
            candidates.has_only_from(Partition(7), Offset(9), None);
            candidates.has_only_from(HOME, Offset(start), oldest_ts);
            candidates
                .all
                .iter()
                .map(|candidate| candidate.is_unchecked)
                .collect::<Vec<_>>()
        };
        // Its own partition has offsets: 0 and 1 are malformed.
        assert_eq!(is_unchecked(HOME, 1, None), [false, false]);
        assert_eq!(is_unchecked(HOME, 2, None), [true, false]);
        assert_eq!(is_unchecked(HOME, 3, None), [true, true]);
        // Another one only times: those of 10 and 11 are malformed.
        let elsewhere = Partition(0);
        assert_eq!(is_unchecked(elsewhere, 1, Some(9)), [false, false]);
        assert_eq!(is_unchecked(elsewhere, 1, Some(10)), [true, false]);
        assert_eq!(is_unchecked(elsewhere, 1, None), [true, true]);
    }

    #[test]
    fn what_was_there_before_the_malformed_record_says_nothing() {
        let mut encoded = Vec::new();
        avro::encode_event(&status("busy"), &mut encoded);
        let candidate = Candidate {
            partition: HOME,
            offset: Offset(5),
            ts: 10,
            error: String::new(),
            user: "alice".into(),
            home: HOME,
            encoded,
            since: Since::Nothing,
            is_unchecked: false,
        };
        let mut candidates = Candidates::new(vec![candidate]);
        assert!(candidates.concerns(Some(b"alice")));
        assert!(!candidates.concerns(Some(b"bob")) && !candidates.concerns(None));
        // Its own partition has offsets, whatever the times are.
        candidates.see(HOME, Offset(4), 30, &status("busy"));
        candidates.see(HOME, Offset(4), 30, &status("away"));
        assert_eq!(candidates.all[0].since, Since::Nothing);
        candidates.see(HOME, Offset(6), 9, &status("busy"));
        assert_eq!(candidates.all[0].since, Since::Itself(Offset(6)));
    }
}
