//! Arrays of objects: the events of a request, the beats of an event.

use super::bad_event::{BadEvent, bad};
use super::fields::{Fields, FieldsSeed, Seen};
use super::raw::{AN_ARRAY, AN_OBJECT};
use super::skip::Skip;
use crate::presence::event::{HeartbeatEntry, bounds};
use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// The beats of an event.
#[derive(Default)]
pub(super) enum Beats<'a> {
    #[default]
    Missing,
    Null,
    /// Those that could be read, up to the first that is wrong; how many there are; and what is wrong.
    List(Vec<HeartbeatEntry<'a>>, usize, Option<(usize, BadEvent)>),
    Other(&'static str),
}

/// Reads an element of an array of events or beats: an object, which `read` makes something of.
pub(super) struct ItemSeed<'s, R> {
    pub seen: Seen<'s>,
    pub read: R,
    pub what: &'static str,
    /// The field that is named if it is no object.
    pub field: &'static str,
}

impl<R> ItemSeed<'_, R> {
    fn no_object<T, E>(&self, found: &str) -> Result<Result<T, BadEvent>, E> {
        Ok(bad(self.field, format!("{} must be an object, not {found}", self.what)))
    }
}

impl<'de, T, R: FnOnce(&mut Fields<'de>) -> Result<T, BadEvent>> DeserializeSeed<'de> for ItemSeed<'_, R> {
    type Value = Result<T, BadEvent>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T, R: FnOnce(&mut Fields<'de>) -> Result<T, BadEvent>> Visitor<'de> for ItemSeed<'_, R> {
    type Value = Result<T, BadEvent>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_map<A: MapAccess<'de>>(self, entries: A) -> Result<Self::Value, A::Error> {
        let mut fields = FieldsSeed(self.seen).visit_map(entries)?;
        Ok((self.read)(&mut fields))
    }
    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        self.no_object("null")
    }
    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        self.no_object("a string")
    }
    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        self.no_object("a number")
    }
    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        self.no_object("a number")
    }
    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        self.no_object("a number")
    }
    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        self.no_object("a boolean")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        while items.next_element::<Skip>()?.is_some() {}
        self.no_object(AN_ARRAY)
    }
}

pub(super) struct BeatsSeed<'s>(pub Seen<'s>);

impl<'de> DeserializeSeed<'de> for BeatsSeed<'_> {
    type Value = Beats<'de>;
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Beats<'de>, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for BeatsSeed<'_> {
    type Value = Beats<'de>;
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }
    fn visit_seq<A: SeqAccess<'de>>(mut self, mut items: A) -> Result<Beats<'de>, A::Error> {
        let (_, most) = bounds::BEATS;
        let (mut beats, mut count, mut wrong) = (Vec::new(), 0, None);
        loop {
            let more = if wrong.is_some() || count >= most {
                items.next_element::<Skip>()?.is_some()
            } else {
                let beat = items.next_element_seed(ItemSeed {
                    seen: self.0.again(),
                    read: Fields::beat,
                    what: "a beat",
                    field: "beats",
                })?;
                let more = beat.is_some();
                match beat {
                    Some(Ok(beat)) => beats.push(beat),
                    Some(Err(bad)) => wrong = Some((count, bad)),
                    None => {}
                }
                more
            };
            if !more {
                return Ok(Beats::List(beats, count, wrong));
            }
            count += 1;
        }
    }
    fn visit_unit<E>(self) -> Result<Beats<'de>, E> {
        Ok(Beats::Null)
    }
    fn visit_str<E>(self, _: &str) -> Result<Beats<'de>, E> {
        Ok(Beats::Other("a string"))
    }
    fn visit_u64<E>(self, _: u64) -> Result<Beats<'de>, E> {
        Ok(Beats::Other("a number"))
    }
    fn visit_i64<E>(self, _: i64) -> Result<Beats<'de>, E> {
        Ok(Beats::Other("a number"))
    }
    fn visit_f64<E>(self, _: f64) -> Result<Beats<'de>, E> {
        Ok(Beats::Other("a number"))
    }
    fn visit_bool<E>(self, _: bool) -> Result<Beats<'de>, E> {
        Ok(Beats::Other("a boolean"))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Beats<'de>, A::Error> {
        while entries.next_entry::<Skip, Skip>()?.is_some() {}
        Ok(Beats::Other(AN_OBJECT))
    }
}
