//! Translates a datum that was written with a foreign schema into a datum of ours.
//!
//! Fields are matched by name. If the writer has no field of our name, the only one matches that differs in capitals,
//! underscores or hyphens (ksqlDB writes `AUTH_AT`, Java writes `authAt`). A type is accepted if its value means the same as
//! ours: an enum is its symbol's text, an `int` is a `long`, `bytes` are text if they are UTF-8, a union is the value in
//! it. Missing fields are null where our schema allows null, and unknown fields are skipped. Everything else is refused with
//! an error that names the field, what was found and what is read.
//!
//! Nothing is built in between, so memory and time are in proportion to the bytes, whatever the schema is: a library's
//! generic value took a thousand times the memory of its bytes for a record of many nulls, and more for long names.

use super::datum::{unzigzag, write_bytes, write_long, write_text};
use super::layout::{FieldSlot, Layout, RecordLayout, Shape};
use crate::schema::Malformed;
use crate::varint;
use std::fmt;

/// The most bytes that the translation may have, beyond a multiple of the datum's: symbols of enums take one byte in a
/// datum and are text in ours.
const BYTES_MAX: usize = 64 << 10;
const TIMES_MAX: usize = 16;

/// Where a value is.
#[derive(Clone, Copy)]
enum Path<'p> {
    Value,
    /// One of our fields, and the writer's name of it.
    Field {
        of: &'p Path<'p>,
        ours: &'p str,
        theirs: &'p str,
    },
    Item {
        of: &'p Path<'p>,
        index: usize,
    },
}

/// Returns the datum of `wanted`, one of our own schemas.
pub(super) fn translate(wanted: &Layout, written: &Layout, datum: &[u8]) -> Result<Vec<u8>, Malformed> {
    let mut translation = Translation {
        out: Vec::with_capacity(datum.len() + 16),
        bytes_max: BYTES_MAX + datum.len().saturating_mul(TIMES_MAX),
    };
    let mut rest = datum;
    translation.put(wanted, written, &mut rest, Path::Value)?;
    match rest.len() {
        0 => Ok(translation.out),
        extra => Err(Malformed::invalid(format!("{extra} bytes too many at the end"))),
    }
}

struct Translation {
    out: Vec<u8>,
    bytes_max: usize,
}

impl Translation {
    /// Takes one value off the front of `rest` and appends it in our form.
    fn put(&mut self, wanted: &Layout, written: &Layout, rest: &mut &[u8], path: Path<'_>) -> Result<(), Malformed> {
        let mut written = written;
        while let Shape::Union(variants) = &written.shape {
            written = branch(variants.len(), rest)
                .map(|at| &*variants[at])
                .map_err(|trouble| path.malformed(trouble))?;
        }
        let refuse = |expected: &str| {
            let found = describe(&written.shape);
            Err(Malformed::invalid(format!("{path} is {found}; expected {expected}")))
        };
        let trouble = |trouble: &'static str| path.malformed(trouble);
        match (&wanted.shape, &written.shape) {
            (Shape::Union(_), Shape::Null) => write_long(&mut self.out, 0),
            (Shape::Union(variants), _) => {
                write_long(&mut self.out, 1);
                // Each of our unions has two variants, and null is the first.
                if let Some(wanted) = variants.last() {
                    self.put(wanted, written, rest, path)?;
                }
            }
            (Shape::Record(wanted), Shape::Record(written)) => self.record(wanted, written, rest, path)?,
            (Shape::Record(_), _) => return refuse("a record"),
            (Shape::Array(wanted), Shape::Array(written)) => self.array(wanted, written, rest, path)?,
            (Shape::Array(_), _) => return refuse("an array"),
            (Shape::Long | Shape::Int, Shape::Int) => write_long(&mut self.out, int(rest).map_err(trouble)?),
            // Our reader checks the bounds.
            (Shape::Long | Shape::Int, Shape::Long) => write_long(&mut self.out, long(rest).map_err(trouble)?),
            (Shape::Long | Shape::Int, _) => return refuse("a whole number, written as int or long"),
            (Shape::Boolean, Shape::Boolean) => self.out.push(boolean(rest).map_err(trouble)?),
            (Shape::Boolean, _) => return refuse("a boolean"),
            (Shape::Text, Shape::Text) => write_text(&mut self.out, text(rest).map_err(trouble)?),
            (Shape::Text, Shape::Enum(symbols)) => {
                let symbol = &symbols[symbol(symbols.len(), rest).map_err(trouble)?];
                if self.out.len() + symbol.len() > self.bytes_max {
                    let bytes = symbol.len();
                    return Err(Malformed::invalid(format!(
                        "{path} is a symbol of {bytes} bytes; expected a name, or text written as string"
                    )));
                }
                write_text(&mut self.out, symbol);
            }
            (Shape::Text, Shape::Bytes) => match std::str::from_utf8(bytes(rest).map_err(trouble)?) {
                Ok(text) => write_text(&mut self.out, text),
                Err(_) => {
                    return Err(Malformed::invalid(format!(
                        "{path} is bytes that are not UTF-8; expected text, written as string, enum or bytes in UTF-8"
                    )));
                }
            },
            (Shape::Text, _) => return refuse("text, written as string, enum or bytes in UTF-8"),
            (Shape::Bytes, Shape::Bytes) => write_bytes(&mut self.out, bytes(rest).map_err(trouble)?),
            (Shape::Bytes, Shape::Fixed(size)) => write_bytes(&mut self.out, take(*size, rest).map_err(trouble)?),
            (Shape::Bytes, _) => return refuse("bytes"),
            (Shape::Null | Shape::Float | Shape::Double | Shape::Fixed(_) | Shape::Enum(_) | Shape::Map(_), _) => {
                return refuse("another type");
            }
        }
        Ok(())
    }

    fn record(
        &mut self,
        wanted: &RecordLayout,
        written: &RecordLayout,
        rest: &mut &[u8],
        path: Path<'_>,
    ) -> Result<(), Malformed> {
        let mut values = Vec::with_capacity(written.fields.len().min(rest.len()));
        for (name, layout) in &written.fields {
            let before = *rest;
            skip(layout, rest).map_err(|trouble| {
                let field = Path::Field {
                    of: &path,
                    ours: name,
                    theirs: name,
                };
                field.malformed(trouble)
            })?;
            values.push(&before[..before.len() - rest.len()]);
        }
        for (name, wanted) in &wanted.fields {
            let found = written.find(name).map_err(|[one, other]| {
                Malformed::invalid(format!(
                    "its schema has no field {name:?}, and both {one:?} and {other:?} could be meant"
                ))
            })?;
            let Some(slot) = found else {
                if let Shape::Union(_) = wanted.shape {
                    write_long(&mut self.out, 0);
                    continue;
                }
                return Err(Malformed::invalid(format!("its schema has no field {name:?}")));
            };
            let mut value = match slot {
                FieldSlot::Field(at) => values[at],
                FieldSlot::Empty(_) => &[],
            };
            let (theirs, layout) = written.at(slot);
            let field = Path::Field {
                of: &path,
                ours: name,
                theirs,
            };
            self.put(wanted, layout, &mut value, field)?;
        }
        Ok(())
    }

    fn array(&mut self, wanted: &Layout, written: &Layout, rest: &mut &[u8], path: Path<'_>) -> Result<(), Malformed> {
        let mut index = 0;
        loop {
            let count = block(rest).map_err(|trouble| path.malformed(trouble))?;
            if count == 0 {
                break;
            }
            write_long(&mut self.out, count as i64);
            for _ in 0..count {
                self.put(wanted, written, rest, Path::Item { of: &path, index })?;
                index += 1;
            }
        }
        write_long(&mut self.out, 0);
        Ok(())
    }
}

impl Path<'_> {
    fn malformed(&self, trouble: &str) -> Malformed {
        Malformed::invalid(format!("{self}: {trouble}"))
    }

    /// Writes the path in our names.
    fn ours(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Value => f.write_str("the value"),
            Path::Field {
                of: Path::Value, ours, ..
            } => f.write_str(ours),
            Path::Field { of, ours, .. } => {
                of.ours(f)?;
                write!(f, ".{ours}")
            }
            Path::Item { of, index } => {
                of.ours(f)?;
                write!(f, "[{index}]")
            }
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.ours(f)?;
        match self {
            Path::Field { ours, theirs, .. } if ours != theirs => write!(f, " (written as {theirs})"),
            Path::Value | Path::Field { .. } | Path::Item { .. } => Ok(()),
        }
    }
}

fn describe(shape: &Shape) -> String {
    let text = match shape {
        Shape::Null => "null",
        Shape::Boolean => "a boolean",
        Shape::Int | Shape::Long => "a number",
        Shape::Float | Shape::Double => "a floating-point number",
        Shape::Bytes => "bytes, such as a decimal",
        Shape::Text => "text",
        Shape::Fixed(16) => "a fixed of 16 bytes, such as a binary UUID",
        Shape::Fixed(size) => return format!("a fixed of {size} bytes"),
        Shape::Enum(_) => "an enum",
        Shape::Array(_) => "an array",
        Shape::Map(_) => "a map",
        Shape::Union(_) => "a union",
        Shape::Record(_) => "a record",
    };
    text.to_owned()
}

const ENDS_EARLY: &str = "the bytes end too early";

/// Takes one value off the front and checks that it is one. Each step consumes at least one byte.
fn skip(layout: &Layout, rest: &mut &[u8]) -> Result<(), &'static str> {
    if !layout.takes_bytes {
        return Ok(());
    }
    match &layout.shape {
        Shape::Null => {}
        Shape::Boolean => drop(boolean(rest)?),
        Shape::Int => drop(int(rest)?),
        Shape::Long => drop(long(rest)?),
        Shape::Float => drop(take(4, rest)?),
        Shape::Double => drop(take(8, rest)?),
        Shape::Bytes => drop(bytes(rest)?),
        Shape::Text => drop(text(rest)?),
        Shape::Fixed(size) => drop(take(*size, rest)?),
        Shape::Enum(symbols) => drop(symbol(symbols.len(), rest)?),
        Shape::Array(items) => loop {
            match block(rest)? {
                0 => break,
                _ if !items.takes_bytes => {}
                count => (0..count).try_for_each(|_| skip(items, rest))?,
            }
        },
        Shape::Map(values) => loop {
            match block(rest)? {
                0 => break,
                count => (0..count).try_for_each(|_| {
                    text(rest)?;
                    skip(values, rest)
                })?,
            }
        },
        Shape::Union(variants) => {
            let at = branch(variants.len(), rest)?;
            skip(&variants[at], rest)?;
        }
        Shape::Record(record) => record.fields.iter().try_for_each(|(_, field)| skip(field, rest))?,
    }
    Ok(())
}

fn take<'d>(bytes: usize, rest: &mut &'d [u8]) -> Result<&'d [u8], &'static str> {
    let (taken, left) = rest.split_at_checked(bytes).ok_or(ENDS_EARLY)?;
    *rest = left;
    Ok(taken)
}

fn long(rest: &mut &[u8]) -> Result<i64, &'static str> {
    match varint::take(rest) {
        Some(value) => Ok(unzigzag(value)),
        None if rest.len() < varint::BYTES_MAX => Err(ENDS_EARLY),
        None => Err("a number has more than 64 bits"),
    }
}

fn int(rest: &mut &[u8]) -> Result<i64, &'static str> {
    let value = long(rest)?;
    match i32::try_from(value) {
        Ok(_) => Ok(value),
        Err(_) => Err("an int has more than 32 bits"),
    }
}

fn boolean(rest: &mut &[u8]) -> Result<u8, &'static str> {
    match take(1, rest)? {
        [byte @ (0 | 1)] => Ok(*byte),
        _ => Err("a boolean is neither 0 nor 1"),
    }
}

fn bytes<'d>(rest: &mut &'d [u8]) -> Result<&'d [u8], &'static str> {
    match long(rest)? {
        ..0 => Err("a length is negative"),
        length => take(usize::try_from(length).map_err(|_| ENDS_EARLY)?, rest),
    }
}

fn text<'d>(rest: &mut &'d [u8]) -> Result<&'d str, &'static str> {
    std::str::from_utf8(bytes(rest)?).map_err(|_| "its text is not UTF-8")
}

fn symbol(symbols: usize, rest: &mut &[u8]) -> Result<usize, &'static str> {
    let at = usize::try_from(int(rest)?).ok();
    at.filter(|at| *at < symbols).ok_or("its enum has fewer symbols")
}

fn branch(variants: usize, rest: &mut &[u8]) -> Result<usize, &'static str> {
    let at = usize::try_from(long(rest)?).ok();
    at.filter(|at| *at < variants).ok_or("its union has fewer types")
}

/// Takes the head of a block of an array or a map. Returns the number of its items, 0 at the end.
fn block(rest: &mut &[u8]) -> Result<u64, &'static str> {
    let count = long(rest)?;
    if count < 0 {
        // The size of the block in bytes, by which a reader could skip it.
        long(rest)?;
    }
    Ok(count.unsigned_abs())
}
