//! A policy as the event that puts it in force.

use crate::presence::event::Event;
use crate::presence::policy::Policy;
use crate::schema::policy::policy_json;
use std::borrow::Cow;

/// The event that puts a policy in force, with the completed policy as its document.
pub fn policy_event(policy: Policy) -> Event<'static> {
    let document = policy_json(&policy);
    Event::Policy {
        policy: Box::new(policy),
        document: Cow::Owned(document),
    }
}
