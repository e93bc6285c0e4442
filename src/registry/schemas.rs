//! The schemas with which values are written and read: only our own, or also a registry's.

use super::{Error, Registry};
use crate::presence::change::{Change, Kick};
use crate::presence::event::Event;
use crate::schema::Malformed;
use crate::schema::avro::{self, Frame, Framing, Guid, Schema, WriterSchema, WriterSchemas};
use std::sync::Arc;

/// The known schemas. Without a registry, values are written in single-object encoding, and a value framed for a
/// registry is malformed. Cheap to clone.
#[derive(Clone, Default)]
pub struct Schemas {
    registry: Option<Arc<Registry>>,
    framing: Framing,
}

impl Schemas {
    /// Uses a registry, and the framing it returned for writing.
    pub fn of(registry: Registry, framing: Framing) -> Schemas {
        Schemas {
            registry: Some(Arc::new(registry)),
            framing,
        }
    }

    /// Uses a registry for reading only. Nothing is written, so the ids for writing do not matter.
    pub fn to_read(registry: Registry) -> Schemas {
        Schemas::of(registry, Framing::default())
    }

    /// Looks up every schema of these values that is not known yet. Each value comes with the header of its record that
    /// names the schema, if it has one. Blocks on the registry. If the registry does not respond, fails, and none of
    /// the values may be decoded.
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

    /// Decodes a change of any writer's schema. Blocks on the registry if the schema is not known yet.
    pub fn change(&self, value: &[u8]) -> Result<Result<Change, Malformed>, Error> {
        self.learn([(None, value)])?;
        Ok(avro::decode_change_with(value, self))
    }

    /// Decodes a kick in the same way.
    pub fn kick(&self, value: &[u8]) -> Result<Result<Kick, Malformed>, Error> {
        self.learn([(None, value)])?;
        Ok(avro::decode_kick_with(value, self))
    }

    /// Appends the framing of a datum of our own schema. The datum has to follow.
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
                "the record refers to the schema with the registry's id {id}, but no registry is configured; set it with --registry URL"
            ))),
        }
    }

    fn by_guid(&self, guid: Guid) -> Result<WriterSchema, Malformed> {
        match &self.registry {
            Some(registry) => registry.by_guid(guid),
            None => Err(Malformed::unusable_schema(format!(
                "the record refers to the schema with GUID {guid}, but no registry is configured; set it with --registry URL"
            ))),
        }
    }
}
