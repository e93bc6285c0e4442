//! Reduces a foreign schema to the parts that determine its binary encoding.
//!
//! A schema may contain much that changes no byte: logical types, defaults, aliases, documentation, properties of any
//! tool, and names. None of these may decide whether a record can be read, so the library does not get them. Types and
//! enum symbols get names of ours (the real symbols are in [`Plain::symbols`]), and the rest is dropped. Definitions
//! from other schemas are inserted where they are first used.

use super::writer::UnusableSchema;
use serde_json::{Map, Value, json};
use std::collections::HashMap;

/// How deep the JSON may nest, including inserted definitions.
const DEPTH_MAX: usize = 200;
/// How many types the schema may have, each counted once.
const TYPES_MAX: usize = 10_000;
/// The longest `fixed`. Its bytes are reserved before they are read.
const FIXED_BYTES_MAX: u64 = 1 << 20;

const PRIMITIVES: [&str; 8] = ["null", "boolean", "int", "long", "float", "double", "bytes", "string"];

/// A schema in its plain form; see the module.
pub(super) struct Plain {
    pub json: Value,
    /// The real names of the symbols called `s0`, `s1` and so on, over all enums.
    pub symbols: Vec<Box<str>>,
}

/// Returns the plain form of a schema. `others` are the schemas that it refers to, in any order.
pub(super) fn plain(text: &str, others: &[impl AsRef<str>]) -> Result<Plain, UnusableSchema> {
    let parsed = |text: &str| -> Result<Value, UnusableSchema> {
        serde_json::from_str(text).map_err(|error| UnusableSchema::Invalid(format!("it is not JSON: {error}")))
    };
    let schema = parsed(text)?;
    let others = others
        .iter()
        .map(|other| parsed(other.as_ref()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut walk = Flattener::default();
    for other in &others {
        walk.gather(other, "", 0)?;
    }
    let json = walk.schema(&schema, "", 0)?;
    Ok(Plain {
        json,
        symbols: walk.symbols,
    })
}

#[derive(Default)]
struct Flattener<'o> {
    /// The types that other schemas define: from full name to the definition and its enclosing namespace.
    elsewhere: HashMap<String, (&'o Value, String)>,
    /// From full name to plain name, and whether its definition is still being read.
    defined: HashMap<String, (String, bool)>,
    symbols: Vec<Box<str>>,
    types: usize,
}

impl<'o> Flattener<'o> {
    /// Collects the named types that another schema defines.
    fn gather(&mut self, other: &'o Value, around: &str, depth: usize) -> Result<(), UnusableSchema> {
        self.count(depth)?;
        match other {
            Value::Array(variants) => variants
                .iter()
                .try_for_each(|variant| self.gather(variant, around, depth + 1)),
            Value::Object(object) => {
                let mut within = around.to_owned();
                if let Some("record" | "error" | "enum" | "fixed") = object.get("type").and_then(Value::as_str) {
                    let full = full_name(object, around)?;
                    within = namespace(&full).to_owned();
                    self.elsewhere.entry(full).or_insert((other, around.to_owned()));
                }
                let fields = object.get("fields").and_then(Value::as_array);
                let of_fields = fields.into_iter().flatten().filter_map(|field| field.get("type"));
                let inner = ["type", "items", "values"]
                    .into_iter()
                    .filter_map(|name| object.get(name));
                for each in inner.chain(of_fields) {
                    self.gather(each, &within, depth + 1)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn count(&mut self, depth: usize) -> Result<(), UnusableSchema> {
        self.types += 1;
        if self.types > TYPES_MAX || depth > DEPTH_MAX {
            return Err(UnusableSchema::TooLarge);
        }
        Ok(())
    }

    fn schema(&mut self, schema: &Value, around: &str, depth: usize) -> Result<Value, UnusableSchema> {
        self.count(depth)?;
        let object = match schema {
            Value::String(name) => return self.name(name, around, depth),
            Value::Array(variants) => {
                let variants = variants.iter().map(|variant| self.schema(variant, around, depth + 1));
                return Ok(Value::Array(variants.collect::<Result<_, _>>()?));
            }
            Value::Object(object) => object,
            other => return invalid(format!("{other} is not a type")),
        };
        let part = |name: &str| {
            let part = object.get(name);
            part.ok_or_else(|| UnusableSchema::Invalid(format!("a type has no {name:?}")))
        };
        let kind = part("type")?;
        match kind.as_str() {
            Some("array") => Ok(json!({"type": "array", "items": self.schema(part("items")?, around, depth + 1)?})),
            Some("map") => Ok(json!({"type": "map", "values": self.schema(part("values")?, around, depth + 1)?})),
            Some("record" | "error" | "enum" | "fixed") => self.named(object, kind, around, depth),
            Some(name) => self.name(name, around, depth),
            None => self.schema(kind, around, depth + 1),
        }
    }

    /// Resolves the name of a primitive type or of a type that is defined earlier or elsewhere.
    fn name(&mut self, name: &str, around: &str, depth: usize) -> Result<Value, UnusableSchema> {
        if PRIMITIVES.contains(&name) {
            return Ok(json!(name));
        }
        // A name without a namespace means a type of the enclosing namespace, or else one without a namespace.
        for full in [qualified(name, around), name.to_owned()] {
            if let Some((plain, is_open)) = self.defined.get(&full) {
                return match is_open {
                    true => Err(UnusableSchema::Recursive(full)),
                    false => Ok(json!(plain)),
                };
            }
            if let Some((definition, around)) = self.elsewhere.get(&full).cloned() {
                return self.schema(definition, &around, depth + 1);
            }
        }
        invalid(format!("there is no type {name:?}"))
    }

    fn named(
        &mut self,
        object: &Map<String, Value>,
        kind: &Value,
        around: &str,
        depth: usize,
    ) -> Result<Value, UnusableSchema> {
        let full = full_name(object, around)?;
        // A type that two of the referenced schemas define counts as one type.
        if self.defined.contains_key(&full) {
            return match self.elsewhere.contains_key(&full) {
                true => self.name(&full, "", depth),
                false => invalid(format!("{full} is defined twice")),
            };
        }
        let plain = format!("T{}", self.defined.len());
        self.defined.insert(full.clone(), (plain.clone(), true));
        let list = |name: &str| {
            let list = object.get(name).and_then(Value::as_array);
            list.ok_or_else(|| UnusableSchema::Invalid(format!("{full} has no list {name:?}")))
        };
        let definition = match kind.as_str() {
            Some("fixed") => match object.get("size").and_then(Value::as_u64) {
                Some(size) if size <= FIXED_BYTES_MAX => json!({"type": "fixed", "name": plain, "size": size}),
                Some(_) => return Err(UnusableSchema::TooLarge),
                None => return invalid(format!("{full} has no size")),
            },
            Some("enum") => {
                let mut names = Vec::new();
                for symbol in list("symbols")? {
                    let Some(symbol) = symbol.as_str() else {
                        return invalid(format!("{full} has a symbol that is not text"));
                    };
                    names.push(format!("s{}", self.symbols.len()));
                    self.symbols.push(symbol.into());
                    self.count(depth)?;
                }
                json!({"type": "enum", "name": plain, "symbols": names})
            }
            _ => {
                let mut fields = Vec::new();
                for (number, field) in list("fields")?.iter().enumerate() {
                    let (Some(name), Some(schema)) = (field["name"].as_str(), field.get("type")) else {
                        return invalid(format!("{full} has a field without name or type"));
                    };
                    // Names that only other libraries allow are replaced.
                    let name = match is_allowed(name) {
                        true => name.to_owned(),
                        false => format!("__field_{number}"),
                    };
                    let schema = self.schema(schema, namespace(&full), depth + 1)?;
                    fields.push(json!({"name": name, "type": schema}));
                }
                json!({"type": "record", "name": plain, "fields": fields})
            }
        };
        self.defined.insert(full, (plain, false));
        Ok(definition)
    }
}

fn invalid<T>(why: String) -> Result<T, UnusableSchema> {
    Err(UnusableSchema::Invalid(why))
}

fn full_name(object: &Map<String, Value>, around: &str) -> Result<String, UnusableSchema> {
    let Some(name) = object.get("name").and_then(Value::as_str) else {
        return invalid("a type has no name".to_owned());
    };
    let own = object.get("namespace").and_then(Value::as_str);
    Ok(qualified(name, own.unwrap_or(around)))
}

fn qualified(name: &str, around: &str) -> String {
    match name.strip_prefix('.') {
        Some(bare) => bare.to_owned(),
        None if name.contains('.') || around.is_empty() => name.to_owned(),
        None => format!("{around}.{name}"),
    }
}

fn namespace(full: &str) -> &str {
    full.rsplit_once('.').map_or("", |(namespace, _)| namespace)
}

/// Returns whether Avro's specification allows this name for a field.
fn is_allowed(name: &str) -> bool {
    let may = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.starts_with(|c: char| may(c) && !c.is_ascii_digit()) && name.chars().all(may)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, others: &[&str]) -> Result<(String, Vec<Box<str>>), String> {
        let plain = plain(text, others).map_err(|error| error.to_string())?;
        Ok((plain.json.to_string(), plain.symbols))
    }

    fn json_of(text: &str, others: &[&str]) -> String {
        of(text, others).expect(text).0
    }

    #[test]
    fn nothing_is_left_but_how_the_bytes_lie() {
        let noisy = r#"{"type":"record","name":"größe.Event-1","doc":"d","aliases":["x"],"connect.name":"y","fields":[
            {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"},"default":0,"order":"ignore"},
            {"name":"id","type":["null",{"type":"string","logicalType":"uuid","avro.java.string":"String"}],"default":null},
            {"name":"kind","type":{"type":"enum","name":"Kind","symbols":["CONNECT","größe"],"default":"CONNECT"}},
            {"name":"no-name","type":{"type":{"type":"fixed","name":"F","size":12,"logicalType":"duration"}}},
            {"name":"again","type":{"type":"map","values":"größe.Kind","logicalType":"nothing anybody knows"}}]}"#;
        let (json, symbols) = of(noisy, &[]).expect("it is valid");
        let bare = json!({"type":"record","name":"T0","fields":[
            {"name":"at","type":"long"},
            {"name":"id","type":["null","string"]},
            {"name":"kind","type":{"type":"enum","name":"T1","symbols":["s0","s1"]}},
            {"name":"__field_3","type":{"type":"fixed","name":"T2","size":12}},
            {"name":"again","type":{"type":"map","values":"T1"}}]});
        assert_eq!(json, bare.to_string());
        assert_eq!(symbols, ["CONNECT".into(), "größe".into()]);
    }

    #[test]
    fn a_name_means_the_type_of_its_namespace_or_one_without() {
        let schema = r#"{"type":"record","name":"R","namespace":"a.b","fields":[
            {"name":"f","type":{"type":"fixed","name":"F","size":1}},
            {"name":"g","type":{"type":"fixed","name":"F","namespace":"c","size":2}},
            {"name":"h","type":{"type":"fixed","name":"F","namespace":"","size":3}},
            {"name":"i","type":"F"},{"name":"j","type":"c.F"},{"name":"k","type":"a.b.F"}]}"#;
        let json = json_of(schema, &[]);
        for field in [
            r#"{"name":"i","type":"T1"}"#,
            r#"{"name":"j","type":"T2"}"#,
            r#"{"name":"k","type":"T1"}"#,
        ] {
            assert!(json.contains(field), "{json}");
        }
        let bare = r#"{"type":"record","name":"R","namespace":"a","fields":[
            {"name":"f","type":{"type":"fixed","name":"F","namespace":"","size":1}},{"name":"g","type":"F"}]}"#;
        assert!(json_of(bare, &[]).contains(r#"{"name":"g","type":"T1"}"#));
    }

    #[test]
    fn what_others_define_is_put_in_once_where_it_is_used_first() {
        let outer = r#"{"type":"record","name":"n.Outer","fields":[{"name":"inner","type":"Inner"},{"name":"more","type":"Inner"}]}"#;
        let inner = r#"{"type":"record","name":"n.Inner","fields":[{"name":"x","type":"long"}]}"#;
        let schema =
            r#"{"type":"record","name":"R","fields":[{"name":"a","type":"n.Outer"},{"name":"b","type":"n.Inner"}]}"#;
        let expected = json!({"type":"record","name":"T0","fields":[
            {"name":"a","type":{"type":"record","name":"T1","fields":[
                {"name":"inner","type":{"type":"record","name":"T2","fields":[{"name":"x","type":"long"}]}},
                {"name":"more","type":"T2"}]}},
            {"name":"b","type":"T2"}]});
        for others in [[outer, inner], [inner, outer]] {
            assert_eq!(json_of(schema, &others), expected.to_string());
        }
        assert_eq!(
            of(schema, &[outer]).expect_err("Inner is missing"),
            "the schema is not valid: there is no type \"Inner\""
        );
        // A union of the types of others, as used when a topic has several types.
        assert!(json_of(r#"["n.Inner","n.Outer"]"#, &[outer, inner]).starts_with(r#"[{"fields""#));
    }

    #[test]
    fn what_could_exhaust_us_or_means_nothing_is_refused() {
        let refused = |text: &str| of(text, &[]).expect_err(text);
        let list = r#"{"type":"record","name":"n.List","fields":[{"name":"next","type":["null","List"]}]}"#;
        assert!(refused(list).contains("refers to itself at n.List"));
        let a = r#"{"type":"record","name":"A","fields":[{"name":"b","type":["null","B"]}]}"#;
        let b = r#"{"type":"record","name":"B","fields":[{"name":"a","type":["null","A"]}]}"#;
        let mutual = of(r#"["A"]"#, &[a, b]).expect_err("A and B have no end");
        assert!(mutual.contains("refers to itself at A"), "{mutual}");
        let huge = r#"{"type":"fixed","name":"F","size":1152921504606846976}"#;
        assert!(refused(huge).contains("more than"));
        assert!(refused(&format!("{}\"null\"{}", "[".repeat(130), "]".repeat(130))).contains("not"));
        assert!(refused("7").contains("7 is not a type"));
        assert!(refused(r#"{"name":"x"}"#).contains("no \"type\""));
        assert!(refused(r#"{"type":"record","name":"R"}"#).contains("R has no list \"fields\""));
        assert!(refused(r#"{"type":"enum","name":"E","symbols":[1]}"#).contains("not text"));
        assert!(refused(r#"{"type":"array"}"#).contains("no \"items\""));
        let twice = r#"[{"type":"fixed","name":"F","size":1},{"type":"fixed","name":"F","size":2}]"#;
        assert!(refused(twice).contains("F is defined twice"));
    }
}
