//! The datum of `schemas/quarantined.avsc`, field by field in the schema's order.

use super::datum::{Reader, write_count, write_int, write_nullable_bytes, write_text};
use crate::presence::{Offset, Partition};
use crate::schema::Malformed;
use std::borrow::Cow;

/// A malformed record, kept unchanged, with what is wrong with it (`docs/rules.md` section 9).
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Quarantined<'a> {
    pub partition: Partition,
    pub offset: Offset,
    /// The record's timestamp in milliseconds.
    pub ts: u64,
    /// The text of a [`Malformed`].
    pub error: Cow<'a, str>,
    /// The record's key and value, unchanged; `None` if the record had none.
    pub key: Option<Cow<'a, [u8]>>,
    pub value: Option<Cow<'a, [u8]>>,
}

pub(super) fn read(datum: &[u8]) -> Result<Quarantined<'_>, Malformed> {
    let mut reader = Reader::new(datum);
    let quarantined = Quarantined {
        partition: Partition(reader.int("partition")),
        offset: Offset(reader.count("offset")),
        ts: reader.count("ts"),
        error: Cow::Borrowed(reader.text("error")),
        key: reader.nullable_bytes("key").map(Cow::Borrowed),
        value: reader.nullable_bytes("value").map(Cow::Borrowed),
    };
    reader.end()?;
    Ok(quarantined)
}

pub(super) fn write(quarantined: &Quarantined<'_>, out: &mut Vec<u8>) {
    let Quarantined {
        partition,
        offset,
        ts,
        error,
        key,
        value,
    } = quarantined;
    write_int(out, partition.0);
    write_count(out, offset.0);
    write_count(out, *ts);
    write_text(out, error);
    write_nullable_bytes(out, key.as_deref());
    write_nullable_bytes(out, value.as_deref());
}

impl Quarantined<'_> {
    /// Returns the value with owned bytes, for use after the bytes that it was read from are gone.
    pub fn into_owned(self) -> Quarantined<'static> {
        let own = |bytes: Cow<'_, [u8]>| Cow::Owned(bytes.into_owned());
        Quarantined {
            partition: self.partition,
            offset: self.offset,
            ts: self.ts,
            error: Cow::Owned(self.error.into_owned()),
            key: self.key.map(own),
            value: self.value.map(own),
        }
    }
}
