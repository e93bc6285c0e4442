//! Translates a value that was read with a foreign schema into a datum of ours.
//!
//! Fields are matched by name. If the writer has no field of our name, the only one that differs in upper and lower
//! case matches (ksqlDB writes its names in capitals). A type is accepted if its value means the same as ours: an enum
//! is its symbol's text, an `int` is a `long`, `bytes` are text if they are UTF-8, a union is the value in it. Missing
//! fields are null where our schema allows null, and unknown fields are ignored. Everything else is refused with an
//! error that names the field.

use super::datum::{write_bytes, write_long, write_text};
use crate::schema::Malformed;
use apache_avro::Schema as AvroSchema;
use apache_avro::types::Value;

/// One of our fields, and the writer's name of it.
#[derive(Clone, Copy)]
struct Field<'n> {
    ours: &'n str,
    theirs: &'n str,
}

/// Appends the datum of `wanted`, one of our schemas in plain form. `symbols` are the symbols of the writer's enums.
pub(super) fn translate(
    wanted: &AvroSchema,
    value: Value,
    symbols: &[Box<str>],
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    let field = Field {
        ours: "the value",
        theirs: "the value",
    };
    put(wanted, value, field, symbols, out)
}

fn put(
    wanted: &AvroSchema,
    value: Value,
    field: Field<'_>,
    symbols: &[Box<str>],
    out: &mut Vec<u8>,
) -> Result<(), Malformed> {
    let refuse = |value: &Value, what: &str| {
        let Field { ours, theirs } = field;
        let called = match ours == theirs {
            true => String::new(),
            false => format!(" (written as {theirs})"),
        };
        let is = describe(value);
        Err(Malformed::invalid(format!("{ours}{called} is {is}; expected {what}")))
    };
    match (wanted, bare(value)) {
        (AvroSchema::Union(_), Value::Null) => write_long(out, 0),
        (AvroSchema::Union(union), value) => {
            write_long(out, 1);
            // Each of our unions has two variants, and null is the first.
            if let Some(wanted) = union.variants().last() {
                put(wanted, value, field, symbols, out)?;
            }
        }
        (AvroSchema::Record(record), Value::Record(mut fields)) => {
            for each in &record.fields {
                let name = each.name.as_str();
                match find(name, &fields)? {
                    Some(at) => {
                        let (theirs, value) = std::mem::replace(&mut fields[at], (String::new(), Value::Null));
                        let field = Field {
                            ours: name,
                            theirs: &theirs,
                        };
                        put(&each.schema, value, field, symbols, out)?;
                    }
                    None if matches!(each.schema, AvroSchema::Union(_)) => write_long(out, 0),
                    None => return Err(Malformed::invalid(format!("its schema has no field {name:?}"))),
                }
            }
        }
        (AvroSchema::Record(_), value) => return refuse(&value, "a record"),
        (AvroSchema::Array(array), Value::Array(items)) => {
            if !items.is_empty() {
                write_long(out, items.len() as i64);
                for item in items {
                    put(&array.items, item, field, symbols, out)?;
                }
            }
            write_long(out, 0);
        }
        (AvroSchema::Array(_), value) => return refuse(&value, "an array"),
        (AvroSchema::Long, Value::Long(number)) => write_long(out, number),
        (AvroSchema::Long | AvroSchema::Int, Value::Int(number)) => write_long(out, number.into()),
        // Our reader checks the bounds.
        (AvroSchema::Int, Value::Long(number)) => write_long(out, number),
        (AvroSchema::Long | AvroSchema::Int, value) => return refuse(&value, "a whole number"),
        (AvroSchema::Boolean, Value::Boolean(is)) => out.push(u8::from(is)),
        (AvroSchema::Boolean, value) => return refuse(&value, "a boolean"),
        (AvroSchema::String | AvroSchema::Bytes, Value::String(text)) => write_text(out, &text),
        (AvroSchema::String, Value::Enum(_, name)) => match symbol(&name, symbols) {
            Some(text) => write_text(out, text),
            None => {
                return Err(Malformed::invalid(format!(
                    "{} is not a symbol of its enum",
                    field.ours
                )));
            }
        },
        (AvroSchema::String, Value::Bytes(bytes)) => match std::str::from_utf8(&bytes) {
            Ok(text) => write_text(out, text),
            Err(_) => return refuse(&Value::Bytes(bytes), "text or bytes in UTF-8"),
        },
        (AvroSchema::String, value) => return refuse(&value, "text"),
        (AvroSchema::Bytes, Value::Bytes(bytes) | Value::Fixed(_, bytes)) => write_bytes(out, &bytes),
        (AvroSchema::Bytes, value) => return refuse(&value, "bytes"),
        (other, value) => return refuse(&value, &format!("{other:?}")),
    }
    Ok(())
}

/// Returns the value inside a union.
fn bare(mut value: Value) -> Value {
    while let Value::Union(_, inner) = value {
        value = *inner;
    }
    value
}

/// Returns the index of the field that matches our name.
fn find(name: &str, fields: &[(String, Value)]) -> Result<Option<usize>, Malformed> {
    if let Some(at) = fields.iter().position(|(theirs, _)| theirs == name) {
        return Ok(Some(at));
    }
    let mut alike = (0..fields.len()).filter(|at| fields[*at].0.eq_ignore_ascii_case(name));
    let first = alike.next();
    match (first, alike.next()) {
        (Some(one), Some(other)) => Err(Malformed::invalid(format!(
            "its schema has no field {name:?}, and both {:?} and {:?} could be meant",
            fields[one].0, fields[other].0
        ))),
        _ => Ok(first),
    }
}

/// Returns the real name of a symbol by its plain name.
fn symbol<'s>(name: &str, symbols: &'s [Box<str>]) -> Option<&'s str> {
    let at: usize = name.strip_prefix('s')?.parse().ok()?;
    symbols.get(at).map(|text| &**text)
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Boolean(_) => "a boolean".to_owned(),
        Value::Int(_) | Value::Long(_) => "a number".to_owned(),
        Value::Float(_) | Value::Double(_) => "a floating-point number".to_owned(),
        Value::Bytes(_) => "bytes that are not UTF-8".to_owned(),
        Value::String(_) => "text".to_owned(),
        Value::Fixed(16, _) => "a fixed of 16 bytes, such as a binary UUID".to_owned(),
        Value::Fixed(size, _) => format!("a fixed of {size} bytes"),
        Value::Enum(..) => "an enum".to_owned(),
        Value::Array(_) => "an array".to_owned(),
        Value::Map(_) => "a map".to_owned(),
        Value::Record(_) => "a record".to_owned(),
        _ => "of another type".to_owned(),
    }
}
