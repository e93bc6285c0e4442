//! Avro, the encoding of all values in the topics (`docs/rules.md` section 9, `schemas/README.md`).
//!
//! Our own schemas are written and read by straight-line code, field by field. Values of other schemas are
//! translated first. `apache-avro` checks both in the tests. Reading a heartbeat allocates nothing: its text is borrowed from the
//! bytes.
//!
//! For each type there are four kinds of functions. `encode_…` writes a value in single-object encoding.
//! `write_…_datum` writes the datum alone, for another framing ([`frame_with_id`]) or a hash. `decode_…` knows our
//! schemas and their earlier versions. `decode_…_with` also knows a registry's schemas ([`WriterSchemas`]). Functions
//! that write append to their buffer.

mod change;
mod datum;
mod event;
mod framing;
mod incident;
mod kick;
mod layout;
mod quarantined;
mod translate;
mod user_state;
mod writer;

pub use framing::{
    Frame, Framing, Guid, SCHEMA_HEADERS, SINGLE_OBJECT_BYTES, Schema, frame, frame_with_id, unframe, unframe_with,
};
pub use incident::IncidentRecord;
pub use quarantined::Quarantined;
pub use user_state::{DeviceState, UserState};
pub use writer::{NoRegistry, UnusableSchema, WriterSchema, WriterSchemas};

use super::Malformed;
use crate::presence::change::{Change, Kick};
use crate::presence::event::Event;
use framing::own_datum;
use std::borrow::Cow;

/// Appends the event's datum.
pub fn write_event_datum(event: &Event<'_>, out: &mut Vec<u8>) {
    event::write(event, out);
}

/// Appends the event in single-object encoding.
pub fn encode_event(event: &Event<'_>, out: &mut Vec<u8>) {
    frame(Schema::Event, out);
    event::write(event, out);
}

/// Decodes an event and checks every bound of section 3.
pub fn decode_event(value: &[u8]) -> Result<Event<'_>, Malformed> {
    decode_event_with(value, &NoRegistry)
}

/// Decodes an event like [`decode_event`], also with a registry's schemas.
pub fn decode_event_with<'v>(value: &'v [u8], schemas: &dyn WriterSchemas) -> Result<Event<'v>, Malformed> {
    if let Some(datum) = own_datum(Schema::Event, value) {
        return event::read(datum);
    }
    match writer::datum(Schema::Event, value, schemas)? {
        Cow::Borrowed(datum) => event::read(datum),
        Cow::Owned(datum) => event::read(&datum).map(event::into_owned),
    }
}

/// Decodes an event like [`decode_event_with`], for a record that may have one of the [`SCHEMA_HEADERS`].
pub fn decode_event_of<'v>(
    header: Option<(&str, &[u8])>,
    value: &'v [u8],
    schemas: &dyn WriterSchemas,
) -> Result<Event<'v>, Malformed> {
    let Some(header) = header else {
        return decode_event_with(value, schemas);
    };
    match writer::datum_with(Schema::Event, Some(header), value, schemas)? {
        Cow::Borrowed(datum) => event::read(datum),
        Cow::Owned(datum) => event::read(&datum).map(event::into_owned),
    }
}

/// Appends the change's datum.
pub fn write_change_datum(change: &Change, out: &mut Vec<u8>) {
    change::write(change, out);
}

/// Appends the change in single-object encoding.
pub fn encode_change(change: &Change, out: &mut Vec<u8>) {
    frame_change(change, out, |out| frame(Schema::Change, out));
    change::write(change, out);
}

/// Appends the framing of a change: `usual`, unless it has fields that its schema lacks.
pub fn frame_change(change: &Change, out: &mut Vec<u8>, usual: impl FnOnce(&mut Vec<u8>)) {
    match change.rehearsal {
        Some(_) => out.extend_from_slice(&framing::REHEARSAL),
        None => usual(out),
    }
}

/// Decodes a change.
pub fn decode_change(value: &[u8]) -> Result<Change, Malformed> {
    decode_change_with(value, &NoRegistry)
}

/// Decodes a change like [`decode_change`], also with a registry's schemas.
pub fn decode_change_with(value: &[u8], schemas: &dyn WriterSchemas) -> Result<Change, Malformed> {
    if let Some(datum) = value.strip_prefix(&framing::REHEARSAL) {
        return change::read_rehearsed(datum);
    }
    change::read(&writer::datum(Schema::Change, value, schemas)?)
}

/// Decodes the datum of a change that an engine wrote, as of whichever revision.
pub fn decode_change_datum(datum: &[u8]) -> Result<Change, Malformed> {
    change::read(datum).or_else(|malformed| change::read_rehearsed(datum).map_err(|_| malformed))
}

/// Appends the kick's datum.
pub fn write_kick_datum(kick: &Kick, out: &mut Vec<u8>) {
    kick::write(kick, out);
}

/// Appends the kick in single-object encoding.
pub fn encode_kick(kick: &Kick, out: &mut Vec<u8>) {
    frame(Schema::Kick, out);
    kick::write(kick, out);
}

/// Decodes a kick.
pub fn decode_kick(value: &[u8]) -> Result<Kick, Malformed> {
    decode_kick_with(value, &NoRegistry)
}

/// Decodes a kick like [`decode_kick`], also with a registry's schemas.
pub fn decode_kick_with(value: &[u8], schemas: &dyn WriterSchemas) -> Result<Kick, Malformed> {
    kick::read(&writer::datum(Schema::Kick, value, schemas)?)
}

/// Decodes the datum of a kick that an engine wrote.
pub fn decode_kick_datum(datum: &[u8]) -> Result<Kick, Malformed> {
    kick::read(datum)
}

/// Appends the datum of a user's state.
pub fn write_user_state_datum(state: &UserState<'_>, out: &mut Vec<u8>) {
    user_state::write(state, out);
}

/// Appends a user's state in single-object encoding.
pub fn encode_user_state(state: &UserState<'_>, out: &mut Vec<u8>) {
    frame(Schema::UserState, out);
    user_state::write(state, out);
}

/// Decodes a user's state.
pub fn decode_user_state(value: &[u8]) -> Result<UserState<'_>, Malformed> {
    decode_user_state_with(value, &NoRegistry)
}

/// Decodes a user's state like [`decode_user_state`], also with a registry's schemas.
pub fn decode_user_state_with<'v>(value: &'v [u8], schemas: &dyn WriterSchemas) -> Result<UserState<'v>, Malformed> {
    match writer::datum(Schema::UserState, value, schemas)? {
        Cow::Borrowed(datum) => user_state::read(datum),
        Cow::Owned(datum) => user_state::read(&datum).map(UserState::into_owned),
    }
}

/// Decodes the datum of a user's state that an engine wrote.
pub fn decode_user_state_datum(datum: &[u8]) -> Result<UserState<'_>, Malformed> {
    user_state::read(datum)
}

/// Appends the datum of a quarantined record.
pub fn write_quarantined_datum(quarantined: &Quarantined<'_>, out: &mut Vec<u8>) {
    quarantined::write(quarantined, out);
}

/// Appends a quarantined record in single-object encoding.
pub fn encode_quarantined(quarantined: &Quarantined<'_>, out: &mut Vec<u8>) {
    frame(Schema::Quarantined, out);
    quarantined::write(quarantined, out);
}

/// Decodes a quarantined record.
pub fn decode_quarantined(value: &[u8]) -> Result<Quarantined<'_>, Malformed> {
    decode_quarantined_with(value, &NoRegistry)
}

/// Decodes the datum of a quarantined record that an engine wrote.
pub fn decode_quarantined_datum(datum: &[u8]) -> Result<Quarantined<'_>, Malformed> {
    quarantined::read(datum)
}

/// Decodes a quarantined record like [`decode_quarantined`], also with a registry's schemas.
pub fn decode_quarantined_with<'v>(value: &'v [u8], schemas: &dyn WriterSchemas) -> Result<Quarantined<'v>, Malformed> {
    match writer::datum(Schema::Quarantined, value, schemas)? {
        Cow::Borrowed(datum) => quarantined::read(datum),
        Cow::Owned(datum) => quarantined::read(&datum).map(Quarantined::into_owned),
    }
}

/// Appends the datum of an incident.
pub fn write_incident_datum(incident: &IncidentRecord, out: &mut Vec<u8>) {
    incident::write(incident, out);
}

/// Appends an incident in single-object encoding.
pub fn encode_incident(incident: &IncidentRecord, out: &mut Vec<u8>) {
    frame(Schema::Incident, out);
    incident::write(incident, out);
}

/// Decodes an incident.
pub fn decode_incident(value: &[u8]) -> Result<IncidentRecord, Malformed> {
    decode_incident_with(value, &NoRegistry)
}

/// Decodes an incident like [`decode_incident`], also with a registry's schemas.
pub fn decode_incident_with(value: &[u8], schemas: &dyn WriterSchemas) -> Result<IncidentRecord, Malformed> {
    incident::read(&writer::datum(Schema::Incident, value, schemas)?)
}
