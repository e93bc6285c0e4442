//! Values written with other schemas than ours: earlier versions of ours, and those of a registry.
//!
//! Such a value is translated: the layout of its writer's schema (module `layout`) says where its fields are, the result is
//! a datum of ours (module `translate`), and that datum is read like any other. So no check exists twice. Translating takes
//! longer than reading; publishers that need speed use our schema.

use super::framing::{Frame, Guid, Schema, unframe_with};
use super::layout::{DEPTH_MAX, Layout, TYPES_MAX, layout};
use super::translate::translate;
use crate::schema::Malformed;
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::{Arc, LazyLock};
use thiserror::Error;

/// Earlier versions of our schemas, by their fingerprints; their records may still be in the log. When a schema's file
/// changes, its earlier text is added here; none is ever removed.
const OLDER: [(u64, &str); 2] = [
    (
        0xe5fe_c850_c44f_4742,
        include_str!("../../../schemas/older/event-1.avsc"),
    ),
    (
        0x7f71_ad0c_686f_a5ae,
        include_str!("../../../schemas/older/kick-1.avsc"),
    ),
];

/// Looks up the schema with which a value was written. The methods are called for each record that is not framed as our
/// own schema, so they must not block: a registry responds from what it has already fetched. A caller that gets
/// [`Malformed::UnknownSchemaId`] or [`Malformed::UnknownSchemaGuid`] may fetch the schema and decode again.
pub trait WriterSchemas {
    /// Returns the schema with this id in the registry, or why it cannot be used.
    fn by_id(&self, id: u32) -> Result<WriterSchema, Malformed> {
        Err(Malformed::UnknownSchemaId(id))
    }

    /// Returns the schema with this GUID in the registry, or why it cannot be used.
    fn by_guid(&self, guid: Guid) -> Result<WriterSchema, Malformed> {
        Err(Malformed::UnknownSchemaGuid(guid))
    }

    /// Returns the schema with this fingerprint if it is known: by default our own schemas and their earlier versions.
    fn by_fingerprint(&self, fingerprint: u64) -> Option<WriterSchema> {
        own(fingerprint).or_else(|| {
            static TABLE: LazyLock<HashMap<u64, WriterSchema>> = LazyLock::new(older);
            TABLE.get(&fingerprint).cloned()
        })
    }
}

/// Knows only our own schemas and their earlier versions.
pub struct NoRegistry;

impl WriterSchemas for NoRegistry {}

/// A schema with which values were written, prepared for use. Cheap to clone.
#[derive(Clone, Debug)]
pub struct WriterSchema(Kind);

#[derive(Clone, Debug)]
enum Kind {
    Own(Schema),
    Foreign(Arc<Layout>),
}

/// Why a foreign schema cannot be used.
#[derive(Debug, Error)]
pub enum UnusableSchema {
    #[error("the schema is not valid: {0}")]
    Invalid(String),
    #[error("the schema refers to itself at {0}, so its data could nest without end")]
    Recursive(String),
    #[error("the schema has more than {TYPES_MAX} types, or nests them deeper than {DEPTH_MAX}")]
    TooLarge,
}

impl WriterSchema {
    /// Parses a schema from its JSON. A schema whose data lies in bytes as that of one of ours, under the same names, is
    /// treated as ours, which is the fast path.
    pub fn parse(json: &str) -> Result<WriterSchema, UnusableSchema> {
        WriterSchema::parse_with(json, &[] as &[&str])
    }

    /// Parses a schema that refers to types which `others` define, in any order.
    pub fn parse_with(json: &str, others: &[impl AsRef<str>]) -> Result<WriterSchema, UnusableSchema> {
        let layout = layout(json, others)?;
        let own = Schema::ALL.into_iter().find(|schema| *layout_of(*schema) == *layout);
        Ok(own.map_or(WriterSchema(Kind::Foreign(layout)), WriterSchema::own))
    }

    /// Returns our own schema of this kind.
    pub fn own(schema: Schema) -> WriterSchema {
        WriterSchema(Kind::Own(schema))
    }
}

fn own(fingerprint: u64) -> Option<WriterSchema> {
    Schema::ALL
        .into_iter()
        .find(|schema| schema.fingerprint() == fingerprint)
        .map(WriterSchema::own)
}

/// Returns CRC-64-AVRO of a schema's Parsing Canonical Form, if the text is a schema. Logical types are not part of
/// that form, but `apache-avro` leaves a trace of them in it, so they are removed first.
#[cfg(test)]
pub(super) fn fingerprint(json: &str) -> Option<u64> {
    use apache_avro::{Schema as AvroSchema, rabin::Rabin};
    let schema = without_logical_types(serde_json::from_str(json).ok()?);
    let bytes = AvroSchema::parse(&schema).ok()?.fingerprint::<Rabin>().bytes;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
fn without_logical_types(schema: serde_json::Value) -> serde_json::Value {
    use serde_json::Value;
    match schema {
        Value::Array(items) => Value::Array(items.into_iter().map(without_logical_types).collect()),
        Value::Object(mut object) => {
            object.remove("logicalType");
            Value::Object(
                object
                    .into_iter()
                    .map(|(key, value)| (key, without_logical_types(value)))
                    .collect(),
            )
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => schema,
    }
}

fn older() -> HashMap<u64, WriterSchema> {
    let entry = |(fingerprint, json)| {
        let writer = WriterSchema::parse(json).expect("our own earlier schemas can be used");
        (fingerprint, writer)
    };
    OLDER.into_iter().map(entry).collect()
}

/// Returns the value as a datum of our own schema `wanted`: unchanged if it was written with that schema, else
/// translated.
pub(super) fn datum<'v>(
    wanted: Schema,
    value: &'v [u8],
    schemas: &dyn WriterSchemas,
) -> Result<Cow<'v, [u8]>, Malformed> {
    datum_with(wanted, None, value, schemas)
}

/// Returns the datum of a value whose schema may be named in a header of its record.
pub(super) fn datum_with<'v>(
    wanted: Schema,
    header: Option<(&str, &[u8])>,
    value: &'v [u8],
    schemas: &dyn WriterSchemas,
) -> Result<Cow<'v, [u8]>, Malformed> {
    let (frame, datum) = unframe_with(header, value)?;
    let found = match frame {
        Frame::Fingerprint(fingerprint) => {
            let found = schemas.by_fingerprint(fingerprint);
            found.ok_or(Malformed::UnknownFingerprint(fingerprint))
        }
        Frame::Id(id) => schemas.by_id(id),
        Frame::Guid(guid) => schemas.by_guid(guid),
    };
    // If the value is the datum alone, a header names the schema.
    let in_header = header.filter(|_| datum.len() == value.len());
    let writer = found.map_err(|malformed| match (in_header, frame) {
        (Some((name, _)), _) => {
            Malformed::unusable_schema(format!("the header {name} names the schema, but {malformed}"))
        }
        (None, Frame::Id(0)) => Malformed::unusable_schema(format!(
            "{malformed}; if the serializer is Apicurio's, which writes ids of 8 bytes, set apicurio.registry.as-confluent=true"
        )),
        (None, Frame::Id(_) | Frame::Guid(_) | Frame::Fingerprint(_)) => malformed,
    })?;
    match writer.0 {
        Kind::Own(schema) if schema == wanted => Ok(Cow::Borrowed(datum)),
        Kind::Own(schema) => {
            let (is, belongs) = (schema.name(), wanted.name());
            Err(Malformed::invalid(format!(
                "the value is of type {is}; expected {belongs}"
            )))
        }
        Kind::Foreign(layout) => match translate(layout_of(wanted), &layout, datum) {
            Ok(translated) => Ok(Cow::Owned(translated)),
            Err(malformed) => Err(Malformed::invalid(format!("unreadable with its schema: {malformed}"))),
        },
    }
}

fn layout_of(schema: Schema) -> &'static Layout {
    static LAYOUTS: LazyLock<[Arc<Layout>; Schema::ALL.len()]> = LazyLock::new(|| {
        Schema::ALL.map(|schema| layout(schema.json(), &[] as &[&str]).expect("our own schemas are valid"))
    });
    &LAYOUTS[schema as usize]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(json: &str) -> String {
        WriterSchema::parse(json).expect_err(json).to_string()
    }

    #[test]
    fn our_own_schemas_are_known_by_their_fingerprints_and_texts() {
        for schema in Schema::ALL {
            for found in [
                NoRegistry.by_fingerprint(schema.fingerprint()),
                WriterSchema::parse(schema.json()).ok(),
            ] {
                assert!(matches!(found, Some(WriterSchema(Kind::Own(own))) if own == schema));
            }
        }
        assert!(NoRegistry.by_fingerprint(1).is_none());
        assert_eq!(NoRegistry.by_id(1).err(), Some(Malformed::UnknownSchemaId(1)));
    }

    #[test]
    fn an_earlier_schema_is_found_by_its_fingerprint() {
        for (number, json) in OLDER {
            assert_eq!(fingerprint(json), Some(number));
            let found = NoRegistry.by_fingerprint(number);
            assert!(matches!(found, Some(WriterSchema(Kind::Foreign(_)))), "{number:016x}");
        }
    }

    #[test]
    fn a_schema_whose_data_could_nest_without_end_is_refused() {
        let list =
            r#"{"type":"record","name":"List","namespace":"n","fields":[{"name":"next","type":["null","List"]}]}"#;
        assert!(refused(list).contains("refers to itself"));
        assert!(refused("{").contains("not valid"));
        assert!(
            refused(r#"{"type":"record","name":"R","fields":[{"name":"f","type":"Nowhere"}]}"#).contains("not valid")
        );
    }

    #[test]
    fn a_type_that_is_used_twice_is_not_recursive() {
        let twice = r#"{"type":"record","name":"n.R","fields":[
            {"name":"a","type":{"type":"record","name":"S","fields":[{"name":"x","type":"long"}]}},
            {"name":"b","type":"S"},{"name":"c","type":{"type":"map","values":"n.S"}}]}"#;
        WriterSchema::parse(twice).unwrap();
    }
}
