//! Values written with other schemas than ours: earlier versions of ours, and those of a registry.
//!
//! Such a value is translated: `apache-avro` reads it with the plain form of its writer's schema (module `plain`), the
//! result is written as a datum of ours (module `translate`), and that datum is read like any other. So no check exists
//! twice. Translating takes microseconds instead of nanoseconds; publishers that need speed use our schema.
//!
//! A foreign schema may come from anyone who can write to the registry, so it is checked before it is used. It must not
//! refer to itself (a datum could then nest without end and overflow the stack), must not be too large, and must not
//! have arrays whose items take no bytes (a few bytes could then claim a million items).

use super::framing::{Frame, Guid, SCHEMA_HEADER, Schema, unframe_with};
use super::plain::plain;
use super::translate::translate;
use crate::schema::Malformed;
use apache_avro::Schema as AvroSchema;
use apache_avro::rabin::Rabin;
use apache_avro::reader::datum::GenericDatumReader;
use apache_avro::schema::{Name, ResolvedSchema};
use apache_avro::types::Value;
use std::borrow::Cow;
use std::collections::HashMap;
use std::io;
use std::sync::{Arc, LazyLock};
use thiserror::Error;

/// Earlier versions of our schemas, whose records may still be in the log. When a schema's file changes, its earlier
/// text is added here; none is ever removed.
const OLDER: [&str; 2] = [
    include_str!("../../../schemas/older/event-1.avsc"),
    include_str!("../../../schemas/older/kick-1.avsc"),
];

/// The most memory that `apache-avro` may reserve for one claimed length in a datum. No record is nearly as large.
const RESERVED_BYTES_MAX: usize = 16 << 20;
/// How many types a foreign schema may have, counted at each use.
const TYPES_MAX: usize = 1_000;
/// How deep the types may nest.
const DEPTH_MAX: usize = 32;

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
            static TABLE: LazyLock<HashMap<u64, WriterSchema>> = LazyLock::new(|| older(&OLDER));
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
    Foreign(Arc<Foreign>),
}

/// A schema in its plain form.
#[derive(Debug)]
struct Foreign {
    schema: AvroSchema,
    symbols: Vec<Box<str>>,
}

/// Why a foreign schema cannot be used.
#[derive(Debug, Error)]
pub enum UnusableSchema {
    #[error("the schema is not valid: {0}")]
    Invalid(String),
    #[error("the schema refers to itself at {0}, so its data could nest without end")]
    Recursive(String),
    #[error("the schema has an array whose items take no bytes")]
    EmptyItems,
    #[error("the schema has more than {TYPES_MAX} types, or nests them deeper than {DEPTH_MAX}")]
    TooLarge,
}

impl WriterSchema {
    /// Parses a schema from its JSON. A schema whose canonical form is that of one of ours is treated as ours, which is
    /// the fast path.
    pub fn parse(json: &str) -> Result<WriterSchema, UnusableSchema> {
        WriterSchema::parse_with(json, &[] as &[&str])
    }

    /// Parses a schema that refers to types which `others` define, in any order.
    pub fn parse_with(json: &str, others: &[impl AsRef<str>]) -> Result<WriterSchema, UnusableSchema> {
        let plain = plain(json, others)?;
        // Computed only now, when the schema is known to be neither huge nor deep.
        if let Some(own) = fingerprint(json).and_then(own) {
            return Ok(own);
        }
        let invalid = |error: apache_avro::Error| UnusableSchema::Invalid(error.to_string());
        let schema = AvroSchema::parse(&plain.json).map_err(invalid)?;
        let resolved = ResolvedSchema::new(&schema).map_err(invalid)?;
        let mut judge = ResolutionCheck {
            names: resolved.get_names(),
            types: 0,
        };
        judge.takes_bytes(&schema, 0)?;
        let symbols = plain.symbols;
        Ok(WriterSchema(Kind::Foreign(Arc::new(Foreign { schema, symbols }))))
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
pub(super) fn fingerprint(json: &str) -> Option<u64> {
    let schema = without_logical_types(serde_json::from_str(json).ok()?);
    let bytes = AvroSchema::parse(&schema).ok()?.fingerprint::<Rabin>().bytes;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

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

fn older(schemas: &[&str]) -> HashMap<u64, WriterSchema> {
    let entry = |json: &&str| {
        let writer = WriterSchema::parse(json).expect("our own earlier schemas can be used");
        (fingerprint(json).expect("our own earlier schemas are valid"), writer)
    };
    schemas.iter().map(entry).collect()
}

/// Visits a plain schema in the order in which a datum of it would be read. The schema does not refer to itself.
struct ResolutionCheck<'s, 'n> {
    names: &'n HashMap<Name, &'s AvroSchema>,
    types: usize,
}

impl ResolutionCheck<'_, '_> {
    /// Returns whether each value of this type takes at least one byte.
    fn takes_bytes(&mut self, schema: &AvroSchema, depth: usize) -> Result<bool, UnusableSchema> {
        self.types += 1;
        if self.types > TYPES_MAX || depth > DEPTH_MAX {
            return Err(UnusableSchema::TooLarge);
        }
        match schema {
            AvroSchema::Null => Ok(false),
            AvroSchema::Fixed(fixed) => Ok(fixed.size > 0),
            AvroSchema::Record(record) => {
                let mut takes_bytes = false;
                for field in &record.fields {
                    takes_bytes |= self.takes_bytes(&field.schema, depth + 1)?;
                }
                Ok(takes_bytes)
            }
            AvroSchema::Ref { name } => match self.names.get(name).copied() {
                Some(schema) => self.takes_bytes(schema, depth + 1),
                None => Err(UnusableSchema::Invalid(format!("there is no type {name}"))),
            },
            AvroSchema::Union(union) => {
                for variant in union.variants() {
                    self.takes_bytes(variant, depth + 1)?;
                }
                Ok(true)
            }
            AvroSchema::Array(array) => match self.takes_bytes(&array.items, depth + 1)? {
                true => Ok(true),
                false => Err(UnusableSchema::EmptyItems),
            },
            AvroSchema::Map(map) => self.takes_bytes(&map.types, depth + 1).map(|_| true),
            _ => Ok(true),
        }
    }
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
    header: Option<&[u8]>,
    value: &'v [u8],
    schemas: &dyn WriterSchemas,
) -> Result<Cow<'v, [u8]>, Malformed> {
    let (frame, datum) = unframe_with(header, value)?;
    let writer = match frame {
        Frame::Fingerprint(fingerprint) => schemas
            .by_fingerprint(fingerprint)
            .ok_or(Malformed::UnknownFingerprint(fingerprint))?,
        // If the value is the datum alone, a header contains the id.
        Frame::Id(id) if datum.len() == value.len() => schemas.by_id(id).map_err(|malformed| {
            Malformed::unusable_schema(format!("the header {SCHEMA_HEADER} names the schema, but {malformed}"))
        })?,
        Frame::Id(id) => schemas.by_id(id)?,
        Frame::Guid(guid) => schemas.by_guid(guid)?,
    };
    match writer.0 {
        Kind::Own(schema) if schema == wanted => Ok(Cow::Borrowed(datum)),
        Kind::Own(schema) => {
            let (is, belongs) = (schema.name(), wanted.name());
            Err(Malformed::invalid(format!(
                "the value is of type {is}; expected {belongs}"
            )))
        }
        Kind::Foreign(foreign) => {
            let unreadable =
                |why: &dyn std::fmt::Display| Malformed::invalid(format!("unreadable with its schema: {why}"));
            let value = read(datum, &foreign.schema).map_err(|error| unreadable(&error))?;
            let mut translated = Vec::with_capacity(datum.len() + 16);
            translate(plain_of(wanted), value, &foreign.symbols, &mut translated)
                .map_err(|malformed| unreadable(&malformed))?;
            Ok(Cow::Owned(translated))
        }
    }
}

/// Returns our own schema in its plain form, so that its logical types do not matter either.
fn plain_of(schema: Schema) -> &'static AvroSchema {
    static PLAIN: LazyLock<[AvroSchema; Schema::ALL.len()]> = LazyLock::new(|| {
        Schema::ALL.map(|schema| {
            let plain = plain(schema.json(), &[] as &[&str]).expect("our own schemas are valid");
            AvroSchema::parse(&plain.json).expect("our own schemas are valid")
        })
    });
    &PLAIN[schema as usize]
}

fn read(datum: &[u8], writer: &AvroSchema) -> Result<Value, apache_avro::Error> {
    apache_avro::util::max_allocation_bytes(RESERVED_BYTES_MAX);
    let mut whole = Whole { rest: datum };
    let value = GenericDatumReader::builder(writer).build()?.read_value(&mut whole)?;
    whole.end()?;
    Ok(value)
}

/// A reader of a datum that must be complete and must have no extra bytes. `apache-avro` treats an end that comes too
/// early as nulls if it gets the error `UnexpectedEof`, so it gets another error.
struct Whole<'d> {
    rest: &'d [u8],
}

impl io::Read for Whole<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.rest.is_empty() && !into.is_empty() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the bytes end too early"));
        }
        self.rest.read(into)
    }
}

impl Whole<'_> {
    fn end(&self) -> Result<(), apache_avro::Error> {
        match self.rest.len() {
            0 => Ok(()),
            extra => {
                let error = io::Error::new(io::ErrorKind::InvalidData, format!("{extra} bytes too many at the end"));
                Err(apache_avro::error::Details::ReadBytes(error).into())
            }
        }
    }
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
        let earlier = r#"{"type":"record","name":"rollcall.Event","fields":[{"name":"type","type":"string"}]}"#;
        let table = older(&[earlier]);
        assert!(matches!(
            table.get(&fingerprint(earlier).unwrap()),
            Some(WriterSchema(Kind::Foreign(_)))
        ));
        assert_eq!(table.len(), 1);
    }

    #[test]
    fn a_schema_whose_data_could_exhaust_us_is_refused() {
        let list =
            r#"{"type":"record","name":"List","namespace":"n","fields":[{"name":"next","type":["null","List"]}]}"#;
        assert!(refused(list).contains("refers to itself"));
        let nulls = r#"{"type":"record","name":"R","fields":[{"name":"f","type":{"type":"array","items":"null"}}]}"#;
        assert!(refused(nulls).contains("take no bytes"));
        let doubling = (1..30).fold(r#"{"name":"f0","type":{"type":"record","name":"T0","fields":[]}}"#.to_owned(), |fields, i| {
            let j = i - 1;
            format!(
                r#"{fields},{{"name":"f{i}","type":{{"type":"record","name":"T{i}","fields":[{{"name":"a","type":"T{j}"}},{{"name":"b","type":"T{j}"}}]}}}}"#
            )
        });
        assert!(
            refused(&format!(r#"{{"type":"record","name":"R","fields":[{doubling}]}}"#)).contains("more than 1000")
        );
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
