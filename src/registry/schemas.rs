//! With which schemas values are written and read: ours alone, or a registry's too.

use super::{Error, Registry};
use crate::presence::change::{Change, Kick};
use crate::presence::event::Event;
use crate::schema::Malformed;
use crate::schema::avro::{self, Frame, Framing, Guid, SCHEMA_HEADER, Schema, WriterSchema, WriterSchemas};
use std::sync::Arc;

/// Without a registry: single-object encoding, and whatever is framed for a registry is malformed. Cheap to clone.
#[derive(Clone, Default)]
pub struct Schemas {
    registry: Option<Arc<Registry>>,
    framing: Framing,
}

impl Schemas {
    /// What the registry gave to write with goes with it.
    pub fn of(registry: Registry, framing: Framing) -> Schemas {
        Schemas {
            registry: Some(Arc::new(registry)),
            framing,
        }
    }

    /// The same for one who only reads: nothing is written, so with which ids does not matter.
    pub fn to_read(registry: Registry) -> Schemas {
        Schemas::of(registry, Framing::default())
    }

    /// Asks for every schema of these values that is not known yet; with each value comes the header of its record that
    /// names the schema, if it has one. Waits for the registry, and fails if it does not answer: then none of them is to be
    /// decoded.
    pub fn learn<'v>(&self, values: impl IntoIterator<Item = (Option<&'v [u8]>, &'v [u8])>) -> Result<(), Error> {
        let Some(registry) = &self.registry else { return Ok(()) };
        for (header, value) in values {
            match avro::unframe_with(header, value) {
                Ok((Frame::Id(id), _)) => registry.ask(id)?,
                Ok((Frame::Guid(guid), _)) => registry.ask_guid(guid)?,
                Ok((Frame::Fingerprint(_), _)) | Err(_) => continue,
            };
        }
        Ok(())
    }

    /// Reads a change in any writer's schema. Waits for the registry if its schema is not known yet.
    pub fn change(&self, value: &[u8]) -> Result<Result<Change, Malformed>, Error> {
        self.learn([(None, value)])?;
        Ok(avro::decode_change_with(value, self))
    }

    /// Reads a kick in the same way.
    pub fn kick(&self, value: &[u8]) -> Result<Result<Kick, Malformed>, Error> {
        self.learn([(None, value)])?;
        Ok(avro::decode_kick_with(value, self))
    }

    /// Appends the framing of a datum of our own schema. The datum comes next.
    #[inline]
    pub fn frame(&self, schema: Schema, out: &mut Vec<u8>) {
        self.framing.frame(schema, out);
    }

    /// Appends an event with its framing.
    pub fn encode_event(&self, event: &Event<'_>, out: &mut Vec<u8>) {
        self.frame(Schema::Event, out);
        avro::write_event_datum(event, out);
    }
}

impl WriterSchemas for Schemas {
    fn by_id(&self, id: u32) -> Result<WriterSchema, Malformed> {
        match &self.registry {
            Some(registry) => registry.by_id(id),
            None => Err(Malformed::unusable_schema(format!(
                "no schema with the registry's id {id} is known: no registry was given; name it with --registry URL"
            ))),
        }
    }

    fn by_guid(&self, guid: Guid) -> Result<WriterSchema, Malformed> {
        match &self.registry {
            Some(registry) => registry.by_guid(guid),
            None => Err(Malformed::unusable_schema(format!(
                "the header {SCHEMA_HEADER} names the schema by its GUID {guid}, and no registry was given; name it with \
                 --registry URL"
            ))),
        }
    }
}
