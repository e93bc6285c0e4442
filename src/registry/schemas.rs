//! The schemas with which values are written and read: only our own, or also a registry's.

use super::known::SchemaLookup;
use super::{Error, Registry, SchemaName};
use crate::presence::change::{Change, Kick};
use crate::presence::event::Event;
use crate::schema::Malformed;
use crate::schema::avro::{self, Frame, Framing, Guid, IncidentRecord, Schema, WriterSchema, WriterSchemas};
use std::collections::HashMap;
use std::sync::Arc;

/// The total size of the texts of the schemas with which one batch of records is decoded, unless a single one is larger.
const LEARNED_TEXT_BYTES_MAX: usize = 1 << 20;

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

    /// Looks up the schemas of values, in their order: of all, or of the first ones if the schemas of all would take too much
    /// memory; always of the first. Each value comes with name and value of the header of its record that names the schema, if it has one. Blocks on
    /// the registry. If the registry does not respond, fails, and none of the values may be decoded.
    pub fn learn<'v>(
        &self,
        values: impl IntoIterator<Item = (Option<(&'v str, &'v [u8])>, &'v [u8])>,
    ) -> Result<LearnedSchemas, Error> {
        let mut learned = LearnedSchemas {
            has_registry: self.registry.is_some(),
            ..LearnedSchemas::default()
        };
        let mut text_bytes = 0;
        for (header, value) in values {
            if let Some(registry) = &self.registry
                && let Some(name) = name_of(header, value)
                && !learned.by_name.contains_key(&name)
            {
                let found = registry.find(name)?;
                text_bytes += found.text_bytes;
                if text_bytes > LEARNED_TEXT_BYTES_MAX && learned.values > 0 {
                    break;
                }
                learned.by_name.insert(name, found);
            }
            learned.values += 1;
        }
        Ok(learned)
    }

    /// Decodes a change of any writer's schema. Blocks on the registry if the schema is not known yet.
    pub fn change(&self, value: &[u8]) -> Result<Result<Change, Malformed>, Error> {
        Ok(avro::decode_change_with(value, &self.learn([(None, value)])?))
    }

    /// Decodes a kick in the same way.
    pub fn kick(&self, value: &[u8]) -> Result<Result<Kick, Malformed>, Error> {
        Ok(avro::decode_kick_with(value, &self.learn([(None, value)])?))
    }

    /// Decodes an incident in the same way.
    pub fn incident(&self, value: &[u8]) -> Result<Result<IncidentRecord, Malformed>, Error> {
        Ok(avro::decode_incident_with(value, &self.learn([(None, value)])?))
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

/// Returns under which name a registry has the schema of a value, if it is framed for one.
fn name_of(header: Option<(&str, &[u8])>, value: &[u8]) -> Option<SchemaName> {
    match avro::unframe_with(header, value) {
        Ok((Frame::Id(id), _)) => Some(SchemaName::Id(id)),
        Ok((Frame::Guid(guid), _)) => Some(SchemaName::Guid(guid)),
        Ok((Frame::Fingerprint(_), _)) | Err(_) => None,
    }
}

/// Returns how a registry's schema is named by a value that is framed for a registry, with its record's schema header.
pub fn named_by((header, value): (Option<(&str, &[u8])>, &[u8])) -> Option<String> {
    name_of(header, value).map(|name| name.to_string())
}

/// The schemas of some values, for decoding these. They stay while this value lives, whatever the registry's client forgets.
#[derive(Default, Debug)]
pub struct LearnedSchemas {
    has_registry: bool,
    by_name: HashMap<SchemaName, SchemaLookup>,
    values: usize,
}

impl LearnedSchemas {
    /// Returns how many of the values have their schemas here. The others must be learned with another call.
    pub fn values(&self) -> usize {
        self.values
    }

    fn find(&self, name: SchemaName) -> Result<WriterSchema, Malformed> {
        if !self.has_registry {
            return Err(Malformed::unusable_schema(format!(
                "the record refers to the schema with the registry's {name}, but no registry is configured; set it with --registry URL"
            )));
        }
        let found = self.by_name.get(&name);
        found.map_or_else(|| Err(name.unknown()), |found| found.schema.clone())
    }
}

impl WriterSchemas for LearnedSchemas {
    fn by_id(&self, id: u32) -> Result<WriterSchema, Malformed> {
        self.find(SchemaName::Id(id))
    }

    fn by_guid(&self, guid: Guid) -> Result<WriterSchema, Malformed> {
        self.find(SchemaName::Guid(guid))
    }
}
