//! A value of a field, before it is known what it has to be.

use super::skip::Skip;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// A field's value, as far as events need it.
#[derive(Default)]
pub(super) enum Raw<'a> {
    #[default]
    Missing,
    Null,
    Text(Cow<'a, str>),
    Number(u64),
    /// Something that no field can be; a word for it.
    Other(&'static str),
}

pub(super) const AN_ARRAY: &str = "an array";
pub(super) const AN_OBJECT: &str = "an object";

impl<'de> Deserialize<'de> for Raw<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Raw<'de>, D::Error> {
        struct RawVisitor;
        impl<'de> Visitor<'de> for RawVisitor {
            type Value = Raw<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_unit<E>(self) -> Result<Raw<'de>, E> {
                Ok(Raw::Null)
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Raw<'de>, E> {
                Ok(Raw::Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Raw<'de>, E> {
                Ok(Raw::Text(Cow::Owned(text.to_owned())))
            }
            fn visit_u64<E>(self, number: u64) -> Result<Raw<'de>, E> {
                Ok(Raw::Number(number))
            }
            fn visit_i64<E>(self, number: i64) -> Result<Raw<'de>, E> {
                Ok(u64::try_from(number).map_or(Raw::Other("a negative number"), Raw::Number))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Raw<'de>, E> {
                Ok(Raw::Other("a number that is no integer or too large"))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Raw<'de>, E> {
                Ok(Raw::Other("a boolean"))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw<'de>, A::Error> {
                while items.next_element::<Skip>()?.is_some() {}
                Ok(Raw::Other(AN_ARRAY))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw<'de>, A::Error> {
                while entries.next_entry::<Skip, Skip>()?.is_some() {}
                Ok(Raw::Other(AN_OBJECT))
            }
        }
        deserializer.deserialize_any(RawVisitor)
    }
}

impl<'a> Raw<'a> {
    pub fn is_given(&self) -> bool {
        match self {
            Raw::Missing | Raw::Null => false,
            Raw::Text(_) | Raw::Number(_) | Raw::Other(_) => true,
        }
    }
}
