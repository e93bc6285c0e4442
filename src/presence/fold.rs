//! The fold: applies records one by one, returns outputs and updates the state (sections 2 and 6).
//!
//! A record is folded in three steps. [`State::fold`] does all of them. If a record must be split, because more users
//! are due than fit into memory, they are called one by one: [`State::begin`] moves time, [`State::fire`] fires what is
//! due, possibly only up to a point, and [`State::apply`] applies the record's own event.

use super::change::{
    Cause, Change, DeviceChange, IgnoreReason, Ignored, Kick, KickReason, KickedDevice, Output, OutputId, Part,
    Rehearsal,
};
use super::deadlines::{Firing, Upto};
use super::event::Event;
use super::gateways::Gateways;
use super::rulebook::Rulebook;
use super::rules::{self, Pending, Sign};
use super::state::{Device, Slot, State};
use super::{Conn, Epoch, LogTime, Offset, Revision};

/// Receives the outputs, in order.
pub type Out<'o> = &'o mut dyn FnMut(Output);

impl State {
    /// Folds one record. `event` is `None` for a malformed one, which moves time and does nothing else.
    pub fn fold(&mut self, offset: Offset, timestamp: u64, event: Option<&Event<'_>>, out: Out<'_>) {
        self.begin(offset, timestamp);
        self.fire(None, out);
        self.apply(event, out);
    }

    /// Moves time: `T := max(T, ts)`, and grants grace after an outage (section 2.4).
    pub fn begin(&mut self, offset: Offset, timestamp: u64) {
        self.offset = Some(offset);
        self.index = 0;
        self.deadlines.begin();
        let timestamp = LogTime(timestamp);
        let Some(before) = self.time else {
            self.time = Some(timestamp);
            return;
        };
        let now = before.max(timestamp);
        self.time = Some(now);
        let outage = self.rules.policy().outage;
        if outage.silence_ms > 0 && now.0 - before.0 > outage.silence_ms {
            let grace_until = now.plus(outage.grace_ms);
            let was = self.grace_until.replace(grace_until);
            // Timers were set for the end of the previous grace, which another policy may have made longer.
            if was.is_some_and(|was| was > grace_until) {
                self.rearm_all();
            }
        }
    }

    /// Continues with a record that was partly folded before this state was saved: time has moved to it already, and
    /// this many changes and kicks are published.
    pub fn resume(&mut self, offset: Offset, outputs: u64) {
        self.offset = Some(offset);
        self.index = outputs;
        self.deadlines.begin();
    }

    /// Returns how many changes and kicks the record being folded has given so far.
    pub fn outputs_of_record(&self) -> u64 {
        self.index
    }

    /// Fires every deadline `<= T`, or those of them up to a point in the order. Each has `at` = its deadline.
    pub fn fire(&mut self, upto: Option<Upto<'_>>, out: Out<'_>) {
        self.collect_due();
        while let Some((deadline, slot, device, firing)) = self.next_firing(upto) {
            self.fire_one(deadline, slot, device, firing, out);
            self.after_firing(slot);
        }
    }

    fn fire_one(&mut self, at: LogTime, slot: Slot, device: usize, firing: Firing, out: Out<'_>) {
        let State {
            users, rules, gateways, ..
        } = self;
        let Some(user) = users.change(slot) else { return };
        let mut pending = Pending::default();
        let evidence = rules::evidence_of(&user.devices[device]);
        let cause = match firing {
            Firing::LoseLink(lost_by) => {
                rules::lose_link(slot, user, device, at, lost_by, rules, gateways, &mut pending);
                Cause::from(lost_by)
            }
            Firing::Remove => {
                rules::remove(slot, user, device, rules, gateways, &mut pending);
                Cause::PushExpired
            }
        };
        self.conclude(slot, at, cause, evidence, pending, out);
    }

    /// Drops expired leases, forgets gateways that had no lease for long and early ends that are too old, and then
    /// applies the event at time `T`.
    pub fn apply(&mut self, event: Option<&Event<'_>>, out: Out<'_>) {
        let Some(now) = self.time else { return };
        self.gateways.tidy(now, self.grace_until);
        self.early_ends.expire(now);
        let Some(event) = event else { return };
        match event {
            Event::Connect {
                who,
                via,
                intent,
                client,
                auth_at,
            } => {
                let terms = rules::Terms {
                    intent: *intent,
                    client: client.as_deref(),
                    auth_at: auth_at.map(LogTime),
                };
                self.connect(who, via, &terms, out);
            }
            Event::Heartbeat { who, via } => self.sign(Sign::Heartbeat, who, &rules::via(via), Part::Whole, out),
            Event::Heartbeats { gateway, epoch, beats } => self.heartbeats(gateway, *epoch, beats, out),
            Event::Alive { gateway, epoch, conns } => self.alive(gateway, *epoch, conns, out),
            Event::Background { who, via } => self.sign(Sign::Background, who, &rules::via(via), Part::Whole, out),
            Event::Foreground { who, via } => self.sign(Sign::Foreground, who, &rules::via(via), Part::Whole, out),
            Event::Disconnect { who, via, reason } => self.disconnect(who, via, *reason, out),
            Event::Logout { who, via } => self.logout(who, via, out),
            Event::Kick { user, target } => self.kick(user, target, out),
            Event::CustomStatus { user, text } => self.custom_status(user, text.as_deref(), out),
            Event::Forget { user } => self.forget(user, out),
            Event::Lease { gateway, epoch, ttl_ms } => self.lease(gateway, *epoch, *ttl_ms, out),
            Event::Policy { policy, .. } => {
                if self.rules.replace((**policy).clone()).is_err() {
                    self.ignore(IgnoreReason::PlatformRemoved, Part::Whole, out);
                } else {
                    self.policy_since = self.offset;
                }
            }
            // One that is not known is not folded ([`Event::unknown_revision`]).
            Event::Revision { revision } => self.revision = self.revision.max(Revision(*revision)),
            Event::Tick => {}
        }
    }

    /// Returns `T` of the record being folded.
    pub(super) fn now(&self) -> LogTime {
        self.time.unwrap_or_default()
    }

    /// Returns the offset of the record being folded.
    pub(super) fn here(&self) -> Offset {
        self.offset.unwrap_or_default()
    }

    fn next_id(&mut self) -> OutputId {
        let id = OutputId {
            partition: self.partition,
            offset: self.here(),
            index: self.index,
        };
        self.index += 1;
        id
    }

    /// Updates the user's status from its devices. Outputs the change, if the status of any device changed, and then
    /// the kicks.
    pub(super) fn conclude(
        &mut self,
        slot: Slot,
        at: LogTime,
        cause: Cause,
        evidence: Offset,
        pending: Pending,
        out: Out<'_>,
    ) {
        if !pending.devices.is_empty() {
            self.change(slot, at, cause, evidence, pending.devices, out);
        }
        for kick in pending.kicks {
            if let Some(user) = self.users.id(slot).map(Into::into) {
                self.emit_kick(kick, Some(user), out);
            }
        }
    }

    /// Outputs a change of the user, with the status that follows from its devices.
    pub(super) fn change(
        &mut self,
        slot: Slot,
        at: LogTime,
        cause: Cause,
        evidence: Offset,
        devices: Vec<DeviceChange>,
        out: Out<'_>,
    ) {
        let State { users, rules, .. } = self;
        let Some(user) = users.change(slot) else { return };
        let before = user.status;
        let after = user.greatest_status();
        if after != before {
            user.status = after;
            user.since = at;
        }
        let keep_ms = rules.policy().custom_keep_ms;
        rules::carry_custom_status(user, before, after, at, cause, keep_ms);
        user.version += 1;
        let (id, version, custom_status) = (user.id.clone(), user.version, user.custom_status.clone());
        self.seq += 1;
        let rehearsal = (self.revision >= Revision::REHEARSAL).then(|| {
            self.rehearsed += 1;
            Rehearsal((evidence == self.here()).then_some(self.rehearsed))
        });
        let change = Change {
            id: self.next_id(),
            seq: self.seq,
            user: id,
            version,
            at,
            logged_at: self.now(),
            cause,
            before,
            after,
            devices,
            custom_status,
            evidence,
            rehearsal,
        };
        out(Output::Change(change));
    }

    /// Outputs a kick of a connection.
    pub(super) fn emit_kick(&mut self, kick: PendingKick, user: Option<Box<str>>, out: Out<'_>) {
        let kick = Kick {
            id: self.next_id(),
            gateway: kick.gateway,
            epoch: kick.epoch,
            conn: kick.conn,
            whose: user.map(|user| KickedDevice {
                user,
                platform: kick.platform,
                device: kick.device,
            }),
            reason: kick.reason,
            at: self.now(),
        };
        out(Output::Kick(kick));
    }

    /// Outputs that the event, or a part of it, has no effect.
    pub(super) fn ignore(&mut self, reason: IgnoreReason, part: Part, out: Out<'_>) {
        out(Output::Ignored(Ignored {
            offset: self.here(),
            reason,
            part,
        }));
    }
}

/// A kick without the fields that all kicks of an event share.
pub(super) struct PendingKick {
    pub gateway: Box<str>,
    pub epoch: Epoch,
    pub conn: Conn,
    pub platform: Box<str>,
    pub device: Box<str>,
    pub reason: KickReason,
}

impl PendingKick {
    /// Returns the kick of the connection that the device is on.
    pub fn of(device: &Device, reason: KickReason, rules: &Rulebook, gateways: &Gateways) -> PendingKick {
        PendingKick {
            gateway: gateways.name(device.link.gateway).into(),
            epoch: device.link.epoch,
            conn: device.link.conn,
            platform: rules.name(device.platform).into(),
            device: device.device.clone(),
            reason,
        }
    }
}
