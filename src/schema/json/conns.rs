//! The connections of an `alive` event from JSON, checked while they are read, since there may be 100,000 of them.

use super::raw::{AN_OBJECT, Raw};
use super::skip::Skip;
use crate::presence::Conn;
use crate::presence::event::bounds;
use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use std::fmt;

/// The connections of an `alive` event.
#[derive(Default)]
pub(super) enum Conns {
    #[default]
    Missing,
    List(Vec<Conn>),
    /// What is wrong with them.
    Bad(String),
}

impl<'de> Deserialize<'de> for Conns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Conns, D::Error> {
        struct ConnsVisitor;
        impl<'de> Visitor<'de> for ConnsVisitor {
            type Value = Conns;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Conns, A::Error> {
                let (least, most) = bounds::CONNS;
                let mut list: Vec<Conn> = Vec::new();
                let mut bad = None;
                let mut count = 0_usize;
                while let Some(item) = items.next_element::<Raw<'de>>()? {
                    count += 1;
                    // One more than allowed is enough to say so; the rest is read past.
                    if bad.is_some() || count > most {
                        continue;
                    }
                    match item {
                        Raw::Number(number) if number <= bounds::NUMBER_MAX => match list.last() {
                            Some(last) if last.0 >= number => {
                                bad = Some(format!("`conns` must grow, but {number} comes after {}", last.0));
                            }
                            Some(_) | None => list.push(Conn(number)),
                        },
                        Raw::Number(_) | Raw::Missing | Raw::Null | Raw::Text(_) | Raw::Other(_) => {
                            bad = Some(format!("`conns` must be integers from 0 to {}", bounds::NUMBER_MAX));
                        }
                    }
                }
                if !(least..=most).contains(&count) {
                    bad = Some(format!("`conns` must have {least} to {most} numbers, not {count}"));
                }
                Ok(bad.map_or(Conns::List(list), Conns::Bad))
            }
            fn visit_unit<E>(self) -> Result<Conns, E> {
                Ok(Conns::Missing)
            }
            fn visit_str<E>(self, _: &str) -> Result<Conns, E> {
                Ok(not_an_array("a string"))
            }
            fn visit_u64<E>(self, _: u64) -> Result<Conns, E> {
                Ok(not_an_array("a number"))
            }
            fn visit_i64<E>(self, _: i64) -> Result<Conns, E> {
                Ok(not_an_array("a number"))
            }
            fn visit_f64<E>(self, _: f64) -> Result<Conns, E> {
                Ok(not_an_array("a number"))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Conns, E> {
                Ok(not_an_array("a boolean"))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Conns, A::Error> {
                while entries.next_entry::<Skip, Skip>()?.is_some() {}
                Ok(not_an_array(AN_OBJECT))
            }
        }
        fn not_an_array(what: &str) -> Conns {
            Conns::Bad(format!("`conns` must be an array, not {what}"))
        }
        deserializer.deserialize_any(ConnsVisitor)
    }
}
