//! How the values of a foreign schema lie in bytes.
//!
//! A schema may contain much that changes no byte: logical types, defaults, aliases, documentation, properties of any
//! tool, and names of types. None of these may decide whether a record can be read, so a [`Layout`] does not have them.
//! Types that other schemas define are inserted where they are used.
//!
//! A foreign schema may come from anyone who can write to the registry. It must not refer to itself, since a datum could
//! then nest without end. Everything else is bounded by the bytes of a datum: what takes no bytes is never visited, and
//! every other step consumes at least one byte.

use super::writer::UnusableSchema;
use serde_json::{Map, Value};
use std::collections::HashMap;
use std::sync::Arc;

/// How deep the JSON may nest, including inserted definitions.
const JSON_DEPTH_MAX: usize = 200;
/// How deep the types may nest, so that reading a datum needs little of the stack.
pub(super) const DEPTH_MAX: usize = 32;
/// How many types the schema may have, each counted once.
pub(super) const TYPES_MAX: usize = 10_000;
/// How long the full name of a type may be. Each type has a copy of its namespace.
const NAME_BYTES_MAX: usize = 1_024;

/// How the values of one type lie in bytes; see the module.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Layout {
    pub shape: Shape,
    /// Whether each value takes at least one byte. If not, each value takes none.
    pub takes_bytes: bool,
    depth: usize,
}

#[derive(PartialEq, Eq, Debug)]
pub(super) enum Shape {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    Text,
    Fixed(usize),
    /// The symbols.
    Enum(Vec<Box<str>>),
    Array(Arc<Layout>),
    Map(Arc<Layout>),
    Union(Vec<Arc<Layout>>),
    Record(RecordLayout),
}

/// The fields of a record.
#[derive(PartialEq, Eq, Debug, Default)]
pub(super) struct RecordLayout {
    /// Those that take bytes, in the order of a datum.
    pub fields: Vec<(Box<str>, Arc<Layout>)>,
    /// Those that take none.
    pub empty: Vec<(Box<str>, Arc<Layout>)>,
    exact: HashMap<Box<str>, FieldSlot>,
    /// By the name without capitals, underscores and hyphens: the first field, and another one if there are several.
    alike: HashMap<String, (FieldSlot, Option<FieldSlot>)>,
}

/// Which field of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum FieldSlot {
    Field(usize),
    Empty(usize),
}

impl RecordLayout {
    fn add(&mut self, name: &str, layout: Arc<Layout>) -> Result<(), UnusableSchema> {
        let list = match layout.takes_bytes {
            true => &mut self.fields,
            false => &mut self.empty,
        };
        let slot = match layout.takes_bytes {
            true => FieldSlot::Field(list.len()),
            false => FieldSlot::Empty(list.len()),
        };
        list.push((name.into(), layout));
        if self.exact.insert(name.into(), slot).is_some() {
            return invalid(format!("a record has two fields {name:?}"));
        }
        self.alike
            .entry(bare(name))
            .and_modify(|(_, another)| *another = another.or(Some(slot)))
            .or_insert((slot, None));
        Ok(())
    }

    /// Returns the field of this name, or the only one whose name differs in capitals, underscores and hyphens at most. If
    /// several could be meant, returns the names of two.
    pub fn find(&self, name: &str) -> Result<Option<FieldSlot>, [&str; 2]> {
        if let Some(slot) = self.exact.get(name) {
            return Ok(Some(*slot));
        }
        match self.alike.get(&bare(name)) {
            None => Ok(None),
            Some((slot, None)) => Ok(Some(*slot)),
            Some((one, Some(other))) => Err([self.at(*one).0, self.at(*other).0]),
        }
    }

    /// Returns name and type of a field.
    pub fn at(&self, slot: FieldSlot) -> (&str, &Layout) {
        let (name, layout) = match slot {
            FieldSlot::Field(at) => &self.fields[at],
            FieldSlot::Empty(at) => &self.empty[at],
        };
        (name, layout)
    }
}

/// Returns a name without what languages and databases write differently: `AUTH_AT`, `authAt` and `auth-at` are `auth_at`.
fn bare(name: &str) -> String {
    let kept = name.chars().filter(|c| !matches!(c, '_' | '-'));
    kept.map(|c| c.to_ascii_lowercase()).collect()
}

/// Returns the layout of a schema. `others` are the schemas that it refers to, in any order.
pub(super) fn layout(text: &str, others: &[impl AsRef<str>]) -> Result<Arc<Layout>, UnusableSchema> {
    let parsed = |text: &str| -> Result<Value, UnusableSchema> {
        serde_json::from_str(text).map_err(|error| UnusableSchema::Invalid(format!("it is not JSON: {error}")))
    };
    let schema = parsed(text)?;
    let others = others
        .iter()
        .map(|other| parsed(other.as_ref()))
        .collect::<Result<Vec<_>, _>>()?;
    let mut compiler = Compiler::default();
    for other in &others {
        compiler.gather(other, "", 0)?;
    }
    compiler.schema(&schema, "", 0)
}

fn made(shape: Shape) -> Result<Arc<Layout>, UnusableSchema> {
    let (takes_bytes, depth) = match &shape {
        Shape::Null => (false, 0),
        Shape::Fixed(size) => (*size > 0, 0),
        Shape::Array(of) | Shape::Map(of) => (true, of.depth + 1),
        Shape::Union(variants) => (true, deepest(variants.iter()) + 1),
        Shape::Record(record) => {
            let all = record.fields.iter().chain(&record.empty);
            (!record.fields.is_empty(), deepest(all.map(|field| &field.1)) + 1)
        }
        Shape::Boolean
        | Shape::Int
        | Shape::Long
        | Shape::Float
        | Shape::Double
        | Shape::Bytes
        | Shape::Text
        | Shape::Enum(_) => (true, 0),
    };
    if depth > DEPTH_MAX {
        return Err(UnusableSchema::TooLarge);
    }
    Ok(Arc::new(Layout {
        shape,
        takes_bytes,
        depth,
    }))
}

fn deepest<'l>(layouts: impl Iterator<Item = &'l Arc<Layout>>) -> usize {
    layouts.map(|layout| layout.depth).max().unwrap_or(0)
}

#[derive(Default)]
struct Compiler<'o> {
    /// The types that other schemas define: from full name to the definition and its enclosing namespace.
    elsewhere: HashMap<String, (&'o Value, String)>,
    /// By full name; `None` while the definition is still being read.
    defined: HashMap<String, Option<Arc<Layout>>>,
    types: usize,
}

impl<'o> Compiler<'o> {
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
        if self.types > TYPES_MAX || depth > JSON_DEPTH_MAX {
            return Err(UnusableSchema::TooLarge);
        }
        Ok(())
    }

    fn schema(&mut self, schema: &Value, around: &str, depth: usize) -> Result<Arc<Layout>, UnusableSchema> {
        self.count(depth)?;
        let object = match schema {
            Value::String(name) => return self.name(name, around, depth),
            Value::Array(variants) => {
                let variants = variants.iter().map(|variant| self.schema(variant, around, depth + 1));
                return made(Shape::Union(variants.collect::<Result<_, _>>()?));
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
            Some("array") => made(Shape::Array(self.schema(part("items")?, around, depth + 1)?)),
            Some("map") => made(Shape::Map(self.schema(part("values")?, around, depth + 1)?)),
            Some("record" | "error" | "enum" | "fixed") => self.named(object, kind, around, depth),
            Some(name) => self.name(name, around, depth),
            None => self.schema(kind, around, depth + 1),
        }
    }

    /// Resolves the name of a primitive type or of a type that is defined earlier or elsewhere.
    fn name(&mut self, name: &str, around: &str, depth: usize) -> Result<Arc<Layout>, UnusableSchema> {
        if let Some(kind) = primitive(name) {
            return made(kind);
        }
        // A name without a namespace means a type of the enclosing namespace, or else one without a namespace.
        for full in [qualified(name, around), name.to_owned()] {
            if let Some(defined) = self.defined.get(&full) {
                return defined.clone().ok_or(UnusableSchema::Recursive(full));
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
    ) -> Result<Arc<Layout>, UnusableSchema> {
        let full = full_name(object, around)?;
        // A type that two of the referenced schemas define counts as one type.
        if self.defined.contains_key(&full) {
            return match self.elsewhere.contains_key(&full) {
                true => self.name(&full, "", depth),
                false => invalid(format!("{full} is defined twice")),
            };
        }
        self.defined.insert(full.clone(), None);
        let list = |name: &str| {
            let list = object.get(name).and_then(Value::as_array);
            list.ok_or_else(|| UnusableSchema::Invalid(format!("{full} has no list {name:?}")))
        };
        let layout = match kind.as_str() {
            Some("fixed") => match object.get("size").and_then(Value::as_u64) {
                Some(size) => Shape::Fixed(usize::try_from(size).map_err(|_| UnusableSchema::TooLarge)?),
                None => return invalid(format!("{full} has no size")),
            },
            Some("enum") => {
                let mut symbols: Vec<Box<str>> = Vec::new();
                for symbol in list("symbols")? {
                    let Some(symbol) = symbol.as_str() else {
                        return invalid(format!("{full} has a symbol that is not text"));
                    };
                    symbols.push(symbol.into());
                    self.count(depth)?;
                }
                Shape::Enum(symbols)
            }
            _ => {
                let mut record = RecordLayout::default();
                for field in list("fields")? {
                    let (Some(name), Some(schema)) = (field["name"].as_str(), field.get("type")) else {
                        return invalid(format!("{full} has a field without name or type"));
                    };
                    record.add(name, self.schema(schema, namespace(&full), depth + 1)?)?;
                }
                Shape::Record(record)
            }
        };
        let layout = made(layout)?;
        self.defined.insert(full, Some(Arc::clone(&layout)));
        Ok(layout)
    }
}

fn primitive(name: &str) -> Option<Shape> {
    Some(match name {
        "null" => Shape::Null,
        "boolean" => Shape::Boolean,
        "int" => Shape::Int,
        "long" => Shape::Long,
        "float" => Shape::Float,
        "double" => Shape::Double,
        "bytes" => Shape::Bytes,
        "string" => Shape::Text,
        _ => return None,
    })
}

fn invalid<T>(why: String) -> Result<T, UnusableSchema> {
    Err(UnusableSchema::Invalid(why))
}

fn full_name(object: &Map<String, Value>, around: &str) -> Result<String, UnusableSchema> {
    let Some(name) = object.get("name").and_then(Value::as_str) else {
        return invalid("a type has no name".to_owned());
    };
    let own = object.get("namespace").and_then(Value::as_str).unwrap_or(around);
    if name.len() + own.len() >= NAME_BYTES_MAX {
        return Err(UnusableSchema::TooLarge);
    }
    Ok(qualified(name, own))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, others: &[&str]) -> Result<Arc<Layout>, String> {
        layout(text, others).map_err(|error| error.to_string())
    }

    /// The names and types of all fields that take bytes, as one text.
    fn shown(layout: &Layout) -> String {
        let listed = |all: Vec<String>| all.join(" ");
        match &layout.shape {
            Shape::Record(record) => {
                let fields = record.fields.iter();
                format!(
                    "({})",
                    listed(fields.map(|(name, of)| format!("{name}:{}", shown(of))).collect())
                )
            }
            Shape::Array(of) => format!("[{}]", shown(of)),
            Shape::Map(of) => format!("{{{}}}", shown(of)),
            Shape::Union(variants) => format!("<{}>", listed(variants.iter().map(|of| shown(of)).collect())),
            Shape::Enum(symbols) => format!("enum {}", symbols.join("/")),
            other => format!("{other:?}"),
        }
    }

    fn shown_of(text: &str, others: &[&str]) -> String {
        shown(&of(text, others).expect(text))
    }

    #[test]
    fn nothing_is_left_but_how_the_bytes_lie() {
        let noisy = r#"{"type":"record","name":"größe.Event-1","doc":"d","aliases":["x"],"connect.name":"y","fields":[
            {"name":"at","type":{"type":"long","logicalType":"timestamp-millis"},"default":0,"order":"ignore"},
            {"name":"id","type":["null",{"type":"string","logicalType":"uuid","avro.java.string":"String"}],"default":null},
            {"name":"kind","type":{"type":"enum","name":"Kind","symbols":["CONNECT","größe"],"default":"CONNECT"}},
            {"name":"nothing","type":"null"},
            {"name":"no-name","type":{"type":{"type":"fixed","name":"F","size":12,"logicalType":"duration"}}},
            {"name":"again","type":{"type":"map","values":"größe.Kind","logicalType":"nothing anybody knows"}}]}"#;
        let bare = "(at:Long id:<Null Text> kind:enum CONNECT/größe no-name:Fixed(12) again:{enum CONNECT/größe})";
        assert_eq!(shown_of(noisy, &[]), bare);
    }

    #[test]
    fn a_name_means_the_type_of_its_namespace_or_one_without() {
        let schema = r#"{"type":"record","name":"R","namespace":"a.b","fields":[
            {"name":"f","type":{"type":"fixed","name":"F","size":1}},
            {"name":"g","type":{"type":"fixed","name":"F","namespace":"c","size":2}},
            {"name":"h","type":{"type":"fixed","name":"F","namespace":"","size":3}},
            {"name":"i","type":"F"},{"name":"j","type":"c.F"},{"name":"k","type":"a.b.F"}]}"#;
        assert_eq!(
            shown_of(schema, &[]),
            "(f:Fixed(1) g:Fixed(2) h:Fixed(3) i:Fixed(1) j:Fixed(2) k:Fixed(1))"
        );
        let bare = r#"{"type":"record","name":"R","namespace":"a","fields":[
            {"name":"f","type":{"type":"fixed","name":"F","namespace":"","size":1}},{"name":"g","type":"F"}]}"#;
        assert_eq!(shown_of(bare, &[]), "(f:Fixed(1) g:Fixed(1))");
    }

    #[test]
    fn what_others_define_is_put_in_where_it_is_used() {
        let outer = r#"{"type":"record","name":"n.Outer","fields":[{"name":"inner","type":"Inner"},{"name":"more","type":"Inner"}]}"#;
        let inner = r#"{"type":"record","name":"n.Inner","fields":[{"name":"x","type":"long"}]}"#;
        let schema =
            r#"{"type":"record","name":"R","fields":[{"name":"a","type":"n.Outer"},{"name":"b","type":"n.Inner"}]}"#;
        for others in [[outer, inner], [inner, outer]] {
            assert_eq!(
                shown_of(schema, &others),
                "(a:(inner:(x:Long) more:(x:Long)) b:(x:Long))"
            );
        }
        assert_eq!(
            of(schema, &[outer]).expect_err("Inner is missing"),
            "the schema is not valid: there is no type \"Inner\""
        );
        // A union of the types of others, as used when a topic has several types.
        let union = shown_of(r#"["n.Inner","n.Outer"]"#, &[outer, inner]);
        assert_eq!(union, "<(x:Long) (inner:(x:Long) more:(x:Long))>");
    }

    #[test]
    fn a_name_is_found_in_another_spelling_only_if_one_alone_can_be_meant() {
        let fields = ["AUTH_AT", "ttlMs", "user", "USER", "Type", "TYPE", "re-ason"];
        let mut record = RecordLayout::default();
        for field in fields {
            record
                .add(field, made(Shape::Long).expect("it is small"))
                .expect("its name is new");
        }
        let found = |name: &str| record.find(name).map(|slot| slot.map(|slot| record.at(slot).0));
        for (name, theirs) in [
            ("auth_at", "AUTH_AT"),
            ("ttl_ms", "ttlMs"),
            ("user", "user"),
            ("reason", "re-ason"),
        ] {
            assert_eq!(found(name), Ok(Some(theirs)));
        }
        assert_eq!(found("device"), Ok(None));
        assert_eq!(found("type"), Err(["Type", "TYPE"]));
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
        let nested = |depth: usize| format!("{}\"int\"{}", "[".repeat(depth), "]".repeat(depth));
        assert!(of(&nested(DEPTH_MAX), &[]).is_ok());
        assert!(refused(&nested(DEPTH_MAX + 1)).contains("deeper than 32"));
        let many: Vec<String> = (0..TYPES_MAX)
            .map(|n| format!(r#"{{"name":"f{n}","type":"int"}}"#))
            .collect();
        let many = format!(r#"{{"type":"record","name":"R","fields":[{}]}}"#, many.join(","));
        assert!(refused(&many).contains("more than 10000 types"));
        assert!(refused(&format!("{}\"null\"{}", "[".repeat(130), "]".repeat(130))).contains("not"));
        assert!(refused("7").contains("7 is not a type"));
        assert!(refused(r#"{"name":"x"}"#).contains("no \"type\""));
        assert!(refused(r#"{"type":"record","name":"R"}"#).contains("R has no list \"fields\""));
        assert!(refused(r#"{"type":"enum","name":"E","symbols":[1]}"#).contains("not text"));
        assert!(refused(r#"{"type":"array"}"#).contains("no \"items\""));
        let twice = r#"[{"type":"fixed","name":"F","size":1},{"type":"fixed","name":"F","size":2}]"#;
        assert!(refused(twice).contains("F is defined twice"));
        let fields = r#"{"type":"record","name":"R","fields":[{"name":"f","type":"int"},{"name":"f","type":"int"}]}"#;
        assert!(refused(fields).contains("two fields \"f\""));
    }
}
