//! Events about a user as a whole: kick, custom status, forget (section 6).

use super::super::change::{Cause, IgnoreReason, KickReason, Part};
use super::super::event::Target;
use super::super::fold::{Out, PendingKick};
use super::super::state::State;
use super::super::{KickedBy, Revision, Status};
use super::{Pending, kick_devices};

impl State {
    /// Applies a kick, by which an operator ends a user's logins (section 6, kick).
    pub(in super::super) fn kick(&mut self, user: &str, target: &Target<'_>, out: Out<'_>) {
        let Some(slot) = self.users.find(user) else {
            return self.ignore(IgnoreReason::UnknownUser, Part::Whole, out);
        };
        let (now, here) = (self.now(), self.here());
        let State {
            users, rules, gateways, ..
        } = self;
        let Some(user) = users.get(slot) else { return };
        let matching = user.devices.iter().enumerate().filter(|(_, device)| {
            let name = rules.name(device.platform);
            let matches = match target {
                Target::All => true,
                Target::Platform(platform) => name == platform,
                Target::Device(platform, id) => name == platform && *device.device == **id,
            };
            matches && device.login_at().is_some()
        });
        let places: Vec<usize> = matching.map(|(place, _)| place).collect();
        let is_whole = *target == Target::All;
        if places.is_empty() && !is_whole {
            return self.ignore(IgnoreReason::NoEffect, Part::Whole, out);
        }
        let Some(user) = users.change(slot) else { return };
        if is_whole {
            let marks = user.marks();
            marks.kicked_at = Some(now);
            marks.barred = true;
        }
        let mut pending = Pending::default();
        kick_devices(slot, user, &places, KickedBy::Admin, now, rules, gateways, &mut pending);
        self.conclude(slot, now, Cause::Kicked, here, pending, out);
        self.arm(slot);
    }

    /// Applies a custom status (section 6, custom_status).
    pub(in super::super) fn custom_status(&mut self, user: &str, text: Option<&str>, out: Out<'_>) {
        let (now, here) = (self.now(), self.here());
        let found = self
            .users
            .find(user)
            .and_then(|slot| Some((slot, self.users.get(slot)?)));
        let takes = |status: Status| match status {
            Status::Online => true,
            Status::PushOnline => self.revision >= Revision::REHEARSAL,
            Status::Offline => false,
        };
        match found {
            Some((slot, user)) if takes(user.status) => {
                if user.custom_status.as_deref() == text {
                    return self.ignore(IgnoreReason::NoEffect, Part::Whole, out);
                }
                if let Some(user) = self.users.change(slot) {
                    user.custom_status = text.map(Into::into);
                }
                self.change(slot, now, Cause::CustomStatus, here, Vec::new(), out);
            }
            Some(_) | None => self.ignore(IgnoreReason::NotOnline, Part::Whole, out),
        }
    }

    /// Forgets a user (section 6, forget): always a change, and then the user is gone.
    pub(in super::super) fn forget(&mut self, user: &str, out: Out<'_>) {
        let Some(slot) = self.users.find(user) else {
            return self.ignore(IgnoreReason::UnknownUser, Part::Whole, out);
        };
        let (now, here) = (self.now(), self.here());
        let State {
            users, rules, gateways, ..
        } = self;
        let Some(user) = users.change(slot) else { return };
        let mut pending = Pending::default();
        for device in std::mem::take(&mut user.devices) {
            pending.altered_to(&device, device.status(), Status::Offline, rules, gateways);
            if device.has_open_link() {
                pending
                    .kicks
                    .push(PendingKick::of(&device, KickReason::Forgotten, rules, gateways));
            }
            gateways.leave(slot, &device);
            gateways.release(device.link.gateway);
        }
        self.change(slot, now, Cause::Forgotten, here, pending.devices, out);
        pending.devices = Vec::new();
        self.conclude(slot, now, Cause::Forgotten, here, pending, out);
        self.users.forget(slot);
    }
}
