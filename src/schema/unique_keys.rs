//! JSON values whose objects have no key twice. Of two values one would be dropped in silence, and nobody could say which
//! was meant.

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use std::fmt;

/// A value that is refused if an object in it, at any depth, has a key twice.
#[derive(Debug)]
pub struct UniqueKeys(pub Value);

impl<'de> Deserialize<'de> for UniqueKeys {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<UniqueKeys, D::Error> {
        struct ValueVisitor;
        impl<'de> Visitor<'de> for ValueVisitor {
            type Value = UniqueKeys;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a JSON value")
            }
            fn visit_unit<E>(self) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys(Value::Null))
            }
            fn visit_str<E>(self, text: &str) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys(text.into()))
            }
            fn visit_u64<E>(self, number: u64) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys(number.into()))
            }
            fn visit_i64<E>(self, number: i64) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys(number.into()))
            }
            fn visit_f64<E>(self, number: f64) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys(number.into()))
            }
            fn visit_bool<E>(self, is_so: bool) -> Result<UniqueKeys, E> {
                Ok(UniqueKeys(is_so.into()))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<UniqueKeys, A::Error> {
                let mut values = Vec::new();
                while let Some(UniqueKeys(value)) = items.next_element()? {
                    values.push(value);
                }
                Ok(UniqueKeys(values.into()))
            }
            fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<UniqueKeys, A::Error> {
                let mut object = Map::new();
                while let Some(key) = entries.next_key::<String>()? {
                    if object.contains_key(&key) {
                        let key = key.chars().take(64).collect::<String>();
                        return Err(de::Error::custom(format_args!(
                            "{key:?} is given twice in one object; give it once"
                        )));
                    }
                    let UniqueKeys(value) = entries.next_value()?;
                    object.insert(key, value);
                }
                Ok(UniqueKeys(object.into()))
            }
        }
        deserializer.deserialize_any(ValueVisitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_read_as_it_is() {
        let text = r#"{"a":[null,true,-1,1.5,18446744073709551615,{"a":"\ud83d\ude00"}],"b":{}}"#;
        let UniqueKeys(value) = serde_json::from_str(text).expect("no key twice");
        assert_eq!(value, serde_json::from_str::<Value>(text).expect("JSON"));
    }

    #[test]
    fn a_key_given_twice_is_refused_at_any_depth() {
        for text in [
            r#"{"key":1,"key":1}"#,
            r#"[{"a":{"key":1,"b":2,"k\u0065y":3}}]"#,
            r#"{"a":[],"b":[{"key":null,"key":null}]}"#,
        ] {
            let error = serde_json::from_str::<UniqueKeys>(text).expect_err(text);
            assert!(error.to_string().contains(r#""key" is given twice"#), "{text}: {error}");
        }
    }
}
